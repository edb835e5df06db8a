//! The private tables, typed.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::Ordering;

use rocksdb::{DBIteratorWithThreadMode, Direction, IteratorMode, ReadOptions, WriteBatch};
use serde::Serialize;

use super::recent::Found;
use super::record::{EntryRecord, InodeRecord, PrivateContent};
use super::{
    COUNTERS, ENTRIES, INODES, Meta, MetaError, ORPHANS, OUTCOMES_TABLE, REMOVALS, Table, damaged, keys,
};
use crate::sys::{self, Verdict};
use crate::types::{Digest, Ino, Name, NameRef, VeId};

/// The writes of one filesystem operation, applied together or not at all.
pub struct Changes<'m> {
    pub(super) meta: &'m Meta,
    pub(super) ve: VeId,
    pub(super) batch: WriteBatch,
    /// What the batch puts into the orphan table: nothing, or an inode or two.
    orphans: Vec<Ino>,
    /// The inodes' records that the batch writes or removes, in order.
    records: Vec<(Ino, Option<InodeRecord>)>,
    /// What is written, if somebody wants to know.
    written: Option<Written>,
}

impl Changes<'_> {
    /// Writes an inode's record and keeps the orphan table in step with its `nlink` (M3).
    pub fn put_inode(&mut self, ino: Ino, record: &InodeRecord) {
        self.note_inode(ino);
        let key = keys::inode(self.ve, ino);
        self.batch.put_cf(self.meta.table(INODES), key, record.encode());
        self.records.push((ino, Some(record.clone())));
        if record.nlink == 0 {
            self.batch.put_cf(self.meta.table(ORPHANS), key, b"");
            self.orphans.push(ino);
        } else if self.may_be_orphan(ino) {
            self.batch.delete_cf(self.meta.table(ORPHANS), key);
        }
    }

    /// Whether the orphan table may have an inode. Hardly any that gets a record does: looking is cheaper than writing that it is not there.
    fn may_be_orphan(&self, ino: Ino) -> bool {
        if self.orphans.contains(&ino) {
            return true;
        }
        match self.meta.recent.find(self.ve, ino) {
            // M3.
            Found::Known(record) => record.is_some_and(|record| record.nlink == 0),
            // What cannot be read may be there.
            Found::Unknown(_) => self.meta.is_orphan(self.ve, ino).unwrap_or(true),
        }
    }

    /// Removes an inode's record and everything below it in the entries table.
    pub fn delete_inode(&mut self, ino: Ino, record: &InodeRecord) -> Result<(), MetaError> {
        self.delete_record(ino);
        if record.kind == crate::types::FileKind::Dir {
            // One by one: hardly any directory has entries when it is removed, and a range that was removed costs every look-up after it.
            for row in self.meta.entries_from(self.ve, ino, 0) {
                let row = row?;
                self.delete_entry(ino, row.name.as_ref());
            }
        }
        Ok(())
    }

    /// Removes an inode's record alone, so that the base's shows again if it has the inode.
    pub fn delete_record(&mut self, ino: Ino) {
        self.note_inode(ino);
        let key = keys::inode(self.ve, ino);
        self.batch.delete_cf(self.meta.table(INODES), key);
        self.records.push((ino, None));
        self.batch.delete_cf(self.meta.table(ORPHANS), key);
    }

    /// Writes an entry.
    pub fn put_entry(&mut self, dir: Ino, name: NameRef<'_>, entry: EntryRecord) {
        self.note_entry(dir, name);
        self.batch.put_cf(self.meta.table(ENTRIES), keys::entry(self.ve, dir, name), entry.encode());
    }

    /// Forgets an entry, so that the base's shows again if it has one.
    pub fn delete_entry(&mut self, dir: Ino, name: NameRef<'_>) {
        self.note_entry(dir, name);
        self.batch.delete_cf(self.meta.table(ENTRIES), keys::entry(self.ve, dir, name));
    }

    /// Writes a catalog record together with the rest.
    pub fn put_catalog<T: Serialize>(&mut self, table: Table, key: &str, value: &T) -> Result<(), MetaError> {
        self.meta.put_catalog(&mut self.batch, table, key, value)
    }

    /// Applies everything atomically. Durable after the next [`Meta::sync`].
    ///
    /// # Errors
    /// [`MetaError::Unfounded`] when this thread made the changes of what it could not read: nothing is written.
    pub fn commit(self) -> Result<(), MetaError> {
        if sys::settle() != Verdict::Sound {
            return Err(MetaError::Unfounded);
        }
        let writing = self.meta.recent.begin(self.ve, self.records);
        self.meta.write(self.batch)?;
        writing.done();
        let mark = self.meta.log.advance();
        // Of two that end at the same time the later one may come first.
        self.meta.marks.lock().entry(self.ve).and_modify(|of_ve| *of_ve = mark.max(*of_ve)).or_insert(mark);
        if let Some(written) = self.written
            && let Some(watched) = self.meta.watched.lock().get_mut(&self.ve)
        {
            watched.inodes.extend(written.inodes);
            watched.entries.extend(written.entries);
        }
        Ok(())
    }

    fn note_inode(&mut self, ino: Ino) {
        if let Some(written) = &mut self.written {
            written.inodes.insert(ino);
        }
    }

    fn note_entry(&mut self, dir: Ino, name: NameRef<'_>) {
        if let Some(written) = &mut self.written {
            written.entries.insert((dir, name.to_name()));
        }
    }
}

