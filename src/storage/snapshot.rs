//! The snapshot of the API server's objects on disk: a node that starts while the API server is
//! away serves what it served before.
//!
//! `snapshot.jsonl` in the state directory consists of a header line (version, time), one JSON line
//! per object, and a last line with their number and checksum. A file that was cut off or altered
//! anywhere is recognised before any of it is used.
//!
//! The snapshot is serialised a piece at a time, from the index and between events: it needs no
//! second copy of the cluster and no long pause. An object that changes meanwhile may be in it in
//! either version, as in any watch. A thread of its own writes to the disk.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tracing::{debug, warn};

use super::atomic_file::{
    AtomicFile, Checksum, WRONG_CHECKSUM, read_header, seconds_since_epoch, unreadable,
};
use crate::engine::index::{Index, Names};
use crate::model::{EndpointSlice, Kind, Node, ObjectKey, Service, SourceChange};

/// Version of the format and of the objects in it. It is raised when one of the model's types
/// changes.
const VERSION: u32 = 1;
const FILE: &str = "snapshot.jsonl";
/// Bytes serialised at once, between two events.
const PIECE: usize = 64 << 10;
/// Maximum number of pieces that wait for the disk.
const WAITING: usize = 4;
/// Minimum time between two snapshots.
const SHORTEST: Duration = Duration::from_secs(10);
/// Maximum time between two snapshots of a cluster that changes.
const LONGEST: Duration = Duration::from_secs(600);
/// Bytes written per second on average, however often the cluster changes: flash wears out. The time
/// between two snapshots grows with their size.
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
    /// All objects, as one list of each kind.
    pub changes: Vec<SourceChange>,
}

/// Reads the snapshot in this directory; None when there is none. One that cannot be trusted is set
/// aside.
///
/// # Errors
/// A sentence about what was wrong with it.
pub fn load(directory: &Path) -> Result<Option<Snapshot>, String> {
    let file = AtomicFile::new(directory, FILE);
    let loaded = file.open().and_then(|open| open.map(read).transpose());
    loaded.map_err(|defect| {
        file.set_aside();
        file.problem(&defect)
    })
}

fn read(file: File) -> Result<Snapshot, String> {
    let mut lines = BufReader::new(file);
    let mut line = Vec::new();
    let mut next = |line: &mut Vec<u8>| -> Result<(), String> {
        line.clear();
        match lines.read_until(b'\n', line) {
            Ok(_) if line.pop() == Some(b'\n') => Ok(()),
            Ok(_) => Err("is cut off".into()),
            Err(error) => Err(unreadable(&error)),
        }
    };
    next(&mut line)?;
    let header: Header = read_header(&line, VERSION)?;
    let mut digest = Digest::new(&line);
    let mut changes: Vec<SourceChange> =
        [Kind::Service, Kind::EndpointSlice, Kind::Node].map(SourceChange::ListStart).into();
    // All objects are read before the first one is used: only the end of the file tells whether the
    // file is complete.
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
                if objects == digest.lines && checksum == digest.checksum.text() =>
            {
                break;
            }
            Read::End { .. } => return Err(WRONG_CHECKSUM.into()),
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

/// Number of the object lines and checksum of all lines before the last.
struct Digest {
    checksum: Checksum,
    lines: u64,
}

impl Digest {
    fn new(header: &[u8]) -> Digest {
        Digest { checksum: Checksum::of(header), lines: 0 }
    }

    fn line(&mut self, line: &[u8]) {
        self.lines += 1;
        self.checksum.add(line);
        self.checksum.add(b"\n");
    }
}

/// Decides when a snapshot is written, and writes it.
pub struct SnapshotWriter {
    directory: PathBuf,
    /// Something changed since the newest snapshot, on disk or under way, was begun.
    changed: bool,
    /// The revision of the index that was seen last.
    revision: u64,
    /// Earliest time of the next snapshot.
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

/// What is written next; inside, the last object that was written.
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

    /// The index now has this revision.
    pub fn seen(&mut self, revision: u64) {
        self.changed |= revision != self.revision;
        self.revision = revision;
    }

    /// How long until [`SnapshotWriter::step`] has something to do; None: not before the next
    /// change.
    pub fn wait(&self) -> Option<Duration> {
        if self.job.is_some() || self.closing.is_some() {
            return Some(Duration::from_millis(2));
        }
        self.changed.then(|| self.due.saturating_duration_since(Instant::now()))
    }

    /// Serialises at most one piece. It never waits for the disk.
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

    /// Writes the snapshot now and waits for the disk: the process is about to end.
    pub fn finish(mut self, index: &Index) {
        // A snapshot that is under way misses later changes: it is given up for a new one.
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
                debug!(bytes, "snapshot written");
                self.due =
                    Instant::now() + Duration::from_secs(bytes / WEAR).clamp(SHORTEST, LONGEST);
            }
            Ok(Err(error)) => self.failed(&error),
            Err(_) => self.failed(&io::Error::other("the thread that writes it panicked")),
        }
    }

    fn failed(&mut self, error: &io::Error) {
        warn!(%error, directory = %self.directory.display(), "snapshot cannot be written: a start without the API server would serve an older state");
        self.changed = true;
        self.due = Instant::now() + LONGEST;
    }
}

enum Progress {
    More,
    Complete,
    /// The thread that writes has ended with an error.
    Broken,
}

impl Job {
    fn begin(directory: &Path) -> io::Result<Job> {
        let taken = seconds_since_epoch();
        let header = serde_json::to_vec(&Header { version: VERSION, taken })?;
        let digest = Digest::new(&header);
        let (disk, pieces) = sync_channel::<Vec<u8>>(WAITING);
        let file = AtomicFile::new(directory, FILE);
        let thread = std::thread::Builder::new()
            .name("snapshot".into())
            .stack_size(256 << 10)
            .spawn(move || write_pieces(&file, &pieces))?;
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

    /// The next lines; empty at the end.
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
                        let end = Line::End {
                            objects: self.digest.lines,
                            checksum: self.digest.checksum.text(),
                        };
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

/// Writes what arrives to the disk; returns the number of bytes.
fn write_pieces(file: &AtomicFile, pieces: &Receiver<Vec<u8>>) -> io::Result<u64> {
    let mut replacement = file.replace()?;
    let mut bytes = 0;
    let mut complete = false;
    for piece in pieces {
        // An empty piece is the end: without it the snapshot was given up.
        complete |= piece.is_empty();
        bytes += piece.len() as u64;
        replacement.write_all(&piece)?;
    }
    if !complete {
        return Err(io::ErrorKind::Interrupted.into());
    }
    replacement.commit()?;
    Ok(bytes)
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
