//! Import of a folder with 10,000 files: the first time, and again when every blob is there.
#![allow(missing_docs, reason = "criterion's macros make public functions")]

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use vzfs::blobs::BlobStore;
use vzfs_benches::micro::{import, make_source, scratch};

fn imports(criterion: &mut Criterion) {
    let scratch = scratch();
    let source = scratch.path().join("source");
    make_source(&source);
    let new_store = || {
        let dir = tempfile::tempdir_in(scratch.path()).expect("writable");
        BlobStore::create(dir.path()).expect("a blob store can be made");
        let blobs = BlobStore::open(dir.path()).expect("it can be opened");
        (dir, blobs)
    };
    let mut group = criterion.benchmark_group("import of 10,000 files");
    group.sample_size(10);
    group.bench_function("first", |b| {
        b.iter_batched(
            new_store,
            |(dir, blobs)| {
                import(&blobs, &source);
                (dir, blobs)
            },
            BatchSize::PerIteration,
        );
    });
    let (_dir, blobs) = new_store();
    import(&blobs, &source);
    group.bench_function("again", |b| b.iter(|| import(&blobs, &source)));
    group.finish();
}

criterion_group!(benches, imports);
criterion_main!(benches);
