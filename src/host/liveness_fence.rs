//! Whether peers may still believe that this node is up, so that it may answer for VIPs.
//!
//! A node that was stopped or suspended for longer than the detection time has lost its VIPs to
//! other nodes without knowing it. When it resumes, the BFD thread and the announcer wake up at the
//! same time. So the BFD thread publishes until when replies are allowed, and the announcer looks
//! before it sends one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Shared by the two threads. Without peers it is always open.
#[derive(Debug)]
pub struct LivenessFence {
    /// Microseconds since boot, including time of suspension.
    until: AtomicU64,
    stalled: AtomicBool,
}

impl Default for LivenessFence {
    fn default() -> LivenessFence {
        LivenessFence { until: AtomicU64::new(u64::MAX), stalled: AtomicBool::new(false) }
    }
}

impl LivenessFence {
    /// Allows replies until this time since boot, when the detection time of a peer may expire;
    /// None: always, because there are no peers.
    pub fn allow_until(&self, until: Option<Duration>) {
        let until =
            until.map_or(u64::MAX, |until| u64::try_from(until.as_micros()).unwrap_or(u64::MAX));
        self.until.store(until, Ordering::Release);
    }

    /// Peers may have declared this node down: no replies until [`LivenessFence::reopen`].
    pub fn close(&self) {
        self.stalled.store(true, Ordering::Release);
    }

    /// What follows has been decided, and the announcer has been told.
    pub fn reopen(&self) {
        self.stalled.store(false, Ordering::Release);
    }

    /// Whether replies are allowed now.
    pub fn is_open(&self) -> bool {
        let until = self.until.load(Ordering::Acquire);
        !self.stalled.load(Ordering::Acquire)
            && (until == u64::MAX || boot_time().as_micros() <= u128::from(until))
    }
}

/// CLOCK_BOOTTIME, which runs while the machine is suspended: the detection times of peers do as
/// well.
pub fn boot_time() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_allowed_only_in_time() {
        let fence = LivenessFence::default();
        assert!(fence.is_open(), "no peers");
        fence.allow_until(Some(boot_time() + Duration::from_secs(60)));
        assert!(fence.is_open());
        fence.allow_until(Some(boot_time().saturating_sub(Duration::from_millis(1))));
        assert!(!fence.is_open(), "late");
        fence.close();
        fence.allow_until(Some(boot_time() + Duration::from_secs(60)));
        assert!(!fence.is_open(), "on time again, but nothing has been decided");
        fence.reopen();
        assert!(fence.is_open());
    }
}
