//! The store's errors as refusals: one place decides code and hint, and logs what an administrator must know of.

use std::error::Error;
use std::io;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use rustix::io::Errno;

use crate::api::{ApiError, ErrorCode};
use crate::archive::{ArchiveError, Reason};
use crate::blobs::BlobError;
use crate::fuse::FuseError;
use crate::meta::MetaError;
use crate::store::stack::StackError;
use crate::store::{BoxError, StoreError};
use crate::tree::TreeError;
use crate::update::UpdateError;
use crate::volume::VolumeError;

/// An error as an HTTP reply.
pub(super) struct Refusal(pub ApiError);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0)).into_response()
    }
}

/// An error that a client is told of.
pub(super) trait Told: Send + 'static {
    /// What it is told.
    fn told(&self) -> ApiError;
}

impl Told for StoreError {
    fn told(&self) -> ApiError {
        api_error(self)
    }
}

impl Told for UpdateError {
    fn told(&self) -> ApiError {
        let (code, hint) = match self {
            UpdateError::Store(error) => return api_error(error),
            UpdateError::Records(error) => {
                tracing::error!(%error, "a request failed");
                (meta_code(error), None)
            }
            UpdateError::Unknown(_) | UpdateError::UnknownVe { .. } => {
                (ErrorCode::NotFound, Some("`vzfs update history` shows what there is".to_owned()))
            }
            UpdateError::Invalid(_) | UpdateError::NotMoved { .. } => (ErrorCode::Invalid, None),
            UpdateError::OtherPlan => (ErrorCode::Invalid, Some("look at it again".to_owned())),
            UpdateError::Taken { id, .. } => {
                let hint = format!("wait until it is done, or end it: `vzfs update stop {id}`");
                (ErrorCode::InUse, Some(hint))
            }
            UpdateError::State { .. } => (ErrorCode::InUse, None),
            UpdateError::Closing => (ErrorCode::Busy, None),
        };
        let reply = ApiError::new(code, self.to_string());
        hint.map_or_else(|| reply.clone(), |hint| reply.clone().with_hint(hint))
    }
}

/// What a client is told of an error. What is the host's is logged.
pub(super) fn api_error(error: &StoreError) -> ApiError {
    let reply = reply(error);
    // Requests that were refused are the client's business; these are the host's.
    if matches!(reply.code, ErrorCode::Internal | ErrorCode::Damaged | ErrorCode::NoSpace) {
        tracing::error!(code = %reply.code, %error, "a request failed");
    } else {
        tracing::debug!(code = %reply.code, %error, "a request was refused");
    }
    reply
}

/// An error in words, with what can be done about it.
pub(super) fn reply(error: &StoreError) -> ApiError {
    let trouble = disk_trouble(error);
    let code = match trouble {
        Some(DiskTrouble::Full | DiskTrouble::Quota) => ErrorCode::NoSpace,
        _ => code(error),
    };
    let reply = ApiError::new(code, error.to_string());
    match hint(error, code, trouble) {
        Some(hint) => reply.with_hint(hint),
        None => reply,
    }
}

