//! The API server as a source: one watch per kind, each object converted as it arrives.
//!
//! Every kind is listed, then watched from the resourceVersion of the list. Lists are streamed
//! (WatchList, one object in memory at a time) where the server can, else read in pages. A watch
//! that ends is resumed; after 410 Gone the kind is listed again. Failures are reported as health
//! and retried with backoff, without end.
//!
//! This drives `Api::watch` and `Api::list` and not `kube::runtime::watcher`: that reports neither
//! a broken watch that is established again (in a quiet cluster no event ever follows, and
//! `/readyz` would stay wrong) nor bookmarks.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use futures_util::{Stream, StreamExt, pin_mut};
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::watch::Bookmark;
use kube::{Api, ResourceExt};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tracing::{debug, info};

use super::batch::Collector;
use super::client::Connection;
use super::failure::Failure;
use super::watched::Watched;
use crate::k8s::objects::{EndpointSlice, Node, Service};
use crate::model::SourceChange;
use crate::model::source_update::SourceUpdate;

/// Objects per page of a list: the maximum of typed objects in memory at once.
const PAGE: u32 = 500;
/// The server ends a watch after this many seconds …
const WATCH_TIME: u32 = 240;
/// … and up to this many more, at random, so that not all watches end at once.
const WATCH_TIME_SPREAD: u32 = 50;
/// A watch without any event for this long is resumed, which costs one request. Servers send
/// bookmarks every minute.
const SILENCE: Duration = Duration::from_secs(90);
/// A server that stops sending for this long before the end-of-list bookmark does not know
/// WatchList.
const LIST_SILENCE: Duration = Duration::from_secs(20);
/// A watch that ended sooner than this counts as failed: no tight loop against a server that ends
/// watches at once.
const SHORT: Duration = Duration::from_secs(1);
/// Annotation of the bookmark after which a streamed list is complete (KEP-3157).
const END_OF_LIST: &str = "k8s.io/initial-events-end";

/// The API server as the daemon sees it.
pub struct ApiSource {
    /// Ends only when the thread does.
    pub updates: mpsc::Receiver<SourceUpdate>,
    /// True once everything has been listed, whether or not the updates were taken.
    pub synced: watch::Receiver<bool>,
}

/// Watches until the process ends, on a thread of its own: TLS and the JSON of a large list take
/// longer than the decisions of the main thread may wait. At most `queue` updates wait; then the
/// watches do.
///
/// # Errors
/// When the thread or its runtime cannot be created.
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
    updates: mpsc::Sender<SourceUpdate>,
    synced: watch::Sender<bool>,
) {
    let collector = Collector::new(&connection, updates, synced);
    tokio::select! {
        () = collector.run() => {}
        () = Follower::<Service>::new(&connection, &collector).run() => {}
        () = Follower::<EndpointSlice>::new(&connection, &collector).run() => {}
        () = Follower::<Node>::new(&connection, &collector).run() => {}
        () = connection.follow_credentials() => {}
    }
}

/// Lists and watches one kind.
struct Follower<'a, K> {
    api: Api<K>,
    connection: Connection,
    collector: &'a Collector,
    /// The resourceVersion to resume from; None: from a new list.
    version: Option<String>,
    /// The server knows WatchList, as far as is known.
    streaming: bool,
    healthy: bool,
    backoff: Backoff,
}

/// What a watch brings next.
enum Next<K> {
    Event(WatchEvent<K>),
    /// The server ended the watch.
    End,
    /// Nothing came in time.
    Silence,
}

