//! Who has locked a file of a mount. Locks are the kernel's own here: the daemon is not asked about them, and `/proc/locks` (proc(5)) shows them.

use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use crate::types::Ino;

/// The process that holds a lock for writing on an inode of the filesystem that is mounted here. `None` also when that cannot be found out. Sends no request to the
/// filesystem.
pub(super) fn holder(mountpoint: &Path, ino: Ino) -> Option<u32> {
    let root = statx(CWD, mountpoint, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE).ok()?;
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let inode = format!("{:02x}:{:02x}:{}", root.stx_dev_major, root.stx_dev_minor, ino.get());
    locks.lines().find_map(|line| holder_of(line, &inode))
}

/// `1: POSIX  ADVISORY  WRITE 1234 00:2e:4503599627370500 0 EOF`; who waits for a lock has `->` behind the number.
fn holder_of(line: &str, inode: &str) -> Option<u32> {
    let mut words = line.split_ascii_whitespace().skip(3);
    let (mode, pid, locked) = (words.next()?, words.next()?, words.next()?);
    if mode == "WRITE" && locked == inode { pid.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn lines_are_understood() {
        let of = |line| holder_of(line, "00:2e:77");
        assert_eq!(of("1: POSIX  ADVISORY  WRITE 1234 00:2e:77 0 EOF"), Some(1234));
        assert_eq!(of("1: FLOCK  ADVISORY  WRITE 1234 00:2e:77 0 EOF"), Some(1234));
        for other in [
            "1: POSIX  ADVISORY  READ  1234 00:2e:77 0 EOF",
            "1: POSIX  ADVISORY  WRITE 1234 00:2e:78 0 EOF",
            "1: -> POSIX  ADVISORY  WRITE 1234 00:2e:77 0 EOF",
            // An open file description's lock has no process.
            "1: OFDLCK ADVISORY  WRITE -1 00:2e:77 0 EOF",
            "1: POSIX",
            "",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn who_has_locked_a_file_is_found() {
        let dir = tempfile::tempdir_in("/var/tmp").expect("a folder");
        let file = std::fs::File::create(dir.path().join("lock")).expect("a file");
        let ino = Ino::new(file.metadata().expect("there").ino()).expect("small");
        assert_eq!(holder(dir.path(), ino), None);
        rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::LockExclusive).expect("locked");
        assert_eq!(holder(dir.path(), ino), Some(std::process::id()));
    }
}
