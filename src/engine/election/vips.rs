//! Virtual addresses: which Services hold them, whether they may carry traffic yet, who owns them,
//! and where this node announces them.
//!
//! Every node has the rules of every VIP; announcing is what makes a node the owner. Who that is, is
//! decided between nodes: see [`super::Election`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::local::LocalState;
use super::rank;
use super::vip_election::{self, Candidate, ElectionInput, Eligibility, Owner, VipElection};
use crate::common::timer_queue::TimerQueue;
use crate::engine::eligibility::{self, Ineligible};
use crate::engine::endpoints::{self, Dead, Here, Reach};
use crate::engine::tracked::Tracked;
use crate::engine::world::{Derived, Round, World};
use crate::l2::announcer::Announcement;
use crate::model::mac::Mac;
use crate::model::role::Role;
use crate::model::{Family, ObjectKey, Service, TrafficPolicy};

/// How long another machine may answer for an address, while the link-layer address of some peer is
/// unknown, until that is reported.
pub const UNVERIFIED_HOLD: Duration = Duration::from_secs(5);

/// How long after it was last heard another machine counts as using an address.
pub const FOREIGN_FOR: Duration = Duration::from_secs(60);

/// Whether an address may carry traffic, and which other machine uses it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The address is being probed.
    Unprobed,
    /// No other machine uses the address, or it could not be probed.
    Clear,
    /// A machine was heard that may be a peer, as the link-layer address of some peer is unknown.
    Suspect {
        mac: Mac,
        since: Duration,
        /// The address carries traffic all the same.
        clear: bool,
        /// When the machine was last heard after it had been reported.
        reported: Option<Duration>,
    },
    /// A machine that is no peer was heard to use it after this node did.
    Foreign { mac: Mac, heard: Duration },
}

impl Claim {
    /// Once clear, an address stays so for as long as a Service holds it.
    pub fn is_clear(self) -> bool {
        match self {
            Claim::Unprobed => false,
            Claim::Suspect { clear, .. } => clear,
            Claim::Clear | Claim::Foreign { .. } => true,
        }
    }

    /// The address may carry traffic from now on.
    pub fn clear(&mut self) {
        match self {
            Claim::Unprobed => *self = Claim::Clear,
            Claim::Suspect { clear, .. } => *clear = true,
            Claim::Clear | Claim::Foreign { .. } => {}
        }
    }

    /// The machine that uses the address beside this node.
    pub fn foreign(self, now: Duration) -> Option<Mac> {
        match self {
            Claim::Foreign { mac, heard } | Claim::Suspect { mac, reported: Some(heard), .. } => {
                Some(mac).filter(|_| now < heard + FOREIGN_FOR)
            }
            _ => None,
        }
    }

    /// A machine that is no peer uses the address. True when that is to be reported.
    pub fn on_foreign(&mut self, mac: Mac, now: Duration) -> bool {
        let known = self.foreign(now) == Some(mac);
        *self = if self.is_clear() {
            Claim::Foreign { mac, heard: now }
        } else {
            Claim::Suspect { mac, since: now, clear: false, reported: Some(now) }
        };
        !known
    }

    /// A machine that may be a peer uses the address. True when that is to be reported.
    pub fn on_suspect(&mut self, mac: Mac, now: Duration) -> bool {
        let known = self.foreign(now) == Some(mac);
        let clear = self.is_clear();
        let (since, reported) = match *self {
            Claim::Suspect { mac: before, since, reported, .. } if before == mac => {
                (since, reported)
            }
            Claim::Foreign { mac: before, heard } if before == mac => (now, Some(heard)),
            _ => (now, None),
        };
        let lasts = now >= since + UNVERIFIED_HOLD;
        let reported = if lasts { Some(now) } else { reported };
        *self = Claim::Suspect { mac, since, clear, reported };
        lasts && !known
    }

    /// It is known now what the suspect is.
    pub fn resolve(&mut self) {
        *self = if self.is_clear() { Claim::Clear } else { Claim::Unprobed };
    }
}

/// A virtual address that Services hold.
#[derive(Debug)]
pub struct Vip {
    /// The Services, sorted; more than one only where they agreed to share.
    pub services: Vec<ObjectKey>,
    pub claim: Claim,
    /// The announcer probes the address before it first announces it. Fixed for as long as a
    /// Service holds it.
    pub probe: bool,
    /// The interfaces on which this node may announce it, or why none.
    pub eligible: Result<Vec<u32>, Ineligible>,
    pub election: VipElection,
}

/// What the election of one address depends on beside the address itself.
pub struct Electorate<'a> {
    pub local: &'a mut LocalState,
    pub dead: &'a Dead,
}

