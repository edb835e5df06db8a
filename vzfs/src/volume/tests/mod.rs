//! The volume without a mount. `model` compares random operations with a naive model; here are the promises one by one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::blobs::Batch;
use crate::tree::{Content, Meta as TreeMeta, TreeBuilder};
use crate::types::Digest;

mod attributes;
mod linear;
mod model;
mod rebase;

/// One database and blob store for many volumes.
struct Store {
    dir: tempfile::TempDir,
    meta: Arc<Meta>,
    blobs: Arc<BlobStore>,
    private: Arc<PrivateData>,
    next: AtomicU32,
}

impl Store {
    fn new() -> Store {
        let parent = std::env::var_os("CARGO_TARGET_TMPDIR").unwrap_or_else(|| "/var/tmp".into());
        let dir = tempfile::tempdir_in(parent).expect("scratch folder");
        let blobs = dir.path().join("blobs");
        std::fs::create_dir(dir.path().join("data")).expect("folder");
        BlobStore::create(&blobs).expect("create");
        let meta = Arc::new(Meta::open(&dir.path().join("meta")).expect("database"));
        let private = PrivateData::open(&dir.path().join("data"), Arc::clone(&meta)).expect("removals");
        let (private, blobs) = (Arc::new(private), Arc::new(BlobStore::open(&blobs).expect("open")));
        Store { meta, blobs, private, next: AtomicU32::new(1), dir }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn open(&self, ve: VeId, base: &Arc<Tree>) -> Volume {
        let (meta, blobs) = (Arc::clone(&self.meta), Arc::clone(&self.blobs));
        Volume::open(ve, Arc::clone(base), meta, blobs, Arc::clone(&self.private)).expect("open")
    }

    fn data_files(&self, ve: VeId) -> usize {
        self.private.settle().expect("removed");
        std::fs::read_dir(self.data().join(ve.to_string())).map_or(0, Iterator::count)
    }

    /// `/etc/passwd` and `/pw` are one file; `/etc/hosts`, `/bin/su` (setuid), `/dir/sub/file`, `/sym`.
    fn base(&self) -> Arc<Tree> {
        let batch = self.blobs.batch();
        let mut tree = TreeBuilder::new(TreeMeta::new(FileKind::Dir, 0o755));
        let root = tree.root();
        let dir = TreeMeta::new(FileKind::Dir, 0o755);
        let file = TreeMeta::new(FileKind::File, 0o644);
        let mut add = |parent, path: &str, meta: TreeMeta, content| {
            tree.insert(parent, name(path), meta, content).expect("insert")
        };
        let etc = add(root, "etc", dir.clone(), Content::None);
        let bin = add(root, "bin", dir.clone(), Content::None);
        let top = add(root, "dir", dir.clone(), Content::None);
        let sub = add(top, "sub", dir, Content::None);
        let passwd = add(etc, "passwd", file.clone(), blob(&batch, b"root:x:0:0"));
        add(etc, "hosts", file.clone(), blob(&batch, b"127.0.0.1"));
        add(sub, "file", file.clone(), blob(&batch, b"deep"));
        add(bin, "su", TreeMeta { perm: 0o4755, ..file }, blob(&batch, b"su"));
        add(root, "sym", TreeMeta::new(FileKind::Symlink, 0o777), Content::Symlink(b"etc/passwd"[..].into()));
        tree.link(root, name("pw"), passwd).expect("link");
        batch.commit().expect("commit");
        finish(tree)
    }
}

/// A VE of its own.
struct Scene<'s> {
    store: &'s Store,
    base: Arc<Tree>,
    ve: VeId,
    volume: Volume,
}

impl<'s> Scene<'s> {
    fn new(store: &'s Store, base: Arc<Tree>) -> Self {
        let ve = VeId(store.next.fetch_add(1, Ordering::Relaxed));
        let volume = store.open(ve, &base);
        Scene { store, base, ve, volume }
    }

