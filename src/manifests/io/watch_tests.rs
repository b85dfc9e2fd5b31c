use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::model::{ObjectKey, SourceChange};

/// A directory of its own for one test, removed afterwards.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "pinnace-manifests-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("a scratch directory");
        Scratch(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct Watched {
    updates: mpsc::Receiver<SourceUpdate>,
    task: tokio::task::JoinHandle<io::Result<()>>,
}

impl Watched {
    fn start(dir: PathBuf) -> Watched {
        let (out, updates) = mpsc::channel(8);
        Watched { updates, task: tokio::spawn(watch(dir, out)) }
    }

    async fn next(&mut self) -> SourceUpdate {
        tokio::time::timeout(Duration::from_secs(10), self.updates.recv())
            .await
            .expect("an update in time")
            .expect("an update")
    }

    /// The next update with changes, as `+name:port` and `-name`.
    async fn changes(&mut self) -> Vec<String> {
        loop {
            let update = self.next().await;
            if !update.changes.is_empty() {
                return update.changes.iter().map(describe).collect();
            }
        }
    }

    async fn is_quiet(&mut self) -> bool {
        tokio::time::timeout(Duration::from_millis(60), self.updates.recv()).await.is_err()
    }
}

fn describe(change: &SourceChange) -> String {
    match change {
        SourceChange::Service(key, Some(service)) => {
            format!("+{}:{}", key.name, service.ports[0].port)
        }
        SourceChange::Service(key, None) => format!("-{}", key.name),
        other => format!("{other:?}"),
    }
}

fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  type: LoadBalancer\n  ports: [{{port: {port}}}]\n"
    )
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(test);
}

#[test]
fn files_that_appear_change_and_go_are_followed() {
    run(async {
        let dir = Scratch::new();
        fs::write(dir.path("a.yaml"), service("a", 80)).unwrap();
        fs::write(dir.path(".a.yaml.swp"), "rubbish").unwrap();
        let mut watched = Watched::start(dir.0.clone());
        let first = watched.next().await;
        assert!(first.synced);
        assert_eq!(first.problems, []);
        assert_eq!(first.changes.iter().map(describe).collect::<Vec<_>>(), ["+a:80"]);

        fs::write(dir.path("a.yaml"), service("a", 81)).unwrap();
        assert_eq!(watched.changes().await, ["+a:81"]);
        // An atomic rename over the old file, as careful programs write.
        fs::write(dir.path(".tmp"), service("a", 82)).unwrap();
        fs::rename(dir.path(".tmp"), dir.path("a.yaml")).unwrap();
        assert_eq!(watched.changes().await, ["+a:82"]);
        // The same content again, and rubbish of editors, is no change.
        fs::write(dir.path("a.yaml"), service("a", 82)).unwrap();
        fs::write(dir.path("a.yaml~"), "rubbish").unwrap();
        fs::write(dir.path("4913"), "").unwrap();
        assert!(watched.is_quiet().await);
        fs::rename(dir.path("a.yaml"), dir.path("b.yaml")).unwrap();
        assert!(watched.is_quiet().await, "a renamed file defines what it did");
        fs::remove_file(dir.path("b.yaml")).unwrap();
        assert_eq!(watched.changes().await, ["-a"]);
    });
}

#[test]
fn a_broken_file_is_reported_and_its_object_goes_on() {
    run(async {
        let dir = Scratch::new();
        fs::write(dir.path("a.yaml"), service("a", 80)).unwrap();
        let mut watched = Watched::start(dir.0.clone());
        watched.next().await;
        fs::write(
            dir.path("a.yaml"),
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: a\nspec:\n  ports: {\n",
        )
        .unwrap();
        let update = watched.next().await;
        assert_eq!(update.changes, []);
        assert_eq!(update.problems.len(), 1);
        fs::write(dir.path("a.yaml"), b"\xff\xfe").unwrap();
        let update = watched.next().await;
        assert!(
            update.changes.is_empty()
                && update.problems.iter().any(|problem| problem.reason.contains("not UTF-8")),
            "{update:?}"
        );
        fs::write(dir.path("a.yaml"), service("a", 81)).unwrap();
        let update = watched.next().await;
        assert_eq!((update.changes.len(), update.problems.len()), (1, 0));
    });
}

#[test]
fn a_file_that_is_being_written_is_read_when_it_is_closed() {
    run(async {
        use std::io::Write;
        let dir = Scratch::new();
        fs::write(dir.path("a.yaml"), format!("{}---\n{}", service("a", 80), service("b", 80)))
            .unwrap();
        let mut watched = Watched::start(dir.0.clone());
        watched.next().await;
        let mut file = File::create(dir.path("a.yaml")).unwrap();
        file.write_all(service("a", 81).as_bytes()).unwrap();
        // Somebody else's change must not make the half-written file count.
        fs::write(dir.path("c.yaml"), service("c", 80)).unwrap();
        assert_eq!(watched.changes().await, ["+c:80"]);
        write!(file, "---\n{}", service("b", 81)).unwrap();
        drop(file);
        assert_eq!(watched.changes().await, ["+a:81", "+b:81"]);
    });
}

#[test]
fn the_directory_may_come_later_vanish_and_return() {
    run(async {
        let scratch = Scratch::new();
        let dir = scratch.path("not/yet");
        let mut watched = Watched::start(dir.clone());
        let first = watched.next().await;
        assert!(!first.synced && first.problems[0].reason.contains("does not exist"), "{first:?}");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("a.yaml"), service("a", 80)).unwrap();
        assert_eq!(watched.changes().await, ["+a:80"]);
        fs::remove_dir_all(&dir).unwrap();
        let gone = watched.next().await;
        assert_eq!(gone.changes, [], "a directory that vanished keeps its objects");
        assert!(gone.synced && gone.problems[0].reason.contains("go on serving"), "{gone:?}");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("a.yaml"), service("a", 81)).unwrap();
        assert_eq!(watched.changes().await, ["+a:81"]);
        fs::remove_file(dir.join("a.yaml")).unwrap();
        assert_eq!(watched.changes().await, ["-a"]);
    });
}

