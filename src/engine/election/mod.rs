//! Which node answers for each address: what the engine makes of the other nodes' liveness, of what
//! is heard on the wire, and of time.
//!
//! Candidates are the nodes with a live session that are not excluded, have an internal address in
//! the address's subnet and, for policy Local, a ready endpoint; while there is none anywhere, every
//! node is one, to refuse clients. For an address that several Services share it is enough that one
//! of them can be served: the address has one owner for all of them. Where the Node objects say
//! nothing about a subnet (a second network, on which not even our own internal address is), every
//! live node is presumed to be on it: one that is not does not claim, and the next one does.

mod local;
pub mod rank;
pub mod vip_election;
mod vips;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use local::{LocalState, Suspension};
use vip_election::Owner;
use vips::Electorate;
#[cfg(test)]
pub(super) use vips::{FOREIGN_FOR, UNVERIFIED_HOLD};
pub(super) use vips::{Vip, Vips};

use super::endpoints::Dead;
use super::membership::MembershipDelta;
use super::world::{Round, Work, World};
use crate::model::ObjectKey;
use crate::model::diagnostic::Diagnostic;

/// How long endpoints of a node that was found dead are left out at most. By then the API server
/// has noticed, too (node-monitor-grace-period, 40 or 50 s), and an endpoint that it still calls
/// ready is on a node where Pinnace alone ended, or BFD alone is blocked.
pub(super) const DEAD_FOR: Duration = Duration::from_secs(60);

/// After a stall of less than this the network is what it was, and sessions need not find each other
/// again: once all probes have gone unanswered, nobody has the address. The host of a virtual
/// machine stalls all of its nodes at once, and where one of them died at that moment each of the
/// others would otherwise listen for seconds.
const SHORT_STALL: Duration = Duration::from_secs(1);

/// In each of its sessions a peer says within an interval that its detection time expired; the first
/// may be up again before the last has said so. Intervals are longer than this only where a node has
/// more than 130 sessions, or late packets have made them so.
const CONFIRM_WITHIN: Duration = Duration::from_millis(300);

/// The elections of this node and what they rest on.
#[derive(Debug, Default)]
pub(super) struct Election {
    pub vips: Vips,
    pub local: LocalState,
    /// Endpoints of dead nodes.
    pub dead: Dead,
    /// Since when these nodes are dead. No entry: the API had the time to take their endpoints away,
    /// and has not.
    dead_since: BTreeMap<Box<str>, Duration>,
    /// Sessions in which the peer's detection time expired, and when it said so.
    expired_remotely: BTreeMap<IpAddr, Duration>,
    /// What elections were last reviewed for.
    was_fresh: bool,
    reviewed_duplicate: Option<IpAddr>,
}

impl Election {
    /// The source has been read and the interfaces are known.
    pub fn start(&mut self, now: Duration) {
        self.local.fresh_until = now + rank::HOLD_OFF;
        self.local.listen_until = now + rank::LISTEN;
    }

    /// When [`Election::handle_timeout`] has something to do; None: not at a certain time.
    pub fn poll_timeout(&self, world: &World) -> Option<Duration> {
        let suspension = self.local.suspension.as_ref().map(|suspension| suspension.until);
        let ages = world
            .membership
            .live()
            .map(|(_, since)| since + rank::HOLD_OFF)
            .chain([self.local.fresh_until])
            .filter(|due| *due > world.now && !world.membership.is_empty())
            .min();
        let membership = world.membership.poll_timeout(world.now);
        let dead = self.dead_since.values().min().filter(|_| world.judges_death());
        let dead = dead.map(|since| *since + DEAD_FOR);
        [self.vips.poll_timeout(), suspension, ages, membership, dead].into_iter().flatten().min()
    }

    /// Handles expired timeouts.
    pub fn handle_timeout(&mut self, round: &mut Round<'_>) {
        let now = round.world.now;
        if let Some(suspension) = &mut self.local.suspension
            && now >= suspension.until
        {
            // No peer has confirmed; the upper bound applies.
            suspension.lost = true;
            self.end_suspension(round);
        }

        let due = self.vips.take_due(now);
        self.review(due, round);

        // An address that prefers this node is its own again, without another reason to look.
        let fresh = now < self.local.fresh_until;
        if std::mem::replace(&mut self.was_fresh, fresh) && !fresh {
            self.review_all(round);
        }
    }

    /// Reviews all elections when this node became, or ceased to be, one of two with one identity.
    pub fn review_duplicate(&mut self, round: &mut Round<'_>) {
        let duplicate = round.world.membership.own_duplicate();
        if duplicate == self.reviewed_duplicate {
            return;
        }
        self.reviewed_duplicate = duplicate;
        if let Some(address) = duplicate {
            let message = round.world.membership.own_duplicate_message(address);
            warn(round, "DuplicateNode", message);
        }
        self.review_all(round);
    }

