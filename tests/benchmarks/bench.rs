//! What Pinnace costs, measured on a real kernel in namespaces of its own, beside controls in the
//! same run.
//!
//!     scale.rs    per size: cold start, memory, an endpoint change, an idle second, a listing
//! (daemon.rs, manifests.rs, monitor.rs), beside                 tables of that size that nft loads
//! (rules.rs), and the least a change can take (floor.rs)     packets.rs  new connections per
//! second and throughput (syn.rs, stream.rs), against hand-written nft and iptables (rules.rs)
//!     failover.rs three nodes: what a client notices when one fails, beside keepalived (the lab is
//! the tests' own, ../lab)     api.rs      a real API server as source: memory, writes, and its
//! changes on their way into the kernel, beside kube-proxy (objects.rs)     lab.rs      namespaces;
//! report.rs: the table and the JSON file
//!
//! Usage: bench [quick] [controls] [scale|packets|api|failover] [OUTPUT.json]. `quick` measures the
//! smallest size, roughly; `controls` leaves Pinnace out. `failover` and `api` are measured only
//! when asked for: 50 times every fault, or `RUNS`, takes an hour; `api` some 25 minutes.

mod api;
mod daemon;
mod failover;
mod floor;
mod lab;
mod manifests;
mod monitor;
#[path = "../lab/mod.rs"]
mod netlab;
mod objects;
mod packets;
mod report;
mod rules;
mod scale;
mod stream;
mod syn;

use std::process::ExitCode;
use std::time::Duration;

use manifests::Size;
use report::{Report, row};
use scale::Goals;

/// With the memory, in MiB, that the process should keep to.
const SIZES: [(Size, Option<f64>); 3] = [
    (Size { services: 100, endpoints: 300 }, Some(8.0)),
    (Size { services: 1_000, endpoints: 3_000 }, None),
    (Size { services: 5_000, endpoints: 50_000 }, Some(32.0)),
];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| args.iter().any(|a| a == word);
    let (quick, pinnace) = (has("quick"), !has("controls"));
    let output = args.iter().find(|a| a.ends_with(".json")).map_or("bench.json", |s| s);
    let (mode, sizes, ends) = match (quick, has("large")) {
        (true, _) => ("quick", &SIZES[..1], &SIZES[..1]),
        (_, true) => ("large", &SIZES[2..], &SIZES[2..]),
        _ => ("full", &SIZES[..], &[SIZES[0], SIZES[2]][..]),
    };
    let prefix =
        std::env::var("BENCH_PREFIX").unwrap_or_else(|_| format!("pb{}", std::process::id()));

    let mut report = Report::begin(mode);
    if pinnace {
        let bytes = std::fs::metadata(daemon::binary())
            .map_err(|e| format!("{}: {e}", daemon::binary()))?
            .len();
        report.add(row("the binary", bytes as f64 / f64::from(1 << 20), "MiB"));
    }
    if has("failover") {
        let runs = std::env::var("RUNS")
            .map(|text| text.parse().map_err(|_| format!("RUNS={text}: write a number")));
        let some = failover::FAULTS.iter().any(|(word, _)| has(word));
        let faults: Vec<_> = failover::FAULTS
            .iter()
            .filter(|(word, _)| !some || has(word))
            .map(|(_, fault)| *fault)
            .collect();
        failover::measure(
            &mut report,
            runs.unwrap_or(Ok(if quick { 3 } else { 50 }))?,
            &faults,
            pinnace,
        )?;
        return report.write(output);
    }
    if has("api") {
        let effort = api::Effort {
            changes: if quick { 30 } else { 150 },
            idle: Duration::from_secs(if quick { 10 } else { 30 }),
        };
        for (size, memory) in sizes {
            api::measure(&mut report, *size, &effort, *memory)?;
        }
        return report.write(output);
    }
    if !has("packets") {
        for (size, memory) in sizes {
            let goals = Goals {
                change: Some(2.0),
                start: Some(1000.0),
                kernel: Some(150.0),
                memory: *memory,
                idle: Some(0.5),
            };
            let effort = if quick {
                scale::Effort { starts: 2, changes: 60, idle: Duration::from_secs(5) }
            } else {
                scale::Effort { starts: 5, changes: 300, idle: Duration::from_secs(20) }
            };
            scale::measure(&mut report, &prefix, *size, pinnace, &effort, goals)?;
        }
    }
    if !has("scale") {
        let ends: Vec<Size> = ends.iter().map(|(size, _)| *size).collect();
        let effort = if quick {
            packets::Effort { syns: 50_000, rounds: 2, stream: Duration::from_millis(300) }
        } else {
            packets::Effort { syns: 100_000, rounds: 9, stream: Duration::from_millis(500) }
        };
        packets::measure(&mut report, &prefix, &ends, pinnace, &effort)?;
    }
    report.write(output)
}
