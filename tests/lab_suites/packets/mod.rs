//! What clients notice: packets through a real kernel, in network namespaces. Each test has its own
//! lab and asks in both families.

use std::collections::BTreeMap;
use std::time::Duration;

use pinnace::model::Family;

mod addresses;
mod endpoints;
mod input;
mod policy;
mod reach;
mod sctp;
mod the_lab;

use crate::lab;
use crate::lab::manifests::{self, Service, service, web};
use crate::lab::{Failure, Host, Lab, Pinnace, Reply, Running, ensure, eventually};

/// How long a change of a manifest may take until packets follow it.
const PATIENCE: Duration = Duration::from_secs(5);

/// A lab with pods on node-1 and a Pinnace that serves these manifests (key of the Service waited
/// for, text).
fn serving(
    near: u16,
    far: u16,
    manifest: impl FnOnce(&Lab) -> (Service, String),
) -> (Lab, Running) {
    serving_with(near, far, manifest, |pinnace| pinnace)
}

/// The same with other settings.
fn serving_with(
    near: u16,
    far: u16,
    manifest: impl FnOnce(&Lab) -> (Service, String),
    settings: impl FnOnce(Pinnace) -> Pinnace,
) -> (Lab, Running) {
    let lab = Lab::new(near, far);
    let (service, text) = manifest(&lab);
    lab.apply("services.yaml", &text);
    let running = settings(lab.pinnace()).start_ready();
    running.wait_serving(&service.key());
    (lab, running)
}

/// A Service in front of all pods of the lab.
fn in_front_of_all(service: Service) -> impl FnOnce(&Lab) -> (Service, String) {
    move |lab| {
        let text = service.with_pods(lab.all_pods());
        (service, text)
    }
}

/// Number of answers per pod.
fn tally(replies: &[Reply]) -> BTreeMap<&str, usize> {
    let mut tally = BTreeMap::new();
    for reply in replies {
        *tally.entry(reply.pod.as_str()).or_default() += 1;
    }
    tally
}

/// The answer came from one of these pods.
fn assert_from(reply: &Result<Reply, Failure>, pods: &[&str]) {
    match reply {
        Ok(reply) if pods.contains(&reply.pod.as_str()) => {}
        other => panic!("expected an answer of {pods:?}, got {other:?}"),
    }
}
