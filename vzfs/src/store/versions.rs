//! Versions of templates: tags, what versions were built of, how they differ, and how a new version is made of an old one.
//!
//! A new version comes from an old one in three ways:
//! - *Built* again of a definition, which the store knows nothing of. It only keeps the archive of what a version was built of, so that a client can
//!   build it again on another OS.
//! - *Patched*: a VE on the old version is changed, and what it shows becomes the new version. The layer of an OS template is then a whole tree
//!   again, that of an application what differs from the templates below it. What is unchanged keeps path and content, so also inode numbers and blobs.
//! - *Reapplied*: the layer of an application is put on another version of its OS, for those that were imported or committed and have
//!   nothing that they could be built of. The old OS is the ancestor of two sides, the new OS and the layer, and they are merged like
//!   two applications in a stack. Where that would lose a change of either side (a program of the OS that both have replaced, say, where the layer's
//!   old one would hide the new one's fix), nothing is made: a template that silently undoes a security fix is worse than one that
//!   has to be made by hand.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::path::Path;

use super::events::Events;
use super::packages::Database;
use super::records::{Recipe, TagRecord, VeRecord};
use super::stack::build_base;
use super::templates::{Description, identity, os_spec};
use super::{Catalog, Store, StoreError, convert, difference};
use crate::api::{
    Aspect, Change, ChangeKind, DiffTotals, How, Origin, Package, PackageChange, ReapplyTemplate, Side,
    StackItem, Tagged, Template, TemplateDiff,
};
use crate::blobs::Batch;
use crate::meta::Table;
use crate::tree::{Tree, TreeBuilder, diff};
use crate::types::{FileKind, Tag, TemplateName, TemplateRef, TemplateSpec, Timestamp};

impl Catalog {
    /// The tags of a version, by name.
    pub(super) fn tags_of(&self, spec: &TemplateSpec) -> Vec<Tag> {
        let tags =
            self.tags.iter().filter(|(tag, version)| tag.name == spec.name && **version == spec.version);
        tags.filter_map(|(tag, _)| tag.version.as_str().parse().ok()).collect()
    }
}

/// A tag as it stands in a reference, and under which it is stored.
pub(super) fn tag_key(name: &TemplateName, tag: &Tag) -> TemplateSpec {
    TemplateSpec { name: name.clone(), version: tag.as_version() }
}

impl Store {
    /// Gives a version a tag, or moves the tag to it: one record, so that the tag is on the one or on the other version, also after a crash.
    ///
    /// # Errors
    /// [`StoreError::TagIsVersion`] (S6).
    pub fn tag_template(&self, reference: &TemplateRef, tag: &Tag) -> Result<Tagged, StoreError> {
        self.check_open()?;
        let mut catalog = self.catalog.write();
        let spec = catalog.template(reference)?.spec.clone();
        let key = tag_key(&spec.name, tag);
        if catalog.templates.contains_key(&key) || catalog.making.contains_key(&key) {
            return Err(StoreError::TagIsVersion(key));
        }
        let record = TagRecord { version: spec.version.clone(), set: Timestamp::now() };
        self.meta.put(Table::Tag, &key.to_string(), &record)?;
        let before = catalog.tags.insert(key.clone(), spec.version.clone());
        tracing::info!(template = %spec, %tag, "tagged");
        Ok(Tagged { tag: key.into(), before, now: Some(spec.version) })
    }

    /// Takes a tag away. A version in the reference must be the one that has it.
    pub fn untag_template(&self, reference: &TemplateRef, tag: &Tag) -> Result<Tagged, StoreError> {
        self.check_open()?;
        let mut catalog = self.catalog.write();
        let spec = catalog.template(reference)?.spec.clone();
        let key = tag_key(&spec.name, tag);
        let unknown = || StoreError::UnknownTag { name: spec.name.clone(), tag: tag.clone() };
        let version = catalog.tags.get(&key).ok_or_else(unknown)?;
        if reference.version.is_some() && *version != spec.version {
            return Err(unknown());
        }
        self.meta.delete(Table::Tag, &key.to_string())?;
        let before = catalog.tags.remove(&key);
        Ok(Tagged { tag: key.into(), before, now: None })
    }

