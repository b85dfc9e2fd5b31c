//! Where the objects come from: a directory of manifests or the API server, as events for the
//! engine.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};

use crate::config::Settings;
use crate::engine::Event;
use crate::host::trigger_time::TriggerTime;
use crate::k8s::io::client::Connection;
use crate::k8s::io::credentials::Credentials;
use crate::k8s::io::watch::ApiUpdate;
use crate::k8s::io::{credentials, watch as api};
use crate::manifests;
use crate::manifests::ManifestUpdate;
use crate::model::state::SourceProblem;
use crate::storage::snapshot;

/// How often credentials that cannot be used are tried again.
const RETRY: Duration = Duration::from_secs(2);

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
            (None, kubeconfig) => Ok(Source::Api(credentials::choose(
                kubeconfig.as_deref(),
                credentials::in_pod(),
                Path::new("/"),
            )?)),
        }
    }

    /// Reads the credentials. Those that cannot be used are a mistake to be told at once, unless
    /// there is a snapshot: a node whose disk was damaged by a power cut goes on serving, and
    /// uses them when they are right again.
    ///
    /// # Errors
    /// What is wrong with the credentials.
    pub(crate) async fn open(self, settings: &Settings) -> Result<Opened, NoSource> {
        let credentials = match self {
            Source::Manifests(directory) => return Ok(Opened::Manifests(directory)),
            Source::Api(credentials) => credentials,
        };
        let why = match Connection::open(credentials.clone(), settings.api_servers.clone()).await {
            Ok(connection) => return Ok(Opened::Api(connection)),
            Err(why) => why,
        };
        match snapshot::load(&settings.state_dir) {
            Ok(Some(_)) => Ok(Opened::Unusable(credentials, why)),
            Ok(None) => Err(NoSource::Unusable(why)),
            Err(problem) => Err(NoSource::Unusable(format!("{why}; {problem}"))),
        }
    }
}

/// A source that can be read from, or is waited for.
pub(crate) enum Opened {
    /// A directory.
    Manifests(PathBuf),
    /// The API server.
    Api(Connection),
    /// These credentials, which cannot be used yet, and why; there is a snapshot.
    Unusable(Credentials, String),
}

/// Why there is nothing to serve from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSource {
    /// Which of them is meant?
    #[error(
        "PINNACE_MANIFESTS and PINNACE_KUBECONFIG are both set: Services come from a directory of manifests or from the API server; unset one of them"
    )]
    Two,
    /// What was named or found cannot be read or understood.
    #[error("{0}; no snapshot of an earlier run is here to serve from instead")]
    Unusable(String),
    /// None is named, and none was found.
    #[error(transparent)]
    None(#[from] credentials::NoCredentials),
}

/// A source at work.
pub(crate) struct Started {
    updates: Updates,
    /// Updates that may wait.
    queue: usize,
    /// See [`api::ApiSource::synced`]; None for manifests.
    synced: Option<watch::Receiver<bool>>,
    /// The connection, for what else is to be done with the API.
    pub(crate) connection: Option<Connection>,
    /// Since when the snapshot is all there is, in words; None once the API has told everything.
    snapshot: Option<String>,
    health: Result<(), String>,
}

/// What the source says at once.
pub(crate) struct SourceEvents {
    pub(crate) events: Vec<Event>,
    /// When the oldest change of an endpoint among it happened, if that is said.
    pub(crate) last_change: Option<TriggerTime>,
}

impl From<Vec<Event>> for SourceEvents {
    fn from(events: Vec<Event>) -> SourceEvents {
        SourceEvents { events, last_change: None }
    }
}

enum Updates {
    Manifests(mpsc::Receiver<ManifestUpdate>, tokio::task::JoinHandle<io::Result<()>>),
    Api(mpsc::Receiver<ApiUpdate>),
    /// Credentials that can be used, once there are any.
    Awaited(oneshot::Receiver<Connection>),
}

