//! The collection: who gets a packet, and who gets none. Every test names its rule.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::packet::{AuthenticationType, Key, Repr, SessionState};
use super::{packet, *};

fn ms(value: u64) -> Duration {
    Duration::from_millis(value)
}

fn key(interface: Option<u32>, host: u8) -> PeerKey {
    PeerKey { interface, address: IpAddr::from([10, 0, 0, host]) }
}

/// From a peer that does not know us.
fn hello() -> Repr {
    Repr {
        diagnostic: packet::Diagnostic::None,
        state: SessionState::Down,
        poll: false,
        finished: false,
        control_plane_independent: false,
        demand: false,
        detect_multiplier: 3,
        my_discriminator: 77,
        your_discriminator: 0,
        desired_min_tx: 1_000_000,
        required_min_rx: 50_000,
        required_min_echo_rx: 0,
        authentication: None,
    }
}

fn received(interface: u32, host: u8, payload: &[u8]) -> Received<'_> {
    Received {
        interface,
        source: IpAddr::from([10, 0, 0, host]),
        ttl: Some(255),
        multihop: false,
        payload,
    }
}

fn state(sessions: &Sessions, key: PeerKey) -> SessionState {
    sessions.status().iter().find(|session| session.peer == key).expect("a session").state
}

fn parsed(packet: &Outgoing) -> Repr {
    Repr::parse(packet.payload()).expect("we send what we can read")
}

/// One session, up.
fn up(config: BfdConfig) -> (Sessions, Repr) {
    let mut sessions = Sessions::new(config, 3);
    let first = sessions.add(key(Some(2), 9), Peer::default(), ms(0)).packets[0];
    let heard = Repr {
        state: SessionState::Init,
        your_discriminator: parsed(&first).my_discriminator,
        desired_min_tx: 50_000,
        ..hello()
    };
    sessions.handle(&received(2, 9, &heard.to_vec()), ms(1));
    assert_eq!(state(&sessions, key(Some(2), 9)), SessionState::Up);
    (sessions, Repr { state: SessionState::Up, ..heard })
}

/// RFC 5881 §5: whatever passed a router is not from this link. RFC 5883 has no such rule, but
/// another port.
#[test]
fn the_ttl_must_be_255_on_one_hop() {
    let mut sessions = Sessions::new(BfdConfig::default(), 1);
    sessions.add(key(Some(2), 9), Peer::default(), ms(0));
    sessions.add(key(None, 8), Peer { local: None, multihop: true }, ms(0));
    let hello = hello().to_vec();
    for ttl in [Some(254), Some(0), None] {
        let effects = sessions.handle(&Received { ttl, ..received(2, 9, &hello) }, ms(1));
        assert_eq!((effects.discarded, effects.packets.len()), (Some(Discard::Ttl), 0), "{ttl:?}");
    }
    assert_eq!(sessions.handle(&received(2, 9, &hello), ms(1)).discarded, None);
    let far = Received { ttl: Some(61), multihop: true, ..received(2, 8, &hello) };
    assert_eq!(sessions.handle(&far, ms(1)).discarded, None);
    assert_eq!(
        sessions
            .handle(&Received { multihop: true, ttl: Some(61), ..received(2, 9, &hello) }, ms(1))
            .discarded,
        Some(Discard::WrongPort)
    );
    assert_eq!(sessions.handle(&received(2, 8, &hello), ms(1)).discarded, Some(Discard::WrongPort));
}

/// RFC 5880 §6.3, §6.8.6: by our discriminator alone when it is there, else by interface and
/// source.
#[test]
fn demultiplexing() {
    let mut sessions = Sessions::new(BfdConfig::default(), 1);
    let ours =
        parsed(&sessions.add(key(Some(2), 9), Peer::default(), ms(0)).packets[0]).my_discriminator;
    sessions.add(key(Some(3), 9), Peer::default(), ms(0));
    sessions.add(key(None, 8), Peer::default(), ms(0));
    let known = |your_discriminator| Repr { your_discriminator, ..hello() }.to_vec();
    assert_eq!(sessions.handle(&received(3, 9, &hello().to_vec()), ms(1)).discarded, None);
    assert_eq!(
        (state(&sessions, key(Some(2), 9)), state(&sessions, key(Some(3), 9))),
        (SessionState::Down, SessionState::Init)
    );
    assert_eq!(
        sessions.handle(&received(7, 8, &hello().to_vec()), ms(1)).discarded,
        None,
        "any interface"
    );
    assert_eq!(state(&sessions, key(None, 8)), SessionState::Init);
    for (interface, host) in [(7, 9), (2, 7)] {
        assert_eq!(
            sessions.handle(&received(interface, host, &hello().to_vec()), ms(1)).discarded,
            Some(Discard::NoSession)
        );
    }
    assert_eq!(
        sessions.handle(&received(2, 9, &known(ours ^ 1)), ms(1)).discarded,
        Some(Discard::NoSession),
        "an earlier life of ours"
    );
    assert_eq!(
        sessions.handle(&received(7, 70, &known(ours)), ms(1)).discarded,
        None,
        "source and interface may change"
    );
    assert_eq!(state(&sessions, key(Some(2), 9)), SessionState::Init);
}

