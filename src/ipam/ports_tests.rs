//! Ports of nodes: what comes out depends on what is, never on how it came to be.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use proptest::prelude::*;

use super::allocation::Port;
use super::ports::{NodePorts, PortClaim, PortConflict};
use crate::model::{Family, ObjectKey, Protocol, Service, ServicePort, fixtures};

const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// A Service with what decides about it.
#[derive(Clone, Debug)]
struct Entry {
    service: Service,
    nodes: BTreeSet<&'static str>,
    had: BTreeMap<(&'static str, Family), Rc<[Port]>>,
}

fn tcp(port: u16) -> Port {
    (Protocol::Tcp, port)
}

fn entry(name: &str, created: i64, ports: &[u16], nodes: &[&'static str]) -> Entry {
    let port = |port: &u16| ServicePort {
        name: port.to_string().into(),
        protocol: Protocol::Tcp,
        port: *port,
    };
    let service =
        Service { created, ports: ports.iter().map(port).collect(), ..fixtures::service(name) };
    Entry { service, nodes: nodes.iter().copied().collect(), had: BTreeMap::new() }
}

#[derive(Default)]
struct World {
    entries: BTreeMap<ObjectKey, Entry>,
    ports: NodePorts,
}

impl World {
    fn put(&mut self, entry: Entry) -> BTreeSet<ObjectKey> {
        self.ports.claim(&entry.service);
        self.entries.insert(entry.service.key.clone(), entry);
        self.settle()
    }

    fn remove(&mut self, name: &str) -> BTreeSet<ObjectKey> {
        let key = ObjectKey::new("default", name);
        self.ports.release(&key);
        self.entries.remove(&key);
        self.settle()
    }

    fn settle(&mut self) -> BTreeSet<ObjectKey> {
        let entries = &self.entries;
        self.ports.settle(|key| {
            let entry = entries.get(key)?;
            Some(PortClaim {
                service: &entry.service,
                nodes: Rc::new(entry.nodes.clone()),
                had: entry.had.clone(),
            })
        })
    }

    fn losses(&self, name: &str) -> &[PortConflict] {
        self.ports.losses(&ObjectKey::new("default", name))
    }
}

#[test]
fn the_older_one_has_the_port_unless_another_had_it() {
    let mut world = World::default();
    assert!(world.put(entry("b", 2, &[80], &["n1", "n2"])).is_empty());
    let changed = world.put(entry("a", 1, &[80], &["n1"]));
    assert_eq!(changed, [ObjectKey::new("default", "b")].into(), "it gives way");
    let loss = PortConflict {
        port: tcp(80),
        holder: ObjectKey::new("default", "a"),
        family: Family::V4,
        nodes: vec!["n1".into()],
    };
    assert_eq!(world.losses("b"), [loss]);
    let mut had = entry("b", 2, &[80], &["n1", "n2"]);
    had.had.insert(("n1", Family::V4), Rc::new([tcp(80)]));
    assert_eq!(world.put(had).len(), 2);
    assert_eq!((world.losses("a").len(), world.losses("b").len()), (1, 0));
    assert_eq!(world.remove("b"), [ObjectKey::new("default", "a")].into());
    assert!(world.losses("a").is_empty());
    let other = Service {
        ports: vec![ServicePort { name: "".into(), protocol: Protocol::Udp, port: 80 }],
        ..fixtures::service("udp")
    };
    assert!(
        world.put(Entry { service: other, ..entry("udp", 3, &[], &["n1"]) }).is_empty(),
        "another protocol is another port"
    );
}

#[test]
fn thousands_that_want_one_port_are_settled_at_once() {
    let mut world = World::default();
    for number in 0..5_000 {
        let entry = entry(&format!("s{number}"), number, &[443], &NODES);
        world.ports.claim(&entry.service);
        world.entries.insert(entry.service.key.clone(), entry);
    }
    assert_eq!(world.settle().len(), 4_999);
    assert!(world.losses("s0").is_empty());
}

fn entries() -> impl Strategy<Value = Vec<(bool, Entry)>> {
    let places = prop::collection::btree_map(
        (prop::sample::select(&NODES[..]), prop::sample::select(&Family::ALL[..])),
        prop::collection::vec(80u16..84, 1..3),
        0..3,
    );
    let families = prop::sample::select(vec![
        vec![],
        vec![Family::V4],
        vec![Family::V6],
        vec![Family::V6, Family::V4],
    ]);
    let wants = (
        prop::collection::btree_set(80u16..84, 0..4),
        prop::sample::subsequence(&NODES[..], 0..=3),
        families,
        places,
    );
    let entry =
        (0..6u8, 0..3i64, wants).prop_map(|(name, created, (ports, nodes, families, had))| {
            let ports: Vec<u16> = ports.into_iter().collect();
            let mut entry = entry(&format!("s{name}"), created, &ports, &nodes);
            entry.service.families = families;
            entry.had = had
                .into_iter()
                .map(|(place, ports)| (place, ports.into_iter().map(tcp).collect()))
                .collect();
            entry
        });
    prop::collection::vec((prop::bool::weighted(0.8), entry), 1..30)
}

proptest! {
    #[test]
    fn only_what_is_counts_and_every_port_has_one_holder(steps in entries()) {
        let mut world = World::default();
        for (put, entry) in steps {
            let before: BTreeMap<ObjectKey, Vec<PortConflict>> = world.entries.keys().map(|key| (key.clone(), world.ports.losses(key).to_vec())).collect();
            let touched = entry.service.key.clone();
            let changed = if put { world.put(entry) } else { world.remove(&touched.name) };
            let mut anew = World { entries: world.entries.clone(), ports: NodePorts::default() };
            world.entries.values().rev().for_each(|entry| anew.ports.claim(&entry.service));
            anew.settle();
            for key in world.entries.keys() {
                prop_assert_eq!(world.ports.losses(key), anew.ports.losses(key));
                let same = before.get(key).map(Vec::as_slice).unwrap_or_default() == world.ports.losses(key);
                prop_assert!(same || *key == touched || changed.contains(key), "{} is not told", key);
            }
            for node in NODES {
                for family in Family::ALL {
                    let wants = |e: &&Entry| e.nodes.contains(node) && (e.service.families.is_empty() || e.service.families.contains(&family));
                    let mut holders = BTreeMap::new();
                    for entry in world.entries.values().filter(wants).filter(|e| world.ports.has(&e.service.key, node, family)) {
                        for port in &entry.service.ports {
                            prop_assert_eq!(holders.insert(port.port, entry.service.key.clone()), None, "{} has one holder", port.port);
                        }
                    }
                    for (key, loss) in world.entries.keys().flat_map(|key| world.ports.losses(key).iter().map(move |loss| (key, loss))) {
                        if loss.family == family && loss.nodes.iter().any(|name| **name == *node) {
                            prop_assert_eq!(holders.get(&loss.port.1), Some(&loss.holder), "against {}", key);
                        }
                    }
                }
            }
        }
    }
}