    fn reopen(&mut self) {
        self.volume = self.store.open(self.ve, &self.base);
    }

    fn at(&self, path: &str) -> Ino {
        self.volume.resolve(path.as_bytes()).expect("resolve").expect("the path is there")
    }

    fn changed(&self) -> Vec<(String, ChangeKind)> {
        self.volume.changes().expect("changes").into_iter().map(|change| (change.path, change.kind)).collect()
    }

    /// The base with the private layer applied.
    fn applied(&self) -> Arc<Tree> {
        let batch = self.store.blobs.batch();
        let layer = finish(self.volume.to_layer(&batch, &|_| false).expect("layer"));
        batch.commit().expect("commit");
        let mut merged = TreeBuilder::from_tree(&self.base).expect("base");
        merged.apply_layer(&layer).expect("merge");
        finish(merged)
    }
}

fn name(name: &str) -> NameRef<'_> {
    NameRef::new(name.as_bytes()).expect("legal")
}

fn blob(batch: &Batch<'_>, bytes: &[u8]) -> Content {
    let stored = batch.add_bytes(bytes).expect("add");
    Content::Blob { digest: stored.digest, size: stored.size, allocated_bytes: stored.allocated_bytes }
}

fn finish(tree: TreeBuilder) -> Arc<Tree> {
    Arc::new(Tree::from_bytes(tree.finish().expect("finish").bytes).expect("a tree"))
}

/// A result whose error is only the name of its variant.
fn plain<T>(result: Result<T>) -> std::result::Result<T, String> {
    result.map_err(|error| {
        let text = format!("{error:?}");
        text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
    })
}

fn content(volume: &Volume, ino: Ino) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 16];
    let read = volume.read(ino, 0, &mut bytes).expect("read");
    bytes.truncate(read);
    bytes
}

fn xattrs(volume: &Volume, ino: Ino) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let names = volume.xattr_names(ino).expect("list");
    names.into_iter().map(|name| (name.clone(), volume.xattr(ino, &name).expect("get"))).collect()
}

/// A directory, read in calls of `chunk` entries each.
fn list(volume: &Volume, dir: Ino, chunk: usize) -> Vec<(Vec<u8>, Ino)> {
    let (mut found, mut cookie) = (Vec::new(), 0);
    loop {
        let (mut left, from) = (chunk, cookie);
        let emit = |entry: DirEntry<'_>| {
            if left == 0 {
                return false;
            }
            left -= 1;
            assert!(entry.cookie > cookie, "cookies go up");
            cookie = entry.cookie;
            found.push((entry.name.to_vec(), entry.ino));
            true
        };
        volume.read_dir(dir, from, emit).expect("read");
        if left > 0 {
            return found;
        }
    }
}

const FILE: NewNode<'static> = NewNode::new(FileKind::File, 0o644);
const USER: Caller = Caller { uid: 1000, gid: 1000 };

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
    let Relabelled { inodes, mut names } = scene.volume.take_relabelled();
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
    std::io::Read::read_to_end(&mut &*handle.file, &mut bytes).expect("read");
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
    assert!(matches!(scene.volume.attr(lost), Err(VolumeError::Io { .. })));
    assert_eq!(content(&scene.volume, other), b"deep");
    let after = scene.volume.usage().expect("the VE is listed all the same");
    assert_eq!(after.private_inodes, before.private_inodes);
    assert_eq!(after.private_logical_bytes, before.private_logical_bytes - 9);
    assert_eq!(scene.volume.check().expect("check").len(), 1, "and the check finds it");
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

