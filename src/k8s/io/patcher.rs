//! Writes the status of Services: the patches of [`crate::k8s::patch_queue`], and only while this
//! process is the leader. A patch that came too late is refused by the API server and goes back to
//! the engine, which decides anew.

use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::core::v1::Service;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::{RwLock, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::failure::Failure;
use super::lease::WriteDeadline;
use super::permissions::Permissions;
use crate::k8s::convert::CLEANUP_FINALIZER;
use crate::k8s::leader::REQUEST_TIMEOUT;
use crate::k8s::patch_queue::{FailedPatch, PatchOutcome, PatchQueue, RETRY, StatusPatches};
use crate::k8s::status::StatusPatch;
use crate::model::{Ingress, IngressPort, ObjectKey};

/// Everything a request needs; clones share it.
#[derive(Clone)]
pub struct PatchWriter {
    client: Client,
    deadline: watch::Receiver<WriteDeadline>,
    /// Held for reading while a request is under way.
    in_flight: Arc<RwLock<()>>,
    permissions: Arc<Permissions>,
}

/// The ends of the channels to the engine and to the Lease.
pub struct PatcherChannels {
    pub patches: mpsc::UnboundedReceiver<StatusPatches>,
    /// Patches that were not written.
    pub failed: mpsc::UnboundedSender<FailedPatch>,
    /// The credentials may not write at all; the API server's message.
    pub forbidden: mpsc::Sender<String>,
}

type Request = (ObjectKey, StatusPatch, PatchOutcome);

/// Writes patches until one of the channels is closed.
pub async fn run(mut writer: PatchWriter, mut channels: PatcherChannels) {
    let epoch = Instant::now();
    let mut queue = PatchQueue::new(epoch.elapsed());
    let mut requests: JoinSet<Request> = JoinSet::new();
    loop {
        let may_write = writer.deadline.borrow_and_update().is_some_and(|end| Instant::now() < end);
        if !may_write {
            queue.clear().into_iter().for_each(|failed| channels.give_back(failed));
        }
        while let Some((key, patch)) = queue.next(epoch.elapsed()) {
            requests.spawn(writer.clone().request(key, patch));
        }

        let wake = queue.poll_timeout();
        let pause = wake.unwrap_or_default().saturating_sub(epoch.elapsed());
        tokio::select! {
            patches = channels.patches.recv() => match patches {
                Some(patches) => queue.push(patches),
                None => return,
            },
            changed = writer.deadline.changed() => if changed.is_err() { return },
            Some(done) = requests.join_next() => {
                let Ok((key, patch, outcome)) = done else { continue };
                report(&key, &outcome);
                let failed = queue.handle_outcome(key, patch, &outcome, epoch.elapsed());
                channels.finish(failed, outcome);
            }
            () = sleep(pause), if wake.is_some() => {}
        }
    }
}

impl PatcherChannels {
    /// The engine does not listen any more when the process is about to end.
    fn give_back(&self, failed: FailedPatch) {
        drop(self.failed.send(failed));
    }

    fn finish(&self, failed: Option<FailedPatch>, outcome: PatchOutcome) {
        if let Some(failed) = failed {
            self.give_back(failed);
        }
        if let PatchOutcome::Forbidden(why) = outcome {
            // A full channel says the same already.
            drop(self.forbidden.try_send(why));
        }
    }
}

fn report(service: &ObjectKey, outcome: &PatchOutcome) {
    match outcome {
        PatchOutcome::Dropped(why) => debug!(%service, "status not written: {why}"),
        PatchOutcome::Unanswered(_, why) | PatchOutcome::Failed(why) => {
            warn!(%service, "status not written: {why}; retrying");
        }
        PatchOutcome::Written | PatchOutcome::Refused(_) | PatchOutcome::Forbidden(_) => {}
    }
}

impl PatchWriter {
    /// Writes while `deadline` allows it.
    pub fn new(
        client: Client,
        deadline: watch::Receiver<WriteDeadline>,
        in_flight: Arc<RwLock<()>>,
    ) -> PatchWriter {
        let permissions = Permissions::new(client.clone(), ("patch", "services", "status"));
        PatchWriter { client, deadline, in_flight, permissions: Arc::new(permissions) }
    }

    async fn request(self, key: ObjectKey, patch: StatusPatch) -> Request {
        let outcome = match self.write(&key, &patch).await {
            PatchOutcome::Forbidden(why) => {
                forbidden_outcome(why, self.permissions.denied("").await)
            }
            outcome => outcome,
        };
        (key, patch, outcome)
    }

    async fn write(&self, key: &ObjectKey, status_patch: &StatusPatch) -> PatchOutcome {
        let _in_flight = self.in_flight.read().await;
        let api: Api<Service> = Api::namespaced(self.client.clone(), &key.namespace);
        let body = Patch::Strategic(patch(status_patch));
        let parameters =
            PatchParams { field_manager: Some("pinnace".into()), ..PatchParams::default() };

        // Directly before it is sent: this process may have been stopped since the decision.
        if !self.deadline.borrow().is_some_and(|end| Instant::now() < end) {
            return PatchOutcome::Dropped("this node is no longer the leader".into());
        }
        match timeout(REQUEST_TIMEOUT, api.patch_status(&key.name, &parameters, &body)).await {
            Err(_) => PatchOutcome::Unanswered(RETRY.min, "no answer in time".into()),
            Ok(Ok(_)) => PatchOutcome::Written,
            Ok(Err(error)) => outcome_of(Failure::of(&error)),
        }
    }
}

fn outcome_of(failure: Failure) -> PatchOutcome {
    match failure {
        Failure::Forbidden(why) => PatchOutcome::Forbidden(why),
        Failure::TooManyRequests(time) => {
            PatchOutcome::Unanswered(time, "too many requests".into())
        }
        Failure::Status(code @ (404 | 409), why) => {
            PatchOutcome::Dropped(format!("{why} ({code})"))
        }
        Failure::Status(code, why) if code < 500 => {
            PatchOutcome::Refused(format!("{why} ({code})"))
        }
        failure @ (Failure::Status(..) | Failure::Gone | Failure::InvalidResponse(_)) => {
            PatchOutcome::Failed(format!("{failure:?}"))
        }
        failure => PatchOutcome::Unanswered(RETRY.min, format!("{failure:?}")),
    }
}

/// A 403 means that the credentials have no permission, or else that something (an admission policy)
/// refuses this one Service.
fn forbidden_outcome(why: String, denied: bool) -> PatchOutcome {
    if denied {
        PatchOutcome::Forbidden(why)
    } else {
        PatchOutcome::Refused(format!("{why} (403)"))
    }
}

/// uid and resourceVersion bind the write to the version it was decided for. `ingress` is an atomic
/// list; the finalizer is taken out of its list by name. Other finalizers and conditions stay.
fn patch(status_patch: &StatusPatch) -> Value {
    let mut patch = json!({ "metadata": {
        "uid": status_patch.uid,
        "resourceVersion": status_patch.resource_version,
    } });
    if let Some(ingress) = &status_patch.ingress {
        let entries: Vec<Value> = ingress.iter().map(entry).collect();
        // An empty list would be merged away; null removes.
        let entries = if entries.is_empty() { Value::Null } else { entries.into() };
        patch["status"] = json!({ "loadBalancer": { "ingress": entries } });
    }
    if status_patch.remove_finalizer {
        patch["metadata"]["$deleteFromPrimitiveList/finalizers"] = json!([CLEANUP_FINALIZER]);
    }
    patch
}

fn entry(ingress: &Ingress) -> Value {
    let ports: Vec<Value> = ingress.ports.iter().map(port).collect();
    json!({ "ip": ingress.ip, "ipMode": "VIP", "ports": ports })
}

fn port(port: &IngressPort) -> Value {
    let mut value = json!({ "port": port.port, "protocol": port.protocol });
    if let Some(error) = &port.error {
        value["error"] = json!(error);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    #[test]
    fn only_missing_permissions_end_the_writing() {
        assert_eq!(
            forbidden_outcome("a policy".into(), false),
            PatchOutcome::Refused("a policy (403)".into())
        );
        assert_eq!(
            forbidden_outcome("no right".into(), true),
            PatchOutcome::Forbidden("no right".into())
        );
    }

    #[test]
    fn a_write_names_the_version_it_was_decided_for() {
        let ports = vec![IngressPort { port: 80, protocol: Protocol::Tcp, error: None }];
        let ingress = vec![Ingress {
            ip: Some([10, 88, 0, 200].into()),
            hostname: None,
            vip: Some(true),
            ports: ports.into(),
        }];
        let publication = StatusPatch {
            uid: "u".into(),
            resource_version: "7".into(),
            ingress: Some(ingress.into()),
            remove_finalizer: true,
        };
        let wanted = json!({
            "metadata": {"uid": "u", "resourceVersion": "7", "$deleteFromPrimitiveList/finalizers": [CLEANUP_FINALIZER]},
            "status": {"loadBalancer": {"ingress": [
                {"ip": "10.88.0.200", "ipMode": "VIP", "ports": [{"port": 80, "protocol": "TCP"}]},
            ]}},
        });
        assert_eq!(patch(&publication), wanted);
    }
}
