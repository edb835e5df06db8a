//! Generated workloads, and what the store must show after each of their operations.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::model::{
    Contents, FileId, History, Kind, Node, RELEASE, Source, Tree, VERSIONS, Version, World, extra, is_below,
    os, parent,
};
use super::random::Random;

/// One operation of a workload.
#[derive(Clone, Debug)]
pub enum Op {
    /// The store's first start.
    Open,
    /// Imports a template.
    Import(String),
    /// Removes a template, which collects garbage.
    RemoveTemplate(String),
    /// Makes a VE on the first version of the OS template.
    CreateVe(String),
    /// Removes a VE.
    RemoveVe(String),
    /// Moves a VE to another version of the OS template.
    Update(String, usize),
    /// Collects garbage.
    Collect,
    /// Ends the daemon and starts it again.
    Restart {
        /// Without a chance to tidy up.
        killed: bool,
    },
    /// What a program does in a VE.
    In(String, Change),
    /// Another program of the host syncs a file of its own, which commits the host filesystem's journal and nothing of ours.
    HostSyncs,
    /// The kernel writes out what it likes: the database's log.
    HostWritesLog,
    /// The same with some private data files.
    HostWritesData,
}

/// An operation on files.
#[derive(Clone, Debug)]
pub enum Change {
    /// Makes an empty file.
    Make(String),
    /// Writes to a file.
    Write {
        /// Which.
        path: String,
        /// Where.
        offset: usize,
        /// What.
        bytes: Vec<u8>,
    },
    /// Cuts or extends a file.
    Truncate(String, usize),
    /// Makes a directory.
    MakeDir(String),
    /// Makes a symbolic link with a target.
    Symlink(String, String),
    /// Gives a file another name.
    Link(String, String),
    /// Moves a name, over another if there is one.
    Rename(String, String),
    /// Removes the name of a file.
    Remove(String),
    /// Removes an empty directory.
    RemoveDir(String),
    /// Changes permissions.
    Mode(String, u16),
    /// Sets the attribute.
    Attribute(String, String),
    /// fsync of a file.
    Sync(String),
    /// fsync of a directory.
    SyncDir(String),
    /// Opens a file for reading, and keeps it open.
    Hold(String),
    /// Closes what is kept open.
    Release,
}

/// A workload.
pub struct Plan {
    /// The operations.
    pub ops: Vec<Op>,
    /// [`World::text`] after so many of them.
    pub states: Vec<String>,
    /// The worlds themselves.
    pub worlds: Vec<World>,
    /// What every file ever held.
    pub contents: Contents,
}

/// What is durable when an operation is acknowledged, it itself included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Syncs<'o> {
    /// What was before.
    Nothing,
    /// Everything that was done to a VE.
    Ve(&'o str),
    /// Everything.
    All,
}

impl Op {
    fn syncs(&self) -> Syncs<'_> {
        match self {
            Op::Open | Op::Collect | Op::HostSyncs | Op::HostWritesLog | Op::HostWritesData => Syncs::Nothing,
            Op::Restart { killed: true } => Syncs::Nothing,
            Op::In(ve, Change::Sync(_) | Change::SyncDir(_)) => Syncs::Ve(ve),
            Op::In(..) => Syncs::Nothing,
            _ => Syncs::All,
        }
    }
}

impl Plan {
    /// How many operations from the first on are durable at least because this one is acknowledged.
    pub fn durable_at(&self, number: usize) -> usize {
        match self.ops[number].syncs() {
            Syncs::Nothing => 0,
            Syncs::All => number + 1,
            Syncs::Ve(ve) => {
                // Those up to the last that shows in the VE: the log has what other VEs did before that, too.
                let now = self.worlds[number + 1].ves.get(ve);
                let is_same = |world: &&World| world.ves.get(ve) == now;
                number + 2 - self.worlds[..number + 2].iter().rev().take_while(is_same).count()
            }
        }
    }
}

const MAX_VES: usize = 3;
const MAX_FILE_BYTES: usize = 60_000;
/// More names in a VE than this, and only removals are drawn.
const MAX_NAMES: usize = 60;

