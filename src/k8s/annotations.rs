//! What a Service requests by annotation, under Pinnace's names and those of other load balancers.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::problems::{Problems, quoted};
use crate::model::{Mode, Request};

/// What an annotation requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// `vip` or `node`.
    Mode,
    /// Addresses, separated by commas, or a JSON list of them.
    Addresses,
    /// The name of the pool to allocate from.
    Pool,
    /// Services with an equal value may share an address.
    Sharing,
    /// Names of nodes, separated by commas, the most preferred first.
    PreferNodes,
    /// `true`: the Service is not managed.
    Ignore,
}

/// Every annotation that is understood: name, meaning, and the system that defines it. Of several
/// with one meaning, Pinnace's own overrides the others, else the first in this order is used.
pub const ANNOTATIONS: &[(&str, Meaning, &str)] = &[
    ("pinnace.dev/mode", Meaning::Mode, OURS),
    ("pinnace.dev/addresses", Meaning::Addresses, OURS),
    ("pinnace.dev/pool", Meaning::Pool, OURS),
    ("pinnace.dev/allow-shared-ip", Meaning::Sharing, OURS),
    ("pinnace.dev/prefer-nodes", Meaning::PreferNodes, OURS),
    ("metallb.io/loadBalancerIPs", Meaning::Addresses, "MetalLB"),
    ("metallb.io/address-pool", Meaning::Pool, "MetalLB"),
    ("metallb.io/allow-shared-ip", Meaning::Sharing, "MetalLB"),
    ("metallb.universe.tf/loadBalancerIPs", Meaning::Addresses, "MetalLB"),
    ("metallb.universe.tf/address-pool", Meaning::Pool, "MetalLB"),
    ("metallb.universe.tf/allow-shared-ip", Meaning::Sharing, "MetalLB"),
    ("kube-vip.io/loadbalancerIPs", Meaning::Addresses, "kube-vip"),
    ("kube-vip.io/ignore", Meaning::Ignore, "kube-vip"),
    ("purelb.io/addresses", Meaning::Addresses, "PureLB"),
    ("purelb.io/service-group", Meaning::Pool, "PureLB"),
    ("purelb.io/allow-shared-ip", Meaning::Sharing, "PureLB"),
    ("eip.openelb.kubesphere.io/v1alpha2", Meaning::Pool, "OpenELB"),
    ("lbipam.cilium.io/ips", Meaning::Addresses, "Cilium"),
    ("lbipam.cilium.io/sharing-key", Meaning::Sharing, "Cilium"),
    ("loxilb.io/staticIP", Meaning::Addresses, "LoxiLB"),
    ("service.antrea.io/external-ip-pool", Meaning::Pool, "Antrea"),
    ("projectcalico.org/loadBalancerIPs", Meaning::Addresses, "Calico"),
];

/// Annotations of other systems without effect, and why. The answer goes to `status` and an Event,
/// so that nobody waits for an effect.
pub const ANSWERED: &[(&str, &str)] = &[
    (
        "kube-vip.io/serviceInterface",
        "an address is announced on every interface whose subnet contains it; name the interfaces in PINNACE_INTERFACES",
    ),
    (
        "kube-vip.io/forwardUPNP",
        "Pinnace does not open ports in routers; forward them there by hand",
    ),
    (
        "kube-vip.io/loadbalancerHostname",
        "Pinnace writes addresses into the status and never host names; let external-dns publish a name, by its annotation external-dns.alpha.kubernetes.io/hostname",
    ),
];

const OURS: &str = "Pinnace";

/// The field that requests an address, after every annotation.
const LOAD_BALANCER_IP: &str = "spec.loadBalancerIP";

