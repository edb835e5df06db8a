//! An operation done in one tree, and what a program sees of it.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    self, Access as AccessMode, AtFlags, CWD, FallocateFlags, FileType, FlockOperation, Gid, Mode, OFlags,
    RawDir, RenameFlags, SeekFrom, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::ops::{
    Access, Lock, LockKind, Meanwhile, NodeKind, Op, OpenFlag, RenameFlag, SetTime, Step, Target, Whence,
};
use super::raw;
use super::side::{Inner, Slot};
use super::stat::Stat;

/// What a program sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Nothing,
    Number(u64),
    Bytes(Vec<u8>),
    Names(BTreeSet<Vec<u8>>),
    Stat(Box<Stat>),
    /// Something that no filesystem may answer; never equal to the other side's.
    Wrong(String),
}

const PAGE_BYTES: usize = 4096;

pub(super) type Answer = Result<Seen, Errno>;

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

fn done<T>(result: Result<T, Errno>) -> Answer {
    result.map(|_| Seen::Nothing)
}

fn number(result: Result<usize, Errno>) -> Answer {
    result.map(|number| Seen::Number(number as u64))
}

/// Memory for a transfer, aligned as direct I/O needs it.
struct Buffer {
    memory: Vec<u8>,
    len: usize,
}

impl Buffer {
    fn new(len: usize) -> Buffer {
        Buffer { memory: vec![0; len + PAGE_BYTES], len }
    }

    fn filled(len: usize, byte: u8) -> Buffer {
        let mut buffer = Buffer::new(len);
        for (at, place) in buffer.bytes().iter_mut().enumerate() {
            *place = byte.wrapping_add((at / 512) as u8) | 1;
        }
        buffer
    }

    fn bytes(&mut self) -> &mut [u8] {
        let start = self.memory.as_ptr().align_offset(PAGE_BYTES);
        &mut self.memory[start..start + self.len]
    }
}

impl Inner {
    /// The descriptor for a transfer. Direct I/O that is not aligned is left out: which alignment a filesystem demands is its own affair.
    fn fd_for(&self, slot: u8, at: Option<u64>, len: usize) -> Result<&OwnedFd, Errno> {
        let fd = self.fd(slot)?;
        let direct =
            self.slots[usize::from(slot)].as_ref().is_some_and(|slot| slot.flags.contains(OFlags::DIRECT));
        if direct {
            let at = at.map_or_else(|| fs::tell(fd), Ok)?;
            if !at.is_multiple_of(PAGE_BYTES as u64) || !len.is_multiple_of(PAGE_BYTES) {
                return Err(Errno::NOSYS);
            }
        }
        Ok(fd)
    }
}

/// Does a step.
pub(super) fn execute(inner: &mut Inner, step: &Step) -> Answer {
    inner.within(step.by, step.umask, step.cwd, |inner| perform(inner, &step.op))
}

/// Does an operation with the rights that the thread has.
pub(super) fn perform(inner: &mut Inner, op: &Op) -> Answer {
    match op {
        op @ (Op::Open { .. } | Op::Close { .. } | Op::Handle { .. }) => descriptors(inner, op),
        op @ (Op::Mkdir { .. }
        | Op::Rmdir { .. }
        | Op::Mknod { .. }
        | Op::Symlink { .. }
        | Op::Readlink { .. }
        | Op::Link { .. }
        | Op::LinkSlot { .. }
        | Op::Unlink { .. }
        | Op::Rename { .. }
        | Op::List { .. }) => names(inner, op),
        op @ (Op::Chmod { .. }
        | Op::Chown { .. }
        | Op::Utimens { .. }
        | Op::Access { .. }
        | Op::Stat { .. }
        | Op::Truncate { .. }) => attributes(inner, op),
        op @ (Op::SetXattr { .. }
        | Op::FillXattr { .. }
        | Op::GetXattr { .. }
        | Op::ListXattr { .. }
        | Op::RemoveXattr { .. }) => xattrs(inner, op),
        op => data(inner, op),
    }
}

