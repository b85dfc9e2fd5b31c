//! Three nodes on one LAN with a client, one pod behind each node, and what can befall a node.
//!
//! ```text
//!   client 10.88.0.100      node-1 10.88.0.11    node-2 10.88.0.12    node-3 10.88.0.13
//!      │                       │                    │                    │
//!   ───┴────────── LAN ────────┴────────────────────┴────────────────────┴───
//!                              │ cni0               │ cni0               │ cni0
//!                         pod-1 10.42.0.11     pod-2 10.42.1.11     pod-3 10.42.2.11
//! ```

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, slice};

use pinnace::model::Family;
use rustix::process::Signal;
use serde_json::Value;

use super::manifests::{Endpoint, node, service, slices};
use super::netns::Namespace;
use super::process_under_test::{Pinnace, Running};
use super::wiring::{self, Site, Wiring};
use super::{
    Host, Prober, Reply, begin, ensure, eventually, lan4, lan6, pod4, pod6, write_manifest,
};

/// How many nodes.
pub const NODES: usize = 3;
/// How many parts the LAN can fall into.
const SIDES: usize = 3;
/// The port of the Service that is probed.
pub const PORT: u16 = 53;
/// How long a node that returned ranks last among the candidates, in seconds, and a little more.
const HOLD_OFF_SECONDS: u64 = 11;

/// The machines.
pub struct Trio {
    pub client: Host,
    /// `node-1`, `node-2`, `node-3`: here as elsewhere the first has the index 0.
    pub nodes: Vec<Host>,
    /// One behind each node.
    pub pods: Vec<Host>,
    /// The switch: a bridge `br0` with one port per machine, named like it, and `br1` and `br2`,
    /// to which machines can be moved.
    pub lan: Arc<Namespace>,
    directory: PathBuf,
}

/// A fault of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// All its links are cut at once and what runs on it stands still.
    PowerLoss,
    /// Its process is gone; the rules stay.
    Killed,
    /// The cable is out; everything runs on.
    CarrierLost,
    /// Its process is asked to stop.
    Terminated,
    /// Its process does not run for a while; the kernel does.
    Stopped,
    /// It is on a LAN of its own, its link up; healed, the LANs are one again.
    Parted,
}

impl Trio {
    /// The machines, wired; nothing runs on them but the pods.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Trio {
        Trio::of(NODES)
    }

    /// The same with more nodes than three, nine at most.
    pub fn of(count: usize) -> Trio {
        let (prefix, directory) = begin();
        let numbers = || 1..=count as u16;
        let names = ["lan".to_owned(), "client".to_owned()].into_iter();
        let names = names
            .chain(numbers().map(|n| format!("node-{n}")))
            .chain(numbers().map(|n| format!("pod-{n}")));
        let full: Vec<String> = names.map(|name| format!("{prefix}-{name}")).collect();
        let mut spaces = Namespace::create(&full).into_iter().map(Arc::new);
        let mut next = || spaces.next().expect("one namespace per name");
        let lan = next();
        let client = Host::new("client", next(), lan4(100), lan6(100));
        let nodes = numbers()
            .map(|n| Host::new(&format!("node-{n}"), next(), lan4(10 + n), lan6(10 + n)))
            .collect();
        let pods = numbers()
            .map(|n| Host::new(&format!("pod-{n}"), next(), pod4(n - 1, 11), pod6(n - 1, 11)))
            .collect();
        let trio = Trio { client, nodes, pods, lan, directory };
        trio.wire();
        trio
    }

    /// A directory of its own for this lab.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Pinnace on a node, with a log and state of its own, not yet started.
    pub fn pinnace_on(&self, node: usize) -> Pinnace {
        let directory = self.directory.join(&self.nodes[node].name);
        fs::create_dir_all(&directory).expect("a directory for the node");
        Pinnace::on(&self.nodes[node], &directory, &self.directory.join("manifests"))
    }

    fn wire(&self) {
        let sites: Vec<Site> = self
            .nodes
            .iter()
            .zip(&self.pods)
            .zip(0..)
            .map(|((node, pod), net)| Site { node, net, pods: slice::from_ref(pod) })
            .collect();
        wiring::wire(&Wiring {
            lan: &self.lan,
            bridges: SIDES,
            clients: &[&self.client],
            sites: &sites,
            nets: sites.len() as u16,
        });
        for pod in &self.pods {
            pod.serve(&[super::POD_PORTS[0]]);
        }
    }

    /// Takes a node's cable out of the switch, or puts it back.
    pub fn cable(&self, node: usize, plugged: bool) {
        self.lan.ip(&[format!(
            "link set {} {}",
            self.nodes[node].name,
            if plugged { "up" } else { "down" }
        )]);
    }

    /// Moves a node to a LAN of its own (its link stays up), or back.
    pub fn part(&self, node: usize, away: bool) {
        self.split(&if away { vec![vec![], vec![node]] } else { vec![vec![node]] });
    }

    /// Moves nodes at once, each to the LAN of its side; the client is on the first. Links stay up.
    pub fn split(&self, sides: &[Vec<usize>]) {
        let mut moves = Vec::new();
        for (side, nodes) in sides.iter().enumerate() {
            moves.extend(
                nodes
                    .iter()
                    .map(|node| format!("link set {} master br{side}", self.nodes[*node].name)),
            );
        }
        self.lan.ip(&moves);
    }

    /// The node through which a question went: its address is what a pod on another node sees, and
    /// the pod behind it sees the client.
    pub fn through(&self, reply: &Reply) -> usize {
        let by_source = self
            .nodes
            .iter()
            .position(|node| [IpAddr::from(node.v4), node.v6.into()].contains(&reply.peer.ip()));
        by_source
            .or_else(|| self.pods.iter().position(|pod| pod.name == reply.pod))
            .expect("an answer of a pod of the lab")
    }

    /// Which node the client's neighbour table names for an address.
    pub fn neighbour(&self, address: IpAddr) -> Option<usize> {
        let mac = self.client.neighbour_entry(address).0?;
        self.nodes.iter().position(|node| node.mac() == mac)
    }
}

