//! Answers that are made of what can be read.
//!
//! A tree is read in place, from a mapping. What its disk does not give reads as zeros, which no access notices ([`crate::sys::MappedFile`]). So whoever makes
//! something of a tree does it in one of these functions, which find out at the end: an answer, a "not there" too, is thrown away when
//! a part of what it was made of could not be read.

use std::time::Duration;

use super::TreeError;
use crate::sys::{Mapping, Mended, Reads, Verdict, verdict};

/// How long what could not be read is left alone: whoever asks for it meanwhile is refused without asking the disk.
const MEND_PAUSE: Duration = Duration::from_secs(1);
/// How often an answer is made anew because others met what cannot be read. Each time needs such another one in microseconds.
const TRIES: usize = 100;

/// Does something with trees that must not be done twice.
///
/// # Errors
/// [`TreeError::Unreadable`] in place of any result of `work`.
pub fn soundly<T, E: From<TreeError>>(work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let reads = Reads::begin();
    let result = work();
    match reads.verdict() {
        Verdict::Sound => result,
        Verdict::Disturbed => Err(TreeError::Disturbed.into()),
        Verdict::Unreadable(place) => Err(met(place).0.into()),
    }
}

/// Reads trees, and does it again when a part has become readable, or when others met one that is not.
///
/// # Errors
/// [`TreeError::Unreadable`] in place of any result of `work`.
pub fn soundly_read<T, E: From<TreeError>>(mut work: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    for _ in 0..TRIES {
        let reads = Reads::begin();
        let result = work();
        match reads.verdict() {
            Verdict::Sound => return result,
            Verdict::Disturbed => {}
            Verdict::Unreadable(place) => {
                let (error, is_mended) = met(place);
                if !is_mended {
                    return Err(error.into());
                }
            }
        }
        reads.forget();
    }
    Err(TreeError::Disturbed.into())
}

/// Whether what this thread has read since the innermost of these functions began is what the trees hold: to be asked before something is stored that
/// follows from it.
///
/// # Errors
/// [`TreeError::Unreadable`], [`TreeError::Disturbed`].
pub fn check_sound() -> Result<(), TreeError> {
    match verdict() {
        Verdict::Sound => Ok(()),
        Verdict::Disturbed => Err(TreeError::Disturbed),
        Verdict::Unreadable(place) => Err(met(place).0),
    }
}

/// Somebody met what cannot be read. Tries to read it again, and tells once that it cannot be. `true` when all of the tree can be read again.
fn met(place: usize) -> (TreeError, bool) {
    let Some(mapping) = Mapping::at(place) else {
        // Whoever read there has let go of it.
        return (TreeError::Unreadable { tree: "that is not in use any more".to_owned() }, false);
    };
    let tree = mapping.name().to_owned();
    let is_mended = match mapping.mend(MEND_PAUSE) {
        Mended::Whole => {
            tracing::info!(tree, "a part of the tree that could not be read can be read again");
            true
        }
        Mended::Broken { error, is_news: true } => {
            tracing::error!(tree, %error, "a part of the tree cannot be read; `vzfs store check` names who is touched");
            false
        }
        Mended::Broken { is_news: false, .. } | Mended::NotDue => false,
    };
    (TreeError::Unreadable { tree }, is_mended)
}
