//! Shared set-up of the benchmarks: a source tree like a small operating system's, and a store's parts without a daemon.
//!
//! Everything is made in `VZFS_BENCH_DIR` (default `/var/tmp`), so that the filesystem under test can be chosen.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;
use vzfs::archive::{self, Limits, Source};
use vzfs::blobs::BlobStore;
use vzfs::meta::Meta;
use vzfs::tree::{TreeImage, TreeStore};
use vzfs::types::VeId;
use vzfs::volume::{PrivateData, Volume};

/// Folders of the source tree.
pub const FOLDERS: usize = 100;
/// Files in each folder.
pub const FILES_PER_FOLDER: usize = 100;
/// Name of a file of 16 MiB in the tree's root, for copy-up.
pub const LARGE: &str = "large";

/// A temporary folder on the filesystem under test.
pub fn scratch() -> TempDir {
    let parent = std::env::var_os("VZFS_BENCH_DIR").map_or_else(|| "/var/tmp".into(), PathBuf::from);
    tempfile::Builder::new().prefix("vzfs-bench-").tempdir_in(parent).expect("VZFS_BENCH_DIR is writable")
}

/// Makes the source tree: 10,000 files of up to 32 KiB, most of them small, a tenth of them equal to others.
pub fn make_source(dir: &Path) {
    for folder in 0..FOLDERS {
        let path = dir.join(format!("folder{folder}"));
        fs::create_dir_all(&path).expect("the folder is writable");
        for file in 0..FILES_PER_FOLDER {
            let number = folder * FILES_PER_FOLDER + file;
            let size = 200 << (number % 8);
            let mut content = format!("{} ", if number.is_multiple_of(10) { 0 } else { number }).into_bytes();
            content.resize(size, b'x');
            fs::write(path.join(format!("file{file}")), content).expect("the folder is writable");
        }
    }
    let mut large = Vec::with_capacity(16 << 20);
    for number in 0..(16 << 20) / 8_u64 {
        large.extend_from_slice(&number.to_le_bytes());
    }
    fs::write(dir.join(LARGE), large).expect("the folder is writable");
}

/// Imports a folder: contents into the blob store, the tree as an image.
pub fn import(blobs: &BlobStore, source: &Path) -> TreeImage {
    let batch = blobs.batch();
    let source = Source::Dir(source.to_owned());
    let tree = archive::import(&source, &batch, &Limits::default(), &()).expect("the source can be imported");
    let image = tree.finish().expect("a folder is a legal tree");
    batch.commit().expect("the blobs can be published");
    image
}

/// A volume on the source tree, with everything under it.
pub struct Bench {
    /// The volume.
    pub volume: Volume,
    _scratch: TempDir,
}

impl Bench {
    /// Makes the source, imports it and opens a volume on it.
    pub fn new() -> Bench {
        let scratch = scratch();
        let at = |name: &str| scratch.path().join(name);
        make_source(&at("source"));
        for folder in ["blobs", "trees", "data"] {
            fs::create_dir(at(folder)).expect("the folder is writable");
        }
        BlobStore::create(&at("blobs")).expect("a blob store can be made");
        let blobs = Arc::new(BlobStore::open(&at("blobs")).expect("it can be opened"));
        let image = import(&blobs, &at("source"));
        TreeStore::create(&at("trees")).expect("a tree store can be made");
        let trees = TreeStore::at(&at("trees")).expect("it can be opened");
        trees.put(&image).expect("the tree is legal");
        let base = trees.open(&image.digest).expect("it is there");
        let meta = Arc::new(Meta::open(&at("meta")).expect("a database can be made"));
        let data = PrivateData::open(&at("data"), Arc::clone(&meta)).expect("a new database has no removals");
        let volume =
            Volume::open(VeId(1), base, meta, blobs, Arc::new(data)).expect("a volume can be opened");
        Bench { volume, _scratch: scratch }
    }
}

impl Default for Bench {
    fn default() -> Bench {
        Bench::new()
    }
}
