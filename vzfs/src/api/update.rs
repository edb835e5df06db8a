//! Moving VEs from one base to another.

use serde::{Deserialize, Serialize};

use super::ChangeKind;
use crate::types::{Digest, TemplateSpec, VeName};

/// One template of a VE's stack. The digest is kept beside the name, because it is what the base was made of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StackItem {
    /// Name and version.
    pub spec: TemplateSpec,
    /// The layer that had this name and version.
    pub layer: Digest,
}

/// What to do with a file that both the update and the VE changed, and that no rule can merge.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnConflict {
    /// The VE keeps its own. A configuration file of the update is put beside it.
    #[default]
    Keep,
    /// The update's is taken; the VE's own file is put beside it.
    Take,
    /// The VE is not moved.
    Fail,
}

/// What moving a VE to another base did to it, or would do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RebaseReport {
    /// The VE.
    pub ve: VeName,
    /// The stack that it had, the OS first.
    pub from: Vec<StackItem>,
    /// The stack that it has now.
    pub to: Vec<StackItem>,
    /// The base that it had.
    pub from_base: Digest,
    /// The base that it has now.
    pub to_base: Digest,
    /// Nothing was changed, this is what would be.
    pub dry_run: bool,
    /// How many paths the update brought that the VE did not have.
    pub added: u64,
    /// How many paths it replaced or changed.
    pub changed: u64,
    /// How many paths it took away.
    pub removed: u64,
    /// What the update has and the VE does not show, because of what the VE itself did there. By path.
    pub shadowed: Vec<Shadowed>,
    /// Files that both changed, and that have both sides' changes now. By path.
    pub merged: Vec<MergedFile>,
    /// Decisions that somebody should know of.
    pub notes: Vec<String>,
    /// Programs that still run files, or have files open, that the update replaced.
    #[serde(default)]
    pub stale_processes: Vec<StaleProcess>,
    /// Files made of others that are to be made anew in the VE, now that it has its new base.
    #[serde(default)]
    pub generate: Vec<Generate>,
    /// How long it took, preparation included.
    pub micros: u64,
    /// How long the VE's other requests had to wait for it.
    pub pause_micros: u64,
}

/// A path of the update that a VE does not show.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Shadowed {
    /// Where, without a leading slash; what is no UTF-8 is replaced.
    pub path: String,
    /// What the update did there.
    pub change: ChangeKind,
    /// Why the VE does not show it.
    pub by: ShadowedBy,
    /// Where the update's file was put, if it was put beside the VE's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beside: Option<String>,
    /// The package that it belongs to, if it belongs to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<String>,
    /// The version of that package that the VE has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The version that the update has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// Why a VE does not show what its base has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShadowedBy {
    /// The VE changed the file, or replaced it by one of its own.
    Changed,
    /// The VE removed it.
    Removed,
    /// A directory above it is the VE's own or was removed by it.
    Directory,
}

/// A file that both the update and the VE changed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MergedFile {
    /// Where, without a leading slash.
    pub path: String,
    /// By which rule.
    pub rule: String,
    /// What it decided that could have gone the other way.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// A file that a program in the VE makes of others, as `ldconfig` makes `ld.so.cache`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Generate {
    /// Where, without a leading slash.
    pub path: String,
    /// The shell command that makes it, run in the VE.
    pub command: String,
}

/// A program in a VE that still uses what an update replaced.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StaleProcess {
    /// Its number on the host.
    pub pid: u32,
    /// Its name.
    pub command: String,
    /// The replaced files that it runs, has mapped or has open.
    pub files: Vec<String>,
}
