//! Moving volumes between bases: named promises, and random ones.

#![allow(clippy::panic)]

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::model::{Model, Op, Pair, any_op, ops_for_base};
use super::*;
use crate::meta::{Changes, MetaError};
use crate::tree::Delta;
use crate::volume::rebase::Hidden;

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
        let [by_rows, by_delta] = self.scene.volume.concerned_both_ways(&delta).expect("readable");
        assert_eq!((by_rows.entries, by_rows.inodes), (by_delta.entries, by_delta.inodes));
        let rebased = self.scene.volume.rebase(&delta, &[], |_, _| Ok(())).expect("rebase");
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

/// A VE before it is moved.
struct Before {
    shows: View,
    /// Paths of files with content or an inode of the VE's own.
    owned: BTreeSet<Vec<u8>>,
    /// Whether there is nothing private at all.
    fresh: bool,
}

impl Before {
    fn of(volume: &Volume) -> Before {
        let shows = view(volume);
        let is_owned = |ino: Ino| {
            let record = volume.meta.inode(volume.ve, ino).expect("read");
            let is_in_base = |digest: &[u8; 32]| {
                let base = volume.base().node(ino).map(|view| view.content());
                base.is_none_or(|content| {
                    matches!(content, ContentRef::Blob { digest: base, .. } if base.as_bytes() == digest)
                })
            };
            let own = record.is_some_and(|record| match record.content {
                PrivateContent::Data { .. } => true,
                // What was given up for a blob.
                PrivateContent::Blob { digest, .. } => !is_in_base(&digest),
                _ => false,
            });
            ino.is_private() || own
        };
        let owned =
            shows.iter().filter(|(_, seen)| is_owned(seen.ino)).map(|(path, _)| path.clone()).collect();
        let rows = volume.meta.all_entries(volume.ve).count();
        let fresh = rows == 0 && volume.meta.all_inodes(volume.ve).expect("read").is_empty();
        Before { shows, owned, fresh }
    }

    /// What every move promises: `old` and `new` are what the bases alone show.
    fn check(&self, [old, new]: [&View; 2], after: &View, rebased: &Rebased) {
        let Before { shows: before, owned, fresh } = self;
        if *fresh {
            assert_eq!(after, new);
            assert_eq!(rebased.hidden, []);
        }
        // What the VE made or wrote is there, where it was.
        for (path, seen) in before.iter().filter(|(path, _)| owned.contains(*path)) {
            // A directory of its own may be one with one of the base's now.
            let is_joined =
                |now: &Seen| now.kind == FileKind::Dir && new.values().any(|new| new.ino == now.ino);
            let now = after
                .get(path)
                .filter(|now| now.ino == seen.ino || (seen.kind == FileKind::Dir && is_joined(now)));
            // The update may take one of several names away; the content has the others.
            let elsewhere = after.values().find(|now| now.ino == seen.ino).filter(|_| seen.nlink > 1);
            let Some(now) = now.or(elsewhere) else { panic!("{} is lost", path.escape_ascii()) };
            assert_eq!(now.bytes, seen.bytes, "{}", path.escape_ascii());
        }
        // Where the VE changed nothing on the way, the new base shows.
        let untouched = |path: &[u8]| match (before.get(path), old.get(path)) {
            (None, None) => true,
            (Some(now), Some(was)) => {
                now.ino == was.ino && (now.kind == FileKind::Dir || (now == was && !owned.contains(path)))
            }
            _ => false,
        };
        // What both made is one directory.
        let joined = |path: &[u8]| {
            let (Some(now), Some(new)) = (before.get(path), new.get(path)) else { return false };
            old.get(path).is_none_or(|old| old.kind != FileKind::Dir)
                && now.ino.is_private()
                && now.kind == FileKind::Dir
                && new.kind == FileKind::Dir
                && !before.values().any(|seen| seen.ino == new.ino)
        };
        for (path, new) in new.iter().filter(|(path, _)| joined(path)) {
            if prefixes(above(path)).all(|path| path.is_empty() || untouched(path) || joined(path)) {
                assert_eq!(after[path].ino, new.ino, "{} is not joined", path.escape_ascii());
            }
        }
        let pristine = |path: &[u8]| before.get(path) == old.get(path) && !owned.contains(path);
        let shown_new = new;
        let hidden = |path: &[u8]| {
            let (dir, name) = place(shown_new, path);
            rebased.hidden.iter().any(|hidden| Some(hidden.dir) == dir && hidden.name.as_bytes() == name)
        };
        for (path, new) in new.iter().filter(|(path, _)| prefixes(path).all(untouched)) {
            // With a directory is hidden what is in it, or it is where the VE has moved the directory to.
            if pristine(path) && !prefixes(path).any(hidden) {
                let now = after.get(path).unwrap_or_else(|| panic!("{} is missing", path.escape_ascii()));
                assert_eq!((&now.bytes, now.kind), (&new.bytes, new.kind), "{}", path.escape_ascii());
            }
        }
        for path in old.keys().filter(|path| !new.contains_key(*path)) {
            if prefixes(path).all(pristine) && old[path].kind != FileKind::Dir {
                assert!(!after.contains_key(path), "{} is still there", path.escape_ascii());
            }
        }
    }

