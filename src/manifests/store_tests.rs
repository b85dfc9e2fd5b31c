use super::*;
use crate::model::ObjectKey;

fn service(name: &str, port: u32) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  type: LoadBalancer\n  ports:\n  - port: {port}\n"
    )
}

/// A Service that cannot be parsed but still shows its name.
fn broken(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  type: [LoadBalancer\n"
    )
}

fn join(documents: &[String]) -> String {
    documents.join("---\n")
}

/// The changes as `+name:port` and `-name`.
fn changes(store: &mut ManifestStore) -> Vec<String> {
    let describe = |change: &SourceChange| match change {
        SourceChange::Service(key, Some(service)) => {
            format!("+{}:{}", key.name, service.ports.first().map_or(0, |port| port.port))
        }
        SourceChange::Service(key, None) => format!("-{}", key.name),
        other => format!("{other:?}"),
    };
    store.take_changes().iter().map(describe).collect()
}

fn put(store: &mut ManifestStore, file: &str, documents: &[String]) -> Vec<String> {
    store.put(file, Format::Yaml, &join(documents), false);
    changes(store)
}

/// `file:line reason`
fn problems(store: &ManifestStore) -> Vec<String> {
    store
        .problems()
        .iter()
        .map(|problem| format!("{} {}", problem.source, problem.reason))
        .collect()
}

#[test]
fn only_what_changed_is_handed_on() {
    let mut store = ManifestStore::default();
    assert_eq!(
        put(&mut store, "a.yaml", &[service("a", 80), service("b", 80)]),
        ["+a:80", "+b:80"]
    );
    assert_eq!(put(&mut store, "a.yaml", &[service("a", 80), service("b", 80)]), [] as [&str; 0]);
    assert_eq!(put(&mut store, "a.yaml", &[service("b", 80), service("a", 81)]), ["+a:81"]);
    assert_eq!(
        put(&mut store, "a.yaml", &["# a comment\n".to_owned() + &service("a", 81)]),
        ["-b"]
    );
    store.put("a.yaml", Format::Yaml, &service("a", 81), true);
    assert_eq!(changes(&mut store), [] as [&str; 0]);
    store.remove("a.yaml");
    assert_eq!(changes(&mut store), ["-a"]);
    store.remove("a.yaml");
    assert_eq!(changes(&mut store), [] as [&str; 0]);
}

#[test]
fn a_service_that_leaves_the_type_goes_away() {
    let mut store = ManifestStore::default();
    put(&mut store, "a.yaml", &[service("a", 80)]);
    let cluster_ip = service("a", 80).replace("LoadBalancer", "ClusterIP");
    assert_eq!(put(&mut store, "a.yaml", std::slice::from_ref(&cluster_ip)), ["-a"]);
    store.remove("a.yaml");
    assert_eq!(changes(&mut store), [] as [&str; 0]);
    assert_eq!(put(&mut store, "a.yaml", &[cluster_ip]), [] as [&str; 0]);
}

#[test]
fn a_broken_document_keeps_its_last_good_version() {
    let mut store = ManifestStore::default();
    put(&mut store, "a.yaml", &[service("a", 80), service("b", 80), service("c", 80)]);
    assert_eq!(put(&mut store, "a.yaml", &[service("a", 81), broken("b")]), ["+a:81", "-c"]);
    let [problem] = &store.problems()[..] else { panic!("one problem") };
    let (file, line) = problem.source.split_once(':').expect("a file and a line");
    assert_eq!((file, problem.object.as_deref()), ("a.yaml", Some("Service default/b")));
    assert!((14..=16).contains(&line.parse::<u32>().expect("a line")), "{problem:?}");
    assert!(problem.reason.contains("last good version"), "{problem:?}");
    // Still broken, again and again; then mended as it was: no change at all.
    assert_eq!(put(&mut store, "a.yaml", &[broken("b"), service("a", 81)]), [] as [&str; 0]);
    assert_eq!(put(&mut store, "a.yaml", &[service("a", 81), service("b", 80)]), [] as [&str; 0]);
    assert_eq!(problems(&store), [] as [&str; 0]);
    put(&mut store, "a.yaml", &[service("a", 81), broken("b")]);
    assert_eq!(put(&mut store, "a.yaml", &[service("a", 81)]), ["-b"]);
}

#[test]
fn a_document_nobody_recognises_keeps_everything_the_file_had() {
    let mut store = ManifestStore::default();
    put(&mut store, "a.yaml", &[service("a", 80), service("b", 80), service("c", 80)]);
    assert_eq!(put(&mut store, "a.yaml", &["{{{\n".into(), service("c", 81)]), ["+c:81"]);
    assert_eq!(put(&mut store, "a.yaml", &["{{{\n".into()]), [] as [&str; 0]);
    assert_eq!(put(&mut store, "a.yaml", &[broken("brand-new")]), [] as [&str; 0]);
    assert_eq!(put(&mut store, "a.yaml", &[service("a", 80)]), ["-b", "-c"]);
}

#[test]
fn a_file_that_cannot_be_read_keeps_what_it_defined() {
    let mut store = ManifestStore::default();
    put(&mut store, "a.yaml", &[service("a", 80)]);
    store.fail("a.yaml", "is not UTF-8 text".into());
    assert_eq!(
        (changes(&mut store), problems(&store)),
        (vec![], vec!["a.yaml is not UTF-8 text".to_owned()])
    );
    assert_eq!(put(&mut store, "a.yaml", &[service("a", 80)]), [] as [&str; 0]);
    assert_eq!(problems(&store), [] as [&str; 0]);
}

