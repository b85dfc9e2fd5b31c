//! Exponential backoff.

use std::time::Duration;

use super::random;

/// The delays between attempts that keep failing. It is a constant of its user, who counts the
/// failures in a row; success resets that count to 0.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// The first delay.
    pub min: Duration,
    /// The longest delay.
    pub max: Duration,
    /// The share of each delay that is drawn at random, in 0..=1, so that nodes that failed together
    /// do not retry together. With 0 the delays are the same in every run.
    pub jitter: f64,
}

impl Backoff {
    /// Without jitter.
    pub const fn new(min: Duration, max: Duration) -> Backoff {
        Backoff { min, max, jitter: 0.0 }
    }

    /// The delay before the next attempt after `failures` earlier delays: `min`, doubled for each of
    /// them, at most `max`.
    pub fn delay(&self, failures: u32) -> Duration {
        let factor = 1u32.checked_shl(failures).unwrap_or(u32::MAX);
        let delay = self.min.saturating_mul(factor).min(self.max);
        if self.jitter > 0.0 { delay.mul_f64(1.0 - self.jitter * random::unit()) } else { delay }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest() {
        let backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
        let delays: Vec<u128> = (0..9).map(|n| backoff.delay(n).as_millis()).collect();
        assert_eq!(delays, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]);
        for failures in [31, 32, 33, u32::MAX] {
            assert_eq!(backoff.delay(failures), backoff.max, "{failures}");
        }
    }

    #[test]
    fn jitter_shortens_a_delay_by_its_share_at_most() {
        let (min, max) = (Duration::from_secs(1), Duration::from_secs(8));
        let backoff = Backoff { min, max, jitter: 0.5 };
        let delays: Vec<Duration> = (0..100).map(|_| backoff.delay(1)).collect();
        assert!(delays.iter().all(|delay| (min..=2 * min).contains(delay)), "{delays:?}");
        assert!(delays.iter().any(|delay| *delay != delays[0]), "they differ");
    }
}
