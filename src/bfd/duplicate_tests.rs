//! A machine that was cloned, on a LAN whose switch sends frames for its address to the one of the
//! two that sent last.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::packet::{AuthenticationType, Key};
use super::*;

fn ms(value: u64) -> Duration {
    Duration::from_millis(value)
}

fn address(host: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, host])
}

/// Sessions by address, the duplicates that each reported (whether of itself), and the last sender
/// from each address.
struct Lan {
    machines: Vec<(u8, Sessions, Vec<bool>)>,
    last: BTreeMap<IpAddr, usize>,
}

impl Lan {
    fn plug(&mut self, host: u8, peer: u8, config: &BfdConfig, seed: u64, now: Duration) {
        let mut sessions = Sessions::new(config.clone(), seed);
        let effects = sessions.add(
            PeerKey { interface: Some(2), address: address(peer) },
            Peer::default(),
            now,
        );
        self.machines.push((host, sessions, Vec::new()));
        self.apply(self.machines.len() - 1, effects, now);
    }

    fn apply(&mut self, machine: usize, effects: Effects, now: Duration) {
        let source = address(self.machines[machine].0);
        let reports = effects.events.iter().filter_map(|event| {
            if let Event::DuplicateIdentity { ours, .. } = event { Some(*ours) } else { None }
        });
        self.machines[machine].2.extend(reports);
        for packet in effects.packets {
            self.last.insert(source, machine);
            let Some(to) = self.last.get(&packet.peer.address).copied() else { continue };
            let received = Received {
                interface: 2,
                source,
                ttl: Some(255),
                multihop: false,
                payload: packet.payload(),
            };
            let effects = self.machines[to].1.handle(&received, now);
            self.apply(to, effects, now);
        }
    }

    fn run(&mut self, from: Duration, until: Duration) {
        let mut now = from;
        while now < until {
            // Other traffic of the two moves the address in the switch as well.
            let two = self.machines.len() - 1;
            self.last.insert(address(2), 1 + now.as_millis() as usize / 10 % two);
            for machine in 0..self.machines.len() {
                let effects = self.machines[machine].1.handle_timeout(now);
                self.apply(machine, effects, now);
            }
            now += ms(1);
        }
    }

    fn reports(&self) -> Vec<&[bool]> {
        self.machines.iter().map(|machine| machine.2.as_slice()).collect()
    }
}

fn pair(config: &BfdConfig) -> Lan {
    let mut lan =
        Lan { machines: Vec::new(), last: BTreeMap::from([(address(1), 0), (address(2), 1)]) };
    lan.machines.push((1, Sessions::new(config.clone(), 1), Vec::new()));
    lan.machines.push((2, Sessions::new(config.clone(), 2), Vec::new()));
    for (machine, peer) in [(0, 2), (1, 1)] {
        let effects = lan.machines[machine].1.add(
            PeerKey { interface: Some(2), address: address(peer) },
            Peer::default(),
            ms(0),
        );
        lan.apply(machine, effects, ms(0));
    }
    lan.run(ms(0), ms(5000));
    lan
}

fn secret() -> BfdConfig {
    let kind = AuthenticationType::MeticulousKeyedSha1;
    BfdConfig {
        authentication: Some(Authentication {
            kind,
            key_id: 1,
            key: Key::new(b"secret").expect("a key"),
        }),
        ..BfdConfig::default()
    }
}

#[test]
fn all_report_a_clone_and_repeat_it() {
    let mut lan = pair(&BfdConfig::default());
    assert_eq!(lan.reports(), [&[] as &[bool]; 2]);
    lan.plug(2, 1, &BfdConfig::default(), 3, ms(5000));
    lan.run(ms(5000), ms(9000));
    let reports = lan.reports();
    assert!(reports.iter().all(|reports| !reports.is_empty()), "within 4 s: {reports:?}");
    assert!(reports[0].iter().all(|ours| !ours), "a clone of the peer: {reports:?}");
    assert!(
        reports[1..].iter().all(|reports| reports.iter().all(|ours| *ours)),
        "a clone of itself: {reports:?}"
    );
    assert!(reports.iter().all(|reports| reports.len() <= 4), "once a second: {reports:?}");
    lan.machines.iter_mut().for_each(|machine| machine.2.clear());
    lan.run(ms(9000), ms(19_000));
    assert!(lan.reports().iter().all(|reports| !reports.is_empty()), "{:?}", lan.reports());
}

/// The clone knows the secret, but has other sequence numbers.
#[test]
fn a_clone_with_the_secret_is_reported() {
    let mut lan = pair(&secret());
    lan.plug(2, 1, &secret(), 3, ms(5000));
    lan.run(ms(5000), ms(25_000));
    let reports = lan.reports();
    assert!(reports[1].contains(&true) || reports[2].contains(&true), "{reports:?}");
}

#[test]
fn a_restart_is_no_duplicate() {
    for config in [BfdConfig::default(), secret()] {
        let mut lan = pair(&config);
        for run in 0..6 {
            let begin = ms(5000 + 3000 * run);
            // The previous run is gone, and its packets with it.
            lan.machines[1].1 = Sessions::new(config.clone(), 100 + run);
            let effects = lan.machines[1].1.add(
                PeerKey { interface: Some(2), address: address(1) },
                Peer::default(),
                begin,
            );
            lan.apply(1, effects, begin);
            lan.run(begin, begin + ms(3000));
        }
        assert_eq!(lan.reports(), [&[] as &[bool]; 2]);
    }
}
