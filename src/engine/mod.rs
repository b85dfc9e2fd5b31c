//! The engine: takes events, keeps what follows from them, returns a plan of effects.
//!
//! ```text
//!  Event ─► Engine::handle ─► World ─► Derived      what is known, and what follows from it
//!                               └────► Work         Services to be looked at
//!                                        └────► reconcile ─► Decisions, Election
//!                                                              └─► Emitted::diff ─► Plan
//! ```
//!
//! [`world`] has what is known and what is derived from it; `reconcile` decides about one Service
//! (addresses, frontends), [`election`] about one virtual address; `emitted` remembers what went out,
//! so that a plan holds only what changed; [`report`] answers questions about all of it.

#[cfg(test)]
mod api_tests;
#[cfg(test)]
mod candidacy_tests;
#[cfg(test)]
mod class_tests;
mod decisions;
pub mod election;
pub mod eligibility;
mod emitted;
pub mod endpoints;
pub mod event;
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
mod publish;
mod reconcile;
pub mod report;
mod reservations;
#[cfg(test)]
mod stall_tests;
#[cfg(test)]
mod tests;
mod tracked;
pub mod uplinks;
mod world;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use decisions::Decisions;
use election::Election;
use emitted::Emitted;
pub use event::{EngineSettings, Event};
use index::{Index, Touched};
use membership::{DownReason, Liveness, MembershipDelta, PeerEvent};
use plan::Plan;
use report::Report;
use world::{Derived, Round, Work, World};

use crate::ipam::pool::Pool;
use crate::ipam::{Allocations, Ipam, NodePorts, Options};
use crate::k8s::status::StatusReconciler;
use crate::l2::announcer::AnnouncerEvent;
use crate::model::Interfaces;
use crate::model::diagnostic::{Diagnostic, INVALID_OBJECT};
use crate::model::mac::{self, Mac};
use crate::model::role::Role;
use crate::model::source_update::SourceUpdate;

/// How long an address that another machine was seen to use is left alone before it is tried again.
const CONFLICT_HOLD: Duration = Duration::from_secs(300);

/// Decides everything that happens on this node: a state machine without IO and without a clock.
pub struct Engine {
    world: World,
    derived: Derived,
    work: Work,
    decisions: Decisions,
    election: Election,
    emitted: Emitted,
}

impl Engine {
    /// An engine that knows nothing but its settings and what it had allocated before.
    pub fn new(settings: EngineSettings, saved: Allocations) -> Engine {
        let options = Options { avoid_buggy_ips: settings.avoid_buggy_ips };
        // With an API server the statuses hold the allocations; a local file may be older.
        let saved = if settings.role == Role::Alone { saved } else { Allocations::default() };
        Engine {
            decisions: Decisions {
                ipam: Ipam::new(settings.pools.clone(), options, saved),
                node_ports: NodePorts::default(),
                services: Default::default(),
                status: StatusReconciler::default(),
            },
            world: World::new(settings),
            derived: Derived::default(),
            work: Work::default(),
            election: Election::default(),
            emitted: Emitted::default(),
        }
    }

    /// Takes in one event and says what has to be done about it. `now` is monotonic.
    pub fn handle(&mut self, event: Event, now: Duration) -> Plan {
        self.world.now = now;
        self.world.generation += 1;
        let mut plan = Plan::default();
        let liveness = matches!(event, Event::Peer(PeerEvent::Liveness { .. }));
        self.take_in(event, &mut plan);

        // Taking over is an announcement. What else follows from a death comes right after it: see
        // `poll_timeout`.
        let takeover = liveness && self.emitted.announcements_changed(&self.election.vips);
        if !takeover {
            self.reconcile(&mut plan);
        }
        if self.world.started {
            self.poll_election(&mut plan);
        }

        let interval = Election::announce_interval(&self.world);
        let vips = &self.election.vips;
        self.emitted.diff(&self.world, &self.derived, vips, interval, &mut plan);
        plan.rule_set.generation = self.world.generation;
        plan.save &= self.world.role == Role::Alone;
        plan
    }

    /// When [`Event::Tick`] has something to do, if nothing else happens before; None: not at a
    /// certain time.
    pub fn poll_timeout(&self) -> Option<Duration> {
        if self.world.started && !self.work.dirty.is_empty() {
            return Some(self.world.now);
        }
        let election = self.election.poll_timeout(&self.world);
        election.into_iter().chain(self.decisions.status.poll_timeout()).min()
    }

