//! The host's networks, read from its routing tables: which interfaces are uplinks, and whether the
//! pools can be announced on them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{Finding, Host};
use crate::config::Settings;
use crate::ipam::pool::AddressRange;
use crate::ipam::{Reserved, ReservedAddresses, reserve_ends, reserved_sentence};
use crate::model::Family;

/// Names of interfaces that belong to pods, tunnels or other load balancers: never uplinks unless
/// named.
const NOT_UPLINKS: &[&str] = &[
    "lo",
    "cni",
    "cbr",
    "flannel",
    "veth",
    "docker",
    "br-",
    "cali",
    "vxlan.calico",
    "tunl",
    "cilium",
    "lxc",
    "kube-",
    "nodelocaldns",
    "weave",
    "antrea",
    "genev_sys",
    "wg",
    "tailscale",
    "tun",
    "virbr",
    "dummy",
    "sit",
    "ip6tnl",
    "kilo",
    "ovn",
    "podman",
];

/// A route of the main table.
pub(super) struct Route {
    pub(super) interface: String,
    pub(super) to: IpNet,
    /// No gateway: the network is attached to the interface.
    pub(super) on_link: bool,
    /// Learned from a router advertisement, and lost when these are no longer accepted.
    pub(super) advertised: bool,
}

/// Whether pods or tunnels are behind an interface of this name.
pub(super) fn is_uplink(name: &str) -> bool {
    !NOT_UPLINKS.iter().any(|prefix| name.starts_with(prefix))
}

/// Both families' routes, as far as they can be read.
pub(super) fn routes(host: &Host) -> Vec<Route> {
    let v4 = host.read("proc/net/route").unwrap_or_default();
    let v6 = host.read("proc/net/ipv6_route").unwrap_or_default();
    v4.lines().skip(1).filter_map(v4_route).chain(v6.lines().filter_map(v6_route)).collect()
}

/// `Iface Destination Gateway Flags RefCnt Use Metric Mask …`, addresses as the memory of a
/// big-endian number (net/ipv4/fib_trie.c).
fn v4_route(line: &str) -> Option<Route> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let address = |i: usize| {
        u32::from_str_radix(fields.get(i)?, 16).ok().map(|n| Ipv4Addr::from(n.to_ne_bytes()))
    };
    let to = IpNet::new(address(1)?.into(), address(7)?.to_bits().leading_ones() as u8).ok()?;
    Some(Route {
        interface: fields.first()?.to_string(),
        to,
        on_link: address(2)?.is_unspecified(),
        advertised: false,
    })
}

/// `destination length source length next-hop metric references use flags interface`
/// (net/ipv6/route.c).
fn v6_route(line: &str) -> Option<Route> {
    const RTF_UP: u32 = 0x1;
    const RTF_GATEWAY: u32 = 0x2;
    const RTF_REJECT: u32 = 0x200;
    const RTF_ADDRCONF: u32 = 0x0004_0000;
    let fields: Vec<&str> = line.split_whitespace().collect();
    let address = u128::from_str_radix(fields.first()?, 16).ok().map(Ipv6Addr::from_bits)?;
    let length = u8::from_str_radix(fields.get(1)?, 16).ok()?;
    let flags = u32::from_str_radix(fields.get(8)?, 16).ok()?;
    let usable = flags & RTF_UP != 0 && flags & RTF_REJECT == 0;
    let route = Route {
        interface: fields.get(9)?.to_string(),
        to: IpNet::new(address.into(), length).ok()?,
        on_link: flags & RTF_GATEWAY == 0,
        advertised: flags & RTF_ADDRCONF != 0,
    };
    usable.then_some(route)
}

/// Interfaces with an attached network, that are uplinks.
pub(super) fn uplinks(host: &Host, family: Family) -> BTreeSet<String> {
    let attached = |r: &Route| {
        r.on_link
            && Family::of(r.to.addr()) == family
            && is_uplink(&r.interface)
            && !is_link_local(r.to.addr())
    };
    routes(host).into_iter().filter(attached).map(|route| route.interface).collect()
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_multicast(),
    }
}

/// Whether IPv6 can be used at all.
pub(super) fn ipv6_enabled(host: &Host) -> bool {
    host.exists("proc/net/if_inet6")
        && host.sysctl(&["net", "ipv6", "conf", "all", "disable_ipv6"]) != Some(1)
}

