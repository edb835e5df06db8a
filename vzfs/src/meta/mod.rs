//! The catalog and the private tables, on one RocksDB database per store. No other module names rocksdb.
//!
//! Concepts
//! - The *catalog* holds a few small JSON records (templates, tags, VEs, bases, settings). Each write is durable when it returns.
//! - The *private tables* hold what VEs changed: `(VE, inode) -> record` and `(VE, directory, name) -> inode or whiteout`. One
//!   filesystem operation is one [`Changes`], applied atomically; it is durable after [`Meta::sync`] or [`Meta::sync_of`], and in order: a crash keeps
//!   a prefix of the operations.
//! - What is known of private data files ([`Seen`]) is a memory that may be lost.
//!
//! Invariants (kept by `volume`, which is the only writer of the private tables)
//! - M1: every entry that is no whiteout names an inode that has a record.
//! - M2: an inode of the base that has a record has all its names as entries, but for names in directories that were removed.
//! - M3: an inode whose record has `nlink` 0 is listed in the orphan table.

mod disk_failure;
mod keys;
mod log_folder;
mod once;
mod private;
mod recent;
mod record;
mod removals;
mod seen;
mod writing;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::AtomicUsize;

use parking_lot::Mutex;
use rocksdb::properties::CUR_SIZE_ALL_MEM_TABLES;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DBCompressionType, LogLevel, Options, WriteBatch,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

pub use disk_failure::DiskFailure;
pub use once::{Outcomes, RequestId, on_behalf_of};
pub use private::{Changes, PrivateEntries, PrivateEntry, Watch, Written};
pub use record::{EntryRecord, InodeRecord, PrivateContent};
pub use seen::Seen;

use crate::types::{VeId, Watermark};
use log_folder::LogFolder;
use recent::Recent;
use writing::Writing;

/// Why the database refused.
#[derive(Debug, Error)]
pub enum MetaError {
    /// Another process has the database open.
    #[error("the store's database {path} is in use by another process")]
    Locked {
        /// The database folder.
        path: PathBuf,
    },
    /// RocksDB cannot open it: it is damaged, or its disk is.
    #[error("the store's database {path} cannot be opened: {source}")]
    Open {
        /// The database folder.
        path: PathBuf,
        /// What RocksDB said, which names the file.
        source: rocksdb::Error,
    },
    /// RocksDB failed: disk full, input/output error, damage it found by its checksums.
    #[error("the store's database failed: {0}")]
    Database(#[from] rocksdb::Error),
    /// What was to be written follows from a tree that cannot be read.
    #[error("a part of a tree cannot be read; nothing was written")]
    Unfounded,
    /// A record that does not decode.
    #[error("damaged record in table {table}, key {key}: {why}")]
    Damaged {
        /// Which table.
        table: &'static str,
        /// The key, printable.
        key: String,
        /// What the decoder said.
        why: String,
    },
    /// The counter of private numbers is used up (2^52 of them).
    #[error("VE {0} has used up its inode numbers")]
    Exhausted(VeId),
}

impl MetaError {
    /// Whether RocksDB found its files to be other than it wrote them.
    pub fn is_corruption(&self) -> bool {
        let of = |source: &rocksdb::Error| {
            matches!(source.kind(), rocksdb::ErrorKind::Corruption | rocksdb::ErrorKind::InvalidArgument)
        };
        match self {
            MetaError::Open { source, .. } | MetaError::Database(source) => of(source),
            _ => false,
        }
    }

    /// What the disk has to do with it.
    fn disk_failure(&self) -> Option<DiskFailure> {
        match self {
            MetaError::Open { source, .. } | MetaError::Database(source) => {
                DiskFailure::of(source.kind(), source.as_ref())
            }
            _ => None,
        }
    }

    /// Whether the disk, or somebody's share of it, is full.
    pub fn is_full(&self) -> bool {
        matches!(self.disk_failure(), Some(DiskFailure::Full | DiskFailure::Quota))
    }

