use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Value, json};

use super::annotations::{ANNOTATIONS, ANSWERED};
use super::convert::{Converted, endpoint_slice, last_change, node, service};
use super::objects;
use crate::model::trigger_time::TriggerTime;
use crate::model::{
    EndpointSlice, Exclusion, Family, Mode, Node, Protocol, Service, TrafficPolicy,
};

/// A LoadBalancer Service with one port, changed by merging `spec` and `annotations`.
fn with(spec: Value, annotations: Value) -> Option<Service> {
    let mut object = json!({
        "metadata": {"name": "web", "namespace": "shop", "annotations": annotations},
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]},
    });
    merge(&mut object["spec"], spec);
    service(&serde_json::from_value::<objects::Service>(object).expect("a Service"))
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

fn spec(spec: Value) -> Service {
    with(spec, json!({})).expect("a load balancer")
}

fn annotated(annotations: Value) -> Service {
    with(json!({}), annotations).expect("a load balancer")
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().expect("an address")).collect()
}

#[test]
fn only_load_balancers_that_are_not_being_deleted_count() {
    for kind in [json!("ClusterIP"), json!("NodePort"), json!("ExternalName"), json!(null)] {
        assert_eq!(with(json!({"type": kind}), json!({})), None);
    }
    let deleting = json!({"metadata": {"name": "web", "deletionTimestamp": "2024-05-01T00:00:00Z"}, "spec": {"type": "LoadBalancer"}});
    assert_eq!(service(&serde_json::from_value(deleting).unwrap()), None);
    assert_eq!(service(&objects::Service::default()), None);
}

#[test]
fn what_the_api_server_keeps_is_recorded_and_a_deletion_is_seen_to_its_end() {
    let object = json!({
        "metadata": {
            "name": "web", "uid": "u-1", "resourceVersion": "42", "deletionTimestamp": "2024-05-01T00:00:00Z",
            "finalizers": ["example.org/other", "service.kubernetes.io/load-balancer-cleanup"],
        },
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]},
        "status": {"loadBalancer": {"ingress": [
            {"ip": "10.0.0.1", "ipMode": "VIP", "ports": [{"port": 80, "protocol": "TCP", "error": "InUse"}, {"port": 0, "protocol": "TCP"}]},
            {"hostname": "lb.example.org"},
        ]}},
    });
    let converted = service(&serde_json::from_value(object).unwrap()).expect("it has a record");
    let record = converted.api.expect("a record");
    assert_eq!(
        (&*record.uid, &*record.resource_version, record.cleanup_finalizer, record.deleting),
        ("u-1", "42", true, true)
    );
    let [first, second] = &record.ingress[..] else { panic!("{:?}", record.ingress) };
    assert_eq!(
        (first.ip, first.vip, first.ports.len()),
        (Some("10.0.0.1".parse().unwrap()), Some(true), 1)
    );
    assert_eq!((first.ports[0].port, first.ports[0].error.as_deref()), (80, Some("InUse")));
    assert_eq!(
        (second.ip, second.vip, second.hostname.as_deref()),
        (None, None, Some("lb.example.org"))
    );
    assert_eq!(spec(json!({})).api, None, "a manifest has none");
}

#[test]
fn a_plain_service_has_the_defaults_of_the_api() {
    let service = spec(json!({}));
    assert_eq!(service.key.to_string(), "shop/web");
    assert_eq!(
        (service.external, service.client_affinity, service.require_dual_stack),
        (TrafficPolicy::Cluster, false, false)
    );
    assert_eq!(
        (service.ports[0].protocol, service.ports[0].port, &*service.ports[0].name),
        (Protocol::Tcp, 80, "")
    );
    assert_eq!((service.created, &service.source_ranges, &service.families), (0, &None, &vec![]));
    assert_eq!(service.problems, [] as [&str; 0]);
}

