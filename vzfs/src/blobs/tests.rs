use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use super::*;

fn scratch() -> tempfile::TempDir {
    let parent = std::env::var_os("CARGO_TARGET_TMPDIR").unwrap_or_else(|| "/var/tmp".into());
    tempfile::tempdir_in(parent).expect("scratch folder")
}

fn new_store() -> (tempfile::TempDir, BlobStore) {
    let dir = scratch();
    BlobStore::create(dir.path()).expect("create");
    let store = BlobStore::open(dir.path()).expect("open");
    (dir, store)
}

fn staged(dir: &tempfile::TempDir) -> usize {
    std::fs::read_dir(dir.path().join("tmp")).expect("staging").count()
}

fn remove(store: &BlobStore, digest: Digest) -> bool {
    store.condemn([digest].into()).remove(&digest).expect("remove")
}

/// The two orders in which a sweep and a batch can come upon one blob.
#[test]
fn what_a_batch_comes_upon_is_not_swept() {
    let (_dir, store) = new_store();
    let batch = store.batch();
    let [first, second, third] =
        [b"first", b"other", b"third"].map(|bytes| batch.add_bytes(bytes).expect("add").digest);
    batch.commit().expect("commit");
    let condemned = store.condemn([first, second].into());
    let batch = store.batch();
    assert!(!batch.add_bytes(b"first").expect("add").new, "it is still there");
    assert!(!condemned.remove(&first).expect("remove"), "the batch relies on it");
    assert!(condemned.remove(&second).expect("remove"));
    assert!(batch.add_bytes(b"other").expect("add").new, "it has to be stored again");
    assert!(!condemned.remove(&second).expect("remove"), "it is not the blob that was condemned");
    assert!(!condemned.remove(&third).expect("remove"), "it was never condemned");
    batch.commit().expect("commit");
    for digest in [first, second, third] {
        store.verify(&digest).expect("there");
    }
    // A list that is gone condemns nothing.
    drop(condemned);
    let condemned = store.condemn([].into());
    assert!(!condemned.remove(&first).expect("remove"));
}

#[test]
fn bytes_come_back_and_equal_ones_are_kept_once() {
    let (dir, store) = new_store();
    let batch = store.batch();
    let first = batch.add_bytes(b"hello").expect("add");
    let again = batch.add_reader(&b"hello"[..]).expect("add");
    let empty = batch.add_bytes(b"").expect("add");
    assert!(first.new && !again.new && empty.new);
    assert_eq!((first.digest, first.size, first.allocated_bytes), (Digest::of(b"hello"), 5, 4096));
    assert_eq!((empty.size, empty.allocated_bytes), (0, 0));
    assert!(!store.contains(&first.digest).expect("contains"), "visible before commit");
    let stats = batch.commit().expect("commit");
    assert_eq!(stats, BatchStats { new_blobs: 2, new_bytes: 5, reused_blobs: 1, reused_bytes: 5 });
    assert_eq!(staged(&dir), 0);

    let mut content = String::new();
    store.open_blob(&first.digest).expect("open").read_to_string(&mut content).expect("read");
    assert_eq!(content, "hello");
    assert_eq!(store.path(&first.digest).metadata().expect("stat").permissions().mode() & 0o777, 0o444);
    let mut listed: Vec<_> = store.list().expect("list").map(|blob| blob.expect("blob")).collect();
    listed.sort_unstable();
    let mut expected = vec![(first.digest, 5), (empty.digest, 0)];
    expected.sort_unstable();
    assert_eq!(listed, expected);

    let batch = store.batch();
    assert!(!batch.add_bytes(b"hello").expect("add").new);
    assert_eq!(batch.commit().expect("commit").new_blobs, 0);
    assert!(remove(&store, first.digest));
    assert!(!remove(&store, first.digest), "it is gone");
    assert!(matches!(store.open_blob(&first.digest), Err(BlobError::Missing { .. })));
}

