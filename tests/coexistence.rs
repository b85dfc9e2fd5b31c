//! Pinnace beside kube-proxy on the same node, in each of its modes and without it: clients notice no difference.

use std::net::IpAddr;
use std::time::Duration;

use lab::control_plane::{ControlPlane, Options, ProxyMode};
use lab::manifests::web;
use lab::{Lab, Running, ensure, eventually};
use pinnace::domain::model::Family;
use serde_json::json;

#[path = "lab/mod.rs"]
mod lab;

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn clients_get_the_same_pod_and_pods_see_the_same_client_whatever_kube_proxy_does() {
    let lab = Lab::new(3, 0);
    let api = ControlPlane::start(Options::on(&lab.client2));
    api.node_of(&lab.node);
    // By client address, so that a client's pod is always the same; pod-3 is only asked from.
    api.apply(&web("web").sticky().yaml());
    let ingress = json!([{"ip": "10.88.0.200", "ipMode": "VIP"}, {"ip": "fd88::200", "ipMode": "VIP"}]);
    api.patch_status("service", "web", &json!({"loadBalancer": {"ingress": ingress}}));
    for pod in &lab.pods[..2] {
        api.pod_of("node-1", pod, "web");
    }
    api.wait_endpoints("web", &lab.pods[..2].iter().flat_map(|pod| Family::ALL.map(|family| pod.address(family))).collect::<Vec<_>>());
    let service = api.get_json(&["service", "web"]);
    let cluster: IpAddr = service["spec"]["clusterIP"].as_str().expect("a cluster address").parse().expect("an address");

    let pinnace = lab.pinnace().unset("PINNACE_MANIFESTS").set("PINNACE_KUBECONFIG", api.kubeconfig("pinnace").display());
    let mut running = pinnace.clone().start_ready();
    running.wait_serving("default/web");
    let sources: Vec<IpAddr> = (110..118).flat_map(|last| Family::ALL.map(|family| lab::lan(family, last))).collect();
    for source in &sources {
        lab.client.add_address(*source);
    }
    let alone = answers(&lab, &running, &sources);
    for (source, (_, seen)) in sources.iter().zip(&alone) {
        assert_eq!(seen, source, "the pod sees the client itself");
    }
    let pods: std::collections::BTreeSet<_> = alone.iter().map(|(pod, _)| pod).collect();
    assert_eq!(pods.len(), 2, "{alone:?}");
    assert!(lab.pods[2].tcp(cluster, 80).is_err(), "nobody serves cluster addresses yet");

    for mode in [ProxyMode::Nftables, ProxyMode::Iptables] {
        let proxy = api.kube_proxy(&lab.node.ns, "node-1", mode);
        eventually(&format!("kube-proxy serves {cluster} in mode {mode:?}"), PATIENCE, || {
            lab.pods[2].tcp(cluster, 80).map_err(|failure| format!("{failure}\n{}", proxy.process.last_words()))
        });
        assert_eq!(answers(&lab, &running, &sources), alone, "beside kube-proxy in mode {mode:?}");
        assert!(running.terminate().success());
        running = pinnace.clone().start_ready();
        running.wait_serving("default/web");
        assert_eq!(answers(&lab, &running, &sources), alone, "started after kube-proxy in mode {mode:?}");
        drop(proxy);
        assert_eq!(answers(&lab, &running, &sources), alone, "with the rules that kube-proxy left behind, mode {mode:?}");
        api.remove_proxy_rules(&lab.node.ns);
        assert_eq!(answers(&lab, &running, &sources), alone, "after the cleanup of mode {mode:?}");
        let (code, body) = running.pinnace().http("/readyz").expect("an answer");
        ensure(code == 200, || body).expect("/readyz is content");
    }
}

/// Which pod answers each of these clients, and whom it sees.
fn answers(lab: &Lab, running: &Running, sources: &[IpAddr]) -> Vec<(String, IpAddr)> {
    let ask = |source: &IpAddr| {
        let vip = running.address("default/web", Family::of(*source));
        let reply = lab.client.tcp_from(*source, vip, 80).unwrap_or_else(|failure| panic!("{source} to {vip}: {failure}"));
        (reply.pod, reply.peer.ip())
    };
    sources.iter().map(ask).collect()
}
