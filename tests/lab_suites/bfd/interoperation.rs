//! Sessions with FRR and BIRD: they come up on both sides, and each side notices the other's
//! failure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pinnace::bfd::io::{BfdOptions, StartError};
use pinnace::bfd::packet::{Diagnostic, SessionState};
use pinnace::bfd::{BfdConfig, Cause, Discard, Event, Peer, PeerKey, io};
use rustix::process::Signal;

use super::others::{Bird, Frr};
use super::speaker::{Speaker, both, secret};
use super::{ENDS, Link, SLACK, eventually, ip};
use crate::lab::Namespace;

fn frr_up(frr: &Frr) {
    for (ours, _) in ENDS {
        eventually(&format!("FRR has {ours} up"), || {
            frr.view(ours).and_then(|view| if view.up { Ok(()) } else { Err(format!("{view:?}")) })
        });
    }
}

fn frr_down(frr: &Frr, diagnostic: &str, remote_diagnostic: &str) {
    for (ours, _) in ENDS {
        eventually(&format!("FRR has {ours} down"), || {
            let view = frr.view(ours)?;
            let right = !view.up
                && view.diagnostic == diagnostic
                && (remote_diagnostic.is_empty() || view.remote_diagnostic == remote_diagnostic);
            if right { Ok(()) } else { Err(format!("{view:?}")) }
        });
    }
}

fn bird_says(bird: &Bird, state: &str) {
    for (ours, _) in ENDS {
        eventually(&format!("BIRD has {ours} {state}"), || {
            let found = bird.state(ours)?;
            if found == state { Ok(()) } else { Err(found) }
        });
    }
}

/// Freezes the other side, and measures.
fn frozen_is_detected(speaker: &Speaker, freeze: impl FnOnce()) {
    let detection = speaker.detection_time();
    for (_, event) in speaker.take() {
        if let Event::Adapted(change) = event {
            println!("{change:?}");
        }
    }
    let start = Instant::now();
    freeze();
    let (at, events) = speaker.both_say(Cause::DetectionTimeExpired);
    for event in events {
        assert_eq!(
            (event.state, event.diagnostic),
            (SessionState::Down, Diagnostic::ControlDetectionTimeExpired),
            "RFC 5880 §6.8.4"
        );
    }
    let took = at - start;
    assert!(
        took > detection / 2 && took < detection + SLACK,
        "noticed after {took:?} instead of {detection:?}"
    );
}

#[test]
fn frr_over_both_families() {
    let link = Link::new();
    let frr = Frr::start(&link);
    let speaker = Speaker::start(&link, BfdConfig::default(), both(&link));
    frr_up(&frr);
    speaker.wait_up();
    std::thread::sleep(Duration::from_secs(1));
    let totals = speaker.handle.counters().totals();
    assert_eq!(
        (totals.discarded, totals.send_failed, totals.receive_failed),
        (Default::default(), 0, 0),
        "{totals:?}"
    );

    frozen_is_detected(&speaker, || frr.0.signal(Signal::STOP));
    frr.0.signal(Signal::CONT);
    speaker.wait_up();
    frr_up(&frr);

    // As after a crash: no AdminDown.
    drop(speaker);
    frr_down(&frr, "control detection time expired", "");
    let speaker = Speaker::start(&link, BfdConfig::default(), both(&link));
    frr_up(&frr);
    speaker.wait_up();

    // FRR's operator takes the sessions down: no failure.
    drop(speaker.take());
    let peers = ENDS.map(|(ours, theirs)| format!("peer {ours} local-address {theirs}"));
    for peer in &peers {
        frr.vtysh(&["configure terminal", "bfd", peer, "shutdown"]).unwrap();
    }
    let (_, events) = speaker.both_say(Cause::NeighborAdminDown);
    assert!(
        events.iter().all(|event| event.diagnostic == Diagnostic::NeighborSignaledSessionDown),
        "{events:?}"
    );
    for peer in &peers {
        frr.vtysh(&["configure terminal", "bfd", peer, "no shutdown"]).unwrap();
    }
    frr_up(&frr);
    speaker.wait_up();

    // Ours does.
    let start = Instant::now();
    speaker.handle.stop(Duration::from_secs(5));
    assert!(start.elapsed() < Duration::from_secs(3), "they have heard it: {:?}", start.elapsed());
    frr_down(&frr, "neighbor signaled session down", "administratively down");
}

fn bird_over_both_families(password: Option<&str>) {
    let link = Link::new();
    let bird = Bird::start(&link, password);
    let config = BfdConfig { authentication: password.and_then(secret), ..BfdConfig::default() };
    let speaker = Speaker::start(&link, config.clone(), both(&link));
    bird_says(&bird, "Up");
    speaker.wait_up();
    frozen_is_detected(&speaker, || bird.0.signal(Signal::STOP));
    bird.0.signal(Signal::CONT);
    speaker.wait_up();
    bird_says(&bird, "Up");
    drop(speaker);
    bird_says(&bird, "Down");
    // A new process begins with another sequence number (RFC 5880 §6.7.4).
    let speaker = Speaker::start(&link, config, both(&link));
    bird_says(&bird, "Up");
    speaker.wait_up();
    let start = Instant::now();
    speaker.handle.stop(Duration::from_secs(5));
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    bird_says(&bird, "Down");
}

