//! The engine, and everything that its plans go to.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, sleep_until};
use tracing::{debug, error, info, warn};

use super::error::Error;
use super::inputs::{Channels, QUEUE};
use super::leader::Leader;
use super::peers::Peers;
use super::query;
use super::source::Started;
use crate::config::{Settings, Warning};
use crate::engine;
use crate::engine::membership::PeerEvent;
use crate::engine::plan::Plan;
use crate::engine::{Engine, Event};
use crate::host::liveness_fence::LivenessFence;
use crate::host::{resident_text, systemd};
use crate::http::metrics::Metrics;
use crate::http::server;
use crate::http::server::Query;
use crate::ipam::Allocations;
use crate::l2::announcer;
use crate::l2::announcer::{Announcement, AnnouncerEvent};
use crate::l2::io::task;
use crate::l2::io::{Desired, L2Counters};
use crate::model::Interfaces;
use crate::model::diagnostic::Diagnostic;
use crate::model::gateways::Gateways;
use crate::model::mac::Mac;
use crate::model::role::Role;
use crate::model::source_update::SourceUpdate;
use crate::model::trigger_time::TriggerTime;
use crate::nft::io::worker::{DataPlane, Origin, Report};
use crate::nft::io::writer::RulesetWriter;
use crate::storage::snapshot;
use crate::storage::snapshot::SnapshotWriter;
use crate::storage::state::{StateDir, StateWriter};

pub(super) struct Node {
    pub engine: Engine,
    /// Start of the engine's clock.
    pub epoch: Instant,
    pub data_plane: DataPlane,
    pub desired: watch::Sender<Desired>,
    /// Whether there are VIPs to announce, or to take over.
    announcing: watch::Sender<bool>,
    pub announcer: std::thread::JoinHandle<()>,
    l2_counters: Arc<L2Counters>,
    pub state: StateWriter<Arc<Allocations>>,
    /// None where manifests are on disk anyway.
    pub snapshot: Option<SnapshotWriter>,
    metrics: Arc<Metrics>,
    announced_ready: bool,
    interfaces_known: bool,
    /// Whether there was work since the pages of the program's text were given back.
    worked: bool,
    pub peers: Peers,
    pub leader: Leader,
}

impl Node {
    pub fn start(
        settings: &Settings,
        ruleset: RulesetWriter,
        state_dir: StateDir,
        allocations: Allocations,
        listener: Option<TcpListener>,
    ) -> Result<(Node, Channels), Error> {
        let metrics = Arc::new(Metrics::new());
        let (reports_in, reports) = mpsc::unbounded_channel();
        let report = move |report| drop(reports_in.send(report));
        let data_plane = DataPlane::spawn(ruleset, settings.dead_man, report)
            .map_err(|e| Error::Io("cannot start a thread", e))?;
        let (desired, desired_out) = watch::channel(Desired::default());
        let (l2_in, l2) = mpsc::channel(QUEUE);
        let l2_counters = Arc::new(L2Counters::default());
        let config = announcer::AnnouncerConfig {
            probe_time: settings.probe,
            announce_interval: settings.announce_interval,
        };
        let fence = Arc::new(LivenessFence::default());
        let peers = Peers::new(settings, fence.clone(), metrics.clone());
        let announcer = task::spawn(desired_out, l2_in, config, l2_counters.clone(), fence)
            .map_err(|e| Error::Io("cannot start a thread", e))?;
        let (queries_in, queries) = mpsc::channel(QUEUE);
        if let Some(listener) = listener {
            tokio::spawn(server::serve(listener, queries_in, metrics.clone()));
        }
        let engine = Engine::new(engine_settings(settings), allocations);
        let snapshot =
            settings.manifests.is_none().then(|| SnapshotWriter::new(&settings.state_dir));
        let failed = |error| error!(%error, "cannot write the state directory: addresses may change at the next start");
        let state = StateWriter::spawn(state_dir, failed)
            .map_err(|e| Error::Io("cannot start a thread", e))?;
        let node = Node {
            engine,
            epoch: Instant::now(),
            data_plane,
            desired,
            announcing: watch::Sender::new(false),
            announcer,
            l2_counters,
            state,
            snapshot,
            metrics,
            announced_ready: false,
            interfaces_known: false,
            worked: true,
            peers,
            leader: Leader::default(),
        };
        Ok((node, Channels { l2, reports, queries }))
    }

