//! Reads the configuration file.

use std::fs;
use std::path::PathBuf;

use super::file::ConfigFile;

/// The configuration file at this path. That it cannot be read is reported by [`super::load`].
pub fn read(path: PathBuf) -> ConfigFile {
    ConfigFile { text: fs::read_to_string(&path).map_err(|error| error.to_string()), path }
}
