//! API objects become the compact structs that decisions are made from. What cannot be used is left
//! out and said; the rest still serves.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::hash::Hash;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use siphasher::sip128::{Hasher128, SipHasher13};

use super::annotations::request;
use super::objects;
use super::problems::{Problems, quoted};
use crate::model::trigger_time::TriggerTime;
use crate::model::{
    ApiMetadata, Endpoint, EndpointHints, EndpointSlice, Exclusion, Family, Ingress, IngressPort,
    Node, ObjectKey, Protocol, Service, ServicePort, SlicePort, TrafficPolicy,
};

/// Joins a slice with its Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// Source ranges for those who cannot set `spec.loadBalancerSourceRanges`.
pub const SOURCE_RANGES_ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
/// Keeps a Service from disappearing before its load balancer is gone; the standard service
/// controllers set it.
pub const CLEANUP_FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
const LAST_CHANGE_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const EXCLUDE_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
const AUTOSCALER_TAINT: &str = "ToBeDeletedByClusterAutoscaler";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
const ENABLE_LB_LABEL: &str = "svccontroller.k3s.cattle.io/enablelb";
const LB_POOL_LABEL: &str = "svccontroller.k3s.cattle.io/lbpool";

/// A converted object, beside what is wrong with it in plain sentences that name the field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Converted<T> {
    /// None: the object is none of our business, or nothing of it can be used.
    pub value: Option<T>,
    /// Why less than the whole object is in `value`.
    pub problems: Vec<String>,
}

/// A Service of type LoadBalancer. None for any other type: it counts as absent, unless it was one
/// and kept the finalizer. So does one that is being deleted, unless it comes from the API server,
/// where somebody has to finish its deletion: then its [`Record`] says so.
pub fn service(object: &objects::Service) -> Option<Service> {
    let spec = object.spec.as_ref()?;
    let mut record = record(object);
    if spec.r#type.as_deref() != Some("LoadBalancer") {
        // The finalizer of one that was a load balancer is in the way of its deletion, and nobody
        // else takes it off.
        record = record
            .filter(|record| record.cleanup_finalizer)
            .map(|record| ApiMetadata { deleting: true, ..record });
        record.as_ref()?;
    }
    if object.metadata.deletion_timestamp.is_some() && record.is_none() {
        return None;
    }
    let mut problems = Problems::default();
    let no_annotations = BTreeMap::new();
    let annotations = object.metadata.annotations.as_ref().unwrap_or(&no_annotations);
    let cluster_ips: Vec<&str> = match &spec.cluster_ips {
        Some(list) if !list.is_empty() => list.iter().map(String::as_str).collect(),
        _ => spec.cluster_ip.as_deref().into_iter().collect(),
    };
    let headless = cluster_ips.contains(&"None");
    if headless {
        problems.push(
            "spec.clusterIP: a headless Service (None) cannot be a load balancer; it is not served"
                .into(),
        );
    }
    let mut families = match spec.ip_families.as_deref() {
        Some(list) if !list.is_empty() => {
            list.iter().filter_map(|name| family("spec.ipFamilies", name, &mut problems)).collect()
        }
        _ => {
            cluster_ips.iter().filter_map(|ip| ip.parse().ok()).map(Family::of).collect::<Vec<_>>()
        }
    };
    // The API server completes the list by what the cluster has; a manifest is taken at its word.
    if record.is_none()
        && matches!(spec.ip_family_policy.as_deref(), Some("PreferDualStack" | "RequireDualStack"))
    {
        families.extend(Family::ALL);
    }
    let external = match spec.external_traffic_policy.as_deref() {
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            problems.push(format!(
                "spec.externalTrafficPolicy: {} is not Cluster or Local; Cluster is assumed",
                quoted(other)
            ));
            TrafficPolicy::Cluster
        }
    };
    let client_affinity = match spec.session_affinity.as_deref() {
        None | Some("" | "None") => false,
        Some("ClientIP") => true,
        Some(other) => {
            problems.push(format!(
                "spec.sessionAffinity: {} is not None or ClientIP; None is assumed",
                quoted(other)
            ));
            false
        }
    };
    let published = object
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref()?.ingress.as_deref())
        .unwrap_or_default();
    Some(Service {
        key: key(&object.metadata),
        created: object.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        class: spec.load_balancer_class.as_deref().filter(|class| !class.is_empty()).map(Box::from),
        families: distinct(families),
        require_dual_stack: spec.ip_family_policy.as_deref() == Some("RequireDualStack"),
        ports: if headless {
            Vec::new()
        } else {
            service_ports(spec.ports.as_deref().unwrap_or_default(), &mut problems)
        },
        external,
        client_affinity,
        source_ranges: source_ranges(
            spec.load_balancer_source_ranges.as_deref(),
            annotations,
            &mut problems,
        ),
        request: request(annotations, spec.load_balancer_ip.as_deref(), &mut problems),
        node_pool: label(&object.metadata, LB_POOL_LABEL)
            .filter(|pool| !pool.is_empty())
            .map(Box::from),
        selector: spec
            .selector
            .as_ref()
            .filter(|selector| !selector.is_empty())
            .map(selector_digest),
        published: published
            .iter()
            .filter_map(|ingress| ingress.ip.as_deref()?.trim().parse().ok())
            .collect(),
        problems: problems.into_sentences(),
        api: record.map(Box::new),
    })
}

