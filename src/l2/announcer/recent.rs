//! Who asked for a VIP lately: those hosts are told of a takeover one by one, because a broadcast
//! may be lost (Wi-Fi sends it without acknowledgement) or ignored by equipment that distrusts it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::model::mac::Mac;

/// How long a requester is remembered. Linux asks again after 30 s of use, and drops an unused
/// entry after some minutes.
pub const REQUESTER_TIMEOUT: Duration = Duration::from_secs(300);
/// Maximum number of requesters per VIP and interface; the latest ones are kept. Of hosts behind a
/// router only the router asks.
pub const MAX_PER_INTERFACE: usize = 16;
/// Maximum number of requesters.
pub const MAX_TOTAL: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Requester {
    pub address: IpAddr,
    pub mac: Mac,
    seen: Duration,
}

/// By VIP and interface, in the order of their last requests.
#[derive(Debug, Default)]
pub(super) struct RecentRequesters {
    requesters: BTreeMap<(IpAddr, u32), Vec<Requester>>,
    total: usize,
}

impl RecentRequesters {
    /// Remembers that `address` at `mac` asked for the VIP. When memory is full, new requesters are
    /// not remembered until others are forgotten.
    pub fn note(&mut self, vip: IpAddr, ifindex: u32, address: IpAddr, mac: Mac, now: Duration) {
        let list = self.requesters.entry((vip, ifindex)).or_default();
        let before = list.len();
        list.retain(|requester| {
            requester.address != address && now < requester.seen + REQUESTER_TIMEOUT
        });
        if list.len() == MAX_PER_INTERFACE {
            list.remove(0);
        }
        if self.total + list.len() < MAX_TOTAL + before {
            list.push(Requester { address, mac, seen: now });
        }
        self.total = self.total + list.len() - before;
    }

    /// Remembered requesters of the VIP on this interface.
    pub fn of(
        &self,
        vip: IpAddr,
        ifindex: u32,
        now: Duration,
    ) -> impl Iterator<Item = Requester> + '_ {
        self.requesters
            .get(&(vip, ifindex))
            .into_iter()
            .flatten()
            .filter(move |requester| now < requester.seen + REQUESTER_TIMEOUT)
            .copied()
    }

    /// Forgets the requesters of a VIP.
    pub fn forget(&mut self, vip: IpAddr) {
        let keys: Vec<_> =
            self.requesters.range((vip, 0)..=(vip, u32::MAX)).map(|(key, _)| *key).collect();
        for key in keys {
            self.total -= self.requesters.remove(&key).map_or(0, |list| list.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(n: usize) -> IpAddr {
        IpAddr::from([10, 0, (n >> 8) as u8, n as u8])
    }

    fn addresses(recent: &RecentRequesters, vip: usize, now: u64) -> Vec<IpAddr> {
        recent.of(ip(vip), 1, Duration::from_secs(now)).map(|requester| requester.address).collect()
    }

    #[test]
    fn the_latest_are_kept_and_forgotten_in_time() {
        let mut recent = RecentRequesters::default();
        for n in 0..=MAX_PER_INTERFACE {
            recent.note(ip(9), 1, ip(100 + n), [2, 0, 0, 0, 0, 1], Duration::from_secs(n as u64));
        }
        assert_eq!(
            addresses(&recent, 9, 20),
            (1..=MAX_PER_INTERFACE).map(|n| ip(100 + n)).collect::<Vec<_>>(),
            "the first had to go"
        );
        recent.note(ip(9), 1, ip(101), [2, 0, 0, 0, 0, 2], Duration::from_secs(20));
        assert_eq!(
            addresses(&recent, 9, 20).last(),
            Some(&ip(101)),
            "a repeated request makes it the latest"
        );
        assert_eq!(addresses(&recent, 9, 318), [ip(101)], "the others asked too long ago");
        recent.forget(ip(9));
        assert_eq!((addresses(&recent, 9, 20).len(), recent.total), (0, 0));
    }

    #[test]
    fn memory_is_bounded_whoever_asks() {
        let mut recent = RecentRequesters::default();
        for n in 0..3 * MAX_TOTAL {
            recent.note(ip(n / 8), 1, ip(n), [2, 0, 0, 0, 0, 1], Duration::ZERO);
        }
        assert_eq!(recent.total, MAX_TOTAL);
        assert_eq!(recent.requesters.values().map(Vec::len).sum::<usize>(), MAX_TOTAL);
        recent.note(ip(0), 1, ip(1), [2, 0, 0, 0, 0, 1], Duration::ZERO);
        assert_eq!(recent.total, MAX_TOTAL, "a known requester is always remembered");
    }
}
