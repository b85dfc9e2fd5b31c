//! Detects two machines with one identity: a machine was cloned together with its addresses.
//! Discriminators are random, so they tell the two apart.
//!
//! The packets of the two alternate between two discriminators, while a machine that restarts never
//! returns to its previous one. Each of the two also receives some packets meant for the other.

use std::time::Duration;

/// Minimum number of observations that prove a duplicate, and the minimum and maximum time between
/// the first and the last. Delayed packets of a previous run do not last that long.
const MIN_COUNT: u8 = 3;
const MIN_SPAN: Duration = Duration::from_secs(1);
const MAX_SPAN: Duration = Duration::from_secs(10);
/// How long a peer that has not learned our discriminator yet may send that of our previous run:
/// its maximum detection time.
const OLD_DISCRIMINATOR_TIMEOUT: Duration = Duration::from_secs(10);
/// Minimum time between two reports.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// The observations of one session.
#[derive(Debug)]
pub(super) struct DuplicateDetector {
    created: Duration,
    /// The peer has sent our discriminator.
    discriminator_learned: bool,
    /// The peer's discriminator, and the one before it.
    current: u32,
    previous: u32,
    of_peer: Evidence,
    of_us: Evidence,
}

#[derive(Debug, Default)]
struct Evidence {
    count: u8,
    first: Duration,
    reported: Option<Duration>,
}

impl DuplicateDetector {
    pub fn new(now: Duration) -> DuplicateDetector {
        DuplicateDetector {
            created: now,
            discriminator_learned: false,
            current: 0,
            previous: 0,
            of_peer: Evidence::default(),
            of_us: Evidence::default(),
        }
    }

    /// Takes a packet for this session; `named`: it carries our discriminator. True: two machines
    /// have the identity of the peer.
    pub fn on_packet(&mut self, discriminator: u32, named: bool, now: Duration) -> bool {
        self.discriminator_learned |= named;
        if discriminator == self.current {
            return false;
        }
        let back = discriminator == self.previous;
        self.previous = self.current;
        self.current = discriminator;
        back && self.of_peer.add(now)
    }

    /// Takes a packet of the peer for a session that does not exist here. True: another machine has
    /// the identity of this node.
    pub fn on_unknown_discriminator(&mut self, now: Duration) -> bool {
        (self.discriminator_learned || now >= self.created + OLD_DISCRIMINATOR_TIMEOUT)
            && self.of_us.add(now)
    }
}

impl Evidence {
    fn add(&mut self, now: Duration) -> bool {
        if self.count == 0 || now > self.first + MAX_SPAN {
            self.count = 0;
            self.first = now;
        }
        self.count = self.count.saturating_add(1);
        let proof = self.count >= MIN_COUNT
            && now >= self.first + MIN_SPAN
            && self.reported.is_none_or(|told| now >= told + REPORT_INTERVAL);
        if proof {
            self.reported = Some(now);
        }
        proof
    }
}
