//! The leader against a real control plane: who allocates addresses, what is written to Services,
//! and how little.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use crate::lab;
use crate::lab::control_plane::{ControlPlane, Mark, Options, create};
use crate::lab::{Failure, Host, Lab, Running, ensure, eventually, patient};
use pinnace::k8s::annotations::{ANNOTATIONS, Meaning};
use pinnace::model::Family;
use rustix::process::Signal;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);
/// For whatever waits until a Lease has expired.
const TAKEOVER: Duration = Duration::from_secs(60);
const USER: &str = "system:serviceaccount:pinnace:pinnace";

fn start(lab: &Lab, plane: &ControlPlane, node: &Host, faults: bool) -> Running {
    start_with(lab, plane, node, faults, POOLS)
}

fn start_with(lab: &Lab, plane: &ControlPlane, node: &Host, faults: bool, pools: &str) -> Running {
    let kubeconfig =
        if faults { plane.kubeconfig_with_faults("pinnace") } else { plane.kubeconfig("pinnace") };
    let pinnace = lab
        .pinnace_on(node)
        .unset("PINNACE_MANIFESTS")
        .set("PINNACE_KUBECONFIG", kubeconfig.display());
    pinnace.set("PINNACE_POOLS", pools).start_ready()
}

const POOLS: &str = "lan=10.88.0.200-10.88.0.250;spare!=10.88.0.180-10.88.0.189";

fn service(name: &str, annotations: &Value, spec: &Value) -> String {
    let mut object = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "annotations": annotations},
        "spec": {"type": "LoadBalancer", "selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
    });
    for (key, value) in spec.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    object.to_string()
}

fn plain(name: &str) -> String {
    service(name, &json!({}), &json!({}))
}

