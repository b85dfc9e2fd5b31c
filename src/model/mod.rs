//! The vocabulary: Services, EndpointSlices, Nodes and interfaces as compact values, converted at
//! the edge from whatever source (manifests, API server). Everything here is plain data; meaning is
//! added by the other rooms.

pub mod diagnostic;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod forwarding;
pub mod gateways;
pub mod mac;
pub mod on_exit;
pub mod role;
pub mod ruleset_changes;
pub mod source_update;
pub mod state;
pub mod trigger_time;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// An IP address family. Code takes it as a value; nothing is written twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    /// IPv4
    #[serde(rename = "IPv4")]
    V4,
    /// IPv6
    #[serde(rename = "IPv6")]
    V6,
}

impl Family {
    /// Both, in the order in which they are reported.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// The address family number of the kernel, AF_INET or AF_INET6; also NFPROTO_IPV4 or
    /// NFPROTO_IPV6.
    pub fn af(self) -> u8 {
        const AF_INET: u8 = 2;
        const AF_INET6: u8 = 10;
        match self {
            Family::V4 => AF_INET,
            Family::V6 => AF_INET6,
        }
    }

    /// The family's keyword in nft's language.
    pub fn nft(self) -> &'static str {
        match self {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// A transport protocol a Service port can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// The default of the Kubernetes API.
    Tcp,
    /// Connectionless: removed endpoints need their conntrack entries deleted.
    Udp,
    /// Without multihoming (KEP-614).
    Sctp,
}

impl Protocol {
    /// IANA protocol number.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        })
    }
}

impl FromStr for Protocol {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "TCP" => Ok(Protocol::Tcp),
            "UDP" => Ok(Protocol::Udp),
            "SCTP" => Ok(Protocol::Sctp),
            other => Err(format!("protocol {other:?} is not TCP, UDP or SCTP")),
        }
    }
}

/// `namespace/name` of a Service or EndpointSlice. Many hold the same one: its texts are shared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ObjectKey {
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Object name, unique in the namespace for its kind.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// A key from its two parts.
    pub fn new(namespace: &str, name: &str) -> ObjectKey {
        ObjectKey { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl From<ObjectKey> for String {
    fn from(key: ObjectKey) -> String {
        key.to_string()
    }
}

impl TryFrom<String> for ObjectKey {
    type Error = String;
    fn try_from(s: String) -> Result<ObjectKey, String> {
        let (namespace, name) =
            s.split_once('/').ok_or_else(|| format!("{s:?} is not namespace/name"))?;
        Ok(ObjectKey::new(namespace, name))
    }
}

/// Where a Service gets its addresses from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// A virtual address from a pool, announced by one node.
    Vip,
    /// The nodes' own addresses, as K3s ServiceLB does.
    Node,
}

/// `spec.externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TrafficPolicy {
    /// All endpoints; the source address may be lost.
    #[default]
    Cluster,
    /// Endpoints of the receiving node only; the source address is kept.
    Local,
}

/// A Service of type LoadBalancer, reduced to what decides about it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Service {
    /// Who it is.
    pub key: ObjectKey,
    /// `metadata.creationTimestamp` as seconds since the epoch, 0 when absent: the older Service
    /// wins a conflict.
    pub created: i64,
    /// `spec.loadBalancerClass`.
    pub class: Option<Box<str>>,
    /// `spec.ipFamilies`, or derived from clusterIPs; empty when the object says nothing (then the
    /// pools decide).
    pub families: Vec<Family>,
    /// `spec.ipFamilyPolicy` is RequireDualStack: a missing family is an error and not merely
    /// absent.
    pub require_dual_stack: bool,
    /// Valid ports only; invalid ones are in `problems`.
    pub ports: Vec<ServicePort>,
    /// `spec.externalTrafficPolicy`.
    pub external: TrafficPolicy,
    /// `spec.sessionAffinity` is ClientIP.
    pub client_affinity: bool,
    /// `spec.loadBalancerSourceRanges`, else the annotation; None when neither is set. An invalid
    /// range is a problem and admits nobody.
    pub source_ranges: Option<Vec<IpNet>>,
    /// What the user asks for by annotations and `spec.loadBalancerIP`.
    pub request: Request,
    /// The label `svccontroller.k3s.cattle.io/lbpool`.
    pub node_pool: Option<Box<str>>,
    /// A digest of `spec.selector`, None without one: two Local Services may share an address only
    /// when it is equal.
    pub selector: Option<Box<str>>,
    /// Addresses read from `status.loadBalancer.ingress`: a hint for sticky allocation, never
    /// trusted beyond our own pools.
    pub published: Vec<IpAddr>,
    /// What is wrong with the object, in plain sentences that name the field; the rest of it still
    /// serves.
    pub problems: Vec<String>,
    /// What the API server keeps about it beside its spec; None when it comes from a manifest.
    pub api: Option<Box<ApiMetadata>>,
}

