//! Rules as netlink attributes: each statement of the skeleton becomes expressions over registers.
//! Registers are chosen as the nft program chooses them, so that it can print the rules.

use libc::{
    NFT_PAYLOAD_NETWORK_HEADER as NETWORK, NFT_PAYLOAD_TRANSPORT_HEADER as TRANSPORT, NFT_REG_1,
    NFT_REG_VERDICT, NFT_REG32_00, c_int,
};

use super::attr::*;
use super::netlink::Messages;
use super::value::verdict;
use crate::model::Family;
use crate::nft::skeleton::{Field, SetId, Statement};
use crate::nft::table::SEED;

/// Register of the n-th 4-byte word. The nft program names the first word NFT_REG_1, which shares
/// its place with NFT_REG32_00.
fn register(word: u32) -> u32 {
    if word == 0 { NFT_REG_1 as u32 } else { NFT_REG32_00 as u32 + word }
}

fn expression(m: &mut Messages, name: &str, data: impl FnOnce(&mut Messages)) {
    m.nest(NFTA_LIST_ELEM, |m| {
        m.put_str(NFTA_EXPR_NAME, name);
        m.nest(NFTA_EXPR_DATA, data);
    });
}

/// `op` is NFT_CMP_EQ or NFT_CMP_NEQ.
fn compare(m: &mut Messages, op: c_int, value: &[u8]) {
    expression(m, "cmp", |m| {
        m.put_i32(NFTA_CMP_SREG, NFT_REG_1);
        m.put_i32(NFTA_CMP_OP, op);
        m.nest(NFTA_CMP_DATA, |m| m.put(NFTA_DATA_VALUE, value));
    });
}

fn payload(m: &mut Messages, to: u32, base: c_int, offset: u32, length: u32) {
    expression(m, "payload", |m| {
        m.put_u32(NFTA_PAYLOAD_DREG, to);
        m.put_i32(NFTA_PAYLOAD_BASE, base);
        m.put_u32(NFTA_PAYLOAD_OFFSET, offset);
        m.put_u32(NFTA_PAYLOAD_LEN, length);
    });
}

fn meta(m: &mut Messages, to: u32, key: c_int) {
    expression(m, "meta", |m| {
        m.put_i32(NFTA_META_KEY, key);
        m.put_u32(NFTA_META_DREG, to);
    });
}

fn ct(m: &mut Messages, to: u32, key: c_int, original: bool) {
    expression(m, "ct", |m| {
        m.put_i32(NFTA_CT_KEY, key);
        m.put_u32(NFTA_CT_DREG, to);
        if original {
            m.put(NFTA_CT_DIRECTION, &[IP_CT_DIR_ORIGINAL]);
        }
    });
}

/// Continues only if the conntrack field `key` has one of these bits.
fn ct_bits(m: &mut Messages, key: c_int, bits: u32) {
    ct(m, register(0), key, false);
    expression(m, "bitwise", |m| {
        m.put_i32(NFTA_BITWISE_SREG, NFT_REG_1);
        m.put_i32(NFTA_BITWISE_DREG, NFT_REG_1);
        m.put_u32(NFTA_BITWISE_LEN, 4);
        m.nest(NFTA_BITWISE_MASK, |m| m.put(NFTA_DATA_VALUE, &bits.to_ne_bytes()));
        m.nest(NFTA_BITWISE_XOR, |m| m.put(NFTA_DATA_VALUE, &[0; 4]));
    });
    compare(m, libc::NFT_CMP_NEQ, &[0; 4]);
}

/// Loads the parts of a key into consecutive registers from word `at` on. Returns the next free
/// word.
fn load(m: &mut Messages, family: Family, fields: &[Field], mut at: u32) -> u32 {
    // Length and offsets of the addresses in the network header.
    let (length, source, destination, destination_ip) = match family {
        Family::V4 => (4, 12, 16, libc::NFT_CT_DST_IP),
        Family::V6 => (16, 8, 24, libc::NFT_CT_DST_IP6),
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
            Field::Transport => meta(m, to, libc::NFT_META_L4PROTO),
            Field::SourcePort => payload(m, to, TRANSPORT, 0, 2),
            Field::DestinationPort => payload(m, to, TRANSPORT, 2, 2),
            Field::EtherType => meta(m, to, libc::NFT_META_PROTOCOL),
            Field::Uplink => meta(m, to, libc::NFT_META_IIFNAME),
            Field::OriginalDestination => ct(m, to, destination_ip, true),
            Field::OriginalPort => ct(m, to, libc::NFT_CT_PROTO_DST, true),
            Field::Hash { over, modulus } => {
                let end = load(m, family, over, at);
                expression(m, "hash", |m| {
                    m.put_u32(NFTA_HASH_SREG, register(at));
                    m.put_u32(NFTA_HASH_DREG, to);
                    m.put_u32(NFTA_HASH_LEN, (end - at) * 4);
                    m.put_u32(NFTA_HASH_MODULUS, *modulus);
                    m.put_u32(NFTA_HASH_SEED, SEED);
                    m.put_i32(NFTA_HASH_TYPE, NFT_HASH_JENKINS);
                });
            }
        }
    }
    at
}

