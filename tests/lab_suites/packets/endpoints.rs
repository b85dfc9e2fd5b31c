//! Endpoints that come, go and change their minds.

use manifests::{Endpoint, slice, slices};

use super::*;

const HTTP: [(&str, &str, u16); 1] = [("http", "TCP", 8080)];

#[test]
fn named_ports_are_taken_from_each_slice() {
    let (lab, running) = serving(2, 0, |lab| {
        let service = web("web").port("admin", "TCP", 8000);
        let mut text = service.yaml();
        for family in Family::ALL {
            let [first, second] = [Endpoint::ready(&lab.pods[0]), Endpoint::ready(&lab.pods[1])];
            text += &slice(
                "web",
                "1",
                family,
                &[("http", "TCP", 8080), ("admin", "TCP", 8081)],
                &[first],
            );
            text += &slice("web", "2", family, &[("http", "TCP", 8081)], &[second]);
        }
        (service, text)
    });
    for family in Family::ALL {
        let vip = running.address("default/web", family);
        for reply in lab.client.tcp_times(30, vip, 80).expect("every connection is answered") {
            assert_eq!(reply.port, if reply.pod == "pod-1" { 8080 } else { 8081 });
        }
        let admin = lab.client.tcp(vip, 8000).expect("the second port");
        assert_eq!((admin.pod.as_str(), admin.port), ("pod-1", 8081));
    }
}

#[test]
fn an_endpoint_in_two_slices_counts_once() {
    let (lab, running) = serving(2, 0, |lab| {
        let [first, second] = [Endpoint::ready(&lab.pods[0]), Endpoint::ready(&lab.pods[1])];
        let mut text = web("web").yaml();
        for family in Family::ALL {
            text += &slice("web", "1", family, &HTTP, &[first.clone(), second.clone()]);
            text += &slice("web", "2", family, &HTTP, std::slice::from_ref(&first));
        }
        (web("web"), text)
    });
    for family in Family::ALL {
        let replies = lab
            .client
            .tcp_times(300, running.address("default/web", family), 80)
            .expect("every connection is answered");
        // Counted twice, pod-1 would get 200 of 300.
        assert!((110..=190).contains(&tally(&replies)["pod-1"]), "{:?}", tally(&replies));
    }
}

#[test]
fn a_pod_that_is_not_ready_gets_no_traffic() {
    let (lab, running) = serving(2, 0, |lab| {
        let endpoints = [Endpoint::ready(&lab.pods[0]), Endpoint::unready(&lab.pods[1])];
        (web("web"), web("web").yaml() + &slices("web", &HTTP, &endpoints))
    });
    for family in Family::ALL {
        let replies = lab
            .client
            .tcp_times(30, running.address("default/web", family), 80)
            .expect("every connection is answered");
        assert_eq!(tally(&replies)["pod-1"], 30);
    }
}

