//! An OCI image layout of arbitrary documents and layers: refused, or a valid base.
//!
//! Documents name other files by what stands for them (`@0`, `@1`, ...): the target puts their digests and sizes there, as no mutation would
//! ever get past a wrong digest.
#![no_main]

use std::fs;
use std::sync::LazyLock;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};
use vzfs::archive::{Exclude, Limits, Source, import_excluding};
use vzfs::tree::Tree;
use vzfs_fuzz::{World, seal};

static WORLD: LazyLock<World> = LazyLock::new(World::new);
const LIMITS: Limits =
    Limits { max_entries: 2000, max_metadata_bytes: 1 << 20, max_bytes: 8 << 20, max_ratio: 1000 };

#[derive(Arbitrary, Debug)]
struct Image {
    layout: Option<Vec<u8>>,
    index: Vec<u8>,
    /// Each may name those before it.
    blobs: Vec<Blob>,
}

#[derive(Arbitrary, Debug)]
enum Blob {
    Document(Vec<u8>),
    Layer(Vec<Member>),
    Bytes(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
struct Member {
    path: Vec<u8>,
    whiteout: bool,
    flag: u8,
    link: Vec<u8>,
    content: Vec<u8>,
}

fuzz_target!(|image: Image| {
    let dir = WORLD.dir.join("image");
    let _ = fs::remove_dir_all(&dir);
    let sha256 = dir.join("blobs/sha256");
    fs::create_dir_all(&sha256).expect("a folder");
    let mut named: Vec<(String, usize)> = Vec::new();
    for blob in image.blobs.iter().take(12) {
        let bytes = match blob {
            Blob::Document(text) => filled(text, &named),
            Blob::Layer(members) => tar(members),
            Blob::Bytes(bytes) => bytes.clone(),
        };
        let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(sha256.join(&digest), &bytes).expect("written");
        named.push((digest, bytes.len()));
    }
    let layout = image.layout.as_deref().unwrap_or(br#"{"imageLayoutVersion":"1.0.0"}"#);
    fs::write(dir.join("oci-layout"), layout).expect("written");
    fs::write(dir.join("index.json"), filled(&image.index, &named)).expect("written");

    let source = Source::detect(&dir).expect("it looks like a layout");
    let batch = WORLD.blobs.batch();
    let Ok(builder) = import_excluding(&source, &batch, &LIMITS, &Exclude::default(), &()) else { return };
    let Ok(image) = builder.finish() else { return };
    let tree = Tree::from_bytes(image.bytes).expect("what was written can be read");
    tree.validate().expect("what was written is valid");
    assert!(tree.is_base(), "whiteouts of images act on the image's own layers");
});

/// Puts `"digest":"sha256:...","size":N` for `@I`.
fn filled(text: &[u8], named: &[(String, usize)]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let index =
            (byte == b'@').then(|| bytes.peek().map(|digit| digit.wrapping_sub(b'0') as usize)).flatten();
        match index.and_then(|index| named.get(index)) {
            Some((digest, size)) => {
                bytes.next();
                out.extend_from_slice(format!("\"digest\":\"sha256:{digest}\",\"size\":{size}").as_bytes());
            }
            None => out.push(byte),
        }
    }
    out
}

fn tar(members: &[Member]) -> Vec<u8> {
    let mut out = Vec::new();
    for member in members.iter().take(40) {
        let mut header = [0; 512];
        let prefix: &[u8] = if member.whiteout { b".wh." } else { b"" };
        let path = [prefix, &member.path].concat();
        let content: &[u8] = if matches!(member.flag % 8, 0 | 7) { &member.content } else { b"" };
        for (at, room, bytes) in [(0, 100, &path), (157, 100, &member.link)] {
            let length = bytes.len().min(room);
            header[at..at + length].copy_from_slice(&bytes[..length]);
        }
        header[100..108].copy_from_slice(b"0000755\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
        header[156] = b'0' + member.flag % 8;
        header[257..265].copy_from_slice(b"ustar\x0000");
        seal(&mut header);
        out.extend_from_slice(&header);
        out.extend_from_slice(content);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}
