//! Writes what the engine publishes to the status of Services: the latest word about each, a few at
//! a time, and only while this process holds the Lease. A write that came too late is refused by
//! the API server and given back to the engine, which decides again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Service;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::{RwLock, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::failure::Failure;
use super::lease::WriteDeadline;
use super::permissions::Permissions;
use crate::k8s::convert::CLEANUP_FINALIZER;
use crate::k8s::leader::REQUEST_TIMEOUT;
use crate::k8s::status::StatusPatch;
use crate::model::{Ingress, ObjectKey};

/// Requests under way at once.
const CONCURRENT: usize = 8;
/// Requests per second, after a [`BURST`].
const RATE: f64 = 50.0;
const BURST: f64 = 100.0;
/// After a failure that passes; doubled up to [`LONGEST_WAIT`].
const WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What the engine wants written; replaces earlier words about the same Services.
pub type StatusPatches = BTreeMap<ObjectKey, StatusPatch>;

/// A publication that did not come to stand: the engine decides what to do.
#[derive(Clone, Debug)]
pub struct FailedPatch {
    /// About which Service.
    pub key: ObjectKey,
    /// The version it was decided for.
    pub resource_version: Arc<str>,
    /// The API server's words, if it will never take it.
    pub refusal: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum PatchResult {
    Written,
    /// Not for this version any more, or gone.
    Dropped(String),
    /// Never, whatever the version.
    Refused(String),
    /// The API server does not answer, or asks everybody to wait for this long.
    Unanswered(Duration, String),
    /// It fails, with this Service at least.
    Failed(String),
    Forbidden(String),
}

/// When what failed is tried again.
#[derive(Debug)]
struct Pause {
    wait: Duration,
    until: Option<Instant>,
}

impl Default for Pause {
    fn default() -> Pause {
        Pause { wait: WAIT, until: None }
    }
}

impl Pause {
    fn over(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| until <= now)
    }

    fn lengthen(&mut self, at_least: Duration, now: Instant) {
        self.until = Some(now + self.wait.max(at_least));
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
    }
}

/// A Service whose write fails (a webhook that is away, say) waits alone; an API server that does
/// not answer is left alone by all.
#[derive(Debug, Default)]
struct Pauses {
    all: Pause,
    each: BTreeMap<ObjectKey, Pause>,
}

impl Pauses {
    fn over(&self, key: &ObjectKey, now: Instant) -> bool {
        self.all.over(now) && self.each.get(key).is_none_or(|pause| pause.over(now))
    }

    /// How long until one of them is over.
    fn next(&self, now: Instant) -> Option<Duration> {
        let left =
            |pause: &Pause| pause.until.filter(|until| *until > now).map(|until| until - now);
        left(&self.all).or_else(|| self.each.values().filter_map(left).min())
    }

    fn answered(&mut self, key: &ObjectKey) {
        self.all.wait = WAIT;
        self.each.remove(key);
    }

    fn failed(&mut self, key: &ObjectKey, now: Instant) {
        self.each.entry(key.clone()).or_default().lengthen(WAIT, now);
    }

    fn unanswered(&mut self, key: &ObjectKey, at_least: Duration, now: Instant) {
        self.all.lengthen(at_least, now);
        self.failed(key, now);
    }
}

