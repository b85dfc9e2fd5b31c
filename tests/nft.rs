//! The rule set in a real kernel, in throw-away network namespaces. Needs root and the nft program.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pinnace::domain::forwarding::{Backend, Forwarding, FrontendKey, Target};
use pinnace::domain::model::{Family, Protocol};
use pinnace::domain::plan::Changes;
use pinnace::edge::nft::Writer;
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

#[test]
fn the_kernel_holds_what_was_applied_and_nft_lists_it() {
    isolated(|| {
        let mut writer = Writer::open().unwrap();
        let applied = writer.apply(&example()).unwrap();
        assert!(applied.reset);
        println!("{}", nft(&["list", "ruleset"]));
        nft(&["-j", "list", "ruleset"]);
        assert_eq!(sorted(writer.live().unwrap()), sorted(believed(writer.compiler())));
        assert!(writer.intact().unwrap());
    });
}
