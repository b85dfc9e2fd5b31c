//! The state of one BFD session, and how long it counts.

use std::time::Duration;

/// A session on its way up is there within this time; a peer that is heard for longer does not hear
/// us.
pub const ONE_WAY_AFTER: Duration = Duration::from_secs(3);
/// How long a duplicate identity counts after it was last detected.
pub const DUPLICATE_HOLD: Duration = Duration::from_secs(30);

/// Why a session is not up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DownReason {
    /// The control detection time expired (RFC 5880 §6.8.4): the node or the path to it is down.
    DetectionTimeout,
    /// The peer announced a planned stop (RFC 5880 §6.8.16).
    AdminDown,
    /// The peer signals Down, as it does when it has just started.
    NeighbourDown,
    /// The peer signals that its detection time expired: it is up and does not hear this node.
    OneWay,
    /// No packet was ever received.
    NeverSeen,
}

/// The state of one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// Both ends hear each other.
    Up,
    /// The peer is heard (RFC 5880 §6.2, Init); whether it hears us is not known yet.
    Heard,
    /// The session is down.
    Down(DownReason),
}

impl Liveness {
    /// Whether the peer is heard and, as far as is known, does not hear this node.
    pub(super) fn is_one_way(self) -> bool {
        matches!(self, Liveness::Heard | Liveness::Down(DownReason::OneWay))
    }
}
