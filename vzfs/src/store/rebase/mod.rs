//! Moving VEs from the stack that they have to another, mounted or not.
//!
//! # What happens to one VE
//! 1. The base of the new stack and the difference of the two bases are made, once for all VEs that go this way ([`Prepared`]).
//! 2. The volume says what it would hide of the new base, and it is decided what is done about that ([`resolve`]). The VE works on meanwhile; if it changes
//!    one of these files, the decision is made again.
//! 3. One batch exchanges the base, brings the private layer into line, and writes the VE's record. A crash before it leaves the VE on the old base, one
//!    after it on the new.
//! 4. The kernel is told to ask again for what changed. Until it has been, the record says so (`unsettled`), and a daemon that takes the mount over
//!    does it.
//!
//! The bases that a mounted VE had before stay listed in its record (`retired`) while the kernel knows files of theirs: programs have them open.

mod prepared;
mod resolve;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) use prepared::Deltas;
use prepared::{Counts, Prepared};
use resolve::{Resolved, Sides, resolve};

use super::records::VeRecord;
use super::slot::{Live, Slot};
use super::{Store, StoreError};
use crate::api::{OnConflict, RebaseReport, StackItem};
use crate::meta::{Changes, Table};
use crate::tree::{Delta, soundly};
use crate::types::{Digest, TemplateRef, VeName};
use crate::volume::{Hidden, Rebased, Volume, VolumeError};

/// How often a decision is made again because the VE changed a file that it was about.
const MAX_DECISIONS: u32 = 10;
/// Locked by package managers while they work on the database of packages: dpkg, and what calls it several times (apt, unattended-upgrades).
const PACKAGE_LOCKS: [&str; 2] = ["var/lib/dpkg/lock", "var/lib/dpkg/lock-frontend"];
/// How long a move waits for a package manager in the VE.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);
/// How often it looks.
const LOOK_AT_LOCKS: Duration = Duration::from_millis(200);

/// How to move a VE.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rebase<'a> {
    /// What wins where both sides changed a file.
    pub on_conflict: OnConflict,
    /// Change nothing, only tell.
    pub dry_run: bool,
    /// The report is kept in [`Table::UpdateReport`] under this key, by the same step that moves the VE; all but the times it took.
    pub report_key: Option<&'a str>,
}

impl Store {
    /// The stack that a VE would have: of the templates that it has now, those that `wanted` names in the version that it says, all others in
    /// the newest version that fits. With no `wanted`, the newest of everything.
    ///
    /// # Errors
    /// A template of `wanted` is unknown or not one of the VE's; an application has no version that fits the OS.
    pub fn next_stack(&self, ve: &VeName, wanted: &[TemplateRef]) -> Result<Vec<StackItem>, StoreError> {
        let slot = self.slot(ve)?;
        let record = slot.record();
        let has = |name| record.stack.iter().any(|item| item.spec.name == name);
        if let Some(other) = wanted.iter().find(|wanted| !has(wanted.name.clone())) {
            return Err(StoreError::Invalid(format!("VE {ve} has no template {}", other.name)));
        }
        let reference = |item: &StackItem| {
            let named = wanted.iter().find(|wanted| wanted.name == item.spec.name);
            named.cloned().unwrap_or_else(|| TemplateRef { name: item.spec.name.clone(), version: None })
        };
        let references: Vec<_> = record.stack.iter().map(reference).collect();
        self.catalog.read().stack(&references)
    }

