//! Manifests as a user would write them: Service, EndpointSlice and Node as YAML text.

use std::fmt::Write;
use std::net::IpAddr;

use pinnace::model::Family;

use super::{Host, POD_PORTS};

/// ServiceLB's label of Services and Nodes.
const NODE_POOL: &str = "svccontroller.k3s.cattle.io/lbpool";

/// A Service of type LoadBalancer, dual-stack unless told otherwise.
#[derive(Clone)]
pub struct Service {
    namespace: String,
    name: String,
    annotations: Vec<(String, String)>,
    labels: Vec<(String, String)>,
    ports: Vec<(String, String, u32)>,
    families: Vec<Family>,
    spec: Vec<String>,
}

/// A Service without ports.
pub fn service(name: &str) -> Service {
    Service {
        namespace: "default".to_owned(),
        name: name.to_owned(),
        annotations: Vec::new(),
        labels: Vec::new(),
        ports: Vec::new(),
        families: Family::ALL.to_vec(),
        spec: Vec::new(),
    }
}

/// The usual one: port 80 over TCP.
pub fn web(name: &str) -> Service {
    service(name).port("http", "TCP", 80)
}

impl Service {
    /// `namespace/name`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// One more port.
    pub fn port(mut self, name: &str, protocol: &str, port: u32) -> Service {
        self.ports.push((name.to_owned(), protocol.to_owned(), port));
        self
    }

    /// One more annotation.
    pub fn annotation(mut self, key: &str, value: &str) -> Service {
        self.annotations.push((key.to_owned(), value.to_owned()));
        self
    }

    /// For the nodes of this ServiceLB pool only.
    pub fn node_pool(mut self, pool: &str) -> Service {
        self.labels.push((NODE_POOL.to_owned(), pool.to_owned()));
        self
    }

    /// Served at the nodes' own addresses.
    pub fn node_mode(self) -> Service {
        self.annotation("pinnace.dev/mode", "node")
    }

    /// In one family only.
    pub fn only(mut self, family: Family) -> Service {
        self.families = vec![family];
        self
    }

    /// externalTrafficPolicy Local.
    pub fn local(self) -> Service {
        self.spec("externalTrafficPolicy: Local")
    }

    /// sessionAffinity ClientIP.
    pub fn sticky(self) -> Service {
        self.spec("sessionAffinity: ClientIP")
    }

    /// loadBalancerSourceRanges.
    pub fn admit(self, ranges: &[&str]) -> Service {
        self.spec(&format!(
            "loadBalancerSourceRanges: [{}]",
            ranges.iter().map(|range| format!("\"{range}\"")).collect::<Vec<_>>().join(", ")
        ))
    }

    /// One more line of the spec.
    pub fn spec(mut self, line: &str) -> Service {
        self.spec.push(line.to_owned());
        self
    }

    /// The document, beginning with `---`.
    pub fn yaml(&self) -> String {
        let mut text = format!(
            "---\napiVersion: v1\nkind: Service\nmetadata:\n  namespace: {}\n  name: {}\n",
            self.namespace, self.name
        );
        for (field, entries) in [("annotations", &self.annotations), ("labels", &self.labels)] {
            if !entries.is_empty() {
                writeln!(text, "  {field}:").expect("writing to a string");
            }
            for (key, value) in entries {
                writeln!(text, "    {key}: \"{value}\"").expect("writing to a string");
            }
        }
        let families: Vec<String> = self.families.iter().map(Family::to_string).collect();
        let policy = if families.len() == 2 { "PreferDualStack" } else { "SingleStack" };
        write!(
            text,
            "spec:\n  type: LoadBalancer\n  selector:\n    app: {}\n  ipFamilyPolicy: {policy}\n",
            self.name
        )
        .expect("writing to a string");
        writeln!(text, "  ipFamilies: [{}]", families.join(", ")).expect("writing to a string");
        for line in &self.spec {
            writeln!(text, "  {line}").expect("writing to a string");
        }
        text.push_str("  ports:\n");
        for (name, protocol, port) in &self.ports {
            writeln!(
                text,
                "    - {{name: {name}, protocol: {protocol}, port: {port}, targetPort: {name}}}"
            )
            .expect("writing to a string");
        }
        text
    }

