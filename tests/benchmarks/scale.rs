//! What a size costs: cold start, memory, an endpoint change, an idle second, a listing.

use std::time::{Duration, Instant};

use crate::daemon::Daemon;
use crate::floor::Floor;
use crate::lab::{Lab, Netns};
use crate::manifests::{Layout, Manifests, Size};
use crate::monitor::Monitor;
use crate::report::{Report, median, quantile, row};
use crate::rules;

/// How much to measure.
pub struct Effort {
    /// Cold starts in each layout.
    pub starts: usize,
    /// Changes of one endpoint.
    pub changes: usize,
    /// Length of the idle time.
    pub idle: Duration,
}

/// Goals that hold for a size.
#[derive(Clone, Copy, Default)]
pub struct Goals {
    /// ms
    pub change: Option<f64>,
    /// ms, from exec to ready
    pub start: Option<f64>,
    /// ms, of it in the kernel
    pub kernel: Option<f64>,
    /// MiB
    pub memory: Option<f64>,
    /// % of a core
    pub idle: Option<f64>,
}

const MS: f64 = 1e3;

/// Measures one size; without `pinnace` the controls alone.
pub fn measure(
    report: &mut Report,
    prefix: &str,
    size: Size,
    pinnace: bool,
    effort: &Effort,
    goals: Goals,
) -> Result<(), String> {
    report.section(&format!("{size} services × endpoints"));
    let control = control(report, prefix, size, effort)?;
    if !pinnace {
        return Ok(());
    }
    for layout in [Layout::Single, Layout::Hundreds] {
        let label =
            if layout == Layout::Single { "JSON, a file per object" } else { "YAML, 100 per file" };
        let (mut ready, mut kernel, mut peak) = (Vec::new(), Vec::new(), Vec::new());
        for start in 0..effort.starts {
            let name = format!("{prefix}s{start}");
            let lab = Lab::new(&name)?;
            let daemon = Daemon::start(&lab.node, Manifests::write(&name, size, layout, false)?)?;
            ready.push(daemon.ready_after.as_secs_f64() * MS);
            kernel.extend(
                daemon.histogram("pinnace_ruleset_apply_duration_seconds").map(|(sum, _)| sum * MS),
            );
            peak.push(daemon.memory().peak / 1024.0);
        }
        report.add(
            row(format!("cold start, {label}"), median(&mut ready), "ms")
                .goal(goals.start)
                .with("runs", ready.clone()),
        );
        let figure =
            row("  of it rules into the kernel", median(&mut kernel), "ms").goal(goals.kernel);
        report.add(
            figure.against("nft -f of as many elements", control.load).with("runs", kernel.clone()),
        );
        report.add(
            row(format!("  process, peak, {label}"), median(&mut peak), "MiB").goal(goals.memory),
        );
    }
    let lab = Lab::new(&format!("{prefix}r"))?;
    let before = settled_kernel_memory();
    let mut daemon = Daemon::start(
        &lab.node,
        Manifests::write(&format!("{prefix}r"), size, Layout::Hundreds, false)?,
    )?;
    daemon.settle();
    let sets = (kernel_memory() - before) / 1024.0;
    let figure = row("kernel memory (slab + vmalloc + percpu, approximate)", sets, "MiB");
    // Below this it is noise: the rest of the machine allocates too.
    report.add(if control.memory < 1.0 {
        figure
    } else {
        figure.against("by nft -f", control.memory)
    });
    let memory = daemon.memory();
    report.add(
        row("process, steady (RSS)", memory.resident / 1024.0, "MiB")
            .goal(goals.memory)
            .with("anonymous_mib", memory.anonymous / 1024.0),
    );
    idle(report, &daemon, effort.idle, goals);
    // In turns with the control, so that both see the same of what the host takes.
    let mut floor = Floor::new(&format!("{prefix}f"), size)?;
    changes(report, &lab.node, &mut daemon, &mut floor, effort.changes, goals, &control)?;
    drop(floor);
    idle(report, &daemon, effort.idle, goals);
    let memory = daemon.memory();
    report.add(
        row("process after the changes (RSS)", memory.resident / 1024.0, "MiB")
            .goal(goals.memory)
            .with("peak_mib", memory.peak / 1024.0),
    );
    list(report, &lab.node, &control)
}

/// What a table of this size costs without Pinnace.
struct Control {
    load: f64,
    memory: f64,
    list: [f64; 2],
    /// One element replaced by `nft -f`, p50 and p99.
    change: [f64; 2],
}

fn control(
    report: &mut Report,
    prefix: &str,
    size: Size,
    effort: &Effort,
) -> Result<Control, String> {
    let text = rules::nft_of_size(size.services, size.endpoints);
    let (mut load, mut memory, mut list) = (Vec::new(), Vec::new(), [f64::NAN; 2]);
    let mut change = Vec::new();
    for run in 0..effort.starts {
        let lab = Lab::new(&format!("{prefix}c{run}"))?;
        let before = settled_kernel_memory();
        let start = Instant::now();
        rules::load(&lab.node, "nft", &["-f", "-"], &text)?;
        load.push(start.elapsed().as_secs_f64() * MS);
        memory.push((kernel_memory() - before) / 1024.0);
        if run == 0 {
            for n in 0..effort.changes / 5 {
                let start = Instant::now();
                rules::load(&lab.node, "nft", &["-f", "-"], &rules::nft_change(n))?;
                change.push(start.elapsed().as_secs_f64() * MS);
            }
            list = LISTS.map(|args| {
                lab.node.timed("nft", args).map_or(f64::NAN, |(took, _)| took.as_secs_f64() * MS)
            });
        }
    }
    // What earlier runs gave back to the slabs is not seen when it is taken again: the largest run
    // is nearest to the truth.
    let control = Control {
        load: median(&mut load),
        memory: quantile(&mut memory, 1.0),
        list,
        change: [median(&mut change), quantile(&mut change, 0.99)],
    };
    report.add(
        row("control: nft -f of as many elements", control.load, "ms")
            .with("kernel_memory_mib", control.memory)
            .with("list_ms", control.list.to_vec()),
    );
    Ok(control)
}

