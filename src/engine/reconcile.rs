//! Reconciling one Service: its addresses, then its frontends. Everything is worked out anew from
//! the index and compared with what was decided before, so there is one path for creation, change
//! and repair.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::decisions::{Decisions, ServicePhase, ServiceState};
use super::election::Election;
use super::world::Round;
use super::{endpoints, exclusion, node_ports, publish};
use crate::common::printable::list;
use crate::ipam::{Assignment, Refusal};
use crate::model::diagnostic::Diagnostic;
use crate::model::forwarding::{Forwarding, FrontendKey};
use crate::model::role::Role;
use crate::model::state::Reason;
use crate::model::{Family, Mode, ObjectKey, Service, ServicePort};

/// The code of a Service that only the leader can give an address.
pub(super) const NO_ADDRESS_YET: &str = "NoAddressYet";

/// What reconciling several Services leaves to be done once for all of them.
#[derive(Default)]
struct Touched {
    /// Addresses whose elections are to be run again.
    vips: BTreeSet<IpAddr>,
    /// Frontends that a Service gave up.
    gone: BTreeSet<FrontendKey>,
    /// Something was given up that another Service may be waiting for.
    freed: bool,
}

/// Reconciles every dirty Service: those that have an address first, then the oldest, so that the
/// winner of a conflict does not depend on the order of events. True when something was given up
/// that another Service may be waiting for.
pub(super) fn reconcile_dirty(
    decisions: &mut Decisions,
    election: &mut Election,
    round: &mut Round<'_>,
) -> bool {
    let world = round.world;
    let mut dirty: Vec<(bool, i64, ObjectKey)> = std::mem::take(&mut round.work.dirty)
        .into_iter()
        .map(|key| {
            let service = world.index.service(&key);
            let has_address = match world.role {
                Role::Alone => decisions.ipam.allocations().contains_key(&key),
                Role::Follower | Role::Leader => service.is_some_and(|s| !s.published.is_empty()),
            };
            (!has_address, service.map_or(i64::MIN, |s| s.created), key)
        })
        .collect();
    dirty.sort();

    let mut touched = Touched::default();
    // Removal before placement: an address given up in this round is free for the others in it.
    dirty.retain(|(_, _, key)| {
        let service = world.index.service(key);
        let managed = service.is_some_and(|service| world.is_managed(service));
        let deleting = service.and_then(|s| s.api.as_ref()).is_some_and(|api| api.deleting);
        let foreign = service.filter(|_| !managed).map_or(&[][..], |service| &service.published);
        touched.freed |= decisions.ipam.set_elsewhere(key, foreign);
        if managed && !deleting {
            decisions.status.keep(key);
            return true;
        }
        let state = decisions.services.get(key);
        publish::on_service_deleted(&mut decisions.status, key, state, round);
        remove_service(decisions, election, key, &mut touched, round);
        false
    });

    node_ports::allocate_ports(decisions, &mut dirty, round);
    for (_, _, key) in &dirty {
        reconcile_service(decisions, election, key, &mut touched, round);
    }

    // A frontend that moved from one Service to another is in both lists; the new one's word stands.
    for key in touched.gone {
        round.plan.rule_set.forwardings.entry(key).or_insert(None);
    }
    election.review(touched.vips, round);
    touched.freed
}

/// Releases allocations of Services that were deleted while this process was away.
pub(super) fn forget_deleted(decisions: &mut Decisions, round: &mut Round<'_>) {
    let stale: Vec<ObjectKey> = decisions
        .ipam
        .allocations()
        .keys()
        .filter(|key| round.world.index.service(key).is_none())
        .cloned()
        .collect();
    for key in stale {
        round.plan.save |= decisions.ipam.release(&key);
    }
}

fn remove_service(
    decisions: &mut Decisions,
    election: &mut Election,
    key: &ObjectKey,
    touched: &mut Touched,
    round: &mut Round<'_>,
) {
    round.work.waiting.remove(key);
    let state = decisions.services.remove(key).unwrap_or_default();
    touched.gone.extend(state.frontends.iter().map(|(key, _)| *key));
    election.vips.leave(key, &state.held(), &mut touched.vips);
    let released = decisions.ipam.release(key);
    round.plan.save |= released;
    touched.freed |= released;
    decisions.node_ports.release(key);
    if !state.addresses.is_empty() {
        let message = format!("no longer served on {}", list(&state.addresses));
        notify(key, false, "DeletedLoadBalancer", message, round);
    }

    let Some(service) = round.world.index.service(key) else { return };
    if round.world.is_managed(service) {
        return;
    }
    let reason = if service.request.ignore {
        let message = "the annotation kube-vip.io/ignore is true: it is not served, and its status is left to others";
        if state.phase != ServicePhase::Unmanaged {
            notify(key, false, "Ignored", message.into(), round);
        }
        Reason::new("Ignored", message)
    } else {
        let class = service.class.as_deref().unwrap_or("(none)");
        let message = format!(
            "class {class} belongs to another implementation; Pinnace serves {}",
            round.world.settings.class
        );
        Reason::new("ForeignClass", message)
    };
    let unmanaged = ServiceState {
        phase: ServicePhase::Unmanaged,
        reasons: vec![reason],
        ..ServiceState::default()
    };
    decisions.services.insert(key.clone(), unmanaged);
}

