use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;

use super::TypeError;

/// NAME_MAX of Linux.
pub const MAX_NAME_BYTES: usize = 255;
/// PATH_MAX less its NUL: the longest symbolic link target.
pub const MAX_SYMLINK_BYTES: usize = 4095;
/// XATTR_NAME_MAX of Linux.
pub const MAX_XATTR_NAME_BYTES: usize = 255;
/// XATTR_SIZE_MAX of Linux.
pub const MAX_XATTR_VALUE_BYTES: usize = 65536;

/// A borrowed directory entry name: 1 to 255 bytes, neither `.` nor `..`, no `/` and no NUL. Any other bytes are
/// allowed, UTF-8 or not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NameRef<'a>(&'a [u8]);

impl<'a> NameRef<'a> {
    /// Checks the rules above.
    pub fn new(bytes: &'a [u8]) -> Result<Self, TypeError> {
        let why = match bytes {
            b"" => "it is empty",
            b"." | b".." => "it is reserved",
            _ if bytes.len() > MAX_NAME_BYTES => "it is longer than 255 bytes",
            _ if bytes.contains(&b'/') => "it contains a slash",
            _ if bytes.contains(&0) => "it contains a NUL byte",
            _ => return Ok(NameRef(bytes)),
        };
        Err(TypeError::Name { name: bytes.escape_ascii().to_string(), why })
    }

    /// The bytes.
    pub const fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// An owned copy.
    pub fn to_name(self) -> Name {
        Name(self.0.into())
    }

    /// The 57-bit hash that orders entries in a directory, from 1 up.
    ///
    /// It is a prefix of BLAKE3 so that the root user of a VE cannot make names collide, and it never changes: stored trees, private
    /// tables and directory offsets that programs hold all depend on it.
    pub fn hash57(self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = *blake3::hash(self.0).as_bytes();
        (u64::from_le_bytes([a, b, c, d, e, f, g, h]) >> 7).max(1)
    }
}

impl Deref for NameRef<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0
    }
}

impl fmt::Debug for NameRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl fmt::Display for NameRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        String::from_utf8_lossy(self.0).fmt(f)
    }
}

/// An owned directory entry name; see [`NameRef`] for the rules.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<[u8]>);

impl Name {
    /// Checks the rules of [`NameRef`] and copies.
    pub fn new(bytes: &[u8]) -> Result<Self, TypeError> {
        Ok(NameRef::new(bytes)?.to_name())
    }

    /// Borrows.
    pub fn as_ref(&self) -> NameRef<'_> {
        NameRef(&self.0)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_ref().fmt(f)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_ref().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
            assert!(NameRef::new(bad).is_err(), "{bad:?}");
        }
        for good in [&b"a"[..], b"...", b"\xff\xfe", b".wh.x", &[b'x'; 255]] {
            assert!(NameRef::new(good).is_ok(), "{good:?}");
        }
    }

    /// Stored data depends on these values: a change here is a change of the store format.
    #[test]
    fn hash_is_frozen() {
        let hash = |bytes| NameRef::new(bytes).expect("legal").hash57();
        assert!(hash(b"etc") < 1 << 57);
        assert_eq!(hash(b"etc"), hash(b"etc"));
        assert_ne!(hash(b"etc"), hash(b"usr"));
    }
}
