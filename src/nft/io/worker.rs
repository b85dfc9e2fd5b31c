//! The thread that owns the kernel's rule set. Changes are merged while one batch is under way
//! (latest wins per frontend), so a slow kernel neither stalls the engine nor piles up work; the
//! dead man's switch and the look for drift live here too, because nobody else may speak to the
//! tables.

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tracing::{debug, error, info, warn};

use super::conntrack;
use super::writer::RulesetWriter;
use crate::common::backoff::Backoff;
use crate::host::trigger_time::TriggerTime;
use crate::model::Protocol;
use crate::model::forwarding::{Balancing, Forwarding, FrontendKey};
use crate::model::ruleset_changes::RulesetChanges;

/// How often somebody else's transactions are looked for: one small request, answered without a
/// dump.
const DRIFT_INTERVAL: Duration = Duration::from_secs(2);
/// Delays before a batch that the kernel refused is sent again.
const RETRY: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));

/// Frontends in one transaction: some ten milliseconds in the kernel. Without preemption nothing
/// else runs on that CPU meanwhile, neither the threads that keep BFD sessions nor anybody's
/// packets.
const STEP: usize = 250;

/// What became of a batch.
#[derive(Debug)]
pub struct Report {
    /// None: in the kernel. Else why not, in the kernel's words; it will be tried again.
    pub error: Option<String>,
    /// Time in the kernel and around it.
    pub took: Duration,
    /// From the oldest event in the batch to now; None for repairs.
    pub latency: Option<Duration>,
    /// From the oldest change of an endpoint to now, by two clocks; None where nobody says when
    /// that was.
    pub since_last_change: Option<Duration>,
    /// Set elements in the kernel now.
    pub elements: usize,
    /// Number of the last event whose changes were in the batch; 0 for repairs.
    pub generation: u64,
    /// Somebody had changed our tables and they were written anew.
    pub repaired: bool,
    /// Conntrack entries that were deleted: of removed UDP endpoints, and after a repair of flows
    /// that began while the rules were away.
    pub conntrack_deleted: usize,
}

/// Where a change began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// When this process heard of it.
    pub heard: Instant,
    /// When an endpoint changed, as its EndpointSlice says (annotation
    /// `endpoints.kubernetes.io/last-change-trigger-time`).
    pub last_change: Option<TriggerTime>,
}

impl Origin {
    /// Of two changes that are carried out together.
    fn oldest(self, other: Origin) -> Origin {
        let last_change = self.last_change.into_iter().chain(other.last_change).min();
        Origin { heard: self.heard.min(other.heard), last_change }
    }
}

/// What to do with the tables at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExit {
    /// Take them away.
    Remove,
    /// Leave them to the dead man's switch, or to a successor.
    Keep,
}

#[derive(Default)]
struct Pending {
    changes: RulesetChanges,
    origin: Option<Origin>,
    stop: Option<OnExit>,
}

#[derive(Default)]
struct Shared {
    pending: Mutex<Pending>,
    wake: Condvar,
}

impl Pending {
    fn began(&mut self, origin: Origin) {
        self.origin = Some(self.origin.map_or(origin, |known| known.oldest(origin)));
    }
}