#[test]
fn zero_blocks_become_holes_in_every_way_in() {
    let (_dir, store) = new_store();
    for size in [0, 1, 4095, 4096, 8192, 100_000, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (3 << 20) + 77] {
        let mut content = vec![0_u8; size];
        let mut blocks = std::collections::BTreeSet::new();
        for at in [5000, 70_000, 1_500_000, 2_097_151] {
            if at < size {
                content[at] = 7;
                blocks.insert(at / 4096);
            }
        }
        let mut file = tempfile::tempfile_in("/var/tmp").expect("file");
        for at in content.iter().enumerate().filter(|(_, byte)| **byte != 0).map(|(at, _)| at) {
            file.write_all_at(&[7], at as u64).expect("write");
        }
        file.set_len(size as u64).expect("size");
        file.flush().expect("flush");

        let batch = store.batch();
        let by_file = batch.add_file(&file).expect("file");
        let by_reader = batch.add_reader(&content[..]).expect("reader");
        let by_bytes = batch.add_bytes(&content).expect("bytes");
        assert!(!by_reader.new && !by_bytes.new);
        assert_eq!(by_file.digest, Digest::of(&content), "{size}");
        assert_eq!(by_file.allocated_bytes, blocks.len() as u64 * 4096, "{size}");
        assert_eq!((by_file.digest, by_file.allocated_bytes), (by_reader.digest, by_reader.allocated_bytes));
        assert_eq!((by_file.digest, by_file.allocated_bytes), (by_bytes.digest, by_bytes.allocated_bytes));
        batch.commit().expect("commit");
        assert_eq!(store.verify(&by_file.digest).expect("verify"), size as u64);
        let on_disk = store.path(&by_file.digest).metadata().expect("stat");
        assert_eq!(on_disk.len(), size as u64);
        assert!(on_disk.blocks() * 512 <= by_file.allocated_bytes, "{size}: {} blocks", on_disk.blocks());
        assert!(remove(&store, by_file.digest));
    }
}

/// A hole at the end of streamed content that is longer than the buffer.
#[test]
fn long_reader_with_trailing_hole() {
    let (_dir, store) = new_store();
    let batch = store.batch();
    let content = std::io::repeat(1).take(3 << 20).chain(std::io::repeat(0).take((2 << 20) + 5));
    let stored = batch.add_reader(content).expect("add");
    assert_eq!((stored.size, stored.allocated_bytes), ((5 << 20) + 5, 3 << 20));
    batch.commit().expect("commit");
    assert_eq!(store.verify(&stored.digest).expect("verify"), stored.size);
}

#[test]
fn dropped_and_failed_batches_leave_nothing() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("torn"))
        }
    }
    let (dir, store) = new_store();
    let batch = store.batch();
    batch.add_bytes(b"kept nowhere").expect("add");
    assert_eq!(staged(&dir), 1);
    let error = batch.add_reader(std::io::repeat(9).take(2 << 20).chain(Failing)).expect_err("reader fails");
    assert!(matches!(error, BlobError::Content(_)), "{error}");
    assert_eq!(staged(&dir), 1);
    drop(batch);
    assert_eq!(staged(&dir), 0);
    assert_eq!(store.list().expect("list").count(), 0);
}

#[test]
fn open_empties_staging_after_a_crash() {
    let (dir, store) = new_store();
    let batch = store.batch();
    let digest = batch.add_bytes(b"lost").expect("add").digest;
    std::mem::forget(batch);
    drop(store);
    assert_eq!(staged(&dir), 1);
    let store = BlobStore::open(dir.path()).expect("open");
    assert_eq!(staged(&dir), 0);
    assert!(!store.contains(&digest).expect("contains"));
}

#[test]
fn concurrent_threads_and_batches_store_equal_content_once() {
    let (dir, store) = new_store();
    let batches = [store.batch(), store.batch()];
    std::thread::scope(|scope| {
        for batch in &batches {
            for _ in 0..2 {
                scope.spawn(move || {
                    for number in 0..200_u32 {
                        batch.add_bytes(&(number % 100).to_le_bytes()).expect("add");
                    }
                });
            }
        }
    });
    let [first, second] = batches;
    let (first, second) = (first.commit().expect("commit"), second.commit().expect("commit"));
    assert_eq!((first.new_blobs, second.new_blobs), (100, 0));
    assert_eq!(first.new_blobs + first.reused_blobs, 400);
    assert_eq!(second.reused_blobs, 400);
    assert_eq!(store.list().expect("list").count(), 100);
    assert_eq!(staged(&dir), 0);
}

