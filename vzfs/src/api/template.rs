use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Origin, rfc3339};
use crate::types::{Digest, Tag, TemplateName, TemplateRef, TemplateSpec, Timestamp, VeName, Version};

/// What a template is to a stack.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TemplateKind {
    /// A whole root filesystem: the bottom of every stack.
    Os,
    /// A layer made on top of one exact OS template.
    App,
}

/// The OS template that an application template was made on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OsIdentity {
    /// Its name.
    pub name: TemplateName,
    /// Its version.
    pub version: Version,
    /// The digest of its layer.
    pub layer: Digest,
}

/// An installed package that a template brings.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// The package's name; a foreign architecture follows a colon (`libc6:i386`).
    pub name: String,
    /// Its version.
    pub version: String,
}

/// How the versions of some files become one where templates, or an update and a VE, both change them.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeRule {
    /// For which paths: a glob without a leading slash. `*` stands for anything without a slash, `**` for anything.
    pub path: String,
    /// The name of the rule: `text`, `lines`, `stanzas`, `whole`, `keep`, `take`, `derived` and others.
    pub rule: String,
    /// For derived files: the shell command that makes them anew, run in the VE. `{path}` and `{dir}` stand for the file and its directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generate: Option<String>,
}

/// What a template's layer holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TemplateStats {
    /// Inodes of every kind.
    pub inodes: u64,
    /// Regular files.
    pub files: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Directories.
    pub dirs: u64,
    /// Size of the regular files, each inode counted once.
    pub bytes: u64,
}

/// A template of the store.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Template {
    /// Its name.
    pub name: TemplateName,
    /// Its version.
    pub version: Version,
    /// What it is to a stack.
    pub kind: TemplateKind,
    /// The OS template it was made on, for an application template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<OsIdentity>,
    /// The application templates that it needs below it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<TemplateSpec>,
    /// The digest of its layer: equal digests, equal content.
    pub digest: Digest,
    /// One line for people.
    #[serde(default)]
    pub summary: String,
    /// Free texts by name.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The packages it brings, by name; empty when nobody told.
    #[serde(default)]
    pub packages: Vec<Package>,
    /// How files are merged; first match counts, and these go before the built-in rules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub merge: Vec<MergeRule>,
    /// Its tags, by name.
    #[serde(default)]
    pub tags: Vec<Tag>,
    /// What it came from.
    #[serde(default)]
    pub origin: Origin,
    /// Digest of the archive of what it was built of, if that is kept: it can then be built again on another OS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<Digest>,
    /// When it entered the store.
    #[serde(with = "rfc3339")]
    pub created: Timestamp,
    /// What its layer holds.
    pub stats: TemplateStats,
    /// The VEs that stand on it, by name.
    #[serde(default)]
    pub used_by: Vec<VeName>,
}

impl Template {
    /// `NAME@VERSION`.
    pub fn spec(&self) -> TemplateSpec {
        TemplateSpec { name: self.name.clone(), version: self.version.clone() }
    }
}

/// Make a template of a folder, a tar or an OCI layout of the daemon's host.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportRequest {
    /// The template to make.
    pub template: TemplateSpec,
    /// The absolute path of what to read.
    pub source: PathBuf,
    /// What it is to be; without it, `app` when `os` is given and `os` otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<TemplateKind>,
    /// The OS template it was made on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<TemplateRef>,
    /// One line for people.
    #[serde(default)]
    pub summary: String,
    /// Free texts by name.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The packages in it; without them, the daemon reads the package database if it knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packages: Option<Vec<Package>>,
    /// What to leave out: globs over paths without a leading slash; see [`CommitVe::exclude`](super::CommitVe::exclude).
    #[serde(default)]
    pub exclude: Vec<String>,
    /// How files are merged; first match counts, and these go before the built-in rules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub merge: Vec<MergeRule>,
    /// The absolute path of the archive of what it was built of, to keep with it; without one, nothing built it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<PathBuf>,
}

/// A check of everything a template needs, read again from the disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Blobs read.
    pub blobs: u64,
    /// Bytes read.
    pub bytes: u64,
    /// What was not what it should be.
    pub damaged: Vec<DamagedBlob>,
}

/// A blob or tree whose content is not that of its name, or that is gone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DamagedBlob {
    /// The digest it should have.
    pub digest: Digest,
    /// A path that needs it; empty when the tree itself is damaged.
    #[serde(default)]
    pub path: String,
    /// What was found instead.
    pub why: String,
}

/// What a removal removed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Removed {
    /// The name of what is gone: `NAME@VERSION` of a template, the name of a VE.
    pub removed: String,
    /// Space that became free; `None` when a later clean-up frees it.
    #[serde(default)]
    pub freed_bytes: Option<u64>,
}
