use std::sync::atomic::{AtomicU32, Ordering};

use std::path::PathBuf;

use super::*;
use crate::config::{Sources, load};
use crate::engine::uplinks;
use crate::model::{Interface, fixtures};

/// A host in a directory of its own, removed afterwards. It begins as a healthy K3s node with one
/// uplink.
struct Fixture {
    root: PathBuf,
    interfaces: Interfaces,
    kernel: Kernel,
    settings: Settings,
}

const HEALTHY: &[(&str, &str)] = &[
    ("proc/self/status", "Name:\tpinnace\nCapEff:\t0000000000003000\n"),
    (
        "proc/net/ipv6_route",
        "00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00040003     eth0\n",
    ),
    ("proc/net/if_inet6", "fd000001000000000000000000000005 02 40 00 80 eth0\n"),
    ("proc/sys/net/ipv4/ip_forward", "1\n"),
    ("proc/sys/net/ipv6/conf/all/forwarding", "1\n"),
    ("proc/sys/net/ipv6/conf/all/disable_ipv6", "0\n"),
    ("proc/sys/net/ipv6/conf/eth0/accept_ra", "2\n"),
    ("proc/sys/net/ipv4/conf/all/rp_filter", "1\n"),
    ("proc/sys/net/ipv4/conf/eth0/rp_filter", "0\n"),
    ("proc/sys/net/ipv4/conf/all/arp_ignore", "0\n"),
    ("proc/sys/net/bridge/bridge-nf-call-iptables", "1\n"),
    ("proc/sys/net/bridge/bridge-nf-call-ip6tables", "1\n"),
    ("proc/sys/net/netfilter/nf_conntrack_max", "1000\n"),
    ("proc/sys/net/netfilter/nf_conntrack_count", "10\n"),
    ("proc/1/comm", "systemd\n"),
    ("proc/1/cmdline", "/sbin/init\0"),
];

