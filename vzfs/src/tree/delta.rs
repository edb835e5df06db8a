//! What differs between two bases, in a volume's terms: inodes and names instead of paths.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use super::{ContentRef, NodeView, Target, Tree, TreeEntry, TreeError, soundly};
use crate::types::{FileKind, Ino, Name, NameRef};

/// An inode and its type.
type Node = (Ino, FileKind);

/// What a name leads to in the two bases; never the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NameChange {
    /// In the old one.
    pub old: Option<Node>,
    /// In the new one.
    pub new: Option<Node>,
}

/// How the two bases have an inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InodeChange {
    /// Only the old one has it.
    Gone,
    /// Only the new one has it.
    Came,
    /// Both have it, with other attributes or other names.
    Altered,
}

/// The difference between two bases. Made once for the two, used for every VE that is moved from one to the other.
///
/// An inode that both have has the same type and content in both: its number is made of those ([`Delta::between`] refuses the
/// astronomically rare exception).
#[derive(Debug)]
pub struct Delta {
    /// The base that VEs have.
    pub old: Arc<Tree>,
    /// The base that they get.
    pub new: Arc<Tree>,
    names: HashMap<Ino, HashMap<Name, NameChange>>,
    inodes: HashMap<Ino, InodeChange>,
    linked: Vec<Ino>,
}

impl Delta {
    /// Compares two bases; reads both from front to back.
    ///
    /// # Errors
    /// [`TreeError::Collision`] when the two give one number to different files. A volume could not tell them apart.
    pub fn between(old: &Arc<Tree>, new: &Arc<Tree>) -> Result<Delta, TreeError> {
        let mut delta = Delta {
            old: Arc::clone(old),
            new: Arc::clone(new),
            names: HashMap::new(),
            inodes: HashMap::new(),
            linked: Vec::new(),
        };
        if old.digest() == new.digest() {
            return Ok(delta);
        }
        soundly(|| delta.fill())?;
        Ok(delta)
    }

