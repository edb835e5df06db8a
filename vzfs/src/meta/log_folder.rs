//! Where RocksDB writes its own log: in memory, not in the store.
//!
//! A build of RocksDB with assertions, as Debian's is, aborts when its log cannot be written twice in a row. On a full disk that would end the daemon, and
//! its next start, and the one after that; nobody could make room. The records do not depend on this log, and what goes wrong comes back as errors.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// A folder of tmpfs on every system with systemd, and on most without.
const PARENT: &str = "/run/vzfs/rocksdb";

/// The folder for the log of one database. Removed when the database is closed in order; else the next one to open it goes on there.
#[derive(Debug)]
pub(super) struct LogFolder {
    path: PathBuf,
}

impl LogFolder {
    /// That of the database in `dir`; `None`, with a warning, where there can be none: then the log is in `dir`.
    pub(super) fn of(dir: &Path) -> Option<LogFolder> {
        let canonical = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
        let name = blake3::hash(canonical.as_os_str().as_encoded_bytes()).to_hex();
        let path = Path::new(PARENT).join(&name[..16]);
        match DirBuilder::new().recursive(true).mode(0o700).create(&path) {
            Ok(()) => Some(LogFolder { path }),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the database's log is in the store");
                None
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LogFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "the database's log stays");
        }
    }
}
