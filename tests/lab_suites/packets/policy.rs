//! Who is let in and who answers: traffic policies, source ranges, affinity.

use super::*;

#[test]
fn local_keeps_the_source_and_asks_local_pods_only() {
    let (lab, running) = serving(2, 1, in_front_of_all(web("web").local()));
    for family in Family::ALL {
        let vip = running.address("default/web", family);
        let replies = lab.client.tcp_times(40, vip, 80).expect("every connection is answered");
        assert_eq!(tally(&replies).into_keys().collect::<Vec<_>>(), ["pod-1", "pod-2"]);
        assert!(replies.iter().all(|reply| reply.peer.ip() == lab.client.address(family)));
    }
}

#[test]
fn local_gives_pods_of_the_cluster_all_endpoints() {
    let (lab, running) = serving(1, 1, in_front_of_all(web("web").local()));
    for family in Family::ALL {
        let vip = running.address("default/web", family);
        let replies = lab.pods[0].tcp_times(40, vip, 80).expect("every connection is answered");
        assert_eq!(tally(&replies).len(), 2, "{:?}", tally(&replies));
    }
}

#[test]
fn local_without_a_local_pod_is_silent_at_the_node_address() {
    let lab = Lab::new(1, 1);
    let (local, cluster) = (
        service("local").port("http", "TCP", 80).local().node_mode(),
        service("cluster").port("http", "TCP", 81).node_mode(),
    );
    lab.apply("services.yaml", &(local.with_pods(&lab.far) + &cluster.with_pods(&lab.far)));
    let running = lab.pinnace().start_ready();
    running.wait_serving("default/cluster");
    for family in Family::ALL {
        let node = lab.node.address(family);
        assert_from(&lab.client.tcp(node, 81), &["far-1"]);
        assert_eq!(lab.client.tcp(node, 80), Err(Failure::TimedOut));
        assert_from(&lab.pods[0].tcp(node, 80), &["far-1"]);
    }
}

#[test]
fn local_without_a_local_pod_is_silent_at_a_vip() {
    let (lab, running) = serving(1, 1, in_front_of_all(web("web").local()));
    let vips = Family::ALL.map(|family| running.address("default/web", family));
    for vip in vips {
        assert_from(&lab.client.tcp(vip, 80), &["pod-1"]);
    }
    lab.apply("services.yaml", &web("web").local().with_pods(&lab.far));
    for vip in vips {
        // The neighbour entry may be gone as well: a node without local pods need not answer for
        // the address.
        eventually("silence", PATIENCE, || match lab.client.tcp(vip, 80) {
            Err(Failure::TimedOut | Failure::Unreachable) => Ok(()),
            other => Err(format!("{other:?}")),
        });
        assert_from(&lab.pods[0].tcp(vip, 80), &["far-1"]);
    }
}

