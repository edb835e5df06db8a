//! Giving up private data files whose content is in the blob store.
//!
//! A file that nobody uses is hashed without a lock; then its content is published as a blob, if it is not one already; then, with `names` held
//! for one small batch, its record refers to the blob (as that of a pinned file does) in place of the data file; then the data file goes.
//! Programs notice nothing: number, names, attributes, times and content are the same. A later write copies up again. From here on the file is
//! what a template's is, also in that a program that has it open for reading keeps the old content when another opens it for writing (see
//! `content`): the price for which only quiet files are taken.
//!
//! # Why the content is that of the digest
//! - D1: before hashing begins nobody has the data file open or mapped; the host's kernel is asked, by trying to get a write lease. It knows of
//!   programs, of files that it serves by itself, of maps that outlive their descriptors, and of handles from before a restart of the daemon.
//! - D2: when the record is exchanged, again nobody has it open, and its size, mtime and ctime are those from before D1. Whoever changed it in
//!   between must have opened or mapped it in between, and the host then moved its ctime: writes do, and so does the first store to a clean
//!   page of a new map. The ctime before D1 is at least [`MIN_QUIET`] old, more than any clock tick, so it moved to something else.
//! - D3: an operation that changes a data file without a handle (a truncation by path) is noted in `opens` as long as it lasts.
//!
//! # Failure
//! The blob is durable before the record names it, and the record before the data file is removed: the caller syncs in between. A crash leaves
//! a blob that nothing needs, or a data file that no record names. Garbage collection takes both.

use std::fs::File;
use std::time::{Duration, Instant};

use super::data::{DataFolder, HostStat};
use super::{Result, Volume};
use crate::meta::{InodeRecord, PrivateContent};
use crate::types::{Digest, FileKind, Ino, Timestamp};

/// A file that changed less than this ago is never quiet (D2).
pub const MIN_QUIET: Duration = Duration::from_secs(1);

/// Which private files may be given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuietRule {
    /// The least space that the data file takes, in bytes.
    pub min_bytes: u64,
    /// The host last changed the file before this moment.
    pub before: Timestamp,
}

impl QuietRule {
    /// Files that take `min_bytes` and that nobody has changed for so long.
    pub fn new(min_bytes: u64, quiet: Duration) -> QuietRule {
        let now = Timestamp::now();
        let quiet = quiet.max(MIN_QUIET);
        let secs = now.secs.saturating_sub(i64::try_from(quiet.as_secs()).unwrap_or(i64::MAX));
        QuietRule { min_bytes, before: Timestamp { secs, ..now } }
    }
}

/// What the host says of a data file. As long as it says the same and nobody has the file open, the content is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Print {
    /// Size in bytes.
    pub size: u64,
    /// Last change of content, or what a program set.
    pub mtime: Timestamp,
    /// Last change of anything.
    pub ctime: Timestamp,
}

impl From<&HostStat> for Print {
    fn from(stat: &HostStat) -> Print {
        Print { size: stat.size, mtime: stat.mtime, ctime: stat.ctime }
    }
}

/// A private file that may be given up, as it was when it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuietFile {
    /// The inode.
    pub ino: Ino,
    /// The number of its data file.
    pub data: u64,
    /// What the host said of that.
    pub print: Print,
    /// The space that it takes on the host.
    pub disk_bytes: u64,
}

impl QuietFile {
    /// Whether the data file, which `file` is, is still as it was.
    pub fn is_still(&self, file: &File) -> Result<bool> {
        Ok(Print::from(&HostStat::of_file(file)?) == self.print)
    }
}

/// Why a private file is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It takes less space than is worth the while.
    Small,
    /// Most of it is holes: reading it costs more than it takes.
    Sparse,
    /// It was changed not long ago.
    Recent,
    /// Somebody has it open or mapped.
    Open,
    /// It is not any more what it was when it was looked at.
    Changed,
}

/// Some of the private files of a volume.
#[derive(Clone, Debug, Default)]
pub struct QuietPage {
    /// Those that may be given up.
    pub files: Vec<QuietFile>,
    /// The others that have a data file and a name.
    pub unfit: Vec<Unfit>,
    /// Where the next page begins; `None` after the last.
    pub next: Option<Ino>,
}

/// What exchanging a record did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GivenUp {
    /// Whether `st_blocks` is another now, because the data file had blocks of zeros, or some beyond its end. The kernel must be told.
    pub blocks_changed: bool,
    /// How long other operations on the volume had to wait.
    pub pause: Duration,
}

