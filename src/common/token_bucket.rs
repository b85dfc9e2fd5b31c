//! A limit on a rate that allows bursts.

use std::time::Duration;

/// The limit. It is a constant of its user.
#[derive(Clone, Copy, Debug)]
pub struct RateLimit {
    /// Number of tokens of a full bucket.
    pub burst: u32,
    /// Time between two new tokens.
    pub refill: Duration,
}

/// The tokens left of a [`RateLimit`]. Times are those of a monotonic clock.
#[derive(Debug)]
pub struct TokenBucket {
    limit: &'static RateLimit,
    left: u32,
    /// Tokens are counted up to this time.
    since: Duration,
}

impl TokenBucket {
    /// A full bucket.
    pub fn new(limit: &'static RateLimit, now: Duration) -> TokenBucket {
        TokenBucket { limit, left: limit.burst, since: now }
    }

    /// Takes one token; false when there is none.
    pub fn take(&mut self, now: Duration) -> bool {
        let refill = self.limit.refill.as_nanos().max(1);
        let new = now.saturating_sub(self.since).as_nanos() / refill;
        let new = u32::try_from(new).unwrap_or(u32::MAX);
        if new > 0 {
            self.left = self.left.saturating_add(new).min(self.limit.burst);
            let full = self.left == self.limit.burst;
            self.since = if full { now } else { self.since + self.limit.refill * new };
        }

        let taken = self.left > 0;
        self.left -= u32::from(taken);
        taken
    }

    /// When there is a token: zero when there is one already.
    pub fn poll_timeout(&self) -> Duration {
        if self.left > 0 { Duration::ZERO } else { self.since + self.limit.refill }
    }

    /// Whether an empty bucket would be full again by now.
    pub fn is_full(&self, now: Duration) -> bool {
        now >= self.since + self.limit.refill * self.limit.burst
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static LIMIT: RateLimit = RateLimit { burst: 3, refill: Duration::from_millis(20) };

    #[test]
    fn a_burst_passes_and_then_one_per_refill() {
        let ms = Duration::from_millis;
        let mut bucket = TokenBucket::new(&LIMIT, ms(0));
        let taken: Vec<bool> = (0..4).map(|_| bucket.take(ms(5))).collect();
        assert_eq!(taken, [true, true, true, false]);
        assert_eq!(bucket.poll_timeout(), ms(20));
        assert!(!bucket.take(ms(19)) && bucket.take(ms(30)) && !bucket.take(ms(39)));
        assert!(bucket.take(ms(40)), "a refill is counted from the one before");
        assert!(!bucket.is_full(ms(99)) && bucket.is_full(ms(100)));
        assert_eq!((0..9).filter(|_| bucket.take(ms(10_000))).count(), 3, "no more than a burst");
    }
}
