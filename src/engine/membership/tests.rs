//! Session events in, reachability out.

use super::*;

const T: fn(u64) -> Duration = Duration::from_millis;

fn ip(n: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, n])
}

fn node(name: &str, internal: &[u8]) -> Node {
    Node {
        name: name.into(),
        internal: internal.iter().map(|n| ip(*n)).collect(),
        external: Vec::new(),
        pod_cidrs: Vec::new(),
        zone: None,
        excluded: None,
        enable_lb: None,
        pool: None,
    }
}

fn members(nodes: &[Node]) -> Membership {
    let mut members = Membership::new("me");
    members.set_nodes(nodes.iter(), &[ip(1)].into(), T(0));
    members
}

#[test]
fn one_session_of_several_is_enough_and_only_silence_is_death() {
    for (reason, dead, standing) in [
        (DownReason::DetectionTimeout, true, Reachability::Unknown),
        (DownReason::NeighbourDown, false, Reachability::Unknown),
        (DownReason::AdminDown, false, Reachability::Down),
    ] {
        let mut members = members(&[node("me", &[1]), node("b", &[2, 3])]);
        assert_eq!(
            members.reachability("b", T(0)),
            Reachability::Unknown,
            "an object is no evidence"
        );
        members.liveness(ip(2), Liveness::Up, T(0));
        members.liveness(ip(3), Liveness::Up, T(0));
        assert!(members.liveness(ip(2), Liveness::Down(reason), T(10)).nodes.is_empty());
        assert_eq!(
            (members.reachability("b", T(10)), members.dead().count()),
            (Reachability::Up, 0)
        );
        assert!(members.liveness(ip(3), Liveness::Down(reason), T(10)).died);
        assert_eq!(
            members.reachability("b", T(20)),
            Reachability::Down,
            "what is heard now may be old"
        );
        assert_eq!(members.reachability("b", T(400)), standing, "{reason:?}");
        assert_eq!(members.dead().count() == 1, dead, "{reason:?}");
        members.liveness(ip(3), Liveness::Down(DownReason::NeverSeen), T(500));
        assert_eq!(
            members.dead().count() == 1,
            dead,
            "a session that starts over brings nobody back"
        );
        members.liveness(ip(2), Liveness::Up, T(600));
        assert_eq!(
            (members.reachability("b", T(600)), members.dead().count()),
            (Reachability::Up, 0)
        );
    }
}

#[test]
fn sessions_that_end_because_this_node_has_another_address_say_nothing_about_its_peers() {
    let moved = |members: &mut Membership, at| {
        members.set_nodes([node("me", &[5]), node("b", &[2])].iter(), &[ip(5)].into(), at)
    };
    for reason in [DownReason::AdminDown, DownReason::DetectionTimeout] {
        let mut members = members(&[node("me", &[1]), node("b", &[2])]);
        members.liveness(ip(2), Liveness::Up, T(0));
        moved(&mut members, T(1000));
        let changed = members.liveness(ip(2), Liveness::Down(reason), T(1100));
        assert!(!changed.died && changed.nodes.contains("b"), "{reason:?}: {changed:?}");
        assert_eq!(
            (members.reachability("b", T(1100)), members.dead().count()),
            (Reachability::Unknown, 0),
            "{reason:?}: to be seen anew"
        );
        members.liveness(ip(2), Liveness::Up, T(2000));
        assert!(
            members
                .liveness(ip(2), Liveness::Down(DownReason::DetectionTimeout), T(1000) + MOVED_FOR)
                .died,
            "{reason:?}: that was long ago"
        );
    }
    // Its peers have read of it first.
    let mut members = members(&[node("me", &[1]), node("b", &[2])]);
    members.liveness(ip(2), Liveness::Up, T(0));
    members.liveness(ip(2), Liveness::Down(DownReason::AdminDown), T(990));
    assert_eq!(members.reachability("b", T(999)), Reachability::Down);
    moved(&mut members, T(1000));
    assert_eq!(members.reachability("b", T(1000)), Reachability::Unknown);
}

#[test]
fn two_machines_that_are_one_peer_are_none_until_the_signs_end() {
    let mut members = members(&[node("me", &[1]), node("b", &[2])]);
    members.liveness(ip(2), Liveness::Up, T(0));
    let changed = members.on_duplicate(ip(2), false, T(1000));
    assert!(changed.died && changed.nodes.contains("b"));
    assert_eq!((members.live().count(), members.dead().count()), (0, 1));
    for (n, state) in [Liveness::Down(DownReason::DetectionTimeout), Liveness::Up]
        .into_iter()
        .cycle()
        .take(20)
        .enumerate()
    {
        assert!(
            members.liveness(ip(2), state, T(1100 + n as u64)).nodes.is_empty(),
            "what either says is nothing new"
        );
    }
    assert!(!members.heard("b", T(9000)), "it is no filter that keeps its sessions down");
    let warnings = members.warnings();
    assert_eq!(
        warnings.iter().map(|warning| &*warning.code).collect::<Vec<_>>(),
        ["DuplicateNode"]
    );
    assert!(
        warnings[0].message.contains("node b ") && warnings[0].message.contains("10.0.0.2"),
        "{warnings:?}"
    );

    assert!(members.on_duplicate(ip(2), false, T(20_000)).nodes.is_empty(), "known");
    assert_eq!(members.duplicate_timeout(), Some(T(20_000) + DUPLICATE_HOLD));
    assert!(members.clear_duplicates(T(49_999)).nodes.is_empty());
    assert!(members.clear_duplicates(T(50_000)).nodes.contains("b"));
    assert_eq!(
        (members.live().count(), members.dead().count(), members.duplicate_timeout()),
        (1, 0, None),
        "a session is up"
    );
    assert!(members.warnings().is_empty());
}

