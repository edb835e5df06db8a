//! VEs: made, looked at, renamed, removed, exported.

use std::io::Write;
use std::sync::Arc;

use super::export::VeSource;
use super::records::VeRecord;
use super::slot::{Live, Slot};
use super::{NEXT_VE, Store, StoreError, convert};
use crate::api::{CreateVe, Removed, StackItem, Ve, VolumeChange};
use crate::archive;
use crate::meta::Table;
use crate::types::{IdShift, Timestamp, TypeError, VeId, VeName};

/// Most VEs made by one request: a typing error should not make a million.
const MAX_COUNT: u32 = 10_000;

/// Names of VEs that are being made, or moved to another stack. Dropping it gives them back.
struct Names<'a> {
    store: &'a Store,
    names: Vec<VeName>,
}

impl Drop for Names<'_> {
    fn drop(&mut self) {
        let mut catalog = self.store.catalog.write();
        for name in &self.names {
            catalog.making_ves.remove(name);
        }
    }
}

impl Store {
    /// All VEs, by name.
    pub fn ves(&self) -> Result<Vec<Ve>, StoreError> {
        let slots = self.slots();
        let mut ves = Vec::with_capacity(slots.len());
        for slot in &slots {
            match self.describe(slot) {
                // It was there when the list was begun, and is on its way out.
                Err(StoreError::VeRemoving(_)) => {}
                described => ves.push(described?),
            }
        }
        Ok(ves)
    }

    /// One VE.
    pub fn ve(&self, name: &VeName) -> Result<Ve, StoreError> {
        self.describe(&*self.slot(name)?)
    }

    /// All VEs there are now, by name. No lock is held on return.
    pub(super) fn slots(&self) -> Vec<Arc<Slot>> {
        self.catalog.read().ves.values().cloned().collect()
    }

    pub(super) fn slot(&self, name: &VeName) -> Result<Arc<Slot>, StoreError> {
        let slot = self.catalog.read().ves.get(name).cloned();
        slot.ok_or_else(|| StoreError::UnknownVe(name.clone()))
    }

    pub(super) fn describe(&self, slot: &Slot) -> Result<Ve, StoreError> {
        let usage = self.usage_to_show(slot)?;
        let (record, mounted, passthrough) = {
            let shown = slot.shown.read();
            (shown.record.clone(), shown.mounted.clone(), shown.passthrough)
        };
        Ok(Ve {
            name: record.name.clone(),
            id: record.id,
            templates: record.stack.iter().map(|item| item.spec.clone()).collect(),
            base: record.base,
            created: record.created,
            mounted: mounted.is_some(),
            mountpoint: mounted.or_else(|| record.mountpoint.clone()),
            passthrough,
            private_inodes: usage.private_inodes,
            private_bytes: usage.private_bytes,
            base_bytes: self.base_bytes(&record.base)?,
            id_shift: record.id_shift,
            labels: record.labels.clone(),
        })
    }

    /// Makes one VE, or `NAME-1` to `NAME-count`: all of them or none. Each costs one record; the base is made when
    /// this stack is new.
    pub fn create(&self, request: &CreateVe) -> Result<Vec<Ve>, StoreError> {
        let names = names(request)?;
        let shifts = shifts(request.id_shift, names.len())?;
        let _adding = self.begin_adding()?;
        let (names, stack) = self.reserve_ves(names, request)?;
        let base = self.base_of(&stack)?;
        let first = self.take_numbers(names.names.len())?;
        let mut slots = Vec::with_capacity(names.names.len());
        for ((id, name), id_shift) in (first..).zip(&names.names).zip(shifts) {
            let record = VeRecord {
                name: name.clone(),
                id: VeId(id),
                stack: stack.to_vec(),
                base,
                retired: Vec::new(),
                unsettled: None,
                created: Timestamp::now(),
                mountpoint: None,
                last_mountpoint: None,
                id_shift,
                labels: request.labels.clone(),
                removing: false,
            };
            if let Err(error) = self.meta.put(Table::Ve, &record.id.to_string(), &record) {
                self.undo(&slots);
                return Err(error.into());
            }
            slots.push(Arc::new(Slot::new(record)));
        }
        {
            let mut catalog = self.catalog.write();
            for (name, slot) in names.names.iter().zip(&slots) {
                catalog.ves.insert(name.clone(), slot.clone());
            }
        }
        tracing::info!(ve = %request.name, count = slots.len(), base = %base.short(), "VEs made");
        slots.iter().map(|slot| self.describe(slot)).collect()
    }

