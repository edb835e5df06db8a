//! Giving data files up for blobs: what is given up shows as before, and what is in use is not given up.

use std::os::unix::fs::FileExt;

use super::*;

/// Half a page of zeros is no hole, a page is: these have two pages of data with one of zeros between them.
fn pages() -> Vec<u8> {
    let mut bytes = vec![7; 3 * 4096 - 100];
    bytes[4096..2 * 4096].fill(0);
    bytes
}

impl Scene<'_> {
    fn made(&self, path: &str, bytes: &[u8]) -> Ino {
        let ino = self.volume.create(Ino::ROOT, name(path), FILE, USER).expect("create").ino;
        self.volume.write(ino, 0, bytes, true).expect("write");
        ino
    }

    fn give_up(&self, ino: Ino) -> std::result::Result<GivenUp, Unfit> {
        give_up(&self.store.blobs, &self.volume, ino, || {}).expect("nothing fails")
    }

    /// All that can be seen without reading, but for `st_blocks`.
    fn shown(&self, ino: Ino) -> (Attr, BTreeMap<Vec<u8>, Vec<u8>>) {
        let attr = self.volume.attr(ino).expect("attr");
        (Attr { blocks: 0, ..attr }, xattrs(&self.volume, ino))
    }
}

#[test]
fn what_is_given_up_shows_as_before() {
    let store = Store::new();
    let mut scene = Scene::new(&store, store.base());
    let volume = &scene.volume;
    let made = scene.made("new", &pages());
    volume.link(made, Ino::ROOT, name("link")).expect("link");
    volume.set_xattr(made, b"user.x", b"1", XattrMode::Any, Caller::ROOT).expect("xattr");
    let old = |secs| Some(SetTime::At(Timestamp::new(secs, 123_456_789)));
    let set = SetAttr { perm: Some(0o4711), mtime: old(-5), atime: old(5), ..SetAttr::default() };
    volume.set_attr(made, set, Caller::ROOT).expect("set");
    // One whose ctime the host has: written by the kernel, the daemon's records do not know.
    let written = scene.made("written", b"before");
    let open = volume.open_file(written, true, Sharing::Passthrough).expect("open");
    volume.backing_file(&open).expect("content").write_all_at(&[9; 5000], 0).expect("write");
    drop(open);
    volume.release(written, Sharing::Passthrough);
    // And a file of the base with content of its own.
    let hosts = scene.at("etc/hosts");
    volume.write(hosts, 0, b"::1", true).expect("write");

    let inos = [made, written, hosts];
    let layer = scene.applied().digest();
    // The content first: reading it moves the atime.
    let contents = inos.map(|ino| content(volume, ino));
    let set = SetAttr { atime: old(7), ..SetAttr::default() };
    volume.set_attr(written, set, Caller::ROOT).expect("set");
    let before = inos.map(|ino| scene.shown(ino));
    let changed = scene.changed();
    assert_eq!(store.data_files(scene.ve), 3);
    let given: Vec<_> = inos.iter().map(|ino| scene.give_up(*ino).expect("nobody uses it")).collect();
    assert!(given[0].blocks_changed, "the page of zeros was written");
    assert!(!given[1].blocks_changed && !given[2].blocks_changed);
    assert_eq!(store.data_files(scene.ve), 0);
    for _ in 0..2 {
        assert_eq!(inos.map(|ino| scene.shown(ino)), before);
        assert_eq!(inos.map(|ino| content(&scene.volume, ino)), contents);
        assert_eq!(scene.volume.check().expect("readable"), Vec::<String>::new());
        scene.reopen();
    }
    assert_eq!((scene.at("new"), scene.at("link"), scene.at("etc/hosts")), (made, made, hosts));
    assert_eq!(scene.changed(), changed);
    assert_eq!(scene.applied().digest(), layer, "a template made of the VE is the same");
    assert_eq!(scene.volume.attr(made).expect("attr").blocks, 16);
    assert_eq!(scene.give_up(made), Err(Unfit::Changed), "it has no data file any more");
}

