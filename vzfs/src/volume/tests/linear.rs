//! Small concurrent histories on one volume, each of which must be explained by some order of its operations.
//!
//! Threads run short programs on few names and note every call with its result and two ticks of a common clock, before and after it. A
//! search (Wing and Gong's, with a memory of what was tried) then looks for an order in which the naive model gives the same results and in
//! the end the same tree, and in which no call comes before one that had returned when it began.

#![allow(clippy::panic)]

use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::unix::fs::FileExt;
use std::sync::Barrier;
use std::sync::atomic::AtomicU64;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};

use super::model::{Id, Model, Outcome};
use super::*;

/// Histories of a run; `VZFS_LINEAR_CASES` sets another number.
const CASES: u32 = 1500;
/// Each program is run so often, as threads meet differently each time.
const ROUNDS: usize = 3;
/// Data is written in words, so that the host's reads and writes of them are atomic, and sizes are 0, one or two words: cutting off a
/// part of a page beside a reader is not atomic on every host filesystem.
const WORD: u64 = 8;
const DIRS: u8 = 2;
const NAMES: [&str; 3] = ["a", "b", "c"];

/// A name: one of the directories, one of the names.
type Place = (u8, u8);

/// One line of a thread's program.
#[derive(Clone, Debug)]
enum Act {
    Create(Place, FileKind),
    Unlink(Place),
    Rmdir(Place),
    Rename(Place, Place, RenameMode),
    Link(Place, Place),
    Stat(Place),
    List(u8),
    Chmod(Place, u16),
    Truncate(Place, u64),
    SetXattr(Place, u8, XattrMode),
    RemoveXattr(Place),
    /// Opens for writing, again where the file was relabelled, writes a word, and closes.
    Write(Place, u64, u8),
    /// Opens for reading, and keeps the handle.
    Open(Place),
    /// Reads with the handle.
    Read,
    /// Closes the handle.
    Close,
    /// Gives the data file up for a blob, if nobody uses it.
    Dedup(Place),
}

/// One call of the volume.
#[derive(Clone, Debug)]
enum Call {
    Create(Place, FileKind),
    Unlink(Place),
    Rmdir(Place),
    Rename(Place, Place, RenameMode),
    Link(Ino, Place),
    Lookup(Place),
    List(u8),
    Chmod(Ino, u16),
    Truncate(Ino, u64),
    SetXattr(Ino, u8, XattrMode),
    RemoveXattr(Ino),
    Open(Ino, bool),
    Release(Ino),
    Write(Ino, u64, u8),
    Read(Ino),
    Dedup(Ino),
}

/// What a call told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    Ino(Ino),
    /// Number, kind, permissions, links, size of a file.
    Attr(Ino, FileKind, u16, u32, u64),
    Bytes(Vec<u8>),
    GivenUp(bool),
    Names(BTreeMap<Vec<u8>, Ino>),
}

#[derive(Clone, Debug)]
struct Event {
    call: Call,
    result: Outcome<Told>,
    begin: u64,
    end: u64,
}

fn size_of(kind: FileKind, size: u64) -> u64 {
    if kind == FileKind::File { size } else { 0 }
}

/// A thread at work.
struct Worker<'w> {
    blobs: &'w BlobStore,
    volume: &'w Volume,
    dirs: [Ino; DIRS as usize],
    clock: &'w AtomicU64,
    events: Vec<Event>,
    handle: Option<(Ino, OpenFile)>,
}

