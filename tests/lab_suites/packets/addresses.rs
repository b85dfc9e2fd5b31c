//! Which address a Service gets, who else has it, and how it goes.

use std::fs;
use std::net::IpAddr;

use rustix::process::Signal;

use super::*;

const ADDRESSES: &str = "pinnace.dev/addresses";
const SHARED: &str = "pinnace.dev/allow-shared-ip";

fn requesting(name: &str, host: u16) -> Service {
    web(name).annotation(ADDRESSES, &format!("10.88.0.{host},fd88::{host}"))
}

#[test]
fn a_requested_address_is_allocated() {
    let (lab, running) = serving(1, 0, in_front_of_all(requesting("web", 213)));
    for family in Family::ALL {
        assert_eq!(running.address("default/web", family), lab::lan(family, 213));
        assert_from(&lab.client.tcp(lab::lan(family, 213), 80), &["pod-1"]);
    }
}

#[test]
fn a_requested_address_outside_the_pools_is_refused() {
    let lab = Lab::new(1, 0);
    lab.apply(
        "services.yaml",
        &(requesting("web", 50).with_pods(&lab.pods) + &web("other").with_pods(&lab.pods)),
    );
    let running = lab.pinnace().start_ready();
    running.wait_serving("default/other");
    running.wait_phase("default/web", "Failed");
    running.wait_reason("default/web", "10.88.0.50");
    for family in Family::ALL {
        assert_eq!(
            lab.client.neighbour(lab::lan(family, 50)),
            None,
            "nobody answers for an address that is not ours"
        );
    }
}

#[test]
fn two_services_share_an_address_when_both_say_so() {
    let lab = Lab::new(2, 0);
    let tcp = service("dns-tcp").port("dns", "TCP", 53).annotation(SHARED, "dns");
    let udp = service("dns-udp").port("dns", "UDP", 53).annotation(SHARED, "dns");
    let text = |tcp: &Service, udp: &Service| {
        tcp.with_pods(&lab.pods[..1]) + &udp.with_pods(&lab.pods[1..])
    };
    let request = |service: Service| service.annotation(ADDRESSES, "10.88.0.205,fd88::205");
    lab.apply("services.yaml", &text(&request(tcp), &request(udp)));
    let running = lab.pinnace().start_ready();
    running.wait_serving("default/dns-tcp");
    running.wait_serving("default/dns-udp");
    for family in Family::ALL {
        let vip = lab::lan(family, 205);
        assert_from(&lab.client.tcp(vip, 53), &["pod-1"]);
        assert_from(&lab.client.udp(vip, 53), &["pod-2"]);
    }
}

#[test]
fn an_address_is_not_shared_without_consent() {
    let lab = Lab::new(1, 0);
    let second =
        service("second").port("other", "TCP", 81).annotation(ADDRESSES, "10.88.0.213,fd88::213");
    lab.apply(
        "services.yaml",
        &(requesting("first", 213).with_pods(&lab.pods) + &second.with_pods(&lab.pods)),
    );
    let running = lab.pinnace().start_ready();
    running.wait_serving("default/first");
    running.wait_phase("default/second", "Failed");
    running.wait_reason("default/second", "default/first");
}

#[test]
fn an_exhausted_pool_is_reported() {
    let lab = Lab::new(1, 0);
    lab.apply(
        "services.yaml",
        &["one", "two", "three"].map(|name| web(name).with_pods(&lab.pods)).concat(),
    );
    let running = lab
        .pinnace()
        .set("PINNACE_POOLS", "10.88.0.200-10.88.0.201,fd88::200-fd88::201")
        .start_ready();
    let names = ["default/one", "default/two", "default/three"];
    eventually("two serve, one is refused and says why", PATIENCE, || {
        let status = running.pinnace().status()?;
        let serving = names.iter().filter(|name| status.phase(name) == "Serving").count();
        let refused = names.iter().find(|name| status.phase(name) == "Failed");
        let said =
            refused.is_some_and(|name| status.reasons(name).to_lowercase().contains("exhausted"));
        ensure(serving == 2 && said, || status.0.to_string())
    });
}

#[test]
fn an_address_in_use_is_refused_and_its_holder_named() {
    let lab = Lab::new(1, 0);
    for family in Family::ALL {
        lab.client2.add_address(lab::lan(family, 213));
    }
    lab.apply(
        "services.yaml",
        &(requesting("web", 213).with_pods(&lab.pods)
            + &requesting("free", 214).with_pods(&lab.pods)),
    );
    let running = lab.pinnace().set("PINNACE_PROBE", "200ms").start_ready();
    running.wait_serving("default/free");
    running.wait_reason("default/web", &lab.client2.mac());
    for family in Family::ALL {
        assert_eq!(
            lab.client.neighbour(lab::lan(family, 213)),
            Some(lab.client2.mac()),
            "its holder keeps it"
        );
        assert_from(&lab.client.tcp(lab::lan(family, 214), 80), &["pod-1"]);
    }
}

