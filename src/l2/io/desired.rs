use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::l2::announcer::Announcement;
use crate::model::Interfaces;
use crate::model::gateways::Gateways;
use crate::model::mac::Mac;

/// What to announce, and on which interfaces.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// By VIP.
    pub announcements: Arc<BTreeMap<IpAddr, Announcement>>,
    /// All interfaces of the host, as [`crate::host::links`] publishes them.
    pub interfaces: Arc<Interfaces>,
    /// Between refreshes; None: as configured.
    pub interval: Option<Duration>,
    /// Neighbors that are told of a takeover by unicast.
    pub gateways: Arc<Gateways>,
    /// The latest probe for the owner of each VIP: its number, in ascending order, and the
    /// link-layer address to probe (None: broadcast).
    pub probes: BTreeMap<IpAddr, (u64, Option<Mac>)>,
    /// Number of the last probe.
    pub last_probe: u64,
}

impl Desired {
    /// Adds probes. The latest one of a VIP counts.
    pub fn request_probes(&mut self, probes: Vec<(IpAddr, Option<Mac>)>) {
        for (vip, lladdr) in probes {
            self.last_probe += 1;
            self.probes.insert(vip, (self.last_probe, lladdr));
        }
        if self.probes.len() > self.announcements.len() {
            self.probes.retain(|vip, _| self.announcements.contains_key(vip));
        }
    }
}
