//! Connects [`Sessions`](crate::bfd::Sessions) to the network: UDP sockets, a clock, and a thread
//! that waits for nothing else in the process.
//!
//! ```text
//! Handle ──mpsc commands, eventfd──▶ thread "bfd" ──datagrams──▶ 3784 (and 4784)
//!        ◀─callback events─────────       ▲       ◀─datagrams───
//!                                      timerfd
//! ```
//!
//! The thread does not log, takes no lock and writes no file: those could wait for a disk or for a
//! thread of lower priority. It reports by events instead, and runs under SCHED_FIFO where that is
//! permitted.

mod command;
mod counters;
mod error;
mod filter;
mod options;
mod port_owner;
pub mod realtime;
pub mod secret;
mod socket;
mod task;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use command::Command;
pub use counters::{BfdCounters, BfdTotals};
pub use error::StartError;
pub use options::BfdOptions;
pub use realtime::Realtime;
use rustix::event::{EventfdFlags, eventfd};
use socket::Sockets;
use task::Task;

use super::{Event, Peer, PeerKey, SessionStatus};
use crate::common::random;

/// SCHED_FIFO priority (1 to 99): ahead of ordinary threads, behind what the host itself depends
/// on.
const PRIORITY: i32 = 10;
/// Maximum time to wait for the sessions' status. The thread replies at once if it runs at all.
const STATUS_TIMEOUT: Duration = Duration::from_millis(200);

/// The running thread. Dropping it ends the thread without AdminDown, as a crash does; see
/// [`Handle::stop`].
#[derive(Debug)]
pub struct Handle {
    commands: Option<mpsc::Sender<Command>>,
    wake: Arc<OwnedFd>,
    thread: Option<thread::JoinHandle<()>>,
    counters: Arc<BfdCounters>,
    realtime: Realtime,
}

/// Opens the sockets in the network namespace of the caller and starts the thread, which calls
/// `events`: it must neither block nor take long.
pub fn spawn(
    options: BfdOptions,
    events: impl FnMut(Event) + Send + 'static,
) -> Result<Handle, StartError> {
    let sockets = Sockets::open(options.multihop)?;
    let wake = Arc::new(
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| StartError::Thread(error.into()))?,
    );
    let counters = Arc::new(BfdCounters::default());
    let (commands, inbox) = mpsc::channel();
    let task = Task::new(
        options,
        random::seed(),
        sockets,
        inbox,
        Arc::clone(&wake),
        Arc::clone(&counters),
        Box::new(events),
    )
    .map_err(StartError::Thread)?;
    let (report, reported) = mpsc::channel();
    let thread = thread::Builder::new()
        .name("bfd".to_owned())
        .stack_size(128 * 1024)
        .spawn(move || {
            let _ = report.send(realtime::enter(PRIORITY));
            task.run();
        })
        .map_err(StartError::Thread)?;
    let realtime =
        reported.recv().unwrap_or_else(|_| Realtime::Refused("the thread ended".to_owned()));
    Ok(Handle { commands: Some(commands), wake, thread: Some(thread), counters, realtime })
}

impl Handle {
    /// Replaces the set of peers. The last of several calls counts.
    pub fn set_peers(&self, peers: BTreeMap<PeerKey, Peer>) {
        self.command(Command::Peers(peers));
    }

    /// All sessions as they are now; empty when the thread has ended or does not reply.
    pub fn status(&self) -> Vec<SessionStatus> {
        let (reply, answer) = mpsc::channel();
        self.command(Command::Status(reply));
        answer.recv_timeout(STATUS_TIMEOUT).unwrap_or_default()
    }

    /// Totals since the start, to be read at any time.
    pub fn counters(&self) -> Arc<BfdCounters> {
        Arc::clone(&self.counters)
    }

    /// The scheduling class of the thread.
    pub fn realtime(&self) -> &Realtime {
        &self.realtime
    }

    /// A planned stop: sends AdminDown to all peers and returns when they have reacted, or after
    /// `timeout`.
    pub fn stop(mut self, timeout: Duration) {
        self.command(Command::Stop(timeout));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    fn command(&self, command: Command) {
        // A thread that has ended needs no commands.
        let _ = self.commands.as_ref().map(|commands| commands.send(command));
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.commands = None;
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
