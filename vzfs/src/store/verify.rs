//! Reading everything again: every tree and every blob against the digest that names it, who is touched by what is damaged, and repair from a
//! source that has the same content.
//!
//! - Everything is read from the disk, not from the host's page cache, and does not displace what is in it.
//! - Nothing is locked while reading. What is collected as garbage meanwhile is not damage; what comes meanwhile was just hashed.
//! - Private data files have no digest: a program may write to them at any time. The host filesystem answers for them. That they are there, and that the
//!   records of each VE agree with each other, is looked at when somebody asks for a check.
//! - A damaged blob breaks only the files that show it. Each is named: by template and path, by VE and path, whether the VE has the file from
//!   its base or a private record of its own names the blob.
//! - Repair puts content of the same digest in the place of the damaged file, by a rename: whoever has the damaged one open keeps it until he
//!   opens the file again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::path::Path;

use rustix::io::Errno;

use super::events::{Events, Step};
use super::records::{BaseRecord, TemplateRecord, VeRecord};
use super::rules::checked;
use super::stack::build_base;
use super::turns::{Pace, Pacer, Turn};
use super::{Store, StoreError, difference};
use crate::api::{
    DamageUser, DamagedThing, PrivateDamage, StoreDamage, StoreVerifyReport, VerifyProgress, VerifyStatus,
    VerifyStore, path_text,
};
use crate::archive::{self, Limits, Source};
use crate::blobs::{self, BlobError};
use crate::merge::Rules;
use crate::meta::Table;
use crate::tree::{ContentRef, Tree, TreeBuilder, TreeError, TreeImage, WalkEntry, soundly_read};
use crate::types::{Digest, Timestamp, VeId};
use crate::volume::{self, VolumeError};

/// Key in [`Table::Setting`] of the last finished report.
const LAST_REPORT: &str = "verified";
/// What stands in place of a path for the archive of what a template was built of.
pub(super) const RECIPE: &[u8] = b"(recipe)";
/// The check that goes on.
type Running<'a> = Turn<'a, VerifyProgress>;

/// What is damaged, before it is known who is touched.
type Damage = BTreeMap<Digest, (DamagedThing, String)>;

impl Store {
    /// Checks the whole store, and repairs what the request's source has. The report is kept until the next one.
    ///
    /// # Errors
    /// [`StoreError::Verifying`] while another check runs, and for a scheduled one that had to give up. Damage is no error.
    pub fn verify_store(
        &self,
        request: &VerifyStore,
        pace: Pace,
        events: &dyn Events,
    ) -> Result<StoreVerifyReport, StoreError> {
        if let Some(source) = request.repair.as_ref().filter(|source| !source.is_absolute()) {
            let (what, path) = ("a source", source.clone());
            return Err(StoreError::Path { what, path, why: "it is not absolute" });
        }
        let scheduled = pace != Pace::Full;
        let progress = VerifyProgress { started: Timestamp::now(), scheduled, done_bytes: 0, total_bytes: 0 };
        let running = self.verifying.begin(pace, progress).ok_or(StoreError::Verifying)?;
        let (mut report, damage) = self.read_all(pace, events, &running)?;
        let mut repaired = HashSet::new();
        if !damage.is_empty() && (request.repair.is_some() || request.rebuild) {
            repaired = self.repair(request.repair.as_deref(), &damage, events)?;
        }
        if !repaired.is_empty() {
            self.forget_blobs();
        }
        if !scheduled {
            (report.ves, report.private) = self.private_damage(events)?;
        }
        report.damaged = self.with_users(&damage, &repaired)?;
        report.finished = Timestamp::now();
        for damaged in &report.damaged {
            let users = damaged.users.len();
            tracing::error!(digest = %damaged.digest, why = %damaged.why, users, repaired = damaged.repaired, "damage");
            for user in &damaged.users {
                tracing::error!(digest = %damaged.digest.short(), %user, "damaged");
            }
        }
        for damaged in &report.private {
            tracing::error!(ve = %damaged.ve, path = ?damaged.path, why = %damaged.why, "damage");
        }
        tracing::info!(
            trees = report.trees,
            blobs = report.blobs,
            bytes = report.bytes,
            damaged = report.damaged.len() + report.private.len(),
            "store verified"
        );
        self.meta.put(Table::Setting, LAST_REPORT, &report)?;
        Ok(report)
    }

    /// An end for a check whose daemon is ending, or that somebody else's goes before.
    fn check_go_on(&self, running: &Running<'_>) -> Result<(), StoreError> {
        self.check_open()?;
        if running.must_end() { Err(StoreError::Verifying) } else { Ok(()) }
    }

