//! What the engine wants done: effects as values, and only what differs from before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::l2::announcer::Announcement;
use crate::l2::ethernet::Mac;
use crate::model::forwarding::{Forwarding, FrontendKey};
use crate::model::{Ingress, ObjectKey};

/// The effects of one event.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// For the rule set.
    pub rule_set: RulesetChanges,
    /// For the announcer: everything it is to announce from now on; None: as before.
    pub announcements: Option<BTreeMap<IpAddr, Announcement>>,
    /// The allocations changed: write them down.
    pub save: bool,
    /// For the API server, by Service, what replaces earlier words about the same one; only ever
    /// made by the writer.
    pub status_patches: BTreeMap<ObjectKey, StatusPatch>,
    /// For the announcer: addresses whose holder is to be asked, at one station or (None) by
    /// everybody, once and now.
    pub owner_probes: Vec<(IpAddr, Option<Mac>)>,
    /// For the announcer: how often to refresh announcements (None inside: as configured); None:
    /// as before.
    pub announce_interval: Option<Option<Duration>>,
    /// For BFD: all sessions to be kept; None: as before.
    pub sessions: Option<Sessions>,
    /// For BFD: tell every peer that this is a planned stop (AdminDown).
    pub leave: bool,
    /// For people, in the order in which it happened.
    pub diagnostics: Vec<Diagnostic>,
}

/// The BFD sessions of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sessions {
    /// Addresses to have a session with, and whose they are.
    pub peers: BTreeMap<IpAddr, Box<str>>,
    /// Addresses of this host by which its peers know it: they discard what comes from any other.
    pub local_addresses: BTreeSet<IpAddr>,
}

/// What the writer wants the API server to keep about a Service. It is written only onto the
/// version it was decided for: an answer to an older one is refused there, and the newer one is
/// decided about when the watch brings it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusPatch {
    /// `metadata.uid` and `metadata.resourceVersion` it was decided for.
    pub uid: Arc<str>,
    /// See `uid`.
    pub resource_version: Arc<str>,
    /// All of `status.loadBalancer.ingress`; None: as it is.
    pub ingress: Option<Arc<[Ingress]>>,
    /// Take the finalizer `service.kubernetes.io/load-balancer-cleanup` away.
    pub remove_finalizer: bool,
}

/// A change of the rule set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RulesetChanges {
    /// Number of the event behind it, ascending: a report names the last one that is in the
    /// kernel.
    pub generation: u64,
    /// Forget what was there: what follows is everything.
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

    /// Adds what came later: the later word about anything wins.
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

    /// Takes out what one transaction is to carry: everything, where all of it must come at once or
    /// there are no more than `limit` frontends, else the first of them. Only the last step has
    /// the number of the event, and the addresses: packets to one of ours on a port that is not
    /// there yet would be refused.
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

/// A sentence for people: a log line, and an Event where there is an API to send it to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Something is wrong and somebody may have to act.
    pub warning: bool,
    /// Whom it concerns; None: a node as a whole.
    pub service: Option<ObjectKey>,
    /// Which one, where the Node object says it to everybody; None: this one, and only it can
    /// know.
    pub node: Option<Box<str>>,
    /// A word for machines, as Event reasons are written.
    pub reason: &'static str,
    /// What happened, and what to do if it is bad.
    pub message: String,
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