#[test]
fn who_writes_later_gets_a_file_of_his_own() {
    let store = Store::new();
    let (one, two) = (Scene::new(&store, store.base()), Scene::new(&store, store.base()));
    let inos = [&one, &two].map(|scene| {
        let ino = scene.made("same", &pages());
        scene.give_up(ino).expect("nobody uses it");
        ino
    });
    one.volume.write(inos[0], 1, b"mine", true).expect("write");
    assert_eq!(&content(&one.volume, inos[0])[..6], b"\x07mine\x07");
    assert_eq!(content(&two.volume, inos[1]), pages());
    assert_eq!((store.data_files(one.ve), store.data_files(two.ve)), (1, 0));
    assert_eq!(one.at("same"), inos[0]);
    // And can be given up again, for another blob.
    one.give_up(inos[0]).expect("nobody uses it");
    assert_eq!(&content(&one.volume, inos[0])[..6], b"\x07mine\x07");
    assert_eq!(store.data_files(one.ve), 0);
}

#[test]
fn what_is_in_use_is_left_alone() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let (volume, blobs) = (&scene.volume, &store.blobs);
    let ino = scene.made("file", &pages());
    for (write, sharing) in
        [(false, Sharing::Passthrough), (true, Sharing::Passthrough), (false, Sharing::Served)]
    {
        let open = volume.open_file(ino, write, sharing).expect("open");
        assert_eq!(scene.give_up(ino), Err(Unfit::Open));
        volume.release(ino, sharing);
        // The volume knows of nobody any more; but a memory map, or a kernel that has not closed it yet, has the host's file.
        assert_eq!(scene.give_up(ino), Err(Unfit::Open));
        drop(open);
    }
    // Opened, or being truncated without a handle, only after it was read.
    let after = |meanwhile: &dyn Fn()| give_up(blobs, volume, ino, meanwhile).expect("nothing fails").err();
    let open = std::cell::RefCell::new(None);
    let opening = || *open.borrow_mut() = volume.open_file(ino, false, Sharing::Passthrough).ok();
    assert_eq!(after(&opening), Some(Unfit::Open));
    volume.release(ino, Sharing::Passthrough);
    assert_eq!(after(&|| {}), Some(Unfit::Open), "mapped");
    open.borrow_mut().take();
    let truncation = std::cell::RefCell::new(None);
    assert_eq!(after(&|| *truncation.borrow_mut() = Some(volume.changing(ino))), Some(Unfit::Open));
    truncation.borrow_mut().take();
    let adopted = || volume.adopt(ino, 1, 0).expect("adopt");
    assert_eq!(after(&adopted), Some(Unfit::Open), "open since before a restart");
    volume.release(ino, Sharing::Passthrough);
    assert_eq!(content(volume, ino), pages());
    scene.give_up(ino).expect("nobody uses it any more");
}

#[test]
fn what_changes_meanwhile_is_left_alone() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let (volume, blobs) = (&scene.volume, &store.blobs);
    let ino = scene.made("file", &pages());
    let after = |meanwhile: &dyn Fn()| give_up(blobs, volume, ino, meanwhile).expect("nothing fails").err();
    // Within the same size, and with the times put back.
    let attr = volume.attr(ino).expect("attr");
    let rewritten = || {
        volume.write(ino, 0, b"x", true).expect("write");
        let set = SetAttr { mtime: Some(SetTime::At(attr.mtime)), ..SetAttr::default() };
        volume.set_attr(ino, set, Caller::ROOT).expect("set");
    };
    assert_eq!(after(&rewritten), Some(Unfit::Changed));
    let resized = |size| {
        let set = SetAttr { size: Some(size), ..SetAttr::default() };
        volume.set_attr(ino, set, Caller::ROOT).expect("truncate");
    };
    assert_eq!(after(&|| resized(9000)), Some(Unfit::Changed));
    assert_eq!(after(&|| resized(9000)), Some(Unfit::Changed), "the times moved");
    let again = || {
        scene.give_up(ino).expect("nobody uses it");
        volume.write(ino, 0, b"y", true).expect("write");
    };
    assert_eq!(after(&again), Some(Unfit::Changed), "it has another data file");
    assert_eq!(after(&|| volume.unlink(Ino::ROOT, name("file")).expect("unlink")), Some(Unfit::Changed));
    assert_eq!(&content(volume, ino)[..2], b"y\x07");
    volume.forget(ino).expect("forget");
    assert_eq!(store.data_files(scene.ve), 0);
}

