//! Names that the VE and the update both have something at, one by one.

use super::content::{Blob, digest_of, read_bounded};
use super::database;
use super::depends::broken;
use super::packages::Standing;
use super::prepared::STATUS;
use super::status::Status;
use super::text::shown;
use super::{Item, Resolver};
use crate::api::{Generate, MergedFile, OnConflict, ShadowedBy};
use crate::merge::{self, Labels, MergeError, Rule, Versions};
use crate::meta::EntryRecord;
use crate::store::StoreError;
use crate::tree::{ContentRef, NodeView, Target, Tree};
use crate::types::{Attr, Digest, FileKind, Ino, Name, NameRef};
use crate::volume::{Action, Edit};

pub(super) const ALTERNATIVES_LINKS: &[u8] = b"etc/alternatives/";
const ALTERNATIVES: &[u8] = b"var/lib/dpkg/alternatives/";
const TRIGGERS: &[u8] = b"var/lib/dpkg/triggers/";
const DIVERSIONS: &[u8] = b"var/lib/dpkg/diversions";
pub(super) const LABELS: Labels<'_> = Labels { ours: "the update", theirs: "the VE" };

/// A regular file of the VE's, with what the bases have there.
struct Own<'i> {
    item: &'i Item<'i>,
    ino: Ino,
    attr: Attr,
    old: Option<Blob>,
    new: Option<Blob>,
}

impl<'a> Resolver<'a> {
    pub(super) fn decide(&mut self, item: &'a Item<'a>) -> Result<(), StoreError> {
        let (ino, kind) = match item.hidden.by {
            None => return self.decide_below_own_directory(item),
            Some(EntryRecord::Whiteout) => return self.decide_removed(item),
            Some(EntryRecord::Node(ino, kind)) => (ino, kind),
        };
        let new = item.hidden.change.new;
        if kind == FileKind::Dir && new.is_none_or(|(_, kind)| kind == FileKind::Dir) {
            // A directory of its own; what is hidden below comes by itself.
            return Ok(());
        }
        if let Some(standing) = self.packages.own_owner(&item.place) {
            self.check_owners(item, standing)?;
            if new.is_some() && !item.is_info() {
                self.shadow(item, None);
            }
            return Ok(());
        }
        if item.is_info() {
            return self.decide_info(item, ino, kind);
        }
        if kind == FileKind::Symlink && item.path.starts_with(ALTERNATIVES_LINKS) {
            self.links.push(item);
            return Ok(());
        }
        match kind {
            FileKind::File => self.decide_file(item, ino),
            FileKind::Symlink if self.is_base_link(item, ino)?.contains(&true) => {
                self.take(item);
                Ok(())
            }
            _ if new.is_none() => {
                self.keep_without_base(item);
                Ok(())
            }
            _ => self.conflict(item, kind, "both are changed"),
        }
    }

    /// A file that the update adds for one package, and that the VE has of another: dpkg would have refused.
    fn check_owners(&mut self, item: &Item<'_>, standing: &Standing) -> Result<(), StoreError> {
        let other = self.packages.owner_in_update(&item.place);
        if let (None, Some(other)) = (item.hidden.change.old, other) {
            let text = format!("it belongs to {other} of the update and to {} of the VE", standing.name);
            if self.sides.on_conflict == OnConflict::Fail {
                return Err(self.refuse(&format!("/{}", item.text()), &text));
            }
            self.resolved.notes.push(format!("/{}: {text}, which stays", item.text()));
        }
        Ok(())
    }

    /// Whether a link of the VE's leads where the old base's and the new base's do.
    fn is_base_link(&self, item: &Item<'_>, ino: Ino) -> Result<[bool; 2], StoreError> {
        let own = self.sides.volume.read_link(ino).map_err(self.sides.failed())?;
        let change = item.hidden.change;
        let leads = |tree: &Tree, node: Option<(Ino, FileKind)>| {
            let content = node.and_then(|(ino, _)| tree.node(ino)).map(|view| view.content());
            content == Some(ContentRef::Symlink(&own))
        };
        Ok([leads(&self.sides.delta.old, change.old), leads(&self.sides.delta.new, change.new)])
    }

