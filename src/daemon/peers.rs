//! Between the engine and the other nodes: BFD sessions as it wants them, and what is learned from
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use crate::bfd::io::{Handle, Options, Realtime};
use crate::bfd::packet::{AuthenticationType, SessionState};
use crate::bfd::{Adaptation, AdaptationCause, Authentication, Config, Event, Peer, PeerKey, io};
use crate::config::Settings;
use crate::engine::membership::{DUPLICATE_HOLD, DownReason, Liveness, PeerEvent};
use crate::engine::plan::Sessions;
use crate::host::liveness_fence::LivenessFence;
use crate::host::neighbours;
use crate::http::metrics::Metrics;
use crate::model::mac::Mac;
use crate::model::{Interfaces, state};

/// How long a planned stop waits for peers to have heard of it.
const ADMIN_DOWN_TIMEOUT: Duration = Duration::from_millis(500);

/// The other nodes, as far as packets reach them. Without any, no port is opened and no thread
/// runs.
pub(super) struct Peers {
    options: Options,
    handle: Option<Handle>,
    /// Why there are no sessions although there should be.
    failed: Option<String>,
    wanted: BTreeMap<IpAddr, Box<str>>,
    /// See [`Sessions::homes`].
    homes: BTreeSet<IpAddr>,
    interfaces: Arc<Interfaces>,
    vigil: Arc<LivenessFence>,
    metrics: Arc<Metrics>,
    events_in: mpsc::UnboundedSender<Event>,
    events: mpsc::UnboundedReceiver<Event>,
    stations_wanted: watch::Sender<BTreeSet<IpAddr>>,
    stations: mpsc::UnboundedReceiver<(IpAddr, Mac)>,
    /// Of peers, as the neighbour table says.
    known: BTreeMap<IpAddr, Mac>,
    /// Sessions that come and go because two machines speak as this one (None), or as the peer,
    /// and when the last sign of it was.
    doubled: BTreeMap<Option<IpAddr>, Instant>,
}

impl Peers {
    pub fn new(settings: &Settings, vigil: Arc<LivenessFence>, metrics: Arc<Metrics>) -> Peers {
        let authentication = settings.secret.clone().map(|key| Authentication {
            kind: AuthenticationType::MeticulousKeyedSha1,
            key_id: 1,
            key,
        });
        let config = Config {
            interval: settings.bfd_interval,
            multiplier: settings.bfd_multiplier,
            authentication,
            ..Config::default()
        };
        // Unbounded, for the thread that sends must not wait; what it sends is bounded by the
        // packets that nodes exchange.
        let (events_in, events) = mpsc::unbounded_channel();
        let (stations_wanted, wanted) = watch::channel(BTreeSet::new());
        let (found, stations) = mpsc::unbounded_channel();
        tokio::spawn(neighbours::run(wanted, found));
        Peers {
            options: Options { config, multihop: true, vigil: vigil.clone() },
            handle: None,
            failed: None,
            wanted: BTreeMap::new(),
            homes: BTreeSet::new(),
            interfaces: Arc::default(),
            vigil,
            metrics,
            events_in,
            events,
            stations_wanted,
            stations,
            known: BTreeMap::new(),
            doubled: BTreeMap::new(),
        }
    }

    /// Makes the set of sessions this one.
    pub fn want(&mut self, sessions: Sessions) {
        (self.wanted, self.homes) = (sessions.peers, sessions.local_addresses);
        self.known.retain(|address, _| self.wanted.contains_key(address));
        self.doubled
            .retain(|peer, _| peer.is_none_or(|address| self.wanted.contains_key(&address)));
        self.stations_wanted.send_replace(self.on_link());
        self.apply();
    }

    /// Sessions are bound to the interface in whose subnet the peer is.
    pub fn interfaces_changed(&mut self, interfaces: Arc<Interfaces>) {
        self.interfaces = interfaces;
        let on_link = self.on_link();
        self.stations_wanted
            .send_if_modified(|wanted| std::mem::replace(wanted, on_link.clone()) != on_link);
        self.apply();
    }

    /// The peers that are neighbours: the kernel knows no station of one behind a router.
    fn on_link(&self) -> BTreeSet<IpAddr> {
        self.wanted
            .keys()
            .copied()
            .filter(|address| {
                session(*address, &self.interfaces, &self.homes).0.interface.is_some()
            })
            .collect()
    }

    /// A station was heard to have an address of ours. It may be a peer's that is back after so
    /// long that it is rarely looked for.
    pub fn heard(&self, mac: Mac) {
        if self.known.values().all(|known| *known != mac) {
            self.stations_wanted.send_modify(|_| ());
        }
    }

