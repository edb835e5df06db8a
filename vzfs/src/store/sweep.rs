//! Giving back the space of trees and blobs that no record leads to any more.

use std::collections::HashSet;

use super::records::BaseRecord;
use super::{Store, StoreError};
use crate::meta::Table;
use crate::types::Digest;

impl Store {
    /// Removes what nothing refers to. Returns the bytes freed, or `None` when something is being added at this
    /// moment (S5): the next sweep finds it all again.
    ///
    /// A blob is needed when a template's layer or a VE's base names it: private records of a VE name blobs of its base
    /// only. A remembered base that no VE uses goes too, because it can be made again.
    pub(super) fn sweep(&self) -> Result<Option<u64>, StoreError> {
        let Some(_alone) = self.adding.try_write() else { return Ok(None) };
        let mut used: HashSet<Digest> = HashSet::new();
        {
            let catalog = self.catalog.read();
            used.extend(catalog.templates.values().map(|record| record.layer));
            for slot in catalog.ves.values() {
                let record = slot.record();
                used.insert(record.base);
                used.extend(record.stack.iter().map(|item| item.layer));
            }
        }
        let trees = self.trees.list()?;
        let mut blobs: HashSet<Digest> = HashSet::new();
        // All trees are read before anything is removed: one that cannot be read stops the sweep, for its blobs would
        // look unused.
        for digest in &used {
            blobs.extend(self.trees.open(digest)?.blobs().map(|(digest, _)| digest));
        }
        for (key, record) in self.meta.list::<BaseRecord>(Table::Base)? {
            if !used.contains(&record.base) {
                self.meta.delete(Table::Base, &key)?;
                self.base_bytes.lock().remove(&record.base);
            }
        }
        let mut freed_bytes = 0;
        // Trees before blobs: a crash in between leaves blobs without a tree, never a tree without its blobs.
        for digest in trees {
            if !used.contains(&digest) {
                let path = self.layout.trees().join(digest.to_hex());
                freed_bytes += std::fs::metadata(path).map_or(0, |metadata| metadata.len());
                self.trees.remove(&digest)?;
            }
        }
        for item in self.blobs.list()? {
            let (digest, size) = item?;
            if !blobs.contains(&digest) {
                self.blobs.remove(&digest)?;
                freed_bytes += size;
            }
        }
        Ok(Some(freed_bytes))
    }
}
