//! The status patches that wait to be written: which one is sent next, and when. Sans-IO;
//! [`super::io::patcher`] sends them.
//!
//! Of each Service only the newest patch waits. A Service whose patch fails (its webhook is down,
//! say) waits alone; when the API server does not answer, all wait.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::common::backoff::Backoff;
use crate::common::token_bucket::{RateLimit, TokenBucket};
use crate::k8s::status::StatusPatch;
use crate::model::ObjectKey;

/// Maximum number of requests under way.
const CONCURRENT: usize = 8;
/// Requests to the API server.
static RATE: RateLimit = RateLimit { burst: 100, refill: Duration::from_millis(20) };
/// Delays after failures that may pass.
pub const RETRY: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));

/// Patches by Service. They replace earlier ones of the same Services.
pub type StatusPatches = BTreeMap<ObjectKey, StatusPatch>;

/// A patch that was not written and is not tried again: the engine decides anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedPatch {
    pub key: ObjectKey,
    /// The version it was decided for.
    pub resource_version: Arc<str>,
    /// The API server's message, if it refuses the patch whatever the version.
    pub refusal: Option<String>,
}

/// The outcome of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PatchOutcome {
    Written,
    /// The Service has another version by now, or is gone.
    Dropped(String),
    /// Refused, whatever the version.
    Refused(String),
    /// The API server does not answer, or asks all clients to wait for this long.
    Unanswered(Duration, String),
    /// The API server fails, with this Service at least.
    Failed(String),
    /// The credentials may not patch any Service.
    Forbidden(String),
}

/// When the next attempt may begin.
#[derive(Debug, Default)]
struct Hold {
    /// In a row.
    failures: u32,
    until: Duration,
}

impl Hold {
    fn extend(&mut self, at_least: Duration, now: Duration) {
        self.until = now + RETRY.delay(self.failures).max(at_least);
        self.failures = self.failures.saturating_add(1);
    }
}

/// See the module.
#[derive(Debug)]
pub struct PatchQueue {
    pending: StatusPatches,
    in_flight: BTreeSet<ObjectKey>,
    tokens: TokenBucket,
    /// For all Services.
    hold: Hold,
    /// For single Services.
    holds: BTreeMap<ObjectKey, Hold>,
}

impl PatchQueue {
    pub fn new(now: Duration) -> PatchQueue {
        PatchQueue {
            pending: BTreeMap::new(),
            in_flight: BTreeSet::new(),
            tokens: TokenBucket::new(&RATE, now),
            hold: Hold::default(),
            holds: BTreeMap::new(),
        }
    }

    pub fn push(&mut self, patches: StatusPatches) {
        self.pending.extend(patches);
    }

    /// Takes out the patch to send now. Its outcome must be given to
    /// [`PatchQueue::handle_outcome`]; until then no other patch of the same Service is sent.
    pub fn next(&mut self, now: Duration) -> Option<(ObjectKey, StatusPatch)> {
        if self.in_flight.len() >= CONCURRENT {
            return None;
        }
        let key = self.pending.keys().find(|key| self.is_ready(key, now))?.clone();
        if !self.tokens.take(now) {
            return None;
        }
        let patch = self.pending.remove(&key)?;
        self.in_flight.insert(key.clone());
        Some((key, patch))
    }

    /// When [`PatchQueue::next`] will return a patch; None: not before a patch is pushed or a request
    /// ends.
    pub fn poll_timeout(&self) -> Option<Duration> {
        if self.in_flight.len() >= CONCURRENT {
            return None;
        }
        let held_until = |key| self.holds.get(key).map_or(Duration::ZERO, |hold| hold.until);
        let idle = self.pending.keys().filter(|key| !self.in_flight.contains(*key));
        let first = idle.map(held_until).min()?;
        Some(first.max(self.hold.until).max(self.tokens.poll_timeout()))
    }

    /// Takes in the outcome of a request. A patch that may be tried again waits again, unless a newer
    /// one does; one that was given up is returned.
    pub fn handle_outcome(
        &mut self,
        key: ObjectKey,
        patch: StatusPatch,
        outcome: &PatchOutcome,
        now: Duration,
    ) -> Option<FailedPatch> {
        self.in_flight.remove(&key);
        let retry = match outcome {
            PatchOutcome::Unanswered(at_least, _) => {
                self.hold.extend(*at_least, now);
                true
            }
            PatchOutcome::Failed(_) => true,
            _ => false,
        };
        if retry {
            self.holds.entry(key.clone()).or_default().extend(Duration::ZERO, now);
            self.pending.entry(key).or_insert(patch);
            return None;
        }

        self.hold.failures = 0;
        self.holds.remove(&key);
        match outcome {
            PatchOutcome::Written => None,
            PatchOutcome::Refused(why) => Some(failed(key, patch, Some(why.clone()))),
            _ => Some(failed(key, patch, None)),
        }
    }

    /// Gives up all patches that wait: this process may not write any more.
    pub fn clear(&mut self) -> Vec<FailedPatch> {
        self.holds.clear();
        let patches = std::mem::take(&mut self.pending);
        patches.into_iter().map(|(key, patch)| failed(key, patch, None)).collect()
    }

