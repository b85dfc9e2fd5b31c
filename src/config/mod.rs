//! Settings: defaults < file (`PINNACE_CONFIG`) < environment (`PINNACE_*`) < flags.
//!
//! One table ([`TABLE`]) holds every setting's name, default, format, description and parser;
//! `--help`, docs/configuration.md and parsing are derived from it, so they cannot disagree.
//! Every error is reported at once, and nothing is started before there is none.
//!
//! figment merges the sources. Its own providers are not used, for they give values types before
//! the setting's parser sees them: a node called `007` or `1e3` would become a number.
//!
//! Sans-IO: environment, file text and host name are arguments; [`io`] reads the file.

pub mod bfd;
mod draft;
mod environment;
mod file;
mod help;
pub mod io;
pub mod kube_vip;
mod problem;
mod settings;
mod sources;
mod table;
#[cfg(test)]
mod tests;
mod values;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use draft::Draft;
use figment::{Figment, Profile};
pub use file::ConfigFile;
pub use help::{help_text, markdown_table};
pub use problem::{ConfigErrors, Place, SettingProblem, Warning};
pub use settings::{LogFormat, OnExit, Settings};
use sources::{Given, Raw};
pub use table::{DefaultValue, PREFIX, Setting, TABLE};

use crate::bfd::secret::{self, SecretFile};
pub use crate::engine::uplinks::InterfacePattern;
use crate::model::Mode;

/// Name of the source of variables: their values are shown as `NAME="value"`.
const ENVIRONMENT: &str = "environment";
/// Name of the source of what is taken from the host.
const HOST: &str = "host";

/// Where settings come from. The caller reads them; see [`load`].
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

/// The path of the configuration file: the flag, else `PINNACE_CONFIG`, else none.
pub fn config_path(flag: Option<&Path>, variable: Option<OsString>) -> Option<PathBuf> {
    flag.map(Path::to_path_buf).or_else(|| variable.filter(|v| !v.is_empty()).map(PathBuf::from))
}

/// Merges the sources and parses every value, or reports everything that is wrong.
///
/// An empty variable, as env files and unit templates leave behind, counts as not set.
pub fn load(sources: Sources) -> Result<(Settings, Vec<Warning>), ConfigErrors> {
    let mut problems = Vec::new();
    let mut warnings = Vec::new();
    let file = match &sources.file {
        Some(file) => file::read(file, &mut warnings, &mut problems),
        None => Given::new(),
    };
    let environment = environment::read(sources.environment, &mut warnings, &mut problems);
    let flags = flags(sources.manifests, &mut problems);
    let merged = Figment::new()
        .merge(Raw { name: "defaults", given: table::defaults() })
        .merge(Raw { name: HOST, given: host(&sources.host_name) })
        .merge(Raw { name: "file", given: file })
        .merge(Raw { name: ENVIRONMENT, given: environment })
        .merge(Raw { name: "flags", given: flags });

    let mut draft = Draft::new();
    for setting in TABLE {
        let Some(value) = Merged::find(&merged, setting.name) else { continue };
        // One bad pool or pattern must not hide the next: a parser may report several reasons for
        // one value.
        let reasons = (setting.parse)(&mut draft, &value.text).err().unwrap_or_default();
        let subject = if reasons.len() > 1 { value.place.clone() } else { value.subject() };
        let problem = |reason| SettingProblem::new(subject.clone(), value.advise(reason));
        problems.extend(reasons.into_iter().map(problem));
    }
    if let Some(path) = &draft.secret_file {
        match secret::parse(&(sources.read_secret)(path)) {
            Ok((secret, doubts)) => {
                draft.secret = Some(secret);
                warnings.extend(doubts.into_iter().map(Warning::Secret));
            }
            Err(reason) => {
                let subject = Merged::find(&merged, "SECRET_FILE").map(|value| value.subject());
                problems.push(SettingProblem::new(subject.unwrap_or_default(), reason));
            }
        }
    }
    if draft.mode == Some(Mode::Vip) && draft.pools.is_empty() {
        warnings.push(Warning::VipWithoutPool);
    }
    match draft.finish() {
        Some(settings) if problems.is_empty() => Ok((settings, warnings)),
        _ => Err(ConfigErrors { problems, warnings }),
    }
}

/// The kubelet names its node by the host name in lower case.
fn host(host_name: &str) -> Given {
    Given::from([("NODE_NAME", ("the host name".to_owned(), host_name.to_ascii_lowercase()))])
}

fn flags(manifests: Option<PathBuf>, problems: &mut Vec<SettingProblem>) -> Given {
    let mut given = Given::new();
    match manifests.map(|path| path.into_os_string().into_string()) {
        Some(Ok(path)) => drop(given.insert("MANIFESTS", ("--manifests".to_owned(), path))),
        Some(Err(path)) => problems.push(SettingProblem::new(
            format!("--manifests {:?}", path.to_string_lossy()),
            "this is not UTF-8",
        )),
        None => {}
    }
    given
}

/// The value of a setting out of the source that has the last word.
struct Merged {
    text: String,
    /// As its user spells it.
    place: String,
    /// Name of the source.
    source: String,
}

impl Merged {
    /// None when no source has it: it is computed, or stays unset.
    fn find(merged: &Figment, setting: &str) -> Option<Merged> {
        let value = merged.find_value(setting).ok()?;
        let metadata = merged.get_metadata(value.tag())?;
        Some(Merged {
            text: value.into_string()?,
            place: metadata.interpolate(&Profile::Default, &[setting]),
            source: metadata.name.to_string(),
        })
    }

    /// Place and value, for messages.
    fn subject(&self) -> String {
        let Merged { text, place, source } = self;
        if source == ENVIRONMENT {
            format!("{place}={text:?}")
        } else {
            format!("{place} {text:?}")
        }
    }

    /// A host name cannot be changed for our sake, so the setting that overrides it is named.
    fn advise(&self, reason: String) -> String {
        if self.source == HOST {
            format!("{reason}; set PINNACE_NODE_NAME to this node's name in the cluster")
        } else {
            reason
        }
    }
}
