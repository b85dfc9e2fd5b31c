//! A node that did not run for a while: what it held may be another's since, and its peers'
//! sessions say so.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::election::vip_election::PROBE_INTERVAL;
use super::membership::{DownReason, Liveness, PeerEvent};
use super::tests::{T0, links, node, put, settings, source, vip};
use super::*;
use crate::ipam::Allocations;
use crate::l2::announcer::AnnouncerEvent;
use crate::model::SourceChange;
use crate::model::fixtures::service;

/// The addresses of node-2.
const PEER: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 88, 0, 12)),
    IpAddr::V6(Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, 0x12)),
];
const LATE: Duration = Duration::from_secs(6);

fn tell(engine: &mut Engine, now: Duration, address: IpAddr, state: Liveness) {
    engine.handle(Event::Peer(PeerEvent::Liveness { address, state }), now);
}

/// This node holds the address, sees node-2 over two sessions, and then does not run for a while.
fn stalled() -> (Engine, Duration) {
    let mut engine = Engine::new(settings("10.88.0.200", false), Allocations::default());
    engine.handle(links(true), T0);
    let SourceChange::Node(name, Some(mut other)) = node(2) else { unreachable!("a node") };
    other.internal = PEER.to_vec();
    engine.handle(
        source(vec![node(1), SourceChange::Node(name, Some(other)), put(service("web"))]),
        T0,
    );
    engine.handle(
        Event::Peer(PeerEvent::Neighbour { address: PEER[0], mac: [2, 0, 0, 0, 0, 2] }),
        T0,
    );
    let mut now = T0;
    while !announces(&engine) && now < T0 + Duration::from_secs(30) {
        now += Duration::from_millis(50);
        engine.handle(Event::Tick, now);
    }
    assert!(announces(&engine), "nobody else is there");
    for address in PEER {
        tell(&mut engine, now, address, Liveness::Up);
    }
    now += LATE;
    engine.handle(Event::Peer(PeerEvent::Stalled { late: LATE }), now);
    assert!(!announces(&engine), "it answers for nothing until it has looked");
    (engine, now)
}

fn announces(engine: &Engine) -> bool {
    engine
        .report()
        .state()
        .addresses
        .iter()
        .any(|address| address.address == vip(200) && address.owner.as_deref() == Some("node-1"))
}

#[test]
fn what_was_held_is_held_on_where_nobody_noticed() {
    let (mut engine, now) = stalled();
    engine.handle(Event::Peer(PeerEvent::Resynced), now);
    assert!(announces(&engine));
}

#[test]
fn a_node_that_a_peer_declared_down_probes_first_whichever_session_signals_it_and_when() {
    for reason in [DownReason::NeighbourDown, DownReason::DetectionTimeout] {
        let (mut engine, now) = stalled();
        // One session after the other ends and is there again: the peer is never without one.
        for address in PEER {
            tell(&mut engine, now, address, Liveness::Down(reason));
            tell(&mut engine, now, address, Liveness::Up);
        }
        engine.handle(Event::Peer(PeerEvent::Resynced), now);
        assert!(!announces(&engine), "{reason:?}");
        engine.handle(Event::Tick, now + PROBE_INTERVAL * 2);
        assert!(!announces(&engine), "{reason:?}: the other has time to answer");
    }
}

#[test]
fn a_planned_stop_of_a_peer_takes_nothing_away() {
    let (mut engine, now) = stalled();
    tell(&mut engine, now, PEER[1], Liveness::Down(DownReason::AdminDown));
    engine.handle(Event::Peer(PeerEvent::Resynced), now);
    assert!(announces(&engine));
}

/// Its clock stood still with it: only what the peers say shows that this node was away. One of
/// them alone may be mistaken.
#[test]
fn a_node_that_all_peers_declared_down_probes_first_and_one_of_two_does_not_count() {
    const THIRD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 88, 0, 13));
    for all in [true, false] {
        let (mut engine, now) = stalled();
        engine.handle(Event::Peer(PeerEvent::Resynced), now);
        engine.handle(source(vec![node(3)]), now);
        tell(&mut engine, now, THIRD, Liveness::Up);
        assert!(announces(&engine));
        engine.handle(Event::Peer(PeerEvent::RemoteDetectionExpired { address: PEER[0] }), now);
        tell(&mut engine, now, PEER[0], Liveness::Down(DownReason::NeighbourDown));
        assert!(announces(&engine), "the peer has another session");
        tell(&mut engine, now, PEER[0], Liveness::Up);
        let plan =
            engine.handle(Event::Peer(PeerEvent::RemoteDetectionExpired { address: PEER[1] }), now);
        assert!(
            plan.diagnostics
                .iter()
                .any(|notice| notice.reason == "GivenUp" && notice.message.contains("node-2")),
            "{:?}",
            plan.diagnostics
        );
        assert!(!announces(&engine), "it answers for nothing until the others were heard");
        for address in [PEER[1]].into_iter().chain(all.then_some(THIRD)) {
            tell(&mut engine, now, address, Liveness::Down(DownReason::NeighbourDown));
            tell(&mut engine, now, address, Liveness::Up);
        }
        engine.handle(Event::Peer(PeerEvent::Resynced), now);
        assert_eq!(announces(&engine), !all);
        engine.handle(Event::Tick, now + PROBE_INTERVAL * 2);
        assert_eq!(announces(&engine), !all, "the others have time to answer");
    }
}

/// The host stood still for a moment and one of its machines did not wake up again: the other has
/// stood still as well, and is all there is.
#[test]
fn a_node_stalled_while_the_owner_went_down_takes_over_within_about_a_second() {
    let (mut engine, mut now) = stalled();
    // node-2 took over meanwhile, and is known to.
    tell(&mut engine, now, PEER[0], Liveness::Down(DownReason::NeighbourDown));
    tell(&mut engine, now, PEER[0], Liveness::Up);
    engine.handle(Event::Peer(PeerEvent::Resynced), now);
    engine.handle(
        Event::Announcer(AnnouncerEvent::ClaimObserved {
            ifindex: 2,
            vip: vip(200),
            mac: [2, 0, 0, 0, 0, 2],
        }),
        now,
    );
    now += Duration::from_secs(60);
    engine.handle(Event::Tick, now);
    assert!(!announces(&engine), "node-2 has it");

    engine.handle(Event::Peer(PeerEvent::Stalled { late: Duration::from_millis(140) }), now);
    for address in PEER {
        tell(&mut engine, now, address, Liveness::Down(DownReason::DetectionTimeout));
    }
    engine.handle(Event::Peer(PeerEvent::Resynced), now);
    let died = now;
    while !announces(&engine) {
        now += Duration::from_millis(20);
        assert!(now < died + Duration::from_millis(1300), "still nobody answers");
        engine.handle(Event::Tick, now);
    }
    assert!(now >= died + PROBE_INTERVAL * 6, "but not before all probes went unanswered");
}
