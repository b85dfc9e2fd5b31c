//! The queue of Events on their way to the API server. A repeated Event is counted and not created
//! again; an object with too many Events has the rest of them dropped. Sans-IO;
//! [`super::io::event_sink`] sends them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::common::token_bucket::{RateLimit, TokenBucket};
use crate::model::ObjectKey;
use crate::model::diagnostic::{Diagnostic, INVALID_OBJECT};
use crate::model::role::Role;

/// Minimum time between two updates of the count of one Event.
const UPDATE: Duration = Duration::from_secs(60);
/// How long an Event lives in the API server by default. A repetition after that creates a new one.
const LIFE: Duration = Duration::from_secs(3600);
/// New Events about one object.
static OBJECT: RateLimit = RateLimit { burst: 25, refill: Duration::from_secs(60) };
/// Requests of this node.
static ALL: RateLimit = RateLimit { burst: 50, refill: Duration::from_millis(200) };
/// Maximum number of Events that wait to be sent.
const QUEUE: usize = 1000;
/// Maximum number of Events that are remembered in order to count repetitions.
const MEMORY: usize = 4000;
/// Maximum length of `message` of an Event, in bytes.
const MESSAGE: usize = 1024;

/// The object an Event is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A Service, and its uid where it is known.
    Service(ObjectKey, Option<Arc<str>>),
    /// A Node.
    Node(Box<str>),
}

/// Whether a node with this role sends the diagnostic as an Event. The leader reports on Services and
/// Node objects, so that each Event is sent once. What only one node can see is reported by that
/// node, about itself or the Service.
pub fn reported_by(diagnostic: &Diagnostic, role: Role) -> bool {
    match &diagnostic.service {
        _ if diagnostic.node.is_some() => role == Role::Leader,
        Some(_) => role == Role::Leader || diagnostic.reason == "AddressConflict",
        // All nodes see the same objects; their problems are in the log and status of each node.
        None => diagnostic.warning && diagnostic.reason != INVALID_OBJECT,
    }
}

/// What makes two Events the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    pub subject: Subject,
    /// `reason` of the Event, in CamelCase.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
}

/// An Event to create, or to count up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Send {
    pub identity: Identity,
    /// Type Warning, else Normal.
    pub warning: bool,
    /// Different for every Event that is created; the same when it is updated.
    pub number: u64,
    /// The Event exists: only `count` and `last` change.
    pub update: bool,
    /// Number of occurrences.
    pub count: u32,
    /// Time of the first occurrence, by the monotonic clock.
    pub first: Duration,
    /// Time of the last occurrence.
    pub last: Duration,
}

#[derive(Debug)]
struct EventRecord {
    warning: bool,
    number: u64,
    count: u32,
    first: Duration,
    last: Duration,
    /// When it was last written; None: it does not exist yet.
    written: Option<Duration>,
    queued: bool,
}

/// See the module.
#[derive(Debug)]
pub struct EventQueue {
    records: BTreeMap<Identity, EventRecord>,
    objects: BTreeMap<Subject, TokenBucket>,
    all: TokenBucket,
    /// Events to create or update, each once, in the order in which they are due: the warnings, then
    /// the others. In a storm warnings do not wait behind what went well.
    queues: [VecDeque<(Duration, Identity)>; 2],
    number: u64,
    dropped: u64,
}

impl Default for EventQueue {
    fn default() -> EventQueue {
        EventQueue {
            records: BTreeMap::new(),
            objects: BTreeMap::new(),
            all: TokenBucket::new(&ALL, Duration::ZERO),
            queues: Default::default(),
            number: 0,
            dropped: 0,
        }
    }
}

impl EventQueue {
    /// Adds an occurrence of an Event.
    pub fn push(
        &mut self,
        subject: Subject,
        warning: bool,
        reason: &'static str,
        mut message: String,
        now: Duration,
    ) {
        let end =
            (0..=MESSAGE).rev().find(|end| message.is_char_boundary(*end)).unwrap_or_default();
        message.truncate(end);
        let identity = Identity { subject, reason, message };
        if self
            .records
            .get(&identity)
            .is_some_and(|record| !record.queued && now >= record.last + LIFE)
        {
            self.records.remove(&identity);
        }
        if let Some(record) = self.records.get_mut(&identity) {
            record.count = record.count.saturating_add(1);
            record.last = now;
            if !record.queued {
                record.queued = true;
                let due = record.written.map_or(now, |written| now.max(written + UPDATE));
                let warning = record.warning;
                self.enqueue(due, warning, identity);
            }
            return;
        }
        self.forget(now);
        let tokens = self
            .objects
            .entry(identity.subject.clone())
            .or_insert_with(|| TokenBucket::new(&OBJECT, now));
        if !tokens.take(now) || !self.room(warning) {
            self.dropped += 1;
            return;
        }
        self.number += 1;
        let record = EventRecord {
            warning,
            number: self.number,
            count: 1,
            first: now,
            last: now,
            written: None,
            queued: true,
        };
        self.records.insert(identity.clone(), record);
        self.enqueue(now, warning, identity);
    }

