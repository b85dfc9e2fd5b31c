//! Notices on their way to the API server as Events: what is said again is counted and not sent
//! again, and whoever says too much is not heard for a while. Pure: the time is handed in, the
//! sending is done in [`super::io::event_sink`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::model::ObjectKey;
use crate::model::diagnostic::{Diagnostic, INVALID_OBJECT};
use crate::model::role::Role;

/// Between two updates of the count of one Event.
const UPDATE: Duration = Duration::from_secs(60);
/// Events live for an hour in the API server unless it was told otherwise: what is said again later
/// begins anew.
const LIFE: Duration = Duration::from_secs(3600);
/// New Events about one object: so many at once, then one in so much time, as others limit
/// themselves.
const OBJECT: Bucket = Bucket { burst: 25, refill: Duration::from_secs(60) };
/// Requests of this node.
const ALL: Bucket = Bucket { burst: 50, refill: Duration::from_millis(200) };
/// What may wait to be sent.
const QUEUE: usize = 1000;
/// What is remembered, so that it is not sent again.
const MEMORY: usize = 4000;
/// `message` of an Event, in bytes.
const MESSAGE: usize = 1024;

/// The object an Event is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A Service, and its uid where it is known.
    Service(ObjectKey, Option<Arc<str>>),
    /// A Node.
    Node(Box<str>),
}

/// Who sends it: the writer about Services and Node objects, so that each is told once, and what
/// only one node can see that node, on itself or the Service.
pub fn reported_by(notice: &Diagnostic, role: Role) -> bool {
    match &notice.service {
        _ if notice.node.is_some() => role == Role::Leader,
        Some(_) => role == Role::Leader || notice.reason == "AddressConflict",
        // Every node sees the same objects; their problems are in each one's log and status.
        None => notice.warning && notice.reason != INVALID_OBJECT,
    }
}

/// What makes two Events the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    /// About what.
    pub subject: Subject,
    /// CamelCase.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}

/// An Event to create, or to count up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Send {
    /// What it says.
    pub identity: Identity,
    /// Type Warning, else Normal.
    pub warning: bool,
    /// Different for every Event that is created; the same when it is updated.
    pub number: u64,
    /// It exists: only `count` and `last` change.
    pub update: bool,
    /// How often it was said.
    pub count: u32,
    /// When it was said first and last, by the monotonic clock.
    pub first: Duration,
    /// See `first`.
    pub last: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    burst: u32,
    refill: Duration,
}

#[derive(Debug)]
struct Tokens {
    left: u32,
    since: Duration,
}

impl Tokens {
    /// When there will be one.
    fn ready(&self, bucket: Bucket) -> Duration {
        if self.left > 0 { Duration::ZERO } else { self.since + bucket.refill }
    }

    fn take(&mut self, bucket: Bucket, now: Duration) -> bool {
        let more = now.saturating_sub(self.since).as_millis() / bucket.refill.as_millis().max(1);
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        if more > 0 {
            self.left = self.left.saturating_add(more).min(bucket.burst);
            self.since =
                if self.left == bucket.burst { now } else { self.since + bucket.refill * more };
        }
        let taken = self.left > 0;
        self.left -= u32::from(taken);
        taken
    }
}

#[derive(Debug)]
struct EventRecord {
    warning: bool,
    number: u64,
    count: u32,
    first: Duration,
    last: Duration,
    /// When it was written last; None: it does not exist yet.
    written: Option<Duration>,
    queued: bool,
}

/// See the head of this file.
#[derive(Debug)]
pub struct EventQueue {
    records: BTreeMap<Identity, EventRecord>,
    objects: BTreeMap<Subject, Tokens>,
    all: Tokens,
    /// To be created or updated, each once, in the order in which they are due. In a storm the
    /// warnings, which come first in this array, do not wait behind what went well.
    queues: [VecDeque<(Duration, Identity)>; 2],
    number: u64,
    dropped: u64,
}

impl Default for EventQueue {
    fn default() -> EventQueue {
        let all = Tokens { left: ALL.burst, since: Duration::ZERO };
        EventQueue {
            records: BTreeMap::new(),
            objects: BTreeMap::new(),
            all,
            queues: Default::default(),
            number: 0,
            dropped: 0,
        }
    }
}

impl EventQueue {
    /// Something is to be said.
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
            .or_insert(Tokens { left: OBJECT.burst, since: now });
        if !tokens.take(OBJECT, now) || !self.room(warning) {
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

    /// Whether one more may wait. For a warning, the last of those that went well makes room.
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

    /// Makes room, and does not keep for ever what was said once.
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
            self.objects.retain(|_, tokens| now < tokens.since + OBJECT.refill * OBJECT.burst);
        }
    }

    /// When [`Events::next`] will have something; None: not before something is told.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let due = self.queues.iter().filter_map(|queue| queue.front()).map(|(due, _)| *due).min();
        due.map(|due| due.max(self.all.ready(ALL)))
    }

    /// What to send now. What became of it must be told by [`Events::sent`] or [`Events::failed`]
    /// before the next one.
    pub fn next(&mut self, now: Duration) -> Option<Send> {
        let due = |queue: &VecDeque<(Duration, Identity)>| {
            queue.front().is_some_and(|(due, _)| *due <= now)
        };
        let at = self.queues.iter().position(due)?;
        if !self.all.take(ALL, now) {
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

    /// It is in the API server.
    pub fn sent(&mut self, send: &Send, now: Duration) {
        if let Some(record) = self.records.get_mut(&send.identity) {
            record.written = Some(now);
        }
    }

    /// It is not, and may be tried again after `pause`; `absent`: the one to update is gone, so a
    /// new one is made.
    pub fn failed(&mut self, send: &Send, absent: bool, pause: Duration, now: Duration) {
        let Some(record) = self.records.get_mut(&send.identity) else { return };
        if absent {
            self.number += 1;
            (record.written, record.number) = (None, self.number);
        }
        if !record.queued {
            record.queued = true;
            self.enqueue(now + pause, send.warning, send.identity.clone());
        }
    }

    /// Nothing can be sent: what waits is dropped.
    pub fn clear(&mut self) {
        self.dropped += self.queues.iter().map(|queue| queue.len() as u64).sum::<u64>();
        self.queues = Default::default();
        self.records.clear();
    }

    /// How many were never sent.
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
        let told: Vec<_> = sent
            .iter()
            .map(|send| (send.update, send.count, send.number, send.last.as_secs()))
            .collect();
        assert_eq!(
            told,
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
    fn one_that_talks_too_much_does_not_keep_others_from_being_heard() {
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
    fn each_notice_is_told_by_one_node() {
        let mut notice = Diagnostic {
            warning: false,
            service: Some(ObjectKey::new("a", "b")),
            node: None,
            reason: "EnsuredLoadBalancer",
            message: "".into(),
        };
        assert!(reported_by(&notice, Role::Leader) && !reported_by(&notice, Role::Follower));
        notice.reason = "AddressConflict";
        assert!(reported_by(&notice, Role::Follower));
        (notice.service, notice.reason) = (None, "Stalled");
        assert!(!reported_by(&notice, Role::Leader));
        notice.warning = true;
        assert!(reported_by(&notice, Role::Follower));
        notice.reason = INVALID_OBJECT;
        assert!(!reported_by(&notice, Role::Follower));
    }
}
