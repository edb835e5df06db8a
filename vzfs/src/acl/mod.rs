//! POSIX ACL arithmetic; pure. The kernel evaluates ACLs (`FUSE_POSIX_ACL`); a filesystem still owes three things, as acl(5)
//! describes them: an access ACL and the permission bits stay in step, chmod changes the mask, and a directory's default ACL is inherited in
//! place of the umask.

use crate::types::FileKind;

/// The access ACL of a file, as an extended attribute.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// The default ACL of a directory.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

/// `linux/posix_acl_xattr.h`: little-endian version, then entries of tag (2), permissions (2), id (4).
const VERSION: u32 = 2;
const ENTRY_BYTES: usize = 8;
/// The id of entries that have none.
const NO_ID: u32 = u32::MAX;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: u16,
    perm: u16,
    id: u32,
}

/// A well-formed ACL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl(Vec<Entry>);

impl Acl {
    /// Decodes the value of one of the two attributes. `None` if it breaks a rule of acl(5): order, doubles, a missing
    /// required entry, unknown tags.
    pub fn decode(value: &[u8]) -> Option<Acl> {
        let (version, rest) = value.split_first_chunk::<4>()?;
        if u32::from_le_bytes(*version) != VERSION || !rest.len().is_multiple_of(ENTRY_BYTES) {
            return None;
        }
        let entries: Vec<Entry> = rest
            .chunks_exact(ENTRY_BYTES)
            .map(|bytes| Entry {
                tag: u16::from_le_bytes([bytes[0], bytes[1]]),
                perm: u16::from_le_bytes([bytes[2], bytes[3]]),
                id: u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
            })
            .collect();
        let count = |tag| entries.iter().filter(|entry| entry.tag == tag).count();
        let named = count(USER) + count(GROUP);
        let known = count(USER_OBJ) + count(GROUP_OBJ) + count(OTHER) + count(MASK) + named;
        let well_formed = known == entries.len()
            && [USER_OBJ, GROUP_OBJ, OTHER].iter().all(|&tag| count(tag) == 1)
            && count(MASK) <= 1
            && (named == 0 || count(MASK) == 1)
            && entries.iter().all(|entry| entry.perm <= 7)
            && entries.is_sorted_by_key(|entry| entry.tag);
        well_formed.then_some(Acl(entries))
    }

    /// The value of the attribute.
    pub fn encode(&self) -> Vec<u8> {
        let mut value = VERSION.to_le_bytes().to_vec();
        for entry in &self.0 {
            value.extend_from_slice(&entry.tag.to_le_bytes());
            value.extend_from_slice(&entry.perm.to_le_bytes());
            let id = if matches!(entry.tag, USER | GROUP) { entry.id } else { NO_ID };
            value.extend_from_slice(&id.to_le_bytes());
        }
        value
    }

    fn perm_of(&self, tag: u16) -> Option<u16> {
        self.0.iter().find(|entry| entry.tag == tag).map(|entry| entry.perm)
    }

    /// The nine permission bits that this access ACL shows: the mask stands in for the group if there is one.
    pub fn permissions(&self) -> u16 {
        let of = |tag| self.perm_of(tag).unwrap_or(0);
        of(USER_OBJ) << 6 | self.perm_of(MASK).unwrap_or(of(GROUP_OBJ)) << 3 | of(OTHER)
    }

    /// Whether the permission bits alone say the same.
    pub fn is_minimal(&self) -> bool {
        self.0.len() == 3
    }

    /// The access ACL after a chmod: the group bits go to the mask if there is one.
    #[must_use]
    pub fn after_chmod(mut self, perm: u16) -> Acl {
        let group = if self.perm_of(MASK).is_some() { MASK } else { GROUP_OBJ };
        for entry in &mut self.0 {
            match entry.tag {
                USER_OBJ => entry.perm = perm >> 6 & 7,
                OTHER => entry.perm = perm & 7,
                tag if tag == group => entry.perm = perm >> 3 & 7,
                _ => {}
            }
        }
        self
    }

