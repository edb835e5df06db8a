//! The care of a store. Garbage collection: what is needed stays, what is not goes, at any moment and after any crash. Checks: damage is found,
//! everybody whom it touches is named, and it is repaired from the same content.

use super::*;
use crate::api::{DamagedThing, GcReport, GcRequest, StoreVerifyReport, VerifyStore};
use crate::merge::Rules;
use crate::meta::{InodeRecord, PrivateContent};
use crate::store::Pace;
use crate::store::records::BaseRecord;
use crate::types::Ino;
use crate::volume::{Caller, NewNode, SetAttr};

pub(super) fn collect(store: &Store) -> GcReport {
    store.collect(GcRequest { dry_run: false }, &()).expect("collects")
}

pub(super) fn volume_of(store: &Store, ve: &str) -> Arc<Volume> {
    store.volume(&store.slot(&ve_name(ve)).expect("there")).expect("opens")
}

pub(super) fn at(volume: &Volume, path: &str) -> Ino {
    volume.resolve(path.as_bytes()).expect("resolves").expect("there")
}

/// Everything that records lead to is there and undamaged.
pub(super) fn assert_whole(store: &Store) {
    let needed = store.mark().expect("every needed tree is there");
    for digest in &needed.trees {
        store.trees.open(digest).expect("there").validate().expect("valid");
    }
    for digest in &needed.blobs {
        store.blobs.verify(digest).expect("there");
    }
}

/// Three files, the first of which is also in `BASE`.
const OTHER: [(&str, &str); 3] =
    [("etc/hostname", "base\n"), ("etc/other", "other\n"), ("usr/bin/other", "#!/bin/other\n")];

#[test]
fn what_nothing_needs_goes_and_the_rest_stays() {
    let place = Place::new();
    let store = store_with_templates(&place);
    import(&store, "other@1", place.source("other", &OTHER), None).expect("imports");
    create(&store, "a", &["debian", "nginx"], None).expect("makes");
    collect(&store);
    let blobs = store.info().expect("info").blobs;
    assert_eq!(
        collect(&store),
        GcReport { kept_blobs: blobs, ..GcReport::default() },
        "nothing is left to do"
    );
    // The record goes as in a removal that a crash cuts short.
    store.meta.delete(Table::Template, "other@1").expect("deletes");
    drop(store);
    let store = place.open();
    let dry = store.collect(GcRequest { dry_run: true }, &()).expect("looks");
    assert_eq!((dry.trees, dry.blobs, dry.blob_bytes), (1, 2, 6 + 13));
    assert_eq!(store.info().expect("info").blobs, blobs, "a dry run removes nothing");
    assert_eq!(collect(&store), GcReport { dry_run: false, ..dry });
    assert_whole(&store);
    assert_eq!(
        volume_of(&store, "a").resolve(b"etc/nginx/nginx.conf").map(|found| found.is_some()).ok(),
        Some(true)
    );
    // A base goes with its last VE, and comes back with the next.
    store.remove(&ve_name("a"), false).expect("removes");
    let report = collect(&store);
    assert_eq!((report.bases, report.trees), (1, 1));
    create(&store, "b", &["debian", "nginx"], None).expect("makes the base anew");
    assert_whole(&store);
}

/// No operation names a blob that its base has not; a rebased or deduplicated volume does.
#[test]
fn what_only_a_private_record_names_is_needed() {
    let place = Place::new();
    let store = store_with_templates(&place);
    let id = create(&store, "a", &["debian"], None).expect("makes")[0].id;
    let batch = store.blobs.batch();
    let stored = batch.add_bytes(b"only here").expect("adds");
    batch.commit().expect("commits");
    let volume = volume_of(&store, "a");
    let new = NewNode::new(FileKind::File, 0o644);
    let name = NameRef::new(b"file").expect("legal");
    let ino = volume.create(Ino::ROOT, name, new, Caller::ROOT).expect("creates").ino;
    let record = store.meta.inode(id, ino).expect("reads").expect("there");
    let content = PrivateContent::Blob {
        digest: *stored.digest.as_bytes(),
        size: stored.size,
        allocated_bytes: stored.allocated_bytes,
    };
    let mut changes = store.meta.changes(id);
    changes.put_inode(ino, &InodeRecord { content, ..record });
    changes.commit().expect("commits");
    collect(&store);
    store.blobs.verify(&stored.digest).expect("it is needed");
    store.blobs.verify(&Digest::of(b"base\n")).expect("as is what its base has");
}

