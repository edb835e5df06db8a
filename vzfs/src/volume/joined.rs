//! Directories that a move joined with one that the new base has at their name.
//!
//! What was in the VE's directory is in the base's from then on, and the VE's own number leads to the base's as long as the kernel knows it: a program may have
//! it as its working directory or be listing it. The kernel has two directories then, and does not know that they are one: it may keep nothing of what is in the
//! first, and is told of the second what is changed through the first. The record that says so is an orphan's, so that it goes when the kernel forgets the number.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use super::{Result, Volume};
use crate::meta::PrivateContent;
use crate::types::{Ino, Name};

/// Which directories were joined with which.
#[derive(Default)]
pub(super) struct Joined {
    /// Almost always there is none: requests look here first.
    any: AtomicBool,
    /// A leaf.
    with: RwLock<HashMap<Ino, Ino>>,
}

impl Joined {
    fn get(&self, ino: Ino) -> Option<Ino> {
        if self.any.load(Ordering::Acquire) { self.with.read().get(&ino).copied() } else { None }
    }

    /// The caller holds `names` exclusively, or alone has the volume.
    pub(super) fn add(&self, ino: Ino, with: Ino) {
        self.with.write().insert(ino, with);
        self.any.store(true, Ordering::Release);
    }

    /// Each with what it was joined with.
    pub(super) fn all(&self) -> Vec<(Ino, Ino)> {
        self.with.read().iter().map(|(ino, with)| (*ino, *with)).collect()
    }

    pub(super) fn forget(&self, ino: Ino) {
        if self.any.load(Ordering::Acquire) {
            self.with.write().remove(&ino);
        }
    }
}

impl Volume {
    /// The directory that stands for this one, or the inode itself. The caller holds `names`.
    pub(super) fn joined(&self, ino: Ino) -> Ino {
        self.joined.get(ino).unwrap_or(ino)
    }

    /// Whether another directory stands for this one: then what the kernel caches of names in it is not kept true.
    pub fn is_joined(&self, ino: Ino) -> bool {
        self.joined.get(ino).is_some()
    }

    /// A name in this directory was changed. If another stands for it, the kernel does not know that of the other's name: it is among
    /// [`Volume::take_relabelled`].
    pub fn changed_in(&self, dir: Ino, name: &[u8]) -> bool {
        let (Some(with), Ok(name)) = (self.joined.get(dir), Name::new(name)) else { return false };
        let mut relabelled = self.relabelled.lock();
        relabelled.names.push((with, name));
        relabelled.dirs.push(with);
        true
    }

    /// This directory was listed. If another stands for it, the kernel must not keep the listing: it is among [`Volume::take_relabelled`].
    pub fn listed(&self, dir: Ino) -> bool {
        let is_joined = self.is_joined(dir);
        if is_joined {
            self.relabelled.lock().dirs.push(dir);
        }
        is_joined
    }

    /// Finds what was joined before the volume was opened.
    pub(super) fn load_joined(&self) -> Result<()> {
        for ino in self.meta.orphans(self.ve)? {
            // A damaged record concerns who asks for its inode.
            if let Ok(Some(record)) = self.meta.inode(self.ve, ino)
                && let PrivateContent::Joined { with } = record.content
                && let Some(with) = Ino::new(with)
            {
                self.joined.add(ino, with);
            }
        }
        Ok(())
    }
}
