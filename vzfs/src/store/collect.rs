//! Garbage collection: gives back the space of what no record leads to any more. The only place that removes trees, blobs and stray data files;
//! removing a template and `store gc` both come here.
//!
//! # What is needed
//! The roots are the catalog's records, read from the database and not from memory, so that a VE whose removal waits for the last program
//! that uses it counts too.
//! - A template's record needs its layer and the archive of what it was built of; a VE's record needs its base, those that it had since it was mounted, and the
//!   layers of its stack.
//! - A needed tree needs the blobs that it names.
//! - A VE's private records need the blobs that they name. Those are its base's as a rule, but nothing here depends on that.
//! - A private record needs its data file; a VE's folder of data files is needed as long as there is a record of the VE.
//!
//! A remembered base that no VE stands on is not needed: it can be made again.
//!
//! # Invariants
//! - G1: what is removed was needed by nothing at one moment, the *mark*, at which nothing was being added (`adding` held for writing).
//! - G2: after the mark a blob can only become needed through a batch that comes upon it, and that takes it off the list first
//!   ([`crate::blobs::Condemned`]). Trees are removed before `adding` is released, so nobody can come upon a tree meanwhile.
//! - G3: records go before trees, trees before blobs. So a crash at any point leaves things without a record, never a record without its
//!   things, and the next collection finds the rest.
//! - G4: a data file is stray when it is older than the session in which its volume is open, and has no record: files are made before their
//!   records, so a younger one may be waiting for it.
//! - G5: a tree or a record that cannot be read stops the collection before it removes anything: what it leads to would look unneeded.
//! - G6: the records that the mark has read are durable before anything is removed, or a power cut could bring back an older record that still
//!   needs it.
//!
//! # Who waits
//! VEs work all the time. Imports, commits and the making of VEs wait for the mark, which reads the lists of blobs of all trees and all
//! private records; not for the removal of blobs. The collection itself waits for imports that are running.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use parking_lot::RwLockWriteGuard;

use super::events::{Events, Step};
use super::records::{BaseRecord, TemplateRecord, VeRecord};
use super::{Store, StoreError};
use crate::api::{GcReport, GcRequest};
use crate::meta::Table;
use crate::tree::{TreeError, soundly_read};
use crate::types::{Digest, VeId};
use crate::volume::{PrivateData, Volume};

/// How often a collection that waits for imports looks whether the daemon is ending.
const PATIENCE: Duration = Duration::from_millis(500);

/// Everything that is needed.
pub(super) struct Needed {
    /// Trees, with who needs them not told apart.
    pub trees: HashSet<Digest>,
    /// Blobs.
    pub blobs: HashSet<Digest>,
    /// VEs that have a record, removed ones that are still in use among them.
    pub ves: HashSet<VeId>,
}

impl Store {
    /// Removes everything that is not needed; with `dry_run` only counts it. Waits for imports that are running.
    pub fn collect(&self, request: GcRequest, events: &dyn Events) -> Result<GcReport, StoreError> {
        let _one_at_a_time = self.collecting.lock();
        let listed = self.list_blobs(events)?;
        let alone = loop {
            self.check_open()?;
            match self.adding.try_write_for(PATIENCE) {
                Some(alone) => break alone,
                None => events.progress(0, None, "blobs", "waiting for imports"),
            }
        };
        self.collect_alone(alone, &listed, request.dry_run, events)
    }

    /// The same if nothing is in the way: `None` when something is being added or collected at this moment. The next collection finds it
    /// all again.
    pub(super) fn collect_now(&self) -> Result<Option<GcReport>, StoreError> {
        let Some(_one_at_a_time) = self.collecting.try_lock() else { return Ok(None) };
        if self.adding.is_locked() {
            return Ok(None);
        }
        let listed = self.list_blobs(&())?;
        let Some(alone) = self.adding.try_write() else { return Ok(None) };
        self.collect_alone(alone, &listed, false, &()).map(Some)
    }

    /// Blobs that are there before the mark. Those that come later are no business of this collection.
    pub(super) fn list_blobs(&self, events: &dyn Events) -> Result<Vec<(Digest, u64)>, StoreError> {
        let step = Step::new(events, "blobs", "listing", None);
        let mut listed = Vec::new();
        for item in self.blobs.list()? {
            listed.push(item?);
            step.add(1);
        }
        step.finish();
        Ok(listed)
    }

