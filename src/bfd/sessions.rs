//! All sessions of a node: peers that are added and removed, demultiplexing (RFC 5880 §6.3,
//! §6.8.6), authentication and the packet budget of the node.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::adaptive::AdaptiveDetection;
use super::authentication;
use super::config::BfdConfig;
use super::entry::Entry;
use super::event::{Adaptation, AdaptationCause, Discard, Event};
use super::exchange::{Effects, Received, SessionStatus};
use super::packet::{Repr, SessionState};
use super::peer::{Peer, PeerKey};
use super::session::{SLOW_INTERVAL, Session, Target};
use crate::common::random::Random;

/// The sessions of one node.
#[derive(Debug)]
pub struct Sessions {
    config: BfdConfig,
    random: Random,
    /// By local discriminator.
    entries: BTreeMap<u32, Entry>,
    discriminators: BTreeMap<PeerKey, u32>,
    /// Follows the scheduling delays of the thread.
    scheduling: AdaptiveDetection,
    /// Base of all intervals: the configured one, or what the packet budget allows.
    interval: Duration,
    /// Since a stall, or since a peer's detection time expired.
    resync: Option<Resync>,
}

/// How new packets must be to confirm the sessions that are up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resync {
    /// Packets that are read now may be old.
    Draining,
    /// Packets that are read now arrived afterwards.
    AwaitingPackets,
}

impl Sessions {
    /// No sessions. The seed must differ from start to start.
    pub fn new(config: BfdConfig, seed: u64) -> Sessions {
        let interval = config.interval;
        Sessions {
            config,
            random: Random::new(seed),
            entries: BTreeMap::new(),
            discriminators: BTreeMap::new(),
            scheduling: AdaptiveDetection::new(),
            interval,
            resync: None,
        }
    }

    /// Replaces the set of peers. Sessions of both sets are not disturbed; removed ones send
    /// AdminDown first.
    pub fn set(&mut self, peers: &BTreeMap<PeerKey, Peer>, now: Duration) -> Effects {
        let mut effects = Effects::default();
        let gone: Vec<PeerKey> =
            self.discriminators.keys().filter(|key| !peers.contains_key(key)).copied().collect();
        for key in gone {
            self.remove_session(key, now, &mut effects);
        }
        for (key, settings) in peers {
            self.add_session(*key, *settings, now, &mut effects);
        }
        self.share_packet_budget(now, &mut effects);
        self.run_due(now, &mut effects);
        effects
    }

    /// Adds a peer, or changes how to reach it.
    pub fn add(&mut self, key: PeerKey, settings: Peer, now: Duration) -> Effects {
        let mut effects = Effects::default();
        self.add_session(key, settings, now, &mut effects);
        self.share_packet_budget(now, &mut effects);
        self.run_due(now, &mut effects);
        effects
    }

    /// Removes a peer. AdminDown is sent for a while, or until the peer has reacted; see
    /// [`Sessions::is_empty`].
    pub fn remove(&mut self, key: PeerKey, now: Duration) -> Effects {
        let mut effects = Effects::default();
        self.remove_session(key, now, &mut effects);
        self.share_packet_budget(now, &mut effects);
        self.run_due(now, &mut effects);
        effects
    }

