//! Leader election by one Lease, sans-IO: the elector takes what was read or answered and returns
//! the next request.
//!
//! It trusts no clock but its own, which is monotonic. Another holder's Lease has expired when
//! *this* process saw no change in it for its whole duration; the times in the Lease do not count,
//! because clocks of nodes differ and are set. The leader may begin a write until [`WRITE_FOR`] after
//! the *start* of its last successful renewal. That is well before [`DURATION`], the time that the
//! others wait after they saw that renewal. A request that began in time ends within
//! [`REQUEST_TIMEOUT`] = DURATION − WRITE_FOR, so no request of an old leader is under way when a new
//! one begins. The exception is a process that was stopped in between: see [`super::status`].

use std::time::Duration;

/// `spec.leaseDurationSeconds`: how long the others wait after the last change that they saw.
pub const DURATION: Duration = Duration::from_secs(20);
/// Time between renewals: one write in seven seconds for the whole cluster.
pub const RENEW: Duration = Duration::from_secs(7);
/// How long after the start of a successful renewal the leader may begin a write.
pub const WRITE_FOR: Duration = Duration::from_secs(14);
/// Timeout of every request of the leader.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(6);
/// Delay after a failure, and between two reads of a Lease that another node holds. Up to as much
/// again is added at random.
pub const RETRY: Duration = Duration::from_secs(2);

/// The Lease as it was read or answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// `metadata.resourceVersion`.
    pub version: Box<str>,
    /// `spec.holderIdentity`; empty when released.
    pub holder: Box<str>,
    /// `spec.leaseDurationSeconds`: how long the others wait.
    pub duration: Duration,
    /// `spec.leaseTransitions`.
    pub transitions: i32,
}

/// A request to the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Get,
    /// Create the Lease with this process as holder: it does not exist.
    Create,
    /// Replace this version of the Lease, and no other.
    Update {
        /// `metadata.resourceVersion` that must still be the newest.
        version: Box<str>,
        /// The new `spec.holderIdentity`.
        holder: Box<str>,
        /// The new `spec.leaseTransitions`.
        transitions: i32,
        /// Whether `spec.acquireTime` is set to now.
        acquired: bool,
    },
}

/// The outcome of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseResponse {
    /// The Lease as it is now.
    Found(Observed),
    /// The Lease does not exist.
    NotFound,
    /// The Lease has another version by now.
    Conflict,
    /// The credentials have no permission.
    Forbidden,
    /// No answer, or an answer that says nothing about the Lease.
    Failed,
}

#[derive(Debug)]
struct HeldLease {
    /// Start of the last renewal that succeeded.
    renewed: Duration,
}

/// A candidate for leadership. See the module.
#[derive(Debug)]
pub struct LeaderElector {
    identity: Box<str>,
    /// The Lease as it was last read, and when it was first seen so.
    seen: Option<(Observed, Duration)>,
    absent: bool,
    held: Option<HeldLease>,
    next: Duration,
    /// Start of the request under way.
    asked: Option<Duration>,
}

impl LeaderElector {
    /// `identity` is written into the Lease. It is unique for each run, or a restarted process would
    /// take itself for the holder.
    pub fn new(identity: &str) -> LeaderElector {
        LeaderElector {
            identity: identity.into(),
            seen: None,
            absent: false,
            held: None,
            next: Duration::ZERO,
            asked: None,
        }
    }

    /// Whether this process may begin a write now.
    pub fn may_write(&self, now: Duration) -> bool {
        self.writes_until().is_some_and(|until| now < until)
    }

    /// Until when this process may begin a write, unless it renews the Lease.
    pub fn writes_until(&self) -> Option<Duration> {
        self.held.as_ref().map(|held| held.renewed + WRITE_FOR)
    }

    /// The identity of the holder, as it was last seen.
    pub fn holder(&self) -> Option<&str> {
        self.seen.as_ref().map(|(seen, _)| &*seen.holder).filter(|holder| !holder.is_empty())
    }

    /// When [`LeaderElector::request`] will return a request, unless one is under way.
    pub fn poll_timeout(&self) -> Duration {
        self.next
    }

