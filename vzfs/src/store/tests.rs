//! The store without mounts, in temporary folders.

#![allow(clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::*;
use crate::api::{ChangeKind, CommitVe, CreateVe, ImportRequest, Template, TemplateKind, Ve};
use crate::tree::{Content, Entry, Meta as TreeMeta, NodeId, Tree, TreeBuilder};
use crate::types::{FileKind, IdShift, Ino, NameRef, TemplateRef};
use crate::volume::{Rebased, Volume};

mod care;
mod dedup;
mod versions;

/// Mounts nothing; refuses to unmount gently while `busy`.
#[derive(Clone, Default)]
struct FakeMounter {
    busy: Arc<AtomicBool>,
    broken: Arc<AtomicBool>,
}

struct FakeMount {
    busy: Arc<AtomicBool>,
    /// Every inode that was told of counts as known: nothing is ever forgotten.
    told: Mutex<Vec<Ino>>,
    _volume: Arc<Volume>,
}

impl Mounter for FakeMounter {
    fn mount(
        &self,
        volume: Arc<Volume>,
        _: &VeName,
        _: &Path,
        _: Option<IdShift>,
    ) -> Result<Box<dyn Mounted>, BoxError> {
        if self.broken.load(Ordering::SeqCst) {
            return Err("no mounts today".into());
        }
        Ok(Box::new(FakeMount { busy: self.busy.clone(), told: Mutex::default(), _volume: volume }))
    }
}

impl Mounted for FakeMount {
    fn is_alive(&self) -> bool {
        true
    }

    fn passthrough(&self) -> bool {
        false
    }

    fn tell(&self, rebased: &Rebased) {
        self.told.lock().extend(&rebased.inodes);
    }

    fn known(&self) -> Vec<Ino> {
        self.told.lock().clone()
    }

    fn lock_holder(&self, _: Ino) -> Option<u32> {
        None
    }

    fn forget_blobs(&self) {}

    fn requests(&self) -> BTreeMap<&'static str, u64> {
        BTreeMap::from([("lookup", 3)])
    }

    fn failures(&self) -> BTreeMap<&'static str, u64> {
        BTreeMap::from([("EIO", 1)])
    }

    fn waited(&self) -> Duration {
        Duration::ZERO
    }

    fn unmount(self: Box<Self>, force: bool) -> Result<(), (Box<dyn Mounted>, UnmountError)> {
        if self.busy.load(Ordering::SeqCst) && !force { Err((self, UnmountError::Busy)) } else { Ok(()) }
    }
}

struct Place {
    dir: tempfile::TempDir,
    mounter: FakeMounter,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir_in("/var/tmp").expect("a folder in /var/tmp");
        Place { dir, mounter: FakeMounter::default() }
    }

    fn open(&self) -> Store {
        let mounter = Box::new(self.mounter.clone());
        Store::create_or_open(&self.dir.path().join("store"), mounter).expect("the store opens")
    }

    /// A folder with these files, to import.
    fn source(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let root = self.dir.path().join(name);
        for (path, content) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().expect("below the root")).expect("mkdir");
            fs::write(&path, content).expect("write");
            // One time for all, so that unchanged files are unchanged.
            let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
            fs::File::open(&path).and_then(|file| file.set_modified(time)).expect("set the time");
        }
        root
    }
}

fn reference(text: &str) -> TemplateRef {
    text.parse().expect("a legal reference")
}

fn ve_name(text: &str) -> VeName {
    text.parse().expect("a legal name")
}

fn import_request(spec: &str, source: PathBuf, os: Option<&str>) -> ImportRequest {
    ImportRequest {
        template: spec.parse().expect("legal"),
        source,
        kind: None,
        os: os.map(reference),
        summary: String::new(),
        labels: BTreeMap::new(),
        packages: None,
        exclude: vec!["tmp/**".to_owned()],
        merge: Vec::new(),
        recipe: None,
    }
}

fn import(store: &Store, spec: &str, source: PathBuf, os: Option<&str>) -> Result<Template, StoreError> {
    store.import(&import_request(spec, source, os), &())
}

