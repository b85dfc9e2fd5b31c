//! How long a client waits when the node that answers for an address fails: Pinnace with two sets
//! of timers, keepalived with two, in the same lab under the same questions.
//!
//! Several labs take turns, for after each fault a lab rests until nobody in it is new: one is
//! hit by a fault and watched while the others recover.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pinnace::model::Family;

use crate::netlab::keepalived::Keepalived;
use crate::netlab::trio::{Cluster, Fault, Trio};
use crate::netlab::{Prober, Trace};
use crate::report::{Report, quantile, row};

/// Labs that take turns.
const LABS: usize = 4;
const ALL: [usize; 3] = [0, 1, 2];

/// The contestants.
enum Lab {
    Pinnace(Cluster),
    Keepalived(Keepalived),
}

/// What is compared: a name, how to make it, and what it should reach.
struct Contestant {
    name: &'static str,
    make: fn() -> Lab,
    /// How long a failover may take before watching ends.
    patience: Duration,
    /// The detection time that is set, in milliseconds; Pinnace lengthens it where packets come
    /// late.
    detection: Option<u64>,
    /// Power loss, in milliseconds at the 99th percentile.
    goal: Option<f64>,
}

const CONTESTANTS: [Contestant; 4] = [
    Contestant {
        name: "Pinnace, 50 ms × 3 (default)",
        make: || Lab::Pinnace(Cluster::start(&[])),
        patience: Duration::from_secs(2),
        detection: Some(150),
        goal: Some(250.0),
    },
    Contestant {
        name: "Pinnace, 10 ms × 3",
        make: || {
            Lab::Pinnace(Cluster::start(&[
                ("PINNACE_BFD_INTERVAL", "10ms"),
                ("PINNACE_BFD_MULTIPLIER", "3"),
            ]))
        },
        patience: Duration::from_secs(2),
        detection: Some(30),
        goal: Some(50.0),
    },
    Contestant {
        name: "keepalived, 1 s (default)",
        make: || Lab::Keepalived(Keepalived::start("1")),
        patience: Duration::from_secs(6),
        detection: None,
        goal: None,
    },
    Contestant {
        name: "keepalived, 30 ms",
        make: || Lab::Keepalived(Keepalived::start("0.03")),
        patience: Duration::from_secs(2),
        detection: None,
        goal: None,
    },
];

/// With the word that asks for it alone.
pub const FAULTS: [(&str, Fault); 6] = [
    ("power-loss", Fault::PowerLoss),
    ("killed", Fault::Killed),
    ("carrier-lost", Fault::CarrierLost),
    ("planned-stop", Fault::Terminated),
    ("stalled", Fault::Stopped),
    ("partition", Fault::Parted),
];

/// Figures of one contestant under one fault; times in milliseconds.
#[derive(Default)]
struct Figures {
    gap: Vec<f64>,
    /// Those of [`Figures::gap`] for which nobody had lengthened its detection time.
    unstretched: Vec<f64>,
    /// Questions to the failed owner's address that were never answered.
    lost: Vec<f64>,
    /// From the first question that was sent to the failed node's pod in vain to the last.
    dead_pod: Vec<f64>,
    /// What percentage of the questions was lost that were asked when the address of the failed owner was
    /// answered again.
    later: Vec<f64>,
    /// Answers through a node after it ran again, which nobody should have asked.
    late: Vec<f64>,
    /// Without an answer when the LANs became one again: two nodes had the address until then.
    joined: Vec<f64>,
}

