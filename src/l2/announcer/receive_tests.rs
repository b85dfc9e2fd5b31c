//! Frames of others: requests, probes, claims, and own frames that the network loops back.

use super::tests::*;
use super::*;
use crate::l2::ethernet;

#[test]
fn looped_back_frames_are_ignored() {
    let ports = interfaces(&[interface(1, OURS), interface(2, OTHER)]);
    for vip in [V4, V6] {
        let mut a = announcer();
        a.set(wish(&[vip], &[1], true), &ports, ms(0));
        let probes = run(&mut a, ms(0), ms(400)).frames;
        let nonce_only = {
            let mut frame = probes[0].1.frame.clone();
            frame[6..12].copy_from_slice(&[2, 9, 9, 9, 9, 9]);
            frame
        };
        let from_port_2 = match ip(vip) {
            IpAddr::V4(vip) => arp::Repr::probe(OTHER, vip).to_vec(),
            IpAddr::V6(vip) => ndp::Repr::probe(OTHER, vip, [1; 6]).to_vec(),
        };
        for frame in [&probes[0].1.frame, &nonce_only, &from_port_2] {
            assert!(hear(&mut a, 1, frame, ms(400)).events.is_empty());
        }
        assert_eq!(a.counters().own, 3);
        let log = run(&mut a, ms(400), ms(1000));
        assert_eq!(log.events.len(), 1, "{vip} is clear");
        assert!(hear(&mut a, 1, &log.frames[0].1.frame, ms(1001)).events.is_empty());
    }
}

#[test]
fn requests_are_answered_unicast() {
    let (mut a, now) = settled(&[V4, V6]);
    let log = hear(&mut a, 1, &arp_request(OTHER, "192.0.2.1", V4).to_vec(), now);
    let reply = arp::Repr::parse(&log.frames[0].1.frame).unwrap();
    assert_eq!(
        (reply.operation, reply.sender_mac, reply.sender),
        (arp::Operation::Reply, OURS, v4(V4))
    );
    assert_eq!(
        (reply.destination, reply.target_mac, reply.target),
        (OTHER, OTHER, v4("192.0.2.1"))
    );

    for destination in [ndp::solicited_node(v6(V6)), v6(V6)] {
        let request = ndp::Repr { destination, ..solicitation(OTHER, "fd00::1", V6) };
        let log = hear(&mut a, 1, &request.to_vec(), now);
        let answer = ndp::Repr::parse(&log.frames[0].1.frame).unwrap();
        assert_eq!(
            (answer.destination_mac, answer.destination, answer.target),
            (OTHER, v6("fd00::1"), v6(V6))
        );
        let expected = ndp::Message::Advertisement {
            router: false,
            solicited: true,
            override_cache: true,
            link_layer: Some(OURS),
        };
        assert_eq!(answer.message, expected);
    }
    assert_eq!(a.counters().answered, 3);
}

#[test]
fn probes_of_others_are_defended() {
    let (mut a, now) = settled(&[V4, V6]);
    let log = hear(&mut a, 1, &arp::Repr::probe(OTHER, v4(V4)).to_vec(), now);
    assert_eq!(
        log.events,
        [(now, AnnouncerEvent::Defended { vip: ip(V4), ifindex: 1, mac: OTHER })]
    );
    let reply = arp::Repr::parse(&log.frames[0].1.frame).unwrap();
    assert_eq!((reply.sender, reply.sender_mac, reply.destination), (v4(V4), OURS, OTHER));

    let log = hear(&mut a, 1, &ndp::Repr::probe(OTHER, v6(V6), [3; 6]).to_vec(), now);
    assert_eq!(
        log.events,
        [(now, AnnouncerEvent::Defended { vip: ip(V6), ifindex: 1, mac: OTHER })]
    );
    assert_eq!(ndp::Repr::parse(&log.frames[0].1.frame), Ok(ndp::Repr::announcement(OURS, v6(V6))));

    let again = hear(&mut a, 1, &arp::Repr::probe(OTHER, v4(V4)).to_vec(), now + ms(10));
    assert_eq!(
        (again.frames.len(), again.events.len()),
        (1, 0),
        "always answered, seldom reported"
    );
}

#[test]
fn what_is_not_ours_gets_no_answer() {
    let (mut a, now) = settled(&[V4, V6]);
    let cases: Vec<(&str, u32, Vec<u8>)> = vec![
        ("another address", 1, arp_request(OTHER, "192.0.2.1", "192.0.2.11").to_vec()),
        ("another interface", 2, arp_request(OTHER, "192.0.2.1", V4).to_vec()),
        ("an interface that does not exist", 9, arp_request(OTHER, "192.0.2.1", V4).to_vec()),
        ("a reply to somebody", 1, arp_request(OTHER, V4, "192.0.2.1").reply(OTHER).to_vec()),
        ("another address, IPv6", 1, solicitation(OTHER, "fd00::1", "fd00::11").to_vec()),
        (
            "all nodes",
            1,
            ndp::Repr { destination: ndp::ALL_NODES, ..solicitation(OTHER, "fd00::1", V6) }
                .to_vec(),
        ),
        ("truncated", 1, arp_request(OTHER, "192.0.2.1", V4).to_vec()[..41].to_vec()),
        ("empty", 1, vec![]),
        (
            "another protocol",
            1,
            ethernet::Repr { destination: OURS, source: OTHER, ethertype: 0x0800 }
                .to_bytes()
                .to_vec(),
        ),
    ];
    let before = *a.counters();
    let n = cases.len() as u64;
    for (name, ifindex, frame) in cases {
        let log = hear(&mut a, ifindex, &frame, now);
        assert!(log.frames.is_empty() && log.events.is_empty(), "{name}");
    }
    let after = *a.counters();
    assert_eq!((after.received - before.received, after.malformed, after.ignored), (n, 2, n - 2));
}

#[test]
fn a_rival_is_reported_and_answered_once_a_second() {
    for (vip, claim) in [
        (V4, arp::Repr::announcement(OTHER, v4(V4)).to_vec()),
        (V4, arp_request(OTHER, V4, "192.0.2.1").to_vec()),
        (V6, ndp::Repr::announcement(OTHER, v6(V6)).to_vec()),
    ] {
        let (mut a, now) = settled(&[vip]);
        let mut events = Vec::new();
        let mut frames = 0;
        for n in 0..300 {
            let log = hear(&mut a, 1, &claim, now + ms(10 * n));
            frames += log.frames.len();
            events.extend(log.events);
        }
        let told: Vec<u64> = events.iter().map(|(at, _)| (*at - now).as_millis() as u64).collect();
        assert_eq!(told, (0..12).map(|n| n * 250).collect::<Vec<_>>(), "each quarter of a second");
        assert!(
            events
                .iter()
                .all(|(_, e)| *e
                    == AnnouncerEvent::Contested { vip: ip(vip), ifindex: 1, mac: OTHER })
        );
        assert_eq!(frames, if vip == V4 { 6 } else { 3 });
        assert_eq!(a.counters().contested, 300);
    }
}
