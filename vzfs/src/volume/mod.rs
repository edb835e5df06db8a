//! One POSIX tree made of an immutable base and a private layer. Every semantic rule of the filesystem is here; `fuse` only carries
//! requests to it, and tests, export and commit use it without a mount.
//!
//! # Concepts
//! A name is looked up in the private entries first, then in the base; an inode in the private records first, then in the base. Nothing
//! is ever copied up to make room for something else: changing one file writes one record, and the entries that name it.
//! - *Pin*: give a base inode a private record that says the same, with private entries for all its names.
//! - *Copy-up*: give a pinned file a data file of its own in place of the blob.
//! - *Relabel*: give all names of a file that is open on its blob to a new inode that has its own data file (see `content`).
//! - *Give up*: drop a data file whose content is a blob (see `dedup`): the inverse of copy-up.
//! - *Orphan*: an inode without names that the kernel still knows. It works until it is forgotten.
//!
//! # Invariants
//! M1 to M3 of `meta`, and:
//! - V1: a whiteout stands only where the base has the name, or one before it had: what a VE removed stays removed when a base brings it back.
//! - V2: an inode that is open in passthrough mode keeps its backing file: while a blob is open so, its inode is never copied up, but
//!   relabelled.
//! - V3: numbers from the counter are used once, for an inode or for a data file.
//! - V4: a directory's `nlink` is 2 + its subdirectories, and its record's `parent` is where it is.
//!
//! # Locking
//! `names` first, then `opens`, then `numbers`. `names` is held shared by what reads and exclusively by what changes the tables, never while
//! file content is copied; `copying` (a stripe by inode) is taken before `names` and keeps two copy-ups of one file apart.
//!
//! # Failure
//! Each operation is one atomic batch. A data file is made before the record that names it, and what a copy-up copied is durable before it: a crash in
//! between leaks a host file. A file is removed when the batch that took its record away is durable ([`PrivateData`]).
//!
//! What the base does not give, because its disk fails, is never taken for an answer: each operation looks into the base through
//! [`Volume::shared`] or [`Volume::exclusive`] and fails otherwise.
//!
//! # The host's filesystem
//! When the power fails, the database's log is found as it was at some moment not before the last sync. What was done to the host's filesystem before
//! a record was written must then be there too: its names and sizes must come back in the order in which they were changed. So it is on
//! XFS and on ext4, whose journals are one log each. Content is the program's to sync, as on those: what a file got since its last fsync may be
//! lost, and where it grew there may be zeros, never anything else.

mod attrs;
mod bases;
mod changes;
mod check;
mod clock;
mod content;
mod data;
mod dedup;
mod error;
mod forget;
mod joined;
mod names;
mod opens;
mod private_data;
mod readdir;
mod rebase;
#[cfg(test)]
mod tests;
mod usage;
mod walk;

use std::ops::Range;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

pub use attrs::{SetAttr, SetTime, XattrMode};
pub use changes::{ChangeKind, Visitor, VolumeChange, VolumeSource};
pub use check::Damage;
pub use content::{BegunSync, FallocateMode};
pub use dedup::{GivenUp, MIN_QUIET, Print, QuietFile, QuietPage, QuietRule, Unfit};
pub use error::VolumeError;
pub use names::{MAX_LINKS, NewNode, RenameMode};
pub use opens::{OpenFile, Sharing};
pub use private_data::{PrivateData, free_bytes};
pub use readdir::DirEntry;
pub use rebase::{Action, Edit, Hidden, Rebased};
pub use usage::{Holdings, Usage};

use self::bases::Bases;
use self::clock::Clock;
use self::data::{DataFolder, HostStat};
use self::joined::Joined;
use self::opens::Opens;
use self::rebase::Unsettled;
use self::usage::Account;
use crate::blobs::BlobStore;
use crate::meta::{EntryRecord, InodeRecord, Meta, Outcomes, PrivateContent};
use crate::tree::{ContentRef, NodeView, Target, Tree};
use crate::types::{Attr, FileKind, Ino, Name, NameRef, Timestamp, VeId};

/// Result of every operation of a volume.
pub type Result<T> = std::result::Result<T, VolumeError>;

/// Most bytes that the extended attributes of one inode may have together, names included. ext4 allows one block of 4 KiB, XFS 64 KiB a
/// value; this is room for one value of the largest size that Linux knows, and more.
pub const MAX_XATTRS_BYTES: usize = 128 << 10;
/// What ext4 shows for a directory of one block.
const DIR_SIZE_BYTES: u64 = 4096;
/// Numbers taken from the durable counter at a time. Each time costs a synced write; what is left over at a crash is lost, of 2^52.
const NUMBERS_AT_ONCE: u64 = 4096;
const COPY_STRIPES: usize = 16;