#[test]
fn a_mounted_config_map_switches_all_files_by_one_link() {
    run(async {
        use std::os::unix::fs::symlink;
        let dir = Scratch::new();
        let version = |name: &str, port| {
            fs::create_dir(dir.path(name)).unwrap();
            fs::write(dir.path(name).join("a.yaml"), service("a", port)).unwrap();
        };
        version("..1", 80);
        symlink("..1", dir.path("..data")).unwrap();
        symlink("..data/a.yaml", dir.path("a.yaml")).unwrap();
        let mut watched = Watched::start(dir.0.clone());
        assert_eq!(watched.changes().await, ["+a:80"]);
        version("..2", 81);
        symlink("..2", dir.path("..data_tmp")).unwrap();
        fs::rename(dir.path("..data_tmp"), dir.path("..data")).unwrap();
        assert_eq!(watched.changes().await, ["+a:81"]);
    });
}

#[test]
fn sub_directories_and_odd_files_are_mentioned() {
    run(async {
        let dir = Scratch::new();
        fs::create_dir(dir.path("more")).unwrap();
        let mut watched = Watched::start(dir.0.clone());
        let first = watched.next().await;
        assert_eq!((first.problems[0].source.as_str(), first.problems[0].note), ("more", true));
        std::os::unix::fs::symlink("nowhere", dir.path("x.yaml")).unwrap();
        let update = watched.next().await;
        assert!(
            update
                .problems
                .iter()
                .any(|problem| problem.source == "x.yaml"
                    && problem.reason.contains("leads nowhere")),
            "{update:?}"
        );
    });
}

#[test]
fn a_quiet_change_arrives_at_once_and_a_flood_is_coalesced() {
    run(async {
        let dir = Scratch::new();
        let mut watched = Watched::start(dir.0.clone());
        watched.next().await;
        let mut latencies = Vec::new();
        for port in 1..=50 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            fs::write(dir.path(".tmp"), service("a", port)).unwrap();
            let start = Instant::now();
            fs::rename(dir.path(".tmp"), dir.path("a.yaml")).unwrap();
            assert_eq!(watched.changes().await, [format!("+a:{port}")]);
            latencies.push(start.elapsed());
        }
        latencies.sort();
        println!("event → change: p50 {:?}, max {:?}", latencies[25], latencies[49]);
        // Loose, for a loaded machine: what it guards against is a debounce.
        assert!(latencies[25] < Duration::from_millis(20), "{latencies:?}");

        for port in 1001..=1500 {
            fs::write(dir.path("a.yaml"), service("a", port)).unwrap();
        }
        let mut updates = 0;
        loop {
            updates += 1;
            if watched.changes().await == ["+a:1500"] {
                break;
            }
        }
        println!("500 writes as fast as they go: {updates} updates");
        drop(watched.updates);
        assert!(
            tokio::time::timeout(Duration::from_secs(5), watched.task)
                .await
                .expect("it ends with its receiver")
                .is_ok()
        );
    });
}

#[test]
fn the_key_of_a_service_without_namespace_is_in_default() {
    run(async {
        let dir = Scratch::new();
        fs::write(
            dir.path("a.json"),
            r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"a"},"spec":{"type":"LoadBalancer","ports":[{"port":80}]}}"#,
        )
        .unwrap();
        let mut watched = Watched::start(dir.0.clone());
        let first = watched.next().await;
        assert!(
            matches!(&first.changes[..], [SourceChange::Service(key, Some(_))] if *key == ObjectKey::new("default", "a"))
        );
    });
}
