//! Counters of the thread, which other threads may read at any time.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::bfd::Discard;

#[derive(Debug, Default)]
pub struct BfdCounters {
    received: AtomicU64,
    discarded: [AtomicU64; Discard::LABELS.len()],
    receive_failed: AtomicU64,
    sent: AtomicU64,
    send_queue_full: AtomicU64,
    send_unreachable: AtomicU64,
    send_failed: AtomicU64,
    max_scheduling_delay: AtomicU64,
}

/// A copy of [`BfdCounters`]. Each number is exact; together they may be a packet apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BfdTotals {
    /// Datagrams read.
    pub received: u64,
    /// Datagrams discarded, in the order of [`Discard::LABELS`].
    pub discarded: [u64; Discard::LABELS.len()],
    /// Errors of `recvmsg`.
    pub receive_failed: u64,
    /// Packets handed to the kernel.
    pub sent: u64,
    /// Packets rejected because a queue was full (ENOBUFS, EAGAIN).
    pub send_queue_full: u64,
    /// Packets rejected because the peer is unreachable: link down or gone, no route, no such
    /// source address.
    pub send_unreachable: u64,
    /// Packets rejected for any other reason, such as a firewall (EPERM).
    pub send_failed: u64,
    pub max_scheduling_delay: Duration,
}

impl BfdCounters {
    pub fn totals(&self) -> BfdTotals {
        let mut discarded = [0; Discard::LABELS.len()];
        for (copy, counter) in discarded.iter_mut().zip(&self.discarded) {
            *copy = counter.load(Relaxed);
        }
        BfdTotals {
            received: self.received.load(Relaxed),
            discarded,
            receive_failed: self.receive_failed.load(Relaxed),
            sent: self.sent.load(Relaxed),
            send_queue_full: self.send_queue_full.load(Relaxed),
            send_unreachable: self.send_unreachable.load(Relaxed),
            send_failed: self.send_failed.load(Relaxed),
            max_scheduling_delay: Duration::from_micros(self.max_scheduling_delay.load(Relaxed)),
        }
    }

    pub(super) fn received(&self) {
        self.received.fetch_add(1, Relaxed);
    }

    pub(super) fn discarded(&self, reason: &Discard) {
        if let Some(counter) = self.discarded.get(reason.index()) {
            counter.fetch_add(1, Relaxed);
        }
    }

    pub(super) fn receive_failed(&self) {
        self.receive_failed.fetch_add(1, Relaxed);
    }

    pub(super) fn sent(&self, result: std::io::Result<()>) {
        let counter = match result.map_err(|error| error.raw_os_error()) {
            Ok(()) => &self.sent,
            Err(Some(libc::ENOBUFS | libc::EAGAIN)) => &self.send_queue_full,
            Err(Some(
                libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::ENXIO
                | libc::ENODEV
                | libc::EADDRNOTAVAIL
                | libc::EINVAL,
            )) => &self.send_unreachable,
            Err(_) => &self.send_failed,
        };
        counter.fetch_add(1, Relaxed);
    }

    pub(super) fn scheduling_delay(&self, late: Duration) {
        self.max_scheduling_delay
            .fetch_max(u64::try_from(late.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }
}
