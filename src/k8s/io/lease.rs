//! Carries the requests of [`crate::k8s::leader`] about the Lease `pinnace` to the API server, and
//! reports who the leader is and until when this process may write.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use tokio::sync::{RwLock, mpsc, oneshot, watch};
use tokio::time::{sleep_until, timeout};
use tracing::{debug, info, warn};

use super::client::Connection;
use super::failure::Failure;
use crate::common::random;
use crate::k8s::leader::{
    DURATION, LeaderElector, LeaseResponse, Observed, REQUEST_TIMEOUT, Request,
};

/// `metadata.name` of the Lease.
pub const NAME: &str = "pinnace";
/// How long before credentials without permission are tried again: somebody may have granted it.
const FORBIDDEN_RETRY: Duration = Duration::from_secs(600);
/// Number of failed requests in a row that are reported as trouble; a single one is not.
const FAILURES: u32 = 2;

/// The state of the leader election, for the engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// This process is the leader.
    pub leader: bool,
    /// The node that holds the Lease, as far as is known.
    pub holder: Option<Box<str>>,
    /// Why several requests in a row about the Lease have failed: there is no leader while its store
    /// does not answer.
    pub trouble: Option<String>,
}

/// Until when a write may begin; None: this process is not the leader.
pub type WriteDeadline = Option<Instant>;

/// The ends of the channels to the engine and to the patcher.
pub struct LeaseChannels {
    /// To the engine.
    pub leadership: mpsc::Sender<Leadership>,
    /// To the patcher.
    pub deadline: watch::Sender<WriteDeadline>,
    /// The patcher holds it for reading while a request is under way.
    pub in_flight: Arc<RwLock<()>>,
    /// From the patcher: the credentials have no permission; the API server's message.
    pub forbidden: mpsc::Receiver<String>,
    /// Changes when the credentials are replaced: they may have the permission now.
    pub renewals: watch::Receiver<u64>,
    /// To release the Lease and end; dropped means the same.
    pub stop: oneshot::Receiver<()>,
}

/// What ended a wait.
enum Woken {
    ByTime,
    ByRenewal,
    Forbidden(String),
    Stopped,
}

impl LeaseChannels {
    async fn wait(&mut self, until: Instant) -> Woken {
        tokio::select! {
            () = sleep_until(until.into()) => Woken::ByTime,
            Some(why) = self.forbidden.recv() => Woken::Forbidden(why),
            Ok(()) = self.renewals.changed() => Woken::ByRenewal,
            _ = &mut self.stop => Woken::Stopped,
        }
    }

    /// Ends the permission to begin a write, and waits for the requests under way: they must not
    /// arrive after those of the next leader.
    async fn end_writes(&self) {
        self.deadline.send_replace(None);
        // A request ends by itself within this time.
        drop(timeout(REQUEST_TIMEOUT, self.in_flight.write()).await);
    }
}

/// Competes for the Lease until it is stopped, then releases it.
pub async fn run(connection: Connection, namespace: String, node: String, channels: LeaseChannels) {
    Candidate::new(connection, namespace, &node, channels).run().await;
}

/// This process as a candidate for the Lease.
struct Candidate {
    connection: Connection,
    namespace: String,
    api: Api<Lease>,
    identity: String,
    channels: LeaseChannels,
    epoch: Instant,
    elector: LeaderElector,
    /// As the engine knows it.
    emitted: Leadership,
    /// The Lease as it was last read or answered.
    read: Option<Lease>,
    /// No request before this time, because the credentials have no permission.
    forbidden_until: Option<Instant>,
    /// The missing permission was logged.
    forbidden_logged: bool,
    /// Why the last request failed.
    trouble: Option<String>,
    /// Failed requests in a row.
    failures: u32,
}

impl Candidate {
    fn new(
        connection: Connection,
        namespace: String,
        node: &str,
        channels: LeaseChannels,
    ) -> Candidate {
        // A restarted process must not take itself for the holder it was: its view may be older than
        // what it wrote.
        let identity = format!("{node}_{}", random::seed());
        Candidate {
            api: Api::namespaced(connection.client(), &namespace),
            connection,
            namespace,
            elector: LeaderElector::new(&identity),
            identity,
            channels,
            epoch: Instant::now(),
            emitted: Leadership::default(),
            read: None,
            forbidden_until: None,
            forbidden_logged: false,
            trouble: None,
            failures: 0,
        }
    }

    async fn run(mut self) {
        loop {
            if self.emit_leadership().await.is_err() {
                return;
            }
            let until = self.forbidden_until.unwrap_or_else(|| self.poll_timeout());
            match self.channels.wait(until).await {
                Woken::Stopped => break,
                Woken::Forbidden(why) => self.on_forbidden_patch(&why).await,
                Woken::ByTime | Woken::ByRenewal => {
                    self.forbidden_until = None;
                    self.request().await;
                }
            }
        }
        self.release().await;
    }

