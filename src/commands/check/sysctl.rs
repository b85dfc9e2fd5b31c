//! Sysctls that decide whether forwarded packets arrive. Each is judged by the interfaces and
//! addresses of this host.

use std::collections::BTreeSet;

use super::finding::Finding;
use super::host::Host;
use crate::ipam::IPVS_INTERFACE;
use crate::model::Family;

/// Bridges that network plugins put pods on.
const POD_BRIDGES: &[&str] = &["cni0", "cbr0", "kube-bridge", "weave"];

pub(super) fn examine(host: &Host) -> Vec<Finding> {
    let mut findings = vec![forwarding_v4(host)];
    if host.ipv6_enabled() {
        findings.extend(forwarding_v6(host));
    }
    findings.push(reverse_path(host));
    findings.extend(arp(host));
    findings.extend(bridge(host));
    findings.extend(conntrack(host));
    findings
}

fn forwarding_v4(host: &Host) -> Finding {
    match host.sysctl(&["net", "ipv4", "ip_forward"]) {
        Some(1) => Finding::ok("ipv4-forwarding", "IPv4 forwarding is on"),
        _ => Finding::error("ipv4-forwarding", "IPv4 forwarding is off (net.ipv4.ip_forward)")
            .why("connections to a Service are forwarded to its pods; without forwarding the kernel drops them")
            .fix("sysctl -w net.ipv4.ip_forward=1")
            .fix("echo net.ipv4.ip_forward=1 > /etc/sysctl.d/90-pinnace.conf"),
    }
}

fn forwarding_v6(host: &Host) -> Vec<Finding> {
    // Forwarding makes the kernel a router, which believes router advertisements only with
    // accept_ra=2 (ip-sysctl, accept_ra).
    let losing: Vec<String> = advertised_default_routes(host)
        .into_iter()
        .filter(|name| host.sysctl(&["net", "ipv6", "conf", name, "accept_ra"]) == Some(1))
        .collect();
    let accept: Vec<String> =
        losing.iter().map(|name| format!("sysctl -w net/ipv6/conf/{name}/accept_ra=2")).collect();
    if host.sysctl(&["net", "ipv6", "conf", "all", "forwarding"]) != Some(1) {
        let what = "IPv6 forwarding is off (net.ipv6.conf.all.forwarding)";
        let why = "connections to IPv6 addresses of Services do not reach pods";
        let mut finding = if host.uplinks(Family::V6).is_empty() {
            Finding::note("ipv6-forwarding", what)
        } else {
            Finding::warning("ipv6-forwarding", what)
        }
        .why(why);
        finding.fix.extend(accept);
        return vec![finding.fix("sysctl -w net.ipv6.conf.all.forwarding=1")];
    }
    let mut findings = vec![Finding::ok("ipv6-forwarding", "IPv6 forwarding is on")];
    if !losing.is_empty() {
        let mut finding = Finding::warning("accept-ra", format!("IPv6 forwarding is on and {} has accept_ra=1", losing.join(", ")))
            .why("a forwarding kernel ignores router advertisements then: the default route learned from them expires");
        finding.fix = accept;
        findings.push(finding);
    }
    findings
}

/// Interfaces with a default route that was learned from a router advertisement: RTF_ADDRCONF and
/// a destination of length 0 in `destination length source length next-hop metric references use
/// flags interface` (net/ipv6/route.c).
fn advertised_default_routes(host: &Host) -> BTreeSet<String> {
    const RTF_UP: u32 = 0x1;
    const RTF_REJECT: u32 = 0x200;
    const RTF_ADDRCONF: u32 = 0x0004_0000;
    let text = host.read("proc/net/ipv6_route").unwrap_or_default();
    let interface = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let flags = u32::from_str_radix(fields.get(8)?, 16).ok()?;
        let learned = flags & (RTF_UP | RTF_REJECT | RTF_ADDRCONF) == RTF_UP | RTF_ADDRCONF;
        (learned && *fields.get(1)? == "00").then(|| fields.get(9).map(ToString::to_string))?
    };
    text.lines().filter_map(interface).collect()
}

