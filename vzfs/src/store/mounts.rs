//! Mounts of VEs: made, taken away, made again at the next start.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use thiserror::Error;

use super::records::VeRecord;
use super::slot::{Live, Slot};
use super::{BoxError, Store, StoreError};
use crate::api::{Ve, VeStats};
use crate::meta::Table;
use crate::types::{IdShift, Ino, VeId, VeName};
use crate::volume::{Holdings, Rebased, Usage, Volume, VolumeError};

/// How long after an unmount by hand the kernel may take to end its connection with the daemon. A copy of the mount in another namespace keeps that for longer.
const UNMOUNT_BY_HAND: Duration = Duration::from_millis(500);

/// Makes mounts. The daemon's makes FUSE mounts; tests need none.
pub trait Mounter: Send + Sync {
    /// Shows a volume at a mount point, which it makes when it is missing, with the ids of `id_shift` in place of the VE's. What a dead daemon left there is taken away
    /// first.
    ///
    /// # Errors
    /// Whatever stopped it; then nothing is mounted.
    fn mount(
        &self,
        volume: Arc<Volume>,
        ve: &VeName,
        mountpoint: &Path,
        id_shift: Option<IdShift>,
    ) -> Result<Box<dyn Mounted>, BoxError>;
}

/// A mount that exists. Dropping it takes it away as far as that is possible without waiting.
pub trait Mounted: Send + Sync {
    /// Whether it still answers: an administrator may have unmounted it by hand.
    fn is_alive(&self) -> bool;
    /// Whether data goes through the kernel.
    fn passthrough(&self) -> bool;
    /// Tells the kernel what a rebase of the volume has changed, and frees what nobody uses any more.
    fn tell(&self, rebased: &Rebased);
    /// All inodes that the kernel knows.
    fn known(&self) -> Vec<Ino>;
    /// The process that holds a lock for writing on a file of the mount.
    fn lock_holder(&self, ino: Ino) -> Option<u32>;
    /// Lets go of blobs that nobody has open: who opens them next gets the files that have their names then.
    fn forget_blobs(&self);
    /// How many requests of each kind the kernel has sent to this daemon.
    fn requests(&self) -> BTreeMap<&'static str, u64>;
    /// How many of them failed because of the host, by the names of errno(3).
    fn failures(&self) -> BTreeMap<&'static str, u64>;
    /// How long its changes have waited for syncs of other VEs.
    fn waited(&self) -> Duration;
    /// Takes it away. With `force`, also while programs use it.
    ///
    /// # Errors
    /// The mount is still there, and is given back.
    fn unmount(self: Box<Self>, force: bool) -> Result<(), (Box<dyn Mounted>, UnmountError)>;
}

/// Why a mount is still there.
#[derive(Debug, Error)]
pub enum UnmountError {
    /// Programs use it.
    #[error("programs use it")]
    Busy,
    /// Anything else.
    #[error(transparent)]
    Other(BoxError),
}

/// How long a removal or a close waits for requests that still hold the volume. An unmounted FUSE session needs
/// milliseconds to end.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);
/// Threads that make mounts at a start. More would wait for each other in the kernel.
const MOST_MOUNTERS: usize = 8;

impl Store {
    /// Mounts a VE, and from now on at each start. Asking for where it is mounted already changes nothing.
    pub fn mount(&self, ve: &VeName, mountpoint: Option<&Path>) -> Result<Ve, StoreError> {
        self.check_open()?;
        let slot = self.slot(ve)?;
        {
            let mut live = slot.live.lock();
            let record = slot.record();
            let place = mountpoint
                .or(record.mountpoint.as_deref())
                .or(record.last_mountpoint.as_deref())
                .map_or_else(|| self.layout.default_mountpoint(record.name.as_str()), Path::to_owned);
            let new = self.mount_locked(&slot, &mut live, &place)?;
            if new && record.mountpoint.as_ref() != Some(&place) {
                // Mounted first, then wanted: the other way round, a mount that cannot work would be tried at each start.
                let wanted = VeRecord {
                    mountpoint: Some(place.clone()),
                    last_mountpoint: Some(place),
                    ..(*record).clone()
                };
                if let Err(error) = self.save(&slot, wanted) {
                    let _ = self.unmount_locked(&slot, &mut live, true);
                    return Err(error);
                }
            }
        }
        self.describe(&slot)
    }