    /// The check that runs, and what the last one found.
    pub fn verify_status(&self) -> Result<VerifyStatus, StoreError> {
        Ok(VerifyStatus {
            running: self.verifying.running(),
            last: self.meta.get(Table::Setting, LAST_REPORT)?,
        })
    }

    fn read_all(
        &self,
        pace: Pace,
        events: &dyn Events,
        running: &Running<'_>,
    ) -> Result<(StoreVerifyReport, Damage), StoreError> {
        let pacer = Pacer::new(pace);
        let mut report = StoreVerifyReport { started: Timestamp::now(), ..StoreVerifyReport::default() };
        let mut damage = Damage::new();
        let mut unreadable = Vec::new();
        // A needed tree that cannot be read is damage like any other here.
        let needed = self.mark_with(&mut |digest, error| {
            unreadable.push((digest, error));
            Ok(())
        })?;
        for (digest, error) in unreadable {
            damage.insert(digest, (DamagedThing::Tree, error.to_string()));
        }
        // Whoever has one in use may still have all of it, but nobody who comes later.
        for digest in &needed.trees {
            if let Err(error) = self.trees.file(digest) {
                damage.insert(*digest, (DamagedThing::Tree, error.to_string()));
            }
        }
        for digest in self.trees.list()? {
            self.check_go_on(running)?;
            match self.read_tree(&digest).and_then(|tree| Ok(tree.validate().map(|()| tree)?)) {
                Ok(tree) => {
                    report.trees += 1;
                    report.bytes += tree.stats().tree_bytes;
                    pacer.read(tree.stats().tree_bytes);
                }
                Err(StoreError::Tree(TreeError::Missing(_))) => {}
                Err(error) => {
                    damage.insert(digest, (DamagedThing::Tree, error.to_string()));
                }
            }
        }
        let mut sizes: HashMap<Digest, u64> = self.list_blobs(events)?.into_iter().collect();
        for digest in &needed.blobs {
            sizes.entry(*digest).or_insert(0);
        }
        let mut blobs: Vec<_> = sizes.into_iter().collect();
        blobs.sort_unstable();
        let total_bytes = blobs.iter().map(|(_, size)| size).sum();
        let step = Step::new(events, "bytes", "verifying", Some(total_bytes));
        running.tell(|progress| progress.total_bytes = total_bytes);
        for (digest, size) in blobs {
            self.check_go_on(running)?;
            let mut read = |bytes| {
                // Otherwise the blob is read to its end without waiting, and then the check ends.
                if self.check_go_on(running).is_ok() {
                    pacer.read(bytes);
                }
            };
            match self.blobs.verify_reading(&digest, &mut read) {
                Ok(bytes) => {
                    report.blobs += 1;
                    report.bytes += bytes;
                }
                // Collected since it was listed.
                Err(BlobError::Missing { .. }) if !needed.blobs.contains(&digest) => {}
                // One that is unreadable is as lost as one that changed; the check goes on to the others.
                Err(error) => {
                    damage.insert(digest, (DamagedThing::Blob, error.to_string()));
                }
            }
            step.add(size);
            running.tell(|progress| progress.done_bytes += size);
        }
        step.finish();
        // A template may have been removed, and its blobs collected, while this went on.
        if damage.iter().any(|(_, (what, _))| *what == DamagedThing::Blob) {
            let needed = self.mark_with(&mut |_, _| Ok(()))?;
            damage.retain(|digest, (what, _)| {
                let gone = *what == DamagedThing::Blob && !self.blobs.contains(digest).unwrap_or(true);
                !gone || needed.blobs.contains(digest)
            });
        }
        Ok((report, damage))
    }

    /// A tree as it is on the disk, not as it is in the host's page cache. Only its header was checked.
    pub(super) fn read_tree(&self, digest: &Digest) -> Result<Tree, StoreError> {
        let file = self.trees.file(digest)?;
        let mut bytes = Vec::new();
        let read = blobs::read_direct(&file, &mut |piece| {
            bytes.extend_from_slice(piece);
            Ok::<_, Errno>(())
        });
        let path = self.layout.trees().join(digest.to_hex());
        read.map_err(|errno| StoreError::io("read", path)(errno.into()))?;
        Ok(Tree::of_bytes(*digest, bytes)?)
    }

