//! What the writer puts into `status.loadBalancer.ingress`, and when it must stop: somebody else
//! may be writing the same field.
//!
//! Why two writers for a moment do no lasting harm. A Lease says who writes, and its holder stops
//! before the Lease can have another one (see [`super::leader`]). That alone does not bind a
//! process that was stopped between its decision and its request. So each write carries the uid and
//! resourceVersion it was decided for, and the API server refuses it once anybody has written to
//! that Service. What is left is one address in the statuses of two Services, given by an old
//! writer to one and by its successor to the other. Every node settles that alike: the older
//! Service has it ([`crate::ipam`]), and the writer gives the other one a new address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::model::{ApiMetadata, Ingress, IngressPort, ObjectKey, Service, ServicePort};

/// What the writer wants the API server to keep about a Service. It is written only onto the
/// version it was decided for: an answer to an older one is refused there, and the newer one is
/// decided about when the watch brings it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusPatch {
    /// `metadata.uid` and `metadata.resourceVersion` it was decided for.
    pub uid: Arc<str>,
    /// See `uid`.
    pub resource_version: Arc<str>,
    /// All of `status.loadBalancer.ingress`; None: as it is.
    pub ingress: Option<Arc<[Ingress]>>,
    /// Take the finalizer `service.kubernetes.io/load-balancer-cleanup` away.
    pub remove_finalizer: bool,
}

/// In what time replacements are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// So often somebody may replace what we wrote, in [`WINDOW`].
const REPLACED: u8 = 3;
/// So often the same may be written, in [`WINDOW`]: somebody may be quicker than our watch.
const REPEATED: u8 = 6;
/// For how long a status is left alone after that; doubled each time, up to [`LONGEST_TRUCE`].
const BACKOFF: Duration = Duration::from_secs(60);
const MAX_BACKOFF: Duration = Duration::from_secs(3600);
/// After a publication that was refused or did not go out; doubled each time, up to
/// [`LONGEST_RETRY`].
const RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(120);

/// The error of a port that leads nowhere, as `status.loadBalancer.ingress[].ports[]` wants it
/// (KEP-1435): with our domain.
const UNMATCHED: &str = "pinnace.dev/PortWithoutEndpoints";
/// What to do about ServiceLB.
const SERVICELB_OFF: &str = "start every K3s server with --disable=servicelb";

/// Somebody else writes the status of a Service of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatusConflict {
    /// It was replaced and is put right; what stood there.
    Corrected(Arc<[Ingress]>),
    /// It is replaced again and again and left alone for this long; what stood there.
    LeftAlone(Arc<[Ingress]>, Duration),
    /// The finalizer of the standard service controllers was put on it while we looked on: one of
    /// them is at work.
    Claimed,
}

impl StatusConflict {
    /// A sentence that says what to do. `nodes` are the addresses of the nodes.
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
            StatusConflict::LeftAlone(stood, truce) => {
                // Services of a foreign class it empties, those without a class it gives the
                // addresses of nodes.
                let servicelb =
                    stood.iter().all(|entry| entry.ip.is_some_and(|ip| nodes.contains(&ip)));
                let advice = match servicelb {
                    true => format!("this looks like K3s ServiceLB: {SERVICELB_OFF}"),
                    false => "find the other load balancer and stop it, or give the Service a spec.loadBalancerClass".to_owned(),
                };
                let (stood, seconds) = (entries(stood), truce.as_secs());
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
/// `ipMode` is VIP (KEP-1860) because packets reach the nodes with the address as destination, so
/// that kube-proxy may short-cut traffic from pods. `unmatched` ports have an error.
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

/// Whether this is what we wrote. API servers before 1.30 do not know `ipMode` and leave it out,
/// which means VIP: nobody has changed anything then.
fn stands(ingress: &[Ingress], wanted: &[Ingress]) -> bool {
    let equal = |(stood, wanted): (&Ingress, &Ingress)| match (stood.vip, wanted.vip) {
        (None, Some(true)) => Ingress { vip: wanted.vip, ..stood.clone() } == *wanted,
        _ => stood == wanted,
    };
    ingress.len() == wanted.len() && ingress.iter().zip(wanted).all(equal)
}

/// What is remembered about the status of one Service.
#[derive(Debug, Default)]
struct Memory {
    /// Belongs to this object.
    uid: Option<Arc<str>>,
    /// What should stand there.
    wanted: Option<Arc<[Ingress]>>,
    /// It stood there when we looked last.
    stood: bool,
    /// The finalizer of the service controllers was not there at first: whoever sets it now is at
    /// work, and not one who left it long ago.
    unclaimed: bool,
    /// The version that was last written to: it is written to once.
    written_to: Option<Arc<str>>,
    replaced: Recent,
    written: Recent,
    truce: Duration,
    until: Option<Duration>,
}

/// How often something happened in one [`WINDOW`], which begins with the first time.
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

    /// The last time did not come to anything.
    fn take_back(&mut self) {
        self.times = self.times.saturating_sub(1);
    }
}

/// The writer's memory: what it wrote, and who wrote over it.
#[derive(Debug, Default)]
pub struct StatusReconciler {
    // Boxed, as the engine's large values are.
    memory: BTreeMap<ObjectKey, Box<Memory>>,
    retries: BTreeMap<ObjectKey, Retry>,
    withdrawals: BTreeMap<ObjectKey, Withdrawal>,
}

/// A Service that is to be ignored from now on, with addresses of ours in its status.
#[derive(Debug)]
struct Withdrawal {
    /// What is to be taken out of it.
    stood: Arc<[Ingress]>,
    /// The version that it was taken out of, as far as is known.
    written_to: Option<Arc<str>>,
}

/// A publication came to nothing.
#[derive(Debug, Default)]
struct Retry {
    /// The version it was decided for: a newer one need not wait.
    version: Option<Arc<str>>,
    /// So many in a row.
    failures: u32,
    /// When the Service is looked at again; None: it has been.
    due: Option<Duration>,
}

/// What follows from one look at a Service.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// To be written.
    pub publication: Option<StatusPatch>,
    /// To be said.
    pub interference: Option<StatusConflict>,
}

