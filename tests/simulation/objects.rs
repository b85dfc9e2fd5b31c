//! What the API says.

use super::*;

impl World {
    pub(super) fn add_service(&mut self, vip: IpAddr) {
        let key = ObjectKey::new("default", &format!("s-{vip}").replace([':', '.'], "-"));
        let local = self.local.get(&vip);
        let request = Request {
            addresses: vec![vip],
            prefer_nodes: self
                .preferred
                .get(&vip)
                .map(|node| name(*node).into())
                .into_iter()
                .collect(),
            ..Request::default()
        };
        let family = Family::of(vip);
        let service = Service {
            key: key.clone(),
            created: 0,
            class: None,
            families: vec![family],
            require_dual_stack: false,
            ports: vec![ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80 }],
            external: if local.is_some() { TrafficPolicy::Local } else { TrafficPolicy::Cluster },
            client_affinity: false,
            source_ranges: None,
            request,
            node_pool: None,
            selector: None,
            published: Vec::new(),
            problems: Vec::new(),
            api: None,
        };
        let endpoint = |node: usize| Endpoint {
            address: if family == Family::V4 {
                IpAddr::from([10, 42, node as u8, 5])
            } else {
                IpAddr::from([0xfd42, 0, 0, 0, 0, 0, node as u16, 5])
            },
            node: Some(name(node).into()),
            ready: true,
            serving: true,
            terminating: false,
            hints: None,
        };
        let endpoints = (0..self.hosts.len())
            .filter(|node| local.is_none_or(|nodes| nodes.contains(node)))
            .map(endpoint)
            .collect();
        let ports = vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }];
        let slice =
            EndpointSlice { key: key.clone(), service: key.name.clone(), family, ports, endpoints };
        self.services.push(SourceChange::Service(key.clone(), Some(Box::new(service))));
        self.services.push(SourceChange::Slice(key, Some(Box::new(slice))));
    }

    pub(super) fn node_object(&self, node: usize) -> SourceChange {
        let host = &self.hosts[node];
        let object = Node {
            name: name(node).into(),
            internal: addresses(node).to_vec(),
            external: Vec::new(),
            pod_cidrs: Vec::new(),
            zone: None,
            excluded: host.excluded.then_some(Exclusion::Label),
            enable_lb: None,
            pool: None,
        };
        SourceChange::Node(object.name.clone(), (!host.deleted).then(|| Box::new(object)))
    }

    pub(super) fn interfaces(&mut self, node: usize) -> Arc<Interfaces> {
        if let Some((link, known)) = &self.hosts[node].interfaces
            && *link == self.hosts[node].link
        {
            return known.clone();
        }
        let [v4, v6] = addresses(node);
        let interface = Interface {
            index: 2,
            name: "eth0".into(),
            mac: Some(mac(node)),
            up: self.hosts[node].link,
            ipv6: true,
            addresses: [format!("{v4}/24").parse().unwrap(), format!("{v6}/64").parse().unwrap()]
                .into(),
            ..Interface::default()
        };
        let interfaces = Arc::new(Interfaces::from([(2, interface)]));
        self.hosts[node].interfaces = Some((self.hosts[node].link, interfaces.clone()));
        interfaces
    }
}
