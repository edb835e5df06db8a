use std::fmt;

use super::Digest;

/// An inode number, which is also the FUSE node id.
///
/// Two disjoint ranges, both below 2^53 so that programs that keep inode numbers in doubles stay exact:
/// base numbers are functions of path and content (`2 ..= 2^52 - 1`), private numbers come from a counter
/// (`2^52 ..= 2^53 - 1`). Number 1 is the root directory of every tree; 0 is never an inode.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(u64);

impl Ino {
    /// The root directory.
    pub const ROOT: Ino = Ino(1);
    /// The first private number.
    pub const PRIVATE_FIRST: u64 = 1 << 52;
    /// The first number past the private range.
    pub const END: u64 = 1 << 53;

    /// Accepts any number in range, or `None`.
    pub const fn new(raw: u64) -> Option<Ino> {
        if raw == 0 || raw >= Self::END { None } else { Some(Ino(raw)) }
    }

    /// The private number with this position in the volume's counter, or `None` once 2^52 of them are used.
    pub const fn private(counter: u64) -> Option<Ino> {
        if counter < Self::PRIVATE_FIRST { Some(Ino(Self::PRIVATE_FIRST + counter)) } else { None }
    }

    /// The base number that a digest of (path, content) stands for.
    pub fn from_digest(digest: &Digest) -> Ino {
        let [a, b, c, d, e, f, g, h, ..] = *digest.as_bytes();
        let raw = u64::from_le_bytes([a, b, c, d, e, f, g, h]) & (Self::PRIVATE_FIRST - 1);
        // 0 and 1 are taken; moving them up keeps the function total.
        Ino(if raw < 2 { raw + 2 } else { raw })
    }

    /// The bare number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Whether the number is from the private counter.
    pub const fn is_private(self) -> bool {
        self.0 >= Self::PRIVATE_FIRST
    }
}

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ino({:#x})", self.0)
    }
}
