//! When nodes watch each other, and when they do not.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, thread};

use pinnace::model::Family;

use super::{ALL, with_pods_on};
use crate::lab::manifests::{node, service};
use crate::lab::trio::{Cluster, Fault, Trio};
use crate::lab::{Prober, ensure, eventually, lan, patient};

/// How many BFD packets a node has refused for this reason.
fn refused(cluster: &Cluster, node: usize, reason: &str) -> u64 {
    let (_, metrics) = cluster.running(node).pinnace().http("/metrics").expect("metrics");
    let name = format!("pinnace_bfd_packets_discarded_total{{reason=\"{reason}\"}} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok());
    value.unwrap_or_else(|| panic!("{name} is missing in {metrics}"))
}

/// Two nodes have one secret, a third another, a fourth none.
#[test]
fn nodes_with_a_shared_secret_reject_packets_of_others() {
    let trio = Trio::of(4);
    let secret = |name: &str, text: &str| -> PathBuf {
        let path = trio.directory().join(name);
        fs::write(&path, text).expect("write a secret");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("hide a secret");
        path
    };
    let (shared, other) =
        (secret("shared", "correct horse\n"), secret("other", "battery staple\n"));
    // The strangers know of the nodes, and of no Service for which they could answer.
    let nodes = trio.directory().join("nodes");
    fs::create_dir_all(&nodes).expect("a directory");
    fs::write(nodes.join("nodes.yaml"), (1..=4).map(node).collect::<String>())
        .expect("write a manifest");
    let mut cluster = Cluster::on(trio, &[], |node, pinnace| match node {
        0 | 1 => pinnace.set("PINNACE_SECRET_FILE", shared.display()),
        2 => pinnace
            .set("PINNACE_MANIFESTS", nodes.display())
            .set("PINNACE_SECRET_FILE", other.display()),
        _ => pinnace.set("PINNACE_MANIFESTS", nodes.display()),
    });
    for (node, other) in [(0, 1), (1, 0)] {
        eventually(
            "nodes with the same secret see each other, and not only just now",
            Duration::from_secs(30),
            || {
                let peer = cluster.peer(node, other)?;
                ensure(peer["alive"] == true && peer["seconds"].as_u64() > Some(10), || {
                    peer.to_string()
                })
            },
        );
    }
    // Only now, for each gives addresses in the order in which it learns of Services.
    let first = service("first")
        .annotation("pinnace.dev/prefer-nodes", "node-1,node-2")
        .port("udp", "UDP", 53);
    cluster.apply("first.yaml", &with_pods_on(&cluster, &first, &[1, 2, 3]));
    let vips = eventually("it has addresses", Duration::from_secs(10), || {
        let addresses = cluster.running(0).pinnace().status()?.addresses("default/first");
        <[_; 2]>::try_from(addresses).map_err(|addresses| format!("{addresses:?}"))
    });
    for vip in vips {
        eventually("the preferred node answers", Duration::from_secs(15), || {
            let owner = cluster.owner(vip, &[0, 1])?;
            ensure(owner == 0, || format!("{vip} is on node-{}", owner + 1))
        });
    }

    // Who refuses what: the signature is wrong, or missing, or there should be none.
    let watched = [
        (0, "digest"),
        (1, "digest"),
        (2, "digest"),
        (0, "not_authenticated"),
        (1, "not_authenticated"),
        (2, "not_authenticated"),
    ];
    let watched = || watched.into_iter().chain([(3, "unexpected_authentication")]);
    let before: Vec<u64> =
        watched().map(|(node, reason)| refused(&cluster, node, reason)).collect();
    thread::sleep(patient(Duration::from_secs(3)));
    for ((node, reason), before) in watched().zip(before) {
        let now = refused(&cluster, node, reason);
        assert!(
            now > before,
            "node-{}: packets refused for {reason}: {before}, and {now} later",
            node + 1
        );
    }
    for (node, other) in
        [(0, 2), (0, 3), (1, 2), (1, 3), (2, 0), (2, 1), (2, 3), (3, 0), (3, 1), (3, 2)]
    {
        let peer = cluster.peer(node, other).expect("a peer");
        assert_eq!(
            peer["alive"],
            false,
            "node-{} takes packets of node-{}: {peer}",
            node + 1,
            other + 1
        );
        let (log, other) = (cluster.running(node).log(), &cluster.trio.nodes[other].name);
        let up = log
            .lines()
            .find(|line| line.contains("peer up") && line.contains(&format!("node={other} ")));
        assert_eq!(up, None, "node-{}", node + 1);
    }

    let probers = vips.map(|vip| Prober::start(&cluster.trio.client, vip, 53));
    thread::sleep(Duration::from_millis(300));
    let bound = patient(Duration::from_secs(1));
    let begin = cluster.inject(0, Fault::PowerLoss);
    thread::sleep(bound + Duration::from_secs(1));
    for ((trace, vip), family) in probers.map(Prober::stop).iter().zip(vips).zip(Family::ALL) {
        println!(
            "{family}: {:?} without an answer, {} of {} lost",
            trace.gap(),
            trace.lost(),
            trace.probes.len()
        );
        assert!(trace.gap() <= bound, "{vip}: {:?} without an answer", trace.gap());
        let through = trace.since(begin + bound).by(|reply| cluster.trio.through(reply));
        assert_eq!(
            through.into_keys().collect::<Vec<_>>(),
            [1],
            "{vip}: the other node that has the secret took over"
        );
    }
}

/// Where it is permitted the thread that watches is ahead of ordinary processes. Where it is not,
/// that is said, and it watches all the same.
#[test]
fn without_realtime_scheduling_bfd_runs_and_reports_it() {
    const FIFO: &str = "1";
    let cluster =
        Cluster::start_with(
            &[],
            |node, pinnace| if node == 0 { pinnace.without_realtime() } else { pinnace },
        );
    eventually("every node sees the others", Duration::from_secs(10), || cluster.sessions());
    let policies = |node: usize| -> Vec<String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", cluster.running(node).id()))
            .expect("its threads");
        let stats =
            tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
        // Fields are counted from 1 and the second may contain spaces; `policy` is the 41st
        // (proc_pid_stat(5)).
        stats
            .filter_map(|stat| stat.rsplit_once(") ")?.1.split(' ').nth(41 - 3).map(str::to_owned))
            .collect()
    };
    let said = |node: usize, text: &str| {
        cluster
            .running(node)
            .log()
            .lines()
            .filter(|line| line.contains(text))
            .map(str::to_owned)
            .collect()
    };
    let warned: Vec<String> = said(0, "without SCHED_FIFO");
    assert!(
        matches!(&warned[..], [line] if line.contains("WARN") && line.contains("CAP_SYS_NICE")),
        "{warned:?}"
    );
    assert!(policies(0).iter().all(|policy| policy != FIFO), "{:?}", policies(0));

    let permitted = Command::new("chrt")
        .args(["--fifo", "1", "true"])
        .status()
        .is_ok_and(|status| status.success());
    for node in [1, 2] {
        let (ahead, behind): (Vec<String>, Vec<String>) =
            (said(node, "BFD started (SCHED_FIFO)"), said(node, "without SCHED_FIFO"));
        assert_eq!(
            (ahead.len(), behind.len()),
            if permitted { (1, 0) } else { (0, 1) },
            "node-{}",
            node + 1
        );
        let fifo = policies(node).iter().filter(|policy| *policy == FIFO).count();
        assert_eq!(fifo, usize::from(permitted), "node-{}: {:?}", node + 1, policies(node));
    }
}

