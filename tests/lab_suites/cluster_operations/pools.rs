//! Pools that are not open to everybody, and addresses that Services share: what the API says, and
//! what a client reaches.

use std::net::IpAddr;

use pinnace::model::Family;
use serde_json::json;

use super::{PATIENCE, event, published, publishes, publishes_in};
use crate::lab::control_plane::{ControlPlane, Options};
use crate::lab::manifests::{Service, service, web};
use crate::lab::{Host, Lab, ensure, eventually, lan};

const POOLS: &str = "lan=10.88.0.200-10.88.0.209,fd88::200-fd88::209;shop![shop]=10.88.0.230-10.88.0.239,fd88::230-fd88::239";
const SHARED: &str = "pinnace.dev/allow-shared-ip";

/// Both addresses of the lab that end in these digits.
fn both(host: u16) -> [IpAddr; 2] {
    Family::ALL.map(|family| lan(family, host))
}

fn in_shop(service: &Service, pods: &[Host]) -> String {
    service
        .clone()
        .annotation("pinnace.dev/pool", "shop")
        .with_pods(pods)
        .replace("namespace: default", "namespace: shop")
}

#[test]
fn a_pool_of_one_namespace_serves_its_services_and_others_are_told_why_not() {
    let lab = Lab::new(2, 0);
    let plane = ControlPlane::start(Options::on(&lab.client2).without_controllers());
    plane.node_of(&lab.node);
    let pinnace = lab
        .pinnace()
        .unset("PINNACE_MANIFESTS")
        .set("PINNACE_POOLS", POOLS)
        .set("PINNACE_NAMESPACE", "pinnace");
    let running =
        pinnace.set("PINNACE_KUBECONFIG", plane.kubeconfig("pinnace").display()).start_ready();
    running.wait_log("became leader");
    plane.kubectl(&["create", "namespace", "shop"]);

    // First the one that may not, so that every address of the pool is free for it.
    plane.apply(&web("web").annotation("pinnace.dev/pool", "shop").with_pods(&lab.pods[..1]));
    let told = event(
        &plane,
        "SyncLoadBalancerFailed",
        "web",
        "pool shop is not open to namespace default",
    );
    assert_eq!(
        (&told["type"], &told["involvedObject"]["namespace"]),
        (&json!("Warning"), &json!("default")),
        "{told}"
    );
    running.wait_phase("default/web", "Failed");

    // Its own, and two that share one address: by protocol, each with pods of its own.
    let (tcp, udp) =
        (service("dns-tcp").port("dns", "TCP", 53), service("dns-udp").port("dns", "UDP", 53));
    let [tcp, udp] = [tcp, udp].map(|service| {
        service
            .annotation(SHARED, "dns")
            .annotation("pinnace.dev/addresses", "10.88.0.235,fd88::235")
    });
    plane.apply(
        &(in_shop(&web("web"), &lab.pods)
            + &in_shop(&tcp, &lab.pods[..1])
            + &in_shop(&udp, &lab.pods[1..])),
    );
    for (name, expected) in [("web", both(230)), ("dns-tcp", both(235)), ("dns-udp", both(235))] {
        publishes_in(&plane, "shop", name, &expected);
        running.wait_serving(&format!("shop/{name}"));
    }
    for vip in both(230) {
        let reply = lab.client.tcp(vip, 80).unwrap_or_else(|failure| panic!("{vip}: {failure}"));
        assert!(["pod-1", "pod-2"].contains(&&*reply.pod), "{reply:?}");
    }
    for vip in both(235) {
        assert_eq!(lab.client.tcp(vip, 53).map(|reply| reply.pod), Ok("pod-1".to_owned()), "{vip}");
        assert_eq!(lab.client.udp(vip, 53).map(|reply| reply.pod), Ok("pod-2".to_owned()), "{vip}");
    }
    assert_eq!(
        published(&plane, "web"),
        Vec::<IpAddr>::new(),
        "it is as before for the one that may not"
    );

    // With a pool that is open to it; and whoever asks for none is not given the one that is to be
    // asked for.
    plane.kubectl(&["annotate", "--overwrite", "service", "web", "pinnace.dev/pool=lan"]);
    plane.apply(&web("other").with_pods(&lab.pods[1..]));
    publishes(&plane, "web", &both(200));
    publishes(&plane, "other", &both(201));
    for (host, pod) in [(200, "pod-1"), (201, "pod-2")] {
        for vip in both(host) {
            eventually(&format!("{pod} answers at {vip}"), PATIENCE, || {
                let reply = lab.client.tcp(vip, 80).map_err(|failure| failure.to_string())?;
                ensure(reply.pod == pod, || reply.pod.clone())
            });
        }
    }
}
