//! One address as one node sees it: who holds it, and whether this node should.
//!
//! There are no votes. Who holds an address announces it; whoever believes it free and itself the
//! best candidate takes it; of two who hear each other the one ranked lower yields. Ranks are the
//! same on every node, so beliefs may differ for a moment and the outcome may not. What a peer
//! alone can know (a link that is down, objects not read yet) needs no message: it does not claim
//! within a step, and the next one does. Where frames between two are lost in one direction, only
//! one of them can yield: the one that hears.
//!
//! A holder keeps the address while it lives, whatever its rank. It is doubted, and asked (an ARP
//! or ND probe), when it has not been heard for long; several questions without an answer, for some
//! may be lost, and the address is free. A holder that gives up asks for itself: a probe out of its
//! mouth says that it no longer has the address.

use std::net::IpAddr;
use std::time::Duration;

use super::rank::{Rank, rank};
use crate::engine::membership::Reachability;
use crate::model::mac::Mac;

/// Between the claims of one candidate and the next: the first four announcements of a burst go out
/// within 200 ms.
pub const STEP: Duration = Duration::from_millis(300);
/// The same where a claim begins with probing (RFC 5227), which lasts a second.
pub const STEP_WITH_PROBE: Duration = Duration::from_secs(2);
/// A holder without a session is believed for so long after it was last heard: four announcements
/// of one per [`super::rank::WATCHFUL`] and a reserve.
pub const SILENCE: Duration = Duration::from_millis(3500);
/// The same for one that does not hear us: it cannot be asked, and announces as seldom as ever
/// (once a minute, by default).
pub const SILENCE_ONE_WAY: Duration = Duration::from_secs(150);
/// Between questions, and how many.
pub const PROBE_INTERVAL: Duration = Duration::from_millis(100);
/// See [`ASK`].
pub const PROBES: u8 = 6;
/// The same for a holder whose session is up: it lives, and what is lost in all likelihood is
/// frames. Where a tenth of them is lost, six questions in a row go unanswered every day or two,
/// and an address would move for nothing; twelve do once in some decades.
pub const PROBES_LIVE_OWNER: u8 = 12;
/// For how long a node that hands over goes on answering, when nobody is heard to take over.
pub const HANDOVER: Duration = Duration::from_secs(1);
/// For how long a holder that gave up is not believed to be one: its last words may be under way.
const OWNER_COOLDOWN: Duration = Duration::from_millis(1500);
/// A holder of less than this is asked when some node dies: this one may have heard a loser last.
const YOUNG: Duration = Duration::from_secs(10);

/// Who has the address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Nobody, since then.
    None {
        /// When it fell free, or began to be looked for.
        since: Duration,
    },
    /// This node.
    Local,
    /// A peer.
    Peer {
        /// Its name.
        node: Box<str>,
        /// It was heard to answer although, by what is known here, it should not: its word counts.
        insists: bool,
    },
    /// A machine that is no known peer.
    Foreign,
}

/// Whether this node may hold the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eligibility {
    /// It may.
    Eligible,
    /// No more, but it still can: until somebody else does.
    Draining,
    /// It cannot.
    Ineligible,
}

/// A node that is presumed able to hold the address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Its name.
    pub node: &'a str,
    /// It returned a moment ago, and may go again.
    pub fresh: bool,
    /// Its rank.
    pub rank: Rank,
}

/// What is to be known to decide about an address.
pub struct ElectionInput<'a> {
    /// Which.
    pub address: IpAddr,
    /// This node.
    pub local_node: &'a str,
    /// May it?
    pub eligibility: Eligibility,
    /// Who may, this node included: those that are not fresh first, then by rank, best first.
    pub candidates: Vec<Candidate<'a>>,
    /// Nodes that its Services prefer, best first.
    pub preferred: &'a [Box<str>],
    /// How a peer stands.
    pub reachability: &'a dyn Fn(&str) -> Reachability,
    /// There are no other nodes, and nothing to wait for.
    pub alone: bool,
    /// This node began or returned a moment ago.
    pub fresh: bool,
    /// Since when every peer was seen.
    pub complete: Option<Duration>,
    /// Between the claims of one candidate and the next.
    pub step: Duration,
    /// How long a holder may be silent until the first candidate after it asks; the next wait a
    /// multiple.
    pub check: Duration,
}

