//! Runs the node: opens what can fail first, starts the tasks, wires the channels, and orders the
//! shutdown.
//!
//! Every thread and every channel between threads and tasks stands here. The main thread runs one
//! tokio runtime with the select loop ([`serve`]), which makes every decision, and with the tasks.
//!
//! ```text
//! from                 channel                                   to
//! ───────────────────  ────────────────────────────────────────  ───────────────────
//! signals              SIGTERM, SIGINT, SIGHUP                   loop
//! thread kube          mpsc 64    ApiUpdate                      loop
//! thread kube          watch      initial lists complete         loop
//! thread manifests     mpsc 64    ManifestUpdate                 loop
//! task credentials     oneshot    Connection, once usable        loop
//! task links           watch      Interfaces                     loop, task gateways
//! task gateways        watch      Gateways                       loop
//! loop                 watch      whether VIPs are announced     task gateways
//! loop                 watch      Desired, merged                thread l2
//! thread l2            mpsc 64    AnnouncerEvent                 loop
//! loop                 mutex      RulesetChanges, merged         thread rule-set
//! thread rule-set      mpsc ∞     Report, one per batch          loop
//! loop                 mpsc ∞     peers and commands, eventfd    thread bfd
//! thread bfd           mpsc ∞     session events                 loop
//! thread bfd           atomics    LivenessFence                  thread l2
//! loop                 watch      addresses of peers             task neighbours
//! task neighbours      mpsc ∞     link-layer addresses           loop
//! tasks http           mpsc 64    Query, answered by a oneshot   loop
//! task lease           mpsc 4     Leadership                     loop
//! task lease           watch      WriteDeadline                  task status
//! loop                 mpsc ∞     StatusPatches                  task status
//! task status          mpsc ∞     FailedPatch                    loop
//! task status          mpsc 1     missing permission             task lease
//! loop                 mpsc       QueuedEvent, dropped when full task events
//! loop                 oneshot    release of the Lease           task lease
//! loop                 mutex      Allocations, the latest        thread state
//! loop                 mpsc       pieces of a snapshot           thread snapshot
//! loop                 mpsc       notifications                  thread systemd
//! everyone             ring       log lines, dropped when full   thread log
//! ```
//!
//! The threads kube, snapshot, state, systemd and bfd run only where there is something for them:
//! kube or manifests, by the source; bfd with peers; systemd as a service of it. The tasks lease,
//! status and events run where the source is the API server.
//!
//! Bounded channels towards the loop make their senders wait: no event is lost. What leaves the
//! loop is merged, latest wins, or dropped, so that no slow receiver holds it up. The unbounded
//! ones are bounded by what causes their messages: a batch, a BFD packet, a request.

mod error;
mod inputs;
mod leader;
mod node;
mod peers;
mod query;
mod shutdown;
mod source;

use std::io;
use std::time::Duration;

pub use error::Error;
use inputs::{Inputs, Signals};
pub(crate) use leader::lease_namespace;
use node::Node;
pub(crate) use node::engine_settings;
pub use source::{NoSource, Source};
pub(crate) use source::{Opened, Started};
use tokio::sync::watch;
use tokio::task::JoinError;
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use crate::config::{OnExit, Settings, Warning};
use crate::host::links::LinksError;
use crate::host::{gateways, links, systemd};
use crate::http::server;
use crate::ipam::Allocations;
use crate::model::Interfaces;
use crate::model::gateways::Gateways;
use crate::model::source_update::SourceUpdate;
use crate::nft::io::writer::RulesetWriter;
use crate::storage::state::StateDir;

/// How long the API server may take to send the initial lists before the snapshot is used in the
/// meantime.
const SYNC_TIMEOUT: Duration = Duration::from_millis(500);
/// Interval of housekeeping: expired conflicts, counters, retries.
const TICK: Duration = Duration::from_secs(30);

