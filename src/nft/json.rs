//! The table as libnftables JSON, as `nft -j list table` prints it (without handles).
//!
//! Rules, chains and plain sets are values of the `nftables` crate. Written by hand are the set
//! with timeouts and the verdict maps: the crate has no words for the types `ether_type` and
//! `verdict`, and it types the data of a map by its parts where nft 1.0 prints one string.

use std::borrow::Cow;
use std::collections::HashSet;
use std::time::Duration;

use nftables::expr::{
    CT, CTDir, Expression, JHash, Map, Meta, MetaKey, NamedExpression, Payload, PayloadField,
    Prefix,
};
use nftables::schema::{self, NfListObject, Rule, SetFlag, SetType, SetTypeValue};
use nftables::stmt::{
    self, JumpTarget, Match, NAT, NATFamily, Operator, Reject, RejectType, VerdictMap,
};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook, RejectCode};
use serde_json::{Value as Json, json};

use super::element::{Element, Key, Value};
use super::skeleton::{
    Chain, ChainId, Data, Field, Hook, PRIORITY, SetId, Statement, Type, Verdict, transport_name,
};
use super::table::{SEED, TABLE, Table};
use super::text::{type_name, types};
use crate::model::Family;
use crate::model::forwarding::FrontendKey;

/// Several tables as one document, as `nft -j` reads and prints it.
pub fn tables(tables: &[Table], alive: Duration) -> Result<Json, serde_json::Error> {
    let objects: Result<Vec<Vec<Json>>, _> = tables.iter().map(|one| table(one, alive)).collect();
    Ok(json!({ "nftables": objects?.concat() }))
}

/// The objects of a table, in the order in which nft lists them: table, sets, chains, rules. To be
/// printed as `{"nftables": [ … ]}`.
pub fn table(table: &Table, alive: Duration) -> Result<Vec<Json>, serde_json::Error> {
    let family = table.family;
    let head = schema::Table { family: nf_family(family), name: TABLE.into(), handle: None };
    let mut objects = vec![serde_json::to_value(NfListObject::Table(head))?];
    for (id, elements) in &table.sets {
        objects.push(set(family, *id, elements, alive)?);
    }
    for chain in &table.chains {
        objects.push(serde_json::to_value(NfListObject::Chain(self::chain(family, chain)))?);
    }
    for chain in &table.chains {
        for rule in &chain.rules {
            let expr: Vec<stmt::Statement> =
                rule.iter().map(|statement| self::statement(family, statement)).collect();
            let name = chain.id.to_string().into();
            let rule = Rule {
                family: nf_family(family),
                table: TABLE.into(),
                chain: name,
                expr: expr.into(),
                ..Rule::default()
            };
            objects.push(serde_json::to_value(NfListObject::Rule(rule))?);
        }
    }
    Ok(objects)
}

fn set(
    family: Family,
    id: SetId,
    elements: &[Element],
    alive: Duration,
) -> Result<Json, serde_json::Error> {
    if id.timeout() || id.data() != Data::None {
        return map(family, id, elements, alive);
    }
    let kinds: Option<Vec<SetType>> = id.key().iter().map(|part| set_type(family, *part)).collect();
    let set_type = match kinds.unwrap_or_default().as_slice() {
        [one] => SetTypeValue::Single(*one),
        parts => SetTypeValue::Concatenated(Cow::Owned(parts.to_vec())),
    };
    let elem: Vec<Expression> = elements.iter().map(|element| key(&element.key)).collect();
    let set = schema::Set {
        family: nf_family(family),
        table: TABLE.into(),
        name: id.name().into(),
        set_type,
        flags: id.interval().then(|| HashSet::from([SetFlag::Interval])),
        elem: (!elem.is_empty()).then_some(elem.into()),
        ..schema::Set::default()
    };
    serde_json::to_value(NfListObject::Set(Box::new(set)))
}

