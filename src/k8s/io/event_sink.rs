//! Sends the Events of [`crate::k8s::events`] to the API server.
//!
//! Of the two APIs to these objects it uses core/v1: `kubectl describe` and `kubectl get events`
//! show its `count`, `firstTimestamp` and `lastTimestamp`, and a count can be patched alone. With
//! events.k8s.io/v1 a series would have to be kept, and people would see less.

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
use crate::common::random;
use crate::k8s::events::{EventQueue, Send, Subject};

/// Maximum number of Events that wait for the task. More are dropped; they are in the log.
const QUEUE: usize = 2048;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Delay after a failure.
const PAUSE: Duration = Duration::from_secs(10);
/// How long before credentials without permission to create Events are tried again.
const FORBIDDEN_RETRY: Duration = Duration::from_secs(600);
/// The namespace of Events about Nodes, which have none.
const NODE_NAMESPACE: &str = "default";
/// Characters of the object's name in the Event's.
const NAME: usize = 200;

/// An occurrence of an Event.
#[derive(Debug)]
pub struct QueuedEvent {
    pub subject: Subject,
    /// Type Warning, else Normal.
    pub warning: bool,
    /// `reason` of the Event, in CamelCase.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
}

/// Starts the task that sends Events on behalf of `node`. It ends when the channel is closed;
/// `dropped` counts what it never sends. To be called within a runtime.
pub fn start(client: Client, node: &str, dropped: Counter) -> mpsc::Sender<QueuedEvent> {
    let (sender, inbox) = mpsc::channel(QUEUE);
    tokio::spawn(EventSink::new(client, node.to_owned(), dropped).run(inbox));
    sender
}

struct EventSink {
    client: Client,
    node: String,
    /// Part of the names of this run's Events, so that they differ from those of earlier runs.
    run: u64,
    epoch: Instant,
    queue: EventQueue,
    permissions: Permissions,
    dropped: Counter,
    /// Dropped Events of the queue that are in `dropped`.
    counted: u64,
    /// No request before this time, because the credentials have no permission.
    forbidden_until: Option<Instant>,
    /// The missing permission was logged.
    forbidden_logged: bool,
}

impl EventSink {
    fn new(client: Client, node: String, dropped: Counter) -> EventSink {
        EventSink {
            permissions: Permissions::new(client.clone(), ("create", "events", "")),
            client,
            node,
            run: random::seed(),
            epoch: Instant::now(),
            queue: EventQueue::default(),
            dropped,
            counted: 0,
            forbidden_until: None,
            forbidden_logged: false,
        }
    }

    async fn run(mut self, mut inbox: mpsc::Receiver<QueuedEvent>) {
        loop {
            self.count_dropped();
            let wake = self.poll_timeout();
            let pause = wake.unwrap_or(self.epoch).saturating_duration_since(Instant::now());
            tokio::select! {
                event = inbox.recv() => match event {
                    Some(event) => self.push(event),
                    None => return,
                },
                () = sleep(pause), if wake.is_some() => self.send_next().await,
            }
        }
    }

    fn count_dropped(&mut self) {
        self.dropped.inc_by(self.queue.dropped() - self.counted);
        self.counted = self.queue.dropped();
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let due = self.epoch + self.queue.poll_timeout()?;
        Some(self.forbidden_until.map_or(due, |until| due.max(until)))
    }

    fn push(&mut self, event: QueuedEvent) {
        if self.forbidden_until.is_some_and(|until| Instant::now() < until) {
            self.dropped.inc();
            return;
        }
        let QueuedEvent { subject, warning, reason, message } = event;
        self.queue.push(subject, warning, reason, message, self.epoch.elapsed());
    }

    async fn send_next(&mut self) {
        let Some(event) = self.queue.next(self.epoch.elapsed()) else { return };
        let request = send(&self.client, &self.node, self.run, self.epoch, &event);
        let answer = timeout(REQUEST_TIMEOUT, request).await;
        let now = self.epoch.elapsed();
        match answer {
            Ok(Ok(())) => self.queue.sent(&event, now),
            Ok(Err(error)) => self.on_failure(&event, Failure::of(&error), now).await,
            Err(_) => self.queue.failed(&event, false, PAUSE, now),
        }
    }

    async fn on_failure(&mut self, event: &Send, failure: Failure, now: Duration) {
        match failure {
            Failure::Forbidden(why)
                if self.permissions.denied(namespace(&event.identity.subject)).await =>
            {
                self.on_forbidden(&why);
            }
            Failure::Status(404, _) if event.update => {
                self.queue.failed(event, true, Duration::ZERO, now);
            }
            Failure::Forbidden(why) => log_refusal(403, &why),
            Failure::Status(code, why) if code < 500 => log_refusal(code, &why),
            failure => {
                let pause = pause_after(&failure);
                self.queue.failed(event, false, pause, now);
                // The other Events would fail as well.
                sleep(pause).await;
            }
        }
    }

    fn on_forbidden(&mut self, why: &str) {
        if !std::mem::replace(&mut self.forbidden_logged, true) {
            info!("no permission to create Events: they are only in the log: {why}");
        }
        self.forbidden_until = Some(Instant::now() + FORBIDDEN_RETRY);
        self.queue.clear();
    }
}

/// The Event's namespace is being deleted, or an admission policy refuses it: it is in the log only.
fn log_refusal(code: u16, why: &str) {
    debug!(code, why, "Event refused");
}

/// How long to wait after a transient failure.
fn pause_after(failure: &Failure) -> Duration {
    debug!(?failure, "Event not sent");
    match failure {
        Failure::TooManyRequests(pause) => PAUSE.max(*pause),
        _ => PAUSE,
    }
}

/// The namespace of an Event about the object.
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

/// Monotonic time as time of day, by the system clock as it is set now.
fn wall(epoch: Instant, at: Duration) -> Time {
    let ago = epoch.elapsed().saturating_sub(at);
    Time(
        SignedDuration::try_from(ago)
            .ok()
            .and_then(|ago| Timestamp::now().checked_sub(ago).ok())
            .unwrap_or_else(Timestamp::now),
    )
}
