//! Which node answers for each address: what the engine makes of the other nodes' life, of what is
//! heard on the wire, and of time.
//!
//! Candidates are the nodes with a live session that are not excluded, have an internal address in
//! the address's subnet and, for policy Local, a ready endpoint; while there is none anywhere,
//! every node is one, to refuse clients. For an address that several Services share it
//! is enough that one of them can be served: it has one holder for all of them. Where the Node
//! objects say nothing about a subnet (a second network, on which not even our own internal address
//! is), every live node is presumed to be on it: one that is not does not claim, and the next one
//! does.

pub mod rank;
pub mod vip_election;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use rank::Ineligible;
use vip_election::{Candidate, ElectionInput, Eligibility, Owner, VipElection};

use super::Engine;
use super::endpoints::{Dead, Here};
use super::membership::{DownReason, Liveness, MembershipDelta, PeerEvent, Reachability};
use super::plan::{Plan, Sessions};
use crate::model::Interfaces;
use crate::model::diagnostic::Diagnostic;
use crate::model::mac::Mac;
use crate::model::role::Role;

/// What the engine keeps for it.
#[derive(Debug, Default)]
pub(super) struct Election {
    /// Endpoints of dead nodes.
    pub dead: Dead,
    /// Since when. No entry: the API has had the time to take them away, and has not.
    died: BTreeMap<Box<str>, Duration>,
    started: Option<Duration>,
    /// This node comes last until then; and whether it did when that was last looked at.
    fresh_until: Duration,
    was_fresh: bool,
    listen_until: Duration,
    /// Every peer was seen, since then.
    complete: Option<Duration>,
    suspended: Option<Suspension>,
    /// Sessions in which the peer has waited for us in vain, and when it said so.
    given_up: BTreeMap<IpAddr, Duration>,
    deadlines: BTreeSet<(Duration, IpAddr)>,
    told_interval: Option<Duration>,
    told_sessions: Sessions,
    double: Option<IpAddr>,
    /// There was a Node object of this node's.
    pub member: bool,
}

/// Endpoints of a node that was found dead are left out for so long at most: by then the API server
/// has noticed, too (node-monitor-grace-period, 40 or 50 s), and one that it still calls ready is
/// on a node where Pinnace alone ended, or BFD alone is blocked.
pub(super) const DEAD_FOR: Duration = Duration::from_secs(60);

/// After a stall of less than this the network is what it was, and sessions need not find each
/// other again: once all questions have gone unanswered, nobody has the address. The host of a
/// virtual machine stalls all of its nodes at once, and where one of them died at that moment
/// each of the others would otherwise listen for seconds.
const SHORT_STALL: Duration = Duration::from_secs(1);

/// In each of its sessions a peer says within an interval that it gave us up; the first may be up
/// again before the last has said so. Intervals are longer than this only where a node has more
/// than 130 sessions, or late packets have made them so.
const CONFIRM_WITHIN: Duration = Duration::from_millis(300);

/// After a stall, or what may have been one, until somebody was heard again.
#[derive(Debug)]
struct Suspension {
    until: Duration,
    /// What this node held.
    held: BTreeSet<IpAddr>,
    /// A session with a peer was lost meanwhile, so others may have taken over.
    lost: bool,
    /// Where that this node was away is only what a peer says: sessions that have been up all the
    /// time since. Each shows that it was not.
    confirming_sessions: Option<BTreeSet<IpAddr>>,
}

impl Election {
    pub fn start(&mut self, now: Duration) {
        self.started = Some(now);
        self.fresh_until = now + rank::HOLD_OFF;
        self.listen_until = now + rank::LISTEN;
    }
}

