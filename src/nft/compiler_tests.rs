use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::model::Protocol;
use crate::model::forwarding::Backend;
use crate::nft::{Value, Verdict};

/// What a kernel holds that executes batches and refuses what the real one refuses.
#[derive(Clone, Debug, Default, PartialEq)]
struct Kernel {
    classes: BTreeSet<(Family, HashClass)>,
    elements: BTreeMap<(Family, SetId, Key), Option<Value>>,
}

impl Kernel {
    fn execute(&mut self, batch: &Batch) {
        if batch.reset {
            *self = Kernel::default();
        }
        for ((family, set), elements) in &batch.deletes {
            for Element { key, .. } in elements {
                assert!(
                    self.elements.remove(&(*family, *set, key.clone())).is_some(),
                    "deletes what is not there: {set:?} {key:?}"
                );
            }
        }
        for class in &batch.classes {
            assert!(self.classes.insert(*class), "makes a chain again: {class:?}");
        }
        batch.each_add(|family, set, elements| {
            for Element { key, value } in elements {
                if let Some(Value::Verdict(Verdict::Goto(ChainId::Class(class)))) = value {
                    assert!(
                        self.classes.contains(&(family, *class)),
                        "leads to a chain that is not there: {class:?}"
                    );
                }
                assert!(
                    self.elements.insert((family, set, key.clone()), *value).is_none(),
                    "adds what is there: {set:?} {key:?}"
                );
            }
        });
    }

    /// The backend of a connection from inside, by the hash of its flow: what the rules of
    /// `from-inside` do.
    fn backend(&self, frontend: FrontendKey, hash: u32) -> Option<Value> {
        let family = Family::of(frontend.address);
        let element = |set, key| self.elements.get(&(family, set, key)).copied().flatten();
        match element(SetId::Services, Key::Frontend(frontend))? {
            Value::Verdict(Verdict::Goto(ChainId::Class(class))) => {
                element(SetId::Backends, Key::Bucket(frontend, hash % class.modulus))
            }
            _ => None,
        }
    }

    /// All of them without the chains.
    fn of(compiler: &Compiler) -> Kernel {
        let mut kernel = Kernel::default();
        for table in Family::ALL.map(|family| compiler.table(family)) {
            for (set, elements) in table.sets.into_iter().filter(|(set, _)| *set != SetId::Alive) {
                kernel.elements.extend(
                    elements
                        .into_iter()
                        .map(|element| ((table.family, set, element.key), element.value)),
                );
            }
        }
        kernel
    }
}

/// Of all hashes, as many lead to each backend of a frontend as to any other.
fn assert_evenly_spread(kernel: &Kernel, compiler: &Compiler) {
    for (frontend, forwarding) in compiler.forwardings() {
        let Balancing::FlowHash(backends) = &forwarding.internal else { continue };
        let mine: Vec<_> = backends
            .iter()
            .filter(|backend| backend.address.is_ipv4() == frontend.address.is_ipv4())
            .collect();
        let hashes = 60 * mine.len() as u32;
        let mut connections: BTreeMap<Value, u32> = BTreeMap::new();
        (0..hashes)
            .filter_map(|hash| kernel.backend(*frontend, hash))
            .for_each(|backend| *connections.entry(backend).or_default() += 1);
        let even = mine
            .iter()
            .map(|backend| (Value::Backend(backend.address, backend.port), 60))
            .collect();
        assert_eq!(connections, even, "{frontend:?}");
    }
}

fn apply(compiler: &mut Compiler, kernel: &mut Kernel, changes: RulesetChanges) {
    let staged = compiler.stage(&changes);
    kernel.execute(&staged.batch);
    compiler.commit(staged);
}

fn frontends() -> impl Strategy<Value = FrontendKey> {
    (0u8..2, 80u16..82, any::<bool>()).prop_map(|(last, port, v6)| {
        let address = if v6 {
            IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)])
        } else {
            IpAddr::from([10, 0, 0, last])
        };
        FrontendKey { address, protocol: Protocol::Tcp, port }
    })
}

