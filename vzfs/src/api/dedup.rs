use serde::{Deserialize, Serialize};

use super::rfc3339;
use crate::types::{Timestamp, VeName};

/// Private files that take less are left alone unless told otherwise: a file takes a block at least.
pub const DEFAULT_DEDUP_MIN_BYTES: u64 = 4096;
/// For how long nobody must have changed a private file, unless told otherwise.
pub const DEFAULT_DEDUP_QUIET_SECS: u64 = 3600;

/// Make private files of equal content one.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DedupRequest {
    /// Only files of these VEs are looked at, and compared with each other and with all blobs. None: of all VEs.
    #[serde(default)]
    pub ves: Vec<VeName>,
    /// Only say what would be shared. Files are read all the same.
    #[serde(default)]
    pub dry_run: bool,
    /// Files that take less are left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_bytes: Option<u64>,
    /// So are files that were changed less long ago; a second at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiet_secs: Option<u64>,
}

/// What a search for equal private files found and did, or with `dry_run` would do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct DedupReport {
    /// When it began.
    #[serde(with = "rfc3339")]
    pub started: Timestamp,
    /// When it ended.
    #[serde(with = "rfc3339")]
    pub finished: Timestamp,
    /// Nothing was changed.
    pub dry_run: bool,
    /// VEs looked at.
    pub ves: u64,
    /// Private files with content of their own.
    pub files: u64,
    /// Those that were read; of the others the digest was known, or they were left alone.
    pub hashed_files: u64,
    /// Their bytes.
    pub hashed_bytes: u64,
    /// Files that refer to a blob now.
    pub shared_files: u64,
    /// The space that they took.
    pub freed_bytes: u64,
    /// Blobs made for them; the others were there.
    pub new_blobs: u64,
    /// What those take.
    pub new_blob_bytes: u64,
    /// Freed less new.
    pub saved_bytes: u64,
    /// Files that were left alone.
    pub skipped: DedupSkipped,
    /// The longest time for which operations on a VE had to wait.
    pub longest_pause_us: u64,
}

/// Why private files were left alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct DedupSkipped {
    /// They take too little.
    pub small: u64,
    /// Most of them is holes.
    pub sparse: u64,
    /// They were changed not long ago.
    pub recent: u64,
    /// Programs have them open or mapped.
    pub open: u64,
    /// They were changed while they were looked at.
    pub changed: u64,
    /// They could not be read; the daemon's log says why.
    pub unreadable: u64,
}

/// The search that runs, if one does, and what the last one of all VEs did.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DedupStatus {
    /// The running one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<DedupProgress>,
    /// The last one that came to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<DedupReport>,
}

/// How far a search is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DedupProgress {
    /// When it began.
    #[serde(with = "rfc3339")]
    pub started: Timestamp,
    /// Whether the daemon began it by itself. It gives up when somebody asks for a search.
    pub scheduled: bool,
    /// Private files looked at.
    pub files: u64,
    /// Bytes read.
    pub hashed_bytes: u64,
    /// Files that refer to a blob now.
    pub shared_files: u64,
}
