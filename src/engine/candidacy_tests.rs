//! Which nodes may answer for an address: what each says that may not, and one owner for an
//! address that Services share.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::election::rank;
use super::eligibility::Ineligible;
use super::membership::{Liveness, PeerEvent};
use super::plan::Plan;
use super::tests::{T0, interface, key, links, node, put, settings, slice, source, vip};
use super::*;
use crate::ipam::Allocations;
use crate::l2::announcer::AnnouncerEvent;
use crate::model::fixtures::service;
use crate::model::state::AddressPhase;
use crate::model::*;

/// A node that knows these objects, with the one address of a pool for `default/web`.
fn knowing(pool: &str, objects: Vec<SourceChange>) -> Engine {
    let mut engine = Engine::new(settings(pool, false), Allocations::default());
    engine.handle(links(true), T0);
    engine.handle(source(objects), T0);
    engine
}

fn excluded(exclusion: Exclusion) -> Engine {
    let SourceChange::Node(name, Some(mut own)) = node(1) else { unreachable!("a node") };
    own.excluded = Some(exclusion);
    knowing("10.88.0.200", vec![put(service("web")), SourceChange::Node(name, Some(own))])
}

/// The same, after something happened to it.
fn after(objects: Vec<SourceChange>, event: Event) -> Engine {
    let mut engine = knowing("10.88.0.200", [vec![put(service("web"))], objects].concat());
    engine.handle(event, T0);
    engine
}

fn without_ipv6() -> Engine {
    let web = Service { families: vec![Family::V6], ..service("web") };
    let mut engine = knowing("fd88::200", vec![put(web)]);
    let eth0 = Interface { ipv6: false, ..interface("eth0", 2, "10.88.0.11/24") };
    engine.handle(Event::Interfaces(Arc::new(BTreeMap::from([(2, eth0)]))), T0);
    engine
}

fn without_local_endpoint() -> Engine {
    let web = Service { external: TrafficPolicy::Local, ..service("web") };
    knowing("10.88.0.200", vec![put(web), slice("web", &[("10.42.1.6", "node-2")])])
}

/// Every way not to be eligible, in the order of the enumeration: a new one does not compile until
/// it has a line below.
const WAYS: usize = 9;
fn way(why: &Ineligible) -> usize {
    match why {
        Ineligible::Excluded(_) => 0,
        Ineligible::Draining => 1,
        Ineligible::NoInterface { .. } => 2,
        Ineligible::Ipv6Off => 3,
        Ineligible::LinkDown => 4,
        Ineligible::NoLocalEndpoint => 5,
        Ineligible::NoNode => 6,
        Ineligible::Suspended => 7,
        Ineligible::DuplicateNode { .. } => 8,
    }
}

#[test]
fn a_node_that_may_not_answer_says_why() {
    let elsewhere = IpAddr::from([10, 99, 0, 200]);
    let both = || vec![node(1), node(2)];
    let deleted = source(vec![SourceChange::Node("node-1".into(), None)]);
    let stalled = Event::Peer(PeerEvent::Stalled { late: Duration::from_secs(6) });
    let doubled = Event::Peer(PeerEvent::DuplicateIdentity { address: vip(12), ours: true });
    let table = [
        (
            excluded(Exclusion::Label),
            Ineligible::Excluded(Exclusion::Label),
            "NodeExcluded",
            "remove the label",
        ),
        (
            excluded(Exclusion::Deleting),
            Ineligible::Excluded(Exclusion::Deleting),
            "NodeExcluded",
            "is being deleted",
        ),
        (
            excluded(Exclusion::Autoscaler),
            Ineligible::Excluded(Exclusion::Autoscaler),
            "NodeExcluded",
            "autoscaler",
        ),
        (after(vec![], Event::Drain), Ineligible::Draining, "Draining", "stopping"),
        (
            knowing("10.99.0.200", vec![put(service("web"))]),
            Ineligible::NoInterface { address: elsewhere },
            "NoInterface",
            "contains 10.99.0.200",
        ),
        (without_ipv6(), Ineligible::Ipv6Off, "Ipv6Off", "net.ipv6.conf.all.disable_ipv6"),
        (after(vec![], links(false)), Ineligible::LinkDown, "LinkDown", "link"),
        (
            without_local_endpoint(),
            Ineligible::NoLocalEndpoint,
            "NoLocalEndpoint",
            "externalTrafficPolicy is Local",
        ),
        (after(both(), deleted), Ineligible::NoNode, "NoNode", "PINNACE_NODE_NAME"),
        (after(both(), stalled), Ineligible::Suspended, "Suspended", "looks first who took over"),
        (
            after(both(), doubled),
            Ineligible::DuplicateNode { address: vip(11) },
            "DuplicateNode",
            "at 10.88.0.11",
        ),
    ];
    let listed: BTreeSet<usize> = table.iter().map(|(_, why, ..)| way(why)).collect();
    assert_eq!(listed, (0..WAYS).collect());
    for (engine, why, code, words) in table {
        let state = engine.report().state();
        let [address] = &state.addresses[..] else { panic!("{code}: {:?}", state.addresses) };
        assert_eq!(address.phase, AddressPhase::NotAnnounced { reason: why.to_string() }, "{code}");
        assert!(
            address.owner.as_deref() != Some("node-1") && address.announced_on.is_empty(),
            "{code}: {address:?}"
        );
        let reasons = &state.services[0].reasons;
        let Some(reason) = reasons.iter().find(|reason| reason.code == code) else {
            panic!("{code}: {reasons:?}")
        };
        assert!(
            reason.message.contains(words) && reason.message.contains(&address.address.to_string()),
            "{code}: {}",
            reason.message
        );
    }
}