/// Injects each of these faults `runs` times into each contestant.
pub fn measure(
    report: &mut Report,
    runs: usize,
    faults: &[Fault],
    pinnace: bool,
) -> Result<(), String> {
    let mut table = Vec::new();
    for contestant in
        CONTESTANTS.iter().filter(|contestant| pinnace || contestant.name.starts_with("keepalived"))
    {
        report.section(&format!(
            "failover: {}, {runs} runs each, a question per millisecond and family",
            contestant.name
        ));
        let mut labs: Vec<Lab> = (0..LABS.min(runs)).map(|_| (contestant.make)()).collect();
        for fault in faults {
            let mut figures = inject_many(&mut labs, contestant, *fault, runs);
            table.push(add(report, contestant, *fault, &mut figures));
        }
    }
    println!(
        "\n| system | fault | n | gap p50 | gap p99 | gap max | lost p50 | lost max | to a dead pod for, or lost after the gap, p50 | max |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    table.iter().for_each(|line| println!("{line}"));
    Ok(())
}

/// The labs take turns until there are enough runs.
fn inject_many(labs: &mut [Lab], contestant: &Contestant, fault: Fault, runs: usize) -> Figures {
    let (figures, turn, count) =
        (Mutex::new(Figures::default()), Mutex::new(()), AtomicUsize::new(0));
    thread::scope(|scope| {
        for lab in labs {
            let (figures, turn, count) = (&figures, &turn, &count);
            scope.spawn(move || {
                loop {
                    let run = count.fetch_add(1, Ordering::Relaxed);
                    if run >= runs {
                        return;
                    }
                    lab.settle();
                    let _turn = turn.lock().expect("nobody panicked in a turn");
                    let target = Family::ALL[run % Family::ALL.len()];
                    let victim = inject(
                        lab,
                        contestant,
                        fault,
                        target,
                        &mut figures.lock().expect("nobody panicked"),
                    );
                    // In the turn, too: the start of processes would make those late who are
                    // watched.
                    if !passes(fault) {
                        lab.heal(victim, fault);
                    }
                }
            });
        }
    });
    figures.into_inner().expect("nobody panicked")
}

/// Whether the node comes back by itself while the client goes on asking.
fn passes(fault: Fault) -> bool {
    matches!(fault, Fault::Stopped | Fault::Parted)
}

/// Injects the fault into the owner of a family's address and watches. Returns that node.
fn inject(
    lab: &mut Lab,
    contestant: &Contestant,
    fault: Fault,
    target: Family,
    figures: &mut Figures,
) -> usize {
    let owners = Family::ALL.map(|family| lab.owner(family));
    let victim = lab.owner(target);
    let probers = Family::ALL.map(|family| lab.probe(family));
    thread::sleep(Duration::from_millis(300));
    let unstretched =
        contestant.detection.is_some() && lab.detection(victim) == contestant.detection;
    lab.inject(victim, fault);
    let mut resumed = None;
    if passes(fault) {
        thread::sleep(Duration::from_secs(5));
        resumed = Some(Instant::now());
        lab.heal(victim, fault);
    }
    thread::sleep(contestant.patience);
    let traces: Vec<Trace> = probers.into_iter().map(Prober::stop).collect();
    for (trace, owner) in traces.iter().zip(owners) {
        if owner == victim {
            let affected = resumed.map_or_else(|| trace.clone(), |resumed| trace.before(resumed));
            let gap = affected.gap().as_secs_f64() * 1e3;
            figures.gap.push(gap);
            figures.unstretched.extend(unstretched.then_some(gap));
            figures.lost.push(trace.lost() as f64);
            if let Some(resumed) = resumed {
                let after = trace.since(resumed);
                let through: BTreeMap<usize, usize> = after.by(|reply| lab.trio().through(reply));
                match fault {
                    Fault::Parted => figures.joined.push(after.gap().as_secs_f64() * 1e3),
                    _ => {
                        figures.late.push(through.get(&victim).copied().unwrap_or_default() as f64)
                    }
                }
            }
        }
        if matches!(fault, Fault::PowerLoss | Fault::CarrierLost) {
            let time = trace.lost_between().map(|(first, last)| last - first).unwrap_or_default();
            figures.dead_pod.push(time.as_secs_f64() * 1e3);
            let later = trace.silence().map(|(_, end)| trace.since(end));
            if let Some(later) = later.filter(|later| owner == victim && !later.probes.is_empty()) {
                figures.later.push(100.0 * later.lost() as f64 / later.probes.len() as f64);
            }
        }
    }
    victim
}

/// Puts the figures into the report; gives back a line of the table.
fn add(
    report: &mut Report,
    contestant: &Contestant,
    fault: Fault,
    figures: &mut Figures,
) -> String {
    let what = match fault {
        Fault::PowerLoss => "power loss",
        Fault::Killed => "process killed",
        Fault::CarrierLost => "carrier lost",
        Fault::Terminated => "planned stop",
        Fault::Stopped => "stalled 5 s and back",
        Fault::Parted => "cut off 5 s and back",
    };
    let keepalived = contestant.name.starts_with("keepalived");
    let mut all = |name: &str, samples: &mut Vec<f64>, unit, goal: Option<f64>| -> [f64; 3] {
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| quantile(samples, share));
        let figure = row(format!("{what}: {name}, p99"), p99, unit)
            .saying(format!("p50 {p50:.0}, max {max:.0}"))
            .goal(goal);
        report.add(figure.with("p50", p50).with("max", max).with("samples", samples.clone()));
        [p50, p99, max]
    };
    let gap = all(
        "time without an answer",
        &mut figures.gap,
        "ms",
        contestant.goal.filter(|_| fault == Fault::PowerLoss),
    );
    if fault == Fault::PowerLoss && !figures.unstretched.is_empty() {
        let runs = figures.unstretched.len();
        all(
            &format!("the same where detection times were as set, {runs} runs"),
            &mut figures.unstretched,
            "ms",
            contestant.goal,
        );
    }
    let nothing = (fault == Fault::Terminated && !keepalived).then_some(0.0);
    let lost = all("questions lost", &mut figures.lost, "", nothing);
    // Nobody tells keepalived's rules that a pod is dead: it is asked for ever, one time out of
    // three.
    let (name, samples, unit) = if keepalived {
        ("questions lost of those after that time", &mut figures.later, "%")
    } else {
        ("questions went to the dead pod for", &mut figures.dead_pod, "ms")
    };
    let dead = (!samples.is_empty()).then(|| all(name, samples, unit, None));
    if !figures.joined.is_empty() {
        all("time without an answer after the join", &mut figures.joined, "ms", None);
    }
    if !figures.late.is_empty() {
        all(
            "answers through the node that was stalled",
            &mut figures.late,
            "",
            (!keepalived).then_some(0.0),
        );
    }
    let dead = dead.map_or("– | –".to_owned(), |[p50, _, max]| {
        format!("{p50:.0} {unit} | {max:.0} {unit}")
    });
    format!(
        "| {} | {what} | {} | {:.0} ms | {:.0} ms | {:.0} ms | {:.0} | {:.0} | {dead} |",
        contestant.name,
        figures.gap.len(),
        gap[0],
        gap[1],
        gap[2],
        lost[0],
        lost[2]
    )
}

