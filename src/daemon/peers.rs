//! Connects the engine to the other nodes: opens the BFD sessions that it wants, and passes on what
//! they and the neighbour table report.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tracing::field::{DisplayValue, display};
use tracing::{debug, info, warn};

use crate::bfd::io::{BfdOptions, Handle, Realtime};
use crate::bfd::packet::{AuthenticationType, SessionState};
use crate::bfd::report::{Report, Severity};
use crate::bfd::{
    Adaptation, Authentication, BfdConfig, Event, Peer, PeerKey, SessionChange, io, report,
};
use crate::config::Settings;
use crate::engine::membership::{DUPLICATE_HOLD, Liveness, PeerEvent};
use crate::engine::plan::Sessions;
use crate::host::liveness_fence::LivenessFence;
use crate::host::neighbours;
use crate::http::metrics::Metrics;
use crate::model::mac::Mac;
use crate::model::{Interfaces, state};

/// Maximum time that a planned stop waits for peers to react to AdminDown.
const ADMIN_DOWN_TIMEOUT: Duration = Duration::from_millis(500);

/// The other nodes. Without any, no port is opened and no thread runs.
pub(super) struct Peers {
    options: BfdOptions,
    handle: Option<Handle>,
    /// Why BFD could not start.
    failed: Option<String>,
    wanted: BTreeMap<IpAddr, Box<str>>,
    /// See [`Sessions::local_addresses`].
    local_addresses: BTreeSet<IpAddr>,
    interfaces: Arc<Interfaces>,
    fence: Arc<LivenessFence>,
    metrics: Arc<Metrics>,
    events_in: mpsc::UnboundedSender<Event>,
    events: mpsc::UnboundedReceiver<Event>,
    lladdrs_wanted: watch::Sender<BTreeSet<IpAddr>>,
    lladdrs: mpsc::UnboundedReceiver<(IpAddr, Mac)>,
    /// Link-layer addresses of peers, from the neighbour table.
    known: BTreeMap<IpAddr, Mac>,
    /// Duplicate identities, of a peer or of this node (None), and when each was last reported.
    duplicates: BTreeMap<Option<IpAddr>, Instant>,
}

impl Peers {
    pub fn new(settings: &Settings, fence: Arc<LivenessFence>, metrics: Arc<Metrics>) -> Peers {
        let authentication = settings.secret.clone().map(|key| Authentication {
            kind: AuthenticationType::MeticulousKeyedSha1,
            key_id: 1,
            key,
        });
        let config = BfdConfig {
            interval: settings.bfd_interval,
            multiplier: settings.bfd_multiplier,
            authentication,
            ..BfdConfig::default()
        };
        // Unbounded, because the sending thread must not wait. The packets that nodes exchange
        // bound the number of events.
        let (events_in, events) = mpsc::unbounded_channel();
        let (lladdrs_wanted, wanted) = watch::channel(BTreeSet::new());
        let (found, lladdrs) = mpsc::unbounded_channel();
        tokio::spawn(neighbours::run(wanted, found));
        Peers {
            options: BfdOptions { config, multihop: true, fence: fence.clone() },
            handle: None,
            failed: None,
            wanted: BTreeMap::new(),
            local_addresses: BTreeSet::new(),
            interfaces: Arc::default(),
            fence,
            metrics,
            events_in,
            events,
            lladdrs_wanted,
            lladdrs,
            known: BTreeMap::new(),
            duplicates: BTreeMap::new(),
        }
    }

    /// Replaces the set of sessions.
    pub fn want(&mut self, sessions: Sessions) {
        self.wanted = sessions.peers;
        self.local_addresses = sessions.local_addresses;
        self.known.retain(|address, _| self.wanted.contains_key(address));
        self.duplicates
            .retain(|peer, _| peer.is_none_or(|address| self.wanted.contains_key(&address)));
        self.lladdrs_wanted.send_replace(self.on_link());
        self.apply();
    }

