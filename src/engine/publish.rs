//! What the leader writes to the status of a Service, and takes back from it.

use std::net::IpAddr;

use super::decisions::{ServicePhase, ServiceState};
use super::election::Election;
use super::world::Round;
use crate::k8s::status::{self, StatusReconciler};
use crate::model::diagnostic::Diagnostic;
use crate::model::role::Role;
use crate::model::state::Reason;
use crate::model::{ObjectKey, Service, ServicePort};

/// What the leader does about a Service that is no longer served. `state`: what was decided about it
/// before.
pub(super) fn on_service_deleted(
    reconciler: &mut StatusReconciler,
    key: &ObjectKey,
    state: Option<&ServiceState>,
    round: &mut Round<'_>,
) {
    let service = round.world.index.service(key);
    let leaving =
        service.and_then(|s| s.api.as_ref()).is_some_and(|metadata| metadata.cleanup_finalizer);
    let withdrawing = withdraws(reconciler, key, state, round);
    reconciler.forget(key, !leaving && !withdrawing);

    let Some(service) = service.filter(|_| round.world.role == Role::Leader) else { return };
    let Some(metadata) = service.api.as_deref() else { return };
    let patch = if withdrawing {
        reconciler.withdrawal(key, metadata)
    } else {
        status::release_status(metadata).filter(|_| round.world.is_managed(service))
    };
    if let Some(patch) = patch {
        round.plan.status_patches.insert(key.clone(), patch);
    }
}

/// A Service that is to be ignored from now on must not keep an address of our pools, which another
/// one may get. What others wrote stays. Every node keeps account, as the leader may end before the
/// address has been taken back.
fn withdraws(
    reconciler: &mut StatusReconciler,
    key: &ObjectKey,
    state: Option<&ServiceState>,
    round: &Round<'_>,
) -> bool {
    let service = round.world.index.service(key).filter(|service| service.request.ignore);
    let metadata =
        service.and_then(|service| service.api.as_deref()).filter(|metadata| !metadata.deleting);
    let (Some(service), Some(metadata)) = (service, metadata) else {
        reconciler.keep(key);
        return false;
    };
    // When the Service becomes unmanaged: another implementation may use the same addresses.
    if let Some(state) = state.filter(|state| state.phase != ServicePhase::Unmanaged) {
        let held = state.held();
        if !service.published.is_empty()
            && service.published.iter().all(|address| held.contains(address))
        {
            reconciler.withdraw(key, metadata);
        }
    }
    reconciler.withdraws(key, metadata)
}

/// What the leader does about a Service that is served, or failed: its status says which, and
/// nothing in between.
pub(super) fn publish(
    reconciler: &mut StatusReconciler,
    service: &Service,
    unmatched: &[&ServicePort],
    next: &mut ServiceState,
    election: &Election,
    round: &mut Round<'_>,
) {
    let world = round.world;
    let Some(metadata) = service.api.as_deref().filter(|_| world.role == Role::Leader) else {
        return;
    };
    let probing =
        |address: &IpAddr| election.vips.get(*address).is_some_and(|vip| !vip.claim.is_clear());
    let wanted = (!next.addresses.iter().any(probing))
        .then(|| status::ingress(service, &next.addresses, unmatched));
    let decision = reconciler.decide(&service.key, metadata, wanted, world.now);
    if let Some(patch) = decision.publication {
        round.plan.status_patches.insert(service.key.clone(), patch);
    }
    if let Some(conflict) = decision.interference {
        let nodes = world
            .index
            .nodes()
            .flat_map(|node| node.internal.iter().chain(&node.external))
            .copied()
            .collect();
        round.plan.diagnostics.push(Diagnostic {
            warning: true,
            service: Some(service.key.clone()),
            node: None,
            reason: "SyncLoadBalancerFailed",
            message: conflict.sentence(&nodes),
        });
    }
    if reconciler.backoff(&service.key, world.now).is_some() {
        let message = "someone else keeps changing status.loadBalancer: it is left alone for a while, see the Events of the Service";
        next.reasons.push(Reason::new("StatusContested", message));
    }
}

/// A patch did not come to stand. It is decided again, with growing pauses; a new version of the
/// Service, or a new leader, does not wait.
pub(super) fn on_patch_failed(
    reconciler: &mut StatusReconciler,
    key: ObjectKey,
    version: &str,
    refusal: Option<String>,
    round: &mut Round<'_>,
) {
    if round.world.role != Role::Leader || round.world.index.service(&key).is_none() {
        return;
    }
    let first = reconciler.lost(&key, version, round.world.now);
    if let Some(words) = refusal.filter(|_| first) {
        let message = format!(
            "the API server refuses what is to be written to status.loadBalancer: {words}; it is tried again"
        );
        round.plan.diagnostics.push(Diagnostic {
            warning: true,
            service: Some(key),
            node: None,
            reason: "SyncLoadBalancerFailed",
            message,
        });
    }
}