/// What the writer of the status must know. Only the API server gives objects a `resourceVersion`.
fn record(object: &objects::Service) -> Option<ApiMetadata> {
    let metadata = &object.metadata;
    let resource_version =
        metadata.resource_version.as_deref().filter(|version| !version.is_empty())?;
    let ingress = object
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref()?.ingress.as_deref())
        .unwrap_or_default();
    Some(ApiMetadata {
        uid: metadata.uid.as_deref().unwrap_or_default().into(),
        resource_version: resource_version.into(),
        ingress: ingress.iter().map(convert_ingress).collect(),
        cleanup_finalizer: metadata
            .finalizers
            .iter()
            .flatten()
            .any(|finalizer| finalizer == CLEANUP_FINALIZER),
        deleting: metadata.deletion_timestamp.is_some(),
    })
}

fn convert_ingress(object: &objects::LoadBalancerIngress) -> Ingress {
    let port = |port: &objects::PortStatus| {
        Some(IngressPort {
            port: u16::try_from(port.port).ok().filter(|port| *port != 0)?,
            protocol: port.protocol.parse().ok()?,
            error: port.error.as_deref().map(Box::from),
        })
    };
    Ingress {
        ip: object.ip.as_deref().and_then(|ip| ip.trim().parse().ok()),
        hostname: object.hostname.as_deref().map(Box::from),
        vip: object.ip_mode.as_deref().map(|mode| mode == "VIP"),
        ports: object.ports.iter().flatten().filter_map(port).collect(),
    }
}

fn service_ports(ports: &[objects::ServicePort], problems: &mut Problems) -> Vec<ServicePort> {
    if ports.is_empty() {
        problems.push("spec.ports: a load balancer needs at least one port".into());
    }
    let mut kept = Vec::with_capacity(ports.len());
    let (mut numbers, mut names) = (BTreeSet::new(), BTreeSet::new());
    for (index, port) in ports.iter().enumerate() {
        let field = format_args!("spec.ports[{index}]");
        let name = port.name.as_deref().unwrap_or_default();
        let Some(protocol) = protocol(field, port.protocol.as_deref(), problems) else { continue };
        let Some(number) = port_number(field, port.port, problems) else { continue };
        if !numbers.insert((number, protocol)) {
            problems.push(format!(
                "{field}: {protocol} port {number} is listed twice; the first entry is used"
            ));
        } else if !names.insert((name, protocol)) {
            problems.push(format!(
                "{field}.name: {} is used by another {protocol} port, so their endpoints cannot be told apart; this entry is not served",
                quoted(name)
            ));
        } else {
            kept.push(ServicePort { name: name.into(), protocol, port: number });
        }
    }
    kept
}