#[test]
fn what_is_not_worth_it_is_left_alone() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let volume = &scene.volume;
    let look = |ino, rule: &QuietRule| volume.quiet_file(ino, rule).expect("look");
    let unfit = |ino, rule: &QuietRule| look(ino, rule).map(std::result::Result::err);
    let (file, empty) = (scene.made("file", &pages()), scene.made("empty", b""));
    assert_eq!(look(scene.at("etc/hosts"), &ANY), None, "it is a blob");
    assert_eq!(look(scene.at("dir"), &ANY), None);
    assert_eq!(unfit(empty, &ANY), Some(Some(Unfit::Small)));
    let least = |min_bytes| QuietRule { min_bytes, ..ANY };
    assert_eq!(unfit(file, &least(12_288)), Some(None));
    assert_eq!(unfit(file, &least(12_289)), Some(Some(Unfit::Small)));
    let holes = scene.made("holes", b"x");
    let set = SetAttr { size: Some(1 << 20), ..SetAttr::default() };
    volume.set_attr(holes, set, Caller::ROOT).expect("extend");
    assert_eq!(unfit(holes, &ANY), Some(Some(Unfit::Sparse)));
    // A file is not quiet because its mtime is old, which programs set as they like.
    let set = SetAttr { mtime: Some(SetTime::At(Timestamp::default())), ..SetAttr::default() };
    volume.set_attr(file, set, Caller::ROOT).expect("set");
    assert_eq!(unfit(file, &QuietRule::new(0, std::time::Duration::ZERO)), Some(Some(Unfit::Recent)));

    // Pages have everything once, whatever their size.
    for count in 1..6 {
        let (mut from, mut files, mut unfit) = (None, Vec::new(), 0);
        loop {
            let page = volume.quiet_files(from, count, &ANY).expect("look");
            files.extend(page.files.iter().map(|file| file.ino));
            unfit += page.unfit.len();
            from = page.next;
            if from.is_none() {
                break;
            }
        }
        assert_eq!((files, unfit), (vec![file], 2), "{count}");
    }
}

/// Sequences that were not found by chance: a truncation by path, which has no handle, beside many attempts.
#[test]
fn truncations_by_path_are_never_lost() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let (volume, blobs) = (&scene.volume, &store.blobs);
    let ino = scene.made("file", &pages());
    let (done, given) = (std::sync::atomic::AtomicBool::new(false), AtomicU32::new(0));
    let last = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let attempt = give_up(blobs, volume, ino, || {}).expect("nothing fails");
                given.fetch_add(u32::from(attempt.is_ok()), Ordering::Relaxed);
            }
        });
        // On a busy machine some attempts more, until one has come in between.
        let few = |round: &u64| *round < 400 || (given.load(Ordering::Relaxed) == 0 && *round < 40_000);
        let mut last = 0;
        for round in (0..).take_while(few) {
            let size = 4096 + (round % 400) * 8;
            last = size;
            let set = SetAttr { size: Some(size), ..SetAttr::default() };
            assert_eq!(volume.set_attr(ino, set, Caller::ROOT).expect("truncate").size, size);
            assert_eq!(volume.attr(ino).expect("attr").size, size);
            if round % 4 == 0 {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
        done.store(true, Ordering::Relaxed);
        last
    });
    assert!(given.into_inner() > 0, "nothing was tried");
    assert_eq!(volume.attr(ino).expect("attr").size, last);
}
