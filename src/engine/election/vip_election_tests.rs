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
    standing: &'a dyn Fn(&str) -> Standing,
) -> Ballot<'a> {
    let candidates = nodes
        .iter()
        .map(|node| Candidate { node, fresh: false, rank: rank(VIP, node, &[]) })
        .collect();
    Ballot {
        address: VIP,
        me,
        stance: Stance::Eligible,
        candidates,
        preferred: &[],
        standing,
        alone: false,
        fresh: false,
        complete: Some(T(0)),
        step: STEP,
        check: crate::engine::election::rank::CHECK,
    }
}

const ALIVE: &dyn Fn(&str) -> Standing = &|_| Standing::Alive;
const UNSEEN: &dyn Fn(&str) -> Standing = &|_| Standing::Unseen;
const GONE: &dyn Fn(&str) -> Standing = &|_| Standing::Gone;

/// When the seat is claimed, stepping by its own deadlines.
fn claimed(seat: &mut Seat, ballot: &Ballot<'_>, from: Duration) -> Option<Duration> {
    let mut now = from;
    for _ in 0..100 {
        seat.decide(ballot, now);
        if *seat.holder() == Holder::Me {
            return Some(now);
        }
        now = seat.deadline()?;
    }
    None
}

#[test]
fn alone_it_is_claimed_at_once() {
    let alone = Ballot { alone: true, ..ballot("a", &["a"], ALIVE) };
    assert_eq!(claimed(&mut Seat::new(T(5), T(5)), &alone, T(5)), Some(T(5)));
}

#[test]
fn the_first_claims_and_each_next_waits_a_step() {
    let names = ranked();
    for (turn, me) in names.iter().enumerate() {
        let mut seat = Seat::new(T(0), T(3_000));
        let claim = claimed(&mut seat, &ballot(me, &names, ALIVE), T(0));
        assert_eq!(claim, Some(ASK * 4 + STEP * turn as u32), "{me}");
    }
}

#[test]
fn the_lower_ranked_yields_and_the_holder_keeps_it_whatever_its_rank() {
    let names = ranked();
    let (best, worst) = (names[0], names[2]);
    let mut seat = Seat::new(T(0), T(0));
    assert!(claimed(&mut seat, &ballot(worst, &names, ALIVE), T(0)).is_some());
    seat.heard(Some(best), STATION, &ballot(worst, &names, GONE), T(5_000));
    assert_eq!(*seat.holder(), Holder::Me, "last words of one that is gone");
    seat.heard(Some(best), STATION, &ballot(worst, &names, ALIVE), T(5_000));
    assert_eq!(*seat.holder(), Holder::Peer { node: best.into(), insists: false });

    let mut seat = Seat::new(T(0), T(0));
    seat.heard(Some(worst), STATION, &ballot(best, &names, ALIVE), T(0));
    seat.decide(&ballot(best, &names, ALIVE), T(4_000));
    assert_eq!(*seat.holder(), Holder::Peer { node: worst.into(), insists: false });
    seat.decide(&ballot(best, &names, GONE), T(4_100));
    assert_eq!(*seat.holder(), Holder::Me, "at once, when the holder is gone");
}

#[test]
fn preference_is_stronger_than_possession() {
    let names = ranked();
    let preferred = [names[2].into()];
    let preferring =
        |me| Ballot { preferred: &preferred, ..ballot(me, &[names[2], names[0], names[1]], ALIVE) };
    let mut seat = Seat::new(T(0), T(0));
    seat.heard(Some(names[0]), STATION, &preferring(names[2]), T(0));
    seat.decide(&Ballot { fresh: true, ..preferring(names[2]) }, T(10));
    assert_ne!(*seat.holder(), Holder::Me, "not while it has just returned");
    seat.decide(&preferring(names[2]), T(10));
    assert_eq!(*seat.holder(), Holder::Me);
}

#[test]
fn a_holder_that_falls_silent_is_asked_and_replaced() {
    let names = ranked();
    // With a session it is asked later and more often: its silence may as well be lost frames.
    for (standing, first, asks) in [
        (ALIVE, crate::engine::election::rank::CHECK, ASKS_ALIVE),
        (UNSEEN, SILENCE - ASK * (u32::from(ASKS) + 1), ASKS),
    ] {
        let mut seat = Seat::new(T(0), T(0));
        let mine = ballot(names[0], &names, standing);
        seat.heard(Some(names[1]), STATION, &mine, T(0));
        let asked: Vec<Duration> =
            (0..=70).map(|n| T(n * 100)).filter(|now| seat.decide(&mine, *now)).collect();
        assert_eq!((asked[0], asked.len(), seat.holder()), (first, usize::from(asks), &Holder::Me));
    }
}

