//! Intervals of the announcer, jitter, and the limit on the rate of frames.

use std::net::IpAddr;
use std::time::Duration;

use crate::common::random::{Random, mix};

/// How long an address in conflict is left alone before it is probed again (RFC 5227 §1.1,
/// RATE_LIMIT_INTERVAL). Up to a quarter is added at random: otherwise two hosts that refused each
/// other would do so forever.
pub const CONFLICT_RETRY: Duration = Duration::from_secs(60);
/// Minimum time between two defences of a VIP on an interface, and between two reports of them
/// (RFC 5227 §2.4, DEFEND_INTERVAL is 10 s).
pub const CONTEST_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum time until a VIP is announced again after a claim that the defence interval left
/// unanswered.
pub const REPAIR_DELAY: Duration = Duration::from_millis(200);
/// Minimum time between two reports of the same claim.
pub const OBSERVED_INTERVAL: Duration = Duration::from_millis(250);
/// Probes before the first announcement (RFC 5227 §1.1, PROBE_NUM).
pub const PROBES: u32 = 3;

/// Times of the announcements after a takeover. The first ones survive a lossy moment (a switch
/// port that just came up); the later ones reach hosts that were rebooting.
pub(super) const BURST: [Duration; 7] = [
    Duration::from_millis(0),
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

/// Maximum number of unsolicited frames per [`SLICE`]; replies do not count. 64 frames per 2 ms are
/// 32,000 per second, less than a small switch's control plane and a client's backlog take, and
/// enough to claim 5,000 VIPs within a third of a second.
pub(super) const FRAMES_PER_SLICE: usize = 64;
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

    /// The earliest time at which a frame due at `due` may be sent.
    pub fn not_before(&self, due: Duration) -> Duration {
        if self.sent < FRAMES_PER_SLICE { due } else { due.max(self.slice + SLICE) }
    }
}

/// Pseudo-random numbers (SplitMix64, Steele et al. 2014), so that hosts that start together do not
/// send together. No secret depends on them.
#[derive(Debug)]
pub(super) struct Jitter {
    seed: u64,
    random: Random,
}

impl Jitter {
    pub fn new(seed: u64) -> Jitter {
        Jitter { seed, random: Random::new(seed) }
    }

    /// Uniform in `0..limit`.
    pub fn up_to(&mut self, limit: Duration) -> Duration {
        limit.mul_f64(self.random.unit())
    }

    /// Time from `now` until the next refresh: `interval` ±10 %, on a grid of 1/64 of it, so that
    /// VIPs share wakes.
    pub fn refresh(&mut self, now: Duration, interval: Duration) -> Duration {
        let wanted = now + interval.mul_f64(0.9) + self.up_to(interval.mul_f64(0.2));
        let grid = (interval.as_nanos() / 64).max(1);
        let late = Duration::from_nanos((wanted.as_nanos() % grid) as u64);
        wanted - late - now
    }

    /// Identifies the probes of this host. It is the same on all its interfaces, so that two of
    /// them on one link do not take each other for another host (RFC 7527 §4.1).
    pub fn nonce(&self, vip: IpAddr) -> [u8; 6] {
        let [a, b, c, d, e, f, ..] = self.digest(vip).to_be_bytes();
        [a, b, c, d, e, f]
    }

    /// A number that depends on the seed and the address only.
    fn digest(&self, address: IpAddr) -> u64 {
        let bits = match address {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        };
        mix(mix(self.seed ^ bits as u64).wrapping_add((bits >> 64) as u64))
    }
}

/// When the next probe is due after `sent` of them, or the end of probing. Each probe falls into
/// the first half of its third of the time, so that at least a sixth is left for a reply. A probe
/// that waited for the rate limit delays what follows.
pub(super) fn next_probe(
    start: Duration,
    sent: u32,
    probe_time: Duration,
    now: Duration,
    jitter: &mut Jitter,
) -> Duration {
    let third = probe_time / PROBES;
    let delay = if sent < PROBES { jitter.up_to(third / 2) } else { Duration::ZERO };
    (start + probe_time * sent / PROBES + delay).max(now + third / 2)
}
