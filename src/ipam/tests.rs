//! Who gets which address, and why not.

use std::time::Duration;

use super::pool::parse_pools;
use super::*;
use crate::model::{Family, Protocol, TrafficPolicy, fixtures};

fn ipam(pools: &str) -> Ipam {
    Ipam::new(
        parse_pools(pools).expect("pools of the test"),
        Options::default(),
        Allocations::new(),
    )
}

fn service(name: &str, change: impl FnOnce(&mut Service)) -> Service {
    let mut service = fixtures::service(name);
    change(&mut service);
    service
}

fn plain(name: &str) -> Service {
    service(name, |_| ())
}

fn asking(name: &str, addresses: &[&str]) -> Service {
    service(name, |s| s.request.addresses = addresses.iter().map(|a| ip(a)).collect())
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("address of the test")
}

/// The addresses given, or the code of the refusal.
fn outcome(ipam: &mut Ipam, service: &Service) -> String {
    match ipam.assign(service) {
        Ok(assignment) => {
            assignment.addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" ")
        }
        Err(refusal) => refusal.code().to_string(),
    }
}

#[test]
fn the_first_free_address_and_it_stays() {
    let mut ipam = ipam("10.0.0.1-10.0.0.2");
    assert_eq!(outcome(&mut ipam, &plain("a")), "10.0.0.1");
    assert_eq!(outcome(&mut ipam, &plain("b")), "10.0.0.2");
    assert_eq!(outcome(&mut ipam, &plain("c")), "PoolExhausted");
    assert!(ipam.release(&plain("a").key) && !ipam.release(&plain("a").key));
    assert_eq!(outcome(&mut ipam, &plain("b")), "10.0.0.2", "kept though a lower one is free");
    assert_eq!(outcome(&mut ipam, &plain("c")), "10.0.0.1");
    assert!(ipam.take_changed() && !ipam.take_changed());
}

#[test]
fn what_may_be_asked_for() {
    let mut ipam =
        ipam("lan=10.0.0.1-10.0.0.9,fd00::/126;spare!=10.0.1.1-10.0.1.2;shop[shop]=10.0.2.1");
    ipam.set_reserved(
        [
            (ip("10.0.0.9"), Reserved::NodeAddress("n1".into())),
            (ip("10.0.0.8"), Reserved::Broadcast),
        ]
        .into(),
    );
    let pool = |name: &str, pool: &str| service(name, |s| s.request.pool = Some(pool.into()));
    let in_shop = |name: &str| service(name, |s| s.key = ObjectKey::new("shop", name));
    // Service → address or refusal, and why
    let cases = [
        (asking("a", &["10.0.0.5"]), "10.0.0.5", "free and ours"),
        (asking("b", &["10.0.0.5"]), "AddressHeld", "taken"),
        (asking("c", &["192.168.0.1"]), "AddressOutsidePools", "never what is not ours"),
        (asking("d", &["10.0.0.9"]), "AddressReserved", "a node's"),
        (asking("e", &["10.0.0.8"]), "AddressReserved", "broadcast"),
        (asking("f", &["10.0.0.6", "10.0.0.7"]), "TwoAddressesOfOneFamily", ""),
        (asking("g", &["fd00::1"]), "AddressOfWrongFamily", "spec.ipFamilies is IPv4"),
        (asking("h", &["10.0.2.1"]), "PoolReserved", "another namespace's pool"),
        (in_shop("i"), "10.0.2.1", "its namespace's pool first"),
        (in_shop("j"), "10.0.0.1", "then the general one"),
        (pool("k", "spare"), "10.0.1.1", "on request, by name"),
        (asking("l", &["10.0.1.2"]), "10.0.1.2", "on request, by address"),
        (pool("m", "nosuch"), "NoSuchPool", ""),
        (pool("n", "shop"), "PoolReserved", ""),
        (pool("o", "spare"), "PoolExhausted", ""),
        (plain("p"), "10.0.0.2", "never out of an on-request pool"),
        (
            service("q", |s| s.published = vec![ip("10.0.0.4")]),
            "10.0.0.4",
            "what its status says, if it is ours and free",
        ),
        (
            service("r", |s| s.published = vec![ip("10.9.9.9")]),
            "10.0.0.3",
            "a status is a hint and no more",
        ),
    ];
    for (service, expected, why) in cases {
        assert_eq!(outcome(&mut ipam, &service), expected, "{}: {why}", service.key);
    }
}

#[test]
fn a_changed_wish_moves_the_service() {
    let mut ipam = ipam("lan=10.0.0.1-10.0.0.9;dmz=10.0.1.1");
    assert_eq!(outcome(&mut ipam, &plain("a")), "10.0.0.1");
    assert_eq!(outcome(&mut ipam, &asking("a", &["10.0.0.7"])), "10.0.0.7");
    assert_eq!(
        outcome(&mut ipam, &service("a", |s| s.request.pool = Some("dmz".into()))),
        "10.0.1.1"
    );
    assert_eq!(outcome(&mut ipam, &asking("a", &["10.9.0.1"])), "AddressOutsidePools");
    assert!(ipam.allocations().is_empty(), "a refused Service has nothing");
}

