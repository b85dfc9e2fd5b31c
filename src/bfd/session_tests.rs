//! One session against packets written by hand. Every test names the rule of RFC 5880 that it holds
//! the machine to.

use std::time::Duration;

use super::event::Cause;
use super::packet::{Diagnostic, Repr, SessionState};
use super::session::{Session, Target};
use crate::common::random::Random;

const INTERVAL: Duration = Duration::from_millis(50);

fn ms(value: u64) -> Duration {
    Duration::from_millis(value)
}

/// A session with a clock.
struct Bench {
    session: Session,
    random: Random,
    now: Duration,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(3)
    }

    fn with(multiplier: u8) -> Bench {
        let mut random = Random::new(7);
        let session = Session::new(99, Target { interval: INTERVAL, multiplier }, &mut random);
        Bench { session, random, now: ms(1000) }
    }

    /// Up, with the Poll Sequence of coming up done.
    fn up() -> Bench {
        let mut bench = Bench::new();
        bench.receive(SessionState::Down, |_| {});
        bench.receive(SessionState::Up, |_| {});
        assert!(bench.send().poll);
        bench.receive(SessionState::Up, |packet| packet.finished = true);
        bench.receive(SessionState::Up, |_| {});
        assert_eq!(bench.session.state, SessionState::Up);
        assert!(!bench.send().poll);
        bench
    }

    fn receive(&mut self, state: SessionState, change: impl Fn(&mut Repr)) -> Option<Cause> {
        let mut packet = packet(state);
        change(&mut packet);
        self.session.receive(&packet, self.now).cause
    }

    fn send(&mut self) -> Repr {
        self.session.transmit(self.now, &mut self.random)
    }

    /// Lets time pass until the next periodic packet, which must not come later than this; how long
    /// it took.
    fn next_packet(&mut self, at_most: Duration) -> (Duration, Repr) {
        let start = self.now;
        while !self.session.is_due(self.now) {
            self.now += Duration::from_micros(100);
            assert!(self.now <= start + at_most, "no packet within {at_most:?}");
        }
        (self.now - start, self.send())
    }
}

/// From a peer at 50 ms × 3.
fn packet(state: SessionState) -> Repr {
    Repr {
        diagnostic: Diagnostic::None,
        state,
        poll: false,
        finished: false,
        control_plane_independent: false,
        demand: false,
        detect_multiplier: 3,
        my_discriminator: 42,
        your_discriminator: 99,
        desired_min_tx: 50_000,
        required_min_rx: 50_000,
        required_min_echo_rx: 0,
        authentication: None,
    }
}

/// §6.8.6, the state machine, all of it.
#[test]
fn every_transition_of_section_6_8_6() {
    use Diagnostic as D;
    use SessionState::{AdminDown, Down, Init, Up};
    let table = [
        (Down, AdminDown, Down, D::None, Some(Cause::NeighborAdminDown)),
        (Down, Down, Init, D::None, Some(Cause::Handshake)),
        (Down, Init, Up, D::None, Some(Cause::Handshake)),
        (Down, Up, Down, D::None, None),
        (Init, AdminDown, Down, D::NeighborSignaledSessionDown, Some(Cause::NeighborAdminDown)),
        (Init, Down, Init, D::None, None),
        (Init, Init, Up, D::None, Some(Cause::Handshake)),
        (Init, Up, Up, D::None, Some(Cause::Handshake)),
        (Up, AdminDown, Down, D::NeighborSignaledSessionDown, Some(Cause::NeighborAdminDown)),
        (Up, Down, Down, D::NeighborSignaledSessionDown, Some(Cause::NeighborDown)),
        (Up, Init, Up, D::None, None),
        (Up, Up, Up, D::None, None),
        (AdminDown, AdminDown, AdminDown, D::AdministrativelyDown, None),
        (AdminDown, Down, AdminDown, D::AdministrativelyDown, None),
        (AdminDown, Init, AdminDown, D::AdministrativelyDown, None),
        (AdminDown, Up, AdminDown, D::AdministrativelyDown, None),
    ];
    for (ours, theirs, then, diagnostic, cause) in table {
        let mut bench = Bench::new();
        match ours {
            AdminDown => drop(bench.session.admin_down()),
            Down => {}
            Init => drop(bench.receive(Down, |_| {})),
            Up => drop(bench.receive(Init, |_| {})),
        }
        assert_eq!(bench.session.state, ours);
        let found = bench.receive(theirs, |_| {});
        assert_eq!(
            (bench.session.state, bench.session.diagnostic, found),
            (then, diagnostic, cause),
            "{ours:?} hears {theirs:?}"
        );
    }
}

