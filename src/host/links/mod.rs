//! The host's interfaces and their addresses, from rtnetlink, as snapshots.
//!
//! A subscription reports that something changed, and a dump reads the current state: lost or
//! reordered notifications cannot leave a wrong snapshot.

mod bonds;

use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::{Handle, new_connection};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use thiserror::Error;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::debug;

use crate::model::{Interface, Interfaces};

/// How long to collect notifications before a dump: one start of a pod causes a dozen.
const SETTLE: Duration = Duration::from_millis(20);
/// Time before a failed dump is repeated.
const RETRY: Duration = Duration::from_secs(1);

/// Why the interfaces cannot be watched.
#[derive(Debug, Error)]
pub enum LinksError {
    #[error("cannot open a rtnetlink socket: {0}")]
    Socket(#[source] io::Error),
    #[error("cannot read rtnetlink notifications: {0}")]
    Subscription(#[source] io::Error),
    #[error("cannot list interfaces and addresses: {0}")]
    Dump(#[source] rtnetlink::Error),
}

/// Publishes a snapshot at once and after every change of it, until all receivers are gone. Opens
/// its sockets in the network namespace of the calling thread.
///
/// # Errors
/// A socket or the first dump fails, or the subscription ends. Later dumps that fail are repeated.
pub async fn run(snapshots: watch::Sender<Interfaces>) -> Result<(), LinksError> {
    // Before the first dump, so that no change in between is missed.
    let subscription = Subscription::open().map_err(LinksError::Socket)?;
    let (connection, handle, _messages) = new_connection().map_err(LinksError::Socket)?;
    let connection = tokio::spawn(connection);
    let result = tokio::select! {
        result = publish(&subscription, &handle, &snapshots) => result,
        () = snapshots.closed() => Ok(()),
    };
    connection.abort();
    result
}

/// A single snapshot, without a subscription.
pub async fn snapshot() -> Result<Interfaces, LinksError> {
    let (connection, handle, _messages) = new_connection().map_err(LinksError::Socket)?;
    let connection = tokio::spawn(connection);
    let interfaces = dump(&handle).await.map_err(LinksError::Dump);
    connection.abort();
    interfaces
}

async fn publish(
    subscription: &Subscription,
    handle: &Handle,
    snapshots: &watch::Sender<Interfaces>,
) -> Result<(), LinksError> {
    let mut next = dump(handle).await.map_err(LinksError::Dump)?;
    // The first one is sent even if it is empty: receivers wait for it.
    snapshots.send_replace(next);
    loop {
        subscription.changed().await.map_err(LinksError::Subscription)?;
        sleep(SETTLE).await;
        subscription.drain().map_err(LinksError::Subscription)?;
        next = loop {
            match dump(handle).await {
                Ok(interfaces) => break interfaces,
                Err(error) => debug!(%error, "cannot list interfaces"),
            }
            sleep(RETRY).await;
        };
        snapshots.send_if_modified(|current| {
            let changed = *current != next;
            if changed {
                *current = std::mem::take(&mut next);
            }
            changed
        });
    }
}

/// A netlink socket in the groups for links and addresses. The contents of its messages are
/// ignored.
struct Subscription(AsyncFd<Socket>);

impl Subscription {
    fn open() -> io::Result<Subscription> {
        let socket = Socket::new(
            Domain::from(libc::AF_NETLINK),
            Type::RAW.nonblocking().cloexec(),
            Some(Protocol::from(libc::NETLINK_ROUTE)),
        )?;
        let groups = libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR;
        // SAFETY: sockaddr_nl fits into sockaddr_storage, is plain data, and the length set is its
        // own.
        let ((), address) = unsafe {
            SockAddr::try_init(|storage, length| {
                let address = storage.cast::<libc::sockaddr_nl>();
                (*address).nl_family = libc::AF_NETLINK as libc::sa_family_t;
                (*address).nl_groups = groups as u32;
                *length = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
                Ok(())
            })
        }?;
        socket.bind(&address)?;
        // SAFETY: the socket owns its descriptor, and keeps it for as long as it lives.
        Ok(Subscription(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?))
    }

    /// Returns when something may have changed.
    async fn changed(&self) -> io::Result<()> {
        loop {
            let _ = self.0.readable().await?;
            if self.drain()? {
                return Ok(());
            }
        }
    }

    /// Discards the queued notifications and returns whether there were any. ENOBUFS means that
    /// some were lost, so there were.
    fn drain(&self) -> io::Result<bool> {
        let mut some = false;
        // Longer messages are truncated.
        let mut buffer = [0; 64];
        loop {
            let received = self.0.try_io(Interest::READABLE, |socket| {
                rustix::net::recv(socket, &mut buffer, rustix::net::RecvFlags::empty())
                    .map_err(io::Error::from)
            });
            match received {
                Ok(_) => some = true,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => some = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(some),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

async fn dump(handle: &Handle) -> Result<Interfaces, rtnetlink::Error> {
    // Addresses after links: an address of an unknown interface is left out until the notification
    // of that interface arrives.
    let messages: Vec<LinkMessage> = handle.link().get().execute().try_collect().await?;
    let mut interfaces: Interfaces = messages
        .iter()
        .filter_map(interface)
        .map(|interface| (interface.index, interface))
        .collect();
    bonds::note_active_ports(&mut interfaces, &messages);
    let mut addresses = pin!(handle.address().get().execute());
    while let Some(message) = addresses.try_next().await? {
        if let (Some(interface), Some(address)) =
            (interfaces.get_mut(&message.header.index), address(&message))
        {
            interface.addresses.insert(address);
        }
    }
    Ok(interfaces)
}

/// None for a message without a name.
fn interface(message: &LinkMessage) -> Option<Interface> {
    let flags = message.header.flags;
    let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
    let mut interface = Interface {
        index: message.header.index,
        up: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        loopback: flags.contains(LinkFlags::Loopback),
        ..Interface::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name = name.as_str().into(),
            // Addresses of NOARP links are never resolved.
            LinkAttribute::Address(bytes) if ethernet && !flags.contains(LinkFlags::Noarp) => {
                interface.mac = bytes.as_slice().try_into().ok()
            }
            LinkAttribute::Controller(index) => {
                interface.master = Some(*index).filter(|index| *index != 0)
            }
            LinkAttribute::CarrierChanges(count) => interface.carrier_changes = *count,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        interface.kind = kind.to_string().into();
                    }
                }
            }
            LinkAttribute::AfSpecUnspec(families) => interface.ipv6 = families.iter().any(has_ipv6),
            _ => {}
        }
    }
    (!interface.name.is_empty()).then_some(interface)
}

/// An interface has no IPv6 configuration if the kernel has no IPv6 (`ipv6.disable=1`) or the MTU
/// is too small.
fn has_ipv6(family: &AfSpecUnspec) -> bool {
    let AfSpecUnspec::Inet6(attributes) = family else { return false };
    attributes.iter().any(|attribute| matches!(attribute, AfSpecInet6::DevConf(settings) if settings.disable_ipv6 == 0))
}

/// None for addresses that are not global, or tentative, dadfailed or deprecated.
fn address(message: &AddressMessage) -> Option<IpNet> {
    let (mut local, mut address, mut flags) =
        (None, None, AddressFlags::from_bits_retain(u32::from(message.header.flags.bits())));
    for attribute in &message.attributes {
        match attribute {
            // Of a point-to-point link IFA_ADDRESS is the other end; IFA_LOCAL, where present, is
            // ours.
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let unusable = AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::Deprecated;
    let ip: IpAddr = local.or(address)?;
    let family = match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    if message.header.scope != AddressScope::Universe
        || flags.intersects(unusable)
        || message.header.family != family
    {
        return None;
    }
    IpNet::new(ip, message.header.prefix_len).ok()
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::InfoKind;

    use super::*;

    fn link(flags: LinkFlags, kind: LinkLayerType, attributes: Vec<LinkAttribute>) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.header.flags = flags;
        message.header.link_layer_type = kind;
        message.attributes = attributes;
        message
    }

    #[test]
    fn links_become_interfaces() {
        let mac = || LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]);
        let name = || LinkAttribute::IfName("eth0".to_owned());
        let veth = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]);
        let running = LinkFlags::Up | LinkFlags::LowerUp;
        let full = interface(&link(
            running,
            LinkLayerType::Ether,
            vec![
                name(),
                mac(),
                veth,
                LinkAttribute::Controller(3),
                LinkAttribute::CarrierChanges(5),
            ],
        ))
        .unwrap();
        assert_eq!(
            (full.index, &*full.name, &*full.kind, full.master),
            (7, "eth0", "veth", Some(3))
        );
        assert!(
            full.up
                && !full.loopback
                && full.mac == Some([2, 0, 0, 0, 0, 1])
                && full.carrier_changes == 5
        );

        let mac_of =
            |flags, kind, attributes| interface(&link(flags, kind, attributes)).unwrap().mac;
        assert_eq!(mac_of(running, LinkLayerType::None, vec![name(), mac()]), None, "no Ethernet");
        assert_eq!(
            mac_of(running | LinkFlags::Noarp, LinkLayerType::Ether, vec![name(), mac()]),
            None,
            "no ARP"
        );
        assert_eq!(
            mac_of(
                running,
                LinkLayerType::Ether,
                vec![name(), LinkAttribute::Address(vec![1; 20])]
            ),
            None,
            "another length"
        );
        for flags in [LinkFlags::Up, LinkFlags::LowerUp] {
            assert!(
                !interface(&link(flags, LinkLayerType::Ether, vec![name()])).unwrap().up,
                "{flags:?}"
            );
        }
        assert_eq!(interface(&link(running, LinkLayerType::Ether, vec![])), None);
    }

