//! Operations on names: create, link, unlink, rmdir, rename.

use std::fs::File;
use std::sync::Arc;

use super::data::HostStat;
use super::opens::{OpenFile, Sharing};
use super::{Caller, Result, Volume, VolumeError, touch};
use crate::acl;
use crate::meta::{Changes, EntryRecord, InodeRecord, PrivateContent};
use crate::types::{Attr, FileKind, Ino, MAX_SYMLINK_BYTES, NameRef, Timestamp};

/// Names a file may have. The tables would take any number; this is ext4's limit, so that programs which link until `EMLINK` (backups, package
/// and object stores) meet the number that they were tested with, on every host filesystem. Directories are not limited, as on ext4.
pub const MAX_LINKS: u32 = 65_000;
const S_ISGID: u16 = 0o2000;
/// What [`RenameMode::Whiteout`] leaves.
const DEVICE: NewNode<'static> = NewNode::new(FileKind::Char, 0);

/// What to create.
#[derive(Clone, Copy, Debug)]
pub struct NewNode<'a> {
    /// Type of file.
    pub kind: FileKind,
    /// Permission bits that the program asked for.
    pub perm: u16,
    /// The program's umask; a default ACL replaces it.
    pub umask: u16,
    /// Device number, for devices.
    pub rdev: u32,
    /// Target, for symbolic links.
    pub target: &'a [u8],
}

impl NewNode<'_> {
    /// A node of a kind with permissions, for what needs no more.
    pub const fn new(kind: FileKind, perm: u16) -> Self {
        NewNode { kind, perm, umask: 0, rdev: 0, target: b"" }
    }
}

/// The forms of rename(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// Replaces what has the new name.
    Replace,
    /// `RENAME_NOREPLACE`.
    NoReplace,
    /// `RENAME_EXCHANGE`.
    Exchange,
    /// `RENAME_WHITEOUT`: leaves a character device 0:0 of this caller's at the old name, as an overlayfs on top of the VE asks for.
    Whiteout(Caller),
}

/// The content of what is created.
struct Content {
    content: PrivateContent,
    /// What the host says of a new data file.
    host: Option<HostStat>,
    /// That file, if it is to be open from the beginning, and for whom.
    open: Option<(Arc<File>, Sharing)>,
}

impl Volume {
    /// Creates an inode and its name. A regular file starts empty.
    pub fn create(&self, dir: Ino, name: NameRef<'_>, new: NewNode<'_>, caller: Caller) -> Result<Attr> {
        Ok(self.make(dir, name, new, caller, None)?.0)
    }

    /// The same; a regular file is opened for writing too, if it is said for whom. Nobody can remove it before it is open.
    pub(super) fn make(
        &self,
        dir: Ino,
        name: NameRef<'_>,
        new: NewNode<'_>,
        caller: Caller,
        open: Option<Sharing>,
    ) -> Result<(Attr, Option<OpenFile>)> {
        if new.kind == FileKind::Symlink && new.target.len() > MAX_SYMLINK_BYTES {
            return Err(VolumeError::NameTooLong);
        }
        if new.kind == FileKind::Symlink && new.target.is_empty() {
            return Err(VolumeError::NotFound);
        }
        let ino = self.new_ino()?;
        let content = match new.kind {
            FileKind::File => {
                // The host file first: see "Failure" in the module's head.
                let id = self.new_number()?;
                let file = self.all_data.make_room(|| self.data.create(id))?;
                let created = HostStat::of_file(&file).and_then(|host| {
                    let content = PrivateContent::Data { id, stamp: host.ctime };
                    let open = open.map(|sharing| (Arc::new(file), sharing));
                    self.create_with(ino, dir, name, new, caller, Content { content, host: Some(host), open })
                });
                if created.is_err() {
                    self.data.remove(id)?;
                }
                return created;
            }
            FileKind::Symlink => PrivateContent::Symlink(new.target.to_vec()),
            _ => PrivateContent::None,
        };
        self.create_with(ino, dir, name, new, caller, Content { content, host: None, open: None })
    }