fn code(error: &StoreError) -> ErrorCode {
    match error {
        StoreError::UnknownTemplate(_)
        | StoreError::UnknownVe(_)
        | StoreError::UnknownTag { .. }
        | StoreError::NoRecipe(_) => ErrorCode::NotFound,
        StoreError::TemplateExists(_)
        | StoreError::VersionIsTag(_)
        | StoreError::TagIsVersion(_)
        | StoreError::VeExists(_) => ErrorCode::Exists,
        StoreError::TemplateBusy(_)
        | StoreError::VeBusy(_)
        | StoreError::VeAtWork { .. }
        | StoreError::Moving(_)
        | StoreError::VeRemoving(_)
        | StoreError::Locked { .. }
        | StoreError::Verifying
        | StoreError::Deduplicating
        | StoreError::Closing => ErrorCode::Busy,
        StoreError::TemplateInUse { .. }
        | StoreError::NeededByUpdate { .. }
        | StoreError::Tagged { .. }
        | StoreError::Mounted { .. }
        | StoreError::MountpointTaken { .. }
        | StoreError::MountBusy { .. } => ErrorCode::InUse,
        StoreError::NoOs { .. }
        | StoreError::TwoOs(..)
        | StoreError::Twice(_)
        | StoreError::Unfit { .. }
        | StoreError::Reapply { .. }
        | StoreError::Requires { .. } => ErrorCode::Unfit,
        StoreError::NotAStore { .. }
        | StoreError::Path { .. }
        | StoreError::Invalid(_)
        | StoreError::Type(_) => ErrorCode::Invalid,
        StoreError::Format { .. } => ErrorCode::Unsupported,
        StoreError::OutOfIds
        | StoreError::Io { .. }
        | StoreError::RemoveData { .. }
        | StoreError::Unmount { .. } => ErrorCode::Internal,
        // The commonest failures of a mount are a mount point that is unusable, and no privilege.
        StoreError::Mount { source, .. } if is_no_shift(source) => ErrorCode::Unsupported,
        StoreError::Mount { source, .. } => match source.downcast_ref::<io::Error>() {
            Some(error) if error.kind() == io::ErrorKind::Other => ErrorCode::Invalid,
            Some(error) => path_code(error),
            None => ErrorCode::Internal,
        },
        StoreError::Stack(error) => match error {
            StackError::Tree(error) => tree_code(error),
            StackError::Blobs(error) => blob_code(error),
        },
        StoreError::Blob(error) => blob_code(error),
        StoreError::Tree(error) => tree_code(error),
        StoreError::Archive(error) => archive_code(error),
        StoreError::Meta(error) => meta_code(error),
        StoreError::Volume { source, .. } => match &**source {
            VolumeError::Damaged { .. } => ErrorCode::Damaged,
            VolumeError::PathTooLong { .. } => ErrorCode::Invalid,
            VolumeError::Meta(error) => meta_code(error),
            VolumeError::Tree(error) => tree_code(error),
            VolumeError::Blob(error) => blob_code(error),
            _ => ErrorCode::Internal,
        },
    }
}

fn is_no_shift(source: &BoxError) -> bool {
    matches!(source.downcast_ref(), Some(FuseError::NoShift))
}

fn blob_code(error: &BlobError) -> ErrorCode {
    match error {
        BlobError::Missing { .. } | BlobError::Damaged { .. } => ErrorCode::Damaged,
        BlobError::Io { .. } | BlobError::Content(_) => ErrorCode::Internal,
    }
}

fn tree_code(error: &TreeError) -> ErrorCode {
    match error {
        TreeError::Missing(_)
        | TreeError::Damaged { .. }
        | TreeError::WrongDigest { .. }
        | TreeError::Unreadable { .. } => ErrorCode::Damaged,
        TreeError::NewerFormat { .. } => ErrorCode::Unsupported,
        TreeError::Unfit { .. } | TreeError::TooLarge(_) => ErrorCode::Invalid,
        _ => ErrorCode::Internal,
    }
}

fn meta_code(error: &MetaError) -> ErrorCode {
    match error {
        MetaError::Damaged { .. } => ErrorCode::Damaged,
        error if error.is_corruption() => ErrorCode::Damaged,
        MetaError::Locked { .. } => ErrorCode::Busy,
        _ => ErrorCode::Internal,
    }
}

fn archive_code(error: &ArchiveError) -> ErrorCode {
    match error {
        ArchiveError::Io { source, .. } => path_code(source),
        ArchiveError::NotAnArchive { .. } => ErrorCode::Invalid,
        ArchiveError::Entry { reason, .. } | ArchiveError::Archive { reason, .. } => match reason {
            Reason::Blob(error) => blob_code(error),
            Reason::Tree(error) => tree_code(error),
            Reason::Io { .. } => ErrorCode::Internal,
            // Everything else is in the archive itself.
            _ => ErrorCode::Invalid,
        },
        ArchiveError::Output(_) | ArchiveError::Provider(_) => ErrorCode::Internal,
        ArchiveError::Content { source, .. } => {
            // The content is the store's own: one that is not there is damage.
            if source.kind() == io::ErrorKind::NotFound { ErrorCode::Damaged } else { ErrorCode::Internal }
        }
    }
}

/// For a path that the request names.
fn path_code(error: &io::Error) -> ErrorCode {
    match error.kind() {
        io::ErrorKind::NotFound => ErrorCode::NotFound,
        io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory | io::ErrorKind::AlreadyExists => {
            ErrorCode::Invalid
        }
        _ => ErrorCode::Internal,
    }
}

