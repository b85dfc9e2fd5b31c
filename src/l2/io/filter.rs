//! The classic BPF programs that decide in the kernel which frames wake the thread. Sans-IO:
//! addresses in, instructions out.
//!
//! A LAN is full of broadcast ARP and of IPv6 traffic that is not neighbor discovery; none of it
//! may cost a wake-up.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::host::classic_bpf::{
    Instruction, JUMP_EQUAL, JUMP_GREATER, LOAD_BYTE, LOAD_HALF, LOAD_WORD, RETURN,
};
use crate::l2::{ethernet, ndp};

/// Maximum number of addresses that the kernel compares one by one. With more of them every ARP
/// frame, or neighbor solicitation and advertisement, passes and is looked up here in O(log n).
pub const MAX_ADDRESSES: usize = 64;
/// Maximum number of bytes of a frame that are handed over: neighbor discovery with room for
/// options that are not used here.
pub const SNAP_LEN: u32 = 256;

/// SKF_AD_OFF + SKF_AD_PKTTYPE.
const PACKET_TYPE: u32 = (-0x1000i32 + 4) as u32;
/// PACKET_HOST, PACKET_BROADCAST and PACKET_MULTICAST are 0, 1 and 2. Higher types are frames for
/// another host, of a VLAN that this host does not have (handed over without the tag), or sent by
/// this host.
const LAST_LOCAL_TYPE: u32 = 2;

/// SKF_AD_OFF + SKF_AD_IFINDEX: the interface the frame is for. A socket bound to a network card is
/// also given what the kernel has handed on to a VLAN, bond or bridge above it (`orig_dev` in
/// net/core/dev.c), and would answer in the wrong LAN.
const INTERFACE: u32 = (-0x1000i32 + 8) as u32;

const ETHERTYPE: u32 = 12;
const ARP_SENDER: u32 = 28;
const ARP_TARGET: u32 = 38;
const NEXT_HEADER: u32 = 20;
const ICMP_TYPE: u32 = 54;
/// The last word of the target of a solicitation or advertisement. Two VIPs rarely share it; if
/// they do, more frames pass.
const ND_TARGET: u32 = 74;
const ICMPV6: u32 = 58;

/// ARP frames of the interface with one of the addresses as sender or target.
pub fn arp(ifindex: u32, addresses: &BTreeSet<Ipv4Addr>) -> Vec<Instruction> {
    let words: BTreeSet<u32> = addresses.iter().map(|address| address.to_bits()).collect();
    let mut program = Program::for_this_host(ifindex);
    program.require(LOAD_HALF, ETHERTYPE, &[u32::from(ethernet::ARP)]);
    program.finish(&words, &[ARP_SENDER, ARP_TARGET])
}

/// Neighbor solicitations and advertisements of the interface whose target ends in the last word of
/// one of the addresses.
pub fn ndp(ifindex: u32, addresses: &BTreeSet<Ipv6Addr>) -> Vec<Instruction> {
    let words: BTreeSet<u32> = addresses.iter().map(|address| address.to_bits() as u32).collect();
    let mut program = Program::for_this_host(ifindex);
    program.require(LOAD_HALF, ETHERTYPE, &[u32::from(ethernet::IPV6)]);
    program.require(LOAD_BYTE, NEXT_HEADER, &[ICMPV6]);
    program.require(
        LOAD_BYTE,
        ICMP_TYPE,
        &[u32::from(ndp::SOLICITATION), u32::from(ndp::ADVERTISEMENT)],
    );
    program.finish(&words, &[ND_TARGET])
}

struct Program(Vec<Instruction>);

impl Program {
    /// Begins with rejecting frames for other hosts, or for other interfaces of this one.
    fn for_this_host(ifindex: u32) -> Program {
        let mut program = Program(Vec::new());
        program.push(LOAD_BYTE, 0, 0, PACKET_TYPE);
        program.push(JUMP_GREATER, 0, 1, LAST_LOCAL_TYPE);
        program.push(RETURN, 0, 0, 0);
        program.require(LOAD_WORD, INTERFACE, &[ifindex]);
        program
    }

    fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) {
        self.0.push(Instruction { code, jt, jf, k });
    }

    /// Rejects unless the value at `offset` is one of the few `values`.
    fn require(&mut self, load: u16, offset: u32, values: &[u32]) {
        self.push(load, 0, 0, offset);
        for (n, &value) in values.iter().enumerate() {
            // Skips the comparisons that follow and the return behind them.
            self.push(JUMP_EQUAL, (values.len() - n) as u8, 0, value);
        }
        self.push(RETURN, 0, 0, 0);
    }

    /// Accepts when a word at one of the offsets is in the set, or when the set is too large.
    fn finish(mut self, words: &BTreeSet<u32>, offsets: &[u32]) -> Vec<Instruction> {
        if words.len() <= MAX_ADDRESSES {
            let mut left = offsets.len() * (words.len() + 1);
            for &offset in offsets {
                self.push(LOAD_WORD, 0, 0, offset);
                left -= 1;
                for &word in words {
                    // To the accepting return, which is last: at most 2 · 65 instructions away, a
                    // jump reaches 255.
                    self.push(JUMP_EQUAL, left as u8, 0, word);
                    left -= 1;
                }
            }
            self.push(RETURN, 0, 0, 0);
        }
        self.push(RETURN, 0, 0, SNAP_LEN);
        self.0
    }
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