/// All virtual addresses that Services hold, their elections, and what follows for the announcer.
#[derive(Debug, Default)]
pub struct Vips {
    all: BTreeMap<IpAddr, Vip>,
    /// When elections are to be run again.
    timers: TimerQueue<IpAddr>,
    /// Addresses whose packets are ours: for the ruleset.
    pub carrying: Tracked<BTreeSet<IpAddr>>,
    /// Everything that is to be announced, or watched on standby.
    pub announcements: Tracked<BTreeMap<IpAddr, Announcement>>,
}

impl Vips {
    pub fn get(&self, address: IpAddr) -> Option<&Vip> {
        self.all.get(&address)
    }

    pub fn get_mut(&mut self, address: IpAddr) -> Option<&mut Vip> {
        self.all.get_mut(&address)
    }

    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, &Vip)> {
        self.all.iter().map(|(address, vip)| (*address, vip))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (IpAddr, &mut Vip)> {
        self.all.iter_mut().map(|(address, vip)| (*address, vip))
    }

    /// All addresses, numerically.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.all.keys().copied().collect()
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Addresses that a machine claims which may be a peer, and its link-layer address.
    pub fn suspects(&self) -> impl Iterator<Item = (IpAddr, Mac)> {
        self.iter().filter_map(|(address, vip)| match vip.claim {
            Claim::Suspect { mac, .. } => Some((address, mac)),
            _ => None,
        })
    }

    /// When [`Vips::take_due`] has something to return.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.timers.poll_timeout()
    }

    /// The addresses whose elections are to be run again.
    pub fn take_due(&mut self, now: Duration) -> BTreeSet<IpAddr> {
        std::iter::from_fn(|| self.timers.pop(now)).collect()
    }

    /// Adds a Service to an address. `probe`: the address must be probed first. True when
    /// the address may carry traffic.
    pub fn join(
        &mut self,
        key: &ObjectKey,
        address: IpAddr,
        probe: bool,
        local: &LocalState,
        round: &Round<'_>,
    ) -> bool {
        let vip = self.all.entry(address).or_insert_with(|| {
            // Where no interface has its subnet, a router sends the address here, and there is
            // no network to probe.
            let reachable = !matches!(
                eligible_interfaces(address, round.world, round.derived),
                Err(Ineligible::NoInterface { .. } | Ineligible::Ipv6Off)
            );
            let now = round.world.now;
            let alone = round.world.membership.is_empty();
            let until = if alone { now } else { local.listen_until.max(now) };
            Vip {
                services: Vec::new(),
                claim: if probe && reachable { Claim::Unprobed } else { Claim::Clear },
                probe,
                eligible: Ok(Vec::new()),
                election: VipElection::new(now, until),
            }
        });
        if let Err(at) = vip.services.binary_search(key) {
            vip.services.reserve_exact(1);
            vip.services.insert(at, key.clone());
        }
        vip.claim.is_clear()
    }

    /// The Service no longer holds these; they are noted as touched.
    pub fn leave(&mut self, key: &ObjectKey, addresses: &[IpAddr], touched: &mut BTreeSet<IpAddr>) {
        for address in addresses {
            if let Some(vip) = self.all.get_mut(address) {
                vip.services.retain(|service| service != key);
                touched.insert(*address);
            }
        }
    }

    /// Runs the elections of these addresses again, and works out where they are announced.
    pub fn review(
        &mut self,
        addresses: impl IntoIterator<Item = IpAddr>,
        electorate: &mut Electorate<'_>,
        round: &mut Round<'_>,
    ) {
        // Mostly the same for all of them, so one allocation serves all.
        let mut shared = Arc::<BTreeSet<u32>>::default();
        for address in addresses {
            if self.all.get(&address).is_some_and(|vip| !vip.services.is_empty()) {
                self.run_election(address, electorate, round);
                self.announce(address, &mut shared, round);
            } else {
                self.remove(address);
            }
        }
    }

    fn remove(&mut self, address: IpAddr) {
        self.carrying.update(|carrying| carrying.remove(&address));
        self.announcements.update(|announcements| announcements.remove(&address).is_some());
        if let Some(due) = self.all.remove(&address).and_then(|vip| vip.election.poll_timeout()) {
            self.timers.cancel(due, address);
        }
    }

    /// Computes the owner of the address.
    fn run_election(
        &mut self,
        address: IpAddr,
        electorate: &mut Electorate<'_>,
        round: &mut Round<'_>,
    ) {
        let count = self.all.len();
        let Some(vip) = self.all.get_mut(&address) else { return };
        let world = round.world;
        let before = vip.election.poll_timeout();
        let eligible = eligible_here(address, vip, electorate, round);
        let cut_off = matches!(
            vip.eligible,
            Err(Ineligible::LinkDown | Ineligible::NoInterface { .. } | Ineligible::NoNode)
        );
        // A node that was cut off from the address, or from the other nodes, listens first.
        let returned = cut_off && eligible.is_ok();
        vip.eligible = eligible;
        if returned && !world.membership.is_empty() && *vip.election.owner() != Owner::Local {
            vip.election.listen(world.now, world.now + rank::LISTEN);
            electorate.local.fresh_until = world.now + rank::HOLD_OFF;
        }
        let probe = with_input(address, vip, count, electorate, round, |election, input| {
            election.decide(input, world.now)
        });
        if probe {
            round.plan.owner_probes.push((address, vip.election.owner_lladdr()));
        }
        let next = vip.election.poll_timeout();
        if before != next {
            if let Some(due) = before {
                self.timers.cancel(due, address);
            }
            if let Some(due) = next {
                self.timers.add(due, address);
            }
        }
    }

    /// Works out where, and how, the address is announced.
    fn announce(&mut self, address: IpAddr, shared: &mut Arc<BTreeSet<u32>>, round: &Round<'_>) {
        let Some(vip) = self.all.get(&address) else { return };
        let clear = vip.claim.is_clear();
        // Only the leader knows of a new address, so it asks the network, whoever is to answer for
        // the address afterwards.
        let asks = !round.world.draining && !clear && round.world.role == Role::Leader;
        let alone = round.world.membership.is_empty();
        let interfaces: BTreeSet<u32> = match &vip.eligible {
            Ok(interfaces) => interfaces.iter().copied().collect(),
            Err(_) if alone && !asks => BTreeSet::new(),
            Err(_) => eligible_interfaces(address, round.world, round.derived)
                .map(BTreeSet::from_iter)
                .unwrap_or_default(),
        };
        if clear {
            self.carrying.update(|carrying| carrying.insert(address));
        }
        let standby = *vip.election.owner() != Owner::Local;
        if **shared != interfaces {
            *shared = Arc::new(interfaces);
        }
        if shared.is_empty() || standby && alone && !asks {
            self.announcements.update(|announcements| announcements.remove(&address).is_some());
            return;
        }
        let announcement = Announcement {
            interfaces: shared.clone(),
            // Only a node that is about to claim the address probes.
            probe: vip.probe && !(standby && clear),
            standby,
            quiet: standby && !asks || vip.election.leaving(),
        };
        self.announcements.update(|announcements| {
            if announcements.get(&address) == Some(&announcement) {
                return false;
            }
            announcements.insert(address, announcement);
            true
        });
    }

    /// A machine was heard to claim the address: `peer`, or one that is none.
    pub fn on_owner_claim(
        &mut self,
        address: IpAddr,
        peer: Option<&str>,
        mac: Mac,
        electorate: &mut Electorate<'_>,
        round: &mut Round<'_>,
    ) {
        let count = self.all.len();
        let Some(vip) = self.all.get_mut(&address) else { return };
        let now = round.world.now;
        with_input(address, vip, count, electorate, round, |election, input| {
            election.on_owner_claim(peer, mac, input, now);
        });
        self.review([address], electorate, round);
    }
}

