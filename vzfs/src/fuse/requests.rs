//! How many requests of each kind the kernel has sent: the cost of a workload over FUSE is their number.
//!
//! `forget` counts inodes: the kernel puts many into one request, which fuser takes apart, and waits for no answer.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Declares the kinds of requests with the names that people know them by.
macro_rules! kinds {
    ($($kind:ident $name:literal,)*) => {
        /// A kind of request.
        #[derive(Clone, Copy, Debug)]
        pub(super) enum Kind { $($kind,)* }
        const NAMES: &[&str] = &[$($name,)*];
    };
}

kinds! {
    CopyFileRange "copy_file_range",
    Create "create",
    Fallocate "fallocate",
    Flush "flush",
    Forget "forget",
    Fsync "fsync",
    Fsyncdir "fsyncdir",
    Getattr "getattr",
    Getxattr "getxattr",
    Ioctl "ioctl",
    Link "link",
    Listxattr "listxattr",
    Lookup "lookup",
    Lseek "lseek",
    Mkdir "mkdir",
    Mknod "mknod",
    Open "open",
    Opendir "opendir",
    Poll "poll",
    Read "read",
    Readdir "readdir",
    Readdirplus "readdirplus",
    Readlink "readlink",
    Release "release",
    Removexattr "removexattr",
    Rename "rename",
    Rmdir "rmdir",
    Setattr "setattr",
    Setxattr "setxattr",
    Statfs "statfs",
    Symlink "symlink",
    Unlink "unlink",
    Write "write",
}

/// The requests of one mount since this daemon serves it.
#[derive(Debug)]
pub(super) struct Requests([AtomicU64; NAMES.len()]);

impl Default for Requests {
    fn default() -> Self {
        Requests([const { AtomicU64::new(0) }; NAMES.len()])
    }
}

impl Requests {
    /// Counts one. Nothing is ordered by it.
    pub(super) fn count(&self, kind: Kind) {
        self.0[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The kinds that there were, with their numbers.
    pub(super) fn counted(&self) -> BTreeMap<&'static str, u64> {
        let numbers = self.0.iter().map(|number| number.load(Ordering::Relaxed));
        NAMES.iter().copied().zip(numbers).filter(|(_, number)| *number > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_counted_under_its_name() {
        let requests = Requests::default();
        assert!(requests.counted().is_empty());
        requests.count(Kind::CopyFileRange);
        requests.count(Kind::Write);
        requests.count(Kind::Write);
        requests.count(Kind::Lookup);
        assert_eq!(requests.counted(), BTreeMap::from([("copy_file_range", 1), ("lookup", 1), ("write", 2)]));
    }
}
