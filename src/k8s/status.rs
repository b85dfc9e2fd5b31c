//! The reconciler of `status.loadBalancer.ingress`: what the leader writes, and when it backs off
//! because somebody else writes the same field.
//!
//! Two leaders for a moment do no lasting harm. A Lease elects the leader, and the old one stops
//! before the Lease can have another holder (see [`super::leader`]). That alone does not bind a
//! process that was stopped between its decision and its request. Therefore each patch carries the
//! uid and resourceVersion it was decided for, and the API server refuses it once anybody has written
//! to that Service. What remains is one address in the statuses of two Services, allocated by an old
//! leader to one and by its successor to the other. All nodes resolve that alike: the older Service
//! keeps it ([`crate::ipam`]), and the leader allocates a new address to the other one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::common::backoff::Backoff;
use crate::model::{ApiMetadata, Ingress, IngressPort, ObjectKey, Service, ServicePort};

/// A change of a Service by the leader. It applies only to the version it was decided for: the API
/// server refuses it for any other, and the newer version is decided about when the watch brings it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusPatch {
    /// `metadata.uid` it was decided for.
    pub uid: Arc<str>,
    /// `metadata.resourceVersion` it was decided for.
    pub resource_version: Arc<str>,
    /// The whole of `status.loadBalancer.ingress`; None leaves it as it is.
    pub ingress: Option<Arc<[Ingress]>>,
    /// Remove the finalizer `service.kubernetes.io/load-balancer-cleanup`.
    pub remove_finalizer: bool,
}

/// The time in which replacements and writes are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// Maximum number of times in [`WINDOW`] that somebody else replaces what the leader wrote.
const REPLACED: u8 = 3;
/// Maximum number of times in [`WINDOW`] that the same is written: somebody else may be quicker than
/// the watch.
const REPEATED: u8 = 6;
/// How long a status is left alone after that.
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(60), Duration::from_secs(3600));
/// Delays after a patch that was refused or not sent.
const RETRY: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(120));

/// `status.loadBalancer.ingress[].ports[].error` of a port without endpoints, prefixed with a domain
/// as KEP-1435 asks for.
const UNMATCHED: &str = "pinnace.dev/PortWithoutEndpoints";
/// How to stop ServiceLB.
const SERVICELB_OFF: &str = "start every K3s server with --disable=servicelb";

/// Somebody else writes the status of a Service that this class handles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatusConflict {
    /// The status was replaced by this one and is written again.
    Corrected(Arc<[Ingress]>),
    /// The status is replaced again and again, last by this one, and left alone for this long.
    LeftAlone(Arc<[Ingress]>, Duration),
    /// The finalizer of the standard service controllers was added while the Service was watched: one
    /// of them is running.
    Claimed,
}

impl StatusConflict {
    /// A sentence that says how to resolve it. `nodes` are the addresses of the nodes.
    pub fn sentence(&self, nodes: &BTreeSet<IpAddr>) -> String {
        match self {
            StatusConflict::Corrected(stood) => {
                format!(
                    "status.loadBalancer was changed by someone else to [{}] and is put right",
                    entries(stood)
                )
            }
            StatusConflict::Claimed => format!(
                "another load balancer has claimed this Service: it has just set the finalizer service.kubernetes.io/load-balancer-cleanup; if this \
                 is K3s, ServiceLB is enabled: {SERVICELB_OFF}; else stop the other one, or give the Service a spec.loadBalancerClass"
            ),
            StatusConflict::LeftAlone(stood, backoff) => {
                // ServiceLB empties Services of a foreign class, and writes the addresses of nodes to
                // those without a class.
                let servicelb =
                    stood.iter().all(|entry| entry.ip.is_some_and(|ip| nodes.contains(&ip)));
                let advice = if servicelb {
                    format!("this looks like K3s ServiceLB: {SERVICELB_OFF}")
                } else {
                    "find the other load balancer and stop it, or give the Service a spec.loadBalancerClass".to_owned()
                };
                let stood = entries(stood);
                let seconds = backoff.as_secs();
                format!(
                    "someone else keeps changing status.loadBalancer to [{stood}]: left alone for {seconds} s; {advice}"
                )
            }
        }
    }
}

