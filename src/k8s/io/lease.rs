//! Holds the Lease `pinnace`: carries the requests of [`crate::k8s::leader`] to the API server and
//! tells who may write, and until when.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
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
use crate::k8s::leader::{
    DURATION, LeaderElector, LeaseResponse, Observed, REQUEST_TIMEOUT, Request,
};

/// Its name in its namespace.
pub const NAME: &str = "pinnace";
/// How often credentials that may not write are tried again: somebody may have given them the
/// right.
const FORBIDDEN_RETRY: Duration = Duration::from_secs(600);

/// One request about the Lease may fail; so many in a row are told.
const FAILURES: u32 = 2;

/// What the engine is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// This process is the writer.
    pub writer: bool,
    /// The holder's node, as far as is known.
    pub holder: Option<Box<str>>,
    /// Why nothing can be said about the Lease, again and again: nobody can write while its store
    /// does not answer.
    pub trouble: Option<String>,
}

/// Until when a write may begin; None: this process is not the writer.
pub type WriteDeadline = Option<Instant>;

/// The ends of the channels to the rest of the writer.
pub struct LeaseChannels {
    /// For the engine.
    pub tenures: mpsc::Sender<Leadership>,
    /// For those who write.
    pub right: watch::Sender<WriteDeadline>,
    /// Held for reading by those who write, as long as a request is under way.
    pub writing: Arc<RwLock<()>>,
    /// From those who write: the credentials do not let them, in the API server's words.
    pub forbidden: mpsc::Receiver<String>,
    /// Changes when the credentials are replaced: they may let us write now.
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

    /// Nobody may begin to write any more, and those who have begun are waited for: their requests
    /// must not arrive after the next writer's.
    async fn settle(&self) {
        self.right.send_replace(None);
        // A request ends by itself within this time.
        drop(timeout(REQUEST_TIMEOUT, self.writing.write()).await);
    }
}

/// Holds or awaits the Lease until it is told to stop, then releases it.
pub async fn run(
    connection: Connection,
    namespace: String,
    node: String,
    mut ends: LeaseChannels,
) -> io::Result<()> {
    let api: Api<Lease> = Api::namespaced(connection.client(), &namespace);
    let epoch = Instant::now();
    // A restarted process must not take itself for the holder it was: its view may be older than
    // what it wrote.
    let identity = format!("{node}_{}", random());
    let mut machine = LeaderElector::new(&identity);
    let mut told = Leadership::default();
    // Until when credentials that may not write are not tried again; what was said about them.
    let (mut barred, mut complained) = (None::<Instant>, false);
    let (mut trouble, mut failures) = (None::<String>, 0u32);
    // The Lease as it was read or answered last.
    let mut read = None;
    loop {
        // The right ends by itself while a request is under way or the next one is waited for.
        ends.right.send_replace(machine.writes_until().map(|until| epoch + until));
        let tenure = Leadership {
            writer: machine.may_write(epoch.elapsed()),
            holder: machine
                .holder()
                .map(|holder| holder.rsplit_once('_').map_or(holder, |(node, _)| node).into()),
            trouble: trouble.clone().filter(|_| failures >= FAILURES),
        };
        if tenure != told {
            match (tenure.writer, told.writer) {
                (true, false) => {
                    info!("this node gives addresses to Services and writes their status")
                }
                (false, true) => info!("this node no longer gives addresses to Services"),
                _ => {}
            }
            match (&tenure.trouble, &told.trouble) {
                (Some(why), None) => warn!("{why}"),
                (None, Some(_)) => info!("the API server answers again about the Lease {NAME}"),
                _ => {}
            }
            told = tenure.clone();
            if ends.tenures.send(tenure).await.is_err() {
                return Ok(());
            }
        }
        let mut wake = epoch + machine.poll_timeout();
        if let Some(until) = machine
            .writes_until()
            .map(|until| epoch + until)
            .filter(|until| told.writer && *until < wake)
        {
            wake = until;
        }
        match ends.wait(barred.unwrap_or(wake)).await {
            Woken::Stopped => break,
            Woken::Forbidden(why) => {
                // Somebody else may be allowed to. We go on serving.
                complain(&mut complained, "the status of Services", &why);
                ends.settle().await;
                release(&api, &mut machine, &identity, &mut read).await;
                barred = Some(Instant::now() + FORBIDDEN_RETRY);
                continue;
            }
            Woken::ByTime | Woken::ByRenewal => barred = None,
        }
        let Some(request) = machine.request(epoch.elapsed()) else { continue };
        let outcome = match send(&api, &request, &identity, &mut read).await {
            Ok(outcome) => {
                trouble = (outcome == LeaseResponse::Failed).then(|| {
                    unanswered(&format!("no answer within {} s", REQUEST_TIMEOUT.as_secs()))
                });
                outcome
            }
            Err(Failure::Forbidden(why)) => {
                let advice = "grant create, get and update there, or name another namespace in PINNACE_NAMESPACE, the same on every node";
                complain(
                    &mut complained,
                    &format!("Leases in namespace {namespace} ({advice})"),
                    &why,
                );
                barred = Some(Instant::now() + FORBIDDEN_RETRY);
                LeaseResponse::Forbidden
            }
            Err(failure) => {
                debug!(?failure, "no answer about the Lease");
                trouble = Some(match failure {
                    Failure::Unauthorized
                    | Failure::OwnCertificate(_)
                    | Failure::Certificate(_) => connection.sentence(&failure, "leases"),
                    failure => unanswered(&format!("{failure:?}")),
                });
                LeaseResponse::Failed
            }
        };
        failures = if outcome == LeaseResponse::Failed { failures + 1 } else { 0 };
        let chance = random() as f64 / u64::MAX as f64;
        machine.outcome(&request, outcome, epoch.elapsed(), chance);
    }
    ends.settle().await;
    release(&api, &mut machine, &identity, &mut read).await;
    Ok(())
}