    /// Moves a VE to another stack: its base becomes the new stack's, in one step that is durable on return; what it changed itself stays. A mounted VE's
    /// programs keep the files that they have open. To have the stack already is no error.
    ///
    /// # Errors
    /// - With [`OnConflict::Fail`], [`StoreError::Invalid`] naming the first conflict.
    /// - [`StoreError::VeAtWork`] when a package manager is at work in the VE and does not end.
    ///
    /// Then nothing was changed.
    pub fn rebase(&self, ve: &VeName, to: &[StackItem], how: Rebase<'_>) -> Result<RebaseReport, StoreError> {
        let began = Instant::now();
        let _adding = self.begin_adding()?;
        let slot = self.slot(ve)?;
        let _reserved = self.reserve_stack(ve, to)?;
        let base = self.base_of(to)?;
        loop {
            let from = slot.record();
            // Before the lock: it takes as long as the templates are large.
            let prepared = self.prepare(&from.base, &base)?;
            let mut live = slot.live.lock();
            if slot.record().base != from.base {
                continue;
            }
            if live.removed {
                return Err(StoreError::VeRemoving(ve.clone()));
            }
            match self.move_slot(&slot, &mut live, &prepared, to, how) {
                Err(StoreError::VeAtWork { .. }) if began.elapsed() < LOCK_PATIENCE => {
                    drop(live);
                    self.check_open()?;
                    std::thread::sleep(LOOK_AT_LOCKS);
                }
                moved => {
                    let mut report = moved?;
                    report.micros = micros(began.elapsed());
                    return Ok(report);
                }
            }
        }
    }

    fn move_slot(
        &self,
        slot: &Slot,
        live: &mut Live,
        prepared: &Prepared,
        to: &[StackItem],
        how: Rebase<'_>,
    ) -> Result<RebaseReport, StoreError> {
        let from = slot.record();
        let volume = self.volume_locked(slot, live)?;
        let (delta, rules) = (&prepared.delta, self.merge_rules(to)?);
        for _ in 0..MAX_DECISIONS {
            let preview = volume.preview(delta).map_err(|error| failed(&from, error))?;
            let sides = Sides {
                ve: &from.name,
                delta,
                prepared: &prepared.packages,
                volume: &volume,
                blobs: &self.blobs,
                rules: &rules,
                on_conflict: how.on_conflict,
                dry_run: how.dry_run,
            };
            let mut resolved = match soundly(|| resolve(&sides, &preview.hidden)) {
                Err(StoreError::Volume { source, .. }) if matches!(*source, VolumeError::Changed) => continue,
                resolved => resolved?,
            };
            let edits = std::mem::take(&mut resolved.edits);
            let mut report = report(&from, to, delta, resolved, how.dry_run);
            if how.dry_run {
                count(&mut report, prepared, &preview.hidden);
                return Ok(report);
            }
            let next = VeRecord {
                stack: to.to_vec(),
                base: delta.new.digest(),
                retired: retired(&from, live),
                unsettled: live.mount.is_some().then_some(from.base),
                ..(*from).clone()
            };
            let mut locks = Vec::new();
            for path in PACKAGE_LOCKS {
                let file = volume.resolve(path.as_bytes()).map_err(|error| failed(&from, error))?;
                locks.extend(file.map(|file| (path, file)));
            }
            let mount = live.mount.as_deref();
            let save = |batch: &mut Changes<'_>, hidden: &[Hidden]| {
                // Here nobody can open a file: who locks one of these later reads what this has written. The kernel's list of locks is asked for only when
                // somebody has one open, as it is made in milliseconds: it waits for all processors.
                for (path, file) in locks.into_iter().filter(|(_, file)| volume.is_open(*file)) {
                    if let Some(pid) = mount.and_then(|mount| mount.lock_holder(file)) {
                        return Err(VolumeError::Locked { path, pid });
                    }
                }
                batch.put_catalog(Table::Ve, &slot.id.to_string(), &next)?;
                count(&mut report, prepared, hidden);
                match how.report_key {
                    Some(key) => Ok(batch.put_catalog(Table::UpdateReport, key, &report)?),
                    None => Ok(()),
                }
            };
            let rebased = match volume.rebase(delta, &edits, save) {
                Err(VolumeError::Changed) => continue,
                Err(VolumeError::Locked { path, pid }) => {
                    return Err(StoreError::VeAtWork { ve: from.name.clone(), path, pid });
                }
                rebased => rebased.map_err(|error| failed(&from, error))?,
            };
            {
                let mut shown = slot.shown.write();
                shown.record = Arc::new(next);
                shown.holdings = None;
            }
            self.settle(slot, live, &rebased)?;
            tracing::info!(ve = %from.name, from = %from.base.short(), to = %delta.new.digest().short(),
                pause_us = micros(rebased.pause), "moved");
            report.pause_micros = micros(rebased.pause);
            return Ok(report);
        }
        Err(StoreError::Invalid(format!(
            "VE {} goes on changing files that the update changes too; try again when it is quieter",
            from.name
        )))
    }

    /// Tells the kernel of a rebase, frees what nobody uses any more, and notes that it is done. Everything is durable on return. The caller
    /// holds `live`.
    pub(super) fn settle(&self, slot: &Slot, live: &mut Live, rebased: &Rebased) -> Result<(), StoreError> {
        let record = slot.record();
        let volume = self.volume_locked(slot, live)?;
        let mut retired = Vec::new();
        match &live.mount {
            Some(mount) => {
                mount.tell(rebased);
                let needed = volume.bases_needed(mount.known().into_iter());
                retired = needed.map_err(|error| failed(&record, error))?;
            }
            None => {
                for ino in &rebased.orphans {
                    volume.forget(*ino).map_err(|error| failed(&record, error))?;
                }
            }
        }
        volume.settle();
        self.save(slot, VeRecord { retired, unsettled: None, ..(*record).clone() })
    }

    /// Before a mount is taken over: what its kernel may not know of the last rebase.
    pub(super) fn unsettle(&self, record: &VeRecord, volume: &Volume) -> Result<Option<Rebased>, StoreError> {
        let Some(old) = record.unsettled else { return Ok(None) };
        let prepared = self.prepare(&old, &record.base)?;
        let behind = volume.unsettle(&prepared.delta).map_err(|error| failed(record, error))?;
        Ok(Some(behind))
    }

    /// The difference of two bases, made if nobody has asked for it lately.
    fn prepare(&self, old: &Digest, new: &Digest) -> Result<Arc<Prepared>, StoreError> {
        self.deltas.get(old, new, || {
            let delta = Delta::between(&self.trees.open(old)?, &self.trees.open(new)?)?;
            soundly(|| Prepared::new(delta, &self.blobs))
        })
    }
}