/// The flags of an open.
pub(super) fn open_flags(access: Access, flags: &[OpenFlag]) -> OFlags {
    let mode = match access {
        Access::Read => OFlags::RDONLY,
        Access::Write => OFlags::WRONLY,
        Access::Both => OFlags::RDWR,
        Access::Path => OFlags::PATH,
    };
    let add = |all, flag: &OpenFlag| {
        all | match flag {
            OpenFlag::Creat => OFlags::CREATE,
            OpenFlag::Excl => OFlags::EXCL,
            OpenFlag::Trunc => OFlags::TRUNC,
            OpenFlag::Append => OFlags::APPEND,
            OpenFlag::Directory => OFlags::DIRECTORY,
            OpenFlag::Nofollow => OFlags::NOFOLLOW,
            OpenFlag::Sync => OFlags::SYNC,
            OpenFlag::Direct => OFlags::DIRECT,
        }
    };
    flags.iter().fold(mode | OFlags::NONBLOCK | OFlags::CLOEXEC, add)
}

fn descriptors(inner: &mut Inner, op: &Op) -> Answer {
    match op {
        Op::Open { slot, path, access, flags, mode } => {
            let flags = open_flags(*access, flags);
            inner.slots[usize::from(*slot)] = None;
            let fd = fs::openat(CWD, path.as_str(), flags, Mode::from_raw_mode(*mode))?;
            inner.slots[usize::from(*slot)] = Some(Slot { fd, flags });
            Ok(Seen::Nothing)
        }
        Op::Close { slot } => {
            inner.slots[usize::from(*slot)] = None;
            Ok(Seen::Nothing)
        }
        Op::Handle { target } => {
            let (at, path, flags) = match target {
                Target::Path(path) => (CWD, path.as_str(), libc::AT_SYMLINK_FOLLOW),
                Target::Link(path) => (CWD, path.as_str(), 0),
                Target::Slot(slot) => (inner.fd(*slot)?.as_fd(), "", libc::AT_EMPTY_PATH),
            };
            let path = CString::new(path).map_err(|_| Errno::INVAL)?;
            done(raw::name_to_handle(at, &path, flags).map_err(|error| errno(&error)))
        }
        _ => Err(Errno::NOSYS),
    }
}

fn data(inner: &mut Inner, op: &Op) -> Answer {
    match *op {
        Op::Read { slot, len } => {
            let mut buffer = Buffer::new(len);
            let read = rustix::io::read(inner.fd_for(slot, None, len)?, buffer.bytes())?;
            Ok(Seen::Bytes(buffer.bytes()[..read].to_vec()))
        }
        Op::Pread { slot, at, len } => {
            let mut buffer = Buffer::new(len);
            let read = rustix::io::pread(inner.fd_for(slot, Some(at), len)?, buffer.bytes(), at)?;
            Ok(Seen::Bytes(buffer.bytes()[..read].to_vec()))
        }
        Op::Write { slot, len, byte } => {
            number(rustix::io::write(inner.fd_for(slot, None, len)?, Buffer::filled(len, byte).bytes()))
        }
        Op::Pwrite { slot, at, len, byte } => number(rustix::io::pwrite(
            inner.fd_for(slot, Some(at), len)?,
            Buffer::filled(len, byte).bytes(),
            at,
        )),
        Op::Seek { slot, whence, at } => seek(inner.fd(slot)?.as_fd(), whence, at),
        Op::Ftruncate { slot, size } => done(fs::ftruncate(inner.fd(slot)?, size)),
        Op::Fallocate { slot, mode, at, len } => {
            done(fs::fallocate(inner.fd(slot)?, FallocateFlags::from_bits_retain(mode), at, len))
        }
        Op::CopyRange { from, to, from_at, to_at, len } => {
            let (mut from_at, mut to_at) = (from_at, to_at);
            // With direct I/O it depends on where the source ends; a length that is never aligned leaves it out.
            let (from, to) = (inner.fd_for(from, None, 1)?, inner.fd_for(to, None, 1)?);
            number(fs::copy_file_range(from, Some(&mut from_at), to, Some(&mut to_at), len))
        }
        Op::Map { slot, at, byte } => {
            let fd = inner.fd(slot)?;
            let stat = Stat::of(fd, c"", AtFlags::EMPTY_PATH)?;
            // Beyond the end there would be a signal; an empty file cannot be mapped.
            let len = if stat.kind == FileType::RegularFile { stat.size.min(5000) as usize } else { 4096 };
            let bytes =
                raw::map(fd.as_fd(), len, byte.map(|byte| (at, byte))).map_err(|error| errno(&error))?;
            Ok(Seen::Bytes(bytes))
        }
        Op::Fsync { slot, data_only: false } => done(fs::fsync(inner.fd(slot)?)),
        Op::Fsync { slot, data_only: true } => done(fs::fdatasync(inner.fd(slot)?)),
        Op::Lock { slot, kind, lock, at, len } => self::lock(inner.fd(slot)?.as_fd(), kind, lock, at, len),
        _ => Err(Errno::NOSYS),
    }
}

