//! The ports of Services in node mode, as they are written down for the next start.

use std::sync::Arc;

use super::Ipam;
use super::allocation::{Allocation, HeldPorts};
use crate::model::{Family, ObjectKey};

impl Ipam {
    /// What is written down about the ports of a Service.
    pub fn ports_held(&self, key: &ObjectKey) -> Option<&HeldPorts> {
        self.allocations.get(key)?.ports.as_deref()
    }

    /// Writes down which ports a Service in node mode has, in place of what was there. What it came
    /// to have, its rivals have no longer.
    pub fn note_ports<'a>(
        &mut self,
        key: &ObjectKey,
        held: HeldPorts,
        rivals: impl Iterator<Item = &'a ObjectKey>,
    ) {
        let before = self.ports_held(key);
        if before.map_or(held.nodes.is_empty(), |before| *before == held) {
            return;
        }
        let had = |node: &str, family: &Family| {
            before.and_then(|before| before.nodes.get(node)).is_some_and(|had| had.contains(family))
        };
        let new = held.nodes.iter().flat_map(|(node, families)| {
            families.iter().map(move |family| (node.clone(), *family))
        });
        let new: Vec<(Box<str>, Family)> =
            new.filter(|(node, family)| !had(node, family)).collect();
        if !new.is_empty() {
            rivals.for_each(|rival| self.forget_ports(rival, &new));
        }
        self.write_down(key, held);
    }

    /// Gives back virtual addresses, as [`Ipam::release`]; what is written down about ports stays.
    /// True when there were any.
    pub fn release_addresses(&mut self, key: &ObjectKey) -> bool {
        let some =
            self.allocations.get(key).is_some_and(|allocation| !allocation.addresses.is_empty());
        (some || self.retiring.contains_key(key)) && self.release(key)
    }

    fn forget_ports(&mut self, key: &ObjectKey, places: &[(Box<str>, Family)]) {
        let Some(mut held) = self.ports_held(key).cloned() else { return };
        for (node, family) in places {
            if let Some(families) = held.nodes.get_mut(node) {
                families.remove(family);
            }
        }
        held.nodes.retain(|_, families| !families.is_empty());
        if self.ports_held(key) != Some(&held) {
            self.write_down(key, held);
        }
    }

    fn write_down(&mut self, key: &ObjectKey, held: HeldPorts) {
        if held.nodes.is_empty() {
            self.release(key);
        } else {
            let allocation = Allocation { ports: Some(Box::new(held)), ..Allocation::default() };
            Arc::make_mut(&mut self.allocations).insert(key.clone(), allocation);
            self.changed = true;
        }
    }
}
