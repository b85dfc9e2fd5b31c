//! Three nodes: which addresses are published in node mode as nodes change, and that an excluded
//! node is named.

use std::fmt::Write;
use std::net::{IpAddr, UdpSocket};

use pinnace::model::Family;
use serde_json::json;

use super::{PATIENCE, event, publishes};
use crate::lab::control_plane::{ControlPlane, Options};
use crate::lab::manifests::{Endpoint, slices, web};
use crate::lab::trio::{NODES, Trio};
use crate::lab::{POD_PORTS, Running, ensure, eventually};

const EXCLUDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
const ENABLE: &str = "svccontroller.k3s.cattle.io/enablelb";

struct Cluster {
    running: Vec<Running>,
    plane: ControlPlane,
    trio: Trio,
}

impl Cluster {
    fn start() -> Cluster {
        let trio = Trio::new();
        let plane = ControlPlane::start(Options::on(&trio.client).without_controllers());
        trio.nodes.iter().for_each(|node| plane.node_of(node));
        let start = |node: usize| {
            let pinnace = trio
                .pinnace_on(node)
                .unset("PINNACE_MANIFESTS")
                .set("PINNACE_NAMESPACE", "pinnace");
            pinnace.set("PINNACE_KUBECONFIG", plane.kubeconfig("pinnace").display()).start_ready()
        };
        let running = (0..NODES).map(start).collect();
        Cluster { running, plane, trio }
    }

    /// `name` with a ready pod on each of these nodes.
    fn endpoints(&self, name: &str, nodes: &[usize]) {
        let endpoint =
            |node: &usize| Endpoint::ready(&self.trio.pods[*node]).on(&self.trio.nodes[*node].name);
        let endpoints: Vec<Endpoint> = nodes.iter().map(endpoint).collect();
        self.plane.apply(&slices(name, &[("http", "TCP", POD_PORTS[0])], &endpoints));
    }

    /// The internal addresses of these nodes, IPv4 first.
    fn internal(&self, nodes: &[usize]) -> Vec<IpAddr> {
        Family::ALL
            .iter()
            .flat_map(|family| nodes.iter().map(|node| self.trio.nodes[*node].address(*family)))
            .collect()
    }

    fn label(&self, node: usize, label: &str) {
        self.plane.kubectl(&["label", "--overwrite", "node", &self.trio.nodes[node].name, label]);
    }

    fn addresses_of(&self, node: usize, external: Option<&str>) {
        let host = &self.trio.nodes[node];
        let internal = Family::ALL
            .map(|family| json!({"type": "InternalIP", "address": host.address(family)}));
        let all: Vec<_> = external
            .map(|ip| json!({"type": "ExternalIP", "address": ip}))
            .into_iter()
            .chain(internal)
            .collect();
        let patch =
            json!([{"op": "replace", "path": "/status/addresses", "value": all}]).to_string();
        self.plane.kubectl(&[
            "patch",
            "node",
            &host.name,
            "--subresource=status",
            "--type=json",
            "-p",
            &patch,
        ]);
    }

    /// The status says this, and a client is served at each of the addresses, by these pods only.
    fn served_at(&self, name: &str, expected: &[IpAddr]) {
        publishes(&self.plane, name, expected);
        for address in expected {
            eventually(&format!("{address} answers"), PATIENCE, || {
                self.trio.client.tcp(*address, 80).map(drop).map_err(|failure| failure.to_string())
            });
        }
    }

    fn warned(&self, running: usize, text: &str) -> Result<(), String> {
        let status = self.running[running].pinnace().status()?;
        let mut all = String::new();
        for warning in status.0["warnings"].as_array().into_iter().flatten() {
            writeln!(all, "{warning}").expect("writing to a string");
        }
        ensure(all.contains(text), || format!("node-{} warns of: {all}", running + 1))
    }
}

