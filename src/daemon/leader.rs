//! The daemon's end of the writer: competes for the Lease where the source is the API server, and
//! is nothing where it is a directory.

use std::collections::BTreeMap;
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
use crate::k8s::io::patcher::FailedPatch;
use crate::k8s::status::StatusPatch;
use crate::model::ObjectKey;
use crate::model::diagnostic::Diagnostic;
use crate::model::role::Role;

/// Where the Lease is when nobody says anything: in pods and on hosts alike, or each of them would
/// have a writer.
const NAMESPACE: &str = "kube-system";
/// How long a stop may take for the sake of others, who would otherwise wait until the Lease has
/// expired.
const RELEASE: Duration = Duration::from_secs(1);

/// Where the Lease is: where the settings say, else in [`NAMESPACE`].
pub(crate) fn lease_namespace(settings: &Settings) -> String {
    settings.namespace.as_deref().unwrap_or(NAMESPACE).to_owned()
}

/// None: before it is started, and with manifests, where every node decides for itself.
#[derive(Default)]
pub(super) struct Leader(Option<leader::LeaderTasks>);

impl Leader {
    /// Begins to compete for the Lease, once there is a connection; nothing happens when it has
    /// begun already.
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

    /// What the engine must know next. Cancel safe.
    pub async fn next(&mut self) -> Vec<Event> {
        let Some(writer) = &mut self.0 else { return std::future::pending().await };
        tokio::select! {
            Some(Leadership { writer, holder, trouble }) = writer.tenures.recv() => {
                let role = if writer { Role::Leader } else { Role::Follower };
                vec![Event::Leader(holder), Event::Role(role), Event::LeaderHealth(trouble.map_or(Ok(()), Err))]
            }
            Some(FailedPatch { key, resource_version, refusal }) = writer.losses.recv() => vec![Event::PatchFailed { key, resource_version, refusal }],
            else => std::future::pending().await,
        }
    }

    /// What the engine wants written.
    pub fn publish(&self, publications: BTreeMap<ObjectKey, StatusPatch>) {
        if let Some(writer) = self.0.as_ref().filter(|_| !publications.is_empty()) {
            // Nobody reads it any more: the process is about to end.
            drop(writer.publications.send(publications));
        }
    }

    /// Sends a notice as an Event, where this node is the one to do so.
    pub fn tell(&self, notice: Diagnostic, engine: &Engine, node: &str) {
        let Some(writer) = self.0.as_ref().filter(|_| events::reported_by(&notice, engine.role()))
        else {
            return;
        };
        let subject = match notice.service {
            Some(key) => {
                let record = engine.index().service(&key).and_then(|service| service.api.as_ref());
                Subject::Service(key, record.map(|record| record.uid.clone()))
            }
            None => Subject::Node(notice.node.unwrap_or_else(|| node.into())),
        };
        let told = QueuedEvent {
            subject,
            warning: notice.warning,
            reason: notice.reason,
            message: notice.message,
        };
        // One too many is in the log all the same.
        if writer.events.try_send(told).is_err() {
            writer.dropped.inc();
        }
    }

    /// Releases the Lease, unless the API server lets us wait for long.
    pub async fn stop(self) {
        if let Some(writer) = self.0
            && tokio::time::timeout(RELEASE, writer.stop()).await.is_err()
        {
            info!(
                "the Lease could not be released in time: another node takes it over when it has expired"
            );
        }
    }
}
