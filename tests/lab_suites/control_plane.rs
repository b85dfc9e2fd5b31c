//! The control plane that other tests rely on does what they take for granted.

use std::net::IpAddr;
use std::time::Duration;

use crate::lab::control_plane::{Component, ControlPlane, Options, ProxyMode};
use crate::lab::manifests::web;
use crate::lab::{Lab, ensure, eventually};
use pinnace::model::Family;

const PATIENCE: Duration = Duration::from_secs(30);
const SERVICE: &str = "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}}";

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn slices_follow_pods_and_what_was_stored_outlives_the_programs() {
    let mut plane = ControlPlane::start(Options::loopback());
    plane.node("n1", &[address("10.88.0.11")], &[("zone", "a")]);
    plane.apply(SERVICE);
    let (first, second) = (address("10.42.0.11"), address("10.42.0.12"));
    plane.pod("n1", "a", &[first], &[("app", "web")], true);
    plane.pod("n1", "b", &[second], &[("app", "web")], false);
    plane.pod("n1", "c", &[address("10.42.0.13")], &[("app", "other")], true);
    plane.wait_endpoints("web", &[first]);
    let directory = plane.directory().to_owned();

    plane.stop(Component::ApiServer);
    plane.stop(Component::Etcd);
    plane.resume(Component::Etcd);
    plane.resume(Component::ApiServer);
    assert_eq!(plane.get_json(&["node", "n1"])["metadata"]["labels"]["zone"], "a");
    plane.pod("n1", "b", &[second], &[("app", "web")], true);
    plane.wait_endpoints("web", &[first, second]);

    plane.freeze(Component::ControllerManager);
    plane.kubectl(&["delete", "pod", "a"]);
    assert_eq!(
        plane.ready_endpoints("web"),
        [first, second],
        "nobody follows while the controllers are stopped"
    );
    plane.thaw(Component::ControllerManager);
    plane.wait_endpoints("web", &[second]);
    drop(plane);
    assert!(!directory.exists(), "{} was left behind", directory.display());
}

#[test]
fn requests_are_counted_by_who_made_them() {
    let lab = Lab::new(0, 0);
    let plane = ControlPlane::start(Options::on(&lab.client2).without_controllers());
    let before = plane.mark();
    let ask = |identity: &str, through: bool| {
        let file = if through {
            plane.kubeconfig_with_faults(identity)
        } else {
            plane.kubeconfig(identity)
        };
        curl(&lab, &file, "/api/v1/services")
    };
    assert_eq!(ask("read-only", false).0, 200);
    assert_eq!(ask("read-only", true).0, 200);
    assert_eq!(ask("nobody", false).0, 403);
    assert_eq!(ask("pinnace", false).0, 200);
    eventually("all are written down", PATIENCE, || {
        let codes = |user: &str| {
            let requests = plane.requests(before).into_iter();
            requests
                .filter(|request| request.user == user && request.verb == "list")
                .map(|request| request.code)
                .collect::<Vec<_>>()
        };
        let found = [
            codes("system:kube-proxy"),
            codes("nobody"),
            codes("system:serviceaccount:pinnace:pinnace"),
        ];
        ensure(found == [vec![200, 200], vec![403], vec![200]], || format!("{found:?}"))
    });
    assert_eq!(plane.count(before, "system:kube-proxy", "list", "services"), 2);
    assert_eq!(plane.count(plane.mark(), "system:kube-proxy", "list", "services"), 0);
}

#[test]
fn the_proxy_fails_as_told_and_the_way_around_it_does_not() {
    let lab = Lab::new(0, 0);
    let plane = ControlPlane::start(Options::on(&lab.client2).without_controllers());
    let ask = || curl(&lab, &plane.kubeconfig_with_faults("read-only"), "/api/v1/services");
    assert_eq!(ask().0, 200);
    for code in [403, 429, 500] {
        plane.faults(&format!("status {code}"));
        assert_eq!(ask().0, code);
        assert_eq!(curl(&lab, &plane.kubeconfig("read-only"), "/api/v1/services").0, 200);
    }
    // No answer, and what curl says about it: 7 nobody listens, 28 it took too long, 60 the
    // certificate is no good.
    for (command, exit) in [("refuse", 7), ("freeze", 28), ("expired", 60)] {
        plane.faults(command);
        assert_eq!(ask(), (0, exit), "{command}");
    }
    plane.faults("pass");
    assert_eq!(ask().0, 200);
}

#[test]
fn kube_proxy_serves_cluster_addresses_in_the_namespace_of_a_node() {
    let lab = Lab::new(2, 0);
    let plane = ControlPlane::start(Options::on(&lab.client2));
    plane.node_of(&lab.node);
    plane.apply(&web("web").yaml());
    plane.pod_of("node-1", &lab.pods[0], "web");
    plane
        .wait_endpoints("web", &[lab.pods[0].address(Family::V4), lab.pods[0].address(Family::V6)]);
    let service = plane.get_json(&["service", "web"]);
    let cluster = service["spec"]["clusterIPs"].as_array().expect("cluster addresses").clone();
    for mode in [ProxyMode::Nftables, ProxyMode::Iptables] {
        let proxy = plane.kube_proxy(&lab.node.ns, "node-1", mode);
        for ip in &cluster {
            let ip = address(ip.as_str().expect("text"));
            eventually(&format!("{ip} answers in mode {mode:?}"), PATIENCE, || {
                let reply = lab.pods[1]
                    .tcp(ip, 80)
                    .map_err(|failure| format!("{failure}\n{}", proxy.process.last_words()))?;
                ensure(reply.pod == "pod-1", || format!("{reply:?}"))
            });
        }
        drop(proxy);
        plane.remove_proxy_rules(&lab.node.ns);
        assert!(
            lab.pods[1].tcp(address(cluster[0].as_str().expect("text")), 80).is_err(),
            "nobody else serves it"
        );
    }
}

/// Asks from the lab's client: the status code of the answer (0 for none), and how curl ended.
fn curl(lab: &Lab, kubeconfig: &std::path::Path, path: &str) -> (u16, i32) {
    let text = std::fs::read_to_string(kubeconfig).expect("a kubeconfig");
    let field = |name: &str| {
        text.split_once(&format!("{name}: \""))
            .expect("a field")
            .1
            .split('"')
            .next()
            .expect("a quote")
            .to_owned()
    };
    let mut command = std::process::Command::new("curl");
    command.args([
        "-s",
        "-m",
        "3",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "--cacert",
        &field("certificate-authority"),
    ]);
    command.args([
        "-H",
        &format!("Authorization: Bearer {}", field("token")),
        &format!("{}{path}", field("server")),
    ]);
    let output = lab
        .client
        .ns
        .enter(|| command.output())
        .expect("curl is installed (tests/run installs it)");
    (
        String::from_utf8_lossy(&output.stdout).parse().expect("a code"),
        output.status.code().expect("it ended by itself"),
    )
}
