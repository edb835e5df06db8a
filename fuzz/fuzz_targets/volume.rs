//! Arbitrary operations with arbitrary arguments, as a kernel might send them: unknown inode numbers, bad names, huge offsets, odd modes.
//! Never a panic, and the volume's invariants hold afterwards, also after it was opened anew.
#![no_main]

use std::sync::LazyLock;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use rustix::fs::{FallocateFlags, SeekFrom};
use vzfs::types::{FileKind, Ino, NameRef, Timestamp, VeId};
use vzfs::volume::{Caller, NewNode, RenameMode, SetAttr, SetTime, Sharing, Volume, XattrMode};
use vzfs_fuzz::{FuzzName, World};

static WORLD: LazyLock<World> = LazyLock::new(World::new);

#[derive(Arbitrary, Debug)]
enum FuzzIno {
    /// One that an operation has returned, or the root.
    Known(u8),
    Raw(u64),
}

#[derive(Arbitrary, Debug)]
enum Number {
    Small(u16),
    Medium(u32),
    Any(u64),
}

#[derive(Arbitrary, Debug)]
struct FuzzSet {
    perm: Option<u16>,
    uid: Option<u32>,
    gid: Option<u32>,
    size: Option<Number>,
    atime: Option<(i64, u32)>,
    mtime: Option<Option<(i64, u32)>>,
}

#[derive(Arbitrary, Debug)]
enum Op {
    Lookup {
        dir: FuzzIno,
        name: FuzzName,
    },
    Attr {
        ino: FuzzIno,
    },
    SetAttr {
        ino: FuzzIno,
        set: FuzzSet,
        uid: u32,
    },
    Create {
        dir: FuzzIno,
        name: FuzzName,
        kind: u8,
        perm: u16,
        umask: u16,
        rdev: u32,
        target: Vec<u8>,
        uid: u32,
    },
    Link {
        ino: FuzzIno,
        dir: FuzzIno,
        name: FuzzName,
    },
    Unlink {
        dir: FuzzIno,
        name: FuzzName,
    },
    Rmdir {
        dir: FuzzIno,
        name: FuzzName,
    },
    Rename {
        from: FuzzIno,
        name: FuzzName,
        to: FuzzIno,
        new: FuzzName,
        mode: u8,
    },
    Open {
        ino: FuzzIno,
        write: bool,
        passthrough: bool,
    },
    Release {
        handle: u8,
    },
    Read {
        ino: FuzzIno,
        offset: Number,
        len: u16,
    },
    Write {
        ino: FuzzIno,
        offset: Number,
        bytes: Vec<u8>,
        keep: bool,
    },
    Allocate {
        ino: FuzzIno,
        offset: Number,
        len: Number,
        mode: u32,
    },
    Copy {
        from: FuzzIno,
        at: Number,
        to: FuzzIno,
        to_at: Number,
        len: Number,
    },
    Seek {
        ino: FuzzIno,
        offset: Number,
        hole: bool,
    },
    ReadDir {
        dir: FuzzIno,
        cookie: Number,
        count: u8,
    },
    Xattr {
        ino: FuzzIno,
        name: Vec<u8>,
        value: Vec<u8>,
        mode: u8,
    },
    GrownXattr {
        ino: FuzzIno,
        name: u8,
        len: u32,
    },
    RemoveXattr {
        ino: FuzzIno,
        name: Vec<u8>,
    },
    Sync {
        ino: FuzzIno,
    },
    Forget {
        ino: FuzzIno,
    },
    Reopen,
}

impl Number {
    fn get(&self) -> u64 {
        match self {
            Number::Small(n) => (*n).into(),
            Number::Medium(n) => (*n).into(),
            Number::Any(n) => *n,
        }
    }
}

struct Run {
    ve: VeId,
    volume: Volume,
    known: Vec<Ino>,
    handles: Vec<(Ino, Sharing)>,
}

impl Run {
    fn open(ve: VeId) -> Volume {
        WORLD.open(ve).expect("a sound volume opens")
    }

    fn ino(&self, ino: &FuzzIno) -> Option<Ino> {
        match ino {
            FuzzIno::Known(index) => Some(self.known[*index as usize % self.known.len()]),
            FuzzIno::Raw(raw) => Ino::new(*raw),
        }
    }

