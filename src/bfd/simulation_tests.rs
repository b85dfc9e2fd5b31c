//! Two nodes on a simulated link that loses, delays, reorders and repeats.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use proptest::prelude::*;

use super::packet::{AuthenticationType, Key, SessionState};
use super::*;
use crate::common::random::Random;

fn ms(value: u64) -> Duration {
    Duration::from_millis(value)
}

/// What happens to packets in one direction.
#[derive(Clone, Copy, Debug, Default)]
struct Weather {
    /// In percent.
    loss: u32,
    /// At most, in milliseconds; evenly drawn, so packets overtake each other.
    delay: u32,
    /// In percent.
    repeated: u32,
}

const CUT: Weather = Weather { loss: 100, delay: 0, repeated: 0 };

struct World {
    now: Duration,
    nodes: [Sessions; 2],
    /// By time of arrival and number: receiver and payload.
    wire: BTreeMap<(Duration, u64), (usize, Vec<u8>)>,
    weather: [Weather; 2],
    /// Number of packets of each that are lost next.
    lose: [u32; 2],
    random: Random,
    count: u64,
    events: [Vec<Event>; 2],
}

fn address(node: usize) -> IpAddr {
    IpAddr::from([10, 0, 0, 1 + node as u8])
}

fn peer_of(node: usize) -> PeerKey {
    PeerKey { interface: Some(2), address: address(1 - node) }
}

impl World {
    fn new(seed: u64, authenticated: bool) -> World {
        let kind = AuthenticationType::MeticulousKeyedSha1;
        let authentication = authenticated.then(|| Authentication {
            kind,
            key_id: 1,
            key: Key::new(b"secret").expect("not empty"),
        });
        let config = BfdConfig { authentication, ..BfdConfig::default() };
        let nodes = [0, 1].map(|node| Sessions::new(config.clone(), seed * 2 + node));
        let mut world = World {
            now: ms(5000),
            nodes,
            wire: BTreeMap::new(),
            weather: [Weather::default(); 2],
            lose: [0; 2],
            random: Random::new(!seed),
            count: 0,
            events: Default::default(),
        };
        for node in [0, 1] {
            let effects = world.nodes[node].add(peer_of(node), Peer::default(), world.now);
            world.carry(node, effects);
        }
        world
    }

    fn carry(&mut self, from: usize, effects: Effects) {
        let Weather { loss, delay, repeated } = self.weather[from];
        for packet in effects.packets {
            if self.lose[from] > 0 {
                self.lose[from] -= 1;
                continue;
            }
            let copies = 1 + u32::from(self.random.between(1, 100) <= repeated);
            for _ in 0..copies {
                if self.random.between(1, 100) > loss {
                    let arrival = self.now
                        + Duration::from_micros(u64::from(
                            self.random.between(50, 50 + delay * 1000),
                        ));
                    self.count += 1;
                    self.wire.insert((arrival, self.count), (1 - from, packet.payload().to_vec()));
                }
            }
        }
        self.events[from].extend(effects.events);
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let arrival = self.wire.keys().next().map(|(at, _)| *at);
            let next = self
                .nodes
                .iter()
                .filter_map(Sessions::poll_timeout)
                .chain(arrival)
                .min()
                .expect("sessions never rest");
            if next > end {
                break;
            }
            self.now = self.now.max(next);
            while let Some(entry) =
                self.wire.first_entry().filter(|entry| entry.key().0 <= self.now)
            {
                let (to, payload) = entry.remove();
                let received = Received {
                    interface: 2,
                    source: address(1 - to),
                    ttl: Some(255),
                    multihop: false,
                    payload: &payload,
                };
                let effects = self.nodes[to].handle(&received, self.now);
                self.carry(to, effects);
            }
            for node in [0, 1] {
                let effects = self.nodes[node].handle_timeout(self.now);
                self.carry(node, effects);
            }
        }
        self.now = end;
    }

    fn states(&self) -> [SessionState; 2] {
        [0, 1].map(|node| self.nodes[node].status()[0].state)
    }

    /// The longer one of the two.
    fn detection_time(&self) -> Duration {
        self.nodes
            .iter()
            .filter_map(|node| node.status()[0].detection_time)
            .max()
            .expect("packets have arrived at both")
    }

    fn peer_events(&mut self) -> Vec<SessionChange> {
        let events = self.events.iter_mut().flat_map(std::mem::take);
        events
            .filter_map(|event| if let Event::Peer(event) = event { Some(event) } else { None })
            .collect()
    }
}

fn weather() -> impl Strategy<Value = Weather> {
    (0u32..=100, 0u32..80, 0u32..30).prop_map(|(loss, delay, repeated)| Weather {
        loss,
        delay,
        repeated,
    })
}

