//! The other nodes: who they are (Node objects), where they can be heard (their internal
//! addresses), and what the wire says about their life. A peer counts on evidence alone; an object
//! in the API proves nothing.
//!
//! A node with several addresses has a session to each. It lives as long as one of them is up: a
//! broken cable on one of its networks does not take the others' traffic. What it may answer for on
//! the broken one, it knows best itself, and says so on the wire.

mod duplicate;
mod liveness;
mod peer;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

pub use liveness::{DUPLICATE_HOLD, DownReason, Liveness, ONE_WAY_AFTER};
use peer::Peer;

use crate::bfd;
use crate::bfd::Cause;
use crate::bfd::packet::{Diagnostic, SessionState};
use crate::model::Node;
use crate::model::mac::Mac;
use crate::model::state::{PeerStatus, Reason};

/// A frame from a peer whose session has timed out is believed from then on: before, it may have
/// been under way.
pub const GRACE: Duration = Duration::from_millis(300);
/// A peer that announced a planned stop may answer for another second (see
/// [`super::election::vip_election::HANDOVER`]), and frames take their time. What is heard of it
/// later comes from a process that runs again.
pub const ADMIN_DOWN_HOLD: Duration = Duration::from_secs(2);
/// A peer that is heard to announce, without a session, for longer than this has its BFD blocked.
pub const BLOCKED_AFTER: Duration = Duration::from_secs(3);
/// How long after its last sign of life a missing peer is waited for. After that, Pinnace does not
/// run there, or the machine is off.
pub const ABSENT_AFTER: Duration = Duration::from_secs(180);

/// After this node got another address, peers begin a new session with that one, at a packet a
/// second (RFC 5880 §6.8.3). That the old one ends says nothing about them for so long.
pub const MOVED_FOR: Duration = Duration::from_secs(3);

/// Something that was learned about a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerEvent {
    /// The session to this address changed its state.
    Liveness {
        /// One of the addresses in [`Membership::sessions`].
        address: IpAddr,
        /// Its state from now on.
        state: Liveness,
    },
    /// The link-layer address of this peer address was learned (from the neighbour table, or the
    /// source of a session's packets).
    Neighbour {
        /// One of the addresses in [`Membership::sessions`].
        address: IpAddr,
        /// Its link-layer address.
        mac: Mac,
    },
    /// A duplicate identity was detected in the session to this address.
    DuplicateIdentity {
        /// One of the addresses in [`Membership::sessions`].
        address: IpAddr,
        /// They speak as this node; or else as the peer.
        ours: bool,
    },
    /// This process was stalled long enough for peers to have declared it down.
    Stalled {
        /// Length of the stall.
        late: Duration,
    },
    /// The peer at this address has waited for us in vain, in a session that is up here: it does
    /// not hear us, or we were away without knowing.
    RemoteDetectionExpired {
        /// One of the addresses in [`Membership::sessions`].
        address: IpAddr,
    },
    /// After a stall, or what may have been one: every session that is still up was heard since.
    Resynced,
}

impl PeerEvent {
    /// What an event of the sessions says about the node at their other end; None: nothing. One
    /// that we ended leaves what was believed before.
    pub fn of(event: &bfd::Event) -> Option<PeerEvent> {
        let event = match event {
            bfd::Event::Peer(event) => event,
            bfd::Event::Adapted(_) => return None,
            bfd::Event::DuplicateIdentity { peer, ours, .. } => {
                return Some(PeerEvent::DuplicateIdentity { address: peer.address, ours: *ours });
            }
            bfd::Event::RemoteDetectionExpired { peer, .. } => {
                return Some(PeerEvent::RemoteDetectionExpired { address: peer.address });
            }
            bfd::Event::Stalled { late, .. } => return Some(PeerEvent::Stalled { late: *late }),
            bfd::Event::Resynced { .. } => return Some(PeerEvent::Resynced),
        };
        let state = match (event.state, event.cause) {
            (SessionState::Up, _) => Liveness::Up,
            (SessionState::Init, _) => Liveness::Heard,
            (_, Cause::DetectionTimeExpired) => Liveness::Down(DownReason::DetectionTimeout),
            (_, Cause::NeighborAdminDown) => Liveness::Down(DownReason::AdminDown),
            (_, Cause::NeighborDown) => match event.remote_diagnostic {
                Diagnostic::ControlDetectionTimeExpired => Liveness::Down(DownReason::OneWay),
                // It answers to what we said before, and is the same that it was.
                Diagnostic::NeighborSignaledSessionDown => Liveness::Heard,
                _ => Liveness::Down(DownReason::NeighbourDown),
            },
            (_, Cause::Handshake | Cause::LocalAdminDown | Cause::LocalAdminUp) => return None,
        };
        Some(PeerEvent::Liveness { address: event.peer.address, state })
    }
}