/// Takes or gives back a lock, without waiting.
pub(super) fn lock(fd: BorrowedFd<'_>, kind: LockKind, lock: Lock, at: i64, len: i64) -> Answer {
    if kind == LockKind::Flock {
        return done(fs::flock(
            fd,
            match lock {
                Lock::Shared => FlockOperation::NonBlockingLockShared,
                Lock::Exclusive => FlockOperation::NonBlockingLockExclusive,
                Lock::Unlock => FlockOperation::NonBlockingUnlock,
            },
        ));
    }
    let command = if kind == LockKind::Ofd { libc::F_OFD_SETLK } else { libc::F_SETLK };
    let lock = match lock {
        Lock::Shared => libc::F_RDLCK,
        Lock::Exclusive => libc::F_WRLCK,
        Lock::Unlock => libc::F_UNLCK,
    };
    done(raw::lock(fd, command, lock, at, len).map_err(|error| errno(&error)))
}

/// The whole content of a regular file, read as direct I/O demands it.
pub(super) fn content(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::new();
    let mut buffer = Buffer::new(1 << 16);
    loop {
        let read = rustix::io::pread(fd, buffer.bytes(), bytes.len() as u64)?;
        bytes.extend_from_slice(&buffer.bytes()[..read]);
        // Short only at the end, from where direct I/O could not go on.
        if read < buffer.len {
            return Ok(bytes);
        }
    }
}

/// Where holes are is the host filesystem's choice; that all data is found and that holes read as zeros is not.
fn seek(fd: BorrowedFd<'_>, whence: Whence, at: i64) -> Answer {
    let kind = Stat::of(fd, c"", AtFlags::EMPTY_PATH)?.kind;
    if kind == FileType::Directory {
        return Ok(Seen::Nothing);
    }
    let offset = u64::try_from(at).map_err(|_| Errno::INVAL);
    let found = match whence {
        Whence::Set => fs::seek(fd, SeekFrom::Start(offset?)),
        Whence::Cur => fs::seek(fd, SeekFrom::Current(at)),
        Whence::End => fs::seek(fd, SeekFrom::End(at)),
        Whence::Data => fs::seek(fd, SeekFrom::Data(offset?)),
        Whence::Hole => fs::seek(fd, SeekFrom::Hole(offset?)),
    };
    if kind != FileType::RegularFile || !matches!(whence, Whence::Data | Whence::Hole) {
        return found.map(Seen::Number);
    }
    if matches!(found, Err(error) if error != Errno::NXIO) {
        return found.map(Seen::Number);
    }
    // A write-only descriptor cannot tell whether the answer is right.
    let Ok(bytes) = content(fd) else {
        fs::seek(fd, SeekFrom::Start(0))?;
        return Ok(Seen::Nothing);
    };
    let offset = offset? as usize;
    let data_in = |range: std::ops::Range<usize>| bytes[range].iter().any(|byte| *byte != 0);
    let right = match (whence, found) {
        (_, Err(_)) => offset >= bytes.len() || whence == Whence::Data && !data_in(offset..bytes.len()),
        (_, Ok(found)) if (found as usize) < offset || found as usize > bytes.len() => false,
        (Whence::Data, Ok(found)) => !data_in(offset..found as usize),
        (_, Ok(found)) => bytes.get(found as usize).is_none_or(|byte| *byte == 0),
    };
    if !right {
        return Ok(Seen::Wrong(format!("seek {whence:?} {at} found {found:?}, of {} bytes", bytes.len())));
    }
    if offset >= bytes.len() {
        return found.map(Seen::Number);
    }
    fs::seek(fd, SeekFrom::Start(offset as u64))?;
    Ok(Seen::Nothing)
}

