//! The ruleset in a real kernel, in throw-away network namespaces. Needs root and the nft program.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::sync::Arc;

use pinnace::model::forwarding::{Backend, Balancing, Forwarding, FrontendKey};
use pinnace::model::ruleset_changes::RulesetChanges;
use pinnace::model::{Family, Protocol};
use pinnace::nft::io::writer::{ALIVE, RulesetWriter};
use pinnace::nft::{Compiler, Table};
use proptest::test_runner::{Config, TestRunner};

/// Runs a test in a thread with a network namespace of its own, which ends with the thread.
fn isolated(test: impl FnOnce() + Send + 'static) {
    let outcome = std::thread::spawn(move || {
        // SAFETY: only the network namespace of this thread changes; no memory is involved.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
            .expect("these tests need root");
        test();
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn nft(arguments: &[&str]) -> String {
    let output =
        Command::new("nft").args(arguments).output().expect("these tests need the nft program");
    assert!(
        output.status.success(),
        "nft {arguments:?}: {} {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn frontend(text: &str, protocol: Protocol, port: u16) -> FrontendKey {
    FrontendKey { address: address(text), protocol, port }
}

fn backends(prefix: &str, count: u16, local: u16) -> Vec<Backend> {
    (1..=count)
        .map(|n| Backend {
            address: address(&format!("{prefix}{n}")),
            port: 8080,
            local: n <= local,
        })
        .collect()
}

fn plain(internal: Balancing) -> Forwarding {
    Forwarding { internal, external: None, sources: None }
}

/// A change of one frontend.
fn only(key: FrontendKey, internal: Balancing) -> RulesetChanges {
    RulesetChanges {
        forwardings: BTreeMap::from([(key, Some(Arc::new(plain(internal))))]),
        ..RulesetChanges::default()
    }
}

/// Every kind of verdict, in both families.
fn example() -> RulesetChanges {
    let mut forwardings: BTreeMap<FrontendKey, Option<Arc<Forwarding>>> = BTreeMap::new();
    for (vip, pods, ranges) in [
        ("192.0.2.1", "10.42.0.", ["10.0.0.0/8", "10.1.0.0/16", "0.0.0.0/0"]),
        ("2001:db8::1", "fd42::", ["fd00::/64", "fd00::/48", "::/0"]),
    ] {
        let net = |n: usize| ranges[n].parse().unwrap();
        let mut add = |protocol, port, forwarding| {
            forwardings.insert(frontend(vip, protocol, port), Some(Arc::new(forwarding)))
        };
        add(Protocol::Tcp, 80, plain(Balancing::FlowHash(backends(pods, 3, 1))));
        add(Protocol::Udp, 53, plain(Balancing::FlowHash(backends(pods, 1, 0))));
        add(Protocol::Tcp, 81, plain(Balancing::ClientIp(backends(pods, 2, 0))));
        add(Protocol::Tcp, 82, plain(Balancing::Reject));
        add(Protocol::Sctp, 83, plain(Balancing::Drop));
        add(
            Protocol::Tcp,
            84,
            Forwarding { sources: Some(vec![net(0), net(1)]), ..plain(Balancing::Reject) },
        );
        add(
            Protocol::Tcp,
            85,
            Forwarding {
                sources: Some(vec![]),
                ..plain(Balancing::FlowHash(backends(pods, 2, 2)))
            },
        );
        add(
            Protocol::Tcp,
            86,
            Forwarding { sources: Some(vec![net(2)]), ..plain(Balancing::Drop) },
        );
        add(
            Protocol::Tcp,
            87,
            Forwarding {
                external: Some(Balancing::FlowHash(backends(pods, 1, 1))),
                ..plain(Balancing::FlowHash(backends(pods, 3, 1)))
            },
        );
        add(
            Protocol::Tcp,
            88,
            Forwarding {
                external: Some(Balancing::Drop),
                ..plain(Balancing::FlowHash(backends(pods, 3, 1)))
            },
        );
        add(
            Protocol::Tcp,
            89,
            Forwarding {
                external: Some(Balancing::ClientIp(backends(pods, 1, 1))),
                ..plain(Balancing::ClientIp(backends(pods, 3, 1)))
            },
        );
    }
    RulesetChanges {
        generation: 0,
        reset: true,
        uplinks: Some(BTreeSet::from(["eth0".into(), "wlan0".into()])),
        vips: Some(BTreeSet::from([address("192.0.2.1"), address("2001:db8::1")])),
        forwardings,
    }
}

/// What the writer believes, one table per family.
fn believed(compiler: &Compiler) -> Vec<Table> {
    Family::ALL.map(|family| compiler.table(family)).to_vec()
}

fn sorted(mut tables: Vec<Table>) -> Vec<Table> {
    tables.iter_mut().for_each(|table| table.chains.sort_by_key(|chain| chain.id));
    tables
}

/// The lines of a listing with its elements and chains in a canonical order: `nft` lists in the
/// order of hashes and of creation.
fn canonical(text: &str) -> Vec<String> {
    let text = text.replace(",\n", ", ");
    let mut blocks: Vec<String> = text.split("\n\n").map(str::to_owned).collect();
    for block in &mut blocks {
        let lines = block.lines().map(|line| {
            let line = line.trim().trim_end_matches('}').trim();
            let Some(list) = line.strip_prefix("elements = {") else { return line.to_owned() };
            let mut elements: Vec<&str> =
                list.split(',').map(|e| e.split(" expires ").next().unwrap_or(e).trim()).collect();
            elements.sort_unstable();
            elements.join(", ")
        });
        *block = lines
            .filter(|line| !line.is_empty() && !line.starts_with("table "))
            .collect::<Vec<_>>()
            .join("\n");
    }
    blocks.sort();
    blocks
}

fn canonical_json(objects: &[serde_json::Value]) -> Vec<String> {
    let mut lines: Vec<String> = objects
        .iter()
        .filter(|object| object.get("metainfo").is_none())
        .map(|object| {
            let mut object = object.clone();
            for body in object.as_object_mut().unwrap().values_mut() {
                let body = body.as_object_mut().unwrap();
                body.remove("handle");
                if let Some(elements) =
                    body.get_mut("elem").and_then(|elements| elements.as_array_mut())
                {
                    for element in elements.iter_mut() {
                        if let Some(element) =
                            element.get_mut("elem").and_then(|element| element.as_object_mut())
                        {
                            element.remove("expires");
                        }
                    }
                    elements.sort_by_key(|element| element.to_string());
                }
            }
            object.to_string()
        })
        .collect();
    lines.sort();
    lines
}

#[test]
fn what_we_print_is_what_nft_prints() {
    isolated(|| {
        let mut writer = RulesetWriter::open().unwrap();
        writer.apply(&example()).unwrap();
        let key = frontend("192.0.2.1", Protocol::Tcp, 80);
        writer.apply(&only(key, Balancing::FlowHash(backends("10.42.0.", 2, 1)))).unwrap();
        // The kernel's first: it waits until the kernel's own hash tables stand still, for which
        // `nft list` does not wait.
        for (tables, source) in
            [(writer.live().unwrap(), "kernel"), (believed(writer.compiler()), "memory")]
        {
            for (table, family) in tables.iter().zip(["ip", "ip6"]) {
                let mut text = String::new();
                pinnace::nft::text::table(table, ALIVE, &mut text).unwrap();
                assert_eq!(
                    canonical(&text),
                    canonical(&nft(&["list", "table", family, "pinnace"])),
                    "{source}"
                );
                let listed: serde_json::Value =
                    serde_json::from_str(&nft(&["-j", "list", "table", family, "pinnace"]))
                        .unwrap();
                let printed = pinnace::nft::json::table(table, ALIVE).unwrap();
                assert_eq!(
                    canonical_json(&printed),
                    canonical_json(listed["nftables"].as_array().unwrap()),
                    "{source}"
                );
            }
        }
    });
}

#[test]
fn the_kernel_holds_what_was_applied_and() {
    isolated(|| {
        let mut writer = RulesetWriter::open().unwrap();
        let applied = writer.apply(&example()).unwrap();
        assert!(applied.reset);
        assert_eq!(sorted(writer.live().unwrap()), sorted(believed(writer.compiler())));
        assert!(writer.in_sync().unwrap());
    });
}

/// Somebody else's commit is a reason for the drift check to ask the kernel.
fn looks_closely(writer: &mut RulesetWriter) -> bool {
    nft(&["add table ip somebody; delete table ip somebody"]);
    writer.in_sync().unwrap()
}

/// A small world of frontends and backends, so that random changes meet often.
fn some_changes() -> impl proptest::strategy::Strategy<Value = RulesetChanges> {
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;
    let addresses: [[IpAddr; 8]; 2] = [
        std::array::from_fn(|n| IpAddr::V4(Ipv4Addr::new(10, 0, 0, n as u8 + 1))),
        std::array::from_fn(|n| IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n as u16 + 1))),
    ];
    let change = (0..2usize).prop_flat_map(move |family| {
        let pool = addresses[family];
        let backend = (0..8usize, 1..3u16).prop_map(move |(n, port)| Backend {
            address: pool[n],
            port,
            local: n % 2 == 0,
        });
        let set = btree_set(backend, 1..7).prop_map(|set| set.into_iter().collect::<Vec<_>>());
        let target = prop_oneof![
            4 => set.clone().prop_map(Balancing::FlowHash),
            1 => set.prop_map(Balancing::ClientIp),
            1 => Just(Balancing::Reject),
            1 => Just(Balancing::Drop),
        ];
        let range = (0..8usize, if family == 0 { 0..=32u8 } else { 0..=128u8 })
            .prop_map(move |(n, length)| ipnet::IpNet::new(pool[n], length).unwrap());
        let forwarding =
            (target.clone(), proptest::option::of(target), proptest::option::of(vec(range, 0..4)))
                .prop_map(|(internal, external, sources)| {
                    Arc::new(Forwarding { internal, external, sources })
                });
        let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)];
        let key = (0..2usize, protocol, 1..4u16).prop_map(move |(n, protocol, port)| FrontendKey {
            address: pool[n],
            protocol,
            port,
        });
        (key, proptest::option::weighted(0.8, forwarding))
    });
    let uplinks = btree_set(
        prop_oneof![Just("eth0".into()), Just("eth1".into()), Just("wlan0".into())],
        0..3,
    );
    let vips =
        btree_set((0..2usize, 0..3usize).prop_map(move |(family, n)| addresses[family][n]), 0..4);
    let forwardings = vec(change, 0..6).prop_map(|changes| changes.into_iter().collect());
    (
        proptest::bool::weighted(0.05),
        proptest::option::of(uplinks),
        proptest::option::of(vips),
        forwardings,
    )
        .prop_map(|(reset, uplinks, vips, forwardings)| RulesetChanges {
            generation: 0,
            reset,
            uplinks,
            vips,
            forwardings,
        })
}

