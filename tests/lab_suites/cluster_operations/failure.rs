//! The API server is there, and yet not all is well: its store stands still, its answers take
//! seconds, clocks are a day off.

use std::thread;
use std::time::{Duration, Instant, SystemTime};

use pinnace::k8s::leader::DURATION;
use pinnace::model::Family;
use serde_json::{Value, json};

use super::{PATIENCE, TAKEOVER, address};
use crate::lab::control_plane::{Component, ControlPlane, Options};
use crate::lab::manifests::web;
use crate::lab::{Lab, Pinnace, ensure, eventually};

const DAY: Duration = Duration::from_secs(86_400);

fn pinnace(lab: &Lab, plane: &ControlPlane) -> Pinnace {
    let pinnace = lab.pinnace().unset("PINNACE_MANIFESTS").set("PINNACE_NAMESPACE", "pinnace");
    pinnace.set("PINNACE_KUBECONFIG", plane.kubeconfig_with_faults("pinnace").display())
}

fn served(lab: &Lab, address: std::net::IpAddr) {
    eventually("a client is served", PATIENCE, || {
        lab.client.tcp(address, 80).map(drop).map_err(|failure| failure.to_string())
    });
}

#[test]
fn packets_flow_with_etcd_frozen_or_gone_and_a_slow_api_server() {
    let lab = Lab::new(1, 0);
    let mut plane = ControlPlane::start(Options::on(&lab.client2).without_controllers());
    plane.node_of(&lab.node);
    let mut running = pinnace(&lab, &plane).start_ready();
    running.wait_log("became leader");
    plane.apply(&web("web").with_pods(&lab.pods));
    let vip = address(&plane, "web", PATIENCE);
    served(&lab, vip);

    for fate in ["frozen", "killed"] {
        match fate {
            "frozen" => plane.freeze(Component::Etcd),
            _ => plane.stop(Component::Etcd),
        }
        running.complains("failed to renew lease pinnace");
        served(&lab, vip);
        assert_eq!(lab.client.neighbour(vip), Some(lab.node.mac()), "it is announced");
        eventually("nobody is sure to be the leader", TAKEOVER, || {
            let status = running.pinnace().status()?.0;
            ensure(status["leader"]["here"] == false, || status.to_string())
        });
        match fate {
            "frozen" => plane.thaw(Component::Etcd),
            _ => plane.resume(Component::Etcd),
        }
        running.recovers();
        plane.apply(&web(fate).with_pods(&lab.pods));
        served(&lab, address(&plane, fate, TAKEOVER));
    }
    assert_eq!(running.log().matches("answers again about the Lease").count(), 2);

    plane.faults("delay 3");
    plane.faults("cut");
    plane.apply(&web("slow").with_pods(&lab.pods));
    served(&lab, address(&plane, "slow", TAKEOVER));
    // Long enough for renewals that take so long.
    let lost = running.log().matches("lost leadership").count();
    thread::sleep(DURATION);
    assert_eq!(
        running.log().matches("lost leadership").count(),
        lost,
        "the Lease is kept by slow renewals"
    );
    plane.faults("pass");
    running.recovers();
    assert!(running.terminate().success());

    clocks_that_are_a_day_off_neither_take_the_lease_nor_keep_it(&lab, &plane);
}

/// What another node writes whose clock was stepped by a day: the holder is judged by whether it
/// renews, not by the time it writes.
fn clocks_that_are_a_day_off_neither_take_the_lease_nor_keep_it(lab: &Lab, plane: &ControlPlane) {
    let renew = |time: SystemTime| {
        let seconds = time.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
        let time = k8s_openapi::jiff::Timestamp::from_second(seconds as i64).expect("a time");
        let spec = json!({"spec": {"holderIdentity": "ghost_1", "leaseDurationSeconds": DURATION.as_secs(), "renewTime": format!("{time:.6}")}});
        plane.kubectl(&[
            "-n",
            "pinnace",
            "patch",
            "lease",
            "pinnace",
            "--type=merge",
            "-p",
            &spec.to_string(),
        ]);
    };
    let holder = || {
        let lease: Value = plane.get_json(&["-n", "pinnace", "lease", "pinnace"]);
        lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
    };
    renew(SystemTime::now() - DAY);
    let running = pinnace(lab, plane).start_ready();
    let since = Instant::now();
    while since.elapsed() < DURATION + Duration::from_secs(4) {
        renew(SystemTime::now() - DAY);
        assert_eq!(holder(), "ghost_1", "it is renewed, whatever its clock says");
        thread::sleep(Duration::from_secs(2));
    }
    renew(SystemTime::now() + DAY);
    let since = Instant::now();
    eventually("a holder that is silent is replaced, whatever it wrote", TAKEOVER, || {
        let holder = holder();
        ensure(holder.starts_with("node-1"), || holder)
    });
    assert!(
        since.elapsed() > DURATION - Duration::from_secs(3),
        "it was given the time it asked for: {:?}",
        since.elapsed()
    );
    running.wait_log("became leader");
    assert!(lab.client.tcp(running.address("default/web", Family::V4), 80).is_ok());
}
