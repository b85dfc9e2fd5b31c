//! Connects the [`Announcer`] to the network: packet sockets on the interfaces that have VIPs, and
//! the clock.
//!
//! ```text
//! engine ──watch Desired──▶ run ──frames──▶ interfaces
//!        ◀─mpsc events────      ◀─frames───
//! ```
//!
//! The latest desired state counts; results of probing are never dropped. Nothing is decided here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use std::{io, thread};

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};

use super::counters::{L2Counters, L2Totals};
use super::desired::Desired;
use super::filter;
use super::socket::Port;
use crate::common::backoff::Backoff;
use crate::common::random;
use crate::host::liveness_fence::LivenessFence;
use crate::l2::announcer::{Announcer, AnnouncerConfig, AnnouncerEvent};

/// How often to look whether a closed fence is open again.
const FENCE_POLL: Duration = Duration::from_millis(5);
/// Maximum number of frames read from one socket before other sockets and timers have their turn.
const BATCH: usize = 64;
/// Maximum number of events that wait for a slow receiver. Beyond it reports of claims are dropped,
/// because they repeat; results of probing never are, and there is at most one per VIP.
const EVENT_BACKLOG: usize = 1024;
/// Delays before an interface that could not be opened is tried again.
const RETRY: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));

/// Starts [`run`] on a thread of its own, with its own runtime: ARP replies must not wait while the
/// main thread compiles 5,000 services or writes a large batch to the kernel. Clients wait for them
/// before their first packet, and to a probe silence means that the address is free.
///
/// The thread runs in the network namespace of the caller and ends when the sender of `desired` is
/// dropped.
pub fn spawn(
    desired: watch::Receiver<Desired>,
    events: mpsc::Sender<AnnouncerEvent>,
    config: AnnouncerConfig,
    counters: Arc<L2Counters>,
    fence: Arc<LivenessFence>,
) -> io::Result<thread::JoinHandle<()>> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    thread::Builder::new()
        .name("l2".to_owned())
        .stack_size(256 * 1024)
        .spawn(move || runtime.block_on(run(desired, events, config, counters, fence)))
}

