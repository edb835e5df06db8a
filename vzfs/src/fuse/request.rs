//! What a request says, in the volume's terms.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use fuser::{Errno, INodeNo, RenameFlags, ReplyXattr, Request};

use crate::types::{Ino, MAX_NAME_BYTES, NameRef, TypeError};
use crate::volume::{Caller, RenameMode, VolumeError, XattrMode};

/// Names and numbers from the kernel are data like any other.
pub(super) fn ino(node: INodeNo) -> Result<Ino, VolumeError> {
    Ino::new(node.0).ok_or(VolumeError::NotFound)
}

pub(super) fn name_of(name: &OsStr) -> Result<NameRef<'_>, VolumeError> {
    NameRef::new(name.as_bytes()).map_err(|error| match error {
        TypeError::Name { .. } if name.len() > MAX_NAME_BYTES => VolumeError::NameTooLong,
        _ => VolumeError::Invalid("not a file name"),
    })
}

/// The owner of what a request creates, in the VE's ids. Other requests have none where the VE has a shift.
pub(super) fn caller(req: &Request) -> Caller {
    Caller { uid: req.uid(), gid: req.gid() }
}

/// Permission bits of a mode, which are the low twelve.
pub(super) fn perm(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

pub(super) fn reply_xattr(size: u32, value: &[u8], reply: ReplyXattr) {
    match (size, u32::try_from(value.len())) {
        (_, Err(_)) => reply.error(Errno::from_i32(libc::E2BIG)),
        (0, Ok(length)) => reply.size(length),
        (size, Ok(length)) if length <= size => reply.data(value),
        _ => reply.error(Errno::from_i32(libc::ERANGE)),
    }
}

/// The form of a rename.
pub(super) fn rename_mode(flags: RenameFlags, caller: Caller) -> Result<RenameMode, VolumeError> {
    match flags {
        RenameFlags::RENAME_NOREPLACE => Ok(RenameMode::NoReplace),
        RenameFlags::RENAME_EXCHANGE => Ok(RenameMode::Exchange),
        RenameFlags::RENAME_WHITEOUT => Ok(RenameMode::Whiteout(caller)),
        flags if flags.is_empty() => Ok(RenameMode::Replace),
        _ => Err(VolumeError::Invalid("flags of rename that exclude each other")),
    }
}

/// What setxattr(2) demands of what is there.
pub(super) fn xattr_mode(flags: i32) -> XattrMode {
    match (flags & libc::XATTR_CREATE != 0, flags & libc::XATTR_REPLACE != 0) {
        (false, false) => XattrMode::Any,
        (true, false) => XattrMode::Create,
        (false, true) => XattrMode::Replace,
        (true, true) => XattrMode::Neither,
    }
}

/// Where lseek(2) looks from, for the two ways that need the file's map.
pub(super) fn seek_from(offset: i64, whence: i32) -> Result<rustix::fs::SeekFrom, VolumeError> {
    let offset = u64::try_from(offset).map_err(|_| VolumeError::Invalid("negative offset"))?;
    match whence {
        libc::SEEK_DATA => Ok(rustix::fs::SeekFrom::Data(offset)),
        libc::SEEK_HOLE => Ok(rustix::fs::SeekFrom::Hole(offset)),
        _ => Err(VolumeError::Invalid("not a way of seeking that needs the filesystem")),
    }
}
