//! What people get wrong, each on a Service of its own: its Events say what and its status says so,
//! and the clients of the Service beside it notice nothing.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use pinnace::model::Family;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{PATIENCE, TAKEOVER, address, event, published, publishes};
use crate::lab::control_plane::{ControlPlane, Options};
use crate::lab::manifests::{Service, service, web};
use crate::lab::{Host, Lab, Prober, Running, ensure, eventually, lan};

const ADDRESSES: &str = "pinnace.dev/addresses";
const FAILED: &str = "SyncLoadBalancerFailed";
/// The first address of the pool: of the Service whose clients ask all along.
const HEALTHY: u16 = 200;
/// How long the client of another Service may be without an answer, however busy the machine is.
const GAP: Duration = Duration::from_secs(1);
/// The last address of the pool once it has shrunk.
const END: u16 = 209;

fn ip(host: u16) -> IpAddr {
    lan(Family::V4, host)
}

fn named(name: &str) -> Service {
    web(name).only(Family::V4)
}

fn demanding(name: &str, addresses: &str) -> Service {
    named(name).annotation(ADDRESSES, addresses)
}

struct Cluster {
    running: Running,
    plane: ControlPlane,
    lab: Lab,
}

impl Cluster {
    fn start() -> Cluster {
        let lab = Lab::new(2, 0);
        let plane = ControlPlane::start(Options::on(&lab.client2).without_controllers());
        plane.node_of(&lab.node);
        let file = lab.directory().join("pinnace.yaml");
        fs::write(&file, "pools: 10.88.0.200-10.88.0.219").expect("the settings");
        let pinnace = lab
            .pinnace()
            .unset("PINNACE_MANIFESTS")
            .unset("PINNACE_POOLS")
            .set("PINNACE_NAMESPACE", "pinnace");
        let pinnace = pinnace
            .set("PINNACE_CONFIG", file.display())
            .set("PINNACE_KUBECONFIG", plane.kubeconfig("pinnace").display());
        let running = pinnace.start_ready();
        running.wait_log("became leader");
        Cluster { running, plane, lab }
    }

    fn pods(&self) -> &[Host] {
        &self.lab.pods[1..]
    }

    /// A warning about this very object, which is not the one of the same name from before.
    fn told(&self, name: &str, reason: &str, text: &str) {
        let told = event(&self.plane, reason, name, text);
        let object = &told["involvedObject"];
        let uid = self.plane.get_json(&["service", name])["metadata"]["uid"].clone();
        assert_eq!(
            (&told["type"], &object["kind"], &object["uid"]),
            (&json!("Warning"), &json!("Service"), &uid),
            "{told}"
        );
    }

    /// Nobody is sent anywhere, and nobody answers there for it.
    fn refused(&self, name: &str, text: &str) {
        self.told(name, FAILED, text);
        self.running.wait_phase(&format!("default/{name}"), "Failed");
        assert_eq!(published(&self.plane, name), Vec::<IpAddr>::new(), "{name}");
    }

    /// Its status names one address of the pool that no other status names, and a client is served
    /// there.
    fn served(&self, name: &str) -> IpAddr {
        let vip = address(&self.plane, name, TAKEOVER);
        let all =
            self.plane.get_json(&["services"])["items"].as_array().cloned().unwrap_or_default();
        let holders = all
            .iter()
            .filter(|object| object["status"]["loadBalancer"]["ingress"][0]["ip"] == json!(vip));
        assert_eq!(holders.count(), 1, "{vip} is in one status");
        assert!((ip(HEALTHY)..=ip(219)).contains(&vip), "{name}: {vip}");
        eventually(&format!("{name} is served at {vip}"), PATIENCE, || {
            self.lab.client.tcp(vip, 80).map(drop).map_err(|failure| failure.to_string())
        });
        vip
    }

    fn patch(&self, name: &str, spec: &Value) {
        self.plane.kubectl(&["patch", "service", name, "-p", &json!({ "spec": spec }).to_string()]);
    }
}

#[test]
fn invalid_input_is_reported_and_affects_no_other_service() {
    let mut cluster = Cluster::start();
    let healthy = service("healthy").only(Family::V4).port("dns", "UDP", 53);
    cluster.plane.apply(&healthy.with_pods(&cluster.lab.pods[..1]));
    publishes(&cluster.plane, "healthy", &[ip(HEALTHY)]);
    eventually("the first client is served", PATIENCE, || {
        cluster.lab.client.udp(ip(HEALTHY), 53).map(drop).map_err(|failure| failure.to_string())
    });
    let version = |plane: &ControlPlane| {
        plane.get_json(&["service", "healthy"])["metadata"]["resourceVersion"].clone()
    };
    let untouched = version(&cluster.plane);
    let prober = Prober::start(&cluster.lab.client, ip(HEALTHY), 53);

    annotations_that_make_no_sense(&cluster);
    two_that_demand_one_address(&cluster);
    a_status_edited_by_hand(&cluster);
    one_that_cannot_make_up_its_mind(&cluster);
    a_pool_that_shrinks(&cluster);

    let trace = prober.stop();
    println!(
        "{} questions, {} lost, {:?} without an answer",
        trace.probes.len(),
        trace.lost(),
        trace.gap()
    );
    // Single questions are lost where the machine is busy with other things, and not for as long as
    // anybody would notice.
    assert!(
        trace.gap() < GAP && trace.lost() * 20 < trace.probes.len(),
        "{} lost, {:?} without an answer",
        trace.lost(),
        trace.gap()
    );
    assert_eq!(version(&cluster.plane), untouched, "nobody wrote to it");
    assert_eq!(published(&cluster.plane, "healthy"), [ip(HEALTHY)]);
    let warnings = cluster.plane.get_json(&[
        "events",
        "--field-selector",
        "type=Warning,involvedObject.name=healthy",
    ]);
    assert_eq!(warnings["items"], json!([]), "it did nothing wrong");

    classes_of_others(&mut cluster);
}

