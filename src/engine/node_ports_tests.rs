//! Node mode: port allocation per node, as every node computes it and as nodes come and go.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::api_tests::{Api, served};
use super::plan::Plan;
use super::tests::{T0, interface, key, links, put, settings, slice, source, vip};
use super::*;
use crate::ipam::Allocations;
use crate::model::fixtures::service;
use crate::model::forwarding::FrontendKey;
use crate::model::state::Phase;
use crate::model::*;

/// An IPv4 Service on port 80 of the nodes of this pool, of all nodes without one.
fn pooled(name: &str, created: i64, pool: Option<&str>) -> Service {
    let request = Request { mode: Some(Mode::Node), ..Request::default() };
    Service { created, request, node_pool: pool.map(Into::into), ..service(name) }
}

/// `node-<number>` at 10.88.0.1<number>, with ServiceLB's labels where a pool is named.
fn node(number: u8, pool: Option<&str>) -> SourceChange {
    let name: Box<str> = format!("node-{number}").into();
    let node = Node {
        name: name.clone(),
        internal: vec![vip(10 + number), format!("fd88::1{number}").parse().unwrap()],
        external: vec![],
        pod_cidrs: vec![],
        zone: None,
        excluded: None,
        enable_lb: pool.map(|_| true),
        pool: pool.map(Into::into),
    };
    SourceChange::Node(name, Some(Box::new(node)))
}

/// The engine of `node-<number>` with manifests.
fn alone(number: u8, saved: Allocations, changes: Vec<SourceChange>) -> (Engine, Plan) {
    let mut engine = Engine::new(
        EngineSettings { node: format!("node-{number}").into(), ..settings("", false) },
        saved,
    );
    engine.handle(links(true), T0);
    let plan = engine.handle(source(changes), T0);
    (engine, plan)
}

/// The engine of `node-<number>` with an API server.
fn in_cluster(number: u8, role: Role) -> Engine {
    let node = format!("node-{number}").into();
    let mut engine = Engine::new(
        EngineSettings { node, role: Role::Follower, ..settings("", false) },
        Allocations::default(),
    );
    engine.handle(links(true), T0);
    engine.handle(Event::Role(role), T0);
    engine
}

/// The phase of a Service, and why.
fn verdict(engine: &Engine, name: &str) -> (Phase, String) {
    let service = engine
        .report()
        .state()
        .services
        .into_iter()
        .find(|service| service.key == key(name))
        .expect("in the state");
    (
        service.phase,
        service.reasons.into_iter().map(|reason| reason.message).collect::<Vec<_>>().join("; "),
    )
}

fn refused(engine: &Engine, name: &str) -> bool {
    verdict(engine, name).0 == Phase::Failed
}

fn ports_in(plan: &Plan) -> BTreeSet<FrontendKey> {
    plan.rule_set
        .forwardings
        .iter()
        .filter(|(_, forwarding)| forwarding.is_some())
        .map(|(key, _)| *key)
        .collect()
}

#[test]
fn one_port_serves_two_services_in_two_pools_and_each_node_has_rules_for_its_own() {
    let objects = || {
        vec![
            node(1, Some("a")),
            node(2, Some("b")),
            put(pooled("in-a", 1, Some("a"))),
            put(pooled("in-b", 2, Some("b"))),
        ]
    };
    for number in [1, 2] {
        let (engine, plan) = alone(number, Allocations::default(), objects());
        assert_eq!(
            (served(&engine, "in-a"), served(&engine, "in-b")),
            (vec![vip(11)], vec![vip(12)])
        );
        assert!(!refused(&engine, "in-a") && !refused(&engine, "in-b"));
        assert_eq!(ports_in(&plan).len(), 1, "of its own pool's Service");
    }
}

#[test]
fn one_port_serves_two_services_of_different_families() {
    let six = Service { families: vec![Family::V6], ..pooled("six", 2, None) };
    let (engine, _) = alone(
        1,
        Allocations::default(),
        vec![node(1, None), put(pooled("four", 1, None)), put(six)],
    );
    assert_eq!(served(&engine, "four"), [vip(11)]);
    assert_eq!(served(&engine, "six"), ["fd88::11".parse::<IpAddr>().unwrap()]);
    let both = Service { families: vec![Family::V6, Family::V4], ..pooled("both", 3, None) };
    let (engine, _) = alone(
        1,
        Allocations::default(),
        vec![node(1, None), put(pooled("four", 1, None)), put(both)],
    );
    assert_eq!(served(&engine, "both"), ["fd88::11".parse::<IpAddr>().unwrap()], "what is left");
    let (_, why) = verdict(&engine, "both");
    assert!(
        why.contains("IPv4") && why.contains("default/four") && why.contains("node-1"),
        "{why}"
    );
}