fn names(inner: &mut Inner, op: &Op) -> Answer {
    match op {
        Op::Mkdir { path, mode } => done(fs::mkdirat(CWD, path.as_str(), Mode::from_raw_mode(*mode))),
        Op::Rmdir { path } => done(fs::unlinkat(CWD, path.as_str(), AtFlags::REMOVEDIR)),
        Op::Unlink { path } => done(fs::unlinkat(CWD, path.as_str(), AtFlags::empty())),
        Op::Mknod { path, kind, mode } => {
            let (kind, dev) = match *kind {
                NodeKind::File => (FileType::RegularFile, 0),
                NodeKind::Fifo => (FileType::Fifo, 0),
                NodeKind::Socket => (FileType::Socket, 0),
                NodeKind::Char(major, minor) => (FileType::CharacterDevice, fs::makedev(major, minor)),
                NodeKind::Block(major, minor) => (FileType::BlockDevice, fs::makedev(major, minor)),
            };
            done(fs::mknodat(CWD, path.as_str(), kind, Mode::from_raw_mode(*mode), dev))
        }
        Op::Symlink { target, path } => done(fs::symlinkat(target.as_str(), CWD, path.as_str())),
        Op::Readlink { path } => {
            Ok(Seen::Bytes(fs::readlinkat(CWD, path.as_str(), Vec::new())?.into_bytes()))
        }
        Op::Link { from, to, follow } => {
            let flags = if *follow { AtFlags::SYMLINK_FOLLOW } else { AtFlags::empty() };
            done(fs::linkat(CWD, from.as_str(), CWD, to.as_str(), flags))
        }
        Op::LinkSlot { slot, to } => {
            done(fs::linkat(inner.fd(*slot)?, "", CWD, to.as_str(), AtFlags::EMPTY_PATH))
        }
        Op::Rename { from, to, flag } => {
            let flags = match flag {
                RenameFlag::Plain => RenameFlags::empty(),
                RenameFlag::Noreplace => RenameFlags::NOREPLACE,
                RenameFlag::Exchange => RenameFlags::EXCHANGE,
                RenameFlag::Whiteout => RenameFlags::WHITEOUT,
                RenameFlag::Both => RenameFlags::NOREPLACE | RenameFlags::EXCHANGE,
            };
            done(fs::renameat_with(CWD, from.as_str(), CWD, to.as_str(), flags))
        }
        Op::List { path, chunk, meanwhile } => list(path, *chunk, meanwhile.as_ref()),
        _ => Err(Errno::NOSYS),
    }
}

