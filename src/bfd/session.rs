//! The state machine of one session (RFC 5880 §6.8), its periodic packets (§6.8.7) and its
//! detection time (§6.8.4).

use std::time::Duration;

use super::adaptive::AdaptiveDetection;
use super::authentication::Sequence;
use super::event::Cause;
use super::packet::{Diagnostic, Repr, SessionState};
use super::parameters::{Intervals, Parameters};
use crate::common::random::Random;

/// Below this rate nobody is burdened by a neighbour that is not there (§6.8.3).
pub(super) const SLOW: Duration = Duration::from_secs(1);
/// A farewell is said so often, for packets are lost, and so long after the one before: with the
/// default intervals the last one arrives before the other side has waited for us in vain.
const FAREWELLS: u8 = 3;
const FAREWELL_INTERVAL: Duration = Duration::from_millis(25);
/// No interval is longer, whatever was measured.
pub(super) const LONGEST: Duration = Duration::from_secs(1);

/// What the last packet of the other side said.
#[derive(Debug)]
pub(super) struct Remote {
    /// bfd.RemoteDiscr
    pub discriminator: u32,
    /// bfd.RemoteSessionState
    pub state: SessionState,
    pub diagnostic: Diagnostic,
    /// bfd.RemoteMinRxInterval
    min_rx: Duration,
    desired_min_tx: Duration,
    pub multiplier: u8,
    /// bfd.RemoteDemandMode
    demand: bool,
}

/// What a session is to aim at; the sessions' collection decides.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    /// Base of both intervals.
    pub interval: Duration,
    /// bfd.DetectMult
    pub multiplier: u8,
}

/// One session. It takes the active role (§6.1).
#[derive(Debug)]
pub(super) struct Session {
    /// bfd.LocalDiscr
    pub discriminator: u32,
    /// bfd.SessionState
    pub state: SessionState,
    /// bfd.LocalDiag
    pub diagnostic: Diagnostic,
    pub remote: Remote,
    pub sequence: Sequence,
    pub arrivals: AdaptiveDetection,
    target: Target,
    parameters: Parameters,
    /// When the last packet was taken; detection counts from here.
    last_received: Option<Duration>,
    /// For how long we have slept since although something was due.
    overslept: Duration,
    /// What was sent while we slept is waited for until then.
    grace: Option<Duration>,
    /// The detection time has passed since, and that has been dealt with.
    expired: bool,
    last_sent: Option<Duration>,
    /// bfd.DetectMult as the other side last heard it: from then on it waits for so many
    /// intervals.
    told_multiplier: u8,
    /// Packets sent in AdminDown.
    farewells: u8,
    /// Of the interval, until the next periodic packet; in 1/1000.
    fraction: u32,
    /// The next packet would say something new: it does not wait (§6.8.7).
    news: bool,
}

/// What came of a packet.
#[derive(Debug, Default)]
pub(super) struct Reception {
    /// The session changed its state.
    pub cause: Option<Cause>,
    /// P was set: answer with F at once.
    pub answer: bool,
    /// It came so late that more tolerance was called for; after this silence.
    pub raised: Option<Duration>,
}

impl Session {
    pub fn new(discriminator: u32, target: Target, random: &mut Random) -> Session {
        let intervals = Intervals { tx: target.interval.max(SLOW), rx: target.interval };
        Session {
            discriminator,
            state: SessionState::Down,
            diagnostic: Diagnostic::None,
            // §6.8.1: what holds before anything was heard.
            remote: Remote {
                discriminator: 0,
                state: SessionState::Down,
                diagnostic: Diagnostic::None,
                min_rx: Duration::from_micros(1),
                desired_min_tx: Duration::ZERO,
                multiplier: 0,
                demand: false,
            },
            sequence: Sequence::new(random),
            arrivals: AdaptiveDetection::new(),
            target,
            parameters: Parameters::new(intervals),
            last_received: None,
            overslept: Duration::ZERO,
            grace: None,
            expired: false,
            last_sent: None,
            told_multiplier: target.multiplier,
            farewells: 0,
            fraction: 1000,
            news: true,
        }
    }

    /// Aims at other intervals or another multiplier. The multiplier needs no Poll Sequence
    /// (§6.8.3).
    pub fn aim(&mut self, target: Target) {
        self.target = target;
        self.request();
    }

    /// What is announced, for status and events: Required Min RX Interval.
    pub fn required_min_rx(&self) -> Duration {
        self.wanted().rx
    }

    fn wanted(&self) -> Intervals {
        let base = self.target.interval;
        let rx = self.arrivals.stretch(base).min(LONGEST.max(base));
        let tx = if self.state == SessionState::Up { base } else { base.max(SLOW) };
        Intervals { tx, rx }
    }

    fn request(&mut self) {
        self.parameters.request(self.wanted(), self.state == SessionState::Up);
    }

