use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::rfc3339;
use crate::types::Timestamp;

/// The store and the daemon that serves it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct StoreInfo {
    /// The store folder, absolute.
    pub store: PathBuf,
    /// The store's format version.
    pub format: u32,
    /// The daemon's version.
    pub version: String,
    /// The daemon's process id.
    pub pid: u32,
    /// When the daemon started.
    #[serde(default, with = "rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// Templates in the store.
    pub templates: u64,
    /// VEs in the store.
    pub ves: u64,
    /// VEs that are mounted.
    pub mounted: u64,
    /// Bases: distinct stacks of templates in use.
    #[serde(default)]
    pub bases: u64,
    /// Blobs in the store.
    pub blobs: u64,
    /// Their size together.
    pub blob_bytes: u64,
    /// Size of all tree files together.
    #[serde(default)]
    pub tree_bytes: u64,
    /// Private data of all VEs together.
    #[serde(default)]
    pub private_bytes: u64,
    /// Space left on the store's disk.
    #[serde(default)]
    pub free_bytes: Option<u64>,
    /// Whether data goes through the kernel, unless a mount says otherwise; `None` before the first mount.
    #[serde(default)]
    pub passthrough: Option<bool>,
}

/// The daemon as a process.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// Its version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// The process that starts it again when it dies, and holds the mounts meanwhile.
    pub supervisor_pid: u32,
    /// When this process started.
    #[serde(default, with = "rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// How many daemons the supervisor has started before this one.
    pub restarts: u64,
}

/// What this host offers, and what its lack costs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Doctor {
    /// The checks, the most important first.
    pub checks: Vec<DoctorCheck>,
}

/// One thing looked at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DoctorCheck {
    /// What was looked at: `fuse device`, `passthrough`, `reflinks`.
    pub name: String,
    /// The verdict.
    pub status: CheckStatus,
    /// What was found.
    pub found: String,
    /// What it costs when the verdict is not `ok`; empty otherwise.
    #[serde(default)]
    pub cost: String,
}

/// The verdict of a check.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckStatus {
    /// As good as it gets.
    Ok,
    /// Works, at a cost.
    Degraded,
    /// Does not work.
    Missing,
}
