//! A Service is reached: VIP and node address, TCP and UDP, from the LAN, from pods and from the
//! node itself.

use super::*;

#[test]
fn a_vip_is_reached_over_tcp_and_udp() {
    let service = web("web").port("dns", "UDP", 53);
    let (lab, running) = serving(3, 0, in_front_of_all(service));
    for family in Family::ALL {
        let vip = running.address("default/web", family);
        let (tcp, udp) = (lab.client.tcp(vip, 80), lab.client.udp(vip, 53));
        assert_from(&tcp, &["pod-1", "pod-2", "pod-3"]);
        assert_from(&udp, &["pod-1", "pod-2", "pod-3"]);
        assert_eq!(
            lab.client.neighbour_entry(vip).0,
            Some(lab.node.mac()),
            "the node answers for {vip}"
        );
    }
}

#[test]
fn the_node_address_is_reached_in_node_mode() {
    let service = web("web").port("dns", "UDP", 53).node_mode();
    let (lab, running) = serving(2, 0, in_front_of_all(service));
    for family in Family::ALL {
        let node = lab.node.address(family);
        assert_eq!(running.address("default/web", family), node);
        assert_from(&lab.client.tcp(node, 80), &["pod-1", "pod-2"]);
        assert_from(&lab.client.udp(node, 53), &["pod-1", "pod-2"]);
    }
}

#[test]
fn connections_spread_evenly_over_the_pods() {
    let (lab, running) = serving(3, 0, in_front_of_all(web("web")));
    for family in Family::ALL {
        let replies = lab
            .client
            .tcp_times(300, running.address("default/web", family), 80)
            .expect("every connection is answered");
        let tally = tally(&replies);
        assert_eq!(tally.len(), 3, "{family}: {tally:?}");
        // With 300 draws of one third, 60 and 141 are five standard deviations away.
        assert!(tally.values().all(|count| (60..=141).contains(count)), "{family}: {tally:?}");
    }
}

#[test]
fn a_local_pod_sees_the_client_and_a_far_pod_sees_the_node() {
    let (lab, running) = serving(1, 1, in_front_of_all(web("web").port("dns", "UDP", 53)));
    for family in Family::ALL {
        let vip = running.address("default/web", family);
        let mut replies = lab.client.tcp_times(30, vip, 80).expect("every connection is answered");
        replies
            .extend((0..20).map(|_| lab.client.udp(vip, 53).expect("every datagram is answered")));
        for reply in &replies {
            let expected = if reply.pod == "pod-1" {
                lab.client.address(family)
            } else {
                lab.node.address(family)
            };
            assert_eq!(reply.peer.ip(), expected, "{}", reply.pod);
        }
        assert_eq!(tally(&replies).len(), 2, "both pods were asked");
    }
}

#[test]
fn a_vip_answers_ping() {
    let (lab, running) = serving(1, 0, in_front_of_all(web("web")));
    for family in Family::ALL {
        lab.client
            .ping(running.address("default/web", family))
            .unwrap_or_else(|failure| panic!("{family}: {failure}"));
    }
}

#[test]
fn pods_reach_a_vip_and_keep_their_source() {
    let (lab, running) = serving(1, 1, |lab| {
        let service = web("web");
        (service.clone(), service.with_pods(&lab.far))
    });
    for family in Family::ALL {
        let reply = lab.pods[0]
            .tcp(running.address("default/web", family), 80)
            .expect("a pod reaches the VIP");
        assert_eq!((reply.pod.as_str(), reply.peer.ip()), ("far-1", lab.pods[0].address(family)));
    }
}

#[test]
fn a_pod_reaches_its_neighbour_through_a_vip() {
    let (lab, running) = serving(2, 0, |lab| {
        let service = web("web");
        (service.clone(), service.with_pods(&lab.pods[1..]))
    });
    for family in Family::ALL {
        let reply = lab.pods[0]
            .tcp(running.address("default/web", family), 80)
            .expect("a pod reaches the VIP");
        assert_eq!((reply.pod.as_str(), reply.peer.ip()), ("pod-2", lab.pods[0].address(family)));
    }
}

#[test]
fn a_pod_reaches_itself_through_a_vip() {
    let (lab, running) = serving(1, 0, in_front_of_all(web("web").port("dns", "UDP", 53)));
    for family in Family::ALL {
        let vip = running.address("default/web", family);
        assert_from(&lab.pods[0].tcp(vip, 80), &["pod-1"]);
        assert_from(&lab.pods[0].udp(vip, 53), &["pod-1"]);
    }
}

#[test]
fn the_node_itself_reaches_vip_and_node_address() {
    let at_node = service("at-node").port("http", "TCP", 81).node_mode();
    let (lab, running) = serving(1, 1, |lab| {
        let text = web("web").with_pods(lab.all_pods()) + &at_node.with_pods(lab.all_pods());
        (web("web"), text)
    });
    running.wait_serving("default/at-node");
    for family in Family::ALL {
        let vip = running.address("default/web", family);
        for (address, port) in [(vip, 80), (lab.node.address(family), 81)] {
            let replies = lab
                .node
                .tcp_times(20, address, port)
                .unwrap_or_else(|failure| panic!("{address}: {failure}"));
            assert_eq!(tally(&replies).len(), 2, "{address}: near and far pods are asked");
        }
    }
}

#[test]
fn unclaimed_ports_of_a_vip_are_silent() {
    let (lab, running) = serving(1, 0, in_front_of_all(web("web")));
    for family in Family::ALL {
        let vip = running.address("default/web", family);
        assert_from(&lab.client.tcp(vip, 80), &["pod-1"]);
        assert_eq!(lab.client.tcp(vip, 81), Err(Failure::TimedOut));
        assert_eq!(lab.client.udp(vip, 80), Err(Failure::TimedOut));
    }
}

#[test]
fn unclaimed_ports_of_a_node_address_are_left_alone() {
    let (lab, running) = serving(1, 0, in_front_of_all(web("web").node_mode()));
    lab.node.serve(&[2222]);
    for family in Family::ALL {
        let node = lab.node.address(family);
        assert_from(&lab.client.tcp(node, 80), &["pod-1"]);
        assert_eq!(lab.client.tcp(node, 81), Err(Failure::Refused), "the host refuses as ever");
        let reply = lab.client.tcp(node, 2222).expect("a program of the host is reached");
        assert_eq!((reply.pod.as_str(), reply.peer.ip()), ("node-1", lab.client.address(family)));
    }
    drop(running);
}

#[test]
fn one_port_serves_tcp_and_udp_of_one_service() {
    let service = service("dns").port("dns-tcp", "TCP", 53).port("dns", "UDP", 53);
    let (lab, running) = serving(1, 0, in_front_of_all(service));
    for family in Family::ALL {
        let vip = running.address("default/dns", family);
        assert_from(&lab.client.tcp(vip, 53), &["pod-1"]);
        assert_from(&lab.client.udp(vip, 53), &["pod-1"]);
    }
}