    /// What going back promises besides, if the VE did nothing meanwhile.
    fn check_return(&self, [old, new]: [&View; 2], again: &View) {
        let before = &self.shows;
        let shows = |view: &View, path: &Vec<u8>| view.get(path).map(|seen| (seen.kind, seen.bytes.clone()));
        // A change that both sides made the same way is one change, and goes back with the base.
        let (places_old, places_new) = (places(old), places(new));
        let both = |path: &Vec<u8>| {
            let (place, number) = (place(before, path), before.get(path).map(|seen| seen.ino));
            places_new.get(&place).copied() == number && places_old.get(&place).copied() != number
        };
        // Of its names it keeps one then, whichever side that was of.
        let agreed_on: BTreeSet<_> =
            before.iter().filter(|(path, _)| both(path)).map(|(_, seen)| seen.ino).collect();
        let named_by_both =
            |path: &Vec<u8>| both(path) || again.get(path).is_some_and(|seen| agreed_on.contains(&seen.ino));
        for path in again.keys().chain(before.keys()).filter(|path| !named_by_both(path)) {
            assert_eq!(shows(again, path), shows(before, path), "{}", path.escape_ascii());
        }
        let agreed = !agreed_on.is_empty();
        for (path, was) in before.iter().filter(|(path, _)| !named_by_both(path)) {
            let now = &again[path];
            assert!(now.nlink == was.nlink || agreed, "{}", path.escape_ascii());
            // What the VE changed of the attributes of a file goes with the file.
            let kind = |view: &View| view.get(path).map(|seen| seen.kind);
            let moved_by_ve = old.get(path).is_none_or(|old| old.ino != was.ino);
            let gone = !new.values().any(|new| new.ino == was.ino);
            // Of names that one base links and the other does not, none speaks for the others.
            let is_linked = |view: &View| view.get(path).is_some_and(|seen| seen.nlink > 1);
            let replaced = new.get(path).is_some_and(|new| new.ino != was.ino);
            let linked = replaced && (is_linked(old) || is_linked(new));
            let removed = kind(old) != kind(new) || (moved_by_ve && gone) || linked;
            let agrees = new.values().any(|new| new.perm == was.perm);
            assert!(now.perm == was.perm || agrees || removed, "{}", path.escape_ascii());
        }
    }
}

/// A path by the directory that it is in.
fn place(view: &View, path: &[u8]) -> (Option<Ino>, Vec<u8>) {
    let dir = view.get(above(path)).map(|dir| dir.ino);
    (dir, path.rsplit(|byte| *byte == b'/').next().unwrap_or_default().to_vec())
}

fn places(shown: &View) -> BTreeMap<(Option<Ino>, Vec<u8>), Ino> {
    shown.iter().map(|(path, seen)| (place(shown, path), seen.ino)).collect()
}

