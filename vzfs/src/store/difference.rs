//! An application template from a complete root filesystem: what it has that its OS template does not.

use std::collections::HashMap;

use crate::tree::{
    Content, ContentRef, Entry, Meta, NodeId, NodeView, Target, Tree, TreeBuilder, TreeError, soundly,
};
use crate::types::{FileKind, Ino, Name};

/// A directory of `full`, with its place in the layer once it has one.
struct Dir {
    node: NodeId,
    /// The directory of the same path in the OS.
    os: Option<Ino>,
    /// Index of the parent, and the name in it; `None` for the root.
    parent: Option<(usize, Name)>,
    /// Where it is in the layer.
    out: Option<NodeId>,
}

/// The layer that turns `os` into `full`: entries that are new or different, with the directories above them, and
/// whiteouts for what is missing.
///
/// A file counts as different when its content, target, device, mode, owner, mtime or an extended attribute is. All
/// names of a file are in the layer or none is, so that hard links stay hard links: a new name for a file of the OS
/// brings the old names along. Whiteouts in `full` are entries that are not there.
///
/// # Errors
/// Those of the builder: the trees are too large for one layer. [`TreeError::Unreadable`].
pub fn difference(os: &Tree, full: &TreeBuilder) -> Result<TreeBuilder, TreeError> {
    soundly(|| compare(os, full))
}

fn compare(os: &Tree, full: &TreeBuilder) -> Result<TreeBuilder, TreeError> {
    let dirs = pair_directories(os, full);
    let same = unchanged_files(os, full, &dirs);
    let mut layer = TreeBuilder::new(full.meta(full.root()).clone());
    let mut dirs = dirs;
    dirs[0].out = Some(layer.root());
    let mut placed: HashMap<NodeId, NodeId> = HashMap::new();
    for index in 0..dirs.len() {
        let (node, os_dir) = (dirs[index].node, dirs[index].os);
        let changed =
            os_dir.and_then(|ino| os.node(ino)).is_none_or(|view| !same_meta(full.meta(node), &view));
        if changed {
            place(&mut layer, full, &mut dirs, index)?;
        }
        for (name, entry) in full.entries(node) {
            let Entry::Node(child) = entry else { continue };
            let is_dir = full.meta(child).kind == FileKind::Dir;
            // Directories have an index of their own and are placed when they are reached or needed.
            if is_dir || same.get(&child).copied().unwrap_or(false) {
                continue;
            }
            let out = place(&mut layer, full, &mut dirs, index)?;
            match placed.get(&child) {
                Some(&first) => layer.link(out, name, first)?,
                None => {
                    let copy =
                        layer.insert(out, name, full.meta(child).clone(), full.content(child).clone())?;
                    placed.insert(child, copy);
                }
            }
        }
        let Some(os_dir) = os_dir else { continue };
        for entry in os.entries(os_dir, None) {
            let there = matches!(full.get(node, entry.name), Some(Entry::Node(_)));
            if !there && matches!(entry.target, Target::Node(..)) {
                let out = place(&mut layer, full, &mut dirs, index)?;
                layer.whiteout(out, entry.name)?;
            }
        }
    }
    Ok(layer)
}

/// All directories of `full`, parents before children. A list and not a recursion: how deep a source may be is not
/// for this module to say.
fn pair_directories(os: &Tree, full: &TreeBuilder) -> Vec<Dir> {
    let mut dirs = vec![Dir { node: full.root(), os: Some(Ino::ROOT), parent: None, out: None }];
    let mut index = 0;
    while index < dirs.len() {
        let (node, os_dir) = (dirs[index].node, dirs[index].os);
        for (name, entry) in full.entries(node) {
            let Entry::Node(child) = entry else { continue };
            if full.meta(child).kind == FileKind::Dir {
                let os = match os_dir.and_then(|dir| os.lookup(dir, name)).map(|entry| entry.target) {
                    Some(Target::Node(ino, FileKind::Dir)) => Some(ino),
                    _ => None,
                };
                dirs.push(Dir { node: child, os, parent: Some((index, name.to_name())), out: None });
            }
        }
        index += 1;
    }
    dirs
}

