//! Whatever stands in a file: no panic, no object of another file lost, and the fast path never
//! reads anything but what the general parser reads.

use proptest::prelude::*;

use super::block;
use super::parse::{Object, Parsed, parse};
use super::split::{Document, DocumentKind, Format, split};
use super::store::ManifestStore;
use super::text::yaml;
use crate::model::state::SourceProblem;

const GOOD: &str = concat!(
    include_str!("../../tests/examples/web.yaml"),
    "---\n",
    include_str!("../../tests/examples/dns.yaml"),
    "---\n",
    include_str!("../../tests/examples/node.yaml"),
    "---\napiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata:\n    name: x\n  spec: {type: LoadBalancer}\n",
);

const GOOD_JSON: &str = r#"{"apiVersion":"v1","kind":"List","items":[
{"apiVersion":"v1","kind":"Service","metadata":{"name":"web"},"spec":{"type":"LoadBalancer","ports":[{"port":80}]}},
{"apiVersion":"v1","kind":"Node","metadata":{"name":"n"},"status":{"addresses":[{"type":"InternalIP","address":"10.0.0.1"}]}}]}"#;

/// Reads the text as a second file beside a good one and returns what is said about it.
fn read(text: &str, format: Format) -> Vec<SourceProblem> {
    let mut store = ManifestStore::default();
    let other =
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: other\nspec:\n  type: LoadBalancer\n";
    store.put("a.yaml", Format::Yaml, other, false);
    assert_eq!(store.take_changes().len(), 1);
    store.put("b.yaml", format, text, false);
    store.put("b.yaml", format, text, false);
    drop(store.take_changes());
    let problems = store.problems();
    store.remove("b.yaml");
    drop(store.take_changes());
    store.remove("a.yaml");
    assert_eq!(store.take_changes().len(), 1, "the other file's object was there all the time");
    problems
}

/// Replaces, inserts, deletes or doubles something at a place given in thousandths of the text.
fn mutate(text: &str, changes: &[(u32, u8, String)]) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for (place, how, with) in changes {
        let at = bytes.len() * *place as usize / 1000;
        let end = (at + with.len()).min(bytes.len());
        match how % 4 {
            0 => drop(bytes.splice(at..end, with.bytes())),
            1 => drop(bytes.splice(at..at, with.bytes())),
            2 => drop(bytes.drain(at..end)),
            _ => {
                let copy = bytes[at..end].to_vec();
                drop(bytes.splice(at..at, copy));
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn changes() -> impl Strategy<Value = Vec<(u32, u8, String)>> {
    let fragment = prop_oneof![
        "[ -~\n]{1,8}",
        prop::sample::select(vec![
            "\n---\n", "\n...\n", "- ", ": ", "  ", "\t", "{", "[", "\"", "'", "|\n", "&a ", "*a",
            "!!x ", "#", "null", "\u{0}", "é", "0", "99999"
        ])
        .prop_map(str::to_owned),
    ];
    prop::collection::vec((0..1000_u32, any::<u8>(), fragment), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_text_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let text = String::from_utf8_lossy(&bytes);
        read(&text, Format::Yaml);
        read(&text, Format::Json);
    }

    #[test]
    fn yaml_like_text_never_panics(text in "([ ]{0,4}(- |kind: |items:|metadata:|name: a|apiVersion: v1|List|Service|---|\\.\\.\\.|[{}\\[\\]&*|>'\"#])*\n){0,12}") {
        read(&text, Format::Yaml);
    }

    #[test]
    fn mutated_manifests_never_panic(changes in changes()) {
        read(&mutate(GOOD, &changes), Format::Yaml);
        read(&mutate(GOOD_JSON, &changes), Format::Json);
    }

    #[test]
    fn the_fast_path_reads_what_the_general_parser_reads(changes in changes()) {
        split(&mutate(GOOD, &changes), Format::Yaml, &mut |piece| {
            let Ok(piece) = piece else { return };
            let Some(json) = (piece.shape == DocumentKind::Yaml).then(|| block::to_json(&piece.text)).flatten() else { return };
            let Ok(general) = yaml::<serde_json::Value>(&piece.text) else {
                panic!("taken for plain, but no YAML: {:?}", piece.text);
            };
            let general = Document { text: general.to_string().into(), shape: DocumentKind::Json, ..piece.clone() };
            let fast = Document { text: json.into(), shape: DocumentKind::Json, ..piece };
            if let (Parsed::Object { value: fast, .. }, Parsed::Object { value: general, .. }) = (parse(&fast), parse(&general)) {
                assert_eq!(fast, general);
            }
        });
    }
}

#[test]
fn the_good_text_is_good() {
    assert_eq!(read(GOOD, Format::Yaml), []);
    assert_eq!(read(GOOD_JSON, Format::Json), []);
    let mut services = 0;
    split(GOOD, Format::Yaml, &mut |piece| {
        services += u32::from(matches!(
            parse(&piece.expect("a document")),
            Parsed::Object { value: Some(Object::Service(_)), .. }
        ));
    });
    assert_eq!(services, 3);
}

#[test]
fn deep_nesting_and_alias_bombs_are_refused_in_good_time() {
    for opening in ["[", "{a: ", "- ", "{\"a\":"] {
        let deep = opening.repeat(100_000);
        assert_eq!(read(&deep, Format::Yaml).len(), 1, "{opening}");
        read(&deep, Format::Json);
    }
    let mut bomb = String::from("a0: &a0 [x]\n");
    for n in 1..30 {
        bomb += &format!("a{n}: &a{n} [*a{0}, *a{0}, *a{0}, *a{0}]\n", n - 1);
    }
    let start = std::time::Instant::now();
    read(&format!("kind: Service\napiVersion: v1\nmetadata: *a29\n{bomb}"), Format::Yaml);
    read(&format!("kind: List\nitems: [*a29]\n{bomb}"), Format::Yaml);
    assert!(start.elapsed().as_secs() < 20);
}
