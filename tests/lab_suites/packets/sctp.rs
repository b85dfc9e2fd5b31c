//! SCTP Services: the protocol's own packets, checksum and all, through a VIP and a node address.

use super::*;

fn serving_sctp(near: u16, far: u16, service: Service) -> (Lab, Running) {
    let (lab, running) = serving(near, far, in_front_of_all(service));
    for pod in lab.all_pods() {
        pod.serve_sctp(lab::POD_PORTS[0]);
    }
    (lab, running)
}

/// Associations from twenty source ports.
fn associate(client: &Host, address: std::net::IpAddr) -> Vec<Reply> {
    let associate = |port| {
        client
            .sctp_from(port, address, 2905)
            .unwrap_or_else(|failure| panic!("{address} from {port}: {failure}"))
    };
    (40_000..40_020).map(associate).collect()
}

#[test]
fn the_lab_by_itself_sets_up_an_association() {
    let lab = Lab::new(1, 0);
    lab.pods[0].serve_sctp(8080);
    for family in Family::ALL {
        let reply =
            lab.node.sctp_from(40_000, lab.pods[0].address(family), 8080).expect("an association");
        assert_eq!((reply.pod.as_str(), reply.port, reply.peer.port()), ("pod-1", 8080, 40_000));
        assert_eq!(
            lab.node.sctp_from(40_000, lab.pods[0].address(family), 8081),
            Err(Failure::TimedOut)
        );
    }
}

#[test]
fn a_vip_is_reached_over_sctp() {
    let (lab, running) = serving_sctp(2, 1, service("signal").port("m3ua", "SCTP", 2905));
    for family in Family::ALL {
        let replies = associate(&lab.client, running.address("default/signal", family));
        for reply in &replies {
            let expected = if reply.pod == "far-1" {
                lab.node.address(family)
            } else {
                lab.client.address(family)
            };
            assert_eq!((reply.port, reply.peer.ip()), (8080, expected), "{}", reply.pod);
        }
        // That one of three gets none of twenty has a chance of one in a thousand, and hash and
        // ports are the same in every run.
        assert_eq!(tally(&replies).len(), 3, "{family}: {:?}", tally(&replies));
    }
}

#[test]
fn the_node_address_is_reached_over_sctp() {
    let (lab, _running) =
        serving_sctp(2, 0, service("signal").port("m3ua", "SCTP", 2905).node_mode());
    for family in Family::ALL {
        let replies = associate(&lab.client, lab.node.address(family));
        assert!(replies.iter().all(|reply| reply.peer.ip() == lab.client.address(family)));
        assert_eq!(tally(&replies).into_keys().collect::<Vec<_>>(), ["pod-1", "pod-2"], "{family}");
    }
}

#[test]
fn one_port_serves_sctp_and_tcp_of_one_service_and_an_sctp_port_is_no_tcp_port() {
    let (lab, running) = serving_sctp(
        1,
        0,
        service("signal")
            .port("both-tcp", "TCP", 2905)
            .port("both", "SCTP", 2905)
            .port("only", "SCTP", 80),
    );
    for family in Family::ALL {
        let vip = running.address("default/signal", family);
        assert_from(&lab.client.tcp(vip, 2905), &["pod-1"]);
        assert_from(&lab.client.sctp_from(40_000, vip, 2905), &["pod-1"]);
        assert_eq!(lab.client.tcp(vip, 80), Err(Failure::TimedOut));
        assert_eq!(lab.client.sctp_from(40_000, vip, 81), Err(Failure::TimedOut));
    }
}
