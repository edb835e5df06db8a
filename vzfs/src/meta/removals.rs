//! Data files that are to go when the batch that took their records away is durable.

use rocksdb::{IteratorMode, WriteBatch};

use super::{Changes, Meta, MetaError, REMOVALS, damaged, keys};
use crate::types::VeId;

impl Changes<'_> {
    /// Writes down that a data file is to go.
    pub fn put_removal(&mut self, id: u64) {
        self.batch.put_cf(self.meta.table(REMOVALS), keys::data_file(self.ve, id), b"");
    }
}

impl Meta {
    /// All data files that are to go.
    pub fn removals(&self) -> Result<Vec<(VeId, u64)>, MetaError> {
        let mut files = Vec::new();
        for row in self.db.iterator_cf(self.table(REMOVALS), IteratorMode::Start) {
            let (key, _) = row?;
            let file = keys::data_file_of(&key);
            files.push(file.ok_or_else(|| damaged(REMOVALS, &key, &"the key is no data file"))?);
        }
        Ok(files)
    }

    /// These files are gone. If a crash undoes this, they are removed again.
    pub fn forget_removals(&self, files: &[(VeId, u64)]) -> Result<(), MetaError> {
        let mut batch = WriteBatch::default();
        for (ve, id) in files {
            batch.delete_cf(self.table(REMOVALS), keys::data_file(*ve, *id));
        }
        self.write(batch)?;
        self.log.advance();
        Ok(())
    }
}