/// Reads the annotations and `spec.loadBalancerIP`.
pub(super) fn request(
    annotations: &BTreeMap<String, String>,
    load_balancer_ip: Option<&str>,
    problems: &mut Problems,
) -> Request {
    let mode =
        wanted(annotations, Meaning::Mode, None, problems, |name, value, problems| match value {
            "vip" => Some(Mode::Vip),
            "node" => Some(Mode::Node),
            other => {
                problems.push(format!(
                    "annotation {name}: {} is no mode; write vip or node",
                    quoted(other)
                ));
                None
            }
        });
    let text = |_: &str, value: &str, _: &mut Problems| Some(Box::<str>::from(value));
    let names = |_: &str, value: &str, _: &mut Problems| {
        Some(
            value
                .split(',')
                .map(str::trim)
                .filter(|name| !name.is_empty())
                .map(Box::<str>::from)
                .collect(),
        )
    };
    for (name, answer) in ANSWERED {
        // A feature that is explicitly switched off needs no answer.
        if annotations.get(*name).is_some_and(|value| !matches!(value.trim(), "" | "false")) {
            problems.push(format!("annotation {name} has no effect: {answer}"));
        }
    }
    let ignore =
        wanted(annotations, Meaning::Ignore, None, problems, |name, value, problems| match value {
            "true" => Some(true),
            "false" => Some(false),
            other => {
                problems.push(format!(
                    "annotation {name}: {} is neither true nor false; the Service is served",
                    quoted(other)
                ));
                None
            }
        });
    let load_balancer_ip = load_balancer_ip.map(str::trim).filter(|ip| !ip.is_empty());
    Request {
        mode,
        addresses: wanted(annotations, Meaning::Addresses, load_balancer_ip, problems, addresses)
            .unwrap_or_default(),
        pool: wanted(annotations, Meaning::Pool, None, problems, text),
        sharing: wanted(annotations, Meaning::Sharing, None, problems, text),
        prefer_nodes: wanted(annotations, Meaning::PreferNodes, None, problems, names)
            .unwrap_or_default(),
        ignore: ignore.unwrap_or_default(),
    }
}

/// The value of the first annotation with this meaning that can be parsed. Values are trimmed; an
/// empty one counts as absent. A contradicting annotation of another system is a problem, unless
/// Pinnace's own is set.
fn wanted<T: PartialEq>(
    annotations: &BTreeMap<String, String>,
    meaning: Meaning,
    field: Option<&str>,
    problems: &mut Problems,
    read: impl Fn(&str, &str, &mut Problems) -> Option<T>,
) -> Option<T> {
    let annotated =
        ANNOTATIONS.iter().filter(|(_, of, _)| *of == meaning).filter_map(|(name, _, system)| {
            let value = annotations.get(*name)?.trim();
            (!value.is_empty()).then_some((*name, value, *system))
        });
    let mut chosen: Option<(&str, &str, T)> = None;
    for (name, value, system) in annotated.chain(field.map(|value| (LOAD_BALANCER_IP, value, ""))) {
        let Some(parsed) = read(name, value, problems) else { continue };
        match &chosen {
            None if system == OURS => return Some(parsed),
            None => chosen = Some((name, value, parsed)),
            Some((first, said, kept)) if *kept != parsed => {
                problems.push(format!(
                    "{first} says {} and {name} says {}: {first} is used; remove one of them",
                    quoted(said),
                    quoted(value)
                ));
            }
            Some(_) => {}
        }
    }
    chosen.map(|(_, _, value)| value)
}

/// Addresses from a comma-separated or JSON list, sorted and without duplicates. None when none of
/// them can be parsed.
fn addresses(name: &str, value: &str, problems: &mut Problems) -> Option<Vec<IpAddr>> {
    let list: Vec<String> = if value.starts_with('[') {
        match serde_json::from_str(value) {
            Ok(list) => list,
            Err(_) => {
                problems.push(format!("{name}: {} is not a JSON list of addresses", quoted(value)));
                return None;
            }
        }
    } else {
        value.split(',').map(str::to_owned).collect()
    };
    let mut addresses = Vec::new();
    for item in list.iter().map(|item| item.trim()).filter(|item| !item.is_empty()) {
        match item.parse::<IpAddr>() {
            Ok(address) if address.is_unspecified() => {
                problems.push(format!("{name}: {address} asks for an address by DHCP, which is not supported; name an address or a pool"));
            }
            Ok(address) => addresses.push(address),
            Err(_) => problems.push(format!("{name}: {} is not an IP address", quoted(item))),
        }
    }
    addresses.sort();
    addresses.dedup();
    (!addresses.is_empty()).then_some(addresses)
}
