//! How many requests of each kind the kernel has sent: the cost of a workload over FUSE is their number.
//!
//! `forget` counts inodes: the kernel puts many into one request, which fuser takes apart, and waits for no answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::wakeful::Wakeful;

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

/// What a request fails with because of the host.
const FAILURES: [(i32, &str); 7] = [
    (libc::EDQUOT, "EDQUOT"),
    (libc::EIO, "EIO"),
    (libc::EMFILE, "EMFILE"),
    (libc::ENFILE, "ENFILE"),
    (libc::ENOMEM, "ENOMEM"),
    (libc::ENOSPC, "ENOSPC"),
    (libc::EROFS, "EROFS"),
];

/// The requests of one mount since this daemon serves it.
#[derive(Debug)]
pub(super) struct Requests {
    numbers: [AtomicU64; NAMES.len()],
    failed: [AtomicU64; FAILURES.len()],
    wakeful: Option<Arc<Wakeful>>,
}

impl Requests {
    pub(super) fn new(wakeful: Option<Arc<Wakeful>>) -> Self {
        Requests {
            numbers: [const { AtomicU64::new(0) }; NAMES.len()],
            failed: [const { AtomicU64::new(0) }; FAILURES.len()],
            wakeful,
        }
    }

    /// Counts one. Nothing is ordered by it.
    pub(super) fn count(&self, kind: Kind) {
        self.numbers[kind as usize].fetch_add(1, Ordering::Relaxed);
        if let Some(wakeful) = &self.wakeful {
            wakeful.note();
        }
    }

    /// The kinds that there were, with their numbers.
    pub(super) fn counted(&self) -> BTreeMap<&'static str, u64> {
        some(NAMES.iter().copied(), &self.numbers)
    }

    /// Counts one that failed, if it is of those that are counted.
    pub(super) fn failed(&self, errno: i32) {
        if let Some(at) = FAILURES.iter().position(|(code, _)| *code == errno) {
            self.failed[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The names of what requests have failed with because of the host, with their numbers.
    pub(super) fn failures(&self) -> BTreeMap<&'static str, u64> {
        some(FAILURES.iter().map(|(_, name)| *name), &self.failed)
    }
}

/// Those that are not 0.
fn some(names: impl Iterator<Item = &'static str>, numbers: &[AtomicU64]) -> BTreeMap<&'static str, u64> {
    let numbers = numbers.iter().map(|number| number.load(Ordering::Relaxed));
    names.zip(numbers).filter(|(_, number)| *number > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_counted_under_its_name() {
        let requests = Requests::new(None);
        assert!(requests.counted().is_empty());
        requests.count(Kind::CopyFileRange);
        requests.count(Kind::Write);
        requests.count(Kind::Write);
        requests.count(Kind::Lookup);
        assert_eq!(requests.counted(), BTreeMap::from([("copy_file_range", 1), ("lookup", 1), ("write", 2)]));
    }

    #[test]
    fn failures_of_the_host_are_counted_and_no_others() {
        let requests = Requests::new(None);
        for errno in [libc::ENOENT, libc::EIO, libc::ENOSPC, libc::EIO, libc::EPERM] {
            requests.failed(errno);
        }
        assert_eq!(requests.failures(), BTreeMap::from([("EIO", 2), ("ENOSPC", 1)]));
    }
}
