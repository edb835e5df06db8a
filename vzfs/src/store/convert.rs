//! Between the trees' own types and those of the control interface.

use crate::api::{self, Aspect, Side, TemplateStats, path_text};
use crate::tree::{self, ContentRef, Tree, TreeStats};
use crate::volume;

pub(super) fn stats(stats: &TreeStats) -> TemplateStats {
    TemplateStats {
        inodes: stats.inodes,
        files: stats.files,
        symlinks: stats.symlinks,
        dirs: stats.dirs,
        bytes: stats.logical_bytes,
    }
}

/// A change between `a` and `b`.
pub(super) fn change(change: &tree::Change, a: &Tree, b: &Tree) -> api::Change {
    api::Change {
        path: path_text(&change.path),
        kind: match change.kind {
            tree::ChangeKind::Added => api::ChangeKind::Added,
            tree::ChangeKind::Changed => api::ChangeKind::Changed,
            tree::ChangeKind::Deleted => api::ChangeKind::Deleted,
        },
        aspects: change.aspects.iter().filter_map(|found| aspect(*found)).collect(),
        old: change.old.and_then(|_| side(a, &change.path)),
        new: change.new.and_then(|_| side(b, &change.path)),
    }
}

/// `None` for what only layers have: whole trees are compared here.
fn aspect(found: tree::Aspect) -> Option<Aspect> {
    Some(match found {
        tree::Aspect::Type => Aspect::Type,
        tree::Aspect::Content => Aspect::Content,
        tree::Aspect::Target => Aspect::Target,
        tree::Aspect::Device => Aspect::Device,
        tree::Aspect::Mode => Aspect::Mode,
        tree::Aspect::Owner => Aspect::Owner,
        tree::Aspect::Mtime => Aspect::Mtime,
        tree::Aspect::Xattrs => Aspect::Xattrs,
        tree::Aspect::Opaque => return None,
    })
}

fn side(tree: &Tree, path: &[u8]) -> Option<Side> {
    let view = tree.resolve(path)?;
    let attr = view.attr();
    let (digest, target) = match view.content() {
        ContentRef::Blob { digest, .. } => (Some(digest), None),
        ContentRef::Symlink(target) => (None, Some(path_text(target))),
        ContentRef::None => (None, None),
    };
    Some(Side {
        file_type: attr.kind,
        mode: attr.perm,
        uid: attr.uid,
        gid: attr.gid,
        size: if digest.is_some() { attr.size } else { 0 },
        mtime: attr.mtime,
        digest,
        target,
    })
}

/// What a VE changed.
pub(super) fn volume_change(change: volume::VolumeChange) -> api::VolumeChange {
    api::VolumeChange {
        path: change.path.strip_prefix('/').map(str::to_owned).unwrap_or(change.path),
        kind: match change.kind {
            volume::ChangeKind::Added => api::ChangeKind::Added,
            volume::ChangeKind::Changed => api::ChangeKind::Changed,
            volume::ChangeKind::Deleted => api::ChangeKind::Deleted,
        },
        file_type: change.file_type,
        size: change.size,
    }
}
