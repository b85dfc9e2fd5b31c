//! The announcer's state machine.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::frames;
use super::interpret::{Interpreter, Meaning};
use super::link::Link;
use super::neighbors::Neighbors;
use super::outbox::Outbox;
use super::presence::Presences;
use super::schedule::{self, CONFLICT_RETRY, Jitter, OBSERVED_INTERVAL, PROBES};
use super::timer::Timer;
use super::types::{
    Announcement, AnnouncerConfig, AnnouncerCounters, AnnouncerEvent, Transmission,
};
use super::vip::{AnnounceState, Transition, Vip};
use crate::common::timer_queue::TimerQueue;
use crate::model::Interfaces;
use crate::model::gateways::Gateways;
use crate::model::mac::Mac;

/// One per host.
#[derive(Debug)]
pub struct Announcer {
    config: AnnouncerConfig,
    configured_interval: Duration,
    jitter: Jitter,
    /// Usable interfaces: up, with a link-layer address.
    pub(super) links: BTreeMap<u32, Link>,
    /// Link-layer addresses of all interfaces, usable or not.
    own_lladdrs: BTreeSet<Mac>,
    // Boxed, as in the engine.
    pub(super) vips: BTreeMap<IpAddr, Box<Vip>>,
    /// Where VIPs are announced at present.
    pub(super) presences: Presences,
    neighbors: Neighbors,
    /// Requested probes for owners: to whom, and since when they wait.
    pending_probes: BTreeMap<IpAddr, (Option<Mac>, Duration)>,
    pub(super) timers: TimerQueue<Timer>,
    outbox: Outbox,
}

impl Announcer {
    /// An announcer that announces nothing. `seed` feeds jitter and nonces and should differ
    /// between hosts.
    pub fn new(config: AnnouncerConfig, seed: u64) -> Announcer {
        Announcer {
            configured_interval: config.announce_interval,
            config,
            jitter: Jitter::new(seed),
            links: BTreeMap::new(),
            own_lladdrs: BTreeSet::new(),
            vips: BTreeMap::new(),
            presences: Presences::default(),
            neighbors: Neighbors::default(),
            pending_probes: BTreeMap::new(),
            timers: TimerQueue::default(),
            outbox: Outbox::default(),
        }
    }

    /// Replaces what is desired and the interfaces of the host. Only differences have an effect; a
    /// VIP that is no longer desired is silent at once. [`Announcer::handle_timeout`] sends the
    /// frames that follow.
    pub fn set(
        &mut self,
        desired: BTreeMap<IpAddr, Announcement>,
        interfaces: &Interfaces,
        now: Duration,
    ) {
        let links: BTreeMap<u32, Link> =
            interfaces.values().filter_map(|i| Some((i.index, Link::of(i)?))).collect();
        let changed: BTreeSet<u32> = links
            .iter()
            .filter(|&(index, link)| self.links.get(index) != Some(link))
            .map(|(&index, _)| index)
            .collect();
        self.own_lladdrs = interfaces.values().filter_map(|interface| interface.mac).collect();
        self.links = links;

        let gone: Vec<IpAddr> =
            self.vips.keys().filter(|vip| !desired.contains_key(vip)).copied().collect();
        for vip in gone {
            self.remove(vip);
        }
        for (vip, announcement) in desired {
            self.apply(vip, announcement, &changed, now);
        }
    }

    /// Neighbors that are told of every VIP taken over from now on, by interface, whether or not
    /// they ever asked for it.
    pub fn set_gateways(&mut self, gateways: Arc<Gateways>) {
        self.neighbors.gateways = gateways;
    }

    /// Sets the refresh interval; None: as configured. A shorter interval applies to pending
    /// refreshes as well.
    pub fn set_interval(&mut self, interval: Option<Duration>, now: Duration) {
        let interval = interval.unwrap_or(self.configured_interval);
        let shorter = interval < self.config.announce_interval;
        self.config.announce_interval = interval;
        if shorter {
            let vips = &self.vips;
            let is_quiet = |vip| vips.get(&vip).is_some_and(|known| known.quiet);
            self.presences.shorten(interval, now, &mut self.jitter, &mut self.timers, is_quiet);
        }
    }

