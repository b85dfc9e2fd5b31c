use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::schedule::{BURST, FRAMES_PER_SLICE, SLICE};
use super::*;
use crate::domain::model::Interface;

pub(super) const OURS: Mac = [2, 0, 0, 0, 0, 1];
pub(super) const OTHER: Mac = [2, 0, 0, 0, 0, 2];
pub(super) const V4: &str = "192.0.2.10";
pub(super) const V6: &str = "fd00::10";

pub(super) fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn interface(index: u32, mac: Mac) -> Interface {
    Interface {
        index,
        name: format!("eth{index}").into(),
        mac: Some(mac),
        kind: "".into(),
        up: true,
        loopback: false,
        master: None,
        addresses: BTreeSet::new(),
    }
}

pub(super) fn interfaces(list: &[Interface]) -> Interfaces {
    list.iter().map(|i| (i.index, i.clone())).collect()
}

pub(super) fn wish(vips: &[&str], on: &[u32], probe: bool) -> BTreeMap<IpAddr, Announcement> {
    vips.iter()
        .map(|vip| (ip(vip), Announcement { interfaces: on.iter().copied().collect(), probe, standby: false, quiet: false }))
        .collect()
}

/// Frames with the time at which they were sent, and events.
#[derive(Default)]
pub(super) struct Log {
    pub frames: Vec<(Duration, Transmission)>,
    pub events: Vec<(Duration, AnnouncerEvent)>,
}

impl Log {
    pub fn times(&self) -> Vec<u64> {
        self.frames.iter().map(|(at, _)| at.as_millis() as u64).collect()
    }
}

/// Lets the clock run to `until`, stopping wherever the announcer wants to be polled.
pub(super) fn run(announcer: &mut Announcer, from: Duration, until: Duration) -> Log {
    let mut log = Log::default();
    let mut now = from;
    loop {
        announcer.poll(now);
        drain(announcer, now, &mut log);
        match announcer.next_deadline() {
            Some(next) if next <= until => now = now.max(next),
            _ => return log,
        }
    }
}

fn drain(announcer: &mut Announcer, now: Duration, log: &mut Log) {
    log.frames.extend(announcer.transmissions().map(|t| (now, t)));
    log.events.extend(announcer.events().map(|e| (now, e)));
}

pub(super) fn hear(announcer: &mut Announcer, ifindex: u32, frame: &[u8], now: Duration) -> Log {
    let mut log = Log::default();
    announcer.receive(ifindex, frame, now);
    drain(announcer, now, &mut log);
    log
}

pub(super) fn announcer() -> Announcer {
    Announcer::new(Config::default(), 42)
}

/// Announces `vips` on interface 1 since long ago.
pub(super) fn settled(vips: &[&str]) -> (Announcer, Duration) {
    let mut announcer = announcer();
    announcer.set(wish(vips, &[1], false), &interfaces(&[interface(1, OURS)]), ms(0));
    run(&mut announcer, ms(0), ms(10_000));
    (announcer, ms(10_000))
}

