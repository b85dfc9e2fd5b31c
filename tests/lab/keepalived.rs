//! keepalived on the three nodes, with hand-written rules that do what Pinnace's do: for
//! comparison.

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pinnace::model::Family;
use rustix::process::{Pid, Signal, kill_process};

use super::trio::{Fault, NODES, PORT, Trio};
use super::{POD_PORTS, Prober, ensure, eventually, lan};

/// Where it writes the numbers of its processes: the parent's and that of the child which speaks
/// VRRP.
const PID_FILES: [&str; PROCESSES] = ["pid", "vrrp"];
/// How many processes it has.
const PROCESSES: usize = 2;

/// The three nodes with keepalived.
pub struct Keepalived {
    children: Vec<Option<Child>>,
    /// Seconds between advertisements.
    interval: &'static str,
    pub trio: Trio,
}

impl Keepalived {
    /// Starts it everywhere; `interval` is `advert_int`.
    pub fn start(interval: &'static str) -> Keepalived {
        let trio = Trio::new();
        for node in &trio.nodes {
            node.ns.output("nft", &[&rules(&trio)]);
        }
        let mut keepalived = Keepalived { children: Vec::new(), interval, trio };
        keepalived.children = (0..NODES).map(|node| Some(keepalived.spawn(node))).collect();
        keepalived
    }

    /// The virtual address of a family.
    pub fn vip(&self, family: Family) -> IpAddr {
        lan(family, 200)
    }

    /// Which node has the address on its interface, if exactly one has.
    pub fn owner(&self, address: IpAddr, among: &[usize]) -> Result<usize, String> {
        let has = |node: &usize| {
            let listed = self.trio.nodes[*node]
                .ns
                .output("ip", &["-o", "addr", "show", "dev", "eth0", "to", &address.to_string()]);
            !listed.is_empty()
        };
        match among.iter().copied().filter(has).collect::<Vec<_>>().as_slice() {
            [owner] => Ok(*owner),
            all => Err(format!("{address} is on {all:?}")),
        }
    }

    /// Waits until each address has had one owner for as long as a change takes, and every node
    /// could be the next.
    pub fn settle(&self) {
        let owners = || Family::ALL.map(|family| self.owner(self.vip(family), &[0, 1, 2]));
        let step = Duration::from_secs_f64(self.interval.parse::<f64>().expect("a number") * 4.0)
            .max(Duration::from_secs(1));
        eventually("one owner of each address", Duration::from_secs(60), || {
            let before = owners();
            std::thread::sleep(step);
            ensure(before == owners() && before.iter().all(Result::is_ok), || {
                format!("{before:?}")
            })?;
            (0..NODES).try_for_each(|node| self.runs(node))
        });
    }

    // A node on which it ended on its own (pid files, limits) could not take over, and the others
    // would be blamed for it.
    fn runs(&self, node: usize) -> Result<(), String> {
        let count = self.processes(node).len();
        ensure(count == PROCESSES, || {
            let log = fs::read_to_string(self.directory(node).join("log")).unwrap_or_default();
            format!("{count} processes of keepalived on node-{}, which says:\n{log}", node + 1)
        })
    }

    /// Injects a fault and returns the time just before.
    pub fn inject(&mut self, victim: usize, fault: Fault) -> Instant {
        let begin = Instant::now();
        match fault {
            Fault::PowerLoss => {
                self.trio.cable(victim, false);
                self.signal(victim, Signal::STOP);
            }
            Fault::Killed => self.signal(victim, Signal::KILL),
            Fault::CarrierLost => self.trio.cable(victim, false),
            // The parent passes it on.
            Fault::Terminated => {
                let parent = self.children[victim].as_ref().expect("it runs");
                kill_process(Pid::from_child(parent), Signal::TERM).expect("signal keepalived");
            }
            Fault::Stopped => self.signal(victim, Signal::STOP),
            Fault::Parted => self.trio.part(victim, true),
        }
        begin
    }

    /// Undoes a fault.
    pub fn heal(&mut self, victim: usize, fault: Fault) {
        match fault {
            Fault::CarrierLost => return self.trio.cable(victim, true),
            Fault::Stopped => return self.signal(victim, Signal::CONT),
            Fault::Parted => return self.trio.part(victim, false),
            Fault::Terminated => {}
            Fault::PowerLoss | Fault::Killed => self.signal(victim, Signal::KILL),
        }
        let mut child = self.children[victim].take().expect("it ran");
        child.wait().expect("its end");
        // The child of the one that was killed ends a moment later. As long as it exists and its
        // number stands in a file, the next says "daemon is already running", ends, and the
        // node stays without keepalived. A machine that starts has no such file, and a
        // supervisor waits for all processes.
        eventually("all processes have ended", Duration::from_secs(10), || {
            let left = self.processes(victim);
            ensure(left.is_empty(), || format!("{left:?}"))
        });
        for file in PID_FILES {
            let _ = fs::remove_file(self.directory(victim).join(file));
        }
        // Nor has it such an address.
        for address in Family::ALL.map(|family| self.vip(family)) {
            if self.owner(address, &[victim]).is_ok() {
                let length = if address.is_ipv4() { 32 } else { 128 };
                self.trio.nodes[victim]
                    .ns
                    .ip(&[format!("address del {address}/{length} dev eth0")]);
            }
        }
        self.trio.cable(victim, true);
        self.children[victim] = Some(self.spawn(victim));
    }

