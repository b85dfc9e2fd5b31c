//! The program under test: started in a node's namespace as a user would, questioned through its
//! own commands and ports.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pinnace::model::Family;
use rustix::process::{Pid, Signal, kill_process};

use super::netns::Namespace;
use super::wall_clock::WallClock;
use super::{Halted, Host, Lab, ensure, eventually, patient};

/// How long Pinnace may take for anything a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// The same where an API server must first be missed, or found again.
const API_PATIENCE: Duration = Duration::from_secs(40);
const LISTEN: &str = "127.0.0.1:7466";

/// Settings and surroundings of one Pinnace.
#[derive(Clone)]
pub struct Pinnace {
    ns: Arc<Namespace>,
    directory: PathBuf,
    variables: BTreeMap<String, String>,
    read: bool,
    account: Option<PathBuf>,
    clock: Option<WallClock>,
    wrapper: &'static [&'static str],
}

/// Puts a directory where a kubelet mounts the service account, in a mount namespace of the
/// program's own.
const IN_POD: &str = "mount -t tmpfs none /run && mkdir -p /run/secrets/kubernetes.io && \
    ln -s \"$1\" /run/secrets/kubernetes.io/serviceaccount && shift && exec \"$@\"";

impl Pinnace {
    pub(super) fn new(lab: &Lab) -> Pinnace {
        Pinnace::on(&lab.node, lab.directory(), &lab.directory().join("manifests"))
    }

    /// On a node, with its log and state in one directory and the manifests in another.
    pub(super) fn on(node: &Host, directory: &Path, manifests: &Path) -> Pinnace {
        let variables = [
            ("PINNACE_MANIFESTS", manifests.to_string_lossy().into_owned()),
            ("PINNACE_STATE_DIR", directory.join("state").to_string_lossy().into_owned()),
            ("PINNACE_NODE_NAME", node.name.clone()),
            ("PINNACE_POOLS", "10.88.0.200-10.88.0.220,fd88::200-fd88::220".to_owned()),
            // Nobody else is on this LAN, so the question whether an address is free need not be
            // asked; one test asks it.
            ("PINNACE_PROBE", "0".to_owned()),
            ("PINNACE_LISTEN", LISTEN.to_owned()),
            ("PINNACE_LOG", "info".to_owned()),
        ];
        let variables =
            variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Pinnace {
            ns: node.ns.clone(),
            directory: directory.to_owned(),
            variables,
            read: true,
            account: None,
            clock: None,
            wrapper: &[],
        }
    }

    /// Changes one variable.
    pub fn set(mut self, variable: &str, value: impl ToString) -> Pinnace {
        self.variables.insert(variable.to_owned(), value.to_string());
        self
    }

    /// Removes one variable.
    pub fn unset(mut self, variable: &str) -> Pinnace {
        self.variables.remove(variable);
        self
    }

    /// Its standard output and error are pipes that nobody empties.
    pub fn unread(mut self) -> Pinnace {
        self.read = false;
        self
    }

    /// As in a pod: this directory is its service account (`token`, `ca.crt`, `namespace`).
    pub fn with_account(mut self, directory: &Path) -> Pinnace {
        self.account = Some(directory.to_owned());
        self
    }

    /// With a wall clock of its own, for [`Running::step_clock`].
    pub fn with_clock(mut self) -> Pinnace {
        self.clock = Some(WallClock::default());
        self
    }

    /// Root, but it may not put itself ahead of other processes: as in a pod without CAP_SYS_NICE.
    pub fn without_realtime(mut self) -> Pinnace {
        self.wrapper = &[
            "prlimit",
            "--rtprio=0",
            "setpriv",
            "--inh-caps=-sys_nice",
            "--bounding-set=-sys_nice",
        ];
        self
    }

    /// Starts it and does not wait for anything.
    pub fn start(self) -> Running {
        let log = self.directory.join("log");
        let file = File::options().create(true).append(true).open(&log).expect("a log file");
        let errors = file.try_clone().expect("dup");
        let mut command = self.command(&["run"]);
        command.stdin(Stdio::null());
        // The child handle keeps the other ends open, and does not read them.
        let (out, err) =
            if self.read { (file.into(), errors.into()) } else { (Stdio::piped(), Stdio::piped()) };
        command.stdout(out).stderr(err);
        let spawn = || match &self.clock {
            None => command.spawn(),
            Some(clock) => clock.spawn(&mut command),
        };
        let child = self.ns.enter(spawn).expect("start pinnace");
        Running { child, log, pinnace: self }
    }

