//! The election of one address, without a network.

use super::*;

const T: fn(u64) -> Duration = Duration::from_millis;
const VIP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 200));
const LLADDR: Mac = [2, 0, 0, 0, 0, 9];

/// Names by rank for [`VIP`], best first.
fn ranked() -> [&'static str; 3] {
    let mut names = ["a", "b", "c"];
    names.sort_by_key(|name| std::cmp::Reverse(rank(VIP, name, &[])));
    names
}

fn input<'a>(
    me: &'a str,
    nodes: &[&'a str],
    reachability: &'a dyn Fn(&str) -> Reachability,
) -> ElectionInput<'a> {
    let candidates = nodes
        .iter()
        .map(|node| Candidate { node, fresh: false, rank: rank(VIP, node, &[]) })
        .collect();
    ElectionInput {
        address: VIP,
        local_node: me,
        eligibility: Eligibility::Eligible,
        candidates,
        preferred: &[],
        reachability,
        alone: false,
        fresh: false,
        complete: Some(T(0)),
        step: STEP,
        check: crate::engine::election::rank::OWNER_CHECK_INTERVAL,
    }
}

const UP: &dyn Fn(&str) -> Reachability = &|_| Reachability::Up;
const UNKNOWN: &dyn Fn(&str) -> Reachability = &|_| Reachability::Unknown;
const DOWN: &dyn Fn(&str) -> Reachability = &|_| Reachability::Down;

/// When the address is claimed, stepping from one poll timeout to the next.
fn claimed(
    election: &mut VipElection,
    input: &ElectionInput<'_>,
    from: Duration,
) -> Option<Duration> {
    let mut now = from;
    for _ in 0..100 {
        election.decide(input, now);
        if *election.owner() == Owner::Local {
            return Some(now);
        }
        now = election.poll_timeout()?;
    }
    None
}

#[test]
fn a_node_without_peers_claims_at_once() {
    let alone = ElectionInput { alone: true, ..input("a", &["a"], UP) };
    assert_eq!(claimed(&mut VipElection::new(T(5), T(5)), &alone, T(5)), Some(T(5)));
}

#[test]
fn each_candidate_waits_one_step_longer_than_the_one_before() {
    let names = ranked();
    for (turn, me) in names.iter().enumerate() {
        let mut election = VipElection::new(T(0), T(3_000));
        let claim = claimed(&mut election, &input(me, &names, UP), T(0));
        assert_eq!(claim, Some(PROBE_INTERVAL * 4 + STEP * turn as u32), "{me}");
    }
}

#[test]
fn the_lower_ranked_owner_yields_and_a_sole_owner_keeps_the_address() {
    let names = ranked();
    let (best, worst) = (names[0], names[2]);
    let mut election = VipElection::new(T(0), T(0));
    assert!(claimed(&mut election, &input(worst, &names, UP), T(0)).is_some());
    election.on_owner_claim(Some(best), LLADDR, &input(worst, &names, DOWN), T(5_000));
    assert_eq!(*election.owner(), Owner::Local, "a late claim of a node that is down");
    election.on_owner_claim(Some(best), LLADDR, &input(worst, &names, UP), T(5_000));
    assert_eq!(*election.owner(), Owner::Peer { node: best.into(), insists: false });

    let mut election = VipElection::new(T(0), T(0));
    election.on_owner_claim(Some(worst), LLADDR, &input(best, &names, UP), T(0));
    election.decide(&input(best, &names, UP), T(4_000));
    assert_eq!(*election.owner(), Owner::Peer { node: worst.into(), insists: false });
    election.decide(&input(best, &names, DOWN), T(4_100));
    assert_eq!(*election.owner(), Owner::Local, "at once, when the owner is down");
}

#[test]
fn a_preferred_node_preempts_the_owner() {
    let names = ranked();
    let preferred = [names[2].into()];
    let preferring = |me| ElectionInput {
        preferred: &preferred,
        ..input(me, &[names[2], names[0], names[1]], UP)
    };
    let mut election = VipElection::new(T(0), T(0));
    election.on_owner_claim(Some(names[0]), LLADDR, &preferring(names[2]), T(0));
    election.decide(&ElectionInput { fresh: true, ..preferring(names[2]) }, T(10));
    assert_ne!(*election.owner(), Owner::Local, "not while it has just returned");
    election.decide(&preferring(names[2]), T(10));
    assert_eq!(*election.owner(), Owner::Local);
}

#[test]
fn a_silent_owner_is_probed_and_replaced() {
    let names = ranked();
    // An owner with a session is probed later and more often: frames may have been lost.
    for (reachability, first, probes) in [
        (UP, crate::engine::election::rank::OWNER_CHECK_INTERVAL, PROBES_LIVE_OWNER),
        (UNKNOWN, SILENCE - PROBE_INTERVAL * (u32::from(PROBES) + 1), PROBES),
    ] {
        let mut election = VipElection::new(T(0), T(0));
        let mine = input(names[0], &names, reachability);
        election.on_owner_claim(Some(names[1]), LLADDR, &mine, T(0));
        let probed: Vec<Duration> =
            (0..=70).map(|n| T(n * 100)).filter(|now| election.decide(&mine, *now)).collect();
        assert_eq!(
            (probed[0], probed.len(), election.owner()),
            (first, usize::from(probes), &Owner::Local)
        );
    }
}