/// Reachability of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reachability {
    /// A session is up.
    Up,
    /// No session is up, and the peer is not known to be down: its announcements count.
    Unknown,
    /// The peer is heard and does not hear this node, so it cannot yield to it.
    Unidirectional,
    /// The peer stopped or its detection time expired: frames heard from it are old.
    Down,
}

/// What follows from an event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MembershipDelta {
    /// Peers that came up or went down.
    pub nodes: BTreeSet<Box<str>>,
    /// The sessions to have changed.
    pub sessions: bool,
    /// A peer went down.
    pub died: bool,
}

#[derive(Debug, Default)]
pub struct Membership {
    local_node: Box<str>,
    peers: BTreeMap<Box<str>, Peer>,
    owners: BTreeMap<IpAddr, Box<str>>,
    lladdrs: BTreeMap<IpAddr, Mac>,
    /// Addresses that several Node objects claim.
    disputed: BTreeMap<IpAddr, BTreeSet<Box<str>>>,
    /// Addresses under our own name that are not ours, and whether somebody answers there.
    duplicates: BTreeMap<IpAddr, bool>,
    /// Peers known to be cut off by a filter: said once.
    blocked: BTreeSet<Box<str>>,
    /// There is a Node object of our own.
    listed: bool,
    /// Our addresses in it.
    local_addresses: BTreeSet<IpAddr>,
    /// When they last became others.
    moved: Option<Duration>,
    /// Another machine has it too: which, and until when that counts.
    own_duplicate: Option<(IpAddr, Duration)>,
    /// Since when every peer lives, or has said that it leaves.
    complete: Option<Duration>,
}

impl Membership {
    /// Membership without peers.
    pub fn new(me: &str) -> Membership {
        Membership { local_node: me.into(), ..Membership::default() }
    }

