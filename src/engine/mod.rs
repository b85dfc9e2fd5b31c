//! The engine: takes events, keeps what follows from them, returns a plan of effects. It owns the
//! index, the allocations and, per Service, what the data plane was told, so that a plan holds only
//! what changed.
//!
//! `event` is what it is told, `surroundings` what follows from interfaces, nodes and pools;
//! `place` decides about one Service (addresses, frontends), `vips` about one virtual address
//! (probe, announce), `report` answers questions about all of it.

#[cfg(test)]
mod api_tests;
#[cfg(test)]
mod candidacy_tests;
#[cfg(test)]
mod class_tests;
pub mod election;
pub mod endpoints;
mod environment;
mod event;
mod exclusion;
#[cfg(test)]
mod expiry_tests;
#[cfg(test)]
mod ignored_tests;
pub mod index;
pub mod membership;
mod node_ports;
#[cfg(test)]
mod node_ports_tests;
pub mod plan;
mod reconcile;
mod report;
mod reservations;
#[cfg(test)]
mod stall_tests;
#[cfg(test)]
mod tests;
pub mod uplinks;
mod vip;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use election::Election;
use endpoints::Here;
pub use event::{EngineSettings, Event};
use exclusion::Exclusions;
use index::{Index, Touched};
use membership::{Membership, PeerEvent};
use plan::Plan;
use reservations::Reservations;
use uplinks::Uplinks;
use vip::Vip;

use crate::ipam::{Allocations, Ipam, NodePorts, Options};
use crate::k8s::status::StatusReconciler;
use crate::l2::announcer::Announcement;
use crate::model::diagnostic::{Diagnostic, INVALID_OBJECT};
use crate::model::forwarding::{Forwarding, FrontendKey};
use crate::model::role::Role;
use crate::model::source_update::SourceUpdate;
use crate::model::state::{Reason, SourceProblem};
use crate::model::{Interfaces, Mode, ObjectKey, Service};

/// What was decided about one Service.
#[derive(Debug, Default)]
struct ServiceState {
    mode: Option<Mode>,
    /// What clients may use; empty while pending or refused.
    addresses: Vec<IpAddr>,
    /// What they use until the status names `addresses`.
    draining_addresses: Vec<IpAddr>,
    /// What the data plane was told.
    frontends: Vec<(FrontendKey, Arc<Forwarding>)>,
    /// The event with which that changed last.
    generation: u64,
    /// Why it is not served, or not fully.
    reasons: Vec<Reason>,
    phase: ServicePhase,
}

