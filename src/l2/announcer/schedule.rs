//! When announcements are due: the burst, jitter and the limit on the rate of frames.

use std::net::IpAddr;
use std::time::Duration;

use crate::common::random::{Random, mix};

/// After taking a VIP over, announcements at these times: the first few survive a lossy moment (a
/// switch port that just came up), the later ones reach who was rebooting.
pub(super) const BURST: [Duration; 7] = [
    Duration::from_millis(0),
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

/// 64 frames per 2 ms: 32,000 a second, below what a small switch's control plane and a client's
/// backlog take, and 5,000 VIPs are claimed within a third of a second. What exceeds it waits;
/// answers to requests do not count.
pub(super) const FRAMES_PER_SLICE: usize = 64;
/// See [`FRAMES_PER_SLICE`].
pub(super) const SLICE: Duration = Duration::from_millis(2);

/// Limits unsolicited frames to [`FRAMES_PER_SLICE`] per [`SLICE`].
#[derive(Debug, Default)]
pub(super) struct Pacer {
    slice: Duration,
    sent: usize,
}

impl Pacer {
    pub fn may_send(&mut self, now: Duration) -> bool {
        if now >= self.slice + SLICE {
            *self = Pacer { slice: now, sent: 0 };
        }
        self.sent < FRAMES_PER_SLICE
    }

    pub fn count(&mut self, frames: usize) {
        self.sent += frames;
    }

    /// The earliest moment at which something due at `due` may go.
    pub fn not_before(&self, due: Duration) -> Duration {
        if self.sent < FRAMES_PER_SLICE { due } else { due.max(self.slice + SLICE) }
    }
}

/// Spreads announcements at random: hosts that start together must not announce together. No secret
/// depends on it.
#[derive(Debug)]
pub(super) struct Jitter {
    seed: u64,
    random: Random,
}

impl Jitter {
    pub fn new(seed: u64) -> Jitter {
        Jitter { seed, random: Random::new(seed) }
    }

    /// Evenly in `0..limit`.
    pub fn up_to(&mut self, limit: Duration) -> Duration {
        limit.mul_f64(self.random.unit())
    }

    /// How long after `now` the next refresh is: `interval` ±10 %, on a grid of 1/64 of it, so that
    /// VIPs share wakes.
    pub fn refresh(&mut self, now: Duration, interval: Duration) -> Duration {
        let wanted = now + interval.mul_f64(0.9) + self.up_to(interval.mul_f64(0.2));
        let grid = (interval.as_nanos() / 64).max(1);
        let late = Duration::from_nanos((wanted.as_nanos() % grid) as u64);
        wanted - late - now
    }

    /// A number that depends on the seed and the address only.
    pub fn digest(&self, address: IpAddr) -> u64 {
        let bits = match address {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        };
        mix(mix(self.seed ^ bits as u64).wrapping_add((bits >> 64) as u64))
    }
}
