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
use crate::engine::membership::Standing;
use crate::l2::ethernet::Mac;

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
pub const SILENCE_DEAF: Duration = Duration::from_secs(150);
/// Between questions, and how many.
pub const ASK: Duration = Duration::from_millis(100);
/// See [`ASK`].
pub const ASKS: u8 = 6;
/// The same for a holder whose session is up: it lives, and what is lost in all likelihood is
/// frames. Where a tenth of them is lost, six questions in a row go unanswered every day or two,
/// and an address would move for nothing; twelve do once in some decades.
pub const ASKS_ALIVE: u8 = 12;
/// For how long a node that hands over goes on answering, when nobody is heard to take over.
pub const HANDOVER: Duration = Duration::from_secs(1);
/// For how long a holder that gave up is not believed to be one: its last words may be under way.
const SHUN: Duration = Duration::from_millis(1500);
/// A holder of less than this is asked when some node dies: this one may have heard a loser last.
const YOUNG: Duration = Duration::from_secs(10);

/// Who has the address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Nobody, since then.
    Nobody {
        /// When it fell free, or began to be looked for.
        since: Duration,
    },
    /// This node.
    Me,
    /// A peer.
    Peer {
        /// Its name.
        node: Box<str>,
        /// It was heard to answer although, by what is known here, it should not: its word counts.
        insists: bool,
    },
    /// A machine that is no known peer.
    Stranger,
}

/// Whether this node may hold the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stance {
    /// It may.
    Eligible,
    /// No more, but it still can: until somebody else does.
    Leave,
    /// It cannot.
    Barred,
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
pub struct Ballot<'a> {
    /// Which.
    pub address: IpAddr,
    /// This node.
    pub me: &'a str,
    /// May it?
    pub stance: Stance,
    /// Who may, this node included: those that are not fresh first, then by rank, best first.
    pub candidates: Vec<Candidate<'a>>,
    /// Nodes that its Services prefer, best first.
    pub preferred: &'a [Box<str>],
    /// How a peer stands.
    pub standing: &'a dyn Fn(&str) -> Standing,
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

