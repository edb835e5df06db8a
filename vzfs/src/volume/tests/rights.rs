//! Who may keep privileges, and what is inherited.

use super::*;

/// Root and then another write to a setuid file, and that other cuts it off.
pub(super) fn check_that_setuid_goes(is_open: bool, rights: impl Rights) {
    let store = Store::new();
    let scene = Scene::new(&store, store.base());
    let su = scene.at("bin/su");
    let perm = || scene.volume.attr(su).expect("attr").perm;
    if is_open {
        scene.volume.open_file(su, true, Sharing::Served).expect("open");
    }
    scene.volume.write(su, 0, b"x", true).expect("write");
    assert_eq!(perm(), 0o4755);
    scene.volume.write(su, 0, b"x", rights).expect("write");
    assert_eq!(perm(), 0o755);
    let set = SetAttr { perm: Some(0o6755), ..SetAttr::default() };
    scene.volume.set_attr(su, set, Caller::ROOT).expect("chmod");
    let set = SetAttr { size: Some(0), ..SetAttr::default() };
    scene.volume.set_attr(su, set, USER).expect("truncate");
    assert_eq!(perm(), 0o755);
}

#[test]
fn writes_by_others_than_root_take_setuid_away() {
    check_that_setuid_goes(true, USER);
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
