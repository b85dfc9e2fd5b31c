//! The rule set in a real kernel, in throw-away network namespaces. Needs root and the nft program.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pinnace::domain::forwarding::{Backend, Forwarding, FrontendKey, Target};
use pinnace::domain::model::{Family, Protocol};
use pinnace::domain::plan::Changes;
use pinnace::edge::nft::{ALIVE, Writer};
use pinnace::ruleset::{Compiler, Table};
use proptest::test_runner::{Config, TestRunner};

/// Runs a test in a thread with a network namespace of its own, which ends with the thread.
fn isolated(test: impl FnOnce() + Send + 'static) {
    let outcome = std::thread::spawn(move || {
        // SAFETY: only the network namespace of this thread changes; no memory is involved.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.expect("these tests need root");
        test();
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn nft(arguments: &[&str]) -> String {
    let output = Command::new("nft").args(arguments).output().expect("these tests need the nft program");
    assert!(output.status.success(), "nft {arguments:?}: {} {}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn frontend(text: &str, protocol: Protocol, port: u16) -> FrontendKey {
    FrontendKey { address: address(text), protocol, port }
}

fn backends(prefix: &str, count: u16, local: u16) -> Vec<Backend> {
    (1..=count).map(|n| Backend { address: address(&format!("{prefix}{n}")), port: 8080, local: n <= local }).collect()
}

fn plain(internal: Target) -> Forwarding {
    Forwarding { internal, external: None, sources: None }
}

/// Every kind of verdict, in both families.
fn example() -> Changes {
    let mut forwardings: BTreeMap<FrontendKey, Option<Arc<Forwarding>>> = BTreeMap::new();
    for (vip, pods, ranges) in [
        ("192.0.2.1", "10.42.0.", ["10.0.0.0/8", "10.1.0.0/16", "0.0.0.0/0"]),
        ("2001:db8::1", "fd42::", ["fd00::/64", "fd00::/48", "::/0"]),
    ] {
        let net = |n: usize| ranges[n].parse().unwrap();
        let mut add = |protocol, port, forwarding| forwardings.insert(frontend(vip, protocol, port), Some(Arc::new(forwarding)));
        add(Protocol::Tcp, 80, plain(Target::Spread(backends(pods, 3, 1))));
        add(Protocol::Udp, 53, plain(Target::Spread(backends(pods, 1, 0))));
        add(Protocol::Tcp, 81, plain(Target::Sticky(backends(pods, 2, 0))));
        add(Protocol::Tcp, 82, plain(Target::Reject));
        add(Protocol::Sctp, 83, plain(Target::Drop));
        add(Protocol::Tcp, 84, Forwarding { sources: Some(vec![net(0), net(1)]), ..plain(Target::Reject) });
        add(Protocol::Tcp, 85, Forwarding { sources: Some(vec![]), ..plain(Target::Spread(backends(pods, 2, 2))) });
        add(Protocol::Tcp, 86, Forwarding { sources: Some(vec![net(2)]), ..plain(Target::Drop) });
        add(
            Protocol::Tcp,
            87,
            Forwarding { external: Some(Target::Spread(backends(pods, 1, 1))), ..plain(Target::Spread(backends(pods, 3, 1))) },
        );
        add(Protocol::Tcp, 88, Forwarding { external: Some(Target::Drop), ..plain(Target::Spread(backends(pods, 3, 1))) });
        add(
            Protocol::Tcp,
            89,
            Forwarding { external: Some(Target::Sticky(backends(pods, 1, 1))), ..plain(Target::Sticky(backends(pods, 3, 1))) },
        );
    }
    Changes {
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

/// The lines of a listing with its elements and chains in a canonical order: `nft` lists in the order of hashes and of creation.
fn canonical(text: &str) -> Vec<String> {
    let text = text.replace(",\n", ", ");
    let mut blocks: Vec<String> = text.split("\n\n").map(str::to_owned).collect();
    for block in &mut blocks {
        let lines = block.lines().map(|line| {
            let line = line.trim().trim_end_matches('}').trim();
            let Some(list) = line.strip_prefix("elements = {") else { return line.to_owned() };
            let mut elements: Vec<&str> = list.split(',').map(|e| e.split(" expires ").next().unwrap_or(e).trim()).collect();
            elements.sort_unstable();
            elements.join(", ")
        });
        *block = lines.filter(|line| !line.is_empty() && !line.starts_with("table ")).collect::<Vec<_>>().join("\n");
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
                if let Some(elements) = body.get_mut("elem").and_then(|elements| elements.as_array_mut()) {
                    for element in elements.iter_mut() {
                        if let Some(element) = element.get_mut("elem").and_then(|element| element.as_object_mut()) {
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
        let mut writer = Writer::open().unwrap();
        writer.apply(&example()).unwrap();
        for (tables, source) in [(believed(writer.compiler()), "memory"), (writer.live().unwrap(), "kernel")] {
            for (table, family) in tables.iter().zip(["ip", "ip6"]) {
                let mut text = String::new();
                pinnace::ruleset::text::table(table, ALIVE, &mut text).unwrap();
                assert_eq!(canonical(&text), canonical(&nft(&["list", "table", family, "pinnace"])), "{source}");
                let listed: serde_json::Value = serde_json::from_str(&nft(&["-j", "list", "table", family, "pinnace"])).unwrap();
                let printed = pinnace::ruleset::json::table(table, ALIVE).unwrap();
                assert_eq!(canonical_json(&printed), canonical_json(listed["nftables"].as_array().unwrap()), "{source}");
            }
        }
    });
}

#[test]
fn the_kernel_holds_what_was_applied_and() {
    isolated(|| {
        let mut writer = Writer::open().unwrap();
        let applied = writer.apply(&example()).unwrap();
        assert!(applied.reset);
        assert_eq!(sorted(writer.live().unwrap()), sorted(believed(writer.compiler())));
        assert!(writer.intact().unwrap());
    });
}
