//! `pinnace check`: examines the host and changes nothing. Each finding says what is, why it
//! matters, and a command that helps.
//!
//! Files are read below a root directory, so that tests can bring their own; the interfaces are a
//! snapshot of the links, judged by the daemon's own rule; what only the kernel can tell
//! ([`kernel`]) is tried in a private network namespace and handed in as a value.

mod cluster;
mod finding;
mod host;
mod kernel;
mod network;
mod others;
mod report;
mod sysctl;
#[cfg(test)]
mod tests;

use std::path::Path;

pub use finding::{Finding, Severity};
pub use host::Host;
pub use kernel::{ForeignChain, Kernel, Probe};
pub use report::CheckReport;

use crate::config::{Settings, Warning};
use crate::host::links;
use crate::model::Interfaces;

/// Examines this host, and asks the API server where that is the source. `probe_kernel` loads rules
/// of every kind into the network namespace of the thread it is called in, a private one.
pub async fn run(
    settings: &Settings,
    warnings: &[Warning],
    probe_kernel: fn() -> Result<Option<String>, String>,
) -> CheckReport {
    let mut findings = Vec::new();
    let interfaces = links::snapshot().await.unwrap_or_else(|error| {
        findings.push(
            Finding::error("interfaces", error.to_string())
                .why("without its interfaces this node cannot announce any address"),
        );
        Interfaces::new()
    });
    let host = Host::new(Path::new("/"), interfaces, settings);
    findings.extend(examine(&host, settings, warnings, &Kernel::probe(probe_kernel)));
    findings.extend(cluster::examine(settings).await);
    CheckReport::new(findings)
}

/// Judges what was read from the host and what the kernel said.
pub fn examine(
    host: &Host,
    settings: &Settings,
    warnings: &[Warning],
    kernel: &Kernel,
) -> Vec<Finding> {
    let mut findings: Vec<Finding> =
        warnings.iter().map(|w| Finding::warning("settings", w.to_string())).collect();
    findings.extend(kernel::capabilities(host));
    findings.extend(kernel::features(kernel));
    findings.extend(sysctl::examine(host));
    findings.extend(network::examine(host, settings));
    findings.extend(others::firewalls(host, kernel));
    findings.extend(others::load_balancers(host, kernel));
    findings
}