    /// Starts it and waits until it is ready.
    pub fn start_ready(self) -> Running {
        let mut running = self.start();
        running.wait_ready();
        running
    }

    /// Runs one command to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        self.ns.enter(|| command.stdin(Stdio::null()).output()).expect("run pinnace")
    }

    /// `pinnace status -o json`.
    pub fn status(&self) -> Result<Status, String> {
        let output = self.run(&["status", "-o", "json"]);
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            return Err(format!(
                "status: {}: {text}{}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            ));
        }
        serde_json::from_str(&text)
            .map(Status)
            .map_err(|error| format!("status is not JSON: {error}: {text}"))
    }

    /// Status code and body of a path on the health port.
    pub fn http(&self, path: &str) -> Result<(u16, String), String> {
        let fetch = || -> std::io::Result<String> {
            let address: SocketAddr = LISTEN.parse().expect("an address");
            let mut stream = TcpStream::connect_timeout(&address, patient(Duration::from_secs(1)))?;
            stream.set_read_timeout(Some(patient(Duration::from_secs(2))))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: pinnace\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = self.ns.enter(fetch).map_err(|error| format!("GET {path}: {error}"))?;
        let code = answer.split_whitespace().nth(1).and_then(|code| code.parse().ok());
        let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        code.map(|code| (code, body.to_owned()))
            .ok_or_else(|| format!("GET {path}: not HTTP: {answer:?}"))
    }

    /// `nft` in the node's namespace.
    pub fn nft(&self, arguments: &[&str]) -> String {
        self.ns.output("nft", arguments)
    }

    // A clean environment: only what the test sets, so that nothing of the tester's shell reaches
    // the program.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = match (&self.account, self.wrapper) {
            (None, [program, arguments @ ..]) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(binary());
                command
            }
            (None, []) => Command::new(binary()),
            (Some(account), _) => {
                let mut command = Command::new("unshare");
                command.args(["--mount", "sh", "-c", IN_POD, "sh"]).args([account, &binary()]);
                command
            }
        };
        command
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .envs(&self.variables);
        command
    }
}

/// A started Pinnace; killed when dropped, its log shown when the test fails.
pub struct Running {
    child: Child,
    log: PathBuf,
    pinnace: Pinnace,
}

impl Running {
    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its settings, for asking it.
    pub fn pinnace(&self) -> &Pinnace {
        &self.pinnace
    }

    /// Waits for `/readyz`.
    pub fn wait_ready(&mut self) {
        let deadline = Instant::now() + patient(PATIENCE);
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("pinnace ended instead of getting ready: {status}");
            }
            match self.pinnace.http("/readyz") {
                Ok((200, _)) => return,
                other if Instant::now() > deadline => {
                    panic!("not ready within {PATIENCE:?}: {other:?}")
                }
                _ => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Waits until `status` says that a Service is served.
    pub fn wait_serving(&self, key: &str) {
        self.wait_phase(key, "Serving");
    }

    /// Waits until `status` gives a Service this phase.
    pub fn wait_phase(&self, key: &str, phase: &str) {
        eventually(&format!("{key} is {phase}"), PATIENCE, || {
            let status = self.pinnace.status()?;
            ensure(status.phase(key) == phase, || format!("{}", status.0))
        });
    }

    /// Waits until a reason of a Service (code or message) contains this text.
    pub fn wait_reason(&self, key: &str, text: &str) {
        eventually(&format!("status of {key} says {text:?}"), PATIENCE, || {
            let status = self.pinnace.status()?;
            ensure(status.reasons(key).contains(text), || format!("{}", status.0))
        });
    }

    /// The address of a Service in a family; panics when it has none.
    pub fn address(&self, key: &str, family: Family) -> IpAddr {
        let status = self.pinnace.status().expect("status");
        let addresses = status.addresses(key);
        let found = addresses.iter().find(|address| Family::of(**address) == family);
        *found.unwrap_or_else(|| panic!("{key} has no {family} address: {}", status.0))
    }

    /// Everything it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until the log contains a text.
    pub fn wait_log(&self, text: &str) {
        eventually(&format!("the log says {text:?}"), PATIENCE, || {
            ensure(self.log().contains(text), || "it does not".to_owned())
        });
    }

    /// Waits until `/readyz` says this in the line of the API server, as a condition that is not
    /// met.
    pub fn complains(&self, text: &str) {
        eventually(&format!("/readyz says {text:?}"), API_PATIENCE, || {
            let (code, body) = self.pinnace().http("/readyz")?;
            ensure(
                code == 503
                    && body
                        .lines()
                        .any(|line| line.starts_with("[-]ApiServer") && line.contains(text)),
                || body,
            )
        });
    }

    /// Waits until nothing is wrong any more, the API server last.
    pub fn recovers(&self) {
        eventually("/readyz is content", API_PATIENCE, || {
            let (code, body) = self.pinnace().http("/readyz")?;
            ensure(code == 200 && body.contains("[+]ApiServer ok"), || body)
        });
    }

    /// `kill -9`, and its end.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill pinnace");
        self.child.wait().expect("its end");
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("signal pinnace");
    }

