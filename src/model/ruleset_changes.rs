//! What changes in the ruleset: the hand-over from [`crate::engine`] to [`crate::nft`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::forwarding::{Forwarding, FrontendKey};

/// A change of the ruleset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RulesetChanges {
    /// Number of the event behind it, ascending: a report names the last one that is in the
    /// kernel.
    pub generation: u64,
    /// Replace the tables: the changes are complete.
    pub reset: bool,
    /// Names of the uplinks, all of them; None: as before.
    pub uplinks: Option<BTreeSet<Box<str>>>,
    /// The virtual addresses whose packets are ours, all of them; None: as before.
    pub vips: Option<BTreeSet<IpAddr>>,
    /// Frontends that changed; None: it is gone.
    pub forwardings: BTreeMap<FrontendKey, Option<Arc<Forwarding>>>,
}

impl RulesetChanges {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        !self.reset && self.uplinks.is_none() && self.vips.is_none() && self.forwardings.is_empty()
    }

    /// Merges later changes; the later change of each object wins.
    pub fn merge(&mut self, later: RulesetChanges) {
        if later.reset {
            *self = later;
            return;
        }
        self.generation = self.generation.max(later.generation);
        self.uplinks = later.uplinks.or(self.uplinks.take());
        self.vips = later.vips.or(self.vips.take());
        self.forwardings.extend(later.forwardings);
    }

    /// Takes the changes of the next transaction: everything with `reset` or with at most `limit`
    /// frontends, otherwise the first `limit` frontends. Only the last step has the generation and
    /// the VIPs, because packets to a VIP are refused on a port that has not been added yet.
    pub fn step(&mut self, limit: usize) -> RulesetChanges {
        let next = self.forwardings.keys().nth(limit).copied();
        let Some(next) = next.filter(|_| !self.reset) else { return std::mem::take(self) };
        let later = self.forwardings.split_off(&next);
        let forwardings = std::mem::replace(&mut self.forwardings, later);
        RulesetChanges {
            generation: 0,
            reset: false,
            uplinks: self.uplinks.take(),
            vips: None,
            forwardings,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    #[test]
    fn many_frontends_go_in_steps_unless_they_replace_everything() {
        let frontends = |ports: std::ops::Range<u16>| {
            let key = |port| FrontendKey {
                address: IpAddr::from([10, 0, 0, 1]),
                protocol: Protocol::Tcp,
                port,
            };
            ports.map(|port| (key(port), None)).collect::<BTreeMap<_, _>>()
        };
        let mut changes = RulesetChanges {
            generation: 7,
            vips: Some(BTreeSet::new()),
            forwardings: frontends(0..5),
            ..RulesetChanges::default()
        };
        let mut all = RulesetChanges { reset: true, ..changes.clone() };
        assert_eq!((all.step(2).forwardings.len(), all.is_empty()), (5, true));
        let steps: Vec<RulesetChanges> =
            std::iter::from_fn(|| Some(changes.step(2)).filter(|step| !step.is_empty())).collect();
        assert_eq!(
            steps.iter().map(|s| (s.generation, s.forwardings.len())).collect::<Vec<_>>(),
            [(0, 2), (0, 2), (7, 1)]
        );
        assert_eq!(
            steps.iter().map(|s| s.vips.is_some()).collect::<Vec<_>>(),
            [false, false, true]
        );
    }

    #[test]
    fn the_later_word_wins_and_a_reset_forgets() {
        let names = |n: &str| Some(BTreeSet::from([n.into()]));
        let mut changes = RulesetChanges { uplinks: names("eth0"), ..RulesetChanges::default() };
        changes.merge(RulesetChanges { vips: Some(BTreeSet::new()), ..RulesetChanges::default() });
        assert_eq!(changes.uplinks, names("eth0"));
        changes.merge(RulesetChanges { uplinks: names("eth1"), ..RulesetChanges::default() });
        assert_eq!((changes.uplinks.clone(), changes.vips.is_some()), (names("eth1"), true));
        changes.merge(RulesetChanges { reset: true, ..RulesetChanges::default() });
        assert!(changes.uplinks.is_none() && changes.reset);
        assert!(!changes.is_empty() && RulesetChanges::default().is_empty());
    }
}
