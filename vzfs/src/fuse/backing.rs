//! Backing ids: the kernel's handles on the files it reads and writes itself.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::Arc;

use fuser::BackingId;
use parking_lot::Mutex;

use crate::types::Ino;

/// One backing id per inode with open handles: the kernel refuses two at a time.
#[derive(Default)]
pub(super) struct Backings {
    by_ino: Mutex<HashMap<Ino, (Arc<BackingId>, u32)>>,
}

impl Backings {
    /// The inode's backing id, registered with `register` for its first handle.
    pub(super) fn acquire(
        &self,
        ino: Ino,
        file: &File,
        register: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> io::Result<Arc<BackingId>> {
        let mut by_ino = self.by_ino.lock();
        if let Some((id, users)) = by_ino.get_mut(&ino) {
            *users += 1;
            return Ok(Arc::clone(id));
        }
        let id = Arc::new(register(file)?);
        by_ino.insert(ino, (Arc::clone(&id), 1));
        Ok(id)
    }

    /// A handle is closed; with the last one the id goes.
    pub(super) fn release(&self, ino: Ino) {
        let mut by_ino = self.by_ino.lock();
        if let Some((_, users)) = by_ino.get_mut(&ino) {
            *users -= 1;
            if *users == 0 {
                by_ino.remove(&ino);
            }
        }
    }
}

/// Files open for writing in passthrough mode: the kernel changes their size and times by itself, so it must not cache those.
#[derive(Default)]
pub(super) struct Writers {
    by_ino: Mutex<HashMap<Ino, u32>>,
}

impl Writers {
    /// A handle for writing is opened.
    pub(super) fn add(&self, ino: Ino) {
        *self.by_ino.lock().entry(ino).or_insert(0) += 1;
    }

    /// A handle for writing is closed.
    pub(super) fn drop(&self, ino: Ino) {
        let mut by_ino = self.by_ino.lock();
        if let Some(handles) = by_ino.get_mut(&ino) {
            *handles -= 1;
            if *handles == 0 {
                by_ino.remove(&ino);
            }
        }
    }

    /// Whether a handle for writing is open.
    pub(super) fn has(&self, ino: Ino) -> bool {
        self.by_ino.lock().contains_key(&ino)
    }
}
