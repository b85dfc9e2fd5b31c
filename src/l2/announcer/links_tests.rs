//! Interfaces that come, go, change or cannot carry announcements.

use super::tests::*;
use crate::model::Interface;

#[test]
fn links_that_come_and_go() {
    let (mut a, now) = settled(&[V4]);
    let wanted = || wish(&[V4], &[1, 2], false);
    let up = interface(1, OURS);
    let down = Interface { up: false, ..up.clone() };
    let request = arp_request(OTHER, "192.0.2.1", V4).to_vec();

    a.set(wanted(), &interfaces(std::slice::from_ref(&down)), now);
    assert_eq!(a.poll_timeout(), None, "down: nothing to do");
    assert!(hear(&mut a, 1, &request, now).frames.is_empty(), "down: silent");

    a.set(wanted(), &interfaces(std::slice::from_ref(&up)), now + ms(100));
    assert_eq!(
        run(&mut a, now + ms(100), now + ms(100 + 5000)).frames.len(),
        14,
        "up: a new burst"
    );

    let later = now + ms(6000);
    a.set(wanted(), &interfaces(std::slice::from_ref(&up)), later);
    assert!(run(&mut a, later, later + ms(100)).frames.is_empty(), "nothing changed: nothing sent");

    a.set(wanted(), &interfaces(&[up.clone(), interface(2, OTHER)]), later);
    let log = run(&mut a, later, later + ms(5000));
    assert!(
        log.frames.len() == 14 && log.frames.iter().all(|(_, t)| t.ifindex == 2),
        "an interface that appears later"
    );

    let later = later + ms(6000);
    let new_mac = [2, 0, 0, 0, 0, 7];
    a.set(wanted(), &interfaces(&[interface(1, new_mac), interface(2, OTHER)]), later);
    let log = run(&mut a, later, later + ms(5000));
    assert!(
        log.frames.len() == 14
            && log.frames.iter().all(|(_, t)| t.ifindex == 1 && t.frame[6..12] == new_mac),
        "a new MAC"
    );

    a.set(BTreeMap::new(), &interfaces(&[up]), later + ms(6000));
    assert_eq!(
        (a.poll_timeout(), a.timers.len(), a.presences.len()),
        (None, 0, 0),
        "withdrawn: no memory"
    );
    assert!(hear(&mut a, 1, &request, later + ms(6000)).frames.is_empty());
}

#[test]
fn a_link_that_was_away_between_two_looks_is_announced_again() {
    let (mut a, now) = settled(&[V4]);
    let flapped = Interface { carrier_changes: 2, ..interface(1, OURS) };
    a.set(wish(&[V4], &[1], false), &interfaces(std::slice::from_ref(&flapped)), now);
    assert_eq!(run(&mut a, now, now + ms(5000)).frames.len(), 14, "a new burst");
    let later = now + ms(6000);
    a.set(wish(&[V4], &[1], false), &interfaces(std::slice::from_ref(&flapped)), later);
    assert!(
        run(&mut a, later, later + ms(100)).frames.is_empty(),
        "the same count: nothing happened"
    );

    let mut probing = announcer();
    probing.set(wish(&[V4], &[1], true), &interfaces(&[interface(1, OURS)]), ms(0));
    run(&mut probing, ms(0), ms(900));
    probing.set(wish(&[V4], &[1], true), &interfaces(&[flapped]), ms(900));
    assert!(
        run(&mut probing, ms(900), ms(1899)).events.is_empty(),
        "answers may have been lost: probed from the start"
    );
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
        assert_eq!(a.poll_timeout(), None);
    }
}

#[test]
fn a_bond_that_fails_over_announces_again_with_the_same_mac() {
    let bond =
        |port: u32| interfaces(&[Interface { active_ports: [port].into(), ..interface(1, OURS) }]);
    let mut a = announcer();
    a.set(wish(&[V4, V6], &[1], false), &bond(7), ms(0));
    run(&mut a, ms(0), ms(10_000));
    a.set(wish(&[V4, V6], &[1], false), &bond(7), ms(10_000));
    assert!(run(&mut a, ms(10_000), ms(10_000)).frames.is_empty(), "nothing changed");
    a.set(wish(&[V4, V6], &[1], false), &bond(8), ms(10_000));
    assert_eq!(
        run(&mut a, ms(10_000), ms(10_000)).frames.len(),
        3,
        "both forms of ARP and one advertisement, at once"
    );
}