fn run(store: &Store, first: &[Op], second: &[Op], ops: &[Op], [reopen, orphans]: [bool; 2]) {
    let (model, inos, old, new) = bases(store, first, second);
    let mut pair = Pair::new(Scene::new(store, Arc::clone(&old)), model, inos);
    let alone = [view(pair.volume()), view(&Scene::new(store, Arc::clone(&new)).volume)];
    let [at_old, at_new] = &alone;
    for op in ops {
        pair.step(op);
    }
    if !orphans {
        pair.volume().free_orphans(|_| false).expect("free");
    }
    let before = Before::of(pair.volume());
    let mut moved = Moved { scene: pair.into_scene(), old, new };
    let rebased = moved.rebase(&moved.old, &moved.new);
    let after = view(&moved.scene.volume);
    before.check([at_old, at_new], &after, &rebased);
    if reopen {
        moved.scene.base = Arc::clone(&moved.new);
        moved.scene.reopen();
        moved.scene.volume.free_orphans(|_| false).expect("free");
        moved.sound();
        assert_eq!(view(&moved.scene.volume), after);
    }
    // And back. What is still open under a number that the base takes up again makes a stand-in of it the VE's own.
    moved.rebase(&moved.new, &moved.old);
    if !orphans {
        before.check_return([at_old, at_new], &view(&moved.scene.volume));
    }
}

/// A part of a VE's life.
#[derive(Clone, Debug)]
enum Part {
    /// Programs work.
    Work(Vec<Op>),
    /// It is moved to one of the bases, forward or back.
    Move(usize),
    /// The daemon dies in the middle of a move to one of the bases, before the batch is written.
    CutShort(usize),
    /// The daemon dies, and the kernel with all that is open.
    Crash,
}

fn any_part() -> impl Strategy<Value = Part> {
    prop_oneof![
        4 => vec(any_op(), 0..12).prop_map(Part::Work),
        4 => (0usize..3).prop_map(Part::Move),
        1 => (0usize..3).prop_map(Part::CutShort),
        1 => Just(Part::Crash),
    ]
}

/// Any history of work, moves and crashes. After each part the volume shows what the model of it says.
fn live(store: &Store, releases: &[Vec<Op>; 3], history: &[Part]) {
    let mut model = Model::new();
    let bases: Vec<_> = releases
        .iter()
        .map(|ops| {
            model.apply(ops);
            model.clone().base(store).0
        })
        .collect();
    let alone: Vec<_> = bases.iter().map(|base| view(&Scene::new(store, Arc::clone(base)).volume)).collect();
    let mut scene = Scene::new(store, Arc::clone(&bases[0]));
    let mut at = 0;
    for part in history {
        match part {
            Part::Work(ops) => {
                let (model, inos) = Model::of(&scene.volume);
                let mut pair = Pair::new(scene, model, inos);
                ops.iter().for_each(|op| pair.step(op));
                pair.check();
                scene = pair.into_scene();
            }
            Part::Move(to) | Part::CutShort(to) => {
                scene.volume.free_orphans(|_| false).expect("free");
                let before = Before::of(&scene.volume);
                let delta = Delta::between(&bases[at], &bases[*to]).expect("no collision");
                if matches!(part, Part::CutShort(_)) {
                    let fail = |_: &mut Changes<'_>, _: &[Hidden]| Err(MetaError::Exhausted(VeId(0)).into());
                    assert!(scene.volume.rebase(&delta, &[], fail).is_err());
                    scene.reopen();
                    assert_eq!(view(&scene.volume), before.shows);
                } else {
                    let rebased = scene.volume.rebase(&delta, &[], |_, _| Ok(())).expect("rebase");
                    scene.volume.unsettled.end_now();
                    before.check([&alone[at], &alone[*to]], &view(&scene.volume), &rebased);
                    scene.base = Arc::clone(&bases[*to]);
                    at = *to;
                }
            }
            Part::Crash => {
                let before = view(&scene.volume);
                scene.reopen();
                assert_eq!(view(&scene.volume), before);
            }
        }
        assert_eq!(scene.volume.check().expect("readable"), Vec::<String>::new(), "after {part:?}");
    }
}

fn config(cases: u32) -> Config {
    let cases = std::env::var("VZFS_REBASE_CASES").map_or(cases, |text| text.parse().expect("a number"));
    Config { cases, failure_persistence: None, max_shrink_iters: 4000, ..Config::default() }
}

