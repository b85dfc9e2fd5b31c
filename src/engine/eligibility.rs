//! Whether this node may announce a virtual address, where, and why not.

use std::fmt;
use std::net::IpAddr;

use super::uplinks::Uplinks;
use crate::model::{Exclusion, Interfaces};

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

/// Why this node may not announce an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ineligible {
    /// The Node object keeps it out of load balancing.
    Excluded(Exclusion),
    /// It is about to stop.
    Draining,
    /// No uplink has a subnet that contains the address.
    NoInterface {
        /// The address.
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
    /// This node was, or may have been, stalled and listens first.
    Suspended,
    /// Duplicate identity: another machine has this node's name and takes precedence.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Interface, fixtures};

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
