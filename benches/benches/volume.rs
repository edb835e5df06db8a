//! Operations of a volume, without FUSE: lookup, readdir, create, copy-up.
#![allow(missing_docs, reason = "criterion's macros make public functions")]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use vzfs::types::{FileKind, Ino, NameRef};
use vzfs::volume::{Caller, NewNode, Sharing};
use vzfs_benches::micro::{Bench, FILES_PER_FOLDER, FOLDERS, LARGE};

fn name(text: &str) -> NameRef<'_> {
    NameRef::new(text.as_bytes()).expect("a legal name")
}

fn lookup(criterion: &mut Criterion) {
    let bench = Bench::new();
    let volume = &bench.volume;
    let folder = volume.lookup(Ino::ROOT, name("folder7")).expect("it is there").ino;
    criterion.bench_function("lookup of a base file", |b| {
        b.iter(|| volume.lookup(folder, black_box(name("file42"))))
    });
    criterion.bench_function("lookup of a missing name", |b| {
        b.iter(|| volume.lookup(folder, black_box(name("absent"))))
    });
    let file = volume.lookup(folder, name("file42")).expect("it is there").ino;
    criterion.bench_function("attributes of a base file", |b| b.iter(|| volume.attr(black_box(file))));
    volume
        .create(folder, name("private"), NewNode::new(FileKind::File, 0o644), Caller::ROOT)
        .expect("created");
    criterion.bench_function("lookup of a private file", |b| {
        b.iter(|| volume.lookup(folder, black_box(name("private"))))
    });
}

fn readdir(criterion: &mut Criterion) {
    let bench = Bench::new();
    let volume = &bench.volume;
    let folder = volume.lookup(Ino::ROOT, name("folder7")).expect("it is there").ino;
    let count = || {
        let mut entries = 0;
        volume.read_dir(folder, 0, |_| {
            entries += 1;
            true
        })?;
        Ok::<usize, vzfs::volume::VolumeError>(entries)
    };
    assert_eq!(count().expect("readable"), FILES_PER_FOLDER + 2);
    criterion.bench_function("readdir of 100 base files", |b| b.iter(count));
    volume
        .create(folder, name("private"), NewNode::new(FileKind::File, 0o644), Caller::ROOT)
        .expect("created");
    criterion.bench_function("readdir of 100 base files and a private one", |b| b.iter(count));
}

fn create(criterion: &mut Criterion) {
    let bench = Bench::new();
    let volume = &bench.volume;
    let folder = volume.lookup(Ino::ROOT, name("folder7")).expect("it is there").ino;
    let mut number = 0_u64;
    criterion.bench_function("create and unlink", |b| {
        b.iter(|| {
            number += 1;
            let text = format!("new{number}");
            let new = NewNode::new(FileKind::File, 0o644);
            let ino = volume.create(folder, name(&text), new, Caller::ROOT).expect("created").ino;
            volume.unlink(folder, name(&text)).expect("removed");
            volume.forget(ino).expect("forgotten");
        });
    });
}

fn copy_up(criterion: &mut Criterion) {
    let bench = Bench::new();
    let volume = &bench.volume;
    let mut next = 0;
    let mut small = || {
        let (folder, file) = (next / FILES_PER_FOLDER % FOLDERS, next % FILES_PER_FOLDER);
        next += 1;
        assert!(next <= FOLDERS * FILES_PER_FOLDER, "every file can be copied up once");
        let folder = volume.lookup(Ino::ROOT, name(&format!("folder{folder}"))).expect("it is there").ino;
        volume.lookup(folder, name(&format!("file{file}"))).expect("it is there").ino
    };
    let write = |ino| {
        volume.open_file(ino, true, Sharing::Served).expect("opened");
        volume.release(ino, Sharing::Served);
    };
    let mut group = criterion.benchmark_group("copy-up");
    // Each file can be copied up once, so the number of rounds is bounded: criterion must not choose it.
    group.sample_size(10).warm_up_time(std::time::Duration::from_millis(50));
    group.measurement_time(std::time::Duration::from_millis(400));
    group.bench_function("of a small file", |b| b.iter_batched(&mut small, write, BatchSize::PerIteration));
    group.finish();
    let large = || {
        let bench = Bench::new();
        let ino = bench.volume.lookup(Ino::ROOT, name(LARGE)).expect("it is there").ino;
        (bench, ino)
    };
    let mut group = criterion.benchmark_group("copy-up of 16 MiB");
    group.sample_size(10).warm_up_time(std::time::Duration::from_millis(1));
    group.measurement_time(std::time::Duration::from_millis(100));
    group.bench_function("one", |b| {
        b.iter_batched(
            large,
            |(bench, ino)| {
                bench.volume.open_file(ino, true, Sharing::Served).expect("opened");
                bench
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, lookup, readdir, create, copy_up);
criterion_main!(benches);
