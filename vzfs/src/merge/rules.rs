//! Which path is merged how, and what makes derived files anew.
//!
//! Tables of globs, first match counts. They are data: a template carries rules of its own, which go before the built-in ones, because an
//! application knows best how its own registries combine.
//!
//! In a glob `*` stands for any bytes without a slash, `**` for any bytes, everything else for itself. Paths and globs have no leading slash.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Longer globs match no path: paths end at 4095 bytes.
const MAX_GLOB_BYTES: usize = 4095;
/// Longer commands are scripts, and belong into a file of the template.
const MAX_COMMAND_BYTES: usize = 4096;

/// How the versions of a file become one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// Paragraphs of `Field: value` lines, one a package, as in dpkg's `status`.
    Stanzas,
    /// dpkg's `diversions`: three lines a record, keyed by the diverted path.
    Diversions,
    /// dpkg's `statoverride`: `user group mode path`, keyed by the path.
    StatOverrides,
    /// dpkg's `triggers/Unincorp`: `trigger package...`, the packages united.
    PendingTriggers,
    /// A file of update-alternatives' database.
    Alternatives,
    /// A colon-separated account table.
    Accounts(AccountTable),
    /// `/etc/subuid` and `/etc/subgid`: `name:first:count`.
    SubIds,
    /// A set of lines.
    LineSet,
    /// A file that is only appended to.
    Log,
    /// Line by line, as a version control system does it.
    Text,
    /// A cache that some program generates anew: the last layer wins, and the note says that it can be regenerated.
    Derived,
    /// A mixture would be worse than either version. In a stack the last layer wins; where a VE and an update differ, whoever is asked decides.
    LastWins,
    /// What is there already stays: the earlier layer's, or the VE's.
    Keep,
    /// What comes is taken: the later layer's, or the update's.
    Take,
}

/// The names that templates use for rules.
const NAMES: &[(&str, Rule)] = &[
    ("text", Rule::Text),
    ("lines", Rule::LineSet),
    ("log", Rule::Log),
    ("stanzas", Rule::Stanzas),
    ("whole", Rule::LastWins),
    ("keep", Rule::Keep),
    ("take", Rule::Take),
    ("derived", Rule::Derived),
    ("passwd", Rule::Accounts(AccountTable::Passwd)),
    ("group", Rule::Accounts(AccountTable::Group)),
    ("shadow", Rule::Accounts(AccountTable::Shadow)),
    ("gshadow", Rule::Accounts(AccountTable::Gshadow)),
    ("subids", Rule::SubIds),
    ("alternatives", Rule::Alternatives),
    ("diversions", Rule::Diversions),
    ("statoverride", Rule::StatOverrides),
    ("triggers", Rule::PendingTriggers),
];

impl Rule {
    /// The name that templates use for it.
    pub fn as_str(self) -> &'static str {
        // Every rule has a name (a test looks).
        NAMES.iter().find(|(_, rule)| *rule == self).map_or("", |(name, _)| name)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(name: &str) -> Result<Rule, RuleError> {
        let known = NAMES.iter().find(|(known, _)| *known == name);
        known.map(|(_, rule)| *rule).ok_or_else(|| RuleError::Unknown(name.to_owned()))
    }
}

/// Why something is no rule.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum RuleError {
    /// No rule has that name.
    #[error("there is no merge rule {0:?}; the rules are {list}", list = names())]
    Unknown(String),
    /// A glob that matches no path, or one that is surely a mistake.
    #[error("{glob:?} cannot say for which paths a merge rule is: {why}")]
    Glob {
        /// The glob.
        glob: String,
        /// The reason.
        why: &'static str,
    },
    /// A command for files that are not derived, or no command at all.
    #[error("the merge rule for {glob:?} cannot have that command: {why}")]
    Command {
        /// The glob.
        glob: String,
        /// The reason.
        why: &'static str,
    },
}

fn names() -> String {
    NAMES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

/// A rule for the paths that a glob matches.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MergeRule {
    /// Which paths.
    glob: Cow<'static, str>,
    /// How their versions become one.
    rule: Rule,
    /// What makes a derived file anew; see [`Rules::generator_for`].
    generate: Option<Cow<'static, str>>,
}