    fn decide_file(&mut self, item: &'a Item<'a>, ino: Ino) -> Result<(), StoreError> {
        let own = self.own(item, ino)?;
        let digest = self.digest_like(&own)?;
        let is = |blob: Option<Blob>| digest.is_some() && blob.map(|blob| blob.digest) == digest;
        if is(own.old) || is(own.new) {
            return match own.new {
                Some(new) => self.put(&own, new),
                None => {
                    self.take(item);
                    Ok(())
                }
            };
        }
        if item.hidden.change.new.is_none() {
            self.keep_without_base(item);
            return Ok(());
        }
        let Some(new) = own.new else { return self.conflict(item, FileKind::File, "one is no file") };
        match self.sides.rules.rule_for(&item.path) {
            Rule::Derived => self.generate(item),
            Rule::Keep => self.shadow(item, None),
            Rule::Take => {
                let (path, rule) = (item.text(), Rule::Take.to_string());
                self.resolved.merged.push(MergedFile { path, rule, notes: Vec::new() });
                return self.put(&own, new);
            }
            rule if is_left_alone(rule, &item.path) => {}
            Rule::LastWins => return self.conflict(item, FileKind::File, "both are changed"),
            // State of programs may look like text, and is nothing to put together line by line, unless a template says so.
            Rule::Text
                if item.path.starts_with(b"var/") && self.sides.rules.own_for(&item.path).is_none() =>
            {
                return self.conflict(item, FileKind::File, "it is data");
            }
            rule => return self.merge(&own, new, rule),
        }
        Ok(())
    }