/// Calls `run` with the address's election and what it depends on. `count`: number of addresses.
fn with_input<R>(
    address: IpAddr,
    vip: &mut Vip,
    count: usize,
    electorate: &Electorate<'_>,
    round: &Round<'_>,
    run: impl FnOnce(&mut VipElection, &ElectionInput<'_>) -> R,
) -> R {
    let world = round.world;
    let eligibility = eligibility_of(&vip.eligible);
    let preferred = preferred(vip, world);
    let reachability = |node: &str| world.membership.reachability(node, world.now);
    let input = ElectionInput {
        address,
        local_node: &world.settings.node,
        eligibility,
        candidates: candidates(address, vip, eligibility, &preferred, electorate, round),
        preferred: &preferred,
        reachability: &reachability,
        alone: world.membership.is_empty(),
        fresh: world.now < electorate.local.fresh_until,
        complete: world.membership.complete_since(),
        step: if vip.probe && !vip.claim.is_clear() {
            vip_election::STEP_WITH_PROBE
        } else {
            vip_election::STEP
        },
        check: rank::check_interval(count),
    };
    run(&mut vip.election, &input)
}

/// Candidates for the address, best first. All nodes compute this from the same objects and from the
/// same sessions, so that they agree.
fn candidates<'a>(
    address: IpAddr,
    vip: &Vip,
    eligibility: Eligibility,
    preferred: &[Box<str>],
    electorate: &Electorate<'_>,
    round: &Round<'a>,
) -> Vec<Candidate<'a>> {
    let world = round.world;
    let local_node = &*world.settings.node;
    let mut candidates: Vec<Candidate<'a>> = Vec::new();
    if eligibility == Eligibility::Eligible {
        candidates.push(Candidate {
            node: local_node,
            fresh: world.now < electorate.local.fresh_until,
            rank: rank::rank(address, local_node, preferred),
        });
    }
    let subnets = subnets(address, world, round.derived);
    let within = |internal: &[IpAddr]| {
        internal.iter().any(|a| subnets.iter().any(|subnet| subnet.contains(a)))
    };
    // Also when our own Node object does not say that we are in the subnet.
    let unsaid = world.own_node().is_none_or(|own| !within(&own.internal));
    for (name, since) in world.membership.live() {
        let Some(node) = world.index.node(name).filter(|node| node.excluded.is_none()) else {
            continue;
        };
        let here = Here { node: name, zone: None, dead: electorate.dead };
        if (unsaid || within(&node.internal)) && has_answer(address, vip, world, &here) {
            candidates.push(Candidate {
                node: name,
                fresh: world.now < since + rank::HOLD_OFF,
                rank: rank::rank(address, name, preferred),
            });
        }
    }
    candidates.sort_by(|a, b| (a.fresh, b.rank, a.node).cmp(&(b.fresh, a.rank, b.node)));
    candidates
}

