//! The API server as source: three watches, each converted at once and merged into batches for the
//! engine.
//!
//! Every kind is listed, then watched from where the list ended. Lists are streamed where the
//! server can (one object at a time in memory), else read in pages. A watch that ends is resumed;
//! 410 means that the server has forgotten where we were, and the list is read anew. Nothing here
//! gives up: failures are reported as health and tried again with growing pauses.
//!
//! This drives `Api::watch` and `Api::list` itself and not by `kube::runtime::watcher`, because
//! that tells neither when a broken watch is established again (in a quiet cluster no event ever
//! says so, and `/readyz` would stay wrong) nor that a bookmark came.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use futures_util::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::watch::Bookmark;
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tracing::{debug, info};

use super::client::Connection;
use super::failure::Failure;
use crate::common::backoff::Backoff;
use crate::common::random;
use crate::host::trigger_time::TriggerTime;
use crate::k8s::convert;
use crate::k8s::convert::SERVICE_NAME_LABEL;
use crate::model::state::SourceProblem;
use crate::model::{Kind, SourceChange};

/// Objects per page of a list: the most typed objects in memory at once.
const PAGE: u32 = 500;
/// Changes in one batch for the engine, at most.
const BATCH: usize = 256;
/// The server ends a watch after this time in seconds, and a part of it by chance so that not all
/// end at once.
const WATCH_TIME: (u32, u32) = (240, 50);
/// Servers send bookmarks each minute. A watch that says nothing for this long is resumed, which
/// costs one request.
const SILENCE: Duration = Duration::from_secs(90);
/// A streamed list that stops without the mark of its end comes from a server that does not know
/// streamed lists.
const LIST_SILENCE: Duration = Duration::from_secs(20);
/// A watch that lived shorter than this counts as failed: no tight loop against a server that ends
/// them at once.
const SHORT: Duration = Duration::from_secs(1);
/// Delays between attempts: half of each is random, so that the nodes of a cluster do not keep in
/// step.
const RETRY: Backoff =
    Backoff { min: Duration::from_millis(250), max: Duration::from_secs(10), jitter: 0.5 };
/// On a bookmark: the streamed list is complete.
const END_OF_LIST: &str = "k8s.io/initial-events-end";
/// Objects with problems that are told; more are counted.
const PROBLEMS: usize = 200;

/// What the source says at once.
#[derive(Debug, Default)]
pub struct ApiUpdate {
    /// In the order in which they happened.
    pub changes: Vec<SourceChange>,
    /// Everything that is wrong with objects now.
    pub problems: Vec<SourceProblem>,
    /// Every kind has been listed completely at least once.
    pub synced: bool,
    /// How the API is, where that changed.
    pub health: Option<Result<(), String>>,
    /// When the oldest change of an endpoint among these happened, as far as the slices say; None
    /// in lists, which tell old news.
    pub last_change: Option<TriggerTime>,
}

/// The source as the daemon sees it.
pub struct ApiSource {
    /// Ends only when the thread does.
    pub updates: mpsc::Receiver<ApiUpdate>,
    /// True once everything has been listed, whether or not the updates were taken.
    pub synced: watch::Receiver<bool>,
}

/// Watches until the process ends, on a thread of its own: TLS and the JSON of a large list take
/// longer than the task that makes decisions may be held up. `queue` updates wait at most; then the
/// watches do.
///
/// # Errors
/// When there is no thread or runtime to be had.
pub fn spawn(connection: Connection, queue: usize) -> std::io::Result<ApiSource> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (updates_in, updates) = mpsc::channel(queue);
    let (synced_in, synced) = watch::channel(false);
    std::thread::Builder::new()
        .name("kube".into())
        .spawn(move || runtime.block_on(run(connection, updates_in, synced_in)))?;
    Ok(ApiSource { updates, synced })
}

async fn run(
    connection: Connection,
    updates: mpsc::Sender<ApiUpdate>,
    synced: watch::Sender<bool>,
) {
    let client = connection.client();
    let (told, telling) = mpsc::channel(BATCH);
    let collector = Collector::new(&connection, updates, synced);
    tokio::select! {
        () = collector.run(telling) => {}
        () = Follower::new(Api::<core::Service>::all(client.clone()), &connection, &told).run() => {}
        () = Follower::new(Api::<discovery::EndpointSlice>::all(client.clone()), &connection, &told).run() => {}
        () = Follower::new(Api::<core::Node>::all(client), &connection, &told).run() => {}
        () = connection.follow_credentials() => {}
    }
}

