//! What the machine's memory and a disk hold.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// What is in use, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Cached content of files.
    pub page_cache_bytes: u64,
    /// The kernel's own objects: directory entries, inodes and the like.
    pub slab_bytes: u64,
    /// Memory of the system's processes, what is shared divided by who shares it.
    pub processes_bytes: u64,
    /// Space on the disk.
    pub disk_bytes: u64,
}

impl Usage {
    /// Of this machine, these processes and the filesystem of `disk`.
    ///
    /// # Errors
    /// `/proc` or the filesystem cannot be asked.
    pub fn now(processes: &[u32], disk: &Path) -> Result<Usage> {
        let memory = fs::read_to_string("/proc/meminfo")?;
        let of = |name| field_bytes(&memory, name).with_context(|| format!("/proc/meminfo has no {name}"));
        let mut processes_bytes = 0;
        for process in processes {
            let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
            processes_bytes += field_bytes(&rollup, "Pss").context("a process has no Pss")?;
        }
        let space = rustix::fs::statvfs(disk)?;
        Ok(Usage {
            // Memory of tmpfs is counted as cache.
            page_cache_bytes: (of("Cached")? + of("Buffers")?).saturating_sub(of("Shmem")?),
            slab_bytes: of("Slab")?,
            processes_bytes,
            disk_bytes: (space.f_blocks - space.f_bfree) * space.f_frsize,
        })
    }

    /// What came since `before`; what shrank counts as nothing.
    pub fn since(&self, before: &Usage) -> Usage {
        Usage {
            page_cache_bytes: self.page_cache_bytes.saturating_sub(before.page_cache_bytes),
            slab_bytes: self.slab_bytes.saturating_sub(before.slab_bytes),
            processes_bytes: self.processes_bytes.saturating_sub(before.processes_bytes),
            disk_bytes: self.disk_bytes.saturating_sub(before.disk_bytes),
        }
    }

    /// All memory.
    pub fn memory_bytes(&self) -> u64 {
        self.page_cache_bytes + self.slab_bytes + self.processes_bytes
    }
}

/// Memory that programs can have without any being written to a disk.
///
/// # Errors
/// `/proc` cannot be asked.
pub fn available_bytes() -> Result<u64> {
    field_bytes(&fs::read_to_string("/proc/meminfo")?, "MemAvailable")
        .context("/proc/meminfo has no MemAvailable")
}

/// Resident memory of a process, if there is one.
pub fn resident_bytes(process: u32) -> Option<u64> {
    field_bytes(&fs::read_to_string(format!("/proc/{process}/status")).ok()?, "VmRSS")
}

/// A line `NAME: NUMBER kB`, in bytes.
pub(crate) fn field_bytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_by_their_whole_name() {
        let text = "MemTotal:  10 kB\nCachedX:  1 kB\nCached:   2048 kB\nBroken: x kB\n";
        assert_eq!(field_bytes(text, "Cached"), Some(2 << 20));
        assert_eq!(field_bytes(text, "Broken"), None);
        assert_eq!(field_bytes(text, "Slab"), None);
    }

    #[test]
    fn this_machine_uses_memory() {
        let usage = Usage::now(&[std::process::id()], Path::new("/")).expect("readable");
        assert!(usage.slab_bytes > 0 && usage.processes_bytes > 0 && usage.disk_bytes > 0, "{usage:?}");
        assert_eq!(usage.since(&usage), Usage::default());
        assert!(available_bytes().expect("readable") > 0 && resident_bytes(std::process::id()) > Some(0));
    }
}