    /// Asks the Service once a millisecond.
    pub fn probe(&self, family: Family) -> Prober {
        Prober::start(&self.trio.client, self.vip(family), PORT)
    }

    fn signal(&self, node: usize, signal: Signal) {
        for pid in self.processes(node) {
            // It may have ended meanwhile.
            let _ = kill_process(pid, signal);
        }
    }

    // All that live of it: nothing else runs in a node's namespace.
    fn processes(&self, node: usize) -> Vec<Pid> {
        let listed = Command::new("ip")
            .args(["netns", "pids", &self.trio.nodes[node].ns.name])
            .output()
            .expect("`ip` is installed");
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        listed
            .split_whitespace()
            .map(|pid| pid.parse().ok().and_then(Pid::from_raw).expect("a process number"))
            .collect()
    }

    fn directory(&self, node: usize) -> PathBuf {
        self.trio.directory().join(format!("keepalived-{}", node + 1))
    }

    fn spawn(&self, node: usize) -> Child {
        let host = &self.trio.nodes[node];
        let directory = self.directory(node);
        fs::create_dir_all(&directory).expect("a directory for keepalived");
        let path = |name: &str| directory.join(name).to_string_lossy().into_owned();
        fs::write(path("conf"), self.configuration(node)).expect("its configuration");
        let log = File::options().create(true).append(true).open(path("log")).expect("a log file");
        let mut command = Command::new("keepalived");
        let [parent, vrrp] = PID_FILES;
        command.args([
            "-n",
            "-l",
            "-P",
            "-f",
            &path("conf"),
            "-p",
            &path(parent),
            "-r",
            &path(vrrp),
        ]);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("dup")).stderr(log);
        host.ns.enter(|| command.spawn()).expect("start keepalived (Debian package keepalived)")
    }

    fn configuration(&self, node: usize) -> String {
        let instance = |family: Family| {
            // Of full length, so that the kernel does not choose it as the source of masqueraded
            // packets.
            let length = if family == Family::V4 { 32 } else { 128 };
            // Each family prefers another node, as Pinnace spreads addresses; who has one keeps it.
            let place = (node + if family == Family::V4 { 0 } else { 1 }) % NODES;
            format!(
                "vrrp_instance {family} {{\n state BACKUP\n interface eth0\n virtual_router_id {}\n priority {}\n advert_int {}\n nopreempt\n \
                 virtual_ipaddress {{\n  {}/{length} dev eth0\n }}\n}}\n",
                if family == Family::V4 { 51 } else { 52 },
                100 - 10 * place,
                self.interval,
                self.vip(family),
            )
        };
        let families: String = Family::ALL.map(instance).concat();
        // The kernel kills its child after 10 ms without a rest (vrrp_rlimit_rttime), and the
        // parent starts another. That is left as it is: it happened at a start and after
        // stalls only, never while another took over, and a child that may run for 200 ms answers
        // each of the old advertisements first, while clients wait for 130 ms (p50 at 30 ms, 16 ms
        // otherwise).
        format!(
            "global_defs {{\n router_id node-{}\n vrrp_version 3\n vrrp_rt_priority 50\n}}\n{families}",
            node + 1
        )
    }
}

impl Drop for Keepalived {
    fn drop(&mut self) {
        for node in 0..NODES {
            self.signal(node, Signal::KILL);
        }
        for child in self.children.iter_mut().flatten() {
            let _ = child.wait();
        }
    }
}

/// Every node forwards to all three pods and hides the client from those of the others.
fn rules(trio: &Trio) -> String {
    let rule = |family: Family| {
        let word = if family == Family::V4 { "ip" } else { "ip6" };
        let pods: Vec<String> = trio
            .pods
            .iter()
            .enumerate()
            .map(|(n, pod)| format!("{n} : {} . {}", pod.address(family), POD_PORTS[0]))
            .collect();
        format!(
            "add rule inet front in {word} daddr {} udp dport {PORT} dnat {word} addr . port to numgen random mod {} map {{ {} }}\n",
            lan(family, 200),
            pods.len(),
            pods.join(", ")
        )
    };
    let mut text = "add table inet front\n\
        add chain inet front in { type nat hook prerouting priority -100; }\n\
        add chain inet front out { type nat hook postrouting priority 100; }\n\
        add rule inet front out oifname eth0 ct status dnat masquerade\n"
        .to_owned();
    Family::ALL.into_iter().for_each(|family| text.push_str(&rule(family)));
    text
}