#[test]
fn every_field_that_decides_is_read() {
    let object = json!({
        "metadata": {
            "name": "web", "creationTimestamp": "1970-01-01T00:01:40Z",
            "labels": {"svccontroller.k3s.cattle.io/lbpool": "edge"},
        },
        "spec": {
            "type": "LoadBalancer", "loadBalancerClass": "pinnace.dev/lb", "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6", "IPv4"],
            "externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP", "selector": {"app": "web"},
            "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}, {"hostname": "x"}, {"ip": "rubbish"}]}},
    });
    let service = service(&serde_json::from_value(object).unwrap()).expect("a load balancer");
    assert_eq!(service.key.to_string(), "default/web");
    assert_eq!(service.created, 100);
    assert_eq!(service.class.as_deref(), Some("pinnace.dev/lb"));
    assert_eq!(service.families, [Family::V6, Family::V4]);
    assert!(service.require_dual_stack && service.client_affinity);
    assert_eq!(service.external, TrafficPolicy::Local);
    assert_eq!(
        service.ports.iter().map(|port| port.protocol).collect::<Vec<_>>(),
        [Protocol::Udp, Protocol::Tcp]
    );
    assert_eq!(service.node_pool.as_deref(), Some("edge"));
    assert_eq!(service.published, ips(&["192.0.2.1"]));
    assert_eq!(service.problems, [] as [&str; 0]);
}

#[test]
fn families_follow_the_cluster_addresses_when_unsaid() {
    assert_eq!(
        spec(json!({"clusterIPs": ["fd43::1", "10.43.0.1"]})).families,
        [Family::V6, Family::V4]
    );
    assert_eq!(spec(json!({"clusterIP": "10.43.0.1"})).families, [Family::V4]);
    assert_eq!(
        spec(json!({"ipFamilies": ["IPv4"], "clusterIPs": ["fd43::1"]})).families,
        [Family::V4]
    );
    let families = |policy: &str, families: &[&str]| {
        spec(json!({"ipFamilyPolicy": policy, "ipFamilies": families})).families
    };
    for policy in ["PreferDualStack", "RequireDualStack"] {
        assert_eq!(families(policy, &[]), [Family::V4, Family::V6]);
        assert_eq!(
            families(policy, &["IPv6"]),
            [Family::V6, Family::V4],
            "the first one said stays first"
        );
    }
    assert_eq!(families("SingleStack", &[]), []);
}

#[test]
fn selectors_are_equal_when_their_pairs_are() {
    let digest = |selector: Value| spec(json!({"selector": selector})).selector;
    assert_eq!(digest(json!({"a": "1", "b": "2"})), digest(json!({"b": "2", "a": "1"})));
    assert_ne!(digest(json!({"a": "1", "b": "2"})), digest(json!({"a": "1"})));
    assert_ne!(digest(json!({"a": "12"})), digest(json!({"a1": "2"})));
    assert_eq!(digest(json!({})), None);
}

#[test]
fn what_is_wrong_is_said_and_the_rest_serves() {
    // Change of the spec → served ports, words of the one problem.
    let cases = [
        (
            json!({"ports": [{"port": 0}, {"port": 81}]}),
            1,
            "spec.ports[0].port: 0 is not between 1 and 65535",
        ),
        (json!({"ports": [{"port": 65536}, {"port": 81}]}), 1, "spec.ports[0].port: 65536"),
        (json!({"ports": [{"port": -1}]}), 0, "spec.ports[0].port: -1"),
        (
            json!({"ports": [{"port": 80, "protocol": "ICMP"}]}),
            0,
            "spec.ports[0].protocol: \"ICMP\" is not TCP, UDP or SCTP",
        ),
        (
            json!({"ports": [{"name": "a", "port": 80}, {"name": "b", "port": 80}]}),
            1,
            "spec.ports[1]: TCP port 80 is listed twice",
        ),
        (
            json!({"ports": [{"name": "a", "port": 80}, {"name": "a", "port": 81}]}),
            1,
            "spec.ports[1].name: \"a\" is used by another TCP port",
        ),
        (json!({"ports": []}), 0, "spec.ports: a load balancer needs at least one port"),
        (json!({"clusterIP": "None"}), 0, "spec.clusterIP: a headless Service"),
        (json!({"externalTrafficPolicy": "local"}), 1, "spec.externalTrafficPolicy: \"local\""),
        (json!({"sessionAffinity": "Cookie"}), 1, "spec.sessionAffinity: \"Cookie\""),
        (json!({"ipFamilies": ["IPv5"]}), 1, "spec.ipFamilies: \"IPv5\" is not IPv4 or IPv6"),
        (
            json!({"loadBalancerIP": "tomorrow"}),
            1,
            "spec.loadBalancerIP: \"tomorrow\" is not an IP address",
        ),
    ];
    for (change, ports, problem) in cases {
        let service = spec(change.clone());
        assert_eq!(service.ports.len(), ports, "{change}");
        assert!(
            service.problems.len() == 1 && service.problems[0].starts_with(problem),
            "{change}: {:?}",
            service.problems
        );
    }
}