    /// The Service together with slices that send every port to 8080 of these pods.
    pub fn with_pods<'a>(&self, pods: impl IntoIterator<Item = &'a Host>) -> String {
        self.with_endpoints(&pods.into_iter().map(Endpoint::ready).collect::<Vec<_>>())
    }

    /// The same with endpoints that are not simply ready pods.
    pub fn with_endpoints(&self, endpoints: &[Endpoint]) -> String {
        let ports: Vec<_> = self
            .ports
            .iter()
            .map(|(name, protocol, _)| (name.as_str(), protocol.as_str(), POD_PORTS[0]))
            .collect();
        self.yaml() + &slices(&self.name, &ports, endpoints)
    }
}

/// One endpoint of a slice.
#[derive(Clone)]
pub struct Endpoint {
    addresses: [IpAddr; 2],
    node: Option<String>,
    conditions: [bool; 3],
}

impl Endpoint {
    /// A pod that is ready.
    pub fn ready(pod: &Host) -> Endpoint {
        let node = if pod.name.starts_with("far") { "node-2" } else { "node-1" };
        Endpoint {
            addresses: Family::ALL.map(|family| pod.address(family)),
            node: Some(node.to_owned()),
            conditions: [true, true, false],
        }
    }

    /// The same pod, on this node.
    pub fn on(self, node: &str) -> Endpoint {
        Endpoint { node: Some(node.to_owned()), ..self }
    }

    /// The same pod, shutting down but still serving.
    pub fn terminating(pod: &Host) -> Endpoint {
        Endpoint { conditions: [false, true, true], ..Endpoint::ready(pod) }
    }

    /// The same pod, not ready.
    pub fn unready(pod: &Host) -> Endpoint {
        Endpoint { conditions: [false, false, false], ..Endpoint::ready(pod) }
    }

    /// As in a slice written by hand: on no node in particular.
    pub fn anywhere(pod: &Host) -> Endpoint {
        Endpoint { node: None, ..Endpoint::ready(pod) }
    }
}

/// The EndpointSlices of a Service, one per family; ports are name, protocol, number at the pod.
pub fn slices(service: &str, ports: &[(&str, &str, u16)], endpoints: &[Endpoint]) -> String {
    Family::ALL.iter().map(|family| slice(service, "1", *family, ports, endpoints)).collect()
}

/// One EndpointSlice; `number` sets several of one Service and family apart.
pub fn slice(
    service: &str,
    number: &str,
    family: Family,
    ports: &[(&str, &str, u16)],
    endpoints: &[Endpoint],
) -> String {
    let name = format!("{service}-{}-{number}", family.to_string().to_lowercase());
    let mut text = format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  namespace: default\n  name: {name}\n  \
         labels:\n    kubernetes.io/service-name: {service}\naddressType: {family}\nports:\n"
    );
    for (name, protocol, port) in ports {
        writeln!(text, "  - {{name: {name}, protocol: {protocol}, port: {port}}}")
            .expect("writing to a string");
    }
    text.push_str(if endpoints.is_empty() { "endpoints: []\n" } else { "endpoints:\n" });
    for endpoint in endpoints {
        let [ready, serving, terminating] = endpoint.conditions;
        let address = endpoint
            .addresses
            .iter()
            .find(|address| Family::of(**address) == family)
            .expect("one address per family");
        writeln!(text, "  - addresses: [\"{address}\"]").expect("writing to a string");
        writeln!(
            text,
            "    conditions: {{ready: {ready}, serving: {serving}, terminating: {terminating}}}"
        )
        .expect("writing to a string");
        if let Some(node) = &endpoint.node {
            writeln!(text, "    nodeName: {node}").expect("writing to a string");
        }
    }
    text
}

/// The Node objects of the lab.
pub fn nodes() -> String {
    node(1) + &node(2)
}

/// The Node object of `node-NUMBER`.
pub fn node(number: u8) -> String {
    let net = number - 1;
    format!(
        "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: node-{number}\nspec:\n  podCIDRs: [\"10.42.{net}.0/24\", \"fd42:{net}::/64\"]\nstatus:\n  \
         addresses:\n    - {{type: InternalIP, address: 10.88.0.1{number}}}\n    - {{type: InternalIP, address: \"fd88::1{number}\"}}\n"
    )
}

/// The same with the labels of ServiceLB, in this pool.
pub fn node_in_pool(number: u8, pool: &str) -> String {
    let labels = format!(
        "  labels:\n    svccontroller.k3s.cattle.io/enablelb: \"true\"\n    {NODE_POOL}: {pool}\nspec:\n"
    );
    node(number).replacen("spec:\n", &labels, 1)
}
