//! Placing one Service: its addresses, then its frontends. Everything is worked out anew from the
//! index and compared with what was told before, so there is one path for creation, change and
//! repair.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::plan::Plan;
use super::{Engine, ServicePhase, ServiceState, endpoints};
use crate::common::printable::list;
use crate::ipam::{Assignment, Refusal};
use crate::k8s::status;
use crate::model::diagnostic::Diagnostic;
use crate::model::forwarding::{Forwarding, FrontendKey};
use crate::model::role::Role;
use crate::model::state::Reason;
use crate::model::{Family, Mode, ObjectKey, Service, ServicePort};

/// The code of a Service that only the writer can give an address.
pub(super) const NO_ADDRESS_YET: &str = "NoAddressYet";

impl Engine {
    /// Places every dirty Service: those that have an address first, then the oldest, so that who
    /// wins a conflict does not depend on the order of events. True when
    /// something was given up that another Service may be waiting for.
    pub(super) fn reconcile_dirty(&mut self, plan: &mut Plan) -> bool {
        let mut dirty: Vec<(bool, i64, ObjectKey)> = std::mem::take(&mut self.dirty)
            .into_iter()
            .map(|key| {
                let service = self.index.service(&key);
                let has = match self.role {
                    Role::Alone => self.ipam.allocations().contains_key(&key),
                    Role::Follower | Role::Leader => {
                        service.is_some_and(|s| !s.published.is_empty())
                    }
                };
                (!has, service.map_or(i64::MIN, |s| s.created), key)
            })
            .collect();
        dirty.sort();
        let mut freed = false;
        let mut touched_vips = BTreeSet::new();
        let mut gone = BTreeSet::new();
        // Leaving before entering: an address given up in this round is free for the others in it.
        dirty.retain(|(_, _, key)| {
            let leaving = |s: &Service| s.api.as_ref().is_some_and(|record| record.deleting);
            let service = self.index.service(key);
            let stays = service.is_some_and(|s| self.is_managed(s) && !leaving(s));
            let elsewhere =
                service.filter(|s| !self.is_managed(s)).map_or(&[][..], |s| &s.published);
            freed |= self.ipam.set_elsewhere(key, elsewhere);
            if stays {
                self.status_reconciler.keep(key);
            } else {
                self.on_service_deleted(key, plan);
                freed |= self.remove_service(key, plan, &mut touched_vips, &mut gone);
            }
            stays
        });
        self.allocate_ports(&mut dirty);
        for (_, _, key) in &dirty {
            freed |= self.reconcile_service(key, plan, &mut touched_vips, &mut gone);
        }
        // A frontend that moved from one Service to another is in both lists; the new holder's word
        // stands.
        for key in gone {
            plan.rule_set.forwardings.entry(key).or_insert(None);
        }
        self.review_vips(touched_vips, plan);
        freed
    }

    fn remove_service(
        &mut self,
        key: &ObjectKey,
        plan: &mut Plan,
        vips: &mut BTreeSet<IpAddr>,
        gone: &mut BTreeSet<FrontendKey>,
    ) -> bool {
        self.waiting.remove(key);
        let placement = self.services.remove(key).unwrap_or_default();
        gone.extend(placement.frontends.iter().map(|(key, _)| *key));
        self.leave_vips(key, &placement.held(), vips);
        let freed = self.release(key, plan);
        if !placement.addresses.is_empty() {
            plan.diagnostics.push(Diagnostic {
                warning: false,
                service: Some(key.clone()),
                node: None,
                reason: "DeletedLoadBalancer",
                message: format!("no longer served on {}", list(&placement.addresses)),
            });
        }
        if let Some(service) = self.index.service(key).filter(|service| !self.is_managed(service)) {
            let reason = if service.request.ignore {
                Reason::new(
                    "Ignored",
                    "the annotation kube-vip.io/ignore is true: it is not served, and its status is left to others",
                )
            } else {
                let class = service.class.as_deref().unwrap_or("(none)");
                let message = format!(
                    "class {class} belongs to another implementation; Pinnace serves {}",
                    self.settings.class
                );
                Reason::new("ForeignClass", message)
            };
            if service.request.ignore && placement.phase != ServicePhase::Unmanaged {
                let message = reason.message.clone();
                plan.diagnostics.push(Diagnostic {
                    warning: false,
                    service: Some(key.clone()),
                    node: None,
                    reason: "Ignored",
                    message,
                });
            }
            let reasons = vec![reason];
            self.services.insert(
                key.clone(),
                Box::new(ServiceState {
                    phase: ServicePhase::Unmanaged,
                    reasons,
                    ..ServiceState::default()
                }),
            );
        }
        freed
    }

