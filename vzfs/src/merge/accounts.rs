//! Account tables: `passwd`, `group`, `shadow`, `gshadow`, and the ranges of `subuid` and `subgid`.

use std::collections::{BTreeMap, BTreeSet};

use super::keyed::{Clash, Records, merge_records, merge_words, three_way};
use super::rules::AccountTable;
use super::{Labels, MergeError, Merged, Versions, join_lines, lines_of, printable};

/// The columns of one line.
type Row = Vec<Vec<u8>>;

impl AccountTable {
    /// passwd(5), group(5), shadow(5), gshadow(5): the number of columns, always exact.
    const fn columns(self) -> usize {
        match self {
            AccountTable::Passwd => 7,
            AccountTable::Group | AccountTable::Gshadow => 4,
            AccountTable::Shadow => 9,
        }
    }

    /// The column with a number that should belong to one name only, and what it is called.
    const fn identifier(self) -> Option<(usize, &'static str)> {
        match self {
            AccountTable::Passwd => Some((2, "uid")),
            AccountTable::Group => Some((2, "gid")),
            AccountTable::Shadow | AccountTable::Gshadow => None,
        }
    }

    const fn is_list(self, column: usize) -> bool {
        match self {
            AccountTable::Group => column == 3,
            AccountTable::Gshadow => column == 2 || column == 3,
            AccountTable::Passwd | AccountTable::Shadow => false,
        }
    }

    /// The day of the last password change: it differs whenever two templates were not built on the same day, and says nothing.
    const fn is_noise(self, column: usize) -> bool {
        matches!(self, AccountTable::Shadow) && column == 2
    }
}

fn parse(table: AccountTable, bytes: &[u8]) -> Result<Records<Vec<u8>, Row>, MergeError> {
    let row = |(at, line): (usize, &[u8])| {
        let row: Row = line.split(|b| *b == b':').map(<[u8]>::to_vec).collect();
        match row.first() {
            Some(name) if !name.is_empty() && row.len() == table.columns() => Ok((name.clone(), row)),
            _ => Err(MergeError::Malformed { expected: "an account table", line: at + 1 }),
        }
    };
    Records::new(lines_of(bytes).enumerate().map(row).collect::<Result<_, _>>()?)
}

pub(super) fn merge(
    table: AccountTable,
    versions: Versions<'_>,
    labels: Labels<'_>,
) -> Result<Merged, MergeError> {
    let base = parse(table, versions.base.unwrap_or_default())?;
    let (ours, theirs) = (parse(table, versions.ours)?, parse(table, versions.theirs)?);
    let mut notes = Vec::new();
    let rows = merge_records(&base, &ours, &theirs, |clash| merge_row(table, clash, labels, &mut notes));
    if let Some((column, what)) = table.identifier() {
        note_shared_ids(column, what, &rows, &base, &ours, labels, &mut notes);
    }
    Ok(Merged { bytes: join_lines(rows.into_iter().map(|(_, row)| row.join(&b':'))), notes })
}

fn merge_row(
    table: AccountTable,
    clash: Clash<'_, Vec<u8>, Row>,
    labels: Labels<'_>,
    notes: &mut Vec<String>,
) -> Option<Row> {
    let name = printable(clash.key);
    let (Some(ours), Some(theirs)) = (clash.ours, clash.theirs) else {
        let (first, second) =
            if clash.ours.is_some() { ("changes", "removes") } else { ("removes", "changes") };
        let Labels { ours, theirs } = labels;
        notes.push(format!("{name}: {ours} {first} it, {theirs} {second} it; the latter counts"));
        return clash.theirs.cloned();
    };
    let mut row = Row::new();
    for (column, (our, their)) in ours.iter().zip(theirs).enumerate() {
        let old = clash.base.and_then(|base| base.get(column));
        row.push(if table.is_list(column) {
            merge_list(old.map(Vec::as_slice).unwrap_or_default(), our, their)
        } else if let Some(agreed) = three_way(old, Some(our), Some(their)) {
            agreed.cloned().unwrap_or_default()
        } else {
            if !table.is_noise(column) {
                // The values stay out of the note: one of the columns is a password hash.
                let (number, Labels { ours, theirs }) = (column + 1, labels);
                notes
                    .push(format!("{name}: {ours} and {theirs} differ in field {number}; the latter counts"));
            }
            their.clone()
        });
    }
    Some(row)
}

