//! `pinnace status`: asks the running daemon, and shows people what is served where first, then, in
//! sentences, what is not and why.

use std::fmt::Arguments;

use crate::common::printable::{joined, printable};
use crate::config::Settings;
use crate::http::server;
use crate::ipam::Allocations;
use crate::model::Mode;
use crate::model::state::{
    AddressPhase, AddressStatus, InterfaceStatus, NodeState, PeerStatus, Phase, PoolStatus,
    PortStatus, ServiceStatus,
};
use crate::storage::state;

/// Maximum number of items of a list that are shown; the rest is counted.
const SHOWN: usize = 4;

/// Asks the running daemon for its state.
pub async fn query(settings: &Settings) -> Result<NodeState, String> {
    let address =
        settings.listen.ok_or("PINNACE_LISTEN is off, so the running pinnace cannot be asked")?;
    let body = server::fetch(address, "/state")
        .await
        .map_err(|error| not_running(settings, error.to_string()))?;
    serde_json::from_slice(&body).map_err(|error| {
        format!("{address} did not answer as this version of pinnace does: {error}")
    })
}

/// Adds the addresses that the daemon has left in its state directory.
fn not_running(settings: &Settings, error: String) -> String {
    let saved = state::read::<Allocations>(&settings.state_dir).value.unwrap_or_default();
    let lines = saved.iter().map(|(key, allocation)| {
        let addresses = allocation.addresses.iter().map(ToString::to_string);
        let nodes = allocation
            .ports
            .iter()
            .flat_map(|held| held.nodes.keys())
            .map(|node| format!("ports of node {node}"));
        format!("\n  {key}: {}", joined(addresses.chain(nodes)))
    });
    let remembered: String = lines.collect();
    if remembered.is_empty() {
        return error;
    }
    format!("{error}\naddresses remembered in {}:{remembered}", settings.state_dir.display())
}

/// The state as a page for people.
pub fn human(state: &NodeState) -> String {
    let mut page = Page::default();
    let unmet: Vec<_> = state.ready.iter().filter(|condition| !condition.status).collect();
    let ready = if unmet.is_empty() { "ready" } else { "not ready" };
    page.line(format_args!(
        "node {}, pinnace {}, up {}, {ready}",
        state.node,
        state.version,
        duration(state.uptime_seconds)
    ));
    for condition in unmet {
        page.line(format_args!("  {}: {}", condition.name, condition.message));
    }
    for warning in &state.warnings {
        page.line(format_args!("  {}: {}", warning.code, warning.message));
    }
    if let Some(leader) = &state.leader {
        let node = leader.node.as_deref().unwrap_or("none yet");
        let here = if leader.here { " (this node)" } else { "" };
        page.line(format_args!("leader: {node}{here}"));
    }
    page.blank();
    if state.services.is_empty() {
        page.line(format_args!("No Service of type LoadBalancer."));
    } else {
        let head = ["SERVICE", "MODE", "ADDRESSES", "PORTS", "OWNER", "ENDPOINTS", "STATE"];
        page.table(&head, state.services.iter().map(service_row));
    }
    explanations(state, &mut page);
    if !state.addresses.is_empty() {
        page.blank();
        page.table(
            &["ADDRESS", "STATE", "OWNER", "INTERFACES", "SERVICES"],
            state.addresses.iter().map(address_row),
        );
    }
    if !state.peers.is_empty() {
        page.blank();
        page.table(
            &["PEER", "ADDRESSES", "STATE", "SINCE", "DETECTION TIME"],
            state.peers.iter().map(peer_row),
        );
    }
    if !state.pools.is_empty() {
        page.blank();
        let row = |pool: &PoolStatus| {
            vec![pool.name.clone(), some(&pool.ranges), format!("{} of {}", pool.used, pool.size)]
        };
        page.table(&["POOL", "RANGES", "USED"], state.pools.iter().map(row));
    }
    interfaces(state, &mut page);
    problems(state, &mut page);
    page.0
}

/// The page so far. Texts come from whoever may write manifests: whatever is in them, a line begins
/// and ends only here.
#[derive(Default)]
struct Page(String);

impl Page {
    fn line(&mut self, text: Arguments) {
        self.0.push_str(&printable(&text.to_string()));
        self.0.push('\n');
    }

    fn blank(&mut self) {
        self.0.push('\n');
    }