/// Serves until SIGTERM or SIGINT. `read_again` is called at SIGHUP; its error says everything that
/// is wrong with the settings.
pub async fn run(
    mut settings: Settings,
    read_again: impl Fn() -> Result<(Settings, Vec<Warning>), String>,
) -> Result<(), Error> {
    let source = Source::choose(&settings)?.open(&settings).await?;
    let (state_dir, allocations) = open_state(&settings)?;
    let ruleset = RulesetWriter::with_timeout(settings.dead_man)?;
    let listener = match settings.listen {
        Some(address) => Some(server::bind(address).await?),
        None => None,
    };
    let signals = Signals::new()?;
    let mut source = Started::new(source, &settings, inputs::QUEUE)
        .map_err(|e| Error::Io("cannot use the source of Services", e))?;

    let (mut node, channels) = Node::start(&settings, ruleset, state_dir, allocations, listener)?;
    let (interfaces_in, interfaces) = watch::channel(Interfaces::new());
    let (gateways_in, gateways) = watch::channel(Gateways::new());
    tokio::spawn(gateways::run(interfaces.clone(), node.announcing(), gateways_in));
    let links = tokio::spawn(links::run(interfaces_in));
    node.serve_from_snapshot(&mut source, &settings, SYNC_TIMEOUT).await;
    node.start_leader(&source, &settings);

    let mut inputs = Inputs { channels, signals, source, interfaces, gateways, links };
    let outcome = serve(&mut node, &mut inputs, &mut settings, read_again).await;
    shutdown::hand_over(&mut node, &mut inputs.channels).await;
    // Only a stop that was asked for removes the rules. After a failure connections go on until the
    // next start.
    let on_exit = if outcome.is_ok() { settings.on_exit } else { OnExit::Keep };
    shutdown::stop(node, on_exit, inputs.channels.queries).await;
    outcome
}

/// The select loop: Ok after SIGTERM or SIGINT.
async fn serve(
    node: &mut Node,
    inputs: &mut Inputs,
    settings: &mut Settings,
    read_again: impl Fn() -> Result<(Settings, Vec<Warning>), String>,
) -> Result<(), Error> {
    let Inputs { channels, signals, source, interfaces, gateways, links } = inputs;
    let mut tick = interval(TICK);
    let mut watchdog = interval(systemd::watchdog_interval().unwrap_or(Duration::from_secs(3600)));
    watchdog.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let engine_timeout = node.engine_timeout();
        let snapshot_timeout = node.snapshot_timeout();
        tokio::select! {
            _ = signals.terminate.recv() => return Ok(()),
            _ = signals.interrupt.recv() => return Ok(()),
            _ = signals.hangup.recv() => node.reload(settings, read_again()),
            update = source.next() => node.source_changed(source_update(update)?, source, settings),
            Ok(()) = interfaces.changed() => node.interfaces_changed(interfaces.borrow_and_update().clone()),
            Ok(()) = gateways.changed() => node.gateways_changed(gateways.borrow_and_update().clone()),
            event = channels.l2.recv() => node.l2_event(event.ok_or(Error::Ended("that answers ARP and NDP"))?),
            report = channels.reports.recv() => node.ruleset_applied(report.ok_or(Error::Ended("that owns the ruleset"))?),
            Some(query) = channels.queries.recv() => node.answer(query),
            event = node.peers.next() => node.peer_event(event),
            events = node.leader.next() => node.leadership_changed(events),
            () = engine_timeout => node.handle_timeout(),
            () = snapshot_timeout => node.write_snapshot(),
            _ = tick.tick() => node.tick(),
            _ = watchdog.tick() => systemd::watchdog(),
            ended = &mut *links => return Err(links_ended(ended)),
        }
    }
}

fn open_state(settings: &Settings) -> Result<(StateDir, Allocations), Error> {
    let mut state_dir = StateDir::open(&settings.state_dir)?;
    let loaded = state_dir.load::<Allocations>();
    if let Some(problem) = loaded.problem {
        warn!("{problem}");
    }
    Ok((state_dir, loaded.value.unwrap_or_default()))
}

fn source_update(update: io::Result<SourceUpdate>) -> Result<SourceUpdate, Error> {
    update.map_err(|error| Error::Io("the source of Services ended", error))
}

fn links_ended(ended: Result<Result<(), LinksError>, JoinError>) -> Error {
    const WHAT: &str = "the watch of interfaces ended";
    match ended {
        Ok(Err(error)) => Error::Links(error),
        Ok(Ok(())) => Error::Io(WHAT, io::ErrorKind::UnexpectedEof.into()),
        Err(error) => Error::Io(WHAT, io::Error::other(error)),
    }
}
