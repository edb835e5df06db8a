//! What a VE has changed, as a list and as a layer.

use super::*;

#[test]
fn changes_are_exactly_what_changed() {
    use ChangeKind::{Added, Changed, Deleted};
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    assert_eq!(scene.changed(), []);
    let (etc, dir) = (scene.at("etc"), scene.at("dir"));
    // What is made and removed again leaves no trace but the directory's times.
    scene.volume.create(etc, name("lock"), FILE, USER).expect("create");
    scene.volume.unlink(etc, name("lock")).expect("unlink");
    assert_eq!(scene.changed(), []);
    scene.volume.create(etc, name("motd"), FILE, USER).expect("create");
    scene.volume.write(scene.at("etc/hosts"), 0, b"::1", true).expect("write");
    scene.volume.rename(dir, name("sub"), Ino::ROOT, name("moved"), RenameMode::Replace).expect("rename");
    let set = SetAttr { perm: Some(0o700), ..SetAttr::default() };
    scene.volume.set_attr(scene.at("bin"), set, Caller::ROOT).expect("chmod");
    let mut changed = scene.changed();
    changed.sort_by(|a, b| a.0.cmp(&b.0));
    let expected = [
        ("/bin", Changed),
        ("/dir/sub", Deleted),
        ("/dir/sub/file", Deleted),
        ("/etc/hosts", Changed),
        ("/etc/motd", Added),
        ("/moved", Added),
        ("/moved/file", Added),
    ];
    assert_eq!(changed, expected.map(|(path, kind)| (path.to_owned(), kind)));
}

#[test]
fn a_directory_replaced_by_a_file_lists_what_it_held() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let (dir, sub) = (scene.at("dir"), scene.at("dir/sub"));
    scene.volume.unlink(sub, name("file")).expect("unlink");
    scene.volume.rmdir(dir, name("sub")).expect("rmdir");
    scene.volume.create(dir, name("sub"), FILE, USER).expect("create");
    let expected = [("/dir/sub", ChangeKind::Changed), ("/dir/sub/file", ChangeKind::Deleted)];
    assert_eq!(scene.changed(), expected.map(|(path, kind)| (path.to_owned(), kind)));
    let tree = scene.applied();
    assert_eq!(tree.resolve(b"dir/sub").map(|view| view.kind()), Some(FileKind::File));
}

#[test]
fn the_layer_on_the_base_is_what_the_volume_shows() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let etc = scene.at("etc");
    scene.volume.write(scene.at("pw"), 0, b"toor", true).expect("write");
    scene.volume.rename(Ino::ROOT, name("dir"), etc, name("dir"), RenameMode::Replace).expect("rename");
    scene.volume.unlink(Ino::ROOT, name("sym")).expect("unlink");
    scene.volume.link(scene.at("bin/su"), etc, name("su")).expect("link");
    let tree = scene.applied();
    let mut paths = 0;
    let visit = |path: &[u8], _: Ino, attr: &Attr| {
        paths += 1;
        let got = tree.resolve(path).expect("the path").attr();
        let parts = |attr: &Attr| (attr.kind, attr.perm, attr.nlink, attr.uid, attr.gid, attr.size);
        if attr.kind != FileKind::Dir {
            assert_eq!((parts(&got), got.mtime), (parts(attr), attr.mtime), "{}", path.escape_ascii());
        }
        Ok::<_, VolumeError>(())
    };
    scene.volume.export_source().for_each(&mut { visit }).expect("walk");
    assert_eq!(paths, tree.walk().count());
}

/// Renaming one of two names changes no attribute of the file, but a layer needs both names to keep the link.
#[test]
fn regression_layer_keeps_the_link_of_a_renamed_name() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    scene.volume.rename(Ino::ROOT, name("pw"), Ino::ROOT, name("pw2"), RenameMode::Replace).expect("rename");
    let tree = scene.applied();
    let ino = |path: &[u8]| tree.resolve(path).map(|view| view.ino());
    assert_eq!(ino(b"pw2"), ino(b"etc/passwd"));
    assert_eq!(ino(b"pw"), None);
}

/// Pinning the second inode wrote its old name over the first one's new name.
#[test]
fn regression_exchange_of_two_untouched_files_keeps_both() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let (hosts, su) = (scene.at("etc/hosts"), scene.at("bin/su"));
    let (etc, bin) = (scene.at("etc"), scene.at("bin"));
    scene.volume.rename(etc, name("hosts"), bin, name("su"), RenameMode::Exchange).expect("exchange");
    assert_eq!((scene.at("etc/hosts"), scene.at("bin/su")), (su, hosts));
}