/// What cannot be read is left out, and what cannot be had is not replaced by something else.
fn annotations_that_make_no_sense(cluster: &Cluster) {
    let mode = "pinnace.dev/mode";
    let served = [
        (
            demanding("garbage", "garbage"),
            "pinnace.dev/addresses: \"garbage\" is not an IP address",
        ),
        (
            named("sideways").annotation(mode, "sideways"),
            "annotation pinnace.dev/mode: \"sideways\" is no mode; write vip or node",
        ),
    ];
    let refused = [
        (
            named("no-pool").annotation("pinnace.dev/pool", "nosuch"),
            "there is no pool nosuch; there are: ",
        ),
        (
            demanding("outside", "10.88.0.230"),
            "10.88.0.230 is in no pool; add it to PINNACE_POOLS or ask for another",
        ),
        (demanding("two", "10.88.0.206,10.88.0.207"), "two IPv4 addresses are asked for"),
        (demanding("other-family", "fd88::206"), "fd88::206 is not of a family in spec.ipFamilies"),
    ];
    let all: String = served
        .iter()
        .chain(&refused)
        .map(|(service, _)| service.with_pods(cluster.pods()))
        .collect();
    cluster.plane.apply(&all);
    let name = |service: &Service| service.key().trim_start_matches("default/").to_owned();
    for (service, text) in &served {
        cluster.told(&name(service), FAILED, text);
        cluster.served(&name(service));
    }
    for (service, text) in &refused {
        cluster.refused(&name(service), text);
    }
    assert_eq!(cluster.lab.client.neighbour(ip(230)), None, "nobody answers for what is not ours");

    // At nodes with a pod behind it, of which there is none.
    cluster.plane.apply(&named("nowhere").node_mode().local().yaml());
    cluster.told(
        "nowhere",
        "UnAvailableLoadBalancer",
        "There are no available nodes for LoadBalancer",
    );
    assert_eq!(published(&cluster.plane, "nowhere"), Vec::<IpAddr>::new());
}

fn two_that_demand_one_address(cluster: &Cluster) {
    let (plane, contested) = (&cluster.plane, ip(205));
    plane.apply(&demanding("first", "10.88.0.205").with_pods(cluster.pods()));
    publishes(plane, "first", &[contested]);
    plane.apply(&demanding("second", "10.88.0.205").with_pods(cluster.pods()));
    cluster.refused("second", "10.88.0.205 is held by default/first");
    // What others hold, and somebody is being served on, is not to be had either.
    plane.apply(&demanding("third", "10.88.0.200").with_pods(cluster.pods()));
    cluster.refused("third", "10.88.0.200 is held by default/healthy");
    assert_eq!(cluster.served("first"), contested);

    plane.kubectl(&["delete", "service", "first"]);
    let told = event(plane, "DeletedLoadBalancer", "first", "no longer served on 10.88.0.205");
    assert_eq!(told["type"], "Normal", "{told}");
    publishes(plane, "second", &[contested]);
    cluster.served("second");
}

fn a_status_edited_by_hand(cluster: &Cluster) {
    cluster.plane.apply(&named("edited").with_pods(cluster.pods()));
    let vip = cluster.served("edited");
    // Of another network, and of another Service.
    for foreign in ["203.0.113.9", "10.88.0.200"] {
        cluster.plane.patch_status(
            "service",
            "edited",
            &json!({"loadBalancer": {"ingress": [{"ip": foreign}]}}),
        );
        cluster.told(
            "edited",
            FAILED,
            &format!(
                "status.loadBalancer was changed by someone else to [{foreign}] and is put right"
            ),
        );
        publishes(&cluster.plane, "edited", &[vip]);
        assert_eq!(cluster.served("edited"), vip, "nothing moved");
    }
}

