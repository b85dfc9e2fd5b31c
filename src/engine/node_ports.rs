//! Node mode: Services at the nodes' own addresses. [`crate::ipam`] allocates ports for all
//! nodes alike; this module supplies its input and applies the result to this node.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use super::decisions::{Decisions, ServicePhase, ServiceState};
use super::eligibility;
use super::index::Index;
use super::uplinks::NotUplink;
use super::world::{Derived, Round, World};
use crate::ipam::{HeldPorts, Ipam, Port, PortClaim, node_mode, refusals};
use crate::model::role::Role;
use crate::model::state::Reason;
use crate::model::{Family, Interface, Mode, ObjectKey, Service, TrafficPolicy};

/// Allocates node ports before these Services are reconciled. Services whose allocation changed are
/// reconciled as well.
pub(super) fn allocate_ports(
    decisions: &mut Decisions,
    dirty: &mut Vec<(bool, i64, ObjectKey)>,
    round: &Round<'_>,
) {
    for (_, _, key) in dirty.iter() {
        match round
            .world
            .index
            .service(key)
            .filter(|service| round.world.mode(service) == Mode::Node)
        {
            Some(service) => decisions.node_ports.claim(service),
            None => decisions.node_ports.release(key),
        }
    }
    if !decisions.node_ports.unsettled() {
        return;
    }
    let facts = PortFacts::new(
        &round.world.index,
        &decisions.ipam,
        round.world.role,
        &round.world.settings.node,
    );
    let mut changed = decisions.node_ports.settle(|key| facts.claim(key));
    dirty.iter().for_each(|(_, _, key)| {
        changed.remove(key);
    });
    dirty.extend(changed.into_iter().map(|key| (false, 0, key)));
}

/// The nodes' own addresses: returns those of this node, if it is one of the nodes that serve.
pub(super) fn reconcile_node_mode(
    decisions: &mut Decisions,
    service: &Service,
    next: &mut ServiceState,
    round: &mut Round<'_>,
) -> Vec<IpAddr> {
    note_ports(decisions, service, round);
    let has = |node: &str, family| decisions.node_ports.has(&service.key, node, family);
    let families = node_mode::families(service);
    let here = |address: &IpAddr| {
        families.contains(&Family::of(*address))
            && has(&round.world.settings.node, Family::of(*address))
    };
    let own: Vec<IpAddr> = round.derived.node_addresses.iter().copied().filter(here).collect();
    let local = service.external == TrafficPolicy::Local;
    let ready = if local {
        nodes_with_ready_endpoints(&round.world.index, service)
    } else {
        BTreeSet::new()
    };
    let admits = |node: &str| !local || ready.contains(node);
    let known = round.world.index.nodes().next().is_some();
    next.addresses = if known {
        node_mode::published_addresses(round.world.index.nodes(), service, |node, family| {
            admits(node) && has(node, family)
        })
    } else {
        own.clone()
    };
    let (losses, hinder) = port_conflicts(decisions, service, admits, round);
    next.reasons.extend(losses);
    if next.addresses.is_empty() && hinder {
        next.phase = ServicePhase::Failed;
    } else if next.addresses.is_empty() {
        next.phase = ServicePhase::Pending;
        next.reasons.push(no_node(&round.world.index));
    }
    let closed = closed(&next.addresses, &own, round);
    if !closed.is_empty()
        && next.phase == ServicePhase::Serving
        && !next.addresses.iter().any(|address| own.contains(address))
    {
        next.phase = ServicePhase::Pending;
    }
    next.reasons.extend(closed);
    let me = &*round.world.settings.node;
    let serves = round.world.index.node(me).is_none()
        || node_mode::serving_nodes(round.world.index.nodes(), service)
            .any(|node| *node.name == *me);
    if serves { own } else { Vec::new() }
}

