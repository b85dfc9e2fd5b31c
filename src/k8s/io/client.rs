//! The connection to the API server: one for the life of the process, whatever becomes of
//! credentials and servers underneath.
//!
//! A [`kube::Client`] made by [`Connection::client`] stays valid: below it a switch sends every
//! request over the transport in force. The transport is replaced when the credentials on disk are
//! (a kubeconfig rewritten by certificate rotation, a token renewed by the kubelet), and when a
//! server does not answer, or only fails, and there is another. Requests under way end on the
//! transport they began on; watches begin anew at another server.
//!
//! HTTP/2, so that all watches share one TCP connection and its pings tell within seconds when the
//! far side has frozen: a stopped process keeps its TCP connections alive, and bookmarks come only
//! once a minute. Timers are monotonic: stepping the clock changes nothing.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use http::{Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ConfigExt};
use kube::{Client, Config};
use rustls::pki_types::UnixTime;
use tokio::sync::watch;
use tower::util::BoxCloneService;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt};
use tracing::{info, warn};

use super::authorization::Authorization;
use super::credentials::{Credentials, Loaded, stamps};
use super::failure::Failure;
use super::user::User;
use super::{credentials, failure, tls};

/// For TCP and TLS together: a server that is frozen accepts connections all the same.
const CONNECT: Duration = Duration::from_secs(5);
/// For the head of an answer, on top of what pings notice: a server that is merely slow takes
/// seconds, not this long.
const ANSWER: Duration = Duration::from_secs(30);
/// Whoever drops a request after this long has given it up; sooner, it may have been for another
/// reason.
const SLOW_REQUEST: Duration = Duration::from_secs(5);
/// A ping goes out when nothing was heard for this long, and is waited for as long: a frozen server
/// is noticed within twice this time.
const PING: Duration = Duration::from_secs(5);
/// Over HTTP/1.1 (a proxy in between) there are no pings; bookmarks come each minute.
const SILENCE: Duration = Duration::from_secs(90);
/// How often the files behind the credentials are looked at: a few `stat` calls.
const LOOK: Duration = Duration::from_secs(2);

/// How far a server may run ahead of whoever reads, in bytes, for one answer and for all: with the
/// defaults of some megabytes, a first list would wait here in full size for an engine that takes
/// its compact form.
const AHEAD: (u32, u32) = (256 << 10, 512 << 10);
/// So many 500 in a row are the server's fault; one may be that of the object it is about.
const ERRORS: u32 = 5;

type Transport = BoxCloneService<Request<Body>, Response<Incoming>, BoxError>;

/// See the head of this file. Clones are the same connection.
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Shared>,
}

struct Shared {
    credentials: Credentials,
    /// Addresses that replace what the credentials say.
    overriding: Vec<Uri>,
    state: Mutex<ConnectionState>,
    /// Number of the transport that came with the newest credentials.
    renewed: watch::Sender<u64>,
    /// Number of the transport that came with another server.
    switched: watch::Sender<u64>,
}

struct ConnectionState {
    loaded: Loaded,
    /// Index into the servers.
    current: usize,
    transport: Transport,
    number: u64,
    /// Answers 500 in a row.
    errors: u32,
}

impl Connection {
    /// Reads the credentials; connects with the first request.
    ///
    /// # Errors
    /// A sentence: the credentials cannot be read or understood.
    pub async fn open(credentials: Credentials, servers: Vec<Uri>) -> Result<Connection, String> {
        let loaded = credentials::load(&credentials, &servers).await?;
        let transport = transport(&loaded.config, &loaded.servers[0])
            .map_err(|error| format!("{credentials} cannot be used: {error}"))?;
        let state = ConnectionState { loaded, current: 0, transport, number: 0, errors: 0 };
        Ok(Connection {
            shared: Arc::new(Shared {
                credentials,
                overriding: servers,
                state: Mutex::new(state),
                renewed: watch::Sender::new(0),
                switched: watch::Sender::new(0),
            }),
        })
    }

