//! All findings, for people and for machines.

use std::fmt::Write;

use serde::Serialize;

use super::finding::{Finding, Severity};

/// What `pinnace check` found.
#[derive(Clone, Debug, Serialize)]
pub struct CheckReport {
    /// The worst of the findings; Ok without any.
    pub worst: Severity,
    /// Sorted by severity.
    pub findings: Vec<Finding>,
}

impl CheckReport {
    pub(super) fn new(mut findings: Vec<Finding>) -> CheckReport {
        findings.sort_by_key(|finding| finding.severity);
        let worst = findings.last().map_or(Severity::Ok, |finding| finding.severity);
        CheckReport { worst, findings }
    }

    /// 1 when something keeps Pinnace from serving, else 0.
    pub fn exit_code(&self) -> u8 {
        u8::from(self.worst == Severity::Error)
    }

    /// One block per finding and a verdict at the end.
    pub fn human(&self) -> String {
        let mut text = String::new();
        for finding in &self.findings {
            let label = match finding.severity {
                Severity::Ok => "ok",
                Severity::Note => "note",
                Severity::Warning => "WARNING",
                Severity::Error => "ERROR",
            };
            // Writing into a String cannot fail.
            let _ = writeln!(text, "{label:<8} {}", finding.what);
            if !finding.why.is_empty() {
                let _ = writeln!(text, "         why: {}", finding.why);
            }
            for (i, fix) in finding.fix.iter().enumerate() {
                let _ = writeln!(text, "         {} {fix}", if i == 0 { "fix:" } else { "    " });
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

    /// The same as one JSON object.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self)
            .unwrap_or_else(|error| format!("{{\"error\":{:?}}}", error.to_string()))
    }
}

fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}