    /// How often to announce while a peer that should be there is not seen, or has just appeared;
    /// None: as configured.
    pub fn announce_interval(world: &World) -> Option<Duration> {
        let fresh = world.membership.live().any(|(_, since)| world.now < since + rank::HOLD_OFF);
        let missing = !world.membership.complete()
            && world.index.nodes().any(|node| {
                let other = node.name != world.settings.node && node.excluded.is_none();
                other && world.membership.missing(&node.name, world.now)
            });
        (fresh || missing).then_some(rank::FAST_ANNOUNCE_INTERVAL)
    }

    /// Runs the elections of these addresses again.
    pub fn review(&mut self, addresses: impl IntoIterator<Item = IpAddr>, round: &mut Round<'_>) {
        let mut electorate = Electorate { local: &mut self.local, dead: &self.dead };
        self.vips.review(addresses, &mut electorate, round);
    }

    /// Runs all elections again, once the engine has started.
    pub fn review_all(&mut self, round: &mut Round<'_>) {
        if round.world.started {
            self.review(self.vips.addresses(), round);
        }
    }

    /// Node objects or our own addresses changed.
    pub fn nodes_changed(&mut self, world: &World, work: &mut Work) {
        self.local.member |= world.own_node().is_some();
        self.mark_dead(world, work);
    }

    /// Peers came up or went down.
    pub fn members_changed(&mut self, delta: &MembershipDelta, round: &mut Round<'_>) {
        if delta.nodes.is_empty() {
            return;
        }
        if delta.died {
            match &mut self.local.suspension {
                Some(suspension) => suspension.lost = true,
                None => {
                    for (_, vip) in self.vips.iter_mut() {
                        vip.election.suspect(round.world.now);
                    }
                }
            }
        }
        self.mark_dead(round.world, round.work);
        self.review_all(round);
    }

    /// A machine was heard to claim the address. True when it is a peer, so no foreign machine.
    pub fn on_owner_claim(
        &mut self,
        address: IpAddr,
        mac: crate::model::mac::Mac,
        round: &mut Round<'_>,
    ) -> bool {
        let peer = round.world.membership.by_lladdr(mac);
        let mut electorate = Electorate { local: &mut self.local, dead: &self.dead };
        self.vips.on_owner_claim(address, peer, mac, &mut electorate, round);
        peer.is_some()
    }

    /// A peer probes for an address that it may own.
    pub fn on_owner_probe(&mut self, address: IpAddr, node: &str, round: &mut Round<'_>) {
        if let Some(vip) = self.vips.get_mut(address) {
            vip.election.on_probe_from_owner(node, round.world.now);
        }
        self.review([address], round);
    }

    /// A session went down. Each counts: while one of a peer's sessions has been reported, the peer
    /// may not have reported another yet.
    pub fn session_down(&mut self, address: IpAddr, admin_down: bool) {
        let Some(suspension) = &mut self.local.suspension else { return };
        suspension.lost |= !admin_down;
        if let Some(sessions) = &mut suspension.confirming_sessions {
            sessions.remove(&address);
        }
    }

    /// This process was stalled long enough for peers to have declared it down.
    pub fn stalled(&mut self, late: Duration, round: &mut Round<'_>) {
        let listen = if late < SHORT_STALL {
            vip_election::PROBE_INTERVAL * (u32::from(vip_election::PROBES) + 1)
        } else {
            rank::LISTEN
        };
        let message = format!(
            "this node did not run for {} ms: it answers for nothing until it has heard who took over",
            late.as_millis()
        );
        self.suspend(listen, None, ("Stalled", message), round);
    }

    /// The peer at this address says that its detection time expired, while the session was up here.
    /// A clock that stands still with its machine shows no stall; peers do. Where packets are lost,
    /// that may happen in one session of several at any time: it is no sign, as long as the peer has
    /// another.
    pub fn remote_detection_expired(&mut self, address: IpAddr, round: &mut Round<'_>) {
        let now = round.world.now;
        self.expired_remotely.retain(|_, since| now < *since + CONFIRM_WITHIN);
        self.expired_remotely.insert(address, now);
        if self.local.is_suspended() {
            return;
        }
        let membership = &round.world.membership;
        let Some(peer) = membership.confirming_peer(address) else { return };
        let sessions: BTreeSet<IpAddr> = membership
            .up()
            .filter(|session| !self.expired_remotely.contains_key(session))
            .collect();
        if sessions.iter().any(|session| membership.confirming_peer(*session) == Some(peer)) {
            return;
        }
        let message = format!(
            "the detection time of node {peer} expired for this node, while their session was up here: this node answers for nothing until it has heard from others whether it was away"
        );
        self.suspend(rank::LISTEN, Some(sessions), ("GivenUp", message), round);
    }

