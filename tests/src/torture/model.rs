//! What a store must show: a naive model of templates and VEs, and the one definition of what may be lost.
//!
//! # What may be lost when the power fails
//! All operations of all VEs and on the store stand in one log, and a crash keeps a prefix of it. So the names, types, permissions, links and
//! attributes that are found must be exactly those after some number of operations, not more than were begun, and so many at least that what was done to a
//! VE before a sync in it that was acknowledged is there, and all that was done before a change to the store itself, such as a new VE.
//!
//! The content of files is beside the log, as on ext4 and XFS. A file that was not written since its last fsync has exactly the content of
//! then; content that came with the template counts as synced. Of one that was written since, each byte is one that the file had at that place at
//! the fsync or later (zero where it was shorter), and its length is between the shortest and the longest since. It never has another file's bytes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

/// Tells one inode of one VE from all others.
pub type FileId = u64;

/// What an inode is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A regular file; its content is in [`Contents`].
    File,
    /// A symbolic link with its target.
    Symlink(String),
}

/// An inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Its permissions.
    pub perm: u16,
    /// The value of its attribute [`ATTRIBUTE`].
    pub attribute: Option<String>,
}

/// The one extended attribute that is set.
pub const ATTRIBUTE: &str = "user.torture";
/// What of the OS template no VE touches, and only its versions change.
pub const RELEASE: &str = "release";
/// The versions of the OS template.
pub const VERSIONS: usize = 2;

/// A VE's tree. The root has the empty path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// Which version of the OS template it stands on, from 1.
    pub version: usize,
    /// Paths, without a leading slash.
    pub names: BTreeMap<String, FileId>,
    /// What they are.
    pub nodes: BTreeMap<FileId, Node>,
}

impl Tree {
    /// What is at a path that must be there.
    pub fn at(&self, path: &str) -> &Node {
        &self.nodes[&self.names[path]]
    }

    /// How many names a file has.
    pub fn links(&self, id: FileId) -> usize {
        self.names.values().filter(|named| **named == id).count()
    }

    /// Takes a name away, and the inode with the last one.
    pub fn remove(&mut self, path: &str) {
        if let Some(id) = self.names.remove(path)
            && self.links(id) == 0
        {
            self.nodes.remove(&id);
        }
    }

    /// All names in a directory, at any depth.
    pub fn below(&self, dir: &str) -> Vec<String> {
        self.names.keys().filter(|path| is_below(path, dir)).cloned().collect()
    }
}

/// Whether a path is in a directory, at any depth.
pub fn is_below(path: &str, dir: &str) -> bool {
    if dir.is_empty() {
        !path.is_empty()
    } else {
        path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
    }
}

/// The directory that a path is in.
pub fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

/// What the whole store shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    /// `NAME@VERSION` of every template.
    pub templates: std::collections::BTreeSet<String>,
    /// By name.
    pub ves: BTreeMap<String, Tree>,
}

impl World {
    /// Everything but the content of files, a line each, the same for equal worlds.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for template in &self.templates {
            // Writing into a string has no failing part.
            let _ = writeln!(text, "template {template}");
        }
        for (ve, tree) in &self.ves {
            let _ = writeln!(text, "VE {ve}");
            let mut first: BTreeMap<FileId, &str> = BTreeMap::new();
            for (path, id) in &tree.names {
                let first = *first.entry(*id).or_insert(path);
                text.push_str(&line(ve, path, first, &tree.nodes[id], tree.links(*id)));
            }
        }
        text
    }
}

/// How an inode stands in [`World::text`].
pub fn line(ve: &str, path: &str, first_path: &str, node: &Node, links: usize) -> String {
    let kind = match &node.kind {
        Kind::Dir => "dir".to_owned(),
        Kind::File => format!("file, {links} names, first /{first_path}"),
        Kind::Symlink(target) => format!("symlink to {target}"),
    };
    let attribute = node.attribute.as_deref().unwrap_or("-");
    format!("{ve}:/{path} {kind} {:o} {attribute}\n", node.perm)
}

/// Content that a file had.
#[derive(Clone, Debug)]
pub struct Version {
    /// The operation that made it so.
    pub since: usize,
    /// The content.
    pub bytes: Arc<Vec<u8>>,
}

/// The contents of a file from its beginning on.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// One after the other; the first is empty, or the template's.
    pub versions: Vec<Version>,
    /// The operations that synced it.
    pub syncs: Vec<usize>,
}

/// The contents of all files that there ever were.
pub type Contents = BTreeMap<FileId, History>;

impl History {
    /// What the file has now.
    pub fn now(&self) -> Arc<Vec<u8>> {
        self.versions.last().map(|version| Arc::clone(&version.bytes)).unwrap_or_default()
    }

