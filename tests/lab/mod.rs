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

// Each test crate compiles this module for itself and uses a part of it.
#![allow(dead_code, missing_docs, unused_imports)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use pinnace::model::Family;

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
        assert!(
            rustix::process::geteuid().is_root(),
            "packet tests make network namespaces and need root: sudo tests/run"
        );
        netns::remove_leftovers();

        let prefix =
            format!("{}{}-{}", netns::PREFIX, process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = env::temp_dir().join(&prefix);
        fs::create_dir_all(directory.join("manifests")).expect("a directory for the lab");
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
        let temporary = self.directory.join("incoming");
        fs::write(&temporary, text).expect("write a manifest");
        fs::rename(temporary, self.directory.join("manifests").join(file))
            .expect("rename a manifest");
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
        let nodes = || {
            std::iter::once((&self.node, 0, &self.pods))
                .chain(self.node2.as_ref().map(|node| (node, 1, &self.far)))
        };
        let machines: Vec<&Host> = [&self.client, &self.client2]
            .into_iter()
            .chain(nodes().map(|(node, ..)| node))
            .collect();

        for host in machines.iter().copied().chain(self.all_pods()) {
            sysctl(
                &host.ns,
                &[
                    ("ipv6/conf/default/accept_dad", "0"),
                    ("ipv6/conf/default/accept_ra", "0"),
                    ("ipv4/conf/all/rp_filter", "0"),
                    ("ipv4/conf/default/rp_filter", "0"),
                    ("ipv4/ping_group_range", "0 2147483647"),
                ],
            );
        }
        for (node, ..) in nodes() {
            sysctl(
                &node.ns,
                &[
                    ("ipv4/ip_forward", "1"),
                    ("ipv6/conf/all/forwarding", "1"),
                    ("ipv6/conf/default/forwarding", "1"),
                ],
            );
        }

        let mut links = vec![format!(
            "link add name br0 netns {} type bridge forward_delay 0 mcast_snooping 0",
            self.lan.name
        )];
        for host in &machines {
            links.push(format!(
                "link add name {} netns {} type veth peer name eth0 netns {}",
                host.name, self.lan.name, host.ns.name
            ));
        }
        for (node, _, pods) in nodes() {
            links.push(format!(
                "link add name cni0 netns {} type bridge forward_delay 0 mcast_snooping 0",
                node.ns.name
            ));
            for pod in pods {
                links.push(format!(
                    "link add name v-{} netns {} type veth peer name eth0 netns {}",
                    pod.name, node.ns.name, pod.ns.name
                ));
            }
        }
        netns::ip(None, &links);

        let mut lan = vec!["link set br0 up".to_owned()];
        lan.extend(machines.iter().map(|host| format!("link set {} master br0 up", host.name)));
        self.lan.ip(&lan);
        bridge_netfilter(&self.lan, "0");
        for host in &machines {
            host.ns.ip(&possible(up(host)));
            // Three unanswered questions, half a second: whoever is silent is not there.
            sysctl(
                &host.ns,
                &[
                    ("ipv4/neigh/eth0/retrans_time_ms", "150"),
                    ("ipv6/neigh/eth0/retrans_time_ms", "150"),
                ],
            );
        }
        for (node, net, pods) in nodes() {
            let (other, via) = (1 - net, if net == 0 { 12 } else { 11 });
            let mut commands = vec![
                "link set cni0 up".to_owned(),
                format!("address add {}/24 dev cni0", pod4(net, 1)),
                format!("address add {}/64 dev cni0 nodad", pod6(net, 1)),
                format!("route add {}/24 via {}", pod4(other, 0), lan4(via)),
                format!("route add {}/64 via {}", pod6(other, 0), lan6(via)),
            ];
            // Hairpin as the bridge plugin of K3s sets it: a pod may reach itself through a
            // Service.
            for pod in pods {
                commands.push(format!("link set v-{} master cni0 up", pod.name));
                commands.push(format!("link set v-{} type bridge_slave hairpin on", pod.name));
            }
            node.ns.ip(&possible(commands));
            bridge_netfilter(&node.ns, "1");
            for pod in pods {
                let mut commands = up(pod);
                commands.push(format!("route add default via {}", pod4(net, 1)));
                commands.push(format!("route add default via {}", pod6(net, 1)));
                pod.ns.ip(&possible(commands));
            }
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
