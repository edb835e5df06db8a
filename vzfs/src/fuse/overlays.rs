//! Tells an overlayfs on top of a VE that copies a file up from a program that calls chown(2).
//!
//! A chown takes setuid, setgid and capabilities away. When overlayfs copies a file up it sets the mode first and the owner then, and wants
//! to keep all; both come as the same request. But for chown(2) the kernel asks for `security.capability` right before it changes the owner
//! (`notify_change`, `ATTR_KILL_PRIV`), and overlayfs, which does not want anything taken away, does not. So a mode and then an owner, for
//! one inode by one thread with no such question in between, is a copy. Were a chown(2) ever taken for one, its caller would keep what it
//! has itself set just before.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::types::Ino;

/// Threads that are remembered; each costs a few bytes, and none needs it for long.
const MAX_THREADS: usize = 1024;

/// The inode whose mode each thread has set last.
#[derive(Default)]
pub(super) struct Overlays {
    modes: Mutex<HashMap<u32, Ino>>,
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
}
