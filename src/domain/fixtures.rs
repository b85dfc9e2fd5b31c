//! Objects for the tests of this room.

use super::model::{Family, ObjectKey, Protocol, Request, Service, ServicePort, TrafficPolicy};

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
        record: None,
    }
}
