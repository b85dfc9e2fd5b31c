use std::sync::{Mutex, PoisonError};

use crate::l2::announcer::AnnouncerCounters;

/// Totals since the start, which other threads may read at any time.
#[derive(Debug, Default)]
pub struct L2Counters(Mutex<L2Totals>);

impl L2Counters {
    /// A consistent copy.
    pub fn totals(&self) -> L2Totals {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn publish(&self, totals: L2Totals) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = totals;
    }
}

/// A copy of [`L2Counters`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct L2Totals {
    pub announcer: AnnouncerCounters,
    /// Frames handed to the kernel.
    pub sent: u64,
    /// Frames rejected because the queue of the interface was full (ENOBUFS, EAGAIN).
    pub send_queue_full: u64,
    /// Frames rejected because the link was down or gone (ENETDOWN, ENXIO, ENODEV).
    pub send_link_down: u64,
    /// Frames rejected for any other reason.
    pub send_failed: u64,
    /// Errors when receiving; a link that goes down causes one on each of its sockets.
    pub receive_failed: u64,
    /// Multicast groups that could not be joined.
    pub join_failed: u64,
    /// Events dropped because the receiver was too slow.
    pub events_dropped: u64,
}
