//! Files in the manifest directory: any text is taken in or complained about, and a good file beside it stays in force.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pinnace::manifests::split::Format;
use pinnace::manifests::store::ManifestStore;

const GOOD: &str = include_str!("../../examples/node.yaml");

fuzz_target!(|text: &str| {
    for format in [Format::Yaml, Format::Json] {
        let mut store = ManifestStore::default();
        store.put("good.yaml", Format::Yaml, GOOD, false);
        assert_eq!(store.take_changes().len(), 1);
        store.put("fuzz", format, text, false);
        store.take_changes();
        for problem in store.problems() {
            assert!(!problem.reason.is_empty() && !problem.source.ends_with(":0"));
        }
        store.put("fuzz", format, "", false);
        assert!(store.files().any(|file| file == "good.yaml"));
    }
});
