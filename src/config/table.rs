//! The table: every setting, in the order in which `--help` shows them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;

use super::{LogFormat, PREFIX, Settings, bfd, values};
use crate::bfd::packet::Key;
use crate::engine::uplinks::InterfacePattern;
use crate::ipam::pool::{Pool, parse_pools};
use crate::model::Mode;
use crate::model::on_exit::OnExit;

/// One setting.
pub struct Setting {
    /// Name without the prefix, in capitals; the file's key is the same in lower case.
    pub name: &'static str,
    /// What holds when nobody says anything.
    pub default: Default,
    /// Format and unit.
    pub format: &'static str,
    /// What it does, in one or two sentences.
    pub help: &'static str,
    /// Understands a value that is not empty, or says what would be right.
    pub(super) parse: fn(&mut Draft, &str) -> Result<(), Vec<String>>,
}

/// What holds when nobody says anything.
pub enum Default {
    /// This value, read by the setting's own parser: what `--help` says is what happens.
    Is(&'static str),
    /// Depends on something else, described here.
    Computed(&'static str),
}

impl Setting {
    /// The variable's full name.
    pub fn variable(&self) -> String {
        format!("{PREFIX}{}", self.name)
    }

    /// The key in the file.
    pub fn key(&self) -> String {
        self.name.to_ascii_lowercase()
    }
}

/// Settings while they are being collected.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) manifests: Option<PathBuf>,
    kubeconfig: Option<PathBuf>,
    api_servers: Vec<Uri>,
    namespace: Option<Box<str>>,
    pub(super) node_name: Option<Box<str>>,
    state_dir: Option<PathBuf>,
    pub(super) pools: Vec<Pool>,
    avoid_buggy_ips: Option<bool>,
    pub(super) mode: Option<Mode>,
    class: Option<Box<str>>,
    claim_default: Option<bool>,
    interfaces: Vec<InterfacePattern>,
    probe: Option<Duration>,
    listen: Option<Option<SocketAddr>>,
    on_exit: Option<OnExit>,
    dead_man: Option<Duration>,
    log: Option<Box<str>>,
    log_format: Option<LogFormat>,
    announce_interval: Option<Duration>,
    bfd_interval: Option<Duration>,
    bfd_multiplier: Option<u8>,
    pub(super) secret_file: Option<PathBuf>,
    pub(super) secret: Option<Key>,
}

impl Draft {
    pub(super) fn new() -> Draft {
        <Draft as std::default::Default>::default()
    }