#[test]
fn every_history_agrees_with_the_model() {
    let store = Store::new();
    let release = || vec(any_op(), 0..12);
    let releases = (vec(ops_for_base(), 0..25), release(), release());
    let cases = (releases, vec(any_part(), 0..10));
    let outcome = TestRunner::new(config(512)).run(&cases, |((first, second, third), history)| {
        live(&store, &[first, second, third], &history);
        Ok(())
    });
    outcome.map_err(|error| error.to_string()).expect("no counterexample");
}

#[test]
fn every_move_keeps_what_the_ve_did_and_shows_the_rest() {
    let store = Store::new();
    let cases = (vec(ops_for_base(), 0..25), vec(any_op(), 0..15), vec(any_op(), 0..25), any::<[bool; 2]>());
    let outcome = TestRunner::new(config(1024)).run(&cases, |(first, second, ops, how)| {
        run(&store, &first, &second, &ops, how);
        Ok(())
    });
    outcome.map_err(|error| error.to_string()).expect("no counterexample");
}

/// Between a move and the moment when the kernel knows, an old name must not lead a change to what it no longer stands for.
#[test]
fn changes_by_an_old_name_are_sent_to_look_again() {
    let store = Store::new();
    let release = |byte| {
        let write = Op::Write { node: 1, offset: 0, len: 4, byte, keep: true };
        let mut model = Model::new();
        model.apply(&[create(0), write]);
        model.base(&store).0
    };
    let (old, new) = (release(1), release(2));
    let scene = Scene::new(&store, Arc::clone(&old));
    let volume = &scene.volume;
    let name = NameRef::new(b"a").expect("legal");
    let before = volume.lookup(Ino::ROOT, name).expect("there").ino;
    let delta = Delta::between(&old, &new).expect("no collision");
    volume.rebase(&delta, &[], |_, _| Ok(())).expect("rebase");
    let chmod = || {
        let set = SetAttr { perm: Some(0o600), ..SetAttr::default() };
        plain(volume.set_attr(before, set, Caller::ROOT)).map(drop)
    };
    let set_xattr =
        || plain(volume.set_xattr(before, b"user.a", b"b", XattrMode::Any, Caller::ROOT)).map(drop);
    let write = || plain(volume.open_file(before, true, Sharing::Served)).map(drop);
    let link = || plain(volume.link(before, Ino::ROOT, NameRef::new(b"b").expect("legal"))).map(drop);
    let changes: [&dyn Fn() -> std::result::Result<(), String>; 4] = [&chmod, &set_xattr, &write, &link];
    for (at, change) in changes.iter().enumerate() {
        assert_eq!(change(), Err("Stale".to_owned()), "change {at}");
    }
    // Reading is harmless, and who has it open means just this file.
    assert_eq!(content(volume, before), [1; 4]);
    volume.open_file(before, false, Sharing::Served).expect("open");
    for change in [&chmod, &set_xattr] as [&dyn Fn() -> std::result::Result<(), String>; 2] {
        assert_eq!(change(), Ok(()));
    }
    let after = volume.lookup(Ino::ROOT, name).expect("there");
    assert!(after.ino != before && after.perm == 0o644 && xattrs(volume, after.ino).is_empty());
    assert_eq!(content(volume, after.ino), [2; 4]);
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

/// A directory of the base that the VE has moved stays there when a base without it comes and goes, with what the base has in it.
#[test]
fn regression_a_moved_directory_is_hidden_with_what_is_in_it() {
    let store = Store::new();
    let create = |dir, name, kind| Op::Create { dir, name, kind, perm: 0o644, umask: 0, uid: 0 };
    let first = vec![
        create(0, 0, FileKind::Dir),
        create(19, 2, FileKind::Dir),
        create(2, 2, FileKind::Symlink),
        create(8, 0, FileKind::File),
        create(0, 1, FileKind::Symlink),
        create(16, 0, FileKind::Dir),
    ];
    let third = vec![create(22, 4, FileKind::Dir), Op::Link { node: 19, dir: 34, name: 0 }];
    let rename = Op::Rename { dir: 28, name: 4, new_dir: 16, new_name: 1, mode: RenameMode::Replace };
    let history = [Part::Move(2), Part::Work(vec![rename]), Part::Move(0), Part::Move(2)];
    live(&store, &[first, vec![], third], &history);
}
