//! EndpointSlices.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use super::fields::{Converted, family, key, label, port_number, protocol};
use crate::k8s::objects;
use crate::k8s::problems::{Problems, quoted};
use crate::model::trigger_time::TriggerTime;
use crate::model::{Endpoint, EndpointHints, EndpointSlice, Family, SlicePort};

/// Label of an EndpointSlice: the name of its Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
const LAST_CHANGE_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// An EndpointSlice of a Service. None for FQDN slices and for slices without a Service.
pub fn endpoint_slice(object: &objects::EndpointSlice) -> Converted<EndpointSlice> {
    let mut problems = Problems::default();
    let value = convert_slice(object, &mut problems);
    Converted { value, problems: problems.into_sentences() }
}

/// When the change of an endpoint was triggered for which this slice was written.
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

/// Shares the names of nodes with the endpoints before it in the slice.
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

/// False for the addresses that the API server refuses in endpoints: a packet translated to one of
/// them goes nowhere.
fn can_be_backend(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => {
            address.is_unicast_link_local() || address.to_ipv4_mapped().is_some()
        }
    };
    !(link_local || address.is_unspecified() || address.is_loopback() || address.is_multicast())
}
