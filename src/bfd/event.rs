//! What the sessions tell, as values.

use std::time::Duration;

use thiserror::Error;

use super::PeerKey;
use super::packet::{Diagnostic, ParseError, SessionState};

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A session changed its state.
    Peer(PeerEvent),
    /// Intervals or multiplier follow what was measured.
    Adapted(Adaptation),
    /// We slept for so long that peers may have declared us dead: whatever was believed before is
    /// to be looked at again.
    Stalled {
        /// How much later than planned we woke up.
        late: Duration,
        /// When.
        at: Duration,
    },
    /// A peer has waited for us in vain, in a session that is up here. Either it does not hear us,
    /// or we were away for longer than our own clock shows, as a virtual machine is that was
    /// suspended together with its clock; so this, too, is a reason to look at everything again.
    RemoteDetectionExpired {
        /// Whose session.
        peer: PeerKey,
        /// When.
        at: Duration,
    },
    /// Two machines speak as one, which was copied with its address. Told again each second while
    /// it goes on.
    DuplicateIdentity {
        /// The session that shows it.
        peer: PeerKey,
        /// Who was copied: this machine, and another speaks to the peer in its place; or else the
        /// peer.
        ours: bool,
        /// When.
        at: Duration,
    },
    /// After [`Event::Stalled`] or [`Event::GivenUp`]: every session that is still up has been
    /// heard since.
    Resynced {
        /// When.
        at: Duration,
    },
}

/// A session changed its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerEvent {
    /// Whose session.
    pub peer: PeerKey,
    /// Ours, from now on.
    pub state: SessionState,
    /// Ours: why (RFC 5880 §4.1).
    pub diagnostic: Diagnostic,
    /// What the peer has last said about its own state.
    pub remote_diagnostic: Diagnostic,
    /// What made it change.
    pub cause: Cause,
    /// When.
    pub at: Duration,
}

/// What made a session change its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The peer was heard, or hears us.
    Heard,
    /// Nothing was heard for the detection time: the peer, or the way to it, is dead (diagnostic
    /// 1). Also told of a session that the peer had declared down before it fell silent.
    DetectionTimeExpired,
    /// The peer says Down: it restarted, or does not hear us (diagnostic 3).
    NeighborDown,
    /// The peer says AdminDown: a planned stop, no failure (diagnostic 3). Also told of a session
    /// that was down already.
    NeighborAdminDown,
    /// We left (diagnostic 7).
    LocalAdminDown,
    /// We returned after leaving.
    LocalReturn,
}

/// Intervals or multiplier follow what was measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adaptation {
    /// The peer concerned; None: all of them.
    pub peer: Option<PeerKey>,
    /// Why.
    pub reason: AdaptationCause,
    /// The interval that is now asked of the peer, or (for all of them) the base of all intervals.
    pub interval: Duration,
    /// The multiplier that we announce.
    pub multiplier: u8,
    /// When.
    pub at: Duration,
}

/// Why intervals or multiplier changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdaptationCause {
    /// This many sessions share the packet rate.
    Sessions(usize),
    /// Packets of the peer came so late that a little more would have ended the session, or did;
    /// after this much silence.
    LateArrivals(Duration),
    /// We woke up this much too late.
    LateWakes(Duration),
    /// It has been quiet for long: one step back.
    Calm,
}

/// Why a packet was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Discard {
    /// Its form is wrong (RFC 5880 §6.8.6).
    #[error("malformed: {0}")]
    Malformed(ParseError),
    /// It passed a router (RFC 5881 §5), or it is not known whether it did.
    #[error("the TTL is not 255")]
    Ttl,
    /// No session has its discriminator, or its source.
    #[error("no session")]
    NoSession,
    /// A packet for a session over one hop came to the port for several hops, or the other way
    /// round.
    #[error("the session is on another port")]
    WrongPort,
    /// The session is authenticated, the packet is not.
    #[error("not authenticated")]
    NotAuthenticated,
    /// The packet is authenticated, the session is not.
    #[error("authenticated, and no secret is configured")]
    UnexpectedAuthentication,
    /// Another authentication type.
    #[error("another authentication type")]
    AuthenticationType,
    /// Another key.
    #[error("another key ID")]
    KeyId,
    /// Old, repeated or far ahead (§6.7.4).
    #[error("sequence number outside of the window")]
    Sequence,
    /// Made with another secret, or changed on the way.
    #[error("wrong digest: the secrets differ")]
    Digest,
    /// The session is held down here.
    #[error("the session is administratively down")]
    AdminDown,
}

impl Discard {
    /// The two ends are not configured alike.
    pub fn is_about_secrets(&self) -> bool {
        use Discard::*;
        matches!(
            self,
            NotAuthenticated | UnexpectedAuthentication | AuthenticationType | KeyId | Digest
        )
    }

    /// All kinds, for tables of counters: label and position.
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
