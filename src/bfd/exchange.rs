//! What goes into the sessions and what comes out of them.

use std::net::IpAddr;
use std::time::Duration;

use super::event::{Discard, Event};
use super::packet::{Diagnostic, MAX_LEN, SessionState};

/// Names a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerKey {
    /// Index of the interface that the session is bound to; None: whichever way the packets take.
    pub interface: Option<u32>,
    /// The peer's address.
    pub address: IpAddr,
}

/// How to reach a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Source of our packets; None: the kernel's choice.
    pub local: Option<IpAddr>,
    /// The peer is behind a router (RFC 5883): the other port, and no demand that the TTL be 255.
    pub multihop: bool,
}

/// A UDP payload and what the kernel knows of it.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// Where it came in.
    pub interface: u32,
    /// Where it came from.
    pub source: IpAddr,
    /// TTL or hop limit, when known.
    pub ttl: Option<u8>,
    /// It came to [`bfd::MULTIHOP_PORT`].
    pub multihop: bool,
    /// The packet.
    pub payload: &'a [u8],
}

/// A packet to be sent, with TTL or hop limit 255 (RFC 5881 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Whom to.
    pub peer: PeerKey,
    /// From where and to which port.
    pub settings: Peer,
    pub(super) bytes: [u8; MAX_LEN],
    pub(super) length: usize,
}

impl Outgoing {
    /// The UDP payload.
    pub fn payload(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// What is to be done, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// To be sent.
    pub packets: Vec<Outgoing>,
    /// To be told.
    pub events: Vec<Event>,
    /// Why the packet was not taken.
    pub discarded: Option<Discard>,
}

/// What a session looks like from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionStatus {
    /// Whose.
    pub peer: PeerKey,
    /// Ours.
    pub state: SessionState,
    /// Why ours last changed.
    pub diagnostic: Diagnostic,
    /// What the peer last said.
    pub remote_state: SessionState,
    /// How long silence lasts until the session fails; None before anything was heard.
    pub detection_time: Option<Duration>,
    /// How often we send; None: not at all.
    pub transmit_interval: Option<Duration>,
    /// Why a packet for it was last refused, since it was last up.
    pub refused: Option<Discard>,
}
