//! Runs the node: opens what can fail first, starts the tasks, wires the channels, and orders the
//! shutdown.
//!
//! ```text
//!  thread manifests, ─┐
//!  or thread kube    ─┤                     ┌─► thread rule-set: owns the nftables tables ─► reports ─┐
//!  task   links ─────┼─► events ─► engine ──┼─► thread l2: owns ARP and NDP ────────────► events ─────┼─► engine
//!  task   http ──────┘   (this task makes   └─► state file, snapshot, log, metrics                    │
//!                         every decision)  ◄──────────────────────────────────────────────────────────┘
//! ```
//!
//! Channels towards the engine are bounded and wait: no event is lost. What leaves it is merged,
//! latest wins, so nobody who is slow holds it up.

mod leader;
mod peers;
mod shutdown;
mod source;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use leader::Leader;
pub(crate) use leader::lease_namespace;
use peers::Peers;
use source::SourceEvents;
pub use source::{NoSource, Source};
pub(crate) use source::{Opened, Started};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, error, info, warn};

use crate::config::{OnExit, Settings, Warning};
use crate::engine;
use crate::engine::membership::PeerEvent;
use crate::engine::plan::Plan;
use crate::engine::{Engine, Event};
use crate::host::links::LinksError;
use crate::host::liveness_fence::LivenessFence;
use crate::host::trigger_time::TriggerTime;
use crate::host::{gateways, links, resident_text, systemd};
use crate::http::metrics::Metrics;
use crate::http::server;
use crate::http::server::Query;
use crate::ipam::Allocations;
use crate::l2::announcer;
use crate::l2::announcer::Gateways;
use crate::l2::io::task;
use crate::l2::io::task::Desired;
use crate::model::Interfaces;
use crate::model::diagnostic::Diagnostic;
use crate::model::role::Role;
use crate::nft::io::worker::{DataPlane, Origin, Report};
use crate::nft::io::writer;
use crate::storage::snapshot;
use crate::storage::snapshot::SnapshotWriter;
use crate::storage::state::{StateDir, StateError, StateWriter};

/// What may wait in one channel for the engine. A full channel makes its sender wait.
const QUEUE: usize = 64;
/// How long the API server may take to tell everything before the snapshot is used in the meantime.
const SYNC_PATIENCE: Duration = Duration::from_millis(500);
/// How often expired conflicts are looked for.
const TICK: Duration = Duration::from_secs(30);

