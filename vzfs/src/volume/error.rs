//! Why a volume refused an operation.

use std::io;

use thiserror::Error;

use crate::blobs::BlobError;
use crate::meta::MetaError;
use crate::tree::TreeError;
use crate::types::Ino;

/// Each variant is one POSIX error or a failure of the store below; `fuse` has the mapping to errno.
#[derive(Debug, Error)]
pub enum VolumeError {
    /// No such name or inode.
    #[error("no such file or directory")]
    NotFound,
    /// The name is taken.
    #[error("file exists")]
    Exists,
    /// A directory was needed.
    #[error("not a directory")]
    NotDir,
    /// A directory is not allowed here.
    #[error("is a directory")]
    IsDir,
    /// The directory has entries.
    #[error("directory not empty")]
    NotEmpty,
    /// The kind of inode does not allow the operation.
    #[error("operation not permitted: {0}")]
    NotPermitted(&'static str),
    /// An argument makes no sense.
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    /// The inode was given another number; look the name up again (see `content`).
    #[error("the file was replaced while it was opened; look its name up again")]
    Stale,
    /// What a decision was made on has changed since.
    #[error("the VE has changed meanwhile")]
    Changed,
    /// A program has locked what may only be changed when nobody has.
    #[error("process {pid} has locked /{path}")]
    Locked {
        /// The lock file.
        path: &'static str,
        /// Who holds it.
        pid: u32,
    },
    /// No such extended attribute.
    #[error("no such extended attribute")]
    NoData,
    /// A name or value is longer than the host allows.
    #[error("name too long")]
    NameTooLong,
    /// A path is longer than templates and archives can have. Programs in the VE may nest directories so deeply.
    #[error("there are paths of more than 4095 bytes, below /{}", shortened(path))]
    PathTooLong {
        /// The directory below which they are, made printable.
        path: String,
    },
    /// The inode has as many names as fit.
    #[error("too many links")]
    TooManyLinks,
    /// An inode's extended attributes are larger than [`super::MAX_XATTRS_BYTES`] together.
    #[error("no space for extended attributes")]
    XattrSpace,
    /// An attribute namespace or mode that this filesystem has not.
    #[error("operation not supported")]
    Unsupported,
    /// The host filesystem failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, to which file.
        what: String,
        /// The host's answer, passed on to the program.
        source: io::Error,
    },
    /// The database failed.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// The base cannot be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The blob store failed.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// A record refers to something that is not there.
    #[error("damaged volume: inode {ino}: {why}")]
    Damaged {
        /// The inode.
        ino: Ino,
        /// What is missing or wrong.
        why: &'static str,
    },
}

/// The beginning of a long path.
fn shortened(path: &str) -> String {
    const SHOWN_CHARS: usize = 100;
    let shown: String = path.chars().take(SHOWN_CHARS).collect();
    if shown.len() < path.len() { format!("{shown}...") } else { shown }
}

impl VolumeError {
    /// Whether the disk or somebody's share of it is full.
    pub fn is_full(&self) -> bool {
        let full = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        };
        match self {
            VolumeError::Io { source, .. } => full(source),
            VolumeError::Blob(blob) => blob.io_error().is_some_and(full),
            VolumeError::Meta(meta) => meta.is_full(),
            _ => false,
        }
    }

    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> VolumeError {
        let what = what.into();
        move |source| VolumeError::Io { what, source }
    }
}
