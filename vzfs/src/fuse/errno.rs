//! The one mapping of errors to errno.

use std::io;

use crate::volume::VolumeError;

/// What the program gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    /// It is about what the program asked for.
    Program(i32),
    /// The host has failed, or what the store has on it: somebody should know.
    Host(i32),
}

impl Answer {
    pub(super) fn code(self) -> i32 {
        let (Answer::Program(code) | Answer::Host(code)) = self;
        code
    }
}

pub(super) fn answer(failure: &VolumeError) -> Answer {
    Answer::Program(match failure {
        VolumeError::NotFound => libc::ENOENT,
        VolumeError::Exists => libc::EEXIST,
        VolumeError::NotDir => libc::ENOTDIR,
        VolumeError::IsDir => libc::EISDIR,
        VolumeError::NotEmpty => libc::ENOTEMPTY,
        VolumeError::NotPermitted(_) => libc::EPERM,
        VolumeError::Invalid(_) => libc::EINVAL,
        // `Changed` is for who rebases; no request meets it.
        VolumeError::Stale | VolumeError::Changed => libc::ESTALE,
        VolumeError::Locked { .. } => libc::EBUSY,
        VolumeError::NoData => libc::ENODATA,
        VolumeError::NameTooLong | VolumeError::PathTooLong { .. } => libc::ENAMETOOLONG,
        VolumeError::TooManyLinks => libc::EMLINK,
        // ext4 says so when the attributes of an inode do not fit.
        VolumeError::XattrSpace => libc::ENOSPC,
        VolumeError::Unsupported => libc::EOPNOTSUPP,
        VolumeError::Io { source, .. } => return host(source),
        VolumeError::Blob(blob) => return blob.io_error().map_or(Answer::Host(libc::EIO), host),
        VolumeError::Meta(meta) if meta.is_over_quota() => return Answer::Host(libc::EDQUOT),
        VolumeError::Meta(meta) if meta.is_full() => return Answer::Host(libc::ENOSPC),
        VolumeError::Meta(_) | VolumeError::Tree(_) | VolumeError::Damaged { .. } => {
            return Answer::Host(libc::EIO);
        }
    })
}

fn host(source: &io::Error) -> Answer {
    match source.raw_os_error() {
        // The program's own doing: passed on as it is.
        Some(
            code @ (libc::EFBIG
            | libc::EINVAL
            | libc::EOPNOTSUPP
            | libc::ENXIO
            | libc::ETXTBSY
            | libc::EAGAIN
            | libc::EINTR),
        ) => Answer::Program(code),
        // The host's limits, which mean the same to the program.
        Some(
            code @ (libc::ENOSPC | libc::EDQUOT | libc::EROFS | libc::EMFILE | libc::ENFILE | libc::ENOMEM),
        ) => Answer::Host(code),
        // A missing or unreadable file of the store is damage, not an answer about the program's file.
        _ => Answer::Host(libc::EIO),
    }
}
