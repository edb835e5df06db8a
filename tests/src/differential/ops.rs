//! The operations, and the strategy that makes sequences of them.
//!
//! Paths are relative to the root of the tree (to the directory in slot [`Step::cwd`], if there is one) and few, so that operations
//! meet each other: eight directories, some of them reached in two ways, and six names in each.

use std::fmt;

use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;
use proptest::sample::select;
use serde::{Deserialize, Serialize};

/// Open descriptors that a sequence may have at a time.
pub const SLOTS: u8 = 4;

/// One operation by one user.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Who does it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub by: User,
    /// The user's umask.
    #[serde(default = "usual_umask", skip_serializing_if = "is_usual_umask")]
    pub umask: u32,
    /// The slot of the directory that paths start at.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cwd: Option<u8>,
    /// What.
    pub op: Op,
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

const fn usual_umask() -> u32 {
    0o022
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_usual_umask(umask: &u32) -> bool {
    *umask == usual_umask()
}

/// Whose rights an operation has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum User {
    /// All rights.
    #[default]
    Root,
    /// Owner of some files, and in their groups.
    Member,
    /// In none of these groups.
    Other,
}

/// A file by path or by descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// The path, following a symbolic link at its end.
    Path(String),
    /// The path itself, also if it is a symbolic link.
    Link(String),
    /// An open descriptor.
    Slot(u8),
}

/// The access mode of open(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// `O_RDONLY`.
    Read,
    /// `O_WRONLY`.
    Write,
    /// `O_RDWR`.
    Both,
    /// `O_PATH`.
    Path,
}

/// A flag of open(2). `O_NONBLOCK` is always given: nobody is at the other end of a fifo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "open(2) has them")]
pub enum OpenFlag {
    Creat,
    Excl,
    Trunc,
    Append,
    Directory,
    Nofollow,
    Sync,
    Direct,
}

/// What lseek(2) counts from or looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "lseek(2) has them")]
pub enum Whence {
    Set,
    Cur,
    End,
    Data,
    Hole,
}

/// What utimensat(2) does with one of the two times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SetTime {
    /// `UTIME_NOW`.
    Now,
    /// `UTIME_OMIT`.
    Omit,
    /// Seconds and nanoseconds.
    At(i64, i64),
}

/// What mknod(2) makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeKind {
    /// A regular file.
    File,
    /// A fifo.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    Char(u32, u32),
    /// A block device.
    Block(u32, u32),
}

/// Flags of renameat2(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "renameat2(2) has them")]
pub enum RenameFlag {
    #[default]
    Plain,
    Noreplace,
    Exchange,
    Whiteout,
    /// Two flags that exclude each other.
    Both,
}

/// The locks of flock(2) and fcntl(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "fcntl(2) has them")]
pub enum Lock {
    Shared,
    Exclusive,
    Unlock,
}

/// Which of the three kinds of lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LockKind {
    /// flock(2).
    Flock,
    /// `F_OFD_SETLK`.
    Ofd,
    /// `F_SETLK`.
    Posix,
}

/// A change of a directory while it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Meanwhile {
    /// A file with this name is made.
    Create(String),
    /// This name is removed.
    Unlink(String),
}

