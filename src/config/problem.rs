//! What is wrong with the settings, and what is only suspicious.

use std::fmt;
use std::path::PathBuf;

use crate::bfd::secret::SecretWarning;

/// Something the user probably did not mean; the node starts all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// A `PINNACE_*` variable that is no setting.
    UnknownVariable {
        /// As spelled.
        name: String,
        /// The nearest setting, if any is near.
        nearest: Option<String>,
    },
    /// A key of the file that is no setting.
    UnknownKey {
        /// As spelled.
        key: String,
        /// File and line.
        place: Place,
        /// The nearest setting, if any is near.
        nearest: Option<String>,
    },
    /// A variable of kube-vip, which has no effect here.
    KubeVip {
        /// As kube-vip spells it.
        name: &'static str,
        /// What to write in its place.
        advice: String,
    },
    /// `PINNACE_MODE=vip` without a pool.
    VipWithoutPool,
    Secret(SecretWarning),
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suggest = |nearest: &Option<String>| {
            nearest.as_ref().map(|n| format!("; did you mean {n}?")).unwrap_or_default()
        };
        match self {
            Warning::UnknownVariable { name, nearest } => {
                write!(f, "{name} is not a setting and is ignored{}", suggest(nearest))
            }
            Warning::UnknownKey { key, place, nearest } => {
                write!(f, "{place}: {key} is not a setting and is ignored{}", suggest(nearest))
            }
            Warning::KubeVip { name, advice } => {
                write!(f, "{name} is a variable of kube-vip and has no effect here; {advice}")
            }
            Warning::Secret(warning) => write!(f, "{warning}"),
            Warning::VipWithoutPool => {
                write!(
                    f,
                    "PINNACE_MODE is vip but PINNACE_POOLS is empty: Services get no address until a pool is configured"
                )
            }
        }
    }
}

/// A file and a line in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// As named by the user.
    pub path: PathBuf,
    /// From 1; None when the whole file is meant.
    pub line: Option<u64>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        self.line.map_or(Ok(()), |line| write!(f, ":{line}"))
    }
}

/// A value that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingProblem {
    /// Where the value stands, as its user spells it, and the value where it is the point:
    /// `PINNACE_PROBE="5"`, `/etc/pinnace/config.yaml:3: probe "5"`.
    pub subject: String,
    /// What would be right.
    pub reason: String,
}

impl SettingProblem {
    pub(super) fn new(subject: impl Into<String>, reason: impl Into<String>) -> SettingProblem {
        SettingProblem { subject: subject.into(), reason: reason.into() }
    }
}

impl fmt::Display for SettingProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.reason)
    }
}

/// Everything wrong with the settings, at least one problem; and the warnings, one of which may
/// name the cause.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", shown(problems, warnings))]
pub struct ConfigErrors {
    /// What cannot be used, in the order of the table.
    pub problems: Vec<SettingProblem>,
    /// What was ignored.
    pub warnings: Vec<Warning>,
}

/// One line each.
fn shown(problems: &[SettingProblem], warnings: &[Warning]) -> String {
    let problems = problems.iter().map(|problem| format!("error: {problem}"));
    problems
        .chain(warnings.iter().map(|warning| format!("warning: {warning}")))
        .collect::<Vec<_>>()
        .join("\n")
}