fn targets() -> impl Strategy<Value = Balancing> {
    let backends = || {
        let one = (0u8..5, any::<bool>(), any::<bool>()).prop_map(|(last, v6, local)| {
            let address = if v6 {
                IpAddr::from([0xfd01, 0, 0, 0, 0, 0, 0, u16::from(last)])
            } else {
                IpAddr::from([10, 1, 0, last])
            };
            Backend { address, port: 8080, local }
        });
        btree_set(one, 1..6).prop_map(|all| {
            let unique: BTreeMap<_, _> =
                all.into_iter().map(|backend| (backend.address, backend)).collect();
            unique.into_values().collect::<Vec<_>>()
        })
    };
    prop_oneof![4 => backends().prop_map(Balancing::FlowHash), 1 => backends().prop_map(Balancing::ClientIp), 1 => Just(Balancing::Reject), 1 => Just(Balancing::Drop)]
}

fn changes() -> impl Strategy<Value = RulesetChanges> {
    let sources = option::weighted(
        0.2,
        Just(vec!["10.9.0.0/16".parse().unwrap(), "fd09::/16".parse().unwrap()]),
    );
    let forwarding = (targets(), option::weighted(0.3, targets()), sources).prop_map(
        |(internal, external, sources)| Arc::new(Forwarding { internal, external, sources }),
    );
    let names = option::of(btree_set(prop_oneof![Just("eth0".into()), Just("eth1".into())], 0..3));
    let vips =
        option::of(btree_set((0u8..3).prop_map(|last| IpAddr::from([10, 0, 0, last])), 0..3));
    (
        btree_map(frontends(), option::weighted(0.8, forwarding), 0..8),
        names,
        vips,
        prop::bool::weighted(0.1),
    )
        .prop_map(|(forwardings, uplinks, vips, reset)| RulesetChanges {
            generation: 0,
            reset,
            uplinks,
            vips,
            forwardings,
        })
}

proptest! {
    #[test]
    fn any_sequence_of_changes_leads_to_what_a_fresh_load_makes(sequence in vec(changes(), 1..8)) {
        let (mut compiler, mut kernel) = (Compiler::default(), Kernel::default());
        for changes in sequence {
            apply(&mut compiler, &mut kernel, changes);
            prop_assert_eq!(&kernel.elements, &Kernel::of(&compiler).elements);
            assert_evenly_spread(&kernel, &compiler);

            let mut fresh = Kernel::default();
            fresh.execute(&Compiler::default().stage(&compiler.everything()).batch);
            prop_assert_eq!(&kernel.elements, &fresh.elements);
            prop_assert!(kernel.classes.is_superset(&fresh.classes));
        }
    }

    #[test]
    fn what_is_staged_and_not_committed_has_no_effect(before in changes(), refused in changes(), after in changes()) {
        let (mut tried, mut spared, mut kernel) = (Compiler::default(), Compiler::default(), Kernel::default());
        apply(&mut tried, &mut kernel, before.clone());
        apply(&mut spared, &mut Kernel::default(), before);
        drop(tried.stage(&refused));
        prop_assert_eq!(tried.stage(&after).batch, spared.stage(&after).batch);
    }

    #[test]
    fn a_load_in_steps_into_empty_tables_leads_to_what_it_makes_at_once(load in changes(), limit in 1usize..4) {
        let mut load = RulesetChanges { reset: true, ..load };
        let (mut at_once, mut whole) = (Compiler::default(), Kernel::default());
        apply(&mut at_once, &mut whole, load.clone());

        let (mut compiler, mut kernel) = (Compiler::default(), Kernel::default());
        let tables = compiler.stage_tables(&load);
        prop_assert_eq!(&tables.batch.room, &at_once.stage(&load).batch.room);
        kernel.execute(&tables.batch);
        prop_assert!(kernel.elements.is_empty());
        compiler.commit(tables);
        load.reset = false;
        while !load.is_empty() {
            let changes = load.step(limit);
            let step = compiler.stage(&changes);
            prop_assert!(step.batch.classes.is_empty(), "every chain is there from the start");
            kernel.execute(&step.batch);
            compiler.commit(step);
        }
        prop_assert_eq!(kernel, whole);
        prop_assert_eq!(compiler.everything(), at_once.everything());
    }
}