/// A kind of object that is watched.
trait Watched: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static {
    const KIND: Kind;
    const NAME: &'static str;
    /// Which objects the server sends.
    const LABELS: Option<&'static str> = None;
    /// The compact form, None when it is of no concern; beside it what is wrong with the object.
    fn convert(&self) -> (Option<SourceChange>, Vec<String>);
    /// When what it says happened, if it says that.
    fn last_change(&self) -> Option<TriggerTime> {
        None
    }
    fn gone(&self) -> SourceChange;
}

impl Watched for core::Service {
    const KIND: Kind = Kind::Service;
    const NAME: &'static str = "services";

    fn convert(&self) -> (Option<SourceChange>, Vec<String>) {
        // Its problems go with it: the engine tells them beside the Service.
        let service = convert::service(self);
        (
            service
                .map(|service| SourceChange::Service(service.key.clone(), Some(Box::new(service)))),
            Vec::new(),
        )
    }

    fn gone(&self) -> SourceChange {
        SourceChange::Service(convert::key(&self.metadata), None)
    }
}

impl Watched for discovery::EndpointSlice {
    const KIND: Kind = Kind::EndpointSlice;
    const NAME: &'static str = "endpointslices.discovery.k8s.io";
    const LABELS: Option<&'static str> = Some(SERVICE_NAME_LABEL);

    fn convert(&self) -> (Option<SourceChange>, Vec<String>) {
        let converted = convert::endpoint_slice(self);
        (
            converted
                .value
                .map(|slice| SourceChange::Slice(slice.key.clone(), Some(Box::new(slice)))),
            converted.problems,
        )
    }

    fn last_change(&self) -> Option<TriggerTime> {
        convert::last_change(self)
    }

    fn gone(&self) -> SourceChange {
        SourceChange::Slice(convert::key(&self.metadata), None)
    }
}

impl Watched for core::Node {
    const KIND: Kind = Kind::Node;
    const NAME: &'static str = "nodes";

    fn convert(&self) -> (Option<SourceChange>, Vec<String>) {
        let converted = convert::node(self);
        (
            converted.value.map(|node| SourceChange::Node(node.name.clone(), Some(Box::new(node)))),
            converted.problems,
        )
    }

    fn gone(&self) -> SourceChange {
        SourceChange::Node(self.name_any().into(), None)
    }
}

/// What a follower tells the collector.
enum WatchUpdate {
    /// With what is wrong with the object.
    Change(SourceChange, Vec<String>),
    /// When what is told next happened.
    LastChange(TriggerTime),
    Health(Kind, Result<(), String>),
}

/// Lists and watches one kind.
struct Follower<K> {
    api: Api<K>,
    connection: Connection,
    told: mpsc::Sender<WatchUpdate>,
    /// Where to go on from; None: from a new list.
    version: Option<String>,
    streaming: bool,
    healthy: bool,
    /// Failures in a row.
    failures: u32,
}

impl<K: Watched> Follower<K> {
    fn new(api: Api<K>, connection: &Connection, told: &mpsc::Sender<WatchUpdate>) -> Follower<K> {
        let (connection, told) = (connection.clone(), told.clone());
        Follower {
            api,
            connection,
            told,
            version: None,
            streaming: true,
            healthy: false,
            failures: 0,
        }
    }