    /// `None` when an argument is none that the kernel side lets through.
    fn step(&mut self, op: &Op) -> Option<()> {
        let name_of = |bytes: &Vec<u8>| NameRef::new(bytes).ok().map(NameRef::to_name);
        let name = |name: &FuzzName| name_of(&name.bytes());
        let volume = &self.volume;
        match op {
            Op::Lookup { dir, name: n } => {
                let found = volume.lookup(self.ino(dir)?, name(n)?.as_ref());
                self.known.extend(found.map(|attr| attr.ino));
            }
            Op::Attr { ino } => {
                let ino = self.ino(ino)?;
                let _ = (volume.attr(ino), volume.read_link(ino), volume.parent(ino));
            }
            Op::SetAttr { ino, set, uid } => {
                let time = |(secs, nanos): (i64, u32)| SetTime::At(Timestamp::new(secs, nanos));
                let set = SetAttr {
                    perm: set.perm,
                    uid: set.uid,
                    gid: set.gid,
                    size: set.size.as_ref().map(Number::get),
                    atime: set.atime.map(time),
                    mtime: set.mtime.map(|mtime| mtime.map_or(SetTime::Now, time)),
                };
                let (ino, caller) = (self.ino(ino)?, Caller { uid: *uid, gid: *uid });
                let _ = volume.set_attr(ino, set, caller);
                let _ = volume.chown_nothing(ino, caller);
            }
            Op::Create { dir, name: n, kind, perm, umask, rdev, target, uid } => {
                let kind = FileKind::from_u8(kind % 7 + 1)?;
                let new = NewNode { kind, perm: *perm, umask: *umask, rdev: *rdev, target };
                let made =
                    volume.create(self.ino(dir)?, name(n)?.as_ref(), new, Caller { uid: *uid, gid: *uid });
                self.known.extend(made.map(|attr| attr.ino));
            }
            Op::Link { ino, dir, name: n } => {
                let _ = volume.link(self.ino(ino)?, self.ino(dir)?, name(n)?.as_ref());
            }
            Op::Unlink { dir, name: n } => drop(volume.unlink(self.ino(dir)?, name(n)?.as_ref())),
            Op::Rmdir { dir, name: n } => drop(volume.rmdir(self.ino(dir)?, name(n)?.as_ref())),
            Op::Rename { from, name: n, to, new, mode } => {
                let modes = [
                    RenameMode::Replace,
                    RenameMode::NoReplace,
                    RenameMode::Exchange,
                    RenameMode::Whiteout(Caller::ROOT),
                ];
                let (from, to) = (self.ino(from)?, self.ino(to)?);
                let _ = volume.rename(
                    from,
                    name(n)?.as_ref(),
                    to,
                    name(new)?.as_ref(),
                    modes[*mode as usize % 4],
                );
            }
            Op::Open { ino, write, passthrough } => {
                let sharing = if *passthrough { Sharing::Passthrough } else { Sharing::Served };
                // All handles of a mount are of one kind.
                let sharing = self.handles.first().map_or(sharing, |handle| handle.1);
                let ino = self.ino(ino)?;
                if volume.open_file(ino, *write, sharing).is_ok() {
                    self.handles.push((ino, sharing));
                }
            }
            Op::Release { handle } => {
                if !self.handles.is_empty() {
                    let (ino, sharing) = self.handles.swap_remove(*handle as usize % self.handles.len());
                    volume.release(ino, sharing);
                }
            }
            Op::Read { ino, offset, len } => {
                let _ = volume.read(self.ino(ino)?, offset.get(), &mut vec![0; (*len).into()]);
            }
            Op::Write { ino, offset, bytes, keep } => {
                let _ = volume.write(self.ino(ino)?, offset.get(), bytes, *keep);
            }
            Op::Allocate { ino, offset, len, mode } => {
                // The host allocates what its limits allow: kept small, as the tests' host has to have it.
                let len = if len.get() < 1 << 40 { len.get() % (1 << 20) } else { len.get() };
                let mode = FallocateFlags::from_bits_retain(*mode);
                let _ = volume.fallocate(self.ino(ino)?, offset.get(), len, mode, Caller::ROOT);
            }
            Op::Copy { from, at, to, to_at, len } => {
                let (from, to) = ((self.ino(from)?, at.get()), (self.ino(to)?, to_at.get()));
                let _ = volume.copy_range(from, to, len.get() as usize, Caller::ROOT);
            }
            Op::Seek { ino, offset, hole } => {
                let from = if *hole { SeekFrom::Hole(offset.get()) } else { SeekFrom::Data(offset.get()) };
                let _ = volume.seek(self.ino(ino)?, from);
            }
            Op::ReadDir { dir, cookie, count } => {
                let (mut left, mut last) = (*count, cookie.get());
                let _ = volume.read_dir(self.ino(dir)?, cookie.get(), |entry| {
                    assert!(entry.cookie > last, "cookies go up");
                    last = entry.cookie;
                    left = left.saturating_sub(1);
                    left > 0
                });
            }
            Op::Xattr { ino, name, value, mode } => {
                let mode = [XattrMode::Any, XattrMode::Create, XattrMode::Replace, XattrMode::Neither]
                    [*mode as usize % 4];
                let ino = self.ino(ino)?;
                if volume.set_xattr(ino, name, value, mode, Caller { uid: 7, gid: 7 }).is_ok() {
                    let _ = volume.xattr(ino, name);
                }
            }
            Op::GrownXattr { ino, name, len } => {
                let (name, value) = (format!("user.{name}"), vec![0; *len as usize % 70_000]);
                let _ =
                    volume.set_xattr(self.ino(ino)?, name.as_bytes(), &value, XattrMode::Any, Caller::ROOT);
            }
            Op::RemoveXattr { ino, name } => {
                let ino = self.ino(ino)?;
                let _ = (volume.remove_xattr(ino, name), volume.xattr_names(ino));
            }
            Op::Sync { ino } => drop(volume.fsync(self.ino(ino)?, false)),
            Op::Forget { ino } => drop(volume.forget(self.ino(ino)?)),
            Op::Reopen => {
                self.handles.clear();
                self.volume = Run::open(self.ve);
            }
        }
        Some(())
    }

    fn assert_sound(&self) {
        assert_eq!(self.volume.check().expect("the tables can be read"), Vec::<String>::new());
    }
}

fuzz_target!(|ops: Vec<Op>| {
    let ve = WORLD.next_ve();
    let mut run = Run { ve, volume: Run::open(ve), known: vec![Ino::ROOT], handles: Vec::new() };
    for op in ops.iter().take(200) {
        run.step(op);
    }
    run.assert_sound();
    run.volume.changes().expect("a sound volume");
    run.handles.clear();
    run.volume = Run::open(ve);
    run.assert_sound();
    WORLD.remove_data(ve);
});
