//! Probing before the first claim: when, what ends it, and what is no objection.

use super::tests::*;
use super::*;

#[test]
fn probes_come_first_and_nothing_is_answered_meanwhile() {
    for vip in [V4, V6] {
        let mut a = announcer();
        a.set(wish(&[vip], &[1], true), &interfaces(&[interface(1, OURS)]), ms(0));
        let log = run(&mut a, ms(0), ms(999));
        assert_eq!(log.frames.len(), 3, "{vip}");
        for (n, (at, sent)) in log.frames.iter().enumerate() {
            let third = 1000 * n as u64 / 3;
            assert!(
                (third..=third + 167).contains(&(at.as_millis() as u64)),
                "{vip}: probe {n} at {at:?}"
            );
            assert!(
                arp::Repr::parse(&sent.frame).is_ok_and(|p| p.is_probe())
                    || ndp::Repr::parse(&sent.frame).is_ok_and(|p| p.is_probe())
            );
        }
        let request = if vip == V4 {
            arp_request(OTHER, "192.0.2.1", V4).to_vec()
        } else {
            solicitation(OTHER, "fd00::1", V6).to_vec()
        };
        assert!(hear(&mut a, 1, &request, ms(999)).frames.is_empty(), "{vip}");

        let log = run(&mut a, ms(999), ms(1000));
        assert_eq!(log.events, [(ms(1000), AnnouncerEvent::ProbeClear { vip: ip(vip) })]);
        assert!(!log.frames.is_empty(), "announced at once");
        assert_eq!(hear(&mut a, 1, &request, ms(1001)).frames.len(), 1);
    }
}

#[test]
fn without_probe_time_nothing_is_probed() {
    let mut a =
        Announcer::new(AnnouncerConfig { probe_time: ms(0), ..AnnouncerConfig::default() }, 1);
    a.set(wish(&[V4], &[1], true), &interfaces(&[interface(1, OURS)]), ms(0));
    let log = run(&mut a, ms(0), ms(0));
    assert_eq!(arp::Repr::parse(&log.frames[0].1.frame), Ok(arp::Repr::announcement(OURS, v4(V4))));
}

#[test]
fn who_claims_or_probes_at_the_same_time_is_a_conflict() {
    let advert = |solicited| ndp::Message::Advertisement {
        router: false,
        solicited,
        override_cache: false,
        link_layer: None,
    };
    let cases: Vec<(&str, &str, Vec<u8>)> = vec![
        ("announcement", V4, arp::Repr::announcement(OTHER, v4(V4)).to_vec()),
        ("gratuitous reply", V4, arp::Repr::gratuitous_reply(OTHER, v4(V4)).to_vec()),
        ("reply to our probe", V4, arp::Repr::probe(OURS, v4(V4)).reply(OTHER).to_vec()),
        ("request from it", V4, arp_request(OTHER, V4, "192.0.2.1").to_vec()),
        ("simultaneous probe", V4, arp::Repr::probe(OTHER, v4(V4)).to_vec()),
        ("advertisement", V6, ndp::Repr::announcement(OTHER, v6(V6)).to_vec()),
        (
            "advertisement without option",
            V6,
            ndp::Repr { message: advert(false), ..ndp::Repr::announcement(OTHER, v6(V6)) }.to_vec(),
        ),
        ("simultaneous detection", V6, ndp::Repr::probe(OTHER, v6(V6), [9; 6]).to_vec()),
    ];
    for (name, vip, frame) in cases {
        let mut a = announcer();
        a.set(wish(&[vip], &[1], true), &interfaces(&[interface(1, OURS)]), ms(0));
        run(&mut a, ms(0), ms(400));
        let log = hear(&mut a, 1, &frame, ms(400));
        assert_eq!(
            log.events,
            [(ms(400), AnnouncerEvent::Conflict { vip: ip(vip), ifindex: 1, mac: OTHER })],
            "{name}"
        );
        let silence = run(&mut a, ms(400), ms(60_399));
        assert!(silence.frames.is_empty() && silence.events.is_empty(), "{name}");
        // The other one is gone by the next attempt.
        let log = run(&mut a, ms(60_400), ms(76_400));
        assert_eq!(
            log.events.iter().map(|(_, e)| e).collect::<Vec<_>>(),
            [&AnnouncerEvent::ProbeClear { vip: ip(vip) }],
            "{name}"
        );
    }
}