/// Which files of `full` are those of the OS: every name of theirs names one and the same OS inode, which equals them and
/// is no other file's counterpart as well.
fn unchanged_files(os: &Tree, full: &TreeBuilder, dirs: &[Dir]) -> HashMap<NodeId, bool> {
    let mut counterpart: HashMap<NodeId, Option<Ino>> = HashMap::new();
    for dir in dirs {
        for (name, entry) in full.entries(dir.node) {
            let Entry::Node(child) = entry else { continue };
            if full.meta(child).kind == FileKind::Dir {
                continue;
            }
            let os_ino = dir.os.and_then(|dir| os.lookup(dir, name)).and_then(|entry| match entry.target {
                Target::Node(ino, _) => os.node(ino).filter(|view| same_file(full, child, view)).map(|_| ino),
                Target::Whiteout => None,
            });
            let known = counterpart.entry(child).or_insert(os_ino);
            if *known != os_ino {
                *known = None;
            }
        }
    }
    // Names that were one file and are two now: neither may be left to the OS's hard link.
    let mut owners: HashMap<Ino, u32> = HashMap::new();
    for ino in counterpart.values().flatten() {
        *owners.entry(*ino).or_default() += 1;
    }
    counterpart.into_iter().map(|(node, ino)| (node, ino.is_some_and(|ino| owners[&ino] == 1))).collect()
}

/// The directory's place in the layer, made with those above it if need be.
fn place(
    layer: &mut TreeBuilder,
    full: &TreeBuilder,
    dirs: &mut [Dir],
    index: usize,
) -> Result<NodeId, TreeError> {
    let mut missing = Vec::new();
    let mut at = index;
    let mut out = loop {
        match (dirs[at].out, &dirs[at].parent) {
            (Some(out), _) => break out,
            (None, Some((parent, _))) => {
                missing.push(at);
                at = *parent;
            }
            (None, None) => break layer.root(),
        }
    };
    for at in missing.into_iter().rev() {
        let Some((_, name)) = &dirs[at].parent else { continue };
        out = layer.insert(out, name.as_ref(), full.meta(dirs[at].node).clone(), Content::None)?;
        dirs[at].out = Some(out);
    }
    Ok(out)
}

fn same_file(full: &TreeBuilder, node: NodeId, os: &NodeView<'_>) -> bool {
    let content = match (full.content(node), os.content()) {
        (Content::None, ContentRef::None) => true,
        (Content::Blob { digest, .. }, ContentRef::Blob { digest: other, .. }) => *digest == other,
        (Content::Symlink(target), ContentRef::Symlink(other)) => **target == *other,
        _ => false,
    };
    content && same_meta(full.meta(node), os)
}

fn same_meta(meta: &Meta, os: &NodeView<'_>) -> bool {
    let attr = os.attr();
    (meta.kind, meta.perm, meta.uid, meta.gid, meta.rdev, meta.mtime)
        == (attr.kind, attr.perm, attr.uid, attr.gid, attr.rdev, attr.mtime)
        && meta.xattrs.len() == os.xattrs().count()
        && os.xattrs().all(|(name, value)| meta.xattrs.get(name).is_some_and(|own| **own == *value))
}

/// Makes a tree stand on its own: takes out whiteouts and opaque flags, which mean nothing at the bottom of a stack.
pub(super) fn flatten(builder: &mut TreeBuilder) {
    let mut dirs = vec![builder.root()];
    while let Some(dir) = dirs.pop() {
        builder.set_opaque(dir, false);
        let mut hidden = Vec::new();
        for (name, entry) in builder.entries(dir) {
            match entry {
                Entry::Whiteout => hidden.push(name.to_name()),
                Entry::Node(child) if builder.meta(child).kind == FileKind::Dir => dirs.push(child),
                Entry::Node(_) => {}
            }
        }
        for name in hidden {
            builder.remove(dir, name.as_ref());
        }
    }
}
