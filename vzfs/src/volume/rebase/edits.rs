//! What is done about names of which a rebase alone would not show the new base's version, or would show it and should not.

use super::attributes::inherit;
use super::judge::Judge;
use super::{Hidden, NameChange};
use crate::meta::{EntryRecord, InodeRecord, PrivateContent};
use crate::types::{Digest, FileKind, Ino, Name, Timestamp};
use crate::volume::{Node, Result, VolumeError};

/// A decision about one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    dir: Ino,
    name: Name,
    change: NameChange,
    /// What it was decided on.
    by: Option<EntryRecord>,
    changed: Option<Timestamp>,
    action: Action,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The name leads to a new file with this content, which is in the blob store; programs that have the VE's file open keep that. Its
    /// attributes are those that the VE changed, and else the new base's. Only where the VE has a regular file.
    Replace {
        /// The blob.
        digest: Digest,
        /// Its size.
        size: u64,
        /// What it takes without its holes.
        allocated_bytes: u64,
    },
    /// The volume shows what its new base has. What the VE had is gone, or has another name in the same directory. Not for directories.
    Take {
        /// The other name; another file that has it is replaced.
        keep_as: Option<Name>,
    },
    /// The VE keeps what it has, and what the new base has gets another name in the same directory; another file that has it is replaced.
    /// Not for directories.
    Beside {
        /// The other name.
        name: Name,
    },
    /// What the new base has there is hidden, as if the VE had removed it.
    Hide,
}

impl Edit {
    /// Does something about what the preview tells.
    pub fn of(hidden: &Hidden, action: Action) -> Edit {
        let Hidden { dir, name, change, by, changed } = hidden.clone();
        Edit { dir, name, change, by, changed, action }
    }

    /// Hides a name that the new base has and the VE shows.
    pub fn hide(dir: Ino, name: Name, change: NameChange) -> Edit {
        Edit { dir, name, change, by: None, changed: None, action: Action::Hide }
    }

    /// The directory, by the number that bases have for it, and the name in it.
    pub fn place(&self) -> (Ino, &Name) {
        (self.dir, &self.name)
    }

    /// What is done.
    pub fn action(&self) -> &Action {
        &self.action
    }
}

