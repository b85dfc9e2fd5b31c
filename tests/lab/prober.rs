//! A client that asks a UDP service once a millisecond, each time from a fresh port, and remembers
//! what became of every question.
//!
//! One thread inside the client's namespace. A question has a socket of its own, so that its answer
//! cannot be mistaken for another's, and a port that was not used for longer than the kernel
//! remembers connections: each is a new one to whoever forwards it.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pinnace::bfd::io::realtime;
use rustix::event::epoll::EventFlags;
use rustix::event::{Timespec, epoll};
use socket2::{Domain, Socket, Type};

use super::{Host, Reply};

/// Between two questions.
pub const PACE: Duration = Duration::from_millis(1);
/// Maximum number of requests that wait for their answers; an answer that takes longer than this
/// many milliseconds counts as lost.
const WAITING: usize = 500;
/// Where ports come from, in turn: 45 s worth of questions, when connection tracking forgets an
/// answered one after 30 s.
const PORTS: std::ops::Range<u32> = 16_000..61_000;
/// Of each family.
static NEXT_PORT: [AtomicU32; 2] = [AtomicU32::new(0), AtomicU32::new(0)];

/// One question.
#[derive(Clone, Debug)]
pub struct Probe {
    /// When it was asked.
    pub sent: Instant,
    /// When it was answered, and by whom.
    pub answer: Option<(Instant, Reply)>,
}

/// A running prober.
pub struct Prober {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<Trace>>,
}

/// What a prober has seen.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// In the order in which they were asked.
    pub probes: Vec<Probe>,
}

impl Prober {
    /// Begins to ask.
    pub fn start(client: &Host, address: IpAddr, port: u16) -> Prober {
        allow_many_files();
        let stop = Arc::new(AtomicBool::new(false));
        let (seen, target) = (stop.clone(), SocketAddr::new(address, port));
        // A thread stays in the namespace of the one that started it.
        let thread = client.ns.enter(|| thread::spawn(move || probe(target, &seen)));
        Prober { stop, thread: Some(thread) }
    }

    /// Ends the questions and waits a moment for the last answers.
    pub fn stop(mut self) -> Trace {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("only taken here").join().expect("the prober does not panic")
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn probe(target: SocketAddr, stop: &AtomicBool) -> Trace {
    // It must not be late because the machine is busy: its own lateness would look like a gap.
    // Where that is not permitted, it is not.
    let _ = realtime::enter(1);
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
    let mut trace = Trace::default();
    let mut waiting: VecDeque<UdpSocket> = VecDeque::new();
    let mut events = Vec::with_capacity(64);
    let mut next = Instant::now();
    let mut end = None;
    loop {
        let now = Instant::now();
        match end {
            None if stop.load(Ordering::Relaxed) => end = Some(now + Duration::from_millis(200)),
            Some(end) if now >= end => return trace,
            _ => {}
        }
        if end.is_none() && now >= next {
            let socket = ask(target);
            let data = epoll::EventData::new_u64(trace.probes.len() as u64);
            epoll::add(&epoll, &socket, data, EventFlags::IN).expect("epoll takes a socket");
            waiting.push_back(socket);
            trace.probes.push(Probe { sent: now, answer: None });
            // One that was late does not catch up: that would be a burst.
            next = (next + PACE).max(now);
            if waiting.len() > WAITING {
                waiting.pop_front();
            }
        }
        let pause =
            if end.is_some() { PACE } else { next.saturating_duration_since(Instant::now()) };
        let pause = Timespec { tv_sec: 0, tv_nsec: pause.as_nanos().min(999_999_999) as _ };
        events.clear();
        if epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), Some(&pause)).is_err() {
            continue;
        }
        for event in &events {
            let index = event.data.u64() as usize;
            // Sockets leave in the order in which they came; the youngest belongs to the youngest
            // question.
            let age = trace.probes.len() - index;
            let Some(socket) = waiting.len().checked_sub(age).and_then(|at| waiting.get(at)) else {
                continue;
            };
            let mut buffer = [0; 256];
            let Ok(length) = socket.recv(&mut buffer) else { continue };
            let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
            if let (Ok(reply), Some(probe)) = (Reply::parse(&text), trace.probes.get_mut(index)) {
                probe.answer.get_or_insert((Instant::now(), reply));
            }
        }
    }
}

/// A socket that has asked. Where sending fails (no route, no neighbour) the question is lost, as
/// anything else would be.
fn ask(target: SocketAddr) -> UdpSocket {
    // A port that is taken is left out.
    let socket = (0..100).find_map(|_| {
        let turn = NEXT_PORT[usize::from(target.is_ipv6())].fetch_add(1, Ordering::Relaxed);
        bound(target, PORTS.start + turn % PORTS.len() as u32).ok()
    });
    let socket = socket.expect("one of a hundred ports is free");
    socket.set_nonblocking(true).expect("a socket");
    let _ = socket.connect(target).and_then(|()| socket.send(b"who\n"));
    socket
}

fn bound(target: SocketAddr, port: u32) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(target), Type::DGRAM, None)?;
    let any: IpAddr =
        if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    if target.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&SocketAddr::new(any, u16::try_from(port).expect("below 65536")).into())?;
    Ok(socket.into())
}

/// Every question that waits is an open file.
fn allow_many_files() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    // Where even that is not enough, opening a socket says so.
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised);
}

impl Trace {
    /// The longest time without an answer.
    pub fn gap(&self) -> Duration {
        self.silence().map_or(Duration::ZERO, |(begin, end)| end - begin)
    }

    /// When it began and when it ended.
    pub fn silence(&self) -> Option<(Instant, Instant)> {
        let mut answers: Vec<Instant> =
            self.probes.iter().filter_map(|probe| Some(probe.answer.as_ref()?.0)).collect();
        answers.sort();
        let begin = self.probes.first().map(|probe| probe.sent);
        let end = self.probes.last().map(|probe| probe.sent);
        let all: Vec<Instant> = begin.into_iter().chain(answers).chain(end).collect();
        // The last answer may have come after the last question.
        all.windows(2)
            .map(|pair| (pair[0], pair[1].max(pair[0])))
            .max_by_key(|(begin, end)| *end - *begin)
    }

    /// Questions that were never answered.
    pub fn lost(&self) -> usize {
        self.probes.iter().filter(|probe| probe.answer.is_none()).count()
    }

    /// When the first and the last of the lost questions were asked.
    pub fn lost_between(&self) -> Option<(Instant, Instant)> {
        let mut lost =
            self.probes.iter().filter(|probe| probe.answer.is_none()).map(|probe| probe.sent);
        let first = lost.next()?;
        Some((first, lost.next_back().unwrap_or(first)))
    }

    /// What was asked until then.
    pub fn before(&self, end: Instant) -> Trace {
        Trace { probes: self.probes.iter().filter(|probe| probe.sent < end).cloned().collect() }
    }

    /// What was asked from then on.
    pub fn since(&self, begin: Instant) -> Trace {
        Trace { probes: self.probes.iter().filter(|probe| probe.sent >= begin).cloned().collect() }
    }

    /// How many answers came through which machine: `through` says which one from an answer.
    pub fn by<K: Ord>(&self, through: impl Fn(&Reply) -> K) -> BTreeMap<K, usize> {
        let mut counts = BTreeMap::new();
        for (_, reply) in self.probes.iter().filter_map(|probe| probe.answer.as_ref()) {
            *counts.entry(through(reply)).or_default() += 1;
        }
        counts
    }
}