#[test]
fn a_service_without_endpoints_refuses_connections() {
    let lab = Lab::new(1, 0);
    let (at_vip, at_node) =
        (web("web").port("dns", "UDP", 53), service("at-node").port("http", "TCP", 81).node_mode());
    let local = web("local").local();
    lab.apply(
        "services.yaml",
        &(at_vip.with_pods([]) + &at_node.with_pods([]) + &local.with_pods([])),
    );
    let running = lab.pinnace().start_ready();
    running.wait_reason("default/web", "NoEndpoints");
    for family in Family::ALL {
        let node = lab.node.address(family);
        eventually("the node address refuses", PATIENCE, || match lab.client.tcp(node, 81) {
            Err(Failure::Refused) => Ok(()),
            other => Err(format!("{other:?}")),
        });
        let vip = running.address("default/web", family);
        assert_eq!(lab.client.tcp(vip, 80), Err(Failure::Refused));
        assert_eq!(lab.client.udp(vip, 53), Err(Failure::Refused));
        assert_eq!(lab.pods[0].tcp(vip, 80), Err(Failure::Refused));
        assert_eq!(lab.node.tcp(vip, 80), Err(Failure::Refused));
        let vip = running.address("default/local", family);
        eventually("refused, for there is no pod on any node either", PATIENCE, || {
            match lab.client.tcp(vip, 80) {
                Err(Failure::Refused) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }
}

#[test]
fn source_ranges_admit_only_listed_clients() {
    let (lab, running) = serving(
        1,
        0,
        in_front_of_all(web("web").admit(&[" 10.88.0.101/32", "192.0.2.0/24", "fd88::101/128 "])),
    );
    for family in Family::ALL {
        let vip = running.address("default/web", family);
        assert_from(&lab.client2.tcp(vip, 80), &["pod-1"]);
        assert_eq!(lab.client.tcp(vip, 80), Err(Failure::TimedOut), "{family}");
    }
}

#[test]
fn source_ranges_hold_for_pods_but_not_for_the_node() {
    let lab = Lab::new(2, 0);
    let admitted = Family::ALL.map(|family| {
        let address = lab.pods[1].address(family);
        format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
    });
    let web = web("web").admit(&[&admitted[0], &admitted[1]]);
    lab.apply("services.yaml", &web.with_pods(&lab.pods[..1]));
    let running = lab.pinnace().start_ready();
    running.wait_serving("default/web");
    for family in Family::ALL {
        let vip = running.address("default/web", family);
        assert_from(&lab.pods[1].tcp(vip, 80), &["pod-1"]);
        assert_eq!(lab.pods[0].tcp(vip, 80), Err(Failure::TimedOut), "{family}");
        assert_from(&lab.node.tcp(vip, 80), &["pod-1"]);
    }
}

#[test]
fn source_ranges_of_one_family_close_the_other() {
    let (lab, running) = serving(1, 0, in_front_of_all(web("web").admit(&["10.88.0.0/24"])));
    assert_from(&lab.client.tcp(running.address("default/web", Family::V4), 80), &["pod-1"]);
    assert_eq!(
        lab.client.tcp(running.address("default/web", Family::V6), 80),
        Err(Failure::TimedOut)
    );
}

#[test]
fn source_ranges_hold_at_node_addresses_too() {
    let (lab, _running) = serving(
        1,
        0,
        in_front_of_all(web("web").node_mode().admit(&["10.88.0.101/32", "fd88::101/128"])),
    );
    for family in Family::ALL {
        assert_from(&lab.client2.tcp(lab.node.address(family), 80), &["pod-1"]);
        assert_eq!(lab.client.tcp(lab.node.address(family), 80), Err(Failure::TimedOut));
    }
}

#[test]
fn a_source_range_that_changes_takes_effect() {
    let (lab, running) =
        serving(1, 0, in_front_of_all(web("web").admit(&["10.88.0.101/32", "fd88::101/128"])));
    lab.apply(
        "services.yaml",
        &web("web").admit(&["10.88.0.100/32", "fd88::100/128"]).with_pods(&lab.pods),
    );
    for family in Family::ALL {
        let vip = running.address("default/web", family);
        eventually("the new range holds", PATIENCE, || {
            lab.client.tcp(vip, 80).map_err(|failure| failure.to_string())
        });
        assert_eq!(lab.client2.tcp(vip, 80), Err(Failure::TimedOut));
    }
}

#[test]
fn client_affinity_sticks_to_a_pod() {
    let (lab, running) = serving(2, 0, in_front_of_all(web("web").sticky()));
    for family in Family::ALL {
        let vip = running.address("default/web", family);
        let replies = lab.client.tcp_times(50, vip, 80).expect("every connection is answered");
        assert_eq!(
            tally(&replies).len(),
            1,
            "{family}: one client, one pod: {:?}",
            tally(&replies)
        );

        let mut many = Vec::new();
        for host in 120..152 {
            let source = lab::lan(family, host);
            lab.client.add_address(source);
            many.push(lab.client.tcp_from(source, vip, 80).expect("an answer"));
        }
        // 32 clients on one of two pods: one chance in two thousand million.
        assert_eq!(tally(&many).len(), 2, "{family}: many clients, both pods");
    }
}
