//! Metrics in the OpenMetrics format. Names carry their units. What the kernel counts is read at each
//! scrape.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry, Unit};

use crate::bfd::{Discard, io};
use crate::l2::io::L2Totals;
use crate::model::state::Summary;
use crate::nft::io::worker::Report;

/// Content-Type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What a received ARP or NDP packet led to.
const RECEIVED: [&str; 6] = ["answered", "malformed", "own", "ignored", "conflict", "contested"];
/// Why a BFD packet could not be sent.
const SEND_ERRORS: [&str; 3] = ["queue_full", "unreachable", "refused"];

type SecondsGauge = Gauge<f64, AtomicU64>;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabel {
    phase: &'static str,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NodeLabel {
    node: String,
}

/// BFD counts by itself; `before` is what has been added to the metrics so far.
#[derive(Debug, Default)]
struct BfdReader {
    counters: Option<Arc<io::BfdCounters>>,
    before: io::BfdTotals,
}

/// All metrics. Every method may be called from any thread.
#[derive(Debug)]
pub struct Metrics {
    network_programming: Histogram,
    sync: Histogram,
    apply: Histogram,
    services: Family<PhaseLabel, Gauge>,
    addresses: Family<PhaseLabel, Gauge>,
    invalid_objects: Gauge,
    errors: Counter,
    repairs: Counter,
    elements: Gauge,
    conntrack_deleted: Counter,
    received: Family<ResultLabel, Counter>,
    sent: Counter,
    announcements: Counter,
    send_errors: Counter,
    leader: Gauge,
    lease_holder: Family<NodeLabel, Gauge>,
    events_dropped: Counter,
    bfd_sent: Counter,
    bfd_received: Counter,
    bfd_discarded: Family<ReasonLabel, Counter>,
    bfd_send_errors: Family<ReasonLabel, Counter>,
    bfd_receive_errors: Counter,
    bfd_changes: Family<StateLabel, Counter>,
    bfd_scheduling_delay: SecondsGauge,
    memory: Gauge,
    cpu: Counter<f64, AtomicU64>,
    /// The announcer counts by itself; this is what has been added to the metrics so far.
    l2_before: Mutex<L2Totals>,
    bfd: Mutex<BfdReader>,
    registry: Registry,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

impl Metrics {
    /// All at zero. Fields are registered in the order in which they stand here.
    pub fn new() -> Metrics {
        let mut registry = Registry::default();
        let r = registry.sub_registry_with_prefix("pinnace");
        r.register(
            "build",
            "The version that runs",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        let metrics = Metrics {
            network_programming: histogram(
                r,
                "network_programming_duration",
                "From the change of an endpoint, by its EndpointSlice's last-change-trigger-time, to its rules in the kernel",
            ),
            sync: histogram(
                r,
                "sync_duration",
                "From hearing of a change to its rules in the kernel",
            ),
            apply: histogram(
                r,
                "ruleset_apply_duration",
                "Time to put one batch of rules into the kernel",
            ),
            services: metric(r, "services", "Managed Services of type LoadBalancer"),
            addresses: metric(r, "addresses", "Virtual addresses that Services hold"),
            invalid_objects: metric(r, "invalid_objects", "Invalid objects in the source"),
            errors: metric(r, "ruleset_errors", "Batches that the kernel rejected"),
            repairs: metric(
                r,
                "ruleset_repairs",
                "Resyncs after ruleset drift: another program had changed the tables",
            ),
            elements: metric(r, "ruleset_elements", "Set elements in the kernel"),
            conntrack_deleted: metric(
                r,
                "conntrack_entries_deleted",
                "Flows that were ended because their UDP endpoint was removed, or because they began while the rules were away",
            ),
            received: metric(r, "packets_received", "ARP and NDP packets received"),
            sent: metric(r, "packets_sent", "ARP and NDP packets sent"),
            announcements: metric(
                r,
                "announcements_sent",
                "Gratuitous ARP and unsolicited NA sent",
            ),
            send_errors: metric(
                r,
                "packet_send_errors",
                "ARP and NDP packets that could not be sent",
            ),
            leader: metric(
                r,
                "leader",
                "1 while this node holds the Lease, allocates addresses and writes status, else 0",
            ),
            lease_holder: metric(
                r,
                "lease_holder",
                "1 for the node that holds the Lease, as far as this one knows",
            ),
            events_dropped: metric(
                r,
                "events_dropped",
                "Events for the API server that were never sent; they are in the log",
            ),
            bfd_sent: metric(r, "bfd_packets_sent", "BFD packets sent to other nodes"),
            bfd_received: metric(
                r,
                "bfd_packets_received",
                "BFD packets received, discarded ones included",
            ),
            bfd_discarded: metric(r, "bfd_packets_discarded", "BFD packets received and discarded"),
            bfd_send_errors: metric(r, "bfd_send_errors", "BFD packets that could not be sent"),
            bfd_receive_errors: metric(
                r,
                "bfd_receive_errors",
                "Errors when BFD packets were read",
            ),
            bfd_changes: metric(r, "bfd_session_changes", "Transitions of BFD sessions to a state"),
            bfd_scheduling_delay: seconds(
                r,
                "bfd_max_scheduling_delay",
                "Largest delay so far between a timer of the BFD thread and its wake-up",
            ),
            memory: metric(&mut registry, "process_resident_memory_bytes", "Resident memory"),
            cpu: metric(&mut registry, "process_cpu_seconds", "User and system time"),
            l2_before: Mutex::default(),
            bfd: Mutex::default(),
            registry,
        };
        metrics.with_start_time().at_zero()
    }

    fn with_start_time(mut self) -> Metrics {
        let start: SecondsGauge = metric(
            &mut self.registry,
            "process_start_time_seconds",
            "Start of the process since the epoch",
        );
        start.set(SystemTime::UNIX_EPOCH.elapsed().map_or(0.0, |since| since.as_secs_f64()));
        self
    }

    /// What has not happened yet is there all the same, so that the first time is seen as a change.
    fn at_zero(self) -> Metrics {
        for phase in ["serving", "pending", "failed"] {
            drop(self.services.get_or_create(&PhaseLabel { phase }));
        }
        for phase in ["announced", "held"] {
            drop(self.addresses.get_or_create(&PhaseLabel { phase }));
        }
        for result in RECEIVED {
            drop(self.received.get_or_create(&ResultLabel { result }));
        }
        for reason in Discard::LABELS {
            drop(self.bfd_discarded.get_or_create(&ReasonLabel { reason }));
        }
        for reason in SEND_ERRORS {
            drop(self.bfd_send_errors.get_or_create(&ReasonLabel { reason }));
        }
        for state in ["up", "down"] {
            drop(self.bfd_changes.get_or_create(&StateLabel { state }));
        }
        self
    }

    /// Counts a batch of rules.
    pub fn rule_set(&self, report: &Report) {
        self.apply.observe(report.took.as_secs_f64());
        match &report.error {
            Some(_) => drop(self.errors.inc()),
            None => {
                if let Some(latency) = report.latency {
                    self.sync.observe(latency.as_secs_f64());
                }
                if let Some(since) = report.since_last_change {
                    self.network_programming.observe(since.as_secs_f64());
                }
            }
        }
        self.repairs.inc_by(u64::from(report.repaired));
        self.elements.set(signed(report.elements));
        self.conntrack_deleted.inc_by(report.conntrack_deleted as u64);
    }

    /// Sets the gauges that the engine counts.
    pub fn engine(&self, summary: &Summary) {
        let phases = [
            ("serving", summary.serving),
            ("pending", summary.pending),
            ("failed", summary.failed),
        ];
        for (phase, count) in phases {
            self.services.get_or_create(&PhaseLabel { phase }).set(signed(count));
        }
        let phases = [("announced", summary.announced), ("held", summary.addresses)];
        for (phase, count) in phases {
            self.addresses.get_or_create(&PhaseLabel { phase }).set(signed(count));
        }
        self.invalid_objects.set(signed(summary.problems));
    }

    /// Adds what the announcer has counted since it started.
    pub fn announcer(&self, now: L2Totals) {
        let mut before = self.l2_before.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (old, new) = (before.announcer, now.announcer);
        let counts = [
            new.answered - old.answered,
            new.malformed - old.malformed,
            new.own - old.own,
            new.ignored - old.ignored,
            new.conflicts - old.conflicts,
            new.contested - old.contested,
        ];
        for (result, count) in RECEIVED.into_iter().zip(counts) {
            self.received.get_or_create(&ResultLabel { result }).inc_by(count);
        }
        self.sent.inc_by(now.sent - before.sent);
        self.announcements.inc_by(new.announcements_sent - old.announcements_sent);
        let errors = |t: &L2Totals| t.send_queue_full + t.send_link_down + t.send_failed;
        self.send_errors.inc_by(errors(&now) - errors(&before));
        *before = now;
    }

    /// Whether this node is the leader, and who holds the Lease as far as it knows.
    pub fn leader(&self, here: bool, holder: Option<&str>) {
        self.leader.set(i64::from(here));
        self.lease_holder.clear();
        if let Some(node) = holder {
            self.lease_holder.get_or_create(&NodeLabel { node: node.to_owned() }).set(1);
        }
    }

    /// The counter that the queue of Events increments.
    pub fn events_dropped(&self) -> Counter {
        self.events_dropped.clone()
    }

    /// The totals of BFD are read whenever the metrics are.
    pub fn bfd(&self, counters: Arc<io::BfdCounters>) {
        *self.bfd.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
            BfdReader { counters: Some(counters), ..BfdReader::default() };
    }

    /// Counts a session that came up or went down.
    pub fn bfd_session(&self, up: bool) {
        self.bfd_changes.get_or_create(&StateLabel { state: if up { "up" } else { "down" } }).inc();
    }

    fn read_bfd(&self) {
        let mut bfd = self.bfd.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(now) = bfd.counters.as_ref().map(|counters| counters.totals()) else { return };
        let before = std::mem::replace(&mut bfd.before, now);
        self.bfd_sent.inc_by(now.sent - before.sent);
        self.bfd_received.inc_by(now.received - before.received);
        for (reason, (new, old)) in
            Discard::LABELS.into_iter().zip(now.discarded.into_iter().zip(before.discarded))
        {
            self.bfd_discarded.get_or_create(&ReasonLabel { reason }).inc_by(new - old);
        }
        let errors = |t: &io::BfdTotals| [t.send_queue_full, t.send_unreachable, t.send_failed];
        for (reason, (new, old)) in
            SEND_ERRORS.into_iter().zip(errors(&now).into_iter().zip(errors(&before)))
        {
            self.bfd_send_errors.get_or_create(&ReasonLabel { reason }).inc_by(new - old);
        }
        self.bfd_receive_errors.inc_by(now.receive_failed - before.receive_failed);
        self.bfd_scheduling_delay.set(now.max_scheduling_delay.as_secs_f64());
    }

    /// The exposition in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        self.read_bfd();
        self.memory.set(resident().unwrap_or(0));
        let used: f64 =
            rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime).as_seconds();
        self.cpu.inner().store(used.to_bits(), Ordering::Relaxed);
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// Registers a metric.
fn metric<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

/// Registers a gauge of seconds; the unit is added to the name.
fn seconds(registry: &mut Registry, name: &str, help: &str) -> SecondsGauge {
    let gauge = SecondsGauge::default();
    registry.register_with_unit(name, help, Unit::Seconds, gauge.clone());
    gauge
}

/// Registers a histogram of seconds, from 0.1 ms to 52 s; the unit is added to the name.
fn histogram(registry: &mut Registry, name: &str, help: &str) -> Histogram {
    let histogram = Histogram::new(exponential_buckets(0.0001, 2.0, 20));
    registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
    histogram
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Resident bytes, from the second field of /proc/self/statm (proc(5)), which counts pages.
fn resident() -> Option<i64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: i64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * i64::try_from(rustix::param::page_size()).ok()?)
}

trait AsSeconds {
    fn as_seconds(&self) -> f64;
}

impl AsSeconds for rustix::time::Timespec {
    fn as_seconds(&self) -> f64 {
        self.tv_sec as f64 + self.tv_nsec as f64 / 1e9
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_counted_is_shown_with_its_unit() {
        let metrics = Metrics::new();
        metrics.rule_set(&Report {
            error: None,
            took: Duration::from_millis(1),
            latency: Some(Duration::from_millis(3)),
            since_last_change: Some(Duration::from_millis(500)),
            elements: 7,
            generation: 1,
            repaired: true,
            conntrack_deleted: 2,
        });
        metrics.engine(&Summary { serving: 3, failed: 1, ..Summary::default() });
        let mut totals = L2Totals { sent: 5, ..L2Totals::default() };
        totals.announcer.malformed = 4;
        metrics.announcer(totals);
        metrics.announcer(totals);
        metrics.leader(false, Some("node-1"));
        metrics.leader(true, Some("node-2"));
        metrics.events_dropped().inc_by(3);
        metrics.bfd_session(true);
        let text = metrics.encode();
        assert!(!text.contains("node-1"), "one holder");
        for line in [
            "pinnace_leader 1",
            "pinnace_lease_holder{node=\"node-2\"} 1",
            "pinnace_events_dropped_total 3",
            "pinnace_bfd_session_changes_total{state=\"up\"} 1",
            "pinnace_bfd_packets_discarded_total{reason=\"digest\"} 0",
            "# UNIT pinnace_bfd_max_scheduling_delay_seconds seconds",
            "pinnace_sync_duration_seconds_sum 0.003",
            "pinnace_network_programming_duration_seconds_sum 0.5",
            "pinnace_ruleset_apply_duration_seconds_sum 0.001",
            "pinnace_ruleset_repairs_total 1",
            "pinnace_ruleset_elements 7",
            "pinnace_conntrack_entries_deleted_total 2",
            "pinnace_services{phase=\"serving\"} 3",
            "pinnace_services{phase=\"failed\"} 1",
            "pinnace_packets_received_total{result=\"malformed\"} 4",
            "pinnace_packets_sent_total 5",
            "# UNIT pinnace_network_programming_duration_seconds seconds",
        ] {
            assert!(text.contains(line), "{line} is missing:\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        let resident =
            text.lines().find_map(|l| l.strip_prefix("process_resident_memory_bytes ")).unwrap();
        assert!(resident.parse::<i64>().unwrap() > 100_000);
    }
}