    /// Sessions are bound to the interface in the peer's subnet.
    pub fn interfaces_changed(&mut self, interfaces: Arc<Interfaces>) {
        self.interfaces = interfaces;
        let on_link = self.on_link();
        self.lladdrs_wanted
            .send_if_modified(|wanted| std::mem::replace(wanted, on_link.clone()) != on_link);
        self.apply();
    }

    /// The peers on the link: the kernel has no neighbour entry of one behind a router.
    fn on_link(&self) -> BTreeSet<IpAddr> {
        self.wanted
            .keys()
            .copied()
            .filter(|address| {
                session(*address, &self.interfaces, &self.local_addresses).0.interface.is_some()
            })
            .collect()
    }

    /// A host claims an address of this cluster. It may be a peer that is back after so long that
    /// its link-layer address is rarely looked up.
    pub fn on_claim(&self, mac: Mac) {
        if self.known.values().all(|known| *known != mac) {
            self.lladdrs_wanted.send_modify(|_| ());
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
                    .map(|address| session(*address, &self.interfaces, &self.local_addresses))
                    .collect(),
            );
        }
    }

    /// Tries again after a failed start: the port may be free by now.
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
                    Realtime::Fifo(priority) => info!(priority, "BFD started (SCHED_FIFO)"),
                    Realtime::Refused(why) => warn!(
                        "BFD started without SCHED_FIFO ({why}): on a busy host peers may declare \
                         this node down; grant CAP_SYS_NICE or LimitRTPRIO=10"
                    ),
                }
                self.failed = None;
                self.metrics.bfd(handle.counters());
                self.handle = Some(handle);
            }
            Err(error) => {
                let error = error.to_string();
                if self.failed.as_ref() != Some(&error) {
                    warn!("{error}; without BFD a failover takes seconds");
                }
                self.failed = Some(error);
            }
        }
    }

    /// Completes the engine's state with what only the sessions know. Costs them some microseconds
    /// when there are many.
    pub fn describe(&self, state: &mut state::NodeState) {
        let Some(handle) = self.handle.as_ref().filter(|_| !self.wanted.is_empty()) else { return };
        let sessions = handle.status();
        if sessions.is_empty() {
            let message = "the BFD thread does not run, so this node answers for no address; if that lasts, restart Pinnace";
            return state.warnings.push(state::Reason::new("BfdNotRunning", message));
        }
        for peer in &mut state.peers {
            let of_peer =
                || sessions.iter().filter(|session| peer.addresses.contains(&session.peer.address));
            let detection_time = of_peer()
                .filter(|session| session.state == SessionState::Up)
                .filter_map(|session| session.detection_time)
                .max();
            peer.detection_milliseconds =
                detection_time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));

            let mismatch = of_peer()
                .find_map(|session| session.rejected)
                .filter(|rejected| !peer.alive && rejected.is_authentication_mismatch());
            if let Some(mismatch) = mismatch {
                peer.state = format!(
                    "BFD packets rejected: {mismatch}; PINNACE_SECRET_FILE must be the same on every node"
                );
            }
        }
    }

    /// The next event for the engine. Cancel safe.
    pub async fn next(&mut self) -> PeerEvent {
        loop {
            tokio::select! {
                Some((address, mac)) = self.lladdrs.recv() => {
                    self.known.insert(address, mac);
                    return PeerEvent::Neighbour { address, mac };
                }
                Some(event) = self.events.recv() => if let Some(event) = self.translate(&event) {
                    return event;
                },
                else => std::future::pending().await,
            }
        }
    }

    /// What the engine needs to know of an event; what people need to know is logged here.
    fn translate(&mut self, event: &Event) -> Option<PeerEvent> {
        match event {
            Event::Adapted(change) => self.log_adaptation(change),
            Event::Peer(change) => self.log_change(change),
            Event::DuplicateIdentity { peer, ours, .. } => {
                self.duplicates.insert((!ours).then_some(peer.address), Instant::now());
            }
            _ => {}
        }
        let translated = PeerEvent::of(event)?;
        if let &PeerEvent::Liveness { address, state } = &translated {
            if state != Liveness::Heard {
                self.metrics.bfd_session(state == Liveness::Up);
            }
            if state == Liveness::Up && !self.is_duplicate(address) {
                // The link-layer address may have changed while the peer was away.
                self.lladdrs_wanted.send_modify(|_| ());
            }
        }
        Some(translated)
    }

    fn log_adaptation(&self, change: &Adaptation) {
        let address = change.peer.map(|peer| peer.address);
        self.log(report::adaptation(change), address);
    }

    fn log_change(&self, change: &SessionChange) {
        if let Some(report) = report::session_change(change) {
            self.log(report, Some(change.peer.address));
        }
    }

    /// Sessions of a duplicate identity change their state all the time and are hardly worth a line.
    fn log(&self, report: Report, address: Option<IpAddr>) {
        let node = address.and_then(|address| self.wanted.get(&address)).map(|node| &**node);
        if address.is_some_and(|address| self.is_duplicate(address)) {
            debug!(
                node,
                address = address.map(display),
                "duplicate peer identity: {}",
                report.text
            );
        } else {
            write(&report, node, address.map(display));
        }
    }

    /// Whether a duplicate identity was reported lately: at this address, at another one of the
    /// same node, or of this node itself.
    fn is_duplicate(&self, address: IpAddr) -> bool {
        let node = |address: &IpAddr| self.wanted.get(address);
        let same = |peer: &Option<IpAddr>| {
            peer.is_none_or(|peer| {
                peer == address || node(&peer).is_some_and(|name| node(&address) == Some(name))
            })
        };
        self.duplicates.iter().any(|(peer, last)| same(peer) && last.elapsed() < DUPLICATE_HOLD)
    }

    /// The engine has decided what follows from a stall, and the announcer has been told.
    pub fn resume(&self) {
        self.fence.reopen();
    }

    /// Sends AdminDown to every peer, in the background.
    pub fn leave(&mut self) {
        if let Some(handle) = self.handle.take() {
            self.wanted.clear();
            tokio::task::spawn_blocking(move || handle.stop(ADMIN_DOWN_TIMEOUT));
        }
    }
}