impl Shared {
    fn with<T>(&self, f: impl FnOnce(&mut Pending) -> T) -> T {
        // A poisoned lock means a panic while merging maps; what is there is still the latest of
        // each.
        f(&mut self.pending.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The handle through which changes reach the thread.
pub struct DataPlane {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

impl DataPlane {
    /// Starts the thread. `dead_man` is the timeout of the dead man's switch; `report` is called
    /// after every batch.
    pub fn spawn(
        writer: RulesetWriter,
        dead_man: Duration,
        report: impl Fn(Report) + Send + 'static,
    ) -> std::io::Result<DataPlane> {
        let shared = Arc::new(Shared::default());
        let worker = Worker {
            shared: shared.clone(),
            writer,
            refresh: dead_man / 3,
            absences_told: 0,
            report: Box::new(report),
        };
        let thread = thread::Builder::new()
            .name("rule-set".into())
            .stack_size(256 * 1024)
            .spawn(move || worker.run())?;
        Ok(DataPlane { shared, thread })
    }

    /// Hands over a change.
    pub fn submit(&self, changes: RulesetChanges, origin: Origin) {
        self.shared.with(|pending| {
            pending.changes.merge(changes);
            pending.began(origin);
        });
        self.shared.wake.notify_one();
    }

    /// Writes what is pending, then leaves the tables as `how` says and ends the thread.
    pub fn stop(self, how: OnExit) {
        self.shared.with(|pending| pending.stop = Some(how));
        self.shared.wake.notify_one();
        let _ = self.thread.join();
    }
}

struct Worker {
    shared: Arc<Shared>,
    writer: RulesetWriter,
    refresh: Duration,
    /// How many families that the kernel lacks have been told of.
    absences_told: usize,
    report: Box<dyn Fn(Report) + Send>,
}

impl Worker {
    fn run(mut self) {
        let mut next_refresh = Instant::now() + self.refresh;
        let mut next_look = Instant::now() + DRIFT_INTERVAL;
        let mut failures = 0;
        let mut again: Option<Instant> = None;
        let mut loaded = false;
        loop {
            let now = Instant::now();
            let deadline =
                if loaded { next_refresh.min(next_look) } else { now + Duration::from_secs(3600) };
            let mut pending = self.wait(deadline.min(again.unwrap_or(deadline)), again);
            if !pending.changes.is_empty() {
                if self.apply(&mut pending.changes, pending.origin) {
                    loaded = true;
                    failures = 0;
                    again = None;
                } else {
                    self.put_back(pending.changes, pending.origin);
                    again = Some(Instant::now() + RETRY.delay(failures));
                    failures = failures.saturating_add(1);
                }
            }
            if let Some(how) = pending.stop {
                return self.finish(how);
            }
            let now = Instant::now();
            if loaded && now >= next_refresh {
                next_refresh = now + self.refresh;
                if let Err(error) = self.writer.refresh_alive() {
                    warn!(%error, "cannot refresh the dead man's switch");
                    next_look = now;
                }
            }
            if loaded && now >= next_look {
                next_look = now + DRIFT_INTERVAL;
                self.look_for_drift();
                if let Err(error) = self.writer.flush_deferred(STEP) {
                    warn!(%error, "cannot bring verdicts up to date with numbers of endpoints; looking whether the rules are as they should be");
                }
            }
        }
    }

    /// Takes what is pending, waiting until `deadline` for something to be. What the kernel refused
    /// stays until it is tried `again`; the order to stop does not wait.
    fn wait(&self, deadline: Instant, again: Option<Instant>) -> Pending {
        let guard = self.shared.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = |p: &mut Pending| p.stop.is_none() && (p.changes.is_empty() || again.is_some());
        let timeout = deadline.saturating_duration_since(Instant::now());
        let (mut guard, _) = self
            .shared
            .wake
            .wait_timeout_while(guard, timeout, idle)
            .unwrap_or_else(PoisonError::into_inner);
        match again {
            Some(again) if guard.stop.is_none() && Instant::now() < again => Pending::default(),
            _ => std::mem::take(&mut *guard),
        }
    }

    /// What failed goes below what came meanwhile: the later word still wins.
    fn put_back(&self, failed: RulesetChanges, origin: Option<Origin>) {
        self.shared.with(|pending| {
            let later = std::mem::replace(&mut pending.changes, failed);
            pending.changes.merge(later);
            origin.into_iter().for_each(|origin| pending.began(origin));
        });
    }

    /// True when all of it is in the kernel; else what is not stays in `changes`.
    fn apply(&mut self, changes: &mut RulesetChanges, origin: Option<Origin>) -> bool {
        let mut start = Instant::now();
        if changes.reset && changes.forwardings.len() > STEP {
            match self.writer.create_tables(changes) {
                Ok(laid) => changes.reset = !laid,
                // The same goes wrong again below, and is told there.
                Err(error) => debug!(%error, "cannot make empty tables"),
            }
        }
        loop {
            let step = changes.step(STEP);
            let last = changes.is_empty();
            if !self.transact(&step, origin.filter(|_| last), start) {
                let later = std::mem::replace(changes, step);
                changes.merge(later);
                return false;
            }
            if last {
                return true;
            }
            start = Instant::now();
        }
    }

    fn transact(
        &mut self,
        changes: &RulesetChanges,
        origin: Option<Origin>,
        start: Instant,
    ) -> bool {
        let result = self.writer.apply(changes);
        let end = Instant::now();
        if self.writer.absent().len() > self.absences_told {
            self.absences_told = self.writer.absent().len();
            for (family, reason) in self.writer.absent() {
                warn!(%family, %reason, "the kernel has no nf_tables for this family; serving the other one");
            }
        }
        let conntrack_deleted = if result.is_ok() { forget_removed(changes) } else { 0 };
        let error = result.as_ref().err().map(ToString::to_string);
        (self.report)(Report {
            error,
            took: end - start,
            latency: origin.map(|origin| end - origin.heard),
            since_last_change: origin.and_then(|origin| origin.last_change?.age()),
            elements: self.writer.elements(),
            generation: changes.generation,
            repaired: false,
            conntrack_deleted,
        });
        result.is_ok()
    }

    fn look_for_drift(&mut self) {
        match self.writer.in_sync() {
            Ok(true) => {}
            Ok(false) => {
                warn!(
                    "another program changed or removed Pinnace's nftables tables; writing them again"
                );
                let start = Instant::now();
                let error = self.writer.reload().err().map(|e| e.to_string());
                let (took, elements) = (start.elapsed(), self.writer.elements());
                let conntrack_deleted = if error.is_none() {
                    forget_untranslated(self.writer.compiler().forwardings().keys())
                } else {
                    0
                };
                (self.report)(Report {
                    error,
                    took,
                    latency: None,
                    since_last_change: None,
                    elements,
                    generation: 0,
                    repaired: true,
                    conntrack_deleted,
                });
            }
            Err(error) => warn!(%error, "cannot ask the kernel whether the rules are still there"),
        }
    }

    fn finish(mut self, how: OnExit) {
        match how {
            OnExit::Keep => info!("leaving the rules in place"),
            OnExit::Remove => match self.writer.cleanup() {
                Ok(()) => info!("removed the rules"),
                Err(error) => error!(%error, "cannot remove the rules; run `pinnace cleanup`"),
            },
        }
    }
}

/// Deletes the conntrack entries of UDP flows whose endpoint is gone: without a connection to end,
/// they would go on for ever.
fn forget_removed(changes: &RulesetChanges) -> usize {
    let udp: Vec<_> = changes
        .forwardings
        .iter()
        .filter(|(key, _)| key.protocol == Protocol::Udp)
        .map(|(key, forwarding)| (*key, forwarding.as_deref().map(serving).unwrap_or_default()))
        .collect();
    if udp.is_empty() {
        return 0;
    }
    conntrack::delete_stale(&udp).unwrap_or_else(|error| {
        warn!(%error, "cannot delete conntrack entries of removed UDP endpoints; such flows end when they time out");
        0
    })
}

/// Deletes the conntrack entries of flows that began while the rules were away: they would pass by
/// those that are back.
fn forget_untranslated<'a>(frontends: impl Iterator<Item = &'a FrontendKey>) -> usize {
    conntrack::delete_untranslated(frontends.copied()).unwrap_or_else(|error| {
        warn!(%error, "cannot delete conntrack entries made while the rules were away; such flows are served when they have timed out");
        0
    })
}

/// Every backend to which a flow of this frontend may still go.
fn serving(forwarding: &Forwarding) -> Vec<SocketAddr> {
    [Some(&forwarding.internal), forwarding.external.as_ref()]
        .into_iter()
        .flatten()
        .flat_map(|target| match target {
            Balancing::FlowHash(backends) | Balancing::ClientIp(backends) => backends.as_slice(),
            Balancing::Reject | Balancing::Drop => &[],
        })
        .map(|backend| SocketAddr::new(backend.address, backend.port))
        .collect()
}
