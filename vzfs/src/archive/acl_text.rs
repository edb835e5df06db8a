//! POSIX ACLs as text, which some tar programs write (`SCHILY.acl.access`), to the form that the kernel keeps as an
//! extended attribute. Pure.

use super::error::{Reason, printable};

/// Of `linux/posix_acl_xattr.h`: the version, and the id of entries that name nobody.
const VERSION: u32 = 2;
const NO_ID: u32 = u32::MAX;

const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";
/// The PAX keywords and the attributes that they stand for.
pub(super) const KEYWORDS: [(&str, &[u8]); 2] =
    [("SCHILY.acl.access", ACCESS), ("SCHILY.acl.default", DEFAULT)];

/// Takes entries such as `user:1000:r-x`, divided by commas or newlines; a fourth field is the number of the name in the second.
/// `None` for an ACL without entries, and for an access ACL that says no more than the permission bits.
///
/// # Errors
/// A user or group given by name alone: whom it means is known to the host that made the archive, not here.
pub(super) fn to_xattr(name: &[u8], text: &[u8]) -> Result<Option<Vec<u8>>, Reason> {
    let damaged = || Reason::Header("an ACL is damaged");
    let mut entries = Vec::new();
    for entry in text.split(|byte| matches!(byte, b',' | b'\n')) {
        // What is effective under the mask is written as a comment.
        let entry = entry.split(|byte| *byte == b'#').next().unwrap_or_default().trim_ascii();
        if entry.is_empty() {
            continue;
        }
        let fields: Vec<&[u8]> = entry.split(|byte| *byte == b':').collect();
        let [kind, who, permissions, rest @ ..] = &fields[..] else { return Err(damaged()) };
        let tag: u16 = match (*kind, who.is_empty()) {
            (b"user" | b"u", true) => 0x01,
            (b"user" | b"u", false) => 0x02,
            (b"group" | b"g", true) => 0x04,
            (b"group" | b"g", false) => 0x08,
            (b"mask" | b"m", true) => 0x10,
            (b"other" | b"o", true) => 0x20,
            _ => return Err(damaged()),
        };
        let id = match who.is_empty() {
            true => NO_ID,
            false => number(who).or_else(|| rest.first().and_then(|id| number(id))).ok_or_else(|| {
                let who = printable(who);
                Reason::Unsupported(format!(
                    "an ACL for \"{who}\" by name only (tar's --xattrs keeps the number)"
                ))
            })?,
        };
        entries.push((tag, id, bits(permissions).ok_or_else(damaged)?));
    }
    let is_plain = entries.iter().all(|(tag, _, _)| matches!(tag, 0x01 | 0x04 | 0x20));
    if entries.is_empty() || (is_plain && name == ACCESS) {
        return Ok(None);
    }
    // The kernel takes them in this order only.
    entries.sort_unstable();
    let mut xattr = VERSION.to_le_bytes().to_vec();
    for (tag, id, permissions) in entries {
        xattr.extend_from_slice(&tag.to_le_bytes());
        xattr.extend_from_slice(&permissions.to_le_bytes());
        xattr.extend_from_slice(&id.to_le_bytes());
    }
    Ok(Some(xattr))
}

fn number(text: &[u8]) -> Option<u32> {
    super::pax::decimal(text).and_then(|number| u32::try_from(number).ok())
}

fn bits(text: &[u8]) -> Option<u16> {
    text.iter().try_fold(0, |bits, byte| match byte {
        b'r' => Some(bits | 4),
        b'w' => Some(bits | 2),
        b'x' => Some(bits | 1),
        b'-' => Some(bits),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_becomes_the_kernels_form() {
        let expected = [
            &[2, 0, 0, 0][..],
            &[1, 0, 6, 0, 255, 255, 255, 255],
            &[2, 0, 5, 0, 7, 0, 0, 0],
            &[2, 0, 4, 0, 0xe8, 3, 0, 0],
            &[4, 0, 4, 0, 255, 255, 255, 255],
            &[16, 0, 4, 0, 255, 255, 255, 255],
            &[32, 0, 0, 0, 255, 255, 255, 255],
        ]
        .concat();
        let comma = b"user::rw-,user:1000:r--,user:lisa:r-x:7,group::r--,mask::r--,other::---";
        let lines =
            b"user::rw-\nuser:7:r-x\t#effective:r--\nuser:1000:r--\ngroup::r--\nmask::r--\nother::---\n";
        for text in [&comma[..], lines] {
            assert_eq!(to_xattr(ACCESS, text).expect("ACL").as_deref(), Some(&expected[..]));
        }
        let plain = b"user::rw-,group::r--,other::---";
        assert!(to_xattr(ACCESS, b"").expect("empty").is_none());
        assert!(to_xattr(ACCESS, plain).expect("plain").is_none());
        assert!(to_xattr(DEFAULT, plain).expect("plain").is_some());
        for bad in ["user:lisa:r--", "user::rq-", "user", "mask:1:r--", "user:99999999999:r--"] {
            assert!(to_xattr(ACCESS, bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
