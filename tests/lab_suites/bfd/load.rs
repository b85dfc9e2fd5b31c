//! Sessions on a busy machine, and the cost of sessions.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::hint::black_box;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{fs, thread};

use pinnace::bfd::io::Realtime;
use pinnace::bfd::{AdaptationCause, BfdConfig, Event, Peer, PeerKey};

use super::speaker::Speaker;
use super::{Link, ip};

/// `count` sessions between two speakers in this process, each between addresses of its own.
fn speakers(link: &Link, count: usize) -> [Speaker; 2] {
    let ends: Vec<(String, String)> =
        (1..=count).map(|n| (format!("10.99.1.{n}"), format!("10.99.2.{n}"))).collect();
    let add = |address: &String| format!("address add {address}/16 dev eth0");
    link.ours.ip(&ends.iter().map(|(ours, _)| add(ours)).collect::<Vec<_>>());
    link.theirs.ip(&ends.iter().map(|(_, theirs)| add(theirs)).collect::<Vec<_>>());
    let peers = |reverse: bool| -> BTreeMap<PeerKey, Peer> {
        let pair =
            |(a, b): &(String, String)| if reverse { (ip(b), ip(a)) } else { (ip(a), ip(b)) };
        ends.iter()
            .map(pair)
            .map(|(local, address)| {
                (PeerKey { interface: None, address }, Peer { local: Some(local), multihop: false })
            })
            .collect()
    };
    let speakers = [(&link.ours, false), (&link.theirs, true)].map(|(namespace, reverse)| {
        Speaker::start_in(namespace, BfdConfig::default(), peers(reverse))
    });
    for speaker in &speakers {
        speaker.wait_up();
    }
    speakers
}

/// Processor time of each thread called `bfd` in this process, in hundredths of a second.
fn processor_time() -> BTreeMap<OsString, u64> {
    let mut ticks = BTreeMap::new();
    for task in fs::read_dir("/proc/self/task").unwrap().flatten() {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        let Some((before, after)) = stat.rsplit_once(')') else { continue };
        if before.ends_with("(bfd") {
            ticks.insert(
                task.file_name(),
                after
                    .split_whitespace()
                    .skip(11)
                    .take(2)
                    .map(|field| field.parse::<u64>().unwrap())
                    .sum(),
            );
        }
    }
    ticks
}

/// How much they used since; those of other tests come and go, and do not count unless they were
/// there at both times.
fn spent(since: &BTreeMap<OsString, u64>) -> Duration {
    let ticks: u64 = processor_time()
        .iter()
        .filter_map(|(thread, ticks)| Some(ticks - since.get(thread)?))
        .sum();
    Duration::from_millis(ticks * 10)
}

/// A session at 50 ms × 3 does not fail because of load in the process or on the machine.
#[test]
fn busy_threads_and_a_log_storm_cost_no_session() {
    let link = Link::new();
    let speakers = speakers(&link, 2);
    for speaker in &speakers {
        if let Realtime::Refused(reason) = speaker.handle.realtime() {
            println!("no real-time scheduling: {reason}");
        }
        drop(speaker.take());
    }
    let path = std::env::temp_dir().join(format!("pinnace-bfd-storm-{}", std::process::id()));
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 * thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                let mut sum = 0u64;
                while !over.load(Ordering::Relaxed) {
                    sum = black_box(sum.wrapping_mul(31).wrapping_add(7));
                }
            });
        }
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let mut file = fs::File::create(&path).unwrap();
                for line in 0..20_000 {
                    writeln!(file, "WARN something is wrong, and this is line {line} about it")
                        .unwrap();
                }
                let _ = file.sync_all();
            }
        });
        thread::sleep(Duration::from_secs(10));
        over.store(true, Ordering::Relaxed);
    });
    let _ = fs::remove_file(&path);
    for speaker in &speakers {
        let latest = speaker.handle.counters().totals().max_scheduling_delay;
        println!("latest wake-up: {latest:?} late");
        let told = speaker.take();
        assert!(
            !told.iter().any(|(_, event)| matches!(event, Event::Peer(_))),
            "latest wake-up {latest:?} late: {told:#?}"
        );
    }
}

