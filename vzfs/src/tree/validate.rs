//! The full check of a tree: every rule of `doc/FORMAT.md`, in time proportional to the size.
//!
//! The steps build on each other. The flat tables come first; then entries, which refer to inodes; then the
//! walk by path, which needs to know that it walks a tree. Positions are checked by running totals: a table
//! whose records follow each other without gap or overlap, and end where the table ends, refers to nothing
//! outside it and leaves nothing out.

use crate::types::{Digest, FileKind, Ino};

use super::format::{
    EntryRecord, FLAG_OPAQUE, InodeRecord, KIND_WHITEOUT, MAX_PATH_BYTES, NONE, XattrSetRecord, build_index,
    is_legal_target, is_legal_xattr,
};
use super::image::logical_bytes;
use super::number::Numbering;
use super::order::{Step, in_path_order};
use super::{ContentRef, NodeView, Tree, TreeError, soundly, soundly_read};

impl Tree {
    /// Checks everything there is to check, the digest included: offsets, order, uniqueness, counts,
    /// reachability, inode numbers. A tree that passes is byte for byte the one that
    /// [`super::TreeBuilder::finish`] writes for the same content.
    ///
    /// # Errors
    /// [`TreeError::WrongDigest`], [`TreeError::Damaged`] with the first rule that is broken and where; [`TreeError::Unreadable`].
    pub fn validate(&self) -> Result<(), TreeError> {
        if self.is_mapped() {
            // In memory, where nothing changes while it is compared and sorted.
            let bytes = soundly(|| Ok::<_, TreeError>(self.see(self.bytes()).to_vec()))?;
            return Tree::of_bytes(self.digest(), bytes)?.validate();
        }
        self.check_digest()?;
        let check = Check { tree: self };
        check.header()?;
        check.blobs()?;
        check.xattrs()?;
        check.inodes()?;
        let targets = check.entries()?;
        check.names(&targets)?;
        check.paths(&targets)
    }
}

impl Tree {
    /// Whether the bytes are those that the tree's name stands for, which takes a fraction of the time of [`Tree::validate`].
    ///
    /// # Errors
    /// [`TreeError::WrongDigest`], [`TreeError::Unreadable`].
    pub fn check_digest(&self) -> Result<(), TreeError> {
        let actual = soundly_read(|| Ok::<_, TreeError>(Digest::of(self.see(self.bytes()))))?;
        if actual == self.digest() {
            Ok(())
        } else {
            Err(TreeError::WrongDigest { tree: self.digest(), actual })
        }
    }
}

struct Check<'t> {
    tree: &'t Tree,
}

type Checked<T = ()> = Result<T, TreeError>;

/// The extended attributes of one set: names and values.
type Attributes<'t> = Vec<(&'t [u8], &'t [u8])>;

impl<'t> Check<'t> {
    /// An error unless `sound`; `what` says what is wrong.
    fn ensure(&self, sound: bool, what: impl FnOnce() -> String) -> Checked {
        if sound { Ok(()) } else { Err(TreeError::damaged(self.tree.digest(), what())) }
    }

    fn header(&self) -> Checked {
        let (header, inodes) = (self.tree.header(), self.tree.inode_records());
        self.ensure(header.reserved == [0; 44], || "reserved bytes of its header are not zero".into())?;
        let kinds = |kind: FileKind| inodes.iter().filter(|inode| inode.kind == kind as u8).count();
        let whiteouts = self.tree.entry_records().iter().filter(|entry| entry.kind == KIND_WHITEOUT).count();
        let opaques = inodes.iter().filter(|inode| inode.flags & FLAG_OPAQUE != 0).count();
        for (what, found, said) in [
            ("regular files", kinds(FileKind::File), header.files),
            ("directories", kinds(FileKind::Dir), header.dirs),
            ("symbolic links", kinds(FileKind::Symlink), header.symlinks),
            ("whiteouts", whiteouts, header.whiteouts),
            ("opaque directories", opaques, header.opaques),
        ] {
            self.ensure(found == said.get() as usize, || {
                format!("it has {found} {what}, its header says {said}")
            })?;
        }
        let bytes = logical_bytes(inodes, self.tree.blob_records());
        let said = header.logical_bytes;
        self.ensure(bytes == said.get(), || format!("its files have {bytes} bytes, its header says {said}"))
    }