/// The operations. Those that the kernel does not see (the last ones) are done by the test to both sides alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "each is the system call of its name; slots are descriptors")]
pub enum Op {
    Open {
        slot: u8,
        path: String,
        access: Access,
        flags: Vec<OpenFlag>,
        mode: u32,
    },
    Close {
        slot: u8,
    },
    Read {
        slot: u8,
        len: usize,
    },
    Pread {
        slot: u8,
        at: u64,
        len: usize,
    },
    Write {
        slot: u8,
        len: usize,
        byte: u8,
    },
    Pwrite {
        slot: u8,
        at: u64,
        len: usize,
        byte: u8,
    },
    Seek {
        slot: u8,
        whence: Whence,
        at: i64,
    },
    Ftruncate {
        slot: u8,
        size: u64,
    },
    Truncate {
        path: String,
        size: u64,
    },
    Fallocate {
        slot: u8,
        mode: u32,
        at: u64,
        len: u64,
    },
    CopyRange {
        from: u8,
        to: u8,
        from_at: u64,
        to_at: u64,
        len: usize,
    },
    /// Maps the first bytes of the file, reads them, and with a `byte` writes it over those at `at` and syncs.
    Map {
        slot: u8,
        at: usize,
        byte: Option<u8>,
    },
    Fsync {
        slot: u8,
        data_only: bool,
    },
    Mkdir {
        path: String,
        mode: u32,
    },
    Rmdir {
        path: String,
    },
    Mknod {
        path: String,
        kind: NodeKind,
        mode: u32,
    },
    Symlink {
        target: String,
        path: String,
    },
    Readlink {
        path: String,
    },
    Link {
        from: String,
        to: String,
        follow: bool,
    },
    /// linkat(2) with `AT_EMPTY_PATH`.
    LinkSlot {
        slot: u8,
        to: String,
    },
    Unlink {
        path: String,
    },
    Rename {
        from: String,
        to: String,
        flag: RenameFlag,
    },
    Chmod {
        target: Target,
        mode: u32,
    },
    Chown {
        target: Target,
        uid: Option<u32>,
        gid: Option<u32>,
    },
    Utimens {
        target: Target,
        atime: SetTime,
        mtime: SetTime,
    },
    SetXattr {
        target: Target,
        name: String,
        value: Vec<u8>,
        flags: u32,
    },
    /// As `SetXattr`, with a value of this many bytes.
    FillXattr {
        target: Target,
        name: String,
        len: usize,
        flags: u32,
    },
    GetXattr {
        target: Target,
        name: String,
    },
    ListXattr {
        target: Target,
    },
    RemoveXattr {
        target: Target,
        name: String,
    },
    Access {
        path: String,
        mode: u32,
        effective: bool,
    },
    Stat {
        target: Target,
    },
    /// Lists a directory in calls of about `chunk` names, with a change after the first of them.
    List {
        path: String,
        chunk: usize,
        meanwhile: Option<Meanwhile>,
    },
    /// name_to_handle_at(2), kept beside the slots.
    Handle {
        slot: u8,
        target: Target,
    },
    /// open_by_handle_at(2), for reading.
    OpenHandle {
        slot: u8,
    },
    Lock {
        slot: u8,
        kind: LockKind,
        lock: Lock,
        at: i64,
        len: i64,
    },
    /// Compares everything, content and extended attributes too.
    Compare,
    /// The kernel forgets the inodes and names that nobody uses.
    DropCaches,
    /// The VE is unmounted and mounted again. Closes all slots, as the next two do.
    Remount,
    /// The daemon ends and is started again.
    Restart,
    /// The daemon is killed and started again.
    Kill,
}

const DIRS: [&str; 11] = ["", "", "d/", "d/", "d/e/", "s/", "t/", "p/", "x/", "d/c/", "r/"];
const LEAVES: [&str; 6] = ["a", "b", "c", "x", "y", "z"];
const OTHER_PATHS: [&str; 18] = [
    "d", "d/e", "s", "t", "p", "r", "x", "d/c", ".", "", "d/..", "d/.", "a/", "d/", "x/", "d/e/../a", "a/b",
    "d/e/.",
];

fn path() -> BoxedStrategy<String> {
    prop_oneof![
        12 => (select(&DIRS[..]), select(&LEAVES[..])).prop_map(|(dir, leaf)| format!("{dir}{leaf}")),
        3 => select(&OTHER_PATHS[..]).prop_map(str::to_owned),
        1 => (select(&DIRS[..]), select(&LEAVES[..])).prop_map(|(dir, leaf)| format!("{dir}{leaf}/")),
    ]
    .boxed()
}

fn slot() -> std::ops::Range<u8> {
    0..SLOTS
}

fn target() -> BoxedStrategy<Target> {
    prop_oneof![
        4 => path().prop_map(Target::Path),
        3 => path().prop_map(Target::Link),
        3 => slot().prop_map(Target::Slot),
    ]
    .boxed()
}