fn entries(ingress: &[Ingress]) -> String {
    let entry = |i: &Ingress| {
        i.ip.map(|ip| ip.to_string())
            .or_else(|| i.hostname.as_deref().map(str::to_owned))
            .unwrap_or_else(|| "?".into())
    };
    ingress.iter().map(entry).collect::<Vec<_>>().join(", ")
}

/// The whole of `status.loadBalancer.ingress` for a Service that is served on these addresses.
/// `ipMode` is VIP (KEP-1860): packets reach the nodes with the address as destination, and
/// kube-proxy may short-cut traffic from pods. `unmatched` ports have an error.
pub fn ingress(
    service: &Service,
    addresses: &[IpAddr],
    unmatched: &[&ServicePort],
) -> Arc<[Ingress]> {
    let error = |port: &ServicePort| unmatched.contains(&port).then(|| UNMATCHED.into());
    let port = |port: &ServicePort| IngressPort {
        port: port.port,
        protocol: port.protocol,
        error: error(port),
    };
    let ports: Box<[IngressPort]> = service.ports.iter().map(port).collect();
    addresses
        .iter()
        .map(|ip| Ingress { ip: Some(*ip), hostname: None, vip: Some(true), ports: ports.clone() })
        .collect()
}

/// Whether the status is the wanted one. API servers before 1.30 do not know `ipMode` and leave it
/// out, which means VIP: nobody has changed the status then.
fn stands(ingress: &[Ingress], wanted: &[Ingress]) -> bool {
    let equal = |(stood, wanted): (&Ingress, &Ingress)| match (stood.vip, wanted.vip) {
        (None, Some(true)) => Ingress { vip: wanted.vip, ..stood.clone() } == *wanted,
        _ => stood == wanted,
    };
    ingress.len() == wanted.len() && ingress.iter().zip(wanted).all(equal)
}

/// What is known about the status of one Service.
#[derive(Debug, Default)]
struct Memory {
    /// `metadata.uid` of the object.
    uid: Option<Arc<str>>,
    wanted: Option<Arc<[Ingress]>>,
    /// The status was the wanted one when it was last seen.
    stood: bool,
    /// The finalizer of the service controllers was absent: if it comes now, one of them is running
    /// and has not left it long ago.
    unclaimed: bool,
    /// The version that was last written to. Each version is written to once.
    written_to: Option<Arc<str>>,
    replaced: Recent,
    written: Recent,
    /// How often in a row the status was left alone.
    backoffs: u32,
    /// Until when the status is left alone.
    until: Option<Duration>,
}

/// Number of occurrences in one [`WINDOW`], which begins with the first one.
#[derive(Debug, Default)]
struct Recent {
    since: Duration,
    times: u8,
}

impl Recent {
    fn times(&self, now: Duration) -> u8 {
        if now < self.since + WINDOW { self.times } else { 0 }
    }

    fn note(&mut self, now: Duration) {
        let times = self.times(now);
        let since = if times == 0 { now } else { self.since };
        *self = Recent { since, times: times.saturating_add(1) };
    }

    /// The last occurrence had no effect.
    fn take_back(&mut self) {
        self.times = self.times.saturating_sub(1);
    }
}

/// The leader's record of what it wrote, and of what others wrote over it.
#[derive(Debug, Default)]
pub struct StatusReconciler {
    // Boxed to keep the map's nodes small.
    memory: BTreeMap<ObjectKey, Box<Memory>>,
    retries: BTreeMap<ObjectKey, Retry>,
    withdrawals: BTreeMap<ObjectKey, Withdrawal>,
}

/// A Service that is no longer handled, with addresses of this cluster's pools in its status.
#[derive(Debug)]
struct Withdrawal {
    /// The status that is to be removed.
    stood: Arc<[Ingress]>,
    /// The version from which it was removed, as far as is known.
    written_to: Option<Arc<str>>,
}

/// A patch was lost.
#[derive(Debug, Default)]
struct Retry {
    /// The version it was decided for. A newer version need not wait.
    version: Option<Arc<str>>,
    /// Lost patches in a row.
    failures: u32,
    /// When the Service is reconciled again; None once it has been.
    due: Option<Duration>,
}

