//! What rollouts need of the VEs. The daemon gives them the store's ([`StoreFleet`](super::StoreFleet)); tests give them others, which fail.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::api::{RebaseReport, StackItem, StaleProcess};
use crate::store::{Rebase, StoreError, VeStanding};
use crate::types::{TemplateRef, Timestamp, VeId, VeName};

/// How a command in a VE ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ran {
    /// Its exit code; `None` when it was ended at the limit.
    pub code: Option<i32>,
    /// The end of what it printed, both to standard output and to standard error.
    pub output: String,
    /// How long it ran.
    pub took: Duration,
}

/// VEs that can be moved. Every method may be called from several threads.
pub trait Fleet: Send + Sync {
    /// All VEs, by name.
    fn members(&self) -> Vec<VeStanding>;

    /// The VE with this number, if it still exists.
    fn member(&self, id: VeId) -> Option<VeStanding>;

    /// See [`Store::next_stack`](crate::store::Store::next_stack).
    fn next_stack(&self, ve: &VeName, wanted: &[TemplateRef]) -> Result<Vec<StackItem>, StoreError>;

    /// See [`Store::rebase`](crate::store::Store::rebase).
    fn rebase(&self, ve: &VeName, to: &[StackItem], how: Rebase<'_>) -> Result<RebaseReport, StoreError>;

    /// Whether commands can be run in VEs at all.
    ///
    /// # Errors
    /// Why not.
    fn can_run(&self) -> io::Result<()>;

    /// Runs a shell command in a VE, mounting it first if it is not mounted. It is ended at the limit, and when `give_up` says so.
    ///
    /// # Errors
    /// The command could not be started.
    fn run(
        &self,
        ve: &VeName,
        command: &str,
        limit: Duration,
        give_up: &(dyn Fn() -> bool + Sync),
    ) -> io::Result<Ran>;

    /// Takes a VE's mount away, unless programs use it.
    fn unmount(&self, ve: &VeName) -> Result<(), StoreError>;

    /// Which programs still use files that mounted VEs do not have any more, for several VEs at once as it costs the same.
    fn stale_processes(&self, mounts: &[(VeId, PathBuf)]) -> BTreeMap<VeId, Vec<StaleProcess>>;

    /// The paths that a VE changed, made or removed, as [`path_text`](crate::api::path_text) writes them.
    fn own_paths(&self, ve: &VeName) -> Result<HashSet<String>, StoreError>;

    /// The time.
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}