/// Losses that sessions have to live with.
fn fair_weather() -> impl Strategy<Value = Weather> {
    (0u32..5, 0u32..8).prop_map(|(loss, delay)| Weather { loss, delay, repeated: 5 })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// RFC 5880 §6.2, §6.8.6: whatever was before, sessions come up within a few slow intervals
    /// once packets get through, and stay up.
    #[test]
    fn sessions_come_up_when_the_link_heals(seed: u32, authenticated: bool, phases in prop::collection::vec(([weather(), weather()], 1u64..4000), 1..6)) {
        let mut world = World::new(seed.into(), authenticated);
        for (weather, time) in phases {
            world.weather = weather;
            world.run(ms(time));
        }
        world.weather = [Weather { loss: 0, delay: 2, repeated: 0 }; 2];
        // Twice the detection time of slow intervals until sequence numbers are forgotten (§6.8.1),
        // and a slow interval more.
        world.run(ms(9000));
        prop_assert_eq!(world.states(), [SessionState::Up; 2]);
        world.peer_events();
        world.run(ms(20_000));
        prop_assert_eq!(world.peer_events(), vec![]);
        prop_assert!(world.detection_time() <= ms(600));
    }

    /// §6.8.4: silence is noticed after the detection time; §6.8.6: by the other side too, if it
    /// still hears.
    #[test]
    fn a_cut_is_detected_within_the_detection_time(seed: u32, authenticated: bool, both: bool, weather in [fair_weather(), fair_weather()], before in 0u64..3000) {
        let mut world = World::new(seed.into(), authenticated);
        world.run(ms(3000));
        world.weather = weather;
        world.run(ms(before));
        world.weather = [Weather::default(); 2];
        world.run(ms(2500));
        prop_assert_eq!(world.states(), [SessionState::Up; 2]);
        world.peer_events();
        world.weather[0] = CUT;
        if both {
            world.weather[1] = CUT;
        }
        let detection = world.detection_time();
        world.run(detection + ms(1));
        prop_assert!(!world.states().contains(&SessionState::Up), "{:?}", world.states());
        let causes: BTreeSet<Cause> = world.peer_events().into_iter().filter(|event| event.state == SessionState::Down).map(|event| event.cause).collect();
        let expected = if both { BTreeSet::from([Cause::DetectionTimeExpired]) } else { [Cause::DetectionTimeExpired, Cause::NeighborDown].into() };
        prop_assert_eq!(causes, expected);
        world.run(ms(10_000));
        prop_assert!(!world.states().contains(&SessionState::Up), "one direction is not enough: {:?}", world.states());
    }

    /// §6.8.4: what a session survives by its multiplier: single losses, delay below an interval.
    #[test]
    fn single_losses_harm_nobody(seed: u32, delay in 0u32..10) {
        let mut world = World::new(seed.into(), true);
        world.run(ms(3000));
        world.peer_events();
        for _ in 0..20 {
            world.weather = [CUT; 2];
            world.run(ms(38)); // Not two packets of either side.
            world.weather = [Weather { loss: 0, delay, repeated: 0 }; 2];
            world.run(ms(300));
        }
        prop_assert_eq!(world.peer_events(), vec![]);
    }
}

/// RFC 5880 §6.8.16: of three AdminDown packets any two may be lost, whether or not the peer's own
/// packets arrive; a peer whose packets arrive is sent another one.
#[test]
fn a_planned_stop_is_no_failure_although_packets_are_lost() {
    for (seed, lost) in (0..50).flat_map(|seed| [0, 1, 2].map(|lost| (seed, lost))) {
        for one_way in [false, true] {
            let mut world = World::new(seed, seed % 2 == 0);
            world.run(ms(3000 + seed * 7));
            assert_eq!(world.states(), [SessionState::Up; 2]);
            world.peer_events();
            world.lose[0] = lost;
            if one_way {
                world.weather[1] = CUT;
            }
            let effects = world.nodes[0].set(&BTreeMap::new(), world.now);
            world.carry(0, effects);
            world.run(ms(500));
            let causes: Vec<Cause> =
                world.peer_events().into_iter().map(|event| event.cause).collect();
            assert_eq!(
                causes,
                [Cause::LocalAdminDown, Cause::NeighborAdminDown],
                "seed {seed}, {lost} lost, one-way: {one_way}"
            );
            assert!(
                one_way || world.nodes[0].is_empty(),
                "the session ends when the peer has reacted"
            );
        }
    }
}

/// A link whose delay varies by more than the detection time: sessions fail at first, then ask for
/// longer intervals, say so and hold.
#[test]
fn a_link_with_much_jitter_ends_in_longer_intervals_and_stays_up() {
    let mut world = World::new(1, false);
    world.run(ms(2000));
    world.weather = [Weather { loss: 0, delay: 170, repeated: 0 }; 2];
    world.run(ms(40_000));
    let said = |events: &[Event]| {
        events.iter().any(|event| {
            matches!(
                event,
                Event::Adapted(Adaptation { cause: AdaptationCause::LatePackets(_), .. })
            )
        })
    };
    assert!(said(&world.events[0]) && said(&world.events[1]));
    world.peer_events();
    world.run(ms(20_000));
    assert_eq!((world.peer_events(), world.states()), (vec![], [SessionState::Up; 2]));
    assert!(world.detection_time() > ms(150));
    world.weather = [Weather::default(); 2];
    world.run(ms(600_000));
    assert_eq!(world.detection_time(), ms(150), "and back");
}
