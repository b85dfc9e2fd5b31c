//! Selects the endpoints that serve a Service port, as Kubernetes defines it, from the Service, its
//! EndpointSlices and this node's topology.
//!
//! Sources: KEP-1669 (terminating endpoints), KEP-2433 and KEP-4444 (topology hints), kube-proxy's
//! `topology.go`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::forwarding::{Backend, Balancing, Forwarding};
use crate::model::{Endpoint, EndpointSlice, Family, Service, ServicePort, TrafficPolicy};

/// The node for which endpoints are resolved.
#[derive(Clone, Copy, Debug)]
pub struct Here<'a> {
    /// This node's name.
    pub node: &'a str,
    /// This node's zone, if it has the label.
    pub zone: Option<&'a str>,
    /// Endpoints that count as down.
    pub dead: &'a Dead,
}

/// Nodes that went down, and their endpoints at that time, until the API server removes them. An
/// endpoint that appears later is up.
pub type Dead = BTreeMap<Box<str>, BTreeSet<IpAddr>>;

/// The endpoints of one Service port in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortBackends {
    /// The port.
    pub port: ServicePort,
    /// Backends on all nodes (policy Cluster). Sorted, without duplicates.
    pub cluster: Vec<Backend>,
    /// Backends on this node (policy Local). Sorted, without duplicates.
    pub local: Vec<Backend>,
}

/// The endpoints of every port of the Service, in the order of its ports. Slices of the other
/// family are passed over.
pub fn resolve<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    here: &Here<'_>,
    family: Family,
) -> Vec<PortBackends> {
    let slices = slices.filter(|slice| slice.family == family);
    let ports = service.ports.iter();
    ports.map(|port| resolve_port(port, slices.clone(), here)).collect()
}

fn resolve_port<'a>(
    port: &ServicePort,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    here: &Here<'_>,
) -> PortBackends {
    // The number comes from the slice: a named target port may differ from pod to pod.
    let joined = slices.filter_map(|slice| Some((slice, slice.port(port)?)));
    let endpoints = joined
        .flat_map(|(slice, number)| slice.endpoints.iter().map(move |endpoint| (endpoint, number)));
    let is_local = |endpoint: &Endpoint| endpoint.node.as_deref() == Some(here.node);
    let backend = |(endpoint, port): (&Endpoint, u16)| Backend {
        address: endpoint.address,
        port,
        local: is_local(endpoint),
    };

    let hints = Hints::agreed(endpoints.clone().map(|(endpoint, _)| endpoint), here);
    let lives = |endpoint: &Endpoint| {
        let dead = endpoint.node.as_ref().and_then(|node| here.dead.get(&**node));
        !dead.is_some_and(|addresses| addresses.contains(&endpoint.address))
    };
    let all = usable(endpoints.clone(), |endpoint| hints.admits(endpoint, here)).map(backend);
    let cluster = if here.dead.is_empty() {
        distinct(all)
    } else {
        let alive = endpoints.clone().filter(|(endpoint, _)| lives(endpoint));
        let hints = Hints::agreed(alive.clone().map(|(endpoint, _)| endpoint), here);
        let alive = distinct(usable(alive, |endpoint| hints.admits(endpoint, here)).map(backend));
        if alive.is_empty() { distinct(all) } else { alive }
    };
    let local = usable(endpoints.clone(), is_local).map(backend);
    PortBackends { port: port.clone(), cluster, local: distinct(local) }
}

/// KEP-1669: within a scope the ready endpoints; if there is none, those that still serve while
/// terminating.
fn usable<'a>(
    endpoints: impl Iterator<Item = (&'a Endpoint, u16)> + Clone,
    scope: impl Fn(&Endpoint) -> bool,
) -> impl Iterator<Item = (&'a Endpoint, u16)> {
    let any_ready = endpoints.clone().any(|(endpoint, _)| endpoint.ready && scope(endpoint));
    endpoints.filter(move |(endpoint, _)| {
        let wanted =
            if any_ready { endpoint.ready } else { endpoint.serving && endpoint.terminating };
        wanted && scope(endpoint)
    })
}

/// One backend per address and port, whatever number of slices name it; local if any of them says
/// so.
fn distinct(backends: impl Iterator<Item = Backend>) -> Vec<Backend> {
    let mut all: Vec<Backend> = backends.collect();
    all.sort_unstable_by_key(|b| (b.address, b.port, !b.local));
    all.dedup_by_key(|b| (b.address, b.port));
    all.shrink_to_fit();
    all
}

/// Topology hints count only when every ready endpoint has one and one of them names us; else all
/// endpoints serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hints {
    Node,
    Zone,
    Ignored,
}

