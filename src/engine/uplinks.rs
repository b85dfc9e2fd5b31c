//! Which interfaces face the LAN: connections that arrive there come from outside, and virtual
//! addresses are announced there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::ipam::pool::{AddressRange, Pool};
use crate::model::{Interface, Interfaces, Node};

/// The verdict about every interface, by index.
pub type Uplinks = BTreeMap<u32, Result<(), NotUplink>>;

/// Why an interface is not an uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotUplink {
    /// The loopback interface.
    Loopback,
    /// `PINNACE_INTERFACES` does not match it.
    NotNamed,
    /// A port of a bridge or bond: the bridge or bond may be one.
    Port,
    /// Tunnels lead to other nodes or networks, not to the LAN. Holds the kernel's kind.
    Tunnel(Box<str>),
    /// Its name is one of pods, containers or a network plugin.
    PodName,
    /// It has an address in the node's podCIDRs.
    PodNetwork,
    /// None of its subnets contains a node address or overlaps a pool.
    Unrelated,
}

impl fmt::Display for NotUplink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotUplink::Loopback => f.write_str("loopback"),
            NotUplink::NotNamed => f.write_str("not named in PINNACE_INTERFACES"),
            NotUplink::Port => f.write_str("port of a bridge or bond"),
            NotUplink::Tunnel(kind) => write!(f, "a {kind} interface does not lead to the LAN"),
            NotUplink::PodName => f.write_str("by its name it belongs to pods or a network plugin; PINNACE_INTERFACES can name it"),
            NotUplink::PodNetwork => f.write_str("it carries the pod network"),
            NotUplink::Unrelated => f.write_str("neither the Node's addresses nor a pool are in its subnets"),
        }
    }
}

/// Kinds (IFLA_INFO_KIND) that never lead to the LAN.
const TUNNEL_KINDS: &[&str] = &[
    "vxlan",
    "geneve",
    "gre",
    "gretap",
    "ip6gre",
    "ip6gretap",
    "erspan",
    "ipip",
    "sit",
    "ip6tnl",
    "vti",
    "vti6",
    "xfrm",
    "wireguard",
    "tun",
    "dummy",
    "ifb",
    "nlmon",
    "ipvlan",
];
/// Name patterns of interfaces of pods and network plugins.
const POD_PREFIXES: &[&str] = &[
    "cni",
    "flannel",
    "cali",
    "veth",
    "lxc",
    "lxd",
    "docker",
    "br-",
    "virbr",
    "podman",
    "kube-",
    "cilium",
    "tunl",
    "wg",
    "tailscale",
    "tun",
    "tap",
    "nodelocaldns",
    "vxlan",
    "weave",
    "antrea",
    "ovn",
];

/// Classifies every interface. `node` is this node's object, if there is one; `pooled` tells whether a
/// subnet has to do with a pool; `named` is the user's own choice, which overrides everything but
/// loopback.
pub fn uplinks(
    interfaces: &Interfaces,
    node: Option<&Node>,
    pooled: impl Fn(&IpNet) -> bool,
    named: Option<&dyn Fn(&str) -> bool>,
) -> Uplinks {
    let belongs = |interface: &Interface| {
        named.map_or_else(|| not_pods(interface, node), |named| named_only(interface, named))
    };
    let nodes: BTreeSet<IpAddr> =
        node.into_iter().flat_map(|n| n.internal.iter().chain(&n.external)).copied().collect();
    let has_node_address = |interface: &Interface| {
        interface.addresses.iter().any(|subnet| nodes.contains(&subnet.addr()))
    };
    let found = interfaces.values().any(has_node_address);
    let related = |interface: &Interface| {
        // While the node's addresses are unknown, any address suffices.
        named.is_some()
            || has_node_address(interface)
            || interface.addresses.iter().any(&pooled)
            || (!found && !interface.addresses.is_empty())
    };
    let verdict = |interface: &Interface| match belongs(interface) {
        Ok(()) if related(interface) => Ok(()),
        Ok(()) => Err(NotUplink::Unrelated),
        Err(why) => Err(why),
    };
    interfaces.values().map(|interface| (interface.index, verdict(interface))).collect()
}

