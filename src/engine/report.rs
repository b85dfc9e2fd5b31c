//! Read-only views of the engine for status, metrics and health checks, built on request.

use std::net::IpAddr;
use std::time::Duration;

use super::decisions::{Decisions, ServicePhase, ServiceState};
use super::election::vip_election::Owner;
use super::election::{Election, Vip};
use super::eligibility::Ineligible;
use super::reconcile::NO_ADDRESS_YET;
use super::world::{Derived, World};
use super::{endpoints, exclusion, reservations};
use crate::ipam::usable;
use crate::model::mac;
use crate::model::role::Role;
use crate::model::state::{
    AddressPhase, AddressStatus, Condition, InterfaceStatus, LeaderStatus, NodeState, PeerStatus,
    Phase, PoolStatus, PortStatus, Reason, ServiceHealth, ServiceStatus, Summary,
};
use crate::model::{Family, ObjectKey, Service};

/// Condition for the health of the API server; present only where it is the source.
pub const API_SERVER: &str = "ApiServer";

/// A view of the engine's knowledge and decisions.
pub struct Report<'a> {
    pub(super) world: &'a World,
    pub(super) derived: &'a Derived,
    pub(super) decisions: &'a Decisions,
    pub(super) election: &'a Election,
}

impl Report<'_> {
    /// The peers, and how long each has been in its state. The caller passes the current time, as
    /// the last event may be long ago.
    pub fn peers(&self, now: Duration) -> Vec<PeerStatus> {
        self.world.membership.statuses(now)
    }

    /// The complete report.
    pub fn state(&self) -> NodeState {
        NodeState {
            node: self.world.settings.node.to_string(),
            ready: self.conditions(),
            services: self
                .decisions
                .services
                .iter()
                .map(|(key, placement)| self.service_status(key, placement))
                .collect(),
            addresses: self
                .election
                .vips
                .iter()
                .map(|(address, vip)| self.address_status(address, vip))
                .collect(),
            interfaces: self.interface_statuses(),
            pools: self.pool_statuses(),
            problems: self.world.problems.clone(),
            peers: self.peers(self.world.now),
            leader: (self.world.settings.role != Role::Alone).then(|| LeaderStatus {
                node: self.world.leader.as_deref().map(str::to_owned),
                here: self.world.role == Role::Leader,
            }),
            warnings: self
                .world
                .membership
                .warnings()
                .into_iter()
                .chain(exclusion::warnings(&self.world.index))
                .chain(reservations::warnings(&self.derived.reserved_in_pools))
                .collect(),
            ..NodeState::default()
        }
    }

    /// Conditions; the node is ready when all of them hold.
    pub fn conditions(&self) -> Vec<Condition> {
        let rules = match &self.world.rules {
            Some(Ok(())) => String::new(),
            Some(Err(error)) => format!("the kernel refused the rules: {error}"),
            None => "not written yet".to_string(),
        };
        let source = match self.world.settings.role {
            Role::Alone => "the manifests have not been read yet".to_string(),
            Role::Follower | Role::Leader => self
                .world
                .source_health
                .clone()
                .err()
                .unwrap_or("the API server has not told everything yet".into()),
        };
        let mut conditions = vec![
            Condition::when("SourceSynced", self.world.source_synced, source),
            Condition::when(
                "InterfacesKnown",
                self.world.interfaces.is_some(),
                "the kernel has not listed the interfaces yet",
            ),
            Condition::when("RulesApplied", rules.is_empty(), rules),
        ];
        if self.world.settings.role != Role::Alone {
            // While the API server does not respond at all, the Lease adds no information.
            let health = self
                .world
                .source_health
                .clone()
                .and_then(|()| self.world.leader_health.clone())
                .err()
                .unwrap_or_default();
            conditions.push(Condition::when(API_SERVER, health.is_empty(), health));
        }
        conditions
    }

    /// Whether Services are served. Known Services stay served while the API server is
    /// unreachable.
    pub fn serving(&self) -> bool {
        self.conditions().iter().all(|condition| condition.status || condition.name == API_SERVER)
    }

    /// False while this node drains or must not receive traffic; for external load balancers.
    pub fn healthy(&self) -> Result<(), String> {
        if self.world.draining {
            return Err("draining".into());
        }
        match self.world.index.node(&self.world.settings.node).and_then(|node| node.excluded) {
            Some(exclusion) => Err(Ineligible::Excluded(exclusion).to_string()),
            None => Ok(()),
        }
    }

    /// Like kube-proxy's healthCheckNodePort; None for a Service that Pinnace does not serve.
    pub fn service_health(&self, key: &ObjectKey) -> Option<ServiceHealth> {
        let placement = self.decisions.services.get(key)?;
        let local = endpoints::local_ready(self.world.index.slices(key), &self.world.settings.node);
        (placement.phase != ServicePhase::Unmanaged).then_some(ServiceHealth {
            local_endpoints: local,
            proxy_healthy: matches!(self.world.rules, Some(Ok(()))),
        })
    }

    /// Counters for metrics and the status line.
    pub fn summary(&self) -> Summary {
        let (mut serving, mut pending, mut refused) = (0, 0, 0);
        for placement in self.decisions.services.values() {
            match placement.phase {
                ServicePhase::Serving => serving += 1,
                ServicePhase::Pending => pending += 1,
                ServicePhase::Failed => refused += 1,
                ServicePhase::Unmanaged => {}
            }
        }
        Summary {
            serving,
            pending,
            failed: refused,
            addresses: self.election.vips.len(),
            announced: self
                .election
                .vips
                .announcements
                .values()
                .filter(|announcement| !announcement.standby)
                .count(),
            problems: self.world.problems.iter().filter(|problem| !problem.note).count(),
        }
    }

    fn service_status(&self, key: &ObjectKey, placement: &ServiceState) -> ServiceStatus {
        let service = self.world.index.service(key);
        let mut reasons = placement.reasons.clone();
        for reason in reasons.iter_mut().filter(|reason| reason.code == NO_ADDRESS_YET) {
            if let Some(holder) = &self.world.leader {
                reason.message = format!("{} ({holder})", reason.message);
            }
        }
        let mut phase = match placement.phase {
            ServicePhase::Serving => Phase::Serving,
            ServicePhase::Pending => Phase::Pending,
            ServicePhase::Failed => Phase::Failed,
            ServicePhase::Unmanaged => Phase::Unmanaged,
        };
        for address in &placement.addresses {
            match self.election.vips.get(*address).map(|vip| (&vip.eligible, vip.election.owner()))
            {
                Some((Err(why), _)) => reasons.push(Reason::new(
                    why.code(),
                    format!("{address} is not announced by this node: {why}"),
                )),
                Some((Ok(_), Owner::None { .. })) if phase == Phase::Serving => {
                    phase = Phase::Pending;
                    reasons
                        .push(Reason::new("Electing", format!("{address}: waiting for the other nodes before one of them answers for it")));
                }
                Some((Ok(_), Owner::Foreign)) => {
                    if phase == Phase::Serving {
                        phase = Phase::Pending;
                    }
                    let who = self
                        .election
                        .vips
                        .get(*address)
                        .map(|vip| foreign_machine(vip, self.world.now))
                        .unwrap_or_default();
                    reasons.push(Reason::new(
                        "AddressInUse",
                        format!("{address} is not announced by this node: {who}"),
                    ));
                }
                _ => {}
            }
        }
        if phase == Phase::Serving && placement.generation > self.world.applied {
            phase = Phase::Pending;
            reasons.push(Reason::new("Applying", "its rules are on their way into the kernel"));
        }
        let ports = service.map(|service| self.ports(service)).unwrap_or_default();
        if phase == Phase::Serving && ports.iter().all(|port| port.endpoints == 0) {
            phase = Phase::Pending;
            reasons.push(Reason::new(
                "NoEndpoints",
                "no endpoint is ready: connections are refused until one is",
            ));
        }
        ServiceStatus {
            key: key.clone(),
            mode: placement.mode,
            addresses: placement.addresses.clone(),
            pool: self
                .decisions
                .ipam
                .allocations()
                .get(key)
                .filter(|a| !a.addresses.is_empty())
                .map(|allocation| allocation.pool.to_string()),
            ports,
            policy: service.map(|s| s.external).unwrap_or_default(),
            client_affinity: service.is_some_and(|s| s.client_affinity),
            phase,
            reasons,
            owner: placement
                .addresses
                .iter()
                .find_map(|address| self.owner(self.election.vips.get(*address)?)),
        }
    }

    /// The elected node.
    fn owner(&self, vip: &Vip) -> Option<String> {
        match vip.election.owner() {
            Owner::Local => Some(self.world.settings.node.to_string()),
            Owner::Peer { node, .. } => Some(node.to_string()),
            Owner::None { .. } | Owner::Foreign => None,
        }
    }

    fn ports(&self, service: &Service) -> Vec<PortStatus> {
        let mut ports: Vec<PortStatus> = Vec::new();
        for family in Family::ALL {
            if !service.families.is_empty() && !service.families.contains(&family) {
                continue;
            }
            for resolved in endpoints::resolve(
                service,
                self.world.index.slices(&service.key),
                &self.world.here(&self.election.dead),
                family,
            ) {
                let (endpoints, local) = (resolved.cluster.len(), resolved.local.len());
                let same = |p: &&mut PortStatus| {
                    p.protocol == resolved.port.protocol && p.port == resolved.port.port
                };
                if let Some(port) = ports.iter_mut().find(same) {
                    // Dual stack: the other family counts the same pods.
                    port.endpoints = port.endpoints.max(endpoints);
                    port.local = port.local.max(local);
                    continue;
                }
                let name = resolved.port.name.to_string();
                ports.push(PortStatus {
                    name,
                    protocol: resolved.port.protocol,
                    port: resolved.port.port,
                    endpoints,
                    local,
                });
            }
        }
        ports
    }

    fn address_status(&self, address: IpAddr, vip: &Vip) -> AddressStatus {
        let announced = self.election.vips.announcements.get(&address);
        let names = announced
            .filter(|announcement| !announcement.standby)
            .into_iter()
            .flat_map(|a| a.interfaces.iter())
            .filter_map(|index| self.world.interfaces.as_deref()?.get(index));
        let phase = match &vip.eligible {
            _ if matches!(vip.election.owner(), Owner::Local) && vip.eligible.is_err() => {
                AddressPhase::Announced
            }
            Ok(_) if matches!(vip.election.owner(), Owner::Peer { .. }) => AddressPhase::Standby,
            Ok(_) if matches!(vip.election.owner(), Owner::Foreign) => {
                AddressPhase::NotAnnounced { reason: foreign_machine(vip, self.world.now) }
            }
            Ok(_) if matches!(vip.election.owner(), Owner::None { .. }) => {
                AddressPhase::NotAnnounced {
                    reason: "nobody is known to answer for it yet; listening for who does".into(),
                }
            }
            Err(why) => AddressPhase::NotAnnounced { reason: why.to_string() },
            Ok(_) if !vip.claim.is_clear() => AddressPhase::Probing,
            Ok(_) => match vip.claim.foreign(self.world.now) {
                Some(mac) => AddressPhase::Contested { mac: mac::display(mac) },
                None => AddressPhase::Announced,
            },
        };
        AddressStatus {
            address,
            owner: self.owner(vip),
            announced_on: names.map(|interface| interface.name.to_string()).collect(),
            phase,
            services: vip.services.to_vec(),
        }
    }

    fn interface_statuses(&self) -> Vec<InterfaceStatus> {
        let all = self
            .world
            .interfaces
            .as_deref()
            .into_iter()
            .flat_map(|all| all.values())
            .filter(|i| !i.loopback);
        let status = |interface: &crate::model::Interface| {
            let verdict = self.derived.uplinks.get(&interface.index);
            InterfaceStatus {
                name: interface.name.to_string(),
                uplink: verdict.is_some_and(|v| v.is_ok()),
                up: interface.up,
                reason: verdict.and_then(|v| v.as_ref().err()).map(ToString::to_string),
                addresses: interface.addresses.iter().copied().collect(),
            }
        };
        all.map(status).collect()
    }

    fn pool_statuses(&self) -> Vec<PoolStatus> {
        let pool = |pool: &crate::ipam::pool::Pool| PoolStatus {
            name: pool.name.to_string(),
            ranges: pool.ranges.iter().map(ToString::to_string).collect(),
            size: usable(pool, self.decisions.ipam.reserved(), self.world.settings.avoid_buggy_ips),
            used: self.election.vips.iter().filter(|(address, _)| pool.contains(*address)).count(),
        };
        self.world.settings.pools.iter().map(pool).collect()
    }
}

/// The owner of the address, when it is none of the nodes.
fn foreign_machine(vip: &Vip, now: Duration) -> String {
    let who = vip
        .election
        .owner_lladdr()
        .or(vip.claim.foreign(now))
        .map(|mac| format!(" ({})", mac::display(mac)))
        .unwrap_or_default();
    format!("another machine{who} answers for it")
}