    /// Whether one more Event may wait. A warning displaces the last Event that is none.
    fn room(&mut self, warning: bool) -> bool {
        if self.queues.iter().map(VecDeque::len).sum::<usize>() < QUEUE {
            return true;
        }
        let Some((_, identity)) = warning.then(|| self.queues[1].pop_back()).flatten() else {
            return false;
        };
        self.records.remove(&identity);
        self.dropped += 1;
        true
    }

    fn enqueue(&mut self, due: Duration, warning: bool, identity: Identity) {
        let queue = &mut self.queues[usize::from(!warning)];
        let at = queue.partition_point(|(other, _)| *other <= due);
        queue.insert(at, (due, identity));
    }

    /// Makes room among what is remembered: expired Events go first, then the oldest.
    fn forget(&mut self, now: Duration) {
        if self.records.len() >= MEMORY {
            self.records.retain(|_, record| record.queued || now < record.last + LIFE);
        }
        while self.records.len() >= MEMORY {
            let oldest = self
                .records
                .iter()
                .filter(|(_, record)| !record.queued)
                .min_by_key(|(_, record)| record.last);
            let Some(identity) = oldest.map(|(identity, _)| identity.clone()) else { break };
            self.records.remove(&identity);
        }
        if self.objects.len() >= MEMORY {
            self.objects.retain(|_, tokens| !tokens.is_full(now));
        }
    }