#[test]
fn node_addresses_are_published_as_servicelb_does_while_nodes_change() {
    let cluster = Cluster::start();
    let (plane, client) = (&cluster.plane, &cluster.trio.client);
    plane.apply(&web("web").node_mode().yaml());
    cluster.endpoints("web", &[0, 1, 2]);
    cluster.served_at("web", &cluster.internal(&[0, 1, 2]));
    let entry = &plane.get_json(&["service", "web"])["status"]["loadBalancer"]["ingress"][0];
    assert_eq!(entry["ports"], json!([{"port": 80, "protocol": "TCP"}]));

    // One external address, and no internal one is told to clients any more.
    cluster.addresses_of(1, Some("203.0.113.12"));
    publishes(plane, "web", &["203.0.113.12".parse().expect("an address")]);
    cluster.addresses_of(1, None);
    cluster.served_at("web", &cluster.internal(&[0, 1, 2]));

    // Local: only where a pod is ready, and the pod sees who asks.
    plane.apply(&web("web").node_mode().local().yaml());
    cluster.endpoints("web", &[2]);
    cluster.served_at("web", &cluster.internal(&[2]));
    let reply = client.tcp(cluster.trio.nodes[2].address(Family::V4), 80).expect("served");
    assert_eq!(reply.peer.ip(), client.address(Family::V4));
    cluster.endpoints("web", &[0, 2]);
    cluster.served_at("web", &cluster.internal(&[0, 2]));
    plane.apply(&web("web").node_mode().yaml());
    cluster.endpoints("web", &[0, 1, 2]);
    cluster.served_at("web", &cluster.internal(&[0, 1, 2]));

    // ServiceLB's label: on any node, and only those count where it is true; with the last one gone
    // all do again.
    cluster.label(0, &format!("{ENABLE}=true"));
    cluster.label(1, &format!("{ENABLE}=false"));
    cluster.served_at("web", &cluster.internal(&[0]));
    cluster.label(1, &format!("{ENABLE}=true"));
    cluster.served_at("web", &cluster.internal(&[0, 1]));
    cluster.label(0, &format!("{ENABLE}-"));
    cluster.label(1, &format!("{ENABLE}-"));
    cluster.served_at("web", &cluster.internal(&[0, 1, 2]));

    plane.kubectl(&["delete", "node", "node-3"]);
    cluster.served_at("web", &cluster.internal(&[0, 1]));
    plane.node_of(&cluster.trio.nodes[2]);
    cluster.served_at("web", &cluster.internal(&[0, 1, 2]));
    let told = event(plane, "UpdatedLoadBalancer", "web", "Updated LoadBalancer with new IPs");
    assert_eq!(told["type"], "Normal");

    an_excluded_node_is_named_in_both_modes(&cluster);
    metrics_tell_who_writes_and_how_bfd_does(&cluster);
}

/// As people have it who opened the ports of their Services and of Kubernetes alone. The nodes see
/// each other at Services' addresses all the same, so each knows what is wrong and says it about
/// itself, where administrators look.
#[test]
fn blocked_bfd_is_reported_with_its_port_in_an_event_and_in_status() {
    let cluster = Cluster::start();
    let (plane, trio) = (&cluster.plane, &cluster.trio);
    plane.apply(&web("web").yaml());
    cluster.endpoints("web", &[0, 1, 2]);
    let vip = super::address(plane, "web", PATIENCE);
    let served = || {
        eventually("a client is served", PATIENCE, || {
            trio.client.tcp(vip, 80).map(drop).map_err(|failure| failure.to_string())
        })
    };
    served();
    for node in 0..NODES {
        eventually("BFD sessions are up", PATIENCE, || {
            let up =
                metric(&cluster.running[node], "pinnace_bfd_session_changes_total{state=\"up\"}");
            ensure(up >= 4.0, || format!("{up} sessions on node-{}", node + 1))
        });
        assert!(cluster.warned(node, "BfdBlocked").is_err(), "nothing is blocked yet");
    }

    let wall = "add table inet wall; add chain inet wall input { type filter hook input priority 0; }; \
                add rule inet wall input udp dport 3784 drop";
    trio.nodes.iter().for_each(|node| drop(node.ns.output("nft", &[wall])));
    let told = eventually("an Event about a Node", PATIENCE, || {
        let found = plane.get_json(&["events", "--field-selector", "reason=BfdBlocked"]);
        found["items"].get(0).cloned().ok_or_else(|| plane.kubectl(&["get", "events"]))
    });
    let about = |field: &str| told["involvedObject"][field].as_str().unwrap_or_default();
    assert_eq!((&told["type"], about("kind")), (&json!("Warning"), "Node"), "{told}");
    let witness = trio
        .nodes
        .iter()
        .position(|node| node.name == about("name"))
        .expect("one of the nodes says it of itself");
    let message = told["message"].as_str().unwrap_or_default();
    let other = (0..NODES)
        .find(|node| message.contains(&format!("node {} is heard", trio.nodes[*node].name)))
        .expect("it names the other node");
    assert_ne!(witness, other, "{message}");
    for address in cluster.internal(&[other]) {
        assert!(
            message.contains("UDP port 3784") && message.contains(&address.to_string()),
            "{address}: {message}"
        );
    }
    // The same sentence wherever somebody looks.
    cluster.running[witness].wait_log(message);
    eventually("its status says so", PATIENCE, || cluster.warned(witness, message));
    let status = String::from_utf8(cluster.running[witness].pinnace().run(&["status"]).stdout)
        .expect("text");
    assert!(status.contains("3784"), "{status}");
    served();

    trio.nodes.iter().for_each(|node| drop(node.ns.output("nft", &["delete table inet wall"])));
    for node in 0..NODES {
        eventually("nobody warns of it any more", PATIENCE, || {
            ensure(cluster.warned(node, "BfdBlocked").is_err(), || format!("node-{}", node + 1))
        });
    }
    served();
}