    /// Whether no session is left, not even one that sends AdminDown.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn add_session(&mut self, key: PeerKey, settings: Peer, now: Duration, effects: &mut Effects) {
        if let Some(discriminator) = self.discriminators.get(&key).copied() {
            if let Some(entry) = self.entries.get_mut(&discriminator)
                && entry.settings.multihop == settings.multihop
            {
                entry.settings = settings;
                if entry.leaving_until.take().is_some() {
                    let cause = entry.session.admin_up();
                    entry.emit_change(cause, now, effects);
                }
                return;
            }
            self.entries.remove(&discriminator);
        }
        let discriminator = self.free_discriminator();
        let session = Session::new(discriminator, self.target(), &mut self.random);
        self.discriminators.insert(key, discriminator);
        self.entries.insert(discriminator, Entry::new(key, settings, session, now));
    }

    /// Random, so that a packet for a session of a previous run finds none.
    fn free_discriminator(&mut self) -> u32 {
        loop {
            let discriminator = self.random.next();
            if discriminator != 0 && !self.entries.contains_key(&discriminator) {
                return discriminator;
            }
        }
    }

    fn remove_session(&mut self, key: PeerKey, now: Duration, effects: &mut Effects) {
        let Some(discriminator) = self.discriminators.get(&key) else { return };
        let Some(entry) = self.entries.get_mut(discriminator) else { return };
        if entry.leaving_until.is_some() {
            return;
        }
        // After the first packets, AdminDown is sent once a second and in reply to a peer that does
        // not know yet. A peer without a discriminator does not listen.
        let linger = if entry.session.remote.discriminator == 0 {
            Duration::ZERO
        } else {
            SLOW_INTERVAL * 3
        };
        entry.leaving_until = Some(now + linger);
        let cause = entry.session.admin_down();
        entry.emit_change(cause, now, effects);
    }

    /// Takes a received packet.
    pub fn handle(&mut self, received: &Received<'_>, now: Duration) -> Effects {
        let mut effects = Effects::default();
        effects.discarded = self.receive(received, now, &mut effects).err();
        effects
    }

    fn receive(
        &mut self,
        received: &Received<'_>,
        now: Duration,
        effects: &mut Effects,
    ) -> Result<(), Discard> {
        // All sessions on the single-hop port are single-hop, so the TTL is checked first.
        if !received.multihop && received.ttl != Some(255) {
            return Err(Discard::Ttl);
        }
        let packet = Repr::parse(received.payload).map_err(Discard::Malformed)?;
        let discriminator = self.demultiplex(&packet, received).ok_or(Discard::NoSession)?;
        self.authenticate(discriminator, &packet, received, now, effects)?;
        self.accept(discriminator, &packet, now, effects)
    }

    /// The local discriminator alone if the peer knows it, whatever source and interface are
    /// (§6.3); otherwise interface and source.
    fn demultiplex(&self, packet: &Repr, received: &Received<'_>) -> Option<u32> {
        if packet.your_discriminator != 0 {
            Some(packet.your_discriminator)
        } else {
            self.find_by_source(received)
        }
    }

    fn find_by_source(&self, received: &Received<'_>) -> Option<u32> {
        let key = |interface| PeerKey { interface, address: received.source };
        self.discriminators
            .get(&key(Some(received.interface)))
            .or_else(|| self.discriminators.get(&key(None)))
            .copied()
    }

    /// The rules of §6.8.6 that need a session, and of §6.7.4.
    fn authenticate(
        &mut self,
        discriminator: u32,
        packet: &Repr,
        received: &Received<'_>,
        now: Duration,
        effects: &mut Effects,
    ) -> Result<(), Discard> {
        let configured = self.config.authentication.as_ref();
        let Some(entry) = self.entries.get_mut(&discriminator) else {
            self.on_unknown_discriminator(packet, received, now, effects);
            return Err(Discard::NoSession);
        };
        if entry.settings.multihop != received.multihop {
            return Err(Discard::WrongPort);
        }
        let Err(reason) = entry.session.sequence.check(packet, received.payload, configured) else {
            return Ok(());
        };
        entry.rejected = Some(reason);
        // More packets were lost than the window allows for, so the packet is discarded. But it is
        // no replay, for it carries the session's discriminator and a later number: what it says
        // of the peer's detection time is true.
        let later = reason == Discard::Sequence
            && packet.your_discriminator == discriminator
            && entry.session.sequence.is_later(packet);
        if later
            && entry.session.signals_remote_expiry(packet)
            && authentication::is_authentic(packet, received.payload, configured)
        {
            effects.events.push(Event::RemoteDetectionExpired { peer: entry.peer, at: now });
            self.mark_suspect();
        }
        Err(reason)
    }

    /// Another machine may have the session whose discriminator the packet carries.
    fn on_unknown_discriminator(
        &mut self,
        packet: &Repr,
        received: &Received<'_>,
        now: Duration,
        effects: &mut Effects,
    ) {
        let configured = self.config.authentication.as_ref();
        let Some(discriminator) = self.find_by_source(received) else { return };
        let Some(entry) = self.entries.get_mut(&discriminator) else { return };
        let authentic = authentication::is_authentic(packet, received.payload, configured);
        let expected =
            entry.leaving_until.is_none() && entry.settings.multihop == received.multihop;
        if expected && authentic && entry.duplicate.on_unknown_discriminator(now) {
            effects.events.push(Event::DuplicateIdentity { peer: entry.peer, ours: true, at: now });
        }
    }

    /// Takes an authentic packet of a session.
    fn accept(
        &mut self,
        discriminator: u32,
        packet: &Repr,
        now: Duration,
        effects: &mut Effects,
    ) -> Result<(), Discard> {
        let multiplier = self.multiplier();
        let configured = self.config.authentication.as_ref();
        let Some(entry) = self.entries.get_mut(&discriminator) else {
            return Err(Discard::NoSession);
        };
        let remote_expired = entry.session.signals_remote_expiry(packet);
        if remote_expired {
            // Before the end of the session is reported: the receiver of that event alone may
            // conclude that only this node is left.
            effects.events.push(Event::RemoteDetectionExpired { peer: entry.peer, at: now });
        }
        let known = packet.your_discriminator != 0;
        if entry.duplicate.on_packet(packet.my_discriminator, known, now) {
            let peer = entry.peer;
            effects.events.push(Event::DuplicateIdentity { peer, ours: false, at: now });
        }

        let reception = entry.session.receive(packet, now);
        entry.emit_change(reception.cause, now, effects);
        if self.resync == Some(Resync::AwaitingPackets) {
            entry.unconfirmed = false;
        }
        if entry.is_up() {
            entry.rejected = None;
        }
        if let Some(gap) = reception.late_after {
            entry.emit_adaptation(AdaptationCause::LatePackets(gap), multiplier, now, effects);
        }
        if reception.reply_final {
            let reply = entry.session.final_reply();
            entry.send(reply, configured, effects);
        }
        entry.transmit(configured, now, &mut self.random, effects);

        let admin_down = entry.session.state == SessionState::AdminDown;
        let acknowledged = packet.state < SessionState::Init;
        if admin_down && entry.leaving_until.is_some() && acknowledged {
            self.delete(discriminator);
        }
        if remote_expired {
            self.mark_suspect();
        }
        self.finish_resync(now, effects);
        if admin_down { Err(Discard::AdminDown) } else { Ok(()) }
    }

    /// Does what is due: detection, AdminDown, periodic packets. To be called at
    /// [`Sessions::poll_timeout`], after everything that had arrived by `now` was handled: silence
    /// is no evidence while packets are unread.
    pub fn handle_timeout(&mut self, now: Duration) -> Effects {
        let mut effects = Effects::default();
        if self.scheduling.handle_timeout(now) {
            self.update_targets();
            self.emit_adaptation(AdaptationCause::Stable, now, &mut effects);
        }
        self.run_due(now, &mut effects);
        effects
    }

    fn run_due(&mut self, now: Duration, effects: &mut Effects) {
        let multiplier = self.multiplier();
        let configured = self.config.authentication.as_ref();
        for entry in self.entries.values_mut() {
            let expiry = entry.session.handle_timeout(now);
            entry.emit_change(expiry.cause, now, effects);
            if expiry.lowered {
                entry.emit_adaptation(AdaptationCause::Stable, multiplier, now, effects);
            }
            entry.transmit(configured, now, &mut self.random, effects);
        }
        let gone: Vec<u32> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.leaving_until.is_some_and(|until| until <= now))
            .map(|(discriminator, _)| *discriminator)
            .collect();
        for discriminator in gone {
            self.delete(discriminator);
        }
        self.finish_resync(now, effects);
    }

    fn delete(&mut self, discriminator: u32) {
        if let Some(entry) = self.entries.remove(&discriminator) {
            self.discriminators.remove(&entry.peer);
        }
    }

    /// When [`Sessions::handle_timeout`] has something to do; a time in the past: at once.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.entries
            .values()
            .flat_map(|entry| [entry.session.poll_timeout(), entry.leaving_until])
            .chain([self.scheduling.poll_timeout()])
            .flatten()
            .min()
    }

    /// When the detection time of the first peer expires if it receives nothing more, by what was
    /// last sent to each. `planned` is when the caller means to go on; while no session is up it
    /// counts as if a packet had been due then.
    pub fn remote_detection_deadline(&self, planned: Duration) -> Duration {
        let earliest = self
            .entries
            .values()
            .filter(|entry| entry.is_up())
            .filter_map(|entry| entry.session.remote_detection_deadline())
            .min();
        let spare = u32::from(self.multiplier()).saturating_sub(1).max(1);
        earliest.unwrap_or_else(|| planned + self.interval * spare)
    }

    /// To be called with the scheduling delay before the caller reads what has queued up. Small
    /// delays raise the multiplier; a delay beyond [`Sessions::remote_detection_deadline`] is
    /// reported as [`Event::Stalled`].
    pub fn on_scheduling_delay(&mut self, late: Duration, now: Duration) -> Effects {
        let mut effects = Effects::default();
        for entry in self.entries.values_mut() {
            entry.session.on_scheduling_delay(late, now);
        }
        let stalled = now >= self.remote_detection_deadline(now.saturating_sub(late));

        let silence = late + self.interval;
        let detection = self.interval * u32::from(self.multiplier());
        let limit = AdaptiveDetection::longest(self.interval * u32::from(self.config.multiplier));
        if self.scheduling.observe(silence, detection * 3 / 4, limit, now) {
            self.update_targets();
            self.emit_adaptation(AdaptationCause::SchedulingDelay(late), now, &mut effects);
        }
        if stalled {
            self.mark_suspect();
            effects.events.push(Event::Stalled { late, at: now });
        }
        effects
    }

    /// Peers may have declared this node down: sessions that are up need new packets.
    fn mark_suspect(&mut self) {
        self.resync = Some(Resync::Draining);
        for entry in self.entries.values_mut() {
            entry.unconfirmed = entry.is_up();
        }
    }

    /// To be called when everything that had arrived was handled.
    pub fn resynced(&mut self, now: Duration) -> Effects {
        let mut effects = Effects::default();
        if self.resync == Some(Resync::Draining) {
            self.resync = Some(Resync::AwaitingPackets);
        }
        self.finish_resync(now, &mut effects);
        effects
    }

    fn finish_resync(&mut self, now: Duration, effects: &mut Effects) {
        let waiting = self.entries.values().any(|entry| entry.unconfirmed && entry.is_up());
        if self.resync == Some(Resync::AwaitingPackets) && !waiting {
            self.resync = None;
            effects.events.push(Event::Resynced { at: now });
        }
    }

    /// Sets the interval that the packet rate allows for the number of sessions; jitter takes an
    /// eighth of it on average (§6.8.7).
    fn share_packet_budget(&mut self, now: Duration, effects: &mut Effects) {
        let sessions = self.entries.values().filter(|entry| entry.leaving_until.is_none()).count();
        let fair = Duration::from_secs(1) * u32::try_from(sessions).unwrap_or(u32::MAX) * 8
            / 7
            / self.config.packet_rate.max(1);
        let interval = self.config.interval.max(fair);
        if interval != self.interval {
            let raised = interval > self.interval;
            self.interval = interval;
            self.update_targets();
            self.emit_adaptation(AdaptationCause::PacketBudget { sessions, raised }, now, effects);
        }
    }

    /// Detect Mult, raised by scheduling delays.
    fn multiplier(&self) -> u8 {
        self.scheduling.multiply(self.config.multiplier)
    }

    fn target(&self) -> Target {
        Target { interval: self.interval, multiplier: self.multiplier() }
    }

    fn update_targets(&mut self) {
        let target = self.target();
        for entry in self.entries.values_mut() {
            entry.session.set_target(target);
        }
    }

    fn emit_adaptation(&self, cause: AdaptationCause, now: Duration, effects: &mut Effects) {
        let Target { interval, multiplier } = self.target();
        effects.events.push(Event::Adapted(Adaptation {
            peer: None,
            cause,
            interval,
            multiplier,
            detection_time: None,
            at: now,
        }));
    }

    /// All sessions, in the order of their peers.
    pub fn status(&self) -> Vec<SessionStatus> {
        self.discriminators
            .values()
            .filter_map(|discriminator| self.entries.get(discriminator))
            .map(Entry::status)
            .collect()
    }

    /// Peers whose sessions are up.
    pub fn up(&self) -> BTreeSet<PeerKey> {
        self.entries.values().filter(|entry| entry.is_up()).map(|entry| entry.peer).collect()
    }
}
