use std::sync::atomic::{AtomicU64, Ordering};

use super::error::Reason;
use crate::types::NameRef;

/// Longest path of an entry, in bytes.
pub const MAX_PATH_BYTES: usize = 4096;

/// What an archive may ask of this host before the import gives up.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Entries in all (of all layers of an image), with the directories that only their paths imply.
    pub max_entries: u64,
    /// Bytes of paths, links and extended attributes of all entries together: they are held in memory until the end.
    pub max_metadata_bytes: u64,
    /// Logical bytes of all contents together; holes count.
    pub max_bytes: u64,
    /// Decompressed bytes for each compressed byte, from 64 MiB of decompressed bytes on.
    pub max_ratio: u64,
}

impl Default for Limits {
    /// Far above any real root filesystem, far below what fills a host.
    fn default() -> Self {
        Limits { max_entries: 20_000_000, max_metadata_bytes: 4 << 30, max_bytes: 2 << 40, max_ratio: 1000 }
    }
}

/// Counts against [`Limits`]; shared by the workers of an import.
pub(super) struct Budget<'a> {
    limits: &'a Limits,
    entries: AtomicU64,
    metadata_bytes: AtomicU64,
    bytes: AtomicU64,
}

impl<'a> Budget<'a> {
    pub(super) fn new(limits: &'a Limits) -> Self {
        Budget { limits, entries: 0.into(), metadata_bytes: 0.into(), bytes: 0.into() }
    }

    pub(super) fn limits(&self) -> &'a Limits {
        self.limits
    }

    pub(super) fn entry(&self) -> Result<(), Reason> {
        self.entries(1)
    }

    pub(super) fn entries(&self, count: u64) -> Result<(), Reason> {
        spend(&self.entries, count, self.limits.max_entries, "entries")
    }

    pub(super) fn metadata(&self, bytes: u64) -> Result<(), Reason> {
        spend(&self.metadata_bytes, bytes, self.limits.max_metadata_bytes, "bytes of metadata")
    }

    pub(super) fn bytes(&self, bytes: u64) -> Result<(), Reason> {
        spend(&self.bytes, bytes, self.limits.max_bytes, "bytes of content")
    }
}

fn spend(spent: &AtomicU64, amount: u64, limit: u64, what: &'static str) -> Result<(), Reason> {
    let before = spent.fetch_add(amount.min(limit + 1), Ordering::Relaxed);
    if before.saturating_add(amount) > limit { Err(Reason::Limit { what, limit }) } else { Ok(()) }
}

/// Told how far an import is; called from several threads.
pub trait Progress: Sync {
    /// So many more entries and bytes of content are done.
    fn advance(&self, entries: u64, bytes: u64);
    /// How many there will be in all, as far as it is known.
    fn total(&self, entries: Option<u64>, bytes: Option<u64>);
}

/// Nobody is told.
impl Progress for () {
    fn advance(&self, _: u64, _: u64) {}
    fn total(&self, _: Option<u64>, _: Option<u64>) {}
}

/// Paths to leave out: each pattern is a path from the root in which `*` stands for any bytes but `/`; what it matches is left out with
/// everything below.
#[derive(Clone, Debug, Default)]
pub struct Exclude {
    patterns: Vec<Vec<Vec<u8>>>,
}

impl Exclude {
    /// Takes patterns such as `var/cache/*`; a leading slash makes no difference. Empty patterns are dropped.
    pub fn new<P: AsRef<[u8]>>(patterns: impl IntoIterator<Item = P>) -> Self {
        let split = |pattern: P| -> Vec<Vec<u8>> {
            let components = pattern.as_ref().split(|byte| *byte == b'/');
            components.filter(|part| !part.is_empty() && *part != b".").map(<[u8]>::to_vec).collect()
        };
        Exclude { patterns: patterns.into_iter().map(split).filter(|pattern| !pattern.is_empty()).collect() }
    }

    /// Whether the path (its components) is left out.
    pub(super) fn matches(&self, path: &[NameRef<'_>]) -> bool {
        self.patterns.iter().any(|pattern| {
            pattern.len() <= path.len()
                && pattern.iter().zip(path).all(|(part, name)| glob(part, name.as_bytes()))
        })
    }

    /// Whether nothing is left out.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }
}

/// `*` matches any bytes. Goes back to the last `*` only, which suffices and keeps the time quadratic at worst.
fn glob(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut in_name) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while in_name < name.len() {
        if pattern.get(at) == Some(&b'*') {
            retry = Some((at, in_name));
            at += 1;
        } else if pattern.get(at) == Some(&name[in_name]) {
            at += 1;
            in_name += 1;
        } else if let Some((star, from)) = retry {
            retry = Some((star, from + 1));
            at = star + 1;
            in_name = from + 1;
        } else {
            return false;
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        let exclude = Exclude::new(["/var/cache/*", "tmp/x*z", "a**b", ""]);
        let matches = |path: &str| {
            let names: Vec<_> =
                path.split('/').map(|name| NameRef::new(name.as_bytes()).expect("name")).collect();
            exclude.matches(&names)
        };
        for path in ["var/cache/apt", "var/cache/apt/y", "tmp/xz", "tmp/xyyz/q", "ab", "axxb"] {
            assert!(matches(path), "{path}");
        }
        for path in ["var/cache", "var", "tmp/xzy", "var2/cache/apt", "a"] {
            assert!(!matches(path), "{path}");
        }
    }

    #[test]
    fn budget_stops_at_its_limits() {
        let limits = Limits { max_entries: 2, max_bytes: 10, max_ratio: 1, ..Limits::default() };
        let budget = Budget::new(&limits);
        assert!(budget.entry().is_ok() && budget.entry().is_ok() && budget.entry().is_err());
        assert!(
            budget.bytes(10).is_ok() && budget.bytes(u64::MAX).is_err() && budget.bytes(u64::MAX).is_err()
        );
    }
}