/// Nodes that see each other, on a wire on which whoever answers for the address is heard.
struct Wire {
    nodes: Vec<Engine>,
    now: Duration,
}

const NODES: u8 = 3;

impl Wire {
    /// Every node knows these objects and the others.
    fn with(pool: &str, objects: &[SourceChange]) -> Wire {
        let start = |own: u8| {
            let own_name: Box<str> = format!("node-{own}").into();
            let mut engine = Engine::new(
                EngineSettings { node: own_name, ..settings(pool, false) },
                Allocations::default(),
            );
            let eth0 = interface("eth0", 2, &format!("10.88.0.{}/24", 10 + own));
            engine.handle(Event::Interfaces(Arc::new(BTreeMap::from([(2, eth0)]))), T0);
            engine
                .handle(source((1..=NODES).map(node).chain(objects.iter().cloned()).collect()), T0);
            for other in (1..=NODES).filter(|other| *other != own) {
                engine.handle(
                    Event::Peer(PeerEvent::Neighbour {
                        address: vip(10 + other),
                        mac: [2, 0, 0, 0, 0, other],
                    }),
                    T0,
                );
                engine.handle(
                    Event::Peer(PeerEvent::Liveness {
                        address: vip(10 + other),
                        state: Liveness::Up,
                    }),
                    T0,
                );
            }
            engine
        };
        Wire { nodes: (1..=NODES).map(start).collect(), now: T0 }
    }

    /// The nodes that answer for the address.
    fn answering(&self, address: IpAddr) -> Vec<u8> {
        let answers = |n: &u8| {
            let engine = &self.nodes[usize::from(*n) - 1];
            engine
                .election
                .vips
                .announcements
                .get(&address)
                .is_some_and(|announcement| !announcement.standby && !announcement.quiet)
        };
        (1..=NODES).filter(answers).collect()
    }

    /// Time passes, in steps: whoever answers is heard by the others.
    fn run(&mut self, address: IpAddr, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += Duration::from_millis(50);
            self.nodes
                .iter_mut()
                .for_each(|engine| drop::<Plan>(engine.handle(Event::Tick, self.now)));
            for owner in self.answering(address) {
                let heard = AnnouncerEvent::ClaimObserved {
                    vip: address,
                    ifindex: 2,
                    mac: [2, 0, 0, 0, 0, owner],
                };
                for (own, engine) in (1..=NODES).zip(&mut self.nodes) {
                    if own != owner {
                        engine.handle(Event::Announcer(heard.clone()), self.now);
                    }
                }
            }
        }
    }
}

