//! Who takes how much space. Exact, and from tables only: the headers and lists of blobs of trees, and the private tables. Nothing on the disk is
//! walked but the private data files, whose sizes only the host knows.
//!
//! *Unique* has one meaning: what removing the template or the VE, and then collecting garbage, would give back. A template's unique blobs
//! are those that no other template and no private record names; that VEs stand on it does not count, as it cannot be removed before they
//! are. A VE's are those that no template, no other VE's base and no other VE's record names.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::records::{TemplateRecord, VeRecord};
use super::slot::Slot;
use super::{Store, StoreError};
use crate::api::{StoreDf, TemplateDf, VeDf};
use crate::tree::{Tree, soundly};
use crate::types::{Digest, VeId};
use crate::volume::Holdings;

/// Who needs a blob, as far as it takes to know whether that is one alone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum User {
    Template(usize),
    /// By its private records, or by a base that is its alone.
    Ve(VeId),
    Several,
}

/// Every blob that something needs, with its size.
#[derive(Default)]
struct Tally(HashMap<Digest, (u64, User)>);

impl Tally {
    fn add(&mut self, digest: Digest, bytes: u64, user: User) {
        let known = &mut self.0.entry(digest).or_insert((bytes, user)).1;
        if *known != user {
            *known = User::Several;
        }
    }
}

impl Store {
    /// Space by template and by VE.
    pub fn df(&self) -> Result<StoreDf, StoreError> {
        soundly(|| self.add_up())
    }

    fn add_up(&self) -> Result<StoreDf, StoreError> {
        let (templates, slots): (Vec<Arc<TemplateRecord>>, Vec<Arc<Slot>>) = {
            let catalog = self.catalog.read();
            (catalog.templates.values().cloned().collect(), catalog.ves.values().cloned().collect())
        };
        let mut ves = Vec::with_capacity(slots.len());
        for slot in slots {
            match self.holdings(&slot) {
                Ok(holdings) => ves.push((slot.record(), holdings)),
                // It was there when the list was begun, and is on its way out.
                Err(StoreError::VeRemoving(_)) => {}
                Err(error) => return Err(error),
            }
        }

        let mut tally = Tally::default();
        let mut trees: HashMap<Digest, Arc<Tree>> = HashMap::new();
        for (index, template) in templates.iter().enumerate() {
            let tree = self.trees.open(&template.layer)?;
            for (digest, bytes) in tree.blobs() {
                tally.add(digest, bytes, User::Template(index));
            }
            if let Some(recipe) = template.recipe {
                tally.add(recipe.digest, recipe.bytes, User::Template(index));
            }
            trees.insert(template.layer, tree);
        }
        let layers: HashSet<Digest> = trees.keys().copied().collect();
        let of_templates: HashSet<Digest> = tally.0.keys().copied().collect();

        // Bases that are no template's layer: what they have from the templates is the templates'.
        let mut standing: HashMap<Digest, Vec<VeId>> = HashMap::new();
        for (record, _) in &ves {
            standing.entry(record.base).or_default().push(record.id);
        }
        let mut ve_unique: HashMap<VeId, u64> = HashMap::new();
        for (base, on_it) in standing {
            let tree = self.trees.open(&base)?;
            if !layers.contains(&base) {
                let user = if let [alone] = on_it[..] { User::Ve(alone) } else { User::Several };
                for (digest, bytes) in tree.blobs().filter(|(digest, _)| !of_templates.contains(digest)) {
                    tally.add(digest, bytes, user);
                }
                if let [alone] = on_it[..] {
                    ve_unique.insert(alone, tree.stats().tree_bytes);
                }
            }
            trees.insert(base, tree);
        }

        for (record, holdings) in &ves {
            let Some(base) = trees.get(&record.base) else { continue };
            // A pin of what the VE's own base has needs nothing more than the base does.
            for (digest, bytes) in holdings.blobs.iter().filter(|(digest, _)| !base.has_blob(digest)) {
                tally.add(*digest, *bytes, User::Ve(record.id));
            }
        }

        let mut template_unique = vec![0; templates.len()];
        let mut blob_bytes = 0;
        for (bytes, user) in tally.0.values() {
            blob_bytes += bytes;
            match user {
                User::Template(index) => template_unique[*index] += bytes,
                User::Ve(ve) => *ve_unique.entry(*ve).or_default() += bytes,
                User::Several => {}
            }
        }
        let tree_bytes = trees.values().map(|tree| tree.stats().tree_bytes).sum();
        let private_bytes = ves.iter().map(|(_, holdings)| holdings.usage.private_bytes).sum();
        let template_df = |(template, unique_bytes): (&Arc<TemplateRecord>, u64)| {
            let blobs =
                trees.get(&template.layer).map_or(0, |tree| tree.blobs().map(|(_, bytes)| bytes).sum());
            TemplateDf {
                template: template.spec.clone(),
                logical_bytes: template.stats.bytes,
                unique_bytes,
                shared_bytes: blobs.saturating_sub(unique_bytes),
                saved_bytes: template.stats.bytes.saturating_sub(unique_bytes),
            }
        };
        let templates: Vec<_> = templates.iter().zip(template_unique).map(template_df).collect();
        let ve_df = |(record, Holdings { usage, .. }): &(Arc<VeRecord>, Holdings)| {
            let unique_bytes = usage.private_bytes + ve_unique.get(&record.id).copied().unwrap_or(0);
            VeDf {
                ve: record.name.clone(),
                logical_bytes: usage.logical_bytes,
                unique_bytes,
                shared_bytes: usage.logical_bytes.saturating_sub(usage.private_logical_bytes),
                saved_bytes: usage.logical_bytes.saturating_sub(unique_bytes),
            }
        };
        let ves: Vec<_> = ves.iter().map(ve_df).collect();
        let logical_bytes: u64 = templates
            .iter()
            .map(|template| template.logical_bytes)
            .chain(ves.iter().map(|ve| ve.logical_bytes))
            .sum();
        let disk_bytes: u64 = blob_bytes + tree_bytes + private_bytes;
        Ok(StoreDf {
            logical_bytes,
            disk_bytes,
            saved_bytes: logical_bytes.saturating_sub(disk_bytes),
            blob_bytes,
            tree_bytes,
            private_bytes,
            templates,
            ves,
        })
    }
}