impl Drop for Trio {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Pinnace on all three nodes, in front of all three pods, as `default/probe` on port 53 over UDP
/// and TCP.
pub struct Cluster {
    // Dropped in this order.
    running: Vec<Option<Running>>,
    settings: Vec<(&'static str, String)>,
    pub trio: Trio,
}

impl Cluster {
    /// The manifests are written and every node is started.
    pub fn start(settings: &[(&'static str, &str)]) -> Cluster {
        Cluster::start_with(settings, |_, pinnace| pinnace)
    }

    /// The same, each node after a change of its own.
    pub fn start_with(
        settings: &[(&'static str, &str)],
        change: impl Fn(usize, Pinnace) -> Pinnace,
    ) -> Cluster {
        Cluster::of(NODES, settings, change)
    }

    /// The same with more nodes than three.
    pub fn of(
        count: usize,
        settings: &[(&'static str, &str)],
        change: impl Fn(usize, Pinnace) -> Pinnace,
    ) -> Cluster {
        Cluster::on(Trio::of(count), settings, change)
    }

    /// The same on machines that were made before.
    pub fn on(
        trio: Trio,
        settings: &[(&'static str, &str)],
        change: impl Fn(usize, Pinnace) -> Pinnace,
    ) -> Cluster {
        let count = trio.nodes.len();
        let endpoints: Vec<Endpoint> = trio
            .pods
            .iter()
            .zip(&trio.nodes)
            .map(|(pod, node)| Endpoint::ready(pod).on(&node.name))
            .collect();
        let probe =
            service("probe").port("udp", "UDP", PORT.into()).port("tcp", "TCP", PORT.into());
        let ports = [("udp", "UDP", super::POD_PORTS[0]), ("tcp", "TCP", super::POD_PORTS[0])];
        let nodes: String = (1..=count as u8).map(node).collect();
        let text = nodes + &probe.yaml() + &slices("probe", &ports, &endpoints);
        fs::write(trio.directory.join("manifests/all.yaml"), text).expect("write the manifests");
        let settings = settings.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let mut cluster = Cluster { running: Vec::new(), settings, trio };
        cluster.running =
            (0..count).map(|node| Some(change(node, cluster.pinnace(node)).start())).collect();
        cluster
    }

    fn pinnace(&self, node: usize) -> Pinnace {
        self.settings
            .iter()
            .fold(self.trio.pinnace_on(node), |pinnace, (name, value)| pinnace.set(name, value))
    }

    /// The process on a node.
    pub fn running(&self, node: usize) -> &Running {
        self.running[node].as_ref().expect("it runs")
    }

    /// `/state` of a node.
    pub fn state(&self, node: usize) -> Result<Value, String> {
        let (code, body) = self.pinnace(node).http("/state")?;
        ensure(code == 200, || format!("/state of node-{}: {code}", node + 1))?;
        serde_json::from_str(&body).map_err(|error| error.to_string())
    }

    /// The address of the Service, in a family.
    pub fn vip(&self, family: Family) -> IpAddr {
        eventually("the Service has an address", Duration::from_secs(10), || {
            let state = self.state(0)?;
            let addresses =
                state["services"][0]["addresses"].as_array().cloned().unwrap_or_default();
            let mut addresses =
                addresses.iter().filter_map(|address| address.as_str()?.parse().ok());
            addresses
                .find(|address| Family::of(*address) == family)
                .ok_or_else(|| state.to_string())
        })
    }

    /// The owner of an address, if these nodes agree about it and the owner says so itself.
    pub fn owner(&self, address: IpAddr, among: &[usize]) -> Result<usize, String> {
        let views = self.views(address, among)?;
        let owner = one(address, &views)?;
        ensure(views.iter().all(|view| view.1 == Some(owner)), || complaint(address, &views))?;
        Ok(owner)
    }

    /// The one of these nodes that answers for an address, whatever the others have heard of it by
    /// now.
    pub fn answering(&self, address: IpAddr, among: &[usize]) -> Result<usize, String> {
        one(address, &self.views(address, among)?)
    }

    /// Changes the manifest that the lab began with.
    pub fn edit(&self, change: impl FnOnce(String) -> String) {
        let text = fs::read_to_string(self.trio.directory.join("manifests/all.yaml"))
            .expect("read the manifest");
        self.apply("all.yaml", &change(text));
    }

    fn views(&self, address: IpAddr, among: &[usize]) -> Result<Vec<View>, String> {
        let mut views = Vec::new();
        for node in among {
            let state = self.state(*node)?;
            let entry = state["addresses"]
                .as_array()
                .into_iter()
                .flatten()
                .find(|entry| entry["address"] == address.to_string())
                .cloned();
            let entry =
                entry.ok_or_else(|| format!("node-{} does not know {address}", node + 1))?;
            let owner = self.trio.nodes.iter().position(|host| entry["owner"] == *host.name);
            let announces =
                entry["announcedOn"].as_array().is_some_and(|interfaces| !interfaces.is_empty());
            views.push((*node, owner, announces));
        }
        Ok(views)
    }

    /// Waits until these nodes agree about both addresses.
    pub fn wait_owners(&self, among: &[usize], patience: Duration) {
        for address in Family::ALL.map(|family| self.vip(family)) {
            eventually("one owner", patience, || self.owner(address, among));
        }
    }

    /// Waits until every node lives, sees the others, and none of them is new.
    pub fn settle(&self) {
        eventually("the nodes have settled", Duration::from_secs(30), || {
            let count = self.running.len();
            for node in 0..count {
                let state = self.state(node)?;
                let old = |value: &Value| {
                    value.as_u64().is_some_and(|seconds| seconds >= HOLD_OFF_SECONDS)
                };
                let peers = state["peers"].as_array().map(Vec::as_slice).unwrap_or_default();
                let seen = peers
                    .iter()
                    .filter(|peer| peer["alive"] == true && old(&peer["seconds"]))
                    .count();
                ensure(seen == count - 1 && old(&state["uptimeSeconds"]), || {
                    format!("node-{}: {peers:?}", node + 1)
                })?;
            }
            Ok(())
        });
        let all: Vec<usize> = (0..self.running.len()).collect();
        self.wait_owners(&all, Duration::from_secs(5));
    }

    /// Injects a fault and returns the time just before.
    pub fn inject(&mut self, victim: usize, fault: Fault) -> Instant {
        let begin = Instant::now();
        match fault {
            Fault::PowerLoss => {
                self.trio.cable(victim, false);
                self.running(victim).signal(Signal::STOP);
            }
            Fault::Killed => self.running[victim].as_mut().expect("it runs").kill(),
            Fault::CarrierLost => self.trio.cable(victim, false),
            Fault::Terminated => self.running(victim).signal(Signal::TERM),
            Fault::Stopped => self.running(victim).signal(Signal::STOP),
            Fault::Parted => self.trio.part(victim, true),
        }
        begin
    }

    /// Undoes a fault: power and cables come back, a process that ended is started again.
    pub fn heal(&mut self, victim: usize, fault: Fault) {
        match fault {
            Fault::PowerLoss => {
                self.running[victim].as_mut().expect("it runs").kill();
                // A machine that starts has no rules.
                self.trio.nodes[victim].ns.output("nft", &["flush", "ruleset"]);
                self.trio.cable(victim, true);
            }
            Fault::Killed => {}
            Fault::Terminated => {
                let status = self.running[victim].as_mut().expect("it runs").wait_end();
                assert!(status.success(), "asked to stop, it ended with {status}");
            }
            Fault::CarrierLost => return self.trio.cable(victim, true),
            Fault::Stopped => return self.running(victim).signal(Signal::CONT),
            Fault::Parted => return self.trio.part(victim, false),
        }
        self.running[victim] = Some(self.pinnace(victim).start());
    }

    /// Replaces a node by a copy of another, with its name, addresses and MAC, as a virtual machine
    /// is copied. Its pod goes with it.
    pub fn replace_by_copy(&mut self, node: usize, original: usize) {
        self.inject(node, Fault::PowerLoss);
        self.running[node].as_mut().expect("it runs").kill();
        let host = &self.trio.nodes[original];
        let commands = [
            "address flush dev eth0".to_owned(),
            format!("link set eth0 address {}", host.mac()),
            format!("address add {}/24 dev eth0", host.v4),
            format!("address add {}/64 dev eth0 nodad", host.v6),
        ];
        self.trio.nodes[node].ns.ip(&commands);
        self.trio.nodes[node].ns.output("nft", &["flush", "ruleset"]);
        self.trio.cable(node, true);
        self.running[node] = Some(self.pinnace(node).set("PINNACE_NODE_NAME", &host.name).start());
    }

    /// For how long each node has had its sessions with the others, in seconds; an error names the
    /// one that has not.
    pub fn sessions(&self) -> Result<u64, String> {
        let mut youngest = u64::MAX;
        let count = self.running.len();
        for node in 0..count {
            let state = self.state(node)?;
            let peers = state["peers"].as_array().map(Vec::as_slice).unwrap_or_default();
            ensure(
                peers.len() == count - 1 && peers.iter().all(|peer| peer["alive"] == true),
                || format!("node-{}: {peers:?}", node + 1),
            )?;
            youngest =
                peers.iter().filter_map(|peer| peer["seconds"].as_u64()).fold(youngest, u64::min);
        }
        Ok(youngest)
    }

    /// What a node says about another.
    pub fn peer(&self, node: usize, other: usize) -> Result<Value, String> {
        let state = self.state(node)?;
        let found = state["peers"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|peer| peer["node"] == *self.trio.nodes[other].name)
            .cloned();
        found.ok_or_else(|| format!("node-{} does not know the other: {state}", node + 1))
    }

    /// The silence in milliseconds after which a node takes another for dead.
    pub fn detection_time(&self, node: usize, other: usize) -> Result<u64, String> {
        let peer = self.peer(node, other)?;
        peer["detectionMilliseconds"]
            .as_u64()
            .ok_or_else(|| format!("node-{} does not watch the other: {peer}", node + 1))
    }

    /// Writes one more manifest, as a careful program would: whole, then renamed into place.
    pub fn apply(&self, file: &str, text: &str) {
        write_manifest(&self.trio.directory, file, text);
    }

    /// Asks the Service once a millisecond.
    pub fn probe(&self, family: Family) -> Prober {
        Prober::start(&self.trio.client, self.vip(family), PORT)
    }
}

/// A node, whom it takes for the owner, and whether it announces.
type View = (usize, Option<usize>, bool);

fn one(address: IpAddr, views: &[View]) -> Result<usize, String> {
    let mut announcers = views.iter().filter(|view| view.2).map(|view| view.0);
    match (announcers.next(), announcers.next()) {
        (Some(owner), None) => Ok(owner),
        _ => Err(complaint(address, views)),
    }
}

fn complaint(address: IpAddr, views: &[View]) -> String {
    format!(
        "{address}: (node, whom it takes for the owner, whether it announces), counted from 0: {views:?}"
    )
}