impl<'a, K: Watched> Follower<'a, K> {
    fn new(connection: &Connection, collector: &'a Collector) -> Follower<'a, K> {
        Follower {
            api: Api::all(connection.client()),
            connection: connection.clone(),
            collector,
            version: None,
            streaming: true,
            healthy: false,
            backoff: Backoff::default(),
        }
    }

    /// Ends only when nobody takes the updates.
    async fn run(mut self) {
        let mut renewals = self.connection.renewals();
        while !self.collector.is_closed() {
            let since = Instant::now();
            let outcome = self.attempt().await;
            let Some(pause) = self.pause_after(outcome, since.elapsed()) else { continue };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = renewals.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Watches, or lists where there is no version to watch from.
    async fn attempt(&mut self) -> Result<(), Failure> {
        match self.version.clone() {
            Some(version) => self.watch(false, &version).await,
            None if self.streaming => self.watch(true, "0").await,
            None => self.list().await,
        }
    }

    /// How long to wait after an attempt that took this long; None: go on at once.
    fn pause_after(&mut self, outcome: Result<(), Failure>, took: Duration) -> Option<Duration> {
        let failure = match outcome {
            Ok(()) if took >= SHORT || self.version.is_none() => return None,
            Ok(()) => None,
            Err(Failure::Gone) if self.version.take().is_some() => {
                info!(kind = K::NAME, "watch expired (410 Gone), relisting");
                None
            }
            // Servers without WatchList refuse it with 400 or 422.
            Err(Failure::Status(400 | 422, reason)) if self.version.is_none() && self.streaming => {
                debug!(kind = K::NAME, %reason, "WatchList unsupported, using paginated lists");
                self.streaming = false;
                return None;
            }
            Err(failure) => Some(failure),
        };
        if took > 2 * Backoff::MAX {
            self.backoff = Backoff::default();
        }
        let pause = self.backoff.next();
        Some(failure.map_or(pause, |failure| self.report_failure(&failure, pause)))
    }

    /// Reports the failure as health; returns the pause, or Retry-After where that is longer.
    fn report_failure(&mut self, failure: &Failure, pause: Duration) -> Duration {
        let sentence = self.connection.sentence(failure, K::NAME);
        debug!(kind = K::NAME, %sentence, ?pause, "watch failed, retrying");
        self.healthy = false;
        self.collector.health(K::KIND, Err(sentence));
        match failure {
            Failure::TooManyRequests(retry_after) => pause.max(*retry_after),
            _ => pause,
        }
    }

    /// Follows changes until the server ends the watch. With `listing`, the watch begins with a
    /// streamed list.
    async fn watch(&mut self, listing: bool, version: &str) -> Result<(), Failure> {
        let spread = (random() % u64::from(WATCH_TIME_SPREAD)) as u32;
        let params = WatchParams {
            label_selector: K::LABELS.map(str::to_string),
            timeout: Some(WATCH_TIME + spread),
            bookmarks: true,
            send_initial_events: listing,
            ..WatchParams::default()
        };
        let mut switches = self.connection.switches();
        let stream = self.api.watch(&params, version).await.map_err(|error| Failure::of(&error))?;
        pin_mut!(stream);
        self.set_healthy();
        if listing && !self.read_streamed_list(&mut stream).await? {
            return Ok(());
        }
        loop {
            let next = tokio::select! {
                next = next(&mut stream, SILENCE) => next?,
                Ok(()) = switches.changed() => return Ok(()),
            };
            let Next::Event(event) = next else { return Ok(()) };
            self.apply(event, false).await;
        }
    }

    /// True when the list is complete and its watch goes on; false when the server turned out not
    /// to know WatchList.
    async fn read_streamed_list(
        &mut self,
        stream: &mut (impl Stream<Item = kube::Result<WatchEvent<K>>> + Unpin),
    ) -> Result<bool, Failure> {
        self.report(SourceChange::ListStart(K::KIND)).await;
        loop {
            let event = match next(stream, LIST_SILENCE).await? {
                Next::Event(event) => event,
                Next::End => return Err(Failure::Unreachable("it broke a list off".into())),
                Next::Silence => {
                    self.streaming = false;
                    return Ok(false);
                }
            };
            let complete = matches!(&event, WatchEvent::Bookmark(bookmark) if ends_list(bookmark));
            self.apply(event, !complete).await;
            if complete {
                self.report(SourceChange::ListEnd(K::KIND)).await;
                return Ok(true);
            }
        }
    }

    /// Reads everything in pages, from servers without WatchList.
    async fn list(&mut self) -> Result<(), Failure> {
        let mut params = ListParams::default().limit(PAGE);
        params.label_selector = K::LABELS.map(str::to_string);
        let mut first = true;
        loop {
            let page = self.api.list(&params).await.map_err(|error| Failure::of(&error))?;
            self.set_healthy();
            if std::mem::take(&mut first) {
                self.report(SourceChange::ListStart(K::KIND)).await;
            }
            for object in page.items {
                self.report_object(&object, true).await;
            }
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                self.report(SourceChange::ListEnd(K::KIND)).await;
                self.version = page.metadata.resource_version.filter(|version| !version.is_empty());
                return match self.version {
                    Some(_) => Ok(()),
                    None => Err(Failure::InvalidResponse("a list without a version".into())),
                };
            }
        }
    }

    async fn apply(&mut self, event: WatchEvent<K>, listing: bool) {
        self.version = reached(listing, &event).or(self.version.take());
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                self.report_object(&object, listing).await;
            }
            WatchEvent::Deleted(object) => self.report(object.gone()).await,
            WatchEvent::Bookmark(_) if !listing => self.backoff = Backoff::default(),
            WatchEvent::Bookmark(_) | WatchEvent::Error(_) => {}
        }
    }

    async fn report_object(&self, object: &K, listing: bool) {
        let (change, problems) = object.convert();
        let triggered = object.last_change().filter(|_| !listing);
        match change {
            Some(change) => self.collector.change(change, problems, triggered).await,
            // What a list does not mention is gone.
            None if listing && problems.is_empty() => {}
            None => self.collector.change(object.gone(), problems, triggered).await,
        }
    }

    async fn report(&self, change: SourceChange) {
        self.collector.change(change, Vec::new(), None).await;
    }

    fn set_healthy(&mut self) {
        if !std::mem::replace(&mut self.healthy, true) {
            self.collector.health(K::KIND, Ok(()));
        }
    }
}

/// The next event of a watch; the server's error events are failures.
async fn next<K>(
    stream: &mut (impl Stream<Item = kube::Result<WatchEvent<K>>> + Unpin),
    patience: Duration,
) -> Result<Next<K>, Failure> {
    match timeout(patience, stream.next()).await {
        Ok(Some(Ok(WatchEvent::Error(status)))) => Err(Failure::of(&kube::Error::Api(status))),
        Ok(Some(Ok(event))) => Ok(Next::Event(event)),
        Ok(Some(Err(error))) => Err(Failure::of(&error)),
        Ok(None) => Ok(Next::End),
        Err(_) => Ok(Next::Silence),
    }
}

/// The resourceVersion from which a watch can be resumed after this event. None within a list:
/// what the list has not contained yet would be missed for ever.
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

/// Pauses between attempts: doubling, with half of each at random so that the nodes of a cluster
/// do not come in step.
#[derive(Default)]
struct Backoff {
    attempts: u32,
}

impl Backoff {
    const MIN: Duration = Duration::from_millis(250);
    const MAX: Duration = Duration::from_secs(10);

    fn next(&mut self) -> Duration {
        let whole = Self::MIN.saturating_mul(1 << self.attempts.min(16)).min(Self::MAX);
        self.attempts += 1;
        let half = whole / 2;
        half + Duration::from_millis(random() % u64::try_from(half.as_millis()).unwrap_or(1).max(1))
    }
}

/// Enough to keep nodes out of step; the standard library seeds it from the kernel.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
