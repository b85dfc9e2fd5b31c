//! What a change adds and deletes, compared with memory, never with a listing of the kernel.
//!
//! One change goes one way. The engine's plan holds the changes ([`RulesetChanges`]); the worker
//! thread stages them ([`Compiler::stage`]), the kernel executes the batch ([`Staged::batch`]) as
//! one transaction, and when the kernel has acknowledged it the worker commits
//! ([`Compiler::commit`]). The worker stages rather than the engine, because the comparison costs
//! CPU time that must not delay decisions, and because a change is compared with what the kernel
//! acknowledged, not with what the engine decided.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::batch::Batch;
use super::element::{Element, Key, class_of, classes, elements, local_endpoints, targets};
use super::skeleton::{
    Chain, ChainId, HashClass, SetId, Statement, Verdict, class_chain, skeleton,
};
use super::table::Table;
use crate::model::Family;
use crate::model::forwarding::{Balancing, Forwarding, FrontendKey};
use crate::model::ruleset_changes::RulesetChanges;

/// What the kernel holds. Dropping a staged change leaves it as it was.
#[derive(Debug, Default)]
pub struct Compiler {
    uplinks: BTreeSet<Box<str>>,
    vips: BTreeSet<IpAddr>,
    forwardings: BTreeMap<FrontendKey, Arc<Forwarding>>,
    /// Backends on this node → number of frontends that use them.
    locals: BTreeMap<IpAddr, u32>,
    /// Hash classes → number of map elements that lead to them. An unused class keeps its chain
    /// until the next reset: creating a chain binds the whole map of backends, and the kernel
    /// then walks all elements of the map (some 3 ms at 50,000).
    classes: BTreeMap<(Family, HashClass), u32>,
}

/// A change that the kernel has not acknowledged yet.
#[derive(Debug)]
pub struct Staged<'a> {
    /// For the kernel to execute.
    pub batch: Batch,
    /// None: the skeleton of a load that follows in steps.
    changes: Option<&'a RulesetChanges>,
    locals: Delta<IpAddr>,
    classes: Delta<(Family, HashClass)>,
}

