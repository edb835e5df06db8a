//! Templates: made from sources and from VEs, looked at, compared, verified, exported, removed.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::sync::Arc;

use super::events::{Events, Step};
use super::globs::Globs;
use super::packages::{Database, new_packages};
use super::records::{Recipe, TemplateRecord};
use super::verify::RECIPE;
use super::versions::{add_recipe, below_version, changed_packages, compare, tag_key};
use super::{Store, StoreError, convert, difference, rules};
use crate::api::{
    CommitVe, DamagedBlob, How, ImportRequest, MergeRule, Origin, OsIdentity, Package, Removed, StackItem,
    Template, TemplateDiff, TemplateKind, VerifyReport, path_text,
};
use crate::archive::{self, Limits, Source, TemplateSource};
use crate::blobs::Batch;
use crate::meta::Table;
use crate::tree::{ContentRef, Tree, TreeBuilder, TreeError, WalkEntry, soundly};
use crate::types::{Digest, TemplateRef, TemplateSpec, Timestamp, VeName};

/// What a record says beside the tree.
pub(super) struct Description {
    pub spec: TemplateSpec,
    pub kind: TemplateKind,
    pub os: Option<OsIdentity>,
    pub requires: Vec<TemplateSpec>,
    pub summary: String,
    pub labels: BTreeMap<String, String>,
    /// As the request gave them.
    pub packages: Option<Vec<Package>>,
    /// Where to read them otherwise, and the packages that were there before.
    pub database: Option<Database>,
    pub known: Vec<Package>,
    pub merge: Vec<MergeRule>,
    pub origin: Origin,
    pub recipe: Option<Recipe>,
}

/// A template name that is being made. Dropping it gives the name back.
pub(super) struct Reservation<'a> {
    store: &'a Store,
    spec: TemplateSpec,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.store.catalog.write().making.remove(&self.spec);
    }
}

impl Store {
    /// All templates, by name and version.
    pub fn templates(&self) -> Vec<Template> {
        let records: Vec<_> = self.catalog.read().templates.values().cloned().collect();
        self.describe_templates(&records)
    }

    /// One template; the newest version when the reference names none.
    pub fn template(&self, reference: &TemplateRef) -> Result<Template, StoreError> {
        let record = self.catalog.read().template(reference)?;
        let mut described = self.describe_templates(std::slice::from_ref(&record));
        described.pop().ok_or_else(|| StoreError::UnknownTemplate(reference.clone()))
    }

    /// All versions of a template, oldest first. A version in the reference does not count.
    pub fn versions(&self, reference: &TemplateRef) -> Result<Vec<Template>, StoreError> {
        let all = self.catalog.read().templates.values().cloned().collect::<Vec<_>>();
        let records: Vec<_> = all.into_iter().filter(|record| record.spec.name == reference.name).collect();
        if records.is_empty() {
            return Err(StoreError::UnknownTemplate(reference.clone()));
        }
        Ok(self.describe_templates(&records))
    }

    fn describe_templates(&self, records: &[Arc<TemplateRecord>]) -> Vec<Template> {
        let mut users = self.template_users();
        let catalog = self.catalog.read();
        let describe = |record: &Arc<TemplateRecord>| {
            let used_by = users.remove(&record.spec).unwrap_or_default();
            record.to_api(used_by, catalog.tags_of(&record.spec))
        };
        records.iter().map(describe).collect()
    }

    fn template_users(&self) -> HashMap<TemplateSpec, Vec<VeName>> {
        let mut users: HashMap<_, Vec<VeName>> = HashMap::new();
        for (name, slot) in &self.catalog.read().ves {
            for item in &slot.record().stack {
                users.entry(item.spec.clone()).or_default().push(name.clone());
            }
        }
        users
    }

