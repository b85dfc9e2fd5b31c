//! A lab of network namespaces: a LAN with clients and nodes, and pods behind the nodes.
//!
//! ```text
//!   client 10.88.0.100   client2 10.88.0.101   node-1 10.88.0.11   node-2 10.88.0.12 (a plain router)
//!   fd88::100            fd88::101             fd88::11            fd88::12
//!      │                    │                     │                   │
//!   ───┴────────────────────┴──────── LAN ────────┴───────────────────┴───
//!                                                 │ cni0              │ cni0
//!                              pod-1 10.42.0.11 … │    far-1 10.42.1.11 …
//!                              fd42::11              fd42:1::11
//! ```
//!
//! A test makes its own lab, starts Pinnace on node-1 and asks what a client notices. Everything is
//! gone when the lab is dropped; what a killed test left is removed by the next one. No program but
//! `ip` is needed (and `nft` where a test looks at the kernel).

// The test suites and the benchmark compile this module for themselves; the benchmark uses a part.
#![allow(dead_code, unused_imports)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, iter, process, thread};

use pinnace::model::Family;
use wiring::{Site, Wiring};

mod capture;
pub mod control_plane;
mod halted;
mod host;
pub mod keepalived;
pub mod manifests;
mod netns;
mod patience;
mod prober;
mod process_under_test;
mod responder;
mod sctp;
pub mod trio;
mod wall_clock;
mod wiring;

pub use capture::{Capture, Heard, question};
pub use halted::Halted;
pub use host::{Connection, Failure, Host, Reply};
pub use netns::Namespace;
pub use patience::patient;
pub use prober::{Probe, Prober, Trace};
pub use process_under_test::{Pinnace, Running, Status};

/// The ports every pod answers on, TCP and UDP.
pub const POD_PORTS: [u16; 2] = [8080, 8081];
/// Sets the labs of one process apart.
static COUNT: AtomicU32 = AtomicU32::new(1);

/// One lab.
pub struct Lab {
    // Fields are dropped in this order: what serves goes before the namespaces it serves in.
    pub client: Host,
    pub client2: Host,
    pub node: Host,
    /// A router without Pinnace, present when there are far pods.
    pub node2: Option<Host>,
    /// Pods on node-1: `pod-1`, `pod-2`…
    pub pods: Vec<Host>,
    /// Pods on node-2: `far-1`, `far-2`…
    pub far: Vec<Host>,
    /// The switch: a bridge `br0` with one port per machine, named like it.
    pub lan: Arc<Namespace>,
    directory: PathBuf,
}

/// The address of a machine on the LAN.
pub fn lan(family: Family, host: u16) -> IpAddr {
    match family {
        Family::V4 => lan4(host).into(),
        Family::V6 => lan6(host).into(),
    }
}

fn lan4(host: u16) -> Ipv4Addr {
    format!("10.88.0.{host}").parse().expect("an address")
}

/// The same digits as in IPv4, for the reader's sake.
fn lan6(host: u16) -> Ipv6Addr {
    format!("fd88::{host}").parse().expect("an address")
}

impl Lab {
    /// A lab with this many pods on node-1 and on node-2 (none there: no node-2).
    pub fn new(near: u16, far: u16) -> Lab {
        let (prefix, directory) = begin();
        let mut names: Vec<String> =
            ["lan", "client", "client2", "node-1"].map(str::to_owned).to_vec();
        names.extend((far > 0).then(|| "node-2".to_owned()));
        names.extend((1..=near).map(|n| format!("pod-{n}")));
        names.extend((1..=far).map(|n| format!("far-{n}")));
        let full: Vec<String> = names.iter().map(|name| format!("{prefix}-{name}")).collect();
        let mut spaces = Namespace::create(&full).into_iter().map(Arc::new);
        let mut next = || spaces.next().expect("one namespace per name");

        let lan = next();
        let client = Host::new("client", next(), lan4(100), lan6(100));
        let client2 = Host::new("client2", next(), lan4(101), lan6(101));
        let node = Host::new("node-1", next(), lan4(11), lan6(11));
        let node2 = (far > 0).then(|| Host::new("node-2", next(), lan4(12), lan6(12)));
        let mut pods = |name: &str, net: u16, count: u16| -> Vec<Host> {
            (1..=count)
                .map(|n| {
                    Host::new(&format!("{name}-{n}"), next(), pod4(net, 10 + n), pod6(net, 10 + n))
                })
                .collect()
        };
        let (near, far) = (pods("pod", 0, near), pods("far", 1, far));
        let lab = Lab { client, client2, node, node2, pods: near, far, lan, directory };
        lab.wire();
        lab.apply("nodes.yaml", &manifests::nodes());
        for pod in lab.all_pods() {
            pod.serve(&POD_PORTS);
        }
        lab
    }

    /// All pods, near and far.
    pub fn all_pods(&self) -> impl Iterator<Item = &Host> {
        self.pods.iter().chain(&self.far)
    }

