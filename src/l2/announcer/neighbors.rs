//! Neighbors that are told of a takeover one by one, beside the broadcast: those who asked for the
//! VIP lately, and the default gateways.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::recent::RecentRequesters;
use crate::model::gateways::Gateways;
use crate::model::mac::Mac;

#[derive(Debug, Default)]
pub(super) struct Neighbors {
    pub recent: RecentRequesters,
    pub gateways: Arc<Gateways>,
}

impl Neighbors {
    pub fn requesters(&self, vip: IpAddr, ifindex: u32, now: Duration) -> Vec<(IpAddr, Mac)> {
        self.recent
            .of(vip, ifindex, now)
            .map(|requester| (requester.address, requester.mac))
            .collect()
    }

    /// The gateways in the VIP's family, without those that asked lately and without `own`
    /// link-layer addresses.
    pub fn gateways(
        &self,
        vip: IpAddr,
        ifindex: u32,
        own: &BTreeSet<Mac>,
        now: Duration,
    ) -> Vec<(IpAddr, Mac)> {
        let requesters: BTreeSet<Mac> =
            self.recent.of(vip, ifindex, now).map(|requester| requester.mac).collect();
        self.gateways
            .get(&ifindex)
            .into_iter()
            .flatten()
            .filter(|(address, mac)| {
                address.is_ipv4() == vip.is_ipv4()
                    && !requesters.contains(*mac)
                    && !own.contains(*mac)
            })
            .map(|(address, mac)| (*address, *mac))
            .collect()
    }
}