#[test]
fn the_address_of_a_deleted_service_is_not_answered() {
    let (lab, running) = serving(1, 0, in_front_of_all(web("web")));
    let vips = Family::ALL.map(|family| running.address("default/web", family));
    for vip in vips {
        assert_from(&lab.client.tcp(vip, 80), &["pod-1"]);
        assert_eq!(lab.client.neighbour(vip), Some(lab.node.mac()));
    }
    lab.delete("services.yaml");
    for vip in vips {
        eventually("nobody answers", PATIENCE, || {
            let holder = lab.client.neighbour(vip);
            ensure(holder.is_none(), || format!("{holder:?}"))
        });
    }
}

#[test]
fn a_service_that_leaves_the_type_is_withdrawn() {
    let (lab, running) = serving(1, 0, in_front_of_all(web("web")));
    let vip = running.address("default/web", Family::V4);
    assert_from(&lab.client.tcp(vip, 80), &["pod-1"]);
    lab.apply(
        "services.yaml",
        &web("web").with_pods(&lab.pods).replace("type: LoadBalancer", "type: ClusterIP"),
    );
    eventually("nobody answers", PATIENCE, || {
        ensure(lab.client.neighbour(vip).is_none(), || "the node still does".to_owned())
    });
}

#[test]
fn no_address_appears_on_any_interface() {
    let (lab, running) = serving(1, 0, in_front_of_all(web("web")));
    let listed = lab.node.ns.output("ip", &["-o", "address", "show"]);
    for family in Family::ALL {
        let vip = running.address("default/web", family).to_string();
        assert!(!listed.contains(&format!(" {vip}/")), "{listed}");
    }
}

#[test]
fn a_smaller_pool_withdraws_what_left_it() {
    let (lab, mut running) = serving(1, 0, in_front_of_all(requesting("web", 213)));
    assert!(running.terminate().success());
    drop(running);
    let running = lab
        .pinnace()
        .set("PINNACE_POOLS", "10.88.0.200-10.88.0.210,fd88::200-fd88::210")
        .start_ready();
    running.wait_phase("default/web", "Failed");
    running.wait_reason("default/web", "10.88.0.213");
    for family in Family::ALL {
        assert_eq!(lab.client.neighbour(lab::lan(family, 213)), None);
    }
}

/// The same without a restart: the file of settings is read again at SIGHUP, and what cannot be
/// used changes nothing.
#[test]
fn pools_change_while_everything_goes_on() {
    let lab = Lab::new(1, 0);
    lab.apply(
        "services.yaml",
        &(requesting("web", 213).with_pods(&lab.pods)
            + &requesting("other", 205).with_pods(&lab.pods)),
    );
    let file = lab.directory().join("pinnace.yaml");
    let settings = |pools: &str| fs::write(&file, pools).expect("write the settings");
    settings("pools: 10.88.0.200-10.88.0.220,fd88::200-fd88::220");
    let running =
        lab.pinnace().unset("PINNACE_POOLS").set("PINNACE_CONFIG", file.display()).start_ready();
    running.wait_serving("default/web");
    running.wait_serving("default/other");
    settings("pools: 10.88.0.220-10.88.0.200");
    running.signal(Signal::HUP);
    running.wait_log("configuration reload failed, keeping the running configuration");
    assert_from(&lab.client.tcp(lab::lan(Family::V4, 213), 80), &["pod-1"]);
    settings("pools: 10.88.0.200-10.88.0.210,fd88::200-fd88::210");
    running.signal(Signal::HUP);
    running.wait_phase("default/web", "Failed");
    running.wait_reason("default/web", "10.88.0.213");
    running.wait_serving("default/other");
    for family in Family::ALL {
        assert_eq!(lab.client.neighbour(lab::lan(family, 213)), None);
        assert_from(&lab.client.tcp(lab::lan(family, 205), 80), &["pod-1"]);
    }
    settings("pools: 10.88.0.200-10.88.0.220,fd88::200-fd88::220\nmode: node");
    running.signal(Signal::HUP);
    running.wait_log("requires a restart");
    running.wait_serving("default/web");
}