impl StatusReconciler {
    /// Compares what stands with what should; `wanted` None: nothing can be said about it yet.
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
        memory.uid = Some(record.uid.clone()); // of the newest record, for the one before goes
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
            // A new wish of ours is no quarrel with anybody.
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
            let calm = memory.until.is_none_or(|until| until + memory.truce <= now);
            memory.truce = if calm { BACKOFF } else { (memory.truce * 2).min(MAX_BACKOFF) };
            memory.until = Some(now + memory.truce);
            (memory.replaced, memory.written) = Default::default();
            let interference = StatusConflict::LeftAlone(record.ingress.clone(), memory.truce);
            return Decision { publication: None, interference: Some(interference) };
        }
        memory.written.note(now);
        memory.written_to = Some(record.resource_version.clone());
        Decision {
            publication: Some(status_patch(record, Some(wanted), false)),
            interference: corrected.then(|| StatusConflict::Corrected(record.ingress.clone())),
        }
    }

    /// Whether what is wanted for the Service stood in its status before: then anything else there
    /// is not ours.
    pub fn stood(&self, key: &ObjectKey) -> bool {
        self.memory.get(key).is_some_and(|memory| memory.stood)
    }

    /// For how long the status of the Service is left alone.
    pub fn backoff(&self, key: &ObjectKey, now: Duration) -> Option<Duration> {
        self.memory.get(key)?.until?.checked_sub(now).filter(|left| !left.is_zero())
    }

    /// The Services whose truce is over.
    pub fn expired(&mut self, now: Duration) -> Vec<ObjectKey> {
        let over = |memory: &Memory| {
            memory.until.is_some_and(|until| until <= now && until + BACKOFF * 2 > now)
        };
        self.memory.iter().filter(|(_, memory)| over(memory)).map(|(key, _)| key.clone()).collect()
    }

    /// The Service is no longer ours to publish; `gone`: nor is there anything else to write about
    /// it.
    pub fn forget(&mut self, key: &ObjectKey, gone: bool) {
        self.memory.remove(key);
        if gone {
            self.retries.remove(key);
        }
    }

    /// A publication did not go out, or was refused, and will not be tried again unless it is
    /// decided anew. True when it is the first in a row.
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
        retry.due = Some(now + (RETRY * (1 << retry.failures.min(16))).min(MAX_RETRY));
        retry.failures = retry.failures.saturating_add(1);
        retry.failures == 1
    }

    /// The Service is to be ignored from now on. What stands in its status is ours and must not
    /// stay: another Service may be given the addresses.
    pub fn withdraw(&mut self, key: &ObjectKey, record: &ApiMetadata) {
        self.withdrawals
            .insert(key.clone(), Withdrawal { stood: record.ingress.clone(), written_to: None });
    }

    /// Whether it still stands there. This is over with the first status that is anything else:
    /// what comes then is another's.
    pub fn withdraws(&mut self, key: &ObjectKey, record: &ApiMetadata) -> bool {
        let Some(withdrawal) = self.withdrawals.get(key) else { return false };
        let stands = withdrawal.stood == record.ingress;
        if !stands {
            self.withdrawals.remove(key);
        }
        stands
    }

    /// What takes it out, unless that is under way or its time has not come. Until it is known to
    /// be lost nothing more is written: the same in a later version may be another's.
    pub fn withdrawal(&mut self, key: &ObjectKey, record: &ApiMetadata) -> Option<StatusPatch> {
        let withdrawal = self.withdrawals.get_mut(key)?;
        if withdrawal.written_to.is_some() || waits(&self.retries, key, record) {
            return None;
        }
        withdrawal.written_to = Some(record.resource_version.clone());
        Some(status_patch(record, Some(Arc::default()), false))
    }

    /// The Service is not to be ignored, or gone.
    pub fn keep(&mut self, key: &ObjectKey) {
        self.withdrawals.remove(key);
    }

    /// When a Service is to be looked at again because a publication was lost.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.retries.values().filter_map(|retry| retry.due).min()
    }

    /// The Services whose time it is.
    pub fn retries(&mut self, now: Duration) -> Vec<ObjectKey> {
        let due = |(key, retry): (&ObjectKey, &mut Retry)| {
            retry.due.take_if(|due| *due <= now).map(|_| key.clone())
        };
        self.retries.iter_mut().filter_map(due).collect()
    }

    /// This node no longer writes: what others write from now on is no quarrel.
    pub fn clear(&mut self) {
        self.memory.clear();
        self.retries.clear();
        // The next writer has seen the same and takes them back, be it another node or this one
        // again.
        self.withdrawals.values_mut().for_each(|withdrawal| withdrawal.written_to = None);
    }
}

