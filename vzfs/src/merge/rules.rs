//! Which path is merged how.
//!
//! A table of (glob, rule), first match counts. It is data so that template manifests can carry such tables later: an
//! application knows best how its own registries combine.

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
    /// The last layer wins: a mixture would be worse than either version.
    LastWins,
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

/// The rules, first match counts; what matches nothing is [`Rule::Text`].
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

/// The rule for a path (no leading slash).
pub fn rule_for(path: &[u8]) -> Rule {
    RULES.iter().find(|(glob, _)| matches(glob.as_bytes(), path)).map_or(Rule::Text, |(_, rule)| *rule)
}

/// `*` stands for any bytes without a slash, `**` for any bytes, everything else for itself.
fn matches(glob: &[u8], path: &[u8]) -> bool {
    match glob {
        [] => path.is_empty(),
        [b'*', b'*', rest @ ..] => (0..=path.len()).any(|skipped| matches(rest, &path[skipped..])),
        [b'*', rest @ ..] => {
            let reach = path.iter().position(|b| *b == b'/').unwrap_or(path.len());
            (0..=reach).any(|skipped| matches(rest, &path[skipped..]))
        }
        [byte, rest @ ..] => {
            path.split_first().is_some_and(|(first, path)| first == byte && matches(rest, path))
        }
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
}
