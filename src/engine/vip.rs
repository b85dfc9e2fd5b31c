//! Virtual addresses: who holds them, whether they may carry traffic yet, and where this node
//! announces them.
//!
//! Every node has the rules of every VIP; announcing is what makes one the owner. Who that is, is
//! decided between nodes: see [`super::election`] and [`rank::seat`].

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::election::rank;
use super::election::rank::Ineligible;
use super::election::vip_election::{Owner, VipElection};
use super::endpoints::{Here, Reach};
use super::plan::Plan;
use super::{Engine, endpoints};
use crate::l2::announcer::{Announcement, AnnouncerEvent};
use crate::model::diagnostic::Diagnostic;
use crate::model::mac::{Mac, display};
use crate::model::role::Role;
use crate::model::{Family, ObjectKey, Service, TrafficPolicy};

/// How long an address that another machine was seen to use is left alone before it is tried again.
const CONFLICT_HOLD: Duration = Duration::from_secs(300);
/// For how long a machine may answer for an address, while not every peer's station is known, until
/// that is said.
pub(super) const UNVERIFIED_HOLD: Duration = Duration::from_secs(5);

/// Another machine that was heard to use an address is said to do so for this long after it was
/// last heard.
pub(super) const FOREIGN_FOR: Duration = Duration::from_secs(60);

/// A virtual address that Services hold.
#[derive(Debug)]
pub(super) struct Vip {
    /// Sorted; more than one only where they agreed to share.
    pub holders: Vec<ObjectKey>,
    /// It may carry traffic: nobody else was found to use it, or nobody could be asked.
    pub clear: bool,
    /// The announcer asks the network before it first announces the address. Fixed for as long as
    /// somebody holds it.
    pub probe: bool,
    /// Another machine that was heard to use it after we did.
    pub foreign: Option<Mac>,
    /// A machine that was heard while some peer's station was not known, since when: it may be
    /// that peer.
    pub suspect: Option<(Mac, Duration)>,
    /// When that was last.
    pub foreign_heard: Duration,
    /// The interfaces on which this node may announce it, or why none.
    pub candidacy: Result<Vec<u32>, Ineligible>,
    /// Who holds it, and whether this node should.
    pub election: VipElection,
    /// When the seat is to be looked at again.
    pub deadline: Option<Duration>,
}

impl Engine {
    /// Makes a Service a holder of an address. True when the address may carry traffic.
    pub(super) fn join_vip(&mut self, key: &ObjectKey, address: IpAddr) -> bool {
        if !self.vips.contains_key(&address) {
            let probe = self.settings.probe && !self.ipam.probed(address);
            // Where no interface has its subnet, somebody routes the address to us, and there is no
            // one to ask.
            let reachable = !matches!(
                self.eligible_interfaces(address),
                Err(Ineligible::NoInterface { .. } | Ineligible::Ipv6Off)
            );
            let vip = Vip {
                holders: Vec::new(),
                clear: !(probe && reachable),
                probe,
                foreign: None,
                suspect: None,
                foreign_heard: Duration::ZERO,
                candidacy: Ok(Vec::new()),
                election: self.new_vip_election(),
                deadline: None,
            };
            self.vips.insert(address, Box::new(vip));
        }
        self.vips.get_mut(&address).is_some_and(|vip| {
            if let Err(at) = vip.holders.binary_search(key) {
                vip.holders.reserve_exact(1);
                vip.holders.insert(at, key.clone());
            }
            vip.clear
        })
    }

    /// The Service no longer holds these; they are noted as touched.
    pub(super) fn leave_vips(
        &mut self,
        key: &ObjectKey,
        addresses: &[IpAddr],
        touched: &mut BTreeSet<IpAddr>,
    ) {
        for address in addresses {
            if let Some(vip) = self.vips.get_mut(address) {
                vip.holders.retain(|holder| holder != key);
                touched.insert(*address);
            }
        }
    }

