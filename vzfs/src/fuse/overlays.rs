//! What an overlayfs on top of a VE needs that the protocol does not tell.
//!
//! # Copies
//! A chown takes setuid, setgid and capabilities away. When overlayfs copies a file up it sets the mode first and the owner then, and wants
//! to keep all; both come as the same request. But for chown(2) the kernel asks for `security.capability` right before it changes the owner
//! (`notify_change`, `ATTR_KILL_PRIV`), and overlayfs, which does not want anything taken away, does not. So a mode and then an owner, for
//! one inode by one thread with no such question in between, is a copy. Were a chown(2) ever taken for one, its caller would keep what it
//! has itself set just before.
//!
//! # Names that overlayfs keeps
//! overlayfs holds the entry by which it found a file, and asks the kernel's FUSE to revalidate it whenever the file is used again, under
//! whichever name. Where that fails the program gets `ESTALE`, again and again: overlayfs does not look for another entry. When one of several
//! hard links is removed, the kernel has its entry looked up again if it is used; it is, when that was the entry by which overlayfs knows the
//! file. So such a [removed](Overlays::removed) name is remembered, and an overlayfs that [revalidates](Overlays::kept) it is given the inode
//! that it had. Who asks is told from the kernel stack of the thread that waits for the answer; where that cannot be seen, nobody is taken for
//! an overlayfs.

use std::collections::HashMap;
use std::fs;

use parking_lot::Mutex;

use crate::types::{Ino, Name, NameRef};

/// Threads that are remembered; each costs a few bytes, and none needs it for long.
const MAX_THREADS: usize = 1024;
/// Removed names that are remembered. They go with their inodes; a program that makes and removes hard links all the time stays below it
/// when it has not more than so many of them at a time. What is beyond it is forgotten, and may be `ESTALE`.
const MAX_REMOVED: usize = 4096;
/// Files that one name had. With more than two it is luck which the kernel gets.
const MAX_REMOVED_OF_NAME: usize = 4;

/// What is remembered of overlayfs on top of one mount.
#[derive(Default)]
pub(super) struct Overlays {
    /// The inode whose mode each thread has set last.
    modes: Mutex<HashMap<u32, Ino>>,
    /// What each name had, the last one last.
    removed: Mutex<HashMap<(Ino, Name), Vec<Removed>>>,
}

/// A name that an overlayfs removed, of an inode that has others.
#[derive(Clone, Copy)]
struct Removed {
    ino: Ino,
    /// Whether the entry was revalidated; it then stays valid for ever.
    answered: bool,
}

/// What the thread behind a request does on behalf of an overlayfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asking {
    /// It is not known to be an overlayfs.
    Other,
    /// Something, but no revalidation.
    Overlay,
    /// Whether an entry that it has is still valid.
    Revalidation,
}

impl Asking {
    /// From the functions that a thread is in; it waits for us, so they do not change.
    pub(super) fn of(thread: u32) -> Asking {
        // Only root may read it, and not every kernel has it.
        fs::read_to_string(format!("/proc/{thread}/stack"))
            .map_or(Asking::Other, |stack| Asking::parse(&stack))
    }

    /// Lines like `[<0>] ovl_lookup+0x1a/0x30 [overlay]`.
    fn parse(stack: &str) -> Asking {
        let functions = || stack.lines().filter_map(|line| line.split_whitespace().nth(1));
        if !functions().any(|function| function.starts_with("ovl_")) {
            Asking::Other
        } else if functions().any(|function| function.starts_with("fuse_dentry_revalidate")) {
            Asking::Revalidation
        } else {
            Asking::Overlay
        }
    }
}

impl Overlays {
    /// A thread has set the mode of an inode, and nothing else.
    pub(super) fn mode_set(&self, thread: u32, ino: Ino) {
        let mut modes = self.modes.lock();
        if modes.len() >= MAX_THREADS {
            modes.clear();
        }
        modes.insert(thread, ino);
    }

    /// A thread asks for the capabilities of some inode.
    pub(super) fn capability_asked(&self, thread: u32) {
        self.modes.lock().remove(&thread);
    }

    /// Whether a thread that changes the owner of an inode copies it.
    pub(super) fn copies(&self, thread: u32, ino: Ino) -> bool {
        self.modes.lock().remove(&thread) == Some(ino)
    }

    /// An overlayfs has removed a name of an inode that has others.
    pub(super) fn removed(&self, dir: Ino, name: NameRef<'_>, ino: Ino) {
        let mut removed = self.removed.lock();
        if removed.len() >= MAX_REMOVED {
            removed.clear();
        }
        let earlier = removed.entry((dir, name.to_name())).or_default();
        earlier.retain(|other| other.ino != ino);
        if earlier.len() >= MAX_REMOVED_OF_NAME {
            earlier.remove(0);
        }
        earlier.push(Removed { ino, answered: false });
    }

