//! Attributes and extended attributes.

use super::{MAX_XATTRS_BYTES, Node, Result, Rights, Volume, VolumeError};
use crate::acl::{self, Acl};
use crate::meta::{Changes, InodeRecord, PrivateContent};
use crate::types::{Attr, FileKind, Ino, MAX_XATTR_NAME_BYTES, MAX_XATTR_VALUE_BYTES, Timestamp};

/// `security.capability`: any change of content or owner takes it away (capabilities(7)).
const CAPABILITY: &[u8] = b"security.capability";
const TRUSTED: &[u8] = b"trusted.";
const S_ISUID: u16 = 0o4000;
const S_ISGID: u16 = 0o2000;
const S_IXGRP: u16 = 0o0010;

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// `UTIME_NOW`.
    Now,
    /// This one.
    At(Timestamp),
}

impl SetTime {
    fn resolve(self, now: Timestamp) -> Timestamp {
        match self {
            SetTime::Now => now,
            SetTime::At(time) => time,
        }
    }
}

/// The attributes to change; `None` leaves one alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits.
    pub perm: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Truncate or extend to this size. mtime and ctime move also when the file has it already, as on ext4.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
}

/// The modes of setxattr(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrMode {
    /// Creates or replaces.
    Any,
    /// `XATTR_CREATE`.
    Create,
    /// `XATTR_REPLACE`.
    Replace,
    /// Both flags: an attribute that is there is refused by the one, one that is not by the other.
    Neither,
}

impl Volume {
    /// Changes attributes.
    ///
    /// A change of nothing is what the kernel sends before the caller writes, by itself, to a file that has privileges to lose: they go, as with
    /// any write. [`Volume::chown_nothing`] is another thing.
    ///
    /// # Errors
    /// [`VolumeError::Stale`] when a change of size must relabel the file (see `content`).
    pub fn set_attr(&self, ino: Ino, set: SetAttr, rights: impl Rights) -> Result<Attr> {
        let others = SetAttr { size: None, ..set };
        if let Some(size) = set.size {
            self.truncate(ino, size, &rights)?;
            if others == SetAttr::default() {
                return self.attr(ino);
            }
        }
        let nothing = others == SetAttr::default();
        self.update(ino, |volume, record, now| {
            if let Some(perm) = set.perm {
                record.perm = perm & 0o7777;
                if let Some(acl) = record.xattrs.get(acl::ACCESS).and_then(|value| Acl::decode(value)) {
                    record.xattrs.insert(acl::ACCESS.to_vec(), acl.after_chmod(perm).encode());
                }
            }
            if nothing {
                drop_privileges(record, rights.keeps_privileges(), &rights);
            }
            if set.uid.is_some() || set.gid.is_some() {
                // While the record has its old group, which is the one that counts.
                if set.perm.is_none() && !rights.keeps_all_on_chown() {
                    drop_privileges(record, false, &rights);
                }
                record.uid = set.uid.unwrap_or(record.uid);
                record.gid = set.gid.unwrap_or(record.gid);
            }
            let resolve = |time: SetTime| time.resolve(now);
            volume.set_times(record, set.atime.map(resolve), set.mtime.map(resolve))
        })
    }

    /// chown(2) that leaves both ids alone: it takes away what any chown takes away, and may be done by whoever may take that away. ctime moves.
    ///
    /// # Errors
    /// [`VolumeError::NotPermitted`] when somebody else than the owner would take setuid or setgid away.
    pub fn chown_nothing(&self, ino: Ino, rights: impl Rights) -> Result<Attr> {
        self.update(ino, |_, record, _| {
            let perm = record.perm;
            drop_privileges(record, false, &rights);
            if record.perm != perm && !rights.may_change_mode(record.uid) {
                return Err(VolumeError::NotPermitted("only the owner may take setuid and setgid away"));
            }
            Ok(())
        })
    }