/// A node is a candidate when it can serve at least one of them, or none can be served anywhere,
/// and the best candidate owns the address for all.
#[test]
fn services_that_share_an_address_have_one_set_of_candidates_and_one_owner() {
    let shared = |name: &str, port: u16, address: IpAddr| {
        let mut service = Service {
            external: TrafficPolicy::Local,
            selector: Some("the same pods".into()),
            ..service(name)
        };
        service.ports[0].port = port;
        service.request.sharing = Some("both".into());
        service.request.addresses = vec![address];
        service
    };
    let on = |name: &str, nodes: &[u8]| {
        let endpoints: Vec<(String, String)> =
            nodes.iter().map(|n| (format!("10.42.{n}.5"), format!("node-{n}"))).collect();
        slice(
            name,
            &endpoints.iter().map(|(address, node)| (&**address, &**node)).collect::<Vec<_>>(),
        )
    };
    let mut winners = BTreeSet::new();
    // Where the first has endpoints and where the second has.
    let layouts: [(&[u8], &[u8]); 7] = [
        (&[1], &[2]),
        (&[2], &[1, 3]),
        (&[3], &[3]),
        (&[1, 2, 3], &[]),
        (&[], &[2]),
        (&[1, 2], &[2, 3]),
        (&[], &[]),
    ];
    for (first, second) in layouts {
        for address in (200..206).map(vip) {
            let objects = [
                put(shared("first", 80, address)),
                put(shared("second", 81, address)),
                on("first", first),
                on("second", second),
            ];
            let mut wire = Wire::with("10.88.0.200-10.88.0.205", &objects);
            wire.run(address, Duration::from_secs(20));
            let what = format!("{address}, endpoints on {first:?} and {second:?}");
            let mut candidates: BTreeSet<u8> = first.iter().chain(second).copied().collect();
            if candidates.is_empty() {
                // Clients are to be refused, which every node can do.
                candidates.extend(1..=NODES);
            }
            let best = candidates
                .iter()
                .copied()
                .max_by_key(|n| rank::rank(address, &format!("node-{n}"), &[]));
            assert_eq!(wire.answering(address), best.into_iter().collect::<Vec<_>>(), "{what}");
            winners.extend(best);
            for (n, engine) in (1..=NODES).zip(&wire.nodes) {
                let state = engine.report().state();
                let owner = state
                    .addresses
                    .iter()
                    .find(|entry| entry.address == address)
                    .expect("the address")
                    .owner
                    .clone();
                // A node that is no candidate may not know the owner; all others agree.
                let known = best.map(|best| format!("node-{best}"));
                assert!(
                    owner == known || owner.is_none() && !candidates.contains(&n),
                    "{what}: node-{n} says {owner:?}"
                );
                for name in ["first", "second"] {
                    let service = state
                        .services
                        .iter()
                        .find(|service| service.key == key(name))
                        .expect("the Service");
                    assert_eq!(
                        (&service.addresses[..], &service.owner),
                        (&[address][..], &owner),
                        "{what}: {name} on node-{n}"
                    );
                    let refused =
                        service.reasons.iter().any(|reason| reason.code == "NoLocalEndpoint");
                    assert_eq!(
                        refused,
                        !candidates.contains(&n),
                        "{what}: {name} on node-{n}: {:?}",
                        service.reasons
                    );
                }
            }
        }
    }
    assert_eq!(winners.len(), usize::from(NODES), "every node is the best one somewhere");
}

/// A preferred node preempts the owner once it has been back for long enough.
#[test]
fn a_preferred_node_that_returned_takes_its_address_when_it_is_not_new_any_more() {
    let mut web = service("web");
    web.request.prefer_nodes = vec!["node-1".into()];
    let mut engine = knowing("10.88.0.200", vec![node(1), node(2), put(web)]);
    let peer: IpAddr = [10, 88, 0, 12].into();
    let owner = [2, 0, 0, 0, 0, 2];
    engine.handle(Event::Peer(PeerEvent::Liveness { address: peer, state: Liveness::Up }), T0);
    engine.handle(Event::Peer(PeerEvent::Neighbour { address: peer, mac: owner }), T0);
    let ours =
        |engine: &Engine| engine.report().state().addresses[0].owner.as_deref() == Some("node-1");
    let mut now = T0;
    while !ours(&engine) && now < T0 + rank::HOLD_OFF * 2 {
        // The owner announces often enough that no node probes.
        engine.handle(
            Event::Announcer(AnnouncerEvent::ClaimObserved {
                ifindex: 2,
                vip: vip(200),
                mac: owner,
            }),
            now,
        );
        now = engine.poll_timeout().map_or(now + rank::FAST_ANNOUNCE_INTERVAL, |due| {
            due.min(now + rank::FAST_ANNOUNCE_INTERVAL)
        });
        engine.handle(Event::Tick, now);
    }
    assert_eq!(now, T0 + rank::HOLD_OFF);
}
