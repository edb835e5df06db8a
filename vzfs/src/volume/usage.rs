//! How much a volume holds and shows, exactly, from the private tables and the base's header: the base itself is not walked, only what the VE
//! has hidden of it.

use std::collections::{HashMap, HashSet};

use super::{Result, Volume};
use crate::meta::{InodeRecord, PrivateContent};
use crate::tree::Target;
use crate::types::{FileKind, Ino};

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

impl Volume {
    /// How much the private layer holds, and what the VE shows. Costs one host `stat` a data file and a scan of the private tables.
    pub fn usage(&self) -> Result<Usage> {
        self.shared(|| {
            let records: HashMap<Ino, InodeRecord> = self.meta.all_inodes(self.ve)?.into_iter().collect();
            let mut usage = Usage { private_inodes: records.len() as u64, ..Usage::default() };
            // What the base has is shown, unless a record says otherwise...
            let mut hidden_bytes = 0u64;
            for (ino, record) in &records {
                hidden_bytes = hidden_bytes.saturating_add(self.base_file_bytes(*ino));
                let shown = record.nlink > 0 && record.kind == FileKind::File;
                match &record.content {
                    PrivateContent::Data { id, .. } => {
                        // One that is lost is told by whoever opens it, and by a check; it must not keep all VEs from being listed.
                        let Some(host) = self.data.stat_if_there(*id)? else { continue };
                        usage.private_bytes += host.blocks * 512;
                        if shown {
                            usage.private_logical_bytes =
                                usage.private_logical_bytes.saturating_add(host.size);
                        }
                    }
                    PrivateContent::Blob { size, .. } if shown => {
                        usage.logical_bytes = usage.logical_bytes.saturating_add(*size);
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
            usage.logical_bytes =
                usage.logical_bytes.saturating_add(base_bytes).saturating_add(usage.private_logical_bytes);
            Ok(usage)
        })
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
