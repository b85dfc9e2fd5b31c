//! What the watches reported and the engine has not taken yet: the one batching stage between the
//! API server and the engine.

use std::cell::RefCell;
use std::collections::BTreeMap;

use tokio::sync::{Notify, mpsc, watch};
use tracing::info;

use super::client::Connection;
use crate::model::source_update::SourceUpdate;
use crate::model::state::SourceProblem;
use crate::model::trigger_time::TriggerTime;
use crate::model::{Kind, SourceChange};

/// Maximum number of changes in one update.
const BATCH: usize = 256;
/// Maximum number of objects whose problems are reported; more are counted.
const PROBLEMS: usize = 200;

/// Where the watches put what they receive, all in one thread. While the engine's queue is full,
/// changes collect here; while the batch is full, the watches wait.
pub(super) struct Collector {
    batch: RefCell<Batch>,
    filled: Notify,
    taken: Notify,
    updates: mpsc::Sender<SourceUpdate>,
}

impl Collector {
    pub(super) fn new(
        connection: &Connection,
        updates: mpsc::Sender<SourceUpdate>,
        synced: watch::Sender<bool>,
    ) -> Collector {
        Collector {
            batch: RefCell::new(Batch::new(connection, synced)),
            filled: Notify::new(),
            taken: Notify::new(),
            updates,
        }
    }

    /// Hands updates to the engine until it takes no more.
    pub(super) async fn run(&self) {
        while let Ok(permit) = self.updates.reserve().await {
            let update = loop {
                if let Some(update) = self.batch.borrow_mut().take() {
                    break update;
                }
                tokio::select! {
                    () = self.filled.notified() => {}
                    () = self.updates.closed() => return,
                }
            };
            permit.send(update);
            self.taken.notify_waiters();
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.updates.is_closed()
    }

    /// Adds a change, what is wrong with its object, and when it was triggered. Returns when there
    /// is room for the next.
    pub(super) async fn change(
        &self,
        change: SourceChange,
        problems: Vec<String>,
        triggered: Option<TriggerTime>,
    ) {
        self.batch.borrow_mut().change(change, problems, triggered);
        self.filled.notify_one();
        while self.batch.borrow().is_full() {
            self.taken.notified().await;
        }
    }

    /// The watch of this kind works, or does not.
    pub(super) fn health(&self, kind: Kind, health: Result<(), String>) {
        self.batch.borrow_mut().health[kind as usize] = Some(health);
        self.filled.notify_one();
    }
}

struct Batch {
    connection: Connection,
    /// Becomes true with the first complete update, whether or not the engine takes it.
    synced: watch::Sender<bool>,
    changes: Vec<SourceChange>,
    /// When the oldest of the changes was triggered.
    last_change: Option<TriggerTime>,
    /// Kinds that have been listed completely, by [`Kind`].
    listed: [bool; Kind::ALL.len()],
    /// By [`Kind`]; None before the first answer.
    health: [Option<Result<(), String>>; Kind::ALL.len()],
    reported_health: Option<Result<(), String>>,
    problems: BTreeMap<(Kind, String), Vec<String>>,
    /// More than [`PROBLEMS`] objects have problems.
    more: bool,
}

impl Batch {
    fn new(connection: &Connection, synced: watch::Sender<bool>) -> Batch {
        Batch {
            connection: connection.clone(),
            synced,
            changes: Vec::new(),
            last_change: None,
            listed: [false; Kind::ALL.len()],
            health: std::array::from_fn(|_| None),
            reported_health: None,
            problems: BTreeMap::new(),
            more: false,
        }
    }

    fn is_full(&self) -> bool {
        self.changes.len() >= BATCH
    }

    fn change(
        &mut self,
        change: SourceChange,
        problems: Vec<String>,
        triggered: Option<TriggerTime>,
    ) {
        self.note(&change, problems);
        self.changes.push(change);
        self.last_change = self.last_change.into_iter().chain(triggered).min();
    }

    /// None when there is nothing new.
    fn take(&mut self) -> Option<SourceUpdate> {
        let health = self.changed_health();
        if self.changes.is_empty() && health.is_none() {
            return None;
        }
        let synced = self.listed.iter().all(|listed| *listed);
        if synced {
            self.synced.send_if_modified(|synced| !std::mem::replace(synced, true));
        }
        Some(SourceUpdate {
            changes: std::mem::take(&mut self.changes),
            problems: self.reported_problems(),
            synced,
            health,
            last_change: self.last_change.take(),
        })
    }

    /// The health to report if it differs from what was reported last: unhealthy as soon as one
    /// kind is, healthy when all are.
    fn changed_health(&mut self) -> Option<Result<(), String>> {
        let failed = self.health.iter().flatten().find(|health| health.is_err()).cloned();
        let all_known = self.health.iter().all(Option::is_some);
        let health = failed.or_else(|| all_known.then_some(Ok(())))?;
        if self.reported_health.as_ref() == Some(&health) {
            return None;
        }
        if health.is_ok() {
            info!(server = %self.connection.server(), "watching services, endpointslices and nodes");
        }
        self.reported_health = Some(health.clone());
        Some(health)
    }

    fn note(&mut self, change: &SourceChange, problems: Vec<String>) {
        let object = match change {
            SourceChange::ListStart(kind) => return self.problems.retain(|(of, _), _| of != kind),
            SourceChange::ListEnd(kind) => return self.listed[*kind as usize] = true,
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

    fn reported_problems(&mut self) -> Vec<SourceProblem> {
        let problem = |object: Option<String>, reason: String| SourceProblem {
            source: "API server".into(),
            object,
            note: false,
            reason,
        };
        let mut problems: Vec<SourceProblem> = self
            .problems
            .iter()
            .map(|((_, object), reasons)| problem(Some(object.clone()), reasons.join("; ")))
            .collect();
        self.more &= self.problems.len() >= PROBLEMS;
        if self.more {
            problems.push(problem(None, format!("more than {PROBLEMS} objects have problems")));
        }
        problems
    }
}

#[cfg(test)]
#[path = "batch_tests.rs"]
mod tests;