/// §6.8.6: a peer that has restarted does not know us; the session falls at once and is up again
/// soon, without waiting for silence.
#[test]
fn a_restarted_peer_is_noticed_at_once() {
    let (mut sessions, _) = up(BfdConfig::default());
    let effects = sessions
        .handle(&received(2, 9, &Repr { my_discriminator: 78, ..hello() }.to_vec()), ms(20));
    let [Event::Peer(event)] = &effects.events[..] else { panic!("{effects:?}") };
    assert_eq!(
        (event.state, event.cause, event.at),
        (SessionState::Down, Cause::NeighborDown, ms(20))
    );
    let answer = parsed(&effects.packets[0]);
    assert_eq!((answer.state, answer.your_discriminator), (SessionState::Down, 78));
}

fn secret(text: &str) -> Option<Authentication> {
    Some(Authentication {
        kind: AuthenticationType::MeticulousKeyedSha1,
        key_id: 1,
        key: Key::new(text.as_bytes()).expect("not empty"),
    })
}

fn signed(
    packet: &Repr,
    sequence: u32,
    key_id: u8,
    kind: AuthenticationType,
    secret: &str,
) -> Vec<u8> {
    let section = packet::Authentication { kind, key_id, sequence, digest: [0; 20] };
    let mut bytes = Repr { authentication: Some(section), ..*packet }.to_vec();
    packet::sign(&mut bytes, &Key::new(secret.as_bytes()).expect("not empty"));
    bytes
}

/// §6.7.4: type, key, window of the sequence number, digest; and the number is forgotten after
/// twice the detection time of silence (§6.8.1).
#[test]
fn meticulous_keyed_sha1() {
    let meticulous = AuthenticationType::MeticulousKeyedSha1;
    let mut sessions =
        Sessions::new(BfdConfig { authentication: secret("s"), ..BfdConfig::default() }, 1);
    let first = sessions.add(key(Some(2), 9), Peer::default(), ms(0)).packets[0];
    assert!(packet::is_signed(first.payload(), &Key::new(b"s").expect("not empty")));
    let mut take = |bytes: &[u8], now| {
        let effects = sessions.handle(&received(2, 9, bytes), now);
        (
            effects.discarded,
            effects
                .packets
                .iter()
                .map(|packet| parsed(packet).authentication.map(|section| section.sequence))
                .next(),
        )
    };
    let with = |sequence| signed(&hello(), sequence, 1, meticulous, "s");
    assert_eq!(take(&hello().to_vec(), ms(1)).0, Some(Discard::NotAuthenticated));
    assert_eq!(
        take(&signed(&hello(), 5, 1, AuthenticationType::KeyedSha1, "s"), ms(1)).0,
        Some(Discard::AuthenticationType)
    );
    assert_eq!(take(&signed(&hello(), 5, 2, meticulous, "s"), ms(1)).0, Some(Discard::KeyId));
    assert_eq!(take(&signed(&hello(), 5, 1, meticulous, "t"), ms(1)).0, Some(Discard::Digest));
    let start = u32::MAX - 2;
    let (taken, sequence) = take(&with(start), ms(1));
    assert_eq!(
        (taken, sequence),
        (None, Some(parsed(&first).authentication.map(|section| section.sequence.wrapping_add(1))))
    );
    for (sequence, expected) in [
        (start, Some(Discard::Sequence)),
        (start - 1, Some(Discard::Sequence)),
        (start.wrapping_add(10), Some(Discard::Sequence)),
        (start.wrapping_add(9), None),
        (start.wrapping_add(8), Some(Discard::Sequence)),
        (start.wrapping_add(10), None),
    ] {
        assert_eq!(take(&with(sequence), ms(2)).0, expected, "{sequence}");
    }
    let forged = signed(&hello(), start.wrapping_add(15), 1, meticulous, "t");
    assert_eq!(take(&forged, ms(3)).0, Some(Discard::Digest));
    assert_eq!(
        take(&with(start.wrapping_add(11)), ms(3)).0,
        None,
        "a forged packet does not move the window"
    );
    // The peer restarts: detection time 3 s, twice.
    for (now, expected) in
        [(3004, Some(Discard::Sequence)), (6002, Some(Discard::Sequence)), (6004, None)]
    {
        sessions.handle_timeout(ms(now));
        assert_eq!(
            sessions.handle(&received(2, 9, &with(12345)), ms(now)).discarded,
            expected,
            "{now}"
        );
    }
}

