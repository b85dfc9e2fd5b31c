//! The real BFD sessions over the same LAN: their packets are lost, late, out of order and repeated
//! as frames are, and a process that was stopped finds them queued up.

use pinnace::bfd;
use pinnace::bfd::packet::{AuthenticationType, Key};
use pinnace::bfd::{Authentication, Effects, Peer, PeerKey, Received, Sessions};

use super::*;

/// Datagrams that the kernel keeps for a process that does not read: its default receive buffer
/// holds no more of this size.
const QUEUED: usize = 270;

/// What the thread of a node keeps (src/edge/bfd/task.rs).
pub struct Thread {
    sessions: Sessions,
    /// When it meant to wake up, by the node's clock.
    planned: Option<Duration>,
    /// From whom, by which of its addresses, and what.
    queued: Vec<(IpAddr, Arc<Vec<u8>>)>,
}

impl Thread {
    pub fn new(seed: u64, authenticated: bool) -> Thread {
        let key = Key::new(b"the same everywhere").expect("not empty");
        let authentication =
            Authentication { kind: AuthenticationType::MeticulousKeyedSha1, key_id: 1, key };
        let config = bfd::BfdConfig {
            authentication: authenticated.then_some(authentication),
            ..bfd::BfdConfig::default()
        };
        Thread { sessions: Sessions::new(config, seed), planned: None, queued: Vec::new() }
    }
}

impl World {
    /// The engine wants sessions with these, and no others.
    pub(super) fn want_sessions(&mut self, node: usize, wanted: BTreeSet<IpAddr>) {
        let now = self.now + self.hosts[node].offset;
        let Some(thread) = self.thread(node) else { return };
        let peers = wanted
            .into_iter()
            .map(|address| (PeerKey { interface: Some(2), address }, Peer::default()))
            .collect();
        let effects = thread.sessions.set(&peers, now);
        let life = self.hosts[node].life;
        for event in self.carry(node, effects) {
            self.at(self.now, SimEvent::Peer(node, life, event));
        }
        self.plan(node);
    }

    pub(super) fn datagram(&mut self, node: usize, source: IpAddr, payload: Arc<Vec<u8>>) {
        let frozen = self.hosts[node].frozen;
        let Some(thread) = self.thread(node) else { return };
        if thread.queued.len() < QUEUED {
            thread.queued.push((source, payload));
        }
        if !frozen {
            self.round(node);
        }
    }

    /// What the thread does when it wakes: notice that it is late, read everything, then see who
    /// was silent.
    pub(super) fn round(&mut self, node: usize) {
        let now = self.now + self.hosts[node].offset;
        let Some(thread) = self.thread(node) else { return };
        let mut all = Vec::new();
        let late = thread.planned.map_or(Duration::ZERO, |planned| now.saturating_sub(planned));
        if late > ms(1) {
            all.push(thread.sessions.on_scheduling_delay(late, now));
        }
        for (source, payload) in std::mem::take(&mut thread.queued) {
            let received = Received {
                interface: 2,
                source,
                ttl: Some(255),
                multihop: false,
                payload: &payload,
            };
            all.push(thread.sessions.handle(&received, now));
        }
        all.push(thread.sessions.resynced(now));
        all.push(thread.sessions.handle_timeout(now));
        for effects in all {
            for event in self.carry(node, effects) {
                if self.trace {
                    eprintln!("{:?}   {node}: {event:?}", self.now);
                }
                self.tell(node, Some(Event::Peer(event)));
                self.check();
            }
        }
        self.plan(node);
    }

    fn thread(&mut self, node: usize) -> Option<&mut Thread> {
        self.hosts[node].process.as_mut()?.thread.as_mut()
    }

    /// Packets go out; what is told comes back.
    fn carry(&mut self, from: usize, effects: Effects) -> Vec<PeerEvent> {
        for packet in effects.packets {
            let to =
                (0..self.hosts.len()).find(|node| addresses(*node).contains(&packet.peer.address));
            let open = |to: &usize| {
                self.path(from, *to)
                    && !self.blocked.contains(&(from, *to))
                    && self.hosts[*to].process.is_some()
            };
            if let Some(to) = to.filter(open) {
                let source = addresses(from)[usize::from(packet.peer.address.is_ipv6())];
                let (life, payload) = (self.hosts[to].life, Arc::new(packet.payload().to_vec()));
                self.transmit(|| SimEvent::Datagram(to, life, source, payload.clone()));
            }
        }
        effects.events.iter().filter_map(PeerEvent::of).collect()
    }

    fn plan(&mut self, node: usize) {
        let offset = self.hosts[node].offset;
        let (now, life) = (self.now + offset, self.hosts[node].life);
        let Some(thread) = self.thread(node) else { return };
        let planned = thread.sessions.poll_timeout().map(|due| due.max(now));
        if planned != thread.planned {
            thread.planned = planned;
            if let Some(planned) = planned {
                self.at(
                    (planned - offset).max(self.now + Duration::from_micros(1)),
                    SimEvent::Round(node, life, planned),
                );
            }
        }
    }

    /// What it had planned by a clock that stood still meanwhile is to be planned again.
    pub(super) fn plan_anew(&mut self, node: usize, kept: bool) {
        if let Some(thread) = self.thread(node) {
            thread.planned = None;
            if !kept {
                thread.queued.clear();
            }
        }
    }

    /// A wake that has not been put off meanwhile.
    pub(super) fn due(&self, node: usize, planned: Duration) -> bool {
        let thread = self.hosts[node].process.as_ref().and_then(|process| process.thread.as_ref());
        !self.hosts[node].frozen && thread.is_some_and(|thread| thread.planned == Some(planned))
    }
}