impl MergeRule {
    /// A checked rule.
    ///
    /// # Errors
    /// [`RuleError::Glob`], [`RuleError::Command`].
    pub fn new(glob: &str, rule: Rule, generate: Option<&str>) -> Result<MergeRule, RuleError> {
        let refuse = |why| Err(RuleError::Glob { glob: glob.to_owned(), why });
        if glob.starts_with('/') || glob.ends_with('/') {
            return refuse("paths are relative to the root, without a slash at either end");
        }
        if glob.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
            return refuse("a part of it is empty, . or ..");
        }
        if glob.len() > MAX_GLOB_BYTES || glob.contains('\0') {
            return refuse("no path is like that");
        }
        if let Some(command) = generate {
            let refuse = |why| Err(RuleError::Command { glob: glob.to_owned(), why });
            if rule != Rule::Derived {
                return refuse("only derived files are made anew");
            }
            if command.trim().is_empty() || command.len() > MAX_COMMAND_BYTES || command.contains('\0') {
                return refuse("it is empty, or too long");
            }
        }
        let generate = generate.map(|command| command.to_owned().into());
        Ok(MergeRule { glob: glob.to_owned().into(), rule, generate })
    }

    /// The paths.
    pub fn glob(&self) -> &str {
        &self.glob
    }

    /// How their versions become one.
    pub fn rule(&self) -> Rule {
        self.rule
    }

    /// What makes a derived file anew, as the template wrote it.
    pub fn generate(&self) -> Option<&str> {
        self.generate.as_deref()
    }
}

/// The rules that are in effect: those of templates, then the built-in ones.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rules(Vec<MergeRule>);

impl Rules {
    /// With rules that go before the built-in ones.
    pub fn new(own: Vec<MergeRule>) -> Rules {
        Rules(own)
    }

    /// The rules that go before the built-in ones.
    pub fn own(&self) -> &[MergeRule] {
        &self.0
    }

    /// The rule for a path that goes before the built-in ones, if there is one.
    pub fn own_for(&self, path: &[u8]) -> Option<&MergeRule> {
        self.0.iter().find(|own| matches(own.glob.as_bytes(), path))
    }

    /// The rule for a path; [`Rule::Text`] if no table has one.
    pub fn rule_for(&self, path: &[u8]) -> Rule {
        self.own_for(path).map(|own| own.rule).or_else(|| first(RULES, path)).unwrap_or(Rule::Text)
    }

    /// The command, for `/bin/sh -c` inside, that makes a derived file anew. `{path}` and `{dir}` in a table's command stand for the file and
    /// its directory; here they are filled in, absolute and quoted. `None` if the file is not derived or nothing is known to make it: many
    /// caches come back by themselves.
    pub fn generator_for(&self, path: &[u8]) -> Option<String> {
        let command = match self.own_for(path) {
            Some(own) => own.generate.as_deref()?,
            None if first(RULES, path) == Some(Rule::Derived) => first(GENERATORS, path)?,
            None => return None,
        };
        if !command.contains("{path}") && !command.contains("{dir}") {
            return Some(command.to_owned());
        }
        let path = std::str::from_utf8(path).ok()?;
        let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
        Some(command.replace("{path}", &quoted(path)).replace("{dir}", &quoted(dir)))
    }

    /// Bytes that are equal for rules that merge equally. Commands are no part of it.
    pub fn fingerprint(&self) -> Vec<u8> {
        let own = self.0.iter().map(|own| (&*own.glob, own.rule));
        let lines = own.chain(RULES.iter().copied()).map(|(glob, rule)| format!("{rule} {glob}\0"));
        lines.collect::<String>().into_bytes()
    }
}

/// An absolute path as one word of a shell.
fn quoted(path: &str) -> String {
    format!("'/{}'", path.replace('\'', r"'\''"))
}

/// The account tables that differ in which of their columns are identifiers and member lists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AccountTable {
    /// `name:password:uid:gid:comment:home:shell`
    Passwd,
    /// `name:password:gid:members`
    Group,
    /// `name:password:last change:...`
    Shadow,
    /// `name:password:administrators:members`
    Gshadow,
}