    /// Makes a template of a folder, a tar or an OCI layout of this host. With `os`, the source is a complete root
    /// filesystem that was made on that OS, and the template is the difference.
    pub fn import(&self, request: &ImportRequest, events: &dyn Events) -> Result<Template, StoreError> {
        let exclude = Globs::new(&request.exclude)?;
        let kind = import_kind(request)?;
        let merge = rules::acceptable(&request.merge)?;
        if !request.source.is_absolute() {
            let (what, path) = ("a source", request.source.clone());
            return Err(StoreError::Path { what, path, why: "it is not absolute" });
        }
        let _adding = self.begin_adding()?;
        let os = request.os.as_ref().map(|os| self.catalog.read().os(os)).transpose()?;
        let on: Vec<_> = os.iter().map(os_spec).collect();
        let _name = self.reserve(&request.template, on.clone())?;
        let os_tree = os.as_ref().map(|os| self.trees.open(&os.layer)).transpose()?;

        let source = Source::detect(&request.source)?;
        let batch = self.blobs.batch();
        let step = Step::new(events, "files", "reading", None);
        let mut full = archive::import(&source, &batch, &Limits::default(), &step)?;
        step.finish();
        let recipe = request.recipe.as_deref().map(|path| add_recipe(&batch, path)).transpose()?;
        difference::flatten(&mut full);
        let database = Database::find(&full);
        let mut layer = match &os_tree {
            Some(os) => difference::difference(os, &full)?,
            None => full,
        };
        // Last, so that leaving out a path that the OS has is no deletion of it.
        exclude.prune(&mut layer);
        let description = Description {
            spec: request.template.clone(),
            kind,
            os,
            requires: Vec::new(),
            summary: request.summary.clone(),
            labels: request.labels.clone(),
            packages: request.packages.clone(),
            database,
            known: self.packages_of(&on),
            merge,
            origin: Origin {
                how: if recipe.is_some() { How::Built } else { How::Imported },
                ..Origin::default()
            },
            recipe,
        };
        self.publish(batch, layer, description, events)
    }

    /// Makes an application template of what a VE changed, on top of its stack; or a new version of the stack's topmost template, with the changes
    /// in it. The stack's applications below are needed below it.
    pub fn commit(
        &self,
        ve: &VeName,
        request: &CommitVe,
        events: &dyn Events,
    ) -> Result<Template, StoreError> {
        let exclude = Globs::new(&request.exclude)?;
        let merge = rules::acceptable(&request.merge)?;
        let _adding = self.begin_adding()?;
        let slot = self.slot(ve)?;
        let record = slot.record();
        let stack: Vec<_> = record.stack.iter().map(|item| item.spec.clone()).collect();
        let below = match &request.version_of {
            None => &record.stack[..],
            Some(old) => below_version(&record.stack, old, &request.template)?,
        };
        let _name = self.reserve(&request.template, stack)?;
        let volume = self.volume(&slot)?;
        let batch = self.blobs.batch();
        events.progress(0, None, "files", "reading");
        let layer = volume.to_layer(&batch, &|path| exclude.matches_path(path));
        let layer =
            layer.map_err(|source| StoreError::Volume { ve: ve.clone(), source: Box::new(source) })?;
        let layer = match &request.version_of {
            None => layer,
            Some(_) => self.with_changes(&record, below, layer)?,
        };
        let recipe = request.recipe.as_deref().map(|path| add_recipe(&batch, path)).transpose()?;
        let below: Vec<_> = below.iter().map(|item| item.spec.clone()).collect();
        let description = Description {
            spec: request.template.clone(),
            kind: if below.is_empty() { TemplateKind::Os } else { TemplateKind::App },
            os: record.stack.first().filter(|_| !below.is_empty()).map(identity),
            requires: below.get(1..).unwrap_or_default().to_vec(),
            summary: request.summary.clone(),
            labels: request.labels.clone(),
            packages: request.packages.clone(),
            database: Database::find(&layer),
            known: self.packages_of(&below),
            merge,
            origin: commit_origin(request),
            recipe,
        };
        self.publish(batch, layer, description, events)
    }

