//! What BFD tells the nodes, and when: a model of its timing. See `packets.rs` for the real
//! sessions.

use super::*;

/// 50 ms × 3, less what passed since the last packet, and the reading of it (RFC 5880 §6.8.4), in
/// milliseconds.
const EXPIRY: (u64, u64) = (100, 160);
/// Two or three slow intervals (RFC 5880 §6.8.3), in milliseconds.
const RISE: (u64, u64) = (800, 2200);

impl World {
    /// `a` hears the BFD of `b`.
    pub(super) fn hears(&self, a: usize, b: usize) -> bool {
        let left = self.hosts[b].process.as_ref().is_none_or(|process| process.left);
        let known = !self.hosts[a].deleted && !self.hosts[b].deleted;
        self.running(b) && !left && known && self.path(b, a) && !self.blocked.contains(&(b, a))
    }

    /// The topology changed: sessions that end or begin are noticed in time.
    pub(super) fn recheck(&mut self) {
        if self.detection == Detection::Packets {
            return;
        }
        for a in 0..self.hosts.len() {
            for b in 0..self.hosts.len() {
                if a == b || !self.running(a) {
                    continue;
                }
                let (up, heard) = (self.up.contains(&(a, b)), self.hears(a, b));
                if up && !heard && self.pending.insert((a, b, true)) {
                    let at = self.now + self.random.time(EXPIRY.0, EXPIRY.1);
                    self.at(at, SimEvent::Expire(a, b));
                }
                if a < b
                    && !up
                    && !self.up.contains(&(b, a))
                    && heard
                    && self.hears(b, a)
                    && self.pending.insert((a, b, false))
                {
                    let at = self.now + self.random.time(RISE.0, RISE.1);
                    self.at(at, SimEvent::Rise(a, b));
                }
                if up && heard && !self.up.contains(&(b, a)) && self.running(b) && self.hears(b, a)
                {
                    let at = self.now + ms(5);
                    self.at(at, SimEvent::Neighbour(a, b));
                }
            }
        }
    }

    pub(super) fn expire(&mut self, a: usize, b: usize) {
        self.pending.remove(&(a, b, true));
        if !self.running(a) || self.hears(a, b) || !self.up.remove(&(a, b)) {
            return;
        }
        self.say(a, b, Liveness::Down(DownReason::DetectionTimeout));
        if self.up.contains(&(b, a)) && self.running(b) && self.hears(b, a) {
            let at = self.now + self.random.time(1, 30);
            self.at(at, SimEvent::Neighbour(b, a));
        }
        self.recheck();
    }

    pub(super) fn rise(&mut self, a: usize, b: usize) {
        self.pending.remove(&(a, b, false));
        let both = self.hears(a, b) && self.hears(b, a);
        if !both || self.up.contains(&(a, b)) || self.up.contains(&(b, a)) {
            return;
        }
        self.up.extend([(a, b), (b, a)]);
        self.say(a, b, Liveness::Up);
        self.say(b, a, Liveness::Up);
    }

    /// `b` had given `a` up, which hears of it and is believed again at once, in one session after
    /// the other: it never sees both of them down.
    pub(super) fn come_back(&mut self, a: usize, b: usize, at: Duration) {
        let life = self.hosts[a].life;
        for (n, address) in addresses(b).into_iter().enumerate() {
            for (m, state) in
                [Liveness::Down(DownReason::NeighbourDown), Liveness::Up].into_iter().enumerate()
            {
                let at = at + Duration::from_micros((2 * n + m) as u64 * 100);
                self.at(at, SimEvent::Peer(a, life, PeerEvent::Liveness { address, state }));
            }
        }
        self.up.insert((b, a));
        self.say(b, a, Liveness::Up);
    }

    /// Both addresses' sessions fare alike.
    pub(super) fn say(&mut self, to: usize, about: usize, state: Liveness) {
        if self.trace {
            eprintln!("{:?}   {to} about {about}: {state:?}", self.now);
        }
        let life = self.hosts[to].life;
        for (n, address) in addresses(about).into_iter().enumerate() {
            let at = self.now + Duration::from_micros(n as u64 * self.random.below(3000));
            self.at(at, SimEvent::Peer(to, life, PeerEvent::Liveness { address, state }));
        }
    }
}