/// Who asks: the owner of what is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Filesystem user id.
    pub uid: u32,
    /// Filesystem group id.
    pub gid: u32,
}

impl Caller {
    /// The superuser.
    pub const ROOT: Caller = Caller { uid: 0, gid: 0 };
}

/// What who asks may keep on a file that it changes. Asked only when the file has such a thing, because the answer can be dear.
pub trait Rights {
    /// Whether a changed content keeps setuid and setgid bits: `CAP_FSETID`.
    fn keeps_privileges(&self) -> bool;

    /// Whether a new access ACL keeps the setgid bit of a file of this owner and group: the caller is in the group, or has
    /// `CAP_FSETID` over such files.
    fn keeps_setgid(&self, uid: u32, gid: u32) -> bool;

    /// Whether the mode of a file of this owner may be changed: the caller is the owner, or has `CAP_FOWNER` over such files.
    fn may_change_mode(&self, _uid: u32) -> bool {
        false
    }

    /// Whether a new owner leaves setuid, setgid and capabilities alone: not for chown(2), but for who copies a file with them.
    fn keeps_all_on_chown(&self) -> bool {
        false
    }
}

/// By the ids alone.
impl Rights for Caller {
    fn keeps_privileges(&self) -> bool {
        self.uid == 0
    }

    fn keeps_setgid(&self, _uid: u32, gid: u32) -> bool {
        self.uid == 0 || self.gid == gid
    }

    fn may_change_mode(&self, uid: u32) -> bool {
        self.uid == 0 || self.uid == uid
    }
}

/// Everything, or nothing.
impl Rights for bool {
    fn keeps_privileges(&self) -> bool {
        *self
    }

    fn keeps_setgid(&self, _uid: u32, _gid: u32) -> bool {
        *self
    }

    fn may_change_mode(&self, _uid: u32) -> bool {
        *self
    }
}

/// The filesystem of one VE. At most one exists for a VE at any time (`store` sees to it).
pub struct Volume {
    ve: VeId,
    bases: Bases,
    meta: Arc<Meta>,
    blobs: Arc<BlobStore>,
    data: DataFolder,
    all_data: Arc<PrivateData>,
    clock: Clock,
    /// Taken first. See the locking rules above.
    names: RwLock<()>,
    /// Taken after `names`.
    opens: Mutex<Opens>,
    /// Whether the kernel may not know yet of the last rebase.
    unsettled: Unsettled,
    /// Directories that rebases joined with others.
    joined: Joined,
    /// What the kernel believes otherwise, until it is told. Taken after `names`.
    relabelled: Mutex<Relabelled>,
    /// The counter when the volume was opened: smaller numbers are of earlier sessions.
    first_number: u64,
    /// What the private layer was last found to hold.
    account: Account,
    /// What the kernel has forgotten and is to be freed. A leaf.
    forgotten: Mutex<Vec<Ino>>,
    /// Taken last.
    numbers: Mutex<Range<u64>>,
    /// Taken before `names`.
    copying: [Mutex<()>; COPY_STRIPES],
}

/// What has changed without the kernel's knowledge: by relabels, by renames while it did not know yet of a rebase, and in joined directories.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Relabelled {
    /// The inodes that have lost their names.
    pub inodes: Vec<Ino>,
    /// The names that belong to others now.
    pub names: Vec<(Ino, Name)>,
    /// The directories whose listings have changed.
    pub dirs: Vec<Ino>,
}

