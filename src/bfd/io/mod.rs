//! Carries [`Sessions`](crate::bfd::Sessions) to the wire: UDP sockets, a clock, and a thread that
//! waits for nothing else in the process.
//!
//! ```text
//! Handle ──mpsc commands, eventfd──▶ thread "bfd" ──datagrams──▶ 3784 (and 4784)
//!        ◀─callback events─────────       ▲       ◀─datagrams───
//!                                      timerfd
//! ```
//!
//! The thread does not log, takes no lock and writes no file: whoever does may have to wait for a
//! disk or for a thread of lower priority. What there is to say it says as an event. It runs under
//! SCHED_FIFO where that is permitted.

mod counters;
mod filter;
mod port_owner;
pub mod realtime;
pub mod secret;
mod socket;
mod task;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use std::{io, thread};

pub use counters::{BfdCounters, BfdTotals};
pub use realtime::Realtime;
use rustix::event::{EventfdFlags, eventfd};
use socket::Sockets;
use task::Task;
use thiserror::Error;

use super::{Config, Event, Peer, PeerKey, SessionStatus};
use crate::common::random;
use crate::host::liveness_fence::LivenessFence;

/// Low among the real-time priorities (1 to 99): ahead of everything ordinary, behind what the host
/// itself depends on.
const PRIORITY: i32 = 10;
/// How long an answer of the thread is waited for. It has nothing else to wait for, so it answers
/// at once if it runs at all.
const STOP_TIMEOUT: Duration = Duration::from_millis(200);

/// What the thread is started with.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// For all sessions.
    pub config: Config,
    /// Listen for peers behind routers as well (RFC 5883).
    pub multihop: bool,
    /// Tells others whether this thread does its work in time.
    pub vigil: Arc<LivenessFence>,
}

/// Why BFD cannot be spoken here.
#[derive(Debug, Error)]
pub enum StartError {
    /// Another program speaks BFD on this host.
    #[error(
        "UDP port {port} is taken by {holder}, which speaks BFD as well: stop it here, or let it have the port and do without BFD between nodes"
    )]
    PortTaken {
        /// 3784 or 4784.
        port: u16,
        /// A name to look for.
        holder: String,
    },
    /// A socket cannot be opened or set up.
    #[error("no socket for BFD ({what}): {source}")]
    Socket {
        /// Which step failed.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The thread, or what wakes it, cannot be made.
    #[error("no thread for BFD: {0}")]
    Thread(#[source] io::Error),
}

enum Command {
    Peers(BTreeMap<PeerKey, Peer>),
    Status(mpsc::Sender<Vec<SessionStatus>>),
    Stop(Duration),
}

/// The running thread. When it is dropped the thread ends without a farewell, as after a crash; see
/// [`Handle::stop`].
#[derive(Debug)]
pub struct Handle {
    commands: Option<mpsc::Sender<Command>>,
    wake: Arc<OwnedFd>,
    thread: Option<thread::JoinHandle<()>>,
    counters: Arc<BfdCounters>,
    realtime: Realtime,
}

/// Opens the sockets in the network namespace of the caller and starts the thread. `events` is
/// called on it: it must neither block nor take long.
pub fn spawn(
    options: Options,
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
    let (say, said) = mpsc::channel();
    let thread = thread::Builder::new()
        .name("bfd".to_owned())
        .stack_size(128 * 1024)
        .spawn(move || {
            let _ = say.send(realtime::enter(PRIORITY));
            task.run();
        })
        .map_err(StartError::Thread)?;
    let realtime = said.recv().unwrap_or_else(|_| Realtime::Refused("the thread ended".to_owned()));
    Ok(Handle { commands: Some(commands), wake, thread: Some(thread), counters, realtime })
}

impl Handle {
    /// Makes the set of peers this one; of several calls the last one counts.
    pub fn set_peers(&self, peers: BTreeMap<PeerKey, Peer>) {
        self.command(Command::Peers(peers));
    }

    /// All sessions as they are now; empty when the thread has ended, or does not answer.
    pub fn status(&self) -> Vec<SessionStatus> {
        let (reply, answer) = mpsc::channel();
        self.command(Command::Status(reply));
        answer.recv_timeout(STOP_TIMEOUT).unwrap_or_default()
    }

    /// Totals since the start, to be read at any time.
    pub fn counters(&self) -> Arc<BfdCounters> {
        Arc::clone(&self.counters)
    }

    /// Whether the thread is ahead of ordinary ones.
    pub fn realtime(&self) -> &Realtime {
        &self.realtime
    }

    /// A planned stop: tells all peers (AdminDown), so that none takes it for a failure, and
    /// returns when they have heard it or after this long.
    pub fn stop(mut self, patience: Duration) {
        self.command(Command::Stop(patience));
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