#[test]
fn writes_by_others_than_root_take_setuid_away() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let su = scene.at("bin/su");
    let perm = || scene.volume.attr(su).expect("attr").perm;
    scene.volume.open_file(su, true, Sharing::Served).expect("open");
    scene.volume.write(su, 0, b"x", true).expect("write");
    assert_eq!(perm(), 0o4755);
    scene.volume.write(su, 0, b"x", USER).expect("write");
    assert_eq!(perm(), 0o755);
    let set = SetAttr { perm: Some(0o6755), ..SetAttr::default() };
    scene.volume.set_attr(su, set, Caller::ROOT).expect("chmod");
    let set = SetAttr { size: Some(0), ..SetAttr::default() };
    scene.volume.set_attr(su, set, USER).expect("truncate");
    assert_eq!(perm(), 0o755);
}

/// A caller without `CAP_FSETID` who is in one group.
struct Member(u32);

impl Rights for Member {
    fn keeps_privileges(&self) -> bool {
        false
    }

    fn keeps_setgid(&self, _uid: u32, gid: u32) -> bool {
        gid == self.0
    }
}

/// As `setattr_should_drop_sgid` has it: with group execution the bit is a privilege, without it only members keep it.
#[test]
fn setgid_without_group_execution_stays_for_members() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let su = scene.at("bin/su");
    let of = |perm: u16, change: &dyn Fn(&Volume)| {
        let set = SetAttr { perm: Some(perm), gid: Some(50), ..SetAttr::default() };
        scene.volume.set_attr(su, set, Caller::ROOT).expect("chmod");
        change(&scene.volume);
        scene.volume.attr(su).expect("attr").perm
    };
    let truncate = |rights: u32| {
        move |volume: &Volume| {
            let set = SetAttr { size: Some(3), ..SetAttr::default() };
            volume.set_attr(su, set, Member(rights)).expect("truncate");
        }
    };
    let chown = |rights: u32| {
        move |volume: &Volume| {
            let set = SetAttr { gid: Some(rights), ..SetAttr::default() };
            volume.set_attr(su, set, Member(rights)).expect("chown");
        }
    };
    let write =
        |rights: u32| move |volume: &Volume| volume.write(su, 0, b"x", Member(rights)).expect("write");
    assert_eq!(of(0o6745, &truncate(50)), 0o2745);
    assert_eq!(of(0o6745, &truncate(60)), 0o745);
    assert_eq!(of(0o6755, &truncate(50)), 0o755);
    assert_eq!(of(0o6745, &write(50)), 0o2745);
    assert_eq!(of(0o6745, &write(60)), 0o745);
    // The group that counts is the old one.
    assert_eq!(of(0o6745, &chown(50)), 0o2745);
    assert_eq!(of(0o6745, &chown(60)), 0o745);
}

#[test]
fn an_access_acl_keeps_setgid_for_members() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let su = scene.at("bin/su");
    // user::rwx, group::r-x, other::r-x.
    let acl = [
        2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 4, 0, 5, 0, 255, 255, 255, 255, 32, 0, 5, 0, 255, 255,
        255, 255,
    ];
    let of = |rights: &dyn Fn(&Volume) -> Result<()>| {
        let set = SetAttr { perm: Some(0o2755), gid: Some(50), ..SetAttr::default() };
        scene.volume.set_attr(su, set, Caller::ROOT).expect("chmod");
        rights(&scene.volume).expect("set");
        scene.volume.attr(su).expect("attr").perm
    };
    let set = |volume: &Volume, member| {
        volume.set_xattr(su, crate::acl::ACCESS, &acl, XattrMode::Any, Member(member))
    };
    assert_eq!(of(&|volume| set(volume, 50)), 0o2755);
    assert_eq!(of(&|volume| set(volume, 51)), 0o755);
}

