//! Files: copied up, open, removed, relabelled.

use super::*;

#[test]
fn number_and_hard_links_survive_copy_up() {
    let store = Store::new();
    let mut scene = Scene::new(&store, store.base());
    let ino = scene.at("pw");
    scene.volume.write(ino, 0, b"toor", true).expect("write");
    for _ in 0..2 {
        assert_eq!((scene.at("pw"), scene.at("etc/passwd")), (ino, ino));
        assert_eq!(scene.volume.attr(ino).expect("attr").nlink, 2);
        assert_eq!(content(&scene.volume, ino), b"toor:x:0:0");
        scene.reopen();
    }
}

#[test]
fn open_and_removed_files_work_until_they_are_forgotten() {
    let store = Store::new();
    let mut scene = Scene::new(&store, store.base());
    let etc = scene.at("etc");
    let made = scene.volume.create(etc, name("new"), FILE, USER).expect("create").ino;
    for ino in [made, scene.at("etc/hosts")] {
        scene.volume.open_file(ino, true, Sharing::Served).expect("open");
    }
    let hosts = scene.at("etc/hosts");
    for (ino, file) in [(made, "new"), (hosts, "hosts")] {
        scene.volume.unlink(etc, name(file)).expect("unlink");
        scene.volume.write(ino, 0, b"still", true).expect("write");
        scene.volume.forget(ino).expect("forget with a handle does nothing");
        assert_eq!(&content(&scene.volume, ino)[..5], b"still");
        assert_eq!(scene.volume.attr(ino).expect("attr").nlink, 0);
        assert_eq!(plain(scene.volume.link(ino, etc, name("again"))).err().as_deref(), Some("NotFound"));
    }
    assert_eq!(store.data_files(scene.ve), 2);
    scene.volume.release(made, Sharing::Served);
    scene.volume.forget(made).expect("forget");
    assert!(matches!(scene.volume.attr(made), Err(VolumeError::NotFound)));
    assert_eq!(store.data_files(scene.ve), 1);
    scene.reopen();
    scene.volume.free_orphans(|ino| ino == hosts).expect("free");
    assert_eq!(store.data_files(scene.ve), 1, "the kernel still knows it");
    scene.volume.free_orphans(|_| false).expect("free");
    assert_eq!(store.data_files(scene.ve), 0);
    assert!(!scene.volume.is_orphan(hosts).expect("look"));
    assert_eq!(scene.volume.resolve(b"etc/hosts").expect("resolve"), None);
}

#[test]
fn passthrough_relabels_what_is_open_on_its_blob() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let old = scene.at("pw");
    let handle = scene.volume.open_file(old, false, Sharing::Passthrough).expect("open");
    let again = scene.volume.open_file(old, true, Sharing::Passthrough);
    assert_eq!(plain(again).err().as_deref(), Some("Stale"));
    let new = scene.at("pw");
    assert_ne!(new, old);
    assert_eq!(scene.at("etc/passwd"), new);
    let Relabelled { inodes, mut names, .. } = scene.volume.take_relabelled();
    assert_eq!(inodes, [old]);
    names.sort_unstable();
    let mut expected = vec![(Ino::ROOT, name("pw").to_name()), (scene.at("etc"), name("passwd").to_name())];
    expected.sort_unstable();
    assert_eq!(names, expected);
    assert_eq!(scene.volume.take_relabelled(), Relabelled::default());

    scene.volume.open_file(new, true, Sharing::Passthrough).expect("open the new inode");
    scene.volume.write(new, 0, b"NEW", true).expect("write");
    assert_eq!(content(&scene.volume, new), b"NEWt:x:0:0");
    assert_eq!(content(&scene.volume, old), b"root:x:0:0");
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut &*scene.volume.backing_file(&handle).expect("content"), &mut bytes)
        .expect("read");
    assert_eq!(bytes, b"root:x:0:0");
    assert_eq!(scene.volume.attr(new).expect("attr").nlink, 2);
    scene.volume.release(old, Sharing::Passthrough);
    scene.volume.forget(old).expect("forget");
    assert!(!scene.volume.is_orphan(old).expect("look"));
    assert_eq!(scene.at("pw"), new);
}

