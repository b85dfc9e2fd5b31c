//! The thread that owns the tables in the kernel. Changes that arrive while one is being applied
//! are merged (the latest wins per frontend), so a slow kernel neither stalls the engine nor builds
//! up a queue. The thread also refreshes the dead man's switch and checks for drift, because only
//! it accesses the tables. The steps of a change: see [`crate::nft::compiler`].

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tracing::{debug, error, info, warn};

use super::conntrack;
use super::writer::RulesetWriter;
use crate::common::backoff::Backoff;
use crate::host::time_of_day::time_of_day;
use crate::model::Protocol;
use crate::model::forwarding::{Balancing, Forwarding, FrontendKey};
use crate::model::on_exit::OnExit;
use crate::model::ruleset_changes::RulesetChanges;
use crate::model::trigger_time::TriggerTime;

/// Interval of the drift check: one small request while no other program commits to nftables.
const DRIFT_INTERVAL: Duration = Duration::from_secs(2);
/// Delays before a batch that the kernel refused is sent again.
const RETRY: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));

/// Maximum number of frontends in one transaction, which takes some ten milliseconds in the kernel.
/// Without preemption nothing else runs on that CPU meanwhile: no BFD thread and no packet
/// processing.
const STEP: usize = 250;

/// Outcome of a transaction.
#[derive(Debug)]
pub struct Report {
    /// Why the transaction failed; it is retried. None: the kernel acknowledged it.
    pub error: Option<String>,
    /// Duration of staging, transaction and commit.
    pub took: Duration,
    /// Time since the oldest event in the transaction; None for repairs.
    pub latency: Option<Duration>,
    /// Time since the oldest change of an endpoint, by the wall clocks of two hosts; None without a
    /// trigger time.
    pub since_last_change: Option<Duration>,
    /// Number of set elements in the kernel.
    pub elements: usize,
    /// Generation of the last change in the transaction; 0 for repairs.
    pub generation: u64,
    /// The transaction repaired drift.
    pub repaired: bool,
    /// Number of deleted conntrack entries: those of removed UDP endpoints, and after a repair those
    /// of flows that began without rules.
    pub conntrack_deleted: usize,
}

/// Origin of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// When this process received it.
    pub heard: Instant,
    /// When an endpoint changed, as its EndpointSlice says (annotation
    /// `endpoints.kubernetes.io/last-change-trigger-time`).
    pub last_change: Option<TriggerTime>,
}

impl Origin {
    /// The origin of two merged changes.
    fn oldest(self, other: Origin) -> Origin {
        let last_change = self.last_change.into_iter().chain(other.last_change).min();
        Origin { heard: self.heard.min(other.heard), last_change }
    }
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
        // A poisoned lock means a panic while merging maps; each entry is still the latest.
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
    /// after every transaction that changes frontends or repairs drift.
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
            absences_logged: 0,
            report: Box::new(report),
        };
        let thread = thread::Builder::new()
            .name("rule-set".into())
            .stack_size(256 * 1024)
            .spawn(move || worker.run())?;
        Ok(DataPlane { shared, thread })
    }

    /// Queues a change.
    pub fn submit(&self, changes: RulesetChanges, origin: Origin) {
        self.shared.with(|pending| {
            pending.changes.merge(changes);
            pending.began(origin);
        });
        self.shared.wake.notify_one();
    }

    /// Applies pending changes, then removes or keeps the tables and ends the thread.
    pub fn stop(self, on_exit: OnExit) {
        self.shared.with(|pending| pending.stop = Some(on_exit));
        self.shared.wake.notify_one();
        let _ = self.thread.join();
    }
}

struct Worker {
    shared: Arc<Shared>,
    writer: RulesetWriter,
    refresh: Duration,
    /// Number of families whose absence has been logged.
    absences_logged: usize,
    report: Box<dyn Fn(Report) + Send>,
}

impl Worker {
    fn run(mut self) {
        let mut next_refresh = Instant::now() + self.refresh;
        let mut next_check = Instant::now() + DRIFT_INTERVAL;
        let mut failures = 0;
        let mut retry_at: Option<Instant> = None;
        let mut loaded = false;
        loop {
            let now = Instant::now();
            let deadline =
                if loaded { next_refresh.min(next_check) } else { now + Duration::from_secs(3600) };
            let mut pending = self.wait(deadline.min(retry_at.unwrap_or(deadline)), retry_at);
            if !pending.changes.is_empty() {
                if self.apply(&mut pending.changes, pending.origin) {
                    loaded = true;
                    failures = 0;
                    retry_at = None;
                } else {
                    self.put_back(pending.changes, pending.origin);
                    retry_at = Some(Instant::now() + RETRY.delay(failures));
                    failures = failures.saturating_add(1);
                }
            }
            if let Some(on_exit) = pending.stop {
                return self.finish(on_exit);
            }
            let now = Instant::now();
            if loaded && now >= next_refresh {
                next_refresh = now + self.refresh;
                if let Err(error) = self.writer.refresh_alive() {
                    warn!(%error, "dead man's switch not refreshed, checking for drift");
                    next_check = now;
                }
            }
            if loaded && now >= next_check {
                next_check = now + DRIFT_INTERVAL;
                self.repair_drift();
            }
        }
    }

