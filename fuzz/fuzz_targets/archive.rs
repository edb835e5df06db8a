//! Arbitrary bytes as a tar, plain or compressed: refused, or a tree that is valid and comes out of an export and a second import the same.
//!
//! The mutator makes the checksums of tar headers right. The first byte of the input says how the rest is wrapped.
#![no_main]

use std::io::Write;
use std::sync::LazyLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use vzfs::archive::{Exclude, Limits, Source, TemplateSource, export_tar, import_excluding};
use vzfs::tree::{ContentRef, Tree, TreeBuilder, diff};
use vzfs_fuzz::{World, assert_sound, seal};

const BLOCK_BYTES: usize = 512;

static WORLD: LazyLock<World> = LazyLock::new(World::new);

/// Small, so that bombs are found to be bombs soon.
const LIMITS: Limits =
    Limits { max_entries: 2000, max_metadata_bytes: 1 << 20, max_bytes: 8 << 20, max_ratio: 1000 };

fuzz_target!(|bytes: &[u8]| {
    let Some((form, rest)) = bytes.split_first() else { return };
    let path = WORLD.dir.join("in.tar");
    std::fs::write(&path, wrapped(*form, rest)).expect("written");
    let _ = Source::detect(&path);
    let Some((tree, image)) = import(&path) else { return };
    assert_sound(&tree, &image);
    // The root's attributes and whiteouts do not have to come back; everything below has to.
    let mut tar = Vec::new();
    export_tar(TemplateSource { tree: &tree, blobs: &WORLD.blobs }, &mut tar).expect("exportable");
    let path = WORLD.dir.join("out.tar");
    std::fs::write(&path, &tar).expect("written");
    let Some((again, _)) = import(&path) else {
        // The export of a tree can be larger than the limits that the import stayed below.
        return;
    };
    let changes = diff(&tree, &again);
    assert!(changes.iter().all(|change| change.path.is_empty()), "{changes:?}");
});

fn import(path: &std::path::Path) -> Option<(Tree, Vec<u8>)> {
    let batch = WORLD.blobs.batch();
    let source = Source::Tar(path.to_owned());
    let exclude = Exclude::new(["left/out*"]);
    let builder: TreeBuilder = import_excluding(&source, &batch, &LIMITS, &exclude, &()).ok()?;
    batch.commit().expect("the blob store works");
    let image = builder.finish().ok()?;
    let tree = Tree::from_bytes(image.bytes.clone()).expect("what was written can be read");
    tree.validate().expect("what was written is valid");
    for view in tree.inodes() {
        if let ContentRef::Blob { digest, .. } = view.content() {
            assert!(WORLD.blobs.contains(&digest).expect("the blob store works"));
        }
    }
    Some((tree, image.bytes))
}

/// Even forms are as they are; of the odd ones, each compresses in another way.
fn wrapped(form: u8, bytes: &[u8]) -> Vec<u8> {
    match form % 8 {
        1 => {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            out.write_all(bytes).and_then(|()| out.finish()).expect("in memory")
        }
        3 => zstd::stream::encode_all(bytes, 1).expect("in memory"),
        5 => {
            let mut out = xz2::write::XzEncoder::new(Vec::new(), 0);
            out.write_all(bytes).and_then(|()| out.finish()).expect("in memory")
        }
        _ => bytes.to_vec(),
    }
}

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut size = size;
    match seed % 4 {
        // A block is left out, doubled, or two change places.
        0 if size > 1 + 2 * BLOCK_BYTES => {
            let blocks = (size - 1) / BLOCK_BYTES;
            let at = |index: u32| 1 + index as usize % blocks * BLOCK_BYTES;
            let (from, to) = (at(seed >> 8), at(seed >> 20));
            match seed >> 2 & 3 {
                0 => {
                    data.copy_within(from + BLOCK_BYTES..size, from);
                    size -= BLOCK_BYTES;
                }
                1 if size + BLOCK_BYTES <= max_size => {
                    data.copy_within(from..size, from + BLOCK_BYTES);
                    size += BLOCK_BYTES;
                }
                _ => data.copy_within(from..from + BLOCK_BYTES, to),
            }
        }
        _ => size = fuzzer_mutate(data, size, max_size),
    }
    for block in data[..size].get_mut(1..).unwrap_or_default().chunks_exact_mut(BLOCK_BYTES) {
        // What looks like a header gets the right sum; sometimes not, so that wrong ones come up too.
        if &block[257..262] == b"ustar" && seed % 64 != 63 {
            seal(block);
        }
    }
    size
});