/// The node whose addresses change, counted from 0.
const MOVING: usize = 2;

/// Its addresses from now on, for its own kernel, or gone.
fn has(cluster: &Cluster, verb: &str, [v4, v6]: &[String; 2]) {
    let dad = if verb == "add" { "nodad" } else { "" };
    cluster.trio.nodes[MOVING].ns.ip(&[
        format!("address {verb} {v4}/24 dev eth0"),
        format!("address {verb} {v6}/64 dev eth0 {dad}"),
    ]);
}

/// The routes between its pods and those of the others, as the network of the pods sets them.
fn routes(cluster: &Cluster, own: &[String; 2]) {
    let via = |[v4, v6]: &[String; 2], net: usize| {
        [
            format!("route replace 10.42.{net}.0/24 via {v4}"),
            format!("route replace fd42:{net}::/64 via {v6}"),
        ]
    };
    for other in [0, 1] {
        let host = &cluster.trio.nodes[other];
        host.ns.ip(&via(own, MOVING));
        cluster.trio.nodes[MOVING]
            .ns
            .ip(&via(&Family::ALL.map(|family| host.address(family).to_string()), other));
    }
}

/// All nodes have sessions, those with this one at these addresses.
fn watched(cluster: &Cluster, addresses: &[String; 2]) -> Result<(), String> {
    cluster.sessions()?;
    for other in [0, 1] {
        let peer = cluster.peer(other, MOVING)?;
        ensure(peer["addresses"].as_array().into_iter().flatten().eq(addresses), || {
            peer.to_string()
        })?;
    }
    Ok(())
}

