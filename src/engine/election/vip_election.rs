//! The election of one virtual address, as one node computes it: which machine owns the address, and
//! whether this node should claim it.
//!
//! Nodes do not exchange votes. The owner announces the address. A node that believes the address
//! free and itself the best candidate claims it. When two owners hear each other, the lower-ranked
//! one yields. Ranks are the same on every node, so views may differ for a moment, but they
//! converge. A condition that only a peer knows (link down, objects not read yet) needs no message:
//! the peer does not claim within its step, and the next candidate does. Where frames are lost in
//! one direction, only the node that hears the other can yield.
//!
//! An owner keeps the address while it is up, whatever its rank. An owner that has been silent for
//! long is probed (ARP or ND). When several probes in a row go unanswered, the address is free. An
//! owner that gives up the address probes for it: its own probe shows that it no longer owns it.

use std::net::IpAddr;
use std::time::Duration;

use super::rank::{Rank, rank};
use crate::engine::membership::Reachability;
use crate::model::mac::Mac;

/// Delay between the claims of consecutive candidates. The first four announcements of a burst go
/// out within 200 ms.
pub const STEP: Duration = Duration::from_millis(300);
/// Like [`STEP`], where a claim begins with probing (RFC 5227), which takes one second.
pub const STEP_WITH_PROBE: Duration = Duration::from_secs(2);
/// How long after its last announcement an owner without a session keeps the address: four
/// fast announcement intervals and a margin.
pub const SILENCE: Duration = Duration::from_millis(3500);
/// Like [`SILENCE`], for an owner that does not hear this node: it cannot be probed, and announces
/// at the configured interval (one minute by default).
pub const SILENCE_ONE_WAY: Duration = Duration::from_secs(150);
/// Interval between probes.
pub const PROBE_INTERVAL: Duration = Duration::from_millis(100);
/// Number of unanswered probes after which the address is free.
pub const PROBES: u8 = 6;
/// Like [`PROBES`], for an owner whose session is up: the probes were most likely lost. At 10 %
/// frame loss, six probes in a row go unanswered every day or two, and the address would move
/// needlessly; twelve do once in several decades.
pub const PROBES_LIVE_OWNER: u8 = 12;
/// How long a draining node keeps answering while no other node is heard to take over.
pub const HANDOVER: Duration = Duration::from_secs(1);
/// How long claims of an owner that gave up are ignored: its last frames may still be in flight.
const OWNER_COOLDOWN: Duration = Duration::from_millis(1500);
/// An owner younger than this is probed when any node goes down: this node may have heard the loser
/// of a conflict last.
const YOUNG: Duration = Duration::from_secs(10);

/// The owner of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// No machine owns the address.
    None {
        /// When the address became free, or listening for its owner began.
        since: Duration,
    },
    /// This node.
    Local,
    /// A peer.
    Peer {
        /// Its name.
        node: Box<str>,
        /// The peer claims the address although it is no candidate in this node's view. Its claim
        /// counts.
        insists: bool,
    },
    /// A foreign machine: no known peer.
    Foreign,
}

/// Whether this node may own the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eligibility {
    /// The node may own the address.
    Eligible,
    /// The node should not own the address any more, but can until another node takes over.
    Draining,
    /// The node cannot own the address.
    Ineligible,
}

/// A node that is presumed able to own the address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Its name.
    pub node: &'a str,
    /// The node returned a moment ago and may be flapping.
    pub fresh: bool,
    /// Its rank.
    pub rank: Rank,
}

/// The input of one election.
pub struct ElectionInput<'a> {
    pub address: IpAddr,
    /// This node.
    pub local_node: &'a str,
    /// Whether this node may own the address.
    pub eligibility: Eligibility,
    /// Candidates, including this node: fresh ones last, then by rank, best first.
    pub candidates: Vec<Candidate<'a>>,
    /// Nodes that the Services of the address prefer, best first.
    pub preferred: &'a [Box<str>],
    /// Reachability of a peer.
    pub reachability: &'a dyn Fn(&str) -> Reachability,
    /// This node has no peers, so there is nothing to wait for.
    pub alone: bool,
    /// This node started or returned a moment ago.
    pub fresh: bool,
    /// Since when every peer has been seen.
    pub complete: Option<Duration>,
    /// Delay between the claims of consecutive candidates.
    pub step: Duration,
    /// How long an owner may be silent before the first candidate after it probes; later
    /// candidates wait a multiple of it.
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

    /// Number of candidates, other than the owner, that rank before this node.
    fn candidates_ahead(&self, owner: Option<&str>) -> u32 {
        let others = self.candidates.iter().filter(|candidate| Some(candidate.node) != owner);
        others.take_while(|candidate| candidate.node != self.local_node).count() as u32
    }

    fn others(&self) -> bool {
        self.candidates.iter().any(|candidate| candidate.node != self.local_node)
    }
}

/// A series of probes in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Check {
    /// Number of probes left to send.
    left: u8,
    due: Duration,
}

impl Check {
    fn new(times: u8, now: Duration) -> Check {
        Check { left: times, due: now }
    }
}