    /// Sets its own wall clock to the right time and this many days.
    pub fn step_clock(&self, days: i64) {
        self.pinnace.clock.as_ref().expect("it has a clock of its own").set(days * 86_400);
    }

    /// Halts one of its threads while the others run.
    pub fn halt(&self, thread: &str) -> Halted {
        Halted::thread(Pid::from_child(&self.child), thread)
    }

    /// SIGTERM, and how it ended.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait_end()
    }

    /// Waits for it to end by itself.
    pub fn wait_end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + patient(PATIENCE);
        loop {
            match self.child.try_wait().expect("wait for pinnace") {
                Some(status) => return status,
                None if Instant::now() > deadline => {
                    panic!("pinnace did not end within {PATIENCE:?}")
                }
                None => thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!(
                "--- log of pinnace ---\n{}--- nft ---\n{}--- end ---",
                self.log(),
                ruleset(&self.pinnace)
            );
        }
    }
}

// While a test is failing a second panic would abort, so nothing here may insist.
fn ruleset(pinnace: &Pinnace) -> String {
    let listed = pinnace.ns.enter(|| Command::new("nft").args(["list", "ruleset"]).output());
    listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

/// What `pinnace status -o json` says.
pub struct Status(pub serde_json::Value);

impl Status {
    /// The entry of a Service; null when it has none.
    pub fn service(&self, key: &str) -> &serde_json::Value {
        let services = self.0["services"].as_array().map(Vec::as_slice).unwrap_or_default();
        services.iter().find(|service| service["key"] == key).unwrap_or(&serde_json::Value::Null)
    }

    /// Its phase; empty when it is not listed.
    pub fn phase(&self, key: &str) -> &str {
        self.service(key)["phase"].as_str().unwrap_or_default()
    }

    /// Its reasons, code and message, one per line.
    pub fn reasons(&self, key: &str) -> String {
        let reasons =
            self.service(key)["reasons"].as_array().map(Vec::as_slice).unwrap_or_default();
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        reasons
            .iter()
            .map(|reason| format!("{}: {}\n", text(&reason["code"]), text(&reason["message"])))
            .collect()
    }

    /// Its addresses.
    pub fn addresses(&self, key: &str) -> Vec<IpAddr> {
        let addresses =
            self.service(key)["addresses"].as_array().map(Vec::as_slice).unwrap_or_default();
        addresses.iter().filter_map(|address| address.as_str()?.parse().ok()).collect()
    }
}

/// The static release binary that users get, or what `PINNACE_BIN` names.
fn binary() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("target/x86_64-unknown-linux-musl/release/pinnace");
    let path = std::env::var_os("PINNACE_BIN").map_or(built, PathBuf::from);
    assert!(
        path.exists(),
        "{} is missing: cargo build --release --target x86_64-unknown-linux-musl",
        path.display()
    );
    path
}
