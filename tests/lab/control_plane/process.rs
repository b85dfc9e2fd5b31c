//! Programs that live in a network namespace and end with the test, however the test ends.

use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::{env, io, thread};

use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

use super::super::Namespace;

type Spawn = (Command, Sender<io::Result<Child>>);

/// Starts programs from one thread that lives as long as this value. The kernel kills what has a
/// parent death signal when the thread that started it ends, not only when the process does: a
/// thread that is over after the start would take its program along.
pub struct Nursery {
    orders: Sender<Spawn>,
    namespace: Option<Arc<Namespace>>,
}

impl Nursery {
    /// In this namespace, or where the test itself is.
    pub fn new(namespace: Option<Arc<Namespace>>) -> Nursery {
        let (orders, inbox) = channel::<Spawn>();
        let work = move || {
            thread::spawn(move || {
                for (mut command, answer) in inbox {
                    let _ = answer.send(command.spawn());
                }
            })
        };
        // A thread stays in the namespace of the one that started it.
        match &namespace {
            Some(namespace) => namespace.enter(work),
            None => work(),
        };
        Nursery { orders, namespace }
    }

    /// Starts a program; its output goes to the end of this log.
    pub fn start(&self, mut command: Command, log: &Path) -> Process {
        let file = File::options().create(true).append(true).open(log).expect("a log file");
        let errors = file.try_clone().expect("dup");
        command.stdin(Stdio::null()).stdout(file).stderr(errors);
        // SAFETY: the closure runs between fork and exec and makes one system call, without
        // allocation or locks.
        unsafe { command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?)) };
        let (answer, started) = channel();
        let name = format!("{command:?}");
        self.orders.send((command, answer)).expect("the thread that starts programs lives");
        let child =
            started.recv().expect("an answer").unwrap_or_else(|error| panic!("{name}: {error}"));
        Process { child, log: log.to_owned() }
    }

    /// Runs a program to its end, with text on its standard input.
    pub fn output(&self, mut command: Command, input: &str) -> Output {
        let mut run = move || -> io::Result<Output> {
            let mut child = command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            // A program that ends without reading says why itself.
            let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
            child.wait_with_output()
        };
        match &self.namespace {
            Some(namespace) => namespace.enter(run),
            None => run(),
        }
        .expect("run a program of the control plane")
    }
}

/// A started program, killed when dropped.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal)
            .expect("signal a program of the control plane");
    }

    /// The end of its log.
    pub fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Also ends one that is stopped by SIGSTOP.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program that is the whole control plane: what `PINNACE_CONTROL_PLANE` names.
pub fn program() -> PathBuf {
    let build = "tests/control-plane/build.sh builds it and prints its path; sudo tests/run does so by itself";
    let path = env::var_os("PINNACE_CONTROL_PLANE").map(PathBuf::from);
    let path = path.unwrap_or_else(|| {
        panic!("PINNACE_CONTROL_PLANE does not name the control plane's program: {build}")
    });
    assert!(
        path.is_file(),
        "PINNACE_CONTROL_PLANE names {}, which is no file: {build}",
        path.display()
    );
    path
}
