//! The API's Service, EndpointSlice and Node with the fields that [`convert`](super::convert)
//! reads. Everything else of an object (managedFields, images, conditions …) is skipped without
//! being built. Types written to the API are those of `k8s-openapi`.
//!
//! As in `k8s-openapi`, an absent field and `null` are the zero value, unknown fields are ignored,
//! and a list in place of an object is an error (derived implementations would take its items for
//! the fields).

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Declares structs of the API: `"name in JSON" => field: type`.
macro_rules! objects {
    ($($(#[$doc:meta])* $object:ident { $($name:literal => $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Default)]
        pub struct $object {
            $(pub $field: $type,)*
        }

        deserialize!($object { $($name => $field,)* });
    )*};
}

/// Implements `Deserialize` for a struct whose named fields are read from a map.
macro_rules! deserialize {
    ($object:ident { $($name:literal => $($field:ident).+,)* }) => {
        impl Fields for $object {
            const OBJECT: &'static str = stringify!($object);
            const NAMES: &'static [&'static str] = &[$($name),*];

            fn read<'de, M: MapAccess<'de>>(
                &mut self,
                name: &str,
                map: &mut M,
            ) -> Result<(), M::Error> {
                match name {
                    $($name => self.$($field).+ = map.next_value::<Option<_>>()?.unwrap_or_default(),)*
                    _ => _ = map.next_value::<IgnoredAny>()?,
                }
                Ok(())
            }
        }

        impl<'de> Deserialize<'de> for $object {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$object, D::Error> {
                deserializer.deserialize_map(ObjectVisitor(PhantomData))
            }
        }
    };
}

objects! {
    /// core/v1 Service.
    Service {
        "metadata" => metadata: Metadata,
        "spec" => spec: Option<ServiceSpec>,
        "status" => status: Option<ServiceStatus>,
    }

    ServiceSpec {
        "type" => r#type: Option<String>,
        "clusterIP" => cluster_ip: Option<String>,
        "clusterIPs" => cluster_ips: Option<Vec<String>>,
        "externalTrafficPolicy" => external_traffic_policy: Option<String>,
        "ipFamilies" => ip_families: Option<Vec<String>>,
        "ipFamilyPolicy" => ip_family_policy: Option<String>,
        "loadBalancerClass" => load_balancer_class: Option<String>,
        "loadBalancerIP" => load_balancer_ip: Option<String>,
        "loadBalancerSourceRanges" => load_balancer_source_ranges: Option<Vec<String>>,
        "ports" => ports: Option<Vec<ServicePort>>,
        "selector" => selector: Option<BTreeMap<String, String>>,
        "sessionAffinity" => session_affinity: Option<String>,
    }

    ServicePort {
        "name" => name: Option<String>,
        "port" => port: i32,
        "protocol" => protocol: Option<String>,
    }

    ServiceStatus {
        "loadBalancer" => load_balancer: Option<LoadBalancerStatus>,
    }

    LoadBalancerStatus {
        "ingress" => ingress: Option<Vec<LoadBalancerIngress>>,
    }

    LoadBalancerIngress {
        "hostname" => hostname: Option<String>,
        "ip" => ip: Option<String>,
        "ipMode" => ip_mode: Option<String>,
        "ports" => ports: Option<Vec<PortStatus>>,
    }

    PortStatus {
        "error" => error: Option<String>,
        "port" => port: i32,
        "protocol" => protocol: String,
    }

    /// discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice {
        "metadata" => metadata: Metadata,
        "addressType" => address_type: String,
        "endpoints" => endpoints: Vec<Endpoint>,
        "ports" => ports: Option<Vec<EndpointPort>>,
    }

    Endpoint {
        "addresses" => addresses: Vec<String>,
        "conditions" => conditions: Option<EndpointConditions>,
        "hints" => hints: Option<EndpointHints>,
        "nodeName" => node_name: Option<String>,
    }

    EndpointConditions {
        "ready" => ready: Option<bool>,
        "serving" => serving: Option<bool>,
        "terminating" => terminating: Option<bool>,
    }

    EndpointHints {
        "forNodes" => for_nodes: Option<Vec<HintName>>,
        "forZones" => for_zones: Option<Vec<HintName>>,
    }

    /// `ForNode` and `ForZone`.
    HintName {
        "name" => name: String,
    }

    EndpointPort {
        "name" => name: Option<String>,
        "port" => port: Option<i32>,
        "protocol" => protocol: Option<String>,
    }

    /// core/v1 Node.
    Node {
        "metadata" => metadata: Metadata,
        "spec" => spec: Option<NodeSpec>,
        "status" => status: Option<NodeStatus>,
    }

    NodeSpec {
        "podCIDR" => pod_cidr: Option<String>,
        "podCIDRs" => pod_cidrs: Option<Vec<String>>,
        "taints" => taints: Option<Vec<Taint>>,
    }

    Taint {
        "key" => key: String,
    }

    NodeStatus {
        "addresses" => addresses: Option<Vec<NodeAddress>>,
    }

    NodeAddress {
        "address" => address: String,
        "type" => r#type: String,
    }

    /// core/v1 ConfigMap.
    ConfigMap {
        "data" => data: Option<BTreeMap<String, String>>,
    }
}

