//! The one documented deviation, modelled: what becomes of descriptors whose file gets another inode.
//!
//! A template's file that somebody reads through the kernel's passthrough cannot get other content under the same inode. When it is
//! opened for writing, its names go to a new inode, and older descriptors keep the old one with the old content, as after a rename over
//! the file. The plain tree is given the same fate: those descriptors are moved to a copy of the file that has no name.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    self, AtFlags, CWD, FileType, Gid, Mode, OFlags, SeekFrom, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::execute::{content, xattr_names};
use super::ops::{Access, Lock, LockKind, Op, OpenFlag, Step};
use super::side::{Inner, Slot};
use super::stat::{Key, Relation, Stat};

/// Where the copies are made; never in the tree when anybody looks.
const COPY: &str = "/copy-for-detached-descriptors";

/// A copy that descriptors will be moved to, if the operation is done.
pub(super) struct Prepared {
    key: Key,
    pub(super) root: Key,
    slots: Vec<(u8, OwnedFd)>,
    copy: Stat,
}

/// What was moved: the file, the copy, and the slots.
pub(super) struct Detached {
    pub(super) key: Key,
    pub(super) copy: Key,
    pub(super) slots: Vec<u8>,
}

/// The file that a step would open for writing or truncate, if it is on its blob yet.
pub(super) fn candidate(
    inner: &mut Inner,
    step: &Step,
    on_blob: &std::collections::HashSet<Key>,
) -> Option<Key> {
    let (path, size) = match &step.op {
        Op::Truncate { path, size } => (path, Some(*size)),
        Op::Open { path, access, flags, .. }
            if matches!(access, Access::Write | Access::Both)
                || *access == Access::Read && flags.contains(&OpenFlag::Trunc) =>
        {
            (path, None)
        }
        _ => return None,
    };
    let stat =
        inner.within(super::ops::User::Root, 0, step.cwd, |_| Stat::of(CWD, path.as_str(), AtFlags::empty()));
    let copied_up = |stat: &Stat| {
        // truncate(2) to the size that the file has changes nothing.
        stat.kind == FileType::RegularFile && on_blob.contains(&stat.key()) && size != Some(stat.size)
    };
    stat.ok().filter(copied_up).map(|stat| stat.key())
}

/// Makes a copy for the descriptors that `key` is open under, unless none of them reads it. The slot that the step opens anew is not
/// among them.
pub(super) fn prepare(inner: &mut Inner, step: &Step, key: Key) -> Result<Option<Prepared>, Errno> {
    let replaced = if let Op::Open { slot, .. } = step.op { Some(slot) } else { None };
    let of = |slot: &Slot| Stat::of(&slot.fd, c"", AtFlags::EMPTY_PATH).map(|stat| stat.key());
    let mut open = Vec::new();
    for (number, slot) in (0..).zip(&inner.slots) {
        if let Some(slot) = slot
            && of(slot)? == key
            && Some(number) != replaced
        {
            open.push((number, slot));
        }
    }
    let Some((_, reader)) = open.iter().find(|(_, slot)| !slot.flags.contains(OFlags::PATH)) else {
        return Ok(None);
    };
    let stat = Stat::of(&reader.fd, c"", AtFlags::EMPTY_PATH)?;
    let parent = Stat::of(CWD, "/", AtFlags::empty())?;
    let copy =
        fs::openat(CWD, COPY, OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR)?;
    rustix::io::pwrite(&copy, &content(reader.fd.as_fd())?, 0)?;
    fs::fchown(&copy, Some(Uid::from_raw(stat.uid)), Some(Gid::from_raw(stat.gid)))?;
    fs::fchmod(&copy, Mode::from_raw_mode(stat.perm))?;
    let mut list = vec![0; 1 << 16];
    let len = fs::flistxattr(&reader.fd, &mut list[..])?;
    for name in xattr_names(&list[..len]) {
        let mut value = vec![0; 1 << 16];
        let len = fs::fgetxattr(&reader.fd, &name[..], &mut value[..])?;
        fs::fsetxattr(&copy, &name[..], &value[..len], XattrFlags::empty())?;
    }
    let time = |(tv_sec, nanos): (i64, u32)| Timespec { tv_sec, tv_nsec: nanos.into() };
    fs::futimens(&copy, &Timestamps { last_access: time(stat.atime), last_modification: time(stat.mtime) })?;
    let mut slots = Vec::new();
    for (number, slot) in open {
        let again = fs::openat(
            CWD,
            COPY,
            slot.flags - (OFlags::CREATE | OFlags::EXCL | OFlags::TRUNC),
            Mode::empty(),
        )?;
        if !slot.flags.contains(OFlags::PATH) {
            fs::seek(&again, SeekFrom::Start(fs::tell(&slot.fd)?))?;
        }
        slots.push((number, again));
    }
    fs::unlinkat(CWD, COPY, AtFlags::empty())?;
    let root = Timestamps { last_access: time(parent.atime), last_modification: time(parent.mtime) };
    fs::utimensat(CWD, "/", &root, AtFlags::empty())?;
    Ok(Some(Prepared { key, root: parent.key(), slots, copy: Stat::of(&copy, c"", AtFlags::EMPTY_PATH)? }))
}

/// Moves the descriptors to the copy.
pub(super) fn detach(inner: &mut Inner, prepared: Prepared) -> Detached {
    let mut slots = Vec::new();
    for (number, fd) in prepared.slots {
        if let Some(slot) = &mut inner.slots[usize::from(number)] {
            slot.fd = fd;
            slots.push(number);
        }
    }
    Detached { key: prepared.key, copy: prepared.copy.key(), slots }
}

/// Gives back the locks of these descriptors: they stay with the old inode in the VE, but not here.
pub(super) fn let_go(inner: &mut Inner, slots: &[u8]) {
    for slot in slots.iter().filter_map(|slot| inner.fd(*slot).ok()) {
        for kind in [LockKind::Flock, LockKind::Ofd, LockKind::Posix] {
            // Descriptors that only name a file have none to give back.
            let _none = super::execute::lock(slot.as_fd(), kind, Lock::Unlock, 0, 0);
        }
    }
}

/// Notes a copy-up: what was opened for writing or truncated is private from now on.
pub(super) fn note_copy_up(relation: &mut Relation, key: Key) {
    relation.on_blob.remove(&key);
}

/// What fallocate(2) answers in a VE to the modes that the kernel does not pass on to FUSE filesystems, where another filesystem would have
/// done them. Checks that come before that in the kernel are left to it.
pub(super) fn refused_by_the_kernel(inner: &Inner, op: &Op) -> bool {
    // Collapse, insert, unshare.
    const NOT_PASSED_ON: [u32; 5] = [8, 0x20, 0x40, 0x41, 0x80];
    let Op::Fallocate { slot, mode, len, .. } = *op else { return false };
    let Some(slot) = inner.slots.get(usize::from(slot)).and_then(Option::as_ref) else { return false };
    let regular =
        Stat::of(&slot.fd, c"", AtFlags::EMPTY_PATH).is_ok_and(|stat| stat.kind == FileType::RegularFile);
    let writable = slot.flags.intersects(OFlags::WRONLY | OFlags::RDWR) && !slot.flags.contains(OFlags::PATH);
    NOT_PASSED_ON.contains(&mode) && len > 0 && writable && regular
}
