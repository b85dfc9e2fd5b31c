//! Reads the file with the shared secret.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::bfd::secret::SecretFile;

/// Maximum number of bytes read: a device has no end.
const MAX_LEN: u64 = 4096;

/// Contents and permissions of the same open file, for [`crate::bfd::secret::parse`].
pub fn read(path: &Path) -> SecretFile {
    let contents = || -> io::Result<(Vec<u8>, u32)> {
        let file = File::open(path)?;
        let mode = file.metadata()?.mode();
        let mut bytes = Vec::new();
        file.take(MAX_LEN).read_to_end(&mut bytes)?;
        Ok((bytes, mode))
    };
    SecretFile { path: path.to_path_buf(), contents: contents().map_err(|error| error.to_string()) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::bfd::packet::Key;
    use crate::bfd::secret::{SecretWarning, parse};

    #[test]
    fn contents_permissions_and_failures() {
        let path = std::env::temp_dir().join(format!("pinnace-secret-{}", std::process::id()));
        fs::write(&path, "hush\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let found = parse(&read(&path));
        fs::remove_file(&path).unwrap();
        assert_eq!(
            found,
            Ok((Key::new(b"hush").unwrap(), vec![SecretWarning::WorldReadable(path.clone())]))
        );
        assert!(parse(&read(&path)).is_err());
        assert!(parse(&read(&std::env::temp_dir())).is_err(), "a directory");
    }
}
