//! A Pinnace process in a lab: start, readiness, metrics, memory and CPU.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::lab::{InNetns, Netns};
use crate::manifests::{Manifests, NODE};

const LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7466);
/// The largest lab must be ready after this.
const PATIENCE: Duration = Duration::from_secs(60);

/// The release binary, or what PINNACE_BIN names.
pub fn binary() -> String {
    std::env::var("PINNACE_BIN")
        .unwrap_or_else(|_| "target/x86_64-unknown-linux-musl/release/pinnace".into())
}

/// A running daemon; killed on drop.
pub struct Daemon {
    child: Child,
    place: InNetns,
    /// What it serves.
    pub manifests: Manifests,
    /// From before exec until /readyz answered 200.
    pub ready_after: Duration,
}

/// Memory of the process, KiB.
pub struct Memory {
    /// Highest resident set so far (VmHWM).
    pub peak: f64,
    /// Resident now (VmRSS).
    pub resident: f64,
    /// Of that, what is not pages of the binary (RssAnon).
    pub anonymous: f64,
}

/// What it used since it started.
#[derive(Clone, Copy)]
pub struct Usage {
    /// Time on a CPU.
    pub cpu: Duration,
    /// Context switches.
    pub switches: u64,
}

impl Daemon {
    /// Starts it and waits until it says it is ready.
    pub fn start(netns: &Netns, manifests: Manifests) -> Result<Daemon, String> {
        let log = manifests.dir().with_file_name("log");
        let file = fs::File::create(&log).map_err(|e| format!("{}: {e}", log.display()))?;
        let mut command = netns.command(&binary());
        // Settings of the caller are not what is measured.
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PINNACE_"))
        {
            command.env_remove(name);
        }
        // VIPs from the client's subnet; that of the measured Service is kept for it. Nobody else
        // is there to be probed for.
        command
            .env("PINNACE_MANIFESTS", manifests.dir())
            .env("PINNACE_STATE_DIR", manifests.state())
            .env("PINNACE_NODE_NAME", NODE);
        command
            .env("PINNACE_POOLS", "lan=10.91.16.1-10.91.63.250;kept!=10.91.15.1-10.91.15.9")
            .env("PINNACE_PROBE", "0")
            .env("PINNACE_LISTEN", LISTEN.to_string());
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().map_err(|e| e.to_string())?)
            .stderr(file);
        let start = Instant::now();
        let child = command.spawn().map_err(|e| format!("{}: {e}", binary()))?;
        let mut daemon =
            Daemon { child, place: netns.place(), manifests, ready_after: Duration::ZERO };
        let ready = daemon.place.enter(|| {
            while start.elapsed() < PATIENCE {
                if get("/readyz").is_ok() {
                    return Some(start.elapsed());
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            None
        });
        match ready {
            Some(after) => daemon.ready_after = after,
            None => {
                let text = fs::read_to_string(&log).unwrap_or_default();
                let tail: Vec<_> = text.lines().rev().take(20).collect();
                return Err(format!(
                    "not ready after {PATIENCE:?}; {:?}; last lines of its log, newest first:\n{}",
                    daemon.child.try_wait(),
                    tail.join("\n")
                ));
            }
        }
        Ok(daemon)
    }

    /// Waits until it has been quiet for a second: announcements after a start come in bursts for
    /// several seconds.
    pub fn settle(&self) {
        let end = Instant::now() + Duration::from_secs(20);
        let mut before = self.usage();
        while Instant::now() < end {
            std::thread::sleep(Duration::from_secs(1));
            let now = self.usage();
            if now.cpu - before.cpu < Duration::from_millis(5) {
                return;
            }
            before = now;
        }
    }

    /// Memory now.
    pub fn memory(&self) -> Memory {
        let text = self.proc("status");
        let field = |name| number_after(&text, name).unwrap_or(f64::NAN);
        Memory { peak: field("VmHWM:"), resident: field("VmRSS:"), anonymous: field("RssAnon:") }
    }

    /// CPU time and context switches of all its threads.
    pub fn usage(&self) -> Usage {
        let (mut cpu, mut switches) = (0, 0);
        for task in
            fs::read_dir(format!("/proc/{}/task", self.child.id())).into_iter().flatten().flatten()
        {
            let read = |name| fs::read_to_string(task.path().join(name)).unwrap_or_default();
            // Nanoseconds on a CPU: finer than the ticks of utime and stime.
            cpu += read("schedstat").split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
            let status = read("status");
            switches += ["\nvoluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"]
                .iter()
                .filter_map(|f| number_after(&status, f))
                .sum::<f64>() as u64;
        }
        Usage { cpu: Duration::from_nanos(cpu), switches }
    }

    /// The sum (s) and count of a histogram in /metrics, over all its labels.
    pub fn histogram(&self, name: &str) -> Option<(f64, f64)> {
        let text = self.place.enter(|| get("/metrics")).ok()?;
        let total = |suffix: &str| {
            let samples = text
                .lines()
                .filter(|l| l.strip_prefix(name).is_some_and(|l| l.starts_with(suffix)));
            let values: Vec<f64> =
                samples.filter_map(|l| l.rsplit(' ').next()?.parse().ok()).collect();
            (!values.is_empty()).then(|| values.iter().sum())
        };
        Some((total("_sum")?, total("_count")?))
    }

    fn proc(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap_or_default()
    }

    /// SIGKILL: the rules stay, as after a crash, and go with the lab.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The body of a 200 answer.
fn get(path: &str) -> Result<String, String> {
    let mut socket =
        TcpStream::connect_timeout(&LISTEN, Duration::from_secs(2)).map_err(|e| e.to_string())?;
    let mut answer = String::new();
    socket.set_read_timeout(Some(Duration::from_secs(10))).map_err(|e| e.to_string())?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    socket
        .write_all(request.as_bytes())
        .and_then(|()| socket.read_to_string(&mut answer))
        .map_err(|e| e.to_string())?;
    if answer.starts_with("HTTP/1.1 200") { Ok(answer) } else { Err(answer) }
}

fn number_after(text: &str, name: &str) -> Option<f64> {
    text.split_once(name)?.1.split_whitespace().next()?.parse().ok()
}
