//! The definition of a template: a TOML file, checked before anything is done.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::Spanned;
use vzfs::api::MergeRule;
use vzfs::merge::{self, Rule};
use vzfs::types::{TemplateName, TemplateRef, TemplateSpec, Version};

use crate::error::{Exit, Failure, Result};

/// A definition that makes sense.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Definition {
    /// As it was written.
    pub(super) text: String,
    /// The template to make.
    pub(super) template: TemplateSpec,
    /// What it is, with what only this kind has.
    pub(super) kind: Kind,
    /// One line about it.
    pub(super) summary: String,
    /// Free texts by name.
    pub(super) labels: BTreeMap<String, String>,
    /// Packages to install.
    pub(super) packages: Vec<String>,
    /// Whether to install what the packages recommend.
    pub(super) recommends: bool,
    /// Files to place, after the packages.
    pub(super) files: Vec<PlacedFile>,
    /// Shell scripts to run inside, after the files.
    pub(super) scripts: Vec<String>,
    /// What to leave out.
    pub(super) exclude: Vec<String>,
    /// How files are merged.
    pub(super) merge: Vec<MergeRule>,
    /// The time that no file is newer than, in seconds since 1970.
    pub(super) source_date_epoch: Option<i64>,
}

/// What a template is made as.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Kind {
    /// A root filesystem of its own.
    Os(OsTable),
    /// A layer on an OS template.
    App {
        /// That template.
        on: TemplateRef,
    },
}

/// The table `[os]`.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OsTable {
    /// The distribution's release: `bookworm`.
    pub(super) suite: String,
    /// How much is installed besides `packages`.
    #[serde(default)]
    pub(super) variant: Variant,
    /// The archive's components.
    #[serde(default = "main_component")]
    pub(super) components: Vec<String>,
    /// Package sources (URLs or lines of sources.list) instead of the host's.
    #[serde(default)]
    pub(super) mirrors: Vec<String>,
}

/// The sets of packages that mmdebstrap knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Variant {
    /// Only what every package may rely on.
    Essential,
    /// The same and apt.
    Apt,
    /// The same and what the archive calls required.
    #[default]
    Minbase,
    /// The same and what compiling packages needs.
    Buildd,
    /// The same as `minbase` and what the archive calls important.
    Important,
    /// A usual text-mode system.
    Standard,
}

impl Variant {
    /// The name that mmdebstrap knows.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Variant::Essential => "essential",
            Variant::Apt => "apt",
            Variant::Minbase => "minbase",
            Variant::Buildd => "buildd",
            Variant::Important => "important",
            Variant::Standard => "standard",
        }
    }
}

/// A file to place, content at hand.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct PlacedFile {
    /// Where, absolute in the template.
    pub(super) path: PathBuf,
    /// What is in it.
    #[serde(skip)]
    pub(super) content: Vec<u8>,
    /// The name of the file that it was read from, as the definition has it.
    #[serde(skip)]
    pub(super) source: Option<PathBuf>,
    /// Permission bits.
    pub(super) mode: u32,
    /// A user of the template, name or number.
    pub(super) owner: String,
    /// A group of the template, name or number.
    pub(super) group: String,
}

fn main_component() -> Vec<String> {
    vec!["main".to_owned()]
}

