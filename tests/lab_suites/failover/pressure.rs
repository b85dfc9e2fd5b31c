//! What a node is busy with, or cannot do, costs no session: the others do not take it for dead,
//! and an address does not move.

use std::fmt::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, thread};

use pinnace::model::Family;

use super::ALL;
use crate::lab::trio::Cluster;
use crate::lab::{ensure, eventually};

/// Services that come and go at once, and the endpoints of each.
const SERVICES: usize = 5000;
const ENDPOINTS: usize = 10;
/// Services in one file.
const FILE: usize = 100;

/// Every session there is outlives the load, and both addresses stay where they are.
pub fn unmoved(cluster: &Cluster, load: impl FnOnce()) {
    let owners =
        Family::ALL.map(|family| cluster.owner(cluster.vip(family), &ALL).expect("an owner"));
    let before = cluster.sessions().expect("sessions");
    let begin = Instant::now();
    load();
    let passed = begin.elapsed().as_secs();
    let after = eventually("every node answers", Duration::from_secs(20), || cluster.sessions());
    println!("{passed} s of load: the youngest session has {after} s, before {before} s");
    assert!(
        after + 1 >= before + passed,
        "a session was lost: the youngest has {after} s, {passed} s ago it had {before} s"
    );
    for (family, owner) in Family::ALL.into_iter().zip(owners) {
        eventually("the owner is the same", Duration::from_secs(1), || {
            let now = cluster.owner(cluster.vip(family), &ALL)?;
            ensure(now == owner, || format!("{family}: node {now}, before {owner}"))
        });
    }
}

/// Services `NAME-0`… in IPv4, behind `default/probe` in the order of names; `round` tells one set
/// of endpoints from the next.
fn services(name: &str, numbers: Range<usize>, round: usize) -> String {
    let mut text = String::new();
    for number in numbers {
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{namespace: default, name: {name}-{number}}}\nspec:\n  type: LoadBalancer\n  \
             ipFamilies: [IPv4]\n  ports: [{{name: http, port: 80, targetPort: 8080}}]\n---\napiVersion: discovery.k8s.io/v1\nkind: \
             EndpointSlice\nmetadata:\n  namespace: default\n  name: {name}-{number}-1\n  labels: {{kubernetes.io/service-name: \
             {name}-{number}}}\naddressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints:\n"
        );
        for endpoint in 0..ENDPOINTS {
            let index = (number * ENDPOINTS + endpoint) * 2 + round % 2;
            let (a, b, c) = (index >> 16, (index >> 8) & 255, index & 255);
            let _ = writeln!(text, "- {{addresses: [10.{}.{b}.{c}], nodeName: node-1}}", 160 + a);
        }
    }
    text
}

fn served(cluster: &Cluster, nodes: &[usize], count: usize, patience: Duration) {
    eventually("everything is in the kernel", patience, || {
        for node in nodes {
            let (_, metrics) = cluster.running(*node).pinnace().http("/metrics")?;
            let value = metrics
                .lines()
                .find_map(|line| line.strip_prefix("pinnace_services{phase=\"serving\"} "));
            ensure(value.and_then(|value| value.parse().ok()) == Some(count), || {
                format!("node-{}: {value:?} Services", node + 1)
            })?;
        }
        Ok(())
    });
}

/// One node is told, for all nodes are on one machine here: at once they would take thrice the time
/// of its kernel.
#[test]
fn an_update_of_50_000_endpoints_costs_no_session() {
    let manifests = Temporary::new("many");
    let own = manifests.0.clone();
    let pools = [("PINNACE_POOLS", "10.88.0.200-10.88.0.220,fd88::200-fd88::220,10.89.0.0/16")];
    let cluster = Cluster::start_with(&pools, move |node, pinnace| {
        if node == 0 { pinnace.set("PINNACE_MANIFESTS", own.display()) } else { pinnace }
    });
    fs::copy(cluster.trio.directory().join("manifests/all.yaml"), manifests.0.join("all.yaml"))
        .expect("copy a manifest");
    cluster.settle();
    unmoved(&cluster, || {
        for round in 0..2 {
            for first in (0..SERVICES).step_by(FILE) {
                let text = services("test-many", first..first + FILE, round);
                let ready = cluster.trio.directory().join("many");
                fs::write(&ready, text).expect("write a manifest");
                fs::rename(ready, manifests.0.join(format!("many-{first}.yaml")))
                    .expect("rename a manifest");
            }
            served(&cluster, &[0], 1 + SERVICES, Duration::from_secs(60));
        }
    });
}

/// A directory, until the end of the test.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str) -> Temporary {
        let path = std::env::temp_dir().join(format!("pnl{}-{name}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory");
        Temporary(path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Every node logs at the finest level to pipes that nobody empties.
#[test]
fn unread_logs_cost_no_session() {
    let mut cluster =
        Cluster::start_with(&[("PINNACE_LOG", "debug")], |_, pinnace| pinnace.unread());
    cluster.settle();
    unmoved(&cluster, || {
        // Services without a pool for them: a line about each, every time. More than a pipe and the
        // queue behind it hold.
        for round in 0..20 {
            cluster.apply("storm.yaml", &services(&format!("storm-{round}"), 0..1000, round));
            thread::sleep(Duration::from_millis(500));
        }
    });
    // Not only the sessions live: who is left still decides.
    let vip = cluster.vip(Family::V4);
    let victim = cluster.owner(vip, &ALL).expect("an owner");
    cluster.inject(victim, super::Fault::PowerLoss);
    eventually("another owner", Duration::from_secs(5), || {
        cluster.owner(vip, &super::others(victim))
    });
}

/// A file system of its own, without room.
struct FullDisk(PathBuf);

impl FullDisk {
    fn over(directory: &Path) -> FullDisk {
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64k,mode=700", "full"])
            .arg(directory)
            .status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "mount a tmpfs on {}",
            directory.display()
        );
        let disk = FullDisk(directory.to_owned());
        let full =
            fs::write(directory.join("filler"), vec![0; 128 << 10]).expect_err("it holds 64 KiB");
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        disk
    }
}

impl Drop for FullDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_costs_no_session() {
    let cluster = Cluster::start(&[]);
    cluster.settle();
    let disks = ["node-1", "node-2", "node-3"]
        .map(|node| FullDisk::over(&cluster.trio.directory().join(node).join("state")));
    unmoved(&cluster, || {
        for round in 0..20 {
            cluster.apply("storm.yaml", &services(&format!("test-full-{round}"), 0..15, round));
            thread::sleep(Duration::from_millis(250));
        }
        served(&cluster, &ALL, 16, Duration::from_secs(10));
    });
    cluster.running(0).wait_log("cannot write the state directory");
    drop(disks);
}
