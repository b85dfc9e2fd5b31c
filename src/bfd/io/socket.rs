//! The UDP sockets: per family one that listens on each port, and one that sends.
//!
//! RFC 5881 §4 demands a source port from 49152 on that stays the same for a session. It recommends
//! that ports differ between sessions, for implementations that demultiplex by them; none has to,
//! and one socket for all sessions costs less.

use std::io::{self, ErrorKind};
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use libc::{c_int, c_void, socklen_t};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::error::StartError;
use super::{filter, port_owner};
use crate::bfd::Outgoing;
use crate::bfd::packet::{MULTIHOP_PORT, PORT};
use crate::host::classic_bpf;

/// Bytes; room for the packets of 50 sessions in a second or two without a read.
const RECEIVE_BUFFER: usize = 512 * 1024;
/// Class selector 6, network control (RFC 2474).
const CLASS_SELECTOR_6: c_int = 0xc0;
/// TC_PRIO_INTERACTIVE: the first band of the default queueing discipline, and the highest that
/// needs no capability.
const QUEUE_PRIORITY: c_int = 6;
/// Maximum number of source ports tried.
const ATTEMPTS: u16 = 200;

#[derive(Debug)]
pub(super) struct Sockets {
    listeners: Vec<Listener>,
    v4: Option<Socket>,
    v6: Option<Socket>,
}

#[derive(Debug)]
pub(super) struct Listener {
    socket: Socket,
    pub multihop: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Datagram {
    pub length: usize,
    pub source: IpAddr,
    pub interface: u32,
    pub ttl: Option<u8>,
}

/// Room for control messages, aligned as they have to be.
#[repr(align(8))]
struct Control([u8; 128]);

impl Sockets {
    /// Opens the sockets of all address families that the kernel supports.
    pub fn open(multihop: bool) -> Result<Sockets, StartError> {
        let mut sockets = Sockets { listeners: Vec::new(), v4: None, v6: None };
        for v6 in [false, true] {
            let sender = match sender(v6) {
                Err(StartError::Socket { source, .. })
                    if source.raw_os_error() == Some(libc::EAFNOSUPPORT) =>
                {
                    continue;
                }
                other => other?,
            };
            *if v6 { &mut sockets.v6 } else { &mut sockets.v4 } = Some(sender);
            for (port, multihop) in
                [(PORT, false), (MULTIHOP_PORT, true)].into_iter().take(1 + usize::from(multihop))
            {
                sockets
                    .listeners
                    .push(Listener { socket: listener(v6, port, multihop)?, multihop });
            }
        }
        Ok(sockets)
    }

    pub fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    /// Hands a packet to the kernel. Does not block.
    pub fn send(&self, packet: &Outgoing) -> io::Result<()> {
        let port = if packet.settings.multihop { MULTIHOP_PORT } else { PORT };
        let interface = packet.peer.interface;
        match packet.peer.address {
            IpAddr::V4(address) => {
                let socket = self.v4.as_ref().ok_or(ErrorKind::Unsupported)?;
                let local = match packet.settings.local {
                    Some(IpAddr::V4(local)) => local,
                    _ => Ipv4Addr::UNSPECIFIED,
                };
                let info = libc::in_pktinfo {
                    ipi_ifindex: interface.unwrap_or(0) as c_int,
                    ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(local.octets()) },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                send(
                    socket,
                    packet.payload(),
                    &SocketAddr::from((address, port)).into(),
                    libc::IPPROTO_IP,
                    libc::IP_PKTINFO,
                    &info,
                )
            }
            IpAddr::V6(address) => {
                let socket = self.v6.as_ref().ok_or(ErrorKind::Unsupported)?;
                let local = match packet.settings.local {
                    Some(IpAddr::V6(local)) => local,
                    _ => Ipv6Addr::UNSPECIFIED,
                };
                let info = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr { s6_addr: local.octets() },
                    ipi6_ifindex: interface.unwrap_or(0) as _,
                };
                let scope =
                    if address.is_unicast_link_local() { interface.unwrap_or(0) } else { 0 };
                let target = std::net::SocketAddrV6::new(address, port, 0, scope);
                send(
                    socket,
                    packet.payload(),
                    &SockAddr::from(target),
                    libc::IPPROTO_IPV6,
                    libc::IPV6_PKTINFO,
                    &info,
                )
            }
        }
    }
}

impl Listener {
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The next datagram in the queue; `WouldBlock` when it is empty.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Datagram> {
        let mut control = Control([0; 128]);
        let mut io = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: `recvmsg` writes to what the header points to, within the lengths given, all of
        // which outlives the call. The control messages are walked with the C library's
        // macros over a header that the kernel has filled in, and data are copied out unaligned
        // after their length was compared.
        unsafe {
            let mut address: libc::sockaddr_storage = mem::zeroed();
            let mut header: libc::msghdr = mem::zeroed();
            header.msg_name = (&raw mut address).cast();
            header.msg_namelen = mem::size_of_val(&address) as socklen_t;
            header.msg_iov = &raw mut io;
            header.msg_iovlen = 1;
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = control.0.len() as _;
            let length =
                libc::recvmsg(self.socket.as_raw_fd(), &raw mut header, libc::MSG_DONTWAIT);
            let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
            let source = SockAddr::new(mem::transmute_copy(&address), header.msg_namelen);
            let source = source.as_socket().ok_or(ErrorKind::InvalidData)?.ip();
            let mut datagram = Datagram { length, source, interface: 0, ttl: None };
            let mut message = libc::CMSG_FIRSTHDR(&raw const header);
            while let Some(found) = message.as_ref() {
                match (found.cmsg_level, found.cmsg_type) {
                    (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                        if let Some(info) = data::<libc::in_pktinfo>(found) {
                            datagram.interface = info.ipi_ifindex as u32;
                        }
                    }
                    (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                        if let Some(info) = data::<libc::in6_pktinfo>(found) {
                            datagram.interface = info.ipi6_ifindex;
                        }
                    }
                    (libc::IPPROTO_IP, libc::IP_TTL)
                    | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                        datagram.ttl = data::<c_int>(found).and_then(|ttl| u8::try_from(ttl).ok());
                    }
                    _ => {}
                }
                message = libc::CMSG_NXTHDR(&raw const header, message);
            }
            Ok(datagram)
        }
    }
}