/// [`uplinks`] as the settings have it: a subnet has to do with a pool when it overlaps one of its
/// ranges; `patterns` (`PINNACE_INTERFACES`) are the user's own choice, unless there are none.
pub fn by_settings(
    interfaces: &Interfaces,
    node: Option<&Node>,
    pools: &[Pool],
    patterns: &[InterfacePattern],
) -> Uplinks {
    let pooled = |subnet: &IpNet| {
        AddressRange::new(subnet.network(), subnet.broadcast()).is_ok_and(|subnet| {
            pools.iter().flat_map(|pool| &pool.ranges).any(|range| range.overlaps(&subnet))
        })
    };
    let named = |name: &str| patterns.iter().any(|pattern| pattern.matches(name));
    let named: Option<&dyn Fn(&str) -> bool> =
        if patterns.is_empty() { None } else { Some(&named) };
    uplinks(interfaces, node, pooled, named)
}

fn named_only(interface: &Interface, named: &dyn Fn(&str) -> bool) -> Result<(), NotUplink> {
    match interface {
        i if i.loopback => Err(NotUplink::Loopback),
        i if named(&i.name) => Ok(()),
        _ => Err(NotUplink::NotNamed),
    }
}

fn not_pods(interface: &Interface, node: Option<&Node>) -> Result<(), NotUplink> {
    let in_pod_network = |subnet: &IpNet| {
        node.is_some_and(|n| n.pod_cidrs.iter().any(|cidr| cidr.contains(&subnet.addr())))
    };
    match interface {
        i if i.loopback => Err(NotUplink::Loopback),
        i if i.master.is_some() => Err(NotUplink::Port),
        i if TUNNEL_KINDS.contains(&&*i.kind) => Err(NotUplink::Tunnel(i.kind.clone())),
        i if POD_PREFIXES.iter().any(|prefix| i.name.starts_with(prefix)) => {
            Err(NotUplink::PodName)
        }
        i if i.addresses.iter().any(in_pod_network) => Err(NotUplink::PodNetwork),
        _ => Ok(()),
    }
}

/// Whether nothing follows from the difference between two looks at the interfaces: the uplinks are
/// as they were, and the others have the same addresses. Every pod comes and goes with an
/// interface, which has none.
pub fn same(
    before: &Interfaces,
    uplinks_before: &Uplinks,
    after: &Interfaces,
    uplinks_after: &Uplinks,
) -> bool {
    /// All of an uplink; name and addresses of any other interface that has some.
    type Relevant<'a> = (Option<&'a Interface>, &'a str, &'a BTreeSet<IpNet>);
    fn relevant<'a>(
        interfaces: &'a Interfaces,
        uplinks: &'a Uplinks,
    ) -> impl Iterator<Item = Relevant<'a>> {
        let uplink = |interface: &Interface| matches!(uplinks.get(&interface.index), Some(Ok(())));
        let all = interfaces.values().map(move |interface| {
            (Some(interface).filter(|i| uplink(i)), &*interface.name, &interface.addresses)
        });
        all.filter(|(uplink, _, addresses)| uplink.is_some() || !addresses.is_empty())
    }
    relevant(before, uplinks_before).eq(relevant(after, uplinks_after))
}

/// The addresses by which the LAN reaches this node: the frontends of node mode.
pub fn node_addresses(interfaces: &Interfaces, uplinks: &Uplinks) -> BTreeSet<IpAddr> {
    let up = interfaces
        .values()
        .filter(|interface| matches!(uplinks.get(&interface.index), Some(Ok(()))));
    up.flat_map(|interface| &interface.addresses).map(|subnet| subnet.addr()).collect()
}

/// An interface name in which `*` stands for any text and `?` for one character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfacePattern(Box<str>);