#[test]
fn a_lost_data_file_breaks_only_its_file() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let (lost, other) = (scene.at("etc/hosts"), scene.at("dir/sub/file"));
    for ino in [lost, other] {
        scene.volume.open_file(ino, true, Sharing::Served).expect("open");
        scene.volume.release(ino, Sharing::Served);
    }
    let before = scene.volume.usage().expect("usage");
    let folder = store.data().join(scene.ve.to_string());
    let mut files: Vec<_> =
        std::fs::read_dir(&folder).expect("listed").flatten().map(|file| file.path()).collect();
    files.sort_unstable();
    std::fs::remove_file(&files[0]).expect("removed");
    assert_eq!(scene.volume.attr(lost).expect("or nobody could remove it").size, 0);
    assert!(matches!(scene.volume.read(lost, 0, &mut [0; 9]), Err(VolumeError::Io { .. })));
    assert_eq!(content(&scene.volume, other), b"deep");
    let after = scene.store.open(scene.ve, &scene.base).usage().expect("the VE is listed all the same");
    assert_eq!(after.private_inodes, before.private_inodes);
    assert_eq!(after.private_logical_bytes, before.private_logical_bytes - 9);
    assert_eq!(scene.volume.check().expect("check").len(), 1, "and the check finds it");
    assert_eq!(scene.volume.damage().expect("look"), [Damage::Content(b"etc/hosts".to_vec())]);
    scene.volume.unlink(scene.at("etc"), name("hosts")).expect("unlink");
    scene.volume.forget(lost).expect("forget");
    assert_eq!(scene.volume.damage().expect("look"), []);
}

#[test]
fn a_removed_file_goes_when_that_is_durable_and_a_crash_forgets_nothing() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let folder = store.data().join(scene.ve.to_string());
    let files = || std::fs::read_dir(&folder).map_or(0, Iterator::count);
    let attr = scene.volume.create(Ino::ROOT, name("new"), NewNode::new(FileKind::File, 0o644), Caller::ROOT);
    let ino = attr.expect("create").ino;
    scene.volume.unlink(Ino::ROOT, name("new")).expect("unlink");
    scene.volume.forget(ino).expect("forget");
    assert_eq!(files(), 1, "the record may come back");
    // What the next daemon finds.
    let next = PrivateData::open(&store.data(), Arc::clone(&store.meta)).expect("removals");
    assert_eq!(next.settle().expect("removed"), 1);
    assert_eq!(files(), 0);
    assert_eq!(store.meta.removals().expect("removals"), []);
    assert_eq!(store.private.settle().expect("it is gone already"), 1);
}

#[test]
fn what_was_forgotten_is_freed_together_and_is_no_longer_counted_until_then() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let (ve, volume) = (scene.ve, Arc::new(scene.volume));
    let files = || std::fs::read_dir(store.data().join(ve.to_string())).map_or(0, Iterator::count);
    let remove = |number: usize| {
        let file = Name::new(format!("new-{number}").as_bytes()).expect("a legal name");
        let made = volume.create(Ino::ROOT, file.as_ref(), FILE, USER).expect("create").ino;
        volume.unlink(Ino::ROOT, file.as_ref()).expect("unlink");
        made
    };
    let before = volume.usage().expect("usage");
    let removed: Vec<Ino> = (0..10).map(remove).collect();
    volume.open_file(removed[9], false, Sharing::Served).expect("open");
    removed.iter().for_each(|ino| volume.forget_soon(*ino).expect("forget"));
    volume.forget_soon(volume.resolve(b"etc/hosts").expect("resolve").expect("it is there")).expect("forget");
    assert!(removed.iter().all(|ino| volume.is_orphan(*ino).expect("look")), "none by itself");
    let usage = volume.usage().expect("usage");
    assert_eq!(usage.private_inodes, before.private_inodes + 1, "the root");
    assert_eq!(store.private.settle().expect("removed"), 9);
    assert_eq!(files(), 1, "one is open");
    volume.release(removed[9], Sharing::Served);
    volume.forget_soon(removed[9]).expect("forget");
    assert_eq!(store.private.settle().expect("removed"), 1);
    assert!(volume.resolve(b"etc/hosts").expect("resolve").is_some(), "it has a name");
    // Many do not wait for anybody.
    let removed: Vec<Ino> = (0..100).map(remove).collect();
    removed.iter().for_each(|ino| volume.forget_soon(*ino).expect("forget"));
    let orphans = removed.iter().filter(|ino| volume.is_orphan(**ino).expect("look")).count();
    assert!((1..100).contains(&orphans), "{orphans} of 100 are left");
    // A volume that ends with some leaves them to the next.
    drop(volume);
    assert_eq!(store.private.settle().expect("removed"), 100 - orphans);
    assert_eq!(files(), orphans);
    store.open(ve, &scene.base).free_orphans(|_| false).expect("free");
    assert_eq!(store.data_files(ve), 0);
}