/// An inode, from whichever side has it.
enum Node<'a> {
    Private(InodeRecord),
    Base(NodeView<'a>),
    /// It has no name any more: an earlier base had it.
    Retired(NodeView<'a>),
}

impl Volume {
    /// Opens a VE's filesystem. The VE's own folder of private data is made when needed.
    pub fn open(
        ve: VeId,
        base: Arc<Tree>,
        meta: Arc<Meta>,
        blobs: Arc<BlobStore>,
        data: Arc<PrivateData>,
    ) -> Result<Volume> {
        let first_number = meta.next_number(ve)?;
        let volume = Volume {
            ve,
            bases: Bases::new(base),
            meta,
            first_number,
            blobs,
            data: data.folder(ve),
            all_data: data,
            names: RwLock::new(()),
            opens: Mutex::default(),
            clock: Clock::new(),
            unsettled: Unsettled::default(),
            joined: Joined::default(),
            relabelled: Mutex::default(),
            account: Account::default(),
            forgotten: Mutex::default(),
            numbers: Mutex::new(0..0),
            copying: [const { Mutex::new(()) }; COPY_STRIPES],
        };
        volume.load_joined()?;
        Ok(volume)
    }

    /// With numbers that were reserved before it was opened, by [`Volume::reserve_numbers`].
    pub fn with_numbers(mut self, numbers: Range<u64>) -> Volume {
        if !numbers.is_empty() {
            self.first_number = numbers.start;
            self.numbers = Mutex::new(numbers);
        }
        self
    }

    /// Reserves numbers for VEs whose volumes are to be opened. Each would do so by itself, but wait for the disk one after the other.
    pub fn reserve_numbers(meta: &Meta, ves: &[VeId]) -> Result<Vec<Range<u64>>> {
        Ok(meta.reserve_numbers(ves, NUMBERS_AT_ONCE)?)
    }

    /// What became of the requests of a connection, under whichever process.
    pub fn outcomes(&self, connection: u64) -> Result<Outcomes> {
        Ok(self.meta.outcomes(self.ve, connection)?)
    }

    /// With the bases that it had since it was mounted, if it still is: the kernel may know files of theirs.
    pub fn with_retired(self, retired: Vec<Arc<Tree>>) -> Volume {
        self.bases.add_retired(retired);
        self
    }

    /// The VE.
    pub fn ve(&self) -> VeId {
        self.ve
    }

    /// The base.
    pub fn base(&self) -> &Arc<Tree> {
        self.bases.current()
    }

    /// What `stat` tells of an inode, also of one without names that was not forgotten yet.
    pub fn attr(&self, ino: Ino) -> Result<Attr> {
        self.shared(|| {
            let ino = self.joined(ino);
            self.attr_of(ino, &self.node(ino)?)
        })
    }

    /// The inode of a name, and its attributes.
    pub fn lookup(&self, dir: Ino, name: NameRef<'_>) -> Result<Attr> {
        self.shared(|| {
            let dir = self.joined(dir);
            // A removed directory shows nothing, whatever a later base has in it.
            if self.dir_node(dir)?.nlink() == 0 {
                return Err(VolumeError::NotFound);
            }
            let (ino, _) = self.find(dir, name)?.ok_or(VolumeError::NotFound)?;
            self.attr_of(ino, &self.node(ino)?)
        })
    }

    /// The inode of a name if it has other names too; `None` also for directories, an overlayfs's whiteouts (all of them are links of one device
    /// 0:0) and names that are not there. Asks the tables only, not the host's filesystem: it is called at each removal of a name.
    pub fn linked_file(&self, dir: Ino, name: NameRef<'_>) -> Result<Option<Ino>> {
        self.shared(|| {
            let Some((ino, kind)) = self.find(self.joined(dir), name)? else { return Ok(None) };
            if kind == FileKind::Dir {
                return Ok(None);
            }
            let node = self.node(ino)?;
            let is_whiteout = kind == FileKind::Char && node.rdev() == 0;
            Ok((node.nlink() > 1 && !is_whiteout).then_some(ino))
        })
    }

    /// The directory that a directory is in; the root's is itself.
    pub fn parent(&self, dir: Ino) -> Result<Ino> {
        self.shared(|| self.parent_of(self.joined(dir)))
    }

    /// As [`Volume::parent`]; the caller holds `names`.
    fn parent_of(&self, dir: Ino) -> Result<Ino> {
        match self.dir_node(dir)? {
            Node::Private(record) => {
                record.parent().ok_or(VolumeError::Damaged { ino: dir, why: "it has no parent" })
            }
            Node::Base(view) | Node::Retired(view) => Ok(view.parent()),
        }
    }

    /// The target of a symbolic link.
    pub fn read_link(&self, ino: Ino) -> Result<Vec<u8>> {
        self.shared(|| match self.node(ino)? {
            Node::Private(InodeRecord { content: PrivateContent::Symlink(target), .. }) => Ok(target),
            Node::Base(view) | Node::Retired(view) => match view.content() {
                ContentRef::Symlink(target) => Ok(target.to_vec()),
                _ => Err(VolumeError::Invalid("not a symbolic link")),
            },
            Node::Private(_) => Err(VolumeError::Invalid("not a symbolic link")),
        })
    }

    /// Makes every change so far durable, names and attributes included; content only of files that were synced themselves.
    pub fn sync(&self) -> Result<()> {
        Ok(self.meta.sync_of(self.ve)?)
    }

    /// What relabels, and renames while the kernel did not know yet of a rebase, have changed since the last call.
    pub fn take_relabelled(&self) -> Relabelled {
        std::mem::take(&mut *self.relabelled.lock())
    }

    /// Whether there are such names.
    pub fn has_relabelled(&self) -> bool {
        *self.relabelled.lock() != Relabelled::default()
    }

    /// Space and inodes of the host filesystem that holds the private data.
    pub fn space(&self) -> Result<rustix::fs::StatVfs> {
        self.data.space()
    }

    /// Begins to change the private tables. The caller holds `names` exclusively.
    fn batch(&self) -> crate::meta::Changes<'_> {
        self.account.changed();
        self.meta.changes(self.ve)
    }

    fn node(&self, ino: Ino) -> Result<Node<'_>> {
        match self.meta.inode(self.ve, ino)? {
            Some(record) => Ok(Node::Private(record)),
            None => match self.base().node(ino) {
                Some(view) => Ok(Node::Base(view)),
                None => self.bases.retired(ino).map(Node::Retired).ok_or(VolumeError::NotFound),
            },
        }
    }

    /// Refuses to change, for a program that goes by a name, what has just lost its names to a rebase that the kernel may not know of yet: the name
    /// leads to something else. The caller holds `names`.
    fn check_named(&self, node: &Node<'_>) -> Result<()> {
        if node.nlink() == 0 && self.unsettled.is_now() { Err(VolumeError::Stale) } else { Ok(()) }
    }

    /// The same for who may also have the file open, and then means just this one.
    fn check_named_or_open(&self, ino: Ino, node: &Node<'_>) -> Result<()> {
        if self.is_open(ino) { Ok(()) } else { self.check_named(node) }
    }

    fn dir_node(&self, ino: Ino) -> Result<Node<'_>> {
        let node = self.node(ino)?;
        if node.kind() == FileKind::Dir { Ok(node) } else { Err(VolumeError::NotDir) }
    }

    /// The inode of a name, or `None`.
    fn find(&self, dir: Ino, name: NameRef<'_>) -> Result<Option<(Ino, FileKind)>> {
        match self.meta.entry(self.ve, dir, name)? {
            Some(EntryRecord::Node(ino, kind)) => Ok(Some((ino, kind))),
            Some(EntryRecord::Whiteout) => Ok(None),
            None => Ok(self.base_entry(dir, name)),
        }
    }

    fn base_entry(&self, dir: Ino, name: NameRef<'_>) -> Option<(Ino, FileKind)> {
        match self.base().lookup(dir, name)?.target {
            Target::Node(ino, kind) => Some((ino, kind)),
            Target::Whiteout => None,
        }
    }

    fn attr_of(&self, ino: Ino, node: &Node<'_>) -> Result<Attr> {
        match node {
            Node::Base(view) => Ok(view.attr()),
            Node::Retired(view) => Ok(Attr { nlink: 0, ..view.attr() }),
            Node::Private(record) => self.record_attr(ino, record, None),
        }
    }

    /// The attributes that a record gives, with what the host says of its data file, if that was just asked.
    fn record_attr(&self, ino: Ino, record: &InodeRecord, host: Option<HostStat>) -> Result<Attr> {
        let mut attr = Attr {
            ino,
            kind: record.kind,
            perm: record.perm,
            nlink: record.nlink,
            uid: record.uid,
            gid: record.gid,
            rdev: record.rdev,
            size: 0,
            blocks: 0,
            atime: record.atime,
            mtime: record.mtime,
            ctime: record.ctime,
        };
        match &record.content {
            PrivateContent::None if record.kind == FileKind::Dir => {
                (attr.size, attr.blocks) = (DIR_SIZE_BYTES, DIR_SIZE_BYTES / 512);
            }
            PrivateContent::None | PrivateContent::Joined { .. } => {}
            PrivateContent::Symlink(target) => attr.size = target.len() as u64,
            PrivateContent::Blob { size, allocated_bytes, .. } => {
                (attr.size, attr.blocks) = (*size, allocated_bytes / 512);
            }
            PrivateContent::Data { id, stamp } => {
                let host = match host {
                    Some(host) => Some(host),
                    None => self.data.stat_if_there(*id)?,
                };
                // Who opens it is told that its content is lost. Without attributes nobody could even remove it.
                let Some(host) = host else { return Ok(attr) };
                (attr.size, attr.blocks) = (host.size, host.blocks);
                (attr.atime, attr.mtime) = (host.atime, host.mtime);
                if host.ctime > *stamp {
                    // The kernel may have stamped what the clock said last.
                    attr.ctime = host.ctime.max(record.ctime.next());
                }
            }
        }
        Ok(attr)
    }

    /// Moves the ctime of a record that is about to be written. Returns what the host says of its data file.
    fn stamp(&self, record: &mut InodeRecord, now: Timestamp) -> Result<Option<HostStat>> {
        record.ctime = now;
        let PrivateContent::Data { id, stamp } = &mut record.content else { return Ok(None) };
        let Some(host) = self.data.stat_if_there(*id)? else { return Ok(None) };
        *stamp = host.ctime;
        Ok(Some(host))
    }

    /// The next number of the counter (V3).
    fn new_number(&self) -> Result<u64> {
        let mut numbers = self.numbers.lock();
        if numbers.is_empty() {
            let reserved = self.meta.reserve_numbers(&[self.ve], NUMBERS_AT_ONCE)?;
            *numbers = reserved.into_iter().next().unwrap_or_default();
        }
        numbers.next().ok_or(VolumeError::Invalid("no inode number is left"))
    }

    fn new_ino(&self) -> Result<Ino> {
        Ino::private(self.new_number()?).ok_or(VolumeError::Invalid("no inode number is left"))
    }

    /// The record that pinning an inode gives it; nothing is written yet.
    fn record_of(&self, node: Node<'_>) -> InodeRecord {
        let (view, attr) = match node {
            Node::Private(record) => return record,
            Node::Base(view) => (view, view.attr()),
            Node::Retired(view) => (view, Attr { nlink: 0, ..view.attr() }),
        };
        InodeRecord {
            kind: attr.kind,
            perm: attr.perm,
            uid: attr.uid,
            gid: attr.gid,
            rdev: attr.rdev,
            nlink: attr.nlink,
            atime: attr.atime,
            mtime: attr.mtime,
            ctime: attr.ctime,
            parent: if attr.kind == FileKind::Dir { view.parent().get() } else { 0 },
            content: match view.content() {
                ContentRef::None => PrivateContent::None,
                ContentRef::Symlink(target) => PrivateContent::Symlink(target.to_vec()),
                ContentRef::Blob { digest, size, allocated_bytes } => {
                    PrivateContent::Blob { digest: *digest.as_bytes(), size, allocated_bytes }
                }
            },
            xattrs: view.xattrs().map(|(name, value)| (name.to_vec(), value.to_vec())).collect(),
        }
    }

    /// Pins an inode: its record to be changed and written by the caller, its names written here (M2).
    ///
    /// # Errors
    /// [`VolumeError::Stale`] for an inode of the base that was removed and forgotten: its names would come back, or be taken from what has them now.
    fn pin(&self, ino: Ino, node: Node<'_>, batch: &mut crate::meta::Changes<'_>) -> Result<InodeRecord> {
        if let Node::Base(view) = &node {
            let kind = view.attr().kind;
            for (dir, name) in view.names() {
                if self.meta.entry(self.ve, dir, name)?.is_some() || self.is_hidden(dir)? {
                    return Err(VolumeError::Stale);
                }
                batch.put_entry(dir, name, EntryRecord::Node(ino, kind));
            }
        }
        Ok(self.record_of(node))
    }

    /// Whether a directory of the base was removed, itself or with one above it. What it held is hidden with it; entries that hid the names in it one
    /// by one go when it is forgotten, and a later base may have brought others.
    fn is_hidden(&self, mut dir: Ino) -> Result<bool> {
        while dir != Ino::ROOT {
            if let Some(record) = self.meta.inode(self.ve, dir)? {
                return Ok(record.nlink == 0);
            }
            let Some((parent, name)) = self.base().node(dir).and_then(|view| view.names().next()) else {
                return Ok(true);
            };
            if self.meta.entry(self.ve, parent, name)?.is_some() {
                return Ok(true);
            }
            dir = parent;
        }
        Ok(false)
    }
}

impl Node<'_> {
    fn kind(&self) -> FileKind {
        match self {
            Node::Private(record) => record.kind,
            Node::Base(view) | Node::Retired(view) => view.kind(),
        }
    }

    fn rdev(&self) -> u32 {
        match self {
            Node::Private(record) => record.rdev,
            Node::Base(view) | Node::Retired(view) => view.attr().rdev,
        }
    }

    fn nlink(&self) -> u32 {
        match self {
            Node::Private(record) => record.nlink,
            Node::Base(view) => view.attr().nlink,
            Node::Retired(_) => 0,
        }
    }
}

/// Content or names of a directory or file changed.
fn touch(record: &mut InodeRecord, now: Timestamp) {
    (record.mtime, record.ctime) = (now, now);
}
