//! The records of inodes that were read or written last, decoded.
//!
//! A request looks its inode up once or twice, and a program that makes a file sends ten requests for it: a look-up in RocksDB, which goes through its tables in
//! memory one after the other, costs more than the rest of most of them.
//!
//! Invariant: what is remembered is what the database has. Who writes a record takes it out before, and whoever reads from the database meanwhile cannot
//! put it in: what was read may be from before the write. Only what was written comes in afterwards.

use parking_lot::Mutex;

use super::record::{InodeRecord, PrivateContent};
use crate::types::{Ino, VeId};

/// Parts with a lock each.
const SHARDS: usize = 16;
/// Records that a part remembers. In all some 200 bytes each: less than a megabyte for all VEs.
const SLOTS: usize = 256;
/// Longer targets of symbolic links are not kept.
const MAX_TARGET_BYTES: usize = 256;

/// One inode of one VE.
type Key = (VeId, Ino);

/// The memory.
pub(super) struct Recent {
    shards: Box<[Mutex<Shard>]>,
}

#[derive(Clone)]
struct Slot {
    key: Key,
    /// `None`: the inode has no record.
    record: Option<InodeRecord>,
}

struct Shard {
    /// Each inode has one place; who comes takes it.
    slots: Box<[Option<Slot>]>,
    /// Batches that are being written and concern this part.
    writers: usize,
    /// Counts the batches that were.
    written: u64,
}

/// What is known of an inode.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Its record, or that it has none.
    Known(Option<InodeRecord>),
    /// Nothing. Who reads it from the database may have it remembered.
    Unknown(Ticket),
}

/// When an inode was looked up.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ticket(Option<u64>);

impl Recent {
    pub(super) fn new() -> Self {
        let shard = || Shard { slots: vec![None; SLOTS].into_boxed_slice(), writers: 0, written: 0 };
        Recent { shards: (0..SHARDS).map(|_| Mutex::new(shard())).collect() }
    }

    /// What is known of an inode.
    pub(super) fn find(&self, ve: VeId, ino: Ino) -> Found {
        let (shard, slot) = self.place((ve, ino));
        let shard = shard.lock();
        match &shard.slots[slot] {
            Some(slot) if slot.key == (ve, ino) => Found::Known(slot.record.clone()),
            _ => Found::Unknown(Ticket((shard.writers == 0).then_some(shard.written))),
        }
    }

    /// Remembers what was read from the database after `ticket` was given.
    pub(super) fn keep(&self, ve: VeId, ino: Ino, ticket: &Ticket, record: Option<&InodeRecord>) {
        if ticket.0.is_none() || !is_small(record) {
            return;
        }
        let (shard, slot) = self.place((ve, ino));
        let mut shard = shard.lock();
        if shard.writers == 0 && ticket.0 == Some(shard.written) {
            shard.slots[slot] = Some(Slot { key: (ve, ino), record: record.cloned() });
        }
    }

    /// Forgets records that are about to be written.
    pub(super) fn begin(&self, ve: VeId, records: Vec<(Ino, Option<InodeRecord>)>) -> Writing<'_> {
        for (ino, _) in &records {
            let (shard, slot) = self.place((ve, *ino));
            let mut shard = shard.lock();
            shard.writers += 1;
            shard.slots[slot].take_if(|slot| slot.key == (ve, *ino));
        }
        Writing { recent: self, ve, records, done: false }
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.written += 1;
            shard.slots.fill(None);
        }
    }

    fn place(&self, (VeId(ve), ino): Key) -> (&Mutex<Shard>, usize) {
        // Fibonacci hashing: numbers that follow one another come far apart, and the upper bits depend on all others.
        let hash = (ino.get() ^ u64::from(ve).rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        let hash = usize::try_from(hash).expect("32 bits");
        (&self.shards[hash % SHARDS], hash / SHARDS % SLOTS)
    }
}

/// A batch that is being written. Dropped without [`Writing::done`], its records stay forgotten.
pub(super) struct Writing<'r> {
    recent: &'r Recent,
    ve: VeId,
    records: Vec<(Ino, Option<InodeRecord>)>,
    done: bool,
}

