//! Keeps syncs away from a log that could not be written.
//!
//! RocksDB takes it for an error in the program that uses it when its log is synced after an append to it has failed, and ends the process if it was built with
//! assertions, as Debian's is (`AssertFalseAndGetStatusForPrevError` in its `file/writable_file_writer.h`). A daemon that ends so cannot be started again
//! while its disk does not answer. A sync has nothing to say then but that the log cannot be written.

use parking_lot::{Mutex, RwLock};
use rocksdb::Error;

use super::DiskFailure;

/// Writes and syncs of one database.
#[derive(Debug, Default)]
pub(super) struct Writing {
    /// Shared by who writes. Who wants to sync takes it for a moment, so that what fails just now is known.
    underway: RwLock<()>,
    /// Why the last write was refused, if it was. A leaf.
    refused: Mutex<Option<Error>>,
}

impl Writing {
    /// Runs a write.
    pub(super) fn write(&self, write: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        let _underway = self.underway.read();
        let was_refused = self.refused.lock().is_some();
        let result = write();
        match &result {
            // RocksDB goes on by itself, and with another log.
            Ok(()) if was_refused => *self.refused.lock() = None,
            Err(error) if DiskFailure::of(error.kind(), error.as_ref()).is_some() => {
                *self.refused.lock() = Some(error.clone());
            }
            _ => {}
        }
        result
    }

    /// Runs a sync, unless the last write was refused: then that is what it fails with.
    pub(super) fn sync(&self, sync: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        drop(self.underway.write());
        let refused = self.refused.lock().clone();
        refused.map_or_else(sync, Err)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;

    /// What RocksDB says of a disk.
    fn failure() -> Error {
        let folder = tempfile::tempdir_in("/var/tmp").expect("a folder");
        std::fs::create_dir(folder.path().join("CURRENT")).expect("made");
        rocksdb::DB::open_for_read_only(&rocksdb::Options::default(), &folder, false)
            .expect_err("a directory has no content")
    }

    #[test]
    fn after_a_refused_write_nothing_is_synced_until_one_succeeds() {
        let writing = Writing::default();
        let synced = || {
            let mut ran = false;
            let result = writing.sync(|| {
                ran = true;
                Ok(())
            });
            (ran, result.is_ok())
        };
        assert_eq!(synced(), (true, true));
        writing.write(|| Err(failure())).expect_err("refused");
        assert_eq!(synced(), (false, false));
        assert_eq!(synced(), (false, false));
        writing.write(|| Ok(())).expect("it goes on");
        assert_eq!(synced(), (true, true));
        // One that began earlier says nothing of what failed meanwhile.
        writing
            .write(|| {
                writing.write(|| Err(failure())).expect_err("refused");
                Ok(())
            })
            .expect("done");
        assert_eq!(synced(), (false, false));
    }

    #[test]
    fn who_syncs_knows_of_a_write_that_was_under_way() {
        let writing = Writing::default();
        let (started, start) = channel();
        let (go, wait) = channel();
        let writing = &writing;
        thread::scope(|scope| {
            scope.spawn(move || {
                let failed = writing.write(|| {
                    started.send(()).expect("somebody listens");
                    wait.recv().expect("somebody says go on");
                    Err(failure())
                });
                failed.expect_err("refused");
            });
            start.recv().expect("it is under way");
            let sync = scope.spawn(|| writing.sync(|| Ok(())));
            go.send(()).expect("it waits");
            assert!(sync.join().expect("it ends").is_err());
        });
    }
}