fn map(
    family: Family,
    id: SetId,
    elements: &[Element],
    alive: Duration,
) -> Result<Json, serde_json::Error> {
    let names: Vec<&str> = id.key().iter().map(|part| type_name(family, *part)).collect();
    let kind = if let [one] = names.as_slice() { json!(one) } else { json!(names) };
    let mut object =
        json!({ "family": family.nft(), "name": id.name(), "table": TABLE, "type": kind });
    let mut listed = Vec::new();
    for element in elements {
        let key = serde_json::to_value(key(&element.key))?;
        listed.push(match &element.value {
            None => json!({ "elem": { "val": key, "timeout": alive.as_secs() } }),
            Some(Value::Verdict(to)) => json!([key, serde_json::to_value(verdict(to))?]),
            Some(Value::Backend(address, port)) => json!([key, { "concat": [address, port] }]),
        });
    }
    let data = match id.data() {
        Data::None => None,
        Data::Verdict => Some("verdict".to_owned()),
        Data::Parts(parts) => Some(types(family, parts)),
    };
    let outer = if data.is_some() { "map" } else { "set" };
    if let Some(fields) = object.as_object_mut() {
        fields.extend(data.map(|data| ("map".to_owned(), json!(data))));
        fields.extend(id.timeout().then(|| ("flags".to_owned(), json!(["timeout"]))));
        fields.extend((!listed.is_empty()).then(|| ("elem".to_owned(), Json::Array(listed))));
    }
    Ok(json!({ outer: object }))
}

fn chain(family: Family, chain: &Chain) -> schema::Chain<'static> {
    let plain = schema::Chain {
        family: nf_family(family),
        table: TABLE.into(),
        name: chain.id.to_string().into(),
        ..schema::Chain::default()
    };
    let Some(base) = chain.base else { return plain };
    schema::Chain {
        _type: Some(if base.nat { NfChainType::NAT } else { NfChainType::Filter }),
        hook: Some(match base.hook {
            Hook::Prerouting => NfHook::Prerouting,
            Hook::Output => NfHook::Output,
            Hook::Postrouting => NfHook::Postrouting,
        }),
        prio: Some(PRIORITY),
        policy: Some(NfChainPolicy::Accept),
        ..plain
    }
}

fn statement(family: Family, statement: &Statement) -> stmt::Statement<'static> {
    let compare = |left, op, right| stmt::Statement::Match(Match { left, op, right });
    let text = |text: &'static str| Expression::String(text.into());
    let (icmp, refusal) = match family {
        Family::V4 => ("icmp", RejectType::ICMP),
        Family::V6 => ("icmpv6", RejectType::ICMPv6),
    };
    match statement {
        Statement::Lookup { key, set, absent } => compare(
            fields(family, key),
            if *absent { Operator::NEQ } else { Operator::EQ },
            reference(*set),
        ),
        Statement::Dispatch { key, map } => stmt::Statement::VerdictMap(VerdictMap {
            key: fields(family, key),
            data: reference(*map),
        }),
        Statement::Dnat { key, map } => {
            let map = Map { key: fields(family, key), data: reference(*map) };
            stmt::Statement::DNAT(Some(NAT {
                addr: Some(Expression::Named(NamedExpression::Map(Box::new(map)))),
                family: Some(if family == Family::V4 { NATFamily::IP } else { NATFamily::IP6 }),
                port: None,
                flags: None,
            }))
        }
        Statement::EchoRequest => {
            compare(payload(icmp, "type"), Operator::EQ, text("echo-request"))
        }
        Statement::NotIcmp6 => compare(meta(MetaKey::L4proto), Operator::NEQ, text("ipv6-icmp")),
        Statement::Invalid => compare(
            conntrack("state", false),
            Operator::IN,
            Expression::List(vec![text("invalid"), text("untracked")]),
        ),
        Statement::Translated => compare(conntrack("status", false), Operator::IN, text("dnat")),
        Statement::Redirect => stmt::Statement::Redirect(None),
        Statement::Masquerade => stmt::Statement::Masquerade(None),
        Statement::RejectTcp => {
            stmt::Statement::Reject(Some(Reject::new(Some(RejectType::TCPReset), None)))
        }
        Statement::Reject => {
            stmt::Statement::Reject(Some(Reject::new(Some(refusal), Some(RejectCode::PortUnreach))))
        }
        Statement::Verdict(to) => verdict(to),
    }
}

