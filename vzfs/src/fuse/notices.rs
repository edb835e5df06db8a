//! Telling the kernel to ask again.
//!
//! A notice of a name or of a directory's content waits for locks in the kernel, and nothing ends that wait but the answers that their holders
//! wait for. So such notices are written by a [`Herald`] if there is one: another process, so that this one can be killed meanwhile.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, OnceLock};

use fuser::{INodeNo, Notifier};
use parking_lot::Mutex;
use tracing::{debug, warn};

use crate::types::{Ino, Name};
use crate::volume::Relabelled;

/// `FUSE_NOTIFY_INVAL_INODE` and `FUSE_NOTIFY_INVAL_ENTRY` (linux/fuse.h).
const INVAL_INODE: i32 = 2;
const INVAL_ENTRY: i32 = 3;

/// Writes notices to the kernel in place of this process.
pub trait Herald: Send + Sync + std::fmt::Debug {
    /// Writes them one after the other, each of which begins with its length; returns when that is done.
    fn write(&self, notices: &[u8]);
}

/// Sends invalidations, never from a thread that serves requests: the kernel may hold locks that such a request waits for.
#[derive(Default)]
pub(super) struct Notices {
    notifier: OnceLock<Notifier>,
    herald: OnceLock<Arc<dyn Herald>>,
    sending: Mutex<()>,
}

impl Notices {
    /// Names the session to notify; before that, the kernel has cached nothing.
    pub(super) fn attach(&self, notifier: Notifier, herald: Option<Arc<dyn Herald>>) {
        let _only_once = self.notifier.set(notifier);
        if let Some(herald) = herald {
            let _only_once = self.herald.set(herald);
        }
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
                notices.forget_locked(dirs.into_iter(), names.iter());
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
        for ino in inodes {
            self.forget_attr(ino);
        }
        self.forget_locked(dirs, names);
    }

    /// What waits for locks: listings, then names. All in one, as each time the herald is asked two processes wait for a processor.
    fn forget_locked<'a>(
        &self,
        dirs: impl Iterator<Item = Ino>,
        names: impl Iterator<Item = &'a (Ino, Name)>,
    ) {
        let Some(herald) = self.herald.get() else {
            dirs.for_each(|dir| self.forget_inode(dir, 0));
            return names.for_each(|(dir, name)| self.forget_name(*dir, name));
        };
        let mut notices = Vec::new();
        dirs.for_each(|dir| put_listing_notice(&mut notices, dir));
        names.for_each(|(dir, name)| put_entry_notice(&mut notices, *dir, name));
        if !notices.is_empty() {
            herald.write(&notices);
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

/// Forget a name: the directory, the length of the name, no flags, the name and a zero byte.
fn put_entry_notice(notices: &mut Vec<u8>, dir: Ino, name: &Name) {
    let name = name.as_bytes();
    // A name has at most 255 bytes.
    let len = (name.len() as u32).to_ne_bytes();
    put_notice(notices, INVAL_ENTRY, &[&dir.get().to_ne_bytes(), &len, &[0; 4], name, &[0]]);
}

/// Forget an inode's attributes and all its cached content: from offset 0, to the end.
fn put_listing_notice(notices: &mut Vec<u8>, dir: Ino) {
    put_notice(notices, INVAL_INODE, &[&dir.get().to_ne_bytes(), &[0; 8], &[0; 8]]);
}

/// The header of a notice (32 bits of length, 32 bits of code, 64 bits of zero), and its body.
fn put_notice(notices: &mut Vec<u8>, code: i32, body: &[&[u8]]) {
    const HEADER_BYTES: usize = 16;
    // Some hundreds of bytes.
    let len = HEADER_BYTES + body.iter().map(|part| part.len()).sum::<usize>();
    notices.extend_from_slice(&(len as u32).to_ne_bytes());
    notices.extend_from_slice(&code.to_ne_bytes());
    notices.extend_from_slice(&[0; 8]);
    body.iter().for_each(|part| notices.extend_from_slice(part));
}