    /// Why the file may not have this content when operations up to `acknowledged` were acknowledged and up to `begun` begun; `None` when it may.
    pub fn objection(
        &self,
        found: &[u8],
        acknowledged: Option<usize>,
        begun: Option<usize>,
    ) -> Option<String> {
        let synced = self.syncs.iter().rev().find(|sync| Some(**sync) <= acknowledged);
        let base = match synced {
            Some(sync) => self.versions.iter().rposition(|version| version.since < *sync).unwrap_or(0),
            None => 0,
        };
        let possible: Vec<&Version> = self.versions[base..]
            .iter()
            .enumerate()
            .filter(|(at, version)| *at == 0 || Some(version.since) <= begun)
            .map(|(_, version)| version)
            .collect();
        let lens = || possible.iter().map(|version| version.bytes.len());
        let (least, most) = (lens().min().unwrap_or(0), lens().max().unwrap_or(0));
        if !(least..=most).contains(&found.len()) {
            return Some(format!("it has {} bytes, not {least} to {most}", found.len()));
        }
        let fits = |(at, byte): (usize, &u8)| {
            possible.iter().any(|version| version.bytes.get(at).copied().unwrap_or(0) == *byte)
        };
        let wrong = found.iter().enumerate().position(|pair| !fits(pair))?;
        Some(format!(
            "byte {wrong} of {} is {}, which it never was since its last sync ({} contents)",
            found.len(),
            found[wrong],
            possible.len()
        ))
    }
}

/// A template's source: files by path, with content. Two names may share a file.
pub struct Source {
    /// `NAME@VERSION`.
    pub spec: String,
    /// The files.
    pub files: Vec<(String, Vec<u8>)>,
    /// Second names of files: (of, name).
    pub links: Vec<(String, String)>,
}

fn filler(text: &str, len: usize) -> Vec<u8> {
    // The seed only has to differ from text to text.
    let seed = text.bytes().fold(7, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
    super::random::Random::new(seed).bytes(len)
}

/// The OS template. Its versions differ in [`RELEASE`] only.
pub fn os(version: usize) -> Source {
    let mut files: Vec<(String, Vec<u8>)> = [
        ("etc/passwd", 300),
        ("etc/conf", 20),
        ("etc/empty", 0),
        ("usr/lib/large", 150_000),
        ("usr/lib/page", 8192),
        ("usr/bin/tool", 5000),
        ("var/log/text", 9000),
    ]
    .iter()
    .map(|(path, len)| ((*path).to_owned(), filler(path, *len)))
    .collect();
    for name in ["changed", &format!("only-{version}")] {
        files.push((format!("{RELEASE}/{name}"), filler(&format!("{name} {version}"), 700)));
    }
    let links = vec![("usr/bin/tool".to_owned(), "usr/bin/alias".to_owned())];
    Source { spec: format!("os@{version}"), files, links }
}

/// A template that is imported and removed again.
pub fn extra(number: usize) -> Source {
    let file = |at: usize| (format!("extra/{at}"), filler(&format!("extra {number} {at}"), 3000 * (at + 1)));
    // One file is the OS's: removing the template must leave it alone.
    let shared = ("usr/lib/page".to_owned(), filler("usr/lib/page", 8192));
    Source {
        spec: format!("extra@{number}"),
        files: (0..4).map(file).chain([shared]).collect(),
        links: Vec::new(),
    }
}

impl Source {
    /// Its directories, parents first; the root among them.
    pub fn dirs(&self) -> Vec<String> {
        let mut dirs = std::collections::BTreeSet::from([String::new()]);
        for (path, _) in &self.files {
            let mut dir = parent(path);
            while !dir.is_empty() {
                dirs.insert(dir.to_owned());
                dir = parent(dir);
            }
        }
        dirs.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_may_be_lost_only_since_the_last_sync() {
        let version = |since, text: &str| Version { since, bytes: Arc::new(text.as_bytes().to_vec()) };
        let history = History {
            versions: vec![version(0, ""), version(2, "first"), version(4, "firstmore")],
            syncs: vec![3],
        };
        let objects =
            |text: &str, acknowledged, begun| history.objection(text.as_bytes(), acknowledged, begun);
        assert_eq!(objects("", Some(2), Some(3)), None, "nothing was synced");
        assert_eq!(objects("\0\0\0", Some(2), Some(3)), None, "zeros in a file that grew");
        assert_eq!(objects("first", Some(3), Some(3)), None);
        assert!(objects("", Some(3), Some(3)).is_some(), "it was synced");
        assert!(objects("firs", Some(4), Some(4)).is_some());
        assert_eq!(objects("firstmo", Some(4), Some(4)), None);
        assert_eq!(objects("first\0\0\0\0", Some(4), Some(4)), None);
        assert!(objects("\0irstmore", Some(4), Some(4)).is_some(), "what was synced is zero");
        assert!(objects("firstmore", Some(3), Some(3)).is_some(), "written by nobody yet");
        assert!(objects("firstXore", Some(4), Some(4)).is_some(), "another file's");
    }
}