    #[test]
    fn only_addresses_that_others_can_use() {
        let of = |ip: &str, scope, flags| {
            let mut message = AddressMessage::default();
            let ip: IpAddr = ip.parse().unwrap();
            message.header.family =
                if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            message.header.prefix_len = 24;
            message.header.scope = scope;
            message.attributes =
                vec![AddressAttribute::Address(ip), AddressAttribute::Flags(flags)];
            address(&message).map(|net| net.to_string())
        };
        let none = AddressFlags::empty();
        let cases: &[(&str, AddressScope, AddressFlags, Option<&str>)] = &[
            ("192.0.2.1", AddressScope::Universe, none, Some("192.0.2.1/24")),
            (
                "192.0.2.1",
                AddressScope::Universe,
                AddressFlags::Permanent | AddressFlags::Secondary,
                Some("192.0.2.1/24"),
            ),
            ("fd00::1", AddressScope::Universe, AddressFlags::Permanent, Some("fd00::1/24")),
            (
                "fd00::1",
                AddressScope::Universe,
                AddressFlags::Permanent | AddressFlags::Tentative,
                None,
            ),
            ("fd00::1", AddressScope::Universe, AddressFlags::Dadfailed, None),
            ("fd00::1", AddressScope::Universe, AddressFlags::Deprecated, None),
            ("fe80::1", AddressScope::Link, AddressFlags::Permanent, None),
            ("127.0.0.1", AddressScope::Host, AddressFlags::Permanent, None),
        ];
        for (ip, scope, flags, expected) in cases {
            assert_eq!(of(ip, *scope, *flags).as_deref(), *expected, "{ip} {scope:?} {flags:?}");
        }
        let mut point_to_point = AddressMessage::default();
        point_to_point.header.family = AddressFamily::Inet;
        point_to_point.header.prefix_len = 32;
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        point_to_point.attributes = vec![
            AddressAttribute::Address(ip("10.0.0.2")),
            AddressAttribute::Local(ip("10.0.0.1")),
        ];
        assert_eq!(
            address(&point_to_point).map(|net| net.to_string()).as_deref(),
            Some("10.0.0.1/32")
        );
    }
}
