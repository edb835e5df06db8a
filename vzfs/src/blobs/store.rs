use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{self, AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

use super::{Batch, BlobError, direct};
use crate::sys;
use crate::types::Digest;

/// The folder of staged content below the store's folder.
pub(super) const STAGING: &str = "tmp";
/// Files are handed to the kernel as backing files and must not be writable by anyone.
pub(super) const BLOB_MODE: Mode = Mode::from_raw_mode(0o444);
const FOLDER_MODE: Mode = Mode::from_raw_mode(0o700);
const FOLDER_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Content is hashed in pieces of this size: large enough for BLAKE3's widest vectors, small enough to stay in L2.
pub(super) const HASH_CHUNK_BYTES: usize = 256 << 10;

/// A published blob and its size in bytes, or why it cannot be looked at.
type Listed = Result<(Digest, u64), BlobError>;

/// An open blob store; see the module's documentation.
pub struct BlobStore {
    dir: PathBuf,
    root: OwnedFd,
    staging: OwnedFd,
    /// The same folder through a detached read-only mount, when the process may make one.
    protected: Option<OwnedFd>,
    reflinks: bool,
    next_staged: AtomicU64,
    /// Whether names may have been published that are not durable yet (invariant 3). Locked for the whole
    /// publication; no other lock is taken while it is held, except a batch's own.
    pub(super) unsynced: Mutex<bool>,
    /// What is about to be removed; see [`super::Condemned`]. Held for moments, no other lock is taken under it.
    pub(super) condemned: Mutex<HashSet<Digest>>,
}

impl BlobStore {
    /// Makes the folders of an empty store, durably. What exists already is left as it is.
    pub fn create(dir: &Path) -> Result<(), BlobError> {
        std::fs::create_dir_all(dir).map_err(|source| BlobError::Io {
            action: "create",
            path: dir.to_owned(),
            source,
        })?;
        let root = open_folder(dir)?;
        let folders = (0..=u8::MAX).map(|first| format!("{first:02x}")).chain([STAGING.to_owned()]);
        for folder in folders {
            match fs::mkdirat(&root, &folder, FOLDER_MODE) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(BlobError::io("create", dir.join(folder))(errno)),
            }
        }
        fs::fsync(&root).map_err(BlobError::io("sync", dir))?;
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::fsync(open_folder(parent)?).map_err(BlobError::io("sync", parent))?;
        }
        Ok(())
    }

    /// Opens a store that [`BlobStore::create`] made, and empties its staging folder.
    pub fn open(dir: &Path) -> Result<BlobStore, BlobError> {
        let root = open_folder(dir)?;
        let staging = fs::openat(&root, STAGING, FOLDER_FLAGS, Mode::empty())
            .map_err(BlobError::io("open", dir.join(STAGING)))?;
        empty_folder(&staging, &dir.join(STAGING))?;
        let reflinks = probe_reflinks(&staging);
        let protected = match sys::read_only_clone(dir) {
            Ok(mount) => Some(mount),
            Err(error) => {
                tracing::warn!(folder = %dir.display(), %error, "blobs are not opened through a read-only mount");
                None
            }
        };
        Ok(BlobStore {
            dir: dir.to_owned(),
            root,
            staging,
            protected,
            reflinks,
            next_staged: AtomicU64::new(0),
            unsynced: Mutex::new(false),
            condemned: Mutex::default(),
        })
    }

    /// Begins a batch of additions. Batches may run at the same time.
    pub fn batch(&self) -> Batch<'_> {
        Batch::new(self, None)
    }

    /// Begins a batch that stores nothing but these blobs, and replaces what has their names.
    pub fn repairing_batch(&self, wanted: HashSet<Digest>) -> Batch<'_> {
        Batch::new(self, Some(wanted))
    }

    /// Whether a blob with this digest is published.
    pub fn contains(&self, digest: &Digest) -> Result<bool, BlobError> {
        match fs::statat(&self.root, relative(digest), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(BlobError::io("look for", self.path(digest))(errno)),
        }
    }

    /// Opens a blob for reading.
    ///
    /// When the process has `CAP_SYS_ADMIN` the file is opened through a read-only mount of the store's folder (see
    /// [`BlobStore::is_protected`]), so that the kernel refuses to open it for writing through the descriptor's path.
    ///
    /// # Errors
    /// [`BlobError::Missing`] when there is none.
    pub fn open_blob(&self, digest: &Digest) -> Result<File, BlobError> {
        let root = self.protected.as_ref().unwrap_or(&self.root);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match fs::openat(root, relative(digest), flags, Mode::empty()) {
            Ok(file) => Ok(File::from(file)),
            Err(Errno::NOENT) => Err(BlobError::Missing { digest: *digest, path: self.path(digest) }),
            Err(errno) => Err(BlobError::io("open", self.path(digest))(errno)),
        }
    }

    /// The content of a blob of `size` bytes, compared with its name. For what fits into memory: the caller has seen to it that `size` does.
    ///
    /// # Errors
    /// [`BlobError::Damaged`] when they differ, also in size; [`BlobError::Missing`] when there is no such blob.
    pub fn read(&self, digest: &Digest, size: u64) -> Result<Vec<u8>, BlobError> {
        let path = self.path(digest);
        let mut bytes = Vec::new();
        // One byte more tells of a file that has grown; without a bound it might fill the memory.
        let read = self.open_blob(digest)?.take(size.saturating_add(1)).read_to_end(&mut bytes);
        read.map_err(|source| BlobError::Io { action: "read", path: path.clone(), source })?;
        match Digest::of(&bytes) {
            actual if actual == *digest => Ok(bytes),
            actual => Err(BlobError::Damaged { digest: *digest, actual, path }),
        }
    }

    /// Reads a blob whole from the disk and compares its digest with its name. Returns its size in bytes.
    ///
    /// # Errors
    /// [`BlobError::Damaged`] when they differ, [`BlobError::Missing`] when there is no such blob.
    pub fn verify(&self, digest: &Digest) -> Result<u64, BlobError> {
        self.verify_reading(digest, &mut |_| {})
    }

    /// [`BlobStore::verify`] that tells how many bytes it has just read, piece by piece: whoever is told may take his time.
    pub fn verify_reading(&self, digest: &Digest, read: &mut dyn FnMut(u64)) -> Result<u64, BlobError> {
        let file = self.open_blob(digest)?;
        let mut hasher = blake3::Hasher::new();
        let mut size = 0;
        let hashed = direct::read(&file, &mut |piece| {
            hasher.update(piece);
            size += piece.len() as u64;
            read(piece.len() as u64);
            Ok::<_, Errno>(())
        });
        hashed.map_err(BlobError::io("read", self.path(digest)))?;
        let actual = Digest::from(hasher.finalize());
        if actual == *digest {
            Ok(size)
        } else {
            Err(BlobError::Damaged { digest: *digest, actual, path: self.path(digest) })
        }
    }

    /// All published blobs with their sizes in bytes, ordered by the first byte of the digest only. Files with other names than digests are
    /// passed over.
    pub fn list(&self) -> Result<impl Iterator<Item = Result<(Digest, u64), BlobError>>, BlobError> {
        Ok((0..=u8::MAX).flat_map(|first| match self.list_folder(first) {
            Ok(blobs) => blobs,
            Err(error) => vec![Err(error)],
        }))
    }

    fn list_folder(&self, first: u8) -> Result<Vec<Listed>, BlobError> {
        let folder = format!("{first:02x}");
        let path = self.dir.join(&folder);
        let fd = fs::openat(&self.root, &folder, FOLDER_FLAGS, Mode::empty())
            .map_err(BlobError::io("open", &path))?;
        let mut blobs = Vec::new();
        for entry in Dir::read_from(&fd).map_err(BlobError::io("read", &path))? {
            let entry = entry.map_err(BlobError::io("read", &path))?;
            let Some(digest) = entry.file_name().to_str().ok().and_then(|name| name.parse::<Digest>().ok())
            else {
                continue;
            };
            match fs::statat(&fd, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => blobs.push(Ok((digest, u64::try_from(stat.st_size).unwrap_or(0)))),
                // Removed since the folder was read.
                Err(Errno::NOENT) => {}
                Err(errno) => blobs.push(Err(BlobError::io("look at", self.path(&digest))(errno))),
            }
        }
        Ok(blobs)
    }

    /// Whether the host filesystem can share data between files (`FICLONE`); probed once at open.
    pub fn reflinks(&self) -> bool {
        self.reflinks
    }

    /// Whether blobs are opened through a read-only mount, which keeps a passthrough open from writing to them.
    pub fn is_protected(&self) -> bool {
        self.protected.is_some()
    }

    /// Where a blob with this digest is or would be: for messages, never for opening it.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(relative(digest))
    }

    /// Whether this is the store's own folder, by device and inode number.
    pub fn is_folder(&self, device: u64, inode: u64) -> bool {
        fs::fstat(&self.root).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (device, inode))
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    pub(super) fn staging(&self) -> BorrowedFd<'_> {
        self.staging.as_fd()
    }

    pub(super) fn staging_path(&self, name: &str) -> PathBuf {
        self.dir.join(STAGING).join(name)
    }

    pub(super) fn open_shard(&self, first: u8) -> Result<OwnedFd, BlobError> {
        let folder = format!("{first:02x}");
        fs::openat(&self.root, &folder, FOLDER_FLAGS, Mode::empty())
            .map_err(BlobError::io("open", self.dir.join(folder)))
    }

    /// A staging name that no other batch of this store has.
    pub(super) fn staged_name(&self) -> String {
        format!("{:x}", self.next_staged.fetch_add(1, Ordering::Relaxed))
    }
}

