//! Uplinks that are not simply a network card: VLAN, active-backup bond, both stacked, macvlan.
//! What a client on the LAN notices.
//!
//! VLANs and bonds need modules (`8021q`, `bonding`) that not every kernel has: their tests are
//! ignored unless asked for, and tests/kernels asks, in machines whose kernels have them. By hand:
//! `cargo test --test lab_suites uplinks:: -- --include-ignored`.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::manifests::{node, web};
use crate::lab::{Capture, Heard, Host, Lab, Running, ensure, eventually, patient};
use pinnace::model::Family;

const PATIENCE: Duration = Duration::from_secs(10);

/// The node's addresses move from `eth0` to another interface.
fn readdress(node: &Host, interface: &str) {
    node.ns.ip(&[
        "address flush dev eth0".to_owned(),
        format!("link set {interface} up"),
        format!("address add {}/24 dev {interface}", node.v4),
        format!("address add {}/64 dev {interface} nodad", node.v6),
    ]);
}

/// The switch takes frames of a machine tagged with this VLAN, at the port `port`.
fn tag(lab: &Lab, port: &str) {
    lab.lan.ip(&[
        format!("link set {port} nomaster"),
        format!("link add link {port} name {port}.100 type vlan id 100"),
        format!("link set {port}.100 master br0 up"),
    ]);
}

/// `bond0` out of `eth0` and a second cable `eth1`, to the switch's ports `node-1` and `node-1b`.
/// The switch snoops on MLD: neighbour solicitations go where a member of their group is, and
/// nowhere else.
fn bond(lab: &Lab) {
    lab.lan.ip(&[
        "link set br0 type bridge mcast_snooping 1 mcast_querier 1 mcast_query_response_interval 100 mcast_startup_query_interval 100"
            .to_owned(),
        format!("link add name node-1b type veth peer name eth1 netns {}", lab.node.ns.name),
        "link set node-1b master br0 up".to_owned(),
    ]);
    lab.node.ns.ip(&[
        "address flush dev eth0",
        "link add name bond0 type bond mode active-backup miimon 50",
        "link set eth0 down",
        "link set eth1 down",
        "link set eth0 master bond0",
        "link set eth1 master bond0",
        "link set bond0 up",
    ]);
}

fn link(node: &Host, interface: &str) -> serde_json::Value {
    let listed = node.ns.output("ip", &["-d", "-j", "link", "show", interface]);
    serde_json::from_str::<serde_json::Value>(&listed).expect("ip -j prints JSON")[0].take()
}

fn mac(node: &Host, interface: &str) -> String {
    link(node, interface)["address"].as_str().expect("a MAC").to_owned()
}

fn serve(lab: &Lab) -> (Running, [IpAddr; 2]) {
    // No other node: for one that is not seen, owners would announce all the time.
    lab.apply("nodes.yaml", &node(1));
    lab.apply("web.yaml", &web("web").with_pods(&lab.pods));
    let running = lab.pinnace().start_ready();
    running.wait_serving("default/web");
    let vips = Family::ALL.map(|family| running.address("default/web", family));
    (running, vips)
}

/// The interfaces on which `status` says an address is announced.
fn announced_on(running: &Running, address: IpAddr) -> Vec<String> {
    let status = running.pinnace().status().expect("status");
    let entries = status.0["addresses"].as_array().cloned().unwrap_or_default();
    let entry = entries
        .iter()
        .find(|entry| entry["address"] == address.to_string())
        .cloned()
        .unwrap_or_default();
    entry["announcedOn"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|name| name.as_str().map(str::to_owned))
        .collect()
}

/// A client resolves and reaches every VIP on this interface of the node, and every question is
/// answered once: `outer` sees all frames of the node's cable, `inner` those that belong to the
/// LAN.
fn assert_served(
    lab: &Lab,
    running: &Running,
    vips: [IpAddr; 2],
    interface: &str,
    outer: &str,
    inner: &str,
) {
    for vip in vips {
        assert_eq!(announced_on(running, vip), [interface]);
        let (outer, inner) = (Capture::start(&lab.lan, outer), Capture::start(&lab.lan, inner));
        assert_eq!(lab.client.neighbour(vip), Some(mac(&lab.node, interface)), "{vip}");
        let reply = lab.client.tcp(vip, 80).expect("served");
        assert_eq!(
            (reply.pod.as_str(), reply.peer.ip()),
            ("pod-1", lab.client.address(Family::of(vip)))
        );
        let (questions, answers) = inner.count(vip, patient(Duration::from_millis(300)));
        assert!(
            questions > 0 && questions == answers,
            "{vip}: {questions} questions, {answers} answers"
        );
        assert_eq!(
            outer.count(vip, Duration::ZERO).1,
            answers,
            "{vip} was answered outside of its LAN as well"
        );
        lab.client.ping(vip).expect("a VIP answers ping");
    }
}

