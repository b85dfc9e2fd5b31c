//! Who answers for a virtual address: which nodes may, and which of them does.

use std::cmp::Reverse;
use std::fmt;
use std::hash::Hasher;
use std::net::IpAddr;
use std::time::Duration;

use siphasher::sip::SipHasher13;

use crate::engine::uplinks::Uplinks;
use crate::model::{Exclusion, Interfaces};

/// A node that returned, or started, comes last for so long: one that goes up and down must not
/// take addresses with it.
pub const HOLD_OFF: Duration = Duration::from_secs(10);
/// After a start, a stall or the return of a link: how long to listen for who has an address, at
/// most. BFD sessions come up within two or three of their slow intervals of a second (RFC 5880
/// §6.8.3).
pub const LISTEN: Duration = Duration::from_secs(3);
/// Why a node is kept out, and what to do about it. `node` is how the sentence calls it.
pub fn excluded(node: &str, exclusion: Exclusion) -> String {
    match exclusion {
        Exclusion::Label => {
            format!(
                "{node} has the label node.kubernetes.io/exclude-from-external-load-balancers; remove the label to serve there"
            )
        }
        Exclusion::Deleting => format!("{node} is being deleted"),
        Exclusion::Autoscaler => format!("{node} is about to be removed by the autoscaler"),
    }
}

/// How often owners announce while a peer is missing
/// ([`crate::engine::membership::Membership::missing`]), or has just appeared: whoever sits on
/// the other side of a filter, or of a split that heals, hears it within a second.
pub const FAST_ANNOUNCE_INTERVAL: Duration = Duration::from_millis(700);
/// How long a holder may be silent before it is asked; longer when there are many addresses, see
/// [`check_interval`].
pub const OWNER_CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// [`CHECK`], or so long that all nodes together ask about 200 times a second.
pub fn check_interval(addresses: usize) -> Duration {
    OWNER_CHECK_INTERVAL
        .max(Duration::from_millis(5).saturating_mul(u32::try_from(addresses).unwrap_or(u32::MAX)))
}

/// Why this node may not announce an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ineligible {
    /// The Node object keeps it out of load balancing.
    Excluded(Exclusion),
    /// It is about to stop.
    Draining,
    /// No uplink has a subnet that contains the address.
    NoInterface {
        /// Which address.
        address: IpAddr,
    },
    /// It is an IPv6 address, and IPv6 is off on every uplink.
    Ipv6Off,
    /// Uplinks have its subnet, but none has a link.
    LinkDown,
    /// externalTrafficPolicy is Local and no endpoint is on this node.
    NoLocalEndpoint,
    /// There are Node objects, and none is this node's: it was deleted, or never joined.
    NoNode,
    /// This node was away, or may have been, and looks again first.
    Suspended,
    /// Another machine has this node's name, and the better right to it.
    DuplicateNode {
        /// Where it is.
        address: IpAddr,
    },
}

impl Ineligible {
    /// A word for machines.
    pub fn code(&self) -> &'static str {
        match self {
            Ineligible::Excluded(_) => "NodeExcluded",
            Ineligible::Draining => "Draining",
            Ineligible::NoInterface { .. } => "NoInterface",
            Ineligible::Ipv6Off => "Ipv6Off",
            Ineligible::LinkDown => "LinkDown",
            Ineligible::NoLocalEndpoint => "NoLocalEndpoint",
            Ineligible::NoNode => "NoNode",
            Ineligible::Suspended => "Suspended",
            Ineligible::DuplicateNode { .. } => "DuplicateNode",
        }
    }
}

impl fmt::Display for Ineligible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ineligible::Excluded(exclusion) => f.write_str(&excluded("this node", *exclusion)),
            Ineligible::Draining => f.write_str("this node is stopping"),
            Ineligible::NoInterface { address } => write!(
                f,
                "no uplink has a subnet that contains {address}; give the pool addresses of the LAN, or have a router send them to this node"
            ),
            Ineligible::Ipv6Off => f.write_str(IPV6_OFF),
            Ineligible::LinkDown => f.write_str("the link of its interface is down"),
            Ineligible::NoLocalEndpoint => f.write_str("externalTrafficPolicy is Local and no endpoint is ready on this node"),
            Ineligible::NoNode => {
                f.write_str("the cluster has Nodes, but none of this name: it was deleted, or PINNACE_NODE_NAME is wrong")
            }
            Ineligible::Suspended => f.write_str("this node was away for a while, or a peer says so, and looks first who took over"),
            Ineligible::DuplicateNode { address } => {
                write!(f, "another machine, at {address}, has this node's name; give one of them another (PINNACE_NODE_NAME)")
            }
        }
    }
}

/// What to do about [`Ineligible::Ipv6Off`].
pub const IPV6_OFF: &str = "IPv6 is switched off on this node (net.ipv6.conf.all.disable_ipv6=1, or ipv6.disable=1 on the kernel's command line)";

/// Whether IPv6 is off on all uplinks; false while there is none.
pub fn ipv6_off(interfaces: &Interfaces, uplinks: &Uplinks) -> bool {
    let mut uplinks =
        interfaces.values().filter(|i| matches!(uplinks.get(&i.index), Some(Ok(())))).peekable();
    uplinks.peek().is_some() && uplinks.all(|interface| !interface.ipv6)
}

/// The interfaces on which this node could announce an address: uplinks with its subnet and a link.
pub fn eligible(
    interfaces: &Interfaces,
    uplinks: &Uplinks,
    address: IpAddr,
) -> Result<Vec<u32>, Ineligible> {
    let uplink = |index: &u32| matches!(uplinks.get(index), Some(Ok(())));
    let in_subnet: Vec<_> = interfaces
        .values()
        .filter(|i| uplink(&i.index) && i.addresses.iter().any(|subnet| subnet.contains(&address)))
        .collect();
    let up: Vec<u32> = in_subnet
        .iter()
        .filter(|interface| interface.up)
        .map(|interface| interface.index)
        .collect();
    match (in_subnet.is_empty(), up.is_empty()) {
        (true, _) if address.is_ipv6() && ipv6_off(interfaces, uplinks) => Err(Ineligible::Ipv6Off),
        (true, _) => Err(Ineligible::NoInterface { address }),
        (false, true) => Err(Ineligible::LinkDown),
        (false, false) => Ok(up),
    }
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
/// candidates names the same leader, addresses spread over the nodes, and when a node goes only its
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
    use crate::model::{Interface, fixtures};

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

    #[test]
    fn an_address_is_announced_where_its_subnet_is_and_the_link_is_up() {
        let interface = |index, up, subnet: &str| Interface {
            up,
            ..fixtures::interface(index, &format!("eth{index}"), subnet)
        };
        let all = [
            interface(1, true, "10.0.0.1/24"),
            interface(2, false, "10.0.0.2/24"),
            interface(3, false, "fd00::1/64"),
        ];
        let interfaces: Interfaces = all.into_iter().map(|i| (i.index, i)).collect();
        let uplinks: Uplinks = interfaces.keys().map(|index| (*index, Ok(()))).collect();
        let ask = |address: &str| eligible(&interfaces, &uplinks, address.parse().unwrap());
        assert_eq!(ask("10.0.0.9"), Ok(vec![1]));
        assert_eq!(ask("fd00::9"), Err(Ineligible::LinkDown));
        assert_eq!(
            ask("10.1.0.9"),
            Err(Ineligible::NoInterface { address: "10.1.0.9".parse().unwrap() })
        );
    }
}
