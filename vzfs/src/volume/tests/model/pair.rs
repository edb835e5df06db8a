//! The model beside a volume.

use proptest::collection::vec;
use proptest::test_runner::{Config, TestRunner};

use super::ops::Meanwhile;
use super::*;

/// The model beside the volume.
pub(in crate::volume::tests) struct Pair<'s> {
    scene: Scene<'s>,
    model: Model,
    before: Model,
    inos: HashMap<Id, Ino>,
}

impl<'s> Pair<'s> {
    pub(in crate::volume::tests) fn new(scene: Scene<'s>, model: Model, inos: HashMap<Id, Ino>) -> Self {
        Pair { scene, before: model.clone(), model, inos }
    }

    pub(in crate::volume::tests) fn into_scene(self) -> Scene<'s> {
        self.scene
    }
}

impl Pair<'_> {
    pub(in crate::volume::tests) fn volume(&self) -> &Volume {
        &self.scene.volume
    }

    pub(in crate::volume::tests) fn step(&mut self, op: &Op) {
        let text = format!("{op:?}");
        let model = &mut self.model;
        let volume = &self.scene.volume;
        let ino = |inos: &HashMap<Id, Ino>, id: Id| inos[&id];
        match *op {
            Op::Create { dir, name, kind, perm, umask, uid } => {
                let (dir, name, caller) = (model.pick(dir, true), name_of(name), Caller { uid, gid: uid });
                let new = new_node(kind, perm, umask);
                let expected = model.create(dir, &name, new, caller);
                let got = plain(volume.create(self.inos[&dir], name.as_ref(), new, caller));
                assert_eq!(got.as_ref().map(|_| ()), expected.as_ref().map(|_| ()), "{text}");
                if let (Ok(id), Ok(attr)) = (expected, got) {
                    self.inos.insert(id, attr.ino);
                }
            }
            Op::Unlink { dir, name } => {
                let (dir, name) = (model.pick(dir, true), name_of(name));
                let got = plain(volume.unlink(self.inos[&dir], name.as_ref()));
                assert_eq!(got, model.remove(dir, &name, false), "{text}");
            }
            Op::Rmdir { dir, name } => {
                let (dir, name) = (model.pick(dir, true), name_of(name));
                let got = plain(volume.rmdir(self.inos[&dir], name.as_ref()));
                assert_eq!(got, model.remove(dir, &name, true), "{text}");
            }
            Op::Rename { dir, name, new_dir, new_name, mode } => {
                let (dir, new_dir) = (model.pick(dir, true), model.pick(new_dir, true));
                let (name, new_name) = (name_of(name), name_of(new_name));
                let (from, to) = (ino(&self.inos, dir), ino(&self.inos, new_dir));
                let count = model.things.len();
                let expected = model.rename((dir, &name), (new_dir, &new_name), mode);
                assert_eq!(
                    plain(volume.rename(from, name.as_ref(), to, new_name.as_ref(), mode)),
                    expected,
                    "{text}"
                );
                if model.things.len() > count {
                    self.inos.insert(count, volume.lookup(from, name.as_ref()).expect("the device").ino);
                }
            }
            Op::Link { node, dir, name } => {
                let (id, dir, name) = (model.pick(node, false), model.pick(dir, true), name_of(name));
                let got = plain(volume.link(self.inos[&id], self.inos[&dir], name.as_ref()));
                assert_eq!(got.map(|_| ()), model.link(id, dir, &name), "{text}");
            }
            Op::Chmod { node, perm } => {
                let id = model.pick(node, false);
                let set = SetAttr { perm: Some(perm), ..SetAttr::default() };
                volume.set_attr(self.inos[&id], set, Caller::ROOT).expect("chmod");
                model.change(id).perm = perm;
            }
            Op::Chown { node, uid } => {
                let id = model.pick(node, false);
                let set = SetAttr { uid: Some(uid), ..SetAttr::default() };
                volume.set_attr(self.inos[&id], set, Caller::ROOT).expect("chown");
                model.change(id).uid = uid;
                model.kill(id, |_| true);
            }
            Op::Utimens { node, secs } => {
                let (id, time) = (model.pick(node, false), Timestamp { secs, nanos: 7 });
                let set = SetAttr { mtime: Some(SetTime::At(time)), ..SetAttr::default() };
                volume.set_attr(self.inos[&id], set, Caller::ROOT).expect("utimens");
                model.change(id).mtime = Some(time);
            }
            Op::Truncate { node, size, uid } => {
                let id = model.pick(node, false);
                let set = SetAttr { size: Some(size), ..SetAttr::default() };
                let caller = Caller { uid, gid: uid };
                let got = plain(volume.set_attr(self.inos[&id], set, caller));
                assert_eq!(got.map(|_| ()), model.truncate(id, size, caller), "{text}");
            }
            Op::Write { node, offset, len, byte, keep } => {
                let id = model.pick(node, false);
                if model.things[id].kind == FileKind::File {
                    let bytes = vec![byte; len];
                    volume.write(self.inos[&id], offset, &bytes, keep).expect("write");
                    model.write(id, offset, &bytes, keep);
                }
            }
            Op::Read { node, offset, len } => {
                let id = model.pick(node, false);
                if model.things[id].kind == FileKind::File {
                    let mut buffer = vec![0; len];
                    let got = volume.read(self.inos[&id], offset, &mut buffer).expect("read");
                    let start = usize::try_from(offset).expect("small");
                    let expected: Vec<u8> =
                        model.things[id].bytes.iter().copied().skip(start).take(len).collect();
                    assert_eq!(&buffer[..got], &expected, "{text}");
                }
            }
            Op::SetXattr { node, name, value, mode } => {
                let (id, name) = (model.pick(node, false), format!("user.{name}"));
                let got = volume.set_xattr(self.inos[&id], name.as_bytes(), &[value], mode, Caller::ROOT);
                assert_eq!(plain(got), model.set_xattr(id, name.as_bytes(), &[value], mode), "{text}");
            }
            Op::RemoveXattr { node, name } => {
                let (id, name) = (model.pick(node, false), format!("user.{name}"));
                let had = model.things[id].xattrs.remove(name.as_bytes());
                let got = plain(volume.remove_xattr(self.inos[&id], name.as_bytes()));
                assert_eq!(got, if had.is_some() { Ok(()) } else { err("NoData") }, "{text}");
                model.things[id].touched |= had.is_some();
            }
            Op::ReadDir { dir, chunk } => {
                let dir = model.pick(dir, true);
                let got: BTreeSet<_> = list(volume, self.inos[&dir], chunk).into_iter().collect();
                let things = &model.things[dir];
                let names = things.children.iter().map(|(name, id)| (name.clone(), self.inos[id]));
                let mut expected: BTreeSet<_> = names.collect();
                if model.nlink(dir) > 0 {
                    expected.insert((b".".to_vec(), self.inos[&dir]));
                    expected.insert((b"..".to_vec(), self.inos[&things.parent]));
                }
                assert_eq!(got, expected, "{text}");
            }
            Op::Reopen => {
                self.scene.reopen();
                (0..model.things.len()).for_each(|id| model.forget(id));
            }
            Op::Dedup { node, meanwhile } => {
                let id = model.pick(node, false);
                self.dedup(id, meanwhile);
            }
            Op::Forget { node } => {
                let id = model.pick(node, false);
                volume.forget(self.inos[&id]).expect("forget");
                model.forget(id);
            }
        }
    }

    /// Gives a file up for a blob, or tries to: nothing shows but what somebody writes meanwhile.
    fn dedup(&mut self, id: Id, meanwhile: Meanwhile) {
        let (ino, volume, blobs) = (self.inos[&id], &self.scene.volume, &self.scene.store.blobs);
        let shown = |volume: &Volume| Attr { blocks: 0, ..volume.attr(ino).expect("attr") };
        let is_file = self.model.things[id].kind == FileKind::File;
        let handle = match meanwhile {
            Meanwhile::Open(write, sharing) if is_file => {
                volume.open_file(ino, write, sharing).expect("open");
                self.model.things[id].touched |= write;
                Some(sharing)
            }
            _ => None,
        };
        let before = shown(volume);
        if let Meanwhile::Crash(exchanged) = meanwhile {
            let published = publish(blobs, volume, ino).expect("publishes or leaves alone");
            let mut given = None;
            if let (Ok((file, content)), true) = (published, exchanged) {
                let done = volume.give_up(&file, content.digest, content.allocated_bytes);
                given = done.expect("nothing fails").is_ok().then_some(file);
            }
            self.scene.reopen();
            (0..self.model.things.len()).for_each(|id| self.model.forget(id));
            if let Some(file) = given {
                let strays = self.volume().stray_files().expect("lists");
                assert!(strays.iter().any(|(data, _)| *data == file.data), "{strays:?}");
                self.volume().remove_stray(file.data).expect("removes");
            }
            assert_eq!(shown(self.volume()), before);
            return;
        }
        let mut wrote = false;
        let given = give_up(blobs, volume, ino, || {
            if let Meanwhile::Write(byte) = meanwhile {
                volume.write(ino, 1, &[byte], true).expect("write");
                wrote = true;
            }
        });
        let given = given.expect("gives up or leaves alone");
        if let Some(sharing) = handle {
            assert!(given.is_err(), "it was open");
            volume.release(ino, sharing);
        }
        if wrote {
            assert_eq!(given.err(), Some(Unfit::Changed));
            let Meanwhile::Write(byte) = meanwhile else { return };
            self.model.write(id, 1, &[byte], true);
        } else {
            assert_eq!(shown(volume), before);
        }
    }

    /// Everything that can be seen is as the model says.
    pub(in crate::volume::tests) fn check(&self) {
        assert_eq!(self.volume().check().expect("readable"), Vec::<String>::new());
        self.check_usage();
        let mut visited = 0;
        let expected = self.model.paths();
        let check = |path: &[u8], ino: Ino, attr: &Attr| {
            visited += 1;
            let path_text = path.escape_ascii();
            let id = *expected.get(path).expect("a path that the model has not");
            let thing = &self.model.things[id];
            assert_eq!(ino, self.inos[&id], "{path_text}");
            let got = (attr.kind, attr.perm, attr.uid, attr.gid, attr.rdev, attr.nlink);
            let want = (thing.kind, thing.perm, thing.uid, thing.gid, thing.rdev, self.model.nlink(id));
            assert_eq!(got, want, "{path_text}");
            assert_eq!(thing.mtime.unwrap_or(attr.mtime), attr.mtime, "{path_text}");
            match thing.kind {
                FileKind::File => assert_eq!(content(self.volume(), ino), thing.bytes, "{path_text}"),
                FileKind::Symlink => assert_eq!(self.volume().read_link(ino).expect("read"), thing.bytes),
                FileKind::Dir => {
                    assert_eq!(
                        self.volume().parent(ino).expect("parent"),
                        self.inos[&thing.parent],
                        "{path_text}"
                    );
                }
                _ => {}
            }
            assert_eq!(xattrs(self.volume(), ino), thing.xattrs, "{path_text}");
            assert_eq!(self.volume().resolve(path).expect("resolve"), Some(ino), "{path_text}");
            Ok::<_, VolumeError>(())
        };
        self.volume().export_source().for_each(&mut { check }).expect("walk");
        assert_eq!(visited, expected.len());
        for id in self.model.known(false).into_iter().filter(|id| self.model.nlink(*id) == 0) {
            assert!(self.volume().is_orphan(self.inos[&id]).expect("look"), "{id}");
            if self.model.things[id].kind == FileKind::File {
                assert_eq!(content(self.volume(), self.inos[&id]), self.model.things[id].bytes);
            }
        }
    }

    /// What is remembered of the space in use is what is in use.
    pub(in crate::volume::tests) fn check_usage(&self) {
        assert_eq!(self.volume().usage().expect("readable"), self.volume().usage_anew());
    }

    fn check_changes(&self) {
        let (old, new) = (self.before.paths(), self.model.paths());
        let text = |path: &Vec<u8>| format!("/{}", String::from_utf8_lossy(path));
        let changes = self.volume().changes().expect("changes");
        let listed = |kind| -> Vec<String> {
            let mut paths: Vec<_> =
                changes.iter().filter(|c| c.kind == kind).map(|c| c.path.clone()).collect();
            paths.sort_unstable();
            paths
        };
        let mut added: Vec<_> = new.keys().filter(|path| !old.contains_key(*path)).map(text).collect();
        let mut deleted: Vec<_> = old.keys().filter(|path| !new.contains_key(*path)).map(text).collect();
        added.sort_unstable();
        deleted.sort_unstable();
        assert_eq!(listed(ChangeKind::Added), added);
        assert_eq!(listed(ChangeKind::Deleted), deleted);
        let changed = listed(ChangeKind::Changed);
        for (path, id) in &new {
            let Some(was) = old.get(path) else { continue };
            let (before, now) = (&self.before.things[*was], &self.model.things[*id]);
            let said = changed.contains(&text(path));
            let parts = |thing: &Thing| (thing.kind, thing.perm, thing.uid, thing.gid, thing.rdev);
            if parts(before) != parts(now) || before.bytes != now.bytes || before.xattrs != now.xattrs {
                assert!(said, "{} is not listed", text(path));
            }
            if was == id && !now.touched {
                assert!(!said, "{} is listed", text(path));
            }
        }
    }

    /// The private layer on top of the base is what the volume shows.
    fn check_layer(&self) {
        let batch = self.scene.store.blobs.batch();
        let layer = finish(self.volume().to_layer(&batch, &|_| false).expect("layer"));
        batch.commit().expect("commit");
        let mut merged = TreeBuilder::from_tree(self.volume().base()).expect("base");
        merged.apply_layer(&layer).expect("merge");
        let tree = finish(merged);
        let expected = self.model.paths();
        assert_eq!(tree.walk().count(), expected.len());
        let mut groups: HashMap<Ino, Id> = HashMap::new();
        for (path, id) in &expected {
            let text = path.escape_ascii();
            let view = tree.resolve(path).expect("every path");
            let (attr, thing) = (view.attr(), &self.model.things[*id]);
            assert_eq!(*groups.entry(view.ino()).or_insert(*id), *id, "{text}: wrong link");
            let got = (attr.kind, attr.perm, attr.uid, attr.gid, attr.rdev, attr.nlink);
            let want = (thing.kind, thing.perm, thing.uid, thing.gid, thing.rdev, self.model.nlink(*id));
            assert_eq!(got, want, "{text}");
            match view.content() {
                ContentRef::Blob { digest, .. } => assert_eq!(digest, Digest::of(&thing.bytes), "{text}"),
                ContentRef::Symlink(target) => assert_eq!(target, thing.bytes, "{text}"),
                ContentRef::None => {}
            }
            let got: BTreeMap<_, _> = view.xattrs().map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
            assert_eq!(got, thing.xattrs, "{text}");
        }
    }
}

fn run(store: &Store, base_ops: &[Op], ops: &[Op]) {
    let mut model = Model::new();
    model.apply(base_ops);
    let (tree, inos) = model.base(store);
    let mut pair = Pair::new(Scene::new(store, tree), model, inos);
    for op in ops {
        pair.step(op);
        pair.check_usage();
    }
    pair.check();
    pair.check_changes();
    pair.check_layer();
    pair.scene.reopen();
    (0..pair.model.things.len()).for_each(|id| pair.model.forget(id));
    pair.check();
}

#[test]
fn volume_does_what_the_model_does() {
    let store = Store::new();
    let config =
        Config { cases: 512, failure_persistence: None, max_shrink_iters: 4000, ..Config::default() };
    let cases = (vec(ops_for_base(), 0..25), vec(any_op(), 1..40));
    let outcome = TestRunner::new(config).run(&cases, |(base, ops)| {
        run(&store, &base, &ops);
        Ok(())
    });
    outcome.map_err(|error| error.to_string()).expect("no counterexample");
}
