//! The state directory: what must survive a restart and a power cut, in one file that is replaced
//! whole.
//!
//! `state.json` is a header line (version, length and checksum of the rest) and the value as JSON.
//! Whatever is wrong with it, it is set aside under another name and said; it is never trusted and
//! never fatal. `pinnace.lock` keeps a second process out.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::Hasher;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::fs::{FlockOperation, flock};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;

/// Of the file's format.
const VERSION: u32 = 1;
const STATE: &str = "state.json";
const LOCK: &str = "pinnace.lock";

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be made or opened.
    #[error(
        "cannot use the state directory {path}: {source}; set PINNACE_STATE_DIR to a directory that can be written"
    )]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody else does.
    #[error("another pinnace{} uses the state directory {path}; stop it, or set PINNACE_STATE_DIR to another", pid.map(|p| format!(" (pid {p})")).unwrap_or_default())]
    Locked {
        /// Which.
        path: PathBuf,
        /// Who.
        pid: Option<u32>,
    },
    /// The file cannot be written. The one that was there is as it was.
    #[error("cannot write {path}: {source}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What was found at the start.
#[derive(Debug, PartialEq)]
pub struct Loaded<T> {
    /// None at the first start, and after damage.
    pub value: Option<T>,
    /// What was wrong, in a sentence.
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
    /// Digest of what the file holds now: what did not change is not written.
    written: Option<u64>,
    /// Holds the lock for as long as it is open.
    _lock: File,
}

impl StateDir {
    /// Opens or makes the directory and locks it.
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
            let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
            // Not being able to set it aside is no reason not to start: it will be overwritten.
            let _ =
                fs::rename(self.path.join(STATE), self.path.join(format!("{STATE}.damaged-{now}")));
        }
        loaded
    }

    /// Replaces what was saved: written beside, made durable, renamed. Writes nothing when nothing
    /// changed.
    pub fn save<T: Serialize>(&mut self, value: &T) -> Result<(), StateError> {
        let path = self.path.join(STATE);
        let failed = |source| StateError::Write { path: path.clone(), source };
        let body = serde_json::to_vec(value).map_err(|e| failed(e.into()))?;
        let digest = digest(&body);
        if self.written == Some(digest) {
            return Ok(());
        }
        self.written = None;
        let header =
            Header { version: VERSION, length: body.len(), checksum: format!("{digest:016x}") };
        let mut header = serde_json::to_vec(&header).map_err(|e| failed(e.into()))?;
        header.push(b'\n');
        let beside = self.path.join(format!(".{STATE}.new"));
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)
            .map_err(failed)?;
        file.write_all(&header)
            .and_then(|()| file.write_all(&body))
            .and_then(|()| file.sync_all())
            .map_err(failed)?;
        fs::rename(&beside, &path)
            .and_then(|()| File::open(&self.path)?.sync_all())
            .map_err(failed)?;
        self.written = Some(digest);
        Ok(())
    }
}

/// Saves on a thread of its own: a slow disk takes half a second to make anything durable, and
/// nobody is to wait for it. What is saved is the latest value; those that a newer one overtook are
/// not written.
pub struct StateWriter<T> {
    slot: Arc<(Mutex<Slot<T>>, Condvar)>,
    thread: JoinHandle<()>,
}

struct Slot<T> {
    value: Option<T>,
    ended: bool,
}

impl<T: Serialize + Send + 'static> StateWriter<T> {
    /// Starts the thread; `failed` is told what could not be written.
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

    /// To be saved soon.
    pub fn save(&self, value: T) {
        self.with(|slot| slot.value = Some(value));
    }

    /// Returns when everything is saved.
    pub fn finish(self) {
        self.with(|slot| slot.ended = true);
        // A panic there has been printed already.
        let _ = self.thread.join();
    }

    fn with(&self, change: impl FnOnce(&mut Slot<T>)) {
        change(&mut self.slot.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.slot.1.notify_one();
    }
}

/// Reads what a process saved in this directory, without locking it.
pub fn read<T: DeserializeOwned>(directory: &Path) -> Loaded<T> {
    let path = directory.join(STATE);
    let aside = |why: String| Loaded {
        value: None,
        problem: Some(format!("{} {why}; starting without it", path.display())),
    };
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Loaded { value: None, problem: None };
        }
        Err(error) => return aside(format!("cannot be read ({error})")),
    };
    let Some(end) = text.iter().position(|byte| *byte == b'\n') else {
        return aside("has no header".into());
    };
    let (header, body) = (&text[..end], &text[end + 1..]);
    let Ok(header) = serde_json::from_slice::<Header>(header) else {
        return aside("has a damaged header".into());
    };
    if header.version != VERSION {
        return aside(format!(
            "is of version {}, this program reads version {VERSION}",
            header.version
        ));
    }
    if header.length != body.len() || header.checksum != format!("{:016x}", digest(body)) {
        return aside("is damaged (its checksum is wrong)".into());
    }
    match serde_json::from_slice(body) {
        Ok(value) => Loaded { value: Some(value), problem: None },
        Err(error) => aside(format!("cannot be understood ({error})")),
    }
}

/// The process that uses this directory now, if one does.
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

/// Guards against damage, not against malice: who may write here may do anything.
fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(bytes);
    hasher.finish()
}

#[cfg(test)]
mod tests {
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