    /// Reports the leadership where it has changed.
    ///
    /// # Errors
    /// The engine does not listen any more.
    async fn emit_leadership(&mut self) -> Result<(), mpsc::error::SendError<Leadership>> {
        // The deadline passes by itself while a request is under way or the next one is waited for.
        self.channels.deadline.send_replace(self.write_deadline());
        let leadership = Leadership {
            leader: self.elector.may_write(self.epoch.elapsed()),
            holder: self.elector.holder().map(|holder| node_of(holder).into()),
            trouble: self.trouble.clone().filter(|_| self.failures >= FAILURES),
        };
        if leadership == self.emitted {
            return Ok(());
        }

        if leadership.leader != self.emitted.leader {
            log_leadership(leadership.leader);
        }
        if leadership.trouble.is_some() != self.emitted.trouble.is_some() {
            log_trouble(leadership.trouble.as_deref());
        }
        self.emitted = leadership.clone();
        self.channels.leadership.send(leadership).await
    }

    fn write_deadline(&self) -> WriteDeadline {
        self.elector.writes_until().map(|until| self.epoch + until)
    }

    /// The next request, or the end of the leadership if that comes first.
    fn poll_timeout(&self) -> Instant {
        let request = self.epoch + self.elector.poll_timeout();
        match self.write_deadline().filter(|_| self.emitted.leader) {
            Some(deadline) => request.min(deadline),
            None => request,
        }
    }

    /// Another node may have the permission. This one continues to serve.
    async fn on_forbidden_patch(&mut self, why: &str) {
        self.log_forbidden("services/status", why);
        self.release().await;
        self.forbidden_until = Some(Instant::now() + FORBIDDEN_RETRY);
    }

    /// Sends the elector's next request, if it has one.
    async fn request(&mut self) {
        let Some(request) = self.elector.request(self.epoch.elapsed()) else { return };
        let response = match send(&self.api, &request, &self.identity, &mut self.read).await {
            Ok(response) => {
                self.trouble = (response == LeaseResponse::Failed).then(|| {
                    unanswered(&format!("no answer within {} s", REQUEST_TIMEOUT.as_secs()))
                });
                response
            }
            Err(failure) => self.on_failure(failure),
        };
        self.failures =
            if response == LeaseResponse::Failed { self.failures.saturating_add(1) } else { 0 };
        self.elector.outcome(&request, response, self.epoch.elapsed(), random::unit());
    }

    fn on_failure(&mut self, failure: Failure) -> LeaseResponse {
        debug!(?failure, "request about the Lease failed");
        match failure {
            Failure::Forbidden(why) => {
                let what = format!(
                    "leases in namespace {} (grant create, get and update there, or set PINNACE_NAMESPACE to the same other namespace on every node)",
                    self.namespace
                );
                self.log_forbidden(&what, &why);
                self.forbidden_until = Some(Instant::now() + FORBIDDEN_RETRY);
                return LeaseResponse::Forbidden;
            }
            Failure::Unauthorized | Failure::OwnCertificate(_) | Failure::Certificate(_) => {
                self.trouble = Some(self.connection.sentence(&failure, "leases"));
            }
            failure => self.trouble = Some(unanswered(&format!("{failure:?}"))),
        }
        LeaseResponse::Failed
    }

    /// Logs once that the credentials have no permission.
    fn log_forbidden(&mut self, what: &str, why: &str) {
        if !std::mem::replace(&mut self.forbidden_logged, true) {
            info!("no permission to update {what}: running as follower only: {why}");
        }
    }

    async fn release(&mut self) {
        self.channels.end_writes().await;
        let Some(request) = self.elector.release() else { return };
        if let Err(failure) = send(&self.api, &request, &self.identity, &mut self.read).await {
            warn!(
                ?failure,
                "failed to release lease: another node becomes leader when it has expired"
            );
        }
    }
}

/// The node in `spec.holderIdentity`.
fn node_of(holder: &str) -> &str {
    holder.rsplit_once('_').map_or(holder, |(node, _)| node)
}

fn log_leadership(leader: bool) {
    if leader {
        info!("became leader: this node allocates addresses and writes the status of Services");
    } else {
        info!("lost leadership: another node allocates addresses");
    }
}

fn log_trouble(trouble: Option<&str>) {
    if let Some(why) = trouble {
        warn!("{why}");
    } else {
        info!("the API server answers again about the Lease {NAME}");
    }
}

fn unanswered(why: &str) -> String {
    format!(
        "failed to renew lease {NAME} ({why}): the store of the API server (etcd) may be down; no address is allocated and no status written meanwhile"
    )
}

