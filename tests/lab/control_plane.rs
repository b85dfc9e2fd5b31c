//! A real Kubernetes control plane: etcd, kube-apiserver, kube-controller-manager, kube-scheduler
//! when asked, and before the API server a proxy that fails on command (`tests/control-plane`).
//! Everything is gone when it is dropped, and when the test process is killed.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;
use std::{env, fs, thread};

use pinnace::model::Family;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{Host, Namespace, patient};

mod audit;
mod bulk;
mod objects;
mod process;

pub use audit::{Mark, Request};
pub use bulk::{Api, create};
pub use objects::{KubeProxy, ProxyMode};

/// How long anything of the control plane may take that is waited for.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The names of all directories begin with this and the number of the process that made them.
const PREFIX: &str = "pncp";
/// Sets the control planes of one process apart.
static COUNT: AtomicU32 = AtomicU32::new(1);

/// A program of the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    Etcd,
    ApiServer,
    ControllerManager,
    Scheduler,
    /// The proxy that fails on command.
    Faults,
}

impl Component {
    fn name(self) -> &'static str {
        match self {
            Component::Etcd => "etcd",
            Component::ApiServer => "kube-apiserver",
            Component::ControllerManager => "kube-controller-manager",
            Component::Scheduler => "kube-scheduler",
            Component::Faults => "faults",
        }
    }
}

/// Where it listens and what it is made of.
pub struct Options {
    namespace: Option<Arc<Namespace>>,
    address: IpAddr,
    flags: Vec<String>,
    arguments: Vec<(Component, String)>,
    components: Vec<Component>,
}

impl Options {
    /// On 127.0.0.1 of the tester's own machine.
    pub fn loopback() -> Options {
        let components = vec![
            Component::Etcd,
            Component::ApiServer,
            Component::Faults,
            Component::ControllerManager,
        ];
        Options {
            namespace: None,
            address: Ipv4Addr::LOCALHOST.into(),
            flags: Vec::new(),
            arguments: Vec::new(),
            components,
        }
    }

    /// On a machine of a lab, at its IPv4 address, for every other machine there.
    pub fn on(host: &Host) -> Options {
        Options {
            namespace: Some(host.ns.clone()),
            address: host.address(Family::V4),
            ..Options::loopback()
        }
    }

    /// With kube-scheduler: pods without a Node get one.
    pub fn with_scheduler(mut self) -> Options {
        self.components.push(Component::Scheduler);
        self
    }

    /// Without kube-controller-manager: quicker, for tests that write slices themselves.
    pub fn without_controllers(mut self) -> Options {
        self.components.retain(|component| *component != Component::ControllerManager);
        self
    }

    /// One more flag of `prepare`, like `--node-grace-period=4s`.
    pub fn flag(mut self, flag: &str) -> Options {
        self.flags.push(flag.to_owned());
        self
    }

    /// One more argument of a component.
    pub fn argument(mut self, component: Component, argument: &str) -> Options {
        self.arguments.push((component, argument.to_owned()));
        self
    }
}

/// A running control plane.
pub struct ControlPlane {
    // Dropped in this order: the programs go before what started them.
    running: BTreeMap<Component, process::Process>,
    nursery: process::Nursery,
    directory: PathBuf,
    program: PathBuf,
}

impl ControlPlane {
    /// Starts it and waits until all of it can be used.
    pub fn start(options: Options) -> ControlPlane {
        let program = process::program();
        static CLEANED: Once = Once::new();
        CLEANED.call_once(remove_leftovers);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        // Short, as there are sockets in it, whose paths have a hundred bytes.
        let directory = env::temp_dir().join(format!("{PREFIX}{}-{number}", std::process::id()));
        let nursery = process::Nursery::new(options.namespace);
        let mut plane = ControlPlane { running: BTreeMap::new(), nursery, directory, program };
        let mut prepare = Command::new(&plane.program);
        prepare
            .args(["prepare", &format!("--address={}", options.address)])
            .args(&options.flags)
            .arg(&plane.directory);
        expect("prepare", &plane.nursery.output(prepare, ""));
        for (component, argument) in options.arguments {
            plane.add_argument(component, &argument);
        }
        for component in options.components {
            plane.resume(component);
        }
        plane.apply(concat!(
            include_str!("../control-plane/rbac.yaml"),
            "---\n",
            include_str!("../control-plane/rbac-elsewhere.yaml")
        ));
        plane
    }

    /// Starts a component that was stopped, over the same data, and waits until it can be used.
    pub fn resume(&mut self, component: Component) {
        let name = component.name();
        let arguments = fs::read_to_string(self.directory.join(format!("{name}.arguments")))
            .expect("prepared arguments");
        let mut command = Command::new(&self.program);
        command.arg(name).args(arguments.lines()).env("HOME", &self.directory);
        let started = self.nursery.start(command, &self.directory.join(format!("{name}.log")));
        let mut ready = Command::new(&self.program);
        ready.arg("ready").arg(&self.directory).args([name, &started.id().to_string()]);
        let output = self.nursery.output(ready, "");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{complaint}\n{}", started.last_words());
        self.running.insert(component, started);
    }