/// See [`Floor`].
const LEAST: &str = "inotify and one element, nothing else";
const LISTS: [&[&str]; 2] = [&["list", "ruleset"], &["-j", "list", "ruleset"]];

fn list(report: &mut Report, node: &Netns, control: &Control) -> Result<(), String> {
    for (args, control) in LISTS.iter().zip(control.list) {
        let (took, kib) = node.timed("nft", args)?;
        let figure = row(format!("nft {}", args.join(" ")), took.as_secs_f64() * MS, "ms")
            .saying(format!("{:.0} MiB", kib as f64 / 1024.0));
        report
            .add(figure.against("hand-written", control).with("nft_peak_mib", kib as f64 / 1024.0));
    }
    Ok(())
}

fn idle(report: &mut Report, daemon: &Daemon, period: Duration, goals: Goals) {
    let before = daemon.usage();
    std::thread::sleep(period);
    let after = daemon.usage();
    let percent = (after.cpu - before.cpu).as_secs_f64() / period.as_secs_f64() * 100.0;
    let switches = (after.switches - before.switches) as f64 / period.as_secs_f64();
    report.add(
        row(format!("idle for {period:?}"), percent, "% core")
            .goal(goals.idle)
            .with("context_switches_per_second", switches),
    );
}

fn changes(
    report: &mut Report,
    node: &Netns,
    daemon: &mut Daemon,
    floor: &mut Floor,
    count: usize,
    goals: Goals,
    control: &Control,
) -> Result<(), String> {
    const SYNC: &str = "pinnace_sync_duration_seconds";
    let mut monitor = Monitor::new(node)?;
    let before = daemon.histogram(SYNC);
    let (mut all, mut least, mut elements) = (Vec::new(), Vec::new(), 0);
    let mut kinds = std::collections::BTreeMap::<_, Vec<f64>>::new();
    for n in 0..count {
        let change = daemon.manifests.next_change()?;
        // Not in step with any timer.
        let pause =
            || std::thread::sleep(Duration::from_micros(5_000 + (n as u64 * 7_919) % 15_000));
        pause();
        least.push(floor.change()? * MS);
        pause();
        monitor.drain();
        let start = Instant::now();
        change.apply()?;
        let commit = monitor.wait(change.touched).ok_or_else(|| {
            format!("change {n} ({} {}) never reached the kernel", change.kind, change.touched)
        })?;
        let took = (commit.at - start).as_secs_f64() * MS;
        all.push(took);
        kinds.entry(change.kind).or_default().push(took);
        elements += commit.elements;
    }
    let p99 = quantile(&mut all, 0.99);
    let mut figure =
        row(format!("rename(2) → committed, p99 of {count}"), p99, "ms").goal(goals.change);
    for (kind, samples) in &mut kinds {
        figure = figure
            .with(&format!("{kind}_p50_ms"), median(samples))
            .with(&format!("{kind}_p99_ms"), quantile(samples, 0.99));
    }
    let floors = [median(&mut least), quantile(&mut least, 0.99)];
    report.add(
        row("rename(2) → committed, p50", median(&mut all), "ms")
            .against(LEAST, floors[0])
            .against("nft -f of one element", control.change[0]),
    );
    report.add(
        figure
            .against(LEAST, floors[1])
            .against("nft -f of one element", control.change[1])
            .with("max_ms", quantile(&mut all, 1.0))
            .with(
                "kinds_ms",
                kinds
                    .into_iter()
                    .map(|(kind, samples)| (kind.to_string(), samples.into()))
                    .collect::<serde_json::Map<_, _>>(),
            )
            .with("elements_per_change", elements as f64 / count as f64),
    );
    if let (Some((sum0, n0)), Some((sum1, n1))) = (before, daemon.histogram(SYNC)) {
        report.add(row(
            format!("  as Pinnace sees it, mean of {}", n1 - n0),
            (sum1 - sum0) / (n1 - n0) * MS,
            "ms",
        ));
    }
    Ok(())
}

/// The same once it stops moving: namespaces that were deleted are freed in the background.
fn settled_kernel_memory() -> f64 {
    let mut before = kernel_memory();
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(250));
        let now = kernel_memory();
        if (now - before).abs() < 64.0 {
            return now;
        }
        before = now;
    }
    before
}

/// Unreclaimable slab, vmalloc and per-CPU memory of the whole kernel, KiB.
fn kernel_memory() -> f64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let fields = ["SUnreclaim:", "VmallocUsed:", "Percpu:"];
    let value = |line: &str| {
        fields
            .iter()
            .find_map(|f| line.strip_prefix(f)?.split_whitespace().next()?.parse::<f64>().ok())
    };
    text.lines().filter_map(value).sum()
}
