//! What the catalog keeps, as JSON. These are stored data: fields are only ever added, with a default.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::api::{MergeRule, Origin, OsIdentity, Package, StackItem, Template, TemplateKind, TemplateStats};
use crate::types::{Digest, IdShift, Tag, TemplateSpec, Timestamp, VeId, VeName, Version};

/// A template, under the key `NAME@VERSION`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct TemplateRecord {
    pub spec: TemplateSpec,
    pub kind: TemplateKind,
    /// What an application template was made on. The layer's digest decides, the name is for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<OsIdentity>,
    /// The application templates that must be below it, because its layer holds changes to their files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<TemplateSpec>,
    pub layer: Digest,
    #[serde(default)]
    pub summary: String,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub packages: Vec<Package>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub merge: Vec<MergeRule>,
    #[serde(default)]
    pub origin: Origin,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<Recipe>,
    pub created: Timestamp,
    pub stats: TemplateStats,
}

impl TemplateRecord {
    pub(super) fn to_api(&self, used_by: Vec<VeName>, tags: Vec<Tag>) -> Template {
        Template {
            name: self.spec.name.clone(),
            version: self.spec.version.clone(),
            kind: self.kind,
            os: self.os.clone(),
            requires: self.requires.clone(),
            digest: self.layer,
            summary: self.summary.clone(),
            labels: self.labels.clone(),
            packages: self.packages.clone(),
            merge: self.merge.clone(),
            tags,
            origin: self.origin.clone(),
            recipe: self.recipe.map(|recipe| recipe.digest),
            created: self.created,
            stats: self.stats,
            used_by,
        }
    }

    /// The template as something that can be built on; `None` for an application template.
    pub(super) fn os_identity(&self) -> Option<OsIdentity> {
        (self.kind == TemplateKind::Os).then(|| OsIdentity {
            name: self.spec.name.clone(),
            version: self.spec.version.clone(),
            layer: self.layer,
        })
    }
}

/// The archive of what a template was built of: a blob.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Recipe {
    pub digest: Digest,
    pub bytes: u64,
}

/// A tag, under the key `NAME@TAG`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct TagRecord {
    /// The version that has it.
    pub version: Version,
    /// When it got there.
    pub set: Timestamp,
}

/// A VE, under its number in hexadecimal: a rename is then one write.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct VeRecord {
    pub name: VeName,
    pub id: VeId,
    /// The OS first.
    pub stack: Vec<StackItem>,
    pub base: Digest,
    /// The bases that it had since it was mounted: programs may still use files of theirs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retired: Vec<Digest>,
    /// The base before this one, until the kernel knows of the exchange.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsettled: Option<Digest>,
    pub created: Timestamp,
    /// Where the VE is wanted mounted; `None` when it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mountpoint: Option<PathBuf>,
    /// Where it was mounted last, the default for the next time when it is not the store's default place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_mountpoint: Option<PathBuf>,
    /// The host's ids that its mount shows. What is stored of the VE has its own ids, whatever this says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id_shift: Option<IdShift>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Its removal has begun: the next open finishes it.
    #[serde(default)]
    pub removing: bool,
}

/// A base, under the digest of its stack.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct BaseRecord {
    pub base: Digest,
    /// The layers that it was made of, the OS first.
    pub layers: Vec<Digest>,
    /// The rules of the templates, by which it was made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<MergeRule>,
    /// What the merge decided, for people.
    #[serde(default)]
    pub notes: Vec<String>,
}