    /// Peers may have declared this node dead, and what is believed here is as old as the stall is
    /// long: own nothing, listen. Probing would tell the others that this node gave up, and perhaps
    /// none has noticed.
    fn suspend(
        &mut self,
        listen: Duration,
        confirming_sessions: Option<BTreeSet<IpAddr>>,
        (reason, message): (&'static str, String),
        round: &mut Round<'_>,
    ) {
        let now = round.world.now;
        let before = self.local.suspension.take();
        let lost = before.as_ref().is_some_and(|suspension| suspension.lost);
        let mut owned = before.map(|suspension| suspension.owned).unwrap_or_default();
        let owns = self.vips.iter().filter(|(_, vip)| *vip.election.owner() == Owner::Local);
        owned.extend(owns.map(|(address, _)| address));
        if !owned.is_empty() {
            warn(round, reason, message);
        }

        let until = now + rank::LISTEN;
        self.local.suspension = Some(Suspension { until, owned, lost, confirming_sessions });
        self.local.listen_until = now + listen;
        for (_, vip) in self.vips.iter_mut() {
            vip.election.suspend(now, now + listen);
        }
        self.review_all(round);
    }

    /// The sessions that are still up were heard since the stall. If all that were up are, no peer
    /// has declared this node dead.
    pub fn end_suspension(&mut self, round: &mut Round<'_>) {
        let Some(suspension) = self.local.suspension.take() else { return };
        let now = round.world.now;
        let away = suspension.lost
            && suspension.confirming_sessions.is_none_or(|sessions| sessions.is_empty());
        if away {
            self.local.fresh_until = now + rank::HOLD_OFF;
        }
        for (address, vip) in self.vips.iter_mut() {
            if !away && suspension.owned.contains(&address) {
                vip.election.resume();
            } else {
                vip.election.probe_owner(now);
            }
        }
        self.review_all(round);
    }

    /// Which endpoints count as dead follows from which nodes died; the Services with endpoints
    /// there are looked at again.
    fn mark_dead(&mut self, world: &World, work: &mut Work) {
        let dead: BTreeSet<Box<str>> = world.membership.dead().map(Box::from).collect();
        let back: Vec<Box<str>> =
            self.dead.keys().filter(|node| !dead.contains(*node)).cloned().collect();
        for node in back {
            self.dead.remove(&node);
            self.dead_since.remove(&node);
            work.dirty.extend(world.index.services_on(&node).cloned());
        }
        for node in dead {
            if self.dead.contains_key(&node) {
                continue;
            }
            let services: Vec<&ObjectKey> = world.index.services_on(&node).collect();
            let addresses = services
                .iter()
                .flat_map(|key| world.index.slices(key))
                .flat_map(|slice| &slice.endpoints)
                .filter(|endpoint| endpoint.node.as_deref() == Some(&*node))
                .map(|endpoint| endpoint.address)
                .collect();
            work.dirty.extend(services.into_iter().cloned());
            self.dead_since.insert(node.clone(), world.now);
            self.dead.insert(node, addresses);
        }
    }

    /// The API server is reachable again: its full grace period starts anew, as its objects may be
    /// as old as the outage.
    pub fn source_returned(&mut self, now: Duration) {
        self.dead_since.values_mut().for_each(|since| *since = now);
    }

    /// The API had its time. What it still calls ready is used again.
    pub fn expire_dead(&mut self, world: &World, work: &mut Work) {
        if !world.judges_death() {
            return;
        }
        let dead = &mut self.dead;
        self.dead_since.retain(|node, since| {
            let lasts = world.now < *since + DEAD_FOR;
            if !lasts {
                dead.insert(node.clone(), BTreeSet::new());
                work.dirty.extend(world.index.services_on(node).cloned());
            }
            lasts
        });
    }

    /// What the API says later counts: an endpoint of a dead node that the API no longer calls ready
    /// is not held to be dead when it is ready again.
    pub fn forget_dead(&mut self, key: &ObjectKey, world: &World) {
        if self.dead.is_empty() {
            return;
        }
        let slices = world.index.slices(key);
        for endpoint in slices.flat_map(|slice| &slice.endpoints).filter(|e| !e.ready) {
            if let Some(node) = &endpoint.node
                && let Some(addresses) = self.dead.get_mut(&**node)
            {
                addresses.remove(&endpoint.address);
            }
        }
    }
}

fn warn(round: &mut Round<'_>, reason: &'static str, message: String) {
    round.plan.diagnostics.push(Diagnostic {
        warning: true,
        service: None,
        node: None,
        reason,
        message,
    });
}
