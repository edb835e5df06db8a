//! Paragraphs of `Field: value` lines (deb822): dpkg's and apt's package tables.

use super::keyed::{Clash, Records, merge_records, three_way};
use super::{Labels, MergeError, Merged, Versions, lines_of, printable};

const FORM: &str = "a table of packages";

/// `package`, NUL, `architecture`: sorts as dpkg sorts its tables.
type Key = Vec<u8>;

/// The fields that are the state of a package together. dpkg refuses a whole table in which one package is `installed` with
/// triggers pending, so they come from one side or from the other.
const STATE: [&[u8]; 4] = [b"status", b"config-version", b"triggers-pending", b"triggers-awaited"];

/// The fields in file order.
#[derive(Clone)]
struct Stanza(Vec<Field>);

#[derive(Clone, PartialEq, Eq)]
struct Field {
    /// In lower case: field names are not case-sensitive.
    name: Vec<u8>,
    /// The lines of the field as they were, without the last newline.
    text: Vec<u8>,
}

impl PartialEq for Stanza {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Stanza {}

impl Stanza {
    fn value(&self, name: &[u8]) -> Option<&[u8]> {
        let field = self.0.iter().find(|field| field.name == name)?;
        Some(field.text.get(name.len() + 1..)?.trim_ascii())
    }

    fn key(&self) -> Option<Key> {
        let package = self.value(b"package").filter(|package| !package.is_empty())?;
        Some([package, b"\0", self.value(b"architecture").unwrap_or_default()].concat())
    }

    /// Refuses a field that comes twice.
    fn check(&self) -> Result<(), MergeError> {
        Records::new(self.0.iter().map(|field| (field.name.clone(), ())).collect()).map(drop)
    }

    fn state(&self) -> Vec<&Field> {
        STATE.iter().filter_map(|name| self.0.iter().find(|field| field.name == *name)).collect()
    }

    fn other_fields(&self) -> Result<Records<Vec<u8>, Field>, MergeError> {
        let others = self.0.iter().filter(|field| !STATE.contains(&&field.name[..]));
        Records::new(others.map(|field| (field.name.clone(), field.clone())).collect())
    }
}

/// How a key is shown: `package:architecture`.
fn shown(key: &[u8]) -> String {
    printable(key).replace('\u{fffd}', ":").trim_end_matches(':').to_owned()
}

fn parse(bytes: &[u8]) -> Result<Records<Key, Stanza>, MergeError> {
    let mut stanzas = Vec::new();
    let mut open = Stanza(Vec::new());
    let mut close = |open: &mut Stanza, line: usize| {
        if !open.0.is_empty() {
            let stanza = std::mem::replace(open, Stanza(Vec::new()));
            stanza.check()?;
            let key = stanza.key().ok_or(MergeError::Malformed { expected: FORM, line })?;
            stanzas.push((key, stanza));
        }
        Ok(())
    };
    let mut count = 0;
    for (at, line) in lines_of(bytes).enumerate() {
        count = at + 1;
        let malformed = MergeError::Malformed { expected: FORM, line: count };
        if line.trim_ascii().is_empty() {
            close(&mut open, count)?;
        } else if line[0] == b' ' || line[0] == b'\t' {
            let field = open.0.last_mut().ok_or(malformed)?;
            field.text.push(b'\n');
            field.text.extend_from_slice(line);
        } else {
            let colon = line.iter().position(|b| *b == b':').filter(|at| *at > 0).ok_or(malformed)?;
            open.0.push(Field { name: line[..colon].to_ascii_lowercase(), text: line.to_vec() });
        }
    }
    close(&mut open, count)?;
    Records::new(stanzas)
}

pub(super) fn merge(versions: Versions<'_>, labels: Labels<'_>) -> Result<Merged, MergeError> {
    let base = parse(versions.base.unwrap_or_default())?;
    let (ours, theirs) = (parse(versions.ours)?, parse(versions.theirs)?);
    let mut merged = Merged::default();
    let mut failed = None;
    let stanzas = merge_records(&base, &ours, &theirs, |clash| match clash {
        Clash { key, base, ours: Some(ours), theirs: Some(theirs) } => {
            merge_stanza(key, base, ours, theirs, labels, &mut merged.notes).unwrap_or_else(|error| {
                failed = Some(error);
                None
            })
        }
        Clash { key, ours, theirs, .. } => {
            let package = shown(key);
            let what = if ours.is_some() { "removes" } else { "changes" };
            let other = if ours.is_some() { "changes" } else { "removes" };
            merged.notes.push(format!(
                "package {package}: {} {other} it, {} {what} it; the latter counts",
                labels.ours, labels.theirs
            ));
            theirs.cloned()
        }
    });
    if let Some(error) = failed {
        return Err(error);
    }
    for (_, stanza) in stanzas {
        for field in stanza.0 {
            merged.bytes.extend_from_slice(&field.text);
            merged.bytes.push(b'\n');
        }
        merged.bytes.push(b'\n');
    }
    Ok(merged)
}

/// Merges a package that both sides changed, field by field.
///
/// The record must describe the files that the overlay shows. If one side only changed the version, that side brought the
/// files and its fields win over, say, a pending trigger that the other recorded. If both did, the files of `theirs` are on top and its
/// record stands unmixed.
fn merge_stanza(
    key: &[u8],
    base: Option<&Stanza>,
    ours: &Stanza,
    theirs: &Stanza,
    labels: Labels<'_>,
    notes: &mut Vec<String>,
) -> Result<Option<Stanza>, MergeError> {
    let version = |stanza: &Stanza| stanza.value(b"version").unwrap_or_default().to_vec();
    let (old, our_version, their_version) = (base.map(version), version(ours), version(theirs));
    if three_way(old.as_deref(), Some(our_version.as_slice()), Some(their_version.as_slice())).is_none() {
        notes.push(format!(
            "package {}: {} has version {}, {} has version {}; the latter counts",
            shown(key),
            labels.ours,
            printable(&our_version),
            labels.theirs,
            printable(&their_version)
        ));
        return Ok(Some(theirs.clone()));
    }
    let ours_leads = our_version != their_version && Some(&their_version) == old.as_ref();
    let empty = Stanza(Vec::new());
    let base = base.unwrap_or(&empty);
    let mut differing = Vec::new();
    let state = three_way(base.state(), ours.state(), theirs.state()).unwrap_or_else(|| {
        differing.push("its state".to_owned());
        if ours_leads { ours.state() } else { theirs.state() }
    });
    let fields =
        merge_records(&base.other_fields()?, &ours.other_fields()?, &theirs.other_fields()?, |clash| {
            if clash.key == b"auto-installed" {
                // "0" says that a person asked for the package. A template that did must not lose it to autoremove.
                return clash
                    .ours
                    .into_iter()
                    .chain(clash.theirs)
                    .min_by(|a, b| a.text.cmp(&b.text))
                    .cloned();
            }
            differing.push(printable(clash.key));
            if ours_leads { clash.ours.cloned() } else { clash.theirs.cloned() }
        });
    if !differing.is_empty() {
        let leader = if ours_leads { labels.ours } else { labels.theirs };
        notes.push(format!(
            "package {}: both sides changed {}; {leader} counts",
            shown(key),
            differing.join(", ")
        ));
    }
    // The state follows the name, as in dpkg's order; the order of the rest means nothing to any reader.
    let mut fields: Vec<Field> = fields.into_iter().map(|(_, field)| field).collect();
    let name = fields.iter().position(|field| field.name == b"package").map_or(0, |at| at + 1);
    fields.splice(name..name, state.into_iter().cloned());
    Ok(Some(Stanza(fields)))
}