impl ElectionInput<'_> {
    fn presumed(&self, node: &str) -> bool {
        self.candidates.iter().any(|candidate| candidate.node == node)
    }

    fn outranks(&self, node: &str) -> bool {
        rank(self.address, node, self.preferred)
            > rank(self.address, self.local_node, self.preferred)
    }

    /// How many candidates, other than the holder, come before this node.
    fn candidates_ahead(&self, holder: Option<&str>) -> u32 {
        let others = self.candidates.iter().filter(|candidate| Some(candidate.node) != holder);
        others.take_while(|candidate| candidate.node != self.local_node).count() as u32
    }

    fn others(&self) -> bool {
        self.candidates.iter().any(|candidate| candidate.node != self.local_node)
    }
}

/// A question that is being put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Check {
    /// How many times more.
    left: u8,
    due: Duration,
}

impl Check {
    fn new(times: u8, now: Duration) -> Check {
        Check { left: times, due: now }
    }
}

/// See the head of this file.
#[derive(Clone, Debug)]
pub struct VipElection {
    owner: Owner,
    /// The holder's station and when it was last heard.
    owner_lladdr: Option<Mac>,
    heard: Duration,
    /// When the holder changed.
    moved: Duration,
    /// Listening began, and ends at the latest: nothing is claimed before.
    listen: (Duration, Duration),
    check: Option<Check>,
    /// Answering on until then.
    leaving: Option<Duration>,
    cooldown: Option<(Box<str>, Duration)>,
    timeout: Option<Duration>,
}

impl VipElection {
    /// Nobody is known to hold the address. Who does is listened for from `now` to `until`.
    pub fn new(now: Duration, until: Duration) -> VipElection {
        let check = (until > now).then_some(Check::new(PROBES, now));
        VipElection {
            owner: Owner::None { since: now },
            owner_lladdr: None,
            heard: now,
            moved: now,
            listen: (now, until),
            check,
            leaving: None,
            cooldown: None,
            timeout: None,
        }
    }

    /// Who has the address.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// This node answers, but only until somebody else does.
    pub fn leaving(&self) -> bool {
        self.leaving.is_some()
    }

    /// Where the holder is to be asked; None: everywhere.
    pub fn owner_lladdr(&self) -> Option<Mac> {
        self.owner_lladdr
    }

    /// When [`Seat::decide`] has something to do even if nothing happens.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// This node cannot know what happened meanwhile: it holds nothing, and listens.
    pub fn listen(&mut self, now: Duration, until: Duration) {
        *self = VipElection {
            cooldown: self.cooldown.take(),
            timeout: self.timeout,
            ..VipElection::new(now, until)
        };
    }

    /// The same without a question, for a holder that asks gives up: so nobody else takes over on
    /// that account.
    pub fn suspend(&mut self, now: Duration, until: Duration) {
        self.listen(now, until);
        self.check = None;
    }

    /// After [`Seat::suspend`], when what was believed before is void: asks, and claims nothing
    /// before there was time to answer.
    pub fn probe_owner(&mut self, now: Duration) {
        self.listen = (now, self.listen.1.max(now + PROBE_INTERVAL * 4));
        self.check = Some(Check::new(PROBES, now));
    }

    /// Nothing happened meanwhile: what was held is held on, unless somebody was heard.
    pub fn resume(&mut self) {
        if matches!(self.owner, Owner::None { .. }) {
            self.owner = Owner::Local;
            self.check = None;
        }
    }

    /// Some node died: it may have been the holder although another was heard last.
    pub fn suspect(&mut self, now: Duration) {
        if matches!(self.owner, Owner::Peer { .. })
            && now < self.moved + YOUNG
            && self.check.is_none()
        {
            self.check = Some(Check::new(PROBES, now));
        }
    }

