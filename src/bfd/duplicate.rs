//! Two machines that speak as one: a machine was copied together with its addresses. Discriminators
//! are random, so they tell the two apart.
//!
//! To the others their sessions' packets name now one discriminator, now the other; who restarts
//! never goes back to the one before. Each of the two receives, now and then, what was meant for
//! the other.

use std::time::Duration;

/// So many signs, in at least and at most these times, are proof: packets of an earlier life can be
/// late, but not for so long.
const SIGNS: u8 = 3;
const LEAST: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_secs(10);
/// A peer that has not named our discriminator yet names that of our earlier life for so long at
/// most, its longest detection time.
const EARLIER_LIFE: Duration = Duration::from_secs(10);
/// It is told again after that.
const AGAIN: Duration = Duration::from_secs(1);

/// What one session has seen of it.
#[derive(Debug)]
pub(super) struct DuplicateDetector {
    /// Of the session.
    begin: Duration,
    /// The peer has named our discriminator.
    known: bool,
    /// The peer's discriminator, and the one before.
    latest: u32,
    former: u32,
    of_peer: Signs,
    of_us: Signs,
}

#[derive(Debug, Default)]
struct Signs {
    count: u8,
    first: Duration,
    told: Option<Duration>,
}

impl DuplicateDetector {
    pub fn new(now: Duration) -> DuplicateDetector {
        DuplicateDetector {
            begin: now,
            known: false,
            latest: 0,
            former: 0,
            of_peer: Signs::default(),
            of_us: Signs::default(),
        }
    }

    /// A packet for this session; `named`: by our discriminator. True: two machines speak as the
    /// peer.
    pub fn heard(&mut self, discriminator: u32, named: bool, now: Duration) -> bool {
        self.known |= named;
        if discriminator == self.latest {
            return false;
        }
        let back = discriminator == self.former;
        (self.former, self.latest) = (self.latest, discriminator);
        back && self.of_peer.note(now)
    }

    /// A packet of the peer for a session that we do not have. True: another machine speaks to it
    /// as us.
    pub fn foreign(&mut self, now: Duration) -> bool {
        (self.known || now >= self.begin + EARLIER_LIFE) && self.of_us.note(now)
    }
}

impl Signs {
    fn note(&mut self, now: Duration) -> bool {
        if self.count == 0 || now > self.first + MOST {
            (self.count, self.first) = (0, now);
        }
        self.count = self.count.saturating_add(1);
        let proof = self.count >= SIGNS
            && now >= self.first + LEAST
            && self.told.is_none_or(|told| now >= told + AGAIN);
        if proof {
            self.told = Some(now);
        }
        proof
    }
}
