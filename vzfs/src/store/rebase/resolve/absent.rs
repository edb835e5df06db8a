//! What the update has and the VE has nothing at: because it removed it, because a directory above is its own, or because it belongs to a
//! version of a package that the VE does not have.

use super::files::{ALTERNATIVES_LINKS, is_left_alone};
use super::packages::Standing;
use super::prepared::Place;
use super::{Item, Resolver};
use crate::api::{ChangeKind, OnConflict, ShadowedBy};
use crate::merge::Rule;
use crate::store::StoreError;
use crate::tree::{InodeChange, NameChange};
use crate::types::{FileKind, Ino};
use crate::volume::Edit;

use std::collections::HashSet;

impl<'a> Resolver<'a> {
    pub(super) fn decide_removed(&mut self, item: &'a Item<'a>) -> Result<(), StoreError> {
        if item.hidden.change.new.is_none() {
            return Ok(());
        }
        let is_own = self.packages.own_owner(&item.place).is_some();
        if item.is_info() {
            // An upgrade brings the files of dpkg's own back.
            if !is_own {
                self.take(item);
            }
        } else if item.path.starts_with(ALTERNATIVES_LINKS) {
            self.links.push(item);
        } else if is_own || !self.is_noise(&item.path) {
            self.shadow(item, None);
        }
        Ok(())
    }

    /// A name below a directory that is not the base's: removed with it, or the VE has something there all the same.
    pub(super) fn decide_below_own_directory(&mut self, item: &'a Item<'a>) -> Result<(), StoreError> {
        if self.is_noise(&item.path) {
            return Ok(());
        }
        let own = self.sides.volume.resolve(&item.path).map_err(self.sides.failed())?;
        if let Some(ino) = own
            && self.is_shown_already(item, ino)?
        {
            return Ok(());
        }
        let is_own_package = self.packages.own_owner(&item.place).is_some();
        if self.sides.on_conflict == OnConflict::Fail
            && !is_own_package
            && self.stands_in_the_way(item.place.0)?
        {
            return Err(
                self.refuse(&format!("a directory above /{}", item.text()), "it is another directory")
            );
        }
        match own {
            Some(_) if is_own_package => self.shadow_as(item, ShadowedBy::Changed, None),
            Some(_) => self.keep(item, ShadowedBy::Changed, None),
            None => self.shadow_as(item, ShadowedBy::Directory, None),
        }
        Ok(())
    }

    /// What programs make for themselves is no loss.
    fn is_noise(&self, path: &[u8]) -> bool {
        let rule = self.sides.rules.rule_for(path);
        rule == Rule::Derived || is_left_alone(rule, path)
    }

    /// Whether a directory of the new base is not shown because of something that the VE has there, and not only because it removed it.
    fn stands_in_the_way(&mut self, dir: Ino) -> Result<bool, StoreError> {
        if let Some(known) = self.own_directories.get(&dir) {
            return Ok(*known);
        }
        let path = self.sides.delta.new.path(dir);
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        let mut own = false;
        for end in ends.chain([path.len()]) {
            let base = self.sides.delta.new.resolve(&path[..end]).map(|view| view.ino());
            let found = self.sides.volume.resolve(&path[..end]).map_err(self.sides.failed())?;
            if found != base {
                own = found.is_some();
                break;
            }
        }
        self.own_directories.insert(dir, own);
        Ok(own)
    }

    /// What the update would add for packages that are the VE's must not appear (R1).
    pub(super) fn hide_unwanted(&mut self) -> Result<(), StoreError> {
        let delta = self.sides.delta;
        let mut unwanted: Vec<(Vec<u8>, Place, &Standing)> = self
            .packages
            .unwanted()
            .into_iter()
            .map(|(place, standing)| (delta.path(place.0, place.1.as_ref()), place, standing))
            .collect();
        // Directories before what is in them.
        unwanted.sort_by(|a, b| a.0.cmp(&b.0));
        let mut gone = HashSet::new();
        for (path, place, standing) in unwanted {
            let Some(change) = delta.name(place.0, &place.1) else { continue };
            let Some((ino, kind)) = change.new else { continue };
            let is_below = gone.contains(&place.0);
            if !is_below && self.used.contains(&place) {
                continue;
            }
            let what = Absent { path: &path, change, standing };
            if !is_below {
                if !self.can_hide(ino)? {
                    self.resolved.notes.push(format!(
                        "/{} of {} cannot be hidden, because the VE has the file under another name",
                        super::text::shown(&path),
                        standing.name
                    ));
                    continue;
                }
                self.resolved.edits.push(Edit::hide(place.0, place.1.clone(), change));
            }
            if kind == FileKind::Dir {
                gone.insert(ino);
            } else {
                self.tell_absent(&what, &place);
            }
        }
        Ok(())
    }

    /// Whether a name of an inode that comes with the update would be shown from the base: the VE knows nothing of the inode.
    fn can_hide(&self, ino: Ino) -> Result<bool, StoreError> {
        if self.sides.delta.inode(ino) != Some(InodeChange::Came) {
            return Ok(false);
        }
        match self.sides.volume.attr(ino) {
            Err(crate::volume::VolumeError::NotFound) => Ok(true),
            // An earlier base had it.
            Ok(attr) => {
                Ok(attr.nlink == 0 && !self.sides.volume.is_orphan(ino).map_err(self.sides.failed())?)
            }
            Err(error) => Err(self.sides.failed()(error)),
        }
    }

    fn tell_absent(&mut self, what: &Absent<'_>, place: &Place) {
        let by = if what.standing.is_installed() { ShadowedBy::Changed } else { ShadowedBy::Removed };
        if !super::is_info_path(what.path) {
            self.push_shadowed(what.path, place, change_kind(what.change), by, None);
        }
    }
}

/// A name that is hidden because its package is the VE's.
struct Absent<'s> {
    path: &'s [u8],
    change: NameChange,
    standing: &'s Standing,
}

pub(super) fn change_kind(change: NameChange) -> ChangeKind {
    match (change.old, change.new) {
        (None, _) => ChangeKind::Added,
        (Some(_), Some(_)) => ChangeKind::Changed,
        (Some(_), None) => ChangeKind::Deleted,
    }
}
