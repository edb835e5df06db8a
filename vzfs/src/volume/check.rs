//! The care of a volume: its invariants, checked one by one (for tests, the fuzzer and whoever doubts a store), and files that crashes left.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;

use super::data::DataFolder;
use super::{Result, Volume, VolumeError};
use crate::meta::{EntryRecord, InodeRecord, PrivateContent};
use crate::tree::{ContentRef, MAX_PATH_BYTES, soundly_read};
use crate::types::{Digest, FileKind, Ino, Name, VeId};

/// What is wrong with a VE's private layer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Damage {
    /// A broken invariant, in a sentence.
    Record(String),
    /// The content of the file at this path is not there; empty for one that was removed and is still open.
    Content(Vec<u8>),
}

impl Volume {
    /// Everything that breaks an invariant (M1 to M3, V4) or refers to content that is not there, one sentence each; empty for a sound
    /// volume. Reads all private records, and every directory that has one.
    ///
    /// # Errors
    /// Only those of reading the tables, damaged records among them.
    pub fn check(&self) -> Result<Vec<String>> {
        self.shared(|| {
            let Check { mut broken, lost, .. } = self.look()?;
            broken.extend(lost.iter().map(|ino| format!("{ino} has not the content that its type needs")));
            Ok(broken)
        })
    }

    /// The same for whoever doubts a store: programs in the VE wait only when something is broken, and files without their content are told by their paths.
    /// Blobs that are not there are not meant.
    pub fn damage(&self) -> Result<Vec<Damage>> {
        // What changes while this looks may seem broken. Then it looks once more while nothing changes.
        let is_sound =
            soundly_read(|| self.look().map(|check| check.broken.is_empty() && check.lost.is_empty()));
        match is_sound {
            Ok(true) => return Ok(Vec::new()),
            Err(error @ VolumeError::Tree(_)) => return Err(error),
            _ => {}
        }
        self.shared(|| {
            let Check { broken, lost, records, .. } = self.look()?;
            let mut damage: Vec<_> = broken.into_iter().map(Damage::Record).collect();
            let is_blob = |ino: &Ino| matches!(records[ino].content, PrivateContent::Blob { .. });
            let lost: BTreeMap<Ino, ()> =
                lost.into_iter().filter(|ino| !is_blob(ino)).map(|ino| (ino, ())).collect();
            damage.extend(self.paths_of(&records, lost)?.into_iter().map(|(path, ())| Damage::Content(path)));
            Ok(damage)
        })
    }

    fn look(&self) -> Result<Check<'_>> {
        let forgotten = self.are_forgotten();
        let records = self.meta.all_inodes(self.ve)?.into_iter();
        let mut check = Check {
            volume: self,
            records: records.filter(|(ino, _)| !forgotten.contains(ino)).collect(),
            names: HashMap::new(),
            broken: Vec::new(),
            lost: Vec::new(),
        };
        check.entries()?;
        let orphans =
            self.meta.orphans(self.ve)?.into_iter().filter(|ino| !forgotten.contains(ino)).collect();
        let inos: Vec<Ino> = check.records.keys().copied().collect();
        for ino in inos {
            check.record(ino, &orphans)?;
        }
        for ino in orphans.iter().filter(|ino| !check.records.contains_key(ino)) {
            check.broken.push(format!("M3: orphan {ino} has no record"));
        }
        Ok(check)
    }
}

impl Volume {
    /// The paths at which the VE shows one of these blobs, with the blob: through the base or through a private record. A file that was removed
    /// and is still open has an empty path.
    pub fn paths_showing(&self, blobs: &HashSet<Digest>) -> Result<Vec<(Vec<u8>, Digest)>> {
        self.shared(|| {
            let records: BTreeMap<Ino, InodeRecord> = self.meta.all_inodes(self.ve)?.into_iter().collect();
            let mut shown: BTreeMap<Ino, Digest> = BTreeMap::new();
            for (ino, record) in &records {
                if let PrivateContent::Blob { digest, .. } = record.content {
                    shown.insert(*ino, Digest::from_bytes(digest));
                }
            }
            for view in self.base().inodes().filter(|view| !records.contains_key(&view.ino())) {
                if let ContentRef::Blob { digest, .. } = view.content() {
                    shown.insert(view.ino(), digest);
                }
            }
            shown.retain(|_, digest| blobs.contains(digest));
            self.paths_of(&records, shown)
        })
    }

