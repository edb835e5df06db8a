use serde::{Deserialize, Serialize};

use super::rfc3339;
use crate::types::{Digest, FileKind, Timestamp};

/// What happened to a path.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// It was there and is different.
    Changed,
    /// It is gone.
    Deleted,
}

/// What is different about a changed path.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Aspect {
    /// The type of file.
    Type,
    /// The bytes of a regular file.
    Content,
    /// Where a symbolic link points.
    Target,
    /// The device number.
    Device,
    /// The permission bits.
    Mode,
    /// User or group.
    Owner,
    /// The time of the last change.
    Mtime,
    /// Extended attributes, ACLs among them.
    Xattrs,
    /// Which other names it has.
    Links,
}

/// One side of a change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Side {
    /// Type of file.
    #[serde(rename = "type")]
    pub file_type: FileKind,
    /// Permission bits: `0 ..= 0o7777`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size of a regular file; 0 for everything else.
    pub size: u64,
    /// Last change of content.
    #[serde(with = "rfc3339")]
    pub mtime: Timestamp,
    /// Digest of a regular file's content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Target of a symbolic link, written as [`path_text`](super::path_text) does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// A difference between two templates.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Change {
    /// The path without a leading slash, written as [`path_text`](super::path_text) does; empty for the root.
    pub path: String,
    /// What happened.
    pub kind: ChangeKind,
    /// What is different, for a changed path.
    #[serde(default)]
    pub aspects: Vec<Aspect>,
    /// How it was, unless it is new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<Side>,
    /// How it is, unless it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<Side>,
}

/// What a VE did to a path of its base.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VolumeChange {
    /// The path without a leading slash, written as [`path_text`](super::path_text) does; empty for the root.
    pub path: String,
    /// What happened.
    pub kind: ChangeKind,
    /// The type of file: the new one, or of what was deleted.
    #[serde(rename = "type")]
    pub file_type: FileKind,
    /// Size of a regular file: the new one, or of what was deleted.
    pub size: u64,
}
