//! Versions of templates: what each came from, tags, differences, moves to another OS.

use serde::{Deserialize, Serialize};

use super::Change;
use crate::types::{Tag, TemplateRef, TemplateSpec, Version};

/// How a version of a template came to be.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// Nobody wrote it down: it is older than such records.
    #[default]
    Unknown,
    /// Of a folder, a tar or an image.
    Imported,
    /// Of a definition.
    Built,
    /// Of what a VE changed.
    Committed,
    /// By changes to another version.
    Patched,
    /// Of the definition and the patches of another version, on another OS.
    Rebuilt,
    /// By putting another version's layer on another OS.
    Reapplied,
}

/// What a version of a template came from.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Origin {
    /// How it was made.
    #[serde(default)]
    pub how: How,
    /// The version that it was made of, for [`How::Patched`], [`How::Rebuilt`] and [`How::Reapplied`]. It may be gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<TemplateSpec>,
    /// What was done, a few words each, for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<String>,
}

/// Give a version of a template a tag, or move the tag to it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TagTemplate {
    /// The tag.
    pub tag: Tag,
}

/// Where a tag was and where it is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tagged {
    /// The template and the tag, as a reference: `NAME@TAG`.
    pub tag: TemplateRef,
    /// The version that had it before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Version>,
    /// The version that has it now; `None` after it was taken away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<Version>,
}

/// Make a new version of an application template on another version of its OS, with the same changes. Three-way: what the new OS changed
/// and what the layer changed are both kept.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReapplyTemplate {
    /// The version to make.
    pub template: TemplateSpec,
    /// The OS template to make it on.
    pub os: TemplateRef,
    /// The application templates to make it on, in place of those that the old version needs below it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<TemplateSpec>,
}

/// The difference between two templates. Applications are compared as they look on their OS.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TemplateDiff {
    /// The old one.
    pub from: TemplateSpec,
    /// The new one.
    pub to: TemplateSpec,
    /// Sums over `files`.
    pub totals: DiffTotals,
    /// The packages that differ, by name: of those that each template brings.
    pub packages: Vec<PackageChange>,
    /// The paths that differ, by path.
    pub files: Vec<Change>,
}

/// A package that two templates do not have in common.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PackageChange {
    /// The package's name.
    pub name: String,
    /// Its version in the old template; `None` if it is new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Its version in the new template; `None` if it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// How much is different between two templates.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct DiffTotals {
    /// Paths that are new.
    pub added: u64,
    /// Paths that are different.
    pub changed: u64,
    /// Paths that are gone.
    pub removed: u64,
    /// Sizes of the files that are new.
    pub added_bytes: u64,
    /// Sizes of the files that have other content, as they were and as they are.
    pub changed_bytes: [u64; 2],
    /// Sizes of the files that are gone.
    pub removed_bytes: u64,
    /// Bytes of content that the new template has and the old one has nowhere: what it adds to a store that has the old one.
    pub new_content_bytes: u64,
}
