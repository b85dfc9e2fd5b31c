//! The directory: inotify reports what changed, a thread of its own reads and parses it, and sends
//! updates to the engine.
//!
//! This is a thread, not a task: reading 10 MB of manifests takes longer than the runtime may be
//! blocked. It sleeps in one `poll` until the kernel reports an event. While the engine's queue is
//! full it waits, and events coalesce in the kernel's queue; when that overflows, the directory is
//! scanned again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify::{ReadFlags, Reader};
use rustix::io::Errno;
use tokio::sync::{mpsc, oneshot};

use super::file::{Unreadable, read_text, stamp};
use super::inotify::Inotify;
use crate::manifests::split::Format;
use crate::manifests::store::ManifestStore;
use crate::model::source_update::SourceUpdate;
use crate::model::state::SourceProblem;

/// A file being written is read when it is closed, or after this time if it is still open.
const WRITER_PATIENCE: Duration = Duration::from_secs(1);
/// How long a deletion waits for another before it counts: `rm -r` of the whole directory must be
/// distinguished from the removal of its files.
const DELETION_QUIET: Duration = Duration::from_millis(5);
/// How long deletions wait at most.
const DELETION_LIMIT: Duration = Duration::from_millis(500);
/// How long a directory that reappears may take to fill before files that are still missing count
/// as deleted.
const REAPPEARANCE: Duration = Duration::from_secs(1);
/// Bounds of the pause after an update. The pause is twice the time the work took, so that flapping
/// files cost at most a third of a core.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(500));
/// Scan interval where inotify is unavailable.
const FALLBACK_POLL: Duration = Duration::from_secs(2);

/// Watches the directory until the receiver or this future is dropped. The first update follows at
/// once. A directory that does not exist is waited for; one that vanishes is reported and leaves
/// its objects in force.
///
/// # Errors
/// When the thread or its eventfd cannot be created.
pub async fn watch(dir: PathBuf, out: mpsc::Sender<SourceUpdate>) -> io::Result<()> {
    struct Stop(Arc<OwnedFd>);
    impl Drop for Stop {
        fn drop(&mut self) {
            // A failure means that the thread has ended.
            let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
        }
    }
    let stop = Stop(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?));
    let (ended, end) = oneshot::channel::<()>();
    let wake = stop.0.clone();
    let updates = out.clone();
    std::thread::Builder::new().name("manifests".into()).stack_size(2 << 20).spawn(move || {
        let _ended = ended;
        Watcher::new(dir, updates).run(&wake);
    })?;
    tokio::select! {
        () = out.closed() => {}
        _ = end => {}
    }
    Ok(())
}

/// Number of files after which, in the first reading, the changes so far are handed on: they need
/// not all be kept here.
const PART: usize = 250;

struct Watcher {
    dir: PathBuf,
    out: mpsc::Sender<SourceUpdate>,
    store: ManifestStore,
    inotify: Option<Inotify>,
    /// Files that are being written, and since when.
    writing: BTreeMap<String, Instant>,
    /// Files to read.
    dirty: BTreeSet<String>,
    /// Files to withdraw, unless the whole directory turns out to be gone.
    gone: BTreeSet<String>,
    /// When they are withdrawn; postponed by every further deletion up to `gone_limit`.
    gone_due: Instant,
    gone_limit: Instant,
    rescan: bool,
    reattach: bool,
    has_links: bool,
    /// The directory is missing or cannot be read.
    fault: Option<String>,
    sub_directories: BTreeSet<String>,
    synced: bool,
    /// Problems and `synced` of the last update.
    reported: Option<(Vec<SourceProblem>, bool)>,
}

