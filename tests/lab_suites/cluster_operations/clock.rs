//! A node whose wall clock is stepped while it runs. Where the time is right others write it; here
//! the writer's own is wrong.

use std::net::IpAddr;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use pinnace::k8s::leader::DURATION;

use super::{PATIENCE, TAKEOVER, address};
use crate::lab::control_plane::{ControlPlane, Options};
use crate::lab::manifests::service;
use crate::lab::{Lab, Pinnace, Prober, Trace, ensure, eventually, patient};

const PORT: u16 = 53;

/// Its Service, served by node-1 as long as that lives.
fn apply(lab: &Lab, plane: &ControlPlane, name: &str) {
    let service = service(name).annotation("pinnace.dev/prefer-nodes", "node-1").port(
        "udp",
        "UDP",
        PORT.into(),
    );
    plane.apply(&service.with_pods(lab.all_pods()));
}

fn served(lab: &Lab, vip: IpAddr) {
    eventually(&format!("{vip} is served by node-1"), PATIENCE, || {
        lab.client.udp(vip, PORT).map_err(|failure| failure.to_string())?;
        // Not asked anew: somebody is under way to it.
        let neighbour = lab.client.neighbour_entry(vip).0;
        ensure(neighbour == Some(lab.node.mac()), || format!("{neighbour:?} answers"))
    });
}

/// Single answers may be late where the machine is busy with other things.
fn served_throughout(trace: &Trace) {
    println!(
        "{:?} without an answer, {} of {} lost",
        trace.gap(),
        trace.lost(),
        trace.probes.len()
    );
    assert!(trace.gap() <= patient(Duration::from_secs(1)), "{:?} without an answer", trace.gap());
}

/// The holder of the Lease, since when, after how many others; and when it was renewed, by the holder's
/// clock.
fn lease(plane: &ControlPlane) -> ([String; 3], Timestamp) {
    let lease = plane.get_json(&["-n", "pinnace", "lease", "pinnace"]);
    let spec = |field: &str| {
        lease["spec"][field]
            .as_str()
            .map_or_else(|| lease["spec"][field].to_string(), str::to_owned)
    };
    (
        ["holderIdentity", "acquireTime", "leaseTransitions"].map(spec),
        spec("renewTime").parse().expect("a time"),
    )
}

/// How far a time is from what a clock so many days ahead says.
fn off(time: Timestamp, days: i64) -> SignedDuration {
    (time.duration_since(Timestamp::now()) - SignedDuration::from_hours(24 * days)).abs()
}

#[test]
fn a_wall_clock_step_moves_no_lease_and_stops_no_packet() {
    let lab = Lab::new(1, 1);
    let node2 = lab.node2.as_ref().expect("a lab with far pods has a second node");
    let plane = ControlPlane::start(Options::on(&lab.client2).without_controllers());
    [&lab.node, node2].into_iter().for_each(|node| plane.node_of(node));
    let in_cluster = |pinnace: Pinnace, kubeconfig: PathBuf| {
        let pinnace = pinnace.unset("PINNACE_MANIFESTS").set("PINNACE_NAMESPACE", "pinnace");
        pinnace.set("PINNACE_KUBECONFIG", kubeconfig.display())
    };
    let mut stepped = in_cluster(lab.pinnace(), plane.kubeconfig_with_faults("pinnace"))
        .with_clock()
        .start_ready();
    stepped.wait_log("became leader");
    let mut other = in_cluster(lab.pinnace_on(node2), plane.kubeconfig("pinnace")).start_ready();
    apply(&lab, &plane, "first");
    let vip = address(&plane, "first", PATIENCE);
    served(&lab, vip);

    let (holder, _) = lease(&plane);
    assert!(holder[0].starts_with("node-1"), "{holder:?}");
    let prober = Prober::start(&lab.client, vip, PORT);
    // Two days back in one step, and still within the validity of the API server's certificate: it
    // begins a day before it was issued.
    for days in [1, -1] {
        stepped.step_clock(days);
        let begin = Instant::now();
        let name = format!("told-{}", days + 1);
        apply(&lab, &plane, &name);
        served(&lab, address(&plane, &name, PATIENCE));
        // For longer than a Lease lasts that nobody renews.
        while begin.elapsed() < DURATION + Duration::from_secs(4) {
            thread::sleep(Duration::from_secs(2));
            let (now, renewed) = lease(&plane);
            assert_eq!(now, holder, "the holder is the holder, {days} days ahead");
            assert!(
                begin.elapsed() < DURATION || off(renewed, days) < SignedDuration::from_mins(1),
                "renewed {renewed}, {days} days ahead"
            );
        }
    }
    served_throughout(&prober.stop());
    assert!(!other.log().contains("became leader"));
    for log in [stepped.log(), other.log()] {
        assert!(
            !log.contains("control detection time expired") && !log.contains("did not run"),
            "{log}"
        );
    }

    let prober = Prober::start(&lab.client, vip, PORT);
    let clock = "see that this host's clock is right";
    for (days, complaint) in [
        (40, format!("its certificate has expired; renew it, and {clock}")),
        (-2, format!("its certificate is not valid yet; {clock}")),
    ] {
        stepped.step_clock(days);
        // Connections that stand are not asked for certificates.
        thread::sleep(Duration::from_secs(3));
        stepped.recovers();
        plane.faults("cut");
        stepped.complains(&complaint);
        let status = String::from_utf8(stepped.pinnace().run(&["status"]).stdout).expect("text");
        assert!(status.contains(&complaint), "{status}");
        served(&lab, vip);
        // Somebody else writes meanwhile.
        let name = format!("meanwhile-{}", days.unsigned_abs());
        apply(&lab, &plane, &name);
        let meanwhile = address(&plane, &name, TAKEOVER);
        assert!(lease(&plane).0[0].starts_with("node-2"));
        // By whoever knows of it, whatever it prefers.
        eventually("a new Service is served", PATIENCE, || {
            lab.client.udp(meanwhile, PORT).map(drop).map_err(|failure| failure.to_string())
        });

        stepped.step_clock(0);
        stepped.recovers();
        served(&lab, meanwhile);
        assert_eq!(address(&plane, "first", PATIENCE), vip, "nothing moved");
    }
    served(&lab, vip);
    served_throughout(&prober.stop());
    assert!(
        stepped.terminate().success() && other.terminate().success(),
        "they are the processes that were started"
    );
}
