//! Digests of private data files, so that a file is hashed once as long as it stays as it is, and that files of equal content find each other.
//!
//! Nothing depends on these rows: one that is missing, does not decode or is about a file of long ago costs that a file is read again. There is
//! at most one for each data file that was ever looked at and not given up, and those of files that are gone go when they are come upon, at the
//! latest with the VE.

use rocksdb::{Direction, IteratorMode, WriteBatch};
use serde::{Deserialize, Serialize};

use super::{Meta, MetaError, SEEN, SEEN_DIGESTS, keys};
use crate::types::{Digest, Timestamp, VeId};

/// Version byte of the rows. One with another is as good as none.
const VERSION: u8 = 1;
const DIGEST_BYTES: usize = 32;

/// What a data file was when it was hashed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The inode it belonged to.
    pub ino: u64,
    /// Size in bytes.
    pub size: u64,
    /// The host's mtime.
    pub mtime: Timestamp,
    /// The host's ctime.
    pub ctime: Timestamp,
    /// BLAKE3 digest.
    pub digest: [u8; DIGEST_BYTES],
    /// What the content takes without its blocks of zeros.
    pub allocated_bytes: u64,
}

impl Seen {
    /// The row as it is stored.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![VERSION]).expect("encoding into memory has no failing part")
    }

    /// What [`Seen::encode`] made.
    pub fn decode(bytes: &[u8]) -> Option<Seen> {
        let (&VERSION, rest) = bytes.split_first()? else { return None };
        postcard::from_bytes(rest).ok()
    }
}

impl Meta {
    /// What is known of a data file.
    pub fn seen(&self, ve: VeId, data: u64) -> Result<Option<Seen>, MetaError> {
        let row = self.db.get_pinned_cf(self.table(SEEN), keys::data_file(ve, data))?;
        Ok(row.and_then(|row| Seen::decode(&row)))
    }

    /// Notes what a data file is; what was known of it before is forgotten.
    pub fn put_seen(&self, ve: VeId, data: u64, seen: &Seen) -> Result<(), MetaError> {
        let mut batch = WriteBatch::default();
        self.delete_seen(&mut batch, ve, data)?;
        batch.put_cf(self.table(SEEN), keys::data_file(ve, data), seen.encode());
        batch.put_cf(self.table(SEEN_DIGESTS), keys::seen_digest(&seen.digest, ve, data), b"");
        self.write(batch)
    }

    /// Forgets a data file.
    pub fn forget_seen(&self, ve: VeId, data: u64) -> Result<(), MetaError> {
        let mut batch = WriteBatch::default();
        self.delete_seen(&mut batch, ve, data)?;
        self.write(batch)
    }

    fn delete_seen(&self, batch: &mut WriteBatch, ve: VeId, data: u64) -> Result<(), MetaError> {
        if let Some(before) = self.seen(ve, data)? {
            batch.delete_cf(self.table(SEEN_DIGESTS), keys::seen_digest(&before.digest, ve, data));
        }
        batch.delete_cf(self.table(SEEN), keys::data_file(ve, data));
        Ok(())
    }

    /// Forgets all data files of a VE.
    pub(super) fn delete_all_seen(&self, batch: &mut WriteBatch, ve: VeId) -> Result<(), MetaError> {
        self.seen_from(ve, 0, usize::MAX)?.into_iter().try_for_each(|data| self.delete_seen(batch, ve, data))
    }

    /// Up to `count` data files that had this content when they were hashed.
    pub fn seen_with(&self, digest: &Digest, count: usize) -> Result<Vec<(VeId, u64)>, MetaError> {
        let start = IteratorMode::From(digest.as_bytes(), Direction::Forward);
        let mut found = Vec::new();
        for row in self.db.iterator_cf(self.table(SEEN_DIGESTS), start).take(count) {
            let (key, _) = row?;
            let Some(file) = key.strip_prefix(digest.as_bytes()).and_then(keys::data_file_of) else { break };
            found.push(file);
        }
        Ok(found)
    }

    /// The data files of a VE of which something is known, from `from` on, at most `count`.
    pub fn seen_from(&self, ve: VeId, from: u64, count: usize) -> Result<Vec<u64>, MetaError> {
        let start = keys::data_file(ve, from);
        let rows = self.db.iterator_cf(self.table(SEEN), IteratorMode::From(&start, Direction::Forward));
        let mut found = Vec::new();
        for row in rows.take(count) {
            let (key, _) = row?;
            match keys::data_file_of(&key) {
                Some((of, data)) if of == ve => found.push(data),
                _ => break,
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_find_each_other_by_digest_until_they_are_forgotten() {
        let dir = tempfile::tempdir_in("/var/tmp").expect("scratch folder");
        let meta = Meta::open(dir.path()).expect("database");
        let seen = |digest: u8, size| Seen {
            ino: 7,
            size,
            mtime: Timestamp::new(-1, 5),
            ctime: Timestamp::new(1, 6),
            digest: [digest; DIGEST_BYTES],
            allocated_bytes: 4096,
        };
        let (one, two) = (VeId(1), VeId(2));
        let with = |digest: u8| meta.seen_with(&Digest::from_bytes([digest; 32]), 10).expect("reads");
        for (ve, data, digest) in [(one, 3, 9), (two, 3, 9), (two, 4, 9), (one, 5, 8)] {
            meta.put_seen(ve, data, &seen(digest, data)).expect("writes");
        }
        assert_eq!(meta.seen(two, 4).expect("reads"), Some(seen(9, 4)));
        assert_eq!(with(9), [(one, 3), (two, 3), (two, 4)]);
        assert_eq!(meta.seen_with(&Digest::from_bytes([9; 32]), 2).expect("reads").len(), 2);
        assert_eq!(meta.seen_from(one, 0, 10).expect("reads"), [3, 5]);
        assert_eq!(meta.seen_from(one, 4, 10).expect("reads"), [5]);
        // One that is something else now is found as that alone.
        meta.put_seen(two, 3, &seen(8, 1)).expect("writes");
        assert_eq!((with(9), with(8)), (vec![(one, 3), (two, 4)], vec![(one, 5), (two, 3)]));
        meta.forget_seen(one, 3).expect("writes");
        assert_eq!((meta.seen(one, 3).expect("reads"), with(9)), (None, vec![(two, 4)]));
        meta.drop_private(two).expect("writes");
        assert_eq!((with(9), with(8)), (vec![], vec![(one, 5)]));
        assert_eq!(meta.seen(two, 4).expect("reads"), None);
    }
}
