//! What is written is true of the code: the tables of the README, and the direction of dependencies that each room's head promises.

use std::fs;
use std::path::{Path, PathBuf};

use pinnace::config;
use pinnace::edge::kube::request::{ANNOTATIONS, Meaning};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The part of the README between two markers. With `UPDATE_README` set it is replaced by `text` first.
fn between(marker: &str, text: &str) -> String {
    let path = root().join("README.md");
    let readme = fs::read_to_string(&path).expect("README.md");
    let begin = format!("<!-- {marker}: begin (generated from the code; a test compares) -->\n");
    let end = format!("<!-- {marker}: end -->");
    let (before, rest) = readme.split_once(&begin).unwrap_or_else(|| panic!("README.md lacks {begin}"));
    let (found, after) = rest.split_once(&end).unwrap_or_else(|| panic!("README.md lacks {end}"));
    if std::env::var_os("UPDATE_README").is_some() {
        fs::write(&path, format!("{before}{begin}{text}{end}{after}")).expect("write README.md");
        return text.to_owned();
    }
    found.to_owned()
}

#[test]
fn the_readme_names_every_setting() {
    let table = config::markdown_table();
    assert_eq!(between("settings", &table), table, "run UPDATE_README=1 cargo test --test documents");
}

#[test]
fn the_readme_names_every_annotation() {
    let meaning = |meaning: Meaning| match meaning {
        Meaning::Mode => "`vip` or `node`: where the addresses come from",
        Meaning::Addresses => "these addresses, separated by commas, and no others",
        Meaning::Pool => "an address from this pool",
        Meaning::Sharing => "Services with an equal value may share an address",
        Meaning::PreferNodes => {
            "nodes that should answer for the addresses, best first, separated by commas; the others if none of them can"
        }
    };
    let mut table = "| annotation | known from | meaning |\n|---|---|---|\n".to_owned();
    for (name, what, system) in ANNOTATIONS {
        table.push_str(&format!("| `{name}` | {system} | {} |\n", meaning(*what)));
    }
    assert_eq!(between("annotations", &table), table, "run UPDATE_README=1 cargo test --test documents");
}

#[test]
fn the_readme_answers_every_variable_of_kube_vip() {
    let table = config::kube_vip::markdown_table();
    assert_eq!(between("kube-vip", &table), table, "run UPDATE_README=1 cargo test --test documents");
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

#[test]
fn the_core_knows_no_edge_no_clock_and_no_io() {
    let forbidden = [
        "crate::edge",
        "crate::daemon",
        "crate::config",
        "tokio",
        "rustix",
        "socket2",
        "std::fs",
        "std::env",
        "std::net::Tcp",
        "std::net::Udp",
        "std::thread",
        "Instant::now",
        "SystemTime",
        "k8s_openapi",
    ];
    let mut faults = Vec::new();
    for room in ["bfd", "domain", "ruleset", "wire"] {
        let mut files = Vec::new();
        sources(&root().join("src").join(room), &mut files);
        assert!(!files.is_empty(), "src/{room} is gone");
        for file in files {
            let text = fs::read_to_string(&file).expect("a source file");
            // Words in comments bind nobody.
            let code = text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
            for (number, line) in code {
                for word in forbidden.iter().filter(|word| line.contains(**word)) {
                    faults.push(format!("{}:{}: {word}", file.strip_prefix(root()).unwrap_or(&file).display(), number + 1));
                }
            }
        }
    }
    assert!(faults.is_empty(), "the core reaches outwards:\n{}", faults.join("\n"));
}

#[test]
fn files_stay_readable() {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    let long: Vec<String> = files
        .iter()
        .filter(|file| !file.to_string_lossy().ends_with("tests.rs"))
        .filter_map(|file| Some((file, fs::read_to_string(file).ok()?.lines().count())))
        .filter(|(_, lines)| *lines > 500)
        .map(|(file, lines)| format!("{}: {lines} lines", file.display()))
        .collect();
    assert!(long.is_empty(), "files of over 500 lines want splitting:\n{}", long.join("\n"));
}
