//! With a real API server as source: start, memory, writes, and the way of one endpoint from the
//! API into the kernel, beside kube-proxy in nftables mode: the same change, seen by both at once,
//! each in a network namespace of its own.

use std::time::{Duration, Instant};
use std::{fs, thread};

use crate::manifests::{Manifests, Size};
use crate::monitor::{Commit, Monitor};
use crate::netlab::control_plane::{Api, ControlPlane, Mark, Options, ProxyMode};
use crate::netlab::{Lab, Running};
use crate::objects;
use crate::report::{Report, quantile, row};

/// How much to measure.
pub struct Effort {
    /// Changes of one endpoint.
    pub changes: usize,
    /// Length of the time at rest in which writes are counted.
    pub idle: Duration,
}

/// For anything that is waited for at the largest size.
const PATIENCE: Duration = Duration::from_secs(300);
/// kube-proxy programs the kernel once a second at most. Its answer to a change that comes sooner
/// would show that, and not its speed.
const BETWEEN: Duration = Duration::from_millis(1_100);
const USER: &str = "system:serviceaccount:pinnace:pinnace";
const MS: f64 = 1e3;

/// Measures one size; `memory` is the goal in MiB.
pub fn measure(
    report: &mut Report,
    size: Size,
    effort: &Effort,
    memory: Option<f64>,
) -> Result<(), String> {
    report.section(&format!("{size} services × endpoints from the API server"));
    let lab = Lab::new(0, 1);
    let plane = ControlPlane::start(Options::on(&lab.client2).without_controllers());
    plane.node_of(&lab.node);
    // VIPs are from a subnet of the node's.
    lab.node.ns.ip(&["address add 10.90.0.1/16 dev eth0"]);
    let admin = plane.kubeconfig("admin");
    let took = objects::write(&lab.client2.ns, &admin, size)?;
    report.note(&format!(
        "the objects were written over several connections in {:.0} s",
        took.as_secs_f64()
    ));

    let begin = plane.mark();
    let first = start(&lab, &plane)?;
    report.add(row("first start, exec to ready", first.ready.as_secs_f64() * MS, "ms"));
    let written = all_written(&plane, begin, size)?;
    report.add(
        row("  all statuses written after", first.since.elapsed().as_secs_f64(), "s")
            .with("writes", written.0.clone()),
    );
    report.note(&format!("API writes until then: {}", written.1));
    let used = process(first.running.id());
    report.add(
        row("  process, peak", used.peak, "MiB").goal(memory).with("resident_mib", used.resident),
    );
    drop(first);

    let again = start(&lab, &plane)?;
    let used = process(again.running.id());
    report.add(row("second start, exec to ready", again.ready.as_secs_f64() * MS, "ms"));
    report.add(row("  CPU time until ready", used.cpu.as_secs_f64() * MS, "ms"));
    thread::sleep(Duration::from_secs(10));
    let used = process(again.running.id());
    report.add(row("  process, peak", used.peak, "MiB").goal(memory));
    report.add(
        row("  process, steady (RSS)", used.resident, "MiB")
            .goal(memory)
            .with("anonymous_mib", used.anonymous),
    );
    let (mark, cpu) = (plane.mark(), used.cpu);
    thread::sleep(effort.idle);
    let writes = writes(&plane, mark);
    let rate = writes.len() as f64 / effort.idle.as_secs_f64();
    report.add(
        row(format!("  API writes at rest for {:?}", effort.idle), rate, "/s")
            .goal(Some(0.2))
            .with("writes", kinds(&writes)),
    );
    let busy =
        (process(again.running.id()).cpu - cpu).as_secs_f64() / effort.idle.as_secs_f64() * 100.0;
    report.add(row("  CPU at rest", busy, "% core"));

    let beside = lab.node2.as_ref().ok_or("the lab has a second node")?;
    let begin = Instant::now();
    // It takes the Node for its own: one more would be one more for Pinnace.
    let proxy = plane.kube_proxy(&beside.ns, "node-1", ProxyMode::Nftables);
    let healthy = begin.elapsed();
    let mut monitors = vec![
        Monitor::within(&lab.node.ns, PATIENCE / 5)?,
        Monitor::within(&beside.ns, PATIENCE / 5)?,
    ];
    let mut changes = lab.client2.ns.enter(|| Changes::new(&admin, size))?;
    let proxy = match lab.client2.ns.enter(|| changes.until_seen(&mut monitors))? {
        Some(after) => {
            report.note(&format!("changes were seen in both kernels {after:.1} s after kube-proxy had said that it is healthy"));
            Some(proxy)
        }
        None => {
            let minutes = PATIENCE.as_secs() / 60;
            report.note(&format!("no change had reached the kernel of kube-proxy after {minutes} minutes: from here on without it"));
            drop(proxy);
            monitors.pop();
            None
        }
    };
    let samples = lab.client2.ns.enter(|| changes.sample(&mut monitors, effort.changes))?;
    samples.report(report, effort.changes);
    let ours = process(again.running.id());
    let [mut resident, mut peak] =
        [("Pinnace after the changes (RSS)", ours.resident), ("  peak", ours.peak)]
            .map(|(name, used)| row(name, used, "MiB").goal(memory));
    if let Some(proxy) = proxy {
        let control = process(proxy.process.id());
        (resident, peak) = (
            resident.against("kube-proxy", control.resident),
            peak.against("kube-proxy without its nft", control.peak),
        );
        report.add(
            row("kube-proxy, exec to healthy", healthy.as_secs_f64() * MS, "ms")
                .with("cpu_ms_in_all", control.cpu.as_secs_f64() * MS),
        );
    }
    report.add(resident);
    report.add(peak);
    Ok(())
}

