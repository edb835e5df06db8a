use std::collections::{BTreeMap, HashMap, HashSet};

use crate::types::{FileKind, Ino, Name, NameRef, Timestamp};

use super::{ContentRef, NodeView, Target, Tree, TreeError, TreeImage, soundly};

/// The attributes of an inode that a tree keeps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Meta {
    /// Type of file.
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky: `0 ..= 0o7777`.
    pub perm: u16,
    /// Owner, as a VE sees it.
    pub uid: u32,
    /// Group, as a VE sees it.
    pub gid: u32,
    /// Device number; ignored for what is no device.
    pub rdev: u32,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Extended attributes by name.
    pub xattrs: BTreeMap<Box<[u8]>, Box<[u8]>>,
}

impl Meta {
    /// Attributes of an inode that belongs to root, was last changed in 1970 and has no extended attributes.
    pub fn new(kind: FileKind, perm: u16) -> Meta {
        Meta { kind, perm, uid: 0, gid: 0, rdev: 0, mtime: Timestamp::default(), xattrs: BTreeMap::new() }
    }
}

/// What an inode holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// Directories, devices, pipes and sockets.
    None,
    /// Every regular file, also an empty one.
    Blob {
        /// Name of the blob.
        digest: crate::types::Digest,
        /// Its length in bytes.
        size: u64,
        /// What it takes on disk without its holes. Like the size, a function of the blob.
        allocated_bytes: u64,
    },
    /// The target of a symbolic link: 1 to 4095 bytes without NUL.
    Symlink(Box<[u8]>),
}

impl Content {
    /// Borrows.
    pub fn as_ref(&self) -> ContentRef<'_> {
        match self {
            Content::None => ContentRef::None,
            Content::Blob { digest, size, allocated_bytes } => {
                ContentRef::Blob { digest: *digest, size: *size, allocated_bytes: *allocated_bytes }
            }
            Content::Symlink(target) => ContentRef::Symlink(target),
        }
    }
}

/// An inode of one [`TreeBuilder`]. It stays usable after the inode has lost its last name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeId(u32);

impl NodeId {
    pub(super) const fn at(position: u32) -> NodeId {
        NodeId(position)
    }

    pub(super) fn position(self) -> usize {
        self.0 as usize
    }
}

/// What a name leads to, in a tree being built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// An inode.
    Node(NodeId),
    /// Nothing: the name hides the same name in the layers below.
    Whiteout,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) meta: Meta,
    pub(super) content: Content,
    pub(super) opaque: bool,
    pub(super) children: BTreeMap<Name, Entry>,
}

/// A tree being put together in memory.
///
/// Inodes live in an arena and are never freed before the end; the tree that [`TreeBuilder::finish`] writes
/// is what can be reached from the root then. Removing is therefore taking a name away, with no counting of
/// links.
///
/// # Panics
/// Every method panics when given a [`NodeId`] of another builder, a mistake of the program and not of its
/// data.
#[derive(Debug)]
pub struct TreeBuilder {
    pub(super) nodes: Vec<Node>,
}

/// What becomes of the marks of a layer (whiteouts, opaque directories) that is put into a builder.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Marks {
    /// They are kept: the result is a layer again.
    Keep,
    /// They act on what is there and disappear.
    Act,
}

impl TreeBuilder {
    /// A tree that has only its root, which must be a directory; [`TreeBuilder::finish`] refuses others.
    pub fn new(root: Meta) -> TreeBuilder {
        let node = Node { meta: root, content: Content::None, opaque: false, children: BTreeMap::new() };
        TreeBuilder { nodes: vec![node] }
    }

    /// A copy of a finished tree, to be changed. Hard links stay hard links, whiteouts and opaque directories
    /// stay.
    ///
    /// # Errors
    /// [`TreeError::Damaged`].
    pub fn from_tree(tree: &Tree) -> Result<TreeBuilder, TreeError> {
        let mut builder = TreeBuilder::new(Meta::new(FileKind::Dir, 0o755));
        soundly(|| builder.graft(tree, Marks::Keep))?;
        Ok(builder)
    }

