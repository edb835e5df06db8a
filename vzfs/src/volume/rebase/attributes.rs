//! Attributes of which each side may have changed some.

use std::collections::BTreeMap;

use crate::meta::{InodeRecord, PrivateContent};
use crate::tree::{ContentRef, NodeView};

/// Whether a record has the content of a base's inode, so that at most its attributes were changed.
pub(super) fn same_content(record: &InodeRecord, view: &NodeView<'_>) -> bool {
    record.kind == view.kind()
        && match (&record.content, view.content()) {
            (PrivateContent::None, ContentRef::None) => record.rdev == view.attr().rdev,
            (PrivateContent::Symlink(own), ContentRef::Symlink(target)) => own == target,
            (PrivateContent::Blob { digest, .. }, ContentRef::Blob { digest: base, .. }) => {
                digest == base.as_bytes()
            }
            _ => false,
        }
}

/// Gives `new` those attributes that the VE's `own` record has changed since `old`.
pub(super) fn inherit(new: &mut InodeRecord, own: &InodeRecord, old: &NodeView<'_>) {
    let before = old.attr();
    if own.perm != before.perm {
        new.perm = own.perm;
    }
    if own.uid != before.uid {
        new.uid = own.uid;
    }
    if own.gid != before.gid {
        new.gid = own.gid;
    }
    let before: BTreeMap<&[u8], &[u8]> = old.xattrs().collect();
    for (name, value) in &own.xattrs {
        if before.get(name.as_slice()) != Some(&value.as_slice()) {
            new.xattrs.insert(name.clone(), value.clone());
        }
    }
    for name in before.keys().filter(|name| !own.xattrs.contains_key(**name)) {
        new.xattrs.remove(*name);
    }
}
