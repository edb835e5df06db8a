//! How many references to each inode the kernel holds, to know when one is forgotten for good.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::types::Ino;

/// Independent parts of the table, so that threads seldom wait for each other.
const SHARDS: usize = 8;

#[derive(Default)]
pub(super) struct References {
    shards: [Mutex<HashMap<Ino, u64>>; SHARDS],
}

impl References {
    fn shard(&self, ino: Ino) -> &Mutex<HashMap<Ino, u64>> {
        // Below 8, so nothing is lost.
        &self.shards[(ino.get() % SHARDS as u64) as usize]
    }

    /// The kernel gets a reference with a reply that carries the inode.
    pub(super) fn add(&self, ino: Ino) {
        *self.shard(ino).lock().entry(ino).or_insert(0) += 1;
    }

    /// The kernel gives back `count` references. Whether those were all.
    pub(super) fn drop(&self, ino: Ino, count: u64) -> bool {
        let mut shard = self.shard(ino).lock();
        let Some(left) = shard.get_mut(&ino) else { return true };
        *left = left.saturating_sub(count);
        if *left > 0 {
            return false;
        }
        shard.remove(&ino);
        true
    }

    /// Whether the kernel knows the inode.
    pub(super) fn has(&self, ino: Ino) -> bool {
        self.shard(ino).lock().contains_key(&ino)
    }
}
