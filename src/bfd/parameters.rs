//! The two intervals that we announce, and the Poll Sequences that make changes of them safe (RFC
//! 5880 §6.5, §6.8.3).

use std::time::Duration;

/// bfd.DesiredMinTxInterval and bfd.RequiredMinRxInterval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Intervals {
    /// How often we would like to send, at most.
    pub tx: Duration,
    /// How often we are able to receive, at most.
    pub rx: Duration,
}

/// What is announced, and what holds.
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
    /// P was sent, F has not come yet.
    Sent,
    /// F has come. Another Poll Sequence has to wait for a packet without F, or its F could not be
    /// told from this one's (§6.8.3, third choice).
    Settling,
}

impl Parameters {
    pub fn new(intervals: Intervals) -> Parameters {
        Parameters { announced: intervals, in_use: intervals, poll: Poll::Idle }
    }

    /// What the packets say.
    pub fn announced(&self) -> Intervals {
        self.announced
    }

    /// What sending and detection go by.
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

    /// Moves towards what is wanted. While the session is up a change begins a Poll Sequence;
    /// slower sending and faster detection wait for its end, everything else holds at once. A
    /// change that finds another one on its way has to be asked for again.
    ///
    /// While it is not up nothing depends on the intervals that the other side believes in, every
    /// packet tells them anew, and coming up polls: the intervals simply change, and a Poll
    /// Sequence that was under way ends.
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

    /// A packet has come from the other side.
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
