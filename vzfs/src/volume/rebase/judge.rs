//! What becomes of each private row.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::attributes::{inherit, same_content};
use super::{Edit, Rebased, concerns_inode, concerns_name};
use crate::meta::{Changes, EntryRecord, InodeRecord, Written};
use crate::tree::{Delta, InodeChange, NameChange, NodeView, Target};
use crate::types::{FileKind, Ino, Name, Timestamp};
use crate::volume::{Node, Result, Volume, VolumeError, touch};

/// An inode of the new base that takes the place of one of which the VE changed attributes, at these names.
struct Succession {
    ino: Ino,
    places: Vec<(Ino, Name)>,
    /// The other, as it was.
    before: (Ino, InodeRecord),
}

/// Decides what becomes of a volume's private layer. The caller holds `names`.
pub(super) struct Judge<'v> {
    pub(super) volume: &'v Volume,
    pub(super) delta: &'v Delta,
    pub(super) now: Timestamp,
    /// What of the private tables concerns the delta: of all else that it concerns there is nothing private.
    private_inodes: BTreeSet<Ino>,
    private_entries: BTreeSet<(Ino, Name)>,
    /// What will be written; `None`: removed.
    pub(super) inodes: BTreeMap<Ino, Option<InodeRecord>>,
    pub(super) entries: BTreeMap<(Ino, Name), EntryRecord>,
    pub(super) removed_entries: BTreeSet<(Ino, Name)>,
    /// Directories that get or lose a subdirectory which their base does not tell of.
    counted: BTreeSet<Ino>,
    /// Whether the volume shows a directory of the new base.
    shown: HashMap<Ino, bool>,
    /// Private inodes that are what the new base has under another number.
    pub(super) stand_ins: HashSet<Ino>,
    /// Who follows whom, decided and not done yet.
    successions: Vec<Succession>,
    /// Names that edits decided about.
    pub(super) edited: HashSet<(Ino, Name)>,
    /// Names of the delta that lead the VE where they led before.
    pub(super) kept: HashSet<(Ino, Name)>,
    /// The VE's directories that are one with the new base's, each with that.
    pub(super) joined: Vec<(Ino, Ino)>,
    pub(super) rebased: Rebased,
}