    /// After [`Event::Drain`]: nothing is answered here any more.
    pub fn drained(&self) -> bool {
        self.election.vips.announcements.values().all(|announcement| announcement.standby)
    }

    /// A report of the engine's knowledge and decisions.
    pub fn report(&self) -> Report<'_> {
        Report {
            world: &self.world,
            derived: &self.derived,
            decisions: &self.decisions,
            election: &self.election,
        }
    }

    /// This node's name.
    pub fn node(&self) -> &str {
        &self.world.settings.node
    }

    /// Whether this node holds the Lease.
    pub fn role(&self) -> Role {
        self.world.role
    }

    /// The node that holds the Lease, as far as is known.
    pub fn leader(&self) -> Option<&str> {
        self.world.leader.as_deref()
    }

    /// The objects as the source last reported them.
    pub fn index(&self) -> &Index {
        &self.world.index
    }

    /// Another number whenever the objects changed; an object that comes again as it was does not
    /// count.
    pub fn revision(&self) -> u64 {
        self.world.revision
    }

    /// Whether the initial list is complete.
    pub fn synced(&self) -> bool {
        self.world.source_synced
    }

    /// What must survive a restart.
    pub fn allocations(&self) -> &Arc<Allocations> {
        self.decisions.ipam.allocations()
    }

    fn take_in(&mut self, event: Event, plan: &mut Plan) {
        match event {
            Event::Source(update) => self.source_changed(update, plan),
            Event::Interfaces(interfaces) => self.interfaces_changed(interfaces, plan),
            Event::Pools(pools) => self.pools_changed(pools, plan),
            Event::Announcer(event) => self.announcer_heard(event, plan),
            Event::RuleSet { error, generation } => {
                if error.is_none() {
                    self.world.applied = self.world.applied.max(generation);
                }
                self.world.rules = Some(error.map_or(Ok(()), Err));
            }
            Event::Role(role) => self.role_changed(role),
            Event::Leader(leader) => self.world.leader = leader,
            Event::PatchFailed { key, resource_version, refusal } => {
                let (decisions, _, mut round) = self.parts(plan);
                let status = &mut decisions.status;
                publish::on_patch_failed(status, key, &resource_version, refusal, &mut round);
            }
            Event::LeaderHealth(health) => self.world.leader_health = health,
            Event::Peer(event) => self.peer_event(event, plan),
            Event::Tick => self.tick(),
            Event::Drain => {
                self.world.draining = true;
                plan.leave = true;
                let (_, election, mut round) = self.parts(plan);
                let all = election.vips.addresses();
                election.review(all, &mut round);
            }
        }
    }

    /// What decides, and the event it decides about.
    fn parts<'a>(
        &'a mut self,
        plan: &'a mut Plan,
    ) -> (&'a mut Decisions, &'a mut Election, Round<'a>) {
        let Engine { world, derived, work, decisions, election, .. } = self;
        (decisions, election, Round { world, derived, work, plan })
    }

    /// Decides about everything that was touched. Nothing goes out before the source has been read
    /// and the interfaces are known: half the truth would take rules away from connections that
    /// need them.
    fn reconcile(&mut self, plan: &mut Plan) {
        if !self.world.source_synced || self.world.interfaces.is_none() {
            return;
        }
        let starts = !std::mem::replace(&mut self.world.started, true);
        if starts {
            self.election.start(self.world.now);
            plan.rule_set.reset = true;
        }
        let (decisions, election, mut round) = self.parts(plan);
        if starts {
            reconcile::forget_deleted(decisions, &mut round);
        }
        while !round.work.dirty.is_empty() {
            if reconcile::reconcile_dirty(decisions, election, &mut round) {
                round.work.retry_waiting();
            }
        }
    }

    /// What time asks of elections, and what follows from everything that happened in this event.
    fn poll_election(&mut self, plan: &mut Plan) {
        let (_, election, mut round) = self.parts(plan);
        election.handle_timeout(&mut round);

        let delta = self.world.membership.clear_duplicates(self.world.now);
        for node in &delta.nodes {
            let message = format!("node {node} is one machine again");
            plan.diagnostics.push(node_diagnostic(false, "SingleNode", message));
        }
        let (_, election, mut round) = self.parts(plan);
        election.members_changed(&delta, &mut round);
        election.review_duplicate(&mut round);
    }

    fn tick(&mut self) {
        let now = self.world.now;
        if self.decisions.ipam.expire_conflicts(now) {
            self.work.retry_waiting();
        }
        self.election.expire_dead(&self.world, &mut self.work);
        self.work.dirty.extend(self.decisions.status.expired(now));
        self.work.dirty.extend(self.decisions.status.retries(now));
    }

    fn source_changed(&mut self, update: SourceUpdate, plan: &mut Plan) {
        let mut nodes = false;
        for change in update.changes {
            self.world.index.apply(change, &mut |touched| {
                self.world.revision += 1;
                match touched {
                    Touched::Service(key) => {
                        self.work.dirty.insert(key);
                    }
                    Touched::Node(_) => nodes = true,
                }
            });
        }
        let known = &self.world.problems;
        for problem in update.problems.iter().filter(|problem| !known.contains(problem)) {
            let object =
                problem.object.as_ref().map(|object| format!(" {object}:")).unwrap_or_default();
            let message = format!("{}:{object} {}", problem.source, problem.reason);
            let alone = self.world.settings.role == Role::Alone;
            let reason = if alone { "Manifest" } else { INVALID_OBJECT };
            plan.diagnostics.push(node_diagnostic(!problem.note, reason, message));
        }
        self.world.problems = update.problems;
        self.world.source_synced |= update.synced;
        if nodes {
            self.environment_changed(plan);
        }
        if let Some(health) = update.health {
            if health.is_ok() && self.world.source_health.is_err() {
                self.election.source_returned(self.world.now);
            }
            self.world.source_health = health;
        }
    }

    fn interfaces_changed(&mut self, interfaces: Arc<Interfaces>, plan: &mut Plan) {
        let uplinks = self.world.judge_uplinks(&interfaces);
        let before = self.world.interfaces.replace(interfaces.clone());
        // Every pod comes and goes with an interface, and nothing follows from it.
        if before.is_some_and(|before| {
            uplinks::same(&before, &self.derived.uplinks, &interfaces, &uplinks)
        }) {
            self.derived.uplinks = uplinks;
        } else {
            self.environment_changed(plan);
        }
    }

    fn pools_changed(&mut self, pools: Vec<Pool>, plan: &mut Plan) {
        self.decisions.ipam.set_pools(pools.clone());
        self.world.settings.pools = pools;
        self.environment_changed(plan);
    }

    /// Nodes, interfaces or pools changed: rare, and nearly everything may follow from it, so every
    /// Service is looked at again. What did not change makes no difference to the plan.
    fn environment_changed(&mut self, plan: &mut Plan) {
        let Some(interfaces) = self.world.interfaces.clone() else { return };
        self.derived = Derived::compute(&self.world, &interfaces);
        self.decisions.ipam.set_reserved(self.derived.reserved.clone());
        let own = interfaces
            .values()
            .flat_map(|interface| &interface.addresses)
            .map(|subnet| subnet.addr())
            .collect();
        self.world.membership.set_nodes(self.world.index.nodes(), &own, self.world.now);
        self.work.dirty.extend(self.world.index.services().map(|service| service.key.clone()));

        let (_, election, mut round) = self.parts(plan);
        election.nodes_changed(round.world, round.work);
        election.review_all(&mut round);
    }

    /// A new leader looks at every Service; one that ceases to be leader goes back to what the
    /// statuses say.
    fn role_changed(&mut self, role: Role) {
        if self.world.role != role {
            self.world.role = role;
            self.decisions.status.clear();
            self.work.dirty.extend(self.world.index.services().map(|service| service.key.clone()));
        }
    }

    fn peer_event(&mut self, event: PeerEvent, plan: &mut Plan) {
        let now = self.world.now;
        match event {
            PeerEvent::Neighbour { address, mac } => {
                self.world.membership.neighbour(address, mac);
                self.resolve_unverified_claims(plan);
            }
            PeerEvent::Liveness { address, state } => {
                if let Liveness::Down(reason) = state {
                    self.election.session_down(address, reason == DownReason::AdminDown);
                }
                let delta = self.world.membership.liveness(address, state, now);
                self.members_changed(&delta, plan);
            }
            PeerEvent::DuplicateIdentity { address, ours } => {
                let delta = self.world.membership.on_duplicate(address, ours, now);
                // This node's own is reported with the other ways to be one of two.
                for node in &delta.nodes {
                    if let Some(message) = self.world.membership.duplicate_message(node) {
                        plan.diagnostics.push(node_diagnostic(true, "DuplicateNode", message));
                    }
                }
                self.members_changed(&delta, plan);
            }
            PeerEvent::Stalled { .. } if self.world.membership.is_empty() => {}
            PeerEvent::Stalled { late } => {
                let (_, election, mut round) = self.parts(plan);
                election.stalled(late, &mut round);
            }
            PeerEvent::RemoteDetectionExpired { address } => {
                let (_, election, mut round) = self.parts(plan);
                election.remote_detection_expired(address, &mut round);
            }
            PeerEvent::Resynced => {
                let (_, election, mut round) = self.parts(plan);
                election.end_suspension(&mut round);
            }
        }
    }

    fn members_changed(&mut self, delta: &MembershipDelta, plan: &mut Plan) {
        let (_, election, mut round) = self.parts(plan);
        election.members_changed(delta, &mut round);
    }

    /// What the announcer heard about an address.
    fn announcer_heard(&mut self, event: AnnouncerEvent, plan: &mut Plan) {
        match event {
            AnnouncerEvent::ProbeClear { vip } => self.clear(vip, plan),
            // A peer may have it, or be about to: no foreign machine, nothing to probe for.
            AnnouncerEvent::Conflict { vip, mac, .. } => {
                if self.on_owner_claim(vip, mac, plan) {
                    self.on_peer_claim(vip, plan);
                } else {
                    self.on_conflict(vip, mac, plan);
                }
            }
            AnnouncerEvent::Contested { vip, mac, .. } => {
                if !self.on_owner_claim(vip, mac, plan) {
                    self.on_contested(vip, mac, plan);
                }
            }
            AnnouncerEvent::ClaimObserved { vip, mac, .. } => {
                if self.on_owner_claim(vip, mac, plan) {
                    self.on_peer_claim(vip, plan);
                } else if self.world.membership.lladdrs_known() {
                    self.on_foreign_claim(vip, mac, plan);
                } else {
                    self.on_unverified_claim(vip, mac, plan);
                }
            }
            AnnouncerEvent::ProbeObserved { vip, mac, .. } => {
                if let Some(node) = self.peer_heard(mac, plan) {
                    let (_, election, mut round) = self.parts(plan);
                    election.on_owner_probe(vip, &node, &mut round);
                }
            }
            AnnouncerEvent::Defended { mac, .. } => {
                self.peer_heard(mac, plan);
            }
            AnnouncerEvent::SocketFailed { ifindex, reason } => {
                let interface = self.world.interfaces.as_deref().and_then(|all| all.get(&ifindex));
                let name = interface.map_or("?", |interface| &interface.name);
                let message = format!("cannot announce on {name}: {reason}");
                plan.diagnostics.push(node_diagnostic(true, "AnnouncerFailed", message));
            }
        }
    }

    /// Notes that a peer was heard, and returns its name. A peer that speaks ARP or ND, but not BFD,
    /// is behind a filter.
    fn peer_heard(&mut self, mac: Mac, plan: &mut Plan) -> Option<Box<str>> {
        let membership = &mut self.world.membership;
        let node: Box<str> = membership.by_lladdr(mac)?.into();
        if membership.heard(&node, self.world.now) {
            let message = membership.blocked_message(&node);
            plan.diagnostics.push(node_diagnostic(true, "BfdBlocked", message));
        }
        Some(node)
    }

    /// A machine claims the address. True when it is a peer, so no foreign machine.
    fn on_owner_claim(&mut self, address: IpAddr, mac: Mac, plan: &mut Plan) -> bool {
        self.peer_heard(mac, plan);
        let (_, election, mut round) = self.parts(plan);
        election.on_owner_claim(address, mac, &mut round)
    }

    /// The address may carry traffic from now on.
    fn clear(&mut self, address: IpAddr, plan: &mut Plan) {
        let Some(vip) = self.election.vips.get_mut(address) else { return };
        vip.claim.clear();
        self.work.dirty.extend(vip.services.iter().cloned());
        self.decisions.ipam.mark_probed(address);
        plan.save = true;
    }

    /// A peer answers for the address, so it has been probed, or needs not be.
    fn on_peer_claim(&mut self, address: IpAddr, plan: &mut Plan) {
        let vip = self.election.vips.get_mut(address);
        if let Some(vip) = vip.filter(|vip| !vip.claim.is_clear()) {
            vip.probe = false;
            self.clear(address, plan);
        }
    }

    /// A machine that is none of the nodes has the address.
    fn on_foreign_claim(&mut self, address: IpAddr, mac: Mac, plan: &mut Plan) {
        if self.election.vips.get(address).is_some_and(|vip| vip.claim.is_clear()) {
            self.on_contested(address, mac, plan);
        } else {
            self.on_conflict(address, mac, plan);
        }
    }

    /// Perhaps a peer whose link-layer address is not known yet, perhaps a foreign machine. The
    /// Service keeps its address for now: the other nodes, which may know better, would not follow
    /// to another one.
    fn on_unverified_claim(&mut self, address: IpAddr, mac: Mac, plan: &mut Plan) {
        let Some(vip) = self.election.vips.get_mut(address) else { return };
        if vip.claim.on_suspect(mac, self.world.now) {
            let message = format!(
                "another machine ({}), none of the nodes that could be found, answers for {address}: it is left alone",
                mac::display(mac)
            );
            let service = vip.services.first().cloned();
            let diagnostic = node_diagnostic(true, "AddressInUse", message);
            plan.diagnostics.push(Diagnostic { service, ..diagnostic });
        }
    }

    /// A peer's link-layer address was learned: a machine that was heard before may be that peer, or
    /// is known to be a foreign one now.
    fn resolve_unverified_claims(&mut self, plan: &mut Plan) {
        let suspects: Vec<(IpAddr, Mac)> = self.election.vips.suspects().collect();
        let known = self.world.membership.lladdrs_known();
        for (address, mac) in suspects {
            let peer = self.world.membership.by_lladdr(mac).is_some();
            if !peer && !known {
                continue;
            }
            let Some(vip) = self.election.vips.get_mut(address) else { continue };
            vip.claim.resolve();
            // A foreign machine is probed again and again, so what is believed of one is no older
            // than that.
            let answers = *vip.election.owner() == election::vip_election::Owner::Foreign;
            if peer {
                self.on_peer_claim(address, plan);
            } else if answers {
                self.on_foreign_claim(address, mac, plan);
            }
        }
    }

    /// Another machine answered the probes: the Services get another address, or learn why not.
    fn on_conflict(&mut self, address: IpAddr, mac: Mac, plan: &mut Plan) {
        let Some(vip) = self.election.vips.get(address) else { return };
        self.decisions.ipam.conflict(address, mac, self.world.now + CONFLICT_HOLD);
        self.work.dirty.extend(vip.services.iter().cloned());
        let message = format!(
            "{address} is in use by another machine ({}) and is left alone; take it out of PINNACE_POOLS or give that machine another address",
            mac::display(mac)
        );
        let service = vip.services.first().cloned();
        let diagnostic = node_diagnostic(true, "AddressInUse", message);
        plan.diagnostics.push(Diagnostic { service, ..diagnostic });
    }

    /// Another machine claims what this node announces.
    fn on_contested(&mut self, address: IpAddr, mac: Mac, plan: &mut Plan) {
        let Some(vip) = self.election.vips.get_mut(address) else { return };
        if vip.claim.on_foreign(mac, self.world.now) {
            let message = format!(
                "another machine ({}) also answers for {address}, so clients reach either; stop it there",
                mac::display(mac)
            );
            let service = vip.services.first().cloned();
            let diagnostic = node_diagnostic(true, "AddressConflict", message);
            plan.diagnostics.push(Diagnostic { service, ..diagnostic });
        }
    }
}

/// A diagnostic about this node as a whole.
fn node_diagnostic(warning: bool, reason: &'static str, message: String) -> Diagnostic {
    Diagnostic { warning, service: None, node: None, reason, message }
}
