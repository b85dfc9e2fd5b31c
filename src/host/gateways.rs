//! The default gateways and their link-layer addresses. A node that takes a VIP over announces it
//! to them by unicast and replies through them at once, so a standby keeps their neighbor entries
//! fresh. BFD packets keep the entries of the other nodes fresh.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage};
use rtnetlink::sys::AsyncSocket;
use rtnetlink::{Handle, new_connection};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, warn};

use super::neighbours::{RETRY, lladdr_of};
use crate::model::Interfaces;
use crate::model::gateways::Gateways;
use crate::model::mac::Mac;

/// Interface index and address of a gateway.
type Key = (u32, IpAddr);

/// Publishes the link-layer addresses of the default gateways on Ethernet interfaces, and makes the
/// kernel resolve those that are missing or stale, until all receivers are gone.
///
/// Polls while `wanted`: at once when that begins and when addresses change, then with increasing
/// intervals up to 30 s. A poll dumps the main routing tables and the neighbor table, some
/// microseconds per entry, and causes at most one solicitation per gateway: unicast if the gateway
/// is known, none if its entry is reachable.
pub async fn run(
    mut interfaces: watch::Receiver<Interfaces>,
    mut wanted: watch::Receiver<bool>,
    found: watch::Sender<Gateways>,
) {
    let (mut connection, handle, _messages) = match new_connection() {
        Ok(opened) => opened,
        Err(error) => {
            return warn!(%error, "cannot open a rtnetlink socket for gateways: takeovers are announced to them by broadcast only");
        }
    };
    // The kernel then dumps the main table only; an older one dumps all, and they are filtered
    // here.
    if let Err(error) = connection.socket_mut().socket_mut().set_netlink_get_strict_chk(true) {
        debug!(%error, "strict checking unsupported: all routing tables are dumped");
    }
    let connection = tokio::spawn(connection);
    loop {
        let on = *wanted.borrow_and_update();
        let subnets = subnets(&interfaces.borrow_and_update());
        tokio::select! {
            () = poll_gateways(&handle, &subnets, &found), if on => {}
            changed = wanted.changed() => if changed.is_err() { break },
            changed = subnets_changed(&mut interfaces, &subnets) => if changed.is_err() { break },
            () = found.closed() => break,
        }
    }
    connection.abort();
}

/// Interfaces that can have a gateway, with what makes an early poll useful when it changes.
fn subnets(interfaces: &Interfaces) -> BTreeMap<u32, (u32, BTreeSet<IpNet>)> {
    let usable = interfaces.values().filter(|interface| {
        interface.up && interface.mac.is_some() && !interface.addresses.is_empty()
    });
    usable
        .map(|interface| {
            (interface.index, (interface.carrier_changes, interface.addresses.clone()))
        })
        .collect()
}

/// Returns when they have changed. Interfaces of pods, which come and go, have no influence.
async fn subnets_changed(
    interfaces: &mut watch::Receiver<Interfaces>,
    before: &BTreeMap<u32, (u32, BTreeSet<IpNet>)>,
) -> Result<(), watch::error::RecvError> {
    loop {
        interfaces.changed().await?;
        if subnets(&interfaces.borrow_and_update()) != *before {
            return Ok(());
        }
    }
}

async fn poll_gateways(
    handle: &Handle,
    subnets: &BTreeMap<u32, (u32, BTreeSet<IpNet>)>,
    found: &watch::Sender<Gateways>,
) {
    let mut attempts = 0u32;
    loop {
        match dump(handle, subnets).await {
            Ok(gateways) => {
                found.send_if_modified(|known| {
                    let changed = *known != gateways;
                    if changed {
                        debug!(?gateways, "default gateway link-layer addresses");
                        *known = gateways;
                    }
                    changed
                });
            }
            Err(error) => debug!(%error, "cannot list gateways"),
        }
        sleep(RETRY.delay(attempts)).await;
        attempts = attempts.saturating_add(1);
    }
}

async fn dump(
    handle: &Handle,
    subnets: &BTreeMap<u32, (u32, BTreeSet<IpNet>)>,
) -> Result<Gateways, rtnetlink::Error> {
    let mut keys: BTreeSet<Key> = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        let mut routes = Box::pin(handle.route().get(message).execute());
        while let Some(route) = routes.try_next().await? {
            keys.extend(
                gateways(&route).into_iter().filter(|(index, _)| subnets.contains_key(index)),
            );
        }
    }
    if keys.is_empty() {
        return Ok(Gateways::new());
    }
    let mut lladdrs: Gateways = Gateways::new();
    let mut fixed = BTreeSet::new();
    let mut entries = Box::pin(handle.neighbours().get().execute());
    while let Some(entry) = entries.try_next().await? {
        let Some(((index, address), mac)) = gateway_lladdr(&entry, &keys) else { continue };
        lladdrs.entry(index).or_default().insert(address, mac);
        if is_fixed(&entry) {
            fixed.insert((index, address));
        }
    }
    for (index, address) in keys.difference(&fixed) {
        refresh_entry(handle, *index, *address).await;
    }
    Ok(lladdrs)
}

/// Makes the kernel do what it does for a packet to that neighbor: confirm a stale entry, create a
/// missing one.
async fn refresh_entry(handle: &Handle, index: u32, address: IpAddr) {
    let request = handle
        .neighbours()
        .add(index, address)
        .replace()
        .state(NeighbourState::None)
        .flags(NeighbourFlags::Use);
    if let Err(error) = request.execute().await {
        debug!(index, %address, %error, "cannot refresh the neighbor entry of the gateway");
    }
}