    fn own(&self, item: &'a Item<'a>, ino: Ino) -> Result<Own<'a>, StoreError> {
        let attr = self.sides.volume.attr(ino).map_err(self.sides.failed())?;
        let change = item.hidden.change;
        let old = Blob::of(&self.sides.delta.old, change.old);
        let new = Blob::of(&self.sides.delta.new, change.new);
        Ok(Own { item, ino, attr, old, new })
    }

    /// The digest of a file that may have the content of one of the bases; `None` when its size says that it has not.
    fn digest_like(&self, own: &Own<'_>) -> Result<Option<Digest>, StoreError> {
        let sizes = [own.old, own.new].map(|blob| blob.map(|blob| blob.size));
        if !sizes.contains(&Some(own.attr.size)) {
            return Ok(None);
        }
        let file = self.sides.volume.open_for_reading(own.ino).map_err(self.sides.failed())?;
        digest_of(file).map(Some).map_err(self.sides.cannot_read(&own.item.path))
    }

    /// Shows a content in place of the VE's. Attributes that the VE changed stay.
    fn put(&mut self, own: &Own<'_>, blob: Blob) -> Result<(), StoreError> {
        if own.new == Some(blob) && !self.has_own_attributes(own)? {
            self.take(own.item);
            return Ok(());
        }
        let Blob { digest, size, allocated_bytes } = blob;
        let action = Action::Replace { digest, size, allocated_bytes };
        self.resolved.edits.push(Edit::of(own.item.hidden, action));
        Ok(())
    }

    /// Whether a file has attributes that neither of the bases gives it.
    fn has_own_attributes(&self, own: &Own<'_>) -> Result<bool, StoreError> {
        let change = own.item.hidden.change;
        let delta = self.sides.delta;
        let old =
            change.old.filter(|(_, kind)| *kind == FileKind::File).and_then(|(ino, _)| delta.old.node(ino));
        let new = change.new.and_then(|(ino, _)| delta.new.node(ino));
        let bases: Vec<NodeView<'_>> = [old, new].into_iter().flatten().collect();
        let some = |is: &dyn Fn(&NodeView<'_>) -> bool| bases.iter().any(is);
        let mut xattrs = Vec::new();
        for name in self.sides.volume.xattr_names(own.ino).map_err(self.sides.failed())? {
            let value = self.sides.volume.xattr(own.ino, &name).map_err(self.sides.failed())?;
            xattrs.push((name, value));
        }
        let same_xattrs = |view: &NodeView<'_>| {
            view.xattrs().eq(xattrs.iter().map(|(name, value)| (name.as_slice(), value.as_slice())))
        };
        Ok(!(some(&|view| view.attr().perm == own.attr.perm)
            && some(&|view| view.attr().uid == own.attr.uid)
            && some(&|view| view.attr().gid == own.attr.gid)
            && some(&same_xattrs)))
    }

    pub(super) fn take(&mut self, item: &Item<'_>) {
        self.resolved.edits.push(Edit::of(item.hidden, Action::Take { keep_as: None }));
    }

    /// The update removes what the VE has changed. Only of packages and of configuration is that worth telling.
    fn keep_without_base(&mut self, item: &'a Item<'a>) {
        let is_owned = self.sides.prepared.owners(&item.place).is_some();
        if is_owned || item.is_configuration() {
            self.shadow(item, None);
        }
    }

    /// A derived file stays the VE's until it is made anew (R4).
    fn generate(&mut self, item: &Item<'_>) {
        if let Some(command) = self.sides.rules.generator_for(&item.path) {
            self.resolved.generate.push(Generate { path: item.text(), command });
        }
    }

    /// dpkg's own files of a package that is the update's: as an upgrade leaves them.
    fn decide_info(&mut self, item: &'a Item<'a>, ino: Ino, kind: FileKind) -> Result<(), StoreError> {
        let is_list = item.place.1.as_bytes().ends_with(b".list");
        if kind == FileKind::File && is_list {
            // A package of the VE's may have taken files over.
            let own = self.own(item, ino)?;
            if let (Some(new), Some(_)) = (own.new, own.old) {
                return self.merge(&own, new, Rule::LineSet);
            }
        }
        if kind != FileKind::Dir {
            self.take(item);
        }
        Ok(())
    }

    fn merge(&mut self, own: &Own<'a>, new: Blob, rule: Rule) -> Result<(), StoreError> {
        let item = own.item;
        let merged = match self.merged(own, new, rule)? {
            Ok(merged) => merged,
            Err(reason) => return self.conflict(item, FileKind::File, &reason.to_string()),
        };
        let blob = if self.sides.dry_run {
            let size = merged.bytes.len() as u64;
            Blob { digest: Digest::of(&merged.bytes), size, allocated_bytes: size }
        } else {
            let stored = self.batch.add_bytes(&merged.bytes)?;
            Blob { digest: stored.digest, size: stored.size, allocated_bytes: stored.allocated_bytes }
        };
        self.put(own, if blob.digest == new.digest { new } else { blob })?;
        if let Some(master) = item.path.strip_prefix(ALTERNATIVES) {
            self.wanted.add(master, &merged.bytes);
        }
        if item.path == STATUS {
            self.check_dependencies(&merged.bytes);
        }
        if !item.is_info() {
            let (path, rule) = (item.text(), rule.to_string());
            self.resolved.merged.push(MergedFile { path, rule, notes: merged.notes });
        }
        Ok(())
    }

    /// The merged content, or why there is none.
    fn merged(
        &self,
        own: &Own<'_>,
        new: Blob,
        rule: Rule,
    ) -> Result<Result<merge::Merged, MergeError>, StoreError> {
        let sides = self.sides;
        if own.item.path == STATUS
            && let (Some(old), Some(new)) = (&sides.prepared.old, &sides.prepared.new)
            && let Some(own) = &self.packages.own
        {
            return Ok(database::status(old, new, own, self.packages));
        }
        let file = sides.volume.open_for_reading(own.ino).map_err(sides.failed())?;
        let theirs = read_bounded(file).map_err(sides.cannot_read(&own.item.path))?;
        let base = own.old.map(|old| old.read(sides.blobs)).transpose()?;
        let (base, Some(ours), Some(theirs)) = (base, new.read(sides.blobs)?, theirs) else {
            return Ok(Err(MergeError::TooMuch));
        };
        if matches!(base, Some(None)) {
            return Ok(Err(MergeError::TooMuch));
        }
        let base = base.flatten();
        let ours = self.lend(&own.item.path, base.as_deref().unwrap_or_default(), ours);
        let versions = Versions { base: base.as_deref(), ours: &ours, theirs: &theirs };
        Ok(merge::merge(rule, versions, LABELS))
    }

    /// The update's version of a table, without what it says of packages that are the VE's (R1).
    fn lend(&self, path: &[u8], base: &[u8], ours: Vec<u8>) -> Vec<u8> {
        if self.packages.all().next().is_none() {
            return ours;
        }
        if path == DIVERSIONS {
            database::diversions(base, &ours, self.packages)
        } else if path.starts_with(TRIGGERS) && !path.ends_with(b"/Unincorp") {
            database::triggers(base, &ours, self.packages)
        } else {
            ours
        }
    }

    /// Tells what the merged package table breaks that was not broken in the VE before.
    fn check_dependencies(&mut self, merged: &[u8]) {
        const MOST: usize = 20;
        let (Some(own), Ok(merged)) = (&self.packages.own, Status::parse(merged.to_vec())) else { return };
        let after = broken(&merged);
        if after.is_empty() {
            return;
        }
        let before = broken(own);
        let new: Vec<_> = after.into_iter().filter(|text| !before.contains(text)).collect();
        let more = new.len().saturating_sub(MOST);
        self.resolved.notes.extend(new.into_iter().take(MOST));
        if more > 0 {
            self.resolved.notes.push(format!("and {more} more dependencies are not met"));
        }
    }

    /// Both sides changed a name, and there is no way to have both (R5). `kind` is the VE's.
    fn conflict(&mut self, item: &'a Item<'a>, kind: FileKind, reason: &str) -> Result<(), StoreError> {
        let (_, new_kind) = item.hidden.change.new.unwrap_or((item.hidden.dir, FileKind::Dir));
        match self.sides.on_conflict {
            OnConflict::Fail => Err(self.refuse(&format!("/{}", item.text()), reason)),
            OnConflict::Take if kind != FileKind::Dir => {
                let suffix = if item.is_configuration() { ".dpkg-old" } else { ".vzfs-old" };
                let Some(name) = self.free_name(item, suffix)? else {
                    let text = format!(
                        "/{}: the VE keeps its own, because it cannot be put beside as *{suffix}: there is a directory, or the name is too long",
                        item.text()
                    );
                    self.resolved.notes.push(text);
                    self.keep(item, ShadowedBy::Changed, None);
                    return Ok(());
                };
                let text = format!(
                    "/{}: the update's is taken ({reason}), the VE's own is {} now",
                    item.text(),
                    shown(name.as_bytes())
                );
                self.resolved.notes.push(text);
                self.resolved.edits.push(Edit::of(item.hidden, Action::Take { keep_as: Some(name) }));
                Ok(())
            }
            OnConflict::Keep | OnConflict::Take => {
                let is_conffile =
                    item.is_configuration() || self.packages.is_conffile(&item.place, &item.path);
                let beside = match (is_conffile, new_kind) {
                    (true, FileKind::File) => self.free_name(item, ".dpkg-dist")?,
                    _ => None,
                };
                if let Some(name) = &beside {
                    self.resolved.edits.push(Edit::of(item.hidden, Action::Beside { name: name.clone() }));
                }
                self.keep(item, ShadowedBy::Changed, beside);
                Ok(())
            }
        }
    }

    /// Whether a path of the VE's own directory shows what the new base has there.
    pub(super) fn is_shown_already(&self, item: &'a Item<'a>, ino: Ino) -> Result<bool, StoreError> {
        let own = self.own(item, ino)?;
        let kind = item.hidden.change.new.map(|(_, kind)| kind);
        Ok(kind == Some(own.attr.kind)
            && match own.attr.kind {
                FileKind::Dir => true,
                FileKind::File => self.digest_like(&own)? == own.new.map(|new| new.digest),
                FileKind::Symlink => self.is_base_link(item, ino)?[1],
                _ => false,
            })
    }

    /// The VE keeps its own, by its own choice and not by a package's.
    pub(super) fn keep(&mut self, item: &'a Item<'a>, by: ShadowedBy, beside: Option<Name>) {
        if let Some(versions) =
            self.packages.versions(&item.place).filter(|versions| versions.from != versions.to)
        {
            let files = self.own_files.entry(versions.to_string()).or_default();
            files.push(format!("/{}", item.text()));
        }
        let beside = beside.map(|name| {
            let dir = item.path.len() - item.place.1.as_bytes().len();
            shown(&[&item.path[..dir], name.as_bytes()].concat())
        });
        self.shadow_as(item, by, beside);
    }

    /// The name with a suffix, in the same directory, if something can be put there.
    fn free_name(&mut self, item: &Item<'_>, suffix: &str) -> Result<Option<Name>, StoreError> {
        let dir = item.place.0;
        let Ok(name) = Name::new(&[item.place.1.as_bytes(), suffix.as_bytes()].concat()) else {
            return Ok(None);
        };
        let is_dir = |tree: &Tree, name: NameRef<'_>| matches!(tree.lookup(dir, name), Some(entry) if matches!(entry.target, Target::Node(_, FileKind::Dir)));
        let own = self.sides.volume.lookup(dir, name.as_ref());
        if own.is_ok_and(|attr| attr.kind == FileKind::Dir) || is_dir(&self.sides.delta.new, name.as_ref()) {
            return Ok(None);
        }
        Ok(self.used.insert((dir, name.clone())).then_some(name))
    }

    pub(super) fn refuse(&self, what: &str, reason: &str) -> StoreError {
        StoreError::Invalid(format!(
            "VE {} was not moved: {what} is changed by the VE and by the update, and cannot be merged ({reason}); with another choice for \
             conflicts one of the two is kept",
            self.sides.ve
        ))
    }
}

impl Item<'_> {
    pub(super) fn is_info(&self) -> bool {
        super::is_info_path(&self.path)
    }

    fn is_configuration(&self) -> bool {
        self.path.starts_with(b"etc/")
    }
}

/// Files that both sides write and of which the VE's simply stays (R3): logs, which programs have open, and backups of tables, which say what the
/// VE had.
pub(super) fn is_left_alone(rule: Rule, path: &[u8]) -> bool {
    let is_backup = path.ends_with(b"-old") || path.ends_with(b"-");
    match rule {
        Rule::Log => true,
        Rule::Stanzas | Rule::Diversions | Rule::StatOverrides | Rule::Accounts(_) | Rule::SubIds => {
            is_backup
        }
        _ => false,
    }
}