#[test]
fn damage_is_found() {
    let (_dir, store) = new_store();
    let batch = store.batch();
    let digest = batch.add_bytes(b"precious").expect("add").digest;
    batch.commit().expect("commit");
    std::fs::write(store.path(&digest), b"precioux").expect("root writes past the mode");
    let error = store.verify(&digest).expect_err("damaged");
    assert!(
        matches!(error, BlobError::Damaged { actual, .. } if actual == Digest::of(b"precioux")),
        "{error}"
    );
    assert!(matches!(store.verify(&Digest::of(b"other")), Err(BlobError::Missing { .. })));
}

/// Design, facts: a passthrough open uses the caller's flags, so the mount itself has to refuse.
#[test]
fn blobs_cannot_be_reopened_for_writing() {
    use std::os::fd::AsRawFd;
    let (_dir, store) = new_store();
    if !store.is_protected() {
        return;
    }
    let batch = store.batch();
    let digest = batch.add_bytes(b"shared").expect("add").digest;
    batch.commit().expect("commit");
    let blob = store.open_blob(&digest).expect("open");
    let again = format!("/proc/self/fd/{}", blob.as_raw_fd());
    let error = File::options().write(true).open(again).expect_err("read-only mount");
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::ROFS.raw_os_error()));
}

#[test]
fn content_that_is_read_is_compared_with_its_name() {
    let (_dir, store) = new_store();
    let batch = store.batch();
    let stored = batch.add_bytes(b"content").expect("add");
    batch.commit().expect("commit");
    assert_eq!(store.read(&stored.digest, stored.size).expect("whole"), b"content");
    let path = store.path(&stored.digest);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("chmod");
    for damage in [&b"damaged"[..], b"short", b"content and more"] {
        std::fs::write(&path, damage).expect("write");
        let read = store.read(&stored.digest, stored.size);
        assert!(matches!(read, Err(BlobError::Damaged { .. })), "{}", damage.escape_ascii());
    }
    std::fs::remove_file(&path).expect("remove");
    assert!(matches!(store.read(&stored.digest, stored.size), Err(BlobError::Missing { .. })));
}

/// A repairing batch takes what it was told and nothing else, and replaces what is there.
#[test]
fn a_repairing_batch_replaces_what_it_is_told() {
    let (_dir, store) = new_store();
    let batch = store.batch();
    let stored = batch.add_bytes(b"content").expect("add");
    batch.commit().expect("commit");
    let path = store.path(&stored.digest);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("chmod");
    std::fs::write(&path, b"damage").expect("write");
    let reader = store.open_blob(&stored.digest).expect("open");
    assert!(matches!(store.verify(&stored.digest), Err(BlobError::Damaged { .. })));

    let batch = store.repairing_batch([stored.digest].into());
    assert!(!batch.add_bytes(b"something else").expect("add").new);
    assert!(batch.add_reader(&b"content"[..]).expect("add").new);
    assert!(!batch.add_bytes(b"content").expect("add").new);
    batch.commit().expect("commit");
    assert_eq!(store.verify(&stored.digest).expect("whole"), 7);
    assert_eq!(store.list().expect("list").count(), 1);
    let mut old = String::new();
    (&reader).read_to_string(&mut old).expect("read");
    assert_eq!(old, "damage", "whoever has it open keeps it");
}

#[test]
fn verifying_reads_every_byte_once() {
    let (_dir, store) = new_store();
    for size in [0, 1, 4095, 4096, 256 << 10, (256 << 10) + 1, (1 << 20) + 4097] {
        let batch = store.batch();
        let stored = batch.add_bytes(&vec![7; size]).expect("add");
        batch.commit().expect("commit");
        let mut read = 0;
        assert_eq!(
            store.verify_reading(&stored.digest, &mut |bytes| read += bytes).expect("whole"),
            size as u64
        );
        assert_eq!(read, size as u64);
    }
}
