//! Settings: defaults < file (`PINNACE_CONFIG`) < environment (`PINNACE_*`) < the two flags of the
//! command line that name a path.
//!
//! One table ([`TABLE`]) holds every setting's name, default, format, description and parser;
//! `--help`, the table of the README and parsing are derived from it, so they cannot disagree.
//! Everything wrong is reported at once, and nothing is started before all of it is right.
//!
//! Pure: environment, file text and host name are arguments. The figment crate would merge the
//! sources too, but it gives strings types before the setting's own parser has seen them (a node
//! called `007` or `1e3` would become a number) and stops at the first error.

pub mod bfd;
mod file;
mod help;
pub mod kube_vip;
mod table;
#[cfg(test)]
mod tests;
mod values;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bfd::{SecretFile, SecretWarning};
pub use help::{help_text, markdown_table};
pub use table::{Default, Setting, TABLE};

use crate::bfd::packet::Key;
pub use crate::engine::uplinks::InterfacePattern;
use crate::ipam::pool::Pool;
use crate::model::Mode;
use crate::model::on_exit::OnExit;

/// What every variable's name begins with.
pub const PREFIX: &str = "PINNACE_";

/// Everything that can be set, understood and within its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Directory of Service, EndpointSlice and Node manifests to serve from.
    pub manifests: Option<PathBuf>,
    /// Credentials for the Kubernetes API; None: found by themselves where there are no manifests.
    pub kubeconfig: Option<PathBuf>,
    /// API servers in place of the one the credentials name; empty: that one.
    pub api_servers: Vec<http::Uri>,
    /// Where the Lease is; None: in kube-system.
    pub namespace: Option<Box<str>>,
    /// This node's name, as EndpointSlices and Nodes spell it.
    pub node_name: Box<str>,
    /// Where the state that survives restarts is kept.
    pub state_dir: PathBuf,
    /// What may be handed out; empty: node mode only.
    pub pools: Vec<Pool>,
    /// Addresses ending in .0 or .255 are never handed out.
    pub avoid_buggy_ips: bool,
    /// Mode of Services that do not choose one.
    pub mode: Mode,
    /// The `spec.loadBalancerClass` that is ours.
    pub class: Box<str>,
    /// Services without a class are ours too.
    pub claim_default: bool,
    /// Interfaces that are uplinks whatever their kind; empty: found by their addresses.
    pub interfaces: Vec<InterfacePattern>,
    /// How long a new address is probed before it is first announced; zero: not at all.
    pub probe: Duration,
    /// Where health, metrics and state are served; None: nowhere.
    pub listen: Option<SocketAddr>,
    /// What becomes of the rules at SIGTERM.
    pub on_exit: OnExit,
    /// The rules disarm themselves when nobody has refreshed them for this long; 10 s to 24 h.
    pub dead_man: Duration,
    /// Filter directives, known to be valid.
    pub log: Box<str>,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Every owned address is announced again this often; 1 s to 100 s.
    pub announce_interval: Duration,
    /// Between two packets to another node; 3 ms to 1 s.
    pub bfd_interval: Duration,
    /// So many missing packets are a dead node; 2 to 50.
    pub bfd_multiplier: u8,
    /// By which nodes know each other's packets; None: they are not authenticated.
    pub secret: Option<Key>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people and the journal.
    Human,
    /// One JSON object per line.
    Json,
}

/// Where settings come from, in rising precedence. The caller reads them; see [`load`].
#[derive(Clone, Debug)]
pub struct Sources {
    /// The configuration file, when there is one.
    pub file: Option<ConfigFile>,
    /// The whole environment; other programs' variables are ignored.
    pub environment: Vec<(OsString, OsString)>,
    /// `--manifests`.
    pub manifests: Option<PathBuf>,
    /// The kernel's host name: the default node name.
    pub host_name: String,
    /// Reads the file with the secret, once it is known which.
    pub read_secret: fn(&Path) -> SecretFile,
}

/// A configuration file somebody named.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    /// For messages.
    pub path: PathBuf,
    /// YAML, one `key: value` per setting; or why it cannot be read, which is reported among the
    /// other errors.
    pub text: Result<String, String>,
}

/// Something the user probably did not mean, which stops nothing.
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
    /// `PINNACE_MODE=vip` and nothing to hand out.
    VipWithoutPool,
    /// The secret is less secret than it seems.
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

/// Where a value came from, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A variable, by its full name.
    Variable(String),
    /// A key of the file.
    Key(Place, String),
    /// The file as a whole.
    File(Place),
    /// Computed from the host.
    HostName,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Variable(name) => f.write_str(name),
            Origin::Key(place, key) => write!(f, "{place}: {key}"),
            Origin::File(place) => write!(f, "{place}"),
            Origin::HostName => f.write_str("the host name"),
        }
    }
}

/// A value that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingProblem {
    /// Who said so.
    pub origin: Origin,
    /// What was said; None when the value is not the point.
    pub value: Option<String>,
    /// What would be right.
    pub reason: String,
}

impl fmt::Display for SettingProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.value, &self.origin) {
            (Some(value), Origin::Variable(name)) => write!(f, "{name}={value:?}: {}", self.reason),
            (Some(value), origin) => write!(f, "{origin} {value:?}: {}", self.reason),
            (None, origin) => write!(f, "{origin}: {}", self.reason),
        }
    }
}

