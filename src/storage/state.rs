//! The state directory and its file `state.json`: a header line (version, length and checksum of
//! the rest) and the value as JSON. `pinnace.lock` keeps a second process out.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::fs::{FlockOperation, flock};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::atomic_file::{AtomicFile, Checksum, WRONG_CHECKSUM, read_header, unreadable};

/// Version of the format of `state.json`.
const VERSION: u32 = 1;
const STATE: &str = "state.json";
const LOCK: &str = "pinnace.lock";

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The directory cannot be created or opened.
    #[error(
        "cannot use the state directory {path}: {source}; set PINNACE_STATE_DIR to a directory that can be written"
    )]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Another process has locked the directory.
    #[error("another pinnace{} uses the state directory {path}; stop it, or set PINNACE_STATE_DIR to another", pid.map(|p| format!(" (pid {p})")).unwrap_or_default())]
    Locked {
        path: PathBuf,
        /// The process, where the lock file names it.
        pid: Option<u32>,
    },
    /// The file cannot be written. The old one is unchanged.
    #[error("cannot write {path}: {source}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// What was found at the start.
#[derive(Debug, PartialEq)]
pub struct Loaded<T> {
    /// None at the first start, and after damage.
    pub value: Option<T>,
    /// A sentence about what was wrong.
    pub problem: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    length: usize,
    checksum: String,
}

/// An open, locked state directory.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// Checksum of what the file holds now: an unchanged value is not written.
    written: Option<u64>,
    /// Holds the lock for as long as it is open.
    _lock: File,
}

impl StateDir {
    /// Opens the directory, creates it where it does not exist, and locks it.
    pub fn open(path: &Path) -> Result<StateDir, StateError> {
        let failed = |source| StateError::Directory { path: path.into(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let lock_path = path.join(LOCK);
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(failed)?;
        if let Err(error) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            return Err(match error {
                rustix::io::Errno::WOULDBLOCK => {
                    StateError::Locked { path: path.into(), pid: read_pid(&lock_path) }
                }
                other => failed(other.into()),
            });
        }
        lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())).map_err(failed)?;
        Ok(StateDir { path: path.into(), written: None, _lock: lock })
    }

    /// Reads what was saved. A file that cannot be trusted is set aside as
    /// `state.json.damaged-<seconds since the epoch>`.
    pub fn load<T: DeserializeOwned>(&mut self) -> Loaded<T> {
        let loaded = read(&self.path);
        if loaded.problem.is_some() {
            AtomicFile::new(&self.path, STATE).set_aside();
        }
        loaded
    }

    /// Replaces what was saved. Writes nothing when nothing changed.
    ///
    /// # Errors
    /// The old contents stay.
    pub fn save<T: Serialize>(&mut self, value: &T) -> Result<(), StateError> {
        let file = AtomicFile::new(&self.path, STATE);
        let failed = |source| StateError::Write { path: file.path(), source };
        let body = serde_json::to_vec(value).map_err(|e| failed(e.into()))?;
        let checksum = Checksum::of(&body);
        if self.written == Some(checksum.value()) {
            return Ok(());
        }

        self.written = None;
        let header = Header { version: VERSION, length: body.len(), checksum: checksum.text() };
        let mut header = serde_json::to_vec(&header).map_err(|e| failed(e.into()))?;
        header.push(b'\n');
        write(&file, &header, &body).map_err(failed)?;
        self.written = Some(checksum.value());
        Ok(())
    }
}

fn write(file: &AtomicFile, header: &[u8], body: &[u8]) -> io::Result<()> {
    let mut replacement = file.replace()?;
    replacement.write_all(header)?;
    replacement.write_all(body)?;
    replacement.commit()
}

/// Saves on a thread of its own: a slow disk takes half a second to make anything durable, and the
/// engine must not wait for it. Only the latest value is written.
pub struct StateWriter<T> {
    slot: Arc<(Mutex<Slot<T>>, Condvar)>,
    thread: JoinHandle<()>,
}

struct Slot<T> {
    value: Option<T>,
    ended: bool,
}

impl<T: Serialize + Send + 'static> StateWriter<T> {
    /// Starts the thread; it calls `failed` when a value cannot be written.
    pub fn spawn(
        mut directory: StateDir,
        failed: impl Fn(StateError) + Send + 'static,
    ) -> io::Result<StateWriter<T>> {
        let slot = Arc::new((Mutex::new(Slot::<T> { value: None, ended: false }), Condvar::new()));
        let shared = slot.clone();
        let work = move || {
            let (slot, wake) = &*shared;
            loop {
                let guard = slot.lock().unwrap_or_else(PoisonError::into_inner);
                let mut guard = wake
                    .wait_while(guard, |s| s.value.is_none() && !s.ended)
                    .unwrap_or_else(PoisonError::into_inner);
                let Some(value) = guard.value.take() else { return };
                drop(guard);
                if let Err(error) = directory.save(&value) {
                    failed(error);
                }
            }
        };
        let thread =
            thread::Builder::new().name("state".into()).stack_size(256 * 1024).spawn(work)?;
        Ok(StateWriter { slot, thread })
    }

    /// Saves `value` soon, in the place of one that still waits.
    pub fn save(&self, value: T) {
        self.with(|slot| slot.value = Some(value));
    }

    /// Waits until everything is saved, and ends the thread.
    pub fn finish(self) {
        self.with(|slot| slot.ended = true);
        // A panic of the thread has been printed already.
        let _ = self.thread.join();
    }

    fn with(&self, change: impl FnOnce(&mut Slot<T>)) {
        change(&mut self.slot.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.slot.1.notify_one();
    }
}

