//! What a change adds and deletes: memory against memory, never a listing of the kernel.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::element::{Element, Key, class_of, classes, elements, local_endpoints, targets};
use super::skeleton::{HashClass, SetId, class_chain, skeleton};
use super::{ChainId, Table, element};
use crate::model::Family;
use crate::model::forwarding::{Balancing, Forwarding, FrontendKey};
use crate::model::ruleset_changes::RulesetChanges;

/// Knows what is in the kernel. A change is staged, carried out elsewhere, and committed when it
/// succeeded; dropping it changes nothing.
#[derive(Debug, Default)]
pub struct Compiler {
    uplinks: BTreeSet<Box<str>>,
    vips: BTreeSet<IpAddr>,
    forwardings: BTreeMap<FrontendKey, Arc<Forwarding>>,
    /// Backends on this node → frontends that use them.
    locals: BTreeMap<IpAddr, u32>,
    /// Classes → map elements that lead to them. One that nothing leads to any more keeps its
    /// chain until the next reset: a new chain binds the whole map of backends, and the kernel
    /// then walks all of its elements (some 3 ms at 50,000).
    classes: BTreeMap<(Family, HashClass), u32>,
}

/// One transaction, in the order in which it is to be carried out.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Replace both tables by fresh skeletons first.
    pub reset: bool,
    /// Elements that go (before anything is added: a changed value is a delete and an add of the
    /// same key).
    pub deletes: BTreeMap<(Family, SetId), Vec<Element>>,
    /// Class chains that come.
    pub classes: Vec<(Family, HashClass)>,
    /// Elements that come.
    pub adds: BTreeMap<(Family, SetId), Vec<Element>>,
    /// Frontends all of whose elements come, in a load: made one frontend at a time, as they take
    /// several times the room.
    pub loads: Vec<(FrontendKey, Arc<Forwarding>)>,
    /// With `reset`: about how many elements each set is made for; source ranges are not counted.
    pub room: BTreeMap<(Family, SetId), usize>,
}

impl Batch {
    /// Whether the kernel has nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Batch::default()
    }

    /// Hands every element that comes to `each`, in parts that may be small.
    pub fn each_add(&self, mut each: impl FnMut(Family, SetId, &[Element])) {
        const PART: usize = 500;
        self.adds.iter().for_each(|((family, set), elements)| each(*family, *set, elements));
        let mut parts: BTreeMap<(Family, SetId), Vec<Element>> = BTreeMap::new();
        for (frontend, forwarding) in &self.loads {
            let family = Family::of(frontend.address);
            for (set, element) in elements(frontend, forwarding) {
                let part = parts.entry((family, set)).or_default();
                part.push(element);
                if part.len() == PART {
                    each(family, set, part);
                    part.clear();
                }
            }
        }
        parts
            .iter()
            .filter(|(_, part)| !part.is_empty())
            .for_each(|((family, set), part)| each(*family, *set, part));
    }

    /// Number of elements added and deleted.
    pub fn elements(&self) -> (usize, usize) {
        let count = |elements: &BTreeMap<_, Vec<_>>| elements.values().map(Vec::len).sum::<usize>();
        let loads: usize = self
            .loads
            .iter()
            .map(|(frontend, forwarding)| element::count(frontend, forwarding))
            .sum();
        (count(&self.adds) + loads, count(&self.deletes))
    }

    fn sizes(&self) -> BTreeMap<(Family, SetId), usize> {
        let mut sizes: BTreeMap<_, usize> =
            self.adds.iter().map(|(set, elements)| (*set, elements.len())).collect();
        for (frontend, forwarding) in &self.loads {
            for (set, count) in element::counts(frontend, forwarding) {
                *sizes.entry((Family::of(frontend.address), set)).or_default() += count;
            }
        }
        sizes
    }

    fn add(&mut self, family: Family, set: SetId, element: Element) {
        self.adds.entry((family, set)).or_default().push(element);
    }

    fn delete(&mut self, family: Family, set: SetId, element: Element) {
        self.deletes.entry((family, set)).or_default().push(element);
    }
}

/// A change that is compiled but not yet known to have succeeded.
#[derive(Debug)]
pub struct Staged {
    /// For the kernel.
    pub batch: Batch,
    changes: RulesetChanges,
    locals: Delta<IpAddr>,
    classes: Delta<(Family, HashClass)>,
}