impl ServiceState {
    /// Every address that is kept for the Service.
    fn held(&self) -> Vec<IpAddr> {
        [&*self.addresses, &*self.draining_addresses].concat()
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ServicePhase {
    #[default]
    Serving,
    /// It will be served once something passes by itself: a probe, a link.
    Pending,
    /// Somebody has to change something.
    Failed,
    /// Not ours to serve.
    Unmanaged,
}

/// See the head of this file.
pub struct Engine {
    settings: EngineSettings,
    now: Duration,
    index: Index,
    problems: Vec<SourceProblem>,
    interfaces: Option<Arc<Interfaces>>,
    uplinks: Uplinks,
    node_addresses: BTreeSet<IpAddr>,
    told_uplinks: BTreeSet<Box<str>>,
    told_vips: BTreeSet<IpAddr>,
    told_ipv6_off: bool,
    ipam: Ipam,
    node_ports: NodePorts,
    // Boxed: nodes of a map are half empty, and thousands of large values would be as much air.
    services: BTreeMap<ObjectKey, Box<ServiceState>>,
    vips: BTreeMap<IpAddr, Box<Vip>>,
    announcements: BTreeMap<IpAddr, Announcement>,
    dirty: BTreeSet<ObjectKey>,
    /// Refused for want of something another Service may give up.
    waiting: BTreeSet<ObjectKey>,
    source_synced: bool,
    /// Counts the changes of the index.
    revision: u64,
    /// The first plan has gone out.
    started: bool,
    /// Number of the event being handled, and of the last one whose rules are in the kernel.
    generation: u64,
    applied: u64,
    rules: Option<Result<(), String>>,
    draining: bool,
    role: Role,
    leader: Option<Box<str>>,
    status_reconciler: StatusReconciler,
    source_health: Result<(), String>,
    leader_health: Result<(), String>,
    membership: Membership,
    election: Election,
    exclusions: Exclusions,
    reservations: Reservations,
}

impl Engine {
    /// An engine that knows nothing but its settings and what it had allocated before.
    pub fn new(settings: EngineSettings, saved: Allocations) -> Engine {
        let options = Options { avoid_buggy_ips: settings.avoid_buggy_ips };
        // With an API server the statuses there say who has what; an older file here knows less.
        let saved = if settings.role == Role::Alone { saved } else { Allocations::default() };
        Engine {
            role: settings.role,
            membership: Membership::new(&settings.node),
            ipam: Ipam::new(settings.pools.clone(), options, saved),
            settings,
            now: Duration::ZERO,
            index: Index::default(),
            problems: Vec::new(),
            interfaces: None,
            uplinks: Uplinks::default(),
            node_addresses: BTreeSet::new(),
            told_uplinks: BTreeSet::new(),
            told_vips: BTreeSet::new(),
            told_ipv6_off: false,
            node_ports: NodePorts::default(),
            services: BTreeMap::new(),
            vips: BTreeMap::new(),
            announcements: BTreeMap::new(),
            dirty: BTreeSet::new(),
            waiting: BTreeSet::new(),
            source_synced: false,
            revision: 0,
            started: false,
            generation: 0,
            applied: 0,
            rules: None,
            draining: false,
            leader: None,
            status_reconciler: StatusReconciler::default(),
            source_health: Ok(()),
            leader_health: Ok(()),
            election: Election::default(),
            exclusions: Exclusions::default(),
            reservations: Reservations::default(),
        }
    }

    /// Takes in one event and says what has to be done about it. `now` is monotonic.
    pub fn handle(&mut self, event: Event, now: Duration) -> Plan {
        self.now = now;
        self.generation += 1;
        let mut plan = Plan::default();
        let dying = matches!(event, Event::Peer(PeerEvent::Liveness { .. }));
        match event {
            Event::Source(update) => self.source_changed(update, &mut plan),
            Event::Interfaces(interfaces) => self.interfaces_changed(interfaces, &mut plan),
            Event::Pools(pools) => self.pools_changed(pools, &mut plan),
            Event::Announcer(event) => self.heard(event, &mut plan),
            Event::RuleSet { error, generation } => {
                if error.is_none() {
                    self.applied = self.applied.max(generation);
                }
                self.rules = Some(error.map_or(Ok(()), Err));
            }
            Event::Role(role) => self.role_changed(role),
            Event::Leader(holder) => self.leader = holder,
            Event::PatchFailed { key, resource_version, refusal } => {
                self.on_patch_failed(key, &resource_version, refusal, &mut plan)
            }
            Event::LeaderHealth(health) => self.leader_health = health,
            Event::Peer(event) => self.peer(event, &mut plan),
            Event::Tick => {
                if self.ipam.expire_conflicts(now) {
                    self.dirty.append(&mut self.waiting);
                }
                self.expire_dead();
                self.dirty.extend(self.status_reconciler.expired(now));
                self.dirty.extend(self.status_reconciler.retries(now));
            }
            Event::Drain => {
                self.draining = true;
                plan.leave = true;
                let all: Vec<IpAddr> = self.vips.keys().copied().collect();
                self.review_vips(all, &mut plan);
            }
        }
        // Taking over is an announcement; what else follows from a death comes right after it, see
        // poll_timeout.
        if !(dying && plan.announcements.is_some()) {
            self.reconcile(&mut plan);
        }
        self.emit_exclusions(&mut plan);
        self.emit_reserved(&mut plan);
        self.poll_election(&mut plan);
        plan.rule_set.generation = self.generation;
        plan.save &= self.role == Role::Alone;
        plan
    }

    /// A new writer looks at every Service; one that ceases to be it goes back to what the statuses
    /// say.
    fn role_changed(&mut self, role: Role) {
        if self.role != role {
            self.role = role;
            self.status_reconciler.clear();
            if role == Role::Leader {
                self.reemit_exclusions();
            }
            self.dirty.extend(self.index.services().map(|s| s.key.clone()));
        }
    }

    /// This node's name.
    pub fn node(&self) -> &str {
        &self.settings.node
    }

    /// Whether this node holds the Lease.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The node that holds the Lease, as far as is known.
    pub fn leader(&self) -> Option<&str> {
        self.leader.as_deref()
    }

    /// The objects as the source last told them.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Another number whenever the objects changed; one that is told again as it was does not
    /// count.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether the source has told everything at least once.
    pub fn synced(&self) -> bool {
        self.source_synced
    }

    /// What must survive a restart.
    pub fn allocations(&self) -> &Arc<Allocations> {
        self.ipam.allocations()
    }

    fn source_changed(&mut self, update: SourceUpdate, plan: &mut Plan) {
        let mut nodes = false;
        for change in update.changes {
            self.index.apply(change, &mut |touched| {
                self.revision += 1;
                match touched {
                    Touched::Service(key) => {
                        self.dirty.insert(key);
                    }
                    Touched::Node(_) => nodes = true,
                }
            });
        }
        for problem in update.problems.iter().filter(|problem| !self.problems.contains(problem)) {
            let object =
                problem.object.as_ref().map(|object| format!(" {object}:")).unwrap_or_default();
            let message = format!("{}:{object} {}", problem.source, problem.reason);
            let reason =
                if self.settings.role == Role::Alone { "Manifest" } else { INVALID_OBJECT };
            plan.diagnostics.push(Diagnostic {
                warning: !problem.note,
                service: None,
                node: None,
                reason,
                message,
            });
        }
        self.problems = update.problems;
        self.source_synced |= update.synced;
        if nodes {
            self.exclusions.stale = true;
            self.environment_changed(plan);
        }
        if let Some(health) = update.health {
            if health.is_ok() && self.source_health.is_err() {
                self.source_returned();
            }
            self.source_health = health;
        }
    }

    /// Decides about everything that was touched. Nothing goes out before the source has been read
    /// and the interfaces are known: half the truth would take rules away from connections that
    /// need them.
    fn reconcile(&mut self, plan: &mut Plan) {
        if !self.source_synced || self.interfaces.is_none() {
            return;
        }
        if !self.started {
            self.started = true;
            self.election.start(self.now);
            plan.rule_set.reset = true;
            plan.rule_set.uplinks = Some(self.uplink_names());
            plan.rule_set.vips = Some(BTreeSet::new());
            self.forget_deleted(plan);
        } else if !self.dirty.is_empty() {
            let names = self.uplink_names();
            if names != self.told_uplinks {
                plan.rule_set.uplinks = Some(names);
            }
        }
        if let Some(names) = &plan.rule_set.uplinks {
            self.told_uplinks.clone_from(names);
        }
        while !self.dirty.is_empty() {
            let freed = self.reconcile_dirty(plan);
            if freed {
                self.dirty.append(&mut self.waiting);
            }
        }
    }

    fn here(&self) -> Here<'_> {
        let zone = self.index.node(&self.settings.node).and_then(|n| n.zone.as_deref());
        Here { node: &self.settings.node, zone, dead: &self.election.dead }
    }

    fn mode(&self, service: &Service) -> Mode {
        service.request.mode.unwrap_or(self.settings.mode)
    }

    fn is_managed(&self, service: &Service) -> bool {
        let claimed = match &service.class {
            Some(class) => *class == self.settings.class,
            None => self.settings.claim_default,
        };
        claimed && !service.request.ignore
    }
}