    /// Ends only when nobody listens.
    async fn run(mut self) {
        let mut renewals = self.connection.renewals();
        while !self.told.is_closed() {
            let since = Instant::now();
            let outcome = match self.version.clone() {
                Some(version) => self.watch(false, &version).await,
                None if self.streaming => self.watch(true, "0").await,
                None => self.list().await,
            };
            let failure = match outcome {
                Ok(()) if since.elapsed() >= SHORT || self.version.is_none() => continue,
                Ok(()) => None,
                Err(Failure::Gone) if self.version.take().is_some() => {
                    info!(
                        kind = K::NAME,
                        "the API server has forgotten where the watch was; reading everything anew"
                    );
                    None
                }
                // 400 and 422 are how servers before streamed lists refuse them.
                Err(Failure::Status(400 | 422, reason))
                    if self.version.is_none() && self.streaming =>
                {
                    debug!(kind = K::NAME, %reason, "no streamed lists here; reading pages");
                    self.streaming = false;
                    continue;
                }
                Err(failure) => Some(failure),
            };
            if since.elapsed() > 2 * RETRY.max {
                self.failures = 0;
            }
            let mut pause = RETRY.delay(self.failures);
            self.failures = self.failures.saturating_add(1);
            if let Some(failure) = failure {
                let sentence = self.connection.sentence(&failure, K::NAME);
                debug!(kind = K::NAME, %sentence, ?pause, "trying again");
                self.healthy = false;
                self.emit(WatchUpdate::Health(K::KIND, Err(sentence))).await;
                if let Failure::TooManyRequests(wanted) = failure {
                    pause = pause.max(wanted);
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = renewals.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Follows changes until the server ends the watch. With `listing`, everything that is there
    /// comes first.
    async fn watch(&mut self, mut listing: bool, version: &str) -> Result<(), Failure> {
        let time = WATCH_TIME.0 + (random::seed() % u64::from(WATCH_TIME.1)) as u32;
        let labels = K::LABELS.map(str::to_string);
        let params = WatchParams {
            label_selector: labels,
            timeout: Some(time),
            bookmarks: true,
            send_initial_events: listing,
            ..WatchParams::default()
        };
        let mut switches = self.connection.switches();
        let stream = self.api.watch(&params, version).await.map_err(|error| Failure::of(&error))?;
        pin_mut!(stream);
        self.works().await;
        if listing {
            self.emit(WatchUpdate::Change(SourceChange::ListStart(K::KIND), Vec::new())).await;
        }
        loop {
            let event = tokio::select! {
                event = timeout(if listing { LIST_SILENCE } else { SILENCE }, stream.next()) => event,
                Ok(()) = switches.changed(), if !listing => return Ok(()),
            };
            let event = match event {
                Ok(Some(event)) => event,
                Ok(None) if listing => {
                    return Err(Failure::Unreachable("it broke a list off".into()));
                }
                Err(_) if listing => {
                    self.streaming = false;
                    return Ok(());
                }
                Ok(None) | Err(_) => return Ok(()),
            };
            if let Ok(event) = &event {
                self.version = reached(listing, event).or(self.version.take());
            }
            match event {
                Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                    self.emit_object(&object, listing).await
                }
                Ok(WatchEvent::Deleted(object)) => {
                    self.emit(WatchUpdate::Change(object.gone(), Vec::new())).await
                }
                Ok(WatchEvent::Bookmark(bookmark)) => {
                    if listing && ends_list(&bookmark) {
                        listing = false;
                        self.emit(WatchUpdate::Change(SourceChange::ListEnd(K::KIND), Vec::new()))
                            .await;
                    }
                    if !listing {
                        self.failures = 0;
                    }
                }
                Ok(WatchEvent::Error(status)) => {
                    return Err(Failure::of(&kube::Error::Api(status)));
                }
                Err(error) => return Err(Failure::of(&error)),
            }
        }
    }

    /// Reads everything in pages, for servers without streamed lists.
    async fn list(&mut self) -> Result<(), Failure> {
        let mut params = ListParams::default().limit(PAGE);
        params.label_selector = K::LABELS.map(str::to_string);
        let mut first = true;
        loop {
            let page = self.api.list(&params).await.map_err(|error| Failure::of(&error))?;
            self.works().await;
            if std::mem::take(&mut first) {
                self.emit(WatchUpdate::Change(SourceChange::ListStart(K::KIND), Vec::new())).await;
            }
            for object in page.items {
                self.emit_object(&object, true).await;
            }
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                self.emit(WatchUpdate::Change(SourceChange::ListEnd(K::KIND), Vec::new())).await;
                self.version = page.metadata.resource_version.filter(|version| !version.is_empty());
                return match self.version {
                    Some(_) => Ok(()),
                    None => Err(Failure::InvalidResponse("a list without a version".into())),
                };
            }
        }
    }

    async fn emit_object(&mut self, object: &K, listing: bool) {
        let (change, problems) = object.convert();
        if let Some(at) = object.last_change().filter(|_| !listing) {
            self.emit(WatchUpdate::LastChange(at)).await;
        }
        match change {
            Some(change) => self.emit(WatchUpdate::Change(change, problems)).await,
            // In a list, what is not mentioned is gone.
            None if listing && problems.is_empty() => {}
            None => self.emit(WatchUpdate::Change(object.gone(), problems)).await,
        }
    }

    async fn works(&mut self) {
        if !std::mem::replace(&mut self.healthy, true) {
            self.emit(WatchUpdate::Health(K::KIND, Ok(()))).await;
        }
    }

    /// A collector that is gone ends [`Follower::run`].
    async fn emit(&self, told: WatchUpdate) {
        let _ = self.told.send(told).await;
    }
}

/// Where a watch could go on after this event. None within a list: what it has not told yet would
/// be missed for ever.
fn reached<K: ResourceExt>(listing: bool, event: &WatchEvent<K>) -> Option<String> {
    match event {
        WatchEvent::Bookmark(bookmark) if !listing || ends_list(bookmark) => {
            Some(bookmark.metadata.resource_version.clone())
        }
        WatchEvent::Added(object) | WatchEvent::Modified(object) | WatchEvent::Deleted(object)
            if !listing =>
        {
            object.resource_version()
        }
        _ => None,
    }
}

fn ends_list(bookmark: &Bookmark) -> bool {
    bookmark.metadata.annotations.contains_key(END_OF_LIST)
}

/// Merges what the followers tell into batches.
struct Collector {
    connection: Connection,
    updates: mpsc::Sender<ApiUpdate>,
    synced: watch::Sender<bool>,
    /// Kinds that have been listed.
    listed: [bool; 3],
    /// None: it has not been heard of yet.
    health: [Option<Result<(), String>>; 3],
    told_health: Option<Result<(), String>>,
    problems: BTreeMap<(Kind, String), Vec<String>>,
    /// Problems that were not taken up for want of room.
    more: bool,
    /// Of changes that have not been merged yet.
    last_change: Option<TriggerTime>,
}

impl Collector {
    fn new(
        connection: &Connection,
        updates: mpsc::Sender<ApiUpdate>,
        synced: watch::Sender<bool>,
    ) -> Collector {
        let (listed, health) = ([false; 3], [None, None, None]);
        let (told_health, problems) = (None, BTreeMap::new());
        Collector {
            connection: connection.clone(),
            updates,
            synced,
            listed,
            health,
            told_health,
            problems,
            more: false,
            last_change: None,
        }
    }

    async fn run(mut self, mut telling: mpsc::Receiver<WatchUpdate>) {
        let mut told = Vec::with_capacity(BATCH);
        while telling.recv_many(&mut told, BATCH).await > 0 {
            let update = self.merge(told.drain(..));
            let nothing = update.changes.is_empty() && update.health.is_none();
            if !nothing && self.updates.send(update).await.is_err() {
                return;
            }
        }
    }

    fn merge(&mut self, told: impl Iterator<Item = WatchUpdate>) -> ApiUpdate {
        let mut update = ApiUpdate::default();
        for told in told {
            match told {
                WatchUpdate::Change(change, problems) => {
                    self.note(&change, problems);
                    update.changes.push(change);
                }
                WatchUpdate::LastChange(at) => {
                    self.last_change = Some(self.last_change.map_or(at, |known| known.min(at)))
                }
                WatchUpdate::Health(kind, health) => self.health[index(kind)] = Some(health),
            }
        }
        if !update.changes.is_empty() {
            update.last_change = self.last_change.take();
        }
        update.synced = self.listed.iter().all(|listed| *listed);
        update.problems = self.shown_problems();
        // Unhealthy as soon as one kind is; healthy when all are.
        let bad = self.health.iter().flatten().find(|health| health.is_err()).cloned();
        let health = bad.or_else(|| self.health.iter().all(Option::is_some).then_some(Ok(())));
        if let Some(health) = health.filter(|health| self.told_health.as_ref() != Some(health)) {
            if health.is_ok() {
                info!(server = %self.connection.server(), "watching services, endpointslices and nodes");
            }
            self.told_health = Some(health.clone());
            update.health = Some(health);
        }
        if update.synced {
            self.synced.send_if_modified(|synced| !std::mem::replace(synced, true));
        }
        update
    }

    fn note(&mut self, change: &SourceChange, problems: Vec<String>) {
        let object = match change {
            SourceChange::ListStart(kind) => return self.problems.retain(|(of, _), _| of != kind),
            SourceChange::ListEnd(kind) => return self.listed[index(*kind)] = true,
            _ if problems.is_empty() && self.problems.is_empty() => return,
            SourceChange::Service(key, _) => (Kind::Service, format!("Service {key}")),
            SourceChange::Slice(key, _) => (Kind::EndpointSlice, format!("EndpointSlice {key}")),
            SourceChange::Node(name, _) => (Kind::Node, format!("Node {name}")),
        };
        if problems.is_empty() {
            self.problems.remove(&object);
        } else if self.problems.len() < PROBLEMS || self.problems.contains_key(&object) {
            self.problems.insert(object, problems);
        } else {
            self.more = true;
        }
    }

    fn shown_problems(&mut self) -> Vec<SourceProblem> {
        let shown = |((_, object), reasons): (&(Kind, String), &Vec<String>)| SourceProblem {
            source: "API server".into(),
            object: Some(object.clone()),
            note: false,
            reason: reasons.join("; "),
        };
        let mut problems: Vec<SourceProblem> = self.problems.iter().map(shown).collect();
        self.more &= self.problems.len() >= PROBLEMS;
        if self.more {
            let reason = format!("more than {PROBLEMS} objects have problems");
            problems.push(SourceProblem {
                source: "API server".into(),
                object: None,
                note: false,
                reason,
            });
        }
        problems
    }
}

fn index(kind: Kind) -> usize {
    match kind {
        Kind::Service => 0,
        Kind::EndpointSlice => 1,
        Kind::Node => 2,
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
