//! How much a volume holds and shows, exactly, from the private tables and the base's header: the base itself is not walked, only what the VE
//! has hidden of it.
//!
//! What was found is kept and holds as long as nothing was changed. The tables change with batches, which are counted. The sizes of data files also change by
//! what the kernel writes to them: those that may have been written to since are asked for again, and no others.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::{Result, Volume};
use crate::meta::{InodeRecord, PrivateContent};
use crate::tree::{Target, soundly_read};
use crate::types::{Digest, FileKind, Ino};

/// What a VE's private layer holds, and what the VE shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Private inode records.
    pub private_inodes: u64,
    /// Allocated bytes of private data files.
    pub private_bytes: u64,
    /// Sizes of all regular files that the VE shows, each inode once.
    pub logical_bytes: u64,
    /// The part of them that lies in private data files.
    pub private_logical_bytes: u64,
}

/// The same, and which blobs its own records name.
#[derive(Clone, Debug, Default)]
pub struct Holdings {
    /// How much.
    pub usage: Usage,
    /// Digests and sizes in bytes; one that several records name comes several times.
    pub blobs: Arc<[(Digest, u64)]>,
}

/// What the private layer was last found to hold.
#[derive(Default)]
pub(super) struct Account {
    /// Counts the changes of the private tables, and of what of them counts. Moved with `names` held exclusively, or after the change.
    changes: AtomicU64,
    /// Taken after `names`, before `opens`.
    found: Mutex<Option<Found>>,
}

impl Account {
    /// Something is about to be changed while `names` is held exclusively, or was changed.
    pub(super) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }
}

struct Found {
    /// The count of changes then.
    changes: u64,
    holdings: Holdings,
    files: HashMap<Ino, DataFile>,
}

/// A private data file.
struct DataFile {
    id: u64,
    /// The VE shows it.
    shown: bool,
    /// Allocated bytes, and the size if it is shown, as they are in the sums.
    counted: (u64, u64),
}

impl Volume {
    /// How much the private layer holds, and what the VE shows.
    ///
    /// Costs a scan of the private tables and one host `stat` a data file after a change; otherwise the latter for files that were open for writing.
    pub fn usage(&self) -> Result<Usage> {
        self.holdings().map(|holdings| holdings.usage)
    }

    /// As [`Volume::usage`], with the blobs.
    pub fn holdings(&self) -> Result<Holdings> {
        let _shared = self.names.read();
        let mut found = self.account.found.lock();
        // What is written from here on is noted anew.
        let (closed, mut written) = self.opens.lock().take_written();
        let changes = self.account.changes.load(Ordering::Acquire);
        let mut current = match found.take().filter(|found| found.changes == changes) {
            Some(current) => current,
            None => soundly_read(|| self.scan(changes))?,
        };
        for ino in closed {
            let Some(file) = current.files.get(&ino) else { continue };
            if self.data.is_open_for_writing(file.id).unwrap_or(true) {
                // It is mapped.
                self.opens.lock().note_written(ino);
            }
            // Asked for its size after that, also by who has just scanned: from here on it does not change unnoticed.
            written.push(ino);
        }
        for ino in written {
            if let Some(file) = current.files.get_mut(&ino) {
                self.count(file, &mut current.holdings.usage)?;
            }
        }
        let holdings = current.holdings.clone();
        *found = Some(current);
        Ok(holdings)
    }

    /// The same by looking at everything, to compare with.
    #[cfg(test)]
    pub(super) fn usage_anew(&self) -> Usage {
        let _shared = self.names.read();
        soundly_read(|| self.scan(0)).expect("readable").holdings.usage
    }

    /// Brings the sums up to what the host says of a data file.
    fn count(&self, file: &mut DataFile, usage: &mut Usage) -> Result<()> {
        // One that is lost is told by whoever opens it, and by a check; it must not keep all VEs from being listed.
        let host = self.data.stat_if_there(file.id)?;
        let now = host.map_or((0, 0), |host| (host.blocks * 512, if file.shown { host.size } else { 0 }));
        let before = std::mem::replace(&mut file.counted, now);
        let change = |sum: u64, before: u64, now: u64| sum.saturating_sub(before).saturating_add(now);
        usage.private_bytes = change(usage.private_bytes, before.0, now.0);
        usage.private_logical_bytes = change(usage.private_logical_bytes, before.1, now.1);
        usage.logical_bytes = change(usage.logical_bytes, before.1, now.1);
        Ok(())
    }

    /// Looks at everything.
    fn scan(&self, changes: u64) -> Result<Found> {
        let mut records: HashMap<Ino, InodeRecord> = self.meta.all_inodes(self.ve)?.into_iter().collect();
        // Nobody has them any more.
        self.are_forgotten().iter().for_each(|ino| drop(records.remove(ino)));
        let mut usage = Usage { private_inodes: records.len() as u64, ..Usage::default() };
        let (mut files, mut blobs) = (HashMap::new(), Vec::new());
        // What the base has is shown, unless a record says otherwise...
        let mut hidden_bytes = 0u64;
        for (ino, record) in &records {
            hidden_bytes = hidden_bytes.saturating_add(self.base_file_bytes(*ino));
            let shown = record.nlink > 0 && record.kind == FileKind::File;
            match &record.content {
                PrivateContent::Data { id, .. } => {
                    let mut file = DataFile { id: *id, shown, counted: (0, 0) };
                    self.count(&mut file, &mut usage)?;
                    files.insert(*ino, file);
                }
                PrivateContent::Blob { size, digest, .. } => {
                    blobs.push((Digest::from_bytes(*digest), *size));
                    if shown {
                        usage.logical_bytes = usage.logical_bytes.saturating_add(*size);
                    }
                }
                _ => {}
            }
        }
        // ...or it was removed: then it has no record any more, but its name, or that of a directory above it, is hidden.
        let mut removed = HashSet::new();
        for row in self.meta.all_entries(self.ve) {
            let row = row?;
            if let Some((ino, kind)) = self.base_entry(row.dir, row.name.as_ref()) {
                self.add_removed(ino, kind, &records, &mut removed);
            }
        }
        for ino in removed {
            hidden_bytes = hidden_bytes.saturating_add(self.base_file_bytes(ino));
        }
        let base_bytes = self.base().stats().logical_bytes.saturating_sub(hidden_bytes);
        usage.logical_bytes = usage.logical_bytes.saturating_add(base_bytes);
        Ok(Found { changes, holdings: Holdings { usage, blobs: blobs.into() }, files })
    }

    /// Size of a regular file of the base; 0 for anything else.
    fn base_file_bytes(&self, ino: Ino) -> u64 {
        let view = self.base().node(ino).filter(|view| view.kind() == FileKind::File);
        view.map_or(0, |view| view.attr().size)
    }

    /// Notes the base's files at and below an inode whose name in the base is hidden. What has a record lives on elsewhere, or is an orphan with
    /// hidden names of its own.
    fn add_removed(
        &self,
        ino: Ino,
        kind: FileKind,
        records: &HashMap<Ino, InodeRecord>,
        removed: &mut HashSet<Ino>,
    ) {
        let mut todo = vec![(ino, kind)];
        while let Some((ino, kind)) = todo.pop() {
            if records.contains_key(&ino) || !removed.insert(ino) || kind != FileKind::Dir {
                continue;
            }
            todo.extend(self.base().entries(ino, None).filter_map(|entry| match entry.target {
                Target::Node(ino, kind) => Some((ino, kind)),
                Target::Whiteout => None,
            }));
        }
    }
}
