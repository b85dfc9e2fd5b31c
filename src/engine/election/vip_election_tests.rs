//! One seat, without a network.

use super::*;

const T: fn(u64) -> Duration = Duration::from_millis;
const VIP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 200));
const STATION: Mac = [2, 0, 0, 0, 0, 9];

/// Names by rank for [`VIP`], best first.
fn ranked() -> [&'static str; 3] {
    let mut names = ["a", "b", "c"];
    names.sort_by_key(|name| std::cmp::Reverse(rank(VIP, name, &[])));
    names
}

fn ballot<'a>(
    me: &'a str,
    nodes: &[&'a str],
    standing: &'a dyn Fn(&str) -> Reachability,
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
        reachability: standing,
        alone: false,
        fresh: false,
        complete: Some(T(0)),
        step: STEP,
        check: crate::engine::election::rank::OWNER_CHECK_INTERVAL,
    }
}

const ALIVE: &dyn Fn(&str) -> Reachability = &|_| Reachability::Up;
const UNSEEN: &dyn Fn(&str) -> Reachability = &|_| Reachability::Unknown;
const GONE: &dyn Fn(&str) -> Reachability = &|_| Reachability::Down;

/// When the seat is claimed, stepping by its own deadlines.
fn claimed(seat: &mut VipElection, ballot: &ElectionInput<'_>, from: Duration) -> Option<Duration> {
    let mut now = from;
    for _ in 0..100 {
        seat.decide(ballot, now);
        if *seat.owner() == Owner::Local {
            return Some(now);
        }
        now = seat.poll_timeout()?;
    }
    None
}

#[test]
fn alone_it_is_claimed_at_once() {
    let alone = ElectionInput { alone: true, ..ballot("a", &["a"], ALIVE) };
    assert_eq!(claimed(&mut VipElection::new(T(5), T(5)), &alone, T(5)), Some(T(5)));
}

#[test]
fn the_first_claims_and_each_next_waits_a_step() {
    let names = ranked();
    for (turn, me) in names.iter().enumerate() {
        let mut seat = VipElection::new(T(0), T(3_000));
        let claim = claimed(&mut seat, &ballot(me, &names, ALIVE), T(0));
        assert_eq!(claim, Some(PROBE_INTERVAL * 4 + STEP * turn as u32), "{me}");
    }
}

#[test]
fn the_lower_ranked_yields_and_the_holder_keeps_it_whatever_its_rank() {
    let names = ranked();
    let (best, worst) = (names[0], names[2]);
    let mut seat = VipElection::new(T(0), T(0));
    assert!(claimed(&mut seat, &ballot(worst, &names, ALIVE), T(0)).is_some());
    seat.on_owner_claim(Some(best), STATION, &ballot(worst, &names, GONE), T(5_000));
    assert_eq!(*seat.owner(), Owner::Local, "last words of one that is gone");
    seat.on_owner_claim(Some(best), STATION, &ballot(worst, &names, ALIVE), T(5_000));
    assert_eq!(*seat.owner(), Owner::Peer { node: best.into(), insists: false });

    let mut seat = VipElection::new(T(0), T(0));
    seat.on_owner_claim(Some(worst), STATION, &ballot(best, &names, ALIVE), T(0));
    seat.decide(&ballot(best, &names, ALIVE), T(4_000));
    assert_eq!(*seat.owner(), Owner::Peer { node: worst.into(), insists: false });
    seat.decide(&ballot(best, &names, GONE), T(4_100));
    assert_eq!(*seat.owner(), Owner::Local, "at once, when the holder is gone");
}

#[test]
fn preference_is_stronger_than_possession() {
    let names = ranked();
    let preferred = [names[2].into()];
    let preferring = |me| ElectionInput {
        preferred: &preferred,
        ..ballot(me, &[names[2], names[0], names[1]], ALIVE)
    };
    let mut seat = VipElection::new(T(0), T(0));
    seat.on_owner_claim(Some(names[0]), STATION, &preferring(names[2]), T(0));
    seat.decide(&ElectionInput { fresh: true, ..preferring(names[2]) }, T(10));
    assert_ne!(*seat.owner(), Owner::Local, "not while it has just returned");
    seat.decide(&preferring(names[2]), T(10));
    assert_eq!(*seat.owner(), Owner::Local);
}

#[test]
fn a_holder_that_falls_silent_is_asked_and_replaced() {
    let names = ranked();
    // With a session it is asked later and more often: its silence may as well be lost frames.
    for (standing, first, asks) in [
        (ALIVE, crate::engine::election::rank::OWNER_CHECK_INTERVAL, PROBES_LIVE_OWNER),
        (UNSEEN, SILENCE - PROBE_INTERVAL * (u32::from(PROBES) + 1), PROBES),
    ] {
        let mut seat = VipElection::new(T(0), T(0));
        let mine = ballot(names[0], &names, standing);
        seat.on_owner_claim(Some(names[1]), STATION, &mine, T(0));
        let asked: Vec<Duration> =
            (0..=70).map(|n| T(n * 100)).filter(|now| seat.decide(&mine, *now)).collect();
        assert_eq!(
            (asked[0], asked.len(), seat.owner()),
            (first, usize::from(asks), &Owner::Local)
        );
    }
}

