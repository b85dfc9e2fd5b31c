//! A netfilter netlink socket and the writing and reading of its messages (linux/netlink.h,
//! linux/netfilter/nfnetlink.h).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
    sockopt,
};

/// Largest length of a netlink attribute is 65,535 bytes; a list of elements is cut here.
pub const LIST_LIMIT: usize = 60_000;

/// `NLM_F_*`
pub mod flag {
    #![allow(missing_docs)]
    pub const REQUEST: u16 = 0x1;
    pub const ACK: u16 = 0x4;
    pub const DUMP: u16 = 0x300;
    pub const CREATE: u16 = 0x400;
    pub const APPEND: u16 = 0x800;
}

const NESTED: u16 = 0x8000;
const HEADER: usize = 16;
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// For the answer to one message: a code, the header of what was asked, and a few words. On the
/// stack, as a buffer from the heap is mapped and unmapped for each change of an endpoint.
const ANSWER: usize = 4 << 10;
/// For what is listed: the kernel fills up to 32 KiB at once (NLMSG_GOODSIZE, netlink_dump).
const DUMP: usize = 64 << 10;

/// Messages being written, one after the other, in one buffer.
#[derive(Default)]
pub struct Messages {
    buffer: Vec<u8>,
    /// Where the message being written begins.
    start: usize,
    /// Number of messages begun; also the sequence number of the latest.
    pub count: u32,
}

impl Messages {
    /// Begins a message: `kind` is subsystem << 8 | type; `family` and `resource` fill the nfgenmsg
    /// header.
    pub fn begin(&mut self, kind: u16, flags: u16, family: u8, resource: u16) {
        self.start = self.buffer.len();
        self.count += 1;
        self.buffer.extend_from_slice(&[0; 4]);
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(&(flags | flag::REQUEST).to_ne_bytes());
        self.buffer.extend_from_slice(&self.count.to_ne_bytes());
        self.buffer.extend_from_slice(&[0; 4]);
        self.buffer.extend_from_slice(&[family, 0]);
        self.buffer.extend_from_slice(&resource.to_be_bytes());
    }

    /// Ends the message begun last.
    pub fn end(&mut self) {
        let length = (self.buffer.len() - self.start) as u32;
        self.patch(self.start, &length.to_ne_bytes());
    }

    /// An attribute with these bytes.
    pub fn put(&mut self, kind: u16, value: &[u8]) {
        self.buffer.extend_from_slice(&(value.len() as u16 + 4).to_ne_bytes());
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(value);
        self.buffer.resize(self.buffer.len().next_multiple_of(4), 0);
    }

    /// A 32-bit attribute in network order.
    pub fn put_u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_be_bytes());
    }

    /// A string attribute with its terminating zero.
    pub fn put_str(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes);
    }

    /// An attribute that holds what `inside` writes.
    pub fn nest(&mut self, kind: u16, inside: impl FnOnce(&mut Messages)) {
        let start = self.open(kind);
        inside(self);
        self.close(start);
    }

    /// Opens a nested attribute whose end is decided later.
    pub fn open(&mut self, kind: u16) -> usize {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&[0, 0]);
        self.buffer.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        start
    }

    /// Closes what [`Messages::open`] opened.
    pub fn close(&mut self, start: usize) {
        let length = (self.buffer.len() - start) as u16;
        self.patch(start, &length.to_ne_bytes());
    }

    /// Bytes written since the nested attribute was opened.
    pub fn length_since(&self, start: usize) -> usize {
        self.buffer.len() - start
    }

    /// Asks for an answer to the message begun last.
    pub fn acknowledge(&mut self) {
        if let Some(flags) = self.buffer.get_mut(self.start + 6) {
            *flags |= flag::ACK as u8;
        }
    }

    /// Everything written.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer
    }

    fn patch(&mut self, at: usize, value: &[u8]) {
        if let Some(place) = self.buffer.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
    }
}

/// An attribute that was received: its number without flags, and its bytes.
pub type Attribute<'a> = (u16, &'a [u8]);