    /// Takes a VE's mount away and no longer makes it at start. Not being mounted is fine.
    pub fn umount(&self, ve: &VeName, force: bool) -> Result<Ve, StoreError> {
        let slot = self.slot(ve)?;
        {
            let mut live = slot.live.lock();
            self.unmount_locked(&slot, &mut live, force)?;
            let record = slot.record();
            if record.mountpoint.is_some() {
                let gone =
                    VeRecord { mountpoint: None, retired: Vec::new(), unsettled: None, ..(*record).clone() };
                self.save(&slot, gone)?;
            }
        }
        self.describe(&slot)
    }

    /// What a VE's mount has had to do. Nothing when it is not mounted.
    pub fn stats(&self, ve: &VeName) -> Result<VeStats, StoreError> {
        let slot = self.slot(ve)?;
        let live = slot.live.lock();
        Ok(stats_of(ve, &slot, Some(&live)))
    }

    /// The same of all VEs, by name. What is being mounted or unmounted is not waited for, and has no numbers then.
    pub fn all_stats(&self) -> Vec<VeStats> {
        let slots: Vec<_> =
            self.catalog.read().ves.iter().map(|(ve, slot)| (ve.clone(), Arc::clone(slot))).collect();
        slots.into_iter().map(|(ve, slot)| stats_of(&ve, &slot, slot.live.try_lock().as_deref())).collect()
    }

    /// Mounts what was mounted when the last daemon ended. One that fails is logged and stays wanted.
    /// Programs of all these VEs may be waiting, so all processors work at it.
    pub fn mount_wanted(&self) {
        let mut slots = self.slots();
        slots.retain(|slot| slot.record().mountpoint.is_some());
        if slots.is_empty() {
            return;
        }
        let ids: Vec<VeId> = slots.iter().map(|slot| slot.id).collect();
        let numbers = Volume::reserve_numbers(&self.meta, &ids).unwrap_or_else(|error| {
            tracing::warn!(%error, "each VE has to take numbers for its files by itself");
            Vec::new()
        });
        let numbers = numbers.into_iter().chain(std::iter::repeat(0..0));
        let wanted = Mutex::new(slots.into_iter().zip(numbers));
        let mount_all = || {
            loop {
                // A guard in the head of a `while let` would be held in its body.
                let next = wanted.lock().next();
                let Some((slot, numbers)) = next else { return };
                self.mount_again(&slot, numbers);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..std::thread::available_parallelism().map_or(1, usize::from).min(MOST_MOUNTERS) {
                // Without another thread this one does it all.
                let _ = std::thread::Builder::new().name("mounts".to_owned()).spawn_scoped(scope, mount_all);
            }
            mount_all();
        });
    }

    fn mount_again(&self, slot: &Slot, numbers: Range<u64>) {
        let mut live = slot.live.lock();
        let record = slot.record();
        let Some(place) = &record.mountpoint else { return };
        if self.closing.load(Ordering::SeqCst) {
            return;
        }
        // Held until the mount holds it.
        let volume = self.open_volume(slot, &live, numbers);
        if let Err(error) = volume.and_then(|_volume| self.mount_locked(slot, &mut live, place)) {
            tracing::error!(ve = %record.name, %error, "the VE stays unmounted");
        }
    }

