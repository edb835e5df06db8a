use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::sys::MappedFile;
use crate::types::Digest;

use super::{Tree, TreeError, TreeImage, check_sound, soundly};

/// Unpublished trees begin with this; no digest does.
const STAGING_PREFIX: &str = ".tmp-";

/// The folder of trees: one read-only file for each, named by its digest.
///
/// A file appears under its name whole and durable or not at all: it is written and synced under a staging
/// name, renamed, and the folder synced. A crash leaves at most a staging file, which the next
/// [`TreeStore::at`] removes; only one process uses a store.
#[derive(Debug)]
pub struct TreeStore {
    dir: PathBuf,
    staged: AtomicU64,
    /// Trees in use, so that all volumes on one base share one mapping. Locked for a look-up or an open,
    /// never while hashing.
    open: Mutex<HashMap<Digest, Weak<Tree>>>,
}

impl TreeStore {
    /// Makes the folder of a new store.
    ///
    /// # Errors
    /// [`TreeError::Io`].
    pub fn create(dir: &Path) -> Result<(), TreeError> {
        fs::create_dir(dir).map_err(|error| TreeError::io("create", dir, error))
    }

    /// Uses the folder `dir`, after removing what a crash may have left unpublished in it.
    ///
    /// # Errors
    /// [`TreeError::Io`], also when there is no such folder.
    pub fn at(dir: &Path) -> Result<TreeStore, TreeError> {
        let store = TreeStore { dir: dir.to_owned(), staged: AtomicU64::new(0), open: Mutex::default() };
        for name in store.file_names()? {
            if name.starts_with(STAGING_PREFIX) {
                let path = dir.join(name);
                fs::remove_file(&path).map_err(|error| TreeError::io("remove", path, error))?;
            }
        }
        Ok(store)
    }

