//! The specification as a table: endpoints in, backends out.
//!
//! An endpoint is written `name@node` and marks: `-` not ready, `t` terminating (ready nil →
//! false), `x` not serving, `#n1` hint for node n1, `%za` hint for zone za. `a` is 10.0.0.1, `b`
//! 10.0.0.2 and so on; we are node n1 in zone za.

use super::*;
use crate::model::{fixtures, *};

fn endpoint(text: &str) -> Endpoint {
    let (name, rest) = text.split_at(1);
    let number = name.as_bytes()[0] - b'a' + 1;
    let (place, hints) = rest.find(['#', '%']).map_or((rest, ""), |at| rest.split_at(at));
    let (marks, node) = place.split_once('@').map_or((place, None), |(m, n)| (m, Some(n.into())));
    let hint = |mark: char| {
        let starts =
            hints.char_indices().filter(|(_, c)| *c == mark).map(|(at, _)| &hints[at + 1..]);
        starts.map(|rest| rest[..rest.find(['#', '%']).unwrap_or(rest.len())].into()).collect()
    };
    let terminating = marks.contains('t');
    Endpoint {
        address: IpAddr::from([10, 0, 0, number]),
        node,
        ready: !marks.contains('-') && !terminating,
        serving: !marks.contains('x') && (terminating || !marks.contains('-')),
        terminating,
        hints: Some(Box::new(EndpointHints { zones: hint('%'), nodes: hint('#') })),
    }
}

fn service() -> Service {
    fixtures::service("web")
}

fn slice(endpoints: &str, port: u16) -> EndpointSlice {
    EndpointSlice {
        key: ObjectKey::new("default", "web-1"),
        service: "web".into(),
        family: Family::V4,
        ports: vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, port }],
        endpoints: endpoints.split_whitespace().map(endpoint).collect(),
    }
}

const HERE: Here<'static> = Here { node: "n1", zone: Some("za"), dead: &Dead::new() };

fn names(backends: &[Backend]) -> String {
    let name = |b: &Backend| match b.address {
        IpAddr::V4(a) => char::from(b'a' + a.octets()[3] - 1),
        IpAddr::V6(_) => '6',
    };
    backends.iter().map(name).collect()
}

#[test]
fn the_table_of_cases() {
    // endpoints                        cluster  local   why
    let cases = [
        ("a@n1 b@n2", "ab", "a", "all, and those on this node"),
        ("", "", "", "none at all"),
        ("a b", "ab", "", "without nodeName local to no node"),
        ("b@n2 a@n1 a@n1", "ab", "a", "sorted, each once"),
        ("a-@n1 b@n2", "b", "", "not ready is not used"),
        (
            "at@n1 b@n2",
            "b",
            "a",
            "KEP-1669: Local falls back by itself while Cluster has a ready one",
        ),
        ("at@n1 bt@n2", "ab", "a", "KEP-1669: all terminating: all that serve"),
        ("atx@n1 bt@n2", "b", "", "terminating and no longer serving: never"),
        ("at@n1 b@n1", "b", "b", "a ready one beats a terminating one"),
        ("a-@n1 bt@n2", "b", "", "not ready and not terminating is no last resort"),
        ("a@n1#n1 b@n2#n2", "a", "a", "node hints on all, one names us"),
        ("a@n1#n1 b@n2", "ab", "a", "a hint is missing: all"),
        ("a@n2#n2 b@n3#n3", "ab", "", "no hint names us: all"),
        ("a@n2%za b@n3%zb", "a", "", "zone hints on all, one names ours"),
        ("a@n2%zb b@n3%zb", "ab", "", "no zone hint names ours: all"),
        ("a@n2#n2%za b@n3#n3%zb", "a", "", "no node hint names us, so zones decide"),
        ("a@n2%za%zb b@n3%zb", "a", "", "several zones in one hint"),
        ("a@n2%za bt@n3", "a", "", "only ready endpoints need a hint"),
        ("a-@n1#n1 b@n2#n2", "b", "", "a hint of one that is not ready does not count"),
        ("a@n2#n2 b@n1#n2", "ab", "b", "Local means the node, whatever the hints say"),
    ];
    for (endpoints, cluster, local, why) in cases {
        let slice = slice(endpoints, 8080);
        let found = resolve(&service(), [&slice].into_iter(), &HERE, Family::V4);
        assert_eq!(
            (names(&found[0].cluster), names(&found[0].local)),
            (cluster.to_string(), local.to_string()),
            "{endpoints}: {why}"
        );
    }
}