    /// The request to send now. Its outcome must be given to [`LeaderElector::outcome`] before the
    /// next one is asked for.
    pub fn request(&mut self, now: Duration) -> Option<Request> {
        if self.asked.is_some() || now < self.next {
            return None;
        }
        self.asked = Some(now);
        let Some((seen, since)) = &self.seen else {
            return Some(if self.absent { Request::Create } else { Request::Get });
        };
        let ours = seen.holder == self.identity;
        let update = |transitions, acquired| {
            Some(Request::Update {
                version: seen.version.clone(),
                holder: self.identity.clone(),
                transitions,
                acquired,
            })
        };
        if ours && self.held.is_some() {
            return update(seen.transitions, false);
        }
        if seen.holder.is_empty() || ours || now >= *since + seen.duration {
            return update(seen.transitions.saturating_add(1), true);
        }
        Some(Request::Get)
    }

    /// Takes in the outcome of a request. `chance` is a random number in 0..1.
    pub fn outcome(&mut self, sent: &Request, outcome: LeaseResponse, now: Duration, chance: f64) {
        let asked = self.asked.take().unwrap_or(now);
        let retry = now + RETRY + RETRY.mul_f64(chance.clamp(0.0, 1.0));
        match outcome {
            LeaseResponse::Found(lease) => {
                self.absent = false;
                let holds = lease.holder == self.identity && *sent != Request::Get;
                let (ours, duration) = (lease.holder == self.identity, lease.duration);
                let free = lease.holder.is_empty();
                let since = match &self.seen {
                    Some((seen, since)) if *seen == lease => *since,
                    _ => now,
                };
                self.seen = Some((lease, since));
                if holds {
                    self.held = Some(HeldLease { renewed: asked });
                    self.next = asked + RENEW;
                } else {
                    self.held = self.held.take().filter(|_| ours);
                    self.next =
                        if free { now } else { retry.min((since + duration).max(now + RETRY / 2)) };
                }
            }
            LeaseResponse::NotFound => {
                // After an update this means that somebody has deleted it.
                self.seen = None;
                self.held = None;
                self.absent = true;
                self.next = now;
            }
            LeaseResponse::Conflict => {
                // Another write came first and must be read before anything else.
                self.seen = None;
                self.absent = false;
                self.next = now;
            }
            LeaseResponse::Forbidden => {
                self.seen = None;
                self.held = None;
                self.next = retry;
            }
            LeaseResponse::Failed => self.next = retry,
        }
        if self.held.as_ref().is_some_and(|held| now >= held.renewed + DURATION) {
            self.held = None;
        }
    }

