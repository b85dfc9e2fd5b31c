//! Decisions that persist from event to event.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::ipam::{Ipam, NodePorts};
use crate::k8s::status::StatusReconciler;
use crate::model::forwarding::{Forwarding, FrontendKey};
use crate::model::state::Reason;
use crate::model::{Mode, ObjectKey};

/// Addresses, ports and statuses of all Services. Who owns an address is decided in
/// [`super::election`].
pub(super) struct Decisions {
    pub ipam: Ipam,
    pub node_ports: NodePorts,
    pub services: BTreeMap<ObjectKey, ServiceState>,
    pub status: StatusReconciler,
}

/// Decisions about one Service.
#[derive(Debug, Default)]
pub(super) struct ServiceState {
    pub mode: Option<Mode>,
    /// What clients may use; empty while pending or failed.
    pub addresses: Vec<IpAddr>,
    /// What clients use until the status names `addresses`.
    pub draining_addresses: Vec<IpAddr>,
    /// What was emitted for the ruleset, sorted.
    pub frontends: Vec<(FrontendKey, Arc<Forwarding>)>,
    /// The event with which `frontends` changed last.
    pub generation: u64,
    /// Why the Service is not served, or not fully.
    pub reasons: Vec<Reason>,
    pub phase: ServicePhase,
}

impl ServiceState {
    /// Every address that is kept for the Service.
    pub fn held(&self) -> Vec<IpAddr> {
        [&*self.addresses, &*self.draining_addresses].concat()
    }
}

/// How far a Service has come, as far as allocation is concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ServicePhase {
    #[default]
    Serving,
    /// It will be served once something passes by itself: a probe, a link.
    Pending,
    /// The Service is not served until an operator changes something.
    Failed,
    /// Pinnace does not manage the Service.
    Unmanaged,
}
