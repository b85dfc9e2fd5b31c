//! The classic BPF programs that decide in the kernel which datagrams reach a socket of BFD. PURE:
//! no sockets here.
//!
//! What cannot be ours costs neither room in the queue, where it would displace what is, nor a wake
//! of the thread that runs ahead of others. The kernel counts it among the drops of the socket.
//! Whatever passes is judged in full again.

use crate::host::classic_bpf::{
    AND, Instruction, JUMP_AT_LEAST, JUMP_EQUAL, JUMP_GREATER, LOAD_BYTE, LOAD_HALF, RETURN,
};

/// SKF_NET_OFF: offsets from here on count from the IP header; without it, from the UDP header.
const NETWORK: u32 = -0x10_0000i32 as u32;
const TTL: u32 = 8;
const HOP_LIMIT: u32 = 7;
const UDP_LENGTH: u32 = 4;
const UDP_HEADER: u32 = 8;
/// RFC 5880 §4.1: the mandatory section has 24 bytes, and one byte says how long it all is.
const SHORTEST: u32 = UDP_HEADER + 24;
const LONGEST: u32 = UDP_HEADER + 255;
/// Version 1 in the first three bits.
const VERSION: (u32, u32) = (0xe0, 0x20);

/// Datagrams that may be BFD control packets: version and length, and over one hop the TTL of 255
/// (RFC 5881 §5).
pub(super) fn program(v6: bool, multihop: bool) -> Vec<Instruction> {
    let refuse = |code, jt, jf, k| {
        [Instruction { code, jt, jf, k }, Instruction { code: RETURN, jt: 0, jf: 0, k: 0 }]
    };
    let load = |code, k| Instruction { code, jt: 0, jf: 0, k };
    let mut program = Vec::new();
    if !multihop {
        program.push(load(LOAD_BYTE, NETWORK.wrapping_add(if v6 { HOP_LIMIT } else { TTL })));
        program.extend(refuse(JUMP_EQUAL, 1, 0, 255));
    }
    program.push(load(LOAD_HALF, UDP_LENGTH));
    program.extend(refuse(JUMP_AT_LEAST, 1, 0, SHORTEST));
    program.extend(refuse(JUMP_GREATER, 0, 1, LONGEST));
    program.push(load(LOAD_BYTE, UDP_HEADER));
    program.push(load(AND, VERSION.0));
    program.extend(refuse(JUMP_EQUAL, 1, 0, VERSION.1));
    program.push(load(RETURN, u32::MAX));
    program
}
