//! A real etcd and kube-apiserver on the LAN of a lab, at the address of its second client; and servers that only fail.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use pinnace::domain::model::Family;
use rustix::process::{Pid, Signal, kill_process};

use super::lab::{Lab, Namespace, Pinnace, ensure, eventually};

const PORT: u16 = 6443;
const PATIENCE: Duration = Duration::from_secs(60);

/// The control plane of one lab.
pub struct Api {
    ns: Arc<Namespace>,
    address: IpAddr,
    directory: PathBuf,
    etcd: Child,
    server: Option<Child>,
}

impl Api {
    /// Starts both and waits until they serve.
    pub fn start(lab: &Lab) -> Api {
        let directory = lab.directory().join("api");
        fs::create_dir_all(&directory).expect("a directory");
        let (ns, address) = (lab.client2.ns.clone(), lab.client2.address(Family::V4));
        let openssl = ["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out"];
        ns.output("openssl", &[&openssl[..], &[&path(&directory, "sa.key")]].concat());
        let tokens = "admin-token,admin,admin,system:masters\nreader-token,reader,reader\n";
        fs::write(directory.join("tokens.csv"), tokens).expect("a file");
        let etcd = spawn(
            &ns,
            &directory,
            "etcd",
            &[
                "--data-dir",
                &path(&directory, "etcd"),
                "--unsafe-no-fsync",
                "--log-level=warn",
                "--listen-client-urls",
                &format!("unix://{}", path(&directory, "etcd.sock")),
                "--listen-peer-urls",
                &format!("unix://{}", path(&directory, "peer.sock")),
                "--advertise-client-urls",
                "http://localhost:2379",
            ],
        );
        eventually("etcd listens", PATIENCE, || ensure(directory.join("etcd.sock").exists(), || "no socket".to_owned()));
        let mut api = Api { ns, address, directory, etcd, server: None };
        api.resume();
        api
    }

    /// Starts the API server over what etcd holds.
    pub fn resume(&mut self) {
        let file = |name: &str| path(&self.directory, name);
        let arguments = [
            "--etcd-servers".to_owned(),
            format!("unix://{}", file("etcd.sock")),
            "--bind-address=0.0.0.0".to_owned(),
            format!("--advertise-address={}", self.address),
            format!("--secure-port={PORT}"),
            format!("--cert-dir={}", self.directory.display()),
            format!("--token-auth-file={}", file("tokens.csv")),
            "--authorization-mode=RBAC".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={}", file("sa.key")),
            format!("--service-account-signing-key-file={}", file("sa.key")),
            "--service-cluster-ip-range=10.43.0.0/16,fd43::/112".to_owned(),
        ];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.server = Some(spawn(&self.ns, &self.directory, "kube-apiserver", &arguments));
        let url = format!("{}/readyz", self.url());
        eventually("the API server is ready", PATIENCE, || {
            let output = self.ns.enter(|| Command::new("curl").args(["-sfk", "-m", "2", &url]).output()).expect("curl");
            ensure(output.status.success(), || format!("{output:?}"))
        });
    }

    /// `kill -9`.
    pub fn stop(&mut self) {
        let mut server = self.server.take().expect("it runs");
        server.kill().expect("kill the API server");
        server.wait().expect("its end");
    }