    /// What the writer does about a Service that is no longer served.
    fn on_service_deleted(&mut self, key: &ObjectKey, plan: &mut Plan) {
        let leaving = self
            .index
            .service(key)
            .and_then(|service| service.api.as_ref())
            .is_some_and(|record| record.cleanup_finalizer);
        let withdrawing = self.withdraws(key);
        self.status_reconciler.forget(key, !leaving && !withdrawing);
        let Some(service) = self.index.service(key).filter(|_| self.role == Role::Leader) else {
            return;
        };
        let Some(record) = service.api.as_deref() else { return };
        let publication = match withdrawing {
            true => self.status_reconciler.withdrawal(key, record),
            false => status::release_status(record).filter(|_| self.is_managed(service)),
        };
        if let Some(publication) = publication {
            plan.status_patches.insert(key.clone(), publication);
        }
    }

    /// A Service that is to be ignored from now on must not keep an address of our pools, which
    /// another one may be given. What others wrote stays. Every node keeps account, as the
    /// writer may end before it has been taken back.
    fn withdraws(&mut self, key: &ObjectKey) -> bool {
        let service = self.index.service(key).filter(|service| service.request.ignore);
        let record =
            service.and_then(|service| service.api.as_deref()).filter(|record| !record.deleting);
        let (Some(service), Some(record)) = (service, record) else {
            self.status_reconciler.keep(key);
            return false;
        };
        // When it ceases to be ours: whoever serves it later may use the same addresses.
        if let Some(placement) =
            self.services.get(key).filter(|placement| placement.phase != ServicePhase::Unmanaged)
        {
            let held = placement.held();
            if !service.published.is_empty()
                && service.published.iter().all(|address| held.contains(address))
            {
                self.status_reconciler.withdraw(key, record);
            }
        }
        self.status_reconciler.withdraws(key, record)
    }

    /// What the writer does about a Service that is served, or refused: its status says which, and
    /// nothing in between.
    fn publish(
        &mut self,
        service: &Service,
        unmatched: &[&ServicePort],
        next: &mut ServiceState,
        plan: &mut Plan,
    ) {
        let Some(record) = service.api.as_deref().filter(|_| self.role == Role::Leader) else {
            return;
        };
        let probing = next
            .addresses
            .iter()
            .any(|address| self.vips.get(address).is_some_and(|vip| !vip.clear));
        let wanted = (!probing).then(|| status::ingress(service, &next.addresses, unmatched));
        let decision = self.status_reconciler.decide(&service.key, record, wanted, self.now);
        if let Some(publication) = decision.publication {
            plan.status_patches.insert(service.key.clone(), publication);
        }
        if let Some(interference) = decision.interference {
            let nodes = self
                .index
                .nodes()
                .flat_map(|node| node.internal.iter().chain(&node.external))
                .copied()
                .collect();
            let message = interference.sentence(&nodes);
            plan.diagnostics.push(Diagnostic {
                warning: true,
                service: Some(service.key.clone()),
                node: None,
                reason: "SyncLoadBalancerFailed",
                message,
            });
        }
        if self.status_reconciler.backoff(&service.key, self.now).is_some() {
            let message = "someone else keeps changing status.loadBalancer: it is left alone for a while, see the Events of the Service";
            next.reasons.push(Reason::new("StatusContested", message));
        }
    }

    /// What was decided is decided again, later and later; a new version of the Service, or a new
    /// writer, does not wait.
    pub(super) fn on_patch_failed(
        &mut self,
        key: ObjectKey,
        version: &str,
        refusal: Option<String>,
        plan: &mut Plan,
    ) {
        if self.role != Role::Leader || self.index.service(&key).is_none() {
            return;
        }
        let first = self.status_reconciler.lost(&key, version, self.now);
        if let Some(words) = refusal.filter(|_| first) {
            let message = format!(
                "the API server refuses what is to be written to status.loadBalancer: {words}; it is tried again"
            );
            plan.diagnostics.push(Diagnostic {
                warning: true,
                service: Some(key),
                node: None,
                reason: "SyncLoadBalancerFailed",
                message,
            });
        }
    }

    /// Gives back what a Service held.
    fn release(&mut self, key: &ObjectKey, plan: &mut Plan) -> bool {
        let released = self.ipam.release(key);
        plan.save |= released;
        self.node_ports.release(key);
        released
    }

    /// Allocations of Services that were deleted while we were away.
    pub(super) fn forget_deleted(&mut self, plan: &mut Plan) {
        let stale: Vec<ObjectKey> = self
            .ipam
            .allocations()
            .keys()
            .filter(|key| self.index.service(key).is_none())
            .cloned()
            .collect();
        for key in stale {
            plan.save |= self.ipam.release(&key);
        }
    }

