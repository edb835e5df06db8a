use zerocopy::little_endian::U32;

use crate::types::{Attr, Digest, FileKind, Ino, NameRef, Timestamp};

use super::builder::{Content, Meta};
use super::format::{FLAG_OPAQUE, InodeRecord, XattrRecord};
use super::reader::Tree;

/// What an inode holds, borrowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ContentRef<'a> {
    /// Directories, devices, pipes and sockets.
    None,
    /// Every regular file, also an empty one.
    Blob {
        /// Name of the blob.
        digest: Digest,
        /// Its length in bytes.
        size: u64,
        /// What it takes on disk without its holes.
        allocated_bytes: u64,
    },
    /// The target of a symbolic link.
    Symlink(&'a [u8]),
}

impl ContentRef<'_> {
    /// An owned copy.
    pub fn to_content(self) -> Content {
        match self {
            ContentRef::None => Content::None,
            ContentRef::Blob { digest, size, allocated_bytes } => {
                Content::Blob { digest, size, allocated_bytes }
            }
            ContentRef::Symlink(target) => Content::Symlink(target.into()),
        }
    }
}

/// One inode of a tree, read in place.
///
/// A view exists only for a record whose own fields and content are sound; of a damaged record there is none.
#[derive(Clone, Copy)]
pub struct NodeView<'a> {
    tree: &'a Tree,
    record: &'a InodeRecord,
    index: u32,
    ino: Ino,
    kind: FileKind,
    content: ContentRef<'a>,
    xattrs: &'a [XattrRecord],
}

impl<'a> NodeView<'a> {
    /// The view of the record at `index`, if it is sound.
    pub(super) fn new(tree: &'a Tree, index: u32) -> Option<NodeView<'a>> {
        let record = tree.see_one(tree.inode_records().get(index as usize)?);
        let ino = Ino::new(record.ino.get())?;
        let kind = FileKind::from_u8(record.kind)?;
        let content = match kind {
            FileKind::File => {
                let blob = tree.see_one(tree.blob_records().get(record.first.get() as usize)?);
                ContentRef::Blob {
                    digest: Digest::from_bytes(blob.digest),
                    size: blob.size.get(),
                    allocated_bytes: blob.allocated_bytes.get(),
                }
            }
            FileKind::Symlink => ContentRef::Symlink(tree.target(record.first.get(), record.count.get())?),
            _ => ContentRef::None,
        };
        let xattrs = tree.xattr_set(record.xattrs.get())?;
        Some(NodeView { tree, record, index, ino, kind, content, xattrs })
    }

    /// The inode's number.
    pub fn ino(&self) -> Ino {
        self.ino
    }

    /// Type of file.
    pub fn kind(&self) -> FileKind {
        self.kind
    }

    /// Last change of content, the only time that a tree keeps.
    pub fn mtime(&self) -> Timestamp {
        Timestamp::new(self.record.mtime_secs.get(), self.record.mtime_nanos.get())
    }

    /// What `stat` tells. All three times are the mtime, since nothing in a tree is ever read or changed.
    pub fn attr(&self) -> Attr {
        /// What ext4 says of a small directory; zero would make some programs take it for empty.
        const DIR_BYTES: u64 = 4096;
        let (size, allocated_bytes) = match self.content {
            ContentRef::Blob { size, allocated_bytes, .. } => (size, allocated_bytes),
            ContentRef::Symlink(target) => (target.len() as u64, 0),
            ContentRef::None if self.kind == FileKind::Dir => (DIR_BYTES, DIR_BYTES),
            ContentRef::None => (0, 0),
        };
        let mtime = self.mtime();
        Attr {
            ino: self.ino,
            kind: self.kind,
            perm: self.record.perm.get() & 0o7777,
            nlink: self.record.nlink.get(),
            uid: self.record.uid.get(),
            gid: self.record.gid.get(),
            rdev: self.record.rdev.get(),
            size,
            blocks: allocated_bytes / 512,
            atime: mtime,
            mtime,
            ctime: mtime,
        }
    }

    /// What the inode holds.
    pub fn content(&self) -> ContentRef<'a> {
        self.content
    }

    /// Attributes in the form that [`super::TreeBuilder`] takes.
    pub fn meta(&self) -> Meta {
        Meta {
            kind: self.kind,
            perm: self.record.perm.get() & 0o7777,
            uid: self.record.uid.get(),
            gid: self.record.gid.get(),
            rdev: self.record.rdev.get(),
            mtime: self.mtime(),
            xattrs: self.xattrs().map(|(name, value)| (name.into(), value.into())).collect(),
        }
    }

    /// The value of one extended attribute.
    pub fn xattr(&self, name: &[u8]) -> Option<&'a [u8]> {
        let read = |record| self.tree.xattr(record);
        let position = self
            .xattrs
            .binary_search_by(|record| read(record).map_or(&[][..], |(name, _)| name).cmp(name))
            .ok()?;
        read(&self.xattrs[position]).map(|(_, value)| value)
    }

    /// All extended attributes, ordered by name.
    pub fn xattrs(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let tree = self.tree;
        self.xattrs.iter().filter_map(move |record| tree.xattr(record))
    }

    /// Whether there are extended attributes.
    pub fn has_xattrs(&self) -> bool {
        !self.xattrs.is_empty()
    }

    /// The directory that holds the inode; of several names, the one whose path is smallest. The root's is
    /// the root.
    pub fn parent(&self) -> Ino {
        self.names().next().map_or(Ino::ROOT, |(parent, _)| parent)
    }

    /// All names of the inode with their directories, ordered by path bytes. The root has none.
    pub fn names(&self) -> impl Iterator<Item = (Ino, NameRef<'a>)> + use<'a> {
        let tree = self.tree;
        self.name_entries().filter_map(move |entry| {
            let record = tree.see_one(tree.entry_records().get(entry as usize)?);
            let parent = tree.see_one(tree.inode_records().get(record.parent.get() as usize)?);
            Some((Ino::new(parent.ino.get())?, tree.name(record)?))
        })
    }

    /// Whether the directory hides everything below it in the stack. Never in a base.
    pub fn is_opaque(&self) -> bool {
        self.record.flags & FLAG_OPAQUE != 0
    }

    /// Positions in the entry table of the inode's names.
    pub(super) fn name_entries(&self) -> impl Iterator<Item = u32> + use<'a> {
        let (name, nlink) = (self.record.name.get(), self.record.nlink.get());
        let linked = self.kind != FileKind::Dir && nlink > 1;
        let range = if linked { name as usize..name as usize + nlink as usize } else { 0..0 };
        let several = self.tree.see(self.tree.link_records().get(range).unwrap_or_default());
        // The root's "no name" lies past the end of every table, so it needs no case of its own.
        (!linked).then_some(name).into_iter().chain(several.iter().copied().map(U32::get))
    }

    /// Position in the inode table.
    pub(super) fn index(&self) -> u32 {
        self.index
    }

    pub(super) fn record(&self) -> &'a InodeRecord {
        self.record
    }
}

impl std::fmt::Debug for NodeView<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeView").field("attr", &self.attr()).field("content", &self.content).finish()
    }
}