impl Hints {
    fn agreed<'a>(endpoints: impl Iterator<Item = &'a Endpoint> + Clone, here: &Here<'_>) -> Hints {
        let ready = endpoints.filter(|endpoint| endpoint.ready);
        for hints in [Hints::Node, Hints::Zone] {
            let complete = ready.clone().all(|endpoint| !hints.of(endpoint).is_empty());
            if complete && ready.clone().any(|endpoint| hints.admits(endpoint, here)) {
                return hints;
            }
        }
        Hints::Ignored
    }

    fn of(self, endpoint: &Endpoint) -> &[Box<str>] {
        match self {
            Hints::Node => endpoint.node_hints(),
            Hints::Zone => endpoint.zone_hints(),
            Hints::Ignored => &[],
        }
    }

    fn admits(self, endpoint: &Endpoint, here: &Here<'_>) -> bool {
        let wanted = match self {
            Hints::Node => Some(here.node),
            Hints::Zone => here.zone,
            Hints::Ignored => return true,
        };
        // A terminating endpoint of last resort has lost its hints already.
        !endpoint.ready
            || wanted.is_some_and(|wanted| self.of(endpoint).iter().any(|hint| **hint == *wanted))
    }
}

/// Target of connections to this port, at any address of the family.
pub fn forwarding(service: &Service, backends: &PortBackends, family: Family) -> Forwarding {
    let to = |backends: &[Backend]| {
        if service.client_affinity {
            Balancing::ClientIp(backends.to_vec())
        } else {
            Balancing::FlowHash(backends.to_vec())
        }
    };
    let internal =
        if backends.cluster.is_empty() { Balancing::Reject } else { to(&backends.cluster) };
    let external = match service.external {
        TrafficPolicy::Cluster => None,
        // Drop where other nodes may serve, so that a client retries; reject only where no node
        // does.
        TrafficPolicy::Local if internal == Balancing::Reject => None,
        TrafficPolicy::Local if backends.local.is_empty() => Some(Balancing::Drop),
        TrafficPolicy::Local => Some(to(&backends.local)).filter(|external| *external != internal),
    };
    Forwarding { internal, external, sources: sources(service, family) }
}

/// Ranges of one family exclude the other: None allows all sources, an empty list none. Merged,
/// because the kernel refuses intervals that overlap.
fn sources(service: &Service, family: Family) -> Option<Vec<IpNet>> {
    let ranges = service.source_ranges.as_ref()?;
    let ranges: Vec<IpNet> =
        ranges.iter().filter(|range| Family::of(range.addr()) == family).copied().collect();
    let merged = IpNet::aggregate(&ranges);
    let everybody = merged.iter().any(|range| range.prefix_len() == 0);
    (!everybody).then_some(merged)
}

/// Ready endpoints on this node: what a health check of the Service answers. A dual-stack pod has
/// an address in each family and counts once, so the family with more of them decides.
pub fn local_ready<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    node: &str,
) -> usize {
    let count = |family: Family| {
        let endpoints = slices
            .clone()
            .filter(|slice| slice.family == family)
            .flat_map(|slice| &slice.endpoints);
        let here = endpoints
            .filter(|e| e.ready && e.node.as_deref() == Some(node))
            .map(|endpoint| endpoint.address);
        here.collect::<BTreeSet<IpAddr>>().len()
    };
    Family::ALL.into_iter().map(count).max().unwrap_or(0)
}

/// The ports of the Service that lead nowhere although there are endpoints: no slice that has any
/// names them. Mostly that is a `targetPort` by a name that no container has. While there are no
/// endpoints at all it says nothing about ports.
pub fn unmatched<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
) -> Vec<&ServicePort> {
    let mut populated = slices.filter(|slice| !slice.endpoints.is_empty()).peekable();
    if populated.peek().is_none() {
        return Vec::new();
    }
    let named = |port: &&ServicePort| populated.clone().any(|slice| slice.port(port).is_some());
    service.ports.iter().filter(|port| !named(port)).collect()
}

/// Where the clients of a Local Service can be sent, for any of its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// To no node: every node rejects connections.
    Nowhere,
    /// Not to this one.
    Elsewhere,
    /// To this one.
    Here,
}

/// [`Reach`] within one family.
pub fn reach<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    here: &Here<'_>,
    family: Family,
) -> Reach {
    let ports = resolve(service, slices, here, family);
    match ports.iter().any(|port| !port.local.is_empty()) {
        true => Reach::Here,
        false if ports.iter().all(|port| port.cluster.is_empty()) => Reach::Nowhere,
        false => Reach::Elsewhere,
    }
}

#[cfg(test)]
#[path = "endpoints_tests.rs"]
mod tests;