impl Ballot<'_> {
    fn presumed(&self, node: &str) -> bool {
        self.candidates.iter().any(|candidate| candidate.node == node)
    }

    fn outranks(&self, node: &str) -> bool {
        rank(self.address, node, self.preferred) > rank(self.address, self.me, self.preferred)
    }

    /// How many candidates, other than the holder, come before this node.
    fn before_me(&self, holder: Option<&str>) -> u32 {
        let others = self.candidates.iter().filter(|candidate| Some(candidate.node) != holder);
        others.take_while(|candidate| candidate.node != self.me).count() as u32
    }

    fn others(&self) -> bool {
        self.candidates.iter().any(|candidate| candidate.node != self.me)
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
pub struct Seat {
    holder: Holder,
    /// The holder's station and when it was last heard.
    station: Option<Mac>,
    heard: Duration,
    /// When the holder changed.
    moved: Duration,
    /// Listening began, and ends at the latest: nothing is claimed before.
    listen: (Duration, Duration),
    check: Option<Check>,
    /// Answering on until then.
    leaving: Option<Duration>,
    shunned: Option<(Box<str>, Duration)>,
    deadline: Option<Duration>,
}

impl Seat {
    /// Nobody is known to hold the address. Who does is listened for from `now` to `until`.
    pub fn new(now: Duration, until: Duration) -> Seat {
        let check = (until > now).then_some(Check::new(ASKS, now));
        Seat {
            holder: Holder::Nobody { since: now },
            station: None,
            heard: now,
            moved: now,
            listen: (now, until),
            check,
            leaving: None,
            shunned: None,
            deadline: None,
        }
    }

    /// Who has the address.
    pub fn holder(&self) -> &Holder {
        &self.holder
    }

    /// This node answers, but only until somebody else does.
    pub fn leaving(&self) -> bool {
        self.leaving.is_some()
    }

    /// Where the holder is to be asked; None: everywhere.
    pub fn station(&self) -> Option<Mac> {
        self.station
    }

    /// When [`Seat::decide`] has something to do even if nothing happens.
    pub fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    /// This node cannot know what happened meanwhile: it holds nothing, and listens.
    pub fn listen(&mut self, now: Duration, until: Duration) {
        let shunned = self.shunned.take();
        *self = Seat { shunned, ..Seat::new(now, until) };
    }

    /// The same without a question, for a holder that asks gives up: so nobody else takes over on
    /// that account.
    pub fn suspend(&mut self, now: Duration, until: Duration) {
        self.listen(now, until);
        self.check = None;
    }

    /// After [`Seat::suspend`], when what was believed before is void: asks, and claims nothing
    /// before there was time to answer.
    pub fn inquire(&mut self, now: Duration) {
        self.listen = (now, self.listen.1.max(now + ASK * 4));
        self.check = Some(Check::new(ASKS, now));
    }

    /// Nothing happened meanwhile: what was held is held on, unless somebody was heard.
    pub fn resume(&mut self) {
        if matches!(self.holder, Holder::Nobody { .. }) {
            self.holder = Holder::Me;
            self.check = None;
        }
    }

    /// Some node died: it may have been the holder although another was heard last.
    pub fn doubt(&mut self, now: Duration) {
        if matches!(self.holder, Holder::Peer { .. })
            && now < self.moved + YOUNG
            && self.check.is_none()
        {
            self.check = Some(Check::new(ASKS, now));
        }
    }

    /// Works out who holds the address from now on. True: the holder is to be asked.
    pub fn decide(&mut self, ballot: &Ballot<'_>, now: Duration) -> bool {
        self.step_down(ballot, now);
        if let Holder::Peer { node, insists } = &self.holder {
            let free = match (ballot.standing)(node) {
                Standing::Gone => true,
                Standing::Unseen => now >= self.heard + SILENCE,
                Standing::Deaf => now >= self.heard + SILENCE_DEAF,
                Standing::Alive => !insists && !ballot.presumed(node),
            };
            if free {
                self.vacate(now);
            }
        }
        let ask = self.question(ballot, now);
        self.claim(ballot, now);
        self.deadline = self.next(ballot, now);
        ask && !ballot.alone
    }

    fn step_down(&mut self, ballot: &Ballot<'_>, now: Duration) {
        if self.holder != Holder::Me {
            self.leaving = None;
            return;
        }
        match (ballot.stance, self.leaving) {
            (Stance::Eligible, _) => self.leaving = None,
            (Stance::Leave, None) if ballot.others() => {
                self.leaving = Some(now + HANDOVER);
                self.check = Some(Check::new(ASKS, now));
            }
            (Stance::Leave, Some(until)) if now < until => {}
            (Stance::Leave | Stance::Barred, _) => {
                self.vacate(now);
                self.check = Some(Check::new(ASKS, now));
            }
        }
    }

    fn question(&mut self, ballot: &Ballot<'_>, now: Duration) -> bool {
        if let Some(due) = self.next_check(ballot)
            && now >= due
        {
            let alive = matches!(&self.holder, Holder::Peer { node, .. } if (ballot.standing)(node) == Standing::Alive);
            self.check = Some(Check::new(if alive { ASKS_ALIVE } else { ASKS }, now));
        }
        match &mut self.check {
            Some(check) if now >= check.due && check.left > 0 => {
                check.left -= 1;
                check.due = now + ASK;
                true
            }
            Some(check) if now >= check.due => {
                (self.check, self.heard) = (None, now);
                if matches!(self.holder, Holder::Peer { .. } | Holder::Stranger) {
                    self.vacate(now);
                }
                false
            }
            _ => false,
        }
    }

    fn next_check(&self, ballot: &Ballot<'_>) -> Option<Duration> {
        let holder = match &self.holder {
            // Its announcements may have been lost: it is asked before it is given up.
            Holder::Peer { node, .. } if (ballot.standing)(node) == Standing::Unseen => {
                return self
                    .check
                    .is_none()
                    .then_some(self.heard + SILENCE - ASK * (u32::from(ASKS) + 1));
            }
            Holder::Peer { node, .. } if (ballot.standing)(node) == Standing::Deaf => return None,
            Holder::Peer { node, .. } => Some(&**node),
            Holder::Stranger => return self.check.is_none().then_some(self.heard + SILENCE),
            // One that cannot hold it wants to know, too: people ask it.
            Holder::Nobody { .. } if ballot.stance != Stance::Eligible && !ballot.alone => None,
            _ => return None,
        };
        let turn = 1 + ballot.before_me(holder);
        self.check.is_none().then_some(self.heard.max(self.moved) + ballot.check * turn)
    }

    fn claim(&mut self, ballot: &Ballot<'_>, now: Duration) {
        if ballot.stance != Stance::Eligible {
            return;
        }
        let due = match &self.holder {
            Holder::Nobody { .. } => self.claim_due(ballot),
            // Who does not hear of it would go on.
            Holder::Peer { node, .. } if (ballot.standing)(node) == Standing::Deaf => None,
            // Preference is stronger than possession; rank alone is not.
            Holder::Peer { node, .. }
                if !ballot.fresh
                    && ballot.candidates.first().is_some_and(|first| first.node == ballot.me) =>
            {
                let class = |node: &str| rank(ballot.address, node, ballot.preferred).class();
                if class(ballot.me) < class(node) { Some(now) } else { None }
            }
            _ => None,
        };
        if due.is_some_and(|due| now >= due) {
            self.holder = Holder::Me;
            (self.check, self.station, self.moved) = (None, None, now);
        }
    }

    fn claim_due(&self, ballot: &Ballot<'_>) -> Option<Duration> {
        let Holder::Nobody { since } = self.holder else { return None };
        if ballot.alone {
            return Some(since);
        }
        // When everybody can be seen, who has it has been heard after the questions.
        let early = ballot.complete.map(|complete| complete.max(self.listen.0) + ASK * 4);
        let listened = early.map_or(self.listen.1, |early| early.min(self.listen.1));
        let turn = ballot.before_me(None) + u32::from(ballot.fresh && ballot.others());
        Some(since.max(listened) + ballot.step * turn)
    }

    fn next(&self, ballot: &Ballot<'_>, now: Duration) -> Option<Duration> {
        let silence = match &self.holder {
            Holder::Peer { node, .. } => match (ballot.standing)(node) {
                Standing::Unseen => Some(self.heard + SILENCE),
                Standing::Deaf => Some(self.heard + SILENCE_DEAF),
                Standing::Alive | Standing::Gone => None,
            },
            _ => None,
        };
        let claim = if ballot.stance == Stance::Eligible { self.claim_due(ballot) } else { None };
        let check = self.check.map(|check| check.due).or_else(|| self.next_check(ballot));
        let due = [silence, claim, check, self.leaving].into_iter().flatten().min();
        due.map(|due| due.max(now + Duration::from_millis(1)))
    }

    fn vacate(&mut self, now: Duration) {
        self.holder = Holder::Nobody { since: now };
        (self.station, self.check, self.leaving, self.moved) = (None, None, None, now);
    }

    /// Somebody says that it has the address: a peer by name, or a stranger. To be followed by
    /// [`Seat::decide`].
    pub fn heard(&mut self, node: Option<&str>, mac: Mac, ballot: &Ballot<'_>, now: Duration) {
        let Some(node) = node else {
            if matches!(self.holder, Holder::Nobody { .. } | Holder::Stranger) {
                (self.holder, self.station, self.heard, self.check) =
                    (Holder::Stranger, Some(mac), now, None);
            }
            return;
        };
        let shunned = self
            .shunned
            .as_ref()
            .is_some_and(|(shunned, until)| **shunned == *node && now < *until);
        let yields = match self.holder {
            Holder::Me => {
                self.leaving.is_some()
                    || ballot.outranks(node)
                    || (ballot.standing)(node) == Standing::Deaf
            }
            _ => true,
        };
        if shunned || !yields || (ballot.standing)(node) == Standing::Gone {
            return;
        }
        let insists = !ballot.presumed(node);
        if !matches!(&self.holder, Holder::Peer { node: before, .. } if **before == *node) {
            self.moved = now;
        }
        self.holder = Holder::Peer { node: node.into(), insists };
        (self.station, self.heard, self.check, self.leaving) = (Some(mac), now, None, None);
    }

    /// A peer asks whether anybody has the address: it has not. To be followed by [`Seat::decide`].
    /// One that was not believed to have it has said nothing that could still be under way:
    /// when it claims, it is believed.
    pub fn asked(&mut self, node: &str, now: Duration) {
        if matches!(&self.holder, Holder::Peer { node: holder, .. } if **holder == *node) {
            self.vacate(now);
            self.shunned = Some((node.into(), now + SHUN));
        }
    }
}

#[cfg(test)]
#[path = "vip_election_tests.rs"]
mod tests;
