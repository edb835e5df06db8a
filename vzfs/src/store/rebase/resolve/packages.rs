//! Whose version of each package a VE shows.
//!
//! A package is shown whole from one side, because its files fit each other, its checksums and its scripts, and no others.
//! - P1: a package that the VE installed, upgraded, downgraded or removed is the VE's. Its files are private already; what the update would add for
//!   it is hidden.
//! - P2: every other package is the update's, also if the VE changed files of it by hand.
//! - P3: where both came to the same version of a package by themselves, and installed the same files, it is the update's: nothing is lost, and
//!   the files are shared again.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::Sides;
use super::content::{Blob, digest_of, read_bounded};
use super::prepared::{INFO, Paths, Place, Prepared, STATUS};
use super::status::{Package, Status, split_stem};
use super::text::{lines_of, shortened};
use crate::store::StoreError;
use crate::types::{FileKind, debian_order};
use crate::volume::VolumeError;

/// What dpkg has done and not yet written into its table.
const JOURNAL: &[u8] = b"var/lib/dpkg/updates";

/// How much of the lists of a VE's packages is read: a large system has 50 MB of them. The root of a VE may make any number of large files that
/// take no space.
const MAX_LISTS_BYTES: usize = 512 << 20;

/// A package that is the VE's (P1).
pub(super) struct Standing {
    pub(super) name: String,
    pub(super) old: Option<Package>,
    pub(super) new: Option<Package>,
    pub(super) own: Option<Package>,
}

impl Standing {
    fn sides(&self) -> impl Iterator<Item = &Package> {
        [&self.own, &self.new, &self.old].into_iter().flatten()
    }

    /// Whether the update has done something to it.
    fn is_updated(&self) -> bool {
        signature(self.old.as_ref()) != signature(self.new.as_ref())
    }

    pub(super) fn is_installed(&self) -> bool {
        self.own.as_ref().is_some_and(Package::is_installed)
    }

    /// How the package's own files may be called.
    fn stems(&self) -> BTreeSet<String> {
        let both = |package: &Package| [self.name.clone(), format!("{}:{}", self.name, package.architecture)];
        self.sides().flat_map(both).collect()
    }

    /// What the VE does not get of the update, if it is that.
    pub(super) fn note(&self) -> Option<String> {
        let name = &self.name;
        let own = self.own.as_ref().filter(|own| own.is_installed());
        if !self.is_updated() {
            return None;
        }
        Some(match (self.new.as_ref().filter(|new| new.is_installed()), own) {
            (Some(new), Some(own)) => {
                let order = debian_order(&own.version, &new.version);
                let older = if order == Ordering::Less { ", which is older" } else { "" };
                let (new, own) = (&new.version, &own.version);
                format!("{name}: the update brings {new}, the VE keeps its own {own}{older}")
            }
            (Some(new), None) => {
                format!("{name}: the update brings {}, the VE has removed it", new.version)
            }
            (None, Some(own)) => {
                format!("{name}: the update removes it, the VE keeps its own {}", own.version)
            }
            (None, None) => return None,
        })
    }

    /// Whether both sides have a version of it that the other has not.
    pub(super) fn is_conflict(&self) -> bool {
        self.is_installed() && self.is_updated() && self.new.as_ref().is_some_and(Package::is_installed)
    }
}

fn signature(package: Option<&Package>) -> Option<(&str, &str, &str)> {
    package.map(Package::signature)
}

/// The packages of a VE.
pub(super) struct Packages<'a> {
    prepared: &'a Prepared,
    /// The VE's table, if it is another than the old base's.
    pub(super) own: Option<Status>,
    /// The packages that are the VE's, by name.
    standings: BTreeMap<String, Vec<Standing>>,
    /// Where they have files, of the names that differ between the bases.
    own_places: HashMap<Place, String>,
    /// What could not be read, a sentence each.
    pub(super) notes: Vec<String>,
}

