//! Equal private files become one blob, and stay what they were: whichever VEs are looked at, whatever is collected, whenever it ends.

use super::care::{assert_whole, at, collect, volume_of};
use super::*;
use crate::api::{DedupReport, DedupRequest};
use crate::store::{Pace, Rebase};
use crate::types::Digest;
use crate::volume::{Caller, MIN_QUIET, NewNode};

/// A file of two pages, one for each byte.
fn pages(byte: u8) -> Vec<u8> {
    vec![byte; 8192]
}

fn write(store: &Store, ve: &str, path: &str, bytes: &[u8]) {
    let volume = volume_of(store, ve);
    let new = NewNode::new(FileKind::File, 0o644);
    let name = NameRef::new(path.as_bytes()).expect("legal");
    let made = volume.create(Ino::ROOT, name, new, Caller::ROOT);
    let ino = made.map_or_else(|_| at(&volume, path), |attr| attr.ino);
    volume.write(ino, 0, bytes, true).expect("writes");
    // Nobody writes to an unmounted VE but tests.
    store.slot(&ve_name(ve)).expect("there").shown.write().holdings = None;
}

fn read(store: &Store, ve: &str, path: &str) -> Vec<u8> {
    let volume = volume_of(store, ve);
    let mut bytes = vec![0; 1 << 20];
    let read = volume.read(at(&volume, path), 0, &mut bytes).expect("reads");
    bytes.truncate(read);
    bytes
}

/// Files must not have changed in this time to be taken.
fn wait() {
    std::thread::sleep(MIN_QUIET + std::time::Duration::from_millis(100));
}

fn request(ves: &[&str]) -> DedupRequest {
    let ves = ves.iter().map(|name| ve_name(name)).collect();
    DedupRequest { ves, quiet_secs: Some(0), ..DedupRequest::default() }
}

fn dedup(store: &Store, ves: &[&str]) -> DedupReport {
    store.dedup(&request(ves), Pace::Full, &()).expect("comes to its end")
}

/// Three VEs that have two files alike, one of their own, one that is in a template, and one too small.
fn store_with_files(place: &Place) -> Store {
    let store = place.open();
    let template = String::from_utf8(pages(b't')).expect("text");
    let files = [("etc/hostname", "base\n"), ("shared", template.as_str())];
    import(&store, "debian@12", place.source("os", &files), None).expect("OS");
    for (number, ve) in (b'1'..).zip(["a", "b", "c"]) {
        create(&store, ve, &["debian"], None).expect("makes");
        write(&store, ve, "one", &pages(b'x'));
        write(&store, ve, "two", &pages(b'y'));
        write(&store, ve, "own", &pages(number));
        write(&store, ve, "template", &pages(b't'));
    }
    store
}

fn assert_files(store: &Store) {
    for (number, ve) in (b'1'..).zip(["a", "b", "c"]) {
        for (path, byte) in [("one", b'x'), ("two", b'y'), ("own", number), ("template", b't')] {
            assert_eq!(read(store, ve, path), pages(byte), "{ve} {path}");
        }
        assert_eq!(volume_of(store, ve).check().expect("readable"), Vec::<String>::new());
    }
    assert_whole(store);
}

#[test]
fn equal_files_become_one_and_others_stay() {
    let place = Place::new();
    let store = store_with_files(&place);
    let recent = dedup(&store, &[]);
    assert_eq!((recent.files, recent.skipped.recent, recent.shared_files), (12, 12, 0));
    wait();
    let dry = store.dedup(&DedupRequest { dry_run: true, ..request(&[]) }, Pace::Full, &()).expect("looks");
    assert_eq!((dry.ves, dry.files, dry.hashed_files, dry.hashed_bytes), (3, 12, 12, 12 * 8192));
    assert_eq!((dry.shared_files, dry.freed_bytes), (9, 9 * 8192));
    assert_eq!((dry.new_blobs, dry.new_blob_bytes, dry.saved_bytes), (2, 2 * 8192, 7 * 8192));
    let before = store.df().expect("df");
    assert_eq!(before.private_bytes, 12 * 8192, "a dry run changes nothing");
    let done = dedup(&store, &[]);
    assert_eq!((done.hashed_files, done.hashed_bytes), (0, 0), "the dry run has read them");
    assert_eq!((done.shared_files, done.freed_bytes), (dry.shared_files, dry.freed_bytes));
    assert_eq!((done.new_blobs, done.new_blob_bytes, done.saved_bytes), (2, 2 * 8192, 7 * 8192));
    assert_files(&store);

    // What is counted is what is there.
    let after = store.df().expect("df");
    assert_eq!(after.private_bytes, 3 * 8192);
    assert_eq!(before.disk_bytes - after.disk_bytes, done.saved_bytes);
    assert_eq!(before.logical_bytes, after.logical_bytes);
    for (was, now) in before.ves.iter().zip(&after.ves) {
        assert_eq!((was.unique_bytes, now.unique_bytes), (4 * 8192, 8192), "{}", now.ve);
        assert_eq!(was.logical_bytes, now.logical_bytes);
    }
    assert_eq!(store.info().expect("info").private_bytes, after.private_bytes);

    // Nothing is left to do, and nothing is read for it.
    let again = dedup(&store, &[]);
    assert_eq!((again.files, again.hashed_files, again.shared_files), (3, 0, 0));
    assert_eq!(collect(&store).freed_bytes, 0);
    // One that is written to leaves the others as they are, and is read again when it is quiet.
    write(&store, "b", "one", b"z");
    assert_eq!((&read(&store, "b", "one")[..2], &read(&store, "a", "one")[..2]), (&b"zx"[..], &b"xx"[..]));
    wait();
    let again = dedup(&store, &[]);
    assert_eq!((again.files, again.hashed_files, again.shared_files), (4, 1, 0));
    assert_eq!(store.dedup_status().expect("status").last, Some(again));
    drop(store);
    let store = place.open();
    assert_eq!(dedup(&store, &[]).hashed_files, 0, "it is known after a restart");
    write(&store, "b", "one", b"x");
    assert_files(&store);
}

