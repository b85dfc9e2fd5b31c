//! Output of the engine: effects as values, and only what differs from before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::k8s::status::StatusPatch;
use crate::l2::announcer::Announcement;
use crate::model::ObjectKey;
use crate::model::diagnostic::Diagnostic;
use crate::model::mac::Mac;
use crate::model::ruleset_changes::RulesetChanges;

/// The effects of one event.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// For the rule set.
    pub rule_set: RulesetChanges,
    /// For the announcer: the complete set of announcements; None: unchanged.
    pub announcements: Option<BTreeMap<IpAddr, Announcement>>,
    /// The allocations to save; None: unchanged.
    pub save: bool,
    /// For the API server: status patches by Service; each replaces earlier ones for the same
    /// Service. Only the leader emits them.
    pub status_patches: BTreeMap<ObjectKey, StatusPatch>,
    /// For the announcer: addresses to probe once, now, at one link-layer address or (None) by
    /// broadcast or multicast.
    pub owner_probes: Vec<(IpAddr, Option<Mac>)>,
    /// For the announcer: how often to refresh announcements (None inside: as configured); None:
    /// as before.
    pub announce_interval: Option<Option<Duration>>,
    /// For BFD: the complete set of sessions; None: unchanged.
    pub sessions: Option<Sessions>,
    /// For BFD: signal AdminDown to every peer (planned stop).
    pub leave: bool,
    /// Diagnostics for operators, in chronological order.
    pub diagnostics: Vec<Diagnostic>,
}

/// The BFD sessions of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sessions {
    /// Peer addresses, each with the name of its node.
    pub peers: BTreeMap<IpAddr, Box<str>>,
    /// Addresses of this host that its peers know: they discard packets from any other.
    pub local_addresses: BTreeSet<IpAddr>,
}
