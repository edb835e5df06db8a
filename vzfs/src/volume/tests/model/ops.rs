//! What programs may do.

use proptest::prelude::*;
use proptest::sample::select;

use super::*;

#[derive(Clone, Debug)]
pub(in crate::volume::tests) enum Op {
    Create { dir: usize, name: u8, kind: FileKind, perm: u16, umask: u16, uid: u32 },
    Unlink { dir: usize, name: u8 },
    Rmdir { dir: usize, name: u8 },
    Rename { dir: usize, name: u8, new_dir: usize, new_name: u8, mode: RenameMode },
    Link { node: usize, dir: usize, name: u8 },
    Chmod { node: usize, perm: u16 },
    Chown { node: usize, uid: u32 },
    Utimens { node: usize, secs: i64 },
    Truncate { node: usize, size: u64, uid: u32 },
    Write { node: usize, offset: u64, len: usize, byte: u8, keep: bool },
    Read { node: usize, offset: u64, len: usize },
    SetXattr { node: usize, name: u8, value: u8, mode: XattrMode },
    RemoveXattr { node: usize, name: u8 },
    ReadDir { dir: usize, chunk: usize },
    Reopen,
    Forget { node: usize },
    Dedup { node: usize, meanwhile: Meanwhile },
}

/// What happens while a file is given up for a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::volume::tests) enum Meanwhile {
    Nothing,
    /// Somebody has it open.
    Open(bool, Sharing),
    /// Somebody writes, once, and is gone.
    Write(u8),
    /// The daemon dies, before the exchange or after it, but before the data file is removed.
    Crash(bool),
}

const NAMES: u8 = 5;

pub(super) fn name_of(name: u8) -> Name {
    Name::new(&[b'a' + name % NAMES]).expect("legal")
}

fn kinds() -> impl Strategy<Value = FileKind> {
    prop_oneof![
        5 => Just(FileKind::File),
        5 => Just(FileKind::Dir),
        1 => Just(FileKind::Symlink),
        1 => select(vec![FileKind::Char, FileKind::Block, FileKind::Fifo, FileKind::Socket]),
    ]
}

fn perms() -> impl Strategy<Value = u16> {
    select(vec![0o644, 0o755, 0o2755, 0o2745, 0o4755, 0o6711, 0o1777, 0])
}

pub(in crate::volume::tests) fn ops_for_base() -> impl Strategy<Value = Op> {
    let index = || 0usize..40;
    let name = || 0..NAMES;
    prop_oneof![
        8 => (index(), name(), kinds(), perms(), 0u32..2)
            .prop_map(|(dir, name, kind, perm, uid)| Op::Create { dir, name, kind, perm, umask: 0, uid }),
        4 => (index(), index(), name()).prop_map(|(node, dir, name)| Op::Link { node, dir, name }),
        3 => (index(), select(vec![1usize, 10, 5000]), 0u8..3)
            .prop_map(|(node, len, byte)| Op::Write { node, offset: 0, len, byte, keep: true }),
        1 => (index(), 0u8..2, 0u8..3)
            .prop_map(|(node, name, value)| Op::SetXattr { node, name, value, mode: XattrMode::Any }),
    ]
}

pub(in crate::volume::tests) fn any_op() -> impl Strategy<Value = Op> {
    let index = || 0usize..40;
    let name = || 0..NAMES;
    let renames = select(vec![
        RenameMode::Replace,
        RenameMode::Replace,
        RenameMode::NoReplace,
        RenameMode::Exchange,
        RenameMode::Exchange,
        RenameMode::Whiteout(Caller::ROOT),
    ]);
    let xattr_modes = select(vec![XattrMode::Any, XattrMode::Create, XattrMode::Replace, XattrMode::Neither]);
    let offsets = || select(vec![0u64, 3, 4096, 10_000]);
    let lens = || select(vec![1usize, 10, 5000]);
    prop_oneof![
        4 => (index(), name(), kinds(), perms(), select(vec![0, 0o022, 0o077]), 0u32..2)
            .prop_map(|(dir, name, kind, perm, umask, uid)| Op::Create { dir, name, kind, perm, umask, uid }),
        4 => (index(), name()).prop_map(|(dir, name)| Op::Unlink { dir, name }),
        2 => (index(), name()).prop_map(|(dir, name)| Op::Rmdir { dir, name }),
        8 => (index(), name(), index(), name(), renames)
            .prop_map(|(dir, name, new_dir, new_name, mode)| Op::Rename { dir, name, new_dir, new_name, mode }),
        3 => (index(), index(), name()).prop_map(|(node, dir, name)| Op::Link { node, dir, name }),
        1 => (index(), perms()).prop_map(|(node, perm)| Op::Chmod { node, perm }),
        1 => (index(), 0u32..3).prop_map(|(node, uid)| Op::Chown { node, uid }),
        1 => (index(), -5i64..5).prop_map(|(node, secs)| Op::Utimens { node, secs }),
        2 => (index(), select(vec![0u64, 2, 4096, 9000]), 0u32..2)
            .prop_map(|(node, size, uid)| Op::Truncate { node, size, uid }),
        4 => (index(), offsets(), lens(), 0u8..3, any::<bool>())
            .prop_map(|(node, offset, len, byte, keep)| Op::Write { node, offset, len, byte, keep }),
        2 => (index(), offsets(), lens()).prop_map(|(node, offset, len)| Op::Read { node, offset, len }),
        2 => (index(), 0u8..2, 0u8..3, xattr_modes)
            .prop_map(|(node, name, value, mode)| Op::SetXattr { node, name, value, mode }),
        1 => (index(), 0u8..2).prop_map(|(node, name)| Op::RemoveXattr { node, name }),
        2 => (index(), 1usize..4).prop_map(|(dir, chunk)| Op::ReadDir { dir, chunk }),
        1 => Just(Op::Reopen),
        2 => index().prop_map(|node| Op::Forget { node }),
        4 => (index(), meanwhiles()).prop_map(|(node, meanwhile)| Op::Dedup { node, meanwhile }),
    ]
}

fn meanwhiles() -> impl Strategy<Value = Meanwhile> {
    prop_oneof![
        6 => Just(Meanwhile::Nothing),
        1 => (any::<bool>(), select(vec![Sharing::Passthrough, Sharing::Served]))
            .prop_map(|(write, sharing)| Meanwhile::Open(write, sharing)),
        1 => (0u8..3).prop_map(Meanwhile::Write),
        1 => any::<bool>().prop_map(Meanwhile::Crash),
    ]
}