impl<'v> Judge<'v> {
    pub(super) fn new(volume: &'v Volume, delta: &'v Delta) -> Judge<'v> {
        Judge {
            volume,
            delta,
            now: volume.clock.now(),
            private_inodes: BTreeSet::new(),
            private_entries: BTreeSet::new(),
            inodes: BTreeMap::new(),
            entries: BTreeMap::new(),
            removed_entries: BTreeSet::new(),
            counted: BTreeSet::new(),
            shown: HashMap::new(),
            stand_ins: HashSet::new(),
            successions: Vec::new(),
            edited: HashSet::new(),
            kept: HashSet::new(),
            joined: Vec::new(),
            rebased: Rebased::default(),
        }
    }

    pub(super) fn judge(mut self, found: Written, written: Written, edits: &[Edit]) -> Result<Judge<'v>> {
        let delta = self.delta;
        let entries = found.entries.into_iter().chain(written.entries);
        self.private_entries = entries.filter(|(dir, name)| concerns_name(delta, *dir, name)).collect();
        let inodes = found.inodes.into_iter().chain(written.inodes);
        self.private_inodes = inodes.filter(|ino| concerns_inode(delta, *ino)).collect();
        let entries: Vec<_> = self.private_entries.iter().cloned().collect();
        let inodes: Vec<_> = self.private_inodes.iter().copied().collect();
        self.join_directories(&entries)?;
        // What goes first, so that a directory is not kept for the sake of it.
        for ino in &inodes {
            match delta.inode(*ino) {
                Some(InodeChange::Gone) => self.let_go(*ino)?,
                Some(InodeChange::Altered) => self.alter(*ino)?,
                Some(InodeChange::Came) | None => {}
            }
        }
        for (dir, name) in &entries {
            let kept = matches!(self.entry(*dir, name)?, Some(EntryRecord::Node(..)));
            if kept && delta.inode(*dir) == Some(InodeChange::Gone) {
                self.keep_dir(*dir)?;
            }
        }
        let successions = std::mem::take(&mut self.successions);
        let mut touched: HashMap<Ino, BTreeSet<(Ino, Name)>> = HashMap::new();
        for Succession { ino, places, .. } in &successions {
            touched.entry(*ino).or_default().extend(places.iter().cloned());
        }
        for Succession { ino, places, before } in successions {
            self.succeed(ino, places, &before, &touched[&ino])?;
        }
        for ino in &inodes {
            match delta.inode(*ino) {
                Some(InodeChange::Came) => self.come_back(*ino)?,
                Some(InodeChange::Altered) => self.spread(*ino)?,
                Some(InodeChange::Gone) | None => {}
            }
        }
        for edit in edits {
            self.edit(edit)?;
        }
        for ino in delta.linked() {
            self.link(*ino)?;
        }
        for (dir, name) in &entries {
            let (entry, change) = (self.entry(*dir, name)?, delta.name(*dir, name));
            let (Some(entry), Some(change)) = (entry, change) else { continue };
            let is_dir = matches!(entry, EntryRecord::Node(_, FileKind::Dir));
            if is_dir != change.new.is_some_and(|(_, kind)| kind == FileKind::Dir) {
                self.counted.insert(*dir);
            }
        }
        for dir in std::mem::take(&mut self.counted) {
            if delta.new.node(dir).is_some() {
                self.pin(dir)?;
            }
        }
        let judged = self.judged_subdirectories();
        for (dir, names) in delta.names() {
            self.recount(dir, names, judged.get(&dir).copied().unwrap_or(0))?;
        }
        self.compare(entries)?;
        Ok(self)
    }

    // Reading: what will be written counts.

    pub(super) fn record(&self, ino: Ino) -> Result<Option<InodeRecord>> {
        match self.inodes.get(&ino) {
            Some(record) => Ok(record.clone()),
            None if concerns_inode(self.delta, ino) && !self.private_inodes.contains(&ino) => Ok(None),
            None => Ok(self.volume.meta.inode(self.volume.ve, ino)?),
        }
    }

    pub(super) fn entry(&self, dir: Ino, name: &Name) -> Result<Option<EntryRecord>> {
        let key = (dir, name.clone());
        if let Some(entry) = self.entries.get(&key) {
            return Ok(Some(*entry));
        }
        let is_gone = self.removed_entries.contains(&key);
        if is_gone || (concerns_name(self.delta, dir, name) && !self.private_entries.contains(&key)) {
            return Ok(None);
        }
        Ok(self.volume.meta.entry(self.volume.ve, dir, name.as_ref())?)
    }

    pub(super) fn put_entry(&mut self, dir: Ino, name: Name, entry: EntryRecord) {
        self.removed_entries.remove(&(dir, name.clone()));
        self.entries.insert((dir, name), entry);
    }

    pub(super) fn remove_entry(&mut self, dir: Ino, name: Name) {
        self.entries.remove(&(dir, name.clone()));
        self.removed_entries.insert((dir, name));
    }

    pub(super) fn new_view(&self, ino: Ino) -> Result<NodeView<'v>> {
        self.delta.new.node(ino).ok_or(VolumeError::Damaged { ino, why: "the new base does not have it" })
    }

    pub(super) fn old_view(&self, ino: Ino) -> Result<NodeView<'v>> {
        self.delta.old.node(ino).ok_or(VolumeError::Damaged { ino, why: "the old base does not have it" })
    }

    pub(super) fn put_record(&mut self, ino: Ino, record: InodeRecord) {
        self.inodes.insert(ino, Some(record));
    }

    pub(super) fn put_name(&mut self, dir: Ino, name: &Name, ino: Ino, kind: FileKind) {
        self.put_entry(dir, name.clone(), EntryRecord::Node(ino, kind));
    }

    /// Gives an inode further names, and the record that counts them.
    pub(super) fn add_names(&mut self, ino: Ino, record: InodeRecord, places: Vec<(Ino, Name)>) {
        let nlink = record.nlink.saturating_add(u32::try_from(places.len()).unwrap_or(u32::MAX));
        for (dir, name) in places {
            self.put_entry(dir, name, EntryRecord::Node(ino, record.kind));
        }
        self.put_record(ino, InodeRecord { nlink, ..record });
    }

    /// The names of an inode of the new base that the volume shows, and whether those are all that it has.
    pub(super) fn visible_names(&mut self, view: &NodeView<'_>) -> Result<(Vec<(Ino, Name)>, bool)> {
        let (mut visible, mut all) = (Vec::new(), true);
        for (dir, name) in view.names().map(|(dir, name)| (dir, name.to_name())) {
            if self.is_visible(dir, &name)? {
                visible.push((dir, name));
            } else {
                all = false;
            }
        }
        Ok((visible, all))
    }

    /// Subdirectories of a directory must be counted.
    pub(super) fn count(&mut self, dir: Ino) {
        self.counted.insert(dir);
    }

    pub(super) fn mark_edited(&mut self, dir: Ino, name: &Name) {
        self.edited.insert((dir, name.clone()));
    }

    /// What the new base has at a name.
    pub(super) fn base_entry(&self, dir: Ino, name: &Name) -> Option<(Ino, FileKind)> {
        match self.delta.new.lookup(dir, name.as_ref())?.target {
            Target::Node(ino, kind) => Some((ino, kind)),
            Target::Whiteout => None,
        }
    }

    /// Whether a name of the new base is shown: nothing private stands in its place, and its directory is shown.
    pub(super) fn is_visible(&mut self, dir: Ino, name: &Name) -> Result<bool> {
        Ok(self.entry(dir, name)?.is_none() && self.shows_dir(dir)?)
    }

    /// Whether the volume shows a directory of the new base: where the base has it, or where the VE moved it.
    pub(super) fn shows_dir(&mut self, dir: Ino) -> Result<bool> {
        let mut path = Vec::new();
        let mut at = dir;
        let shown = loop {
            if at == Ino::ROOT {
                break true;
            }
            if let Some(known) = self.shown.get(&at) {
                break *known;
            }
            path.push(at);
            if let Some(record) = self.record(at)? {
                break record.nlink > 0;
            }
            let Some((parent, name)) = self.delta.new.node(at).and_then(|view| view.names().next()) else {
                break false;
            };
            if self.entry(parent, &name.to_name())?.is_some() {
                break false;
            }
            at = parent;
        };
        self.shown.extend(path.into_iter().map(|dir| (dir, shown)));
        Ok(shown)
    }

    /// An inode that has a record and that the new base does not have. If the VE changed nothing but attributes and took away names, what the
    /// new base has at its names inherits that.
    fn let_go(&mut self, ino: Ino) -> Result<()> {
        let Some(record) = self.record(ino)? else { return Ok(()) };
        let old = self.old_view(ino)?;
        if record.kind == FileKind::Dir || record.nlink == 0 || !same_content(&record, &old) {
            return Ok(());
        }
        let mut places = Vec::new();
        for place in old.names().map(|(dir, name)| (dir, name.to_name())) {
            if self.entry(place.0, &place.1)? == Some(EntryRecord::Node(ino, record.kind)) {
                places.push(place);
            }
        }
        // The others the VE gave it.
        let left = record.nlink.saturating_sub(u32::try_from(places.len()).unwrap_or(u32::MAX));
        let mut successors: BTreeMap<Ino, Vec<(Ino, Name)>> = BTreeMap::new();
        for (dir, name) in places {
            let new = self.delta.name(dir, &name).and_then(|change| change.new);
            self.remove_entry(dir, name.clone());
            if let Some((successor, kind)) = new
                && kind == record.kind
            {
                successors.entry(successor).or_default().push((dir, name));
            }
        }
        let succession =
            |(successor, places)| Succession { ino: successor, places, before: (ino, record.clone()) };
        self.successions.extend(successors.into_iter().map(succession));
        if left == 0 {
            self.orphan(ino, record);
        } else if left < record.nlink {
            self.put_record(ino, InodeRecord { nlink: left, ctime: self.now, ..record });
        }
        Ok(())
    }

    /// Gives an inode of the new base what the VE changed of the one that it follows, at these names. `touched` are all names at which it follows
    /// something that the VE changed.
    fn succeed(
        &mut self,
        ino: Ino,
        places: Vec<(Ino, Name)>,
        before: &(Ino, InodeRecord),
        touched: &BTreeSet<(Ino, Name)>,
    ) -> Result<()> {
        let (view, old) = (self.new_view(ino)?, self.old_view(before.0)?);
        let plain = self.volume.record_of(Node::Base(view));
        let mut record = plain.clone();
        inherit(&mut record, &before.1, &old);
        record.nlink = 0;
        let (number, visible) = match self.record(ino)? {
            // The VE has it already, from an earlier base, or as the successor of another file too.
            Some(own) if own.nlink > 0 => {
                record = own;
                let mut bare = Vec::new();
                for (dir, name) in places {
                    if self.entry(dir, &name)?.is_none() {
                        bare.push((dir, name));
                    }
                }
                (ino, bare)
            }
            // Somebody has it open and goes on with it under this number.
            Some(own) if !same_content(&own, &view) => {
                let number = self.volume.new_ino()?;
                self.stand_ins.insert(number);
                (number, places)
            }
            known => {
                let (visible, all) = self.visible_names(&view)?;
                // A hard link of a file that the VE has not touched stays what it is.
                let is_other = |(dir, name): &(Ino, Name)| {
                    self.delta
                        .old
                        .lookup(*dir, name.as_ref())
                        .is_some_and(|old| matches!(old.target, Target::Node(ino, _) if ino != before.0))
                };
                let others = visible.iter().any(|place| !touched.contains(place) && is_other(place));
                let same = record == InodeRecord { nlink: 0, ..plain };
                if others || (same && all) {
                    if known.is_some() {
                        self.inodes.insert(ino, None);
                    }
                    return Ok(());
                }
                (ino, visible)
            }
        };
        record.ctime = self.now;
        self.add_names(number, record, visible);
        Ok(())
    }

    pub(super) fn orphan(&mut self, ino: Ino, record: InodeRecord) {
        let record = InodeRecord { nlink: 0, ctime: self.now, ..record };
        self.inodes.insert(ino, Some(record));
        self.rebased.orphans.push(ino);
    }

    /// A directory that the new base does not have, and in which the VE has something: it becomes the VE's own, with those above it that
    /// it needs.
    fn keep_dir(&mut self, dir: Ino) -> Result<()> {
        let mut at = dir;
        while self.delta.inode(at) == Some(InodeChange::Gone) && self.record(at)?.is_none() {
            let view = self.old_view(at)?;
            let mut record = self.volume.record_of(Node::Base(view));
            record.ctime = self.now;
            self.inodes.insert(at, Some(record));
            let Some((parent, name)) = view.names().next() else { break };
            if self.entry(parent, &name.to_name())?.is_none() {
                self.put_entry(parent, name.to_name(), EntryRecord::Node(at, FileKind::Dir));
                self.counted.insert(parent);
            }
            at = parent;
        }
        Ok(())
    }

    /// Gives a directory of the new base a record of its own.
    fn pin(&mut self, dir: Ino) -> Result<()> {
        if self.record(dir)?.is_some() || !self.shows_dir(dir)? {
            return Ok(());
        }
        let view = self.new_view(dir)?;
        self.inodes.insert(dir, Some(self.volume.record_of(Node::Base(view))));
        for (parent, name) in view.names() {
            self.put_entry(parent, name.to_name(), EntryRecord::Node(dir, FileKind::Dir));
        }
        Ok(())
    }

    /// An inode that the new base has and the old one had not, and of which there is a record: from an earlier base.
    fn come_back(&mut self, ino: Ino) -> Result<()> {
        let Some(record) = self.record(ino)? else { return Ok(()) };
        let view = self.new_view(ino)?;
        self.adopt_names(ino, record, view, |_| true)
    }

    /// Names of the new base for an inode that has a record. Those of the volume are private by then (M2).
    pub(super) fn adopt_names(
        &mut self,
        ino: Ino,
        record: InodeRecord,
        view: NodeView<'v>,
        concerned: impl Fn(&(Ino, Name)) -> bool,
    ) -> Result<()> {
        let mut bare = Vec::new();
        for place in view.names().map(|(dir, name)| (dir, name.to_name())).filter(concerned) {
            if self.is_visible(place.0, &place.1)? {
                bare.push(place);
            }
        }
        if bare.is_empty() {
            return Ok(());
        }
        if record.nlink > 0 && record.kind == FileKind::Dir {
            // The VE has moved it: it has one name.
            for (dir, name) in bare {
                self.put_entry(dir, name, EntryRecord::Whiteout);
                self.counted.insert(dir);
            }
            return Ok(());
        }
        if record.nlink > 0 {
            // The VE has given it other names. Those that it took away are hidden, and these went with an earlier base.
            self.add_names(ino, InodeRecord { ctime: self.now, ..record }, bare);
            return Ok(());
        }
        // Without names: it is only still open.
        if record.kind == FileKind::Dir || same_content(&record, &view) {
            self.inodes.insert(ino, None);
            return Ok(());
        }
        // Somebody goes on with the old one, under this number: the new names need another.
        let number = self.volume.new_ino()?;
        self.stand_ins.insert(number);
        let fresh = self.volume.record_of(Node::Base(view));
        self.add_names(number, InodeRecord { nlink: 0, ..fresh }, bare);
        Ok(())
    }

    /// An inode that both bases have, and of which there is a record: its attributes, and names that are taken away.
    fn alter(&mut self, ino: Ino) -> Result<()> {
        let Some(mut record) = self.record(ino)?.filter(|record| record.nlink > 0) else { return Ok(()) };
        let (old, new) = (self.old_view(ino)?, self.new_view(ino)?);
        let before = record.clone();
        let mut inherited = self.volume.record_of(Node::Base(new));
        inherit(&mut inherited, &record, &old);
        (record.perm, record.uid, record.gid) = (inherited.perm, inherited.uid, inherited.gid);
        record.xattrs = inherited.xattrs;
        if record.kind != FileKind::Dir {
            // Content of the VE's own keeps a name. Which of both sides a name came from cannot be told when the base goes back.
            let least = u32::from(!same_content(&record, &new));
            let has = names_of(&new);
            for place in names_of(&old).difference(&has) {
                let own = self.entry(place.0, &place.1)? == Some(EntryRecord::Node(ino, record.kind));
                if own && record.nlink > least {
                    self.remove_entry(place.0, place.1.clone());
                    record.nlink -= 1;
                }
            }
        }
        if record != before {
            record.ctime = self.now;
            self.put_record(ino, record);
        }
        Ok(())
    }

    /// The same: names that it got. They lead to what the VE made of it, as hard links do.
    fn spread(&mut self, ino: Ino) -> Result<()> {
        let Some(record) = self.record(ino)?.filter(|record| record.kind != FileKind::Dir) else {
            return Ok(());
        };
        let (had, new) = (names_of(&self.old_view(ino)?), self.new_view(ino)?);
        if self.volume.meta.inode(self.volume.ve, ino)?.is_some_and(|before| before.nlink == 0) {
            return self.adopt_names(ino, record, new, |place| !had.contains(place));
        }
        let (mut got, _) = self.visible_names(&new)?;
        got.retain(|place| !had.contains(place));
        if !got.is_empty() {
            self.add_names(ino, InodeRecord { ctime: self.now, ..record }, got);
        } else if record.nlink == 0 {
            // It lost the last name that the VE had left it.
            self.orphan(ino, record);
        }
        Ok(())
    }

    /// A file with several names in the new base: if the volume shows only some of them, its link count is its own (M2).
    fn link(&mut self, ino: Ino) -> Result<()> {
        if self.record(ino)?.is_some() {
            return Ok(());
        }
        let view = self.new_view(ino)?;
        let (visible, all) = self.visible_names(&view)?;
        if visible.is_empty() || all {
            return Ok(());
        }
        let record = self.volume.record_of(Node::Base(view));
        self.add_names(ino, InodeRecord { nlink: 0, ..record }, visible);
        Ok(())
    }

    /// How many of the names that were judged are subdirectories afterwards, by directory.
    fn judged_subdirectories(&self) -> HashMap<Ino, u32> {
        let mut counts = HashMap::new();
        let written = self.entries.iter();
        let written = written.filter(|(_, entry)| matches!(entry, EntryRecord::Node(_, FileKind::Dir)));
        let bared = self.removed_entries.iter().filter(|(dir, name)| {
            let new = self.delta.name(*dir, name).and_then(|change| change.new);
            new.is_some_and(|(_, kind)| kind == FileKind::Dir)
        });
        for (dir, _) in written.map(|(place, _)| place).chain(bared) {
            *counts.entry(*dir).or_default() += 1;
        }
        counts
    }

    /// The link count and times of a directory with a record, after names in it have changed. `judged` is its part of
    /// [`Judge::judged_subdirectories`].
    fn recount(&mut self, dir: Ino, names: &HashMap<Name, NameChange>, judged: u32) -> Result<()> {
        let Some(mut record) = self.record(dir)? else { return Ok(()) };
        if record.nlink == 0 || record.kind != FileKind::Dir {
            return Ok(());
        }
        let mut seen = false;
        for name in names.keys() {
            seen |= self.entry(dir, name)?.is_none();
        }
        if seen {
            touch(&mut record, self.now);
        }
        let is_dir = |node: Option<(Ino, FileKind)>| node.is_some_and(|(_, kind)| kind == FileKind::Dir);
        if !names.values().any(|change| is_dir(change.old) || is_dir(change.new)) {
            self.inodes.insert(dir, Some(record));
            return Ok(());
        }
        let mut subdirectories = judged;
        for row in self.volume.merged_with(&self.delta.new, dir, 0)? {
            let row = row?;
            let place = (dir, row.name);
            if !self.entries.contains_key(&place) && !self.removed_entries.contains(&place) {
                subdirectories += u32::from(row.kind == FileKind::Dir);
            }
        }
        record.nlink = 2 + subdirectories;
        self.inodes.insert(dir, Some(record));
        Ok(())
    }

    pub(super) fn write(&self, batch: &mut Changes<'_>) {
        for (ino, record) in &self.inodes {
            match record {
                Some(record) => batch.put_inode(*ino, record),
                None => batch.delete_record(*ino),
            }
        }
        for ((dir, name), entry) in &self.entries {
            batch.put_entry(*dir, name.as_ref(), *entry);
        }
        for (dir, name) in &self.removed_entries {
            batch.delete_entry(*dir, name.as_ref());
        }
    }
}

fn names_of(view: &NodeView<'_>) -> BTreeSet<(Ino, Name)> {
    view.names().map(|(dir, name)| (dir, name.to_name())).collect()
}
