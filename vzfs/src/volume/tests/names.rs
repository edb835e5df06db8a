//! Directories: listed, deep, damaged; how many names there may be.

use super::*;

#[test]
fn listing_goes_on_while_entries_come_and_go() {
    let store = Store::new();
    let mut scene = Scene::new(&store, store.base());
    let etc = scene.at("etc");
    let names: Vec<String> = (0..60).map(|i| format!("f{i}")).collect();
    for file in &names {
        scene.volume.create(etc, name(file), FILE, USER).expect("create");
    }
    let (mut seen, mut cookie, mut round) = (Vec::new(), 0, 0);
    loop {
        let (mut got, from) = (0, cookie);
        let emit = |entry: DirEntry<'_>| {
            if got == 5 {
                return false;
            }
            got += 1;
            cookie = entry.cookie;
            seen.push(String::from_utf8_lossy(entry.name).into_owned());
            true
        };
        scene.volume.read_dir(etc, from, emit).expect("read");
        if got == 0 {
            break;
        }
        // Numbers from 40 up go, others come; the base's and those below 40 stay.
        if round < 20 {
            scene.volume.unlink(etc, name(&names[40 + round])).expect("unlink");
        }
        scene.volume.create(etc, name(&format!("g{round}")), FILE, USER).expect("create");
        scene.reopen();
        round += 1;
    }
    for file in names[..40].iter().map(String::as_str).chain([".", "..", "passwd", "hosts"]) {
        assert_eq!(seen.iter().filter(|name| *name == file).count(), 1, "{file}");
    }
    let all = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), all, "nothing is seen twice");
}

#[test]
fn a_file_has_as_many_names_as_on_ext4_and_a_directory_more() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let volume = &scene.volume;
    let (passwd, dir) = (scene.at("pw"), scene.at("dir"));
    let many = |prefix: &str, number: u32| format!("{prefix}{number}");
    for number in 2..MAX_LINKS {
        volume.link(passwd, dir, name(&many("link", number))).expect("link");
    }
    assert_eq!(plain(volume.link(passwd, dir, name("sub"))).err().as_deref(), Some("Exists"));
    assert_eq!(plain(volume.link(passwd, dir, name("more"))).err().as_deref(), Some("TooManyLinks"));
    assert_eq!(volume.attr(passwd).expect("attr").nlink, MAX_LINKS);
    volume.unlink(dir, name("link2")).expect("unlink");
    assert_eq!(volume.link(passwd, dir, name("more")).expect("link").nlink, MAX_LINKS);
    for number in 0..MAX_LINKS {
        let new = NewNode::new(FileKind::Dir, 0o755);
        volume.create(Ino::ROOT, name(&many("dir", number)), new, Caller::ROOT).expect("mkdir");
    }
    // Its own two, bin, dir and etc.
    assert_eq!(volume.attr(Ino::ROOT).expect("attr").nlink, MAX_LINKS + 5);
}

/// The kernel sends the mode as it likes; only permission bits are kept.
#[test]
fn regression_a_new_file_has_permission_bits_only() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let new = NewNode { umask: 0o022, ..NewNode::new(FileKind::Dir, 0xffff) };
    let made = scene.volume.create(Ino::ROOT, name("new"), new, Caller::ROOT).expect("create");
    assert_eq!(made.perm, 0o7755);
}

/// Makes directories inside each other, each of which is called `d`.
fn nest(volume: &Volume, levels: usize) -> Ino {
    (0..levels).fold(Ino::ROOT, |dir, _| {
        volume.create(dir, name("d"), NewNode::new(FileKind::Dir, 0o755), USER).expect("mkdir").ino
    })
}

/// With a small stack, as recursion would use a frame a level.
fn on_a_small_stack(work: impl FnOnce() + Send) {
    const STACK_BYTES: usize = 64 << 10;
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work);
        thread.expect("a thread").join().expect("it ends well");
    });
}

#[test]
fn regression_deep_directories_do_not_overflow_the_stack() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    nest(&scene.volume, 2000);
    on_a_small_stack(|| assert_eq!(scene.volume.changes().expect("changes").len(), 2000));
    let (mut paths, base_paths) = (0, scene.base.walk().count());
    on_a_small_stack(|| {
        let visit = |_: &[u8], _: Ino, _: &Attr| {
            paths += 1;
            Ok::<_, VolumeError>(())
        };
        scene.volume.export_source().for_each(&mut { visit }).expect("walk");
    });
    assert_eq!(paths, base_paths + 2000);
    // The layer becomes a base; there, all of it is deleted.
    let deep = Scene::new(&store, scene.applied());
    deep.volume.rename(Ino::ROOT, name("d"), Ino::ROOT, name("e"), RenameMode::Replace).expect("rename");
    on_a_small_stack(|| assert_eq!(deep.volume.changes().expect("changes").len(), 4000));
}

#[test]
fn regression_paths_beyond_what_templates_hold_are_refused() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let deepest = nest(&scene.volume, 2049);
    assert_eq!(plain(scene.volume.changes()).err().as_deref(), Some("PathTooLong"));
    let walked = scene.volume.export_source().for_each(&mut |_, _, _| Ok::<_, VolumeError>(()));
    assert_eq!(plain(walked).err().as_deref(), Some("PathTooLong"));
    // The VE itself works on.
    scene.volume.create(deepest, name("file"), FILE, USER).expect("create");
}

/// No operation makes such records, but a damaged database may hold them.
#[test]
fn regression_directories_in_a_circle_are_damage() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let (dir, sub) = (scene.at("dir"), scene.at("dir/sub"));
    let chmod = SetAttr { perm: Some(0o700), ..SetAttr::default() };
    for ino in [dir, sub] {
        scene.volume.set_attr(ino, chmod, Caller::ROOT).expect("chmod");
    }
    let mut changes = store.meta.changes(scene.ve);
    changes.put_entry(sub, name("circle"), EntryRecord::Node(dir, FileKind::Dir));
    let record = store.meta.inode(scene.ve, dir).expect("read").expect("pinned");
    changes.put_inode(dir, &InodeRecord { parent: sub.get(), ..record });
    changes.commit().expect("commit");
    assert_eq!(plain(scene.volume.changes()).err().as_deref(), Some("Damaged"));
    let moved = scene.volume.rename(Ino::ROOT, name("bin"), sub, name("bin"), RenameMode::Replace);
    assert_eq!(plain(moved).err().as_deref(), Some("Damaged"));
    let broken = scene.volume.check().expect("readable");
    assert!(broken.iter().any(|what| what.contains("not below the root")), "{broken:?}");
}
