//! Node mode: which nodes serve a Service, and which of their addresses are published, as K3s
//! ServiceLB does it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::model::{Family, Node, Service};

/// The nodes that serve this Service. If any node carries the label
/// `svccontroller.k3s.cattle.io/enablelb`, only those where it is "true" do, and then the Service's
/// `lbpool` label, if it has one, must match the node's. Excluded nodes never do.
pub fn serving_nodes<'a>(
    nodes: impl Iterator<Item = &'a Node> + Clone,
    service: &Service,
) -> impl Iterator<Item = &'a Node> {
    let by_label = nodes.clone().any(|node| node.enable_lb.is_some());
    let pool = service.node_pool.clone();
    nodes.filter(move |node| {
        let in_pool = pool.is_none() || node.pool == pool;
        node.excluded.is_none() && (!by_label || (node.enable_lb == Some(true) && in_pool))
    })
}

/// The families at which it is served.
pub fn families(service: &Service) -> &[Family] {
    if service.families.is_empty() { &Family::ALL } else { &service.families }
}

/// What clients are told: external addresses if any serving node has one, else internal ones;
/// grouped in the order of the Service's families, numerically within. `admits` says which of the
/// nodes count for which family (for policy Local those with a ready endpoint).
pub fn published_addresses<'a>(
    nodes: impl Iterator<Item = &'a Node> + Clone,
    service: &Service,
    admits: impl Fn(&str, Family) -> bool,
) -> Vec<IpAddr> {
    let serving: Vec<&Node> = serving_nodes(nodes, service).collect();
    let admitted = |of: fn(&Node) -> &[IpAddr]| {
        let all =
            serving.iter().flat_map(|node| of(node).iter().map(move |address| (node, *address)));
        all.filter(|(node, address)| admits(&node.name, Family::of(*address)))
            .map(|(_, address)| address)
            .collect::<BTreeSet<IpAddr>>()
    };
    let external = admitted(|node| &node.external);
    let addresses = if external.is_empty() { admitted(|node| &node.internal) } else { external };
    families(service)
        .iter()
        .flat_map(|family| addresses.iter().filter(move |address| Family::of(**address) == *family))
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Exclusion, fixtures};

    fn node(name: &str, internal: &str, external: &str) -> Node {
        let addresses = |text: &str| text.split_whitespace().map(|a| a.parse().unwrap()).collect();
        Node {
            name: name.into(),
            internal: addresses(internal),
            external: addresses(external),
            pod_cidrs: vec![],
            zone: None,
            excluded: None,
            enable_lb: None,
            pool: None,
        }
    }

    fn service(families: &[Family], pool: Option<&str>) -> Service {
        Service {
            families: families.to_vec(),
            node_pool: pool.map(Into::into),
            ..fixtures::service("web")
        }
    }

    fn addresses(nodes: &[Node], service: &Service) -> String {
        published_addresses(nodes.iter(), service, |_, _| true)
            .iter()
            .map(IpAddr::to_string)
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn addresses_are_numeric_external_first_and_in_the_order_of_families() {
        let v4 = service(&[Family::V4], None);
        assert_eq!(
            addresses(&[node("a", "10.0.0.10", ""), node("b", "10.0.0.9", "")], &v4),
            "10.0.0.9 10.0.0.10"
        );
        assert_eq!(
            addresses(&[node("a", "10.0.0.1", ""), node("b", "10.0.0.2", "203.0.113.2")], &v4),
            "203.0.113.2"
        );
        let six_first = service(&[Family::V6, Family::V4], None);
        assert_eq!(addresses(&[node("a", "10.0.0.1 fd00::1", "")], &six_first), "fd00::1 10.0.0.1");
        assert_eq!(addresses(&[node("a", "10.0.0.1 fd00::1", "")], &v4), "10.0.0.1");
    }

    #[test]
    fn servicelb_labels_select_nodes() {
        let labelled = |name: &str, enable, pool: Option<&str>| {
            let mut node = node(name, &format!("10.0.0.{}", name.len()), "");
            (node.enable_lb, node.pool) = (enable, pool.map(Into::into));
            node
        };
        let nodes = [
            labelled("a", Some(true), Some("x")),
            labelled("bb", Some(true), None),
            labelled("ccc", Some(false), None),
            labelled("dddd", None, Some("x")),
        ];
        assert_eq!(
            addresses(&nodes, &service(&[], None)),
            "10.0.0.1 10.0.0.2",
            "a label anywhere: only those that are true"
        );
        assert_eq!(
            addresses(&nodes, &service(&[], Some("x"))),
            "10.0.0.1",
            "and of the Service's pool"
        );
        assert_eq!(
            addresses(&nodes[3..], &service(&[], Some("y"))),
            "10.0.0.4",
            "no enablelb label anywhere: pools are not honoured"
        );
        let mut excluded = node("a", "10.0.0.1", "");
        excluded.excluded = Some(Exclusion::Label);
        assert_eq!(addresses(&[excluded], &service(&[], None)), "");
    }
}