    fn create_with(
        &self,
        ino: Ino,
        dir: Ino,
        name: NameRef<'_>,
        new: NewNode<'_>,
        caller: Caller,
        Content { content, host, open }: Content,
    ) -> Result<(Attr, Option<OpenFile>)> {
        self.exclusive(|| {
            let dir = self.joined(dir);
            let mut batch = self.batch();
            let mut parent = self.live_dir(dir, &mut batch)?;
            if self.find(dir, name)?.is_some() {
                // A program that has not asked for a new file opens this one when the kernel has looked again.
                return Err(if self.unsettled.is_now() { VolumeError::Stale } else { VolumeError::Exists });
            }
            let now = self.clock.now();
            // A data file has its times from the host.
            let born = if let PrivateContent::Data { stamp, .. } = &content { *stamp } else { now };
            let record = new_record(&parent, dir, new, caller, content, born);
            if new.kind == FileKind::Dir {
                parent.nlink = parent.nlink.checked_add(1).ok_or(VolumeError::TooManyLinks)?;
            }
            touch(&mut parent, now);
            batch.put_inode(dir, &parent);
            batch.put_inode(ino, &record);
            batch.put_entry(dir, name, EntryRecord::Node(ino, new.kind));
            batch.commit_once(Some(ino))?;
            let open = open.map(|(file, sharing)| self.opens.lock().open_new(ino, file, sharing));
            Ok((self.record_attr(ino, &record, host)?, open))
        })
    }

    /// Gives an inode another name. Not for directories.
    pub fn link(&self, ino: Ino, dir: Ino, name: NameRef<'_>) -> Result<Attr> {
        self.exclusive(|| {
            let dir = self.joined(dir);
            let mut batch = self.batch();
            let node = self.node(ino)?;
            if node.kind() == FileKind::Dir {
                return Err(VolumeError::NotPermitted("a directory has one name"));
            }
            self.check_named(&node)?;
            if node.nlink() == 0 {
                return Err(VolumeError::NotFound);
            }
            let mut parent = self.live_dir(dir, &mut batch)?;
            if self.find(dir, name)?.is_some() {
                return Err(VolumeError::Exists);
            }
            if node.nlink() >= MAX_LINKS {
                return Err(VolumeError::TooManyLinks);
            }
            let mut record = self.pin(ino, node, &mut batch)?;
            let now = self.clock.now();
            record.nlink += 1;
            let host = self.stamp(&mut record, now)?;
            touch(&mut parent, now);
            batch.put_inode(dir, &parent);
            batch.put_inode(ino, &record);
            batch.put_entry(dir, name, EntryRecord::Node(ino, record.kind));
            batch.commit_once(Some(ino))?;
            self.record_attr(ino, &record, host)
        })
    }

    /// Removes a name that is no directory. The inode lives on while it has other names or is open.
    pub fn unlink(&self, dir: Ino, name: NameRef<'_>) -> Result<()> {
        self.exclusive(|| {
            let dir = self.joined(dir);
            let mut batch = self.batch();
            let mut parent = self.live_dir(dir, &mut batch)?;
            let (ino, kind) = self.find(dir, name)?.ok_or(VolumeError::NotFound)?;
            if kind == FileKind::Dir {
                return Err(VolumeError::IsDir);
            }
            let now = self.clock.now();
            self.drop_name(ino, now, &mut batch)?;
            self.hide(dir, name, &mut batch);
            touch(&mut parent, now);
            batch.put_inode(dir, &parent);
            Ok(batch.commit_once(None)?)
        })
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, dir: Ino, name: NameRef<'_>) -> Result<()> {
        self.exclusive(|| {
            let dir = self.joined(dir);
            let mut batch = self.batch();
            let mut parent = self.live_dir(dir, &mut batch)?;
            let (ino, kind) = self.find(dir, name)?.ok_or(VolumeError::NotFound)?;
            if kind != FileKind::Dir {
                return Err(VolumeError::NotDir);
            }
            if !self.is_empty(ino)? {
                return Err(VolumeError::NotEmpty);
            }
            let now = self.clock.now();
            self.drop_name(ino, now, &mut batch)?;
            self.hide(dir, name, &mut batch);
            parent.nlink = parent.nlink.saturating_sub(1);
            touch(&mut parent, now);
            batch.put_inode(dir, &parent);
            Ok(batch.commit_once(None)?)
        })
    }