#[derive(Clone, Debug)]
pub struct VipElection {
    owner: Owner,
    /// Link-layer address of the owner; `heard`: when its last announcement was received.
    owner_lladdr: Option<Mac>,
    heard: Duration,
    /// When the owner changed.
    moved: Duration,
    /// Start and latest end of listening. The address is not claimed before the end.
    listen: (Duration, Duration),
    check: Option<Check>,
    /// Deadline of a handover: this node answers until then.
    leaving: Option<Duration>,
    cooldown: Option<(Box<str>, Duration)>,
    timeout: Option<Duration>,
}

impl VipElection {
    /// Starts without a known owner, and listens for one from `now` to `until`.
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

    /// Current owner of the address.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Whether this node answers only until another node takes over.
    pub fn leaving(&self) -> bool {
        self.leaving.is_some()
    }

    /// Link-layer address to which probes are sent; None: broadcast or multicast.
    pub fn owner_lladdr(&self) -> Option<Mac> {
        self.owner_lladdr
    }

    /// When [`VipElection::decide`] must be called next if no event occurs.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// Gives up ownership and listens, because this node cannot know what it missed.
    pub fn listen(&mut self, now: Duration, until: Duration) {
        *self = VipElection {
            cooldown: self.cooldown.take(),
            timeout: self.timeout,
            ..VipElection::new(now, until)
        };
    }

    /// Like [`VipElection::listen`], without probes: a probe from the owner means that it gives up,
    /// and another node would take over because of it.
    pub fn suspend(&mut self, now: Duration, until: Duration) {
        self.listen(now, until);
        self.check = None;
    }

    /// Discards what was known before [`VipElection::suspend`]: probes for the owner, and claims
    /// nothing until it had time to answer.
    pub fn probe_owner(&mut self, now: Duration) {
        self.listen = (now, self.listen.1.max(now + PROBE_INTERVAL * 4));
        self.check = Some(Check::new(PROBES, now));
    }

    /// Ends [`VipElection::suspend`] after nothing was missed: this node owns the address again,
    /// unless another owner was heard.
    pub fn resume(&mut self) {
        if matches!(self.owner, Owner::None { .. }) {
            self.owner = Owner::Local;
            self.check = None;
        }
    }

    /// Probes a recent owner after a node went down: that node may have been the owner although
    /// another one was heard last.
    pub fn suspect(&mut self, now: Duration) {
        if matches!(self.owner, Owner::Peer { .. })
            && now < self.moved + YOUNG
            && self.check.is_none()
        {
            self.check = Some(Check::new(PROBES, now));
        }
    }

    /// Computes the owner of the address. Returns true when a probe must be sent.
    pub fn decide(&mut self, input: &ElectionInput<'_>, now: Duration) -> bool {
        self.step_down(input, now);
        if let Owner::Peer { node, insists } = &self.owner {
            let free = match (input.reachability)(node) {
                Reachability::Down => true,
                Reachability::Unknown => now >= self.heard + SILENCE,
                Reachability::Unidirectional => now >= self.heard + SILENCE_ONE_WAY,
                Reachability::Up => !insists && !input.presumed(node),
            };
            if free {
                self.vacate(now);
            }
        }
        let probe = self.probe_due(input, now);
        self.claim(input, now);
        self.timeout = self.next_timeout(input, now);
        probe && !input.alone
    }