#[test]
fn a_macvlan_as_uplink() {
    let lab = Lab::new(1, 0);
    lab.node
        .ns
        .ip(&["link add link eth0 name lan0 address 02:00:00:00:10:01 type macvlan mode bridge"]);
    readdress(&lab.node, "lan0");
    let (running, vips) = serve(&lab);
    assert_served(&lab, &running, vips, "lan0", "node-1", "node-1");
    assert_eq!(lab.client.neighbour(vips[0]).as_deref(), Some("02:00:00:00:10:01"));
}

#[test]
#[ignore = "needs a kernel with 8021q; tests/kernels runs it in machines that have it"]
fn a_vlan_as_uplink() {
    let lab = Lab::new(1, 0);
    tag(&lab, "node-1");
    lab.node
        .ns
        .ip(&["link add link eth0 name eth0.100 address 02:00:00:00:10:02 type vlan id 100"]);
    readdress(&lab.node, "eth0.100");
    let (running, vips) = serve(&lab);
    assert_served(&lab, &running, vips, "eth0.100", "node-1", "node-1.100");
    assert_eq!(lab.client.neighbour(vips[0]).as_deref(), Some("02:00:00:00:10:02"));
}

/// The same subnet tagged and untagged, both named as uplinks: each LAN is answered on its own
/// interface.
#[test]
#[ignore = "needs a kernel with 8021q; tests/kernels runs it in machines that have it"]
fn a_vlan_and_the_card_below_it_do_not_answer_for_each_other() {
    let lab = Lab::new(1, 0);
    tag(&lab, "node-1");
    lab.node
        .ns
        .ip(&["link add link eth0 name eth0.100 address 02:00:00:00:10:02 type vlan id 100"]);
    readdress(&lab.node, "eth0.100");
    lab.node
        .ns
        .ip(&["address add 10.88.0.13/24 dev eth0", "address add fd88::13/64 dev eth0 nodad"]);
    lab.apply("web.yaml", &web("web").with_pods(&lab.pods));
    let running = lab.pinnace().set("PINNACE_INTERFACES", "eth0,eth0.100").start_ready();
    running.wait_serving("default/web");
    for family in Family::ALL {
        let vip = running.address("default/web", family);
        assert_eq!(announced_on(&running, vip), ["eth0", "eth0.100"]);
        // Announcements go out on both; what is counted is who answers a question that was asked in
        // the VLAN.
        let (outer, inner) =
            (Capture::start(&lab.lan, "node-1"), Capture::start(&lab.lan, "node-1.100"));
        assert_eq!(lab.client.neighbour(vip).as_deref(), Some("02:00:00:00:10:02"), "{vip}");
        let (questions, answers) = inner.count(vip, patient(Duration::from_millis(300)));
        assert!(
            questions > 0 && questions == answers,
            "{vip}: {questions} questions, {answers} answers"
        );
        assert_eq!(
            outer.count(vip, Duration::ZERO).1,
            answers,
            "{vip} was answered without the tag as well"
        );
    }
}

