use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::domain::forwarding::Backend;
use crate::domain::model::Protocol;
use crate::ruleset::{Value, Verdict};

/// What a kernel holds that carries batches out, and refuses what the real one refuses.
#[derive(Debug, Default, PartialEq)]
struct Kernel {
    classes: BTreeSet<(Family, Class)>,
    elements: BTreeMap<(Family, SetId, Key), Option<Value>>,
}

impl Kernel {
    fn carry_out(&mut self, batch: &Batch) {
        if batch.reset {
            *self = Kernel::default();
        }
        for ((family, set), elements) in &batch.deletes {
            for Element { key, .. } in elements {
                assert!(self.elements.remove(&(*family, *set, key.clone())).is_some(), "deletes what is not there: {set:?} {key:?}");
            }
        }
        for class in &batch.classes {
            assert!(self.classes.insert(*class), "makes a chain again: {class:?}");
        }
        batch.each_add(|family, set, elements| {
            for Element { key, value } in elements {
                if let Some(Value::Verdict(Verdict::Goto(ChainId::Class(class)))) = value {
                    assert!(self.classes.contains(&(family, *class)), "leads to a chain that is not there: {class:?}");
                }
                assert!(self.elements.insert((family, set, key.clone()), *value).is_none(), "adds what is there: {set:?} {key:?}");
            }
        });
    }
}

fn apply(compiler: &mut Compiler, kernel: &mut Kernel, changes: Changes) {
    let staged = compiler.stage(changes);
    kernel.carry_out(&staged.batch);
    compiler.commit(staged);
}

fn frontends() -> impl Strategy<Value = FrontendKey> {
    (0u8..2, 80u16..82, any::<bool>()).prop_map(|(last, port, v6)| {
        let address = if v6 { IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)]) } else { IpAddr::from([10, 0, 0, last]) };
        FrontendKey { address, protocol: Protocol::Tcp, port }
    })
}

fn targets() -> impl Strategy<Value = Target> {
    let backends = || {
        let one = (0u8..5, any::<bool>(), any::<bool>()).prop_map(|(last, v6, local)| {
            let address = if v6 { IpAddr::from([0xfd01, 0, 0, 0, 0, 0, 0, u16::from(last)]) } else { IpAddr::from([10, 1, 0, last]) };
            Backend { address, port: 8080, local }
        });
        btree_set(one, 1..6).prop_map(|all| {
            let unique: BTreeMap<_, _> = all.into_iter().map(|backend| (backend.address, backend)).collect();
            unique.into_values().collect::<Vec<_>>()
        })
    };
    prop_oneof![4 => backends().prop_map(Target::Spread), 1 => backends().prop_map(Target::Sticky), 1 => Just(Target::Reject), 1 => Just(Target::Drop)]
}

fn changes() -> impl Strategy<Value = Changes> {
    let sources = option::weighted(0.2, Just(vec!["10.9.0.0/16".parse().unwrap(), "fd09::/16".parse().unwrap()]));
    let forwarding = (targets(), option::weighted(0.3, targets()), sources)
        .prop_map(|(internal, external, sources)| Arc::new(Forwarding { internal, external, sources }));
    let names = option::of(btree_set(prop_oneof![Just("eth0".into()), Just("eth1".into())], 0..3));
    let vips = option::of(btree_set((0u8..3).prop_map(|last| IpAddr::from([10, 0, 0, last])), 0..3));
    (btree_map(frontends(), option::weighted(0.8, forwarding), 0..8), names, vips, prop::bool::weighted(0.1))
        .prop_map(|(forwardings, uplinks, vips, reset)| Changes { generation: 0, reset, uplinks, vips, forwardings })
}

proptest! {
    #[test]
    fn any_sequence_of_changes_leads_to_what_a_fresh_load_makes(sequence in vec(changes(), 1..8)) {
        let (mut compiler, mut kernel) = (Compiler::default(), Kernel::default());
        for changes in sequence {
            apply(&mut compiler, &mut kernel, changes);
            let mut fresh = Kernel::default();
            fresh.carry_out(&Compiler::default().stage(compiler.everything()).batch);
            prop_assert_eq!(&kernel.elements, &fresh.elements);
            prop_assert!(kernel.classes.is_superset(&fresh.classes));
        }
    }

    #[test]
    fn what_is_staged_and_not_committed_has_no_effect(before in changes(), refused in changes(), after in changes()) {
        let (mut tried, mut spared, mut kernel) = (Compiler::default(), Compiler::default(), Kernel::default());
        apply(&mut tried, &mut kernel, before.clone());
        apply(&mut spared, &mut Kernel::default(), before);
        drop(tried.stage(refused));
        prop_assert_eq!(tried.stage(after.clone()).batch, spared.stage(after).batch);
    }

    #[test]
    fn a_load_in_steps_upon_a_foundation_leads_to_what_it_makes_at_once(load in changes(), limit in 1usize..4) {
        let mut load = Changes { reset: true, ..load };
        let (mut at_once, mut whole) = (Compiler::default(), Kernel::default());
        apply(&mut at_once, &mut whole, load.clone());

        let (mut compiler, mut kernel) = (Compiler::default(), Kernel::default());
        let foundation = compiler.foundation(&load);
        prop_assert_eq!(&foundation.batch.room, &at_once.stage(load.clone()).batch.room);
        kernel.carry_out(&foundation.batch);
        prop_assert!(kernel.elements.is_empty());
        compiler.commit(foundation);
        load.reset = false;
        while !load.is_empty() {
            let step = compiler.stage(load.step(limit));
            prop_assert!(step.batch.classes.is_empty(), "every chain is there from the start");
            kernel.carry_out(&step.batch);
            compiler.commit(step);
        }
        prop_assert_eq!(kernel, whole);
        prop_assert_eq!(compiler.everything(), at_once.everything());
    }
}
