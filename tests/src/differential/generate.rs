//! The strategy that makes sequences of operations.
//!
//! Paths are relative to the root of the tree (to the directory in slot [`Step::cwd`], if there is one) and few, so that operations
//! meet each other: eight directories, some of them reached in two ways, and six names in each.

use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;
use proptest::sample::select;

use super::ops::{
    Access, Lock, LockKind, Meanwhile, NodeKind, Op, OpenFlag, RenameFlag, SLOTS, SetTime, Step, Target,
    User, Whence,
};

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
        1 => target().prop_map(|target| Op::Handle { target }),
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
pub(super) fn step() -> impl Strategy<Value = Step> {
    let by = select(vec![User::Root, User::Root, User::Root, User::Member, User::Member, User::Other]);
    let umask = select(vec![0o022, 0o022, 0, 0o077]);
    (by, umask, weighted(0.05, slot()), op()).prop_map(|(by, umask, cwd, op)| Step { by, umask, cwd, op })
}
