//! Three nodes on the real kernel, and what a client notices when one of them fails, stops, stalls
//! or is cut off.
//!
//! The client asks once a millisecond in both families. Bounds are wide here, for the machine may
//! be busy; tests/bench failover measures.

use std::thread;
use std::time::{Duration, Instant};

use pinnace::model::Family;

mod clients;
mod clock;
mod gateway;
mod leaving;
mod names;
mod pressure;
mod sessions;
mod splits;
mod stops;

use crate::lab;
use crate::lab::manifests::{Endpoint, Service};
use crate::lab::trio::{Cluster, Fault, NODES};
use crate::lab::{Trace, ensure, eventually, patient};

const ALL: [usize; NODES] = [0, 1, 2];

/// What a client saw when the owner of an address failed.
struct Seen {
    family: Family,
    victim: usize,
    begin: Instant,
    trace: Trace,
}

/// Injects the fault into the owner of each address in turn, each time once the cluster has settled.
fn observe_fault(fault: Fault, mut judge: impl FnMut(&Cluster, Seen)) {
    let mut cluster = Cluster::start(&[]);
    for target in Family::ALL {
        cluster.settle();
        let victim = cluster.owner(cluster.vip(target), &ALL).expect("an owner");
        let probers = Family::ALL.map(|family| {
            (
                family,
                cluster.owner(cluster.vip(family), &ALL).expect("an owner"),
                cluster.probe(family),
            )
        });
        thread::sleep(Duration::from_millis(300));
        let begin = cluster.inject(victim, fault);
        thread::sleep(Duration::from_millis(2500));
        for (family, owner, prober) in probers {
            let trace = prober.stop();
            if owner == victim {
                println!(
                    "{fault:?}, {family}: {:?} without an answer, {} of {} lost",
                    trace.gap(),
                    trace.lost(),
                    trace.probes.len()
                );
                judge(&cluster, Seen { family, victim, begin, trace });
            }
        }
        cluster.heal(victim, fault);
    }
}

fn others(victim: usize) -> Vec<usize> {
    ALL.into_iter().filter(|node| *node != victim).collect()
}

/// The manifest of a Service with the pods of these nodes.
fn with_pods_on(cluster: &Cluster, service: &Service, nodes: &[usize]) -> String {
    let endpoint = |node: &usize| {
        Endpoint::ready(&cluster.trio.pods[*node]).on(&cluster.trio.nodes[*node].name)
    };
    service.with_endpoints(&nodes.iter().map(endpoint).collect::<Vec<_>>())
}

/// Somebody else answers within the bound, and to the end.
fn taken_over(fault: Fault, bound: Duration) {
    observe_fault(fault, |cluster, Seen { family, victim, begin, trace }| {
        assert!(trace.gap() <= patient(bound), "{family}: {:?} without an answer", trace.gap());
        let through = trace.since(begin + patient(bound)).by(|reply| cluster.trio.through(reply));
        assert!(
            !through.is_empty() && !through.contains_key(&victim),
            "{family}: answers through {through:?}, victim: {victim}"
        );
        cluster.owner(cluster.vip(family), &others(victim)).expect("the others agree");
    });
}

#[test]
fn power_loss() {
    taken_over(Fault::PowerLoss, Duration::from_secs(1));
}

#[test]
fn a_killed_process() {
    taken_over(Fault::Killed, Duration::from_secs(1));
}

#[test]
fn a_lost_carrier() {
    taken_over(Fault::CarrierLost, Duration::from_secs(1));
}

/// Connections to pods of a node that lost power end with the detection, though the API server
/// would need 40 s to say so.
#[test]
fn endpoints_of_a_failed_node_get_no_traffic() {
    let mut cluster = Cluster::start(&[]);
    cluster.settle();
    let owners =
        Family::ALL.map(|family| cluster.owner(cluster.vip(family), &ALL).expect("an owner"));
    // Preferably a node that owns nothing, so that nothing but its pod is missed.
    let victim = ALL.into_iter().find(|node| !owners.contains(node)).unwrap_or(owners[0]);
    let probers = Family::ALL.map(|family| cluster.probe(family));
    thread::sleep(Duration::from_millis(300));
    cluster.inject(victim, Fault::PowerLoss);
    thread::sleep(Duration::from_secs(3));
    for trace in probers.map(|prober| prober.stop()) {
        let before = trace.by(|reply| reply.pod.clone());
        assert!(
            before.contains_key(&cluster.trio.pods[victim].name),
            "the pod was asked before: {before:?}"
        );
        let time = trace.lost_between().map(|(first, last)| last - first).unwrap_or_default();
        println!("connections went to the dead pod for {time:?}");
        assert!(
            time <= patient(Duration::from_secs(1)),
            "connections went to the dead pod for {time:?}"
        );
    }
}

#[test]
fn a_planned_stop_loses_no_request() {
    observe_fault(Fault::Terminated, |cluster, Seen { family, victim, begin, trace }| {
        assert!(
            trace.gap() <= patient(Duration::from_millis(100)),
            "{family}: {:?} without an answer",
            trace.gap()
        );
        assert_eq!(trace.lost(), 0, "{family}: questions without an answer");
        let through =
            trace.since(begin + Duration::from_secs(2)).by(|reply| cluster.trio.through(reply));
        assert!(
            !through.contains_key(&victim),
            "{family}: answers through {through:?}, stopped: {victim}"
        );
    });
}

