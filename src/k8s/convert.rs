//! API objects to the model. Parts that cannot be used are left out and reported as problems; the
//! rest of the object is served.

mod fields;
mod slice;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;
use std::net::IpAddr;

use ipnet::IpNet;
use siphasher::sip128::{Hasher128, SipHasher13};

pub use self::fields::{Converted, key};
use self::fields::{distinct, family, label, port_number, protocol};
pub use self::slice::{SERVICE_NAME_LABEL, endpoint_slice, last_change};
use super::annotations::request;
use super::objects;
use super::problems::{Problems, quoted};
use crate::model::{
    ApiMetadata, Exclusion, Family, Ingress, IngressPort, Node, Service, ServicePort, TrafficPolicy,
};

/// Source ranges, where `spec.loadBalancerSourceRanges` is not set.
pub const SOURCE_RANGES_ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
/// Keeps a Service from being deleted before its load balancer is gone. Service controllers set it.
pub const CLEANUP_FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
const EXCLUDE_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
const AUTOSCALER_TAINT: &str = "ToBeDeletedByClusterAutoscaler";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
const ENABLE_LB_LABEL: &str = "svccontroller.k3s.cattle.io/enablelb";
const LB_POOL_LABEL: &str = "svccontroller.k3s.cattle.io/lbpool";

/// A Service of type LoadBalancer. None for any other type, unless the Service still has the
/// finalizer of a load balancer. None also for one that is being deleted, unless it comes from the
/// API server, where its deletion has to be finished: then its [`ApiMetadata`] says so.
pub fn service(object: &objects::Service) -> Option<Service> {
    let spec = object.spec.as_ref()?;
    let mut api = api_metadata(object);
    if spec.r#type.as_deref() != Some("LoadBalancer") {
        // The finalizer blocks the deletion of a former load balancer, and nobody else removes
        // it.
        api = api
            .filter(|api| api.cleanup_finalizer)
            .map(|api| ApiMetadata { deleting: true, ..api });
        api.as_ref()?;
    }
    if object.metadata.deletion_timestamp.is_some() && api.is_none() {
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
    let families = families(spec, &cluster_ips, api.is_none(), &mut problems);
    let external = external_traffic_policy(spec, &mut problems);
    let client_affinity = client_affinity(spec, &mut problems);
    let published = object
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref()?.ingress.as_deref())
        .unwrap_or_default();
    Some(Service {
        key: key(&object.metadata),
        created: object.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        class: spec.load_balancer_class.as_deref().filter(|class| !class.is_empty()).map(Box::from),
        families,
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
        api: api.map(Box::new),
    })
}

/// The families of `ipFamilies`, else those of the cluster IPs. The API server completes the list
/// with the cluster's families; for a `manifest` the policy does.
fn families(
    spec: &objects::ServiceSpec,
    cluster_ips: &[&str],
    manifest: bool,
    problems: &mut Problems,
) -> Vec<Family> {
    let mut families: Vec<Family> = match spec.ip_families.as_deref() {
        Some(list) if !list.is_empty() => {
            list.iter().filter_map(|name| family("spec.ipFamilies", name, problems)).collect()
        }
        _ => cluster_ips.iter().filter_map(|ip| ip.parse().ok()).map(Family::of).collect(),
    };
    let policy = spec.ip_family_policy.as_deref();
    if manifest && matches!(policy, Some("PreferDualStack" | "RequireDualStack")) {
        families.extend(Family::ALL);
    }
    distinct(families)
}

fn external_traffic_policy(spec: &objects::ServiceSpec, problems: &mut Problems) -> TrafficPolicy {
    match spec.external_traffic_policy.as_deref() {
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            problems.push(format!(
                "spec.externalTrafficPolicy: {} is not Cluster or Local; Cluster is assumed",
                quoted(other)
            ));
            TrafficPolicy::Cluster
        }
    }
}

fn client_affinity(spec: &objects::ServiceSpec, problems: &mut Problems) -> bool {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => false,
        Some("ClientIP") => true,
        Some(other) => {
            problems.push(format!(
                "spec.sessionAffinity: {} is not None or ClientIP; None is assumed",
                quoted(other)
            ));
            false
        }
    }
}

/// What writing the status requires. Only objects from the API server have a `resourceVersion`.
fn api_metadata(object: &objects::Service) -> Option<ApiMetadata> {
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
    let mut numbers = BTreeSet::new();
    let mut names = BTreeSet::new();
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

/// The ranges of the field if it lists any, else of the annotation. An empty annotation admits
/// everybody, as in kube-proxy.
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

/// Local Services may share an address only when they select the same pods: a digest is enough to
/// compare selectors.
fn selector_digest(selector: &BTreeMap<String, String>) -> Box<str> {
    let mut hasher = SipHasher13::new();
    selector.hash(&mut hasher);
    format!("{:032x}", hasher.finish128().as_u128()).into()
}

/// A Node. Addresses and ranges that cannot be parsed are left out; there is always a value.
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
    let internal = of_type("InternalIP");
    let external = of_type("ExternalIP");
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
    // The spellings of false of Go's strconv.ParseBool, by which others read this label.
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
