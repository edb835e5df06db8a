//! What goes to stdout: tables for people, JSON for programs.

use std::borrow::Cow;
use std::io::{self, Write};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;
use vzfs::api::rfc3339;
use vzfs::types::Timestamp;

use crate::cli::Format;
use crate::error::{Exit, Failure, Result};

/// How this run prints.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    /// Table or JSON.
    pub(crate) format: Format,
    /// Whether confirmations are left out.
    pub(crate) quiet: bool,
}

impl Output {
    /// Prints `value`: as JSON, or as the text that `text` makes of it.
    pub(crate) fn show<T: Serialize + ?Sized>(
        &self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<()> {
        match self.format {
            Format::Json => print(&json(value)?),
            Format::Table => print(&text(value)),
        }
    }

    /// Prints what an action led to: as JSON, or as a sentence that `--quiet` silences.
    pub(crate) fn done<T: Serialize + ?Sized>(
        &self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<()> {
        match self.format {
            Format::Table if self.quiet => Ok(()),
            _ => self.show(value, text),
        }
    }
}

fn json<T: Serialize + ?Sized>(value: &T) -> Result<String> {
    serde_json::to_string_pretty(value)
        .map_err(|e| Failure::new(Exit::Failure, format!("cannot write the reply as JSON: {e}")))
}

/// Prints a text and a newline, unless the text ends in one or is empty. A reader that went away ends the
/// command silently: `vzfs ve list | head` is no failure worth a message.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    let newline = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.write_all(newline.as_bytes()));
    written.and_then(|()| stdout.flush()).map_err(|e| match e.kind() {
        io::ErrorKind::BrokenPipe => Failure::new(Exit::Failure, ""),
        _ => Failure::io("cannot write to stdout", &e),
    })
}

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Column {
    /// Words, to the left.
    Text(&'static str),
    /// Numbers and sizes, to the right.
    Number(&'static str),
}

/// A table without borders: two spaces between columns, nothing cut off, no trailing spaces.
pub(crate) fn table(columns: &[Column], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|column| match column {
        Column::Text(name) | Column::Number(name) => *name,
    }));
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if matches!(columns.get(index), Some(Column::Number(_))) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    lines(&table)
}

/// Names and values below each other.
pub(crate) fn fields<'a>(rows: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    for (name, value) in rows {
        table.add_row([format!("{name}:"), printable(&value).into_owned()]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 1));
    }
    lines(&table)
}

/// File names and labels come from templates and VEs: what is in them must not drive the reader's terminal.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    text.chars()
        .map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() })
        .collect()
}

fn lines(table: &Table) -> String {
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A size as people read it: three digits and a binary unit.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in UNITS {
        // 999.5 and more would be written with four digits.
        if value < 999.5 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if value < 9.995 {
        format!("{value:.2} {unit}")
    } else if value < 99.95 {
        format!("{value:.1} {unit}")
    } else {
        format!("{value:.0} {unit}")
    }
}

/// A count with thin groups of three: `12 345`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// A number of things: `1 file`, `2 files`.
pub(crate) fn plural(number: u64, thing: &str) -> String {
    format!("{} {thing}{}", count(number), if number == 1 { "" } else { "s" })
}

/// Numbers with what they are of, but for those of nothing: `3 done, 1 failed`.
pub(crate) fn counts(numbers: &[(u64, &str)]) -> String {
    let some = numbers.iter().filter(|(number, _)| *number > 0);
    some.map(|(number, what)| format!("{} {what}", count(*number))).collect::<Vec<_>>().join(", ")
}

/// A moment, to the second.
pub(crate) fn moment(time: Timestamp) -> String {
    rfc3339::format(Timestamp { nanos: 0, ..time }).replace('T', " ").replace('Z', " UTC")
}

/// What stands for nothing in a table.
pub(crate) const NOTHING: &str = "-";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1536, "1.50 KiB"),
            (10 << 10, "10.0 KiB"),
            (1_023_999, "0.98 MiB"),
            (123 << 20, "123 MiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(count(1_234_567), "1 234 567");
        assert_eq!(count(12), "12");
        assert_eq!(plural(1, "file"), "1 file");
    }

    #[test]
    fn tables_align_numbers_and_trim_lines() {
        let rows = [("a", "1 B"), ("longer", "12 KiB")]
            .map(|(a, b)| vec![a.to_owned(), b.to_owned(), String::new()]);
        let text = table(&[Column::Text("NAME"), Column::Number("SIZE"), Column::Text("X")], rows);
        assert_eq!(text, "NAME      SIZE  X\na          1 B\nlonger  12 KiB\n");
        assert_eq!(fields([("name", "x".to_owned()), ("id", "y".to_owned())]), "name: x\nid:   y\n");
    }

    #[test]
    fn moments() {
        assert_eq!(moment(Timestamp { secs: 0, nanos: 5 }), "1970-01-01 00:00:00 UTC");
    }
}