#[test]
fn one_owner_remains_after_a_partition() {
    let cluster = Cluster::start(&[]);
    cluster.settle();
    let vips = Family::ALL.map(|family| cluster.vip(family));
    let victim = cluster.owner(vips[0], &ALL).expect("an owner");
    let probers = Family::ALL.map(|family| cluster.probe(family));
    cluster.trio.part(victim, true);
    thread::sleep(Duration::from_secs(4));
    for vip in vips {
        eventually("one owner on the larger side", Duration::from_secs(1), || {
            cluster.owner(vip, &others(victim))
        });
        eventually("one on the other", Duration::from_secs(5), || cluster.owner(vip, &[victim]));
    }
    let join = Instant::now();
    cluster.trio.part(victim, false);
    let bound = patient(Duration::from_secs(1));
    for vip in vips {
        let owner = eventually("one owner after the join", Duration::from_secs(1), || {
            cluster.owner(vip, &ALL)
        });
        eventually("the client knows the owner", bound.saturating_sub(join.elapsed()), || {
            let neighbour = cluster.trio.neighbour(vip);
            ensure(neighbour == Some(owner), || {
                format!("{vip}: owner {owner}, the client asks {neighbour:?}")
            })
        });
    }
    thread::sleep(Duration::from_secs(2));
    for (trace, vip) in probers.map(|prober| prober.stop()).iter().zip(vips) {
        assert_eq!(
            trace.since(join + bound).lost(),
            0,
            "{vip}: questions without an answer after the join"
        );
    }
}

/// Each way round, and both: the owner does not hear the others, the others do not hear it.
#[test]
fn one_owner_remains_with_bfd_blocked() {
    for hooks in [&["input"] as &[_], &["output"], &["input", "output"]] {
        let cluster = Cluster::start(&[]);
        cluster.settle();
        let vip = cluster.vip(Family::V4);
        let victim = cluster.owner(vip, &ALL).expect("an owner");
        for hook in hooks {
            let wall = format!(
                "add table inet wall; add chain inet wall {hook} {{ type filter hook {hook} priority 0; }}; add rule inet wall {hook} udp dport 3784 drop"
            );
            cluster.trio.nodes[victim].ns.output("nft", &[&wall]);
        }
        // From here to the end of the bound there may be two; then never again.
        thread::sleep(patient(Duration::from_secs(5)));
        let end = Instant::now() + Duration::from_secs(3);
        while Instant::now() < end {
            for vip in Family::ALL.map(|family| cluster.vip(family)) {
                cluster
                    .owner(vip, &ALL)
                    .unwrap_or_else(|views| panic!("{hooks:?} blocked on node {victim}: {views}"));
            }
            thread::sleep(Duration::from_millis(200));
        }
        eventually("status names what is blocked", Duration::from_secs(10), || {
            let named = |node: usize| {
                let state = cluster.state(node)?;
                let warnings = state["warnings"].to_string();
                ensure(warnings.contains("BfdBlocked") && warnings.contains("3784"), || {
                    format!("node-{}: {warnings}", node + 1)
                })
            };
            ALL.into_iter().map(named).find(Result::is_ok).unwrap_or_else(|| named(victim))
        });
        let said = |node: &usize| {
            cluster
                .running(*node)
                .log()
                .lines()
                .any(|line| line.contains("BfdBlocked") && line.contains("3784"))
        };
        assert!(ALL.iter().any(said), "and so does a log");
    }
}

/// A client that keeps its port is remembered by the kernels on the way, and would be sent to the
/// dead pod for as long as it asks.
#[test]
fn a_udp_client_of_a_failed_pod_reaches_another() {
    let mut cluster = Cluster::start(&[]);
    cluster.settle();
    let owners =
        Family::ALL.map(|family| cluster.owner(cluster.vip(family), &ALL).expect("an owner"));
    let victim = ALL.into_iter().find(|node| !owners.contains(node)).unwrap_or(owners[0]);
    let dead = cluster.trio.pods[victim].name.clone();
    let mut flows = Vec::new();
    for vip in Family::ALL.map(|family| cluster.vip(family)) {
        for port in 5000..5030 {
            let reply =
                cluster.trio.client.udp_from(port, vip, lab::trio::PORT).expect("an answer");
            flows.extend((reply.pod == dead).then_some((port, vip)));
        }
    }
    assert!(flows.len() > 4, "some are with the pod on node {victim}: {flows:?}");
    cluster.inject(victim, Fault::PowerLoss);
    thread::sleep(patient(Duration::from_secs(1)));
    for (port, vip) in flows {
        let reply = cluster.trio.client.udp_from(port, vip, lab::trio::PORT);
        let reply = reply.unwrap_or_else(|error| panic!("from port {port} to {vip}: {error:?}"));
        assert!(reply.pod != dead, "{vip}: a dead pod answers");
    }
}
