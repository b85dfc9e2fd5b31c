//! What the engine wants done: effects as values, and only what differs from before.

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
