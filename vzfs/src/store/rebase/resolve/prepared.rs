//! What two bases say of packages: made once for a difference of bases, used for every VE that is moved along it.

use std::collections::{HashMap, VecDeque};

use super::content::Blob;
use super::status::{Status, split_stem, stem_of};
use super::text::{lines_of, shown};
use crate::blobs::BlobStore;
use crate::merge::MergeError;
use crate::store::StoreError;
use crate::tree::{Delta, Target, Tree};
use crate::types::{FileKind, Ino, Name, NameRef};

/// dpkg's table of packages.
pub(super) const STATUS: &[u8] = b"var/lib/dpkg/status";
/// Where dpkg keeps each package's own files: what it installed, their checksums, its scripts.
pub(super) const INFO: &[u8] = b"var/lib/dpkg/info";
const DIVERSIONS: &[u8] = b"var/lib/dpkg/diversions";
/// As many as Linux follows.
const MAX_LINKS: usize = 40;

/// More than a large system has. A list of a VE's may name any number.
const MAX_KNOWN_DIRS: usize = 1 << 17;

/// A name in a directory.
pub(super) type Place = (Ino, Name);

/// The packages of both bases, and which of the names that differ between them belong to which.
#[derive(Default)]
pub(in crate::store) struct Prepared {
    /// The package tables; empty without one, `None` when it cannot be used.
    pub(super) old: Option<Status>,
    pub(super) new: Option<Status>,
    owners: HashMap<Place, Owners>,
    /// The names that differ and that the new base has, by package.
    claims: HashMap<String, Vec<Place>>,
    /// What could not be read, a sentence each.
    pub(super) notes: Vec<String>,
}

/// The packages, as dpkg calls their own files, that have a name.
#[derive(Default, Debug)]
pub(super) struct Owners {
    pub(super) old: Vec<String>,
    pub(super) new: Vec<String>,
}

impl Prepared {
    /// Reads the package tables of both bases and the lists of all packages. Takes time in proportion to those, not to the bases.
    ///
    /// # Errors
    /// A blob of one of the bases cannot be read, or is damaged.
    pub(in crate::store) fn new(delta: &Delta, blobs: &BlobStore) -> Result<Prepared, StoreError> {
        let mut prepared = Prepared::default();
        if delta.is_empty() {
            return Ok(prepared);
        }
        prepared.old = prepared.status(&delta.old, "the old base", blobs)?;
        prepared.new = prepared.status(&delta.new, "the update", blobs)?;
        for (tree, is_new) in [(&delta.old, false), (&delta.new, true)] {
            let mut paths = Paths::new(tree, blobs)?;
            for (stem, list) in lists(tree) {
                // A list that is too large is none of dpkg's.
                let bytes = list.read(blobs)?.unwrap_or_default();
                for path in lines_of(&bytes) {
                    prepared.claim(delta, paths.place(path, &stem), &stem, is_new);
                }
            }
        }
        prepared.claim_info(delta);
        Ok(prepared)
    }

    fn status(&mut self, tree: &Tree, of: &str, blobs: &BlobStore) -> Result<Option<Status>, StoreError> {
        let bytes = match Blob::at(tree, STATUS) {
            Some(blob) => blob.read(blobs)?,
            None => Some(Vec::new()),
        };
        match bytes.ok_or(MergeError::TooMuch).and_then(Status::parse) {
            Ok(status) => Ok(Some(status)),
            Err(error) => {
                self.notes.push(format!("the package table of {of} cannot be used: {error}"));
                Ok(None)
            }
        }
    }

    /// The files of dpkg's own folder belong to the packages that they are called after.
    fn claim_info(&mut self, delta: &Delta) {
        let dir = delta.new.resolve(INFO).or_else(|| delta.old.resolve(INFO)).map(|view| view.ino());
        for (dir, name, change) in dir.into_iter().flat_map(|dir| changed_in(delta, dir)) {
            if let Some(stem) = stem_of(name.as_bytes()) {
                for (side, is_new) in [(change.old, false), (change.new, true)] {
                    if side.is_some() {
                        self.claim(delta, Some((dir, name.clone())), &stem, is_new);
                    }
                }
            }
        }
    }

    fn claim(&mut self, delta: &Delta, place: Option<Place>, stem: &str, is_new: bool) {
        let Some(place) = place else { return };
        let Some(change) = delta.name(place.0, &place.1) else { return };
        let owners = self.owners.entry(place.clone()).or_default();
        let side = if is_new { &mut owners.new } else { &mut owners.old };
        if side.iter().any(|other| other == stem) {
            return;
        }
        side.push(stem.to_owned());
        if is_new && change.new.is_some() {
            self.claims.entry(stem.to_owned()).or_default().push(place);
        }
    }