#[test]
fn served_mode_changes_the_file_under_the_inode() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let ino = scene.at("pw");
    scene.volume.open_file(ino, false, Sharing::Served).expect("open");
    scene.volume.open_file(ino, true, Sharing::Served).expect("open");
    scene.volume.write(ino, 0, b"NEW", true).expect("write");
    assert_eq!(scene.at("pw"), ino);
    assert_eq!(content(&scene.volume, ino), b"NEWt:x:0:0");
    assert_eq!(scene.volume.take_relabelled(), Relabelled::default());
}

#[test]
fn two_volumes_with_one_base_are_apart() {
    let store = Store::new();
    let base = store.base();
    let (one, two) = (Scene::new(&store, Arc::clone(&base)), Scene::new(&store, base));
    let (etc, hosts) = (one.at("etc"), one.at("etc/hosts"));
    one.volume.write(hosts, 0, b"one", true).expect("write");
    one.volume.create(etc, name("new"), FILE, USER).expect("create");
    one.volume.unlink(Ino::ROOT, name("sym")).expect("unlink");
    assert_eq!(two.changed(), []);
    assert_eq!(content(&two.volume, hosts), b"127.0.0.1");
    assert_eq!(two.volume.resolve(b"etc/new").expect("resolve"), None);
    two.volume.write(hosts, 0, b"two", true).expect("write");
    assert_eq!(
        (content(&one.volume, hosts), content(&two.volume, hosts)),
        (b"one.0.0.1".into(), b"two.0.0.1".into())
    );
    assert_eq!(two.volume.usage().expect("usage").private_inodes, 1);
}

/// A truncation through a deleted file's inode has no name to relabel.
#[test]
fn regression_an_orphan_on_its_blob_is_not_relabelled() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let ino = scene.at("etc/hosts");
    scene.volume.open_file(ino, false, Sharing::Passthrough).expect("open");
    scene.volume.unlink(scene.at("etc"), name("hosts")).expect("unlink");
    let again = scene.volume.open_file(ino, true, Sharing::Passthrough);
    assert_eq!(plain(again).err().as_deref(), Some("Stale"));
    assert_eq!(store.meta.orphans(scene.ve).expect("list"), [ino]);
    assert_eq!(store.data_files(scene.ve), 0);
}

#[test]
fn what_was_removed_and_forgotten_does_not_come_back_by_its_number() {
    let store = Store::new();
    let mut scene = Scene::new(&store, store.base());
    let (su, passwd) = (scene.at("bin/su"), scene.at("pw"));
    let (top, sub, deep) = (scene.at("dir"), scene.at("dir/sub"), scene.at("dir/sub/file"));
    let volume = &scene.volume;
    volume.unlink(scene.at("bin"), name("su")).expect("unlink");
    volume.unlink(sub, name("file")).expect("unlink");
    volume.rmdir(top, name("sub")).expect("rmdir");
    volume.rmdir(Ino::ROOT, name("dir")).expect("rmdir");
    volume.open_file(passwd, false, Sharing::Passthrough).expect("open");
    let written = volume.open_file(passwd, true, Sharing::Passthrough);
    assert_eq!(plain(written).err().as_deref(), Some("Stale"), "its names go to a new inode");
    scene.reopen();
    scene.volume.free_orphans(|_| false).expect("free");
    let before = scene.changed();

    for ino in [su, passwd, deep] {
        let write = scene.volume.write(ino, 0, b"again", true);
        assert_eq!(plain(write).err().as_deref(), Some("Stale"), "{ino}");
        let set = SetAttr { perm: Some(0o777), ..SetAttr::default() };
        assert_eq!(plain(scene.volume.set_attr(ino, set, USER)).err().as_deref(), Some("Stale"), "{ino}");
        let link = scene.volume.link(ino, Ino::ROOT, name("link"));
        assert_eq!(plain(link).err().as_deref(), Some("Stale"), "{ino}");
    }
    for dir in [top, sub] {
        let made = scene.volume.create(dir, name("new"), FILE, USER);
        assert_eq!(plain(made).err().as_deref(), Some("Stale"), "{dir}");
    }
    assert_eq!(scene.changed(), before);
    assert_eq!(scene.volume.check().expect("check"), Vec::<String>::new());
}
