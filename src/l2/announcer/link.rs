//! The interfaces on which frames can be sent.

use std::collections::BTreeSet;

use crate::model::Interface;
use crate::model::mac::{Mac, is_unicast};

/// What frames on an interface depend on. VIPs are announced again when it changes: the interface
/// has another link-layer address, or the same one is behind another port of the switch (a bond
/// that failed over), or switches may have forgotten it (a link that was down for a moment).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub mac: Mac,
    active_ports: BTreeSet<u32>,
    carrier_changes: u32,
}

impl Link {
    /// None for an interface that is down, a loopback, or without a unicast link-layer address.
    pub fn of(interface: &Interface) -> Option<Link> {
        let mac =
            interface.mac.filter(|&mac| interface.up && !interface.loopback && is_unicast(mac))?;
        Some(Link {
            mac,
            active_ports: interface.active_ports.clone(),
            carrier_changes: interface.carrier_changes,
        })
    }
}