#[test]
fn after_any_sequence_of_changes_the_kernel_holds_what_a_fresh_load_would() {
    isolated(|| {
        let config = Config { cases: 24, failure_persistence: None, ..Config::default() };
        let sequences = proptest::collection::vec(some_changes(), 1..12);
        let outcome = TestRunner::new(config).run(&sequences, |sequence| {
            let mut writer = RulesetWriter::open().unwrap();
            let mut all = RulesetChanges { reset: true, ..RulesetChanges::default() };
            writer.apply(&all).unwrap();
            for changes in sequence {
                writer.apply(&changes).unwrap();
                all.merge(changes);
                assert!(
                    looks_closely(&mut writer),
                    "the drift check must agree with what was applied"
                );
            }
            let changed = sorted(writer.live().unwrap());
            let mut fresh = RulesetWriter::open().unwrap();
            fresh.apply(&all).unwrap();
            assert_eq!(changed, sorted(believed(writer.compiler())));
            // A fresh load lacks the chains of classes that came and went.
            let sets =
                |tables: Vec<Table>| tables.into_iter().map(|table| table.sets).collect::<Vec<_>>();
            assert_eq!(sets(changed), sets(sorted(fresh.live().unwrap())));
            Ok(())
        });
        outcome.unwrap();
    });
}

