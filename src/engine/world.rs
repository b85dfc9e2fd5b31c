//! What the engine knows, what follows from it, and what one event leaves to do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::eligibility;
use super::endpoints::{Dead, Here};
use super::event::EngineSettings;
use super::index::Index;
use super::membership::Membership;
use super::plan::Plan;
use super::uplinks::{self, Uplinks};
use super::{exclusion, reservations};
use crate::ipam::ReservedAddresses;
use crate::model::role::Role;
use crate::model::state::SourceProblem;
use crate::model::{Exclusion, Family, Interfaces, Mode, Node, ObjectKey, Service};

/// What is known. Only the handlers of events write it.
pub(super) struct World {
    pub settings: EngineSettings,
    /// When the event that is being handled happened.
    pub now: Duration,
    /// Number of the event that is being handled.
    pub generation: u64,
    /// The first plan has gone out.
    pub started: bool,
    pub draining: bool,

    pub index: Index,
    /// Counts the changes of the index.
    pub revision: u64,
    pub problems: Vec<SourceProblem>,
    pub source_synced: bool,
    pub source_health: Result<(), String>,

    pub role: Role,
    /// The node that holds the Lease, as far as is known.
    pub leader: Option<Box<str>>,
    pub leader_health: Result<(), String>,

    pub interfaces: Option<Arc<Interfaces>>,
    pub membership: Membership,

    /// Result of the last ruleset transaction; None: none has finished yet.
    pub rules: Option<Result<(), String>>,
    /// Number of the last event whose rules are in the kernel.
    pub applied: u64,
}

impl World {
    pub fn new(settings: EngineSettings) -> World {
        World {
            now: Duration::ZERO,
            generation: 0,
            started: false,
            draining: false,
            index: Index::default(),
            revision: 0,
            problems: Vec::new(),
            source_synced: false,
            source_health: Ok(()),
            role: settings.role,
            leader: None,
            leader_health: Ok(()),
            interfaces: None,
            membership: Membership::new(&settings.node),
            rules: None,
            applied: 0,
            settings,
        }
    }

    /// This node's own Node object.
    pub fn own_node(&self) -> Option<&Node> {
        self.index.node(&self.settings.node)
    }

    pub fn mode(&self, service: &Service) -> Mode {
        service.request.mode.unwrap_or(self.settings.mode)
    }

    /// Whether the Service is one that Pinnace serves, by its class and its annotations.
    pub fn is_managed(&self, service: &Service) -> bool {
        let claimed = match &service.class {
            Some(class) => *class == self.settings.class,
            None => self.settings.claim_default,
        };
        claimed && !service.request.ignore
    }

    /// This node, as the place from which endpoints are looked at.
    pub fn here<'a>(&'a self, dead: &'a Dead) -> Here<'a> {
        let zone = self.own_node().and_then(|node| node.zone.as_deref());
        Here { node: &self.settings.node, zone, dead }
    }

    /// Whether an API server says in its own time which endpoints of dead nodes are gone. Files
    /// never do.
    pub fn judges_death(&self) -> bool {
        self.settings.role != Role::Alone && self.source_health.is_ok()
    }

    /// Which of the interfaces are uplinks.
    pub fn judge_uplinks(&self, interfaces: &Interfaces) -> Uplinks {
        uplinks::by_settings(
            interfaces,
            self.own_node(),
            &self.settings.pools,
            &self.settings.interfaces,
        )
    }
}

/// What follows from interfaces, nodes and pools. Computed as a whole whenever one of them changed,
/// which is rare.
#[derive(Default)]
pub(super) struct Derived {
    pub uplinks: Uplinks,
    pub uplink_names: BTreeSet<Box<str>>,
    /// The addresses by which the LAN reaches this node: the frontends of node mode.
    pub node_addresses: BTreeSet<IpAddr>,
    /// Pools have IPv6 addresses, and no uplink has IPv6.
    pub ipv6_off: bool,
    /// Nodes that are kept out of load balancing.
    pub excluded: BTreeMap<Box<str>, Exclusion>,
    /// Addresses that no pool may allocate.
    pub reserved: ReservedAddresses,
    /// What is said about them, by pool.
    pub reserved_in_pools: BTreeMap<Box<str>, String>,
}

impl Derived {
    pub fn compute(world: &World, interfaces: &Interfaces) -> Derived {
        let uplinks = world.judge_uplinks(interfaces);
        let has_ipv6 = world.settings.pools.iter().any(|pool| pool.has(Family::V6));
        let reserved = reservations::reserved(&world.settings.node, &world.index, interfaces);
        Derived {
            uplink_names: interfaces
                .values()
                .filter(|interface| matches!(uplinks.get(&interface.index), Some(Ok(()))))
                .map(|interface| interface.name.clone())
                .collect(),
            node_addresses: uplinks::node_addresses(interfaces, &uplinks),
            ipv6_off: has_ipv6 && eligibility::ipv6_off(interfaces, &uplinks),
            excluded: exclusion::excluded(&world.index),
            reserved_in_pools: reservations::in_pools(&world.settings.pools, &reserved),
            reserved,
            uplinks,
        }
    }
}

/// Services to be looked at.
#[derive(Default)]
pub(super) struct Work {
    pub dirty: BTreeSet<ObjectKey>,
    /// Failed for want of something that another Service may give up.
    pub waiting: BTreeSet<ObjectKey>,
}

impl Work {
    /// Something was given up that a failed Service may be waiting for.
    pub fn retry_waiting(&mut self) {
        self.dirty.append(&mut self.waiting);
    }
}

/// One event: what is known while it is handled, and where its effects go.
pub(super) struct Round<'a> {
    pub world: &'a World,
    pub derived: &'a Derived,
    pub work: &'a mut Work,
    pub plan: &'a mut Plan,
}
