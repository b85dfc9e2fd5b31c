//! Packet sockets of one interface, and the multicast groups that make the network deliver neighbor
//! solicitations.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::{io, mem};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::filter;
use crate::host::classic_bpf::{Instruction, attach};
use crate::l2::{ethernet, ndp};
use crate::model::Family;

/// Maximum number of groups joined by one IPv6 socket. The kernel charges them to
/// `net.core.optmem_max` (20 KiB at least) of the socket.
const GROUPS_PER_SOCKET: usize = 200;

/// One interface that has VIPs.
#[derive(Debug)]
pub(crate) struct Port {
    ifindex: u32,
    arp: Option<PacketSocket>,
    ndp: Option<PacketSocket>,
    groups: Groups,
}

impl Port {
    pub fn new(ifindex: u32) -> Port {
        Port { ifindex, arp: None, ndp: None, groups: Groups::default() }
    }

    /// Listens for frames about these VIPs. Returns how many multicast groups could not be joined.
    pub fn listen(&mut self, vips: &BTreeSet<IpAddr>) -> io::Result<u64> {
        let v4: BTreeSet<Ipv4Addr> = vips
            .iter()
            .filter_map(|vip| if let IpAddr::V4(vip) = vip { Some(*vip) } else { None })
            .collect();
        let v6: BTreeSet<Ipv6Addr> = vips
            .iter()
            .filter_map(|vip| if let IpAddr::V6(vip) = vip { Some(*vip) } else { None })
            .collect();
        update_socket(
            &mut self.arp,
            self.ifindex,
            Family::V4,
            (!v4.is_empty()).then(|| filter::arp(self.ifindex, &v4)),
        )?;
        update_socket(
            &mut self.ndp,
            self.ifindex,
            Family::V6,
            (!v6.is_empty()).then(|| filter::ndp(self.ifindex, &v6)),
        )?;
        Ok(match &self.ndp {
            Some(socket) => self.groups.set(
                socket,
                self.ifindex,
                v6.into_iter().map(ndp::solicited_node).collect(),
            ),
            None => {
                self.groups = Groups::default();
                0
            }
        })
    }

    /// The open sockets.
    pub fn sockets(&self) -> impl Iterator<Item = &PacketSocket> {
        self.arp.iter().chain(&self.ndp)
    }

    /// Hands a frame to the interface. Does not block.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        let ipv6 =
            ethernet::Repr::parse(frame).is_ok_and(|header| header.ethertype == ethernet::IPV6);
        match if ipv6 { &self.ndp } else { &self.arp } {
            Some(socket) => socket.fd.get_ref().send(frame).map(drop),
            None => Ok(()),
        }
    }
}

fn update_socket(
    slot: &mut Option<PacketSocket>,
    ifindex: u32,
    family: Family,
    program: Option<Vec<Instruction>>,
) -> io::Result<()> {
    match (program, slot.as_mut()) {
        (None, _) => *slot = None,
        (Some(program), Some(socket)) => socket.refilter(program)?,
        (Some(program), None) => *slot = Some(PacketSocket::open(ifindex, family, program)?),
    }
    Ok(())
}

/// A packet socket for one EtherType on one interface. Because it is bound to its EtherType, the
/// kernel neither runs the filter for other traffic nor clones outgoing packets for it.
#[derive(Debug)]
pub(crate) struct PacketSocket {
    fd: AsyncFd<Socket>,
    program: Vec<Instruction>,
}

