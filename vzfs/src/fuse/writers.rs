//! Files that the kernel may be writing to by itself.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::ledger::Handles;
use crate::types::Ino;

/// Files that the kernel may be writing to by itself: it changes their size and times, so it must not cache those. That they are closed is not
/// the end of it, as a memory map outlives the descriptor that it was made with.
#[derive(Default)]
pub(super) struct Writers {
    /// Handles open for writing in passthrough mode; 0 for a file whose maps are to be looked for.
    by_ino: Mutex<HashMap<Ino, u32>>,
    /// Handles open for writing that the daemon serves.
    served: Mutex<HashMap<Ino, u32>>,
}

/// What a file is to [`Writers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// The kernel does not write to it.
    No,
    /// It did until now: what was known of the file before this answer may be old.
    NoLonger,
    /// It may at any time.
    Still,
}

impl Writers {
    /// Those of a mount that is taken over: what had writers may be mapped, and any handle that the daemon serves may be for writing.
    pub(super) fn adopt(used: &[(Ino, Handles)]) -> Writers {
        let written = used.iter().filter(|(_, handles)| handles.written);
        let served = used.iter().filter(|(_, handles)| handles.served > 0);
        Writers {
            by_ino: Mutex::new(written.map(|(ino, handles)| (*ino, handles.writers)).collect()),
            served: Mutex::new(served.map(|(ino, handles)| (*ino, handles.served)).collect()),
        }
    }

    /// A handle for writing that the daemon serves is opened.
    pub(super) fn add_served(&self, ino: Ino) {
        *self.served.lock().entry(ino).or_insert(0) += 1;
    }

    /// A handle for writing that the daemon serves is closed.
    pub(super) fn drop_served(&self, ino: Ino) {
        let mut served = self.served.lock();
        if let Some(handles) = served.get_mut(&ino) {
            *handles = handles.saturating_sub(1);
            if *handles == 0 {
                served.remove(&ino);
            }
        }
    }

    /// Whether somebody may have the file open for writing.
    pub(super) fn any(&self, ino: Ino) -> bool {
        self.by_ino.lock().get(&ino).is_some_and(|handles| *handles > 0)
            || self.served.lock().contains_key(&ino)
    }

    /// A handle for writing is opened.
    pub(super) fn add(&self, ino: Ino) {
        *self.by_ino.lock().entry(ino).or_insert(0) += 1;
    }

    /// A handle for writing is closed.
    pub(super) fn drop(&self, ino: Ino) {
        if let Some(handles) = self.by_ino.lock().get_mut(&ino) {
            *handles = handles.saturating_sub(1);
        }
    }

    /// The kernel has forgotten the inode, which it does not while it is mapped.
    pub(super) fn forget(&self, ino: Ino) {
        self.by_ino.lock().remove(&ino);
        self.served.lock().remove(&ino);
    }

    /// Whether the kernel writes to a file. `is_mapped` is asked only about a file that was closed, and no handle is added meanwhile.
    pub(super) fn state(&self, ino: Ino, is_mapped: impl FnOnce() -> bool) -> Written {
        let mut by_ino = self.by_ino.lock();
        match by_ino.get(&ino) {
            None => Written::No,
            Some(0) if !is_mapped() => {
                by_ino.remove(&ino);
                Written::NoLonger
            }
            Some(_) => Written::Still,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_until_its_last_map_is_gone() {
        let (writers, ino) = (Writers::default(), Ino::ROOT);
        assert_eq!(writers.state(ino, || unreachable!("it was never open")), Written::No);
        writers.add(ino);
        assert_eq!(writers.state(ino, || unreachable!("it is open")), Written::Still);
        writers.drop(ino);
        assert_eq!(writers.state(ino, || true), Written::Still);
        assert_eq!(writers.state(ino, || false), Written::NoLonger);
        assert_eq!(writers.state(ino, || unreachable!("it is known")), Written::No);
        writers.add(ino);
        writers.drop(ino);
        writers.forget(ino);
        assert_eq!(writers.state(ino, || unreachable!("it is forgotten")), Written::No);
    }

    #[test]
    fn who_may_write_is_known_in_both_modes() {
        let (writers, ino) = (Writers::default(), Ino::ROOT);
        assert!(!writers.any(ino));
        writers.add(ino);
        assert!(writers.any(ino));
        writers.drop(ino);
        assert!(!writers.any(ino));
        writers.add_served(ino);
        writers.add_served(ino);
        writers.drop_served(ino);
        assert!(writers.any(ino));
        assert_eq!(writers.state(ino, || false), Written::NoLonger, "the kernel does not write to it");
        writers.drop_served(ino);
        assert!(!writers.any(ino));
        let writers = Writers::adopt(&[(ino, Handles { served: 1, ..Handles::default() })]);
        assert!(writers.any(ino));
        writers.forget(ino);
        assert!(!writers.any(ino));
        let handles = Handles { writers: 1, written: true, ..Handles::default() };
        assert!(Writers::adopt(&[(ino, handles)]).any(ino));
        let writers = Writers::adopt(&[(ino, Handles { writers: 0, ..handles })]);
        assert!(!writers.any(ino));
        assert_eq!(writers.state(ino, || true), Written::Still, "it may be mapped");
    }
}
