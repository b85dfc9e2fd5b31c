//! When nodes watch each other, and when they do not.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use pinnace::domain::model::Family;
use serde_json::Value;

use super::lab::manifests::service;
use super::lab::trio::{Blow, Cluster, Trio};
use super::lab::{Prober, ensure, eventually, lan, patient};
use super::{ALL, with_pods_on};

/// What a node says about another.
fn peer(cluster: &Cluster, node: usize, other: usize) -> Result<Value, String> {
    let state = cluster.state(node)?;
    let found = state["peers"].as_array().into_iter().flatten().find(|peer| peer["node"] == *cluster.trio.nodes[other].name).cloned();
    found.ok_or_else(|| format!("node-{} does not know the other: {state}", node + 1))
}

/// How many BFD packets a node has refused for this reason.
fn refused(cluster: &Cluster, node: usize, reason: &str) -> u64 {
    let (_, metrics) = cluster.running(node).pinnace().http("/metrics").expect("metrics");
    let name = format!("pinnace_bfd_packets_discarded_total{{reason=\"{reason}\"}} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok());
    value.unwrap_or_else(|| panic!("{name} is missing in {metrics}"))
}

/// Two nodes have one secret, a third another, a fourth none.
#[test]
fn nodes_with_one_secret_watch_each_other_and_take_no_packets_from_others() {
    let trio = Trio::of(4);
    let secret = |name: &str, text: &str| -> PathBuf {
        let path = trio.directory().join(name);
        fs::write(&path, text).expect("write a secret");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("hide a secret");
        path
    };
    let (shared, other) = (secret("shared", "correct horse\n"), secret("other", "battery staple\n"));
    let mut cluster = Cluster::on(trio, &[], |node, pinnace| match node {
        0 | 1 => pinnace.set("PINNACE_SECRET_FILE", shared.display()),
        2 => pinnace.set("PINNACE_SECRET_FILE", other.display()),
        _ => pinnace,
    });
    let first = service("first").annotation("pinnace.dev/prefer-nodes", "node-1,node-2").port("udp", "UDP", 53);
    cluster.apply("first.yaml", &with_pods_on(&cluster, &first, &[1, 2, 3]));
    for (node, other) in [(0, 1), (1, 0)] {
        eventually("nodes with the same secret see each other, and not only just now", Duration::from_secs(30), || {
            let peer = peer(&cluster, node, other)?;
            ensure(peer["alive"] == true && peer["seconds"].as_u64() > Some(10), || peer.to_string())
        });
    }
    let vips = eventually("it has addresses", Duration::from_secs(10), || {
        let addresses = cluster.running(0).pinnace().status()?.addresses("default/first");
        <[_; 2]>::try_from(addresses).map_err(|addresses| format!("{addresses:?}"))
    });
    for vip in vips {
        eventually("the preferred node answers, and no other", Duration::from_secs(15), || {
            let owner = cluster.answering(vip, &[0, 1, 2, 3])?;
            ensure(owner == 0, || format!("{vip} is on node-{}", owner + 1))
        });
    }

    // Who refuses what: the signature is wrong, or missing, or there should be none.
    let watched =
        [(0, "digest"), (1, "digest"), (2, "digest"), (0, "not_authenticated"), (1, "not_authenticated"), (2, "not_authenticated")];
    let watched = || watched.into_iter().chain([(3, "unexpected_authentication")]);
    let before: Vec<u64> = watched().map(|(node, reason)| refused(&cluster, node, reason)).collect();
    thread::sleep(patient(Duration::from_secs(3)));
    for ((node, reason), before) in watched().zip(before) {
        let now = refused(&cluster, node, reason);
        assert!(now > before, "node-{}: packets refused for {reason}: {before}, and {now} later", node + 1);
    }
    for (node, other) in [(0, 2), (0, 3), (1, 2), (1, 3), (2, 0), (2, 1), (2, 3), (3, 0), (3, 1), (3, 2)] {
        let peer = peer(&cluster, node, other).expect("a peer");
        assert_eq!(peer["alive"], false, "node-{} takes packets of node-{}: {peer}", node + 1, other + 1);
        let (log, other) = (cluster.running(node).log(), &cluster.trio.nodes[other].name);
        let up = log.lines().find(|line| line.contains("node is up") && line.contains(&format!("node={other} ")));
        assert_eq!(up, None, "node-{}", node + 1);
    }

    let probers = vips.map(|vip| Prober::start(&cluster.trio.client, vip, 53));
    thread::sleep(Duration::from_millis(300));
    let bound = patient(Duration::from_secs(1));
    let begin = cluster.strike(0, Blow::PowerLoss);
    thread::sleep(bound + Duration::from_secs(1));
    for ((trace, vip), family) in probers.map(Prober::stop).iter().zip(vips).zip(Family::ALL) {
        println!("{family}: {:?} without an answer, {} of {} lost", trace.gap(), trace.lost(), trace.probes.len());
        assert!(trace.gap() <= bound, "{vip}: {:?} without an answer", trace.gap());
        let through = trace.since(begin + bound).by(|reply| cluster.trio.through(reply));
        assert_eq!(through.into_keys().collect::<Vec<_>>(), [1], "{vip}: the other node that has the secret took over");
    }
}

/// Where it is permitted the thread that watches is ahead of ordinary processes. Where it is not, that is said, and it watches all the same.
#[test]
fn a_node_that_may_not_be_ahead_of_other_processes_says_so_and_watches_all_the_same() {
    const FIFO: &str = "1";
    let cluster = Cluster::start_with(&[], |node, pinnace| if node == 0 { pinnace.without_realtime() } else { pinnace });
    eventually("every node sees the others", Duration::from_secs(10), || cluster.sessions());
    let policies = |node: usize| -> Vec<String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", cluster.running(node).id())).expect("its threads");
        let stats = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
        // Fields are counted from 1 and the second may contain spaces; `policy` is the 41st (proc_pid_stat(5)).
        stats.filter_map(|stat| stat.rsplit_once(") ")?.1.split(' ').nth(41 - 3).map(str::to_owned)).collect()
    };
    let said =
        |node: usize, text: &str| cluster.running(node).log().lines().filter(|line| line.contains(text)).map(str::to_owned).collect();
    let warned: Vec<String> = said(0, "not ahead of other processes");
    assert!(matches!(&warned[..], [line] if line.contains("WARN") && line.contains("CAP_SYS_NICE")), "{warned:?}");
    assert!(policies(0).iter().all(|policy| policy != FIFO), "{:?}", policies(0));

    let permitted = Command::new("chrt").args(["--fifo", "1", "true"]).status().is_ok_and(|status| status.success());
    for node in [1, 2] {
        let (ahead, behind): (Vec<String>, Vec<String>) =
            (said(node, "ahead of ordinary processes"), said(node, "not ahead of other processes"));
        assert_eq!((ahead.len(), behind.len()), if permitted { (1, 0) } else { (0, 1) }, "node-{}", node + 1);
        let fifo = policies(node).iter().filter(|policy| *policy == FIFO).count();
        assert_eq!(fifo, usize::from(permitted), "node-{}: {:?}", node + 1, policies(node));
    }
}

