//! The table in nft's own language, as `nft list table` prints it.
//!
//! Kernel and `nft list` agree on this text; `nft -f` cannot read the class chains back, because
//! its language has no way to type a hash.

use std::fmt::{self, Write};

use ipnet::IpNet;

use super::element::{Element, Key, Value};
use super::skeleton::{
    Chain, Data, Field, Hook, PRIORITY, SetId, Statement, Type, Verdict, transport_name,
};
use super::table::{SEED, TABLE, Table};
use crate::model::Family;
use crate::model::forwarding::FrontendKey;

/// Several tables, one after the other.
pub fn tables(tables: &[Table], alive: std::time::Duration) -> String {
    let mut out = String::new();
    // Writing into a String cannot fail.
    let _ = tables.iter().try_for_each(|one| table(one, alive, &mut out));
    out
}

/// Writes a whole table.
pub fn table(table: &Table, alive: std::time::Duration, out: &mut impl Write) -> fmt::Result {
    let family = table.family;
    writeln!(out, "table {} {TABLE} {{", family.nft())?;
    for (id, elements) in &table.sets {
        set(family, *id, elements, alive, out)?;
    }
    for (number, chain) in table.chains.iter().enumerate() {
        if number > 0 {
            writeln!(out)?;
        }
        self::chain(family, chain, out)?;
    }
    writeln!(out, "}}")
}

fn set(
    family: Family,
    id: SetId,
    elements: &[Element],
    alive: std::time::Duration,
    out: &mut impl Write,
) -> fmt::Result {
    let kind = if id.data() == Data::None { "set" } else { "map" };
    write!(out, "\t{kind} {} {{\n\t\ttype {}", id.name(), types(family, id.key()))?;
    match id.data() {
        Data::None => writeln!(out)?,
        Data::Verdict => writeln!(out, " : verdict")?,
        Data::Parts(parts) => writeln!(out, " : {}", types(family, parts))?,
    }
    if id.interval() {
        writeln!(out, "\t\tflags interval")?;
    }
    if id.timeout() {
        writeln!(out, "\t\tflags timeout")?;
    }
    for (number, element) in elements.iter().enumerate() {
        out.write_str(if number == 0 { "\t\telements = { " } else { ",\n\t\t\t     " })?;
        key(&element.key, out)?;
        if id.timeout() {
            write!(out, " timeout {}", span(alive))?;
        }
        match &element.value {
            None => {}
            Some(Value::Verdict(to)) => write!(out, " : {}", verdict(to))?,
            Some(Value::Backend(address, port)) => write!(out, " : {address} . {port}")?,
        }
    }
    if !elements.is_empty() {
        writeln!(out, " }}")?;
    }
    writeln!(out, "\t}}\n")
}

fn chain(family: Family, chain: &Chain, out: &mut impl Write) -> fmt::Result {
    writeln!(out, "\tchain {} {{", chain.id)?;
    if let Some(base) = chain.base {
        let kind = if base.nat { "nat" } else { "filter" };
        writeln!(
            out,
            "\t\ttype {kind} hook {} priority {PRIORITY}; policy accept;",
            hook(base.hook)
        )?;
    }
    for rule in &chain.rules {
        let words: Vec<String> =
            rule.iter().map(|statement| self::statement(family, statement)).collect();
        writeln!(out, "\t\t{}", words.join(" "))?;
    }
    writeln!(out, "\t}}")
}

fn statement(family: Family, statement: &Statement) -> String {
    let ip = family.nft();
    match statement {
        Statement::Lookup { key, set, absent } => {
            format!("{} {}@{}", fields(family, key), if *absent { "!= " } else { "" }, set.name())
        }
        Statement::Dispatch { key, map } => format!("{} vmap @{}", fields(family, key), map.name()),
        Statement::Dnat { key, map } => {
            format!("dnat {ip} to {} map @{}", fields(family, key), map.name())
        }
        Statement::EchoRequest => match family {
            Family::V4 => "icmp type echo-request".into(),
            Family::V6 => "icmpv6 type echo-request".into(),
        },
        Statement::NotIcmp6 => "meta l4proto != ipv6-icmp".into(),
        Statement::Invalid => "ct state invalid,untracked".into(),
        Statement::Translated => "ct status dnat".into(),
        Statement::Redirect => "redirect".into(),
        Statement::Masquerade => "masquerade".into(),
        Statement::RejectTcp => "reject with tcp reset".into(),
        Statement::Reject => "reject".into(),
        Statement::Verdict(to) => verdict(to),
    }
}