#[test]
fn terminating_pods_serve_only_without_ready_pods() {
    let (lab, running) = serving(2, 0, |lab| {
        let endpoints = [Endpoint::ready(&lab.pods[0]), Endpoint::terminating(&lab.pods[1])];
        (web("web"), web("web").yaml() + &slices("web", &HTTP, &endpoints))
    });
    for family in Family::ALL {
        let replies = lab
            .client
            .tcp_times(30, running.address("default/web", family), 80)
            .expect("every connection is answered");
        assert_eq!(tally(&replies)["pod-1"], 30);
    }
    lab.apply(
        "services.yaml",
        &(web("web").yaml()
            + &slices(
                "web",
                &HTTP,
                &[Endpoint::unready(&lab.pods[0]), Endpoint::terminating(&lab.pods[1])],
            )),
    );
    for family in Family::ALL {
        let vip = running.address("default/web", family);
        eventually("the terminating pod serves", PATIENCE, || match lab.client.tcp(vip, 80) {
            Ok(reply) if reply.pod == "pod-2" => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
}

#[test]
fn an_endpoint_without_a_node_serves_and_is_not_local() {
    let (lab, running) = serving(1, 0, |lab| {
        (web("web"), web("web").yaml() + &slices("web", &HTTP, &[Endpoint::anywhere(&lab.pods[0])]))
    });
    for family in Family::ALL {
        assert_from(&lab.client.tcp(running.address("default/web", family), 80), &["pod-1"]);
    }
}

#[test]
fn a_udp_flow_moves_when_its_pod_is_gone() {
    let dns = service("dns").port("dns", "UDP", 53);
    let (lab, running) = serving(2, 0, in_front_of_all(dns.clone()));
    for family in Family::ALL {
        let vip = running.address("default/dns", family);
        lab.apply("services.yaml", &dns.with_pods(&lab.pods));
        eventually("both pods serve again", PATIENCE, || {
            let replies: Vec<Reply> =
                (0..20).filter_map(|_| lab.client.udp(vip, 53).ok()).collect();
            ensure(tally(&replies).len() == 2, || format!("{:?}", tally(&replies)))
        });
        let before = lab.client.udp_from(40_000, vip, 53).expect("an answer").pod;
        let rest: Vec<&Host> = lab.pods.iter().filter(|pod| pod.name != before).collect();
        lab.apply("services.yaml", &dns.with_pods(rest.iter().copied()));
        eventually("the flow moves", PATIENCE, || match lab.client.udp_from(40_000, vip, 53) {
            Ok(reply) if reply.pod == rest[0].name => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
}

#[test]
fn a_udp_flow_that_began_before_the_service_is_served() {
    let lab = Lab::new(1, 0);
    let running = lab.pinnace().start_ready();
    let dns = service("dns").port("dns", "UDP", 53).node_mode();
    for family in Family::ALL {
        assert_eq!(
            lab.client.udp_from(40_000, lab.node.address(family), 53),
            Err(Failure::Refused)
        );
    }
    lab.apply("services.yaml", &dns.with_pods(&lab.pods));
    running.wait_serving("default/dns");
    for family in Family::ALL {
        assert_from(&lab.client.udp_from(40_000, lab.node.address(family), 53), &["pod-1"]);
    }
}

#[test]
fn established_connections_survive_changes_of_other_endpoints() {
    let (lab, running) = serving(3, 0, in_front_of_all(web("web")));
    let mut open = Vec::new();
    for family in Family::ALL {
        let vip = running.address("default/web", family);
        for _ in 0..30 {
            let mut connection = lab.client.connect(vip, 80).expect("connect");
            let pod = connection.ask().expect("an answer").pod;
            open.push((pod, connection));
        }
    }
    lab.apply("services.yaml", &web("web").with_pods(&lab.pods[..2]));
    for family in Family::ALL {
        let vip = running.address("default/web", family);
        eventually("pod-3 gets no new connection", PATIENCE, || {
            let replies =
                lab.client.tcp_times(30, vip, 80).map_err(|failure| failure.to_string())?;
            ensure(!tally(&replies).contains_key("pod-3"), || format!("{:?}", tally(&replies)))
        });
    }
    let survivors = open.iter_mut().filter(|(pod, _)| pod != "pod-3");
    for (pod, connection) in survivors {
        assert_eq!(connection.ask().expect("the connection is still there").pod, *pod);
    }
}

#[test]
fn endpoints_that_flap_leave_a_working_service() {
    let (lab, running) = serving(3, 0, in_front_of_all(web("web")));
    for round in 0..200 {
        lab.apply("services.yaml", &web("web").with_pods(&lab.pods[..1 + round % 3]));
        std::thread::sleep(Duration::from_millis(10));
    }
    lab.apply("services.yaml", &web("web").with_pods(&lab.pods[1..]));
    for family in Family::ALL {
        let vip = running.address("default/web", family);
        eventually("the last state holds", PATIENCE, || {
            let replies =
                lab.client.tcp_times(30, vip, 80).map_err(|failure| failure.to_string())?;
            ensure(tally(&replies).into_keys().eq(["pod-2", "pod-3"]), || {
                format!("{:?}", tally(&replies))
            })
        });
    }
}