impl Worker<'_> {
    fn at(&self, (dir, name): Place) -> (Ino, NameRef<'static>) {
        (self.dirs[usize::from(dir)], super::name(NAMES[usize::from(name)]))
    }

    fn call<T>(
        &mut self,
        call: Call,
        work: impl FnOnce(&Self) -> Result<T>,
        told: impl FnOnce(&T) -> Told,
    ) -> Outcome<T> {
        let begin = self.clock.fetch_add(1, Ordering::SeqCst);
        let result = plain(work(self));
        let end = self.clock.fetch_add(1, Ordering::SeqCst);
        let result_told = result.as_ref().map(told).map_err(Clone::clone);
        self.events.push(Event { call, result: result_told, begin, end });
        result
    }

    fn lookup(&mut self, place: Place) -> Outcome<Ino> {
        let told = |attr: &Attr| {
            Told::Attr(attr.ino, attr.kind, attr.perm, attr.nlink, size_of(attr.kind, attr.size))
        };
        let look = |worker: &Self| {
            let (dir, name) = worker.at(place);
            worker.volume.lookup(dir, name)
        };
        Ok(self.call(Call::Lookup(place), look, told)?.ino)
    }

    fn nothing(&mut self, call: Call, work: impl FnOnce(&Self) -> Result<()>) -> Outcome<()> {
        self.call(call, work, |()| Told::Nothing)
    }

    fn open(&mut self, place: Place, write: bool) -> Outcome<(Ino, OpenFile)> {
        loop {
            let ino = self.lookup(place)?;
            let open = |worker: &Self| worker.volume.open_file(ino, write, Sharing::Passthrough);
            match self.call(Call::Open(ino, write), open, |_| Told::Nothing) {
                Err(error) if error == "Stale" => {}
                opened => return Ok((ino, opened?)),
            }
        }
    }

    fn close(&mut self, ino: Ino) {
        let release = |worker: &Self| {
            worker.volume.release(ino, Sharing::Passthrough);
            Ok(())
        };
        drop(self.nothing(Call::Release(ino), release));
    }

    fn act(&mut self, act: &Act) -> Outcome<()> {
        match *act {
            Act::Create(place, kind) => {
                let create = |worker: &Self| {
                    let (dir, name) = worker.at(place);
                    worker.volume.create(dir, name, NewNode::new(kind, 0o644), Caller::ROOT)
                };
                self.call(Call::Create(place, kind), create, |attr| Told::Ino(attr.ino)).map(drop)
            }
            Act::Unlink(place) => self.nothing(Call::Unlink(place), |worker| {
                let (dir, name) = worker.at(place);
                worker.volume.unlink(dir, name)
            }),
            Act::Rmdir(place) => self.nothing(Call::Rmdir(place), |worker| {
                let (dir, name) = worker.at(place);
                worker.volume.rmdir(dir, name)
            }),
            Act::Rename(from, to, mode) => self.nothing(Call::Rename(from, to, mode), |worker| {
                let ((dir, name), (new_dir, new_name)) = (worker.at(from), worker.at(to));
                worker.volume.rename(dir, name, new_dir, new_name, mode)
            }),
            Act::Link(from, to) => {
                let ino = self.lookup(from)?;
                self.nothing(Call::Link(ino, to), |worker| {
                    let (dir, name) = worker.at(to);
                    worker.volume.link(ino, dir, name).map(drop)
                })
            }
            Act::Stat(place) => self.lookup(place).map(drop),
            Act::List(dir) => {
                let listed = |worker: &Self| {
                    let mut names = BTreeMap::new();
                    worker.volume.read_dir(worker.dirs[usize::from(dir)], 0, |entry| {
                        names.insert(entry.name.to_vec(), entry.ino);
                        true
                    })?;
                    Ok(names)
                };
                self.call(Call::List(dir), listed, |names| Told::Names(names.clone())).map(drop)
            }
            Act::Chmod(place, perm) => {
                let ino = self.lookup(place)?;
                let set = SetAttr { perm: Some(perm), ..SetAttr::default() };
                self.nothing(Call::Chmod(ino, perm), |worker| {
                    worker.volume.set_attr(ino, set, Caller::ROOT).map(drop)
                })
            }
            Act::Truncate(place, size) => {
                let ino = self.lookup(place)?;
                let set = SetAttr { size: Some(size), ..SetAttr::default() };
                self.nothing(Call::Truncate(ino, size), |worker| {
                    worker.volume.set_attr(ino, set, Caller::ROOT).map(drop)
                })
            }
            Act::SetXattr(place, value, mode) => {
                let ino = self.lookup(place)?;
                self.nothing(Call::SetXattr(ino, value, mode), |worker| {
                    worker.volume.set_xattr(ino, b"user.x", &[value], mode, Caller::ROOT)
                })
            }
            Act::RemoveXattr(place) => {
                let ino = self.lookup(place)?;
                self.nothing(Call::RemoveXattr(ino), |worker| worker.volume.remove_xattr(ino, b"user.x"))
            }
            Act::Write(place, offset, byte) => {
                let (ino, _) = self.open(place, true)?;
                let write = |worker: &Self| worker.volume.write(ino, offset, &[byte; WORD as usize], true);
                let written = self.nothing(Call::Write(ino, offset, byte), write);
                self.close(ino);
                written
            }
            Act::Open(place) => {
                self.act(&Act::Close)?;
                self.handle = Some(self.open(place, false)?);
                Ok(())
            }
            Act::Read => {
                let Some((ino, open)) = self.handle.clone() else { return Ok(()) };
                // As the kernel does: from the backing file.
                let read = |worker: &Self| {
                    let mut bytes = vec![0; 64];
                    let file = worker.volume.backing_file(&open)?;
                    let read = file.read_at(&mut bytes, 0).map_err(VolumeError::io("read"))?;
                    bytes.truncate(read);
                    Ok(bytes)
                };
                self.call(Call::Read(ino), read, |bytes| Told::Bytes(bytes.clone())).map(drop)
            }
            Act::Dedup(place) => {
                let ino = self.lookup(place)?;
                let dedup = |worker: &Self| give_up(worker.blobs, worker.volume, ino, || {});
                let told = |given: &std::result::Result<GivenUp, Unfit>| Told::GivenUp(given.is_ok());
                self.call(Call::Dedup(ino), dedup, told).map(drop)
            }
            Act::Close => {
                if let Some((ino, _)) = self.handle.take() {
                    self.close(ino);
                }
                Ok(())
            }
        }
    }
}