/// The field when it lists anything, else the annotation; an empty annotation admits everybody, as
/// in the API server's own reading.
fn source_ranges(
    field: Option<&[String]>,
    annotations: &BTreeMap<String, String>,
    problems: &mut Problems,
) -> Option<Vec<IpNet>> {
    let (name, list): (&str, Vec<&str>) = match field {
        Some(list) if !list.is_empty() => {
            ("spec.loadBalancerSourceRanges", list.iter().map(String::as_str).collect())
        }
        _ => {
            let text = annotations
                .get(SOURCE_RANGES_ANNOTATION)
                .map(|text| text.trim())
                .filter(|text| !text.is_empty())?;
            (
                SOURCE_RANGES_ANNOTATION,
                text.split(',').filter(|item| !item.trim().is_empty()).collect(),
            )
        }
    };
    let read = |item: &str| match item.trim().parse::<IpNet>() {
        Ok(range) => Some(range.trunc()),
        Err(_) => {
            let fix = match item.trim().parse::<IpAddr>() {
                Ok(address) => format!("write {}", IpNet::from(address)),
                Err(_) => "write an address and a prefix length, e.g. 192.0.2.0/24".into(),
            };
            problems.push(format!(
                "{name}: {} is no range and admits nobody; {fix}",
                quoted(item.trim())
            ));
            None
        }
    };
    Some(distinct(list.into_iter().filter_map(read).collect()))
}

/// Local Services may share an address only when they select the same pods, so equality is all that
/// is kept of the selector.
fn selector_digest(selector: &BTreeMap<String, String>) -> Box<str> {
    let mut hasher = SipHasher13::new();
    selector.hash(&mut hasher);
    format!("{:032x}", hasher.finish128().as_u128()).into()
}

/// An EndpointSlice of a Service. None for FQDN slices and for those that belong to no Service.
pub fn endpoint_slice(object: &objects::EndpointSlice) -> Converted<EndpointSlice> {
    let mut problems = Problems::default();
    let value = convert_slice(object, &mut problems);
    Converted { value, problems: problems.into_sentences() }
}

/// When the endpoint changed that made somebody write this slice.
pub fn last_change(object: &objects::EndpointSlice) -> Option<TriggerTime> {
    let text = object.metadata.annotations.as_ref()?.get(LAST_CHANGE_ANNOTATION)?;
    trigger_time(text)
}

/// RFC 3339, as the API writes times. None for anything else and for times before 1970.
fn trigger_time(text: &str) -> Option<TriggerTime> {
    let nanoseconds = text.parse::<Timestamp>().ok()?.as_nanosecond();
    let nanoseconds = u64::try_from(nanoseconds).ok()?;
    Some(TriggerTime::new(Duration::from_nanos(nanoseconds)))
}

fn convert_slice(
    object: &objects::EndpointSlice,
    problems: &mut Problems,
) -> Option<EndpointSlice> {
    if object.address_type == "FQDN" {
        return None;
    }
    let family = family("addressType", &object.address_type, problems)?;
    let Some(service) = label(&object.metadata, SERVICE_NAME_LABEL).filter(|name| !name.is_empty())
    else {
        problems.push(format!("metadata.labels: without {SERVICE_NAME_LABEL} the slice belongs to no Service and is not used"));
        return None;
    };
    let mut ports = Vec::new();
    for (index, port) in object.ports.as_deref().unwrap_or_default().iter().enumerate() {
        let Some(number) = port.port.filter(|number| *number != 0) else { continue };
        let field = format_args!("ports[{index}]");
        let Some(protocol) = protocol(field, port.protocol.as_deref(), problems) else { continue };
        let Some(number) = port_number(field, number, problems) else { continue };
        ports.push(SlicePort {
            name: port.name.as_deref().unwrap_or_default().into(),
            protocol,
            port: number,
        });
    }
    let mut endpoints = Vec::with_capacity(object.endpoints.len());
    for (index, endpoint) in object.endpoints.iter().enumerate() {
        if let Some(address) = endpoint_address(index, endpoint, family, problems) {
            endpoints.push(convert_endpoint(address, endpoint, &endpoints));
        }
    }
    Some(EndpointSlice {
        key: key(&object.metadata),
        service: service.into(),
        family,
        ports,
        endpoints,
    })
}