    /// Whether the disk cannot be read or written.
    pub fn is_broken_disk(&self) -> bool {
        self.disk_failure() == Some(DiskFailure::Broken) && disk_failure::blames_disk(&self.to_string())
    }

    /// Whether a quota of the host's filesystem is used up.
    pub fn is_over_quota(&self) -> bool {
        self.disk_failure() == Some(DiskFailure::Quota)
    }
}

/// The tables of the catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Templates by `NAME@VERSION`.
    Template,
    /// VEs by name.
    Ve,
    /// Bases by the digest of their stack.
    Base,
    /// Tags of templates by `NAME@TAG`.
    Tag,
    /// Store-wide settings and counters.
    Setting,
    /// Rollouts by number, and their VEs by number of rollout and VE.
    Update,
    /// What moving a VE did, by number of rollout and VE.
    UpdateReport,
    /// What a VE does not show of its updates, by the number of the VE.
    Shadowed,
}

impl Table {
    fn prefix(self) -> &'static str {
        match self {
            Table::Template => "template/",
            Table::Ve => "ve/",
            Table::Base => "base/",
            Table::Tag => "tag/",
            Table::Setting => "setting/",
            Table::Update => "update/",
            Table::UpdateReport => "update-report/",
            Table::Shadowed => "shadowed/",
        }
    }
}

const CATALOG: &str = "catalog";
const INODES: &str = "inodes";
const ENTRIES: &str = "entries";
const ORPHANS: &str = "orphans";
const COUNTERS: &str = "counters";
const REMOVALS: &str = "removals";
const OUTCOMES_TABLE: &str = "outcomes";
const SEEN: &str = "seen";
const SEEN_DIGESTS: &str = "seen-digests";

const TABLES: [&str; 9] =
    [CATALOG, INODES, ENTRIES, ORPHANS, COUNTERS, OUTCOMES_TABLE, REMOVALS, SEEN, SEEN_DIGESTS];

/// Memory for unflushed writes of one table. Nine tables, two buffers each at most: 144 MiB in the worst case for all VEs together.
const WRITE_BUFFER_BYTES: usize = 8 << 20;
/// Memory for cached blocks of all tables together.
const BLOCK_CACHE_BYTES: usize = 32 << 20;
/// Log files beyond this make RocksDB flush, which bounds the replay at the next start: some 1.4 us for each of about 25 writes a KiB, for which the
/// programs of all VEs wait after a crash of the daemon. Half of it opens no faster; with eight times as much, files are made a tenth faster.
pub const MAX_LOG_BYTES: u64 = 4 << 20;

/// The database of one store. Shared by all its VEs.
pub struct Meta {
    db: DB,
    /// How much of the log is durable.
    log: Watermark,
    /// Up to where the log has what each VE wrote.
    marks: Mutex<HashMap<VeId, u64>>,
    /// Inodes that were read or written last.
    recent: Recent,
    /// What was written to VEs that are watched.
    watched: Mutex<HashMap<VeId, Written>>,
    /// How many those are: who writes looks here first.
    watches: AtomicUsize,
    writing: Writing,
    /// Who is told that a write failed because of the disk.
    when_failed: OnceLock<Box<dyn Fn(DiskFailure) + Send + Sync>>,
    /// After the database, which writes there until it is closed.
    _log_folder: Option<LogFolder>,
}

impl Meta {
    /// Opens the database in `dir`, or creates it.
    ///
    /// # Errors
    /// [`MetaError::Locked`] when another process has it.
    pub fn open(dir: &Path) -> Result<Meta, MetaError> {
        Meta::open_or(dir, true)
    }

    /// Opens the database that is in `dir`. One of which a file is lost is not taken for a new one.
    ///
    /// # Errors
    /// As for [`Meta::open`], and [`MetaError::Open`] when there is none.
    pub fn open_existing(dir: &Path) -> Result<Meta, MetaError> {
        Meta::open_or(dir, false)
    }

