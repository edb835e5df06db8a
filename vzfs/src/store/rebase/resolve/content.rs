//! Reading what is decided about: blobs, whose bytes are compared with their names, and files of the VE.

use std::fs::File;
use std::io::{self, Read};

use crate::blobs::BlobStore;
use crate::merge::MAX_INPUT_BYTES;
use crate::store::StoreError;
use crate::tree::{ContentRef, Tree};
use crate::types::{Digest, FileKind, Ino};

/// A regular file of a base.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Blob {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) allocated_bytes: u64,
}

impl Blob {
    /// The content of a base's inode, if it is a regular file.
    pub(super) fn of(tree: &Tree, node: Option<(Ino, FileKind)>) -> Option<Blob> {
        match tree.node(node?.0)?.content() {
            ContentRef::Blob { digest, size, allocated_bytes } => {
                Some(Blob { digest, size, allocated_bytes })
            }
            _ => None,
        }
    }

    /// The regular file at a path; no symbolic links are followed.
    pub(super) fn at(tree: &Tree, path: &[u8]) -> Option<Blob> {
        let view = tree.resolve(path)?;
        Blob::of(tree, Some((view.ino(), view.kind())))
    }

    /// Its bytes; `None` when they are more than anything that is merged.
    pub(super) fn read(&self, blobs: &BlobStore) -> Result<Option<Vec<u8>>, StoreError> {
        if self.size > MAX_INPUT_BYTES as u64 {
            return Ok(None);
        }
        Ok(Some(blobs.read(&self.digest, self.size)?))
    }
}

/// All of a file; `None` when that is more than anything that is merged. Its size may change while it is read.
pub(super) fn read_bounded(file: File) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    file.take(MAX_INPUT_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() <= MAX_INPUT_BYTES).then_some(bytes))
}

/// The digest of a file's content.
pub(super) fn digest_of(file: File) -> io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file)?;
    Ok(hasher.finalize().into())
}
