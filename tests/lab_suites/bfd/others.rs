//! FRR's bfdd and BIRD: each in the namespace of a test, with its files in a directory of its own,
//! killed by its process number when dropped.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{ENDS, Link, eventually};

pub struct Program {
    child: Child,
    directory: PathBuf,
}

/// Whether the other side reports the session up, and its reason if not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    pub up: bool,
    pub diagnostic: String,
    pub remote_diagnostic: String,
}

fn directory(name: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let count = NEXT.fetch_add(1, Ordering::Relaxed);
    let path =
        std::env::temp_dir().join(format!("pinnace-bfd-{}-{count}-{name}", std::process::id()));
    fs::create_dir_all(&path).unwrap();
    path
}

/// Numbers of an account, as the package has made it.
fn account(name: &str) -> (u32, u32) {
    let accounts = fs::read_to_string("/etc/passwd").unwrap();
    let line = accounts
        .lines()
        .find(|line| line.starts_with(&format!("{name}:")))
        .unwrap_or_else(|| panic!("no account {name}"));
    let fields: Vec<&str> = line.split(':').collect();
    (fields[2].parse().unwrap(), fields[3].parse().unwrap())
}

impl Program {
    fn start(link: &Link, directory: PathBuf, program: &str, arguments: &[&str]) -> Program {
        let log = fs::File::create(directory.join("log")).unwrap();
        let child = link.theirs.enter(|| {
            Command::new(program)
                .args(arguments)
                .current_dir(&directory)
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .unwrap_or_else(|error| panic!("{program}: {error} (tests/run installs it)"))
        });
        Program { child, directory }
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the program runs");
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

pub struct Frr(pub Program);

impl Frr {
    /// With the other end of the link as peers in both families, at 50 ms × 3.
    pub fn start(link: &Link) -> Frr {
        let peers = ENDS
            .map(|(ours, theirs)| format!(" peer {ours} local-address {theirs}\n  receive-interval 50\n  transmit-interval 50\n exit\n"));
        Frr::configured(link, &peers.concat())
    }

    pub fn configured(link: &Link, peers: &str) -> Frr {
        let directory = directory("frr");
        // bfdd gives up root, and its sockets are made after that.
        let (user, group) = account("frr");
        chown(&directory, Some(user), Some(group)).unwrap();
        let path = |name: &str| directory.join(name).display().to_string();
        fs::write(path("bfdd.conf"), format!("bfd\n{peers}exit\n")).unwrap();
        let arguments = [
            ["-f", &path("bfdd.conf")],
            ["--vty_socket", &directory.display().to_string()],
            ["-i", &path("bfdd.pid")],
            ["-z", &path("zserv")],
            ["-P", "0"],
            ["--bfdctl", &path("ctl.sock")],
            ["--log", "stdout"],
        ];
        let frr = Frr(Program::start(
            link,
            directory.clone(),
            "/usr/lib/frr/bfdd",
            arguments.as_flattened(),
        ));
        eventually("bfdd is there", || frr.vtysh(&["show bfd peers json"]).map(drop));
        frr
    }

    pub fn vtysh(&self, commands: &[&str]) -> Result<String, String> {
        let mut vtysh = Command::new("vtysh");
        vtysh.arg("--vty_socket").arg(&self.0.directory);
        let output = commands
            .iter()
            .fold(&mut vtysh, |vtysh, command| vtysh.args(["-c", command]))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() { Ok(text) } else { Err(format!("{text}\n{}", self.0.log())) }
    }

    /// By our address.
    pub fn view(&self, address: &str) -> Result<View, String> {
        let text = self.vtysh(&["show bfd peers json"])?;
        let listed: Value =
            serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        let peer = listed
            .as_array()
            .into_iter()
            .flatten()
            .find(|peer| peer["peer"] == address)
            .ok_or_else(|| text.clone())?;
        let field = |name: &str| peer[name].as_str().unwrap_or_default().to_owned();
        Ok(View {
            up: peer["status"] == "up",
            diagnostic: field("diagnostic"),
            remote_diagnostic: field("remote-diagnostic"),
        })
    }
}

pub struct Bird(pub Program);

impl Bird {
    /// With the other end of the link as neighbours in both families, at 50 ms × 3.
    pub fn start(link: &Link, password: Option<&str>) -> Bird {
        let directory = directory("bird");
        let authentication = password
            .map(|password| {
                format!(
                    "authentication meticulous keyed sha1; password \"{password}\" {{ id 1; }};"
                )
            })
            .unwrap_or_default();
        let neighbours =
            ENDS.map(|(ours, theirs)| format!("  neighbor {ours} dev \"eth0\" local {theirs};\n"));
        let text = format!(
            "router id 10.99.0.2;\nlog stderr all;\nprotocol device {{}}\nprotocol bfd {{\n  interface \"eth0\" {{ min rx interval 50 ms; \
             min tx interval 50 ms; idle tx interval 1 s; multiplier 3; {authentication} }};\n{}}}\n",
            neighbours.concat()
        );
        let path = |name: &str| directory.join(name).display().to_string();
        fs::write(path("bird.conf"), text).unwrap();
        let arguments = ["-f", "-c", &path("bird.conf"), "-s", &path("ctl"), "-P", &path("pid")];
        let bird = Bird(Program::start(link, directory.clone(), "bird", &arguments));
        eventually("BIRD is there", || {
            if Path::new(&path("ctl")).exists() { Ok(()) } else { Err(bird.0.log()) }
        });
        bird
    }

    /// The state of the session with our address: `Up`, `Init`, `Down` or `AdminDown`.
    pub fn state(&self, address: &str) -> Result<String, String> {
        let output = Command::new("birdc")
            .arg("-s")
            .arg(self.0.directory.join("ctl"))
            .args(["show", "bfd", "sessions"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().find(|line| line.split_whitespace().next() == Some(address));
        line.and_then(|line| line.split_whitespace().nth(2))
            .map(str::to_owned)
            .ok_or_else(|| format!("{text}\n{}", self.0.log()))
    }
}