    /// Works out who holds the address from now on. True: the holder is to be asked.
    pub fn decide(&mut self, ballot: &ElectionInput<'_>, now: Duration) -> bool {
        self.step_down(ballot, now);
        if let Owner::Peer { node, insists } = &self.owner {
            let free = match (ballot.reachability)(node) {
                Reachability::Down => true,
                Reachability::Unknown => now >= self.heard + SILENCE,
                Reachability::Unidirectional => now >= self.heard + SILENCE_ONE_WAY,
                Reachability::Up => !insists && !ballot.presumed(node),
            };
            if free {
                self.vacate(now);
            }
        }
        let ask = self.probe_due(ballot, now);
        self.claim(ballot, now);
        self.timeout = self.next_timeout(ballot, now);
        ask && !ballot.alone
    }

    fn step_down(&mut self, ballot: &ElectionInput<'_>, now: Duration) {
        if self.owner != Owner::Local {
            self.leaving = None;
            return;
        }
        match (ballot.eligibility, self.leaving) {
            (Eligibility::Eligible, _) => self.leaving = None,
            (Eligibility::Draining, None) if ballot.others() => {
                self.leaving = Some(now + HANDOVER);
                self.check = Some(Check::new(PROBES, now));
            }
            (Eligibility::Draining, Some(until)) if now < until => {}
            (Eligibility::Draining | Eligibility::Ineligible, _) => {
                self.vacate(now);
                self.check = Some(Check::new(PROBES, now));
            }
        }
    }

    fn probe_due(&mut self, ballot: &ElectionInput<'_>, now: Duration) -> bool {
        if let Some(due) = self.next_check(ballot)
            && now >= due
        {
            let alive = matches!(&self.owner, Owner::Peer { node, .. } if (ballot.reachability)(node) == Reachability::Up);
            self.check = Some(Check::new(if alive { PROBES_LIVE_OWNER } else { PROBES }, now));
        }
        match &mut self.check {
            Some(check) if now >= check.due && check.left > 0 => {
                check.left -= 1;
                check.due = now + PROBE_INTERVAL;
                true
            }
            Some(check) if now >= check.due => {
                (self.check, self.heard) = (None, now);
                if matches!(self.owner, Owner::Peer { .. } | Owner::Foreign) {
                    self.vacate(now);
                }
                false
            }
            _ => false,
        }
    }

    fn next_check(&self, ballot: &ElectionInput<'_>) -> Option<Duration> {
        let holder = match &self.owner {
            // Its announcements may have been lost: it is asked before it is given up.
            Owner::Peer { node, .. } if (ballot.reachability)(node) == Reachability::Unknown => {
                return self
                    .check
                    .is_none()
                    .then_some(self.heard + SILENCE - PROBE_INTERVAL * (u32::from(PROBES) + 1));
            }
            Owner::Peer { node, .. }
                if (ballot.reachability)(node) == Reachability::Unidirectional =>
            {
                return None;
            }
            Owner::Peer { node, .. } => Some(&**node),
            Owner::Foreign => return self.check.is_none().then_some(self.heard + SILENCE),
            // One that cannot hold it wants to know, too: people ask it.
            Owner::None { .. } if ballot.eligibility != Eligibility::Eligible && !ballot.alone => {
                None
            }
            _ => return None,
        };
        let turn = 1 + ballot.candidates_ahead(holder);
        self.check.is_none().then_some(self.heard.max(self.moved) + ballot.check * turn)
    }

    fn claim(&mut self, ballot: &ElectionInput<'_>, now: Duration) {
        if ballot.eligibility != Eligibility::Eligible {
            return;
        }
        let due = match &self.owner {
            Owner::None { .. } => self.claim_due(ballot),
            // Who does not hear of it would go on.
            Owner::Peer { node, .. }
                if (ballot.reachability)(node) == Reachability::Unidirectional =>
            {
                None
            }
            // Preference is stronger than possession; rank alone is not.
            Owner::Peer { node, .. }
                if !ballot.fresh
                    && ballot
                        .candidates
                        .first()
                        .is_some_and(|first| first.node == ballot.local_node) =>
            {
                let class = |node: &str| rank(ballot.address, node, ballot.preferred).class();
                if class(ballot.local_node) < class(node) { Some(now) } else { None }
            }
            _ => None,
        };
        if due.is_some_and(|due| now >= due) {
            self.owner = Owner::Local;
            (self.check, self.owner_lladdr, self.moved) = (None, None, now);
        }
    }

