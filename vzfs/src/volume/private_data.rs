//! The private data files of all VEs, and how a file goes that no record names any more.
//!
//! The batch that removes a file's record is durable with the next sync only, and until then a power failure brings the record back. The host's
//! filesystem, though, may make the removal of the file durable at once. So a file does not go with its record: the batch writes down that it is to go
//! (a *removal*), and it goes when that batch is durable. A crash in between leaves the removal, and the next start carries it out.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::fs::StatVfs;

use super::data::DataFolder;
use super::{Volume, VolumeError};
use crate::meta::{Meta, MetaError};
use crate::types::VeId;

/// So many files wait at most until somebody is woken to remove them.
const MAX_WAITING_FILES: usize = 1000;
/// And, while there is space on the disk, this part of what is free.
const MAX_WAITING_PART: u64 = 16;

/// What is free on a filesystem, as it tells, for who may not use what is kept for root.
pub fn free_bytes(space: &StatVfs) -> u64 {
    space.f_bavail.saturating_mul(space.f_frsize)
}

/// The private data of one store.
pub struct PrivateData {
    /// The folder of all VEs' folders.
    dir: PathBuf,
    meta: Arc<Meta>,
    /// A leaf.
    waiting: Mutex<Waiting>,
    wake: Condvar,
}

#[derive(Default)]
struct Waiting {
    files: Vec<(VeId, u64)>,
    /// Those that have forgotten inodes.
    volumes: Vec<Weak<Volume>>,
    bytes: u64,
    urgent: bool,
    ended: bool,
}

impl Waiting {
    fn is_idle(&self) -> bool {
        self.files.is_empty() && self.volumes.is_empty()
    }
}

impl PrivateData {
    /// In a folder that exists. What was to be removed when the store was last in use waits to be removed now.
    pub fn open(dir: &Path, meta: Arc<Meta>) -> Result<PrivateData, MetaError> {
        let waiting = Waiting { files: meta.removals()?, ..Waiting::default() };
        Ok(PrivateData { dir: dir.to_owned(), meta, waiting: Mutex::new(waiting), wake: Condvar::new() })
    }

    pub(super) fn folder(&self, ve: VeId) -> DataFolder {
        DataFolder::new(&self.dir, ve)
    }

    /// Files of a VE are to go, and the batch that says so is written.
    pub(super) fn add(&self, ve: VeId, ids: &[u64]) {
        if ids.is_empty() {
            return;
        }
        let folder = self.folder(ve);
        let bytes: u64 =
            ids.iter().map(|id| folder.stat(*id).map_or(0, |host| host.blocks.saturating_mul(512))).sum();
        let free = folder.space().map_or(0, |space| free_bytes(&space));
        let mut waiting = self.waiting.lock();
        let was_idle = waiting.is_idle();
        waiting.files.extend(ids.iter().map(|id| (ve, *id)));
        waiting.bytes = waiting.bytes.saturating_add(bytes);
        waiting.urgent |= waiting.files.len() >= MAX_WAITING_FILES || waiting.bytes > free / MAX_WAITING_PART;
        if was_idle || waiting.urgent {
            self.wake.notify_all();
        }
    }

    /// A volume has inodes that are to be freed.
    pub(super) fn wait_for(&self, volume: &Arc<Volume>) {
        let mut waiting = self.waiting.lock();
        let was_idle = waiting.is_idle();
        waiting.volumes.push(Arc::downgrade(volume));
        if was_idle {
            self.wake.notify_all();
        }
    }

    /// Frees what volumes have forgotten, and removes all files that are to go by now. Tells how many files that were. Not to be called with a lock of a
    /// volume but `copying`.
    ///
    /// # Errors
    /// Those of writing and syncing the database: the files wait on. A file that cannot be removed is tried again at the next start.
    pub fn settle(&self) -> Result<usize, VolumeError> {
        let volumes = std::mem::take(&mut self.waiting.lock().volumes);
        let freed: Vec<_> =
            volumes.iter().filter_map(Weak::upgrade).map(|volume| volume.free_forgotten()).collect();
        // One that fails is no reason for the others to wait: they are not told of again.
        freed.into_iter().collect::<Result<(), VolumeError>>()?;
        let files = {
            let mut waiting = self.waiting.lock();
            (waiting.bytes, waiting.urgent) = (0, false);
            std::mem::take(&mut waiting.files)
        };
        if files.is_empty() {
            return Ok(0);
        }
        if let Err(error) = self.meta.sync() {
            self.waiting.lock().files.extend(files);
            return Err(error.into());
        }
        let mut gone = Vec::with_capacity(files.len());
        for (ve, id) in files {
            match self.folder(ve).remove(id) {
                Ok(()) => gone.push((ve, id)),
                Err(error) => tracing::error!(%ve, %error, "it is tried again at the next start"),
            }
        }
        self.meta.forget_removals(&gone)?;
        Ok(gone.len())
    }

    /// Waits until there is something to go and it has waited for `patience`, or cannot wait. `false` after [`PrivateData::end`].
    pub fn wait(&self, patience: Duration) -> bool {
        let mut waiting = self.waiting.lock();
        while waiting.is_idle() && !waiting.ended {
            self.wake.wait(&mut waiting);
        }
        let deadline = std::time::Instant::now() + patience;
        while !waiting.urgent && !waiting.ended {
            if self.wake.wait_until(&mut waiting, deadline).timed_out() {
                break;
            }
        }
        !waiting.ended
    }

    /// Ends every [`PrivateData::wait`].
    pub fn end(&self) {
        self.waiting.lock().ended = true;
        self.wake.notify_all();
    }

    /// Does `work`, and once more after removing what is to go if the disk was full and that has made room.
    pub(super) fn make_room<T>(
        &self,
        mut work: impl FnMut() -> Result<T, VolumeError>,
    ) -> Result<T, VolumeError> {
        match work() {
            Err(error) if error.is_full() && self.settle()? > 0 => work(),
            done => done,
        }
    }

    /// Removes all data files of a VE that is no more.
    pub fn remove_all(dir: &Path, ve: VeId) -> std::io::Result<()> {
        match fs::remove_dir_all(dir.join(ve.to_string())) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
