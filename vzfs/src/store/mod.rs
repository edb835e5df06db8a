//! One store: templates, the bases made of them, VEs and their mounts.
//!
//! Concepts
//! - A *template* is a catalog record that names a layer (a tree). A *base* is the layers of a stack merged into one tree,
//!   made once for each distinct list of layers. A *VE* is a record that names a base, plus private records and data.
//! - The catalog is small and is held in memory; every change is written to the database before it is seen there.
//! - The store knows no FUSE: it hands volumes to a [`Mounter`], so that everything here is tested without a mount.
//!
//! Invariants
//! - S1: a catalog record never refers to something that is not durable. So blobs are committed before the tree that names them
//!   is put, the tree before the record that names it, and removal goes the other way round.
//! - S2: at most one [`Volume`] of a VE exists at any time.
//! - S3: a VE's number is never used again, so that records and data left by a removal that a crash cut short never become part
//!   of another VE. The next open finishes such a removal.
//! - S4: a template is not removed while a VE or an application template stands on it, or is being made on it, or while a rollout may take a VE
//!   to it or back to it ([`WaysBack`]).
//! - S5: what is needed is only determined while nothing is being added (`adding`), because something staged relies on
//!   blobs that it found in the store. `collect` has the rest of the argument.
//! - S6: a tag names a version that exists, and no version of a template has the name of one of its tags.
//!
//! Locks, in the order in which they may be taken: `collecting`, `adding`, `building`, a slot's `live`, `catalog`, `mountpoints`, a slot's
//! `shown`. Imports and commits hold `adding` for reading and nothing else while they run; the name that they make is
//! reserved in the catalog. An export holds nothing: one whose template is removed meanwhile fails.

mod bases;
mod choice;
mod collect;
mod convert;
mod dedup;
mod difference;
mod error;
mod events;
mod export;
mod globs;
mod layout;
mod mounts;
mod packages;
mod rebase;
mod records;
mod reserve;
mod revive;
mod rules;
mod slot;
mod space;
pub mod stack;
mod standing;
mod templates;
mod tidy;
mod turns;
mod verify;
mod versions;
mod ves;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use rustix::fs::StatVfs;

pub use difference::difference;
pub use error::{BoxError, StoreError};
pub use events::Events;
pub use layout::FORMAT;
pub use mounts::{Mounted, Mounter, UnmountError};
pub use rebase::Rebase;
pub use standing::{VeStanding, WayBack, WaysBack};
pub use turns::Pace;

use crate::api::{DedupProgress, StackItem, StoreInfo, VerifyProgress};
use crate::blobs::BlobStore;
pub use crate::meta::DiskFailure;
use crate::meta::{Meta, Table};
use crate::tree::TreeStore;
use crate::types::{Digest, TemplateSpec, Timestamp, VeId, VeName, Version};
use crate::volume::{PrivateData, free_bytes};
use layout::Layout;
use records::{TagRecord, TemplateRecord, VeRecord};
use reserve::Reserve;
use revive::Reviver;
use slot::Slot;
use tidy::Tidier;
use turns::Turns;

/// An open store. Shared by all requests; every method may be called from any thread, and those that touch the disk block.
pub struct Store {
    layout: Layout,
    mounter: Box<dyn Mounter>,
    trees: TreeStore,
    blobs: Arc<BlobStore>,
    meta: Arc<Meta>,
    data: Arc<PrivateData>,
    /// Space for the database.
    reserve: Arc<Reserve>,
    _tidier: Tidier,
    started: Timestamp,
    closing: AtomicBool,
    /// Lock 0. One garbage collection at a time.
    collecting: Mutex<()>,
    /// Lock 1. Read by whatever adds blobs or trees; written while it is determined what is needed (S5).
    adding: RwLock<()>,
    /// Lock 2. Held while a base is made, so that VEs made at once with one new stack make its base once.
    building: Mutex<()>,
    /// Lock 4 (3 is [`Slot::live`]).
    catalog: RwLock<Catalog>,
    /// Lock 5. Who has which mount point, or is about to.
    mountpoints: Mutex<HashMap<PathBuf, VeName>>,
    /// Checks of the whole store. A turn is held before any other lock.
    verifying: Turns<VerifyProgress>,
    /// Searches for equal private files; the same.
    deduplicating: Turns<DedupProgress>,
    /// Differences of bases. A leaf.
    deltas: rebase::Deltas,
    /// A leaf: nothing is taken under it. Bytes of content by base, which are asked for often and never change.
    base_bytes: Mutex<HashMap<Digest, u64>>,
    /// A leaf. Who must be asked before a template is removed.
    ways_back: Mutex<Option<Weak<dyn WaysBack>>>,
    /// Last, so that the database is closed when the next daemon gets the lock.
    _lock: File,
}