#[test]
fn only_the_ves_that_are_named_are_changed() {
    let place = Place::new();
    let store = store_with_files(&place);
    wait();
    let first = dedup(&store, &["a"]);
    assert_eq!((first.ves, first.files, first.shared_files, first.new_blobs), (1, 4, 1, 0), "{first:?}");
    let second = dedup(&store, &["b"]);
    assert_eq!((second.shared_files, second.new_blobs), (1, 0), "the other's are not touched");
    let both = dedup(&store, &["b", "a"]);
    assert_eq!((both.hashed_files, both.shared_files, both.new_blobs), (0, 4, 2));
    let third = dedup(&store, &["c"]);
    assert_eq!((third.shared_files, third.new_blobs), (3, 0), "all of it is shared already");
    assert_files(&store);
    assert_eq!(store.dedup_status().expect("status").last, None, "that was no search of all");
    let unknown = store.dedup(&request(&["nobody"]), Pace::Full, &());
    assert!(matches!(unknown, Err(StoreError::UnknownVe(_))));
    // What a VE had is not looked for any more when it is gone.
    store.remove(&ve_name("c"), false).expect("removes");
    assert_eq!(dedup(&store, &[]).shared_files, 0);
    assert_eq!(collect(&store).blobs, 0, "the others need them");
    store.remove(&ve_name("b"), false).expect("removes");
    store.remove(&ve_name("a"), false).expect("removes");
    assert_eq!(collect(&store).blobs, 2);
}

#[test]
fn limits_are_kept_and_one_search_runs_at_a_time() {
    let place = Place::new();
    let store = store_with_files(&place);
    wait();
    let large = DedupRequest { min_bytes: Some(8193), ..request(&[]) };
    let report = store.dedup(&large, Pace::Full, &()).expect("looks");
    assert_eq!((report.skipped.small, report.shared_files), (12, 0));
    let quiet = DedupRequest { quiet_secs: None, ..request(&[]) };
    assert_eq!(store.dedup(&quiet, Pace::Full, &()).expect("looks").skipped.recent, 12, "an hour");
    // A slow one gives way to one that somebody waits for, and what it has read is known.
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| store.dedup(&request(&[]), Pace::BytesPerSecond(16 << 10), &()));
        while store.dedup_status().expect("status").running.is_none_or(|running| running.hashed_bytes == 0) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let report = dedup(&store, &[]);
        assert!(report.hashed_files < 12 && report.shared_files == 9, "{report:?}");
        assert!(matches!(slow.join().expect("it ends"), Err(StoreError::Deduplicating)));
    });
    assert_files(&store);
}