/// The data of a control message, if it is long enough.
///
/// # Safety
/// The message lies in a buffer that the kernel has filled in, and `T` is made of integers.
#[allow(clippy::unnecessary_cast)] // The length has 32 bits with musl.
unsafe fn data<T: Copy>(message: &libc::cmsghdr) -> Option<T> {
    // SAFETY: CMSG_LEN only computes; the data follow the header, for as long as `cmsg_len` says.
    unsafe {
        let long_enough =
            message.cmsg_len as usize >= libc::CMSG_LEN(mem::size_of::<T>() as u32) as usize;
        long_enough.then(|| libc::CMSG_DATA(message).cast::<T>().read_unaligned())
    }
}

fn send<T: Copy>(
    socket: &Socket,
    payload: &[u8],
    target: &SockAddr,
    level: c_int,
    kind: c_int,
    info: &T,
) -> io::Result<()> {
    let mut control = Control([0; 128]);
    let mut io =
        libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
    // SAFETY: `sendmsg` reads what the header points to, all of which outlives the call; the one
    // control message, of at most 20 bytes of data, fits into the buffer, where CMSG_FIRSTHDR
    // finds its place.
    let sent = unsafe {
        let mut header: libc::msghdr = mem::zeroed();
        header.msg_name = target.as_ptr().cast_mut().cast();
        header.msg_namelen = target.len();
        header.msg_iov = &raw mut io;
        header.msg_iovlen = 1;
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = libc::CMSG_SPACE(mem::size_of::<T>() as u32) as _;
        if let Some(message) = libc::CMSG_FIRSTHDR(&raw const header).as_mut() {
            message.cmsg_level = level;
            message.cmsg_type = kind;
            message.cmsg_len = libc::CMSG_LEN(mem::size_of::<T>() as u32) as _;
            libc::CMSG_DATA(message).cast::<T>().write_unaligned(*info);
        }
        libc::sendmsg(
            socket.as_raw_fd(),
            &raw const header,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn open(v6: bool) -> io::Result<Socket> {
    let socket = Socket::new(
        if v6 { Domain::IPV6 } else { Domain::IPV4 },
        Type::DGRAM.cloexec().nonblocking(),
        Some(Protocol::UDP),
    )?;
    if v6 {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

fn any(v6: bool, port: u16) -> SockAddr {
    let address =
        if v6 { IpAddr::from(Ipv6Addr::UNSPECIFIED) } else { Ipv4Addr::UNSPECIFIED.into() };
    SocketAddr::new(address, port).into()
}

/// Without SO_REUSEADDR: two programs that share the port would each get some of the packets.
fn listener(v6: bool, port: u16, multihop: bool) -> Result<Socket, StartError> {
    let failed = |what| move |source| StartError::Socket { what, source };
    let socket = open(v6).map_err(failed("open"))?;
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER); // The kernel grants what net.core.rmem_max allows.
    let options = if v6 {
        [
            (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
            (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT),
        ]
    } else {
        [(libc::IPPROTO_IP, libc::IP_PKTINFO), (libc::IPPROTO_IP, libc::IP_RECVTTL)]
    };
    for (level, name) in options {
        option(&socket, level, name, 1).map_err(failed("receive options"))?;
    }
    // Without socket filters in the kernel more datagrams are read and discarded here.
    let _ = classic_bpf::attach(&socket, &filter::program(v6, multihop));
    socket.bind(&any(v6, port)).map_err(|source| match source.kind() {
        ErrorKind::AddrInUse => StartError::PortTaken { port, owner: port_owner::of(port) },
        _ => StartError::Socket { what: "bind", source },
    })?;
    Ok(socket)
}

/// Sends with TTL 255 (RFC 5881 §5) and with priority in queues.
fn sender(v6: bool) -> Result<Socket, StartError> {
    let failed = |what| move |source| StartError::Socket { what, source };
    let socket = open(v6).map_err(failed("open"))?;
    let (level, hops, class) = if v6 {
        (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, libc::IPV6_TCLASS)
    } else {
        (libc::IPPROTO_IP, libc::IP_TTL, libc::IP_TOS)
    };
    option(&socket, level, hops, 255).map_err(failed("TTL"))?;
    option(&socket, level, class, CLASS_SELECTOR_6).map_err(failed("traffic class"))?;
    option(&socket, libc::SOL_SOCKET, libc::SO_PRIORITY, QUEUE_PRIORITY)
        .map_err(failed("priority"))?;
    let _ = socket.set_recv_buffer_size(1); // Nothing is received on this port.
    let first = (std::process::id() as u16) & 0x3fff;
    for attempt in 0..ATTEMPTS {
        match socket.bind(&any(v6, 49152 + ((first + attempt * 83) & 0x3fff))) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            other => return other.map(|()| socket).map_err(failed("source port")),
        }
    }
    Err(StartError::Socket { what: "source port", source: ErrorKind::AddrInUse.into() })
}

fn option(socket: &Socket, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    let pointer: *const c_int = &raw const value;
    // SAFETY: pointer and length describe `value`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            pointer.cast::<c_void>(),
            mem::size_of_val(&value) as socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