    /// A client over this connection. To be called within a runtime.
    pub fn client(&self) -> Client {
        let namespace = self.shared.state().loaded.config.default_namespace.clone();
        Client::new(self.clone(), namespace)
    }

    /// The server that is asked now, for messages.
    pub fn server(&self) -> String {
        let state = self.shared.state();
        state
            .loaded
            .servers
            .get(state.current)
            .map(|uri| uri.to_string().trim_end_matches('/').to_string())
            .unwrap_or_default()
    }

    /// Where the credentials come from, for messages.
    pub fn credentials(&self) -> &Credentials {
        &self.shared.credentials
    }

    /// A sentence about a request about `what` that failed.
    pub fn sentence(&self, failure: &Failure, what: &str) -> String {
        let own = (*failure == Failure::Unauthorized)
            .then(|| self.dates())
            .flatten()
            .map(Failure::OwnCertificate);
        own.as_ref().unwrap_or(failure).sentence(
            &self.server(),
            &self.credentials().to_string(),
            what,
        )
    }

    /// What is wrong with the dates of our client certificate, if we have one.
    fn dates(&self) -> Option<String> {
        let user = User::of(&self.shared.state().loaded.config.auth_info).ok()?;
        let (chain, _) = user.identity().ok()??;
        failure::dates(chain.first()?, UnixTime::now())
    }

    /// The namespace of the credentials: in a pod, the pod's own.
    pub fn namespace(&self) -> String {
        self.shared.state().loaded.config.default_namespace.clone()
    }

    /// Changes whenever the credentials were replaced: worth an attempt before the time for it.
    pub fn renewals(&self) -> watch::Receiver<u64> {
        self.shared.renewed.subscribe()
    }

    /// Changes whenever another server is asked from now on: what still hangs on the one before may
    /// wait in vain.
    pub fn switches(&self) -> watch::Receiver<u64> {
        self.shared.switched.subscribe()
    }

    /// Watches the files behind the credentials; never returns. A replacement that cannot be used
    /// leaves the old one in force.
    pub async fn follow_credentials(&self) {
        let files = || self.shared.state().loaded.files.clone();
        let mut seen: (Vec<PathBuf>, _) = (files(), stamps(&files()));
        let mut complained: Option<String> = None;
        loop {
            tokio::time::sleep(LOOK).await;
            let now = (files(), stamps(&files()));
            if now == seen {
                continue;
            }
            match self.reload().await {
                Ok(()) => {
                    info!(credentials = %self.shared.credentials, "the credentials were replaced; using the new ones");
                    complained = None;
                    seen = (files(), now.1);
                    if seen.0 != now.0 {
                        seen.1 = stamps(&seen.0);
                    }
                }
                // It may be half written: it is tried again until it is right.
                Err(error) if complained.as_ref() != Some(&error) => {
                    warn!("{error}; going on with the credentials from before");
                    complained = Some(error);
                }
                Err(_) => {}
            }
        }
    }