/// The result of one comparison.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// The patch to write.
    pub publication: Option<StatusPatch>,
    /// The conflict to report.
    pub interference: Option<StatusConflict>,
}

impl StatusReconciler {
    /// Compares the status of a Service with the wanted one; None: it is not known yet.
    pub fn decide(
        &mut self,
        key: &ObjectKey,
        record: &ApiMetadata,
        wanted: Option<Arc<[Ingress]>>,
        now: Duration,
    ) -> Decision {
        let memory = self.memory.entry(key.clone()).or_default();
        if memory.uid.as_ref() != Some(&record.uid) {
            **memory = Memory::default();
        }
        // The newest record shares the string, the one before is dropped.
        memory.uid = Some(record.uid.clone());
        let claimed = memory.unclaimed && record.cleanup_finalizer;
        memory.unclaimed = !record.cleanup_finalizer;
        let decision =
            StatusReconciler::compare(memory, &mut self.retries, key, record, wanted, now);
        let interference = decision.interference.or(claimed.then_some(StatusConflict::Claimed));
        Decision { interference, ..decision }
    }

    fn compare(
        memory: &mut Memory,
        retries: &mut BTreeMap<ObjectKey, Retry>,
        key: &ObjectKey,
        record: &ApiMetadata,
        wanted: Option<Arc<[Ingress]>>,
        now: Duration,
    ) -> Decision {
        let Some(wanted) = wanted else { return Decision::default() };
        if memory.wanted.as_ref() != Some(&wanted) {
            // A new wanted status is no conflict.
            memory.wanted = Some(wanted.clone());
            memory.stood = false;
            memory.written = Recent::default();
        }
        if stands(&record.ingress, &wanted) {
            memory.stood = true;
            if record.ingress == wanted {
                memory.wanted = Some(record.ingress.clone()); // kept once
            }
            retries.remove(key);
            return Decision::default();
        }
        if memory.until.is_some_and(|until| now < until)
            || memory.written_to.as_ref() == Some(&record.resource_version)
        {
            return Decision::default();
        }
        if waits(retries, key, record) {
            return Decision::default();
        }
        let corrected = memory.stood;
        if corrected {
            memory.replaced.note(now);
        }
        memory.stood = false;
        if memory.replaced.times(now) > REPLACED || memory.written.times(now) >= REPEATED {
            let last = BACKOFF.delay(memory.backoffs.saturating_sub(1));
            let calm = memory.until.is_none_or(|until| until + last <= now);
            let backoff = BACKOFF.delay(if calm { 0 } else { memory.backoffs });
            memory.backoffs = if calm { 1 } else { memory.backoffs.saturating_add(1) };
            memory.until = Some(now + backoff);
            memory.replaced = Recent::default();
            memory.written = Recent::default();
            let interference = StatusConflict::LeftAlone(record.ingress.clone(), backoff);
            return Decision { publication: None, interference: Some(interference) };
        }
        memory.written.note(now);
        memory.written_to = Some(record.resource_version.clone());
        Decision {
            publication: Some(status_patch(record, Some(wanted), false)),
            interference: corrected.then(|| StatusConflict::Corrected(record.ingress.clone())),
        }
    }

    /// Whether the status of the Service was the wanted one before. Then anything else in it was
    /// written by somebody else.
    pub fn stood(&self, key: &ObjectKey) -> bool {
        self.memory.get(key).is_some_and(|memory| memory.stood)
    }

    /// How long the status of the Service is still left alone.
    pub fn backoff(&self, key: &ObjectKey, now: Duration) -> Option<Duration> {
        self.memory.get(key)?.until?.checked_sub(now).filter(|left| !left.is_zero())
    }

    /// The Services whose backoff is over.
    pub fn expired(&mut self, now: Duration) -> Vec<ObjectKey> {
        let over = |memory: &Memory| {
            memory.until.is_some_and(|until| until <= now && until + BACKOFF.min * 2 > now)
        };
        self.memory.iter().filter(|(_, memory)| over(memory)).map(|(key, _)| key.clone()).collect()
    }

    /// The status of the Service is no longer written; with `gone` nothing else of it is, either.
    pub fn forget(&mut self, key: &ObjectKey, gone: bool) {
        self.memory.remove(key);
        if gone {
            self.retries.remove(key);
        }
    }