/// The model with the numbers that the volume gave its files, and with what passthrough makes of open ones.
#[derive(Clone, Debug)]
struct State {
    model: Model,
    dirs: [Id; DIRS as usize],
    /// Numbers as far as any result has told them.
    inos: BTreeMap<Ino, Id>,
    on_blob: BTreeSet<Id>,
    /// Open handles on blobs.
    readers: BTreeMap<Id, u32>,
    /// All open handles.
    handles: BTreeMap<Id, u32>,
}

impl State {
    fn at(&self, (dir, name): Place) -> (Id, Name) {
        (self.dirs[usize::from(dir)], super::name(NAMES[usize::from(name)]).to_name())
    }

    /// Whether a file may be the one with this number; if neither had a counterpart yet, they are from now on.
    fn is(&mut self, id: Id, ino: Ino) -> bool {
        match self.inos.get(&ino) {
            Some(known) => *known == id,
            None if self.inos.values().any(|known| *known == id) => false,
            None => {
                self.inos.insert(ino, id);
                true
            }
        }
    }

    fn id(&self, ino: Ino) -> Outcome<Id> {
        self.inos.get(&ino).copied().ok_or_else(|| "a number that nobody was told".to_owned())
    }

    /// Before content changes: other names for the changed file if somebody reads the blob.
    fn copy_up(&mut self, id: Id) -> Outcome<()> {
        if !self.on_blob.contains(&id) {
            return Ok(());
        }
        if self.readers.get(&id).is_some_and(|readers| *readers > 0) {
            if self.model.nlink(id) > 0 {
                self.model.relabel(id);
            }
            return Err("Stale".to_owned());
        }
        self.on_blob.remove(&id);
        Ok(())
    }

    /// Carries out a call. Whether the result is as noted.
    fn apply(&mut self, event: &Event) -> bool {
        match (self.told(&event.call, &event.result), &event.result) {
            (Ok(told), Ok(noted)) => told == *noted,
            (Err(error), Err(noted)) => error == *noted,
            _ => false,
        }
    }

