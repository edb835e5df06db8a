//! Listing directories: base and private entries merged in the order of their name hashes.
//!
//! An entry's *cookie* (`d_off`) is a function of its name: `hash57 << 5 | rank`, where the rank counts visible entries of the same hash. So a
//! position stays valid while entries come and go and across restarts, and an entry that nobody touches is seen exactly once. `.` and `..` have
//! cookies 1 and 2; hashes start at 1, so names have cookies from 32 up, below 2^62.

use std::iter::Peekable;

use super::{Result, Volume};
use crate::meta::{EntryRecord, PrivateEntry};
use crate::tree::{Target, Tree, TreeEntry};
use crate::types::{FileKind, Ino, Name, NameRef};

const RANK_BITS: u32 = 5;
const COOKIE_DOT: u64 = 1;
const COOKIE_DOT_DOT: u64 = 2;
/// The greatest name there is, as a position behind every entry of a hash.
const LAST_NAME: [u8; 255] = [0xff; 255];

/// One entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// The name; also `.` and `..`.
    pub name: &'a [u8],
    /// The inode.
    pub ino: Ino,
    /// Its type.
    pub kind: FileKind,
    /// Where to go on after this entry.
    pub cookie: u64,
}

impl Volume {
    /// Calls `emit` for the entries after `cookie` (0: from the start) until it returns `false` or the directory ends.
    ///
    /// A directory that was removed while open has no entries, not even the dots.
    pub fn read_dir(&self, dir: Ino, cookie: u64, mut emit: impl FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        self.shared_once(|| {
            let dir = self.joined(dir);
            let parent = self.parent_of(dir)?;
            if self.dir_node(dir)?.nlink() == 0 {
                return Ok(());
            }
            let dots = [(COOKIE_DOT, &b"."[..], dir), (COOKIE_DOT_DOT, b"..", parent)];
            for (position, name, ino) in dots {
                if cookie < position && !emit(DirEntry { name, ino, kind: FileKind::Dir, cookie: position }) {
                    return Ok(());
                }
            }
            let start = cookie >> RANK_BITS;
            let mut group = (0, 0);
            for row in self.merged(dir, start)? {
                let row = row?;
                group = if row.hash57 == group.0 { (row.hash57, group.1 + 1) } else { (row.hash57, 0) };
                let position = row.hash57 << RANK_BITS | group.1;
                if position <= cookie {
                    continue;
                }
                let entry =
                    DirEntry { name: row.name.as_bytes(), ino: row.ino, kind: row.kind, cookie: position };
                if !emit(entry) {
                    return Ok(());
                }
            }
            Ok(())
        })
    }

    /// Whether a directory has no entries. The caller holds `names`.
    pub(super) fn is_empty(&self, dir: Ino) -> Result<bool> {
        match self.merged(dir, 0)?.next() {
            None => Ok(true),
            Some(row) => row.map(|_| false),
        }
    }

    /// The visible entries of a directory from a hash on. The caller holds `names`.
    pub(super) fn merged(&self, dir: Ino, from_hash: u64) -> Result<impl Iterator<Item = Result<Row>>> {
        self.merged_with(self.base(), dir, from_hash)
    }

    /// As [`Volume::merged`], if the volume had that base.
    pub(super) fn merged_with<'a>(
        &'a self,
        base: &'a Tree,
        dir: Ino,
        from_hash: u64,
    ) -> Result<impl Iterator<Item = Result<Row>> + use<'a>> {
        // The tree takes a position to go on after; behind all names of the hash before is the start of this one.
        let last = NameRef::new(&LAST_NAME).ok();
        let after = from_hash.checked_sub(1).zip(last);
        Ok(Merged {
            base: base.entries(dir, after).peekable(),
            private: self.meta.entries_from(self.ve, dir, from_hash).peekable(),
        })
    }
}

/// A visible entry.
pub(super) struct Row {
    pub(super) hash57: u64,
    pub(super) name: Name,
    pub(super) ino: Ino,
    pub(super) kind: FileKind,
}

struct Merged<B: Iterator, P: Iterator> {
    base: Peekable<B>,
    private: Peekable<P>,
}

impl<'a, B, P> Iterator for Merged<B, P>
where
    B: Iterator<Item = TreeEntry<'a>>,
    P: Iterator<Item = std::result::Result<PrivateEntry, crate::meta::MetaError>>,
{
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Result<Row>> {
        loop {
            let base_first = match (self.base.peek(), self.private.peek()) {
                (None, None) => return None,
                (_, Some(Err(_))) | (None, Some(_)) => false,
                (Some(_), None) => true,
                (Some(base), Some(Ok(private))) => {
                    let (left, right) =
                        ((base.hash57, base.name.as_bytes()), (private.hash57, private.name.as_bytes()));
                    if left == right {
                        // The private entry overrides the base's.
                        self.base.next();
                        false
                    } else {
                        left < right
                    }
                }
            };
            if base_first {
                let entry = self.base.next()?;
                if let Target::Node(ino, kind) = entry.target {
                    return Some(Ok(Row { hash57: entry.hash57, name: entry.name.to_name(), ino, kind }));
                }
            } else {
                match self.private.next()? {
                    Err(error) => return Some(Err(error.into())),
                    Ok(PrivateEntry { hash57, name, entry: EntryRecord::Node(ino, kind), .. }) => {
                        return Some(Ok(Row { hash57, name, ino, kind }));
                    }
                    Ok(PrivateEntry { entry: EntryRecord::Whiteout, .. }) => {}
                }
            }
        }
    }
}
