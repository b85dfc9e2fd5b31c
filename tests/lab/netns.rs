//! Network namespaces: made by name, entered by a thread, gone when dropped.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Once;
use std::{fs, panic, thread};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where iproute2 keeps named namespaces.
const DIRECTORY: &str = "/run/netns";
/// All names begin with this and the number of the process that made them.
pub const PREFIX: &str = "pnl";

/// One network namespace under `/run/netns`.
pub struct Namespace {
    pub name: String,
    handle: File,
}

impl Namespace {
    /// Makes namespaces with these names, in one go.
    pub fn create(names: &[String]) -> Vec<Namespace> {
        ip(None, &names.iter().map(|name| format!("netns add {name}")).collect::<Vec<_>>());
        names
            .iter()
            .map(|name| Namespace {
                name: name.clone(),
                handle: File::open(Path::new(DIRECTORY).join(name))
                    .expect("a namespace that was just made can be opened"),
            })
            .collect()
    }

    /// Runs `f` in a thread inside the namespace. Sockets opened and processes started there stay
    /// in it; all else comes back unchanged.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            move_into_link_name_space(self.handle.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("root may enter a network namespace");
            f()
        };
        thread::scope(|scope| scope.spawn(inside).join())
            .unwrap_or_else(|cause| panic::resume_unwind(cause))
    }

    /// Runs `ip` commands, one per line, inside the namespace.
    pub fn ip<S: AsRef<str>>(&self, commands: &[S]) {
        ip(Some(&self.name), commands);
    }

    /// Runs a program inside and gives back its standard output; panics with its complaint when it
    /// fails.
    pub fn output(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.enter(|| Command::new(program).args(arguments).output());
        let output =
            output.unwrap_or_else(|error| panic!("{program}: {error} (tests/run installs it)"));
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{program} {} in {}: {}: {complaint}",
            arguments.join(" "),
            self.name,
            output.status
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Writes files below `/proc/sys/net`, as seen from inside.
    pub fn sysctl(&self, values: &[(&str, &str)]) {
        self.enter(|| {
            for (key, value) in values {
                let path = Path::new("/proc/sys/net").join(key);
                fs::write(&path, value)
                    .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            }
        });
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // A failure here must not hide the failure of the test; leftovers are removed by the next
        // run.
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// Runs `ip` commands as one batch and panics with what `ip` says about the first that fails.
pub fn ip<S: AsRef<str>>(namespace: Option<&str>, commands: &[S]) {
    let mut command = Command::new("ip");
    if let Some(namespace) = namespace {
        command.args(["-n", namespace]);
    }
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("`ip` is installed (iproute2)");
    let mut text = String::new();
    for line in commands {
        text.push_str(line.as_ref());
        text.push('\n');
    }
    child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("`ip` reads its commands");
    let output = child.wait_with_output().expect("`ip` ends");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip -n {}:\n{text}{complaint}", namespace.unwrap_or("-"));
}

/// Removes, once, what test processes that are no longer alive left behind: processes inside their
/// namespaces, then the namespaces.
pub fn remove_leftovers() {
    static CLEANED: Once = Once::new();
    CLEANED.call_once(remove_all_leftovers);
}

fn remove_all_leftovers() {
    for entry in fs::read_dir(DIRECTORY).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(owner) =
            name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok())
        else {
            continue;
        };
        if Path::new("/proc").join(owner.to_string()).exists() {
            continue;
        }
        if let Ok(output) = Command::new("ip").args(["netns", "pids", &name]).output() {
            for pid in String::from_utf8_lossy(&output.stdout).split_whitespace() {
                let _ = pid
                    .parse()
                    .ok()
                    .and_then(Pid::from_raw)
                    .map(|pid| kill_process(pid, Signal::KILL));
            }
        }
        let _ = Command::new("ip").args(["netns", "del", &name]).status();
    }
}