fn unanswered(why: &str) -> String {
    format!(
        "the API server does not keep the Lease {NAME} ({why}): its store (etcd) may be down; no address is given and no status written meanwhile"
    )
}

fn complain(complained: &mut bool, what: &str, why: &str) {
    if !std::mem::replace(complained, true) {
        info!(
            "the credentials may not write {what}, so this node serves what another one decides: {why}"
        );
    }
}

async fn release(
    api: &Api<Lease>,
    machine: &mut LeaderElector,
    identity: &str,
    read: &mut Option<Lease>,
) {
    if let Some(release) = machine.release()
        && let Err(failure) = send(api, &release, identity, read).await
    {
        warn!(?failure, "cannot release the Lease: another node takes it over when it has expired");
    }
}

/// `read` is the Lease as it was read or answered last. One request each: an API server that takes
/// seconds must not take twice as many.
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
                api.replace(
                    NAME,
                    &parameters,
                    &lease(read.as_ref(), Some(version), holder, *transitions, *acquired),
                )
                .await
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

/// What to write over `version` of it. What others keep in it stays as it was read: labels,
/// annotations, owners; and when it was acquired.
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
    // The API server's own record of who set what; without it, it goes on with what it has.
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
        // A duration nobody would choose must not keep everybody waiting, or hurry anybody.
        duration: seconds
            .map_or(DURATION, |seconds| Duration::from_secs(seconds.min(3600)))
            .max(DURATION),
        transitions: spec.lease_transitions.unwrap_or_default(),
    }
}

/// Not secret, only different: the standard library seeds it from the kernel.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
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
    async fn the_right_ends_first_and_what_is_under_way_is_waited_for() {
        let (tenures, _tenures) = mpsc::channel(1);
        let (right, seen) = watch::channel(Some(Instant::now() + DURATION));
        let (_forbidden, forbidden) = mpsc::channel(1);
        let (_renewals, renewals) = watch::channel(0);
        let (_stop, stop) = oneshot::channel();
        let ends =
            LeaseChannels { tenures, right, writing: Arc::default(), forbidden, renewals, stop };
        let under_way = ends.writing.clone().read_owned().await;
        let settled = tokio::spawn(async move { ends.settle().await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(*seen.borrow(), None, "nobody begins any more");
        assert!(!settled.is_finished(), "while a request is under way");
        drop(under_way);
        timeout(REQUEST_TIMEOUT / 2, settled)
            .await
            .expect("it ends with the request")
            .expect("no panic");
    }
}
