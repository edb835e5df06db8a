//! A database that stopped writing because its disk failed.
//!
//! After a write error RocksDB refuses every write until it is opened anew, also when the disk has long been well again. So the disk is watched, and when it
//! takes writes, the daemon starts again: programs get errors while the disk fails, and notice a pause after it. A disk that lets small files
//! through and fails the database each time costs one start in [`LEAST_RUN`].

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Weak;
use std::time::{Duration, Instant};

use crate::meta::Meta;

/// How often the disk is tried.
const PAUSE: Duration = Duration::from_secs(1);
/// A daemon that has run for less does not start again for this.
const LEAST_RUN: Duration = Duration::from_secs(20);
/// Several blocks, so that the host's filesystem must allocate some.
const PROBE_BYTES: usize = 256 << 10;

/// Calls `start_again` when the folder's disk takes writes, and not before the process has run for a while. Ends when the database is closed.
pub(super) fn when_writable(folder: &Path, opened: Instant, meta: &Weak<Meta>, start_again: &dyn Fn()) {
    let path = folder.join(".probe");
    while meta.strong_count() > 0 {
        std::thread::sleep(PAUSE);
        if opened.elapsed() < LEAST_RUN {
            continue;
        }
        match probe(&path) {
            Ok(()) => return start_again(),
            Err(error) => tracing::debug!(%error, "the disk still fails"),
        }
    }
}

fn probe(path: &Path) -> io::Result<()> {
    let mut file = File::create(path)?;
    let written = file.write_all(&vec![1; PROBE_BYTES]).and_then(|()| file.sync_all());
    fs::remove_file(path)?;
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_says_whether_a_folder_can_be_written_and_leaves_nothing() {
        let dir = tempfile::tempdir_in("/var/tmp").expect("a folder");
        probe(&dir.path().join(".probe")).expect("writable");
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 0);
        assert!(probe(&dir.path().join("not there/.probe")).is_err());
    }
}