/// Whether a publication for this version was lost and its time has not come.
fn waits(retries: &BTreeMap<ObjectKey, Retry>, key: &ObjectKey, record: &ApiMetadata) -> bool {
    retries.get(key).is_some_and(|retry| {
        retry.version.as_ref() == Some(&record.resource_version) && retry.due.is_some()
    })
}

/// For a Service of ours that is being deleted or is no load balancer any more: the standard
/// service controllers leave a finalizer that nobody else would take away. We add none ourselves:
/// nothing outside the cluster is left behind when a Service goes.
pub fn release_status(record: &ApiMetadata) -> Option<StatusPatch> {
    record.cleanup_finalizer.then(|| status_patch(record, None, true))
}

/// What is to be written onto this version of a Service.
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
mod tests {
    use super::*;
    use crate::model::fixtures::service;

    fn record(version: u64, ingress: &[Ingress]) -> ApiMetadata {
        ApiMetadata {
            uid: "u".into(),
            resource_version: version.to_string().into(),
            ingress: ingress.into(),
            cleanup_finalizer: false,
            deleting: false,
        }
    }

    #[test]
    fn a_change_by_hand_is_put_right_and_a_fight_is_left() {
        let service = service("web");
        let ours = ingress(&service, &["10.88.0.200".parse().unwrap()], &[]);
        assert_eq!((ours[0].vip, ours[0].ports[0].port), (Some(true), 80));
        let mut publisher = StatusReconciler::default();
        let mut version = 0;
        let mut look = |stands: &[Ingress], at: u64| {
            version += 1;
            publisher.decide(
                &service.key,
                &record(version, stands),
                Some(ours.clone()),
                Duration::from_secs(at),
            )
        };
        let first = look(&[], 0);
        assert!(first.publication.is_some() && first.interference.is_none());
        for second in 1..=REPLACED as u64 {
            assert_eq!(look(&ours, second), Decision::default());
            let decision = look(&[], second);
            assert!(
                decision.publication.is_some()
                    && matches!(decision.interference, Some(StatusConflict::Corrected(_))),
                "{second}"
            );
        }
        look(&ours, 5);
        let left = look(&[], 6);
        let Some(why @ StatusConflict::LeftAlone(_, BACKOFF)) = &left.interference else {
            panic!("{left:?}")
        };
        assert!(
            left.publication.is_none()
                && why.sentence(&BTreeSet::new()).contains("--disable=servicelb")
        );
        assert_eq!(look(&[], 60), Decision::default(), "the truce holds");
        assert!(look(&[], 66).publication.is_some(), "and ends");
    }

