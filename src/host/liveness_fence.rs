//! Whether this process may still be taken for alive by the others, so that it may answer for
//! addresses.
//!
//! Who was stopped or suspended for longer than the detection time has lost its addresses
//! meanwhile, and knows it last: the thread that watches the peers and the one that answers wake up
//! at the same moment. So the first leaves word how long an answer may be given, and the second
//! asks before it gives one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Shared by the two. Without peers it is always open.
#[derive(Debug)]
pub struct LivenessFence {
    /// Microseconds since boot, time of suspension included.
    until: AtomicU64,
    stalled: AtomicBool,
}

impl Default for LivenessFence {
    fn default() -> LivenessFence {
        LivenessFence { until: AtomicU64::new(u64::MAX), stalled: AtomicBool::new(false) }
    }
}

impl LivenessFence {
    /// The peers are looked after at `until` (since boot) at the latest; None: there are none to
    /// look after.
    pub fn allow_until(&self, until: Option<Duration>) {
        let until =
            until.map_or(u64::MAX, |until| u64::try_from(until.as_micros()).unwrap_or(u64::MAX));
        self.until.store(until, Ordering::Release);
    }

    /// It was not kept: nothing is answered until [`Vigil::resume`].
    pub fn close(&self) {
        self.stalled.store(true, Ordering::Release);
    }

    /// What follows from the stall has been decided and told to those who answer.
    pub fn reopen(&self) {
        self.stalled.store(false, Ordering::Release);
    }

    /// Whether answers may be given now.
    pub fn is_open(&self) -> bool {
        let until = self.until.load(Ordering::Acquire);
        !self.stalled.load(Ordering::Acquire)
            && (until == u64::MAX || boot_time().as_micros() <= u128::from(until))
    }
}

/// The clock that goes on while the machine is suspended: then, too, peers have waited.
pub fn boot_time() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_given_only_while_it_is_kept() {
        let vigil = LivenessFence::default();
        assert!(vigil.is_open(), "nobody to look after");
        vigil.allow_until(Some(boot_time() + Duration::from_secs(60)));
        assert!(vigil.is_open());
        vigil.allow_until(Some(boot_time().saturating_sub(Duration::from_millis(1))));
        assert!(!vigil.is_open(), "late");
        vigil.close();
        vigil.allow_until(Some(boot_time() + Duration::from_secs(60)));
        assert!(!vigil.is_open(), "awake again, but nobody has looked");
        vigil.reopen();
        assert!(vigil.is_open());
    }
}
