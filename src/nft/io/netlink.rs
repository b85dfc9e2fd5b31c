//! A netfilter netlink socket and the writing and reading of its messages (linux/netlink.h,
//! linux/netfilter/nfnetlink.h).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use libc::c_int;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
    sockopt,
};

use super::attr::NLMSGERR_ATTR_MSG;

/// Length in bytes at which a list of elements is continued in another message. A netlink attribute
/// holds at most 65,535 bytes.
pub const LIST_LIMIT: usize = 60_000;

/// Flag of an attribute that holds attributes.
pub const NLA_F_NESTED: u16 = libc::NLA_F_NESTED as u16;
const NLA_TYPE_MASK: u16 = libc::NLA_TYPE_MASK as u16;

/// Size of struct nlmsghdr.
const HEADER: usize = 16;
/// Size of struct nfgenmsg.
const GENERIC: usize = 4;
const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;
const NLMSG_DONE: u16 = libc::NLMSG_DONE as u16;

/// Buffer for acknowledgements: a code, the header of the request, and a few words each. It is on
/// the stack, because a heap buffer would be mapped and unmapped for each change of an endpoint.
const ANSWER: usize = 4 << 10;
/// Buffer for listings: the kernel fills up to 32 KiB at once (NLMSG_GOODSIZE, netlink_dump).
const DUMP: usize = 64 << 10;