impl<'a> Packages<'a> {
    pub(super) fn compare(sides: &'a Sides<'_>) -> Result<Packages<'a>, StoreError> {
        let mut packages = Packages {
            prepared: sides.prepared,
            own: None,
            standings: BTreeMap::new(),
            own_places: HashMap::new(),
            notes: Vec::new(),
        };
        let (Some(old), Some(new)) = (&sides.prepared.old, &sides.prepared.new) else { return Ok(packages) };
        if sides.has_entries(JOURNAL)? {
            packages.notes.push(
                "dpkg is at work in the VE, or was interrupted there: what it has not written yet is not looked at"
                    .to_owned(),
            );
        }
        let Some(bytes) = sides.read_path(STATUS)? else { return Ok(packages) };
        if bytes == old.text() {
            return Ok(packages);
        }
        let own = match Status::parse(bytes) {
            Ok(own) => own,
            Err(error) => {
                packages.notes.push(format!(
                    "the VE's package table cannot be used ({error}), so that its packages are taken to be the old base's"
                ));
                return Ok(packages);
            }
        };
        let names: BTreeSet<&str> = old.names().chain(new.names()).chain(own.names()).collect();
        for name in names {
            if old.named(name).map(Package::signature).eq(own.named(name).map(Package::signature)) {
                continue;
            }
            for standing in standings(name, [old, new, &own]) {
                if signature(standing.own.as_ref()) != signature(standing.old.as_ref())
                    && !is_same_build(sides, &standing)?
                {
                    packages.standings.entry(name.to_owned()).or_default().push(standing);
                }
            }
        }
        packages.own = Some(own);
        let mut budget = MAX_LISTS_BYTES;
        packages.own_places = own_places(sides, packages.all(), &mut budget)?;
        if budget == 0 {
            packages.notes.push(
                "the lists of the VE's packages are too large, and were not read to the end".to_owned(),
            );
        }
        Ok(packages)
    }

    /// The packages that are the VE's.
    pub(super) fn all(&self) -> impl Iterator<Item = &Standing> {
        self.standings.values().flatten()
    }

    /// What is known of a package that is the VE's; `None` when it is the update's.
    pub(super) fn standing(&self, stem: &str) -> Option<&Standing> {
        let (name, architecture) = split_stem(stem);
        let fits = |standing: &&Standing| match architecture {
            Some(architecture) => standing.sides().any(|package| package.architecture == architecture),
            None => true,
        };
        self.standings.get(name)?.iter().find(fits)
    }

    /// The package of the VE's own that a name belongs to, if it is one.
    pub(super) fn own_owner(&self, place: &Place) -> Option<&Standing> {
        let owners = self.prepared.owners(place);
        let own = self.own_places.get(place).and_then(|stem| self.standing(stem));
        own.or_else(|| {
            let owners = owners?;
            let mut stems = owners.new.iter().chain(&owners.old);
            stems.find_map(|stem| self.standing(stem))
        })
    }

    /// The package that has a name in the new base, if it is one of the update's.
    pub(super) fn owner_in_update(&self, place: &Place) -> Option<&str> {
        let owners = self.prepared.owners(place)?;
        owners.new.iter().map(String::as_str).find(|stem| self.standing(stem).is_none())
    }

    /// Names that the new base has only for packages that are the VE's, and that no package of the VE has.
    pub(super) fn unwanted(&self) -> Vec<(Place, &Standing)> {
        let mut found = BTreeMap::new();
        for stem in self.prepared.stems() {
            let Some(standing) = self.standing(stem) else { continue };
            for place in self.prepared.claims(stem) {
                let owners = self.prepared.owners(place);
                let wanted =
                    owners.is_some_and(|owners| owners.new.iter().any(|o| self.standing(o).is_none()));
                if !wanted && !self.own_places.contains_key(place) {
                    found.insert(place.clone(), standing);
                }
            }
        }
        found.into_iter().collect()
    }

    /// The package that a name belongs to, the version of it that the VE had and the one that the update has.
    pub(super) fn versions(&self, place: &Place) -> Option<Versions> {
        let owners = self.prepared.owners(place)?;
        let stem = owners.new.first().or(owners.old.first())?;
        let own = self.own.as_ref().or(self.prepared.old.as_ref());
        let version =
            |status: Option<&Status>| find(status?, stem).map(|package| shortened(&package.version));
        Some(Versions {
            package: split_stem(stem).0.to_owned(),
            from: version(own),
            to: version(self.prepared.new.as_ref()),
        })
    }

    /// Whether a path (no leading slash) is configuration of the package that has the name, in the new base.
    pub(super) fn is_conffile(&self, place: &Place, path: &[u8]) -> bool {
        let Some(new) = &self.prepared.new else { return false };
        let stems = self.prepared.owners(place).map(|owners| owners.new.as_slice()).unwrap_or_default();
        let listed = |stem: &String| {
            let conffiles = find(new, stem).and_then(|package| new.field(package, "Conffiles"));
            let mut lines = conffiles.iter().flat_map(|text| text.lines());
            lines.any(|line| {
                line.split(' ').next().is_some_and(|file| file.as_bytes().strip_prefix(b"/") == Some(path))
            })
        };
        stems.iter().any(listed)
    }

    /// Packages that the VE wants to stay as they are and that are the update's all the same: there is nothing private of them to keep.
    pub(super) fn held(&self) -> Vec<String> {
        let (Some(own), Some(old), Some(new)) = (&self.own, &self.prepared.old, &self.prepared.new) else {
            return Vec::new();
        };
        let note = |package: &Package| {
            let same = |other: &&Package| other.architecture == package.architecture;
            let before = old.named(&package.name).find(same)?;
            let after = new.named(&package.name).find(same)?;
            let is_held = package.want == "hold" && package.version == before.version;
            let is_moved = before.version != after.version && package.signature() == before.signature();
            (is_held && is_moved).then(|| {
                format!(
                    "{}: the VE holds it at {}, but has the template's files, which are {} now",
                    package.name, package.version, after.version
                )
            })
        };
        own.packages().filter_map(note).collect()
    }
}