    /// A packet that belongs here and is authentic (§6.8.6, from "Set bfd.RemoteDiscr" on). In
    /// AdminDown nothing but the record changes.
    pub fn receive(&mut self, packet: &Repr, now: Duration) -> Reception {
        let mut reception = Reception::default();
        let was_up = self.remote.state == SessionState::Up;
        // The peer that we gave up, and whose discriminator we forgot, speaks: it hears of that at
        // once, not within a second (§6.8.7).
        self.news |= self.expired;
        let changed = self.remote.state != packet.state;
        self.remote = Remote {
            discriminator: packet.my_discriminator,
            state: packet.state,
            diagnostic: packet.diagnostic,
            min_rx: micros(packet.required_min_rx),
            desired_min_tx: micros(packet.desired_min_tx),
            multiplier: packet.detect_multiplier,
            demand: packet.demand,
        };
        self.parameters.received(packet.finished);
        if let Some(last) = self.last_received.filter(|_| was_up) {
            // After we slept it is not known when the packet came.
            reception.raised = self.observe(now.saturating_sub(last + self.overslept), now);
        }
        (self.overslept, self.grace) = (Duration::ZERO, None);
        self.request();
        if self.state == SessionState::AdminDown {
            // It has not heard of it yet.
            self.news |= packet.state >= SessionState::Init;
            return reception;
        }
        reception.cause = match (self.state, packet.state) {
            (SessionState::Down, SessionState::AdminDown) => {
                changed.then_some(Cause::NeighborAdminDown)
            }
            (_, SessionState::AdminDown) => self.fall(Cause::NeighborAdminDown),
            (SessionState::Down, SessionState::Down) => self.rise(SessionState::Init),
            (SessionState::Down, SessionState::Init) => self.rise(SessionState::Up),
            (SessionState::Init, SessionState::Init | SessionState::Up) => {
                self.rise(SessionState::Up)
            }
            (SessionState::Up, SessionState::Down) => self.fall(Cause::NeighborDown),
            _ => None,
        };
        reception.answer = packet.poll;
        self.last_received = Some(now);
        self.expired = false;
        reception
    }

    /// The other side's detection time ran out, which is news here.
    pub fn is_given_up_by(&self, packet: &Repr) -> bool {
        let expired = packet.state == SessionState::Down
            && packet.diagnostic == Diagnostic::ControlDetectionTimeExpired;
        self.state == SessionState::Up && expired
    }

    /// How close to failure the other side's packets come, by what the last of them promises: who
    /// has woken up late and asks for more patience himself need not be given it twice. Only
    /// gaps that the negotiated rate makes meaningful count.
    fn observe(&mut self, gap: Duration, now: Duration) -> Option<Duration> {
        if self.remote.demand {
            return None;
        }
        let detection = self.detection_time()?;
        let threshold = match self.remote.multiplier {
            1 => detection * 19 / 20,
            2 => detection * 5 / 8,
            _ => detection * 3 / 4,
        };
        let limit =
            AdaptiveDetection::longest(self.target.interval * u32::from(self.remote.multiplier));
        self.arrivals.observe(gap, threshold, limit, now).then_some(gap)
    }

    /// We woke up this much too late. What the other side sent meanwhile has been waiting for us;
    /// if nothing has, it may have slept as well, as virtual machines of one host do, and is
    /// given one interval to be heard, once.
    pub fn woke(&mut self, late: Duration, now: Duration) {
        self.overslept += late;
        if late >= self.target.interval {
            self.grace.get_or_insert(now + self.target.interval);
        }
    }

    /// §6.8.4: what has passed without a packet. Only Init and Up fall, but in every state the
    /// other side's discriminator is void then, and after twice the time its sequence number
    /// (§6.8.1).
    pub fn expire(&mut self, now: Duration) -> Option<Cause> {
        let due = self.detection_deadline()?;
        if now < due {
            return None;
        }
        if self.expired {
            self.sequence.forget();
            return None;
        }
        self.expired = true;
        self.remote.discriminator = 0;
        match self.state {
            SessionState::Init | SessionState::Up => self.fall(Cause::DetectionTimeExpired),
            // It said Down, and then nothing more: whatever that meant, it is not even heard now.
            SessionState::Down if self.remote.state == SessionState::Down => {
                Some(Cause::DetectionTimeExpired)
            }
            SessionState::Down | SessionState::AdminDown => None,
        }
    }

    /// True when the tolerance fell by a step.
    pub fn relax(&mut self, now: Duration) -> bool {
        let relaxed = self.arrivals.handle_timeout(now);
        self.request();
        relaxed
    }

    /// §6.8.16
    pub fn leave(&mut self) -> Option<Cause> {
        if self.state == SessionState::AdminDown { None } else { self.fall(Cause::LocalAdminDown) }
    }

    /// §6.8.16
    pub fn come_back(&mut self) -> Option<Cause> {
        if self.state == SessionState::AdminDown { self.fall(Cause::LocalReturn) } else { None }
    }

    fn rise(&mut self, state: SessionState) -> Option<Cause> {
        self.state = state;
        self.diagnostic = Diagnostic::None;
        self.news = true;
        self.request();
        Some(Cause::Heard)
    }