/// Writes until `wanted` is closed. What is not written is told to `losses`; that the credentials
/// may not write at all, to `forbidden`. `writing` is held for reading as long as a request is
/// under way.
pub async fn run(
    client: Client,
    mut wanted: mpsc::UnboundedReceiver<StatusPatches>,
    mut right: watch::Receiver<WriteDeadline>,
    writing: Arc<RwLock<()>>,
    losses: mpsc::UnboundedSender<FailedPatch>,
    forbidden: mpsc::Sender<String>,
) {
    let lost = |key: ObjectKey, publication: StatusPatch, refusal: Option<String>| {
        // Nobody listens any more when the process is about to end.
        drop(losses.send(FailedPatch {
            key,
            resource_version: publication.resource_version,
            refusal,
        }));
    };
    let mut queue = StatusPatches::new();
    let mut busy = BTreeSet::<ObjectKey>::new();
    let mut requests = JoinSet::new();
    let (mut tokens, mut refilled) = (BURST, Instant::now());
    let mut pauses = Pauses::default();
    let permissions = Arc::new(Permissions::new(client.clone(), ("patch", "services", "status")));
    loop {
        let now = Instant::now();
        tokens = BURST.min(tokens + RATE * (now - refilled).as_secs_f64());
        refilled = now;
        let may_write = right.borrow_and_update().is_some_and(|until| now < until);
        if !may_write {
            std::mem::take(&mut queue)
                .into_iter()
                .for_each(|(key, publication)| lost(key, publication, None));
            pauses.each.clear();
        }
        while requests.len() < CONCURRENT && tokens >= 1.0 {
            let Some(key) =
                queue.keys().find(|key| !busy.contains(*key) && pauses.over(key, now)).cloned()
            else {
                break;
            };
            let Some(publication) = queue.remove(&key) else { break };
            tokens -= 1.0;
            busy.insert(key.clone());
            let (client, right, writing, permissions) =
                (client.clone(), right.clone(), writing.clone(), permissions.clone());
            requests.spawn(async move {
                let answer = write(client, &key, &publication, &right, &writing).await;
                let answer = match answer {
                    PatchResult::Forbidden(why) => {
                        forbidden_answer(why, permissions.denied("").await)
                    }
                    answer => answer,
                };
                (key, publication, answer)
            });
        }
        let pause = pauses
            .next(now)
            .filter(|_| tokens >= 1.0)
            .unwrap_or_default()
            .max(Duration::from_millis(20));
        tokio::select! {
            publications = wanted.recv() => match publications {
                Some(publications) => queue.extend(publications),
                None => return,
            },
            changed = right.changed() => if changed.is_err() { return },
            Some(done) = requests.join_next() => {
                let Ok((key, publication, answer)) = done else { continue };
                busy.remove(&key);
                match &answer {
                    PatchResult::Unanswered(at_least, _) => pauses.unanswered(&key, *at_least, Instant::now()),
                    PatchResult::Failed(_) => pauses.failed(&key, Instant::now()),
                    _ => pauses.answered(&key),
                }
                match answer {
                    PatchResult::Written => {}
                    PatchResult::Dropped(why) => {
                        debug!(service = %key, "not written: {why}");
                        lost(key, publication, None);
                    }
                    PatchResult::Refused(why) => lost(key, publication, Some(why)),
                    PatchResult::Unanswered(_, why) | PatchResult::Failed(why) => {
                        warn!(service = %key, "cannot write the status: {why}; trying again");
                        queue.entry(key).or_insert(publication);
                    }
                    PatchResult::Forbidden(why) => {
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

async fn write(
    client: Client,
    key: &ObjectKey,
    publication: &StatusPatch,
    right: &watch::Receiver<WriteDeadline>,
    writing: &RwLock<()>,
) -> PatchResult {
    let _writing = writing.read().await;
    let api: Api<Service> = Api::namespaced(client, &key.namespace);
    let patch = patch(publication);
    // Directly before it is sent: this process may have been stopped since the decision.
    if !right.borrow().is_some_and(|until| Instant::now() < until) {
        return PatchResult::Dropped("this node is no longer the writer".into());
    }
    let parameters =
        PatchParams { field_manager: Some("pinnace".into()), ..PatchParams::default() };
    match timeout(
        REQUEST_TIMEOUT,
        api.patch_status(&key.name, &parameters, &Patch::Strategic(patch)),
    )
    .await
    {
        Err(_) => PatchResult::Unanswered(WAIT, "no answer in time".into()),
        Ok(Ok(_)) => PatchResult::Written,
        Ok(Err(error)) => match Failure::of(&error) {
            Failure::Forbidden(why) => PatchResult::Forbidden(why),
            Failure::TooManyRequests(time) => {
                PatchResult::Unanswered(time, "too many requests".into())
            }
            Failure::Status(code @ (404 | 409), why) => {
                PatchResult::Dropped(format!("{why} ({code})"))
            }
            Failure::Status(code, why) if code < 500 => {
                PatchResult::Refused(format!("{why} ({code})"))
            }
            failure @ (Failure::Status(..) | Failure::Gone | Failure::InvalidResponse(_)) => {
                PatchResult::Failed(format!("{failure:?}"))
            }
            failure => PatchResult::Unanswered(WAIT, format!("{failure:?}")),
        },
    }
}

/// Of a 403: credentials without the right can write nothing; with it, somebody (an admission
/// policy) has something against this one Service.
fn forbidden_answer(why: String, denied: bool) -> PatchResult {
    if denied { PatchResult::Forbidden(why) } else { PatchResult::Refused(format!("{why} (403)")) }
}

/// uid and resourceVersion bind the write to the version it was decided for. `ingress` is an atomic
/// list, the finalizer is taken out of its list by name: other finalizers and conditions are left
/// alone.
fn patch(publication: &StatusPatch) -> Value {
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
    let port = |port: &crate::model::IngressPort| {
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
    use crate::model::{IngressPort, Protocol};

    #[test]
    fn one_service_that_fails_delays_no_other() {
        let (bad, good) = (ObjectKey::new("a", "bad"), ObjectKey::new("a", "good"));
        let (mut pauses, start) = (Pauses::default(), Instant::now());
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        for _ in 0..10 {
            pauses.failed(&bad, start);
        }
        assert!(
            pauses.over(&good, start)
                && !pauses.over(&bad, at(29.9))
                && pauses.over(&bad, at(30.1))
        );
        assert_eq!(pauses.next(at(10.0)), Some(Duration::from_secs(20)));
        pauses.unanswered(&good, Duration::from_secs(5), start);
        assert!(
            !pauses.over(&ObjectKey::new("a", "another"), at(4.9)),
            "nobody asks while the server asks all to wait"
        );
        assert!(pauses.over(&good, at(5.1)) && !pauses.over(&bad, at(5.1)));
        assert_eq!(pauses.next(at(1.0)), Some(Duration::from_secs(4)));
        pauses.answered(&bad);
        assert!(pauses.over(&bad, at(5.1)));
    }

    #[test]
    fn only_missing_rights_end_the_writing() {
        assert_eq!(
            forbidden_answer("a policy".into(), false),
            PatchResult::Refused("a policy (403)".into())
        );
        assert_eq!(
            forbidden_answer("no right".into(), true),
            PatchResult::Forbidden("no right".into())
        );
    }

    #[test]
    fn a_write_names_the_version_it_was_decided_for() {
        let ports = vec![IngressPort { port: 80, protocol: Protocol::Tcp, error: None }];
        let ingress = vec![Ingress {
            ip: Some([10, 88, 0, 200].into()),
            hostname: None,
            vip: Some(true),
            ports: ports.into(),
        }];
        let publication = StatusPatch {
            uid: "u".into(),
            resource_version: "7".into(),
            ingress: Some(ingress.into()),
            remove_finalizer: true,
        };
        let wanted = json!({
            "metadata": {"uid": "u", "resourceVersion": "7", "$deleteFromPrimitiveList/finalizers": [CLEANUP_FINALIZER]},
            "status": {"loadBalancer": {"ingress": [
                {"ip": "10.88.0.200", "ipMode": "VIP", "ports": [{"port": 80, "protocol": "TCP"}]},
            ]}},
        });
        assert_eq!(patch(&publication), wanted);
    }
}
