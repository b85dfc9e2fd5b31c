//! Rules in netlink attributes: a statement of the skeleton becomes the kernel's expressions over
//! registers.

use super::encode::{number, verdict};
use super::netlink::Messages;
use crate::model::Family;
use crate::nft::skeleton::{Field, Statement};
use crate::nft::{SEED, SetId};

/// The first register of 16 bytes; the 4-byte registers that share its place begin at [`WORD`].
const FIRST: u32 = 1;
const WORD: u32 = 8;

/// Register number of the n-th word, as nft writes it: the first of all by its old name.
fn register(word: u32) -> u32 {
    if word == 0 { FIRST } else { WORD + word }
}

fn expression(m: &mut Messages, name: &str, data: impl FnOnce(&mut Messages)) {
    m.nest(1, |m| {
        m.put_str(1, name);
        m.nest(2, data);
    });
}

fn compare(m: &mut Messages, equal: bool, value: &[u8]) {
    expression(m, "cmp", |m| {
        m.put_u32(1, FIRST);
        m.put_u32(2, u32::from(!equal));
        m.nest(3, |m| m.put(1, value));
    });
}

fn payload(m: &mut Messages, to: u32, base: u32, offset: u32, length: u32) {
    expression(m, "payload", |m| {
        m.put_u32(1, to);
        m.put_u32(2, base);
        m.put_u32(3, offset);
        m.put_u32(4, length);
    });
}

fn meta(m: &mut Messages, to: u32, key: u32) {
    expression(m, "meta", |m| {
        m.put_u32(2, key);
        m.put_u32(1, to);
    });
}

fn ct(m: &mut Messages, to: u32, key: u32, original: bool) {
    expression(m, "ct", |m| {
        m.put_u32(2, key);
        m.put_u32(1, to);
        if original {
            m.put(3, &[0]);
        }
    });
}

/// Continues only if one of these bits is set in what connection tracking knows under `key`.
fn ct_bits(m: &mut Messages, key: u32, bits: u32) {
    ct(m, FIRST, key, false);
    expression(m, "bitwise", |m| {
        m.put_u32(1, FIRST);
        m.put_u32(2, FIRST);
        m.put_u32(3, 4);
        m.nest(4, |m| m.put(1, &bits.to_ne_bytes()));
        m.nest(5, |m| m.put(1, &[0; 4]));
    });
    compare(m, false, &[0; 4]);
}

const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
const META_PROTOCOL: u32 = 1;
const META_IIFNAME: u32 = 6;
const META_L4PROTO: u32 = 16;

/// Loads the parts of a key into consecutive registers from word `at`; returns the word behind
/// them.
fn load(m: &mut Messages, family: Family, fields: &[Field], mut at: u32) -> u32 {
    let (length, source, destination) = match family {
        Family::V4 => (4, 12, 16),
        Family::V6 => (16, 8, 24),
    };
    for field in fields {
        let to = register(at);
        at += match field {
            Field::Source | Field::Destination | Field::OriginalDestination => length / 4,
            Field::Uplink => 4,
            _ => 1,
        };
        match field {
            Field::Source => payload(m, to, NETWORK, source, length),
            Field::Destination => payload(m, to, NETWORK, destination, length),
            Field::Transport => meta(m, to, META_L4PROTO),
            Field::SourcePort => payload(m, to, TRANSPORT, 0, 2),
            Field::DestinationPort => payload(m, to, TRANSPORT, 2, 2),
            Field::EtherType => meta(m, to, META_PROTOCOL),
            Field::Uplink => meta(m, to, META_IIFNAME),
            Field::OriginalDestination => {
                ct(m, to, if family == Family::V4 { 20 } else { 22 }, true)
            }
            Field::OriginalPort => ct(m, to, 12, true),
            Field::Hash { over, modulus } => {
                let end = load(m, family, over, at);
                expression(m, "hash", |m| {
                    m.put_u32(1, register(at));
                    m.put_u32(2, to);
                    m.put_u32(3, (end - at) * 4);
                    m.put_u32(4, *modulus);
                    m.put_u32(5, SEED);
                    m.put_u32(7, 0); // Jenkins
                });
            }
        }
    }
    at
}

fn lookup(m: &mut Messages, set: SetId, to: Option<u32>, absent: bool) {
    expression(m, "lookup", |m| {
        m.put_u32(2, FIRST);
        if let Some(to) = to {
            m.put_u32(3, to);
        }
        m.put_str(1, set.name());
        if absent {
            m.put_u32(5, 1);
        }
    });
}

pub(crate) fn statement(m: &mut Messages, family: Family, statement: &Statement) {
    match statement {
        Statement::Lookup { key, set, absent } => {
            load(m, family, key, 0);
            lookup(m, *set, None, *absent);
        }
        Statement::Dispatch { key, map } => {
            load(m, family, key, 0);
            lookup(m, *map, Some(0), false);
        }
        Statement::Dnat { key, map } => {
            load(m, family, key, 0);
            lookup(m, *map, Some(FIRST), false);
            expression(m, "nat", |m| {
                m.put_u32(1, 1);
                m.put_u32(2, u32::from(number(family)));
                m.put_u32(3, FIRST);
                m.put_u32(5, register(if family == Family::V4 { 1 } else { 4 }));
            });
        }
        Statement::EchoRequest => {
            let (protocol, echo) = if family == Family::V4 { (1, 8) } else { (58, 128) };
            meta(m, FIRST, META_L4PROTO);
            compare(m, true, &[protocol]);
            payload(m, FIRST, TRANSPORT, 0, 1);
            compare(m, true, &[echo]);
        }
        Statement::NotIcmp6 => {
            meta(m, FIRST, META_L4PROTO);
            compare(m, false, &[58]);
        }
        Statement::Stray => ct_bits(m, 0, 0x41), // NFT_CT_STATE: invalid, untracked
        Statement::Translated => ct_bits(m, 2, 0x20), // NFT_CT_STATUS: IPS_DST_NAT
        Statement::Redirect => expression(m, "redir", |_| {}),
        Statement::Masquerade => expression(m, "masq", |_| {}),
        Statement::RejectTcp => {
            meta(m, FIRST, META_L4PROTO);
            compare(m, true, &[6]);
            reject(m, 1, 0);
        }
        Statement::Reject => reject(m, 0, if family == Family::V4 { 3 } else { 4 }),
        Statement::Verdict(to) => expression(m, "immediate", |m| {
            m.put_u32(1, 0);
            m.nest(2, |m| verdict(m, to));
        }),
    }
}

fn reject(m: &mut Messages, kind: u32, code: u8) {
    expression(m, "reject", |m| {
        m.put_u32(1, kind);
        m.put(2, &[code]);
    });
}