    fn apply(&mut self) {
        if self.handle.is_none() && !self.wanted.is_empty() {
            self.start();
        }
        if let Some(handle) = &self.handle {
            handle.set_peers(
                self.wanted
                    .keys()
                    .map(|address| session(*address, &self.interfaces, &self.homes))
                    .collect(),
            );
        }
    }

    /// Tries again what failed: the port may be free by now.
    pub fn retry(&mut self) {
        if self.failed.is_some() {
            self.apply();
        }
    }

    fn start(&mut self) {
        let events = self.events_in.clone();
        match io::spawn(self.options.clone(), move |event| drop(events.send(event))) {
            Ok(handle) => {
                match handle.realtime() {
                    Realtime::Fifo(priority) => info!(
                        priority,
                        "watching the other nodes by BFD, ahead of ordinary processes"
                    ),
                    Realtime::Refused(why) => warn!(
                        "watching the other nodes by BFD, but not ahead of other processes ({why}): on a busy host they may take this \
                         node for dead; grant CAP_SYS_NICE or LimitRTPRIO=10"
                    ),
                }
                self.failed = None;
                self.metrics.bfd(handle.counters());
                self.handle = Some(handle);
            }
            Err(error) => {
                let error = error.to_string();
                if self.failed.as_ref() != Some(&error) {
                    warn!(
                        "{error}; until then nodes see each other only by what they announce, and take over within seconds"
                    );
                }
                self.failed = Some(error);
            }
        }
    }

    /// Completes what the engine says with what only the sessions know. With many sessions it costs
    /// them some microseconds.
    pub fn describe(&self, state: &mut state::NodeState) {
        let Some(handle) = self.handle.as_ref().filter(|_| !self.wanted.is_empty()) else { return };
        let sessions = handle.status();
        if sessions.is_empty() {
            let message = "the thread that watches the other nodes does not run, and while it does not this node answers for no address; \
                           if that lasts, start Pinnace again";
            return state.warnings.push(state::Reason::new("NotWatching", message));
        }
        for peer in &mut state.peers {
            let with =
                || sessions.iter().filter(|session| peer.addresses.contains(&session.peer.address));
            let longest = with()
                .filter(|session| session.state == SessionState::Up)
                .filter_map(|session| session.detection_time)
                .max();
            peer.detection_milliseconds =
                longest.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
            if let Some(refused) = with()
                .find_map(|session| session.refused)
                .filter(|refused| !peer.alive && refused.is_about_secrets())
            {
                peer.state = format!(
                    "its BFD packets are refused: {refused}; PINNACE_SECRET_FILE has to be the same on every node"
                );
            }
        }
    }

    /// The next thing that was learned. Cancel safe.
    pub async fn next(&mut self) -> PeerEvent {
        loop {
            tokio::select! {
                Some((address, mac)) = self.stations.recv() => {
                    self.known.insert(address, mac);
                    return PeerEvent::Neighbour { address, mac };
                }
                Some(event) = self.events.recv() => if let Some(event) = self.translate(event) {
                    return event;
                },
                else => std::future::pending().await,
            }
        }
    }

    /// What the engine is to know of it; people are told here.
    fn translate(&mut self, event: Event) -> Option<PeerEvent> {
        if let Event::Adapted(change) = &event {
            let node =
                change.peer.and_then(|peer| self.wanted.get(&peer.address)).map(|node| &**node);
            match change.peer {
                Some(peer) if self.is_doubled(peer.address) => {
                    debug!(node, ?change, "a session of two machines that are one")
                }
                _ => adapted(change, node),
            }
        }
        let told = PeerEvent::of(&event)?;
        if let PeerEvent::DuplicateIdentity { address, ours } = &told {
            self.doubled.insert((!ours).then_some(*address), Instant::now());
        }
        if let PeerEvent::Liveness { address, state } = &told {
            if *state != Liveness::Heard {
                self.metrics.bfd_session(*state == Liveness::Up);
            }
            let node = self.wanted.get(address).map_or("?", |node| node);
            match state {
                _ if self.is_doubled(*address) => {
                    debug!(node, %address, ?state, "a session of two machines that are one")
                }
                Liveness::Up => {
                    info!(node, %address, "node is up");
                    // Its station may have changed while it was away.
                    self.stations_wanted.send_modify(|_| ());
                }
                Liveness::Down(DownReason::DetectionTimeout) => {
                    warn!(node, %address, "node is lost: nothing was heard for the detection time")
                }
                Liveness::Down(DownReason::AdminDown) => {
                    info!(node, %address, "node stops as planned")
                }
                Liveness::Heard => debug!(node, %address, "node is heard"),
                Liveness::Down(DownReason::OneWay) => {
                    warn!(node, %address, "node does not hear this one: packets to it were lost, or are blocked")
                }
                Liveness::Down(_) => warn!(node, %address, "node is down: it has restarted"),
            }
        }
        Some(told)
    }