fn verdict(verdict: &Verdict) -> stmt::Statement<'static> {
    let target = |to: &ChainId| JumpTarget { target: to.to_string().into() };
    match verdict {
        Verdict::Drop => stmt::Statement::Drop(None),
        Verdict::Return => stmt::Statement::Return(None),
        Verdict::Jump(to) => stmt::Statement::Jump(target(to)),
        Verdict::Goto(to) => stmt::Statement::Goto(target(to)),
    }
}

fn fields(family: Family, fields: &[Field]) -> Expression<'static> {
    match fields {
        [one] => field(family, one),
        parts => concatenation(parts.iter().map(|part| field(family, part)).collect()),
    }
}

fn field(family: Family, field: &Field) -> Expression<'static> {
    let ip = family.nft();
    match field {
        Field::Source => payload(ip, "saddr"),
        Field::Destination => payload(ip, "daddr"),
        Field::Transport => meta(MetaKey::L4proto),
        Field::SourcePort => payload("th", "sport"),
        Field::DestinationPort => payload("th", "dport"),
        Field::EtherType => meta(MetaKey::Protocol),
        Field::Uplink => meta(MetaKey::Iifname),
        Field::OriginalDestination => {
            conntrack(if family == Family::V4 { "ip daddr" } else { "ip6 daddr" }, true)
        }
        Field::OriginalPort => conntrack("proto-dst", true),
        Field::Hash { over, modulus } => Expression::Named(NamedExpression::JHash(JHash {
            hash_mod: *modulus,
            offset: None,
            expr: Box::new(fields(family, over)),
            seed: Some(SEED),
        })),
    }
}

fn key(key: &Key) -> Expression<'static> {
    let text = |text: String| Expression::String(text.into());
    match key {
        Key::EtherType(family) => text(family.nft().into()),
        Key::Interface(name) => text(name.to_string()),
        Key::Address(address) => text(address.to_string()),
        Key::Twice(address) => {
            concatenation(vec![text(address.to_string()), text(address.to_string())])
        }
        Key::Frontend(frontend) => concatenation(self::frontend(frontend)),
        Key::Bucket(frontend, bucket) => {
            let mut parts = self::frontend(frontend);
            parts.push(Expression::Number(*bucket));
            concatenation(parts)
        }
        Key::Source(frontend, net) => {
            let mut parts = self::frontend(frontend);
            let addr = text(net.addr().to_string());
            parts.push(if net.prefix_len() == net.max_prefix_len() {
                addr
            } else {
                Expression::Named(NamedExpression::Prefix(Prefix {
                    addr: Box::new(addr),
                    len: u32::from(net.prefix_len()),
                }))
            });
            concatenation(parts)
        }
    }
}

fn frontend(key: &FrontendKey) -> Vec<Expression<'static>> {
    vec![
        Expression::String(key.address.to_string().into()),
        Expression::String(transport_name(key.protocol).into()),
        Expression::Number(u32::from(key.port)),
    ]
}

fn concatenation(parts: Vec<Expression<'static>>) -> Expression<'static> {
    Expression::Named(NamedExpression::Concat(parts))
}

fn payload(protocol: &'static str, field: &'static str) -> Expression<'static> {
    let field = PayloadField { protocol: protocol.into(), field: field.into() };
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(field)))
}

fn meta(key: MetaKey) -> Expression<'static> {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

fn conntrack(key: &'static str, original: bool) -> Expression<'static> {
    Expression::Named(NamedExpression::CT(CT {
        key: key.into(),
        family: None,
        dir: original.then_some(CTDir::Original),
    }))
}

fn reference(set: SetId) -> Expression<'static> {
    Expression::String(format!("@{}", set.name()).into())
}

fn nf_family(family: Family) -> NfFamily {
    match family {
        Family::V4 => NfFamily::IP,
        Family::V6 => NfFamily::IP6,
    }
}

/// The crate's word for a type, if it has one.
fn set_type(family: Family, part: Type) -> Option<SetType> {
    match (part, family) {
        (Type::Interface, _) => Some(SetType::Ifname),
        (Type::Address, Family::V4) => Some(SetType::Ipv4Addr),
        (Type::Address, Family::V6) => Some(SetType::Ipv6Addr),
        (Type::Transport, _) => Some(SetType::InetProto),
        (Type::Port, _) => Some(SetType::InetService),
        (Type::Mark, _) => Some(SetType::Mark),
        (Type::EtherType, _) => None,
    }
}
