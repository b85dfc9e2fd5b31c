//! Settings while they are being collected.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;

use super::settings::{LogFormat, OnExit, Settings};
use crate::bfd::packet::Key;
use crate::engine::uplinks::InterfacePattern;
use crate::ipam::pool::Pool;
use crate::model::Mode;

/// What the parsers have stored so far; None for what was not given, or refused.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) manifests: Option<PathBuf>,
    pub(super) kubeconfig: Option<PathBuf>,
    pub(super) api_servers: Vec<Uri>,
    pub(super) namespace: Option<Box<str>>,
    pub(super) node_name: Option<Box<str>>,
    pub(super) state_dir: Option<PathBuf>,
    pub(super) pools: Vec<Pool>,
    pub(super) avoid_buggy_ips: Option<bool>,
    pub(super) mode: Option<Mode>,
    pub(super) class: Option<Box<str>>,
    pub(super) claim_default: Option<bool>,
    pub(super) interfaces: Vec<InterfacePattern>,
    pub(super) probe: Option<Duration>,
    pub(super) listen: Option<Option<SocketAddr>>,
    pub(super) on_exit: Option<OnExit>,
    pub(super) dead_man: Option<Duration>,
    pub(super) log: Option<Box<str>>,
    pub(super) log_format: Option<LogFormat>,
    pub(super) announce_interval: Option<Duration>,
    pub(super) bfd_interval: Option<Duration>,
    pub(super) bfd_multiplier: Option<u8>,
    pub(super) secret_file: Option<PathBuf>,
    pub(super) secret: Option<Key>,
}

impl Draft {
    pub(super) fn new() -> Draft {
        Draft::default()
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