#[test]
fn a_packet_with_authentication_needs_a_session_with_it() {
    let (mut sessions, heard) = up(BfdConfig::default());
    let bytes = signed(&heard, 1, 1, AuthenticationType::MeticulousKeyedSha1, "s");
    assert_eq!(
        sessions.handle(&received(2, 9, &bytes), ms(2)).discarded,
        Some(Discard::UnexpectedAuthentication)
    );
    assert_eq!(sessions.status()[0].rejected, Some(Discard::UnexpectedAuthentication));
}

/// RFC 5880 §6.8.16: AdminDown is sent to a removed peer until it reacts; a peer that is added
/// again meanwhile keeps its session.
#[test]
fn a_removed_peer_is_sent_admin_down() {
    let (mut sessions, heard) = up(BfdConfig::default());
    let effects = sessions.set(&BTreeMap::new(), ms(10));
    assert!(matches!(
        &effects.events[..],
        [Event::Peer(SessionChange {
            state: SessionState::AdminDown,
            cause: Cause::LocalAdminDown,
            ..
        })]
    ));
    assert_eq!(parsed(&effects.packets[0]).state, SessionState::AdminDown);
    assert_eq!(
        sessions.handle(&received(2, 9, &heard.to_vec()), ms(11)).discarded,
        Some(Discard::AdminDown),
        "sent before AdminDown arrived"
    );
    assert!(!sessions.is_empty());
    sessions.handle(&received(2, 9, &Repr { state: SessionState::Down, ..heard }.to_vec()), ms(12));
    assert!(sessions.is_empty());

    let (mut sessions, heard) = up(BfdConfig::default());
    sessions.remove(key(Some(2), 9), ms(10));
    let effects = sessions.add(key(Some(2), 9), Peer::default(), ms(11));
    assert!(matches!(
        &effects.events[..],
        [Event::Peer(SessionChange { state: SessionState::Down, cause: Cause::LocalAdminUp, .. })]
    ));
    sessions.handle(&received(2, 9, &Repr { state: SessionState::Down, ..heard }.to_vec()), ms(12));
    assert_eq!(state(&sessions, key(Some(2), 9)), SessionState::Init);

    let (mut sessions, _) = up(BfdConfig::default());
    sessions.remove(key(Some(2), 9), ms(10));
    let mut sent = 0;
    while let Some(due) = sessions.poll_timeout() {
        sent += sessions.handle_timeout(due).packets.len();
        assert!(due < ms(4000), "no peer is waited for forever");
    }
    assert!(sent >= 4, "two more at once, then one a second: {sent}");
}

/// Sessions are not disturbed when other peers are added or removed.
#[test]
fn the_set_of_peers_changes_around_a_session() {
    let (mut sessions, _) = up(BfdConfig::default());
    let peers = [key(Some(2), 9), key(Some(2), 10)].map(|key| (key, Peer::default()));
    let effects = sessions.set(&BTreeMap::from(peers), ms(10));
    assert_eq!((effects.events, effects.packets.len()), (vec![], 1), "only the new one sends");
    sessions.set(&BTreeMap::from([peers[0]]), ms(11));
    assert_eq!(sessions.status().len(), 1, "a peer that never sent needs no AdminDown");
    assert_eq!(sessions.up(), [key(Some(2), 9)].into());
}

