//! Stacks of small layers, written as lists of paths.

#![allow(clippy::panic)] // Helpers of tests fail as tests do.

use proptest::prelude::*;

use super::*;
use crate::types::Timestamp;

/// One entry of a layer.
#[derive(Clone, Copy, Debug)]
enum Put<'a> {
    File(&'a str),
    /// With these permission bits.
    FileMode(&'a str, u16),
    Dir,
    DirMode(u16),
    OpaqueDir,
    Link(&'a str),
    /// Another name of this path.
    Hard(&'a str),
    Gone,
}
use Put::*;

struct Fixture {
    _dir: tempfile::TempDir,
    blobs: BlobStore,
    rules: Rules,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().expect("temporary folder");
    let path = dir.path().join("blobs");
    BlobStore::create(&path).expect("create");
    Fixture { blobs: BlobStore::open(&path).expect("open"), rules: Rules::default(), _dir: dir }
}

fn split<'p>(builder: &TreeBuilder, path: &'p str) -> (NodeId, NameRef<'p>) {
    let mut names: Vec<&str> = path.split('/').collect();
    let last = names.pop().expect("a name");
    let dir = names.into_iter().fold(builder.root(), |dir, name| {
        match builder.get(dir, NameRef::new(name.as_bytes()).expect("legal")) {
            Some(Entry::Node(node)) => node,
            _ => panic!("{path}: {name} is missing"),
        }
    });
    (dir, NameRef::new(last.as_bytes()).expect("legal"))
}

impl Fixture {
    /// Parents are made as needed, with mode 0755.
    fn layer(&self, entries: &[(&str, Put<'_>)]) -> Arc<Tree> {
        let batch = self.blobs.batch();
        let dir = |perm| Meta::new(FileKind::Dir, perm);
        let mut builder = TreeBuilder::new(dir(0o755));
        for (path, put) in entries {
            for (slash, _) in path.match_indices('/') {
                let (parent, name) = split(&builder, &path[..slash]);
                if builder.get(parent, name).is_none() {
                    builder.insert(parent, name, dir(0o755), Content::None).expect("insert");
                }
            }
            let (parent, name) = split(&builder, path);
            let file = |text: &str| {
                let stored = batch.add_bytes(text.as_bytes()).expect("store");
                Content::Blob {
                    digest: stored.digest,
                    size: stored.size,
                    allocated_bytes: stored.allocated_bytes,
                }
            };
            let (meta, content) = match *put {
                File(text) => (Meta::new(FileKind::File, 0o644), file(text)),
                FileMode(text, perm) => (Meta::new(FileKind::File, perm), file(text)),
                Dir | OpaqueDir => (dir(0o755), Content::None),
                DirMode(perm) => (dir(perm), Content::None),
                Link(target) => {
                    (Meta::new(FileKind::Symlink, 0o777), Content::Symlink(target.as_bytes().into()))
                }
                Hard(other) => {
                    let (other_dir, other) = split(&builder, other);
                    let Some(Entry::Node(node)) = builder.get(other_dir, other) else { panic!("no {other}") };
                    builder.link(parent, name, node).expect("link");
                    continue;
                }
                Gone => {
                    builder.whiteout(parent, name).expect("whiteout");
                    continue;
                }
            };
            let node = builder.insert(parent, name, meta, content).expect("insert");
            if matches!(put, OpaqueDir) {
                builder.set_opaque(node, true);
            }
        }
        batch.commit().expect("commit");
        Arc::new(tree(builder.finish().expect("finish")))
    }

    fn stack(&self, os: &[(&str, Put<'_>)], apps: &[&[(&str, Put<'_>)]]) -> (Tree, Vec<String>) {
        let os = self.layer(os);
        let names = ["web@1", "db@2", "mail@3"];
        let apps: Vec<_> = apps
            .iter()
            .zip(names)
            .map(|(app, name)| (name.parse().expect("legal"), self.layer(app)))
            .collect();
        let result = build_base(&os, &apps, &self.rules, &self.blobs).expect("stack");
        (tree(result.image), result.notes)
    }

    /// `path = content` for files, `path -> target` for links, modes where they are unusual.
    fn show(&self, tree: &Tree) -> Vec<String> {
        let line = |(path, entry): (Vec<u8>, WalkEntry<'_>)| {
            let path = String::from_utf8(path).expect("text");
            let WalkEntry::Node(view) = entry else { panic!("a base has no whiteouts") };
            assert!(!view.is_opaque());
            let text = match view.content() {
                crate::tree::ContentRef::None => format!("{path}/"),
                crate::tree::ContentRef::Symlink(target) => format!("{path} -> {}", target.escape_ascii()),
                crate::tree::ContentRef::Blob { digest, .. } => {
                    let text =
                        std::io::read_to_string(self.blobs.open_blob(&digest).expect("open")).expect("read");
                    format!("{path} = {}", text.escape_default())
                }
            };
            match view.attr().perm {
                0o755 | 0o644 | 0o777 => text,
                perm => format!("{text} ({perm:o})"),
            }
        };
        tree.walk().skip(1).map(line).collect()
    }
}

fn tree(image: TreeImage) -> Tree {
    let tree = Tree::from_bytes(image.bytes).expect("header");
    tree.validate().expect("valid");
    tree
}

#[track_caller]
fn check(os: &[(&str, Put<'_>)], apps: &[&[(&str, Put<'_>)]], expected: &[&str], expected_notes: &[&str]) {
    let fixture = fixture();
    let (tree, notes) = fixture.stack(os, apps);
    assert_eq!(fixture.show(&tree), expected);
    assert_eq!(notes, expected_notes);
}

#[test]
fn one_layer_is_a_plain_overlay() {
    let os = [("a", File("1")), ("d/x", File("1")), ("d/y", File("1")), ("e/z", File("1"))];
    let app = [("a", Gone), ("d", OpaqueDir), ("d/n", File("2")), ("e/z", Link("x"))];
    check(&os, &[&app], &["d/", "d/n = 2", "e/", "e/z -> x"], &[]);
}

#[test]
fn no_layer_is_the_os() {
    let fixture = fixture();
    let os = fixture.layer(&[("a", File("1")), ("b", Hard("a"))]);
    let base = build_base(&os, &[], &fixture.rules, &fixture.blobs).expect("stack");
    assert_eq!(base.image.digest, os.digest());
}

#[test]
fn packages_of_all_layers_stay_known() {
    let text = |names: &[&str]| {
        names.iter().map(|name| format!("Package: {name}\nVersion: 1\n\n")).collect::<String>()
    };
    let [os, web, db, mail] = [&["a"][..], &["a", "w"], &["a", "d"], &["a", "m"]].map(text);
    let path = "var/lib/dpkg/status";
    let fixture = fixture();
    let apps: [&[(&str, Put<'_>)]; 3] = [&[(path, File(&web))], &[(path, File(&db))], &[(path, File(&mail))]];
    let (tree, notes) = fixture.stack(&[(path, File(&os))], &apps);
    let shown = fixture.show(&tree);
    let expected = text(&["a", "d", "m", "w"]);
    assert_eq!(shown.last(), Some(&format!("{path} = {}", expected.escape_default())));
    assert_eq!(notes, [""; 0]);
    // In another order of layers the very same table.
    let (other, _) = fixture.stack(&[(path, File(&os))], &[apps[2], apps[0], apps[1]]);
    assert_eq!(other.digest(), tree.digest());
}

#[test]
fn content_of_one_and_mode_of_the_other() {
    let os = [("etc/a", File("1")), ("etc/b", File("1")), ("etc/c", FileMode("1", 0o600))];
    let web = [("etc/a", File("2")), ("etc/b", FileMode("1", 0o640)), ("etc/c", FileMode("1", 0o640))];
    let db = [("etc/a", FileMode("1", 0o600)), ("etc/b", File("2")), ("etc/c", FileMode("1", 0o660))];
    let note = "/etc/c: web@1 and db@2 differ in mode; the latter counts";
    check(&os, &[&web, &db], &["etc/", "etc/a = 2 (600)", "etc/b = 2 (640)", "etc/c = 1 (660)"], &[note]);
}

#[test]
fn another_kind_of_file_keeps_its_own_mode() {
    let os = [("a", File("1")), ("b", File("1"))];
    let web = [("a", Link("x")), ("b", FileMode("1", 0o600))];
    let db = [("a", FileMode("1", 0o600)), ("b", Link("x"))];
    check(&os, &[&web, &db], &["a -> x", "b -> x"], &[]);
    check(&os, &[&db, &web], &["a -> x", "b -> x"], &[]);
}

#[test]
fn a_directory_that_is_only_passed_does_not_lose_its_mode() {
    let os = [("srv", Dir)];
    let web = [("srv", DirMode(0o750))];
    let db = [("srv/x", File("1"))];
    check(&os, &[&web, &db], &["srv/ (750)", "srv/x = 1"], &[]);
    check(&os, &[&db, &web], &["srv/ (750)", "srv/x = 1"], &[]);
}

#[test]
fn text_and_programs() {
    let os = [("etc/conf", File("a\nb\nc\n")), ("usr/bin/p", File("a\nb\nc\n"))];
    let web = [("etc/conf", File("A\nb\nc\n")), ("usr/bin/p", File("A\nb\nc\n"))];
    let db = [("etc/conf", File("a\nb\nC\n")), ("usr/bin/p", File("a\nb\nC\n"))];
    let shown = ["etc/", "etc/conf = A\\nb\\nC\\n", "usr/", "usr/bin/", "usr/bin/p = a\\nb\\nC\\n"];
    check(&os, &[&web, &db], &shown, &["/usr/bin/p: web@1 and db@2 both have it; the latter counts"]);
}

#[test]
fn what_cannot_be_merged_is_told() {
    let os = [("etc/conf", File("a\n")), ("etc/ld.so.cache", File("0"))];
    let web = [("etc/conf", File("b\n")), ("etc/ld.so.cache", File("1")), ("etc/new", File("1"))];
    let db = [("etc/conf", File("c\n")), ("etc/ld.so.cache", File("2")), ("etc/new", Link("x"))];
    let notes = [
        "/etc/conf: web@1 and db@2 both have it and cannot be merged (both sides changed line 1); the latter counts",
        "/etc/ld.so.cache: generated file of db@2; what web@1 has in it comes back when it is generated anew",
        "/etc/new: web@1 and db@2 both have it; the latter counts",
    ];
    check(&os, &[&web, &db], &["etc/", "etc/conf = c\\n", "etc/ld.so.cache = 2", "etc/new -> x"], &notes);
}

#[test]
fn removal_against_change() {
    let os = [("a", File("1")), ("b", File("1")), ("c", File("1")), ("d/x", File("1")), ("e/x", File("1"))];
    let web =
        [("a", File("2")), ("b", Gone), ("c", Gone), ("d/x", File("2")), ("d/n", File("2")), ("e", Gone)];
    let db = [("a", Gone), ("b", File("2")), ("c", Gone), ("d", Gone), ("e/y", File("2"))];
    let notes = [
        "/d: db@2 removes or replaces it, and with it 2 changes of web@1",
        "/a: web@1 changes it, db@2 removes it; it is gone",
        "/b: web@1 removes it, db@2 has it; it is there",
        "/e: web@1 removes it, db@2 has it; it is there",
    ];
    check(&os, &[&web, &db], &["b = 2", "e/", "e/y = 2"], &notes);
}

#[test]
fn hard_links_of_the_earlier_layer_stay() {
    let fixture = fixture();
    let os = [("a", File("1")), ("b", Hard("a"))];
    let web = [("a", File("2")), ("b", Hard("a"))];
    let db = [("a", FileMode("1", 0o600)), ("b", Hard("a"))];
    let (tree, notes) = fixture.stack(&os, &[&web, &db]);
    let [a, b] = [b"a", b"b"].map(|path| tree.resolve(path).expect("there").attr());
    assert_eq!((a.ino, a.nlink, a.perm), (b.ino, 2, 0o600));
    assert_eq!(notes, [""; 0]);
}

#[test]
fn the_best_alternative_of_all_layers_is_shown() {
    let database = |choices: &str| format!("auto\n/usr/bin/editor\neditor.1\n/man/editor.1\n\n{choices}\n");
    let [nano, vim, ed] = ["/bin/nano\n40\n/man/nano.1\n", "/bin/vim\n50\n/man/vim.1\n", "/bin/ed\n-100\n\n"];
    let (os, web, db) = (database(nano), database(&[nano, vim].concat()), database(&[ed, nano].concat()));
    let path = "var/lib/dpkg/alternatives/editor";
    let os = [("etc/alternatives/editor", Link("/bin/nano")), (path, File(&os))];
    let web = [("etc/alternatives/editor", Link("/bin/vim")), (path, File(&web))];
    // This layer's author had another idea, which update-alternatives does not know of.
    let db = [("etc/alternatives/editor", Link("/bin/ed")), (path, File(&db))];
    let fixture = fixture();
    for apps in [[&web[..], &db], [&db, &web]] {
        let (tree, notes) = fixture.stack(&os, &apps);
        assert!(fixture.show(&tree).contains(&"etc/alternatives/editor -> /bin/vim".to_owned()));
        assert_eq!(notes, [""; 0]);
    }
}

#[test]
fn long_lists_are_cut() {
    let names: Vec<String> = (10..60).map(|n| format!("usr/lib/{n}")).collect();
    let layer = |text| names.iter().map(|name| (name.as_str(), File(text))).collect::<Vec<_>>();
    let (_, notes) = fixture().stack(&layer("0"), &[&layer("1"), &layer("2")]);
    assert_eq!(notes.len(), MAX_NAMED_FILES + 1);
    assert_eq!(
        notes.last().map(String::as_str),
        Some("30 more files that web@1 and db@2 both have; the latter's count")
    );
}

#[test]
fn times() {
    let at = |secs| Meta { mtime: Timestamp::new(secs, 0), ..Meta::new(FileKind::File, 0o644) };
    let (os, ours, theirs) = (at(1), at(3), at(2));
    assert_eq!(merge_meta(Some(&os), &ours, &theirs), (at(3), Vec::new()));
    assert_eq!(merge_meta(Some(&os), &os, &theirs), (at(2), Vec::new()));
    assert_eq!(merge_meta(None, &ours, &theirs), (at(3), Vec::new()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever three layers hold: a base comes out, it is valid, and layers that meet nowhere need no notes and no order.
    #[test]
    fn any_layers_make_a_base(layers in prop::collection::vec(
        prop::collection::btree_map("[ab]|[ab]/[ab]|etc/[ab]|etc/passwd|var/log/a", 0_u8..6, 0..6), 4,
    )) {
        let fixture = fixture();
        let put = |kind: u8| match kind {
            0 | 1 => File("1\n"),
            2 => File("2\n3\n"),
            3 => Link("x"),
            4 => Gone,
            _ => OpaqueDir,
        };
        // A path below one that is no directory in the same layer cannot be written.
        let list = |at: usize| {
            let layer = &layers[at];
            let dir = |path: &str| layer.get(path).is_none_or(|kind| *kind > 4);
            let fits = |path: &str| path.match_indices('/').all(|(slash, _)| dir(&path[..slash]));
            let keep = layer.iter().filter(|(path, kind)| fits(path) && (at > 0 || **kind < 4));
            keep.map(|(path, kind)| (path.as_str(), put(*kind))).collect::<Vec<_>>()
        };
        let lists: Vec<_> = (0..4).map(list).collect();
        let apps = [&lists[1][..], &lists[2], &lists[3]];
        let (tree, _) = fixture.stack(&lists[0], &apps);
        prop_assert!(tree.is_base());
        let shown = fixture.show(&tree);
        let (again, _) = fixture.stack(&lists[0], &apps);
        prop_assert_eq!(tree.digest(), again.digest());
        // The same layer twice says nothing new.
        let (twice, notes) = fixture.stack(&lists[0], &[apps[0], apps[0]]);
        let (once, _) = fixture.stack(&lists[0], &[apps[0]]);
        if !layers[1].values().any(|kind| *kind > 4) {
            prop_assert_eq!(notes, [""; 0]);
            prop_assert_eq!(fixture.show(&twice), fixture.show(&once));
        }
        prop_assert!(shown.len() <= 30);
    }
}
