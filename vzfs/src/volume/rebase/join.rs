//! Directories that both the VE and the update made.

use super::judge::Judge;
use crate::meta::{EntryRecord, InodeRecord, PrivateContent};
use crate::types::{FileKind, Ino, Name};
use crate::volume::{Node, Result};

impl Judge<'_> {
    /// Makes one directory of each two that the VE and the new base have at one of these names: what the VE has in its own goes into the base's, where it hides
    /// what the base has at the same name, and is told like all that does.
    ///
    /// First of all that is judged, so that all else finds the names where they then are.
    pub(super) fn join_directories(&mut self, entries: &[(Ino, Name)]) -> Result<()> {
        for (dir, name) in entries {
            let new = self.delta.name(*dir, name).and_then(|change| change.new);
            if let Some((base, FileKind::Dir)) = new
                && let Some(EntryRecord::Node(own, FileKind::Dir)) = self.entry(*dir, name)?
            {
                self.join(*dir, name, own, base)?;
            }
        }
        Ok(())
    }

    /// Joins one, and those below it. One that the VE has moved there from elsewhere in its base is another directory and stays.
    fn join(&mut self, dir: Ino, name: &Name, own: Ino, base: Ino) -> Result<()> {
        let Some(record) = self.record(own)?.filter(|record| record.nlink > 0 && own.is_private()) else {
            return Ok(());
        };
        // A number that the VE still has, from an earlier base: it is in use elsewhere.
        if self.record(base)?.is_some_and(|record| record.nlink > 0) {
            return Ok(());
        }
        let plain = self.volume.record_of(Node::Base(self.new_view(base)?));
        let mut subdirectories = plain.nlink.saturating_sub(2);
        let rows: Result<Vec<_>> =
            self.volume.meta.entries_from(self.volume.ve, own, 0).map(|row| Ok(row?)).collect();
        for row in rows? {
            self.remove_entry(own, row.name.clone());
            let EntryRecord::Node(child, kind) = row.entry else { continue };
            let there = self.base_entry(base, &row.name);
            self.put_entry(base, row.name.clone(), row.entry);
            let replaces = there.is_some_and(|(_, kind)| kind == FileKind::Dir);
            if kind == FileKind::Dir {
                if let Some(record) = self.record(child)? {
                    self.put_record(child, InodeRecord { parent: base.get(), ..record });
                }
                if let Some((other, FileKind::Dir)) = there {
                    self.join(base, &row.name, child, other)?;
                }
                subdirectories += u32::from(!replaces);
            } else {
                subdirectories = subdirectories.saturating_sub(u32::from(replaces));
            }
        }
        // The kernel may know names of the base's as absent from the VE's.
        let names = self.delta.names_in(base).into_iter().flatten();
        self.rebased.names.extend(names.map(|(name, _)| (own, name.clone())));
        // The VE made it: it stays when the base goes back.
        self.put_entry(dir, name.clone(), EntryRecord::Node(base, FileKind::Dir));
        let kept = InodeRecord {
            nlink: 2 + subdirectories,
            parent: dir.get(),
            ctime: self.now,
            mtime: self.now,
            ..record.clone()
        };
        self.put_record(base, kept);
        self.orphan(own, InodeRecord { content: PrivateContent::Joined { with: base.get() }, ..record });
        self.joined.push((own, base));
        Ok(())
    }
}