#[test]
fn where_pools_meet_the_first_service_keeps_the_port_and_the_other_serves_on_the_rest() {
    // The newcomer is the older one by its date and the first by its name: neither matters against
    // who is there.
    let held = vec![
        node(1, Some("a")),
        node(2, Some("b")),
        node(3, Some("b")),
        put(pooled("zeta", 9, Some("a"))),
    ];
    let (mut engine, _) = alone(1, Allocations::default(), held);
    engine.handle(source(vec![put(pooled("alpha", 1, None))]), T0);
    assert_eq!(
        (served(&engine, "zeta"), served(&engine, "alpha")),
        (vec![vip(11)], vec![vip(12), vip(13)])
    );
    let (phase, why) = verdict(&engine, "alpha");
    assert_ne!(phase, Phase::Failed);
    assert!(
        why.contains("80/TCP")
            && why.contains("default/zeta")
            && why.contains("node-1")
            && !why.contains("node-2"),
        "{why}"
    );
    // A node that changes sides is whose it was.
    engine.handle(source(vec![node(2, Some("a"))]), T0);
    assert_eq!(
        (served(&engine, "zeta"), served(&engine, "alpha")),
        (vec![vip(11)], vec![vip(12), vip(13)])
    );
    assert!(verdict(&engine, "zeta").1.contains("node-2"), "told who has it there");
    // One that comes is for neither to have held; the one that serves less is no older here than
    // there.
    engine.handle(source(vec![SourceChange::Service(key("alpha"), None)]), T0);
    assert_eq!(served(&engine, "zeta"), [vip(11), vip(12)], "what the other left");
}

#[test]
fn a_node_that_was_away_is_whose_it_was() {
    let (mut engine, _) = alone(
        1,
        Allocations::default(),
        vec![node(1, None), node(2, None), put(pooled("zeta", 9, None))],
    );
    engine.handle(source(vec![put(pooled("alpha", 1, None))]), T0);
    for change in [
        SourceChange::Node("node-2".into(), None),
        node(2, None),
        SourceChange::Node("node-1".into(), None),
        node(1, None),
    ] {
        engine.handle(source(vec![change]), T0);
        assert!(refused(&engine, "alpha") && !refused(&engine, "zeta"));
    }
    assert_eq!(served(&engine, "zeta"), [vip(11), vip(12)]);
    // The last node of a pool: nobody has the port while it is excluded.
    let mut excluded = node(1, None);
    if let SourceChange::Node(_, Some(node)) = &mut excluded {
        node.excluded = Some(Exclusion::Label);
    }
    engine.handle(source(vec![SourceChange::Node("node-2".into(), None), excluded]), T0);
    assert!(served(&engine, "zeta").is_empty() && served(&engine, "alpha").is_empty());
    engine.handle(source(vec![node(1, None)]), T0);
    assert_eq!((served(&engine, "zeta"), served(&engine, "alpha")), (vec![vip(11)], vec![]));
}

#[test]
fn a_service_that_requests_one_more_port_keeps_what_it_has_and_takes_nothing_from_others() {
    let port =
        |port: u16| ServicePort { name: port.to_string().into(), protocol: Protocol::Tcp, port };
    let with = |name: &str, created, ports: &[u16]| Service {
        ports: ports.iter().map(|number| port(*number)).collect(),
        ..pooled(name, created, None)
    };
    let (mut engine, _) = alone(
        1,
        Allocations::default(),
        vec![put(with("zeta", 9, &[80])), put(with("other", 9, &[443]))],
    );
    engine.handle(source(vec![put(with("alpha", 1, &[80]))]), T0);
    engine.handle(source(vec![put(with("zeta", 9, &[80, 8443]))]), T0);
    assert!(
        refused(&engine, "alpha") && !refused(&engine, "zeta"),
        "8443 was free, and 80 was its own"
    );
    engine.handle(source(vec![put(with("zeta", 9, &[80, 443]))]), T0);
    assert!(
        refused(&engine, "zeta") && !refused(&engine, "other"),
        "all of its ports or none, and 443 is another's"
    );
    assert!(
        verdict(&engine, "zeta").1.contains("443/TCP")
            && verdict(&engine, "zeta").1.contains("default/other")
    );
    assert!(!refused(&engine, "alpha"), "who waited has what was given up");
}

