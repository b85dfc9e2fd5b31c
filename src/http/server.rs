//! Health, metrics and state over HTTP, and the client of `pinnace status`.
//!
//! The server holds no state: it queries the engine through a channel. `/livez` fails when the
//! engine does not answer within [`QUERY_TIMEOUT`].

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::metrics;
use super::metrics::Metrics;
use crate::model::ObjectKey;
use crate::model::state::{Condition, NodeState, ServiceHealth, Summary};

/// How long the engine may take to answer before it counts as hung.
const QUERY_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a client may take to send its request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may last, for one request: a client that does not read would occupy one
/// of [`CONNECTIONS`] for ever.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum number of connections served at once; more wait in the kernel.
const CONNECTIONS: usize = 64;

const PATHS: &str = "/livez /readyz /healthz /metrics /state /services/<namespace>/<name>";

/// A query to the engine, with the channel for its answer.
#[derive(Debug)]
pub enum Query {
    State(oneshot::Sender<NodeState>),
    /// For the metrics.
    Summary(oneshot::Sender<Summary>),
    /// Of readiness.
    Conditions(oneshot::Sender<Vec<Condition>>),
    /// Whether an external load balancer should send traffic to this node; else why not.
    Health(oneshot::Sender<Result<(), String>>),
    /// The health check of one Service; None: unmanaged.
    Service(ObjectKey, oneshot::Sender<Option<ServiceHealth>>),
}

/// `PINNACE_LISTEN` cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}; set PINNACE_LISTEN to another address, or to off")]
pub struct ListenError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

/// Binds the listening socket.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|source| ListenError { address, source })
}

/// Serves requests until the process ends.
pub async fn serve(listener: TcpListener, engine: mpsc::Sender<Query>, metrics: Arc<Metrics>) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, for instance: only waiting helps.
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (engine, metrics) = (engine.clone(), metrics.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| respond(request, &engine, &metrics));
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(16 * 1024)
                .keep_alive(false);
            match timeout(CONNECTION_TIMEOUT, http.serve_connection(TokioIo::new(stream), service))
                .await
            {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(%error, "HTTP connection failed"),
                Err(_) => debug!("HTTP connection timed out"),
            }
            drop(permit);
        });
    }
}

type HttpResponse = Response<Full<Bytes>>;

async fn respond(
    request: Request<Incoming>,
    engine: &mpsc::Sender<Query>,
    metrics: &Metrics,
) -> Result<HttpResponse, Infallible> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return Ok(with(
            text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n"),
            ALLOW,
            "GET, HEAD",
        ));
    }
    let path = request.uri().path();
    let answer = match path {
        "/livez" => live(engine).await,
        "/readyz" => ready(engine).await,
        "/healthz" => healthy(engine).await,
        "/metrics" => {
            if let Some(summary) = ask(engine, Query::Summary).await {
                metrics.engine(&summary);
            }
            with(text(StatusCode::OK, metrics.encode()), CONTENT_TYPE, metrics::CONTENT_TYPE)
        }
        "/state" => match ask(engine, Query::State).await {
            Some(state) => json(StatusCode::OK, serde_json::to_vec(&state).unwrap_or_default()),
            None => unresponsive(),
        },
        _ => match path.strip_prefix("/services/").and_then(|rest| rest.split_once('/')) {
            Some((namespace, name)) => service(engine, ObjectKey::new(namespace, name)).await,
            None => text(StatusCode::NOT_FOUND, format!("no such path; there are: {PATHS}\n")),
        },
    };
    Ok(answer)
}

async fn ask<T>(
    engine: &mpsc::Sender<Query>,
    query: impl FnOnce(oneshot::Sender<T>) -> Query,
) -> Option<T> {
    let (reply, answer) = oneshot::channel();
    timeout(QUERY_TIMEOUT, async {
        engine.send(query(reply)).await.ok()?;
        answer.await.ok()
    })
    .await
    .ok()?
}