#[test]
fn ports_join_by_name_and_protocol_and_the_number_is_the_slices() {
    let mut service = service();
    let port = |name: &str, protocol, port| ServicePort { name: name.into(), protocol, port };
    service.ports = vec![
        port("dns", Protocol::Tcp, 53),
        port("dns-udp", Protocol::Udp, 53),
        port("gone", Protocol::Tcp, 99),
    ];
    let mut first = slice("a@n1", 0);
    let slice_port = |name: &str, protocol, port| SlicePort { name: name.into(), protocol, port };
    first.ports =
        vec![slice_port("dns", Protocol::Tcp, 5353), slice_port("dns-udp", Protocol::Udp, 5354)];
    let mut second = slice("b@n1", 0);
    second.ports =
        vec![slice_port("dns", Protocol::Tcp, 1053), slice_port("dns-udp", Protocol::Tcp, 1)];
    let found = resolve(&service, [&first, &second].into_iter(), &HERE, Family::V4);
    let numbers: Vec<Vec<u16>> =
        found.iter().map(|p| p.cluster.iter().map(|b| b.port).collect()).collect();
    assert_eq!(numbers, [vec![5353, 1053], vec![5354], vec![]]);
}

#[test]
fn a_slice_of_the_other_family_is_not_seen() {
    let mut v6 = slice("a@n1", 80);
    v6.family = Family::V6;
    v6.endpoints[0].address = "fd42::1".parse().unwrap();
    let slices = [&v6, &slice("b@n1", 80)];
    assert_eq!(names(&resolve(&service(), slices.into_iter(), &HERE, Family::V4)[0].cluster), "b");
    assert_eq!(names(&resolve(&service(), slices.into_iter(), &HERE, Family::V6)[0].cluster), "6");
}

#[test]
fn policies_become_targets() {
    use TrafficPolicy::{Cluster, Local};
    let spread = |text: &str| {
        let found = resolve(&service(), [&slice(text, 80)].into_iter(), &HERE, Family::V4);
        Balancing::FlowHash(found[0].cluster.clone())
    };
    // policy, endpoints → internal, external
    let cases = [
        (Cluster, "a@n1 b@n2", spread("a@n1 b@n2"), None),
        (Cluster, "", Balancing::Reject, None),
        (Local, "a@n1 b@n2", spread("a@n1 b@n2"), Some(spread("a@n1"))),
        (Local, "a@n1", spread("a@n1"), None),
        (Local, "b@n2", spread("b@n2"), Some(Balancing::Drop)),
        (Local, "", Balancing::Reject, None),
    ];
    for (policy, endpoints, internal, external) in cases {
        let service = Service { external: policy, ..service() };
        let found = resolve(&service, [&slice(endpoints, 80)].into_iter(), &HERE, Family::V4);
        let forwarding = forwarding(&service, &found[0], Family::V4);
        assert_eq!(
            (forwarding.internal, forwarding.external),
            (internal, external),
            "{policy:?} {endpoints:?}"
        );
    }
}

#[test]
fn source_ranges_of_one_family_close_the_other() {
    let ranges = |texts: &[&str]| {
        Some(texts.iter().map(|t| t.parse().unwrap()).collect::<Vec<ipnet::IpNet>>())
    };
    let with = |source_ranges, family| sources(&Service { source_ranges, ..service() }, family);
    assert_eq!(with(None, Family::V4), None);
    assert_eq!(with(ranges(&["10.0.0.0/8"]), Family::V4), ranges(&["10.0.0.0/8"]));
    assert_eq!(with(ranges(&["10.0.0.0/8"]), Family::V6), Some(vec![]));
    assert_eq!(
        with(ranges(&["10.0.0.0/8", "10.1.0.0/16", "0.0.0.0/1"]), Family::V4),
        ranges(&["0.0.0.0/1"]),
        "overlaps are merged"
    );
    assert_eq!(with(ranges(&["0.0.0.0/0", "10.1.0.0/16"]), Family::V4), None, "everybody");
    assert_eq!(
        with(ranges(&[]), Family::V4),
        Some(vec![]),
        "all given ranges were invalid: nobody"
    );
}