/// What is the matter with a store's disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum DiskTrouble {
    /// It is full.
    Full,
    /// A quota of the host's filesystem on it is used up.
    Quota,
    /// It, or the filesystem on it, cannot be read or written.
    Broken,
}

/// What is the matter with the store's disk, if that is the reason, whoever noticed it.
fn disk_trouble(error: &StoreError) -> Option<DiskTrouble> {
    let inner: &dyn Error = match error {
        StoreError::Archive(archive) => match &**archive {
            ArchiveError::Entry { reason, .. } | ArchiveError::Archive { reason, .. } => reason,
            archive => archive,
        },
        error => error,
    };
    let mut cause = Some(inner);
    while let Some(error) = cause {
        match error.downcast_ref().and_then(Errno::from_io_error) {
            Some(Errno::NOSPC) => return Some(DiskTrouble::Full),
            Some(Errno::DQUOT) => return Some(DiskTrouble::Quota),
            Some(Errno::IO | Errno::ROFS) => return Some(DiskTrouble::Broken),
            _ => cause = error.source(),
        }
    }
    // RocksDB passes the system's answer on as a text.
    let database = match error {
        StoreError::Meta(error) => error,
        StoreError::Volume { source, .. } => match &**source {
            VolumeError::Meta(error) => error,
            _ => return None,
        },
        _ => return None,
    };
    match database {
        error if error.is_over_quota() => Some(DiskTrouble::Quota),
        error if error.is_full() => Some(DiskTrouble::Full),
        error if error.is_broken_disk() => Some(DiskTrouble::Broken),
        _ => None,
    }
}

