//! Inode numbers: functions of path and content (invariant 2 of the module).

use std::collections::HashSet;

use crate::types::{Digest, FileKind, Ino};

use super::ContentRef;

/// Separates these hashes from every other use of BLAKE3 in the store. Part of the format: never to be
/// changed.
const DOMAIN: &str = "vzfs tree inode number, version 1";

/// Gives out the numbers of one tree. Inodes must be presented in the order of their smallest paths, because
/// the order decides which of two inodes with one hash keeps it.
pub(super) struct Numbering {
    hasher: blake3::Hasher,
    taken: HashSet<Ino>,
    fold: fn(&Digest) -> Ino,
}

impl Numbering {
    pub(super) fn new() -> Numbering {
        Numbering {
            hasher: blake3::Hasher::new_derive_key(DOMAIN),
            taken: HashSet::from([Ino::ROOT]),
            fold: Ino::from_digest,
        }
    }

    /// The number of the inode whose smallest path is `path`.
    ///
    /// With 2^52 numbers, a tree of a million inodes has a collision once in ten thousand trees. It then
    /// costs a hash.
    pub(super) fn assign(&mut self, path: &[u8], kind: FileKind, rdev: u32, content: ContentRef<'_>) -> Ino {
        // A directory is its path: its entries change, and it stays the same directory.
        let rdev = rdev.to_le_bytes();
        let digest;
        let identity: &[u8] = match content {
            ContentRef::Blob { digest: blob, .. } => {
                digest = blob;
                digest.as_bytes()
            }
            ContentRef::Symlink(target) => target,
            ContentRef::None if kind.is_device() => &rdev,
            ContentRef::None => &[],
        };
        let mut salt = 0u32;
        loop {
            let mut hasher = self.hasher.clone();
            hasher.update(&[kind as u8]);
            hasher.update(&salt.to_le_bytes());
            hasher.update(&(path.len() as u32).to_le_bytes());
            hasher.update(path);
            hasher.update(identity);
            let ino = (self.fold)(&hasher.finalize().into());
            if self.taken.insert(ino) {
                return ino;
            }
            salt += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stored data depends on these values.
    #[test]
    fn numbers_are_frozen() {
        let mut numbering = Numbering::new();
        let dir = numbering.assign(b"etc", FileKind::Dir, 0, ContentRef::None);
        let link = numbering.assign(b"bin", FileKind::Symlink, 0, ContentRef::Symlink(b"usr/bin"));
        assert_eq!((dir.get(), link.get()), (1330523161365232, 1597047973752855));
    }

    #[test]
    fn collisions_are_resolved_the_same_way_every_time() {
        let run = || {
            let fold = |digest: &Digest| Ino::new(2 + u64::from(digest.as_bytes()[0] % 8)).expect("in range");
            let mut numbering = Numbering { fold, ..Numbering::new() };
            (0u8..8).map(|i| numbering.assign(&[i], FileKind::Fifo, 0, ContentRef::None)).collect::<Vec<_>>()
        };
        let numbers = run();
        assert_eq!(numbers, run());
        assert_eq!(numbers.iter().collect::<HashSet<_>>().len(), 8);
    }
}