impl Lab {
    fn trio(&self) -> &Trio {
        match self {
            Lab::Pinnace(cluster) => &cluster.trio,
            Lab::Keepalived(keepalived) => &keepalived.trio,
        }
    }

    fn settle(&self) {
        match self {
            Lab::Pinnace(cluster) => cluster.settle(),
            Lab::Keepalived(keepalived) => keepalived.settle(),
        }
    }

    fn owner(&self, family: Family) -> usize {
        let owner = match self {
            Lab::Pinnace(cluster) => cluster.owner(cluster.vip(family), &ALL),
            Lab::Keepalived(keepalived) => keepalived.owner(keepalived.vip(family), &ALL),
        };
        owner.unwrap_or_else(|views| panic!("no single owner in a lab that had settled: {views}"))
    }

    /// The longest silence of a node, in milliseconds, that another one bears.
    fn detection(&self, victim: usize) -> Option<u64> {
        let Lab::Pinnace(cluster) = self else { return None };
        let others = ALL.into_iter().filter(|node| *node != victim);
        let times = others.map(|node| {
            cluster.detection_time(node, victim).expect("a node that has settled says so")
        });
        times.max()
    }

    fn probe(&self, family: Family) -> Prober {
        match self {
            Lab::Pinnace(cluster) => cluster.probe(family),
            Lab::Keepalived(keepalived) => keepalived.probe(family),
        }
    }

    fn inject(&mut self, victim: usize, fault: Fault) -> Instant {
        match self {
            Lab::Pinnace(cluster) => cluster.inject(victim, fault),
            Lab::Keepalived(keepalived) => keepalived.inject(victim, fault),
        }
    }

    fn heal(&mut self, victim: usize, fault: Fault) {
        match self {
            Lab::Pinnace(cluster) => cluster.heal(victim, fault),
            Lab::Keepalived(keepalived) => keepalived.heal(victim, fault),
        }
    }
}
