//! Files made of simple lines: line sets, logs, and dpkg's smaller tables.

use super::keyed::{Records, merge_records, merge_words};
use super::{Labels, MergeError, Merged, Versions, join_lines, lines_of, printable};

/// A set of lines. Lines that come several times (comments, blank lines) are told apart by their count.
pub(super) fn merge_line_set(versions: Versions<'_>) -> Result<Merged, MergeError> {
    let parse = |bytes: &[u8]| {
        let mut counts = std::collections::HashMap::<Vec<u8>, u64>::new();
        let keyed = lines_of(bytes).map(|line| {
            let count = counts.entry(line.to_vec()).or_default();
            *count += 1;
            ([line, b"\n", &count.to_be_bytes()].concat(), line.to_vec())
        });
        Records::new(keyed.collect())
    };
    let base = parse(versions.base.unwrap_or_default())?;
    // Equal keys are equal lines, so there is no clash to resolve.
    let lines =
        merge_records(&base, &parse(versions.ours)?, &parse(versions.theirs)?, |clash| clash.theirs.cloned());
    Ok(Merged { bytes: join_lines(lines.into_iter().map(|(_, line)| line)), notes: Vec::new() })
}

/// A file that both sides only appended to: what `ours` appended, then what `theirs` did.
pub(super) fn merge_log(versions: Versions<'_>) -> Result<Merged, MergeError> {
    let base = versions.base.unwrap_or_default();
    let (Some(ours), Some(theirs)) = (versions.ours.strip_prefix(base), versions.theirs.strip_prefix(base))
    else {
        return Err(MergeError::Conflict { line: 1 });
    };
    // Records of binary logs (wtmp) can be appended as well: they have a fixed size.
    Ok(Merged { bytes: [base, ours, theirs].concat(), notes: Vec::new() })
}

/// Key and record of one entry, both as written.
type Entry = (Vec<u8>, Vec<u8>);

fn merge_plain(
    parse: impl Fn(&[u8]) -> Result<Vec<Entry>, MergeError>,
    what: &str,
    versions: Versions<'_>,
    labels: Labels<'_>,
) -> Result<Merged, MergeError> {
    let parse = |bytes: &[u8]| Records::new(parse(bytes)?);
    let base = parse(versions.base.unwrap_or_default())?;
    let mut notes = Vec::new();
    let records = merge_records(&base, &parse(versions.ours)?, &parse(versions.theirs)?, |clash| {
        let key = printable(clash.key);
        notes.push(format!("{what} {key}: {} and {} differ; the latter counts", labels.ours, labels.theirs));
        clash.theirs.cloned()
    });
    Ok(Merged { bytes: join_lines(records.into_iter().map(|(_, record)| record)), notes })
}

/// Three lines a record: diverted path, where to, package (`:` for the administrator).
pub(super) fn merge_diversions(versions: Versions<'_>, labels: Labels<'_>) -> Result<Merged, MergeError> {
    let parse = |bytes: &[u8]| {
        let lines: Vec<&[u8]> = lines_of(bytes).collect();
        let record = |(at, lines): (usize, &[&[u8]])| match lines {
            [from, to, package] if !from.is_empty() && !to.is_empty() && !package.is_empty() => {
                Ok((from.to_vec(), lines.join(&b'\n')))
            }
            _ => Err(MergeError::Malformed { expected: "a table of diversions", line: 3 * at + 1 }),
        };
        lines.chunks(3).enumerate().map(record).collect()
    };
    merge_plain(parse, "diversion of", versions, labels)
}

/// `user group mode path`
pub(super) fn merge_stat_overrides(versions: Versions<'_>, labels: Labels<'_>) -> Result<Merged, MergeError> {
    let parse = |bytes: &[u8]| {
        let record = |(at, line): (usize, &[u8])| match line.splitn(4, |b| *b == b' ').collect::<Vec<_>>()[..]
        {
            [user, group, mode, path] if ![user, group, mode, path].contains(&&b""[..]) => {
                Ok((path.to_vec(), line.to_vec()))
            }
            _ => Err(MergeError::Malformed { expected: "a table of stat overrides", line: at + 1 }),
        };
        lines_of(bytes).enumerate().map(record).collect()
    };
    merge_plain(parse, "stat override of", versions, labels)
}

/// `trigger package...`: the packages that wait for the trigger are united.
pub(super) fn merge_pending_triggers(versions: Versions<'_>) -> Result<Merged, MergeError> {
    let parse = |bytes: &[u8]| {
        let record = |(at, line): (usize, &[u8])| {
            let mut words = line.split(|b| *b == b' ').filter(|word| !word.is_empty()).map(<[u8]>::to_vec);
            let trigger = words
                .next()
                .ok_or(MergeError::Malformed { expected: "a table of pending triggers", line: at + 1 })?;
            Ok((trigger, words.collect::<Vec<_>>()))
        };
        Records::new(lines_of(bytes).enumerate().map(record).collect::<Result<_, _>>()?)
    };
    let base = parse(versions.base.unwrap_or_default())?;
    let records = merge_records(&base, &parse(versions.ours)?, &parse(versions.theirs)?, |clash| {
        let words = |side: Option<&'_ Vec<Vec<u8>>>| side.cloned().unwrap_or_default();
        let (base, ours, theirs) = (words(clash.base), words(clash.ours), words(clash.theirs));
        fn borrowed(words: &[Vec<u8>]) -> Vec<&[u8]> {
            words.iter().map(Vec::as_slice).collect()
        }
        let merged = merge_words(&borrowed(&base), &borrowed(&ours), &borrowed(&theirs));
        (!merged.is_empty()).then(|| merged.into_iter().map(<[u8]>::to_vec).collect())
    });
    let lines = records.into_iter().map(|(trigger, packages)| {
        packages.iter().fold(trigger, |line, package| [&line[..], b" ", package].concat())
    });
    Ok(Merged { bytes: join_lines(lines), notes: Vec::new() })
}
