//! Frames between nodes and clients, lost, late, out of order or twice.

use super::*;

impl World {
    pub(super) fn frame(&mut self, node: usize, frame: &[u8]) {
        if self.hosts[node].frozen {
            if self.hosts[node].backlog.len() < 200 {
                self.hosts[node].backlog.push(frame.to_vec());
            }
            return;
        }
        let (now, interfaces) = (self.now + self.hosts[node].offset, self.interfaces(node));
        let Some(process) = self.hosts[node].process.as_mut() else { return };
        process.announcer.receive(2, frame, now);
        self.flush(node, &interfaces);
    }

    pub(super) fn send(&mut self, from: usize, frame: Vec<u8>) {
        if let Some((vip, station)) = claim(&frame)
            && station == mac(from)
        {
            let holds = self.hosts[from]
                .process
                .as_ref()
                .is_some_and(|p| p.announced.get(&vip).is_some_and(|a| !a.standby));
            if !holds {
                self.failures.push(format!(
                    "{:?}: node {from} announces {vip}, which it has lost",
                    self.now
                ));
            }
        }
        if !self.hosts[from].link {
            return;
        }
        let to: Mac = frame[..6].try_into().expect("a frame");
        let group = !pinnace::model::mac::is_unicast(to);
        let frame = Arc::new(frame);
        for other in (0..self.hosts.len()).filter(|other| *other != from) {
            if (group || to == mac(other))
                && self.path(from, other)
                && self.hosts[other].process.is_some()
            {
                let life = self.hosts[other].life;
                self.transmit(|| SimEvent::Frame(other, life, frame.clone()));
            }
        }
        for client in 0..self.clients.len() {
            if (group || to == client_mac(client))
                && self.client_sides[client] == self.hosts[from].side
            {
                self.transmit(|| SimEvent::ToClient(client, frame.clone()));
            }
        }
    }

    /// Lost, late, out of order or twice.
    pub(super) fn transmit(&mut self, event: impl Fn() -> SimEvent) {
        let copies = 1 + u32::from(self.random.chance(self.repeat));
        for _ in 0..copies {
            if !self.random.chance(self.loss) {
                let at = self.now + Duration::from_micros(100) + self.random.time(0, self.delay);
                self.at(at, event());
            }
        }
    }

    pub(super) fn client_hears(&mut self, client: usize, frame: &[u8]) {
        if let Some((vip, station)) = claim(frame)
            && self.vips.contains(&vip)
        {
            self.clients[client].insert(vip, station);
        }
    }

    /// A client asks now and then, as an entry grows old.
    pub(super) fn interest(&mut self, client: usize) {
        let own = [10, 0, 0, 100 + client as u8].into();
        for vip in self.vips.clone() {
            let IpAddr::V4(address) = vip else {
                // Neighbour unreachability detection (RFC 4861 §7.3): who no longer answers there
                // is forgotten.
                let stale = |entry: &Mac| {
                    !(0..self.hosts.len())
                        .any(|node| mac(node) == *entry && self.answers(node, vip).is_some())
                };
                if self.clients[client].get(&vip).is_some_and(stale) {
                    self.clients[client].remove(&vip);
                }
                continue;
            };
            let request =
                arp::Repr { sender: own, ..arp::Repr::probe(client_mac(client), address) }.to_vec();
            for node in 0..self.hosts.len() {
                let host = &self.hosts[node];
                if host.link && host.side == self.client_sides[client] && host.process.is_some() {
                    let (life, frame) = (host.life, Arc::new(request.clone()));
                    self.transmit(|| SimEvent::Frame(node, life, frame.clone()));
                }
            }
        }
        let at = self.now + self.random.time(5_000, 20_000);
        self.at(at, SimEvent::Interest(client));
    }
}