    /// One more argument for a component, from its next start on.
    pub fn add_argument(&self, component: Component, argument: &str) {
        let path = self.directory.join(format!("{}.arguments", component.name()));
        let arguments = fs::read_to_string(&path).expect("prepared arguments");
        fs::write(path, format!("{arguments}{argument}\n")).expect("a writable file");
    }

    /// `kill -9`: connections end at once, data stays.
    pub fn stop(&mut self, component: Component) {
        drop(self.running.remove(&component).expect("it runs"));
    }

    /// SIGSTOP: connections stay, nothing answers.
    pub fn freeze(&self, component: Component) {
        self.running[&component].signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn thaw(&self, component: Component) {
        self.running[&component].signal(Signal::CONT);
    }

    /// What the proxy does from now on with those who come through it: `pass`, `delay SECONDS`,
    /// `status CODE`, `freeze`, `refuse`, `expired`; or once: `cut`.
    pub fn faults(&self, command: &str) {
        let mut stream =
            UnixStream::connect(self.directory.join("faults.sock")).expect("the proxy listens");
        stream.set_read_timeout(Some(patient(PATIENCE))).expect("a timeout");
        writeln!(stream, "{command}").expect("the proxy reads");
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).expect("the proxy answers");
        assert_eq!(answer.trim(), "ok", "faults: {command}");
    }

    /// Where its files are: `tokens.csv`, `ca.crt`, logs.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Credentials: `admin`, `pinnace` (what rbac.yaml grants), `read-only` (as K3s gives its
    /// kube-proxy), `nobody` (no rights).
    pub fn kubeconfig(&self, identity: &str) -> PathBuf {
        let path = self.directory.join(format!("{identity}.kubeconfig"));
        assert!(path.exists(), "nobody is called {identity}");
        path
    }

    /// The same, through the proxy that fails on command.
    pub fn kubeconfig_with_faults(&self, identity: &str) -> PathBuf {
        self.kubeconfig(&format!("{identity}-faults"))
    }

    /// Its URL, as in the kubeconfigs.
    pub fn url(&self) -> String {
        let text = fs::read_to_string(self.kubeconfig("admin")).expect("a kubeconfig");
        let rest = text.split_once("server: \"").expect("it names the server").1;
        rest.split('"').next().expect("a closing quote").to_owned()
    }

    /// `kubectl` as administrator; panics with its complaint.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.kubectl_reading(arguments, "")
    }

    /// `kubectl apply` of YAML or JSON.
    pub fn apply(&self, text: &str) {
        self.kubectl_reading(&["apply", "-f", "-"], text);
    }

    /// `kubectl create` of YAML or JSON: quicker than [`ControlPlane::apply`] for many objects that
    /// do not exist yet.
    pub fn create(&self, text: &str) {
        self.kubectl_reading(&["create", "-f", "-"], text);
    }

    /// `kubectl get … -o json`.
    pub fn get_json(&self, arguments: &[&str]) -> Value {
        let text = self.kubectl(&[&["get", "-o", "json"], arguments].concat());
        serde_json::from_str(&text).expect("kubectl prints JSON")
    }

    /// Replaces fields of the status of an object (strategic merge; in `default` when it has a
    /// namespace).
    pub fn patch_status(&self, kind: &str, name: &str, status: &Value) {
        self.kubectl(&[
            "patch",
            kind,
            name,
            "--subresource=status",
            "-p",
            &json!({ "status": status }).to_string(),
        ]);
    }

    fn kubectl_reading(&self, arguments: &[&str], input: &str) -> String {
        let mut command = Command::new(&self.program);
        command
            .arg("kubectl")
            .arg("--kubeconfig")
            .arg(self.kubeconfig("admin"))
            .args(arguments)
            .env("HOME", &self.directory);
        let output = self.nursery.output(command, input);
        expect(&format!("kubectl {}", arguments.join(" ")), &output);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Now, in the audit log.
    pub fn mark(&self) -> Mark {
        Mark(fs::metadata(self.audit_log()).map_or(0, |file| file.len()))
    }

    /// All requests since then. One is written down after its answer was sent: wait for what you
    /// expect.
    pub fn requests(&self, since: Mark) -> Vec<Request> {
        audit::requests(&self.audit_log(), since)
    }

    /// How many requests a user made since then, like `("system:kube-proxy", "watch", "services")`.
    pub fn count(&self, since: Mark, user: &str, verb: &str, resource: &str) -> usize {
        let matches = |request: &&Request| {
            request.user == user && request.verb == verb && request.resource == resource
        };
        self.requests(since).iter().filter(matches).count()
    }

    fn audit_log(&self) -> PathBuf {
        self.directory.join("audit.log")
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        // Clients of the API server first, etcd last, each waited for.
        while let Some((component, process)) = self.running.pop_last() {
            if thread::panicking() {
                eprintln!(
                    "--- end of the log of {} ---\n{}",
                    component.name(),
                    process.last_words()
                );
            }
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Removes the directories of test processes that were killed; their programs ended with them.
fn remove_leftovers() {
    for entry in fs::read_dir(env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner =
            name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|owner| !Path::new("/proc").join(owner.to_string()).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn expect(what: &str, output: &std::process::Output) {
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
}
