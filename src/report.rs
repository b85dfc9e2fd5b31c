//! `pinnace status` for a person: what is served where first, then, in sentences, what is not and why.

use std::fmt::Write;

use crate::domain::model::Mode;
use crate::domain::status::{AddressPhase, AddressStatus, Phase, PortStatus, ServiceStatus, State};

/// How many of a long list are shown before the rest is counted.
const SHOWN: usize = 4;

/// The whole page.
pub fn human(state: &State) -> String {
    let mut page = String::new();
    // Writing into a String cannot fail.
    let _ = render(state, &mut page);
    page
}

fn render(state: &State, page: &mut String) -> std::fmt::Result {
    let unmet: Vec<_> = state.ready.iter().filter(|condition| !condition.status).collect();
    let ready = if unmet.is_empty() { "ready" } else { "not ready" };
    writeln!(page, "node {}, pinnace {}, up {}, {ready}", state.node, state.version, duration(state.uptime_seconds))?;
    for condition in unmet {
        writeln!(page, "  {}: {}", condition.name, condition.message)?;
    }
    writeln!(page)?;
    if state.services.is_empty() {
        writeln!(page, "No Service of type LoadBalancer.")?;
    } else {
        table(&["SERVICE", "MODE", "ADDRESSES", "PORTS", "OWNER", "ENDPOINTS", "STATE"], state.services.iter().map(service_row), page)?;
    }
    explanations(state, page)?;
    if !state.addresses.is_empty() {
        writeln!(page)?;
        table(&["ADDRESS", "STATE", "INTERFACES", "HELD BY"], state.addresses.iter().map(address_row), page)?;
    }
    if !state.pools.is_empty() {
        writeln!(page)?;
        let row = |pool: &crate::domain::status::PoolStatus| {
            vec![pool.name.clone(), some(&pool.ranges), format!("{} of {}", pool.used, pool.size)]
        };
        table(&["POOL", "RANGES", "USED"], state.pools.iter().map(row), page)?;
    }
    interfaces(state, page)?;
    problems(state, page)
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
        (Some(Mode::Node), _) => "every node".to_string(),
        (_, owner) => owner.clone().unwrap_or_else(|| "-".into()),
    };
    vec![
        service.key.to_string(),
        mode.to_string(),
        some(&service.addresses.iter().map(ToString::to_string).collect::<Vec<_>>()),
        some(&service.ports.iter().map(port).collect::<Vec<_>>()),
        owner,
        format!("{endpoints} ({local} here)"),
        phase(service.phase).to_string(),
    ]
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Serving => "serving",
        Phase::Pending => "pending",
        Phase::Refused => "refused",
        Phase::NotServed => "not ours",
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
    vec![address.address.to_string(), state.to_string(), some(&address.announced_on), some(&holders)]
}

/// A sentence for whatever is not as somebody asked.
fn explanations(state: &State, page: &mut String) -> std::fmt::Result {
    let speaking: Vec<_> = state.services.iter().filter(|service| !service.reasons.is_empty()).collect();
    for service in &speaking {
        writeln!(page, "\n{} is {}:", service.key, phase(service.phase))?;
        for reason in &service.reasons {
            writeln!(page, "  {}", reason.message)?;
        }
    }
    for address in &state.addresses {
        if let AddressPhase::Contested { mac } = &address.phase {
            writeln!(page, "\n{} is also answered for by {mac}: clients reach either of the two. Stop it there.", address.address)?;
        }
    }
    Ok(())
}

fn interfaces(state: &State, page: &mut String) -> std::fmt::Result {
    let row = |interface: &crate::domain::status::InterfaceStatus| {
        let role = match (&interface.reason, interface.up) {
            (None, true) => "uplink".to_string(),
            (None, false) => "uplink, without a link".to_string(),
            (Some(reason), _) => reason.clone(),
        };
        vec![interface.name.clone(), some(&interface.addresses.iter().map(ToString::to_string).collect::<Vec<_>>()), role]
    };
    if state.interfaces.is_empty() {
        return Ok(());
    }
    writeln!(page)?;
    // Pods come by the hundred; what is left out are interfaces without an address.
    let shown = state.interfaces.iter().filter(|interface| interface.uplink || !interface.addresses.is_empty());
    table(&["INTERFACE", "ADDRESSES", "ROLE"], shown.map(row), page)
}

fn problems(state: &State, page: &mut String) -> std::fmt::Result {
    let (notes, problems): (Vec<_>, Vec<_>) = state.problems.iter().partition(|problem| problem.note);
    for (title, list) in [("Problems in the manifests", problems), ("Notes on the manifests", notes)] {
        if list.is_empty() {
            continue;
        }
        writeln!(page, "\n{title}:")?;
        for problem in list {
            let object = problem.object.as_ref().map(|object| format!(" {object}:")).unwrap_or_default();
            writeln!(page, "  {}:{object} {}", problem.source, problem.reason)?;
        }
    }
    Ok(())
}

fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>, page: &mut String) -> std::fmt::Result {
    let mut lines = vec![head.iter().map(ToString::to_string).collect::<Vec<_>>()];
    lines.extend(rows);
    let width = |column: usize| lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    for line in &lines {
        let cells: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(page, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

/// The first few, and how many more.
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
    use crate::domain::model::{ObjectKey, Protocol, TrafficPolicy};
    use crate::domain::status::{Condition, Problem, Reason};

    fn service(name: &str, phase: Phase, addresses: &[&str]) -> ServiceStatus {
        ServiceStatus {
            key: ObjectKey::new("default", name),
            mode: Some(Mode::Vip),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            pool: None,
            ports: vec![PortStatus { name: "".into(), protocol: Protocol::Tcp, port: 80, endpoints: 3, local: 1 }],
            policy: TrafficPolicy::Cluster,
            client_affinity: false,
            phase,
            reasons: Vec::new(),
            owner: Some("node-1".into()),
        }
    }

    #[test]
    fn a_person_sees_what_is_served_and_why_the_rest_is_not() {
        let mut refused = service("api", Phase::Refused, &[]);
        refused.reasons.push(Reason::new("PoolExhausted", "no free address in pool lan (2 addresses); enlarge it, or delete a Service"));
        let state = State {
            node: "node-1".into(),
            version: "0.1.0".into(),
            uptime_seconds: 3_700,
            ready: vec![Condition::when("RulesApplied", false, "not written yet")],
            services: vec![service("web", Phase::Serving, &["10.88.0.200", "fd88::200"]), refused],
            problems: vec![Problem {
                source: "web.yaml:12".into(),
                object: Some("Service default/x".into()),
                note: false,
                reason: "bad".into(),
            }],
            ..State::default()
        };
        let expected = "\
node node-1, pinnace 0.1.0, up 1h1m, not ready
  RulesApplied: not written yet

SERVICE      MODE  ADDRESSES               PORTS   OWNER   ENDPOINTS   STATE
default/web  vip   10.88.0.200, fd88::200  80/TCP  node-1  3 (1 here)  serving
default/api  vip   -                       80/TCP  node-1  3 (1 here)  refused

default/api is refused:
  no free address in pool lan (2 addresses); enlarge it, or delete a Service

Problems in the manifests:
  web.yaml:12: Service default/x: bad
";
        assert_eq!(human(&state), expected);
    }

    #[test]
    fn long_lists_are_counted_and_time_is_readable() {
        let ports: Vec<String> = (1..=9).map(|n| n.to_string()).collect();
        assert_eq!(some(&ports), "1, 2, 3, 4, and 5 more");
        assert_eq!([5, 65, 90_061].map(duration), ["5s", "1m5s", "1d1h"]);
    }
}
