use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::sys::MappedFile;
use crate::types::{Digest, FileKind, Ino, NameRef};

use super::format::{
    BlobRecord, EntryRecord, Header, InodeRecord, KIND_WHITEOUT, Layout, NONE, XattrRecord, XattrSetRecord,
    index_bucket, parse,
};
use super::{NodeView, TreeError};

/// Where a tree's bytes live.
enum Backing {
    Mapped(MappedFile),
    Owned(Vec<u8>),
}

/// An immutable tree of metadata, read in place. Shared by any number of threads and volumes.
///
/// No method panics or reads out of bounds, whatever the bytes are (invariant 5 of the module): a record that
/// points outside its table is treated as absent.
pub struct Tree {
    bytes: Backing,
    digest: Digest,
    header: Header,
    layout: Layout,
}

/// Numbers about a tree, from its header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TreeStats {
    /// All inodes, the root included.
    pub inodes: u64,
    /// All names, whiteouts included.
    pub entries: u64,
    /// Regular files.
    pub files: u64,
    /// Directories, the root included.
    pub dirs: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Names that hide something below; 0 in a base.
    pub whiteouts: u64,
    /// Sum of the sizes of regular files, each inode once.
    pub logical_bytes: u64,
    /// Size of the tree's own file.
    pub tree_bytes: u64,
}

/// A name in a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TreeEntry<'a> {
    /// [`NameRef::hash57`] of the name: its position in the directory.
    pub hash57: u64,
    /// The name.
    pub name: NameRef<'a>,
    /// What it leads to.
    pub target: Target,
}

/// What a name leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// An inode of the tree.
    Node(Ino, FileKind),
    /// Nothing: the name hides the same name in the layers below.
    Whiteout,
}