    fn told(&mut self, call: &Call, noted: &Outcome<Told>) -> Outcome<Told> {
        let nothing = Ok(Told::Nothing);
        match *call {
            Call::Create(place, kind) => {
                let (dir, name) = self.at(place);
                let id = self.model.create(dir, &name, NewNode::new(kind, 0o644), Caller::ROOT)?;
                // A new file may have any number that is no other's.
                match noted {
                    Ok(Told::Ino(ino)) if self.is(id, *ino) => Ok(Told::Ino(*ino)),
                    _ => Err("created".to_owned()),
                }
            }
            Call::Unlink(place) => {
                let (dir, name) = self.at(place);
                self.model.remove(dir, &name, false).and(nothing)
            }
            Call::Rmdir(place) => {
                let (dir, name) = self.at(place);
                self.model.remove(dir, &name, true).and(nothing)
            }
            Call::Rename(from, to, mode) => {
                let ((dir, name), (new_dir, new_name)) = (self.at(from), self.at(to));
                self.model.rename((dir, &name), (new_dir, &new_name), mode).and(nothing)
            }
            Call::Link(ino, place) => {
                let (id, (dir, name)) = (self.id(ino)?, self.at(place));
                self.model.link(id, dir, &name).and(nothing)
            }
            Call::Lookup(place) => {
                let (dir, name) = self.at(place);
                let id = self.model.find(dir, &name).ok_or("NotFound")?;
                match noted {
                    Ok(Told::Attr(ino, ..)) if self.is(id, *ino) => {
                        let thing = self.model.thing(id);
                        let size = size_of(thing.kind, thing.bytes.len() as u64);
                        Ok(Told::Attr(*ino, thing.kind, thing.perm, self.model.nlink(id), size))
                    }
                    _ => Err("found".to_owned()),
                }
            }
            Call::List(dir) => {
                let dir = self.dirs[usize::from(dir)];
                let mut children = self.model.thing(dir).children.clone();
                if self.model.nlink(dir) > 0 {
                    children.insert(b".".to_vec(), dir);
                    children.insert(b"..".to_vec(), self.model.thing(dir).parent);
                }
                let Ok(Told::Names(names)) = noted else { return Err("listed".to_owned()) };
                let same = names.len() == children.len()
                    && names
                        .iter()
                        .all(|(name, ino)| children.get(name).is_some_and(|id| self.is(*id, *ino)));
                if same { Ok(Told::Names(names.clone())) } else { Err("other names".to_owned()) }
            }
            Call::Chmod(ino, perm) => {
                let id = self.id(ino)?;
                self.model.change(id).perm = perm;
                nothing
            }
            Call::Truncate(ino, size) => {
                let id = self.id(ino)?;
                let thing = self.model.thing(id);
                if thing.kind == FileKind::File && thing.bytes.len() as u64 != size {
                    self.copy_up(id)?;
                }
                self.model.truncate(id, size, Caller::ROOT).and(nothing)
            }
            Call::SetXattr(ino, value, mode) => {
                let id = self.id(ino)?;
                self.model.set_xattr(id, b"user.x", &[value], mode).and(nothing)
            }
            Call::RemoveXattr(ino) => {
                let id = self.id(ino)?;
                self.model.change(id).xattrs.remove(&b"user.x"[..]).ok_or("NoData")?;
                nothing
            }
            Call::Open(ino, write) => {
                let id = self.id(ino)?;
                match self.model.thing(id).kind {
                    FileKind::File => {}
                    FileKind::Dir => return Err("IsDir".to_owned()),
                    _ => return Err("Invalid".to_owned()),
                }
                if write {
                    self.copy_up(id)?;
                } else if self.on_blob.contains(&id) {
                    *self.readers.entry(id).or_insert(0) += 1;
                }
                *self.handles.entry(id).or_insert(0) += 1;
                nothing
            }
            Call::Release(ino) => {
                let id = self.id(ino)?;
                if let Some(readers) = self.readers.get_mut(&id) {
                    *readers = readers.saturating_sub(1);
                }
                if let Some(handles) = self.handles.get_mut(&id) {
                    *handles = handles.saturating_sub(1);
                }
                nothing
            }
            Call::Write(ino, offset, byte) => {
                let id = self.id(ino)?;
                self.model.write(id, offset, &[byte; WORD as usize], true);
                nothing
            }
            Call::Dedup(ino) => {
                // It may always be left alone; but only what nobody uses is given up. It may have got its data file from an open that then found it
                // given up, and began anew.
                if *noted == Ok(Told::GivenUp(true)) {
                    let id = self.id(ino)?;
                    let unused = self.handles.get(&id).is_none_or(|handles| *handles == 0);
                    let is_file = self.model.thing(id).kind == FileKind::File;
                    if !unused || !is_file || self.model.nlink(id) == 0 {
                        return Err("given up".to_owned());
                    }
                    self.on_blob.insert(id);
                }
                noted.clone()
            }
            Call::Read(ino) => Ok(Told::Bytes(self.model.thing(self.id(ino)?).bytes.clone())),
        }
    }