    fn open_or(dir: &Path, create: bool) -> Result<Meta, MetaError> {
        let mut options = Options::default();
        options.create_if_missing(create);
        options.create_missing_column_families(true);
        options.set_max_total_wal_size(MAX_LOG_BYTES);
        options.set_keep_log_file_num(4);
        let log_folder = LogFolder::of(dir);
        if let Some(folder) = &log_folder {
            options.set_db_log_dir(folder.path());
            // What is regular would fill the memory.
            options.set_log_level(LogLevel::Warn);
            options.set_stats_dump_period_sec(0);
        }
        // A read error under a mapping would end the process.
        options.set_allow_mmap_reads(false);
        options.set_allow_mmap_writes(false);
        options.set_max_open_files(256);
        options.set_max_background_jobs(2);
        let cache = Cache::new_lru_cache(BLOCK_CACHE_BYTES)?;
        let tables = TABLES.map(|name| {
            let mut blocks = BlockBasedOptions::default();
            blocks.set_block_cache(&cache);
            // Most look-ups in the private tables miss, because VEs change little: filters answer those from memory.
            blocks.set_bloom_filter(10.0, false);
            let mut table = Options::default();
            table.set_block_based_table_factory(&blocks);
            table.set_write_buffer_size(WRITE_BUFFER_BYTES);
            table.set_compression_type(DBCompressionType::None);
            // The same for what was written last; an eighth of a bit for each byte of a table in memory is some ten bits a record.
            table.set_memtable_prefix_bloom_ratio(0.016);
            table.set_memtable_whole_key_filtering(true);
            ColumnFamilyDescriptor::new(name, table)
        });
        let db = DB::open_cf_descriptors(&options, dir, tables).map_err(|error| {
            if error.to_string().contains("lock") && error.kind() == rocksdb::ErrorKind::IOError {
                MetaError::Locked { path: dir.to_owned() }
            } else {
                MetaError::Open { path: dir.to_owned(), source: error }
            }
        })?;
        Ok(Meta {
            db,
            log: Watermark::default(),
            marks: Mutex::default(),
            recent: Recent::new(),
            watched: Mutex::default(),
            watches: AtomicUsize::new(0),
            writing: Writing::default(),
            when_failed: OnceLock::new(),
            _log_folder: log_folder,
        })
    }

    fn table(&self, name: &str) -> &rocksdb::ColumnFamily {
        self.db.cf_handle(name).expect("open() creates every table and nothing drops one")
    }

    /// Writes a catalog record; it is durable on return, as is everything written before it.
    pub fn put<T: Serialize>(&self, table: Table, key: &str, value: &T) -> Result<(), MetaError> {
        self.records().put(table, key, value)?.commit()
    }

    /// Removes a catalog record, durably.
    pub fn delete(&self, table: Table, key: &str) -> Result<(), MetaError> {
        self.records().delete(table, key).commit()
    }