    /// When [`EventQueue::next`] will return an Event; None: not before one is pushed.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let due = self.queues.iter().filter_map(|queue| queue.front()).map(|(due, _)| *due).min();
        due.map(|due| due.max(self.all.poll_timeout()))
    }

    /// The Event to send now. Its outcome must be given to [`EventQueue::sent`] or
    /// [`EventQueue::failed`] before the next one is asked for.
    pub fn next(&mut self, now: Duration) -> Option<Send> {
        let due = |queue: &VecDeque<(Duration, Identity)>| {
            queue.front().is_some_and(|(due, _)| *due <= now)
        };
        let at = self.queues.iter().position(due)?;
        if !self.all.take(now) {
            return None;
        }
        let (_, identity) = self.queues[at].pop_front()?;
        let record = self.records.get_mut(&identity)?;
        record.queued = false;
        let (first, last, update) = (record.first, record.last, record.written.is_some());
        Some(Send {
            identity,
            warning: record.warning,
            number: record.number,
            update,
            count: record.count,
            first,
            last,
        })
    }

    /// The API server has it.
    pub fn sent(&mut self, send: &Send, now: Duration) {
        if let Some(record) = self.records.get_mut(&send.identity) {
            record.written = Some(now);
        }
    }

    /// The API server does not have it: it is sent again after `pause`. With `absent` the Event to
    /// update is gone, and a new one is created.
    pub fn failed(&mut self, send: &Send, absent: bool, pause: Duration, now: Duration) {
        let Some(record) = self.records.get_mut(&send.identity) else { return };
        if absent {
            self.number += 1;
            record.written = None;
            record.number = self.number;
        }
        if !record.queued {
            record.queued = true;
            self.enqueue(now + pause, send.warning, send.identity.clone());
        }
    }

    /// Drops all Events that wait, because none can be sent.
    pub fn clear(&mut self) {
        self.dropped += self.queues.iter().map(|queue| queue.len() as u64).sum::<u64>();
        self.queues = Default::default();
        self.records.clear();
    }

    /// Number of Events that were never sent.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web() -> Subject {
        Subject::Service(ObjectKey::new("default", "web"), Some("u".into()))
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Everything that goes out until this time.
    fn drain(events: &mut EventQueue, now: Duration) -> Vec<Send> {
        std::iter::from_fn(|| events.next(now).inspect(|send| events.sent(send, now))).collect()
    }

    #[test]
    fn the_same_said_again_is_counted_at_most_once_a_minute() {
        let mut events = EventQueue::default();
        let mut sent = Vec::new();
        for second in 0..300 {
            events.push(
                web(),
                true,
                "SyncLoadBalancerFailed",
                "no address".into(),
                seconds(second),
            );
            sent.extend(drain(&mut events, seconds(second)));
        }
        let updates: Vec<_> = sent
            .iter()
            .map(|send| (send.update, send.count, send.number, send.last.as_secs()))
            .collect();
        assert_eq!(
            updates,
            [
                (false, 1, 1, 0),
                (true, 61, 1, 60),
                (true, 121, 1, 120),
                (true, 181, 1, 180),
                (true, 241, 1, 240)
            ]
        );
        events.push(
            web(),
            true,
            "SyncLoadBalancerFailed",
            "no address".into(),
            seconds(299 + 3600),
        );
        let again = drain(&mut events, seconds(4000));
        assert!(again.len() == 1 && again[0].count == 301, "a count that waits is not lost");
    }

    #[test]
    fn an_object_with_too_many_events_takes_no_room_from_others() {
        let mut events = EventQueue::default();
        for number in 0..1000 {
            events.push(
                web(),
                false,
                "UpdatedLoadBalancer",
                format!("message {number}"),
                seconds(1),
            );
        }
        events.push(Subject::Node("node-1".into()), true, "Ipv6Off", "é".repeat(2000), seconds(1));
        let sent = drain(&mut events, seconds(1));
        assert_eq!(sent.len(), 26);
        assert!(sent[0].identity.message.len() == 1024 && events.dropped() == 975);
        events.push(web(), false, "UpdatedLoadBalancer", "later".into(), seconds(62));
        assert_eq!(drain(&mut events, seconds(62)).len(), 1);
    }

    #[test]
    fn a_storm_goes_out_at_a_bounded_rate_and_waits_in_a_bounded_queue() {
        let mut events = EventQueue::default();
        for number in 0..10_000 {
            let subject =
                Subject::Service(ObjectKey::new("default", &format!("web-{number}")), None);
            events.push(subject, false, "EnsuredLoadBalancer", "serving".into(), seconds(1));
        }
        assert_eq!(drain(&mut events, seconds(1)).len(), 50);
        assert_eq!(events.poll_timeout(), Some(seconds(1) + ALL.refill));
        assert_eq!(drain(&mut events, seconds(2)).len(), 5);
        assert_eq!(events.dropped(), 9000);
        assert!(events.records.len() <= MEMORY);
    }

    #[test]
    fn in_a_storm_warnings_go_first_and_are_the_last_to_be_dropped() {
        let mut events = EventQueue::default();
        let about = |number: u32| {
            Subject::Service(ObjectKey::new("default", &format!("web-{number}")), None)
        };
        for number in 0..1000 {
            events.push(about(number), false, "EnsuredLoadBalancer", "serving".into(), seconds(1));
        }
        for number in 1000..1900 {
            events.push(
                about(number),
                true,
                "SyncLoadBalancerFailed",
                "no address".into(),
                seconds(2),
            );
        }
        let sent: Vec<_> =
            (2..220).flat_map(|second| drain(&mut events, seconds(second))).collect();
        assert_eq!((sent.len(), events.dropped()), (1000, 900));
        assert!(
            sent[..900].iter().all(|send| send.warning)
                && sent[900..].iter().all(|send| !send.warning)
        );
        assert_eq!(events.poll_timeout(), None);
    }

    #[test]
    fn one_that_failed_is_tried_again_and_one_that_expired_is_made_anew() {
        let mut events = EventQueue::default();
        events.push(web(), false, "EnsuredLoadBalancer", "serving".into(), seconds(0));
        let send = events.next(seconds(0)).expect("a new one");
        events.failed(&send, false, seconds(5), seconds(0));
        assert_eq!((events.next(seconds(4)), events.poll_timeout()), (None, Some(seconds(5))));
        drain(&mut events, seconds(5));
        events.push(web(), false, "EnsuredLoadBalancer", "serving".into(), seconds(100));
        let update = events.next(seconds(100)).expect("an update");
        events.failed(&update, true, seconds(0), seconds(100));
        let anew = events.next(seconds(100)).expect("a new one");
        assert!(update.update && !anew.update && anew.number != update.number && anew.count == 2);
    }

    #[test]
    fn each_diagnostic_is_reported_by_one_node() {
        let mut diagnostic = Diagnostic {
            warning: false,
            service: Some(ObjectKey::new("a", "b")),
            node: None,
            reason: "EnsuredLoadBalancer",
            message: "".into(),
        };
        assert!(
            reported_by(&diagnostic, Role::Leader) && !reported_by(&diagnostic, Role::Follower)
        );
        diagnostic.reason = "AddressConflict";
        assert!(reported_by(&diagnostic, Role::Follower));
        diagnostic.service = None;
        diagnostic.reason = "Stalled";
        assert!(!reported_by(&diagnostic, Role::Leader));
        diagnostic.warning = true;
        assert!(reported_by(&diagnostic, Role::Follower));
        diagnostic.reason = INVALID_OBJECT;
        assert!(!reported_by(&diagnostic, Role::Follower));
    }
}
