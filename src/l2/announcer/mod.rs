//! Who answers for a VIP on the wire: probing before the first claim (RFC 5227, RFC 4862), answers
//! to ARP and neighbour solicitations, bursts of gratuitous ARP and unsolicited advertisements,
//! refreshes, and what is heard of others.
//!
//! Sans IO: frames go in by [`Announcer::receive`], time by [`Announcer::poll`], wishes by
//! [`Announcer::set`]; frames and events are drained from [`Announcer::transmissions`] and
//! [`Announcer::events`] after each of them. Times are durations since an arbitrary epoch of a
//! monotonic clock.
//!
//! Cost: `receive` is O(log VIPs); `poll` O(log VIPs) per frame; idle it wakes once per refresh,
//! and refreshes that are near each other share a wake.

#[cfg(test)]
mod lan_tests;
mod link;
#[cfg(test)]
mod links_tests;
#[cfg(test)]
mod probing_tests;
mod receive;
#[cfg(test)]
mod receive_tests;
mod recent;
mod schedule;
mod send;
#[cfg(test)]
mod standby_tests;
#[cfg(test)]
mod tests;
mod types;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use link::Link;
use recent::Recent;
use schedule::{Jitter, Pacer};
pub use types::{Announcement, AnnouncerCounters, AnnouncerEvent, Config, Gateways, Transmission};

use super::{arp, ndp};
use crate::common::timer_queue::TimerQueue;
use crate::model::Interfaces;
use crate::model::mac::Mac;

/// How long an address found in use is left alone before it is probed again (RFC 5227 §1.1,
/// RATE_LIMIT_INTERVAL); up to a quarter is added at random, or two hosts that refused each other
/// would do so forever.
pub const CONFLICT_RETRY: Duration = Duration::from_secs(60);
/// How often, per VIP and interface, a claim of somebody else is answered by an announcement and
/// reported.
pub const CONTEST_INTERVAL: Duration = Duration::from_secs(1);
/// After a claim that could not be answered at once for that limit: when it is announced again at
/// the latest.
pub const REPAIR_DELAY: Duration = Duration::from_millis(200);
/// How often, at most, a standby reports the same speaker.
pub const HEARD_INTERVAL: Duration = Duration::from_millis(250);
/// Probes before the first announcement (RFC 5227 §1.1, PROBE_NUM).
pub const PROBES: u32 = 3;

/// The machine. One per host.
#[derive(Debug)]
pub struct Announcer {
    config: Config,
    configured_interval: Duration,
    jitter: Jitter,
    /// Usable interfaces: up, with a hardware address.
    links: BTreeMap<u32, Link>,
    /// Hardware addresses of all interfaces, usable or not.
    own: BTreeSet<Mac>,
    // Boxed, as in the engine.
    vips: BTreeMap<IpAddr, Box<Vip>>,
    /// Where a VIP is announced at present.
    places: BTreeMap<(IpAddr, u32), Box<Place>>,
    recent: Recent,
    gateways: Arc<Gateways>,
    /// Questions that are to be put: to whom, and since when they wait.
    asks: BTreeMap<IpAddr, (Option<Mac>, Duration)>,
    timers: TimerQueue<Timer>,
    pacer: Pacer,
    transmissions: VecDeque<Transmission>,
    events: VecDeque<AnnouncerEvent>,
    counters: AnnouncerCounters,
}

#[derive(Debug)]
struct Vip {
    interfaces: Arc<BTreeSet<u32>>,
    standing: AnnounceState,
    standby: bool,
    quiet: bool,
    /// What was last heard of who has it, on standby.
    heard: Option<(u32, Mac, Duration)>,
}

#[derive(Debug)]
enum AnnounceState {
    /// Wants probing but none of its interfaces is usable.
    Waiting,
    /// `sent` of the probes are out; `due` is the next one, or the end.
    Probing { start: Duration, sent: u32, due: Duration },
    /// Somebody else has it; probed again at `due`.
    Refused { due: Duration },
    /// Announced wherever it can be, unless on standby.
    Clear,
}