    fn fill(&mut self) -> Result<(), TreeError> {
        let (old, new) = (Arc::clone(&self.old), Arc::clone(&self.new));
        let (mut before, mut after) = (old.inodes().peekable(), new.inodes().peekable());
        loop {
            let order = match (before.peek(), after.peek()) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(old), Some(new)) => old.ino().cmp(&new.ino()),
            };
            let old = if order.is_le() { before.next() } else { None };
            let new = if order.is_ge() { after.next() } else { None };
            self.compare(old, new)?;
        }
        Ok(())
    }

    fn compare(&mut self, old: Option<NodeView<'_>>, new: Option<NodeView<'_>>) -> Result<(), TreeError> {
        let (ino, change) = match (&old, &new) {
            (Some(old), None) => (old.ino(), Some(InodeChange::Gone)),
            (None, Some(new)) => (new.ino(), Some(InodeChange::Came)),
            (Some(old), Some(new)) => {
                if !is_same(old, new) {
                    return Err(TreeError::Collision { ino: old.ino() });
                }
                (old.ino(), altered(old, new).then_some(InodeChange::Altered))
            }
            (None, None) => return Ok(()),
        };
        if let Some(change) = change {
            self.inodes.insert(ino, change);
            if new.is_some_and(|new| new.kind() != FileKind::Dir && new.attr().nlink > 1) {
                self.linked.push(ino);
            }
        }
        if old.or(new).is_some_and(|node| node.kind() == FileKind::Dir) {
            self.compare_names(ino);
        }
        Ok(())
    }

    fn compare_names(&mut self, dir: Ino) {
        let mut changes = HashMap::new();
        let (old, new) = (Arc::clone(&self.old), Arc::clone(&self.new));
        let (mut before, mut after) = (old.entries(dir, None).peekable(), new.entries(dir, None).peekable());
        let position = |entry: &TreeEntry<'_>| (entry.hash57, entry.name.to_name());
        loop {
            let order = match (before.peek(), after.peek()) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(old), Some(new)) if old.hash57 != new.hash57 => old.hash57.cmp(&new.hash57),
                (Some(old), Some(new)) => position(old).cmp(&position(new)),
            };
            let old = if order.is_le() { before.next() } else { None };
            let new = if order.is_ge() { after.next() } else { None };
            let Some(name) = old.or(new).map(|entry| entry.name) else { break };
            let change = NameChange { old: old.and_then(target), new: new.and_then(target) };
            if change.old != change.new {
                changes.insert(name.to_name(), change);
            }
        }
        if !changes.is_empty() {
            self.names.insert(dir, changes);
        }
    }

    /// Whether the two are the same.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.inodes.is_empty()
    }

    /// What became of a name.
    pub fn name(&self, dir: Ino, name: &Name) -> Option<NameChange> {
        self.names.get(&dir)?.get(name).copied()
    }

    /// Directories of which names changed, and those names.
    pub fn names(&self) -> impl Iterator<Item = (Ino, &HashMap<Name, NameChange>)> {
        self.names.iter().map(|(dir, names)| (*dir, names))
    }

    /// The changed names of a directory.
    pub fn names_in(&self, dir: Ino) -> Option<&HashMap<Name, NameChange>> {
        self.names.get(&dir)
    }

    /// What became of an inode; `None` when nothing did.
    pub fn inode(&self, ino: Ino) -> Option<InodeChange> {
        self.inodes.get(&ino).copied()
    }

    /// All inodes that one base has and the other has not, or has otherwise.
    pub fn inodes(&self) -> impl Iterator<Item = (Ino, InodeChange)> {
        self.inodes.iter().map(|(ino, change)| (*ino, *change))
    }

    /// Files with several names in the new base that the old one does not have so.
    pub fn linked(&self) -> &[Ino] {
        &self.linked
    }

    /// The path of a name, in whichever of the two bases has its directory. Without a leading slash.
    pub fn path(&self, dir: Ino, name: NameRef<'_>) -> Vec<u8> {
        let tree = if self.new.node(dir).is_some() { &self.new } else { &self.old };
        let mut path = tree.path(dir);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.as_bytes());
        path
    }
}

fn target(entry: TreeEntry<'_>) -> Option<Node> {
    match entry.target {
        Target::Node(ino, kind) => Some((ino, kind)),
        Target::Whiteout => None,
    }
}

/// Whether two views have what an inode's number stands for in common.
fn is_same(old: &NodeView<'_>, new: &NodeView<'_>) -> bool {
    let content = match (old.content(), new.content()) {
        (ContentRef::Blob { digest: old, .. }, ContentRef::Blob { digest: new, .. }) => old == new,
        (old, new) => old == new,
    };
    old.kind() == new.kind() && content && (!old.kind().is_device() || old.attr().rdev == new.attr().rdev)
}

/// Whether two views of one inode differ in attributes or names.
fn altered(old: &NodeView<'_>, new: &NodeView<'_>) -> bool {
    old.attr() != new.attr()
        || !old.xattrs().eq(new.xattrs())
        || (old.kind() != FileKind::Dir && old.attr().nlink > 1 && !old.names().eq(new.names()))
}

impl Tree {
    /// The path of a directory, or of another inode's first name; without a leading slash. What a damaged tree has no way to, has a path
    /// that starts in the middle.
    pub fn path(&self, ino: Ino) -> Vec<u8> {
        let mut parts: Vec<&[u8]> = Vec::new();
        let mut at = ino;
        while at != Ino::ROOT && parts.len() <= super::MAX_PATH_BYTES {
            let Some((parent, name)) = self.node(at).and_then(|view| view.names().next()) else { break };
            parts.push(name.as_bytes());
            at = parent;
        }
        parts.reverse();
        parts.join(&b'/')
    }
}
