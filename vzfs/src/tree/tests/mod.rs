//! Tests of the whole module: builder, image, reader, validator, comparison, store.

mod damage;
mod random;
mod unreadable;

use std::collections::BTreeMap;

use crate::sys::Mended;
use crate::types::{Digest, FileKind, Ino, NameRef, Timestamp};

use super::*;

const ROOT: NodeId = NodeId::at(0);

fn name(text: &str) -> NameRef<'_> {
    NameRef::new(text.as_bytes()).expect("a legal name")
}

fn file(text: &str) -> (Meta, Content) {
    let size = text.len() as u64;
    let content = Content::Blob {
        digest: Digest::of(text.as_bytes()),
        size,
        allocated_bytes: size.next_multiple_of(4096),
    };
    (Meta::new(FileKind::File, 0o644), content)
}

fn symlink(target: &str) -> (Meta, Content) {
    (Meta::new(FileKind::Symlink, 0o777), Content::Symlink(target.as_bytes().into()))
}

fn dir() -> (Meta, Content) {
    (Meta::new(FileKind::Dir, 0o755), Content::None)
}

fn new() -> TreeBuilder {
    TreeBuilder::new(dir().0)
}

fn add(builder: &mut TreeBuilder, parent: NodeId, text: &str, (meta, content): (Meta, Content)) -> NodeId {
    builder.insert(parent, name(text), meta, content).expect("fits")
}

/// The inode that has a name which is known to be there.
fn child(builder: &TreeBuilder, parent: NodeId, text: &str) -> NodeId {
    match builder.get(parent, name(text)) {
        Some(Entry::Node(node)) => node,
        _ => unreachable!("{text} is there"),
    }
}

fn finish(builder: TreeBuilder) -> Tree {
    let image = builder.finish().expect("a fit tree");
    let tree = Tree::from_bytes(image.bytes).expect("a tree");
    tree.validate().expect("what is built is valid");
    tree
}

/// A small tree with one of everything.
fn sample() -> TreeBuilder {
    let mut b = new();
    let etc = add(&mut b, ROOT, "etc", dir());
    let passwd = add(&mut b, etc, "passwd", file("root"));
    b.meta_mut(passwd).mtime = Timestamp::new(-5, 7);
    b.meta_mut(passwd).xattrs.insert(b"user.a"[..].into(), b"1"[..].into());
    b.meta_mut(passwd).xattrs.insert(b"user.b"[..].into(), b""[..].into());
    b.link(etc, name("passwd-"), passwd).expect("links");
    b.link(b.root(), name("a"), passwd).expect("links");
    add(&mut b, ROOT, "bin", symlink("usr/bin"));
    let tty = Meta { rdev: 0x0501, uid: 7, gid: 9, ..Meta::new(FileKind::Char, 0o4620) };
    add(&mut b, etc, "tty", (tty, Content::None));
    add(&mut b, etc, "empty", file(""));
    b
}

