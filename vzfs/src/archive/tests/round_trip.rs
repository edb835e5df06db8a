//! What is exported comes back the same, and other tar programs agree.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::tree::{Entry, Meta, NodeId};
use crate::types::{NameRef, Timestamp};

#[test]
fn rich_folder_through_our_tar() {
    let world = World::new();
    let dir = world.path("source");
    std::fs::create_dir(&dir).expect("mkdir");
    make_rich_folder(&dir);
    let tree = world.import(&Source::Dir(dir)).expect("import");
    let tar = world.export(&tree);
    assert!(tar.len() < 20 << 20, "holes are not written: {}", tar.len());
    let back = world.import_tar(&tar).expect("import");
    assert_eq!(back.digest(), tree.digest());

    let packed = zstd::encode_all(&tar[..], 1).expect("zstd");
    assert_eq!(world.import_tar(&packed).expect("zstd").digest(), tree.digest());
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::copy(&mut &tar[..], &mut gzip).expect("gzip");
    assert_eq!(world.import_tar(&gzip.finish().expect("gzip")).expect("gzip").digest(), tree.digest());
    let mut xz = xz2::write::XzEncoder::new(Vec::new(), 1);
    std::io::copy(&mut &tar[..], &mut xz).expect("xz");
    assert_eq!(world.import_tar(&xz.finish().expect("xz")).expect("xz").digest(), tree.digest());
}

/// GNU tar unpacks our archive to what it was made from.
#[test]
fn gnu_tar_reads_ours() {
    let world = World::new();
    let dir = world.path("source");
    std::fs::create_dir(&dir).expect("mkdir");
    make_rich_folder(&dir);
    let tree = world.import(&Source::Dir(dir)).expect("import");
    std::fs::write(world.path("ours.tar"), world.export(&tree)).expect("write");
    std::fs::create_dir(world.path("out")).expect("mkdir");
    let options = ["--xattrs", "--xattrs-include=*", "--numeric-owner", "--same-owner", "-p"];
    world.run("tar", &[&["-xf", "ours.tar", "-C", "out"][..], &options].concat());
    let back = world.import(&Source::Dir(world.path("out"))).expect("import");
    assert_same(&back, &tree);
}

/// Everything GNU tar can write is read, in each of its formats.
#[test]
fn we_read_gnu_tar() {
    let world = World::new();
    let dir = world.path("source");
    std::fs::create_dir(&dir).expect("mkdir");
    make_rich_folder(&dir);
    let tree = world.import(&Source::Dir(dir.clone())).expect("import");
    let xattrs = ["--xattrs", "--xattrs-include=*"];
    for (name, options) in [
        ("pax-1.0", &["--format=posix", "--sparse", "--sparse-version=1.0"][..]),
        ("pax-0.1", &["--format=posix", "--sparse", "--sparse-version=0.1"]),
        ("pax-0.0", &["--format=posix", "--sparse", "--sparse-version=0.0"]),
        ("pax", &["--format=posix"]),
    ] {
        world.run(
            "tar",
            &[&["-cf", name, "--numeric-owner", "-C", "source"], options, &xattrs, &["."]].concat(),
        );
        let read = world.import(&Source::detect(&world.path(name)).expect("detect")).expect(name);
        assert_same(&read, &tree);
    }
    let acls = [
        "-cf",
        "acls",
        "--format=posix",
        "--acls",
        "--xattrs-exclude=system.*",
        "--numeric-owner",
        "-C",
        "source",
    ];
    world.run("tar", &[&acls[..], &xattrs, &["."]].concat());
    let read = world.import(&Source::Tar(world.path("acls"))).expect("acls");
    assert_same(&read, &tree);
    world.run("tar", &["-cf", "gnu", "--format=gnu", "--sparse", "--numeric-owner", "-C", "source", "."]);
    let read = world.import(&Source::Tar(world.path("gnu"))).expect("gnu");
    assert_eq!(read.stats().inodes, tree.stats().inodes);
    for path in ["sparse", "all-hole", &"n".repeat(255), "deep/er/still/file"] {
        assert_eq!(node(&read, path).attr().size, node(&tree, path).attr().size);
        assert!(
            matches!((node(&read, path).content(), node(&tree, path).content()),
            (ContentRef::Blob { digest: a, .. }, ContentRef::Blob { digest: b, .. }) if a == b),
            "{path}"
        );
    }
    assert_eq!(node(&read, "old").attr().mtime.secs, -1);
    assert_eq!(node(&read, "owned").attr().uid, 4_000_000_000);
}

fn assert_same(left: &Tree, right: &Tree) {
    let changes = crate::tree::diff(left, right);
    assert!(changes.is_empty(), "{changes:#?}");
    assert_eq!(left.digest(), right.digest());
}

