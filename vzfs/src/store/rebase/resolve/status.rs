//! dpkg's table of packages, as far as it matters which package is there in which version.

use std::collections::BTreeMap;
use std::ops::Range;

use super::text::{lines_of, shown};
use crate::merge::MergeError;

/// Several times what Debian's archive has. A table of nothing but names would take a gigabyte in memory.
const MAX_PACKAGES: usize = 500_000;
/// More than Debian has. Without a bound a table made for it would take long to go through.
const MAX_ARCHITECTURES: usize = 64;

/// The table, with its packages by name. A name has several packages where it is installed for several architectures.
pub(super) struct Status {
    text: Vec<u8>,
    /// In file order.
    packages: Vec<Package>,
    by_name: BTreeMap<String, Vec<usize>>,
}

/// One package.
#[derive(Clone, Debug)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) architecture: String,
    pub(super) version: String,
    /// What is wanted: `install`, `hold`, `deinstall`, ...
    pub(super) want: String,
    /// How far it is: `installed`, `config-files`, ...
    pub(super) state: String,
    span: Range<usize>,
}

impl Package {
    /// Whether its files are there and it works, also if it has still to be told of something.
    pub(super) fn is_installed(&self) -> bool {
        ["installed", "triggers-pending", "triggers-awaited"].contains(&self.state.as_str())
    }

    /// dpkg also keeps what it was told of packages that it never had.
    pub(super) fn is_known(&self) -> bool {
        self.state != "not-installed"
    }

    /// What is another when the package's files are: architecture, version, state.
    pub(super) fn signature(&self) -> (&str, &str, &str) {
        let state = if self.is_installed() { "installed" } else { &self.state };
        (&self.architecture, &self.version, state)
    }
}

impl Status {
    /// # Errors
    /// Another form, or one package twice: dpkg refuses such a table, and what it says cannot be relied on.
    pub(super) fn parse(text: Vec<u8>) -> Result<Status, MergeError> {
        let mut packages = Vec::new();
        let (mut start, mut at, mut line_number) = (0, 0, 0);
        let mut close = |span: Range<usize>, line| {
            let stanza = text.get(span.clone()).unwrap_or_default();
            if stanza.trim_ascii().is_empty() {
                return Ok(());
            }
            if packages.len() == MAX_PACKAGES {
                return Err(MergeError::TooMuch);
            }
            packages.push(package(stanza, span).ok_or_else(|| malformed(line))?);
            Ok(())
        };
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            line_number += 1;
            let is_continued = line.starts_with(b" ") || line.starts_with(b"\t");
            if line.trim_ascii().is_empty() {
                close(start..at, line_number)?;
                start = at + line.len();
            } else if (is_continued && start == at) || (!is_continued && !line.contains(&b':')) {
                return Err(malformed(line_number));
            }
            at += line.len();
        }
        close(start..at, line_number)?;
        let mut by_name = BTreeMap::<String, Vec<usize>>::new();
        for (at, package) in packages.iter().enumerate() {
            let same_name = by_name.entry(package.name.clone()).or_default();
            let is_double =
                same_name.iter().any(|other| packages[*other].architecture == package.architecture);
            if is_double || same_name.len() == MAX_ARCHITECTURES {
                return Err(MergeError::Duplicate { key: package.name.clone() });
            }
            same_name.push(at);
        }
        Ok(Status { text, packages, by_name })
    }

    /// The file.
    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }

    /// All packages, in file order.
    pub(super) fn packages(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter()
    }

    /// All names, sorted.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    /// The packages of a name that dpkg has or had.
    pub(super) fn named(&self, name: &str) -> impl Iterator<Item = &Package> {
        let positions = self.by_name.get(name).map(Vec::as_slice).unwrap_or_default();
        positions.iter().map(|at| &self.packages[*at]).filter(|package| package.is_known())
    }

    /// The package of the same name and architecture.
    pub(super) fn exact(&self, package: &Package) -> Option<&Package> {
        let mut packages = self.by_name.get(&package.name)?.iter().map(|at| &self.packages[*at]);
        packages.find(|other| other.architecture == package.architecture)
    }

    /// The lines of a package.
    pub(super) fn stanza(&self, package: &Package) -> &[u8] {
        self.text.get(package.span.clone()).unwrap_or_default()
    }

    /// The value of a package's field, further lines included.
    pub(super) fn field(&self, package: &Package, name: &str) -> Option<String> {
        field(self.stanza(package), name)
    }

    /// Whether the packages come in dpkg's order.
    pub(super) fn is_sorted(&self) -> bool {
        self.packages.is_sorted_by_key(|package| (&package.name, &package.architecture))
    }
}

