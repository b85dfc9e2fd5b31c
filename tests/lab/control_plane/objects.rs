//! Nodes and pods without a kubelet, and kube-proxy on a node of the lab.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::{Host, Namespace, POD_PORTS, ensure, eventually, families, patient};
use super::process::{Nursery, Process, program};
use super::{ControlPlane, PATIENCE};

const HEALTH: &str = "127.0.0.1:10256";

/// How kube-proxy programs the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyMode {
    Nftables,
    Iptables,
}

impl ControlPlane {
    /// A Node that is ready, with these addresses.
    pub fn node(&self, name: &str, addresses: &[IpAddr], labels: &[(&str, &str)]) {
        self.apply(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": object(labels)}}).to_string());
        let addresses: Vec<Value> = addresses
            .iter()
            .map(|address| json!({"type": "InternalIP", "address": address}))
            .collect();
        let conditions =
            json!([{"type": "Ready", "status": "True", "reason": "Test", "message": "no kubelet"}]);
        self.patch_status("node", name, &json!({"addresses": addresses, "conditions": conditions}));
    }

    /// A machine of the lab as Node, in all its families.
    pub fn node_of(&self, host: &Host) {
        let addresses: Vec<IpAddr> =
            families().iter().map(|family| host.address(*family)).collect();
        self.node(&host.name, &addresses, &[]);
    }

    /// A pod in `default` on a Node, as a kubelet would report it. The slices of Services that
    /// select it follow by themselves. Its port `http` is the first of [`POD_PORTS`]. Applied
    /// again, it is changed.
    pub fn pod(
        &self,
        node: &str,
        name: &str,
        addresses: &[IpAddr],
        labels: &[(&str, &str)],
        ready: bool,
    ) {
        let container = json!({"name": "c", "image": "none", "ports": [{"name": "http", "containerPort": POD_PORTS[0]}]});
        let metadata = json!({"name": name, "namespace": "default", "labels": object(labels)});
        let spec = json!({"nodeName": node, "containers": [container], "terminationGracePeriodSeconds": 0});
        self.apply(
            &json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
                .to_string(),
        );
        let ips: Vec<Value> = addresses.iter().map(|address| json!({"ip": address})).collect();
        let conditions = json!([{"type": "Ready", "status": if ready { "True" } else { "False" }}]);
        let status = json!({"phase": "Running", "podIP": addresses.first(), "podIPs": ips, "conditions": conditions});
        self.patch_status("pod", name, &status);
    }

    /// A pod of the lab, ready, with a label `app`.
    pub fn pod_of(&self, node: &str, pod: &Host, app: &str) {
        let addresses: Vec<IpAddr> = families().iter().map(|family| pod.address(*family)).collect();
        self.pod(node, &pod.name, &addresses, &[("app", app)], true);
    }

    /// The addresses in the slices of a Service in `default` that are ready, sorted.
    pub fn ready_endpoints(&self, service: &str) -> Vec<IpAddr> {
        let slices = self.get_json(&[
            "endpointslices",
            "-l",
            &format!("kubernetes.io/service-name={service}"),
        ]);
        let slices = slices["items"].as_array().cloned().unwrap_or_default();
        let endpoints = slices
            .iter()
            .flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default());
        let ready = endpoints.filter(|endpoint| endpoint["conditions"]["ready"] == true);
        let mut addresses: Vec<IpAddr> =
            ready.filter_map(|endpoint| endpoint["addresses"][0].as_str()?.parse().ok()).collect();
        addresses.sort();
        addresses
    }

    /// Waits until these addresses, and no others, are ready behind a Service.
    pub fn wait_endpoints(&self, service: &str, expected: &[IpAddr]) {
        let mut expected = expected.to_vec();
        expected.sort();
        eventually(&format!("{expected:?} are ready behind {service}"), PATIENCE, || {
            let found = self.ready_endpoints(service);
            ensure(found == expected, || format!("{found:?}"))
        });
    }

    /// kube-proxy for the Node `node` in its namespace. Ready when this returns: what the API
    /// server holds now is in the kernel.
    pub fn kube_proxy(&self, namespace: &Arc<Namespace>, node: &str, mode: ProxyMode) -> KubeProxy {
        let mode = match mode {
            ProxyMode::Nftables => "nftables",
            ProxyMode::Iptables => "iptables",
        };
        let nursery = Nursery::new(Some(namespace.clone()));
        let mut command = Command::new(program());
        command.arg("kube-proxy").arg("--kubeconfig").arg(self.kubeconfig("read-only")).args([
            &format!("--proxy-mode={mode}"),
            &format!("--hostname-override={node}"),
            "--cluster-cidr=10.42.0.0/16,fd42::/48",
            // The limits of connection tracking belong to the machine, not to a namespace of it.
            "--conntrack-max-per-core=0",
            "--nodeport-addresses=primary",
            &format!("--healthz-bind-address={HEALTH}"),
        ]);
        let process =
            nursery.start(command, &self.directory.join(format!("kube-proxy-{node}.log")));
        let proxy = KubeProxy { process, _nursery: nursery };
        eventually("kube-proxy is healthy", PATIENCE, || {
            let health = namespace
                .enter(health)
                .map_err(|error| format!("{error}\n{}", proxy.process.last_words()))?;
            ensure(health.starts_with("HTTP/1.1 200"), || {
                format!("{health}\n{}", proxy.process.last_words())
            })
        });
        proxy
    }

    /// `kube-proxy --cleanup`: takes its rules out of the kernel.
    pub fn remove_proxy_rules(&self, namespace: &Arc<Namespace>) {
        let nursery = Nursery::new(Some(namespace.clone()));
        let mut command = Command::new(program());
        command.args(["kube-proxy", "--cleanup"]);
        let output = nursery.output(command, "");
        assert!(
            output.status.success(),
            "kube-proxy --cleanup: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// A running kube-proxy, killed when dropped; its rules stay in the kernel.
pub struct KubeProxy {
    pub process: Process,
    _nursery: Nursery,
}

fn health() -> std::io::Result<String> {
    let mut stream = TcpStream::connect(HEALTH)?;
    stream.set_read_timeout(Some(patient(Duration::from_secs(2))))?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: kube-proxy\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn object(pairs: &[(&str, &str)]) -> Value {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), Value::from(*value)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}