impl PacketSocket {
    /// Attaches the filter before the first frame can arrive: a socket that is not bound receives
    /// nothing.
    fn open(ifindex: u32, family: Family, program: Vec<Instruction>) -> io::Result<PacketSocket> {
        let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking().cloexec(), None)?;
        attach(&socket, &program)?;
        let ethertype = match family {
            Family::V4 => ethernet::ARP,
            Family::V6 => ethernet::IPV6,
        };
        socket.bind(&link_address(ifindex, ethertype)?)?;
        // SAFETY: the socket owns its descriptor, and keeps it for as long as it lives.
        let fd = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(PacketSocket { fd, program })
    }

    /// The kernel replaces a filter atomically.
    fn refilter(&mut self, program: Vec<Instruction>) -> io::Result<()> {
        if program != self.program {
            attach(self.fd.get_ref(), &program)?;
            self.program = program;
        }
        Ok(())
    }

    pub fn fd(&self) -> &AsyncFd<Socket> {
        &self.fd
    }

    /// The next frame in the queue; `WouldBlock` when it is empty.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.fd.try_io(Interest::READABLE, |socket| {
            rustix::net::recv(socket, &mut *buffer, rustix::net::RecvFlags::empty())
                .map(|(n, _)| n)
                .map_err(Into::into)
        })
    }

    fn membership(&self, ifindex: u32, group: Ipv6Addr, option: libc::c_int) -> io::Result<()> {
        let mac = ndp::multicast_mac(group);
        let mut request = libc::packet_mreq {
            mr_ifindex: ifindex as libc::c_int,
            mr_type: libc::PACKET_MR_MULTICAST as libc::c_ushort,
            mr_alen: mac.len() as libc::c_ushort,
            mr_address: [0; 8],
        };
        request.mr_address[..mac.len()].copy_from_slice(&mac);
        // SAFETY: the pointer and length describe `request`, which outlives the call.
        let result = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                option,
                (&raw const request).cast(),
                mem::size_of_val(&request) as libc::socklen_t,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

fn link_address(ifindex: u32, ethertype: u16) -> io::Result<SockAddr> {
    // SAFETY: sockaddr_ll fits into sockaddr_storage, is plain data, and the length set is its own.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let address = storage.cast::<libc::sockaddr_ll>();
            (*address).sll_family = libc::AF_PACKET as libc::sa_family_t;
            (*address).sll_protocol = ethertype.to_be();
            (*address).sll_ifindex = ifindex as libc::c_int;
            *length = mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    }?;
    Ok(address)
}

/// Solicited-node groups, joined twice: on the packet socket for the filter of the network card,
/// and on an IPv6 socket, which alone makes the kernel report them by MLD. Without a report a
/// snooping switch does not deliver them. Neither needs an address.
#[derive(Debug, Default)]
struct Groups {
    /// Joined on the packet socket.
    card: BTreeSet<Ipv6Addr>,
    /// IPv6 sockets and the groups that each has joined.
    members: Vec<(Socket, BTreeSet<Ipv6Addr>)>,
}

impl Groups {
    /// Joins and leaves groups. Failed joins are retried by the next call. Returns their number.
    fn set(&mut self, packet: &PacketSocket, ifindex: u32, wanted: BTreeSet<Ipv6Addr>) -> u64 {
        let mut failed = 0;
        for group in self.card.difference(&wanted) {
            // Fails only when the interface is gone, and the group with it.
            let _ = packet.membership(ifindex, *group, libc::PACKET_DROP_MEMBERSHIP);
        }
        self.card.retain(|group| wanted.contains(group));
        for (socket, groups) in &mut self.members {
            for group in groups.difference(&wanted) {
                let _ = socket.leave_multicast_v6(group, ifindex);
            }
            groups.retain(|group| wanted.contains(group));
        }
        self.members.retain(|(_, groups)| !groups.is_empty());
        for group in wanted {
            if !self.card.contains(&group) {
                match packet.membership(ifindex, group, libc::PACKET_ADD_MEMBERSHIP) {
                    Ok(()) => drop(self.card.insert(group)),
                    Err(_) => failed += 1,
                }
            }
            // Fails where IPv6 is disabled on the interface: without MLD only the filter of the
            // card remains.
            if !self.members.iter().any(|(_, groups)| groups.contains(&group))
                && self.join(ifindex, group).is_err()
            {
                failed += 1;
            }
        }
        failed
    }

    fn join(&mut self, ifindex: u32, group: Ipv6Addr) -> io::Result<()> {
        let free = self.members.iter_mut().find(|(_, groups)| groups.len() < GROUPS_PER_SOCKET);
        if let Some((socket, groups)) = free {
            socket.join_multicast_v6(&group, ifindex)?;
            groups.insert(group);
            return Ok(());
        }
        let socket = Socket::new(Domain::IPV6, Type::DGRAM.cloexec(), None)?;
        socket.join_multicast_v6(&group, ifindex)?;
        self.members.push((socket, BTreeSet::from([group])));
        Ok(())
    }
}