#[test]
fn an_allocated_address_outlives_restarts_and_new_services() {
    let (lab, mut running) = serving(1, 0, in_front_of_all(web("web")));
    let vips = Family::ALL.map(|family| running.address("default/web", family));
    assert!(running.terminate().success());
    drop(running);
    // Names that come first in every order, to take the address if it were given out anew.
    let text = web("web").with_pods(&lab.pods)
        + &web("a").with_pods(&lab.pods)
        + &web("b").with_pods(&lab.pods);
    lab.apply("services.yaml", &text);
    let running = lab.pinnace().start_ready();
    for name in ["default/a", "default/b", "default/web"] {
        running.wait_serving(name);
    }
    let after: Vec<IpAddr> =
        Family::ALL.map(|family| running.address("default/web", family)).to_vec();
    assert_eq!(after, vips);
}

#[test]
fn a_node_port_conflict_names_the_service_that_holds_it() {
    let lab = Lab::new(2, 0);
    lab.apply("first.yaml", &web("first").node_mode().with_pods(&lab.pods[..1]));
    let running = lab.pinnace().start_ready();
    running.wait_serving("default/first");
    lab.apply("second.yaml", &web("second").node_mode().with_pods(&lab.pods[1..]));
    running.wait_reason("default/second", "default/first");
    for family in Family::ALL {
        assert_from(&lab.client.tcp(lab.node.address(family), 80), &["pod-1"]);
    }
}

#[test]
fn two_services_have_one_port_in_two_pools_of_nodes() {
    let lab = Lab::new(1, 1);
    lab.apply(
        "nodes.yaml",
        &(manifests::node_in_pool(1, "one") + &manifests::node_in_pool(2, "two")),
    );
    let services = web("one").node_mode().node_pool("one").with_pods(&lab.pods)
        + &web("two").node_mode().node_pool("two").with_pods(&lab.far);
    lab.apply("services.yaml", &services);
    let node2 = lab.node2.as_ref().expect("node-2");
    let first = lab.pinnace().start_ready();
    first.wait_serving("default/one");
    first.wait_serving("default/two");
    let second = lab.pinnace_on(node2).start_ready();
    second.wait_serving("default/one");
    second.wait_serving("default/two");
    for family in Family::ALL {
        assert_eq!(
            (first.address("default/one", family), first.address("default/two", family)),
            (lab::lan(family, 11), lab::lan(family, 12))
        );
        for _ in 0..5 {
            assert_from(&lab.client.tcp(lab.node.address(family), 80), &["pod-1"]);
            assert_from(&lab.client.tcp(node2.address(family), 80), &["far-1"]);
        }
    }
    // A node that changes sides, where both are then: who has the port there keeps it.
    lab.apply(
        "nodes.yaml",
        &(manifests::node_in_pool(1, "one") + &manifests::node_in_pool(2, "one")),
    );
    for running in [&first, &second] {
        eventually("the Service of the pool has both nodes", PATIENCE, || {
            let status = running.pinnace().status()?;
            ensure(
                status.addresses("default/one").len() == 4
                    && status.addresses("default/two").is_empty(),
                || status.0.to_string(),
            )
        });
    }
    for family in Family::ALL {
        eventually("the Service of its new pool", PATIENCE, || {
            let reply = lab.client.tcp(node2.address(family), 80);
            ensure(matches!(&reply, Ok(reply) if reply.pod == "pod-1"), || format!("{reply:?}"))
        });
    }
}

#[test]
fn a_contested_node_port_keeps_its_holder_across_a_restart() {
    let lab = Lab::new(2, 0);
    lab.apply("first.yaml", &web("zeta").node_mode().with_pods(&lab.pods[..1]));
    let mut running = lab.pinnace().start_ready();
    running.wait_serving("default/zeta");
    lab.apply("second.yaml", &web("alpha").node_mode().with_pods(&lab.pods[1..]));
    running.wait_reason("default/alpha", "default/zeta");
    for stop in
        [Running::kill as fn(&mut Running), |running| assert!(running.terminate().success())]
    {
        stop(&mut running);
        drop(running);
        running = lab.pinnace().start_ready();
        running.wait_serving("default/zeta");
        running.wait_phase("default/alpha", "Failed");
        running.wait_reason("default/alpha", "default/zeta on nodes node-1, node-2");
        for family in Family::ALL {
            assert_from(&lab.client.tcp(lab.node.address(family), 80), &["pod-1"]);
        }
    }
    lab.delete("first.yaml");
    running.wait_serving("default/alpha");
    for family in Family::ALL {
        assert_from(&lab.client.tcp(lab.node.address(family), 80), &["pod-2"]);
    }
}

