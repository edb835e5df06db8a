//! Moving a volume from one base to another, while it is in use.
//!
//! # What happens
//! The base is exchanged, and the private layer is made to fit, in one batch. Inode numbers are functions of path and content, so
//! nothing is said here of what both bases have alike: its numbers stay, and with them what the kernel has cached and programs have open. What the
//! old base alone has becomes an inode without a name (`bases`), as if a package manager had renamed its successor over it.
//!
//! # Whose version is shown
//! A private entry goes on hiding the base's name: what the VE did there stays. It is told as [`Hidden`] where the new base would have shown
//! something else. Exceptions, in which both sides have their will:
//! - A file of which the VE changed only attributes gets the new content, and each attribute from the side that changed it (the VE's if both
//!   did). The same goes for attributes of files and directories that both bases have.
//! - A directory that the new base does not have any more stays, as the VE's own, if the VE has something in it.
//! - A directory that both made is one directory ([`join`]).
//! - A name that the VE removed stays removed, also if a later base brings it back.
//!
//! # How
//! 1. What the VE has that the difference of the bases concerns is looked for in its private tables without a lock, while writes to them are noted
//!    ([`crate::meta::Watch`]). That takes time in proportion to the smaller of the two.
//! 2. With `names` held exclusively, what was found and what was written meanwhile is judged, by the tables as they are now. That takes time in
//!    proportion to what the VE changed of what the update changes.
//! 3. One batch, and the new base is there. Operations that come after it are behind it in the log, so it need not be durable before them.
//!
//! # While the kernel does not know yet
//! Names that the kernel has cached lead to the old inodes until it was told to ask again ([`Volume::settle`]). Reading what they lead to is
//! harmless: it happens before the update. So is to remove a name. What would be lost is
//! - a change of the file under such a name: it gets [`VolumeError::Stale`], upon which the kernel looks the name up again and repeats it, and no
//!   program sees anything. A program that changes attributes through a descriptor changes the file that it has open;
//! - a file opened to be created under a name that came with the update: likewise;
//! - which inode a moved name leads to: the kernel is told to ask for the new name again (`Volume::take_relabelled`).

mod ahead;
mod attributes;
mod edits;
mod join;
mod judge;
mod tell;
mod unsettled;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

pub use edits::{Action, Edit};
pub(super) use unsettled::Unsettled;

use self::ahead::Ahead;
use self::judge::Judge;
use super::{Result, Volume, VolumeError};
use crate::meta::{Changes, EntryRecord, Written};
use crate::tree::{Delta, InodeChange, NameChange};
use crate::types::{Digest, Ino, Name, Timestamp};

/// A name of which the volume does not show what its new base has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hidden {
    /// The directory, by the number that bases have for it.
    pub dir: Ino,
    /// The name in it.
    pub name: Name,
    /// What the bases have there.
    pub change: NameChange,
    /// What the VE has there: an inode, or nothing because it removed the name. `None` when a directory above is not the base's.
    pub by: Option<EntryRecord>,
    /// When the VE's inode was changed last.
    pub changed: Option<Timestamp>,
}

/// What became of a volume.
#[derive(Debug, Default)]
pub struct Rebased {
    /// What of the new base the volume does not show.
    pub hidden: Vec<Hidden>,
    /// Names that lead to something else than before, or that the kernel may believe to.
    pub names: Vec<(Ino, Name)>,
    /// Inodes with other attributes than before.
    pub inodes: Vec<Ino>,
    /// Directories of which names changed.
    pub dirs: Vec<Ino>,
    /// Private inodes that lost their last name.
    pub orphans: Vec<Ino>,
    /// How long other operations had to wait: for those that were under way, and for the move.
    pub pause: Duration,
}

impl Rebased {
    fn tidy(&mut self) {
        for list in [&mut self.inodes, &mut self.dirs, &mut self.orphans] {
            list.sort_unstable();
            list.dedup();
        }
        self.names.sort_unstable();
        self.names.dedup();
    }
}

/// Rows that can be read one after the other in the time that one is looked up.
const ROWS_FOR_A_LOOKUP: usize = 8;

