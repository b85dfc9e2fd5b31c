//! Sends notices as Events, as [`crate::k8s::events`] says.
//!
//! Of the two APIs to the same objects it is core/v1: `count`, `firstTimestamp` and `lastTimestamp`
//! are what `kubectl describe` and `kubectl get events` show, and a count can be patched alone.
//! events.k8s.io/v1 would make us keep a series and shows people less.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use prometheus_client::metrics::counter::Counter;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tracing::{debug, info};

use super::failure::Failure;
use super::permissions::Permissions;
use crate::k8s::events::{EventQueue, Send, Subject};

/// Notices that may wait for the task; more are dropped, for they are in the log.
const QUEUE: usize = 2048;
/// For one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// After a failure.
const PAUSE: Duration = Duration::from_secs(10);
/// How often credentials that may not create Events are tried again.
const FORBIDDEN_RETRY: Duration = Duration::from_secs(600);
/// Events about Nodes, which have no namespace, are in this one.
const NODE_NAMESPACE: &str = "default";
/// Characters of the object's name in the Event's.
const NAME: usize = 200;

/// A notice, addressed.
#[derive(Debug)]
pub struct QueuedEvent {
    /// About what.
    pub subject: Subject,
    /// Type Warning, else Normal.
    pub warning: bool,
    /// CamelCase.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}

/// Starts the task that sends, on behalf of `node`; `dropped` counts what it never sends. To be
/// called within a runtime. It ends when the channel is closed.
pub fn start(client: Client, node: &str, dropped: Counter) -> mpsc::Sender<QueuedEvent> {
    let (told, inbox) = mpsc::channel(QUEUE);
    tokio::spawn(run(client, node.to_owned(), inbox, dropped));
    told
}

async fn run(
    client: Client,
    node: String,
    mut inbox: mpsc::Receiver<QueuedEvent>,
    dropped: Counter,
) {
    let epoch = Instant::now();
    // Events of an earlier run must not be in the way.
    let run = RandomState::new().build_hasher().finish();
    let mut events = EventQueue::default();
    let permissions = Permissions::new(client.clone(), ("create", "events", ""));
    let (mut barred, mut complained, mut counted) = (None::<Instant>, false, 0);
    loop {
        dropped.inc_by(events.dropped() - counted);
        counted = events.dropped();
        let until = events.poll_timeout().map(|due| (epoch + due).max(barred.unwrap_or(epoch)));
        tokio::select! {
            told = inbox.recv() => match told {
                Some(QueuedEvent { subject, warning, reason, message }) => {
                    if barred.is_none_or(|until| Instant::now() >= until) {
                        events.push(subject, warning, reason, message, epoch.elapsed());
                    } else {
                        dropped.inc();
                    }
                    continue;
                }
                None => return,
            },
            () = sleep(until.unwrap_or(epoch).saturating_duration_since(Instant::now())), if until.is_some() => {}
        }
        let Some(event) = events.next(epoch.elapsed()) else { continue };
        let answer = timeout(REQUEST_TIMEOUT, send(&client, &node, run, epoch, &event)).await;
        let now = epoch.elapsed();
        match answer.map(|sent| sent.map_err(|error| Failure::of(&error))) {
            Ok(Ok(())) => events.sent(&event, now),
            Ok(Err(Failure::Forbidden(why)))
                if permissions.denied(namespace(&event.identity.subject)).await =>
            {
                if !std::mem::replace(&mut complained, true) {
                    info!(
                        "the credentials may not create Events, so they are only in the log: {why}"
                    );
                }
                barred = Some(Instant::now() + FORBIDDEN_RETRY);
                events.clear();
            }
            Ok(Err(Failure::Status(404, _))) if event.update => {
                events.failed(&event, true, Duration::ZERO, now)
            }
            // In a namespace that is being deleted, or not to a policy's liking: it is in the log.
            Ok(Err(Failure::Forbidden(why))) => debug!(why, "an Event was refused"),
            Ok(Err(Failure::Status(code, why))) if code < 500 => {
                debug!(code, why, "an Event was refused")
            }
            Ok(Err(failure)) => {
                debug!(?failure, "an Event was not sent");
                let pause = if let Failure::TooManyRequests(pause) = failure {
                    pause.max(PAUSE)
                } else {
                    PAUSE
                };
                events.failed(&event, false, pause, now);
                // The others would meet the same.
                sleep(pause).await;
            }
            Err(_) => events.failed(&event, false, PAUSE, now),
        }
    }
}

/// Where an Event about it is.
fn namespace(subject: &Subject) -> &str {
    match subject {
        Subject::Service(key, _) => &key.namespace,
        Subject::Node(_) => NODE_NAMESPACE,
    }
}

async fn send(
    client: &Client,
    node: &str,
    run: u64,
    epoch: Instant,
    event: &Send,
) -> Result<(), kube::Error> {
    let namespace = namespace(&event.identity.subject).to_owned();
    let object = match &event.identity.subject {
        Subject::Service(key, uid) => {
            let name = key.name.to_string();
            ObjectReference {
                kind: Some("Service".into()),
                namespace: Some(namespace.clone()),
                ..reference(name, uid.as_deref())
            }
        }
        // The kubelet and `kubectl describe node` take a Node's name for its uid.
        Subject::Node(name) => {
            ObjectReference { kind: Some("Node".into()), ..reference(name.to_string(), Some(name)) }
        }
    };
    let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
    let short: String = object.name.iter().flat_map(|name| name.chars()).take(NAME).collect();
    let name =
        format!("{}.{:016x}", short.trim_end_matches(['.', '-']), run.wrapping_add(event.number));
    let count = i32::try_from(event.count).unwrap_or(i32::MAX);
    let last = wall(epoch, event.last);
    if event.update {
        let patch = json!({ "count": count, "lastTimestamp": last });
        return api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop);
    }
    let object = Event {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(namespace),
            ..ObjectMeta::default()
        },
        involved_object: object,
        type_: Some(if event.warning { "Warning" } else { "Normal" }.into()),
        reason: Some(event.identity.reason.into()),
        message: Some(event.identity.message.clone()),
        count: Some(count),
        first_timestamp: Some(wall(epoch, event.first)),
        last_timestamp: Some(last),
        source: Some(EventSource { component: Some("pinnace".into()), host: Some(node.into()) }),
        reporting_component: Some("pinnace".into()),
        reporting_instance: Some(node.into()),
        ..Event::default()
    };
    api.create(&PostParams::default(), &object).await.map(drop)
}

fn reference(name: String, uid: Option<&str>) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        name: Some(name),
        uid: uid.map(Into::into),
        ..ObjectReference::default()
    }
}

/// Monotonic time on the clock on the wall, as it is set now.
fn wall(epoch: Instant, at: Duration) -> Time {
    let ago = epoch.elapsed().saturating_sub(at);
    Time(
        SignedDuration::try_from(ago)
            .ok()
            .and_then(|ago| Timestamp::now().checked_sub(ago).ok())
            .unwrap_or_else(Timestamp::now),
    )
}