fn endpoint_address(
    index: usize,
    endpoint: &objects::Endpoint,
    family: Family,
    problems: &mut Problems,
) -> Option<IpAddr> {
    let field = format_args!("endpoints[{index}].addresses[0]");
    let Some(text) = endpoint.addresses.first() else {
        problems.push(format!("{field}: missing; the endpoint is not used"));
        return None;
    };
    match text.parse::<IpAddr>() {
        Ok(address) if Family::of(address) != family => {
            problems.push(format!("{field}: {address} is not of the slice's addressType {family}; the endpoint is not used"));
            None
        }
        Ok(address) if !can_be_backend(address) => {
            problems.push(format!(
                "{field}: {address} cannot be reached from other hosts; the endpoint is not used"
            ));
            None
        }
        Ok(address) => Some(address),
        Err(_) => {
            problems.push(format!(
                "{field}: {} is not an IP address; the endpoint is not used",
                quoted(text)
            ));
            None
        }
    }
}

/// Names of nodes are shared with the endpoints before it in the slice.
fn convert_endpoint(
    address: IpAddr,
    endpoint: &objects::Endpoint,
    before: &[Endpoint],
) -> Endpoint {
    let conditions = endpoint.conditions.as_ref();
    let shared = |name: &str| {
        before
            .iter()
            .rev()
            .filter_map(|other| other.node.as_ref())
            .find(|node| ***node == *name)
            .cloned()
    };
    let node = endpoint
        .node_name
        .as_deref()
        .filter(|node| !node.is_empty())
        .map(|name| shared(name).unwrap_or_else(|| name.into()));
    Endpoint {
        address,
        node,
        ready: conditions.and_then(|conditions| conditions.ready).unwrap_or(true),
        serving: conditions.and_then(|conditions| conditions.serving).unwrap_or(true),
        terminating: conditions.and_then(|conditions| conditions.terminating).unwrap_or(false),
        hints: endpoint.hints.as_ref().and_then(convert_hints),
    }
}

fn convert_hints(hints: &objects::EndpointHints) -> Option<Box<EndpointHints>> {
    let zones: Vec<Box<str>> =
        hints.for_zones.iter().flatten().map(|zone| zone.name.as_str().into()).collect();
    let nodes: Vec<Box<str>> =
        hints.for_nodes.iter().flatten().map(|node| node.name.as_str().into()).collect();
    (!zones.is_empty() || !nodes.is_empty()).then(|| Box::new(EndpointHints { zones, nodes }))
}

/// The addresses the API server refuses in endpoints: a packet translated to one of them goes
/// nowhere.
fn can_be_backend(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => {
            address.is_unicast_link_local() || address.to_ipv4_mapped().is_some()
        }
    };
    !(link_local || address.is_unspecified() || address.is_loopback() || address.is_multicast())
}

