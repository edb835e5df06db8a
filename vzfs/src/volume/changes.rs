//! What a VE changed: the difference between a volume and its base, for people, for export and for commit.
//!
//! Only directories that hold private entries, and those above them, are visited; the cost is that of the change, not of the base.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::walk::{Children, Trail};
use super::{Node, Result, Volume, VolumeError};
use crate::blobs::Batch;
use crate::meta::PrivateContent;
use crate::tree::{Content, ContentRef, Meta as TreeMeta, NodeId, TreeBuilder};
use crate::types::{Attr, Digest, FileKind, Ino, Name, NameRef};

/// How a path differs from the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// The base has no such path.
    Added,
    /// The base has the path with other content or attributes.
    Changed,
    /// The base has the path, the VE has not.
    Deleted,
}

/// One path that differs from the base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeChange {
    /// Path from the root, with a leading slash. Bytes that are not UTF-8 appear as U+FFFD.
    pub path: String,
    /// How it differs.
    pub kind: ChangeKind,
    /// Type of the file now, or of what was deleted.
    #[serde(rename = "type")]
    pub file_type: FileKind,
    /// Size now in bytes; of what was deleted, for that.
    pub size: u64,
}

/// One difference on the way.
struct Difference<'a> {
    path: &'a [u8],
    kind: ChangeKind,
    /// The inode now; of what was deleted, the base's.
    ino: Ino,
    attr: Attr,
}

/// A directory that is being compared: the length of its path, the names that are left, and those of the base without a counterpart yet.
struct Compared {
    path_len: usize,
    now: std::collections::btree_map::IntoIter<Name, (Ino, FileKind)>,
    before: Children,
}

type Visit<'a> = &'a mut dyn FnMut(Difference<'_>) -> Result<()>;

/// What [`VolumeSource::for_each`] calls with path, inode and attributes.
pub type Visitor<'f, E> = dyn FnMut(&[u8], Ino, &Attr) -> std::result::Result<(), E> + 'f;

/// A whole volume as a sequence of paths, parents first, for export.
pub struct VolumeSource<'v> {
    volume: &'v Volume,
}

impl VolumeSource<'_> {
    /// Calls `visit` with path (no leading slash; the root is empty), inode and attributes of everything the VE shows.
    pub fn for_each<E: From<VolumeError>>(&self, visit: &mut Visitor<'_, E>) -> std::result::Result<(), E> {
        let root = self.volume.attr(Ino::ROOT)?;
        visit(b"", Ino::ROOT, &root)?;
        self.volume.walk_below(Ino::ROOT, &mut Trail::default(), visit)
    }

    /// The volume.
    pub fn volume(&self) -> &Volume {
        self.volume
    }
}