    /// A directory of its own for this lab.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes a manifest as a careful program would: whole, then renamed into place.
    pub fn apply(&self, file: &str, text: &str) {
        write_manifest(&self.directory, file, text);
    }

    /// Deletes a manifest.
    pub fn delete(&self, file: &str) {
        fs::remove_file(self.directory.join("manifests").join(file)).expect("remove a manifest");
    }

    /// Pinnace on node-1 with the settings of the lab, not yet started.
    pub fn pinnace(&self) -> Pinnace {
        Pinnace::new(self)
    }

    /// The same on any node of the lab, with a log and state of its own.
    pub fn pinnace_on(&self, node: &Host) -> Pinnace {
        let directory = self.directory.join(&node.name);
        fs::create_dir_all(&directory).expect("a directory for the node");
        Pinnace::on(node, &directory, &self.directory.join("manifests"))
    }

    fn wire(&self) {
        let clients = [&self.client, &self.client2];
        let far = self.node2.iter().map(|node| Site { node, net: 1, pods: &self.far });
        let sites: Vec<Site> =
            iter::once(Site { node: &self.node, net: 0, pods: &self.pods }).chain(far).collect();
        wiring::wire(&Wiring {
            lan: &self.lan,
            bridges: 1,
            clients: &clients,
            sites: &sites,
            nets: 2,
        });
        for host in clients.into_iter().chain(sites.iter().map(|site| site.node)) {
            // Three unanswered requests, half a second: a silent neighbour is not there.
            sysctl(
                &host.ns,
                &[
                    ("ipv4/neigh/eth0/retrans_time_ms", "150"),
                    ("ipv6/neigh/eth0/retrans_time_ms", "150"),
                ],
            );
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // The namespaces go with their hosts; a directory that cannot be removed is no reason to
        // fail.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// What every lab begins with: a prefix for its namespaces and a directory for its manifests. What
/// a killed test process left is removed.
fn begin() -> (String, PathBuf) {
    assert!(
        rustix::process::geteuid().is_root(),
        "the lab makes network namespaces and needs root: sudo tests/run"
    );
    netns::remove_leftovers();
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let prefix = format!("{}{}-{number}", netns::PREFIX, process::id());
    let directory = env::temp_dir().join(&prefix);
    fs::create_dir_all(directory.join("manifests")).expect("a directory for the lab");
    (prefix, directory)
}

/// Writes a manifest as a careful program would: whole, then renamed into place.
fn write_manifest(directory: &Path, file: &str, text: &str) {
    let temporary = directory.join("incoming");
    fs::write(&temporary, text).expect("write a manifest");
    fs::rename(temporary, directory.join("manifests").join(file)).expect("rename a manifest");
}

fn pod4(net: u16, host: u16) -> Ipv4Addr {
    format!("10.42.{net}.{host}").parse().expect("an address")
}

fn pod6(net: u16, host: u16) -> Ipv6Addr {
    format!("fd42:{net}::{host}").parse().expect("an address")
}

fn up(host: &Host) -> Vec<String> {
    vec![
        "link set lo up".to_owned(),
        "link set eth0 up".to_owned(),
        format!("address add {}/24 dev eth0", host.v4),
        format!("address add {}/64 dev eth0 nodad", host.v6),
    ]
}

/// The families of this kernel: one started with `ipv6.disable=1` has no IPv6, and the lab does
/// without.
pub fn families() -> &'static [Family] {
    if Path::new("/proc/sys/net/ipv6").exists() { &Family::ALL } else { &[Family::V4] }
}

fn sysctl(ns: &Namespace, values: &[(&str, &str)]) {
    let known: Vec<_> = values
        .iter()
        .copied()
        .filter(|(key, _)| !key.starts_with("ipv6/") || families().contains(&Family::V6))
        .collect();
    ns.sysctl(&known);
}

/// Without the commands about IPv6 addresses where there are none.
fn possible(mut commands: Vec<String>) -> Vec<String> {
    commands.retain(|command| families().contains(&Family::V6) || !command.contains("::"));
    commands
}

/// Whether bridged frames pass the IP hooks: on in nodes, as Kubernetes asks, off in the LAN, which
/// is a switch.
fn bridge_netfilter(ns: &Namespace, value: &str) {
    if Path::new("/proc/sys/net/bridge").exists() {
        ns.sysctl(&[
            ("bridge/bridge-nf-call-iptables", value),
            ("bridge/bridge-nf-call-ip6tables", value),
        ]);
    }
}

/// Tries until it works; panics with the last complaint after `patience`, see [`patient`].
pub fn eventually<T>(
    what: &str,
    patience: Duration,
    mut attempt: impl FnMut() -> Result<T, String>,
) -> T {
    let deadline = Instant::now() + patient(patience);
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(complaint) if Instant::now() > deadline => {
                panic!("{what}: not within {patience:?}: {complaint}")
            }
            Err(_) => thread::sleep(Duration::from_millis(25)),
        }
    }
}

/// `Ok` when it holds, else the complaint: for [`eventually`].
pub fn ensure(holds: bool, complaint: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(complaint()) }
}