/// A VIP on an interface.
#[derive(Debug)]
struct Place {
    /// When the burst began: the first frame, not the wish (a crowd of VIPs may have to queue).
    burst: Option<Duration>,
    /// Announcements sent since.
    step: usize,
    due: Duration,
    contested: Option<Duration>,
    /// The rival that was last told of, and when.
    rival: Option<(Mac, Duration)>,
    defended: Option<Duration>,
}

/// What a timer is for. Ordered only to be found again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Probe(IpAddr),
    Announce(IpAddr, u32),
    Ask(IpAddr),
}

impl Announcer {
    /// An announcer that announces nothing. `seed` feeds jitter and nonces; hosts should differ in
    /// it.
    pub fn new(config: Config, seed: u64) -> Announcer {
        Announcer {
            configured_interval: config.announce_interval,
            config,
            jitter: Jitter::new(seed),
            links: BTreeMap::new(),
            own: BTreeSet::new(),
            vips: BTreeMap::new(),
            places: BTreeMap::new(),
            recent: Recent::default(),
            gateways: Arc::default(),
            asks: BTreeMap::new(),
            timers: TimerQueue::default(),
            pacer: Pacer::default(),
            transmissions: VecDeque::new(),
            events: VecDeque::new(),
            counters: AnnouncerCounters::default(),
        }
    }

    /// Replaces what is wanted and what the host has. Only differences have an effect; a VIP no
    /// longer wanted is silent at once. Frames that follow are sent by [`Announcer::poll`].
    pub fn set(
        &mut self,
        desired: BTreeMap<IpAddr, Announcement>,
        interfaces: &Interfaces,
        now: Duration,
    ) {
        let links: BTreeMap<u32, Link> =
            interfaces.values().filter_map(|i| Some((i.index, Link::of(i)?))).collect();
        let fresh: BTreeSet<u32> = links
            .iter()
            .filter(|&(index, link)| self.links.get(index) != Some(link))
            .map(|(&index, _)| index)
            .collect();
        self.own = interfaces.values().filter_map(|interface| interface.mac).collect();
        self.links = links;

        let gone: Vec<IpAddr> =
            self.vips.keys().filter(|vip| !desired.contains_key(vip)).copied().collect();
        for vip in gone {
            self.forget(vip);
        }
        for (vip, announcement) in desired {
            self.want(vip, announcement, &fresh, now);
        }
    }

    /// Does what is due. Sends about 64 unsolicited frames per 2 ms at most; the rest follows by
    /// [`Announcer::poll_timeout`].
    pub fn poll(&mut self, now: Duration) {
        while self.pacer.may_send(now) {
            match self.timers.pop(now) {
                Some(Timer::Probe(vip)) => self.probe(vip, now),
                Some(Timer::Announce(vip, ifindex)) => self.announce(vip, ifindex, now),
                Some(Timer::Ask(vip)) => self.send_probe(vip),
                None => break,
            }
        }
    }

    /// When [`Announcer::poll`] has something to do; None: not before the next `set`.
    pub fn poll_timeout(&self) -> Option<Duration> {
        Some(self.pacer.not_before(self.timers.poll_timeout()?))
    }

