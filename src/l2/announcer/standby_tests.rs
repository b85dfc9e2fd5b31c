//! Standby, takeover, and repeated announcements against a rival.

use super::schedule::{FRAMES_PER_SLICE, SLICE};
use super::tests::*;
use super::*;

fn standby(vips: &[&str], probe: bool) -> BTreeMap<IpAddr, Announcement> {
    let mut wishes = wish(vips, &[1], probe);
    wishes.values_mut().for_each(|wish| wish.standby = true);
    wishes
}

fn claim(vip: &str) -> Vec<u8> {
    match ip(vip) {
        IpAddr::V4(vip) => arp::Repr::announcement(OTHER, vip).to_vec(),
        IpAddr::V6(vip) => ndp::Repr::announcement(OTHER, vip).to_vec(),
    }
}

fn request(vip: &str) -> Vec<u8> {
    match ip(vip) {
        IpAddr::V4(_) => arp_request(CLIENT, "192.0.2.77", vip).to_vec(),
        IpAddr::V6(_) => solicitation(CLIENT, "fd00::77", vip).to_vec(),
    }
}

const CLIENT: Mac = [2, 0, 0, 0, 0, 7];

#[test]
fn a_standby_observes_and_sends_nothing() {
    for vip in [V4, V6] {
        let mut a = announcer();
        a.set(standby(&[vip], false), &interfaces(&[interface(1, OURS)]), ms(0));
        assert!(run(&mut a, ms(0), ms(100_000)).frames.is_empty());
        assert!(hear(&mut a, 1, &request(vip), ms(100_000)).frames.is_empty());
        let log = hear(&mut a, 1, &claim(vip), ms(100_000));
        assert_eq!(
            log.events,
            [(ms(100_000), AnnouncerEvent::ClaimObserved { vip: ip(vip), ifindex: 1, mac: OTHER })]
        );
        assert!(log.frames.is_empty());
        assert!(hear(&mut a, 1, &claim(vip), ms(100_100)).events.is_empty(), "said a moment ago");
        assert_eq!(hear(&mut a, 1, &claim(vip), ms(100_250)).events.len(), 1);
        assert!(
            hear(&mut a, 2, &claim(vip), ms(100_600)).events.is_empty(),
            "not one of its interfaces"
        );
    }
}

#[test]
fn a_takeover_is_announced_by_broadcast_and_to_requesters_by_unicast() {
    for vip in [V4, V6] {
        let mut a = announcer();
        let links = interfaces(&[interface(1, OURS)]);
        a.set(standby(&[vip], false), &links, ms(0));
        hear(&mut a, 1, &request(vip), ms(500));
        a.set(wish(&[vip], &[1], false), &links, ms(1000));
        let log = run(&mut a, ms(1000), ms(1300));
        let personal: Vec<u64> = log
            .frames
            .iter()
            .filter(|(_, sent)| sent.frame[..6] == CLIENT)
            .map(|(at, sent)| {
                match ip(vip) {
                    IpAddr::V4(vip) => {
                        assert_eq!(
                            arp::Repr::parse(&sent.frame),
                            Ok(arp::Repr {
                                destination: CLIENT,
                                ..arp::Repr::announcement(OURS, vip)
                            })
                        )
                    }
                    IpAddr::V6(_) => assert_eq!(
                        ndp::Repr::parse(&sent.frame).map(|packet| packet.destination),
                        Ok(v6("fd00::77"))
                    ),
                }
                at.as_millis() as u64
            })
            .collect();
        assert_eq!(personal, [1000, 1050]);
        assert_eq!(log.times()[0], 1000, "the broadcast does not wait for them");
        assert_eq!(
            hear(&mut a, 1, &request(vip), ms(1300)).frames.len(),
            1,
            "and answers from now on"
        );
    }
}

/// Also when they never asked here; on the interface and in the family in which they are gateways.
#[test]
fn only_takeovers_are_announced_to_gateways_by_unicast() {
    const ROUTER: Mac = [2, 0, 0, 0, 0, 8];
    let gateways = Arc::new(Gateways::from([
        (
            1,
            [
                ("192.0.2.1", CLIENT),
                ("192.0.2.2", ROUTER),
                ("fe80::1", ROUTER),
                ("192.0.2.3", OURS),
            ]
            .map(|(a, mac)| (ip(a), mac))
            .into(),
        ),
        (2, [("192.0.2.1", OTHER), ("fe80::1", OTHER)].map(|(a, mac)| (ip(a), mac)).into()),
    ]));
    let links = interfaces(&[interface(1, OURS), interface(2, [2, 0, 0, 0, 0, 3])]);
    for vip in [V4, V6] {
        let mut a = announcer();
        a.set(standby(&[vip], false), &links, ms(0));
        a.set_gateways(gateways.clone());
        hear(&mut a, 1, &request(vip), ms(500));
        a.set(wish(&[vip], &[1], false), &links, ms(1000));
        let log = run(&mut a, ms(1000), ms(300_000));
        let to = |mac: Mac| log.frames.iter().filter(move |(_, sent)| sent.frame[..6] == mac);
        let times = |mac: Mac| to(mac).map(|(at, _)| at.as_millis() as u64).collect::<Vec<_>>();
        assert_eq!(times(ROUTER), [1010, 1200], "{vip}: not in refreshes");
        assert_eq!(times(CLIENT), [1000, 1050], "{vip}: one that asked is told once, and first");
        assert_eq!((times(OTHER).len(), times(OURS).len()), (0, 0), "{vip}");
        for (_, sent) in to(ROUTER) {
            match ip(vip) {
                IpAddr::V4(vip) => {
                    assert_eq!(
                        arp::Repr::parse(&sent.frame),
                        Ok(arp::Repr { destination: ROUTER, ..arp::Repr::announcement(OURS, vip) })
                    )
                }
                IpAddr::V6(vip) => {
                    let told = ndp::Repr {
                        destination_mac: ROUTER,
                        destination: v6("fe80::1"),
                        ..ndp::Repr::announcement(OURS, vip)
                    };
                    assert_eq!(ndp::Repr::parse(&sent.frame), Ok(told));
                }
            }
        }
        // It comes and goes again.
        let now = ms(300_000);
        a.set(standby(&[vip], false), &links, now);
        a.set(wish(&[vip], &[1], false), &links, now);
        let log = run(&mut a, now, now + ms(1000));
        assert_eq!(
            log.frames.iter().filter(|(_, sent)| sent.frame[..6] == ROUTER).count(),
            2,
            "{vip}: each time"
        );
    }
}