    /// Works out again where these addresses are announced.
    pub(super) fn review_vips(
        &mut self,
        addresses: impl IntoIterator<Item = IpAddr>,
        plan: &mut Plan,
    ) {
        let mut announcements_changed = false;
        let mut vips_changed = false;
        // Mostly the same for all of them, so one allocation serves all.
        let mut shared = Arc::<BTreeSet<u32>>::default();
        for address in addresses {
            let held = self.vips.get(&address).is_some_and(|vip| !vip.holders.is_empty());
            if !held {
                vips_changed |= self.told_vips.remove(&address);
                if let Some(vip) = self.vips.remove(&address) {
                    self.forget_deadline(address, vip.deadline);
                }
                announcements_changed |= self.announcements.remove(&address).is_some();
                continue;
            }
            let probing = !self.draining && self.vips.get(&address).is_some_and(|vip| !vip.clear);
            // Only the writer knows of a new address, so it asks the network, whoever is to answer
            // for it afterwards.
            let asks = probing && self.role == Role::Leader;
            let candidacy = self.eligible_here(address);
            let cut_off = |c: &Result<Vec<u32>, Ineligible>| {
                matches!(
                    c,
                    Err(Ineligible::LinkDown | Ineligible::NoInterface { .. } | Ineligible::NoNode)
                )
            };
            let returned = candidacy.is_ok()
                && self.vips.get(&address).is_some_and(|vip| cut_off(&vip.candidacy));
            self.run_election(address, Self::eligibility(&candidacy), returned, plan);
            let alone = self.membership.is_empty();
            let interfaces: BTreeSet<u32> = match &candidacy {
                Ok(interfaces) => interfaces.iter().copied().collect(),
                Err(_) if alone && !asks => BTreeSet::new(),
                Err(_) => {
                    self.eligible_interfaces(address).map(BTreeSet::from_iter).unwrap_or_default()
                }
            };
            let Some(vip) = self.vips.get_mut(&address) else { continue };
            vip.candidacy = candidacy;
            // Once clear, it stays so for as long as somebody holds it.
            vips_changed |= vip.clear && self.told_vips.insert(address);
            let standby = *vip.election.owner() != Owner::Local;
            if *shared != interfaces {
                shared = Arc::new(interfaces);
            }
            if shared.is_empty() || standby && alone && !asks {
                announcements_changed |= self.announcements.remove(&address).is_some();
            } else {
                // Probing is for who is about to claim.
                let probe = vip.probe && !(standby && vip.clear);
                let quiet = standby && !asks || vip.election.leaving();
                let announcement =
                    Announcement { interfaces: shared.clone(), probe, standby, quiet };
                if self.announcements.get(&address) != Some(&announcement) {
                    self.announcements.insert(address, announcement);
                    announcements_changed = true;
                }
            }
        }
        if vips_changed || plan.rule_set.reset {
            plan.rule_set.vips = Some(self.told_vips.clone());
        }
        if announcements_changed {
            plan.announcements = Some(self.announcements.clone());
        }
    }

    /// Whether this node may announce the address, and where. Shared addresses have one leader for
    /// all their Services; a node is a candidate when it could serve at least one of them.
    fn eligible_here(&self, address: IpAddr) -> Result<Vec<u32>, Ineligible> {
        if self.suspended() {
            return Err(Ineligible::Suspended);
        }
        if let Some(address) = self.own_duplicate() {
            return Err(Ineligible::DuplicateNode { address });
        }
        if self.draining {
            return self.eligible_interfaces(address).and(Err(Ineligible::Draining));
        }
        // A lone host has no Node objects and needs none; one whose object is taken away is no
        // member any more, nor is the last one.
        if (!self.membership.is_empty() || self.election.member)
            && self.index.node(&self.settings.node).is_none()
        {
            return self.eligible_interfaces(address).and(Err(Ineligible::NoNode));
        }
        if let Some(exclusion) = self.index.node(&self.settings.node).and_then(|node| node.excluded)
        {
            return self.eligible_interfaces(address).and(Err(Ineligible::Excluded(exclusion)));
        }
        let interfaces = self.eligible_interfaces(address)?;
        match self.vips.get(&address).is_some_and(|vip| self.has_answer(address, vip, &self.here()))
        {
            true => Ok(interfaces),
            false => Err(Ineligible::NoLocalEndpoint),
        }
    }

