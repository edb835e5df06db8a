//! Import of a tar.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::compress::with_decompressed;
use super::error::{ArchiveError, Reason, printable};
use super::limits::{Budget, Exclude, Limits, Progress};
use super::plant::{Plant, components, join};
use super::tar::{Member, MemberKind, TarReader};
use crate::blobs::Batch;
use crate::tree::{Content, Meta, TreeBuilder};
use crate::types::{FileKind, MAX_SYMLINK_BYTES, NameRef};

/// Names of image layers with this prefix are not files: they hide what follows the prefix in lower layers.
const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// Hides everything that lower layers have in its directory.
const OPAQUE_NAME: &[u8] = b".wh..wh..opq";

/// Whether `.wh.` names are the whiteouts of an image layer or names like any other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Tar,
    ImageLayer,
}

/// What all parts of one import share.
pub(super) struct Unpacking<'a, 's> {
    pub(super) batch: &'a Batch<'s>,
    pub(super) budget: &'a Budget<'a>,
    pub(super) exclude: &'a Exclude,
    pub(super) progress: &'a dyn Progress,
}

/// Reads a tar file into the batch and a new tree.
pub(super) fn import(
    path: &Path,
    batch: &Batch<'_>,
    limits: &Limits,
    exclude: &Exclude,
    progress: &dyn Progress,
) -> Result<TreeBuilder, ArchiveError> {
    let file = File::open(path).map_err(|source| ArchiveError::Io {
        action: "open",
        path: path.to_owned(),
        source,
    })?;
    let budget = Budget::new(limits);
    let unpacking = Unpacking { batch, budget: &budget, exclude, progress };
    let mut plant = Plant::new();
    unpacking.unpack(path, file, Dialect::Tar, &mut plant)?;
    let has = |name: &[u8]| -> bool {
        let name = NameRef::new(name).ok();
        name.and_then(|name| plant.builder.get(plant.builder.root(), name)).is_some()
    };
    if has(b"oci-layout") && has(b"index.json") && has(b"blobs") {
        let why = "it is an OCI image layout in a tar; unpack it and import the folder".to_owned();
        return Err(ArchiveError::NotAnArchive { path: path.to_owned(), why });
    }
    Ok(plant.builder)
}

impl Unpacking<'_, '_> {
    /// Adds all entries of one tar stream, perhaps compressed, to the plant.
    pub(super) fn unpack(
        &self,
        archive: &Path,
        input: impl Read + Send,
        dialect: Dialect,
        plant: &mut Plant,
    ) -> Result<(), ArchiveError> {
        let whole = |reason| ArchiveError::Archive { archive: archive.to_owned(), reason };
        let max_ratio = self.budget.limits().max_ratio;
        with_decompressed(input, max_ratio, |input| self.unpack_plain(archive, input, dialect, plant))
            .map_err(whole)?
    }

    fn unpack_plain(
        &self,
        archive: &Path,
        input: &mut dyn Read,
        dialect: Dialect,
        plant: &mut Plant,
    ) -> Result<(), ArchiveError> {
        let mut tar = TarReader::new(input);
        let mut left_out = HashSet::new();
        loop {
            let taken = match tar.next_member() {
                Ok(None) => break,
                Ok(Some(member)) => self
                    .take(&member, &mut tar, dialect, plant, &mut left_out)
                    .and_then(|()| self.spend_implied(plant)),
                Err(reason) => Err(reason),
            };
            if let Err(reason) = taken {
                let archive = archive.to_owned();
                return Err(match tar.path() {
                    b"" => ArchiveError::Archive { archive, reason },
                    path => ArchiveError::Entry { archive, entry: printable(path), reason },
                });
            }
        }
        tar.finish().map_err(|reason| ArchiveError::Archive { archive: archive.to_owned(), reason })
    }

    /// A short path can stand for thousands of directories.
    fn spend_implied(&self, plant: &mut Plant) -> Result<(), Reason> {
        let (directories, name_bytes) = plant.take_implied();
        self.budget.entries(directories)?;
        self.budget.metadata(name_bytes)
    }

    fn take<R: Read>(
        &self,
        member: &Member,
        tar: &mut TarReader<R>,
        dialect: Dialect,
        plant: &mut Plant,
        left_out: &mut HashSet<Vec<u8>>,
    ) -> Result<(), Reason> {
        self.budget.entry()?;
        let xattr_bytes: usize = member.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.budget.metadata((member.path.len() + member.link.len() + xattr_bytes) as u64)?;
        let path = components(&member.path)?;
        if dialect == Dialect::ImageLayer
            && let Some((name, parents)) = path.split_last()
            && let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT_PREFIX)
        {
            if name.as_bytes() == OPAQUE_NAME {
                return plant.hide_children(parents);
            }
            // `.wh..wh.*` is the namespace of aufs, whose bookkeeping is in some old images.
            if hidden.starts_with(WHITEOUT_PREFIX) {
                return Ok(());
            }
            let hidden = NameRef::new(hidden)?;
            return plant.hide(&[parents, &[hidden]].concat());
        }
        if self.exclude.matches(&path) {
            left_out.insert(join_bytes(&path));
            return Ok(());
        }
        match member.layer_mark.as_deref() {
            Some(b"whiteout") => {
                let Some((name, parents)) = path.split_last() else { return Err(Reason::RootNotDirectory) };
                let hidden = name.as_bytes().strip_prefix(WHITEOUT_PREFIX).unwrap_or(name.as_bytes());
                let hidden = NameRef::new(hidden)?;
                return plant.whiteout(&[parents, &[hidden]].concat());
            }
            Some(b"opaque") => {
                let parents = path.split_last().map_or(&[][..], |(_, parents)| parents);
                let dir = plant.directory(parents)?;
                plant.builder.set_opaque(dir, true);
                return Ok(());
            }
            _ => {}
        }
        let MemberKind::File(kind) = member.kind else {
            let target = components(&member.link)?;
            if left_out.contains(&join_bytes(&target)) {
                return Err(Reason::LinkToExcluded(join(&target)));
            }
            plant.link(&path, &target)?;
            self.progress.advance(1, 0);
            return Ok(());
        };
        let content = match kind {
            FileKind::File => {
                self.budget.bytes(member.size)?;
                super::blob(&self.batch.add_reader(tar.content(member))?)
            }
            FileKind::Symlink => {
                if member.link.is_empty() || member.link.len() > MAX_SYMLINK_BYTES {
                    return Err(Reason::SymlinkTarget(member.link.len()));
                }
                Content::Symlink(member.link.as_slice().into())
            }
            _ => Content::None,
        };
        plant.insert(&path, meta(member, kind)?, content)?;
        self.progress.advance(1, member.size);
        Ok(())
    }
}

fn meta(member: &Member, kind: FileKind) -> Result<Meta, Reason> {
    let (major, minor) = member.device;
    Ok(Meta {
        kind,
        // Linux has no other permissions for them, whatever the archive says.
        perm: if kind == FileKind::Symlink { 0o777 } else { member.perm },
        uid: member.uid,
        gid: member.gid,
        rdev: if kind.is_device() { super::encode_device(major, minor)? } else { 0 },
        mtime: member.mtime,
        xattrs: member.xattrs.clone(),
    })
}

fn join_bytes(path: &[NameRef<'_>]) -> Vec<u8> {
    path.iter().map(|name| name.as_bytes()).collect::<Vec<_>>().join(&b'/')
}