    /// Takes the name for as long as the template is being made (S4 for what it is made on).
    pub(super) fn reserve(
        &self,
        spec: &TemplateSpec,
        on: Vec<TemplateSpec>,
    ) -> Result<Reservation<'_>, StoreError> {
        let mut catalog = self.catalog.write();
        if catalog.tags.contains_key(spec) {
            return Err(StoreError::VersionIsTag(spec.clone()));
        }
        if catalog.templates.contains_key(spec) {
            return Err(StoreError::TemplateExists(spec.clone()));
        }
        if catalog.making.contains_key(spec) {
            return Err(StoreError::TemplateBusy(spec.clone()));
        }
        // What it is made on was looked up before; it may be gone since.
        if let Some(gone) = on.iter().find(|on| !catalog.templates.contains_key(on)) {
            return Err(StoreError::UnknownTemplate(gone.clone().into()));
        }
        catalog.making.insert(spec.clone(), on);
        Ok(Reservation { store: self, spec: spec.clone() })
    }

    pub(super) fn packages_of(&self, specs: &[TemplateSpec]) -> Vec<Package> {
        let catalog = self.catalog.read();
        let records = specs.iter().filter_map(|spec| catalog.templates.get(spec));
        records.flat_map(|record| record.packages.iter().cloned()).collect()
    }

    /// Makes a finished layer a template.
    ///
    /// The order is what makes S1 hold through a crash: the blobs are durable before the tree that names them, the tree
    /// before the record that names it. A crash in between leaves blobs or a tree that nobody names, which the next collection
    /// removes.
    pub(super) fn publish(
        &self,
        batch: Batch<'_>,
        layer: TreeBuilder,
        description: Description,
        events: &dyn Events,
    ) -> Result<Template, StoreError> {
        let image = layer.finish()?;
        events.progress(0, None, "files", "storing");
        let stored = batch.commit()?;
        self.trees.put(&image)?;
        let tree = self.trees.open(&image.digest)?;
        let packages = match (description.packages, &description.database) {
            (Some(packages), _) => packages,
            (None, Some(database)) => new_packages(self.packages(database)?, &description.known),
            (None, None) => Vec::new(),
        };
        let record = TemplateRecord {
            spec: description.spec,
            kind: description.kind,
            os: description.os,
            requires: description.requires,
            layer: image.digest,
            summary: description.summary,
            labels: description.labels,
            packages,
            merge: description.merge,
            origin: description.origin,
            recipe: description.recipe,
            created: Timestamp::now(),
            stats: convert::stats(&tree.stats()),
        };
        self.meta.put(Table::Template, &record.spec.to_string(), &record)?;
        tracing::info!(
            template = %record.spec,
            layer = %record.layer.short(),
            inodes = record.stats.inodes,
            new_blobs = stored.new_blobs,
            "template stored"
        );
        let template = record.to_api(Vec::new(), Vec::new());
        self.catalog.write().templates.insert(record.spec.clone(), Arc::new(record));
        Ok(template)
    }

    /// What is different in `b` from `a`. Application templates are compared as they look on their OS.
    pub fn diff_templates(&self, a: &TemplateRef, b: &TemplateRef) -> Result<TemplateDiff, StoreError> {
        let (a, b) = {
            let catalog = self.catalog.read();
            (catalog.template(a)?, catalog.template(b)?)
        };
        let (old, new) = (self.whole_tree(&a)?, self.whole_tree(&b)?);
        let files = soundly(|| Ok::<_, TreeError>(compare(&old, &new, &a.spec, &b.spec)))?;
        Ok(TemplateDiff { packages: changed_packages(&a.packages, &b.packages), ..files })
    }

    /// What a VE of this template alone shows.
    fn whole_tree(&self, record: &TemplateRecord) -> Result<Arc<Tree>, StoreError> {
        let layer = self.trees.open(&record.layer)?;
        let Some(os) = &record.os else { return Ok(layer) };
        let mut builder = TreeBuilder::from_tree(&*self.trees.open(&os.layer)?)?;
        let catalog = self.catalog.read();
        let below: Vec<_> =
            record.requires.iter().filter_map(|spec| catalog.templates.get(spec).cloned()).collect();
        drop(catalog);
        for app in below {
            builder.apply_layer(&*self.trees.open(&app.layer)?)?;
        }
        builder.apply_layer(&layer)?;
        Ok(Arc::new(Tree::from_bytes(builder.finish()?.bytes)?))
    }

    /// Reads every blob of the template again, and its tree, and compares the digests.
    pub fn verify(&self, reference: &TemplateRef, events: &dyn Events) -> Result<VerifyReport, StoreError> {
        let record = self.catalog.read().template(reference)?;
        let mut report = VerifyReport { blobs: 0, bytes: 0, damaged: Vec::new() };
        let damage = |path: &[u8], digest, why: String| DamagedBlob { digest, path: path_text(path), why };
        let tree = match self.read_tree(&record.layer) {
            Ok(tree) => tree,
            Err(error) => {
                report.damaged.push(damage(b"", record.layer, error.to_string()));
                return Ok(report);
            }
        };
        if let Err(error) = tree.validate() {
            report.damaged.push(damage(b"", record.layer, error.to_string()));
        }
        let mut blobs: HashMap<Digest, Vec<u8>> = HashMap::new();
        for (path, entry) in tree.walk() {
            if let WalkEntry::Node(view) = entry
                && let ContentRef::Blob { digest, .. } = view.content()
            {
                blobs.entry(digest).or_insert(path);
            }
        }
        if let Some(recipe) = record.recipe {
            blobs.entry(recipe.digest).or_insert(RECIPE.to_vec());
        }
        let step = Step::new(events, "blobs", "verifying", Some(blobs.len() as u64));
        let mut blobs: Vec<_> = blobs.into_iter().collect();
        blobs.sort_by(|(_, a), (_, b)| a.cmp(b));
        for (digest, path) in blobs {
            match self.blobs.verify(&digest) {
                Ok(bytes) => report.bytes += bytes,
                // A blob that is unreadable is as lost as one that changed; the report goes on to the others.
                Err(error) => {
                    tracing::error!(template = %record.spec, path = %path_text(&path), %error, "damaged blob");
                    report.damaged.push(damage(&path, digest, error.to_string()));
                }
            }
            report.blobs += 1;
            step.add(1);
        }
        step.finish();
        Ok(report)
    }

    /// Writes the template's layer as a tar. An application's deletions are OCI whiteouts.
    pub fn export_template(&self, reference: &TemplateRef, out: impl Write) -> Result<(), StoreError> {
        let record = self.catalog.read().template(reference)?;
        let tree = self.trees.open(&record.layer)?;
        soundly(|| Ok(archive::export_tar(TemplateSource { tree: &tree, blobs: &self.blobs }, out)?))
    }

    /// Removes a template that nothing stands on (S4), and the space that only it needed. With `force` also one that has tags, which go with it.
    pub fn remove_template(&self, reference: &TemplateRef, force: bool) -> Result<Removed, StoreError> {
        let spec = {
            let mut catalog = self.catalog.write();
            let spec = catalog.template(reference)?.spec.clone();
            let slots = catalog.ves.iter().map(|(name, slot)| (name, slot.record()));
            let on_it = |stack: &[StackItem]| stack.iter().any(|item| item.spec == spec);
            let mut ves: Vec<_> =
                slots.filter(|(_, record)| on_it(&record.stack)).map(|(name, _)| name.clone()).collect();
            ves.extend(
                catalog.making_ves.iter().filter(|(_, stack)| on_it(stack)).map(|(name, _)| name.clone()),
            );
            let mut templates: Vec<_> = catalog
                .templates
                .values()
                .filter(|app| {
                    app.requires.contains(&spec) || app.os.as_ref().is_some_and(|os| os_spec(os) == spec)
                })
                .map(|app| app.spec.clone())
                .collect();
            templates.extend(
                catalog.making.iter().filter(|(_, on)| on.contains(&spec)).map(|(name, _)| name.clone()),
            );
            if !ves.is_empty() || !templates.is_empty() {
                return Err(StoreError::TemplateInUse { spec, ves, templates });
            }
            let updates = self.updates_needing(&catalog, &spec);
            if !updates.is_empty() {
                return Err(StoreError::NeededByUpdate { spec, updates });
            }
            let tags = catalog.tags_of(&spec);
            if !tags.is_empty() && !force {
                return Err(StoreError::Tagged { spec, tags });
            }
            for tag in tags {
                let written = tag_key(&spec.name, &tag);
                self.meta.delete(Table::Tag, &written.to_string())?;
                catalog.tags.remove(&written);
            }
            // Under the lock, so that nothing is made on it between the check and the end of the record. The record goes before
            // what it names (S1).
            self.meta.delete(Table::Template, &spec.to_string())?;
            catalog.templates.remove(&spec);
            spec
        };
        tracing::info!(template = %spec, "template removed");
        let freed_bytes = self.collect_now()?.map(|report| report.freed_bytes);
        Ok(Removed { removed: spec.to_string(), freed_bytes })
    }
}

