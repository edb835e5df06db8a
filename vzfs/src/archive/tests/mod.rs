//! Tests of imports and exports, with what they share.
#![allow(clippy::panic)] // Here a panic is a failed test.

mod folder;
mod hostile;
mod images;
mod round_trip;

use std::io::Read;
use std::path::Path;

use super::*;
use crate::blobs::BlobStore;
use crate::tree::{ContentRef, NodeView, Tree};
use crate::types::FileKind;

fn scratch() -> tempfile::TempDir {
    let parent = std::env::var_os("CARGO_TARGET_TMPDIR").unwrap_or_else(|| "/var/tmp".into());
    tempfile::tempdir_in(parent).expect("scratch folder")
}

/// A blob store and room for files.
struct World {
    scratch: tempfile::TempDir,
    blobs: BlobStore,
}

impl World {
    fn new() -> World {
        let scratch = scratch();
        let dir = scratch.path().join("blobs");
        BlobStore::create(&dir).expect("create");
        let blobs = BlobStore::open(&dir).expect("open");
        World { scratch, blobs }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn import(&self, source: &Source) -> Result<Tree, ArchiveError> {
        self.import_excluding(source, &Exclude::default())
    }

    fn import_excluding(&self, source: &Source, exclude: &Exclude) -> Result<Tree, ArchiveError> {
        let batch = self.blobs.batch();
        let builder = import_excluding(source, &batch, &Limits::default(), exclude, &())?;
        batch.commit().expect("commit");
        let image = builder.finish().expect("finish");
        let tree = Tree::from_bytes(image.bytes).expect("a valid tree");
        tree.validate().expect("a valid tree");
        Ok(tree)
    }

    /// Imports the bytes of a tar.
    fn import_tar(&self, bytes: &[u8]) -> Result<Tree, ArchiveError> {
        let path = self.path("import.tar");
        std::fs::write(&path, bytes).expect("write");
        self.import(&Source::Tar(path))
    }

    fn export(&self, tree: &Tree) -> Vec<u8> {
        let mut bytes = Vec::new();
        export_tar(TemplateSource { tree, blobs: &self.blobs }, &mut bytes).expect("export");
        bytes
    }

    fn content(&self, tree: &Tree, path: &str) -> Vec<u8> {
        let ContentRef::Blob { digest, .. } = node(tree, path).content() else { panic!("{path} is no file") };
        let mut bytes = Vec::new();
        self.blobs.open_blob(&digest).expect("open").read_to_end(&mut bytes).expect("read");
        bytes
    }

    /// Runs a program of the host in the scratch folder.
    fn run(&self, program: &str, arguments: &[&str]) {
        let status =
            std::process::Command::new(program).args(arguments).current_dir(self.scratch.path()).status();
        assert!(status.expect("start").success(), "{program} {arguments:?}");
    }
}

fn node<'a>(tree: &'a Tree, path: &str) -> NodeView<'a> {
    tree.resolve(path.as_bytes()).unwrap_or_else(|| panic!("no {path}"))
}

fn has(tree: &Tree, path: &str) -> bool {
    tree.resolve(path.as_bytes()).is_some()
}

