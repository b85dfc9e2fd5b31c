//! The interfaces on which frames can be sent.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Announcer;
use crate::model::Interface;
use crate::model::mac::Mac;

/// What frames on an interface depend on. When it changes, the network has to be told anew: of
/// another hardware address, or that the same one is now behind another port of the switch (a bond
/// that failed over), or may have been forgotten (a link that was away for a moment).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub mac: Mac,
    active_ports: BTreeSet<u32>,
    carrier_changes: u32,
}

impl Link {
    /// None for what cannot be used: down, loopback, without a station's address.
    pub fn of(interface: &Interface) -> Option<Link> {
        let mac = interface.mac.filter(|&mac| {
            interface.up && !interface.loopback && crate::model::mac::is_unicast(mac)
        })?;
        Some(Link {
            mac,
            active_ports: interface.active_ports.clone(),
            carrier_changes: interface.carrier_changes,
        })
    }
}

impl Announcer {
    /// The usable interfaces of a VIP.
    pub(super) fn links_of(&self, vip: IpAddr) -> impl Iterator<Item = (u32, Mac)> + '_ {
        let interfaces = self.vips.get(&vip).map(|known| &known.interfaces);
        interfaces
            .into_iter()
            .flat_map(|set| set.iter())
            .filter_map(|ifindex| Some((*ifindex, self.links.get(ifindex)?.mac)))
    }
}