/// The built-in rules, first match counts; what matches nothing is [`Rule::Text`].
pub const RULES: &[(&str, Rule)] = &[
    ("var/lib/dpkg/status", Rule::Stanzas),
    ("var/lib/dpkg/status-old", Rule::Stanzas),
    ("var/lib/dpkg/available", Rule::Stanzas),
    ("var/lib/dpkg/available-old", Rule::Stanzas),
    ("var/lib/apt/extended_states", Rule::Stanzas),
    ("var/lib/dpkg/diversions", Rule::Diversions),
    ("var/lib/dpkg/diversions-old", Rule::Diversions),
    ("var/lib/dpkg/statoverride", Rule::StatOverrides),
    ("var/lib/dpkg/statoverride-old", Rule::StatOverrides),
    ("var/lib/dpkg/triggers/Unincorp", Rule::PendingTriggers),
    // `File` has lines of path and package, the others (one for each explicit trigger) are lists of packages.
    ("var/lib/dpkg/triggers/*", Rule::LineSet),
    ("var/lib/dpkg/alternatives/*", Rule::Alternatives),
    // These belong to one version of one package: lines of two versions never make a third.
    ("var/lib/dpkg/info/**", Rule::LastWins),
    ("etc/passwd", Rule::Accounts(AccountTable::Passwd)),
    ("etc/passwd-", Rule::Accounts(AccountTable::Passwd)),
    ("etc/group", Rule::Accounts(AccountTable::Group)),
    ("etc/group-", Rule::Accounts(AccountTable::Group)),
    ("etc/shadow", Rule::Accounts(AccountTable::Shadow)),
    ("etc/shadow-", Rule::Accounts(AccountTable::Shadow)),
    ("etc/gshadow", Rule::Accounts(AccountTable::Gshadow)),
    ("etc/gshadow-", Rule::Accounts(AccountTable::Gshadow)),
    ("etc/subuid", Rule::SubIds),
    ("etc/subuid-", Rule::SubIds),
    ("etc/subgid", Rule::SubIds),
    ("etc/subgid-", Rule::SubIds),
    ("etc/shells", Rule::LineSet),
    ("var/lib/shells.state", Rule::LineSet),
    ("etc/ld.so.cache", Rule::Derived),
    ("etc/ssl/certs/ca-certificates.crt", Rule::Derived),
    ("etc/ssl/certs/java/cacerts", Rule::Derived),
    ("var/cache/**", Rule::Derived),
    ("var/lib/apt/lists/**", Rule::Derived),
    ("var/lib/systemd/catalog/database", Rule::Derived),
    ("usr/lib/locale/locale-archive", Rule::Derived),
    ("usr/lib/udev/hwdb.bin", Rule::Derived),
    ("usr/share/info/dir", Rule::Derived),
    ("usr/share/mime/**", Rule::Derived),
    ("usr/share/applications/mimeinfo.cache", Rule::Derived),
    ("usr/**/icon-theme.cache", Rule::Derived),
    ("usr/**/gschemas.compiled", Rule::Derived),
    ("usr/**/giomodule.cache", Rule::Derived),
    ("usr/**/loaders.cache", Rule::Derived),
    ("usr/**/__pycache__/*", Rule::Derived),
    ("boot/initrd.img-*", Rule::Derived),
    // Indexed by uid or by position, so that appending one to the other would be nonsense.
    ("var/log/lastlog", Rule::LastWins),
    ("var/log/faillog", Rule::LastWins),
    ("var/log/journal/**", Rule::LastWins),
    ("var/log/**", Rule::Log),
    // Programs and their data come from packages. If two layers have different versions of one, lines of both mixed are a
    // program that nobody ever tested, even where they merge cleanly.
    ("usr/**", Rule::LastWins),
    ("boot/**", Rule::LastWins),
    ("bin/**", Rule::LastWins),
    ("sbin/**", Rule::LastWins),
    ("lib*/**", Rule::LastWins),
];

