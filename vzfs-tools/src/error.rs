//! Failures as the user sees them: what failed and why, what to do about it, and an exit code.

use std::fmt::Display;
use std::io;
use std::path::Path;

use vzfs::api::{ApiError, ErrorCode};

/// The exit codes, as `--help` documents them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Any failure that has no code of its own.
    Failure = 1,
    /// The command line itself was wrong.
    Usage = 2,
    /// The named template, VE or file is not there.
    NotFound = 3,
    /// A thing of that name exists, or something still needs it.
    Conflict = 4,
    /// The input was refused: a bad definition, a hostile archive, templates that do not fit.
    Refused = 5,
    /// Nobody listens on the socket.
    Unreachable = 6,
    /// Stored data is not what it was.
    Damage = 7,
    /// The disk is full.
    NoSpace = 8,
    /// An update did not reach every VE.
    Incomplete = 9,
    /// The daemon does not let this user do it.
    Forbidden = 10,
    /// `ve exec` itself failed, not the program.
    ExecFailed = 125,
    /// The program is there but cannot be run.
    NotExecutable = 126,
    /// The program is not there.
    ProgramNotFound = 127,
    /// Stopped by Ctrl-C or SIGTERM.
    Interrupted = 130,
}

/// A failure that ends the command.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    /// What failed and why. Empty when there is nobody to tell (a closed pipe).
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) hint: Option<String>,
    /// The exit code.
    pub(crate) exit: Exit,
}

/// What every command returns.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure with its exit code.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure { message: message.into(), hint: None, exit }
    }

    /// A system call that failed: `what` is what was tried, on which thing.
    pub(crate) fn io(what: impl Display, source: &io::Error) -> Failure {
        let exit = match source.kind() {
            io::ErrorKind::NotFound => Exit::NotFound,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Exit::NoSpace,
            _ => Exit::Failure,
        };
        Failure::new(exit, format!("{what}: {source}"))
    }

    /// The same failure with something to do about it.
    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }

    /// The same failure with what was going on in front.
    pub(crate) fn during(mut self, what: impl Display) -> Failure {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// Nobody listens on `socket`.
    pub(crate) fn unreachable(socket: &Path, source: &io::Error) -> Failure {
        let (why, hint) = match source.kind() {
            io::ErrorKind::PermissionDenied => {
                (source.to_string(), "the daemon serves root, and members of the group that its --read-group names: run this with sudo".to_owned())
            }
            _ => {
                let store = std::env::var_os(vzfs::api::STORE_VARIABLE);
                let store = store.as_ref().map_or("DIR".into(), |store| store.to_string_lossy());
                (source.to_string(), format!("start it with: vzfsd --store {store}"))
            }
        };
        Failure::new(Exit::Unreachable, format!("cannot reach the daemon at {}: {why}", socket.display()))
            .with_hint(hint)
    }

    /// Stopped by the user.
    pub(crate) fn interrupted() -> Failure {
        Failure::new(Exit::Interrupted, "interrupted")
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Failure {
        let exit = match error.code {
            ErrorCode::NotFound => Exit::NotFound,
            ErrorCode::Exists | ErrorCode::InUse => Exit::Conflict,
            ErrorCode::Invalid | ErrorCode::Unfit => Exit::Refused,
            ErrorCode::Forbidden => Exit::Forbidden,
            ErrorCode::Damaged => Exit::Damage,
            ErrorCode::NoSpace => Exit::NoSpace,
            ErrorCode::Busy | ErrorCode::Unsupported | ErrorCode::Internal => Exit::Failure,
        };
        Failure { message: error.message, hint: error.hint, exit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unreachable_names_the_socket_and_the_remedy() {
        let failure = Failure::unreachable(Path::new("/run/x.sock"), &io::ErrorKind::NotFound.into());
        assert!(failure.message.contains("/run/x.sock"));
        assert!(failure.hint.expect("a hint").starts_with("start it with: vzfsd --store "));
        assert_eq!(failure.exit as u8, 6);
    }

    #[test]
    fn codes_have_their_documented_exits() {
        let exit = |code| Failure::from(ApiError::new(code, "x")).exit as u8;
        let exits = ErrorCode::ALL.map(exit);
        assert_eq!(exits, [3, 4, 4, 5, 5, 10, 7, 8, 1, 1, 1]);
    }
}