/// Reads a directory in small steps, changes it after the first, and goes back to there once.
fn list(path: &str, chunk: usize, meanwhile: Option<&Meanwhile>) -> Answer {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = fs::openat(CWD, path, flags, Mode::empty())?;
    // Room for one name of the greatest length, or for about so many short ones.
    let mut buffer = vec![MaybeUninit::uninit(); 288.max(chunk * 32)];
    let (mut first, mut changed, mut rest) = (Vec::new(), None, Vec::new());
    let mut cookie = 0;
    let mut entries = RawDir::new(&dir, &mut buffer);
    let mut at_first_pause = true;
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes().to_vec();
        if at_first_pause {
            cookie = entry.next_entry_cookie();
            first.push(name);
        } else {
            rest.push(name);
        }
        if at_first_pause && entries.is_buffer_empty() {
            at_first_pause = false;
            changed = meanwhile.map(|change| match change {
                Meanwhile::Create(name) => {
                    // Through a link another name would appear.
                    let flags = OFlags::CREATE
                        | OFlags::EXCL
                        | OFlags::NOFOLLOW
                        | OFlags::WRONLY
                        | OFlags::NONBLOCK
                        | OFlags::CLOEXEC;
                    (name.as_bytes(), fs::openat(&dir, name.as_str(), flags, Mode::RUSR).map(drop))
                }
                Meanwhile::Unlink(name) => {
                    (name.as_bytes(), fs::unlinkat(&dir, name.as_str(), AtFlags::empty()))
                }
            });
        }
    }
    let touched = changed.as_ref().map(|(name, _)| *name);
    // What was read before the change stays; whether the rest has a name that was made or removed meanwhile is open.
    let mut once = BTreeSet::new();
    for name in first.iter().chain(&rest).filter(|name| Some(&name[..]) != touched) {
        if !once.insert(name.clone()) {
            return Ok(Seen::Wrong(format!("listed twice: {}", name.escape_ascii())));
        }
    }
    fs::seek(&dir, SeekFrom::Start(cookie))?;
    let again: Result<Vec<_>, Errno> = {
        let mut entries = RawDir::new(&dir, &mut buffer);
        let mut names = Vec::new();
        loop {
            match entries.next() {
                None => break Ok(names),
                Some(Err(error)) => break Err(error),
                Some(Ok(entry)) => names.push(entry.file_name().to_bytes().to_vec()),
            }
        }
    };
    let untouched = |names: Vec<Vec<u8>>| -> BTreeSet<Vec<u8>> {
        names.into_iter().filter(|name| Some(&name[..]) != touched).collect()
    };
    let (again, rest) = (untouched(again?), untouched(rest));
    if again != rest {
        return Ok(Seen::Wrong(format!("after seekdir: {again:?}, before: {rest:?}")));
    }
    once.insert(format!("change: {:?}", changed.map(|(_, done)| done)).into_bytes());
    Ok(Seen::Names(once))
}

fn attributes(inner: &mut Inner, op: &Op) -> Answer {
    match op {
        Op::Truncate { path, size } => done(truncate(path, *size)),
        Op::Chmod { target, mode } => {
            let mode = Mode::from_raw_mode(*mode);
            done(match target {
                Target::Path(path) | Target::Link(path) => {
                    fs::chmodat(CWD, path.as_str(), mode, AtFlags::empty())
                }
                Target::Slot(slot) => fs::fchmod(inner.fd(*slot)?, mode),
            })
        }
        Op::Chown { target, uid, gid } => {
            let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
            done(match target {
                Target::Path(path) => fs::chownat(CWD, path.as_str(), uid, gid, AtFlags::empty()),
                Target::Link(path) => fs::chownat(CWD, path.as_str(), uid, gid, AtFlags::SYMLINK_NOFOLLOW),
                Target::Slot(slot) => fs::fchown(inner.fd(*slot)?, uid, gid),
            })
        }
        Op::Utimens { target, atime, mtime } => {
            let time = |time: &SetTime| match *time {
                SetTime::Now => Timespec { tv_sec: 0, tv_nsec: fs::UTIME_NOW },
                SetTime::Omit => Timespec { tv_sec: 0, tv_nsec: fs::UTIME_OMIT },
                SetTime::At(tv_sec, tv_nsec) => Timespec { tv_sec, tv_nsec },
            };
            let times = Timestamps { last_access: time(atime), last_modification: time(mtime) };
            done(match target {
                Target::Path(path) => fs::utimensat(CWD, path.as_str(), &times, AtFlags::empty()),
                Target::Link(path) => fs::utimensat(CWD, path.as_str(), &times, AtFlags::SYMLINK_NOFOLLOW),
                Target::Slot(slot) => fs::futimens(inner.fd(*slot)?, &times),
            })
        }
        Op::Access { path, mode, effective } => {
            let flags = if *effective { AtFlags::EACCESS } else { AtFlags::empty() };
            done(fs::accessat(CWD, path.as_str(), AccessMode::from_bits_retain(*mode), flags))
        }
        Op::Stat { target } => Ok(Seen::Stat(Box::new(Stat::of_target(inner, target)?))),
        _ => Err(Errno::NOSYS),
    }
}