fn malformed(line: usize) -> MergeError {
    MergeError::Malformed { expected: "a table of packages", line }
}

fn package(stanza: &[u8], span: Range<usize>) -> Option<Package> {
    let value = |name| field(stanza, name).unwrap_or_default();
    let name = field(stanza, "Package").filter(|name| !name.is_empty())?;
    let status = value("Status");
    let mut words = status.split_ascii_whitespace().map(str::to_owned);
    // The second word tells of errors; dpkg itself has not written any but "ok" for long.
    let (want, state) = (words.next().unwrap_or_default(), words.nth(1).unwrap_or_default());
    let (architecture, version) = (value("Architecture"), value("Version"));
    Some(Package { name, architecture, version, want, state, span })
}

fn field(stanza: &[u8], name: &str) -> Option<String> {
    let mut lines = lines_of(stanza).skip_while(|line| !is_field(line, name));
    let first = lines.next()?.get(name.len() + 1..)?;
    let mut value = String::from_utf8_lossy(first.trim_ascii()).into_owned();
    for line in lines.take_while(|line| line.starts_with(b" ") || line.starts_with(b"\t")) {
        value.push('\n');
        value.push_str(&String::from_utf8_lossy(line.trim_ascii()));
    }
    Some(value)
}

fn is_field(line: &[u8], name: &str) -> bool {
    let (start, rest) = line.split_at_checked(name.len()).unwrap_or_default();
    start.eq_ignore_ascii_case(name.as_bytes()) && rest.first() == Some(&b':')
}

/// A package as the files of its own are called in dpkg's folder: `name` or `name:architecture`.
pub(super) fn split_stem(stem: &str) -> (&str, Option<&str>) {
    stem.split_once(':').map_or((stem, None), |(name, architecture)| (name, Some(architecture)))
}

/// The package that a file of dpkg's folder `info` belongs to; `None` for the few that are dpkg's own.
pub(super) fn stem_of(file_name: &[u8]) -> Option<String> {
    let dot = file_name.iter().rposition(|byte| *byte == b'.').filter(|dot| *dot > 0)?;
    Some(shown(&file_name[..dot]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "Package: a\nStatus: hold ok installed\nArchitecture: amd64\nVersion: 1:2-3\nConffiles:\n \
                         /etc/a 00\n /etc/b 11 obsolete\n\n\nPackage: a\nstatus: install ok triggers-pending\n\
                         Architecture: i386\nVersion: 2\n\nPackage: b\nStatus: purge ok not-installed\n";

    fn parse(text: &str) -> Result<Status, MergeError> {
        Status::parse(text.as_bytes().to_vec())
    }

    #[test]
    fn packages_and_their_fields() {
        let status = parse(TABLE).expect("well formed");
        assert_eq!(status.names().collect::<Vec<_>>(), ["a", "b"]);
        let [first, second] = [0, 1].map(|at| status.named("a").nth(at).expect("two"));
        assert_eq!(first.signature(), ("amd64", "1:2-3", "installed"));
        assert_eq!((first.want.as_str(), second.signature()), ("hold", ("i386", "2", "installed")));
        let conffiles = status.field(first, "conffiles").expect("there");
        assert_eq!(conffiles, "\n/etc/a 00\n/etc/b 11 obsolete");
        assert!(status.stanza(first).ends_with(b"obsolete\n"));
        assert_eq!(status.field(first, "Depends"), None);
        assert_eq!(status.named("b").count(), 0);
        assert!(status.is_sorted());
    }

    #[test]
    fn what_is_no_table() {
        for text in ["x", " continued\n", "Version: 1\n", "Package: a\nx\n", "Package: \n"] {
            assert!(matches!(parse(text), Err(MergeError::Malformed { .. })), "{text:?}");
        }
        assert!(matches!(parse("Package: a\n\nPackage: a\n"), Err(MergeError::Duplicate { .. })));
        assert_eq!(parse("").map(|status| status.packages().count()), Ok(0));
    }

    #[test]
    fn files_of_packages() {
        assert_eq!(stem_of(b"libstdc++6:amd64.list").as_deref(), Some("libstdc++6:amd64"));
        assert_eq!(stem_of(b"python3.11.md5sums").as_deref(), Some("python3.11"));
        assert_eq!(stem_of(b"format"), None);
        assert_eq!(split_stem("libc6:i386"), ("libc6", Some("i386")));
    }
}