impl Compiler {
    /// Compares a change with what the kernel holds.
    pub fn stage<'a>(&self, changes: &'a RulesetChanges) -> Staged<'a> {
        self.compile(changes, changes.reset)
    }

    /// Stages the empty tables for a load that follows in steps: sets with room for all of it, and
    /// the chains of its hash classes, which would cost more later (see `classes`).
    pub fn stage_tables<'a>(&self, load: &'a RulesetChanges) -> Staged<'a> {
        let mut staged = self.compile(load, true);
        staged.batch.loads.clear();
        staged.batch.adds.clear();
        staged.changes = None;
        staged.locals.0.clear();
        staged.classes.0.values_mut().for_each(|count| *count = 0);
        staged
    }

    fn compile<'a>(&self, changes: &'a RulesetChanges, reset: bool) -> Staged<'a> {
        let empty = Compiler::default();
        let before = if reset { &empty } else { self };
        let mut staged = Staged {
            batch: Batch { reset, ..Batch::default() },
            changes: Some(changes),
            locals: Delta::new(),
            classes: Delta::new(),
        };

        if let Some(uplinks) = &changes.uplinks {
            compile_uplinks(&before.uplinks, uplinks, &mut staged.batch);
        }
        if let Some(vips) = &changes.vips {
            compile_vips(&before.vips, vips, &mut staged.batch);
        }
        for (frontend, after) in &changes.forwardings {
            let old = before.forwardings.get(frontend);
            staged.compile_frontend(frontend, old, after.as_ref());
        }
        staged.compile_locals(&before.locals);

        let new = staged.classes.0.keys().filter(|class| !before.classes.contains_key(class));
        staged.batch.classes.extend(new);
        if reset {
            staged.batch.room = staged.batch.sizes();
        }
        staged
    }

    /// Remembers a staged change that the kernel acknowledged. This compiler must have staged it,
    /// and nothing may have been committed since.
    pub fn commit(&mut self, staged: Staged<'_>) {
        if staged.batch.reset {
            *self = Compiler::default();
        }
        if let Some(changes) = staged.changes {
            if let Some(uplinks) = &changes.uplinks {
                self.uplinks.clone_from(uplinks);
            }
            if let Some(vips) = &changes.vips {
                self.vips.clone_from(vips);
            }
            for (frontend, forwarding) in &changes.forwardings {
                match forwarding {
                    Some(forwarding) => self.forwardings.insert(*frontend, forwarding.clone()),
                    None => self.forwardings.remove(frontend),
                };
            }
        }
        staged.locals.apply(&mut self.locals);
        self.locals.retain(|_, count| *count > 0);
        staged.classes.apply(&mut self.classes);
    }

    /// Everything as one change that rebuilds the tables.
    pub fn everything(&self) -> RulesetChanges {
        RulesetChanges {
            generation: 0,
            reset: true,
            uplinks: Some(self.uplinks.clone()),
            vips: Some(self.vips.clone()),
            forwardings: self
                .forwardings
                .iter()
                .map(|(key, forwarding)| (*key, Some(forwarding.clone())))
                .collect(),
        }
    }

    /// One element of each set that is not empty: the drift check asks the kernel for them.
    pub fn samples(&self, family: Family) -> BTreeMap<SetId, Element> {
        let mut samples = BTreeMap::new();
        samples.insert(SetId::Alive, Element { key: Key::EtherType(family), value: None });
        if let Some(name) = self.uplinks.first() {
            samples
                .insert(SetId::Uplinks, Element { key: Key::Interface(name.clone()), value: None });
        }
        if let Some(vip) = self.vips.iter().find(|vip| Family::of(**vip) == family) {
            samples.insert(SetId::Vips, Element { key: Key::Address(*vip), value: None });
        }
        if let Some(&address) = self.locals.keys().find(|address| Family::of(**address) == family) {
            samples.extend(of_local(address).map(|(set, key)| (set, Element { key, value: None })));
        }
        // A set lacks a sample until the loop meets a frontend that uses it.
        let wanted = [
            SetId::Services,
            SetId::External,
            SetId::SourceRestricted,
            SetId::SourceRanges,
            SetId::Backends,
            SetId::LocalBackends,
            SetId::Frontends,
        ];
        for (frontend, forwarding) in
            self.forwardings.iter().filter(|(frontend, _)| Family::of(frontend.address) == family)
        {
            if wanted.iter().all(|set| samples.contains_key(set)) {
                break;
            }
            let promises = |set: &SetId| match set {
                SetId::External | SetId::LocalBackends => forwarding.external.is_some(),
                SetId::SourceRestricted | SetId::SourceRanges => forwarding.sources.is_some(),
                _ => true,
            };
            if wanted.iter().any(|set| !samples.contains_key(set) && promises(set)) {
                for (set, element) in elements(frontend, forwarding) {
                    samples.entry(set).or_insert(element);
                }
            }
        }
        samples
    }

    /// Number of rules and references of each chain, as the kernel counts them (NFTA_CHAIN_USE).
    pub fn uses(&self, family: Family) -> BTreeMap<ChainId, u32> {
        let mut uses: BTreeMap<ChainId, u32> = BTreeMap::new();
        for chain in self.chains(family) {
            *uses.entry(chain.id).or_default() += chain.rules.len() as u32;
            for statement in chain.rules.iter().flatten() {
                if let Statement::Verdict(Verdict::Goto(to) | Verdict::Jump(to)) = statement {
                    *uses.entry(*to).or_default() += 1;
                }
            }
        }
        for (&(of, class), &count) in &self.classes {
            if of == family {
                *uses.entry(ChainId::Class(class)).or_default() += count;
            }
        }
        for (frontend, forwarding) in
            self.forwardings.iter().filter(|(frontend, _)| Family::of(frontend.address) == family)
        {
            for (target, scope) in targets(forwarding) {
                let refused =
                    class_of(frontend, target, scope).is_none() && *target != Balancing::Drop;
                *uses.entry(ChainId::Refuse).or_default() += u32::from(refused);
            }
            *uses.entry(ChainId::SourceRanges).or_default() +=
                u32::from(forwarding.sources.is_some());
        }
        uses
    }

    /// The table of a family for printing, elements ascending by key.
    pub fn table(&self, family: Family) -> Table {
        let mut sets: BTreeMap<SetId, Vec<Element>> = BTreeMap::new();
        let mut put = |set, key| sets.entry(set).or_default().push(Element { key, value: None });
        put(SetId::Alive, Key::EtherType(family));
        self.uplinks.iter().for_each(|name| put(SetId::Uplinks, Key::Interface(name.clone())));
        self.vips
            .iter()
            .filter(|vip| Family::of(**vip) == family)
            .for_each(|vip| put(SetId::Vips, Key::Address(*vip)));
        for address in self.locals.keys().filter(|address| Family::of(**address) == family) {
            of_local(*address).into_iter().for_each(|(set, key)| put(set, key));
        }
        for (frontend, forwarding) in
            self.forwardings.iter().filter(|(frontend, _)| Family::of(frontend.address) == family)
        {
            for (set, element) in elements(frontend, forwarding) {
                sets.entry(set).or_default().push(element);
            }
        }
        let sets = SetId::ALL.map(|set| {
            let mut elements = sets.remove(&set).unwrap_or_default();
            elements.sort_unstable();
            (set, elements)
        });
        Table { family, sets: sets.to_vec(), chains: self.chains(family) }
    }

    /// Forwardings in the kernel.
    pub fn forwardings(&self) -> &BTreeMap<FrontendKey, Arc<Forwarding>> {
        &self.forwardings
    }

    fn chains(&self, family: Family) -> Vec<Chain> {
        let classes = self
            .classes
            .keys()
            .filter(|(of, _)| *of == family)
            .map(|(_, class)| class_chain(*class));
        skeleton(family).into_iter().chain(classes).collect()
    }
}

