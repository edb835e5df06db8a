//! Removing blobs that nobody needs, beside batches that may come to need them again.

use std::collections::HashSet;

use rustix::fs::{self, AtFlags};
use rustix::io::Errno;

use super::store::relative;
use super::{BlobError, BlobStore};
use crate::types::Digest;

/// Blobs that are to be removed, until a batch comes upon one of them: it then takes it off the list and may rely on it (invariant 2).
/// Dropping this forgets the list; what was not removed by then stays.
pub struct Condemned<'a> {
    store: &'a BlobStore,
}

impl BlobStore {
    /// Makes the list. The caller knows that nothing refers to these blobs at this moment, that no batch is open (it might have come upon one
    /// of them before there was a list), and that there is no other list.
    pub fn condemn(&self, digests: HashSet<Digest>) -> Condemned<'_> {
        *self.condemned.lock() = digests;
        Condemned { store: self }
    }

    /// Takes a blob off the list. Whoever has done so before he looks for the blob finds it, or will not find it later either.
    pub(super) fn reprieve(&self, digest: &Digest) {
        self.condemned.lock().remove(digest);
    }
}

impl Condemned<'_> {
    /// Removes a blob. `false` when a batch has taken it off the list, or it is gone already.
    pub fn remove(&self, digest: &Digest) -> Result<bool, BlobError> {
        // Held over the removal: a batch either comes before it, and the blob stays, or does not find the blob any more.
        let mut condemned = self.store.condemned.lock();
        if !condemned.remove(digest) {
            return Ok(false);
        }
        match fs::unlinkat(self.store.root(), relative(digest), AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(BlobError::io("remove", self.store.path(digest))(errno)),
        }
    }
}

impl Drop for Condemned<'_> {
    fn drop(&mut self) {
        self.store.condemned.lock().clear();
    }
}