/// "Programs that still use it keep what they see", says `remove`.
#[test]
fn regression_a_ve_that_is_removed_under_its_users_keeps_its_blobs() {
    let place = Place::new();
    let store = store_with_templates(&place);
    create(&store, "a", &["debian", "nginx"], None).expect("makes");
    let held = volume_of(&store, "a");
    store.remove(&ve_name("a"), true).expect("removes");
    store.remove_template(&reference("nginx"), false).expect("nobody else stands on it");
    collect(&store);
    let mut content = [0; 100];
    let read = held.read(at(&held, "etc/nginx/nginx.conf"), 0, &mut content).expect("it is still there");
    assert_eq!(&content[..read], b"worker_processes 1;\n");
    // The next start finishes the removal, and then nothing needs it.
    drop((held, store));
    let store = place.open();
    assert_eq!(collect(&store).bases, 1);
    assert_whole(&store);
}

/// Every state that a crash can leave a collection in, made by hand; each must open, serve, and be collected to the end.
#[test]
fn a_collection_may_stop_anywhere() {
    type Step = fn(&Store, &BaseRecord);
    let removes_record: Step = |store, record| {
        let item = |layer: &Digest| StackItem { spec: "any@1".parse().expect("legal"), layer: *layer };
        let stack: Vec<_> = record.layers.iter().map(item).collect();
        let key = crate::store::bases::stack_key(&stack, &Rules::default());
        store.meta.delete(Table::Base, &key.to_hex()).expect("deletes");
    };
    let removes_tree: Step = |store, record| store.trees.remove(&record.base).expect("removes");
    let removes_a_blob: Step = |store, _| {
        // What only the merged base has: both templates change this file.
        let needed = store.mark().expect("marks").blobs;
        let listed: Vec<_> = store.blobs.list().expect("lists").map(|item| item.expect("there").0).collect();
        let unneeded = listed.into_iter().find(|digest| !needed.contains(digest));
        if let Some(digest) = unneeded {
            assert!(store.blobs.condemn([digest].into()).remove(&digest).expect("removes"));
        }
    };
    let steps = [removes_record, removes_tree, removes_a_blob];
    for done in 0..=steps.len() {
        let place = Place::new();
        let store = store_with_templates(&place);
        create(&store, "a", &["debian", "nginx"], None).expect("makes");
        let (_, record) = store.meta.list::<BaseRecord>(Table::Base).expect("lists").remove(0);
        store.remove(&ve_name("a"), false).expect("removes");
        for step in &steps[..done] {
            step(&store, &record);
        }
        drop(store);
        let store = place.open();
        create(&store, "b", &["debian", "nginx"], None).expect("the same stack again");
        assert_whole(&store);
        store.remove(&ve_name("b"), false).expect("removes");
        collect(&store);
        assert_whole(&store);
        assert_eq!(store.trees.list().expect("lists").len(), 2, "the layers");
        assert_eq!(collect(&store).freed_bytes, 0);
    }
}

#[test]
fn a_tree_that_cannot_be_read_stops_the_collection() {
    let place = Place::new();
    let store = store_with_templates(&place);
    import(&store, "other@1", place.source("other", &OTHER), None).expect("imports");
    let template = store.template(&reference("other")).expect("there");
    drop(store);
    let store = place.open();
    let path = store.layout.trees().join(template.digest.to_hex());
    fs::remove_file(&path).expect("removed");
    let blobs = store.info().expect("info").blobs;
    assert!(store.collect(GcRequest { dry_run: false }, &()).is_err());
    assert_eq!(store.info().expect("info").blobs, blobs);
}

