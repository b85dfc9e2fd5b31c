//! The lab by itself, without Pinnace: what fails here is the lab's fault, and what passes here
//! later fails for another reason.

use super::*;

#[test]
fn a_client_reaches_a_pod_through_its_node() {
    let lab = Lab::new(2, 1);
    lab.client
        .ns
        .ip(&["route add 10.42.0.0/24 via 10.88.0.11", "route add fd42::/64 via fd88::11"]);
    lab.client
        .ns
        .ip(&["route add 10.42.1.0/24 via 10.88.0.12", "route add fd42:1::/64 via fd88::12"]);
    for family in Family::ALL {
        for pod in lab.all_pods() {
            let address = pod.address(family);
            for reply in [lab.client.tcp(address, 8080), lab.client.udp(address, 8080)] {
                let reply = reply.unwrap_or_else(|failure| panic!("{}: {failure}", pod.name));
                assert_eq!(
                    (reply.pod.as_str(), reply.port, reply.peer.ip()),
                    (pod.name.as_str(), 8080, lab.client.address(family))
                );
            }
            lab.client.ping(address).expect("a pod answers ping");
        }
        let reply = lab.pods[0].tcp(lab.far[0].address(family), 8081).expect("from node to node");
        assert_eq!(reply.peer.ip(), lab.pods[0].address(family));
    }
}

#[test]
fn failures_are_told_apart() {
    let lab = Lab::new(1, 0);
    lab.node.ns.output("nft", &["add table inet silence"]);
    lab.node
        .ns
        .output("nft", &["add chain inet silence input { type filter hook input priority 0; }"]);
    lab.node
        .ns
        .output("nft", &["add rule inet silence input meta l4proto { tcp, udp } th dport 99 drop"]);
    for family in Family::ALL {
        let (node, nobody) = (lab.node.address(family), lab::lan(family, 99));
        assert_eq!(lab.client.tcp(node, 98), Err(Failure::Refused));
        assert_eq!(lab.client.udp(node, 98), Err(Failure::Refused));
        assert_eq!(lab.client.tcp(node, 99), Err(Failure::TimedOut));
        assert_eq!(lab.client.udp(node, 99), Err(Failure::TimedOut));
        assert_eq!(lab.client.tcp(nobody, 80), Err(Failure::Unreachable));
        lab.client.ping(node).expect("the node answers ping");
        assert!(lab.client.ping(nobody).is_err());
        assert_eq!(lab.client.neighbour(node), Some(lab.node.mac()));
        assert_eq!(lab.client.neighbour(nobody), None);
    }
}

#[test]
fn a_connection_stays_open_and_sources_are_chosen() {
    let lab = Lab::new(1, 0);
    for family in Family::ALL {
        let (node, pod) = (&lab.node, &lab.pods[0]);
        let mut connection = node.connect(pod.address(family), 8080).expect("connect");
        let first = connection.ask().expect("an answer");
        assert_eq!(connection.ask(), Ok(first), "the same connection, the same peer");
        let extra = lab::lan(family, 150);
        node.add_address(extra);
        assert_eq!(
            node.tcp_from(extra, pod.address(family), 8080).expect("an answer").peer.ip(),
            extra
        );
        assert_eq!(node.tcp_times(5, pod.address(family), 8080).expect("five answers").len(), 5);
        let cni = pod.udp_from(7777, pod.address(family), 8080).expect("a pod reaches itself").peer;
        assert_eq!(cni.port(), 7777);
    }
}
