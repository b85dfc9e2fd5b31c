//! What the API server last said, on disk: a node that starts while the API is away serves what it
//! served before.
//!
//! `snapshot.jsonl` in the state directory: a header line (version, time), one JSON line per
//! object, and a last line with their number and checksum, so that a file cut off or altered
//! anywhere is recognised before any of it is believed. It is set aside then under another name,
//! and said; it is never fatal. Replaced whole: written beside, made durable, renamed.
//!
//! It is written a piece at a time, straight from the index and between events: no second copy of
//! the cluster, no long pause. Objects that change meanwhile may be in it in either version, as in
//! any watch. The disk belongs to a thread.

use std::fs::{self, File, OpenOptions};
use std::hash::Hasher;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, UNIX_EPOCH};

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;
use tracing::{debug, warn};

use crate::engine::index::{Index, Names};
use crate::model::{EndpointSlice, Kind, Node, ObjectKey, Service, SourceChange};

/// Of the format, and of the objects in it: to be raised when one of the model's types changes.
const VERSION: u32 = 1;
const FILE: &str = "snapshot.jsonl";
/// Bytes serialised at once, between two events.
const PIECE: usize = 64 << 10;
/// Pieces that may wait for the disk.
const WAITING: usize = 4;
/// A changed cluster is written this long after the last time, at least.
const SHORTEST: Duration = Duration::from_secs(10);
/// And at the latest after this long.
const LONGEST: Duration = Duration::from_secs(600);
/// In between, the pause grows with the size: however restless the cluster is, flash takes this
/// many bytes per second on average.
const WEAR: u64 = 16 << 10;

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    /// Seconds since the epoch.
    taken: u64,
}

