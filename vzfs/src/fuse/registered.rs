//! Backing files that stay registered while nobody has them open, so that the next open of a program or library that was run a moment ago finds
//! it registered: two system calls in place of six.
//!
//! Only blobs are kept: they never change, and whoever wants to know whether a private data file is in use asks the host's kernel. The kernel's
//! side of a kept file is an open file (some 300 bytes, and the blob's inode cannot leave the host's cache). It goes when the VE's kernel forgets the inode,
//! as it does when memory is short, or when there are too many: those go first that were not opened again since they were last looked at (the clock
//! algorithm).

use std::collections::{HashMap, VecDeque, hash_map};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::types::{Digest, Ino};

/// Kept of one mount at most. A Debian system has some 20,000 files, of which a VE at work opens a part again and again.
const MAX_KEPT: usize = 8192;
/// Kept by all mounts at most: 20 MB of the kernel's memory.
const MAX_KEPT_IN_ALL: usize = 1 << 16;
/// How many are.
static IN_ALL: AtomicUsize = AtomicUsize::new(0);

/// Which blobs are registered for which inodes of a mount. The ids are in the ledger.
#[derive(Default)]
pub(super) struct Registered {
    by_ino: HashMap<Ino, Entry>,
    /// Those that nobody had open when they were put here; the next to be looked at first. What was forgotten since keeps its place until then.
    idle: VecDeque<Ino>,
}

struct Entry {
    blob: Digest,
    /// It is in `idle`.
    idle: bool,
    /// It was opened since it was last looked at.
    used: bool,
}

impl Registered {
    /// The blob that is registered for an inode.
    pub(super) fn blob(&self, ino: Ino) -> Option<Digest> {
        self.by_ino.get(&ino).map(|entry| entry.blob)
    }

    /// A blob is registered for an inode, now or since before.
    pub(super) fn open(&mut self, ino: Ino, blob: Digest) {
        match self.by_ino.entry(ino) {
            hash_map::Entry::Vacant(place) => drop(place.insert(Entry { blob, idle: false, used: false })),
            hash_map::Entry::Occupied(mut place) => {
                (place.get_mut().blob, place.get_mut().used) = (blob, true)
            }
        }
    }

    /// Nobody has the inode open any more. Whether its backing file stays registered.
    pub(super) fn keep(&mut self, ino: Ino) -> bool {
        let Some(entry) = self.by_ino.get_mut(&ino) else { return false };
        if !entry.idle {
            entry.idle = true;
            self.idle.push_back(ino);
            IN_ALL.fetch_add(1, Ordering::Relaxed);
        }
        true
    }

    /// An inode whose backing file must go because there are too many; `is_open` says which are in use. To be asked whenever one more is kept.
    pub(super) fn too_many(&mut self, is_open: impl Fn(Ino) -> bool) -> Option<Ino> {
        // An inode is passed over once for having been used, so this ends.
        while self.idle.len() > MAX_KEPT || IN_ALL.load(Ordering::Relaxed) > MAX_KEPT_IN_ALL {
            let ino = self.idle.pop_front()?;
            IN_ALL.fetch_sub(1, Ordering::Relaxed);
            let Some(entry) = self.by_ino.get_mut(&ino) else { continue };
            entry.idle = false;
            if is_open(ino) {
                continue;
            }
            if std::mem::take(&mut entry.used) {
                self.keep(ino);
                continue;
            }
            self.by_ino.remove(&ino);
            return Some(ino);
        }
        None
    }

    /// No blob is registered for the inode any more.
    pub(super) fn forget(&mut self, ino: Ino) {
        self.by_ino.remove(&ino);
    }

    /// Forgets all that are not in use.
    pub(super) fn forget_idle(&mut self, in_use: impl Fn(Ino) -> bool) {
        IN_ALL.fetch_sub(self.idle.len(), Ordering::Relaxed);
        self.idle.clear();
        self.by_ino.retain(|ino, entry| {
            entry.idle = false;
            in_use(*ino)
        });
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        IN_ALL.fetch_sub(self.idle.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ino(number: usize) -> Ino {
        Ino::new(number as u64 + 2).expect("a legal number")
    }

    #[test]
    fn those_go_first_that_were_not_used_again() {
        let mut registered = Registered::default();
        for number in 0..MAX_KEPT {
            registered.open(ino(number), Digest::of(b"x"));
            assert!(registered.keep(ino(number)));
        }
        registered.open(ino(0), Digest::of(b"x"));
        assert_eq!(registered.too_many(|_| false), None);
        registered.open(ino(MAX_KEPT), Digest::of(b"x"));
        registered.keep(ino(MAX_KEPT));
        assert_eq!(
            registered.too_many(|opened| opened == ino(1)),
            None,
            "the second is in use and was put aside for it"
        );
        registered.open(ino(MAX_KEPT + 1), Digest::of(b"x"));
        registered.keep(ino(MAX_KEPT + 1));
        assert_eq!(registered.too_many(|_| false), Some(ino(2)));
        assert_eq!(registered.too_many(|_| false), None);
        assert_eq!(registered.blob(ino(2)), None);
        assert_eq!(registered.blob(ino(0)), Some(Digest::of(b"x")));
    }

    #[test]
    fn only_what_was_opened_as_a_blob_is_kept() {
        let mut registered = Registered::default();
        assert!(!registered.keep(ino(0)));
        registered.open(ino(0), Digest::of(b"x"));
        registered.forget(ino(0));
        assert!(!registered.keep(ino(0)));
    }

    #[test]
    fn all_that_is_not_in_use_can_be_let_go() {
        let mut registered = Registered::default();
        for number in 0..10 {
            registered.open(ino(number), Digest::of(b"x"));
        }
        registered.keep(ino(3));
        registered.keep(ino(4));
        registered.forget_idle(|opened| opened != ino(3));
        let gone: Vec<usize> = (0..10).filter(|number| registered.blob(ino(*number)).is_none()).collect();
        assert_eq!(gone, [3]);
        assert!(registered.keep(ino(4)), "it was in use");
    }
}