/// Whether a person or a network plugin maintains the entry. Refreshing it would make it an
/// ordinary one (`__neigh_update`).
fn is_fixed(entry: &NeighbourMessage) -> bool {
    matches!(entry.header.state, NeighbourState::Permanent | NeighbourState::Noarp)
        || entry.header.flags.contains(NeighbourFlags::ExtLearned)
}

fn gateway_lladdr(entry: &NeighbourMessage, keys: &BTreeSet<Key>) -> Option<(Key, Mac)> {
    let (address, mac) = lladdr_of(entry)?;
    let key = (entry.header.ifindex, address);
    (keys.contains(&key) && crate::model::mac::is_unicast(mac)).then_some((key, mac))
}

/// The next hops of a default route in the main table; none of any other.
fn gateways(route: &RouteMessage) -> Vec<Key> {
    let table = route
        .attributes
        .iter()
        .find_map(|a| if let RouteAttribute::Table(table) = a { Some(*table) } else { None });
    if route.header.destination_prefix_length != 0
        || table.unwrap_or(route.header.table.into()) != u32::from(RouteHeader::RT_TABLE_MAIN)
    {
        return Vec::new();
    }
    let interface = route
        .attributes
        .iter()
        .find_map(|a| if let RouteAttribute::Oif(index) = a { Some(*index) } else { None });
    let mut found: Vec<Key> = gateway(&route.attributes)
        .and_then(|address| Some((interface?, address)))
        .into_iter()
        .collect();
    for attribute in &route.attributes {
        if let RouteAttribute::MultiPath(hops) = attribute {
            found.extend(
                hops.iter()
                    .filter_map(|hop| Some((hop.interface_index, gateway(&hop.attributes)?))),
            );
        }
    }
    found
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Gateway(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute};
    use netlink_packet_route::route::{RouteAttribute as A, RouteNextHop};

    use super::*;

    fn to(address: &str) -> A {
        match address.parse().unwrap() {
            IpAddr::V4(address) => A::Gateway(RouteAddress::Inet(address)),
            IpAddr::V6(address) => A::Gateway(RouteAddress::Inet6(address)),
        }
    }

    fn route(length: u8, table: u32, attributes: Vec<A>) -> Vec<(u32, String)> {
        let mut message = RouteMessage::default();
        message.header.destination_prefix_length = length;
        message.header.table = table.try_into().unwrap_or(252);
        message.attributes = [attributes, vec![A::Table(table)]].concat();
        gateways(&message)
            .into_iter()
            .map(|(index, address)| (index, address.to_string()))
            .collect()
    }

    #[test]
    fn gateways_are_the_next_hops_of_default_routes_in_the_main_table() {
        let hop = |index, address| {
            let mut hop = RouteNextHop::default();
            (hop.interface_index, hop.attributes) = (index, vec![to(address)]);
            hop
        };
        assert_eq!(route(0, 254, vec![to("10.88.0.1"), A::Oif(2)]), [(2, "10.88.0.1".to_owned())]);
        assert_eq!(route(0, 254, vec![A::Oif(3), to("fe80::1")]), [(3, "fe80::1".to_owned())]);
        assert_eq!(
            route(0, 254, vec![A::MultiPath(vec![hop(2, "10.88.0.1"), hop(4, "10.89.0.1")])]),
            [(2, "10.88.0.1".to_owned()), (4, "10.89.0.1".to_owned())]
        );
        assert_eq!(route(24, 254, vec![to("10.88.0.1"), A::Oif(2)]), [], "not a default route");
        assert_eq!(
            route(0, 1000, vec![to("10.88.0.1"), A::Oif(2)]),
            [],
            "a table of policy routing"
        );
        assert_eq!(route(0, 254, vec![A::Oif(2)]), [], "a point-to-point link has no gateway");
    }

    #[test]
    fn entries_that_somebody_set_are_left_alone() {
        let keys = BTreeSet::from([(2, "10.88.0.1".parse().unwrap())]);
        let entry = |index, address: [u8; 4], state, flags| {
            let mut message = NeighbourMessage::default();
            (message.header.ifindex, message.header.state, message.header.flags) =
                (index, state, flags);
            message.attributes = vec![
                NeighbourAttribute::Destination(NeighbourAddress::Inet(address.into())),
                NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 9]),
            ];
            (gateway_lladdr(&message, &keys).is_some(), is_fixed(&message))
        };
        let (gateway, none) = ([10, 88, 0, 1], NeighbourFlags::empty());
        assert_eq!(entry(2, gateway, NeighbourState::Stale, none), (true, false));
        assert_eq!(entry(2, gateway, NeighbourState::Permanent, none), (true, true));
        assert_eq!(
            entry(2, gateway, NeighbourState::Reachable, NeighbourFlags::ExtLearned),
            (true, true)
        );
        assert_eq!(
            entry(2, gateway, NeighbourState::Failed, none),
            (false, false),
            "the MAC of a failed entry is old"
        );
        assert!(!entry(3, gateway, NeighbourState::Stale, none).0, "another interface");
        assert!(!entry(2, [10, 88, 0, 2], NeighbourState::Stale, none).0, "another neighbour");
    }
}