    /// Stores a tree; it is durable on return. Storing it again changes nothing, except that a damaged copy
    /// is replaced.
    ///
    /// # Errors
    /// [`TreeError::Damaged`], [`TreeError::WrongDigest`] for an image that is not a valid tree or not the
    /// one it says; nothing is stored then. [`TreeError::Unreadable`] when the calling thread made it of what could not be
    /// read. [`TreeError::Io`].
    pub fn put(&self, image: &TreeImage) -> Result<(), TreeError> {
        check_sound()?;
        let path = self.path(&image.digest);
        let stored = fs::read(&path);
        let flags = if stored.is_ok() { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        if stored.is_ok_and(|bytes| bytes == image.bytes) {
            // Whoever renamed it may not have come this far.
            return self.sync_dir();
        }
        self.publish(image, flags)
    }

    /// Puts a tree in the place of a copy that is lost or damaged, perhaps only on the disk and not in the host's page cache. Durable on return.
    /// Volumes that show the damaged copy show the sound one from then on.
    ///
    /// # Errors
    /// As for [`TreeStore::put`].
    pub fn restore(&self, image: &TreeImage) -> Result<(), TreeError> {
        check_sound()?;
        self.publish(image, RenameFlags::empty())
    }

    fn publish(&self, image: &TreeImage, flags: RenameFlags) -> Result<(), TreeError> {
        let path = self.path(&image.digest);
        let staged = self.stage(&image.bytes)?;
        // What is checked is what will be published, as the kernel gives it back.
        map(image.digest, &staged.path)?.validate()?;
        let file = File::open(&staged.path).map_err(|error| TreeError::io("open", &staged.path, error))?;
        staged.publish(&path, flags)?;
        let mut open = self.open.lock();
        if let Some(tree) = open.get(&image.digest).and_then(Weak::upgrade)
            && !tree.show(file)
        {
            // Volumes that show the damaged copy keep it; whoever opens the tree from now on gets the new one.
            open.remove(&image.digest);
        }
        drop(open);
        self.sync_dir()
    }

    /// The bytes of a tree as whoever uses it now has them, if they are sound: its file may be lost.
    pub fn in_use(&self, digest: &Digest) -> Option<TreeImage> {
        let tree = self.open.lock().get(digest).and_then(Weak::upgrade)?;
        let bytes = soundly(|| Ok::<_, TreeError>(tree.see(tree.bytes()).to_vec())).ok()?;
        let image = TreeImage::from_bytes(bytes);
        (image.digest == *digest).then_some(image)
    }

    /// The file of a tree.
    ///
    /// # Errors
    /// [`TreeError::Missing`], [`TreeError::Io`].
    pub fn file(&self, digest: &Digest) -> Result<File, TreeError> {
        open_file(*digest, &self.path(digest))
    }

    /// The tree with this name. Reads the header only; a tree that is in use already is shared.
    ///
    /// # Errors
    /// [`TreeError::Missing`], [`TreeError::NewerFormat`], [`TreeError::Damaged`], [`TreeError::Io`].
    pub fn open(&self, digest: &Digest) -> Result<Arc<Tree>, TreeError> {
        let mut open = self.open.lock();
        if let Some(tree) = open.get(digest).and_then(Weak::upgrade) {
            return Ok(tree);
        }
        let tree = Arc::new(map(*digest, &self.path(digest))?);
        open.retain(|_, tree| tree.strong_count() > 0);
        open.insert(*digest, Arc::downgrade(&tree));
        Ok(tree)
    }

    /// The names of all stored trees, in ascending order.
    ///
    /// # Errors
    /// [`TreeError::Io`].
    pub fn list(&self) -> Result<Vec<Digest>, TreeError> {
        let mut digests: Vec<Digest> =
            self.file_names()?.iter().filter_map(|name| name.parse().ok()).collect();
        digests.sort_unstable();
        Ok(digests)
    }

    /// Removes a tree; durable on return. Volumes that have it open keep it. Removing it again changes
    /// nothing.
    ///
    /// # Errors
    /// [`TreeError::Io`].
    pub fn remove(&self, digest: &Digest) -> Result<(), TreeError> {
        let mut open = self.open.lock();
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(TreeError::io("remove", path, error));
            }
            _ => open.remove(digest),
        };
        self.sync_dir()
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.to_hex())
    }

    fn stage(&self, bytes: &[u8]) -> Result<Staged, TreeError> {
        /// Published trees are never written again.
        const READ_ONLY: u32 = 0o444;
        let number = self.staged.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!("{STAGING_PREFIX}{number}"));
        let failed = |error| TreeError::io("write", &path, error);
        let mut file = File::create_new(&path).map_err(failed)?;
        let staged = Staged { path: path.clone(), published: false };
        file.write_all(bytes).map_err(failed)?;
        file.set_permissions(fs::Permissions::from_mode(READ_ONLY)).map_err(failed)?;
        // Before the rename, or a crash could leave the published name with nothing behind it.
        file.sync_all().map_err(failed)?;
        Ok(staged)
    }

    fn sync_dir(&self) -> Result<(), TreeError> {
        let synced = File::open(&self.dir).and_then(|dir| dir.sync_all());
        synced.map_err(|error| TreeError::io("sync", &self.dir, error))
    }

    fn file_names(&self) -> Result<Vec<String>, TreeError> {
        let failed = |error| TreeError::io("list", &self.dir, error);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            // What is not UTF-8 is nothing of ours.
            names.extend(entry.map_err(failed)?.file_name().into_string().ok());
        }
        Ok(names)
    }
}

fn open_file(digest: Digest, path: &Path) -> Result<File, TreeError> {
    File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => TreeError::Missing(digest),
        _ => TreeError::io("open", path, error),
    })
}

fn map(digest: Digest, path: &Path) -> Result<Tree, TreeError> {
    let failed = |error| TreeError::io("map", path, error);
    let file = open_file(digest, path)?;
    if file.metadata().map_err(failed)?.len() == 0 {
        // No mapping is empty, and no tree.
        return Tree::of_bytes(digest, Vec::new());
    }
    let map = MappedFile::map(file, digest.to_hex()).map_err(failed)?;
    // Until it is known what failed.
    let _mapping = Arc::clone(map.mapping());
    soundly(|| Tree::from_map(digest, map))
}

/// A file under its staging name, removed unless it is published.
struct Staged {
    path: PathBuf,
    published: bool,
}

impl Staged {
    fn publish(mut self, path: &Path, flags: RenameFlags) -> Result<(), TreeError> {
        match renameat_with(CWD, &self.path, CWD, path, flags) {
            Ok(()) => self.published = true,
            // Another thread has stored the same bytes meanwhile, and ours are not needed.
            Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(TreeError::io("publish", path, error)),
        }
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.published {
            // What cannot be removed now is removed when the store is opened next.
            let _ = fs::remove_file(&self.path);
        }
    }
}
