//! `pinnace check`: examines the host and changes nothing. Each finding says what is, why it
//! matters, and a command that helps.
//!
//! The host is read below a root directory, so that tests can bring their own; what only the kernel
//! can tell ([`kernel`]) is tried in a private network namespace and handed in as a value.

mod cluster;
mod kernel;
mod network;
mod others;
mod sysctl;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

pub use kernel::{Chain, Kernel, Tried};
use serde::Serialize;

use crate::config::{Settings, Warning};

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing.
    Note,
    /// Something will not work for somebody.
    Warning,
    /// Pinnace cannot serve.
    Error,
}

/// One thing found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable name for machines, such as `ipv4-forwarding`.
    pub check: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What is.
    pub what: String,
    /// Why it matters; empty when all is well.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// What to do: commands to copy, or advice.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fix: Vec<String>,
}

impl Finding {
    fn new(check: &'static str, severity: Severity, what: impl Into<String>) -> Finding {
        Finding { check, severity, what: what.into(), why: String::new(), fix: Vec::new() }
    }

    fn ok(check: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(check, Severity::Ok, what)
    }

    fn note(check: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(check, Severity::Note, what)
    }

    fn warning(check: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(check, Severity::Warning, what)
    }

    fn error(check: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(check, Severity::Error, what)
    }

    fn why(mut self, why: impl Into<String>) -> Finding {
        self.why = why.into();
        self
    }

    fn fix(mut self, fix: impl Into<String>) -> Finding {
        self.fix.push(fix.into());
        self
    }
}

/// Everything found, the worst last, where a person reads first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The worst of the findings.
    pub worst: Severity,
    /// Sorted by severity.
    pub findings: Vec<Finding>,
}

/// Examines this host, and asks the API server where that is the source. `trial` loads rules of
/// every kind into the network namespace of the thread it is called in, a private one.
pub fn run(
    settings: &Settings,
    warnings: &[Warning],
    trial: fn() -> Result<Option<String>, String>,
) -> Report {
    let mut report = examine(&Host::new(Path::new("/")), settings, warnings, &Kernel::probe(trial));
    report.add(cluster::examine(settings));
    report
}

/// Judges what was read from the host and what the kernel said.
pub fn examine(host: &Host, settings: &Settings, warnings: &[Warning], kernel: &Kernel) -> Report {
    let mut findings: Vec<Finding> =
        warnings.iter().map(|w| Finding::warning("settings", w.to_string())).collect();
    findings.extend(kernel::capabilities(host));
    findings.extend(kernel::features(kernel));
    findings.extend(sysctl::examine(host));
    findings.extend(network::examine(host, settings));
    findings.extend(others::firewalls(host, kernel));
    findings.extend(others::load_balancers(host, kernel));
    let mut report = Report { worst: Severity::Ok, findings: Vec::new() };
    report.add(findings);
    report
}

impl Report {
    fn add(&mut self, findings: Vec<Finding>) {
        self.findings.extend(findings);
        self.findings.sort_by_key(|finding| finding.severity);
        self.worst = self.findings.last().map_or(Severity::Ok, |finding| finding.severity);
    }

    /// 1 when something keeps Pinnace from serving, else 0.
    pub fn exit_code(&self) -> u8 {
        u8::from(self.worst == Severity::Error)
    }

    /// For a person: one block per finding and a verdict at the end.
    pub fn human(&self) -> String {
        let mut text = String::new();
        for finding in &self.findings {
            let label = match finding.severity {
                Severity::Ok => "ok",
                Severity::Note => "note",
                Severity::Warning => "WARNING",
                Severity::Error => "ERROR",
            };
            let _ = writeln!(text, "{label:<8} {}", finding.what);
            if !finding.why.is_empty() {
                let _ = writeln!(text, "         why: {}", finding.why);
            }
            for (i, fix) in finding.fix.iter().enumerate() {
                let _ = writeln!(text, "         {} {fix}", if i == 0 { "do: " } else { "    " });
            }
        }
        let count = |severity| self.findings.iter().filter(|f| f.severity == severity).count();
        let verdict = match (count(Severity::Error), count(Severity::Warning)) {
            (0, 0) => "Pinnace can serve here.".to_string(),
            (0, n) => format!("Pinnace can serve here; {} worth attention.", counted(n, "warning")),
            (n, _) => format!("Pinnace cannot serve here: {} to solve first.", counted(n, "error")),
        };
        let _ = writeln!(text, "\n{verdict} Nothing was changed.");
        text
    }

    /// For machines.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self)
            .unwrap_or_else(|error| format!("{{\"error\":{:?}}}", error.to_string()))
    }
}

fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// The files of a host below a root directory. What cannot be read is absent.
pub struct Host {
    root: PathBuf,
}

impl Host {
    /// A host below this directory; `/` is ours.
    pub fn new(root: &Path) -> Host {
        Host { root: root.to_path_buf() }
    }

    /// A file's text; procfs text need not be UTF-8.
    fn read(&self, path: &str) -> Option<String> {
        std::fs::read(self.root.join(path))
            .ok()
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    fn exists(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }

    /// Names in a directory, sorted.
    fn list(&self, path: &str) -> BTreeSet<String> {
        let entries = std::fs::read_dir(self.root.join(path)).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// A sysctl by its dotted name, where an interface's name may contain dots: `["net", "ipv4",
    /// "conf", "eth0.10", "rp_filter"]`.
    fn sysctl(&self, parts: &[&str]) -> Option<i64> {
        self.read(&format!("proc/sys/{}", parts.join("/")))?.trim().parse().ok()
    }

    /// Names of running programs (at most 15 characters, as the kernel keeps them), each with the
    /// words of its command line.
    fn processes(&self) -> BTreeSet<(String, String)> {
        let is_process = |name: &String| name.bytes().all(|b| b.is_ascii_digit());
        let processes = self.list("proc").into_iter().filter(is_process).filter_map(|pid| {
            let name = self.read(&format!("proc/{pid}/comm"))?.trim().to_string();
            let command =
                self.read(&format!("proc/{pid}/cmdline")).unwrap_or_default().replace('\0', " ");
            Some((name, command))
        });
        processes.collect()
    }

    /// Network interfaces of our own namespace.
    fn interfaces(&self) -> BTreeSet<String> {
        let text = self.read("proc/net/dev").unwrap_or_default();
        text.lines()
            .skip(2)
            .filter_map(|line| Some(line.rsplit_once(':')?.0.trim().to_string()))
            .collect()
    }
}
