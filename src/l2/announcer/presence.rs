//! VIPs on the interfaces where they are announced: burst, refresh and defence.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::schedule::{BURST, CONTEST_INTERVAL, Jitter, OBSERVED_INTERVAL, REPAIR_DELAY};
use super::timer::Timer;
use crate::common::timer_queue::TimerQueue;
use crate::model::mac::Mac;

/// One VIP on one interface.
#[derive(Debug, Default)]
pub(super) struct Presence {
    /// When the first frame of the burst was sent; the burst may have waited for the rate limit.
    burst: Option<Duration>,
    /// Announcements sent since.
    step: usize,
    due: Duration,
    /// When a claim of another host was last answered.
    contested: Option<Duration>,
    /// The last rival that was reported, and when.
    rival: Option<(Mac, Duration)>,
    /// When a defence against a probe was last reported.
    defended: Option<Duration>,
}

impl Presence {
    /// Whether to report this rival. Each rival is reported, though not each is answered: the
    /// second may be the one to yield to.
    pub fn report_rival(&mut self, mac: Mac, now: Duration) -> bool {
        let report =
            self.rival.is_none_or(|(rival, at)| rival != mac || now >= at + OBSERVED_INTERVAL);
        if report {
            self.rival = Some((mac, now));
        }
        report
    }

    /// Whether to answer a claim at once. RFC 5227 §2.4 allows one defence per interval: two hosts
    /// that both insist must not fill the network.
    pub fn defend(&mut self, now: Duration) -> bool {
        let defend = self.contested.is_none_or(|last| now >= last + CONTEST_INTERVAL);
        if defend {
            self.contested = Some(now);
        }
        defend
    }

    /// Whether to report the defence against a probe.
    pub fn report_defence(&mut self, now: Duration) -> bool {
        let report = self.defended.is_none_or(|last| now >= last + CONTEST_INTERVAL);
        if report {
            self.defended = Some(now);
        }
        report
    }
}

/// All of them.
#[derive(Debug, Default)]
// Boxed, as in the engine.
pub(super) struct Presences(BTreeMap<(IpAddr, u32), Box<Presence>>);

impl Presences {
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn contains(&self, vip: IpAddr, ifindex: u32) -> bool {
        self.0.contains_key(&(vip, ifindex))
    }

    pub fn get_mut(&mut self, vip: IpAddr, ifindex: u32) -> Option<&mut Presence> {
        self.0.get_mut(&(vip, ifindex)).map(|presence| &mut **presence)
    }

    /// Begins a burst, whatever was going on there.
    pub fn begin(
        &mut self,
        vip: IpAddr,
        ifindex: u32,
        now: Duration,
        timers: &mut TimerQueue<Timer>,
    ) {
        self.end(vip, ifindex, timers);
        timers.add(now, Timer::Announce(vip, ifindex));
        self.0.insert((vip, ifindex), Box::new(Presence { due: now, ..Presence::default() }));
    }

    pub fn end(&mut self, vip: IpAddr, ifindex: u32, timers: &mut TimerQueue<Timer>) {
        if let Some(presence) = self.0.remove(&(vip, ifindex)) {
            timers.cancel(presence.due, Timer::Announce(vip, ifindex));
        }
    }

    /// From now on requests are answered, and nothing is sent unsolicited.
    pub fn mute(&mut self, vip: IpAddr, ifindex: u32, timers: &mut TimerQueue<Timer>) {
        if !self.contains(vip, ifindex) {
            self.begin(vip, ifindex, Duration::ZERO, timers);
        }
        if let Some(presence) = self.get_mut(vip, ifindex) {
            timers.cancel(presence.due, Timer::Announce(vip, ifindex));
        }
    }

    /// Counts the announcement that is sent now and schedules the next one: the next of the burst,
    /// or the refresh. Returns its number since the burst began, from 1.
    pub fn advance(
        &mut self,
        vip: IpAddr,
        ifindex: u32,
        now: Duration,
        refresh: Duration,
        timers: &mut TimerQueue<Timer>,
    ) -> Option<usize> {
        let presence = self.get_mut(vip, ifindex)?;
        let burst = *presence.burst.get_or_insert(now);
        presence.step += 1;
        let number = presence.step;
        presence.due = match BURST.get(presence.step) {
            Some(&offset) if burst + offset <= refresh => burst + offset,
            // The last announcements of a burst are farther apart than refreshes are while another
            // node may be behind a packet filter.
            _ => {
                presence.step = presence.step.max(BURST.len());
                refresh
            }
        };
        timers.add(presence.due, Timer::Announce(vip, ifindex));
        Some(number)
    }

    /// Announces again within [`REPAIR_DELAY`]. Otherwise the rival's frame may be the last one
    /// that clients saw until the next refresh: it was not answered, or it overtook the answer.
    pub fn repair(
        &mut self,
        vip: IpAddr,
        ifindex: u32,
        now: Duration,
        timers: &mut TimerQueue<Timer>,
    ) {
        let Some(presence) = self.get_mut(vip, ifindex) else { return };
        if presence.due > now + REPAIR_DELAY {
            timers.cancel(presence.due, Timer::Announce(vip, ifindex));
            presence.due = now + REPAIR_DELAY;
            timers.add(presence.due, Timer::Announce(vip, ifindex));
        }
    }

    /// Brings pending refreshes forward after the interval became shorter; muted VIPs have none.
    pub fn shorten(
        &mut self,
        interval: Duration,
        now: Duration,
        jitter: &mut Jitter,
        timers: &mut TimerQueue<Timer>,
        is_quiet: impl Fn(IpAddr) -> bool,
    ) {
        for ((vip, ifindex), presence) in &mut self.0 {
            if presence.step < BURST.len() && presence.due <= now + interval {
                continue;
            }
            let due = now + jitter.up_to(interval);
            if due < presence.due && !is_quiet(*vip) {
                timers.cancel(presence.due, Timer::Announce(*vip, *ifindex));
                presence.due = due;
                timers.add(due, Timer::Announce(*vip, *ifindex));
            }
        }
    }
}