#[test]
fn several_addresses_in_one_subnet_look_like_two_machines_and_are_none() {
    let mut members = members(&[node("me", &[1]), node("b", &[2, 3]), node("c", &[4])]);
    assert!(
        members.on_duplicate(ip(2), false, T(0)).nodes.is_empty()
            && members.on_duplicate(ip(2), true, T(0)).nodes.is_empty()
    );
    assert!(!members.on_duplicate(ip(4), false, T(0)).nodes.is_empty());
}

#[test]
fn a_cloned_node_detects_its_duplicate_until_the_signs_end() {
    let mut here = members(&[node("me", &[1]), node("b", &[2])]);
    assert!(here.on_duplicate(ip(2), true, T(1000)).nodes.contains("me"));
    assert!(here.on_duplicate(ip(2), true, T(2000)).nodes.is_empty(), "known");
    assert_eq!(here.own_duplicate(), Some(ip(1)));
    assert!(
        here.warnings()[0].message.contains("its address 10.0.0.1 too"),
        "{:?}",
        here.warnings()
    );
    assert!(here.clear_duplicates(T(31_999)).nodes.is_empty());
    assert!(here.clear_duplicates(T(32_000)).nodes.contains("me"));
    assert_eq!(here.own_duplicate(), None);
    assert!(
        members(&[node("b", &[2])]).on_duplicate(ip(2), true, T(0)).nodes.is_empty(),
        "without a Node object it answers for nothing anyway"
    );
}

#[test]
fn an_address_of_two_nodes_belongs_to_the_first_name_and_is_said() {
    let members = members(&[node("me", &[1]), node("c", &[2]), node("b", &[2])]);
    assert_eq!(members.sessions(), [(ip(2), "b".into())].into());
    let warnings = members.warnings();
    assert_eq!(
        warnings.iter().map(|warning| &*warning.code).collect::<Vec<_>>(),
        ["DuplicateAddress"]
    );
    assert!(warnings[0].message.contains("b, c"), "{warnings:?}");
}

#[test]
fn of_two_machines_with_one_name_the_one_with_the_nodes_address_stays() {
    let mut here = members(&[node("me", &[1])]);
    assert!(
        here.sessions().is_empty() && here.own_duplicate().is_none(),
        "the Node's address is ours"
    );
    here.liveness(ip(1), Liveness::Up, T(0));
    assert_eq!(here.own_duplicate(), None);
    let mut clone = members(&[node("me", &[9])]);
    assert_eq!(
        (clone.sessions().len(), clone.own_duplicate()),
        (1, None),
        "an address that nobody answers at proves nothing"
    );
    clone.liveness(ip(9), Liveness::Up, T(0));
    assert_eq!(clone.own_duplicate(), Some(ip(9)));
    assert_eq!(clone.warnings()[0].code, "DuplicateNode");
}

#[test]
fn a_peer_that_announces_without_bfd_is_reported_as_blocked_once() {
    let mut members = members(&[node("me", &[1]), node("b", &[2])]);
    let said: Vec<bool> = (0..8).map(|n| members.heard("b", T(n * 700))).collect();
    assert_eq!(said.iter().filter(|said| **said).count(), 1, "{said:?}");
    assert!(
        members.warnings()[0].message.contains("3784")
            && members.warnings()[0].message.contains("10.0.0.2")
    );
    members.liveness(ip(2), Liveness::Up, T(9_000));
    assert!(members.warnings().is_empty());
}

#[test]
fn a_peer_heard_after_a_planned_stop_has_restarted() {
    let mut members = members(&[node("me", &[1]), node("b", &[2])]);
    members.liveness(ip(2), Liveness::Up, T(0));
    members.liveness(ip(2), Liveness::Down(DownReason::AdminDown), T(1_000));
    members.heard("b", T(2_500));
    assert_eq!(
        (members.reachability("b", T(2_500)), members.complete()),
        (Reachability::Down, true),
        "its last words"
    );
    members.heard("b", T(4_000));
    assert_eq!(
        (members.reachability("b", T(4_000)), members.missing("b", T(4_000))),
        (Reachability::Unknown, true),
        "it is back, behind a filter"
    );
}

