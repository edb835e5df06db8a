use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::types::{Digest, Ino};

/// Why a tree could not be built, stored or read.
#[derive(Debug, Error)]
pub enum TreeError {
    /// The host filesystem refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb: "create", "rename".
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The store has no such tree.
    #[error("tree {0} is not in the store")]
    Missing(Digest),
    /// The bytes break a rule of the format.
    #[error("tree {tree} is damaged: {what}")]
    Damaged {
        /// The tree, by the name it was asked for.
        tree: Digest,
        /// The rule and the place.
        what: String,
    },
    /// A part of a stored tree cannot be read: its disk fails, or somebody has cut its file off.
    #[error("a part of tree {tree} cannot be read")]
    Unreadable {
        /// The tree, by its digest.
        tree: String,
    },
    /// While a tree was read, a part of it became unreadable or readable for others, and it is not known whether what was read was among it.
    #[error("a part of a tree cannot be read, perhaps one that was needed")]
    Disturbed,
    /// The bytes are not the ones that the name stands for.
    #[error("tree {tree} is damaged: its bytes have the digest {actual}")]
    WrongDigest {
        /// The tree, by the name it was asked for.
        tree: Digest,
        /// What its bytes hash to.
        actual: Digest,
    },
    /// Two trees give one inode number to different files: with a million files each, that is so in one of some thousand pairs of trees.
    #[error(
        "inode number {ino} stands for different files in the two trees; a template that is built anew with any other content does not have this"
    )]
    Collision {
        /// The number.
        ino: Ino,
    },
    /// A newer vzfs wrote the tree.
    #[error("tree {tree} has format version {found}; this vzfs reads versions up to {supported}")]
    NewerFormat {
        /// The tree.
        tree: Digest,
        /// Its format version.
        found: u32,
        /// The newest version that this program knows.
        supported: u32,
    },
    /// A name was to be put into something that is not a directory.
    #[error("cannot add {name:?}: its parent is not a directory")]
    NotADirectory {
        /// The name, made printable.
        name: String,
    },
    /// A second name for a directory was asked for.
    #[error("cannot link {name:?}: directories have no hard links")]
    LinkToDirectory {
        /// The name, made printable.
        name: String,
    },
    /// An inode that no filesystem could hold, found when the tree was finished.
    #[error("{path:?} does not fit a tree: {why}")]
    Unfit {
        /// The path, made printable.
        path: String,
        /// The rule that was broken.
        why: &'static str,
    },
    /// One digest was given with two sizes, so one of the two is wrong.
    #[error("file {name:?} gives blob {digest} another size than the tree's other files do")]
    BlobConflict {
        /// The file's name, made printable.
        name: String,
        /// The blob.
        digest: Digest,
    },
    /// More than the 32-bit counters of the format can count.
    #[error("the tree is too large: more than 2^32 - 2 {0}")]
    TooLarge(&'static str),
}

impl TreeError {
    pub(super) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> TreeError {
        TreeError::Io { action, path: path.into(), source: source.into() }
    }

    pub(super) fn damaged(tree: Digest, what: impl Into<String>) -> TreeError {
        TreeError::Damaged { tree, what: what.into() }
    }

    pub(super) fn unfit(path: &[u8], why: &'static str) -> TreeError {
        TreeError::Unfit { path: path.escape_ascii().to_string(), why }
    }
}
