//! Duplicate peer identity: cloned machines with the same name and address. No node can tell the
//! original from the copy, and packets reach either. While the duplicate is detected, neither owns
//! an address, and their endpoints count as down.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use super::liveness::{DUPLICATE_HOLD, DownReason};
use super::{Membership, MembershipDelta};
use crate::model::state::Reason;

impl Membership {
    /// Two machines speak, in the session to this address, as this node (`ours`) or as the peer.
    pub fn on_duplicate(&mut self, address: IpAddr, ours: bool, now: Duration) -> MembershipDelta {
        let changed = self.apply_duplicate(address, ours, now);
        self.update_after(&changed, now);
        changed
    }

    fn apply_duplicate(&mut self, address: IpAddr, ours: bool, now: Duration) -> MembershipDelta {
        let mut changed = MembershipDelta::default();
        let Some(name) = self.owners.get(&address) else { return changed };
        let Some(peer) = self.peers.get_mut(name) else { return changed };
        // Of machines with several addresses in one subnet the sessions to all of them come from
        // one, and look the same.
        let alike = |addresses: &BTreeSet<IpAddr>| {
            addresses.iter().filter(|other| other.is_ipv4() == address.is_ipv4()).count()
        };
        if alike(&peer.addresses) > 1 || alike(&self.local_addresses) > 1 {
            return changed;
        }
        if ours {
            let home = self
                .local_addresses
                .iter()
                .find(|home| home.is_ipv4() == address.is_ipv4())
                .copied();
            if let Some(home) = home.or(self.local_addresses.first().copied()) {
                let own = self.own_duplicate.map_or(home, |(own, _)| own);
                let first = self.own_duplicate.replace((own, now + DUPLICATE_HOLD)).is_none();
                changed.nodes.extend(first.then(|| self.local_node.clone()));
            }
            return changed;
        }
        let first = peer.duplicate.is_none();
        let address = peer.duplicate.map_or(address, |(address, _)| address);
        peer.duplicate = Some((address, now + DUPLICATE_HOLD));
        if first {
            changed.died = peer.is_up();
            (peer.up_since, peer.down, peer.one_way_since, peer.heard) =
                (None, Some((DownReason::DetectionTimeout, now)), None, None);
            changed.nodes.insert(name.clone());
        }
        changed
    }

    /// Clears expired duplicates: session states count again.
    pub fn clear_duplicates(&mut self, now: Duration) -> MembershipDelta {
        let mut changed = MembershipDelta::default();
        if self.own_duplicate.take_if(|(_, until)| now >= *until).is_some() {
            changed.nodes.insert(self.local_node.clone());
        }
        for (name, peer) in &mut self.peers {
            if peer.duplicate.take_if(|(_, until)| now >= *until).is_some() {
                if peer.has_session() {
                    peer.up_since = Some(now);
                    peer.down = None;
                }
                changed.nodes.insert(name.clone());
            }
        }
        self.update_after(&changed, now);
        changed
    }

    /// When [`Membership::clear_duplicates`] has something to do.
    pub fn duplicate_timeout(&self) -> Option<Duration> {
        let peers = self.peers.values().filter_map(|peer| peer.duplicate);
        peers.chain(self.own_duplicate).map(|(_, until)| until).min()
    }

    /// The address at which another machine uses this node's name.
    pub fn own_duplicate(&self) -> Option<IpAddr> {
        let elsewhere =
            self.duplicates.iter().find(|(_, answers)| **answers).map(|(address, _)| *address);
        elsewhere.or(self.own_duplicate.map(|(address, _)| address))
    }

    /// Message for operators about [`Membership::own_duplicate`].
    pub fn own_duplicate_message(&self, address: IpAddr) -> String {
        let name = &self.local_node;
        match self.own_duplicate {
            Some((own, _)) if own == address => format!(
                "another machine runs as node {name} and has its address {own} too: this one answers for nothing; stop one of them, or give it another address and another name (PINNACE_NODE_NAME), and another machine-id and MAC if it was cloned"
            ),
            _ => format!(
                "another machine at {address} runs as node {name} too, and the Node object names its address: this one answers for nothing; give one of them another name (PINNACE_NODE_NAME) and, if it was cloned, another machine-id"
            ),
        }
    }

    /// Message for operators about a peer's duplicate identity.
    pub fn duplicate_message(&self, name: &str) -> Option<String> {
        let (address, _) = self.peers.get(name)?.duplicate?;
        Some(message(name, address))
    }

    pub(super) fn duplicate_warnings(&self) -> impl Iterator<Item = Reason> + '_ {
        let doubled = self.peers.iter().filter_map(|(name, peer)| Some((name, peer.duplicate?.0)));
        doubled.map(|(name, address)| Reason::new("DuplicateNode", message(name, address)))
    }
}

fn message(name: &str, address: IpAddr) -> String {
    format!(
        "two machines run as node {name} and have its address {address}: neither answers for anything, and its endpoints are left out; stop one of them, or give it another address and name"
    )
}
