//! Carries the [`Announcer`] to the wire: packet sockets on the interfaces that have VIPs, and the
//! clock.
//!
//! ```text
//! engine ──watch Desired──▶ run ──frames──▶ interfaces
//!        ◀─mpsc events────      ◀─frames───
//! ```
//!
//! Latest wins on the way in; on the way out probing results are never dropped. Nothing is decided
//! here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;
use std::{io, thread};

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};

use super::socket::Port;
use crate::common::backoff::Backoff;
use crate::common::random;
use crate::host::liveness_fence::LivenessFence;
use crate::l2::announcer;
use crate::l2::announcer::{Announcement, Announcer, AnnouncerEvent, Config, Gateways};
use crate::model::Interfaces;
use crate::model::mac::Mac;

/// How often to ask whether the vigil is kept again.
const ASLEEP: Duration = Duration::from_millis(5);
/// Frames taken from one socket before the others, and the clock, have their turn.
const BATCH: usize = 64;
/// Events that wait for a slow receiver. Beyond it reports about rivals are dropped (they repeat);
/// results of probing never are, and there is at most one per VIP and probing.
const EVENT_BACKLOG: usize = 1024;
/// Delays before an interface that could not be opened is tried again.
const RETRY: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));

/// What is to be announced, and where we are.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// VIP → where and how.
    pub announcements: Arc<BTreeMap<IpAddr, Announcement>>,
    /// All interfaces of the host, as [`crate::host::links`] publishes them.
    pub interfaces: Arc<Interfaces>,
    /// Between refreshes; None: as configured.
    pub interval: Option<Duration>,
    /// Who is told of a takeover in person.
    pub gateways: Arc<Gateways>,
    /// The latest question about each VIP, numbered in ascending order: whose holder is to be
    /// asked, and where.
    pub asks: BTreeMap<IpAddr, (u64, Option<Mac>)>,
    /// The number of the last one.
    pub asked: u64,
}

impl Desired {
    /// Adds questions. Of several about one VIP the latest counts.
    pub fn ask(&mut self, asks: Vec<(IpAddr, Option<Mac>)>) {
        for (vip, station) in asks {
            self.asked += 1;
            self.asks.insert(vip, (self.asked, station));
        }
        if self.asks.len() > self.announcements.len() {
            self.asks.retain(|vip, _| self.announcements.contains_key(vip));
        }
    }
}

/// Totals since the start, to be read by other threads at any time.
#[derive(Debug, Default)]
pub struct L2Counters(Mutex<L2Totals>);

impl L2Counters {
    /// A consistent copy.
    pub fn totals(&self) -> L2Totals {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, totals: L2Totals) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = totals;
    }
}

/// See [`Counters`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct L2Totals {
    /// What frames meant.
    pub announcer: announcer::AnnouncerCounters,
    /// Frames handed to the kernel.
    pub sent: u64,
    /// Frames refused because the queue of the interface was full (ENOBUFS, EAGAIN).
    pub send_queue_full: u64,
    /// Frames refused because the link was down or gone (ENETDOWN, ENXIO, ENODEV).
    pub send_link_down: u64,
    /// Frames refused for any other reason.
    pub send_failed: u64,
    /// Errors when receiving; a link that goes down is one on each of its sockets.
    pub receive_failed: u64,
    /// Multicast groups that could not be joined.
    pub join_failed: u64,
    /// Events dropped because nobody took them.
    pub events_dropped: u64,
}

/// Starts [`run`] on a thread of its own, with its own runtime: an answer to ARP must not wait
/// while the main thread compiles 5,000 services or writes a large batch to the kernel, for clients
/// wait for it before their first packet, and rivals take silence for consent.
///
/// The thread lives in the network namespace of the caller, and ends when the sender of `desired`
/// is dropped.
pub fn spawn(
    desired: watch::Receiver<Desired>,
    events: mpsc::Sender<AnnouncerEvent>,
    config: Config,
    counters: Arc<L2Counters>,
    vigil: Arc<LivenessFence>,
) -> io::Result<thread::JoinHandle<()>> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    thread::Builder::new()
        .name("l2".to_owned())
        .stack_size(256 * 1024)
        .spawn(move || runtime.block_on(run(desired, events, config, counters, vigil)))
}

