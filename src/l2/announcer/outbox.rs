//! Frames and events that wait for the caller, the rate limit of frames, and counters.

use std::collections::VecDeque;

use super::schedule::Pacer;
use super::types::{AnnouncerCounters, AnnouncerEvent, Transmission};

#[derive(Debug, Default)]
pub(super) struct Outbox {
    pub transmissions: VecDeque<Transmission>,
    pub events: VecDeque<AnnouncerEvent>,
    pub counters: AnnouncerCounters,
    pub pacer: Pacer,
}

impl Outbox {
    /// A reply to a request; the rate limit does not count it.
    pub fn reply(&mut self, ifindex: u32, frame: Vec<u8>) {
        self.counters.answered += 1;
        self.transmissions.push_back(Transmission { ifindex, frame });
    }

    pub fn announce(&mut self, ifindex: u32, frames: Vec<Vec<u8>>) {
        self.counters.announcements_sent += frames.len() as u64;
        self.pacer.count(frames.len());
        let transmissions = frames.into_iter().map(|frame| Transmission { ifindex, frame });
        self.transmissions.extend(transmissions);
    }

    pub fn probe(&mut self, frames: Vec<Transmission>) {
        self.counters.probes_sent += frames.len() as u64;
        self.pacer.count(frames.len());
        self.transmissions.extend(frames);
    }
}