    /// For the task that refreshes the gateways' neighbour entries.
    pub fn announcing(&self) -> watch::Receiver<bool> {
        self.announcing.subscribe()
    }

    pub fn start_leader(&mut self, source: &Started, settings: &Settings) {
        self.leader.start(source.connection.as_ref(), settings, &self.metrics);
    }

    pub fn handle(&mut self, event: Event) {
        self.handle_change(event, None);
    }

    /// `last_change`: as in [`Origin`].
    fn handle_change(&mut self, event: Event, last_change: Option<TriggerTime>) {
        let heard = Instant::now();
        let plan = self.engine.handle(event, heard - self.epoch);
        self.apply(plan, Origin { heard, last_change });
    }

    pub fn source_changed(&mut self, update: SourceUpdate, source: &Started, settings: &Settings) {
        // The credentials may be usable only now.
        self.start_leader(source, settings);
        self.source_update(update);
    }

    fn source_update(&mut self, update: SourceUpdate) {
        if update.synced && !self.engine.synced() {
            // Reading the objects is over; the work that takes most room follows.
            resident_text::trim_resident_text();
        }
        if let Some(Err(why)) = &update.health {
            warn!("{why}");
        }
        let last_change = update.last_change;
        self.handle_change(Event::Source(update), last_change);
        // Half of an initial list must not replace the whole one on disk.
        if let Some(snapshot) = self.snapshot.as_mut().filter(|_| self.engine.synced()) {
            snapshot.seen(self.engine.revision());
        }
    }

    /// Applies pools that have changed. Other settings require a restart.
    pub fn reload(
        &mut self,
        settings: &mut Settings,
        read: Result<(Settings, Vec<Warning>), String>,
    ) {
        match read {
            Ok((read, warnings)) => {
                warnings.iter().for_each(|warning| warn!("{warning}"));
                self.reload_pools(settings, read);
            }
            Err(why) => {
                error!("configuration reload failed, keeping the running configuration: {why}")
            }
        }
    }

    fn reload_pools(&mut self, settings: &mut Settings, read: Settings) {
        let before = std::mem::replace(&mut settings.pools, read.pools.clone());
        if *settings != read {
            warn!("a change of settings other than PINNACE_POOLS requires a restart");
        }
        if before == settings.pools {
            info!("configuration reloaded: pools unchanged");
        } else {
            info!("configuration reloaded: pools changed");
            self.handle(Event::Pools(read.pools));
        }
    }

    pub fn leadership_changed(&mut self, events: Vec<Event>) {
        for event in events {
            self.handle(event);
        }
        self.metrics.leader(self.engine.role() == Role::Leader, self.engine.leader());
    }

    pub fn peer_event(&mut self, event: PeerEvent) {
        let stalled =
            matches!(event, PeerEvent::Stalled { .. } | PeerEvent::RemoteDetectionExpired { .. });
        self.handle(Event::Peer(event));
        if stalled {
            self.peers.resume();
        }
    }

