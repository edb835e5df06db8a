//! Attributes, times and open files.

use super::*;

const CAPABILITY: &[u8] = b"security.capability";

#[test]
fn writes_by_others_than_root_take_setuid_away() {
    super::rights::check_that_setuid_goes(false, USER.keeps_privileges());
}

/// The kernel writes to passthrough files by itself; before it does so to one with privileges, it sends a change of nothing.
#[test]
fn a_change_of_nothing_takes_privileges_away_as_a_write_does() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let su = scene.at("bin/su");
    scene.volume.set_attr(su, SetAttr::default(), Caller::ROOT).expect("nothing");
    assert_eq!(scene.volume.attr(su).expect("attr").perm, 0o4755);
    assert_eq!(scene.volume.set_attr(su, SetAttr::default(), USER).expect("nothing").perm, 0o755);
}

/// Or anybody could take setuid from `su`.
#[test]
fn chown_of_nothing_takes_away_only_what_the_owner_may() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let su = scene.at("bin/su");
    let refused = Err("NotPermitted".to_owned());
    assert_eq!(plain(scene.volume.chown_nothing(su, USER)).map(|attr| attr.perm), refused);
    assert_eq!(scene.volume.attr(su).expect("attr").perm, 0o4755);
    let before = scene.volume.chown_nothing(su, Caller::ROOT).expect("chown");
    assert_eq!(before.perm, 0o755);
    let after = scene.volume.chown_nothing(su, USER).expect("there is nothing to take");
    assert!(after.ctime > before.ctime);
    scene.volume.set_xattr(su, CAPABILITY, b"x", XattrMode::Any, Caller::ROOT).expect("set");
    scene.volume.chown_nothing(su, USER).expect("capabilities go whoever does it");
    assert_eq!(plain(scene.volume.xattr(su, CAPABILITY)), Err("NoData".to_owned()));
}

#[test]
fn writes_through_a_map_take_nothing_away() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let su = scene.at("bin/su");
    scene.volume.set_xattr(su, CAPABILITY, b"x", XattrMode::Any, Caller::ROOT).expect("set");
    scene.volume.write_back(su, 0, b"new").expect("write");
    assert!(content(&scene.volume, su).starts_with(b"new"));
    assert_eq!(scene.volume.attr(su).expect("attr").perm, 0o4755);
    assert_eq!(plain(scene.volume.xattr(su, CAPABILITY)), Ok(b"x".to_vec()));
}

#[test]
fn an_empty_capability_is_nothing_to_lose() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let su = scene.at("bin/su");
    scene.volume.set_xattr(su, CAPABILITY, b"", XattrMode::Any, Caller::ROOT).expect("set");
    scene.volume.write(su, 0, b"x", USER).expect("write");
    assert_eq!(plain(scene.volume.xattr(su, CAPABILITY)), Ok(Vec::new()));
    assert_eq!(scene.volume.attr(su).expect("attr").perm, 0o755);
}

#[test]
fn a_directory_keeps_its_capabilities() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let etc = scene.at("etc");
    scene.volume.set_xattr(etc, CAPABILITY, b"x", XattrMode::Any, Caller::ROOT).expect("set");
    let set = SetAttr { uid: Some(7), ..SetAttr::default() };
    scene.volume.set_attr(etc, set, Caller::ROOT).expect("chown");
    assert_eq!(plain(scene.volume.xattr(etc, CAPABILITY)), Ok(b"x".to_vec()));
}

/// The kernel stamps the last tick's time on a file that nobody has looked at, and the volume's clock is not behind it.
#[test]
fn every_change_moves_ctime() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let hosts = scene.at("etc/hosts");
    let open = scene.volume.open_file(hosts, true, Sharing::Passthrough).expect("open");
    let mut last = scene.volume.attr(hosts).expect("attr").ctime;
    for number in 0..500_u64 {
        match number % 4 {
            0 => std::os::unix::fs::FileExt::write_all_at(
                &*scene.volume.backing_file(&open).expect("content"),
                b"x",
                number,
            )
            .expect("write"),
            1 => {
                let perm = SetAttr { perm: Some(0o644), ..SetAttr::default() };
                scene.volume.set_attr(hosts, perm, Caller::ROOT).expect("chmod");
            }
            2 => {
                scene.volume.link(hosts, Ino::ROOT, name("link")).expect("link");
            }
            _ => scene.volume.unlink(Ino::ROOT, name("link")).expect("unlink"),
        }
        let ctime = scene.volume.attr(hosts).expect("attr").ctime;
        assert!(ctime > last, "{number}: {ctime:?} after {last:?}");
        last = ctime;
    }
}