    fn reserve_ves(
        &self,
        names: Vec<VeName>,
        request: &CreateVe,
    ) -> Result<(Names<'_>, Arc<Vec<StackItem>>), StoreError> {
        let mut catalog = self.catalog.write();
        let stack = Arc::new(catalog.stack(&request.templates)?);
        let taken =
            |name: &&VeName| catalog.ves.contains_key(*name) || catalog.making_ves.contains_key(*name);
        if let Some(name) = names.iter().find(taken) {
            return Err(StoreError::VeExists(name.clone()));
        }
        for name in &names {
            catalog.making_ves.insert(name.clone(), stack.clone());
        }
        Ok((Names { store: self, names }, stack))
    }

    /// Keeps templates from being removed while a VE is moved to them (S4), and two from moving one VE at once.
    pub(super) fn reserve_stack(&self, ve: &VeName, stack: &[StackItem]) -> Result<impl Drop, StoreError> {
        let mut catalog = self.catalog.write();
        let has = |item: &StackItem| {
            catalog.templates.get(&item.spec).is_some_and(|record| record.layer == item.layer)
        };
        if let Some(missing) = stack.iter().find(|item| !has(item)) {
            return Err(StoreError::UnknownTemplate(missing.spec.clone().into()));
        }
        if catalog.making_ves.contains_key(ve) {
            return Err(StoreError::Moving(ve.clone()));
        }
        catalog.making_ves.insert(ve.clone(), Arc::new(stack.to_vec()));
        Ok(Names { store: self, names: vec![ve.clone()] })
    }

    /// The first of `count` numbers that nobody had and nobody will have (S3).
    fn take_numbers(&self, count: usize) -> Result<u32, StoreError> {
        // The catalog's lock makes reading and writing the counter one step.
        let _catalog = self.catalog.write();
        let first = self.meta.get::<u32>(Table::Setting, NEXT_VE)?.unwrap_or(1);
        let count = u32::try_from(count).map_err(|_| StoreError::OutOfIds)?;
        let next = first.checked_add(count).ok_or(StoreError::OutOfIds)?;
        self.meta.put(Table::Setting, NEXT_VE, &next)?;
        Ok(first)
    }

    fn undo(&self, slots: &[Arc<Slot>]) {
        for slot in slots {
            if let Err(error) = self.meta.delete(Table::Ve, &slot.id.to_string()) {
                tracing::error!(ve = %slot.record().name, %error, "cannot take back the VE; it is there after the next start");
            }
        }
    }

    /// The record of a VE that is not mounted, and not renamed or removed since it was looked up.
    fn unmounted_record(slot: &Slot, live: &Live, name: &VeName) -> Result<Arc<VeRecord>, StoreError> {
        let record = slot.record();
        if live.removed {
            return Err(StoreError::VeRemoving(name.clone()));
        }
        if live.mount.is_some() {
            let mountpoint = slot.shown.read().mounted.clone().unwrap_or_default();
            return Err(StoreError::Mounted { ve: name.clone(), mountpoint });
        }
        if record.name != *name {
            return Err(StoreError::UnknownVe(name.clone()));
        }
        Ok(record)
    }

    /// Gives a VE other ids on the host, from its next mount on.
    pub fn shift_ids(&self, name: &VeName, id_shift: Option<IdShift>) -> Result<Ve, StoreError> {
        self.check_open()?;
        let slot = self.slot(name)?;
        {
            let live = slot.live.lock();
            let record = Store::unmounted_record(&slot, &live, name)?;
            self.save(&slot, VeRecord { id_shift, ..(*record).clone() })?;
        }
        self.describe(&slot)
    }