    fn collect_alone(
        &self,
        alone: RwLockWriteGuard<'_, ()>,
        listed: &[(Digest, u64)],
        dry_run: bool,
        events: &dyn Events,
    ) -> Result<GcReport, StoreError> {
        let trees = self.trees.list()?;
        events.progress(0, None, "trees", "marking");
        let needed = self.mark()?;
        self.meta.sync()?;
        let mut report = GcReport { dry_run, kept_blobs: needed.blobs.len() as u64, ..GcReport::default() };
        for (key, record) in self.meta.list::<BaseRecord>(Table::Base)? {
            if !needed.trees.contains(&record.base) {
                report.bases += 1;
                if !dry_run {
                    self.meta.delete(Table::Base, &key)?;
                    self.base_bytes.lock().remove(&record.base);
                }
            }
        }
        for digest in trees.iter().filter(|digest| !needed.trees.contains(digest)) {
            let path = self.layout.trees().join(digest.to_hex());
            report.trees += 1;
            report.tree_bytes += std::fs::metadata(path).map_or(0, |metadata| metadata.len());
            if !dry_run {
                self.trees.remove(digest)?;
            }
        }
        self.collect_folders(&needed, &mut report)?;
        let garbage: Vec<_> = listed.iter().filter(|(digest, _)| !needed.blobs.contains(digest)).collect();
        if dry_run {
            report.blobs = garbage.len() as u64;
            report.blob_bytes = garbage.iter().map(|(_, size)| size).sum();
        } else {
            let condemned = self.blobs.condemn(garbage.iter().map(|(digest, _)| *digest).collect());
            // From here on batches may come upon what is condemned (G2).
            drop(alone);
            let step = Step::new(events, "blobs", "removing", Some(garbage.len() as u64));
            for (digest, size) in garbage {
                if condemned.remove(digest)? {
                    report.blobs += 1;
                    report.blob_bytes += size;
                }
                step.add(1);
            }
            step.finish();
        }
        self.collect_strays(&mut report)?;
        report.freed_bytes = report.tree_bytes + report.blob_bytes + report.file_bytes;
        tracing::info!(
            dry_run,
            trees = report.trees,
            blobs = report.blobs,
            files = report.files,
            bytes = report.freed_bytes,
            "collected garbage"
        );
        Ok(report)
    }

    /// What is needed now. The caller sees to it that nothing is being added, or can live with a picture that is out of date.
    pub(super) fn mark(&self) -> Result<Needed, StoreError> {
        self.mark_with(&mut |_, error| Err(error))
    }

    /// The same for who can go on when a needed tree cannot be read.
    pub(super) fn mark_with(
        &self,
        unreadable: &mut dyn FnMut(Digest, TreeError) -> Result<(), TreeError>,
    ) -> Result<Needed, StoreError> {
        let mut needed = Needed { trees: HashSet::new(), blobs: HashSet::new(), ves: HashSet::new() };
        for (_, record) in self.meta.list::<TemplateRecord>(Table::Template)? {
            needed.trees.insert(record.layer);
            needed.blobs.extend(record.recipe.map(|recipe| recipe.digest));
        }
        for (_, record) in self.meta.list::<VeRecord>(Table::Ve)? {
            needed.trees.insert(record.base);
            needed.trees.extend(record.retired.iter().chain(&record.unsettled));
            needed.trees.extend(record.stack.iter().map(|item| item.layer));
            needed.ves.insert(record.id);
        }
        for digest in &needed.trees {
            match self.trees.open(digest) {
                // One that is in use may have been damaged since it was opened: nothing is removed by what it says.
                Ok(tree) => {
                    match soundly_read(|| tree.check_digest().map(|()| tree.blobs().collect::<Vec<_>>())) {
                        Ok(blobs) => needed.blobs.extend(blobs.into_iter().map(|(digest, _)| digest)),
                        Err(error) => unreadable(*digest, error)?,
                    }
                }
                Err(error) => unreadable(*digest, error)?,
            }
        }
        self.meta.for_each_private_blob(&mut |_, digest, _| {
            needed.blobs.insert(digest);
        })?;
        Ok(needed)
    }

    /// Folders of VEs that are no more: a removal that was cut short leaves one when its record was lost with a damaged database.
    fn collect_folders(&self, needed: &Needed, report: &mut GcReport) -> Result<(), StoreError> {
        for id in self.data_folders()? {
            if needed.ves.contains(&id) {
                continue;
            }
            let data = self.layout.data();
            for (_, bytes) in Volume::data_files(&data, id).map_err(StoreError::io("read", &data))? {
                report.files += 1;
                report.file_bytes += bytes;
            }
            if !report.dry_run {
                PrivateData::remove_all(&data, id).map_err(|source| StoreError::RemoveData { id, source })?;
            }
        }
        Ok(())
    }

    fn data_folders(&self) -> Result<Vec<VeId>, StoreError> {
        let dir = self.layout.data();
        let failed = StoreError::io("read", &dir);
        let names = std::fs::read_dir(&dir).and_then(|entries| {
            entries.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<Vec<_>>>()
        });
        let id_of = |name: &std::ffi::OsString| u32::from_str_radix(name.to_str()?, 16).ok().map(VeId);
        Ok(names.map_err(failed)?.iter().filter_map(id_of).collect())
    }

    /// Files that crashes have left in the folders of VEs (G4).
    fn collect_strays(&self, report: &mut GcReport) -> Result<(), StoreError> {
        let slots: HashMap<_, _> =
            self.catalog.read().ves.values().map(|slot| (slot.id, slot.clone())).collect();
        for id in self.data_folders()? {
            let Some(slot) = slots.get(&id) else { continue };
            let failed =
                |source| StoreError::Volume { ve: slot.record().name.clone(), source: Box::new(source) };
            let volume = match self.volume(slot) {
                Ok(volume) => volume,
                // It is being removed, and its files with it.
                Err(StoreError::VeRemoving(_)) => continue,
                Err(error) => return Err(error),
            };
            let stray = volume.stray_files().map_err(failed)?;
            // As for the rest (G6): the records that they had may have gone a moment ago.
            self.meta.sync()?;
            for (file, bytes) in stray {
                report.files += 1;
                report.file_bytes += bytes;
                if !report.dry_run {
                    volume.remove_stray(file).map_err(failed)?;
                }
            }
        }
        Ok(())
    }
}