    /// Names everybody who is touched.
    fn with_users(
        &self,
        damage: &Damage,
        repaired: &HashSet<Digest>,
    ) -> Result<Vec<StoreDamage>, StoreError> {
        if damage.is_empty() {
            return Ok(Vec::new());
        }
        let mut users: BTreeMap<Digest, Vec<DamageUser>> = BTreeMap::new();
        let blobs: HashSet<Digest> = damage.keys().copied().collect();
        let shows = |tree: &Tree| tree.blobs().any(|(digest, _)| blobs.contains(&digest));
        for (_, record) in self.meta.list::<TemplateRecord>(Table::Template)? {
            let user = |path: &[u8]| DamageUser {
                template: Some(record.spec.clone()),
                ve: None,
                path: path_text(path),
            };
            if damage.contains_key(&record.layer) {
                users.entry(record.layer).or_default().push(user(b""));
            }
            if let Some(recipe) = record.recipe.filter(|recipe| blobs.contains(&recipe.digest)) {
                users.entry(recipe.digest).or_default().push(user(RECIPE));
            }
            let Ok(tree) = self.trees.open(&record.layer) else { continue };
            let find = || Ok::<_, TreeError>(if shows(&tree) { paths_of(&tree, &blobs) } else { Vec::new() });
            // One that cannot be read is damaged itself, which says it all.
            for (path, digest) in soundly_read(find).unwrap_or_default() {
                users.entry(digest).or_default().push(user(&path));
            }
        }
        let mut own: HashSet<VeId> = HashSet::new();
        self.meta.for_each_private_blob(&mut |ve, digest, _| {
            if blobs.contains(&digest) {
                own.insert(ve);
            }
        })?;
        for slot in self.slots() {
            let record = slot.record();
            let user = |path: &[u8]| DamageUser {
                template: None,
                ve: Some(record.name.clone()),
                path: path_text(path),
            };
            // Bases that it had before, too: programs in it may have files of theirs open.
            let bases = [&record.base].into_iter().chain(&record.retired).chain(&record.unsettled);
            for base in bases.filter(|base| damage.contains_key(base)).collect::<HashSet<_>>() {
                users.entry(*base).or_default().push(user(b""));
            }
            let base = self.trees.open(&record.base).ok();
            let shows = || Ok::<_, TreeError>(base.as_ref().is_some_and(|base| shows(base)));
            if !own.contains(&slot.id) && !soundly_read(shows).unwrap_or(false) {
                continue;
            }
            let failed = |source| StoreError::Volume { ve: record.name.clone(), source: Box::new(source) };
            match self.volume(&slot) {
                Ok(volume) => match volume.paths_showing(&blobs) {
                    Ok(paths) => {
                        for (path, digest) in paths {
                            users.entry(digest).or_default().push(user(&path));
                        }
                    }
                    Err(VolumeError::Tree(_)) => {}
                    Err(error) => return Err(failed(error)),
                },
                // Removed meanwhile, or its base is damaged, which says it all.
                Err(StoreError::VeRemoving(_) | StoreError::Tree(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let described = damage.iter().map(|(digest, (what, why))| StoreDamage {
            digest: *digest,
            what: *what,
            why: why.clone(),
            repaired: repaired.contains(digest),
            users: users.remove(digest).unwrap_or_default(),
        });
        Ok(described.collect())
    }

    /// Looks through the private layers of all VEs, and tells how many those are.
    fn private_damage(&self, events: &dyn Events) -> Result<(u64, Vec<PrivateDamage>), StoreError> {
        let slots = self.slots();
        let step = Step::new(events, "VEs", "looking through", Some(slots.len() as u64));
        let (mut ves, mut found) = (0, Vec::new());
        for slot in slots {
            self.check_open()?;
            let ve = slot.record().name.clone();
            let mut wrong = |path, why| found.push(PrivateDamage { ve: ve.clone(), path, why });
            match self.volume(&slot).map(|volume| volume.damage()) {
                Ok(Ok(damage)) => {
                    ves += 1;
                    for damage in damage {
                        match damage {
                            volume::Damage::Record(why) => wrong(None, why),
                            volume::Damage::Content(path) => {
                                wrong(Some(path_text(&path)), "its content is not there".to_owned());
                            }
                        }
                    }
                }
                Ok(Err(VolumeError::Tree(_))) => {}
                Ok(Err(error)) => wrong(None, error.to_string()),
                // Removed meanwhile, or its base is damaged, which was told.
                Err(StoreError::VeRemoving(_) | StoreError::Tree(_)) => {}
                Err(StoreError::Closing) => return Err(StoreError::Closing),
                Err(error) => wrong(None, error.to_string()),
            }
            step.add(1);
        }
        step.finish();
        Ok((ves, found))
    }

    /// Puts what the source has in the place of what is damaged. Returns what is whole again.
    fn repair(
        &self,
        source: Option<&Path>,
        damage: &Damage,
        events: &dyn Events,
    ) -> Result<HashSet<Digest>, StoreError> {
        let of = |kind| damage.iter().filter(move |(_, (what, _))| *what == kind).map(|(digest, _)| *digest);
        let blobs: HashSet<Digest> = of(DamagedThing::Blob).collect();
        let trees: HashSet<Digest> = of(DamagedThing::Tree).collect();
        let _adding = self.begin_adding()?;
        for image in trees.iter().filter_map(|digest| self.trees.in_use(digest)) {
            self.trees.restore(&image)?;
        }
        if let Some(source) = source {
            self.repair_from(source, &blobs, &trees, events)?;
        }
        self.rebuild_bases(&trees)?;
        let mut whole = HashSet::new();
        whole.extend(blobs.into_iter().filter(|digest| self.blobs.verify(digest).is_ok()));
        let sound = |digest: &Digest| self.read_tree(digest).is_ok_and(|tree| tree.validate().is_ok());
        whole.extend(trees.into_iter().filter(sound));
        Ok(whole)
    }

    fn repair_from(
        &self,
        source: &Path,
        blobs: &HashSet<Digest>,
        trees: &HashSet<Digest>,
        events: &dyn Events,
    ) -> Result<(), StoreError> {
        let batch = self.blobs.repairing_batch(blobs.clone());
        if source.join("blobs").is_dir() && source.join("trees").is_dir() {
            for digest in blobs {
                let hex = digest.to_hex();
                if let Ok(file) = File::open(source.join("blobs").join(&hex[..2]).join(&hex)) {
                    batch.add_file(&file)?;
                }
            }
            for digest in trees {
                let Ok(bytes) = std::fs::read(source.join("trees").join(digest.to_hex())) else { continue };
                // One that is damaged there too is refused.
                if let Err(error) = self.trees.restore(&TreeImage { digest: *digest, bytes }) {
                    tracing::warn!(tree = %digest.short(), %error, "the source cannot repair it");
                }
            }
            batch.commit()?;
        } else {
            let step = Step::new(events, "files", "reading", None);
            let source = Source::detect(source)?;
            let mut full = archive::import(&source, &batch, &Limits::default(), &step)?;
            step.finish();
            difference::flatten(&mut full);
            batch.commit()?;
            if !trees.is_empty() {
                self.repair_layers(full, trees)?;
            }
        }
        Ok(())
    }

    /// A layer is what it was imported from, or how that differs from its OS.
    fn repair_layers(&self, full: TreeBuilder, trees: &HashSet<Digest>) -> Result<(), StoreError> {
        for (_, record) in self.meta.list::<TemplateRecord>(Table::Template)? {
            let Some(os) = record.os.filter(|_| trees.contains(&record.layer)) else { continue };
            let Ok(os) = self.trees.open(&os.layer) else { continue };
            // An OS that cannot be read is repaired below, and its applications the next time.
            let Ok(layer) = difference::difference(&os, &full) else { continue };
            let image = layer.finish()?;
            if image.digest == record.layer {
                self.trees.restore(&image)?;
            }
        }
        let image = full.finish()?;
        if trees.contains(&image.digest) {
            self.trees.restore(&image)?;
        }
        Ok(())
    }

    /// A base follows from its layers.
    fn rebuild_bases(&self, trees: &HashSet<Digest>) -> Result<(), StoreError> {
        let names: HashMap<Digest, _> = {
            let ves = self.meta.list::<VeRecord>(Table::Ve)?;
            ves.into_iter().flat_map(|(_, ve)| ve.stack).map(|item| (item.layer, item.spec)).collect()
        };
        for (_, record) in self.meta.list::<BaseRecord>(Table::Base)? {
            let [os, apps @ ..] = &*record.layers else { continue };
            if !trees.contains(&record.base) {
                continue;
            }
            let open = |layer: &Digest| Some((names.get(layer)?.clone(), self.trees.open(layer).ok()?));
            let (Ok(os), Some(apps)) =
                (self.trees.open(os), apps.iter().map(open).collect::<Option<Vec<_>>>())
            else {
                continue;
            };
            let Ok(rules) = checked(&record.rules).map(Rules::new) else { continue };
            match build_base(&os, &apps, &rules, &self.blobs) {
                Ok(built) if built.image.digest == record.base => self.trees.restore(&built.image)?,
                Ok(_) => tracing::warn!(base = %record.base.short(), "its layers do not give it any more"),
                Err(error) => tracing::warn!(base = %record.base.short(), %error, "it cannot be made again"),
            }
        }
        Ok(())
    }
}

/// The paths of a tree that show one of these blobs.
fn paths_of(tree: &Tree, blobs: &HashSet<Digest>) -> Vec<(Vec<u8>, Digest)> {
    let shown = |(path, entry)| match entry {
        WalkEntry::Node(view) => match view.content() {
            ContentRef::Blob { digest, .. } => Some((path, digest)),
            _ => None,
        },
        WalkEntry::Whiteout => None,
    };
    tree.walk().filter_map(shown).filter(|(_, digest)| blobs.contains(digest)).collect()
}