    /// Gives a VE another name. Not while it is mounted: the name is its host name, and its mount point carries it.
    pub fn rename(&self, from: &VeName, to: &VeName) -> Result<Ve, StoreError> {
        self.check_open()?;
        let slot = self.slot(from)?;
        {
            let live = slot.live.lock();
            let record = Store::unmounted_record(&slot, &live, from)?;
            if from == to {
                drop(live);
                return self.describe(&slot);
            }
            let mut catalog = self.catalog.write();
            if catalog.ves.contains_key(to) || catalog.making_ves.contains_key(to) {
                return Err(StoreError::VeExists(to.clone()));
            }
            // A wanted mount that failed at the start was for the old name's place, if that is where VEs are by default.
            let moved = |place: &std::path::PathBuf| {
                let default = self.layout.default_mountpoint(from.as_str());
                if *place == default { self.layout.default_mountpoint(to.as_str()) } else { place.clone() }
            };
            let renamed = VeRecord {
                name: to.clone(),
                mountpoint: record.mountpoint.as_ref().map(moved),
                last_mountpoint: record.last_mountpoint.as_ref().map(moved),
                ..(*record).clone()
            };
            self.save(&slot, renamed)?;
            catalog.ves.remove(from);
            catalog.ves.insert(to.clone(), slot.clone());
        }
        self.describe(&slot)
    }

    /// Removes a VE with everything it changed. With `force`, its mount is taken away first; programs that still use it
    /// keep what they see, and its data goes when the store is opened next.
    pub fn remove(&self, name: &VeName, force: bool) -> Result<Removed, StoreError> {
        self.check_open()?;
        let slot = self.slot(name)?;
        let freed_bytes = self.usage(&slot).ok().map(|usage| usage.private_bytes);
        let released;
        {
            let mut live = slot.live.lock();
            if live.removed || slot.record().name != *name {
                return Err(StoreError::UnknownVe(name.clone()));
            }
            if let Some(mount) = &live.mount {
                if !force && mount.is_alive() {
                    let mountpoint = slot.shown.read().mounted.clone().unwrap_or_default();
                    return Err(StoreError::Mounted { ve: name.clone(), mountpoint });
                }
                self.unmount_locked(&slot, &mut live, true)?;
            }
            released = self.wait_until_released(&slot);
            if !released && !force {
                return Err(StoreError::VeBusy(name.clone()));
            }
            // From here on the removal is decided: whatever stops it, the next open of the store goes on with it.
            let removing = VeRecord { removing: true, mountpoint: None, ..(*slot.record()).clone() };
            self.save(&slot, removing)?;
            live.removed = true;
            self.catalog.write().ves.remove(name);
        }
        // The default mount point is ours; anything that is in it is not, and keeps it.
        let _ = std::fs::remove_dir(self.layout.default_mountpoint(name.as_str()));
        if !released {
            tracing::warn!(ve = %name, "programs still use it; its data goes when the store is opened next");
            return Ok(Removed { removed: name.to_string(), freed_bytes: None });
        }
        self.erase(slot.id)?;
        tracing::info!(ve = %name, id = %slot.id, "VE removed");
        Ok(Removed { removed: name.to_string(), freed_bytes })
    }

    /// What a VE changed, by path.
    pub fn diff_ve(&self, name: &VeName) -> Result<Vec<VolumeChange>, StoreError> {
        let slot = self.slot(name)?;
        let volume = self.volume(&slot)?;
        let changes = volume.changes();
        let changes =
            changes.map_err(|source| StoreError::Volume { ve: name.clone(), source: Box::new(source) })?;
        Ok(changes.into_iter().map(convert::volume_change).collect())
    }

    /// Writes what a VE shows as a tar: base and private layer together.
    pub fn export_ve(&self, name: &VeName, out: impl Write) -> Result<(), StoreError> {
        let slot = self.slot(name)?;
        let volume = self.volume(&slot)?;
        Ok(archive::export_tar(VeSource(&volume), out)?)
    }
}

/// The ranges of ids for `count` VEs: one after the other, so that none can reach into another.
fn shifts(first: Option<IdShift>, count: usize) -> Result<Vec<Option<IdShift>>, TypeError> {
    let Some(first) = first else { return Ok(vec![None; count]) };
    (0..).take(count).map(|number| first.further(number).map(Some)).collect()
}

/// The names that a request asks for.
fn names(request: &CreateVe) -> Result<Vec<VeName>, StoreError> {
    let Some(count) = request.count else { return Ok(vec![request.name.clone()]) };
    if !(1..=MAX_COUNT).contains(&count) {
        return Err(StoreError::Invalid(format!(
            "cannot make {count} VEs: 1 to {MAX_COUNT} at once are possible"
        )));
    }
    Ok((1..=count).map(|number| format!("{}-{number}", request.name).parse()).collect::<Result<_, _>>()?)
}
