//! The store folder: where things are in it, which version wrote it, and who has it open.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::StoreError;

/// The store format this version reads and writes. A store with another number is refused, never guessed at.
pub const FORMAT: u32 = 1;
const FORMAT_PREFIX: &str = "vzfs store ";

/// The paths inside a store folder.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub dir: PathBuf,
}

impl Layout {
    pub(super) fn blobs(&self) -> PathBuf {
        self.dir.join("blobs")
    }

    pub(super) fn trees(&self) -> PathBuf {
        self.dir.join("trees")
    }

    pub(super) fn meta(&self) -> PathBuf {
        self.dir.join("meta")
    }

    pub(super) fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub(super) fn reserve(&self) -> PathBuf {
        self.dir.join("reserve")
    }

    fn format(&self) -> PathBuf {
        self.dir.join("format")
    }

    fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    /// Where VEs are mounted unless told otherwise: beside the store, so that a backup of the store does not walk
    /// through the mounts.
    pub(super) fn default_mountpoint(&self, ve: &str) -> PathBuf {
        let beside = self.dir.parent().unwrap_or(&self.dir);
        beside.join("root").join(ve)
    }

    /// Checks that `dir` is a store of this format, or makes the outline of a new one of an empty or missing folder,
    /// and locks it for this process.
    pub(super) fn create_or_open(dir: &Path) -> Result<(Layout, File), StoreError> {
        let private = |path: &Path| {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
            // On a filesystem that has given up, a folder that is there can be neither made nor looked at: the second says why.
            let made = made.map_err(|error| match error.kind() {
                ErrorKind::AlreadyExists => fs::metadata(path).err().unwrap_or(error),
                _ => error,
            });
            made.map_err(StoreError::io("create", path))
        };
        private(dir)?;
        let dir = fs::canonicalize(dir).map_err(StoreError::io("open", dir))?;
        let layout = Layout { dir };
        let new = match fs::read_to_string(layout.format()) {
            Ok(text) => {
                layout.check_format(&text)?;
                false
            }
            Err(error) if error.kind() == ErrorKind::NotFound => true,
            Err(error) => return Err(StoreError::io("read", layout.format())(error)),
        };
        if new {
            layout.check_unused()?;
        }
        // The lock comes before anything that writes, and its folder is certain to be a store or empty.
        let lock = layout.acquire()?;
        for path in [layout.meta(), layout.data()] {
            private(&path)?;
        }
        Ok((layout, lock))
    }

    /// Checks that a store in `dir` has this version's format; that there is none yet is fine.
    pub(super) fn probe(dir: &Path) -> Result<(), StoreError> {
        let layout = Layout { dir: dir.to_owned() };
        match fs::read_to_string(layout.format()) {
            Ok(text) => layout.check_format(&text),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(StoreError::io("read", layout.format())(error)),
        }
    }

    /// Whether the format file is there, which is made last.
    pub(super) fn is_complete(&self) -> bool {
        self.format().exists()
    }

    /// Makes the folder a store. Called when everything else in it exists: a crash before leaves a folder that
    /// the next start takes for a new one, not a store that lacks parts.
    pub(super) fn write_format(&self) -> Result<(), StoreError> {
        let (path, new) = (self.format(), self.dir.join("format.new"));
        if path.exists() {
            return Ok(());
        }
        let write = || {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&new)?;
            writeln!(file, "{FORMAT_PREFIX}{FORMAT}")?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(StoreError::io("write", &path))
    }

    fn check_format(&self, text: &str) -> Result<(), StoreError> {
        let line = text.lines().next().unwrap_or_default();
        let version = line.strip_prefix(FORMAT_PREFIX).and_then(|number| number.parse::<u32>().ok());
        if version == Some(FORMAT) {
            return Ok(());
        }
        Err(StoreError::Format { dir: self.dir.clone(), found: line.to_owned(), known: FORMAT })
    }

    /// A folder without a format file is usable when it is empty or what an interrupted first start left.
    fn check_unused(&self) -> Result<(), StoreError> {
        const OURS: [&str; 8] =
            ["blobs", "trees", "meta", "data", "reserve", "lock", "format.new", "lost+found"];
        for entry in fs::read_dir(&self.dir).map_err(StoreError::io("read", &self.dir))? {
            let name = entry.map_err(StoreError::io("read", &self.dir))?.file_name();
            if !OURS.iter().any(|ours| *ours == name) {
                return Err(StoreError::NotAStore { dir: self.dir.clone() });
            }
        }
        Ok(())
    }

    fn acquire(&self) -> Result<File, StoreError> {
        let path = self.lock();
        // Not truncated: until the lock is ours, the number in the file is another process's.
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(StoreError::io("open", &path))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                let _ = file.read_to_string(&mut text);
                return Err(StoreError::Locked { dir: self.dir.clone(), pid: text.trim().parse().ok() });
            }
            Err(error) => return Err(StoreError::io("lock", &path)(error.into())),
        }
        let mut write = || {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        // It only tells others who has the store, and a store over its quota must open: something can be removed then.
        if let Err(error) = write() {
            tracing::warn!(path = %path.display(), %error, "the lock does not say whose it is");
        }
        Ok(file)
    }
}

#[cfg(test)]
#[allow(clippy::panic)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir_in("/var/tmp").expect("a folder in /var/tmp")
    }

    #[test]
    fn a_second_opener_is_refused_and_told_the_pid() {
        let dir = folder();
        let (layout, lock) = Layout::create_or_open(dir.path()).expect("new store");
        layout.write_format().expect("format file");
        match Layout::create_or_open(dir.path()) {
            Err(StoreError::Locked { pid, .. }) => assert_eq!(pid, Some(std::process::id())),
            other => panic!("{other:?}"),
        }
        drop(lock);
        Layout::create_or_open(dir.path()).expect("free again");
    }

    #[test]
    fn newer_and_unknown_formats_are_refused() {
        for text in ["vzfs store 2\n", "vzfs store x\n", "something\n", ""] {
            let dir = folder();
            fs::write(dir.path().join("format"), text).expect("write");
            assert!(matches!(Layout::create_or_open(dir.path()), Err(StoreError::Format { .. })), "{text}");
        }
    }

    #[test]
    fn a_folder_of_something_else_is_left_alone() {
        let dir = folder();
        fs::write(dir.path().join("letter.txt"), "dear").expect("write");
        assert!(matches!(Layout::create_or_open(dir.path()), Err(StoreError::NotAStore { .. })));
        assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 1);
    }
}
