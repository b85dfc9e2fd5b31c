//! The state machine of one session (RFC 5880 §6.8), its periodic packets (§6.8.7) and its
//! detection time (§6.8.4).

use std::time::Duration;

use super::adaptive::AdaptiveDetection;
use super::authentication::SequenceNumbers;
use super::event::Cause;
use super::packet::{Diagnostic, Repr, SessionState};
use super::parameters::{Intervals, Parameters};
use crate::common::random::Random;

/// Minimum transmit interval while the session is not up (§6.8.3).
pub(super) const SLOW_INTERVAL: Duration = Duration::from_secs(1);
/// AdminDown packets sent, because packets are lost, and the time between two of them: with the
/// default intervals the last one arrives before the peer's detection time expires.
const ADMIN_DOWN_PACKETS: u8 = 3;
const ADMIN_DOWN_INTERVAL: Duration = Duration::from_millis(25);
/// Maximum interval, whatever was measured.
pub(super) const MAX_INTERVAL: Duration = Duration::from_secs(1);

/// Contents of the peer's last packet.
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

/// What a session moves towards; the collection of sessions decides.
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
    pub sequence: SequenceNumbers,
    pub adaptive: AdaptiveDetection,
    target: Target,
    parameters: Parameters,
    /// When the last packet was accepted; the detection time runs from here.
    last_received: Option<Duration>,
    /// Sum of scheduling delays since then.
    scheduling_delay: Duration,
    /// After a scheduling delay the detection time does not expire before this.
    grace_until: Option<Duration>,
    /// The detection time has expired since, and that has been handled.
    expired: bool,
    last_sent: Option<Duration>,
    /// bfd.DetectMult in the last packet sent, which the peer's detection time uses.
    advertised_multiplier: u8,
    /// Packets sent in AdminDown.
    admin_down_sent: u8,
    /// Part of the interval until the next periodic packet, in 1/1000.
    jitter_permille: u32,
    /// The next packet has new contents and does not wait (§6.8.7).
    update_pending: bool,
}

/// The result of a packet.
#[derive(Debug, Default)]
pub(super) struct Reception {
    /// Why the session changed its state.
    pub cause: Option<Cause>,
    /// P was set: reply with F at once.
    pub reply_final: bool,
    /// The packet was so late, after this silence, that the detection time was raised.
    pub late_after: Option<Duration>,
}

/// The result of time that has passed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Expiry {
    /// Why the session changed its state.
    pub cause: Option<Cause>,
    /// The detection time was lowered by a step.
    pub lowered: bool,
}

impl Session {
    pub fn new(discriminator: u32, target: Target, random: &mut Random) -> Session {
        let intervals = Intervals { tx: target.interval.max(SLOW_INTERVAL), rx: target.interval };
        Session {
            discriminator,
            state: SessionState::Down,
            diagnostic: Diagnostic::None,
            // §6.8.1: initial values.
            remote: Remote {
                discriminator: 0,
                state: SessionState::Down,
                diagnostic: Diagnostic::None,
                min_rx: Duration::from_micros(1),
                desired_min_tx: Duration::ZERO,
                multiplier: 0,
                demand: false,
            },
            sequence: SequenceNumbers::new(random),
            adaptive: AdaptiveDetection::new(),
            target,
            parameters: Parameters::new(intervals),
            last_received: None,
            scheduling_delay: Duration::ZERO,
            grace_until: None,
            expired: false,
            last_sent: None,
            advertised_multiplier: target.multiplier,
            admin_down_sent: 0,
            jitter_permille: 1000,
            update_pending: true,
        }
    }

    /// Moves towards other intervals or another multiplier. The multiplier needs no Poll Sequence
    /// (§6.8.3).
    pub fn set_target(&mut self, target: Target) {
        self.target = target;
        self.request_intervals();
    }

    /// Required Min RX Interval, as announced.
    pub fn required_min_rx(&self) -> Duration {
        self.wanted_intervals().rx
    }

    fn wanted_intervals(&self) -> Intervals {
        let base = self.target.interval;
        let rx = self.adaptive.stretch(base).min(MAX_INTERVAL.max(base));
        let tx = if self.state == SessionState::Up { base } else { base.max(SLOW_INTERVAL) };
        Intervals { tx, rx }
    }

