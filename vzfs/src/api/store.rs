use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::rfc3339;
use crate::types::{Digest, TemplateSpec, Timestamp, VeName};

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
    /// When the whole store was last checked to the end.
    #[serde(default, with = "rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub verified: Option<Timestamp>,
    /// What that check found and nobody has repaired.
    #[serde(default)]
    pub damaged: u64,
}

/// Remove what nothing needs any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GcRequest {
    /// Only say what would be removed.
    #[serde(default)]
    pub dry_run: bool,
}

/// What a garbage collection removed, or with `dry_run` would.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct GcReport {
    /// Nothing was removed.
    pub dry_run: bool,
    /// Bases that no VE stands on.
    pub bases: u64,
    /// Tree files, of bases and of layers.
    pub trees: u64,
    /// Their size.
    pub tree_bytes: u64,
    /// Blobs.
    pub blobs: u64,
    /// Their size.
    pub blob_bytes: u64,
    /// Private data files that no VE knows of: crashes leave them.
    pub files: u64,
    /// The space that they take.
    pub file_bytes: u64,
    /// All bytes together.
    pub freed_bytes: u64,
    /// Blobs that are needed.
    pub kept_blobs: u64,
}

/// Who takes how much space.
///
/// *Logical* bytes are the sizes of all regular files shown, each inode once: what a copy would hold. *Unique* bytes are what removing it and
/// then collecting garbage gives back (of a template: once no VE stands on it). *Saved* is the difference.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoreDf {
    /// Of all templates and VEs together.
    pub logical_bytes: u64,
    /// What the store takes for them: blobs, trees and private data. Garbage is not counted.
    pub disk_bytes: u64,
    /// The difference.
    pub saved_bytes: u64,
    /// Size of all blobs that are needed.
    pub blob_bytes: u64,
    /// Size of all tree files that are needed.
    pub tree_bytes: u64,
    /// Space of all private data files.
    pub private_bytes: u64,
    /// By template, by name and version.
    pub templates: Vec<TemplateDf>,
    /// By VE, by name.
    pub ves: Vec<VeDf>,
}

/// The space of a template.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TemplateDf {
    /// Which.
    pub template: TemplateSpec,
    /// Sizes of the files of its layer, each inode once.
    pub logical_bytes: u64,
    /// Blobs that nothing else names.
    pub unique_bytes: u64,
    /// Blobs that another template or a VE's own record names too.
    pub shared_bytes: u64,
    /// Logical less unique.
    pub saved_bytes: u64,
}

/// The space of a VE.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VeDf {
    /// Which.
    pub ve: VeName,
    /// Sizes of the files that it shows, each inode once.
    pub logical_bytes: u64,
    /// Its private data, and blobs and a base that nothing else needs.
    pub unique_bytes: u64,
    /// The part of the logical bytes that lies in blobs.
    pub shared_bytes: u64,
    /// Logical less unique.
    pub saved_bytes: u64,
}

/// Check everything in the store against its digest.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyStore {
    /// Repair what is damaged from here: the absolute path of a folder, a tar, an OCI layout or another store of the daemon's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repair: Option<PathBuf>,
    /// Make anew what follows from the rest of the store; with a source, that too.
    #[serde(default)]
    pub rebuild: bool,
}

/// What a check of the whole store found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct StoreVerifyReport {
    /// When it began.
    #[serde(with = "rfc3339")]
    pub started: Timestamp,
    /// When it ended.
    #[serde(with = "rfc3339")]
    pub finished: Timestamp,
    /// Tree files that are as they should be.
    pub trees: u64,
    /// Blobs that are as they should be.
    pub blobs: u64,
    /// Bytes of both.
    pub bytes: u64,
    /// What was not as it should be, by digest.
    pub damaged: Vec<StoreDamage>,
    /// VEs whose private layers were looked through.
    #[serde(default)]
    pub ves: u64,
    /// What was wrong in them.
    #[serde(default)]
    pub private: Vec<PrivateDamage>,
}

/// Damage of a VE's private layer. Nothing can repair it: nobody else has what the VE wrote.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PrivateDamage {
    /// The VE.
    pub ve: VeName,
    /// The file that it is about, written as [`path_text`](super::path_text) does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What is wrong.
    pub why: String,
}

impl StoreVerifyReport {
    /// What is still damaged.
    pub fn unrepaired(&self) -> usize {
        self.damaged.iter().filter(|damage| !damage.repaired).count() + self.private.len()
    }
}

/// A blob or a tree file whose content is not that of its name, or that is gone, and whom that touches.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoreDamage {
    /// The digest it should have.
    pub digest: Digest,
    /// What it is.
    pub what: DamagedThing,
    /// What was found instead.
    pub why: String,
    /// Whether it is whole again.
    pub repaired: bool,
    /// Whom it touches: templates first, then VEs. Empty for what nothing needs; a garbage collection removes it.
    pub users: Vec<DamageUser>,
}

/// What is damaged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DamagedThing {
    /// The content of files.
    Blob,
    /// The metadata of a template or of a base.
    Tree,
}

/// A template or a VE, and the path in it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DamageUser {
    /// The template, unless it is a VE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<TemplateSpec>,
    /// The VE, unless it is a template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ve: Option<VeName>,
    /// The path without a leading slash, written as [`path_text`](super::path_text) does; empty when all of it is touched, and for a file
    /// that was removed and is still open. `(recipe)` stands for the archive of what a template was built of.
    pub path: String,
}

impl std::fmt::Display for DamageUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.template, &self.ve) {
            (Some(template), _) => write!(f, "template {template}")?,
            (None, Some(ve)) => write!(f, "VE {ve}")?,
            (None, None) => {}
        }
        write!(f, " /{}", self.path)
    }
}

/// The check that runs, if one does, and what the last one found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VerifyStatus {
    /// The running one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<VerifyProgress>,
    /// The last one that came to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<StoreVerifyReport>,
}

/// How far a check is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VerifyProgress {
    /// When it began.
    #[serde(with = "rfc3339")]
    pub started: Timestamp,
    /// Whether the daemon began it by itself. It gives up when somebody asks for a check.
    pub scheduled: bool,
    /// Bytes of blobs that were read.
    pub done_bytes: u64,
    /// Bytes of blobs in all; 0 while trees are read.
    pub total_bytes: u64,
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
    /// Milliseconds from its start until it answered all mounts, for which programs have waited if the one before was killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_after_ms: Option<u64>,
    /// How many daemons the supervisor has started before this one.
    pub restarts: u64,
    /// What is in force of its sandbox, as the kernel says; a daemon before this field does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxStatus>,
}

/// What is in force of a sandbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SandboxStatus {
    /// The daemon has no capability beyond those that it needs.
    pub capabilities_limited: bool,
    /// Its system calls are filtered.
    pub system_calls_filtered: bool,
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