    /// Moves a name, in one of the forms of rename(2).
    pub fn rename(
        &self,
        dir: Ino,
        name: NameRef<'_>,
        new_dir: Ino,
        new_name: NameRef<'_>,
        mode: RenameMode,
    ) -> Result<()> {
        self.exclusive(|| {
            let (dir, new_dir) = (self.joined(dir), self.joined(new_dir));
            let mut batch = self.batch();
            let mut parents = Parents::load(self, dir, new_dir, &mut batch)?;
            let (ino, kind) = self.find(dir, name)?.ok_or(VolumeError::NotFound)?;
            let target = self.find(new_dir, new_name)?;
            match (mode, target) {
                (RenameMode::NoReplace, Some(_)) => return Err(VolumeError::Exists),
                (RenameMode::Exchange, None) => return Err(VolumeError::NotFound),
                // Two names of one inode: nothing happens, says POSIX.
                (_, Some((other, _))) if other == ino => return Ok(()),
                _ => {}
            }
            if kind == FileKind::Dir && self.is_within(new_dir, ino)? {
                return Err(VolumeError::Invalid("a directory cannot move into itself"));
            }
            let now = self.clock.now();
            if mode == RenameMode::Exchange {
                let (other, other_kind) = target.ok_or(VolumeError::NotFound)?;
                if other_kind == FileKind::Dir && self.is_within(dir, other)? {
                    return Err(VolumeError::Invalid("a directory cannot move into itself"));
                }
                self.put_moved(ino, new_dir, new_name, now, &mut batch)?;
                self.put_moved(other, dir, name, now, &mut batch)?;
                // Pinning the second wrote all its old names, the one that the first now has too.
                batch.put_entry(new_dir, new_name, EntryRecord::Node(ino, kind));
                parents.moved_dir(kind, other_kind);
            } else {
                if let Some((other, other_kind)) = target {
                    match (kind, other_kind) {
                        (FileKind::Dir, FileKind::Dir) if !self.is_empty(other)? => {
                            return Err(VolumeError::NotEmpty);
                        }
                        (FileKind::Dir, FileKind::Dir) => parents.lose_dir(),
                        (FileKind::Dir, _) => return Err(VolumeError::NotDir),
                        (_, FileKind::Dir) => return Err(VolumeError::IsDir),
                        _ => {}
                    }
                    self.drop_name(other, now, &mut batch)?;
                }
                // Pinning writes all names of the moved inode, the old one too: it must be hidden after that.
                self.put_moved(ino, new_dir, new_name, now, &mut batch)?;
                if let RenameMode::Whiteout(caller) = mode {
                    let device = new_record(&parents.from.1, dir, DEVICE, caller, PrivateContent::None, now);
                    self.leave_device(dir, name, &device, &mut batch)?;
                } else {
                    self.hide(dir, name, &mut batch);
                }
                parents.moved_dir(kind, FileKind::File);
            }
            parents.store(now, &mut batch);
            batch.commit_once(None)?;
            if self.unsettled.is_now() {
                // The kernel goes on with the inodes that it believes to have had these names.
                let moved = [(dir, name.to_name()), (new_dir, new_name.to_name())];
                self.relabelled.lock().names.extend(moved);
            }
            Ok(())
        })
    }

    /// Gives a moved inode its new name, and a moved directory its new parent.
    fn put_moved(
        &self,
        ino: Ino,
        dir: Ino,
        name: NameRef<'_>,
        now: Timestamp,
        batch: &mut Changes<'_>,
    ) -> Result<()> {
        let mut record = self.pin(ino, self.node(ino)?, batch)?;
        self.stamp(&mut record, now)?;
        if record.kind == FileKind::Dir {
            record.parent = dir.get();
        }
        batch.put_inode(ino, &record);
        batch.put_entry(dir, name, EntryRecord::Node(ino, record.kind));
        Ok(())
    }

    /// Puts the device of [`RenameMode::Whiteout`] at a name.
    fn leave_device(
        &self,
        dir: Ino,
        name: NameRef<'_>,
        device: &InodeRecord,
        batch: &mut Changes<'_>,
    ) -> Result<()> {
        let ino = self.new_ino()?;
        batch.put_inode(ino, device);
        batch.put_entry(dir, name, EntryRecord::Node(ino, FileKind::Char));
        Ok(())
    }

    /// A directory that may get or lose a name: pinned, and not itself removed.
    fn live_dir(&self, dir: Ino, batch: &mut Changes<'_>) -> Result<InodeRecord> {
        let node = self.dir_node(dir)?;
        if node.nlink() == 0 {
            return Err(VolumeError::NotFound);
        }
        self.pin(dir, node, batch)
    }