/// `pinnace.dev/prefer-nodes` of the oldest of its Services that has the annotation.
fn preferred(vip: &Vip, world: &World) -> Vec<Box<str>> {
    vip.services
        .iter()
        .filter_map(|key| world.index.service(key))
        .filter(|service| !service.request.prefer_nodes.is_empty())
        .min_by_key(|service| (service.created, &service.key))
        .map(|service| service.request.prefer_nodes.clone())
        .unwrap_or_default()
}

/// The subnets of our uplinks that contain the address.
fn subnets(address: IpAddr, world: &World, derived: &Derived) -> Vec<ipnet::IpNet> {
    world
        .interfaces
        .as_deref()
        .into_iter()
        .flat_map(|all| all.values())
        .filter(|interface| matches!(derived.uplinks.get(&interface.index), Some(Ok(()))))
        .flat_map(|interface| &interface.addresses)
        .filter(|subnet| subnet.contains(&address))
        .copied()
        .collect()
}

/// Whether this node may own an address. Being excluded or stopped is planned: the node goes on
/// until another takes over.
fn eligibility_of(eligible: &Result<Vec<u32>, Ineligible>) -> Eligibility {
    match eligible {
        Ok(_) => Eligibility::Eligible,
        Err(Ineligible::Draining | Ineligible::Excluded(_) | Ineligible::NoNode) => {
            Eligibility::Draining
        }
        Err(_) => Eligibility::Ineligible,
    }
}

/// Whether this node may announce the address, and where. Shared addresses have one owner for all
/// their Services; a node is a candidate when it could serve at least one of them.
fn eligible_here(
    address: IpAddr,
    vip: &Vip,
    electorate: &Electorate<'_>,
    round: &Round<'_>,
) -> Result<Vec<u32>, Ineligible> {
    let world = round.world;
    if electorate.local.is_suspended() {
        return Err(Ineligible::Suspended);
    }
    if let Some(address) = world.membership.own_duplicate() {
        return Err(Ineligible::DuplicateNode { address });
    }
    let interfaces = eligible_interfaces(address, world, round.derived)?;
    if world.draining {
        return Err(Ineligible::Draining);
    }
    // A lone host has no Node objects and needs none. A node whose object is deleted is no member
    // any more, nor is the last one.
    let own = world.own_node();
    if own.is_none() && (!world.membership.is_empty() || electorate.local.member) {
        return Err(Ineligible::NoNode);
    }
    if let Some(exclusion) = own.and_then(|node| node.excluded) {
        return Err(Ineligible::Excluded(exclusion));
    }
    if has_answer(address, vip, world, &world.here(electorate.dead)) {
        Ok(interfaces)
    } else {
        Err(Ineligible::NoLocalEndpoint)
    }
}

fn eligible_interfaces(
    address: IpAddr,
    world: &World,
    derived: &Derived,
) -> Result<Vec<u32>, Ineligible> {
    match world.interfaces.as_deref() {
        Some(interfaces) => eligibility::eligible(interfaces, &derived.uplinks, address),
        None => Err(Ineligible::NoInterface { address }),
    }
}

/// Whether a node has something to say to clients of the address. A Local Service can be served only
/// where it has an endpoint to go to; while none of the Services has any, anywhere, clients are to
/// be refused, which every node can do.
fn has_answer(address: IpAddr, vip: &Vip, world: &World, node: &Here<'_>) -> bool {
    let reach = |service: &Service| match service.external {
        TrafficPolicy::Cluster => Reach::Here,
        TrafficPolicy::Local => {
            endpoints::reach(service, world.index.slices(&service.key), node, Family::of(address))
        }
    };
    let best = vip.services.iter().filter_map(|key| world.index.service(key)).map(reach).max();
    matches!(best, Some(Reach::Here | Reach::Nowhere))
}
