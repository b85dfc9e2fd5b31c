//! All sessions of a node: peers that come and go, demultiplexing (RFC 5880 §6.3, §6.8.6),
//! authentication and the node's packet rate.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::adaptive::AdaptiveDetection;
use super::authentication::Authentication;
use super::config::Config;
use super::duplicate::DuplicateDetector;
use super::event::{Adaptation, AdaptationCause, Cause, Discard, Event, PeerEvent};
use super::exchange::{Effects, Outgoing, Peer, PeerKey, Received, SessionStatus};
use super::packet::{Repr, SessionState};
use super::session::{SLOW, Session, Target};
use super::{authentication, packet};
use crate::common::random::Random;

/// One peer.
#[derive(Debug)]
struct Entry {
    peer: PeerKey,
    settings: Peer,
    session: Session,
    double: DuplicateDetector,
    refused: Option<Discard>,
    /// No longer wanted: told AdminDown until then.
    leaving: Option<Duration>,
    /// Up, but not heard since it is in doubt whether we were here all the time.
    unheard: bool,
}

/// The sessions of one node.
#[derive(Debug)]
pub struct Sessions {
    config: Config,
    random: Random,
    /// By our discriminator.
    entries: BTreeMap<u32, Entry>,
    discriminators: BTreeMap<PeerKey, u32>,
    wakes: AdaptiveDetection,
    interval: Duration,
    /// After a stall, or what may have been one.
    stall: Option<Stall>,
}

/// Until every session that is up has been heard again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stall {
    /// What is read now may be old.
    Reading,
    /// Everything that is read now is news.
    Waiting,
}

impl Sessions {
    /// No sessions yet. The seed must differ from start to start.
    pub fn new(config: Config, seed: u64) -> Sessions {
        let interval = config.interval;
        Sessions {
            config,
            random: Random::new(seed),
            entries: BTreeMap::new(),
            discriminators: BTreeMap::new(),
            wakes: AdaptiveDetection::new(),
            interval,
            stall: None,
        }
    }

    /// Makes the set of peers this one. Sessions that stay are not disturbed; those that go tell
    /// their peers (AdminDown) first.
    pub fn set(&mut self, peers: &BTreeMap<PeerKey, Peer>, now: Duration) -> Effects {
        let mut effects = Effects::default();
        let gone: Vec<PeerKey> =
            self.discriminators.keys().filter(|key| !peers.contains_key(key)).copied().collect();
        for key in gone {
            self.leave(key, now, &mut effects);
        }
        for (key, settings) in peers {
            self.enter(*key, *settings, now, &mut effects);
        }
        self.share(now, &mut effects);
        self.work(now, &mut effects);
        effects
    }

    /// One peer more, or another way to it.
    pub fn add(&mut self, key: PeerKey, settings: Peer, now: Duration) -> Effects {
        let mut effects = Effects::default();
        self.enter(key, settings, now, &mut effects);
        self.share(now, &mut effects);
        self.work(now, &mut effects);
        effects
    }

    /// One peer less: it is told (AdminDown), for as long as it takes it to notice; see
    /// [`Sessions::is_empty`].
    pub fn remove(&mut self, key: PeerKey, now: Duration) -> Effects {
        let mut effects = Effects::default();
        self.leave(key, now, &mut effects);
        self.share(now, &mut effects);
        self.work(now, &mut effects);
        effects
    }

