//! A transaction as a value.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::element::{self, Element, elements};
use super::skeleton::{HashClass, SetId};
use crate::model::Family;
use crate::model::forwarding::{Forwarding, FrontendKey};

/// One transaction, in the order in which the kernel executes it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Replace both tables by empty skeletons first.
    pub reset: bool,
    /// Elements to delete. Deletes precede adds, because a changed value is a delete and an add of
    /// the same key.
    pub deletes: BTreeMap<(Family, SetId), Vec<Element>>,
    /// Hash classes whose chains are to be created.
    pub classes: Vec<(Family, HashClass)>,
    /// Elements to add.
    pub adds: BTreeMap<(Family, SetId), Vec<Element>>,
    /// With `reset`: frontends all of whose elements are to be added. Elements take several times
    /// the memory of a frontend, so [`Batch::each_add`] produces them one frontend at a time.
    pub loads: Vec<(FrontendKey, Arc<Forwarding>)>,
    /// With `reset`: expected number of elements per set, without source ranges.
    pub room: BTreeMap<(Family, SetId), usize>,
}

impl Batch {
    /// Whether the kernel has nothing to change.
    pub fn is_empty(&self) -> bool {
        *self == Batch::default()
    }

    /// Hands every element to add to `each`, in slices of up to some hundred elements.
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

    /// Number of elements to add and to delete.
    pub fn elements(&self) -> (usize, usize) {
        let count = |elements: &BTreeMap<_, Vec<_>>| elements.values().map(Vec::len).sum::<usize>();
        let loads: usize = self
            .loads
            .iter()
            .map(|(frontend, forwarding)| element::count(frontend, forwarding))
            .sum();
        (count(&self.adds) + loads, count(&self.deletes))
    }

    pub(super) fn sizes(&self) -> BTreeMap<(Family, SetId), usize> {
        let mut sizes: BTreeMap<_, usize> =
            self.adds.iter().map(|(set, elements)| (*set, elements.len())).collect();
        for (frontend, forwarding) in &self.loads {
            for (set, count) in element::counts(frontend, forwarding) {
                *sizes.entry((Family::of(frontend.address), set)).or_default() += count;
            }
        }
        sizes
    }

    pub(super) fn add(&mut self, family: Family, set: SetId, element: Element) {
        self.adds.entry((family, set)).or_default().push(element);
    }

    pub(super) fn delete(&mut self, family: Family, set: SetId, element: Element) {
        self.deletes.entry((family, set)).or_default().push(element);
    }
}