impl Staged<'_> {
    fn compile_frontend(
        &mut self,
        frontend: &FrontendKey,
        old: Option<&Arc<Forwarding>>,
        new: Option<&Arc<Forwarding>>,
    ) {
        let same = match (old, new) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new) || old == new,
            (None, None) => true,
            _ => false,
        };
        if same {
            return;
        }
        if let Some(old) = old {
            self.count_uses(frontend, old, -1);
        }
        if let Some(new) = new {
            self.count_uses(frontend, new, 1);
        }
        if self.batch.reset {
            self.batch.loads.extend(new.map(|new| (*frontend, new.clone())));
            return;
        }
        let old = old.map(|old| elements(frontend, old)).unwrap_or_default();
        let new = new.map(|new| elements(frontend, new)).unwrap_or_default();
        difference(Family::of(frontend.address), old, new, &mut self.batch);
    }

    /// Counts the shared elements and chains that a frontend uses.
    fn count_uses(&mut self, frontend: &FrontendKey, forwarding: &Forwarding, step: i64) {
        for address in local_endpoints(frontend, forwarding) {
            self.locals.count(address, step);
        }
        let family = Family::of(frontend.address);
        for class in classes(frontend, forwarding) {
            self.classes.count((family, class), step);
        }
    }

    fn compile_locals(&mut self, before: &BTreeMap<IpAddr, u32>) {
        for (&address, turn) in self.locals.turns(before) {
            let family = Family::of(address);
            for (set, key) in of_local(address) {
                let element = Element { key, value: None };
                match turn {
                    Turn::Appears => self.batch.add(family, set, element),
                    Turn::Disappears => self.batch.delete(family, set, element),
                }
            }
        }
    }
}

fn compile_uplinks(before: &BTreeSet<Box<str>>, after: &BTreeSet<Box<str>>, batch: &mut Batch) {
    let element = |name: &str| Element { key: Key::Interface(name.into()), value: None };
    for family in Family::ALL {
        for name in before.difference(after) {
            batch.delete(family, SetId::Uplinks, element(name));
        }
        for name in after.difference(before) {
            batch.add(family, SetId::Uplinks, element(name));
        }
    }
}

fn compile_vips(before: &BTreeSet<IpAddr>, after: &BTreeSet<IpAddr>, batch: &mut Batch) {
    let element = |vip: &IpAddr| Element { key: Key::Address(*vip), value: None };
    for vip in before.difference(after) {
        batch.delete(Family::of(*vip), SetId::Vips, element(vip));
    }
    for vip in after.difference(before) {
        batch.add(Family::of(*vip), SetId::Vips, element(vip));
    }
}

/// The elements that frontends with the same backend on this node share.
fn of_local(address: IpAddr) -> [(SetId, Key); 2] {
    [(SetId::LocalEndpoints, Key::Address(address)), (SetId::Hairpin, Key::Twice(address))]
}

/// Walks two ascending lists: deletes elements that only the old one has, adds elements that only
/// the new one has. A changed value is both.
fn difference(
    family: Family,
    old: Vec<(SetId, Element)>,
    new: Vec<(SetId, Element)>,
    batch: &mut Batch,
) {
    let (mut old, mut new) = (old.into_iter().peekable(), new.into_iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((a, x)), Some((b, y))) => (a, &x.key).cmp(&(b, &y.key)),
        };
        let gone = if order.is_le() { old.next() } else { None };
        let come = if order.is_ge() { new.next() } else { None };
        if gone == come {
            continue;
        }
        if let Some((set, element)) = gone {
            batch.delete(family, set, element);
        }
        if let Some((set, element)) = come {
            batch.add(family, set, element);
        }
    }
}

/// Changes of use counts, kept apart until they are committed.
#[derive(Debug)]
struct Delta<K>(BTreeMap<K, i64>);

enum Turn {
    Appears,
    Disappears,
}

impl<K: Ord + Copy> Delta<K> {
    fn new() -> Delta<K> {
        Delta(BTreeMap::new())
    }

    fn count(&mut self, key: K, step: i64) {
        *self.0.entry(key).or_default() += step;
    }

    /// Keys that become used or unused.
    fn turns<'a>(&'a self, before: &'a BTreeMap<K, u32>) -> impl Iterator<Item = (&'a K, Turn)> {
        self.0.iter().filter_map(|(key, step)| {
            let old = i64::from(before.get(key).copied().unwrap_or(0));
            match (old > 0, old + step > 0) {
                (false, true) => Some((key, Turn::Appears)),
                (true, false) => Some((key, Turn::Disappears)),
                _ => None,
            }
        })
    }

    fn apply(self, counts: &mut BTreeMap<K, u32>) {
        for (key, step) in self.0 {
            let count = i64::from(counts.get(&key).copied().unwrap_or(0)) + step;
            counts.insert(key, u32::try_from(count).unwrap_or(0));
        }
    }
}

#[cfg(test)]
#[path = "compiler_tests.rs"]
mod tests;