/// As the watcher does: files asked for again are put afresh before the changes are taken.
fn settle(store: &mut ManifestStore, texts: &[(&str, String)]) -> Vec<String> {
    for file in store.take_reread() {
        let (_, text) = texts.iter().find(|(name, _)| *name == &*file).expect("a known file");
        store.put(&file, Format::Yaml, text, true);
    }
    changes(store)
}

#[test]
fn of_two_files_the_first_by_name_defines_an_object() {
    let texts =
        [("a.yaml", service("x", 1)), ("b.yaml", service("x", 2)), ("c.yaml", service("x", 3))];
    let mut store = ManifestStore::default();
    for (file, text) in texts.iter().rev() {
        store.put(file, Format::Yaml, text, false);
    }
    assert_eq!(changes(&mut store), ["+x:1"]);
    assert_eq!(
        problems(&store),
        [
            "b.yaml:1 also defined in a.yaml, which comes first by name and is used",
            "c.yaml:1 also defined in a.yaml, which comes first by name and is used"
        ]
    );
    // A change of the overruled one changes nothing.
    assert_eq!(put(&mut store, "c.yaml", &[service("x", 3)]), [] as [&str; 0]);
    store.remove("a.yaml");
    assert_eq!(settle(&mut store, &texts), ["+x:2"]);
    store.remove("c.yaml");
    assert_eq!((settle(&mut store, &texts), problems(&store)), (vec![], vec![]));
    store.remove("b.yaml");
    assert_eq!(settle(&mut store, &texts), ["-x"]);
}

#[test]
fn what_served_goes_on_while_the_successor_is_broken() {
    let mut store = ManifestStore::default();
    put(&mut store, "a.yaml", &[service("x", 1)]);
    put(&mut store, "b.yaml", &[service("x", 2)]);
    store.remove("a.yaml");
    assert_eq!(settle(&mut store, &[("b.yaml", broken("x"))]), [] as [&str; 0]);
    assert_eq!(problems(&store).len(), 1);
    assert_eq!(put(&mut store, "b.yaml", &[service("x", 2)]), ["+x:2"]);
}

#[test]
fn a_renamed_file_changes_nothing() {
    let mut store = ManifestStore::default();
    put(&mut store, "a.yaml", &[service("x", 1)]);
    store.remove("a.yaml");
    assert_eq!(put(&mut store, "b.yaml", &[service("x", 1)]), [] as [&str; 0]);
    store.put("c.yaml", Format::Yaml, &service("x", 1), false);
    store.remove("b.yaml");
    assert_eq!(settle(&mut store, &[("c.yaml", service("x", 1))]), [] as [&str; 0]);
}

#[test]
fn an_object_twice_in_one_file_is_told() {
    let mut store = ManifestStore::default();
    assert_eq!(put(&mut store, "a.yaml", &[service("x", 1), service("x", 2)]), ["+x:1"]);
    assert_eq!(
        problems(&store),
        ["a.yaml:10 defined twice in this file; the first definition is used"]
    );
    assert_eq!(put(&mut store, "a.yaml", &[service("x", 2), service("x", 1)]), ["+x:2"]);
    assert_eq!(put(&mut store, "a.yaml", &[service("x", 1)]), ["+x:1"]);
    assert_eq!(problems(&store), [] as [&str; 0]);
}

#[test]
fn other_kinds_are_noted_once_and_typing_errors_are_errors() {
    let mut store = ManifestStore::default();
    let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n".to_owned();
    put(&mut store, "a.yaml", &[deployment.clone(), service("x", 1), deployment]);
    assert_eq!(
        problems(&store),
        ["a.yaml:1 kind Deployment is not read; only Service, EndpointSlice and Node are"]
    );
    assert!(store.problems()[0].note);
    put(&mut store, "a.yaml", &[service("x", 1).replace("Service", "Sevice")]);
    assert_eq!(problems(&store), ["a.yaml:1 kind: \"Sevice\" is unknown; did you mean Service?"]);
    assert!(!store.problems()[0].note);
}

#[test]
fn ten_thousand_objects_in_one_file_are_ten_thousand_changes() {
    let mut store = ManifestStore::default();
    let mut documents: Vec<String> = (0..10_000).map(|n| service(&format!("s{n}"), 80)).collect();
    store.put("all.yaml", Format::Yaml, &join(&documents), false);
    assert_eq!(store.take_changes().len(), 10_000);
    documents[5_000] = service("s5000", 81);
    assert_eq!(put(&mut store, "all.yaml", &documents), ["+s5000:81"]);
    let rubbish = vec!["{{{\n".to_owned(); 10_000];
    assert_eq!(put(&mut store, "all.yaml", &rubbish), [] as [&str; 0]);
    assert!(store.problems().len() <= 1001, "what nobody can read is cut");
}

#[test]
fn changes_come_in_the_order_of_kind_and_name() {
    let mut store = ManifestStore::default();
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: a-1\n  labels:\n    kubernetes.io/service-name: a\naddressType: IPv4\nendpoints: []\n";
    let node = "apiVersion: v1\nkind: Node\nmetadata:\n  name: n\n";
    store.put("a.yaml", Format::Yaml, &join(&[slice.into(), service("a", 80), node.into()]), false);
    let changes = store.take_changes();
    assert!(
        matches!(&changes[..], [SourceChange::Node(name, Some(_)), SourceChange::Service(..), SourceChange::Slice(key, Some(_))]
            if &**name == "n" && *key == ObjectKey::new("default", "a-1")),
        "{changes:?}"
    );
}