#[test]
fn stray_data_files_go_and_new_ones_stay() {
    let place = Place::new();
    let store = store_with_templates(&place);
    let id = create(&store, "a", &["debian"], None).expect("makes")[0].id;
    let volume = volume_of(&store, "a");
    let chmod = SetAttr { size: Some(3), ..SetAttr::default() };
    volume.set_attr(at(&volume, "etc/motd"), chmod, Caller::ROOT).expect("truncates");
    let folder = store.layout.data().join(id.to_string());
    let named = fs::read_dir(&folder).expect("there").count();
    assert_eq!(named, 1);
    // Made now, without a record yet: it may be getting one.
    let stray = folder.join(format!("{:013x}", 4000));
    fs::write(&stray, "lost").expect("written");
    let nobodys = store.layout.data().join("00000fff");
    fs::create_dir(&nobodys).expect("made");
    fs::write(nobodys.join("0000000000001"), "lost").expect("written");
    let report = collect(&store);
    assert!(stray.exists() && !nobodys.exists());
    assert_eq!(report.files, 1);
    drop((volume, store));
    // In the next session nobody waits for it any more.
    let store = place.open();
    assert_eq!(collect(&store).files, 1);
    assert!(!stray.exists());
    assert_eq!(fs::read_dir(&folder).expect("there").count(), named);
    let volume = volume_of(&store, "a");
    assert_eq!(volume.check().expect("readable"), Vec::<String>::new());
}

/// Imports and removals of templates with the same content, VEs made and removed, and collections all the time: whatever is there at any
/// moment is whole.
#[test]
fn collections_beside_imports_and_ves_remove_nothing_that_is_needed() {
    const ROUNDS: usize = 12;
    let place = Place::new();
    let store = store_with_templates(&place);
    let (os, other) = (place.source("os", &BASE), place.source("other", &OTHER));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (store, os, other, done) = (&store, &os, &other, &done);
        let importer = |name: &'static str, source: &'static str| {
            move || {
                for _ in 0..ROUNDS {
                    let path = if source == "os" { os } else { other };
                    let template = import(store, &format!("{name}@1"), path.clone(), None).expect("imports");
                    let ves = create(store, name, &[&*format!("{name}@1")], None).expect("makes");
                    let tree = store.trees.open(&template.digest).expect("there");
                    for (digest, _) in tree.blobs() {
                        store.blobs.verify(&digest).expect("a blob of a template is there");
                    }
                    store.remove(&ves[0].name, false).expect("removes");
                    store.remove_template(&reference(name), false).expect("removes");
                }
            }
        };
        let threads = [
            scope.spawn(importer("x", "other")),
            scope.spawn(importer("y", "other")),
            scope.spawn(importer("z", "os")),
        ];
        let collector = scope.spawn(move || {
            let mut collections = 0;
            while !done.load(Ordering::SeqCst) {
                collect(store);
                collections += 1;
            }
            collections
        });
        for thread in threads {
            thread.join().expect("it ends well");
        }
        done.store(true, Ordering::SeqCst);
        assert!(collector.join().expect("it ends well") > 0);
    });
    collect(&store);
    assert_whole(&store);
    assert_eq!(store.templates().len(), 2);
}

fn verify(store: &Store, repair: Option<&Path>) -> StoreVerifyReport {
    let request = VerifyStore { repair: repair.map(Path::to_owned), ..VerifyStore::default() };
    store.verify_store(&request, Pace::Full, &()).expect("verifies")
}

/// Changes one bit in a file of the store.
fn flip(path: &Path, byte: usize) {
    let mut bytes = fs::read(path).expect("there");
    bytes[byte] ^= 1;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("root may");
    fs::write(path, bytes).expect("written");
}

fn flip_blob(store: &Store, content: &str) -> Digest {
    let digest = Digest::of(content.as_bytes());
    flip(&store.blobs.path(&digest), 2);
    digest
}

/// Each user as it is shown, of the one thing that is damaged.
fn users(report: &StoreVerifyReport) -> Vec<String> {
    let [damage] = &*report.damaged else { panic!("{report:?}") };
    damage.users.iter().map(ToString::to_string).collect()
}

