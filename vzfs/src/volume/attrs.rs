//! Attributes and extended attributes.

use super::{MAX_XATTRS_BYTES, Node, Result, Rights, Volume, VolumeError, data};
use crate::acl::{self, Acl};
use crate::meta::{InodeRecord, PrivateContent};
use crate::types::{Attr, FileKind, Ino, MAX_XATTR_NAME_BYTES, MAX_XATTR_VALUE_BYTES, Timestamp};

/// `security.capability`: any change of content or owner takes it away (capabilities(7)).
const CAPABILITY: &[u8] = b"security.capability";
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
    /// Truncate or extend to this size.
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
}

impl Volume {
    /// Changes attributes.
    ///
    /// # Errors
    /// [`VolumeError::Stale`] when a change of size must relabel the file (see `content`).
    pub fn set_attr(&self, ino: Ino, set: SetAttr, rights: impl Rights) -> Result<Attr> {
        if let Some(size) = set.size {
            self.truncate(ino, size, &rights)?;
        }
        if (SetAttr { size: None, ..set }) == SetAttr::default() {
            return self.attr(ino);
        }
        self.update(ino, |volume, record, now| {
            if let Some(perm) = set.perm {
                record.perm = perm & 0o7777;
                if let Some(acl) = record.xattrs.get(acl::ACCESS).and_then(|value| Acl::decode(value)) {
                    record.xattrs.insert(acl::ACCESS.to_vec(), acl.after_chmod(perm).encode());
                }
            }
            if set.uid.is_some() || set.gid.is_some() {
                // While the record has its old group, which is the one that counts.
                if record.kind != FileKind::Dir && set.perm.is_none() && !rights.keeps_all_on_chown() {
                    drop_privileges(record, false, &rights);
                }
                record.uid = set.uid.unwrap_or(record.uid);
                record.gid = set.gid.unwrap_or(record.gid);
            }
            if let Some(atime) = set.atime {
                record.atime = atime.resolve(now);
            }
            if let Some(mtime) = set.mtime {
                record.mtime = mtime.resolve(now);
                if let PrivateContent::Data { id, .. } = record.content {
                    // The host file's mtime is the file's (see `meta::PrivateContent`); setting it moves the host's ctime, which must
                    // not be taken for a write later.
                    let file = volume.data.open(id)?;
                    data::set_mtime(&file, record.mtime)?;
                    let stamp = data::HostStat::of_file(&file)?.ctime;
                    record.content = PrivateContent::Data { id, stamp };
                }
            }
            Ok(())
        })
    }

    /// Reads-changes-writes an inode's record; ctime moves.
    pub(super) fn update(
        &self,
        ino: Ino,
        change: impl FnOnce(&Volume, &mut InodeRecord, Timestamp) -> Result<()>,
    ) -> Result<Attr> {
        let _exclusive = self.names.write();
        let mut batch = self.meta.changes(self.ve);
        let mut record = self.pin(ino, self.node(ino)?, &mut batch);
        let now = Timestamp::now();
        change(self, &mut record, now)?;
        record.ctime = now;
        batch.put_inode(ino, &record);
        batch.commit()?;
        self.record_attr(ino, &record)
    }

    /// Takes away what a change of content must take away: file capabilities, and setuid and setgid unless who changed it keeps them.
    /// Writes nothing if there is nothing.
    pub(super) fn kill_privileges(&self, ino: Ino, rights: &impl Rights) -> Result<()> {
        let mut record = {
            let _shared = self.names.read();
            self.record_of(self.node(ino)?)
        };
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
        let _shared = self.names.read();
        match self.node(ino)? {
            Node::Base(view) => view.xattr(name).map(<[u8]>::to_vec),
            Node::Private(mut record) => record.xattrs.remove(name),
        }
        .ok_or(VolumeError::NoData)
    }

    /// The names of all extended attributes.
    pub fn xattr_names(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        let _shared = self.names.read();
        Ok(match self.node(ino)? {
            Node::Base(view) => view.xattrs().map(|(name, _)| name.to_vec()).collect(),
            Node::Private(record) => record.xattrs.into_keys().collect(),
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
        if name.is_empty() || name.len() > MAX_XATTR_NAME_BYTES || value.len() > MAX_XATTR_VALUE_BYTES {
            return Err(VolumeError::NameTooLong);
        }
        if name.starts_with(b"system.") && name != acl::ACCESS && name != acl::DEFAULT {
            return Err(VolumeError::Unsupported);
        }
        self.update(ino, |_, record, _| {
            match (mode, record.xattrs.contains_key(name)) {
                (XattrMode::Create, true) => return Err(VolumeError::Exists),
                (XattrMode::Replace, false) => return Err(VolumeError::NoData),
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
        })?;
        Ok(())
    }

    /// Removes an extended attribute.
    pub fn remove_xattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        self.update(ino, |_, record, _| match record.xattrs.remove(name) {
            Some(_) => Ok(()),
            // Removing an ACL that is not there is no error on any Linux filesystem.
            None if name == acl::ACCESS || name == acl::DEFAULT => Ok(()),
            None => Err(VolumeError::NoData),
        })?;
        Ok(())
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
/// again either.
fn drop_privileges(record: &mut InodeRecord, keep_mode: bool, rights: &impl Rights) -> bool {
    let had_capability = record.xattrs.remove(CAPABILITY).is_some();
    if record.kind != FileKind::File || keep_mode {
        return had_capability;
    }
    let before = record.perm;
    record.perm &= !S_ISUID;
    if before & S_ISGID != 0 && (before & S_IXGRP != 0 || !rights.keeps_setgid(record.uid, record.gid)) {
        record.perm &= !S_ISGID;
    }
    had_capability || record.perm != before
}

/// Whether a write could have something to take away, so that the kernel must not write without us.
pub(super) fn has_privileges(record: &InodeRecord) -> bool {
    record.perm & (S_ISUID | S_ISGID) != 0 || record.xattrs.contains_key(CAPABILITY)
}