    /// Everything that matters for what comes, whatever numbers the model has for its things.
    fn fingerprint(&self) -> String {
        format!("{self:?}")
    }
}

/// What a volume shows in the end.
type Shown = BTreeMap<Vec<u8>, (FileKind, u16, u32, Vec<u8>, BTreeMap<Vec<u8>, Vec<u8>>)>;

fn shown_by_volume(volume: &Volume) -> Shown {
    let mut shown = BTreeMap::new();
    let visit = |path: &[u8], ino: Ino, attr: &Attr| {
        let bytes = if attr.kind == FileKind::File { content(volume, ino) } else { Vec::new() };
        shown.insert(path.to_vec(), (attr.kind, attr.perm, attr.nlink, bytes, xattrs(volume, ino)));
        Ok::<_, VolumeError>(())
    };
    volume.export_source().for_each(&mut { visit }).expect("walk");
    shown
}

fn shown_by_model(model: &Model) -> Shown {
    let describe = |(path, id): (Vec<u8>, Id)| {
        let thing = model.thing(id);
        let bytes = if thing.kind == FileKind::File { thing.bytes.clone() } else { Vec::new() };
        (path, (thing.kind, thing.perm, model.nlink(id), bytes, thing.xattrs.clone()))
    };
    model.paths().into_iter().map(describe).collect()
}

/// Looks for an order of the events not yet in `done`.
fn explained(
    events: &[Event],
    done: u64,
    state: &State,
    shown: &Shown,
    tried: &mut HashSet<(u64, String)>,
) -> bool {
    if done.count_ones() as usize == events.len() {
        return shown_by_model(&state.model) == *shown;
    }
    if !tried.insert((done, state.fingerprint())) {
        return false;
    }
    let open = || events.iter().enumerate().filter(|(at, _)| done & 1 << at == 0);
    let Some(first_end) = open().map(|(_, event)| event.end).min() else { return false };
    open().filter(|(_, event)| event.begin < first_end).any(|(at, event)| {
        let mut next = state.clone();
        next.apply(event) && explained(events, done | 1 << at, &next, shown, tried)
    })
}

fn start(store: &Store) -> (Model, Arc<Tree>, HashMap<Id, Ino>) {
    let mut model = Model::new();
    let make = |model: &mut Model, dir, at: &str, kind| {
        model.create(dir, &name(at).to_name(), NewNode::new(kind, 0o755), Caller::ROOT).expect("new")
    };
    let dir = make(&mut model, 0, "d", FileKind::Dir);
    let file = make(&mut model, 0, "a", FileKind::File);
    model.write(file, 0, b"word one", true);
    model.link(file, dir, &name("b").to_name()).expect("link");
    let other = make(&mut model, dir, "a", FileKind::File);
    model.write(other, 0, b"word oneword two", true);
    make(&mut model, dir, "c", FileKind::Dir);
    let (tree, inos) = model.base(store);
    (model, tree, inos)
}

