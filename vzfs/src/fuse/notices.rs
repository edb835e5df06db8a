//! Telling the kernel to ask again.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, OnceLock};

use fuser::{INodeNo, Notifier};
use parking_lot::Mutex;
use tracing::{debug, warn};

use crate::types::{Ino, Name};
use crate::volume::Relabelled;

/// Sends invalidations, never from a thread that serves requests: the kernel may hold locks that such a request waits for.
#[derive(Default)]
pub(super) struct Notices {
    notifier: OnceLock<Notifier>,
    sending: Mutex<()>,
}

impl Notices {
    /// Names the session to notify; before that, the kernel has cached nothing.
    pub(super) fn attach(&self, notifier: Notifier) {
        let _only_once = self.notifier.set(notifier);
    }

    /// Makes the kernel ask again for the names and inodes that `changed` gives, and runs `then`. Rare (a relabel), so a thread of its own costs nothing
    /// that counts.
    ///
    /// One at a time: when `then` runs, all names that had changed before the call are asked for again, whichever call it was that got them.
    pub(super) fn forget_relabelled(
        self: &Arc<Self>,
        changed: impl FnOnce() -> Relabelled + Send + 'static,
        then: impl FnOnce() + Send + 'static,
    ) {
        let notices = Arc::clone(self);
        let send = move || {
            {
                let _one_at_a_time = notices.sending.lock();
                let Relabelled { inodes, names, dirs } = changed();
                for dir in dirs {
                    notices.forget_inode(dir, 0);
                }
                for (dir, name) in names {
                    notices.forget_name(dir, &name);
                }
                for ino in inodes {
                    notices.forget_attr(ino);
                }
            }
            then();
        };
        if let Err(error) = std::thread::Builder::new().name("notify".to_owned()).spawn(send) {
            warn!(%error, "cannot tell the kernel of changed names");
        }
    }

    /// Makes the kernel ask again for these names, attributes and listings; returns when it has been told. Waits for requests on the
    /// directories, so not for threads that answer requests.
    pub(super) fn forget_all<'a>(
        &self,
        names: impl Iterator<Item = &'a (Ino, Name)>,
        inodes: impl Iterator<Item = Ino>,
        dirs: impl Iterator<Item = Ino>,
    ) {
        let _one_at_a_time = self.sending.lock();
        for dir in dirs {
            self.forget_inode(dir, 0);
        }
        for ino in inodes {
            self.forget_attr(ino);
        }
        for (dir, name) in names {
            self.forget_name(*dir, name);
        }
    }

    fn forget_name(&self, dir: Ino, name: &Name) {
        if let Some(notifier) = self.notifier.get()
            && let Err(error) = notifier.inval_entry(INodeNo(dir.get()), OsStr::from_bytes(name.as_bytes()))
        {
            debug!(%error, "invalidation of an entry was refused");
        }
    }

    /// Makes the kernel ask for the attributes of an inode again. Safe from anywhere: with a negative offset the kernel touches no
    /// page and waits for no lock (`fuse_reverse_inval_inode`).
    pub(super) fn forget_attr(&self, ino: Ino) {
        self.forget_inode(ino, -1);
    }

    /// From `offset` on the cached content is dropped too; that of a directory is its listing.
    fn forget_inode(&self, ino: Ino, offset: i64) {
        if let Some(notifier) = self.notifier.get()
            && let Err(error) = notifier.inval_inode(INodeNo(ino.get()), offset, 0)
        {
            debug!(%error, "invalidation of an inode was refused");
        }
    }
}
