//! The loop of the thread.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use super::command::Command;
use super::counters::BfdCounters;
use super::options::BfdOptions;
use super::socket::Sockets;
use crate::bfd::{Effects, Event, Peer, PeerKey, Received, Sessions};
use crate::host::liveness_fence::{LivenessFence, boot_time};

/// Maximum number of datagrams read from one socket in a row: more than its buffer holds, so that
/// everything that was queued at the beginning is read. A flood delays the timers, but cannot
/// starve them.
const BATCH: usize = 4096;
/// Scheduling delays up to this are not reported.
const NEGLIGIBLE_DELAY: Duration = Duration::from_millis(1);

pub(super) struct Task {
    sessions: Sessions,
    fence: Arc<LivenessFence>,
    sockets: Sockets,
    commands: mpsc::Receiver<Command>,
    wake: Arc<OwnedFd>,
    timer: OwnedFd,
    armed: Option<Duration>,
    counters: Arc<BfdCounters>,
    events: Box<dyn FnMut(Event) + Send>,
    /// When to end, even if peers have not reacted to AdminDown.
    stop: Option<Duration>,
    /// Bit set of listeners with queued datagrams.
    ready: u8,
}

impl Task {
    pub fn new(
        options: BfdOptions,
        seed: u64,
        sockets: Sockets,
        commands: mpsc::Receiver<Command>,
        wake: Arc<OwnedFd>,
        counters: Arc<BfdCounters>,
        events: Box<dyn FnMut(Event) + Send>,
    ) -> io::Result<Task> {
        let timer = timerfd_create(
            TimerfdClockId::Boottime,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        Ok(Task {
            sessions: Sessions::new(options.config, seed),
            fence: options.fence,
            sockets,
            commands,
            wake,
            timer,
            armed: None,
            counters,
            events,
            stop: None,
            ready: 0,
        })
    }

    pub fn run(mut self) {
        let mut planned: Option<Duration> = None;
        loop {
            // A round takes place at one instant: a peer is silent if everything that had arrived
            // by then was read and none of it was from the peer, however long reading takes.
            let now = boot_time();
            let late = planned.map_or(Duration::ZERO, |planned| now.saturating_sub(planned));
            if late > NEGLIGIBLE_DELAY {
                self.counters.scheduling_delay(late);
                let effects = self.sessions.on_scheduling_delay(late, now);
                self.apply(effects);
            }
            // No detection time expires before the planned time, so until then only sockets that
            // poll(2) reported are read.
            let early = planned.is_some_and(|planned| now < planned);
            self.receive(if early { self.ready } else { u8::MAX }, now);
            let effects = self.sessions.resynced(now);
            self.apply(effects);
            if !self.handle_commands(now) {
                return;
            }
            let effects = self.sessions.handle_timeout(now);
            self.apply(effects);
            if self.stop.is_some_and(|until| until <= now || self.sessions.is_empty()) {
                return;
            }
            // The delay of what is overdue already counts from now. The fence stays open until the
            // detection time of a peer may expire.
            planned = self
                .sessions
                .poll_timeout()
                .into_iter()
                .chain(self.stop)
                .min()
                .map(|due| due.max(now));
            self.fence.allow_until(
                planned.map(|planned| self.sessions.remote_detection_deadline(planned)),
            );
            self.wait(planned);
        }
    }

    fn receive(&mut self, listeners: u8, now: Duration) {
        let mut buffer = [0; 256]; // `Length` is one byte.
        for index in
            (0..self.sockets.listeners().len()).filter(|index| listeners & (1 << index) != 0)
        {
            for _ in 0..BATCH {
                let Some(listener) = self.sockets.listeners().get(index) else { break };
                let (datagram, multihop) = match listener.receive(&mut buffer) {
                    Ok(datagram) => (datagram, listener.multihop),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(_) => {
                        self.counters.receive_failed();
                        continue;
                    }
                };
                self.counters.received();
                let received = Received {
                    interface: datagram.interface,
                    source: datagram.source,
                    ttl: datagram.ttl,
                    multihop,
                    payload: buffer.get(..datagram.length).unwrap_or_default(),
                };
                let effects = self.sessions.handle(&received, now);
                self.apply(effects);
            }
        }
    }

    /// False when the handle is gone.
    fn handle_commands(&mut self, now: Duration) -> bool {
        let mut latest = None;
        loop {
            match self.commands.try_recv() {
                Ok(Command::Peers(peers)) => latest = Some(peers),
                Ok(Command::Status(reply)) => {
                    self.set_peers(latest.take(), now);
                    let _ = reply.send(self.sessions.status());
                }
                Ok(Command::Stop(timeout)) => {
                    self.stop = Some(now + timeout);
                    latest = Some(BTreeMap::new());
                }
                Err(mpsc::TryRecvError::Empty) => break,
                Err(mpsc::TryRecvError::Disconnected) => return false,
            }
        }
        self.set_peers(latest, now);
        true
    }

    fn set_peers(&mut self, peers: Option<BTreeMap<PeerKey, Peer>>, now: Duration) {
        if let Some(peers) = peers {
            let effects = self.sessions.set(&peers, now);
            self.apply(effects);
        }
    }

    fn apply(&mut self, effects: Effects) {
        for packet in &effects.packets {
            self.counters.sent(self.sockets.send(packet));
        }
        if let Some(reason) = &effects.discarded {
            self.counters.discarded(reason);
        }
        for event in effects.events {
            if matches!(event, Event::Stalled { .. } | Event::RemoteDetectionExpired { .. }) {
                self.fence.close();
            }
            (self.events)(event);
        }
    }

    /// Waits until a datagram or command is queued, or until this time.
    fn wait(&mut self, until: Option<Duration>) {
        self.arm_timer(until);
        let mut fds = Vec::with_capacity(self.sockets.listeners().len() + 2);
        fds.push(PollFd::new(&self.timer, PollFlags::IN));
        fds.push(PollFd::new(&*self.wake, PollFlags::IN));
        fds.extend(
            self.sockets
                .listeners()
                .iter()
                .map(|listener| PollFd::from_borrowed_fd(listener.fd(), PollFlags::IN)),
        );
        // After a signal the next round finds out whether anything is due.
        let _ = poll(&mut fds, None);
        let ready = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
        self.ready = (0..fds.len().saturating_sub(2))
            .fold(0, |bits, index| bits | u8::from(ready(index + 2)) << index);
        let mut count = [0; 8];
        if ready(0) {
            self.armed = None;
            let _ = rustix::io::read(&self.timer, &mut count);
        }
        if ready(1) {
            let _ = rustix::io::read(&*self.wake, &mut count);
        }
    }

    /// Sets the timer only when it would fire too late: one that fires too early costs one round.
    fn arm_timer(&mut self, until: Option<Duration>) {
        let Some(until) = until else { return };
        if self.armed.is_some_and(|armed| armed <= until) {
            return;
        }
        // Zero would disarm it.
        let due = until.max(Duration::from_nanos(1));
        let value = Timespec { tv_sec: due.as_secs() as _, tv_nsec: due.subsec_nanos() as _ };
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        if timerfd_settime(
            &self.timer,
            TimerfdTimerFlags::ABSTIME,
            &Itimerspec { it_interval: zero, it_value: value },
        )
        .is_ok()
        {
            self.armed = Some(until);
        }
    }
}
