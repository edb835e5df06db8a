//! A database that stopped writing because its disk failed, or gave it no space.
//!
//! After a write error RocksDB refuses every write until it is opened anew, also when the disk has long been well again; a full disk alone it gets over
//! by itself. So the disk is watched, and when it takes writes, the daemon starts again: programs get errors while the disk fails, and notice
//! a pause after it. A disk that lets small files through and fails the database each time costs one start in [`LEAST_RUN`].
//!
//! When there is no space, on the disk or by a quota, nothing could be removed either. Then the daemon starts again at once if the reserve has
//! what the database needs to open. Each such start takes of the reserve, so they come to an end.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::reserve::{LOG_ROOM_BYTES, Reserve};
use crate::meta::{DiskFailure, Meta};

/// How often the disk is tried.
const PAUSE: Duration = Duration::from_secs(1);
/// A daemon that has run for less does not start again for this.
const LEAST_RUN: Duration = Duration::from_secs(20);
/// Several blocks, so that the host's filesystem must allocate some.
const PROBE_BYTES: usize = 256 << 10;

/// Decides whether opening the database anew would make it write.
pub(super) struct Reviver {
    folder: PathBuf,
    meta: Weak<Meta>,
    reserve: Arc<Reserve>,
    opened: Instant,
    start_again: Box<dyn Fn(DiskFailure) + Send + Sync>,
    watching: AtomicBool,
}

impl Reviver {
    /// For the database that has just been opened, of the store in `folder`.
    pub(super) fn new(
        folder: PathBuf,
        meta: &Arc<Meta>,
        reserve: Arc<Reserve>,
        start_again: Box<dyn Fn(DiskFailure) + Send + Sync>,
    ) -> Arc<Reviver> {
        Arc::new(Reviver {
            folder,
            meta: Arc::downgrade(meta),
            reserve,
            opened: Instant::now(),
            start_again,
            watching: AtomicBool::new(false),
        })
    }

    /// A write has failed for this reason.
    pub(super) fn failed(self: &Arc<Reviver>, failure: DiskFailure) {
        if failure == DiskFailure::Full {
            if self.reserve.bytes() >= self.needed_bytes() && self.reserve.is_low() {
                (self.start_again)(failure);
            }
            return;
        }
        if self.watching.swap(true, Ordering::Relaxed) {
            return;
        }
        // If there is space meanwhile, the reserve would not be given up: the watch sees to that case.
        if failure == DiskFailure::Quota
            && self.reserve.bytes() >= self.needed_bytes()
            && self.reserve.is_needed()
        {
            (self.start_again)(failure);
        }
        tracing::error!(
            ?failure,
            "the database could not write and refuses to until the disk takes writes again"
        );
        let watcher = Arc::clone(self);
        let watch = move || watcher.watch(failure);
        if std::thread::Builder::new().name("revive".to_owned()).spawn(watch).is_err() {
            self.watching.store(false, Ordering::Relaxed);
        }
    }

    /// What the database writes when it is opened, and sets aside then.
    fn needed_bytes(&self) -> u64 {
        self.meta.upgrade().map_or(0, |meta| meta.unflushed_bytes()) + LOG_ROOM_BYTES
    }

    /// Starts again when the folder's disk takes writes, and not before the process has run for a while. Ends when the database is closed.
    fn watch(&self, failure: DiskFailure) {
        let path = self.folder.join(".probe");
        while self.meta.strong_count() > 0 {
            std::thread::sleep(PAUSE);
            if self.opened.elapsed() < LEAST_RUN {
                continue;
            }
            match probe(&path) {
                Ok(()) if self.reserve.is_refused(self.needed_bytes()) => {
                    tracing::debug!("there is not enough space yet");
                }
                Ok(()) => return (self.start_again)(failure),
                Err(error) => tracing::debug!(%error, "the disk still fails"),
            }
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