/// Why the daemon cannot start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing to serve from.
    #[error(transparent)]
    NoSource(#[from] NoSource),
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The kernel does not let us speak to nf_tables.
    #[error("cannot use nf_tables: {0}; run `pinnace check`")]
    RuleSet(#[from] writer::Error),
    /// The interfaces cannot be watched.
    #[error(transparent)]
    Links(#[from] LinksError),
    /// PINNACE_LISTEN cannot be bound.
    #[error(transparent)]
    Listen(#[from] server::ListenError),
    /// A thread is gone without which nothing can be served.
    #[error("the thread {0} ended; the rules stay, start Pinnace again")]
    Ended(&'static str),
    /// A thread, signal handler or watch could not be set up.
    #[error("{0}: {1}")]
    Io(&'static str, #[source] io::Error),
}

/// Serves until SIGTERM or SIGINT. `read_again` is called at SIGHUP; its error says everything that
/// is wrong with the settings.
pub async fn run(
    mut settings: Settings,
    read_again: impl Fn() -> Result<(Settings, Vec<Warning>), String>,
) -> Result<(), Error> {
    let source = Source::choose(&settings)?.open(&settings).await?;
    let (state_dir, allocations) = open_state(&settings)?;
    let rules = writer::RulesetWriter::with_timeout(settings.dead_man)?;
    let listener = match settings.listen {
        Some(address) => Some(server::bind(address).await?),
        None => None,
    };
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|e| Error::Io("cannot handle SIGTERM", e))?;
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(|e| Error::Io("cannot handle SIGINT", e))?;
    let mut hangup =
        signal(SignalKind::hangup()).map_err(|e| Error::Io("cannot handle SIGHUP", e))?;

    let mut source = Started::new(source, &settings, QUEUE)
        .map_err(|e| Error::Io("cannot use the source of Services", e))?;
    let (mut node, mut inputs) = Daemon::start(&settings, rules, state_dir, allocations, listener)?;
    let (interfaces_in, mut interfaces) = watch::channel(Interfaces::new());
    let (gateways_in, mut gateways) = watch::channel(Gateways::new());
    tokio::spawn(gateways::run(interfaces.clone(), node.announcing.subscribe(), gateways_in));
    let mut links = tokio::spawn(links::run(interfaces_in));
    node.bridge(&mut source, &settings).await;
    node.writer.start(source.connection.as_ref(), &settings, &node.metrics);
    let mut tick = interval(TICK);
    let mut watchdog = interval(systemd::watchdog_interval().unwrap_or(Duration::from_secs(3600)));
    watchdog.set_missed_tick_behavior(MissedTickBehavior::Delay);

    let failure = loop {
        let snapshot = node.keeper.as_ref().and_then(SnapshotWriter::wait);
        let deadline = node.deadline();
        tokio::select! {
            _ = terminate.recv() => break None,
            _ = interrupt.recv() => break None,
            _ = hangup.recv() => node.settings_changed(&mut settings, read_again()),
            events = source.next() => match events {
                Ok(told) => {
                    // The credentials may be usable only now.
                    node.writer.start(source.connection.as_ref(), &settings, &node.metrics);
                    node.source_changed(told);
                }
                Err(error) => break Some(Error::Io("the source of Services ended", error)),
            },
            () = tokio::time::sleep(snapshot.unwrap_or_default()), if snapshot.is_some() => node.keep(),
            changed = interfaces.changed() => if changed.is_ok() {
                let snapshot = Arc::new(interfaces.borrow_and_update().clone());
                node.interfaces_changed(snapshot);
            },
            Ok(()) = gateways.changed() => node.gateways_changed(gateways.borrow_and_update().clone()),
            heard = inputs.heard.recv() => match heard {
                Some(heard) => node.heard(heard),
                None => break Some(Error::Ended("that answers ARP and NDP")),
            },
            report = inputs.reports.recv() => match report {
                Some(report) => node.reported(report),
                None => break Some(Error::Ended("that owns the rule set")),
            },
            Some(query) = inputs.queries.recv() => node.answer(query),
            _ = tick.tick() => node.tick(),
            () = deadline => node.handle(Event::Tick),
            event = node.peers.next() => node.peer(event),
            events = node.writer.next() => node.tenure_changed(events),
            _ = watchdog.tick() => systemd::watchdog(),
            ended = &mut links => break Some(ended.map_or_else(|e| Error::Io("the watch of interfaces ended", io::Error::other(e)), |r| match r {
                Err(error) => Error::Links(error),
                Ok(()) => Error::Io("the watch of interfaces ended", io::ErrorKind::UnexpectedEof.into()),
            })),
        }
    };
    node.hand_over(&mut inputs).await;
    // Whoever starts us again finds connections going on. Only a stop that was asked for takes the
    // rules away.
    node.stop(if failure.is_some() { OnExit::Keep } else { settings.on_exit }, inputs.queries)
        .await;
    failure.map_or(Ok(()), Err)
}

fn open_state(settings: &Settings) -> Result<(StateDir, Allocations), Error> {
    let mut state_dir = StateDir::open(&settings.state_dir)?;
    let loaded = state_dir.load::<Allocations>();
    if let Some(problem) = loaded.problem {
        warn!("{problem}");
    }
    Ok((state_dir, loaded.value.unwrap_or_default()))
}

/// The ends of the channels that bring something to the engine.
struct Inputs {
    heard: mpsc::Receiver<announcer::AnnouncerEvent>,
    reports: mpsc::UnboundedReceiver<Report>,
    queries: mpsc::Receiver<Query>,
}

/// The engine and everything its plans go to.
struct Daemon {
    engine: Engine,
    /// The engine's clock starts here.
    epoch: Instant,
    data_plane: DataPlane,
    desired: watch::Sender<Desired>,
    /// Whether there are addresses to announce, or to take over.
    announcing: watch::Sender<bool>,
    announcer: std::thread::JoinHandle<()>,
    counters: Arc<task::L2Counters>,
    saver: StateWriter<Arc<Allocations>>,
    /// Of the snapshot; None where manifests are on disk anyway.
    keeper: Option<SnapshotWriter>,
    metrics: Arc<Metrics>,
    announced_ready: bool,
    /// The interfaces are not known yet.
    starting: bool,
    /// There was something to do since the program's pages were given back.
    worked: bool,
    peers: Peers,
    writer: Leader,
}

impl Daemon {
    fn start(
        settings: &Settings,
        rules: writer::RulesetWriter,
        state_dir: StateDir,
        allocations: Allocations,
        listener: Option<TcpListener>,
    ) -> Result<(Daemon, Inputs), Error> {
        let metrics = Arc::new(Metrics::new());
        // Unbounded, but at most one report is made per batch, and batches wait for the kernel.
        let (reports_in, reports) = mpsc::unbounded_channel();
        let report = move |report| drop(reports_in.send(report));
        let data_plane = DataPlane::spawn(rules, settings.dead_man, report)
            .map_err(|e| Error::Io("cannot start a thread", e))?;
        let (desired, desired_out) = watch::channel(Desired::default());
        let (heard_in, heard) = mpsc::channel(QUEUE);
        let counters = Arc::new(task::L2Counters::default());
        let config = announcer::Config {
            probe_time: settings.probe,
            announce_interval: settings.announce_interval,
        };
        let vigil = Arc::new(LivenessFence::default());
        let peers = Peers::new(settings, vigil.clone(), metrics.clone());
        let announcer = task::spawn(desired_out, heard_in, config, counters.clone(), vigil)
            .map_err(|e| Error::Io("cannot start a thread", e))?;
        let (queries_in, queries) = mpsc::channel(QUEUE);
        if let Some(listener) = listener {
            tokio::spawn(server::serve(listener, queries_in, metrics.clone()));
        }
        let engine = Engine::new(engine_settings(settings), allocations);
        let keeper = settings.manifests.is_none().then(|| SnapshotWriter::new(&settings.state_dir));
        let failed = |error| error!(%error, "cannot write the state directory: addresses may change at the next start");
        let saver = StateWriter::spawn(state_dir, failed)
            .map_err(|e| Error::Io("cannot start a thread", e))?;
        let node = Daemon {
            engine,
            epoch: Instant::now(),
            data_plane,
            desired,
            announcing: watch::Sender::new(false),
            announcer,
            counters,
            saver,
            keeper,
            metrics,
            announced_ready: false,
            starting: true,
            worked: true,
            peers,
            writer: Leader::default(),
        };
        Ok((node, Inputs { heard, reports, queries }))
    }

    fn handle(&mut self, event: Event) {
        self.handle_change(event, None);
    }

    /// `last_change`: see [`Origin`].
    fn handle_change(&mut self, event: Event, last_change: Option<TriggerTime>) {
        let heard = Instant::now();
        let plan = self.engine.handle(event, heard - self.epoch);
        self.apply(plan, Origin { heard, last_change });
    }

    fn source_changed(&mut self, told: SourceEvents) {
        for event in told.events {
            if matches!(event, Event::Source { synced: true, .. }) && !self.engine.synced() {
                resident_text::trim_resident_text(); // of reading, before the work that takes most room
            }
            if let Event::SourceHealth(Err(why)) = &event {
                warn!("{why}");
            }
            self.handle_change(event, told.last_change);
            // Half of a first listing must not replace the whole one on disk.
            if let Some(keeper) = self.keeper.as_mut().filter(|_| self.engine.synced()) {
                keeper.seen(self.engine.revision());
            }
        }
    }

    /// Pools may change while everything goes on. All else is made from the settings once, at the
    /// start.
    fn settings_changed(
        &mut self,
        settings: &mut Settings,
        read: Result<(Settings, Vec<Warning>), String>,
    ) {
        let (read, warnings) = match read {
            Ok(read) => read,
            Err(why) => {
                return error!(
                    "the settings stay as they were, for those that were read again at SIGHUP cannot be used: {why}"
                );
            }
        };
        warnings.iter().for_each(|warning| warn!("{warning}"));
        let pools = std::mem::replace(&mut settings.pools, read.pools.clone());
        if *settings != read {
            warn!(
                "settings other than pools have changed as well: they count from the next start on"
            );
        }
        if pools == settings.pools {
            return info!("SIGHUP: the pools are as they were");
        }
        info!("SIGHUP: the pools have changed");
        self.handle(Event::Pools(read.pools));
    }

    fn tenure_changed(&mut self, events: Vec<Event>) {
        events.into_iter().for_each(|event| self.handle(event));
        self.metrics.writer(self.engine.role() == Role::Leader, self.engine.leader());
    }

    fn peer(&mut self, event: PeerEvent) {
        let stalled =
            matches!(event, PeerEvent::Stalled { .. } | PeerEvent::RemoteDetectionExpired { .. });
        self.handle(Event::Peer(event));
        if stalled {
            self.peers.resume();
        }
    }

    /// When the engine has something to do; never, if it does not wait for a certain time.
    fn deadline(&self) -> impl Future<Output = ()> + use<> {
        let due =
            self.engine.poll_timeout().map(|due| tokio::time::Instant::from_std(self.epoch + due));
        async move {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Without the API server, what it said last is served until it says something else.
    async fn bridge(&mut self, source: &mut Started, settings: &Settings) {
        if source.synced_within(SYNC_PATIENCE).await {
            return;
        }
        let directory = settings.state_dir.clone();
        let loaded = tokio::task::spawn_blocking(move || snapshot::load(&directory)).await;
        match loaded.unwrap_or_else(|error| Err(format!("cannot read the snapshot: {error}"))) {
            Ok(Some(snapshot)) => {
                let health = source.bridge(snapshot.taken);
                self.handle(Event::Source {
                    changes: snapshot.changes,
                    problems: Vec::new(),
                    synced: true,
                });
                self.source_changed(vec![health].into());
            }
            Ok(None) => info!(
                "the API server has not told everything yet, and there is no snapshot from before: waiting"
            ),
            Err(problem) => warn!("{problem}"),
        }
    }

    /// Writes a little of the snapshot.
    fn keep(&mut self) {
        if let Some(keeper) = &mut self.keeper {
            keeper.step(self.engine.index());
        }
    }

    fn heard(&mut self, event: announcer::AnnouncerEvent) {
        if let announcer::AnnouncerEvent::Conflict { mac, .. }
        | announcer::AnnouncerEvent::Contested { mac, .. }
        | announcer::AnnouncerEvent::Heard { mac, .. } = &event
        {
            self.peers.heard(*mac);
        }
        self.handle(Event::Announcer(event));
    }

    fn interfaces_changed(&mut self, interfaces: Arc<Interfaces>) {
        // The announcer first: it must know an interface before it is told to use it.
        self.desired.send_modify(|desired| desired.interfaces = interfaces.clone());
        self.peers.interfaces_changed(interfaces.clone());
        self.handle(Event::Interfaces(interfaces));
        if std::mem::take(&mut self.starting) {
            resident_text::trim_resident_text(); // of starting, while the objects are read
        }
    }

    fn gateways_changed(&self, gateways: Gateways) {
        self.desired.send_modify(|desired| desired.gateways = Arc::new(gateways));
    }

    fn tick(&mut self) {
        self.handle(Event::Tick);
        self.metrics.announcer(self.counters.totals());
        self.peers.retry();
        self.tell_systemd();
        if std::mem::take(&mut self.worked) {
            resident_text::trim_resident_text();
        }
    }

    fn apply(&mut self, plan: Plan, origin: Origin) {
        self.worked |= !plan.rule_set.is_empty() || !plan.status_patches.is_empty() || plan.save;
        if !plan.rule_set.is_empty() {
            self.data_plane.submit(plan.rule_set, origin);
        }
        if plan.announcements.is_some()
            || plan.announce_interval.is_some()
            || !plan.owner_probes.is_empty()
        {
            self.desired.send_modify(|desired| {
                if let Some(announcements) = plan.announcements {
                    let some = !announcements.is_empty();
                    self.announcing
                        .send_if_modified(|known| std::mem::replace(known, some) != some);
                    desired.announcements = Arc::new(announcements);
                }
                if let Some(interval) = plan.announce_interval {
                    desired.interval = interval;
                }
                desired.ask(plan.owner_probes);
            });
        }
        if let Some(sessions) = plan.sessions {
            self.peers.want(sessions);
        }
        if plan.leave {
            self.peers.leave();
        }
        self.writer.publish(plan.status_patches);
        if plan.save {
            self.saver.save(self.engine.allocations().clone());
        }
        // A start brings thousands: each is given back as it is written.
        for notice in plan.diagnostics {
            log(&notice);
            self.writer.tell(notice, &self.engine, self.engine.node());
        }
    }

    fn reported(&mut self, report: Report) {
        self.metrics.rule_set(&report);
        match &report.error {
            None => {
                debug!(took = ?report.took, elements = report.elements, "rules are in the kernel")
            }
            Some(error) => error!(%error, "the kernel refused a change of the rules; trying again"),
        }
        self.handle(Event::RuleSet { error: report.error, generation: report.generation });
        self.tell_systemd();
    }

    fn tell_systemd(&mut self) {
        let ready = !self.announced_ready && self.engine.report().serving();
        if !ready && !systemd::listens() {
            return; // counting thousands of Services after every change would be for nobody
        }
        let summary = self.engine.report().summary();
        let line = systemd::serving(summary.serving, summary.addresses);
        if ready {
            self.announced_ready = true;
            info!(after = ?self.epoch.elapsed(), "ready, {line}");
            systemd::ready(&line);
            resident_text::trim_resident_text();
        } else {
            systemd::status(&line);
        }
    }

    fn answer(&self, query: Query) {
        answer(&self.engine, Some(&self.peers), self.epoch, query);
    }
}

/// A client that went away does not want its answer any more. `peers`: as long as they are watched.
fn answer(engine: &Engine, peers: Option<&Peers>, epoch: Instant, query: Query) {
    match query {
        Query::State(reply) => {
            let mut state = engine.report().state();
            state.peers = engine.report().peers(epoch.elapsed());
            state.version = env!("CARGO_PKG_VERSION").to_string();
            state.pid = std::process::id();
            state.uptime_seconds = epoch.elapsed().as_secs();
            if let Some(peers) = peers {
                peers.describe(&mut state);
            }
            drop(reply.send(state));
        }
        Query::Summary(reply) => drop(reply.send(engine.report().summary())),
        Query::Conditions(reply) => drop(reply.send(engine.report().conditions())),
        Query::Health(reply) => drop(reply.send(engine.report().healthy())),
        Query::Service(key, reply) => drop(reply.send(engine.report().service_health(&key))),
    }
}

/// What the engine is told of the settings.
pub(crate) fn engine_settings(settings: &Settings) -> engine::EngineSettings {
    engine::EngineSettings {
        node: settings.node_name.clone(),
        pools: settings.pools.clone(),
        avoid_buggy_ips: settings.avoid_buggy_ips,
        mode: settings.mode,
        class: settings.class.clone(),
        claim_default: settings.claim_default,
        interfaces: settings.interfaces.clone(),
        probe: !settings.probe.is_zero(),
        role: if settings.manifests.is_some() { Role::Alone } else { Role::Follower },
    }
}

fn log(notice: &Diagnostic) {
    let service = notice.service.as_ref().map(tracing::field::display);
    match notice.warning {
        true => warn!(service, reason = notice.reason, "{}", notice.message),
        false => info!(service, reason = notice.reason, "{}", notice.message),
    }
}