/// Which other Services have its ports at addresses that would be its own, and whether it would
/// be served at one of these.
fn port_conflicts(
    decisions: &Decisions,
    service: &Service,
    admits: impl Fn(&str) -> bool,
    round: &Round<'_>,
) -> (Vec<Reason>, bool) {
    let has_address = |node: &str, family| match round.world.index.node(node) {
        Some(node) => {
            node.internal.iter().chain(&node.external).any(|address| Family::of(*address) == family)
        }
        None => round.derived.node_addresses.iter().any(|address| Family::of(*address) == family),
    };
    let mut losses = decisions.node_ports.losses(&service.key).to_vec();
    losses.iter_mut().for_each(|loss| loss.nodes.retain(|node| has_address(node, loss.family)));
    losses.retain(|loss| !loss.nodes.is_empty());
    let known = round.world.index.nodes().next().is_some();
    let hinder = losses.iter().flat_map(|loss| &loss.nodes).any(|node| !known || admits(node));
    let reasons = refusals(losses, node_mode::families(service)).into_iter();
    (reasons.map(|refusal| Reason::new(refusal.code(), refusal.to_string())).collect(), hinder)
}

/// Addresses of this node among those that clients are told, on interfaces that are no uplinks:
/// no rule is for what comes in there. One that is on no interface at all is translated on
/// the way here.
fn closed(published: &[IpAddr], own: &[IpAddr], round: &Round<'_>) -> Vec<Reason> {
    let (Some(node), Some(interfaces)) =
        (round.world.index.node(&round.world.settings.node), &round.world.interfaces)
    else {
        return Vec::new();
    };
    let mine = node
        .internal
        .iter()
        .chain(&node.external)
        .filter(|address| published.contains(address) && !own.contains(address));
    let mut closed = Vec::new();
    for address in mine {
        let has = |interface: &&Interface| {
            interface.addresses.iter().any(|subnet| subnet.addr() == *address)
        };
        let Some(interface) = interfaces.values().find(has) else { continue };
        let Some(Err(why)) = round.derived.uplinks.get(&interface.index) else { continue };
        let advice = match why {
            NotUplink::Loopback => "give the node an address on another one".to_string(),
            _ => format!(
                "name it among the uplinks: PINNACE_INTERFACES={}",
                named_with(&interface.name, round.world, round.derived)
            ),
        };
        let message = format!(
            "this node's address {address} is on {}, which is no uplink ({why}): connections to it are not served here; {advice}",
            interface.name
        );
        closed.push(Reason::new("NodeAddressNotOnUplink", message));
    }
    closed
}

/// What PINNACE_INTERFACES has to say for this interface to be an uplink as well.
fn named_with(interface: &str, world: &World, derived: &Derived) -> String {
    let mut names: BTreeSet<String> =
        world.settings.interfaces.iter().map(ToString::to_string).collect();
    if names.is_empty() {
        names.extend(derived.uplink_names.iter().map(ToString::to_string));
    }
    names.insert(interface.to_owned());
    names.into_iter().collect::<Vec<_>>().join(",")
}

fn no_node(index: &Index) -> Reason {
    let mut message =
        "There are no available nodes for LoadBalancer: none has a usable address, is not excluded and, for policy Local, a ready endpoint"
            .to_string();
    for node in index.nodes() {
        if let Some(exclusion) = node.excluded {
            message +=
                &format!("; {}", eligibility::excluded(&format!("node {}", node.name), exclusion));
        }
    }
    Reason::new("UnAvailableLoadBalancer", message)
}

/// Writes down where the Service has its ports, for the next start. With an API server its
/// status says so. What it had on nodes that are not to serve it now stays noted until
/// another Service has it: a node may be away for a while.
fn note_ports(decisions: &mut Decisions, service: &Service, round: &mut Round<'_>) {
    if round.world.role != Role::Alone {
        return;
    }
    let mut held = HeldPorts {
        ports: service.ports.iter().map(|port| (port.protocol, port.port)).collect(),
        ..HeldPorts::default()
    };
    held.ports.sort_unstable();
    held.ports.dedup();
    let serving = serving(&round.world.index, service, &round.world.settings.node);
    if let Some(before) = decisions.ipam.ports_held(&service.key) {
        let away = before.nodes.iter().filter(|(node, _)| !serving.contains(&***node));
        held.nodes.extend(away.map(|(node, families)| (node.clone(), families.clone())));
    }
    for node in serving.iter().filter(|_| !held.ports.is_empty()) {
        let has = |family: &Family| decisions.node_ports.has(&service.key, node, *family);
        let families: BTreeSet<Family> =
            node_mode::families(service).iter().copied().filter(has).collect();
        if !families.is_empty() {
            held.nodes.insert((*node).into(), families);
        }
    }
    decisions.ipam.note_ports(&service.key, held, decisions.node_ports.rivals(&service.key));
    round.plan.save |= decisions.ipam.take_changed();
}

