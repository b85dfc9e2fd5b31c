//! SCTP associations by raw sockets, because few kernels have SCTP: the four packets by which one
//! is set up (RFC 9260 §5.1), and nothing more. What a client and a pod notice of a load balancer
//! is in these: addresses, ports, verification tags and the checksum.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use pinnace::model::Family;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{Failure, Reply, responder};

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
/// Parameter type of the State Cookie (RFC 9260 §3.3.3.1).
const STATE_COOKIE: u16 = 7;
const CLIENT_TAG: u32 = 0x1234_5678;
const SERVER_TAG: u32 = 0x9abc_def0;

/// Ports, verification tag, type and value of the first chunk.
#[derive(Debug, PartialEq, Eq)]
struct Packet {
    ports: (u16, u16),
    tag: u32,
    kind: u8,
    value: Vec<u8>,
}

impl Packet {
    fn emit(&self) -> Vec<u8> {
        let mut bytes = [self.ports.0.to_be_bytes(), self.ports.1.to_be_bytes()].concat();
        bytes.extend(self.tag.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend([self.kind, 0]);
        bytes.extend((self.value.len() as u16 + 4).to_be_bytes());
        bytes.extend(&self.value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let sum = crc32c(&bytes).to_le_bytes();
        bytes[8..12].copy_from_slice(&sum);
        bytes
    }

    /// None when it is truncated or its checksum is wrong: whoever changes a port has to put that
    /// right.
    fn parse(bytes: &[u8]) -> Option<Packet> {
        let mut zeroed = bytes.to_vec();
        zeroed.get_mut(8..12)?.fill(0);
        if bytes.get(8..12)? != crc32c(&zeroed).to_le_bytes() {
            return None;
        }
        let short = |at: usize| Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
        let value = bytes.get(16..12 + usize::from(short(14)?))?.to_vec();
        let tag = u32::from_be_bytes(*bytes.get(4..)?.first_chunk()?);
        Some(Packet { ports: (short(0)?, short(2)?), tag, kind: *bytes.get(12)?, value })
    }

    /// The value of an INIT or INIT ACK: tag, window, streams, first sequence number, and a cookie.
    fn initial(tag: u32, cookie: &[u8]) -> Vec<u8> {
        let mut value = tag.to_be_bytes().to_vec();
        value.extend([0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
        if !cookie.is_empty() {
            value.extend(STATE_COOKIE.to_be_bytes());
            value.extend((cookie.len() as u16 + 4).to_be_bytes());
            value.extend(cookie);
        }
        value
    }

    fn cookie(&self) -> Option<&[u8]> {
        let length = u16::from_be_bytes(*self.value.get(18..)?.first_chunk()?);
        self.value.get(20..16 + usize::from(length))
    }
}

/// The checksum of SCTP (RFC 9260, appendix A), bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

fn open(address: IpAddr, timeout: Duration) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(SocketAddr::new(address, 0)),
        Type::RAW,
        Some(Protocol::from(libc::IPPROTO_SCTP)),
    )?;
    socket.set_read_timeout(Some(timeout))?;
    socket.bind(&SockAddr::from(SocketAddr::new(address, 0)))?;
    Ok(socket)
}

/// The next packet with a right checksum, and where it comes from. Only in IPv4 the kernel puts the
/// IP header before it.
fn receive(socket: &Socket) -> io::Result<Option<(Packet, IpAddr)>> {
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let (length, from) = socket.recv_from(&mut buffer)?;
    // SAFETY: the kernel has written this many bytes.
    let bytes: Vec<u8> =
        buffer.iter().take(length).map(|byte| unsafe { byte.assume_init() }).collect();
    let from = from
        .as_socket()
        .map(|from| from.ip())
        .ok_or_else(|| io::Error::other("not an IP address"))?;
    let header = if Family::of(from) == Family::V4 { usize::from(bytes[0] & 15) * 4 } else { 0 };
    Ok(bytes.get(header..).and_then(Packet::parse).map(|packet| (packet, from)))
}

fn send(socket: &Socket, packet: &Packet, to: IpAddr) -> io::Result<()> {
    socket.send_to(&packet.emit(), &SockAddr::from(SocketAddr::new(to, 0))).map(drop)
}

/// Sets up an association from `source`: what the pod put into its cookie. Answers that do not come
/// from `target` are not heard, as a client's kernel would not hear them.
pub fn associate(
    source: SocketAddr,
    target: SocketAddr,
    patience: Duration,
) -> Result<Reply, Failure> {
    let socket = open(source.ip(), patience / 4)?;
    let ports = (source.port(), target.port());
    let exchange = |packet: Packet, answer: u8| -> Result<Packet, Failure> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            send(&socket, &packet, target.ip())?;
            loop {
                match receive(&socket) {
                    Ok(Some((heard, from)))
                        if (from, heard.kind, heard.tag) == (target.ip(), answer, CLIENT_TAG) =>
                    {
                        if heard.ports == (ports.1, ports.0) {
                            return Ok(heard);
                        }
                    }
                    Ok(_) => {}
                    Err(error)
                        if Failure::from(io::Error::from(error.kind())) == Failure::TimedOut =>
                    {
                        break;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Err(Failure::TimedOut)
    };
    let first = exchange(
        Packet { ports, tag: 0, kind: INIT, value: Packet::initial(CLIENT_TAG, b"") },
        INIT_ACK,
    )?;
    let cookie = first.cookie().unwrap_or_default().to_vec();
    let reply = Reply::parse(&String::from_utf8_lossy(&cookie))?;
    exchange(Packet { ports, tag: SERVER_TAG, kind: COOKIE_ECHO, value: cookie }, COOKIE_ACK)?;
    Ok(reply)
}

/// Answers on a port of this address until `stop` says so. The cookie says who answered and whom it
/// saw.
pub fn serve(address: SocketAddr, pod: &str, stop: impl Fn() -> bool) -> io::Result<()> {
    let socket = open(address.ip(), Duration::from_millis(100))?;
    while !stop() {
        let Ok(Some((packet, from))) = receive(&socket) else { continue };
        if packet.ports.1 != address.port() {
            continue;
        }
        let ports = (packet.ports.1, packet.ports.0);
        let answer = match packet.kind {
            INIT => {
                let cookie = responder::line(pod, address, SocketAddr::new(from, packet.ports.0));
                Packet {
                    ports,
                    tag: CLIENT_TAG,
                    kind: INIT_ACK,
                    value: Packet::initial(SERVER_TAG, cookie.as_bytes()),
                }
            }
            COOKIE_ECHO if packet.tag == SERVER_TAG => {
                Packet { ports, tag: CLIENT_TAG, kind: COOKIE_ACK, value: Vec::new() }
            }
            _ => continue,
        };
        // The client may be gone by now.
        let _ = send(&socket, &answer, from);
    }
    Ok(())
}