    /// Sets times in a record. That moves the host file's ctime, which must not be taken for a write later: the caller stamps the record.
    pub(super) fn set_times(
        &self,
        record: &mut InodeRecord,
        atime: Option<Timestamp>,
        mtime: Option<Timestamp>,
    ) -> Result<()> {
        record.atime = atime.unwrap_or(record.atime);
        record.mtime = mtime.unwrap_or(record.mtime);
        if let (true, PrivateContent::Data { id, .. }) = (atime.is_some() || mtime.is_some(), &record.content)
        {
            // The host file's times are the file's (see `meta::PrivateContent`).
            self.data.set_times(*id, atime, mtime)?;
        }
        Ok(())
    }

    /// Reads-changes-writes an inode's record; ctime moves.
    pub(super) fn update(
        &self,
        ino: Ino,
        change: impl FnOnce(&Volume, &mut InodeRecord, Timestamp) -> Result<()>,
    ) -> Result<Attr> {
        self.exclusive(|| {
            let ino = self.joined(ino);
            let mut batch = self.batch();
            let mut record = self.pin_to_change(ino, &mut batch)?;
            let now = self.clock.now();
            change(self, &mut record, now)?;
            let host = self.stamp(&mut record, now)?;
            batch.put_inode(ino, &record);
            batch.commit_once(None)?;
            self.record_attr(ino, &record, host)
        })
    }

    /// Pins an inode of which attributes are to be changed. The caller holds `names` exclusively.
    fn pin_to_change(&self, ino: Ino, batch: &mut Changes<'_>) -> Result<InodeRecord> {
        let node = self.node(ino)?;
        self.check_named_or_open(ino, &node)?;
        self.pin(ino, node, batch)
    }

    /// Changes extended attributes and what follows from them. What changes nothing moves no ctime, as on ext4.
    fn update_if_changed(&self, ino: Ino, change: impl FnOnce(&mut InodeRecord) -> Result<()>) -> Result<()> {
        self.exclusive(|| {
            let ino = self.joined(ino);
            let mut batch = self.batch();
            let before = self.pin_to_change(ino, &mut batch)?;
            let mut record = before.clone();
            change(&mut record)?;
            if record == before {
                return Ok(());
            }
            self.stamp(&mut record, self.clock.now())?;
            batch.put_inode(ino, &record);
            Ok(batch.commit_once(None)?)
        })
    }