    /// Takes the Node objects and this host's own addresses. An address that two objects claim
    /// belongs to the one whose name comes first, on every node alike; the others are refused
    /// and named.
    pub fn set_nodes<'a>(
        &mut self,
        nodes: impl Iterator<Item = &'a Node>,
        own: &BTreeSet<IpAddr>,
        now: Duration,
    ) -> MembershipDelta {
        let before = self.sessions();
        let mut claims: BTreeMap<IpAddr, BTreeSet<Box<str>>> = BTreeMap::new();
        let mut names = BTreeSet::new();
        let mut doubles = BTreeMap::new();
        let mut listed = false;
        let mut local_addresses = BTreeSet::new();
        for node in nodes {
            if node.name == self.local_node {
                listed = true;
                local_addresses = node
                    .internal
                    .iter()
                    .filter(|address| own.contains(*address))
                    .copied()
                    .collect();
                for address in node
                    .internal
                    .iter()
                    .filter(|address| !own.is_empty() && !own.contains(*address))
                {
                    doubles
                        .insert(*address, self.duplicates.get(address).copied().unwrap_or(false));
                }
                continue;
            }
            names.insert(node.name.clone());
            for address in node.internal.iter().filter(|address| !own.contains(*address)) {
                claims.entry(*address).or_default().insert(node.name.clone());
            }
        }
        self.disputed = claims
            .iter()
            .filter(|(_, names)| names.len() > 1)
            .map(|(address, names)| (*address, names.clone()))
            .collect();
        self.owners = claims
            .into_iter()
            .filter_map(|(address, names)| Some((address, names.into_iter().next()?)))
            .collect();
        doubles.retain(|address, _| !self.owners.contains_key(address));
        self.duplicates = doubles;
        let mut changed = MembershipDelta::default();
        self.peers.retain(|name, peer| {
            let stays = names.contains(name);
            if !stays && peer.is_up() {
                changed.nodes.insert(name.clone());
            }
            stays
        });
        for name in names {
            let addresses = self
                .owners
                .iter()
                .filter(|(_, owner)| **owner == name)
                .map(|(address, _)| *address)
                .collect();
            let peer = self.peers.entry(name.clone()).or_insert_with(|| Peer {
                addresses: BTreeSet::new(),
                expected: now,
                sessions: BTreeMap::new(),
                up_since: None,
                down: None,
                seen: false,
                one_way_since: None,
                heard: None,
                duplicate: None,
            });
            if peer.addresses != addresses {
                peer.addresses = addresses;
                peer.sessions.retain(|address, _| peer.addresses.contains(address));
                peer.one_way_since = None;
                if peer.is_up() && !peer.has_session() {
                    // The peer moved and must be seen at its new address; it did not go down.
                    peer.up_since = None;
                    peer.down = None;
                    peer.expected = now;
                    changed.nodes.insert(name);
                }
            }
        }
        let moved = listed
            && self.listed
            && !self.local_addresses.is_empty()
            && self.local_addresses != local_addresses;
        if moved {
            self.moved = Some(now);
        }
        if moved || listed && !self.listed {
            // They ended their sessions because we were none of them any more, or are elsewhere.
            // That was no stop.
            self.peers
                .values_mut()
                .filter(|peer| peer.is_admin_down())
                .for_each(|peer| (peer.down, peer.expected) = (None, now));
        }
        self.listed = listed;
        self.local_addresses = local_addresses;
        self.lladdrs.retain(|address, _| self.owners.contains_key(address));
        self.blocked.retain(|name| self.peers.contains_key(name));
        changed.sessions = self.sessions() != before;
        self.update_complete(now);
        changed
    }

    /// The addresses to have a session with, and whose they are: peers, and whoever answers under
    /// our own name.
    pub fn sessions(&self) -> BTreeMap<IpAddr, Box<str>> {
        let doubles = self.duplicates.keys().map(|address| (*address, self.local_node.clone()));
        self.owners.iter().map(|(address, name)| (*address, name.clone())).chain(doubles).collect()
    }

    /// Our own addresses that our Node object names: what other nodes have their sessions with.
    pub fn local_addresses(&self) -> &BTreeSet<IpAddr> {
        &self.local_addresses
    }

    /// Takes in the state of a session.
    pub fn liveness(&mut self, address: IpAddr, state: Liveness, now: Duration) -> MembershipDelta {
        let changed = self.apply_liveness(address, state, now);
        self.update_after(&changed, now);
        changed
    }

    fn apply_liveness(
        &mut self,
        address: IpAddr,
        state: Liveness,
        now: Duration,
    ) -> MembershipDelta {
        let mut changed = MembershipDelta::default();
        if let Some(answers) = self.duplicates.get_mut(&address) {
            // Down is no proof that it went away: it may not talk to us because it thinks the same.
            // Its AdminDown is.
            let before = *answers;
            *answers = state == Liveness::Up;
            if before != *answers {
                changed.nodes.insert(self.local_node.clone());
            }
            return changed;
        }
        let moved = self.moved.is_some_and(|moved| now < moved + MOVED_FOR);
        let Some(name) = self.owners.get(&address) else { return changed };
        let Some(peer) = self.peers.get_mut(name) else { return changed };
        let before = peer.view();
        peer.sessions.insert(address, state);
        if peer.duplicate.is_some() {
            return changed;
        }
        peer.observe(state, moved, now);
        if peer.is_up() && !before.0 {
            self.blocked.remove(name);
        }
        if before != peer.view() {
            changed.died = before.0 && !peer.is_up() && !moved && state != Liveness::Heard;
            changed.nodes.insert(name.clone());
        }
        changed
    }

    /// The peer at this address whose word about this node counts; None: nobody's, or that of two
    /// machines that speak as one.
    pub fn confirming_peer(&self, address: IpAddr) -> Option<&str> {
        let name = self.owners.get(&address)?;
        self.peers.get(name).filter(|peer| peer.duplicate.is_none()).map(|_| &**name)
    }

    /// Records the link-layer address of an address.
    pub fn neighbour(&mut self, address: IpAddr, mac: Mac) {
        if self.owners.contains_key(&address) && crate::model::mac::is_unicast(mac) {
            self.lladdrs.insert(address, mac);
        }
    }

    /// Whether the link-layer address of every peer is known, so that any other is a foreign
    /// machine's.
    pub fn lladdrs_known(&self) -> bool {
        self.peers
            .values()
            .all(|peer| peer.addresses.iter().any(|address| self.lladdrs.contains_key(address)))
    }

    /// The peer with this link-layer address, if exactly one has it.
    pub fn by_lladdr(&self, mac: Mac) -> Option<&str> {
        let mut found = self
            .lladdrs
            .iter()
            .filter(|(_, lladdr)| **lladdr == mac)
            .filter_map(|(address, _)| self.owners.get(address));
        let first = found.next()?;
        found.all(|other| other == first).then_some(&**first)
    }

    /// Notes that a peer was heard to answer for an address, or to ask for it. True when this
    /// shows, for the first time, that its BFD is blocked.
    pub fn heard(&mut self, node: &str, now: Duration) -> bool {
        let Some(peer) =
            self.peers.get_mut(node).filter(|peer| !peer.is_up() && peer.duplicate.is_none())
        else {
            return false;
        };
        match peer.down {
            Some((DownReason::AdminDown, since)) if now < since + ADMIN_DOWN_HOLD => return false,
            Some((DownReason::AdminDown, _)) => (peer.down, peer.heard) = (None, None),
            _ => {}
        }
        let first = peer
            .heard
            .filter(|(_, last)| now < *last + BLOCKED_AFTER * 10)
            .map_or(now, |(first, _)| first);
        peer.heard = Some((first, now));
        let down = peer.down;
        if !self.complete() {
            self.complete = None;
        }
        let down_for = down.map_or(Duration::MAX, |(_, since)| now.saturating_sub(since));
        now >= first + BLOCKED_AFTER
            && down_for >= BLOCKED_AFTER
            && self.blocked.insert(node.into())
    }

    /// Reachability of a node.
    pub fn reachability(&self, node: &str, now: Duration) -> Reachability {
        match self.peers.get(node) {
            None => Reachability::Down,
            Some(peer) if peer.is_up() => Reachability::Up,
            Some(peer) if peer.is_one_way(now) => Reachability::Unidirectional,
            Some(peer) => match peer.down {
                Some((DownReason::AdminDown, _)) => Reachability::Down,
                Some((DownReason::DetectionTimeout | DownReason::NeighbourDown, since))
                    if now < since + GRACE =>
                {
                    Reachability::Down
                }
                _ => Reachability::Unknown,
            },
        }
    }

    /// Names of the peers that are up, and since when.
    pub fn live(&self) -> impl Iterator<Item = (&str, Duration)> {
        self.peers.iter().filter_map(|(name, peer)| Some((&**name, peer.up_since?)))
    }

    /// The sessions that are up and show that a peer lives.
    pub fn up(&self) -> impl Iterator<Item = IpAddr> {
        let sessions =
            self.peers.values().filter(|peer| peer.is_up()).flat_map(|peer| &peer.sessions);
        sessions.filter(|(_, state)| **state == Liveness::Up).map(|(address, _)| *address)
    }

    /// No Node object but, perhaps, our own.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty() && self.duplicates.is_empty()
    }

    /// Every peer lives, or has said that it leaves: nothing more to wait for.
    pub fn complete(&self) -> bool {
        self.peers.values().all(|peer| peer.is_up() || peer.is_admin_down())
    }

    /// Since when that is so; None while it is not, and before the first Node object.
    pub fn complete_since(&self) -> Option<Duration> {
        self.complete
    }

    fn update_complete(&mut self, now: Duration) {
        self.complete = self.complete().then(|| self.complete.unwrap_or(now));
    }

    fn update_after(&mut self, changed: &MembershipDelta, now: Duration) {
        if !changed.nodes.is_empty() {
            self.update_complete(now);
        }
    }

    /// When [`Membership::clear_duplicates`] has something to do, or the next missing peer will not
    /// be waited for any more.
    pub fn poll_timeout(&self, now: Duration) -> Option<Duration> {
        [self.absence_timeout(now), self.duplicate_timeout()].into_iter().flatten().min()
    }

    /// A peer that may be there without being seen: it has not said that it leaves, and there was a
    /// sign of it not long ago. One that is known to be behind a filter may be there at any
    /// time.
    pub fn missing(&self, node: &str, now: Duration) -> bool {
        self.peers
            .get(node)
            .is_some_and(|peer| self.missing_until(node, peer).is_some_and(|until| now < until))
    }

    /// When the next missing peer will not be waited for any more, if nothing is heard of it.
    pub fn absence_timeout(&self, now: Duration) -> Option<Duration> {
        let until = self.peers.iter().filter_map(|(name, peer)| self.missing_until(name, peer));
        until.filter(|until| now < *until && *until < Duration::MAX).min()
    }

    /// Until when a peer that is not seen may be there; [`Duration::MAX`]: without end.
    fn missing_until(&self, name: &str, peer: &Peer) -> Option<Duration> {
        let until = if self.blocked.contains(name) {
            Duration::MAX
        } else {
            peer.last_sign() + ABSENT_AFTER
        };
        (!peer.is_up() && !peer.is_admin_down()).then_some(until)
    }

    /// Nodes that died: the detection time ran out on the last of their sessions, and they have not
    /// been back. A planned stop is none: pods there go on.
    pub fn dead(&self) -> impl Iterator<Item = &str> {
        self.peers.iter().filter(|(_, peer)| peer.is_dead()).map(|(name, _)| &**name)
    }

    /// Problems that need an operator, by name.
    pub fn warnings(&self) -> Vec<Reason> {
        let mut warnings = Vec::new();
        if let Some(address) = self.own_duplicate() {
            warnings.push(Reason::new("DuplicateNode", self.own_duplicate_message(address)));
        }
        warnings.extend(self.duplicate_warnings());
        for (address, names) in &self.disputed {
            let names: Vec<&str> = names.iter().map(|name| &**name).collect();
            let message = format!(
                "the Nodes {} all claim {address}; it counts as {}'s: a machine was cloned, or an address given twice",
                names.join(", "),
                names.first().unwrap_or(&"")
            );
            warnings.push(Reason::new("DuplicateAddress", message));
        }
        warnings.extend(
            self.blocked.iter().map(|name| Reason::new("BfdBlocked", self.blocked_message(name))),
        );
        warnings
    }

    /// Message for operators about a peer whose BFD is blocked.
    pub fn blocked_message(&self, name: &str) -> String {
        let addresses = self.peers.get(name).into_iter().flat_map(|peer| &peer.addresses);
        let addresses: Vec<String> = addresses.map(IpAddr::to_string).collect();
        format!(
            "node {name} is heard to answer for addresses, but no BFD session with it comes up: open UDP port 3784 between this node and {}; until then a failover takes seconds",
            addresses.join(", ")
        )
    }

    /// For `status`.
    pub fn statuses(&self, now: Duration) -> Vec<PeerStatus> {
        let status = |name: &str, peer: &Peer| {
            PeerStatus {
            node: name.to_string(),
            addresses: peer.addresses.iter().copied().collect(),
            alive: peer.is_up(),
            state: match (peer.up_since, peer.down.map(|(reason, _)| reason)) {
                _ if peer.duplicate.is_some() => "two machines have its name and address",
                (Some(_), _) => "up",
                (None, _) if peer.is_one_way(now) => {
                    "heard, but it does not hear this node: packets to it are lost, or UDP port 3784 is blocked there"
                }
                (None, Some(DownReason::DetectionTimeout)) => "lost: nothing heard for the detection time",
                (None, Some(DownReason::AdminDown)) => "stopped as planned",
                (None, Some(DownReason::NeighbourDown | DownReason::OneWay)) => "down: it is starting",
                (None, Some(DownReason::NeverSeen) | None) => "never heard: Pinnace does not run there, or UDP port 3784 is blocked",
            }
            .into(),
            seconds: peer.up_since.or(peer.down.map(|(_, since)| since)).map(|since| now.saturating_sub(since).as_secs()),
            detection_milliseconds: None,
        }
        };
        self.peers.iter().map(|(name, peer)| status(name, peer)).collect()
    }
}