fn run(store: &Store, programs: &[Vec<Act>]) {
    let (model, tree, inos) = start(store);
    let scene = Scene::new(store, tree);
    let dir = scene.at("d");
    let (clock, barrier) = (AtomicU64::new(0), Barrier::new(programs.len()));
    let (clock, barrier, volume) = (&clock, &barrier, &scene.volume);
    let mut events: Vec<Event> = std::thread::scope(|scope| {
        let spawn = |program: &'_ Vec<Act>| {
            let program = program.clone();
            scope.spawn(move || {
                let (blobs, dirs) = (&*store.blobs, [Ino::ROOT, dir]);
                let mut worker = Worker { blobs, volume, dirs, clock, events: Vec::new(), handle: None };
                barrier.wait();
                for act in &program {
                    // A refusal is a result like any other.
                    drop(worker.act(act));
                }
                worker.events
            })
        };
        let threads: Vec<_> = programs.iter().map(spawn).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });
    events.sort_by_key(|event| event.begin);
    assert!(events.len() <= 64, "the search counts events in 64 bits");
    let dirs = [0, *inos.iter().find(|(_, ino)| **ino == dir).expect("it is there").0];
    let files = inos.keys().copied().filter(|id| model.thing(*id).kind == FileKind::File);
    let state = State {
        on_blob: files.collect(),
        inos: inos.into_iter().map(|(id, ino)| (ino, id)).collect(),
        model,
        dirs,
        readers: BTreeMap::new(),
        handles: BTreeMap::new(),
    };
    let shown = shown_by_volume(volume);
    if !explained(&events, 0, &state, &shown, &mut HashSet::new()) {
        let lines: Vec<String> = events.iter().map(|event| format!("{event:?}")).collect();
        panic!("no order explains\n{}\nand in the end {shown:?}", lines.join("\n"));
    }
}

fn programs() -> impl Strategy<Value = Vec<Vec<Act>>> {
    let place = || (0..DIRS, 0..NAMES.len() as u8);
    let modes = select(vec![
        RenameMode::Replace,
        RenameMode::Replace,
        RenameMode::NoReplace,
        RenameMode::Exchange,
        RenameMode::Whiteout(Caller::ROOT),
    ]);
    let xattr_modes = select(vec![XattrMode::Any, XattrMode::Create, XattrMode::Replace, XattrMode::Neither]);
    let act = prop_oneof![
        3 => (place(), select(vec![FileKind::File, FileKind::File, FileKind::Dir]))
            .prop_map(|(place, kind)| Act::Create(place, kind)),
        2 => place().prop_map(Act::Unlink),
        1 => place().prop_map(Act::Rmdir),
        3 => (place(), place(), modes).prop_map(|(from, to, mode)| Act::Rename(from, to, mode)),
        2 => (place(), place()).prop_map(|(from, to)| Act::Link(from, to)),
        2 => place().prop_map(Act::Stat),
        1 => (0..DIRS).prop_map(Act::List),
        1 => (place(), select(vec![0o600, 0o755])).prop_map(|(place, perm)| Act::Chmod(place, perm)),
        3 => (place(), select(vec![0, 2 * WORD])).prop_map(|(place, size)| Act::Truncate(place, size)),
        1 => (place(), 0u8..3, xattr_modes).prop_map(|(place, value, mode)| Act::SetXattr(place, value, mode)),
        1 => place().prop_map(Act::RemoveXattr),
        4 => (place(), select(vec![0, WORD]), b'p'..b't')
            .prop_map(|(place, offset, byte)| Act::Write(place, offset, byte)),
        3 => place().prop_map(Act::Open),
        3 => Just(Act::Read),
        1 => Just(Act::Close),
        3 => place().prop_map(Act::Dedup),
    ];
    vec(vec(act, 3..=5), 2..=4)
}

#[test]
fn every_history_is_some_order_of_its_operations() {
    let store = Store::new();
    let cases = std::env::var("VZFS_LINEAR_CASES").map_or(CASES, |text| text.parse().expect("a number"));
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 0, ..Config::default() };
    let outcome = TestRunner::new(config).run(&programs(), |programs| {
        (0..ROUNDS).for_each(|_| run(&store, &programs));
        Ok(())
    });
    outcome.map_err(|error| error.to_string()).expect("no counterexample");
}
