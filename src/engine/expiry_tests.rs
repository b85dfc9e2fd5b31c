//! Knowledge that expires.

use std::time::Duration;

use super::election::FOREIGN_FOR;
use super::election::{DEAD_FOR, rank};
use super::membership::{ABSENT_AFTER, DownReason, Liveness, PeerEvent};
use super::tests::{T0, links, node, put, settings, slice, source, vip};
use super::*;
use crate::ipam::Allocations;
use crate::l2::announcer::AnnouncerEvent;
use crate::model::SourceChange;
use crate::model::fixtures::service;
use crate::model::state::AddressPhase;

const MOMENT: Duration = Duration::from_millis(1);

/// This node, and another that has just been found dead, with an endpoint on each.
fn bereaved(role: Role) -> Engine {
    let mut engine = Engine::new(
        EngineSettings { role, ..settings("10.88.0.200", false) },
        Allocations::default(),
    );
    engine.handle(links(true), T0);
    let slice = slice("web", &[("10.42.1.5", "node-1"), ("10.42.2.5", "node-2")]);
    engine.handle(source(vec![node(1), node(2), put(service("web")), slice]), T0);
    assert_eq!(endpoints(&engine), 2);
    for state in [Liveness::Up, Liveness::Down(DownReason::DetectionTimeout)] {
        engine.handle(Event::Peer(PeerEvent::Liveness { address: vip(12), state }), T0);
    }
    assert_eq!(endpoints(&engine), 1);
    engine
}

fn endpoints(engine: &Engine) -> usize {
    engine.report().state().services[0].ports[0].endpoints
}

/// Advances time by the engine's poll timeouts.
fn wait(engine: &mut Engine, until: Duration) {
    for _ in 0..1000 {
        let Some(due) = engine.poll_timeout().filter(|due| *due <= until) else { break };
        engine.handle(Event::Tick, due);
    }
    engine.handle(Event::Tick, until);
}

fn source_health(health: Result<(), String>) -> Event {
    Event::Source(SourceUpdate { health: Some(health), ..SourceUpdate::default() })
}

#[test]
fn endpoints_that_the_api_still_calls_ready_after_a_minute_are_used_again() {
    let mut engine = bereaved(Role::Follower);
    wait(&mut engine, T0 + DEAD_FOR - MOMENT);
    assert_eq!(endpoints(&engine), 1);
    let due = engine.poll_timeout().expect("it wakes up for that");
    assert!(due <= T0 + DEAD_FOR, "{due:?}");
    wait(&mut engine, T0 + DEAD_FOR);
    assert_eq!(endpoints(&engine), 2, "Pinnace ended there, the pods did not");
    wait(&mut engine, T0 + DEAD_FOR * 10);
    assert_eq!(endpoints(&engine), 2, "found dead once");
}

#[test]
fn without_a_reachable_api_server_dead_endpoints_stay_down() {
    let mut files = bereaved(Role::Alone);
    wait(&mut files, T0 + DEAD_FOR * 10);
    assert_eq!(endpoints(&files), 1, "files say nothing about the life of nodes");

    let mut engine = bereaved(Role::Follower);
    engine.handle(source_health(Err("no answer".into())), T0 + MOMENT);
    wait(&mut engine, T0 + DEAD_FOR * 3);
    assert_eq!(endpoints(&engine), 1, "what the API server said last is old");
    let back = T0 + DEAD_FOR * 3;
    engine.handle(source_health(Ok(())), back);
    wait(&mut engine, back + DEAD_FOR - MOMENT);
    assert_eq!(endpoints(&engine), 1, "it has to find out first");
    wait(&mut engine, back + DEAD_FOR);
    assert_eq!(endpoints(&engine), 2);
}

#[test]
fn owners_do_not_announce_often_for_ever_because_of_a_node_without_pinnace() {
    let mut engine = Engine::new(settings("10.88.0.200", false), Allocations::default());
    engine.handle(links(true), T0);
    let plan = engine.handle(source(vec![node(1), node(2)]), T0);
    assert_eq!(plan.announce_interval, Some(Some(rank::FAST_ANNOUNCE_INTERVAL)));
    wait(&mut engine, T0 + ABSENT_AFTER - MOMENT);
    assert!(
        engine.poll_timeout().is_some_and(|due| due <= T0 + ABSENT_AFTER),
        "it wakes up for that"
    );
    let plan = engine.handle(Event::Tick, T0 + ABSENT_AFTER);
    assert_eq!(plan.announce_interval, Some(None), "as configured");
}

#[test]
fn a_deleted_node_is_no_longer_dead() {
    let mut engine = bereaved(Role::Follower);
    engine.handle(source(vec![SourceChange::Node("node-2".into(), None)]), T0 + MOMENT);
    engine.handle(source(vec![node(2)]), T0 + MOMENT * 2);
    assert_eq!(endpoints(&engine), 2, "another machine of that name, never seen yet");
}

#[test]
fn a_conflict_that_ended_is_cleared_and_a_later_one_reported_again() {
    let (mut engine, address) =
        (Engine::new(settings("10.88.0.200", false), Allocations::default()), vip(200));
    engine.handle(links(true), T0);
    engine.handle(source(vec![put(service("web"))]), T0);
    let told = |engine: &mut Engine, now| {
        let event = AnnouncerEvent::Contested { vip: address, ifindex: 2, mac: [2, 0, 0, 0, 0, 9] };
        engine.handle(Event::Announcer(event), now).diagnostics.len()
    };
    let contested = |engine: &mut Engine, now| {
        engine.handle(Event::Tick, now);
        matches!(engine.report().state().addresses[0].phase, AddressPhase::Contested { .. })
    };
    assert_eq!((told(&mut engine, T0), told(&mut engine, T0 + MOMENT)), (1, 0), "once");
    assert!(contested(&mut engine, T0 + FOREIGN_FOR));
    assert!(!contested(&mut engine, T0 + FOREIGN_FOR + MOMENT));
    assert_eq!(told(&mut engine, T0 + FOREIGN_FOR * 2), 1, "it is back");
    assert!(contested(&mut engine, T0 + FOREIGN_FOR * 2));
}