#[test]
fn all_nodes_agree_whatever_they_heard_first() {
    let mut api = Api::default();
    let nodes = || vec![node(1, Some("a")), node(2, Some("b")), node(3, Some("b"))];
    for service in
        [pooled("everywhere", 2, None), pooled("in-a", 1, Some("a")), pooled("in-b", 3, Some("b"))]
    {
        api.put(service, vec![]);
    }
    let mut writer = in_cluster(1, Role::Leader);
    writer.handle(source(nodes()), T0);
    for _ in 0..3 {
        api.write_all(&writer.handle(api.events(), T0));
    }
    assert!(writer.handle(api.events(), T0).status_patches.is_empty(), "settled");
    assert_eq!(
        (api.says("in-a"), api.says("everywhere"), api.says("in-b")),
        (vec![vip(11)], vec![vip(12), vip(13)], vec![])
    );
    // One more that is older than all of them, told in any order to nodes that start, and to one
    // that went on.
    api.put(pooled("ancient", 0, Some("b")), vec![]);
    let all: Vec<SourceChange> = api.services.values().cloned().map(put).chain(nodes()).collect();
    let outcome = |engine: &Engine| {
        ["in-a", "everywhere", "in-b", "ancient"].map(|name| served(engine, name))
    };
    writer.handle(api.events(), T0);
    let expected = outcome(&writer);
    assert_eq!(expected, [vec![vip(11)], vec![vip(12), vip(13)], vec![], vec![]]);
    for turn in 0..all.len() {
        for reversed in [false, true] {
            let mut changes = all.clone();
            changes.rotate_left(turn);
            if reversed {
                changes.reverse();
            }
            let mut follower = in_cluster(2, Role::Follower);
            for change in changes {
                follower.handle(source(vec![change]), T0);
            }
            assert_eq!(outcome(&follower), expected, "{turn} {reversed}");
        }
    }
}

#[test]
fn a_contested_port_is_whose_it_was_before_a_restart() {
    let zeta = || put(pooled("zeta", 0, None));
    let (mut first, plan) = alone(1, Allocations::default(), vec![zeta()]);
    assert!(plan.save, "it is to be written down");
    first.handle(source(vec![put(pooled("alpha", 0, None))]), T0);
    assert!(refused(&first, "alpha") && !refused(&first, "zeta"));
    let saved = serde_json::to_vec(&**first.allocations()).unwrap();
    let saved: Allocations = serde_json::from_slice(&saved).unwrap();
    let (mut second, _) = alone(1, saved.clone(), vec![zeta(), put(pooled("alpha", 0, None))]);
    assert!(refused(&second, "alpha") && !refused(&second, "zeta"));
    let plan = second.handle(source(vec![SourceChange::Service(key("zeta"), None)]), T0);
    assert!(!refused(&second, "alpha") && plan.save);
    let (third, _) = alone(
        1,
        Allocations::clone(second.allocations()),
        vec![zeta(), put(pooled("alpha", 0, None))],
    );
    assert!(refused(&third, "zeta") && !refused(&third, "alpha"), "who had it last");
    let (fourth, _) = alone(1, saved, vec![put(pooled("alpha", 0, None))]);
    assert!(!refused(&fourth, "alpha"), "the holder was deleted while we were away");
}

#[test]
fn a_node_address_on_an_interface_that_is_no_uplink_is_told_with_the_setting() {
    let (mut engine, _) = alone(
        1,
        Allocations::default(),
        vec![put(pooled("web", 1, None)), slice("web", &[("10.42.0.5", "node-1")])],
    );
    let mut tailnet = node(1, None);
    if let SourceChange::Node(_, Some(node)) = &mut tailnet {
        node.internal = vec!["100.64.0.5".parse().unwrap()];
        node.external = vec!["203.0.113.5".parse().unwrap()];
    }
    let eth0 = interface("eth0", 2, "10.88.0.11/24");
    let interfaces = |name| {
        Event::Interfaces(Arc::new(
            [(2, eth0.clone()), (3, interface(name, 3, "100.64.0.5/32"))].into(),
        ))
    };
    engine.handle(interfaces("tailscale0"), T0);
    engine.handle(source(vec![tailnet.clone()]), T0);
    engine.handle(Event::RuleSet { error: None, generation: u64::MAX }, T0);
    assert_eq!(
        verdict(&engine, "web"),
        (Phase::Serving, String::new()),
        "what clients are told is translated on the way here"
    );
    if let SourceChange::Node(_, Some(node)) = &mut tailnet {
        node.external.clear();
    }
    engine.handle(source(vec![tailnet]), T0);
    let (phase, why) = verdict(&engine, "web");
    assert_eq!(phase, Phase::Pending);
    assert!(
        why.contains("100.64.0.5")
            && why.contains("on tailscale0")
            && why.contains("PINNACE_INTERFACES=tailscale0"),
        "{why}"
    );
    engine.handle(interfaces("eth1"), T0);
    engine.handle(Event::RuleSet { error: None, generation: u64::MAX }, T0);
    assert_eq!(verdict(&engine, "web"), (Phase::Serving, String::new()));
}
