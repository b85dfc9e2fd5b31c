use super::*;
use crate::manifests::split::{Format, split};

fn parse_all(text: &str, format: Format) -> Vec<Parsed> {
    let mut parsed = Vec::new();
    split(text, format, &mut |piece| parsed.push(parse(&piece.expect("a document"))));
    parsed
}

/// `kind namespace/name`, `~kind` for foreign ones, `line!reason` for broken ones.
fn outcome(text: &str) -> String {
    match parse_all(text, Format::Yaml).remove(0) {
        Parsed::Object { id, .. } => id.to_string(),
        Parsed::Foreign { kind } => format!("~{kind}"),
        Parsed::Noted { note } => format!("~{note}"),
        Parsed::Broken { fault, about } => format!(
            "{}!{} ({})",
            fault.line,
            fault.reason,
            about.map_or("-".into(), |id| id.to_string())
        ),
    }
}

#[test]
fn kinds_and_versions_decide_who_reads_a_document() {
    for (text, expected) in [
        ("apiVersion: v1\nkind: Service\nmetadata: {name: a}\n", "Service default/a"),
        ("apiVersion: v1\nkind: Service\nmetadata:\n  namespace: n\n  name: a\n", "Service n/a"),
        ("apiVersion: v1\nkind: Node\nmetadata:\n  name: a.b\n", "Node a.b"),
        (
            "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {name: a}}\n",
            "EndpointSlice default/a",
        ),
        (
            "\"kind\": \"Service\"\n'apiVersion': v1\nmetadata:\n  \"name\": a\n",
            "Service default/a",
        ),
        ("apiVersion: apps/v1\nkind: Deployment\nmetadata: [\n", "~Deployment"),
        ("apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata:\n  name: a\n", "~Service"),
        ("apiVersion: v1\nkind: Endpoints\nmetadata:\n  name: a\n", "~Endpoints"),
        (
            "apiVersion: v1\nmetadata:\n  name: a\n",
            "1!kind is missing; write Service, EndpointSlice or Node (-)",
        ),
        (
            "kind: Service\nmetadata:\n  name: a\n",
            "1!apiVersion is missing; write v1 (Service default/a)",
        ),
        (
            "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\nmetadata:\n  name: a\n",
            "1!apiVersion: \"discovery.k8s.io/v1beta1\" of EndpointSlice is not supported; write discovery.k8s.io/v1 (EndpointSlice default/a)",
        ),
        (
            "apiVersion: v1\nkind: services\nmetadata:\n  name: a\n",
            "1!kind: \"services\" is unknown; did you mean Service? (-)",
        ),
        ("apiVersion: v1\nkind: Service\nmetadata: {}\n", "1!metadata.name is missing (-)"),
        (
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: A_b\n",
            "1!metadata.name: \"A_b\" is no valid name; use lower case letters, digits and '-' (Service default/A_b)",
        ),
    ] {
        assert_eq!(outcome(text), expected, "{text}");
    }
}

#[test]
fn faults_tell_the_line() {
    let text = "# first\napiVersion: v1\nkind: Service\nmetadata:\n  name: a\nspec:\n  type: LoadBalancer\n  ports:\n  - port: eighty\n";
    let said = outcome(text);
    // The document begins at the second line of the text.
    assert!(said.starts_with("8!") && said.ends_with("(Service default/a)"), "{said}");
    assert!(!said.contains("line "), "the parser's own line must not confuse: {said}");
    let json = "{\"apiVersion\":\"v1\",\"kind\":\"Service\",\n\"metadata\":{\"name\":\"a\"},\n\"spec\":{\"ports\":[{\"port\":\"x\"}]}}";
    let said = outcome(json);
    assert!(
        said.starts_with("3!invalid type")
            && said.ends_with("(Service default/a)")
            && !said.contains("line "),
        "{said}"
    );
}

#[test]
fn items_of_a_typed_list_need_no_kind() {
    let text = "apiVersion: v1\nkind: ServiceList\nitems:\n- metadata:\n    name: a\n  spec:\n    type: LoadBalancer\n    ports:\n    - port: 80\n- metadata: {name: b}\n";
    let names: Vec<String> = parse_all(text, Format::Yaml)
        .into_iter()
        .map(|parsed| match parsed {
            Parsed::Object { id, value, .. } => format!("{id} {}", value.is_some()),
            other => format!("{other:?}"),
        })
        .collect();
    assert_eq!(names, ["Service default/a true", "Service default/b false"]);
}

#[test]
fn the_scan_agrees_with_the_parser_where_it_finds_anything() {
    for text in [
        "kind: Service\napiVersion: v1\nmetadata:\n    namespace: 'n' # note\n    labels:\n      name: wrong\n    name: a\nspec:\n  kind: wrong\n",
        "metadata:\n- name: wrong\nkind: Service # note\n",
        "kind: Service\nmetadata:\n\n  # note\n  name: \"a\"\n",
    ] {
        let scanned = scan(text);
        let parsed = yaml::<Head>(text).unwrap_or_else(|_| scanned.clone());
        assert_eq!(
            (scanned.kind.as_ref(), scanned.id()),
            (parsed.kind.as_ref(), parsed.id()),
            "{text}"
        );
    }
    assert_eq!(
        scan("- kind: Service\n  metadata:\n    name: a\n")
            .id()
            .map(|id| id.to_string())
            .as_deref(),
        Some("Service default/a")
    );
}

#[test]
fn problems_of_a_slice_stand_beside_its_value() {
    let text = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: a\n  labels:\n    kubernetes.io/service-name: a\naddressType: IPv4\nendpoints:\n- addresses: [fd42::1]\n- addresses: [10.42.0.1]\n";
    let Parsed::Object { value: Some(Object::EndpointSlice(slice)), problems, .. } =
        parse_all(text, Format::Yaml).remove(0)
    else {
        panic!()
    };
    assert_eq!((slice.endpoints.len(), problems.len()), (1, 1));
}

#[test]
fn the_ranges_of_kube_vip_are_answered_with_pools() {
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: kubevip\n  namespace: kube-system\ndata:\n  range-global: 10.88.0.200-10.88.0.210\n";
    let piece = Document { text: text.into(), line: 1, shape: DocumentKind::Yaml, implied: None };
    let Parsed::Noted { note } = parse(&piece) else { panic!("it is not noted") };
    assert!(note.contains("PINNACE_POOLS=\"10.88.0.200-10.88.0.210\""), "{note}");
}
