//! What is told of the decisions.

use super::absent::change_kind;
use super::packages::Versions;
use super::prepared::Place;
use super::text::{listed, shortened, shown};
use super::{Item, Resolved, Resolver};
use crate::api::{ChangeKind, OnConflict, Shadowed, ShadowedBy};
use crate::meta::EntryRecord;
use crate::store::StoreError;

impl Resolver<'_> {
    /// With [`OnConflict::Fail`], refuses packages that both sides have changed.
    pub(super) fn check_packages(&self) -> Result<(), StoreError> {
        if self.sides.on_conflict != OnConflict::Fail {
            return Ok(());
        }
        let conflict = self.packages.all().find(|standing| standing.is_conflict());
        match conflict.and_then(|standing| Some((&standing.name, standing.note()?))) {
            Some((name, note)) => Err(self.refuse(&format!("the package {name}"), &note)),
            None => Ok(()),
        }
    }

    /// Tells that the VE does not show what the new base has at a name.
    pub(super) fn shadow(&mut self, item: &Item<'_>, beside: Option<String>) {
        let by = match item.hidden.by {
            None => ShadowedBy::Directory,
            Some(EntryRecord::Whiteout) => ShadowedBy::Removed,
            Some(EntryRecord::Node(..)) => ShadowedBy::Changed,
        };
        self.shadow_as(item, by, beside);
    }

    pub(super) fn shadow_as(&mut self, item: &Item<'_>, by: ShadowedBy, beside: Option<String>) {
        self.push_shadowed(&item.path, &item.place, change_kind(item.hidden.change), by, beside);
    }

    pub(super) fn push_shadowed(
        &mut self,
        path: &[u8],
        place: &Place,
        change: ChangeKind,
        by: ShadowedBy,
        beside: Option<String>,
    ) {
        let versions = self.packages.versions(place);
        let (package, from, to) = versions
            .map_or((None, None, None), |versions| (Some(versions.package), versions.from, versions.to));
        self.resolved.shadowed.push(Shadowed { path: shown(path), change, by, beside, package, from, to });
    }

    /// Stores what was merged, and tells the rest.
    pub(super) fn finish(self) -> Result<Resolved, StoreError> {
        let Resolver { sides, packages, batch, own_files, mut resolved, .. } = self;
        let mut notes = sides.prepared.notes.clone();
        notes.extend(packages.notes.iter().cloned());
        notes.extend(packages.all().filter_map(|standing| standing.note()));
        notes.extend(packages.held());
        notes.extend(
            own_files
                .iter()
                .map(|(package, files)| format!("{package}: the VE keeps its own {}", listed(files))),
        );
        notes.append(&mut resolved.notes);
        for (by, why) in [
            (ShadowedBy::Removed, "as the VE has removed what was there"),
            (ShadowedBy::Directory, "because a directory above is the VE's own, or was removed by it"),
        ] {
            // Of packages that are the VE's there is a sentence already.
            let is_told = |shadowed: &Shadowed| {
                shadowed.package.as_ref().is_some_and(|package| packages.standing(package).is_some())
            };
            let names = resolved.shadowed.iter().filter(|shadowed| shadowed.by == by && !is_told(shadowed));
            let names: Vec<_> = names.map(|shadowed| format!("/{}", shadowed.path)).collect();
            if !names.is_empty() {
                notes.push(format!("the update's {} not shown, {why}", is_or_are(&names)));
            }
        }
        resolved.notes = notes.iter().map(|note| shortened(note)).collect();
        resolved.shadowed.sort_by(|a, b| a.path.cmp(&b.path));
        resolved.merged.sort_by(|a, b| a.path.cmp(&b.path));
        resolved.generate.sort_by(|a, b| a.path.cmp(&b.path));
        if !sides.dry_run {
            batch.commit()?;
        }
        Ok(resolved)
    }
}

fn is_or_are(names: &[String]) -> String {
    format!("{} {}", listed(names), if names.len() == 1 { "is" } else { "are" })
}

impl std::fmt::Display for Versions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.package)?;
        match (&self.from, &self.to) {
            (Some(from), Some(to)) if from == to => write!(f, " {to}"),
            (Some(from), Some(to)) => write!(f, " {from} -> {to}"),
            (None, Some(to)) => write!(f, " -> {to}"),
            (Some(from), None) => write!(f, " {from}, which the update removes"),
            (None, None) => Ok(()),
        }
    }
}