fn commit_request(spec: &str) -> CommitVe {
    CommitVe {
        template: spec.parse().expect("legal"),
        summary: String::new(),
        labels: BTreeMap::new(),
        packages: None,
        exclude: Vec::new(),
        merge: Vec::new(),
        version_of: None,
        rebuilds: None,
        recipe: None,
        steps: Vec::new(),
    }
}

fn create(store: &Store, name: &str, templates: &[&str], count: Option<u32>) -> Result<Vec<Ve>, StoreError> {
    let templates = templates.iter().map(|text| reference(text)).collect();
    store.create(&CreateVe { name: ve_name(name), templates, count, id_shift: None, labels: BTreeMap::new() })
}

const BASE: [(&str, &str); 4] =
    [("etc/hostname", "base\n"), ("etc/motd", "hello\n"), ("usr/bin/tool", "#!/bin/sh\n"), ("tmp/junk", "x")];

/// debian@12 and an application nginx@1 made on it.
fn store_with_templates(place: &Place) -> Store {
    let store = place.open();
    import(&store, "debian@12", place.source("os", &BASE), None).expect("OS");
    let mut with_app = BASE.to_vec();
    with_app[1].1 = "nginx is here\n";
    with_app.push(("etc/nginx/nginx.conf", "worker_processes 1;\n"));
    with_app.remove(2);
    import(&store, "nginx@1", place.source("app", &with_app), Some("debian")).expect("app");
    store
}

#[test]
fn templates_survive_a_restart_and_know_their_os() {
    let place = Place::new();
    let store = store_with_templates(&place);
    let before = store.templates();
    drop(store);
    let store = place.open();
    assert_eq!(store.templates(), before);
    let names: Vec<_> = before.iter().map(|template| template.spec().to_string()).collect();
    assert_eq!(names, ["debian@12", "nginx@1"]);
    assert_eq!(before[1].kind, TemplateKind::App);
    assert_eq!(before[1].os.as_ref().expect("made on an OS").layer, before[0].digest);
    // Excluded, and not counted as deleted either.
    assert!(before[0].stats.files == 3, "{:?}", before[0].stats);
    assert!(store.verify(&reference("nginx"), &()).expect("verifies").damaged.is_empty());
}

#[test]
fn a_diff_shows_what_the_application_changes() {
    let place = Place::new();
    let store = store_with_templates(&place);
    let changes = store.diff_templates(&reference("debian"), &reference("nginx")).expect("compares");
    let find = |path: &str| changes.files.iter().find(|change| change.path == path).map(|change| change.kind);
    assert_eq!(find("etc/nginx/nginx.conf"), Some(ChangeKind::Added));
    assert_eq!(find("etc/motd"), Some(ChangeKind::Changed));
    assert_eq!(find("usr/bin/tool"), Some(ChangeKind::Deleted));
    assert_eq!(find("etc/hostname"), None);
    assert_eq!((changes.totals.added, changes.totals.removed), (2, 3));
    // nginx.conf, and the new motd.
    assert_eq!(
        (changes.totals.added_bytes, changes.totals.changed_bytes, changes.totals.new_content_bytes),
        (20, [6, 14], 34)
    );
    let same = store.diff_templates(&reference("nginx"), &reference("nginx")).expect("compares");
    assert!(same.files.is_empty() && same.packages.is_empty() && same.totals == Default::default());
}

#[test]
fn names_are_taken_once_and_the_newest_version_is_meant() {
    let place = Place::new();
    let store = store_with_templates(&place);
    let again = import(&store, "debian@12", place.source("os", &BASE), None);
    assert!(matches!(again, Err(StoreError::TemplateExists(_))));
    for version in ["9.10", "9.9"] {
        import(&store, &format!("alpine@{version}"), place.source("os", &BASE), None).expect("imports");
    }
    assert_eq!(store.template(&reference("alpine")).expect("there").version.as_str(), "9.10");
    assert!(matches!(store.template(&reference("alpine@1")), Err(StoreError::UnknownTemplate(_))));
}

