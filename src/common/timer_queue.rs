//! Timers in the order in which they are due.

use std::collections::BTreeSet;
use std::time::Duration;

/// Timers by key. A key may have several; cancelling names the moment of one, so that nothing is
/// searched: every operation takes O(log n).
#[derive(Debug)]
pub struct TimerQueue<K>(BTreeSet<(Duration, K)>);

impl<K> Default for TimerQueue<K> {
    fn default() -> TimerQueue<K> {
        TimerQueue(BTreeSet::new())
    }
}

impl<K: Copy + Ord> TimerQueue<K> {
    /// Has no effect when the same key already waits for the same moment.
    pub fn add(&mut self, due: Duration, key: K) {
        self.0.insert((due, key));
    }

    /// Takes back [`TimerQueue::add`]; has no effect when there is no such timer.
    pub fn cancel(&mut self, due: Duration, key: K) {
        self.0.remove(&(due, key));
    }

    /// When the first timer is due; None without timers.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.0.first().map(|&(due, _)| due)
    }

    /// Takes the first timer out if it is due.
    pub fn pop(&mut self, now: Duration) -> Option<K> {
        if self.poll_timeout()? > now {
            return None;
        }
        self.0.pop_first().map(|(_, key)| key)
    }

    /// Number of timers.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no timers.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_come_out_in_order_and_only_when_due() {
        let ms = Duration::from_millis;
        let mut timers = TimerQueue::default();
        for (due, key) in [(30, 'c'), (10, 'a'), (20, 'b'), (20, 'd')] {
            timers.add(ms(due), key);
        }
        timers.cancel(ms(20), 'b');
        assert_eq!((timers.poll_timeout(), timers.pop(ms(9))), (Some(ms(10)), None));
        let popped: Vec<char> = std::iter::from_fn(|| timers.pop(ms(25))).collect();
        assert_eq!(popped, ['a', 'd']);
        assert_eq!((timers.len(), timers.pop(ms(30)), timers.is_empty()), (1, Some('c'), true));
    }
}