/// The `ObjectMeta` that `kube::Resource` asks for, of which only these fields are ever set.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    object_meta: ObjectMeta,
}

deserialize!(Metadata {
    "annotations" => object_meta.annotations,
    "creationTimestamp" => object_meta.creation_timestamp,
    "deletionTimestamp" => object_meta.deletion_timestamp,
    "finalizers" => object_meta.finalizers,
    "labels" => object_meta.labels,
    "name" => object_meta.name,
    "namespace" => object_meta.namespace,
    "resourceVersion" => object_meta.resource_version,
    "uid" => object_meta.uid,
});

impl Deref for Metadata {
    type Target = ObjectMeta;

    fn deref(&self) -> &ObjectMeta {
        &self.object_meta
    }
}

impl DerefMut for Metadata {
    fn deref_mut(&mut self) -> &mut ObjectMeta {
        &mut self.object_meta
    }
}

/// What [`deserialize`] generates.
trait Fields: Default {
    const OBJECT: &'static str;
    /// In JSON.
    const NAMES: &'static [&'static str];

    /// Reads the value that comes next into the field of this name.
    fn read<'de, M: MapAccess<'de>>(&mut self, name: &str, map: &mut M) -> Result<(), M::Error>;
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Fields> Visitor<'de> for ObjectVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::OBJECT)
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<T, M::Error> {
        let mut object = T::default();
        while let Some(name) = map.next_key_seed(FieldName(T::NAMES))? {
            object.read(name, &mut map)?;
        }
        Ok(object)
    }
}

/// Reads a key as one of these names, as the empty string if it is another, without allocating.
struct FieldName(&'static [&'static str]);

impl<'de> DeserializeSeed<'de> for FieldName {
    type Value = &'static str;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<&'static str, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl Visitor<'_> for FieldName {
    type Value = &'static str;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E>(self, name: &str) -> Result<&'static str, E> {
        Ok(self.0.iter().copied().find(|known| *known == name).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_read_is_skipped_and_null_is_the_zero_value() {
        let text = r#"{"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "web", "labels": null, "managedFields": [{"manager": "x"}]},
            "spec": {"type": "LoadBalancer", "ports": [{"port": null, "targetPort": "x"}]},
            "status": null}"#;
        let service: Service = serde_json::from_str(text).expect("a Service");
        assert_eq!(service.metadata.name.as_deref(), Some("web"));
        assert!(service.metadata.managed_fields.is_none() && service.metadata.labels.is_none());
        let spec = service.spec.expect("a spec");
        assert_eq!(spec.r#type.as_deref(), Some("LoadBalancer"));
        assert_eq!(spec.ports.expect("ports").first().map(|port| port.port), Some(0));
    }

    #[test]
    fn a_list_is_no_object() {
        let error = serde_json::from_str::<Service>(r#"{"spec": ["LoadBalancer"]}"#);
        let error = error.expect_err("a list in place of the spec").to_string();
        assert!(error.starts_with("invalid type: sequence, expected ServiceSpec"), "{error}");
    }
}
