//! Memory that outlives the process: words in a memfd.
//!
//! No disk is behind it, and its pages are allocated before they are used: where they cannot be read all the same, memory or swap has failed, and the
//! daemon ends as any program does then.

use std::fs::File;
use std::io;
use std::sync::atomic::AtomicU64;

use memmap2::{MmapOptions, MmapRaw};

/// A part of a file, mapped and shared, as 64-bit words. Whoever maps the file after this process has died finds every store that was made.
pub struct SharedWords {
    map: MmapRaw,
}

impl SharedWords {
    /// Maps `words` words of `file` from the byte `offset` on, which the file must have: their pages are allocated here, so that no access
    /// meets a page that cannot be had.
    ///
    /// # Errors
    /// `ENOMEM` or `ENOSPC` when there is no room; `EINVAL` when `offset` is no multiple of the page size.
    pub fn map(file: &File, offset: u64, words: usize) -> io::Result<SharedWords> {
        let bytes = words * size_of::<u64>();
        rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), offset, bytes as u64)?;
        let map = MmapOptions::new().offset(offset).len(bytes).map_raw(file)?;
        Ok(SharedWords { map })
    }

    /// The words.
    pub fn words(&self) -> &[AtomicU64] {
        let start = self.map.as_mut_ptr().cast::<AtomicU64>();
        // SAFETY: the mapping is `len` bytes long, lives as long as `self`, starts at a page (so the words are aligned), and is only ever
        // accessed through these atomics, by this process or by one that has it after this one.
        unsafe { std::slice::from_raw_parts(start, self.map.len() / size_of::<u64>()) }
    }
}
