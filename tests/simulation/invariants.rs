//! What must hold at every step.

use super::*;

impl World {
    /// The node would answer for the address, and how.
    pub fn answers(&self, node: usize, vip: IpAddr) -> Option<bool> {
        let host = &self.hosts[node];
        let process = host.process.as_ref().filter(|_| !host.frozen && host.link)?;
        process
            .announced
            .get(&vip)
            .filter(|announcement| !announcement.standby)
            .map(|announcement| announcement.quiet)
    }

    pub fn owners(&self, vip: IpAddr) -> Vec<usize> {
        (0..self.hosts.len()).filter(|node| self.answers(*node, vip) == Some(false)).collect()
    }

    /// What must hold at every step.
    pub(super) fn check(&mut self) {
        for node in 0..self.hosts.len() {
            let host = &self.hosts[node];
            let eligible = self.running(node)
                && host.link
                && !host.excluded
                && !host.deleted
                && host.process.as_ref().is_some_and(|p| !p.left);
            let undisturbed = eligible && host.was_eligible;
            let host = &mut self.hosts[node];
            host.eligible_since =
                if undisturbed { host.eligible_since } else { eligible.then_some(self.now) };
            host.was_eligible = eligible;
        }
        for vip in self.vips.clone() {
            let owners = self.owners(vip);
            let first = owners.first().copied();
            let moves = self.moves.entry(vip).or_default();
            if owners.len() == 1 && moves.iter().rev().find_map(|(_, owner)| *owner) != first {
                moves.push((self.now, first));
            }
            let mut doubles = BTreeSet::new();
            for (n, a) in owners.iter().enumerate() {
                for b in &owners[n + 1..] {
                    // Where one of them hears the other, that one is to yield. The model of timing
                    // does not tell it.
                    let heard = [self.path(*a, *b), self.path(*b, *a)];
                    if heard == [true; 2]
                        || self.detection == Detection::Packets && heard.contains(&true)
                    {
                        doubles.insert((vip, *a, *b));
                    }
                }
            }
            self.doubles.retain(|key, _| key.0 != vip || doubles.contains(key));
            for key in doubles {
                let since = *self.doubles.entry(key).or_insert(self.now);
                if self.now - since > self.bounds.0 {
                    self.failures.push(format!(
                        "{:?}: nodes {} and {} both have {vip} since {since:?}",
                        self.now, key.1, key.2
                    ));
                }
            }
            for node in 0..self.hosts.len() {
                let serves = self.local.get(&vip).is_none_or(|nodes| nodes.contains(&node));
                let eligible = self.hosts[node].eligible_since.filter(|_| serves);
                // A side has an owner when its clients have one. That this node alone does not get
                // the owner's frames (they are lost one way, between these two) is
                // no reason for a second one, which the same clients would hear.
                let beside = |other: usize| {
                    self.answers(other, vip).is_some()
                        && self.hosts[other].side == self.hosts[node].side
                };
                let orphan = eligible.is_some() && !(0..self.hosts.len()).any(beside);
                if !orphan {
                    self.orphans.remove(&(vip, node));
                    continue;
                }
                let since = *self.orphans.entry((vip, node)).or_insert(self.now);
                let since = since.max(eligible.unwrap_or(self.now));
                if self.now - since > self.bounds.1 {
                    self.failures.push(format!(
                        "{:?}: nobody has {vip} since {since:?}, and node {node} could",
                        self.now
                    ));
                }
            }
        }
    }
}