    /// The root directory.
    pub fn root(&self) -> NodeId {
        NodeId(0)
    }

    /// The attributes of an inode.
    pub fn meta(&self, node: NodeId) -> &Meta {
        &self.node(node).meta
    }

    /// The attributes of an inode, to be changed; but the kind must stay.
    pub fn meta_mut(&mut self, node: NodeId) -> &mut Meta {
        &mut self.node_mut(node).meta
    }

    /// What an inode holds.
    pub fn content(&self, node: NodeId) -> &Content {
        &self.node(node).content
    }

    /// Gives an inode another content, under all its names.
    pub fn set_content(&mut self, node: NodeId, content: Content) {
        self.node_mut(node).content = content;
    }

    /// What a name leads to.
    pub fn get(&self, dir: NodeId, name: NameRef<'_>) -> Option<Entry> {
        self.node(dir).children.get(name.as_bytes()).copied()
    }

    /// The names in a directory, ordered by their bytes.
    pub fn entries(&self, dir: NodeId) -> impl Iterator<Item = (NameRef<'_>, Entry)> {
        self.node(dir).children.iter().map(|(name, entry)| (name.as_ref(), *entry))
    }

    /// Adds a new inode under a name, in place of whatever had the name.
    ///
    /// A directory put where a directory is merges with it: it keeps the children and the inode and takes the
    /// new attributes. A directory put where a whiteout is becomes opaque, so that what was hidden stays
    /// hidden.
    ///
    /// # Errors
    /// [`TreeError::NotADirectory`], [`TreeError::TooLarge`].
    pub fn insert(
        &mut self,
        dir: NodeId,
        name: NameRef<'_>,
        meta: Meta,
        content: Content,
    ) -> Result<NodeId, TreeError> {
        self.expect_dir(dir, name)?;
        let old = self.get(dir, name);
        if let (FileKind::Dir, Some(Entry::Node(old))) = (meta.kind, old)
            && self.meta(old).kind == FileKind::Dir
        {
            *self.meta_mut(old) = meta;
            return Ok(old);
        }
        let id = u32::try_from(self.nodes.len()).ok().filter(|id| *id < u32::MAX);
        let id = NodeId(id.ok_or(TreeError::TooLarge("inodes"))?);
        let opaque = meta.kind == FileKind::Dir && old == Some(Entry::Whiteout);
        self.nodes.push(Node { meta, content, opaque, children: BTreeMap::new() });
        self.set(dir, name, Entry::Node(id));
        Ok(id)
    }

    /// Gives an inode one more name (a hard link), in place of whatever had the name.
    ///
    /// # Errors
    /// [`TreeError::NotADirectory`], [`TreeError::LinkToDirectory`].
    pub fn link(&mut self, dir: NodeId, name: NameRef<'_>, node: NodeId) -> Result<(), TreeError> {
        self.expect_dir(dir, name)?;
        if self.meta(node).kind == FileKind::Dir {
            return Err(TreeError::LinkToDirectory { name: name.escape_ascii().to_string() });
        }
        self.set(dir, name, Entry::Node(node));
        Ok(())
    }

    /// Makes a name hide the same name in the layers below, in place of whatever had the name.
    ///
    /// # Errors
    /// [`TreeError::NotADirectory`].
    pub fn whiteout(&mut self, dir: NodeId, name: NameRef<'_>) -> Result<(), TreeError> {
        self.expect_dir(dir, name)?;
        self.set(dir, name, Entry::Whiteout);
        Ok(())
    }

    /// Takes a name away, with everything below it, and tells what it led to.
    pub fn remove(&mut self, dir: NodeId, name: NameRef<'_>) -> Option<Entry> {
        self.node_mut(dir).children.remove(name.as_bytes())
    }

    /// Makes a directory hide, or not hide, everything that the layers below have in it.
    pub fn set_opaque(&mut self, dir: NodeId, opaque: bool) {
        self.node_mut(dir).opaque = opaque;
    }