fn v4(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

pub(super) fn v6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

pub(super) fn arp_request(from: Mac, sender: &str, target: &str) -> arp::Repr {
    arp::Repr { sender: v4(sender), ..arp::Repr::probe(from, v4(target)) }
}

pub(super) fn solicitation(from: Mac, sender: &str, target: &str) -> ndp::Repr {
    let message = ndp::Message::Solicitation { link_layer: Some(from), nonce: None };
    ndp::Repr { source: v6(sender), message, ..ndp::Repr::probe(from, v6(target), [0; 6]) }
}

#[test]
fn a_burst_then_refreshes_in_both_forms() {
    let mut a = announcer();
    a.set(wish(&[V4], &[1], false), &interfaces(&[interface(1, OURS)]), ms(100));
    let log = run(&mut a, ms(100), ms(100 + 60_000 * 5));
    let times = log.times();
    assert_eq!(times[..14], [100, 100, 110, 110, 150, 150, 300, 300, 1100, 1100, 2100, 2100, 5100, 5100]);
    let refreshes: Vec<u64> = times[12..].iter().step_by(2).copied().collect();
    assert!(refreshes.len() >= 5, "{refreshes:?}");
    assert!(refreshes.windows(2).all(|w| (53_000..=66_000).contains(&(w[1] - w[0]))), "{refreshes:?}");
    for pair in log.frames.chunks(2) {
        assert_eq!(arp::Repr::parse(&pair[0].1.frame), Ok(arp::Repr::announcement(OURS, v4(V4))));
        assert_eq!(arp::Repr::parse(&pair[1].1.frame), Ok(arp::Repr::gratuitous_reply(OURS, v4(V4))));
    }
    assert!(log.events.is_empty());
}

#[test]
fn unsolicited_advertisements_override() {
    let mut a = announcer();
    a.set(wish(&[V6], &[1], false), &interfaces(&[interface(1, OURS)]), ms(0));
    let log = run(&mut a, ms(0), ms(6000));
    assert_eq!(log.times(), BURST.map(|d| d.as_millis() as u64));
    assert!(log.frames.iter().all(|(_, t)| ndp::Repr::parse(&t.frame) == Ok(ndp::Repr::announcement(OURS, v6(V6)))));
}

#[test]
fn probes_come_first_and_nothing_is_answered_meanwhile() {
    for vip in [V4, V6] {
        let mut a = announcer();
        a.set(wish(&[vip], &[1], true), &interfaces(&[interface(1, OURS)]), ms(0));
        let log = run(&mut a, ms(0), ms(999));
        assert_eq!(log.frames.len(), 3, "{vip}");
        for (n, (at, sent)) in log.frames.iter().enumerate() {
            let third = 1000 * n as u64 / 3;
            assert!((third..=third + 167).contains(&(at.as_millis() as u64)), "{vip}: probe {n} at {at:?}");
            assert!(arp::Repr::parse(&sent.frame).is_ok_and(|p| p.is_probe()) || ndp::Repr::parse(&sent.frame).is_ok_and(|p| p.is_probe()));
        }
        let question = if vip == V4 { arp_request(OTHER, "192.0.2.1", V4).to_vec() } else { solicitation(OTHER, "fd00::1", V6).to_vec() };
        assert!(hear(&mut a, 1, &question, ms(999)).frames.is_empty(), "{vip}");

        let log = run(&mut a, ms(999), ms(1000));
        assert_eq!(log.events, [(ms(1000), AnnouncerEvent::ProbeClear { vip: ip(vip) })]);
        assert!(!log.frames.is_empty(), "announced at once");
        assert_eq!(hear(&mut a, 1, &question, ms(1001)).frames.len(), 1);
    }
}

#[test]
fn without_probe_time_nothing_is_probed() {
    let mut a = Announcer::new(Config { probe_time: ms(0), ..Config::default() }, 1);
    a.set(wish(&[V4], &[1], true), &interfaces(&[interface(1, OURS)]), ms(0));
    let log = run(&mut a, ms(0), ms(0));
    assert_eq!(arp::Repr::parse(&log.frames[0].1.frame), Ok(arp::Repr::announcement(OURS, v4(V4))));
}

#[test]
fn who_claims_or_probes_at_the_same_time_is_a_conflict() {
    let advert = |solicited| ndp::Message::Advertisement { router: false, solicited, overriding: false, link_layer: None };
    let cases: Vec<(&str, &str, Vec<u8>)> = vec![
        ("announcement", V4, arp::Repr::announcement(OTHER, v4(V4)).to_vec()),
        ("gratuitous reply", V4, arp::Repr::gratuitous_reply(OTHER, v4(V4)).to_vec()),
        ("reply to our probe", V4, arp::Repr::probe(OURS, v4(V4)).reply(OTHER).to_vec()),
        ("request from it", V4, arp_request(OTHER, V4, "192.0.2.1").to_vec()),
        ("simultaneous probe", V4, arp::Repr::probe(OTHER, v4(V4)).to_vec()),
        ("advertisement", V6, ndp::Repr::announcement(OTHER, v6(V6)).to_vec()),
        ("advertisement without option", V6, ndp::Repr { message: advert(false), ..ndp::Repr::announcement(OTHER, v6(V6)) }.to_vec()),
        ("simultaneous detection", V6, ndp::Repr::probe(OTHER, v6(V6), [9; 6]).to_vec()),
    ];
    for (name, vip, frame) in cases {
        let mut a = announcer();
        a.set(wish(&[vip], &[1], true), &interfaces(&[interface(1, OURS)]), ms(0));
        run(&mut a, ms(0), ms(400));
        let log = hear(&mut a, 1, &frame, ms(400));
        assert_eq!(log.events, [(ms(400), AnnouncerEvent::Conflict { vip: ip(vip), ifindex: 1, mac: OTHER })], "{name}");
        let silence = run(&mut a, ms(400), ms(60_399));
        assert!(silence.frames.is_empty() && silence.events.is_empty(), "{name}");
        // The other one is gone by the next attempt.
        let log = run(&mut a, ms(60_400), ms(76_400));
        assert_eq!(log.events.iter().map(|(_, e)| e).collect::<Vec<_>>(), [&AnnouncerEvent::ProbeClear { vip: ip(vip) }], "{name}");
    }
}

#[test]
fn a_question_of_others_is_no_conflict() {
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
        assert_eq!(run(&mut a, ms(400), ms(1000)).events, [(ms(1000), AnnouncerEvent::ProbeClear { vip: ip(vip) })]);
        assert_eq!(a.counters().ignored, 1);
    }
}

