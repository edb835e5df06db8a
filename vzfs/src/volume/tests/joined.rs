//! Directories that both a VE and its next base made.

use super::*;
use crate::tree::Delta;

const DIR: NewNode<'static> = NewNode::new(FileKind::Dir, 0o755);

/// A VE that made some of the directories that [`Store::base`] has, on a base that has nothing, and its move there.
struct Made<'s> {
    scene: Scene<'s>,
    /// The numbers of `dir` and `dir/sub` before the move.
    own: [Ino; 2],
    way: Delta,
}

fn made(store: &Store) -> Made<'_> {
    let old = finish(TreeBuilder::new(TreeMeta::new(FileKind::Dir, 0o755)));
    let way = Delta::between(&old, &store.base()).expect("no collision");
    let scene = Scene::new(store, old);
    let make = |dir, at: &str, new| scene.volume.create(dir, name(at), new, USER).expect("create").ino;
    let dir = make(Ino::ROOT, "dir", NewNode { perm: 0o750, ..DIR });
    let sub = make(dir, "sub", DIR);
    make(sub, "deeper", DIR);
    make(dir, "own", FILE);
    let file = make(sub, "file", FILE);
    scene.volume.write(file, 0, b"mine", true).expect("write");
    Made { scene, own: [dir, sub], way }
}

impl Made<'_> {
    fn go(&mut self, back: bool) -> Rebased {
        let (from, to) = if back { (&self.way.new, &self.way.old) } else { (&self.way.old, &self.way.new) };
        let way = Delta::between(from, to).expect("no collision");
        let rebased = self.scene.volume.rebase(&way, &[], |_, _| Ok(())).expect("rebase");
        self.scene.volume.unsettled.end_now();
        self.scene.base = Arc::clone(&way.new);
        self.sound();
        rebased
    }

    fn sound(&self) {
        assert_eq!(self.scene.volume.check().expect("readable"), Vec::<String>::new());
    }
}

#[test]
fn a_directory_that_both_made_is_one() {
    let store = Store::new();
    let mut made = made(&store);
    let (own, file) = (made.scene.at("dir/own"), made.scene.at("dir/sub/file"));
    let rebased = made.go(false);
    let volume = &made.scene.volume;
    let theirs = made.way.new.lookup(Ino::ROOT, name("dir")).expect("there").target;
    let dir = volume.attr(made.scene.at("dir")).expect("there");
    assert_eq!(theirs, Target::Node(dir.ino, FileKind::Dir));
    // The VE's attributes and content; what only the base has is there too.
    assert_eq!((dir.perm, dir.uid, dir.nlink), (0o750, USER.uid, 3));
    assert_eq!((made.scene.at("dir/own"), made.scene.at("dir/sub/file")), (own, file));
    assert_eq!(content(volume, file), b"mine");
    assert_eq!(volume.attr(made.scene.at("dir/sub")).expect("there").nlink, 3);
    made.scene.at("dir/sub/deeper");
    made.scene.at("etc/passwd");
    // What the VE hides is told, and nothing else.
    let hidden: Vec<_> = rebased.hidden.iter().map(|hidden| (hidden.dir, hidden.name.clone())).collect();
    assert_eq!(hidden, [(made.scene.at("dir/sub"), name("file").to_name())]);
    // And back: what the VE made stays, what the base had goes.
    made.go(true);
    assert_eq!(made.scene.at("dir/own"), own);
    assert_eq!(content(&made.scene.volume, made.scene.at("dir/sub/file")), b"mine");
    assert_eq!(list(&made.scene.volume, Ino::ROOT, 9).len(), 3, "`.`, `..` and `dir`");
}

#[test]
fn an_empty_directory_that_both_made_is_there_after_going_back() {
    let store = Store::new();
    let mut made = made(&store);
    made.scene.volume.create(Ino::ROOT, name("etc"), DIR, USER).expect("create");
    made.go(false);
    made.scene.at("etc/hosts");
    made.go(true);
    assert_eq!(list(&made.scene.volume, made.scene.at("etc"), 9).len(), 2, "`.` and `..`");
}

/// A program may be in the directory: its number goes on to work, also under the next daemon, until the kernel forgets it.
#[test]
fn the_number_of_a_joined_directory_leads_to_the_other_until_it_is_forgotten() {
    let store = Store::new();
    let mut made = made(&store);
    made.go(false);
    for _ in 0..2 {
        let [dir, sub] = made.own;
        let volume = &made.scene.volume;
        assert!(volume.is_joined(dir) && volume.is_joined(sub) && !volume.is_joined(made.scene.at("dir")));
        assert_eq!(volume.attr(dir).expect("there"), volume.attr(made.scene.at("dir")).expect("there"));
        assert_eq!(list(volume, sub, 2), list(volume, made.scene.at("dir/sub"), 3));
        assert_eq!(volume.parent(sub).expect("there"), made.scene.at("dir"));
        let later = volume.create(sub, name("later"), FILE, USER).expect("create").ino;
        assert_eq!(made.scene.at("dir/sub/later"), later);
        volume.rename(sub, name("later"), dir, name("moved"), RenameMode::Replace).expect("rename");
        assert_eq!(volume.lookup(dir, name("moved")).expect("there").ino, later);
        volume.unlink(dir, name("moved")).expect("unlink");
        volume.forget(later).expect("forget");
        volume.set_xattr(dir, b"user.a", b"b", XattrMode::Any, USER).expect("set");
        assert_eq!(volume.xattr(made.scene.at("dir"), b"user.a").expect("there"), b"b");
        volume.remove_xattr(dir, b"user.a").expect("remove");
        made.sound();
        made.scene.reopen();
    }
    let [dir, sub] = made.own;
    made.scene.volume.forget(dir).expect("forget");
    assert!(matches!(made.scene.volume.lookup(dir, name("own")), Err(VolumeError::NotFound)));
    assert!(made.scene.volume.is_joined(sub));
    made.scene.volume.free_orphans(|_| false).expect("free");
    made.scene.reopen();
    assert!(!made.scene.volume.is_joined(sub));
    made.sound();
}
