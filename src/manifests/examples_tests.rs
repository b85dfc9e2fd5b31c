//! The example manifests are what newcomers copy: they must say what their comments say, without a
//! single problem.

use std::path::Path;

use super::split::Format;
use super::store::ManifestStore;
use crate::model::{Family, Mode, ObjectKey, Protocol, SourceChange, TrafficPolicy};

#[test]
fn the_examples_are_served_without_a_problem() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/examples");
    let mut store = ManifestStore::default();
    for name in ["dns.yaml", "local.yaml", "node-mode.yaml", "node.yaml", "web.yaml"] {
        let text = std::fs::read_to_string(dir.join(name)).expect(name);
        store.put(name, Format::of(name).expect(name), &text, false);
    }
    assert_eq!(store.problems(), []);
    let (mut nodes, mut services, mut slices) = (Vec::new(), Vec::new(), Vec::new());
    for change in store.take_changes() {
        match change {
            SourceChange::Node(_, Some(node)) => nodes.push(node),
            SourceChange::Service(_, Some(service)) => services.push(service),
            SourceChange::Slice(_, Some(slice)) => slices.push(slice),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(nodes.len(), 1);
    assert_eq!(
        nodes[0].internal,
        ["10.88.0.11".parse::<std::net::IpAddr>().unwrap(), "fd88::11".parse().unwrap()]
    );
    assert_eq!(nodes[0].pod_cidrs.len(), 2);
    let names: Vec<_> = services.iter().map(|service| &*service.key.name).collect();
    assert_eq!(names, ["dns", "gateway", "local", "web"]);
    for service in &services {
        assert_eq!(service.problems, [] as [&str; 0], "{}", service.key);
        assert_eq!(service.families, Family::ALL, "{}", service.key);
        for family in Family::ALL {
            let slice = slices
                .iter()
                .find(|slice| slice.family == family && slice.service == service.key.name)
                .expect("a slice per family");
            assert!(
                slice
                    .endpoints
                    .iter()
                    .all(|endpoint| endpoint.node.as_deref() == Some("node-1") && endpoint.ready)
            );
            for port in &service.ports {
                assert!(
                    slice
                        .ports
                        .iter()
                        .any(|other| other.name == port.name && other.protocol == port.protocol),
                    "{}",
                    service.key
                );
            }
        }
    }
    let service = |name: &str| {
        services
            .iter()
            .find(|service| service.key == ObjectKey::new("default", name))
            .expect("the Service")
    };
    assert_eq!(
        service("dns").ports.iter().map(|port| (port.protocol, port.port)).collect::<Vec<_>>(),
        [(Protocol::Udp, 53), (Protocol::Tcp, 53)]
    );
    assert_eq!(service("dns").request.addresses.len(), 2);
    assert_eq!(service("local").external, TrafficPolicy::Local);
    assert_eq!(service("local").source_ranges.as_ref().map(Vec::len), Some(2));
    assert_eq!(service("gateway").request.mode, Some(Mode::Node));
    assert!(service("gateway").client_affinity);
}
