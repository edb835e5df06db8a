//! Patterns of paths to leave out of a template.

use super::StoreError;
use crate::tree::{Entry, TreeBuilder};
use crate::types::FileKind;

/// Checked patterns. `*` and `?` do not match a slash, `**` matches any number of directories, `[..]` a set of bytes.
pub(super) struct Globs(Vec<Vec<Vec<u8>>>);

impl Globs {
    /// Checks the patterns. A slash at either end is allowed and means nothing.
    pub(super) fn new(patterns: &[String]) -> Result<Globs, StoreError> {
        let parse = |pattern: &String| {
            let parts: Vec<_> = pattern.trim_matches('/').split('/').map(|p| p.as_bytes().to_vec()).collect();
            let refuse = |why| Err(StoreError::Invalid(format!("cannot exclude {pattern:?}: {why}")));
            if parts.iter().any(|part| part.is_empty()) {
                return refuse("a part of the path is empty");
            }
            if parts.iter().any(|part| *part == b"." || *part == b"..") {
                return refuse("paths are relative to the root, without . and ..");
            }
            if parts.iter().any(|part| !sets_are_closed(part)) {
                return refuse("a set of characters is not closed");
            }
            Ok(parts)
        };
        patterns.iter().map(parse).collect::<Result<_, _>>().map(Globs)
    }

    /// Whether the path, given by its components, is left out itself.
    fn matches(&self, path: &[&[u8]]) -> bool {
        self.0.iter().any(|pattern| match_path(pattern, path))
    }

    /// Whether the path is left out itself (not because of a directory above it).
    pub(super) fn matches_path(&self, path: &[u8]) -> bool {
        !self.0.is_empty() && self.matches(&path.split(|byte| *byte == b'/').collect::<Vec<_>>())
    }

    /// Takes what matches out of a tree, whiteouts too, with everything below.
    pub(super) fn prune(&self, builder: &mut TreeBuilder) {
        if self.0.is_empty() {
            return;
        }
        let mut dirs = vec![(builder.root(), Vec::<Box<[u8]>>::new())];
        while let Some((dir, path)) = dirs.pop() {
            let mut out = Vec::new();
            for (name, entry) in builder.entries(dir) {
                let mut full: Vec<&[u8]> = path.iter().map(|part| &**part).collect();
                full.push(name.as_bytes());
                if self.matches(&full) {
                    out.push(name.to_name());
                } else if let Entry::Node(child) = entry
                    && builder.meta(child).kind == FileKind::Dir
                {
                    dirs.push((child, full.into_iter().map(Into::into).collect()));
                }
            }
            for name in out {
                builder.remove(dir, name.as_ref());
            }
        }
    }
}

fn match_path(pattern: &[Vec<u8>], path: &[&[u8]]) -> bool {
    match (pattern, path) {
        ([], []) => true,
        // "a/**" is what is below a and not a itself.
        ([last], [_, ..]) if last == b"**" => true,
        ([first, rest @ ..], _) if first == b"**" && !rest.is_empty() => {
            (0..=path.len()).any(|skip| match_path(rest, &path[skip..]))
        }
        ([first, rest @ ..], [name, below @ ..]) => match_name(first, name) && match_path(rest, below),
        _ => false,
    }
}

/// One component. On a mismatch after a star the star takes one byte more; only the last star needs that, so the cost is
/// bounded by the product of the lengths.
fn match_name(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, n));
            p += 1;
            continue;
        }
        if let Some(length) = match_one(&pattern[p..], name[n]) {
            (p, n) = (p + length, n + 1);
            continue;
        }
        let Some((at, taken)) = star else { return false };
        star = Some((at, taken + 1));
        (p, n) = (at + 1, taken + 1);
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// How many bytes of the pattern match this byte of the name, or `None`.
fn match_one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'[', ..] => {
            let end = set_end(pattern)?;
            let (set, negated) = match &pattern[1..end] {
                [b'!' | b'^', set @ ..] => (set, true),
                set => (set, false),
            };
            let mut found = false;
            let mut at = 0;
            while at < set.len() {
                if let [low, b'-', high, ..] = set[at..] {
                    found |= (low..=high).contains(&byte);
                    at += 3;
                } else {
                    found |= set[at] == byte;
                    at += 1;
                }
            }
            (found != negated).then_some(end + 1)
        }
        [first, ..] if *first == byte => Some(1),
        _ => None,
    }
}

/// Where the set that begins here ends. A `]` right at its beginning is a member.
fn set_end(pattern: &[u8]) -> Option<usize> {
    let negated = usize::from(matches!(pattern.get(1), Some(b'!' | b'^')));
    let first = 1 + negated;
    pattern.iter().skip(first + 1).position(|byte| *byte == b']').map(|at| at + first + 1)
}

fn sets_are_closed(part: &[u8]) -> bool {
    let mut at = 0;
    while at < part.len() {
        at += match part[at] {
            b'[' => match set_end(&part[at..]) {
                Some(end) => end + 1,
                None => return false,
            },
            _ => 1,
        };
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let matches = |pattern: &str, path: &str| {
            let globs = Globs::new(&[pattern.to_owned()]).expect("legal");
            globs.matches(&path.split('/').map(str::as_bytes).collect::<Vec<_>>())
        };
        for (pattern, path) in [
            ("var/log", "var/log"),
            ("/var/cache/", "var/cache"),
            ("var/*/x", "var/a/x"),
            ("**/*.pyc", "usr/lib/a/b.pyc"),
            ("**/*.pyc", "b.pyc"),
            ("tmp/**", "tmp/a"),
            ("etc/ssh/ssh_host_*_key", "etc/ssh/ssh_host_rsa_key"),
            ("a[0-9]?", "a5x"),
            ("a[!0-9]", "ab"),
            ("[]]", "]"),
            ("*a*b", "xaxbab"),
        ] {
            assert!(matches(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [
            ("var/*", "var/a/b"),
            ("tmp/**", "tmp"),
            ("*.pyc", "usr/b.pyc"),
            ("a[0-9]", "ab"),
            ("a?", "a"),
            ("*a*b", "xaxba"),
        ] {
            assert!(!matches(pattern, path), "{pattern} {path}");
        }
        for bad in ["", "/", "a//b", "a/../b", "a[b"] {
            assert!(Globs::new(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }
}