/// §6.8.4: the remote multiplier times the greater of what they send at most and we accept; only
/// Init and Up fail; diagnostic 1.
#[test]
fn silence_fails_a_session_after_the_detection_time_of_section_6_8_4() {
    for (desired, multiplier, detection) in
        [(50_000, 3, 150), (20_000, 3, 150), (200_000, 3, 600), (50_000, 1, 50), (50_000, 10, 500)]
    {
        let mut bench = Bench::up();
        bench.receive(SessionState::Up, |packet| {
            (packet.desired_min_tx, packet.detect_multiplier) = (desired, multiplier)
        });
        assert_eq!(bench.session.detection_time(), Some(ms(detection)));
        assert_eq!(
            bench
                .session
                .handle_timeout(bench.now + ms(detection) - Duration::from_micros(1))
                .cause,
            None
        );
        assert_eq!(bench.session.state, SessionState::Up);
        assert_eq!(
            bench.session.handle_timeout(bench.now + ms(detection)).cause,
            Some(Cause::DetectionTimeExpired)
        );
        assert_eq!(
            (bench.session.state, bench.session.diagnostic),
            (SessionState::Down, Diagnostic::ControlDetectionTimeExpired)
        );
    }
    let mut bench = Bench::new();
    bench.receive(SessionState::Down, |packet| packet.desired_min_tx = 1_000_000);
    assert_eq!(bench.session.state, SessionState::Init);
    assert_eq!(
        bench.session.handle_timeout(bench.now + ms(3000)).cause,
        Some(Cause::DetectionTimeExpired)
    );
}

/// Beyond the RFC: silence of a peer that signaled Down is reported; silence after AdminDown is
/// not.
#[test]
fn silence_after_down_is_reported_and_changes_nothing() {
    for (signaled, reported) in
        [(SessionState::Down, Some(Cause::DetectionTimeExpired)), (SessionState::AdminDown, None)]
    {
        let mut bench = Bench::up();
        bench.receive(signaled, |_| {});
        let diagnostic = bench.session.diagnostic;
        assert_eq!(
            bench.session.handle_timeout(bench.now + ms(150)).cause,
            reported,
            "{signaled:?}"
        );
        assert_eq!(
            (bench.session.state, bench.session.diagnostic),
            (SessionState::Down, diagnostic)
        );
        assert_eq!(bench.session.handle_timeout(bench.now + ms(300)).cause, None, "once");
    }
}

/// §6.8.1, bfd.RemoteDiscr: void after a detection time of silence in whatever state.
#[test]
fn the_remote_discriminator_is_forgotten_after_the_detection_time() {
    let mut bench = Bench::new();
    bench.receive(SessionState::Up, |_| {});
    assert_eq!((bench.session.state, bench.send().your_discriminator), (SessionState::Down, 42));
    assert_eq!(bench.session.handle_timeout(bench.now + ms(150)).cause, None);
    assert_eq!(bench.send().your_discriminator, 0);
}

