//! Moving a volume from one base to another, while it is in use.
//!
//! # What happens
//! The base is exchanged, and the private layer is made to fit, in one durable batch. Inode numbers are functions of path and content, so
//! nothing is said here of what both bases have alike: its numbers stay, and with them what the kernel has cached and programs have open. What the
//! old base alone has becomes an inode without a name (`bases`), as if a package manager had renamed its successor over it.
//!
//! # Whose version is shown
//! A private entry goes on hiding the base's name: what the VE did there stays. It is told as [`Hidden`] where the new base would have shown
//! something else. Exceptions, in which both sides have their will:
//! - A file of which the VE changed only attributes gets the new content, and each attribute from the side that changed it (the VE's if both
//!   did). The same goes for attributes of files and directories that both bases have.
//! - A directory that the new base does not have any more stays, as the VE's own, if the VE has something in it.
//! - A name that the VE removed stays removed, also if a later base brings it back.
//!
//! # How
//! 1. What the VE has that the difference of the bases concerns is looked for in its private tables without a lock, while writes to them are noted
//!    ([`crate::meta::Watch`]). That takes time in proportion to the private layer.
//! 2. With `names` held exclusively, what was found and what was written meanwhile is judged, by the tables as they are now. That takes time in
//!    proportion to what the VE changed of what the update changes.
//! 3. One batch, and the new base is there.
//!
//! # While the kernel does not know yet
//! Names that the kernel has cached lead to the old inodes until it was told to ask again ([`Volume::settle`]). Reading what they lead to is
//! harmless: it happens before the update. An operation that changes the file under such a name, or moves it, would be lost: it gets
//! [`VolumeError::Stale`], upon which the kernel looks the name up again and repeats it. A program that does so through a descriptor that it had
//! open before sees that error; only within this time.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{Node, Result, Volume, VolumeError, touch};
use crate::meta::{Changes, EntryRecord, InodeRecord, PrivateContent, Written};
use crate::tree::{ContentRef, Delta, InodeChange, NameChange, NodeView};
use crate::types::{FileKind, Ino, Name, NameRef, Timestamp};

/// How long after the kernel was told an operation may still have been begun before: it has looked a name up and not sent its request.
const GRACE: Duration = Duration::from_secs(1);

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
}

/// What became of a volume.
#[derive(Debug, Default)]
pub struct Rebased {
    /// What of the new base the volume does not show.
    pub hidden: Vec<Hidden>,
    /// Names that lead to something else than before.
    pub names: Vec<(Ino, Name)>,
    /// Inodes with other attributes than before, and directories of which names changed.
    pub inodes: Vec<Ino>,
    /// Private inodes that lost their last name.
    pub orphans: Vec<Ino>,
    /// How long other operations had to wait.
    pub pause: Duration,
}

/// What the kernel may not know yet.
#[derive(Default)]
pub(super) struct Unsettled {
    /// Whether there is anything: looked at by each operation.
    any: AtomicBool,
    names: Mutex<(HashSet<(Ino, Name)>, Option<Instant>)>,
}

impl Unsettled {
    fn begin(&self, names: impl IntoIterator<Item = (Ino, Name)>) {
        let mut unsettled = self.names.lock();
        unsettled.0.extend(names);
        unsettled.1 = None;
        self.any.store(true, Ordering::Release);
    }

    fn is_over(&self) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return true;
        }
        let mut unsettled = self.names.lock();
        if unsettled.1.is_some_and(|end| Instant::now() >= end) {
            unsettled.0.clear();
            self.any.store(false, Ordering::Release);
            return true;
        }
        false
    }

    /// Refuses to change what is about to lose its name.
    pub(super) fn check_node(&self, node: &Node<'_>) -> Result<()> {
        if matches!(node, Node::Retired(_)) && !self.is_over() { Err(VolumeError::Stale) } else { Ok(()) }
    }

    /// Refuses to go by a name that may lead the kernel elsewhere.
    pub(super) fn check_name(&self, dir: Ino, name: NameRef<'_>) -> Result<()> {
        if !self.is_over() && self.names.lock().0.contains(&(dir, name.to_name())) {
            return Err(VolumeError::Stale);
        }
        Ok(())
    }
}