fn root_name() -> String {
    "root".to_owned()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDefinition {
    name: TemplateName,
    version: Version,
    kind: Spanned<RawKind>,
    #[serde(default)]
    summary: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    os: Option<Spanned<OsTable>>,
    on: Option<Spanned<TemplateRef>>,
    #[serde(default)]
    packages: Vec<Spanned<String>>,
    #[serde(default)]
    recommends: bool,
    #[serde(default)]
    files: Vec<Spanned<RawFile>>,
    #[serde(default)]
    scripts: Vec<String>,
    #[serde(default)]
    exclude: Vec<String>,
    #[serde(default)]
    merge: Vec<Spanned<RawMerge>>,
    source_date_epoch: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawKind {
    Os,
    App,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    path: Spanned<PathBuf>,
    content: Option<String>,
    source: Option<Spanned<PathBuf>>,
    mode: Option<Spanned<String>>,
    #[serde(default = "root_name")]
    owner: String,
    #[serde(default = "root_name")]
    group: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMerge {
    path: String,
    rule: Option<String>,
    generate: Option<String>,
}

/// What is wrong, and at which bytes.
struct Mistake {
    span: Option<Range<usize>>,
    message: String,
    hint: Option<&'static str>,
}

impl Mistake {
    fn at<T>(what: &Spanned<T>, message: impl Into<String>) -> Mistake {
        Mistake { span: Some(what.span()), message: message.into(), hint: None }
    }

    fn hint(self, hint: &'static str) -> Mistake {
        Mistake { hint: Some(hint), ..self }
    }
}

/// Reads a file that a definition names.
pub(super) type Sources<'a> = &'a dyn Fn(&Path) -> std::io::Result<Vec<u8>>;

impl Definition {
    /// Reads a definition and the files it names, which are beside it.
    pub(super) fn load(file: &Path) -> Result<Definition> {
        let dir = file.parent().unwrap_or(Path::new(""));
        Definition::load_with(file, &|source| std::fs::read(dir.join(source)))
    }

    /// The same where `sources` has the files.
    pub(super) fn load_with(file: &Path, sources: Sources<'_>) -> Result<Definition> {
        let text = std::fs::read_to_string(file)
            .map_err(|e| Failure::io(format!("cannot read the definition {}", file.display()), &e))?;
        Definition::parse(&text, sources).map_err(|mistake| {
            let place = mistake.span.map_or(String::new(), |span| position(&text, span.start));
            let mut failure =
                Failure::new(Exit::Refused, format!("{}{place}: {}", file.display(), mistake.message));
            failure.hint = mistake.hint.map(str::to_owned);
            failure
        })
    }

    /// Checks a definition.
    fn parse(text: &str, sources: Sources<'_>) -> std::result::Result<Definition, Mistake> {
        let raw: RawDefinition = toml::from_str(text).map_err(|e| Mistake {
            span: e.span(),
            // The library's messages may have more lines than the first.
            message: e.message().lines().collect::<Vec<_>>().join("; "),
            hint: None,
        })?;
        let kind = match (raw.kind.get_ref(), raw.os, raw.on) {
            (RawKind::Os, Some(os), None) => Kind::Os(os.into_inner()),
            (RawKind::App, None, Some(on)) => Kind::App { on: on.into_inner() },
            (RawKind::Os, None, _) => {
                return Err(Mistake::at(&raw.kind, "kind = \"os\" needs a table [os] with the suite"));
            }
            (RawKind::App, _, None) => {
                return Err(Mistake::at(
                    &raw.kind,
                    "kind = \"app\" needs on = \"NAME@VERSION\", the OS template",
                ));
            }
            (RawKind::Os, _, Some(on)) => {
                return Err(Mistake::at(&on, "an OS template stands on nothing")
                    .hint("leave out `on`, or make it kind = \"app\""));
            }
            (RawKind::App, Some(os), _) => {
                return Err(Mistake::at(&os, "an application template has no table [os]")
                    .hint("leave out [os], or make it kind = \"os\""));
            }
        };
        for package in &raw.packages {
            check_package(package)?;
        }
        let files =
            raw.files.into_iter().map(|file| place(file, sources)).collect::<std::result::Result<_, _>>()?;
        let merge = raw.merge.into_iter().map(merge_rule).collect::<std::result::Result<_, _>>()?;
        Ok(Definition {
            text: text.to_owned(),
            template: TemplateSpec { name: raw.name, version: raw.version },
            kind,
            summary: raw.summary,
            labels: raw.labels,
            packages: raw.packages.into_iter().map(Spanned::into_inner).collect(),
            recommends: raw.recommends,
            files,
            scripts: raw.scripts,
            exclude: raw.exclude,
            merge,
            source_date_epoch: raw.source_date_epoch.map(i64::from),
        })
    }
}

/// `name`, `name=version`, `name/suite` or `name:architecture`; never what apt would take for an option or a removal
/// (`name-`), and nothing that breaks mmdebstrap's lists.
pub(super) fn is_package(name: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || "-+.:=~/_".contains(c);
    let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    // Names may end in `+` (g++), which apt reads as such when a package has that name.
    begins && name.chars().all(legal) && (!name.ends_with(['-', '+']) || name.ends_with("++"))
}

/// What to write in place of what is no package.
pub(super) const PACKAGE_HINT: &str = "write NAME, NAME=VERSION or NAME:ARCHITECTURE";

fn check_package(package: &Spanned<String>) -> std::result::Result<(), Mistake> {
    let name = package.get_ref();
    if is_package(name) {
        return Ok(());
    }
    Err(Mistake::at(package, format!("{name:?} is no package name")).hint(PACKAGE_HINT))
}

/// Whether a path can be that of a file to place.
pub(super) fn is_place(path: &Path) -> bool {
    let parent = path.components().any(|part| part == Component::ParentDir);
    path.is_absolute() && path.file_name().is_some() && !parent
}

fn place(file: Spanned<RawFile>, sources: Sources<'_>) -> std::result::Result<PlacedFile, Mistake> {
    let whole = file.span();
    let RawFile { path, content, source, mode, owner, group } = file.into_inner();
    if !is_place(path.get_ref()) {
        return Err(Mistake::at(&path, "a file's path must be absolute, without \"..\""));
    }
    let (content, source) = match (content, source) {
        (Some(content), None) => (content.into_bytes(), None),
        (None, Some(source)) => {
            let read = sources(source.get_ref());
            let what = |e| Mistake::at(&source, format!("cannot read {}: {e}", source.get_ref().display()));
            (read.map_err(what)?, Some(source.into_inner()))
        }
        _ => {
            let message = "a file needs either content or source".to_owned();
            return Err(Mistake { span: Some(whole), message, hint: None });
        }
    };
    let mode = match mode {
        None => 0o644,
        Some(text) => match u32::from_str_radix(text.get_ref(), 8) {
            Ok(mode) if mode <= 0o7777 => mode,
            _ => {
                return Err(Mistake::at(&text, format!("{:?} is no mode", text.get_ref()))
                    .hint("write octal digits: \"0644\""));
            }
        },
    };
    Ok(PlacedFile { path: path.into_inner(), content, source, mode, owner, group })
}

/// A rule that makes sense; what a command makes is derived without saying so.
fn merge_rule(written: Spanned<RawMerge>) -> std::result::Result<MergeRule, Mistake> {
    let RawMerge { path, rule, generate } = written.get_ref();
    let rule = match (rule, generate) {
        (Some(rule), _) => rule.clone(),
        (None, Some(_)) => Rule::Derived.to_string(),
        (None, None) => {
            return Err(Mistake::at(
                &written,
                "a merge rule needs rule = \"NAME\", or generate = \"COMMAND\"",
            ));
        }
    };
    let checked = rule.parse().and_then(|rule| merge::MergeRule::new(path, rule, generate.as_deref()));
    checked.map_err(|error| Mistake::at(&written, error.to_string()))?;
    Ok(MergeRule { path: path.clone(), rule, generate: generate.clone() })
}

/// `:LINE:COLUMN`, counted from 1, in characters.
fn position(text: &str, offset: usize) -> String {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
    format!(":{line}:{column}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OS: &str = "name = \"debian\"\nversion = \"12\"\nkind = \"os\"\npackages = [\"less\", \"g++\"]\n\
                      [os]\nsuite = \"bookworm\"\n";

    fn parse(text: &str) -> std::result::Result<Definition, Mistake> {
        Definition::parse(text, &|source| std::fs::read(source))
    }

    fn mistake(text: &str) -> (String, String) {
        let mistake = parse(text).expect_err(text);
        (mistake.span.map_or(String::new(), |span| position(text, span.start)), mistake.message)
    }

    #[test]
    fn legal_definitions() {
        let definition = parse(OS).map_err(|m| m.message).expect("legal");
        assert_eq!(definition.template.to_string(), "debian@12");
        let Kind::Os(os) = definition.kind else { unreachable!("an OS") };
        assert_eq!((os.variant, os.components), (Variant::Minbase, vec!["main".to_owned()]));
        let app = "name = \"nginx\"\nversion = \"1\"\nkind = \"app\"\non = \"debian@12\"\nscripts = [\"true\"]\n\
                   [labels]\nteam = \"web\"\n[[files]]\npath = \"/etc/x\"\ncontent = \"y\"\nmode = \"0600\"\n";
        let definition = parse(app).map_err(|m| m.message).expect("legal");
        assert_eq!(definition.files[0].mode, 0o600);
        assert_eq!(definition.labels["team"], "web");
        let merge = format!(
            "{OS}[[merge]]\npath = \"etc/x/*\"\nrule = \"lines\"\n[[merge]]\npath = \"var/x.db\"\ngenerate = \"x-db\"\n"
        );
        let merge = parse(&merge).map_err(|m| m.message).expect("legal").merge;
        assert_eq!((&*merge[0].rule, &*merge[1].rule), ("lines", "derived"));
        assert!(matches!(definition.kind, Kind::App { on } if on.to_string() == "debian@12"));
    }

    #[test]
    fn a_typo_is_shown_where_it_is_with_what_was_expected() {
        let (place, message) = mistake(&OS.replace("packages", "pakages"));
        assert_eq!(place, ":4:1");
        assert!(message.contains("pakages") && message.contains("packages"), "{message}");
        let (place, message) = mistake(&OS.replace("suite =", "suit ="));
        assert_eq!(place, ":6:1");
        assert!(message.contains("suite"), "{message}");
        let (place, message) = mistake(&OS.replace("\"os\"", "\"oss\""));
        assert_eq!(place, ":3:8");
        assert!(message.contains("`os`") && message.contains("`app`"), "{message}");
    }

    #[test]
    fn contradictions_are_refused() {
        let cases = [
            (OS.replace("kind = \"os\"", "kind = \"app\""), ":3:8", "needs on"),
            (OS.replace("kind = \"os\"", "kind = \"app\"\non = \"a\""), ":6:1", "no table [os]"),
            (OS.replace("kind = \"os\"", "kind = \"os\"\non = \"a@1\""), ":4:6", "stands on nothing"),
            (OS.replace("\"less\"", "\"-o\""), ":4:13", "no package name"),
            (OS.replace("\"less\"", "\"less-\""), ":4:13", "no package name"),
            (OS.replace("\"less\"", "\"a,b\""), ":4:13", "no package name"),
            (format!("{OS}[[files]]\npath = \"etc/x\"\ncontent = \"\"\n"), ":8:8", "absolute"),
            (format!("{OS}[[files]]\npath = \"/a/../x\"\ncontent = \"\"\n"), ":8:8", "absolute"),
            (format!("{OS}[[files]]\npath = \"/x\"\n"), ":7:1", "either content or source"),
            (format!("{OS}[[files]]\npath = \"/x\"\ncontent = \"\"\nmode = \"0888\"\n"), ":10:8", "no mode"),
            (format!("{OS}[[files]]\npath = \"/x\"\nsource = \"not-there\"\n"), ":9:10", "not-there"),
            (format!("{OS}[[merge]]\npath = \"etc/x\"\n"), ":7:1", "needs rule"),
            (format!("{OS}[[merge]]\npath = \"/etc/x\"\nrule = \"text\"\n"), ":7:1", "without a slash"),
            (format!("{OS}[[merge]]\npath = \"etc/x\"\nrule = \"texts\"\n"), ":7:1", "stanzas"),
            (OS.replace("\"debian\"", "\"de bian\""), ":1:8", "illegal template name"),
        ];
        for (text, place, part) in cases {
            let (found, message) = mistake(&text);
            assert!(message.contains(part), "{message}");
            assert_eq!(found, place, "{message}");
        }
    }
}