fn nodes_with_ready_endpoints(index: &Index, service: &Service) -> BTreeSet<Arc<str>> {
    index
        .slices(&service.key)
        .flat_map(|s| &s.endpoints)
        .filter(|e| e.ready)
        .filter_map(|e| e.node.clone())
        .collect()
}

/// The nodes that are to serve it; this one also while there is no Node object of it.
fn serving<'a>(index: &'a Index, service: &Service, me: &'a str) -> BTreeSet<&'a str> {
    let mut serving: BTreeSet<&str> =
        node_mode::serving_nodes(index.nodes(), service).map(|node| &*node.name).collect();
    if index.node(me).is_none() {
        serving.insert(me);
    }
    serving
}

/// Input of port allocation: the objects and the previous allocation. With an API server the
/// statuses say that, alone what was written down.
struct PortFacts<'a> {
    index: &'a Index,
    ipam: &'a Ipam,
    role: Role,
    node: &'a str,
    /// By the Services' label; thousands have the same one.
    serving: RefCell<BTreeMap<Option<&'a str>, Rc<BTreeSet<&'a str>>>>,
    by_address: OnceCell<BTreeMap<IpAddr, Vec<&'a str>>>,
}

impl<'a> PortFacts<'a> {
    fn new(index: &'a Index, ipam: &'a Ipam, role: Role, node: &'a str) -> PortFacts<'a> {
        PortFacts {
            index,
            ipam,
            role,
            node,
            serving: RefCell::default(),
            by_address: OnceCell::new(),
        }
    }

    fn claim(&self, key: &ObjectKey) -> Option<PortClaim<'a>> {
        let service = self.index.service(key)?;
        let mut known = self.serving.borrow_mut();
        let nodes = known
            .entry(service.node_pool.as_deref())
            .or_insert_with(|| serving(self.index, service, self.node).into())
            .clone();
        let had =
            if self.role == Role::Alone { self.written_down(key) } else { self.published(service) };
        Some(PortClaim { service, nodes, had })
    }

    fn written_down(&self, key: &ObjectKey) -> BTreeMap<(&'a str, Family), Rc<[Port]>> {
        let Some(held) = self.ipam.ports_held(key) else { return BTreeMap::new() };
        let ports: Rc<[_]> = held.ports.clone().into();
        let places = held
            .nodes
            .iter()
            .flat_map(|(node, families)| families.iter().map(move |family| (&**node, *family)));
        places.map(|place| (place, ports.clone())).collect()
    }

    /// A status that was written by others need not name ports. What it does not say nobody had: a
    /// Service with policy Local has the port no more where its last ready endpoint went.
    fn published(&self, service: &'a Service) -> BTreeMap<(&'a str, Family), Rc<[Port]>> {
        let all: Rc<[_]> = service.ports.iter().map(|port| (port.protocol, port.port)).collect();
        let mut had = BTreeMap::new();
        for entry in service.api.iter().flat_map(|record| record.ingress.iter()) {
            let Some(address) = entry.ip else { continue };
            for node in self.by_address().get(&address).into_iter().flatten() {
                let ports = if entry.ports.is_empty() {
                    all.clone()
                } else {
                    entry.ports.iter().map(|port| (port.protocol, port.port)).collect()
                };
                had.insert((*node, Family::of(address)), ports);
            }
        }
        had
    }

    fn by_address(&self) -> &BTreeMap<IpAddr, Vec<&'a str>> {
        self.by_address.get_or_init(|| {
            let mut by_address = BTreeMap::<IpAddr, Vec<&str>>::new();
            for node in self.index.nodes() {
                for address in node.internal.iter().chain(&node.external) {
                    by_address.entry(*address).or_default().push(&node.name);
                }
            }
            by_address
        })
    }
}