#[test]
fn reserved_addresses_of_a_pool_are_reported_and_not_counted() {
    let lab = Lab::new(1, 0);
    lab.apply(
        "services.yaml",
        &["one", "two"].map(|name| web(name).only(Family::V4).with_pods(&lab.pods)).concat(),
    );
    let running = lab.pinnace().set("PINNACE_POOLS", "10.88.0.10-10.88.0.12").start_ready();
    let warning = "pool default contains addresses that are never given out: 10.88.0.11 (an address of node node-1), 10.88.0.12 (an address of node node-2)";
    running.wait_log(warning);
    eventually("the second finds no address", PATIENCE, || {
        let status = running.pinnace().status()?;
        let reasons = status.reasons("default/one") + &status.reasons("default/two");
        ensure(reasons.contains("(1 addresses, and 2 that are never given out)"), || {
            status.0.to_string()
        })
    });
    assert_eq!(
        running.log().matches("never given out: 10.88").count(),
        1,
        "said once:\n{}",
        running.log()
    );
    let check = String::from_utf8_lossy(&running.pinnace().run(&["check"]).stdout).into_owned();
    assert!(check.contains("never given out: 10.88.0.11 (an address of node node-1)"), "{check}");
}

#[test]
fn a_node_address_on_no_uplink_is_reported() {
    let lab = Lab::new(1, 0);
    lab.node.ns.ip(&[
        "link add wg0 type bridge",
        "address add 10.99.0.1/24 dev wg0",
        "link set wg0 up",
    ]);
    lab.apply("nodes.yaml", &manifests::node(1).replace("10.88.0.11", "10.99.0.1"));
    lab.apply("services.yaml", &web("web").only(Family::V4).node_mode().with_pods(&lab.pods));
    let running = lab.pinnace().start_ready();
    running.wait_phase("default/web", "Pending");
    running.wait_reason("default/web", "10.99.0.1 is on wg0");
    running.wait_reason("default/web", "PINNACE_INTERFACES=");
    drop(running);
    let running = lab.pinnace().set("PINNACE_INTERFACES", "eth0,wg0").start_ready();
    running.wait_serving("default/web");
    lab.client.ns.ip(&["route add 10.99.0.0/24 via 10.88.0.11"]);
    assert_from(&lab.client.tcp("10.99.0.1".parse().expect("an address"), 80), &["pod-1"]);
}

/// A pool in the middle of nothing, which a router sends to the node: there .0 and .255 are no ends
/// of a subnet.
#[test]
fn buggy_ips_are_allocated_unless_avoided() {
    let lab = Lab::new(1, 0);
    let text = ["one", "two"].map(|name| web(name).only(Family::V4).with_pods(&lab.pods)).concat();
    lab.apply("services.yaml", &text);
    lab.client.ns.ip(&["route add 10.89.0.0/16 via 10.88.0.11"]);
    let pinnace = || lab.pinnace().set("PINNACE_POOLS", "10.89.1.255-10.89.2.1");
    let mut running = pinnace().start_ready();
    let all = ["default/one", "default/two"].map(|key| {
        running.wait_serving(key);
        running.address(key, Family::V4).to_string()
    });
    assert!(
        all.contains(&"10.89.1.255".to_owned()) && all.contains(&"10.89.2.0".to_owned()),
        "{all:?}"
    );
    assert!(running.terminate().success());

    let running = pinnace()
        .set("PINNACE_AVOID_BUGGY_IPS", "true")
        .set("PINNACE_STATE_DIR", lab.directory().join("new").display())
        .start_ready();
    running.wait_serving("default/one");
    let only: IpAddr = "10.89.2.1".parse().expect("an address");
    assert_eq!(running.address("default/one", Family::V4), only);
    assert_from(&lab.client.tcp(only, 80), &["pod-1"]);
    running.wait_phase("default/two", "Failed");
    running.wait_reason("default/two", "xhausted");
}

#[test]
fn the_default_mode_is_a_setting() {
    let lab = Lab::new(1, 0);
    let at_vip = service("at-vip").port("http", "TCP", 81).annotation("pinnace.dev/mode", "vip");
    lab.apply("services.yaml", &(web("web").with_pods(&lab.pods) + &at_vip.with_pods(&lab.pods)));
    let running = lab.pinnace().set("PINNACE_MODE", "node").start_ready();
    running.wait_serving("default/web");
    running.wait_serving("default/at-vip");
    for family in Family::ALL {
        assert_eq!(
            running.address("default/web", family),
            lab.node.address(family),
            "though there is a pool"
        );
        assert_from(&lab.client.tcp(lab.node.address(family), 80), &["pod-1"]);
        assert_eq!(running.address("default/at-vip", family), lab::lan(family, 200));
        assert_from(&lab.client.tcp(lab::lan(family, 200), 81), &["pod-1"]);
    }
}
