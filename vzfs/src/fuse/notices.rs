//! Telling the kernel to ask again.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;

use fuser::{INodeNo, Notifier};
use tracing::{debug, warn};

use crate::types::{Ino, Name};

/// Sends invalidations, never from a thread that serves requests: the kernel may hold locks that such a request waits for.
#[derive(Default)]
pub(super) struct Notices {
    notifier: OnceLock<Notifier>,
}

impl Notices {
    /// Names the session to notify; before that, the kernel has cached nothing.
    pub(super) fn attach(&self, notifier: Notifier) {
        let _only_once = self.notifier.set(notifier);
    }

    /// Makes the kernel ask for these names again. Rare (a relabel), so a thread of its own costs nothing that counts.
    pub(super) fn forget_names(&self, names: Vec<(Ino, Name)>) {
        let Some(notifier) = self.notifier.get().cloned() else { return };
        let send = move || {
            for (dir, name) in names {
                if let Err(error) =
                    notifier.inval_entry(INodeNo(dir.get()), OsStr::from_bytes(name.as_bytes()))
                {
                    debug!(%error, "invalidation of an entry was refused");
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("notify".to_owned()).spawn(send) {
            warn!(%error, "cannot tell the kernel of changed names");
        }
    }

    /// Makes the kernel ask for the attributes of an inode again. Safe from anywhere: with a negative offset the kernel touches no
    /// page and waits for no lock (`fuse_reverse_inval_inode`).
    pub(super) fn forget_attr(&self, ino: Ino) {
        if let Some(notifier) = self.notifier.get()
            && let Err(error) = notifier.inval_inode(INodeNo(ino.get()), -1, 0)
        {
            debug!(%error, "invalidation of attributes was refused");
        }
    }
}
