//! The structure that `src/lib.rs` describes: which files are sans-IO, which room may import which,
//! and that no two modules import each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Modules that touch the world as a whole; elsewhere only what lies below an `io/`.
const IO: [&str; 8] =
    ["commands", "daemon", "host", "http", "logging", "main", "storage", "config::file"];

/// What a sans-IO file must not name.
const WORLD: [&str; 11] = [
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
    "kube::",
];

/// What each room may import beside itself. `io` stands for the `io/` of any room, which may import
/// every room but `daemon`, `commands`, `cli` and the `io/` of others, unless named here.
const ROOMS: [(&str, &[&str]); 17] = [
    ("common", &[]),
    ("model", &["common"]),
    ("bfd", &["common"]),
    ("l2", &["common", "model"]),
    ("ipam", &["common", "model"]),
    ("nft", &["common", "model"]),
    ("k8s", &["common", "model"]),
    ("manifests", &["common", "model", "k8s", "ipam"]),
    ("engine", &["common", "model", "ipam", "l2", "bfd", "k8s"]),
    ("config", &["common", "model", "ipam", "engine", "bfd"]),
    ("host", &["common", "model", "l2"]),
    ("storage", &["common", "model", "engine"]),
    ("http", &["common", "model", "bfd", "l2", "nft"]),
    ("logging", &["common", "config"]),
    ("cli", &["common", "config"]),
    ("commands", &["*"]),
    ("daemon", &["*"]),
];

/// What the `io/` of a room may import beyond its room.
const IO_ROOMS: [&str; 4] = ["common", "model", "host", "config"];