fn truncate(path: &str, size: u64) -> Result<(), Errno> {
    let path = CString::new(path).map_err(|_| Errno::INVAL)?;
    raw::truncate(&path, size).map_err(|error| errno(&error))
}

fn xattrs(inner: &mut Inner, op: &Op) -> Answer {
    match op {
        Op::SetXattr { target, name, value, flags } => set_xattr(inner, target, name, value, *flags),
        Op::FillXattr { target, name, len, flags } => {
            set_xattr(inner, target, name, &vec![b'f'; *len], *flags)
        }
        Op::GetXattr { target, name } => {
            let mut value = vec![0; 1 << 16];
            let len = match target {
                Target::Path(path) => fs::getxattr(path.as_str(), name.as_str(), &mut value[..]),
                Target::Link(path) => fs::lgetxattr(path.as_str(), name.as_str(), &mut value[..]),
                Target::Slot(slot) => fs::fgetxattr(inner.fd(*slot)?, name.as_str(), &mut value[..]),
            }?;
            value.truncate(len);
            Ok(Seen::Bytes(value))
        }
        Op::ListXattr { target } => {
            let mut list = vec![0; 1 << 16];
            let len = match target {
                Target::Path(path) => fs::listxattr(path.as_str(), &mut list[..]),
                Target::Link(path) => fs::llistxattr(path.as_str(), &mut list[..]),
                Target::Slot(slot) => fs::flistxattr(inner.fd(*slot)?, &mut list[..]),
            }?;
            Ok(Seen::Names(xattr_names(&list[..len])))
        }
        Op::RemoveXattr { target, name } => done(remove_xattr(inner, target, name)),
        _ => Err(Errno::NOSYS),
    }
}

/// removexattr(2).
pub(super) fn remove_xattr(inner: &Inner, target: &Target, name: &str) -> Result<(), Errno> {
    match target {
        Target::Path(path) => fs::removexattr(path.as_str(), name),
        Target::Link(path) => fs::lremovexattr(path.as_str(), name),
        Target::Slot(slot) => fs::fremovexattr(inner.fd(*slot)?, name),
    }
}

/// The names in what listxattr(2) returns. XFS lists its own names of ACLs too.
pub(super) fn xattr_names(list: &[u8]) -> BTreeSet<Vec<u8>> {
    let names = list
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty() && !name.starts_with(b"trusted.SGI_ACL_"));
    names.map(<[u8]>::to_vec).collect()
}

fn set_xattr(inner: &Inner, target: &Target, name: &str, value: &[u8], flags: u32) -> Answer {
    let flags = XattrFlags::from_bits_retain(flags);
    done(match target {
        Target::Path(path) => fs::setxattr(path.as_str(), name, value, flags),
        Target::Link(path) => fs::lsetxattr(path.as_str(), name, value, flags),
        Target::Slot(slot) => fs::fsetxattr(inner.fd(*slot)?, name, value, flags),
    })
}
