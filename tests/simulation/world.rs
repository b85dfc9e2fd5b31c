//! A LAN of nodes and clients: real engines and announcers, simulated time, wire and BFD timing.

#[path = "faults.rs"]
mod faults;
#[path = "invariants.rs"]
mod invariants;
#[path = "lan.rs"]
mod lan;
#[path = "objects.rs"]
mod objects;
#[path = "packets.rs"]
mod packets;
#[path = "sessions.rs"]
mod sessions;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use pinnace::engine::membership::{DownReason, Liveness, PeerEvent};
use pinnace::engine::plan::Plan;
use pinnace::engine::{Engine, EngineSettings, Event};
use pinnace::ipam::Allocations;
use pinnace::ipam::pool::parse_pools;
use pinnace::l2::announcer::{Announcement, Announcer, AnnouncerConfig};
use pinnace::l2::{arp, ndp};
use pinnace::model::mac::Mac;
use pinnace::model::role::Role;
use pinnace::model::source_update::SourceUpdate;
use pinnace::model::*;

pub fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// xorshift64* (Marsaglia 2003, Vigna 2016).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
    pub fn time(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_micros(from * 1000 + self.below((to - from) * 1000 + 1))
    }
}

/// How nodes learn of each other's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detection {
    /// When each end of a session would learn what, without packets: cheap enough for many seeds.
    Timing,
    /// The real sessions and their packets.
    Packets,
}

pub struct Process {
    pub engine: Engine,
    announcer: Announcer,
    thread: Option<packets::Thread>,
    pub announced: BTreeMap<IpAddr, Announcement>,
    pub left: bool,
}

pub struct Host {
    pub process: Option<Process>,
    /// Counts processes: events for an earlier one are dropped.
    life: u32,
    pub frozen: bool,
    /// Since when its clock stands still, too.
    suspended: Option<Duration>,
    pub link: bool,
    pub side: u8,
    pub excluded: bool,
    pub deleted: bool,
    /// Since when it has been eligible without interruption.
    pub eligible_since: Option<Duration>,
    offset: Duration,
    /// When the next `Wake` is due; `MAX` when none is queued.
    scheduled: Duration,
    backlog: Vec<Vec<u8>>,
    /// Events for a frozen process, delivered when it thaws.
    undelivered: Vec<Event>,
    /// At the previous check.
    was_eligible: bool,
    interfaces: Option<(bool, Arc<Interfaces>)>,
}

enum SimEvent {
    Frame(usize, u32, Arc<Vec<u8>>),
    ToClient(usize, Arc<Vec<u8>>),
    Wake(usize, u32),
    Peer(usize, u32, PeerEvent),
    Datagram(usize, u32, IpAddr, Arc<Vec<u8>>),
    Round(usize, u32, Duration),
    Expire(usize, usize),
    Rise(usize, usize),
    Neighbour(usize, usize),
    Stop(usize, u32),
    Interest(usize),
    Fault(Fault),
}

#[derive(Clone, Debug)]
pub enum Fault {
    Kill(usize),
    Start(usize),
    Freeze(usize),
    Thaw(usize, Duration),
    Suspend(usize),
    Resume(usize),
    Link(usize, bool),
    Sides(Vec<u8>),
    Block(usize, usize, bool),
    OneWay(usize, usize, bool),
    Drain(usize),
    Exclude(usize, bool),
    Delete(usize, bool),
}

struct Entry(Duration, u64, SimEvent);
impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Entry) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

pub struct World {
    pub now: Duration,
    pub random: Random,
    pub hosts: Vec<Host>,
    pub vips: Vec<IpAddr>,
    services: Vec<SourceChange>,
    /// Nodes with an endpoint, where that matters.
    pub local: BTreeMap<IpAddr, BTreeSet<usize>>,
    pub preferred: BTreeMap<IpAddr, usize>,
    pub clients: Vec<BTreeMap<IpAddr, Mac>>,
    pub client_sides: Vec<u8>,
    queue: BinaryHeap<Reverse<Entry>>,
    sequence: u64,
    up: BTreeSet<(usize, usize)>,
    pending: BTreeSet<(usize, usize, bool)>,
    blocked: BTreeSet<(usize, usize)>,
    oneway: BTreeSet<(usize, usize)>,
    pub loss: u64,
    pub delay: u64,
    pub repeat: u64,
    pub moves: BTreeMap<IpAddr, Vec<(Duration, Option<usize>)>>,
    doubles: BTreeMap<(IpAddr, usize, usize), Duration>,
    orphans: BTreeMap<(IpAddr, usize), Duration>,
    pub failures: Vec<String>,
    pub trace: bool,
    pub bounds: (Duration, Duration),
    pub detection: Detection,
    /// Real sessions sign their packets.
    pub authenticated: bool,
}

pub fn name(node: usize) -> String {
    format!("node-{node}")
}

pub fn mac(node: usize) -> Mac {
    [2, 0, 0, 0, 1, node as u8]
}

fn addresses(node: usize) -> [IpAddr; 2] {
    [
        IpAddr::from([10, 0, 0, 1 + node as u8]),
        IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1 + node as u16]),
    ]
}

