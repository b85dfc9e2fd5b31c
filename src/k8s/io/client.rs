//! The connection to the API server. It lives as long as the process, while credentials and servers
//! below it are replaced.
//!
//! A [`kube::Client`] of [`Connection::client`] stays valid: every request goes over the current
//! transport. The transport is replaced when the credentials on disk change (a kubeconfig rewritten
//! by certificate rotation, a token renewed by the kubelet), and when a server does not answer, or
//! only fails, and there is another one. Requests under way end on the transport on which they
//! began; watches begin anew at another server.
//!
//! It speaks HTTP/2: all watches share one TCP connection, and pings detect a frozen server within
//! seconds. A stopped process keeps its TCP connections alive, and bookmarks come only once a minute.
//! Timers are monotonic and do not depend on the system clock.

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

/// Timeout of the TCP and TLS handshakes together: a frozen server still accepts connections.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of the head of an answer. Pings detect a dead server earlier; a slow one takes seconds, not
/// this long.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// A request that is dropped after this long counts as unanswered; sooner, it may have been dropped
/// for another reason.
const SLOW_REQUEST: Duration = Duration::from_secs(5);
/// Idle time before a ping, and its timeout: a frozen server is detected within twice this time.
const PING: Duration = Duration::from_secs(5);
/// Timeout of reads and writes. Over HTTP/1.1 (a proxy in between) there are no pings, and bookmarks
/// come each minute.
const SILENCE: Duration = Duration::from_secs(90);
/// How often the files of the credentials are checked, by a few `stat` calls.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// HTTP/2 flow-control windows of one answer and of the connection, in bytes. With the defaults of
/// some megabytes a whole list would wait here for the engine, which takes its compact form.
const WINDOWS: (u32, u32) = (256 << 10, 512 << 10);
/// Number of 500 in a row that count as a failure of the server; a single one may be about an object.
const MAX_ERRORS: u32 = 5;

type Transport = BoxCloneService<Request<Body>, Response<Incoming>, BoxError>;

/// See the module. Clones are the same connection.
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Shared>,
}

struct Shared {
    credentials: Credentials,
    /// Addresses that replace the server's in the credentials, unless empty.
    overriding: Vec<Uri>,
    state: Mutex<ConnectionState>,
    /// Number of the transport that began with the newest credentials.
    renewed: watch::Sender<u64>,
    /// Number of the transport that began with another server.
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

    /// The current server, for messages.
    pub fn server(&self) -> String {
        let state = self.shared.state();
        state
            .loaded
            .servers
            .get(state.current)
            .map(|uri| uri.to_string().trim_end_matches('/').to_string())
            .unwrap_or_default()
    }

    /// The source of the credentials, for messages.
    pub fn credentials(&self) -> &Credentials {
        &self.shared.credentials
    }

    /// A sentence about a failed request for the resource `what`.
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

    /// What is wrong with the dates of the client certificate, if there is one.
    fn dates(&self) -> Option<String> {
        let user = User::of(&self.shared.state().loaded.config.auth_info).ok()?;
        let (chain, _) = user.identity().ok()??;
        failure::dates(chain.first()?, UnixTime::now())
    }

    /// The namespace of the credentials: in a pod, the pod's own.
    pub fn namespace(&self) -> String {
        self.shared.state().loaded.config.default_namespace.clone()
    }

    /// Changes whenever the credentials are replaced: a failed request may be retried at once.
    pub fn renewals(&self) -> watch::Receiver<u64> {
        self.shared.renewed.subscribe()
    }

    /// Changes whenever another server becomes the current one: a watch at the one before may wait in
    /// vain.
    pub fn switches(&self) -> watch::Receiver<u64> {
        self.shared.switched.subscribe()
    }

    /// Watches the files of the credentials; never returns. Credentials that cannot be used leave the
    /// old ones in use.
    pub async fn follow_credentials(&self) {
        let files = || self.shared.state().loaded.files.clone();
        let mut seen: (Vec<PathBuf>, _) = (files(), stamps(&files()));
        let mut complained: Option<String> = None;
        loop {
            tokio::time::sleep(CHECK_INTERVAL).await;
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
                // The file may be half written: it is read again until it can be used.
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

    /// The transport with this number brought an answer. Its status may mean that the server, or a
    /// proxy before it, is out of order.
    fn answered(&self, number: u64, status: StatusCode) {
        let mut state = self.state();
        if state.number == number && is_server_error(status, &mut state.errors) {
            drop(state);
            self.failed(number, &format!("fails (HTTP {})", status.as_u16()));
        }
    }

    /// The transport with this number brought no usable answer: the next server becomes the current
    /// one, where there is one.
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
                state.current = next;
                state.transport = transport;
                state.number = number + 1;
                state.errors = 0;
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
        let mut inflight = InflightRequest { shared, number, asked: Instant::now(), over: false };
        Box::pin(async move {
            let answer = tokio::time::timeout(ANSWER_TIMEOUT, transport.oneshot(request)).await;
            let answer = answer.unwrap_or_else(|_| {
                Err(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()).into())
            });
            inflight.over = true;
            match &answer {
                Ok(answer) => inflight.shared.answered(number, answer.status()),
                Err(_) => inflight.shared.failed(number, NO_ANSWER),
            }
            answer
        })
    }
}

const NO_ANSWER: &str = "does not answer";

/// A request under way. Requests about the Lease and of the patcher have a shorter timeout than
/// [`ANSWER_TIMEOUT`] and are dropped then.
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

/// Whether the server is out of order: gateways, and servers that start or end, answer 502, 503 and
/// 504. `errors` counts the 500 in a row.
fn is_server_error(status: StatusCode, errors: &mut u32) -> bool {
    *errors = if status == StatusCode::INTERNAL_SERVER_ERROR { *errors + 1 } else { 0 };
    matches!(status.as_u16(), 502..=504) || *errors >= MAX_ERRORS
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
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_read_timeout(Some(SILENCE));
    connector.set_write_timeout(Some(SILENCE));
    let mut http = legacy::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new()).pool_timer(TokioTimer::new());
    http.http2_keep_alive_interval(PING).http2_keep_alive_timeout(PING);
    http.http2_initial_stream_window_size(WINDOWS.0)
        .http2_initial_connection_window_size(WINDOWS.1);
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