fn published(object: &Value) -> Vec<IpAddr> {
    let entries =
        object["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default();
    entries.iter().filter_map(|entry| entry["ip"].as_str()?.parse().ok()).collect()
}

/// The addresses of a Service, once it has any.
fn addresses(plane: &ControlPlane, name: &str, patience: Duration) -> Vec<IpAddr> {
    eventually(&format!("{name} has an address"), patience, || {
        let found = published(&plane.get_json(&["service", name]));
        if found.is_empty() { Err("none".to_owned()) } else { Ok(found) }
    })
}

fn addressed(plane: &ControlPlane, name: &str, expected: &[IpAddr]) {
    eventually(&format!("{name} has {expected:?}"), PATIENCE, || {
        let found = published(&plane.get_json(&["service", name]));
        ensure(found == expected, || format!("{found:?}"))
    });
}

/// Asserts that no two Services have one address, and says who has which.
fn distinct(plane: &ControlPlane) -> BTreeMap<IpAddr, String> {
    let mut seen = BTreeMap::new();
    for object in plane.get_json(&["services"])["items"].as_array().cloned().unwrap_or_default() {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        for address in published(&object) {
            if let Some(other) = seen.insert(address, name.clone()) {
                panic!("{address} is in the status of {other} and of {name}");
            }
        }
    }
    seen
}

fn event(plane: &ControlPlane, reason: &str, name: &str) -> Value {
    eventually(&format!("an Event {reason} about {name}"), PATIENCE, || {
        let selector = format!("reason={reason},involvedObject.name={name}");
        let found = plane.get_json(&["events", "--field-selector", &selector]);
        found["items"].get(0).cloned().ok_or_else(|| plane.kubectl(&["get", "events"]))
    })
}

/// Two ports, of which one leads to a container port by this name.
fn with_admin(target: &Value) -> String {
    let ports = json!([{"name": "http", "port": 80, "targetPort": "http"}, {"name": "admin", "port": 81, "targetPort": target}]);
    service("web", &json!({}), &json!({ "ports": ports }))
}

#[test]
fn a_port_that_no_container_has_is_refused_and_has_an_error_in_the_status() {
    let lab = Lab::new(1, 0);
    let plane = ControlPlane::start(Options::on(&lab.client2));
    plane.node_of(&lab.node);
    plane.pod_of("node-1", &lab.pods[0], "web");
    let running = start(&lab, &plane, &lab.node, false);
    plane.apply(&with_admin(&json!("misspelt")));
    let vip = addresses(&plane, "web", PATIENCE)[0];
    let admin = |expected: Value| {
        eventually(&format!("the status says {expected}"), PATIENCE, || {
            let found =
                plane.get_json(&["service", "web"])["status"]["loadBalancer"]["ingress"][0].clone();
            let ports = json!([{"port": 80, "protocol": "TCP"}, expected]);
            ensure(found == json!({"ip": vip, "ipMode": "VIP", "ports": ports}), || {
                found.to_string()
            })
        });
    };
    admin(json!({"port": 81, "protocol": "TCP", "error": "pinnace.dev/PortWithoutEndpoints"}));
    let told = event(&plane, "SyncLoadBalancerFailed", "web");
    assert!(
        told["message"].as_str().is_some_and(|message| message.contains("81/TCP (admin)")),
        "{told}"
    );
    eventually("the other port is served", PATIENCE, || {
        lab.client.tcp(vip, 80).map(drop).map_err(|failure| failure.to_string())
    });
    assert_eq!(lab.client.tcp(vip, 81).err(), Some(Failure::Refused));
    let text = String::from_utf8(running.pinnace().run(&["status"]).stdout).expect("text");
    assert!(text.contains("81/TCP (admin)") && text.contains("targetPort"), "{text}");

    plane.apply(&with_admin(&json!("http")));
    admin(json!({"port": 81, "protocol": "TCP"}));
    eventually("that port is served too", PATIENCE, || {
        lab.client.tcp(vip, 81).map(drop).map_err(|failure| failure.to_string())
    });
}

#[test]
fn a_service_made_with_kubectl_gets_an_address_and_a_client_is_served() {
    let lab = Lab::new(1, 0);
    let plane = ControlPlane::start(Options::on(&lab.client2));
    plane.node_of(&lab.node);
    plane.pod_of("node-1", &lab.pods[0], "web");
    let running = start(&lab, &plane, &lab.node, false);
    running.wait_log("became leader");
    let since = Instant::now();
    plane.apply(&plain("web"));
    let vip = addresses(&plane, "web", PATIENCE)[0];
    assert!(since.elapsed() < patient(Duration::from_secs(3)), "{:?}", since.elapsed());
    let object = plane.get_json(&["service", "web"]);
    let expected =
        json!([{"ip": vip, "ipMode": "VIP", "ports": [{"port": 80, "protocol": "TCP"}]}]);
    assert_eq!(object["status"]["loadBalancer"]["ingress"], expected);
    eventually("a client is served", PATIENCE, || {
        lab.client.tcp(vip, 80).map(drop).map_err(|failure| failure.to_string())
    });

    let told = event(&plane, "EnsuredLoadBalancer", "web");
    assert_eq!(
        (&told["type"], &told["involvedObject"]["uid"]),
        (&json!("Normal"), &object["metadata"]["uid"])
    );
    let status = running.pinnace().status().expect("a status");
    assert_eq!(status.0["leader"], json!({"node": "node-1", "here": true}));

    // What somebody else says about it stays, whatever of ours is written and taken back.
    let said = json!([{"type": "example.com/Scanned", "status": "True", "reason": "NothingFound", "message": "by another controller",
        "lastTransitionTime": "2026-01-02T03:04:05Z"}]);
    plane.patch_status("service", "web", &json!({"conditions": said}));

    // Another class, and what somebody else wrote there, is left alone.
    plane.apply(&service(
        "foreign",
        &json!({}),
        &json!({"loadBalancerClass": "example.com/other"}),
    ));
    let foreign = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}});
    plane.patch_status("service", "foreign", &foreign);
    plane.patch_status(
        "service",
        "web",
        &json!({"loadBalancer": {"ingress": [{"ip": "10.88.0.244"}]}}),
    );
    addressed(&plane, "web", &[vip]);
    assert_eq!(event(&plane, "SyncLoadBalancerFailed", "web")["type"], "Warning");
    assert_eq!(
        published(&plane.get_json(&["service", "foreign"])),
        ["203.0.113.7".parse::<IpAddr>().expect("an address")]
    );

    // A request that cannot be met takes the address away and says why; one that can moves the
    // Service.
    plane.kubectl(&["annotate", "service", "web", "pinnace.dev/addresses=10.9.9.9"]);
    addressed(&plane, "web", &[]);
    plane.kubectl(&[
        "annotate",
        "--overwrite",
        "service",
        "web",
        "pinnace.dev/addresses=10.88.0.233",
    ]);
    addressed(&plane, "web", &["10.88.0.233".parse().expect("an address")]);
    assert_eq!(plane.get_json(&["service", "web"])["status"]["conditions"], said);

    // The finalizer that another controller left behind, on one that is deleted and on one that is
    // no load balancer any more.
    let finalizer = r#"{"metadata":{"finalizers":["service.kubernetes.io/load-balancer-cleanup","example.com/own"]}}"#;
    plane.kubectl(&["patch", "service", "web", "--type=merge", "-p", finalizer]);
    plane.kubectl(&["patch", "service", "web", "-p", r#"{"spec":{"type":"ClusterIP"}}"#]);
    eventually(
        "the finalizer of a Service that left the type is gone, and that of others is not",
        PATIENCE,
        || {
            let found = plane.get_json(&["service", "web"])["metadata"]["finalizers"].clone();
            ensure(found == json!(["example.com/own"]), || found.to_string())
        },
    );
    plane.apply(&plain("web"));
    plane.kubectl(&[
        "patch",
        "service",
        "web",
        "--type=merge",
        "-p",
        &finalizer.replace(r#","example.com/own""#, ""),
    ]);
    plane.kubectl(&["delete", "service", "web", "--timeout=20s"]);
}

#[test]
fn every_annotation_of_the_table_does_what_it_says() {
    let lab = Lab::new(0, 0);
    let plane = ControlPlane::start(Options::on(&lab.client2).without_controllers());
    plane.node_of(&lab.node);
    let running = start(&lab, &plane, &lab.node, false);
    let mut last = 209;
    for (index, (name, meaning, _)) in ANNOTATIONS.iter().enumerate() {
        let service_name = format!("row-{index}");
        let apply =
            |value: &str| plane.apply(&service(&service_name, &json!({*name: value}), &json!({})));
        match meaning {
            Meaning::Addresses => {
                last += 1;
                apply(&format!("10.88.0.{last}"));
                addressed(&plane, &service_name, &[IpAddr::from([10, 88, 0, last])]);
            }
            Meaning::Pool => {
                apply("spare");
                let found = addresses(&plane, &service_name, PATIENCE);
                assert!(found[0].to_string().starts_with("10.88.0.18"), "{name}: {found:?}");
            }
            Meaning::Sharing => {
                apply(&service_name);
                let other = format!("{service_name}-other");
                let ports = json!({"ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]});
                plane.apply(&service(&other, &json!({*name: service_name}), &ports));
                let shared = addresses(&plane, &service_name, PATIENCE);
                addressed(&plane, &other, &shared);
            }
            Meaning::Mode => {
                apply("node");
                addressed(&plane, &service_name, &[lab.node.address(Family::V4)]);
            }
            // Who answers is no matter of the status; elections have tests of their own.
            Meaning::PreferNodes => {}
            Meaning::Ignore => {
                apply("true");
                running
                    .wait_reason(&format!("default/{service_name}"), "is true: it is not served");
                assert_eq!(
                    published(&plane.get_json(&["service", &service_name])),
                    Vec::<IpAddr>::new()
                );
            }
        }
    }
}

#[test]
fn no_address_is_allocated_twice_whatever_happens_to_the_leader() {
    let lab = Lab::new(1, 1);
    let plane = ControlPlane::start(Options::on(&lab.client2).without_controllers());
    let node2 = lab.node2.as_ref().expect("a lab with far pods has a second node");
    plane.node_of(&lab.node);
    plane.node_of(node2);
    let mut first = start(&lab, &plane, &lab.node, false);
    first.wait_log("became leader");
    let second = start(&lab, &plane, node2, true);
    let mut made = 0;
    let mut make = || {
        made += 1;
        let name = format!("web-{made}");
        plane.apply(&plain(&name));
        name
    };
    addresses(&plane, &make(), PATIENCE);

    // Stopped: the other one takes over; woken, it writes nothing that is wrong.
    first.signal(Signal::STOP);
    let (a, b) = (make(), make());
    let taken = addresses(&plane, &a, TAKEOVER);
    addresses(&plane, &b, PATIENCE);
    first.signal(Signal::CONT);
    let late = make();
    addresses(&plane, &late, PATIENCE);
    thread::sleep(Duration::from_secs(3));
    distinct(&plane);
    assert_eq!(addresses(&plane, &a, PATIENCE), taken);
    second.wait_log("became leader");
    first.wait_log("lost leadership");

    // Cut off from the API server: the first takes over again.
    plane.faults("freeze");
    let name = make();
    addresses(&plane, &name, TAKEOVER);
    plane.faults("pass");
    addresses(&plane, &make(), PATIENCE);

    // Killed, both, and started anew: everything stays where it was.
    let before = distinct(&plane);
    first.kill();
    drop((first, second));
    let _again = start(&lab, &plane, node2, false);
    addresses(&plane, &make(), TAKEOVER);
    let after = distinct(&plane);
    for (address, name) in before {
        assert_eq!(after.get(&address), Some(&name), "{address} moved");
    }
}

#[test]
fn fifty_idle_services_cost_at_most_one_write_in_five_seconds() {
    let lab = Lab::new(0, 0);
    let plane = ControlPlane::start(Options::on(&lab.client2).without_controllers());
    plane.node_of(&lab.node);
    let running = start(&lab, &plane, &lab.node, false);
    let all: Vec<String> = (0..50).map(|number| plain(&format!("web-{number}"))).collect();
    plane.apply(&all.join("\n---\n"));
    eventually("all have addresses", PATIENCE, || {
        let found = distinct(&plane).len();
        ensure(found == 50, || format!("{found} of 50"))
    });
    // The Events about them are on their way for a while.
    thread::sleep(Duration::from_secs(25));
    let (mark, time) = (plane.mark(), Duration::from_secs(35));
    thread::sleep(time);
    let writes: Vec<_> = plane
        .requests(mark)
        .into_iter()
        .filter(|r| r.user == USER && !["get", "list", "watch"].contains(&&*r.verb))
        .collect();
    assert!(
        !writes.is_empty() && writes.len() as f64 <= 0.2 * time.as_secs_f64(),
        "{} writes: {writes:?}",
        writes.len()
    );
    assert_eq!(
        running.pinnace().status().expect("a status").0["services"].as_array().map(Vec::len),
        Some(50)
    );
}

/// 403 is also what admission policies say about one Service, and every namespace that is being
/// deleted about its Events.
#[test]
fn a_write_refused_for_one_service_affects_no_other() {
    let lab = Lab::new(0, 0);
    let plane = ControlPlane::start(Options::on(&lab.client2).without_controllers());
    plane.node_of(&lab.node);
    let (api, name) = ("admissionregistration.k8s.io/v1", json!({"name": "barred"}));
    let rules = json!([{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["services/status"]}]);
    let validation = json!({"expression": "!object.metadata.name.startsWith('barred')", "reason": "Forbidden", "message": "barred here"});
    let policy = json!({"apiVersion": api, "kind": "ValidatingAdmissionPolicy", "metadata": name,
        "spec": {"matchConstraints": {"resourceRules": rules}, "validations": [validation]}});
    let binding = json!({"apiVersion": api, "kind": "ValidatingAdmissionPolicyBinding", "metadata": name,
        "spec": {"policyName": "barred", "validationActions": ["Deny"]}});
    plane.apply(&format!("{policy}\n---\n{binding}"));
    let running = start(&lab, &plane, &lab.node, false);
    running.wait_log("became leader");

    // The API server takes its time to obey a new policy.
    let mut number = 0;
    let barred = eventually("a Service is refused its status", PATIENCE, || {
        number += 1;
        let name = format!("barred-{number}");
        plane.apply(&plain(&name));
        thread::sleep(Duration::from_secs(1));
        let events = plane.get_json(&[
            "events",
            "--field-selector",
            &format!("reason=SyncLoadBalancerFailed,involvedObject.name={name}"),
        ]);
        let told = events["items"].to_string();
        ensure(told.contains("barred here"), || told)?;
        Ok(name)
    });
    plane.apply(&plain("web"));
    addresses(&plane, "web", PATIENCE);
    assert_eq!(published(&plane.get_json(&["service", &barred])), Vec::<IpAddr>::new());

    plane.kubectl(&["create", "namespace", "ending"]);
    let mut last: Value = serde_json::from_str(&plain("last")).expect("JSON");
    last["metadata"]["namespace"] = json!("ending");
    plane.apply(&last.to_string());
    let there = || published(&plane.get_json(&["-n", "ending", "service", "last"]));
    let vip = eventually("last has an address", PATIENCE, || {
        there().first().copied().ok_or_else(|| "none".to_owned())
    });
    plane.kubectl(&["delete", "namespace", "ending", "--wait=false"]);
    let mark = plane.mark();
    let other =
        json!({"status": {"loadBalancer": {"ingress": [{"ip": "10.88.0.244"}]}}}).to_string();
    plane.kubectl(&[
        "-n",
        "ending",
        "patch",
        "service",
        "last",
        "--subresource=status",
        "-p",
        &other,
    ]);
    eventually("its status is put right", PATIENCE, || {
        ensure(there() == [vip], || format!("{:?}", there()))
    });
    eventually("an Event is refused", PATIENCE, || {
        let refused = |r: &lab::control_plane::Request| {
            (&*r.user, &*r.resource, &*r.namespace, r.code) == (USER, "events", "ending", 403)
        };
        ensure(plane.requests(mark).iter().any(refused), || "not yet".to_owned())
    });
    plane.apply(&plain("after"));
    event(&plane, "EnsuredLoadBalancer", "after");
    assert_eq!(
        running.pinnace().status().expect("a status").0["leader"],
        json!({"node": "node-1", "here": true})
    );
}

#[test]
fn a_node_without_write_permission_remains_a_follower() {
    let lab = Lab::new(0, 0);
    let plane = ControlPlane::start(Options::on(&lab.client2).without_controllers());
    plane.node_of(&lab.node);
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "pinnace"}, "rules": [
        {"apiGroups": [""], "resources": ["services", "nodes"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]},
    ]});
    plane.apply(&role.to_string());
    let running = start(&lab, &plane, &lab.node, false);
    running.wait_log("became leader");
    plane.apply(&plain("web"));
    running.wait_log("no permission to update services/status");
    eventually("the Lease is released", PATIENCE, || {
        let lease = plane.get_json(&["-n", "kube-system", "lease", "pinnace"]);
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned();
        ensure(holder.is_empty(), || holder)
    });
    let role = running.pinnace().status().expect("a status").0["leader"].clone();
    assert_eq!(role["here"], false, "{role}");
    assert_eq!(published(&plane.get_json(&["service", "web"])), Vec::<IpAddr>::new());
}

/// Makes this many Services in about a second, whatever else the machine does, and says what it
/// took.
fn storm(lab: &Lab, plane: &ControlPlane, count: u32) -> Duration {
    let object = |number: u32| {
        let spec = json!({"allocateLoadBalancerNodePorts": false});
        vec![(
            "/api/v1/namespaces/default/services",
            service(&format!("storm-{number}"), &json!({}), &spec),
        )]
    };
    let took = create(&lab.client2.ns, &plane.kubeconfig("admin"), count, object)
        .expect("the API server takes them");
    eprintln!("{count} Services were made in {took:?}");
    took
}

/// How often each object was written by Pinnace since then, with success; events of which there may
/// be more have names of their own.
fn written(
    plane: &ControlPlane,
    since: Mark,
    verb: &str,
    resource: &str,
) -> BTreeMap<String, usize> {
    let mut counted = BTreeMap::new();
    let requests = plane.requests(since).into_iter();
    for request in requests
        .filter(|r| r.user == USER && r.verb == verb && r.resource == resource && r.code < 300)
    {
        *counted.entry(request.name).or_default() += 1;
    }
    counted
}

/// The version of every Service: none changes without a write.
fn versions(plane: &ControlPlane) -> BTreeMap<String, String> {
    let items = plane.get_json(&["services"])["items"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    items
        .iter()
        .map(|object| {
            (text(&object["metadata"]["name"]), text(&object["metadata"]["resourceVersion"]))
        })
        .collect()
}

#[test]
fn a_thousand_new_services_are_each_written_once() {
    const COUNT: u32 = 1000;
    let lab = Lab::new(0, 0);
    let plane = ControlPlane::start(Options::on(&lab.client2).without_controllers());
    plane.node_of(&lab.node);
    lab.node.ns.ip(&["address add 10.90.0.1/16 dev eth0"]);
    let running = start_with(&lab, &plane, &lab.node, false, "lan=10.90.16.1-10.90.23.250");
    plane.apply(&plain("earlier"));
    let earlier = addresses(&plane, "earlier", PATIENCE);
    let before = versions(&plane)["earlier"].clone();

    // It is stopped while they are made: however long that takes here, it meets all of them in one
    // instant.
    let mark = plane.mark();
    running.signal(Signal::STOP);
    let took = storm(&lab, &plane, COUNT);
    assert!(
        written(&plane, mark, "patch", "services/status").is_empty(),
        "it knows of none of them yet"
    );
    running.signal(Signal::CONT);
    let since = Instant::now();
    eventually("all have addresses", Duration::from_secs(60), || {
        let found = written(&plane, mark, "patch", "services/status").len();
        ensure(found == COUNT as usize, || format!("{found} of {COUNT}"))
    });
    eprintln!(
        "the last status was written {:?} after the last Service, made in {took:?}",
        since.elapsed()
    );
    assert_eq!(distinct(&plane).len(), COUNT as usize + 1);
    let after = versions(&plane);
    // Whoever flaps does so while others are still busy; the Events are on their way all this time.
    thread::sleep(Duration::from_secs(10));
    assert_eq!(versions(&plane), after, "nothing is written any more");
    assert_eq!((addresses(&plane, "earlier", PATIENCE), &after["earlier"]), (earlier, &before));
    let often: Vec<_> = written(&plane, mark, "patch", "services/status")
        .into_iter()
        .filter(|(_, times)| *times != 1)
        .collect();
    assert!(often.is_empty(), "written more than once: {often:?}");
    let status = running.pinnace().status().expect("a status");
    let services = status.0["services"].as_array().cloned().unwrap_or_default();
    assert_eq!(
        services.iter().filter(|service| service["addresses"][0].is_string()).count(),
        COUNT as usize + 1
    );
}

#[test]
fn a_thousand_services_and_a_hundred_addresses_leave_nine_hundred_with_a_reason_and_no_flood() {
    const COUNT: u32 = 1000;
    const POOL: usize = 100;
    let lab = Lab::new(0, 0);
    let plane = ControlPlane::start(Options::on(&lab.client2).without_controllers());
    plane.node_of(&lab.node);
    let running = start_with(&lab, &plane, &lab.node, false, "lan=10.88.0.120-10.88.0.219");
    running.wait_log("became leader");
    let (mark, begin) = (plane.mark(), Instant::now());
    storm(&lab, &plane, COUNT);
    let served = eventually("all addresses are given", Duration::from_secs(60), || {
        let found = distinct(&plane);
        ensure(found.len() == POOL, || format!("{} of {POOL}", found.len())).map(|()| found)
    });

    // The others know why, and so does whoever reads their Events.
    eventually("the others have a reason", PATIENCE, || {
        let status = running.pinnace().status()?;
        let services = status.0["services"].as_array().cloned().unwrap_or_default();
        let told = services
            .iter()
            .filter(|service| {
                service["reasons"].to_string().contains("address in pool lan (100 addresses)")
            })
            .count();
        ensure(told == COUNT as usize - POOL, || format!("{told} of {}", services.len()))
    });
    thread::sleep(Duration::from_secs(20));
    let warnings = plane.get_json(&["events", "--field-selector", "reason=SyncLoadBalancerFailed"]);
    let warnings = warnings["items"].as_array().cloned().unwrap_or_default();
    let about: BTreeMap<_, _> =
        warnings.iter().map(|event| (event["involvedObject"]["name"].to_string(), event)).collect();
    assert!(
        about.len() >= 20 && about.len() == warnings.len(),
        "one each: {} about {}",
        warnings.len(),
        about.len()
    );
    assert!(
        warnings
            .iter()
            .all(|event| event["message"].to_string().contains("enlarge it, or delete a Service")),
        "{:?}",
        warnings[0]
    );

    // Five a second after a burst of fifty, of all kinds together.
    let events = written(&plane, mark, "create", "events").values().sum::<usize>()
        + written(&plane, mark, "patch", "events").len();
    let bound = 50.0 + 5.0 * begin.elapsed().as_secs_f64();
    eprintln!("{events} Events were written in {:?}", begin.elapsed());
    assert!(events as f64 <= bound + 5.0, "{events} Events in {:?}", begin.elapsed());

    // Each of the hundred was written once, the others not at all; nothing moved.
    assert_eq!(distinct(&plane), served);
    let statuses = written(&plane, mark, "patch", "services/status");
    let expected: BTreeMap<String, usize> = served.values().map(|name| (name.clone(), 1)).collect();
    assert_eq!(statuses, expected);

    // One that goes makes room for one of those who wait, and for nobody else.
    let (address, name) = served.first_key_value().expect("a hundred are served");
    plane.kubectl(&["delete", "service", name]);
    let mut then = eventually("the address is given to another", PATIENCE, || {
        let found = distinct(&plane);
        ensure(found.len() == POOL, || format!("{} of {POOL}", found.len())).map(|()| found)
    });
    assert_ne!(then.remove(address).as_ref(), Some(name));
    let mut others = served.clone();
    others.remove(address);
    assert_eq!(then, others);
}