    fn reconcile_service(
        &mut self,
        key: &ObjectKey,
        plan: &mut Plan,
        vips: &mut BTreeSet<IpAddr>,
        gone: &mut BTreeSet<FrontendKey>,
    ) -> bool {
        let Some(service) = self.index.service(key).cloned() else { return false };
        self.forget_dead(key);
        let mode = self.mode(&service);
        let before = self.services.remove(key).unwrap_or_default();
        let mut freed = false;
        let mut next = ServiceState { mode: Some(mode), ..ServiceState::default() };
        next.reasons
            .extend(service.problems.iter().map(|p| Reason::new("InvalidField", p.clone())));
        self.waiting.remove(key);
        let frontend_addresses = match mode {
            Mode::Vip => {
                let mut carrying = self.reconcile_vip_mode(&service, &mut next, plan, vips);
                freed |= self.ipam.take_reclaimed();
                self.drain_addresses(&service, &before, &mut next);
                carrying.extend(&next.draining_addresses);
                carrying
            }
            Mode::Node => {
                let released = self.ipam.release_addresses(key);
                plan.save |= released;
                freed |= released;
                self.reconcile_node_mode(&service, &mut next, plan)
            }
        };
        let held = next.held();
        let lost: Vec<IpAddr> =
            before.held().into_iter().filter(|address| !held.contains(address)).collect();
        if before.mode == Some(Mode::Vip) {
            self.leave_vips(key, &lost, vips);
            freed |= !lost.is_empty();
        }
        if mode == Mode::Vip {
            vips.extend(held);
        }
        next.frontends = self.frontends(&service, &frontend_addresses);
        let changed = diff(&before.frontends, &mut next.frontends, plan, gone);
        next.generation = if changed { self.generation } else { before.generation };
        // Who waits for a port is told, see `contend_for_ports`.
        if next.phase == ServicePhase::Failed && mode == Mode::Vip {
            self.waiting.insert(key.clone());
        }
        let unmatched = endpoints::unmatched(&service, self.index.slices(key));
        next.reasons.extend(unmatched.iter().map(|port| leads_nowhere(port)));
        self.publish(&service, &unmatched, &mut next, plan);
        emit(key, &before, &next, plan);
        self.services.insert(key.clone(), Box::new(next));
        freed
    }

    /// Virtual addresses: returns those that carry traffic already. A probed one does; one still
    /// being probed must not, because it may be another machine's and our own pods may be
    /// talking to it.
    fn reconcile_vip_mode(
        &mut self,
        service: &Service,
        next: &mut ServiceState,
        plan: &mut Plan,
        vips: &mut BTreeSet<IpAddr>,
    ) -> Vec<IpAddr> {
        let assignment = match self.assign(service) {
            Ok(assignment) if assignment.addresses.is_empty() => {
                next.phase = ServicePhase::Pending;
                next.reasons.push(Reason::new(
                    NO_ADDRESS_YET,
                    "no address yet: waiting for the node that holds the Lease",
                ));
                return Vec::new();
            }
            Ok(assignment) => assignment,
            Err(refusal) => {
                next.phase = ServicePhase::Failed;
                next.reasons.push(Reason::new(refusal.code(), refusal.to_string()));
                plan.save |= self.ipam.take_changed();
                return Vec::new();
            }
        };
        plan.save |= self.ipam.take_changed();
        next.reasons.extend(assignment.notes.iter().map(|note| Reason::new("Note", note.clone())));
        next.reasons.extend(self.everybody_excluded());
        next.addresses.clone_from(&assignment.addresses);
        let mut carrying = Vec::new();
        for address in assignment.addresses {
            if self.join_vip(&service.key, address) {
                carrying.push(address);
            } else {
                next.phase = ServicePhase::Pending;
                next.reasons.push(Reason::new(
                    "Probing",
                    format!("asking the network whether {address} is in use elsewhere"),
                ));
            }
            vips.insert(address);
        }
        carrying
    }

    /// Clients use the addresses that the status names until it names the new ones, which are being
    /// probed.
    fn drain_addresses(
        &mut self,
        service: &Service,
        before: &ServiceState,
        next: &mut ServiceState,
    ) {
        let changes = self.role == Role::Leader
            && next.phase != ServicePhase::Failed
            && !next.addresses.is_empty();
        let old = before.held().into_iter().filter(|address| {
            changes && service.published.contains(address) && !next.addresses.contains(address)
        });
        next.draining_addresses = self.ipam.retire(service, old.collect());
    }