    /// Waits until `deadline` for pending changes and takes them. A failed change stays until
    /// `retry_at`; a stop does not wait.
    fn wait(&self, deadline: Instant, retry_at: Option<Instant>) -> Pending {
        let guard = self.shared.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let idle =
            |p: &mut Pending| p.stop.is_none() && (p.changes.is_empty() || retry_at.is_some());
        let timeout = deadline.saturating_duration_since(Instant::now());
        let (mut guard, _) = self
            .shared
            .wake
            .wait_timeout_while(guard, timeout, idle)
            .unwrap_or_else(PoisonError::into_inner);
        match retry_at {
            Some(at) if guard.stop.is_none() && Instant::now() < at => Pending::default(),
            _ => std::mem::take(&mut *guard),
        }
    }

    /// Puts failed changes below those that arrived meanwhile: the later change wins.
    fn put_back(&self, failed: RulesetChanges, origin: Option<Origin>) {
        self.shared.with(|pending| {
            let later = std::mem::replace(&mut pending.changes, failed);
            pending.changes.merge(later);
            origin.into_iter().for_each(|origin| pending.began(origin));
        });
    }

    /// Applies changes in transactions of up to [`STEP`] frontends. False: the rest stays in
    /// `changes`.
    fn apply(&mut self, changes: &mut RulesetChanges, origin: Option<Origin>) -> bool {
        let mut start = Instant::now();
        if changes.reset && changes.forwardings.len() > STEP {
            match self.writer.create_tables(changes) {
                Ok(created) => changes.reset = !created,
                // The first step fails likewise and reports it.
                Err(error) => debug!(%error, "empty tables not created"),
            }
        }
        loop {
            let step = changes.step(STEP);
            let last = changes.is_empty();
            if !self.apply_step(&step, origin.filter(|_| last), start) {
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

    fn apply_step(
        &mut self,
        changes: &RulesetChanges,
        origin: Option<Origin>,
        start: Instant,
    ) -> bool {
        let result = self.writer.apply(changes);
        let end = Instant::now();
        self.log_absences();
        let conntrack_deleted = if result.is_ok() { delete_stale(changes) } else { 0 };
        let error = result.as_ref().err().map(ToString::to_string);
        (self.report)(Report {
            error,
            took: end - start,
            latency: origin.map(|origin| end - origin.heard),
            since_last_change: origin.and_then(|origin| origin.last_change?.age(time_of_day())),
            elements: self.writer.elements(),
            generation: changes.generation,
            repaired: false,
            conntrack_deleted,
        });
        result.is_ok()
    }

    fn log_absences(&mut self) {
        let absent = self.writer.absent();
        if absent.len() > self.absences_logged {
            self.absences_logged = absent.len();
            for (family, reason) in absent {
                warn!(%family, %reason, "nf_tables unsupported for this family, serving the other one");
            }
        }
    }

    fn repair_drift(&mut self) {
        match self.writer.in_sync() {
            Ok(true) => return,
            Ok(false) => warn!("ruleset drift detected, resyncing"),
            Err(error) => {
                warn!(%error, "drift check failed");
                return;
            }
        }
        let start = Instant::now();
        let error = self.writer.reload().err().map(|error| error.to_string());
        let took = start.elapsed();
        let conntrack_deleted = if error.is_none() {
            delete_untranslated(self.writer.compiler().forwardings().keys())
        } else {
            0
        };
        (self.report)(Report {
            error,
            took,
            latency: None,
            since_last_change: None,
            elements: self.writer.elements(),
            generation: 0,
            repaired: true,
            conntrack_deleted,
        });
    }

    fn finish(mut self, on_exit: OnExit) {
        match on_exit {
            OnExit::Keep => info!("ruleset kept"),
            OnExit::Remove => match self.writer.cleanup() {
                Ok(()) => info!("ruleset removed"),
                Err(error) => error!(%error, "ruleset not removed; run `pinnace cleanup`"),
            },
        }
    }
}

/// Deletes the conntrack entries of UDP flows whose endpoint was removed: UDP has no connection that
/// ends, so they would never move to another endpoint. Returns their number.
fn delete_stale(changes: &RulesetChanges) -> usize {
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
        warn!(%error, "conntrack entries of removed UDP endpoints not deleted; these flows end when they time out");
        0
    })
}

/// Deletes the conntrack entries of flows that began without rules: conntrack would keep them
/// untranslated. Returns their number.
fn delete_untranslated<'a>(frontends: impl Iterator<Item = &'a FrontendKey>) -> usize {
    conntrack::delete_untranslated(frontends.copied()).unwrap_or_else(|error| {
        warn!(%error, "conntrack entries of untranslated flows not deleted; these flows are served after they time out");
        0
    })
}

/// Every backend that serves this frontend.
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