#[test]
fn a_new_standby_is_silent_at_once() {
    let (mut a, now) = settled(&[V4, V6]);
    a.set(standby(&[V4, V6], false), &interfaces(&[interface(1, OURS)]), now);
    assert!(run(&mut a, now, now + ms(200_000)).frames.is_empty());
    assert!(hear(&mut a, 1, &request(V4), now).frames.is_empty());
}

#[test]
fn probing_on_standby_reports_and_claims_nothing() {
    for vip in [V4, V6] {
        let mut a = announcer();
        let links = interfaces(&[interface(1, OURS)]);
        a.set(standby(&[vip], true), &links, ms(0));
        let log = run(&mut a, ms(0), ms(10_000));
        assert_eq!(log.frames.len(), PROBES as usize, "probes and no announcement");
        assert_eq!(log.events, [(ms(1000), AnnouncerEvent::ProbeClear { vip: ip(vip) })]);
        a.set(wish(&[vip], &[1], true), &links, ms(10_000));
        assert_eq!(
            run(&mut a, ms(10_000), ms(10_000)).times()[0],
            10_000,
            "clear already, so announced without asking again"
        );
    }
}

#[test]
fn the_last_word_is_the_owners() {
    // A rival that announces twice in a row and falls silent: the second must not be what clients
    // believe until the next refresh.
    let (mut a, now) = settled(&[V4]);
    let first = hear(&mut a, 1, &claim(V4), now);
    assert_eq!((first.frames.len(), first.events.len()), (2, 1));
    let second = hear(&mut a, 1, &claim(V4), now + ms(50));
    assert_eq!((second.frames.len(), second.events.len()), (0, 0), "limited");
    assert_eq!(run(&mut a, now + ms(50), now + ms(1000)).times(), [10_200, 10_200]);
    // One that insists gets no more than that.
    let mut sent = 0;
    for n in 0..10_000 {
        let at = now + ms(2000 + n);
        sent += hear(&mut a, 1, &claim(V4), at).frames.len() + run(&mut a, at, at).frames.len();
    }
    assert!((20..=120).contains(&sent), "{sent} frames in 10 s");
}

#[test]
fn owner_probes_obey_the_rate_limit() {
    let vips: Vec<String> = (0..4096).map(|n| format!("10.0.{}.{}", n / 256, n % 256)).collect();
    let names: Vec<&str> = vips.iter().map(String::as_str).collect();
    let links = interfaces(&[interface(1, OURS)]);
    let mut a = announcer();
    a.set(standby(&names, false), &links, ms(0));
    for at in [1000, 1001] {
        names.iter().for_each(|vip| a.request_probe(ip(vip), None, ms(at)));
        assert_eq!(a.transmissions().count(), 0, "not past the limit");
    }
    let log = run(&mut a, ms(1001), ms(2000));
    assert_eq!(log.frames.len(), names.len(), "each once");
    let burst = |from: Duration| {
        log.frames.iter().filter(|(at, _)| (from..from + SLICE).contains(at)).count()
    };
    assert!(log.frames.iter().all(|(at, _)| burst(*at) <= FRAMES_PER_SLICE));
    assert_eq!(a.poll_timeout(), None);

    a.request_probe(ip(names[0]), Some(OTHER), ms(3000));
    let log = run(&mut a, ms(3000), ms(3000));
    assert_eq!((log.frames.len(), &log.frames[0].1.frame[..6]), (1, &OTHER[..]), "one neighbor");

    // It takes the address before the request went out: a holder that asks gives up.
    a.request_probe(ip(names[0]), None, ms(4000));
    a.set(wish(&names[..1], &[1], false), &links, ms(4000));
    let log = run(&mut a, ms(4000), ms(4005));
    let sender = |frame: &[u8]| arp::Repr::parse(frame).map(|packet| packet.sender);
    assert!(
        !log.frames.is_empty()
            && log.frames.iter().all(|(_, sent)| sender(&sent.frame) == Ok(v4(names[0])))
    );
}
