//! The store's VEs as a fleet.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{CommandRunner, Fleet, MetaJournal, Ran, UpdateError, Updates, processes};
use crate::api::{RebaseReport, StackItem, StaleProcess};
use crate::store::{Rebase, Store, StoreError, VeStanding, WaysBack};
use crate::types::{TemplateRef, VeId, VeName};

/// The VEs of a store.
pub struct StoreFleet {
    store: Arc<Store>,
    commands: CommandRunner,
}

impl StoreFleet {
    /// The VEs of `store`, in which `commands` runs commands.
    pub fn new(store: Arc<Store>, commands: CommandRunner) -> StoreFleet {
        StoreFleet { store, commands }
    }
}

impl Updates {
    /// The rollouts of a store, which from now on heeds what they need. Commands in VEs are run by `commands`.
    ///
    /// # Errors
    /// The records cannot be read.
    pub fn of_store(store: &Arc<Store>, commands: CommandRunner) -> Result<Arc<Updates>, UpdateError> {
        let journal = MetaJournal::new(Arc::clone(store.meta()));
        let fleet = StoreFleet::new(Arc::clone(store), commands);
        let updates = Updates::open(Box::new(fleet), Box::new(journal))?;
        let ways: Arc<dyn WaysBack> = updates.clone();
        store.heed_ways_back(Arc::downgrade(&ways));
        Ok(updates)
    }
}

impl Fleet for StoreFleet {
    fn members(&self) -> Vec<VeStanding> {
        self.store.standings()
    }

    fn member(&self, id: VeId) -> Option<VeStanding> {
        self.store.standing(id)
    }

    fn next_stack(&self, ve: &VeName, wanted: &[TemplateRef]) -> Result<Vec<StackItem>, StoreError> {
        self.store.next_stack(ve, wanted)
    }

    fn rebase(&self, ve: &VeName, to: &[StackItem], how: Rebase<'_>) -> Result<RebaseReport, StoreError> {
        self.store.rebase(ve, to, how)
    }

    fn can_run(&self) -> io::Result<()> {
        self.commands.look()
    }

    fn run(
        &self,
        ve: &VeName,
        command: &str,
        limit: Duration,
        give_up: &(dyn Fn() -> bool + Sync),
    ) -> io::Result<Ran> {
        self.commands.run(ve, command, limit, give_up)
    }

    fn unmount(&self, ve: &VeName) -> Result<(), StoreError> {
        self.store.umount(ve, false).map(drop)
    }

    fn stale_processes(&self, mounts: &[(VeId, PathBuf)]) -> BTreeMap<VeId, Vec<StaleProcess>> {
        processes::stale_processes(mounts)
    }

    fn own_paths(&self, ve: &VeName) -> Result<HashSet<String>, StoreError> {
        Ok(self.store.diff_ve(ve)?.into_iter().map(|change| change.path).collect())
    }
}
