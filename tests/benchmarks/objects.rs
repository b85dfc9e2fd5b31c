//! Objects of a given size in a real API server, and changes of them.
//!
//! Services have no selector and no controller runs: the slices are written here, as
//! kube-controller-manager would write them.

use std::path::Path;
use std::time::{Duration, Instant};

use http::Method;

use crate::manifests::{Change, Size, endpoint, slice_json};
use crate::netlab::Namespace;
use crate::netlab::control_plane::{Api, create};

const SERVICES: &str = "/api/v1/namespaces/bench/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/bench/endpointslices";

/// Writes all of them over several connections from this namespace: the first Service is called
/// `changing`.
pub fn write(namespace: &Namespace, kubeconfig: &Path, size: Size) -> Result<Duration, String> {
    namespace.enter(|| {
        let body = r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"bench"}}"#;
        Api::open(kubeconfig.into())?.send(Method::POST, "/api/v1/namespaces", body.into())
    })?;
    let each = size.endpoints / size.services;
    create(namespace, kubeconfig, size.services, |n| {
        let name = if n == 0 { "changing".into() } else { format!("app-{n}") };
        let addresses: Vec<_> = (n * each..(n + 1) * each).map(endpoint).collect();
        vec![(SERVICES, service_json(&name)), (SLICES, slice_json(&name, &addresses))]
    })
}

/// Replaces the slice of the Service `changing`: before it was sent, and how long its answer took.
pub fn apply(api: &Api, change: &Change) -> Result<(Instant, Duration), String> {
    let body = change.json();
    let sent = Instant::now();
    api.send(Method::PUT, &format!("{SLICES}/changing-1"), body)?;
    Ok((sent, sent.elapsed()))
}

/// Without node ports: there are fewer of them than Services here.
fn service_json(name: &str) -> String {
    format!(
        r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"{name}","namespace":"bench"}},"spec":{{"type":"LoadBalancer",
        "allocateLoadBalancerNodePorts":false,"ports":[{{"name":"http","port":80,"protocol":"TCP","targetPort":8080}}]}}}}"#
    )
}