#[test]
fn an_owner_with_a_session_keeps_the_address_when_only_the_last_probe_is_answered() {
    let names = ranked();
    let mut election = VipElection::new(T(0), T(0));
    let mine = input(names[0], &names, UP);
    election.on_owner_claim(Some(names[1]), LLADDR, &mine, T(0));
    let probed: Vec<Duration> =
        (0..=61).map(|n| T(n * 100)).filter(|now| election.decide(&mine, *now)).collect();
    assert_eq!(probed.last(), Some(&T(6_100)), "the twelfth");
    election.on_owner_claim(Some(names[1]), LLADDR, &mine, T(6_150));
    assert!(!election.decide(&mine, T(6_200)));
    assert_eq!(*election.owner(), Owner::Peer { node: names[1].into(), insists: false });
}

#[test]
fn a_draining_owner_answers_until_another_is_heard_or_one_second_has_passed() {
    let names = ranked();
    let draining =
        ElectionInput { eligibility: Eligibility::Draining, ..input(names[0], &[names[1]], UP) };
    for heard in [true, false] {
        let mut election = VipElection::new(T(0), T(0));
        assert!(claimed(&mut election, &input(names[0], &names, UP), T(0)).is_some());
        assert!(election.decide(&draining, T(5_000)), "it probes to hand over");
        assert!(*election.owner() == Owner::Local && election.leaving());
        if heard {
            election.on_owner_claim(Some(names[1]), LLADDR, &draining, T(5_010));
        } else {
            election.decide(&draining, T(6_000));
        }
        assert!(*election.owner() != Owner::Local && !election.leaving());
    }
}

#[test]
fn claims_are_ignored_after_a_probe_only_from_the_former_owner() {
    let names = ranked();
    let mine = input(names[1], &names, UP);
    let mut election = VipElection::new(T(0), T(3_000));
    election.on_probe_from_owner(names[0], T(10));
    election.on_owner_claim(Some(names[0]), LLADDR, &mine, T(400));
    assert_eq!(
        *election.owner(),
        Owner::Peer { node: names[0].into(), insists: false },
        "it found no owner and claimed the address"
    );
    election.on_probe_from_owner(names[0], T(5_000));
    assert!(matches!(election.owner(), Owner::None { .. }), "it gives up");
    election.on_owner_claim(Some(names[0]), LLADDR, &mine, T(5_001));
    assert!(matches!(election.owner(), Owner::None { .. }), "a claim that was in flight");
}

#[test]
fn a_suspended_owner_probes_only_once_peers_detected_its_absence() {
    let names = ranked();
    let suspended =
        ElectionInput { eligibility: Eligibility::Ineligible, ..input(names[0], &names[1..], UP) };
    for missed in [false, true] {
        let mut election = VipElection::new(T(0), T(0));
        assert!(claimed(&mut election, &input(names[0], &names, UP), T(0)).is_some());
        election.suspend(T(5_000), T(8_000));
        assert!((0..30).all(|n| !election.decide(&suspended, T(5_000 + n * 10))), "no probe");
        assert!(matches!(election.owner(), Owner::None { .. }));
        if missed {
            election.probe_owner(T(5_300));
            assert!(
                election.decide(&input(names[0], &names, UP), T(5_300)),
                "probes for the new owner"
            );
            assert_eq!(
                claimed(&mut election, &input(names[0], &names, UP), T(5_300)),
                Some(T(5_300) + PROBE_INTERVAL * 4)
            );
        } else {
            election.resume();
            assert!(!election.decide(&input(names[0], &names, UP), T(5_300)));
            assert_eq!(*election.owner(), Owner::Local);
        }
    }
}

const UNIDIRECTIONAL: &dyn Fn(&str) -> Reachability = &|_| Reachability::Unidirectional;

/// Frames are lost in one direction: only the node that hears the other can yield.
#[test]
fn an_owner_that_does_not_hear_this_node_keeps_the_address_whatever_the_ranks() {
    let names = ranked();
    let best: [Box<str>; 1] = [names[0].into()];
    let mine = ElectionInput { preferred: &best, ..input(names[0], &names[..1], UNIDIRECTIONAL) };
    let mut election = VipElection::new(T(0), T(0));
    assert!(claimed(&mut election, &mine, T(0)).is_some());
    election.on_owner_claim(Some(names[1]), LLADDR, &mine, T(1_000));
    let theirs = Owner::Peer { node: names[1].into(), insists: true };
    assert_eq!(*election.owner(), theirs);
    let probed = (10..=1_500).filter(|n| election.decide(&mine, T(n * 100))).count();
    assert_eq!(
        (probed, election.owner()),
        (0, &theirs),
        "it would not hear a probe, and announces once a minute"
    );
    assert_eq!(
        claimed(&mut election, &mine, T(150_000)),
        Some(T(1_000) + SILENCE_ONE_WAY),
        "it stopped, or is unreachable"
    );
    assert_eq!(
        claimed(
            &mut VipElection { owner: theirs, ..VipElection::new(T(0), T(0)) },
            &input(names[0], &names, DOWN),
            T(10)
        ),
        Some(T(10))
    );
}
