//! Detection times follow measured jitter: up after the second near miss within a minute, by as
//! many steps as cover both, and down one step after a long time without one.

use std::time::Duration;

/// Detection time on each level, in thirds of the configured one: a multiplier of 3 becomes 4, 6
/// or 12.
const STEPS: [u32; 4] = [3, 4, 6, 12];
const MAX_LEVEL: usize = STEPS.len() - 1;
/// Two near misses within this time raise the level.
const NEAR_MISS_WINDOW: Duration = Duration::from_secs(60);
/// First and maximum time without a near miss before a step down; doubled when the level had to
/// rise again soon after one.
const QUIET: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(16 * 60));

#[derive(Debug)]
pub(super) struct AdaptiveDetection {
    level: usize,
    /// Time and length of the last near miss.
    near_miss: Option<(Duration, Duration)>,
    quiet: Duration,
    step_down_at: Duration,
    stepped_down_at: Option<Duration>,
}

impl AdaptiveDetection {
    pub fn new() -> AdaptiveDetection {
        AdaptiveDetection {
            level: 0,
            near_miss: None,
            quiet: QUIET.0,
            step_down_at: Duration::ZERO,
            stepped_down_at: None,
        }
    }

    /// Scales an interval to the current level.
    pub fn stretch(&self, interval: Duration) -> Duration {
        interval * self.step() / STEPS[0]
    }

    /// Scales a multiplier to the current level; at least 1.
    pub fn multiply(&self, multiplier: u8) -> u8 {
        u8::try_from((u32::from(multiplier.max(1)) * self.step()).div_ceil(STEPS[0]))
            .unwrap_or(u8::MAX)
    }

    /// Scales a detection time to the highest level.
    pub fn longest(detection: Duration) -> Duration {
        detection * STEPS[MAX_LEVEL] / STEPS[0]
    }

    fn step(&self) -> u32 {
        STEPS[self.level]
    }

    /// Takes a measured gap. More than `threshold` is a near miss at the current level; more than
    /// `limit`, the most that any level covers, is an outage, which is detected and not
    /// tolerated. True when the level rose.
    pub fn observe(
        &mut self,
        measured: Duration,
        threshold: Duration,
        limit: Duration,
        now: Duration,
    ) -> bool {
        if measured > limit {
            return false;
        }
        let step = self.step();
        let threshold_at = |level: usize| threshold * STEPS[level] / step;
        // A near miss one level below keeps this level.
        if self.level > 0 && measured > threshold_at(self.level - 1) {
            self.step_down_at = now + self.quiet;
        }
        if measured <= threshold {
            return false;
        }
        let before = self
            .near_miss
            .replace((now, measured))
            .filter(|(at, _)| now.saturating_sub(*at) <= NEAR_MISS_WINDOW);
        let Some((_, before)) = before.filter(|_| self.level < MAX_LEVEL) else { return false };
        // The lowest level that covers both near misses.
        let level = (self.level + 1..MAX_LEVEL)
            .find(|level| measured.min(before) <= threshold_at(*level))
            .unwrap_or(MAX_LEVEL);
        self.near_miss = None;
        self.level = level;
        let mistaken =
            self.stepped_down_at.is_some_and(|then| now.saturating_sub(then) <= NEAR_MISS_WINDOW);
        self.quiet = if mistaken { (self.quiet * 2).min(QUIET.1) } else { QUIET.0 };
        self.step_down_at = now + self.quiet;
        true
    }

    /// True when the level fell.
    pub fn handle_timeout(&mut self, now: Duration) -> bool {
        if self.poll_timeout().is_none_or(|due| now < due) {
            return false;
        }
        self.level -= 1;
        self.step_down_at = now + self.quiet;
        self.stepped_down_at = Some(now);
        true
    }

    /// When [`AdaptiveDetection::handle_timeout`] lowers the level.
    pub fn poll_timeout(&self) -> Option<Duration> {
        (self.level > 0).then_some(self.step_down_at)
    }
}