    /// None when a setting was refused; the reason has been recorded where it was.
    pub(super) fn finish(self) -> Option<Settings> {
        Some(Settings {
            manifests: self.manifests,
            kubeconfig: self.kubeconfig,
            api_servers: self.api_servers,
            namespace: self.namespace,
            node_name: self.node_name?,
            state_dir: self.state_dir?,
            mode: self.mode.unwrap_or(if self.pools.is_empty() { Mode::Node } else { Mode::Vip }),
            pools: self.pools,
            avoid_buggy_ips: self.avoid_buggy_ips?,
            class: self.class?,
            claim_default: self.claim_default?,
            interfaces: self.interfaces,
            probe: self.probe?,
            listen: self.listen?,
            on_exit: self.on_exit?,
            dead_man: self.dead_man?,
            log: self.log?,
            log_format: self.log_format?,
            announce_interval: self.announce_interval?,
            bfd_interval: self.bfd_interval?,
            bfd_multiplier: self.bfd_multiplier?,
            secret: self.secret,
        })
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// Every setting.
pub const TABLE: &[Setting] = &[
    Setting {
        name: "CONFIG",
        default: Default::Computed("none"),
        format: "path",
        help: "A YAML file with these settings as `key: value`, keys in lower case without the prefix (pools, state_dir). Variables win over it.",
        parse: |_, _| Ok(()), // The command line has opened the file already.
    },
    Setting {
        name: "MANIFESTS",
        default: Default::Computed("none"),
        format: "path of a directory",
        help: "Serve the Services, EndpointSlices and Nodes in this directory of YAML and JSON files, and follow every change to it.",
        parse: |d, v| store(&mut d.manifests, Ok(PathBuf::from(v))),
    },
    Setting {
        name: "KUBECONFIG",
        default: Default::Computed("the pod's service account, else what K3s keeps on this host"),
        format: "path",
        help: "Serve the Services of the Kubernetes API with these credentials. The file is read again when it is replaced.",
        parse: |d, v| store(&mut d.kubeconfig, Ok(PathBuf::from(v))),
    },
    Setting {
        name: "API_SERVERS",
        default: Default::Computed("as the credentials say"),
        format: "URLs separated by commas",
        help: "API servers of the cluster, to use in place of the one the credentials name, in turn when one does not answer or only fails: \
               https://10.0.0.1:6443,https://10.0.0.2:6443",
        parse: |d, v| {
            d.api_servers = values::servers(v)?;
            Ok(())
        },
    },
    Setting {
        name: "NAMESPACE",
        default: Default::Computed("kube-system"),
        format: "name of a namespace",
        help: "Where the Lease `pinnace` is kept, which says which node gives addresses to Services and writes their status. The same on every node.",
        parse: |d, v| store(&mut d.namespace, values::namespace(v)),
    },
    Setting {
        name: "NODE_NAME",
        default: Default::Computed("the host name"),
        format: "name of a Node",
        help: "This node's name in the cluster: endpoints that carry it are local.",
        parse: |d, v| store(&mut d.node_name, values::node_name(v)),
    },
    Setting {
        name: "STATE_DIR",
        default: Default::Is("/var/lib/pinnace"),
        format: "path of a directory",
        help: "Where assigned addresses, and what the API server last said, are remembered across restarts.",
        parse: |d, v| store(&mut d.state_dir, values::state_dir(v)),
    },
    Setting {
        name: "POOLS",
        default: Default::Computed("none"),
        format: "ranges, or name=ranges;name=ranges",
        help: "Addresses for Services. A range is a-b, a CIDR or one address; commas separate ranges. \
               name[ns1,ns2]= admits these namespaces only, name!= serves only Services that ask for the pool.",
        parse: |d, v| match parse_pools(v) {
            Ok(pools) => {
                d.pools = pools;
                Ok(())
            }
            Err(errors) => Err(errors.iter().map(ToString::to_string).collect()),
        },
    },
    Setting {
        name: "AVOID_BUGGY_IPS",
        default: Default::Is("false"),
        format: "true or false",
        help: "Never hand out IPv4 addresses ending in .0 or .255, which some old devices refuse.",
        parse: |d, v| store(&mut d.avoid_buggy_ips, values::boolean(v)),
    },
    Setting {
        name: "MODE",
        default: Default::Computed("vip with a pool, else node"),
        format: "vip or node",
        help: "Where Services without the annotation pinnace.dev/mode get their address: from a pool, or the nodes' own.",
        parse: |d, v| {
            store(&mut d.mode, values::one_of(v, &[("vip", Mode::Vip), ("node", Mode::Node)]))
        },
    },
    Setting {
        name: "CLASS",
        default: Default::Is("pinnace.dev/pinnace"),
        format: "load balancer class",
        help: "Services with this spec.loadBalancerClass are served.",
        parse: |d, v| store(&mut d.class, values::class(v)),
    },
    Setting {
        name: "DEFAULT_CLASS",
        default: Default::Is("true"),
        format: "true or false",
        help: "Serve Services without a loadBalancerClass too.",
        parse: |d, v| store(&mut d.claim_default, values::boolean(v)),
    },
    Setting {
        name: "INTERFACES",
        default: Default::Computed("found by their addresses"),
        format: "names or globs, e.g. eth0,wlan*",
        help: "Uplinks: where clients are. Without it every interface in an address's subnet; interfaces of pods and tunnels are never uplinks unless named here.",
        parse: |d, v| {
            d.interfaces = values::interfaces(v)?;
            Ok(())
        },
    },
    Setting {
        name: "PROBE",
        default: Default::Is("1s"),
        format: "duration up to 1m, 0 = off",
        help: "How long a new address is probed for another holder before it is first announced.",
        parse: |d, v| {
            store(&mut d.probe, values::duration_or_off(v, 10 * SECOND / 1000, 60 * SECOND))
        },
    },
    Setting {
        name: "LISTEN",
        default: Default::Is("127.0.0.1:7466"),
        format: "address:port, or off",
        help: "Where health, metrics and state are served over HTTP.",
        parse: |d, v| store(&mut d.listen, values::listen(v)),
    },
    Setting {
        name: "ON_EXIT",
        default: Default::Is("remove"),
        format: "remove or keep",
        help: "What becomes of the rules at SIGTERM. Kept rules go on forwarding until the dead man's switch disarms them.",
        parse: |d, v| {
            store(
                &mut d.on_exit,
                values::one_of(v, &[("remove", OnExit::Remove), ("keep", OnExit::Keep)]),
            )
        },
    },
    Setting {
        name: "DEAD_MAN_TIMEOUT",
        default: Default::Is("15m"),
        format: "duration, 10s to 24h",
        help: "The rules disarm themselves when Pinnace has been gone for this long.",
        parse: |d, v| store(&mut d.dead_man, values::duration(v, 10 * SECOND, 24 * 3600 * SECOND)),
    },
    Setting {
        name: "ANNOUNCE_INTERVAL",
        default: Default::Is("60s"),
        format: "duration, 1s to 100s",
        help: "How often every owned address is announced again, so that switches do not forget where it is.",
        parse: |d, v| store(&mut d.announce_interval, values::duration(v, SECOND, 100 * SECOND)),
    },
    Setting {
        name: "BFD_INTERVAL",
        default: Default::Is("50ms"),
        format: "duration, 3ms to 1s",
        help: "How often nodes tell each other that they live (BFD, UDP port 3784). With many nodes, or late packets, it grows by itself.",
        parse: |d, v| store(&mut d.bfd_interval, bfd::interval(v)),
    },
    Setting {
        name: "BFD_MULTIPLIER",
        default: Default::Is("3"),
        format: "number, 2 to 50",
        help: "After so many missing packets a node counts as dead, and others take its addresses over.",
        parse: |d, v| store(&mut d.bfd_multiplier, bfd::multiplier(v)),
    },
    Setting {
        name: "SECRET_FILE",
        default: Default::Computed("none: not authenticated"),
        format: "path",
        help: "A file with a secret of 1 to 20 bytes, the same on every node, by which nodes know each other's BFD packets (keyed SHA1).",
        parse: |d, v| store(&mut d.secret_file, Ok(PathBuf::from(v))),
    },
    Setting {
        name: "LOG",
        default: Default::Is("info"),
        format: "level, or level,module=level",
        help: "What is logged: off, error, warn, info, debug or trace, for all or for single modules (info,pinnace::edge=debug).",
        parse: |d, v| store(&mut d.log, values::log_filter(v)),
    },
    Setting {
        name: "LOG_FORMAT",
        default: Default::Is("human"),
        format: "human or json",
        help: "How log lines look.",
        parse: |d, v| {
            store(
                &mut d.log_format,
                values::one_of(v, &[("human", LogFormat::Human), ("json", LogFormat::Json)]),
            )
        },
    },
];

fn store<T>(slot: &mut Option<T>, value: Result<T, String>) -> Result<(), Vec<String>> {
    *slot = Some(value.map_err(|reason| vec![reason])?);
    Ok(())
}
