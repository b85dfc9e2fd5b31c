//! Firewalls and other load balancers on this host, recognised by processes, interfaces and chains.

use super::finding::Finding;
use super::host::Host;
use super::kernel::{ForeignChain, Kernel};
use crate::model::Family;
use libc::c_int;

/// Chains in which network plugins accept packets to pods, whatever the policy of the hook is.
const POD_ACCEPT_CHAINS: &[&str] = &[
    "FLANNEL-FWD",
    "KUBE-FORWARD",
    "CILIUM_FORWARD",
    "cali-FORWARD",
    "KUBE-ROUTER-FORWARD",
    "WEAVE-NPC",
];

/// Program (as `/proc/*/comm` spells it), beginning of its command line, name for people.
const ANNOUNCERS: &[(&str, &str, &str)] = &[
    ("speaker", "/speaker ", "MetalLB's speaker"),
    ("kube-vip", "", "kube-vip"),
    ("lbnodeagent", "", "PureLB's node agent"),
    ("openelb-speaker", "", "OpenELB's speaker"),
    ("loxilb", "", "LoxiLB"),
    ("keepalived", "", "keepalived"),
];

pub(super) fn firewalls(host: &Host, kernel: &Kernel) -> Vec<Finding> {
    let mut findings = Vec::new();
    let chains = match &kernel.chains {
        Ok(chains) => chains.as_slice(),
        Err(reason) => {
            findings.push(
                Finding::note(
                    "firewall",
                    format!("the chains of other firewalls cannot be listed: {reason}"),
                )
                .why("a firewall that drops forwarded packets would go unnoticed")
                .fix("sudo pinnace check"),
            );
            &[]
        }
    };
    let processes = host.processes();
    let has_chain = |prefix: &str| chains.iter().any(|chain| chain.name.starts_with(prefix));
    let plugin = POD_ACCEPT_CHAINS.iter().copied().find(|name| has_chain(name));
    let dropping: Vec<String> = chains.iter().filter(|c| c.drops_forwarded).map(shown).collect();
    if processes.iter().any(|(name, _)| name == "firewalld")
        || chains.iter().any(|chain| chain.table == "firewalld")
    {
        findings.push(
            Finding::warning("firewalld", "firewalld is running")
                .why("it rejects forwarded packets between zones unless the networks of pods are trusted")
                .fix("firewall-cmd --permanent --zone=trusted --add-source=10.42.0.0/16   # the cluster's pod network")
                .fix("firewall-cmd --reload"),
        );
    }
    if has_chain("ufw-") || has_chain("ufw6-") {
        findings.push(
            Finding::warning("ufw", "ufw is set up")
                .why("unless told otherwise it drops forwarded packets, those to pods too")
                .fix("ufw route allow to 10.42.0.0/16   # the cluster's pod network"),
        );
    }
    if let (false, Some(plugin)) = (dropping.is_empty(), plugin) {
        findings.push(
            Finding::note("forward-policy", format!("forwarded packets are dropped by default in {}", dropping.join(", ")))
                .why(format!("the network plugin has a chain of its own there ({plugin}), which normally lets packets to pods through")),
        );
    } else if !dropping.is_empty() {
        findings.push(
            Finding::warning("forward-policy", format!("forwarded packets are dropped by default in {}", dropping.join(", ")))
                .why("connections to Services are forwarded to pods and are dropped there unless a rule accepts them")
                .fix("iptables -I FORWARD -d 10.42.0.0/16 -j ACCEPT   # the cluster's pod network")
                .fix("iptables -I FORWARD -s 10.42.0.0/16 -j ACCEPT"),
        );
    }
    let legacy = ["proc/net/ip_tables_names", "proc/net/ip6_tables_names"]
        .iter()
        .filter_map(|path| host.read(path))
        .any(|t| t.contains("filter"));
    if legacy {
        findings.push(
            Finding::note(
                "iptables-legacy",
                "rules of the old iptables are loaded, which cannot be examined from here",
            )
            .why("their FORWARD chain may drop packets to pods")
            .fix("iptables-legacy -S FORWARD"),
        );
    }
    if findings.is_empty() {
        findings.push(Finding::ok("firewall", "no firewall drops forwarded packets by default"));
    }
    findings
}

fn shown(chain: &ForeignChain) -> String {
    let family = match Family::ALL.into_iter().find(|family| family.af() == chain.family) {
        Some(family) => family.nft(),
        None if c_int::from(chain.family) == libc::NFPROTO_INET => "inet",
        None => "?",
    };
    format!("{family} {} {}", chain.table, chain.name)
}

pub(super) fn load_balancers(host: &Host, kernel: &Kernel) -> Vec<Finding> {
    let mut findings = Vec::new();
    let processes = host.processes();
    for (name, command, who) in ANNOUNCERS {
        if processes.iter().any(|(found, line)| found == name && line.starts_with(command)) {
            findings.push(
                Finding::warning("other-load-balancer", format!("{who} is running on this node"))
                    .why("two systems that serve the same Services fight over their addresses and status")
                    .fix("let it serve another loadBalancerClass, or stop it; PINNACE_DEFAULT_CLASS=false leaves Services without a class to it"),
            );
        }
    }
    // The kubelet names log directories namespace_pod_uid.
    if host.list("var/log/pods").iter().any(|pod| pod.starts_with("kube-system_svclb-")) {
        findings
            .push(servicelb("K3s ServiceLB is serving here (pods svclb-* in kube-system)".into()));
    } else if kernel
        .chains
        .iter()
        .flatten()
        .any(|chain| chain.name.starts_with("CNI-HOSTPORT") || chain.name.starts_with("CNI-HN-"))
    {
        findings.push(Finding::note("host-ports", "pods with host ports are here (chains CNI-HOSTPORT-*)").why(
            "on the node's own addresses Pinnace comes first: a Service in node mode takes the port from a pod that claims it as host port",
        ));
    }
    if processes.iter().any(|(name, _)| name == "cilium-agent")
        || host.interfaces().values().any(|interface| interface.name.starts_with("cilium_"))
    {
        findings.push(
            Finding::note("cilium", "Cilium is the network here")
                .why("where it replaces kube-proxy it handles Services in BPF, ahead of nftables, also their external addresses")
                .fix("if connections bypass Pinnace: use Cilium's kubeProxyReplacement=false, or its own load balancer"),
        );
    }
    if findings.is_empty() {
        findings.push(Finding::ok("other-load-balancer", "no other load balancer was found"));
    }
    findings
}

/// `what` says how ServiceLB was found.
pub(super) fn servicelb(what: String) -> Finding {
    Finding::warning("servicelb", what)
        .why("it claims the same Services, and empties the status of those it does not serve")
        .fix("on every server: add  disable: servicelb  to /etc/rancher/k3s/config.yaml, then  systemctl restart k3s")
}