impl Volume {
    /// Looks at the next `count` private inodes from `from` on. Takes the lock for moments only.
    pub fn quiet_files(&self, from: Option<Ino>, count: usize, rule: &QuietRule) -> Result<QuietPage> {
        let mut page = QuietPage::default();
        let rows = self.meta.inodes_from(self.ve, from, count)?;
        if let Some((last, _)) = rows.last().filter(|_| rows.len() == count) {
            page.next = Ino::new(last.get() + 1);
        }
        for (ino, record) in rows {
            match self.look_at(ino, &record, rule)? {
                Some(Ok(file)) => page.files.push(file),
                Some(Err(unfit)) => page.unfit.push(unfit),
                None => {}
            }
        }
        Ok(page)
    }

    /// Looks at one inode; `None` when it has no data file or no name.
    pub fn quiet_file(
        &self,
        ino: Ino,
        rule: &QuietRule,
    ) -> Result<Option<std::result::Result<QuietFile, Unfit>>> {
        let record = self.meta.inode(self.ve, ino)?;
        record.map_or(Ok(None), |record| self.look_at(ino, &record, rule))
    }

    fn look_at(
        &self,
        ino: Ino,
        record: &InodeRecord,
        rule: &QuietRule,
    ) -> Result<Option<std::result::Result<QuietFile, Unfit>>> {
        let Some(data) = data_file(record) else { return Ok(None) };
        let host = match self.data.stat(data) {
            Ok(host) => host,
            // Removed since the record was read.
            Err(_) if self.meta.inode(self.ve, ino)?.as_ref().and_then(data_file) != Some(data) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let disk_bytes = host.blocks * 512;
        Ok(Some(if disk_bytes < rule.min_bytes.max(1) || host.size == 0 {
            Err(Unfit::Small)
        } else if disk_bytes < host.size / 2 {
            Err(Unfit::Sparse)
        } else if host.ctime >= rule.before {
            Err(Unfit::Recent)
        } else if self.is_used(ino) {
            Err(Unfit::Open)
        } else {
            Ok(QuietFile { ino, data, print: Print::from(&host), disk_bytes })
        }))
    }

    /// Opens the data file of a file that is still as it was and that nobody uses (D1). Close it before [`Volume::give_up`].
    pub fn open_quiet(&self, quiet: &QuietFile) -> Result<std::result::Result<File, Unfit>> {
        let _shared = self.names.read();
        Ok(self.check_quiet(quiet)?.map(|(file, _, _)| file))
    }

    /// Makes a quiet file refer to a blob, which is durable, in place of its data file. The data file is to be removed with
    /// [`Volume::remove_stray`] after the next [`Volume::sync`].
    pub fn give_up(
        &self,
        quiet: &QuietFile,
        digest: Digest,
        allocated_bytes: u64,
    ) -> Result<std::result::Result<GivenUp, Unfit>> {
        let _exclusive = self.names.write();
        let began = Instant::now();
        let (record, host) = match self.check_quiet(quiet)? {
            Ok((_file, record, host)) => (record, host),
            Err(unfit) => return Ok(Err(unfit)),
        };
        // As programs see them: a data file's times are the host's.
        let shown = self.record_attr(quiet.ino, &record, Some(host))?;
        let content = PrivateContent::Blob { digest: *digest.as_bytes(), size: host.size, allocated_bytes };
        let record =
            InodeRecord { atime: shown.atime, mtime: shown.mtime, ctime: shown.ctime, content, ..record };
        let mut batch = self.batch();
        batch.put_inode(quiet.ino, &record);
        batch.commit()?;
        let blocks_changed = shown.blocks != allocated_bytes / 512;
        Ok(Ok(GivenUp { blocks_changed, pause: began.elapsed() }))
    }

    /// Whether a file is still as it was, and unused. The caller holds `names`.
    fn check_quiet(
        &self,
        quiet: &QuietFile,
    ) -> Result<std::result::Result<(File, InodeRecord, HostStat), Unfit>> {
        let record = self.meta.inode(self.ve, quiet.ino)?;
        let Some(record) = record.filter(|record| data_file(record) == Some(quiet.data)) else {
            return Ok(Err(Unfit::Changed));
        };
        if self.is_used(quiet.ino) {
            return Ok(Err(Unfit::Open));
        }
        let file = self.data.open_unnoticed(quiet.data)?;
        if DataFolder::is_open_elsewhere(&file) {
            return Ok(Err(Unfit::Open));
        }
        // After the question who uses it, so that what an earlier user wrote shows.
        let host = HostStat::of_file(&file)?;
        if Print::from(&host) != quiet.print {
            return Ok(Err(Unfit::Changed));
        }
        Ok(Ok((file, record, host)))
    }

    /// Whether an inode has handles, or an operation may be about to change its data file.
    fn is_used(&self, ino: Ino) -> bool {
        let opens = self.opens.lock();
        opens.has(ino) || opens.is_changing(ino)
    }
}

/// The data file of a regular file that has a name.
fn data_file(record: &InodeRecord) -> Option<u64> {
    match record.content {
        PrivateContent::Data { id, .. } if record.kind == FileKind::File && record.nlink > 0 => Some(id),
        _ => None,
    }
}