/// Everything wrong with the settings, at least one problem; and the warnings, one of which may be
/// the cause.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", shown(problems, warnings))]
pub struct Errors {
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

/// The path of the configuration file: the flag, else `PINNACE_CONFIG`, else none.
pub fn config_path(flag: Option<&Path>, variable: Option<OsString>) -> Option<PathBuf> {
    flag.map(Path::to_path_buf).or_else(|| variable.filter(|v| !v.is_empty()).map(PathBuf::from))
}

/// Merges the sources and understands every value, or reports everything that is wrong.
///
/// An empty variable, as env files and unit templates leave behind, counts as not set.
pub fn load(sources: Sources) -> Result<(Settings, Vec<Warning>), Errors> {
    let mut problems = Vec::new();
    let mut warnings = Vec::new();
    let mut given = BTreeMap::new();
    if let Some(file) = &sources.file {
        file::read(file, &mut given, &mut warnings, &mut problems);
    }
    read_environment(sources.environment, &mut given, &mut warnings, &mut problems);

    let mut draft = table::Draft::new();
    for setting in TABLE {
        let (origin, value) = match (given.remove(setting.name), &setting.default) {
            (Some(given), _) => given,
            (None, Default::Is(value)) => (Origin::Variable(setting.variable()), value.to_string()),
            (None, Default::Computed(_)) => continue,
        };
        // One bad pool or pattern must not hide the next: a parser may report several reasons for
        // one value.
        let reasons = (setting.parse)(&mut draft, &value).err().unwrap_or_default();
        let several = reasons.len() > 1;
        let problem = |reason| SettingProblem {
            origin: origin.clone(),
            value: (!several).then(|| value.clone()),
            reason,
        };
        problems.extend(reasons.into_iter().map(problem));
    }
    if sources.manifests.is_some() {
        draft.manifests = sources.manifests;
    }
    if draft.node_name.is_none()
        && !problems
            .iter()
            .any(|p| matches!(&p.origin, Origin::Variable(name) if name == "PINNACE_NODE_NAME"))
    {
        // The kubelet names its node by the host name in lower case.
        match values::node_name(&sources.host_name.to_ascii_lowercase()) {
            Ok(name) => draft.node_name = Some(name),
            Err(reason) => problems.push(SettingProblem {
                origin: Origin::HostName,
                value: Some(sources.host_name),
                reason: format!(
                    "{reason}; set PINNACE_NODE_NAME to this node's name in the cluster"
                ),
            }),
        }
    }
    if let Some(path) = &draft.secret_file {
        match bfd::secret(&(sources.read_secret)(path)) {
            Ok((secret, doubts)) => {
                draft.secret = Some(secret);
                warnings.extend(doubts.into_iter().map(Warning::Secret));
            }
            Err(reason) => {
                let origin = Origin::Variable(format!("{PREFIX}SECRET_FILE"));
                problems.push(SettingProblem {
                    origin,
                    value: Some(path.display().to_string()),
                    reason,
                });
            }
        }
    }
    if draft.mode == Some(Mode::Vip) && draft.pools.is_empty() {
        warnings.push(Warning::VipWithoutPool);
    }
    match draft.finish() {
        Some(settings) if problems.is_empty() => Ok((settings, warnings)),
        _ => Err(Errors { problems, warnings }),
    }
}

/// Values by setting name (without prefix), each with where it came from.
type Given = BTreeMap<&'static str, (Origin, String)>;

fn read_environment(
    variables: Vec<(OsString, OsString)>,
    given: &mut Given,
    warnings: &mut Vec<Warning>,
    problems: &mut Vec<SettingProblem>,
) {
    let texts: Vec<(String, String)> = variables
        .iter()
        .filter_map(|(name, value)| {
            Some((name.to_str()?.to_owned(), value.to_str()?.trim().to_owned()))
        })
        .collect();
    let kube_vip =
        kube_vip::advice(texts.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    warnings.extend(kube_vip.into_iter().map(|(name, advice)| Warning::KubeVip { name, advice }));
    for (name, value) in variables {
        let name = name.to_string_lossy().into_owned();
        let Some(short) = name.strip_prefix(PREFIX) else { continue };
        let Some(setting) = TABLE.iter().find(|setting| setting.name == short) else {
            if !is_service_link(short) {
                warnings.push(Warning::UnknownVariable { nearest: nearest_variable(short), name });
            }
            continue;
        };
        match value.into_string() {
            Ok(value) if value.trim().is_empty() => {}
            Ok(value) => {
                drop(given.insert(setting.name, (Origin::Variable(name), value.trim().to_string())))
            }
            Err(value) => problems.push(SettingProblem {
                origin: Origin::Variable(name),
                value: Some(value.to_string_lossy().into_owned()),
                reason: "this is not UTF-8".to_string(),
            }),
        }
    }
}

/// The kubelet gives pods variables for every Service of their namespace; for one called `pinnace`
/// they begin with our prefix.
fn is_service_link(short: &str) -> bool {
    short == "SERVICE_HOST"
        || short == "PORT"
        || short.starts_with("SERVICE_PORT")
        || short.starts_with("PORT_")
}

fn nearest_variable(short: &str) -> Option<String> {
    crate::common::nearest::nearest(short, TABLE.iter().map(|setting| setting.name))
        .map(|name| format!("{PREFIX}{name}"))
}
