//! The tables of the package database, so that a merge of them keeps every package whole.
//!
//! A merge goes record by record, and within a record field by field. Where a package is the VE's, the new base's records of it are put back
//! to what the old base had before the merge: then only the VE has changed them, and its version is the result, untouched.

use super::packages::Packages;
use super::status::Status;
use super::text::lines_of;

/// The new base's `status`, with the old base's state of the packages that are the VE's.
pub(super) fn status(old: &Status, new: &Status, packages: &Packages<'_>) -> Vec<u8> {
    let is_own = |name: &str, architecture: &str| {
        let standing = packages.standing(&format!("{name}:{architecture}"));
        standing.is_some()
    };
    let mut stanzas = Vec::new();
    for (table, own) in [(new, false), (old, true)] {
        for package in table.packages() {
            if is_own(&package.name, &package.architecture) == own {
                stanzas.push((&package.name, &package.architecture, table.stanza(package)));
            }
        }
    }
    if new.is_sorted() && old.is_sorted() {
        stanzas.sort_by_key(|(name, architecture, _)| (*name, *architecture));
    }
    let mut text = Vec::new();
    for (_, _, stanza) in stanzas {
        text.extend_from_slice(stanza);
        text.extend_from_slice(if stanza.ends_with(b"\n") { b"\n" } else { b"\n\n" });
    }
    text
}

/// The same for a table with one line a record, the last word of which is the package (`triggers/File` and the lists of explicit triggers).
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
