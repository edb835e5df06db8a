//! Walks through whole directories. They do not recurse: a program in a VE may nest directories as deep as it likes, and the stacks of the
//! daemon's threads are finite. For the same reason a path has a greatest length here, the one that templates and archives have.

use std::collections::{BTreeMap, HashSet, btree_map};

use super::{Result, Visitor, Volume, VolumeError};
use crate::tree::{MAX_PATH_BYTES, Target, soundly_read};
use crate::types::{Attr, FileKind, Ino, Name};

/// Names of a directory with inodes and types, ordered by name.
pub(super) type Children = BTreeMap<Name, (Ino, FileKind)>;

/// Where a walk is.
#[derive(Default)]
pub(super) struct Trail {
    path: Vec<u8>,
    entered: HashSet<Ino>,
}

impl Trail {
    pub(super) fn path(&self) -> &[u8] {
        &self.path
    }

    /// Goes to a name in the directory whose path is the first `dir_len` bytes of the current one.
    pub(super) fn go(&mut self, dir_len: usize, name: &Name) -> Result<()> {
        self.path.truncate(dir_len);
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name.as_bytes());
        if self.path.len() > MAX_PATH_BYTES {
            return Err(VolumeError::PathTooLong { path: self.path[..dir_len].escape_ascii().to_string() });
        }
        Ok(())
    }

    /// Goes back to a directory, by the length of its path.
    pub(super) fn back(&mut self, dir_len: usize) {
        self.path.truncate(dir_len);
    }

    /// Notes that a directory of the volume is entered. In a sound one that happens once for each.
    pub(super) fn enter(&mut self, dir: Ino) -> Result<()> {
        if self.entered.insert(dir) {
            Ok(())
        } else {
            Err(VolumeError::Damaged { ino: dir, why: "a directory has two names" })
        }
    }
}

/// Directories that are being listed: the length of each one's path, and what is left of its names.
type Open = Vec<(usize, btree_map::IntoIter<Name, (Ino, FileKind)>)>;

/// The next name, after going back up where directories have ended. The trail is at it.
fn next(open: &mut Open, trail: &mut Trail) -> Result<Option<(Ino, FileKind)>> {
    while let Some((dir_len, names)) = open.last_mut() {
        if let Some((name, found)) = names.next() {
            trail.go(*dir_len, &name)?;
            return Ok(Some(found));
        }
        trail.back(*dir_len);
        open.pop();
    }
    Ok(None)
}

impl Volume {
    /// Visits everything below a directory, which the trail is at: parents first, children ordered by name.
    pub(super) fn walk_below<E: From<VolumeError>>(
        &self,
        dir: Ino,
        trail: &mut Trail,
        visit: &mut Visitor<'_, E>,
    ) -> std::result::Result<(), E> {
        trail.enter(dir)?;
        let mut open = vec![(trail.path().len(), self.children(dir)?.into_iter())];
        while let Some((ino, kind)) = next(&mut open, trail)? {
            visit(trail.path(), ino, &self.attr(ino)?)?;
            if kind == FileKind::Dir {
                trail.enter(ino)?;
                open.push((trail.path().len(), self.children(ino)?.into_iter()));
            }
        }
        Ok(())
    }

    /// The same for what the base has below one of its directories.
    pub(super) fn walk_base_below(
        &self,
        dir: Ino,
        trail: &mut Trail,
        visit: &mut Visitor<'_, VolumeError>,
    ) -> Result<()> {
        let mut open = vec![(trail.path().len(), self.base_children(dir)?.into_iter())];
        while let Some((ino, kind)) = next(&mut open, trail)? {
            visit(trail.path(), ino, &self.base_attr(ino)?)?;
            if kind == FileKind::Dir {
                open.push((trail.path().len(), self.base_children(ino)?.into_iter()));
            }
        }
        Ok(())
    }

    pub(super) fn base_attr(&self, ino: Ino) -> Result<Attr> {
        let attr = || self.base().node(ino).map(|view| view.attr());
        soundly_read(|| attr().ok_or(VolumeError::Damaged { ino, why: "the base does not have it" }))
    }

    pub(super) fn children(&self, dir: Ino) -> Result<Children> {
        self.shared(|| {
            self.merged(dir, 0)?.map(|row| row.map(|row| (row.name, (row.ino, row.kind)))).collect()
        })
    }

    pub(super) fn base_children(&self, dir: Ino) -> Result<Children> {
        let node = |entry: crate::tree::TreeEntry<'_>| match entry.target {
            Target::Node(ino, kind) => Some((entry.name.to_name(), (ino, kind))),
            Target::Whiteout => None,
        };
        soundly_read(|| Ok(self.base().entries(dir, None).filter_map(node).collect()))
    }
}