impl Volume {
    /// The volume as a source for export. A VE that changes meanwhile is seen as it is when each part is reached.
    pub fn export_source(&self) -> VolumeSource<'_> {
        VolumeSource { volume: self }
    }

    /// Every path that differs from the base, ordered by path within each directory. A directory of which only the times moved is not listed.
    pub fn changes(&self) -> Result<Vec<VolumeChange>> {
        let mut changes = Vec::new();
        self.compare(&mut |found| {
            changes.push(VolumeChange {
                path: format!("/{}", String::from_utf8_lossy(found.path)),
                kind: found.kind,
                file_type: found.attr.kind,
                size: found.attr.size,
            });
            Ok(())
        })?;
        Ok(changes)
    }

    /// The private layer as a template layer: blobs of private data go to `batch`. Paths (no leading slash) for which `skip` holds are left
    /// out, with all below them.
    pub fn to_layer(&self, batch: &Batch<'_>, skip: &dyn Fn(&[u8]) -> bool) -> Result<TreeBuilder> {
        let mut layer = Layer {
            volume: self,
            batch,
            tree: TreeBuilder::new(self.tree_meta(Ino::ROOT)?),
            dirs: HashMap::new(),
            nodes: HashMap::new(),
        };
        layer.dirs.insert(Vec::new(), layer.tree.root());
        let skipped = |path: &[u8]| {
            let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
            path.is_empty() || ends.chain([path.len()]).any(|end| skip(&path[..end]))
        };
        // Names of hard-linked files that the layer does not have yet.
        let mut missing: HashMap<Ino, u32> = HashMap::new();
        self.compare(&mut |found| {
            if skipped(found.path) {
                return Ok(());
            }
            if found.kind != ChangeKind::Deleted && found.attr.kind != FileKind::Dir && found.attr.nlink > 1 {
                let names = missing.entry(found.ino).or_insert(found.attr.nlink);
                *names = names.saturating_sub(1);
            }
            layer.add(&found)
        })?;
        missing.retain(|_, names| *names > 0);
        if !missing.is_empty() {
            // A link is kept by the layer only if it has all names, the unchanged ones too. They can be anywhere.
            self.export_source().for_each(&mut |path, ino, attr| {
                if missing.contains_key(&ino) && !skipped(path) {
                    layer.add(&Difference { path, kind: ChangeKind::Changed, ino, attr: *attr })?;
                }
                Ok::<_, VolumeError>(())
            })?;
        }
        Ok(layer.tree)
    }

    fn compare(&self, visit: Visit<'_>) -> Result<()> {
        let dirty = self.dirty_dirs()?;
        let root = self.attr(Ino::ROOT)?;
        if self.differs(Ino::ROOT, Ino::ROOT, &root)? {
            visit(Difference { path: b"", kind: ChangeKind::Changed, ino: Ino::ROOT, attr: root })?;
        }
        self.compare_dirs(&dirty, visit)
    }

    /// Directories with private entries, and all directories above them.
    fn dirty_dirs(&self) -> Result<HashSet<Ino>> {
        let mut dirty = HashSet::new();
        for row in self.meta.all_entries(self.ve) {
            let mut dir = row?.dir;
            while dirty.insert(dir) {
                match self.parent(dir) {
                    Ok(parent) => dir = parent,
                    // Entries of a directory that is removed but still open.
                    Err(VolumeError::NotFound | VolumeError::NotDir) => break,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(dirty)
    }

    /// Compares everything below the root, entering what is dirty or has taken the place of another directory.
    fn compare_dirs(&self, dirty: &HashSet<Ino>, visit: Visit<'_>) -> Result<()> {
        let mut trail = Trail::default();
        let mut open: Vec<Compared> = Vec::new();
        let mut enter = Some((Ino::ROOT, Ino::ROOT));
        loop {
            if let Some((dir, base_dir)) = enter.take()
                && (dir != base_dir || dirty.contains(&dir))
            {
                trail.enter(dir)?;
                let (now, before) = (self.children(dir)?.into_iter(), self.base_children(base_dir)?);
                open.push(Compared { path_len: trail.path().len(), now, before });
            }
            let Some(compared) = open.last_mut() else { return Ok(()) };
            let path_len = compared.path_len;
            let Some((name, (ino, kind))) = compared.now.next() else {
                for (name, (ino, _)) in std::mem::take(&mut compared.before) {
                    trail.go(path_len, &name)?;
                    let attr = self.base_attr(ino)?;
                    visit(Difference { path: trail.path(), kind: ChangeKind::Deleted, ino, attr })?;
                    self.children_deleted(ino, &mut trail, visit)?;
                }
                trail.back(path_len);
                open.pop();
                continue;
            };
            let before = compared.before.remove(&name);
            trail.go(path_len, &name)?;
            let attr = self.attr(ino)?;
            match before {
                Some((base_ino, base_kind)) if base_kind == kind => {
                    if self.differs(ino, base_ino, &attr)? {
                        visit(Difference { path: trail.path(), kind: ChangeKind::Changed, ino, attr })?;
                    }
                    if kind == FileKind::Dir {
                        enter = Some((ino, base_ino));
                    }
                }
                other_kind => {
                    let change = if other_kind.is_some() { ChangeKind::Changed } else { ChangeKind::Added };
                    let path_len = trail.path().len();
                    visit(Difference { path: trail.path(), kind: change, ino, attr })?;
                    if kind == FileKind::Dir {
                        self.walk_below(ino, &mut trail, &mut |path, ino, attr| {
                            visit(Difference { path, kind: ChangeKind::Added, ino, attr: *attr })
                        })?;
                    }
                    if let Some((replaced, FileKind::Dir)) = other_kind {
                        trail.back(path_len);
                        self.children_deleted(replaced, &mut trail, visit)?;
                    }
                }
            }
        }
    }

    fn children_deleted(&self, dir: Ino, trail: &mut Trail, visit: Visit<'_>) -> Result<()> {
        self.walk_base_below(dir, trail, &mut |path, ino, attr| {
            visit(Difference { path, kind: ChangeKind::Deleted, ino, attr: *attr })
        })
    }

    /// Whether an inode says something else than one of the base, of the same kind. Times of directories do not count.
    fn differs(&self, ino: Ino, base_ino: Ino, attr: &Attr) -> Result<bool> {
        self.shared(|| {
            let Node::Private(record) = self.node(ino)? else { return Ok(ino != base_ino) };
            let view = self
                .base()
                .node(base_ino)
                .ok_or(VolumeError::Damaged { ino: base_ino, why: "the base does not have it" })?;
            let base = view.attr();
            let same_xattrs = view.xattrs().map(|(n, v)| (n.to_vec(), v.to_vec())).eq(record.xattrs.clone());
            let same_content = match (&record.content, view.content()) {
                (PrivateContent::None, ContentRef::None) => true,
                (PrivateContent::Symlink(now), ContentRef::Symlink(before)) => now == before,
                (PrivateContent::Blob { digest, .. }, ContentRef::Blob { digest: before, .. }) => {
                    Digest::from_bytes(*digest) == before
                }
                _ => false,
            };
            let is_dir = attr.kind == FileKind::Dir;
            let owner = |attr: &Attr| (attr.perm, attr.uid, attr.gid, attr.rdev);
            Ok(!same_xattrs
            || !same_content
            || owner(attr) != owner(&base)
            || (!is_dir && (attr.mtime != base.mtime || attr.nlink != base.nlink))
            // The name belongs to another group of hard links.
            || (!is_dir && attr.nlink > 1 && ino != base_ino))
        })
    }

    fn tree_meta(&self, ino: Ino) -> Result<TreeMeta> {
        let attr = self.attr(ino)?;
        self.shared(|| {
            let xattrs = self.record_of(self.node(ino)?).xattrs;
            Ok(TreeMeta {
                kind: attr.kind,
                perm: attr.perm,
                uid: attr.uid,
                gid: attr.gid,
                rdev: attr.rdev,
                mtime: attr.mtime,
                xattrs: xattrs.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
            })
        })
    }
}

/// A layer under construction.
struct Layer<'a, 'b> {
    volume: &'a Volume,
    batch: &'a Batch<'b>,
    tree: TreeBuilder,
    /// Directories that the layer has, by path.
    dirs: HashMap<Vec<u8>, NodeId>,
    /// Inodes that the layer has, for hard links.
    nodes: HashMap<Ino, NodeId>,
}

impl Layer<'_, '_> {
    fn add(&mut self, found: &Difference<'_>) -> Result<()> {
        let (parent, name) = split(found.path);
        let name = NameRef::new(name).map_err(|_| VolumeError::Invalid("a name in the private tables"))?;
        if found.kind == ChangeKind::Deleted {
            // What was deleted with its directory needs no whiteout of its own.
            match self.volume.resolve(parent)? {
                Some(parent) if self.volume.attr(parent)?.kind == FileKind::Dir => {}
                _ => return Ok(()),
            }
        }
        let dir = self.dir(parent)?;
        if found.kind == ChangeKind::Deleted {
            return self.tree.whiteout(dir, name).map_err(tree_failed);
        }
        if let Some(&node) = self.nodes.get(&found.ino) {
            return self.tree.link(dir, name, node).map_err(tree_failed);
        }
        let meta = self.volume.tree_meta(found.ino)?;
        let content = self.content(found.ino)?;
        let node = self.tree.insert(dir, name, meta, content).map_err(tree_failed)?;
        if found.attr.kind == FileKind::Dir {
            self.dirs.insert(found.path.to_vec(), node);
        } else {
            self.nodes.insert(found.ino, node);
        }
        Ok(())
    }

    /// The layer's directory at a path, made with the attributes that the VE shows.
    fn dir(&mut self, path: &[u8]) -> Result<NodeId> {
        if let Some(&node) = self.dirs.get(path) {
            return Ok(node);
        }
        let (parent, name) = split(path);
        let above = self.dir(parent)?;
        let ino = self.volume.resolve(path)?.ok_or(VolumeError::NotFound)?;
        let name = NameRef::new(name).map_err(|_| VolumeError::Invalid("a name in the private tables"))?;
        let node =
            self.tree.insert(above, name, self.volume.tree_meta(ino)?, Content::None).map_err(tree_failed)?;
        self.dirs.insert(path.to_vec(), node);
        Ok(node)
    }

    fn content(&self, ino: Ino) -> Result<Content> {
        let record = self.volume.shared(|| Ok(self.volume.record_of(self.volume.node(ino)?)))?;
        Ok(match record.content {
            PrivateContent::None | PrivateContent::Joined { .. } => Content::None,
            PrivateContent::Symlink(target) => Content::Symlink(target.into()),
            PrivateContent::Blob { digest, size, allocated_bytes } => {
                Content::Blob { digest: Digest::from_bytes(digest), size, allocated_bytes }
            }
            PrivateContent::Data { .. } => {
                let stored = self.batch.add_file(&self.volume.open_for_reading(ino)?)?;
                Content::Blob {
                    digest: stored.digest,
                    size: stored.size,
                    allocated_bytes: stored.allocated_bytes,
                }
            }
        })
    }
}

impl Volume {
    /// The inode at a path (no leading slash; symbolic links are not followed), or `None`.
    pub fn resolve(&self, path: &[u8]) -> Result<Option<Ino>> {
        self.shared(|| {
            let mut ino = Ino::ROOT;
            for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
                let Ok(name) = NameRef::new(name) else { return Ok(None) };
                match self.find(ino, name)? {
                    Some((next, _)) => ino = next,
                    None => return Ok(None),
                }
            }
            Ok(Some(ino))
        })
    }
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

fn tree_failed(_: crate::tree::TreeError) -> VolumeError {
    VolumeError::Invalid("the private layer does not form a tree")
}
