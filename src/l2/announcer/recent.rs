//! Who asked for a VIP lately: those are told of a move one by one, for a broadcast may be lost
//! (Wi-Fi sends it without acknowledgement) or be ignored by equipment that distrusts it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::model::mac::Mac;

/// How long somebody who asked is remembered: Linux asks again after 30 s of use, and drops an
/// entry without use after some minutes.
pub const MEMORY: Duration = Duration::from_secs(300);
/// At most so many are remembered per VIP and interface, the latest ones: behind a router there is
/// only the router.
pub const PER_PLACE: usize = 16;
/// At most so many in all.
pub const TOTAL: usize = 4096;

/// Somebody who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Requester {
    pub address: IpAddr,
    pub mac: Mac,
    seen: Duration,
}

/// By VIP and interface, in the order in which they last asked.
#[derive(Debug, Default)]
pub(super) struct Recent {
    requesters: BTreeMap<(IpAddr, u32), Vec<Requester>>,
    total: usize,
}

impl Recent {
    /// Remembers that `address` at `mac` asked for the VIP. When memory is full, strangers have to
    /// wait for others to be forgotten.
    pub fn note(&mut self, vip: IpAddr, ifindex: u32, address: IpAddr, mac: Mac, now: Duration) {
        let list = self.requesters.entry((vip, ifindex)).or_default();
        let before = list.len();
        list.retain(|asker| asker.address != address && now < asker.seen + MEMORY);
        if list.len() == PER_PLACE {
            list.remove(0);
        }
        if self.total + list.len() < TOTAL + before {
            list.push(Requester { address, mac, seen: now });
        }
        self.total = self.total + list.len() - before;
    }

    /// Those who asked for the VIP on this interface and are still remembered.
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
            .filter(move |asker| now < asker.seen + MEMORY)
            .copied()
    }

    /// Nobody is interested in this VIP any more.
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

    fn addresses(recent: &Recent, vip: usize, now: u64) -> Vec<IpAddr> {
        recent.of(ip(vip), 1, Duration::from_secs(now)).map(|asker| asker.address).collect()
    }

    #[test]
    fn the_latest_are_kept_and_forgotten_in_time() {
        let mut recent = Recent::default();
        for n in 0..=PER_PLACE {
            recent.note(ip(9), 1, ip(100 + n), [2, 0, 0, 0, 0, 1], Duration::from_secs(n as u64));
        }
        assert_eq!(
            addresses(&recent, 9, 20),
            (1..=PER_PLACE).map(|n| ip(100 + n)).collect::<Vec<_>>(),
            "the first had to go"
        );
        recent.note(ip(9), 1, ip(101), [2, 0, 0, 0, 0, 2], Duration::from_secs(20));
        assert_eq!(
            addresses(&recent, 9, 20).last(),
            Some(&ip(101)),
            "who asks again is the latest"
        );
        assert_eq!(addresses(&recent, 9, 318), [ip(101)], "the others asked too long ago");
        recent.forget(ip(9));
        assert_eq!((addresses(&recent, 9, 20).len(), recent.total), (0, 0));
    }

    #[test]
    fn memory_is_bounded_whoever_asks() {
        let mut recent = Recent::default();
        for n in 0..3 * TOTAL {
            recent.note(ip(n / 8), 1, ip(n), [2, 0, 0, 0, 0, 1], Duration::ZERO);
        }
        assert_eq!(recent.total, TOTAL);
        assert_eq!(recent.requesters.values().map(Vec::len).sum::<usize>(), TOTAL);
        recent.note(ip(0), 1, ip(1), [2, 0, 0, 0, 0, 1], Duration::ZERO);
        assert_eq!(recent.total, TOTAL, "one who is known may always come again");
    }
}