#[test]
fn a_holder_whose_session_is_up_keeps_the_address_when_the_last_question_alone_is_answered() {
    let names = ranked();
    let mut seat = VipElection::new(T(0), T(0));
    let mine = ballot(names[0], &names, ALIVE);
    seat.on_owner_claim(Some(names[1]), STATION, &mine, T(0));
    let asked: Vec<Duration> =
        (0..=61).map(|n| T(n * 100)).filter(|now| seat.decide(&mine, *now)).collect();
    assert_eq!(asked.last(), Some(&T(6_100)), "the twelfth");
    seat.on_owner_claim(Some(names[1]), STATION, &mine, T(6_150));
    assert!(!seat.decide(&mine, T(6_200)));
    assert_eq!(*seat.owner(), Owner::Peer { node: names[1].into(), insists: false });
}

#[test]
fn who_leaves_answers_until_another_is_heard_or_a_second_has_passed() {
    let names = ranked();
    let leaving = ElectionInput {
        eligibility: Eligibility::Draining,
        ..ballot(names[0], &[names[1]], ALIVE)
    };
    for heard in [true, false] {
        let mut seat = VipElection::new(T(0), T(0));
        assert!(claimed(&mut seat, &ballot(names[0], &names, ALIVE), T(0)).is_some());
        assert!(seat.decide(&leaving, T(5_000)), "it says so");
        assert!(*seat.owner() == Owner::Local && seat.leaving());
        if heard {
            seat.on_owner_claim(Some(names[1]), STATION, &leaving, T(5_010));
        } else {
            seat.decide(&leaving, T(6_000));
        }
        assert!(*seat.owner() != Owner::Local && !seat.leaving());
    }
}

#[test]
fn who_asks_is_shunned_only_when_it_was_believed_to_have_it() {
    let names = ranked();
    let mine = ballot(names[1], &names, ALIVE);
    let mut seat = VipElection::new(T(0), T(3_000));
    seat.on_probe_from_owner(names[0], T(10));
    seat.on_owner_claim(Some(names[0]), STATION, &mine, T(400));
    assert_eq!(
        *seat.owner(),
        Owner::Peer { node: names[0].into(), insists: false },
        "it found nobody, and took it"
    );
    seat.on_probe_from_owner(names[0], T(5_000));
    assert!(matches!(seat.owner(), Owner::None { .. }), "it gives up");
    seat.on_owner_claim(Some(names[0]), STATION, &mine, T(5_001));
    assert!(matches!(seat.owner(), Owner::None { .. }), "its last words");
}

#[test]
fn a_holder_that_cannot_know_asks_nothing_until_it_is_known_that_it_was_missed() {
    let names = ranked();
    let suspended = ElectionInput {
        eligibility: Eligibility::Ineligible,
        ..ballot(names[0], &names[1..], ALIVE)
    };
    for missed in [false, true] {
        let mut seat = VipElection::new(T(0), T(0));
        assert!(claimed(&mut seat, &ballot(names[0], &names, ALIVE), T(0)).is_some());
        seat.suspend(T(5_000), T(8_000));
        assert!((0..30).all(|n| !seat.decide(&suspended, T(5_000 + n * 10))), "no question");
        assert!(matches!(seat.owner(), Owner::None { .. }));
        if missed {
            seat.probe_owner(T(5_300));
            assert!(seat.decide(&ballot(names[0], &names, ALIVE), T(5_300)), "who has taken over?");
            assert_eq!(
                claimed(&mut seat, &ballot(names[0], &names, ALIVE), T(5_300)),
                Some(T(5_300) + PROBE_INTERVAL * 4)
            );
        } else {
            seat.resume();
            assert!(!seat.decide(&ballot(names[0], &names, ALIVE), T(5_300)));
            assert_eq!(*seat.owner(), Owner::Local);
        }
    }
}

const DEAF: &dyn Fn(&str) -> Reachability = &|_| Reachability::Unidirectional;

/// Frames are lost in one direction: of the two only the one that hears can yield.
#[test]
fn a_holder_that_does_not_hear_us_keeps_the_address_whatever_the_ranks() {
    let names = ranked();
    let best: [Box<str>; 1] = [names[0].into()];
    let mine = ElectionInput { preferred: &best, ..ballot(names[0], &names[..1], DEAF) };
    let mut seat = VipElection::new(T(0), T(0));
    assert!(claimed(&mut seat, &mine, T(0)).is_some());
    seat.on_owner_claim(Some(names[1]), STATION, &mine, T(1_000));
    let theirs = Owner::Peer { node: names[1].into(), insists: true };
    assert_eq!(*seat.owner(), theirs);
    let asked = (10..=1_500).filter(|n| seat.decide(&mine, T(n * 100))).count();
    assert_eq!(
        (asked, seat.owner()),
        (0, &theirs),
        "it would not hear a question, and announces once a minute"
    );
    assert_eq!(
        claimed(&mut seat, &mine, T(150_000)),
        Some(T(1_000) + SILENCE_ONE_WAY),
        "it has ended, or was never heard again"
    );
    assert_eq!(
        claimed(
            &mut VipElection { owner: theirs, ..VipElection::new(T(0), T(0)) },
            &ballot(names[0], &names, GONE),
            T(10)
        ),
        Some(T(10))
    );
}
