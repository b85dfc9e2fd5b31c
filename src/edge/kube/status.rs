//! Writes what the engine publishes to the status of Services: the latest word about each, a few at a time, and only while this process holds
//! the Lease. A write that came too late is refused by the API server and given back to the engine, which decides again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Service;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::convert::CLEANUP_FINALIZER;
use super::failure::Failure;
use super::lease::Right;
use crate::domain::lease::REQUEST_TIMEOUT;
use crate::domain::model::{Ingress, ObjectKey};
use crate::domain::plan::Publication;

/// Requests under way at once.
const CONCURRENT: usize = 8;
/// Requests per second, after a [`BURST`].
const RATE: f64 = 50.0;
const BURST: f64 = 100.0;
/// After a failure that passes; doubled up to [`LONGEST_WAIT`].
const WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What the engine wants written; replaces earlier words about the same Services.
pub type Publications = BTreeMap<ObjectKey, Publication>;

/// A publication that did not come to stand: the engine decides what to do.
#[derive(Clone, Debug)]
pub struct Lost {
    /// About which Service.
    pub key: ObjectKey,
    /// The version it was decided for.
    pub resource_version: Box<str>,
    /// The API server's words, if it will never take it.
    pub refusal: Option<String>,
}

enum Answer {
    Written,
    /// Not for this version any more, or gone.
    Dropped(String),
    /// Never, whatever the version.
    Refused(String),
    Again(Duration, String),
    Forbidden(String),
}

/// Writes until `wanted` is closed. What is not written is told to `losses`; that the credentials may not write at all, to `forbidden`.
pub async fn run(
    client: Client,
    mut wanted: mpsc::UnboundedReceiver<Publications>,
    mut right: watch::Receiver<Right>,
    losses: mpsc::UnboundedSender<Lost>,
    forbidden: mpsc::Sender<String>,
) {
    let lost = |key: ObjectKey, publication: Publication, refusal: Option<String>| {
        // Nobody listens any more when the process is about to end.
        drop(losses.send(Lost { key, resource_version: publication.resource_version, refusal }));
    };
    let mut queue = Publications::new();
    let mut busy = BTreeSet::<ObjectKey>::new();
    let mut requests = JoinSet::new();
    let (mut tokens, mut refilled) = (BURST, Instant::now());
    let (mut wait, mut until) = (WAIT, Instant::now());
    loop {
        let now = Instant::now();
        tokens = BURST.min(tokens + RATE * (now - refilled).as_secs_f64());
        refilled = now;
        let may_write = right.borrow_and_update().is_some_and(|until| now < until);
        if !may_write {
            std::mem::take(&mut queue).into_iter().for_each(|(key, publication)| lost(key, publication, None));
        }
        while requests.len() < CONCURRENT && tokens >= 1.0 && until <= now {
            let Some(key) = queue.keys().find(|key| !busy.contains(*key)).cloned() else { break };
            let Some(publication) = queue.remove(&key) else { break };
            tokens -= 1.0;
            busy.insert(key.clone());
            let (client, right) = (client.clone(), right.clone());
            requests.spawn(async move {
                let answer = write(client, &key, &publication, &right).await;
                (key, publication, answer)
            });
        }
        let pause = until.saturating_duration_since(now).max(Duration::from_millis(20));
        tokio::select! {
            publications = wanted.recv() => match publications {
                Some(publications) => queue.extend(publications),
                None => return,
            },
            changed = right.changed() => if changed.is_err() { return },
            Some(done) = requests.join_next() => {
                let Ok((key, publication, answer)) = done else { continue };
                busy.remove(&key);
                match answer {
                    Answer::Written => wait = WAIT,
                    Answer::Dropped(why) => {
                        debug!(service = %key, "not written: {why}");
                        lost(key, publication, None);
                    }
                    Answer::Refused(why) => lost(key, publication, Some(why)),
                    Answer::Again(at_least, why) => {
                        warn!(service = %key, "cannot write the status: {why}; trying again");
                        until = Instant::now() + wait.max(at_least);
                        wait = (wait * 2).min(LONGEST_WAIT);
                        queue.entry(key).or_insert(publication);
                    }
                    Answer::Forbidden(why) => {
                        lost(key, publication, None);
                        // Full: it has been told already.
                        drop(forbidden.try_send(why));
                    }
                }
            }
            () = sleep(pause), if !queue.is_empty() && requests.len() < CONCURRENT => {}
        }
    }
}