#[test]
fn our_own_frames_coming_back_are_nothing() {
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
fn questions_are_answered_unicast() {
    let (mut a, now) = settled(&[V4, V6]);
    let log = hear(&mut a, 1, &arp_request(OTHER, "192.0.2.1", V4).to_vec(), now);
    let reply = arp::Repr::parse(&log.frames[0].1.frame).unwrap();
    assert_eq!((reply.operation, reply.sender_mac, reply.sender), (arp::Operation::Reply, OURS, v4(V4)));
    assert_eq!((reply.destination, reply.target_mac, reply.target), (OTHER, OTHER, v4("192.0.2.1")));

    for destination in [ndp::solicited_node(v6(V6)), v6(V6)] {
        let question = ndp::Repr { destination, ..solicitation(OTHER, "fd00::1", V6) };
        let log = hear(&mut a, 1, &question.to_vec(), now);
        let answer = ndp::Repr::parse(&log.frames[0].1.frame).unwrap();
        assert_eq!((answer.destination_mac, answer.destination, answer.target), (OTHER, v6("fd00::1"), v6(V6)));
        let expected = ndp::Message::Advertisement { router: false, solicited: true, overriding: true, link_layer: Some(OURS) };
        assert_eq!(answer.message, expected);
    }
    assert_eq!(a.counters().answered, 3);
}

#[test]
fn probes_of_others_are_defended() {
    let (mut a, now) = settled(&[V4, V6]);
    let log = hear(&mut a, 1, &arp::Repr::probe(OTHER, v4(V4)).to_vec(), now);
    assert_eq!(log.events, [(now, AnnouncerEvent::Defended { vip: ip(V4), ifindex: 1, mac: OTHER })]);
    let reply = arp::Repr::parse(&log.frames[0].1.frame).unwrap();
    assert_eq!((reply.sender, reply.sender_mac, reply.destination), (v4(V4), OURS, OTHER));

    let log = hear(&mut a, 1, &ndp::Repr::probe(OTHER, v6(V6), [3; 6]).to_vec(), now);
    assert_eq!(log.events, [(now, AnnouncerEvent::Defended { vip: ip(V6), ifindex: 1, mac: OTHER })]);
    assert_eq!(ndp::Repr::parse(&log.frames[0].1.frame), Ok(ndp::Repr::announcement(OURS, v6(V6))));

    let again = hear(&mut a, 1, &arp::Repr::probe(OTHER, v4(V4)).to_vec(), now + ms(10));
    assert_eq!((again.frames.len(), again.events.len()), (1, 0), "always answered, seldom reported");
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
        ("all nodes", 1, ndp::Repr { destination: ndp::ALL_NODES, ..solicitation(OTHER, "fd00::1", V6) }.to_vec()),
        ("truncated", 1, arp_request(OTHER, "192.0.2.1", V4).to_vec()[..41].to_vec()),
        ("empty", 1, vec![]),
        ("another protocol", 1, ethernet::Repr { destination: OURS, source: OTHER, ethertype: 0x0800 }.to_bytes().to_vec()),
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
fn a_rival_is_answered_by_an_announcement_once_a_second() {
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
        let expected = [0, 1000, 2000].map(|n| (now + ms(n), AnnouncerEvent::Contested { vip: ip(vip), ifindex: 1, mac: OTHER }));
        assert_eq!(events, expected);
        assert_eq!(frames, if vip == V4 { 6 } else { 3 });
        assert_eq!(a.counters().contested, 300);
    }
}

#[test]
fn links_that_come_and_go() {
    let (mut a, now) = settled(&[V4]);
    let wanted = || wish(&[V4], &[1, 2], false);
    let up = interface(1, OURS);
    let down = Interface { up: false, ..up.clone() };
    let question = arp_request(OTHER, "192.0.2.1", V4).to_vec();

    a.set(wanted(), &interfaces(std::slice::from_ref(&down)), now);
    assert_eq!(a.next_deadline(), None, "down: nothing to do");
    assert!(hear(&mut a, 1, &question, now).frames.is_empty(), "down: silent");

    a.set(wanted(), &interfaces(std::slice::from_ref(&up)), now + ms(100));
    assert_eq!(run(&mut a, now + ms(100), now + ms(100 + 5000)).frames.len(), 14, "up: a new burst");

    let later = now + ms(6000);
    a.set(wanted(), &interfaces(std::slice::from_ref(&up)), later);
    assert!(run(&mut a, later, later + ms(100)).frames.is_empty(), "nothing changed: nothing sent");

    a.set(wanted(), &interfaces(&[up.clone(), interface(2, OTHER)]), later);
    let log = run(&mut a, later, later + ms(5000));
    assert!(log.frames.len() == 14 && log.frames.iter().all(|(_, t)| t.ifindex == 2), "an interface that appears later");

    let later = later + ms(6000);
    let new_mac = [2, 0, 0, 0, 0, 7];
    a.set(wanted(), &interfaces(&[interface(1, new_mac), interface(2, OTHER)]), later);
    let log = run(&mut a, later, later + ms(5000));
    assert!(log.frames.len() == 14 && log.frames.iter().all(|(_, t)| t.ifindex == 1 && t.frame[6..12] == new_mac), "a new MAC");

    a.set(BTreeMap::new(), &interfaces(&[up]), later + ms(6000));
    assert_eq!((a.next_deadline(), a.timers.len(), a.places.len()), (None, 0, 0), "withdrawn: no memory");
    assert!(hear(&mut a, 1, &question, later + ms(6000)).frames.is_empty());
}

#[test]
fn interfaces_that_cannot_carry_it_are_left_out() {
    let base = interface(1, OURS);
    for odd in [
        Interface { mac: None, ..base.clone() },
        Interface { mac: Some([0; 6]), ..base.clone() },
        Interface { up: false, ..base.clone() },
        Interface { loopback: true, ..base.clone() },
    ] {
        let mut a = announcer();
        a.set(wish(&[V4, V6], &[1], false), &interfaces(&[odd]), ms(0));
        assert_eq!(a.next_deadline(), None);
    }
}

#[test]
fn probing_waits_for_a_link_and_starts_again_when_one_arrives() {
    let mut a = announcer();
    let clear = |at: u64| vec![(ms(at), AnnouncerEvent::ProbeClear { vip: ip(V4) })];
    a.set(wish(&[V4], &[1, 2], true), &Interfaces::new(), ms(0));
    assert_eq!(a.next_deadline(), None);
    a.set(wish(&[V4], &[1, 2], true), &interfaces(&[interface(1, OURS)]), ms(5000));
    assert!(run(&mut a, ms(5000), ms(5900)).events.is_empty());
    a.set(wish(&[V4], &[1, 2], true), &interfaces(&[interface(1, OURS), interface(2, OTHER)]), ms(5900));
    let log = run(&mut a, ms(5900), ms(6900));
    assert_eq!(log.events, clear(6900));
    assert_eq!(log.frames.iter().filter(|(_, t)| t.ifindex == 2 && t.frame[28..32] == [0; 4]).count(), 3, "probed there too");

    let mut a = announcer();
    a.set(wish(&[V4], &[1], true), &interfaces(&[interface(1, OURS)]), ms(0));
    run(&mut a, ms(0), ms(500));
    a.set(wish(&[V4], &[1], true), &Interfaces::new(), ms(500));
    assert_eq!(a.next_deadline(), None);
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
    assert_eq!(a.next_deadline(), None);
    assert!(hear(&mut a, 1, &arp::Repr::announcement(OTHER, v4(V4)).to_vec(), ms(401)).events.is_empty());
}

#[test]
fn a_crowd_is_spread_over_time() {
    let vips: Vec<String> = (0..5000u32).map(|n| Ipv4Addr::from(0x0a00_0000 + n).to_string()).collect();
    let names: Vec<&str> = vips.iter().map(String::as_str).collect();
    let mut a = announcer();
    a.set(wish(&names, &[1], false), &interfaces(&[interface(1, OURS)]), ms(0));
    let log = run(&mut a, ms(0), ms(10_000));
    assert_eq!(log.frames.len(), 5000 * 2 * BURST.len());
    let mut per_moment: BTreeMap<Duration, usize> = BTreeMap::new();
    for (at, _) in &log.frames {
        *per_moment.entry(*at).or_default() += 1;
    }
    let moments: Vec<Duration> = per_moment.keys().copied().collect();
    assert!(per_moment.values().all(|&n| n <= FRAMES_PER_SLICE + 1));
    let full: Vec<Duration> = per_moment.iter().filter(|(_, n)| **n >= FRAMES_PER_SLICE).map(|(at, _)| *at).collect();
    assert!(full.iter().all(|at| moments.iter().all(|next| next <= at || *next >= *at + SLICE)), "a pause after each full slice");
    let mut first = BTreeMap::new();
    for (at, sent) in &log.frames {
        first.entry(sent.frame[28..32].to_vec()).or_insert(*at);
    }
    assert_eq!(first.len(), 5000);
    assert!(first.values().all(|at| *at <= ms(320)), "everybody is announced once before the repetitions");
}

#[test]
fn refreshes_share_wakes() {
    let vips: Vec<String> = (0..1000u32).map(|n| Ipv4Addr::from(0x0a00_0000 + n).to_string()).collect();
    let names: Vec<&str> = vips.iter().map(String::as_str).collect();
    let mut a = announcer();
    a.set(wish(&names, &[1], false), &interfaces(&[interface(1, OURS)]), ms(0));
    run(&mut a, ms(0), ms(70_000));
    let (mut wakes, mut now) = (0, ms(70_000));
    while now < ms(130_000) {
        now = a.next_deadline().unwrap();
        a.poll(now);
        assert!(a.transmissions().count() > 0, "no wake for nothing");
        wakes += 1;
    }
    assert!(wakes < 150, "{wakes} wakes a minute for 1,000 VIPs");
}

/// Two hosts on one LAN that hears everything twice: A owns, B probes.
#[test]
fn the_owner_keeps_the_vip_and_the_newcomer_learns_who_has_it() {
    for vip in [V4, V6] {
        let mut a = announcer();
        let mut b = Announcer::new(Config::default(), 43);
        a.set(wish(&[vip], &[1], false), &interfaces(&[interface(1, OURS)]), ms(0));
        b.set(wish(&[vip], &[1], true), &interfaces(&[interface(1, OTHER)]), ms(20_000));
        let (log_a, log_b) = lan(&mut a, &mut b, ms(195_000));
        let conflicts: Vec<&AnnouncerEvent> = log_b.events.iter().map(|(_, event)| event).collect();
        let expected = AnnouncerEvent::Conflict { vip: ip(vip), ifindex: 1, mac: OURS };
        assert_eq!(conflicts, vec![&expected; 3], "{vip}: now and at each retry");
        assert!(log_a.events.iter().all(|(_, e)| matches!(e, AnnouncerEvent::Defended { mac: OTHER, .. })), "{vip}");
        assert_eq!(b.counters().announcements_sent, 0);
        assert_eq!(a.counters().contested, 0);
        assert!(a.counters().own > 0, "the LAN loops frames back");
    }
}

/// Both probe at once: who hears the other while probing steps back (RFC 5227 §2.1.1), and there are never two owners.
#[test]
fn of_newcomers_that_probe_at_the_same_time_one_wins() {
    for vip in [V4, V6] {
        for seed in 43..63 {
            let mut a = announcer();
            let mut b = Announcer::new(Config::default(), seed);
            a.set(wish(&[vip], &[1], true), &interfaces(&[interface(1, OURS)]), ms(0));
            b.set(wish(&[vip], &[1], true), &interfaces(&[interface(1, OTHER)]), ms(0));
            let (log_a, log_b) = lan(&mut a, &mut b, ms(400_000));
            let all = || log_a.events.iter().chain(&log_b.events).map(|(_, event)| event);
            assert!(all().any(|event| matches!(event, AnnouncerEvent::Conflict { .. })), "{vip}, seed {seed}");
            assert!(!all().any(|event| matches!(event, AnnouncerEvent::Contested { .. })), "{vip}, seed {seed}");
            let owners = [&a, &b].iter().filter(|host| host.counters().announcements_sent > 0).count();
            assert_eq!(owners, 1, "{vip}, seed {seed}");
        }
    }
}

/// Runs two announcers on interface 1 of one LAN; every frame reaches both, so each hears itself too.
fn lan(a: &mut Announcer, b: &mut Announcer, until: Duration) -> (Log, Log) {
    let (mut log_a, mut log_b) = (Log::default(), Log::default());
    while let Some(now) = a.next_deadline().into_iter().chain(b.next_deadline()).min().filter(|now| *now <= until) {
        a.poll(now);
        b.poll(now);
        loop {
            let frames: Vec<Transmission> = a.transmissions().chain(b.transmissions()).collect();
            if frames.is_empty() {
                break;
            }
            for frame in frames {
                a.receive(1, &frame.frame, now);
                b.receive(1, &frame.frame, now);
            }
        }
        drain(a, now, &mut log_a);
        drain(b, now, &mut log_b);
    }
    (log_a, log_b)
}

#[derive(Clone, Debug)]
enum Step {
    Set { vips: u8, probe: u8, links: u8, macs: u8, standby: u8 },
    Hear { frame: Vec<u8>, ifindex: u32 },
    Claim { vip: u8, ifindex: u32, probe: bool },
    Wait { millis: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        any::<[u8; 5]>().prop_map(|[vips, probe, links, macs, standby]| Step::Set { vips, probe, links, macs, standby }),
        (prop::collection::vec(any::<u8>(), 0..100), 0..4u32).prop_map(|(frame, ifindex)| Step::Hear { frame, ifindex }),
        (0..8u8, 0..4u32, any::<bool>()).prop_map(|(vip, ifindex, probe)| Step::Claim { vip, ifindex, probe }),
        (0..70_000u64).prop_map(|millis| Step::Wait { millis }),
    ]
}

proptest! {
    /// Whatever happens: every VIP that waits for something has exactly one timer, frames leave only usable interfaces and are valid,
    /// and no address is announced that nobody wants.
    #[test]
    fn no_sequence_of_events_leaves_a_trace(steps in prop::collection::vec(step(), 1..40)) {
        let vips: Vec<IpAddr> = (0..8u8).map(|n| if n % 2 == 0 { ip(&format!("192.0.2.{n}")) } else { ip(&format!("fd00::{n}")) }).collect();
        let mut a = announcer();
        let mut now = ms(0);
        let mut wanted: BTreeSet<IpAddr> = BTreeSet::new();
        let mut silent: BTreeSet<IpAddr> = BTreeSet::new();
        for step in steps {
            match step {
                Step::Set { vips: mask, probe, links, macs, standby } => {
                    let of = |n: usize, mask: u8| mask >> n & 1 == 1;
                    let desired: BTreeMap<IpAddr, Announcement> = vips.iter().enumerate().filter(|(n, _)| of(*n, mask)).map(|(n, vip)| {
                        let interfaces = (0..3u32).filter(|i| of(*i as usize, probe.rotate_left(n as u32))).collect();
                        (*vip, Announcement { interfaces, probe: of(n, probe), standby: of(n, standby), quiet: false })
                    }).collect();
                    silent = desired.iter().filter(|(_, wish)| wish.standby).map(|(vip, _)| *vip).collect();
                    wanted = desired.keys().copied().collect();
                    let list: Vec<Interface> = (0..3u32).filter(|i| of(*i as usize, links)).map(|i| Interface {
                        up: of(i as usize + 3, links),
                        ..interface(i, [2, 0, 0, 0, u8::from(of(i as usize, macs)), i as u8])
                    }).collect();
                    a.set(desired, &interfaces(&list), now);
                }
                Step::Hear { frame, ifindex } => a.receive(ifindex, &frame, now),
                Step::Claim { vip, ifindex, probe } => {
                    let frame = match (vips[usize::from(vip)], probe) {
                        (IpAddr::V4(vip), true) => arp::Repr::probe([2, 9, 9, 9, 9, 9], vip).to_vec(),
                        (IpAddr::V4(vip), false) => arp::Repr::announcement([2, 9, 9, 9, 9, 9], vip).to_vec(),
                        (IpAddr::V6(vip), true) => ndp::Repr::probe([2, 9, 9, 9, 9, 9], vip, [1; 6]).to_vec(),
                        (IpAddr::V6(vip), false) => ndp::Repr::announcement([2, 9, 9, 9, 9, 9], vip).to_vec(),
                    };
                    a.receive(ifindex, &frame, now);
                }
                Step::Wait { millis } => now += ms(millis),
            }
            a.poll(now);
            let links = a.links.clone();
            for sent in a.transmissions() {
                prop_assert!(links.contains_key(&sent.ifindex));
                let (about, probe) = match arp::Repr::parse(&sent.frame) {
                    Ok(packet) if packet.is_probe() => (IpAddr::V4(packet.target), true),
                    Ok(packet) => (IpAddr::V4(packet.sender), false),
                    Err(_) => ndp::Repr::parse(&sent.frame).map(|packet| (IpAddr::V6(packet.target), packet.is_probe())).unwrap(),
                };
                prop_assert!(wanted.contains(&about));
                prop_assert!(probe || !silent.contains(&about), "a standby said something");
            }
            a.events().for_each(drop);
            let pending = a.vips.values().filter(|vip| matches!(vip.standing, Standing::Probing { .. } | Standing::Refused { .. })).count();
            prop_assert_eq!(a.timers.len(), pending + a.places.len());
            let c = *a.counters();
            prop_assert_eq!(c.received, c.malformed + c.own + c.ignored + c.answered + c.conflicts + c.contested + c.heard);
        }
        a.set(BTreeMap::new(), &Interfaces::new(), now);
        prop_assert_eq!((a.timers.len(), a.places.len(), a.vips.len()), (0, 0, 0));
    }
}