/// Keys of the private tables that were written.
#[derive(Debug, Default)]
pub struct Written {
    /// Inodes whose records were.
    pub inodes: BTreeSet<Ino>,
    /// Names that were.
    pub entries: BTreeSet<(Ino, Name)>,
}

/// The inode that a row is about, its key and its value.
type KeyedRow = (Ino, Box<[u8]>, Box<[u8]>);

/// Number, key and value of a row.
type NumberedRow = (u64, Box<[u8]>, Box<[u8]>);

/// Notes what is written to a VE's private tables, from [`Meta::watch`] on. One at a time for a VE.
pub struct Watch<'m> {
    meta: &'m Meta,
    ve: VeId,
}

impl Watch<'_> {
    /// What was written so far.
    pub fn take(&self) -> Written {
        self.meta.watched.lock().get_mut(&self.ve).map(std::mem::take).unwrap_or_default()
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.meta.watched.lock().remove(&self.ve);
        self.meta.watches.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One private entry with its position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrivateEntry {
    /// The directory it is in.
    pub dir: Ino,
    /// Hash of the name.
    pub hash57: u64,
    /// The name.
    pub name: Name,
    /// What it says.
    pub entry: EntryRecord,
}

/// Entries in the order (directory, hash, name).
pub struct PrivateEntries<'m> {
    rows: DBIteratorWithThreadMode<'m, rocksdb::DB>,
}

impl Iterator for PrivateEntries<'_> {
    type Item = Result<PrivateEntry, MetaError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (key, value) = match self.rows.next()? {
            Ok(row) => row,
            Err(error) => return Some(Err(error.into())),
        };
        let Some((dir, hash57, name)) = keys::entry_parts(&key) else {
            return Some(Err(damaged(ENTRIES, &key, &"the key is no position in a directory")));
        };
        let name = name.to_name();
        Some(match EntryRecord::decode(&value) {
            Ok(entry) => Ok(PrivateEntry { dir, hash57, name, entry }),
            Err(why) => Err(damaged(ENTRIES, &key, &why)),
        })
    }
}

