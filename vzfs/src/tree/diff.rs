use std::cmp::Ordering;

use serde::Serialize;

use crate::types::{FileKind, Timestamp};

use super::reader::Tree;
use super::walk::WalkEntry;
use super::{ContentRef, NodeView};

/// A path that two trees do not have in common.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// Without a leading slash; empty for the root.
    pub path: Vec<u8>,
    /// Whether the path came, stayed or went.
    pub kind: ChangeKind,
    /// The path in the first tree.
    pub old: Option<Side>,
    /// The path in the second tree.
    pub new: Option<Side>,
    /// What is different, for a path that stayed. Never empty then.
    pub aspects: Vec<Aspect>,
}

/// What became of a path.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// Only the second tree has it.
    Added,
    /// Both trees have it, differently.
    Changed,
    /// Only the first tree has it.
    Deleted,
}

/// What a path is in one of the trees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Side {
    /// Type of file; `None` for a whiteout.
    pub kind: Option<FileKind>,
    /// Permission bits.
    pub perm: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of content: file size or length of a symlink's target; 0 for all else.
    pub size: u64,
    /// Last change of content.
    pub mtime: Timestamp,
}

/// What can differ between two inodes at one path.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Aspect {
    /// Type of file, or that one is a whiteout. Then nothing else is compared.
    Type,
    /// Bytes of a regular file.
    Content,
    /// Target of a symbolic link.
    Target,
    /// Device number.
    Device,
    /// Permission bits.
    Mode,
    /// User or group.
    Owner,
    /// Last change of content.
    Mtime,
    /// Extended attributes.
    Xattrs,
    /// Whether a directory of a layer hides what is below it.
    Opaque,
}

impl Side {
    fn of(entry: &WalkEntry<'_>) -> Side {
        match entry {
            WalkEntry::Whiteout => {
                Side { kind: None, perm: 0, uid: 0, gid: 0, size: 0, mtime: Timestamp::default() }
            }
            WalkEntry::Node(node) => {
                let attr = node.attr();
                let size = if attr.kind == FileKind::Dir { 0 } else { attr.size };
                Side {
                    kind: Some(attr.kind),
                    perm: attr.perm,
                    uid: attr.uid,
                    gid: attr.gid,
                    size,
                    mtime: attr.mtime,
                }
            }
        }
    }
}

/// Every path at which the trees differ, parents first, children by name bytes. Whether two paths are hard
/// links of each other is not compared.
pub fn diff(a: &Tree, b: &Tree) -> Vec<Change> {
    if a.digest() == b.digest() {
        return Vec::new();
    }
    let (mut old, mut new) = (a.walk().peekable(), b.walk().peekable());
    let mut changes = Vec::new();
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return changes,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((old, _)), Some((new, _))) => walk_order(old, new),
        };
        let old = if order.is_le() { old.next() } else { None };
        let new = if order.is_ge() { new.next() } else { None };
        let sides = (old.as_ref().map(|(_, e)| Side::of(e)), new.as_ref().map(|(_, e)| Side::of(e)));
        let (path, kind, aspects) = match (old, new) {
            (Some((path, old)), Some((_, new))) => match compare(&old, &new) {
                aspects if aspects.is_empty() => continue,
                aspects => (path, ChangeKind::Changed, aspects),
            },
            (Some((path, _)), None) => (path, ChangeKind::Deleted, Vec::new()),
            (None, Some((path, _))) => (path, ChangeKind::Added, Vec::new()),
            (None, None) => return changes,
        };
        changes.push(Change { path, kind, old: sides.0, new: sides.1, aspects });
    }
}

/// The order of [`Tree::walk`]: name by name.
fn walk_order(a: &[u8], b: &[u8]) -> Ordering {
    let names = |path| <[u8]>::split(path, |byte: &u8| *byte == b'/');
    // The root's path splits into one empty name, which sorts before every other path.
    names(a).cmp(names(b))
}

fn compare(a: &WalkEntry<'_>, b: &WalkEntry<'_>) -> Vec<Aspect> {
    let (a, b) = match (a, b) {
        (WalkEntry::Whiteout, WalkEntry::Whiteout) => return Vec::new(),
        (WalkEntry::Node(a), WalkEntry::Node(b)) if a.kind() == b.kind() => (a, b),
        _ => return vec![Aspect::Type],
    };
    let (x, y) = (a.attr(), b.attr());
    let content = match (a.content(), b.content()) {
        (ContentRef::Blob { digest: a, .. }, ContentRef::Blob { digest: b, .. }) if a != b => {
            Some(Aspect::Content)
        }
        (ContentRef::Symlink(a), ContentRef::Symlink(b)) if a != b => Some(Aspect::Target),
        _ => None,
    };
    let same_xattrs = |a: &NodeView<'_>, b: &NodeView<'_>| a.xattrs().eq(b.xattrs());
    let others = [
        (x.rdev != y.rdev, Aspect::Device),
        (x.perm != y.perm, Aspect::Mode),
        ((x.uid, x.gid) != (y.uid, y.gid), Aspect::Owner),
        (x.mtime != y.mtime, Aspect::Mtime),
        (!same_xattrs(a, b), Aspect::Xattrs),
        (a.is_opaque() != b.is_opaque(), Aspect::Opaque),
    ];
    content
        .into_iter()
        .chain(others.into_iter().filter_map(|(differs, aspect)| differs.then_some(aspect)))
        .collect()
}