    fn step_down(&mut self, input: &ElectionInput<'_>, now: Duration) {
        if self.owner != Owner::Local {
            self.leaving = None;
            return;
        }
        match (input.eligibility, self.leaving) {
            (Eligibility::Eligible, _) => self.leaving = None,
            (Eligibility::Draining, None) if input.others() => {
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

    fn probe_due(&mut self, input: &ElectionInput<'_>, now: Duration) -> bool {
        if let Some(due) = self.next_check(input)
            && now >= due
        {
            let alive = matches!(&self.owner, Owner::Peer { node, .. } if (input.reachability)(node) == Reachability::Up);
            self.check = Some(Check::new(if alive { PROBES_LIVE_OWNER } else { PROBES }, now));
        }
        match &mut self.check {
            Some(check) if now >= check.due && check.left > 0 => {
                check.left -= 1;
                check.due = now + PROBE_INTERVAL;
                true
            }
            Some(check) if now >= check.due => {
                self.check = None;
                self.heard = now;
                if matches!(self.owner, Owner::Peer { .. } | Owner::Foreign) {
                    self.vacate(now);
                }
                false
            }
            _ => false,
        }
    }

    fn next_check(&self, input: &ElectionInput<'_>) -> Option<Duration> {
        let owner = match &self.owner {
            // Announcements may have been lost: the owner is probed before the address is free.
            Owner::Peer { node, .. } if (input.reachability)(node) == Reachability::Unknown => {
                return self
                    .check
                    .is_none()
                    .then_some(self.heard + SILENCE - PROBE_INTERVAL * (u32::from(PROBES) + 1));
            }
            Owner::Peer { node, .. }
                if (input.reachability)(node) == Reachability::Unidirectional =>
            {
                return None;
            }
            Owner::Peer { node, .. } => Some(&**node),
            Owner::Foreign => return self.check.is_none().then_some(self.heard + SILENCE),
            // An ineligible node probes as well, because `status` reports the owner.
            Owner::None { .. } if input.eligibility != Eligibility::Eligible && !input.alone => {
                None
            }
            _ => return None,
        };
        let turn = 1 + input.candidates_ahead(owner);
        self.check.is_none().then_some(self.heard.max(self.moved) + input.check * turn)
    }

    fn claim(&mut self, input: &ElectionInput<'_>, now: Duration) {
        if input.eligibility != Eligibility::Eligible {
            return;
        }
        let due = match &self.owner {
            Owner::None { .. } => self.claim_due(input),
            // An owner that does not hear this node would not yield.
            Owner::Peer { node, .. }
                if (input.reachability)(node) == Reachability::Unidirectional =>
            {
                None
            }
            // A preferred node preempts the owner; a higher rank alone does not.
            Owner::Peer { node, .. }
                if !input.fresh
                    && input
                        .candidates
                        .first()
                        .is_some_and(|first| first.node == input.local_node) =>
            {
                let class = |node: &str| rank(input.address, node, input.preferred).class();
                if class(input.local_node) < class(node) { Some(now) } else { None }
            }
            _ => None,
        };
        if due.is_some_and(|due| now >= due) {
            self.owner = Owner::Local;
            self.check = None;
            self.owner_lladdr = None;
            self.moved = now;
        }
    }

    fn claim_due(&self, input: &ElectionInput<'_>) -> Option<Duration> {
        let Owner::None { since } = self.owner else { return None };
        if input.alone {
            return Some(since);
        }
        // When every peer is seen, the owner has answered the probes by then.
        let early = input.complete.map(|complete| complete.max(self.listen.0) + PROBE_INTERVAL * 4);
        let listened = early.map_or(self.listen.1, |early| early.min(self.listen.1));
        let turn = input.candidates_ahead(None) + u32::from(input.fresh && input.others());
        Some(since.max(listened) + input.step * turn)
    }

    fn next_timeout(&self, input: &ElectionInput<'_>, now: Duration) -> Option<Duration> {
        let silence = match &self.owner {
            Owner::Peer { node, .. } => match (input.reachability)(node) {
                Reachability::Unknown => Some(self.heard + SILENCE),
                Reachability::Unidirectional => Some(self.heard + SILENCE_ONE_WAY),
                Reachability::Up | Reachability::Down => None,
            },
            _ => None,
        };
        let claim =
            if input.eligibility == Eligibility::Eligible { self.claim_due(input) } else { None };
        let check = self.check.map(|check| check.due).or_else(|| self.next_check(input));
        let due = [silence, claim, check, self.leaving].into_iter().flatten().min();
        due.map(|due| due.max(now + Duration::from_millis(1)))
    }

    fn vacate(&mut self, now: Duration) {
        self.owner = Owner::None { since: now };
        self.owner_lladdr = None;
        self.check = None;
        self.leaving = None;
        self.moved = now;
    }

    /// Handles a claim of the address by a peer (`node`) or a foreign machine (None). The caller
    /// runs [`VipElection::decide`] afterwards.
    pub fn on_owner_claim(
        &mut self,
        node: Option<&str>,
        mac: Mac,
        input: &ElectionInput<'_>,
        now: Duration,
    ) {
        let Some(node) = node else {
            if matches!(self.owner, Owner::None { .. } | Owner::Foreign) {
                self.owner = Owner::Foreign;
                self.owner_lladdr = Some(mac);
                self.heard = now;
                self.check = None;
            }
            return;
        };
        let cooling_down = self
            .cooldown
            .as_ref()
            .is_some_and(|(cooling, until)| **cooling == *node && now < *until);
        let yields = match self.owner {
            Owner::Local => {
                self.leaving.is_some()
                    || input.outranks(node)
                    || (input.reachability)(node) == Reachability::Unidirectional
            }
            _ => true,
        };
        if cooling_down || !yields || (input.reachability)(node) == Reachability::Down {
            return;
        }
        let insists = !input.presumed(node);
        if !matches!(&self.owner, Owner::Peer { node: before, .. } if **before == *node) {
            self.moved = now;
        }
        self.owner = Owner::Peer { node: node.into(), insists };
        self.owner_lladdr = Some(mac);
        self.heard = now;
        self.check = None;
        self.leaving = None;
    }

    /// Handles a peer's probe for the address, which shows that the peer does not own it. The
    /// caller runs [`VipElection::decide`] afterwards. Later claims are ignored for
    /// [`OWNER_COOLDOWN`] only if the peer was the owner: no other peer has claims in flight.
    pub fn on_probe_from_owner(&mut self, node: &str, now: Duration) {
        if matches!(&self.owner, Owner::Peer { node: owner, .. } if **owner == *node) {
            self.vacate(now);
            self.cooldown = Some((node.into(), now + OWNER_COOLDOWN));
        }
    }
}

#[cfg(test)]
#[path = "vip_election_tests.rs"]
mod tests;