impl Engine {
    /// When [`super::Event::Tick`] has something to do, if nothing else happens before; None: not
    /// at a certain time.
    pub fn poll_timeout(&self) -> Option<Duration> {
        if self.started && !self.dirty.is_empty() {
            return Some(self.now);
        }
        let seats = self.election.deadlines.first().map(|(due, _)| *due);
        let suspension = self.election.suspended.as_ref().map(|suspension| suspension.until);
        let ages = self
            .membership
            .live()
            .map(|(_, since)| since + rank::HOLD_OFF)
            .chain([self.election.fresh_until]);
        let ages = ages.filter(|due| *due > self.now && !self.membership.is_empty()).min();
        let absence = self
            .membership
            .absence_timeout(self.now)
            .into_iter()
            .chain(self.membership.duplicate_timeout())
            .min();
        let retry = self.status_reconciler.poll_timeout();
        let dead = self
            .election
            .died
            .values()
            .min()
            .filter(|_| self.judges_death())
            .map(|died| *died + DEAD_FOR);
        [seats, suspension, ages, absence, retry, dead].into_iter().flatten().min()
    }

    /// After [`super::Event::Drain`]: nothing is answered here any more.
    pub fn drained(&self) -> bool {
        self.announcements.values().all(|announcement| announcement.standby)
    }

    /// Node objects or our own addresses changed.
    pub(super) fn nodes_changed(&mut self, interfaces: &Interfaces) {
        let own = interfaces
            .values()
            .flat_map(|interface| &interface.addresses)
            .map(|subnet| subnet.addr())
            .collect();
        self.membership.set_nodes(self.index.nodes(), &own, self.now);
        self.election.member |= self.index.node(&self.settings.node).is_some();
        self.election.complete =
            self.membership.complete().then(|| self.election.complete.unwrap_or(self.now));
        self.mark_dead();
    }

    pub(super) fn peer(&mut self, event: PeerEvent, plan: &mut Plan) {
        match event {
            PeerEvent::Neighbour { address, mac } => {
                self.membership.neighbour(address, mac);
                self.resolve_unverified_claims(plan);
            }
            PeerEvent::Liveness { address, state } => {
                // Each session counts: while one of a peer's is told of its end, another may not
                // have read that far.
                if let (Liveness::Down(reason), Some(suspension)) =
                    (state, &mut self.election.suspended)
                {
                    suspension.lost |= reason != DownReason::AdminDown;
                    suspension
                        .confirming_sessions
                        .as_mut()
                        .map(|witnesses| witnesses.remove(&address));
                }
                let changed = self.membership.liveness(address, state, self.now);
                self.members_changed(changed, plan);
            }
            PeerEvent::DuplicateIdentity { address, ours } => {
                let changed = self.membership.on_duplicate(address, ours, self.now);
                // Of itself it is said below, with the other ways to be one of two.
                let messages =
                    changed.nodes.iter().filter_map(|node| self.membership.duplicate_message(node));
                let notice = |message| Diagnostic {
                    warning: true,
                    service: None,
                    node: None,
                    reason: "DuplicateNode",
                    message,
                };
                plan.diagnostics.extend(messages.map(notice));
                self.members_changed(changed, plan);
            }
            PeerEvent::Stalled { .. } if self.membership.is_empty() => {}
            PeerEvent::Stalled { late } => self.stalled(late, plan),
            PeerEvent::RemoteDetectionExpired { address } => {
                self.remote_detection_expired(address, plan)
            }
            PeerEvent::Resynced => self.end_suspension(plan),
        }
    }

    fn members_changed(&mut self, changed: MembershipDelta, plan: &mut Plan) {
        if changed.nodes.is_empty() {
            return;
        }
        self.election.complete =
            self.membership.complete().then(|| self.election.complete.unwrap_or(self.now));
        if changed.died {
            let now = self.now;
            match &mut self.election.suspended {
                Some(suspension) => suspension.lost = true,
                None => self.vips.values_mut().for_each(|vip| vip.election.suspect(now)),
            }
        }
        self.mark_dead();
        self.review_all(plan);
    }

    fn review_all(&mut self, plan: &mut Plan) {
        if self.started {
            let all: Vec<IpAddr> = self.vips.keys().copied().collect();
            self.review_vips(all, plan);
        }
    }

    fn stalled(&mut self, late: Duration, plan: &mut Plan) {
        let listen = if late < SHORT_STALL {
            vip_election::PROBE_INTERVAL * (u32::from(vip_election::PROBES) + 1)
        } else {
            rank::LISTEN
        };
        let message = format!(
            "this node did not run for {} ms: it answers for nothing until it has heard who took over",
            late.as_millis()
        );
        self.suspend(listen, None, ("Stalled", message), plan);
    }

