//! Writes a finished tree: the one place where the tables of a tree file are made.

use std::collections::{BTreeMap, HashMap};

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use crate::types::{Digest, FileKind, Ino, NameRef, Timestamp};

use super::builder::Node;
use super::format::{
    BlobRecord, EntryRecord, FLAG_OPAQUE, FORMAT_VERSION, Header, InodeRecord, KIND_WHITEOUT, Layout, MAGIC,
    MAX_PATH_BYTES, NONE, XattrRecord, XattrSetRecord, build_index, is_legal_target, is_legal_xattr,
};
use super::number::Numbering;
use super::order::{Step, in_path_order};
use super::{Content, Entry, NodeId, TreeBuilder, TreeError};

/// A finished tree, not yet stored.
#[derive(Clone, PartialEq, Eq)]
pub struct TreeImage {
    /// The digest of the bytes: the tree's name.
    pub digest: Digest,
    /// The tree file.
    pub bytes: Vec<u8>,
}

impl std::fmt::Debug for TreeImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TreeImage({}, {} bytes)", self.digest.short(), self.bytes.len())
    }
}

type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// What the walk in path order finds out: everything that the order of whole paths decides.
struct Survey<'b> {
    /// By position in the builder: the inode's number, once it has been reached.
    inos: Vec<Option<Ino>>,
    /// By position in the builder: how many names, for a directory 2 + subdirectories.
    nlinks: Vec<u32>,
    /// All names of inodes, in path order.
    names: Vec<(NodeId, NodeId, NameRef<'b>)>,
    /// All directories, in path order.
    dirs: Vec<NodeId>,
}

impl<'b> Survey<'b> {
    fn of(builder: &'b TreeBuilder) -> Result<Survey<'b>, TreeError> {
        let mut survey = Survey {
            inos: vec![None; builder.nodes.len()],
            nlinks: vec![0; builder.nodes.len()],
            names: Vec::new(),
            dirs: vec![builder.root()],
        };
        let root = builder.node(builder.root());
        check(root, b"")?;
        if root.meta.kind != FileKind::Dir {
            return Err(TreeError::unfit(b"", "the root is not a directory"));
        }
        survey.inos[builder.root().position()] = Some(Ino::ROOT);
        survey.nlinks[builder.root().position()] = 2;
        let mut numbering = Numbering::new();
        let list = |dir: NodeId| {
            let mut steps = Vec::new();
            for (name, entry) in builder.entries(dir) {
                let Entry::Node(node) = entry else { continue };
                steps.push((name.as_bytes(), Step::Name((dir, name, node))));
                if builder.meta(node).kind == FileKind::Dir {
                    steps.push((name.as_bytes(), Step::Below(node)));
                }
            }
            steps
        };
        in_path_order(builder.root(), list, |path, (dir, name, id)| {
            let node = builder.node(id);
            if path.len() > MAX_PATH_BYTES {
                return Err(TreeError::unfit(path, "its path is longer than 4095 bytes"));
            }
            survey.names.push((id, dir, name));
            let is_dir = node.meta.kind == FileKind::Dir;
            if is_dir {
                survey.dirs.push(id);
                survey.nlinks[dir.position()] += 1;
            }
            // A directory has one name only, so this happens to it once.
            survey.nlinks[id.position()] += if is_dir { 2 } else { 1 };
            if survey.inos[id.position()].is_none() {
                check(node, path)?;
                let rdev = node.meta.rdev;
                survey.inos[id.position()] =
                    Some(numbering.assign(path, node.meta.kind, rdev, node.content.as_ref()));
            }
            Ok(())
        })?;
        Ok(survey)
    }
}

/// Refuses what no filesystem could hold. Here and not when the inode is added, because attributes and
/// content can be changed until the end, and because only now the whole path is known for the message.
fn check(node: &Node, path: &[u8]) -> Result<(), TreeError> {
    let unfit = |why| Err(TreeError::unfit(path, why));
    match (node.meta.kind, &node.content) {
        (FileKind::File, Content::Blob { size, .. }) if *size > i64::MAX as u64 => {
            return unfit("its size does not fit 63 bits");
        }
        (FileKind::File, Content::Blob { .. }) => {}
        (FileKind::Symlink, Content::Symlink(target)) if is_legal_target(target) => {}
        (FileKind::Symlink, Content::Symlink(_)) => {
            return unfit("its target is not 1 to 4095 bytes without NUL");
        }
        (FileKind::File, _) => return unfit("a regular file without a blob"),
        (FileKind::Symlink, _) => return unfit("a symbolic link without a target"),
        (_, Content::None) => {}
        _ => return unfit("its content does not belong to its type"),
    }
    if node.meta.perm > 0o7777 {
        return unfit("its permissions have bits beyond 07777");
    }
    if !node.meta.xattrs.iter().all(|(name, value)| is_legal_xattr(name, value)) {
        return unfit("an extended attribute has an illegal name or more than 65536 bytes");
    }
    Ok(())
}

/// The sections of the file, as they grow.
#[derive(Default)]
struct Tables {
    inodes: Vec<InodeRecord>,
    entries: Vec<EntryRecord>,
    links: Vec<U32>,
    blobs: Vec<BlobRecord>,
    xattr_sets: Vec<XattrSetRecord>,
    xattrs: Vec<XattrRecord>,
    names: Vec<u8>,
    targets: Vec<u8>,
    xattr_heap: Vec<u8>,
}

impl TreeImage {
    /// Wraps the bytes of a tree file, for example one received from elsewhere.
    pub fn from_bytes(bytes: Vec<u8>) -> TreeImage {
        TreeImage { digest: Digest::of(&bytes), bytes }
    }