#[test]
fn drift_is_noticed_and_repaired() {
    isolated(|| {
        let mut writer = RulesetWriter::open().unwrap();
        writer.apply(&example()).unwrap();
        let loaded = sorted(writer.live().unwrap());
        nft(&["add", "table", "ip", "somebody-else"]);
        assert!(writer.in_sync().unwrap(), "what others do to their own tables is no drift");
        for drift in [
            &["flush", "ruleset"][..],
            &["delete", "table", "ip6", "pinnace"],
            &["flush", "chain", "ip", "pinnace", "from-inside"],
            &["flush", "table", "ip", "pinnace"],
            &["flush", "map", "ip", "pinnace", "backends"],
            &["flush", "map", "ip6", "pinnace", "local-backends"],
            &["flush", "set", "ip", "pinnace", "uplinks"],
            &["flush", "set", "ip6", "pinnace", "source-ranges"],
            &["flush", "set", "ip6", "pinnace", "alive"],
        ] {
            nft(drift);
            assert!(!writer.in_sync().unwrap(), "{drift:?}");
            assert!(writer.reload().unwrap().reset);
            assert!(writer.in_sync().unwrap(), "repaired after {drift:?}");
            assert_eq!(sorted(writer.live().unwrap()), loaded, "{drift:?}");
        }
    });
}

