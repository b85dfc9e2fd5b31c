//! Pinnace beside kube-proxy on the same node, in each of its modes and without it: clients notice
//! no difference.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::lab;
use crate::lab::control_plane::{ControlPlane, Options, ProxyMode};
use crate::lab::manifests::web;
use crate::lab::{Lab, Running, ensure, eventually};
use pinnace::model::Family;

const PATIENCE: Duration = Duration::from_secs(30);
/// Of the clients that `default/admitting` does not admit; it admits the others.
const STRANGER: u16 = 110;
/// The port of `default/own`, at the node's own addresses.
const OWN: u16 = 8081;

#[test]
fn clients_get_the_same_pod_and_pods_see_the_same_client_whatever_kube_proxy_does() {
    // The third pod is only asked from.
    let lab = Lab::new(3, 1);
    let api = ControlPlane::start(Options::on(&lab.client2).without_controllers());
    api.node_of(&lab.node);
    // By client address, so that a client's pod is always the same.
    api.apply(&web("web").sticky().with_pods(&lab.pods[..2]));
    api.apply(&web("local").local().with_pods([&lab.pods[1], &lab.far[0]]));
    api.apply(
        &web("admitting")
            .admit(&[
                "10.88.0.111/32",
                "10.88.0.112/29",
                "fd88::111/128",
                "fd88::112/127",
                "fd88::114/126",
            ])
            .with_pods(&lab.pods[..1]),
    );
    api.apply(
        &lab::manifests::service("own")
            .port("http", "TCP", OWN.into())
            .node_mode()
            .with_pods(&lab.pods[..1]),
    );
    let service = api.get_json(&["service", "web"]);
    let cluster: IpAddr = service["spec"]["clusterIP"]
        .as_str()
        .expect("a cluster address")
        .parse()
        .expect("an address");

    let pinnace = lab
        .pinnace()
        .unset("PINNACE_MANIFESTS")
        .set("PINNACE_KUBECONFIG", api.kubeconfig("pinnace").display());
    let mut running = start(&pinnace);
    // What kube-proxy captures.
    eventually("every status names two addresses", PATIENCE, || {
        let services = api.get_json(&["services", "web", "local", "admitting", "own"]);
        let entries = |service: &serde_json::Value| {
            service["status"]["loadBalancer"]["ingress"].as_array().map_or(0, Vec::len)
        };
        ensure(
            services["items"].as_array().expect("four").iter().all(|service| entries(service) == 2),
            || services.to_string(),
        )
    });
    let sources: Vec<IpAddr> =
        (STRANGER..118).flat_map(|last| Family::ALL.map(|family| lab::lan(family, last))).collect();
    for source in &sources {
        lab.client.add_address(*source);
    }
    let alone = answers(&lab, &running, &sources);
    as_each_service_asks(&alone);
    assert!(lab.pods[2].tcp(cluster, 80).is_err(), "nobody serves cluster addresses yet");

    for mode in [ProxyMode::Nftables, ProxyMode::Iptables] {
        let proxy = api.kube_proxy(&lab.node.ns, "node-1", mode);
        eventually(&format!("kube-proxy serves {cluster} in mode {mode:?}"), PATIENCE, || {
            lab.pods[2]
                .tcp(cluster, 80)
                .map_err(|failure| format!("{failure}\n{}", proxy.process.last_words()))
        });
        assert_eq!(answers(&lab, &running, &sources), alone, "beside kube-proxy in mode {mode:?}");
        assert!(running.terminate().success());
        running = start(&pinnace);
        assert_eq!(
            answers(&lab, &running, &sources),
            alone,
            "started after kube-proxy in mode {mode:?}"
        );
        drop(proxy);
        assert_eq!(
            answers(&lab, &running, &sources),
            alone,
            "with the rules that kube-proxy left behind, mode {mode:?}"
        );
        api.remove_proxy_rules(&lab.node.ns);
        assert_eq!(answers(&lab, &running, &sources), alone, "after the cleanup of mode {mode:?}");
        let (code, body) = running.pinnace().http("/readyz").expect("an answer");
        ensure(code == 200, || body).expect("/readyz is content");
    }
}

fn start(pinnace: &lab::Pinnace) -> Running {
    let running = pinnace.clone().start_ready();
    for name in ["web", "local", "admitting", "own"] {
        running.wait_serving(&format!("default/{name}"));
    }
    running
}

/// What became of one question: the Service, who asked, and which pod answered whom.
type Answer = (&'static str, IpAddr, Result<(String, IpAddr), String>);

/// Every client asks every Service.
fn answers(lab: &Lab, running: &Running, sources: &[IpAddr]) -> Vec<Answer> {
    let mut answers = Vec::new();
    for (name, port) in [("web", 80), ("local", 80), ("admitting", 80), ("own", OWN)] {
        let [v4, v6] =
            Family::ALL.map(|family| running.address(&format!("default/{name}"), family));
        for source in sources {
            let address = if source.is_ipv4() { v4 } else { v6 };
            let reply = lab.client.tcp_from(*source, address, port);
            answers.push((
                name,
                *source,
                reply
                    .map(|reply| (reply.pod, reply.peer.ip()))
                    .map_err(|failure| failure.to_string()),
            ));
        }
    }
    answers
}

/// Without kube-proxy everybody is served by whom it should be, and is seen as itself; only
/// strangers are not.
fn as_each_service_asks(answers: &[Answer]) {
    let of = |name: &str| {
        answers.iter().filter(move |(service, ..)| *service == name).collect::<Vec<_>>()
    };
    for (name, source, reply) in answers {
        let stranger = *name == "admitting"
            && Family::ALL.map(|family| lab::lan(family, STRANGER)).contains(source);
        match reply {
            Ok((_, seen)) => {
                assert!(!stranger && seen == source, "{source} asked {name} and was seen as {seen}")
            }
            Err(failure) => assert!(stranger, "{source} asked {name}: {failure}"),
        }
    }
    let pods = |name| {
        of(name)
            .into_iter()
            .filter_map(|(.., reply)| Some(&reply.as_ref().ok()?.0))
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(pods("web").len(), 2, "clients are spread: {answers:?}");
    assert_eq!(
        pods("local").into_iter().collect::<Vec<_>>(),
        ["pod-2"],
        "only the pod on this node: {answers:?}"
    );
}
