//! What reading costs at the largest size that is planned for. Run with `--release -- --nocapture`
//! for numbers that mean something.

use std::fmt::Write;
use std::time::Instant;

use super::split::Format;
use super::store::ManifestStore;

/// 5,000 Services with a slice of ten endpoints each, as `kubectl get -o yaml` writes them.
fn documents(services: u32) -> Vec<String> {
    let mut documents = Vec::new();
    for n in 0..services {
        documents.push(format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: web-{n}\n  namespace: default\nspec:\n  type: LoadBalancer\n  ipFamilies:\n  - IPv4\n  selector:\n    app: web-{n}\n  ports:\n  - name: http\n    port: 80\n    protocol: TCP\n    targetPort: 8080\n"
        ));
        let mut slice = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web-{n}-x\n  namespace: default\n  labels:\n    kubernetes.io/service-name: web-{n}\naddressType: IPv4\nports:\n- name: http\n  port: 8080\n  protocol: TCP\nendpoints:\n"
        );
        for pod in 0..10 {
            let _ = write!(
                slice,
                "- addresses:\n  - 10.{}.{}.{pod}\n  conditions:\n    ready: true\n    serving: true\n    terminating: false\n  nodeName: node-{pod}\n  targetRef:\n    kind: Pod\n    name: web-{n}-{pod}\n    namespace: default\n",
                n / 250,
                n % 250
            );
        }
        documents.push(slice);
    }
    documents
}

#[test]
fn cold_start_and_one_change() {
    let services = if cfg!(debug_assertions) { 200 } else { 5000 };
    let mut documents = documents(services);
    let as_json =
        documents.iter().filter_map(|document| super::block::to_json(document)).collect::<Vec<_>>();
    assert_eq!(as_json.len(), documents.len(), "what tools write takes the fast path");
    // A comment behind a value is beyond the fast path.
    let by_hand = documents
        .iter()
        .map(|document| document.replacen("v1\n", "v1 # by hand\n", 1))
        .collect::<Vec<_>>();
    for (name, format, text) in [
        ("JSON", Format::Json, as_json.join("\n")),
        ("YAML", Format::Yaml, documents.join("---\n")),
        ("YAML by the general parser", Format::Yaml, by_hand.join("---\n")),
    ] {
        let mut store = ManifestStore::default();
        let start = Instant::now();
        store.put("all", format, &text, false);
        let changes = store.take_changes().len();
        println!(
            "{name}: {services} Services, {} endpoints, {} kB: {:?}",
            services * 10,
            text.len() / 1000,
            start.elapsed()
        );
        assert_eq!((changes, store.problems().len()), (documents.len(), 0));
    }
    let mut store = ManifestStore::default();
    store.put("all", Format::Yaml, &documents.join("---\n"), false);
    drop(store.take_changes());
    documents[7] = documents[7].replacen("ready: true", "ready: false", 1);
    let text = documents.join("---\n");
    let start = Instant::now();
    store.put("all", Format::Yaml, &text, false);
    let changes = store.take_changes().len();
    println!("one endpoint changed in the same file: {:?}", start.elapsed());
    assert_eq!(changes, 1);
}
