//! Where an archive's entries take root: paths of a hostile archive become nodes of a [`TreeBuilder`], and nothing else.

use std::collections::{BTreeMap, HashSet};

use super::error::{Reason, printable};
use super::limits::MAX_PATH_BYTES;
use crate::tree::{Content, Entry, Meta, NodeId, TreeBuilder};
use crate::types::{FileKind, Name, NameRef, Timestamp};

/// Splits a path into names: slashes at both ends, double ones and `.` do not count; `..` is refused.
pub(super) fn components(path: &[u8]) -> Result<Vec<NameRef<'_>>, Reason> {
    if path.len() > MAX_PATH_BYTES {
        return Err(Reason::PathTooLong);
    }
    let mut names = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(Reason::DotDot),
            part => names.push(NameRef::new(part)?),
        }
    }
    Ok(names)
}

/// A directory that the archive does not describe: 0755, owned by root, of 1970 so that equal archives give equal
/// trees.
pub(super) fn implied_directory() -> Meta {
    Meta {
        kind: FileKind::Dir,
        perm: 0o755,
        uid: 0,
        gid: 0,
        rdev: 0,
        mtime: Timestamp::default(),
        xattrs: BTreeMap::new(),
    }
}

/// A tree that grows by paths. Symbolic links are never followed: a path through one is an error.
pub(super) struct Plant {
    pub(super) builder: TreeBuilder,
    /// Names that the current layer of an image has set; `None` when there are no layers.
    layer: Option<HashSet<(NodeId, Name)>>,
    /// Directories that were made because a path led through them, and bytes of their names; until somebody asks.
    implied: (u64, u64),
}

impl Plant {
    pub(super) fn new() -> Self {
        Plant { builder: TreeBuilder::new(implied_directory()), layer: None, implied: (0, 0) }
    }

    /// From here on names belong to a new layer.
    pub(super) fn begin_layer(&mut self) {
        self.layer = Some(HashSet::new());
    }

    fn touch(&mut self, dir: NodeId, name: NameRef<'_>) {
        if let Some(layer) = &mut self.layer {
            layer.insert((dir, name.to_name()));
        }
    }

    /// How many directories were implied by paths since the last call, and how long their names are.
    pub(super) fn take_implied(&mut self) -> (u64, u64) {
        std::mem::take(&mut self.implied)
    }

    /// The directory with this path; the missing ones on the way are made.
    pub(super) fn directory(&mut self, path: &[NameRef<'_>]) -> Result<NodeId, Reason> {
        let mut dir = self.builder.root();
        for (depth, name) in path.iter().enumerate() {
            let next = match self.builder.get(dir, *name) {
                Some(Entry::Node(node)) if self.builder.meta(node).kind == FileKind::Dir => node,
                Some(Entry::Node(_)) => return Err(Reason::ParentNotDirectory(join(&path[..=depth]))),
                Some(Entry::Whiteout) | None => {
                    self.implied.0 += 1;
                    self.implied.1 += name.len() as u64;
                    self.builder.insert(dir, *name, implied_directory(), Content::None)?
                }
            };
            self.touch(dir, *name);
            dir = next;
        }
        Ok(dir)
    }

    /// Sets an entry; a later one of the same path replaces the earlier one, except that a directory keeps its
    /// children when it is described again.
    pub(super) fn insert(
        &mut self,
        path: &[NameRef<'_>],
        meta: Meta,
        content: Content,
    ) -> Result<NodeId, Reason> {
        let Some((name, parents)) = path.split_last() else {
            if meta.kind != FileKind::Dir {
                return Err(Reason::RootNotDirectory);
            }
            let root = self.builder.root();
            *self.builder.meta_mut(root) = meta;
            return Ok(root);
        };
        let dir = self.directory(parents)?;
        self.touch(dir, *name);
        Ok(self.builder.insert(dir, *name, meta, content)?)
    }

    /// What has this path now, if anything.
    fn find(&self, path: &[NameRef<'_>]) -> Option<NodeId> {
        let mut node = self.builder.root();
        for name in path {
            if self.builder.meta(node).kind != FileKind::Dir {
                return None;
            }
            match self.builder.get(node, *name) {
                Some(Entry::Node(next)) => node = next,
                Some(Entry::Whiteout) | None => return None,
            }
        }
        Some(node)
    }

    /// Sets a hard link to what has the path `target` now.
    pub(super) fn link(&mut self, path: &[NameRef<'_>], target: &[NameRef<'_>]) -> Result<(), Reason> {
        let Some(node) = self.find(target) else {
            return Err(Reason::LinkTarget(join(target)));
        };
        if self.builder.meta(node).kind == FileKind::Dir {
            return Err(Reason::LinkToDirectory(join(target)));
        }
        let Some((name, parents)) = path.split_last() else {
            return Err(Reason::RootNotDirectory);
        };
        let dir = self.directory(parents)?;
        self.touch(dir, *name);
        if matches!(self.builder.get(dir, *name), Some(Entry::Node(present)) if present == node) {
            return Ok(());
        }
        Ok(self.builder.link(dir, *name, node)?)
    }

    /// Sets a whiteout: for layers that stay layers.
    pub(super) fn whiteout(&mut self, path: &[NameRef<'_>]) -> Result<(), Reason> {
        let Some((name, parents)) = path.split_last() else {
            return Err(Reason::RootNotDirectory);
        };
        let dir = self.directory(parents)?;
        Ok(self.builder.whiteout(dir, *name)?)
    }

    /// Takes away what lower layers have at this path; what the current layer has set stays, whichever came first.
    pub(super) fn hide(&mut self, path: &[NameRef<'_>]) -> Result<(), Reason> {
        let Some((name, parents)) = path.split_last() else {
            return Err(Reason::RootNotDirectory);
        };
        // The directory may be missing: then there is nothing to hide, and nothing to make either.
        let Some(dir) = self.find(parents) else { return Ok(()) };
        if self.builder.meta(dir).kind != FileKind::Dir {
            return Err(Reason::ParentNotDirectory(join(parents)));
        }
        if self.is_touched(dir, *name) {
            if let Some(Entry::Node(node)) = self.builder.get(dir, *name)
                && self.builder.meta(node).kind == FileKind::Dir
            {
                self.hide_below(node);
            }
        } else {
            self.builder.remove(dir, *name);
        }
        Ok(())
    }

    /// Takes away everything that lower layers have in this directory.
    pub(super) fn hide_children(&mut self, path: &[NameRef<'_>]) -> Result<(), Reason> {
        let dir = self.directory(path)?;
        self.hide_below(dir);
        Ok(())
    }

    fn hide_below(&mut self, dir: NodeId) {
        // A loop with its own stack: the depth is the archive's choice.
        let mut directories = vec![dir];
        while let Some(dir) = directories.pop() {
            let children: Vec<_> =
                self.builder.entries(dir).map(|(name, entry)| (name.to_name(), entry)).collect();
            for (name, entry) in children {
                if !self.is_touched(dir, name.as_ref()) {
                    self.builder.remove(dir, name.as_ref());
                } else if let Entry::Node(node) = entry
                    && self.builder.meta(node).kind == FileKind::Dir
                {
                    directories.push(node);
                }
            }
        }
    }

    fn is_touched(&self, dir: NodeId, name: NameRef<'_>) -> bool {
        self.layer.as_ref().is_some_and(|layer| layer.contains(&(dir, name.to_name())))
    }
}

/// A path for messages.
pub(super) fn join(path: &[NameRef<'_>]) -> String {
    let bytes: Vec<&[u8]> = path.iter().map(|name| name.as_bytes()).collect();
    printable(&bytes.join(&b'/'))
}
