//! Random operations against a naive model: a vector of nodes, nothing shared, nothing counted that can be looked for.

mod ops;
mod pair;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use self::ops::name_of;
pub(super) use self::ops::{Op, any_op, ops_for_base};
pub(super) use self::pair::Pair;
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
