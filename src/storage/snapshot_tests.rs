use std::fs;

use super::*;
use crate::model::{Endpoint, Family, SlicePort, fixtures};

/// A directory that goes away with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path =
            std::env::temp_dir().join(format!("pinnace-snapshot-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join(FILE)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn slice(n: u32) -> EndpointSlice {
    let endpoint = |i: u32| Endpoint {
        address: std::net::Ipv4Addr::from(0x0a2a_0000 + n * 8 + i).into(),
        node: Some("node-1".into()),
        ready: true,
        serving: true,
        terminating: false,
        hints: None,
    };
    let port = SlicePort { name: "".into(), protocol: crate::model::Protocol::Tcp, port: 8080 };
    let service = format!("web-{n}").into();
    let key = ObjectKey::new("default", &format!("web-{n}-abc"));
    EndpointSlice {
        key,
        service,
        family: Family::V4,
        ports: vec![port],
        endpoints: (0..4).map(endpoint).collect(),
    }
}

fn index(services: u32) -> Index {
    let mut index = Index::default();
    let mut apply = |change| index.apply(change, &mut |_| {});
    for n in 0..services {
        let service = fixtures::service(&format!("web-{n}"));
        apply(SourceChange::Service(service.key.clone(), Some(Box::new(service))));
        apply(SourceChange::Slice(slice(n).key, Some(Box::new(slice(n)))));
    }
    index
}

fn saved(scratch: &Scratch, index: &Index) {
    let mut keeper = SnapshotWriter::new(&scratch.0);
    keeper.seen(1);
    keeper.finish(index);
}

fn restored(changes: Vec<SourceChange>) -> Index {
    let mut index = Index::default();
    changes.into_iter().for_each(|change| index.apply(change, &mut |_| {}));
    index
}

#[test]
fn everything_comes_back_as_it_was() {
    let scratch = Scratch::new("back");
    assert!(load(&scratch.0).unwrap().is_none(), "nothing at the first start");
    let before = index(2_000);
    saved(&scratch, &before);
    let snapshot = load(&scratch.0).unwrap().unwrap();
    assert!(
        snapshot.taken.starts_with("20") && snapshot.taken.ends_with('Z'),
        "{}",
        snapshot.taken
    );
    let after = restored(snapshot.changes);
    assert!(before.services().eq(after.services()), "the same Services");
    for service in before.services() {
        assert!(
            before.slices(&service.key).eq(after.slices(&service.key)),
            "the same slices of {}",
            service.key
        );
    }
}

#[test]
fn it_is_written_in_pieces_and_not_before_its_time() {
    let scratch = Scratch::new("pieces");
    let index = index(2_000);
    let mut keeper = SnapshotWriter::new(&scratch.0);
    assert_eq!(keeper.wait(), None, "nothing to write");
    keeper.seen(1);
    assert!(keeper.wait().unwrap() > SHORTEST / 2);
    keeper.seen(1);
    keeper.step(&index);
    assert!(keeper.job.is_none(), "not yet due");
    keeper.due = Instant::now();
    let mut steps = 0;
    let deadline = Instant::now() + Duration::from_secs(20);
    while keeper.wait().is_some() && Instant::now() < deadline {
        keeper.step(&index);
        steps += 1;
        std::thread::sleep(Duration::from_micros(100));
    }
    assert!(steps > 10, "{steps} steps");
    assert!(keeper.due > Instant::now() + SHORTEST / 2, "the next one takes its time");
    assert!(restored(load(&scratch.0).unwrap().unwrap().changes).services().eq(index.services()));
}

#[test]
fn a_writer_that_stops_half_way_leaves_the_old_one() {
    let scratch = Scratch::new("half");
    saved(&scratch, &index(3));
    let large = index(2_000);
    let mut keeper = SnapshotWriter::new(&scratch.0);
    (keeper.changed, keeper.due) = (true, Instant::now());
    keeper.step(&large);
    keeper.step(&large);
    let job = keeper.job.take().unwrap();
    drop(job.disk);
    assert!(job.thread.join().unwrap().is_err());
    assert_eq!(restored(load(&scratch.0).unwrap().unwrap().changes).services().count(), 3);
    assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 1, "and nothing beside it");
}

#[test]
fn a_file_cut_off_or_altered_anywhere_is_set_aside_and_named() {
    let scratch = Scratch::new("damage");
    saved(&scratch, &index(1));
    let good = fs::read(scratch.file()).unwrap();
    for at in 0..good.len() {
        let mut flipped = good.clone();
        flipped[at] ^= 1;
        for bad in [good[..at].to_vec(), flipped] {
            fs::write(scratch.file(), &bad).unwrap();
            let problem = load(&scratch.0).expect_err("damaged");
            assert!(
                problem.contains(FILE) && problem.contains("starting without it"),
                "byte {at}: {problem}"
            );
            assert!(!scratch.file().exists(), "it is set aside");
        }
    }
    fs::write(scratch.file(), [&good[..], b"more\n"].concat()).unwrap();
    assert!(load(&scratch.0).is_err());
    fs::write(scratch.file(), &good).unwrap();
    assert!(load(&scratch.0).unwrap().is_some(), "the good one still is");
    fs::write(scratch.file(), good.iter().copied().skip_while(|b| *b != b'\n').collect::<Vec<_>>())
        .unwrap();
    assert!(load(&scratch.0).is_err());
    let other = String::from_utf8(good).unwrap().replacen("\"version\":1", "\"version\":9", 1);
    fs::write(scratch.file(), other).unwrap();
    assert!(load(&scratch.0).unwrap_err().contains("version 9"));
}