impl Volume {
    /// Moves the volume from the old base of `delta`, which must be the one that it has, to the new one. `record` adds to the batch what else must
    /// change with it. Durable on return.
    ///
    /// Afterwards the kernel must be told of [`Rebased::names`] and [`Rebased::inodes`], and then [`Volume::settle`] called; without a mount only the
    /// latter.
    pub fn rebase(
        &self,
        delta: &Delta,
        record: impl FnOnce(&mut Changes<'_>) -> std::result::Result<(), crate::meta::MetaError>,
    ) -> Result<Rebased> {
        let watch = {
            // With `names` held nobody is in the middle of writing something.
            let _exclusive = self.names.write();
            self.meta.watch(self.ve)
        };
        let found = self.concerned(delta)?;
        let _exclusive = self.names.write();
        let began = Instant::now();
        if self.base().digest() != delta.old.digest() {
            return Err(VolumeError::Invalid("the volume has another base than the update starts from"));
        }
        let mut judged = Judge::new(self, delta).judge(found, watch.take())?;
        let mut batch = self.meta.changes(self.ve);
        judged.write(&mut batch);
        record(&mut batch)?;
        batch.commit_durably()?;
        self.bases.switch(&delta.new);
        judged.rebased.pause = began.elapsed();
        self.unsettled.begin(judged.rebased.names.iter().cloned());
        Ok(judged.rebased)
    }

    /// What [`Volume::rebase`] would do now.
    pub fn preview(&self, delta: &Delta) -> Result<Rebased> {
        let found = self.concerned(delta)?;
        let _shared = self.names.read();
        Ok(Judge::new(self, delta).judge(found, Written::default())?.rebased)
    }

    /// The kernel has been told of the last rebase.
    pub fn settle(&self) {
        self.unsettled.names.lock().1 = Some(Instant::now() + GRACE);
    }

    /// The rows of the private tables that a delta concerns.
    fn concerned(&self, delta: &Delta) -> Result<Written> {
        let mut found = Written::default();
        for row in self.meta.all_entries(self.ve) {
            let row = row?;
            if concerns_name(delta, row.dir, &row.name) {
                found.entries.insert((row.dir, row.name));
            }
        }
        let all = self.meta.all_inodes(self.ve)?;
        found.inodes.extend(all.into_iter().map(|(ino, _)| ino).filter(|ino| concerns_inode(delta, *ino)));
        Ok(found)
    }
}

fn concerns_name(delta: &Delta, dir: Ino, name: &Name) -> bool {
    delta.name(dir, name).is_some() || delta.inode(dir) == Some(InodeChange::Gone)
}

fn concerns_inode(delta: &Delta, ino: Ino) -> bool {
    delta.inode(ino).is_some() || delta.names_in(ino).is_some()
}

/// Decides what becomes of a volume's private layer. The caller holds `names`.
struct Judge<'v> {
    volume: &'v Volume,
    delta: &'v Delta,
    now: Timestamp,
    /// What will be written; `None`: removed.
    inodes: BTreeMap<Ino, Option<InodeRecord>>,
    entries: BTreeMap<(Ino, Name), EntryRecord>,
    removed_entries: BTreeSet<(Ino, Name)>,
    /// Directories that get or lose a subdirectory which their base does not tell of.
    counted: BTreeSet<Ino>,
    /// Whether the volume shows a directory of the new base.
    shown: HashMap<Ino, bool>,
    rebased: Rebased,
}