#[test]
fn bird_over_both_families_without_authentication() {
    bird_over_both_families(None);
}

#[test]
fn bird_over_both_families_with_meticulous_keyed_sha1() {
    bird_over_both_families(Some("twenty bytes, no more"));
}

#[test]
fn another_secret_is_no_neighbour_and_is_named() {
    let link = Link::new();
    let bird = Bird::start(&link, Some("right"));
    for (authentication, reason) in
        [(secret("wrong"), Discard::Digest), (None, Discard::UnexpectedAuthentication)]
    {
        let speaker = Speaker::start(
            &link,
            BfdConfig { authentication, ..BfdConfig::default() },
            both(&link),
        );
        eventually("the reason", || {
            let status = speaker.handle.status();
            if status.len() == 2 && status.iter().all(|session| session.rejected == Some(reason)) {
                Ok(())
            } else {
                Err(format!("{status:?}"))
            }
        });
        assert!(speaker.handle.status().iter().all(|session| session.state == SessionState::Down));
        assert!(ENDS.iter().all(|(ours, _)| bird.state(ours).as_deref() == Ok("Down")));
        assert!(speaker.handle.counters().totals().discarded[reason.index()] > 0);
    }
}

#[test]
fn a_link_that_goes_down_is_noticed_on_both_sides() {
    let link = Link::new();
    let bird = Bird::start(&link, None);
    let speaker = Speaker::start(&link, BfdConfig::default(), both(&link));
    bird_says(&bird, "Up");
    speaker.wait_up();
    frozen_is_detected(&speaker, || link.ours.ip(&["link set eth0 down"]));
    for (ours, _) in ENDS {
        eventually("BIRD has noticed", || match bird.state(ours) {
            Ok(state) if state == "Up" => Err(state),
            _ => Ok(()),
        });
    }
    // Addresses of IPv6 go with the link.
    link.ours.ip(&["link set eth0 up", "address replace fd99::1/64 dev eth0 nodad"]);
    speaker.wait_up();
    bird_says(&bird, "Up");
}

/// RFC 5883: the other port, and a TTL below 255.
#[test]
fn frr_behind_a_router() {
    let link = Link::new();
    let router = Namespace::create(&[format!("{}r", link.ours.name)]).pop().unwrap();
    for (host, end, subnet) in [(&link.ours, 1, 1), (&link.theirs, 2, 2)] {
        host.ip(&["link del eth0"].repeat(usize::from(end == 1)));
        host.ip(&[
            format!("link add eth0 type veth peer name eth{end} netns {}", router.name),
            "link set eth0 up".to_owned(),
            format!("address add 10.99.{subnet}.2/24 dev eth0"),
            format!("address add fd99:{subnet}::2/64 dev eth0 nodad"),
        ]);
        router.ip(&[
            format!("link set eth{end} up"),
            format!("address add 10.99.{subnet}.1/24 dev eth{end}"),
            format!("address add fd99:{subnet}::1/64 dev eth{end} nodad"),
        ]);
        host.ip(&[
            format!("route add default via 10.99.{subnet}.1"),
            format!("route add ::/0 via fd99:{subnet}::1"),
        ]);
    }
    router.sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")]);
    let ends = [("10.99.1.2", "10.99.2.2"), ("fd99:1::2", "fd99:2::2")];
    let peers = ends.map(|(ours, theirs)| {
        format!(" peer {ours} multihop local-address {theirs}\n  receive-interval 50\n  transmit-interval 50\n  minimum-ttl 254\n exit\n")
    });
    let frr = Frr::configured(&link, &peers.concat());
    let peers: BTreeMap<PeerKey, Peer> = ends
        .iter()
        .map(|(ours, theirs)| {
            (
                PeerKey { interface: None, address: ip(theirs) },
                Peer { local: Some(ip(ours)), multihop: true },
            )
        })
        .collect();
    let speaker = Speaker::start(&link, BfdConfig::default(), peers);
    for (ours, _) in ends {
        eventually(&format!("FRR has {ours} up"), || {
            frr.view(ours).and_then(|view| if view.up { Ok(()) } else { Err(format!("{view:?}")) })
        });
    }
    speaker.wait_up();
    frozen_is_detected(&speaker, || frr.0.signal(Signal::STOP));
}

#[test]
fn whoever_has_the_port_is_named() {
    let link = Link::new();
    let _frr = Frr::start(&link);
    let refused =
        link.theirs.enter(|| io::spawn(BfdOptions::default(), |_| {}).map(drop)).unwrap_err();
    assert!(matches!(refused, StartError::PortTaken { port: 3784, .. }), "{refused:?}");
    assert!(refused.to_string().contains("FRR's bfdd (process "), "{refused}");
}
