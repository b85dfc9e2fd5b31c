//! Nodes whose wall clock is stepped while they run, as by the first answer of a time server, or by
//! hand.

use std::thread;
use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use pinnace::model::Family;

use super::pressure::unmoved;
use super::{ALL, clients, with_pods_on};
use crate::lab::manifests::web;
use crate::lab::trio::Cluster;
use crate::lab::{ensure, eventually, patient};

/// Longer than anything lasts by which a node judges itself or the others.
const LONG: Duration = Duration::from_secs(2);

/// Clients ask on and are answered, nobody takes anybody for dead, and what nodes are told after a
/// step they serve.
#[test]
fn a_wall_clock_step_of_a_day_changes_nothing() {
    let cluster = Cluster::start_with(&[], |_, pinnace| pinnace.with_clock());
    cluster.settle();
    let victim = cluster.owner(cluster.vip(Family::V4), &ALL).expect("an owner");
    let said = ALL.map(|node| cluster.running(node).log().len());
    let probers = Family::ALL.map(|family| cluster.probe(family));
    unmoved(&cluster, || {
        let mut ahead = ALL.map(|_| 0);
        // The owner's two days back in one, then everybody's: what they have in common is of no
        // help.
        for (nodes, days) in [(&[victim] as &[_], 1), (&[victim], -1), (&ALL, 1), (&ALL, 0)] {
            for node in nodes {
                cluster.running(*node).step_clock(days);
                ahead[*node] = days;
            }
            thread::sleep(patient(LONG));
            let told = web(&format!("told-{}", ahead.map(|days| (days + 1).to_string()).concat()));
            cluster.apply("told.yaml", &with_pods_on(&cluster, &told, &ALL));
            for vip in clients::addresses(&cluster, &told) {
                cluster
                    .trio
                    .client
                    .tcp(vip, 80)
                    .unwrap_or_else(|error| panic!("{vip}, days ahead {ahead:?}: {error}"));
            }
            for (node, days) in ALL.into_iter().zip(ahead) {
                eventually("it has logged, by its own clock", Duration::from_secs(10), || {
                    dated(&cluster.running(node).log(), days)
                });
            }
        }
    });
    for (family, prober) in Family::ALL.into_iter().zip(probers) {
        let trace = prober.stop();
        println!(
            "{family}: {:?} without an answer, {} of {} lost",
            trace.gap(),
            trace.lost(),
            trace.probes.len()
        );
        // Where the machine is busy with other things single answers are late; nobody takes
        // anything over.
        assert!(
            trace.gap() <= patient(Duration::from_secs(1)),
            "{family}: {:?} without an answer",
            trace.gap()
        );
    }
    // Of a stall, or that anybody is lost, a node warns.
    for (node, said) in ALL.into_iter().zip(said) {
        let log = cluster.running(node).log().split_off(said);
        assert!(
            log.lines().all(|line| line.contains(" INFO ")),
            "node {node} has nothing to complain of:\n{log}"
        );
    }
}

/// The last line of a log was written so many days from now.
fn dated(log: &str, days: i64) -> Result<(), String> {
    let line = log.lines().next_back().unwrap_or_default();
    let time: Timestamp = line
        .split(' ')
        .next()
        .unwrap_or_default()
        .parse()
        .map_err(|error| format!("{line}: {error}"))?;
    let off = time.duration_since(Timestamp::now()) - SignedDuration::from_hours(24 * days);
    ensure(off.abs() < SignedDuration::from_mins(5), || format!("not {days} days ahead: {line}"))
}
