//! Who has which file open, and which may have been written to.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::sync::Arc;

use super::Volume;
use crate::types::{Digest, Ino};

/// Who moves the bytes of an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// The kernel, by FUSE passthrough.
    Passthrough,
    /// The daemon.
    Served,
}

/// An open regular file. [`Volume::release`] must be called once for each.
#[derive(Clone, Debug)]
pub struct OpenFile {
    /// The blob that it is open on; `None` on a private data file.
    pub blob: Option<Digest>,
    /// The backing file, unless only the blob's name is known ([`Volume::open_on_blob`]).
    pub(super) file: Option<Arc<File>>,
}

/// Open files that the volume holds itself, so that serving a read or write opens nothing. For files beyond it, and for those that the
/// kernel serves, it opens the backing file for each request: a program with a million open files does not use up the daemon's descriptors.
const MAX_HELD_FILES: usize = 1024;

/// The open inodes.
#[derive(Default)]
pub(super) struct Opens {
    by_ino: HashMap<Ino, OpenInode>,
    held: usize,
    /// Operations that are changing the data file of an inode, which need not be open.
    changing: HashMap<Ino, u32>,
    /// Files whose content may have changed since somebody asked for their size last: they were open for writing, or an operation changed them.
    written: HashSet<Ino>,
}

struct OpenInode {
    /// Open handles.
    handles: u32,
    /// Those among them that the kernel serves itself from the blob (V2).
    on_blob: u32,
    /// The backing file, if it is held.
    file: Option<Arc<File>>,
}

impl Opens {
    /// Whether an inode is open.
    pub(super) fn has(&self, ino: Ino) -> bool {
        self.by_ino.contains_key(&ino)
    }

    /// Whether an operation may be about to change an inode's data file.
    pub(super) fn is_changing(&self, ino: Ino) -> bool {
        self.changing.contains_key(&ino)
    }

    pub(super) fn held_file(&self, ino: Ino) -> Option<Arc<File>> {
        self.by_ino.get(&ino)?.file.clone()
    }

    pub(super) fn is_on_blob(&self, ino: Ino) -> bool {
        self.by_ino.get(&ino).is_some_and(|open| open.on_blob > 0)
    }

    /// Takes those of the written files that nobody may be writing to through a descriptor, and gives the others.
    pub(super) fn take_written(&mut self) -> (Vec<Ino>, Vec<Ino>) {
        let written = std::mem::take(&mut self.written).into_iter();
        let (open, closed): (Vec<_>, _) = written.partition(|ino| self.has(*ino) || self.is_changing(*ino));
        self.written.extend(&open);
        (closed, open)
    }

    /// The file may be written to without our knowledge, from now on until somebody has looked.
    pub(super) fn note_written(&mut self, ino: Ino) {
        self.written.insert(ino);
    }

    /// Counts a handle.
    pub(super) fn add(&mut self, ino: Ino, file: Option<&Arc<File>>, on_blob: bool, sharing: Sharing) {
        let open = self.by_ino.entry(ino).or_insert(OpenInode { handles: 0, on_blob: 0, file: None });
        open.handles += 1;
        if on_blob && sharing == Sharing::Passthrough {
            open.on_blob += 1;
        }
        if sharing == Sharing::Served && open.file.is_none() && self.held < MAX_HELD_FILES {
            open.file = file.cloned();
            self.held += usize::from(open.file.is_some());
        }
    }

    /// The first handle of a file that was made just now.
    pub(super) fn open_new(&mut self, ino: Ino, file: Arc<File>, sharing: Sharing) -> OpenFile {
        self.add(ino, Some(&file), false, sharing);
        self.note_written(ino);
        OpenFile { blob: None, file: Some(file) }
    }

    /// Takes over handles; none of their files is held.
    pub(super) fn adopt(&mut self, ino: Ino, handles: u32, on_blob: u32) {
        self.by_ino.insert(ino, OpenInode { handles, on_blob, file: None });
    }

    /// Puts another backing file under the handles of an inode.
    pub(super) fn replace(&mut self, ino: Ino, file: File) {
        if let Some(held) = self.by_ino.get_mut(&ino).and_then(|open| open.file.as_mut()) {
            *held = Arc::new(file);
        }
    }

    pub(super) fn remove(&mut self, ino: Ino, sharing: Sharing) {
        let Some(open) = self.by_ino.get_mut(&ino) else { return };
        open.handles -= 1;
        if sharing == Sharing::Passthrough {
            // Handles on one inode are all on the blob or all on the data file, in passthrough mode (V2).
            open.on_blob = open.on_blob.saturating_sub(1);
        }
        if open.handles == 0 {
            self.held -= usize::from(open.file.is_some());
            self.by_ino.remove(&ino);
        }
    }
}

/// Keeps the data file of an inode where it is, for an operation that changes it without holding `names`.
pub(super) struct Changing<'v> {
    volume: &'v Volume,
    ino: Ino,
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        let mut opens = self.volume.opens.lock();
        if let Some(count) = opens.changing.get_mut(&self.ino) {
            *count -= 1;
            if *count == 0 {
                opens.changing.remove(&self.ino);
            }
        }
    }
}

impl Volume {
    /// Begins an operation that changes the content of a file.
    pub(super) fn changing(&self, ino: Ino) -> Changing<'_> {
        let mut opens = self.opens.lock();
        *opens.changing.entry(ino).or_insert(0) += 1;
        opens.note_written(ino);
        drop(opens);
        Changing { volume: self, ino }
    }
}