struct Planner {
    random: Random,
    world: World,
    contents: Contents,
    next_id: FileId,
    next_name: usize,
    ops: Vec<Op>,
}

/// Draws a workload of so many operations beyond those that set a store up.
pub fn plan(seed: u64, count: usize) -> Plan {
    let mut planner = Planner {
        random: Random::new(seed),
        world: World::default(),
        contents: Contents::new(),
        next_id: 0,
        next_name: 0,
        ops: Vec::new(),
    };
    let mut worlds = vec![World::default()];
    let begin = [
        Op::Open,
        Op::Import(os(1).spec),
        Op::CreateVe("v0".to_owned()),
        Op::CreateVe("v1".to_owned()),
        Op::Import(os(2).spec),
    ];
    let mut step = |planner: &mut Planner, op: Op| {
        planner.carry_out(&op);
        planner.ops.push(op);
        worlds.push(planner.world.clone());
    };
    for op in begin {
        step(&mut planner, op);
    }
    for _ in 0..count {
        let op = loop {
            if let Some(op) = planner.draw() {
                break op;
            }
        };
        step(&mut planner, op);
    }
    let states = worlds.iter().map(World::text).collect();
    Plan { ops: planner.ops, states, worlds, contents: planner.contents }
}

impl Planner {
    fn draw(&mut self) -> Option<Op> {
        match self.random.below(100) {
            0 | 1 => {
                let number = 1 + self.random.below(3);
                let spec = extra(number).spec;
                Some(match self.world.templates.contains(&spec) {
                    true => Op::RemoveTemplate(spec),
                    false => Op::Import(spec),
                })
            }
            2 => {
                let free = (0..MAX_VES).map(|number| format!("v{number}"));
                let free: Vec<_> = free.filter(|ve| !self.world.ves.contains_key(ve)).collect();
                self.random.pick(&free).cloned().map(Op::CreateVe)
            }
            3 if self.world.ves.len() > 1 => self.some_ve().map(Op::RemoveVe),
            4 | 5 => {
                let ve = self.some_ve()?;
                let now = self.world.ves[&ve].version;
                Some(Op::Update(ve, now % VERSIONS + 1))
            }
            6 => Some(Op::Collect),
            7 => Some(Op::Restart { killed: self.random.once_in(2) }),
            8..12 => Some(Op::HostSyncs),
            12..15 => Some(Op::HostWritesLog),
            15..17 => Some(Op::HostWritesData),
            _ => {
                let ve = self.some_ve()?;
                let change = self.draw_change(&ve)?;
                Some(Op::In(ve, change))
            }
        }
    }

    fn some_ve(&mut self) -> Option<String> {
        let ves: Vec<_> = self.world.ves.keys().cloned().collect();
        self.random.pick(&ves).cloned()
    }

    /// A path of a VE for which `wanted` holds. The root and what updates change are left out.
    fn some_path(&mut self, ve: &str, wanted: impl Fn(&Tree, &str, &Node) -> bool) -> Option<String> {
        let tree = &self.world.ves[ve];
        let paths: Vec<_> = tree
            .names
            .keys()
            .filter(|path| !path.is_empty() && *path != RELEASE && !is_below(path, RELEASE))
            .filter(|path| wanted(tree, path, tree.at(path)))
            .cloned()
            .collect();
        self.random.pick(&paths).cloned()
    }

    fn some_file(&mut self, ve: &str) -> Option<String> {
        self.some_path(ve, |_, _, node| node.kind == Kind::File)
    }

    fn some_dir(&mut self, ve: &str) -> Option<String> {
        self.some_path(ve, |_, _, node| node.kind == Kind::Dir)
    }

    /// A name that is not there, in some directory.
    fn new_path(&mut self, ve: &str) -> Option<String> {
        let dir = self.some_dir(ve)?;
        self.next_name += 1;
        Some(format!("{dir}/n{}", self.next_name))
    }

