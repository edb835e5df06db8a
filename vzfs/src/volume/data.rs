//! Private data files: one host file per private regular file that has content of its own.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, SeekFrom, Timespec, Timestamps};

use super::VolumeError;
use crate::sys;
use crate::types::{Timestamp, VeId, Watermark};

/// The folder of one VE's data files. It is made with the first of them, so that a VE that wrote nothing costs nothing.
#[derive(Debug)]
pub(super) struct DataFolder {
    /// The folder of all VEs, which exists.
    all: PathBuf,
    path: PathBuf,
    /// How many of the folder's entries are durable.
    entries: Watermark,
}

/// What the host knows of a data file.
#[derive(Clone, Copy, Debug)]
pub(super) struct HostStat {
    pub(super) size: u64,
    pub(super) blocks: u64,
    pub(super) atime: Timestamp,
    pub(super) mtime: Timestamp,
    pub(super) ctime: Timestamp,
}

impl DataFolder {
    pub(super) fn new(all: &Path, ve: VeId) -> Self {
        DataFolder { all: all.to_owned(), path: all.join(ve.to_string()), entries: Watermark::default() }
    }

    fn file(&self, id: u64) -> PathBuf {
        self.path.join(format!("{id:013x}"))
    }

    fn failed(&self, what: &str, id: u64) -> impl FnOnce(io::Error) -> VolumeError {
        VolumeError::io(format!("{what} private data file {}", self.file(id).display()))
    }

    /// Makes a new, empty file. A leftover of the same number (of an operation that a crash cut off) is replaced.
    pub(super) fn create(&self, id: u64) -> Result<File, VolumeError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let path = self.file(id);
        let file = options.open(&path).or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                return Err(error);
            }
            fs::create_dir_all(&self.path)?;
            options.open(&path)
        });
        self.entries.advance();
        file.map_err(self.failed("create", id))
    }

    /// Opens the file for reading and writing: who opens it for writing next shares it. Where the host's filesystem has made itself read-only, who does not
    /// want to `write` gets it for reading.
    pub(super) fn open(&self, id: u64, write: bool) -> Result<File, VolumeError> {
        let path = self.file(id);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Err(error) if !write && error.kind() == io::ErrorKind::ReadOnlyFilesystem => File::open(&path),
            file => file,
        };
        file.map_err(self.failed("open", id))
    }

    /// Whether any process, or a memory map of any, may write to the file; the caller must not have it open itself.
    pub(super) fn is_open_for_writing(&self, id: u64) -> Result<bool, VolumeError> {
        let asked = File::open(self.file(id)).and_then(|file| sys::is_open_for_writing(&file));
        asked.map_err(self.failed("ask for writers of", id))
    }

    /// Opens the file to look at its content; its times stay as they are.
    pub(super) fn open_unnoticed(&self, id: u64) -> Result<File, VolumeError> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NOATIME);
        options.open(self.file(id)).map_err(self.failed("open", id))
    }

    /// Whether any process, the kernel for a program in the VE included, has the file open or mapped, other than through `file`. When it
    /// cannot be told: yes.
    pub(super) fn is_open_elsewhere(file: &File) -> bool {
        sys::is_open_elsewhere(file).unwrap_or(true)
    }

    /// Sets times as [`set_times`] does.
    pub(super) fn set_times(
        &self,
        id: u64,
        atime: Option<Timestamp>,
        mtime: Option<Timestamp>,
    ) -> Result<(), VolumeError> {
        let set =
            rustix::fs::utimensat(CWD, self.file(id), &timestamps(atime, mtime), AtFlags::SYMLINK_NOFOLLOW);
        set.map_err(|errno| self.failed("set the time of", id)(errno.into()))
    }

    pub(super) fn stat(&self, id: u64) -> Result<HostStat, VolumeError> {
        fs::metadata(self.file(id)).map(|meta| HostStat::of(&meta)).map_err(self.failed("stat", id))
    }

    /// The same; `None` for a file that is not there.
    pub(super) fn stat_if_there(&self, id: u64) -> Result<Option<HostStat>, VolumeError> {
        match fs::metadata(self.file(id)) {
            Ok(meta) => Ok(Some(HostStat::of(&meta))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed("stat", id)(error)),
        }
    }

    /// Removes the file; that it is gone already is fine.
    pub(super) fn remove(&self, id: u64) -> Result<(), VolumeError> {
        match fs::remove_file(self.file(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.failed("remove", id)(error)),
            _ => Ok(()),
        }
    }

    /// All data files of a VE with the space they take on the host, in bytes. Other files in the folder are passed over.
    pub(super) fn list(&self) -> io::Result<Vec<(u64, u64)>> {
        let entries = match fs::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry?;
            let Some(id) = entry.file_name().to_str().and_then(|name| u64::from_str_radix(name, 16).ok())
            else {
                continue;
            };
            match entry.metadata() {
                Ok(meta) => files.push((id, HostStat::of(&meta).blocks * 512)),
                // Removed since the folder was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(files)
    }

    pub(super) fn space(&self) -> Result<rustix::fs::StatVfs, VolumeError> {
        rustix::fs::statvfs(&self.all)
            .map_err(|errno| VolumeError::io(format!("statvfs {}", self.all.display()))(errno.into()))
    }

    /// Makes the folder's own entries durable.
    pub(super) fn sync(&self) -> Result<(), VolumeError> {
        // The folder may be new itself, so its own name is synced as well.
        self.entries.settle(|| {
            for path in [&self.path, &self.all] {
                let synced = File::open(path).and_then(|folder| folder.sync_all());
                synced.map_err(VolumeError::io(format!("sync {}", path.display())))?;
            }
            Ok(())
        })
    }
}