#[test]
fn that_peers_dropped_a_node_that_was_deleted_is_no_stop_of_theirs() {
    let mut members = members(&[node("me", &[1]), node("b", &[2])]);
    members.liveness(ip(2), Liveness::Up, T(0));
    members.set_nodes([node("b", &[2])].iter(), &[ip(1)].into(), T(0));
    members.liveness(ip(2), Liveness::Down(DownReason::AdminDown), T(1_000));
    assert_eq!(members.reachability("b", T(5_000)), Reachability::Down);
    members.set_nodes([node("me", &[1]), node("b", &[2])].iter(), &[ip(1)].into(), T(0));
    assert_eq!(
        (members.reachability("b", T(5_000)), members.complete()),
        (Reachability::Unknown, false)
    );
}

#[test]
fn a_peer_without_a_sign_of_life_is_not_waited_for_without_end() {
    let mut members = members(&[
        node("me", &[1]),
        node("never", &[2]),
        node("off", &[3]),
        node("filtered", &[4]),
    ]);
    let missing = |members: &Membership, now| {
        ["never", "off", "filtered"].map(|name| members.missing(name, now))
    };
    let day = Duration::from_secs(86_400);
    members.liveness(ip(3), Liveness::Up, T(0));
    assert_eq!(missing(&members, T(1_000)), [true, false, true]);
    members.liveness(ip(3), Liveness::Down(DownReason::DetectionTimeout), T(60_000));
    members.heard("filtered", T(1_000));
    assert!(members.heard("filtered", T(5_000)), "that is when a filter is suspected");
    assert_eq!(members.absence_timeout(T(100_000)), Some(ABSENT_AFTER));
    assert_eq!(missing(&members, ABSENT_AFTER), [false, true, true]);
    assert_eq!(members.absence_timeout(ABSENT_AFTER), Some(T(60_000) + ABSENT_AFTER));
    assert_eq!(
        missing(&members, day),
        [false, false, true],
        "behind a filter it may be there at any time"
    );
    assert_eq!(members.absence_timeout(day), None);
    members.liveness(ip(3), Liveness::Up, day);
    let moved = [node("never", &[2]), node("off", &[5]), node("filtered", &[4])];
    members.set_nodes(moved.iter(), &[ip(1)].into(), day);
    assert_eq!(
        missing(&members, day),
        [false, true, true],
        "it has another address: to be seen there"
    );
    members.heard("never", day);
    assert_eq!(missing(&members, day), [true, true, true], "one sign is enough");
}

#[test]
fn a_link_layer_address_identifies_its_node_when_only_one_has_it() {
    let mut members = members(&[node("me", &[1]), node("b", &[2, 3]), node("c", &[4])]);
    let lladdr = [2, 0, 0, 0, 0, 2];
    members.neighbour(ip(2), lladdr);
    members.neighbour(ip(3), lladdr);
    assert_eq!(members.by_lladdr(lladdr), Some("b"));
    members.neighbour(ip(4), lladdr);
    assert_eq!(members.by_lladdr(lladdr), None, "two machines, one hardware address: a clone");
}

#[test]
fn a_peer_that_does_not_hear_this_node_is_unidirectional_until_a_session_is_up_or_it_falls_silent()
{
    let mut members = members(&[node("me", &[1]), node("b", &[2, 3])]);
    let view = |members: &Membership, now| (members.reachability("b", now), members.dead().count());
    members.liveness(ip(2), Liveness::Heard, T(0));
    assert_eq!(
        view(&members, T(2_999)),
        (Reachability::Unknown, 0),
        "its session may be on its way up"
    );
    assert_eq!(view(&members, T(3_000)), (Reachability::Unidirectional, 0));
    assert!(
        members.statuses(T(3_000))[0].state.contains("does not hear this node"),
        "{:?}",
        members.statuses(T(3_000))
    );
    members.liveness(ip(2), Liveness::Up, T(4_000));
    assert_eq!(view(&members, T(4_000)), (Reachability::Up, 0));
    assert!(
        members.liveness(ip(2), Liveness::Down(DownReason::OneWay), T(5_000)).died,
        "whom it does not hear it cannot yield to"
    );
    assert_eq!(
        view(&members, T(5_000)),
        (Reachability::Unidirectional, 0),
        "signaled by the peer: neither unknown nor down"
    );
    members.liveness(ip(2), Liveness::Heard, T(5_100));
    members.liveness(ip(3), Liveness::Down(DownReason::DetectionTimeout), T(5_200));
    assert_eq!(
        view(&members, T(5_200)),
        (Reachability::Unidirectional, 0),
        "it is heard at one of its addresses"
    );
    assert!(
        members
            .liveness(ip(2), Liveness::Down(DownReason::DetectionTimeout), T(9_000))
            .nodes
            .contains("b")
    );
    assert_eq!(view(&members, T(9_000)), (Reachability::Down, 1));
}

/// Its session falls because it heard of an end that is over: it answers, so it was there all the
/// time.
#[test]
fn a_peer_whose_session_restarts_is_unknown_and_not_down() {
    let mut members = members(&[node("me", &[1]), node("b", &[2])]);
    members.liveness(ip(2), Liveness::Up, T(0));
    let changed = members.liveness(ip(2), Liveness::Heard, T(1_000));
    assert!(changed.nodes.contains("b") && !changed.died, "{changed:?}");
    assert_eq!(
        (members.reachability("b", T(1_000)), members.dead().count()),
        (Reachability::Unknown, 0)
    );
}
