//! The table: every setting, in the order in which `--help` shows them.

use std::path::PathBuf;
use std::time::Duration;

use super::draft::Draft;
use super::settings::{LogFormat, OnExit};
use super::sources::Given;
use super::{bfd, values};
use crate::ipam::pool::parse_pools;
use crate::model::Mode;

/// What every variable's name begins with.
pub const PREFIX: &str = "PINNACE_";

/// One setting.
pub struct Setting {
    /// Name without the prefix, in capitals; the file's key is the same in lower case.
    pub name: &'static str,
    /// What holds when no source has it.
    pub default: DefaultValue,
    /// Format and unit.
    pub format: &'static str,
    /// One or two sentences.
    pub help: &'static str,
    /// Stores a value that is not empty, or says what would be right: one text per defect.
    pub(super) parse: fn(&mut Draft, &str) -> Result<(), Vec<String>>,
}

/// What holds when no source has a setting.
pub enum DefaultValue {
    /// This value, read by the setting's own parser: what `--help` says is what happens.
    Fixed(&'static str),
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

const SECOND: Duration = Duration::from_secs(1);

/// Every setting.
pub const TABLE: &[Setting] = &[
    Setting {
        name: "CONFIG",
        default: DefaultValue::Computed("none"),
        format: "path",
        help: "A YAML file with these settings as `key: value`, keys in lower case without the prefix (pools, state_dir). The environment overrides it.",
        parse: |_, _| Ok(()), // The command line has opened the file already.
    },
    Setting {
        name: "MANIFESTS",
        default: DefaultValue::Computed("none"),
        format: "path of a directory",
        help: "Serve the Services, EndpointSlices and Nodes in this directory of YAML and JSON files, and follow every change to it.",
        parse: |d, v| store(&mut d.manifests, Ok(PathBuf::from(v))),
    },
    Setting {
        name: "KUBECONFIG",
        default: DefaultValue::Computed(
            "the pod's service account, else what K3s keeps on this host",
        ),
        format: "path",
        help: "Serve the Services of the Kubernetes API with these credentials. The file is read again when it is replaced.",
        parse: |d, v| store(&mut d.kubeconfig, Ok(PathBuf::from(v))),
    },
    Setting {
        name: "API_SERVERS",
        default: DefaultValue::Computed("as the credentials say"),
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
        default: DefaultValue::Computed("kube-system"),
        format: "name of a namespace",
        help: "Namespace of the Lease `pinnace` for leader election: the leader allocates addresses and writes the status of Services. The same on every node.",
        parse: |d, v| store(&mut d.namespace, values::namespace(v)),
    },
    Setting {
        name: "NODE_NAME",
        default: DefaultValue::Computed("the host name"),
        format: "name of a Node",
        help: "This node's name in the cluster: endpoints that carry it are local.",
        parse: |d, v| store(&mut d.node_name, values::node_name(v)),
    },
    Setting {
        name: "STATE_DIR",
        default: DefaultValue::Fixed("/var/lib/pinnace"),
        format: "path of a directory",
        help: "Where allocated addresses, and what the API server last said, are remembered across restarts.",
        parse: |d, v| store(&mut d.state_dir, values::state_dir(v)),
    },
    Setting {
        name: "POOLS",
        default: DefaultValue::Computed("none"),
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
        default: DefaultValue::Fixed("false"),
        format: "true or false",
        help: "Never allocate IPv4 addresses ending in .0 or .255, which some old devices refuse.",
        parse: |d, v| store(&mut d.avoid_buggy_ips, values::boolean(v)),
    },
    Setting {
        name: "MODE",
        default: DefaultValue::Computed("vip with a pool, else node"),
        format: "vip or node",
        help: "Where Services without the annotation pinnace.dev/mode get their address: from a pool, or the nodes' own.",
        parse: |d, v| {
            store(&mut d.mode, values::one_of(v, &[("vip", Mode::Vip), ("node", Mode::Node)]))
        },
    },
    Setting {
        name: "CLASS",
        default: DefaultValue::Fixed("pinnace.dev/pinnace"),
        format: "load balancer class",
        help: "Services with this spec.loadBalancerClass are served.",
        parse: |d, v| store(&mut d.class, values::class(v)),
    },
    Setting {
        name: "DEFAULT_CLASS",
        default: DefaultValue::Fixed("true"),
        format: "true or false",
        help: "Serve Services without a loadBalancerClass too.",
        parse: |d, v| store(&mut d.claim_default, values::boolean(v)),
    },
    Setting {
        name: "INTERFACES",
        default: DefaultValue::Computed("found by their addresses"),
        format: "names or globs, e.g. eth0,wlan*",
        help: "Uplinks: interfaces on which VIPs are announced. Without it every interface in an address's subnet; interfaces of pods and tunnels are never uplinks unless named here.",
        parse: |d, v| {
            d.interfaces = values::interfaces(v)?;
            Ok(())
        },
    },
    Setting {
        name: "PROBE",
        default: DefaultValue::Fixed("1s"),
        format: "duration up to 1m, 0 = off",
        help: "How long a new address is probed for conflicts (address conflict detection, RFC 5227) before it is first announced.",
        parse: |d, v| {
            store(&mut d.probe, values::duration_or_off(v, 10 * SECOND / 1000, 60 * SECOND))
        },
    },
    Setting {
        name: "LISTEN",
        default: DefaultValue::Fixed("127.0.0.1:7466"),
        format: "address:port, or off",
        help: "Where health, metrics and state are served over HTTP.",
        parse: |d, v| store(&mut d.listen, values::listen(v)),
    },
    Setting {
        name: "ON_EXIT",
        default: DefaultValue::Fixed("remove"),
        format: "remove or keep",
        help: "Ruleset handling on SIGTERM. A kept ruleset goes on forwarding until the dead man's switch disarms it.",
        parse: |d, v| {
            store(
                &mut d.on_exit,
                values::one_of(v, &[("remove", OnExit::Remove), ("keep", OnExit::Keep)]),
            )
        },
    },
    Setting {
        name: "DEAD_MAN_TIMEOUT",
        default: DefaultValue::Fixed("15m"),
        format: "duration, 10s to 24h",
        help: "The ruleset disarms itself when Pinnace has not run for this long (dead man's switch).",
        parse: |d, v| store(&mut d.dead_man, values::duration(v, 10 * SECOND, 24 * 3600 * SECOND)),
    },
    Setting {
        name: "ANNOUNCE_INTERVAL",
        default: DefaultValue::Fixed("60s"),
        format: "duration, 1s to 100s",
        help: "How often every owned address is announced again, so that switches do not forget where it is.",
        parse: |d, v| store(&mut d.announce_interval, values::duration(v, SECOND, 100 * SECOND)),
    },
    Setting {
        name: "BFD_INTERVAL",
        default: DefaultValue::Fixed("50ms"),
        format: "duration, 3ms to 1s",
        help: "Transmit interval of BFD between nodes (UDP port 3784). It is raised automatically with many nodes and when packets come late.",
        parse: |d, v| store(&mut d.bfd_interval, bfd::interval(v)),
    },
    Setting {
        name: "BFD_MULTIPLIER",
        default: DefaultValue::Fixed("3"),
        format: "number, 2 to 50",
        help: "Detection multiplier of BFD: after this many missing packets a peer is down, and other nodes take its addresses over.",
        parse: |d, v| store(&mut d.bfd_multiplier, bfd::multiplier(v)),
    },
    Setting {
        name: "SECRET_FILE",
        default: DefaultValue::Computed("none: not authenticated"),
        format: "path",
        help: "A file with a secret of 1 to 20 bytes, the same on every node, that authenticates BFD packets between nodes (Meticulous Keyed SHA1).",
        parse: |d, v| store(&mut d.secret_file, Ok(PathBuf::from(v))),
    },
    Setting {
        name: "LOG",
        default: DefaultValue::Fixed("info"),
        format: "level, or level,module=level",
        help: "What is logged: off, error, warn, info, debug or trace, for all or for single modules (info,pinnace::edge=debug).",
        parse: |d, v| store(&mut d.log, values::log_filter(v)),
    },
    Setting {
        name: "LOG_FORMAT",
        default: DefaultValue::Fixed("human"),
        format: "human or json",
        help: "Format of log lines.",
        parse: |d, v| {
            store(
                &mut d.log_format,
                values::one_of(v, &[("human", LogFormat::Human), ("json", LogFormat::Json)]),
            )
        },
    },
];

/// The fixed defaults, as a source that every other overrides.
pub(super) fn defaults() -> Given {
    let fixed = |setting: &Setting| match setting.default {
        DefaultValue::Fixed(value) => Some((setting.name, (setting.variable(), value.to_string()))),
        DefaultValue::Computed(_) => None,
    };
    TABLE.iter().filter_map(fixed).collect()
}

fn store<T>(slot: &mut Option<T>, value: Result<T, String>) -> Result<(), Vec<String>> {
    *slot = Some(value.map_err(|reason| vec![reason])?);
    Ok(())
}