    /// Frames to send, in order; taken out.
    pub fn transmissions(&mut self) -> impl Iterator<Item = Transmission> + '_ {
        self.transmissions.drain(..)
    }

    /// What happened, in order; taken out.
    pub fn events(&mut self) -> impl Iterator<Item = AnnouncerEvent> + '_ {
        self.events.drain(..)
    }

    /// Totals since the start.
    pub fn counters(&self) -> &AnnouncerCounters {
        &self.counters
    }

    fn want(&mut self, vip: IpAddr, wanted: Announcement, fresh: &BTreeSet<u32>, now: Duration) {
        let probe = wanted.probe && !self.config.probe_time.is_zero();
        let may_probe = !wanted.quiet;
        let (standing, before, heard, quiet_before) = match self.vips.remove(&vip) {
            None => (
                if probe { AnnounceState::Waiting } else { AnnounceState::Clear },
                Arc::default(),
                None,
                false,
            ),
            Some(old) => (old.standing, old.interfaces, old.heard, old.quiet),
        };
        // A usable interface that takes part and did not a moment ago.
        let arrived = wanted
            .interfaces
            .iter()
            .any(|i| self.links.contains_key(i) && (fresh.contains(i) || !before.contains(i)));
        let usable = wanted.interfaces.iter().any(|i| self.links.contains_key(i));
        let standing = match standing {
            AnnounceState::Clear => AnnounceState::Clear,
            other => {
                let restart = matches!(other, AnnounceState::Waiting) && usable
                    || matches!(other, AnnounceState::Probing { .. }) && arrived;
                if !probe {
                    self.cancel(vip, &other);
                    AnnounceState::Clear
                } else if !(usable && may_probe) && matches!(other, AnnounceState::Probing { .. }) {
                    self.cancel(vip, &other);
                    AnnounceState::Waiting
                } else if restart && may_probe {
                    self.cancel(vip, &other);
                    self.start_probing(vip, now)
                } else {
                    other
                }
            }
        };
        if matches!(standing, AnnounceState::Clear) {
            for ifindex in before.union(&wanted.interfaces).copied() {
                let here = !wanted.standby
                    && wanted.interfaces.contains(&ifindex)
                    && self.links.contains_key(&ifindex);
                if !here {
                    self.leave(vip, ifindex);
                } else if wanted.quiet {
                    self.mute(vip, ifindex);
                } else if quiet_before
                    || fresh.contains(&ifindex)
                    || !self.places.contains_key(&(vip, ifindex))
                {
                    self.enter(vip, ifindex, now);
                }
            }
        }
        let heard = heard.filter(|_| wanted.standby);
        let known = Vip {
            interfaces: wanted.interfaces,
            standing,
            standby: wanted.standby,
            quiet: wanted.quiet,
            heard,
        };
        self.vips.insert(vip, Box::new(known));
    }

    fn forget(&mut self, vip: IpAddr) {
        self.recent.forget(vip);
        if let Some((_, since)) = self.asks.remove(&vip) {
            self.timers.cancel(since, Timer::Ask(vip));
        }
        if let Some(old) = self.vips.remove(&vip) {
            self.cancel(vip, &old.standing);
            for &ifindex in old.interfaces.iter() {
                self.leave(vip, ifindex);
            }
        }
    }

    fn cancel(&mut self, vip: IpAddr, standing: &AnnounceState) {
        if let AnnounceState::Probing { due, .. } | AnnounceState::Refused { due } = standing {
            self.timers.cancel(*due, Timer::Probe(vip));
        }
    }

    /// Begins a burst on an interface, whatever was going on there.
    fn enter(&mut self, vip: IpAddr, ifindex: u32, now: Duration) {
        self.leave(vip, ifindex);
        self.timers.add(now, Timer::Announce(vip, ifindex));
        let place =
            Place { burst: None, step: 0, due: now, contested: None, rival: None, defended: None };
        self.places.insert((vip, ifindex), Box::new(place));
    }

    fn leave(&mut self, vip: IpAddr, ifindex: u32) {
        if let Some(place) = self.places.remove(&(vip, ifindex)) {
            self.timers.cancel(place.due, Timer::Announce(vip, ifindex));
        }
    }

    /// Answers from now on, and no more.
    fn mute(&mut self, vip: IpAddr, ifindex: u32) {
        let known = self.places.contains_key(&(vip, ifindex));
        if !known {
            self.enter(vip, ifindex, Duration::ZERO);
        }
        if let Some(place) = self.places.get(&(vip, ifindex)) {
            self.timers.cancel(place.due, Timer::Announce(vip, ifindex));
        }
    }

    /// Asks once whether anybody has a VIP that we know: one station, or everybody. Who has it
    /// answers, and is [`AnnouncerEvent::Heard`]. Sent by [`Announcer::poll`], as all
    /// unsolicited frames; a question that still waits then is not put twice.
    pub fn ask(&mut self, vip: IpAddr, station: Option<Mac>, now: Duration) {
        if !self.vips.contains_key(&vip) {
            return;
        }
        let since = self.asks.get(&vip).map_or(now, |(_, since)| *since);
        self.asks.insert(vip, (station, since));
        self.timers.add(since, Timer::Ask(vip));
    }

    fn send_probe(&mut self, vip: IpAddr) {
        let Some((station, _)) = self.asks.remove(&vip) else { return };
        // Who has it does not ask, unless to say that it leaves: it took the address while the
        // question waited.
        if self.vips.get(&vip).is_none_or(|known| !known.standby && !known.quiet) {
            return;
        }
        // The answer is told of, however short a time ago the same was heard.
        if let Some(known) = self.vips.get_mut(&vip) {
            known.heard = None;
        }
        let nonce = self.nonce(vip);
        let frames: Vec<Transmission> = self
            .links_of(vip)
            .map(|(ifindex, mac)| {
                let frame = match vip {
                    IpAddr::V4(address) => {
                        let probe = arp::Repr::probe(mac, address);
                        arp::Repr { destination: station.unwrap_or(probe.destination), ..probe }
                            .to_vec()
                    }
                    IpAddr::V6(address) => {
                        let probe = ndp::Repr::probe(mac, address, nonce);
                        ndp::Repr {
                            destination_mac: station.unwrap_or(probe.destination_mac),
                            ..probe
                        }
                        .to_vec()
                    }
                };
                Transmission { ifindex, frame }
            })
            .collect();
        self.pacer.count(frames.len());
        self.counters.probes_sent += frames.len() as u64;
        self.transmissions.extend(frames);
    }

    /// How often to refresh from now on; None: as configured. A shorter interval holds for what is
    /// pending, too.
    pub fn set_interval(&mut self, interval: Option<Duration>, now: Duration) {
        let interval = interval.unwrap_or(self.configured_interval);
        let shorter = interval < self.config.announce_interval;
        self.config.announce_interval = interval;
        if !shorter {
            return;
        }
        let rare =
            |place: &Place| place.step >= schedule::BURST.len() || place.due > now + interval;
        let rare: Vec<(IpAddr, u32)> =
            self.places.iter().filter(|(_, place)| rare(place)).map(|(key, _)| *key).collect();
        for (vip, ifindex) in rare {
            let due = now + self.jitter.up_to(interval);
            let Some(place) = self.places.get_mut(&(vip, ifindex)) else { continue };
            let silent = self.vips.get(&vip).is_some_and(|known| known.quiet);
            if due < place.due && !silent {
                self.timers.cancel(place.due, Timer::Announce(vip, ifindex));
                place.due = due;
                self.timers.add(due, Timer::Announce(vip, ifindex));
            }
        }
    }

    fn start_probing(&mut self, vip: IpAddr, now: Duration) -> AnnounceState {
        let due = now + self.jitter.up_to(self.config.probe_time / (2 * PROBES));
        self.timers.add(due, Timer::Probe(vip));
        AnnounceState::Probing { start: now, sent: 0, due }
    }

    /// The timer of a VIP that is not owned yet: the next probe, the end of probing, or the next
    /// attempt.
    fn probe(&mut self, vip: IpAddr, now: Duration) {
        let Some((start, sent)) = self.vips.get(&vip).and_then(|known| match known.standing {
            AnnounceState::Probing { start, sent, .. } => Some((start, sent)),
            _ => None,
        }) else {
            return self.retry(vip, now);
        };
        if sent >= PROBES {
            return self.claim(vip, now);
        }
        let nonce = self.nonce(vip);
        let frames: Vec<Transmission> = self
            .links_of(vip)
            .map(|(ifindex, mac)| Transmission {
                ifindex,
                frame: match vip {
                    IpAddr::V4(address) => arp::Repr::probe(mac, address).to_vec(),
                    IpAddr::V6(address) => ndp::Repr::probe(mac, address, nonce).to_vec(),
                },
            })
            .collect();
        self.pacer.count(frames.len());
        self.counters.probes_sent += frames.len() as u64;
        self.transmissions.extend(frames);

        // Each probe falls into the first half of its third, so that at least a sixth is left to
        // hear an answer. A probe that had to queue moves what follows, or the answers to
        // it would come too late.
        let third = self.config.probe_time / PROBES;
        let sent = sent + 1;
        let jitter = if sent < PROBES { self.jitter.up_to(third / 2) } else { Duration::ZERO };
        let due = (start + self.config.probe_time * sent / PROBES + jitter).max(now + third / 2);
        self.timers.add(due, Timer::Probe(vip));
        if let Some(known) = self.vips.get_mut(&vip) {
            known.standing = AnnounceState::Probing { start, sent, due };
        }
    }

    fn retry(&mut self, vip: IpAddr, now: Duration) {
        let usable = self.links_of(vip).next().is_some();
        if !self
            .vips
            .get(&vip)
            .is_some_and(|known| matches!(known.standing, AnnounceState::Refused { .. }))
        {
            return;
        }
        let standing = if usable { self.start_probing(vip, now) } else { AnnounceState::Waiting };
        if let Some(known) = self.vips.get_mut(&vip) {
            known.standing = standing;
        }
    }

    fn claim(&mut self, vip: IpAddr, now: Duration) {
        let mut places: Vec<u32> = self.links_of(vip).map(|(ifindex, _)| ifindex).collect();
        if let Some(known) = self.vips.get_mut(&vip) {
            known.standing = AnnounceState::Clear;
            if known.standby {
                places.clear();
            }
        }
        self.events.push_back(AnnouncerEvent::ProbeClear { vip });
        for ifindex in places {
            self.enter(vip, ifindex, now);
        }
    }

    fn announce(&mut self, vip: IpAddr, ifindex: u32, now: Duration) {
        let Some(place) = self.places.get_mut(&(vip, ifindex)) else { return };
        let burst = *place.burst.get_or_insert(now);
        place.step += 1;
        let step = place.step;
        let refresh =
            now + self.jitter.refresh(now, self.config.announce_interval.max(Config::MIN_INTERVAL));
        place.due = match schedule::BURST.get(place.step) {
            Some(&offset) if burst + offset <= refresh => burst + offset,
            // The last of a burst are farther apart than refreshes are while somebody may sit
            // behind a filter.
            _ => {
                place.step = place.step.max(schedule::BURST.len());
                refresh
            }
        };
        self.timers.add(place.due, Timer::Announce(vip, ifindex));
        self.send_announcement(vip, ifindex);
        // Twice to each: once soon, once more when the first may have been lost. The gateways have
        // a turn of their own, or thousands of VIPs that move at once would be broadcast
        // later for it.
        match step {
            1 | 3 => self.tell_askers(vip, ifindex, now),
            2 | 4 => self.tell_gateways(vip, ifindex, now),
            _ => {}
        }
    }

    /// Both forms of gratuitous ARP: some systems heed only the request, some only the reply.
    fn send_announcement(&mut self, vip: IpAddr, ifindex: u32) {
        let Some(mac) = self.links.get(&ifindex).map(|link| link.mac) else { return };
        let before = self.transmissions.len();
        match vip {
            IpAddr::V4(address) => {
                self.send(ifindex, arp::Repr::announcement(mac, address).to_vec());
                self.send(ifindex, arp::Repr::gratuitous_reply(mac, address).to_vec());
            }
            IpAddr::V6(address) => {
                self.send(ifindex, ndp::Repr::announcement(mac, address).to_vec())
            }
        }
        let frames = self.transmissions.len() - before;
        self.pacer.count(frames);
        self.counters.announcements_sent += frames as u64;
    }

    fn send(&mut self, ifindex: u32, frame: Vec<u8>) {
        self.transmissions.push_back(Transmission { ifindex, frame });
    }

    /// The same on all our interfaces, so that two of them on one link do not take each other for a
    /// stranger (RFC 7527 §4.1).
    fn nonce(&self, vip: IpAddr) -> ndp::Nonce {
        let [a, b, c, d, e, f, ..] = self.jitter.digest(vip).to_be_bytes();
        [a, b, c, d, e, f]
    }
}
