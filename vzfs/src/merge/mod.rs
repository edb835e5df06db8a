//! Three-way merges of the files that two layers both change. Pure: bytes in, bytes out.
//!
//! Application templates are built independently of each other on the same OS template. Where two of them changed the same
//! file, showing only the later version would lose the earlier one's side: the package database would forget packages, users
//! would vanish from `/etc/passwd`. The OS template's version of the file is the common ancestor (`base`); `ours` is what
//! the layers applied so far made of it, `theirs` is what the layer being applied has.
//!
//! 1. A side that did not change a record accepts the other's change of it, also a deletion.
//! 2. Where both sides changed one record in different ways, `theirs` wins, as in an overlay, and a note says so. (Fields and
//!    member lists of a record are merged first by the same rule.)
//! 3. Records keep the ancestor's order; additions of `ours` follow, then those of `theirs`. If all three inputs are sorted by
//!    key (dpkg writes its tables so), the result is too.
//! 4. A file that is not of the form its rule expects is a [`MergeError`], never a panic and never a guess. The
//!    caller then lets the last layer win and says so.
//!
//! Which rule a path falls under is data: see [`rules`].

mod accounts;
mod alternatives;
mod diff3;
mod keyed;
mod lines;
pub mod rules;
mod stanza;
#[cfg(test)]
mod tests;

pub use alternatives::{AlternativeLink, links as alternative_links};
pub use rules::{MergeRule, Rule, RuleError, Rules};

use thiserror::Error;

/// Inputs above this size are not merged. Far above every package database in use (Debian's largest `available` is around
/// 100 MB only with every package of the archive listed, a `status` is below 10 MB), and small enough to hold three of them in memory.
pub const MAX_INPUT_BYTES: usize = 64 << 20;

/// The three versions of one file.
#[derive(Clone, Copy, Debug)]
pub struct Versions<'a> {
    /// The common ancestor; `None` when both sides added the file.
    pub base: Option<&'a [u8]>,
    /// What the layers applied so far made of it.
    pub ours: &'a [u8],
    /// What the layer being applied has.
    pub theirs: &'a [u8],
}

/// What the sides are called in notes: template names.
#[derive(Clone, Copy, Debug)]
pub struct Labels<'a> {
    /// The layers applied so far.
    pub ours: &'a str,
    /// The layer being applied.
    pub theirs: &'a str,
}

/// A merged file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Merged {
    /// The content.
    pub bytes: Vec<u8>,
    /// What a person should know: decisions that could have gone the other way. Without the file's path.
    pub notes: Vec<String>,
}

/// Why a file cannot be merged. The caller lets the last layer win.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum MergeError {
    /// An input does not have the form that the rule expects.
    #[error("line {line} of a version is not what {expected} looks like")]
    Malformed {
        /// The form that was expected.
        expected: &'static str,
        /// Counted from 1.
        line: usize,
    },
    /// Two records with the same key in one input.
    #[error("a version has two records for {key:?}")]
    Duplicate {
        /// The key, made printable.
        key: String,
    },
    /// Both sides changed the same lines.
    #[error("both sides changed line {line}")]
    Conflict {
        /// The line of the ancestor, counted from 1.
        line: usize,
    },
    /// The file is binary.
    #[error("it is not text")]
    NotText,
    /// Larger than [`MAX_INPUT_BYTES`], or with too many differences to align in reasonable time.
    #[error("the versions are too large or too different")]
    TooMuch,
    /// The rule for this file says that its content cannot be merged.
    #[error("files of this kind are not merged")]
    NotMergeable,
}

/// Merges the versions of a file by `rule`.
pub fn merge(rule: Rule, versions: Versions<'_>, labels: Labels<'_>) -> Result<Merged, MergeError> {
    let Versions { base, ours, theirs } = versions;
    let unchanged = |bytes: &[u8]| Ok(Merged { bytes: bytes.to_vec(), notes: Vec::new() });
    if ours == theirs || base == Some(theirs) {
        return unchanged(ours);
    }
    if base == Some(ours) {
        return unchanged(theirs);
    }
    let whole = matches!(rule, Rule::Keep | Rule::Take);
    if !whole && [base.unwrap_or_default(), ours, theirs].iter().any(|input| input.len() > MAX_INPUT_BYTES) {
        return Err(MergeError::TooMuch);
    }
    match rule {
        Rule::Stanzas => stanza::merge(versions, labels),
        Rule::Diversions => lines::merge_diversions(versions, labels),
        Rule::StatOverrides => lines::merge_stat_overrides(versions, labels),
        Rule::PendingTriggers => lines::merge_pending_triggers(versions),
        Rule::Alternatives => alternatives::merge(versions, labels),
        Rule::Accounts(table) => accounts::merge(table, versions, labels),
        Rule::SubIds => accounts::merge_sub_ids(versions, labels),
        Rule::LineSet => lines::merge_line_set(versions),
        Rule::Log => lines::merge_log(versions),
        Rule::Text => diff3::merge(versions),
        Rule::Keep => unchanged(ours),
        Rule::Take => unchanged(theirs),
        Rule::Derived | Rule::LastWins => Err(MergeError::NotMergeable),
    }
}

/// Bytes for a note: escaped, and cut where they would flood it.
fn printable(bytes: &[u8]) -> String {
    const MAX_SHOWN_BYTES: usize = 120;
    let shown = bytes.get(..MAX_SHOWN_BYTES).unwrap_or(bytes);
    let mut text = String::from_utf8_lossy(shown).replace(|c: char| c.is_control(), "\u{fffd}");
    if shown.len() < bytes.len() {
        text.push('…');
    }
    text
}

/// The lines without their newlines. A last line without newline is a line like any other.
fn lines_of(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split_inclusive(|b| *b == b'\n').map(|line| line.strip_suffix(b"\n").unwrap_or(line))
}

/// Every line, each closed by a newline.
fn join_lines<T: AsRef<[u8]>>(lines: impl IntoIterator<Item = T>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in lines {
        bytes.extend_from_slice(line.as_ref());
        bytes.push(b'\n');
    }
    bytes
}
