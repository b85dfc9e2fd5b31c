//! Starts what a node needs to become the writer: one task for the Lease, one for the statuses.

use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use tokio::sync::{RwLock, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tracing::warn;

use super::client::Connection;
use super::event_sink::QueuedEvent;
use super::lease::{Leadership, LeaseChannels};
use super::patcher::{FailedPatch, StatusPatches};
use super::{event_sink, lease, patcher};

/// The ends of the channels, for whoever runs the engine.
pub struct LeaderTasks {
    /// Who writes, whenever that changes.
    pub tenures: mpsc::Receiver<Leadership>,
    /// What the engine publishes.
    pub publications: mpsc::UnboundedSender<StatusPatches>,
    /// For people, as Events.
    pub events: mpsc::Sender<QueuedEvent>,
    /// Counts the Events that were never sent.
    pub dropped: Counter,
    /// What was not written.
    pub losses: mpsc::UnboundedReceiver<FailedPatch>,
    stop: oneshot::Sender<()>,
    lease: JoinHandle<std::io::Result<()>>,
}

impl LeaderTasks {
    /// Begins to compete for the Lease in `namespace`, on behalf of `node`. To be called within a
    /// runtime.
    pub fn start(
        connection: &Connection,
        namespace: String,
        node: String,
        dropped: Counter,
    ) -> LeaderTasks {
        let (tenures_in, tenures) = mpsc::channel(4);
        // Unbounded, but a plan names each Service once and the engine publishes only once for each
        // version of it.
        let (publications, wanted) = mpsc::unbounded_channel();
        let (right_in, right) = watch::channel(None);
        let (stop, stopped) = oneshot::channel();
        let (losses_in, losses) = mpsc::unbounded_channel();
        let (forbidden_in, forbidden) = mpsc::channel(1);
        let client = connection.client();
        let writing = Arc::new(RwLock::new(()));
        tokio::spawn(patcher::run(
            client.clone(),
            wanted,
            right,
            writing.clone(),
            losses_in,
            forbidden_in,
        ));
        let events = event_sink::start(client.clone(), &node, dropped.clone());
        let ends = LeaseChannels {
            tenures: tenures_in,
            right: right_in,
            writing,
            forbidden,
            renewals: connection.renewals(),
            stop: stopped,
        };
        let lease = tokio::spawn(lease::run(connection.clone(), namespace, node, ends));
        LeaderTasks { tenures, publications, events, dropped, losses, stop, lease }
    }

    /// Releases the Lease, so that nobody has to wait until it expires.
    pub async fn stop(self) {
        drop((self.stop, self.tenures));
        match self.lease.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "the Lease could not be kept"),
            Err(error) => warn!(%error, "the task of the Lease had ended"),
        }
    }
}
