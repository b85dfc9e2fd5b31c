//! One peer: its liveness as derived from its sessions and announcements.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::liveness::{DownReason, Liveness, ONE_WAY_AFTER};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    pub addresses: BTreeSet<IpAddr>,
    /// When its Node was first seen, or said something that makes it worth waiting for anew.
    pub expected: Duration,
    /// Session states; no entry: never seen.
    pub sessions: BTreeMap<IpAddr, Liveness>,
    /// Since when it lives, and since when not: None before it ever did.
    pub up_since: Option<Duration>,
    pub down: Option<(DownReason, Duration)>,
    /// Whether the peer was ever up.
    pub seen: bool,
    /// It is heard, and known from then on not to hear us.
    pub one_way_since: Option<Duration>,
    /// First and last announcement heard of it while no session was up.
    pub heard: Option<(Duration, Duration)>,
    /// Two machines speak as it: from which address, and until when that counts.
    pub duplicate: Option<(IpAddr, Duration)>,
}

impl Peer {
    pub fn is_up(&self) -> bool {
        self.up_since.is_some()
    }

    /// A session is up.
    pub fn has_session(&self) -> bool {
        self.sessions.values().any(|state| *state == Liveness::Up)
    }

    /// Whether the detection time of its last session expired and no session has come up since.
    pub fn is_dead(&self) -> bool {
        !self.is_up()
            && self.one_way_since.is_none()
            && self.seen
            && matches!(self.down, Some((DownReason::DetectionTimeout, _)))
    }

    /// Whether the peer is heard and does not hear this node.
    pub fn is_one_way(&self, now: Duration) -> bool {
        !self.is_up()
            && self.duplicate.is_none()
            && self.one_way_since.is_some_and(|from| now >= from)
    }

    /// What the others go by: whether it lives, why not, and whether it is heard all the same.
    pub fn view(&self) -> (bool, Option<DownReason>, bool) {
        (self.is_up(), self.down.map(|(reason, _)| reason), self.one_way_since.is_some())
    }

    /// What follows from one of its sessions having come to this state. `moved`: this node has
    /// another address, which ends sessions as well.
    pub fn observe(&mut self, state: Liveness, moved: bool, now: Duration) {
        let was_heard = self.one_way_since.is_some();
        self.one_way_since = match state {
            Liveness::Heard => self.one_way_since.or(Some(now + ONE_WAY_AFTER)),
            Liveness::Down(DownReason::OneWay) if !moved => Some(now),
            _ => self
                .one_way_since
                .filter(|_| self.sessions.values().any(|state| state.is_one_way())),
        };
        match (self.has_session(), self.is_up(), state) {
            (true, false, _) => {
                (self.up_since, self.down, self.seen, self.heard) = (Some(now), None, true, None)
            }
            (false, true, Liveness::Heard) => {
                (self.up_since, self.down, self.expected) = (None, None, now)
            }
            (false, true, Liveness::Down(_)) if moved => {
                (self.up_since, self.down, self.expected) = (None, None, now)
            }
            (false, _, Liveness::Down(reason)) => {
                self.up_since = None;
                // A dead node that is then reported as "never seen" or "says down" by a session
                // that starts over stays dead.
                let worse = match (self.down, reason) {
                    (
                        Some((DownReason::DetectionTimeout | DownReason::AdminDown, _)),
                        DownReason::NeverSeen,
                    ) => false,
                    // The peer is not heard any more.
                    (Some(_), _) if was_heard && self.one_way_since.is_none() => true,
                    (Some((before, _)), after) => before != after,
                    (None, _) => true,
                };
                if worse {
                    self.down = Some((reason, now));
                }
            }
            _ => {}
        }
    }

    /// When the peer was last heard, while no session is up.
    pub fn last_sign(&self) -> Duration {
        let (down, heard) = (self.down.map(|(_, since)| since), self.heard.map(|(_, last)| last));
        [down, heard].into_iter().flatten().fold(self.expected, Duration::max)
    }

    /// Whether the peer announced a planned stop and was not heard since.
    pub fn is_admin_down(&self) -> bool {
        !self.is_up() && matches!(self.down, Some((DownReason::AdminDown, _)))
    }
}