/// As by another lease of DHCP: the old address is gone at once, routes and the Node object follow a moment later.
#[test]
fn a_node_that_gets_another_address_is_watched_there_and_the_others_go_on() {
    const MOVING: usize = 2;
    let cluster = Cluster::start(&[]);
    cluster.settle();
    let preferring = |name: &str, nodes: &str| {
        let service = service(name).annotation("pinnace.dev/prefer-nodes", nodes).port("udp", "UDP", 53);
        with_pods_on(&cluster, &service, &[0, 1])
    };
    cluster.apply("both.yaml", &(preferring("elsewhere", "node-1,node-2") + &preferring("there", "node-3")));
    let [elsewhere, there] = [("default/elsewhere", 0), ("default/there", MOVING)].map(|(key, owner)| {
        cluster.running(0).wait_serving(key);
        let vips = Family::ALL.map(|family| cluster.running(0).address(key, family));
        for vip in vips {
            eventually("the preferred owner", Duration::from_secs(20), || {
                let found = cluster.owner(vip, &ALL)?;
                ensure(found == owner, || format!("{vip} is on node-{}", found + 1))
            });
        }
        vips
    });

    let probers = elsewhere.map(|vip| Prober::start(&cluster.trio.client, vip, 53));
    thread::sleep(Duration::from_millis(300));
    let node = &cluster.trio.nodes[MOVING];
    let old = Family::ALL.map(|family| node.address(family).to_string());
    let new = Family::ALL.map(|family| lan(family, 43).to_string());
    node.ns.sysctl(&[("ipv4/conf/all/promote_secondaries", "1")]);
    let begin = Instant::now();
    node.ns.ip(&[
        format!("address add {}/24 dev eth0", new[0]),
        format!("address add {}/64 dev eth0 nodad", new[1]),
        format!("address del {}/24 dev eth0", old[0]),
        format!("address del {}/64 dev eth0", old[1]),
    ]);
    for other in [0, 1] {
        let via = |gateways: [&str; 2], net: usize| {
            [format!("route replace 10.42.{net}.0/24 via {}", gateways[0]), format!("route replace fd42:{net}::/64 via {}", gateways[1])]
        };
        cluster.trio.nodes[other].ns.ip(&via([&new[0], &new[1]], MOVING));
        let [v4, v6] = Family::ALL.map(|family| cluster.trio.nodes[other].address(family).to_string());
        node.ns.ip(&via([&v4, &v6], other));
    }
    thread::sleep(Duration::from_millis(300));
    cluster.edit(|text| text.replace(&old[0], &new[0]).replace(&old[1], &new[1]));

    let (mut watched, mut doubled) = (None, Duration::ZERO);
    while watched.is_none_or(|at: Instant| at.elapsed() < Duration::from_secs(3)) {
        assert!(begin.elapsed() < patient(Duration::from_secs(30)), "no sessions at the new address: {:?}", cluster.state(0));
        let sample = Instant::now();
        for vip in elsewhere {
            assert_eq!(cluster.announcers(vip, &ALL), Ok(vec![0]), "{vip} stays, {:?} after the change", begin.elapsed());
        }
        let both = there.map(|vip| cluster.announcers(vip, &ALL).expect("their state").len());
        thread::sleep(Duration::from_millis(50));
        if both.iter().any(|count| *count > 1) {
            doubled += sample.elapsed();
        }
        let mut seen = [0, 1].map(|other| peer(&cluster, other, MOVING).expect("a peer")).into_iter();
        let there_now = seen.all(|peer| {
            let addresses = peer["addresses"].as_array().into_iter().flatten();
            peer["alive"] == true && addresses.eq(&new)
        });
        if there_now && watched.is_none() && cluster.sessions().is_ok() {
            watched = Some(Instant::now());
        }
    }
    println!("watched at the new address after {:?}, two owners for {doubled:?}", watched.map(|at| at - begin));
    assert!(doubled <= patient(Duration::from_secs(1)), "two nodes answered for {doubled:?}");
    for vip in there {
        eventually("one owner", Duration::from_secs(5), || cluster.owner(vip, &ALL));
        assert!(cluster.trio.client.udp(vip, 53).is_ok(), "{vip} is served");
    }
    for (trace, vip) in probers.map(Prober::stop).iter().zip(elsewhere) {
        println!("{vip}: {} of {} lost, {:?} without an answer", trace.lost(), trace.probes.len(), trace.gap());
        assert_eq!(trace.lost(), 0, "{vip}: questions without an answer");
    }
}
