//! Detection times follow the lateness that is measured: up after the second near miss within a
//! minute, by as much as that takes, and down one step after a long quiet.

use std::time::Duration;

/// The detection time on each level, in thirds of the configured one: a multiplier of 3 becomes 4,
/// 6 or 12.
const STEPS: [u32; 4] = [3, 4, 6, 12];
const MAX_LEVEL: usize = STEPS.len() - 1;
/// Near misses further apart than this have nothing to do with each other.
const WINDOW: Duration = Duration::from_secs(60);
/// First and longest quiet before a step back; doubled when the step back was a mistake.
const QUIET: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(16 * 60));

/// What lateness has taught.
#[derive(Debug)]
pub(super) struct AdaptiveDetection {
    level: usize,
    /// The last near miss: when, and how long it lasted.
    miss: Option<(Duration, Duration)>,
    quiet: Duration,
    calm_at: Duration,
    stepped_back: Option<Duration>,
}

impl AdaptiveDetection {
    pub fn new() -> AdaptiveDetection {
        AdaptiveDetection {
            level: 0,
            miss: None,
            quiet: QUIET.0,
            calm_at: Duration::ZERO,
            stepped_back: None,
        }
    }

    /// An interval at the present level.
    pub fn stretch(&self, interval: Duration) -> Duration {
        interval * self.step() / STEPS[0]
    }

    /// A multiplier at the present level, at least 1.
    pub fn multiply(&self, multiplier: u8) -> u8 {
        u8::try_from((u32::from(multiplier.max(1)) * self.step()).div_ceil(STEPS[0]))
            .unwrap_or(u8::MAX)
    }

    /// A detection time at the highest level.
    pub fn longest(detection: Duration) -> Duration {
        detection * STEPS[MAX_LEVEL] / STEPS[0]
    }

    fn step(&self) -> u32 {
        STEPS[self.level]
    }

    /// Something lasted for `measured` where `threshold` would have been one step before failure
    /// and `limit` is the most that any level could cover: what is longer is an outage, which
    /// is to be detected and not tolerated. True when the level rose.
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
        // What would be a near miss one level below keeps this level.
        if self.level > 0 && measured > threshold_at(self.level - 1) {
            self.calm_at = now + self.quiet;
        }
        if measured <= threshold {
            return false;
        }
        let before =
            self.miss.replace((now, measured)).filter(|(at, _)| now.saturating_sub(*at) <= WINDOW);
        let Some((_, before)) = before.filter(|_| self.level < MAX_LEVEL) else { return false };
        // What happened twice is covered from now on.
        let level = (self.level + 1..MAX_LEVEL)
            .find(|level| measured.min(before) <= threshold_at(*level))
            .unwrap_or(MAX_LEVEL);
        self.miss = None;
        self.level = level;
        let mistaken = self.stepped_back.is_some_and(|then| now.saturating_sub(then) <= WINDOW);
        self.quiet = if mistaken { (self.quiet * 2).min(QUIET.1) } else { QUIET.0 };
        self.calm_at = now + self.quiet;
        true
    }

    /// True when it has been quiet for long enough and the level fell.
    pub fn handle_timeout(&mut self, now: Duration) -> bool {
        if self.poll_timeout().is_none_or(|due| now < due) {
            return false;
        }
        self.level -= 1;
        self.calm_at = now + self.quiet;
        self.stepped_back = Some(now);
        true
    }

    /// When [`Tolerance::relax`] is due.
    pub fn poll_timeout(&self) -> Option<Duration> {
        (self.level > 0).then_some(self.calm_at)
    }
}