/// An OS template in a stack, as something that was made on it remembers it.
pub(super) fn identity(os: &StackItem) -> OsIdentity {
    OsIdentity { name: os.spec.name.clone(), version: os.spec.version.clone(), layer: os.layer }
}

fn commit_origin(request: &CommitVe) -> Origin {
    let (how, from) = match (&request.version_of, &request.rebuilds) {
        (Some(old), _) => (How::Patched, Some(old.clone())),
        (None, Some(old)) => (How::Rebuilt, Some(old.clone())),
        (None, None) if request.recipe.is_some() => (How::Built, None),
        (None, None) => (How::Committed, None),
    };
    Origin { how, from, steps: request.steps.clone() }
}

pub(super) fn os_spec(os: &OsIdentity) -> TemplateSpec {
    TemplateSpec { name: os.name.clone(), version: os.version.clone() }
}

fn import_kind(request: &ImportRequest) -> Result<TemplateKind, StoreError> {
    match (request.kind, &request.os) {
        (None | Some(TemplateKind::Os), None) => Ok(TemplateKind::Os),
        (None | Some(TemplateKind::App), Some(_)) => Ok(TemplateKind::App),
        (Some(TemplateKind::Os), Some(os)) => {
            let why = format!("an OS template is not made on another template, and the request names {os}");
            Err(StoreError::Invalid(why))
        }
        (Some(TemplateKind::App), None) => {
            let why = "an application template is made on an OS template, and the request names none";
            Err(StoreError::Invalid(why.to_owned()))
        }
    }
}
