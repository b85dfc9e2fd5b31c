//! Hosts without IPv6: IPv4 is served however IPv6 was disabled, and the log says so once.

use std::thread;
use std::time::Duration;

use crate::lab::manifests::{service, web};
use crate::lab::{Failure, Lab, ensure, eventually, patient};
use pinnace::model::Family;

const PATIENCE: Duration = Duration::from_secs(10);

/// A dual-stack Service at a VIP and one at the node's address are served over IPv4, the first says
/// why not over IPv6, and the log says it in one warning and is silent after that.
fn assert_serves_ipv4(lab: &Lab) {
    let at_node = service("at-node").port("http", "TCP", 81).node_mode();
    let text =
        web("web").port("dns", "UDP", 53).with_pods(&lab.pods) + &at_node.with_pods(&lab.pods);
    lab.apply("services.yaml", &text);
    let running = lab.pinnace().start_ready();
    running.wait_serving("default/web");
    running.wait_serving("default/at-node");
    let vip = running.address("default/web", Family::V4);
    assert_eq!(lab.client.tcp(vip, 80).map(|reply| reply.pod), Ok("pod-1".to_owned()));
    assert_eq!(lab.client.udp(vip, 53).map(|reply| reply.pod), Ok("pod-1".to_owned()));
    assert_eq!(lab.client.tcp(vip, 81), Err(Failure::TimedOut));
    assert_eq!(
        lab.client.tcp(lab.node.v4.into(), 81).map(|reply| reply.pod),
        Ok("pod-1".to_owned())
    );
    lab.client.ping(vip).expect("a VIP answers ping");

    running.wait_reason("default/web", "Ipv6Off");
    let reasons = running.pinnace().status().expect("status").reasons("default/web");
    assert!(reasons.contains("net.ipv6.conf.all.disable_ipv6"), "{reasons}");

    // Longer than the looks for drift and the retries of a socket that cannot be opened.
    let before = running.log();
    thread::sleep(patient(Duration::from_secs(8)));
    assert_eq!(running.log(), before, "the log goes on without a cause");
    let loud: Vec<&str> =
        before.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).collect();
    assert!(
        matches!(loud[..], [line] if line.contains("WARN") && line.contains("IPv6 is switched off")),
        "{loud:#?}"
    );
}

#[test]
fn ipv6_switched_off_by_sysctl() {
    let lab = Lab::new(1, 0);
    lab.node
        .ns
        .sysctl(&[("ipv6/conf/all/disable_ipv6", "1"), ("ipv6/conf/default/disable_ipv6", "1")]);
    assert_serves_ipv4(&lab);
}

/// Somebody switches IPv6 off and on again while Pinnace runs.
#[test]
fn ipv6_that_goes_and_comes_back() {
    let lab = Lab::new(1, 0);
    lab.apply("services.yaml", &web("web").with_pods(&lab.pods));
    let running = lab.pinnace().start_ready();
    running.wait_serving("default/web");
    let vip = running.address("default/web", Family::V6);
    assert!(lab.client.tcp(vip, 80).is_ok());
    lab.node.ns.sysctl(&[("ipv6/conf/all/disable_ipv6", "1")]);
    running.wait_reason("default/web", "Ipv6Off");
    assert!(lab.client.tcp(running.address("default/web", Family::V4), 80).is_ok());
    lab.node.ns.sysctl(&[("ipv6/conf/all/disable_ipv6", "0")]);
    lab.node.ns.ip(&[
        format!("address replace {}/64 dev eth0 nodad", lab.node.v6),
        "address replace fd42::1/64 dev cni0 nodad".to_owned(),
    ]);
    eventually("the IPv6 address is served again", PATIENCE, || {
        let reasons = running.pinnace().status()?.reasons("default/web");
        ensure(!reasons.contains("Ipv6Off"), || reasons)?;
        lab.client.tcp(vip, 80).map(drop).map_err(|failure| failure.to_string())
    });
}

#[test]
#[ignore = "needs a kernel started with ipv6.disable=1; tests/kernels starts machines with it"]
fn ipv6_switched_off_at_the_start_of_the_kernel() {
    assert!(!std::path::Path::new("/proc/sys/net/ipv6").exists(), "this kernel has IPv6");
    assert_serves_ipv4(&Lab::new(1, 0));
}