/// A folder with every type of file and everything a root filesystem can have.
fn make_rich_folder(dir: &Path) {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{FileExt, PermissionsExt, chown, lchown, symlink};

    use rustix::fs::{AtFlags, CWD, Mode, Timespec, Timestamps, XattrFlags};

    let at = |name: &str| dir.join(name);
    let write = |name: &str, content: &[u8]| std::fs::write(at(name), content).expect("write");
    let set_mode = |name: &str, mode| {
        std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(mode)).expect("chmod");
    };
    let set_xattr = |name: &str, key: &str, value: &[u8]| {
        rustix::fs::lsetxattr(at(name), key, value, XattrFlags::empty()).expect("setxattr");
    };
    let set_time = |name: &str, tv_sec, tv_nsec| {
        let time = Timespec { tv_sec, tv_nsec };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, at(name), &times, AtFlags::SYMLINK_NOFOLLOW).expect("utimens");
    };

    for name in ["bin", "empty", "deep", "deep/er", "deep/er/still", "sticky"] {
        std::fs::create_dir(at(name)).expect("mkdir");
    }
    write("bin/su", b"#!");
    set_mode("bin/su", 0o4755);
    write("bin/wall", b"#! wall");
    chown(at("bin/wall"), Some(0), Some(5)).expect("chown");
    set_mode("bin/wall", 0o2755);
    set_mode("sticky", 0o1777);
    write("bin/ping", b"ping");
    // A real VFS_CAP_REVISION_2 value, as the kernel refuses others; it has bytes that are no text.
    set_xattr(
        "bin/ping",
        "security.capability",
        &[1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    );
    write("attributes", b"x");
    set_xattr("attributes", "user.newlines", b"a\nb=c\n\0\xff");
    set_xattr("attributes", "user.empty", b"");
    set_xattr("attributes", "trusted.t", &[7; 900]);
    // user::rw- user:54321:r-- group::r-- mask::r-- other::---
    let acl = [
        &[2, 0, 0, 0][..],
        &[1, 0, 6, 0, 255, 255, 255, 255],
        &[2, 0, 4, 0, 0x31, 0xd4, 0, 0],
        &[4, 0, 4, 0, 255, 255, 255, 255],
        &[16, 0, 4, 0, 255, 255, 255, 255],
        &[32, 0, 0, 0, 255, 255, 255, 255],
    ]
    .concat();
    write("acl", b"y");
    set_xattr("acl", "system.posix_acl_access", &acl);
    set_xattr("empty", "system.posix_acl_default", &acl);
    write("owned", b"owned");
    chown(at("owned"), Some(4_000_000_000), Some(2_097_152)).expect("chown");
    write("old", b"before 1970");
    write("deep/er/still/file", &vec![0xa5; 3_000_000]);
    std::fs::hard_link(at("deep/er/still/file"), at("a-name")).expect("link");
    std::fs::hard_link(at("deep/er/still/file"), at("deep/z-name")).expect("link");
    symlink("../nowhere", at("deep/link")).expect("symlink");
    lchown(at("deep/link"), Some(7), Some(8)).expect("lchown");
    symlink("x".repeat(300), at("long-link")).expect("symlink");
    symlink("a\u{e9}".to_owned() + &"y".repeat(120), at("text-link")).expect("symlink");
    let makedev = rustix::fs::makedev;
    let node = |name: &str, kind, mode, dev| {
        rustix::fs::mknodat(CWD, at(name), kind, Mode::from_raw_mode(mode), dev).expect("mknod");
    };
    node("null", rustix::fs::FileType::CharacterDevice, 0o666, makedev(1, 3));
    node("big-device", rustix::fs::FileType::BlockDevice, 0o660, makedev(259, 70_000));
    node("fifo", rustix::fs::FileType::Fifo, 0o600, 0);
    let sparse = std::fs::File::create(at("sparse")).expect("create");
    sparse.set_len(300 << 20).expect("size");
    sparse.write_all_at(b"middle", 100 << 20).expect("write");
    sparse.write_all_at(b"near the end", (299 << 20) + 5).expect("write");
    std::fs::File::create(at("all-hole")).expect("create").set_len(5 << 20).expect("size");
    write("empty-file", b"");
    std::fs::write(dir.join(std::ffi::OsStr::from_bytes(b"\xff\xfe raw")), b"raw").expect("write");
    write(&"n".repeat(255), b"long name");
    let long = format!("{}/{}", "d".repeat(200), "e".repeat(200));
    std::fs::create_dir_all(at(&long)).expect("mkdir");
    let raw = at(&long).join(std::ffi::OsStr::from_bytes(&[0xe9; 150]));
    std::fs::write(raw, b"long and raw").expect("write");
    write(".wh.not-a-whiteout", b"");
    write("line\nbreak", b"");
    set_time("bin/su", 1_600_000_000, 123_456_789);
    set_time("deep/link", 1_500_000_000, 1);
    set_time("old", -1, 250_000_000);
    set_time("null", -86_400, 0);
    set_time("deep", 1_234_567_890, 987_654_321);
}