impl Started {
    /// Begins to read. `queue` updates may wait.
    pub(crate) fn new(opened: Opened, settings: &Settings, queue: usize) -> io::Result<Started> {
        let empty = |updates, health| Started {
            updates,
            queue,
            synced: None,
            connection: None,
            snapshot: None,
            health,
        };
        match opened {
            Opened::Manifests(directory) => {
                let (updates_in, updates) = mpsc::channel(queue);
                Ok(empty(
                    Updates::Manifests(
                        updates,
                        tokio::spawn(manifests::watch(directory, updates_in)),
                    ),
                    Ok(()),
                ))
            }
            Opened::Api(connection) => {
                let (_, nobody) = oneshot::channel();
                let mut started = empty(Updates::Awaited(nobody), Ok(()));
                started.connect(connection)?;
                Ok(started)
            }
            Opened::Unusable(credentials, why) => {
                let (usable_in, usable) = oneshot::channel();
                warn!("{why}; serving from the snapshot until they can be used");
                tokio::spawn(await_credentials(
                    credentials,
                    settings.api_servers.clone(),
                    why.clone(),
                    usable_in,
                ));
                Ok(empty(Updates::Awaited(usable), Err(why)))
            }
        }
    }

    fn connect(&mut self, connection: Connection) -> io::Result<()> {
        let found = if matches!(connection.credentials(), Credentials::Found(_)) {
            ", found on this K3s host"
        } else {
            ""
        };
        info!(server = %connection.server(), "serving from the Kubernetes API with {}{found}", connection.credentials());
        let source = api::spawn(connection.clone(), self.queue)?;
        self.health = Err(format!("the API server {} has not answered yet", connection.server()));
        self.updates = Updates::Api(source.updates);
        self.synced = Some(source.synced);
        self.connection = Some(connection);
        Ok(())
    }

    /// True when everything is known to have been told within this time. Nothing is taken from the
    /// source meanwhile.
    pub(crate) async fn synced_within(&mut self, patience: Duration) -> bool {
        match &mut self.synced {
            _ if matches!(self.updates, Updates::Awaited(_)) => false,
            Some(synced) => matches!(
                tokio::time::timeout(patience, synced.wait_for(|synced| *synced)).await,
                Ok(Ok(_))
            ),
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
    pub(crate) async fn next(&mut self) -> io::Result<SourceEvents> {
        match &mut self.updates {
            Updates::Manifests(updates, task) => tokio::select! {
                Some(update) = updates.recv() => Ok(vec![manifest_event(update)].into()),
                ended = task => Err(match ended {
                    Ok(Err(error)) => error,
                    Ok(Ok(())) => io::ErrorKind::UnexpectedEof.into(),
                    Err(error) => io::Error::other(error),
                }),
            },
            Updates::Api(updates) => {
                let update = updates.recv().await.ok_or(io::ErrorKind::UnexpectedEof)?;
                Ok(SourceEvents {
                    last_change: update.last_change,
                    events: self.api_events(update),
                })
            }
            Updates::Awaited(usable) => {
                let connection = usable.await.map_err(io::Error::other)?;
                self.connect(connection)?;
                Ok(vec![Event::SourceHealth(self.shown_health())].into())
            }
        }
    }

    fn api_events(&mut self, update: ApiUpdate) -> Vec<Event> {
        let mut events = vec![Event::Source {
            changes: update.changes,
            problems: update.problems,
            synced: update.synced,
        }];
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
            (Some(taken), Ok(())) => Err(format!(
                "serving from the snapshot of {taken}: the API server has not told everything yet"
            )),
            (None, health) => health.clone(),
        }
    }
}

/// Tries until the credentials can be used, and says when the reason changes why they cannot.
async fn await_credentials(
    credentials: Credentials,
    servers: Vec<Uri>,
    mut said: String,
    usable: oneshot::Sender<Connection>,
) {
    loop {
        tokio::time::sleep(RETRY).await;
        match Connection::open(credentials.clone(), servers.clone()).await {
            // Nobody waits any more when the process is about to end.
            Ok(connection) => return drop(usable.send(connection)),
            Err(why) if why != said => {
                warn!("{why}; serving from the snapshot until they can be used");
                said = why;
            }
            Err(_) => {}
        }
    }
}

/// What the engine is told of a directory of manifests.
pub(crate) fn manifest_event(update: ManifestUpdate) -> Event {
    let problems = update
        .problems
        .into_iter()
        .map(|p| SourceProblem {
            source: p.line.map_or(p.file.clone(), |line| format!("{}:{line}", p.file)),
            object: p.object,
            note: p.severity == manifests::Severity::Note,
            reason: p.reason,
        })
        .collect();
    Event::Source { changes: update.changes, problems, synced: update.synced }
}
