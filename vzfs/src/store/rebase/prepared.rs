//! What is the same for all VEs that go from one base to another.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use super::resolve;
use crate::blobs::BlobStore;
use crate::store::StoreError;
use crate::tree::{Delta, NameChange};
use crate::types::Digest;

/// Differences that are kept. A rollout moves VEs of a few stacks at a time; each takes some megabytes for a release of a distribution.
const KEPT: usize = 8;

/// The difference of two bases.
pub(in crate::store) struct Prepared {
    pub(super) delta: Delta,
    /// What the two say of packages.
    pub(super) packages: resolve::Prepared,
    /// How many names differ.
    pub(super) counts: Counts,
}

/// Changed names, by what changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) added: u64,
    pub(super) changed: u64,
    pub(super) removed: u64,
}

impl Counts {
    pub(super) fn of(changes: impl Iterator<Item = NameChange>) -> Counts {
        let mut counts = Counts::default();
        for change in changes {
            match (change.old, change.new) {
                (None, _) => counts.added += 1,
                (_, None) => counts.removed += 1,
                _ => counts.changed += 1,
            }
        }
        counts
    }
}

impl Prepared {
    pub(super) fn new(delta: Delta, blobs: &BlobStore) -> Result<Prepared, StoreError> {
        let counts = Counts::of(delta.names().flat_map(|(_, names)| names.values().copied()));
        Ok(Prepared { packages: resolve::Prepared::new(&delta, blobs)?, delta, counts })
    }
}

/// The differences that were asked for lately, the latest last.
#[derive(Default)]
pub(in crate::store) struct Deltas {
    /// A leaf for those that are there; held while one is made, so that it is made once for all who wait for it.
    kept: Mutex<VecDeque<Arc<Prepared>>>,
}

impl Deltas {
    pub(super) fn get(
        &self,
        old: &Digest,
        new: &Digest,
        make: impl FnOnce() -> Result<Prepared, StoreError>,
    ) -> Result<Arc<Prepared>, StoreError> {
        let mut kept = self.kept.lock();
        let is_it = |prepared: &Arc<Prepared>| {
            prepared.delta.old.digest() == *old && prepared.delta.new.digest() == *new
        };
        let prepared = match kept.iter().position(is_it).and_then(|at| kept.remove(at)) {
            Some(prepared) => prepared,
            None => Arc::new(make()?),
        };
        kept.push_back(Arc::clone(&prepared));
        if kept.len() > KEPT {
            kept.pop_front();
        }
        Ok(prepared)
    }
}