#[test]
fn both_families_or_what_there_is() {
    let dual = |name: &str, require| {
        service(name, |s| {
            s.families = vec![Family::V6, Family::V4];
            s.require_dual_stack = require;
        })
    };
    let mut both = ipam("lan=10.0.0.1-10.0.0.2,fd00::1-fd00::1");
    assert_eq!(outcome(&mut both, &dual("a", true)), "fd00::1 10.0.0.1", "in the Service's order");
    assert_eq!(outcome(&mut both, &dual("b", true)), "NoDualStack");
    let assignment = both.assign(&dual("b", false)).unwrap();
    assert_eq!(assignment.addresses, [ip("10.0.0.2")]);
    assert!(assignment.notes.iter().any(|note| note.contains("IPv6")), "{:?}", assignment.notes);
    both.release(&dual("a", true).key);
    assert_eq!(
        outcome(&mut both, &dual("b", false)),
        "fd00::1 10.0.0.2",
        "the missing family is made up for, the other stays"
    );
    let mut named = dual("c", false);
    named.request.addresses = vec![ip("10.0.0.1")];
    let notes = both.assign(&named).unwrap().notes;
    assert_eq!(
        notes,
        ["none of the requested addresses is of IPv6; serving without"],
        "not the pool's fault"
    );
}

/// An address is in clients' configurations and in DNS: what a Service has stays, whatever is added
/// beside it.
#[test]
fn the_address_that_a_service_has_stays_when_a_family_comes() {
    let dual = |name: &str| service(name, |s| s.families = vec![Family::V4, Family::V6]);
    let mut before = ipam("lan=10.0.0.1;more=10.0.1.1-10.0.1.9");
    assert_eq!(outcome(&mut before, &plain("a")), "10.0.0.1");
    assert_eq!(outcome(&mut before, &dual("b")), "10.0.1.1", "the first pool is full");
    assert_eq!(outcome(&mut before, &dual("c")), "10.0.1.2");
    let mut allocations = Allocations::clone(before.allocations());
    allocations.retain(|key, _| &*key.name == "c");
    let pools = parse_pools("lan=10.0.0.1,fd00::1-fd00::9;more=10.0.1.1-10.0.1.9,fd00:1::1")
        .expect("pools of the test");
    let mut after = Ipam::new(pools, Options::default(), allocations);
    assert_eq!(
        outcome(&mut after, &dual("c")),
        "10.0.1.2 fd00:1::1",
        "although addresses before it, and the first pool, are free"
    );
}

#[test]
fn an_address_is_shared_by_agreement_only() {
    let shared = |name: &str, port, change: &dyn Fn(&mut Service)| {
        service(name, |s| {
            s.request.sharing = Some("dns".into());
            s.ports[0].port = port;
            change(s);
        })
    };
    let local = |selector: &'static str| {
        move |s: &mut Service| {
            s.external = TrafficPolicy::Local;
            s.selector = Some(selector.into());
        }
    };
    let at = |address: &'static str| move |s: &mut Service| s.request.addresses = vec![ip(address)];
    let mut ipam = ipam("10.0.0.1-10.0.0.9");
    let cases = [
        (shared("a", 53, &|_| ()), "10.0.0.1", "the first"),
        (shared("b", 80, &|_| ()), "10.0.0.1", "same key, another port"),
        (shared("c", 53, &at("10.0.0.1")), "AddressHeld", "same port"),
        (shared("d", 81, &|s| s.request.sharing = Some("other".into())), "10.0.0.2", "another key"),
        (shared("e", 53, &|s| s.ports[0].protocol = Protocol::Udp), "10.0.0.1", "another protocol"),
        (shared("f", 90, &local("x")), "10.0.0.3", "Local beside Cluster may go to other nodes"),
        (shared("g", 91, &local("x")), "10.0.0.3", "both Local with the same pods"),
        (shared("h", 92, &local("y")), "10.0.0.4", "both Local with other pods"),
    ];
    for (service, expected, why) in cases {
        assert_eq!(outcome(&mut ipam, &service), expected, "{}: {why}", service.key);
    }
}