#[test]
fn everything_can_be_read_back() {
    let tree = finish(sample());
    let passwd = tree.resolve(b"/etc/passwd").expect("there");
    let attr = passwd.attr();
    assert_eq!((attr.nlink, attr.size, attr.blocks, attr.mode()), (3, 4, 8, 0o100_644));
    assert_eq!(attr.mtime, Timestamp::new(-5, 7));
    assert_eq!(passwd.xattr(b"user.a"), Some(&b"1"[..]));
    assert_eq!(passwd.xattr(b"user.b"), Some(&b""[..]));
    assert_eq!(passwd.xattr(b"user.c"), None);
    assert_eq!(passwd.parent(), Ino::ROOT);
    let etc = tree.resolve(b"etc").expect("there");
    let names: Vec<_> = passwd.names().map(|(dir, name)| (dir, name.to_string())).collect();
    let expected = [(Ino::ROOT, "a"), (etc.ino(), "passwd"), (etc.ino(), "passwd-")];
    assert!(names.iter().map(|(dir, name)| (*dir, name.as_str())).eq(expected), "{names:?}");
    assert_eq!(tree.resolve(b"etc/passwd-").expect("there").ino(), passwd.ino());
    assert_eq!(tree.resolve(b"bin").expect("there").content(), ContentRef::Symlink(b"usr/bin"));
    let tty = tree.resolve(b"etc/tty").expect("there").attr();
    assert_eq!((tty.rdev, tty.uid, tty.gid, tty.mode()), (0x0501, 7, 9, 0o024_620));
    assert_eq!(tree.resolve(b"").expect("root").attr().nlink, 3);
    assert_eq!(tree.resolve(b"/").expect("root").parent(), Ino::ROOT);
    assert!(tree.resolve(b"etc/shadow").is_none() && tree.resolve(b"bin/x").is_none());
    let stats = tree.stats();
    assert_eq!((stats.inodes, stats.entries, stats.files, stats.dirs, stats.symlinks), (6, 7, 2, 2, 1));
    assert_eq!((stats.logical_bytes, stats.tree_bytes), (4, tree.bytes().len() as u64));
    let paths: Vec<_> = tree.walk().map(|(path, _)| String::from_utf8(path).expect("UTF-8")).collect();
    assert_eq!(paths, ["", "a", "bin", "etc", "etc/empty", "etc/passwd", "etc/passwd-", "etc/tty"]);
}

#[test]
fn listing_resumes_after_any_entry() {
    let mut b = new();
    for i in 0..300 {
        add(&mut b, ROOT, &format!("file{i}"), file("x"));
    }
    let tree = finish(b);
    let all: Vec<_> = tree.entries(Ino::ROOT, None).collect();
    assert_eq!(all.len(), 300);
    assert!(all.is_sorted_by_key(|entry| (entry.hash57, entry.name)));
    for (index, entry) in all.iter().enumerate() {
        let rest: Vec<_> = tree.entries(Ino::ROOT, Some((entry.hash57, entry.name))).collect();
        assert_eq!(rest, all[index + 1..]);
        assert_eq!(tree.lookup(Ino::ROOT, entry.name), Some(*entry));
    }
}

#[test]
fn unchanged_files_keep_their_numbers_and_changed_ones_do_not() {
    let old = finish(sample());
    let mut b = TreeBuilder::from_tree(&old).expect("a sound tree");
    add(&mut b, ROOT, "zzz", file("new"));
    add(&mut b, ROOT, "bin", symlink("usr/sbin"));
    let new = finish(b);
    let ino = |tree: &Tree, path: &[u8]| tree.resolve(path).expect("there").ino();
    for path in [&b"etc"[..], b"etc/passwd", b"etc/tty", b"a"] {
        assert_eq!(ino(&old, path), ino(&new, path));
    }
    assert_ne!(ino(&old, b"bin"), ino(&new, b"bin"));
}

#[test]
fn a_copy_is_the_same_tree() {
    let mut b = sample();
    b.whiteout(b.root(), name("gone")).expect("a directory");
    let opaque = add(&mut b, ROOT, "opaque", dir());
    b.set_opaque(opaque, true);
    let tree = finish(b);
    assert!(!tree.is_base() && tree.stats().whiteouts == 1);
    let copy = TreeBuilder::from_tree(&tree).expect("sound").finish().expect("fit");
    assert_eq!(copy.digest, tree.digest());
}