/// What makes derived files anew, first match counts. A program that a VE has not is not needed in it either. What is missing here comes back by
/// itself, or with the next run of the program that it is for.
pub const GENERATORS: &[(&str, &str)] = &[
    ("etc/ld.so.cache", "ldconfig"),
    ("etc/ssl/certs/ca-certificates.crt", "update-ca-certificates"),
    ("var/cache/ldconfig/*", "ldconfig"),
    ("var/cache/fontconfig/**", "fc-cache -s"),
    ("var/lib/systemd/catalog/database", "journalctl --update-catalog"),
    ("usr/lib/locale/locale-archive", "locale-gen"),
    ("usr/lib/udev/hwdb.bin", "systemd-hwdb update --usr"),
    ("usr/share/info/dir", "update-info-dir"),
    ("usr/share/mime/**", "update-mime-database /usr/share/mime"),
    ("usr/share/applications/mimeinfo.cache", "update-desktop-database -q"),
    ("usr/**/icon-theme.cache", "gtk-update-icon-cache -f -q -t {dir}"),
    ("usr/**/gschemas.compiled", "glib-compile-schemas {dir}"),
    // These two are in a folder of the architecture, outside of PATH.
    ("usr/**/giomodule.cache", "/usr/lib/*/glib-2.0/gio-querymodules {dir}"),
    ("usr/**/loaders.cache", "/usr/lib/*/gdk-pixbuf-2.0/gdk-pixbuf-query-loaders --update-cache"),
    ("boot/initrd.img-*", "update-initramfs -u -k all"),
];

/// The value of the first glob that matches.
fn first<T: Copy>(table: &[(&str, T)], path: &[u8]) -> Option<T> {
    table.iter().find(|(glob, _)| matches(glob.as_bytes(), path)).map(|(_, value)| *value)
}

/// Whether a glob matches a path. The work is bounded by the product of the lengths, whatever the glob.
fn matches(glob: &[u8], path: &[u8]) -> bool {
    let plain = glob.iter().position(|b| *b == b'*').unwrap_or(glob.len());
    let (prefix, mut glob) = glob.split_at(plain);
    let Some(path) = path.strip_prefix(prefix) else { return false };
    if glob.is_empty() {
        return path.is_empty();
    }
    // Which lengths of the path the glob so far can match.
    let mut reach = vec![false; path.len() + 1];
    reach[0] = true;
    loop {
        glob = match glob {
            [] => return reach[path.len()],
            [b'*', b'*', rest @ ..] => {
                spread(&mut reach, |_| true);
                rest
            }
            [b'*', rest @ ..] => {
                spread(&mut reach, |at| path[at] != b'/');
                rest
            }
            [byte, rest @ ..] => {
                for at in (0..path.len()).rev() {
                    reach[at + 1] = reach[at] && path[at] == *byte;
                }
                reach[0] = false;
                rest
            }
        };
    }
}

