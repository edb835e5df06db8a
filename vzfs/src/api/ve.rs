use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{MergeRule, Package, rfc3339};
use crate::types::{Digest, IdShift, TemplateRef, TemplateSpec, Timestamp, VeId, VeName};

/// A VE of the store.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Ve {
    /// Its name.
    pub name: VeName,
    /// Its number, never used again.
    pub id: VeId,
    /// The templates it stands on, the OS template first.
    pub templates: Vec<TemplateSpec>,
    /// The digest of the base that they merge into.
    pub base: Digest,
    /// When it was made.
    #[serde(with = "rfc3339")]
    pub created: Timestamp,
    /// Whether it is mounted now.
    pub mounted: bool,
    /// Where it is mounted, or will be when the daemon starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mountpoint: Option<PathBuf>,
    /// Whether this mount's data goes through the kernel; `None` when it is not mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passthrough: Option<bool>,
    /// Inodes that it changed or made.
    pub private_inodes: u64,
    /// Bytes of content that it does not share.
    pub private_bytes: u64,
    /// Bytes of content in its base.
    pub base_bytes: u64,
    /// The host's ids that its mount shows in place of its own; `None` when they are the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id_shift: Option<IdShift>,
    /// Free texts by name.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// What a VE's mount has had to do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VeStats {
    /// The VE.
    pub ve: VeName,
    /// How many requests of each kind the kernel has sent since this daemon serves the mount; what the kernel did by itself is in none.
    pub requests: BTreeMap<String, u64>,
    /// How many of them failed because of the host and not of the program, by the names of errno(3): a failing or full disk, no descriptors, no memory.
    #[serde(default)]
    pub failures: BTreeMap<String, u64>,
    /// Microseconds for which what it changed has waited for syncs of other VEs, in all threads together. A VE that changes much gives way to them, half of
    /// the time at most.
    #[serde(default)]
    pub waited_us: u64,
    /// Whether it is mounted.
    #[serde(default)]
    pub mounted: bool,
}

/// Make VEs.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVe {
    /// The name, or with `count` its beginning.
    pub name: VeName,
    /// The templates to stand on, the OS template first.
    pub templates: Vec<TemplateRef>,
    /// Make this many: `NAME-1` to `NAME-count`. All are made or none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// The host's ids for it; with `count` each VE gets a range of its own, one after the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id_shift: Option<IdShift>,
    /// Free texts by name, for each of them.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Give a VE other ids on the host; refused while it is mounted. Nothing that is stored changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShiftIds {
    /// The host's ids; without it, the VE's ids are the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id_shift: Option<IdShift>,
}

/// Give a VE another name; refused while it is mounted.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenameVe {
    /// The new name.
    pub name: VeName,
}

/// Mount a VE. Asking for the place where it is mounted already is fine.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountVe {
    /// An absolute path; without it, where it was mounted last, or the default place beside the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mountpoint: Option<PathBuf>,
}

/// Take a VE's mount away.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UmountVe {
    /// Also while programs use it.
    #[serde(default)]
    pub force: bool,
}

/// The query of `DELETE /v1/ves/{name}` and `DELETE /v1/templates/{ref}`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveQuery {
    /// Also while the VE is mounted; also while the template has tags, which go with it.
    #[serde(default)]
    pub force: bool,
}

/// Make an application template of what a VE changed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommitVe {
    /// The template to make.
    pub template: TemplateSpec,
    /// One line for people.
    #[serde(default)]
    pub summary: String,
    /// Free texts by name.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The packages it brings; without them, the daemon compares the package databases if it knows them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packages: Option<Vec<Package>>,
    /// What to leave out: globs over paths without a leading slash. `*` and `?` do not match a slash, `**` matches
    /// any number of directories, `[..]` a set of characters. A match leaves out what is below it as well, and also
    /// a deletion at that path.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// How files are merged; first match counts, and these go before the built-in rules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub merge: Vec<MergeRule>,
    /// The topmost template of the VE's stack, of which the new template is then a new version: the VE's changes are made part of it, where
    /// otherwise they become a template on top. Of an OS template a new version is a whole root filesystem again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_of: Option<TemplateSpec>,
    /// The version on another OS that the VE's changes were built after, to be remembered as what the template came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebuilds: Option<TemplateSpec>,
    /// The absolute path of the archive of what it was built of, to keep with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<PathBuf>,
    /// What was done in the VE, a few words each, for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<String>,
}