#[test]
fn health_counts_ready_endpoints_here_by_address() {
    let slices = [slice("a@n1 b@n1 c@n2 d-@n1 et@n1", 80), slice("a@n1", 81)];
    assert_eq!(local_ready(slices.iter(), "n1"), 2);
    assert_eq!(local_ready(slices.iter(), "n2"), 1);
    assert_eq!(local_ready(slices.iter(), "n3"), 0);
    let mut v6 = slice("a@n1", 80);
    v6.family = Family::V6;
    assert_eq!(
        local_ready([&slices[0], &v6].into_iter(), "n1"),
        2,
        "a pod of both families counts once"
    );
}

#[test]
fn a_port_that_no_slice_with_endpoints_has_leads_nowhere() {
    let port = |name: &str| ServicePort { name: name.into(), protocol: Protocol::Tcp, port: 80 };
    let service = Service { ports: vec![port("http"), port("admin")], ..service() };
    type Case = (&'static [(&'static str, &'static str)], &'static [&'static str], &'static str);
    // slices (port of the slice, endpoints)          lead nowhere       why
    let cases: [Case; 6] = [
        (&[], &[], "nothing is known yet"),
        (&[("http", "")], &[], "no endpoints: nothing is said about ports"),
        (&[("http", "a@n1")], &["admin"], "no container has a port of that name"),
        (&[("", "a@n1")], &["http", "admin"], "nor of any"),
        (&[("http", "a@n1"), ("admin", "")], &["admin"], "a slice without endpoints is no way"),
        (&[("http", "a@n1"), ("admin", "b-")], &[], "not ready, but there"),
    ];
    for (slices, expected, why) in cases {
        let slices: Vec<EndpointSlice> = slices
            .iter()
            .map(|(name, endpoints)| {
                let ports =
                    vec![SlicePort { name: (*name).into(), protocol: Protocol::Tcp, port: 8080 }];
                EndpointSlice { ports, ..slice(endpoints, 8080) }
            })
            .collect();
        let found: Vec<&str> =
            unmatched(&service, slices.iter()).iter().map(|port| &*port.name).collect();
        assert_eq!(found, expected, "{why}");
    }
}

#[test]
fn endpoints_of_a_dead_node_are_left_out_unless_nothing_would_be_left() {
    let at = |address: &str, node: &str| Endpoint {
        address: address.parse().unwrap(),
        node: Some(node.into()),
        ready: true,
        serving: true,
        terminating: false,
        hints: None,
    };
    let slice = EndpointSlice {
        key: ObjectKey::new("default", "web"),
        service: "web".into(),
        family: Family::V4,
        ports: vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: vec![at("10.42.1.5", "n2"), at("10.42.2.5", "n3"), at("10.42.2.6", "n3")],
    };
    let found = |dead: &Dead| {
        let here = Here { node: "n1", zone: None, dead };
        let ports = resolve(
            &crate::model::fixtures::service("web"),
            [&slice].into_iter(),
            &here,
            Family::V4,
        );
        ports[0].cluster.iter().map(|backend| backend.address.to_string()).collect::<Vec<_>>()
    };
    let addresses =
        |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<BTreeSet<IpAddr>>();
    let n3 = ("n3".into(), addresses(&["10.42.2.5"]));
    assert_eq!(
        found(&Dead::from([n3.clone()])),
        ["10.42.1.5", "10.42.2.6"],
        "what appeared there after the death is alive"
    );
    let n2 = ("n2".into(), addresses(&["10.42.1.5"]));
    let both = Dead::from([n2, ("n3".into(), addresses(&["10.42.2.5", "10.42.2.6"]))]);
    assert_eq!(found(&both).len(), 3, "nothing would be left");
}