#[test]
fn chown_takes_privileges_from_all_but_directories() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let set = SetAttr { uid: Some(7), ..SetAttr::default() };
    for (kind, after) in [(FileKind::File, 0o755), (FileKind::Fifo, 0o755), (FileKind::Dir, 0o6755)] {
        let made = scene.volume.create(Ino::ROOT, name("new"), NewNode::new(kind, 0o6755), Caller::ROOT);
        let ino = made.expect("create").ino;
        assert_eq!(scene.volume.set_attr(ino, set, Caller::ROOT).expect("chown").perm, after, "{kind:?}");
        let removed = if kind == FileKind::Dir { Volume::rmdir } else { Volume::unlink };
        removed(&scene.volume, Ino::ROOT, name("new")).expect("remove");
    }
}

#[test]
fn attributes_have_their_namespaces() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let hosts = scene.at("etc/hosts");
    let set =
        |name: &[u8]| plain(scene.volume.set_xattr(hosts, name, b"value", XattrMode::Any, Caller::ROOT));
    for known in [&b"user.a"[..], b"trusted.a", b"security.a"] {
        assert_eq!(set(known), Ok(()));
    }
    for unknown in [&b"a"[..], b"other.a", b"system.a", b"users.a", b""] {
        assert_eq!(set(unknown), Err("Unsupported".to_owned()));
        assert_eq!(plain(scene.volume.xattr(hosts, unknown)), Err("Unsupported".to_owned()));
        assert_eq!(plain(scene.volume.remove_xattr(hosts, unknown)), Err("Unsupported".to_owned()));
    }
    assert_eq!(set(b"user."), Err("Invalid".to_owned()));
    let names = scene.volume.xattr_names(hosts).expect("list");
    assert_eq!(names, [&b"security.a"[..], b"trusted.a", b"user.a"]);
}

#[test]
fn times_of_a_private_file_are_those_of_its_data_file() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let hosts = scene.at("etc/hosts");
    let at = |secs| Some(SetTime::At(Timestamp { secs, nanos: 5 }));
    let times = || {
        let attr = scene.volume.attr(hosts).expect("attr");
        (attr.atime.secs, attr.mtime.secs)
    };
    scene
        .volume
        .set_attr(hosts, SetAttr { atime: at(10), mtime: at(20), ..SetAttr::default() }, USER)
        .expect("set");
    scene.volume.open_file(hosts, true, Sharing::Passthrough).expect("copy-up");
    assert_eq!(times(), (10, 20));
    scene.volume.set_attr(hosts, SetAttr { atime: at(30), ..SetAttr::default() }, USER).expect("set");
    assert_eq!(times(), (30, 20));
    scene.volume.set_attr(hosts, SetAttr { mtime: at(40), ..SetAttr::default() }, USER).expect("set");
    assert_eq!(times(), (30, 40));
}

/// `make` rebuilds what is older than its source: whatever happens later must not have an earlier time.
#[test]
fn regression_a_directory_made_before_a_write_is_not_newer() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let hosts = scene.at("etc/hosts");
    let open = scene.volume.open_file(hosts, true, Sharing::Passthrough).expect("open");
    for number in 0..500 {
        let dir = NewNode::new(FileKind::Dir, 0o755);
        let dir = scene.volume.create(Ino::ROOT, name(&number.to_string()), dir, USER).expect("mkdir");
        // As the kernel does in passthrough mode.
        std::os::unix::fs::FileExt::write_all_at(
            &*scene.volume.backing_file(&open).expect("content"),
            b"x",
            0,
        )
        .expect("write");
        let written = scene.volume.attr(hosts).expect("attr").mtime;
        assert!(written >= dir.mtime, "{number}: {:?} before {:?}", written, dir.mtime);
    }
}