    /// The Service's addresses: what its status says, and from the writer, or alone, what it is to
    /// be.
    fn assign(&mut self, service: &Service) -> Result<Assignment, Refusal> {
        // What the writer published and somebody else replaced is put right, not followed.
        let adopts = match self.role {
            Role::Alone => false,
            Role::Follower => true,
            Role::Leader => {
                !service.published.is_empty() && !self.status_reconciler.stood(&service.key)
            }
        };
        let mut adopted = None;
        if adopts {
            let unfit = |address: &IpAddr| !service.published.contains(address);
            let keeps = self.role == Role::Leader
                && self
                    .ipam
                    .allocations()
                    .get(&service.key)
                    .is_some_and(|had| had.addresses.iter().any(unfit));
            // What is being probed to replace what the status says is not given up for it.
            if !keeps {
                let (result, evicted) = self.ipam.adopt(service);
                self.dirty.extend(evicted);
                adopted = Some(result);
            }
        }
        match (self.role, adopted) {
            (Role::Follower, Some(result)) => result,
            _ => self.ipam.assign(service),
        }
    }

    fn frontends(
        &self,
        service: &Service,
        addresses: &[IpAddr],
    ) -> Vec<(FrontendKey, Arc<Forwarding>)> {
        let mut frontends = Vec::new();
        for family in Family::ALL {
            let mut addresses =
                addresses.iter().copied().filter(|a| Family::of(*a) == family).peekable();
            if addresses.peek().is_none() {
                continue;
            }
            let ports: Vec<_> =
                endpoints::resolve(service, self.index.slices(&service.key), &self.here(), family)
                    .into_iter()
                    .map(|port| {
                        (
                            port.port.protocol,
                            port.port.port,
                            Arc::new(endpoints::forwarding(service, &port, family)),
                        )
                    })
                    .collect();
            for address in addresses {
                let with = |(protocol, port, forwarding): &(_, u16, Arc<Forwarding>)| {
                    (FrontendKey { address, protocol: *protocol, port: *port }, forwarding.clone())
                };
                frontends.extend(ports.iter().map(with));
            }
        }
        frontends.sort_by_key(|(key, _)| *key);
        frontends.shrink_to_fit();
        frontends
    }
}

/// Puts the difference into the plan and says whether there is any; keeps the old value where
/// nothing changed: it is shared with the rule set's memory.
fn diff(
    before: &[(FrontendKey, Arc<Forwarding>)],
    next: &mut [(FrontendKey, Arc<Forwarding>)],
    plan: &mut Plan,
    gone: &mut BTreeSet<FrontendKey>,
) -> bool {
    let mut changed = false;
    let before: BTreeMap<_, _> =
        before.iter().map(|(key, forwarding)| (*key, forwarding)).collect();
    for (key, forwarding) in next.iter_mut() {
        match before.get(key) {
            Some(old) if *old == forwarding => *forwarding = Arc::clone(old),
            _ => {
                plan.rule_set.forwardings.insert(*key, Some(forwarding.clone()));
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

/// Says what changed for the people who made the Service; silence when nothing did.
fn emit(key: &ObjectKey, before: &ServiceState, next: &ServiceState, plan: &mut Plan) {
    let mut notice = |warning, reason, mut message: String| {
        message.shrink_to_fit(); // a start makes thousands
        plan.diagnostics.push(Diagnostic {
            warning,
            service: Some(key.clone()),
            node: None,
            reason,
            message,
        })
    };
    if before.addresses != next.addresses && next.phase != ServicePhase::Failed {
        let message = format!(
            "Updated LoadBalancer with new IPs: [{}] -> [{}]",
            list(&before.addresses),
            list(&next.addresses)
        );
        notice(false, "UpdatedLoadBalancer", message);
    }
    for reason in next.reasons.iter().filter(|r| !before.reasons.contains(r)) {
        match &*reason.code {
            // Said by the one who gives it.
            NO_ADDRESS_YET => {}
            "Note" | "Probing" => notice(false, "EnsuringLoadBalancer", reason.message.clone()),
            "UnAvailableLoadBalancer" => {
                notice(true, "UnAvailableLoadBalancer", reason.message.clone())
            }
            _ => notice(true, "SyncLoadBalancerFailed", reason.message.clone()),
        }
    }
    let was_serving = before.phase == ServicePhase::Serving && !before.addresses.is_empty();
    if !next.addresses.is_empty() && next.phase == ServicePhase::Serving && !was_serving {
        notice(false, "EnsuredLoadBalancer", format!("serving on {}", list(&next.addresses)));
    }
}

fn leads_nowhere(port: &ServicePort) -> Reason {
    let name = if port.name.is_empty() { String::new() } else { format!(" ({})", port.name) };
    let message = format!(
        "port {}/{}{name} is refused: there are endpoints, but none of their slices has it; let targetPort be a number, or a name that a port of the containers has",
        port.port, port.protocol
    );
    Reason::new("PortWithoutEndpoints", message)
}
