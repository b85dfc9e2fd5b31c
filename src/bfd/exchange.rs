//! Input and output of the sessions.

use std::net::IpAddr;
use std::time::Duration;

use super::event::{Discard, Event};
use super::packet::{Diagnostic, MAX_LEN, SessionState};
use super::peer::{Peer, PeerKey};

/// A UDP payload with its ancillary data.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// Index of the interface that received it.
    pub interface: u32,
    pub source: IpAddr,
    /// TTL or hop limit, when known.
    pub ttl: Option<u8>,
    /// It arrived on [`MULTIHOP_PORT`](super::packet::MULTIHOP_PORT).
    pub multihop: bool,
    pub payload: &'a [u8],
}

/// A packet to be sent, with TTL or hop limit 255 (RFC 5881 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outgoing {
    pub peer: PeerKey,
    /// Source address and destination port.
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

/// What the caller has to do, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    pub packets: Vec<Outgoing>,
    pub events: Vec<Event>,
    /// Why the packet was discarded.
    pub discarded: Option<Discard>,
}

/// A session as seen from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionStatus {
    pub peer: PeerKey,
    /// bfd.SessionState
    pub state: SessionState,
    /// bfd.LocalDiag
    pub diagnostic: Diagnostic,
    /// bfd.RemoteSessionState
    pub remote_state: SessionState,
    /// None before the first packet arrived.
    pub detection_time: Option<Duration>,
    /// None: no periodic packets are sent.
    pub transmit_interval: Option<Duration>,
    /// Why a packet for the session was last discarded since it was last up.
    pub rejected: Option<Discard>,
}
