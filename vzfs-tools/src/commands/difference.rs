//! How two templates differ, for people.

use vzfs::api::{Change, Side, TemplateDiff};
use vzfs::types::FileKind;

use super::template::{sign, type_text};
use crate::output::{Column, NOTHING, count, size, table};

/// Packages, files, sums.
pub(super) fn diff(diff: &TemplateDiff) -> String {
    if diff.files.is_empty() && diff.packages.is_empty() {
        return "no difference\n".to_owned();
    }
    let mut text = String::new();
    if !diff.packages.is_empty() {
        text.push_str(&packages(diff));
        text.push('\n');
    }
    text.push_str(&files(&diff.files));
    text.push_str(&totals(diff));
    text
}

fn packages(diff: &TemplateDiff) -> String {
    let columns = [Column::Text(""), Column::Text("PACKAGE"), Column::Text("OLD"), Column::Text("NEW")];
    let version = |version: &Option<String>| version.clone().unwrap_or(NOTHING.to_owned());
    let rows = diff.packages.iter().map(|package| {
        let sign = match (&package.from, &package.to) {
            (None, _) => "+",
            (_, None) => "-",
            _ => "~",
        };
        vec![sign.to_owned(), package.name.clone(), version(&package.from), version(&package.to)]
    });
    table(&columns, rows)
}

fn files(changes: &[Change]) -> String {
    let columns = [
        Column::Text(""),
        Column::Text("TYPE"),
        Column::Number("OLD"),
        Column::Number("NEW"),
        Column::Text("WHAT"),
        Column::Text("PATH"),
    ];
    let side_size = |side: &Option<Side>| match side {
        Some(side) if side.file_type == FileKind::File => size(side.size),
        _ => NOTHING.to_owned(),
    };
    let rows = changes.iter().map(|change| {
        let side = change.new.as_ref().or(change.old.as_ref());
        // The words of the JSON form are the words for people.
        let aspects: Vec<String> = change
            .aspects
            .iter()
            .filter_map(|aspect| Some(serde_json::to_value(aspect).ok()?.as_str()?.to_owned()))
            .collect();
        vec![
            sign(change.kind).to_owned(),
            side.map_or(NOTHING, |side| type_text(side.file_type)).to_owned(),
            side_size(&change.old),
            side_size(&change.new),
            if aspects.is_empty() { NOTHING.to_owned() } else { aspects.join(",") },
            format!("/{}", change.path),
        ]
    });
    table(&columns, rows)
}

fn totals(diff: &TemplateDiff) -> String {
    let (totals, packages) = (&diff.totals, &diff.packages);
    let kinds = [(false, true), (true, true), (true, false)];
    let [added, changed, removed] = kinds.map(|(old, new)| {
        let of_kind =
            packages.iter().filter(|package| (package.from.is_some(), package.to.is_some()) == (old, new));
        count(of_kind.count() as u64)
    });
    let [old, new] = totals.changed_bytes.map(size);
    format!(
        "files: {} added ({}), {} changed ({old} are {new} now), {} removed ({})\n\
         packages: {added} added, {changed} changed, {removed} removed\n\
         new content: {}\n",
        count(totals.added),
        size(totals.added_bytes),
        count(totals.changed),
        count(totals.removed),
        size(totals.removed_bytes),
        size(totals.new_content_bytes)
    )
}
