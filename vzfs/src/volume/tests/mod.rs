//! The volume without a mount. `model` compares random operations with a naive model; here are the promises one by one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::blobs::{Batch, Summary, summarize_file};
use crate::tree::{Content, Meta as TreeMeta, TreeBuilder};
use crate::types::Digest;

mod attributes;
mod dedup;
mod files;
mod joined;
mod layers;
mod linear;
mod model;
mod names;
mod rebase;
mod rights;
mod unreadable;

/// One database and blob store for many volumes.
struct Store {
    dir: tempfile::TempDir,
    meta: Arc<Meta>,
    blobs: Arc<BlobStore>,
    private: Arc<PrivateData>,
    next: AtomicU32,
}

impl Store {
    fn new() -> Store {
        let parent = std::env::var_os("CARGO_TARGET_TMPDIR").unwrap_or_else(|| "/var/tmp".into());
        let dir = tempfile::tempdir_in(parent).expect("scratch folder");
        let blobs = dir.path().join("blobs");
        std::fs::create_dir(dir.path().join("data")).expect("folder");
        BlobStore::create(&blobs).expect("create");
        let meta = Arc::new(Meta::open(&dir.path().join("meta")).expect("database"));
        let private = PrivateData::open(&dir.path().join("data"), Arc::clone(&meta)).expect("removals");
        let (private, blobs) = (Arc::new(private), Arc::new(BlobStore::open(&blobs).expect("open")));
        Store { meta, blobs, private, next: AtomicU32::new(1), dir }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn open(&self, ve: VeId, base: &Arc<Tree>) -> Volume {
        let (meta, blobs) = (Arc::clone(&self.meta), Arc::clone(&self.blobs));
        Volume::open(ve, Arc::clone(base), meta, blobs, Arc::clone(&self.private)).expect("open")
    }

    fn data_files(&self, ve: VeId) -> usize {
        self.private.settle().expect("removed");
        std::fs::read_dir(self.data().join(ve.to_string())).map_or(0, Iterator::count)
    }

    /// `/etc/passwd` and `/pw` are one file; `/etc/hosts`, `/bin/su` (setuid), `/dir/sub/file`, `/sym`.
    fn base(&self) -> Arc<Tree> {
        let batch = self.blobs.batch();
        let mut tree = TreeBuilder::new(TreeMeta::new(FileKind::Dir, 0o755));
        let root = tree.root();
        let dir = TreeMeta::new(FileKind::Dir, 0o755);
        let file = TreeMeta::new(FileKind::File, 0o644);
        let mut add = |parent, path: &str, meta: TreeMeta, content| {
            tree.insert(parent, name(path), meta, content).expect("insert")
        };
        let etc = add(root, "etc", dir.clone(), Content::None);
        let bin = add(root, "bin", dir.clone(), Content::None);
        let top = add(root, "dir", dir.clone(), Content::None);
        let sub = add(top, "sub", dir, Content::None);
        let passwd = add(etc, "passwd", file.clone(), blob(&batch, b"root:x:0:0"));
        add(etc, "hosts", file.clone(), blob(&batch, b"127.0.0.1"));
        add(sub, "file", file.clone(), blob(&batch, b"deep"));
        add(bin, "su", TreeMeta { perm: 0o4755, ..file }, blob(&batch, b"su"));
        add(root, "sym", TreeMeta::new(FileKind::Symlink, 0o777), Content::Symlink(b"etc/passwd"[..].into()));
        tree.link(root, name("pw"), passwd).expect("link");
        batch.commit().expect("commit");
        finish(tree)
    }
}

/// A VE of its own.
struct Scene<'s> {
    store: &'s Store,
    base: Arc<Tree>,
    ve: VeId,
    volume: Volume,
}

impl<'s> Scene<'s> {
    fn new(store: &'s Store, base: Arc<Tree>) -> Self {
        let ve = VeId(store.next.fetch_add(1, Ordering::Relaxed));
        let volume = store.open(ve, &base);
        Scene { store, base, ve, volume }
    }

    fn reopen(&mut self) {
        self.volume = self.store.open(self.ve, &self.base);
    }

    fn at(&self, path: &str) -> Ino {
        self.volume.resolve(path.as_bytes()).expect("resolve").expect("the path is there")
    }

    fn changed(&self) -> Vec<(String, ChangeKind)> {
        self.volume.changes().expect("changes").into_iter().map(|change| (change.path, change.kind)).collect()
    }

