//! Reading one file of the directory.

use std::fs::{self, File, Metadata};
use std::hash::{Hash, Hasher};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use siphasher::sip::SipHasher13;

/// Maximum size of a file in bytes. A larger one is reported and not read.
const LARGEST_FILE: u64 = 64 << 20;

/// Identifies a version of a file without reading it: a digest of its mtime, size and inode; not 0.
pub(super) type Stamp = u64;

pub(super) fn stamp(metadata: &Metadata) -> Stamp {
    let mut hasher = SipHasher13::new();
    (metadata.mtime(), metadata.mtime_nsec(), metadata.size(), metadata.ino(), metadata.dev())
        .hash(&mut hasher);
    hasher.finish().max(1)
}

/// Why a file was not read.
pub(super) enum Unreadable {
    Gone,
    Because(String),
}

pub(super) fn read_text(path: &Path) -> Result<(String, Stamp), Unreadable> {
    const KEPT: &str = "what it last defined goes on serving";
    let because = |reason: String| Unreadable::Because(format!("{reason}; {KEPT}"));
    let unreadable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound if fs::symlink_metadata(path).is_ok() => {
            because("the link leads nowhere".into())
        }
        io::ErrorKind::NotFound => Unreadable::Gone,
        _ => because(format!("cannot be read ({error})")),
    };
    // Opening a FIFO must not block.
    let options = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = File::options().read(true).custom_flags(options).open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(because("is not a regular file".into()));
    }
    let too_large = || because(format!("is larger than {} MiB; split it", LARGEST_FILE >> 20));
    if metadata.size() > LARGEST_FILE {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.size()).unwrap_or_default());
    file.take(LARGEST_FILE + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(too_large());
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok((text, stamp(&metadata))),
        Err(error) => {
            let before =
                error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
            let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
            Err(because(format!("is not UTF-8 text (line {line})")))
        }
    }
}
