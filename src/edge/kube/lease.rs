//! Holds the Lease `pinnace`: carries the requests of [`crate::domain::lease`] to the API server and tells who may write, and until when.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep_until, timeout};
use tracing::{debug, info, warn};

use super::failure::Failure;
use crate::domain::lease::{DURATION, Machine, Observed, Outcome, REQUEST_TIMEOUT, Request};

/// Its name in its namespace.
pub const NAME: &str = "pinnace";
/// How often credentials that may not write are tried again: somebody may have given them the right.
const FORBIDDEN_RETRY: Duration = Duration::from_secs(600);

/// One request about the Lease may fail; so many in a row are told.
const FAILURES: u32 = 2;

/// What the engine is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tenure {
    /// This process is the writer.
    pub writer: bool,
    /// The holder's node, as far as is known.
    pub holder: Option<Box<str>>,
    /// Why nothing can be said about the Lease, again and again: nobody can write while its store does not answer.
    pub trouble: Option<String>,
}

/// Until when a write may begin; None: this process is not the writer.
pub type Right = Option<Instant>;

/// The ends of the channels to the rest of the writer.
pub struct Ends {
    /// For the engine.
    pub tenures: mpsc::Sender<Tenure>,
    /// For those who write.
    pub right: watch::Sender<Right>,
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

impl Ends {
    async fn wait(&mut self, until: Instant) -> Woken {
        tokio::select! {
            () = sleep_until(until.into()) => Woken::ByTime,
            Some(why) = self.forbidden.recv() => Woken::Forbidden(why),
            Ok(()) = self.renewals.changed() => Woken::ByRenewal,
            _ = &mut self.stop => Woken::Stopped,
        }
    }
}

/// Holds or awaits the Lease until it is told to stop, then releases it.
pub async fn run(client: Client, namespace: String, node: String, mut ends: Ends) -> io::Result<()> {
    let api: Api<Lease> = Api::namespaced(client, &namespace);
    let epoch = Instant::now();
    // A restarted process must not take itself for the holder it was: its view may be older than what it wrote.
    let identity = format!("{node}_{}", random());
    let mut machine = Machine::new(&identity);
    let mut told = Tenure::default();
    // Until when credentials that may not write are not tried again; what was said about them.
    let (mut barred, mut complained) = (None::<Instant>, false);
    let (mut trouble, mut failures) = (None::<String>, 0u32);
    // When the Lease was acquired, as it says.
    let mut since = None;
    loop {
        // The right ends by itself while a request is under way or the next one is waited for.
        ends.right.send_replace(machine.writes_until().map(|until| epoch + until));
        let tenure = Tenure {
            writer: machine.may_write(epoch.elapsed()),
            holder: machine.holder().map(|holder| holder.rsplit_once('_').map_or(holder, |(node, _)| node).into()),
            trouble: trouble.clone().filter(|_| failures >= FAILURES),
        };
        if tenure != told {
            match (tenure.writer, told.writer) {
                (true, false) => info!("this node gives addresses to Services and writes their status"),
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
        let mut wake = epoch + machine.wakes();
        if let Some(until) = machine.writes_until().map(|until| epoch + until).filter(|until| told.writer && *until < wake) {
            wake = until;
        }
        match ends.wait(barred.unwrap_or(wake)).await {
            Woken::Stopped => break,
            Woken::Forbidden(why) => {
                // Somebody else may be allowed to. We go on serving.
                complain(&mut complained, "the status of Services", &why);
                release(&api, &mut machine, &identity, &mut since).await;
                barred = Some(Instant::now() + FORBIDDEN_RETRY);
                continue;
            }
            Woken::ByTime | Woken::ByRenewal => barred = None,
        }
        let Some(request) = machine.request(epoch.elapsed()) else { continue };
        let outcome = match send(&api, &request, &identity, &mut since).await {
            Ok(outcome) => {
                trouble = (outcome == Outcome::Failed).then(|| unanswered(&format!("no answer within {} s", REQUEST_TIMEOUT.as_secs())));
                outcome
            }
            Err(Failure::Forbidden(why)) => {
                complain(&mut complained, &format!("Leases in namespace {namespace}"), &why);
                barred = Some(Instant::now() + FORBIDDEN_RETRY);
                Outcome::Forbidden
            }
            Err(failure) => {
                debug!(?failure, "no answer about the Lease");
                trouble = Some(unanswered(&format!("{failure:?}")));
                Outcome::Failed
            }
        };
        failures = if outcome == Outcome::Failed { failures + 1 } else { 0 };
        let chance = random() as f64 / u64::MAX as f64;
        machine.outcome(&request, outcome, epoch.elapsed(), chance);
    }
    ends.right.send_replace(None);
    release(&api, &mut machine, &identity, &mut since).await;
    Ok(())
}

fn unanswered(why: &str) -> String {
    format!(
        "the API server does not keep the Lease {NAME} ({why}): its store (etcd) may be down; no address is given and no status written meanwhile"
    )
}

fn complain(complained: &mut bool, what: &str, why: &str) {
    if !std::mem::replace(complained, true) {
        info!("the credentials may not write {what}, so this node serves what another one decides: {why}");
    }
}

async fn release(api: &Api<Lease>, machine: &mut Machine, identity: &str, since: &mut Option<MicroTime>) {
    if let Some(release) = machine.release()
        && let Err(failure) = send(api, &release, identity, since).await
    {
        warn!(?failure, "cannot release the Lease: another node takes it over when it has expired");
    }
}

/// `since` is its `acquireTime` as read last, which a renewal keeps. One request each: an API server that takes seconds must not take twice as many.
async fn send(api: &Api<Lease>, request: &Request, identity: &str, since: &mut Option<MicroTime>) -> Result<Outcome, Failure> {
    let parameters = PostParams::default();
    let answer = async {
        match request {
            Request::Get => api.get(NAME).await,
            Request::Create => api.create(&parameters, &lease(None, identity, 0, true, None)).await,
            Request::Update { version, holder, transitions, acquired } => {
                api.replace(NAME, &parameters, &lease(Some(version), holder, *transitions, *acquired, since.clone())).await
            }
        }
    };
    match timeout(REQUEST_TIMEOUT, answer).await {
        Err(_) => Ok(Outcome::Failed),
        Ok(Ok(lease)) => {
            *since = lease.spec.as_ref().and_then(|spec| spec.acquire_time.clone());
            Ok(Outcome::Is(observed(lease)))
        }
        Ok(Err(error)) => match Failure::of(&error) {
            Failure::Status(404, _) => Ok(Outcome::Absent),
            Failure::Status(409, _) => Ok(Outcome::Conflict),
            failure => Err(failure),
        },
    }
}

fn lease(version: Option<&str>, holder: &str, transitions: i32, acquired: bool, before: Option<MicroTime>) -> Lease {
    let now = MicroTime(Timestamp::now());
    Lease {
        metadata: ObjectMeta { name: Some(NAME.into()), resource_version: version.map(Into::into), ..ObjectMeta::default() },
        spec: Some(LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            lease_transitions: Some(transitions),
            acquire_time: if acquired { Some(now.clone()) } else { before },
            renew_time: Some(now),
            ..LeaseSpec::default()
        }),
    }
}

fn observed(lease: Lease) -> Observed {
    let spec = lease.spec.unwrap_or_default();
    let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).filter(|seconds| *seconds > 0);
    Observed {
        version: lease.metadata.resource_version.unwrap_or_default().into(),
        holder: spec.holder_identity.unwrap_or_default().into(),
        // A duration nobody would choose must not keep everybody waiting, or hurry anybody.
        duration: seconds.map_or(DURATION, |seconds| Duration::from_secs(seconds.min(3600))).max(DURATION),
        transitions: spec.lease_transitions.unwrap_or_default(),
    }
}

/// Not secret, only different: the standard library seeds it from the kernel.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