/// An overlayfs that copies a setuid program sets its mode, then its owner.
#[test]
fn who_copies_a_file_keeps_all_when_the_owner_changes() {
    struct Copying;
    impl Rights for Copying {
        fn keeps_privileges(&self) -> bool {
            false
        }

        fn keeps_setgid(&self, _uid: u32, _gid: u32) -> bool {
            false
        }

        fn keeps_all_on_chown(&self) -> bool {
            true
        }
    }
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let su = scene.at("bin/su");
    scene.volume.set_xattr(su, b"security.capability", b"caps", XattrMode::Any, true).expect("set");
    let set = SetAttr { uid: Some(7), gid: Some(8), ..SetAttr::default() };
    let attr = scene.volume.set_attr(su, set, Copying).expect("chown");
    assert_eq!((attr.perm, attr.uid, attr.gid), (0o4755, 7, 8));
    assert!(scene.volume.xattr(su, b"security.capability").is_ok());
    let attr = scene.volume.set_attr(su, set, true).expect("chown");
    assert_eq!(attr.perm, 0o755, "chown(2) takes them away, whoever calls it");
    assert!(scene.volume.xattr(su, b"security.capability").is_err());
}

/// Finding out who asks can be dear.
#[test]
fn rights_are_asked_for_only_where_something_can_be_lost() {
    struct NeverAsked;
    impl Rights for NeverAsked {
        fn keeps_privileges(&self) -> bool {
            unreachable!("nothing can be lost")
        }

        fn keeps_setgid(&self, _uid: u32, _gid: u32) -> bool {
            unreachable!("nothing can be lost")
        }
    }
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let hosts = scene.at("etc/hosts");
    let set = SetAttr { size: Some(3), ..SetAttr::default() };
    scene.volume.set_attr(hosts, set, NeverAsked).expect("truncate");
    scene.volume.set_attr(hosts, SetAttr { uid: Some(5), ..SetAttr::default() }, NeverAsked).expect("chown");
    scene.volume.write(hosts, 0, b"x", NeverAsked).expect("write");
    scene.volume.fallocate(hosts, 0, 10, FallocateMode::empty(), NeverAsked).expect("fallocate");
    scene.volume.set_xattr(hosts, b"user.x", b"y", XattrMode::Any, NeverAsked).expect("set");
}

#[test]
fn group_and_default_acl_are_inherited() {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let etc = scene.at("etc");
    let set = SetAttr { perm: Some(0o2775), gid: Some(50), ..SetAttr::default() };
    scene.volume.set_attr(etc, set, Caller::ROOT).expect("chmod");
    let file =
        scene.volume.create(etc, name("file"), NewNode { umask: 0o022, ..FILE }, USER).expect("create");
    let dir = NewNode { umask: 0o022, ..NewNode::new(FileKind::Dir, 0o777) };
    let made = scene.volume.create(etc, name("dir"), dir, USER).expect("mkdir");
    assert_eq!((file.gid, file.perm, made.gid, made.perm), (50, 0o644, 50, 0o2755));

    // acl(5): u::rwx, u:1000:rwx, g::r-x, m::rwx, o::r-x.
    let entries: [(u16, u16, u32); 5] =
        [(1, 7, u32::MAX), (2, 7, 1000), (4, 5, u32::MAX), (0x10, 7, u32::MAX), (0x20, 5, u32::MAX)];
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        acl.extend(tag.to_le_bytes().into_iter().chain(perm.to_le_bytes()).chain(id.to_le_bytes()));
    }
    scene.volume.set_xattr(made.ino, crate::acl::DEFAULT, &acl, XattrMode::Any, Caller::ROOT).expect("set");
    let new = NewNode { umask: 0o077, ..NewNode::new(FileKind::File, 0o664) };
    let file = scene.volume.create(made.ino, name("file"), new, USER).expect("create");
    assert_eq!(file.perm, 0o664, "the umask does not count");
    let below = scene.volume.create(made.ino, name("dir"), dir, USER).expect("mkdir");
    assert_eq!(scene.volume.xattr(below.ino, crate::acl::DEFAULT).expect("inherited"), acl);
    assert!(scene.volume.xattr(file.ino, crate::acl::ACCESS).is_ok());
    let refused = scene.volume.set_xattr(file.ino, crate::acl::DEFAULT, &acl, XattrMode::Any, Caller::ROOT);
    assert_eq!(plain(refused).err().as_deref(), Some("NotPermitted"));
}

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