    /// Ends when the engine has a timer due; never without timers.
    pub fn engine_timeout(&self) -> impl Future<Output = ()> + use<> {
        let due = self.engine.poll_timeout().map(|due| self.epoch + due);
        async move {
            match due {
                Some(due) => sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        }
    }

    pub fn handle_timeout(&mut self) {
        self.handle(Event::Tick);
    }

    /// Ends when a part of the snapshot is to be written; never without a snapshot to write.
    pub fn snapshot_timeout(&self) -> impl Future<Output = ()> + use<> {
        let wait = self.snapshot.as_ref().and_then(SnapshotWriter::wait);
        async move {
            match wait {
                Some(wait) => sleep(wait).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Writes a part of the snapshot, small enough for the loop.
    pub fn write_snapshot(&mut self) {
        if let Some(snapshot) = &mut self.snapshot {
            snapshot.step(self.engine.index());
        }
    }

    /// Serves from the snapshot, if there is one, when the initial lists do not arrive in time.
    pub async fn serve_from_snapshot(
        &mut self,
        source: &mut Started,
        settings: &Settings,
        sync_timeout: Duration,
    ) {
        if source.synced_within(sync_timeout).await {
            return;
        }
        let directory = settings.state_dir.clone();
        let loaded = tokio::task::spawn_blocking(move || snapshot::load(&directory)).await;
        match loaded.unwrap_or_else(|error| Err(format!("cannot read the snapshot: {error}"))) {
            Ok(Some(snapshot)) => {
                let update = source.bridge(snapshot);
                self.source_update(update);
            }
            Ok(None) => info!("waiting for the initial list: there is no snapshot to serve from"),
            Err(problem) => warn!("{problem}"),
        }
    }

    pub fn l2_event(&mut self, event: AnnouncerEvent) {
        if let AnnouncerEvent::Conflict { mac, .. }
        | AnnouncerEvent::Contested { mac, .. }
        | AnnouncerEvent::ClaimObserved { mac, .. } = &event
        {
            self.peers.on_claim(*mac);
        }
        self.handle(Event::Announcer(event));
    }

    pub fn interfaces_changed(&mut self, interfaces: Interfaces) {
        let interfaces = Arc::new(interfaces);
        // The announcer first: it must know an interface before it is told to use it.
        self.desired.send_modify(|desired| desired.interfaces = interfaces.clone());
        self.peers.interfaces_changed(interfaces.clone());
        self.handle(Event::Interfaces(interfaces));
        if !std::mem::replace(&mut self.interfaces_known, true) {
            // The start is over; the objects are being read.
            resident_text::trim_resident_text();
        }
    }

    pub fn gateways_changed(&self, gateways: Gateways) {
        self.desired.send_modify(|desired| desired.gateways = Arc::new(gateways));
    }

    pub fn tick(&mut self) {
        self.handle(Event::Tick);
        self.metrics.announcer(self.l2_counters.totals());
        self.peers.retry();
        self.report_to_systemd();
        if std::mem::take(&mut self.worked) {
            resident_text::trim_resident_text();
        }
    }

    fn apply(&mut self, plan: Plan, origin: Origin) {
        self.worked |= !plan.rule_set.is_empty() || !plan.status_patches.is_empty() || plan.save;
        if !plan.rule_set.is_empty() {
            self.data_plane.submit(plan.rule_set, origin);
        }
        self.announce(plan.announcements, plan.announce_interval, plan.owner_probes);
        if let Some(sessions) = plan.sessions {
            self.peers.want(sessions);
        }
        if plan.leave {
            self.peers.leave();
        }
        self.leader.publish(plan.status_patches);
        if plan.save {
            self.state.save(self.engine.allocations().clone());
        }
        for diagnostic in plan.diagnostics {
            log(&diagnostic);
            self.leader.tell(diagnostic, &self.engine, self.engine.node());
        }
    }

    fn announce(
        &self,
        announcements: Option<BTreeMap<IpAddr, Announcement>>,
        interval: Option<Option<Duration>>,
        probes: Vec<(IpAddr, Option<Mac>)>,
    ) {
        if announcements.is_none() && interval.is_none() && probes.is_empty() {
            return;
        }
        self.desired.send_modify(|desired| {
            if let Some(announcements) = announcements {
                let some = !announcements.is_empty();
                self.announcing.send_if_modified(|known| std::mem::replace(known, some) != some);
                desired.announcements = Arc::new(announcements);
            }
            if let Some(interval) = interval {
                desired.interval = interval;
            }
            desired.request_probes(probes);
        });
    }

    /// A batch was applied, or rejected by the kernel.
    pub fn ruleset_applied(&mut self, report: Report) {
        self.metrics.rule_set(&report);
        if let Some(error) = &report.error {
            error!(%error, "nftables transaction failed, retrying");
        } else {
            debug!(took = ?report.took, elements = report.elements, "ruleset applied");
        }
        self.handle(Event::RuleSet { error: report.error, generation: report.generation });
        self.report_to_systemd();
    }

    fn report_to_systemd(&mut self) {
        let ready = !self.announced_ready && self.engine.report().serving();
        if !ready && !systemd::is_enabled() {
            return; // Nobody reads the count of thousands of Services.
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

    pub fn answer(&self, query: Query) {
        query::answer(&self.engine, Some(&self.peers), self.epoch, query);
    }
}

/// The settings that the engine decides by.
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

fn log(diagnostic: &Diagnostic) {
    let service = diagnostic.service.as_ref().map(tracing::field::display);
    if diagnostic.warning {
        warn!(service, reason = diagnostic.reason, "{}", diagnostic.message);
    } else {
        info!(service, reason = diagnostic.reason, "{}", diagnostic.message);
    }
}
