//! Single stations that are told of a takeover, beside everybody: those who asked lately, and the
//! default gateways.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{Announcer, Gateways, Transmission};
use crate::l2::{arp, ndp};
use crate::model::mac::Mac;

impl Announcer {
    /// Who is told of every VIP that is taken over from now on, by interface, whether they ever
    /// asked for it or not.
    pub fn set_gateways(&mut self, gateways: Arc<Gateways>) {
        self.gateways = gateways;
    }

    /// Those who asked lately.
    pub(super) fn tell_askers(&mut self, vip: IpAddr, ifindex: u32, now: Duration) {
        let askers: Vec<(IpAddr, Mac)> =
            self.recent.of(vip, ifindex, now).map(|asker| (asker.address, asker.mac)).collect();
        self.tell(vip, ifindex, &askers);
    }

    /// The gateways in the family of the VIP that did not ask lately.
    pub(super) fn tell_gateways(&mut self, vip: IpAddr, ifindex: u32, now: Duration) {
        let told: BTreeSet<Mac> =
            self.recent.of(vip, ifindex, now).map(|asker| asker.mac).collect();
        let here = self.gateways.get(&ifindex).into_iter().flatten();
        let others = here.filter(|(address, mac)| {
            address.is_ipv4() == vip.is_ipv4() && !told.contains(*mac) && !self.own.contains(*mac)
        });
        let others: Vec<(IpAddr, Mac)> = others.map(|(address, mac)| (*address, *mac)).collect();
        self.tell(vip, ifindex, &others);
    }

    /// Gratuitous also when sent to one: Linux may ignore a plain reply for a second after the last
    /// change (`locktime`).
    fn tell(&mut self, vip: IpAddr, ifindex: u32, stations: &[(IpAddr, Mac)]) {
        let Some(mac) = self.links.get(&ifindex).map(|link| link.mac) else { return };
        let frame = |&(address, station): &(IpAddr, Mac)| match (vip, address) {
            (IpAddr::V4(vip), _) => Some(
                arp::Repr { destination: station, ..arp::Repr::announcement(mac, vip) }.to_vec(),
            ),
            (IpAddr::V6(vip), IpAddr::V6(to)) => Some(
                ndp::Repr {
                    destination_mac: station,
                    destination: to,
                    ..ndp::Repr::announcement(mac, vip)
                }
                .to_vec(),
            ),
            (IpAddr::V6(_), IpAddr::V4(_)) => None,
        };
        let frames: Vec<Transmission> = stations
            .iter()
            .filter_map(frame)
            .map(|frame| Transmission { ifindex, frame })
            .collect();
        self.pacer.count(frames.len());
        self.counters.announcements_sent += frames.len() as u64;
        self.transmissions.extend(frames);
    }
}