impl Compiler {
    /// Compiles a change against what is there.
    pub fn stage(&self, changes: RulesetChanges) -> Staged {
        let batch = Batch { reset: changes.reset, ..Batch::default() };
        let mut staged = Staged { batch, changes, locals: Delta::new(), classes: Delta::new() };
        let Staged { batch, changes, locals, classes: used } = &mut staged;
        let empty = Compiler::default();
        let before = if changes.reset { &empty } else { self };

        if let Some(uplinks) = &changes.uplinks {
            for family in Family::ALL {
                let element =
                    |name: &str| Element { key: Key::Interface(name.into()), value: None };
                before
                    .uplinks
                    .difference(uplinks)
                    .for_each(|name| batch.delete(family, SetId::Uplinks, element(name)));
                uplinks
                    .difference(&before.uplinks)
                    .for_each(|name| batch.add(family, SetId::Uplinks, element(name)));
            }
        }
        if let Some(vips) = &changes.vips {
            let element = |vip: &IpAddr| Element { key: Key::Address(*vip), value: None };
            before
                .vips
                .difference(vips)
                .for_each(|vip| batch.delete(Family::of(*vip), SetId::Vips, element(vip)));
            vips.difference(&before.vips)
                .for_each(|vip| batch.add(Family::of(*vip), SetId::Vips, element(vip)));
        }
        for (frontend, after) in &changes.forwardings {
            let old = before.forwardings.get(frontend);
            let same = match (old, after) {
                (Some(old), Some(new)) => Arc::ptr_eq(old, new) || old == new,
                (None, None) => true,
                _ => false,
            };
            if same {
                continue;
            }
            for (forwarding, step) in [(old, -1), (after.as_ref(), 1)] {
                let Some(forwarding) = forwarding else { continue };
                local_endpoints(frontend, forwarding)
                    .into_iter()
                    .for_each(|address| locals.count(address, step));
                let family = Family::of(frontend.address);
                classes(frontend, forwarding).for_each(|class| used.count((family, class), step));
            }
            if changes.reset {
                batch.loads.extend(after.iter().map(|after| (*frontend, after.clone())));
                continue;
            }
            let old = old.map(|old| elements(frontend, old)).unwrap_or_default();
            let new = after.as_ref().map(|new| elements(frontend, new)).unwrap_or_default();
            difference(Family::of(frontend.address), old, new, batch);
        }
        for (&address, turn) in locals.turns(&before.locals) {
            let family = Family::of(address);
            for (set, key) in of_local(address) {
                let element = Element { key, value: None };
                match turn {
                    Turn::Appears => batch.add(family, set, element),
                    Turn::Disappears => batch.delete(family, set, element),
                }
            }
        }
        batch.classes.extend(used.0.keys().filter(|class| !before.classes.contains_key(class)));
        if batch.reset {
            batch.room = batch.sizes();
        }
        staged
    }

    /// The tables that a change will fill, without its frontends: sets with room for them, and the
    /// chains they lead to, which would cost more later (see `classes`).
    pub fn foundation(&self, changes: &RulesetChanges) -> Staged {
        let mut staged = self.stage(RulesetChanges { reset: true, ..changes.clone() });
        staged.batch.loads.clear();
        staged.batch.adds.clear();
        staged.changes = RulesetChanges { reset: true, ..RulesetChanges::default() };
        staged.locals.0.clear();
        staged.classes.0.values_mut().for_each(|count| *count = 0);
        staged
    }

    /// Remembers a change that succeeded. It must have been staged by this compiler, with nothing
    /// committed since.
    pub fn commit(&mut self, staged: Staged) {
        let Staged { changes, locals, classes, .. } = staged;
        if changes.reset {
            *self = Compiler::default();
        }
        if let Some(uplinks) = changes.uplinks {
            self.uplinks = uplinks;
        }
        if let Some(vips) = changes.vips {
            self.vips = vips;
        }
        update(&mut self.forwardings, changes.forwardings);
        locals.apply(&mut self.locals);
        self.locals.retain(|_, count| *count > 0);
        classes.apply(&mut self.classes);
    }

    /// Everything, as one change that rebuilds it from nothing.
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

    /// One element of each set that is not empty, for the question whether the kernel still has it.
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
        // A set is in want of a sample until a frontend that uses it comes by.
        let wanted = [
            SetId::Services,
            SetId::External,
            SetId::Guarded,
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
                SetId::Guarded | SetId::SourceRanges => forwarding.sources.is_some(),
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

    /// How many rules and references each chain has: what the kernel counts as its use.
    pub fn uses(&self, family: Family) -> BTreeMap<ChainId, u32> {
        let mut uses: BTreeMap<ChainId, u32> = BTreeMap::new();
        for chain in self.chains(family) {
            *uses.entry(chain.id).or_default() += chain.rules.len() as u32;
            for statement in chain.rules.iter().flatten() {
                if let super::skeleton::Statement::Verdict(
                    super::Verdict::Goto(to) | super::Verdict::Jump(to),
                ) = statement
                {
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

    /// The whole table of a family, for printing: elements ascending by key.
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

    /// What is forwarded.
    pub fn forwardings(&self) -> &BTreeMap<FrontendKey, Arc<Forwarding>> {
        &self.forwardings
    }

    fn chains(&self, family: Family) -> Vec<super::Chain> {
        let classes = self
            .classes
            .keys()
            .filter(|(of, _)| *of == family)
            .map(|(_, class)| class_chain(*class));
        skeleton(family).into_iter().chain(classes).collect()
    }
}

/// What the frontends that use a backend on this node share.
fn of_local(address: IpAddr) -> [(SetId, Key); 2] {
    [(SetId::LocalEndpoints, Key::Address(address)), (SetId::Hairpin, Key::Twice(address))]
}

fn update<V>(known: &mut BTreeMap<FrontendKey, V>, changed: BTreeMap<FrontendKey, Option<V>>) {
    for (frontend, value) in changed {
        match value {
            Some(value) => known.insert(frontend, value),
            None => known.remove(&frontend),
        };
    }
}

/// Walks two ascending lists: what only the old has goes, what only the new has comes, a changed
/// value is both.
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

    /// What is used now and was not, or the reverse.
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
