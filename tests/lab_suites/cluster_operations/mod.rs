//! A real cluster in operation: nodes that come and go, other load balancers, a stalled etcd,
//! credentials that change.

use std::net::IpAddr;
use std::time::Duration;

use crate::lab::control_plane::ControlPlane;
use crate::lab::{ensure, eventually};
use serde_json::Value;

mod certificates;
mod clock;
mod credentials;
mod failure;
mod input;
mod nodes;
mod others;
mod pools;
mod strangers;

/// How long anything may take that a test waits for.
const PATIENCE: Duration = Duration::from_secs(40);
/// For whatever waits until a Lease has expired.
const TAKEOVER: Duration = Duration::from_secs(60);
/// Pinnace, in the audit log.
const USER: &str = "system:serviceaccount:pinnace:pinnace";

/// The addresses in the status of a Service.
fn published(plane: &ControlPlane, name: &str) -> Vec<IpAddr> {
    published_in(plane, "default", name)
}

fn published_in(plane: &ControlPlane, namespace: &str, name: &str) -> Vec<IpAddr> {
    let object = plane.get_json(&["-n", namespace, "service", name]);
    let entries =
        object["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default();
    entries.iter().filter_map(|entry| entry["ip"].as_str()?.parse().ok()).collect()
}

/// Waits until the status of a Service names these addresses, in this order.
fn publishes(plane: &ControlPlane, name: &str, expected: &[IpAddr]) {
    publishes_in(plane, "default", name, expected);
}

fn publishes_in(plane: &ControlPlane, namespace: &str, name: &str, expected: &[IpAddr]) {
    eventually(&format!("the status of {namespace}/{name} says {expected:?}"), PATIENCE, || {
        let found = published_in(plane, namespace, name);
        ensure(found == expected, || format!("{found:?}"))
    });
}

/// The first address of a Service, once it has one.
fn address(plane: &ControlPlane, name: &str, patience: Duration) -> IpAddr {
    eventually(&format!("{name} has an address"), patience, || {
        published(plane, name).first().copied().ok_or_else(|| "none".to_owned())
    })
}

/// Waits for an Event about an object whose message contains this text.
fn event(plane: &ControlPlane, reason: &str, name: &str, text: &str) -> Value {
    eventually(&format!("an Event {reason} about {name} that says {text:?}"), PATIENCE, || {
        let found = plane.get_json(&[
            "events",
            "--field-selector",
            &format!("reason={reason},involvedObject.name={name}"),
        ]);
        let all = found["items"].as_array().cloned().unwrap_or_default();
        let found = all
            .iter()
            .find(|event| event["message"].as_str().is_some_and(|message| message.contains(text)));
        found.cloned().ok_or_else(|| plane.kubectl(&["get", "events"]))
    })
}
