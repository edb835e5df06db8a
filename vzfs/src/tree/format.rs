//! The records of a tree file and where they lie. `doc/FORMAT.md` has the format and its reasons; this file
//! is its transcription, and holds no logic beyond arithmetic on positions.
//!
//! All fields are little-endian and unaligned, so a record can be read in place from any byte of a mapping.

use std::ops::Range;

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::types::{Digest, Ino, MAX_SYMLINK_BYTES, MAX_XATTR_NAME_BYTES, MAX_XATTR_VALUE_BYTES};

use super::TreeError;

/// The newest version of the tree format that this program reads, and the one it writes.
pub const FORMAT_VERSION: u32 = 1;

/// The longest path in a tree: PATH_MAX less its NUL. It bounds the work per inode on hostile input.
pub const MAX_PATH_BYTES: usize = 4095;

/// The first bytes of every tree file.
pub(super) const MAGIC: [u8; 8] = *b"vzfstree";

/// "Nothing" in a field that otherwise holds an index. Tables therefore stop at 2^32 - 2 records.
pub(super) const NONE: u32 = u32::MAX;

/// Bit of [`InodeRecord::flags`]: the directory hides everything below it in the stack.
pub(super) const FLAG_OPAQUE: u8 = 1;

/// [`EntryRecord::kind`] of a name that hides the same name below it.
pub(super) const KIND_WHITEOUT: u8 = 0;

/// Inode numbers of a tree have this many bits (see [`Ino::from_digest`]).
const INO_BITS: u32 = Ino::PRIVATE_FIRST.ilog2();

/// The start of the file. Offsets of the sections are not stored: they follow from the counts.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub(super) magic: [u8; 8],
    pub(super) version: U32,
    pub(super) inodes: U32,
    pub(super) entries: U32,
    pub(super) links: U32,
    pub(super) blobs: U32,
    pub(super) xattr_sets: U32,
    pub(super) xattrs: U32,
    pub(super) names_bytes: U32,
    pub(super) targets_bytes: U32,
    pub(super) xattrs_bytes: U32,
    pub(super) files: U32,
    pub(super) dirs: U32,
    pub(super) symlinks: U32,
    pub(super) whiteouts: U32,
    pub(super) logical_bytes: U64,
    pub(super) file_bytes: U64,
    pub(super) opaques: U32,
    pub(super) reserved: [u8; 44],
}

/// One inode. The table is ordered by `ino`.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct InodeRecord {
    pub(super) ino: U64,
    pub(super) mtime_secs: I64,
    pub(super) mtime_nanos: U32,
    pub(super) uid: U32,
    pub(super) gid: U32,
    pub(super) rdev: U32,
    /// As `stat` gives it: the number of names, for a directory 2 + subdirectories.
    pub(super) nlink: U32,
    /// The entry that names the inode; with several names, the first of its `nlink` places in the link table;
    /// [`NONE`] for the root.
    pub(super) name: U32,
    /// Index of the set of extended attributes, or [`NONE`].
    pub(super) xattrs: U32,
    /// Directory: first entry. File: index of the blob. Symlink: position of the target. Others: 0.
    pub(super) first: U32,
    /// Directory: number of entries. Symlink: length of the target. Others: 0.
    pub(super) count: U32,
    pub(super) perm: U16,
    pub(super) kind: u8,
    pub(super) flags: u8,
}

/// One name in one directory.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct EntryRecord {
    pub(super) hash: U64,
    /// The inode's number, 0 for a whiteout. Not an index, so that listing a directory does not touch the
    /// inode table.
    pub(super) ino: U64,
    pub(super) name: U32,
    /// Index of the directory's inode record.
    pub(super) parent: U32,
    pub(super) name_len: u8,
    /// A `FileKind`, or [`KIND_WHITEOUT`].
    pub(super) kind: u8,
    pub(super) reserved: [u8; 2],
}

/// One blob that the tree's files refer to. The table is ordered by digest.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct BlobRecord {
    pub(super) digest: [u8; 32],
    pub(super) size: U64,
    pub(super) allocated_bytes: U64,
}

/// A set of extended attributes that any number of inodes share.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct XattrSetRecord {
    pub(super) first: U32,
    pub(super) count: U32,
}

/// One extended attribute: its name lies in the heap at `start`, its value directly behind.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct XattrRecord {
    pub(super) start: U32,
    pub(super) name_len: U32,
    pub(super) value_len: U32,
}

/// Where the sections lie, in the order in which they lie.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) inodes: Range<usize>,
    pub(super) index: Range<usize>,
    pub(super) entries: Range<usize>,
    pub(super) links: Range<usize>,
    pub(super) blobs: Range<usize>,
    pub(super) xattr_sets: Range<usize>,
    pub(super) xattrs: Range<usize>,
    pub(super) names: Range<usize>,
    pub(super) targets: Range<usize>,
    pub(super) xattr_heap: Range<usize>,
}