pub(super) fn examine(host: &Host, settings: &Settings) -> Vec<Finding> {
    let mut findings = Vec::new();
    let wants_v6 = settings.pools.iter().any(|pool| pool.has(Family::V6));
    if !ipv6_enabled(host) {
        let finding = if wants_v6 {
            Finding::error("ipv6", "IPv6 is disabled on this host, and a pool has IPv6 addresses")
                .why("they can be neither announced nor forwarded")
        } else {
            Finding::note("ipv6", "IPv6 is disabled on this host")
                .why("Services get IPv4 addresses only")
        };
        findings.push(match host.exists("proc/net/if_inet6") {
            true => finding.fix("sysctl -w net.ipv6.conf.all.disable_ipv6=0"),
            false => finding.fix("take ipv6.disable=1 off the kernel's command line and restart, or use a kernel with IPv6"),
        });
    }
    let named = |name: &str| settings.interfaces.iter().any(|pattern| pattern.matches(name));
    let interfaces = host.interfaces();
    for pattern in settings
        .interfaces
        .iter()
        .filter(|pattern| !interfaces.iter().any(|name| pattern.matches(name)))
    {
        findings.push(
            Finding::warning(
                "interfaces",
                format!("PINNACE_INTERFACES names {pattern}, and no interface is called so"),
            )
            .why("nothing is announced there until one appears")
            .fix("ip -br link"),
        );
    }
    let routes = routes(host);
    let eligible = |r: &&Route| {
        r.on_link
            && if settings.interfaces.is_empty() {
                is_uplink(&r.interface)
            } else {
                named(&r.interface)
            }
    };
    let reserved = reserved(host, &routes, settings);
    for pool in &settings.pools {
        findings.extend(reserved_sentence(pool, &reserved).map(|sentence| {
            Finding::warning("pool-reserved", sentence)
                .why("the pool has that many addresses fewer; a Service that asks for one of them is refused")
                .fix("leave them out of PINNACE_POOLS, or take it for granted")
        }));
        for range in &pool.ranges {
            let attached: BTreeSet<&str> = routes
                .iter()
                .filter(eligible)
                .filter(|r| within(range, &r.to))
                .map(|r| &*r.interface)
                .collect();
            findings.push(if attached.is_empty() {
                Finding::warning("pool-subnet", format!("no uplink has a subnet that contains all of {range} (pool {})", pool.name))
                    .why("an address outside the uplinks' subnets is not asked for by ARP or neighbour discovery; it works only if a router sends it here")
                    .fix("choose addresses of a subnet in: ip route show scope link; ip -6 route show proto kernel")
            } else {
                let names: Vec<&str> = attached.into_iter().collect();
                Finding::ok("pool-subnet", format!("{range} (pool {}) can be announced on {}", pool.name, names.join(", ")))
            });
        }
    }
    findings
}

/// The addresses of this host, and the ends of the subnets that it is in. Those of other nodes only
/// the running pinnace knows.
fn reserved(host: &Host, routes: &[Route], settings: &Settings) -> ReservedAddresses {
    // kube-proxy in IPVS mode has an interface on which every address stands that the status of a
    // Service names: these are no node's.
    let ipvs = host.interfaces().contains("kube-ipvs0");
    let v4 = if ipvs {
        BTreeSet::new()
    } else {
        host.read("proc/net/fib_trie").map(|trie| local_v4(&trie)).unwrap_or_default()
    };
    let v6 = host.read("proc/net/if_inet6").map(|list| local_v6(&list)).unwrap_or_default();
    let mut reserved = ReservedAddresses::new();
    for subnet in routes
        .iter()
        .filter(|route| route.on_link && route.to.prefix_len() > 0)
        .map(|route| &route.to)
    {
        reserve_ends(subnet, &mut reserved);
    }
    reserved.extend(
        v4.into_iter()
            .chain(v6)
            .map(|address| (address, Reserved::NodeAddress(settings.node_name.clone()))),
    );
    reserved
}

/// A leaf `|-- address`, and below it what it is (net/ipv4/fib_trie.c).
fn local_v4(trie: &str) -> BTreeSet<IpAddr> {
    let mut leaf: Option<IpAddr> = None;
    let mut found = BTreeSet::new();
    for line in trie.lines().map(str::trim) {
        match line.strip_prefix("|-- ") {
            Some(address) => leaf = address.parse().ok(),
            None if line == "/32 host LOCAL" => found.extend(leaf),
            None => {}
        }
    }
    found
}

/// `address index length scope flags interface` (net/ipv6/addrconf.c).
fn local_v6(list: &str) -> BTreeSet<IpAddr> {
    let line = |line: &str| {
        let mut fields = line.split_whitespace();
        let address = u128::from_str_radix(fields.next()?, 16).ok()?;
        (fields.next_back()? != "kube-ipvs0").then(|| Ipv6Addr::from_bits(address).into())
    };
    list.lines().filter_map(line).collect()
}

/// Link-local and default routes contain no pool: their prefix says nothing about neighbours.
fn within(range: &AddressRange, network: &IpNet) -> bool {
    network.prefix_len() > 0 && network.contains(&range.first()) && network.contains(&range.last())
}