/// `ab/<64 hex>`.
pub(super) fn relative(digest: &Digest) -> String {
    let hex = digest.to_hex();
    format!("{}/{hex}", &hex[..2])
}

fn open_folder(dir: &Path) -> Result<OwnedFd, BlobError> {
    // The path's last component may be a symbolic link: the administrator chose the place.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::open(dir, flags, Mode::empty()).map_err(BlobError::io("open", dir))
}

fn empty_folder(folder: &OwnedFd, path: &Path) -> Result<(), BlobError> {
    for entry in Dir::read_from(folder).map_err(BlobError::io("read", path))? {
        let entry = entry.map_err(BlobError::io("read", path))?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        match fs::unlinkat(folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => {
                return Err(BlobError::io("remove", path.join(name.to_string_lossy().as_ref()))(errno));
            }
        }
    }
    Ok(())
}

/// Tries to share one block. Any failure means no: copying is always right.
fn probe_reflinks(staging: &OwnedFd) -> bool {
    let probe = || -> Result<(), Errno> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let source = fs::openat(staging, ".", flags, Mode::from_raw_mode(0o600))?;
        let target = fs::openat(staging, ".", flags, Mode::from_raw_mode(0o600))?;
        rustix::io::pwrite(&source, &[1; 4096], 0)?;
        fs::ioctl_ficlone(&target, &source)
    };
    probe().is_ok()
}