#[test]
fn a_request_of_others_is_no_conflict() {
    let cases = [
        (V4, arp_request(OTHER, "192.0.2.1", V4).to_vec()),
        (V4, arp::Repr::announcement(OTHER, v4("192.0.2.11")).to_vec()),
        (V6, solicitation(OTHER, "fd00::1", V6).to_vec()),
        (V6, ndp::Repr::announcement(OTHER, v6("fd00::11")).to_vec()),
    ];
    for (vip, frame) in cases {
        let mut a = announcer();
        a.set(wish(&[vip], &[1], true), &interfaces(&[interface(1, OURS)]), ms(0));
        run(&mut a, ms(0), ms(400));
        hear(&mut a, 1, &frame, ms(400));
        assert_eq!(
            run(&mut a, ms(400), ms(1000)).events,
            [(ms(1000), AnnouncerEvent::ProbeClear { vip: ip(vip) })]
        );
        assert_eq!(a.counters().ignored, 1);
    }
}

#[test]
fn probing_waits_for_a_link_and_starts_again_when_one_arrives() {
    let mut a = announcer();
    let clear = |at: u64| vec![(ms(at), AnnouncerEvent::ProbeClear { vip: ip(V4) })];
    a.set(wish(&[V4], &[1, 2], true), &Interfaces::new(), ms(0));
    assert_eq!(a.poll_timeout(), None);
    a.set(wish(&[V4], &[1, 2], true), &interfaces(&[interface(1, OURS)]), ms(5000));
    assert!(run(&mut a, ms(5000), ms(5900)).events.is_empty());
    a.set(
        wish(&[V4], &[1, 2], true),
        &interfaces(&[interface(1, OURS), interface(2, OTHER)]),
        ms(5900),
    );
    let log = run(&mut a, ms(5900), ms(6900));
    assert_eq!(log.events, clear(6900));
    assert_eq!(
        log.frames.iter().filter(|(_, t)| t.ifindex == 2 && t.frame[28..32] == [0; 4]).count(),
        3,
        "probed there too"
    );

    let mut a = announcer();
    a.set(wish(&[V4], &[1], true), &interfaces(&[interface(1, OURS)]), ms(0));
    run(&mut a, ms(0), ms(500));
    a.set(wish(&[V4], &[1], true), &Interfaces::new(), ms(500));
    assert_eq!(a.poll_timeout(), None);
    a.set(wish(&[V4], &[1], true), &interfaces(&[interface(1, OURS)]), ms(700));
    assert_eq!(run(&mut a, ms(700), ms(1700)).events, clear(1700));
}

#[test]
fn the_wish_for_probing_can_be_dropped_and_does_not_return() {
    let one = interfaces(&[interface(1, OURS)]);
    let mut a = announcer();
    a.set(wish(&[V4], &[1], true), &one, ms(0));
    run(&mut a, ms(0), ms(100));
    a.set(wish(&[V4], &[1], false), &one, ms(100));
    let log = run(&mut a, ms(100), ms(100));
    assert_eq!(log.times(), [100, 100]);
    a.set(wish(&[V4], &[1], true), &one, ms(200));
    let log = run(&mut a, ms(200), ms(6000));
    assert!(log.events.is_empty() && log.frames.len() == 12, "the burst goes on");
    assert_eq!(a.timers.len(), 1);
}

#[test]
fn withdrawn_while_probing() {
    let mut a = announcer();
    a.set(wish(&[V4], &[1], true), &interfaces(&[interface(1, OURS)]), ms(0));
    run(&mut a, ms(0), ms(400));
    a.set(BTreeMap::new(), &interfaces(&[interface(1, OURS)]), ms(400));
    assert_eq!(a.poll_timeout(), None);
    assert!(
        hear(&mut a, 1, &arp::Repr::announcement(OTHER, v4(V4)).to_vec(), ms(401))
            .events
            .is_empty()
    );
}