fn offsets() -> impl Strategy<Value = u64> {
    select(vec![0, 0, 1, 100, 4095, 4096, 5000, 8192, 12288, 20_000, 65_536, 131_072, 250_000])
}

fn lens() -> impl Strategy<Value = usize> {
    select(vec![0, 1, 10, 100, 4096, 4096, 5000, 8192, 70_000])
}

fn modes() -> impl Strategy<Value = u32> {
    select(vec![
        0o644, 0o666, 0o755, 0o777, 0o600, 0, 0o4755, 0o2755, 0o2745, 0o6777, 0o1777, 0o7777, 0o070, 0o2775,
        0o4644,
    ])
}

fn ids() -> impl Strategy<Value = Option<u32>> {
    select(vec![None, Some(0), Some(50), Some(100), Some(1000), Some(2000)])
}

fn times() -> impl Strategy<Value = SetTime> {
    prop_oneof![
        2 => Just(SetTime::Now),
        2 => Just(SetTime::Omit),
        3 => select(vec![
            SetTime::At(1_000_000_000, 123_456_789),
            SetTime::At(0, 0),
            SetTime::At(-1, 999_999_999),
            SetTime::At(-1_000_000_000, 1),
            SetTime::At(5_000_000_000, 999_999_999),
            SetTime::At(13_000_000_000, 0),
            SetTime::At(1, 1_000_000_000),
        ]),
    ]
}

/// acl(5) as the extended attribute has it.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        bytes.extend(tag.to_le_bytes().into_iter().chain(perm.to_le_bytes()).chain(id.to_le_bytes()));
    }
    bytes
}

fn acls() -> impl Strategy<Value = Vec<u8>> {
    const NONE: u32 = u32::MAX;
    select(vec![
        acl(&[(1, 6, NONE), (4, 4, NONE), (0x20, 4, NONE)]),
        acl(&[(1, 7, NONE), (2, 7, 1000), (4, 5, NONE), (0x10, 7, NONE), (0x20, 5, NONE)]),
        acl(&[(1, 7, NONE), (2, 0, 2000), (4, 7, NONE), (8, 6, 50), (0x10, 6, NONE), (0x20, 0, NONE)]),
        acl(&[(1, 4, NONE), (4, 0, NONE), (0x10, 4, NONE), (0x20, 0, NONE)]),
        // No mask, wrong order, a double, an unknown tag, no entries, no version, one byte too many.
        acl(&[(1, 7, NONE), (2, 7, 1000), (4, 5, NONE), (0x20, 5, NONE)]),
        acl(&[(4, 5, NONE), (1, 7, NONE), (0x20, 5, NONE)]),
        acl(&[(1, 7, NONE), (2, 7, 9), (2, 7, 9), (4, 5, NONE), (0x10, 7, NONE), (0x20, 5, NONE)]),
        acl(&[(1, 7, NONE), (4, 5, NONE), (0x40, 5, NONE)]),
        acl(&[]),
        Vec::new(),
        [acl(&[(1, 7, NONE), (4, 5, NONE), (0x20, 5, NONE)]), vec![0]].concat(),
    ])
}

fn xattr_names() -> impl Strategy<Value = String> {
    select(vec![
        "user.one",
        "user.one",
        "user.two",
        "trusted.one",
        "security.one",
        "security.capability",
        "system.posix_acl_access",
        "system.posix_acl_default",
        "system.other",
        "other.one",
        "user.",
        "one",
    ])
    .prop_map(str::to_owned)
}

fn xattr_flags() -> impl Strategy<Value = u32> {
    prop_oneof![4 => Just(0), 1 => Just(1), 1 => Just(2), 1 => Just(3)]
}

