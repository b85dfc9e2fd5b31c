//! Reads the files that settings come from.

use std::fs;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::bfd::SecretFile;
use super::file::ConfigFile;

/// Maximum number of bytes read of a file with a secret: more is a mistake, and a device has no end.
const MAX_SECRET_FILE: u64 = 4096;

/// The configuration file at this path. That it cannot be read is reported by [`super::load`].
pub fn read_config(path: PathBuf) -> ConfigFile {
    ConfigFile { text: fs::read_to_string(&path).map_err(|error| error.to_string()), path }
}

/// Contents and permissions of the same open file, to be parsed by [`super::bfd::secret`].
pub fn read_secret(path: &Path) -> SecretFile {
    let contents = || -> io::Result<(Vec<u8>, u32)> {
        let file = File::open(path)?;
        let mode = file.metadata()?.mode();
        let mut bytes = Vec::new();
        file.take(MAX_SECRET_FILE).read_to_end(&mut bytes)?;
        Ok((bytes, mode))
    };
    SecretFile { path: path.to_path_buf(), contents: contents().map_err(|error| error.to_string()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::bfd::packet::Key;
    use crate::config::bfd::{SecretWarning, secret};

    #[test]
    fn contents_permissions_and_failures() {
        let path = std::env::temp_dir().join(format!("pinnace-secret-{}", std::process::id()));
        fs::write(&path, "hush\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let found = secret(&read_secret(&path));
        fs::remove_file(&path).unwrap();
        assert_eq!(
            found,
            Ok((Key::new(b"hush").unwrap(), vec![SecretWarning::WorldReadable(path.clone())]))
        );
        assert!(secret(&read_secret(&path)).is_err());
        assert!(secret(&read_secret(&std::env::temp_dir())).is_err(), "a directory");
    }
}