    fn fall(&mut self, cause: Cause) -> Option<Cause> {
        self.state = if cause == Cause::LocalAdminDown {
            SessionState::AdminDown
        } else {
            SessionState::Down
        };
        self.diagnostic = match cause {
            Cause::DetectionTimeExpired => Diagnostic::ControlDetectionTimeExpired,
            Cause::NeighborDown | Cause::NeighborAdminDown => {
                Diagnostic::NeighborSignaledSessionDown
            }
            Cause::LocalAdminDown => Diagnostic::AdministrativelyDown,
            Cause::Heard | Cause::LocalReturn => Diagnostic::None,
        };
        self.news = true;
        self.farewells = 0;
        self.request();
        Some(cause)
    }

    /// §6.8.4 for asynchronous mode: what the other side sends at most, or we accept, times its
    /// multiplier. None before anything was heard.
    pub fn detection_time(&self) -> Option<Duration> {
        self.last_received.map(|_| {
            self.remote.desired_min_tx.max(self.parameters.in_use().rx)
                * u32::from(self.remote.multiplier)
        })
    }

    fn detection_deadline(&self) -> Option<Duration> {
        let (last, detection) = (self.last_received?, self.detection_time()?);
        match (self.expired, self.sequence.is_known()) {
            (false, _) => Some((last + detection).max(self.grace.unwrap_or_default())),
            (true, true) => Some(last + detection * 2),
            (true, false) => None,
        }
    }

    /// §6.8.2, the greater of the two; None when periodic packets must not be sent (§6.8.7).
    pub fn transmit_interval(&self) -> Option<Duration> {
        let demanded = self.remote.demand
            && self.state == SessionState::Up
            && self.remote.state == SessionState::Up
            && !self.parameters.polling();
        (!self.remote.min_rx.is_zero() && !demanded)
            .then(|| self.parameters.in_use().tx.max(self.remote.min_rx))
    }

    /// When the next packet is due; zero: at once.
    fn transmit_deadline(&self) -> Option<Duration> {
        let interval = self.transmit_interval();
        match self.last_sent {
            _ if self.news && !self.remote.min_rx.is_zero() => Some(Duration::ZERO),
            None => interval.map(|_| Duration::ZERO),
            Some(last) if self.state == SessionState::AdminDown && self.farewells < FAREWELLS => {
                interval.map(|_| last + FAREWELL_INTERVAL)
            }
            // An interval that the other side has shortened counts from the last packet, so it may
            // be over already (§6.8.3).
            Some(last) => interval.map(|interval| last + interval * self.fraction / 1000),
        }
    }

    /// When the other side gives us up (§6.8.4), if it has heard the last packet and hears no more.
    /// None: it does not wait for any.
    pub fn expected_by(&self) -> Option<Duration> {
        Some(self.last_sent? + self.transmit_interval()? * u32::from(self.told_multiplier))
    }

    /// Whether a packet is to be sent now.
    pub fn is_due(&self, now: Duration) -> bool {
        self.transmit_deadline().is_some_and(|due| due <= now)
    }

    /// When something is due next.
    pub fn poll_timeout(&self) -> Option<Duration> {
        [self.transmit_deadline(), self.detection_deadline(), self.arrivals.poll_timeout()]
            .into_iter()
            .flatten()
            .min()
    }

    /// The answer to a packet with P: outside of the periodic ones, whose time it does not change
    /// (§6.5, §6.8.7).
    pub fn answer(&mut self) -> Repr {
        self.news = false;
        self.told_multiplier = self.told_multiplier.min(self.target.multiplier);
        Repr { finished: true, ..self.contents() }
    }

    /// The next periodic packet. The one after it comes 0 to 25 % earlier than the interval; 10 to
    /// 25 % when our multiplier is 1 (§6.8.7).
    pub fn transmit(&mut self, now: Duration, random: &mut Random) -> Repr {
        self.news = false;
        self.last_sent = Some(now);
        self.told_multiplier = self.target.multiplier;
        self.farewells =
            self.farewells.saturating_add(u8::from(self.state == SessionState::AdminDown));
        self.fraction = random.between(750, if self.target.multiplier == 1 { 900 } else { 1000 });
        let poll = self.parameters.polling();
        self.parameters.sent();
        Repr { poll, ..self.contents() }
    }

    fn contents(&self) -> Repr {
        let announced = self.parameters.announced();
        Repr {
            diagnostic: self.diagnostic,
            state: self.state,
            poll: false,
            finished: false,
            control_plane_independent: false,
            demand: false,
            detect_multiplier: self.target.multiplier,
            my_discriminator: self.discriminator,
            your_discriminator: self.remote.discriminator,
            desired_min_tx: as_micros(announced.tx),
            required_min_rx: as_micros(announced.rx),
            required_min_echo_rx: 0,
            authentication: None,
        }
    }
}

fn micros(value: u32) -> Duration {
    Duration::from_micros(u64::from(value))
}

fn as_micros(value: Duration) -> u32 {
    u32::try_from(value.as_micros()).unwrap_or(u32::MAX)
}
