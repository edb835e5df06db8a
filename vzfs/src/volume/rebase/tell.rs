//! What the kernel and people must know of a move that was judged.

use std::collections::{BTreeSet, HashSet};

use super::attributes::same_content;
use super::judge::Judge;
use super::{Hidden, Rebased};
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

    /// Finds what the VE does not show of the new base. `entries` are the private ones that the delta concerns.
    pub(super) fn compare(&mut self, entries: Vec<(Ino, Name)>) -> Result<()> {
        let delta = self.delta;
        let old: HashSet<_> = entries.into_iter().collect();
        let places: BTreeSet<_> = old.iter().chain(self.entries.keys()).cloned().collect();
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
            if old.contains(&place) {
                self.kept.insert(place);
            }
        }
        for (dir, names) in delta.names() {
            if delta.new.node(dir).is_none() || self.shows_dir(dir)? {
                continue;
            }
            for (name, change) in names.iter().filter(|(_, change)| change.new.is_some()) {
                let (name, change) = (name.clone(), *change);
                if !self.kept.contains(&(dir, name.clone())) {
                    self.rebased.hidden.push(Hidden { dir, name, change, by: None, changed: None });
                }
            }
        }
        Ok(())
    }

    /// What the kernel and people must know. Asks no table: nobody has to wait for it.
    pub(super) fn tell(self) -> Rebased {
        let Judge { delta, kept, mut rebased, .. } = self;
        let changed =
            delta.names().flat_map(|(dir, names)| names.keys().map(move |name| (dir, name.clone())));
        let written = self.entries.into_keys().chain(self.removed_entries);
        rebased.names.extend(changed.chain(written).filter(|place| !kept.contains(place)));
        rebased.dirs.extend(delta.names().map(|(dir, _)| dir));
        rebased.dirs.extend(rebased.names.iter().map(|(dir, _)| *dir));
        let altered = delta.inodes().filter(|(_, change)| *change == InodeChange::Altered);
        rebased.inodes.extend(altered.map(|(ino, _)| ino).chain(self.inodes.into_keys()));
        rebased.tidy();
        rebased
    }
}
