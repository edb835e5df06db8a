//! Bases written as lists of paths, a VE that changes some, and what it shows after the move.

#![allow(clippy::panic)] // Helpers of tests fail as tests do.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::api::{ChangeKind, ShadowedBy};
use crate::merge::{MergeRule, Rule};
use crate::meta::Meta;
use crate::tree::{Content, Entry, Meta as TreeMeta, NodeId, Tree, TreeBuilder};
use crate::types::{Attr, FileKind, NameRef, VeId};
use crate::volume::{Caller, NewNode, PrivateData, SetAttr, VolumeError};

mod dpkg;
mod files;
mod packages;
mod random;

/// Path -> content; `-> x` is a symbolic link, a path that ends in a slash a directory.
type Entries<'a> = [(&'a str, &'a str)];

/// A database and a blob store.
struct Fixture {
    dir: tempfile::TempDir,
    meta: Arc<Meta>,
    blobs: Arc<BlobStore>,
    next: AtomicU32,
}

/// A VE on the old of two bases.
struct Scene {
    fixture: Arc<Fixture>,
    delta: Delta,
    volume: Volume,
    on_conflict: OnConflict,
    rules: Rules,
}

/// A move that was made.
struct Moved {
    scene: Scene,
    resolved: Resolved,
}

impl Fixture {
    fn new() -> Fixture {
        let parent = std::env::var_os("CARGO_TARGET_TMPDIR").unwrap_or_else(|| "/var/tmp".into());
        let dir = tempfile::tempdir_in(parent).expect("scratch folder");
        let blobs: PathBuf = dir.path().join("blobs");
        std::fs::create_dir(dir.path().join("data")).expect("folder");
        BlobStore::create(&blobs).expect("create");
        let meta = Arc::new(Meta::open(&dir.path().join("meta")).expect("database"));
        Fixture {
            meta,
            blobs: Arc::new(BlobStore::open(&blobs).expect("open")),
            next: AtomicU32::new(1),
            dir,
        }
    }

    fn base(&self, entries: &Entries<'_>) -> Arc<Tree> {
        let batch = self.blobs.batch();
        let dir = TreeMeta::new(FileKind::Dir, 0o755);
        let mut tree = TreeBuilder::new(dir.clone());
        for (path, text) in entries {
            let mut at = tree.root();
            let path = path.trim_start_matches('/');
            let (parents, last) =
                path.trim_end_matches('/').rsplit_once('/').unwrap_or(("", path.trim_end_matches('/')));
            for part in parents.split('/').filter(|part| !part.is_empty()) {
                at = match child(&tree, at, part) {
                    Some(node) => node,
                    None => tree.insert(at, name(part), dir.clone(), Content::None).expect("insert"),
                };
            }
            let (meta, content) = if path.ends_with('/') {
                (dir.clone(), Content::None)
            } else if let Some(target) = text.strip_prefix("-> ") {
                (TreeMeta::new(FileKind::Symlink, 0o777), Content::Symlink(target.as_bytes().into()))
            } else {
                let stored = batch.add_bytes(text.as_bytes()).expect("store");
                let crate::blobs::Stored { digest, size, allocated_bytes, .. } = stored;
                (TreeMeta::new(FileKind::File, 0o644), Content::Blob { digest, size, allocated_bytes })
            };
            tree.insert(at, name(last), meta, content).expect("insert");
        }
        batch.commit().expect("commit");
        Arc::new(Tree::from_bytes(tree.finish().expect("finish").bytes).expect("a tree"))
    }
}

fn child(tree: &TreeBuilder, dir: NodeId, part: &str) -> Option<NodeId> {
    match tree.get(dir, name(part)) {
        Some(Entry::Node(node)) => Some(node),
        _ => None,
    }
}

fn name(text: &str) -> NameRef<'_> {
    NameRef::new(text.as_bytes()).expect("legal")
}

fn split(path: &str) -> (&str, NameRef<'_>) {
    let (dir, last) = path.rsplit_once('/').unwrap_or(("", path));
    (dir, name(last))
}

impl Scene {
    fn new(old: &Entries<'_>, new: &Entries<'_>) -> Scene {
        Scene::within(&Arc::new(Fixture::new()), old, new)
    }