impl Watcher {
    fn new(dir: PathBuf, out: mpsc::Sender<SourceUpdate>) -> Watcher {
        // A relative path has no parent to watch.
        let dir = std::path::absolute(&dir).unwrap_or(dir);
        Watcher {
            dir,
            out,
            store: ManifestStore::default(),
            inotify: None,
            writing: BTreeMap::new(),
            dirty: BTreeSet::new(),
            gone: BTreeSet::new(),
            gone_due: Instant::now(),
            gone_limit: Instant::now(),
            rescan: true,
            reattach: true,
            has_links: false,
            fault: None,
            sub_directories: BTreeSet::new(),
            synced: false,
            reported: None,
        }
    }

    fn run(mut self, stop: &OwnedFd) {
        let mut not_before = Instant::now();
        loop {
            let now = Instant::now();
            if now >= not_before && self.is_due(now) {
                if self.work(now).is_err() {
                    return;
                }
                not_before = Instant::now() + (now.elapsed() * 2).clamp(PAUSE.0, PAUSE.1);
            }
            let timeout = self
                .deadline(Instant::now())
                .map(|deadline| deadline.max(not_before).saturating_duration_since(Instant::now()));
            if !self.wait(stop, timeout) {
                return;
            }
        }
    }

    /// Sleeps until an event or the timeout and takes in all pending events; false on the stop
    /// signal.
    fn wait(&mut self, stop: &OwnedFd, timeout: Option<Duration>) -> bool {
        let timeout = if self.inotify.is_some() {
            timeout
        } else {
            Some(timeout.unwrap_or(FALLBACK_POLL).min(FALLBACK_POLL))
        };
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut fds = vec![PollFd::new(stop, PollFlags::IN)];
        fds.extend(self.inotify.as_ref().map(|inotify| PollFd::new(&inotify.fd, PollFlags::IN)));
        let ready = match poll(&mut fds, timeout.as_ref()) {
            Ok(ready) => ready,
            Err(Errno::INTR) => return true,
            Err(_) => return false,
        };
        if fds.first().is_some_and(|stop| !stop.revents().is_empty()) {
            return false;
        }
        drop(fds);
        match self.inotify.take() {
            Some(inotify) => {
                if ready > 0 {
                    self.take_events(&inotify);
                }
                self.inotify = Some(inotify);
            }
            None => {
                self.reattach = true;
                self.rescan = true;
            }
        }
        true
    }

    fn take_events(&mut self, inotify: &Inotify) {
        let mut buffer = [MaybeUninit::uninit(); 16 << 10];
        let mut reader = Reader::new(inotify.fd.as_fd(), &mut buffer);
        // The descriptor does not block: an error means that no event is left.
        while let Ok(event) = reader.next() {
            let events = event.events();
            let name = event.file_name().map(|name| name.to_bytes());
            if events.contains(ReadFlags::QUEUE_OVERFLOW) {
                self.rescan = true;
            } else if Some(event.wd()) == inotify.dir {
                self.dir_event(events, name);
            } else if inotify.parent.as_ref().is_some_and(|(wd, wanted)| {
                *wd == event.wd() && name.is_none_or(|name| name == wanted)
            }) {
                self.reattach = true;
            }
        }
    }

