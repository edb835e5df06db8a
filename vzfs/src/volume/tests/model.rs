//! Random operations against a naive model: a vector of nodes, nothing shared, nothing counted that can be looked for.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};

use super::*;

pub(super) type Outcome<T> = std::result::Result<T, String>;
pub(super) type Id = usize;

#[derive(Clone, Debug)]
pub(super) struct Thing {
    pub(super) kind: FileKind,
    pub(super) perm: u16,
    uid: u32,
    gid: u32,
    rdev: u32,
    /// Bytes of a file, target of a symbolic link.
    pub(super) bytes: Vec<u8>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) children: BTreeMap<Vec<u8>, Id>,
    /// Where a directory is.
    pub(super) parent: Id,
    /// `None` after what moves it to the current time.
    mtime: Option<Timestamp>,
    /// Anything but names below it was changed since the base.
    touched: bool,
    gone: bool,
}

impl Thing {
    fn of(volume: &Volume, ino: Ino, attr: &Attr, parent: Id) -> Thing {
        let bytes = match attr.kind {
            FileKind::File => content(volume, ino),
            FileKind::Symlink => volume.read_link(ino).expect("read"),
            _ => Vec::new(),
        };
        Thing {
            kind: attr.kind,
            perm: attr.perm,
            uid: attr.uid,
            gid: attr.gid,
            rdev: attr.rdev,
            bytes,
            xattrs: xattrs(volume, ino),
            children: BTreeMap::new(),
            parent,
            mtime: Some(attr.mtime),
            touched: false,
            gone: false,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Model {
    things: Vec<Thing>,
}

#[derive(Clone, Debug)]
pub(super) enum Op {
    Create { dir: usize, name: u8, kind: FileKind, perm: u16, umask: u16, uid: u32 },
    Unlink { dir: usize, name: u8 },
    Rmdir { dir: usize, name: u8 },
    Rename { dir: usize, name: u8, new_dir: usize, new_name: u8, mode: RenameMode },
    Link { node: usize, dir: usize, name: u8 },
    Chmod { node: usize, perm: u16 },
    Chown { node: usize, uid: u32 },
    Utimens { node: usize, secs: i64 },
    Truncate { node: usize, size: u64, uid: u32 },
    Write { node: usize, offset: u64, len: usize, byte: u8, keep: bool },
    Read { node: usize, offset: u64, len: usize },
    SetXattr { node: usize, name: u8, value: u8, mode: XattrMode },
    RemoveXattr { node: usize, name: u8 },
    ReadDir { dir: usize, chunk: usize },
    Reopen,
    Forget { node: usize },
    Dedup { node: usize, meanwhile: Meanwhile },
}

/// What happens while a file is given up for a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meanwhile {
    Nothing,
    /// Somebody has it open.
    Open(bool, Sharing),
    /// Somebody writes, once, and is gone.
    Write(u8),
    /// The daemon dies, before the exchange or after it, but before the data file is removed.
    Crash(bool),
}

const NAMES: u8 = 5;

fn name_of(name: u8) -> Name {
    Name::new(&[b'a' + name % NAMES]).expect("legal")
}

fn kinds() -> impl Strategy<Value = FileKind> {
    prop_oneof![
        5 => Just(FileKind::File),
        5 => Just(FileKind::Dir),
        1 => Just(FileKind::Symlink),
        1 => select(vec![FileKind::Char, FileKind::Block, FileKind::Fifo, FileKind::Socket]),
    ]
}

fn perms() -> impl Strategy<Value = u16> {
    select(vec![0o644, 0o755, 0o2755, 0o2745, 0o4755, 0o6711, 0o1777, 0])
}

pub(super) fn ops_for_base() -> impl Strategy<Value = Op> {
    let index = || 0usize..40;
    let name = || 0..NAMES;
    prop_oneof![
        8 => (index(), name(), kinds(), perms(), 0u32..2)
            .prop_map(|(dir, name, kind, perm, uid)| Op::Create { dir, name, kind, perm, umask: 0, uid }),
        4 => (index(), index(), name()).prop_map(|(node, dir, name)| Op::Link { node, dir, name }),
        3 => (index(), select(vec![1usize, 10, 5000]), 0u8..3)
            .prop_map(|(node, len, byte)| Op::Write { node, offset: 0, len, byte, keep: true }),
        1 => (index(), 0u8..2, 0u8..3)
            .prop_map(|(node, name, value)| Op::SetXattr { node, name, value, mode: XattrMode::Any }),
    ]
}

pub(super) fn any_op() -> impl Strategy<Value = Op> {
    let index = || 0usize..40;
    let name = || 0..NAMES;
    let renames = select(vec![
        RenameMode::Replace,
        RenameMode::Replace,
        RenameMode::NoReplace,
        RenameMode::Exchange,
        RenameMode::Exchange,
        RenameMode::Whiteout(Caller::ROOT),
    ]);
    let xattr_modes = select(vec![XattrMode::Any, XattrMode::Create, XattrMode::Replace, XattrMode::Neither]);
    let offsets = || select(vec![0u64, 3, 4096, 10_000]);
    let lens = || select(vec![1usize, 10, 5000]);
    prop_oneof![
        4 => (index(), name(), kinds(), perms(), select(vec![0, 0o022, 0o077]), 0u32..2)
            .prop_map(|(dir, name, kind, perm, umask, uid)| Op::Create { dir, name, kind, perm, umask, uid }),
        4 => (index(), name()).prop_map(|(dir, name)| Op::Unlink { dir, name }),
        2 => (index(), name()).prop_map(|(dir, name)| Op::Rmdir { dir, name }),
        8 => (index(), name(), index(), name(), renames)
            .prop_map(|(dir, name, new_dir, new_name, mode)| Op::Rename { dir, name, new_dir, new_name, mode }),
        3 => (index(), index(), name()).prop_map(|(node, dir, name)| Op::Link { node, dir, name }),
        1 => (index(), perms()).prop_map(|(node, perm)| Op::Chmod { node, perm }),
        1 => (index(), 0u32..3).prop_map(|(node, uid)| Op::Chown { node, uid }),
        1 => (index(), -5i64..5).prop_map(|(node, secs)| Op::Utimens { node, secs }),
        2 => (index(), select(vec![0u64, 2, 4096, 9000]), 0u32..2)
            .prop_map(|(node, size, uid)| Op::Truncate { node, size, uid }),
        4 => (index(), offsets(), lens(), 0u8..3, any::<bool>())
            .prop_map(|(node, offset, len, byte, keep)| Op::Write { node, offset, len, byte, keep }),
        2 => (index(), offsets(), lens()).prop_map(|(node, offset, len)| Op::Read { node, offset, len }),
        2 => (index(), 0u8..2, 0u8..3, xattr_modes)
            .prop_map(|(node, name, value, mode)| Op::SetXattr { node, name, value, mode }),
        1 => (index(), 0u8..2).prop_map(|(node, name)| Op::RemoveXattr { node, name }),
        2 => (index(), 1usize..4).prop_map(|(dir, chunk)| Op::ReadDir { dir, chunk }),
        1 => Just(Op::Reopen),
        2 => index().prop_map(|node| Op::Forget { node }),
        4 => (index(), meanwhiles()).prop_map(|(node, meanwhile)| Op::Dedup { node, meanwhile }),
    ]
}

fn meanwhiles() -> impl Strategy<Value = Meanwhile> {
    prop_oneof![
        6 => Just(Meanwhile::Nothing),
        1 => (any::<bool>(), select(vec![Sharing::Passthrough, Sharing::Served]))
            .prop_map(|(write, sharing)| Meanwhile::Open(write, sharing)),
        1 => (0u8..3).prop_map(Meanwhile::Write),
        1 => any::<bool>().prop_map(Meanwhile::Crash),
    ]
}

fn err<T>(what: &str) -> Outcome<T> {
    Err(what.to_owned())
}

impl Model {
    pub(super) fn new() -> Model {
        let root = Thing {
            kind: FileKind::Dir,
            perm: 0o755,
            uid: 0,
            gid: 0,
            rdev: 0,
            bytes: Vec::new(),
            xattrs: BTreeMap::new(),
            children: BTreeMap::new(),
            parent: 0,
            mtime: None,
            touched: false,
            gone: false,
        };
        Model { things: vec![root] }
    }

    /// What a volume shows, and the inode numbers that it has for it.
    pub(super) fn of(volume: &Volume) -> (Model, HashMap<Id, Ino>) {
        let mut model = Model { things: Vec::new() };
        let (mut ids, mut dirs) = (HashMap::<Ino, Id>::new(), BTreeMap::<Vec<u8>, Id>::new());
        let note = |path: &[u8], ino: Ino, attr: &Attr| {
            let at = path.iter().rposition(|byte| *byte == b'/');
            let (above, name) = at.map_or((&b""[..], path), |at| (&path[..at], &path[at + 1..]));
            let parent = dirs.get(above).copied().unwrap_or(0);
            let id = *ids.entry(ino).or_insert_with(|| {
                model.things.push(Thing::of(volume, ino, attr, parent));
                model.things.len() - 1
            });
            if attr.kind == FileKind::Dir {
                dirs.insert(path.to_vec(), id);
            }
            if !path.is_empty() {
                model.things[parent].children.insert(name.to_vec(), id);
            }
            Ok::<_, VolumeError>(())
        };
        volume.export_source().for_each(&mut { note }).expect("walk");
        (model, ids.into_iter().map(|(ino, id)| (id, ino)).collect())
    }

    fn known(&self, dirs: bool) -> Vec<Id> {
        let fits = |id: &Id| !self.things[*id].gone && (!dirs || self.things[*id].kind == FileKind::Dir);
        (0..self.things.len()).filter(fits).collect()
    }

    fn pick(&self, index: usize, dirs: bool) -> Id {
        let known = self.known(dirs);
        known[index % known.len()]
    }

    pub(super) fn thing(&self, id: Id) -> &Thing {
        &self.things[id]
    }

    pub(super) fn nlink(&self, id: Id) -> u32 {
        let names =
            self.things.iter().flat_map(|thing| thing.children.values()).filter(|child| **child == id);
        let names = names.count();
        if self.things[id].kind != FileKind::Dir {
            return u32::try_from(names).expect("few");
        }
        if id != 0 && names == 0 {
            return 0;
        }
        let is_dir = |child: &&Id| self.things[**child].kind == FileKind::Dir;
        2 + u32::try_from(self.things[id].children.values().filter(is_dir).count()).expect("few")
    }

    fn live_dir(&self, dir: Id) -> Outcome<()> {
        if self.nlink(dir) == 0 { err("NotFound") } else { Ok(()) }
    }

    pub(super) fn find(&self, dir: Id, name: &Name) -> Option<Id> {
        self.things[dir].children.get(name.as_bytes()).copied()
    }

    fn set(&mut self, dir: Id, name: &Name, id: Id) {
        self.things[dir].children.insert(name.as_bytes().to_vec(), id);
        self.things[dir].mtime = None;
        if self.things[id].kind == FileKind::Dir {
            self.things[id].parent = dir;
        }
        self.things[id].touched = true;
    }

    fn clear(&mut self, dir: Id, name: &Name) {
        if let Some(id) = self.things[dir].children.remove(name.as_bytes()) {
            self.things[id].touched = true;
        }
        self.things[dir].mtime = None;
    }

    fn add(&mut self, dir: Id, name: &Name, new: NewNode<'_>, caller: Caller) -> Id {
        let parent = &self.things[dir];
        let mut perm = if new.kind == FileKind::Symlink { 0o777 } else { new.perm & !new.umask };
        let mut gid = caller.gid;
        if parent.perm & 0o2000 != 0 {
            gid = parent.gid;
            perm |= if new.kind == FileKind::Dir { 0o2000 } else { 0 };
        }
        let thing = Thing {
            kind: new.kind,
            perm,
            uid: caller.uid,
            gid,
            rdev: if new.kind.is_device() { new.rdev } else { 0 },
            bytes: new.target.to_vec(),
            xattrs: BTreeMap::new(),
            children: BTreeMap::new(),
            ..Model::new().things.remove(0)
        };
        self.things.push(thing);
        self.set(dir, name, self.things.len() - 1);
        self.things.len() - 1
    }

    pub(super) fn create(&mut self, dir: Id, name: &Name, new: NewNode<'_>, caller: Caller) -> Outcome<Id> {
        self.live_dir(dir)?;
        match self.find(dir, name) {
            Some(_) => err("Exists"),
            None => Ok(self.add(dir, name, new, caller)),
        }
    }

    pub(super) fn link(&mut self, id: Id, dir: Id, name: &Name) -> Outcome<()> {
        if self.things[id].kind == FileKind::Dir {
            return err("NotPermitted");
        }
        if self.nlink(id) == 0 {
            return err("NotFound");
        }
        self.live_dir(dir)?;
        if self.find(dir, name).is_some() {
            return err("Exists");
        }
        self.set(dir, name, id);
        Ok(())
    }

    pub(super) fn remove(&mut self, dir: Id, name: &Name, rmdir: bool) -> Outcome<()> {
        self.live_dir(dir)?;
        let Some(id) = self.find(dir, name) else { return err("NotFound") };
        match (rmdir, self.things[id].kind == FileKind::Dir) {
            (true, false) => return err("NotDir"),
            (false, true) => return err("IsDir"),
            _ => {}
        }
        if !self.things[id].children.is_empty() {
            return err("NotEmpty");
        }
        self.clear(dir, name);
        Ok(())
    }

    fn within(&self, mut dir: Id, ancestor: Id) -> bool {
        while dir != ancestor && dir != 0 {
            dir = self.things[dir].parent;
        }
        dir == ancestor
    }

    pub(super) fn rename(
        &mut self,
        (dir, name): (Id, &Name),
        (new_dir, new_name): (Id, &Name),
        mode: RenameMode,
    ) -> Outcome<()> {
        self.live_dir(dir)?;
        self.live_dir(new_dir)?;
        let Some(id) = self.find(dir, name) else { return err("NotFound") };
        let other = self.find(new_dir, new_name);
        match (mode, other) {
            (RenameMode::NoReplace, Some(_)) => return err("Exists"),
            (RenameMode::Exchange, None) => return err("NotFound"),
            _ if other == Some(id) => return Ok(()),
            _ => {}
        }
        if self.within(new_dir, id) {
            return err("Invalid");
        }
        if mode == RenameMode::Exchange {
            let other = other.expect("checked");
            if self.within(dir, other) {
                return err("Invalid");
            }
            self.set(dir, name, other);
            self.set(new_dir, new_name, id);
            return Ok(());
        }
        if let Some(other) = other {
            let is_dir = |id: Id| self.things[id].kind == FileKind::Dir;
            match (is_dir(id), is_dir(other)) {
                (true, false) => return err("NotDir"),
                (false, true) => return err("IsDir"),
                _ if !self.things[other].children.is_empty() => return err("NotEmpty"),
                _ => self.clear(new_dir, new_name),
            }
        }
        self.clear(dir, name);
        self.set(new_dir, new_name, id);
        if mode == RenameMode::Whiteout(Caller::ROOT) {
            self.add(dir, name, NewNode::new(FileKind::Char, 0), Caller::ROOT);
        }
        Ok(())
    }

    /// A change by somebody who keeps no privileges, and who is in the groups that `member` says.
    fn kill(&mut self, id: Id, member: impl Fn(u32) -> bool) {
        let thing = &mut self.things[id];
        if thing.kind != FileKind::Dir {
            thing.perm &= !0o4000;
            if thing.perm & 0o010 != 0 || !member(thing.gid) {
                thing.perm &= !0o2000;
            }
        }
    }

    pub(super) fn change(&mut self, id: Id) -> &mut Thing {
        self.things[id].touched = true;
        &mut self.things[id]
    }

    pub(super) fn truncate(&mut self, id: Id, size: u64, caller: Caller) -> Outcome<()> {
        match self.things[id].kind {
            FileKind::File => {}
            FileKind::Dir => return err("IsDir"),
            _ => return err("Invalid"),
        }
        let thing = self.change(id);
        thing.bytes.resize(usize::try_from(size).expect("small"), 0);
        thing.mtime = None;
        if caller.uid != 0 {
            self.kill(id, |gid| gid == caller.gid);
        }
        Ok(())
    }

    pub(super) fn write(&mut self, id: Id, offset: u64, bytes: &[u8], keep: bool) {
        let thing = self.change(id);
        let start = usize::try_from(offset).expect("small");
        let end = start + bytes.len();
        if thing.bytes.len() < end {
            thing.bytes.resize(end, 0);
        }
        thing.bytes[start..end].copy_from_slice(bytes);
        thing.mtime = None;
        if !keep {
            self.kill(id, |_| false);
        }
    }

    pub(super) fn set_xattr(&mut self, id: Id, name: &[u8], value: &[u8], mode: XattrMode) -> Outcome<()> {
        match (mode, self.things[id].xattrs.contains_key(name)) {
            (XattrMode::Create | XattrMode::Neither, true) => return err("Exists"),
            (XattrMode::Replace | XattrMode::Neither, false) => return err("NoData"),
            _ => {}
        }
        self.change(id).xattrs.insert(name.to_vec(), value.to_vec());
        Ok(())
    }

    /// All names of a file go to a new one that is the same.
    pub(super) fn relabel(&mut self, id: Id) {
        let new = self.things.len();
        self.things.push(self.things[id].clone());
        for child in self.things.iter_mut().flat_map(|thing| thing.children.values_mut()) {
            if *child == id {
                *child = new;
            }
        }
    }

    /// Operations without a volume, to make a base. What is refused is only left out.
    pub(super) fn apply(&mut self, ops: &[Op]) {
        for op in ops {
            match *op {
                Op::Create { dir, name, kind, perm, umask, uid } => {
                    let (dir, caller) = (self.pick(dir, true), Caller { uid, gid: uid });
                    drop(self.create(dir, &name_of(name), new_node(kind, perm, umask), caller));
                }
                Op::Unlink { dir, name } => drop(self.remove(self.pick(dir, true), &name_of(name), false)),
                Op::Rmdir { dir, name } => drop(self.remove(self.pick(dir, true), &name_of(name), true)),
                Op::Rename { dir, name, new_dir, new_name, mode } => {
                    let (dir, new_dir) = (self.pick(dir, true), self.pick(new_dir, true));
                    drop(self.rename((dir, &name_of(name)), (new_dir, &name_of(new_name)), mode));
                }
                Op::Link { node, dir, name } => {
                    let (node, dir) = (self.pick(node, false), self.pick(dir, true));
                    drop(self.link(node, dir, &name_of(name)));
                }
                Op::Chmod { node, perm } => self.change(self.pick(node, false)).perm = perm,
                Op::Chown { node, uid } => self.change(self.pick(node, false)).uid = uid,
                Op::Write { node, offset, len, byte, keep } => {
                    let id = self.pick(node, false);
                    if self.things[id].kind == FileKind::File {
                        self.write(id, offset, &vec![byte; len], keep);
                    }
                }
                Op::SetXattr { node, name, value, mode } => {
                    let id = self.pick(node, false);
                    drop(self.set_xattr(id, format!("user.{name}").as_bytes(), &[value], mode));
                }
                _ => {}
            }
            (0..self.things.len()).for_each(|id| self.forget(id));
        }
    }

    fn forget(&mut self, id: Id) {
        self.things[id].gone |= self.nlink(id) == 0;
    }

    /// All paths, parents first, the root as the empty one.
    pub(super) fn paths(&self) -> BTreeMap<Vec<u8>, Id> {
        fn below(model: &Model, dir: Id, path: &[u8], found: &mut BTreeMap<Vec<u8>, Id>) {
            found.insert(path.to_vec(), dir);
            for (name, child) in &model.things[dir].children {
                below(model, *child, &join(path, name), found);
            }
        }
        let mut found = BTreeMap::new();
        below(self, 0, b"", &mut found);
        found
    }

    /// The model as a base, and the inode numbers that it got.
    pub(super) fn base(&mut self, store: &Store) -> (Arc<Tree>, HashMap<Id, Ino>) {
        let meta_of = |thing: &Thing| TreeMeta {
            uid: thing.uid,
            gid: thing.gid,
            rdev: thing.rdev,
            mtime: BASE_TIME,
            xattrs: thing.xattrs.iter().map(|(n, v)| (n.clone().into(), v.clone().into())).collect(),
            ..TreeMeta::new(thing.kind, thing.perm)
        };
        let batch = store.blobs.batch();
        let mut builder = TreeBuilder::new(meta_of(&self.things[0]));
        let mut nodes = HashMap::from([(0, builder.root())]);
        let paths = self.paths();
        for (path, id) in paths.iter().filter(|(path, _)| !path.is_empty()) {
            let (above, name) = path
                .iter()
                .rposition(|b| *b == b'/')
                .map_or((&b""[..], &path[..]), |at| (&path[..at], &path[at + 1..]));
            let (dir, name) = (nodes[&paths[above]], NameRef::new(name).expect("legal"));
            if let Some(node) = nodes.get(id) {
                builder.link(dir, name, *node).expect("link");
                continue;
            }
            let thing = &self.things[*id];
            let content = match thing.kind {
                FileKind::File => blob(&batch, &thing.bytes),
                FileKind::Symlink => Content::Symlink(thing.bytes.clone().into()),
                _ => Content::None,
            };
            nodes.insert(*id, builder.insert(dir, name, meta_of(thing), content).expect("insert"));
        }
        batch.commit().expect("commit");
        let tree = finish(builder);
        let inos =
            paths.iter().map(|(path, id)| (*id, tree.resolve(path).expect("was put there").ino())).collect();
        for thing in &mut self.things {
            (thing.mtime, thing.touched) = (Some(BASE_TIME), false);
        }
        (tree, inos)
    }
}

const BASE_TIME: Timestamp = Timestamp { secs: 1_000_000, nanos: 5 };

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

fn new_node(kind: FileKind, perm: u16, umask: u16) -> NewNode<'static> {
    let target: &[u8] = if kind == FileKind::Symlink { b"somewhere" } else { b"" };
    NewNode { kind, perm, umask, rdev: 0x103, target }
}

/// The model beside the volume.
pub(super) struct Pair<'s> {
    scene: Scene<'s>,
    model: Model,
    before: Model,
    inos: HashMap<Id, Ino>,
}

impl<'s> Pair<'s> {
    pub(super) fn new(scene: Scene<'s>, model: Model, inos: HashMap<Id, Ino>) -> Self {
        Pair { scene, before: model.clone(), model, inos }
    }

    pub(super) fn into_scene(self) -> Scene<'s> {
        self.scene
    }
}

impl Pair<'_> {
    pub(super) fn volume(&self) -> &Volume {
        &self.scene.volume
    }

    pub(super) fn step(&mut self, op: &Op) {
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
    pub(super) fn check(&self) {
        assert_eq!(self.volume().check().expect("readable"), Vec::<String>::new());
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
