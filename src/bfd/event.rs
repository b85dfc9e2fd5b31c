//! What sessions report, as values.

use std::time::Duration;

use thiserror::Error;

use super::packet::{Diagnostic, ParseError, SessionState};
use super::peer::PeerKey;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Peer(SessionChange),
    /// Intervals or multiplier follow what was measured.
    Adapted(Adaptation),
    /// The scheduling delay was so long that peers may have declared this node down: what was
    /// believed before must be confirmed again.
    Stalled {
        late: Duration,
        at: Duration,
    },
    /// The detection time of a peer expired, in a session that is up here: it does not receive our
    /// packets, or this node was suspended for longer than its clock shows, as a virtual machine
    /// may be. What was believed before must be confirmed here, too.
    RemoteDetectionExpired {
        peer: PeerKey,
        at: Duration,
    },
    /// Two machines have one identity: one was cloned with its address. Repeated each second while
    /// it lasts.
    DuplicateIdentity {
        /// The session that shows it.
        peer: PeerKey,
        /// The clone is one of this node and speaks to the peer in its place; otherwise one of the
        /// peer.
        ours: bool,
        at: Duration,
    },
    /// After [`Event::Stalled`] or [`Event::RemoteDetectionExpired`]: a packet has arrived since in
    /// every session that is still up.
    Resynced {
        at: Duration,
    },
}

/// A session changed its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionChange {
    pub peer: PeerKey,
    /// bfd.SessionState, from now on.
    pub state: SessionState,
    /// bfd.LocalDiag (RFC 5880 §4.1).
    pub diagnostic: Diagnostic,
    /// The last diagnostic that the peer sent.
    pub remote_diagnostic: Diagnostic,
    pub cause: Cause,
    pub at: Duration,
}

/// Why a session changed its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// A step of the three-way handshake (RFC 5880 §6.2).
    Handshake,
    /// No packet arrived for the detection time (diagnostic 1). Also reported of a session that the
    /// peer had signaled down before it fell silent.
    DetectionTimeExpired,
    /// The peer signals Down: it restarted, or does not receive our packets (diagnostic 3).
    NeighborDown,
    /// The peer signals AdminDown: a planned stop, no failure (diagnostic 3). Also reported of a
    /// session that was down already.
    NeighborAdminDown,
    /// This node ends the session (diagnostic 7).
    LocalAdminDown,
    /// This node enables the session again.
    LocalAdminUp,
}

/// Intervals or multiplier follow what was measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adaptation {
    /// None: all sessions.
    pub peer: Option<PeerKey>,
    pub cause: AdaptationCause,
    /// Required Min RX Interval announced to the peer; for all sessions the base interval.
    pub interval: Duration,
    /// Detect Mult announced.
    pub multiplier: u8,
    /// Of the session, once both ends use the interval; None for all sessions.
    pub detection_time: Option<Duration>,
    pub at: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdaptationCause {
    /// The sessions share the packet rate, and their number changed.
    PacketBudget {
        sessions: usize,
        /// The interval was raised; otherwise lowered.
        raised: bool,
    },
    /// Packets arrived so late that a little more would have expired, or did expire, the detection
    /// time; after this much silence.
    LatePackets(Duration),
    /// The thread was scheduled this much too late.
    SchedulingDelay(Duration),
    /// No lateness for long: one step back.
    Stable,
}

/// Why a packet was discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Discard {
    /// RFC 5880 §6.8.6.
    #[error("malformed: {0}")]
    Malformed(ParseError),
    /// It passed a router, or the TTL is unknown (GTSM, RFC 5881 §5).
    #[error("the TTL is not 255")]
    Ttl,
    /// No session has its discriminator or its source.
    #[error("no session")]
    NoSession,
    /// A packet for a single-hop session arrived on the multihop port, or the reverse.
    #[error("the session is on another port")]
    WrongPort,
    /// The session is authenticated, the packet is not.
    #[error("not authenticated")]
    NotAuthenticated,
    /// The packet is authenticated, the session is not.
    #[error("authenticated, and no secret is configured")]
    UnexpectedAuthentication,
    #[error("another authentication type")]
    AuthenticationType,
    #[error("another key ID")]
    KeyId,
    /// Old, replayed or far ahead (§6.7.4).
    #[error("sequence number outside of the window")]
    Sequence,
    /// Signed with another secret, or altered in transit.
    #[error("wrong digest: the secrets differ")]
    Digest,
    #[error("the session is administratively down")]
    AdminDown,
}

impl Discard {
    /// Whether the two ends are configured differently.
    pub fn is_authentication_mismatch(&self) -> bool {
        use Discard::*;
        matches!(
            self,
            NotAuthenticated | UnexpectedAuthentication | AuthenticationType | KeyId | Digest
        )
    }

    /// Labels of all kinds, for tables of counters.
    pub const LABELS: [&str; 11] = [
        "malformed",
        "ttl",
        "no_session",
        "wrong_port",
        "not_authenticated",
        "unexpected_authentication",
        "authentication_type",
        "key_id",
        "sequence",
        "digest",
        "admin_down",
    ];

    /// Position in [`Discard::LABELS`].
    pub fn index(&self) -> usize {
        match self {
            Discard::Malformed(_) => 0,
            Discard::Ttl => 1,
            Discard::NoSession => 2,
            Discard::WrongPort => 3,
            Discard::NotAuthenticated => 4,
            Discard::UnexpectedAuthentication => 5,
            Discard::AuthenticationType => 6,
            Discard::KeyId => 7,
            Discard::Sequence => 8,
            Discard::Digest => 9,
            Discard::AdminDown => 10,
        }
    }
}