    /// Each of its addresses is one of both machines, though the signs at this one may not be proof
    /// yet.
    fn is_doubled(&self, address: IpAddr) -> bool {
        let node = |address: &IpAddr| self.wanted.get(address);
        let same = |peer: &Option<IpAddr>| {
            peer.is_none_or(|peer| {
                peer == address || node(&peer).is_some_and(|name| node(&address) == Some(name))
            })
        };
        self.doubled.iter().any(|(peer, last)| same(peer) && last.elapsed() < DUPLICATE_HOLD)
    }

    /// The engine has decided what a stall means, and those who answer have been told.
    pub fn resume(&self) {
        self.vigil.reopen();
    }

    /// Tells every peer that this is a planned stop, in the background.
    pub fn leave(&mut self) {
        if let Some(handle) = self.handle.take() {
            self.wanted.clear();
            tokio::task::spawn_blocking(move || handle.stop(ADMIN_DOWN_TIMEOUT));
        }
    }
}

fn adapted(change: &Adaptation, node: Option<&str>) {
    let (interval, multiplier) = (change.interval, change.multiplier);
    match change.reason {
        AdaptationCause::Sessions(count) => {
            info!(?interval, "{count} nodes share the rate of packets, so each hears less often")
        }
        AdaptationCause::LateArrivals(silence) => {
            warn!(
                node,
                ?interval,
                "packets came late, after {silence:?}: waiting longer before a node is taken for dead"
            )
        }
        AdaptationCause::LateWakes(late) => {
            warn!(
                multiplier,
                "this process woke up {late:?} too late: asking others to wait longer before they take it for dead"
            )
        }
        AdaptationCause::Calm => {
            info!(node, ?interval, multiplier, "packets are on time again: watching more closely")
        }
    }
}

/// Over one hop, bound to the interface, where the peer is in one of our subnets; through routers
/// otherwise (RFC 5883). The source is one of the addresses by which the peer knows this node, if
/// it can be: of several in the subnet (an alias, another program's virtual address), and
/// through routers where there is only one.
fn session(address: IpAddr, interfaces: &Interfaces, homes: &BTreeSet<IpAddr>) -> (PeerKey, Peer) {
    let near = interfaces.values().filter(|interface| !interface.loopback).flat_map(|interface| {
        let subnets = interface
            .addresses
            .iter()
            .filter(|subnet| subnet.contains(&address) && subnet.addr() != address);
        subnets.map(|subnet| (interface.index, subnet.addr()))
    });
    // The first of those that are equally good.
    let near = near.min_by_key(|(_, own)| !homes.contains(own));
    let mut same_family = homes.iter().copied().filter(|home| home.is_ipv4() == address.is_ipv4());
    let only_home = same_family.next().filter(|_| same_family.next().is_none());
    let key = PeerKey { interface: near.map(|(index, _)| index), address };
    (key, Peer { local: near.map(|(_, own)| own).or(only_home), multihop: near.is_none() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixtures::interface;

    #[test]
    fn packets_come_from_the_address_by_which_the_peer_knows_this_node() {
        let all = [
            interface(2, "eth0", "10.0.0.5/24 10.0.0.11/24 fd00::5/64 fd00::11/64"),
            interface(3, "eth1", "10.0.0.4/24 10.1.0.5/24 10.1.0.6/24"),
        ];
        let interfaces: Interfaces =
            all.into_iter().map(|interface| (interface.index, interface)).collect();
        let cases = [
            ("10.0.0.12", "10.0.0.11 fd00::11", Some(2), Some("10.0.0.11")),
            ("fd00::12", "10.0.0.11 fd00::11", Some(2), Some("fd00::11")),
            ("10.0.0.12", "10.0.0.4", Some(3), Some("10.0.0.4")),
            ("10.0.0.12", "", Some(2), Some("10.0.0.5")),
            // A second network, of which the Node object says nothing.
            ("10.1.0.12", "10.0.0.11", Some(3), Some("10.1.0.5")),
            ("10.2.0.12", "10.0.0.11 fd00::11", None, Some("10.0.0.11")),
            ("10.2.0.12", "10.0.0.11 10.1.0.6", None, None),
            ("10.2.0.12", "fd00::11", None, None),
        ];
        for (peer, homes, index, local) in cases {
            let homes =
                homes.split_whitespace().map(|home| home.parse().expect("an address")).collect();
            let (key, settings) = session(peer.parse().expect("an address"), &interfaces, &homes);
            let local = local.map(|local| local.parse().expect("an address"));
            assert_eq!(
                (key.interface, settings.local, settings.multihop),
                (index, local, index.is_none()),
                "{peer}, known as {homes:?}"
            );
        }
    }
}
