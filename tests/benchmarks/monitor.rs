//! Hears from the kernel when a transaction of nf_tables has been committed (netlink group
//! NFNLGRP_NFTABLES, as `nft monitor` does).

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::lab::Netns;
use crate::netlab::Namespace;

const NFNLGRP_NFTABLES: i32 = 7;
/// NFNL_SUBSYS_NFTABLES
const SUBSYSTEM: u16 = 0x0a;
/// NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_…
const NEW_ELEMENT: u16 = 0x0a0c;
const DELETE_ELEMENT: u16 = 0x0a0e;
const NEW_GENERATION: u16 = 0x0a0f;

/// How long a transaction may take to come.
const PATIENCE: Duration = Duration::from_secs(2);

/// A subscription to one namespace.
pub struct Monitor {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

/// A committed transaction.
pub struct Commit {
    /// When we heard of it: a wake-up later than it took effect.
    pub at: Instant,
    /// Elements added and deleted in it.
    pub elements: usize,
    /// What the kernel told about it: elements, rules, chains.
    pub messages: usize,
    /// One of these contained the address asked for.
    pub touched: bool,
}

impl Monitor {
    /// Subscribes.
    pub fn new(netns: &Netns) -> Result<Monitor, String> {
        Monitor::of(netns.enter(|| subscribe(PATIENCE)))
    }

    /// Subscribes to a namespace of the tests' lab; `patience` instead of two seconds.
    pub fn within(namespace: &Namespace, patience: Duration) -> Result<Monitor, String> {
        Monitor::of(namespace.enter(|| subscribe(patience)))
    }

    fn of(socket: std::io::Result<OwnedFd>) -> Result<Monitor, String> {
        let socket = socket.map_err(|e| format!("netlink: {e}"))?;
        Ok(Monitor { socket, buffer: vec![0; 1 << 20] })
    }

    /// Forgets what has been heard so far.
    pub fn drain(&mut self) {
        while self.receive(libc::MSG_DONTWAIT) > 0 {}
    }

    /// The next transaction that changes something with this address in it, as octets or in the
    /// name of a chain; None after two seconds.
    pub fn wait(&mut self, address: Ipv4Addr) -> Option<Commit> {
        let mut commit = Commit { at: Instant::now(), elements: 0, messages: 0, touched: false };
        // As kube-proxy names the chains of endpoints: …__10.176.0.3/8080.
        let name = format!("_{address}/");
        loop {
            let length = usize::try_from(self.receive(0)).ok().filter(|n| *n > 0)?;
            let at = Instant::now();
            let mut rest = self.buffer.get(..length)?;
            // struct nlmsghdr: length, type, flags, sequence, port; messages are aligned to four
            // bytes.
            while let (Some(length), Some(kind)) = (u32_at(rest, 0), u16_at(rest, 4)) {
                let message = rest.get(16..length as usize)?;
                match kind {
                    NEW_GENERATION if commit.touched => return Some(Commit { at, ..commit }),
                    NEW_GENERATION => (commit.elements, commit.messages) = (0, 0),
                    _ if kind >> 8 == SUBSYSTEM => {
                        commit.messages += 1;
                        commit.elements +=
                            usize::from(matches!(kind, NEW_ELEMENT | DELETE_ELEMENT));
                        commit.touched |= message.windows(4).any(|w| w == address.octets());
                        commit.touched |= message.windows(name.len()).any(|w| w == name.as_bytes());
                    }
                    _ => {}
                }
                rest = rest.get((length as usize).next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }

    fn receive(&mut self, flags: i32) -> isize {
        // SAFETY: the buffer is ours and its length is given.
        unsafe {
            libc::recv(
                self.socket.as_raw_fd(),
                self.buffer.as_mut_ptr().cast(),
                self.buffer.len(),
                flags,
            )
        }
    }
}

fn subscribe(patience: Duration) -> std::io::Result<OwnedFd> {
    // SAFETY: no pointers; the descriptor is checked before it is owned.
    let fd = unsafe {
        libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_NETFILTER)
    };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: just opened, owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let patience = libc::timeval { tv_sec: patience.as_secs() as _, tv_usec: 0 };
    set(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &patience)?;
    set(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &(64 << 20))?;
    // SAFETY: sockaddr_nl is plain integers, for which zero is valid: any port, no groups yet.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as u16;
    // SAFETY: the address is a live sockaddr_nl and its size is given.
    if unsafe { libc::bind(fd, (&raw const address).cast(), size_of::<libc::sockaddr_nl>() as u32) }
        != 0
    {
        return Err(std::io::Error::last_os_error());
    }
    set(fd, libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, &NFNLGRP_NFTABLES)?;
    Ok(socket)
}

fn set<T>(fd: i32, level: i32, name: i32, value: &T) -> std::io::Result<()> {
    // SAFETY: the value is live and its size is given.
    let done = unsafe {
        libc::setsockopt(fd, level, name, (&raw const *value).cast(), size_of::<T>() as u32)
    };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}