    /// Begins a change of several catalog records.
    pub fn records(&self) -> Records<'_> {
        Records { meta: self, batch: WriteBatch::default() }
    }

    fn put_catalog<T: Serialize>(
        &self,
        batch: &mut WriteBatch,
        table: Table,
        key: &str,
        value: &T,
    ) -> Result<(), MetaError> {
        let key = format!("{}{key}", table.prefix());
        let value = serde_json::to_vec(value).map_err(|error| damaged(CATALOG, key.as_bytes(), &error))?;
        batch.put_cf(self.table(CATALOG), key, value);
        Ok(())
    }

    /// Reads a catalog record.
    pub fn get<T: DeserializeOwned>(&self, table: Table, key: &str) -> Result<Option<T>, MetaError> {
        let key = format!("{}{key}", table.prefix());
        let Some(value) = self.db.get_pinned_cf(self.table(CATALOG), &key)? else { return Ok(None) };
        serde_json::from_slice(&value).map(Some).map_err(|error| damaged(CATALOG, key.as_bytes(), &error))
    }

    /// All records of a catalog table, ordered by key.
    pub fn list<T: DeserializeOwned>(&self, table: Table) -> Result<Vec<(String, T)>, MetaError> {
        let prefix = table.prefix();
        let start = rocksdb::IteratorMode::From(prefix.as_bytes(), rocksdb::Direction::Forward);
        let mut records = Vec::new();
        for item in self.db.iterator_cf(self.table(CATALOG), start) {
            let (key, value) = item?;
            let Some(name) = key.strip_prefix(prefix.as_bytes()) else { break };
            let value = serde_json::from_slice(&value).map_err(|error| damaged(CATALOG, &key, &error))?;
            records.push((String::from_utf8_lossy(name).into_owned(), value));
        }
        Ok(records)
    }

    /// Writes a batch that is durable on return. A write that RocksDB itself syncs would keep all other writers waiting for the disk.
    fn write_durably(&self, batch: WriteBatch) -> Result<(), MetaError> {
        self.write(batch)?;
        self.log.advance();
        self.sync()
    }

    /// Writes a batch.
    fn write(&self, batch: WriteBatch) -> Result<(), MetaError> {
        self.written(self.writing.write(|| self.db.write(batch)))
    }

    /// What became of a write, told to who wants to know of a disk that fails.
    fn written<T>(&self, result: Result<T, rocksdb::Error>) -> Result<T, MetaError> {
        let result = result.map_err(MetaError::from);
        if let Err(error) = &result
            && let Some(failure) = error.disk_failure()
            && let Some(told) = self.when_failed.get()
        {
            told(failure);
        }
        result
    }

    /// `told` is called whenever a write fails because of the disk, by the thread that writes. After the first such failure RocksDB refuses all
    /// writes: on a full disk until some seconds after there is space, otherwise until it is opened anew. Counts for one caller, the first.
    pub fn when_failed(&self, told: impl Fn(DiskFailure) + Send + Sync + 'static) {
        if self.when_failed.set(Box::new(told)).is_err() {
            tracing::debug!("somebody is told already of a disk that fails");
        }
    }

    /// At most so many bytes will be written to tables when the database is opened the next time.
    pub fn unflushed_bytes(&self) -> u64 {
        let of = |table: &&str| self.db.property_int_value_cf(self.table(table), CUR_SIZE_ALL_MEM_TABLES);
        TABLES.iter().map(|table| of(table).ok().flatten().unwrap_or(0)).sum()
    }

    /// Makes everything written so far durable.
    pub fn sync(&self) -> Result<(), MetaError> {
        self.log.settle(|| self.sync_log())
    }

    /// Makes durable what was written to a VE's private tables so far. Costs nothing when that is durable, whatever other VEs wrote.
    pub fn sync_of(&self, ve: VeId) -> Result<(), MetaError> {
        let mark = self.marks.lock().get(&ve).copied().unwrap_or(Watermark::EARLIER);
        self.log.settle_to(mark, || self.sync_log())
    }

    fn sync_log(&self) -> Result<(), MetaError> {
        self.written(self.writing.sync(|| self.db.flush_wal(true)))
    }
}

/// Changes of catalog records that belong together: all or none. Dropped without effect.
pub struct Records<'m> {
    meta: &'m Meta,
    batch: WriteBatch,
}

impl Records<'_> {
    /// Writes a record.
    pub fn put<T: Serialize>(mut self, table: Table, key: &str, value: &T) -> Result<Self, MetaError> {
        self.meta.put_catalog(&mut self.batch, table, key, value)?;
        Ok(self)
    }

    /// Removes a record.
    pub fn delete(mut self, table: Table, key: &str) -> Self {
        self.batch.delete_cf(self.meta.table(CATALOG), format!("{}{key}", table.prefix()));
        self
    }

    /// Applies everything; it is durable on return, as is everything written before it.
    pub fn commit(self) -> Result<(), MetaError> {
        self.meta.write_durably(self.batch)
    }
}

fn damaged(table: &'static str, key: &[u8], why: &dyn std::fmt::Display) -> MetaError {
    MetaError::Damaged { table, key: key.escape_ascii().to_string(), why: why.to_string() }
}