    /// Takes a name off an inode's count; a directory's only one. What is left without a name becomes an orphan.
    fn drop_name(&self, ino: Ino, now: Timestamp, batch: &mut Changes<'_>) -> Result<()> {
        let mut record = self.pin(ino, self.node(ino)?, batch)?;
        record.nlink = if record.kind == FileKind::Dir { 0 } else { record.nlink.saturating_sub(1) };
        self.stamp(&mut record, now)?;
        batch.put_inode(ino, &record);
        Ok(())
    }

    /// Makes a name not exist (V1).
    fn hide(&self, dir: Ino, name: NameRef<'_>, batch: &mut Changes<'_>) {
        if self.base_entry(dir, name).is_some() {
            batch.put_entry(dir, name, EntryRecord::Whiteout);
        } else {
            batch.delete_entry(dir, name);
        }
    }

    /// Whether `dir` is `ancestor` or below it.
    fn is_within(&self, mut dir: Ino, ancestor: Ino) -> Result<bool> {
        // One directory on the way is remembered, the next after twice as many steps: in damaged tables, it is met again.
        let (mut remembered, mut until) = (dir, 64u64);
        for step in 0.. {
            if dir == ancestor {
                return Ok(true);
            }
            let parent = self.parent_of(dir)?;
            if parent == dir {
                return Ok(false);
            }
            dir = parent;
            if dir == remembered {
                break;
            }
            if step == until {
                (remembered, until) = (dir, until * 2);
            }
        }
        Err(VolumeError::Damaged { ino: dir, why: "a directory is below itself" })
    }
}

/// The one or two directories of a rename.
struct Parents {
    from: (Ino, InodeRecord),
    to: Option<(Ino, InodeRecord)>,
}

impl Parents {
    fn load(volume: &Volume, dir: Ino, new_dir: Ino, batch: &mut Changes<'_>) -> Result<Self> {
        let from = (dir, volume.live_dir(dir, batch)?);
        let to = if dir == new_dir { None } else { Some((new_dir, volume.live_dir(new_dir, batch)?)) };
        Ok(Parents { from, to })
    }

    /// Counts a subdirectory that is replaced in the second directory.
    fn lose_dir(&mut self) {
        let record = self.to.as_mut().map_or(&mut self.from.1, |(_, record)| record);
        record.nlink = record.nlink.saturating_sub(1);
    }

    /// Counts a directory that leaves the first for the second, and one that goes the other way.
    fn moved_dir(&mut self, there: FileKind, back: FileKind) {
        if let Some((_, to)) = &mut self.to {
            if there == FileKind::Dir {
                self.from.1.nlink = self.from.1.nlink.saturating_sub(1);
                to.nlink += 1;
            }
            if back == FileKind::Dir {
                self.from.1.nlink += 1;
                to.nlink = to.nlink.saturating_sub(1);
            }
        }
    }

    /// Writes the directories. A directory that was itself moved (an exchange with a parent of the other) cannot be here: `is_within`
    /// refused it.
    fn store(mut self, now: Timestamp, batch: &mut Changes<'_>) {
        touch(&mut self.from.1, now);
        batch.put_inode(self.from.0, &self.from.1);
        if let Some((ino, mut record)) = self.to {
            touch(&mut record, now);
            batch.put_inode(ino, &record);
        }
    }
}

fn new_record(
    parent: &InodeRecord,
    dir: Ino,
    new: NewNode<'_>,
    caller: Caller,
    content: PrivateContent,
    now: Timestamp,
) -> InodeRecord {
    let default = parent.xattrs.get(acl::DEFAULT).map(Vec::as_slice);
    let inherited = acl::inherit(default, new.kind, new.perm, new.umask);
    let mut perm = inherited.perm;
    let mut gid = caller.gid;
    if parent.perm & S_ISGID != 0 {
        gid = parent.gid;
        if new.kind == FileKind::Dir {
            perm |= S_ISGID;
        }
    }
    let access = inherited.access.map(|value| (acl::ACCESS.to_vec(), value));
    let default = inherited.default.map(|value| (acl::DEFAULT.to_vec(), value));
    InodeRecord {
        kind: new.kind,
        perm,
        uid: caller.uid,
        gid,
        rdev: if new.kind.is_device() { new.rdev } else { 0 },
        nlink: if new.kind == FileKind::Dir { 2 } else { 1 },
        atime: now,
        mtime: now,
        ctime: now,
        parent: if new.kind == FileKind::Dir { dir.get() } else { 0 },
        content,
        xattrs: access.into_iter().chain(default).collect(),
    }
}
