//! Where the objects come from: a directory of manifests or the API server, as events for the engine.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::config::Settings;
use crate::domain::engine::Event;
use crate::domain::status::Problem;
use crate::edge::kube::client::Connection;
use crate::edge::kube::credentials::{self, Credentials};
use crate::edge::kube::watch::{self as api, ApiUpdate};
use crate::edge::manifests::{self, ManifestUpdate};

/// What the settings and the host say about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A directory.
    Manifests(PathBuf),
    /// The API server, by these credentials.
    Api(Credentials),
}

impl Source {
    /// Chooses.
    ///
    /// # Errors
    /// A sentence: two sources are named, or there is none.
    pub fn choose(settings: &Settings) -> Result<Source, NoSource> {
        match (&settings.manifests, &settings.kubeconfig) {
            (Some(_), Some(_)) => Err(NoSource::Two),
            (Some(directory), None) => Ok(Source::Manifests(directory.clone())),
            (None, kubeconfig) => Ok(Source::Api(credentials::choose(kubeconfig.as_deref(), credentials::in_pod(), Path::new("/"))?)),
        }
    }
}

/// Why there is nothing to serve from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSource {
    /// Which of them is meant?
    #[error(
        "PINNACE_MANIFESTS and PINNACE_KUBECONFIG are both set: Services come from a directory of manifests or from the API server; unset one of them"
    )]
    Two,
    /// None is named, and none was found.
    #[error(transparent)]
    None(#[from] credentials::NoCredentials),
}

/// A source at work.
pub(crate) struct Started {
    updates: Updates,
    /// See [`api::ApiSource::synced`]; None for manifests.
    synced: Option<watch::Receiver<bool>>,
    /// The connection, for what else is to be done with the API.
    pub(crate) connection: Option<Connection>,
    /// Since when the snapshot is all there is, in words; None once the API has told everything.
    snapshot: Option<String>,
    health: Result<(), String>,
}

enum Updates {
    Manifests(mpsc::Receiver<ManifestUpdate>, tokio::task::JoinHandle<io::Result<()>>),
    Api(mpsc::Receiver<ApiUpdate>),
}

impl Started {
    /// Begins to read. `queue` updates may wait.
    pub(crate) async fn new(source: Source, settings: &Settings, queue: usize) -> io::Result<Started> {
        let credentials = match source {
            Source::Manifests(directory) => {
                let (updates_in, updates) = mpsc::channel(queue);
                let updates = Updates::Manifests(updates, tokio::spawn(manifests::watch(directory, updates_in)));
                return Ok(Started { updates, synced: None, connection: None, snapshot: None, health: Ok(()) });
            }
            Source::Api(credentials) => credentials,
        };
        let connection = Connection::open(credentials.clone(), settings.api_servers.clone()).await.map_err(io::Error::other)?;
        let source = api::spawn(connection.clone(), queue)?;
        let health = Err(format!("the API server {} has not answered yet", connection.server()));
        Ok(Started {
            updates: Updates::Api(source.updates),
            synced: Some(source.synced),
            connection: Some(connection),
            snapshot: None,
            health,
        })
    }

    /// True when everything is known to have been told within this time. Nothing is taken from the source meanwhile.
    pub(crate) async fn synced_within(&mut self, patience: Duration) -> bool {
        match &mut self.synced {
            Some(synced) => matches!(tokio::time::timeout(patience, synced.wait_for(|synced| *synced)).await, Ok(Ok(_))),
            None => true,
        }
    }

    /// The snapshot was used: health says so until the API has told everything. `taken` in words.
    pub(crate) fn bridge(&mut self, taken: String) -> Event {
        self.snapshot = Some(taken);
        Event::SourceHealth(self.shown_health())
    }

    /// What happened next. Cancelling it loses nothing.
    ///
    /// # Errors
    /// When the source has ended, which it must not.
    pub(crate) async fn next(&mut self) -> io::Result<Vec<Event>> {
        match &mut self.updates {
            Updates::Manifests(updates, task) => tokio::select! {
                Some(update) = updates.recv() => Ok(vec![manifest_event(update)]),
                ended = task => Err(match ended {
                    Ok(Err(error)) => error,
                    Ok(Ok(())) => io::ErrorKind::UnexpectedEof.into(),
                    Err(error) => io::Error::other(error),
                }),
            },
            Updates::Api(updates) => {
                let update = updates.recv().await.ok_or(io::ErrorKind::UnexpectedEof)?;
                Ok(self.api_events(update))
            }
        }
    }

    fn api_events(&mut self, update: ApiUpdate) -> Vec<Event> {
        let mut events = vec![Event::Source { changes: update.changes, problems: update.problems, synced: update.synced }];
        let bridged = update.synced && self.snapshot.take().is_some();
        if let Some(health) = update.health {
            self.health = health;
            events.push(Event::SourceHealth(self.shown_health()));
        } else if bridged {
            events.push(Event::SourceHealth(self.shown_health()));
        }
        events
    }

    fn shown_health(&self) -> Result<(), String> {
        match (&self.snapshot, &self.health) {
            (Some(taken), Err(why)) => Err(format!("serving from the snapshot of {taken}: {why}")),
            (Some(taken), Ok(())) => Err(format!("serving from the snapshot of {taken}: the API server has not told everything yet")),
            (None, health) => health.clone(),
        }
    }
}

/// What the engine is told of a directory of manifests.
pub(crate) fn manifest_event(update: ManifestUpdate) -> Event {
    let problems = update
        .problems
        .into_iter()
        .map(|p| Problem {
            source: p.line.map_or(p.file.clone(), |line| format!("{}:{line}", p.file)),
            object: p.object,
            note: p.severity == manifests::Severity::Note,
            reason: p.reason,
        })
        .collect();
    Event::Source { changes: update.changes, problems, synced: update.synced }
}