/// §6.8.3: not less than a second while the session is not up. §6.8.7: the contents have changed,
/// so the packet does not wait.
#[test]
fn slow_until_up_and_state_changes_at_once() {
    let mut bench = Bench::new();
    assert!(bench.session.is_due(bench.now), "the first packet");
    assert_eq!(bench.send().desired_min_tx, 1_000_000);
    assert_eq!(bench.send().required_min_rx, 50_000);
    let (waited, _) = bench.next_packet(ms(1000));
    assert!(waited >= ms(750), "{waited:?}");
    bench.receive(SessionState::Down, |_| {});
    assert!(bench.session.is_due(bench.now));
    assert_eq!((bench.send().state, bench.send().desired_min_tx), (SessionState::Init, 1_000_000));
    bench.receive(SessionState::Up, |_| {});
    let packet = bench.next_packet(ms(0)).1;
    assert_eq!(
        (packet.state, packet.desired_min_tx, packet.poll),
        (SessionState::Up, 50_000, true)
    );
    assert!(bench.next_packet(ms(50)).0 >= Duration::from_micros(37_500));
    bench.session.handle_timeout(bench.now + ms(150));
    let packet = bench.next_packet(ms(0)).1;
    assert_eq!(
        (packet.state, packet.desired_min_tx, packet.poll),
        (SessionState::Down, 1_000_000, false)
    );
    assert!(bench.next_packet(ms(1000)).0 >= ms(750));
}

/// §6.8.7: 75 to 100 % of the interval, drawn for every packet; 75 to 90 % with a multiplier of 1.
#[test]
fn jitter_of_section_6_8_7() {
    for (multiplier, longest) in [(3, 50), (1, 45)] {
        let mut bench = Bench::with(multiplier);
        bench.receive(SessionState::Init, |_| {});
        bench.send();
        let gaps: Vec<Duration> = (0..500).map(|_| bench.next_packet(ms(51)).0).collect();
        let step = Duration::from_micros(100);
        assert!(
            gaps.iter()
                .all(|gap| *gap >= Duration::from_micros(37_500) && *gap <= ms(longest) + step),
            "{gaps:?}"
        );
        let span = *gaps.iter().max().unwrap() - *gaps.iter().min().unwrap();
        assert!(
            span > (ms(longest) - Duration::from_micros(37_500)) * 9 / 10,
            "drawn from all of the range: {span:?}"
        );
    }
}

/// §6.8.2, §6.8.7: not faster than the other side can receive; not at all when it says 0; at once
/// when it shortens the interval (§6.8.3).
#[test]
fn the_rate_follows_what_the_other_side_can_receive() {
    let mut bench = Bench::up();
    bench.receive(SessionState::Up, |packet| packet.required_min_rx = 400_000);
    assert_eq!(bench.session.transmit_interval(), Some(ms(400)));
    bench.send();
    bench.now += ms(100);
    assert!(!bench.session.is_due(bench.now));
    bench.receive(SessionState::Up, |packet| packet.required_min_rx = 50_000);
    assert!(bench.session.is_due(bench.now), "the shorter interval is over already");
    bench.receive(SessionState::Up, |packet| packet.required_min_rx = 0);
    assert_eq!(bench.session.transmit_interval(), None);
    assert!(!bench.session.is_due(bench.now + ms(60_000)));
}

/// §6.8.7: no periodic packets to a system in Demand mode while both are up; polls excepted.
#[test]
fn demand_mode_of_the_other_side_silences_us() {
    let mut bench = Bench::up();
    bench.receive(SessionState::Up, |packet| packet.demand = true);
    assert_eq!(bench.session.transmit_interval(), None);
    bench.session.set_target(Target { interval: ms(100), multiplier: 3 });
    assert!(bench.next_packet(ms(50)).1.poll);
}

/// §6.5, §6.8.6, §6.8.7: P is answered with F at once, in whatever state but AdminDown, and never
/// with P.
#[test]
fn a_poll_is_answered_at_once() {
    let mut bench = Bench::up();
    bench.send();
    bench.session.set_target(Target { interval: ms(100), multiplier: 3 });
    let reception =
        bench.session.receive(&Repr { poll: true, ..packet(SessionState::Up) }, bench.now);
    assert!(reception.reply_final);
    let answer = bench.session.final_reply();
    assert!(answer.finished && !answer.poll, "even while polling ourselves");
    assert!(bench.next_packet(ms(50)).1.poll, "the periodic one is not replaced");
    bench.session.admin_down();
    assert!(
        !bench
            .session
            .receive(&Repr { poll: true, ..packet(SessionState::Up) }, bench.now)
            .reply_final
    );
}