async fn live(engine: &mpsc::Sender<Query>) -> HttpResponse {
    match ask(engine, Query::Conditions).await {
        Some(_) => text(StatusCode::OK, "ok\n"),
        None => unresponsive(),
    }
}

async fn ready(engine: &mpsc::Sender<Query>) -> HttpResponse {
    let Some(conditions) = ask(engine, Query::Conditions).await else { return unresponsive() };
    let line = |condition: &Condition| {
        if condition.status {
            format!("[+]{} ok\n", condition.name)
        } else {
            format!("[-]{} {}\n", condition.name, condition.message)
        }
    };
    let ready = conditions.iter().all(|condition| condition.status);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    text(status, conditions.iter().map(line).collect::<String>())
}

async fn healthy(engine: &mpsc::Sender<Query>) -> HttpResponse {
    match ask(engine, Query::Health).await {
        Some(Ok(())) => text(StatusCode::OK, "ok\n"),
        Some(Err(why)) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        None => unresponsive(),
    }
}

/// Answers as kube-proxy does on a healthCheckNodePort.
async fn service(engine: &mpsc::Sender<Query>, key: ObjectKey) -> HttpResponse {
    let health = match ask(engine, |reply| Query::Service(key.clone(), reply)).await {
        Some(Some(health)) => health,
        Some(None) => {
            return text(
                StatusCode::NOT_FOUND,
                format!("no LoadBalancer Service {key} is served here\n"),
            );
        }
        None => return unresponsive(),
    };
    let status =
        if health.local_endpoints > 0 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({
        "service": { "namespace": &*key.namespace, "name": &*key.name },
        "localEndpoints": health.local_endpoints,
        "serviceProxyHealthy": health.proxy_healthy,
    });
    with(
        json(status, body.to_string().into_bytes()),
        HeaderName::from_static("x-content-type-options"),
        "nosniff",
    )
}

fn unresponsive() -> HttpResponse {
    text(StatusCode::SERVICE_UNAVAILABLE, "the engine does not answer\n")
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> HttpResponse {
    answer(status, "text/plain; charset=utf-8", body.into())
}

fn json(status: StatusCode, body: Vec<u8>) -> HttpResponse {
    answer(status, "application/json", body.into())
}

fn answer(status: StatusCode, content_type: &'static str, body: Bytes) -> HttpResponse {
    let mut answer = with(Response::new(Full::new(body)), CONTENT_TYPE, content_type);
    *answer.status_mut() = status;
    answer
}

fn with(mut answer: HttpResponse, name: HeaderName, value: &'static str) -> HttpResponse {
    answer.headers_mut().insert(name, HeaderValue::from_static(value));
    answer
}

/// Why a running daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error(
        "nothing answers on {address} ({source}): pinnace is not running, or PINNACE_LISTEN differs from its setting"
    )]
    Connect {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("{address} did not answer as pinnace does: {reason}")]
    InvalidResponse { address: SocketAddr, reason: String },
}

/// Requests `path` from the daemon that listens on `address`.
pub async fn fetch(address: SocketAddr, path: &str) -> Result<Bytes, FetchError> {
    let connect = timeout(QUERY_TIMEOUT, TcpStream::connect(address))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let stream = connect.map_err(|source| FetchError::Connect { address, source })?;
    let answer = |reason: String| FetchError::InvalidResponse { address, reason };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| answer(e.to_string()))?;
    tokio::spawn(connection);
    let request = Request::get(path)
        .header("host", address.to_string())
        .header("connection", "close")
        .body(Empty::<Bytes>::new());
    let request = request.map_err(|e| answer(e.to_string()))?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        Ok::<_, hyper::Error>((response.status(), response.into_body().collect().await?.to_bytes()))
    };
    match timeout(QUERY_TIMEOUT * 5, exchange).await {
        Ok(Ok((StatusCode::OK, body))) => Ok(body),
        Ok(Ok((status, _))) => Err(answer(format!("status {status}"))),
        Ok(Err(error)) => Err(answer(error.to_string())),
        Err(_) => Err(answer("no answer in time".into())),
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