    /// Whether a directory hides what the layers below have in it.
    pub fn is_opaque(&self, dir: NodeId) -> bool {
        self.node(dir).opaque
    }

    /// Puts a layer on top of this tree: its inodes replace or join what is there, its whiteouts and opaque
    /// directories take effect and then disappear. The root takes the layer's attributes.
    ///
    /// # Errors
    /// [`TreeError::Damaged`], [`TreeError::TooLarge`]. The builder is then half merged and good for nothing.
    pub fn apply_layer(&mut self, layer: &Tree) -> Result<(), TreeError> {
        soundly(|| self.graft(layer, Marks::Act))
    }

    /// Writes the tree out.
    ///
    /// # Errors
    /// [`TreeError::Unfit`] for an inode that no filesystem could hold, [`TreeError::BlobConflict`],
    /// [`TreeError::TooLarge`].
    pub fn finish(self) -> Result<TreeImage, TreeError> {
        TreeImage::of(&self)
    }

    fn graft(&mut self, tree: &Tree, marks: Marks) -> Result<(), TreeError> {
        let damaged = |what: &str, ino: Ino| TreeError::damaged(tree.digest(), format!("{what} {ino}"));
        let view_of = |ino| tree.node(ino).ok_or_else(|| damaged("it lacks inode", ino));

        let root = view_of(Ino::ROOT)?;
        *self.meta_mut(self.root()) = root.meta();
        self.settle(self.root(), &root, marks);
        // Only inodes with several names are remembered, for the second one.
        let mut linked: HashMap<Ino, NodeId> = HashMap::new();
        // Valid trees have no cycles. Of others, a caller may still expect an end and an error.
        let mut entered = HashSet::from([Ino::ROOT]);
        let mut todo = vec![(Ino::ROOT, self.root())];
        while let Some((from, to)) = todo.pop() {
            for entry in tree.entries(from, None) {
                let ino = match (entry.target, marks) {
                    (Target::Node(ino, _), _) => ino,
                    (Target::Whiteout, Marks::Keep) => {
                        self.whiteout(to, entry.name)?;
                        continue;
                    }
                    (Target::Whiteout, Marks::Act) => {
                        self.remove(to, entry.name);
                        continue;
                    }
                };
                if let Some(node) = linked.get(&ino) {
                    self.link(to, entry.name, *node)?;
                    continue;
                }
                let view = view_of(ino)?;
                let node = self.insert(to, entry.name, view.meta(), view.content().to_content())?;
                if view.kind() == FileKind::Dir {
                    if !entered.insert(ino) {
                        return Err(damaged("it has a second name for directory", ino));
                    }
                    self.settle(node, &view, marks);
                    todo.push((ino, node));
                } else if view.attr().nlink > 1 {
                    linked.insert(ino, node);
                }
            }
        }
        Ok(())
    }

    /// Lets a directory's opaque flag take effect, before its entries come.
    fn settle(&mut self, dir: NodeId, from: &NodeView<'_>, marks: Marks) {
        if from.is_opaque() {
            match marks {
                Marks::Keep => self.node_mut(dir).opaque = true,
                Marks::Act => self.node_mut(dir).children.clear(),
            }
        }
    }

    pub(super) fn node(&self, node: NodeId) -> &Node {
        &self.nodes[node.position()]
    }

    fn node_mut(&mut self, node: NodeId) -> &mut Node {
        &mut self.nodes[node.position()]
    }

    fn set(&mut self, dir: NodeId, name: NameRef<'_>, entry: Entry) {
        let children = &mut self.node_mut(dir).children;
        match children.get_mut(name.as_bytes()) {
            Some(old) => *old = entry,
            None => drop(children.insert(name.to_name(), entry)),
        }
    }

    fn expect_dir(&self, dir: NodeId, name: NameRef<'_>) -> Result<(), TreeError> {
        match self.meta(dir).kind {
            FileKind::Dir => Ok(()),
            _ => Err(TreeError::NotADirectory { name: name.escape_ascii().to_string() }),
        }
    }
}