#[test]
fn an_address_in_use_elsewhere_is_left_alone_for_a_while() {
    let mut ipam = ipam("10.0.0.1-10.0.0.2");
    assert_eq!(outcome(&mut ipam, &plain("a")), "10.0.0.1");
    ipam.conflict(ip("10.0.0.1"), [2, 0, 0, 0, 0, 7], Duration::from_secs(300));
    let assignment = ipam.assign(&plain("a")).unwrap();
    assert_eq!(assignment.addresses, [ip("10.0.0.2")]);
    assert!(assignment.notes[0].contains("02:00:00:00:00:07"), "{:?}", assignment.notes);
    assert_eq!(outcome(&mut ipam, &asking("b", &["10.0.0.1"])), "AddressInUse");
    assert!(
        !ipam.expire_conflicts(Duration::from_secs(299))
            && ipam.expire_conflicts(Duration::from_secs(300))
    );
    assert_eq!(outcome(&mut ipam, &asking("b", &["10.0.0.1"])), "10.0.0.1");
}

#[test]
fn a_smaller_pool_withdraws_and_says_so() {
    let mut before = ipam("10.0.0.1-10.0.0.9");
    assert_eq!(outcome(&mut before, &asking("a", &["10.0.0.7"])), "10.0.0.7");
    assert_eq!(
        outcome(&mut before, &service("b", |s| s.published = vec![ip("10.0.0.8")])),
        "10.0.0.8"
    );
    before.mark_probed(ip("10.0.0.8"));
    let mut after = Ipam::new(
        parse_pools("10.0.0.1-10.0.0.3").unwrap(),
        Options::default(),
        Allocations::clone(before.allocations()),
    );
    assert!(after.probed(ip("10.0.0.8")));
    assert_eq!(outcome(&mut after, &asking("a", &["10.0.0.7"])), "AddressOutsidePools");
    let assignment = after.assign(&plain("b")).unwrap();
    assert_eq!(assignment.addresses, [ip("10.0.0.1")]);
    assert!(assignment.notes[0].contains("10.0.0.8"), "{:?}", assignment.notes);
    assert!(!after.probed(ip("10.0.0.1")), "a new address is probed anew");
}

#[test]
fn buggy_addresses_are_avoided_but_may_be_asked_for() {
    let options = Options { avoid_buggy_ips: true };
    let mut ipam =
        Ipam::new(parse_pools("10.0.0.254-10.0.1.1").unwrap(), options, Allocations::new());
    assert_eq!(outcome(&mut ipam, &plain("a")), "10.0.0.254");
    assert_eq!(outcome(&mut ipam, &plain("b")), "10.0.1.1");
    assert_eq!(outcome(&mut ipam, &plain("c")), "PoolExhausted");
    assert_eq!(outcome(&mut ipam, &asking("c", &["10.0.0.255"])), "10.0.0.255");
}

#[test]
fn an_exhausted_pool_counts_what_it_can_give() {
    let full = |buggy, pools: &str, given: usize| {
        let mut ipam = Ipam::new(
            parse_pools(pools).unwrap(),
            Options { avoid_buggy_ips: buggy },
            Allocations::new(),
        );
        let node = Reserved::NodeAddress("n1".into());
        ipam.set_reserved(
            [
                (ip("10.0.0.9"), node),
                (ip("10.0.0.0"), Reserved::Network),
                (ip("10.0.0.255"), Reserved::Broadcast),
            ]
            .into(),
        );
        ipam.conflict(ip("10.0.0.5"), [2, 0, 0, 0, 0, 7], Duration::from_secs(300));
        (0..given).for_each(|number| {
            assert_ne!(outcome(&mut ipam, &plain(&format!("s{number}"))), "PoolExhausted")
        });
        ipam.assign(&plain("last")).unwrap_err().to_string()
    };
    let said = full(false, "lan=10.0.0.0-10.0.0.9", 7);
    assert!(said.contains("(7 addresses, and 2 that are never given out, and 1 in use by other machines or load balancers)"), "{said}");
    let said = full(true, "lan=10.0.0.250-10.0.1.1", 6);
    assert!(said.contains("(6 addresses, and 2 that are never given out)"), "{said}");
    let pools = parse_pools("lan=10.0.0.0-10.0.0.9;other=10.1.0.1").unwrap();
    let reserved =
        [(ip("10.0.0.9"), Reserved::NodeAddress("n1".into())), (ip("10.0.0.0"), Reserved::Network)]
            .into();
    let said = reserved_sentence(&pools[0], &reserved).unwrap();
    assert!(
        said.contains(
            "10.0.0.0 (the network address of its subnet), 10.0.0.9 (an address of node n1)"
        ),
        "{said}"
    );
    assert_eq!(
        (reserved_sentence(&pools[1], &reserved), usable(&pools[0], &reserved, false)),
        (None, 8)
    );
}

#[test]
fn five_thousand_services_do_not_search_five_thousand_times() {
    let mut ipam = ipam("10.0.0.0-10.0.255.255,fd00::/64");
    for number in 0..5_000 {
        ipam.assign(&service(&format!("s{number}"), |s| s.families = vec![Family::V4, Family::V6]))
            .unwrap();
    }
    let distinct: BTreeSet<&IpAddr> =
        ipam.allocations().values().flat_map(|a| &a.addresses).collect();
    assert_eq!(distinct.len(), 10_000);
}