    fn table(&mut self, head: &[&str], rows: impl Iterator<Item = Vec<String>>) {
        let mut lines = vec![head.iter().map(ToString::to_string).collect::<Vec<_>>()];
        // Escaped before they are measured, or the columns would not stand below each other.
        lines.extend(rows.map(|row| row.iter().map(|cell| printable(cell).into_owned()).collect()));
        let width = |column: usize| {
            lines
                .iter()
                .filter_map(|line| line.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..head.len()).map(width).collect();
        for line in &lines {
            let cells: Vec<String> =
                line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            self.line(format_args!("{}", cells.join("  ").trim_end()));
        }
    }
}

fn service_row(service: &ServiceStatus) -> Vec<String> {
    let mode = match service.mode {
        Some(Mode::Vip) => "vip",
        Some(Mode::Node) => "node",
        None => "-",
    };
    let port = |port: &PortStatus| format!("{}/{}", port.port, port.protocol);
    let endpoints = service.ports.iter().map(|port| port.endpoints).max().unwrap_or(0);
    let local = service.ports.iter().map(|port| port.local).max().unwrap_or(0);
    let owner = match (service.mode, &service.owner) {
        (Some(Mode::Node), _) => "all nodes".to_string(),
        (_, owner) => owner.clone().unwrap_or_else(|| "-".into()),
    };
    vec![
        service.key.to_string(),
        mode.to_string(),
        some(&service.addresses.iter().map(ToString::to_string).collect::<Vec<_>>()),
        some(&service.ports.iter().map(port).collect::<Vec<_>>()),
        owner,
        format!("{endpoints} ({local} local)"),
        phase(service.phase).to_string(),
    ]
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Serving => "serving",
        Phase::Pending => "pending",
        Phase::Failed => "failed",
        Phase::Unmanaged => "unmanaged",
    }
}

fn address_row(address: &AddressStatus) -> Vec<String> {
    let state = match &address.phase {
        AddressPhase::Probing => "probing",
        AddressPhase::Announced => "announced",
        AddressPhase::Contested { .. } => "contested",
        AddressPhase::Standby => "standby",
        AddressPhase::NotAnnounced { .. } => "not announced",
    };
    let holders: Vec<String> = address.services.iter().map(ToString::to_string).collect();
    let owner = address.owner.clone().unwrap_or_else(|| "-".into());
    vec![
        address.address.to_string(),
        state.to_string(),
        owner,
        some(&address.announced_on),
        some(&holders),
    ]
}

fn peer_row(peer: &PeerStatus) -> Vec<String> {
    let addresses: Vec<String> = peer.addresses.iter().map(ToString::to_string).collect();
    let since = peer.seconds.map_or_else(|| "-".into(), duration);
    let detection_time = peer
        .detection_milliseconds
        .map_or_else(|| "-".into(), |milliseconds| format!("{milliseconds} ms"));
    vec![peer.node.clone(), some(&addresses), peer.state.clone(), since, detection_time]
}

/// A sentence for everything that is not as somebody asked.
fn explanations(state: &NodeState, page: &mut Page) {
    for service in state.services.iter().filter(|service| !service.reasons.is_empty()) {
        page.blank();
        let phase = match service.phase {
            Phase::Failed => "has failed",
            Phase::Serving => "is serving",
            Phase::Pending => "is pending",
            Phase::Unmanaged => "is unmanaged",
        };
        page.line(format_args!("{} {phase}:", service.key));
        for reason in &service.reasons {
            page.line(format_args!("  {}", reason.message));
        }
    }
    for address in &state.addresses {
        if let AddressPhase::Contested { mac } = &address.phase {
            page.blank();
            page.line(format_args!(
                "address conflict: {mac} answers for {} too, and clients reach either of the two; stop it there",
                address.address
            ));
        }
    }
}

fn interfaces(state: &NodeState, page: &mut Page) {
    let row = |interface: &InterfaceStatus| {
        let role = match (&interface.reason, interface.up) {
            (None, true) => "uplink".to_string(),
            (None, false) => "uplink, without a link".to_string(),
            (Some(reason), _) => reason.clone(),
        };
        vec![
            interface.name.clone(),
            some(&interface.addresses.iter().map(ToString::to_string).collect::<Vec<_>>()),
            role,
        ]
    };
    if state.interfaces.is_empty() {
        return;
    }
    page.blank();
    // There may be hundreds of pods: interfaces without an address are left out.
    let shown = state
        .interfaces
        .iter()
        .filter(|interface| interface.uplink || !interface.addresses.is_empty());
    page.table(&["INTERFACE", "ADDRESSES", "ROLE"], shown.map(row));
}

fn problems(state: &NodeState, page: &mut Page) {
    let (notes, problems): (Vec<_>, Vec<_>) =
        state.problems.iter().partition(|problem| problem.note);
    for (title, list) in [("Problems with the objects", problems), ("Notes on the objects", notes)]
    {
        if list.is_empty() {
            continue;
        }
        page.blank();
        page.line(format_args!("{title}:"));
        for problem in list {
            let object =
                problem.object.as_ref().map(|object| format!(" {object}:")).unwrap_or_default();
            page.line(format_args!("  {}:{object} {}", problem.source, problem.reason));
        }
    }
}