impl Service {
    /// Gives back what its lists have room for and do not use: there are thousands, and most have
    /// one entry where four would fit.
    pub fn shrink_to_fit(&mut self) {
        self.families.shrink_to_fit();
        self.ports.shrink_to_fit();
        self.source_ranges.iter_mut().for_each(Vec::shrink_to_fit);
        self.request.addresses.shrink_to_fit();
        self.request.prefer_nodes.shrink_to_fit();
        self.published.shrink_to_fit();
        self.problems.shrink_to_fit();
    }
}

/// The part of a Service that the writer of its status must know.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ApiMetadata {
    /// `metadata.uid`: a Service that was deleted and made anew is another one. Shared, as the
    /// rest is, with what is to be written.
    pub uid: Arc<str>,
    /// `metadata.resourceVersion`: a write that does not name the newest one is refused by the API
    /// server.
    pub resource_version: Arc<str>,
    /// `status.loadBalancer.ingress` as it stands, whoever wrote it.
    pub ingress: Arc<[Ingress]>,
    /// The finalizer `service.kubernetes.io/load-balancer-cleanup` is set.
    pub cleanup_finalizer: bool,
    /// `metadata.deletionTimestamp` is set, or the type is no longer LoadBalancer.
    pub deleting: bool,
}

/// One entry of `status.loadBalancer.ingress`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ingress {
    /// `ip`, where it can be read.
    pub ip: Option<IpAddr>,
    /// `hostname`: never ours, other implementations write it.
    pub hostname: Option<Box<str>>,
    /// `ipMode` is VIP; None when it is absent.
    pub vip: Option<bool>,
    /// `ports`.
    pub ports: Box<[IngressPort]>,
}

/// One entry of an ingress's `ports`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IngressPort {
    /// 1..=65535.
    pub port: u16,
    /// Transport.
    pub protocol: Protocol,
    /// CamelCase, or with the domain as prefix: why this port is not served.
    pub error: Option<Box<str>>,
}

/// Requests by annotation, whichever system's name they were written under.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Request {
    /// `pinnace.dev/mode`.
    pub mode: Option<Mode>,
    /// `pinnace.dev/addresses` and its equivalents, `spec.loadBalancerIP`: these and no others.
    pub addresses: Vec<IpAddr>,
    /// `pinnace.dev/pool` and its equivalents.
    pub pool: Option<Box<str>>,
    /// `pinnace.dev/allow-shared-ip` and its equivalents: Services with an equal key may share an
    /// address.
    pub sharing: Option<Box<str>>,
    /// `pinnace.dev/prefer-nodes`: who should answer for its addresses, best first; all others if
    /// none of these can.
    pub prefer_nodes: Vec<Box<str>>,
    /// `kube-vip.io/ignore`: somebody else serves it, or nobody.
    #[serde(default)]
    pub ignore: bool,
}

/// One entry of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ServicePort {
    /// Empty when unnamed; joins with the port name in the slices.
    pub name: Box<str>,
    /// Transport.
    pub protocol: Protocol,
    /// 1..=65535, what clients connect to.
    pub port: u16,
}

/// An EndpointSlice of one Service in one family. FQDN slices are not converted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EndpointSlice {
    /// Who it is.
    pub key: ObjectKey,
    /// Label `kubernetes.io/service-name`, in the same namespace.
    pub service: Arc<str>,
    /// `addressType`.
    pub family: Family,
    /// Ports with a number (nil and 0 are skipped).
    pub ports: Vec<SlicePort>,
    /// In the order of the object.
    pub endpoints: Vec<Endpoint>,
}

impl EndpointSlice {
    /// Where its endpoints listen for this port of the Service, 1..=65535.
    pub fn port(&self, port: &ServicePort) -> Option<u16> {
        self.ports
            .iter()
            .find(|own| own.name == port.name && own.protocol == port.protocol)
            .map(|own| own.port)
    }

    /// See [`Service::shrink_to_fit`].
    pub fn shrink_to_fit(&mut self) {
        self.ports.shrink_to_fit();
        self.endpoints.shrink_to_fit();
    }
}

/// One entry of a slice's `ports`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SlicePort {
    /// Equal to the Service port's name.
    pub name: Box<str>,
    /// Equal to the Service port's protocol.
    pub protocol: Protocol,
    /// The target port at the pod, 1..=65535.
    pub port: u16,
}