/// First as an administrator does it who takes the old address away last; then as by another lease
/// of DHCP: the old address is gone at once, routes and the Node object follow a moment later.
/// Sessions end before there are others in their place, so for a moment nodes differ about who
/// lives, and two may answer; a client outside is never without an answer for longer than when a
/// node dies, and soon all is as before.
#[test]
fn sessions_follow_a_changed_node_address() {
    const BOUND: Duration = Duration::from_secs(1);
    let cluster = Cluster::start(&[]);
    cluster.settle();
    let elsewhere = service("elsewhere")
        .annotation("pinnace.dev/prefer-nodes", "node-1,node-2")
        .port("udp", "UDP", 53);
    cluster.apply("elsewhere.yaml", &with_pods_on(&cluster, &elsewhere, &[0, 1]));
    cluster.running(0).wait_serving("default/elsewhere");
    let vips = Family::ALL.map(|family| cluster.running(0).address("default/elsewhere", family));
    let at_home = |vip: IpAddr| {
        let owner = cluster.owner(vip, &ALL)?;
        ensure(owner == 0, || format!("{vip} is on node-{}", owner + 1))
    };
    let mut old = Family::ALL.map(|family| cluster.trio.nodes[MOVING].address(family).to_string());
    // Without it the kernel takes the second address away with the first.
    cluster.trio.nodes[MOVING].ns.sysctl(&[("ipv4/conf/all/promote_secondaries", "1")]);
    for (host, abrupt) in [(43, false), (53, true)] {
        vips.iter().for_each(|vip| {
            eventually("the preferred owner", Duration::from_secs(20), || at_home(*vip))
        });
        let new = Family::ALL.map(|family| lan(family, host).to_string());
        let probers = vips.map(|vip| Prober::start(&cluster.trio.client, vip, 53));
        thread::sleep(Duration::from_millis(300));
        let begin = Instant::now();
        has(&cluster, "add", &new);
        if abrupt {
            has(&cluster, "del", &old);
        }
        routes(&cluster, &new);
        thread::sleep(Duration::from_millis(300));
        cluster.edit(|text| {
            text.replace(&format!(" {}}}", old[0]), &format!(" {}}}", new[0]))
                .replace(&old[1], &new[1])
        });
        eventually("sessions at the new address", Duration::from_secs(20), || {
            watched(&cluster, &new)
        });
        let seen = Instant::now();
        if !abrupt {
            has(&cluster, "del", &old);
            routes(&cluster, &new);
        }
        thread::sleep(2 * patient(BOUND));
        vips.iter().for_each(|vip| at_home(*vip).expect("one owner, and the same"));
        assert!(watched(&cluster, &new).is_ok());
        println!("abrupt: {abrupt}, watched at the new address after {:?}", seen - begin);
        for (trace, vip) in probers.map(Prober::stop).iter().zip(vips) {
            println!(
                "{vip}: {} of {} lost, {:?} without an answer",
                trace.lost(),
                trace.probes.len(),
                trace.gap()
            );
            assert!(trace.gap() <= patient(BOUND), "{vip}: {:?} without an answer", trace.gap());
            let through = trace.since(seen + patient(BOUND)).by(|reply| reply.pod.clone());
            assert_eq!(through.len(), 2, "{vip}: pods that answer, later: {through:?}");
        }
        old = new;
    }
}