    /// Takes away what a change of content must take away: file capabilities, and setuid and setgid unless who changed it keeps them.
    /// Writes nothing if there is nothing.
    pub(super) fn kill_privileges(&self, ino: Ino, rights: &impl Rights) -> Result<()> {
        let mut record = self.shared(|| Ok(self.record_of(self.node(ino)?)))?;
        if !has_privileges(&record) {
            return Ok(());
        }
        let keep_mode = rights.keeps_privileges();
        if drop_privileges(&mut record, keep_mode, rights) {
            self.update(ino, |_, record, _| {
                drop_privileges(record, keep_mode, rights);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The value of an extended attribute.
    pub fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        check_xattr_name(name)?;
        self.shared(|| {
            match self.node(self.joined(ino))? {
                Node::Base(view) | Node::Retired(view) => view.xattr(name).map(<[u8]>::to_vec),
                Node::Private(mut record) => record.xattrs.remove(name),
            }
            .ok_or(VolumeError::NoData)
        })
    }

    /// The names of all extended attributes. Who may not read `trusted` ones must not see them either (xattr(7)).
    pub fn xattr_names(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        self.shared(|| {
            Ok(match self.node(self.joined(ino))? {
                Node::Base(view) | Node::Retired(view) => {
                    view.xattrs().map(|(name, _)| name.to_vec()).collect()
                }
                Node::Private(record) => record.xattrs.into_keys().collect(),
            })
        })
    }

    /// Sets an extended attribute; an access ACL sets the permission bits too.
    pub fn set_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
        rights: impl Rights,
    ) -> Result<()> {
        if name.len() > MAX_XATTR_NAME_BYTES || value.len() > MAX_XATTR_VALUE_BYTES {
            return Err(VolumeError::NameTooLong);
        }
        check_xattr_name(name)?;
        self.update_if_changed(ino, |record| {
            match (mode, record.xattrs.contains_key(name)) {
                (XattrMode::Create | XattrMode::Neither, true) => return Err(VolumeError::Exists),
                (XattrMode::Replace | XattrMode::Neither, false) => return Err(VolumeError::NoData),
                _ => {}
            }
            if name == acl::ACCESS {
                return set_access_acl(record, value, rights);
            }
            if name == acl::DEFAULT {
                if record.kind != FileKind::Dir {
                    return Err(VolumeError::NotPermitted("only directories have default ACLs"));
                }
                Acl::decode(value).ok_or(VolumeError::Invalid("malformed ACL"))?;
            }
            record.xattrs.insert(name.to_vec(), value.to_vec());
            let bytes: usize = record.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
            if bytes > MAX_XATTRS_BYTES { Err(VolumeError::XattrSpace) } else { Ok(()) }
        })
    }

    /// Removes an extended attribute.
    pub fn remove_xattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        let removed = check_xattr_name(name).and_then(|()| {
            self.update(ino, |_, record, _| match record.xattrs.remove(name) {
                Some(_) => Ok(()),
                None => Err(VolumeError::NoData),
            })
        });
        match removed {
            // Removing an ACL that is not there is no error on any Linux filesystem, and no change.
            Err(VolumeError::NoData) if name == acl::ACCESS || name == acl::DEFAULT => Ok(()),
            removed => removed.map(drop),
        }
    }
}

/// The namespaces of xattr(7), and those two names of `system.*` that stand for ACLs. The kernel passes on any name.
fn check_xattr_name(name: &[u8]) -> Result<()> {
    if name == acl::ACCESS || name == acl::DEFAULT {
        return Ok(());
    }
    match [&b"user."[..], TRUSTED, b"security."].iter().find(|space| name.starts_with(space)) {
        None => Err(VolumeError::Unsupported),
        Some(space) if name == *space => {
            Err(VolumeError::Invalid("an attribute's name is only its namespace"))
        }
        Some(_) => Ok(()),
    }
}

fn set_access_acl(record: &mut InodeRecord, value: &[u8], rights: impl Rights) -> Result<()> {
    if record.kind == FileKind::Symlink {
        return Err(VolumeError::Unsupported);
    }
    let acl = Acl::decode(value).ok_or(VolumeError::Invalid("malformed ACL"))?;
    record.perm = record.perm & 0o7000 | acl.permissions();
    if record.perm & S_ISGID != 0 && !rights.keeps_setgid(record.uid, record.gid) {
        record.perm &= !S_ISGID;
    }
    if acl.is_minimal() {
        record.xattrs.remove(acl::ACCESS);
    } else {
        record.xattrs.insert(acl::ACCESS.to_vec(), acl.encode());
    }
    Ok(())
}

/// Whether anything was there to take. A setgid bit without group execution is no privilege; it goes only where its owner could not set it
/// again either. A directory's bits are no privileges.
fn drop_privileges(record: &mut InodeRecord, keep_mode: bool, rights: &impl Rights) -> bool {
    if record.kind == FileKind::Dir {
        return false;
    }
    let had_capability = has_capability(record);
    if had_capability {
        record.xattrs.remove(CAPABILITY);
    }
    if keep_mode {
        return had_capability;
    }
    let before = record.perm;
    record.perm &= !S_ISUID;
    if before & S_ISGID != 0 && (before & S_IXGRP != 0 || !rights.keeps_setgid(record.uid, record.gid)) {
        record.perm &= !S_ISGID;
    }
    had_capability || record.perm != before
}

/// Whether a write could have something to take away, so that it is worth finding out whose it is.
fn has_privileges(record: &InodeRecord) -> bool {
    record.perm & (S_ISUID | S_ISGID) != 0 || has_capability(record)
}

/// An empty value is none, and stays: so does the kernel see it.
fn has_capability(record: &InodeRecord) -> bool {
    record.xattrs.get(CAPABILITY).is_some_and(|value| !value.is_empty())
}
