use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::blobs::BlobError;
use crate::tree::TreeError;
use crate::types::TypeError;

/// Why an import or an export failed. Every variant names the archive (or folder) and, where there is one, the entry.
#[derive(Debug, Error)]
pub enum ArchiveError {
    /// The archive or folder itself cannot be opened or read.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried: "open", "read", ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file is nothing that can be imported.
    #[error("{} cannot be imported: {why}", path.display())]
    NotAnArchive {
        /// The file or folder.
        path: PathBuf,
        /// What was found instead.
        why: String,
    },
    /// One entry was refused.
    #[error("{}: entry \"{entry}\": {reason}", archive.display())]
    Entry {
        /// The archive or folder.
        archive: PathBuf,
        /// The entry's path, made printable.
        entry: String,
        /// What is wrong with it.
        reason: Reason,
    },
    /// The archive as a whole was refused.
    #[error("{}: {reason}", archive.display())]
    Archive {
        /// The archive or folder.
        archive: PathBuf,
        /// What is wrong with it.
        reason: Reason,
    },
    /// The tar being written could not be written.
    #[error("cannot write the tar: {0}")]
    Output(#[source] io::Error),
    /// An entry's content could not be exported.
    #[error("cannot export \"{entry}\": {source}")]
    Content {
        /// The entry's path, made printable.
        entry: String,
        /// What reading it answered.
        source: io::Error,
    },
    /// Whatever provides the entries of an export failed.
    #[error("cannot list what to export: {0}")]
    Provider(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What is wrong with an entry or an archive.
#[derive(Debug, Error)]
pub enum Reason {
    /// The archive ends in the middle.
    #[error("the archive is truncated")]
    Truncated,
    /// A header that no tar program writes.
    #[error("damaged header: {0}")]
    Header(&'static str),
    /// The compressed stream is damaged or cannot be read.
    #[error("cannot read the archive: {0}")]
    Read(#[source] io::Error),
    /// The path has a `..` component.
    #[error("the path contains \"..\"")]
    DotDot,
    /// The path is longer than [`MAX_PATH_BYTES`](super::MAX_PATH_BYTES).
    #[error("the path is longer than 4096 bytes")]
    PathTooLong,
    /// A component of the path is no file name.
    #[error(transparent)]
    Name(#[from] TypeError),
    /// A component of the path before the last is no directory. Symbolic links are never followed.
    #[error("its parent \"{0}\" is not a directory")]
    ParentNotDirectory(String),
    /// The archive's root is described as something else than a directory.
    #[error("the root is not a directory")]
    RootNotDirectory,
    /// A hard link to something that is not in the archive, or not before it.
    #[error("hard link to \"{0}\", which is not in the archive before it")]
    LinkTarget(String),
    /// A hard link to a directory.
    #[error("hard link to the directory \"{0}\"")]
    LinkToDirectory(String),
    /// A hard link to a file that was left out on request.
    #[error("hard link to \"{0}\", which is excluded")]
    LinkToExcluded(String),
    /// A symbolic link without target, or with one longer than Linux allows.
    #[error("a symbolic link's target has 1 to 4095 bytes, this one {0}")]
    SymlinkTarget(usize),
    /// A number (owner, device, size) that Linux cannot represent.
    #[error("{what} {value} is out of range")]
    Range {
        /// Which number.
        what: &'static str,
        /// Its value.
        value: i64,
    },
    /// An extended attribute that Linux cannot hold.
    #[error("illegal extended attribute \"{0}\"")]
    Xattr(String),
    /// Something that tars may contain and this program does not take.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// More of something than the caller's [`Limits`](super::Limits) allow.
    #[error("more than {limit} {what}")]
    Limit {
        /// Of what: "entries", "bytes of content", ...
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// An image's JSON document is not as the specification says.
    #[error("bad image description: {0}")]
    Image(String),
    /// A file of an image does not have the digest or the size that names it.
    #[error("{file} does not match its descriptor: {why}")]
    Mismatch {
        /// The file below `blobs/`.
        file: String,
        /// What differs.
        why: String,
    },
    /// The folder being imported contains the store that it is imported to, which grows meanwhile.
    #[error("it is the store itself; exclude it from the import")]
    OwnStore,
    /// A system call on the folder being imported failed.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The content could not be stored.
    #[error(transparent)]
    Blob(Box<BlobError>),
    /// The tree refused the entry.
    #[error(transparent)]
    Tree(Box<TreeError>),
}

impl Reason {
    pub(super) fn io(action: &'static str) -> impl FnOnce(rustix::io::Errno) -> Reason {
        move |errno| Reason::Io { action, source: errno.into() }
    }
}

/// Carries a [`Reason`] through the `Read` interface of the decoders.
#[derive(Debug, Error)]
#[error("{0}")]
struct Carried(Reason);

impl From<Reason> for io::Error {
    fn from(reason: Reason) -> io::Error {
        match reason {
            Reason::Truncated => io::ErrorKind::UnexpectedEof.into(),
            reason => io::Error::other(Carried(reason)),
        }
    }
}

impl From<io::Error> for Reason {
    fn from(error: io::Error) -> Reason {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Reason::Truncated;
        }
        match error.downcast::<Carried>() {
            Ok(carried) => carried.0,
            Err(error) => Reason::Read(error),
        }
    }
}

impl From<BlobError> for Reason {
    fn from(error: BlobError) -> Reason {
        match error {
            BlobError::Content(source) => source.into(),
            error => Reason::Blob(Box::new(error)),
        }
    }
}

impl From<TreeError> for Reason {
    fn from(error: TreeError) -> Reason {
        Reason::Tree(Box::new(error))
    }
}

/// Bytes of an archive as text for messages.
pub(super) fn printable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => bytes.escape_ascii().to_string(),
    }
}