fn merge_list(base: &[u8], ours: &[u8], theirs: &[u8]) -> Vec<u8> {
    fn words(list: &[u8]) -> Vec<&[u8]> {
        list.split(|b| *b == b',').filter(|word| !word.is_empty()).collect()
    }
    merge_words(&words(base), &words(ours), &words(theirs)).join(&b',')
}

/// Notes every number that two names share now and did not before: files of the one would belong to the other.
fn note_shared_ids(
    column: usize,
    what: &str,
    rows: &[(Vec<u8>, Row)],
    base: &Records<Vec<u8>, Row>,
    ours: &Records<Vec<u8>, Row>,
    labels: Labels<'_>,
    notes: &mut Vec<String>,
) {
    let id_in =
        |records: &Records<Vec<u8>, Row>, name| records.get(name).and_then(|row| row.get(column).cloned());
    let mut names_by_id = BTreeMap::<&[u8], Vec<&Vec<u8>>>::new();
    for (name, row) in rows {
        names_by_id.entry(row.get(column).map(Vec::as_slice).unwrap_or_default()).or_default().push(name);
    }
    for (id, names) in names_by_id {
        // What one input already had was its author's intention (as `toor` with uid 0).
        let intended = |records| names.iter().all(|name| id_in(records, *name).as_deref() == Some(id));
        if id.is_empty() || names.len() < 2 || intended(base) || intended(ours) {
            continue;
        }
        let users = names.iter().map(|name| {
            let from = [(base, "the OS"), (ours, labels.ours)];
            let from = from.iter().find(|(records, _)| id_in(records, *name).as_deref() == Some(id));
            format!("{} ({})", printable(name), from.map_or(labels.theirs, |(_, label)| label))
        });
        notes.push(format!(
            "{what} {} belongs to {}",
            printable(id),
            users.collect::<Vec<_>>().join(" and ")
        ));
    }
}

/// `name:first:count`. A name may have several ranges, so that the whole line is the key.
pub(super) fn merge_sub_ids(versions: Versions<'_>, labels: Labels<'_>) -> Result<Merged, MergeError> {
    let parse = |bytes: &[u8]| {
        let row = |(at, line): (usize, &[u8])| match range_of(line) {
            Some(range) => Ok((line.to_vec(), range)),
            None => Err(MergeError::Malformed { expected: "a table of subordinate ids", line: at + 1 }),
        };
        Records::new(lines_of(bytes).enumerate().map(row).collect::<Result<_, _>>()?)
    };
    let base = parse(versions.base.unwrap_or_default())?;
    let (ours, theirs) = (parse(versions.ours)?, parse(versions.theirs)?);
    // Equal keys are equal lines, so there is no clash to resolve.
    let rows = merge_records(&base, &ours, &theirs, |clash| clash.theirs.copied());
    let mut by_start: Vec<_> = rows.iter().collect();
    by_start.sort_by_key(|(_, range)| range.0);
    let mut notes = BTreeSet::new();
    for pair in by_start.windows(2) {
        let [(first, a), (second, b)] = pair else { continue };
        let together =
            [&ours, &theirs].iter().any(|side| side.get(first).is_some() && side.get(second).is_some());
        if b.0 < a.0.saturating_add(a.1) && !together {
            let (first, second, Labels { ours, theirs }) = (printable(first), printable(second), labels);
            notes.insert(format!("the ranges {first} and {second} of {ours} and {theirs} overlap"));
        }
    }
    Ok(Merged { bytes: join_lines(rows.iter().map(|(line, _)| line)), notes: notes.into_iter().collect() })
}

fn range_of(line: &[u8]) -> Option<(u64, u64)> {
    let number = |text: &str| text.parse::<u64>().ok();
    match std::str::from_utf8(line).ok()?.split(':').collect::<Vec<_>>()[..] {
        [name, first, count] if !name.is_empty() => Some((number(first)?, number(count)?)),
        _ => None,
    }
}