    fn within(fixture: &Arc<Fixture>, old: &Entries<'_>, new: &Entries<'_>) -> Scene {
        let (old, new) = (fixture.base(old), fixture.base(new));
        let delta = Delta::between(&old, &new).expect("no collision");
        let (meta, blobs) = (Arc::clone(&fixture.meta), Arc::clone(&fixture.blobs));
        let ve = VeId(fixture.next.fetch_add(1, Ordering::Relaxed));
        let data = PrivateData::open(&fixture.dir.path().join("data"), Arc::clone(&meta)).expect("removals");
        let volume = Volume::open(ve, old, meta, blobs, Arc::new(data));
        Scene {
            volume: volume.expect("open"),
            fixture: Arc::clone(fixture),
            delta,
            on_conflict: OnConflict::Keep,
            rules: Rules::default(),
        }
    }

    fn on_conflict(self, on_conflict: OnConflict) -> Scene {
        Scene { on_conflict, ..self }
    }

    /// With a rule of a template's.
    fn rule(self, glob: &str, rule: Rule) -> Scene {
        let own = MergeRule::new(glob, rule, None).expect("a rule");
        Scene { rules: Rules::new(vec![own]), ..self }
    }

    fn ino(&self, path: &str) -> Ino {
        self.volume.resolve(path.as_bytes()).expect("resolve").unwrap_or_else(|| panic!("{path} is missing"))
    }

    fn make(&self, path: &str, node: NewNode<'_>) -> Attr {
        let (dir, last) = split(path);
        self.volume.create(self.ino(dir), last, node, Caller::ROOT).expect("create")
    }

    /// As programs do that write a new file and rename it over the old one.
    fn replace(self, path: &str, text: &str) -> Scene {
        let (dir, last) = split(path);
        match self.volume.unlink(self.ino(dir), last) {
            Ok(()) | Err(VolumeError::NotFound) => {}
            Err(error) => panic!("{path}: {error}"),
        }
        match text.strip_prefix("-> ") {
            Some(target) => {
                let node = NewNode { target: target.as_bytes(), ..NewNode::new(FileKind::Symlink, 0o777) };
                self.make(path, node);
            }
            None => {
                let ino = self.make(path, NewNode::new(FileKind::File, 0o644)).ino;
                self.volume.write(ino, 0, text.as_bytes(), true).expect("write");
            }
        }
        self
    }

    /// As programs do that write into the file that is there.
    fn write(self, path: &str, text: &str) -> Scene {
        let ino = self.ino(path);
        let empty = SetAttr { size: Some(0), ..SetAttr::default() };
        self.volume.set_attr(ino, empty, true).expect("truncate");
        self.volume.write(ino, 0, text.as_bytes(), true).expect("write");
        self
    }

    fn chmod(self, path: &str, perm: u16) -> Scene {
        let set = SetAttr { perm: Some(perm), ..SetAttr::default() };
        self.volume.set_attr(self.ino(path), set, true).expect("chmod");
        self
    }

    fn mkdir(self, path: &str) -> Scene {
        self.make(path, NewNode::new(FileKind::Dir, 0o755));
        self
    }

    fn remove(self, path: &str) -> Scene {
        let (dir, last) = split(path);
        self.volume.unlink(self.ino(dir), last).expect("unlink");
        self
    }

    fn rmdir(self, path: &str) -> Scene {
        let (dir, last) = split(path);
        let ino = self.ino(path);
        self.volume.rmdir(self.ino(dir), last).expect("rmdir");
        self.volume.forget(ino).expect("forget");
        self
    }

    fn resolve(&self, dry_run: bool) -> Result<Resolved, StoreError> {
        let prepared = Prepared::new(&self.delta, &self.fixture.blobs).expect("prepared");
        let ve = "web".parse().expect("a name");
        let sides = Sides {
            ve: &ve,
            delta: &self.delta,
            prepared: &prepared,
            volume: &self.volume,
            blobs: &self.fixture.blobs,
            rules: &self.rules,
            on_conflict: self.on_conflict,
            dry_run,
        };
        let hidden = self.volume.preview(&self.delta).expect("preview").hidden;
        resolve(&sides, &hidden)
    }

