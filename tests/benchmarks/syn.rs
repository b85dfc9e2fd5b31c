//! New connections per second: distinct TCP SYNs written to the client's interface, counted where
//! they arrive at the pods.
//!
//! veth hands a packet from namespace to namespace on the CPU that sent it, so the time is that of
//! the whole path: generator, node, arrival. At most [`WINDOW`] packets are under way: fewer than
//! the kernel queues per CPU, so none is lost to the generator's own haste.

use std::fs::File;
use std::io::{Read, Seek};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::lab::{CLIENT_MAC, Lab, NODE_MAC, SOURCES, VIP, pod};

const FRAME: usize = 14 + 20 + 20;
const BATCH: usize = 64;
const WINDOW: u64 = 512;
/// Packets that have not arrived after this long are lost.
const LOST: Duration = Duration::from_millis(50);
/// Ports used of each source address; sources use disjoint ports as far as they go round, as
/// masquerade keeps a port that is free.
const PORTS: u32 = 1000;

/// SYNs ready to send.
pub struct Syns {
    frames: Vec<u8>,
}

/// One run.
pub struct Arrived {
    /// Packets that reached the pods.
    pub count: u64,
    /// From the first to the last.
    pub took: Duration,
}

impl Arrived {
    /// Per second.
    pub fn rate(&self) -> f64 {
        self.count as f64 / self.took.as_secs_f64()
    }
}

impl Syns {
    /// `count` different flows, to the VIP, or straight to the pods in turn.
    pub fn new(count: u32, direct: bool) -> Syns {
        let mut frames = Vec::with_capacity(count as usize * FRAME);
        for i in 0..count {
            let (client, n) = (i / PORTS, i % PORTS);
            let source = Ipv4Addr::new(SOURCES[0], SOURCES[1], (client >> 8) as u8, client as u8);
            let source_port = 2000 + n * 60 + client % 60;
            let (target, port) = if direct { (pod(i as u16), 8080) } else { (VIP, 80) };
            frames.extend_from_slice(&frame(source, source_port as u16, target, port));
        }
        Syns { frames }
    }

    /// Sends all of them from the lab's client.
    pub fn run(&self, lab: &Lab) -> Result<Arrived, String> {
        let mut counter = lab.pods.enter(|| Counter::open("eth0"))?;
        let socket = lab.client.enter(packet_socket)?;
        let count = (self.frames.len() / FRAME) as u64;
        let before = counter.read()?;
        let (mut sent, mut lost) = (0, 0);
        let start = Instant::now();
        let mut last = (start, before);
        for batch in self.frames.chunks(BATCH * FRAME) {
            sent += send(&socket, batch)?;
            loop {
                let now = counter.read()?;
                if now != last.1 {
                    last = (Instant::now(), now);
                }
                let under_way = sent.saturating_sub(now - before + lost);
                if under_way == 0 || (under_way < WINDOW && sent < count) {
                    break;
                }
                if last.0.elapsed() > LOST {
                    lost += under_way;
                }
            }
        }
        Ok(Arrived { count: last.1 - before, took: last.0 - start })
    }
}

/// Received packets of one interface, from the namespace in which it was opened.
struct Counter {
    file: File,
    label: String,
    text: String,
}

impl Counter {
    fn open(interface: &str) -> Result<Counter, String> {
        let file =
            File::open("/proc/thread-self/net/dev").map_err(|e| format!("/proc/net/dev: {e}"))?;
        Ok(Counter { file, label: format!("{interface}:"), text: String::new() })
    }

    fn read(&mut self) -> Result<u64, String> {
        self.text.clear();
        self.file
            .rewind()
            .and_then(|()| self.file.read_to_string(&mut self.text))
            .map_err(|e| format!("/proc/net/dev: {e}"))?;
        let line = self.text.lines().find_map(|line| line.trim_start().strip_prefix(&self.label));
        line.and_then(|line| line.split_whitespace().nth(1))
            .and_then(|n| n.parse().ok())
            .ok_or_else(|| format!("no counter of {}", self.label))
    }
}

fn packet_socket() -> Result<OwnedFd, String> {
    let failed = |what| format!("packet socket, {what}: {}", std::io::Error::last_os_error());
    // SAFETY: no pointers; the descriptor is checked before it is owned.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(failed("socket"));
    }
    // SAFETY: just opened, owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: a C string literal; sockaddr_ll is plain integers, for which zero is valid.
    let (index, mut address) = unsafe {
        (libc::if_nametoindex(c"eth0".as_ptr()), std::mem::zeroed::<libc::sockaddr_ll>())
    };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = index as i32;
    // SAFETY: the address is a live sockaddr_ll and its size is given.
    if unsafe { libc::bind(fd, (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32) }
        != 0
    {
        return Err(failed("bind"));
    }
    Ok(socket)
}

/// Sends the frames with one system call; how many went.
fn send(socket: &OwnedFd, frames: &[u8]) -> Result<u64, String> {
    let mut parts: Vec<libc::iovec> = frames
        .chunks(FRAME)
        .map(|frame| libc::iovec {
            iov_base: frame.as_ptr().cast_mut().cast(),
            iov_len: frame.len(),
        })
        .collect();
    let mut messages: Vec<libc::mmsghdr> = parts
        .iter_mut()
        .map(|part| {
            // SAFETY: mmsghdr is integers and pointers, for which zero is valid.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
            message
        })
        .collect();
    // SAFETY: messages, parts and frames live until the call returns; the kernel only reads what
    // they point to.
    match unsafe {
        libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), messages.len() as u32, 0)
    } {
        sent if sent >= 0 => Ok(sent as u64),
        _ => Err(format!("sendmmsg: {}", std::io::Error::last_os_error())),
    }
}

fn frame(source: Ipv4Addr, source_port: u16, target: Ipv4Addr, port: u16) -> [u8; FRAME] {
    let mut f = [0; FRAME];
    f[0..6].copy_from_slice(&NODE_MAC);
    f[6..12].copy_from_slice(&CLIENT_MAC);
    f[12..14].copy_from_slice(&[0x08, 0x00]);
    f[14..26].copy_from_slice(&[0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    f[26..30].copy_from_slice(&source.octets());
    f[30..34].copy_from_slice(&target.octets());
    let header = checksum(&f[14..34], 0);
    f[24..26].copy_from_slice(&header);
    f[34..36].copy_from_slice(&source_port.to_be_bytes());
    f[36..38].copy_from_slice(&port.to_be_bytes());
    f[46..50].copy_from_slice(&[0x50, 0x02, 0xff, 0xff]);
    // The pseudo-header (RFC 9293 §3.1): both addresses, protocol 6, length 20.
    let segment = checksum(&f[26..54], 6 + 20);
    f[50..52].copy_from_slice(&segment);
    f
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8], initial: u32) -> [u8; 2] {
    let mut sum = bytes
        .chunks(2)
        .fold(initial, |sum, pair| sum + u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}