impl Writing<'_> {
    /// It was written: its records are what the database has.
    pub(super) fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        for (ino, record) in std::mem::take(&mut self.records) {
            let key = (self.ve, ino);
            let (shard, slot) = self.recent.place(key);
            let mut shard = shard.lock();
            shard.writers -= 1;
            shard.written += 1;
            // The last of a batch counts, also where an earlier one of the same inode could be kept.
            shard.slots[slot].take_if(|slot| slot.key == key);
            if self.done && is_small(record.as_ref()) {
                shard.slots[slot] = Some(Slot { key, record });
            }
        }
    }
}

/// Records may have attributes of 64 KiB, which would fill the memory.
fn is_small(record: Option<&InodeRecord>) -> bool {
    record.is_none_or(|record| {
        record.xattrs.is_empty()
            && !matches!(&record.content, PrivateContent::Symlink(target) if target.len() > MAX_TARGET_BYTES)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const VE: VeId = VeId(3);

    fn ino() -> Ino {
        Ino::new(77).expect("legal")
    }

    fn record(perm: u16) -> InodeRecord {
        InodeRecord { perm, ..InodeRecord::example() }
    }

    fn ticket(recent: &Recent) -> Ticket {
        let Found::Unknown(ticket) = recent.find(VE, ino()) else { unreachable!("it is not known yet") };
        ticket
    }

    fn is_unknown(recent: &Recent) -> bool {
        matches!(recent.find(VE, ino()), Found::Unknown(_))
    }

    #[test]
    fn what_was_read_is_known_and_also_that_there_is_nothing() {
        let recent = Recent::new();
        recent.keep(VE, ino(), &ticket(&recent), None);
        assert_eq!(recent.find(VE, ino()), Found::Known(None));
        recent.clear();
        recent.keep(VE, ino(), &ticket(&recent), Some(&record(1)));
        assert_eq!(recent.find(VE, ino()), Found::Known(Some(record(1))));
        assert!(
            matches!(recent.find(VeId(4), ino()), Found::Unknown(_)),
            "another VE's inode of that number"
        );
    }

    #[test]
    fn what_was_read_before_or_during_a_write_is_not_kept() {
        let recent = Recent::new();
        let before = ticket(&recent);
        let writing = recent.begin(VE, vec![(ino(), Some(record(2)))]);
        let during = ticket(&recent);
        recent.keep(VE, ino(), &before, Some(&record(1)));
        recent.keep(VE, ino(), &during, Some(&record(1)));
        assert!(is_unknown(&recent), "neither while it is written");
        drop(writing);
        recent.keep(VE, ino(), &before, Some(&record(1)));
        recent.keep(VE, ino(), &during, Some(&record(1)));
        assert!(is_unknown(&recent), "nor afterwards, when it failed");
    }

    #[test]
    fn what_was_written_is_known_and_the_last_of_a_batch_counts() {
        let recent = Recent::new();
        recent.begin(VE, vec![(ino(), Some(record(1))), (ino(), None), (ino(), Some(record(2)))]).done();
        assert_eq!(recent.find(VE, ino()), Found::Known(Some(record(2))));
        let mut large = record(3);
        large.xattrs.insert(b"user.a".to_vec(), vec![0; 65536]);
        recent.begin(VE, vec![(ino(), Some(record(1))), (ino(), Some(large))]).done();
        assert!(is_unknown(&recent), "what is large is not kept, nor what it replaced");
    }

    #[test]
    fn writes_side_by_side_are_all_waited_for() {
        let recent = Recent::new();
        let first = recent.begin(VE, vec![(ino(), None)]);
        let second = recent.begin(VE, vec![(ino(), None)]);
        drop(first);
        recent.keep(VE, ino(), &ticket(&recent), Some(&record(1)));
        assert!(is_unknown(&recent));
        second.done();
        assert_eq!(recent.find(VE, ino()), Found::Known(None));
    }
}