fn reconcile_service(
    decisions: &mut Decisions,
    election: &mut Election,
    key: &ObjectKey,
    touched: &mut Touched,
    round: &mut Round<'_>,
) {
    let Some(service) = round.world.index.service(key) else { return };
    election.forget_dead(key, round.world);
    round.work.waiting.remove(key);
    let mode = round.world.mode(service);
    let before = decisions.services.remove(key).unwrap_or_default();
    let invalid =
        service.problems.iter().map(|problem| Reason::new("InvalidField", problem.clone()));
    let mut next =
        ServiceState { mode: Some(mode), reasons: invalid.collect(), ..ServiceState::default() };

    let frontend_addresses = match mode {
        Mode::Vip => {
            let mut carrying = reconcile_vip_mode(decisions, election, service, &mut next, round);
            touched.freed |= decisions.ipam.take_reclaimed();
            drain_addresses(decisions, service, &before, &mut next, round);
            carrying.extend(&next.draining_addresses);
            carrying
        }
        Mode::Node => {
            let released = decisions.ipam.release_addresses(key);
            round.plan.save |= released;
            touched.freed |= released;
            node_ports::reconcile_node_mode(decisions, service, &mut next, round)
        }
    };

    let held = next.held();
    if before.mode == Some(Mode::Vip) {
        let mut lost = before.held();
        lost.retain(|address| !held.contains(address));
        election.vips.leave(key, &lost, &mut touched.vips);
        touched.freed |= !lost.is_empty();
    }
    if mode == Mode::Vip {
        touched.vips.extend(held);
        // A Service that waits for a port is reconciled when `allocate_ports` says so.
        if next.phase == ServicePhase::Failed {
            round.work.waiting.insert(key.clone());
        }
    }

    next.frontends = frontends(service, &frontend_addresses, election, round);
    let changed = diff(&before.frontends, &mut next.frontends, &mut touched.gone, round);
    next.generation = if changed { round.world.generation } else { before.generation };

    let unmatched = endpoints::unmatched(service, round.world.index.slices(key));
    next.reasons.extend(unmatched.iter().map(|port| leads_nowhere(port)));
    publish::publish(&mut decisions.status, service, &unmatched, &mut next, election, round);
    report_changes(key, &before, &next, round);
    decisions.services.insert(key.clone(), next);
}

/// Virtual addresses: returns those that carry traffic already. One that is still being probed must
/// not, because it may be another machine's and our own pods may be talking to it.
fn reconcile_vip_mode(
    decisions: &mut Decisions,
    election: &mut Election,
    service: &Service,
    next: &mut ServiceState,
    round: &mut Round<'_>,
) -> Vec<IpAddr> {
    let assignment = assign(decisions, service, round);
    round.plan.save |= decisions.ipam.take_changed();
    let assignment = match assignment {
        Ok(assignment) if assignment.addresses.is_empty() => {
            next.phase = ServicePhase::Pending;
            let message = "no address yet: waiting for the leader, the node that holds the Lease";
            next.reasons.push(Reason::new(NO_ADDRESS_YET, message));
            return Vec::new();
        }
        Ok(assignment) => assignment,
        Err(refusal) => {
            next.phase = ServicePhase::Failed;
            next.reasons.push(Reason::new(refusal.code(), refusal.to_string()));
            return Vec::new();
        }
    };
    next.reasons.extend(assignment.notes.iter().map(|note| Reason::new("Note", note.clone())));
    next.reasons.extend(exclusion::everybody_excluded(&round.world.index));
    next.addresses.clone_from(&assignment.addresses);

    let mut carrying = Vec::new();
    for address in assignment.addresses {
        let probe = round.world.settings.probe && !decisions.ipam.probed(address);
        if election.vips.join(&service.key, address, probe, &election.local, round) {
            carrying.push(address);
        } else {
            next.phase = ServicePhase::Pending;
            let message = format!("asking the network whether {address} is in use elsewhere");
            next.reasons.push(Reason::new("Probing", message));
        }
    }
    carrying
}

/// Clients use the addresses that the status names until it names the new ones, which are being
/// probed.
fn drain_addresses(
    decisions: &mut Decisions,
    service: &Service,
    before: &ServiceState,
    next: &mut ServiceState,
    round: &Round<'_>,
) {
    let changes = round.world.role == Role::Leader
        && next.phase != ServicePhase::Failed
        && !next.addresses.is_empty();
    let mut old = before.held();
    old.retain(|address| {
        changes && service.published.contains(address) && !next.addresses.contains(address)
    });
    next.draining_addresses = decisions.ipam.retire(service, old);
}

