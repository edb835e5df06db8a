use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::stack::StackError;
use crate::archive::ArchiveError;
use crate::blobs::BlobError;
use crate::meta::MetaError;
use crate::tree::TreeError;
use crate::types::{Tag, TemplateName, TemplateRef, TemplateSpec, TypeError, VeId, VeName};
use crate::volume::VolumeError;

/// Whatever a [`Mounter`](super::Mounter) failed with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why the store refused or failed. Each message says what failed, on which thing, and why.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A folder that holds something else.
    #[error("{dir} is not a vzfs store, and it is not empty")]
    NotAStore {
        /// The folder.
        dir: PathBuf,
    },
    /// A store that a newer version wrote, or whose format file is damaged.
    #[error("store {dir} has format {found:?}, and this version of vzfs knows format {known} only")]
    Format {
        /// The store folder.
        dir: PathBuf,
        /// First line of its format file.
        found: String,
        /// What this version writes.
        known: u32,
    },
    /// Another daemon has the store.
    #[error("store {dir} is in use by another daemon{}", pid.map_or(String::new(), |pid| format!(" (process {pid})")))]
    Locked {
        /// The store folder.
        dir: PathBuf,
        /// The process that holds the lock, when it wrote its number.
        pid: Option<u32>,
    },
    /// A system call failed on something of the store.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// A verb: "create", "open".
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No template of that name or version.
    #[error("there is no template {0}")]
    UnknownTemplate(TemplateRef),
    /// No VE of that name.
    #[error("there is no VE {0}")]
    UnknownVe(VeName),
    /// The template is there already.
    #[error("template {0} exists already")]
    TemplateExists(TemplateSpec),
    /// The version to be made is the name of a tag.
    #[error("{0} is a tag of that template, and cannot become a version of it")]
    VersionIsTag(TemplateSpec),
    /// The tag to be made is the name of a version.
    #[error("{0} is a version of that template, and cannot become a tag of it")]
    TagIsVersion(TemplateSpec),
    /// The template has no such tag.
    #[error("template {name} has no tag {tag}")]
    UnknownTag {
        /// The template.
        name: TemplateName,
        /// The tag.
        tag: Tag,
    },
    /// Not while it has tags.
    #[error("template {spec} is tagged {}", tags.iter().map(Tag::as_str).collect::<Vec<_>>().join(", "))]
    Tagged {
        /// The template.
        spec: TemplateSpec,
        /// Its tags.
        tags: Vec<Tag>,
    },
    /// What the template was built of is not known.
    #[error("nothing is kept of what template {0} was made of: it was not built of a definition")]
    NoRecipe(TemplateSpec),
    /// A layer cannot be put on another OS without losing something.
    #[error("{app} cannot be put on {os}: {}", first_of(losses))]
    Reapply {
        /// The application template.
        app: TemplateSpec,
        /// The OS template that it was to be put on.
        os: TemplateSpec,
        /// What would be lost, a sentence each.
        losses: Box<[String]>,
    },
    /// The template is being made by another request.
    #[error("template {0} is being made by another request")]
    TemplateBusy(TemplateSpec),
    /// The VE is there already.
    #[error("VE {0} exists already")]
    VeExists(VeName),
    /// The VE is being moved to another stack.
    #[error("VE {0} is being moved to other templates")]
    Moving(VeName),
    /// Something stands on the template.
    #[error("template {spec} is in use by {}", users(ves, templates))]
    TemplateInUse {
        /// The template.
        spec: TemplateSpec,
        /// The VEs on it.
        ves: Vec<VeName>,
        /// The application templates made on it.
        templates: Vec<TemplateSpec>,
    },
    /// A rollout may still take VEs to the template, or back to it.
    #[error("template {spec} is needed to finish or to roll back {}", numbered(updates))]
    NeededByUpdate {
        /// The template.
        spec: TemplateSpec,
        /// The rollouts.
        updates: Vec<u64>,
    },
    /// Not while it is mounted.
    #[error("VE {ve} is mounted on {mountpoint}")]
    Mounted {
        /// The VE.
        ve: VeName,
        /// Where.
        mountpoint: PathBuf,
    },
    /// Another VE has that mount point.
    #[error("{mountpoint} is the mount point of VE {ve}")]
    MountpointTaken {
        /// The path.
        mountpoint: PathBuf,
        /// The VE that has it.
        ve: VeName,
    },
    /// Programs use the mount.
    #[error("programs use the mount of VE {ve} on {mountpoint}")]
    MountBusy {
        /// The VE.
        ve: VeName,
        /// Where.
        mountpoint: PathBuf,
    },
    /// A path that cannot be a mount point or a source.
    #[error("{path} cannot be used as {what}: {why}")]
    Path {
        /// What it was to be.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// The rule that it breaks.
        why: &'static str,
    },
    /// An export or a commit still uses the VE.
    #[error("VE {0} is still in use by another request")]
    VeBusy(VeName),
    /// A package manager is at work in a VE that is to be moved: what both write would be lost.
    #[error("a package manager is at work in VE {ve}: process {pid} has locked /{path}")]
    VeAtWork {
        /// The VE.
        ve: VeName,
        /// The lock file.
        path: &'static str,
        /// Who holds it.
        pid: u32,
    },
    /// The VE is being removed.
    #[error("VE {0} is being removed")]
    VeRemoving(VeName),
    /// The store is closing.
    #[error("the store is closing")]
    Closing,
    /// No operating system to stand on.
    #[error("the stack has no OS template")]
    NoOs {
        /// The OS that its first application template was made on.
        fits: Option<TemplateSpec>,
    },
    /// More than one operating system.
    #[error("a stack has exactly one OS template, and both {0} and {1} are")]
    TwoOs(TemplateSpec, TemplateSpec),
    /// One template twice.
    #[error("template {0} is twice in the stack")]
    Twice(TemplateName),
    /// The application template was made on another OS.
    #[error("{app} does not fit {os}: it was made on {fits}")]
    Unfit {
        /// The application template.
        app: TemplateSpec,
        /// The stack's OS template.
        os: TemplateSpec,
        /// What it was made on, with the digest when the name alone would not tell.
        fits: String,
    },
    /// The application template holds changes to other templates that are not there.
    #[error("{app} needs {needs} below it in the stack")]
    Requires {
        /// The application template.
        app: TemplateSpec,
        /// What is missing, or comes after it.
        needs: TemplateSpec,
    },
    /// A request that contradicts itself or names what cannot be.
    #[error("{0}")]
    Invalid(String),
    /// Numbers for VEs are used up.
    #[error("the store has used up its {} VE numbers", u32::MAX)]
    OutOfIds,
    /// The templates do not merge.
    #[error(transparent)]
    Stack(#[from] StackError),
    /// A name that cannot be.
    #[error(transparent)]
    Type(#[from] TypeError),
    /// The blob store failed.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// A tree failed.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The source or the output of an import or export failed.
    #[error(transparent)]
    Archive(Box<ArchiveError>),
    /// The database failed.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// A volume failed.
    #[error("VE {ve}: {source}")]
    Volume {
        /// The VE.
        ve: VeName,
        /// Why.
        source: Box<VolumeError>,
    },
    /// The whole store is being checked already.
    #[error("the store is being verified already")]
    Verifying,
    /// Equal private files are being searched for already.
    #[error("equal private files are being searched for already")]
    Deduplicating,
    /// Data of a removed VE could not be deleted.
    #[error("cannot delete the data of VE {id}: {source}")]
    RemoveData {
        /// The VE's number.
        id: VeId,
        /// Why.
        source: io::Error,
    },
    /// The mount failed.
    #[error("cannot mount VE {ve} on {mountpoint}: {source}")]
    Mount {
        /// The VE.
        ve: VeName,
        /// Where.
        mountpoint: PathBuf,
        /// Why.
        source: BoxError,
    },
    /// The unmount failed.
    #[error("cannot unmount VE {ve} from {mountpoint}: {source}")]
    Unmount {
        /// The VE.
        ve: VeName,
        /// Where.
        mountpoint: PathBuf,
        /// Why.
        source: BoxError,
    },
}

impl From<ArchiveError> for StoreError {
    fn from(error: ArchiveError) -> StoreError {
        StoreError::Archive(Box::new(error))
    }
}

impl StoreError {
    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> StoreError {
        let path = path.into();
        move |source| StoreError::Io { action, path, source }
    }
}

/// The first sentences, and how many more there are.
fn first_of(sentences: &[String]) -> String {
    const SHOWN: usize = 10;
    let mut shown = sentences[..sentences.len().min(SHOWN)].join("; ");
    if sentences.len() > SHOWN {
        shown.push_str(&format!("; and {} more", sentences.len() - SHOWN));
    }
    shown
}

/// "VEs a, b and application template c@1": at most five names of each sort, so that a message stays a message.
fn users(ves: &[VeName], templates: &[TemplateSpec]) -> String {
    const SHOWN: usize = 5;
    let list = |what: &str, names: Vec<String>| {
        let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = names.len().saturating_sub(SHOWN);
        let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
        (!names.is_empty()).then(|| format!("{what} {shown}{rest}"))
    };
    let parts = [
        list("VE", ves.iter().map(ToString::to_string).collect()),
        list("application template", templates.iter().map(ToString::to_string).collect()),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" and ")
}

/// "update 3", "updates 3, 4".
fn numbered(updates: &[u64]) -> String {
    let numbers = updates.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
    format!("update{} {numbers}", if updates.len() == 1 { "" } else { "s" })
}