#[test]
fn a_holder_whose_session_is_up_keeps_the_address_when_the_last_question_alone_is_answered() {
    let names = ranked();
    let mut seat = Seat::new(T(0), T(0));
    let mine = ballot(names[0], &names, ALIVE);
    seat.heard(Some(names[1]), STATION, &mine, T(0));
    let asked: Vec<Duration> =
        (0..=61).map(|n| T(n * 100)).filter(|now| seat.decide(&mine, *now)).collect();
    assert_eq!(asked.last(), Some(&T(6_100)), "the twelfth");
    seat.heard(Some(names[1]), STATION, &mine, T(6_150));
    assert!(!seat.decide(&mine, T(6_200)));
    assert_eq!(*seat.holder(), Holder::Peer { node: names[1].into(), insists: false });
}

#[test]
fn who_leaves_answers_until_another_is_heard_or_a_second_has_passed() {
    let names = ranked();
    let leaving = Ballot { stance: Stance::Leave, ..ballot(names[0], &[names[1]], ALIVE) };
    for heard in [true, false] {
        let mut seat = Seat::new(T(0), T(0));
        assert!(claimed(&mut seat, &ballot(names[0], &names, ALIVE), T(0)).is_some());
        assert!(seat.decide(&leaving, T(5_000)), "it says so");
        assert!(*seat.holder() == Holder::Me && seat.leaving());
        if heard {
            seat.heard(Some(names[1]), STATION, &leaving, T(5_010));
        } else {
            seat.decide(&leaving, T(6_000));
        }
        assert!(*seat.holder() != Holder::Me && !seat.leaving());
    }
}

#[test]
fn who_asks_is_shunned_only_when_it_was_believed_to_have_it() {
    let names = ranked();
    let mine = ballot(names[1], &names, ALIVE);
    let mut seat = Seat::new(T(0), T(3_000));
    seat.asked(names[0], T(10));
    seat.heard(Some(names[0]), STATION, &mine, T(400));
    assert_eq!(
        *seat.holder(),
        Holder::Peer { node: names[0].into(), insists: false },
        "it found nobody, and took it"
    );
    seat.asked(names[0], T(5_000));
    assert!(matches!(seat.holder(), Holder::Nobody { .. }), "it gives up");
    seat.heard(Some(names[0]), STATION, &mine, T(5_001));
    assert!(matches!(seat.holder(), Holder::Nobody { .. }), "its last words");
}

#[test]
fn a_holder_that_cannot_know_asks_nothing_until_it_is_known_that_it_was_missed() {
    let names = ranked();
    let suspended = Ballot { stance: Stance::Barred, ..ballot(names[0], &names[1..], ALIVE) };
    for missed in [false, true] {
        let mut seat = Seat::new(T(0), T(0));
        assert!(claimed(&mut seat, &ballot(names[0], &names, ALIVE), T(0)).is_some());
        seat.suspend(T(5_000), T(8_000));
        assert!((0..30).all(|n| !seat.decide(&suspended, T(5_000 + n * 10))), "no question");
        assert!(matches!(seat.holder(), Holder::Nobody { .. }));
        if missed {
            seat.inquire(T(5_300));
            assert!(seat.decide(&ballot(names[0], &names, ALIVE), T(5_300)), "who has taken over?");
            assert_eq!(
                claimed(&mut seat, &ballot(names[0], &names, ALIVE), T(5_300)),
                Some(T(5_300) + ASK * 4)
            );
        } else {
            seat.resume();
            assert!(!seat.decide(&ballot(names[0], &names, ALIVE), T(5_300)));
            assert_eq!(*seat.holder(), Holder::Me);
        }
    }
}

const DEAF: &dyn Fn(&str) -> Standing = &|_| Standing::Deaf;

/// Frames are lost in one direction: of the two only the one that hears can yield.
#[test]
fn a_holder_that_does_not_hear_us_keeps_the_address_whatever_the_ranks() {
    let names = ranked();
    let best: [Box<str>; 1] = [names[0].into()];
    let mine = Ballot { preferred: &best, ..ballot(names[0], &names[..1], DEAF) };
    let mut seat = Seat::new(T(0), T(0));
    assert!(claimed(&mut seat, &mine, T(0)).is_some());
    seat.heard(Some(names[1]), STATION, &mine, T(1_000));
    let theirs = Holder::Peer { node: names[1].into(), insists: true };
    assert_eq!(*seat.holder(), theirs);
    let asked = (10..=1_500).filter(|n| seat.decide(&mine, T(n * 100))).count();
    assert_eq!(
        (asked, seat.holder()),
        (0, &theirs),
        "it would not hear a question, and announces once a minute"
    );
    assert_eq!(
        claimed(&mut seat, &mine, T(150_000)),
        Some(T(1_000) + SILENCE_DEAF),
        "it has ended, or was never heard again"
    );
    assert_eq!(
        claimed(
            &mut Seat { holder: theirs, ..Seat::new(T(0), T(0)) },
            &ballot(names[0], &names, GONE),
            T(10)
        ),
        Some(T(10))
    );
}
