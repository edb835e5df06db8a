//! The tables of the package database, so that a merge of them keeps every package whole.
//!
//! A merge goes record by record. Where a package is the VE's, the new base's records of it are put back to what the old base had: then only
//! the VE has changed them, and its version is the result, untouched.

use std::borrow::Cow;
use std::collections::HashSet;

use super::files::LABELS;
use super::packages::Packages;
use super::status::{Package, Status};
use super::text::lines_of;
use crate::merge::{self, MergeError, Merged, Rule, Versions};

/// Merges `status`. Only packages that both sides changed are looked at field by field: a table has hundreds, of which few differ.
pub(super) fn status(
    old: &Status,
    new: &Status,
    own: &Status,
    packages: &Packages<'_>,
) -> Result<Merged, MergeError> {
    let mut merged = Merged::default();
    let mut stanzas: Vec<(&Package, Cow<'_, [u8]>)> = Vec::new();
    let mut seen = HashSet::new();
    for package in old.packages().chain(new.packages()).chain(own.packages()) {
        if !seen.insert((&package.name, &package.architecture)) {
            continue;
        }
        let [base, ours, theirs] =
            [old, new, own].map(|table| table.exact(package).map(|package| table.stanza(package)));
        let is_own = packages.standing(&format!("{}:{}", package.name, package.architecture)).is_some();
        let ours = if is_own { base } else { ours };
        let decided = if base.is_some() && ours.is_none() && !is_own {
            // Its files go, whatever the VE has noted of it.
            None
        } else if ours == theirs || base == theirs {
            ours.map(Cow::Borrowed)
        } else if base == ours {
            theirs.map(Cow::Borrowed)
        } else {
            let [base, ours, theirs] = [base, ours, theirs].map(Option::unwrap_or_default);
            let one = merge::merge(Rule::Stanzas, Versions { base: Some(base), ours, theirs }, LABELS)?;
            merged.notes.extend(one.notes);
            Some(one.bytes).filter(|bytes| !bytes.is_empty()).map(Cow::Owned)
        };
        stanzas.extend(decided.map(|stanza| (package, stanza)));
    }
    if [old, new, own].iter().all(|table| table.is_sorted()) {
        stanzas.sort_by_key(|(package, _)| (&package.name, &package.architecture));
    }
    for (_, stanza) in stanzas {
        merged.bytes.extend_from_slice(stanza.trim_ascii_end());
        merged.bytes.extend_from_slice(b"\n\n");
    }
    Ok(merged)
}

/// The new base's version of a table with one line a record, the last word of which is the package (`triggers/File` and the lists of explicit
/// triggers), with the old base's records of packages that are the VE's.
pub(super) fn triggers(old: &[u8], new: &[u8], packages: &Packages<'_>) -> Vec<u8> {
    let package = |line: &[u8]| {
        let word = line.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
        word.split(|byte| *byte == b'/').next().map(<[u8]>::to_vec).unwrap_or_default()
    };
    records(old, new, 1, packages, |record| package(record[0]))
}

/// The same for the table of diversions: three lines a record, the last of which is the package.
pub(super) fn diversions(old: &[u8], new: &[u8], packages: &Packages<'_>) -> Vec<u8> {
    records(old, new, 3, packages, |record| record.last().copied().unwrap_or_default().to_vec())
}

fn records(
    old: &[u8],
    new: &[u8],
    lines_each: usize,
    packages: &Packages<'_>,
    package: impl Fn(&[&[u8]]) -> Vec<u8>,
) -> Vec<u8> {
    let mut text = Vec::new();
    for (table, own) in [(new, false), (old, true)] {
        let lines: Vec<&[u8]> = lines_of(table).collect();
        for record in lines.chunks(lines_each) {
            let name = String::from_utf8_lossy(&package(record)).into_owned();
            if packages.standing(&name).is_some() == own {
                for line in record {
                    text.extend_from_slice(line);
                    text.push(b'\n');
                }
            }
        }
    }
    text
}
