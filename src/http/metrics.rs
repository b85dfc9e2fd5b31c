//! Metrics in the OpenMetrics format. Names carry their units; what can be read from the kernel is
//! read when somebody asks.

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
use prometheus_client::registry::{Registry, Unit};

use crate::bfd::{Discard, io};
use crate::l2::io::L2Totals;
use crate::model::state::Summary;
use crate::nft::io::worker::Report;

/// Of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What becomes of a received ARP or NDP packet.
const RECEIVED: [&str; 6] = ["answered", "malformed", "own", "ignored", "conflict", "contested"];
/// Why a BFD packet could not be sent.
const SEND_ERRORS: [&str; 3] = ["queue_full", "unreachable", "refused"];

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Phase {
    phase: &'static str,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
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

/// What BFD counts by itself, and how much of it has been added here.
#[derive(Debug, Default)]
struct Bfd {
    counters: Option<Arc<io::BfdCounters>>,
    before: io::BfdTotals,
}

/// All of them. Every method may be called from any thread.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    services: Family<Phase, Gauge>,
    addresses: Family<Phase, Gauge>,
    problems: Gauge,
    latency: Histogram,
    last_change: Histogram,
    apply: Histogram,
    errors: Counter,
    repairs: Counter,
    elements: Gauge,
    conntrack: Counter,
    received: Family<OutcomeLabel, Counter>,
    sent: Counter,
    announced_frames: Counter,
    send_errors: Counter,
    /// What the announcer said last: it counts by itself, and only differences are added.
    totals: Mutex<L2Totals>,
    writer: Gauge,
    lease_holder: Family<NodeLabel, Gauge>,
    events_dropped: Counter,
    bfd: Mutex<Bfd>,
    bfd_sent: Counter,
    bfd_received: Counter,
    bfd_discarded: Family<ReasonLabel, Counter>,
    bfd_send_errors: Family<ReasonLabel, Counter>,
    bfd_receive_errors: Counter,
    bfd_changes: Family<StateLabel, Counter>,
    bfd_late: Gauge<f64, AtomicU64>,
    memory: Gauge,
    cpu: Counter<f64, AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Metrics {
        let mut registry = Registry::default();
        let r = registry.sub_registry_with_prefix("pinnace");
        let seconds = || Histogram::new(exponential_buckets(0.0001, 2.0, 20));
        let (latency, last_change, apply) = (seconds(), seconds(), seconds());
        r.register(
            "build",
            "The version that runs",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        r.register_with_unit(
            "network_programming_duration",
            "From hearing of a change to its rules in the kernel",
            Unit::Seconds,
            latency.clone(),
        );
        let help = "From the change of an endpoint, as its EndpointSlice dates it, to its rules in the kernel";
        r.register_with_unit("last_change_duration", help, Unit::Seconds, last_change.clone());
        r.register_with_unit(
            "ruleset_apply_duration",
            "Time to put one batch of rules into the kernel",
            Unit::Seconds,
            apply.clone(),
        );
        let start: Gauge<f64, std::sync::atomic::AtomicU64> = Gauge::default();
        start.set(SystemTime::UNIX_EPOCH.elapsed().map_or(0.0, |since| since.as_secs_f64()));
        let mut metrics = Metrics {
            services: Family::default(),
            addresses: Family::default(),
            problems: Gauge::default(),
            latency,
            last_change,
            apply,
            errors: Counter::default(),
            repairs: Counter::default(),
            elements: Gauge::default(),
            conntrack: Counter::default(),
            received: Family::default(),
            sent: Counter::default(),
            announced_frames: Counter::default(),
            send_errors: Counter::default(),
            totals: Mutex::default(),
            writer: Gauge::default(),
            lease_holder: Family::default(),
            events_dropped: Counter::default(),
            bfd: Mutex::default(),
            bfd_sent: Counter::default(),
            bfd_received: Counter::default(),
            bfd_discarded: Family::default(),
            bfd_send_errors: Family::default(),
            bfd_receive_errors: Counter::default(),
            bfd_changes: Family::default(),
            bfd_late: Gauge::default(),
            memory: Gauge::default(),
            cpu: Counter::default(),
            registry: Registry::default(),
        };
        r.register(
            "services",
            "Services of type LoadBalancer that are ours",
            metrics.services.clone(),
        );
        r.register("addresses", "Virtual addresses that Services hold", metrics.addresses.clone());
        r.register("source_problems", "Things wrong with the manifests", metrics.problems.clone());
        r.register("ruleset_errors", "Batches that the kernel refused", metrics.errors.clone());
        r.register(
            "ruleset_repairs",
            "Times that another program had changed our tables",
            metrics.repairs.clone(),
        );
        r.register("ruleset_elements", "Set elements in the kernel", metrics.elements.clone());
        let help = "Flows that were ended because their UDP endpoint was removed, or because they began while the rules were away";
        r.register("conntrack_entries_deleted", help, metrics.conntrack.clone());
        r.register("packets_received", "ARP and NDP packets received", metrics.received.clone());
        r.register("packets_sent", "ARP and NDP packets sent", metrics.sent.clone());
        r.register(
            "announcements_sent",
            "Gratuitous ARP and unsolicited NA sent",
            metrics.announced_frames.clone(),
        );
        r.register(
            "packet_send_errors",
            "ARP and NDP packets that could not be sent",
            metrics.send_errors.clone(),
        );
        r.register(
            "writer",
            "1 while this node holds the Lease, gives addresses and writes statuses, else 0",
            metrics.writer.clone(),
        );
        r.register(
            "lease_holder",
            "1 for the node that holds the Lease, as far as this one knows",
            metrics.lease_holder.clone(),
        );
        r.register(
            "events_dropped",
            "Events for the API server that were never sent; they are in the log",
            metrics.events_dropped.clone(),
        );
        r.register("bfd_packets_sent", "BFD packets sent to other nodes", metrics.bfd_sent.clone());
        r.register(
            "bfd_packets_received",
            "BFD packets received, whether taken or not",
            metrics.bfd_received.clone(),
        );
        r.register(
            "bfd_packets_discarded",
            "BFD packets received and not taken",
            metrics.bfd_discarded.clone(),
        );
        r.register(
            "bfd_send_errors",
            "BFD packets that could not be sent",
            metrics.bfd_send_errors.clone(),
        );
        r.register(
            "bfd_receive_errors",
            "Errors when BFD packets were read",
            metrics.bfd_receive_errors.clone(),
        );
        r.register(
            "bfd_session_changes",
            "Changes of BFD sessions to a state",
            metrics.bfd_changes.clone(),
        );
        let late = metrics.bfd_late.clone();
        r.register_with_unit(
            "bfd_latest_wake",
            "How late the thread that speaks BFD woke up at worst",
            Unit::Seconds,
            late,
        );
        // What has not happened yet is there all the same, so that the first time is seen as a
        // change.
        ["serving", "pending", "refused"]
            .iter()
            .for_each(|phase| drop(metrics.services.get_or_create(&Phase { phase })));
        ["announced", "held"]
            .iter()
            .for_each(|phase| drop(metrics.addresses.get_or_create(&Phase { phase })));
        RECEIVED
            .iter()
            .for_each(|result| drop(metrics.received.get_or_create(&OutcomeLabel { result })));
        Discard::LABELS
            .iter()
            .for_each(|reason| drop(metrics.bfd_discarded.get_or_create(&ReasonLabel { reason })));
        SEND_ERRORS.iter().for_each(|reason| {
            drop(metrics.bfd_send_errors.get_or_create(&ReasonLabel { reason }))
        });
        ["up", "down"]
            .iter()
            .for_each(|state| drop(metrics.bfd_changes.get_or_create(&StateLabel { state })));
        registry.register(
            "process_resident_memory_bytes",
            "Resident memory",
            metrics.memory.clone(),
        );
        registry.register("process_cpu_seconds", "User and system time", metrics.cpu.clone());
        registry.register(
            "process_start_time_seconds",
            "Start of the process since the epoch",
            start,
        );
        metrics.registry = registry;
        metrics
    }

    /// What became of a batch of rules.
    pub fn rule_set(&self, report: &Report) {
        self.apply.observe(report.took.as_secs_f64());
        match &report.error {
            Some(_) => drop(self.errors.inc()),
            None => {
                report
                    .latency
                    .iter()
                    .for_each(|latency| self.latency.observe(latency.as_secs_f64()));
                report
                    .since_last_change
                    .iter()
                    .for_each(|since| self.last_change.observe(since.as_secs_f64()));
            }
        }
        self.repairs.inc_by(u64::from(report.repaired));
        self.elements.set(signed(report.elements));
        self.conntrack.inc_by(report.conntrack_deleted as u64);
    }

    /// What the engine counts now.
    pub fn engine(&self, summary: &Summary) {
        let phases = [
            ("serving", summary.serving),
            ("pending", summary.pending),
            ("refused", summary.failed),
        ];
        for (phase, count) in phases {
            self.services.get_or_create(&Phase { phase }).set(signed(count));
        }
        let phases = [("announced", summary.announced), ("held", summary.addresses)];
        for (phase, count) in phases {
            self.addresses.get_or_create(&Phase { phase }).set(signed(count));
        }
        self.problems.set(signed(summary.problems));
    }

    /// What the announcer has counted since it started.
    pub fn announcer(&self, now: L2Totals) {
        let mut before = self.totals.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
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
            self.received.get_or_create(&OutcomeLabel { result }).inc_by(count);
        }
        self.sent.inc_by(now.sent - before.sent);
        self.announced_frames.inc_by(new.announcements_sent - old.announcements_sent);
        let errors = |t: &L2Totals| t.send_queue_full + t.send_link_down + t.send_failed;
        self.send_errors.inc_by(errors(&now) - errors(&before));
        *before = now;
    }

    /// Who holds the Lease, and whether that is this node.
    pub fn writer(&self, here: bool, holder: Option<&str>) {
        self.writer.set(i64::from(here));
        self.lease_holder.clear();
        if let Some(node) = holder {
            self.lease_holder.get_or_create(&NodeLabel { node: node.to_owned() }).set(1);
        }
    }

    /// To be counted up by those who send Events.
    pub fn events_dropped(&self) -> Counter {
        self.events_dropped.clone()
    }

    /// BFD is spoken from now on; its totals are read when somebody asks.
    pub fn bfd(&self, counters: Arc<io::BfdCounters>) {
        *self.bfd.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
            Bfd { counters: Some(counters), ..Bfd::default() };
    }

    /// A session came up or went down.
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
        self.bfd_late.set(now.max_scheduling_delay.as_secs_f64());
    }

    /// The exposition.
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
        metrics.writer(false, Some("node-1"));
        metrics.writer(true, Some("node-2"));
        metrics.events_dropped().inc_by(3);
        metrics.bfd_session(true);
        let text = metrics.encode();
        assert!(!text.contains("node-1"), "one holder");
        for line in [
            "pinnace_writer 1",
            "pinnace_lease_holder{node=\"node-2\"} 1",
            "pinnace_events_dropped_total 3",
            "pinnace_bfd_session_changes_total{state=\"up\"} 1",
            "pinnace_bfd_packets_discarded_total{reason=\"digest\"} 0",
            "# UNIT pinnace_bfd_latest_wake_seconds seconds",
            "pinnace_network_programming_duration_seconds_count 1",
            "pinnace_last_change_duration_seconds_sum 0.5",
            "pinnace_ruleset_apply_duration_seconds_sum 0.001",
            "pinnace_ruleset_repairs_total 1",
            "pinnace_ruleset_elements 7",
            "pinnace_conntrack_entries_deleted_total 2",
            "pinnace_services{phase=\"serving\"} 3",
            "pinnace_services{phase=\"refused\"} 1",
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