    fn draw_change(&mut self, ve: &str) -> Option<Change> {
        let crowded = self.world.ves[ve].names.len() > MAX_NAMES;
        let kind = self.random.below(100);
        if crowded && kind < 50 {
            return self.some_path(ve, |_, _, node| node.kind == Kind::File).map(Change::Remove);
        }
        Some(match kind {
            0..14 => Change::Make(self.new_path(ve)?),
            14..38 => {
                let path = self.some_file(ve)?;
                let size = self.content(ve, &path).len();
                let offset = match self.random.below(4) {
                    0 => 0,
                    1 | 2 => size,
                    _ => self.random.below(size + 5000),
                };
                let most = [100, 4096, 30_000][self.random.below(3)];
                let len = 1 + self.random.below(most);
                let offset = offset.min(MAX_FILE_BYTES);
                Change::Write { path, offset, bytes: self.random.bytes(len) }
            }
            38..42 => {
                let path = self.some_file(ve)?;
                let size = self.content(ve, &path).len();
                let sizes = [0, self.random.below(size + 1), size + self.random.below(9000)];
                Change::Truncate(path, sizes[self.random.below(3)])
            }
            42..47 => Change::MakeDir(self.new_path(ve)?),
            47..50 => Change::Symlink(self.new_path(ve)?, format!("to {}", self.next_name)),
            50..54 => Change::Link(self.some_file(ve)?, self.new_path(ve)?),
            54..59 => {
                // A replacement, as programs save files.
                let new = self.some_file(ve)?;
                let id = self.world.ves[ve].names[&new];
                let old =
                    self.some_path(ve, |tree, path, node| node.kind == Kind::File && tree.names[path] != id)?;
                Change::Rename(old, new)
            }
            59..65 => {
                let old = self.some_path(ve, |_, _, _| true)?;
                let new = self.new_path(ve)?;
                if new == old || is_below(&new, &old) {
                    return None;
                }
                Change::Rename(old, new)
            }
            65..70 => Change::Remove(self.some_path(ve, |_, _, node| node.kind != Kind::Dir)?),
            70..72 => {
                Change::RemoveDir(self.some_path(ve, |tree, path, node| {
                    node.kind == Kind::Dir && tree.below(path).is_empty()
                })?)
            }
            72..76 => {
                let path = self.some_path(ve, |_, _, node| !matches!(node.kind, Kind::Symlink(_)))?;
                Change::Mode(path, [0o600, 0o644, 0o750, 0o777][self.random.below(4)])
            }
            76..80 => {
                let path = self.some_path(ve, |_, _, node| !matches!(node.kind, Kind::Symlink(_)))?;
                self.next_name += 1;
                Change::Attribute(path, format!("value{}", self.next_name))
            }
            80..88 => Change::Sync(self.some_file(ve)?),
            88..91 => Change::SyncDir(self.some_dir(ve)?),
            91..96 => Change::Hold(self.some_file(ve)?),
            _ => Change::Release,
        })
    }

    fn content(&self, ve: &str, path: &str) -> Arc<Vec<u8>> {
        self.contents[&self.world.ves[ve].names[path]].now()
    }

    fn new_node(&mut self, kind: Kind, perm: u16, content: Vec<u8>) -> (FileId, Node) {
        self.next_id += 1;
        if kind == Kind::File {
            let version = Version { since: self.ops.len(), bytes: Arc::new(content) };
            self.contents.insert(self.next_id, History { versions: vec![version], syncs: Vec::new() });
        }
        (self.next_id, Node { kind, perm, attribute: None })
    }

    fn tree_of(&mut self, source: &Source, version: usize) -> Tree {
        let mut tree = Tree { version, names: BTreeMap::new(), nodes: BTreeMap::new() };
        for dir in source.dirs() {
            let (id, node) = self.new_node(Kind::Dir, 0o755, Vec::new());
            tree.names.insert(dir, id);
            tree.nodes.insert(id, node);
        }
        for (path, bytes) in &source.files {
            let (id, node) = self.new_node(Kind::File, 0o644, bytes.clone());
            tree.names.insert(path.clone(), id);
            tree.nodes.insert(id, node);
        }
        for (path, link) in &source.links {
            let id = tree.names[path];
            tree.names.insert(link.clone(), id);
        }
        tree
    }