/// §6.8.3: a longer transmit interval is announced with P, and used only after F; a shorter one is
/// used at once. Detection the other way round.
#[test]
fn changed_intervals_wait_for_the_end_of_the_poll_sequence() {
    let mut bench = Bench::up();
    bench.session.set_target(Target { interval: ms(200), multiplier: 3 });
    assert_eq!(bench.session.transmit_interval(), Some(ms(50)), "slower sending waits");
    assert_eq!(bench.session.detection_time(), Some(ms(600)), "slower detection does not");
    let packet = bench.next_packet(ms(50)).1;
    assert_eq!(
        (packet.poll, packet.desired_min_tx, packet.required_min_rx),
        (true, 200_000, 200_000)
    );
    assert!(bench.next_packet(ms(50)).1.poll, "until F comes");
    bench.receive(SessionState::Up, |packet| packet.finished = true);
    assert_eq!(bench.session.transmit_interval(), Some(ms(200)));
    bench.receive(SessionState::Up, |_| {});

    bench.session.set_target(Target { interval: ms(50), multiplier: 3 });
    assert_eq!(bench.session.transmit_interval(), Some(ms(50)), "faster sending does not wait");
    assert_eq!(bench.session.detection_time(), Some(ms(600)), "faster detection does");
    assert!(bench.next_packet(ms(50)).1.poll);
    bench.receive(SessionState::Up, |packet| packet.finished = true);
    assert_eq!(bench.session.detection_time(), Some(ms(150)));
}

/// §6.8.3: the F of one Poll Sequence must not pass for that of the next, and one that nobody asked
/// for ends nothing.
#[test]
fn a_second_change_waits_for_a_packet_without_f() {
    let mut bench = Bench::up();
    bench.session.set_target(Target { interval: ms(200), multiplier: 3 });
    bench.receive(SessionState::Up, |packet| packet.finished = true);
    assert!(bench.next_packet(ms(50)).1.poll, "F before the first P is not its answer");
    bench.session.set_target(Target { interval: ms(100), multiplier: 3 });
    assert_eq!(bench.next_packet(ms(50)).1.desired_min_tx, 200_000, "one change at a time");
    bench.receive(SessionState::Up, |packet| packet.finished = true);
    let packet = bench.next_packet(ms(200)).1;
    assert_eq!((packet.poll, packet.desired_min_tx), (false, 200_000));
    bench.receive(SessionState::Up, |_| {});
    let packet = bench.next_packet(ms(200)).1;
    assert_eq!((packet.poll, packet.desired_min_tx), (true, 100_000));
}

/// §6.8.3: a changed multiplier needs no Poll Sequence.
#[test]
fn the_multiplier_changes_without_a_poll() {
    let mut bench = Bench::up();
    bench.session.set_target(Target { interval: INTERVAL, multiplier: 6 });
    let packet = bench.next_packet(ms(50)).1;
    assert_eq!((packet.poll, packet.detect_multiplier), (false, 6));
}

/// §6.8.16: leaving and returning, with diagnostic 7.
#[test]
fn administrative_control_of_section_6_8_16() {
    let mut bench = Bench::up();
    assert_eq!(bench.session.admin_down(), Some(Cause::LocalAdminDown));
    assert_eq!(bench.session.admin_down(), None);
    let packet = bench.next_packet(ms(0)).1;
    assert_eq!(
        (packet.state, packet.diagnostic),
        (SessionState::AdminDown, Diagnostic::AdministrativelyDown)
    );
    assert_eq!(bench.session.admin_up(), Some(Cause::LocalAdminUp));
    assert_eq!(
        (bench.session.state, bench.session.diagnostic),
        (SessionState::Down, Diagnostic::None)
    );
}

