//! The bases of a volume: the one that it has, and those that it had while its mount was there.
//!
//! A program keeps the files that it has open when an update replaces them, and the kernel may ask for any inode that it knows. Numbers stand for
//! content, so an inode that the current base does not have is answered from the bases before it: it has no name any more, as
//! if it had been removed while open. That costs nothing at the update and needs no list of what is open.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Result, Volume};
use crate::tree::{NodeView, Tree, soundly, soundly_read};
use crate::types::{Digest, Ino};

/// Trees are only ever added, so that a reference to one lives as long as the volume.
pub(super) struct Bases {
    trees: boxcar::Vec<Arc<Tree>>,
    /// Its position; changed only with `names` held exclusively.
    current: AtomicUsize,
}

impl Bases {
    pub(super) fn new(current: Arc<Tree>) -> Bases {
        let trees = boxcar::Vec::new();
        let current = AtomicUsize::new(trees.push(current));
        Bases { trees, current }
    }

    /// Bases before the current one.
    pub(super) fn add_retired(&self, trees: Vec<Arc<Tree>>) {
        for tree in trees {
            self.trees.push(tree);
        }
    }

    pub(super) fn current(&self) -> &Arc<Tree> {
        // In range: positions come from `push`, and nothing is taken out.
        &self.trees[self.current.load(Ordering::Acquire)]
    }

    /// Makes another base the current one. The caller holds `names` exclusively.
    pub(super) fn switch(&self, to: &Arc<Tree>) {
        let known = self.trees.iter().find(|(_, tree)| tree.digest() == to.digest()).map(|(at, _)| at);
        let position = known.unwrap_or_else(|| self.trees.push(Arc::clone(to)));
        self.current.store(position, Ordering::Release);
    }

    /// An inode that the current base does not have, as an earlier one had it.
    pub(super) fn retired(&self, ino: Ino) -> Option<NodeView<'_>> {
        if self.trees.count() == 1 {
            return None;
        }
        self.trees.iter().find_map(|(_, tree)| tree.node(ino))
    }

    /// The first earlier base that has an inode.
    pub(super) fn retired_with(&self, ino: Ino) -> Option<Digest> {
        self.trees.iter().find(|(_, tree)| tree.node(ino).is_some()).map(|(_, tree)| tree.digest())
    }
}

impl Volume {
    /// Looks into the tables and the base while nobody changes them, once more if it could not be read. `work` does nothing else.
    ///
    /// # Errors
    /// [`super::VolumeError::Tree`] in place of any result when what it was made of cannot be read, a "not found" too.
    pub(super) fn shared<T>(&self, mut work: impl FnMut() -> Result<T>) -> Result<T> {
        soundly_read(|| {
            let _shared = self.names.read();
            work()
        })
    }

    /// The same for what must not be done twice.
    pub(super) fn shared_once<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        soundly(|| {
            let _shared = self.names.read();
            work()
        })
    }

    /// Changes the tables, by what it finds in them and in the base. What was made of something that cannot be read is not written: the database refuses
    /// it.
    pub(super) fn exclusive<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        soundly(|| {
            let _exclusive = self.names.write();
            work()
        })
    }
}
