use crate::types::{FileKind, Ino, Name};

use super::NodeView;
use super::reader::{Target, Tree};

/// What [`Tree::walk`] finds at a path.
#[derive(Clone, Copy, Debug)]
pub enum WalkEntry<'a> {
    /// An inode. One with several names comes once for each.
    Node(NodeView<'a>),
    /// Nothing: the name hides the same name in the layers below.
    Whiteout,
}

/// All paths of a tree; see [`Tree::walk`].
pub struct Walk<'a> {
    tree: &'a Tree,
    root: Option<NodeView<'a>>,
    path: Vec<u8>,
    /// The directories being listed: the length of their paths, and their positions in the entry table by
    /// name, backwards.
    open: Vec<(usize, Vec<u32>)>,
}

impl Tree {
    /// All paths, without a leading slash, the root's being empty: parents first, children ordered by name
    /// bytes.
    ///
    /// Ends for any bytes whatever: a directory is entered only through the one entry that its own record
    /// points back to, and an entry is seen only in the directory that its record points back to.
    pub fn walk(&self) -> Walk<'_> {
        Walk { tree: self, root: self.node(Ino::ROOT), path: Vec::new(), open: Vec::new() }
    }
}

impl Walk<'_> {
    /// Goes down into a directory, whose path is the current one.
    fn enter(&mut self, dir: &NodeView<'_>) {
        let records = self.tree.entry_records();
        let range = self.tree.record_range(dir.record()).unwrap_or(0..0);
        // Copied: what is sorted must not change meanwhile, as pages of a mapping may.
        let mut names: Vec<(Name, u32)> = range
            .filter_map(|position| Some((self.tree.see_one(records.get(position)?), position as u32)))
            .filter(|(record, _)| record.parent.get() == dir.index())
            .filter_map(|(record, position)| Some((self.tree.name(record)?.to_name(), position)))
            .collect();
        names.sort_unstable_by(|a, b| b.cmp(a));
        self.open.push((self.path.len(), names.into_iter().map(|(_, position)| position).collect()));
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = (Vec<u8>, WalkEntry<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(root) = self.root.take() {
            self.enter(&root);
            return Some((Vec::new(), WalkEntry::Node(root)));
        }
        loop {
            let (prefix, names) = self.open.last_mut()?;
            self.path.truncate(*prefix);
            let Some(position) = names.pop() else {
                self.open.pop();
                continue;
            };
            let Some(entry) =
                self.tree.entry_records().get(position as usize).and_then(|r| self.tree.entry(r))
            else {
                continue;
            };
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(&entry.name);
            let found = match entry.target {
                Target::Whiteout => WalkEntry::Whiteout,
                Target::Node(ino, _) => {
                    let Some(node) = self.tree.node(ino) else { continue };
                    if node.kind() == FileKind::Dir && node.name_entries().eq([position]) {
                        self.enter(&node);
                    }
                    WalkEntry::Node(node)
                }
            };
            return Some((self.path.clone(), found));
        }
    }
}