    fn blobs(&self) -> Checked {
        let blobs = self.tree.blob_records();
        self.ensure(blobs.is_sorted_by(|a, b| a.digest < b.digest), || "its blobs are not in order".into())?;
        let mut used = vec![false; blobs.len()];
        for inode in self.tree.inode_records().iter().filter(|inode| inode.kind == FileKind::File as u8) {
            if let Some(used) = used.get_mut(inode.first.get() as usize) {
                *used = true;
            }
        }
        for (blob, used) in blobs.iter().zip(used) {
            let digest = Digest::from_bytes(blob.digest);
            self.ensure(used, || format!("no file refers to its blob {digest}"))?;
            let fits = blob.size.get() <= i64::MAX as u64;
            self.ensure(fits, || format!("its blob {digest} has more than 2^63 - 1 bytes"))?;
        }
        Ok(())
    }

    fn xattrs(&self) -> Checked {
        let sets = self.tree.xattr_set_records();
        let (mut records, mut heap_bytes) = (0u64, 0u64);
        let mut previous: Option<Attributes<'_>> = None;
        for (index, set) in sets.iter().enumerate() {
            let at = |what: &str| format!("its set {index} of extended attributes {what}");
            let attributes = self.xattr_set(set, &mut records, &mut heap_bytes);
            let attributes = attributes.map_err(|what| TreeError::damaged(self.tree.digest(), at(what)))?;
            self.ensure(previous.is_none_or(|previous| previous < attributes), || at("is not in order"))?;
            previous = Some(attributes);
        }
        let total = self.tree.xattr_records().len() as u64;
        self.ensure(records == total, || "it has extended attributes in no set".into())?;
        let total = u64::from(self.tree.header().xattrs_bytes.get());
        self.ensure(heap_bytes == total, || "it has unused bytes of extended attributes".into())?;

        let mut used = vec![false; sets.len()];
        for inode in self.tree.inode_records() {
            if let Some(used) = used.get_mut(inode.xattrs.get() as usize) {
                *used = true;
            }
        }
        self.ensure(!used.contains(&false), || "it has a set of extended attributes that nothing uses".into())
    }

    /// Names and values of one set; moves the running totals on.
    fn xattr_set(
        &self,
        set: &XattrSetRecord,
        records: &mut u64,
        heap_bytes: &mut u64,
    ) -> Result<Attributes<'t>, &'static str> {
        let (first, count) = (set.first.get() as usize, set.count.get() as usize);
        let found = self.tree.xattr_records().get(first..first + count).ok_or("reaches past its table")?;
        if first as u64 != *records || count == 0 {
            return Err("is empty or does not follow the set before");
        }
        *records += count as u64;
        let mut attributes = Vec::new();
        for record in found {
            if u64::from(record.start.get()) != *heap_bytes {
                return Err("has an attribute that does not follow the one before");
            }
            let (name, value) = self.tree.xattr(record).ok_or("has an attribute past the end of its heap")?;
            *heap_bytes += (name.len() + value.len()) as u64;
            if !is_legal_xattr(name, value) {
                return Err("has an attribute with an illegal name or more than 65536 bytes");
            }
            attributes.push((name, value));
        }
        if !attributes.is_sorted_by(|(a, _), (b, _)| a < b) {
            return Err("has names that are not in order");
        }
        Ok(attributes)
    }

    fn inodes(&self) -> Checked {
        let records = self.tree.inode_records();
        let root = records.first();
        let has_root =
            root.is_some_and(|root| root.ino.get() == Ino::ROOT.get() && root.kind == FileKind::Dir as u8);
        self.ensure(has_root, || "it has no root directory".into())?;
        let ordered = records.is_sorted_by(|a, b| a.ino.get() < b.ino.get());
        self.ensure(ordered, || "its inodes are not in order".into())?;
        // Before the index is made anew: it would become as long as the greatest number says.
        let in_range = |last: &InodeRecord| last.ino.get() < Ino::PRIVATE_FIRST;
        self.ensure(records.last().is_none_or(in_range), || {
            "it has an inode with a number from the range of private ones".into()
        })?;
        let index = build_index(records);
        let same = index.iter().eq(self.tree.index_records());
        self.ensure(same, || "its index of inodes does not fit them".into())?;

        let (mut targets_bytes, mut links) = (0u64, 0u64);
        for (index, record) in (0u32..).zip(records) {
            let at = |what: &str| format!("its inode {} {what}", record.ino);
            let view = NodeView::new(self.tree, index);
            let Some(view) = view else {
                return self.ensure(false, || at("has an unknown type or refers to what is not there"));
            };
            if let Err(what) = inode_fields(&view, record, &mut targets_bytes) {
                return self.ensure(false, || at(what));
            }
            if is_linked(record) {
                self.ensure(u64::from(record.name.get()) == links, || at("has its hard links out of order"))?;
                links += u64::from(record.nlink.get());
            }
        }
        let total = u64::from(self.tree.header().targets_bytes.get());
        self.ensure(targets_bytes == total, || "it has unused bytes of symbolic links".into())?;
        let total = self.tree.link_records().len() as u64;
        self.ensure(links == total, || "its table of hard links does not fit its inodes".into())
    }

