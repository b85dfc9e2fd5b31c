//! Machines that are not who they say they are.

use std::thread;
use std::time::{Duration, Instant};

use pinnace::model::Family;

use super::ALL;
use crate::lab::trio::{Cluster, Trio};
use crate::lab::{ensure, eventually, lan};

fn vips(cluster: &Cluster) -> [std::net::IpAddr; 2] {
    Family::ALL.map(|family| cluster.vip(family))
}

/// A fourth and a fifth machine run under the name of another.
#[test]
fn a_duplicate_node_name_owns_nothing_and_is_reported() {
    let cluster = Cluster::of(5, &[], |node, pinnace| {
        if node >= 3 { pinnace.set("PINNACE_NODE_NAME", "node-1") } else { pinnace }
    });
    for node in [3, 4] {
        eventually("status names it", Duration::from_secs(20), || {
            let state = cluster.state(node)?;
            let warnings = state["warnings"].to_string();
            ensure(warnings.contains("DuplicateNode"), || format!("node-{}: {warnings}", node + 1))
        });
        eventually("its log names it", Duration::from_secs(5), || {
            let log = cluster.running(node).log();
            ensure(log.contains("another machine at"), || log)
        });
    }
    for vip in vips(&cluster) {
        eventually("one owner", Duration::from_secs(15), || cluster.owner(vip, &[0, 1, 2]));
    }
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        for vip in vips(&cluster) {
            cluster.owner(vip, &[0, 1, 2]).expect("one owner");
            for node in [3, 4] {
                let state = cluster.state(node).expect("its state");
                let entry = state["addresses"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .find(|entry| entry["address"] == vip.to_string())
                    .cloned();
                let announced = entry.is_some_and(|entry| {
                    entry["announcedOn"].as_array().is_some_and(|on| !on.is_empty())
                });
                assert!(!announced, "machine {node} answers for {vip}");
            }
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// Packets for the two reach now one, now the other, so their sessions come and go. Nobody can say
/// which is the right one: neither answers, and the rest of the cluster goes on.
#[test]
fn a_cloned_machine_is_reported_and_others_are_unaffected() {
    let mut cluster = Cluster::of(4, &[], |_, pinnace| pinnace);
    cluster.settle();
    let vips = vips(&cluster);
    let owners = vips.map(|vip| cluster.owner(vip, &[0, 1, 2, 3]).expect("an owner"));
    let original = owners[0];
    let copy = (0..4).find(|node| !owners.contains(node)).expect("one that owns nothing");
    let others: Vec<usize> = (0..4).filter(|node| ![original, copy].contains(node)).collect();
    println!(
        "node-{} becomes a copy of node-{}, addresses are on {owners:?}, counted from 0",
        copy + 1,
        original + 1
    );
    cluster.replace_by_copy(copy, original);
    let begin = Instant::now();
    for node in 0..4 {
        eventually("status names it", Duration::from_secs(20), || {
            let warnings = cluster.state(node)?["warnings"].to_string();
            let name = &cluster.trio.nodes[original].name;
            ensure(warnings.contains("DuplicateNode") && warnings.contains(name), || {
                format!("node-{}: {warnings}", node + 1)
            })
        });
        let log = cluster.running(node).log();
        assert!(log.contains("DuplicateNode"), "the log of node-{} names it: {log}", node + 1);
    }
    println!("everybody knows after {:?}", begin.elapsed());

    let silent = |vip| {
        cluster
            .answering(vip, &[original, copy])
            .is_err_and(|views| views.contains("false") && !views.contains("true"))
    };
    let now = vips.map(|vip| {
        eventually("one of the others answers", Duration::from_secs(10), || {
            ensure(silent(vip), || format!("{vip}: one of the two answers"))?;
            cluster.owner(vip, &others)
        })
    });
    println!("on {now:?} after {:?}", begin.elapsed());
    let lines = |node: usize| cluster.running(node).log().lines().count();
    let before: Vec<usize> = (0..4).map(lines).collect();
    let probers = Family::ALL.map(|family| cluster.probe(family));
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        for (vip, owner) in vips.into_iter().zip(now) {
            assert_eq!(cluster.owner(vip, &others), Ok(owner), "{vip} stays");
            assert!(silent(vip), "{vip}: one of the two answers");
        }
        thread::sleep(Duration::from_millis(50));
    }
    for (trace, vip) in probers.map(|prober| prober.stop()).iter().zip(vips) {
        println!(
            "{vip}: {} of {} lost, {:?} without an answer",
            trace.lost(),
            trace.probes.len(),
            trace.gap()
        );
        assert_eq!(trace.lost(), 0, "{vip}: questions without an answer");
    }
    for (node, before) in before.into_iter().enumerate() {
        let said = lines(node) - before;
        assert!(
            said <= 5,
            "node-{} says the same again and again, {said} lines in 5 s: {}",
            node + 1,
            cluster.running(node).log()
        );
    }
}

/// An alias, or the virtual address of another program: whatever else a node has in the subnet, the
/// others hear it under the address they know.
#[test]
fn lower_addresses_beside_those_of_the_nodes_cost_no_session() {
    let trio = Trio::new();
    let alias = |node: usize| Family::ALL.map(|family| lan(family, 4 + node as u16));
    for node in [0, 1] {
        alias(node).iter().for_each(|address| trio.nodes[node].add_address(*address));
    }
    let cluster = Cluster::on(trio, &[], |_, pinnace| pinnace);
    eventually("every node sees the others", Duration::from_secs(10), || cluster.sessions());
    // One that comes later costs none, either.
    alias(2).iter().for_each(|address| cluster.trio.nodes[2].add_address(*address));
    thread::sleep(Duration::from_secs(2));
    let youngest = cluster.sessions().expect("sessions");
    assert!(youngest >= 1, "a session was lost: the youngest has {youngest} s");
    cluster.wait_owners(&ALL, Duration::from_secs(10));
    for node in ALL {
        let warnings = cluster.state(node).expect("its state")["warnings"].to_string();
        assert!(!warnings.contains("BfdBlocked"), "node-{}: {warnings}", node + 1);
    }
}
