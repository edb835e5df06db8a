//! What installed packages need of each other, as deb-control(5) and the policy manual have it.
//!
//! Architectures are not looked at: a table that is sound for them on both sides stays so, because packages come from one side whole.

use std::cell::Cell;
use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};

use super::status::Status;
use crate::types::debian_order;

/// How many comparisons are made, hundreds of times what a large system needs: the root of a VE may write a table that wants more than anybody
/// waits for.
const MAX_COMPARISONS: usize = 20_000_000;

/// A package name, with versions of it that will do.
struct Relation<'a> {
    name: &'a str,
    version: Option<(Range, &'a str)>,
}

#[derive(Clone, Copy)]
enum Range {
    Earlier,
    UpTo,
    Exactly,
    From,
    Later,
}

impl<'a> Relation<'a> {
    /// `name[:architecture] [(>= version)]`; `None` for what is something else.
    fn parse(text: &'a str) -> Option<Relation<'a>> {
        let text = text.trim();
        let end = text.find(|c: char| c.is_whitespace() || "(:[<".contains(c)).unwrap_or(text.len());
        let name = Some(&text[..end]).filter(|name| !name.is_empty())?;
        let Some((_, range)) = text[end..].split_once('(') else {
            return Some(Relation { name, version: None });
        };
        let range = range.split(')').next()?.trim();
        let split = range.find(|c| !"<=>".contains(c))?;
        let version = range[split..].trim();
        let range = match &range[..split] {
            "<<" => Range::Earlier,
            "<=" | "<" => Range::UpTo,
            "=" => Range::Exactly,
            ">=" | ">" => Range::From,
            ">>" => Range::Later,
            _ => return None,
        };
        Some(Relation { name, version: Some((range, version)) })
    }

    fn admits(&self, version: &str) -> bool {
        let Some((range, bound)) = self.version else { return true };
        match (range, debian_order(version, bound)) {
            (Range::Earlier, order) => order == Ordering::Less,
            (Range::UpTo, order) => order != Ordering::Greater,
            (Range::Exactly, order) => order == Ordering::Equal,
            (Range::From, order) => order != Ordering::Less,
            (Range::Later, order) => order == Ordering::Greater,
        }
    }
}

/// What stands for a name: a package with its version, or one that provides the name, perhaps in a version.
struct Offer {
    by: String,
    version: Option<String>,
}

/// What is wrong between the installed packages of a table, a sentence each; as far as [`MAX_COMPARISONS`] reach.
pub(super) fn broken(status: &Status) -> BTreeSet<String> {
    let installed: Vec<_> = status.packages().filter(|package| package.is_installed()).collect();
    let mut offers = HashMap::<String, Vec<Offer>>::new();
    for package in &installed {
        let own = Offer { by: package.name.clone(), version: Some(package.version.clone()) };
        offers.entry(package.name.clone()).or_default().push(own);
        let provides = status.field(package, "Provides").unwrap_or_default();
        for provided in provides.split(',').filter_map(Relation::parse) {
            let version = provided.version.map(|(_, version)| version.to_owned());
            offers
                .entry(provided.name.to_owned())
                .or_default()
                .push(Offer { by: package.name.clone(), version });
        }
    }
    let comparisons = Cell::new(0);
    let matching = |relation: &Relation<'_>| {
        let offers = offers.get(relation.name).map(Vec::as_slice).unwrap_or_default();
        let fits = |offer: &&Offer| match &offer.version {
            Some(version) => relation.admits(version),
            None => relation.version.is_none(),
        };
        comparisons.set(comparisons.get() + offers.len());
        offers.iter().filter(fits).map(|offer| offer.by.as_str()).collect::<Vec<_>>()
    };
    let mut found = BTreeSet::new();
    for package in &installed {
        let of = |field| status.field(package, field).unwrap_or_default();
        for field in ["Pre-Depends", "Depends"] {
            for group in of(field).split(',').map(str::trim).filter(|group| !group.is_empty()) {
                if comparisons.get() > MAX_COMPARISONS {
                    return found;
                }
                // What is not understood is not complained of: dpkg has accepted it.
                let met = group
                    .split('|')
                    .any(|text| Relation::parse(text).is_none_or(|relation| !matching(&relation).is_empty()));
                if !met {
                    found.insert(format!(
                        "{} {} needs {group}, which is not installed",
                        package.name, package.version
                    ));
                }
            }
        }
        for (field, verb) in [("Breaks", "breaks"), ("Conflicts", "conflicts with")] {
            for relation in of(field).split(',').filter_map(Relation::parse) {
                if comparisons.get() > MAX_COMPARISONS {
                    return found;
                }
                for other in matching(&relation).into_iter().filter(|other| *other != package.name) {
                    found
                        .insert(format!("{} {} {verb} the installed {other}", package.name, package.version));
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(stanzas: &[&str], expected: &[&str]) {
        let text: String = stanzas
            .iter()
            .map(|stanza| {
                let (name, rest) = stanza.split_once(' ').expect("a version");
                let (version, fields) = rest.split_once('\n').unwrap_or((rest, ""));
                format!(
                    "Package: {name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: {version}\n{fields}\n\n"
                )
            })
            .collect();
        let status = Status::parse(text.into_bytes()).expect("a table");
        assert_eq!(broken(&status).into_iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn versions_and_alternatives() {
        check(&["a 1\nDepends: b (>= 2~), c | d:any (<< 5)", "b 2", "d 4"], &[]);
        check(
            &["a 1\nDepends: b (>= 2), c | d (<< 5)\nPre-Depends: e", "b 2~rc1", "d 5"],
            &[
                "a 1 needs b (>= 2), which is not installed",
                "a 1 needs c | d (<< 5), which is not installed",
                "a 1 needs e, which is not installed",
            ],
        );
        check(&["a 1\nDepends: b (= 1:0-1)", "b 1:0-1"], &[]);
        check(&["a 1\nDepends: b (>> 1)", "b 1"], &["a 1 needs b (>> 1), which is not installed"]);
    }

    #[test]
    fn what_is_provided() {
        check(&["a 1\nDepends: mta", "b 1\nProvides: mta, x (= 3)"], &[]);
        check(&["a 1\nDepends: x (>= 2)", "b 1\nProvides: mta, x (= 3)"], &[]);
        check(
            &["a 1\nDepends: mta (>= 1)", "b 1\nProvides: mta"],
            &["a 1 needs mta (>= 1), which is not installed"],
        );
    }

    #[test]
    fn packages_that_exclude_each_other() {
        check(&["a 1\nBreaks: b (<< 2)", "b 2"], &[]);
        check(&["a 1\nBreaks: b (<< 2)", "b 1"], &["a 1 breaks the installed b"]);
        let mta = "Provides: mta\nConflicts: mta";
        check(&[&format!("a 1\n{mta}")], &[]);
        check(
            &[&format!("a 1\n{mta}"), &format!("b 1\n{mta}")],
            &["a 1 conflicts with the installed b", "b 1 conflicts with the installed a"],
        );
    }
}
