//! Leader election as the daemon sees it: this node competes for the Lease where the source is the
//! API server. Without one there is nothing to elect.

use std::time::Duration;

use tracing::info;

use crate::config::Settings;
use crate::engine::{Engine, Event};
use crate::http::metrics::Metrics;
use crate::k8s::events;
use crate::k8s::events::Subject;
use crate::k8s::io::client::Connection;
use crate::k8s::io::event_sink::QueuedEvent;
use crate::k8s::io::leader;
use crate::k8s::io::lease::Leadership;
use crate::k8s::patch_queue::{FailedPatch, StatusPatches};
use crate::model::diagnostic::Diagnostic;
use crate::model::role::Role;

/// The default namespace of the Lease. It is the same in pods and on hosts, or both would have a
/// leader.
const NAMESPACE: &str = "kube-system";
/// How long a stop waits for the release of the Lease; without it the others wait until the Lease
/// has expired.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);

/// The namespace of the Lease.
pub(crate) fn lease_namespace(settings: &Settings) -> String {
    settings.namespace.as_deref().unwrap_or(NAMESPACE).to_owned()
}

/// None before it is started, and with manifests, where every node decides for itself.
#[derive(Default)]
pub(super) struct Leader(Option<leader::LeaderTasks>);

impl Leader {
    /// Begins to compete for the Lease once there is a connection. Later calls have no effect.
    pub fn start(
        &mut self,
        connection: Option<&Connection>,
        settings: &Settings,
        metrics: &Metrics,
    ) {
        if let (None, Some(connection)) = (&self.0, connection) {
            let namespace = lease_namespace(settings);
            self.0 = Some(leader::LeaderTasks::start(
                connection,
                namespace,
                settings.node_name.to_string(),
                metrics.events_dropped(),
            ));
        }
    }

    /// The next events for the engine. Cancel safe.
    pub async fn next(&mut self) -> Vec<Event> {
        let Some(tasks) = &mut self.0 else { return std::future::pending().await };
        tokio::select! {
            Some(Leadership { leader, holder, trouble }) = tasks.leadership.recv() => {
                let role = if leader { Role::Leader } else { Role::Follower };
                let health = Event::LeaderHealth(trouble.map_or(Ok(()), Err));
                vec![Event::Leader(holder), Event::Role(role), health]
            }
            Some(FailedPatch { key, resource_version, refusal }) = tasks.failed.recv() => {
                vec![Event::PatchFailed { key, resource_version, refusal }]
            }
            else => std::future::pending().await,
        }
    }

    /// Writes the patches to the status of Services.
    pub fn publish(&self, patches: StatusPatches) {
        if let Some(tasks) = self.0.as_ref().filter(|_| !patches.is_empty()) {
            // The patcher has ended when the process is about to end.
            drop(tasks.patches.send(patches));
        }
    }

    /// Sends the diagnostic as an Event, where this node is the one to report it.
    pub fn tell(&self, diagnostic: Diagnostic, engine: &Engine, node: &str) {
        let Some(tasks) =
            self.0.as_ref().filter(|_| events::reported_by(&diagnostic, engine.role()))
        else {
            return;
        };
        let subject = match diagnostic.service {
            Some(key) => {
                let record = engine.index().service(&key).and_then(|service| service.api.as_ref());
                Subject::Service(key, record.map(|record| record.uid.clone()))
            }
            None => Subject::Node(diagnostic.node.unwrap_or_else(|| node.into())),
        };
        let event = QueuedEvent {
            subject,
            warning: diagnostic.warning,
            reason: diagnostic.reason,
            message: diagnostic.message,
        };
        // A dropped Event is in the log all the same.
        if tasks.events.try_send(event).is_err() {
            tasks.dropped.inc();
        }
    }

    /// Releases the Lease, unless the API server takes too long.
    pub async fn stop(self) {
        if let Some(tasks) = self.0
            && tokio::time::timeout(RELEASE_TIMEOUT, tasks.stop()).await.is_err()
        {
            info!(
                "failed to release lease in time: another node becomes leader when it has expired"
            );
        }
    }
}