    /// Writes the archive of what a template was built of.
    ///
    /// # Errors
    /// [`StoreError::NoRecipe`].
    pub fn export_recipe(&self, reference: &TemplateRef, mut out: impl Write) -> Result<(), StoreError> {
        let record = self.catalog.read().template(reference)?;
        let recipe = record.recipe.ok_or_else(|| StoreError::NoRecipe(record.spec.clone()))?;
        let mut file = self.blobs.open_blob(&recipe.digest)?;
        let copied = std::io::copy(&mut file, &mut out);
        copied.map(drop).map_err(StoreError::io("export", format!("blob {}", recipe.digest)))
    }

    /// What a VE shows, as the layer of a new version of its topmost template: all of it without templates below, what differs from them otherwise. The
    /// caller holds `adding`.
    pub(super) fn with_changes(
        &self,
        ve: &VeRecord,
        below: &[StackItem],
        changes: TreeBuilder,
    ) -> Result<TreeBuilder, StoreError> {
        let changes = Tree::from_bytes(changes.finish()?.bytes)?;
        let mut full = TreeBuilder::from_tree(&*self.trees.open(&ve.base)?)?;
        full.apply_layer(&changes)?;
        if below.is_empty() {
            return Ok(full);
        }
        Ok(difference::difference(&*self.trees.open(&self.base_of(below)?)?, &full)?)
    }

    /// Makes a new version of an application template on another version of its OS, with the same changes; see the module's head.
    ///
    /// # Errors
    /// [`StoreError::Reapply`] when a change of the OS or of the application would be lost.
    pub fn reapply(
        &self,
        reference: &TemplateRef,
        request: &ReapplyTemplate,
        events: &dyn Events,
    ) -> Result<Template, StoreError> {
        let _adding = self.begin_adding()?;
        let (app, before, after) = {
            let catalog = self.catalog.read();
            let app = catalog.template(reference)?;
            let Some(os) = &app.os else {
                let why =
                    format!("{} is an OS template, which stands on nothing that could be replaced", app.spec);
                return Err(StoreError::Invalid(why));
            };
            let item = |spec: &TemplateSpec| {
                let record = catalog.template(&spec.clone().into())?;
                Ok(StackItem { spec: record.spec.clone(), layer: record.layer })
            };
            let stack = |os: StackItem, apps: &[TemplateSpec]| {
                [Ok(os)].into_iter().chain(apps.iter().map(item)).collect::<Result<Vec<_>, StoreError>>()
            };
            let before = stack(StackItem { spec: os_spec(os), layer: os.layer }, &app.requires)?;
            let os = catalog.os(&request.os)?;
            let after = stack(StackItem { spec: os_spec(&os), layer: os.layer }, &request.requires)?;
            (app, before, after)
        };
        same_name(&app.spec, &request.template)?;
        let on: Vec<_> = after.iter().map(|item| item.spec.clone()).collect();
        let _name = self.reserve(&request.template, on.clone())?;
        let old = self.trees.open(&self.base_of(&before)?)?;
        let new = self.trees.open(&self.base_of(&after)?)?;

        events.progress(0, None, "files", "merging");
        let update = difference::difference(&old, &TreeBuilder::from_tree(&new)?)?;
        let update = std::sync::Arc::new(Tree::from_bytes(update.finish()?.bytes)?);
        let item = StackItem { spec: app.spec.clone(), layer: app.layer };
        let rules = self.merge_rules(&[&after[..], std::slice::from_ref(&item)].concat())?;
        let sides = [(after[0].spec.clone(), update), (app.spec.clone(), self.trees.open(&app.layer)?)];
        let merged = build_base(&old, &sides, &rules, &self.blobs)?;
        if !merged.losses.is_empty() {
            let (app, os) = (app.spec.clone(), after[0].spec.clone());
            return Err(StoreError::Reapply { app, os, losses: merged.losses.into() });
        }
        merged.notes.iter().for_each(|note| events.log(note));
        let full = TreeBuilder::from_tree(&Tree::from_bytes(merged.image.bytes)?)?;
        let layer = difference::difference(&new, &full)?;
        let os = &after[0];
        let description = Description {
            spec: request.template.clone(),
            kind: app.kind,
            os: Some(identity(os)),
            requires: on[1..].to_vec(),
            summary: app.summary.clone(),
            labels: app.labels.clone(),
            // A package that the new OS has now as well is no longer one that the application brings.
            packages: None,
            database: Database::find(&layer),
            known: self.packages_of(&on),
            merge: app.merge.clone(),
            origin: Origin { how: How::Reapplied, from: Some(app.spec.clone()), steps: Vec::new() },
            recipe: None,
        };
        self.publish(self.blobs.batch(), layer, description, events)
    }
}

