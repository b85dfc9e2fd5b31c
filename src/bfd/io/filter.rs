//! The classic BPF programs that decide in the kernel which datagrams reach a BFD socket. Sans-IO.
//!
//! Other datagrams take no space in the queue, where they would displace control packets, and do
//! not wake the thread under SCHED_FIFO. The kernel counts them among the drops of the socket.
//! Datagrams that pass are parsed in full.

use crate::host::classic_bpf::{
    AND, Instruction, JUMP_AT_LEAST, JUMP_EQUAL, JUMP_GREATER, LOAD_BYTE, LOAD_HALF, RETURN,
};

/// SKF_NET_OFF: offsets relative to the IP header; without it, to the UDP header.
const NETWORK: u32 = -0x10_0000i32 as u32;
const TTL: u32 = 8;
const HOP_LIMIT: u32 = 7;
const UDP_LENGTH: u32 = 4;
const UDP_HEADER: u32 = 8;
/// RFC 5880 §4.1: the mandatory section has 24 bytes, and `Length` is one byte.
const MIN_LENGTH: u32 = UDP_HEADER + 24;
const MAX_LENGTH: u32 = UDP_HEADER + 255;
/// Version 1 in the first three bits.
const VERSION: (u32, u32) = (0xe0, 0x20);

/// Accepts datagrams that may be BFD control packets, by version and length, and on the single-hop
/// port by TTL 255 (RFC 5881 §5).
pub(super) fn program(v6: bool, multihop: bool) -> Vec<Instruction> {
    let reject_unless = |code, jt, jf, k| {
        [Instruction { code, jt, jf, k }, Instruction { code: RETURN, jt: 0, jf: 0, k: 0 }]
    };
    let load = |code, k| Instruction { code, jt: 0, jf: 0, k };
    let mut program = Vec::new();
    if !multihop {
        program.push(load(LOAD_BYTE, NETWORK.wrapping_add(if v6 { HOP_LIMIT } else { TTL })));
        program.extend(reject_unless(JUMP_EQUAL, 1, 0, 255));
    }
    program.push(load(LOAD_HALF, UDP_LENGTH));
    program.extend(reject_unless(JUMP_AT_LEAST, 1, 0, MIN_LENGTH));
    program.extend(reject_unless(JUMP_GREATER, 0, 1, MAX_LENGTH));
    program.push(load(LOAD_BYTE, UDP_HEADER));
    program.push(load(AND, VERSION.0));
    program.extend(reject_unless(JUMP_EQUAL, 1, 0, VERSION.1));
    program.push(load(RETURN, u32::MAX));
    program
}