/// A package and its versions.
pub(super) struct Versions {
    pub(super) package: String,
    pub(super) from: Option<String>,
    pub(super) to: Option<String>,
}

fn find<'s>(status: &'s Status, stem: &str) -> Option<&'s Package> {
    let (name, architecture) = split_stem(stem);
    let mut named = status.named(name);
    match architecture {
        Some(architecture) => named.find(|package| package.architecture == architecture),
        None => named.next(),
    }
}

/// Pairs the packages of a name. They are told apart by their architecture only where there are several: a package may change from one
/// to `all`.
fn standings(name: &str, tables: [&Status; 3]) -> Vec<Standing> {
    let sides = tables.map(|table| table.named(name).collect::<Vec<_>>());
    let make = |fits: &dyn Fn(&&&Package) -> bool| {
        let [old, new, own] =
            sides.each_ref().map(|side| side.iter().find(fits).map(|package| (*package).clone()));
        Standing { name: name.to_owned(), old, new, own }
    };
    if sides.iter().all(|side| side.len() < 2) {
        return vec![make(&|_| true)];
    }
    let architectures: BTreeSet<&str> = sides.iter().flatten().map(|p| p.architecture.as_str()).collect();
    architectures
        .into_iter()
        .map(|architecture| make(&|package| package.architecture == architecture))
        .collect()
}

/// Whether VE and update have the same version of a package, with the same files (P3).
fn is_same_build(sides: &Sides<'_>, standing: &Standing) -> Result<bool, StoreError> {
    if signature(standing.own.as_ref()) != signature(standing.new.as_ref()) {
        return Ok(false);
    }
    for stem in standing.stems() {
        for extension in ["list", "md5sums"] {
            let path = info_path(&stem, extension);
            let Some(blob) = Blob::at(&sides.delta.new, &path) else { continue };
            let Some(file) = sides.open_path(&path)? else { return Ok(false) };
            let size = file.metadata().map_err(sides.cannot_read(&path))?.len();
            if size != blob.size || digest_of(file).map_err(sides.cannot_read(&path))? != blob.digest {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn info_path(stem: &str, extension: &str) -> Vec<u8> {
    [INFO, b"/", stem.as_bytes(), b".", extension.as_bytes()].concat()
}

/// Where the VE's packages have files.
fn own_places<'s>(
    sides: &Sides<'_>,
    standings: impl Iterator<Item = &'s Standing>,
    budget: &mut usize,
) -> Result<HashMap<Place, String>, StoreError> {
    let mut places = HashMap::new();
    let mut paths = Paths::new(&sides.delta.new, sides.blobs)?;
    for standing in standings.filter(|standing| standing.own.is_some()) {
        for stem in standing.stems() {
            let path = info_path(&stem, "list");
            let Some(list) = sides.read_path(&path)? else { continue };
            *budget = budget.saturating_sub(list.len());
            if *budget == 0 {
                return Ok(places);
            }
            for path in lines_of(&list) {
                let place = paths.place(path, &stem);
                let differs = |place: &Place| sides.delta.name(place.0, &place.1).is_some();
                places.extend(place.filter(differs).map(|place| (place, stem.clone())));
            }
        }
    }
    Ok(places)
}

impl Sides<'_> {
    /// The regular file that the VE has at a path, if it has one there; no symbolic links are followed.
    pub(super) fn open_path(&self, path: &[u8]) -> Result<Option<std::fs::File>, StoreError> {
        let Some(ino) = self.volume.resolve(path).map_err(self.failed())? else { return Ok(None) };
        if self.volume.attr(ino).map_err(self.failed())?.kind != FileKind::File {
            return Ok(None);
        }
        self.volume.open_for_reading(ino).map(Some).map_err(self.failed())
    }

    /// Whether the VE has a directory there with something in it.
    fn has_entries(&self, path: &[u8]) -> Result<bool, StoreError> {
        let Some(ino) = self.volume.resolve(path).map_err(self.failed())? else { return Ok(false) };
        let mut any = false;
        let listed = self.volume.read_dir(ino, 0, |entry| {
            any = ![&b"."[..], b".."].contains(&entry.name);
            !any
        });
        match listed {
            Ok(()) => Ok(any),
            Err(VolumeError::NotDir) => Ok(false),
            Err(error) => Err(self.failed()(error)),
        }
    }

    /// Its bytes; `None` also when they are more than anything that is merged.
    pub(super) fn read_path(&self, path: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match self.open_path(path)? {
            Some(file) => read_bounded(file).map_err(self.cannot_read(path)),
            None => Ok(None),
        }
    }
}