/// The attributes in these bytes; stops at the first that does not fit.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = Attribute<'_>> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.first_chunk().copied()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..4)?.first_chunk()?) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of this number.
pub fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// A 32-bit number in network order.
pub fn be32(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// A string with or without its terminating zero.
pub fn string(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok().map(|s| s.trim_end_matches('\0'))
}

/// What the kernel says to one message.
#[derive(Clone, Debug)]
pub struct Acks {
    /// Sequence number of the message.
    pub sequence: u32,
    /// 0: done; else an errno.
    pub error: i32,
    /// What the kernel adds in words.
    pub words: Option<String>,
}

/// A netlink socket of the netfilter protocol.
pub struct Socket {
    fd: OwnedFd,
}

impl Socket {
    /// Opens one in the network namespace of the calling thread.
    pub fn open() -> io::Result<Socket> {
        let fd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(netlink::NETFILTER),
        )?;
        for option in [libc::NETLINK_CAP_ACK, libc::NETLINK_EXT_ACK] {
            let on: libc::c_int = 1;
            // Known since Linux 4.12; without them answers may not fit [`ANSWER`].
            // SAFETY: the descriptor is open, the value is one c_int and its length is passed.
            unsafe {
                libc::setsockopt(
                    fd.as_raw_fd(),
                    libc::SOL_NETLINK,
                    option,
                    (&raw const on).cast(),
                    size_of_val(&on) as libc::socklen_t,
                );
            }
        }
        // Beyond the system's limits, as CAP_NET_ADMIN allows: a transaction is one datagram.
        let _ = sockopt::set_socket_recv_buffer_size_force(&fd, 8 << 20);
        Ok(Socket { fd })
    }

    /// Sends everything as one datagram.
    pub fn send(&self, bytes: &[u8]) -> io::Result<()> {
        // What was left unread would be taken for the answer to this.
        self.drain(&mut [0; ANSWER], |_, _, _| false)?;
        let _ = sockopt::set_socket_send_buffer_size_force(
            &self.fd,
            (bytes.len() + 4096).max(256 << 10),
        );
        let sent = send(&self.fd, bytes, SendFlags::empty())?;
        if sent == bytes.len() {
            Ok(())
        } else {
            Err(io::Error::other(format!("the kernel took {sent} of {} bytes", bytes.len())))
        }
    }

    /// The answers to what was sent. The kernel works inside `send`, so they are all here already.
    pub fn answers(&self) -> io::Result<Vec<Acks>> {
        let mut answers = Vec::new();
        self.drain(&mut [0; ANSWER], |kind, sequence, body| {
            if kind == ERROR {
                answers.push(answer(sequence, body));
            }
            kind == DONE
        })?;
        Ok(answers)
    }

    /// Sends one request and hands each message of its answer to `each` (without the nfgenmsg
    /// header); an error is an error.
    pub fn query(&self, request: &Messages, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        self.send(request.bytes())?;
        let mut error = 0;
        self.drain(&mut vec![0; DUMP], |kind, _, body| match kind {
            ERROR => {
                error = body.first_chunk().map_or(0, |code| -i32::from_ne_bytes(*code));
                true
            }
            DONE => true,
            _ => {
                each(body.get(4..).unwrap_or_default());
                false
            }
        })?;
        if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
    }

    /// Receives until nothing is left or `each` (type, sequence, body) says it was the last.
    fn drain(
        &self,
        buffer: &mut [u8],
        mut each: impl FnMut(u16, u32, &[u8]) -> bool,
    ) -> io::Result<()> {
        loop {
            let length = match recv(&self.fd, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((length, _)) => length,
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some((kind, sequence, body, next)) = message(rest) {
                if each(kind, sequence, body) {
                    return Ok(());
                }
                rest = next;
            }
        }
    }
}

/// Type, sequence number and body of the first message, and what follows it.
fn message(bytes: &[u8]) -> Option<(u16, u32, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..6)?.first_chunk()?);
    let sequence = u32::from_ne_bytes(*bytes.get(8..12)?.first_chunk()?);
    let body = bytes.get(HEADER..length)?;
    Some((kind, sequence, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn answer(sequence: u32, body: &[u8]) -> Acks {
    let error = body.first_chunk().map_or(0, |code| -i32::from_ne_bytes(*code));
    // Behind the code: the header of our message (without its payload, NETLINK_CAP_ACK), then
    // attributes; 1 is a message in words.
    let words =
        body.get(4 + HEADER..).and_then(|extra| find(extra, 1)).and_then(string).map(str::to_owned);
    Acks { sequence, error, words }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_attributes_read_back_as_written() {
        let mut messages = Messages::default();
        messages.begin(0x0a00, flag::CREATE, 2, 0);
        messages.put_str(1, "pinnace");
        messages.nest(2, |m| m.put_u32(1, 7));
        messages.end();
        let (kind, sequence, body, rest) = message(messages.bytes()).unwrap();
        assert_eq!((kind, sequence, rest), (0x0a00, 1, &[][..]));
        assert_eq!(find(&body[4..], 1).and_then(string), Some("pinnace"));
        assert_eq!(find(&body[4..], 2).and_then(|nested| find(nested, 1)).and_then(be32), Some(7));
    }

    #[test]
    fn truncated_input_ends_the_walk() {
        for bytes in [&[][..], &[4], &[4, 0, 1], &[9, 0, 1, 0, 0], &[3, 0, 1, 0, 0, 0, 0, 0]] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
        assert!(message(&[0; 16]).is_none());
    }
}
