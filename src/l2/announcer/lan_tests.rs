//! Two announcers on one LAN, and one under any sequence of events.

use proptest::prelude::*;

use super::tests::*;
use super::*;
use crate::model::Interface;

/// Two hosts on one LAN that hears everything twice: A owns, B probes.
#[test]
fn the_owner_keeps_the_vip_and_the_newcomer_learns_who_has_it() {
    for vip in [V4, V6] {
        let mut a = announcer();
        let mut b = Announcer::new(AnnouncerConfig::default(), 43);
        a.set(wish(&[vip], &[1], false), &interfaces(&[interface(1, OURS)]), ms(0));
        b.set(wish(&[vip], &[1], true), &interfaces(&[interface(1, OTHER)]), ms(20_000));
        let (log_a, log_b) = lan(&mut a, &mut b, ms(195_000));
        let conflicts: Vec<&AnnouncerEvent> = log_b.events.iter().map(|(_, event)| event).collect();
        let expected = AnnouncerEvent::Conflict { vip: ip(vip), ifindex: 1, mac: OURS };
        assert_eq!(conflicts, vec![&expected; 3], "{vip}: now and at each retry");
        assert!(
            log_a
                .events
                .iter()
                .all(|(_, e)| matches!(e, AnnouncerEvent::Defended { mac: OTHER, .. })),
            "{vip}"
        );
        assert_eq!(b.counters().announcements_sent, 0);
        assert_eq!(a.counters().contested, 0);
        assert!(a.counters().own > 0, "the LAN loops frames back");
    }
}

/// Both probe at once: a host that sees the other's probe while probing yields (RFC 5227 §2.1.1),
/// and there are never two owners.
#[test]
fn of_newcomers_that_probe_at_the_same_time_one_wins() {
    for vip in [V4, V6] {
        for seed in 43..63 {
            let mut a = announcer();
            let mut b = Announcer::new(AnnouncerConfig::default(), seed);
            a.set(wish(&[vip], &[1], true), &interfaces(&[interface(1, OURS)]), ms(0));
            b.set(wish(&[vip], &[1], true), &interfaces(&[interface(1, OTHER)]), ms(0));
            let (log_a, log_b) = lan(&mut a, &mut b, ms(400_000));
            let all = || log_a.events.iter().chain(&log_b.events).map(|(_, event)| event);
            assert!(
                all().any(|event| matches!(event, AnnouncerEvent::Conflict { .. })),
                "{vip}, seed {seed}"
            );
            assert!(
                !all().any(|event| matches!(event, AnnouncerEvent::Contested { .. })),
                "{vip}, seed {seed}"
            );
            let owners =
                [&a, &b].iter().filter(|host| host.counters().announcements_sent > 0).count();
            assert_eq!(owners, 1, "{vip}, seed {seed}");
        }
    }
}

/// Runs two announcers on interface 1 of one LAN; every frame reaches both, so each hears itself
/// too.
fn lan(a: &mut Announcer, b: &mut Announcer, until: Duration) -> (Log, Log) {
    let (mut log_a, mut log_b) = (Log::default(), Log::default());
    while let Some(now) =
        a.poll_timeout().into_iter().chain(b.poll_timeout()).min().filter(|now| *now <= until)
    {
        a.handle_timeout(now);
        b.handle_timeout(now);
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
        any::<[u8; 5]>().prop_map(|[vips, probe, links, macs, standby]| Step::Set {
            vips,
            probe,
            links,
            macs,
            standby
        }),
        (prop::collection::vec(any::<u8>(), 0..100), 0..4u32)
            .prop_map(|(frame, ifindex)| Step::Hear { frame, ifindex }),
        (0..8u8, 0..4u32, any::<bool>()).prop_map(|(vip, ifindex, probe)| Step::Claim {
            vip,
            ifindex,
            probe
        }),
        (0..70_000u64).prop_map(|millis| Step::Wait { millis }),
    ]
}

proptest! {
    /// Whatever happens: every VIP that waits for something has exactly one timer, frames leave
    /// only usable interfaces and are valid, and no address is announced that nobody wants.
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
                        let interfaces = Arc::new((0..3u32).filter(|i| of(*i as usize, probe.rotate_left(n as u32))).collect());
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
            a.handle_timeout(now);
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
            let pending = a.vips.values().filter(|vip| vip.state.timer().is_some()).count();
            prop_assert_eq!(a.timers.len(), pending + a.presences.len());
            let c = *a.counters();
            prop_assert_eq!(c.received, c.malformed + c.own + c.ignored + c.answered + c.conflicts + c.contested + c.observed);
        }
        a.set(BTreeMap::new(), &Interfaces::new(), now);
        prop_assert_eq!((a.timers.len(), a.presences.len(), a.vips.len()), (0, 0, 0));
    }
}