    /// Probes once for the owner of a known VIP, at one link-layer address or everywhere. The
    /// owner's reply is reported as [`AnnouncerEvent::ClaimObserved`]. The probe waits for the rate
    /// limit as all unsolicited frames do; one that still waits is not sent twice.
    pub fn request_probe(&mut self, vip: IpAddr, lladdr: Option<Mac>, now: Duration) {
        if !self.vips.contains_key(&vip) {
            return;
        }
        let since = self.pending_probes.get(&vip).map_or(now, |(_, since)| *since);
        self.pending_probes.insert(vip, (lladdr, since));
        self.timers.add(since, Timer::OwnerProbe(vip));
    }

    /// Does what is due. Sends about 64 unsolicited frames per 2 ms at most;
    /// [`Announcer::poll_timeout`] says when to send the rest.
    pub fn handle_timeout(&mut self, now: Duration) {
        while self.outbox.pacer.may_send(now) {
            match self.timers.pop(now) {
                Some(Timer::Probe(vip)) => self.probe(vip, now),
                Some(Timer::Announce(vip, ifindex)) => self.announce(vip, ifindex, now),
                Some(Timer::OwnerProbe(vip)) => self.probe_owner(vip),
                None => break,
            }
        }
    }

    /// When [`Announcer::handle_timeout`] has something to do; None: not before the next `set`.
    pub fn poll_timeout(&self) -> Option<Duration> {
        Some(self.outbox.pacer.not_before(self.timers.poll_timeout()?))
    }