/// Type of a netfilter message: NFNL_SUBSYS_* and the message's number in it.
pub const fn message_type(subsystem: c_int, message: c_int) -> u16 {
    (subsystem << 8 | message) as u16
}

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
    /// Begins a message of this type ([`message_type`]) with these NLM_F_* flags; `family` and
    /// `resource` fill struct nfgenmsg.
    pub fn begin(&mut self, kind: u16, flags: c_int, family: u8, resource: u16) {
        self.start = self.buffer.len();
        self.count += 1;
        self.buffer.extend_from_slice(&[0; 4]);
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(&((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
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

    /// A signed 32-bit attribute in network order; also for the constants of `libc`.
    pub fn put_i32(&mut self, kind: u16, value: i32) {
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
        self.buffer.extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
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
            *flags |= libc::NLM_F_ACK as u8;
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
        let kind = u16::from_ne_bytes(*bytes.get(2..4)?.first_chunk()?) & NLA_TYPE_MASK;
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

/// The kernel's answer to one message.
#[derive(Clone, Debug)]
pub struct Ack {
    /// Sequence number of the message.
    pub sequence: u32,
    /// 0 or an errno.
    pub error: i32,
    /// The kernel's explanation (NLMSGERR_ATTR_MSG).
    pub words: Option<String>,
}

/// A netlink socket of the netfilter protocol.
pub struct Socket {
    fd: OwnedFd,
}

impl Socket {
    /// Opens a socket in the network namespace of the calling thread.
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
        // An unread message would be taken for the answer to this one.
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

    /// Reads the answers to what was sent. The kernel processes a datagram inside `send`, so all
    /// answers are already queued.
    pub fn answers(&self) -> io::Result<Vec<Ack>> {
        let mut answers = Vec::new();
        self.drain(&mut [0; ANSWER], |kind, sequence, body| {
            if kind == NLMSG_ERROR {
                answers.push(answer(sequence, body));
            }
            kind == NLMSG_DONE
        })?;
        Ok(answers)
    }

    /// Sends one request and hands the attributes of each object in the answer to `each`. An error
    /// in the answer is returned.
    pub fn query(&self, request: &Messages, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        self.query_families(request, |_, attributes| each(attributes))
    }

    /// As [`Socket::query`]; `each` also gets the family of the object (NFPROTO_*).
    fn query_families(
        &self,
        request: &Messages,
        mut each: impl FnMut(u8, &[u8]),
    ) -> io::Result<()> {
        self.send(request.bytes())?;
        let mut outcome = Ok(());
        self.drain(&mut vec![0; DUMP], |kind, _, body| match object(kind, body) {
            Ok(Some((family, attributes))) => {
                each(family, attributes);
                false
            }
            Ok(None) => true,
            Err(error) => {
                outcome = Err(error);
                true
            }
        })?;
        outcome
    }

    /// Receives until the queue is empty or `each` (type, sequence, body) returns true.
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

/// Lists the objects of all families that a subsystem has, such as all chains (NFNL_SUBSYS_NFTABLES,
/// NFT_MSG_GETCHAIN), and hands the family (NFPROTO_*) and the attributes of each to `each`.
pub fn dump(subsystem: c_int, message: c_int, each: impl FnMut(u8, &[u8])) -> io::Result<()> {
    let mut request = Messages::default();
    request.begin(message_type(subsystem, message), libc::NLM_F_DUMP, 0, 0);
    request.end();
    Socket::open()?.query_families(&request, each)
}

/// Family and attributes of an object in an answer; None: the answer is complete.
fn object(kind: u16, body: &[u8]) -> io::Result<Option<(u8, &[u8])>> {
    match kind {
        NLMSG_DONE => Ok(None),
        NLMSG_ERROR => match error_code(body) {
            0 => Ok(None),
            code => Err(io::Error::from_raw_os_error(code)),
        },
        _ => Ok(Some((
            body.first().copied().unwrap_or_default(),
            body.get(GENERIC..).unwrap_or_default(),
        ))),
    }
}

/// The errno of an NLMSG_ERROR; 0: an acknowledgement.
fn error_code(body: &[u8]) -> i32 {
    body.first_chunk().map_or(0, |code| -i32::from_ne_bytes(*code))
}

/// Type, sequence number and body of the first message, and what follows it.
fn message(bytes: &[u8]) -> Option<(u16, u32, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..6)?.first_chunk()?);
    let sequence = u32::from_ne_bytes(*bytes.get(8..12)?.first_chunk()?);
    let body = bytes.get(HEADER..length)?;
    Some((kind, sequence, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn answer(sequence: u32, body: &[u8]) -> Ack {
    // The code is followed by the header of our message (without its payload, NETLINK_CAP_ACK) and
    // by attributes.
    let words = body
        .get(size_of::<i32>() + HEADER..)
        .and_then(|extra| find(extra, NLMSGERR_ATTR_MSG))
        .and_then(string)
        .map(str::to_owned);
    Ack { sequence, error: error_code(body), words }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_attributes_read_back_as_written() {
        let mut messages = Messages::default();
        messages.begin(0x0a00, libc::NLM_F_CREATE, 2, 0);
        messages.put_str(1, "pinnace");
        messages.nest(2, |m| m.put_u32(1, 7));
        messages.end();
        let (kind, sequence, body, rest) = message(messages.bytes()).unwrap();
        assert_eq!((kind, sequence, rest), (0x0a00, 1, &[][..]));
        assert_eq!(find(&body[4..], 1).and_then(string), Some("pinnace"));
        assert_eq!(find(&body[4..], 2).and_then(|nested| find(nested, 1)).and_then(be32), Some(7));
    }

    #[test]
    fn a_listing_ends_with_done_or_with_an_error() {
        let object = |kind, body: &[u8]| {
            let found = object(kind, body).map(|found| found.map(|(family, _)| family));
            found.map_err(|error| error.raw_os_error())
        };
        assert_eq!(object(0x0a03, &[2, 0, 0, 0]), Ok(Some(2)), "more may follow");
        assert_eq!(object(NLMSG_DONE, &0i32.to_ne_bytes()), Ok(None));
        assert_eq!(object(NLMSG_ERROR, &0i32.to_ne_bytes()), Ok(None), "an acknowledgement");
        assert_eq!(object(NLMSG_ERROR, &(-1i32).to_ne_bytes()), Err(Some(libc::EPERM)));
    }

    proptest::proptest! {
        #[test]
        fn no_datagram_panics_or_hangs(bytes in proptest::collection::vec(0u8.., 0..200)) {
            let mut rest = bytes.as_slice();
            while let Some((kind, sequence, body, next)) = message(rest) {
                let _ = (object(kind, body).is_ok(), answer(sequence, body));
                rest = next;
            }
        }
    }

    #[test]
    fn truncated_input_ends_the_walk() {
        for bytes in [&[][..], &[4], &[4, 0, 1], &[9, 0, 1, 0, 0], &[3, 0, 1, 0, 0, 0, 0, 0]] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
        assert!(message(&[0; 16]).is_none());
    }
}
