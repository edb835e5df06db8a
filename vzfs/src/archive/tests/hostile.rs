//! Archives that mean harm, and broken ones. None may panic, reach the host or leave anything behind.

use proptest::prelude::*;

use super::*;

/// Writes tars by hand, whatever they say.
pub(super) struct Tar(Vec<u8>);

impl Tar {
    pub(super) fn new() -> Self {
        Tar(Vec::new())
    }

    pub(super) fn dir(self, path: &str) -> Self {
        self.dir_mode(path, 0o755)
    }

    pub(super) fn dir_mode(self, path: &str, mode: u32) -> Self {
        self.entry(b'5', path, "", mode, b"")
    }

    pub(super) fn file(self, path: &str, content: &[u8]) -> Self {
        self.entry(b'0', path, "", 0o644, content)
    }

    pub(super) fn link(self, path: &str, target: &str) -> Self {
        self.entry(b'1', path, target, 0o644, b"")
    }

    fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(b'2', path, target, 0o777, b"")
    }

    fn entry(mut self, flag: u8, path: &str, link: &str, mode: u32, content: &[u8]) -> Self {
        let mut header = [0; 512];
        header[..path.len()].copy_from_slice(path.as_bytes());
        header[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header[100..108].copy_from_slice(format!("{mode:07o}\0").as_bytes());
        header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
        header[156] = flag;
        header[257..265].copy_from_slice(b"ustar\x0000");
        self.0.extend_from_slice(&sealed(header));
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut all = super::super::pax::Records::default();
        for (keyword, value) in records {
            all.push(keyword.as_bytes(), value);
        }
        let bytes = all.encode();
        self.entry(b'x', "pax", "", 0o644, &bytes)
    }

    fn global(self, keyword: &str, value: &[u8]) -> Self {
        let mut records = super::super::pax::Records::default();
        records.push(keyword.as_bytes(), value);
        self.entry(b'g', "pax", "", 0o644, &records.encode())
    }

    /// Changes the header that was written last, when that had no content.
    fn patch(mut self, at: usize, bytes: &[u8]) -> Self {
        let start = self.0.len() - 512;
        let mut header: [u8; 512] = self.0[start..].try_into().expect("a block");
        header[at..at + bytes.len()].copy_from_slice(bytes);
        self.0[start..].copy_from_slice(&sealed(header));
        self
    }

    pub(super) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn sealed(mut header: [u8; 512]) -> [u8; 512] {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

/// The entry named by the error and the reason, after making sure that nothing is left.
fn refused(world: &World, tar: &[u8]) -> (String, Reason) {
    let error = world.import_tar(tar).map(|_| ()).expect_err("must be refused");
    assert!(error.to_string().contains("import.tar"), "{error}");
    assert_eq!(std::fs::read_dir(world.path("blobs/tmp")).expect("staging").count(), 0);
    match error {
        ArchiveError::Entry { entry, reason, .. } => (entry, reason),
        ArchiveError::Archive { reason, .. } => (String::new(), reason),
        other => panic!("{other}"),
    }
}

#[test]
fn paths_stay_inside() {
    let world = World::new();
    for path in ["../x", "a/../../x", "/..", "a/.."] {
        let (entry, reason) = refused(&world, &Tar::new().file(path, b"x").end());
        assert!(entry == path && matches!(reason, Reason::DotDot), "{reason}");
    }
    let (entry, reason) = refused(&world, &Tar::new().file("f", b"").link("l", "../../etc/shadow").end());
    assert!(entry == "l" && matches!(reason, Reason::DotDot), "{reason}");
    let tree = world.import_tar(&Tar::new().file("///etc//./passwd", b"ours").end()).expect("absolute");
    assert_eq!(world.content(&tree, "etc/passwd"), b"ours");
    assert_eq!((node(&tree, "etc").attr().perm, node(&tree, "etc").attr().uid), (0o755, 0));
}

#[test]
fn symbolic_links_are_not_followed() {
    let world = World::new();
    for target in ["/etc", "..", "dir", "."] {
        let tar = Tar::new().dir("dir").symlink("link", target).file("link/file", b"x").end();
        let (entry, reason) = refused(&world, &tar);
        assert!(
            entry == "link/file" && matches!(reason, Reason::ParentNotDirectory(ref p) if p == "link"),
            "{reason}"
        );
        let tar = Tar::new().file("dir/f", b"").symlink("link", target).link("hard", "link/f").end();
        assert!(matches!(refused(&world, &tar).1, Reason::LinkTarget(_)));
    }
    let (_, reason) = refused(&world, &Tar::new().file("file", b"").file("file/x", b"").end());
    assert!(matches!(reason, Reason::ParentNotDirectory(_)));
    // A hard link to a symbolic link is a second name of the link itself.
    let tree =
        world.import_tar(&Tar::new().symlink("s", "/etc/shadow").link("h", "s").end()).expect("import");
    assert_eq!((node(&tree, "h").attr().kind, node(&tree, "h").attr().nlink), (FileKind::Symlink, 2));
}

#[test]
fn links_and_types() {
    let world = World::new();
    assert!(matches!(refused(&world, &Tar::new().link("l", "nothing").end()).1, Reason::LinkTarget(_)));
    assert!(matches!(
        refused(&world, &Tar::new().dir("d").link("l", "d").end()).1,
        Reason::LinkToDirectory(_)
    ));
    assert!(matches!(refused(&world, &Tar::new().link("l", ".").end()).1, Reason::LinkToDirectory(_)));
    assert!(matches!(
        refused(&world, &Tar::new().file("f", b"").link(".", "f").end()).1,
        Reason::RootNotDirectory
    ));
    assert!(matches!(refused(&world, &Tar::new().file(".", b"").end()).1, Reason::RootNotDirectory));
    assert!(matches!(refused(&world, &Tar::new().symlink("s", "").end()).1, Reason::SymlinkTarget(0)));
    assert!(matches!(
        refused(&world, &Tar::new().entry(b'M', "m", "", 0, b"").end()).1,
        Reason::Unsupported(_)
    ));
    let long = [("linkpath", &[b'x'; 4096][..])];
    assert!(matches!(
        refused(&world, &Tar::new().pax(&long).symlink("s", "x").end()).1,
        Reason::SymlinkTarget(4096)
    ));
    // Linking a file to itself changes nothing; a later entry replaces an earlier one.
    let tar =
        Tar::new().file("f", b"1").link("f", "f").file("d/x", b"").file("f", b"2").file("d", b"3").end();
    let tree = world.import_tar(&tar).expect("import");
    assert_eq!((world.content(&tree, "f"), world.content(&tree, "d")), (b"2".to_vec(), b"3".to_vec()));
    let exclude = Exclude::new(["first"]);
    std::fs::write(world.path("x.tar"), Tar::new().file("first", b"x").link("second", "first").end())
        .expect("write");
    let error = world.import_excluding(&Source::Tar(world.path("x.tar")), &exclude).expect_err("excluded");
    assert!(matches!(error, ArchiveError::Entry { reason: Reason::LinkToExcluded(_), .. }), "{error}");
}

#[test]
fn names_and_numbers_out_of_range() {
    let world = World::new();
    let with = |keyword: &str, value: &[u8]| Tar::new().pax(&[(keyword, value)]).file("f", b"").end();
    assert!(matches!(refused(&world, &with("path", &[b'n'; 256])).1, Reason::Name(_)));
    assert!(matches!(refused(&world, &with("path", b"a\0b")).1, Reason::Name(_)));
    assert!(matches!(refused(&world, &with("path", &b"a/".repeat(2049))).1, Reason::PathTooLong));
    assert!(matches!(refused(&world, &with("uid", b"4294967296")).1, Reason::Range { .. }));
    assert!(matches!(refused(&world, &with("uid", b"4294967295")).1, Reason::Range { .. }));
    assert!(matches!(refused(&world, &with("gid", b"-1")).1, Reason::Header(_)));
    assert!(matches!(refused(&world, &with("mtime", b"soon")).1, Reason::Header(_)));
    assert!(matches!(refused(&world, &with("SCHILY.xattr.user.x", &[0; 65_537])).1, Reason::Xattr(_)));
    let name = format!("SCHILY.xattr.user.{}", "x".repeat(251));
    assert!(matches!(refused(&world, &with(&name, b"v")).1, Reason::Xattr(_)));
    let device = Tar::new().entry(b'3', "dev", "", 0, b"").patch(329, b"0010000\0").end();
    assert!(matches!(refused(&world, &device).1, Reason::Range { .. }));
    let negative = Tar::new().file("f", b"").patch(124, &[0xff; 12]).end();
    assert!(matches!(refused(&world, &negative).1, Reason::Header(_)));
    let endless =
        Tar::new().file("f", b"").patch(124, &[0x80, 0, 0, 0, 0x7f, 255, 255, 255, 255, 255, 255, 255]).end();
    assert!(matches!(refused(&world, &endless).1, Reason::Limit { .. }));
    let extension = Tar::new().entry(b'x', "x", "", 0, b"").patch(124, b"77777777777\0").end();
    assert!(matches!(refused(&world, &extension).1, Reason::Limit { .. }));
}

#[test]
fn truncation_is_noticed_everywhere() {
    let world = World::new();
    let tar = Tar::new().pax(&[("mtime", b"1.5")]).file("f", &[7; 700]).symlink("s", "f").end();
    let marker = tar.len() - 1024;
    for length in (0..=marker).step_by(100).chain([512, 1024, marker]) {
        let (_, reason) = refused(&world, &tar[..length]);
        assert!(matches!(reason, Reason::Truncated), "{length}: {reason}");
    }
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::copy(&mut &tar[..], &mut gzip).expect("gzip");
    let gzip = gzip.finish().expect("gzip");
    let zstd = zstd::encode_all(&tar[..], 3).expect("zstd");
    for packed in [gzip, zstd] {
        for length in 5..packed.len() - 1 {
            let (_, reason) = refused(&world, &packed[..length]);
            assert!(matches!(reason, Reason::Truncated | Reason::Read(_)), "{length}: {reason}");
        }
    }
}

#[test]
fn bombs_are_defused() {
    let world = World::new();
    let limits = Limits { max_entries: 100, max_metadata_bytes: 100_000, max_bytes: 1 << 20, max_ratio: 50 };
    let import = |bytes: &[u8]| {
        let path = world.path("bomb.tar");
        std::fs::write(&path, bytes).expect("write");
        let batch = world.blobs.batch();
        match import(&Source::Tar(path), &batch, &limits, &()).map(|_| ()).expect_err("bomb") {
            ArchiveError::Entry { reason: Reason::Limit { what, .. }, .. } => what,
            ArchiveError::Archive { reason: Reason::Limit { what, .. }, .. } => what,
            other => panic!("{other}"),
        }
    };
    let many = (0..101).fold(Tar::new(), |tar, number| tar.file(&format!("f{number}"), b"")).end();
    assert_eq!(import(&many), "entries");
    assert_eq!(import(&Tar::new().file("big", &vec![1; (1 << 20) + 1]).end()), "bytes of content");
    // A hole costs the archive nothing.
    let hole: &[(&str, &[u8])] =
        &[("GNU.sparse.realsize", b"9000000000000000000"), ("GNU.sparse.map", b"0,0")];
    assert_eq!(import(&Tar::new().pax(hole).file("hole", b"").end()), "bytes of content");
    // Headers that never become entries, behind a compressor: neither entries nor content would ever run out.
    let labels = Tar::new().entry(b'V', "v", "", 0, &vec![0; 1 << 20]).0;
    let bomb = zstd::encode_all(&labels.repeat(80)[..], 3).expect("zstd");
    assert_eq!(import(&bomb), "decompressed bytes for each compressed one");
    // What stays in memory until the end: directories that nobody described, and attributes.
    assert_eq!(import(&Tar::new().pax(&[("path", &b"d/".repeat(101))]).file("f", b"").end()), "entries");
    let attributes: &[(&str, &[u8])] =
        &[("SCHILY.xattr.user.a", &[0; 60_000]), ("SCHILY.xattr.user.b", &[0; 60_000])];
    assert_eq!(import(&Tar::new().pax(attributes).file("f", b"").end()), "bytes of metadata");
    // One entry's headers share the room of one.
    let header = Tar::new().entry(b'x', "x", "", 0, &vec![0; 1 << 20]).0;
    assert_eq!(import(&header.repeat(20)), "bytes of extended header");
    let global = Tar::new().entry(b'g', "g", "", 0, &vec![0; 1 << 20]).0;
    assert_eq!(import(&global), "bytes of extended header");
    let globals = (0..20).fold(Tar::new(), |tar, index| tar.global(&format!("k{index}"), &[b'v'; 1000]));
    assert_eq!(import(&globals.end()), "bytes of global extended headers");
}

/// Records of one header that override each other take time in proportion to their number: a quarter of a million of them.
#[test]
fn regression_many_records_are_read_once() {
    let world = World::new();
    let mut records = Vec::new();
    for index in 0..250_000 {
        records.extend_from_slice(format!("13 k{index:06}=v\n").as_bytes());
    }
    records.extend_from_slice(b"9 path=p\n");
    let tree = world.import_tar(&Tar::new().entry(b'x', "x", "", 0, &records).file("f", b"").end());
    assert!(has(&tree.expect("it is legal"), "p"));
}

#[test]
fn later_global_records_override_earlier_ones() {
    let world = World::new();
    let tar = (0..50).fold(Tar::new(), |tar, index| tar.global("comment", &vec![b'0' + index % 10; 1000]));
    let tree = world.import_tar(&tar.global("mtime", b"7").global("mtime", b"8").file("f", b"").end());
    assert_eq!(node(&tree.expect("it is legal"), "f").mtime().secs, 8);
}

#[test]
fn sparse_maps_must_make_sense() {
    let world = World::new();
    for map in ["0", "0,5,3,5", "5,5", "0,10", "x,1", "18446744073709551615,5", "0,18446744073709551615,0,6"]
    {
        let records: &[(&str, &[u8])] = &[("GNU.sparse.realsize", b"9"), ("GNU.sparse.map", map.as_bytes())];
        let (_, reason) = refused(&world, &Tar::new().pax(records).file("f", b"12345").end());
        assert!(matches!(reason, Reason::Header(_)), "{map}: {reason}");
    }
    let in_data: &[(&str, &[u8])] =
        &[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"9")];
    for content in [&b""[..], b"1\n0\n", &[b'\n'; 512], &[b'9'; 512], b"99999999999999999999\n", &[0; 2048]] {
        let (_, reason) = refused(&world, &Tar::new().pax(in_data).file("f", content).end());
        assert!(matches!(reason, Reason::Header(_)), "{reason}");
    }
    let records: &[(&str, &[u8])] = &[("GNU.sparse.realsize", b"9"), ("GNU.sparse.map", b"1,2,6,3")];
    let tree = world.import_tar(&Tar::new().pax(records).file("f", b"12345").end()).expect("import");
    assert_eq!(world.content(&tree, "f"), b"\x0012\0\0\x00345");
}

#[test]
fn damaged_headers() {
    let world = World::new();
    let mut tar = Tar::new().file("f", b"x").end();
    tar[0] ^= 1;
    assert!(matches!(refused(&world, &tar).1, Reason::Header(_)));
    let (_, reason) =
        refused(&world, &Tar::new().entry(b'x', "x", "", 0, b"12 nonsense").file("f", b"").end());
    assert!(matches!(reason, Reason::Header(_)), "{reason}");
    let image = Tar::new().file("oci-layout", b"{}").file("index.json", b"{}").dir("blobs").end();
    let error = world.import_tar(&image).expect_err("an image").to_string();
    assert!(error.contains("OCI image layout"), "{error}");
}

/// Any change to an archive gives an error or a valid tree, never a panic.
#[test]
fn no_bytes_make_it_panic() {
    let world = World::new();
    let sparse: &[(&str, &[u8])] = &[("GNU.sparse.realsize", b"9"), ("GNU.sparse.map", b"1,2,6,3")];
    let good = Tar::new()
        .dir("d")
        .pax(&[("SCHILY.xattr.user.x", b"v"), ("mtime", b"1.25"), ("SCHILY.acl.access", b"user:5:r--")])
        .file("d/f", b"content")
        .link("d/l", "d/f")
        .pax(sparse)
        .file("s", b"12345")
        .entry(b'L', "L", "", 0, &[b'n'; 120])
        .file("x", b"")
        .entry(b'S', "old", "", 0, b"")
        .end();
    let config = ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() };
    let change = (any::<prop::sample::Index>(), any::<u8>(), any::<bool>());
    proptest!(config, |(changes in proptest::collection::vec(change, 1..8))| {
        let mut tar = good.clone();
        for (at, byte, seal) in changes {
            let at = at.index(tar.len());
            tar[at] = byte;
            if seal {
                // With a right checksum the change gets past the first check.
                let block = at / 512 * 512;
                let header: [u8; 512] = tar[block..block + 512].try_into().expect("a block");
                tar[block..block + 512].copy_from_slice(&sealed(header));
            }
        }
        if let Err(error) = world.import_tar(&tar) {
            prop_assert!(error.to_string().contains("import.tar"));
        }
    });
}