#[test]
fn a_flipped_bit_is_found_everybody_named_and_repaired() {
    let place = Place::new();
    let store = store_with_templates(&place);
    create(&store, "plain", &["debian"], None).expect("makes");
    create(&store, "app", &["debian", "nginx"], None).expect("makes");
    create(&store, "own", &["debian"], None).expect("makes");
    create(&store, "moved", &["debian"], None).expect("makes");
    assert_eq!(verify(&store, None).damaged, []);
    // One VE has a copy of its own; in another the file has a record and two names, below a directory that moved.
    let own = volume_of(&store, "own");
    own.write(at(&own, "etc/hostname"), 0, b"mine", true).expect("writes");
    let moved = volume_of(&store, "moved");
    let (etc, file) = (at(&moved, "etc"), at(&moved, "etc/hostname"));
    let name = |text: &'static str| NameRef::new(text.as_bytes()).expect("legal");
    moved.link(file, etc, name("second")).expect("links");
    let replace = crate::volume::RenameMode::Replace;
    moved.rename(Ino::ROOT, name("etc"), at(&moved, "usr"), name("config"), replace).expect("renames");

    let digest = flip_blob(&store, "base\n");
    let report = verify(&store, None);
    let expected = [
        "template debian@12 /etc/hostname",
        "VE app /etc/hostname",
        "VE moved /usr/config/hostname",
        "VE moved /usr/config/second",
        "VE plain /etc/hostname",
    ];
    assert_eq!(users(&report), expected);
    assert_eq!((report.damaged[0].digest, report.damaged[0].repaired), (digest, false));
    assert_eq!(store.verify_status().expect("status").last, Some(report));

    // A source that has not the content repairs nothing; one that has it does, whatever else is in it.
    let nothing = place.source("nothing", &[("etc/hostname", "other\n")]);
    assert_eq!(verify(&store, Some(&nothing)).unrepaired(), 1);
    let blobs = store.info().expect("info").blobs;
    let source = place.source("copy", &[("somewhere/else", "base\n"), ("new", "never seen\n")]);
    let report = verify(&store, Some(&source));
    assert_eq!((report.damaged.len(), report.unrepaired()), (1, 0));
    assert_eq!(verify(&store, None).damaged, []);
    assert_eq!(store.info().expect("info").blobs, blobs, "nothing else came in");
    let mut content = [0; 10];
    let plain = volume_of(&store, "plain");
    let read = plain.read(at(&plain, "etc/hostname"), 0, &mut content).expect("reads");
    assert_eq!(&content[..read], b"base\n");
}

#[test]
fn what_is_gone_is_damage_if_somebody_needs_it() {
    let place = Place::new();
    let store = store_with_templates(&place);
    import(&store, "other@1", place.source("other", &OTHER), None).expect("imports");
    collect(&store);
    fs::remove_file(store.blobs.path(&Digest::of(b"other\n"))).expect("removed");
    assert_eq!(users(&verify(&store, None)), ["template other@1 /etc/other"]);
    let other = place.dir.path().join("other");
    assert_eq!(verify(&store, Some(&other)).unrepaired(), 0);
    // Damaged, but of no template: nobody is named.
    store.meta.delete(Table::Template, "other@1").expect("deletes");
    drop(store);
    let store = place.open();
    flip_blob(&store, "other\n");
    assert_eq!(users(&verify(&store, None)), Vec::<String>::new());
    collect(&store);
    assert_eq!(verify(&store, None).damaged, []);
}

#[test]
fn damaged_trees_are_named_and_repaired() {
    let place = Place::new();
    let store = store_with_templates(&place);
    let base = create(&store, "app", &["debian", "nginx"], None).expect("makes")[0].base;
    let os = store.template(&reference("debian")).expect("there").digest;
    drop(store);
    let tree = |digest: Digest| place.dir.path().join("store/trees").join(digest.to_hex());
    // A merged base follows from its layers, whatever the source is.
    flip(&tree(base), 300);
    let store = place.open();
    let report = verify(&store, None);
    assert_eq!(users(&report), ["VE app /"]);
    assert_eq!(report.damaged[0].what, DamagedThing::Tree);
    let nothing = place.source("nothing", &[("x", "y")]);
    assert_eq!(verify(&store, Some(&nothing)).unrepaired(), 0);
    drop(store);
    // The layer of an OS template comes back from what it was made of, or from another store.
    flip(&tree(os), 300);
    let store = place.open();
    assert_eq!(users(&verify(&store, None)), ["template debian@12 /"]);
    assert_eq!(verify(&store, Some(&place.dir.path().join("store"))).unrepaired(), 1, "it is damaged there");
    let other = Place::new();
    let elsewhere = other.open();
    import(&elsewhere, "debian@12", place.dir.path().join("os"), None).expect("imports");
    assert_eq!(elsewhere.template(&reference("debian")).expect("there").digest, os);
    let report = verify(&store, Some(&other.dir.path().join("store")));
    assert_eq!((report.damaged.len(), report.unrepaired()), (1, 0));
    assert_eq!(verify(&store, None).damaged, []);
    assert_whole(&store);
}