fn write(report: &Report, node: Option<&str>, address: Option<DisplayValue<IpAddr>>) {
    let text = &*report.text;
    match report.severity {
        Severity::Debug => debug!(node, address, "{text}"),
        Severity::Info => info!(node, address, "{text}"),
        Severity::Warn => warn!(node, address, "{text}"),
    }
}

/// Single-hop and bound to the interface where the peer is in a subnet of this node; multihop
/// otherwise (RFC 5883). The source is one of the addresses by which the peer knows this node: if
/// possible where the subnet has several (an alias, another program's virtual address), and with
/// multihop where there is only one.
fn session(
    address: IpAddr,
    interfaces: &Interfaces,
    local_addresses: &BTreeSet<IpAddr>,
) -> (PeerKey, Peer) {
    let near = interfaces.values().filter(|interface| !interface.loopback).flat_map(|interface| {
        let subnets = interface
            .addresses
            .iter()
            .filter(|subnet| subnet.contains(&address) && subnet.addr() != address);
        subnets.map(|subnet| (interface.index, subnet.addr()))
    });
    // The first of those that are equally good.
    let near = near.min_by_key(|(_, own)| !local_addresses.contains(own));
    let mut same_family =
        local_addresses.iter().copied().filter(|local| local.is_ipv4() == address.is_ipv4());
    let only_one = same_family.next().filter(|_| same_family.next().is_none());
    let key = PeerKey { interface: near.map(|(index, _)| index), address };
    (key, Peer { local: near.map(|(_, own)| own).or(only_one), multihop: near.is_none() })
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
        for (peer, own, index, local) in cases {
            let own = own.split_whitespace().map(|own| own.parse().expect("an address")).collect();
            let (key, settings) = session(peer.parse().expect("an address"), &interfaces, &own);
            let local = local.map(|local| local.parse().expect("an address"));
            assert_eq!(
                (key.interface, settings.local, settings.multihop),
                (index, local, index.is_none()),
                "{peer}, known as {own:?}"
            );
        }
    }
}