fn set_xattr() -> impl Strategy<Value = Op> {
    let values = prop_oneof![3 => select(vec![vec![], b"v".to_vec(), b"value".to_vec()]), 1 => acls()];
    let acl_names =
        select(vec!["system.posix_acl_access", "system.posix_acl_default"]).prop_map(str::to_owned);
    let capability = vec![1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    prop_oneof![
        3 => (target(), xattr_names(), values, xattr_flags())
            .prop_map(|(target, name, value, flags)| Op::SetXattr { target, name, value, flags }),
        3 => (target(), acl_names, acls(), xattr_flags())
            .prop_map(|(target, name, value, flags)| Op::SetXattr { target, name, value, flags }),
        1 => target().prop_map(move |target| Op::SetXattr {
            target,
            name: "security.capability".to_owned(),
            value: capability.clone(),
            flags: 0,
        }),
        1 => (target(), xattr_names(), select(vec![300, 65_537]), xattr_flags())
            .prop_map(|(target, name, len, flags)| Op::FillXattr { target, name, len, flags }),
    ]
}

fn open() -> impl Strategy<Value = Op> {
    let access =
        select(vec![Access::Read, Access::Read, Access::Both, Access::Both, Access::Write, Access::Path]);
    let flag = select(vec![
        OpenFlag::Creat,
        OpenFlag::Creat,
        OpenFlag::Creat,
        OpenFlag::Excl,
        OpenFlag::Trunc,
        OpenFlag::Append,
        OpenFlag::Directory,
        OpenFlag::Nofollow,
        OpenFlag::Sync,
        OpenFlag::Direct,
    ]);
    (slot(), path(), access, vec(flag, 0..3), modes())
        .prop_map(|(slot, path, access, flags, mode)| Op::Open { slot, path, access, flags, mode })
}

fn data() -> impl Strategy<Value = Op> {
    let whence =
        select(vec![Whence::Set, Whence::Cur, Whence::End, Whence::Data, Whence::Hole, Whence::Data]);
    let lock_kinds = select(vec![LockKind::Flock, LockKind::Ofd, LockKind::Posix]);
    let locks = select(vec![Lock::Shared, Lock::Exclusive, Lock::Unlock]);
    // All modes of falloc.h, with and without KEEP_SIZE, and some that make no sense.
    let fallocate = select(vec![0, 1, 2, 3, 3, 8, 0x10, 0x11, 0x20, 0x40, 0x41, 0x80, 0x12]);
    prop_oneof![
        3 => (slot(), lens()).prop_map(|(slot, len)| Op::Read { slot, len }),
        3 => (slot(), offsets(), lens()).prop_map(|(slot, at, len)| Op::Pread { slot, at, len }),
        4 => (slot(), lens(), 1u8..4).prop_map(|(slot, len, byte)| Op::Write { slot, len, byte }),
        5 => (slot(), offsets(), lens(), 1u8..4)
            .prop_map(|(slot, at, len, byte)| Op::Pwrite { slot, at, len, byte }),
        3 => (slot(), whence, -10i64..20_000).prop_map(|(slot, whence, at)| Op::Seek { slot, whence, at }),
        2 => (slot(), offsets()).prop_map(|(slot, size)| Op::Ftruncate { slot, size }),
        2 => (path(), offsets()).prop_map(|(path, size)| Op::Truncate { path, size }),
        4 => (slot(), fallocate, offsets(), offsets())
            .prop_map(|(slot, mode, at, len)| Op::Fallocate { slot, mode, at, len }),
        3 => (slot(), slot(), offsets(), offsets(), lens())
            .prop_map(|(from, to, from_at, to_at, len)| Op::CopyRange { from, to, from_at, to_at, len }),
        3 => (slot(), select(vec![0usize, 10, 4095, 4990]), proptest::option::of(1u8..4))
            .prop_map(|(slot, at, byte)| Op::Map { slot, at, byte }),
        1 => (slot(), any::<bool>()).prop_map(|(slot, data_only)| Op::Fsync { slot, data_only }),
        2 => (slot(), lock_kinds, locks, select(vec![0i64, 0, 10]), select(vec![0i64, 5, 10]))
            .prop_map(|(slot, kind, lock, at, len)| Op::Lock { slot, kind, lock, at, len }),
    ]
}

fn names() -> impl Strategy<Value = Op> {
    let node = select(vec![
        NodeKind::File,
        NodeKind::Fifo,
        NodeKind::Socket,
        NodeKind::Char(0, 0),
        NodeKind::Char(1, 3),
        NodeKind::Block(120, 300),
    ]);
    let rename = select(vec![
        RenameFlag::Plain,
        RenameFlag::Plain,
        RenameFlag::Plain,
        RenameFlag::Noreplace,
        RenameFlag::Exchange,
        RenameFlag::Exchange,
        RenameFlag::Whiteout,
        RenameFlag::Both,
    ]);
    let long = "l".repeat(255);
    let too_long = "l".repeat(256);
    let targets = select(vec!["a", "d", "../a", "d/e", "nowhere", ".", ""]).prop_map(str::to_owned);
    let targets =
        prop_oneof![8 => targets, 1 => select(vec![1023, 4096, 200]).prop_map(|len: usize| "y".repeat(len))];
    prop_oneof![
        4 => (path(), modes()).prop_map(|(path, mode)| Op::Mkdir { path, mode }),
        4 => path().prop_map(|path| Op::Rmdir { path }),
        3 => (path(), node, modes()).prop_map(|(path, kind, mode)| Op::Mknod { path, kind, mode }),
        2 => (targets, path()).prop_map(|(target, path)| Op::Symlink { target, path }),
        1 => path().prop_map(|path| Op::Readlink { path }),
        4 => (path(), path(), any::<bool>()).prop_map(|(from, to, follow)| Op::Link { from, to, follow }),
        1 => (slot(), path()).prop_map(|(slot, to)| Op::LinkSlot { slot, to }),
        6 => path().prop_map(|path| Op::Unlink { path }),
        10 => (path(), path(), rename).prop_map(|(from, to, flag)| Op::Rename { from, to, flag }),
        1 => (select(&DIRS[..]), select(vec![long, too_long]), path())
            .prop_map(|(dir, name, from)| Op::Link { from, to: format!("{dir}{name}"), follow: false }),
    ]
}

fn attributes() -> impl Strategy<Value = Op> {
    let changes = (select(&LEAVES[..]), any::<bool>()).prop_map(|(name, create)| {
        if create { Meanwhile::Create(name.to_owned()) } else { Meanwhile::Unlink(name.to_owned()) }
    });
    prop_oneof![
        4 => (target(), modes()).prop_map(|(target, mode)| Op::Chmod { target, mode }),
        4 => (target(), ids(), ids()).prop_map(|(target, uid, gid)| Op::Chown { target, uid, gid }),
        4 => (target(), times(), times())
            .prop_map(|(target, atime, mtime)| Op::Utimens { target, atime, mtime }),
        6 => set_xattr(),
        2 => (target(), xattr_names()).prop_map(|(target, name)| Op::GetXattr { target, name }),
        1 => target().prop_map(|target| Op::ListXattr { target }),
        2 => (target(), xattr_names()).prop_map(|(target, name)| Op::RemoveXattr { target, name }),
        2 => (path(), 0u32..8, any::<bool>())
            .prop_map(|(path, mode, effective)| Op::Access { path, mode, effective }),
        1 => target().prop_map(|target| Op::Stat { target }),
        2 => (path(), select(vec![1usize, 3, 100]), weighted(0.6, changes))
            .prop_map(|(path, chunk, meanwhile)| Op::List { path, chunk, meanwhile }),
        1 => (slot(), target()).prop_map(|(slot, target)| Op::Handle { slot, target }),
        1 => slot().prop_map(|slot| Op::OpenHandle { slot }),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let between = prop_oneof![
        20 => Just(Op::Compare),
        10 => Just(Op::Remount),
        4 => Just(Op::DropCaches),
        2 => Just(Op::Restart),
        2 => Just(Op::Kill),
    ];
    prop_oneof![
        60 => open(),
        10 => slot().prop_map(|slot| Op::Close { slot }),
        110 => data(),
        110 => names(),
        90 => attributes(),
        8 => between,
    ]
}

/// One step.
pub fn step() -> impl Strategy<Value = Step> {
    let by = select(vec![User::Root, User::Root, User::Root, User::Member, User::Member, User::Other]);
    let umask = select(vec![0o022, 0o022, 0, 0o077]);
    (by, umask, weighted(0.05, slot()), op()).prop_map(|(by, umask, cwd, op)| Step { by, umask, cwd, op })
}
