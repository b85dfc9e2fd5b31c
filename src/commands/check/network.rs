//! Whether the pools can be announced on the uplinks of this host.

use super::finding::Finding;
use super::host::Host;
use crate::common::printable::joined;
use crate::config::Settings;
use crate::ipam::pool::{AddressRange, Pool};
use crate::ipam::{ReservedAddresses, reserve_own, reserved_sentence};
use crate::model::{Family, Interface};

pub(super) fn examine(host: &Host, settings: &Settings) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !host.ipv6_enabled() {
        let wanted = settings.pools.iter().any(|pool| pool.has(Family::V6));
        findings.push(without_ipv6(host, wanted));
    }
    findings.extend(unmatched_patterns(host, settings));

    // The addresses of other nodes are known to the running daemon only.
    let mut reserved = ReservedAddresses::new();
    reserve_own(host.interfaces(), &settings.node_name, &mut reserved);
    for pool in &settings.pools {
        findings.extend(reserved_sentence(pool, &reserved).map(|sentence| {
            Finding::warning("pool-reserved", sentence)
                .why("the pool has that many addresses fewer; a Service that asks for one of them fails")
                .fix("leave them out of PINNACE_POOLS, or take it for granted")
        }));
        findings.extend(pool.ranges.iter().map(|range| announced_on(host, pool, range)));
    }
    findings
}

fn without_ipv6(host: &Host, wanted: bool) -> Finding {
    let finding = if wanted {
        Finding::error("ipv6", "IPv6 is disabled on this host, and a pool has IPv6 addresses")
            .why("they can be neither announced nor forwarded")
    } else {
        Finding::note("ipv6", "IPv6 is disabled on this host")
            .why("Services get IPv4 addresses only")
    };
    if host.exists("proc/net/if_inet6") {
        finding.fix("sysctl -w net.ipv6.conf.all.disable_ipv6=0")
    } else {
        finding.fix("take ipv6.disable=1 off the kernel's command line and restart, or use a kernel with IPv6")
    }
}

fn unmatched_patterns(host: &Host, settings: &Settings) -> impl Iterator<Item = Finding> {
    let matches_none = |pattern: &&crate::engine::uplinks::InterfacePattern| {
        !host.interfaces().values().any(|interface| pattern.matches(&interface.name))
    };
    settings.interfaces.iter().filter(matches_none).map(|pattern| {
        let what = format!("PINNACE_INTERFACES names {pattern}, and no interface is called so");
        Finding::warning("interfaces", what)
            .why("nothing is announced there until one appears")
            .fix("ip -br link")
    })
}

/// The uplinks one of whose subnets contains the whole range; without any, the interfaces that have
/// such a subnet and why they are no uplinks.
fn announced_on(host: &Host, pool: &Pool, range: &AddressRange) -> Finding {
    let attached = || host.judged().filter(|(interface, _)| contains(interface, range));
    let on: Vec<&str> = attached()
        .filter(|(_, verdict)| verdict.is_ok())
        .map(|(interface, _)| &*interface.name)
        .collect();
    if !on.is_empty() {
        let what = format!("{range} (pool {}) can be announced on {}", pool.name, on.join(", "));
        return Finding::ok("pool-subnet", what);
    }
    let what = format!("no uplink has a subnet that contains all of {range} (pool {})", pool.name);
    let refused = joined(
        attached()
            .filter_map(|(i, verdict)| Some(format!("{}: {}", i.name, verdict.as_ref().err()?))),
    );
    if refused.is_empty() {
        Finding::warning("pool-subnet", what)
            .why("an address outside the uplinks' subnets is not asked for by ARP or neighbour discovery; it works only if a router sends it here")
            .fix("choose addresses of a subnet in: ip route show scope link; ip -6 route show proto kernel")
    } else {
        Finding::warning("pool-subnet", what)
            .why(format!("addresses are announced on uplinks only, and these are none: {refused}"))
            .fix("choose addresses of an uplink's subnet, or name the interface in PINNACE_INTERFACES")
    }
}

fn contains(interface: &Interface, range: &AddressRange) -> bool {
    interface
        .addresses
        .iter()
        .any(|subnet| subnet.contains(&range.first()) && subnet.contains(&range.last()))
}