/// Numbers of a store that are known at any time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoreTotals {
    /// Templates, all versions.
    pub templates: u64,
    /// VEs.
    pub ves: u64,
    /// How many of them are mounted.
    pub mounted: u64,
}

/// The catalog in memory, and the names that are reserved because something of that name is being made.
#[derive(Default)]
struct Catalog {
    templates: BTreeMap<TemplateSpec, Arc<TemplateRecord>>,
    /// Tags as they stand in references, with the versions that they mean.
    tags: BTreeMap<TemplateSpec, Version>,
    /// With the templates that it is being made on (S4).
    making: HashMap<TemplateSpec, Vec<TemplateSpec>>,
    ves: BTreeMap<VeName, Arc<Slot>>,
    /// With the stack that it is being made on, or moved to (S4).
    making_ves: HashMap<VeName, Arc<Vec<StackItem>>>,
}

/// Key in [`Table::Setting`] of the next VE number.
const NEXT_VE: &str = "next_ve";
/// Key in [`Table::Setting`] of when the store was last opened on a full disk.
const OPENED_FULL: &str = "opened_full";

impl Store {
    /// Opens the store in `dir`; makes it when the folder is missing or empty.
    ///
    /// # Errors
    /// [`StoreError::NotAStore`], [`StoreError::Format`] and [`StoreError::Locked`] before anything was changed.
    pub fn create_or_open(dir: &Path, mounter: Box<dyn Mounter>) -> Result<Store, StoreError> {
        let (layout, lock) = Layout::create_or_open(dir)?;
        // A new store, or one whose making a crash cut short.
        if !layout.is_complete() {
            BlobStore::create(&layout.blobs())?;
            if !layout.trees().exists() {
                TreeStore::create(&layout.trees())?;
            }
        }
        let blobs = Arc::new(BlobStore::open(&layout.blobs())?);
        let trees = TreeStore::at(&layout.trees())?;
        let reserve = Arc::new(Reserve::at(layout.reserve()));
        let meta = Arc::new(open_database(&layout, &reserve)?);
        layout.write_format()?;
        let data = Arc::new(PrivateData::open(&layout.data(), Arc::clone(&meta))?);
        let tidier = Tidier::start(&data, Arc::clone(&reserve))
            .map_err(StoreError::io("start a thread for", &layout.dir))?;
        let store = Store {
            layout,
            mounter,
            trees,
            blobs,
            meta,
            data,
            reserve,
            _tidier: tidier,
            started: Timestamp::now(),
            closing: AtomicBool::new(false),
            collecting: Mutex::new(()),
            adding: RwLock::new(()),
            building: Mutex::new(()),
            catalog: RwLock::new(Catalog::default()),
            mountpoints: Mutex::new(HashMap::new()),
            verifying: Turns::default(),
            deduplicating: Turns::default(),
            deltas: rebase::Deltas::default(),
            base_bytes: Mutex::new(HashMap::new()),
            ways_back: Mutex::new(None),
            _lock: lock,
        };
        store.load()?;
        Ok(store)
    }

    /// `start_again` is called when the database cannot write, and could after the store was opened anew: because the disk or a quota is full, with
    /// the space that it keeps for that or when there is some again, or because the disk has failed and works again. It may be called by any
    /// thread, and should not return: whoever waits for the write gets an error then.
    pub fn when_stuck(&self, start_again: impl Fn(DiskFailure) + Send + Sync + 'static) {
        let reviver = Reviver::new(
            self.layout.dir.clone(),
            &self.meta,
            Arc::clone(&self.reserve),
            Box::new(start_again),
        );
        self.meta.when_failed(move |failure| reviver.failed(failure));
    }

    /// Whether this version can read the store in `dir`, without opening it.
    ///
    /// # Errors
    /// [`StoreError::Format`] when it cannot.
    pub fn probe(dir: &Path) -> Result<(), StoreError> {
        Layout::probe(dir)
    }

    fn load(&self) -> Result<(), StoreError> {
        let mut catalog = Catalog::default();
        for (_, record) in self.meta.list::<TemplateRecord>(Table::Template)? {
            catalog.templates.insert(record.spec.clone(), Arc::new(record));
        }
        for (key, record) in self.meta.list::<TagRecord>(Table::Tag)? {
            let written = key.parse::<TemplateSpec>()?;
            let tagged = TemplateSpec { name: written.name.clone(), version: record.version.clone() };
            // The removal of a template takes its tags away first, so this is damage.
            if !catalog.templates.contains_key(&tagged) {
                tracing::error!(tag = %written, version = %record.version, "the tag's version is not there; the tag is ignored");
                continue;
            }
            catalog.tags.insert(written, record.version);
        }
        for (_, record) in self.meta.list::<VeRecord>(Table::Ve)? {
            if record.removing {
                tracing::info!(ve = %record.name, "finishing the removal that was cut short");
                self.erase(record.id)?;
            } else {
                catalog.ves.insert(record.name.clone(), Arc::new(Slot::new(record)));
            }
        }
        *self.catalog.write() = catalog;
        Ok(())
    }

