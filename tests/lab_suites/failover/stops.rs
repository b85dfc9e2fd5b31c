//! An owner that stands still: its kernel goes on and its process does not, as in a machine that is
//! paused, or short of memory.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use pinnace::model::Family;

use super::{ALL, clients, others, with_pods_on};
use crate::lab::manifests::service;
use crate::lab::trio::{Cluster, Fault, PORT};
use crate::lab::{Capture, Heard, Prober, ensure, eventually, patient, question};

/// Between two questions for an address.
const PACE: Duration = Duration::from_millis(10);
/// How long before it resumes requests are left queued for it, and how long after that more arrive.
const BEFORE: Duration = Duration::from_secs(1);
const AFTER: Duration = Duration::from_secs(4);

#[test]
fn a_stalled_node_resumes_without_conflict() {
    harms_nobody(Duration::from_secs(6));
}

/// Long after everybody else has settled with the new owner.
#[test]
fn a_node_stalled_for_half_a_minute_resumes_without_conflict() {
    harms_nobody(Duration::from_secs(30));
}

/// Everybody on the LAN asks for its addresses, while it stands still and when it runs again, and
/// it does not answer once: somebody else does by then. It would like to have them back, but has to
/// look first.
fn harms_nobody(time: Duration) {
    let mut cluster = Cluster::start(&[]);
    cluster.settle();
    let victim = 0;
    let preferred = &cluster.trio.nodes[victim].name;
    let still = service("still").annotation("pinnace.dev/prefer-nodes", preferred).port(
        "udp",
        "UDP",
        PORT.into(),
    );
    cluster.apply("still.yaml", &with_pods_on(&cluster, &still, &ALL));
    let vips = clients::addresses(&cluster, &still);
    for vip in vips {
        eventually("the preferred owner", Duration::from_secs(15), || {
            let owner = cluster.owner(vip, &ALL)?;
            ensure(owner == victim, || format!("{vip} is on node {owner}"))
        });
    }
    let ears = vips.map(|vip| (vip, Capture::start(&cluster.trio.nodes[victim].ns, "eth0")));
    let before = ask(&cluster, victim, &ears, Duration::from_millis(500));
    assert!(
        before.iter().all(|told| told.claims > 0),
        "the owner answers while it runs: {before:?}"
    );

    let probers = vips.map(|vip| Prober::start(&cluster.trio.client, vip, PORT));
    thread::sleep(Duration::from_millis(300));
    let begin = cluster.inject(victim, Fault::Stopped);
    thread::sleep(time - BEFORE);
    // What it said while it ran still.
    ears.iter().for_each(|(vip, ear)| drop(ear.heard_from(*vip)));
    let stopped = ask(&cluster, victim, &ears, BEFORE);
    let resumed = Instant::now();
    cluster.heal(victim, Fault::Stopped);
    let after = ask(&cluster, victim, &ears, AFTER);
    // All of them before anybody is asked for an opinion: they run ahead of ordinary threads.
    let traces = probers.map(Prober::stop);
    for ((trace, vip), (stopped, after)) in
        traces.into_iter().zip(vips).zip(stopped.into_iter().zip(after))
    {
        println!(
            "{vip} after {time:?}: asked {} times before it ran again and {} times after",
            stopped.questions, after.questions
        );
        assert_eq!(
            (stopped.claims, after.claims),
            (0, 0),
            "{vip}: node {victim} answers, or announces, what is not its own"
        );
        println!(
            "{vip}: {:?} without an answer, {} of {} lost",
            trace.gap(),
            trace.lost(),
            trace.probes.len()
        );
        assert!(
            trace.gap() <= patient(Duration::from_secs(1)),
            "{vip}: {:?} without an answer",
            trace.gap()
        );
        // It may take the others a while on a busy machine, and nobody minds: the kernel there goes
        // on.
        let through = trace.since(begin + time - BEFORE).by(|reply| cluster.trio.through(reply));
        assert!(
            !through.is_empty() && !through.contains_key(&victim),
            "{vip}: through {through:?} without node {victim}"
        );
        assert_eq!(
            trace.since(resumed).lost(),
            0,
            "{vip}: questions without an answer after node {victim} ran again"
        );
        assert!(
            cluster.trio.neighbour(vip) != Some(victim),
            "{vip}: the client still looks to node {victim}"
        );
        eventually("everybody agrees who is the owner", Duration::from_secs(5), || {
            cluster.owner(vip, &ALL)
        });
    }
}

/// A thread that is kept from running, by a debugger or by others of a higher priority, cannot say
/// so itself.
#[test]
fn a_node_without_bfd_reports_it_and_owns_nothing() {
    let cluster = Cluster::start(&[]);
    cluster.settle();
    let vip = cluster.vip(Family::V4);
    let victim = cluster.owner(vip, &ALL).expect("an owner");
    assert!(
        cluster.detection_time(victim, others(victim)[0]).expect("it watches the others") >= 150
    );
    let named = |name: &str| {
        Ok::<_, String>(
            cluster.state(victim)?["warnings"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|warning| warning["code"] == name),
        )
    };

    let ear = Capture::start(&cluster.trio.nodes[victim].ns, "eth0");
    let halted = cluster.running(victim).halt("bfd");
    let owner = eventually("another owner", patient(Duration::from_secs(3)), || {
        cluster.owner(vip, &others(victim))
    });
    assert_ne!(owner, victim);
    assert_eq!(named("BfdNotRunning"), Ok(true));
    drop(ear.heard_from(vip));
    let told = ask(&cluster, victim, &[(vip, ear)], BEFORE);
    assert_eq!(told[0].claims, 0, "it answers without knowing whether it may");

    drop(halted);
    eventually("one owner", patient(Duration::from_secs(10)), || cluster.owner(vip, &ALL));
    assert_eq!(named("BfdNotRunning"), Ok(false));
}

/// What was heard on the node's own link about an address.
#[derive(Debug, Default)]
struct Told {
    /// Questions that reached it.
    questions: usize,
    /// Its own answers and announcements.
    claims: usize,
}

/// The client asks for each address again and again.
fn ask<const N: usize>(
    cluster: &Cluster,
    node: usize,
    ears: &[(IpAddr, Capture); N],
    time: Duration,
) -> [Told; N] {
    let station = cluster.trio.nodes[node].station();
    let mouth = Capture::start(&cluster.trio.client.ns, "eth0");
    let questions: Vec<_> =
        ears.iter().map(|(vip, _)| question(*vip, &cluster.trio.client)).collect();
    let (end, mut asked) = (Instant::now() + time, 0);
    let mut told = [(); N].map(|()| Told::default());
    loop {
        // As it comes: a socket holds a few seconds of what passes here, and no more.
        for ((vip, ear), told) in ears.iter().zip(&mut told) {
            let heard = ear.heard_from(*vip);
            told.questions += heard.iter().filter(|(_, what)| *what == Heard::Question).count();
            told.claims += heard
                .iter()
                .filter(|(from, what)| *from == station && *what != Heard::Question)
                .count();
        }
        if Instant::now() >= end {
            break;
        }
        questions.iter().for_each(|question| mouth.send(question));
        asked += 1;
        thread::sleep(PACE);
    }
    assert!(
        told.iter().all(|told| told.questions >= asked),
        "every question reaches the node: {asked} were asked, {told:?}"
    );
    told
}