#[test]
fn one_check_at_a_time_and_none_of_a_relative_source() {
    let place = Place::new();
    let store = store_with_templates(&place);
    let progress =
        VerifyProgress { started: Timestamp::now(), scheduled: false, done_bytes: 0, total_bytes: 0 };
    let running = store.verifying.begin(Pace::Full, progress).expect("nobody checks it");
    let again = store.verify_store(&VerifyStore::default(), Pace::Full, &());
    assert!(matches!(again, Err(StoreError::Verifying)));
    drop(running);
    let relative = VerifyStore { repair: Some("here".into()), ..VerifyStore::default() };
    let refused = store.verify_store(&relative, Pace::Full, &());
    assert!(matches!(refused, Err(StoreError::Path { .. })));
}

/// Sizes of all files that a VE shows, each inode once, by walking all of it.
fn count_logical(volume: &Volume) -> u64 {
    let mut sizes = BTreeMap::new();
    let visit = |_: &[u8], ino: Ino, attr: &crate::types::Attr| {
        if attr.kind == FileKind::File {
            sizes.insert(ino, attr.size);
        }
        Ok::<_, crate::volume::VolumeError>(())
    };
    volume.export_source().for_each(&mut { visit }).expect("walks");
    sizes.values().sum()
}

#[test]
fn logical_sizes_are_those_of_a_walk_whatever_was_changed() {
    let place = Place::new();
    let store = place.open();
    let mut files = BASE.to_vec();
    files.extend([("deep/a/one", "1"), ("deep/a/two", "22"), ("deep/b/three", "333"), ("deep/four", "4444")]);
    import(&store, "debian@12", place.source("os", &files), None).expect("imports");
    create(&store, "v", &["debian"], None).expect("makes");
    let volume = volume_of(&store, "v");
    let name = |text: &'static str| NameRef::new(text.as_bytes()).expect("legal");
    let check = |what: &str| {
        let usage = volume.usage().expect("usage");
        assert_eq!(usage.logical_bytes, count_logical(&volume), "{what}");
    };
    let replace = crate::volume::RenameMode::Replace;
    check("nothing");
    let (deep, etc) = (at(&volume, "deep"), at(&volume, "etc"));
    volume.write(at(&volume, "deep/four"), 3, b"more than there was", true).expect("writes");
    check("copied up");
    let chmod = SetAttr { perm: Some(0o600), ..SetAttr::default() };
    volume.set_attr(at(&volume, "deep/b/three"), chmod, Caller::ROOT).expect("chmod");
    check("pinned");
    volume.link(at(&volume, "deep/a/one"), etc, name("link")).expect("links");
    check("linked");
    let motd = at(&volume, "etc/motd");
    volume.open_file(motd, false, crate::volume::Sharing::Served).expect("opens");
    volume.unlink(etc, name("motd")).expect("unlinks");
    check("removed and open");
    volume.release(motd, crate::volume::Sharing::Served);
    volume.forget(motd).expect("forgets");
    check("removed");
    // A directory is removed after one below it has moved out, and everything is forgotten.
    let (a, b) = (at(&volume, "deep/a"), at(&volume, "deep/b"));
    volume.rename(deep, name("b"), etc, name("moved"), replace).expect("renames");
    let two = at(&volume, "deep/a/two");
    volume.unlink(a, name("one")).expect("unlinks");
    volume.unlink(a, name("two")).expect("unlinks");
    volume.rmdir(deep, name("a")).expect("rmdir");
    check("a directory removed");
    for ino in [two, a] {
        volume.forget(ino).expect("forgets");
    }
    check("a directory forgotten");
    volume.unlink(deep, name("four")).expect("unlinks");
    volume.rmdir(Ino::ROOT, name("deep")).expect("rmdir");
    volume.forget(deep).expect("forgets");
    check("the directory above forgotten");
    assert_eq!(at(&volume, "etc/moved"), b);
    volume.create(Ino::ROOT, name("deep"), NewNode::new(FileKind::Dir, 0o755), Caller::ROOT).expect("mkdir");
    check("made anew");
    drop(volume);
    let volume = volume_of(&store, "v");
    assert_eq!(volume.check().expect("readable"), Vec::<String>::new());
}