    /// SIGSTOP: connections stay, nothing answers.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let server = self.server.as_ref().expect("it runs");
        kill_process(Pid::from_child(server), signal).expect("signal the API server");
    }

    pub fn url(&self) -> String {
        format!("https://{}:{PORT}", self.address)
    }

    /// Writes a kubeconfig, atomically.
    pub fn kubeconfig(&self, name: &str, server: &str, token: &str) -> PathBuf {
        let text = format!(
            "{{apiVersion: v1, kind: Config, current-context: c, contexts: [{{name: c, context: {{cluster: c, user: u}}}}],\n \
             clusters: [{{name: c, cluster: {{server: \"{server}\", certificate-authority: {}}}}}],\n \
             users: [{{name: u, user: {{token: {token}}}}}]}}\n",
            path(&self.directory, "apiserver.crt")
        );
        self.replace(name, &text)
    }

    /// Replaces a file of the lab as a tool for rotation does.
    pub fn replace(&self, name: &str, text: &str) -> PathBuf {
        let (file, beside) = (self.directory.join(name), self.directory.join(format!(".{name}")));
        fs::write(&beside, text).expect("a file");
        fs::rename(&beside, &file).expect("renamed");
        file
    }

    /// Pinnace with the administrator's credentials.
    pub fn pinnace(&self, lab: &Lab) -> Pinnace {
        self.pinnace_with(lab, &self.kubeconfig("admin", &self.url(), "admin-token"))
    }

    /// Pinnace with these credentials.
    pub fn pinnace_with(&self, lab: &Lab, kubeconfig: &Path) -> Pinnace {
        lab.pinnace().unset("PINNACE_MANIFESTS").set("PINNACE_KUBECONFIG", kubeconfig.display())
    }

    /// `kubectl`, with text on its standard input; panics with its complaint.
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> String {
        let kubeconfig = self.kubeconfig("kubectl", &self.url(), "admin-token");
        let output = self.ns.enter(|| {
            let mut command = Command::new("kubectl");
            command.arg("--kubeconfig").arg(&kubeconfig).args(arguments).env("HOME", &self.directory);
            let mut child =
                command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("kubectl is installed");
            child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("kubectl reads");
            child.wait_with_output().expect("its end")
        });
        assert!(output.status.success(), "kubectl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// `kubectl apply` of manifests.
    pub fn apply(&self, text: &str) {
        self.kubectl(&["apply", "-f", "-"], text);
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            let _ = server.kill();
            let _ = server.wait();
        }
        let _ = self.etcd.kill();
        let _ = self.etcd.wait();
    }
}

/// A server that answers every request alike, as an API server in trouble or the proxy before it does.
pub struct Failing {
    answer: Arc<Mutex<String>>,
    pub url: String,
}

impl Failing {
    /// On the LAN, at the address of the lab's second client.
    pub fn start(lab: &Lab, port: u16) -> Failing {
        let address = lab.client2.address(Family::V4);
        let listener = lab.client2.ns.enter(|| TcpListener::bind((address, port))).expect("a free port");
        let answer = Arc::new(Mutex::new(String::new()));
        let said = answer.clone();
        // Ends with the process: nothing is shared with other tests.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let said = said.clone();
                thread::spawn(move || {
                    let mut stream = stream;
                    let mut buffer = [0; 8192];
                    while let Ok(1..) = stream.read(&mut buffer) {
                        let answer = said.lock().expect("not poisoned").clone();
                        if stream.write_all(answer.as_bytes()).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Failing { answer, url: format!("http://{address}:{port}") }
    }

    /// What it says from now on.
    pub fn say(&self, code: u16, reason: &str) {
        let body = format!(
            "{{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{{}},\"status\":\"Failure\",\"message\":\"{reason}\",\"code\":{code}}}"
        );
        let head = format!("HTTP/1.1 {code} {reason}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
        *self.answer.lock().expect("not poisoned") = head + &body;
    }
}

/// Stands before the API server on another port and holds everything it says for this long, piece by piece. Gives back its address.
pub fn slow(lab: &Lab, api: &Api, port: u16, delay: Duration) -> String {
    let address = lab.client2.address(Family::V4);
    let ns = lab.client2.ns.clone();
    let listener = ns.enter(|| TcpListener::bind((address, port))).expect("a free port");
    // Ends with the process: nothing is shared with other tests.
    thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let Ok(far) = ns.enter(|| TcpStream::connect((address, PORT))) else { continue };
            let (Ok(mut up), Ok(mut down)) = (near.try_clone(), far.try_clone()) else { continue };
            let mut far = far;
            thread::spawn(move || std::io::copy(&mut up, &mut far));
            thread::spawn(move || {
                let (mut near, mut buffer) = (near, [0; 65536]);
                while let Ok(length @ 1..) = down.read(&mut buffer) {
                    thread::sleep(delay);
                    if near.write_all(&buffer[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    api.url().replace(&PORT.to_string(), &port.to_string())
}

fn path(directory: &Path, name: &str) -> String {
    directory.join(name).display().to_string()
}

fn spawn(ns: &Namespace, directory: &Path, name: &str, arguments: &[&str]) -> Child {
    let log = File::options().create(true).append(true).open(directory.join(format!("{name}.log"))).expect("a log file");
    let errors = log.try_clone().expect("dup");
    let binary = std::env::var_os("CONTROL_PLANE_BIN").expect("CONTROL_PLANE_BIN names the control plane's binary");
    let mut command = Command::new(binary);
    command.arg(name).args(arguments).stdin(Stdio::null()).stdout(log).stderr(errors);
    ns.enter(|| command.spawn()).unwrap_or_else(|error| panic!("start {name}: {error}"))
}
