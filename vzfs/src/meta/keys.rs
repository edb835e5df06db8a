//! Keys of the private tables. Numbers are big-endian so that byte order is numeric order:
//!
//! | table | key |
//! |---|---|
//! | inodes, orphans | VE (4), inode (8) |
//! | entries | VE (4), directory (8), name hash (8), name |
//! | counters | VE (4) |
//! | outcomes | VE (4), place (8) |
//! | removals, seen | VE (4), data file (8) |
//! | seen digests | digest (32), VE (4), data file (8) |

use crate::types::{Ino, NameRef, VeId};

/// Bytes before the name hash in an entry's key.
const DIRECTORY_BYTES: usize = 12;
/// Bytes before the name in an entry's key.
const HASH_END: usize = 20;

pub(super) fn ve(ve: VeId) -> [u8; 4] {
    ve.0.to_be_bytes()
}

/// The first key after all those of `ve`, or `None` for the last VE number.
pub(super) fn ve_end(ve: VeId) -> Option<[u8; 4]> {
    Some(ve.0.checked_add(1)?.to_be_bytes())
}

pub(super) fn inode(ve: VeId, ino: Ino) -> [u8; DIRECTORY_BYTES] {
    numbered(ve, ino.get())
}

pub(super) fn numbered(ve: VeId, number: u64) -> [u8; DIRECTORY_BYTES] {
    let mut key = [0; DIRECTORY_BYTES];
    key[..4].copy_from_slice(&ve.0.to_be_bytes());
    key[4..].copy_from_slice(&number.to_be_bytes());
    key
}

pub(super) fn ve_of(key: &[u8]) -> Option<VeId> {
    Some(VeId(u32::from_be_bytes(key.get(..4)?.try_into().ok()?)))
}

pub(super) fn outcome(ve: VeId, place: u64) -> [u8; DIRECTORY_BYTES] {
    numbered(ve, place)
}

pub(super) fn data_file(ve: VeId, id: u64) -> [u8; DIRECTORY_BYTES] {
    numbered(ve, id)
}

pub(super) fn seen_digest(digest: &[u8], ve: VeId, data: u64) -> Vec<u8> {
    [digest, &data_file(ve, data)].concat()
}

/// Takes the key of a data file apart.
pub(super) fn data_file_of(key: &[u8]) -> Option<(VeId, u64)> {
    Some((ve_of(key)?, number_of(key)?))
}

pub(super) fn number_of(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(4..12)?.try_into().ok()?))
}

pub(super) fn inode_of(key: &[u8]) -> Option<Ino> {
    Ino::new(number_of(key)?)
}

pub(super) fn entry(ve: VeId, dir: Ino, name: NameRef<'_>) -> Vec<u8> {
    position(ve, dir, name.hash57(), &name)
}

/// The key of a position in a directory, whether or not an entry is there.
pub(super) fn position(ve: VeId, dir: Ino, hash57: u64, name: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(HASH_END + name.len());
    key.extend_from_slice(&inode(ve, dir));
    key.extend_from_slice(&hash57.to_be_bytes());
    key.extend_from_slice(name);
    key
}

/// The first key after all entries of a directory: hashes have 57 bits, so no entry has this one.
pub(super) fn directory_end(ve: VeId, dir: Ino) -> Vec<u8> {
    position(ve, dir, u64::MAX, b"")
}

/// Takes an entry's key apart: directory, hash, name.
pub(super) fn entry_parts(key: &[u8]) -> Option<(Ino, u64, NameRef<'_>)> {
    let hash57 = u64::from_be_bytes(key.get(DIRECTORY_BYTES..HASH_END)?.try_into().ok()?);
    Some((inode_of(key)?, hash57, NameRef::new(&key[HASH_END..]).ok()?))
}