/// `to` is the register for the data of a map.
fn lookup(m: &mut Messages, set: SetId, to: Option<c_int>, absent: bool) {
    expression(m, "lookup", |m| {
        m.put_i32(NFTA_LOOKUP_SREG, NFT_REG_1);
        if let Some(to) = to {
            m.put_i32(NFTA_LOOKUP_DREG, to);
        }
        m.put_str(NFTA_LOOKUP_SET, set.name());
        if absent {
            m.put_i32(NFTA_LOOKUP_FLAGS, libc::NFT_LOOKUP_F_INV);
        }
    });
}

pub fn statement(m: &mut Messages, family: Family, statement: &Statement) {
    match statement {
        Statement::Lookup { key, set, absent } => {
            load(m, family, key, 0);
            lookup(m, *set, None, *absent);
        }
        Statement::Dispatch { key, map } => {
            load(m, family, key, 0);
            lookup(m, *map, Some(NFT_REG_VERDICT), false);
        }
        Statement::Dnat { key, map } => {
            load(m, family, key, 0);
            lookup(m, *map, Some(NFT_REG_1), false);
            expression(m, "nat", |m| {
                m.put_i32(NFTA_NAT_TYPE, libc::NFT_NAT_DNAT);
                m.put_u32(NFTA_NAT_FAMILY, u32::from(family.af()));
                m.put_i32(NFTA_NAT_REG_ADDR_MIN, NFT_REG_1);
                let words = if family == Family::V4 { 1 } else { 4 };
                m.put_u32(NFTA_NAT_REG_PROTO_MIN, register(words));
            });
        }
        Statement::EchoRequest => {
            let (protocol, echo) = match family {
                Family::V4 => (libc::IPPROTO_ICMP, ICMP_ECHO),
                Family::V6 => (libc::IPPROTO_ICMPV6, ICMPV6_ECHO_REQUEST),
            };
            transport(m, libc::NFT_CMP_EQ, protocol);
            payload(m, register(0), TRANSPORT, 0, 1);
            compare(m, libc::NFT_CMP_EQ, &[echo]);
        }
        Statement::NotIcmp6 => transport(m, libc::NFT_CMP_NEQ, libc::IPPROTO_ICMPV6),
        Statement::Invalid => {
            ct_bits(m, libc::NFT_CT_STATE, NF_CT_STATE_INVALID_BIT | NF_CT_STATE_UNTRACKED_BIT);
        }
        Statement::Translated => ct_bits(m, libc::NFT_CT_STATUS, IPS_DST_NAT),
        Statement::Redirect => expression(m, "redir", |_| {}),
        Statement::Masquerade => expression(m, "masq", |_| {}),
        Statement::RejectTcp => {
            transport(m, libc::NFT_CMP_EQ, libc::IPPROTO_TCP);
            reject(m, libc::NFT_REJECT_TCP_RST, 0);
        }
        Statement::Reject => {
            let code = match family {
                Family::V4 => ICMP_PORT_UNREACH,
                Family::V6 => ICMPV6_PORT_UNREACH,
            };
            reject(m, libc::NFT_REJECT_ICMP_UNREACH, code);
        }
        Statement::Verdict(to) => expression(m, "immediate", |m| {
            m.put_i32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
            m.nest(NFTA_IMMEDIATE_DATA, |m| verdict(m, to));
        }),
    }
}

/// Continues only if the transport protocol is (NFT_CMP_EQ) or is not (NFT_CMP_NEQ) this one.
fn transport(m: &mut Messages, op: c_int, protocol: c_int) {
    meta(m, register(0), libc::NFT_META_L4PROTO);
    compare(m, op, &[protocol as u8]);
}

fn reject(m: &mut Messages, kind: c_int, code: u8) {
    expression(m, "reject", |m| {
        m.put_i32(NFTA_REJECT_TYPE, kind);
        m.put(NFTA_REJECT_ICMP_CODE, &[code]);
    });
}