    /// A path of an inode, without a leading slash, for messages; `None` for what has no name. Looks through all private records.
    pub fn path(&self, ino: Ino) -> Result<Option<Vec<u8>>> {
        if ino == Ino::ROOT {
            return Ok(Some(Vec::new()));
        }
        let mut paths = self.shared(|| {
            let records = self.meta.all_inodes(self.ve)?.into_iter().collect();
            self.paths_of(&records, BTreeMap::from([(ino, ())]))
        })?;
        Ok(paths.pop().map(|(path, ())| path).filter(|path| !path.is_empty()))
    }

    /// The paths of inodes, sorted, each with what is said of the inode; empty for what has no name. `records` are all private ones.
    fn paths_of<T: Clone + Ord>(
        &self,
        records: &BTreeMap<Ino, InodeRecord>,
        wanted: BTreeMap<Ino, T>,
    ) -> Result<Vec<(Vec<u8>, T)>> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let mut places: HashMap<Ino, Vec<(Ino, Name)>> = HashMap::new();
        for row in self.meta.all_entries(self.ve) {
            let row = row?;
            if let EntryRecord::Node(ino, _) = row.entry {
                places.entry(ino).or_default().push((row.dir, row.name));
            }
        }
        // By M2 an inode has its names on one side: with its record if it has one, else in the base.
        let names_of = |ino: Ino| -> Vec<(Ino, Name)> {
            if records.contains_key(&ino) {
                return places.get(&ino).cloned().unwrap_or_default();
            }
            let names = self.base().node(ino).into_iter().flat_map(|view| view.names());
            names.map(|(dir, name)| (dir, name.to_name())).collect()
        };
        let mut paths = Vec::new();
        for (ino, said) in wanted {
            let names = names_of(ino);
            if names.is_empty() {
                paths.push((Vec::new(), said.clone()));
            }
            for (mut dir, name) in names {
                let mut parts = vec![name];
                // Ends also in damaged tables, where directories may form a circle.
                while dir != Ino::ROOT && parts.len() <= MAX_PATH_BYTES {
                    let Some((parent, name)) = names_of(dir).pop() else { break };
                    parts.push(name);
                    dir = parent;
                }
                let parts: Vec<&[u8]> = parts.iter().rev().map(|name| name.as_bytes()).collect();
                paths.push((parts.join(&b'/'), said.clone()));
            }
        }
        paths.sort_unstable();
        Ok(paths)
    }

    /// Data files that no record names, with the space they take in bytes. Only those of earlier sessions: a file is made before its record,
    /// so that a new one may be about to get one.
    pub fn stray_files(&self) -> Result<Vec<(u64, u64)>> {
        let mut files = self.data.list().map_err(VolumeError::io("list the private data files"))?;
        files.retain(|(id, _)| *id < self.first_number);
        if files.is_empty() {
            return Ok(files);
        }
        let data_of = |(_, record): (Ino, InodeRecord)| match record.content {
            PrivateContent::Data { id, .. } => Some(id),
            _ => None,
        };
        let named: BTreeSet<u64> = self.meta.all_inodes(self.ve)?.into_iter().filter_map(data_of).collect();
        files.retain(|(id, _)| !named.contains(id));
        Ok(files)
    }

    /// Removes one of [`Volume::stray_files`].
    pub fn remove_stray(&self, file: u64) -> Result<()> {
        self.data.remove(file)
    }

    /// All data files of a VE, also of one that is no more, with the space they take in bytes.
    pub fn data_files(data: &Path, ve: VeId) -> std::io::Result<Vec<(u64, u64)>> {
        DataFolder::new(data, ve).list()
    }
}

struct Check<'v> {
    volume: &'v Volume,
    records: BTreeMap<Ino, InodeRecord>,
    /// The directories in which private entries name an inode, once for each name.
    names: HashMap<Ino, Vec<Ino>>,
    broken: Vec<String>,
    /// Inodes without the content that their type needs.
    lost: Vec<Ino>,
}

