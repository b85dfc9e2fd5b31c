//! Classic BPF (linux/filter.h): the instructions that the filters of packet sockets and of BFD
//! use, and how a socket gets them.

use std::io;

use socket2::{SockFilter, Socket};

/// One instruction, as `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub code: u16,
    /// Instructions to skip if a comparison holds.
    pub jt: u8,
    /// Instructions to skip if it does not.
    pub jf: u8,
    pub k: u32,
}

/// BPF_LD | BPF_W | BPF_ABS.
pub const LOAD_WORD: u16 = 0x20;
/// BPF_LD | BPF_H | BPF_ABS.
pub const LOAD_HALF: u16 = 0x28;
/// BPF_LD | BPF_B | BPF_ABS.
pub const LOAD_BYTE: u16 = 0x30;
/// BPF_JMP | BPF_JEQ | BPF_K.
pub const JUMP_EQUAL: u16 = 0x15;
/// BPF_JMP | BPF_JGT | BPF_K.
pub const JUMP_GREATER: u16 = 0x25;
/// BPF_JMP | BPF_JGE | BPF_K.
pub const JUMP_AT_LEAST: u16 = 0x35;
/// BPF_ALU | BPF_AND | BPF_K.
pub const AND: u16 = 0x54;
/// BPF_RET | BPF_K: accepts this number of bytes; 0 rejects.
pub const RETURN: u16 = 0x06;

/// Attaches a filter: only packets that the program accepts enter the socket's queue.
///
/// # Errors
/// Those of `setsockopt` with SO_ATTACH_FILTER.
pub fn attach(socket: &Socket, program: &[Instruction]) -> io::Result<()> {
    let program: Vec<SockFilter> =
        program.iter().map(|i| SockFilter::new(i.code, i.jt, i.jf, i.k)).collect();
    socket.attach_filter(&program)
}