    fn request_intervals(&mut self) {
        self.parameters.request(self.wanted_intervals(), self.state == SessionState::Up);
    }

    /// Takes an authentic packet of this session (§6.8.6, from "Set bfd.RemoteDiscr" on). In
    /// AdminDown only the record of the peer changes.
    pub fn receive(&mut self, packet: &Repr, now: Duration) -> Reception {
        let mut reception = Reception::default();
        let was_up = self.remote.state == SessionState::Up;
        // The detection time had expired and the peer's discriminator was void: it learns that it
        // is received again at once, not within a second (§6.8.7).
        self.update_pending |= self.expired;
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
            // After a scheduling delay the time of arrival is unknown.
            reception.late_after =
                self.observe_gap(now.saturating_sub(last + self.scheduling_delay), now);
        }
        self.scheduling_delay = Duration::ZERO;
        self.grace_until = None;
        self.request_intervals();
        if self.state == SessionState::AdminDown {
            // The peer does not know yet.
            self.update_pending |= packet.state >= SessionState::Init;
            return reception;
        }
        reception.cause = match (self.state, packet.state) {
            (SessionState::Down, SessionState::AdminDown) => {
                changed.then_some(Cause::NeighborAdminDown)
            }
            (_, SessionState::AdminDown) => self.go_down(Cause::NeighborAdminDown),
            (SessionState::Down, SessionState::Down) => self.advance(SessionState::Init),
            (SessionState::Down, SessionState::Init) => self.advance(SessionState::Up),
            (SessionState::Init, SessionState::Init | SessionState::Up) => {
                self.advance(SessionState::Up)
            }
            (SessionState::Up, SessionState::Down) => self.go_down(Cause::NeighborDown),
            _ => None,
        };
        reception.reply_final = packet.poll;
        self.last_received = Some(now);
        self.expired = false;
        reception
    }

    /// Whether the packet signals that the peer's detection time expired while the session is up
    /// here.
    pub fn signals_remote_expiry(&self, packet: &Repr) -> bool {
        let expired = packet.state == SessionState::Down
            && packet.diagnostic == Diagnostic::ControlDetectionTimeExpired;
        self.state == SessionState::Up && expired
    }

    /// Measures how close the peer's packets come to the detection time that the last of them
    /// announces: a peer with scheduling delays that has raised its multiplier itself needs no
    /// further allowance. Only gaps that the negotiated rate makes meaningful count.
    fn observe_gap(&mut self, gap: Duration, now: Duration) -> Option<Duration> {
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
        self.adaptive.observe(gap, threshold, limit, now).then_some(gap)
    }

    /// The thread was scheduled `late` too late. Packets sent meanwhile wait in the socket. Without
    /// any, the peer may have been suspended as well, as virtual machines of one host are; it gets
    /// one interval to send, once.
    pub fn on_scheduling_delay(&mut self, late: Duration, now: Duration) {
        self.scheduling_delay += late;
        if late >= self.target.interval {
            self.grace_until.get_or_insert(now + self.target.interval);
        }
    }

    /// Expires the detection time and lowers it after a long time without jitter.
    pub fn handle_timeout(&mut self, now: Duration) -> Expiry {
        let cause = self.expire_detection(now);
        let lowered = self.adaptive.handle_timeout(now);
        self.request_intervals();
        Expiry { cause, lowered }
    }

    /// §6.8.4. Only Init and Up go down, but in every state the peer's discriminator becomes void,
    /// and after twice the detection time its sequence number (§6.8.1).
    fn expire_detection(&mut self, now: Duration) -> Option<Cause> {
        let due = self.detection_deadline()?;
        if now < due {
            return None;
        }
        if self.expired {
            self.sequence.reset_received();
            return None;
        }
        self.expired = true;
        self.remote.discriminator = 0;
        match self.state {
            SessionState::Init | SessionState::Up => self.go_down(Cause::DetectionTimeExpired),
            // It signaled Down, and then nothing more.
            SessionState::Down if self.remote.state == SessionState::Down => {
                Some(Cause::DetectionTimeExpired)
            }
            SessionState::Down | SessionState::AdminDown => None,
        }
    }

    /// §6.8.16
    pub fn admin_down(&mut self) -> Option<Cause> {
        if self.state == SessionState::AdminDown {
            None
        } else {
            self.go_down(Cause::LocalAdminDown)
        }
    }

    /// §6.8.16
    pub fn admin_up(&mut self) -> Option<Cause> {
        if self.state == SessionState::AdminDown { self.go_down(Cause::LocalAdminUp) } else { None }
    }

    fn advance(&mut self, state: SessionState) -> Option<Cause> {
        self.state = state;
        self.diagnostic = Diagnostic::None;
        self.update_pending = true;
        self.request_intervals();
        Some(Cause::Handshake)
    }

    fn go_down(&mut self, cause: Cause) -> Option<Cause> {
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
            Cause::Handshake | Cause::LocalAdminUp => Diagnostic::None,
        };
        self.update_pending = true;
        self.admin_down_sent = 0;
        self.request_intervals();
        Some(cause)
    }

    /// §6.8.4 for asynchronous mode: the greater of what the peer desires to send and what is
    /// accepted here, times the peer's multiplier. None before the first packet.
    pub fn detection_time(&self) -> Option<Duration> {
        self.last_received.map(|_| self.detection_time_for(self.parameters.in_use().rx))
    }

    /// The detection time once both ends use the announced intervals.
    pub fn announced_detection_time(&self) -> Duration {
        self.detection_time_for(self.required_min_rx())
    }

    fn detection_time_for(&self, rx: Duration) -> Duration {
        self.remote.desired_min_tx.max(rx) * u32::from(self.remote.multiplier)
    }

    fn detection_deadline(&self) -> Option<Duration> {
        let last = self.last_received?;
        let detection = self.detection_time()?;
        if !self.expired {
            Some((last + detection).max(self.grace_until.unwrap_or_default()))
        } else if self.sequence.is_known() {
            Some(last + detection * 2)
        } else {
            None
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
            _ if self.update_pending && !self.remote.min_rx.is_zero() => Some(Duration::ZERO),
            None => interval.map(|_| Duration::ZERO),
            Some(last)
                if self.state == SessionState::AdminDown
                    && self.admin_down_sent < ADMIN_DOWN_PACKETS =>
            {
                interval.map(|_| last + ADMIN_DOWN_INTERVAL)
            }
            // An interval that the peer has shortened runs from the last packet, so it may be over
            // already (§6.8.3).
            Some(last) => interval.map(|interval| last + interval * self.jitter_permille / 1000),
        }
    }

    /// When the peer's detection time expires (§6.8.4), if it received the last packet and receives
    /// no more. None: it expects none.
    pub fn remote_detection_deadline(&self) -> Option<Duration> {
        Some(self.last_sent? + self.transmit_interval()? * u32::from(self.advertised_multiplier))
    }

    /// Whether a packet is to be sent now.
    pub fn is_due(&self, now: Duration) -> bool {
        self.transmit_deadline().is_some_and(|due| due <= now)
    }

    /// When [`Session::handle_timeout`] or a packet is due; zero: at once.
    pub fn poll_timeout(&self) -> Option<Duration> {
        [self.transmit_deadline(), self.detection_deadline(), self.adaptive.poll_timeout()]
            .into_iter()
            .flatten()
            .min()
    }

    /// The reply with F to a packet with P. It is no periodic packet and does not change their
    /// times (§6.5, §6.8.7).
    pub fn final_reply(&mut self) -> Repr {
        self.update_pending = false;
        self.advertised_multiplier = self.advertised_multiplier.min(self.target.multiplier);
        Repr { finished: true, ..self.contents() }
    }

    /// The next periodic packet. The one after it is sent 0 to 25 % earlier than the interval; 10
    /// to 25 % with a multiplier of 1 (§6.8.7).
    pub fn transmit(&mut self, now: Duration, random: &mut Random) -> Repr {
        self.update_pending = false;
        self.last_sent = Some(now);
        self.advertised_multiplier = self.target.multiplier;
        self.admin_down_sent =
            self.admin_down_sent.saturating_add(u8::from(self.state == SessionState::AdminDown));
        self.jitter_permille =
            random.between(750, if self.target.multiplier == 1 { 900 } else { 1000 });
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