fn fields(family: Family, fields: &[Field]) -> String {
    let words: Vec<String> = fields.iter().map(|field| self::field(family, field)).collect();
    words.join(" . ")
}

fn field(family: Family, field: &Field) -> String {
    let ip = family.nft();
    match field {
        Field::Source => format!("{ip} saddr"),
        Field::Destination => format!("{ip} daddr"),
        Field::Transport => "meta l4proto".into(),
        Field::SourcePort => "th sport".into(),
        Field::DestinationPort => "th dport".into(),
        Field::EtherType => "meta protocol".into(),
        Field::Uplink => "iifname".into(),
        Field::OriginalDestination => format!("ct original {ip} daddr"),
        Field::OriginalPort => "ct original proto-dst".into(),
        Field::Hash { over, modulus } => {
            format!("jhash {} mod {modulus} seed {SEED:#x}", fields(family, over))
        }
    }
}

fn key(key: &Key, out: &mut impl Write) -> fmt::Result {
    match key {
        Key::EtherType(family) => out.write_str(family.nft()),
        Key::Interface(name) => write!(out, "\"{name}\""),
        Key::Address(address) => write!(out, "{address}"),
        Key::Twice(address) => write!(out, "{address} . {address}"),
        Key::Frontend(frontend) => self::frontend(frontend, out),
        Key::Source(frontend, net) => {
            self::frontend(frontend, out)?;
            out.write_str(" . ")?;
            range(net, out)
        }
        Key::Bucket(frontend, bucket) => {
            self::frontend(frontend, out)?;
            write!(out, " . {bucket:#010x}")
        }
    }
}

fn frontend(key: &FrontendKey, out: &mut impl Write) -> fmt::Result {
    write!(out, "{} . {} . {}", key.address, transport_name(key.protocol), key.port)
}

fn range(net: &IpNet, out: &mut impl Write) -> fmt::Result {
    if net.prefix_len() == net.max_prefix_len() {
        write!(out, "{}", net.addr())
    } else {
        write!(out, "{net}")
    }
}

pub(super) fn verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Drop => "drop".into(),
        Verdict::Return => "return".into(),
        Verdict::Jump(to) => format!("jump {to}"),
        Verdict::Goto(to) => format!("goto {to}"),
    }
}

pub(super) fn hook(hook: Hook) -> &'static str {
    match hook {
        Hook::Prerouting => "prerouting",
        Hook::Output => "output",
        Hook::Postrouting => "postrouting",
    }
}

pub(super) fn type_name(family: Family, part: Type) -> &'static str {
    match (part, family) {
        (Type::EtherType, _) => "ether_type",
        (Type::Interface, _) => "ifname",
        (Type::Address, Family::V4) => "ipv4_addr",
        (Type::Address, Family::V6) => "ipv6_addr",
        (Type::Transport, _) => "inet_proto",
        (Type::Port, _) => "inet_service",
        (Type::Mark, _) => "mark",
    }
}

pub(super) fn types(family: Family, parts: &[Type]) -> String {
    let names: Vec<&str> = parts.iter().map(|part| type_name(family, *part)).collect();
    names.join(" . ")
}

/// A time span as nft writes it: `15m`, `1m30s`, `500ms`.
fn span(span: std::time::Duration) -> String {
    let (seconds, millis) = (span.as_secs(), span.subsec_millis());
    let units = [
        (seconds / 3600, "h"),
        (seconds / 60 % 60, "m"),
        (seconds % 60, "s"),
        (u64::from(millis), "ms"),
    ];
    units
        .iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, unit)| format!("{number}{unit}"))
        .collect()
}
