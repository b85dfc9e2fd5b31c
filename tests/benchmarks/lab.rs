//! A lab of three network namespaces in a row, client — node — pods, joined by veth pairs, and ways
//! to act inside them.
//!
//! Addresses are the same in every lab, for labs never see each other: client 10.91.0.2/16, node
//! 10.91.0.1/16 and 10.92.0.1/24, pods behind 10.92.0.2. VIPs come from the client's subnet;
//! [`SOURCES`] is routed to the client, so that packets can have many sources.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Pods that answer for the measured Service.
pub const PODS: u16 = 32;
/// Where the measured Service is reached.
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 91, 15, 1);
/// The client's own address.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 91, 0, 2);
/// First two octets of the clients behind the client namespace.
pub const SOURCES: [u8; 2] = [10, 93];
/// The node's interface towards the client, and its hardware address.
pub const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0x91, 1];
/// The client's own.
pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0x91, 2];

/// The n-th pod, 0..[`PODS`].
pub fn pod(n: u16) -> Ipv4Addr {
    Ipv4Addr::new(10, 92, 1, 10 + (n % PODS) as u8)
}

/// A network namespace with a name; deleted on drop.
pub struct Netns {
    name: String,
    place: InNetns,
}

/// A way into a namespace.
#[derive(Clone)]
pub struct InNetns(Arc<File>);

impl Netns {
    fn new(name: String) -> Result<Netns, String> {
        shell(&format!("ip netns add {name} && ip -n {name} link set lo up"))?;
        let file = File::open(format!("/run/netns/{name}"))
            .map_err(|e| format!("/run/netns/{name}: {e}"))?;
        Ok(Netns { name, place: InNetns(Arc::new(file)) })
    }

    /// As `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The way into it.
    pub fn place(&self) -> InNetns {
        self.place.clone()
    }

    /// As [`InNetns::enter`].
    pub fn enter<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        self.place.enter(act)
    }

    /// A command that will run in this namespace and dies with the benchmark.
    pub fn command(&self, program: &str) -> Command {
        let fd = self.place.0.as_raw_fd();
        let mut command = Command::new(program);
        // SAFETY: setns and prctl are async-signal-safe and take no pointers.
        unsafe {
            command.pre_exec(move || {
                if libc::setns(fd, libc::CLONE_NEWNET) != 0
                    || libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0
                {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            })
        };
        command
    }

    /// Runs a program here to its end, its output thrown away: time taken and peak memory (KiB).
    pub fn timed(&self, program: &str, args: &[&str]) -> Result<(Duration, i64), String> {
        let start = Instant::now();
        let child = self
            .command(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|e| format!("{program}: {e}"))?;
        let mut status = 0;
        // SAFETY: rusage is plain integers, for which zero is a valid value.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are to live locals of the right types; the child is ours and waited
        // for here only.
        let waited = unsafe { libc::wait4(child.id() as i32, &mut status, 0, &mut usage) };
        let took = start.elapsed();
        let status = <ExitStatus as std::os::unix::process::ExitStatusExt>::from_raw(status);
        if waited < 0 || !status.success() {
            return Err(format!("{program} {}: {status}", args.join(" ")));
        }
        Ok((took, usage.ru_maxrss))
    }
}

impl InNetns {
    /// Runs `act` on a thread of its own inside the namespace; sockets made there stay there.
    pub fn enter<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let fd = self.0.as_raw_fd();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                // SAFETY: setns takes no pointers; it moves this thread only, which ends with the
                // scope.
                let moved = unsafe { libc::setns(fd, libc::CLONE_NEWNET) };
                assert_eq!(moved, 0, "setns: {}", std::io::Error::last_os_error());
                act()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// Runs a shell line; its error output is the error.
pub fn shell(line: &str) -> Result<(), String> {
    let out = Command::new("sh").args(["-ec", line]).output().map_err(|e| format!("sh: {e}"))?;
    if out.status.success() {
        Ok(())
    } else {
        Err(format!("{line}\n{}", String::from_utf8_lossy(&out.stderr)))
    }
}

/// Client, node and pods.
pub struct Lab {
    /// Holds 10.91.0.2 and, by route, everything in [`SOURCES`].
    pub client: Netns,
    /// Where rules are tried.
    pub node: Netns,
    /// Holds the addresses of all pods; TCP SYNs to port 8080 end in its ingress hook.
    pub pods: Netns,
}

impl Lab {
    /// Namespaces are named `prefix` + c, n, p.
    pub fn new(prefix: &str) -> Result<Lab, String> {
        let lab = Lab {
            client: Netns::new(format!("{prefix}c"))?,
            node: Netns::new(format!("{prefix}n"))?,
            pods: Netns::new(format!("{prefix}p"))?,
        };
        let (c, n, p) = (lab.client.name(), lab.node.name(), lab.pods.name());
        let addresses: String =
            (0..PODS).map(|i| format!("ip -n {p} addr add {}/32 dev lo\n", pod(i))).collect();
        // IPv6 is off so that the counters of the pods' interface count what is sent and no
        // neighbour discovery.
        shell(&format!(
            "for ns in {c} {n} {p}; do ip netns exec $ns sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 \
                net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1 net.ipv4.ip_forward=1; done
            ip link add up0 netns {n} address {node_mac} type veth peer name eth0 netns {c} address {client_mac}
            ip link add pods0 netns {n} address 02:00:00:00:92:01 type veth peer name eth0 netns {p} address 02:00:00:00:92:02
            ip -n {n} addr add 10.91.0.1/16 dev up0; ip -n {n} addr add 10.92.0.1/24 dev pods0
            ip -n {c} addr add 10.91.0.2/16 dev eth0; ip -n {p} addr add 10.92.0.2/24 dev eth0
            for pair in {n}:up0 {n}:pods0 {c}:eth0 {p}:eth0; do ip -n ${{pair%:*}} link set ${{pair#*:}} up; done
            ip -n {c} route add default via 10.91.0.1; ip -n {p} route add default via 10.92.0.1
            ip -n {n} route add 10.92.1.0/24 via 10.92.0.2; ip -n {n} route add {s0}.{s1}.0.0/16 via 10.91.0.2
            ip -n {n} neigh replace 10.92.0.2 lladdr 02:00:00:00:92:02 dev pods0 nud permanent
            ip -n {n} neigh replace 10.91.0.2 lladdr {client_mac} dev up0 nud permanent
            ip -n {p} neigh replace 10.92.0.1 lladdr 02:00:00:00:92:01 dev eth0 nud permanent
            ip -n {c} neigh replace 10.91.0.1 lladdr {node_mac} dev eth0 nud permanent
            ip -n {c} neigh replace {VIP} lladdr {node_mac} dev eth0 nud permanent
            {addresses}
            ip netns exec {p} nft 'table netdev sink {{ chain in {{ type filter hook ingress device eth0 priority 0; tcp dport 8080 drop; }}; }}'",
            node_mac = mac(NODE_MAC),
            client_mac = mac(CLIENT_MAC),
            s0 = SOURCES[0],
            s1 = SOURCES[1],
        ))?;
        Ok(lab)
    }

    /// Forgets every connection the node tracks, and waits a moment for the kernel to free them, so
    /// that the next to be measured need not.
    pub fn forget_connections(&self) {
        let _ = self
            .node
            .command("conntrack")
            .arg("-F")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|b| format!("{b:02x}")).join(":")
}

/// What a shell line prints, trimmed.
pub fn shell_output(line: &str) -> Result<String, String> {
    let out = Command::new("sh").args(["-ec", line]).output().map_err(|e| format!("sh: {e}"))?;
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_string())
}
