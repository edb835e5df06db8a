//! The content-addressed blob store: immutable file contents, each kept once under the BLAKE3 digest of its bytes.
//!
//! # On disk
//! `DIR/ab/<64 hex>` are the published blobs, in 256 folders by the first digest byte (all of them exist from the
//! start, so that publishing never has to make one durable). `DIR/tmp` is staging: whatever is in it belongs to a
//! running [`Batch`] or to nobody, and [`BlobStore::open`] empties it. The store's lock, held a level above, makes
//! sure that one process at a time has the folder open.
//!
//! # Invariants
//! 1. A name in a digest folder refers to the complete content with that digest, also after a crash: content is
//!    durable before it gets that name, and the name is durable before [`Batch::commit`] returns.
//! 2. A published blob is never written again. It is removed only while it is [`Condemned`]: no record refers to it, no batch relies on it, and
//!    a batch that comes upon it takes it off that list before it looks whether the blob is there.
//!    A damaged one is replaced, by a rename, by content that was hashed on its way in ([`BlobStore::repairing_batch`]).
//! 3. After `commit` every digest that the batch handed out is durable, also one that another batch published: the
//!    `unsynced` flag says that names may exist that are not durable yet, and every commit clears it first.
//!
//! # What a failure leaves
//! A batch that is dropped, or whose commit fails, removes what it still has in staging. Blobs that a failing
//! commit had already published stay; they are whole, and garbage collection takes them as unreferenced ones.

mod batch;
mod direct;
mod ingest;
mod store;
mod sweep;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::types::Digest;

pub use batch::{Batch, BatchStats, Stored};
pub use direct::read as read_direct;
pub use ingest::{Summary, summarize_file};
pub use store::BlobStore;
pub use sweep::Condemned;

/// Why the blob store could not do what was asked.
#[derive(Debug, Error)]
pub enum BlobError {
    /// A system call on the store's own files failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried: "open", "write", "publish", ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Reading the content to be stored failed; the store itself is fine.
    #[error("cannot read the content to store: {0}")]
    Content(#[source] io::Error),
    /// No blob has this digest.
    #[error("blob {digest} is missing: there is no {}", path.display())]
    Missing {
        /// The digest asked for.
        digest: Digest,
        /// Where the blob would be.
        path: PathBuf,
    },
    /// A blob's bytes do not have the digest that names it.
    #[error("blob {digest} is damaged: the content of {} has the digest {actual}", path.display())]
    Damaged {
        /// The digest that names it.
        digest: Digest,
        /// The digest of the bytes found.
        actual: Digest,
        /// The file.
        path: PathBuf,
    },
}

impl BlobError {
    /// The system's answer behind this error, when there is one (for errno mappings such as "no space").
    pub fn io_error(&self) -> Option<&io::Error> {
        match self {
            BlobError::Io { source, .. } | BlobError::Content(source) => Some(source),
            BlobError::Missing { .. } | BlobError::Damaged { .. } => None,
        }
    }

    fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(rustix::io::Errno) -> BlobError {
        let path = path.into();
        move |errno| BlobError::Io { action, path, source: errno.into() }
    }
}