#[test]
fn a_refused_change_names_the_object_and_changes_nothing() {
    isolated(|| {
        let mut writer = RulesetWriter::open().unwrap();
        writer.apply(&example()).unwrap();
        nft(&["flush", "map", "ip", "pinnace", "services"]);
        let key = frontend("192.0.2.1", Protocol::Tcp, 80);
        let before = writer.compiler().everything();
        let error = writer
            .apply(&RulesetChanges {
                forwardings: BTreeMap::from([(key, None)]),
                ..RulesetChanges::default()
            })
            .unwrap_err();
        assert!(
            error.to_string().contains("delete elements of services of table ip pinnace"),
            "{error}"
        );
        assert_eq!(writer.compiler().everything(), before);
        writer.reload().unwrap();
        assert_eq!(sorted(writer.live().unwrap()), sorted(believed(writer.compiler())));
    });
}

#[test]
fn a_load_replaces_what_a_predecessor_left_and_cleanup_removes_it() {
    isolated(|| {
        nft(&[
            "add table ip pinnace; add chain ip pinnace odd; add rule ip pinnace odd drop; add table ip mine",
        ]);
        let mut writer = RulesetWriter::open().unwrap();
        writer.apply(&example()).unwrap();
        assert!(!nft(&["list", "ruleset"]).contains("odd"));
        drop(writer);
        let mut successor = RulesetWriter::open().unwrap();
        successor.cleanup().unwrap();
        assert_eq!(nft(&["list", "tables"]).trim(), "table ip mine");
        successor.cleanup().unwrap();
    });
}

#[test]
fn one_endpoint_moves_few_elements() {
    isolated(|| {
        let mut writer = RulesetWriter::open().unwrap();
        let key = frontend("192.0.2.1", Protocol::Tcp, 80);
        let set = |target| only(key, target);
        let mut pods = backends("10.42.0.", 100, 0);
        writer.apply(&set(Balancing::FlowHash(pods.clone()))).unwrap();
        assert_eq!(
            writer.apply(&set(Balancing::FlowHash(pods.clone()))).unwrap().bytes,
            0,
            "nothing changed"
        );
        pods[40].port = 9090;
        assert_eq!(
            writer.apply(&set(Balancing::FlowHash(pods.clone()))).unwrap().elements,
            2,
            "one bucket deleted and added"
        );
        pods.pop();
        assert_eq!(
            writer.apply(&set(Balancing::FlowHash(pods))).unwrap().elements,
            3,
            "one bucket less, another class"
        );
    });
}

#[test]
fn a_map_that_outgrows_the_room_it_was_made_with_is_made_anew() {
    isolated(|| {
        // Ten backends behind each of these ports.
        let ports = |ports: std::ops::Range<u16>| RulesetChanges {
            forwardings: ports
                .map(|port| {
                    let backends = (1..=10)
                        .map(|n| Backend {
                            address: address(&format!("10.42.0.{n}")),
                            port,
                            local: false,
                        })
                        .collect();
                    (
                        frontend("192.0.2.1", Protocol::Tcp, port),
                        Some(Arc::new(plain(Balancing::FlowHash(backends)))),
                    )
                })
                .collect(),
            ..RulesetChanges::default()
        };
        let room = || {
            let map = nft(&["-t", "list", "map", "ip", "pinnace", "backends"]);
            map.lines().find_map(|line| line.trim().strip_prefix("size ").map(str::to_owned))
        };
        let mut writer = RulesetWriter::open().unwrap();
        writer.apply(&ports(1..101)).unwrap();
        assert_eq!(room(), None, "few elements: as many more as may come");
        writer.apply(&RulesetChanges { reset: true, ..ports(1..501) }).unwrap();
        assert_eq!(room().as_deref(), Some("16384"));
        // What fits comes by itself, the rest by a table with more room, and nothing is lost.
        assert!(!writer.apply(&ports(501..801)).unwrap().reset);
        let applied = writer.apply(&ports(801..1701)).unwrap();
        assert!(applied.reset && applied.elements >= 17_000, "{applied:?}");
        assert_eq!(room().as_deref(), Some("65536"));
        assert_eq!(sorted(writer.live().unwrap()), sorted(believed(writer.compiler())));
        assert!(writer.in_sync().unwrap());
        assert_eq!(writer.elements(), 1700 * 12);
    });
}