/// One request each: an API server that takes seconds must not take twice as many. `read` is the
/// Lease as it was last read or answered.
async fn send(
    api: &Api<Lease>,
    request: &Request,
    identity: &str,
    read: &mut Option<Lease>,
) -> Result<LeaseResponse, Failure> {
    let parameters = PostParams::default();
    let answer = async {
        match request {
            Request::Get => api.get(NAME).await,
            Request::Create => api.create(&parameters, &lease(None, None, identity, 0, true)).await,
            Request::Update { version, holder, transitions, acquired } => {
                let lease = lease(read.as_ref(), Some(version), holder, *transitions, *acquired);
                api.replace(NAME, &parameters, &lease).await
            }
        }
    };
    match timeout(REQUEST_TIMEOUT, answer).await {
        Err(_) => Ok(LeaseResponse::Failed),
        Ok(Ok(lease)) => {
            *read = Some(lease.clone());
            Ok(LeaseResponse::Found(observed(lease)))
        }
        Ok(Err(error)) => match Failure::of(&error) {
            Failure::Status(404, _) => Ok(LeaseResponse::NotFound),
            Failure::Status(409, _) => Ok(LeaseResponse::Conflict),
            failure => Err(failure),
        },
    }
}

/// The object that replaces `version` of the Lease. Labels, annotations, owners and the time of
/// acquisition stay as they were read.
fn lease(
    read: Option<&Lease>,
    version: Option<&str>,
    holder: &str,
    transitions: i32,
    acquired: bool,
) -> Lease {
    let now = MicroTime(Timestamp::now());
    let same =
        |read: &&Lease| version.is_some() && read.metadata.resource_version.as_deref() == version;
    let mut lease = read.filter(same).cloned().unwrap_or_default();
    lease.metadata.name = Some(NAME.into());
    lease.metadata.resource_version = version.map(Into::into);
    // Without them the API server keeps its own record of who set what.
    lease.metadata.managed_fields = None;
    let spec = lease.spec.get_or_insert_default();
    spec.holder_identity = Some(holder.into());
    spec.lease_duration_seconds = i32::try_from(DURATION.as_secs()).ok();
    spec.lease_transitions = Some(transitions);
    if acquired {
        spec.acquire_time = Some(now.clone());
    }
    spec.renew_time = Some(now);
    lease
}

fn observed(lease: Lease) -> Observed {
    let spec = lease.spec.unwrap_or_default();
    let seconds = spec
        .lease_duration_seconds
        .and_then(|seconds| u64::try_from(seconds).ok())
        .filter(|seconds| *seconds > 0);
    Observed {
        version: lease.metadata.resource_version.unwrap_or_default().into(),
        holder: spec.holder_identity.unwrap_or_default().into(),
        // An absurd duration, set by hand, must neither delay nor hurry an election.
        duration: seconds
            .map_or(DURATION, |seconds| Duration::from_secs(seconds.min(3600)))
            .max(DURATION),
        transitions: spec.lease_transitions.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_others_keep_in_the_lease_stays() {
        let owners =
            json!([{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "pinnace", "uid": "d"}]);
        let metadata = json!({"name": "pinnace", "namespace": "n", "uid": "u", "resourceVersion": "7", "labels": {"a": "b"},
            "annotations": {"c": "d"}, "ownerReferences": owners});
        let spec = json!({"holderIdentity": "other_1", "acquireTime": "2026-01-01T00:00:00.000000Z", "leaseTransitions": 3});
        let read: Lease =
            serde_json::from_value(json!({"metadata": metadata, "spec": spec})).expect("a Lease");
        let renewed = lease(Some(&read), Some("7"), "us_2", 3, false);
        assert_eq!(renewed.metadata, read.metadata);
        let (spec, before) = (renewed.spec.expect("a spec"), read.spec.clone().expect("a spec"));
        assert_eq!(
            (spec.holder_identity.as_deref(), spec.acquire_time),
            (Some("us_2"), before.acquire_time.clone())
        );
        let acquired = lease(Some(&read), Some("7"), "us_2", 4, true);
        assert_eq!(acquired.metadata, read.metadata);
        assert!(acquired.spec.expect("a spec").acquire_time > before.acquire_time);
        assert_eq!(
            lease(Some(&read), None, "us_2", 0, true).metadata.uid,
            None,
            "a new one is new"
        );
    }

    #[tokio::test]
    async fn writes_end_first_and_requests_under_way_are_waited_for() {
        let (leadership, _leadership) = mpsc::channel(1);
        let (deadline, seen) = watch::channel(Some(Instant::now() + DURATION));
        let (_forbidden, forbidden) = mpsc::channel(1);
        let (_renewals, renewals) = watch::channel(0);
        let (_stop, stop) = oneshot::channel();
        let channels = LeaseChannels {
            leadership,
            deadline,
            in_flight: Arc::default(),
            forbidden,
            renewals,
            stop,
        };
        let under_way = channels.in_flight.clone().read_owned().await;
        let ended = tokio::spawn(async move { channels.end_writes().await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(*seen.borrow(), None, "nobody begins any more");
        assert!(!ended.is_finished(), "while a request is under way");
        drop(under_way);
        timeout(REQUEST_TIMEOUT / 2, ended)
            .await
            .expect("it ends with the request")
            .expect("no panic");
    }
}