    /// The inode to give to an overlayfs that revalidates a name, in place of the one that the name has `now`, if any. `asking` is called for
    /// remembered names only.
    ///
    /// A name that several files had is asked for by several entries, which the request does not tell apart. Those that were not revalidated
    /// yet come first, because the entry of what has the name now is valid already. After a wrong guess the kernel asks once more, and gets
    /// the next.
    pub(super) fn kept(
        &self,
        dir: Ino,
        name: NameRef<'_>,
        now: Option<Ino>,
        asking: impl FnOnce() -> Asking,
    ) -> Option<Ino> {
        if self.removed.lock().is_empty() {
            return None;
        }
        let key = (dir, name.to_name());
        if !self.removed.lock().contains_key(&key) || asking() != Asking::Revalidation {
            return None;
        }
        let mut removed = self.removed.lock();
        let earlier = removed.get_mut(&key)?;
        let unanswered = earlier.iter().rposition(|removed| !removed.answered);
        let place = if now.is_some() { unanswered? } else { unanswered.unwrap_or(0) };
        let ino = earlier.get(place)?.ino;
        earlier.remove(place);
        earlier.push(Removed { ino, answered: true });
        Some(ino)
    }

    /// The kernel has forgotten an inode, and with it its entries.
    pub(super) fn forget(&self, ino: Ino) {
        self.removed.lock().retain(|_, earlier| {
            earlier.retain(|removed| removed.ino != ino);
            !earlier.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_and_then_an_owner_is_a_copy() {
        let overlays = Overlays::default();
        let (one, two) = (Ino::new(10).expect("legal"), Ino::new(11).expect("legal"));
        overlays.mode_set(1, one);
        assert!(!overlays.copies(2, one), "another thread");
        assert!(overlays.copies(1, one));
        assert!(!overlays.copies(1, one), "once");
        overlays.mode_set(1, one);
        assert!(!overlays.copies(1, two), "another inode");
        overlays.mode_set(1, one);
        overlays.capability_asked(1);
        assert!(!overlays.copies(1, one), "a chown(2)");
        for thread in 0..5000 {
            overlays.mode_set(thread, one);
        }
        assert!(overlays.modes.lock().len() <= MAX_THREADS);
    }

    #[test]
    fn stacks_are_read() {
        let lookup = "[<0>] request_wait_answer+0x1/0x2\n[<0>] fuse_lookup+0x1/0x2\n[<0>] ovl_lookup+0x1/0x2 [overlay]\n";
        assert_eq!(Asking::parse(lookup), Asking::Overlay);
        let revalidation = lookup.replace("fuse_lookup", "fuse_dentry_revalidate");
        assert_eq!(Asking::parse(&revalidation), Asking::Revalidation);
        assert_eq!(Asking::parse(&revalidation.replace("ovl_lookup", "lookup_fast")), Asking::Other);
        assert_eq!(Asking::parse(""), Asking::Other);
        assert_eq!(Asking::of(std::process::id()), Asking::Other);
    }

    #[test]
    fn removed_names_are_kept_for_overlays() {
        let overlays = Overlays::default();
        let [dir, old, new] = [10, 11, 12].map(|number| Ino::new(number).expect("legal"));
        let name = NameRef::new(b"name").expect("legal");
        let kept = |now, asking| overlays.kept(dir, name, now, || asking);
        assert_eq!(kept(None, Asking::Revalidation), None);
        overlays.removed(dir, name, old);
        assert_eq!(kept(None, Asking::Other), None);
        assert_eq!(kept(None, Asking::Overlay), None, "a look-up finds what is there");
        assert_eq!(overlays.kept(old, name, None, || Asking::Revalidation), None, "another folder");
        assert_eq!(kept(Some(new), Asking::Revalidation), Some(old), "the removed one is asked for first");
        assert_eq!(kept(Some(new), Asking::Revalidation), None, "then the one that has the name");
        assert_eq!(kept(None, Asking::Revalidation), Some(old));
        overlays.removed(dir, name, new);
        let both = [(); 3].map(|()| kept(None, Asking::Revalidation));
        assert_eq!(both, [Some(new), Some(old), Some(new)], "in turn");
        overlays.forget(new);
        assert_eq!(kept(None, Asking::Revalidation), Some(old));
        overlays.forget(old);
        assert_eq!(kept(None, Asking::Revalidation), None);
        for number in 0..MAX_REMOVED as u64 + 10 {
            overlays.removed(Ino::new(number + 1).expect("legal"), name, old);
        }
        assert!(overlays.removed.lock().len() <= MAX_REMOVED);
    }
}
