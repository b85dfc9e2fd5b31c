//! The inotify instance that watches the directory.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

/// One inotify instance: replaced when the directory itself comes or goes, which spares tracking
/// which watch is which.
pub(super) struct Inotify {
    pub(super) fd: OwnedFd,
    /// The watch of the directory; None while it does not exist.
    pub(super) dir: Option<i32>,
    /// The watch of the nearest existing parent, and the name in it that leads to the directory.
    pub(super) parent: Option<(i32, Vec<u8>)>,
}

impl Inotify {
    /// Watches the directory and the nearest existing parent of its name, whose entry may be
    /// replaced. None when the kernel has no instance or watch left. True beside it when a parent
    /// came into being meanwhile, of which no event will tell: attach again.
    pub(super) fn attach(directory: &Path) -> (Option<Inotify>, bool) {
        let Ok(fd) = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK) else {
            return (None, false);
        };
        let mut parent = None;
        let mut child = directory;
        let mut child_was_missing = false;
        while let Some(up) = child.parent() {
            let entries = WatchFlags::CREATE
                | WatchFlags::MOVED_TO
                | WatchFlags::MOVED_FROM
                | WatchFlags::DELETE;
            let own = WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF | WatchFlags::ONLYDIR;
            match inotify::add_watch(&fd, up, entries | own) {
                Ok(wd) => {
                    parent = Some((wd, child.file_name().unwrap_or_default().as_bytes().to_vec()));
                    break;
                }
                Err(error) => child_was_missing = error == Errno::NOENT,
            }
            child = up;
        }
        let parent_appeared = child_was_missing && child.is_dir();
        let content = WatchFlags::CLOSE_WRITE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::CREATE
            | WatchFlags::DELETE;
        let moves = WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        let inotify = match inotify::add_watch(&fd, directory, content | moves) {
            // Out of watches: without events only looking helps.
            Err(Errno::NOSPC | Errno::NOMEM) => None,
            dir => Some(Inotify { fd, dir: dir.ok(), parent }),
        };
        (inotify, parent_appeared)
    }
}