/// Descriptors are the daemon's scarcest resource: what the kernel serves needs none, and what the daemon serves needs few.
#[test]
fn open_files_hold_few_descriptors() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let descriptors = || std::fs::read_dir("/proc/self/fd").expect("proc").count();
    let before = descriptors();
    let inos: Vec<Ino> = (0..1500)
        .map(|number| {
            scene.volume.create(Ino::ROOT, name(&number.to_string()), FILE, USER).expect("create").ino
        })
        .collect();
    for sharing in [Sharing::Passthrough, Sharing::Served] {
        for ino in &inos {
            scene.volume.open_file(*ino, true, sharing).expect("open");
        }
        // Other tests run in this process at the same time.
        let held = if sharing == Sharing::Served { 1024 } else { 0 };
        assert!(descriptors() < before + held + 300, "{sharing:?}: {} of them", descriptors() - before);
        for ino in &inos {
            scene.volume.write(*ino, 0, b"x", true).expect("write");
            scene.volume.release(*ino, sharing);
        }
    }
    assert!(descriptors() < before + 300);
}

/// ext4 moves both times, and a template's file needs no copy for that.
#[test]
fn a_truncation_to_the_same_size_moves_mtime() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let hosts = scene.at("etc/hosts");
    let before = scene.volume.attr(hosts).expect("attr");
    let set = SetAttr { size: Some(before.size), ..SetAttr::default() };
    for private in [false, true] {
        if private {
            scene.volume.open_file(hosts, true, Sharing::Passthrough).expect("copy-up");
        }
        let old = SetAttr { mtime: Some(SetTime::At(Timestamp { secs: 5, nanos: 5 })), ..SetAttr::default() };
        let old = scene.volume.set_attr(hosts, old, Caller::ROOT).expect("utimensat");
        let after = scene.volume.set_attr(hosts, set, Caller::ROOT).expect("truncate");
        assert!(after.mtime.secs > 5 && after.ctime >= old.ctime, "{after:?}");
        assert_eq!((after.ino, after.size), (hosts, before.size));
    }
}

#[test]
fn an_attribute_set_to_what_it_is_moves_no_ctime() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let hosts = scene.at("etc/hosts");
    let ctime = || scene.volume.attr(hosts).expect("attr").ctime;
    let set = |name: &[u8], value: &[u8], mode| {
        plain(scene.volume.set_xattr(hosts, name, value, mode, Caller::ROOT))
    };
    let acl = |other: u16| {
        let entries = [(1_u16, 6_u16), (4, 4), (0x20, other)].map(|(tag, perm)| {
            [&tag.to_le_bytes()[..], &perm.to_le_bytes(), &u32::MAX.to_le_bytes()].concat()
        });
        [&2_u32.to_le_bytes()[..], &entries.concat()].concat()
    };
    let mode = SetAttr { perm: Some(0o644), ..SetAttr::default() };
    scene.volume.set_attr(hosts, mode, Caller::ROOT).expect("chmod");
    assert_eq!(set(b"user.x", b"y", XattrMode::Any), Ok(()));
    let before = ctime();
    assert_eq!(set(b"user.x", b"y", XattrMode::Any), Ok(()));
    assert_eq!(set(crate::acl::ACCESS, &acl(4), XattrMode::Any), Ok(()), "what the mode says already");
    assert_eq!(set(b"user.x", b"z", XattrMode::Neither), Err("Exists".to_owned()));
    assert_eq!(set(b"user.z", b"z", XattrMode::Neither), Err("NoData".to_owned()));
    assert_eq!(ctime(), before);
    assert_eq!(set(crate::acl::ACCESS, &acl(0), XattrMode::Any), Ok(()));
    let after = ctime();
    assert!(after > before);
    assert_eq!(set(b"user.x", b"z", XattrMode::Any), Ok(()));
    assert!(ctime() > after);
}