/// From every length that was reached, also longer ones, as far as `crosses` lets it.
fn spread(reach: &mut [bool], crosses: impl Fn(usize) -> bool) {
    for at in 1..reach.len() {
        reach[at] |= reach[at - 1] && crosses(at - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (glob, path) in [
            ("a/*", "a/b"),
            ("a/**", "a/b/c"),
            ("a/**/c", "a/x/y/c"),
            ("lib*/**", "lib64/x"),
            ("a*c", "abbc"),
        ] {
            assert!(matches(glob.as_bytes(), path.as_bytes()), "{glob} {path}");
        }
        for (glob, path) in
            [("a/*", "a/b/c"), ("a", "a/b"), ("a", "b"), ("lib*/**", "var/lib/x"), ("a*c", "ab")]
        {
            assert!(!matches(glob.as_bytes(), path.as_bytes()), "{glob} {path}");
        }
    }

    #[test]
    fn table() {
        let rule_for = |path: &[u8]| Rules::default().rule_for(path);
        assert_eq!(rule_for(b"var/lib/dpkg/status"), Rule::Stanzas);
        assert_eq!(rule_for(b"var/lib/dpkg/triggers/Unincorp"), Rule::PendingTriggers);
        assert_eq!(rule_for(b"var/lib/dpkg/triggers/File"), Rule::LineSet);
        assert_eq!(rule_for(b"var/lib/dpkg/alternatives/editor"), Rule::Alternatives);
        assert_eq!(rule_for(b"etc/group-"), Rule::Accounts(AccountTable::Group));
        assert_eq!(rule_for(b"etc/ld.so.cache"), Rule::Derived);
        assert_eq!(rule_for(b"usr/bin/perl"), Rule::LastWins);
        assert_eq!(rule_for(b"etc/profile"), Rule::Text);
    }

    #[test]
    fn no_rule_is_out_of_reach() {
        for (at, (glob, _)) in RULES.iter().enumerate() {
            let shadowed =
                RULES[..at].iter().any(|(earlier, _)| matches(earlier.as_bytes(), glob.as_bytes()));
            assert!(!shadowed, "{glob} never counts");
        }
    }

    #[test]
    fn every_rule_has_one_name() {
        for (at, (name, rule)) in NAMES.iter().enumerate() {
            assert_eq!((rule.as_str(), name.parse()), (*name, Ok(*rule)));
            assert!(NAMES[..at].iter().all(|(other, _)| other != name));
        }
        assert!(RULES.iter().all(|(_, rule)| !rule.as_str().is_empty()));
        let error = "diff".parse::<Rule>().expect_err("no rule").to_string();
        assert!(error.contains("\"diff\"") && error.contains("text, lines,"), "{error}");
    }

    #[test]
    fn rules_of_templates_go_first() {
        let own = |glob, rule, generate| MergeRule::new(glob, rule, generate).expect("legal");
        let rules = Rules::new(vec![
            own("etc/app/*.list", Rule::LineSet, None),
            own("usr/lib/app/*/index", Rule::Derived, Some("app-index {path} {dir}")),
            own("etc/ld.so.cache", Rule::Derived, None),
            own("etc/**", Rule::Keep, None),
        ]);
        assert_eq!(rules.rule_for(b"etc/app/a.list"), Rule::LineSet);
        assert_eq!(rules.rule_for(b"etc/passwd"), Rule::Keep);
        assert_eq!(rules.rule_for(b"var/lib/dpkg/status"), Rule::Stanzas);
        assert_eq!(rules.rule_for(b"srv/x"), Rule::Text);
        let command = rules.generator_for(b"usr/lib/app/o'n/index");
        assert_eq!(command.as_deref(), Some(r"app-index '/usr/lib/app/o'\''n/index' '/usr/lib/app/o'\''n'"));
        // The template said that nothing makes it.
        assert_eq!(rules.generator_for(b"etc/ld.so.cache"), None);
        assert_eq!(Rules::default().generator_for(b"etc/ld.so.cache").as_deref(), Some("ldconfig"));
        assert_eq!(Rules::default().generator_for(b"etc/passwd"), None);
        assert_ne!(rules.fingerprint(), Rules::default().fingerprint());
        let again = Rules::new(vec![own("a", Rule::Derived, Some("x"))]).fingerprint();
        assert_eq!(again, Rules::new(vec![own("a", Rule::Derived, Some("y"))]).fingerprint());
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for glob in ["", "/etc/x", "etc/", "a//b", "a/../b", "."] {
            assert!(MergeRule::new(glob, Rule::Text, None).is_err(), "{glob}");
        }
        assert!(MergeRule::new("a", Rule::Text, Some("x")).is_err());
        assert!(MergeRule::new("a", Rule::Derived, Some(" ")).is_err());
    }

    #[test]
    fn generators_are_for_derived_files() {
        for (glob, _) in GENERATORS {
            let path = glob.replace("**", "a/b").replace('*', "c");
            assert_eq!(Rules::default().rule_for(path.as_bytes()), Rule::Derived, "{glob}");
        }
    }

    #[test]
    fn a_glob_of_many_stars_takes_no_long_time() {
        let (glob, path) = ("a*".repeat(200), "a".repeat(3000) + "/b");
        assert!(!matches(glob.as_bytes(), path.as_bytes()));
        assert!(matches("**a**".repeat(100).as_bytes(), path.as_bytes()));
    }
}
