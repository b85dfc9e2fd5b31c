//! Load balancers that want the same Services: said, and not fought over. And what `pinnace check`
//! says about the API.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{PATIENCE, USER, address, event, published};
use crate::lab::control_plane::{ControlPlane, Options};
use crate::lab::manifests::web;
use crate::lab::{Lab, Running, ensure, eventually};

/// Maximum number of writes of a status: three corrections in a minute before Pinnace backs off, and
/// the allocation.
const WRITES: usize = 4;

/// Overwrites the status, as another load balancer would, whenever Pinnace has corrected it, until
/// Pinnace backs off. Returns how often.
fn fight(plane: &ControlPlane, running: &Running, name: &str, ours: IpAddr, theirs: &str) -> usize {
    let (deadline, mut writes) = (Instant::now() + PATIENCE, 0);
    let status = json!({"loadBalancer": {"ingress": [{"ip": theirs}]}});
    let left = || {
        running.pinnace().status().is_ok_and(|status| {
            status.reasons(&format!("default/{name}")).contains("StatusContested")
        })
    };
    while !left() {
        assert!(Instant::now() < deadline, "still fought over after {writes} writes");
        if published(plane, name) == [ours] {
            plane.patch_status("service", name, &status);
            writes += 1;
        }
        thread::sleep(Duration::from_millis(100));
    }
    writes
}

#[test]
fn servicelb_and_others_are_reported_and_status_conflicts_back_off() {
    let lab = Lab::new(1, 0);
    let plane = ControlPlane::start(Options::on(&lab.client2).without_controllers());
    plane.node_of(&lab.node);
    let pinnace = lab
        .pinnace()
        .unset("PINNACE_MANIFESTS")
        .set("PINNACE_POOLS", "10.88.0.200-10.88.0.220")
        .set("PINNACE_NAMESPACE", "pinnace");
    let running = pinnace
        .clone()
        .set("PINNACE_KUBECONFIG", plane.kubeconfig("pinnace").display())
        .start_ready();
    running.wait_log("became leader");
    plane.apply(&(web("web").with_pods(&lab.pods) + &web("other").with_pods(&lab.pods)));
    let (vip, other) = (address(&plane, "web", PATIENCE), address(&plane, "other", PATIENCE));
    let served = |vip: IpAddr| {
        eventually("a client is served", PATIENCE, || {
            lab.client.tcp(vip, 80).map(drop).map_err(|failure| failure.to_string())
        });
    };

    // What K3s does where ServiceLB is enabled: a finalizer, a DaemonSet, the addresses of nodes in
    // the status.
    let mark = plane.mark();
    plane.apply(&daemon_set("svclb-web-1234abcd"));
    let finalizer =
        r#"{"metadata":{"finalizers":["service.kubernetes.io/load-balancer-cleanup"]}}"#;
    plane.kubectl(&["patch", "service", "web", "--type=merge", "-p", finalizer]);
    let told = event(&plane, "SyncLoadBalancerFailed", "web", "has claimed this Service");
    assert!(
        told["message"].as_str().is_some_and(|message| message.contains("--disable=servicelb")),
        "{told}"
    );
    fight(&plane, &running, "web", vip, "10.88.0.11");
    event(
        &plane,
        "SyncLoadBalancerFailed",
        "web",
        "this looks like K3s ServiceLB: start every K3s server with --disable=servicelb",
    );
    served(vip);

    // Another one, somewhere in the cluster.
    fight(&plane, &running, "other", other, "203.0.113.7");
    event(&plane, "SyncLoadBalancerFailed", "other", "find the other load balancer and stop it");
    served(other);
    let written = |name: &str| {
        let requests = plane.requests(mark).into_iter();
        requests
            .filter(|r| {
                r.user == USER
                    && r.resource == "services/status"
                    && r.verb == "patch"
                    && r.name == name
            })
            .count()
    };
    let counts = (written("web"), written("other"));
    assert!((1..=WRITES).contains(&counts.0) && (1..=WRITES).contains(&counts.1), "{counts:?}");
    thread::sleep(Duration::from_secs(3));
    assert_eq!((written("web"), written("other")), counts, "the truce holds");
    assert_eq!(published(&plane, "other"), ["203.0.113.7".parse::<IpAddr>().expect("an address")]);

    let check = |file: &std::path::Path| {
        let output = pinnace.clone().set("PINNACE_KUBECONFIG", file.display()).run(&["check"]);
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    plane.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: kubevip, namespace: kube-system}\ndata: {range-global: 10.88.0.200-10.88.0.220}\n");
    let (_, said) = check(&plane.kubeconfig("admin"));
    let servicelb =
        "K3s ServiceLB serves in this cluster (DaemonSet svclb-web-1234abcd in kube-system)";
    for line in [servicelb, "disable: servicelb", "PINNACE_POOLS=\"10.88.0.200-10.88.0.220\""] {
        assert!(said.contains(line), "{line} is missing:\n{said}");
    }
    let (_, said) = check(&plane.kubeconfig("pinnace"));
    for line in [
        "answers; credentials:",
        "the credentials may list and watch services, endpointslices and nodes",
        "the credentials may write the status of Services, events and leases",
    ] {
        assert!(said.contains(line), "{line} is missing:\n{said}");
    }
    let (_, said) = check(&plane.kubeconfig("read-only"));
    assert!(
        said.contains("the credentials may not patch services/status")
            && said.contains("runs as follower only"),
        "{said}"
    );
    let (code, said) = check(&plane.kubeconfig("nobody"));
    assert!(
        code == Some(1)
            && said.contains("the credentials may not list services")
            && said.contains("kubectl create clusterrole"),
        "{said}"
    );
    plane.faults("refuse");
    let (code, said) = check(&plane.kubeconfig_with_faults("pinnace"));
    assert!(code == Some(1) && said.contains("does not answer"), "{said}");
    let (code, said) = check(&lab.directory().join("no-such-file"));
    assert!(code == Some(1) && said.contains("no-such-file cannot be used"), "{said}");

    what_kube_vip_would_do_is_answered(&plane, &lab, &running);
}

