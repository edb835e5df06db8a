//! What the kernel and people must know of a move that was judged.

use std::collections::{BTreeSet, HashSet};

use super::Hidden;
use super::attributes::same_content;
use super::judge::Judge;
use crate::meta::EntryRecord;
use crate::tree::{InodeChange, NameChange};
use crate::types::{FileKind, Ino, Name};
use crate::volume::Result;

impl Judge<'_> {
    /// Whether the VE shows at a name what the new base has there, its own attributes aside.
    fn is_as_new(&self, entry: EntryRecord, change: NameChange) -> Result<bool> {
        let shown = match entry {
            EntryRecord::Node(ino, kind) => Some((ino, kind)),
            EntryRecord::Whiteout => None,
        };
        let Some((ino, kind)) = shown else { return Ok(change.new.is_none()) };
        if self.stand_ins.contains(&ino) {
            return Ok(true);
        }
        if shown != change.new {
            return Ok(false);
        }
        let Some(record) = self.record(ino)? else { return Ok(true) };
        Ok(kind == FileKind::Dir || same_content(&record, &self.new_view(ino)?))
    }

    /// What the kernel and people must know.
    pub(super) fn tell(&mut self, entries: &[(Ino, Name)]) -> Result<()> {
        let delta = self.delta;
        let mut kept = HashSet::new();
        let places: BTreeSet<_> = entries.iter().chain(self.entries.keys()).cloned().collect();
        for place in places {
            let (dir, name) = &place;
            let (Some(change), Some(entry)) = (delta.name(*dir, name), self.entry(*dir, name)?) else {
                continue;
            };
            if self.edited.contains(&place) || self.is_as_new(entry, change)? {
                continue;
            }
            let changed = self.last_change(Some(entry))?;
            let hidden = Hidden { dir: *dir, name: name.clone(), change, by: Some(entry), changed };
            self.rebased.hidden.push(hidden);
            if entries.binary_search(&place).is_ok() {
                kept.insert(place);
            }
        }
        for (dir, names) in delta.names() {
            let shown = self.shows_dir(dir)?;
            for (name, change) in names {
                let place = (dir, name.clone());
                if kept.contains(&place) {
                    continue;
                }
                if !shown && change.new.is_some() && delta.new.node(dir).is_some() {
                    let (name, change) = (name.clone(), *change);
                    self.rebased.hidden.push(Hidden { dir, name, change, by: None, changed: None });
                }
                self.rebased.names.push(place);
            }
            self.rebased.dirs.push(dir);
        }
        let written: Vec<_> = self
            .entries
            .keys()
            .chain(&self.removed_entries)
            .filter(|place| !kept.contains(place))
            .cloned()
            .collect();
        self.rebased.dirs.extend(written.iter().map(|(dir, _)| *dir));
        self.rebased.names.extend(written);
        let altered = delta.inodes().filter(|(_, change)| *change == InodeChange::Altered);
        self.rebased.inodes.extend(altered.map(|(ino, _)| ino).chain(self.inodes.keys().copied()));
        self.rebased.tidy();
        Ok(())
    }
}