impl Check<'_> {
    fn ensure(&mut self, sound: bool, what: impl FnOnce() -> String) {
        if !sound {
            self.broken.push(what());
        }
    }

    /// M1, and that entries are in directories.
    fn entries(&mut self) -> Result<()> {
        for row in self.volume.meta.all_entries(self.volume.ve) {
            let row = row?;
            let at = format!("entry {:?} of directory {}", row.name.as_ref(), row.dir);
            let (kind, nlink) = match self.records.get(&row.dir) {
                Some(record) => (Some(record.kind), record.nlink),
                None => (self.volume.base().node(row.dir).map(|view| view.kind()), 2),
            };
            // A removed directory of the base keeps its whiteouts until it is forgotten, and one of an earlier base for ever: it may come back.
            let whiteout = row.entry == EntryRecord::Whiteout;
            let live = match kind {
                Some(kind) => kind == FileKind::Dir && (nlink > 0 || whiteout),
                None => whiteout,
            };
            self.ensure(live, || format!("{at}: that is no directory, or one that was removed"));
            self.ensure(row.hash57 == row.name.as_ref().hash57(), || format!("{at}: its hash is wrong"));
            match row.entry {
                // It may stand where an earlier base had the name.
                EntryRecord::Whiteout => {}
                EntryRecord::Node(ino, kind) => {
                    let known = self.records.get(&ino).is_some_and(|record| record.kind == kind);
                    self.ensure(known, || format!("M1: {at} names {ino}, which has no record of that type"));
                    self.names.entry(ino).or_default().push(row.dir);
                }
            }
        }
        Ok(())
    }

    fn record(&mut self, ino: Ino, orphans: &BTreeSet<Ino>) -> Result<()> {
        let record = self.records[&ino].clone();
        self.ensure((record.nlink == 0) == orphans.contains(&ino), || {
            format!("M3: {ino} has {} names, and the orphan table says otherwise", record.nlink)
        });
        if let Some(view) = self.volume.base().node(ino) {
            let mut all = true;
            for (dir, name) in view.names() {
                let entry = self.volume.meta.entry(self.volume.ve, dir, name)?;
                all &= entry.is_some() || self.volume.is_hidden(dir)?;
            }
            self.ensure(all, || format!("M2: a name of {ino} in the base has no private entry"));
        }
        let names = self.names.get(&ino).cloned().unwrap_or_default();
        if record.kind == FileKind::Dir {
            self.directory(ino, &record, &names)?;
        } else {
            self.ensure(names.len() as u64 == u64::from(record.nlink), || {
                format!("{ino} has {} names and says {}", names.len(), record.nlink)
            });
        }
        let content = match (record.kind, &record.content) {
            (FileKind::File, PrivateContent::Data { id, .. }) => self.volume.data.stat(*id).is_ok(),
            (FileKind::File, PrivateContent::Blob { digest, .. }) => {
                self.volume.blobs.contains(&Digest::from_bytes(*digest))?
            }
            (FileKind::Symlink, PrivateContent::Symlink(_)) => true,
            (FileKind::File | FileKind::Symlink, _) => false,
            (FileKind::Dir, PrivateContent::Joined { .. }) => record.nlink == 0,
            (_, content) => *content == PrivateContent::None,
        };
        if !content {
            self.lost.push(ino);
        }
        self.ensure(record.perm <= 0o7777, || format!("{ino} has permissions beyond 07777"));
        Ok(())
    }

    /// V4, and that the root is reached.
    fn directory(&mut self, ino: Ino, record: &InodeRecord, names: &[Ino]) -> Result<()> {
        let parent = record.parent();
        if record.nlink == 0 {
            // What the base has in it is not shown; it may have come with a later base.
            let mut rows = self.volume.meta.entries_from(self.volume.ve, ino, 0);
            let empty = rows.all(|row| row.is_ok_and(|row| row.entry == EntryRecord::Whiteout));
            self.ensure(names.is_empty() && empty, || format!("{ino} is removed and has names or entries"));
            return Ok(());
        }
        let sound = if ino == Ino::ROOT {
            names.is_empty() && parent == Some(ino)
        } else {
            names == parent.as_slice()
        };
        self.ensure(sound, || format!("V4: directory {ino} is in {names:?} and says {parent:?}"));
        let mut subdirectories = 0;
        for row in self.volume.merged(ino, 0)? {
            subdirectories += u32::from(row?.kind == FileKind::Dir);
        }
        self.ensure(record.nlink == 2 + subdirectories, || {
            format!("V4: directory {ino} has {subdirectories} subdirectories and {} links", record.nlink)
        });
        let (mut at, mut steps) = (ino, 0);
        while at != Ino::ROOT && steps <= self.records.len() {
            // A directory of the base that was never touched is where the base has it, and the base is a tree.
            let Some(above) = self.records.get(&at) else { return Ok(()) };
            let Some(parent) = above.parent() else { break };
            (at, steps) = (parent, steps + 1);
        }
        self.ensure(at == Ino::ROOT, || format!("directory {ino} is not below the root"));
        Ok(())
    }
}
