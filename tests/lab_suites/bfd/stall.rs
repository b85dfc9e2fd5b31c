//! A process that is stopped for longer than the detection time of its peers, and continues.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{env, thread};

use pinnace::bfd::io::BfdOptions;
use pinnace::bfd::{BfdConfig, Cause, Peer, PeerKey, io};
use rustix::process::{Pid, Signal, kill_process};

use super::speaker::{Speaker, both};
use super::{ENDS, Link, ip};

/// Set in the process that is to be stopped.
const ROLE: &str = "PINNACE_TEST_BFD_SPEAKER";

/// Not a test of its own: the process that [`Process::start`] starts. Prints its events until its
/// standard input ends.
#[test]
fn speaks_on_demand() {
    if env::var_os(ROLE).is_none() {
        return;
    }
    let handle = io::spawn(BfdOptions::default(), |event| println!("\nevent {event:?}")).unwrap();
    let peer = |(theirs, ours): &(&str, &str)| {
        (
            PeerKey { interface: None, address: ip(theirs) },
            Peer { local: Some(ip(ours)), multihop: false },
        )
    };
    handle.set_peers(ENDS.iter().map(peer).collect());
    let _ = std::io::stdin().read(&mut [0]);
}

struct Process {
    child: Child,
    events: mpsc::Receiver<String>,
}

impl Process {
    fn start(link: &Link) -> Process {
        let mut child = link.theirs.enter(|| {
            Command::new(env::current_exe().unwrap())
                .args(["--exact", "bfd::stall::speaks_on_demand", "--nocapture"])
                .env(ROLE, "1")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        });
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (say, events) = mpsc::channel();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some(event) = line.strip_prefix("event ") {
                    let _ = say.send(event.to_owned());
                }
            }
        });
        Process { child, events }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the process runs");
    }

    /// Events until one that contains the word.
    fn until(&self, word: &str) -> Vec<String> {
        let mut events = Vec::new();
        let deadline = Instant::now() + super::PATIENCE;
        while events.last().is_none_or(|event: &String| !event.contains(word)) {
            match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(event) => events.push(event),
                Err(error) => panic!("{word} was not reported ({error}): {events:#?}"),
            }
        }
        events
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_stall_is_reported_first_and_peers_that_sent_meanwhile_stay_up() {
    let link = Link::new();
    let process = Process::start(&link);
    let speaker = Speaker::start(&link, BfdConfig::default(), both(&link));
    speaker.wait_up();
    for stopped in [Duration::from_millis(700), Duration::from_secs(3)] {
        thread::sleep(Duration::from_millis(500));
        while process.events.try_recv().is_ok() {}
        drop(speaker.take());
        process.signal(Signal::STOP);
        speaker.both_say(Cause::DetectionTimeExpired);
        thread::sleep(stopped.saturating_sub(Duration::from_millis(200)));
        process.signal(Signal::CONT);
        speaker.wait_up();
        let events = process.until("Resynced");
        assert!(events[0].starts_with("Stalled { late: "), "{events:#?}");
        assert!(
            events.iter().all(|event| !event.contains("cause: DetectionTimeExpired")),
            "{events:#?}"
        );
        assert!(
            events.iter().filter(|event| event.contains("cause: NeighborDown")).count() == 2,
            "their detection time had expired: {events:#?}"
        );
    }
}

#[test]
fn a_peer_that_died_during_a_stall_is_down_afterwards() {
    let link = Link::new();
    let process = Process::start(&link);
    let speaker = Speaker::start(&link, BfdConfig::default(), both(&link));
    speaker.wait_up();
    thread::sleep(Duration::from_millis(500));
    while process.events.try_recv().is_ok() {}
    process.signal(Signal::STOP);
    // As after a crash, before it notices anything.
    drop(speaker);
    thread::sleep(Duration::from_secs(1));
    process.signal(Signal::CONT);
    let events = process.until("Resynced");
    assert!(events[0].starts_with("Stalled"), "{events:#?}");
    assert_eq!(
        events.iter().filter(|event| event.contains("cause: DetectionTimeExpired")).count(),
        2,
        "{events:#?}"
    );
}
