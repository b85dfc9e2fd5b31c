//! Detection times follow the lateness that is measured: up after the second near miss within a minute, down one step after a long quiet.

use std::time::Duration;

/// Each level doubles the detection time.
pub(super) const MAX_LEVEL: u8 = 2;
/// Near misses further apart than this have nothing to do with each other.
const WINDOW: Duration = Duration::from_secs(60);
/// First and longest quiet before a step back; doubled when the step back was a mistake.
const QUIET: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(16 * 60));

/// What lateness has taught.
#[derive(Debug)]
pub(super) struct Tolerance {
    level: u8,
    miss: Option<Duration>,
    quiet: Duration,
    calm_at: Duration,
    stepped_back: Option<Duration>,
}

impl Tolerance {
    pub fn new() -> Tolerance {
        Tolerance { level: 0, miss: None, quiet: QUIET.0, calm_at: Duration::ZERO, stepped_back: None }
    }

    /// From 0 to [`MAX_LEVEL`].
    pub fn level(&self) -> u8 {
        self.level
    }

    /// Something lasted for `measured` where `threshold` would have been one step before failure and `limit` is the most that any level
    /// could cover: what is longer is an outage, which is to be detected and not tolerated. True when the level rose.
    pub fn observe(&mut self, measured: Duration, threshold: Duration, limit: Duration, now: Duration) -> bool {
        if measured > limit {
            return false;
        }
        // What would be a near miss one level below keeps this level.
        if self.level > 0 && measured * 2 > threshold {
            self.calm_at = now + self.quiet;
        }
        if measured <= threshold {
            return false;
        }
        let again = self.miss.is_some_and(|last| now.saturating_sub(last) <= WINDOW);
        self.miss = Some(now);
        if !again || self.level >= MAX_LEVEL {
            return false;
        }
        self.miss = None;
        self.level += 1;
        let mistaken = self.stepped_back.is_some_and(|then| now.saturating_sub(then) <= WINDOW);
        self.quiet = if mistaken { (self.quiet * 2).min(QUIET.1) } else { QUIET.0 };
        self.calm_at = now + self.quiet;
        true
    }

    /// True when it has been quiet for long enough and the level fell.
    pub fn relax(&mut self, now: Duration) -> bool {
        if self.deadline().is_none_or(|due| now < due) {
            return false;
        }
        self.level -= 1;
        self.calm_at = now + self.quiet;
        self.stepped_back = Some(now);
        true
    }

    /// When [`Tolerance::relax`] is due.
    pub fn deadline(&self) -> Option<Duration> {
        (self.level > 0).then_some(self.calm_at)
    }
}
