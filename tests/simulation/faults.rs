//! Faults: links and packets that fail, objects that change, processes that end, stall and
//! restart.

use super::*;

impl World {
    pub(super) fn fault(&mut self, fault: Fault) {
        if self.trace {
            eprintln!("{:?} {fault:?}", self.now);
        }
        match fault {
            Fault::Kill(node) => self.kill(node),
            Fault::Start(node) if self.hosts[node].process.is_none() => self.start(node),
            Fault::Start(_) => {}
            Fault::Freeze(node) => self.hosts[node].frozen = true,
            Fault::Thaw(node, late) if self.hosts[node].frozen => self.thaw(node, late),
            Fault::Thaw(..) => {}
            Fault::Suspend(node) => {
                self.hosts[node].frozen = true;
                self.hosts[node].suspended = Some(self.now);
            }
            Fault::Resume(node) => self.resume(node),
            Fault::Link(node, up) => {
                self.hosts[node].link = up;
                let interfaces = self.interfaces(node);
                self.tell(node, Some(Event::Interfaces(interfaces)));
            }
            Fault::Sides(sides) => {
                for (host, side) in self.hosts.iter_mut().zip(&sides) {
                    host.side = *side;
                }
                let n = sides.len();
                self.client_sides = vec![sides[0], sides[n - 1]];
            }
            Fault::Block(a, b, on) => {
                if on {
                    self.blocked.insert((a, b))
                } else {
                    self.blocked.remove(&(a, b))
                };
            }
            Fault::OneWay(a, b, on) => {
                if on {
                    self.oneway.insert((a, b))
                } else {
                    self.oneway.remove(&(a, b))
                };
            }
            Fault::Drain(node) => self.drain(node),
            Fault::Exclude(node, on) => {
                self.hosts[node].excluded = on;
                self.objects_changed(node);
            }
            Fault::Delete(node, on) => {
                self.hosts[node].deleted = on;
                // Others end their sessions with it and say so, unless they cannot.
                for other in 0..self.hosts.len() {
                    if self.up.remove(&(node, other)) && self.running(node) {
                        let told = self.path(other, node) && self.running(other);
                        let reason =
                            if told { DownReason::AdminDown } else { DownReason::DetectionTimeout };
                        self.say(node, other, Liveness::Down(reason));
                    }
                    self.up.remove(&(other, node));
                }
                self.objects_changed(node);
            }
        }
        self.recheck();
    }

    pub(super) fn objects_changed(&mut self, node: usize) {
        for observer in 0..self.hosts.len() {
            let changes = vec![self.node_object(node)];
            self.tell(
                observer,
                Some(Event::Source(SourceUpdate {
                    changes,
                    synced: true,
                    ..SourceUpdate::default()
                })),
            );
        }
    }

    pub(super) fn kill(&mut self, node: usize) {
        let host = &mut self.hosts[node];
        host.process = None;
        host.life += 1;
        (host.frozen, host.suspended) = (false, None);
        host.scheduled = Duration::MAX;
        host.backlog.clear();
        host.undelivered.clear();
        self.up.retain(|(a, _)| *a != node);
        self.recheck();
    }

    pub(super) fn start(&mut self, node: usize) {
        let settings = EngineSettings {
            node: name(node).into(),
            pools: parse_pools("10.0.0.200-10.0.0.250,fd00::1:0/112").expect("pools"),
            avoid_buggy_ips: false,
            mode: Mode::Vip,
            class: "pinnace.dev/pinnace".into(),
            claim_default: true,
            interfaces: Vec::new(),
            probe: false,
            role: Role::Alone,
        };
        let config = AnnouncerConfig { probe_time: Duration::ZERO, ..AnnouncerConfig::default() };
        let announcer = Announcer::new(config, self.random.next());
        let engine = Engine::new(settings, Allocations::default());
        let thread = (self.detection == Detection::Packets)
            .then(|| packets::Thread::new(self.random.next(), self.authenticated));
        self.hosts[node].life += 1;
        self.hosts[node].process =
            Some(Process { engine, announcer, thread, announced: BTreeMap::new(), left: false });
        self.hosts[node].frozen = false;
        let interfaces = self.interfaces(node);
        self.tell(node, Some(Event::Interfaces(interfaces)));
        let mut changes: Vec<SourceChange> =
            (0..self.hosts.len()).map(|node| self.node_object(node)).collect();
        changes.extend(self.services.iter().cloned());
        self.tell(
            node,
            Some(Event::Source(SourceUpdate { changes, synced: true, ..SourceUpdate::default() })),
        );
        // Its packets with new discriminators say Down to those that still believe in the old
        // sessions.
        for other in 0..self.hosts.len() {
            if self.up.contains(&(other, node)) && self.path(node, other) {
                let at = self.now + self.random.time(1, 20);
                self.at(at, SimEvent::Neighbour(other, node));
            }
        }
        self.recheck();
    }