impl World {
    pub fn new(seed: u64, nodes: usize, vips: usize) -> World {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..8 {
            random.next();
        }
        let host = |offset| Host {
            process: None,
            life: 0,
            frozen: false,
            suspended: None,
            link: true,
            side: 0,
            excluded: false,
            deleted: false,
            eligible_since: None,
            // Clocks of nodes have nothing to do with each other, and may be set.
            offset,
            scheduled: Duration::MAX,
            backlog: Vec::new(),
            undelivered: Vec::new(),
            was_eligible: false,
            interfaces: None,
        };
        let hosts = (0..nodes).map(|_| host(ms(100_000 + random.below(1_000_000)))).collect();
        let vip = |n: usize| match n % 3 {
            2 => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 1, n as u16]),
            _ => IpAddr::from([10, 0, 0, 200 + n as u8]),
        };
        World {
            now: Duration::ZERO,
            random,
            hosts,
            vips: (0..vips).map(vip).collect(),
            services: Vec::new(),
            local: BTreeMap::new(),
            preferred: BTreeMap::new(),
            clients: vec![BTreeMap::new(); 2],
            client_sides: vec![0, 0],
            queue: BinaryHeap::new(),
            sequence: 0,
            up: BTreeSet::new(),
            pending: BTreeSet::new(),
            blocked: BTreeSet::new(),
            oneway: BTreeSet::new(),
            loss: 0,
            delay: 1,
            repeat: 0,
            moves: BTreeMap::new(),
            doubles: BTreeMap::new(),
            orphans: BTreeMap::new(),
            failures: Vec::new(),
            trace: std::env::var_os("PINNACE_TRACE").is_some(),
            bounds: (ms(5_000), ms(8_000)),
            detection: Detection::Timing,
            authenticated: false,
        }
    }

    /// Starts every node within `within`, and the clients.
    pub fn boot(&mut self, within: u64) {
        for vip in self.vips.clone() {
            self.add_service(vip);
        }
        for node in 0..self.hosts.len() {
            let at = self.random.time(0, within);
            self.at(at, SimEvent::Fault(Fault::Start(node)));
        }
        for client in 0..self.clients.len() {
            let at = self.random.time(0, 500);
            self.at(at, SimEvent::Interest(client));
        }
    }

    fn at(&mut self, at: Duration, event: SimEvent) {
        self.sequence += 1;
        self.queue.push(Reverse(Entry(at, self.sequence, event)));
    }

    pub fn fault_at(&mut self, at: Duration, fault: Fault) {
        self.at(at, SimEvent::Fault(fault));
    }

    /// Runs until `until`, or the first failure.
    pub fn run(&mut self, until: Duration) {
        while self.failures.is_empty() {
            match self.queue.peek() {
                Some(Reverse(entry)) if entry.0 <= until => {}
                _ => break,
            }
            let Some(Reverse(Entry(at, _, event))) = self.queue.pop() else { break };
            self.now = at.max(self.now);
            // Sessions check when they have something to tell: most packets say that nothing has
            // changed.
            let told = !matches!(event, SimEvent::Datagram(..) | SimEvent::Round(..));
            self.dispatch(event);
            if told {
                self.check();
            }
        }
        self.now = until;
    }

    fn dispatch(&mut self, event: SimEvent) {
        match event {
            SimEvent::Frame(node, life, frame) if self.hosts[node].life == life => {
                self.frame(node, &frame)
            }
            SimEvent::Wake(node, life) if self.hosts[node].life == life => {
                self.hosts[node].scheduled = Duration::MAX;
                if !self.hosts[node].frozen {
                    self.tell(node, None);
                }
            }
            SimEvent::Peer(node, life, event) if self.hosts[node].life == life => {
                self.tell(node, Some(Event::Peer(event)))
            }
            SimEvent::Datagram(node, life, source, payload) if self.hosts[node].life == life => {
                self.datagram(node, source, payload)
            }
            SimEvent::Round(node, life, planned)
                if self.hosts[node].life == life && self.due(node, planned) =>
            {
                self.round(node)
            }
            SimEvent::ToClient(client, frame) => self.client_hears(client, &frame),
            SimEvent::Expire(a, b) => self.expire(a, b),
            SimEvent::Rise(a, b) => self.rise(a, b),
            SimEvent::Neighbour(a, b) => {
                if self.running(a) && self.up.remove(&(a, b)) {
                    self.say(a, b, Liveness::Down(DownReason::NeighbourDown));
                }
                self.recheck();
            }
            SimEvent::Stop(node, life) if self.hosts[node].life == life => self.kill(node),
            SimEvent::Interest(client) => self.interest(client),
            SimEvent::Fault(fault) => self.fault(fault),
            _ => {}
        }
    }

    pub fn running(&self, node: usize) -> bool {
        self.hosts[node].process.is_some() && !self.hosts[node].frozen
    }

    /// Frames of `a` reach `b`.
    pub fn path(&self, a: usize, b: usize) -> bool {
        let (from, to) = (&self.hosts[a], &self.hosts[b]);
        from.link && to.link && from.side == to.side && !self.oneway.contains(&(a, b))
    }

    /// An event, or time, for a node; then what follows.
    fn tell(&mut self, node: usize, event: Option<Event>) {
        if self.hosts[node].frozen {
            self.hosts[node].undelivered.extend(event);
            return;
        }
        let now = self.now + self.hosts[node].offset;
        let interfaces = self.interfaces(node);
        let links = matches!(event, Some(Event::Interfaces(_)));
        let Some(process) = self.hosts[node].process.as_mut() else { return };
        let plan = match event {
            Some(event) => process.engine.handle(event, now),
            None if process.engine.poll_timeout().is_some_and(|due| due <= now) => {
                process.engine.handle(Event::Tick, now)
            }
            None => Plan::default(),
        };
        let leave = plan.leave;
        self.carry_out(node, plan, &interfaces, links);
        if leave {
            self.leave(node);
        }
        self.flush(node, &interfaces);
    }

    fn carry_out(&mut self, node: usize, plan: Plan, interfaces: &Interfaces, links: bool) {
        let set = links || plan.announcements.is_some();
        let (now, trace, world) = (self.now + self.hosts[node].offset, self.trace, self.now);
        let Some(process) = self.hosts[node].process.as_mut() else { return };
        if let Some(interval) = plan.announce_interval {
            process.announcer.set_interval(interval, now);
        }
        if let Some(sessions) = &plan.sessions {
            // To speak to a peer is to resolve its address.
            let life = self.hosts[node].life;
            let found: Vec<_> = (0..self.hosts.len())
                .flat_map(|other| addresses(other).map(|address| (address, mac(other))))
                .filter(|(address, _)| sessions.peers.contains_key(address))
                .collect();
            for (address, mac) in found {
                let at = self.now + self.random.time(1, 5);
                self.at(at, SimEvent::Peer(node, life, PeerEvent::Neighbour { address, mac }));
            }
            self.want_sessions(node, sessions.peers.keys().copied().collect());
        }
        let Some(process) = self.hosts[node].process.as_mut() else { return };
        if let Some(announcements) = plan.announcements {
            if trace && announcements != process.announced {
                let posture = |a: &Announcement| {
                    if a.standby {
                        's'
                    } else if a.quiet {
                        'q'
                    } else {
                        'A'
                    }
                };
                let all: Vec<_> =
                    announcements.iter().map(|(vip, a)| format!("{vip}{}", posture(a))).collect();
                eprintln!("{world:?}     {node}: {all:?}");
            }
            process.announced = announcements.clone();
        }
        if set {
            process.announcer.set(process.announced.clone(), interfaces, now);
        }
        if trace && !plan.owner_probes.is_empty() {
            eprintln!("{world:?}     {node} asks {:?}", plan.owner_probes);
        }
        for (vip, station) in plan.owner_probes {
            process.announcer.request_probe(vip, station, now);
        }
    }

    /// Frames out, events in, until nothing more follows; then sleep.
    fn flush(&mut self, node: usize, interfaces: &Interfaces) {
        for _ in 0..50 {
            let now = self.now + self.hosts[node].offset;
            let Some(process) = self.hosts[node].process.as_mut() else { return };
            process.announcer.handle_timeout(now);
            let frames: Vec<_> = process.announcer.transmissions().collect();
            let events: Vec<_> = process.announcer.events().collect();
            for frame in frames {
                self.send(node, frame.frame);
            }
            if events.is_empty() {
                break;
            }
            for event in events {
                let Some(process) = self.hosts[node].process.as_mut() else { return };
                let plan = process.engine.handle(Event::Announcer(event), now);
                self.carry_out(node, plan, interfaces, false);
            }
        }
        let Some(process) = self.hosts[node].process.as_ref() else { return };
        let due = [process.engine.poll_timeout(), process.announcer.poll_timeout()]
            .into_iter()
            .flatten()
            .min();
        let Some(due) = due.map(|due| {
            due.saturating_sub(self.hosts[node].offset).max(self.now + Duration::from_micros(10))
        }) else {
            return;
        };
        if due < self.hosts[node].scheduled {
            self.hosts[node].scheduled = due;
            let life = self.hosts[node].life;
            self.at(due, SimEvent::Wake(node, life));
        }
    }
}

pub fn client_mac(client: usize) -> Mac {
    [2, 0, 0, 0, 2, client as u8]
}

/// The address that a frame claims, and the MAC that claims it.
fn claim(frame: &[u8]) -> Option<(IpAddr, Mac)> {
    if let Ok(packet) = arp::Repr::parse(frame) {
        return (!packet.sender.is_unspecified())
            .then_some((packet.sender.into(), packet.sender_mac));
    }
    let packet = ndp::Repr::parse(frame).ok()?;
    match packet.message {
        ndp::Message::Advertisement { link_layer, .. } => {
            Some((packet.target.into(), link_layer.unwrap_or(packet.source_mac)))
        }
        ndp::Message::Solicitation { .. } => None,
    }
}