#[test]
fn layers_replace_hide_and_merge() {
    let mut layer = new();
    let etc = add(&mut layer, ROOT, "etc", dir());
    layer.meta_mut(etc).perm = 0o700;
    layer.whiteout(etc, name("tty")).expect("a directory");
    layer.whiteout(layer.root(), name("nothing")).expect("a directory");
    add(&mut layer, etc, "passwd", file("changed"));
    let bin = add(&mut layer, ROOT, "bin", dir());
    layer.set_opaque(bin, true);
    add(&mut layer, bin, "sh", file("sh"));
    let layer = finish(layer);

    let mut b = sample();
    b.apply_layer(&layer).expect("sound");
    let base = finish(b);
    assert!(base.is_base());
    let paths: Vec<_> = base.walk().map(|(path, _)| String::from_utf8(path).expect("UTF-8")).collect();
    assert_eq!(paths, ["", "a", "bin", "bin/sh", "etc", "etc/empty", "etc/passwd", "etc/passwd-"]);
    assert_eq!(base.resolve(b"etc").expect("there").attr().perm, 0o700);
    // The other names of a replaced hard link keep the old file.
    let links =
        ["a", "etc/passwd-", "etc/passwd"].map(|p| base.resolve(p.as_bytes()).expect("there").attr().nlink);
    assert_eq!(links, [2, 2, 1]);

    let mut opaque = new();
    opaque.set_opaque(opaque.root(), true);
    let mut b = TreeBuilder::from_tree(&base).expect("sound");
    b.apply_layer(&finish(opaque)).expect("sound");
    assert_eq!(finish(b).stats().entries, 0);
}

#[test]
fn what_no_filesystem_holds_is_refused() {
    let refused = |(meta, content): (Meta, Content)| {
        let mut b = new();
        add(&mut b, ROOT, "x", (meta, content));
        matches!(b.finish(), Err(TreeError::Unfit { path, .. }) if path == "x")
    };
    assert!(refused(symlink("")));
    assert!(refused(symlink("a\0b")));
    assert!(refused(symlink(&"x".repeat(4096))));
    assert!(refused((file("").0, Content::None)));
    assert!(refused((dir().0, file("").1)));
    assert!(refused((Meta::new(FileKind::Fifo, 0o10000), Content::None)));
    assert!(TreeBuilder::new(Meta::new(FileKind::Fifo, 0o600)).finish().is_err());
    let long = BTreeMap::from([(b"user.x"[..].into(), vec![0; 65537].into())]);
    assert!(refused((Meta { xattrs: long, ..Meta::new(FileKind::Fifo, 0o600) }, Content::None)));

    let mut b = new();
    let file = add(&mut b, ROOT, "x", file("x"));
    assert!(matches!(b.link(file, name("y"), file), Err(TreeError::NotADirectory { .. })));
    assert!(matches!(b.link(b.root(), name("y"), b.root()), Err(TreeError::LinkToDirectory { .. })));
    let mut parent = b.root();
    for _ in 0..17 {
        parent = add(&mut b, parent, &"d".repeat(255), dir());
    }
    assert!(matches!(b.finish(), Err(TreeError::Unfit { why, .. }) if why.contains("4095")));
}

#[test]
fn one_blob_has_one_size() {
    let mut b = new();
    let (meta, content) = file("abc");
    add(&mut b, ROOT, "a", (meta.clone(), content));
    let digest = Digest::of(b"abc");
    add(&mut b, ROOT, "b", (meta, Content::Blob { digest, size: 4, allocated_bytes: 4096 }));
    assert!(matches!(b.finish(), Err(TreeError::BlobConflict { name, .. }) if name == "b"));
}

#[test]
fn trees_are_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Tree>();
    shared::<TreeStore>();
}

#[test]
fn a_newer_format_has_its_own_error() {
    let mut bytes = sample().finish().expect("fit").bytes;
    bytes[8] = 2;
    let error = Tree::from_bytes(bytes).expect_err("too new");
    assert!(matches!(error, TreeError::NewerFormat { found: 2, supported: FORMAT_VERSION, .. }));
}

