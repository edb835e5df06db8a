//! What `stat` tells of a file, and the relation between the numbers and times of the two trees.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::AsFd;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, CWD, FileType, Statx, StatxFlags, StatxTimestamp, statx};
use rustix::io::Errno;

use super::ops::Target;
use super::raw;
use super::side::Inner;

/// `st_blocks` of a block of 4 KiB.
const PAGE_BLOCKS: u64 = 8;

/// Seconds and nanoseconds.
pub(super) type Time = (i64, u32);

/// The attributes of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) ino: u64,
    /// The host filesystem uses inode numbers again; with what a file handle says, its generation, they are unique.
    generation: u64,
    pub(super) kind: FileType,
    pub(super) perm: u32,
    pub(super) nlink: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) rdev: (u32, u32),
    pub(super) size: u64,
    pub(super) blocks: u64,
    pub(super) atime: Time,
    pub(super) mtime: Time,
    pub(super) ctime: Time,
}

impl Stat {
    /// statx(2).
    pub(super) fn of<P: rustix::path::Arg>(at: impl AsFd, path: P, flags: AtFlags) -> Result<Stat, Errno> {
        path.into_with_c_str(|path| {
            let stat = Stat::from(&statx(&at, path, flags, StatxFlags::BASIC_STATS)?);
            let follow = if flags.contains(AtFlags::SYMLINK_NOFOLLOW) { 0 } else { libc::AT_SYMLINK_FOLLOW };
            let empty = if flags.contains(AtFlags::EMPTY_PATH) { libc::AT_EMPTY_PATH } else { 0 };
            let mut generation = DefaultHasher::new();
            // A VE has no file handles.
            raw::name_to_handle(at.as_fd(), path, follow | empty).ok().hash(&mut generation);
            Ok(Stat { generation: generation.finish(), ..stat })
        })
    }

    /// The same for what an operation is done to.
    pub(super) fn of_target(inner: &Inner, target: &Target) -> Result<Stat, Errno> {
        match target {
            Target::Path(path) => Stat::of(CWD, path.as_str(), AtFlags::empty()),
            Target::Link(path) => Stat::of(CWD, path.as_str(), AtFlags::SYMLINK_NOFOLLOW),
            Target::Slot(slot) => Stat::of(inner.fd(*slot)?, "", AtFlags::EMPTY_PATH),
        }
    }

    /// Names the file among all that the plain tree ever had.
    pub(super) fn key(&self) -> Key {
        (self.ino, self.generation)
    }
}

impl From<&Statx> for Stat {
    fn from(raw: &Statx) -> Self {
        let time = |time: StatxTimestamp| (time.tv_sec, time.tv_nsec);
        Stat {
            ino: raw.stx_ino,
            generation: 0,
            kind: FileType::from_raw_mode(raw.stx_mode.into()),
            perm: u32::from(raw.stx_mode) & 0o7777,
            nlink: raw.stx_nlink,
            uid: raw.stx_uid,
            gid: raw.stx_gid,
            rdev: (raw.stx_rdev_major, raw.stx_rdev_minor),
            size: raw.stx_size,
            blocks: raw.stx_blocks,
            atime: time(raw.stx_atime),
            mtime: time(raw.stx_mtime),
            ctime: time(raw.stx_ctime),
        }
    }
}

/// A file of the plain tree.
pub(super) type Key = (u64, u64);

type Times = (Time, Time, Time);

/// How the two trees correspond.
pub(super) struct Relation {
    to_ve: HashMap<Key, u64>,
    to_plain: HashMap<u64, Key>,
    /// The times of both sides when they were last compared.
    times: HashMap<Key, (Times, Times)>,
    /// Regular files whose content was never private in the VE.
    pub(super) on_blob: HashSet<Key>,
    /// No time that the kernel has set is before this.
    begin: Time,
}

impl Relation {
    pub(super) fn new() -> Relation {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is right");
        Relation {
            to_ve: HashMap::new(),
            to_plain: HashMap::new(),
            times: HashMap::new(),
            on_blob: HashSet::new(),
            // Plain trees are made before.
            begin: (now.as_secs() as i64 - 3600, 0),
        }
    }

    /// The next comparison of this file's times has nothing before it.
    pub(super) fn forget_times(&mut self, key: Key) {
        self.times.remove(&key);
    }

    /// The file of the plain tree was given another counterpart; `copy` takes over the old one.
    pub(super) fn detach(&mut self, key: Key, copy: Key) {
        if let Some(ino) = self.to_ve.remove(&key) {
            self.to_ve.insert(copy, ino);
            self.to_plain.insert(ino, copy);
        }
        self.times.remove(&key);
        self.on_blob.remove(&key);
    }

    /// Says what differs between a file and its counterpart.
    pub(super) fn compare(&mut self, plain: &Stat, ve: &Stat) -> Result<(), String> {
        let key = plain.key();
        let (now_plain, now_ve) =
            (*self.to_ve.entry(key).or_insert(ve.ino), *self.to_plain.entry(ve.ino).or_insert(key));
        if now_plain != ve.ino {
            return Err(format!("st_ino was {now_plain} and is {} in the VE; the file is the same", ve.ino));
        }
        if now_ve != key {
            return Err(format!("st_ino {} in the VE was another file's, {now_ve:?}; it is {key:?}", ve.ino));
        }
        let facts = |stat: &Stat| {
            let size = if stat.kind == FileType::Directory { 0 } else { stat.size };
            (stat.kind, stat.perm, stat.nlink, stat.uid, stat.gid, stat.rdev, size)
        };
        if facts(plain) != facts(ve) {
            return Err(format!(
                "(kind, perm, nlink, uid, gid, rdev, size): {:?} / {:?}",
                facts(plain),
                facts(ve)
            ));
        }
        // The host filesystem counts a block for extended attributes.
        let without_xattrs = plain.blocks.saturating_sub(PAGE_BLOCKS);
        if plain.kind == FileType::RegularFile
            && (ve.blocks == 0 && without_xattrs > 0 || ve.blocks > 0 && plain.blocks == 0)
        {
            return Err(format!("blocks: {} / {}", plain.blocks, ve.blocks));
        }
        self.compare_times(key, plain, ve)
    }

    fn compare_times(&mut self, key: Key, plain: &Stat, ve: &Stat) -> Result<(), String> {
        let now = |stat: &Stat| (stat.atime, stat.mtime, stat.ctime);
        let before = self.times.insert(key, (now(plain), now(ve)));
        for (what, plain, ve) in [("atime", plain.atime, ve.atime), ("mtime", plain.mtime, ve.mtime)] {
            // Times that a program has set are the same; those that the kernel has set are at least both recent.
            let end = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is right");
            let recent = |time: Time| time >= self.begin && time.0 <= end.as_secs() as i64;
            if plain != ve && !(recent(plain) && recent(ve)) {
                return Err(format!("{what}: {plain:?} / {ve:?}"));
            }
        }
        let Some((plain_before, ve_before)) = before else { return Ok(()) };
        let moved = |(a, m, c): Times, now: &Stat| (a != now.atime, m != now.mtime, c != now.ctime);
        let (plain_moved, ve_moved) = (moved(plain_before, plain), moved(ve_before, ve));
        if plain_moved != ve_moved {
            return Err(format!(
                "(atime, mtime, ctime) moved: {plain_moved:?} / {ve_moved:?}; now {:?} / {:?}",
                now(plain),
                now(ve)
            ));
        }
        Ok(())
    }
}