async fn write(client: Client, key: &ObjectKey, publication: &Publication, right: &watch::Receiver<Right>) -> Answer {
    let api: Api<Service> = Api::namespaced(client, &key.namespace);
    let patch = patch(publication);
    // Directly before it is sent: this process may have been stopped since the decision.
    if !right.borrow().is_some_and(|until| Instant::now() < until) {
        return Answer::Dropped("this node is no longer the writer".into());
    }
    let parameters = PatchParams { field_manager: Some("pinnace".into()), ..PatchParams::default() };
    match timeout(REQUEST_TIMEOUT, api.patch_status(&key.name, &parameters, &Patch::Strategic(patch))).await {
        Err(_) => Answer::Again(WAIT, "no answer in time".into()),
        Ok(Ok(_)) => Answer::Written,
        Ok(Err(error)) => match Failure::of(&error) {
            Failure::Forbidden(why) => Answer::Forbidden(why),
            Failure::TooManyRequests(time) => Answer::Again(time, "too many requests".into()),
            Failure::Status(code @ (404 | 409), why) => Answer::Dropped(format!("{why} ({code})")),
            Failure::Status(code, why) if code < 500 => Answer::Refused(format!("{why} ({code})")),
            failure => Answer::Again(WAIT, format!("{failure:?}")),
        },
    }
}

/// uid and resourceVersion bind the write to the version it was decided for. `ingress` is an atomic list, the finalizer is taken out of
/// its list by name: other finalizers and conditions are left alone.
fn patch(publication: &Publication) -> Value {
    let mut patch = json!({ "metadata": { "uid": publication.uid, "resourceVersion": publication.resource_version } });
    if let Some(ingress) = &publication.ingress {
        let entries: Vec<Value> = ingress.iter().map(entry).collect();
        // An empty list would be merged away; null removes.
        patch["status"] = json!({ "loadBalancer": { "ingress": if entries.is_empty() { Value::Null } else { entries.into() } } });
    }
    if publication.remove_finalizer {
        patch["metadata"]["$deleteFromPrimitiveList/finalizers"] = json!([CLEANUP_FINALIZER]);
    }
    patch
}

fn entry(ingress: &Ingress) -> Value {
    let port = |port: &crate::domain::model::IngressPort| {
        let mut value = json!({ "port": port.port, "protocol": port.protocol });
        if let Some(error) = &port.error {
            value["error"] = json!(error);
        }
        value
    };
    json!({ "ip": ingress.ip, "ipMode": "VIP", "ports": ingress.ports.iter().map(port).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::model::{IngressPort, Protocol};

    #[test]
    fn a_write_names_the_version_it_was_decided_for() {
        let ports = vec![IngressPort { port: 80, protocol: Protocol::Tcp, error: None }];
        let ingress = vec![Ingress { ip: Some([10, 88, 0, 200].into()), hostname: None, vip: Some(true), ports }];
        let publication = Publication { uid: "u".into(), resource_version: "7".into(), ingress: Some(ingress), remove_finalizer: true };
        let wanted = json!({
            "metadata": {"uid": "u", "resourceVersion": "7", "$deleteFromPrimitiveList/finalizers": [CLEANUP_FINALIZER]},
            "status": {"loadBalancer": {"ingress": [
                {"ip": "10.88.0.200", "ipMode": "VIP", "ports": [{"port": 80, "protocol": "TCP"}]},
            ]}},
        });
        assert_eq!(patch(&publication), wanted);
    }
}