struct Started {
    running: Running,
    since: Instant,
    ready: Duration,
}

fn start(lab: &Lab, plane: &ControlPlane) -> Result<Started, String> {
    let pinnace = lab
        .pinnace_on(&lab.node)
        .unset("PINNACE_MANIFESTS")
        .set("PINNACE_KUBECONFIG", plane.kubeconfig("pinnace").display());
    let pinnace = pinnace
        .set("PINNACE_NAMESPACE", "pinnace")
        .set("PINNACE_POOLS", "lan=10.90.16.1-10.90.63.250");
    let since = Instant::now();
    let running = pinnace.start();
    loop {
        match running.pinnace().http("/readyz") {
            Ok((200, _)) => return Ok(Started { running, since, ready: since.elapsed() }),
            other if since.elapsed() > PATIENCE => return Err(format!("not ready: {other:?}")),
            _ => thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn writes(plane: &ControlPlane, since: Mark) -> Vec<String> {
    let requests = plane.requests(since).into_iter();
    let written = requests.filter(|r| {
        r.user == USER && r.code < 300 && !["get", "list", "watch"].contains(&&*r.verb)
    });
    written.map(|r| format!("{} {}", r.verb, r.resource)).collect()
}

fn kinds(writes: &[String]) -> serde_json::Map<String, serde_json::Value> {
    let mut counted = std::collections::BTreeMap::new();
    writes.iter().for_each(|write| *counted.entry(write.clone()).or_insert(0) += 1);
    counted.into_iter().map(|(kind, count)| (kind, count.into())).collect()
}

/// Waits until every Service has been written, and says what was written until then.
fn all_written(
    plane: &ControlPlane,
    since: Mark,
    size: Size,
) -> Result<(serde_json::Map<String, serde_json::Value>, String), String> {
    let begin = Instant::now();
    loop {
        let counted = kinds(&writes(plane, since));
        let statuses = counted
            .get("patch services/status")
            .and_then(serde_json::Value::as_u64)
            .unwrap_or_default();
        let shown = counted
            .iter()
            .map(|(kind, count)| format!("{count} {kind}"))
            .collect::<Vec<_>>()
            .join(", ");
        if statuses >= u64::from(size.services) {
            return Ok((counted, shown));
        }
        if begin.elapsed() > PATIENCE {
            return Err(format!("not all statuses were written: {shown}"));
        }
        // Reading the whole log of so many requests is work too.
        thread::sleep(Duration::from_secs(1));
    }
}

/// Changes of one slice after the other.
struct Changes {
    api: Api,
    manifests: Manifests,
    made: u64,
}

/// One of them.
struct Round {
    kind: &'static str,
    touched: std::net::Ipv4Addr,
    sent: Instant,
    /// From sent to answered.
    written: Duration,
    /// When each kernel had it.
    commits: Vec<Option<Commit>>,
}

impl Changes {
    fn new(kubeconfig: &std::path::Path, size: Size) -> Result<Changes, String> {
        Ok(Changes {
            api: Api::open(kubeconfig.into())?,
            manifests: Manifests::changing(size),
            made: 0,
        })
    }

    fn round(&mut self, monitors: &mut [Monitor]) -> Result<Round, String> {
        let change = self.manifests.make_change();
        self.made += 1;
        thread::sleep(BETWEEN + Duration::from_micros((self.made * 7_919) % 100_000));
        monitors.iter_mut().for_each(Monitor::drain);
        let (written, commits) = thread::scope(|scope| {
            let waiting: Vec<_> = monitors
                .iter_mut()
                .map(|monitor| scope.spawn(|| monitor.wait(change.touched)))
                .collect();
            let written = objects::apply(&self.api, &change);
            (written, waiting.into_iter().map(|waiting| waiting.join().ok().flatten()).collect())
        });
        let (sent, written) = written?;
        Ok(Round { kind: change.kind, touched: change.touched, sent, written, commits })
    }

    /// kube-proxy says that it is healthy before the first rules of a large cluster are in the
    /// kernel, and there may be more of them than the kernel keeps to tell: changes do not
    /// count before one has been seen in both places. In how many seconds it was; None: not in
    /// time.
    fn until_seen(&mut self, monitors: &mut [Monitor]) -> Result<Option<f64>, String> {
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            if self.round(monitors)?.commits.iter().all(Option::is_some) {
                return Ok(Some(begin.elapsed().as_secs_f64()));
            }
        }
        Ok(None)
    }

    /// The first monitor is Pinnace's, the second kube-proxy's.
    fn sample(&mut self, monitors: &mut [Monitor], count: usize) -> Result<Samples, String> {
        let mut samples = Samples::default();
        for _ in 0..count {
            let Round { kind, touched, sent, written, commits } = self.round(monitors)?;
            samples.written.push(written.as_secs_f64() * MS);
            let kinds = samples.kinds.entry(kind).or_default();
            for (who, commit) in commits.into_iter().enumerate() {
                let commit = commit.ok_or_else(|| {
                    format!("{kind} {touched} never reached the kernel of {}", NAMES[who])
                })?;
                let took = (commit.at - sent).as_secs_f64() * MS;
                samples.reached[who].push(took);
                kinds[who].push(took);
                samples.messages[who] += commit.messages;
            }
        }
        Ok(samples)
    }
}

const NAMES: [&str; 2] = ["Pinnace", "kube-proxy"];

/// Milliseconds from before a change was sent to the API until it was in each kernel.
#[derive(Default)]
struct Samples {
    written: Vec<f64>,
    reached: [Vec<f64>; 2],
    kinds: std::collections::BTreeMap<&'static str, [Vec<f64>; 2]>,
    messages: [usize; 2],
}

impl Samples {
    fn report(mut self, report: &mut Report, count: usize) {
        let beside = !self.reached[1].is_empty();
        let write = row(
            "a change of one slice, sent to answered, p50",
            quantile(&mut self.written, 0.5),
            "ms",
        );
        report.add(write.with("p99_ms", quantile(&mut self.written, 0.99)));
        for (name, share) in [("p50", 0.5), ("p99", 0.99), ("longest", 1.0)] {
            let [ours, theirs] = &mut self.reached;
            let mut figure = row(
                format!("  sent → in the kernel, {name} of {count}"),
                quantile(ours, share),
                "ms",
            );
            if beside {
                figure = figure.against("kube-proxy", quantile(theirs, share));
            }
            for (kind, [ours, theirs]) in &mut self.kinds {
                figure = figure.with(&format!("{kind}_ms"), quantile(ours, share));
                if beside {
                    figure = figure.with(&format!("{kind}_kube_proxy_ms"), quantile(theirs, share));
                }
            }
            report.add(figure);
        }
        let [ours, theirs] = self.messages.map(|messages| messages as f64 / count as f64);
        let messages = row("  messages of the kernel about a change", ours, "");
        report.add(if beside { messages.against("kube-proxy", theirs) } else { messages });
    }
}

/// What a process uses; memory in MiB.
struct Usage {
    peak: f64,
    resident: f64,
    anonymous: f64,
    cpu: Duration,
}

fn process(id: u32) -> Usage {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let field = |name: &str| -> f64 {
        let value = status
            .split_once(name)
            .and_then(|(_, rest)| rest.split_whitespace().next()?.parse::<f64>().ok());
        value.map_or(f64::NAN, |kib| kib / 1024.0)
    };
    let mut nanoseconds = 0;
    for task in fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten() {
        let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        nanoseconds +=
            text.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or_default();
    }
    Usage {
        peak: field("VmHWM:"),
        resident: field("VmRSS:"),
        anonymous: field("RssAnon:"),
        cpu: Duration::from_nanos(nanoseconds),
    }
}