    /// The request that releases the Lease at a planned end, so that the others need not wait. None
    /// when this process does not hold it.
    pub fn release(&mut self) -> Option<Request> {
        self.held.take()?;
        let (seen, _) = self.seen.take().filter(|(seen, _)| seen.holder == self.identity)?;
        Some(Request::Update {
            version: seen.version,
            holder: "".into(),
            transitions: seen.transitions,
            acquired: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The API server's part: one object, optimistic concurrency.
    #[derive(Default)]
    struct Store {
        lease: Option<Observed>,
        version: u64,
        writes: usize,
    }

    impl Store {
        fn serve(&mut self, request: &Request) -> LeaseResponse {
            match (request, self.lease.clone()) {
                (Request::Get, None) | (Request::Update { .. }, None) => LeaseResponse::NotFound,
                (Request::Get, Some(lease)) => LeaseResponse::Found(lease),
                (Request::Create, _) => LeaseResponse::Conflict,
                (Request::Update { version, .. }, Some(lease)) if *version != lease.version => {
                    LeaseResponse::Conflict
                }
                (Request::Update { holder, transitions, .. }, Some(_)) => {
                    self.version += 1;
                    self.writes += 1;
                    let version = self.version.to_string().into();
                    let lease = Observed {
                        version,
                        holder: holder.clone(),
                        duration: DURATION,
                        transitions: *transitions,
                    };
                    self.lease = Some(lease.clone());
                    LeaseResponse::Found(lease)
                }
            }
        }
    }

    /// Runs the machines whose index `lives` admits for these seconds, in steps of 100 ms; asserts
    /// that never two may write.
    fn run(
        machines: &mut [LeaderElector],
        store: &mut Store,
        seconds: std::ops::Range<u64>,
        reaches: impl Fn(usize, u64) -> bool,
    ) -> Vec<bool> {
        for tenth in seconds.start * 10..seconds.end * 10 {
            let now = Duration::from_millis(tenth * 100);
            for (index, machine) in machines.iter_mut().enumerate() {
                while let Some(request) = machine.request(now) {
                    let outcome = if reaches(index, tenth / 10) {
                        store.serve(&request)
                    } else {
                        LeaseResponse::Failed
                    };
                    machine.outcome(&request, outcome, now, index as f64 / 3.0);
                }
            }
            assert!(
                machines.iter().filter(|m| m.may_write(now)).count() <= 1,
                "two leaders at {now:?}"
            );
        }
        let end = Duration::from_secs(seconds.end);
        machines.iter().map(|machine| machine.may_write(end)).collect()
    }

    fn free() -> Store {
        Store {
            lease: Some(Observed {
                version: "0".into(),
                duration: DURATION,
                ..Observed::default()
            }),
            ..Store::default()
        }
    }

    #[test]
    fn one_leads_a_lost_one_stops_and_another_takes_over() {
        let (mut store, mut machines) = (free(), ["a", "b", "c"].map(LeaderElector::new));
        assert_eq!(run(&mut machines, &mut store, 0..60, |_, _| true), [true, false, false]);
        assert!(store.writes <= 10, "{} writes in a minute", store.writes);
        // The holder is cut off: it stops in time, and after the duration another one writes.
        let after = run(&mut machines, &mut store, 60..100, |index, _| index != 0);
        assert!(!after[0] && (after[1] ^ after[2]), "{after:?}");
        let again = run(&mut machines, &mut store, 100..130, |_, _| true);
        assert_eq!(again, after, "one that comes back waits its turn");
        assert_eq!(store.lease.as_ref().map(|lease| lease.transitions), Some(2));
    }

    #[test]
    fn one_that_may_no_longer_renew_stops_at_once() {
        let (mut store, mut machines) = (free(), ["a"].map(LeaderElector::new));
        run(&mut machines, &mut store, 0..5, |_, _| true);
        let now = Duration::from_secs(7);
        let renewal = machines[0].request(now).expect("a renewal");
        machines[0].outcome(&renewal, LeaseResponse::Forbidden, now, 0.0);
        assert!(!machines[0].may_write(now) && machines[0].holder().is_none());
        assert_eq!(run(&mut machines, &mut store, 10..60, |_, _| true), [true], "it may again");
    }

    #[test]
    fn one_that_leaves_makes_nobody_wait() {
        let (mut store, mut machines) = (free(), ["a", "b"].map(LeaderElector::new));
        run(&mut machines, &mut store, 0..10, |_, _| true);
        let release = machines[0].release().expect("it holds the Lease");
        assert!(
            matches!(store.serve(&release), LeaseResponse::Found(lease) if lease.holder.is_empty())
        );
        assert_eq!(run(&mut machines[1..], &mut store, 10..16, |_, _| true), [true]);
        assert_eq!(machines[0].release(), None);
    }

    #[test]
    fn a_stopped_process_does_not_write_when_it_wakes() {
        let (mut store, mut machines) = (free(), ["a", "b"].map(LeaderElector::new));
        run(&mut machines, &mut store, 0..10, |_, _| true);
        assert_eq!(run(&mut machines[1..], &mut store, 10..50, |_, _| true), [true]);
        assert!(!machines[0].may_write(Duration::from_secs(50)));
        assert_eq!(run(&mut machines, &mut store, 50..60, |_, _| true), [false, true]);
    }

    #[test]
    fn an_absent_lease_is_created_and_a_deleted_one_made_anew() {
        let mut machine = LeaderElector::new("a");
        let get = machine.request(Duration::ZERO).expect("a look");
        machine.outcome(&get, LeaseResponse::NotFound, Duration::ZERO, 0.0);
        let create = machine.request(Duration::ZERO).expect("creation");
        assert_eq!((get, create.clone()), (Request::Get, Request::Create));
        let made = Observed {
            version: "1".into(),
            holder: "a".into(),
            duration: DURATION,
            transitions: 0,
        };
        machine.outcome(&create, LeaseResponse::Found(made), Duration::ZERO, 0.0);
        assert!(machine.may_write(Duration::from_secs(13)) && !machine.may_write(WRITE_FOR));
        let renewal = machine.request(RENEW).expect("a renewal");
        machine.outcome(&renewal, LeaseResponse::NotFound, RENEW, 0.0);
        assert!(!machine.may_write(RENEW), "deleted under us: another may have it already");
        assert_eq!(machine.request(RENEW), Some(Request::Create));
    }
}