/// The first [`SHOWN`] items, and how many more.
fn some(items: &[String]) -> String {
    match items.len() {
        0 => "-".into(),
        n if n <= SHOWN => items.join(", "),
        n => format!("{}, and {} more", items[..SHOWN].join(", "), n - SHOWN),
    }
}

fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{}s", seconds % 60),
        (0, _, _) => format!("{hours}h{minutes}m"),
        _ => format!("{days}d{hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::state::{Condition, Reason, SourceProblem};
    use crate::model::{ObjectKey, Protocol, TrafficPolicy};

    fn service(name: &str, phase: Phase, addresses: &[&str]) -> ServiceStatus {
        ServiceStatus {
            key: ObjectKey::new("default", name),
            mode: Some(Mode::Vip),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            pool: None,
            ports: vec![PortStatus {
                name: "".into(),
                protocol: Protocol::Tcp,
                port: 80,
                endpoints: 3,
                local: 1,
            }],
            policy: TrafficPolicy::Cluster,
            client_affinity: false,
            phase,
            reasons: Vec::new(),
            owner: Some("node-1".into()),
        }
    }

    #[test]
    fn a_person_sees_what_is_served_and_why_the_rest_is_not() {
        let mut failed = service("api", Phase::Failed, &[]);
        failed.reasons.push(Reason::new(
            "PoolExhausted",
            "no free address in pool lan (2 addresses); enlarge it, or delete a Service",
        ));
        let state = NodeState {
            node: "node-1".into(),
            version: "0.1.0".into(),
            uptime_seconds: 3_700,
            ready: vec![Condition::when("RulesApplied", false, "not written yet")],
            services: vec![service("web", Phase::Serving, &["10.88.0.200", "fd88::200"]), failed],
            problems: vec![SourceProblem {
                source: "web.yaml:12".into(),
                object: Some("Service default/x".into()),
                note: false,
                reason: "bad".into(),
            }],
            ..NodeState::default()
        };
        let expected = "\
node node-1, pinnace 0.1.0, up 1h1m, not ready
  RulesApplied: not written yet

SERVICE      MODE  ADDRESSES               PORTS   OWNER   ENDPOINTS    STATE
default/web  vip   10.88.0.200, fd88::200  80/TCP  node-1  3 (1 local)  serving
default/api  vip   -                       80/TCP  node-1  3 (1 local)  failed

default/api has failed:
  no free address in pool lan (2 addresses); enlarge it, or delete a Service

Problems with the objects:
  web.yaml:12: Service default/x: bad
";
        assert_eq!(human(&state), expected);
    }

    #[test]
    fn what_a_manifest_says_can_neither_forge_a_line_nor_command_the_terminal() {
        let mut evil = service("we\x1b[2Jb", Phase::Failed, &[]);
        evil.reasons.push(Reason::new(
            "PoolExhausted",
            "no \x1b]0;title\x07pool\r\ndefault/api  is \u{202e}gnivres",
        ));
        let problem = SourceProblem {
            source: "a\nb.yaml:1".into(),
            object: None,
            note: false,
            reason: "\u{9b}31mred\x08".into(),
        };
        let state = NodeState {
            services: vec![evil, service("api", Phase::Serving, &[])],
            problems: vec![problem],
            ..NodeState::default()
        };
        let page = human(&state);
        assert!(page.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'), "{page:?}");
        assert!(
            page.contains("  no \\u{1b}]0;title\\u{7}pool\\r\\ndefault/api  is \\u{202e}gnivres\n"),
            "{page}"
        );
        assert!(page.contains("  a\\nb.yaml:1: \\u{9b}31mred\\u{8}\n"), "{page}");
        let ports: Vec<Option<usize>> = page
            .lines()
            .filter(|line| line.contains(" vip "))
            .map(|line| line.find("80/TCP"))
            .collect();
        assert!(
            ports.len() == 2 && ports[0].is_some() && ports[0] == ports[1],
            "columns stand below each other:\n{page}"
        );
    }

    #[test]
    fn long_lists_are_counted_and_time_is_readable() {
        let ports: Vec<String> = (1..=9).map(|n| n.to_string()).collect();
        assert_eq!(some(&ports), "1, 2, 3, 4, and 5 more");
        assert_eq!([5, 65, 90_061].map(duration), ["5s", "1m5s", "1d1h"]);
    }
}