/// The part of a VE's stack that is below its topmost template, of which a new version is to be made.
pub(super) fn below_version<'a>(
    stack: &'a [StackItem],
    old: &TemplateSpec,
    new: &TemplateSpec,
) -> Result<&'a [StackItem], StoreError> {
    same_name(old, new)?;
    match stack.split_last() {
        Some((top, below)) if top.spec == *old => Ok(below),
        _ => {
            let why = format!(
                "{old} is not the topmost template of the VE, so its changes are not a new version of it"
            );
            Err(StoreError::Invalid(why))
        }
    }
}

fn same_name(old: &TemplateSpec, new: &TemplateSpec) -> Result<(), StoreError> {
    if old.name == new.name {
        return Ok(());
    }
    Err(StoreError::Invalid(format!("{new} cannot be a version of {old}: it has another name")))
}

/// Takes the archive of what a template is built of into the store.
pub(super) fn add_recipe(batch: &Batch<'_>, path: &Path) -> Result<Recipe, StoreError> {
    if !path.is_absolute() {
        let (what, path) = ("an archive of what a template is built of", path.to_owned());
        return Err(StoreError::Path { what, path, why: "it is not absolute" });
    }
    let file = File::open(path).map_err(StoreError::io("open", path))?;
    let stored = batch.add_file(&file)?;
    Ok(Recipe { digest: stored.digest, bytes: stored.size })
}

/// The files and sums of a difference.
pub(super) fn compare(old: &Tree, new: &Tree, from: &TemplateSpec, to: &TemplateSpec) -> TemplateDiff {
    let files: Vec<_> = diff(old, new).iter().map(|change| convert::change(change, old, new)).collect();
    let known: HashSet<_> = old.blobs().map(|(digest, _)| digest).collect();
    let new_content = new.blobs().filter(|(digest, _)| !known.contains(digest));
    let mut totals =
        DiffTotals { new_content_bytes: new_content.map(|(_, bytes)| bytes).sum(), ..DiffTotals::default() };
    files.iter().for_each(|change| count(&mut totals, change));
    TemplateDiff { from: from.clone(), to: to.clone(), totals, packages: Vec::new(), files }
}

fn count(totals: &mut DiffTotals, change: &Change) {
    let bytes = |side: &Option<Side>| {
        side.as_ref().filter(|side| side.file_type == FileKind::File).map_or(0, |side| side.size)
    };
    let (old, new) = (bytes(&change.old), bytes(&change.new));
    match change.kind {
        ChangeKind::Added => {
            totals.added += 1;
            totals.added_bytes += new;
        }
        ChangeKind::Deleted => {
            totals.removed += 1;
            totals.removed_bytes += old;
        }
        ChangeKind::Changed => {
            totals.changed += 1;
            if change.aspects.iter().any(|aspect| matches!(aspect, Aspect::Content | Aspect::Type)) {
                totals.changed_bytes[0] += old;
                totals.changed_bytes[1] += new;
            }
        }
    }
}

/// The packages that two lists do not have in common, by name.
pub(super) fn changed_packages(old: &[Package], new: &[Package]) -> Vec<PackageChange> {
    let mut versions = BTreeMap::<&str, [Option<&str>; 2]>::new();
    for (side, packages) in [old, new].into_iter().enumerate() {
        for package in packages {
            versions.entry(&package.name).or_default()[side] = Some(&package.version);
        }
    }
    let changed = versions.into_iter().filter(|(_, [from, to])| from != to);
    let owned = |version: Option<&str>| version.map(str::to_owned);
    changed
        .map(|(name, [from, to])| PackageChange { name: name.to_owned(), from: owned(from), to: owned(to) })
        .collect()
}
