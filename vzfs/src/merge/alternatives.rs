//! The database of update-alternatives, one file for each name in `/var/lib/dpkg/alternatives`.
//!
//! `auto` or `manual`; the master link; for each slave its name and its link; an empty line; then for each choice its path,
//! its priority and one line for each slave (empty where the choice lacks it); an empty line.

use std::collections::BTreeMap;

use super::keyed::{Clash, Records, merge_records, three_way};
use super::{Labels, MergeError, Merged, Versions, join_lines, lines_of, printable};

type Bytes = Vec<u8>;

struct Database {
    status: Bytes,
    link: Bytes,
    /// Slave name -> link.
    slaves: Records<Bytes, Bytes>,
    /// Path -> choice.
    choices: Records<Bytes, Choice>,
}

#[derive(Clone, PartialEq, Eq)]
struct Choice {
    priority: i64,
    /// Slave name -> target; without the slaves that the choice lacks.
    targets: BTreeMap<Bytes, Bytes>,
}

fn parse(bytes: &[u8]) -> Result<Database, MergeError> {
    let mut lines = lines_of(bytes).enumerate();
    let mut last = 0;
    let mut next = || {
        let (at, line) = lines.next().ok_or(MergeError::Malformed { expected: FORM, line: last + 1 })?;
        last = at + 1;
        Ok((last, line))
    };
    let malformed = |line| MergeError::Malformed { expected: FORM, line };
    let (at, status) = next()?;
    if status != b"auto" && status != b"manual" {
        return Err(malformed(at));
    }
    let (at, link) = next()?;
    if link.is_empty() {
        return Err(malformed(at));
    }
    let mut slaves = Vec::new();
    loop {
        let (_, name) = next()?;
        if name.is_empty() {
            break;
        }
        slaves.push((name.to_vec(), next()?.1.to_vec()));
    }
    let mut choices = Vec::new();
    // The end of the file closes the list as well as the empty line does.
    while let Ok((_, path)) = next() {
        if path.is_empty() {
            break;
        }
        let (at, priority) = next()?;
        let priority = std::str::from_utf8(priority).ok().and_then(|text| text.trim().parse().ok());
        let mut targets = BTreeMap::new();
        for (name, _) in &slaves {
            let (_, target) = next()?;
            if !target.is_empty() {
                targets.insert(name.clone(), target.to_vec());
            }
        }
        choices.push((path.to_vec(), Choice { priority: priority.ok_or(malformed(at))?, targets }));
    }
    Ok(Database {
        status: status.to_vec(),
        link: link.to_vec(),
        slaves: Records::new(slaves)?,
        choices: Records::new(choices)?,
    })
}

const FORM: &str = "a database of alternatives";

pub(super) fn merge(versions: Versions<'_>, labels: Labels<'_>) -> Result<Merged, MergeError> {
    let base = versions.base.map(parse).transpose()?;
    let (ours, theirs) = (parse(versions.ours)?, parse(versions.theirs)?);
    let mut notes = Vec::new();
    let mut note = |what: &str| {
        notes.push(format!("{what}: {} and {} differ; the latter counts", labels.ours, labels.theirs))
    };

    let mut scalar = |what, old: Option<&Bytes>, ours: &Bytes, theirs: &Bytes| {
        three_way(old, Some(ours), Some(theirs)).flatten().cloned().unwrap_or_else(|| {
            note(what);
            theirs.clone()
        })
    };
    let status = scalar("status", base.as_ref().map(|base| &base.status), &ours.status, &theirs.status);
    let link = scalar("master link", base.as_ref().map(|base| &base.link), &ours.link, &theirs.link);

    let (no_slaves, no_choices) = (Records::new(Vec::new())?, Records::new(Vec::new())?);
    let (old_slaves, old_choices) =
        base.as_ref().map_or((&no_slaves, &no_choices), |base| (&base.slaves, &base.choices));
    let slaves = merge_records(old_slaves, &ours.slaves, &theirs.slaves, |clash: Clash<'_, _, _>| {
        note(&format!("slave {}", printable(clash.key)));
        clash.theirs.cloned()
    });
    let choices = merge_records(old_choices, &ours.choices, &theirs.choices, |clash: Clash<'_, _, _>| {
        note(&format!("choice {}", printable(clash.key)));
        clash.theirs.cloned()
    });

    let mut lines = vec![status, link];
    lines.extend(slaves.iter().flat_map(|(name, link)| [name.clone(), link.clone()]));
    lines.push(Bytes::new());
    for (path, choice) in choices {
        lines.extend([path, choice.priority.to_string().into_bytes()]);
        lines.extend(slaves.iter().map(|(name, _)| choice.targets.get(name).cloned().unwrap_or_default()));
    }
    lines.push(Bytes::new());
    Ok(Merged { bytes: join_lines(lines), notes })
}

/// A symbolic link in `/etc/alternatives`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AlternativeLink {
    /// Its name.
    pub name: Vec<u8>,
    /// Where it points to; `None` when there must be no link.
    pub target: Option<Vec<u8>>,
}

/// The links that a database of this `name` wants in automatic mode, the master first. Empty in manual mode, when a person
/// has chosen.
pub fn links(name: &[u8], database: &[u8]) -> Result<Vec<AlternativeLink>, MergeError> {
    let database = parse(database)?;
    if database.status != b"auto" {
        return Ok(Vec::new());
    }
    // Of equal priorities the first counts, as for update-alternatives.
    let mut best: Option<(&Bytes, &Choice)> = None;
    for (path, choice) in database.choices.iter() {
        if best.is_none_or(|(_, best)| choice.priority > best.priority) {
            best = Some((path, choice));
        }
    }
    let Some((path, choice)) = best else { return Ok(Vec::new()) };
    let link = |name: &[u8], target| AlternativeLink { name: name.to_vec(), target };
    let slaves = database.slaves.iter().map(|(slave, _)| link(slave, choice.targets.get(slave).cloned()));
    Ok(std::iter::once(link(name, Some(path.clone()))).chain(slaves).collect())
}
