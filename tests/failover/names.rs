//! Machines that are not who they say they are.

use std::thread;
use std::time::{Duration, Instant};

use pinnace::domain::model::Family;

use super::lab::trio::Cluster;
use super::lab::{ensure, eventually};

fn vips(cluster: &Cluster) -> [std::net::IpAddr; 2] {
    Family::ALL.map(|family| cluster.vip(family))
}

/// A fourth and a fifth machine run under the name of another.
#[test]
fn a_machine_under_the_name_of_another_answers_for_nothing_and_says_why() {
    let cluster = Cluster::of(5, &[], |node, pinnace| if node >= 3 { pinnace.set("PINNACE_NODE_NAME", "node-1") } else { pinnace });
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
                let entry = state["addresses"].as_array().into_iter().flatten().find(|entry| entry["address"] == vip.to_string()).cloned();
                let announced = entry.is_some_and(|entry| entry["announcedOn"].as_array().is_some_and(|on| !on.is_empty()));
                assert!(!announced, "machine {node} answers for {vip}");
            }
        }
        thread::sleep(Duration::from_millis(100));
    }
}
