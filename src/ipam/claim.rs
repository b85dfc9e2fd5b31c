//! On what terms Services hold addresses, and which of them may share one.

use std::net::IpAddr;

use crate::model::{ObjectKey, Protocol, Service, TrafficPolicy};

/// On what terms a Service holds an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    sharing: Option<Box<str>>,
    /// Sorted.
    ports: Box<[(Protocol, u16)]>,
    policy: TrafficPolicy,
    selector: Option<Box<str>>,
    /// `metadata.creationTimestamp`.
    created: i64,
    /// What its status says it has.
    published: Vec<IpAddr>,
}

impl Claim {
    pub(super) fn of(service: &Service) -> Claim {
        let mut ports: Box<[_]> = service.ports.iter().map(|p| (p.protocol, p.port)).collect();
        ports.sort_unstable();
        Claim {
            sharing: service.request.sharing.clone(),
            ports,
            policy: service.external,
            selector: service.selector.clone(),
            created: service.created,
            published: service.published.clone(),
        }
    }

    /// The lower one keeps the address when two may not share it: every node knows the same
    /// statuses and ages, so every node decides alike.
    pub(super) fn rank<'a>(
        &self,
        key: &'a ObjectKey,
        address: IpAddr,
    ) -> (bool, i64, &'a ObjectKey) {
        (!self.published.contains(&address), self.created, key)
    }

    /// One key, no port in common, and packets that may go to the same nodes: both Cluster, or both
    /// Local with the same pods.
    pub(super) fn agrees(&self, other: &Claim) -> bool {
        let same_nodes = match (self.policy, other.policy) {
            (TrafficPolicy::Cluster, TrafficPolicy::Cluster) => true,
            (TrafficPolicy::Local, TrafficPolicy::Local) => self.selector == other.selector,
            _ => false,
        };
        self.sharing.is_some()
            && self.sharing == other.sharing
            && same_nodes
            && !self.ports.iter().any(|port| other.ports.binary_search(port).is_ok())
    }

    /// What [`Claim::agrees`] looks at.
    pub(super) fn terms(&self) -> impl PartialEq + use<'_> {
        (&self.sharing, &self.ports, self.policy, &self.selector)
    }
}
