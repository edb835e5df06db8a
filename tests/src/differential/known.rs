//! Where the plain tree is made to do as a VE does: what XFS has ways of its own in, in which a VE does as ext4; and what the kernel keeps from FUSE
//! filesystems.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{self, AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use rustix::io::Errno;

use super::execute::{Answer, remove_xattr};
use super::ops::{Op, RenameFlag, Step, User};
use super::side::Inner;
use super::stat::{Key, Stat, Time};
use crate::HostFs;

/// Whether a step is not done at all: chown(2) of nothing looks to a FUSE filesystem as a write, where the file is open for writing; and before the
/// filesystem can refuse it to others than the owner, the kernel has removed the capabilities.
pub(super) fn left_out(inner: &mut Inner, step: &Step) -> bool {
    let Op::Chown { target, uid: None, gid: None } = &step.op else { return false };
    let target = inner.within(User::Root, 0, step.cwd, |inner| Stat::of_target(inner, target));
    target.is_ok_and(|target| {
        if step.by != User::Root && target.perm & 0o6000 != 0 {
            return true;
        }
        inner.slots.iter().flatten().any(|slot| {
            slot.flags.intersects(OFlags::WRONLY | OFlags::RDWR)
                && Stat::of(&slot.fd, c"", AtFlags::EMPTY_PATH).is_ok_and(|stat| stat.key() == target.key())
        })
    })
}

/// Files of the plain tree whose times a step moves, and those of the VE's it does not.
#[derive(Default)]
pub(super) struct Before {
    if_done: Vec<(OwnedFd, Stat)>,
    if_refused: Vec<(OwnedFd, Stat)>,
    /// The directory of the name that a rename takes away, as afterwards the path may lead elsewhere; and the file.
    from: Option<(OwnedFd, Key)>,
}

/// Looks at the plain tree before a step.
/// - XFS moves mtime and ctime of directories that RENAME_EXCHANGE moves to another one, and no times of files; ext4 and the VE move every
///   ctime, and nothing else.
/// - ext4 has put RENAME_WHITEOUT's device in the directory before it refuses the rename, and takes it away again.
/// - The kernel does not tell a FUSE filesystem of writes to a fifo.
pub(super) fn before(inner: &mut Inner, step: &Step, fs: HostFs) -> Before {
    let found = inner.within(User::Root, 0, step.cwd, |inner| {
        let mut before = Before::default();
        match &step.op {
            Op::Rename { from, to, flag: RenameFlag::Exchange } if fs == HostFs::Xfs => {
                before.if_done.extend([from, to].into_iter().flat_map(|path| named(path)));
            }
            Op::Rename { from, flag: RenameFlag::Whiteout, .. } => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let dir = fs::openat(CWD, split(from).0, flags, Mode::empty())?;
                if fs == HostFs::Ext4 {
                    let stat = Stat::of(&dir, c"", AtFlags::EMPTY_PATH)?;
                    before.if_refused.push((dir, stat));
                } else {
                    let file = Stat::of(&dir, split(from).1, AtFlags::SYMLINK_NOFOLLOW)?;
                    before.from = Some((dir, file.key()));
                }
            }
            Op::Write { slot, .. } => {
                let fd = inner.fd(*slot)?.try_clone().map_err(|_| Errno::MFILE)?;
                let stat = Stat::of(&fd, c"", AtFlags::EMPTY_PATH)?;
                before.if_done.extend((stat.kind == FileType::Fifo).then_some((fd, stat)));
            }
            _ => {}
        }
        Ok(before)
    });
    found.unwrap_or_default()
}

/// The directory that a path's last name is in, and that name.
fn split(path: &str) -> (&str, &str) {
    let path = path.trim_end_matches('/');
    path.rsplit_once('/').unwrap_or((".", path))
}

