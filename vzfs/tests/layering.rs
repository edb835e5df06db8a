//! Keeps the module map true: the table in `src/lib.rs` gives every module a level, and a module names only modules of lower levels.
//!
//! It reads the sources as text. `crate::NAME` and `crate::{NAME, ...}` count wherever they stand in code, tests included; comments do
//! not count.

#![allow(clippy::panic)] // Helpers of tests fail as tests do.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// External names that belong to one module, or to one more file.
const CONFINED: [(&str, &[&str]); 3] = [
    ("rocksdb::", &["meta"]),
    ("fuser::", &["fuse"]),
    // fuser's one unsafe function that is needed takes fuser's types, which `sys` must not know.
    ("unsafe {", &["sys", "fuse/backing.rs"]),
];

fn source_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The table in the documentation of the library: module -> level.
fn levels() -> BTreeMap<String, u32> {
    let lib = read(&source_dir().join("lib.rs"));
    let row = |line: &str| {
        let mut columns = line.strip_prefix("//! |")?.split('|').map(str::trim);
        let level = columns.next()?.parse().ok()?;
        Some((columns.next()?.trim_matches(['[', ']', '`']).to_owned(), level))
    };
    lib.lines().filter_map(row).collect()
}

fn rust_files(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())) {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Every source file of the library's modules: module, path, code without line comments.
fn sources() -> Vec<(String, PathBuf, String)> {
    let root = source_dir();
    let mut files = Vec::new();
    rust_files(&root, &mut files);
    files.sort();
    let source = |path: PathBuf| {
        let relative = path.strip_prefix(&root).expect("below src").to_owned();
        let first = relative.iter().next()?.to_str()?.trim_end_matches(".rs").to_owned();
        // The roots of crates see everything.
        if ["lib", "main", "bin"].contains(&first.as_str()) {
            return None;
        }
        let code = read(&path)
            .lines()
            .map(|line| line.split("//").next().unwrap_or_default())
            .collect::<Vec<_>>()
            .join("\n");
        Some((first, relative, code))
    };
    files.into_iter().filter_map(source).collect()
}

fn identifier(text: &str) -> &str {
    let text = text.trim_start();
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// The first segments after `crate::`.
fn named_modules(code: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, prefix) in code.match_indices("crate::") {
        let rest = &code[at + prefix.len()..];
        let Some(group) = rest.trim_start().strip_prefix('{') else {
            names.insert(identifier(rest).to_owned());
            continue;
        };
        names.insert(identifier(group).to_owned());
        let mut depth = 0;
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    names.insert(identifier(&group[at + 1..]).to_owned());
                }
                _ => {}
            }
        }
    }
    names.remove(""); // After a trailing comma.
    names
}

#[test]
fn names_are_found() {
    let code =
        "use crate::a::B; let x = crate::c(); use crate::{d::{E, f}, g, \n h::I,\n}; pub(crate) fn j() {}";
    assert_eq!(named_modules(code).into_iter().collect::<Vec<_>>(), ["a", "c", "d", "g", "h"]);
}

#[test]
fn modules_depend_downward_only() {
    let levels = levels();
    let mut wrong = Vec::new();
    for (module, path, code) in sources() {
        let Some(level) = levels.get(&module) else { continue };
        for named in named_modules(&code).into_iter().filter(|named| *named != module) {
            match levels.get(&named) {
                Some(other) if other < level => {}
                Some(other) => {
                    wrong.push(format!("{}: {module} ({level}) names {named} ({other})", path.display()))
                }
                None => wrong.push(format!("{}: {named} is not in the table of src/lib.rs", path.display())),
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn the_table_is_complete() {
    let levels = levels();
    let found: BTreeSet<String> = sources().into_iter().map(|(module, _, _)| module).collect();
    assert_eq!(levels.into_keys().collect::<BTreeSet<_>>(), found);
}

#[test]
fn what_one_module_owns_is_named_nowhere_else() {
    let mut wrong = Vec::new();
    for (module, path, code) in sources() {
        let owns = |owner: &&str| module == **owner || path == Path::new(owner);
        let named = CONFINED.iter().filter(|(name, owners)| !owners.iter().any(owns) && code.contains(name));
        wrong.extend(named.map(|(name, owners)| format!("{}: {name} belongs to {owners:?}", path.display())));
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}
