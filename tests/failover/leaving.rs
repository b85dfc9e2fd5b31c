//! A node that gives an address away on purpose, and those outside who have to notice.

use std::thread;
use std::time::{Duration, Instant};

use pinnace::domain::model::Family;

use super::lab::trio::{Blow, Cluster};
use super::lab::{eventually, patient};
use super::ALL;

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

    let begin = cluster.strike(victim, Blow::Terminated);
    let (mut draining, mut slowest) = (Vec::new(), Duration::ZERO);
    for path in ["/healthz", "/readyz", "/state", "/metrics", "/services/default/probe"].iter().cycle() {
        let asked = Instant::now();
        let answer = cluster.running(victim).pinnace().http(path);
        slowest = slowest.max(asked.elapsed());
        match answer {
            Ok((503, body)) if *path == "/healthz" && body == "draining\n" => draining.push(asked),
            // The signal may be on its way.
            Ok((200, _)) if *path != "/healthz" || draining.is_empty() => {}
            // The end. How long it said so tells whether that came too early.
            Err(_) if !draining.is_empty() => break,
            other => panic!("{path} {:?} after SIGTERM, {} answers later: {other:?}", begin.elapsed(), draining.len()),
        }
        thread::sleep(Duration::from_millis(5));
        assert!(begin.elapsed() < patient(Duration::from_secs(10)), "it does not end");
    }
    let said_for = *draining.last().expect("it said so") - draining[0];
    println!("it said so {} times within {said_for:?}, the slowest answer took {slowest:?}", draining.len());
    assert!(said_for >= Duration::from_millis(700), "it said so for {said_for:?} only");
    assert!(slowest < patient(Duration::from_millis(500)), "an answer took {slowest:?}");
    cluster.trio.lan.output("nft", &["delete table bridge deaf"]);
    cluster.heal(victim, Blow::Terminated);
}