/// Bounded with a wide margin: a quarter of a processor for what takes a few hundredths of it on a
/// small machine.
#[test]
fn many_sessions_share_the_packet_rate_and_cost_little() {
    let mut costs = Vec::new();
    for count in [2, 50] {
        let link = Link::new();
        let speakers = speakers(&link, count);
        // The Poll Sequences of coming up.
        thread::sleep(Duration::from_secs(2));
        let totals = || speakers[0].handle.counters().totals();
        let (start, before, used) = (Instant::now(), totals(), processor_time());
        thread::sleep(Duration::from_secs(5));
        let (seconds, after) = (start.elapsed().as_secs_f64(), totals());
        // Of one speaker; another test in this process may add to it, so this is an upper bound.
        let cost = spent(&used).as_secs_f64() / seconds / 2.0;
        let (sent, received) = (
            (after.sent - before.sent) as f64 / seconds,
            (after.received - before.received) as f64 / seconds,
        );
        println!(
            "{count} sessions: {sent:.0} packets sent and {received:.0} received per second, {:.2} % of a processor",
            cost * 100.0
        );
        assert!(cost < 0.25, "{count} sessions take {cost} of a processor");
        costs.push(sent);
        let stretched =
            speakers[0].take().iter().any(|(_, event)| matches!(event, Event::Adapted(change) if change.cause == (AdaptationCause::PacketBudget { sessions: 50, raised: true })));
        assert_eq!(stretched, count == 50, "and it is said");
    }
    assert!(costs[0] > 30.0 && costs[0] < 60.0, "2 at 37.5 to 50 ms: {costs:?}");
    assert!(costs[1] > 300.0 && costs[1] < 700.0, "500 per second, and jitter: {costs:?}");
}

/// The kernel rejects datagrams that cannot be valid (a TTL below 255, a wrong length or version):
/// neither the queue nor the thread sees them.
#[test]
fn a_flood_of_what_is_not_ours_costs_no_session() {
    let link = Link::new();
    let speakers = speakers(&link, 2);
    speakers.iter().for_each(|speaker| drop(speaker.take()));
    let (before, used) = (speakers[0].handle.counters().totals(), processor_time());
    let flood = |ttl: u32, payload: &'static [u8]| {
        link.theirs.enter(|| {
            let socket = std::net::UdpSocket::bind("10.99.0.2:0").unwrap();
            socket.set_ttl(ttl).unwrap();
            let end = Instant::now() + Duration::from_secs(2);
            let mut sent = 0u64;
            while Instant::now() < end {
                for _ in 0..64 {
                    sent += u64::from(socket.send_to(payload, "10.99.0.1:3784").is_ok());
                }
            }
            sent
        })
    };
    // Right but for the TTL; too short; of another version.
    let right: &[u8] =
        &[0x20, 0x40, 3, 24, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let other: &[u8] =
        &[0x40, 0x40, 3, 24, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let sent: u64 = [(64, right), (255, &right[..23]), (255, other)]
        .into_iter()
        .map(|(ttl, payload)| flood(ttl, payload))
        .sum();
    let (after, cost) = (speakers[0].handle.counters().totals(), spent(&used));
    println!(
        "{sent} packets in 6 s: {} datagrams were read, both speakers took {cost:?}",
        after.received - before.received
    );
    assert!(sent > 10_000, "{sent} are no flood");
    assert!(
        after.received - before.received < 2000,
        "two sessions send some 45 a second each: {before:?} {after:?}"
    );
    for speaker in &speakers {
        let told = speaker.take();
        assert!(!told.iter().any(|(_, event)| matches!(event, Event::Peer(_))), "{told:#?}");
    }
}