/// The bases that the kernel of a mounted VE may know files of.
fn retired(from: &VeRecord, live: &Live) -> Vec<Digest> {
    if live.mount.is_none() {
        return Vec::new();
    }
    let mut retired = from.retired.clone();
    if !retired.contains(&from.base) {
        retired.push(from.base);
    }
    retired
}

/// What is told of a move, but for how many names it changed and how long it took.
fn report(
    from: &VeRecord,
    to: &[StackItem],
    delta: &Delta,
    resolved: Resolved,
    dry_run: bool,
) -> RebaseReport {
    RebaseReport {
        ve: from.name.clone(),
        from: from.stack.clone(),
        to: to.to_vec(),
        from_base: from.base,
        to_base: delta.new.digest(),
        dry_run,
        added: 0,
        changed: 0,
        removed: 0,
        shadowed: resolved.shadowed,
        merged: resolved.merged,
        generate: resolved.generate,
        notes: resolved.notes,
        stale_processes: Vec::new(),
        micros: 0,
        pause_micros: 0,
    }
}

/// How many names a move changed: all that differ, without those that the VE hides.
fn count(report: &mut RebaseReport, prepared: &Prepared, hidden: &[Hidden]) {
    let places: HashMap<_, _> =
        hidden.iter().map(|hidden| ((hidden.dir, &hidden.name), hidden.change)).collect();
    let hidden = Counts::of(places.into_values());
    report.added = prepared.counts.added - hidden.added;
    report.changed = prepared.counts.changed - hidden.changed;
    report.removed = prepared.counts.removed - hidden.removed;
}

fn failed(record: &VeRecord, error: VolumeError) -> StoreError {
    StoreError::Volume { ve: record.name.clone(), source: Box::new(error) }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
