//! One peer in the collection of sessions.

use std::time::Duration;

use super::authentication::Authentication;
use super::duplicate::DuplicateDetector;
use super::event::{Adaptation, AdaptationCause, Cause, Discard, Event, SessionChange};
use super::exchange::{Effects, Outgoing, SessionStatus};
use super::packet::{self, Repr, SessionState};
use super::peer::{Peer, PeerKey};
use super::session::Session;
use crate::common::random::Random;

#[derive(Debug)]
pub(super) struct Entry {
    pub peer: PeerKey,
    pub settings: Peer,
    pub session: Session,
    pub duplicate: DuplicateDetector,
    /// Why a packet was last discarded since the session was last up.
    pub rejected: Option<Discard>,
    /// No longer wanted: AdminDown is sent until then.
    pub leaving_until: Option<Duration>,
    /// Up, but no packet has arrived since the peer may have declared this node down.
    pub unconfirmed: bool,
}

impl Entry {
    pub fn new(peer: PeerKey, settings: Peer, session: Session, now: Duration) -> Entry {
        Entry {
            peer,
            settings,
            session,
            duplicate: DuplicateDetector::new(now),
            rejected: None,
            leaving_until: None,
            unconfirmed: false,
        }
    }

    pub fn is_up(&self) -> bool {
        self.session.state == SessionState::Up
    }

    pub fn status(&self) -> SessionStatus {
        SessionStatus {
            peer: self.peer,
            state: self.session.state,
            diagnostic: self.session.diagnostic,
            remote_state: self.session.remote.state,
            detection_time: self.session.detection_time(),
            transmit_interval: self.session.transmit_interval(),
            rejected: self.rejected,
        }
    }

    pub fn emit_change(&self, cause: Option<Cause>, now: Duration, effects: &mut Effects) {
        if let Some(cause) = cause {
            effects.events.push(Event::Peer(SessionChange {
                peer: self.peer,
                state: self.session.state,
                diagnostic: self.session.diagnostic,
                remote_diagnostic: self.session.remote.diagnostic,
                cause,
                at: now,
            }));
        }
    }

    pub fn emit_adaptation(
        &self,
        cause: AdaptationCause,
        multiplier: u8,
        now: Duration,
        effects: &mut Effects,
    ) {
        effects.events.push(Event::Adapted(Adaptation {
            peer: Some(self.peer),
            cause,
            interval: self.session.required_min_rx(),
            multiplier,
            detection_time: Some(self.session.announced_detection_time()),
            at: now,
        }));
    }

    /// Sends the next periodic packet if it is due.
    pub fn transmit(
        &mut self,
        authentication: Option<&Authentication>,
        now: Duration,
        random: &mut Random,
        effects: &mut Effects,
    ) {
        if self.session.is_due(now) {
            let packet = self.session.transmit(now, random);
            self.send(packet, authentication, effects);
        }
    }

    /// Signs and sends a packet.
    pub fn send(
        &mut self,
        packet: Repr,
        authentication: Option<&Authentication>,
        effects: &mut Effects,
    ) {
        let section =
            authentication.map(|authentication| self.session.sequence.section(authentication));
        let (mut bytes, length) = Repr { authentication: section, ..packet }.to_bytes();
        if let (Some(authentication), Some(packet)) = (authentication, bytes.get_mut(..length)) {
            packet::sign(packet, &authentication.key);
        }
        effects.packets.push(Outgoing { peer: self.peer, settings: self.settings, bytes, length });
    }
}