    fn claim_due(&self, ballot: &ElectionInput<'_>) -> Option<Duration> {
        let Owner::None { since } = self.owner else { return None };
        if ballot.alone {
            return Some(since);
        }
        // When everybody can be seen, who has it has been heard after the questions.
        let early =
            ballot.complete.map(|complete| complete.max(self.listen.0) + PROBE_INTERVAL * 4);
        let listened = early.map_or(self.listen.1, |early| early.min(self.listen.1));
        let turn = ballot.candidates_ahead(None) + u32::from(ballot.fresh && ballot.others());
        Some(since.max(listened) + ballot.step * turn)
    }

    fn next_timeout(&self, ballot: &ElectionInput<'_>, now: Duration) -> Option<Duration> {
        let silence = match &self.owner {
            Owner::Peer { node, .. } => match (ballot.reachability)(node) {
                Reachability::Unknown => Some(self.heard + SILENCE),
                Reachability::Unidirectional => Some(self.heard + SILENCE_ONE_WAY),
                Reachability::Up | Reachability::Down => None,
            },
            _ => None,
        };
        let claim =
            if ballot.eligibility == Eligibility::Eligible { self.claim_due(ballot) } else { None };
        let check = self.check.map(|check| check.due).or_else(|| self.next_check(ballot));
        let due = [silence, claim, check, self.leaving].into_iter().flatten().min();
        due.map(|due| due.max(now + Duration::from_millis(1)))
    }

    fn vacate(&mut self, now: Duration) {
        self.owner = Owner::None { since: now };
        (self.owner_lladdr, self.check, self.leaving, self.moved) = (None, None, None, now);
    }

    /// Somebody says that it has the address: a peer by name, or a stranger. To be followed by
    /// [`Seat::decide`].
    pub fn on_owner_claim(
        &mut self,
        node: Option<&str>,
        mac: Mac,
        ballot: &ElectionInput<'_>,
        now: Duration,
    ) {
        let Some(node) = node else {
            if matches!(self.owner, Owner::None { .. } | Owner::Foreign) {
                (self.owner, self.owner_lladdr, self.heard, self.check) =
                    (Owner::Foreign, Some(mac), now, None);
            }
            return;
        };
        let shunned = self
            .cooldown
            .as_ref()
            .is_some_and(|(shunned, until)| **shunned == *node && now < *until);
        let yields = match self.owner {
            Owner::Local => {
                self.leaving.is_some()
                    || ballot.outranks(node)
                    || (ballot.reachability)(node) == Reachability::Unidirectional
            }
            _ => true,
        };
        if shunned || !yields || (ballot.reachability)(node) == Reachability::Down {
            return;
        }
        let insists = !ballot.presumed(node);
        if !matches!(&self.owner, Owner::Peer { node: before, .. } if **before == *node) {
            self.moved = now;
        }
        self.owner = Owner::Peer { node: node.into(), insists };
        (self.owner_lladdr, self.heard, self.check, self.leaving) = (Some(mac), now, None, None);
    }

    /// A peer asks whether anybody has the address: it has not. To be followed by [`Seat::decide`].
    /// One that was not believed to have it has said nothing that could still be under way:
    /// when it claims, it is believed.
    pub fn on_probe_from_owner(&mut self, node: &str, now: Duration) {
        if matches!(&self.owner, Owner::Peer { node: holder, .. } if **holder == *node) {
            self.vacate(now);
            self.cooldown = Some((node.into(), now + OWNER_COOLDOWN));
        }
    }
}

#[cfg(test)]
#[path = "vip_election_tests.rs"]
mod tests;
