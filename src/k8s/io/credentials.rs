//! The credentials for the API server: which ones are used, where they are, and whether they were
//! replaced.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{env, fmt, fs};

use http::Uri;
use kube::Config;
use kube::config::{AuthInfo, Cluster, KubeConfigOptions, Kubeconfig};

/// Where K3s keeps credentials: those of the administrator on a server, and on every node those of
/// kube-proxy, which may only read.
pub const K3S_KUBECONFIGS: [&str; 2] =
    ["/etc/rancher/k3s/k3s.yaml", "/var/lib/rancher/k3s/agent/kubeproxy.kubeconfig"];
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Where the credentials come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// `PINNACE_KUBECONFIG`.
    Kubeconfig(PathBuf),
    /// The service account of this pod.
    ServiceAccount,
    /// Found on a K3s host; no setting names them.
    Found(PathBuf),
}

impl fmt::Display for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credentials::Kubeconfig(path) | Credentials::Found(path) => {
                write!(f, "{}", path.display())
            }
            Credentials::ServiceAccount => f.write_str("the pod's service account"),
        }
    }
}

/// There is neither an API server nor a directory of manifests to serve from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no service source configured: set PINNACE_KUBECONFIG to a kubeconfig, or run in a pod with a service account, or on a K3s host as root ({}{}), \
     or set PINNACE_MANIFESTS to a directory of manifests",
    K3S_KUBECONFIGS.join(", "),
    unreadable.as_ref().map(|path| format!("; {} is here but cannot be read", path.display())).unwrap_or_default()
)]
pub struct NoCredentials {
    /// A kubeconfig that exists but cannot be read.
    pub unreadable: Option<PathBuf>,
}

/// Chooses the kubeconfig that a setting names, else the pod's service account, else what K3s keeps
/// below `root` (`/` but for tests).
///
/// # Errors
/// There is none of them.
pub fn choose(
    kubeconfig: Option<&Path>,
    in_pod: bool,
    root: &Path,
) -> Result<Credentials, NoCredentials> {
    if let Some(path) = kubeconfig {
        return Ok(Credentials::Kubeconfig(path.to_path_buf()));
    }
    if in_pod {
        return Ok(Credentials::ServiceAccount);
    }
    let mut unreadable = None;
    for name in K3S_KUBECONFIGS {
        let path = root.join(name.trim_start_matches('/'));
        match fs::File::open(&path) {
            Ok(_) => return Ok(Credentials::Found(path)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(_) => unreadable = unreadable.or(Some(path)),
        }
    }
    Err(NoCredentials { unreadable })
}

/// Whether this is a pod with a service account: the kubelet sets the variable in every pod, and
/// mounts the account's token unless automountServiceAccountToken is off.
pub fn in_pod() -> bool {
    env::var_os("KUBERNETES_SERVICE_HOST").is_some()
        && Path::new(SERVICE_ACCOUNT).join("token").exists()
}

/// Credentials as read.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// For the first of `servers`.
    pub config: Config,
    /// Addresses of API servers, tried in turn. There is at least one.
    pub servers: Vec<Uri>,
    /// All files that were read. When one of them changes, all are read again.
    pub files: Vec<PathBuf>,
}

/// Reads the credentials. `servers` replaces the server's address in them, unless it is empty.
///
/// # Errors
/// A sentence that names the file and what is wrong with it.
pub async fn load(credentials: &Credentials, servers: &[Uri]) -> Result<Loaded, String> {
    let mut loaded = match credentials {
        Credentials::ServiceAccount => service_account()?,
        Credentials::Kubeconfig(path) | Credentials::Found(path) => {
            kubeconfig(path).await.map_err(|reason| {
                format!("the kubeconfig {} cannot be used: {reason}", path.display())
            })?
        }
    };
    if let Some(first) = servers.first() {
        loaded.config.cluster_url = first.clone();
        loaded.servers = servers.to_vec();
    }
    Ok(loaded)
}

fn service_account() -> Result<Loaded, String> {
    let config = Config::incluster()
        .map_err(|error| format!("the pod's service account cannot be used: {error}"))?;
    let files = ["token", "ca.crt"].map(|name| Path::new(SERVICE_ACCOUNT).join(name)).to_vec();
    Ok(Loaded { servers: vec![config.cluster_url.clone()], config, files })
}

async fn kubeconfig(path: &Path) -> Result<Loaded, String> {
    let kubeconfig = Kubeconfig::read_from(path).map_err(|error| error.to_string())?;
    let mut files = vec![path.to_path_buf()];
    if let Some((cluster, user)) = current(&kubeconfig) {
        if let Some(plugin) = plugin(user) {
            return Err(plugin_refusal(&kubeconfig, &plugin));
        }
        let named = [
            &cluster.certificate_authority,
            &user.client_certificate,
            &user.client_key,
            &user.token_file,
        ];
        files.extend(named.into_iter().flatten().map(PathBuf::from));
    }
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|error| error.to_string())?;
    // The file's other clusters are not used as further servers, even under the same authority: they
    // must neither see this cluster's token nor replace its objects.
    Ok(Loaded { servers: vec![config.cluster_url.clone()], config, files })
}

/// The program that the user logs in by, if any.
fn plugin(user: &AuthInfo) -> Option<String> {
    let exec = user
        .exec
        .as_ref()
        .map(|exec| format!("exec plugin {:?}", exec.command.as_deref().unwrap_or_default()));
    exec.or_else(|| {
        user.auth_provider.as_ref().map(|provider| format!("auth provider {:?}", provider.name))
    })
}

/// A sentence's end: which user has to change, and how.
fn plugin_refusal(kubeconfig: &Kubeconfig, plugin: &str) -> String {
    let context = kubeconfig.current_context.as_deref().unwrap_or_default();
    let user = kubeconfig
        .contexts
        .iter()
        .find(|named| named.name == context)
        .and_then(|named| named.context.as_ref()?.user.as_deref())
        .unwrap_or_default();
    format!(
        "user {user:?} of its context {context:?} logs in by the {plugin}, and Pinnace starts no programs; \
         give that user a token, a tokenFile or a client-certificate with its client-key \
         (kubectl create token makes a token of a ServiceAccount)"
    )
}

/// Cluster and user of the current context.
fn current(kubeconfig: &Kubeconfig) -> Option<(&Cluster, &AuthInfo)> {
    let wanted = kubeconfig.current_context.as_deref()?;
    let context =
        kubeconfig.contexts.iter().find(|named| named.name == wanted)?.context.as_ref()?;
    let cluster =
        kubeconfig.clusters.iter().find(|named| named.name == context.cluster)?.cluster.as_ref()?;
    let user = kubeconfig
        .auth_infos
        .iter()
        .find(|named| Some(&named.name) == context.user.as_ref())?
        .auth_info
        .as_ref()?;
    Some((cluster, user))
}

/// Inode, length and time of modification (seconds, nanoseconds) of a file, which tell its versions
/// apart; None while it does not exist. Links are followed: mounted Secrets are links.
pub type Stamp = Option<(u64, u64, i64, i64)>;

/// The stamps of `files`, in their order.
pub fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |path: &PathBuf| {
        fs::metadata(path).ok().map(|m| (m.ino(), m.len(), m.mtime(), m.mtime_nsec()))
    };
    files.iter().map(stamp).collect()
}

#[cfg(test)]
#[path = "credentials_tests.rs"]
mod tests;