#[test]
fn comparison_names_what_differs() {
    let old = finish(sample());
    let mut b = TreeBuilder::from_tree(&old).expect("sound");
    let etc = child(&b, ROOT, "etc");
    let tty = child(&b, etc, "tty");
    b.meta_mut(tty).uid = 1;
    b.meta_mut(tty).xattrs.insert(b"user.x"[..].into(), b"y"[..].into());
    add(&mut b, ROOT, "bin", dir());
    add(&mut b, ROOT, "bin.old", symlink("usr/bin"));
    b.remove(ROOT, name("a"));
    let (meta, content) = file("12345");
    b.insert(etc, name("empty"), meta, content).expect("fits");
    let new = finish(b);
    let summary: Vec<_> = diff(&old, &new)
        .into_iter()
        .map(|c| {
            (
                String::from_utf8(c.path).expect("UTF-8"),
                c.kind,
                c.aspects,
                c.old.map(|s| s.size),
                c.new.map(|s| s.size),
            )
        })
        .collect();
    let expected = [
        ("a", ChangeKind::Deleted, vec![], Some(4), None),
        ("bin", ChangeKind::Changed, vec![Aspect::Type], Some(7), Some(0)),
        ("bin.old", ChangeKind::Added, vec![], None, Some(7)),
        ("etc/empty", ChangeKind::Changed, vec![Aspect::Content], Some(0), Some(5)),
        ("etc/tty", ChangeKind::Changed, vec![Aspect::Owner, Aspect::Xattrs], Some(0), Some(0)),
    ];
    assert_eq!(
        summary,
        expected.map(|(path, kind, aspects, old, new)| (path.to_owned(), kind, aspects, old, new))
    );
    assert!(diff(&old, &old).is_empty());
}

#[test]
fn comparison_follows_the_walk_and_not_the_bytes_of_paths() {
    // '!' and '.' sort before '/', so byte order of paths is not the order of the walk.
    let mut b = new();
    let d = add(&mut b, ROOT, "d", dir());
    add(&mut b, d, "x", file("1"));
    add(&mut b, ROOT, "d.x", file("2"));
    let old = finish(b);
    let mut b = TreeBuilder::from_tree(&old).expect("sound");
    let d = child(&b, ROOT, "d");
    b.remove(d, name("x"));
    let changes = diff(&old, &finish(b));
    assert_eq!(changes.len(), 1);
    assert_eq!((changes[0].path.as_slice(), changes[0].kind), (&b"d/x"[..], ChangeKind::Deleted));
}

#[test]
fn stored_trees_are_shared_and_survive_removal_while_in_use() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("trees");
    TreeStore::create(&dir).expect("a new folder");
    std::fs::write(dir.join(".tmp-7"), b"left by a crash").expect("written");
    let store = TreeStore::at(&dir).expect("opens");
    assert!(!dir.join(".tmp-7").exists());

    let image = sample().finish().expect("fit");
    assert!(matches!(store.open(&image.digest), Err(TreeError::Missing(_))));
    store.put(&image).expect("stored");
    store.put(&image).expect("stored again");
    assert_eq!(store.list().expect("listed"), [image.digest]);
    let tree = store.open(&image.digest).expect("opens");
    assert!(std::sync::Arc::ptr_eq(&tree, &store.open(&image.digest).expect("opens")));
    tree.validate().expect("valid");
    store.remove(&image.digest).expect("removed");
    store.remove(&image.digest).expect("removing twice is nothing");
    assert!(tree.resolve(b"etc/passwd").is_some());
    assert!(matches!(store.open(&image.digest), Err(TreeError::Missing(_))));
}

/// The bytes of a small tree, once and for all: a change here is a change of the format, and needs a new
/// version number.
#[test]
fn the_format_is_frozen() {
    let mut b = sample();
    b.whiteout(ROOT, name("gone")).expect("a directory");
    let opaque = add(&mut b, ROOT, "opaque", dir());
    b.set_opaque(opaque, true);
    assert_eq!(
        b.finish().expect("fit").digest.to_hex(),
        "e62e670543f00c2adb9d28c3a959a3d838406b5565fe943f1e7e7189e998b157"
    );
}