    /// SIGSTOP, or a suspended machine, ends: what had queued up meanwhile is read after the clock
    /// was looked at.
    pub(super) fn thaw(&mut self, node: usize, late: Duration) {
        self.hosts[node].frozen = false;
        // The sessions know by themselves that they slept.
        self.round(node);
        // Peers may have waited since up to an interval before it began.
        let stalled = self.detection == Detection::Timing && late >= ms(100);
        if stalled {
            self.tell(node, Some(Event::Peer(PeerEvent::Stalled { late })));
        }
        for frame in std::mem::take(&mut self.hosts[node].backlog) {
            self.frame(node, &frame);
        }
        for event in std::mem::take(&mut self.hosts[node].undelivered) {
            self.tell(node, Some(event));
        }
        // Not before the sessions were heard, or have ended, which is told of at two addresses.
        let mut caught_up = self.now + self.random.time(10, 60);
        for other in (0..self.hosts.len())
            .filter(|other| self.up.contains(&(node, *other)))
            .collect::<Vec<_>>()
        {
            if !self.up.contains(&(other, node)) {
                let at = self.now + self.random.time(1, 50);
                if stalled
                    && self.hears(node, other)
                    && self.hears(other, node)
                    && self.random.below(2) == 0
                {
                    self.come_back(node, other, at);
                } else {
                    self.at(at, SimEvent::Neighbour(node, other));
                }
                caught_up = caught_up.max(at + ms(4));
            } else if !self.hears(node, other) {
                caught_up = caught_up.max(self.now + ms(165));
            }
        }
        if stalled {
            let life = self.hosts[node].life;
            self.at(caught_up, SimEvent::Peer(node, life, PeerEvent::Resynced));
        }
        self.tell(node, None);
    }

    /// A virtual machine goes on as if nothing had been: its clock stood still with it. Its host
    /// may have kept packets for it, or none.
    fn resume(&mut self, node: usize) {
        let Some(since) = self.hosts[node].suspended.take().filter(|_| self.hosts[node].frozen)
        else {
            return;
        };
        self.hosts[node].offset -= self.now - since;
        let kept = self.random.below(2) == 0;
        if !kept {
            self.hosts[node].backlog.clear();
        }
        self.plan_anew(node, kept);
        self.thaw(node, Duration::ZERO);
    }

    pub(super) fn drain(&mut self, node: usize) {
        if !self.running(node) {
            return;
        }
        self.tell(node, Some(Event::Drain));
        let life = self.hosts[node].life;
        let at = self.now + ms(1_100);
        self.at(at, SimEvent::Stop(node, life));
    }

    /// Peers are told AdminDown, three times, so that one arrives.
    pub(super) fn leave(&mut self, node: usize) {
        if let Some(process) = &mut self.hosts[node].process {
            process.left = true;
        }
        self.want_sessions(node, BTreeSet::new());
        for other in (0..self.hosts.len()).filter(|other| *other != node) {
            if self.up.contains(&(other, node)) && self.path(node, other) && self.running(other) {
                self.up.remove(&(other, node));
                self.up.remove(&(node, other));
                self.say(other, node, Liveness::Down(DownReason::AdminDown));
            }
        }
    }
}
