//! Import of folders.

use super::*;
use crate::types::Timestamp;

#[test]
fn everything_in_a_root_filesystem_survives() {
    let world = World::new();
    let dir = world.path("source");
    std::fs::create_dir(&dir).expect("mkdir");
    make_rich_folder(&dir);
    let socket = std::os::unix::net::UnixListener::bind(dir.join("socket")).expect("bind");
    let source = Source::detect(&dir).expect("detect");
    assert_eq!(source, Source::Dir(dir.clone()));
    let tree = world.import(&source).expect("import");
    drop(socket);

    let attr = |path: &str| node(&tree, path).attr();
    assert_eq!((attr("bin/su").perm, attr("bin/wall").perm, attr("sticky").perm), (0o4755, 0o2755, 0o1777));
    assert_eq!(attr("bin/su").mtime, Timestamp { secs: 1_600_000_000, nanos: 123_456_789 });
    assert_eq!(attr("old").mtime, Timestamp { secs: -1, nanos: 250_000_000 });
    assert_eq!((attr("owned").uid, attr("owned").gid), (4_000_000_000, 2_097_152));
    assert_eq!((attr("deep/link").uid, attr("deep/link").gid), (7, 8));
    assert_eq!(attr("deep/link").mtime, Timestamp { secs: 1_500_000_000, nanos: 1 });
    assert!(matches!(node(&tree, "deep/link").content(), ContentRef::Symlink(b"../nowhere")));
    assert_eq!((attr("null").kind, attr("null").rdev), (FileKind::Char, 0x103));
    assert_eq!(
        (attr("big-device").kind, attr("big-device").rdev),
        (FileKind::Block, (259 << 8) | 0x70 | (0x111 << 20))
    );
    assert_eq!((attr("fifo").kind, attr("socket").kind), (FileKind::Fifo, FileKind::Socket));
    assert_eq!(attr("a-name").ino, attr("deep/er/still/file").ino);
    assert_eq!((attr("a-name").ino, attr("a-name").nlink), (attr("deep/z-name").ino, 3));
    assert_eq!((attr("sparse").size, attr("sparse").blocks), (300 << 20, 16));
    assert_eq!((attr("all-hole").size, attr("all-hole").blocks), (5 << 20, 0));
    let xattr = |path: &str, name: &str| node(&tree, path).xattr(name.as_bytes()).map(<[u8]>::to_vec);
    assert_eq!(xattr("attributes", "user.newlines").as_deref(), Some(&b"a\nb=c\n\0\xff"[..]));
    assert_eq!(xattr("attributes", "user.empty").as_deref(), Some(&b""[..]));
    assert_eq!(xattr("bin/ping", "security.capability").map(|value| value.len()), Some(20));
    assert_eq!(xattr("acl", "system.posix_acl_access").map(|value| value.len()), Some(44));
    assert_eq!(xattr("empty", "system.posix_acl_default").map(|value| value.len()), Some(44));
    assert_eq!(world.content(&tree, "bin/su"), b"#!");
    assert!(tree.resolve(b"\xff\xfe raw").is_some());

    let again = world.import(&source).expect("import");
    let batch = world.blobs.batch();
    import(&source, &batch, &Limits::default(), &()).expect("import");
    assert_eq!(batch.commit().expect("commit").new_blobs, 0);
    assert!(has(&again, "fifo"));
}

