//! What the wire says about one session, and how long that counts.

use std::time::Duration;

/// A session on its way up is there within this time; a peer that is heard for longer does not hear
/// us.
pub const ONE_WAY_AFTER: Duration = Duration::from_secs(3);
/// How long two machines count as one after the last sign of it.
pub const DUPLICATE_HOLD: Duration = Duration::from_secs(30);

/// Why a session is not up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DownReason {
    /// Nothing was heard for the detection time (RFC 5880 §6.8.4): the node, or the way to it, is
    /// dead.
    DetectionTimeout,
    /// The peer announced a planned stop (RFC 5880 §6.8.16).
    AdminDown,
    /// The peer says that the session is down, as it does when it has just started.
    NeighbourDown,
    /// The peer says that its detection time ran out: it lives, and does not hear us.
    OneWay,
    /// Nothing was ever heard.
    NeverSeen,
}

/// What the wire says about one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// Both ends hear each other.
    Up,
    /// The peer is heard (RFC 5880 §6.2, Init); whether it hears us is not known yet.
    Heard,
    /// They do not.
    Down(DownReason),
}

impl Liveness {
    /// The peer is heard, and we are not, as far as we know.
    pub(super) fn is_one_way(self) -> bool {
        matches!(self, Liveness::Heard | Liveness::Down(DownReason::OneWay))
    }
}