/// A crash after the content was published, and one after the records were exchanged: nothing is lost, and what is left over is collected.
#[test]
fn a_crash_leaves_garbage_only() {
    let place = Place::new();
    let store = store_with_files(&place);
    let batch = store.blobs.batch();
    let stored = batch.add_bytes(&pages(b'x')).expect("adds");
    batch.commit().expect("commits");
    drop(store);
    let store = place.open();
    assert_files(&store);
    assert_eq!(collect(&store).blobs, 1);
    // Its search goes on where it was.
    wait();
    let rule = crate::volume::QuietRule { min_bytes: 0, before: crate::types::Timestamp::now() };
    let volume = volume_of(&store, "a");
    let file =
        volume.quiet_file(at(&volume, "one"), &rule).expect("looks").expect("has data").expect("quiet");
    let batch = store.blobs.batch();
    batch.add_bytes(&pages(b'x')).expect("adds");
    batch.commit().expect("commits");
    volume.give_up(&file, stored.digest, stored.allocated_bytes).expect("works").expect("quiet");
    drop(volume);
    drop(store);
    let store = place.open();
    assert_files(&store);
    let collected = collect(&store);
    assert_eq!((collected.blobs, collected.files, collected.file_bytes), (0, 1, 8192));
    assert_files(&store);
    assert_eq!(dedup(&store, &[]).shared_files, 8);
    assert_files(&store);
}

/// The kernel keeps attributes until it is told; `st_blocks` is the one that may change.
#[test]
fn the_kernel_is_told_where_blocks_were_zero() {
    let place = Place::new();
    let store = store_with_files(&place);
    let mut zeros = pages(b'z');
    zeros.extend([0; 8192]);
    for ve in ["a", "b"] {
        write(&store, ve, "zeros", &zeros);
        store.mount(&ve_name(ve), None).expect("mounts");
    }
    wait();
    assert_eq!(dedup(&store, &["a", "b"]).shared_files, 8);
    for ve in ["a", "b"] {
        let volume = volume_of(&store, ve);
        let ino = at(&volume, "zeros");
        assert_eq!(volume.attr(ino).expect("attr").blocks, 16);
        let slot = store.slot(&ve_name(ve)).expect("there");
        let told = slot.live.lock().mount.as_ref().expect("mounted").known();
        assert_eq!(told, [ino]);
    }
}

#[test]
fn searches_collections_and_work_go_together() {
    let place = Place::new();
    let store = store_with_files(&place);
    let done = AtomicBool::new(false);
    let shared = std::thread::scope(|scope| {
        let collector = scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                collect(&store);
            }
        });
        let work = |ve: &'static str| {
            let (store, done) = (&store, &done);
            move || {
                // The same in both VEs, so that there is always something to share; each is quiet once a round.
                for round in 0..3_u8 {
                    for file in 0..20_u8 {
                        write(store, ve, &format!("file-{file}"), &pages(b'A' + file + round));
                    }
                    std::thread::sleep(MIN_QUIET + std::time::Duration::from_millis(500));
                    for file in 0..20_u8 {
                        let bytes = read(store, ve, &format!("file-{file}"));
                        assert_eq!(bytes, pages(b'A' + file + round), "{ve} {file}");
                    }
                    assert!(!done.load(Ordering::SeqCst));
                }
            }
        };
        let workers = [scope.spawn(work("a")), scope.spawn(work("b"))];
        let mut shared = 0;
        while workers.iter().any(|worker| !worker.is_finished()) {
            shared += dedup(&store, &[]).shared_files;
        }
        for worker in workers {
            worker.join().expect("it ends well");
        }
        done.store(true, Ordering::SeqCst);
        collector.join().expect("it ends well");
        shared
    });
    assert!(shared > 20, "{shared} files were shared");
    assert_files(&store);
    for (ve, file) in [("a", 0), ("b", 19)] {
        assert_eq!(read(&store, ve, &format!("file-{file}")), pages(b'A' + file + 2));
    }
}

/// A file of the template whose content the VE changed, and then has like another VE: a move keeps it.
#[test]
fn what_was_shared_is_the_ves_own_for_a_move() {
    let place = Place::new();
    let store = store_with_files(&place);
    for ve in ["a", "b"] {
        write(&store, ve, "shared", &pages(b'o'));
    }
    wait();
    dedup(&store, &[]);
    let digest = Digest::of(&pages(b'o'));
    store.blobs.verify(&digest).expect("it is a blob");
    let other = String::from_utf8(pages(b'n')).expect("text");
    let files = [("etc/hostname", "base\n"), ("shared", other.as_str())];
    import(&store, "debian@13", place.source("next", &files), None).expect("OS");
    store.commit(&ve_name("b"), &commit_request("app@1"), &()).expect("commits");
    assert!(store.verify(&reference("app"), &()).expect("verifies").damaged.is_empty());
    let diff = store.diff_ve(&ve_name("b")).expect("compares");
    assert!(diff.iter().any(|change| change.path == "shared" && change.kind == ChangeKind::Changed));
    let to = store.next_stack(&ve_name("a"), &[]).expect("there is a newer one");
    store.rebase(&ve_name("a"), &to, Rebase::default()).expect("moves");
    assert_eq!(read(&store, "a", "shared"), pages(b'o'), "it is the VE's own");
    assert_files(&store);
}