/// The Service's addresses: what its status says, and from the leader, or alone, what it is to be.
fn assign(
    decisions: &mut Decisions,
    service: &Service,
    round: &mut Round<'_>,
) -> Result<Assignment, Refusal> {
    let role = round.world.role;
    let adopts = match role {
        Role::Alone => false,
        Role::Follower => true,
        // The leader restores a status that another client replaced, and keeps an address that is
        // being probed to replace the one in the status.
        Role::Leader => {
            let had = decisions.ipam.allocations().get(&service.key);
            let unpublished = |address: &IpAddr| !service.published.contains(address);
            !service.published.is_empty()
                && !decisions.status.stood(&service.key)
                && !had.is_some_and(|had| had.addresses.iter().any(unpublished))
        }
    };
    if adopts {
        let (adopted, evicted) = decisions.ipam.adopt(service);
        round.work.dirty.extend(evicted);
        if role == Role::Follower {
            return adopted;
        }
    }
    decisions.ipam.assign(service)
}

fn frontends(
    service: &Service,
    addresses: &[IpAddr],
    election: &Election,
    round: &Round<'_>,
) -> Vec<(FrontendKey, Arc<Forwarding>)> {
    let slices = round.world.index.slices(&service.key);
    let here = round.world.here(&election.dead);
    let mut frontends = Vec::new();
    for family in Family::ALL {
        if !addresses.iter().any(|address| Family::of(*address) == family) {
            continue;
        }
        for port in endpoints::resolve(service, slices.clone(), &here, family) {
            let forwarding = Arc::new(endpoints::forwarding(service, &port, family));
            let (protocol, port) = (port.port.protocol, port.port.port);
            let of_family = addresses.iter().filter(|address| Family::of(**address) == family);
            frontends.extend(of_family.map(|address| {
                (FrontendKey { address: *address, protocol, port }, forwarding.clone())
            }));
        }
    }
    frontends.sort_by_key(|(key, _)| *key);
    frontends.shrink_to_fit();
    frontends
}

/// Puts the difference into the plan and says whether there is any; keeps the old value where
/// nothing changed, as it is shared with the memory of the ruleset's writer.
fn diff(
    before: &[(FrontendKey, Arc<Forwarding>)],
    next: &mut [(FrontendKey, Arc<Forwarding>)],
    gone: &mut BTreeSet<FrontendKey>,
    round: &mut Round<'_>,
) -> bool {
    let mut changed = false;
    let before: BTreeMap<_, _> =
        before.iter().map(|(key, forwarding)| (*key, forwarding)).collect();
    for (key, forwarding) in next.iter_mut() {
        match before.get(key) {
            Some(old) if *old == forwarding => *forwarding = Arc::clone(old),
            _ => {
                round.plan.rule_set.forwardings.insert(*key, Some(forwarding.clone()));
                changed = true;
            }
        }
    }
    let kept = |key: &FrontendKey| next.binary_search_by_key(key, |(key, _)| *key).is_ok();
    let removed: Vec<FrontendKey> = before.into_keys().filter(|key| !kept(key)).collect();
    changed |= !removed.is_empty();
    gone.extend(removed);
    changed
}

/// Emits Events about the Service for what changed; nothing when nothing did.
fn report_changes(
    key: &ObjectKey,
    before: &ServiceState,
    next: &ServiceState,
    round: &mut Round<'_>,
) {
    if before.addresses != next.addresses && next.phase != ServicePhase::Failed {
        let message = format!(
            "Updated LoadBalancer with new IPs: [{}] -> [{}]",
            list(&before.addresses),
            list(&next.addresses)
        );
        notify(key, false, "UpdatedLoadBalancer", message, round);
    }
    for reason in next.reasons.iter().filter(|reason| !before.reasons.contains(reason)) {
        let (warning, event) = match &*reason.code {
            // The leader reports it.
            NO_ADDRESS_YET => continue,
            "Note" | "Probing" => (false, "EnsuringLoadBalancer"),
            "UnAvailableLoadBalancer" => (true, "UnAvailableLoadBalancer"),
            _ => (true, "SyncLoadBalancerFailed"),
        };
        notify(key, warning, event, reason.message.clone(), round);
    }
    let was_serving = before.phase == ServicePhase::Serving && !before.addresses.is_empty();
    if !next.addresses.is_empty() && next.phase == ServicePhase::Serving && !was_serving {
        let message = format!("serving on {}", list(&next.addresses));
        notify(key, false, "EnsuredLoadBalancer", message, round);
    }
}

fn notify(
    key: &ObjectKey,
    warning: bool,
    reason: &'static str,
    message: String,
    round: &mut Round<'_>,
) {
    round.plan.diagnostics.push(Diagnostic {
        warning,
        service: Some(key.clone()),
        node: None,
        reason,
        message,
    });
}

fn leads_nowhere(port: &ServicePort) -> Reason {
    let name = if port.name.is_empty() { String::new() } else { format!(" ({})", port.name) };
    let message = format!(
        "port {}/{}{name} is refused: there are endpoints, but none of their slices has it; set targetPort to a number, or to a name that a port of the containers has",
        port.port, port.protocol
    );
    Reason::new("PortWithoutEndpoints", message)
}
