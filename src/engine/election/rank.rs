//! Which of the candidates for a virtual address wins, and the times that elections keep.

use std::cmp::Reverse;
use std::hash::Hasher;
use std::net::IpAddr;
use std::time::Duration;

use siphasher::sip::SipHasher13;

/// How long a node that returned, or started, comes last: one that flaps must not take addresses with
/// it.
pub const HOLD_OFF: Duration = Duration::from_secs(10);
/// After a start, a stall or the return of a link: how long to listen for who has an address, at
/// most. BFD sessions come up within two or three of their slow intervals of a second (RFC 5880
/// §6.8.3).
pub const LISTEN: Duration = Duration::from_secs(3);

/// How often owners announce while a peer is missing, or has just appeared. A node behind a filter, or
/// on the other side of a split that heals, hears the announcement within a second.
pub const FAST_ANNOUNCE_INTERVAL: Duration = Duration::from_millis(700);
/// How long an owner may be silent before it is probed; longer when there are many addresses, see
/// [`check_interval`].
pub const OWNER_CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// [`OWNER_CHECK_INTERVAL`], or long enough for all nodes together to probe about 200 times a second.
pub fn check_interval(addresses: usize) -> Duration {
    OWNER_CHECK_INTERVAL
        .max(Duration::from_millis(5).saturating_mul(u32::try_from(addresses).unwrap_or(u32::MAX)))
}

/// How a node compares with others for an address; the greater one wins. The same on every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    class: Reverse<usize>,
    weight: u64,
}

impl Rank {
    /// Position in the list of preferred nodes; those that are not in it share the place after its
    /// end.
    pub fn class(self) -> usize {
        self.class.0
    }
}

/// Preference first, then the rendezvous hash of (address, node): every node that sees the same
/// candidates names the same owner, addresses spread over the nodes, and when a node goes only its
/// own addresses move.
pub fn rank(address: IpAddr, node: &str, preferred: &[Box<str>]) -> Rank {
    // Fixed keys: the value must be the same on every node and in every version.
    let mut hasher = SipHasher13::new_with_keys(0x7069_6e6e_6163_6521, 0);
    match address {
        IpAddr::V4(a) => hasher.write(&a.octets()),
        IpAddr::V6(a) => hasher.write(&a.octets()),
    }
    hasher.write(node.as_bytes());
    let class = preferred.iter().position(|name| **name == *node).unwrap_or(preferred.len());
    Rank { class: Reverse(class), weight: hasher.finish() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaders_spread_and_only_the_dead_nodes_addresses_move() {
        let addresses: Vec<IpAddr> = (0..=255u8).map(|n| IpAddr::from([10, 0, 0, n])).collect();
        let (all, without_b) = (["a", "b", "c"], ["c", "a"]);
        let leader = |address: IpAddr, candidates: &[&'static str], preferred: &[Box<str>]| {
            candidates.iter().copied().max_by_key(|node| rank(address, node, preferred))
        };
        let led_by = |node: &str| {
            addresses.iter().filter(|address| leader(**address, &all, &[]) == Some(node)).count()
        };
        for node in all {
            assert!((60..=110).contains(&led_by(node)), "{node} leads {}", led_by(node));
        }
        for address in addresses {
            let before = leader(address, &all, &[]);
            assert!(
                before == Some("b") || before == leader(address, &without_b, &[]),
                "{address} moved without need"
            );
            assert_eq!(leader(address, &all, &["x".into(), "b".into()]), Some("b"), "preferred");
        }
    }
}