struct Module {
    /// `engine::election::rank`; the path of `engine/mod.rs` is `engine`.
    path: Vec<String>,
    file: PathBuf,
    /// Code without comments and without what only tests compile.
    code: String,
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every source file but the tests.
fn modules() -> Vec<Module> {
    let mut found = Vec::new();
    let mut directories = vec![source()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("a directory").flatten() {
            let file = entry.path();
            if file.is_dir() {
                directories.push(file);
                continue;
            }
            let name = file.file_stem().expect("a name").to_string_lossy().into_owned();
            if file.extension().is_none_or(|extension| extension != "rs")
                || name.ends_with("tests")
                || name == "fixtures"
                || name == "lib"
            {
                continue;
            }
            let relative = file.strip_prefix(source()).expect("below src");
            let mut path: Vec<String> = relative
                .with_extension("")
                .iter()
                .map(|part| part.to_string_lossy().into_owned())
                .collect();
            path.pop_if(|last| last == "mod");
            let text = fs::read_to_string(&file).expect("a source file");
            let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            let code: Vec<&str> =
                text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
            found.push(Module { path, file, code: code.join("\n") });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// The paths that `use` trees and expressions of a module name, from the root of the crate.
fn imports(module: &Module, known: &BTreeSet<Vec<String>>) -> BTreeSet<Vec<String>> {
    let mut found = BTreeSet::new();
    let mut rest = module.code.as_str();
    while let Some(at) = rest.find("::") {
        let start = rest[..at]
            .rfind(|c: char| !c.is_alphanumeric() && c != '_')
            .map_or(0, |before| before + 1);
        let before = &rest[..start];
        let path_goes_on = before.ends_with("::");
        let tree = &rest[start..];
        let end = tree
            .char_indices()
            .find(|&(_, c)| !(c.is_alphanumeric() || c == '_' || c == ':'))
            .map_or(tree.len(), |(end, _)| end);
        if !path_goes_on {
            let first = tree[..at - start].trim();
            let base = match first {
                "crate" => Some(Vec::new()),
                "super" | "self" => Some(module.path.clone()),
                child => {
                    let mut path = module.path.clone();
                    path.push(child.to_owned());
                    known.contains(&path).then_some(module.path.clone())
                }
            };
            if let Some(base) = base {
                leaves(tree, base, &mut found);
            }
        }
        rest = &rest[start + end.max(at - start + 2)..];
    }
    found
}

/// Flattens one `a::{b, c::d}`; `base` is where its first segment starts from.
fn leaves(tree: &str, base: Vec<String>, found: &mut BTreeSet<Vec<String>>) {
    let (mut path, mut word) = (base, String::new());
    let mut stack: Vec<Vec<String>> = Vec::new();
    let push = |path: &mut Vec<String>, word: &mut String| match std::mem::take(word).as_str() {
        "" | "crate" | "self" => {}
        "super" => drop(path.pop()),
        segment => path.push(segment.to_owned()),
    };
    let mut chars = tree.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_alphanumeric() || c == '_' => word.push(c),
            ':' if chars.peek() == Some(&':') => {
                chars.next();
                push(&mut path, &mut word);
            }
            '{' => stack.push(path.clone()),
            ',' | '}' if !stack.is_empty() => {
                push(&mut path, &mut word);
                found.insert(path.clone());
                path = stack.last().expect("open").clone();
                if c == '}' {
                    stack.pop();
                    if stack.is_empty() {
                        return;
                    }
                }
            }
            c if c.is_whitespace() && !stack.is_empty() => {}
            _ => break,
        }
    }
    push(&mut path, &mut word);
    found.insert(path);
}

/// The module that a path leads to: its longest prefix that is one.
fn target(path: &[String], known: &BTreeSet<Vec<String>>) -> Option<Vec<String>> {
    (1..=path.len()).rev().map(|n| path[..n].to_vec()).find(|prefix| known.contains(prefix))
}

/// Imports: module → modules that it names.
fn graph() -> BTreeMap<Vec<String>, BTreeSet<Vec<String>>> {
    let modules = modules();
    let known: BTreeSet<Vec<String>> = modules.iter().map(|module| module.path.clone()).collect();
    modules
        .iter()
        .map(|module| {
            let targets = imports(module, &known);
            let targets = targets.iter().filter_map(|path| target(path, &known));
            (module.path.clone(), targets.filter(|path| *path != module.path).collect())
        })
        .collect()
}

fn is_io(path: &[String]) -> bool {
    path.iter().any(|part| part == "io")
        || IO.contains(&path[0].as_str())
        || IO.contains(&&*path.join("::"))
}

#[test]
fn only_io_modules_touch_the_world() {
    let mut faults = Vec::new();
    for module in modules().iter().filter(|module| !is_io(&module.path)) {
        for word in WORLD.iter().filter(|word| module.code.contains(**word)) {
            faults.push(format!("{}: {word}", module.file.display()));
        }
    }
    assert!(faults.is_empty(), "sans-IO files name what only io may:\n{}", faults.join("\n"));
}

#[test]
fn rooms_import_in_one_direction() {
    let allowed: BTreeMap<&str, &[&str]> = ROOMS.into_iter().collect();
    let mut faults = Vec::new();
    for (from, targets) in graph() {
        let room = from[0].as_str();
        let Some(rooms) = allowed.get(room) else {
            assert_eq!(room, "main", "src/{room} is no room of tests/architecture.rs");
            continue;
        };
        for to in targets.iter().filter(|to| to[0] != room) {
            let in_io = from.iter().any(|part| part == "io");
            let into_io = to.iter().any(|part| part == "io") && !is_io(&from);
            let permitted = rooms.contains(&"*")
                || rooms.contains(&&*to[0])
                || in_io && IO_ROOMS.contains(&&*to[0]);
            if !permitted || into_io {
                faults.push(format!("{} → {}", from.join("::"), to.join("::")));
            }
        }
    }
    assert!(faults.is_empty(), "imports against the direction:\n{}", faults.join("\n"));
}

/// Children of one parent are its siblings; the parent's own `mod.rs` is one of them.
#[test]
fn no_two_siblings_import_each_other() {
    let graph = graph();
    let mut edges: BTreeMap<(Vec<String>, String, String), (String, String)> = BTreeMap::new();
    for (from, targets) in &graph {
        for to in targets {
            let common = from.iter().zip(to).take_while(|(a, b)| a == b).count();
            // An import of the room itself is one of its mod.rs.
            let side = |path: &[String]| path.get(common).cloned().unwrap_or_else(|| "mod".into());
            edges
                .entry((from[..common].to_vec(), side(from), side(to)))
                .or_insert_with(|| (from.join("::"), to.join("::")));
        }
    }
    let mut faults = BTreeSet::new();
    for ((parent, a, b), (from, to)) in &edges {
        if let Some((back, again)) = edges.get(&(parent.clone(), b.clone(), a.clone()))
            && a < b
        {
            faults.insert(format!("{from} → {to}, {back} → {again}"));
        }
    }
    assert!(
        faults.is_empty(),
        "{} circles:\n{}",
        faults.len(),
        faults.into_iter().collect::<Vec<_>>().join("\n")
    );
}
