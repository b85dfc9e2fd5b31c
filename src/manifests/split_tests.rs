use super::*;

/// Every piece as `line:text`, faults as `line!reason`.
fn pieces(text: &str, format: Format) -> Vec<String> {
    let mut found = Vec::new();
    split(text, format, &mut |piece| {
        found.push(match piece {
            Ok(piece) => format!("{}:{}", piece.line, piece.text.trim_end().replace('\n', "|")),
            Err(fault) => format!("{}!{}", fault.line, fault.reason),
        });
    });
    found
}

#[test]
fn manifests_are_told_by_their_names() {
    for (name, format) in [
        ("a.yaml", Some(Format::Yaml)),
        ("a.yml", Some(Format::Yaml)),
        ("a.b.json", Some(Format::Json)),
        (".a.yaml", None),
        (".a.yaml.swp", None),
        ("a.yaml~", None),
        ("#a.yaml#", None),
        (".#a.yaml", None),
        ("4913", None),
        ("README.md", None),
        ("yaml", None),
        ("", None),
    ] {
        assert_eq!(Format::of(name), format, "{name}");
    }
}

#[test]
fn documents_end_at_their_markers() {
    // Text → pieces.
    let cases: &[(&str, &[&str])] = &[
        ("", &[]),
        ("# only\n\n---\n# comments\n---\n", &[]),
        ("a: 1\n", &["1:a: 1"]),
        ("a: 1", &["1:a: 1"]),
        ("\u{feff}---\na: 1\n---\nb: 2\n", &["2:a: 1", "4:b: 2"]),
        ("%YAML 1.2\n---\na: 1\n...\n# x\n---\nb: 2\n", &["3:a: 1", "7:b: 2"]),
        ("a: 1\r\n---\r\nb: 2\r\n", &["1:a: 1", "3:b: 2"]),
        ("--- # comment\na: 1\n---   \nb: 2\n", &["2:a: 1", "4:b: 2"]),
        ("a: |\n  ---\n----\n", &["1:a: ||  ---|----"]),
        ("{\"a\": 1}\n---\n{b: 2}\n", &["1:{\"a\": 1}", "3:{b: 2}"]),
    ];
    for (text, expected) in cases {
        assert_eq!(pieces(text, Format::Yaml), *expected, "{text:?}");
    }
    assert_eq!(pieces("--- {a: 1}\n", Format::Yaml), ["1: {a: 1}"]);
}

#[test]
fn lists_are_taken_apart_however_they_are_written() {
    // Text → pieces.
    let cases: &[(&str, &[&str])] = &[
        (
            "kind: List\nitems:\n- a: 1\n  b: 2\n- c: 3\nmetadata: {}\n",
            &["3:- a: 1|  b: 2", "5:- c: 3"],
        ),
        (
            "items:\n  - a: 1\n    l:\n    - x\n  # note\n  - c: 3\nkind: List\n",
            &["2:  - a: 1|    l:|    - x|  # note", "6:  - c: 3"],
        ),
        ("kind: List\nitems: # these\n-\n  a: 1\n", &["3:-|  a: 1"]),
        ("kind: List\nitems: []\n", &[]),
        ("kind: List\n", &[]),
        ("kind: List\nitems: [{a: 1}]\n", &["1:{\"a\":1}"]),
        ("kind: List\nitems:\n- &x {a: 1}\n- *x\n", &["1:{\"a\":1}", "1:{\"a\":1}"]),
        ("kind: List\nitems: 7\n", &["1!items: not a list"]),
        (
            "{\"kind\": \"List\", \"items\": [\n{\"a\": 1},\n{\"b\": 2}]}\n",
            &["2:{\"a\": 1}", "3:{\"b\": 2}"],
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(pieces(text, Format::Yaml), *expected, "{text:?}");
    }
    let after = pieces("kind: List\nitems:\n- a: 1\nmetadata: [\n", Format::Yaml);
    assert!(
        after.len() == 2 && after[0].starts_with("4!") || after[0].starts_with("5!"),
        "{after:?}"
    );
}

#[test]
fn json_values_follow_each_other() {
    assert_eq!(pieces("\n{\"a\":1}\n{\"b\":\n2}\n", Format::Json), ["2:{\"a\":1}", "3:{\"b\":|2}"]);
    let list = "{\"kind\":\"ServiceList\",\"apiVersion\":\"v1\",\"items\":[\n{\"a\":1},\n\n{\"b\":2}]}\n{\"c\":3}";
    assert_eq!(pieces(list, Format::Json), ["2:{\"a\":1}", "4:{\"b\":2}", "5:{\"c\":3}"]);
    let broken = pieces("{\"a\":1}\n{\"b\":\n,}", Format::Json);
    assert!(broken.len() == 2 && broken[1].starts_with("3!expected value"), "{broken:?}");
}

#[test]
fn items_of_a_typed_list_know_their_kind() {
    let mut implied = None;
    split("kind: ServiceList\napiVersion: v1\nitems:\n- a: 1\n", Format::Yaml, &mut |piece| {
        implied = piece.expect("a document").implied
    });
    assert_eq!(implied, Some(("v1".into(), "Service".into())));
}
