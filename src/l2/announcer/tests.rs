//! When announcements go out; and what the tests of the other files share.

pub(super) use std::collections::{BTreeMap, BTreeSet};
pub(super) use std::net::IpAddr;
use std::net::{Ipv4Addr, Ipv6Addr};
pub(super) use std::sync::Arc;
pub(super) use std::time::Duration;

use super::schedule::{BURST, FRAMES_PER_SLICE, SLICE};
use super::*;
pub(super) use crate::l2::{arp, ndp};
pub(super) use crate::model::Interfaces;
pub(super) use crate::model::gateways::Gateways;
pub(super) use crate::model::mac::Mac;
use crate::model::{Interface, fixtures};

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
    Interface { mac: Some(mac), ..fixtures::interface(index, &format!("eth{index}"), "") }
}

pub(super) fn interfaces(list: &[Interface]) -> Interfaces {
    list.iter().map(|i| (i.index, i.clone())).collect()
}

pub(super) fn wish(vips: &[&str], on: &[u32], probe: bool) -> BTreeMap<IpAddr, Announcement> {
    vips.iter()
        .map(|vip| {
            (
                ip(vip),
                Announcement {
                    interfaces: Arc::new(on.iter().copied().collect()),
                    probe,
                    standby: false,
                    quiet: false,
                },
            )
        })
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
        announcer.handle_timeout(now);
        drain(announcer, now, &mut log);
        match announcer.poll_timeout() {
            Some(next) if next <= until => now = now.max(next),
            _ => return log,
        }
    }
}

pub(super) fn drain(announcer: &mut Announcer, now: Duration, log: &mut Log) {
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
    Announcer::new(AnnouncerConfig::default(), 42)
}

/// Announces `vips` on interface 1 since long ago.
pub(super) fn settled(vips: &[&str]) -> (Announcer, Duration) {
    let mut announcer = announcer();
    announcer.set(wish(vips, &[1], false), &interfaces(&[interface(1, OURS)]), ms(0));
    run(&mut announcer, ms(0), ms(10_000));
    (announcer, ms(10_000))
}

pub(super) fn v4(text: &str) -> Ipv4Addr {
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
    assert_eq!(
        times[..14],
        [100, 100, 110, 110, 150, 150, 300, 300, 1100, 1100, 2100, 2100, 5100, 5100]
    );
    let refreshes: Vec<u64> = times[12..].iter().step_by(2).copied().collect();
    assert!(refreshes.len() >= 5, "{refreshes:?}");
    assert!(
        refreshes.windows(2).all(|w| (53_000..=66_000).contains(&(w[1] - w[0]))),
        "{refreshes:?}"
    );
    for pair in log.frames.chunks(2) {
        assert_eq!(arp::Repr::parse(&pair[0].1.frame), Ok(arp::Repr::announcement(OURS, v4(V4))));
        assert_eq!(
            arp::Repr::parse(&pair[1].1.frame),
            Ok(arp::Repr::gratuitous_reply(OURS, v4(V4)))
        );
    }
    assert!(log.events.is_empty());
}

#[test]
fn unsolicited_advertisements_override() {
    let mut a = announcer();
    a.set(wish(&[V6], &[1], false), &interfaces(&[interface(1, OURS)]), ms(0));
    let log = run(&mut a, ms(0), ms(6000));
    assert_eq!(log.times(), BURST.map(|d| d.as_millis() as u64));
    assert!(
        log.frames
            .iter()
            .all(|(_, t)| ndp::Repr::parse(&t.frame) == Ok(ndp::Repr::announcement(OURS, v6(V6))))
    );
}

#[test]
fn a_crowd_is_spread_over_time() {
    let vips: Vec<String> =
        (0..5000u32).map(|n| Ipv4Addr::from(0x0a00_0000 + n).to_string()).collect();
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
    let full: Vec<Duration> =
        per_moment.iter().filter(|(_, n)| **n >= FRAMES_PER_SLICE).map(|(at, _)| *at).collect();
    assert!(
        full.iter().all(|at| moments.iter().all(|next| next <= at || *next >= *at + SLICE)),
        "a pause after each full slice"
    );
    let mut first = BTreeMap::new();
    for (at, sent) in &log.frames {
        first.entry(sent.frame[28..32].to_vec()).or_insert(*at);
    }
    assert_eq!(first.len(), 5000);
    assert!(
        first.values().all(|at| *at <= ms(320)),
        "everybody is announced once before the repetitions"
    );
}

#[test]
fn refreshes_share_wakes() {
    let vips: Vec<String> =
        (0..1000u32).map(|n| Ipv4Addr::from(0x0a00_0000 + n).to_string()).collect();
    let names: Vec<&str> = vips.iter().map(String::as_str).collect();
    let mut a = announcer();
    a.set(wish(&names, &[1], false), &interfaces(&[interface(1, OURS)]), ms(0));
    run(&mut a, ms(0), ms(70_000));
    let (mut wakes, mut now) = (0, ms(70_000));
    while now < ms(130_000) {
        now = a.poll_timeout().unwrap();
        a.handle_timeout(now);
        assert!(a.transmissions().count() > 0, "no wake for nothing");
        wakes += 1;
    }
    assert!(wakes < 150, "{wakes} wakes a minute for 1,000 VIPs");
}