/// The number of a metric, with its labels; 0 when it is not there.
fn metric(running: &Running, name: &str) -> f64 {
    let (_, text) = running.pinnace().http("/metrics").expect("metrics");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().expect("a number"))
}

fn metrics_tell_who_writes_and_how_bfd_does(cluster: &Cluster) {
    let writers: Vec<f64> =
        cluster.running.iter().map(|running| metric(running, "pinnace_leader")).collect();
    let writer = writers.iter().position(|writer| *writer == 1.0).expect("somebody writes");
    assert_eq!(writers.iter().sum::<f64>(), 1.0, "{writers:?}");
    for running in &cluster.running {
        assert_eq!(
            metric(running, &format!("pinnace_lease_holder{{node=\"node-{}\"}}", writer + 1)),
            1.0
        );
        let (sent, received) = (
            metric(running, "pinnace_bfd_packets_sent_total"),
            metric(running, "pinnace_bfd_packets_received_total"),
        );
        assert!(sent > 100.0 && received > 100.0, "{sent} sent, {received} received");
        assert!(
            metric(running, "pinnace_bfd_session_changes_total{state=\"up\"}") >= 2.0,
            "a session with each of the two others"
        );
        assert_eq!(metric(running, "pinnace_events_dropped_total"), 0.0);
    }
    // What is no BFD is counted by what is wrong with it, unless version or length tell the kernel
    // already.
    let node = &cluster.running[0];
    let before = metric(node, "pinnace_bfd_packets_discarded_total{reason=\"malformed\"}");
    cluster.trio.client.ns.enter(|| {
        let socket = UdpSocket::bind("10.88.0.100:0").expect("a socket");
        socket.set_ttl(255).expect("a TTL");
        socket.send_to(b" no BFD, but long enough", "10.88.0.11:3784").expect("sent");
    });
    eventually("the malformed packet is counted", PATIENCE, || {
        let now = metric(node, "pinnace_bfd_packets_discarded_total{reason=\"malformed\"}");
        ensure(now == before + 1.0, || format!("{before}, then {now}"))
    });
}

fn an_excluded_node_is_named_in_both_modes(cluster: &Cluster) {
    let (plane, trio) = (&cluster.plane, &cluster.trio);
    plane.apply(&web("vip").annotation("pinnace.dev/prefer-nodes", "node-1").yaml());
    cluster.endpoints("vip", &[0, 1, 2]);
    let vip = super::address(plane, "vip", PATIENCE);
    let answers = |expected: &dyn Fn(usize) -> bool, what: &str| {
        eventually(what, PATIENCE, || {
            trio.client.tcp(vip, 80).map_err(|failure| failure.to_string())?;
            let owner = trio.neighbour(vip);
            ensure(owner.is_some_and(expected), || format!("{owner:?} answers"))
        });
    };
    answers(&|owner| owner == 0, "node-1 answers for the virtual address");

    cluster.label(0, &format!("{EXCLUDE}="));
    cluster.served_at("web", &cluster.internal(&[1, 2]));
    answers(&|owner| owner != 0, "another node answers for the virtual address");
    let told = event(plane, "NodeExcluded", "node-1", EXCLUDE);
    assert_eq!(
        (&told["type"], &told["involvedObject"]["kind"]),
        (&json!("Warning"), &json!("Node"))
    );
    cluster.running[0].wait_log("node node-1 has the label");
    for running in 0..NODES {
        eventually("every node's status says so", PATIENCE, || {
            cluster.warned(running, "node node-1 has the label")
        });
    }
    let status =
        String::from_utf8(cluster.running[1].pinnace().run(&["status"]).stdout).expect("text");
    assert!(status.contains("remove the label to serve there"), "{status}");

    cluster.label(0, &format!("{EXCLUDE}-"));
    cluster.served_at("web", &cluster.internal(&[0, 1, 2]));
    event(plane, "NodeIncluded", "node-1", "takes part in load balancing again");
    eventually("nobody warns of it any more", PATIENCE, || {
        ensure(cluster.warned(1, "node-1").is_err(), || "it does".to_owned())
    });
}