#[test]
fn stacks_that_cannot_stand_are_refused() {
    let place = Place::new();
    let store = store_with_templates(&place);
    let other = [("etc/hostname", "another\n")];
    import(&store, "debian@13", place.source("os13", &other), None).expect("OS");
    assert!(matches!(create(&store, "a", &["nginx"], None), Err(StoreError::NoOs { fits: Some(_) })));
    assert!(matches!(create(&store, "a", &["debian@12", "debian@13"], None), Err(StoreError::Twice(_))));
    assert!(matches!(create(&store, "a", &["debian@12", "nginx", "nginx"], None), Err(StoreError::Twice(_))));
    match create(&store, "a", &["debian@13", "nginx"], None) {
        Err(error @ StoreError::Unfit { .. }) => assert!(error.to_string().contains("debian@12"), "{error}"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(create(&store, "a", &["debian", "x"], None), Err(StoreError::UnknownTemplate(_))));
    assert!(store.ves().expect("lists").is_empty());
}

#[test]
fn the_second_ve_of_a_stack_shares_the_base() {
    let place = Place::new();
    let store = store_with_templates(&place);
    // The OS goes first wherever it is named.
    let first = create(&store, "a", &["nginx", "debian@12"], None).expect("makes");
    let trees = store.trees.list().expect("lists").len();
    let more = create(&store, "b", &["debian@12", "nginx"], Some(20)).expect("makes");
    assert_eq!(store.trees.list().expect("lists").len(), trees);
    assert_eq!(more.len(), 20);
    assert!(more.iter().all(|ve| ve.base == first[0].base));
    assert_eq!(more[19].name.as_str(), "b-20");
    assert_eq!(first[0].templates[0].to_string(), "debian@12");
    let plain = create(&store, "c", &["debian@12"], None).expect("makes");
    assert_eq!(plain[0].base, store.template(&reference("debian")).expect("there").digest);
    // All or none.
    assert!(matches!(create(&store, "b", &["debian@12"], Some(30)), Err(StoreError::VeExists(_))));
    assert_eq!(store.ves().expect("lists").len(), 22);
    let base = store.trees.open(&first[0].base).expect("there");
    assert!(base.resolve(b"etc/nginx/nginx.conf").is_some());
    assert!(base.resolve(b"usr/bin/tool").is_none());
}

#[test]
fn used_templates_stay_and_unused_ones_give_their_space_back() {
    let place = Place::new();
    let store = store_with_templates(&place);
    create(&store, "a", &["debian", "nginx"], None).expect("makes");
    match store.remove_template(&reference("debian"), false) {
        Err(StoreError::TemplateInUse { ves, templates, .. }) => {
            assert_eq!((ves.len(), templates.len()), (1, 1));
        }
        other => panic!("{other:?}"),
    }
    store.remove(&ve_name("a"), false).expect("removes");
    let removed = store.remove_template(&reference("nginx@1"), false).expect("removes");
    assert!(removed.freed_bytes.expect("swept") > 0);
    // The base that nobody uses any more went with it; the OS is whole.
    assert_eq!(store.trees.list().expect("lists").len(), 1);
    assert!(store.verify(&reference("debian"), &()).expect("verifies").damaged.is_empty());
    store.remove_template(&reference("debian"), false).expect("removes");
    assert_eq!(store.info().expect("counts").blobs, 0);
}

#[test]
fn damage_is_found_and_named() {
    let place = Place::new();
    let store = store_with_templates(&place);
    let tree = store.trees.open(&store.template(&reference("debian")).expect("there").digest).expect("opens");
    let view = tree.resolve(b"etc/motd").expect("there");
    let crate::tree::ContentRef::Blob { digest, .. } = view.content() else { panic!("a file") };
    let path = store.layout.blobs().join(&digest.to_hex()[..2]).join(digest.to_hex());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
    fs::write(&path, "HELLO\n").expect("damage");
    let report = store.verify(&reference("debian"), &()).expect("runs");
    assert_eq!(report.damaged.len(), 1);
    assert_eq!((report.damaged[0].path.as_str(), report.damaged[0].digest), ("etc/motd", digest));
    assert_eq!(report.blobs, 3);
}

#[test]
fn mounts_are_wanted_again_after_a_restart() {
    let place = Place::new();
    let store = store_with_templates(&place);
    create(&store, "a", &["debian"], Some(2)).expect("makes");
    let (one, two) = (ve_name("a-1"), ve_name("a-2"));
    let mounted = store.mount(&one, None).expect("mounts");
    let default = place.dir.path().canonicalize().expect("there").join("root/a-1");
    assert_eq!((mounted.mounted, mounted.mountpoint.as_deref()), (true, Some(&*default)));
    store.mount(&one, Some(&default)).expect("there already");
    assert!(matches!(store.mount(&one, Some(Path::new("/elsewhere"))), Err(StoreError::Mounted { .. })));
    assert!(matches!(store.mount(&two, Some(&default)), Err(StoreError::MountpointTaken { .. })));
    for bad in ["relative", "/a/../b", "/"] {
        assert!(matches!(store.mount(&two, Some(Path::new(bad))), Err(StoreError::Path { .. })), "{bad}");
    }
    assert!(matches!(store.rename(&one, &ve_name("b")), Err(StoreError::Mounted { .. })));
    assert!(matches!(store.remove(&one, false), Err(StoreError::Mounted { .. })));
    store.close();
    assert!(matches!(store.mount(&two, None), Err(StoreError::Closing)));
    drop(store);

    place.mounter.broken.store(true, Ordering::SeqCst);
    let store = place.open();
    store.mount_wanted();
    let unmounted = store.ve(&one).expect("there");
    assert_eq!((unmounted.mounted, unmounted.mountpoint.as_deref()), (false, Some(&*default)));
    place.mounter.broken.store(false, Ordering::SeqCst);
    store.mount_wanted();
    assert!(store.ve(&one).expect("there").mounted);

    place.mounter.busy.store(true, Ordering::SeqCst);
    assert!(matches!(store.umount(&one, false), Err(StoreError::MountBusy { .. })));
    assert!(store.ve(&one).expect("there").mounted);
    let gone = store.umount(&one, true).expect("forced");
    assert_eq!((gone.mounted, gone.mountpoint), (false, None));
    store.umount(&one, false).expect("not mounted is fine");
    store.mount_wanted();
    assert!(!store.ve(&one).expect("there").mounted);
}

#[test]
fn numbers_are_never_used_again() {
    let place = Place::new();
    let store = store_with_templates(&place);
    let first = create(&store, "a", &["debian"], None).expect("makes")[0].id;
    store.rename(&ve_name("a"), &ve_name("b")).expect("renames");
    assert!(matches!(store.ve(&ve_name("a")), Err(StoreError::UnknownVe(_))));
    store.remove(&ve_name("b"), false).expect("removes");
    drop(store);
    let store = place.open();
    assert!(store.ves().expect("lists").is_empty());
    assert!(create(&store, "a", &["debian"], None).expect("makes")[0].id > first);
}

#[test]
fn a_removal_that_was_cut_short_is_finished() {
    let place = Place::new();
    let store = store_with_templates(&place);
    let id = create(&store, "a", &["debian"], None).expect("makes")[0].id;
    let slot = store.slot(&ve_name("a")).expect("there");
    let data = store.layout.data().join(id.to_string());
    fs::create_dir_all(data.join("x")).expect("mkdir");
    store.save(&slot, VeRecord { removing: true, ..(*slot.record()).clone() }).expect("saves");
    drop((slot, store));
    let store = place.open();
    assert!(store.ves().expect("lists").is_empty());
    assert!(!data.exists());
    assert!(store.meta.list::<VeRecord>(Table::Ve).expect("lists").is_empty());
}

#[test]
fn a_commit_makes_an_application_that_needs_its_stack() {
    let place = Place::new();
    let store = store_with_templates(&place);
    create(&store, "a", &["debian", "nginx"], None).expect("makes");
    let slot = store.slot(&ve_name("a")).expect("there");
    {
        let volume = store.volume(&slot).expect("opens");
        let etc =
            volume.lookup(crate::types::Ino::ROOT, NameRef::new(b"etc").expect("legal")).expect("there").ino;
        volume.unlink(etc, NameRef::new(b"hostname").expect("legal")).expect("unlinks");
        // One volume at a time (S2).
        assert!(Arc::ptr_eq(&volume, &store.volume(&slot).expect("the same")));
    }
    slot.shown.write().holdings = None;
    let changes = store.diff_ve(&ve_name("a")).expect("compares");
    assert!(changes.iter().any(|change| change.path == "etc/hostname" && change.kind == ChangeKind::Deleted));
    let request = CommitVe { summary: "a site".to_owned(), ..commit_request("site@1") };
    let site = store.commit(&ve_name("a"), &request, &()).expect("commits");
    assert_eq!(site.kind, TemplateKind::App);
    match create(&store, "b", &["debian", "site"], None) {
        Err(StoreError::Requires { needs, .. }) => assert_eq!(needs.to_string(), "nginx@1"),
        other => panic!("{other:?}"),
    }
    let ve = create(&store, "b", &["debian", "nginx", "site"], None).expect("makes");
    let base = store.trees.open(&ve[0].base).expect("there");
    assert!(base.resolve(b"etc/hostname").is_none());
    assert!(base.resolve(b"etc/nginx/nginx.conf").is_some());
    store.remove(&ve_name("a"), false).expect("removes");
    assert!(matches!(
        store.remove_template(&reference("nginx"), false),
        Err(StoreError::TemplateInUse { .. })
    ));
}

#[test]
fn two_imports_of_one_name_do_not_meet() {
    let place = Place::new();
    let store = place.open();
    let spec: TemplateSpec = "debian@12".parse().expect("legal");
    store.catalog.write().making.insert(spec.clone(), Vec::new());
    let second = import(&store, "debian@12", place.source("os", &BASE), None);
    assert!(matches!(second, Err(StoreError::TemplateBusy(_))));
    store.catalog.write().making.remove(&spec);
    import(&store, "debian@12", place.source("os", &BASE), None).expect("free again");
    // A failed import gives its name back.
    let missing = place.dir.path().join("missing");
    assert!(import(&store, "x@1", missing, None).is_err());
    import(&store, "x@1", place.source("os", &BASE), None).expect("free again");
    assert!(matches!(import(&store, "y@1", "relative".into(), None), Err(StoreError::Path { .. })));
}

#[test]
fn a_ve_that_is_read_is_not_swept_away() {
    let place = Place::new();
    let store = store_with_templates(&place);
    create(&store, "a", &["debian", "nginx"], None).expect("makes");
    let adding = store.begin_adding().expect("open");
    let freed = || store.collect_now().expect("runs").map(|report| report.freed_bytes);
    assert_eq!(freed(), None);
    drop(adding);
    // The one byte that the import left out, read before it was known to be left out.
    assert_eq!(freed(), Some(1));
    assert_eq!(freed(), Some(0));
}

#[test]
fn a_ve_in_use_is_removed_by_force_only_and_its_data_later() {
    let place = Place::new();
    let store = store_with_templates(&place);
    let id = create(&store, "a", &["debian"], None).expect("makes")[0].id;
    let data = store.layout.data().join(id.to_string());
    fs::create_dir_all(&data).expect("mkdir");
    let held = store.volume(&store.slot(&ve_name("a")).expect("there")).expect("opens");
    assert!(matches!(store.remove(&ve_name("a"), false), Err(StoreError::VeBusy(_))));
    assert!(store.ve(&ve_name("a")).is_ok());
    assert_eq!(store.remove(&ve_name("a"), true).expect("removes").freed_bytes, None);
    assert!(matches!(store.ve(&ve_name("a")), Err(StoreError::UnknownVe(_))));
    // The name is free at once, the data is not touched under its users.
    create(&store, "a", &["debian"], None).expect("makes");
    assert!(data.exists());
    drop((held, store));
    let store = place.open();
    assert!(!data.exists());
    assert_eq!(store.ves().expect("lists").len(), 1);
}

/// Trees for the tests of `difference`.
struct Maker(TreeBuilder);

impl Maker {
    fn new() -> Maker {
        Maker(TreeBuilder::new(TreeMeta::new(FileKind::Dir, 0o755)))
    }

    fn dir(&mut self, path: &str) -> NodeId {
        let mut at = self.0.root();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            let name = NameRef::new(part.as_bytes()).expect("legal");
            at = match self.0.get(at, name) {
                Some(Entry::Node(node)) => node,
                _ => {
                    let meta = TreeMeta::new(FileKind::Dir, 0o755);
                    self.0.insert(at, name, meta, Content::None).expect("fits")
                }
            };
        }
        at
    }

    fn file(&mut self, path: &str, content: &str) -> NodeId {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let dir = self.dir(dir);
        let blob = Content::Blob {
            digest: Digest::of(content.as_bytes()),
            size: content.len() as u64,
            allocated_bytes: 4096,
        };
        let name = NameRef::new(name.as_bytes()).expect("legal");
        self.0.insert(dir, name, TreeMeta::new(FileKind::File, 0o644), blob).expect("fits")
    }

    fn link(&mut self, path: &str, node: NodeId) {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let dir = self.dir(dir);
        self.0.link(dir, NameRef::new(name.as_bytes()).expect("legal"), node).expect("links");
    }

    fn tree(self) -> Tree {
        Tree::from_bytes(self.0.finish().expect("finishes").bytes).expect("opens")
    }
}