impl HostStat {
    fn of(meta: &fs::Metadata) -> Self {
        let time = |secs, nanos: i64| Timestamp::new(secs, u32::try_from(nanos).unwrap_or(0));
        HostStat {
            size: meta.len(),
            blocks: meta.blocks(),
            atime: time(meta.atime(), meta.atime_nsec()),
            mtime: time(meta.mtime(), meta.mtime_nsec()),
            ctime: time(meta.ctime(), meta.ctime_nsec()),
        }
    }

    pub(super) fn of_file(file: &File) -> Result<Self, VolumeError> {
        file.metadata().map(|meta| HostStat::of(&meta)).map_err(VolumeError::io("stat a private data file"))
    }
}

/// Sets a data file's times, which are those that programs see; `None` leaves one as it is.
pub(super) fn set_times(
    file: &File,
    atime: Option<Timestamp>,
    mtime: Option<Timestamp>,
) -> Result<(), VolumeError> {
    rustix::fs::futimens(file, &timestamps(atime, mtime))
        .map_err(|errno| VolumeError::io("set the time of a private data file")(errno.into()))
}

fn timestamps(atime: Option<Timestamp>, mtime: Option<Timestamp>) -> Timestamps {
    let given = |time: Timestamp| Timespec { tv_sec: time.secs, tv_nsec: time.nanos.into() };
    let omitted = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    Timestamps { last_access: atime.map_or(omitted, given), last_modification: mtime.map_or(omitted, given) }
}

/// Copies a blob, cut or extended to a new size: by sharing extents where the host can, else hole by hole within the kernel.
///
/// What is copied is durable on return: it takes the place of content that was. What is shared needs no sync, because it is durable already and the
/// host's journal has the sharing before it has anything that is done later.
pub(super) fn copy_content(from: &File, to: &File, size: u64, new_size: u64) -> Result<(), VolumeError> {
    let failed =
        |errno: rustix::io::Errno| VolumeError::io("copy a blob to a private data file")(errno.into());
    let wanted = size.min(new_size);
    let cloned = wanted > 0 && rustix::fs::ioctl_ficlone(to, from).is_ok();
    if !cloned || new_size != size {
        to.set_len(new_size).map_err(|error| failed(errno_of(&error)))?;
    }
    if cloned {
        return Ok(());
    }
    let mut position = 0;
    while position < wanted {
        let start = match rustix::fs::seek(from, SeekFrom::Data(position)) {
            Ok(start) if start < wanted => start,
            // ENXIO: nothing but a hole up to the end.
            Ok(_) | Err(rustix::io::Errno::NXIO) => break,
            Err(rustix::io::Errno::INVAL) => position,
            Err(errno) => return Err(failed(errno)),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(start)).unwrap_or(wanted).min(wanted);
        let (mut source, mut target) = (start, start);
        while source < end {
            let chunk = usize::try_from(end - source).unwrap_or(usize::MAX).min(1 << 30);
            match rustix::fs::copy_file_range(from, Some(&mut source), to, Some(&mut target), chunk) {
                Ok(0) => return Err(failed(rustix::io::Errno::IO)),
                Ok(_) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        position = end;
    }
    if wanted == 0 {
        return Ok(());
    }
    to.sync_data().map_err(|error| failed(errno_of(&error)))
}

fn errno_of(error: &io::Error) -> rustix::io::Errno {
    rustix::io::Errno::from_io_error(error).unwrap_or(rustix::io::Errno::IO)
}