    /// The packages that have a name which differs between the bases.
    pub(super) fn owners(&self, place: &Place) -> Option<&Owners> {
        self.owners.get(place)
    }

    /// The names which differ between the bases and which a package has in the new one.
    pub(super) fn claims(&self, stem: &str) -> &[Place] {
        self.claims.get(stem).map(Vec::as_slice).unwrap_or_default()
    }

    /// All packages that have such names.
    pub(super) fn stems(&self) -> impl Iterator<Item = &str> {
        self.claims.keys().map(String::as_str)
    }
}

fn changed_in(delta: &Delta, dir: Ino) -> impl Iterator<Item = (Ino, &Name, crate::tree::NameChange)> {
    delta.names_in(dir).into_iter().flatten().map(move |(name, change)| (dir, name, *change))
}

/// The lists of packages in a base.
fn lists(tree: &Tree) -> Vec<(String, Blob)> {
    let Some(dir) = tree.resolve(INFO) else { return Vec::new() };
    let list = |entry: crate::tree::TreeEntry<'_>| {
        let Target::Node(ino, kind) = entry.target else { return None };
        let stem = entry.name.as_bytes().strip_suffix(b".list")?;
        Some((shown(stem), Blob::of(tree, Some((ino, kind)))?))
    };
    tree.entries(dir.ino(), None).filter_map(list).collect()
}

/// Finds where a base has the paths that packages list: through links to directories (`/bin/sh` is in `usr/bin`) and diversions.
pub(super) struct Paths<'t> {
    tree: &'t Tree,
    dirs: HashMap<Vec<u8>, Option<Ino>>,
    /// Diverted path -> where to, and the package that is not.
    diversions: HashMap<Vec<u8>, (Vec<u8>, Vec<u8>)>,
}

impl<'t> Paths<'t> {
    pub(super) fn new(tree: &'t Tree, blobs: &BlobStore) -> Result<Paths<'t>, StoreError> {
        let table = Blob::at(tree, DIVERSIONS).map(|blob| blob.read(blobs)).transpose()?.flatten();
        Ok(Paths { tree, dirs: HashMap::new(), diversions: diversions(&table.unwrap_or_default()) })
    }

    /// Where a package has a path of its list (absolute). The path's last name is not followed.
    pub(super) fn place(&mut self, path: &[u8], stem: &str) -> Option<Place> {
        let path = match self.diversions.get(path) {
            Some((to, package)) if package.as_slice() != split_stem(stem).0.as_bytes() => to.as_slice(),
            _ => path,
        };
        let slash = path.iter().rposition(|byte| *byte == b'/')?;
        let (dir, name) = (&path[..slash], Name::new(&path[slash + 1..]).ok()?);
        let ino = match self.dirs.get(dir) {
            Some(known) => *known,
            None => {
                let found = directory(self.tree, dir);
                if self.dirs.len() == MAX_KNOWN_DIRS {
                    self.dirs.clear();
                }
                self.dirs.insert(dir.to_vec(), found);
                found
            }
        };
        Some((ino?, name))
    }
}

/// Three lines a record: the path, where to, the package whose own file stays (`:`: none).
fn diversions(table: &[u8]) -> HashMap<Vec<u8>, (Vec<u8>, Vec<u8>)> {
    let lines: Vec<&[u8]> = lines_of(table).collect();
    let record = |record: &[&[u8]]| match record {
        [from, to, package] => Some((from.to_vec(), (to.to_vec(), package.to_vec()))),
        _ => None,
    };
    lines.chunks(3).filter_map(record).collect()
}

/// The directory at a path, through symbolic links.
fn directory(tree: &Tree, path: &[u8]) -> Option<Ino> {
    let parts = |path: &[u8]| {
        let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
        names.map(<[u8]>::to_vec).collect::<Vec<_>>()
    };
    let mut here = Ino::ROOT;
    let mut todo = VecDeque::from(parts(path));
    let mut links = 0;
    while let Some(name) = todo.pop_front() {
        if name == b".." {
            here = tree.node(here)?.parent();
            continue;
        }
        match tree.lookup(here, NameRef::new(&name).ok()?)?.target {
            Target::Node(ino, FileKind::Dir) => here = ino,
            Target::Node(ino, FileKind::Symlink) => {
                let crate::tree::ContentRef::Symlink(target) = tree.node(ino)?.content() else { return None };
                links += 1;
                if links > MAX_LINKS {
                    return None;
                }
                if target.starts_with(b"/") {
                    here = Ino::ROOT;
                }
                for part in parts(target).into_iter().rev() {
                    todo.push_front(part);
                }
            }
            _ => return None,
        }
    }
    Some(here)
}