impl Fixture {
    fn new(environment: &[(&str, &str)]) -> Fixture {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let root = std::env::temp_dir().join(format!(
            "pinnace-check-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        ));
        let environment = environment.iter().map(|(k, v)| (k.into(), v.into())).collect();
        let sources = Sources {
            file: None,
            environment,
            manifests: None,
            host_name: "node-a".to_string(),
            read_secret: crate::bfd::io::secret::read,
        };
        let (settings, _) = load(sources).expect("valid settings");
        let kernel = Kernel { nft: Probe::Works, packet: Probe::Works, chains: Ok(Vec::new()) };
        let fixture = Fixture { root, interfaces: Interfaces::new(), kernel, settings };
        fixture
            .with(HEALTHY)
            .link("lo", "", "127.0.0.1/8")
            .link("eth0", "", "192.168.1.7/24 fd00:1::5/64")
            .link("cni0", "bridge", "10.42.0.1/24")
    }

    /// Adds an interface, or replaces the one of this name.
    fn link(mut self, name: &str, kind: &str, addresses: &str) -> Fixture {
        let known = self.interfaces.values().find(|known| &*known.name == name);
        let index = known.map_or(self.interfaces.len() as u32 + 1, |known| known.index);
        let link = Interface {
            kind: kind.into(),
            loopback: name == "lo",
            ..fixtures::interface(index, name, addresses)
        };
        self.interfaces.insert(index, link);
        self
    }

    fn without_link(mut self, name: &str) -> Fixture {
        self.interfaces.retain(|_, interface| &*interface.name != name);
        self
    }

    fn with(self, files: &[(&str, &str)]) -> Fixture {
        for (path, text) in files {
            let path = self.root.join(path);
            std::fs::create_dir_all(path.parent().expect("has a parent")).expect("directory");
            std::fs::write(path, text).expect("file");
        }
        self
    }

    fn without(self, path: &str) -> Fixture {
        std::fs::remove_file(self.root.join(path)).expect("is there");
        self
    }

    fn chain(mut self, table: &str, name: &str, drops_forwarded: bool) -> Fixture {
        let chain = ForeignChain {
            family: 2,
            table: table.to_string(),
            name: name.to_string(),
            drops_forwarded,
        };
        self.kernel.chains.as_mut().expect("listed").push(chain);
        self
    }

    fn report(&self) -> CheckReport {
        let host = Host::new(&self.root, self.interfaces.clone(), &self.settings);
        CheckReport::new(examine(&host, &self.settings, &[], &self.kernel))
    }

    /// `severity check: what` of everything that is not as it should be.
    fn complaints(&self) -> Vec<String> {
        let report = self.report();
        let bad = report.findings.iter().filter(|f| f.severity > Severity::Ok);
        bad.map(|f| format!("{:?} {}: {}", f.severity, f.check, f.what).to_lowercase()).collect()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

fn healthy() -> Fixture {
    Fixture::new(&[])
}

#[test]
fn addresses_of_a_pool_that_are_never_given_out_are_named() {
    let fixture = Fixture::new(&[("PINNACE_POOLS", "lan=192.168.1.0/28,fd00:1::/120")])
        // kube-proxy's IPVS mode binds the addresses of Services.
        .link("kube-ipvs0", "dummy", "192.168.1.9/32")
        .with(&[("proc/sys/net/ipv4/conf/all/arp_ignore", "1")]);
    let complaints = fixture.complaints();
    let expected = "warning pool-reserved: pool lan contains addresses that are never given out: 192.168.1.0 (the network address of its subnet), \
                    192.168.1.7 (an address of node node-a), fd00:1::5 (an address of node node-a)";
    assert_eq!(complaints, [expected]);
}

#[test]
fn a_healthy_node_raises_no_alarm() {
    let fixture =
        Fixture::new(&[("PINNACE_POOLS", "192.168.1.200-192.168.1.220,fd00:1::100-fd00:1::1ff")]);
    assert_eq!(fixture.complaints(), Vec::<String>::new());
    let report = fixture.report();
    assert_eq!((report.worst, report.exit_code()), (Severity::Ok, 0));
    assert!(
        report
            .human()
            .contains("192.168.1.200-192.168.1.220 (pool default) can be announced on eth0"),
        "{}",
        report.human()
    );
    assert!(report.human().ends_with("Pinnace can serve here. Nothing was changed.\n"));
}

/// Name, kind, and whether a pool in the interface's subnet can be announced there.
#[test]
fn check_promises_what_the_daemon_does() {
    for (name, kind, serves) in [
        ("eth1", "", true),
        ("cbr9", "bridge", true),
        ("kilo0", "bridge", true),
        ("tap0", "tun", false),
        ("tap1", "", false),
        ("vxlan7", "", false),
        ("ext0", "geneve", false),
        ("ext1", "xfrm", false),
        ("lxdbr0", "bridge", false),
    ] {
        let pools = "192.0.2.100-192.0.2.110";
        let fixture = Fixture::new(&[("PINNACE_POOLS", pools)]).link(name, kind, "192.0.2.2/24");
        let settings = &fixture.settings;
        let daemon = uplinks::by_settings(&fixture.interfaces, None, &settings.pools, &[]);
        let index = fixture.interfaces.values().find(|i| &*i.name == name).expect("there").index;
        assert_eq!(daemon[&index].is_ok(), serves, "{name} of kind {kind:?}, by the daemon");

        let human = fixture.report().human();
        assert_eq!(
            human.contains(&format!("{pools} (pool default) can be announced on {name}\n")),
            serves,
            "{name} of kind {kind:?}:\n{human}"
        );
        if let Err(why) = &daemon[&index] {
            assert!(human.contains(&format!("{name}: {why}")), "{human}");
        }
    }
}

/// One line per case: what is different on the host, and the one complaint it leads to.
#[test]
fn each_obstacle_is_found_and_nothing_else() {
    let cases: Vec<(Fixture, &str)> = vec![
        (
            healthy().with(&[("proc/sys/net/ipv4/ip_forward", "0")]),
            "error ipv4-forwarding: ipv4 forwarding is off",
        ),
        (healthy().without("proc/sys/net/ipv4/ip_forward"), "error ipv4-forwarding: "),
        (
            healthy().with(&[("proc/sys/net/ipv6/conf/all/forwarding", "0")]),
            "warning ipv6-forwarding: ",
        ),
        (
            healthy().with(&[("proc/sys/net/ipv6/conf/all/forwarding", "0")]).link(
                "eth0",
                "",
                "192.168.1.7/24",
            ),
            "note ipv6-forwarding: ",
        ),
        (
            healthy().with(&[("proc/sys/net/ipv6/conf/eth0/accept_ra", "1")]),
            "warning accept-ra: ipv6 forwarding is on and eth0 has accept_ra=1",
        ),
        (healthy().with(&[("proc/sys/net/ipv6/conf/all/disable_ipv6", "1")]), "note ipv6: "),
        (healthy().without("proc/net/if_inet6"), "note ipv6: "),
        (
            healthy().link("eth1", "", "192.168.2.7/24"),
            "warning rp-filter: the reverse path filter is strict on eth0, eth1 of a host with 2 uplinks",
        ),
        (healthy().link("kube-ipvs0", "dummy", ""), "warning strict-arp: "),
        (healthy().with(&[("proc/sys/net/ipv4/conf/all/arp_ignore", "8")]), "warning arp-ignore: "),
        (
            healthy().with(&[("proc/sys/net/bridge/bridge-nf-call-iptables", "0")]),
            "warning bridge-netfilter: pods are on the bridge cni0, and bridge-nf-call-iptables is off",
        ),
        (
            healthy().without("proc/sys/net/bridge/bridge-nf-call-ip6tables"),
            "warning bridge-netfilter: ",
        ),
        (
            healthy().with(&[("proc/sys/net/netfilter/nf_conntrack_count", "900")]),
            "warning conntrack: 900 of 1000 connection tracking entries are in use (90 %)",
        ),
        (healthy().with(&[("proc/7/comm", "firewalld\n")]), "warning firewalld: "),
        (healthy().chain("filter", "ufw-before-forward", false), "warning ufw: "),
        (
            healthy().chain("filter", "FORWARD", true),
            "warning forward-policy: forwarded packets are dropped by default in ip filter forward",
        ),
        (
            healthy().chain("filter", "FORWARD", true).chain("filter", "FLANNEL-FWD", false),
            "note forward-policy: ",
        ),
        (
            healthy().with(&[("proc/net/ip_tables_names", "nat\nfilter\n")]),
            "note iptables-legacy: ",
        ),
        (
            healthy()
                .with(&[("proc/8/comm", "speaker"), ("proc/8/cmdline", "/speaker\0--port=7472")]),
            "warning other-load-balancer: metallb's speaker is running",
        ),
        (
            healthy().with(&[("proc/8/comm", "kube-vip\n")]),
            "warning other-load-balancer: kube-vip is running",
        ),
        (
            healthy().with(&[("var/log/pods/kube-system_svclb-traefik-1_2/x", "")]),
            "warning servicelb: ",
        ),
        (healthy().chain("nat", "CNI-HOSTPORT-DNAT", false), "note host-ports: "),
        (healthy().with(&[("proc/9/comm", "cilium-agent\n")]), "note cilium: "),
        (
            healthy().with(&[("proc/self/status", "CapEff:\t0000000000001000\n")]),
            "error capabilities: cap_net_raw missing",
        ),
        (
            healthy().with(&[("proc/self/status", "CapEff:\t0000000000000000\n")]),
            "error capabilities: cap_net_admin and cap_net_raw missing",
        ),
        (
            Fixture::new(&[("PINNACE_POOLS", "192.168.9.1")]),
            "warning pool-subnet: no uplink has a subnet that contains all of 192.168.9.1 (pool default)",
        ),
        (Fixture::new(&[("PINNACE_POOLS", "10.42.0.7")]), "warning pool-subnet: "),
        (
            Fixture::new(&[("PINNACE_POOLS", "fd00:1::ffff:ffff:ffff:fff0-fd00:1:0:1::5")]),
            "warning pool-subnet: ",
        ),
        (
            Fixture::new(&[("PINNACE_INTERFACES", "wlan*")]),
            "warning interfaces: pinnace_interfaces names wlan*",
        ),
    ];
    for (fixture, expected) in cases {
        let found = fixture.complaints();
        assert!(
            found.len() == 1 && found[0].starts_with(expected),
            "expected {expected:?}, found {found:#?}"
        );
        for finding in fixture.report().findings.iter().filter(|f| f.severity > Severity::Note) {
            assert!(
                !finding.why.is_empty() && !finding.fix.is_empty(),
                "{expected}: says neither why nor what to do"
            );
        }
    }
}

#[test]
fn harmless_lookalikes_raise_no_alarm() {
    for (fixture, what) in [
        (
            healthy().with(&[
                ("proc/8/comm", "speaker"),
                ("proc/8/cmdline", "/usr/bin/speaker\0--volume\0"),
            ]),
            "another program called speaker",
        ),
        (
            healthy().with(&[("proc/sys/net/ipv6/conf/eth0/accept_ra", "0")]),
            "router advertisements handled outside the kernel",
        ),
        (
            healthy()
                .link("kube-ipvs0", "dummy", "")
                .with(&[("proc/sys/net/ipv4/conf/all/arp_ignore", "1")]),
            "IPVS with strict ARP",
        ),
        (
            healthy()
                .without_link("cni0")
                .with(&[("proc/sys/net/bridge/bridge-nf-call-iptables", "0")]),
            "no bridge with pods",
        ),
    ] {
        assert_eq!(fixture.complaints(), Vec::<String>::new(), "{what}");
    }
}

#[test]
fn an_ipv6_pool_without_ipv6_is_an_error() {
    let fixture = Fixture::new(&[("PINNACE_POOLS", "fd00:1::5")])
        .with(&[("proc/sys/net/ipv6/conf/all/disable_ipv6", "1")]);
    assert!(
        fixture.complaints().iter().any(|c| c.starts_with("error ipv6: ")),
        "{:?}",
        fixture.complaints()
    );
}

#[test]
fn what_the_kernel_refuses_is_an_error_and_what_was_not_tried_is_not() {
    let mut fixture = healthy();
    fixture.kernel.nft = Probe::Fails("jhash: no such file".to_string());
    let report = fixture.report();
    assert_eq!(report.exit_code(), 1);
    assert!(
        report.human().contains(
            "ERROR    the kernel rejects the ruleset: jhash: no such file\n         why: "
        ),
        "{}",
        report.human()
    );
    assert!(report.human().contains("Pinnace cannot serve here: 1 error to solve first."));
    fixture.kernel.nft = Probe::Partly("no IPv6: cannot add table".to_string());
    assert_eq!(fixture.report().exit_code(), 0, "the other family is served");
    assert!(
        fixture
            .complaints()
            .iter()
            .any(|c| c.starts_with("warning nftables: ") && c.contains("no ipv6")),
        "{:?}",
        fixture.complaints()
    );
    fixture.kernel.nft = Probe::NotTried("a private network namespace needs root".to_string());
    assert_eq!(fixture.report().exit_code(), 0);
    assert_eq!(fixture.complaints().len(), 1);
}

#[test]
fn an_empty_host_is_examined_without_panic() {
    let fixture = healthy();
    std::fs::remove_dir_all(&fixture.root).expect("remove");
    assert_eq!(fixture.report().exit_code(), 1, "no forwarding");
}

#[test]
fn json_names_every_finding() {
    let json: serde_json::Value = serde_json::from_str(
        &healthy().with(&[("proc/sys/net/ipv4/ip_forward", "0")]).report().json(),
    )
    .expect("JSON");
    assert_eq!(json["worst"], "error");
    let last = json["findings"].as_array().and_then(|f| f.last()).expect("findings");
    assert_eq!((&last["check"], &last["severity"]), (&"ipv4-forwarding".into(), &"error".into()));
    assert_eq!(last["fix"][0], "sysctl -w net.ipv4.ip_forward=1");
}

/// The attributes of one NFT_MSG_NEWCHAIN as the kernel sends them.
fn chain_attributes(table: &str, name: &str, hook: Option<(u32, u32)>) -> Vec<u8> {
    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }
    let mut body = attribute(1, format!("{table}\0").as_bytes());
    body.extend(attribute(3, format!("{name}\0").as_bytes()));
    if let Some((number, policy)) = hook {
        let mut nested = attribute(1, &number.to_be_bytes());
        nested.extend(attribute(2, &0u32.to_be_bytes()));
        body.extend(attribute(4 | 0x8000, &nested));
        body.extend(attribute(5, &policy.to_be_bytes()));
    }
    body
}

#[test]
fn chains_are_read_from_the_kernel_s_messages() {
    for (family, table, name, hook, drops_forwarded) in [
        (2, "filter", "FORWARD", Some((2, 0)), true),
        (1, "fw", "forward", Some((2, 1)), false),
        (2, "filter", "INPUT", Some((1, 0)), false),
        (5, "edge", "egress", Some((2, 0)), false),
        (2, "nat", "CNI-HOSTPORT-DNAT", None, false),
    ] {
        let chain = kernel::parse_chain(family, &chain_attributes(table, name, hook));
        let expected =
            ForeignChain { family, table: table.into(), name: name.into(), drops_forwarded };
        assert_eq!(chain, expected);
    }
}

proptest::proptest! {
    #[test]
    fn no_message_panics_or_hangs(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200), cut in 0usize..200) {
        kernel::parse_chain(2, &bytes);
        let whole = chain_attributes("filter", "FORWARD", Some((2, 0)));
        kernel::parse_chain(2, whole.get(..cut.min(whole.len())).unwrap_or_default());
    }
}
