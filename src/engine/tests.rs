//! The engine from outside: events in, plans out.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::election::UNVERIFIED_HOLD;
use super::election::rank;
use super::plan::Plan;
use super::*;
use crate::ipam::{Allocations, pool};
use crate::l2::announcer::AnnouncerEvent;
use crate::model::fixtures::service;
use crate::model::forwarding::{Balancing, FrontendKey};
use crate::model::mac::Mac;
use crate::model::state::Phase;
use crate::model::{fixtures, *};

pub(super) const T0: Duration = Duration::from_secs(1);

pub(super) fn settings(pools: &str, probe: bool) -> EngineSettings {
    EngineSettings {
        node: "node-1".into(),
        pools: pool::parse_pools(pools).expect("pools of the test"),
        avoid_buggy_ips: false,
        mode: Mode::Vip,
        class: "pinnace.dev/pinnace".into(),
        claim_default: true,
        interfaces: Vec::new(),
        probe,
        role: Role::Alone,
    }
}

pub(super) fn key(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

pub(super) fn put(service: Service) -> SourceChange {
    SourceChange::Service(service.key.clone(), Some(Box::new(service)))
}

pub(super) fn slice(service: &str, endpoints: &[(&str, &str)]) -> SourceChange {
    let endpoint = |(address, node): &(&str, &str)| Endpoint {
        address: address.parse().expect("address of the test"),
        node: Some((*node).into()),
        ready: true,
        serving: true,
        terminating: false,
        hints: None,
    };
    let slice = EndpointSlice {
        key: key(service),
        service: service.into(),
        family: Family::V4,
        ports: vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: endpoints.iter().map(endpoint).collect(),
    };
    SourceChange::Slice(key(service), Some(Box::new(slice)))
}

pub(super) fn source(changes: Vec<SourceChange>) -> Event {
    Event::Source(SourceUpdate { changes, synced: true, ..SourceUpdate::default() })
}

pub(super) fn links(up: bool) -> Event {
    let eth0 = Interface { up, ..interface("eth0", 2, "10.88.0.11/24") };
    Event::Interfaces(Arc::new(BTreeMap::from([(2, eth0)])))
}

pub(super) fn interface(name: &str, index: u32, address: &str) -> Interface {
    Interface { mac: Some([2, 0, 0, 0, 0, 1]), ..fixtures::interface(index, name, address) }
}

pub(super) fn vip(n: u8) -> IpAddr {
    IpAddr::from([10, 88, 0, n])
}

fn frontend(n: u8) -> FrontendKey {
    FrontendKey { address: vip(n), protocol: Protocol::Tcp, port: 80 }
}

/// An engine that has seen its links and these objects.
fn started(
    settings: EngineSettings,
    saved: Allocations,
    changes: Vec<SourceChange>,
) -> (Engine, Plan) {
    let mut engine = Engine::new(settings, saved);
    engine.handle(links(true), T0);
    let plan = engine.handle(source(changes), T0);
    (engine, plan)
}

/// The phase of a Service once the kernel has everything.
fn phase(engine: &mut Engine, name: &str) -> (Phase, Vec<String>) {
    engine.handle(Event::RuleSet { error: None, generation: u64::MAX }, T0);
    let state = engine.report().state();
    let service = state
        .services
        .into_iter()
        .find(|s| s.key == key(name))
        .expect("the service is in the state");
    (service.phase, service.reasons.into_iter().map(|r| r.code.to_string()).collect())
}

#[test]
fn nothing_goes_out_before_everything_is_known() {
    let mut engine =
        Engine::new(settings("10.88.0.200-10.88.0.201", false), Allocations::default());
    let first = Event::Source(SourceUpdate {
        changes: vec![put(service("web"))],
        ..SourceUpdate::default()
    });
    assert!(engine.handle(first, T0).rule_set.is_empty(), "the source is not complete");
    assert!(engine.handle(links(true), T0).rule_set.is_empty(), "the source is not complete");
    let plan = engine.handle(source(vec![slice("web", &[("10.42.0.5", "node-1")])]), T0);
    assert!(plan.rule_set.reset);
    assert_eq!(plan.rule_set.uplinks, Some(["eth0".into()].into()));
    assert_eq!(plan.rule_set.vips, Some([vip(200)].into()));
    assert!(plan.rule_set.forwardings.contains_key(&frontend(200)));
    assert!(plan.announcements.is_some_and(|a| a.contains_key(&vip(200))));
    assert!(plan.save, "the allocation is written down");
}

#[test]
fn a_new_address_carries_no_traffic_until_probing_has_finished() {
    let objects = vec![put(service("web")), slice("web", &[("10.42.0.5", "node-1")])];
    let (mut engine, plan) =
        started(settings("10.88.0.200-10.88.0.201", true), Allocations::default(), objects);
    assert!(plan.rule_set.forwardings.is_empty() && plan.rule_set.vips == Some([].into()));
    assert!(plan.announcements.is_some_and(|a| a[&vip(200)].probe));
    assert_eq!(phase(&mut engine, "web").0, Phase::Pending);
    let plan = engine.handle(Event::Announcer(AnnouncerEvent::ProbeClear { vip: vip(200) }), T0);
    assert!(plan.rule_set.forwardings.contains_key(&frontend(200)) && plan.save);
    assert_eq!(plan.rule_set.vips, Some([vip(200)].into()));
    assert_eq!(phase(&mut engine, "web").0, Phase::Serving);
}

#[test]
fn an_address_in_use_elsewhere_is_replaced_and_the_machine_named() {
    let objects = vec![put(service("web"))];
    let (mut engine, _) =
        started(settings("10.88.0.200-10.88.0.201", true), Allocations::default(), objects);
    let conflict = AnnouncerEvent::Conflict { vip: vip(200), ifindex: 2, mac: [2, 0, 0, 0, 0, 9] };
    let plan = engine.handle(Event::Announcer(conflict), T0);
    assert!(
        plan.diagnostics.iter().any(|n| n.warning && n.message.contains("02:00:00:00:00:09")),
        "{:?}",
        plan.diagnostics
    );
    let announced = plan.announcements.expect("the other address is tried");
    assert!(announced.contains_key(&vip(201)) && !announced.contains_key(&vip(200)));
}

pub(super) fn node(n: u8) -> SourceChange {
    let node = Node {
        name: format!("node-{n}").into(),
        internal: vec![IpAddr::from([10, 88, 0, 10 + n])],
        external: Vec::new(),
        pod_cidrs: Vec::new(),
        zone: None,
        excluded: None,
        enable_lb: None,
        pool: None,
    };
    SourceChange::Node(node.name.clone(), Some(Box::new(node)))
}

#[test]
fn a_machine_heard_before_the_nodes_are_known_is_named_and_judged_when_they_are() {
    const HEARD: Mac = [2, 0, 0, 0, 0, 9];
    for peer in [HEARD, [2, 0, 0, 0, 0, 2]] {
        let objects = vec![put(service("web")), node(1), node(2)];
        let (mut engine, _) =
            started(settings("10.88.0.200-10.88.0.201", true), Allocations::default(), objects);
        let heard = || {
            Event::Announcer(AnnouncerEvent::ClaimObserved {
                vip: vip(200),
                ifindex: 2,
                mac: HEARD,
            })
        };
        engine.handle(heard(), T0);
        let state = engine.report().state();
        assert_eq!(
            state.services[0].addresses,
            [vip(200)],
            "it may be the other node's, which would not follow to another address"
        );
        assert!(
            state.services[0]
                .reasons
                .iter()
                .any(|reason| reason.message.contains("02:00:00:00:00:09")),
            "{state:?}"
        );
        let plan = engine.handle(heard(), T0 + UNVERIFIED_HOLD);
        assert!(
            plan.diagnostics.iter().any(|notice| notice.message.contains("02:00:00:00:00:09")),
            "{:?}",
            plan.diagnostics
        );
        let neighbour = PeerEvent::Neighbour { address: vip(12), mac: peer };
        engine.handle(Event::Peer(neighbour), T0 + UNVERIFIED_HOLD);
        let kept = peer == HEARD;
        assert_eq!(
            engine.report().state().services[0].addresses,
            [vip(if kept { 200 } else { 201 })],
            "{peer:?}"
        );
    }
}

#[test]
fn the_last_node_whose_object_is_deleted_answers_for_nothing() {
    let (mut engine, plan) = started(
        settings("10.88.0.200", false),
        Allocations::default(),
        vec![put(service("web")), node(1)],
    );
    assert!(plan.announcements.is_some_and(|all| !all[&vip(200)].standby));
    let plan = engine.handle(source(vec![SourceChange::Node("node-1".into(), None)]), T0);
    assert!(plan.announcements.is_some_and(|all| all.is_empty()));
    let plan = engine.handle(source(vec![node(1)]), T0);
    assert!(plan.announcements.is_some_and(|all| !all[&vip(200)].standby));
}

#[test]
fn a_node_whose_object_returns_listens_before_it_answers() {
    let (mut engine, _) = started(
        settings("10.88.0.200", false),
        Allocations::default(),
        vec![put(service("web")), node(1), node(2)],
    );
    engine.handle(
        source(vec![SourceChange::Node("node-1".into(), None)]),
        T0 + Duration::from_secs(60),
    );
    let back = T0 + Duration::from_secs(90);
    engine.handle(source(vec![node(1)]), back);
    let answers = |engine: &Engine| {
        engine
            .election
            .vips
            .announcements
            .get(&vip(200))
            .is_some_and(|announcement| !announcement.standby)
    };
    let mut now = back;
    while !answers(&engine) {
        now = engine.poll_timeout().expect("it waits for something");
        assert!(now < back + rank::LISTEN * 2, "nobody was heard, so it answers");
        engine.handle(Event::Tick, now);
    }
    assert!(now >= back + rank::LISTEN, "{now:?}");
}

#[test]
fn an_endpoint_change_is_a_change_of_its_frontends_alone() {
    let objects =
        vec![put(service("web")), put(service("api")), slice("web", &[("10.42.0.5", "node-1")])];
    let (mut engine, _) =
        started(settings("10.88.0.200-10.88.0.201", false), Allocations::default(), objects);
    let plan = engine.handle(
        source(vec![slice("web", &[("10.42.0.5", "node-1"), ("10.42.1.6", "node-2")])]),
        T0,
    );
    assert!(
        !plan.rule_set.reset
            && plan.rule_set.vips.is_none()
            && plan.rule_set.uplinks.is_none()
            && plan.announcements.is_none()
    );
    assert_eq!(plan.rule_set.forwardings.len(), 1);
    let (_, forwarding) = plan.rule_set.forwardings.first_key_value().expect("one");
    assert!(
        matches!(&forwarding.as_ref().expect("present").internal, Balancing::FlowHash(backends) if backends.len() == 2)
    );
    let again = engine.handle(
        source(vec![slice("web", &[("10.42.1.6", "node-2"), ("10.42.0.5", "node-1")])]),
        T0,
    );
    assert!(again.rule_set.is_empty(), "the order of endpoints means nothing");
}

#[test]
fn an_address_that_one_service_releases_goes_to_another() {
    let (mut older, mut newer) = (service("older"), service("newer"));
    (older.created, newer.created) = (1, 2);
    let objects = vec![
        put(newer),
        put(older),
        slice("newer", &[("10.42.0.5", "node-1")]),
        slice("older", &[("10.42.0.6", "node-1")]),
    ];
    let (mut engine, _) = started(settings("10.88.0.200", false), Allocations::default(), objects);
    assert_eq!(phase(&mut engine, "older").0, Phase::Serving);
    assert_eq!(phase(&mut engine, "newer").0, Phase::Failed);
    let plan = engine.handle(source(vec![SourceChange::Service(key("older"), None)]), T0);
    assert_eq!(phase(&mut engine, "newer").0, Phase::Serving);
    assert!(
        plan.rule_set.forwardings[&frontend(200)].is_some(),
        "taken over, not removed: {plan:?}"
    );
}

#[test]
fn a_service_that_may_not_share_is_served_as_soon_as_the_other_agrees() {
    let (mut holder, mut second) = (service("holder"), service("second"));
    (holder.created, second.created) = (1, 2);
    second.ports[0].port = 81;
    second.request.sharing = Some("both".into());
    for service in [&mut holder, &mut second] {
        service.request.addresses = vec![vip(200)];
    }
    let objects = vec![put(holder.clone()), put(second)];
    let (mut engine, _) = started(settings("10.88.0.200", false), Allocations::default(), objects);
    assert_eq!(phase(&mut engine, "second").0, Phase::Failed);
    holder.request.sharing = Some("both".into());
    engine.handle(source(vec![put(holder)]), T0);
    assert_ne!(phase(&mut engine, "second").0, Phase::Failed);
}

#[test]
fn a_local_service_is_announced_only_where_it_has_an_endpoint() {
    let mut local = service("web");
    local.external = TrafficPolicy::Local;
    let objects = vec![put(local), slice("web", &[("10.42.1.6", "node-2")])];
    let (mut engine, plan) =
        started(settings("10.88.0.200", false), Allocations::default(), objects);
    assert!(plan.announcements.is_none_or(|a| a.is_empty()));
    assert!(
        plan.rule_set.forwardings[&frontend(200)]
            .as_ref()
            .is_some_and(|f| f.external == Some(Balancing::Drop))
    );
    let plan = engine.handle(source(vec![slice("web", &[("10.42.0.5", "node-1")])]), T0);
    assert!(plan.announcements.is_some_and(|a| a.contains_key(&vip(200))));
    // No endpoint: connections are rejected, so one node must answer for the address.
    let plan = engine.handle(source(vec![slice("web", &[])]), T0);
    assert!(plan.announcements.is_none_or(|a| a.contains_key(&vip(200))));
    assert!(
        plan.rule_set.forwardings[&frontend(200)]
            .as_ref()
            .is_some_and(|f| f.internal == Balancing::Reject && f.external.is_none())
    );
}

#[test]
fn carrier_loss_withdraws_the_announcement_and_keeps_the_rules() {
    let (mut engine, _) =
        started(settings("10.88.0.200", false), Allocations::default(), vec![put(service("web"))]);
    let plan = engine.handle(links(false), T0);
    assert!(plan.announcements.is_some_and(|a| a.is_empty()));
    assert!(plan.rule_set.forwardings.is_empty() && plan.rule_set.vips.is_none());
    let plan = engine.handle(links(true), T0);
    assert!(plan.announcements.is_some_and(|a| a.contains_key(&vip(200))));
}

#[test]
fn addresses_survive_a_restart_and_stay_with_their_services() {
    let objects = |names: &[&str]| names.iter().map(|n| put(service(n))).collect::<Vec<_>>();
    let (first, _) = started(
        settings("10.88.0.200-10.88.0.210", false),
        Allocations::default(),
        objects(&["b", "c"]),
    );
    let saved = Allocations::clone(first.allocations());
    // "a" sorts first but is new; it must not take what the others have.
    let (second, _) =
        started(settings("10.88.0.200-10.88.0.210", false), saved, objects(&["a", "b", "c"]));
    let addresses =
        |engine: &Engine, name: &str| engine.decisions.services[&key(name)].addresses.clone();
    assert_eq!(addresses(&first, "b"), addresses(&second, "b"));
    assert_eq!(addresses(&first, "c"), addresses(&second, "c"));
    assert_eq!(addresses(&second, "a"), [vip(202)]);
}

#[test]
fn serving_means_in_the_kernel() {
    let objects = vec![put(service("web")), slice("web", &[("10.42.0.5", "node-1")])];
    let (mut engine, plan) =
        started(settings("10.88.0.200", false), Allocations::default(), objects);
    let reasons = |engine: &Engine| {
        engine.report().state().services[0]
            .reasons
            .iter()
            .map(|r| r.code.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (engine.report().state().services[0].phase, reasons(&engine)),
        (Phase::Pending, vec!["Applying".to_string()])
    );
    engine.handle(
        Event::RuleSet { error: Some("no".into()), generation: plan.rule_set.generation },
        T0,
    );
    assert_eq!(engine.report().state().services[0].phase, Phase::Pending);
    engine.handle(Event::RuleSet { error: None, generation: plan.rule_set.generation }, T0);
    assert_eq!(
        (engine.report().state().services[0].phase, reasons(&engine)),
        (Phase::Serving, vec![])
    );
}

#[test]
fn draining_stops_every_announcement_and_leaves_the_rules() {
    let (mut engine, _) =
        started(settings("10.88.0.200", false), Allocations::default(), vec![put(service("web"))]);
    let plan = engine.handle(Event::Drain, T0);
    assert!(
        plan.announcements.is_some_and(|a| a.is_empty()) && plan.rule_set.forwardings.is_empty()
    );
}

#[test]
fn node_mode_serves_on_the_nodes_own_address_and_names_the_service_with_the_port() {
    let (mut a, mut b) = (service("a"), service("b"));
    (a.request.mode, b.request.mode) = (Some(Mode::Node), Some(Mode::Node));
    b.created = 5;
    let (mut engine, plan) = started(
        settings("", false),
        Allocations::default(),
        vec![put(a.clone()), put(b), slice("b", &[("10.42.0.5", "node-1")])],
    );
    assert!(plan.rule_set.forwardings[&frontend(11)].is_some());
    let (refused, codes) = phase(&mut engine, "b");
    assert_eq!((refused, codes.len()), (Phase::Failed, 1));
    assert!(
        plan.diagnostics.iter().any(|n| n.message.contains("default/a")),
        "{:?}",
        plan.diagnostics
    );
    a.ports[0].port = 81;
    engine.handle(source(vec![put(a)]), T0);
    assert_eq!(phase(&mut engine, "b").0, Phase::Serving);
}

#[test]
fn an_address_that_kube_proxy_keeps_on_its_own_interface_is_not_a_nodes() {
    let (mut engine, _) =
        started(settings("10.88.0.200", false), Allocations::default(), vec![put(service("web"))]);
    let (own, mut both) = (interface("eth0", 2, "10.88.0.11/24"), BTreeMap::new());
    both.extend([(2, own), (7, interface("kube-ipvs0", 7, "10.88.0.200/32"))]);
    engine.handle(Event::Interfaces(Arc::new(both)), T0);
    assert_ne!(phase(&mut engine, "web").0, Phase::Failed);
}

#[test]
fn addresses_of_a_pool_that_are_never_given_out_are_named_once() {
    let (mut engine, plan) = started(
        settings("lan=10.88.0.0-10.88.0.12", false),
        Allocations::default(),
        vec![put(service("web"))],
    );
    let said = |plan: &Plan| {
        plan.diagnostics
            .iter()
            .filter(|n| n.reason == "PoolAddressReserved")
            .map(|n| n.message.clone())
            .collect::<Vec<_>>()
    };
    let first = said(&plan);
    assert!(first.len() == 1 && first[0].contains("pool lan"), "{first:?}");
    assert!(
        first[0].contains("10.88.0.0 (the network address")
            && first[0].contains("10.88.0.11 (an address of node node-1)"),
        "{first:?}"
    );
    assert!(said(&engine.handle(links(false), T0)).is_empty(), "nothing new");
    let state = engine.report().state();
    assert!(state.warnings.iter().any(|warning| warning.message == first[0]));
    assert_eq!(state.pools[0].size, 11);
}