/// Layers keep their whiteouts and opaque directories through an export.
#[test]
fn layers_come_back_as_layers() {
    let world = World::new();
    let name = |text: &'static str| NameRef::new(text.as_bytes()).expect("name");
    let mut builder = TreeBuilder::new(Meta::new(FileKind::Dir, 0o755));
    let root = builder.root();
    let dir =
        builder.insert(root, name("dir"), Meta::new(FileKind::Dir, 0o750), Content::None).expect("insert");
    builder.set_opaque(dir, true);
    builder.whiteout(dir, name("gone")).expect("whiteout");
    builder.whiteout(root, name("gone too")).expect("whiteout");
    let tree = Tree::from_bytes(builder.finish().expect("finish").bytes).expect("tree");
    let back = world.import_tar(&world.export(&tree)).expect("import");
    assert_eq!(back.digest(), tree.digest());
}

/// One step of making a random tree; numbers pick among what is there.
#[derive(Clone, Debug)]
struct Step {
    dir: usize,
    name: Vec<u8>,
    kind: u8,
    meta: (u16, u32, u32, i64, u32),
    content: Vec<u8>,
    holes: u8,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

fn step() -> impl Strategy<Value = Step> {
    let byte = any::<u8>().prop_filter("no slash, no NUL", |byte| !matches!(byte, 0 | b'/'));
    let name = prop_oneof![
        4 => proptest::collection::vec(byte.clone(), 1..6),
        1 => proptest::collection::vec(byte.clone(), 90..256),
    ];
    let name = name.prop_filter("reserved", |name| name != b"." && name != b"..");
    let time = prop_oneof![-10_i64..10, any::<i32>().prop_map(i64::from), (1_i64 << 33)..(1 << 34)];
    let owner = || prop_oneof![0_u32..3, 2_097_150_u32..2_097_154, Just(u32::MAX - 1)];
    let meta = (0_u16..0o10000, owner(), owner(), time, 0_u32..1_000_000_000);
    let content = proptest::collection::vec(any::<u8>(), 0..700);
    let key = "[a-z=%35D\n]{1,20}".prop_map(|key| [b"user.", key.as_bytes()].concat());
    let xattrs = proptest::collection::btree_map(key, proptest::collection::vec(any::<u8>(), 0..200), 0..3);
    (any::<usize>(), name, any::<u8>(), meta, content, any::<u8>(), xattrs).prop_map(
        |(dir, name, kind, meta, content, holes, xattrs)| Step {
            dir,
            name,
            kind,
            meta,
            content,
            holes,
            xattrs,
        },
    )
}

fn build(world: &World, steps: &[Step]) -> Tree {
    let batch = world.blobs.batch();
    let mut builder = TreeBuilder::new(Meta::new(FileKind::Dir, 0o755));
    let mut dirs = vec![(builder.root(), 0)];
    let mut files: Vec<NodeId> = Vec::new();
    for step in steps {
        let (dir, depth) = dirs[step.dir % dirs.len()];
        let name = NameRef::new(&step.name).expect("name");
        if builder.get(dir, name).is_some() {
            continue;
        }
        let kinds = [
            FileKind::File,
            FileKind::File,
            FileKind::Dir,
            FileKind::Symlink,
            FileKind::Char,
            FileKind::Block,
            FileKind::Fifo,
        ];
        let Some(kind) = kinds.get(usize::from(step.kind) % 8).copied() else {
            if !files.is_empty() {
                builder.link(dir, name, files[step.dir % files.len()]).expect("link");
            }
            continue;
        };
        let (perm, uid, gid, secs, nanos) = step.meta;
        let mut meta = Meta::new(kind, if kind == FileKind::Symlink { 0o777 } else { perm });
        (meta.uid, meta.gid, meta.mtime) = (uid, gid, Timestamp { secs, nanos });
        meta.xattrs = step.xattrs.iter().map(|(key, value)| (key[..].into(), value[..].into())).collect();
        if kind.is_device() {
            meta.rdev = uid;
        }
        let content = match kind {
            FileKind::File => {
                let mut bytes = step.content.clone();
                if step.holes < 40 {
                    bytes.splice(0..0, vec![0; usize::from(step.holes) * 10_000]);
                    bytes.extend(vec![0; 100_000]);
                }
                crate::archive::blob(&batch.add_bytes(&bytes).expect("add"))
            }
            FileKind::Symlink => {
                Content::Symlink([&step.content[..], b"x"].concat().iter().map(|b| (*b).max(1)).collect())
            }
            _ => Content::None,
        };
        let node = builder.insert(dir, name, meta, content).expect("insert");
        match kind {
            FileKind::Dir if depth < 8 => dirs.push((node, depth + 1)),
            FileKind::Dir => {}
            _ => files.push(node),
        }
    }
    batch.commit().expect("commit");
    assert!(builder.entries(builder.root()).all(|(_, entry)| matches!(entry, Entry::Node(_))));
    Tree::from_bytes(builder.finish().expect("finish").bytes).expect("tree")
}

#[test]
fn random_trees_come_back() {
    let world = World::new();
    let config = ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(steps in proptest::collection::vec(step(), 0..40))| {
        let tree = build(&world, &steps);
        let back = world.import_tar(&world.export(&tree)).expect("import");
        prop_assert_eq!(crate::tree::diff(&tree, &back).len(), 0);
        prop_assert_eq!(back.digest(), tree.digest());
    });
}