/// Beyond the RFC: near misses lengthen the interval that we ask for, once they repeat; silence as
/// long as an outage does not.
#[test]
fn lateness_raises_the_interval_and_quiet_lowers_it() {
    let mut bench = Bench::up();
    let late = |bench: &mut Bench, gap: u64| {
        bench.now += ms(gap);
        bench.session.handle_timeout(bench.now);
        bench.session.receive(&packet(SessionState::Up), bench.now).late_after
    };
    for gap in [40, 100, 100, 100] {
        assert_eq!(late(&mut bench, gap), None, "one packet lost is nothing");
    }
    assert_eq!(late(&mut bench, 130), None, "once is chance");
    assert_eq!(late(&mut bench, 140), Some(ms(140)));
    let asked = bench.next_packet(ms(50)).1;
    assert_eq!((asked.poll, asked.required_min_rx, asked.desired_min_tx), (true, 66_666, 50_000));

    let mut bench = Bench::up();
    for gap in [180, 220] {
        late(&mut bench, gap);
    }
    assert_eq!(bench.session.required_min_rx(), ms(100), "as much as covers what happened twice");

    let mut bench = Bench::up();
    for _ in 0..5 {
        bench.now += ms(2000);
        bench.session.handle_timeout(bench.now);
        assert_eq!(
            bench.session.receive(&packet(SessionState::Up), bench.now).late_after,
            None,
            "an outage is to be detected"
        );
        bench.receive(SessionState::Init, |_| {});
    }
    assert_eq!(bench.session.required_min_rx(), ms(50));
}

/// Beyond the RFC: the side with the scheduling delay raises its multiplier; the other one, which
/// sees the same gap, does not raise its interval as well.
#[test]
fn lateness_is_answered_by_one_side_only() {
    let mut bench = Bench::up();
    for multiplier in [3, 6] {
        bench.now += ms(130);
        bench.receive(SessionState::Up, |packet| packet.detect_multiplier = multiplier);
    }
    assert_eq!(
        bench.session.required_min_rx(),
        ms(50),
        "the late packet announced twice the detection time"
    );

    let mut bench = Bench::up();
    for _ in 0..2 {
        bench.now += ms(130);
        bench.session.on_scheduling_delay(ms(90), bench.now);
        bench.receive(SessionState::Up, |_| {});
    }
    assert_eq!(
        bench.session.required_min_rx(),
        ms(50),
        "the packet may have been on time: the delay was here"
    );
}

/// Beyond the RFC: virtual machines of one host may be suspended together. After a scheduling delay
/// the peer gets one interval to send, once.
#[test]
fn a_scheduling_delay_gives_the_peer_one_interval() {
    let mut bench = Bench::up();
    bench.now += ms(400);
    bench.session.on_scheduling_delay(ms(360), bench.now);
    assert_eq!(bench.session.handle_timeout(bench.now + ms(49)).cause, None);
    bench.session.on_scheduling_delay(ms(60), bench.now + ms(49));
    assert_eq!(
        bench.session.handle_timeout(bench.now + ms(50)).cause,
        Some(Cause::DetectionTimeExpired),
        "once only"
    );

    let mut bench = Bench::up();
    bench.now += ms(149);
    bench.session.on_scheduling_delay(ms(20), bench.now);
    assert_eq!(
        bench.session.handle_timeout(bench.now + ms(1)).cause,
        Some(Cause::DetectionTimeExpired),
        "less than an interval is nothing"
    );
}

/// Beyond the RFC: a minute without near misses takes one step back.
#[test]
fn quiet_lowers_the_interval_slowly() {
    let mut bench = Bench::up();
    for _ in 0..2 {
        bench.now += ms(130);
        bench.receive(SessionState::Up, |_| {});
    }
    assert_eq!(bench.session.required_min_rx(), ms(50) * 4 / 3);
    let raised = bench.now;
    let lowered = loop {
        bench.now += ms(50);
        bench.receive(SessionState::Up, |_| {});
        if bench.session.handle_timeout(bench.now).lowered {
            break bench.now - raised;
        }
        assert!(bench.now < raised + ms(120_000));
    };
    assert!(lowered >= ms(60_000) && lowered < ms(61_000), "{lowered:?}");
    assert_eq!(bench.session.required_min_rx(), ms(50));
}
