use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{self, AtFlags, OFlags, RenameFlags};
use rustix::io::Errno;

use super::ingest::{self, Pass, PassError, Summary};
use super::store::{BLOB_MODE, relative};
use super::{BlobError, BlobStore};
use crate::types::Digest;

/// Content up to this size is read whole and hashed before anything is written, so that known content costs no write.
/// Each thread that adds keeps one buffer of this size.
const BUFFER_BYTES: usize = 1 << 20;
/// Up to this many files (or folders) are synced one by one; beyond it one `syncfs` is cheaper although it also
/// writes back what others left dirty on the same filesystem.
const SYNC_SINGLY: usize = 8;

/// What became of content that was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its digest, the blob's name.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// 4096 times the number of 4 KiB blocks that are not all zero; a partial last block counts whole. A function of
    /// the content alone.
    pub allocated_bytes: u64,
    /// Whether this call staged it; false when the store or the batch had it already.
    pub new: bool,
}

/// What a committed batch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchStats {
    /// Blobs published.
    pub new_blobs: u64,
    /// Their bytes.
    pub new_bytes: u64,
    /// Additions that found their content already there.
    pub reused_blobs: u64,
    /// The bytes of those.
    pub reused_bytes: u64,
}

/// Additions that become visible together. `add_*` may be called from several threads at once.
///
/// Dropping a batch without [`Batch::commit`] removes what it staged.
pub struct Batch<'a> {
    store: &'a BlobStore,
    /// When it repairs: the only blobs that it stores, whether or not the store has something of their names.
    wanted: Option<HashSet<Digest>>,
    staged: Mutex<HashMap<Digest, Staged<'a>>>,
    buffers: Mutex<Vec<Vec<u8>>>,
    reused_blobs: AtomicU64,
    reused_bytes: AtomicU64,
    /// Set when a source turned out to be on another filesystem: further clones would only cost time.
    clone_refused: AtomicBool,
}

/// A file in staging. Dropping it removes it.
struct Staged<'a> {
    store: &'a BlobStore,
    name: String,
    size: u64,
    published: bool,
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        if !self.published {
            // A leftover is removed at the next open; there is nobody to tell here.
            let _ = fs::unlinkat(self.store.staging(), &self.name, AtFlags::empty());
        }
    }
}

impl<'a> Batch<'a> {
    pub(super) fn new(store: &'a BlobStore, wanted: Option<HashSet<Digest>>) -> Self {
        Batch {
            store,
            wanted,
            staged: Mutex::default(),
            buffers: Mutex::default(),
            reused_blobs: AtomicU64::new(0),
            reused_bytes: AtomicU64::new(0),
            clone_refused: AtomicBool::new(false),
        }
    }