/// One endpoint; `addresses[0]` only, as kube-proxy does.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    /// The pod's address.
    pub address: IpAddr,
    /// None: not local to any node (selectorless Services).
    pub node: Option<Arc<str>>,
    /// `conditions.ready`, nil → true. Encodes publishNotReadyAddresses already.
    pub ready: bool,
    /// `conditions.serving`, nil → true.
    pub serving: bool,
    /// `conditions.terminating`, nil → false.
    pub terminating: bool,
    /// `hints`; most have none, and endpoints are many.
    pub hints: Option<Box<EndpointHints>>,
}

impl Endpoint {
    /// `hints.forZones`; empty without.
    pub fn zone_hints(&self) -> &[Box<str>] {
        self.hints.as_deref().map_or(&[], |hints| &hints.zones)
    }

    /// `hints.forNodes`; empty without.
    pub fn node_hints(&self) -> &[Box<str>] {
        self.hints.as_deref().map_or(&[], |hints| &hints.nodes)
    }
}

/// For whom an endpoint is meant, by KEP-2433 and KEP-4444.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EndpointHints {
    /// `forZones`.
    pub zones: Vec<Box<str>>,
    /// `forNodes`.
    pub nodes: Vec<Box<str>>,
}

/// A Node, reduced to what decides about it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Node {
    /// `metadata.name`.
    pub name: Box<str>,
    /// `status.addresses` of type InternalIP.
    pub internal: Vec<IpAddr>,
    /// `status.addresses` of type ExternalIP.
    pub external: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Box<str>>,
    /// Why it must not serve load balancers: the exclude label, a deletionTimestamp or the
    /// autoscaler's taint.
    pub excluded: Option<Exclusion>,
    /// Label `svccontroller.k3s.cattle.io/enablelb`: None without the label, else whether its
    /// value is "true".
    pub enable_lb: Option<bool>,
    /// Label `svccontroller.k3s.cattle.io/lbpool`.
    pub pool: Option<Box<str>>,
}

/// Why a Node is excluded from load balancing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exclusion {
    /// Label `node.kubernetes.io/exclude-from-external-load-balancers`.
    Label,
    /// `metadata.deletionTimestamp` is set.
    Deleting,
    /// Taint `ToBeDeletedByClusterAutoscaler`.
    Autoscaler,
}

/// The network interfaces of this host, as one snapshot: index → interface.
pub type Interfaces = BTreeMap<u32, Interface>;

/// One network interface of this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Kernel interface index.
    pub index: u32,
    /// Name, e.g. `eth0`.
    pub name: Box<str>,
    /// Hardware address; None for interfaces without Ethernet addressing.
    pub mac: Option<[u8; 6]>,
    /// `IFLA_INFO_KIND` ("veth", "bridge", "vlan", "bond", "wireguard"…); empty for hardware.
    pub kind: Box<str>,
    /// Administratively up and with carrier (IFF_UP and IFF_LOWER_UP).
    pub up: bool,
    /// How often the link went up or down so far (IFLA_CARRIER_CHANGES), wrapping: tells of a link
    /// that was away between two snapshots.
    pub carrier_changes: u32,
    /// IFF_LOOPBACK.
    pub loopback: bool,
    /// Index of the bridge or bond it is a port of.
    pub master: Option<u32>,
    /// Indices of the ports that carry its traffic when it is an active-backup bond, or a VLAN,
    /// macvlan or bridge above one: they change when the bond fails over, and nothing else
    /// need change.
    pub active_ports: BTreeSet<u32>,
    /// IPv6 is on: the kernel has it and `disable_ipv6` is 0.
    pub ipv6: bool,
    /// Addresses with prefix length, global scope only, tentative ones left out.
    pub addresses: BTreeSet<IpNet>,
}

/// One object of a source (manifests, API server) that appeared, changed or, with None, went away.
#[derive(Clone, Debug, PartialEq)]
pub enum SourceChange {
    /// A Service of type LoadBalancer; None also when its type became another.
    Service(ObjectKey, Option<Box<Service>>),
    /// An EndpointSlice of a Service.
    Slice(ObjectKey, Option<Box<EndpointSlice>>),
    /// A Node, by name.
    Node(Box<str>, Option<Box<Node>>),
    /// A list of all objects of this kind begins.
    ListStart(Kind),
    /// The list is complete: objects of this kind that it did not contain are gone.
    ListEnd(Kind),
}

/// The kinds of objects that are read, in the order in which changes of manifests are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// core/v1 Node
    Node,
    /// core/v1 Service
    Service,
    /// discovery.k8s.io/v1 EndpointSlice
    EndpointSlice,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 3] = [Kind::Node, Kind::Service, Kind::EndpointSlice];

    /// As written in `kind:`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Node => "Node",
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
        }
    }

    /// As written in `apiVersion:`.
    pub fn api_version(self) -> &'static str {
        match self {
            Kind::Node | Kind::Service => "v1",
            Kind::EndpointSlice => "discovery.k8s.io/v1",
        }
    }
}