/// A Node. Always has a value; addresses and ranges that cannot be read are left out.
pub fn node(object: &objects::Node) -> Converted<Node> {
    let mut problems = Problems::default();
    let addresses =
        object.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let mut of_type = |kind: &str| {
        let mut list = Vec::new();
        for (index, entry) in addresses.iter().enumerate().filter(|(_, entry)| entry.r#type == kind)
        {
            match entry.address.trim().parse() {
                Ok(address) => list.push(address),
                Err(_) => problems.push(format!(
                    "status.addresses[{index}]: {} is not an IP address",
                    quoted(&entry.address)
                )),
            }
        }
        distinct(list)
    };
    let (internal, external) = (of_type("InternalIP"), of_type("ExternalIP"));
    let mut pod_cidrs = Vec::new();
    if let Some(spec) = &object.spec {
        let (field, list) = match spec.pod_cidrs.as_deref() {
            Some(list) if !list.is_empty() => ("spec.podCIDRs", list),
            _ => ("spec.podCIDR", spec.pod_cidr.as_slice()),
        };
        for text in list.iter().filter(|text| !text.is_empty()) {
            match text.trim().parse::<IpNet>() {
                Ok(range) => pod_cidrs.push(range.trunc()),
                Err(_) => problems.push(format!(
                    "{field}: {} is no address range such as 10.42.0.0/24",
                    quoted(text)
                )),
            }
        }
    }
    let value = Node {
        name: object.metadata.name.as_deref().unwrap_or_default().into(),
        internal,
        external,
        pod_cidrs: distinct(pod_cidrs),
        zone: label(&object.metadata, ZONE_LABEL).filter(|zone| !zone.is_empty()).map(Box::from),
        excluded: exclusion(object),
        enable_lb: label(&object.metadata, ENABLE_LB_LABEL).map(|value| value == "true"),
        pool: label(&object.metadata, LB_POOL_LABEL).filter(|pool| !pool.is_empty()).map(Box::from),
    };
    Converted { value: Some(value), problems: problems.into_sentences() }
}

fn exclusion(object: &objects::Node) -> Option<Exclusion> {
    // The spellings of false that Go's strconv.ParseBool takes, for that is what wrote and reads
    // this label elsewhere.
    let includes = |value: &str| matches!(value, "0" | "f" | "F" | "false" | "FALSE" | "False");
    let taints = object.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    if object.metadata.deletion_timestamp.is_some() {
        Some(Exclusion::Deleting)
    } else if label(&object.metadata, EXCLUDE_LABEL).is_some_and(|value| !includes(value)) {
        Some(Exclusion::Label)
    } else if taints.iter().any(|taint| taint.key == AUTOSCALER_TAINT) {
        Some(Exclusion::Autoscaler)
    } else {
        None
    }
}

/// Namespace (`default` when absent) and name.
pub fn key(metadata: &ObjectMeta) -> ObjectKey {
    let namespace = metadata
        .namespace
        .as_deref()
        .filter(|namespace| !namespace.is_empty())
        .unwrap_or("default");
    ObjectKey::new(namespace, metadata.name.as_deref().unwrap_or_default())
}

fn label<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(name).map(String::as_str)
}

fn family(field: &str, name: &str, problems: &mut Problems) -> Option<Family> {
    match name {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        other => {
            problems.push(format!("{field}: {} is not IPv4 or IPv6", quoted(other)));
            None
        }
    }
}

fn protocol(field: impl Display, name: Option<&str>, problems: &mut Problems) -> Option<Protocol> {
    match name.filter(|name| !name.is_empty()) {
        None => Some(Protocol::Tcp),
        Some(name) => name
            .parse()
            .map_err(|_| {
                problems.push(format!(
                    "{field}.protocol: {} is not TCP, UDP or SCTP; the port is not served",
                    quoted(name)
                ))
            })
            .ok(),
    }
}

fn port_number(field: impl Display, number: i32, problems: &mut Problems) -> Option<u16> {
    match u16::try_from(number) {
        Ok(number) if number != 0 => Some(number),
        _ => {
            problems.push(format!(
                "{field}.port: {number} is not between 1 and 65535; the port is not served"
            ));
            None
        }
    }
}

/// Without duplicates, in the order of the object.
fn distinct<T: Copy + Ord>(mut list: Vec<T>) -> Vec<T> {
    let mut seen = BTreeSet::new();
    list.retain(|item| seen.insert(*item));
    list.shrink_to_fit();
    list
}