impl Tree {
    /// A tree in memory. Checks what opening a stored tree checks: mark, version and size.
    ///
    /// # Errors
    /// [`TreeError::Damaged`], [`TreeError::NewerFormat`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Tree, TreeError> {
        let digest = Digest::of(&bytes);
        Tree::new(digest, Backing::Owned(bytes))
    }

    /// A tree in memory that may not be what its name says.
    ///
    /// # Errors
    /// As for [`Tree::from_bytes`].
    pub fn of_bytes(digest: Digest, bytes: Vec<u8>) -> Result<Tree, TreeError> {
        Tree::new(digest, Backing::Owned(bytes))
    }

    /// A mapped tree, whose name is `digest`.
    pub(super) fn from_map(digest: Digest, map: MappedFile) -> Result<Tree, TreeError> {
        Tree::new(digest, Backing::Mapped(map))
    }

    fn new(digest: Digest, bytes: Backing) -> Result<Tree, TreeError> {
        let (header, layout) = parse(digest, bytes.as_slice())?;
        Ok(Tree { bytes, digest, header, layout })
    }

    /// Shows a sound file of this tree in place of the one that is mapped, to all who use this one. `false` when that cannot be: whoever opens the tree
    /// from now on must get another.
    pub(super) fn show(&self, file: File) -> bool {
        let Backing::Mapped(map) = &self.bytes else { return false };
        // One that was damaged when it was opened may have its tables elsewhere.
        let same_header = |file: &File| {
            let mut bytes = [0; size_of::<Header>()];
            file.read_exact_at(&mut bytes, 0).is_ok() && bytes == self.header.as_bytes()
        };
        same_header(&file) && map.mapping().replace(file).is_ok()
    }

    /// The name of the tree: the digest of its bytes.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Numbers about the tree. Takes no time.
    pub fn stats(&self) -> TreeStats {
        let header = &self.header;
        TreeStats {
            inodes: header.inodes.get().into(),
            entries: header.entries.get().into(),
            files: header.files.get().into(),
            dirs: header.dirs.get().into(),
            symlinks: header.symlinks.get().into(),
            whiteouts: header.whiteouts.get().into(),
            logical_bytes: header.logical_bytes.get(),
            tree_bytes: header.file_bytes.get(),
        }
    }

    /// The inode with this number.
    pub fn node(&self, ino: Ino) -> Option<NodeView<'_>> {
        NodeView::new(self, self.inode_position(ino)?)
    }

    /// What `name` leads to in the directory `dir`; `None` too when `dir` is no directory of this tree.
    pub fn lookup(&self, dir: Ino, name: NameRef<'_>) -> Option<TreeEntry<'_>> {
        let hash57 = name.hash57();
        let range = self.dir_range(dir);
        let before = self.count_before(&range, hash57, name, false);
        let entry = self.entry(self.entry_records().get(range)?.get(before)?)?;
        (entry.name == name).then_some(entry)
    }

    /// The names of the directory `dir` ordered by (hash57, name bytes), from the first one strictly after
    /// `after`. Nothing when `dir` is no directory of this tree.
    pub fn entries(&self, dir: Ino, after: Option<(u64, NameRef<'_>)>) -> TreeEntries<'_> {
        let mut range = self.dir_range(dir);
        if let Some((hash57, name)) = after {
            range.start += self.count_before(&range, hash57, name, true);
        }
        TreeEntries { tree: self, records: self.entry_records().get(range).unwrap_or_default().iter() }
    }

    /// All inodes, ordered by number.
    pub fn inodes(&self) -> impl Iterator<Item = NodeView<'_>> {
        (0..self.header.inodes.get()).filter_map(|index| NodeView::new(self, index))
    }

    /// All blobs that files of the tree refer to, each once, with their sizes in bytes; ordered by digest.
    pub fn blobs(&self) -> impl Iterator<Item = (Digest, u64)> {
        let blobs = self.see(self.blob_records()).iter();
        blobs.map(|blob| (Digest::from_bytes(blob.digest), blob.size.get()))
    }

    /// Whether a file of the tree has this content.
    pub fn has_blob(&self, digest: &Digest) -> bool {
        self.blob_records().binary_search_by_key(digest.as_bytes(), |blob| self.see_one(blob).digest).is_ok()
    }

    /// The inode at `path`, following no symbolic links. "" and "/" are the root; `.` and `..` are not
    /// understood.
    pub fn resolve(&self, path: &[u8]) -> Option<NodeView<'_>> {
        let mut ino = Ino::ROOT;
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let Target::Node(next, _) = self.lookup(ino, NameRef::new(name).ok()?)?.target else {
                return None;
            };
            ino = next;
        }
        self.node(ino)
    }

    /// Whether the tree can be shown by itself: it has neither whiteouts nor opaque directories. Takes no
    /// time.
    pub fn is_base(&self) -> bool {
        self.header.whiteouts.get() == 0 && self.header.opaques.get() == 0
    }

    // From here on: bounds-checked access to the tables, for this module only. The tables themselves are only where records lie: who reads one sees
    // it first.

    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.as_slice()
    }

    /// Whether the bytes may turn out to be unreadable.
    pub(super) fn is_mapped(&self) -> bool {
        matches!(self.bytes, Backing::Mapped(_))
    }

    /// Where it is mapped, for tests that lose parts of it.
    #[cfg(test)]
    pub(crate) fn mapping(&self) -> &crate::sys::Mapping {
        match &self.bytes {
            Backing::Mapped(map) => map.mapping(),
            Backing::Owned(_) => unreachable!("the tree is in memory"),
        }
    }

    /// Notes that records of a table are read now, so that who asks finds out whether they could be (invariant 6).
    pub(super) fn see<'a, T: Immutable + IntoBytes>(&'a self, records: &'a [T]) -> &'a [T] {
        if let Backing::Mapped(map) = &self.bytes {
            let records = records.as_bytes();
            // All tables are parts of the mapping; an empty slice may be of anywhere.
            let start = (records.as_ptr() as usize).saturating_sub(map.as_ptr() as usize);
            map.note(start..start + records.len());
        }
        records
    }

    /// The same for one record.
    pub(super) fn see_one<'a, T: Immutable + IntoBytes>(&'a self, record: &'a T) -> &'a T {
        self.see(std::slice::from_ref(record));
        record
    }

    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    fn table<T: FromBytes + KnownLayout + Immutable + Unaligned>(&self, range: &Range<usize>) -> &[T] {
        // `parse` has checked that the sections add up to the bytes there are, so neither default is ever
        // taken.
        self.bytes()
            .get(range.clone())
            .and_then(|bytes| <[T]>::ref_from_bytes(bytes).ok())
            .unwrap_or_default()
    }

    pub(super) fn inode_records(&self) -> &[InodeRecord] {
        self.table(&self.layout.inodes)
    }

    pub(super) fn index_records(&self) -> &[U32] {
        self.table(&self.layout.index)
    }

    pub(super) fn entry_records(&self) -> &[EntryRecord] {
        self.table(&self.layout.entries)
    }

    pub(super) fn link_records(&self) -> &[U32] {
        self.table(&self.layout.links)
    }

    pub(super) fn blob_records(&self) -> &[BlobRecord] {
        self.table(&self.layout.blobs)
    }

    pub(super) fn xattr_set_records(&self) -> &[XattrSetRecord] {
        self.table(&self.layout.xattr_sets)
    }

    /// Position of the record of `ino` in the inode table: the bucket from the index, then a search among the
    /// one or two records in it.
    pub(super) fn inode_position(&self, ino: Ino) -> Option<u32> {
        let index = self.index_records();
        let bucket = index_bucket(self.header.inodes.get(), ino.get());
        let [start, end] = *self.see(index.get(bucket..bucket.checked_add(2)?)?) else { return None };
        let (start, end) = (start.get(), end.get());
        let records = self.see(self.inode_records().get(start as usize..end as usize)?);
        let found = records.binary_search_by_key(&ino.get(), |record| record.ino.get()).ok()?;
        Some(start + found as u32)
    }

    /// The positions of a directory's entries; empty for anything that is not a sound directory.
    fn dir_range(&self, dir: Ino) -> Range<usize> {
        let record = self.inode_position(dir).and_then(|index| self.inode_records().get(index as usize));
        record.and_then(|record| self.record_range(record)).unwrap_or(0..0)
    }

    pub(super) fn record_range(&self, dir: &InodeRecord) -> Option<Range<usize>> {
        let start = dir.first.get() as usize;
        let range = start..start + dir.count.get() as usize;
        (dir.kind == FileKind::Dir as u8 && range.end <= self.header.entries.get() as usize).then_some(range)
    }

    /// How many entries of `range` sort before (hash57, name), or up to and with it if `inclusive`.
    fn count_before(&self, range: &Range<usize>, hash57: u64, name: NameRef<'_>, inclusive: bool) -> usize {
        let records = self.entry_records().get(range.clone()).unwrap_or_default();
        records.partition_point(|record| {
            // Names are looked at only where hashes are equal, which is at most once in practice.
            let order = self
                .see_one(record)
                .hash
                .get()
                .cmp(&hash57)
                .then_with(|| self.name_bytes(record).cmp(name.as_bytes()));
            order.is_lt() || (inclusive && order.is_eq())
        })
    }

    fn name_bytes(&self, record: &EntryRecord) -> &[u8] {
        let names = self.table(&self.layout.names);
        self.see(slice(names, record.name.get(), record.name_len.into()).unwrap_or_default())
    }

    pub(super) fn name(&self, record: &EntryRecord) -> Option<NameRef<'_>> {
        NameRef::new(self.name_bytes(record)).ok()
    }

    pub(super) fn entry(&self, record: &EntryRecord) -> Option<TreeEntry<'_>> {
        let target = match self.see_one(record).kind {
            KIND_WHITEOUT => Target::Whiteout,
            kind => Target::Node(Ino::new(record.ino.get())?, FileKind::from_u8(kind)?),
        };
        Some(TreeEntry { hash57: record.hash.get(), name: self.name(record)?, target })
    }

    pub(super) fn target(&self, start: u32, len: u32) -> Option<&[u8]> {
        slice(self.table(&self.layout.targets), start, len).map(|target| self.see(target))
    }

    pub(super) fn xattr_records(&self) -> &[XattrRecord] {
        self.table(&self.layout.xattrs)
    }

    /// The attributes of a set; an empty slice for [`NONE`].
    pub(super) fn xattr_set(&self, set: u32) -> Option<&[XattrRecord]> {
        if set == NONE {
            return Some(&[]);
        }
        let set = self.see_one(self.xattr_set_records().get(set as usize)?);
        slice(self.xattr_records(), set.first.get(), set.count.get())
    }

    /// Name and value of an extended attribute.
    pub(super) fn xattr(&self, record: &XattrRecord) -> Option<(&[u8], &[u8])> {
        let heap = self.table(&self.layout.xattr_heap);
        let (start, name_len) = (self.see_one(record).start.get(), record.name_len.get());
        let name = slice(heap, start, name_len)?;
        let value = slice(heap, start.checked_add(name_len)?, record.value_len.get())?;
        Some((self.see(name), self.see(value)))
    }
}

/// `len` items from `start`, if there are so many.
fn slice<T>(items: &[T], start: u32, len: u32) -> Option<&[T]> {
    items.get(start as usize..)?.get(..len as usize)
}

impl Backing {
    fn as_slice(&self) -> &[u8] {
        match self {
            Backing::Mapped(map) => map,
            Backing::Owned(bytes) => bytes,
        }
    }
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tree").field("digest", &self.digest).field("stats", &self.stats()).finish()
    }
}

/// The names of a directory in order; see [`Tree::entries`].
#[derive(Clone)]
pub struct TreeEntries<'a> {
    tree: &'a Tree,
    records: std::slice::Iter<'a, EntryRecord>,
}

impl<'a> Iterator for TreeEntries<'a> {
    type Item = TreeEntry<'a>;

    fn next(&mut self) -> Option<TreeEntry<'a>> {
        let tree = self.tree;
        self.records.find_map(|record| tree.entry(record))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.records.len()))
    }
}