/// Announces until the sender of `desired` is dropped; then simply stops: the sockets and their
/// group memberships end with it. While the vigil is not kept it says nothing, and what it hears is
/// too old to count.
pub async fn run(
    mut desired: watch::Receiver<Desired>,
    events: mpsc::Sender<AnnouncerEvent>,
    config: Config,
    counters: Arc<L2Counters>,
    vigil: Arc<LivenessFence>,
) {
    let mut task = Task::new(config);
    let first = desired.borrow_and_update().clone();
    task.apply(first);
    loop {
        let kept = vigil.is_open();
        if kept {
            task.catch_up(&mut desired);
            task.work(&events);
        }
        counters.publish(L2Totals { announcer: *task.announcer.counters(), ..task.totals });
        let deadline = task.poll_timeout();
        tokio::select! {
            changed = desired.changed() => {
                if changed.is_err() {
                    return;
                }
                let latest = desired.borrow_and_update().clone();
                task.apply(latest);
            }
            () = task.readable() => {
                // Asked now, for it may be long since the wait began; and what was decided meanwhile comes before any answer.
                let kept = vigil.is_open();
                if kept {
                    task.catch_up(&mut desired);
                }
                task.receive(kept);
            }
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() && kept => {}
            () = sleep(ASLEEP), if !kept => {}
            permit = events.reserve(), if !task.backlog.is_empty() => match permit {
                Ok(permit) => if let Some(event) = task.backlog.pop_front() { permit.send(event) },
                Err(_) => task.backlog.clear(),
            },
        }
    }
}

struct Task {
    announcer: Announcer,
    epoch: Instant,
    desired: Desired,
    ports: BTreeMap<u32, Port>,
    failed: BTreeMap<u32, Failure>,
    backlog: VecDeque<AnnouncerEvent>,
    totals: L2Totals,
    /// Number of the last question that was put.
    asked: u64,
}

/// An interface that is closed for a while.
struct Failure {
    /// What was reported.
    reason: Option<Box<str>>,
    /// How often it was tried again in vain.
    attempts: u32,
    retry: Instant,
}