    fn dir_event(&mut self, events: ReadFlags, name: Option<&[u8]>) {
        let Some(name) = name.map(String::from_utf8_lossy) else {
            self.reattach |= events.intersects(
                ReadFlags::DELETE_SELF
                    | ReadFlags::MOVE_SELF
                    | ReadFlags::IGNORED
                    | ReadFlags::UNMOUNT,
            );
            return;
        };
        let is_dir = events.contains(ReadFlags::ISDIR);
        if is_dir || Format::of(&name).is_none() {
            // A sub-directory to report, or the link by which a mounted ConfigMap switches all its
            // files.
            let came_or_went = events.intersects(
                ReadFlags::CREATE | ReadFlags::MOVED_TO | ReadFlags::MOVED_FROM | ReadFlags::DELETE,
            );
            self.rescan |= came_or_went
                && (is_dir && !name.starts_with('.') || name.starts_with("..") || self.has_links);
            return;
        }
        let name = name.into_owned();
        if events.intersects(ReadFlags::CLOSE_WRITE | ReadFlags::MOVED_TO) {
            self.writing.remove(&name);
            self.gone.remove(&name);
            self.dirty.insert(name);
        } else if events.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM) {
            self.writing.remove(&name);
            self.dirty.remove(&name);
            self.withdraw_soon([name], DELETION_QUIET);
        } else if events.contains(ReadFlags::CREATE) {
            self.gone.remove(&name);
            // A link is complete when it appears, any other new file when it is closed.
            match fs::symlink_metadata(self.dir.join(&name)) {
                Ok(metadata) if metadata.is_file() && metadata.nlink() == 1 => {
                    self.write_begins(name)
                }
                _ => _ = self.dirty.insert(name),
            }
        } else if events.contains(ReadFlags::MODIFY) {
            self.write_begins(name);
        } else if !self.writing.contains_key(&name) {
            self.dirty.insert(name);
        }
    }

    fn write_begins(&mut self, name: String) {
        self.dirty.remove(&name);
        self.writing.entry(name).or_insert_with(Instant::now);
    }

    fn withdraw_soon(&mut self, names: impl IntoIterator<Item = String>, patience: Duration) {
        let now = Instant::now();
        if self.gone.is_empty() {
            self.gone_due = now;
            self.gone_limit = now + DELETION_LIMIT.max(patience);
        }
        self.gone_due = self.gone_due.max((now + patience).min(self.gone_limit));
        self.gone.extend(names);
    }

    fn is_due(&self, now: Instant) -> bool {
        self.deadline(now).is_some_and(|deadline| deadline <= now)
    }

    /// When there is work; None: after the next event.
    fn deadline(&self, now: Instant) -> Option<Instant> {
        if self.reattach || self.rescan || !self.dirty.is_empty() {
            return Some(now);
        }
        let deletion = (!self.gone.is_empty()).then_some(self.gone_due);
        let writer = self.writing.values().min().map(|since| *since + WRITER_PATIENCE);
        deletion.into_iter().chain(writer).min()
    }

    /// Err: nobody takes updates any more.
    fn work(&mut self, now: Instant) -> Result<(), ()> {
        if !self.gone.is_empty() && now >= self.gone_due && !self.dir.is_dir() {
            self.reattach = true;
        }
        if std::mem::take(&mut self.reattach) {
            self.attach();
            self.rescan = true;
        }
        if std::mem::take(&mut self.rescan) {
            self.scan();
        }
        let dirty = &mut self.dirty;
        self.writing.retain(|name, since| {
            let patient = now.saturating_duration_since(*since) < WRITER_PATIENCE;
            if !patient {
                dirty.insert(name.clone());
            }
            patient
        });
        // Only the first reading is reported in parts: later, an object that moves between two
        // files could show as gone.
        let first = !self.reported.as_ref().is_some_and(|(_, synced)| *synced);
        for (number, name) in std::mem::take(&mut self.dirty).into_iter().enumerate() {
            self.read(&name, false);
            if first && number % PART == PART - 1 {
                self.report_part()?;
            }
        }
        if self.fault.is_some() {
            self.gone.clear();
        } else if now >= self.gone_due {
            for name in std::mem::take(&mut self.gone) {
                if fs::symlink_metadata(self.dir.join(&name)).is_err() {
                    self.store.remove(&name);
                }
            }
        }
        loop {
            let again = self.store.take_reread();
            if again.is_empty() {
                break;
            }
            for name in again {
                self.read(&name, true);
            }
        }
        self.report()
    }

    fn report_part(&mut self) -> Result<(), ()> {
        let changes = self.store.take_changes();
        if changes.is_empty() {
            return Ok(());
        }
        self.send(SourceUpdate { changes, ..SourceUpdate::default() })
    }

    fn report(&mut self) -> Result<(), ()> {
        let changes = self.store.take_changes();
        let mut problems = self.own_problems();
        problems.extend(self.store.problems());
        let reported = (problems, self.synced);
        // While files wait to be withdrawn, a renamed file would look like an object defined
        // twice.
        let nothing_new = self.reported.as_ref() == Some(&reported) || !self.gone.is_empty();
        if changes.is_empty() && nothing_new {
            return Ok(());
        }
        let problems = reported.0.clone();
        self.reported = Some(reported);
        self.send(SourceUpdate {
            changes,
            problems,
            synced: self.synced,
            ..SourceUpdate::default()
        })
    }

    /// Err: nobody takes updates any more.
    fn send(&self, update: SourceUpdate) -> Result<(), ()> {
        self.out.blocking_send(update).map_err(drop)
    }

    /// Problems of the directory itself.
    fn own_problems(&self) -> Vec<SourceProblem> {
        let problem = |source: String, note: bool, reason: String| SourceProblem {
            source,
            object: None,
            note,
            reason,
        };
        let here = self.dir.display().to_string();
        let mut problems = Vec::new();
        if let Some(fault) = &self.fault {
            problems.push(problem(here.clone(), false, fault.clone()));
        }
        if self.inotify.is_none() {
            let reason = format!(
                "inotify unavailable, polling every {} s; raise fs.inotify.max_user_instances and max_user_watches",
                FALLBACK_POLL.as_secs()
            );
            problems.push(problem(here, false, reason));
        }
        for name in &self.sub_directories {
            let reason = "is a directory; only the files beside it are read";
            problems.push(problem(name.clone(), true, reason.into()));
        }
        problems
    }

    /// Watches the directory anew.
    fn attach(&mut self) {
        let (inotify, parent_appeared) = Inotify::attach(&self.dir);
        self.inotify = inotify;
        self.reattach = parent_appeared;
    }

    /// Compares every file with its last version; those that differ become dirty or gone.
    fn scan(&mut self) {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) => {
                let state = if self.synced {
                    "the objects it last had go on serving"
                } else {
                    "waiting for it"
                };
                self.fault = Some(match error.kind() {
                    io::ErrorKind::NotFound => format!("the directory does not exist; {state}"),
                    _ => format!("the directory cannot be read ({error}); {state}"),
                });
                self.gone.clear();
                return;
            }
        };
        let was_missing = self.fault.take().is_some();
        self.has_links = false;
        self.sub_directories.clear();
        let had_files = self.store.files().next().is_some();
        let mut present = BTreeSet::new();
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type();
            if kind.as_ref().is_ok_and(|kind| kind.is_dir()) {
                if !name.starts_with('.') {
                    self.sub_directories.insert(name);
                }
                continue;
            }
            if Format::of(&name).is_none() {
                continue;
            }
            self.has_links |= kind.is_ok_and(|kind| kind.is_symlink());
            let unchanged = fs::metadata(entry.path())
                .is_ok_and(|metadata| self.store.version(&name) == Some(stamp(&metadata)));
            if !unchanged && !self.writing.contains_key(&name) {
                self.dirty.insert(name.clone());
            }
            if had_files {
                present.insert(name);
            }
        }
        let missing: Vec<String> =
            self.store.files().filter(|name| !present.contains(*name)).map(str::to_owned).collect();
        if !missing.is_empty() {
            self.withdraw_soon(missing, if was_missing { REAPPEARANCE } else { DELETION_QUIET });
        }
        self.synced = true;
    }

    fn read(&mut self, name: &str, afresh: bool) {
        let Some(format) = Format::of(name) else { return };
        match read_text(&self.dir.join(name)) {
            Ok((text, stamp)) => {
                self.has_links |= fs::symlink_metadata(self.dir.join(name))
                    .is_ok_and(|metadata| metadata.is_symlink());
                self.store.put(name, format, &text, afresh);
                self.store.set_version(name, stamp);
            }
            Err(Unreadable::Gone) => {
                self.withdraw_soon([name.to_owned()], DELETION_QUIET);
            }
            Err(Unreadable::Because(reason)) => {
                self.store.fail(name, reason);
            }
        }
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