    async fn reload(&self) -> Result<(), String> {
        let loaded = credentials::load(&self.shared.credentials, &self.shared.overriding).await?;
        let mut state = self.shared.state();
        let server = state.loaded.servers.get(state.current).cloned();
        let current =
            loaded.servers.iter().position(|uri| Some(uri) == server.as_ref()).unwrap_or(0);
        let transport = transport(&loaded.config, &loaded.servers[current])
            .map_err(|error| format!("{} cannot be used: {error}", self.shared.credentials))?;
        *state =
            ConnectionState { loaded, current, transport, number: state.number + 1, errors: 0 };
        self.shared.renewed.send_replace(state.number);
        Ok(())
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, ConnectionState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An answer came over the transport with this number. It may say that the server, or what
    /// stands before it, cannot work now.
    fn answered(&self, number: u64, status: StatusCode) {
        let mut state = self.state();
        if state.number == number && is_server_error(status, &mut state.errors) {
            drop(state);
            self.failed(number, &format!("fails (HTTP {})", status.as_u16()));
        }
    }

    /// The transport with this number did not bring an answer that is any use: the next server's
    /// turn, where there is one.
    fn failed(&self, number: u64, why: &str) {
        let mut state = self.state();
        let servers = state.loaded.servers.len();
        if state.number != number || servers < 2 {
            return;
        }
        let next = (state.current + 1) % servers;
        match transport(&state.loaded.config, &state.loaded.servers[next]) {
            Ok(transport) => {
                warn!(server = %state.loaded.servers[state.current], next = %state.loaded.servers[next], "the API server {why}; trying the next one");
                (state.current, state.transport, state.number, state.errors) =
                    (next, transport, number + 1, 0);
                self.switched.send_replace(number + 1);
            }
            Err(error) => warn!(%error, "cannot switch to another API server"),
        }
    }
}

impl Service<Request<Body>> for Connection {
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let shared = self.shared.clone();
        let (transport, number) = {
            let state = shared.state();
            (state.transport.clone(), state.number)
        };
        let mut question = InflightRequest { shared, number, asked: Instant::now(), over: false };
        Box::pin(async move {
            let answer = tokio::time::timeout(ANSWER, transport.oneshot(request)).await;
            let answer = answer
                .unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWER.as_secs()).into()));
            question.over = true;
            match &answer {
                Ok(answer) => question.shared.answered(number, answer.status()),
                Err(_) => question.shared.failed(number, NO_ANSWER),
            }
            answer
        })
    }
}

const NO_ANSWER: &str = "does not answer";

/// A request under way. Who asks for the Lease, or writes a status, has less patience than
/// [`ANSWER`] and drops it.
struct InflightRequest {
    shared: Arc<Shared>,
    number: u64,
    asked: Instant,
    over: bool,
}

impl Drop for InflightRequest {
    fn drop(&mut self) {
        if !self.over && self.asked.elapsed() >= SLOW_REQUEST {
            self.shared.failed(self.number, NO_ANSWER);
        }
    }
}

/// 502, 503 and 504 are what gateways, and servers that start or end, answer. `errors` counts the
/// 500 in a row.
fn is_server_error(status: StatusCode, errors: &mut u32) -> bool {
    *errors = if status == StatusCode::INTERNAL_SERVER_ERROR { *errors + 1 } else { 0 };
    matches!(status.as_u16(), 502..=504) || *errors >= ERRORS
}

fn transport(config: &Config, server: &Uri) -> Result<Transport, BoxError> {
    let mut config = config.clone();
    config.cluster_url = server.clone();
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(3 * PING));
    tcp.set_tcp_user_timeout(Some(3 * PING));
    let user = User::of(&config.auth_info)?;
    let mut tls = HttpsConnectorBuilder::new()
        .with_tls_config(tls::client_config(&config, &user)?)
        .https_or_http();
    if let Some(name) = &config.tls_server_name {
        tls = tls.with_server_name_resolver(FixedServerNameResolver::new(name.clone().try_into()?));
    }
    let mut connector =
        TimeoutConnector::new(tls.enable_http1().enable_http2().wrap_connector(tcp));
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_read_timeout(Some(SILENCE));
    connector.set_write_timeout(Some(SILENCE));
    let mut http = legacy::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new()).pool_timer(TokioTimer::new());
    http.http2_keep_alive_interval(PING).http2_keep_alive_timeout(PING);
    http.http2_initial_stream_window_size(AHEAD.0).http2_initial_connection_window_size(AHEAD.1);
    let authorization = Authorization::of(&user)?;
    let stack = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .map_request(move |request| authorization.apply(request))
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http.build::<_, Body>(connector));
    Ok(BoxCloneService::new(stack.map_err(BoxError::from)))
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