    /// Drains the frames to send, in order.
    pub fn transmissions(&mut self) -> impl Iterator<Item = Transmission> + '_ {
        self.outbox.transmissions.drain(..)
    }

    /// Drains the events, in order.
    pub fn events(&mut self) -> impl Iterator<Item = AnnouncerEvent> + '_ {
        self.outbox.events.drain(..)
    }

    /// Totals since the start.
    pub fn counters(&self) -> &AnnouncerCounters {
        &self.outbox.counters
    }

    fn apply(
        &mut self,
        vip: IpAddr,
        desired: Announcement,
        changed: &BTreeSet<u32>,
        now: Duration,
    ) {
        let probe = desired.probe && !self.config.probe_time.is_zero();
        let before = self.vips.remove(&vip).map_or_else(
            || Vip {
                interfaces: Arc::default(),
                state: if probe { AnnounceState::Waiting } else { AnnounceState::Clear },
                standby: false,
                quiet: false,
                last_claim: None,
            },
            |known| *known,
        );

        let state = self.next_state(vip, &before, &desired, changed, now);
        if state == AnnounceState::Clear {
            self.update_presences(vip, &before, &desired, changed, now);
        }
        let known = Vip {
            interfaces: desired.interfaces,
            state,
            standby: desired.standby,
            quiet: desired.quiet,
            last_claim: before.last_claim.filter(|_| desired.standby),
        };
        self.vips.insert(vip, Box::new(known));
    }

    /// The conflict detection of a VIP under another wish, or with other interfaces.
    fn next_state(
        &mut self,
        vip: IpAddr,
        before: &Vip,
        desired: &Announcement,
        changed: &BTreeSet<u32>,
        now: Duration,
    ) -> AnnounceState {
        let probe = desired.probe && !self.config.probe_time.is_zero();
        let links = &self.links;
        let mut usable = desired.interfaces.iter().filter(|&index| links.contains_key(index));
        let is_usable = usable.clone().next().is_some();
        let arrived =
            usable.any(|index| changed.contains(index) || !before.interfaces.contains(index));

        let transition = before.state.transition(probe, desired.quiet, is_usable, arrived);
        if transition != Transition::Keep
            && let Some(due) = before.state.timer()
        {
            self.timers.cancel(due, Timer::Probe(vip));
        }
        match transition {
            Transition::Keep => before.state,
            Transition::Clear => AnnounceState::Clear,
            Transition::Wait => AnnounceState::Waiting,
            Transition::Probe => self.start_probing(vip, now),
        }
    }

    /// Begins, mutes or ends the announcement of a clear VIP on each interface.
    fn update_presences(
        &mut self,
        vip: IpAddr,
        before: &Vip,
        desired: &Announcement,
        changed: &BTreeSet<u32>,
        now: Duration,
    ) {
        for ifindex in before.interfaces.union(&desired.interfaces).copied() {
            let here = !desired.standby
                && desired.interfaces.contains(&ifindex)
                && self.links.contains_key(&ifindex);
            let begin = before.quiet
                || changed.contains(&ifindex)
                || !self.presences.contains(vip, ifindex);
            if !here {
                self.presences.end(vip, ifindex, &mut self.timers);
            } else if desired.quiet {
                self.presences.mute(vip, ifindex, &mut self.timers);
            } else if begin {
                self.presences.begin(vip, ifindex, now, &mut self.timers);
            }
        }
    }

    fn remove(&mut self, vip: IpAddr) {
        self.neighbors.recent.forget(vip);
        if let Some((_, since)) = self.pending_probes.remove(&vip) {
            self.timers.cancel(since, Timer::OwnerProbe(vip));
        }
        if let Some(known) = self.vips.remove(&vip) {
            if let Some(due) = known.state.timer() {
                self.timers.cancel(due, Timer::Probe(vip));
            }
            for &ifindex in known.interfaces.iter() {
                self.presences.end(vip, ifindex, &mut self.timers);
            }
        }
    }

    fn start_probing(&mut self, vip: IpAddr, now: Duration) -> AnnounceState {
        let due = now + self.jitter.up_to(self.config.probe_time / (2 * PROBES));
        self.timers.add(due, Timer::Probe(vip));
        AnnounceState::Probing { start: now, sent: 0, due }
    }

    /// The timer of a VIP that is not clear: the next probe, the end of probing, or the retry after
    /// a conflict.
    fn probe(&mut self, vip: IpAddr, now: Duration) {
        let Some((start, sent)) = self.vips.get(&vip).and_then(|known| match known.state {
            AnnounceState::Probing { start, sent, .. } => Some((start, sent)),
            _ => None,
        }) else {
            return self.retry(vip, now);
        };
        if sent >= PROBES {
            return self.claim(vip, now);
        }
        self.send_probe(vip, None);

        let sent = sent + 1;
        let due = schedule::next_probe(start, sent, self.config.probe_time, now, &mut self.jitter);
        self.timers.add(due, Timer::Probe(vip));
        if let Some(known) = self.vips.get_mut(&vip) {
            known.state = AnnounceState::Probing { start, sent, due };
        }
    }

    fn retry(&mut self, vip: IpAddr, now: Duration) {
        let usable = self.links_of(vip).next().is_some();
        let in_conflict = self
            .vips
            .get(&vip)
            .is_some_and(|known| matches!(known.state, AnnounceState::InConflict { .. }));
        if !in_conflict {
            return;
        }
        let state = if usable { self.start_probing(vip, now) } else { AnnounceState::Waiting };
        if let Some(known) = self.vips.get_mut(&vip) {
            known.state = state;
        }
    }

    /// No conflict was detected.
    fn claim(&mut self, vip: IpAddr, now: Duration) {
        let mut interfaces: Vec<u32> = self.links_of(vip).map(|(ifindex, _)| ifindex).collect();
        if let Some(known) = self.vips.get_mut(&vip) {
            known.state = AnnounceState::Clear;
            if known.standby {
                interfaces.clear();
            }
        }
        self.outbox.events.push_back(AnnouncerEvent::ProbeClear { vip });
        for ifindex in interfaces {
            self.presences.begin(vip, ifindex, now, &mut self.timers);
        }
    }

    fn probe_owner(&mut self, vip: IpAddr) {
        let Some((lladdr, _)) = self.pending_probes.remove(&vip) else { return };
        let Some(known) = self.vips.get_mut(&vip) else { return };
        // This host took the VIP over while the probe waited. An owner probes only to say that it
        // leaves.
        if !known.standby && !known.quiet {
            return;
        }
        // The reply is reported even when the same claim was reported a moment ago.
        known.last_claim = None;
        self.send_probe(vip, lladdr);
    }

    fn send_probe(&mut self, vip: IpAddr, lladdr: Option<Mac>) {
        let nonce = self.jitter.nonce(vip);
        let frames = self
            .links_of(vip)
            .map(|(ifindex, mac)| Transmission {
                ifindex,
                frame: frames::probe(vip, mac, nonce, lladdr),
            })
            .collect();
        self.outbox.probe(frames);
    }

    fn announce(&mut self, vip: IpAddr, ifindex: u32, now: Duration) {
        if !self.presences.contains(vip, ifindex) {
            return;
        }
        let interval = self.config.announce_interval.max(AnnouncerConfig::MIN_INTERVAL);
        let refresh = now + self.jitter.refresh(now, interval);
        let number = self.presences.advance(vip, ifindex, now, refresh, &mut self.timers);
        self.send_announcement(vip, ifindex);
        // Each neighbor is told twice, for the first frame may be lost. Gateways have turns of
        // their own: otherwise thousands of VIPs that move at once would be broadcast later.
        let neighbors = match number {
            Some(1 | 3) => self.neighbors.requesters(vip, ifindex, now),
            Some(2 | 4) => self.neighbors.gateways(vip, ifindex, &self.own_lladdrs, now),
            _ => return,
        };
        self.notify(vip, ifindex, &neighbors);
    }

    fn send_announcement(&mut self, vip: IpAddr, ifindex: u32) {
        if let Some(mac) = self.links.get(&ifindex).map(|link| link.mac) {
            self.outbox.announce(ifindex, frames::announcement(vip, mac));
        }
    }

    fn notify(&mut self, vip: IpAddr, ifindex: u32, neighbors: &[(IpAddr, Mac)]) {
        let Some(mac) = self.links.get(&ifindex).map(|link| link.mac) else { return };
        let frames = neighbors
            .iter()
            .filter_map(|(address, lladdr)| {
                frames::unicast_announcement(vip, mac, *address, *lladdr)
            })
            .collect();
        self.outbox.announce(ifindex, frames);
    }

    /// The usable interfaces of a VIP and their link-layer addresses.
    fn links_of(&self, vip: IpAddr) -> impl Iterator<Item = (u32, Mac)> + '_ {
        let interfaces = self.vips.get(&vip).map(|known| &known.interfaces);
        interfaces
            .into_iter()
            .flat_map(|set| set.iter())
            .filter_map(|ifindex| Some((*ifindex, self.links.get(ifindex)?.mac)))
    }

    /// Takes a frame received on `ifindex`, from the Ethernet header on. Replies are in
    /// [`Announcer::transmissions`] at once. Frames of an interface that is gone or down are
    /// ignored.
    pub fn receive(&mut self, ifindex: u32, frame: &[u8], now: Duration) {
        self.outbox.counters.received += 1;
        let meaning = match self.links.get(&ifindex) {
            Some(link) => Interpreter {
                lladdr: link.mac,
                own_lladdrs: &self.own_lladdrs,
                vips: &self.vips,
                jitter: &self.jitter,
            }
            .frame(frame),
            None => Meaning::Ignored,
        };
        match meaning {
            Meaning::Claim { vip, mac } => self.on_claim(vip, ifindex, mac, now),
            Meaning::Probe { vip, mac, reply } => self.on_probe(vip, ifindex, mac, reply, now),
            Meaning::Request { vip, requester, mac, reply } => {
                self.neighbors.recent.note(vip, ifindex, requester, mac, now);
                if self.presences.contains(vip, ifindex) {
                    self.outbox.reply(ifindex, reply);
                } else {
                    self.outbox.counters.ignored += 1;
                }
            }
            Meaning::Ignored => self.outbox.counters.ignored += 1,
            Meaning::OwnFrame => self.outbox.counters.own += 1,
            Meaning::Malformed => self.outbox.counters.malformed += 1,
        }
    }

    /// Another host claims a VIP.
    fn on_claim(&mut self, vip: IpAddr, ifindex: u32, mac: Mac, now: Duration) {
        let Some(presence) = self.presences.get_mut(vip, ifindex) else {
            let known = self.on_conflict(vip, ifindex, mac, now)
                || self.on_observed_claim(vip, ifindex, mac, now);
            self.outbox.counters.ignored += u64::from(!known);
            return;
        };
        self.outbox.counters.contested += 1;
        if presence.report_rival(mac, now) {
            self.outbox.events.push_back(AnnouncerEvent::Contested { vip, ifindex, mac });
        }
        if self.vips.get(&vip).is_some_and(|known| known.quiet) {
            return;
        }
        let defend = presence.defend(now);
        self.presences.repair(vip, ifindex, now, &mut self.timers);
        if defend {
            self.send_announcement(vip, ifindex);
        }
    }

    /// Another host claims a VIP that is on standby here; false when it is not.
    fn on_observed_claim(&mut self, vip: IpAddr, ifindex: u32, mac: Mac, now: Duration) -> bool {
        let Some(known) = self.vips.get_mut(&vip).filter(|known| known.is_standby_on(ifindex))
        else {
            return false;
        };
        self.outbox.counters.observed += 1;
        let report = known.last_claim.is_none_or(|(index, lladdr, at)| {
            index != ifindex || lladdr != mac || now >= at + OBSERVED_INTERVAL
        });
        if report {
            known.last_claim = Some((ifindex, mac, now));
            self.outbox.events.push_back(AnnouncerEvent::ClaimObserved { vip, ifindex, mac });
        }
        true
    }

    /// Another host probes for a VIP. While this host probes as well, that is a conflict for both
    /// (RFC 5227 §2.1.1).
    fn on_probe(&mut self, vip: IpAddr, ifindex: u32, mac: Mac, reply: Vec<u8>, now: Duration) {
        // A host that hands over does not keep others from taking over.
        let hands_over = self.vips.get(&vip).is_some_and(|known| known.quiet && !known.standby);
        if hands_over {
            self.outbox.counters.ignored += 1;
        } else if let Some(presence) = self.presences.get_mut(vip, ifindex) {
            if presence.report_defence(now) {
                self.outbox.events.push_back(AnnouncerEvent::Defended { vip, ifindex, mac });
            }
            self.outbox.reply(ifindex, reply);
        } else if !self.on_conflict(vip, ifindex, mac, now) {
            self.outbox.counters.ignored += 1;
            if self.vips.get(&vip).is_some_and(|known| known.is_standby_on(ifindex)) {
                self.outbox.events.push_back(AnnouncerEvent::ProbeObserved { vip, ifindex, mac });
            }
        }
    }

    /// Ends the probing of a VIP that another host has; false when it is not being probed there.
    fn on_conflict(&mut self, vip: IpAddr, ifindex: u32, mac: Mac, now: Duration) -> bool {
        let Some(known) = self.vips.get_mut(&vip) else { return false };
        let AnnounceState::Probing { due, .. } = known.state else { return false };
        if !known.interfaces.contains(&ifindex) {
            return false;
        }
        let retry = now + CONFLICT_RETRY + self.jitter.up_to(CONFLICT_RETRY / 4);
        known.state = AnnounceState::InConflict { due: retry };
        self.timers.cancel(due, Timer::Probe(vip));
        self.timers.add(retry, Timer::Probe(vip));
        self.outbox.counters.conflicts += 1;
        self.outbox.events.push_back(AnnouncerEvent::Conflict { vip, ifindex, mac });
        true
    }
}