    pub(super) fn of(builder: &TreeBuilder) -> Result<TreeImage, TreeError> {
        let survey = Survey::of(builder)?;
        let mut order: Vec<(Ino, NodeId)> = (0..)
            .zip(&survey.inos)
            .filter_map(|(position, ino)| Some(((*ino)?, NodeId::at(position))))
            .collect();
        order.sort_unstable();
        let mut index_of = vec![NONE; builder.nodes.len()];
        for (index, (_, node)) in order.iter().enumerate() {
            index_of[node.position()] = u32_of(index, "inodes")?;
        }

        let mut tables = Tables::default();
        let mut placed = tables.write_entries(builder, &survey, &index_of)?;
        tables.write_links(&survey, &mut placed)?;
        let blobs = tables.write_blobs(&survey, builder)?;
        let xattrs = tables.write_xattrs(builder, &order)?;
        for (ino, id) in &order {
            let node = builder.node(*id);
            let meta = &node.meta;
            let (first, count) = match (&node.content, placed.ranges.get(id)) {
                (_, Some(range)) => *range,
                (Content::Blob { digest, .. }, _) => (blobs[digest], 0),
                (Content::Symlink(target), _) => {
                    (append(&mut tables.targets, target, "bytes of symbolic links")?, target.len() as u32)
                }
                (Content::None, _) => (0, 0),
            };
            let mtime = Timestamp::new(meta.mtime.secs, meta.mtime.nanos);
            tables.inodes.push(InodeRecord {
                ino: ino.get().into(),
                mtime_secs: mtime.secs.into(),
                mtime_nanos: mtime.nanos.into(),
                uid: meta.uid.into(),
                gid: meta.gid.into(),
                rdev: if meta.kind.is_device() { meta.rdev } else { 0 }.into(),
                nlink: survey.nlinks[id.position()].into(),
                name: placed.names[id.position()].into(),
                xattrs: xattrs.get(&meta.xattrs).copied().unwrap_or(NONE).into(),
                first: first.into(),
                count: count.into(),
                perm: meta.perm.into(),
                kind: meta.kind as u8,
                flags: if node.opaque && meta.kind == FileKind::Dir { FLAG_OPAQUE } else { 0 },
            });
        }
        Ok(TreeImage::from_bytes(tables.into_bytes()))
    }
}

/// Where the entries of directories went.
struct Placed<'b> {
    /// Each directory's first entry and number of entries.
    ranges: HashMap<NodeId, (u32, u32)>,
    /// By position in the builder: the `name` field of the inode's record.
    names: Vec<u32>,
    /// The entries that lead to inodes with several names, by directory and name.
    linked: HashMap<(NodeId, NameRef<'b>), u32>,
}

impl Tables {
    /// The entries of every directory, in the order that look-ups need.
    fn write_entries<'b>(
        &mut self,
        builder: &'b TreeBuilder,
        survey: &Survey<'b>,
        index_of: &[u32],
    ) -> Result<Placed<'b>, TreeError> {
        let mut placed =
            Placed { ranges: HashMap::new(), names: vec![NONE; builder.nodes.len()], linked: HashMap::new() };
        for dir in &survey.dirs {
            let mut children: Vec<_> =
                builder.entries(*dir).map(|(name, entry)| (name.hash57(), name, entry)).collect();
            children.sort_unstable_by_key(|(hash57, name, _)| (*hash57, *name));
            let first = u32_of(self.entries.len(), "names")?;
            placed.ranges.insert(*dir, (first, u32_of(children.len(), "names")?));
            for (hash57, name, entry) in children {
                let position = u32_of(self.entries.len(), "names")?;
                let (ino, kind) = match entry {
                    Entry::Whiteout => (0, KIND_WHITEOUT),
                    Entry::Node(node) => {
                        let kind = builder.meta(node).kind;
                        if kind != FileKind::Dir && survey.nlinks[node.position()] > 1 {
                            placed.linked.insert((*dir, name), position);
                        } else {
                            placed.names[node.position()] = position;
                        }
                        (survey.inos[node.position()].map_or(0, Ino::get), kind as u8)
                    }
                };
                self.entries.push(EntryRecord {
                    hash: hash57.into(),
                    ino: ino.into(),
                    name: append(&mut self.names, &name, "bytes of names")?.into(),
                    parent: index_of[dir.position()].into(),
                    name_len: name.len() as u8,
                    kind,
                    reserved: [0; 2],
                });
            }
        }
        u32_of(self.entries.len(), "names")?;
        Ok(placed)
    }

    /// All names of hard-linked inodes: inodes by number, each one's names by path.
    fn write_links(&mut self, survey: &Survey<'_>, placed: &mut Placed<'_>) -> Result<(), TreeError> {
        let mut by_ino: BTreeMap<Option<Ino>, (NodeId, Vec<u32>)> = BTreeMap::new();
        for (node, dir, name) in &survey.names {
            if let Some(position) = placed.linked.get(&(*dir, *name)) {
                let ino = survey.inos[node.position()];
                by_ino.entry(ino).or_insert((*node, Vec::new())).1.push(*position);
            }
        }
        for (node, positions) in by_ino.into_values() {
            placed.names[node.position()] = u32_of(self.links.len(), "hard links")?;
            self.links.extend(positions.into_iter().map(U32::new));
        }
        u32_of(self.links.len(), "hard links")?;
        Ok(())
    }

    /// Every blob once, by digest. Gives each one's index.
    fn write_blobs(
        &mut self,
        survey: &Survey<'_>,
        builder: &TreeBuilder,
    ) -> Result<HashMap<Digest, u32>, TreeError> {
        let mut blobs: BTreeMap<Digest, (u64, u64)> = BTreeMap::new();
        for (node, _, name) in &survey.names {
            if let Content::Blob { digest, size, allocated_bytes } = builder.content(*node) {
                let known = blobs.entry(*digest).or_insert((*size, *allocated_bytes));
                if *known != (*size, *allocated_bytes) {
                    let name = name.escape_ascii().to_string();
                    return Err(TreeError::BlobConflict { name, digest: *digest });
                }
            }
        }
        u32_of(blobs.len(), "blobs")?;
        self.blobs = blobs
            .iter()
            .map(|(digest, (size, allocated_bytes))| BlobRecord {
                digest: *digest.as_bytes(),
                size: (*size).into(),
                allocated_bytes: (*allocated_bytes).into(),
            })
            .collect();
        Ok((0..).zip(blobs).map(|(index, (digest, _))| (digest, index)).collect())
    }

    /// Every set of extended attributes once, in the order of their names and values. Gives each one's index.
    fn write_xattrs<'b>(
        &mut self,
        builder: &'b TreeBuilder,
        order: &[(Ino, NodeId)],
    ) -> Result<BTreeMap<&'b Xattrs, u32>, TreeError> {
        let sets = order.iter().map(|(_, node)| &builder.meta(*node).xattrs).filter(|set| !set.is_empty());
        let mut indexes: BTreeMap<&Xattrs, u32> = sets.map(|set| (set, NONE)).collect();
        for (set, index) in &mut indexes {
            *index = u32_of(self.xattr_sets.len(), "sets of extended attributes")?;
            let first = u32_of(self.xattrs.len(), "extended attributes")?;
            self.xattr_sets.push(XattrSetRecord { first: first.into(), count: (set.len() as u32).into() });
            for (name, value) in *set {
                let start = append(&mut self.xattr_heap, name, "bytes of extended attributes")?;
                append(&mut self.xattr_heap, value, "bytes of extended attributes")?;
                self.xattrs.push(XattrRecord {
                    start: start.into(),
                    name_len: (name.len() as u32).into(),
                    value_len: (value.len() as u32).into(),
                });
            }
        }
        u32_of(self.xattrs.len(), "extended attributes")?;
        Ok(indexes)
    }

    /// The header, then all sections. The counts fit: they were checked while the tables grew.
    fn into_bytes(self) -> Vec<u8> {
        let of_kind =
            |kind: FileKind| U32::new(self.inodes.iter().filter(|i| i.kind == kind as u8).count() as u32);
        let whiteouts = self.entries.iter().filter(|entry| entry.kind == KIND_WHITEOUT).count();
        let opaques = self.inodes.iter().filter(|inode| inode.flags & FLAG_OPAQUE != 0).count();
        let mut header = Header {
            magic: MAGIC,
            version: FORMAT_VERSION.into(),
            inodes: (self.inodes.len() as u32).into(),
            entries: (self.entries.len() as u32).into(),
            links: (self.links.len() as u32).into(),
            blobs: (self.blobs.len() as u32).into(),
            xattr_sets: (self.xattr_sets.len() as u32).into(),
            xattrs: (self.xattrs.len() as u32).into(),
            names_bytes: (self.names.len() as u32).into(),
            targets_bytes: (self.targets.len() as u32).into(),
            xattrs_bytes: (self.xattr_heap.len() as u32).into(),
            files: of_kind(FileKind::File),
            dirs: of_kind(FileKind::Dir),
            symlinks: of_kind(FileKind::Symlink),
            whiteouts: (whiteouts as u32).into(),
            logical_bytes: logical_bytes(&self.inodes, &self.blobs).into(),
            file_bytes: U64::ZERO,
            opaques: (opaques as u32).into(),
            reserved: [0; 44],
        };
        let (_, file_bytes) = Layout::new(&header);
        header.file_bytes = file_bytes.into();
        let index = build_index(&self.inodes);
        let sections: [&[u8]; 11] = [
            header.as_bytes(),
            self.inodes.as_bytes(),
            index.as_bytes(),
            self.entries.as_bytes(),
            self.links.as_bytes(),
            self.blobs.as_bytes(),
            self.xattr_sets.as_bytes(),
            self.xattrs.as_bytes(),
            &self.names,
            &self.targets,
            &self.xattr_heap,
        ];
        sections.concat()
    }
}

/// Sum of the sizes of regular files, each inode once. Sparse files can be of any size, hence the saturation.
pub(super) fn logical_bytes(inodes: &[InodeRecord], blobs: &[BlobRecord]) -> u64 {
    inodes
        .iter()
        .filter(|inode| inode.kind == FileKind::File as u8)
        .filter_map(|inode| blobs.get(inode.first.get() as usize))
        .fold(0, |sum, blob| sum.saturating_add(blob.size.get()))
}

/// A count or position as the format stores it, below [`NONE`].
fn u32_of(count: usize, what: &'static str) -> Result<u32, TreeError> {
    u32::try_from(count).ok().filter(|count| *count < NONE).ok_or(TreeError::TooLarge(what))
}

/// Appends to a heap and gives the position where the bytes begin.
fn append(heap: &mut Vec<u8>, bytes: &[u8], what: &'static str) -> Result<u32, TreeError> {
    let start = u32_of(heap.len(), what)?;
    heap.extend_from_slice(bytes);
    u32_of(heap.len(), what)?;
    Ok(start)
}