fn hint(error: &StoreError, code: ErrorCode, trouble: Option<DiskTrouble>) -> Option<String> {
    let text = match (error, code) {
        (_, ErrorCode::NoSpace) if trouble == Some(DiskTrouble::Quota) => {
            "raise the quota of the host's filesystem that holds the store, or remove templates and VEs"
                .to_owned()
        }
        (_, ErrorCode::NoSpace) => "free space on the store's disk, or remove templates and VEs".to_owned(),
        (StoreError::NoOs { fits: Some(os) }, _) => format!("put {os} first"),
        (StoreError::NoOs { fits: None }, _) => {
            "name one OS template; `vzfs template list` shows them".to_owned()
        }
        (StoreError::TwoOs(..), _) => "name one of them".to_owned(),
        (StoreError::Unfit { os, app, .. }, _) => {
            format!("build {} on {os}, or take the OS that it was made on", app.name)
        }
        (StoreError::Requires { needs, .. }, _) => format!("name {needs} before it"),
        (StoreError::UnknownTemplate(_), _) => "`vzfs template list` shows what there is".to_owned(),
        (StoreError::UnknownVe(_), _) => "`vzfs ve list` shows what there is".to_owned(),
        (StoreError::TemplateExists(_), _) => {
            "a template never changes: give the new one another version, or remove the old one".to_owned()
        }
        (StoreError::VersionIsTag(_), _) => "take the tag away first, or choose another version".to_owned(),
        (StoreError::TagIsVersion(_), _) => "choose another tag".to_owned(),
        (StoreError::UnknownTag { name, .. }, _) => {
            format!("`vzfs template history {name}` shows what there is")
        }
        (StoreError::Tagged { spec, .. }, _) => {
            format!("move its tags, take them away (`vzfs template untag {} TAG`), or add --force", spec.name)
        }
        (StoreError::Reapply { os, .. }, _) => {
            format!("build it anew on {os}, or give it merge rules for these files")
        }
        (StoreError::Verifying, _) => "`vzfs store verify --status` says how far it is".to_owned(),
        (StoreError::Deduplicating, _) => "`vzfs store dedup --status` says how far it is".to_owned(),
        (StoreError::TemplateBusy(_), _) => "wait until that is done".to_owned(),
        (StoreError::TemplateInUse { .. }, _) => "remove these first".to_owned(),
        (StoreError::NeededByUpdate { updates, .. }, _) => {
            let id = updates.first().copied().unwrap_or_default();
            format!("`vzfs update forget {id}` gives the way back up, `vzfs update rollback {id}` takes it")
        }
        (StoreError::Mounted { ve, .. }, _) => format!("unmount it first: `vzfs ve umount {ve}`"),
        (StoreError::MountBusy { .. }, _) => {
            "end the programs that use it, or unmount with --force: they keep it until they end".to_owned()
        }
        (StoreError::Mount { ve, source, .. }, _) if is_no_shift(source) => {
            format!(
                "take a newer kernel, or let the VE have the host's ids: `vzfs ve set {ve} --id-shift none`"
            )
        }
        (StoreError::MountpointTaken { .. }, _) => "choose another mount point".to_owned(),
        (StoreError::VeAtWork { .. }, _) => "begin again when that has ended".to_owned(),
        (StoreError::VeBusy(_), _) => "wait until the export or commit is done".to_owned(),
        (StoreError::Locked { .. }, _) => "stop that daemon, or give this one another --store".to_owned(),
        (StoreError::NotAStore { .. }, _) => "name an empty or a new folder".to_owned(),
        (StoreError::Format { .. }, _) => "use the version of vzfs that made it, or a newer one".to_owned(),
        (StoreError::Meta(MetaError::Open { path, .. }), ErrorCode::Damaged) => {
            format!("put {} back from a backup of the store, all of it", path.display())
        }
        (_, ErrorCode::Internal) if trouble == Some(DiskTrouble::Broken) => {
            "look into the kernel's log (dmesg). If the filesystem has shut itself down, stop vzfs, mount the filesystem anew, and start it again"
                .to_owned()
        }
        (_, ErrorCode::Damaged) => "`vzfs template verify` shows what is damaged".to_owned(),
        _ => return None,
    };
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A failure of the store's disk as each part of the store tells of it.
    fn noticed_anywhere(errno: Errno) -> [StoreError; 4] {
        let failed = || io::Error::from_raw_os_error(errno.raw_os_error());
        let blob = || BlobError::Io { action: "write", path: "/store/blobs/tmp/1".into(), source: failed() };
        [
            StoreError::Io { action: "write", path: "/store/format".into(), source: failed() },
            StoreError::Blob(blob()),
            StoreError::from(ArchiveError::Entry {
                archive: "a.tar".into(),
                entry: "etc".into(),
                reason: Reason::Blob(Box::new(blob())),
            }),
            StoreError::Stack(StackError::Blobs(blob())),
        ]
    }

    #[test]
    fn a_full_disk_is_recognised_wherever_it_was_noticed() {
        for error in noticed_anywhere(Errno::NOSPC) {
            let reply = api_error(&error);
            assert_eq!(reply.code, ErrorCode::NoSpace, "{error:?}");
            assert!(reply.hint.is_some_and(|hint| hint.contains("free space")));
        }
    }

    #[test]
    fn a_quota_is_told_as_one() {
        for error in noticed_anywhere(Errno::DQUOT) {
            let reply = api_error(&error);
            assert_eq!(reply.code, ErrorCode::NoSpace, "{error:?}");
            assert!(reply.hint.is_some_and(|hint| hint.contains("raise the quota")), "{error:?}");
        }
    }

    #[test]
    fn a_disk_that_fails_is_told_as_one() {
        for error in noticed_anywhere(Errno::IO) {
            let reply = api_error(&error);
            assert_eq!(reply.code, ErrorCode::Internal, "{error:?}");
            assert!(reply.hint.is_some_and(|hint| hint.contains("dmesg")), "{error:?}");
        }
    }

    #[test]
    fn a_kernel_without_id_shifts_is_named() {
        let mount = |source: BoxError| StoreError::Mount {
            ve: "web".parse().expect("legal"),
            mountpoint: "/mnt".into(),
            source,
        };
        let reply = api_error(&mount(FuseError::NoShift.into()));
        assert_eq!(reply.code, ErrorCode::Unsupported);
        assert!(
            reply.message.contains("6.12") && reply.hint.is_some_and(|hint| hint.contains("--id-shift none"))
        );
    }

    #[test]
    fn unfit_stacks_say_what_fits() {
        let error = StoreError::Unfit {
            app: "nginx@1".parse().expect("legal"),
            os: "debian@13".parse().expect("legal"),
            fits: "debian@12".to_owned(),
        };
        let reply = api_error(&error);
        assert_eq!(reply.code, ErrorCode::Unfit);
        assert!(reply.message.contains("debian@12") && reply.message.contains("debian@13"), "{reply}");
    }
}
