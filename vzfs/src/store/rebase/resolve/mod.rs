//! Where both the update and the VE changed a name: what is done about it.
//!
//! The VE stays as it is, except where both can have their will. A three-way decision has the old base as ancestor, the new base as one side
//! and the VE as the other, which wins where records clash.
//!
//! # Rules
//! - R1: each package is shown whole from one side (P1 to P3 of `packages`), its files, dpkg's own files of it, and its records in the tables.
//!   That goes before everything below, and whatever is to be done at conflicts.
//! - R2: what the VE holds in the old base's content, or in the new one's, is the new base's from now on and shared again. Attributes that the VE
//!   changed stay.
//! - R3: what a rule can merge is merged. Logs and backups of tables are not: the VE's stay, and the programs that write them go on.
//! - R4: derived files stay the VE's, because the new base's know nothing of what the VE has of its own (a program would not find its
//!   libraries); what makes them anew is to be run.
//! - R5: everything else is a conflict: [`OnConflict`]. Configuration of the side that is not shown is put beside, as dpkg does it. What the VE
//!   removed stays removed, and that is no conflict.
//! - R6: what the update has and the VE does not show is told, file by file; of packages there is a sentence as well.
//!
//! # What a VE can do to this
//! Its files are hostile input: they are read as far as anything is merged, links are not followed, and what cannot be understood is left as it is
//! and told. Its changes while this runs make the move find other times of change than the decisions name, and begin again
//! ([`VolumeError::Changed`]).

mod absent;
mod content;
mod database;
mod depends;
mod files;
mod links;
mod packages;
mod prepared;
mod report;
mod status;
#[cfg(test)]
mod tests;
mod text;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;

pub(in crate::store) use prepared::Prepared;

use self::links::Wanted;
use self::packages::Packages;
use self::prepared::Place;
use crate::api::{Generate, MergedFile, OnConflict, Shadowed};
use crate::blobs::{Batch, BlobStore};
use crate::merge::Rules;
use crate::store::StoreError;
use crate::tree::Delta;
use crate::types::{Ino, VeName};
use crate::volume::{Edit, Hidden, Volume, VolumeError};

/// What there is to decide about.
pub(super) struct Sides<'a> {
    /// The VE's name, for messages.
    pub(super) ve: &'a VeName,
    /// Both bases.
    pub(super) delta: &'a Delta,
    /// What they say of packages.
    pub(super) prepared: &'a Prepared,
    /// The VE, on the old one.
    pub(super) volume: &'a Volume,
    /// Content of both, and where merged files go.
    pub(super) blobs: &'a BlobStore,
    /// Which path is merged how.
    pub(super) rules: &'a Rules,
    /// What wins where nothing can be merged.
    pub(super) on_conflict: OnConflict,
    /// Nothing is stored.
    pub(super) dry_run: bool,
}

impl Sides<'_> {
    /// What has vanished since the preview was made has changed since.
    fn failed(&self) -> impl FnOnce(VolumeError) -> StoreError {
        let ve = self.ve.clone();
        move |error| {
            let error = if matches!(error, VolumeError::NotFound) { VolumeError::Changed } else { error };
            StoreError::Volume { ve, source: Box::new(error) }
        }
    }

    fn cannot_read(&self, path: &[u8]) -> impl FnOnce(io::Error) -> StoreError {
        let what = format!("cannot read /{}", text::shown(path));
        let failed = self.failed();
        move |source| failed(VolumeError::Io { what, source })
    }
}

/// What was decided.
#[derive(Default)]
pub(super) struct Resolved {
    /// What the volume is to do. Contents that they name are durable, except in a dry run, whose edits are not to be made.
    pub(super) edits: Vec<Edit>,
    /// What the VE will not show. By path.
    pub(super) shadowed: Vec<Shadowed>,
    /// Files that have both sides' changes. By path.
    pub(super) merged: Vec<MergedFile>,
    /// Files to be made anew in the VE afterwards. By path.
    pub(super) generate: Vec<Generate>,
    /// What somebody should know, a sentence each.
    pub(super) notes: Vec<String>,
}

/// Decides about everything that a preview has found hidden.
///
/// # Errors
/// - [`StoreError::Invalid`] with [`OnConflict::Fail`], naming the first conflict by path. Nothing was stored.
/// - [`StoreError::Volume`] with [`VolumeError::Changed`] when the VE is not any more as the preview saw it.
/// - A blob is missing or damaged; a merged file cannot be stored.
pub(super) fn resolve(sides: &Sides<'_>, hidden: &[Hidden]) -> Result<Resolved, StoreError> {
    if hidden.is_empty() {
        return Ok(Resolved::default());
    }
    let mut items: Vec<Item<'_>> = hidden.iter().map(|hidden| Item::new(sides.delta, hidden)).collect();
    items.sort_by(|a, b| a.path.cmp(&b.path));
    let packages = Packages::compare(sides)?;
    let mut resolver = Resolver {
        sides,
        packages: &packages,
        batch: sides.blobs.batch(),
        used: items.iter().map(|item| item.place.clone()).collect(),
        own_directories: HashMap::new(),
        links: Vec::new(),
        wanted: Wanted::default(),
        own_files: BTreeMap::new(),
        resolved: Resolved::default(),
    };
    resolver.check_packages()?;
    for item in &items {
        resolver.decide(item)?;
    }
    resolver.settle_links()?;
    resolver.hide_unwanted()?;
    resolver.finish()
}

/// A name that is decided about.
struct Item<'h> {
    hidden: &'h Hidden,
    place: Place,
    /// Where the bases have it, without a leading slash.
    path: Vec<u8>,
}

impl<'h> Item<'h> {
    fn new(delta: &Delta, hidden: &'h Hidden) -> Item<'h> {
        let place = (hidden.dir, hidden.name.clone());
        Item { hidden, place, path: delta.path(hidden.dir, hidden.name.as_ref()) }
    }

    fn text(&self) -> String {
        text::shown(&self.path)
    }
}

/// Whether a path is a file of dpkg's own of some package.
fn is_info_path(path: &[u8]) -> bool {
    let file = path.strip_prefix(prepared::INFO).and_then(|rest| rest.strip_prefix(b"/"));
    file.is_some_and(|file| status::stem_of(file).is_some())
}

struct Resolver<'a> {
    sides: &'a Sides<'a>,
    packages: &'a Packages<'a>,
    batch: Batch<'a>,
    /// Names that nothing may be put at: decided about, or put there already.
    used: HashSet<Place>,
    /// Whether something of the VE's own stands at a directory of the new base, or above it.
    own_directories: HashMap<Ino, bool>,
    /// Links of alternatives: decided about when all databases are merged.
    links: Vec<&'a Item<'a>>,
    wanted: Wanted,
    /// Files of packages that the VE changed by hand, by package and its versions.
    own_files: BTreeMap<String, Vec<String>>,
    resolved: Resolved,
}
