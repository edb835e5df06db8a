//! Space on the store's disk that is kept for the database.
//!
//! To open, the database writes its log anew into tables. On a disk without a free block it could not, and with it no VE could remove the files that fill
//! the disk. So a file of some size stands by, which is given up for that, and made again when there is space.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use crate::meta::MAX_LOG_BYTES;
use crate::volume::free_bytes;

/// All that a log can hold, which goes on growing while the tables are written that let go of it, and the small files around it.
const FULL_BYTES: u64 = 8 * MAX_LOG_BYTES + (8 << 20);
/// The database sets so much aside for its log, by the size of its write buffers, and some for small files.
pub(super) const LOG_ROOM_BYTES: u64 = 10 << 20;
/// On a disk with less free than so many times that, programs need it more.
const ROOM_FACTOR: u64 = 4;
/// As good as there are.
const STEP_BYTES: u64 = 4 << 20;

/// The file.
pub(super) struct Reserve {
    path: PathBuf,
}

impl Reserve {
    pub(super) fn at(path: PathBuf) -> Reserve {
        Reserve { path }
    }

    /// Makes it, of its full size if there is space enough. Once there is one, it takes what it can get to be whole again. A host filesystem that
    /// cannot reserve space goes without.
    pub(super) fn keep(&self) {
        if let Err(error) = self.try_keep() {
            tracing::warn!(path = %self.path.display(), %error, "no space is reserved for the database");
        }
    }

    fn try_keep(&self) -> io::Result<()> {
        let has = self.allocated()?;
        if has.is_some_and(|bytes| bytes >= FULL_BYTES)
            || (has.is_none() && self.free_bytes()? < ROOM_FACTOR * FULL_BYTES)
        {
            return Ok(());
        }
        let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(&self.path)?;
        let mut wanted = FULL_BYTES;
        while wanted >= STEP_BYTES && wanted > has.unwrap_or(0) {
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, wanted) {
                Ok(()) => return Ok(()),
                Err(Errno::NOSPC | Errno::DQUOT) => wanted -= STEP_BYTES,
                Err(Errno::OPNOTSUPP) => return fs::remove_file(&self.path),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Bytes of space in it, if it is there.
    fn allocated(&self) -> io::Result<Option<u64>> {
        match fs::metadata(&self.path) {
            Ok(found) => Ok(Some(found.blocks().saturating_mul(512))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(free_bytes(&rustix::fs::statvfs(self.path.parent().unwrap_or(&self.path))?))
    }

    /// Bytes of space in it.
    pub(super) fn bytes(&self) -> u64 {
        self.allocated().ok().flatten().unwrap_or(0)
    }

    /// Whether the database may need it now: there is less for the store than it can take to open.
    pub(super) fn is_needed(&self) -> bool {
        self.is_low() || (self.bytes() > 0 && self.is_refused(FULL_BYTES))
    }

    /// The same as the disk says it, which need not know of a quota.
    pub(super) fn is_low(&self) -> bool {
        self.bytes() > 0 && self.free_bytes().is_ok_and(|free| free < FULL_BYTES)
    }

    /// Whether the host does not give the store so much more, whatever the disk has: it is tried with a file that has no name. A host filesystem that
    /// cannot tell refuses nothing.
    pub(super) fn is_refused(&self, bytes: u64) -> bool {
        let folder = self.path.parent().unwrap_or(&self.path);
        let nameless = OFlags::TMPFILE.bits().cast_signed();
        let refused = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        };
        match File::options().write(true).custom_flags(nameless).mode(0o600).open(folder) {
            Ok(file) => {
                let given = rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes);
                // At once: XFS would do that some time after the file is closed.
                let given_back = file.set_len(0);
                given.map_err(io::Error::from).and(given_back).is_err_and(|error| refused(&error))
            }
            Err(error) => refused(&error),
        }
    }

    /// Gives its space up. Tells whether there was any.
    pub(super) fn give_up(&self) -> bool {
        let emptied = File::options().write(true).open(&self.path).and_then(|file| {
            let had = file.metadata()?.blocks() > 0;
            // Over a quota Btrfs lets files be removed, not be cut off.
            file.set_len(0).or_else(|_| fs::remove_file(&self.path)).map(|()| had)
        });
        emptied.unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(path = %self.path.display(), %error, "the space reserved for the database cannot be given up");
            }
            false
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, OwnedFd};

    use rustix::mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    };

    use super::*;

    #[test]
    fn it_is_made_given_up_and_made_again() {
        let dir = tempfile::tempdir_in("/var/tmp").expect("a folder");
        let reserve = Reserve::at(dir.path().join("reserve"));
        assert!(!reserve.give_up(), "there is none");
        for _ in 0..2 {
            reserve.keep();
            let bytes = || fs::metadata(dir.path().join("reserve")).expect("there").blocks() * 512;
            assert!(bytes() >= FULL_BYTES, "{}", bytes());
            assert!(reserve.give_up());
            assert_eq!(bytes(), 0);
            assert!(!reserve.give_up(), "there is nothing in it");
        }
    }

    /// A filesystem in memory that is mounted nowhere, and its root.
    fn small_disk(size: &str) -> rustix::io::Result<(OwnedFd, PathBuf)> {
        let disk = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&disk, "size", size)?;
        fsconfig_create(&disk)?;
        let root = fsmount(&disk, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        let path = format!("/proc/self/fd/{}/", root.as_raw_fd()).into();
        Ok((root, path))
    }

    /// On a disk of its own: ext4 gives out all that it has before it refuses, and other tests would find nothing there.
    #[test]
    fn what_the_disk_does_not_have_is_refused() {
        let (_root, folder) = match small_disk("8m") {
            Err(Errno::PERM) => return eprintln!("SKIPPED: only root makes filesystems"),
            disk => disk.expect("mounted"),
        };
        let reserve = Reserve::at(folder.join("reserve"));
        assert!(!reserve.is_refused(1 << 20));
        assert!(reserve.is_refused(9 << 20));
        assert!(!reserve.is_refused(8 << 20), "nothing is left of what was tried");
        assert_eq!(fs::read_dir(folder).expect("listed").count(), 0);
    }
}