impl Volume {
    /// Moves the volume from the old base of `delta`, which must be the one that it has, to the new one, and makes the `edits`, which a
    /// [`Volume::preview`] gave reason for. `record` adds to the batch what else must change with it; it is given what will be hidden, and may refuse, while nobody
    /// changes anything in the volume. All or nothing, durable after the next
    /// [`Volume::sync`].
    ///
    /// Afterwards the kernel must be told of [`Rebased::names`], [`Rebased::inodes`] and [`Rebased::dirs`], and then [`Volume::settle`] called;
    /// without a mount only the latter.
    ///
    /// # Errors
    /// [`VolumeError::Changed`] when what an edit was decided on is not so any more. Nothing was done then.
    pub fn rebase(
        &self,
        delta: &Delta,
        edits: &[Edit],
        record: impl FnOnce(&mut Changes<'_>, &[Hidden]) -> Result<()>,
    ) -> Result<Rebased> {
        let watch = {
            // With `names` held nobody is in the middle of writing something.
            let _exclusive = self.names.write();
            self.meta.watch(self.ve)
        };
        let found = self.concerned(delta)?;
        let ahead = Ahead::of_others();
        let began = Instant::now();
        let mut judged = self.exclusive(|| {
            self.check_base(delta)?;
            let judged = Judge::new(self, delta).judge(found, watch.take(), edits)?;
            let mut batch = self.batch();
            judged.write(&mut batch);
            record(&mut batch, &judged.rebased.hidden)?;
            batch.commit()?;
            self.bases.switch(&delta.new);
            for (own, base) in &judged.joined {
                self.joined.add(*own, *base);
            }
            self.unsettled.begin();
            Ok(judged)
        })?;
        judged.rebased.pause = began.elapsed();
        drop(ahead);
        Ok(judged.tell())
    }

    /// What [`Volume::rebase`] without edits would do now.
    pub fn preview(&self, delta: &Delta) -> Result<Rebased> {
        let found = self.concerned(delta)?;
        self.shared_once(|| {
            self.check_base(delta)?;
            Ok(Judge::new(self, delta).judge(found, Written::default(), &[])?.tell())
        })
    }

    /// What the kernel may not know of a rebase along `delta` that the last daemon did, all of it that is possible. From now on the volume is as after
    /// [`Volume::rebase`], until [`Volume::settle`].
    pub fn unsettle(&self, delta: &Delta) -> Result<Rebased> {
        let _exclusive = self.names.write();
        let mut rebased = Rebased::default();
        for (dir, names) in delta.names() {
            rebased.names.extend(names.keys().map(|name| (dir, name.clone())));
            rebased.dirs.push(dir);
        }
        for row in self.meta.all_entries(self.ve) {
            let row = row?;
            rebased.dirs.push(row.dir);
            rebased.names.push((row.dir, row.name));
        }
        for (own, base) in self.joined.all() {
            let there = rebased.names.iter().filter(|(dir, _)| *dir == base);
            let names: Vec<_> = there.map(|(_, name)| (own, name.clone())).collect();
            rebased.names.extend(names);
            rebased.dirs.push(own);
        }
        rebased.inodes.extend(delta.inodes().map(|(ino, _)| ino));
        rebased.inodes.extend(self.meta.all_inodes(self.ve)?.into_iter().map(|(ino, _)| ino));
        rebased.orphans = self.meta.orphans(self.ve)?;
        rebased.tidy();
        self.unsettled.begin();
        Ok(rebased)
    }

    /// The kernel has been told of the last rebase.
    pub fn settle(&self) {
        self.unsettled.end_soon();
    }

    /// Which of its earlier bases are still needed for these inodes, all that the kernel knows.
    pub fn bases_needed(&self, known: impl Iterator<Item = Ino>) -> Result<Vec<Digest>> {
        self.shared_once(|| {
            let mut needed = BTreeSet::new();
            for ino in known {
                if self.meta.inode(self.ve, ino)?.is_none() && self.base().node(ino).is_none() {
                    needed.extend(self.bases.retired_with(ino));
                }
            }
            Ok(needed.into_iter().collect())
        })
    }

    fn check_base(&self, delta: &Delta) -> Result<()> {
        if self.base().digest() == delta.old.digest() {
            return Ok(());
        }
        Err(VolumeError::Invalid("the volume has another base than the update starts from"))
    }

    /// The rows of the private tables that a delta concerns: found among the rows where these are few, and looked for where the delta is smaller.
    fn concerned(&self, delta: &Delta) -> Result<Written> {
        let few = delta.names().map(|(_, names)| names.len()).sum::<usize>() + delta.inodes().count();
        match self.concerned_of(delta, few * ROWS_FOR_A_LOOKUP)? {
            Some(found) => Ok(found),
            None => self.look_concerned_up(delta),
        }
    }

    #[cfg(test)]
    pub(super) fn concerned_both_ways(&self, delta: &Delta) -> Result<[Written; 2]> {
        let by_rows = self.concerned_of(delta, usize::MAX)?;
        Ok([by_rows.expect("there are no more rows"), self.look_concerned_up(delta)?])
    }

    /// By all rows, unless there are more than `most` in a table.
    fn concerned_of(&self, delta: &Delta, most: usize) -> Result<Option<Written>> {
        let mut found = Written::default();
        for (at, row) in self.meta.all_entries(self.ve).enumerate() {
            let row = row?;
            if at >= most {
                return Ok(None);
            }
            if concerns_name(delta, row.dir, &row.name) {
                found.entries.insert((row.dir, row.name));
            }
        }
        for (at, ino) in self.meta.inode_numbers(self.ve).enumerate() {
            let ino = ino?;
            if at >= most {
                return Ok(None);
            }
            if concerns_inode(delta, ino) {
                found.inodes.insert(ino);
            }
        }
        Ok(Some(found))
    }

    /// By everything that the delta names.
    fn look_concerned_up(&self, delta: &Delta) -> Result<Written> {
        let mut found = Written::default();
        for (dir, names) in delta.names() {
            for name in names.keys() {
                if self.meta.entry(self.ve, dir, name.as_ref())?.is_some() {
                    found.entries.insert((dir, name.clone()));
                }
            }
        }
        let gone = delta.inodes().filter(|(_, change)| *change == InodeChange::Gone);
        for (dir, _) in gone {
            for row in self.meta.entries_from(self.ve, dir, 0) {
                let row = row?;
                found.entries.insert((row.dir, row.name));
            }
        }
        for ino in delta.inodes().map(|(ino, _)| ino).chain(delta.names().map(|(dir, _)| dir)) {
            if self.meta.inode(self.ve, ino)?.is_some() {
                found.inodes.insert(ino);
            }
        }
        Ok(found)
    }
}

fn concerns_name(delta: &Delta, dir: Ino, name: &Name) -> bool {
    delta.name(dir, name).is_some() || delta.inode(dir) == Some(InodeChange::Gone)
}

fn concerns_inode(delta: &Delta, ino: Ino) -> bool {
    delta.inode(ino).is_some() || delta.names_in(ino).is_some()
}