fn reverse_path(host: &Host) -> Finding {
    let uplinks = host.uplinks(Family::V4);
    let value = |name: &str| host.sysctl(&["net", "ipv4", "conf", name, "rp_filter"]).unwrap_or(0);
    // The kernel uses the larger of `all` and the interface's own (ip-sysctl, rp_filter).
    let strict: Vec<&str> =
        uplinks.iter().copied().filter(|name| value("all").max(value(name)) == 1).collect();
    if strict.is_empty() || uplinks.len() < 2 {
        return Finding::ok("rp-filter", "rp_filter does not drop service traffic");
    }
    let mut finding = Finding::warning(
        "rp-filter",
        format!("the reverse path filter is strict on {} of a host with {} uplinks", strict.join(", "), uplinks.len()),
    )
    .why("a client that arrives on one interface and is answered through another is dropped silently");
    if value("all") == 1 {
        finding = finding.fix("sysctl -w net/ipv4/conf/all/rp_filter=2");
    } else {
        finding.fix = strict
            .iter()
            .map(|name| format!("sysctl -w net/ipv4/conf/{name}/rp_filter=2"))
            .collect();
    }
    finding
}

/// Pinnace binds no VIP to an interface and answers ARP itself, so arp_ignore and arp_announce concern
/// only addresses that somebody else bound.
fn arp(host: &Host) -> Vec<Finding> {
    let value =
        |name: &str, key: &str| host.sysctl(&["net", "ipv4", "conf", name, key]).unwrap_or(0);
    let uplinks = host.uplinks(Family::V4);
    let mut findings = Vec::new();
    let effective = |name: &str| value("all", "arp_ignore").max(value(name, "arp_ignore"));
    if host.has_interface(IPVS_INTERFACE) {
        let answering: Vec<&str> =
            uplinks.iter().copied().filter(|name| effective(name) == 0).collect();
        if !answering.is_empty() {
            findings.push(
                Finding::warning(
                    "strict-arp",
                    format!("kube-proxy runs in IPVS mode without strict ARP (arp_ignore=0 on {})", answering.join(", ")),
                )
                .why(format!("it binds every Service address to {IPVS_INTERFACE}, so every node answers ARP for the addresses Pinnace announces from one"))
                .fix("set ipvs.strictARP: true in kube-proxy's configuration, or run kube-proxy in nftables or iptables mode"),
            );
        }
    }
    let silent: Vec<&str> = uplinks.iter().copied().filter(|name| effective(name) == 8).collect();
    if !silent.is_empty() {
        findings.push(
            Finding::warning("arp-ignore", format!("arp_ignore=8 on {}", silent.join(", ")))
                .why("the kernel answers ARP for none of the node's own addresses, so nothing served in node mode is reached")
                .fix("sysctl -w net.ipv4.conf.all.arp_ignore=1"),
        );
    }
    if findings.is_empty() {
        findings.push(Finding::ok(
            "arp",
            "arp_ignore and arp_announce: OK (no VIP is bound to an interface, so they do not concern VIPs)",
        ));
    }
    findings
}

fn bridge(host: &Host) -> Vec<Finding> {
    let bridges: Vec<&str> =
        POD_BRIDGES.iter().copied().filter(|name| host.has_interface(name)).collect();
    let mut keys = vec!["bridge-nf-call-iptables"];
    if host.ipv6_enabled() && !host.uplinks(Family::V6).is_empty() {
        keys.push("bridge-nf-call-ip6tables");
    }
    let off: Vec<&str> =
        keys.into_iter().filter(|key| host.sysctl(&["net", "bridge", key]) != Some(1)).collect();
    if bridges.is_empty() {
        return Vec::new();
    }
    if off.is_empty() {
        return vec![Finding::ok(
            "bridge-netfilter",
            format!("packets between pods on {} pass the rules", bridges.join(", ")),
        )];
    }
    let mut finding = Finding::warning(
        "bridge-netfilter",
        format!("pods are on the bridge {}, and {} is off", bridges.join(", "), off.join(" and ")),
    )
    .why("when a pod connects to a Service whose pod is on the same bridge, the answer bypasses the rules and is not translated back")
    .fix("modprobe br_netfilter");
    finding.fix.extend(off.iter().map(|key| format!("sysctl -w net.bridge.{key}=1")));
    vec![finding]
}

fn conntrack(host: &Host) -> Option<Finding> {
    let max = host.sysctl(&["net", "netfilter", "nf_conntrack_max"]).filter(|max| *max > 0)?;
    let used = host.sysctl(&["net", "netfilter", "nf_conntrack_count"])?;
    let percent = used.saturating_mul(100) / max;
    if percent < 80 {
        return Some(Finding::ok(
            "conntrack",
            format!("{used} of {max} connection tracking entries are in use"),
        ));
    }
    Some(
        Finding::warning(
            "conntrack",
            format!("{used} of {max} connection tracking entries are in use ({percent} %)"),
        )
        .why("when the table is full new connections are dropped")
        .fix(format!("sysctl -w net.netfilter.nf_conntrack_max={}", max.saturating_mul(4))),
    )
}