#[test]
fn exclusion_and_limits() {
    let world = World::new();
    let dir = world.path("source");
    for name in ["var/cache/apt", "var/lib", "keep"] {
        std::fs::create_dir_all(dir.join(name)).expect("mkdir");
    }
    for name in ["var/cache/apt/a", "var/lib/b", "keep/c.pyc", "keep/d"] {
        std::fs::write(dir.join(name), name).expect("write");
    }
    let source = Source::Dir(dir);
    let exclude = Exclude::new(["/var/cache/*", "*/*.pyc"]);
    let tree = world.import_excluding(&source, &exclude).expect("import");
    for (path, there) in [
        ("var/cache", true),
        ("var/cache/apt", false),
        ("var/lib/b", true),
        ("keep/c.pyc", false),
        ("keep/d", true),
    ] {
        assert_eq!(has(&tree, path), there, "{path}");
    }
    for limits in
        [Limits { max_entries: 3, ..Limits::default() }, Limits { max_bytes: 10, ..Limits::default() }]
    {
        let batch = world.blobs.batch();
        let error = import(&source, &batch, &limits, &()).map(|_| ()).expect_err("limit");
        assert!(matches!(error, ArchiveError::Entry { reason: Reason::Limit { .. }, .. }), "{error}");
    }
    assert_eq!(std::fs::read_dir(world.path("blobs/tmp")).expect("staging").count(), 0);
}

#[test]
fn mounts_below_are_not_entered() {
    let world = World::new();
    let dir = world.path("source");
    std::fs::create_dir_all(dir.join("mnt")).expect("mkdir");
    std::fs::create_dir_all(world.path("other/inner")).expect("mkdir");
    std::fs::write(dir.join("file"), "below").expect("write");
    std::fs::write(world.path("other/secret"), "elsewhere").expect("write");
    let mount = |from: &str, to: &str| rustix::mount::mount_bind(world.path(from), world.path(to));
    if mount("other", "source/mnt").is_err() {
        return;
    }
    mount("other/secret", "source/file").expect("bind a file");
    let tree = world.import(&Source::Dir(dir));
    for target in ["source/mnt", "source/file"] {
        rustix::mount::unmount(world.path(target), rustix::mount::UnmountFlags::DETACH).expect("umount");
    }
    let tree = tree.expect("import");
    assert!(has(&tree, "mnt") && !has(&tree, "mnt/inner") && !has(&tree, "mnt/secret"));
    assert_eq!(world.content(&tree, "file"), b"");
}

#[test]
fn the_store_is_not_imported_into_itself() {
    let world = World::new();
    let source = Source::Dir(world.scratch.path().to_owned());
    let error = world.import(&source).expect_err("itself");
    assert!(matches!(error, ArchiveError::Entry { reason: Reason::OwnStore, .. }), "{error}");
    world.import_excluding(&source, &Exclude::new(["blobs"])).expect("without the store");
}

#[test]
fn what_is_no_source_is_refused() {
    let world = World::new();
    let refused = |bytes: &[u8]| {
        let path = world.path("x");
        std::fs::write(&path, bytes).expect("write");
        Source::detect(&path).expect_err("no archive").to_string()
    };
    assert!(refused(b"").contains("too short"));
    assert!(refused(&[b'a'; 2000]).contains("neither a tar"));
    assert!(refused(b"BZh91AY").contains("bzip2"));
    assert!(refused(b"PK\x03\x04").contains("zip"));
    assert!(matches!(Source::detect(&world.path("nothing")), Err(ArchiveError::Io { .. })));
    assert!(matches!(Source::detect(Path::new("/dev/null")), Err(ArchiveError::NotAnArchive { .. })));
}

/// `VZFS_IMPORT=/some/folder cargo test --lib -- --ignored --nocapture import_speed`
#[test]
#[ignore = "measures, and needs a folder to import"]
fn import_speed() {
    let source =
        Source::detect(Path::new(&std::env::var_os("VZFS_IMPORT").expect("VZFS_IMPORT"))).expect("detect");
    let world = World::new();
    for _ in 0..2 {
        let start = std::time::Instant::now();
        let batch = world.blobs.batch();
        let builder = import(&source, &batch, &Limits::default(), &()).expect("import");
        let imported = start.elapsed();
        let stats = batch.commit().expect("commit");
        let committed = start.elapsed();
        let tree = Tree::from_bytes(builder.finish().expect("finish").bytes).expect("tree");
        eprintln!(
            "{imported:?} imported, {committed:?} committed, {:?} finished; {stats:?} {:?}",
            start.elapsed(),
            tree.stats()
        );
    }
}
