//! The one mapping of errors to errno.

use std::io;

use fuser::Errno;
use tracing::error;

use crate::types::VeName;
use crate::volume::VolumeError;

/// What the program gets. Failures that are not the program's are logged here, once.
pub(super) fn errno(ve: &VeName, operation: &'static str, failure: &VolumeError) -> Errno {
    let code = match failure {
        VolumeError::NotFound => libc::ENOENT,
        VolumeError::Exists => libc::EEXIST,
        VolumeError::NotDir => libc::ENOTDIR,
        VolumeError::IsDir => libc::EISDIR,
        VolumeError::NotEmpty => libc::ENOTEMPTY,
        VolumeError::NotPermitted(_) => libc::EPERM,
        VolumeError::Invalid(_) => libc::EINVAL,
        // `Changed` is for who rebases; no request meets it.
        VolumeError::Stale | VolumeError::Changed => libc::ESTALE,
        VolumeError::NoData => libc::ENODATA,
        VolumeError::NameTooLong | VolumeError::PathTooLong { .. } => libc::ENAMETOOLONG,
        VolumeError::TooManyLinks => libc::EMLINK,
        // ext4 says so when the attributes of an inode do not fit.
        VolumeError::XattrSpace => libc::ENOSPC,
        VolumeError::Unsupported => libc::EOPNOTSUPP,
        VolumeError::Io { source, .. } => return host(ve, operation, failure, source),
        VolumeError::Blob(blob) => match blob.io_error() {
            Some(source) => return host(ve, operation, failure, source),
            None => logged(ve, operation, failure, libc::EIO),
        },
        VolumeError::Meta(meta) if meta.is_full() => libc::ENOSPC,
        VolumeError::Meta(_) | VolumeError::Damaged { .. } => logged(ve, operation, failure, libc::EIO),
    };
    Errno::from_i32(code)
}

fn host(ve: &VeName, operation: &'static str, failure: &VolumeError, source: &io::Error) -> Errno {
    let code = match source.raw_os_error() {
        // The program's own doing, or the host's limits on it: passed on as they are.
        Some(
            code @ (libc::ENOSPC
            | libc::EDQUOT
            | libc::EFBIG
            | libc::EINVAL
            | libc::EOPNOTSUPP
            | libc::ENXIO
            | libc::ETXTBSY
            | libc::EAGAIN
            | libc::EINTR),
        ) => code,
        Some(code @ (libc::EMFILE | libc::ENFILE | libc::ENOMEM)) => logged(ve, operation, failure, code),
        // A missing or unreadable file of the store is damage, not an answer about the program's file.
        _ => logged(ve, operation, failure, libc::EIO),
    };
    Errno::from_i32(code)
}

fn logged(ve: &VeName, operation: &'static str, failure: &VolumeError, code: i32) -> i32 {
    error!(%ve, operation, error = %failure, errno = code, "request failed");
    code
}