    /// The access ACL of a new file below a directory with this default ACL: its entries, limited by the mode that the creator asked
    /// for. The umask does not count.
    #[must_use]
    pub fn inherited(&self, perm: u16) -> Acl {
        let limited = self.permissions() & perm;
        self.clone().after_chmod(limited)
    }
}

/// What a new inode gets from its directory.
#[derive(Debug, PartialEq, Eq)]
pub struct Inherited {
    /// Permission bits, special bits included.
    pub perm: u16,
    /// Access ACL, if the permission bits do not say it all.
    pub access: Option<Vec<u8>>,
    /// Default ACL, for directories.
    pub default: Option<Vec<u8>>,
}

/// Works out the permissions of a new inode from the directory's default ACL (an attribute's value), or from the umask.
pub fn inherit(default: Option<&[u8]>, kind: FileKind, perm: u16, umask: u16) -> Inherited {
    let perm = perm & 0o7777;
    let acl = if kind == FileKind::Symlink { None } else { default.and_then(Acl::decode) };
    let Some(acl) = acl else {
        let perm = if kind == FileKind::Symlink { 0o777 } else { perm & !(umask & 0o777) };
        return Inherited { perm, access: None, default: None };
    };
    let access = acl.inherited(perm & 0o777);
    Inherited {
        perm: perm & 0o7000 | access.permissions(),
        access: (!access.is_minimal()).then(|| access.encode()),
        default: (kind == FileKind::Dir).then(|| acl.encode()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Acl {
        Acl(entries.iter().map(|&(tag, perm, id)| Entry { tag, perm, id }).collect())
    }

    #[test]
    fn values_round_trip_and_bad_ones_are_refused() {
        let full = acl(&[
            (USER_OBJ, 7, NO_ID),
            (USER, 5, 1000),
            (GROUP_OBJ, 5, NO_ID),
            (MASK, 5, NO_ID),
            (OTHER, 0, NO_ID),
        ]);
        assert_eq!(Acl::decode(&full.encode()), Some(full.clone()));
        assert_eq!(full.permissions(), 0o750);
        for bad in [&b""[..], &[2, 0, 0, 0], &[1, 0, 0, 0], &full.encode()[..11]] {
            assert_eq!(Acl::decode(bad), None);
        }
        let without_mask =
            acl(&[(USER_OBJ, 7, NO_ID), (USER, 5, 1000), (GROUP_OBJ, 5, NO_ID), (OTHER, 0, NO_ID)]);
        assert_eq!(Acl::decode(&without_mask.encode()), None);
    }

    #[test]
    fn inheritance_replaces_the_umask() {
        let default = acl(&[
            (USER_OBJ, 7, NO_ID),
            (USER, 7, 1000),
            (GROUP_OBJ, 5, NO_ID),
            (MASK, 7, NO_ID),
            (OTHER, 5, NO_ID),
        ]);
        let file = inherit(Some(&default.encode()), FileKind::File, 0o664, 0o077);
        assert_eq!(file.perm, 0o664);
        assert_eq!(
            Acl::decode(&file.access.expect("has a named user")).expect("legal").perm_of(MASK),
            Some(6)
        );
        assert_eq!(file.default, None);
        let dir = inherit(Some(&default.encode()), FileKind::Dir, 0o2777, 0o022);
        assert_eq!((dir.perm, dir.default.is_some()), (0o2775, true));
        assert_eq!(inherit(None, FileKind::File, 0o666, 0o022).perm, 0o644);
    }

    #[test]
    fn chmod_moves_the_mask() {
        let full = acl(&[
            (USER_OBJ, 7, NO_ID),
            (USER, 7, 1),
            (GROUP_OBJ, 7, NO_ID),
            (MASK, 7, NO_ID),
            (OTHER, 7, NO_ID),
        ]);
        let after = full.after_chmod(0o640);
        assert_eq!((after.permissions(), after.perm_of(GROUP_OBJ)), (0o640, Some(7)));
    }
}