impl Task {
    fn new(config: Config) -> Task {
        Task {
            announcer: Announcer::new(config, random::seed()),
            epoch: Instant::now(),
            desired: Desired::default(),
            ports: BTreeMap::new(),
            failed: BTreeMap::new(),
            backlog: VecDeque::new(),
            totals: L2Totals::default(),
            asked: 0,
        }
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// Takes in a wish that has come and was not noticed yet.
    fn catch_up(&mut self, desired: &mut watch::Receiver<Desired>) {
        if desired.has_changed().unwrap_or(false) {
            let latest = desired.borrow_and_update().clone();
            self.apply(latest);
        }
    }

    fn apply(&mut self, desired: Desired) {
        self.desired = desired;
        self.announcer.set_interval(self.desired.interval, self.epoch.elapsed());
        self.announcer.set_gateways(Arc::clone(&self.desired.gateways));
        self.open();
        let now = self.now();
        for (vip, (_, station)) in
            self.desired.asks.iter().filter(|(_, (number, _))| *number > self.asked)
        {
            self.announcer.ask(*vip, *station, now);
        }
        self.asked = self.desired.asked;
    }

    /// Tells the announcer what is wanted. An interface without sockets is down to it: what cannot
    /// be heard there must not pass for the silence that ends probing, and once it is open
    /// again there is a new burst.
    fn inform(&mut self) {
        let now = self.now();
        let mut interfaces = Arc::clone(&self.desired.interfaces);
        if !self.failed.is_empty() {
            for (ifindex, interface) in Arc::make_mut(&mut interfaces) {
                interface.up &= !self.failed.contains_key(ifindex);
            }
        }
        self.announcer.set(BTreeMap::clone(&self.desired.announcements), &interfaces, now);
    }

    /// Sockets exist where a VIP is wanted on an interface that is up; a link that comes back gets
    /// new ones, which join their groups anew and so tell the switch.
    fn open(&mut self) {
        let mut wanted: BTreeMap<u32, BTreeSet<IpAddr>> = BTreeMap::new();
        for (vip, announcement) in self.desired.announcements.iter() {
            for ifindex in announcement.interfaces.iter() {
                if self
                    .desired
                    .interfaces
                    .get(ifindex)
                    .is_some_and(|interface| interface.up && interface.mac.is_some())
                {
                    wanted.entry(*ifindex).or_default().insert(*vip);
                }
            }
        }
        self.ports.retain(|ifindex, _| wanted.contains_key(ifindex));
        self.failed.retain(|ifindex, _| wanted.contains_key(ifindex));
        for (ifindex, vips) in wanted {
            match self.ports.entry(ifindex).or_insert_with(|| Port::new(ifindex)).listen(&vips) {
                Ok(join_failed) => {
                    self.totals.join_failed += join_failed;
                    if join_failed > 0 {
                        debug!(
                            ifindex,
                            join_failed,
                            "multicast groups not joined; IPv6 may be off on the interface"
                        );
                    }
                    if self.failed.remove(&ifindex).is_some_and(|failure| failure.reason.is_some())
                    {
                        info!(ifindex, "announcing on the interface works again");
                    }
                }
                Err(error) => self.fail(ifindex, &error),
            }
        }
        self.inform();
    }

    /// Closes interfaces whose sockets broke, to be opened anew soon. No failure to tell of: their
    /// link went down or they are gone, and the snapshot that says so may be on its way.
    fn reopen(&mut self, broken: BTreeSet<u32>) {
        for ifindex in &broken {
            self.close(*ifindex, None);
        }
        if !broken.is_empty() {
            self.inform();
        }
    }

    /// Says that an interface cannot be opened, once per reason, and closes it for a while.
    fn fail(&mut self, ifindex: u32, error: &io::Error) {
        let name = self.desired.interfaces.get(&ifindex).map_or("?", |interface| &interface.name);
        let reason: Box<str> = match error.kind() {
            io::ErrorKind::PermissionDenied => {
                format!("no packet socket on {name}: {error}; CAP_NET_RAW is needed").into()
            }
            _ => format!("no packet socket on {name}: {error}").into(),
        };
        if self.failed.get(&ifindex).is_none_or(|failure| failure.reason.as_ref() != Some(&reason))
        {
            warn!(ifindex, "{reason}");
            self.backlog
                .push_back(AnnouncerEvent::SocketFailed { ifindex, reason: reason.clone() });
        }
        self.close(ifindex, Some(reason));
    }

    fn close(&mut self, ifindex: u32, reason: Option<Box<str>>) {
        self.ports.remove(&ifindex);
        let attempts = self.failed.get(&ifindex).map_or(0, |failure| failure.attempts + 1);
        let retry = Instant::now() + RETRY.delay(attempts);
        self.failed.insert(ifindex, Failure { reason, attempts, retry });
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let announcer = self.announcer.poll_timeout().map(|due| self.epoch + due);
        announcer.into_iter().chain(self.failed.values().map(|failure| failure.retry)).min()
    }

    /// What is due, and what came of it.
    fn work(&mut self, events: &mpsc::Sender<AnnouncerEvent>) {
        let now = Instant::now();
        if self.failed.values().any(|failure| failure.retry <= now) {
            self.open();
        }
        self.announcer.poll(self.epoch.elapsed());
        let mut broken = BTreeSet::new();
        for transmission in self.announcer.transmissions() {
            let Some(port) = self.ports.get(&transmission.ifindex) else { continue };
            match port.send(&transmission.frame) {
                Ok(()) => self.totals.sent += 1,
                Err(error) => match error.raw_os_error() {
                    Some(libc::ENOBUFS | libc::EAGAIN) => self.totals.send_queue_full += 1,
                    Some(libc::ENETDOWN) => self.totals.send_link_down += 1,
                    Some(libc::ENXIO | libc::ENODEV) => {
                        self.totals.send_link_down += 1;
                        broken.insert(transmission.ifindex);
                    }
                    _ => self.totals.send_failed += 1,
                },
            }
        }
        self.reopen(broken);
        for event in self.announcer.events() {
            let repeats = matches!(
                event,
                AnnouncerEvent::Contested { .. }
                    | AnnouncerEvent::Defended { .. }
                    | AnnouncerEvent::Heard { .. }
                    | AnnouncerEvent::Asked { .. }
            );
            if repeats && self.backlog.len() >= EVENT_BACKLOG {
                self.totals.events_dropped += 1;
            } else {
                self.backlog.push_back(event);
            }
        }
        while let Some(event) = self.backlog.pop_front() {
            match events.try_send(event) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(event)) => {
                    self.backlog.push_front(event);
                    break;
                }
                Err(mpsc::error::TrySendError::Closed(_)) => self.backlog.clear(),
            }
        }
    }

    /// Ready when one of the sockets has something to read.
    async fn readable(&self) {
        poll_fn(|context| {
            let ready = self
                .ports
                .values()
                .flat_map(Port::taps)
                .any(|tap| tap.fd().poll_read_ready(context).is_ready());
            if ready { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Reads what has come; throws it away unless it counts.
    fn receive(&mut self, counts: bool) {
        let now = self.now();
        let mut buffer = [0; super::filter::SNAP as usize];
        let mut broken = BTreeSet::new();
        for (&ifindex, port) in &self.ports {
            for tap in port.taps() {
                for _ in 0..BATCH {
                    match tap.receive(&mut buffer) {
                        Ok(_) if !counts => {}
                        Ok(length) => self.announcer.receive(
                            ifindex,
                            buffer.get(..length).unwrap_or_default(),
                            now,
                        ),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                        Err(error) => {
                            // ENETDOWN is also what remains when the interface is gone, and the
                            // socket deaf for good.
                            debug!(ifindex, %error, "packet socket is opened anew");
                            self.totals.receive_failed += 1;
                            broken.insert(ifindex);
                            break;
                        }
                    }
                }
            }
        }
        self.reopen(broken);
    }
}
