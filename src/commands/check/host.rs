//! What is read from a host: its files, below a root directory that tests replace, and its
//! interfaces.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::config::Settings;
use crate::engine::uplinks;
use crate::engine::uplinks::{NotUplink, Uplinks};
use crate::model::{Family, Interface, Interfaces};

/// A host. A file that cannot be read counts as absent.
pub struct Host {
    root: PathBuf,
    interfaces: Interfaces,
    uplinks: Uplinks,
}

impl Host {
    /// The host whose files are below `root`. Which of the interfaces are uplinks is decided by the
    /// daemon's rule; only the node's podCIDRs and addresses, which its Node object tells, are not
    /// known here.
    pub fn new(root: &Path, interfaces: Interfaces, settings: &Settings) -> Host {
        let uplinks =
            uplinks::by_settings(&interfaces, None, &settings.pools, &settings.interfaces);
        Host { root: root.to_path_buf(), interfaces, uplinks }
    }

    /// A file's text; procfs text need not be UTF-8.
    pub(super) fn read(&self, path: &str) -> Option<String> {
        std::fs::read(self.root.join(path))
            .ok()
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }

    /// Names in a directory.
    pub(super) fn list(&self, path: &str) -> BTreeSet<String> {
        let entries = std::fs::read_dir(self.root.join(path)).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// A sysctl by the parts of its name, for an interface's name may contain dots: `["net",
    /// "ipv4", "conf", "eth0.10", "rp_filter"]`.
    pub(super) fn sysctl(&self, parts: &[&str]) -> Option<i64> {
        self.read(&format!("proc/sys/{}", parts.join("/")))?.trim().parse().ok()
    }

    /// Names of running programs (at most 15 characters, as the kernel keeps them), each with its
    /// command line, words separated by spaces.
    pub(super) fn processes(&self) -> BTreeSet<(String, String)> {
        let is_process = |name: &String| name.bytes().all(|b| b.is_ascii_digit());
        let processes = self.list("proc").into_iter().filter(is_process).filter_map(|pid| {
            let name = self.read(&format!("proc/{pid}/comm"))?.trim().to_string();
            let command =
                self.read(&format!("proc/{pid}/cmdline")).unwrap_or_default().replace('\0', " ");
            Some((name, command))
        });
        processes.collect()
    }

    pub(super) fn interfaces(&self) -> &Interfaces {
        &self.interfaces
    }

    pub(super) fn has_interface(&self, name: &str) -> bool {
        self.interfaces.values().any(|interface| &*interface.name == name)
    }

    /// Every interface with the verdict whether it is an uplink.
    pub(super) fn judged(&self) -> impl Iterator<Item = (&Interface, &Result<(), NotUplink>)> {
        self.interfaces
            .values()
            .filter_map(|interface| Some((interface, self.uplinks.get(&interface.index)?)))
    }

    /// Names of the uplinks that have an address of this family, in the order of their indices.
    pub(super) fn uplinks(&self, family: Family) -> Vec<&str> {
        self.judged()
            .filter(|(interface, verdict)| {
                verdict.is_ok()
                    && interface.addresses.iter().any(|a| Family::of(a.addr()) == family)
            })
            .map(|(interface, _)| &*interface.name)
            .collect()
    }

    /// Whether IPv6 can be used at all.
    pub(super) fn ipv6_enabled(&self) -> bool {
        self.exists("proc/net/if_inet6")
            && self.sysctl(&["net", "ipv6", "conf", "all", "disable_ipv6"]) != Some(1)
    }
}