impl Judge<'_> {
    pub(super) fn edit(&mut self, edit: &Edit) -> Result<()> {
        let (dir, name) = (edit.dir, &edit.name);
        let by = self.entry(dir, name)?;
        if by != edit.by || self.last_change(by)? != edit.changed || !self.shows_dir(dir)? {
            return Err(VolumeError::Changed);
        }
        let new = edit.change.new;
        match (&edit.action, by) {
            (
                Action::Replace { digest, size, allocated_bytes },
                Some(EntryRecord::Node(ino, FileKind::File)),
            ) => {
                let content = PrivateContent::Blob {
                    digest: *digest.as_bytes(),
                    size: *size,
                    allocated_bytes: *allocated_bytes,
                };
                let number = self.volume.new_ino()?;
                let record = self.successor(ino, edit.change, content)?;
                self.put_name(dir, name, number, FileKind::File);
                self.put_record(number, record);
                self.lose_name(ino)?;
            }
            (Action::Take { keep_as }, Some(by)) => {
                if let EntryRecord::Node(ino, kind) = by {
                    if kind == FileKind::Dir {
                        return Err(VolumeError::IsDir);
                    }
                    match keep_as {
                        Some(other) => {
                            self.displace(dir, other)?;
                            self.put_name(dir, other, ino, kind);
                            self.mark_edited(dir, other);
                        }
                        None => self.lose_name(ino)?,
                    }
                }
                self.remove_entry(dir, name.clone());
                if let Some((ino, kind)) = new {
                    self.show(dir, name, ino, kind)?;
                }
            }
            (Action::Beside { name: other }, Some(_)) => {
                let Some((ino, kind)) = new.filter(|(_, kind)| *kind != FileKind::Dir) else {
                    return Err(VolumeError::IsDir);
                };
                self.displace(dir, other)?;
                let number = self.volume.new_ino()?;
                let record = self.volume.record_of(Node::Base(self.new_view(ino)?));
                self.put_record(number, InodeRecord { nlink: 1, ctime: self.now, ..record });
                self.put_name(dir, other, number, kind);
                self.mark_edited(dir, other);
                // The VE's own still hides the base's.
                return Ok(());
            }
            (Action::Hide, None) => {
                if let Some((_, kind)) = new {
                    self.put_entry(dir, name.clone(), EntryRecord::Whiteout);
                    if kind == FileKind::Dir {
                        self.count(dir);
                    }
                }
            }
            _ => return Err(VolumeError::Invalid("the decision does not fit what the VE has there")),
        }
        self.mark_edited(dir, name);
        Ok(())
    }

    /// When the inode of an entry was changed last, as the tables have it.
    pub(super) fn last_change(&self, entry: Option<EntryRecord>) -> Result<Option<Timestamp>> {
        let Some(EntryRecord::Node(ino, _)) = entry else { return Ok(None) };
        let Some(record) = self.volume.meta.inode(self.volume.ve, ino)? else { return Ok(None) };
        Ok(Some(self.volume.record_attr(ino, &record, None)?.ctime))
    }

    /// The record of a file that takes the place of the VE's.
    fn successor(&mut self, ino: Ino, change: NameChange, content: PrivateContent) -> Result<InodeRecord> {
        let own =
            self.record(ino)?.ok_or(VolumeError::Damaged { ino, why: "a private name has no record" })?;
        let is_file = |node: &(Ino, FileKind)| node.1 == FileKind::File;
        let record = match (change.old.filter(is_file), change.new.filter(is_file)) {
            (Some((old, _)), Some((new, _))) => {
                let mut record = self.volume.record_of(Node::Base(self.new_view(new)?));
                inherit(&mut record, &own, &self.old_view(old)?);
                record
            }
            _ => own,
        };
        let now = self.now;
        Ok(InodeRecord { nlink: 1, atime: now, mtime: now, ctime: now, content, ..record })
    }

    /// Takes a name off a private inode's count.
    fn lose_name(&mut self, ino: Ino) -> Result<()> {
        let Some(record) = self.record(ino)? else { return Ok(()) };
        if record.nlink > 1 {
            self.put_record(ino, InodeRecord { nlink: record.nlink - 1, ctime: self.now, ..record });
        } else {
            self.orphan(ino, record);
        }
        Ok(())
    }

    /// Makes room at a name. A directory there has come since the edit was decided on.
    fn displace(&mut self, dir: Ino, name: &Name) -> Result<()> {
        match self.entry(dir, name)? {
            Some(EntryRecord::Node(_, FileKind::Dir)) => Err(VolumeError::Changed),
            Some(EntryRecord::Node(ino, _)) => self.lose_name(ino),
            Some(EntryRecord::Whiteout) => Ok(()),
            None => match self.base_entry(dir, name) {
                Some((_, FileKind::Dir)) => Err(VolumeError::Changed),
                Some((ino, _)) => self.unlink_base(ino, dir, name),
                None => Ok(()),
            },
        }
    }

    /// Takes one name off an inode of the new base that has no record.
    fn unlink_base(&mut self, ino: Ino, dir: Ino, name: &Name) -> Result<()> {
        let view = self.new_view(ino)?;
        if view.attr().nlink < 2 {
            return Ok(());
        }
        let (mut others, _) = self.visible_names(&view)?;
        others.retain(|place| (place.0, &place.1) != (dir, name));
        if !others.is_empty() {
            let record = self.volume.record_of(Node::Base(view));
            self.add_names(ino, InodeRecord { nlink: 0, ctime: self.now, ..record }, others);
        }
        Ok(())
    }

    /// Shows an inode of the new base at a name that has no entry any more.
    fn show(&mut self, dir: Ino, name: &Name, ino: Ino, kind: FileKind) -> Result<()> {
        if kind == FileKind::Dir {
            self.count(dir);
        }
        let Some(record) = self.record(ino)? else { return Ok(()) };
        let view = self.new_view(ino)?;
        if record.nlink > 0 {
            // It has its names as private entries (M2): one more.
            let record = InodeRecord { ctime: self.now, ..record };
            self.add_names(ino, record, vec![(dir, name.clone())]);
            Ok(())
        } else {
            self.adopt_names(ino, record, view, |place| (place.0, &place.1) == (dir, name))
        }
    }
}