fn daemon_set(name: &str) -> String {
    let labels = json!({"app": name, "svccontroller.k3s.cattle.io/svcname": "web", "svccontroller.k3s.cattle.io/svcnamespace": "default"});
    let pod = json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "lb-tcp-80", "image": "none"}]}});
    json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": name, "namespace": "kube-system", "labels": labels},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": pod}})
    .to_string()
}

/// Annotations of kube-vip that Pinnace does not have.
fn what_kube_vip_would_do_is_answered(plane: &ControlPlane, lab: &Lab, running: &Running) {
    let service = web("from-kube-vip")
        .annotation("kube-vip.io/serviceInterface", "wlan0")
        .annotation("kube-vip.io/forwardUPNP", "true");
    plane.apply(
        &service
            .annotation("kube-vip.io/loadbalancerHostname", "web.example.com")
            .with_pods(&lab.pods),
    );
    let vip = address(plane, "from-kube-vip", PATIENCE);
    for (name, answer) in [
        ("serviceInterface", "PINNACE_INTERFACES"),
        ("forwardUPNP", "forward them there by hand"),
        ("loadbalancerHostname", "let external-dns publish a name"),
    ] {
        let told = event(
            plane,
            "SyncLoadBalancerFailed",
            "from-kube-vip",
            &format!("kube-vip.io/{name} has no effect"),
        );
        assert!(told["message"].as_str().is_some_and(|message| message.contains(answer)), "{told}");
    }
    eventually("it is served all the same", PATIENCE, || {
        lab.client.tcp(vip, 80).map(drop).map_err(|failure| failure.to_string())
    });

    plane.kubectl(&["annotate", "service", "from-kube-vip", "kube-vip.io/ignore=true"]);
    event(plane, "Ignored", "from-kube-vip", "kube-vip.io/ignore is true");
    eventually("nobody is sent there any more", PATIENCE, || {
        let found = published(plane, "from-kube-vip");
        ensure(found.is_empty() && lab.client.tcp(vip, 80).is_err(), || format!("{found:?}"))
    });
    running.wait_reason("default/from-kube-vip", "kube-vip.io/ignore is true");
    plane.kubectl(&["annotate", "service", "from-kube-vip", "kube-vip.io/ignore-"]);
    address(plane, "from-kube-vip", PATIENCE);
}
