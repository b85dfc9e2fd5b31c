//! The tables of docs/ are those of the code, files stay readable, and only what people read depends
//! on the wall clock.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use pinnace::config;
use pinnace::http::metrics::Metrics;
use pinnace::k8s::annotations::{ANNOTATIONS, ANSWERED, Meaning};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Two tables may be of one document.
static WRITING: Mutex<()> = Mutex::new(());

/// Compares a generated table with the part of a document between its two markers. With
/// `UPDATE_DOCS` set, the document is changed first.
fn assert_generated(document: &str, marker: &str, table: &str) {
    let _writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let path = root().join("docs").join(document);
    let text = fs::read_to_string(&path).expect(document);
    let begin = format!("<!-- {marker}: begin (generated from the code; a test compares) -->\n");
    let end = format!("<!-- {marker}: end -->");
    let (before, rest) =
        text.split_once(&begin).unwrap_or_else(|| panic!("docs/{document} lacks {begin}"));
    let (found, after) =
        rest.split_once(&end).unwrap_or_else(|| panic!("docs/{document} lacks {end}"));
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, format!("{before}{begin}{table}{end}{after}")).expect(document);
        return;
    }
    assert_eq!(found, table, "docs/{document}: run UPDATE_DOCS=1 cargo test --test documents");
}

#[test]
fn the_documents_name_every_setting() {
    let table = config::markdown_table();
    assert_generated("configuration.md", "settings", &table);
}

#[test]
fn the_documents_name_every_annotation() {
    let meaning = |meaning: Meaning| match meaning {
        Meaning::Mode => "`vip` or `node`: where the addresses come from",
        Meaning::Addresses => "these addresses, separated by commas, and no others",
        Meaning::Pool => "an address from this pool",
        Meaning::Sharing => "Services with an equal value may share an address",
        Meaning::PreferNodes => {
            "nodes that should answer for the addresses, best first, separated by commas; the others if none of them can"
        }
        Meaning::Ignore => "`true`: the Service is not served",
    };
    let mut table = "| annotation | known from | meaning |\n|---|---|---|\n".to_owned();
    for (name, what, system) in ANNOTATIONS {
        table.push_str(&format!("| `{name}` | {system} | {} |\n", meaning(*what)));
    }
    for (name, answer) in ANSWERED {
        table.push_str(&format!("| `{name}` | kube-vip | no effect: {answer} |\n"));
    }
    assert_generated("annotations.md", "annotations", &table);
}

#[test]
fn the_documents_answer_every_variable_of_kube_vip() {
    let table = config::kube_vip::markdown_table();
    assert_generated("configuration.md", "kube-vip", &table);
}

#[test]
fn the_documents_name_every_metric() {
    let metrics = Metrics::new();
    metrics.leader(false, Some("node-1"));
    let text = metrics.encode();
    let kinds: BTreeMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|line| line.split_once(' '))
        .collect();
    let mut table = "| metric | type | meaning |\n|---|---|---|\n".to_owned();
    for (name, help) in text
        .lines()
        .filter_map(|line| line.strip_prefix("# HELP "))
        .filter_map(|line| line.split_once(' '))
    {
        let kind = kinds[name];
        // Counters and build information are scraped under these names.
        let suffix = match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        let prefix = format!("{name}{suffix}{{");
        let first = text
            .lines()
            .find_map(|line| line.strip_prefix(&prefix))
            .and_then(|labels| labels.split_once('='));
        let label = first
            .filter(|_| kind != "histogram")
            .map(|(label, _)| format!(" by {label}"))
            .unwrap_or_default();
        table.push_str(&format!(
            "| `{name}{suffix}` | {kind}{label} | {} |\n",
            help.trim_end_matches('.')
        ));
    }
    assert_generated("operations.md", "metrics", &table);
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Whoever steps the clock by a day must change nothing but times that people read. (Certificates
/// are valid by the clock; TLS judges them.)
#[test]
fn the_clock_on_the_wall_decides_nothing() {
    let shown = [
        ("src/host/time_of_day.rs", "how long ago an endpoint changed, for a histogram"),
        ("src/http/metrics.rs", "process_start_time_seconds"),
        ("src/k8s/io/event_sink.rs", "firstTimestamp and lastTimestamp of Events"),
        ("src/k8s/io/lease.rs", "acquireTime and renewTime, which nobody here reads"),
        ("src/logging/mod.rs", "log lines"),
        (
            "src/storage/atomic_file.rs",
            "when a file was written, for status, and the name of a damaged one",
        ),
    ];
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    let mut found = Vec::new();
    for file in files.iter().filter(|file| !file.to_string_lossy().ends_with("tests.rs")) {
        let text = fs::read_to_string(file).expect("a source file");
        let code: String = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .collect::<Vec<_>>()
            .join("\n");
        if ["SystemTime", "UNIX_EPOCH", "Timestamp::now", "Realtime)"]
            .iter()
            .any(|word| code.contains(word))
        {
            found.push(file.strip_prefix(root()).unwrap_or(file).to_string_lossy().into_owned());
        }
    }
    found.sort();
    assert_eq!(found, shown.map(|(file, _)| file), "time that decides is monotonic (Instant)");
    let lease = fs::read_to_string(root().join("src/k8s/io/lease.rs")).expect("a source file");
    let read = lease
        .split("fn observed")
        .nth(1)
        .expect("where a Lease is read")
        .split("\n}")
        .next()
        .unwrap_or_default();
    assert!(
        !read.contains("renew_time") && !read.contains("acquire_time"),
        "another node's clock is no evidence"
    );
}

#[test]
fn files_stay_readable() {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    let long: Vec<String> = files
        .iter()
        .filter(|file| !file.to_string_lossy().ends_with("tests.rs"))
        .filter_map(|file| Some((file, fs::read_to_string(file).ok()?.lines().count())))
        .filter(|(_, lines)| *lines > 600)
        .map(|(file, lines)| format!("{}: {lines} lines", file.display()))
        .collect();
    assert!(long.is_empty(), "files of over 600 lines want splitting:\n{}", long.join("\n"));
}

#[test]
fn links_lead_to_files() {
    let mut documents = vec![root().join("README.md")];
    documents.extend(fs::read_dir(root().join("docs")).expect("docs").flatten().map(|e| e.path()));
    let mut broken = Vec::new();
    for document in &documents {
        let text = fs::read_to_string(document).expect("a document");
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.contains("://") && !link.starts_with('#')) {
            let file = link.split('#').next().unwrap_or(link);
            if !document.parent().expect("a folder").join(file).exists() {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
}