    #[test]
    fn wishes_that_change_often_are_no_quarrel() {
        let service = service("web");
        let mut publisher = StatusReconciler::default();
        for number in 0..100u8 {
            let wanted = ingress(&service, &[[10, 88, 0, number].into()], &[]);
            let stands = ingress(&service, &[[10, 88, 0, number.wrapping_sub(1)].into()], &[]);
            let now = Duration::from_millis(100 * u64::from(number));
            let decision = publisher.decide(
                &service.key,
                &record(u64::from(number), &stands),
                Some(wanted),
                now,
            );
            assert!(
                decision.publication.is_some() && decision.interference.is_none(),
                "{number}: {decision:?}"
            );
        }
    }

    #[test]
    fn a_controller_that_claims_the_service_is_told_apart_from_a_finalizer_left_behind() {
        let service = service("web");
        let wanted = Some(ingress(&service, &["10.88.0.200".parse().unwrap()], &[]));
        let claimed = |version| ApiMetadata {
            cleanup_finalizer: true,
            ..record(version, wanted.as_ref().unwrap())
        };
        let mut publisher = StatusReconciler::default();
        let mut look = |record: &ApiMetadata| {
            publisher.decide(&service.key, record, wanted.clone(), Duration::ZERO).interference
        };
        assert_eq!(look(&claimed(1)), None, "from before");
        assert_eq!(look(&record(2, wanted.as_ref().unwrap())), None);
        let why = look(&claimed(3)).expect("somebody is at work");
        assert!(why.sentence(&BTreeSet::new()).contains("--disable=servicelb"));
        assert_eq!(look(&claimed(4)), None, "said once");
    }

    #[test]
    fn what_was_lost_is_written_again_later_and_later() {
        let service = service("web");
        let wanted = Some(ingress(&service, &["10.88.0.200".parse().unwrap()], &[]));
        let mut publisher = StatusReconciler::default();
        let mut written = Vec::new();
        for second in 0..1000 {
            let now = Duration::from_secs(second);
            publisher.retries(now);
            let decision = publisher.decide(&service.key, &record(1, &[]), wanted.clone(), now);
            assert_eq!(decision.interference, None, "nobody else wrote");
            if decision.publication.is_some() {
                assert_eq!(publisher.lost(&service.key, "1", now), written.is_empty());
                written.push(second);
            }
        }
        assert_eq!(written[..9], [0, 1, 3, 7, 15, 31, 63, 127, 247]);
        assert!(
            publisher
                .decide(&service.key, &record(2, &[]), wanted.clone(), Duration::from_secs(1000))
                .publication
                .is_some(),
            "new version"
        );
        publisher.decide(
            &service.key,
            &record(3, &wanted.clone().unwrap()),
            wanted,
            Duration::from_secs(1001),
        );
        assert_eq!(publisher.poll_timeout(), None);
    }

    #[test]
    fn a_server_that_leaves_the_mode_of_an_address_out_is_no_quarrel() {
        let service = service("web");
        let wanted =
            ingress(&service, &["10.88.0.200".parse().unwrap(), "fd00::1".parse().unwrap()], &[]);
        let mut publisher = StatusReconciler::default();
        let mut look = |version: u64, stands: &[Ingress]| {
            publisher.decide(
                &service.key,
                &record(version, stands),
                Some(wanted.clone()),
                Duration::from_secs(version),
            )
        };
        assert!(look(1, &[]).publication.is_some());
        let without: Vec<Ingress> =
            wanted.iter().map(|entry| Ingress { vip: None, ..entry.clone() }).collect();
        assert_eq!(look(2, &without), Decision::default());
        let proxy: Vec<Ingress> =
            wanted.iter().map(|entry| Ingress { vip: Some(false), ..entry.clone() }).collect();
        assert!(
            matches!(look(3, &proxy).interference, Some(StatusConflict::Corrected(_))),
            "Proxy is another's wish"
        );
        assert_eq!(look(4, &wanted), Decision::default());
        assert!(look(5, &without[..1]).interference.is_some(), "an address less is a change");
    }

    #[test]
    fn one_version_is_written_to_once() {
        let service = service("web");
        let wanted = Some(ingress(&service, &["10.88.0.200".parse().unwrap()], &[]));
        let mut publisher = StatusReconciler::default();
        assert!(
            publisher
                .decide(&service.key, &record(1, &[]), wanted.clone(), Duration::ZERO)
                .publication
                .is_some()
        );
        assert!(
            publisher
                .decide(&service.key, &record(1, &[]), wanted, Duration::ZERO)
                .publication
                .is_none()
        );
    }
}