    fn carry_out(&mut self, op: &Op) {
        match op {
            Op::Import(spec) => {
                self.world.templates.insert(spec.clone());
            }
            Op::RemoveTemplate(spec) => {
                self.world.templates.remove(spec);
            }
            Op::CreateVe(ve) => {
                let tree = self.tree_of(&os(1), 1);
                self.world.ves.insert(ve.clone(), tree);
            }
            Op::RemoveVe(ve) => {
                self.world.ves.remove(ve);
            }
            Op::Update(ve, version) => {
                let fresh = self.tree_of(&os(*version), *version);
                if let Some(tree) = self.world.ves.get_mut(ve) {
                    tree.version = *version;
                    for path in tree.below(RELEASE) {
                        tree.remove(&path);
                    }
                    for path in fresh.below(RELEASE) {
                        let id = fresh.names[&path];
                        tree.names.insert(path, id);
                        tree.nodes.insert(id, fresh.nodes[&id].clone());
                    }
                }
            }
            Op::In(ve, change) => self.change(ve, change),
            Op::Open
            | Op::Collect
            | Op::Restart { .. }
            | Op::HostSyncs
            | Op::HostWritesLog
            | Op::HostWritesData => {}
        }
    }

    fn change(&mut self, ve: &str, change: &Change) {
        let now = self.ops.len();
        let made = match change {
            Change::Make(path) => Some((path, self.new_node(Kind::File, 0o644, Vec::new()))),
            Change::MakeDir(path) => Some((path, self.new_node(Kind::Dir, 0o755, Vec::new()))),
            Change::Symlink(path, target) => {
                Some((path, self.new_node(Kind::Symlink(target.clone()), 0o777, Vec::new())))
            }
            _ => None,
        };
        let Some(tree) = self.world.ves.get_mut(ve) else { return };
        if let Some((path, (id, node))) = made {
            tree.names.insert(path.clone(), id);
            tree.nodes.insert(id, node);
            return;
        }
        let mut rewrite = |id: FileId, edit: &dyn Fn(&mut Vec<u8>)| {
            if let Some(history) = self.contents.get_mut(&id) {
                let mut bytes = history.now().to_vec();
                edit(&mut bytes);
                history.versions.push(Version { since: now, bytes: Arc::new(bytes) });
            }
        };
        match change {
            Change::Write { path, offset, bytes } => rewrite(tree.names[path], &|content| {
                let end = offset + bytes.len();
                content.resize(content.len().max(end), 0);
                content[*offset..end].copy_from_slice(bytes);
            }),
            Change::Truncate(path, size) => rewrite(tree.names[path], &|content| content.resize(*size, 0)),
            Change::Link(path, new) => {
                let id = tree.names[path];
                tree.names.insert(new.clone(), id);
            }
            Change::Rename(old, new) => {
                tree.remove(new);
                let moved = tree.below(old);
                for path in moved.iter().chain([old]) {
                    if let Some(id) = tree.names.remove(path) {
                        tree.names.insert(format!("{new}{}", &path[old.len()..]), id);
                    }
                }
            }
            Change::Remove(path) | Change::RemoveDir(path) => tree.remove(path),
            Change::Mode(path, perm) => {
                let id = tree.names[path];
                tree.nodes.entry(id).and_modify(|node| node.perm = *perm);
            }
            Change::Attribute(path, value) => {
                let id = tree.names[path];
                tree.nodes.entry(id).and_modify(|node| node.attribute = Some(value.clone()));
            }
            Change::Sync(path) => {
                let id = tree.names[path];
                self.contents.entry(id).and_modify(|history| history.syncs.push(now));
            }
            Change::Make(_)
            | Change::MakeDir(_)
            | Change::Symlink(..)
            | Change::SyncDir(_)
            | Change::Hold(_)
            | Change::Release => {}
        }
    }
}

/// The directory of a path, for who applies a plan.
pub fn dir_and_name(path: &str) -> (&str, &str) {
    let dir = parent(path);
    (dir, path[dir.len()..].trim_start_matches('/'))
}
