//! A node that gives an address away on purpose, and those outside who have to notice.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use pinnace::model::Family;

use super::{ALL, others, with_pods_on};
use crate::lab::manifests::service;
use crate::lab::trio::{Cluster, Fault};
use crate::lab::{Prober, eventually, patient};

/// A load balancer outside asks every node whether to send it anything.
#[test]
fn a_node_that_stops_says_so_until_it_is_gone() {
    let mut cluster = Cluster::start(&[]);
    eventually("every node sees the others", Duration::from_secs(10), || cluster.sessions());
    cluster.wait_owners(&ALL, Duration::from_secs(10));
    let vip = cluster.vip(Family::V4);
    let victim = cluster.owner(vip, &ALL).expect("an owner");
    // It does not hear who takes over, so it hands over for as long as it ever does: a second.
    let deaf = format!(
        "add table bridge deaf; add chain bridge deaf forward {{ type filter hook forward priority 0; }}; \
         add rule bridge deaf forward oifname {0} ether type arp drop; add rule bridge deaf forward oifname {0} meta l4proto ipv6-icmp drop",
        cluster.trio.nodes[victim].name
    );
    cluster.trio.lan.output("nft", &[&deaf]);
    assert_eq!(cluster.running(victim).pinnace().http("/healthz"), Ok((200, "ok\n".to_owned())));

    let begin = cluster.inject(victim, Fault::Terminated);
    let (mut draining, mut slowest) = (Vec::new(), Duration::ZERO);
    for path in
        ["/healthz", "/readyz", "/state", "/metrics", "/services/default/probe"].iter().cycle()
    {
        let asked = Instant::now();
        let answer = cluster.running(victim).pinnace().http(path);
        slowest = slowest.max(asked.elapsed());
        match answer {
            Ok((503, body)) if *path == "/healthz" && body == "draining\n" => draining.push(asked),
            // The signal may be on its way.
            Ok((200, _)) if *path != "/healthz" || draining.is_empty() => {}
            // The end. How long it said so tells whether that came too early.
            Err(_) if !draining.is_empty() => break,
            other => panic!(
                "{path} {:?} after SIGTERM, {} answers later: {other:?}",
                begin.elapsed(),
                draining.len()
            ),
        }
        thread::sleep(Duration::from_millis(5));
        assert!(begin.elapsed() < patient(Duration::from_secs(10)), "it does not end");
    }
    let said_for = *draining.last().expect("it said so") - draining[0];
    println!(
        "it said so {} times within {said_for:?}, the slowest answer took {slowest:?}",
        draining.len()
    );
    assert!(said_for >= Duration::from_millis(700), "it said so for {said_for:?} only");
    assert!(slowest < patient(Duration::from_millis(500)), "an answer took {slowest:?}");
    cluster.trio.lan.output("nft", &["delete table bridge deaf"]);
    cluster.heal(victim, Fault::Terminated);
}

/// externalTrafficPolicy Local: the last pod on the owner goes, and the address with it, to where
/// there is one; pods see who asks all the while.
#[test]
fn a_local_address_follows_its_pods_and_keeps_the_client_source() {
    let cluster = Cluster::start(&[]);
    eventually("every node sees the others", Duration::from_secs(10), || cluster.sessions());
    let local = service("local").local().port("udp", "UDP", 53);
    cluster.apply("local.yaml", &with_pods_on(&cluster, &local, &ALL));
    cluster.running(0).wait_serving("default/local");
    let vips = Family::ALL.map(|family| cluster.running(0).address("default/local", family));
    let owners = vips
        .map(|vip| eventually("an owner", Duration::from_secs(10), || cluster.owner(vip, &ALL)));
    let loser = owners[0];
    let answered = |vip: IpAddr| {
        cluster.trio.client.udp(vip, 53).map(drop).map_err(|failure| failure.to_string())
    };
    vips.iter()
        .for_each(|vip| eventually("it is served", Duration::from_secs(5), || answered(*vip)));

    let probers = vips.map(|vip| Prober::start(&cluster.trio.client, vip, 53));
    thread::sleep(Duration::from_millis(300));
    let begin = Instant::now();
    cluster.apply("local.yaml", &with_pods_on(&cluster, &local, &others(loser)));
    let bound = patient(Duration::from_secs(1));
    thread::sleep(bound + Duration::from_secs(1));
    for ((prober, vip), family) in probers.into_iter().zip(vips).zip(Family::ALL) {
        let trace = prober.stop();
        println!(
            "{vip}: {:?} without an answer, {} of {} lost",
            trace.gap(),
            trace.lost(),
            trace.probes.len()
        );
        assert!(trace.gap() <= bound, "{vip}: {:?} without an answer", trace.gap());
        let sources = trace.by(|reply| reply.peer.ip());
        assert_eq!(
            sources.into_keys().collect::<Vec<_>>(),
            [cluster.trio.client.address(family)],
            "{vip}: what the pods saw"
        );
        let after = trace.since(begin + bound);
        let owner = cluster.owner(vip, &others(loser)).expect("an owner that has a pod");
        assert_eq!(
            after.by(|reply| reply.pod.clone()).into_keys().collect::<Vec<_>>(),
            [cluster.trio.pods[owner].name.clone()],
            "{vip}"
        );
        assert_eq!(after.lost(), 0, "{vip}: questions without an answer");
    }
}