#[derive(Serialize)]
enum Line<'a> {
    Service(&'a Service),
    Slice(&'a EndpointSlice),
    Node(&'a Node),
    End { objects: u64, checksum: String },
}

#[derive(Deserialize)]
enum Read {
    Service(Box<Service>),
    Slice(Box<EndpointSlice>),
    Node(Box<Node>),
    End { objects: u64, checksum: String },
}

/// What was found on disk.
#[derive(Debug)]
pub struct Snapshot {
    /// When it was written, RFC 3339.
    pub taken: String,
    /// Everything, as one listing of each kind.
    pub changes: Vec<SourceChange>,
}

/// Reads what was saved in this directory. None when there is nothing. What cannot be trusted is
/// set aside.
///
/// # Errors
/// A sentence about what was wrong with it.
pub fn load(directory: &Path) -> Result<Option<Snapshot>, String> {
    let path = directory.join(FILE);
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other,
    };
    file.map_err(|error| format!("cannot be read ({error})")).and_then(read).map(Some).map_err(
        |why| {
            let now = UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
            // Not being able to set it aside is no reason not to start: it will be overwritten.
            let _ = fs::rename(&path, directory.join(format!("{FILE}.damaged-{now}")));
            format!("{} {why}; starting without it", path.display())
        },
    )
}

fn read(file: File) -> Result<Snapshot, String> {
    let mut lines = BufReader::new(file);
    let mut line = Vec::new();
    let mut next = |line: &mut Vec<u8>| -> Result<(), String> {
        line.clear();
        match lines.read_until(b'\n', line) {
            Ok(_) if line.pop() == Some(b'\n') => Ok(()),
            Ok(_) => Err("is cut off".into()),
            Err(error) => Err(format!("cannot be read ({error})")),
        }
    };
    next(&mut line)?;
    let header: Header =
        serde_json::from_slice(&line).map_err(|_| "has a damaged header".to_string())?;
    if header.version != VERSION {
        return Err(format!(
            "is of version {}, this program reads version {VERSION}",
            header.version
        ));
    }
    let mut digest = Digest::new(&line);
    let mut changes: Vec<SourceChange> =
        [Kind::Service, Kind::EndpointSlice, Kind::Node].map(SourceChange::ListStart).into();
    // All objects are in memory before the first of them is used: only the end of the file tells
    // whether it is whole.
    let mut names = Names::default();
    loop {
        next(&mut line)?;
        match serde_json::from_slice(&line).map_err(|error| format!("is damaged ({error})"))? {
            Read::Service(mut service) => {
                service.shrink_to_fit();
                changes.push(SourceChange::Service(service.key.clone(), Some(service)));
            }
            Read::Slice(mut slice) => {
                slice.shrink_to_fit();
                slice
                    .endpoints
                    .iter_mut()
                    .filter_map(|endpoint| endpoint.node.as_mut())
                    .for_each(|node| names.share(node));
                changes.push(SourceChange::Slice(slice.key.clone(), Some(slice)));
            }
            Read::Node(node) => changes.push(SourceChange::Node(node.name.clone(), Some(node))),
            Read::End { objects, checksum }
                if objects == digest.lines && checksum == digest.shown() =>
            {
                break;
            }
            Read::End { .. } => return Err("is damaged (its checksum is wrong)".into()),
        }
        digest.line(&line);
    }
    if next(&mut line).is_ok() || !line.is_empty() {
        return Err("is damaged (something follows its end)".into());
    }
    changes.extend([Kind::Service, Kind::EndpointSlice, Kind::Node].map(SourceChange::ListEnd));
    let taken =
        i64::try_from(header.taken).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    Ok(Snapshot {
        taken: taken.map_or_else(|| "an unknown time".into(), |time| time.to_string()),
        changes,
    })
}

/// Guards against damage, not against malice: who may write here may do anything.
struct Digest {
    hasher: SipHasher13,
    lines: u64,
}

impl Digest {
    fn new(header: &[u8]) -> Digest {
        let mut hasher = SipHasher13::new();
        hasher.write(header);
        Digest { hasher, lines: 0 }
    }

    fn line(&mut self, line: &[u8]) {
        self.lines += 1;
        self.hasher.write(line);
        self.hasher.write_u8(b'\n');
    }

    fn shown(&self) -> String {
        format!("{:016x}", self.hasher.finish())
    }
}

/// Decides when a snapshot is written, and writes it.
pub struct SnapshotWriter {
    directory: PathBuf,
    /// Something changed since the snapshot on disk, or the one being written, was begun.
    changed: bool,
    /// See [`Keeper::seen`].
    revision: u64,
    /// Not before.
    due: Instant,
    job: Option<Job>,
    closing: Option<JoinHandle<io::Result<u64>>>,
}

/// One snapshot being written.
struct Job {
    cursor: Cursor,
    digest: Digest,
    pending: Option<Vec<u8>>,
    disk: SyncSender<Vec<u8>>,
    thread: JoinHandle<io::Result<u64>>,
}

/// What comes next; inside, the last one that was written.
enum Cursor {
    Nodes(Option<Box<str>>),
    Services(Option<ObjectKey>),
    Slices(Option<ObjectKey>),
    End,
    Done,
}

impl SnapshotWriter {
    /// For the snapshot in this directory, which exists and is locked.
    pub fn new(directory: &Path) -> SnapshotWriter {
        let due = Instant::now() + SHORTEST;
        SnapshotWriter {
            directory: directory.to_path_buf(),
            changed: false,
            revision: 0,
            due,
            job: None,
            closing: None,
        }
    }

    /// What there is to save is of this revision.
    pub fn seen(&mut self, revision: u64) {
        self.changed |= revision != self.revision;
        self.revision = revision;
    }

    /// How long until [`Keeper::step`] has something to do; None: not before the next change.
    pub fn wait(&self) -> Option<Duration> {
        if self.job.is_some() || self.closing.is_some() {
            return Some(Duration::from_millis(2));
        }
        self.changed.then(|| self.due.saturating_duration_since(Instant::now()))
    }

    /// A little of the work: at most a piece is serialised, and nothing waits for the disk.
    pub fn step(&mut self, index: &Index) {
        if let Some(thread) = self.closing.take_if(|thread| thread.is_finished()) {
            self.written(thread);
        }
        if self.job.is_none()
            && self.closing.is_none()
            && self.changed
            && Instant::now() >= self.due
        {
            self.begin();
        }
        let Some(job) = &mut self.job else { return };
        match job.advance(index) {
            Progress::More => {}
            Progress::Complete | Progress::Broken => {
                self.closing = self.job.take().map(|job| job.thread)
            }
        }
    }

    /// Writes everything now and waits for the disk: the process is about to end.
    pub fn finish(mut self, index: &Index) {
        // One that is under way misses what changed since it began: begun anew, unless nothing did.
        if self.changed
            && let Some(job) = self.job.take()
        {
            drop(job.disk);
            let _ = job.thread.join();
        }
        if let Some(thread) = self.closing.take() {
            let _ = thread.join();
        }
        if self.changed {
            self.begin();
        }
        let Some(mut job) = self.job.take() else { return };
        while let Progress::More = job.advance(index) {
            std::thread::sleep(Duration::from_micros(200));
        }
        let thread = job.thread;
        drop(job.disk);
        self.written(thread);
    }

    fn begin(&mut self) {
        self.changed = false;
        self.due = Instant::now() + SHORTEST;
        match Job::begin(&self.directory) {
            Ok(job) => self.job = Some(job),
            Err(error) => self.failed(&error),
        }
    }

    fn written(&mut self, thread: JoinHandle<io::Result<u64>>) {
        match thread.join() {
            Ok(Ok(bytes)) => {
                debug!(bytes, "the snapshot was written");
                self.due =
                    Instant::now() + Duration::from_secs(bytes / WEAR).clamp(SHORTEST, LONGEST);
            }
            Ok(Err(error)) => self.failed(&error),
            Err(_) => self.failed(&io::Error::other("the thread that writes it panicked")),
        }
    }

    fn failed(&mut self, error: &io::Error) {
        warn!(%error, directory = %self.directory.display(), "cannot write the snapshot: a start without the API server would not know the newest state");
        (self.changed, self.due) = (true, Instant::now() + LONGEST);
    }
}

enum Progress {
    More,
    Complete,
    /// The disk has given up.
    Broken,
}

impl Job {
    fn begin(directory: &Path) -> io::Result<Job> {
        let taken = UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
        let header = serde_json::to_vec(&Header { version: VERSION, taken })?;
        let digest = Digest::new(&header);
        let (disk, pieces) = sync_channel::<Vec<u8>>(WAITING);
        let directory = directory.to_path_buf();
        let thread = std::thread::Builder::new()
            .name("snapshot".into())
            .stack_size(256 << 10)
            .spawn(move || {
                let (path, beside) = (directory.join(FILE), directory.join(format!(".{FILE}.new")));
                let file = OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .mode(0o600)
                    .open(&beside)?;
                let mut out = BufWriter::new(file);
                let mut bytes = 0;
                let mut whole = false;
                for piece in pieces {
                    // An empty piece is the end: without it, whoever was writing has given up.
                    whole |= piece.is_empty();
                    bytes += piece.len() as u64;
                    out.write_all(&piece)?;
                }
                if !whole {
                    return fs::remove_file(&beside).and(Err(io::ErrorKind::Interrupted.into()));
                }
                out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
                fs::rename(&beside, &path)?;
                File::open(&directory)?.sync_all()?;
                Ok(bytes)
            })?;
        let first = [&header[..], b"\n"].concat();
        Ok(Job { cursor: Cursor::Nodes(None), digest, pending: Some(first), disk, thread })
    }

    fn advance(&mut self, index: &Index) -> Progress {
        if let Some(piece) = self.pending.take() {
            match self.disk.try_send(piece) {
                Ok(()) => {}
                Err(TrySendError::Full(piece)) => {
                    self.pending = Some(piece);
                    return Progress::More;
                }
                Err(TrySendError::Disconnected(_)) => return Progress::Broken,
            }
        }
        if let Cursor::Done = self.cursor {
            return Progress::Complete;
        }
        match self.piece(index) {
            Ok(piece) => {
                self.pending = Some(piece);
                Progress::More
            }
            Err(_) => Progress::Broken,
        }
    }

    /// The next lines; empty: that was all.
    fn piece(&mut self, index: &Index) -> serde_json::Result<Vec<u8>> {
        let mut piece = Vec::with_capacity(PIECE + PIECE / 4);
        loop {
            if piece.len() >= PIECE {
                return Ok(piece);
            }
            self.cursor = match std::mem::replace(&mut self.cursor, Cursor::Done) {
                Cursor::Nodes(after) => match index.node_after(after.as_deref()) {
                    Some(node) => {
                        write_line(&mut piece, &mut self.digest, &Line::Node(node))?;
                        Cursor::Nodes(Some(node.name.clone()))
                    }
                    None => Cursor::Services(None),
                },
                Cursor::Services(after) => match index.service_after(after.as_ref()) {
                    Some(service) => {
                        write_line(&mut piece, &mut self.digest, &Line::Service(service))?;
                        Cursor::Services(Some(service.key.clone()))
                    }
                    None => Cursor::Slices(None),
                },
                Cursor::Slices(after) => match index.slices_after(after.as_ref()) {
                    Some((key, slices)) => {
                        for slice in slices {
                            write_line(&mut piece, &mut self.digest, &Line::Slice(slice))?;
                        }
                        Cursor::Slices(Some(key.clone()))
                    }
                    None => {
                        let end =
                            Line::End { objects: self.digest.lines, checksum: self.digest.shown() };
                        serde_json::to_writer(&mut piece, &end)?;
                        piece.push(b'\n');
                        self.cursor = Cursor::End;
                        return Ok(piece);
                    }
                },
                Cursor::End | Cursor::Done => return Ok(Vec::new()),
            };
        }
    }
}

fn write_line(piece: &mut Vec<u8>, digest: &mut Digest, line: &Line<'_>) -> serde_json::Result<()> {
    let begin = piece.len();
    serde_json::to_writer(&mut *piece, line)?;
    digest.line(&piece[begin..]);
    piece.push(b'\n');
    Ok(())
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