/// What is called unique is what comes back.
#[test]
fn unique_is_what_a_removal_gives_back() {
    let place = Place::new();
    let store = store_with_templates(&place);
    import(&store, "other@1", place.source("other", &OTHER), None).expect("imports");
    create(&store, "plain", &["debian"], Some(2)).expect("makes");
    create(&store, "app", &["debian", "nginx"], None).expect("makes");
    store.mount(&ve_name("app"), None).expect("mounts");
    let volume = volume_of(&store, "app");
    volume.write(at(&volume, "etc/hostname"), 0, &[7; 9000], true).expect("writes");
    drop(volume);
    store.umount(&ve_name("app"), false).expect("unmounts");
    collect(&store);
    let df = store.df().expect("df");
    let ve = |name: &str| df.ves.iter().find(|ve| ve.ve == ve_name(name)).expect("listed").clone();
    let info = store.info().expect("info");
    assert_eq!((df.blob_bytes, df.tree_bytes), (info.blob_bytes, info.tree_bytes), "nothing is garbage");
    assert_eq!(df.private_bytes, info.private_bytes);
    assert_eq!(ve("plain-1").unique_bytes, 0);
    assert_eq!(ve("plain-1").logical_bytes, ve("plain-1").shared_bytes);
    let (logical, private) = (ve("app").logical_bytes, 9000);
    assert_eq!(logical - private, ve("app").shared_bytes);
    assert_eq!(logical, count_logical(&volume_of(&store, "app")));
    assert_eq!(ve("app").saved_bytes, logical.saturating_sub(ve("app").unique_bytes));

    let disk = |store: &Store| {
        collect(store);
        let info = store.info().expect("info");
        info.blob_bytes + info.tree_bytes + info.private_bytes
    };
    let before = disk(&store);
    store.remove(&ve_name("app"), false).expect("removes");
    let after = disk(&store);
    assert_eq!(before - after, ve("app").unique_bytes);
    let template = |name: &str| {
        let named = |template: &&crate::api::TemplateDf| template.template.to_string() == name;
        store.df().expect("df").templates.iter().find(named).expect("listed").unique_bytes
    };
    // The layer's own file comes back as well as its blobs.
    let (unique, tree) = (template("other@1"), store.template(&reference("other")).expect("there").digest);
    let tree_bytes = store.trees.open(&tree).expect("there").stats().tree_bytes;
    store.remove_template(&reference("other"), false).expect("removes");
    assert_eq!(after - disk(&store), unique + tree_bytes);
    let df = store.df().expect("df");
    assert_eq!(df.disk_bytes, disk(&store));
    assert_eq!(df.logical_bytes - df.saved_bytes, df.disk_bytes.min(df.logical_bytes));
}

#[test]
fn the_last_check_is_remembered_and_shown() {
    let place = Place::new();
    let store = store_with_templates(&place);
    assert_eq!(store.info().expect("info").verified, None);
    flip_blob(&store, "hello\n");
    let report = verify(&store, None);
    drop(store);
    let store = place.open();
    let status = store.verify_status().expect("status");
    assert_eq!((status.running, status.last.as_ref()), (None, Some(&report)));
    let info = store.info().expect("info");
    assert_eq!((info.verified, info.damaged), (Some(report.finished), 1));
}

#[test]
fn a_scheduled_check_gives_way() {
    let place = Place::new();
    let store = place.open();
    let content = "x".repeat(3 << 20);
    import(&store, "big@1", place.source("big", &[("file", &content), ("other", "y")]), None)
        .expect("imports");
    std::thread::scope(|scope| {
        // Slow enough to be met: at a byte a second it would take a month.
        let slow = || store.verify_store(&VerifyStore::default(), Pace::BytesPerSecond(1), &());
        let scheduled = scope.spawn(slow);
        while store.verify_status().expect("status").running.is_none() {
            std::thread::yield_now();
        }
        assert_eq!(verify(&store, None).damaged, []);
        assert!(matches!(scheduled.join().expect("it ends"), Err(StoreError::Verifying)));
    });
    assert!(store.verify_status().expect("status").last.is_some());
}

/// A check may be made to take its time: so many bytes a second on average.
#[test]
fn a_paced_check_takes_its_time() {
    let place = Place::new();
    let store = place.open();
    let content = "x".repeat(200_000);
    import(&store, "big@1", place.source("big", &[("file", &content)]), None).expect("imports");
    let started = std::time::Instant::now();
    let pace = Pace::BytesPerSecond(1_000_000);
    store.verify_store(&VerifyStore::default(), pace, &()).expect("verifies");
    assert!(started.elapsed() >= std::time::Duration::from_millis(200), "{:?}", started.elapsed());
}