    /// The store that the batch adds to.
    pub fn store(&self) -> &'a BlobStore {
        self.store
    }

    /// Adds content that is in memory.
    pub fn add_bytes(&self, content: &[u8]) -> Result<Stored, BlobError> {
        let summary = ingest::summarize(content);
        if self.has(&summary.digest)? {
            return Ok(self.reused(summary));
        }
        let (staged, file) = self.stage()?;
        let mut pass = Pass::new(Some(&file));
        let written = pass.data(content).and_then(|()| pass.finish());
        let summary = written.map_err(|error| self.pass_error(error, &staged))?;
        Ok(self.register(summary, staged))
    }

    /// Adds what a reader gives until its end. All-zero 4 KiB blocks become holes.
    ///
    /// # Errors
    /// [`BlobError::Content`] with the reader's own error when it fails.
    pub fn add_reader(&self, mut content: impl Read) -> Result<Stored, BlobError> {
        self.with_buffer(|buffer| {
            let first = ingest::fill(&mut content, buffer).map_err(BlobError::Content)?;
            if first < buffer.len() {
                return self.add_bytes(&buffer[..first]);
            }
            let (staged, file) = self.stage()?;
            let mut pass = Pass::new(Some(&file));
            let mut filled = first;
            let written = loop {
                if let Err(error) = pass.data(&buffer[..filled]) {
                    break Err(error);
                }
                if filled < buffer.len() {
                    break pass.finish();
                }
                match ingest::fill(&mut content, buffer) {
                    Ok(more) => filled = more,
                    Err(error) => break Err(PassError::Read(error)),
                }
            };
            let summary = written.map_err(|error| self.pass_error(error, &staged))?;
            if self.has(&summary.digest)? {
                Ok(self.reused(summary))
            } else {
                Ok(self.register(summary, staged))
            }
        })
    }

    /// Adds a regular file's content from its beginning, sharing the data when the filesystem can. Holes stay holes.
    ///
    /// The descriptor's position is left anywhere. Of a file that changes meanwhile some mixture is stored.
    pub fn add_file(&self, file: &File) -> Result<Stored, BlobError> {
        let stat = fs::fstat(file).map_err(|errno| BlobError::Content(errno.into()))?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let sparse = (u64::try_from(stat.st_blocks).unwrap_or(0)) * 512 < size;
        self.with_buffer(|buffer| {
            if size <= buffer.len() as u64 {
                let read =
                    ingest::fill_at(file, &mut buffer[..size as usize], 0).map_err(BlobError::Content)?;
                return self.add_bytes(&buffer[..read]);
            }
            if self.store.reflinks()
                && !self.clone_refused.load(Ordering::Relaxed)
                && let Some(stored) = self.add_clone(file, sparse, buffer)?
            {
                return Ok(stored);
            }
            // Hashing twice costs less than writing content that turns out to be known.
            let mut look = Pass::new(None);
            let looked =
                ingest::pass_file(&mut look, file, size, sparse, buffer).and_then(|()| look.finish());
            let seen = looked.map_err(pass_read_error)?;
            if self.has(&seen.digest)? {
                return Ok(self.reused(seen));
            }
            let (staged, target) = self.stage()?;
            let mut pass = Pass::new(Some(&target));
            let copied =
                ingest::pass_file(&mut pass, file, size, sparse, buffer).and_then(|()| pass.finish());
            let summary = copied.map_err(|error| self.pass_error(error, &staged))?;
            Ok(self.register(summary, staged))
        })
    }

    /// Clones first and hashes the clone, which nobody else can change. `None` when the filesystem refuses.
    fn add_clone(&self, file: &File, sparse: bool, buffer: &mut [u8]) -> Result<Option<Stored>, BlobError> {
        let (staged, clone) = self.stage()?;
        if let Err(errno) = fs::ioctl_ficlone(&clone, file) {
            if errno == Errno::XDEV {
                self.clone_refused.store(true, Ordering::Relaxed);
            }
            return Ok(None);
        }
        let path = || self.store.staging_path(&staged.name);
        let size = fs::fstat(&clone).map_err(BlobError::io("look at", path()))?.st_size;
        let mut look = Pass::new(None);
        let looked = ingest::pass_file(&mut look, &clone, u64::try_from(size).unwrap_or(0), sparse, buffer)
            .and_then(|()| look.finish());
        let summary = looked.map_err(|error| self.pass_error(error, &staged))?;
        let stored =
            if self.has(&summary.digest)? { self.reused(summary) } else { self.register(summary, staged) };
        Ok(Some(stored))
    }

    /// Adds a file whose content was hashed before, sharing the data when the filesystem can; the file is read past the page cache, and `read` is
    /// told as in [`summarize_file`](super::summarize_file). `None` when it is not that content any more, or `read` wanted no more.
    pub fn add_hashed(
        &self,
        file: &File,
        digest: &Digest,
        read: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Option<Stored>, BlobError> {
        let (staged, target) = self.stage()?;
        // The clone is hashed, which nobody else can change.
        let cloned = self.store.reflinks() && fs::ioctl_ficlone(&target, file).is_ok();
        let passed = match cloned {
            true => ingest::pass_direct(Pass::new(None), &target, read),
            false => ingest::pass_direct(Pass::new(Some(&target)), file, read),
        };
        let summary = passed.map_err(|error| self.pass_error(error, &staged))?;
        let expected = summary.filter(|summary| summary.digest == *digest);
        Ok(expected.map(|summary| self.register(summary, staged)))
    }

    /// Publishes what was staged, crash-safely (invariants 1 and 3): contents become durable, then get their names, then the
    /// names become durable. Nothing is visible before; everything is durable after.
    pub fn commit(self) -> Result<BatchStats, BlobError> {
        let mut staged: Vec<_> = self.staged.lock().drain().collect();
        // Renames in digest order touch each folder once.
        staged.sort_unstable_by_key(|(digest, _)| *digest);
        self.sync_contents(&staged)?;
        let mut unsynced = self.store.unsynced.lock();
        let mut stats = BatchStats {
            reused_blobs: self.reused_blobs.load(Ordering::Relaxed),
            reused_bytes: self.reused_bytes.load(Ordering::Relaxed),
            ..BatchStats::default()
        };
        let somebody_failed = *unsynced;
        *unsynced |= !staged.is_empty();
        for (digest, staged) in &mut staged {
            let published = self.publish(digest, staged)?;
            let (blobs, bytes) = match published {
                true => (&mut stats.new_blobs, &mut stats.new_bytes),
                false => (&mut stats.reused_blobs, &mut stats.reused_bytes),
            };
            *blobs += 1;
            *bytes += staged.size;
        }
        if *unsynced {
            let mut shards: Vec<u8> = staged.iter().map(|(digest, _)| digest.as_bytes()[0]).collect();
            shards.dedup();
            if somebody_failed || shards.len() > SYNC_SINGLY {
                self.sync_all()?;
            } else {
                for shard in shards {
                    let fd = self.store.open_shard(shard)?;
                    fs::fsync(&fd)
                        .map_err(BlobError::io("sync", self.store.path(&Digest::from_bytes([shard; 32]))))?;
                }
            }
            *unsynced = false;
        }
        Ok(stats)
    }

    fn sync_contents(&self, staged: &[(Digest, Staged<'_>)]) -> Result<(), BlobError> {
        if staged.len() > SYNC_SINGLY {
            return self.sync_all();
        }
        for (_, staged) in staged {
            let path = self.store.staging_path(&staged.name);
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = fs::openat(self.store.staging(), &staged.name, flags, fs::Mode::empty())
                .map_err(BlobError::io("open", &path))?;
            fs::fsync(&file).map_err(BlobError::io("sync", &path))?;
        }
        Ok(())
    }

    fn sync_all(&self) -> Result<(), BlobError> {
        fs::syncfs(self.store.root()).map_err(BlobError::io("sync", self.store.staging_path("")))
    }

    /// Gives staged content its name; false when another batch was faster.
    fn publish(&self, digest: &Digest, staged: &mut Staged<'_>) -> Result<bool, BlobError> {
        let (from, to) = (self.store.staging(), self.store.root());
        // Another batch may have published it and lost all its records since this one found that it was not there.
        self.store.reprieve(digest);
        let name = relative(digest);
        // What a repairing batch finds under the name is damaged.
        let flags = if self.wanted.is_some() { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        let mut renamed = fs::renameat_with(from, &staged.name, to, &name, flags);
        if renamed == Err(Errno::INVAL) {
            // The filesystem lacks NOREPLACE. Replacing is harmless: the same digest is the same content.
            renamed = fs::renameat(from, &staged.name, to, &name);
        }
        match renamed {
            Ok(()) => {
                staged.published = true;
                Ok(true)
            }
            Err(Errno::EXIST) => Ok(false),
            Err(errno) => Err(BlobError::io("publish", self.store.path(digest))(errno)),
        }
    }

    fn stage(&self) -> Result<(Staged<'a>, File), BlobError> {
        let staged = Staged { store: self.store, name: self.store.staged_name(), size: 0, published: false };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = fs::openat(self.store.staging(), &staged.name, flags, BLOB_MODE)
            .map_err(BlobError::io("create", self.store.staging_path(&staged.name)))?;
        Ok((staged, File::from(file)))
    }

    /// Whether the store or the batch has content already; then the batch relies on it.
    pub fn has(&self, digest: &Digest) -> Result<bool, BlobError> {
        let staged = self.staged.lock().contains_key(digest);
        self.store.reprieve(digest);
        if let Some(wanted) = &self.wanted {
            return Ok(staged || !wanted.contains(digest));
        }
        Ok(staged || self.store.contains(digest)?)
    }

    fn reused(&self, summary: Summary) -> Stored {
        self.reused_blobs.fetch_add(1, Ordering::Relaxed);
        self.reused_bytes.fetch_add(summary.size, Ordering::Relaxed);
        stored(summary, false)
    }

    /// Makes a complete staged file part of the batch, unless another thread has just staged the same content.
    fn register(&self, summary: Summary, mut staged: Staged<'a>) -> Stored {
        staged.size = summary.size;
        let mut all = self.staged.lock();
        if all.contains_key(&summary.digest) {
            drop(all);
            return self.reused(summary);
        }
        all.insert(summary.digest, staged);
        stored(summary, true)
    }

    fn with_buffer<T>(&self, work: impl FnOnce(&mut [u8]) -> T) -> T {
        let taken = self.buffers.lock().pop();
        let mut buffer = taken.unwrap_or_else(|| vec![0; BUFFER_BYTES]);
        let result = work(&mut buffer);
        self.buffers.lock().push(buffer);
        result
    }

    fn pass_error(&self, error: PassError, staged: &Staged<'_>) -> BlobError {
        match error {
            PassError::Read(source) => BlobError::Content(source),
            PassError::Write(errno) => BlobError::io("write", self.store.staging_path(&staged.name))(errno),
        }
    }
}

fn pass_read_error(error: PassError) -> BlobError {
    match error {
        PassError::Read(source) => BlobError::Content(source),
        PassError::Write(errno) => BlobError::Content(errno.into()),
    }
}

fn stored(summary: Summary, new: bool) -> Stored {
    Stored { digest: summary.digest, size: summary.size, allocated_bytes: summary.allocated_bytes, new }
}