    /// Gives the position of the inode record that each entry leads to; [`NONE`] for a whiteout.
    fn entries(&self) -> Checked<Vec<u32>> {
        let mut names_bytes = 0;
        let mut targets = Vec::with_capacity(self.tree.entry_records().len());
        for (position, entry) in self.tree.entry_records().iter().enumerate() {
            let target = self.entry_fields(entry, &mut names_bytes);
            let what = |what| TreeError::damaged(self.tree.digest(), format!("its entry {position} {what}"));
            targets.push(target.map_err(what)?);
        }
        let total = u64::from(self.tree.header().names_bytes.get());
        self.ensure(names_bytes == total, || "it has unused bytes of names".into())?;
        Ok(targets)
    }

    fn entry_fields(&self, entry: &EntryRecord, names_bytes: &mut u64) -> Result<u32, &'static str> {
        let name = self.tree.name(entry).ok_or("has an illegal name")?;
        if u64::from(entry.name.get()) != *names_bytes {
            return Err("has a name that does not follow the one before");
        }
        *names_bytes += name.len() as u64;
        if entry.hash.get() != name.hash57() {
            return Err("has a wrong hash");
        }
        if entry.reserved != [0; 2] {
            return Err("has reserved bytes that are not zero");
        }
        if entry.kind == KIND_WHITEOUT {
            return if entry.ino.get() == 0 { Ok(NONE) } else { Err("is a whiteout with an inode") };
        }
        let target = Ino::new(entry.ino.get()).and_then(|ino| self.tree.inode_position(ino));
        let target = target.ok_or("leads to an inode that is not there")?;
        match self.tree.inode_records().get(target as usize) {
            Some(inode) if inode.kind == entry.kind => Ok(target),
            _ => Err("has another type than its inode"),
        }
    }

    /// What makes the directories a forest: each entry is in one directory, each directory but the root has
    /// one name.
    fn names(&self, targets: &[u32]) -> Checked {
        let (inodes, entries) = (self.tree.inode_records(), self.tree.entry_records());
        let mut found = vec![0u32; inodes.len()];
        for (position, target) in (0u32..).zip(targets).filter(|(_, target)| **target != NONE) {
            let (inode, found) = (&inodes[*target as usize], &mut found[*target as usize]);
            *found += 1;
            let named = is_linked(inode) || (*found == 1 && inode.name.get() == position);
            self.ensure(named, || format!("its inode {} has a name that it does not know", inode.ino))?;
        }
        for (index, inode) in inodes.iter().enumerate() {
            let at = |what: &str| format!("its inode {} {what}", inode.ino);
            let expected = match inode.kind {
                _ if index == 0 => 0,
                kind if kind == FileKind::Dir as u8 => 1,
                _ => inode.nlink.get(),
            };
            let names = found[index];
            self.ensure(names == expected, || at(&format!("has {names} names instead of {expected}")))?;
            if inode.kind != FileKind::Dir as u8 {
                continue;
            }
            let Some(range) = self.tree.record_range(inode) else {
                return self.ensure(false, || at("has entries past the end of their table"));
            };
            let (children, targets) = (&entries[range.clone()], &targets[range]);
            let own = children.iter().all(|entry| entry.parent.get() as usize == index);
            self.ensure(own, || at("has entries of another directory"))?;
            let key = |entry: &EntryRecord| (entry.hash.get(), self.tree.name(entry));
            let ordered = children.is_sorted_by(|a, b| key(a) < key(b));
            self.ensure(ordered, || at("has entries that are not in order"))?;
            let is_dir =
                |target: &u32| inodes.get(*target as usize).is_some_and(|i| i.kind == FileKind::Dir as u8);
            let nlink = 2 + targets.iter().filter(|target| is_dir(target)).count();
            self.ensure(inode.nlink.get() as usize == nlink, || at("has a wrong count of subdirectories"))?;
        }
        Ok(())
    }

    /// What depends on whole paths: that everything is reached, in the order that the tables have, under the
    /// right numbers.
    fn paths(&self, targets: &[u32]) -> Checked {
        let (inodes, entries, links) =
            (self.tree.inode_records(), self.tree.entry_records(), self.tree.link_records());
        let list = |dir: u32| {
            let mut steps = Vec::new();
            for position in self.tree.record_range(&inodes[dir as usize]).unwrap_or(0..0) {
                let (Some(name), target) = (self.tree.name(&entries[position]), targets[position]) else {
                    continue;
                };
                if target == NONE {
                    continue;
                }
                steps.push((name.as_bytes(), Step::Name(position)));
                if inodes[target as usize].kind == FileKind::Dir as u8 {
                    steps.push((name.as_bytes(), Step::Below(target)));
                }
            }
            steps
        };
        let mut numbering = Numbering::new();
        let mut seen = vec![0u32; inodes.len()];
        let mut next_entry = inodes[0].count.get();
        self.ensure(inodes[0].first.get() == 0, || "its root does not come first".into())?;
        in_path_order(0u32, list, |path, position| {
            let at = |what: &str| format!("its {:?} {what}", path.escape_ascii().to_string());
            self.ensure(path.len() <= MAX_PATH_BYTES, || at("has a path of more than 4095 bytes"))?;
            let index = targets[position];
            let (inode, seen) = (&inodes[index as usize], &mut seen[index as usize]);
            if *seen == 0 {
                let content = NodeView::new(self.tree, index).map_or(ContentRef::None, |view| view.content());
                let kind = FileKind::from_u8(inode.kind).unwrap_or(FileKind::File);
                let ino = numbering.assign(path, kind, inode.rdev.get(), content);
                self.ensure(ino.get() == inode.ino.get(), || at("has another inode number than it should"))?;
            }
            if is_linked(inode) {
                let link = links.get(inode.name.get() as usize + *seen as usize);
                let listed = link.is_some_and(|link| link.get() as usize == position);
                self.ensure(listed, || at("is not where it should be among its hard links"))?;
            }
            *seen += 1;
            if inode.kind == FileKind::Dir as u8 {
                self.ensure(inode.first.get() == next_entry, || at("has its entries out of place"))?;
                next_entry += inode.count.get();
            }
            Ok(())
        })?;
        let unreached = (1..inodes.len()).find(|index| seen[*index] == 0);
        if let Some(index) = unreached {
            return self
                .ensure(false, || format!("its inode {} is not reached from the root", inodes[index].ino));
        }
        self.ensure(next_entry as usize == entries.len(), || "it has entries in no directory".into())
    }
}

