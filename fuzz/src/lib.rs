//! What the fuzz targets share. `scripts/fuzz` builds and runs them; doc/FUZZING.md says how to add one and what to do with a crash.
//!
//! Each target is one file in `fuzz_targets`. Its corpus is `corpus/TARGET`: what `examples/seeds.rs` makes, what fuzzing found
//! interesting, and as `regression-*` what once failed. Targets assert, beyond "no panic", what must hold of whatever is accepted.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arbitrary::Arbitrary;

use vzfs::blobs::{Batch, BlobStore};
use vzfs::meta::Meta;
use vzfs::store::{BoxError, Mounted, Mounter};
use vzfs::tree::{Content, ContentRef, Meta as TreeMeta, Target, Tree, TreeBuilder, WalkEntry};
use vzfs::types::{FileKind, IdShift, Ino, NameRef, VeId, VeName};
use vzfs::volume::{PrivateData, Volume, VolumeError};

/// The folder for files of this process, empty. `scripts/fuzz` names one in memory and removes it afterwards.
pub fn scratch() -> PathBuf {
    let parent = std::env::var_os("VZFS_FUZZ_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = parent.join(format!("vzfs-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("the scratch folder can be made");
    dir
}

/// A database and a blob store for volumes.
pub struct World {
    /// Where they are.
    pub dir: PathBuf,
    /// The database.
    pub meta: Arc<Meta>,
    /// The blobs.
    pub blobs: Arc<BlobStore>,
    /// What [`sample`] makes.
    pub base: Arc<Tree>,
    next_ve: AtomicU32,
}

impl World {
    /// An empty one in the scratch folder.
    #[allow(clippy::new_without_default)]
    pub fn new() -> World {
        let dir = scratch();
        let blobs = dir.join("blobs");
        BlobStore::create(&blobs).expect("a blob store");
        std::fs::create_dir_all(dir.join("data")).expect("a folder");
        let meta = Arc::new(Meta::open(&dir.join("meta")).expect("a database"));
        let blobs = Arc::new(BlobStore::open(&blobs).expect("opens"));
        let batch = blobs.batch();
        let tree = sample(&batch);
        batch.commit().expect("durable");
        let base = Arc::new(Tree::from_bytes(tree.finish().expect("fits").bytes).expect("a tree"));
        World { dir, meta, blobs, base, next_ve: AtomicU32::new(1) }
    }

    /// A number that no VE of this process has had.
    pub fn next_ve(&self) -> VeId {
        VeId(self.next_ve.fetch_add(1, Ordering::Relaxed))
    }

    /// The VE's volume on the base.
    pub fn open(&self, ve: VeId) -> Result<Volume, VolumeError> {
        let (base, meta, blobs) = (Arc::clone(&self.base), Arc::clone(&self.meta), Arc::clone(&self.blobs));
        let data = Arc::new(PrivateData::open(&self.dir.join("data"), Arc::clone(&meta))?);
        let volume = Volume::open(ve, base, meta, blobs, data)?;
        // As for a mount of which the kernel knows nothing any more.
        volume.free_orphans(|_| false)?;
        Ok(volume)
    }

    /// Removes the VE's files. Its records stay: removing them range by range would slow the database down more than they do.
    pub fn remove_data(&self, ve: VeId) {
        PrivateData::remove_all(&self.dir.join("data"), ve).expect("removable");
    }
}

/// For stores of which nothing is mounted.
pub struct NoMounts;

impl Mounter for NoMounts {
    fn mount(
        &self,
        _: Arc<Volume>,
        _: &VeName,
        _: &Path,
        _: Option<IdShift>,
    ) -> Result<Box<dyn Mounted>, BoxError> {
        Err(std::io::Error::from(std::io::ErrorKind::PermissionDenied).into())
    }
}

/// A name of a file: often one that is there, sometimes an illegal one.
#[derive(Arbitrary, Debug)]
pub enum FuzzName {
    /// One of a few, so that they meet.
    Few(u8),
    /// Any bytes.
    Any(Vec<u8>),
    /// One of the longest.
    Long(u8),
}

impl FuzzName {
    /// The bytes.
    pub fn bytes(&self) -> Vec<u8> {
        // Those of `sample`, and some that sort on both sides of a slash.
        const NAMES: [&str; 12] =
            ["etc", "sub", "passwd", "pw", "su", "sym", "deep", "null", "a", "a!", "a0", "b"];
        match self {
            FuzzName::Few(index) => NAMES[*index as usize % NAMES.len()].as_bytes().to_vec(),
            FuzzName::Any(bytes) => bytes.clone(),
            FuzzName::Long(byte) => vec![(*byte).max(b'0'); 255],
        }
    }
}

/// Puts the right checksum into the header of a tar entry.
pub fn seal(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// `user::rwx user:5:rw- group::r-x mask::rwx other::r-x` as an attribute's value.
pub fn acl() -> Vec<u8> {
    let mut acl = vec![2, 0, 0, 0];
    for (tag, perm, id) in
        [(1u16, 7u16, u32::MAX), (2, 6, 5), (4, 5, u32::MAX), (16, 7, u32::MAX), (32, 5, u32::MAX)]
    {
        acl.extend(tag.to_le_bytes());
        acl.extend(perm.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    acl
}

/// A legal name.
pub fn name(text: &str) -> NameRef<'_> {
    NameRef::new(text.as_bytes()).expect("a legal name")
}

/// A tree with one of everything: hard links over two directories, setuid, a symbolic link, a device, attributes, an ACL.
pub fn sample(batch: &Batch<'_>) -> TreeBuilder {
    let blob = |bytes: &[u8]| {
        let stored = batch.add_bytes(bytes).expect("stored");
        Content::Blob { digest: stored.digest, size: stored.size, allocated_bytes: stored.allocated_bytes }
    };
    let mut tree = TreeBuilder::new(TreeMeta::new(FileKind::Dir, 0o755));
    let root = tree.root();
    let mut add = |dir, path: &str, kind, perm, content| {
        tree.insert(dir, name(path), TreeMeta::new(kind, perm), content).expect("fits")
    };
    let etc = add(root, "etc", FileKind::Dir, 0o755, Content::None);
    let sub = add(etc, "sub", FileKind::Dir, 0o2775, Content::None);
    let file = add(etc, "passwd", FileKind::File, 0o644, blob(b"root:x:0:0"));
    add(sub, "deep", FileKind::File, 0o600, blob(&[7; 9000]));
    add(root, "su", FileKind::File, 0o4755, blob(b"su"));
    add(root, "empty", FileKind::File, 0o644, blob(b""));
    add(root, "sym", FileKind::Symlink, 0o777, Content::Symlink(b"etc/passwd"[..].into()));
    let null = add(root, "null", FileKind::Char, 0o666, Content::None);
    add(root, "pipe", FileKind::Fifo, 0o600, Content::None);
    tree.meta_mut(null).rdev = 0x103;
    tree.link(root, name("pw"), file).expect("a file");
    tree.meta_mut(file).xattrs.insert(b"user.note"[..].into(), b"value"[..].into());
    tree.meta_mut(sub).xattrs.insert(b"system.posix_acl_default"[..].into(), acl().into());
    tree
}

/// Reads everything there is in a tree, by every way of reading it. Whatever the bytes are, this must end without a panic. Returns how
/// many paths it has.
pub fn read_all(tree: &Tree) -> usize {
    let mut seen = 0u64;
    for view in tree.inodes() {
        let attr = view.attr();
        seen ^= attr.size ^ u64::from(attr.nlink);
        for (name, value) in view.xattrs() {
            seen ^= (name.len() + value.len()) as u64;
            let _ = view.xattr(name);
        }
        let _ = (view.meta(), view.parent(), view.is_opaque(), view.content().to_content());
        seen ^= view.names().count() as u64;
        let mut after = None;
        for entry in tree.entries(view.ino(), None) {
            let _ = tree.lookup(view.ino(), entry.name);
            after = Some((entry.hash57, entry.name));
        }
        seen ^= tree.entries(view.ino(), after).count() as u64;
    }
    seen ^= tree.blobs().count() as u64;
    for raw in [1, 2, u64::from(u32::MAX), Ino::PRIVATE_FIRST - 1, Ino::PRIVATE_FIRST, Ino::END - 1] {
        seen ^= u64::from(Ino::new(raw).and_then(|ino| tree.node(ino)).is_some());
    }
    std::hint::black_box((seen, tree.stats(), tree.is_base()));
    tree.walk().count()
}

/// What must hold of a tree that validation accepts: every way of reading it tells the same, and writing it again gives the same bytes.
pub fn assert_sound(tree: &Tree, bytes: &[u8]) {
    let stats = tree.stats();
    assert_eq!(tree.inodes().count() as u64, stats.inodes);
    // The root has no entry.
    assert_eq!(tree.walk().count() as u64, stats.entries + 1);
    for (path, found) in tree.walk() {
        let WalkEntry::Node(view) = found else { continue };
        let resolved = tree.resolve(&path).expect("a path that the walk found");
        assert_eq!(resolved.ino(), view.ino());
        if view.ino() == Ino::ROOT {
            continue;
        }
        let last = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let dir = path.len().checked_sub(last.len() + 1).map_or(&[][..], |end| &path[..end]);
        let dir = tree.resolve(dir).expect("a parent").ino();
        let entry = tree.lookup(dir, NameRef::new(last).expect("legal")).expect("an entry");
        assert_eq!(entry.target, Target::Node(view.ino(), view.kind()));
        assert!(view.names().any(|(parent, name)| parent == dir && name.as_bytes() == last));
        if let ContentRef::Blob { digest, size, .. } = view.content() {
            assert!(tree.blobs().any(|blob| blob == (digest, size)));
        }
    }
    let again = TreeBuilder::from_tree(tree).expect("a valid tree").finish().expect("it fitted before");
    assert!(again.bytes == bytes, "a valid tree is canonical");
}