    /// Ends the service: nothing new starts, and every mount is taken away but stays wanted for the next start.
    pub fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        for slot in self.slots() {
            let mut live = slot.live.lock();
            let gentle = self.unmount_locked(&slot, &mut live, false);
            let result = gentle.or_else(|error| {
                tracing::warn!(%error, "detaching it: programs lose it when they close their files");
                self.unmount_locked(&slot, &mut live, true)
            });
            if let Err(error) = result {
                tracing::error!(%error, "a mount is left behind");
            }
        }
        if let Err(error) = self.data.settle().and_then(|_| Ok(self.meta.sync()?)) {
            tracing::error!(%error, "cannot sync the database");
        }
    }

    /// Ends the service but leaves the mounts, for a daemon that takes them over. What was acknowledged is durable afterwards.
    pub fn leave(&self) {
        self.closing.store(true, Ordering::SeqCst);
        if let Err(error) = self.meta.sync() {
            tracing::error!(%error, "cannot sync the database");
        }
    }

    /// Returns whether there is a new mount; `false` when it is mounted there already.
    fn mount_locked(&self, slot: &Slot, live: &mut Live, place: &Path) -> Result<bool, StoreError> {
        let record = slot.record();
        let ve = &record.name;
        if live.removed {
            return Err(StoreError::VeRemoving(ve.clone()));
        }
        check_mountpoint(place, &self.layout.dir)?;
        let mounted = slot.shown.read().mounted.clone();
        let begun = Instant::now();
        while let (Some(mount), Some(mounted)) = (&live.mount, &mounted)
            && mount.is_alive()
            && !is_mount(mounted)
            && begun.elapsed() < UNMOUNT_BY_HAND
        {
            std::thread::sleep(Duration::from_millis(2));
        }
        if live.mount.as_ref().is_some_and(|mount| !mount.is_alive()) {
            tracing::warn!(%ve, "its mount was taken away by something else");
            live.mount = None;
            self.show_unmounted(slot);
        }
        if live.mount.is_some() {
            let mountpoint = slot.shown.read().mounted.clone().unwrap_or_default();
            return if mountpoint == place {
                Ok(false)
            } else {
                Err(StoreError::Mounted { ve: ve.clone(), mountpoint })
            };
        }
        self.claim(place, ve)?;
        let mount = self.volume_locked(slot, live).and_then(|volume| {
            let behind = self.unsettle(&record, &volume)?;
            let failed = |source| StoreError::Mount { ve: ve.clone(), mountpoint: place.to_owned(), source };
            Ok((self.mounter.mount(volume, ve, place, record.id_shift).map_err(failed)?, behind))
        });
        let (mount, behind) = match mount {
            Ok(mount) => mount,
            Err(error) => {
                self.mountpoints.lock().remove(place);
                return Err(error);
            }
        };
        tracing::debug!(%ve, mountpoint = %place.display(), passthrough = mount.passthrough(), "mounted");
        let mut shown = slot.shown.write();
        shown.mounted = Some(place.to_owned());
        shown.passthrough = Some(mount.passthrough());
        shown.holdings = None;
        drop(shown);
        live.mount = Some(mount);
        if let Some(behind) = behind {
            self.settle(slot, live, &behind)?;
        }
        Ok(true)
    }

    pub(super) fn unmount_locked(&self, slot: &Slot, live: &mut Live, force: bool) -> Result<(), StoreError> {
        let Some(mount) = live.mount.take() else { return Ok(()) };
        if let Err((mount, error)) = mount.unmount(force) {
            live.mount = Some(mount);
            let ve = slot.record().name.clone();
            let mountpoint = slot.shown.read().mounted.clone().unwrap_or_default();
            return Err(match error {
                UnmountError::Busy => StoreError::MountBusy { ve, mountpoint },
                UnmountError::Other(source) => StoreError::Unmount { ve, mountpoint, source },
            });
        }
        tracing::debug!(ve = %slot.record().name, "unmounted");
        self.show_unmounted(slot);
        Ok(())
    }

    fn show_unmounted(&self, slot: &Slot) {
        let place = {
            let mut shown = slot.shown.write();
            shown.passthrough = None;
            shown.mounted.take()
        };
        if let Some(place) = place {
            self.mountpoints.lock().remove(&place);
        }
    }

    /// Takes a mount point for a VE, so that two requests cannot mount over each other.
    fn claim(&self, place: &Path, ve: &VeName) -> Result<(), StoreError> {
        let mut taken = self.mountpoints.lock();
        match taken.get(place) {
            Some(other) => {
                Err(StoreError::MountpointTaken { mountpoint: place.to_owned(), ve: other.clone() })
            }
            None => {
                taken.insert(place.to_owned(), ve.clone());
                Ok(())
            }
        }
    }

    /// The VE's one volume (S2), opened if nobody has it open. It is closed when the last holder drops it.
    pub(super) fn volume(&self, slot: &Slot) -> Result<Arc<Volume>, StoreError> {
        self.check_open()?;
        self.volume_locked(slot, &slot.live.lock())
    }

    pub(super) fn volume_locked(&self, slot: &Slot, live: &Live) -> Result<Arc<Volume>, StoreError> {
        self.open_volume(slot, live, 0..0)
    }

    /// The same; with numbers that were reserved for it, if it is not open.
    fn open_volume(&self, slot: &Slot, live: &Live, numbers: Range<u64>) -> Result<Arc<Volume>, StoreError> {
        let record = slot.record();
        if live.removed {
            return Err(StoreError::VeRemoving(record.name.clone()));
        }
        if let Some(volume) = slot.shown.read().volume.upgrade() {
            return Ok(volume);
        }
        let base = self.trees.open(&record.base)?;
        let retired = record.retired.iter().map(|base| self.trees.open(base)).collect::<Result<_, _>>()?;
        let volume = Volume::open(slot.id, base, self.meta.clone(), self.blobs.clone(), self.data.clone());
        let volume = volume
            .map_err(|source| StoreError::Volume { ve: record.name.clone(), source: Box::new(source) })?;
        let volume = Arc::new(volume.with_retired(retired).with_numbers(numbers));
        slot.shown.write().volume = Arc::downgrade(&volume);
        Ok(volume)
    }

    /// Waits until nobody holds the VE's volume any more, or for some seconds; `false` then. The caller
    /// holds `live`, so nobody opens it anew.
    pub(super) fn wait_until_released(&self, slot: &Slot) -> bool {
        let deadline = Instant::now() + RELEASE_TIMEOUT;
        while slot.shown.read().volume.strong_count() > 0 {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Has all mounts look for their blobs again.
    pub(super) fn forget_blobs(&self) {
        for slot in self.slots() {
            if let Some(mount) = &slot.live.lock().mount {
                mount.forget_blobs();
            }
        }
    }

    /// How much of its own a VE has.
    pub(super) fn usage(&self, slot: &Slot) -> Result<Usage, StoreError> {
        self.holdings(slot).map(|holdings| holdings.usage)
    }

    /// The same, with the blobs. Remembered while the VE is not mounted, because then nothing changes it.
    pub(super) fn holdings(&self, slot: &Slot) -> Result<Holdings, StoreError> {
        let failed = |source| StoreError::Volume { ve: slot.record().name.clone(), source: Box::new(source) };
        let mounted = {
            let shown = slot.shown.read();
            shown.mounted.as_ref().and_then(|_| shown.volume.upgrade())
        };
        if let Some(volume) = mounted {
            return volume.holdings().map_err(failed);
        }
        // With `live` held it cannot be mounted, changed and unmounted between the look and the note.
        let live = slot.live.lock();
        if let Some(holdings) = slot.shown.read().holdings.clone() {
            return Ok(holdings);
        }
        let holdings = self.volume_locked(slot, &live)?.holdings().map_err(failed)?;
        if live.mount.is_none() {
            slot.shown.write().holdings = Some(holdings.clone());
        }
        Ok(holdings)
    }

    /// The same for lists, which one damaged VE must not take from all others: of a VE whose base cannot be read, nothing is known.
    pub(super) fn usage_to_show(&self, slot: &Slot) -> Result<Usage, StoreError> {
        let is_of_its_base = |error: &StoreError| match error {
            StoreError::Tree(_) => true,
            StoreError::Volume { source, .. } => matches!(**source, VolumeError::Tree(_)),
            _ => false,
        };
        match self.usage(slot) {
            Err(error) if is_of_its_base(&error) => {
                tracing::warn!(ve = %slot.record().name, %error, "its space is not known");
                Ok(Usage::default())
            }
            usage => usage,
        }
    }

    /// Writes a VE's record, then shows it. The caller holds `live`.
    pub(super) fn save(&self, slot: &Slot, record: VeRecord) -> Result<(), StoreError> {
        self.meta.put(Table::Ve, &slot.id.to_string(), &record)?;
        slot.shown.write().record = Arc::new(record);
        Ok(())
    }
}

fn stats_of(ve: &VeName, slot: &Slot, live: Option<&Live>) -> VeStats {
    let mount = live.and_then(|live| live.mount.as_ref());
    let named = |numbers: BTreeMap<&'static str, u64>| {
        numbers.into_iter().map(|(name, number)| (name.to_owned(), number)).collect()
    };
    VeStats {
        ve: ve.clone(),
        requests: mount.map(|mount| named(mount.requests())).unwrap_or_default(),
        failures: mount.map(|mount| named(mount.failures())).unwrap_or_default(),
        waited_us: mount.map_or(0, |mount| mount.waited().as_micros().try_into().unwrap_or(u64::MAX)),
        mounted: slot.shown.read().mounted.is_some(),
    }
}

/// Whether something is mounted at a place. Sends no request to what is.
fn is_mount(place: &Path) -> bool {
    let found = statx(CWD, place, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE);
    found.is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// What no mount point may be, whatever is there.
fn check_mountpoint(place: &Path, store: &Path) -> Result<(), StoreError> {
    let refuse = |why| Err(StoreError::Path { what: "a mount point", path: PathBuf::from(place), why });
    if !place.is_absolute() {
        return refuse("it is not absolute");
    }
    if place.components().any(|part| matches!(part, std::path::Component::ParentDir)) {
        return refuse("it contains ..");
    }
    if store.starts_with(place) {
        return refuse("it would hide the store");
    }
    if place.starts_with(store) {
        return refuse("it is inside the store");
    }
    Ok(())
}