    fn is_ready(&self, key: &ObjectKey, now: Duration) -> bool {
        !self.in_flight.contains(key)
            && self.hold.until <= now
            && self.holds.get(key).is_none_or(|hold| hold.until <= now)
    }
}

fn failed(key: ObjectKey, patch: StatusPatch, refusal: Option<String>) -> FailedPatch {
    FailedPatch { key, resource_version: patch.resource_version, refusal }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patch(version: &str) -> StatusPatch {
        StatusPatch {
            uid: "u".into(),
            resource_version: version.into(),
            ingress: None,
            remove_finalizer: false,
        }
    }

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn queue(names: &[&str]) -> PatchQueue {
        let mut queue = PatchQueue::new(Duration::ZERO);
        queue.push(names.iter().map(|name| (ObjectKey::new("a", name), patch("1"))).collect());
        queue
    }

    /// Sends everything that may go now, with this outcome; returns the names.
    fn send(queue: &mut PatchQueue, outcome: &PatchOutcome, now: Duration) -> Vec<String> {
        let mut sent = Vec::new();
        while let Some((key, patch)) = queue.next(now) {
            sent.push(key.name.to_string());
            queue.handle_outcome(key, patch, outcome, now);
        }
        sent
    }

    #[test]
    fn one_service_that_fails_delays_no_other() {
        let mut queue = queue(&["bad"]);
        let fails = PatchOutcome::Failed("a webhook".into());
        let mut at = Duration::ZERO;
        let mut delays = Vec::new();
        for _ in 0..9 {
            assert_eq!(send(&mut queue, &fails, at), ["bad"]);
            let next = queue.poll_timeout().expect("another attempt");
            delays.push((next - at).as_millis());
            at = next;
        }
        assert_eq!(delays, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]);

        let now = at - seconds(20.0);
        queue.push([(ObjectKey::new("a", "good"), patch("1"))].into());
        assert_eq!(queue.poll_timeout(), Some(Duration::ZERO), "it need not wait");
        assert_eq!(send(&mut queue, &PatchOutcome::Written, now), ["good"]);
        assert_eq!(queue.poll_timeout(), Some(at));
    }

    #[test]
    fn nobody_is_written_to_while_the_server_asks_all_to_wait() {
        let mut queue = queue(&["a", "b"]);
        let wait = PatchOutcome::Unanswered(seconds(5.0), "too many requests".into());
        assert_eq!(send(&mut queue, &wait, Duration::ZERO), ["a"]);
        assert_eq!(queue.poll_timeout(), Some(seconds(5.0)));
        assert_eq!(queue.next(seconds(4.9)), None);
        assert_eq!(send(&mut queue, &PatchOutcome::Written, seconds(5.1)), ["a", "b"]);
        assert_eq!(queue.poll_timeout(), None);
    }

    #[test]
    fn requests_are_bounded_in_number_and_rate_and_one_per_service_is_under_way() {
        let names: Vec<String> = (0..300).map(|number| format!("{number:03}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut queue = queue(&names);
        let mut first: Vec<_> =
            std::iter::from_fn(|| queue.next(Duration::ZERO)).take(CONCURRENT + 1).collect();
        assert_eq!((first.len(), queue.poll_timeout()), (CONCURRENT, None));
        queue.push([(first[0].0.clone(), patch("2"))].into());
        let (key, last) = first.pop().expect("a request");
        queue.handle_outcome(key, last, &PatchOutcome::Written, Duration::ZERO);
        let (next, _) = queue.next(Duration::ZERO).expect("room for one");
        assert_eq!(&*next.name, "008", "the first Service has a request under way");
        for (key, patch) in first {
            queue.handle_outcome(key, patch, &PatchOutcome::Written, Duration::ZERO);
        }
        let rest = send(&mut queue, &PatchOutcome::Written, Duration::ZERO);
        assert_eq!(rest.len() + CONCURRENT + 1, 100, "a burst");
        assert_eq!(queue.poll_timeout(), Some(Duration::from_millis(20)));
        assert_eq!(send(&mut queue, &PatchOutcome::Written, seconds(1.0)).len(), 50);
    }

    #[test]
    fn what_is_given_up_goes_back_and_what_failed_waits_unless_a_newer_one_does() {
        let mut queue = queue(&["a", "b", "c", "d"]);
        let sent: Vec<_> = std::iter::from_fn(|| queue.next(Duration::ZERO)).collect();
        queue.push([(ObjectKey::new("a", "a"), patch("2"))].into());
        let outcomes = [
            PatchOutcome::Failed("why".into()),
            PatchOutcome::Refused("never".into()),
            PatchOutcome::Dropped("too late".into()),
            PatchOutcome::Forbidden("no permission".into()),
        ];
        let failed: Vec<_> = sent
            .into_iter()
            .zip(&outcomes)
            .filter_map(|((key, patch), outcome)| {
                queue.handle_outcome(key, patch, outcome, Duration::ZERO)
            })
            .map(|failed| (failed.key.name.to_string(), failed.refusal))
            .collect();
        assert_eq!(
            failed,
            [
                ("b".to_owned(), Some("never".to_owned())),
                ("c".to_owned(), None),
                ("d".to_owned(), None)
            ]
        );
        let left = queue.clear();
        assert_eq!((left.len(), &*left[0].resource_version), (1, "2"));
        assert_eq!(queue.poll_timeout(), None);
    }
}