impl InterfacePattern {
    /// A pattern; any text is one.
    pub fn new(text: &str) -> InterfacePattern {
        InterfacePattern(text.into())
    }

    /// Whether the pattern matches the name.
    pub fn matches(&self, name: &str) -> bool {
        glob(self.0.as_bytes(), name.as_bytes())
    }
}

impl fmt::Display for InterfacePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Iterative: on a mismatch only the last `*` is tried again, so the cost is at most the product of
/// the lengths.
fn glob(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut retry = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, n + 1));
                p += 1;
            }
            Some(&c) if c == b'?' || Some(&c) == name.get(n) => (p, n) = (p + 1, n + 1),
            _ => match retry {
                Some((after_star, next)) => {
                    p = after_star;
                    n = next;
                    retry = Some((after_star, next + 1));
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(p).all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixtures;

    fn interface(index: u32, name: &str, kind: &str, address: &str) -> Interface {
        Interface {
            kind: kind.into(),
            loopback: name == "lo",
            ..fixtures::interface(index, name, address)
        }
    }

    fn node(internal: &str, pod_cidr: &str) -> Node {
        Node {
            name: "n1".into(),
            internal: vec![internal.parse().unwrap()],
            external: vec![],
            pod_cidrs: vec![pod_cidr.parse().unwrap()],
            zone: None,
            excluded: None,
            enable_lb: None,
            pool: None,
        }
    }

    fn host() -> Interfaces {
        let mut port = interface(7, "eth2", "", "");
        port.master = Some(8);
        let all = [
            interface(1, "lo", "", "127.0.0.1/8"),
            interface(2, "eth0", "veth", "192.168.1.11/24"),
            interface(3, "eth1", "", "10.9.0.1/24"),
            interface(4, "cni0", "bridge", "10.42.0.1/24"),
            interface(5, "flannel.1", "vxlan", "10.42.0.0/32"),
            interface(6, "vpn", "wireguard", "192.168.9.1/24"),
            port,
            interface(8, "br0", "bridge", "172.30.0.1/16"),
            interface(9, "pods", "bridge", "10.42.0.3/24"),
        ];
        all.into_iter().map(|i| (i.index, i)).collect()
    }

    fn names(uplinks: &Uplinks) -> String {
        let all = host();
        let found = uplinks
            .iter()
            .filter(|(_, verdict)| verdict.is_ok())
            .map(|(index, _)| all[index].name.to_string());
        found.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_lan_is_where_the_node_and_the_pools_are() {
        let node = node("192.168.1.11", "10.42.0.0/24");
        let nowhere = |_: &IpNet| false;
        let pool: IpNet = "10.9.0.128/25".parse().unwrap();
        let eth2 = |name: &str| name == "eth1" || name == "vpn" || name == "lo";
        let cases = [
            ("eth0", uplinks(&host(), Some(&node), nowhere, None), "the Node's address"),
            (
                "eth0 eth1",
                uplinks(&host(), Some(&node), |s| s.contains(&pool), None),
                "and a pool's subnet",
            ),
            (
                "eth0 eth1 br0 pods",
                uplinks(&host(), None, nowhere, None),
                "no Node object: every address but those of pods and tunnels",
            ),
            (
                "eth1 vpn",
                uplinks(&host(), Some(&node), nowhere, Some(&eth2)),
                "named: those, never loopback",
            ),
        ];
        for (expected, found, why) in cases {
            assert_eq!(names(&found), expected, "{why}");
        }
        let verdicts = uplinks(&host(), Some(&node), nowhere, None);
        assert_eq!(verdicts[&4], Err(NotUplink::PodName));
        assert_eq!(verdicts[&5], Err(NotUplink::Tunnel("vxlan".into())));
        assert_eq!(verdicts[&7], Err(NotUplink::Port));
        assert_eq!(verdicts[&9], Err(NotUplink::PodNetwork));
        assert_eq!(node_addresses(&host(), &verdicts), ["192.168.1.11".parse().unwrap()].into());
    }
}