/// Applied to the OS, the difference gives the whole: the same digest, hard links and all. Returns the layer.
fn check_difference(os: Maker, full: Maker) -> Tree {
    let os = os.tree();
    let layer = difference(&os, &full.0).expect("compares").finish().expect("finishes");
    let layer = Tree::from_bytes(layer.bytes).expect("opens");
    let mut whole = TreeBuilder::from_tree(&os).expect("copies");
    whole.apply_layer(&layer).expect("applies");
    assert_eq!(whole.finish().expect("finishes").digest, full.tree().digest());
    layer
}

#[test]
fn difference_of_equal_trees_is_empty() {
    let make = || {
        let mut maker = Maker::new();
        let file = maker.file("a/b/c", "1");
        maker.link("a/d", file);
        maker.file("x", "2");
        maker
    };
    let layer = check_difference(make(), make());
    assert_eq!(layer.stats().entries, 0);
}

#[test]
fn difference_keeps_hard_links_and_types() {
    let mut os = Maker::new();
    let file = os.file("bin/sh", "shell");
    os.link("bin/dash", file);
    os.file("was-file", "1");
    os.file("was-dir/x/y", "2");
    os.file("gone/deep/z", "3");
    let twin = os.file("twin1", "t");
    os.link("twin2", twin);
    os.file("same/kept", "4");
    let mut full = Maker::new();
    // A third name for a file that the OS has: all three come along.
    let file = full.file("bin/sh", "shell");
    full.link("bin/dash", file);
    full.link("usr/bin/sh", file);
    full.file("was-file/inside", "1");
    full.file("was-dir", "2");
    // One file became two of equal content.
    full.file("twin1", "t");
    full.file("twin2", "t");
    full.file("same/kept", "4");
    let layer = check_difference(os, full);
    assert!(layer.resolve(b"bin/sh").is_some());
    assert!(layer.resolve(b"same").is_none());
    assert_eq!(layer.stats().whiteouts, 1);
}