/// Reads what a process saved in this directory, without locking it.
pub fn read<T: DeserializeOwned>(directory: &Path) -> Loaded<T> {
    let file = AtomicFile::new(directory, STATE);
    match read_file(&file) {
        Ok(value) => Loaded { value, problem: None },
        Err(defect) => Loaded { value: None, problem: Some(file.problem(&defect)) },
    }
}

/// The saved value; None when there is no file.
fn read_file<T: DeserializeOwned>(file: &AtomicFile) -> Result<Option<T>, String> {
    let Some(mut open) = file.open()? else { return Ok(None) };
    let mut text = Vec::new();
    open.read_to_end(&mut text).map_err(|error| unreadable(&error))?;
    let Some(end) = text.iter().position(|byte| *byte == b'\n') else {
        return Err("has no header".into());
    };

    let body = &text[end + 1..];
    let header: Header = read_header(&text[..end], VERSION)?;
    if header.length != body.len() || header.checksum != Checksum::of(body).text() {
        return Err(WRONG_CHECKSUM.into());
    }
    serde_json::from_slice(body)
        .map(Some)
        .map_err(|error| format!("cannot be understood ({error})"))
}

/// The process that has locked this directory, if one has; 0 where the lock file does not name it.
pub fn locked_by(directory: &Path) -> Option<u32> {
    let path = directory.join(LOCK);
    let lock = File::open(&path).ok()?;
    match flock(&lock, FlockOperation::NonBlockingLockShared) {
        Err(rustix::io::Errno::WOULDBLOCK) => Some(read_pid(&path).unwrap_or(0)),
        _ => None,
    }
}

fn read_pid(path: &Path) -> Option<u32> {
    let mut text = String::new();
    File::open(path).ok()?.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A directory that goes away with the test.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path =
                std::env::temp_dir().join(format!("pinnace-state-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            Scratch(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_was_saved_is_loaded_by_the_next() {
        let dir = Scratch::new("next");
        let mut first = StateDir::open(&dir.0).unwrap();
        assert_eq!(first.load::<Vec<u32>>(), Loaded { value: None, problem: None });
        first.save(&vec![1, 2, 3]).unwrap();
        let modified = || fs::metadata(dir.0.join(STATE)).unwrap().modified().unwrap();
        let before = modified();
        first.save(&vec![1, 2, 3]).unwrap();
        assert_eq!(modified(), before, "unchanged, so not written");
        drop(first);
        assert_eq!(StateDir::open(&dir.0).unwrap().load::<Vec<u32>>().value, Some(vec![1, 2, 3]));
    }

    #[test]
    fn a_second_process_is_kept_out_and_told_who_is_there() {
        let dir = Scratch::new("second");
        let first = StateDir::open(&dir.0).unwrap();
        let error = StateDir::open(&dir.0).unwrap_err().to_string();
        assert!(
            error.contains(&format!("pid {}", std::process::id()))
                && error.contains("PINNACE_STATE_DIR"),
            "{error}"
        );
        assert_eq!(locked_by(&dir.0), Some(std::process::id()));
        drop(first);
        assert_eq!(locked_by(&dir.0), None);
    }

    #[test]
    fn a_file_cut_off_or_altered_anywhere_is_set_aside() {
        let dir = Scratch::new("damage");
        let mut state = StateDir::open(&dir.0).unwrap();
        state.save(&vec!["some", "value"]).unwrap();
        let good = fs::read(dir.0.join(STATE)).unwrap();
        for at in 0..good.len() {
            let mut flipped = good.clone();
            flipped[at] ^= 1;
            for bad in [good[..at].to_vec(), flipped] {
                fs::write(dir.0.join(STATE), &bad).unwrap();
                let loaded = state.load::<Vec<String>>();
                assert!(
                    loaded.value.is_none() && loaded.problem.is_some(),
                    "byte {at}: {loaded:?}"
                );
                assert!(!dir.0.join(STATE).exists(), "it is set aside");
            }
        }
        fs::write(dir.0.join(STATE), &good).unwrap();
        assert!(state.load::<Vec<String>>().value.is_some(), "the good one still is");
        fs::write(dir.0.join(STATE), b"{\"version\":2,\"length\":0,\"checksum\":\"\"}\n").unwrap();
        assert!(state.load::<Vec<String>>().problem.unwrap().contains("version 2"));
    }

    #[test]
    fn a_directory_that_cannot_be_made_names_the_setting() {
        let error = StateDir::open(Path::new("/proc/pinnace")).unwrap_err().to_string();
        assert!(error.contains("/proc/pinnace") && error.contains("PINNACE_STATE_DIR"), "{error}");
    }
}
