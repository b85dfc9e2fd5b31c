//! `endpoints.kubernetes.io/last-change-trigger-time`: the time of day, by another machine's clock,
//! at which a change of endpoints was triggered. It is measured from; nothing is decided by it.

use std::time::Duration;

/// A time of day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TriggerTime {
    since_epoch: Duration,
}

impl TriggerTime {
    /// `since_epoch`: time since 1970-01-01T00:00:00Z.
    pub fn new(since_epoch: Duration) -> TriggerTime {
        TriggerTime { since_epoch }
    }

    /// Time from then to `now`, which is given since the same epoch. None where the other machine's
    /// clock is ahead.
    pub fn age(self, now: Duration) -> Option<Duration> {
        now.checked_sub(self.since_epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_past_has_an_age_and_the_future_none() {
        let at = |seconds| TriggerTime::new(Duration::from_secs(seconds));
        assert!(at(7) < at(9));
        assert_eq!(at(7).age(Duration::from_secs(9)), Some(Duration::from_secs(2)));
        assert_eq!(at(9).age(Duration::from_secs(7)), None);
    }
}