#[test]
fn difference_takes_changed_directories_along() {
    let mut os = Maker::new();
    os.file("etc/a", "1");
    os.file("var/b", "1");
    let mut full = Maker::new();
    full.file("etc/a", "1");
    full.file("var/b", "1");
    let etc = full.dir("etc");
    full.0.meta_mut(etc).perm = 0o700;
    let layer = check_difference(os, full);
    assert_eq!(layer.resolve(b"etc").expect("changed").attr().perm, 0o700);
    assert!(layer.resolve(b"etc/a").is_none() && layer.resolve(b"var").is_none());
}

#[test]
fn symbolic_links_are_templates_too() {
    let place = Place::new();
    let store = place.open();
    let source = place.source("os", &BASE);
    symlink("usr/bin", source.join("bin")).expect("links");
    let template = import(&store, "debian@1", source, None).expect("imports");
    assert_eq!(template.stats.symlinks, 1);
}

/// The format file is what a store gets last: a crash before it leaves everything else.
#[test]
fn a_first_start_that_was_cut_short_is_begun_again() {
    let place = Place::new();
    drop(place.open());
    let dir = place.dir.path().join("store");
    let made: Vec<_> = fs::read_dir(&dir).expect("there").flatten().map(|entry| entry.file_name()).collect();
    assert!(made.iter().any(|name| name == "reserve"), "{made:?}");
    fs::remove_file(dir.join("format")).expect("there");
    assert_eq!(place.open().templates(), []);
    assert!(dir.join("format").exists());
}
