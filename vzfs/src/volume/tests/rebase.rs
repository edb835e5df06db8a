//! Moving volumes between bases: named promises, and random ones.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::model::{Model, Op, Pair, any_op, ops_for_base};
use super::*;
use crate::tree::Delta;

/// What a path shows.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    ino: Ino,
    kind: FileKind,
    perm: u16,
    uid: u32,
    nlink: u32,
    bytes: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

type View = BTreeMap<Vec<u8>, Seen>;

fn view(volume: &Volume) -> View {
    let mut seen = View::new();
    let source = volume.export_source();
    let walked = source.for_each::<VolumeError>(&mut |path, ino, attr| {
        let bytes = match attr.kind {
            FileKind::File => content(volume, ino),
            FileKind::Symlink => volume.read_link(ino)?,
            _ => Vec::new(),
        };
        let Attr { kind, perm, uid, nlink, .. } = *attr;
        let found = Seen { ino, kind, perm, uid, nlink, bytes, xattrs: xattrs(volume, ino) };
        seen.insert(path.to_vec(), found);
        Ok(())
    });
    walked.expect("walk");
    seen
}

fn above(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(b"", |at| &path[..at])
}

fn prefixes(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    ends.chain([path.len()]).map(|end| &path[..end])
}

struct Moved<'s> {
    scene: Scene<'s>,
    old: Arc<Tree>,
    new: Arc<Tree>,
}

impl Moved<'_> {
    fn rebase(&self, from: &Arc<Tree>, to: &Arc<Tree>) -> Rebased {
        let delta = Delta::between(from, to).expect("no collision");
        let preview = self.scene.volume.preview(&delta).expect("preview");
        let rebased = self.scene.volume.rebase(&delta, &[], |_| Ok(())).expect("rebase");
        assert_eq!(preview.hidden, rebased.hidden);
        self.scene.volume.settle();
        self.sound();
        rebased
    }

    fn sound(&self) {
        assert_eq!(self.scene.volume.check().expect("readable"), Vec::<String>::new());
    }
}

fn bases(store: &Store, first: &[Op], second: &[Op]) -> (Model, HashMap<usize, Ino>, Arc<Tree>, Arc<Tree>) {
    let mut model = Model::new();
    model.apply(first);
    let mut next = model.clone();
    next.apply(second);
    let (old, inos) = model.base(store);
    let (new, _) = next.base(store);
    (model, inos, old, new)
}

