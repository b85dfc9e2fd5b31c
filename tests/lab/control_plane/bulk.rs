//! Many objects at once: what `kubectl` would take minutes for.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use http::{Method, Request};
use kube::Client;
use pinnace::k8s::io::client::Connection;
use pinnace::k8s::io::credentials::Credentials;
use tokio::runtime::Runtime;

use super::super::Namespace;

/// Connections that write at once: as many as keep an API server on a small machine busy.
const CONNECTIONS: u32 = 16;

/// One connection to the API server. It is for the thread that made it: sockets belong to that
/// thread's namespace.
pub struct Api {
    runtime: Runtime,
    client: Client,
}

impl Api {
    /// Connects with the first request.
    pub fn open(kubeconfig: PathBuf) -> Result<Api, String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| e.to_string())?;
        let connection =
            runtime.block_on(Connection::open(Credentials::Kubeconfig(kubeconfig), Vec::new()))?;
        let client = runtime.block_on(async { connection.client() });
        Ok(Api { runtime, client })
    }

    /// One request with JSON, and its answer.
    pub fn send(&self, method: Method, path: &str, body: String) -> Result<String, String> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json")
            .body(body.into_bytes());
        let request = request.map_err(|e| e.to_string())?;
        self.runtime.block_on(self.client.request_text(request)).map_err(|e| format!("{path}: {e}"))
    }
}

/// Creates objects over several connections from a namespace, and says how long that took: for each
/// number below `count`, path and JSON of one object after another.
pub fn create(
    namespace: &Namespace,
    kubeconfig: &Path,
    count: u32,
    objects: impl Fn(u32) -> Vec<(&'static str, String)> + Sync,
) -> Result<Duration, String> {
    let next = AtomicU32::new(0);
    let write_some = |api: Api| -> Result<(), String> {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= count {
                return Ok(());
            }
            for (path, body) in objects(n) {
                api.send(Method::POST, path, body)?;
            }
        }
    };
    let connect = || -> Result<Api, String> {
        let api = Api::open(kubeconfig.into())?;
        api.send(Method::GET, "/version", String::new())?;
        Ok(api)
    };
    namespace.enter(|| {
        let connections: Vec<Api> =
            (0..CONNECTIONS).map(|_| connect()).collect::<Result<_, _>>()?;
        let start = Instant::now();
        std::thread::scope(|scope| {
            let writers: Vec<_> =
                connections.into_iter().map(|api| scope.spawn(|| write_some(api))).collect();
            writers.into_iter().try_for_each(|writer| {
                writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        })?;
        Ok(start.elapsed())
    })
}