    /// A patch was refused or not sent, and is not tried again unless it is decided anew. Returns
    /// true for the first one in a row.
    pub fn lost(&mut self, key: &ObjectKey, version: &str, now: Duration) -> bool {
        if let Some(memory) =
            self.memory.get_mut(key).filter(|memory| memory.written_to.as_deref() == Some(version))
        {
            memory.written_to = None;
            memory.written.take_back();
        }
        if let Some(withdrawal) = self
            .withdrawals
            .get_mut(key)
            .filter(|withdrawal| withdrawal.written_to.as_deref() == Some(version))
        {
            withdrawal.written_to = None;
        }
        let retry = self.retries.entry(key.clone()).or_default();
        retry.version = Some(version.into());
        retry.due = Some(now + RETRY.delay(retry.failures));
        retry.failures = retry.failures.saturating_add(1);
        retry.failures == 1
    }

    /// The Service is no longer handled. The addresses in its status are removed: they may be
    /// allocated to another Service.
    pub fn withdraw(&mut self, key: &ObjectKey, record: &ApiMetadata) {
        self.withdrawals
            .insert(key.clone(), Withdrawal { stood: record.ingress.clone(), written_to: None });
    }

    /// Whether they are still there. The first status that is anything else ends this: somebody else
    /// has written it.
    pub fn withdraws(&mut self, key: &ObjectKey, record: &ApiMetadata) -> bool {
        let Some(withdrawal) = self.withdrawals.get(key) else { return false };
        let stands = withdrawal.stood == record.ingress;
        if !stands {
            self.withdrawals.remove(key);
        }
        stands
    }

    /// The patch that removes them, unless it is under way or has to wait. Until it is known to be
    /// lost nothing more is written: the same status of a later version may be somebody else's.
    pub fn withdrawal(&mut self, key: &ObjectKey, record: &ApiMetadata) -> Option<StatusPatch> {
        let withdrawal = self.withdrawals.get_mut(key)?;
        if withdrawal.written_to.is_some() || waits(&self.retries, key, record) {
            return None;
        }
        withdrawal.written_to = Some(record.resource_version.clone());
        Some(status_patch(record, Some(Arc::default()), false))
    }

    /// The Service is handled again, or gone.
    pub fn keep(&mut self, key: &ObjectKey) {
        self.withdrawals.remove(key);
    }

    /// When a Service is to be reconciled again because a patch was lost.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.retries.values().filter_map(|retry| retry.due).min()
    }

    /// The Services to reconcile again now.
    pub fn retries(&mut self, now: Duration) -> Vec<ObjectKey> {
        let due = |(key, retry): (&ObjectKey, &mut Retry)| {
            retry.due.take_if(|due| *due <= now).map(|_| key.clone())
        };
        self.retries.iter_mut().filter_map(due).collect()
    }

    /// This node is no longer the leader: what others write from now on is no conflict.
    pub fn clear(&mut self) {
        self.memory.clear();
        self.retries.clear();
        // The next leader, another node or this one again, has seen the same and removes them.
        self.withdrawals.values_mut().for_each(|withdrawal| withdrawal.written_to = None);
    }
}

/// Whether a patch for this version was lost and has to wait.
fn waits(retries: &BTreeMap<ObjectKey, Retry>, key: &ObjectKey, record: &ApiMetadata) -> bool {
    retries.get(key).is_some_and(|retry| {
        retry.version.as_ref() == Some(&record.resource_version) && retry.due.is_some()
    })
}

/// The patch for a Service that is being deleted or is no longer of type LoadBalancer: the standard
/// service controllers leave a finalizer that nobody else removes. Pinnace adds none itself, because
/// nothing outside the cluster is left behind when a Service goes.
pub fn release_status(record: &ApiMetadata) -> Option<StatusPatch> {
    record.cleanup_finalizer.then(|| status_patch(record, None, true))
}

/// A patch for this version of a Service.
pub fn status_patch(
    record: &ApiMetadata,
    ingress: Option<Arc<[Ingress]>>,
    remove_finalizer: bool,
) -> StatusPatch {
    StatusPatch {
        uid: record.uid.clone(),
        resource_version: record.resource_version.clone(),
        ingress,
        remove_finalizer,
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