    /// The store folder, absolute.
    pub fn dir(&self) -> &Path {
        &self.layout.dir
    }

    /// What there is and how much of it. Walks all blobs: seconds in a store of millions.
    pub fn info(&self) -> Result<StoreInfo, StoreError> {
        let totals = self.totals();
        let slots = self.slots();
        let (mut blobs, mut blob_bytes) = (0, 0);
        for item in self.blobs.list()? {
            blobs += 1;
            blob_bytes += item?.1;
        }
        let (mut private_bytes, mut passthrough) = (0, None);
        let mut bases = std::collections::HashSet::new();
        for slot in &slots {
            private_bytes += self.usage_to_show(slot)?.private_bytes;
            let shown = slot.shown.read();
            bases.insert(shown.record.base);
            passthrough = passthrough.or(shown.passthrough);
        }
        let last = self.verify_status()?.last;
        Ok(StoreInfo {
            store: self.layout.dir.clone(),
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started: Some(self.started),
            templates: totals.templates,
            ves: totals.ves,
            mounted: totals.mounted,
            bases: bases.len() as u64,
            blobs,
            blob_bytes,
            tree_bytes: folder_bytes(&self.layout.trees()),
            private_bytes,
            free_bytes: self.space().map(|space| free_bytes(&space)),
            passthrough,
            verified: last.as_ref().map(|report| report.finished),
            damaged: last.map_or(0, |report| report.unrepaired() as u64),
        })
    }

    /// How many of what there is, without looking for it.
    pub fn totals(&self) -> StoreTotals {
        let catalog = self.catalog.read();
        let mounted = catalog.ves.values().filter(|slot| slot.shown.read().mounted.is_some()).count();
        StoreTotals {
            templates: catalog.templates.len() as u64,
            ves: catalog.ves.len() as u64,
            mounted: mounted as u64,
        }
    }

    /// Space and inodes of the filesystem that holds the store; `None` when it does not tell.
    pub fn space(&self) -> Option<StatVfs> {
        rustix::fs::statvfs(&self.layout.dir).ok()
    }

    /// When this process opened it.
    pub fn started(&self) -> Timestamp {
        self.started
    }

    /// Whether data of a mount goes through the kernel; `None` when there is no mount.
    pub fn passthrough(&self) -> Option<bool> {
        let catalog = self.catalog.read();
        catalog.ves.values().find_map(|slot| slot.shown.read().passthrough)
    }

    /// Whether the host filesystem shares blocks between files (`FICLONE`).
    pub fn reflinks(&self) -> bool {
        self.blobs.reflinks()
    }

    /// Refuses once [`Store::close`] has begun, so that nothing new starts behind its back.
    fn check_open(&self) -> Result<(), StoreError> {
        if self.closing.load(Ordering::SeqCst) { Err(StoreError::Closing) } else { Ok(()) }
    }

    /// Permission to add blobs and trees.
    fn begin_adding(&self) -> Result<RwLockReadGuard<'_, ()>, StoreError> {
        self.check_open()?;
        // Recursive, because a thread that adds may come here again below, and a waiting collection must not stop it then.
        Ok(self.adding.read_recursive())
    }

    /// Removes what is left of a VE whose record says `removing`, the record last (S3).
    fn erase(&self, id: VeId) -> Result<(), StoreError> {
        PrivateData::remove_all(&self.layout.data(), id)
            .map_err(|source| StoreError::RemoveData { id, source })?;
        self.meta.drop_private(id)?;
        self.meta.delete(Table::Ve, &id.to_string())?;
        Ok(())
    }
}

/// Opens the database. On a full disk with the space that is reserved for that, while nothing of the store is in use that could take it instead.
fn open_database(layout: &Layout, reserve: &Reserve) -> Result<Meta, StoreError> {
    let is_full = reserve.is_needed();
    if is_full && reserve.give_up() {
        tracing::warn!("the disk is full: the store opens with the space that it keeps for that");
    }
    let meta =
        if layout.is_complete() { Meta::open_existing(&layout.meta())? } else { Meta::open(&layout.meta())? };
    if is_full {
        // The first write makes the database set space aside for its log. What is left then can be reserved.
        if let Err(error) = meta.put(Table::Setting, OPENED_FULL, &Timestamp::now()) {
            tracing::warn!(%error, "the disk is too full for the database");
            return Ok(meta);
        }
    }
    reserve.keep();
    Ok(meta)
}

/// Size of the files in a flat folder; what cannot be read counts nothing.
fn folder_bytes(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries.flatten().filter_map(|entry| entry.metadata().ok()).filter(|m| m.is_file()).map(|m| m.len()).sum()
}

#[cfg(test)]
mod tests;