    /// The base with the private layer applied.
    fn applied(&self) -> Arc<Tree> {
        let batch = self.store.blobs.batch();
        let layer = finish(self.volume.to_layer(&batch, &|_| false).expect("layer"));
        batch.commit().expect("commit");
        let mut merged = TreeBuilder::from_tree(&self.base).expect("base");
        merged.apply_layer(&layer).expect("merge");
        finish(merged)
    }
}

fn name(name: &str) -> NameRef<'_> {
    NameRef::new(name.as_bytes()).expect("legal")
}

fn blob(batch: &Batch<'_>, bytes: &[u8]) -> Content {
    let stored = batch.add_bytes(bytes).expect("add");
    Content::Blob { digest: stored.digest, size: stored.size, allocated_bytes: stored.allocated_bytes }
}

fn finish(tree: TreeBuilder) -> Arc<Tree> {
    Arc::new(Tree::from_bytes(tree.finish().expect("finish").bytes).expect("a tree"))
}

/// A result whose error is only the name of its variant.
fn plain<T>(result: Result<T>) -> std::result::Result<T, String> {
    result.map_err(|error| {
        let text = format!("{error:?}");
        text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
    })
}

fn content(volume: &Volume, ino: Ino) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 16];
    let read = volume.read(ino, 0, &mut bytes).expect("read");
    bytes.truncate(read);
    bytes
}

fn xattrs(volume: &Volume, ino: Ino) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let names = volume.xattr_names(ino).expect("list");
    names.into_iter().map(|name| (name.clone(), volume.xattr(ino, &name).expect("get"))).collect()
}

/// A directory, read in calls of `chunk` entries each.
fn list(volume: &Volume, dir: Ino, chunk: usize) -> Vec<(Vec<u8>, Ino)> {
    let (mut found, mut cookie) = (Vec::new(), 0);
    loop {
        let (mut left, from) = (chunk, cookie);
        let emit = |entry: DirEntry<'_>| {
            if left == 0 {
                return false;
            }
            left -= 1;
            assert!(entry.cookie > cookie, "cookies go up");
            cookie = entry.cookie;
            found.push((entry.name.to_vec(), entry.ino));
            true
        };
        volume.read_dir(dir, from, emit).expect("read");
        if left > 0 {
            return found;
        }
    }
}

/// Whatever its size, and however short ago it was changed: tests do not wait. What else keeps a changed file apart, its times, is finer than that
/// since Linux 6.13.
const ANY: QuietRule = QuietRule { min_bytes: 0, before: Timestamp { secs: i64::MAX, nanos: 0 } };

/// Reads a file and publishes its content, as `store` does it before it gives the data file up.
fn publish(
    blobs: &BlobStore,
    volume: &Volume,
    ino: Ino,
) -> Result<std::result::Result<(QuietFile, Summary), Unfit>> {
    let file = match volume.quiet_file(ino, &ANY)? {
        Some(Ok(file)) => file,
        Some(Err(unfit)) => return Ok(Err(unfit)),
        None => return Ok(Err(Unfit::Changed)),
    };
    let opened = match volume.open_quiet(&file)? {
        Ok(opened) => opened,
        Err(unfit) => return Ok(Err(unfit)),
    };
    let content = summarize_file(&opened, &mut |_| true).expect("read").expect("all of it");
    let batch = blobs.batch();
    let is_published = file.is_still(&opened)?
        && (batch.has(&content.digest)?
            || batch.add_hashed(&opened, &content.digest, &mut |_| true)?.is_some());
    batch.commit()?;
    Ok(if is_published { Ok((file, content)) } else { Err(Unfit::Changed) })
}

/// Gives a file's data file up for a blob; `meanwhile` comes between the reading and the exchange.
fn give_up(
    blobs: &BlobStore,
    volume: &Volume,
    ino: Ino,
    meanwhile: impl FnOnce(),
) -> Result<std::result::Result<GivenUp, Unfit>> {
    let (file, content) = match publish(blobs, volume, ino)? {
        Ok(published) => published,
        Err(unfit) => return Ok(Err(unfit)),
    };
    meanwhile();
    let given = volume.give_up(&file, content.digest, content.allocated_bytes)?;
    if given.is_ok() {
        volume.remove_stray(file.data)?;
    }
    Ok(given)
}

const FILE: NewNode<'static> = NewNode::new(FileKind::File, 0o644);
const USER: Caller = Caller { uid: 1000, gid: 1000 };
