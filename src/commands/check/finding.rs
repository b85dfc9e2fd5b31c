//! One thing that was found, and how much it matters.

use serde::Serialize;

/// How much a finding matters, in rising order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
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
    pub severity: Severity,
    /// The fact.
    pub what: String,
    /// Why it matters; empty when all is well.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// Commands to copy, or advice.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fix: Vec<String>,
}

impl Finding {
    fn new(check: &'static str, severity: Severity, what: impl Into<String>) -> Finding {
        Finding { check, severity, what: what.into(), why: String::new(), fix: Vec::new() }
    }

    pub(super) fn ok(check: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(check, Severity::Ok, what)
    }

    pub(super) fn note(check: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(check, Severity::Note, what)
    }

    pub(super) fn warning(check: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(check, Severity::Warning, what)
    }

    pub(super) fn error(check: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(check, Severity::Error, what)
    }

    pub(super) fn why(mut self, why: impl Into<String>) -> Finding {
        self.why = why.into();
        self
    }

    /// Adds a command or an advice.
    pub(super) fn fix(mut self, fix: impl Into<String>) -> Finding {
        self.fix.push(fix.into());
        self
    }
}