    fn error(&self) -> String {
        match self.resolve(false) {
            Ok(_) => panic!("it was not refused"),
            Err(error) => error.to_string(),
        }
    }

    fn blob_count(&self) -> usize {
        self.fixture.blobs.list().expect("list").count()
    }

    /// Previews, decides, moves.
    fn go(self) -> Moved {
        let blobs = self.blob_count();
        let dry = self.resolve(true).expect("decided");
        assert_eq!(self.blob_count(), blobs, "a dry run stores nothing");
        let resolved = self.resolve(false).expect("decided");
        assert_eq!(
            (&resolved.shadowed, &resolved.merged, &resolved.generate, &resolved.notes),
            (&dry.shadowed, &dry.merged, &dry.generate, &dry.notes)
        );
        self.volume.rebase(&self.delta, &resolved.edits, |_, _| Ok(())).expect("moved");
        assert_eq!(self.volume.check().expect("readable"), Vec::<String>::new());
        Moved { scene: self, resolved }
    }
}

impl Moved {
    /// All files and links: path -> content.
    fn shown(&self) -> BTreeMap<String, String> {
        let mut shown = BTreeMap::new();
        let volume = &self.scene.volume;
        let source = volume.export_source();
        let walked = source.for_each::<VolumeError>(&mut |path, ino, attr| {
            let text = match attr.kind {
                FileKind::File => {
                    let mut bytes = vec![0; 1 << 16];
                    let read = volume.read(ino, 0, &mut bytes)?;
                    String::from_utf8_lossy(&bytes[..read]).into_owned()
                }
                FileKind::Symlink => format!("-> {}", String::from_utf8_lossy(&volume.read_link(ino)?)),
                _ => return Ok(()),
            };
            shown.insert(String::from_utf8_lossy(path).into_owned(), text);
            Ok(())
        });
        walked.expect("walk");
        shown
    }

    fn text(&self, path: &str) -> String {
        self.shown().remove(path).unwrap_or_else(|| panic!("{path} is missing"))
    }

    #[track_caller]
    fn shows(&self, expected: &Entries<'_>) {
        let shown = self.shown();
        for (path, text) in expected {
            assert_eq!(shown.get(*path).map(String::as_str), Some(*text), "{path}");
        }
    }

    #[track_caller]
    fn lacks(&self, paths: &[&str]) {
        for path in paths {
            assert_eq!(self.scene.volume.resolve(path.as_bytes()).expect("resolve"), None, "{path}");
        }
    }

    /// Whether the file is the new base's own inode: shared, with nothing private.
    fn is_shared(&self, path: &str) -> bool {
        let base = self.scene.delta.new.resolve(path.as_bytes()).map(|view| view.ino());
        base == Some(self.scene.ino(path)) && self.scene.volume.attr(self.scene.ino(path)).is_ok()
    }

    /// `path: change by`, with what else there is.
    fn shadowed(&self) -> Vec<String> {
        let line = |shadowed: &Shadowed| {
            let Shadowed { path, change, by, beside, package, from, to } = shadowed;
            let change = match change {
                ChangeKind::Added => "added",
                ChangeKind::Changed => "changed",
                ChangeKind::Deleted => "deleted",
            };
            let by = match by {
                ShadowedBy::Changed => "own",
                ShadowedBy::Removed => "removed",
                ShadowedBy::Directory => "directory",
            };
            let mut line = format!("{path}: {change}, {by}");
            if let Some(beside) = beside {
                line += &format!(", beside {beside}");
            }
            if let Some(package) = package {
                let version = |version: &Option<String>| version.clone().unwrap_or("-".to_owned());
                line += &format!(", {package} {} {}", version(from), version(to));
            }
            line
        };
        self.resolved.shadowed.iter().map(line).collect()
    }

    fn merged(&self) -> Vec<(&str, &str)> {
        self.resolved.merged.iter().map(|merged| (merged.path.as_str(), merged.rule.as_str())).collect()
    }

    fn generate(&self) -> Vec<(&str, &str)> {
        self.resolved.generate.iter().map(|made| (made.path.as_str(), made.command.as_str())).collect()
    }
}