/// Whether the inode's names are in the table of hard links.
fn is_linked(inode: &InodeRecord) -> bool {
    inode.kind != FileKind::Dir as u8 && inode.nlink.get() > 1
}

/// The rules for an inode's own fields; moves the running total of symlink targets on.
fn inode_fields(
    view: &NodeView<'_>,
    record: &InodeRecord,
    targets_bytes: &mut u64,
) -> Result<(), &'static str> {
    let kind = view.kind();
    if (view.ino() == Ino::ROOT) != (record.name.get() == NONE) {
        return Err("has a name though it is the root, or none though it is not");
    }
    if record.perm.get() > 0o7777 {
        return Err("has permissions beyond 07777");
    }
    if record.mtime_nanos.get() > 999_999_999 {
        return Err("has a time with too many nanoseconds");
    }
    if record.rdev.get() != 0 && !kind.is_device() {
        return Err("has a device number but is no device");
    }
    if record.flags & !FLAG_OPAQUE != 0 || (record.flags != 0 && kind != FileKind::Dir) {
        return Err("has unknown flags");
    }
    if record.nlink.get() == 0 {
        return Err("has no links");
    }
    let (first, count) = (record.first.get(), record.count.get());
    match (kind, view.content()) {
        (FileKind::Dir, _) => {}
        (_, ContentRef::Blob { .. }) if count == 0 => {}
        (_, ContentRef::Symlink(target)) => {
            if u64::from(first) != *targets_bytes {
                return Err("has a target that does not follow the one before");
            }
            if !is_legal_target(target) {
                return Err("has an illegal target");
            }
            *targets_bytes += target.len() as u64;
        }
        (_, ContentRef::None) if first == 0 && count == 0 => {}
        _ => return Err("has a value in an unused field"),
    }
    Ok(())
}