    /// A clock that stands still with its machine shows no stall; peers do. Where packets are lost,
    /// one session of several may be given up at any time: that is no sign, as long as the peer
    /// has another.
    fn remote_detection_expired(&mut self, address: IpAddr, plan: &mut Plan) {
        let now = self.now;
        self.election.given_up.retain(|_, since| now < *since + CONFIRM_WITHIN);
        self.election.given_up.insert(address, now);
        let Some(peer) = self.membership.confirming_peer(address).filter(|_| !self.suspended())
        else {
            return;
        };
        let witnesses: BTreeSet<IpAddr> = self
            .membership
            .up()
            .filter(|session| !self.election.given_up.contains_key(session))
            .collect();
        if witnesses.iter().any(|session| self.membership.confirming_peer(*session) == Some(peer)) {
            return;
        }
        let message = format!(
            "node {peer} has given this node up, for it heard nothing of it, while their session was up here: this node answers for nothing until \
             it has heard from others whether it was away"
        );
        self.suspend(rank::LISTEN, Some(witnesses), ("GivenUp", message), plan);
    }

    /// We may have been declared dead, and everything that is believed here is as old as the stall
    /// is long: hold nothing, listen. To ask would be to tell the others that we gave up, and
    /// perhaps nobody has noticed.
    fn suspend(
        &mut self,
        listen: Duration,
        witnesses: Option<BTreeSet<IpAddr>>,
        (reason, message): (&'static str, String),
        plan: &mut Plan,
    ) {
        let (now, until, listen) = (self.now, self.now + rank::LISTEN, self.now + listen);
        let held = self
            .vips
            .iter()
            .filter(|(_, vip)| *vip.election.owner() == Owner::Local)
            .map(|(address, _)| *address)
            .collect();
        let before = self.election.suspended.take();
        let held: BTreeSet<IpAddr> =
            before.iter().flat_map(|s| &s.held).copied().chain::<BTreeSet<IpAddr>>(held).collect();
        let lost = before.is_some_and(|suspension| suspension.lost);
        if !held.is_empty() {
            plan.diagnostics.push(Diagnostic {
                warning: true,
                service: None,
                node: None,
                reason,
                message,
            });
        }
        self.election.suspended =
            Some(Suspension { until, held, lost, confirming_sessions: witnesses });
        self.election.listen_until = listen;
        for vip in self.vips.values_mut() {
            vip.election.suspend(now, listen);
        }
        self.review_all(plan);
    }

    /// The sessions that are still up were heard since the stall. If all that were up are, nobody
    /// has declared us dead.
    fn end_suspension(&mut self, plan: &mut Plan) {
        let Some(suspension) = self.election.suspended.take() else { return };
        let away = suspension.lost
            && suspension.confirming_sessions.is_none_or(|witnesses| witnesses.is_empty());
        if away {
            self.election.fresh_until = self.now + rank::HOLD_OFF;
        }
        for (address, vip) in &mut self.vips {
            match !away && suspension.held.contains(address) {
                true => vip.election.resume(),
                false => vip.election.probe_owner(self.now),
            }
        }
        self.review_all(plan);
    }

    /// What time asks for, and what follows from everything that happened in this event for the
    /// announcer and for BFD.
    pub(super) fn poll_election(&mut self, plan: &mut Plan) {
        if !self.started {
            return;
        }
        let now = self.now;
        if self.election.suspended.as_ref().is_some_and(|suspension| now >= suspension.until) {
            // Nobody told us that it has looked; the bound stands.
            if let Some(suspension) = &mut self.election.suspended {
                suspension.lost = true;
            }
            self.end_suspension(plan);
        }
        let mut due = BTreeSet::new();
        while let Some((at, address)) =
            self.election.deadlines.first().copied().filter(|(at, _)| *at <= now)
        {
            self.election.deadlines.remove(&(at, address));
            due.insert(address);
        }
        for address in &due {
            if let Some(vip) = self.vips.get_mut(address) {
                vip.deadline = None;
            }
        }
        self.review_vips(due, plan);
        // What it is preferred for is its own again, without waiting for another reason to look.
        let fresh = now < self.election.fresh_until;
        if std::mem::replace(&mut self.election.was_fresh, fresh) && !fresh {
            self.review_all(plan);
        }

        let single = self.membership.clear_duplicates(now);
        for node in &single.nodes {
            let message = format!("node {node} is one machine again");
            plan.diagnostics.push(Diagnostic {
                warning: false,
                service: None,
                node: None,
                reason: "SingleNode",
                message,
            });
        }
        self.members_changed(single, plan);
        let double = self.membership.own_duplicate();
        if double != self.election.double {
            self.election.double = double;
            if let Some(address) = double {
                let message = self.membership.own_duplicate_message(address);
                plan.diagnostics.push(Diagnostic {
                    warning: true,
                    service: None,
                    node: None,
                    reason: "DuplicateNode",
                    message,
                });
            }
            self.review_all(plan);
        }
        let interval = self.fast_announcements().then_some(rank::FAST_ANNOUNCE_INTERVAL);
        if interval != self.election.told_interval {
            self.election.told_interval = interval;
            plan.announce_interval = Some(interval);
        }
        let sessions = Sessions {
            peers: self.membership.sessions(),
            local_addresses: self.membership.local_addresses().clone(),
        };
        if sessions != self.election.told_sessions {
            plan.sessions = Some(sessions.clone());
            self.election.told_sessions = sessions;
        }
    }

    /// A peer that should be there is not seen, or has just appeared.
    fn fast_announcements(&self) -> bool {
        let fresh = self.membership.live().any(|(_, since)| self.now < since + rank::HOLD_OFF);
        let missing = !self.membership.complete()
            && self.index.nodes().any(|node| {
                let other = node.name != self.settings.node && node.excluded.is_none();
                other && self.membership.missing(&node.name, self.now)
            });
        fresh || missing
    }

    /// Which endpoints are taken for dead follows from who died; the Services with endpoints there
    /// are looked at again.
    fn mark_dead(&mut self) {
        let dead: BTreeSet<Box<str>> = self.membership.dead().map(Box::from).collect();
        let back: Vec<Box<str>> =
            self.election.dead.keys().filter(|node| !dead.contains(*node)).cloned().collect();
        for node in back {
            self.election.dead.remove(&node);
            self.election.died.remove(&node);
            self.dirty.extend(self.index.services_on(&node).cloned());
        }
        for node in dead {
            if self.election.dead.contains_key(&node) {
                continue;
            }
            let services: Vec<_> = self.index.services_on(&node).cloned().collect();
            let endpoints = services
                .iter()
                .flat_map(|key| self.index.slices(key))
                .flat_map(|slice| &slice.endpoints);
            let addresses = endpoints
                .filter(|e| e.node.as_deref() == Some(&*node))
                .map(|endpoint| endpoint.address)
                .collect();
            self.election.died.insert(node.clone(), self.now);
            self.election.dead.insert(node, addresses);
            self.dirty.extend(services);
        }
    }

    /// Whether there is an API server that says in its own time which endpoints of dead nodes are
    /// none. Files never do.
    fn judges_death(&self) -> bool {
        self.settings.role != Role::Alone && self.source_health.is_ok()
    }

    /// The API server is heard again: it has just as long as ever, for what it says now may be as
    /// old as its silence.
    pub(super) fn source_returned(&mut self) {
        let now = self.now;
        self.election.died.values_mut().for_each(|died| *died = now);
    }

    /// The API has had its time. What it still calls ready is used again.
    pub(super) fn expire_dead(&mut self) {
        if !self.judges_death() {
            return;
        }
        let now = self.now;
        let old: Vec<Box<str>> = self
            .election
            .died
            .iter()
            .filter(|(_, died)| now >= **died + DEAD_FOR)
            .map(|(node, _)| node.clone())
            .collect();
        for node in old {
            self.election.died.remove(&node);
            self.election.dead.insert(node.clone(), BTreeSet::new());
            self.dirty.extend(self.index.services_on(&node).cloned());
        }
    }

    /// The API's later word counts: an endpoint of a dead node that it no longer calls ready is not
    /// held to be dead when it is ready again.
    pub(super) fn forget_dead(&mut self, key: &crate::model::ObjectKey) {
        if self.election.dead.is_empty() {
            return;
        }
        for endpoint in self
            .index
            .slices(key)
            .flat_map(|slice| &slice.endpoints)
            .filter(|endpoint| !endpoint.ready)
        {
            if let Some(addresses) =
                endpoint.node.as_ref().and_then(|node| self.election.dead.get_mut(&**node))
            {
                addresses.remove(&endpoint.address);
            }
        }
    }

    pub(super) fn new_vip_election(&self) -> VipElection {
        let until = if self.membership.is_empty() {
            self.now
        } else {
            self.election.listen_until.max(self.now)
        };
        VipElection::new(self.now, until)
    }

    /// Whether this node's seat may hold an address. Being excluded or stopped is planned: it goes
    /// on until another takes over.
    pub(super) fn eligibility(candidacy: &Result<Vec<u32>, Ineligible>) -> Eligibility {
        match candidacy {
            Ok(_) => Eligibility::Eligible,
            Err(Ineligible::Draining | Ineligible::Excluded(_) | Ineligible::NoNode) => {
                Eligibility::Draining
            }
            Err(_) => Eligibility::Ineligible,
        }
    }

    pub(super) fn suspended(&self) -> bool {
        self.election.suspended.is_some()
    }

    pub(super) fn own_duplicate(&self) -> Option<IpAddr> {
        self.membership.own_duplicate()
    }

    /// Works out who holds the address. `returned`: this node could not hold it a moment ago,
    /// because it was cut off from it or from the other nodes.
    pub(super) fn run_election(
        &mut self,
        address: IpAddr,
        stance: Eligibility,
        returned: bool,
        plan: &mut Plan,
    ) {
        let Some(mut vip) = self.vips.remove(&address) else { return };
        if returned && !self.membership.is_empty() && *vip.election.owner() != Owner::Local {
            vip.election.listen(self.now, self.now + rank::LISTEN);
            self.election.fresh_until = self.now + rank::HOLD_OFF;
        }
        let standing = |node: &str| self.membership.reachability(node, self.now);
        let preferred = self.preferred(&vip);
        let ballot = self.election_input(address, &vip, stance, &preferred, &standing);
        if vip.election.decide(&ballot, self.now) {
            plan.owner_probes.push((address, vip.election.owner_lladdr()));
        }
        if vip.deadline != vip.election.poll_timeout() {
            if let Some(old) = vip.deadline {
                self.election.deadlines.remove(&(old, address));
            }
            vip.deadline = vip.election.poll_timeout();
            self.election.deadlines.extend(vip.deadline.map(|due| (due, address)));
        }
        self.vips.insert(address, vip);
    }

    pub(super) fn forget_deadline(&mut self, address: IpAddr, deadline: Option<Duration>) {
        if let Some(due) = deadline {
            self.election.deadlines.remove(&(due, address));
        }
    }

    /// The list of the oldest of its Services that has one.
    fn preferred(&self, vip: &super::vip::Vip) -> Vec<Box<str>> {
        let services = vip
            .holders
            .iter()
            .filter_map(|key| self.index.service(key))
            .filter(|s| !s.request.prefer_nodes.is_empty());
        services
            .min_by_key(|service| (service.created, &service.key))
            .map(|s| s.request.prefer_nodes.clone())
            .unwrap_or_default()
    }

    fn election_input<'a>(
        &'a self,
        address: IpAddr,
        vip: &super::vip::Vip,
        stance: Eligibility,
        preferred: &'a [Box<str>],
        standing: &'a dyn Fn(&str) -> Reachability,
    ) -> ElectionInput<'a> {
        let me = &*self.settings.node;
        let fresh = self.now < self.election.fresh_until;
        let mut candidates: Vec<Candidate<'a>> = Vec::new();
        if stance == Eligibility::Eligible {
            candidates.push(Candidate {
                node: me,
                fresh,
                rank: rank::rank(address, me, preferred),
            });
        }
        let subnets = self.subnets(address);
        let within = |internal: &[IpAddr]| {
            internal.iter().any(|a| subnets.iter().any(|subnet| subnet.contains(a)))
        };
        // Also when our own Node object does not say that we are there.
        let unsaid = self.index.node(me).is_none_or(|own| !within(&own.internal));
        for (name, since) in self.membership.live() {
            let Some(node) = self.index.node(name).filter(|node| node.excluded.is_none()) else {
                continue;
            };
            let here = Here { node: name, zone: None, dead: &self.election.dead };
            if (unsaid || within(&node.internal)) && self.has_answer(address, vip, &here) {
                let rank = rank::rank(address, name, preferred);
                candidates.push(Candidate {
                    node: name,
                    fresh: self.now < since + rank::HOLD_OFF,
                    rank,
                });
            }
        }
        candidates.sort_by(|a, b| (a.fresh, b.rank, a.node).cmp(&(b.fresh, a.rank, b.node)));
        ElectionInput {
            address,
            local_node: me,
            eligibility: stance,
            candidates,
            preferred,
            reachability: standing,
            alone: self.membership.is_empty(),
            fresh,
            complete: self.election.complete,
            step: if vip.probe && !vip.clear {
                vip_election::STEP_WITH_PROBE
            } else {
                vip_election::STEP
            },
            check: rank::check_interval(self.vips.len()),
        }
    }

    /// The subnets of our uplinks that contain the address.
    fn subnets(&self, address: IpAddr) -> Vec<ipnet::IpNet> {
        let uplink = |index: &u32| matches!(self.uplinks.get(index), Some(Ok(())));
        let all = self
            .interfaces
            .as_deref()
            .into_iter()
            .flat_map(|all| all.values())
            .filter(|i| uplink(&i.index));
        all.flat_map(|interface| &interface.addresses)
            .filter(|subnet| subnet.contains(&address))
            .copied()
            .collect()
    }

    /// Somebody was heard to have the address. True when it is a peer, so no stranger.
    pub(super) fn on_owner_claim(&mut self, address: IpAddr, mac: Mac, plan: &mut Plan) -> bool {
        let node: Option<Box<str>> = self.membership.by_lladdr(mac).map(Box::from);
        if let Some(node) = &node {
            self.peer_heard(node, plan);
        }
        let Some(mut vip) = self.vips.remove(&address) else { return node.is_some() };
        let standing = |node: &str| self.membership.reachability(node, self.now);
        let preferred = self.preferred(&vip);
        let ballot = self.election_input(
            address,
            &vip,
            Self::eligibility(&vip.candidacy),
            &preferred,
            &standing,
        );
        vip.election.on_owner_claim(node.as_deref(), mac, &ballot, self.now);
        self.vips.insert(address, vip);
        self.review_vips([address], plan);
        node.is_some()
    }

    /// A peer asks who has the address.
    pub(super) fn on_owner_probe(&mut self, address: IpAddr, mac: Mac, plan: &mut Plan) {
        let Some(node) = self.membership.by_lladdr(mac).map(Box::<str>::from) else { return };
        self.peer_heard(&node, plan);
        if let Some(vip) = self.vips.get_mut(&address) {
            vip.election.on_probe_from_owner(&node, self.now);
        }
        self.review_vips([address], plan);
    }

    /// A peer that speaks ARP or ND, but not BFD, is behind a filter.
    pub(super) fn peer_heard(&mut self, node: &str, plan: &mut Plan) {
        let blocked = self.membership.heard(node, self.now);
        self.election.complete = self.election.complete.filter(|_| self.membership.complete());
        if blocked {
            let message = self.membership.blocked_message(node);
            plan.diagnostics.push(Diagnostic {
                warning: true,
                service: None,
                node: None,
                reason: "BfdBlocked",
                message,
            });
        }
    }
}