/// Announces until the sender of `desired` is dropped; sockets and group memberships end with it.
/// While the fence is closed it sends nothing and discards what it receives, which is too old.
pub async fn run(
    mut desired: watch::Receiver<Desired>,
    events: mpsc::Sender<AnnouncerEvent>,
    config: AnnouncerConfig,
    counters: Arc<L2Counters>,
    fence: Arc<LivenessFence>,
) {
    let mut task = Task::new(config);
    let first = desired.borrow_and_update().clone();
    task.apply(first);
    loop {
        let open = fence.is_open();
        if open {
            task.catch_up(&mut desired);
            task.run_due(&events);
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
                // The wait may have been long. What was decided meanwhile comes before any reply.
                let open = fence.is_open();
                if open {
                    task.catch_up(&mut desired);
                }
                task.receive(open);
            }
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() && open => {}
            () = sleep(FENCE_POLL), if !open => {}
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
    /// Number of the last probe handed to the announcer.
    probes_done: u64,
}

/// An interface whose sockets failed; it is opened again later.
struct Failure {
    /// As reported.
    reason: Option<Box<str>>,
    /// How often it was tried again in vain.
    attempts: u32,
    retry: Instant,
}

impl Task {
    fn new(config: AnnouncerConfig) -> Task {
        Task {
            announcer: Announcer::new(config, random::seed()),
            epoch: Instant::now(),
            desired: Desired::default(),
            ports: BTreeMap::new(),
            failed: BTreeMap::new(),
            backlog: VecDeque::new(),
            totals: L2Totals::default(),
            probes_done: 0,
        }
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// Applies a desired state that is waiting.
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
        self.open_ports();
        let now = self.now();
        for (vip, (number, lladdr)) in &self.desired.probes {
            if *number > self.probes_done {
                self.announcer.request_probe(*vip, *lladdr, now);
            }
        }
        self.probes_done = self.desired.last_probe;
    }

    /// Tells the announcer what is desired. An interface without sockets counts as down: silence
    /// there must not end probing, and a new burst follows once it is open again.
    fn update_announcer(&mut self) {
        let now = self.now();
        let mut interfaces = Arc::clone(&self.desired.interfaces);
        if !self.failed.is_empty() {
            for (ifindex, interface) in Arc::make_mut(&mut interfaces) {
                interface.up &= !self.failed.contains_key(ifindex);
            }
        }
        self.announcer.set(BTreeMap::clone(&self.desired.announcements), &interfaces, now);
    }

    /// Opens and closes sockets: they exist where a VIP is desired on an interface that is up. A
    /// link that comes back gets new ones, which join their groups again and so tell the switch.
    fn open_ports(&mut self) {
        let wanted = self.wanted_ports();
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
                        info!(ifindex, "packet sockets work again");
                    }
                }
                Err(error) => self.fail(ifindex, &error),
            }
        }
        self.update_announcer();
    }

    /// VIPs by interface that is up.
    fn wanted_ports(&self) -> BTreeMap<u32, BTreeSet<IpAddr>> {
        let interfaces = &self.desired.interfaces;
        let is_usable = |ifindex: &u32| {
            interfaces.get(ifindex).is_some_and(|interface| interface.up && interface.mac.is_some())
        };
        let mut wanted: BTreeMap<u32, BTreeSet<IpAddr>> = BTreeMap::new();
        for (vip, announcement) in self.desired.announcements.iter() {
            for ifindex in announcement.interfaces.iter().filter(|ifindex| is_usable(ifindex)) {
                wanted.entry(*ifindex).or_default().insert(*vip);
            }
        }
        wanted
    }

    /// Closes interfaces whose sockets failed, to be reopened soon. This is not reported: the link
    /// went down or is gone, and the snapshot that shows it may not have arrived yet.
    fn reopen(&mut self, broken: BTreeSet<u32>) {
        for ifindex in &broken {
            self.close(*ifindex, None);
        }
        if !broken.is_empty() {
            self.update_announcer();
        }
    }

    /// Reports once per reason that an interface cannot be opened, and closes it for a while.
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

    /// Does what is due, sends frames and passes events on.
    fn run_due(&mut self, events: &mpsc::Sender<AnnouncerEvent>) {
        let now = Instant::now();
        if self.failed.values().any(|failure| failure.retry <= now) {
            self.open_ports();
        }
        self.announcer.handle_timeout(self.epoch.elapsed());
        self.send_frames();
        self.queue_events();
        self.pass_events_on(events);
    }

    fn send_frames(&mut self) {
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
    }

    fn queue_events(&mut self) {
        for event in self.announcer.events() {
            let repeats = matches!(
                event,
                AnnouncerEvent::Contested { .. }
                    | AnnouncerEvent::Defended { .. }
                    | AnnouncerEvent::ClaimObserved { .. }
                    | AnnouncerEvent::ProbeObserved { .. }
            );
            if repeats && self.backlog.len() >= EVENT_BACKLOG {
                self.totals.events_dropped += 1;
            } else {
                self.backlog.push_back(event);
            }
        }
    }

    fn pass_events_on(&mut self, events: &mpsc::Sender<AnnouncerEvent>) {
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

    /// Ready when a socket has a frame.
    async fn readable(&self) {
        poll_fn(|context| {
            let ready = self
                .ports
                .values()
                .flat_map(Port::sockets)
                .any(|socket| socket.fd().poll_read_ready(context).is_ready());
            if ready { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Reads the frames that have arrived, and discards them unless the fence is open.
    fn receive(&mut self, open: bool) {
        let now = self.now();
        let mut buffer = [0; filter::SNAP_LEN as usize];
        let mut broken = BTreeSet::new();
        for (&ifindex, port) in &self.ports {
            for socket in port.sockets() {
                for _ in 0..BATCH {
                    match socket.receive(&mut buffer) {
                        Ok(_) if !open => {}
                        Ok(length) => self.announcer.receive(
                            ifindex,
                            buffer.get(..length).unwrap_or_default(),
                            now,
                        ),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                        Err(error) => {
                            // ENETDOWN is also the last error of a socket whose interface is gone,
                            // and which will never receive again.
                            debug!(ifindex, %error, "reopening packet socket");
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
