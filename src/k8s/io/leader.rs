//! Starts the tasks of a candidate for leadership: one for the Lease, one for the patches, one for
//! the Events.

use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use tokio::sync::{RwLock, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tracing::warn;

use super::client::Connection;
use super::event_sink::QueuedEvent;
use super::lease::{Leadership, LeaseChannels};
use super::patcher::{PatchWriter, PatcherChannels};
use super::{event_sink, lease, patcher};
use crate::k8s::patch_queue::{FailedPatch, StatusPatches};

/// The ends of the channels, for the owner of the engine.
pub struct LeaderTasks {
    /// The leadership, whenever it changes.
    pub leadership: mpsc::Receiver<Leadership>,
    /// To be written.
    pub patches: mpsc::UnboundedSender<StatusPatches>,
    /// To be sent as Events.
    pub events: mpsc::Sender<QueuedEvent>,
    /// Counts the Events that were never sent.
    pub dropped: Counter,
    /// Patches that were not written.
    pub failed: mpsc::UnboundedReceiver<FailedPatch>,
    stop: oneshot::Sender<()>,
    lease: JoinHandle<()>,
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
        // Unbounded, but a plan names each Service once, and the engine decides once about each of
        // its versions.
        let (patches_in, patches) = mpsc::unbounded_channel();
        let (failed_in, failed) = mpsc::unbounded_channel();
        let (leadership_in, leadership) = mpsc::channel(4);
        let (deadline_in, deadline) = watch::channel(None);
        let (forbidden_in, forbidden) = mpsc::channel(1);
        let (stop, stopped) = oneshot::channel();

        let client = connection.client();
        let in_flight = Arc::new(RwLock::new(()));
        tokio::spawn(patcher::run(
            PatchWriter::new(client.clone(), deadline, in_flight.clone()),
            PatcherChannels { patches, failed: failed_in, forbidden: forbidden_in },
        ));
        let events = event_sink::start(client, &node, dropped.clone());
        let channels = LeaseChannels {
            leadership: leadership_in,
            deadline: deadline_in,
            in_flight,
            forbidden,
            renewals: connection.renewals(),
            stop: stopped,
        };
        let lease = tokio::spawn(lease::run(connection.clone(), namespace, node, channels));
        LeaderTasks { leadership, patches: patches_in, events, dropped, failed, stop, lease }
    }

    /// Releases the Lease, so that nobody has to wait until it expires.
    pub async fn stop(self) {
        drop((self.stop, self.leadership));
        if let Err(error) = self.lease.await {
            warn!(%error, "the task of the Lease had ended");
        }
    }
}
