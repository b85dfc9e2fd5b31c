//! The source of objects, chosen by settings and host: a directory of manifests or the API server.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};

use crate::config::Settings;
use crate::k8s::io::client::Connection;
use crate::k8s::io::credentials::Credentials;
use crate::k8s::io::{credentials, watch as api};
use crate::manifests::io::watch as manifests;
use crate::model::source_update::SourceUpdate;
use crate::storage::snapshot::{self, Snapshot};

/// Interval at which unusable credentials are retried.
const RETRY: Duration = Duration::from_secs(2);

/// The source that settings and host name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A directory of manifests.
    Manifests(PathBuf),
    /// The API server, with these credentials.
    Api(Credentials),
}

impl Source {
    /// Chooses the source.
    ///
    /// # Errors
    /// Two sources are named, or there is none.
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

    /// Reads the credentials. Unusable ones are an error, unless there is a snapshot: a node whose
    /// disk was damaged by a power cut goes on serving, and uses them once they are usable.
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

/// A source that can be read, or is waited for.
pub(crate) enum Opened {
    Manifests(PathBuf),
    Api(Connection),
    /// Credentials that cannot be used yet, and why; there is a snapshot.
    Unusable(Credentials, String),
}

/// Why there is no source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSource {
    /// Manifests and a kubeconfig are both named.
    #[error(
        "PINNACE_MANIFESTS and PINNACE_KUBECONFIG are both set: Services come from a directory of manifests or from the API server; unset one of them"
    )]
    Two,
    /// The credentials cannot be read or understood.
    #[error("{0}; no snapshot of an earlier run is here to serve from instead")]
    Unusable(String),
    /// No source is named, and none was found.
    #[error(transparent)]
    None(#[from] credentials::NoCredentials),
}

/// A source that is being read.
pub(crate) struct Started {
    updates: Updates,
    /// Maximum number of updates that wait for the engine.
    queue: usize,
    /// [`api::ApiSource::synced`]; None for manifests.
    synced: Option<watch::Receiver<bool>>,
    /// For everything else that uses the API.
    pub(crate) connection: Option<Connection>,
    /// When the snapshot that is served from was taken (RFC 3339); None once the API's own list is
    /// complete.
    snapshot: Option<String>,
    health: Result<(), String>,
}

enum Updates {
    Manifests(mpsc::Receiver<SourceUpdate>, tokio::task::JoinHandle<io::Result<()>>),
    Api(mpsc::Receiver<SourceUpdate>),
    /// Credentials become usable.
    Awaited(oneshot::Receiver<Connection>),
}

impl Started {
    /// Begins to read. At most `queue` updates wait for the engine.
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

    /// True when every object has been listed within this time. Takes nothing from the source.
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

    /// The snapshot as the first update. Health says that it is served from until the API's own
    /// list is complete.
    pub(crate) fn bridge(&mut self, snapshot: Snapshot) -> SourceUpdate {
        self.snapshot = Some(snapshot.taken);
        SourceUpdate {
            changes: snapshot.changes,
            synced: true,
            health: Some(self.shown_health()),
            ..SourceUpdate::default()
        }
    }

    /// The next update. Cancelling it loses nothing.
    ///
    /// # Errors
    /// When the source has ended, which it must not.
    pub(crate) async fn next(&mut self) -> io::Result<SourceUpdate> {
        match &mut self.updates {
            Updates::Manifests(updates, task) => tokio::select! {
                Some(update) = updates.recv() => Ok(update),
                ended = task => Err(match ended {
                    Ok(Err(error)) => error,
                    Ok(Ok(())) => io::ErrorKind::UnexpectedEof.into(),
                    Err(error) => io::Error::other(error),
                }),
            },
            Updates::Api(updates) => {
                let update = updates.recv().await.ok_or(io::ErrorKind::UnexpectedEof)?;
                Ok(self.with_shown_health(update))
            }
            Updates::Awaited(usable) => {
                let connection = usable.await.map_err(io::Error::other)?;
                self.connect(connection)?;
                Ok(SourceUpdate { health: Some(self.shown_health()), ..SourceUpdate::default() })
            }
        }
    }

    fn with_shown_health(&mut self, mut update: SourceUpdate) -> SourceUpdate {
        let snapshot_ends = update.synced && self.snapshot.take().is_some();
        let changed = update.health.is_some();
        if let Some(health) = update.health {
            self.health = health;
        }
        update.health = (changed || snapshot_ends).then(|| self.shown_health());
        update
    }

    fn shown_health(&self) -> Result<(), String> {
        match (&self.snapshot, &self.health) {
            (Some(taken), Err(why)) => Err(format!("serving from the snapshot of {taken}: {why}")),
            (Some(taken), Ok(())) => Err(format!(
                "serving from the snapshot of {taken}: waiting for the initial list of the API server"
            )),
            (None, health) => health.clone(),
        }
    }
}

/// Retries until the credentials are usable; logs when the reason why they are not changes.
async fn await_credentials(
    credentials: Credentials,
    servers: Vec<Uri>,
    mut logged: String,
    usable: oneshot::Sender<Connection>,
) {
    loop {
        tokio::time::sleep(RETRY).await;
        match Connection::open(credentials.clone(), servers.clone()).await {
            // Nobody waits any more while the process ends.
            Ok(connection) => return drop(usable.send(connection)),
            Err(why) if why != logged => {
                warn!("{why}; serving from the snapshot until they can be used");
                logged = why;
            }
            Err(_) => {}
        }
    }
}