    fn eligible_interfaces(&self, address: IpAddr) -> Result<Vec<u32>, Ineligible> {
        let none = Ineligible::NoInterface { address };
        self.interfaces
            .as_deref()
            .map_or(Err(none), |interfaces| rank::eligible(interfaces, &self.uplinks, address))
    }

    /// Whether a node has something to say to clients of the address. A Local Service can be served
    /// only where it has an endpoint to go to; while none of the Services has any, anywhere,
    /// clients are to be refused, which every node can do.
    pub(super) fn has_answer(&self, address: IpAddr, vip: &Vip, node: &Here<'_>) -> bool {
        let reach = |service: &Service| match service.external {
            TrafficPolicy::Cluster => Reach::Here,
            TrafficPolicy::Local => endpoints::reach(
                service,
                self.index.slices(&service.key),
                node,
                Family::of(address),
            ),
        };
        let best = vip.holders.iter().filter_map(|key| self.index.service(key)).map(reach).max();
        matches!(best, Some(Reach::Here | Reach::Nowhere))
    }

    /// What the announcer heard about an address.
    pub(super) fn heard(&mut self, event: AnnouncerEvent, plan: &mut Plan) {
        match event {
            AnnouncerEvent::ProbeClear { vip: address } => {
                let Some(vip) = self.vips.get_mut(&address) else { return };
                vip.clear = true;
                self.dirty.extend(vip.holders.iter().cloned());
                self.ipam.mark_probed(address);
                plan.save = true;
            }
            // A peer may have it, or be about to: no stranger, nothing to probe for.
            AnnouncerEvent::Conflict { vip, mac, .. } => {
                match self.on_owner_claim(vip, mac, plan) {
                    true => self.on_peer_claim(vip, plan),
                    false => self.in_use_elsewhere(vip, mac, plan),
                }
            }
            AnnouncerEvent::Contested { vip, mac, .. } => {
                if !self.on_owner_claim(vip, mac, plan) {
                    self.contested(vip, mac, plan);
                }
            }
            AnnouncerEvent::ClaimObserved { vip, mac, .. } => {
                if self.on_owner_claim(vip, mac, plan) {
                    self.on_peer_claim(vip, plan);
                } else if self.membership.lladdrs_known() {
                    self.on_foreign_claim(vip, mac, plan);
                } else {
                    self.on_unverified_claim(vip, mac, plan);
                }
            }
            AnnouncerEvent::ProbeObserved { vip, mac, .. } => self.on_owner_probe(vip, mac, plan),
            AnnouncerEvent::Defended { mac, .. } => {
                if let Some(node) = self.membership.by_lladdr(mac).map(Box::<str>::from) {
                    self.peer_heard(&node, plan);
                }
            }
            AnnouncerEvent::SocketFailed { ifindex, reason } => {
                let name = self
                    .interfaces
                    .as_deref()
                    .and_then(|all| all.get(&ifindex))
                    .map_or("?", |interface| &interface.name);
                let message = format!("cannot announce on {name}: {reason}");
                plan.diagnostics.push(Diagnostic {
                    warning: true,
                    service: None,
                    node: None,
                    reason: "AnnouncerFailed",
                    message,
                });
            }
        }
    }

    /// A machine that is none of the nodes has the address. Whoever waits for the other nodes
    /// before it probes need not ask any more.
    fn on_foreign_claim(&mut self, address: IpAddr, mac: Mac, plan: &mut Plan) {
        match self.vips.get(&address).is_some_and(|vip| vip.clear) {
            true => self.contested(address, mac, plan),
            false => self.in_use_elsewhere(address, mac, plan),
        }
    }