/// Beyond the RFC: all sessions together keep to the packet rate.
#[test]
fn many_sessions_raise_the_interval() {
    let mut sessions = Sessions::new(BfdConfig { packet_rate: 100, ..BfdConfig::default() }, 1);
    let peers = |count: u8| {
        (1..=count).map(|host| (key(Some(2), host), Peer::default())).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(sessions.set(&peers(4), ms(0)).events, vec![]);
    for (count, interval) in [(70, 800_000), (7, 80_000), (4, 50_000)] {
        let effects = sessions.set(&peers(count), ms(0));
        let expected = Adaptation {
            peer: None,
            cause: AdaptationCause::PacketBudget { sessions: count.into(), raised: count == 70 },
            interval: Duration::from_micros(interval),
            multiplier: 3,
            detection_time: None,
            at: ms(0),
        };
        assert_eq!(effects.events.last(), Some(&Event::Adapted(expected)), "after AdminDown");
    }
}

/// A stall is reported before anything that is read afterwards, and its end when new packets
/// arrived in all sessions that are up.
#[test]
fn a_stall_is_reported_and_ends_with_fresh_packets() {
    let (mut sessions, heard) = up(BfdConfig::default());
    let now = ms(30_000);
    assert_eq!(
        sessions.on_scheduling_delay(ms(29_900), now).events,
        vec![Event::Stalled { late: ms(29_900), at: now }]
    );
    let queued = sessions.handle(&received(2, 9, &heard.to_vec()), now);
    assert_eq!(queued.events, vec![], "a queued packet proves nothing about now");
    assert_eq!(sessions.resynced(now).events, vec![]);
    assert_eq!(sessions.handle_timeout(now).events, vec![], "but the peer is not declared down");
    let fresh = sessions.handle(&received(2, 9, &heard.to_vec()), now + ms(40));
    assert_eq!(fresh.events, vec![Event::Resynced { at: now + ms(40) }]);

    let (mut sessions, _) = up(BfdConfig::default());
    sessions.on_scheduling_delay(ms(29_900), now);
    sessions.resynced(now);
    assert_eq!(sessions.handle_timeout(now).events, vec![], "the peer gets one interval");
    let causes: Vec<Event> = sessions.handle_timeout(now + ms(50)).events;
    assert!(
        matches!(
            causes[..],
            [
                Event::Peer(SessionChange { cause: Cause::DetectionTimeExpired, .. }),
                Event::Resynced { .. }
            ]
        ),
        "{causes:?}"
    );
}

/// Beyond the RFC: the local clock may have stood still. That the peer's detection time expired is
/// reported before the end of its session, and lasts until packets arrive in the other sessions.
#[test]
fn remote_expiry_puts_all_sessions_in_doubt() {
    let (mut sessions, heard) = up(BfdConfig::default());
    sessions.add(key(Some(2), 8), Peer::default(), ms(1));
    let other = Repr { state: SessionState::Down, ..hello() };
    let ours = sessions
        .handle(&received(2, 8, &other.to_vec()), ms(2))
        .packets
        .last()
        .map(parsed)
        .expect("an answer")
        .my_discriminator;
    let other = Repr { state: SessionState::Up, your_discriminator: ours, ..other };
    sessions.handle(&received(2, 8, &other.to_vec()), ms(3));
    assert_eq!(sessions.up().len(), 2);

    let down = Repr {
        state: SessionState::Down,
        diagnostic: packet::Diagnostic::ControlDetectionTimeExpired,
        ..heard
    };
    let events = sessions.handle(&received(2, 9, &down.to_vec()), ms(20)).events;
    let expired = Event::RemoteDetectionExpired { peer: key(Some(2), 9), at: ms(20) };
    assert!(
        matches!(&events[..], [first, Event::Peer(SessionChange { cause: Cause::NeighborDown, .. })] if *first == expired),
        "{events:?}"
    );
    assert_eq!(sessions.resynced(ms(20)).events, vec![]);
    assert_eq!(
        sessions.handle(&received(2, 8, &other.to_vec()), ms(40)).events,
        vec![Event::Resynced { at: ms(40) }]
    );
}

/// The peer's sequence numbers went on during a suspension, so RFC 5880 §6.7.4 discards them. Only
/// later packets of this session count.
#[test]
fn remote_expiry_is_accepted_with_numbers_far_ahead() {
    let config = BfdConfig { authentication: secret("s"), ..BfdConfig::default() };
    for (ahead, digest, knows_us, counts) in [
        (40, "s", true, true),
        (40, "t", true, false),
        (40, "s", false, false),
        (0, "s", true, false),
        (u32::MAX - 40, "s", true, false),
    ] {
        let mut sessions = Sessions::new(config.clone(), 3);
        let first = parsed(&sessions.add(key(Some(2), 9), Peer::default(), ms(0)).packets[0]);
        let heard = Repr {
            state: SessionState::Init,
            your_discriminator: first.my_discriminator,
            desired_min_tx: 50_000,
            ..hello()
        };
        sessions.handle(
            &received(2, 9, &signed(&heard, 1000, 1, AuthenticationType::MeticulousKeyedSha1, "s")),
            ms(1),
        );
        assert_eq!(sessions.up().len(), 1);
        let your_discriminator = if knows_us { first.my_discriminator } else { 0 };
        let down = Repr {
            state: SessionState::Down,
            diagnostic: packet::Diagnostic::ControlDetectionTimeExpired,
            your_discriminator,
            ..heard
        };
        let effects = sessions.handle(
            &received(
                2,
                9,
                &signed(
                    &down,
                    1000u32.wrapping_add(ahead),
                    1,
                    AuthenticationType::MeticulousKeyedSha1,
                    digest,
                ),
            ),
            ms(20),
        );
        let expected = if counts {
            vec![Event::RemoteDetectionExpired { peer: key(Some(2), 9), at: ms(20) }]
        } else {
            vec![]
        };
        assert_eq!(
            (effects.discarded, effects.events),
            (Some(Discard::Sequence), expected),
            "{ahead} {digest} {knows_us}"
        );
        assert_eq!(sessions.up().len(), 1, "the session stays what it was");
    }
}

/// The remote detection time counts: the silence at the peer against the local multiplier as the
/// peer knows it. The peer's multiplier does not matter.
#[test]
fn a_stall_is_measured_by_the_remote_detection_time() {
    for theirs in [1, 3, 12] {
        for (silence, stalled) in [(149, false), (150, true), (200, true)] {
            let (mut sessions, heard) = up(BfdConfig::default());
            let heard = Repr { detect_multiplier: theirs, ..heard };
            sessions.handle(&received(2, 9, &heard.to_vec()), ms(100));
            sessions.handle_timeout(ms(100));
            // The next packet was due 40 ms later.
            let effects = sessions.on_scheduling_delay(ms(silence - 40), ms(100 + silence));
            assert_eq!(
                effects.events.iter().any(|event| matches!(event, Event::Stalled { .. })),
                stalled,
                "{theirs}: {silence} ms"
            );
        }
    }
}

/// Beyond the RFC: waking up late, repeatedly, makes peers wait longer for us; a suspension does
/// not.
#[test]
fn scheduling_delays_raise_the_multiplier() {
    let (mut sessions, heard) = up(BfdConfig::default());
    let speak = |sessions: &mut Sessions, now| {
        let answer = sessions.handle(&received(2, 9, &heard.to_vec()), ms(now)).packets;
        [answer, sessions.handle_timeout(ms(now)).packets].concat().last().map(parsed)
    };
    assert_eq!(sessions.on_scheduling_delay(ms(5000), ms(10_000)).events.len(), 1);
    speak(&mut sessions, 10_000);
    assert_eq!(
        sessions.on_scheduling_delay(ms(5000), ms(20_000)).events.len(),
        1,
        "stalls, no more"
    );
    speak(&mut sessions, 20_900);
    assert_eq!(sessions.on_scheduling_delay(ms(70), ms(21_000)).events, vec![]);
    speak(&mut sessions, 21_900);
    let raised = Adaptation {
        peer: None,
        cause: AdaptationCause::SchedulingDelay(ms(70)),
        interval: ms(50),
        multiplier: 4,
        detection_time: None,
        at: ms(22_000),
    };
    assert_eq!(
        sessions.on_scheduling_delay(ms(70), ms(22_000)).events,
        vec![Event::Adapted(raised)]
    );
    assert_eq!(
        sessions.remote_detection_deadline(ms(22_000)),
        ms(21_900 + 150),
        "no packet has announced it yet"
    );
    assert_eq!(speak(&mut sessions, 22_000).map(|packet| packet.detect_multiplier), Some(4));
    assert_eq!(
        sessions.on_scheduling_delay(ms(149), ms(22_199)).events,
        vec![],
        "peers wait for 200 ms by now"
    );
    assert!(matches!(
        sessions.on_scheduling_delay(ms(150), ms(22_200)).events.last(),
        Some(Event::Stalled { .. })
    ));
}