#[test]
fn an_object_with_countless_faults_stays_readable() {
    let ports: Vec<Value> = (0..1000).map(|_| json!({"port": 0})).collect();
    let service = spec(json!({ "ports": ports }));
    assert!(service.problems.len() < 20);
    assert_eq!(service.problems.last().map(String::as_str), Some("and 984 more"));
    let long = annotated(json!({"pinnace.dev/addresses": "x".repeat(10_000)}));
    assert!(long.problems[0].len() < 200);
}

#[test]
fn source_ranges_come_from_the_field_else_the_annotation() {
    const NAME: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
    // Field, annotation → ranges, number of problems.
    type Case<'a> = (Option<&'a [&'a str]>, Option<&'a str>, Option<&'a [&'a str]>, usize);
    let cases: &[Case] = &[
        (None, None, None, 0),
        (Some(&[]), None, None, 0),
        (Some(&["10.0.0.0/8"]), Some("192.0.2.0/24"), Some(&["10.0.0.0/8"]), 0),
        (None, Some(" 192.0.2.0/24 , 2001:db8::/32 "), Some(&["192.0.2.0/24", "2001:db8::/32"]), 0),
        (None, Some("  "), None, 0),
        (Some(&[" 10.1.2.3/8\t", "10.0.0.0/8"]), None, Some(&["10.0.0.0/8"]), 0),
        (Some(&["10.0.0.1"]), None, Some(&[]), 1),
        (Some(&["everybody", "10.0.0.0/8"]), None, Some(&["10.0.0.0/8"]), 1),
        (None, Some("10.0.0.0/33"), Some(&[]), 1),
    ];
    for (field, annotation, expected, problems) in cases {
        let annotations = annotation.map_or(json!({}), |text| json!({ NAME: text }));
        let service = with(json!({ "loadBalancerSourceRanges": field }), annotations)
            .expect("a load balancer");
        let ranges = service
            .source_ranges
            .map(|ranges| ranges.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(
            ranges,
            expected.map(|list| list.iter().map(ToString::to_string).collect()),
            "{field:?} {annotation:?}"
        );
        assert_eq!(service.problems.len(), *problems, "{:?}", service.problems);
    }
    assert!(
        spec(json!({"loadBalancerSourceRanges": ["10.0.0.1"]})).problems[0]
            .ends_with("write 10.0.0.1/32")
    );
}