    /// Perhaps a peer whose station is not known yet, perhaps a stranger. The Service keeps its
    /// address for now: the other nodes, which may know better, would not follow to another
    /// one.
    fn on_unverified_claim(&mut self, address: IpAddr, mac: Mac, plan: &mut Plan) {
        let now = self.now;
        let Some(vip) = self.vips.get_mut(&address) else { return };
        let since = vip.suspect.filter(|(known, _)| *known == mac).map_or(now, |(_, since)| since);
        vip.suspect = Some((mac, since));
        if now < since + UNVERIFIED_HOLD {
            return;
        }
        let known = vip.foreign == Some(mac) && now < vip.foreign_heard + FOREIGN_FOR;
        (vip.foreign, vip.foreign_heard) = (Some(mac), now);
        if known {
            return;
        }
        let mac = display(mac);
        let message = format!(
            "another machine ({mac}), none of the nodes that could be found, answers for {address}: it is left alone"
        );
        plan.diagnostics.push(Diagnostic {
            warning: true,
            service: vip.holders.first().cloned(),
            node: None,
            reason: "AddressInUse",
            message,
        });
    }

    /// A peer's station was learned: who was heard before may be that peer, or is now known to be a
    /// stranger.
    pub(super) fn resolve_unverified_claims(&mut self, plan: &mut Plan) {
        let suspects: Vec<(IpAddr, Mac)> = self
            .vips
            .iter()
            .filter_map(|(address, vip)| Some((*address, vip.suspect?.0)))
            .collect();
        let known = self.membership.lladdrs_known();
        for (address, mac) in suspects {
            let peer = self.membership.by_lladdr(mac).is_some();
            if !peer && !known {
                continue;
            }
            let Some(vip) = self.vips.get_mut(&address) else { continue };
            vip.suspect = None;
            vip.foreign = vip.foreign.filter(|foreign| *foreign != mac);
            // A stranger is asked again and again, so what is believed of one is no older than
            // that.
            let answers = matches!(vip.election.owner(), Owner::Foreign);
            match peer {
                true => self.on_peer_claim(address, plan),
                false if answers => self.on_foreign_claim(address, mac, plan),
                false => {}
            }
        }
    }

    /// A peer answers for the address, so it has been probed, or needs not be.
    fn on_peer_claim(&mut self, address: IpAddr, plan: &mut Plan) {
        let Some(vip) = self.vips.get_mut(&address).filter(|vip| !vip.clear) else { return };
        vip.clear = true;
        vip.probe = false;
        self.dirty.extend(vip.holders.iter().cloned());
        self.ipam.mark_probed(address);
        plan.save = true;
    }

    /// Another machine answered the probes: the Services get another address, or learn why not.
    fn in_use_elsewhere(&mut self, address: IpAddr, mac: Mac, plan: &mut Plan) {
        let Some(vip) = self.vips.get(&address) else { return };
        self.ipam.conflict(address, mac, self.now + CONFLICT_HOLD);
        self.dirty.extend(vip.holders.iter().cloned());
        let message = format!(
            "{address} is in use by another machine ({}) and is left alone; take it out of PINNACE_POOLS or give that machine another address",
            display(mac)
        );
        plan.diagnostics.push(Diagnostic {
            warning: true,
            service: vip.holders.first().cloned(),
            node: None,
            reason: "AddressInUse",
            message,
        });
    }

    /// Another machine claims what we announce.
    fn contested(&mut self, address: IpAddr, mac: Mac, plan: &mut Plan) {
        let Some(vip) = self.vips.get_mut(&address) else { return };
        let known = vip.foreign == Some(mac) && self.now < vip.foreign_heard + FOREIGN_FOR;
        (vip.foreign, vip.foreign_heard) = (Some(mac), self.now);
        if known {
            return;
        }
        let mac = display(mac);
        let message = format!(
            "another machine ({mac}) also answers for {address}, so clients reach either; stop it there"
        );
        plan.diagnostics.push(Diagnostic {
            warning: true,
            service: vip.holders.first().cloned(),
            node: None,
            reason: "AddressConflict",
            message,
        });
    }
}