/// Cuts the cable of a bond's active port: the connection survives, and everybody is told of the
/// VIPs at once although neither carrier nor MAC of the bond changed.
fn assert_failover(lab: &Lab, vips: [IpAddr; 2], running: &Running) {
    let active = || {
        link(&lab.node, "bond0")["linkinfo"]["info_data"]["active_slave"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let mut open = vips.map(|vip| lab.client.connect(vip, 80).expect("connect"));
    open.iter_mut().for_each(|connection| drop(connection.ask().expect("an answer")));
    // The burst after the start lasts five seconds, the next announcement would come after a
    // minute.
    thread::sleep(patient(Duration::from_secs(6)));
    for round in 0..2 {
        let before = active();
        let (cut, other) =
            if before == "eth0" { ("node-1", "node-1b") } else { ("node-1b", "node-1") };
        let captures = vips.map(|_| Capture::start(&lab.client.ns, "eth0"));
        lab.lan.ip(&[format!("link set {other} up")]);
        thread::sleep(patient(Duration::from_millis(300)));
        assert!(
            captures
                .iter()
                .zip(vips)
                .all(|(capture, vip)| !capture.heard(vip).contains(&Heard::Announcement)),
            "nothing has happened yet"
        );
        let start = Instant::now();
        lab.lan.ip(&[format!("link set {cut} down")]);
        for (capture, vip) in captures.iter().zip(vips) {
            eventually(&format!("{vip} is announced again"), Duration::from_secs(3), || {
                ensure(capture.heard(vip).contains(&Heard::Announcement), || running.log())
            });
        }
        println!("round {round}: announced {:?} after the cable was cut", start.elapsed());
        eventually("the other port is active", PATIENCE, || {
            ensure(active() != before, || before.clone())
        });
        for (connection, vip) in open.iter_mut().zip(vips) {
            assert_eq!(connection.ask().expect("the connection goes on").pod, "pod-1");
            assert_eq!(lab.client.tcp(vip, 80).expect("new connections too").pod, "pod-1");
            eventually(
                "a question reaches the node through the other port",
                Duration::from_secs(3),
                || {
                    ensure(lab.client.neighbour(vip).is_some(), || {
                        format!("nobody answers for {vip}")
                    })
                },
            );
        }
        thread::sleep(patient(Duration::from_secs(6)));
    }
}

#[test]
#[ignore = "needs a kernel with bonding; tests/kernels runs it in machines that have it"]
fn a_bond_as_uplink_announces_again_when_it_fails_over() {
    let lab = Lab::new(1, 0);
    bond(&lab);
    readdress(&lab.node, "bond0");
    let (running, vips) = serve(&lab);
    assert_served(&lab, &running, vips, "bond0", "node-1", "node-1");
    assert_failover(&lab, vips, &running);
}

#[test]
#[ignore = "needs a kernel with 8021q and bonding; tests/kernels runs it in machines that have them"]
fn a_vlan_above_a_bond_announces_again_when_the_bond_fails_over() {
    let lab = Lab::new(1, 0);
    bond(&lab);
    tag(&lab, "node-1");
    tag(&lab, "node-1b");
    lab.node.ns.ip(&["link add link bond0 name bond0.100 type vlan id 100"]);
    readdress(&lab.node, "bond0.100");
    let (running, vips) = serve(&lab);
    assert_served(&lab, &running, vips, "bond0.100", "node-1", "node-1.100");
    assert_failover(&lab, vips, &running);
}

/// A pool in the subnet of an interface that looks like a pod's or a tunnel: what `pinnace check`
/// says is what the running node says.
#[test]
fn check_and_the_daemon_agree_on_what_is_no_uplink() {
    let lab = Lab::new(1, 0);
    lab.node.ns.ip(&[
        "link add name tap0 type veth peer name tap0p",
        "link set tap0p up",
        "address add 192.0.2.2/24 dev tap0",
        "link set tap0 up",
        "link add name ext0 type vxlan id 7 dstport 4789",
        "address add 198.51.100.2/24 dev ext0",
        "link set ext0 up",
    ]);
    lab.apply("nodes.yaml", &node(1));
    lab.apply("web.yaml", &web("web").with_pods(&lab.pods));
    let pools = "192.0.2.100-192.0.2.110,198.51.100.100-198.51.100.110";
    let running = lab.pinnace().set("PINNACE_POOLS", pools).start_ready();
    let json = |command: &str| -> serde_json::Value {
        let output = running.pinnace().run(&[command, "-o", "json"]);
        serde_json::from_slice(&output.stdout).expect("JSON")
    };

    let state = json("status");
    let report = json("check");
    let findings = report["findings"].as_array().expect("findings");
    for (interface, range) in [("tap0", "192.0.2.100-"), ("ext0", "198.51.100.100-")] {
        let all = state["interfaces"].as_array().expect("interfaces");
        let status = all.iter().find(|i| i["name"] == interface).expect("it is listed");
        assert_eq!(status["uplink"], false, "{status}");
        let reason = status["reason"].as_str().expect("a reason");
        let finding = findings
            .iter()
            .find(|f| f["check"] == "pool-subnet" && f["what"].to_string().contains(range))
            .expect("every range is judged");
        assert_eq!(finding["severity"], "warning", "{finding}");
        assert!(
            finding["why"].to_string().contains(&format!("{interface}: {reason}")),
            "{finding}"
        );
    }
}