/// Corrects the plain tree and its answer after a step. Returns the files whose next comparison of times has nothing before it.
pub(super) fn after(
    inner: &mut Inner,
    step: &Step,
    fs: HostFs,
    before: Before,
    answer: Answer,
) -> (Answer, Vec<Key>) {
    let mut moved = Vec::new();
    for (fd, stat) in if answer.is_ok() { before.if_done } else { before.if_refused } {
        put_back(fd.as_fd(), &stat).expect("what was there is there");
        moved.push(stat.key());
    }
    if let (Op::Handle { .. }, Ok(_)) = (&step.op, &answer) {
        return (Err(Errno::OPNOTSUPP), moved);
    }
    if fs == HostFs::Xfs {
        return as_ext4_would(inner, step, before.from.as_ref(), answer, moved);
    }
    (answer, moved)
}

/// Sets the times that can be set.
fn put_back(fd: impl AsFd, stat: &Stat) -> Result<(), Errno> {
    let time = |(tv_sec, nanos): Time| Timespec { tv_sec, tv_nsec: nanos.into() };
    let times = Timestamps { last_access: time(stat.atime), last_modification: time(stat.mtime) };
    fs::utimensat(fd, "", &times, AtFlags::EMPTY_PATH)
}

/// A descriptor that only names a file, also a symbolic link, and its attributes.
fn named(path: &str) -> Result<(OwnedFd, Stat), Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = fs::openat(CWD, path, flags, Mode::empty())?;
    let stat = Stat::of(&fd, c"", AtFlags::EMPTY_PATH)?;
    Ok((fd, stat))
}

/// - rename(2) over a directory that is not empty is ENOTEMPTY, and the device that RENAME_WHITEOUT leaves has group and ACL as if it were made
///   there;
/// - truncate(2) moves the times also of a file that has the size already;
/// - setxattr(2) with both flags never makes an attribute, and one that is set to the value that it has moves no ctime.
fn as_ext4_would(
    inner: &mut Inner,
    step: &Step,
    renamed: Option<&(OwnedFd, Key)>,
    answer: Answer,
    mut moved: Vec<Key>,
) -> (Answer, Vec<Key>) {
    let as_root = |inner: &mut Inner, work: &dyn Fn(&Inner) -> Result<Key, Errno>| {
        inner.within(User::Root, 0, step.cwd, |inner| work(inner)).ok()
    };
    let answer = match (&step.op, answer) {
        (Op::Rename { flag: RenameFlag::Plain | RenameFlag::Whiteout, .. }, Err(Errno::EXIST)) => {
            Err(Errno::NOTEMPTY)
        }
        (Op::Rename { from, flag: RenameFlag::Whiteout, .. }, Ok(seen)) => {
            let (dir, file) = renamed.expect("what was renamed was somewhere");
            let made = inner.within(step.by, 0, step.cwd, |_| make_whiteout_again(dir, split(from).1, *file));
            made.map(|()| seen)
        }
        (Op::Truncate { path, .. }, Ok(seen)) => {
            inner.within(User::Root, 0, step.cwd, |_| touch(path)).map(|()| seen)
        }
        // ACLs are set whatever the flags say.
        (
            Op::SetXattr { target, name, flags: 3, .. } | Op::FillXattr { target, name, flags: 3, .. },
            Ok(_),
        ) if !name.starts_with("system.") => {
            moved.extend(as_root(inner, &|inner| {
                remove_xattr(inner, target, name)?;
                Ok(Stat::of_target(inner, target)?.key())
            }));
            Err(Errno::NODATA)
        }
        (Op::SetXattr { target, .. } | Op::FillXattr { target, .. }, Ok(seen)) => {
            moved.extend(as_root(inner, &|inner| Ok(Stat::of_target(inner, target)?.key())));
            Ok(seen)
        }
        (_, answer) => answer,
    };
    (answer, moved)
}

fn make_whiteout_again(dir: &OwnedFd, name: &str, renamed: Key) -> Result<(), Errno> {
    let device = Stat::of(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if device.key() == renamed {
        // Both names were one file's.
        return Ok(());
    }
    fs::unlinkat(dir, name, AtFlags::empty())?;
    fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0)
}

/// Moves mtime and ctime.
fn touch(path: &str) -> Result<(), Errno> {
    let time = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
    let times = Timestamps { last_access: time(UTIME_OMIT), last_modification: time(UTIME_NOW) };
    fs::utimensat(CWD, path, &times, AtFlags::empty())
}
