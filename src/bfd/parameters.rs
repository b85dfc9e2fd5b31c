//! The two announced intervals, and the Poll Sequences that make their changes safe (RFC 5880 §6.5,
//! §6.8.3).

use std::time::Duration;

/// bfd.DesiredMinTxInterval and bfd.RequiredMinRxInterval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Intervals {
    /// Desired minimum time between packets sent.
    pub tx: Duration,
    /// Required minimum time between packets received.
    pub rx: Duration,
}

/// Announced intervals, and those in effect.
#[derive(Debug)]
pub(super) struct Parameters {
    announced: Intervals,
    in_use: Intervals,
    poll: Poll,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Poll {
    /// A change may begin.
    Idle,
    /// The next periodic packet is the first with P set.
    Due,
    /// P was sent, F has not arrived yet.
    Sent,
    /// F arrived. The next Poll Sequence waits for a packet without F: otherwise its F could not be
    /// told from this one (§6.8.3, third choice).
    Settling,
}

impl Parameters {
    pub fn new(intervals: Intervals) -> Parameters {
        Parameters { announced: intervals, in_use: intervals, poll: Poll::Idle }
    }

    /// The intervals in packets.
    pub fn announced(&self) -> Intervals {
        self.announced
    }

    /// The intervals that transmission and detection use.
    pub fn in_use(&self) -> Intervals {
        self.in_use
    }

    /// Whether periodic packets carry P.
    pub fn polling(&self) -> bool {
        matches!(self.poll, Poll::Due | Poll::Sent)
    }

    /// A packet with P was sent.
    pub fn sent(&mut self) {
        if self.poll == Poll::Due {
            self.poll = Poll::Sent;
        }
    }

    /// Requests other intervals. While the session is up a change begins a Poll Sequence: slower
    /// transmission and faster detection wait for its end, the rest takes effect at once. A request
    /// during a Poll Sequence has no effect and must be repeated.
    ///
    /// While the session is not up the intervals change at once and a running Poll Sequence ends:
    /// the peer does not depend on them, and every packet announces them again.
    pub fn request(&mut self, wanted: Intervals, up: bool) {
        if !up {
            *self = Parameters::new(wanted);
        } else if wanted != self.announced && self.poll == Poll::Idle {
            self.announced = wanted;
            self.in_use.tx = self.in_use.tx.min(wanted.tx);
            self.in_use.rx = self.in_use.rx.max(wanted.rx);
            self.poll = Poll::Due;
        }
    }

    /// A packet of the peer arrived.
    pub fn received(&mut self, finished: bool) {
        match (self.poll, finished) {
            (Poll::Sent, true) => {
                self.in_use = self.announced;
                self.poll = Poll::Settling;
            }
            (Poll::Settling, false) => self.poll = Poll::Idle,
            _ => {}
        }
    }
}