impl Meta {
    /// Begins an operation on a VE.
    pub fn changes(&self, ve: VeId) -> Changes<'_> {
        // Relaxed: who watches sees to it that no operation is under way when it begins.
        let watched = self.watches.load(Ordering::Relaxed) > 0 && self.watched.lock().contains_key(&ve);
        let written = watched.then(Written::default);
        Changes {
            meta: self,
            ve,
            batch: WriteBatch::default(),
            orphans: Vec::new(),
            records: Vec::new(),
            written,
        }
    }

    /// Notes what is written to a VE's private tables from now on. The caller sees to it that no operation on the VE is under way now.
    pub fn watch(&self, ve: VeId) -> Watch<'_> {
        self.watched.lock().insert(ve, Written::default());
        self.watches.fetch_add(1, Ordering::Relaxed);
        Watch { meta: self, ve }
    }

    /// The private record of an inode.
    pub fn inode(&self, ve: VeId, ino: Ino) -> Result<Option<InodeRecord>, MetaError> {
        let ticket = match self.recent.find(ve, ino) {
            Found::Known(record) => return Ok(record),
            Found::Unknown(ticket) => ticket,
        };
        let key = keys::inode(ve, ino);
        let value = self.db.get_pinned_cf(self.table(INODES), key)?;
        let record = value.map(|value| InodeRecord::decode(&value)).transpose();
        let record = record.map_err(|why| damaged(INODES, &key, &why))?;
        self.recent.keep(ve, ino, &ticket, record.as_ref());
        Ok(record)
    }

    /// The private entry of a name.
    pub fn entry(&self, ve: VeId, dir: Ino, name: NameRef<'_>) -> Result<Option<EntryRecord>, MetaError> {
        let key = keys::entry(ve, dir, name);
        let Some(value) = self.db.get_pinned_cf(self.table(ENTRIES), &key)? else { return Ok(None) };
        EntryRecord::decode(&value).map(Some).map_err(|why| damaged(ENTRIES, &key, &why))
    }

    /// The private entries of a directory whose hash is at least `hash57`.
    pub fn entries_from(&self, ve: VeId, dir: Ino, hash57: u64) -> PrivateEntries<'_> {
        self.entries_between(keys::position(ve, dir, hash57, b""), keys::directory_end(ve, dir))
    }

    /// All private entries of a VE.
    pub fn all_entries(&self, ve: VeId) -> PrivateEntries<'_> {
        let end = keys::ve_end(ve).map_or_else(|| vec![0xff; 32], Vec::from);
        self.entries_between(keys::ve(ve).to_vec(), end)
    }

    fn entries_between(&self, start: Vec<u8>, end: Vec<u8>) -> PrivateEntries<'_> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(end);
        let mode = IteratorMode::From(&start, Direction::Forward);
        PrivateEntries { rows: self.db.iterator_cf_opt(self.table(ENTRIES), options, mode) }
    }

    /// All private inodes of a VE, ordered by number.
    pub fn all_inodes(&self, ve: VeId) -> Result<Vec<(Ino, InodeRecord)>, MetaError> {
        self.inodes_from(ve, None, usize::MAX)
    }

    /// The next `count` private inodes of a VE, from `from` on, ordered by number.
    pub fn inodes_from(
        &self,
        ve: VeId,
        from: Option<Ino>,
        count: usize,
    ) -> Result<Vec<(Ino, InodeRecord)>, MetaError> {
        let decoded = |(ino, key, value): KeyedRow| {
            let record = InodeRecord::decode(&value).map_err(|why| damaged(INODES, &key, &why))?;
            Ok((ino, record))
        };
        self.keyed(INODES, ve, from).take(count).map(|row| row.and_then(decoded)).collect()
    }

    /// Calls `visit` with every blob that a private record of any VE names and its size, as of one moment. One that several records name comes several
    /// times.
    pub fn for_each_private_blob(&self, visit: &mut dyn FnMut(VeId, Digest, u64)) -> Result<(), MetaError> {
        for row in self.db.iterator_cf(self.table(INODES), IteratorMode::Start) {
            let (key, value) = row?;
            let record = InodeRecord::decode(&value).map_err(|why| damaged(INODES, &key, &why))?;
            if let PrivateContent::Blob { digest, size, .. } = record.content {
                let ve = keys::ve_of(&key).ok_or_else(|| damaged(INODES, &key, &"the key is no inode"))?;
                visit(ve, Digest::from_bytes(digest), size);
            }
        }
        Ok(())
    }

    /// The numbers of all private inodes of a VE, in order.
    pub fn inode_numbers(&self, ve: VeId) -> impl Iterator<Item = Result<Ino, MetaError>> {
        self.keyed(INODES, ve, None).map(|row| row.map(|(ino, ..)| ino))
    }

    /// Whether an inode was removed and not yet forgotten.
    pub fn is_orphan(&self, ve: VeId, ino: Ino) -> Result<bool, MetaError> {
        Ok(self.db.get_pinned_cf(self.table(ORPHANS), keys::inode(ve, ino))?.is_some())
    }

    /// Inodes that were removed and not yet forgotten when the VE was last in use.
    pub fn orphans(&self, ve: VeId) -> Result<Vec<Ino>, MetaError> {
        self.keyed(ORPHANS, ve, None).map(|row| row.map(|(ino, ..)| ino)).collect()
    }

    /// The rows of a VE in a table whose keys are inodes, from an inode on.
    fn keyed(
        &self,
        table: &'static str,
        ve: VeId,
        from: Option<Ino>,
    ) -> impl Iterator<Item = Result<KeyedRow, MetaError>> {
        self.numbered(table, ve, from.map_or(0, Ino::get)).map(move |row| {
            let (number, key, value) = row?;
            let ino = Ino::new(number).ok_or_else(|| damaged(table, &key, &"the key is no inode"))?;
            Ok((ino, key, value))
        })
    }

    /// The rows of a VE in a table whose keys are numbers, from a number on.
    pub(super) fn numbered(
        &self,
        table: &'static str,
        ve: VeId,
        from: u64,
    ) -> impl Iterator<Item = Result<NumberedRow, MetaError>> {
        let mut options = ReadOptions::default();
        if let Some(end) = keys::ve_end(ve) {
            options.set_iterate_upper_bound(end.to_vec());
        }
        let start = keys::numbered(ve, from);
        let mode = IteratorMode::From(&start, Direction::Forward);
        self.db.iterator_cf_opt(self.table(table), options, mode).map(move |row| {
            let (key, value) = row?;
            let number =
                keys::number_of(&key).ok_or_else(|| damaged(table, &key, &"the key is no number"))?;
            Ok((number, key, value))
        })
    }

    /// The first number of the VE's counter that was never taken.
    pub fn next_number(&self, ve: VeId) -> Result<u64, MetaError> {
        let key = keys::ve(ve);
        let Some(value) = self.db.get_pinned_cf(self.table(COUNTERS), key)? else { return Ok(0) };
        let number = value[..].try_into().map(u64::from_le_bytes);
        number.map_err(|_| damaged(COUNTERS, &key, &"it is no 64-bit number"))
    }

    /// Takes `count` numbers from each VE's counter of private inodes and data files. They are never given out again, also
    /// after a crash: the new counters are durable before this returns.
    pub fn reserve_numbers(&self, ves: &[VeId], count: u64) -> Result<Vec<Range<u64>>, MetaError> {
        let mut batch = WriteBatch::default();
        let mut reserve = |ve: &VeId| {
            let start = self.next_number(*ve)?;
            let end = start.checked_add(count).ok_or(MetaError::Exhausted(*ve))?;
            batch.put_cf(self.table(COUNTERS), keys::ve(*ve), end.to_le_bytes());
            Ok(start..end)
        };
        let ranges = ves.iter().map(&mut reserve).collect::<Result<_, MetaError>>()?;
        self.write_durably(batch)?;
        Ok(ranges)
    }

    /// Removes every private record of a VE, durably. The VE number must not be used again afterwards.
    pub fn drop_private(&self, ve: VeId) -> Result<(), MetaError> {
        let start = keys::ve(ve);
        let end = keys::ve_end(ve).map_or_else(|| vec![0xff; 32], Vec::from);
        let mut batch = WriteBatch::default();
        for table in [INODES, ENTRIES, ORPHANS, COUNTERS, OUTCOMES_TABLE, REMOVALS] {
            batch.delete_range_cf(self.table(table), start.to_vec(), end.clone());
        }
        self.delete_all_seen(&mut batch, ve)?;
        let result = self.write_durably(batch);
        self.recent.clear();
        self.marks.lock().remove(&ve);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(nlink: u32) -> InodeRecord {
        InodeRecord { nlink, ..InodeRecord::example() }
    }

    /// M3.
    #[test]
    fn the_orphan_table_is_in_step_with_the_records() {
        let dir = tempfile::tempdir_in("/var/tmp").expect("a folder");
        let meta = Meta::open(dir.path()).expect("a database");
        let (ve, ino) = (VeId(1), Ino::new(1 << 52).expect("legal"));
        let put = |nlinks: &[u32]| {
            let mut batch = meta.changes(ve);
            nlinks.iter().for_each(|nlink| batch.put_inode(ino, &record(*nlink)));
            batch.commit().expect("written");
            meta.orphans(ve).expect("readable")
        };
        assert_eq!(put(&[1]), []);
        assert_eq!(put(&[0]), [ino]);
        assert_eq!(put(&[1]), [], "it has got a name again");
        assert_eq!(put(&[0, 2]), [], "in one batch");
        assert_eq!(put(&[2, 0]), [ino]);
    }
}