#[test]
fn requests_are_understood_in_every_dialect() {
    for name in [
        "pinnace.dev/addresses",
        "metallb.io/loadBalancerIPs",
        "metallb.universe.tf/loadBalancerIPs",
        "kube-vip.io/loadbalancerIPs",
        "purelb.io/addresses",
        "lbipam.cilium.io/ips",
        "loxilb.io/staticIP",
        "projectcalico.org/loadBalancerIPs",
    ] {
        assert_eq!(
            annotated(json!({ name: " 192.0.2.7 ,2001:db8::7" })).request.addresses,
            ips(&["192.0.2.7", "2001:db8::7"]),
            "{name}"
        );
        assert_eq!(
            annotated(json!({ name: r#"["192.0.2.7"]"# })).request.addresses,
            ips(&["192.0.2.7"]),
            "{name}"
        );
    }
    for name in [
        "pinnace.dev/pool",
        "metallb.io/address-pool",
        "metallb.universe.tf/address-pool",
        "purelb.io/service-group",
        "eip.openelb.kubesphere.io/v1alpha2",
        "service.antrea.io/external-ip-pool",
    ] {
        assert_eq!(
            annotated(json!({ name: " lan " })).request.pool.as_deref(),
            Some("lan"),
            "{name}"
        );
    }
    for name in [
        "pinnace.dev/allow-shared-ip",
        "metallb.io/allow-shared-ip",
        "metallb.universe.tf/allow-shared-ip",
        "purelb.io/allow-shared-ip",
        "lbipam.cilium.io/sharing-key",
    ] {
        assert_eq!(
            annotated(json!({ name: "key" })).request.sharing.as_deref(),
            Some("key"),
            "{name}"
        );
    }
    assert_eq!(annotated(json!({"pinnace.dev/mode": "node"})).request.mode, Some(Mode::Node));
    assert_eq!(annotated(json!({"pinnace.dev/mode": " vip "})).request.mode, Some(Mode::Vip));
    assert_eq!(
        ANNOTATIONS.iter().map(|(name, _, _)| name).collect::<BTreeSet<_>>().len(),
        ANNOTATIONS.len(),
        "no name twice"
    );
}

#[test]
fn requests_that_disagree_are_said_and_ours_settles_it() {
    // Annotations → addresses, words of the one problem.
    let cases = [
        (
            json!({"metallb.io/loadBalancerIPs": "192.0.2.1", "kube-vip.io/loadbalancerIPs": "192.0.2.1"}),
            &["192.0.2.1"][..],
            None,
        ),
        (
            json!({"metallb.io/loadBalancerIPs": "192.0.2.1", "kube-vip.io/loadbalancerIPs": "192.0.2.2"}),
            &["192.0.2.1"],
            Some(
                "metallb.io/loadBalancerIPs says \"192.0.2.1\" and kube-vip.io/loadbalancerIPs says \"192.0.2.2\"",
            ),
        ),
        (
            json!({"pinnace.dev/addresses": "192.0.2.3", "metallb.io/loadBalancerIPs": "192.0.2.1"}),
            &["192.0.2.3"],
            None,
        ),
        (
            json!({"pinnace.dev/addresses": "", "metallb.io/loadBalancerIPs": "192.0.2.1"}),
            &["192.0.2.1"],
            None,
        ),
        (
            json!({"kube-vip.io/loadbalancerIPs": "0.0.0.0"}),
            &[],
            Some("kube-vip.io/loadbalancerIPs: 0.0.0.0 asks for an address by DHCP"),
        ),
        (
            json!({"projectcalico.org/loadBalancerIPs": "[192.0.2.1]"}),
            &[],
            Some("projectcalico.org/loadBalancerIPs: "),
        ),
        (
            json!({"pinnace.dev/mode": "bridge"}),
            &[],
            Some("annotation pinnace.dev/mode: \"bridge\" is no mode; write vip or node"),
        ),
    ];
    for (annotations, addresses, problem) in cases {
        let service = annotated(annotations.clone());
        assert_eq!(service.request.addresses, ips(addresses), "{annotations}");
        let said = service.problems.first().map(String::as_str);
        assert!(
            service.problems.len() <= 1 && said.is_some() == problem.is_some(),
            "{annotations}: {said:?}"
        );
        assert!(
            said.unwrap_or_default().starts_with(problem.unwrap_or_default()),
            "{annotations}: {said:?}"
        );
    }
    let field = with(
        json!({"loadBalancerIP": "192.0.2.9"}),
        json!({"metallb.io/loadBalancerIPs": "192.0.2.1"}),
    )
    .unwrap();
    assert_eq!(field.request.addresses, ips(&["192.0.2.1"]));
    assert!(field.problems[0].contains("spec.loadBalancerIP says \"192.0.2.9\""));
    assert_eq!(spec(json!({"loadBalancerIP": "192.0.2.9"})).request.addresses, ips(&["192.0.2.9"]));
}

fn slice(change: Value) -> Converted<EndpointSlice> {
    let mut object = json!({
        "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": ["10.42.0.1", "10.42.0.2"]}],
    });
    merge(&mut object, change);
    endpoint_slice(&serde_json::from_value::<objects::EndpointSlice>(object).expect("a slice"))
}

#[test]
fn a_slice_says_when_its_endpoint_changed() {
    let dated = |annotations: Value| {
        let slice = json!({"metadata": {"name": "web-1", "annotations": annotations}, "addressType": "IPv4", "endpoints": []});
        last_change(&serde_json::from_value(slice).expect("a slice"))
    };
    let at = "2023-11-14T22:13:20.25Z";
    assert_eq!(
        dated(json!({"endpoints.kubernetes.io/last-change-trigger-time": at})),
        Some(TriggerTime::new(Duration::from_millis(1_700_000_000_250)))
    );
    for silent in
        [json!({}), json!({"endpoints.kubernetes.io/last-change-trigger-time": "yesterday"})]
    {
        assert_eq!(dated(silent), None);
    }
}

#[test]
fn slices_take_the_defaults_of_the_api() {
    let Converted { value, problems } = slice(json!({}));
    let slice = value.expect("a slice");
    assert_eq!(problems, [] as [&str; 0]);
    assert_eq!(
        (slice.key.to_string().as_str(), &*slice.service, slice.family),
        ("default/web-1", "web", Family::V4)
    );
    assert_eq!((slice.ports[0].port, slice.ports[0].protocol), (8080, Protocol::Tcp));
    let [endpoint] = &slice.endpoints[..] else { panic!("one endpoint, by its first address") };
    assert_eq!(
        (endpoint.address, endpoint.ready, endpoint.serving, endpoint.terminating),
        (ips(&["10.42.0.1"])[0], true, true, false)
    );
    assert_eq!(
        (&endpoint.node, endpoint.zone_hints().len(), endpoint.node_hints().len()),
        (&None, 0, 0)
    );
}

#[test]
fn conditions_and_hints_are_read() {
    let endpoint = json!({
        "addresses": ["10.42.0.1"], "nodeName": "node-1", "conditions": {"ready": false, "serving": false, "terminating": true},
        "hints": {"forZones": [{"name": "a"}, {"name": "b"}], "forNodes": [{"name": "node-1"}]},
    });
    let slice = slice(json!({ "endpoints": [endpoint] })).value.expect("a slice");
    let endpoint = &slice.endpoints[0];
    assert_eq!(
        (endpoint.ready, endpoint.serving, endpoint.terminating, endpoint.node.as_deref()),
        (false, false, true, Some("node-1"))
    );
    assert_eq!((endpoint.zone_hints().len(), endpoint.node_hints().len()), (2, 1));
}

#[test]
fn what_a_slice_cannot_use_is_left_out() {
    let endpoint = |address: &str| json!({ "endpoints": [{"addresses": [address]}, {"addresses": ["10.42.0.9"]}] });
    // Change → ports, endpoints, words of the problem.
    let cases = [
        (json!({"ports": null}), 0, 1, None),
        (json!({"ports": [{"name": "x"}, {"name": "y", "port": 0}, {"port": 81}]}), 1, 1, None),
        (json!({"ports": [{"port": 70_000}]}), 0, 1, Some("ports[0].port: 70000")),
        (
            json!({"ports": [{"port": 7, "protocol": "QUIC"}]}),
            0,
            1,
            Some("ports[0].protocol: \"QUIC\""),
        ),
        (json!({"endpoints": []}), 1, 0, None),
        (
            json!({"endpoints": [{"addresses": []}]}),
            1,
            0,
            Some("endpoints[0].addresses[0]: missing"),
        ),
        (
            endpoint("fd42::1"),
            1,
            1,
            Some("endpoints[0].addresses[0]: fd42::1 is not of the slice's addressType IPv4"),
        ),
        (
            endpoint("10.42.0"),
            1,
            1,
            Some("endpoints[0].addresses[0]: \"10.42.0\" is not an IP address"),
        ),
        (
            endpoint("127.0.0.1"),
            1,
            1,
            Some("endpoints[0].addresses[0]: 127.0.0.1 cannot be reached"),
        ),
        (
            endpoint("224.0.0.1"),
            1,
            1,
            Some("endpoints[0].addresses[0]: 224.0.0.1 cannot be reached"),
        ),
    ];
    for (change, ports, endpoints, problem) in cases {
        let Converted { value, problems } = slice(change.clone());
        let value = value.expect("a slice");
        assert_eq!((value.ports.len(), value.endpoints.len()), (ports, endpoints), "{change}");
        assert_eq!(problems.len(), usize::from(problem.is_some()), "{change}: {problems:?}");
        assert!(
            problems.iter().all(|said| said.starts_with(problem.unwrap_or_default())),
            "{change}: {problems:?}"
        );
    }
    assert_eq!(slice(json!({"addressType": "FQDN"})), Converted { value: None, problems: vec![] });
    assert_eq!(slice(json!({"addressType": "IPX"})).problems.len(), 1);
    assert!(
        slice(json!({"metadata": {"name": "x"}})).problems[0]
            .contains("kubernetes.io/service-name")
    );
}

fn a_node(labels: Value, spec: Value) -> Node {
    let object = json!({ "metadata": {"name": "node-1", "labels": labels}, "spec": spec });
    node(&serde_json::from_value::<objects::Node>(object).expect("a Node")).value.expect("a value")
}

#[test]
fn nodes_are_excluded_for_a_reason() {
    let labelled = |value: &str| {
        a_node(json!({"node.kubernetes.io/exclude-from-external-load-balancers": value}), json!({}))
            .excluded
    };
    for (value, excluded) in [
        ("true", true),
        ("", true),
        ("whatever", true),
        ("1", true),
        ("false", false),
        ("F", false),
        ("0", false),
    ] {
        assert_eq!(labelled(value), excluded.then_some(Exclusion::Label), "{value:?}");
    }
    let tainted = a_node(
        json!({}),
        json!({"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}),
    );
    assert_eq!(tainted.excluded, Some(Exclusion::Autoscaler));
    assert_eq!(a_node(json!({}), json!({"unschedulable": true})).excluded, None);
    let deleting = json!({"metadata": {"name": "n", "deletionTimestamp": "2024-05-01T00:00:00Z"}});
    assert_eq!(
        node(&serde_json::from_value(deleting).unwrap()).value.unwrap().excluded,
        Some(Exclusion::Deleting)
    );
}

#[test]
fn nodes_tell_addresses_ranges_and_pools() {
    let labels = json!({
        "svccontroller.k3s.cattle.io/enablelb": "true", "svccontroller.k3s.cattle.io/lbpool": "edge", "topology.kubernetes.io/zone": "a",
    });
    let labelled = a_node(
        labels,
        json!({"podCIDR": "10.42.0.0/24", "podCIDRs": ["10.42.0.0/24", "fd42::/64"]}),
    );
    assert_eq!(
        (labelled.enable_lb, labelled.pool.as_deref(), labelled.zone.as_deref()),
        (Some(true), Some("edge"), Some("a"))
    );
    assert_eq!(labelled.pod_cidrs.len(), 2);
    assert_eq!(
        a_node(json!({"svccontroller.k3s.cattle.io/enablelb": "yes"}), json!({})).enable_lb,
        Some(false)
    );
    assert_eq!(a_node(json!({}), json!({"podCIDR": "10.42.0.0/24"})).pod_cidrs.len(), 1);
    assert_eq!(a_node(json!({}), json!({})).enable_lb, None);
    let addresses = json!([
        {"type": "InternalIP", "address": "10.0.0.1"}, {"type": "ExternalIP", "address": "192.0.2.1"}, {"type": "Hostname", "address": "n"},
        {"type": "InternalIP", "address": "fd00::1"}, {"type": "InternalIP", "address": "n"}, {"type": "InternalIP", "address": "10.0.0.1"},
    ]);
    let object = json!({"metadata": {"name": "n"}, "spec": {"podCIDRs": ["x"]}, "status": {"addresses": addresses}});
    let Converted { value, problems } = node(&serde_json::from_value(object).unwrap());
    let value = value.unwrap();
    assert_eq!(
        (value.internal, value.external),
        (ips(&["10.0.0.1", "fd00::1"]), ips(&["192.0.2.1"]))
    );
    assert_eq!(problems.len(), 2, "{problems:?}");
}

#[test]
fn wishes_of_kube_vip_that_are_not_met_are_answered() {
    for (name, answer) in ANSWERED {
        let service = annotated(json!({ *name: "wlan0" }));
        assert!(
            service.problems.len() == 1
                && service.problems[0].contains(name)
                && service.problems[0].contains(answer),
            "{service:?}"
        );
        assert_eq!(annotated(json!({ *name: "false" })).problems, Vec::<String>::new());
    }
    let ignore = |value: &str| annotated(json!({ "kube-vip.io/ignore": value })).request.ignore;
    assert!(
        ignore("true")
            && !ignore("false")
            && !ignore("perhaps")
            && !annotated(json!({})).request.ignore
    );
    assert!(
        annotated(json!({ "kube-vip.io/ignore": "perhaps" })).problems[0]
            .contains("neither true nor false")
    );
}