fn run(store: &Store, first: &[Op], second: &[Op], ops: &[Op], [reopen, orphans]: [bool; 2]) {
    let (model, inos, old, new) = bases(store, first, second);
    let mut pair = Pair::new(Scene::new(store, Arc::clone(&old)), model, inos);
    let at_old = view(pair.volume());
    let at_new = view(&Scene::new(store, Arc::clone(&new)).volume);
    for op in ops {
        pair.step(op);
    }
    if !orphans {
        pair.volume().free_orphans(|_| false).expect("free");
    }
    let before = view(pair.volume());
    let is_owned = |ino: Ino| {
        let record = pair.volume().meta.inode(pair.volume().ve, ino).expect("read");
        ino.is_private() || record.is_some_and(|record| matches!(record.content, PrivateContent::Data { .. }))
    };
    let owned: BTreeSet<_> =
        before.iter().filter(|(_, seen)| is_owned(seen.ino)).map(|(path, _)| path.clone()).collect();
    let mut moved = Moved { scene: pair.into_scene(), old, new };
    let rebased = moved.rebase(&moved.old, &moved.new);
    let after = view(&moved.scene.volume);
    if ops.is_empty() {
        assert_eq!(after, at_new);
        assert_eq!(rebased.hidden, []);
    }
    // What the VE made or wrote is there, where it was.
    for (path, seen) in &before {
        if owned.contains(path) {
            let now = after.get(path).filter(|now| now.ino == seen.ino);
            // The update may take one of several names away; the content has the others.
            let elsewhere = after.values().find(|now| now.ino == seen.ino).filter(|_| seen.nlink > 1);
            let Some(now) = now.or(elsewhere) else { panic!("{} is lost", path.escape_ascii()) };
            assert_eq!(now.bytes, seen.bytes, "{}", path.escape_ascii());
        }
    }
    // Where the VE changed nothing on the way, the new base shows.
    let untouched = |path: &[u8]| match (before.get(path), at_old.get(path)) {
        (None, None) => true,
        (Some(now), Some(was)) => {
            now.ino == was.ino && (now.kind == FileKind::Dir || (now == was && !owned.contains(path)))
        }
        _ => false,
    };
    let pristine = |path: &[u8]| before.get(path) == at_old.get(path) && !owned.contains(path);
    for (path, new) in at_new.iter().filter(|(path, _)| prefixes(path).all(|path| untouched(path))) {
        let now = after.get(path).unwrap_or_else(|| panic!("{} is missing", path.escape_ascii()));
        if pristine(path) && !rebased.hidden.iter().any(|hidden| path.ends_with(hidden.name.as_bytes())) {
            assert_eq!((&now.bytes, now.kind), (&new.bytes, new.kind), "{}", path.escape_ascii());
        }
    }
    for path in at_old.keys().filter(|path| !at_new.contains_key(*path)) {
        if prefixes(path).all(|path| pristine(path)) && at_old[path].kind != FileKind::Dir {
            assert!(!after.contains_key(path), "{} is still there", path.escape_ascii());
        }
    }
    if reopen {
        moved.scene.base = Arc::clone(&moved.new);
        moved.scene.reopen();
        moved.scene.volume.free_orphans(|_| false).expect("free");
        moved.sound();
        assert_eq!(view(&moved.scene.volume), after);
    }
    // And back. What is still open under a number that the base takes up again makes a stand-in of it the VE's own.
    moved.rebase(&moved.new, &moved.old);
    if orphans {
        return;
    }
    let again = view(&moved.scene.volume);
    let shows = |view: &View, path: &Vec<u8>| view.get(path).map(|seen| (seen.kind, seen.bytes.clone()));
    // A change that both sides made the same way is one change, and goes back with the base.
    let place = |view: &View, path: &Vec<u8>| {
        let dir = view.get(above(path)).map(|dir| dir.ino);
        (dir, path.rsplit(|byte| *byte == b'/').next().unwrap_or_default().to_vec())
    };
    let places = |view: &View| -> BTreeMap<_, _> {
        view.iter().map(|(path, seen)| (place(view, path), seen.ino)).collect()
    };
    let (places_old, places_new) = (places(&at_old), places(&at_new));
    let both = |path: &Vec<u8>| {
        let (place, number) = (place(&before, path), before.get(path).map(|seen| seen.ino));
        places_new.get(&place).copied() == number && places_old.get(&place).copied() != number
    };
    for path in again.keys().chain(before.keys()).filter(|path| !both(path)) {
        assert_eq!(shows(&again, path), shows(&before, path), "{}", path.escape_ascii());
    }
    let agreed = before.keys().any(both);
    for (path, was) in before.iter().filter(|(path, _)| !both(path)) {
        let now = &again[path];
        assert!(now.nlink == was.nlink || agreed, "{}", path.escape_ascii());
        let agrees = |of: &dyn Fn(&Seen) -> Vec<u8>| at_new.values().any(|new| of(new) == of(was));
        let perm = |seen: &Seen| seen.perm.to_le_bytes().to_vec();
        // What the VE changed of the attributes of a file goes with the file.
        let kind = |view: &View| view.get(path).map(|seen| seen.kind);
        let moved_by_ve = at_old.get(path).is_none_or(|old| old.ino != was.ino);
        let gone = !at_new.values().any(|new| new.ino == was.ino);
        let linked = at_new.get(path).is_some_and(|new| new.nlink > 1 && new.ino != was.ino);
        let removed = kind(&at_old) != kind(&at_new) || (moved_by_ve && gone) || linked;
        assert!(now.perm == was.perm || agrees(&perm) || removed, "{}", path.escape_ascii());
    }
}

#[test]
fn every_move_keeps_what_the_ve_did_and_shows_the_rest() {
    let store = Store::new();
    let config = Config {
        cases: std::env::var("VZFS_REBASE_CASES").map_or(1024, |text| text.parse().expect("a number")),
        failure_persistence: None,
        max_shrink_iters: 4000,
        ..Config::default()
    };
    let cases = (vec(ops_for_base(), 0..25), vec(any_op(), 0..15), vec(any_op(), 0..25), any::<[bool; 2]>());
    let outcome = TestRunner::new(config).run(&cases, |(first, second, ops, how)| {
        run(&store, &first, &second, &ops, how);
        Ok(())
    });
    outcome.map_err(|error| error.to_string()).expect("no counterexample");
}

fn create(name: u8) -> Op {
    Op::Create { dir: 0, name, kind: FileKind::File, perm: 0o644, umask: 0, uid: 0 }
}

/// Files of both bases have one number, as path and content are the same, but their further names are exchanged.
#[test]
fn regression_a_hard_link_goes_to_another_file() {
    let first = [create(0), create(1), Op::Link { node: 1, dir: 0, name: 3 }, create(2)];
    let second = [
        Op::Rename { dir: 0, name: 0, new_dir: 0, new_name: 4, mode: RenameMode::Replace },
        Op::Link { node: 11, dir: 0, name: 0 },
    ];
    let ops = [Op::Write { node: 5, offset: 0, len: 1, byte: 0, keep: false }];
    run(&Store::new(), &first, &second, &ops, [false; 2]);
}

/// One name of a file whose attributes the VE changed goes to another file, and comes back.
#[test]
fn regression_hard_links_are_parted_and_joined() {
    let first = [
        create(2),
        create(0),
        create(1),
        Op::Write { node: 10, offset: 0, len: 1, byte: 0, keep: true },
        Op::Link { node: 14, dir: 0, name: 4 },
    ];
    let second = [Op::Rename { dir: 0, name: 1, new_dir: 0, new_name: 0, mode: RenameMode::Replace }];
    let ops = [Op::Chmod { node: 6, perm: 0o2755 }];
    run(&Store::new(), &first, &second, &ops, [false; 2]);
}