impl Layout {
    /// Lays the sections out behind each other; also gives the size of the whole file.
    ///
    /// No overflow: 2^32 records of at most 56 bytes in each of ten sections stay far below 2^64.
    pub(super) fn new(header: &Header) -> (Layout, u64) {
        let mut end = size_of::<Header>() as u64;
        let mut section = |count: u64, record_bytes: usize| {
            let start = end;
            end += count * record_bytes as u64;
            start as usize..end as usize
        };
        let layout = Layout {
            inodes: section(header.inodes.get().into(), size_of::<InodeRecord>()),
            index: section(index_len(header.inodes.get()) as u64, size_of::<U32>()),
            entries: section(header.entries.get().into(), size_of::<EntryRecord>()),
            links: section(header.links.get().into(), size_of::<U32>()),
            blobs: section(header.blobs.get().into(), size_of::<BlobRecord>()),
            xattr_sets: section(header.xattr_sets.get().into(), size_of::<XattrSetRecord>()),
            xattrs: section(header.xattrs.get().into(), size_of::<XattrRecord>()),
            names: section(header.names_bytes.get().into(), 1),
            targets: section(header.targets_bytes.get().into(), 1),
            xattr_heap: section(header.xattrs_bytes.get().into(), 1),
        };
        (layout, end)
    }
}

/// Everything that opening a tree checks, in constant time: magic, version, size.
pub(super) fn parse(tree: Digest, bytes: &[u8]) -> Result<(Header, Layout), TreeError> {
    let damaged = |what: String| Err(TreeError::damaged(tree, what));
    // Magic and version come first and by themselves: a newer format may have another header altogether.
    if !bytes.starts_with(&MAGIC) {
        return damaged("it does not begin with the mark of a tree file".into());
    }
    let Ok((version, _)) = U32::read_from_prefix(&bytes[MAGIC.len()..]) else {
        return damaged("it ends within its header".into());
    };
    match version.get() {
        FORMAT_VERSION => {}
        found if found > FORMAT_VERSION => {
            return Err(TreeError::NewerFormat { tree, found, supported: FORMAT_VERSION });
        }
        found => return damaged(format!("its format version {found} never existed")),
    }
    let Ok((header, _)) = Header::read_from_prefix(bytes) else {
        return damaged("it ends within its header".into());
    };
    let (layout, file_bytes) = Layout::new(&header);
    if header.file_bytes.get() != file_bytes {
        return damaged(format!(
            "its counts stand for {file_bytes} bytes, its header says {}",
            header.file_bytes.get()
        ));
    }
    if bytes.len() as u64 != file_bytes {
        return damaged(format!("it has {} bytes instead of {file_bytes}", bytes.len()));
    }
    Ok((header, layout))
}

/// How many of an inode number's leading bits the index looks at: one to two inodes share a bucket.
fn index_bits(inodes: u32) -> u32 {
    inodes.checked_ilog2().unwrap_or(0)
}

/// Length of the index: a start for each bucket, and the end of the last.
pub(super) fn index_len(inodes: u32) -> usize {
    (1 << index_bits(inodes)) + 1
}

/// The bucket of the index that holds `ino`; past the end of the index for numbers that no tree contains.
pub(super) fn index_bucket(inodes: u32, ino: u64) -> usize {
    (ino >> (INO_BITS - index_bits(inodes))) as usize
}

/// The index for inode numbers in ascending order.
pub(super) fn build_index(inodes: &[InodeRecord]) -> Vec<U32> {
    let total = inodes.len() as u32;
    let mut index = Vec::with_capacity(index_len(total));
    for (position, inode) in inodes.iter().enumerate() {
        // Every bucket from the last one begun up to this inode's starts here.
        while index.len() <= index_bucket(total, inode.ino.get()) {
            index.push(U32::new(position as u32));
        }
    }
    index.resize(index_len(total), U32::new(total));
    index
}

/// Whether Linux would take `target` for a symbolic link.
pub(super) fn is_legal_target(target: &[u8]) -> bool {
    (1..=MAX_SYMLINK_BYTES).contains(&target.len()) && !target.contains(&0)
}

/// Whether Linux would take an extended attribute.
pub(super) fn is_legal_xattr(name: &[u8], value: &[u8]) -> bool {
    (1..=MAX_XATTR_NAME_BYTES).contains(&name.len())
        && !name.contains(&0)
        && value.len() <= MAX_XATTR_VALUE_BYTES
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    /// A change of a record's size is a change of the format.
    #[test]
    fn sizes_are_frozen() {
        assert_eq!(size_of::<Header>(), 128);
        assert_eq!(size_of::<InodeRecord>(), 56);
        assert_eq!(size_of::<EntryRecord>(), 28);
        assert_eq!(size_of::<BlobRecord>(), 48);
        assert_eq!(size_of::<XattrSetRecord>(), 8);
        assert_eq!(size_of::<XattrRecord>(), 12);
    }

    #[test]
    fn index_finds_every_number() {
        for total in [1u64, 2, 3, 7, 8, 1000] {
            let inode =
                |i| InodeRecord { ino: U64::new(1 + i * ((1 << 52) / total)), ..InodeRecord::new_zeroed() };
            let inodes: Vec<InodeRecord> = (0..total).map(inode).collect();
            let index = build_index(&inodes);
            assert_eq!(index.len(), index_len(total as u32));
            for (position, inode) in inodes.iter().enumerate() {
                let bucket = index_bucket(total as u32, inode.ino.get());
                assert!((index[bucket].get()..index[bucket + 1].get()).contains(&(position as u32)));
            }
        }
    }
}
