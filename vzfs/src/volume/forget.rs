//! How an inode without names is freed when nobody uses it any more.
//!
//! The kernel says that it has forgotten an inode right after its last name was removed, or the last program that had it open then has closed it.
//! Each removal of many thousands would cost a batch of its own, so they wait for each other: until there are enough, or until the thread that removes
//! their data files comes by.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Result, Volume};
use crate::meta::PrivateContent;
use crate::types::Ino;

/// So many are freed with one batch. None waits for long: see [`super::PrivateData::wait`].
const FORGOTTEN_AT_ONCE: usize = 64;

impl Volume {
    /// Finishes the removal of what was removed but still open when the volume was last in use, except what the kernel still knows.
    pub fn free_orphans(&self, known: impl Fn(Ino) -> bool) -> Result<()> {
        let mut orphans = self.meta.orphans(self.ve)?;
        orphans.retain(|ino| !known(*ino));
        orphans.chunks(FORGOTTEN_AT_ONCE).try_for_each(|inodes| self.free(|| inodes.to_vec()))
    }

    /// Removes an inode for good if it has no name and no handle. The kernel has forgotten it, or a direct user has no more use for it.
    pub fn forget(&self, ino: Ino) -> Result<()> {
        self.free(|| vec![ino])
    }

    /// As [`Volume::forget`], at the latest when [`PrivateData::settle`] is called next: many are removed with one batch. A crash in between leaves
    /// them to [`Volume::free_orphans`].
    pub fn forget_soon(self: &Arc<Self>, ino: Ino) -> Result<()> {
        // Most inodes that the kernel forgets have names.
        if !self.is_orphan(ino)? {
            return Ok(());
        }
        let are_enough = {
            let mut forgotten = self.forgotten.lock();
            if forgotten.is_empty() {
                self.all_data.wait_for(self);
            }
            forgotten.push(ino);
            self.account.changed();
            forgotten.len() >= FORGOTTEN_AT_ONCE
        };
        if are_enough { self.free_forgotten() } else { Ok(()) }
    }

    /// Removes what [`Volume::forget_soon`] was told of.
    pub fn free_forgotten(&self) -> Result<()> {
        // Taken with `names` held: who looks at the tables passes over what is in the list.
        self.free(|| std::mem::take(&mut *self.forgotten.lock()))
    }

    fn free(&self, inodes: impl FnOnce() -> Vec<Ino>) -> Result<()> {
        let data = {
            let _exclusive = self.names.write();
            self.free_records(&inodes())?
        };
        self.all_data.add(self.ve, &data);
        Ok(())
    }

    /// Removes the records of those that have neither names nor handles, and returns their data files. The caller holds `names` exclusively.
    fn free_records(&self, inodes: &[Ino]) -> Result<Vec<u64>> {
        let mut batch = self.batch();
        let (mut freed, mut data) = (Vec::new(), Vec::new());
        for &ino in inodes.iter().filter(|ino| !self.is_open(**ino)) {
            let Some(record) = self.meta.inode(self.ve, ino)?.filter(|record| record.nlink == 0) else {
                continue;
            };
            batch.delete_inode(ino, &record)?;
            if let PrivateContent::Data { id, .. } = record.content {
                batch.put_removal(id);
                data.push(id);
            }
            freed.push(ino);
        }
        if !freed.is_empty() {
            batch.commit()?;
            freed.into_iter().for_each(|ino| self.joined.forget(ino));
        }
        Ok(data)
    }

    /// What is about to be freed: nobody has it any more. The caller holds `names`.
    pub(super) fn are_forgotten(&self) -> HashSet<Ino> {
        self.forgotten.lock().iter().copied().collect()
    }

    /// Whether an inode is an orphan: without names, waiting to be forgotten.
    pub fn is_orphan(&self, ino: Ino) -> Result<bool> {
        Ok(self.meta.is_orphan(self.ve, ino)?)
    }
}