impl<'v> Judge<'v> {
    fn new(volume: &'v Volume, delta: &'v Delta) -> Judge<'v> {
        Judge {
            volume,
            delta,
            now: volume.clock.now(),
            inodes: BTreeMap::new(),
            entries: BTreeMap::new(),
            removed_entries: BTreeSet::new(),
            counted: BTreeSet::new(),
            shown: HashMap::new(),
            rebased: Rebased::default(),
        }
    }

    fn judge(mut self, found: Written, written: Written) -> Result<Judge<'v>> {
        let delta = self.delta;
        let entries: BTreeSet<_> = found.entries.into_iter().chain(written.entries).collect();
        let entries: Vec<_> =
            entries.into_iter().filter(|(dir, name)| concerns_name(delta, *dir, name)).collect();
        let inodes: BTreeSet<_> = found.inodes.into_iter().chain(written.inodes).collect();
        let inodes: Vec<_> = inodes.into_iter().filter(|ino| concerns_inode(delta, *ino)).collect();
        for ino in &inodes {
            if delta.inode(*ino) == Some(InodeChange::Gone) {
                self.carry_over(*ino)?;
            }
        }
        for (dir, name) in &entries {
            let kept = matches!(self.entry(*dir, name)?, Some(EntryRecord::Node(..)));
            if kept && delta.inode(*dir) == Some(InodeChange::Gone) {
                self.keep_dir(*dir)?;
            }
        }
        for ino in &inodes {
            match delta.inode(*ino) {
                Some(InodeChange::Came) => self.come_back(*ino)?,
                Some(InodeChange::Altered) => self.alter(*ino)?,
                Some(InodeChange::Gone) | None => {}
            }
        }
        for ino in delta.linked() {
            self.link(*ino)?;
        }
        for dir in std::mem::take(&mut self.counted) {
            self.pin(dir)?;
        }
        for (dir, names) in delta.names() {
            self.recount(dir, names)?;
        }
        self.tell(&entries)?;
        Ok(self)
    }

    // Reading: what will be written counts.

    fn record(&self, ino: Ino) -> Result<Option<InodeRecord>> {
        match self.inodes.get(&ino) {
            Some(record) => Ok(record.clone()),
            None => Ok(self.volume.meta.inode(self.volume.ve, ino)?),
        }
    }

    fn entry(&self, dir: Ino, name: &Name) -> Result<Option<EntryRecord>> {
        let key = (dir, name.clone());
        if let Some(entry) = self.entries.get(&key) {
            return Ok(Some(*entry));
        }
        if self.removed_entries.contains(&key) {
            return Ok(None);
        }
        Ok(self.volume.meta.entry(self.volume.ve, dir, name.as_ref())?)
    }

    fn put_entry(&mut self, dir: Ino, name: Name, entry: EntryRecord) {
        self.removed_entries.remove(&(dir, name.clone()));
        self.entries.insert((dir, name), entry);
    }

    fn remove_entry(&mut self, dir: Ino, name: Name) {
        self.entries.remove(&(dir, name.clone()));
        self.removed_entries.insert((dir, name));
    }

    fn new_view(&self, ino: Ino) -> Result<NodeView<'v>> {
        self.delta.new.node(ino).ok_or(VolumeError::Damaged { ino, why: "the new base does not have it" })
    }

    fn old_view(&self, ino: Ino) -> Result<NodeView<'v>> {
        self.delta.old.node(ino).ok_or(VolumeError::Damaged { ino, why: "the old base does not have it" })
    }

    /// Whether a name of the new base is shown: nothing private stands in its place, and its directory is shown.
    fn is_visible(&mut self, dir: Ino, name: &Name) -> Result<bool> {
        Ok(self.entry(dir, name)?.is_none() && self.shows_dir(dir)?)
    }

    /// Whether the volume shows a directory of the new base: where the base has it, or where the VE moved it.
    fn shows_dir(&mut self, dir: Ino) -> Result<bool> {
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
    fn carry_over(&mut self, ino: Ino) -> Result<()> {
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
        if places.len() as u64 != u64::from(record.nlink) {
            // It has names that the VE gave it.
            return Ok(());
        }
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
        for (successor, places) in successors {
            self.succeed(successor, places, &record, &old)?;
        }
        self.orphan(ino, record);
        Ok(())
    }

    /// Gives an inode of the new base what the VE changed of the one that it follows, at these names.
    fn succeed(
        &mut self,
        ino: Ino,
        places: Vec<(Ino, Name)>,
        before: &InodeRecord,
        old: &NodeView<'_>,
    ) -> Result<()> {
        let view = self.new_view(ino)?;
        let plain = self.volume.record_of(Node::Base(view));
        let mut record = plain.clone();
        inherit(&mut record, before, old);
        let mut number = ino;
        let mut visible = Vec::new();
        match self.record(ino)? {
            // The VE has it already, from an earlier base.
            Some(own) if own.nlink > 0 => {
                record = own;
                visible = places;
                record.nlink += u32::try_from(visible.len()).unwrap_or(u32::MAX);
            }
            // Somebody has it open and goes on with it under this number.
            Some(own) if !same_content(&own, &view) => {
                number = self.volume.new_ino()?;
                visible = places;
                record.nlink = u32::try_from(visible.len()).unwrap_or(u32::MAX);
            }
            known => {
                let mut all = 0;
                for (dir, name) in view.names().map(|(dir, name)| (dir, name.to_name())) {
                    all += 1;
                    if self.is_visible(dir, &name)? {
                        visible.push((dir, name));
                    }
                }
                if record == plain && visible.len() == all {
                    if known.is_some() {
                        self.inodes.insert(ino, None);
                    }
                    return Ok(());
                }
                record.nlink = u32::try_from(visible.len()).unwrap_or(u32::MAX);
            }
        }
        record.ctime = self.now;
        for (dir, name) in visible {
            self.put_entry(dir, name, EntryRecord::Node(number, record.kind));
        }
        self.inodes.insert(number, Some(record));
        Ok(())
    }

    fn orphan(&mut self, ino: Ino, record: InodeRecord) {
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
        if self.record(dir)?.is_some() {
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
    fn adopt_names(
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
        if record.nlink > 0 {
            // The VE has given it other names since, or changed it. What it took away stays away.
            for (dir, name) in bare {
                self.put_entry(dir, name, EntryRecord::Whiteout);
                if record.kind == FileKind::Dir {
                    self.counted.insert(dir);
                }
            }
            return Ok(());
        }
        // Without names: it is only still open.
        if record.kind == FileKind::Dir || same_content(&record, &view) {
            self.inodes.insert(ino, None);
            return Ok(());
        }
        // Somebody goes on with the old one, under this number: the new names need another.
        let number = self.volume.new_ino()?;
        let mut fresh = self.volume.record_of(Node::Base(view));
        fresh.nlink = u32::try_from(bare.len()).unwrap_or(u32::MAX);
        for (dir, name) in bare {
            self.put_entry(dir, name, EntryRecord::Node(number, fresh.kind));
        }
        self.inodes.insert(number, Some(fresh));
        Ok(())
    }

    /// An inode that both bases have, and of which there is a record.
    fn alter(&mut self, ino: Ino) -> Result<()> {
        let Some(mut record) = self.record(ino)? else { return Ok(()) };
        let (old, new) = (self.old_view(ino)?, self.new_view(ino)?);
        if record.nlink > 0 {
            let mut inherited = self.volume.record_of(Node::Base(new));
            inherit(&mut inherited, &record, &old);
            let changed = (inherited.perm, inherited.uid, inherited.gid, &inherited.xattrs)
                != (record.perm, record.uid, record.gid, &record.xattrs);
            if changed {
                record = InodeRecord { ctime: self.now, ..record };
                (record.perm, record.uid, record.gid) = (inherited.perm, inherited.uid, inherited.gid);
                record.xattrs = inherited.xattrs;
                self.inodes.insert(ino, Some(record.clone()));
                self.rebased.inodes.push(ino);
            }
        }
        if record.kind == FileKind::Dir {
            return Ok(());
        }
        let had: HashSet<_> = old.names().map(|(dir, name)| (dir, name.to_name())).collect();
        if record.nlink == 0 {
            return self.adopt_names(ino, record, new, |place| !had.contains(place));
        }
        // Further names of what the VE changed lead to what it made of it, as hard links do; and names that are taken away, are.
        let has: HashSet<_> = new.names().map(|(dir, name)| (dir, name.to_name())).collect();
        let names = record.nlink;
        for place in has.difference(&had) {
            if self.is_visible(place.0, &place.1)? {
                self.put_entry(place.0, place.1.clone(), EntryRecord::Node(ino, record.kind));
                record.nlink += 1;
            }
        }
        for place in had.difference(&has) {
            let own = self.entry(place.0, &place.1)? == Some(EntryRecord::Node(ino, record.kind));
            if own && record.nlink > 1 {
                self.remove_entry(place.0, place.1.clone());
                record.nlink -= 1;
            }
        }
        if record.nlink != names {
            record.ctime = self.now;
            self.inodes.insert(ino, Some(record));
        }
        Ok(())
    }

    /// A file with several names in the new base: if the volume shows only some of them, its link count is its own (M2).
    fn link(&mut self, ino: Ino) -> Result<()> {
        if self.record(ino)?.is_some() {
            return Ok(());
        }
        let view = self.new_view(ino)?;
        let (mut visible, mut all) = (Vec::new(), 0);
        for (dir, name) in view.names().map(|(dir, name)| (dir, name.to_name())) {
            all += 1;
            if self.is_visible(dir, &name)? {
                visible.push((dir, name));
            }
        }
        if visible.is_empty() || visible.len() == all {
            return Ok(());
        }
        let mut record = self.volume.record_of(Node::Base(view));
        record.nlink = u32::try_from(visible.len()).unwrap_or(u32::MAX);
        for (dir, name) in visible {
            self.put_entry(dir, name, EntryRecord::Node(ino, record.kind));
        }
        self.inodes.insert(ino, Some(record));
        Ok(())
    }

    /// The link count and times of a directory with a record, after names in it have changed.
    fn recount(&mut self, dir: Ino, names: &HashMap<Name, NameChange>) -> Result<()> {
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
        let mut subdirectories = 0u32;
        for row in self.volume.merged_with(&self.delta.new, dir, 0)? {
            let row = row?;
            // What will be written counts below.
            let judged = (dir, row.name.clone());
            if !self.entries.contains_key(&judged) && !self.removed_entries.contains(&judged) {
                subdirectories += u32::from(row.kind == FileKind::Dir);
            }
        }
        for (_, entry) in self.entries.iter().filter(|((at, _), _)| *at == dir) {
            subdirectories += u32::from(matches!(entry, EntryRecord::Node(_, FileKind::Dir)));
        }
        for (_, name) in self.removed_entries.iter().filter(|(at, _)| *at == dir) {
            subdirectories += u32::from(is_dir(names.get(name).and_then(|change| change.new)));
        }
        record.nlink = 2 + subdirectories;
        self.inodes.insert(dir, Some(record));
        Ok(())
    }

    /// What the kernel and people must know.
    fn tell(&mut self, entries: &[(Ino, Name)]) -> Result<()> {
        let delta = self.delta;
        let mut kept = HashSet::new();
        for (dir, name) in entries {
            let (Some(change), Some(entry)) = (delta.name(*dir, name), self.entry(*dir, name)?) else {
                continue;
            };
            let shown = match entry {
                EntryRecord::Node(ino, kind) => Some((ino, kind)),
                EntryRecord::Whiteout => None,
            };
            if shown == change.new {
                continue;
            }
            kept.insert((*dir, name.clone()));
            self.rebased.hidden.push(Hidden { dir: *dir, name: name.clone(), change, by: Some(entry) });
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
                    self.rebased.hidden.push(Hidden { dir, name, change, by: None });
                }
                self.rebased.names.push(place);
            }
            self.rebased.inodes.push(dir);
        }
        let written: Vec<_> = self
            .entries
            .keys()
            .chain(&self.removed_entries)
            .filter(|place| !kept.contains(place))
            .cloned()
            .collect();
        self.rebased.names.extend(written);
        let altered = delta.inodes().filter(|(_, change)| *change == InodeChange::Altered);
        self.rebased.inodes.extend(altered.map(|(ino, _)| ino).chain(self.inodes.keys().copied()));
        for list in [&mut self.rebased.inodes, &mut self.rebased.orphans] {
            list.sort_unstable();
            list.dedup();
        }
        self.rebased.names.sort_unstable();
        self.rebased.names.dedup();
        Ok(())
    }

    fn write(&self, batch: &mut Changes<'_>) {
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

/// Whether a record has the content of a base's inode, so that at most its attributes were changed.
fn same_content(record: &InodeRecord, view: &NodeView<'_>) -> bool {
    record.kind == view.kind()
        && match (&record.content, view.content()) {
            (PrivateContent::None, ContentRef::None) => record.rdev == view.attr().rdev,
            (PrivateContent::Symlink(own), ContentRef::Symlink(target)) => own == target,
            (PrivateContent::Blob { digest, .. }, ContentRef::Blob { digest: base, .. }) => {
                digest == base.as_bytes()
            }
            _ => false,
        }
}

/// Gives `new` those attributes that the VE's `own` record has changed since `old`.
fn inherit(new: &mut InodeRecord, own: &InodeRecord, old: &NodeView<'_>) {
    let before = old.attr();
    if own.perm != before.perm {
        new.perm = own.perm;
    }
    if own.uid != before.uid {
        new.uid = own.uid;
    }
    if own.gid != before.gid {
        new.gid = own.gid;
    }
    let before: BTreeMap<&[u8], &[u8]> = old.xattrs().collect();
    for (name, value) in &own.xattrs {
        if before.get(name.as_slice()) != Some(&value.as_slice()) {
            new.xattrs.insert(name.clone(), value.clone());
        }
    }
    for name in before.keys().filter(|name| !own.xattrs.contains_key(**name)) {
        new.xattrs.remove(*name);
    }
}
