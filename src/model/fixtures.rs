//! Objects for the tests of this room.

use super::{Family, Interface, ObjectKey, Protocol, Request, Service, ServicePort, TrafficPolicy};

/// `default/<name>`: IPv4, policy Cluster, one unnamed port 80/TCP, and nothing else asked for.
pub fn service(name: &str) -> Service {
    Service {
        key: ObjectKey::new("default", name),
        created: 0,
        class: None,
        families: vec![Family::V4],
        require_dual_stack: false,
        ports: vec![ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80 }],
        external: TrafficPolicy::Cluster,
        client_affinity: false,
        source_ranges: None,
        request: Request::default(),
        node_pool: None,
        selector: None,
        published: Vec::new(),
        problems: Vec::new(),
        api: None,
    }
}

/// A network card that is up, with a hardware address that ends in its index; `subnets` are its
/// addresses, separated by spaces.
pub fn interface(index: u32, name: &str, subnets: &str) -> Interface {
    Interface {
        index,
        name: name.into(),
        mac: Some([2, 0, 0, 0, 0, index as u8]),
        up: true,
        ipv6: true,
        addresses: subnets
            .split_whitespace()
            .map(|subnet| subnet.parse().expect("a subnet"))
            .collect(),
        ..Interface::default()
    }
}