/// Its type, its class and its policy, twenty times in a row, each as soon as the API server has
/// taken the one before.
fn one_that_cannot_make_up_its_mind(cluster: &Cluster) {
    let plane = &cluster.plane;
    plane.apply(&named("fickle").with_pods(cluster.pods()));
    cluster.served("fickle");
    for round in 0..20 {
        cluster.patch(
            "fickle",
            &match round % 5 {
                0 => json!({"type": "ClusterIP", "loadBalancerClass": null}),
                1 => json!({"type": "LoadBalancer", "loadBalancerClass": "example.com/other"}),
                2 => json!({"type": "ClusterIP", "loadBalancerClass": null}),
                // Ours, named as such.
                3 => json!({"type": "LoadBalancer", "loadBalancerClass": "pinnace.dev/pinnace", "externalTrafficPolicy": "Local"}),
                _ => json!({"externalTrafficPolicy": "Cluster"}),
            },
        );
    }
    assert_eq!(
        plane.get_json(&["service", "fickle"])["spec"]["loadBalancerClass"],
        "pinnace.dev/pinnace"
    );
    cluster.served("fickle");
    cluster.running.wait_serving("default/fickle");
    event(plane, "DeletedLoadBalancer", "fickle", "no longer served on 10.88.0.2");

    // Another's, and nothing of ours is left of it.
    let vip = published(plane, "fickle")[0];
    cluster.patch("fickle", &json!({"type": "ClusterIP", "loadBalancerClass": null}));
    cluster.patch(
        "fickle",
        &json!({"type": "LoadBalancer", "loadBalancerClass": "example.com/other"}),
    );
    cluster
        .running
        .wait_reason("default/fickle", "class example.com/other belongs to another implementation");
    eventually("nobody answers there any more", PATIENCE, || {
        let found = cluster.lab.client.neighbour(vip);
        ensure(found.is_none(), || format!("{found:?}"))
    });
    assert_eq!(published(plane, "fickle"), Vec::<IpAddr>::new());
    plane.kubectl(&["delete", "service", "fickle"]);
}

fn a_pool_that_shrinks(cluster: &Cluster) {
    let plane = &cluster.plane;
    plane.apply(
        &(demanding("demands", "10.88.0.215").with_pods(cluster.pods())
            + &demanding("moves", "10.88.0.216").with_pods(cluster.pods())),
    );
    publishes(plane, "demands", &[ip(215)]);
    publishes(plane, "moves", &[ip(216)]);
    plane.kubectl(&["annotate", "service", "moves", &format!("{ADDRESSES}-")]);
    cluster.running.wait_serving("default/moves");
    assert_eq!(
        (cluster.served("demands"), cluster.served("moves")),
        (ip(215), ip(216)),
        "nobody moves without need"
    );

    fs::write(cluster.lab.directory().join("pinnace.yaml"), "pools: 10.88.0.200-10.88.0.209")
        .expect("the settings");
    cluster.running.signal(Signal::HUP);
    cluster.refused("demands", "10.88.0.215 is in no pool");
    let told = event(
        plane,
        "UpdatedLoadBalancer",
        "moves",
        "Updated LoadBalancer with new IPs: [10.88.0.216] -> [10.88.0.2",
    );
    assert_eq!(told["type"], "Normal", "{told}");
    eventually("the other has an address that is left", PATIENCE, || {
        let found = published(plane, "moves");
        ensure(found.len() == 1 && found[0] <= ip(END), || format!("{found:?}"))
    });
    cluster.served("moves");
    for gone in [ip(215), ip(216)] {
        eventually(&format!("nobody answers for {gone}"), PATIENCE, || {
            let found = cluster.lab.client.neighbour(gone);
            ensure(found.is_none(), || format!("{found:?}"))
        });
    }
}

/// The same cluster with another class of ours, and without those that have none.
fn classes_of_others(cluster: &mut Cluster) {
    assert!(cluster.running.terminate().success());
    let pinnace = cluster
        .running
        .pinnace()
        .clone()
        .set("PINNACE_CLASS", "example.com/x")
        .set("PINNACE_DEFAULT_CLASS", "false");
    cluster.running = pinnace.start_ready();
    cluster.running.wait_log("became leader");
    let classed = |service: Service, class: &str| {
        service.spec(&format!("loadBalancerClass: {class}")).with_pods(cluster.pods())
    };
    let ours = classed(named("ours"), "example.com/x");
    let plane = &cluster.plane;
    plane.apply(
        &(ours
            + &classed(named("theirs"), "pinnace.dev/pinnace")
            + &named("anybodys").with_pods(cluster.pods())),
    );
    cluster.served("ours");
    for (name, class) in [("theirs", "pinnace.dev/pinnace"), ("anybodys", "(none)")] {
        cluster.running.wait_reason(
            &format!("default/{name}"),
            &format!("class {class} belongs to another implementation"),
        );
        assert_eq!(published(plane, name), Vec::<IpAddr>::new(), "{name}");
    }
    // It was served before the class was another: its status is for others to change, and nobody
    // answers for it.
    assert_eq!(published(plane, "healthy"), [ip(HEALTHY)]);
    assert_eq!(cluster.lab.client.neighbour(ip(HEALTHY)), None);
}