    /// Nothing is left, not even farewells to be said.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn enter(&mut self, key: PeerKey, settings: Peer, now: Duration, effects: &mut Effects) {
        if let Some(discriminator) = self.discriminators.get(&key).copied() {
            if let Some(entry) = self.entries.get_mut(&discriminator)
                && entry.settings.multihop == settings.multihop
            {
                entry.settings = settings;
                if entry.leaving.take().is_some() {
                    let cause = entry.session.come_back();
                    entry.tell(cause, now, effects);
                }
                return;
            }
            self.entries.remove(&discriminator);
        }
        let discriminator = self.free_discriminator();
        let session = Session::new(discriminator, self.target(), &mut self.random);
        self.discriminators.insert(key, discriminator);
        let double = DuplicateDetector::new(now);
        self.entries.insert(
            discriminator,
            Entry {
                peer: key,
                settings,
                session,
                double,
                refused: None,
                leaving: None,
                unheard: false,
            },
        );
    }

    /// Random, so that a packet for a session of an earlier life finds none.
    fn free_discriminator(&mut self) -> u32 {
        loop {
            let discriminator = self.random.next();
            if discriminator != 0 && !self.entries.contains_key(&discriminator) {
                return discriminator;
            }
        }
    }

    fn leave(&mut self, key: PeerKey, now: Duration, effects: &mut Effects) {
        let Some(entry) = self
            .discriminators
            .get(&key)
            .and_then(|discriminator| self.entries.get_mut(discriminator))
        else {
            return;
        };
        if entry.leaving.is_none() {
            // After the first three, AdminDown is sent once a second, and in answer to whoever has
            // not heard it; who does not listen need not be waited for.
            let patience =
                if entry.session.remote.discriminator == 0 { Duration::ZERO } else { SLOW * 3 };
            entry.leaving = Some(now + patience);
            let cause = entry.session.leave();
            entry.tell(cause, now, effects);
        }
    }

    /// Takes a packet.
    pub fn handle(&mut self, received: &Received<'_>, now: Duration) -> Effects {
        let mut effects = Effects::default();
        effects.discarded = self.take(received, now, &mut effects).err();
        effects
    }

    /// The rules of §6.8.6 that need a session, with those of RFC 5881 §5 and §6.7.4.
    fn take(
        &mut self,
        received: &Received<'_>,
        now: Duration,
        effects: &mut Effects,
    ) -> Result<(), Discard> {
        // On the port for one hop there are sessions over one hop only, so this need not wait for
        // one to be found.
        if !received.multihop && received.ttl != Some(255) {
            return Err(Discard::Ttl);
        }
        let packet = Repr::parse(received.payload).map_err(Discard::Malformed)?;
        let discriminator = self.select(&packet, received).ok_or(Discard::NoSession)?;
        let Some(entry) = self.entries.get_mut(&discriminator) else {
            self.foreign(&packet, received, now, effects);
            return Err(Discard::NoSession);
        };
        if entry.settings.multihop != received.multihop {
            return Err(Discard::WrongPort);
        }
        if let Err(reason) = entry.session.sequence.check(
            &packet,
            received.payload,
            self.config.authentication.as_ref(),
        ) {
            entry.refused = Some(reason);
            // We missed more packets than its number allows for, so it is not believed in general.
            // But it is no repetition: it knows this session, and the number is none
            // that was used before we heard its sender last.
            let missed = reason == Discard::Sequence
                && packet.your_discriminator == discriminator
                && entry.session.sequence.is_later(&packet);
            if missed
                && entry.session.is_given_up_by(&packet)
                && authentication::is_authentic(
                    &packet,
                    received.payload,
                    self.config.authentication.as_ref(),
                )
            {
                effects.events.push(Event::RemoteDetectionExpired { peer: entry.peer, at: now });
                self.mark_suspect();
            }
            return Err(reason);
        }
        let given_up = entry.session.is_given_up_by(&packet);
        if given_up {
            // Before the end of the session is told: whoever hears of that first may think that
            // this node alone is left.
            effects.events.push(Event::RemoteDetectionExpired { peer: entry.peer, at: now });
        }
        if entry.double.heard(packet.my_discriminator, packet.your_discriminator != 0, now) {
            effects.events.push(Event::DuplicateIdentity {
                peer: entry.peer,
                ours: false,
                at: now,
            });
        }
        let reception = entry.session.receive(&packet, now);
        entry.tell(reception.cause, now, effects);
        if self.stall == Some(Stall::Waiting) {
            entry.unheard = false;
        }
        if entry.session.state == SessionState::Up {
            entry.refused = None;
        }
        if let Some(gap) = reception.raised {
            effects.events.push(Event::Adapted(Adaptation {
                peer: Some(entry.peer),
                reason: AdaptationCause::LateArrivals(gap),
                interval: entry.session.required_min_rx(),
                multiplier: multiplier(&self.config, &self.wakes),
                at: now,
            }));
        }
        if reception.answer {
            let answer = entry.session.answer();
            entry.send(answer, self.config.authentication.as_ref(), effects);
        }
        if entry.session.is_due(now) {
            let packet = entry.session.transmit(now, &mut self.random);
            entry.send(packet, self.config.authentication.as_ref(), effects);
        }
        let held = entry.session.state == SessionState::AdminDown;
        // It has heard our farewell.
        if held && entry.leaving.is_some() && packet.state < SessionState::Init {
            self.forget(discriminator);
        }
        if given_up {
            self.mark_suspect();
        }
        self.end_stall(now, effects);
        if held { Err(Discard::AdminDown) } else { Ok(()) }
    }

    /// By our discriminator alone when the peer knows it, whatever source and interface are (§6.3);
    /// else by interface and source.
    fn select(&self, packet: &Repr, received: &Received<'_>) -> Option<u32> {
        if packet.your_discriminator != 0 {
            Some(packet.your_discriminator)
        } else {
            self.of_source(received)
        }
    }

    /// Another machine may have the session that the packet names.
    fn foreign(
        &mut self,
        packet: &Repr,
        received: &Received<'_>,
        now: Duration,
        effects: &mut Effects,
    ) {
        let Some(entry) =
            self.of_source(received).and_then(|discriminator| self.entries.get_mut(&discriminator))
        else {
            return;
        };
        let authentic = authentication::is_authentic(
            packet,
            received.payload,
            self.config.authentication.as_ref(),
        );
        let expected = entry.leaving.is_none() && entry.settings.multihop == received.multihop;
        if expected && authentic && entry.double.foreign(now) {
            effects.events.push(Event::DuplicateIdentity { peer: entry.peer, ours: true, at: now });
        }
    }

    fn of_source(&self, received: &Received<'_>) -> Option<u32> {
        let key = |interface| PeerKey { interface, address: received.source };
        self.discriminators
            .get(&key(Some(received.interface)))
            .or_else(|| self.discriminators.get(&key(None)))
            .copied()
    }

    /// Does what is due: detection, farewells, periodic packets. To be called at
    /// [`Sessions::poll_timeout`], after everything that had arrived by `now` was handled:
    /// silence is no evidence as long as there is something unread.
    pub fn handle_timeout(&mut self, now: Duration) -> Effects {
        let mut effects = Effects::default();
        if self.wakes.handle_timeout(now) {
            self.aim();
            self.tell_all(AdaptationCause::Calm, now, &mut effects);
        }
        self.work(now, &mut effects);
        effects
    }

    fn work(&mut self, now: Duration, effects: &mut Effects) {
        for entry in self.entries.values_mut() {
            let cause = entry.session.expire(now);
            entry.tell(cause, now, effects);
            if entry.session.relax(now) {
                effects.events.push(Event::Adapted(Adaptation {
                    peer: Some(entry.peer),
                    reason: AdaptationCause::Calm,
                    interval: entry.session.required_min_rx(),
                    multiplier: multiplier(&self.config, &self.wakes),
                    at: now,
                }));
            }
            if entry.session.is_due(now) {
                let packet = entry.session.transmit(now, &mut self.random);
                entry.send(packet, self.config.authentication.as_ref(), effects);
            }
        }
        let gone: Vec<u32> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.leaving.is_some_and(|until| until <= now))
            .map(|(id, _)| *id)
            .collect();
        for discriminator in gone {
            self.forget(discriminator);
        }
        self.end_stall(now, effects);
    }

    fn forget(&mut self, discriminator: u32) {
        if let Some(entry) = self.entries.remove(&discriminator) {
            self.discriminators.remove(&entry.peer);
        }
    }

    /// When [`Sessions::poll`] has something to do; a time in the past: at once.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let sessions =
            self.entries.values().flat_map(|entry| [entry.session.poll_timeout(), entry.leaving]);
        sessions.flatten().chain(self.wakes.poll_timeout()).min()
    }

    /// When the first of the peers gives us up if it hears nothing more, as far as we know: by what
    /// was last sent to each, not by how long we wait for them. `planned` is when we mean to go
    /// on; while no session is up it counts as if a packet had been due then.
    pub fn remote_detection_deadline(&self, planned: Duration) -> Duration {
        let up = self.entries.values().filter(|entry| entry.session.state == SessionState::Up);
        let soonest = up.filter_map(|entry| entry.session.expected_by()).min();
        soonest.unwrap_or_else(|| {
            planned
                + self.interval
                    * u32::from(multiplier(&self.config, &self.wakes)).saturating_sub(1).max(1)
        })
    }

    /// To be called with how much too late the caller woke up, before it reads what has queued up.
    /// Small delays make the multiplier grow; after one that has let the time pass for which
    /// some peer waits for us ([`Sessions::expected_by`]) it may have declared us dead, and that is
    /// told.
    pub fn on_scheduling_delay(&mut self, late: Duration, now: Duration) -> Effects {
        let mut effects = Effects::default();
        self.entries.values_mut().for_each(|entry| entry.session.woke(late, now));
        let ours = self.interval * u32::from(multiplier(&self.config, &self.wakes));
        let stalled = now >= self.remote_detection_deadline(now.saturating_sub(late));
        // The silence that peers have heard.
        let limit = AdaptiveDetection::longest(self.interval * u32::from(self.config.multiplier));
        if self.wakes.observe(late + self.interval, ours * 3 / 4, limit, now) {
            self.aim();
            self.tell_all(AdaptationCause::LateWakes(late), now, &mut effects);
        }
        if stalled {
            self.mark_suspect();
            effects.events.push(Event::Stalled { late, at: now });
        }
        effects
    }

    /// Nothing that was heard before shows that this node was here all the time.
    fn mark_suspect(&mut self) {
        self.stall = Some(Stall::Reading);
        for entry in self.entries.values_mut() {
            entry.unheard = entry.session.state == SessionState::Up;
        }
    }

    /// To be called when everything that had arrived was handled.
    pub fn resynced(&mut self, now: Duration) -> Effects {
        let mut effects = Effects::default();
        if self.stall == Some(Stall::Reading) {
            self.stall = Some(Stall::Waiting);
        }
        self.end_stall(now, &mut effects);
        effects
    }

    fn end_stall(&mut self, now: Duration, effects: &mut Effects) {
        let heard = |entry: &Entry| !entry.unheard || entry.session.state != SessionState::Up;
        if self.stall == Some(Stall::Waiting) && self.entries.values().all(heard) {
            self.stall = None;
            effects.events.push(Event::Resynced { at: now });
        }
    }

    /// The interval that the packet rate admits for so many sessions; jitter takes an eighth of it
    /// on average (§6.8.7).
    fn share(&mut self, now: Duration, effects: &mut Effects) {
        let sessions = self.entries.values().filter(|entry| entry.leaving.is_none()).count();
        let fair = Duration::from_secs(1) * u32::try_from(sessions).unwrap_or(u32::MAX) * 8
            / 7
            / self.config.packet_rate.max(1);
        let interval = self.config.interval.max(fair);
        if interval != self.interval {
            self.interval = interval;
            self.aim();
            self.tell_all(AdaptationCause::Sessions(sessions), now, effects);
        }
    }

    fn target(&self) -> Target {
        Target { interval: self.interval, multiplier: multiplier(&self.config, &self.wakes) }
    }

    fn aim(&mut self) {
        let target = self.target();
        for entry in self.entries.values_mut() {
            entry.session.aim(target);
        }
    }

    fn tell_all(&self, reason: AdaptationCause, now: Duration, effects: &mut Effects) {
        let Target { interval, multiplier } = self.target();
        effects.events.push(Event::Adapted(Adaptation {
            peer: None,
            reason,
            interval,
            multiplier,
            at: now,
        }));
    }

    /// All sessions, in the order of their peers.
    pub fn status(&self) -> Vec<SessionStatus> {
        let entries = self
            .discriminators
            .values()
            .filter_map(|discriminator| self.entries.get(discriminator));
        entries
            .map(|Entry { peer, session, refused, .. }| SessionStatus {
                peer: *peer,
                state: session.state,
                diagnostic: session.diagnostic,
                remote_state: session.remote.state,
                detection_time: session.detection_time(),
                transmit_interval: session.transmit_interval(),
                refused: *refused,
            })
            .collect()
    }

    /// Peers whose sessions are up.
    pub fn up(&self) -> BTreeSet<PeerKey> {
        self.entries
            .values()
            .filter(|entry| entry.session.state == SessionState::Up)
            .map(|entry| entry.peer)
            .collect()
    }
}

fn multiplier(config: &Config, wakes: &AdaptiveDetection) -> u8 {
    wakes.multiply(config.multiplier)
}

impl Entry {
    fn tell(&mut self, cause: Option<Cause>, now: Duration, effects: &mut Effects) {
        if let Some(cause) = cause {
            effects.events.push(Event::Peer(PeerEvent {
                peer: self.peer,
                state: self.session.state,
                diagnostic: self.session.diagnostic,
                remote_diagnostic: self.session.remote.diagnostic,
                cause,
                at: now,
            }));
        }
    }

    fn send(
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
