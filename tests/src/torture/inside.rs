//! A store that is worked with and looked at in this process: the daemon's code without the daemon and without FUSE, fast enough for thousands of
//! crash points.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vzfs::api::{CreateVe, GcRequest, ImportRequest, VerifyStore};
use vzfs::store::{BoxError, Mounted, Mounter, Pace, Rebase, Store, StoreError, UnmountError};
use vzfs::types::{FileKind, IdShift, Ino, NameRef, VeName};
use vzfs::volume::{Caller, NewNode, Rebased, RenameMode, SetAttr, Sharing, Volume, VolumeError, XattrMode};

use super::model::{ATTRIBUTE, Kind, Node, Source, extra, line, os};
use super::plan::{Change, Op, dir_and_name};
use super::random::Random;

/// As a daemon waits for the one before it.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);

/// What failed, for people.
pub type Failure = String;

fn failed<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> Failure {
    let what = what.to_owned();
    move |error| format!("{what}: {error}")
}

/// Mounts nothing, and keeps the volumes for whoever works with them.
#[derive(Clone, Default)]
struct Volumes(Arc<Mutex<BTreeMap<VeName, Arc<Volume>>>>);

impl Volumes {
    fn get(&self, ve: &str) -> Arc<Volume> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.get(&name(ve)).expect("the VE is mounted"))
    }
}

struct Kept {
    volumes: Volumes,
    ve: VeName,
}

impl Mounter for Volumes {
    fn mount(
        &self,
        volume: Arc<Volume>,
        ve: &VeName,
        _: &Path,
        _: Option<IdShift>,
    ) -> Result<Box<dyn Mounted>, BoxError> {
        volume.free_orphans(|_| false)?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(ve.clone(), volume);
        Ok(Box::new(Kept { volumes: self.clone(), ve: ve.clone() }))
    }
}

impl Mounted for Kept {
    fn is_alive(&self) -> bool {
        true
    }

    fn passthrough(&self) -> bool {
        false
    }

    fn tell(&self, rebased: &Rebased) {
        let volume = self.volumes.get(self.ve.as_str());
        for ino in &rebased.orphans {
            // Whoever has it open keeps it.
            let _ = volume.forget(*ino);
        }
    }

    fn known(&self) -> Vec<Ino> {
        Vec::new()
    }

    fn lock_holder(&self, _: Ino) -> Option<u32> {
        None
    }

    fn forget_blobs(&self) {}

    fn requests(&self) -> BTreeMap<&'static str, u64> {
        BTreeMap::new()
    }

    fn failures(&self) -> BTreeMap<&'static str, u64> {
        BTreeMap::new()
    }

    fn waited(&self) -> Duration {
        Duration::ZERO
    }

    fn unmount(self: Box<Self>, _: bool) -> Result<(), (Box<dyn Mounted>, UnmountError)> {
        self.volumes.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.ve);
        Ok(())
    }
}

fn name(ve: &str) -> VeName {
    ve.parse().expect("a legal name")
}

/// Writes a template's source to a folder.
pub fn write_source(source: &Source, root: &Path) -> std::io::Result<()> {
    let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
    for dir in source.dirs() {
        fs::create_dir_all(root.join(&dir))?;
        fs::set_permissions(root.join(&dir), fs::Permissions::from_mode(0o755))?;
    }
    for (path, bytes) in &source.files {
        fs::write(root.join(path), bytes)?;
        fs::set_permissions(root.join(path), fs::Permissions::from_mode(0o644))?;
        File::open(root.join(path))?.set_modified(time)?;
    }
    for (path, link) in &source.links {
        fs::hard_link(root.join(path), root.join(link))?;
    }
    for dir in source.dirs() {
        File::open(root.join(dir))?.set_modified(time)?;
    }
    Ok(())
}

/// The folder with the sources of all templates, outside of the disk under test.
pub fn write_sources(folder: &Path) {
    let all = [os(1), os(2), extra(1), extra(2), extra(3)];
    for source in all {
        write_source(&source, &folder.join(&source.spec)).expect("the scratch folder is writable");
    }
}

/// A store at work.
pub struct Inside {
    disk: PathBuf,
    sources: PathBuf,
    store: Option<Store>,
    volumes: Volumes,
    random: Random,
    /// Open for reading, with how.
    held: Vec<(String, Ino, Sharing)>,
    /// Removed, but a program has them open yet.
    nameless: Vec<(String, Ino)>,
    host_files: usize,
}

impl Inside {
    /// On the filesystem of the disk under test.
    pub fn new(disk: &Path, sources: &Path, seed: u64) -> Inside {
        Inside {
            disk: disk.to_owned(),
            sources: sources.to_owned(),
            store: None,
            volumes: Volumes::default(),
            random: Random::new(seed),
            held: Vec::new(),
            nameless: Vec::new(),
            host_files: 0,
        }
    }

    fn store(&self) -> &Store {
        self.store.as_ref().expect("the store is open")
    }

    /// Opens the store and mounts all VEs.
    pub fn open(&mut self) -> Result<(), Failure> {
        self.volumes = Volumes::default();
        let begin = Instant::now();
        let store = loop {
            match Store::create_or_open(&self.disk.join("store"), Box::new(self.volumes.clone())) {
                // A command that another test starts at this moment has this process's locks until it is another program.
                Err(StoreError::Locked { .. }) if begin.elapsed() < LOCK_PATIENCE => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                opened => break opened.map_err(failed("the store does not open"))?,
            }
        };
        self.store = Some(store);
        let ves = self.store().ves().map_err(failed("the VEs cannot be listed"))?;
        for ve in ves {
            self.mount(&ve.name)?;
        }
        Ok(())
    }

    fn mount(&self, ve: &VeName) -> Result<(), Failure> {
        let place = PathBuf::from("/nowhere").join(ve.as_str());
        self.store().mount(ve, Some(&place)).map_err(failed(&format!("VE {ve} cannot be mounted")))?;
        Ok(())
    }

    /// Lets go of everything, in order or as if killed.
    pub fn end(&mut self, killed: bool) {
        self.held.clear();
        self.nameless.clear();
        if let Some(store) = self.store.take()
            && !killed
        {
            store.close();
        }
        self.volumes = Volumes::default();
    }

    /// Carries out an operation, which must succeed.
    pub fn apply(&mut self, op: &Op) -> Result<(), Failure> {
        match op {
            Op::Open => self.open(),
            Op::Import(spec) => {
                let request = ImportRequest {
                    template: spec.parse().map_err(failed("a template's name"))?,
                    source: self.sources.join(spec),
                    kind: None,
                    os: None,
                    summary: String::new(),
                    labels: BTreeMap::new(),
                    packages: Some(Vec::new()),
                    exclude: Vec::new(),
                    merge: Vec::new(),
                    recipe: None,
                };
                self.store().import(&request, &()).map(drop).map_err(failed("import"))
            }
            Op::RemoveTemplate(spec) => {
                let reference = spec.parse().map_err(failed("a template's name"))?;
                self.store().remove_template(&reference, false).map(drop).map_err(failed("remove a template"))
            }
            Op::CreateVe(ve) => {
                let request = CreateVe {
                    name: name(ve),
                    templates: vec!["os@1".parse().map_err(failed("a template's name"))?],
                    count: None,
                    id_shift: None,
                    labels: BTreeMap::new(),
                };
                self.store().create(&request).map_err(failed("make a VE"))?;
                self.mount(&name(ve))
            }
            Op::RemoveVe(ve) => {
                self.held.retain(|(of, ..)| of != ve);
                self.nameless.retain(|(of, _)| of != ve);
                self.store().remove(&name(ve), true).map(drop).map_err(failed("remove a VE"))
            }
            Op::Update(ve, version) => {
                let wanted = [format!("os@{version}").parse().map_err(failed("a template's name"))?];
                let stack = self.store().next_stack(&name(ve), &wanted).map_err(failed("update"))?;
                self.store().rebase(&name(ve), &stack, Rebase::default()).map(drop).map_err(failed("update"))
            }
            Op::Collect => self.collect(),
            Op::Restart { killed } => {
                self.end(*killed);
                self.open()
            }
            Op::In(ve, change) => {
                self.change(ve, change).map_err(|error| format!("VE {ve}: {change:?}: {error}"))
            }
            Op::HostSyncs => {
                self.host_files += 1;
                let path = self.disk.join(format!("host{}", self.host_files));
                let synced = File::create(path).and_then(|file| file.sync_all());
                synced.map_err(failed("the host's own file"))
            }
            Op::HostWritesLog => write_back_some(&self.disk.join("store/meta"), &mut self.random),
            Op::HostWritesData => write_back_some(&self.disk.join("store/data"), &mut self.random),
        }
    }

    /// Collects garbage.
    pub fn collect(&self) -> Result<(), Failure> {
        self.store().collect(GcRequest::default(), &()).map(drop).map_err(failed("collect"))
    }

    fn at(&self, volume: &Volume, path: &str) -> Result<Ino, VolumeError> {
        volume.resolve(path.as_bytes())?.ok_or(VolumeError::NotFound)
    }

    /// An inode may have lost its last name.
    fn left(&mut self, ve: &str, ino: Ino) -> Result<(), VolumeError> {
        let volume = self.volumes.get(ve);
        if !volume.is_orphan(ino)? {
            return Ok(());
        }
        if self.random.once_in(3) {
            self.nameless.push((ve.to_owned(), ino));
            return Ok(());
        }
        volume.forget(ino)
    }

    fn change(&mut self, ve: &str, change: &Change) -> Result<(), VolumeError> {
        let volume = self.volumes.get(ve);
        let make = |path: &str, new: NewNode<'_>| {
            let (dir, last) = dir_and_name(path);
            let last = NameRef::new(last.as_bytes()).expect("plans have legal names");
            volume.create(self.at(&volume, dir)?, last, new, Caller::ROOT).map(drop)
        };
        let place = |path: &str| -> Result<(Ino, Vec<u8>), VolumeError> {
            let (dir, last) = dir_and_name(path);
            Ok((self.at(&volume, dir)?, last.as_bytes().to_vec()))
        };
        let legal = |bytes: &[u8]| vzfs::types::Name::new(bytes).expect("plans have legal names");
        match change {
            Change::Make(path) => make(path, NewNode::new(FileKind::File, 0o644)),
            Change::MakeDir(path) => make(path, NewNode::new(FileKind::Dir, 0o755)),
            Change::Symlink(path, target) => {
                let target = target.as_bytes();
                make(path, NewNode { target, ..NewNode::new(FileKind::Symlink, 0o777) })
            }
            Change::Link(path, new) => {
                let (dir, last) = place(new)?;
                volume.link(self.at(&volume, path)?, dir, legal(&last).as_ref()).map(drop)
            }
            Change::Rename(old, new) => {
                let (from, to) = (place(old)?, place(new)?);
                let replaced = volume.resolve(new.as_bytes())?;
                let (last, new_last) = (legal(&from.1), legal(&to.1));
                volume.rename(from.0, last.as_ref(), to.0, new_last.as_ref(), RenameMode::Replace)?;
                replaced.map_or(Ok(()), |ino| self.left(ve, ino))
            }
            Change::Remove(path) | Change::RemoveDir(path) => {
                let ino = self.at(&volume, path)?;
                let (dir, last) = place(path)?;
                match change {
                    Change::Remove(_) => volume.unlink(dir, legal(&last).as_ref())?,
                    _ => volume.rmdir(dir, legal(&last).as_ref())?,
                }
                self.left(ve, ino)
            }
            Change::Mode(path, perm) => {
                let set = SetAttr { perm: Some(*perm), ..SetAttr::default() };
                volume.set_attr(self.at(&volume, path)?, set, Caller::ROOT).map(drop)
            }
            Change::Attribute(path, value) => volume.set_xattr(
                self.at(&volume, path)?,
                ATTRIBUTE.as_bytes(),
                value.as_bytes(),
                XattrMode::Any,
                Caller::ROOT,
            ),
            Change::Sync(path) => volume.fsync(self.at(&volume, path)?, false),
            Change::SyncDir(_) => volume.sync(),
            Change::Truncate(path, size) => self.again_if_stale(ve, path, |volume, ino| {
                let set = SetAttr { size: Some(*size as u64), ..SetAttr::default() };
                volume.set_attr(ino, set, Caller::ROOT).map(drop)
            }),
            Change::Write { path, offset, bytes } => {
                let served = self.random.once_in(2);
                let held = &self.held;
                self.again_if_stale(ve, path, |volume, ino| {
                    // All handles of an inode are of one kind, as in a mount.
                    let kept = held.iter().find(|(of, held, _)| of == ve && *held == ino);
                    let sharing = match kept {
                        Some((.., sharing)) => *sharing,
                        None if served => Sharing::Served,
                        None => Sharing::Passthrough,
                    };
                    let open = volume.open_file(ino, true, sharing)?;
                    let written = match sharing {
                        Sharing::Served => volume.write(ino, *offset as u64, bytes, Caller::ROOT),
                        // As the kernel does it.
                        Sharing::Passthrough => volume
                            .backing_file(&open)?
                            .write_all_at(bytes, *offset as u64)
                            .map_err(|source| VolumeError::Io { what: "write".to_owned(), source }),
                    };
                    volume.release(ino, sharing);
                    written
                })
            }
            Change::Hold(path) => {
                let ino = self.at(&volume, path)?;
                if self.held.iter().any(|(of, held, _)| of == ve && *held == ino) {
                    return Ok(());
                }
                let sharing = if self.random.once_in(3) { Sharing::Served } else { Sharing::Passthrough };
                volume.open_file(ino, false, sharing)?;
                self.held.push((ve.to_owned(), ino, sharing));
                Ok(())
            }
            Change::Release => {
                for (ve, ino, sharing) in std::mem::take(&mut self.held) {
                    let volume = self.volumes.get(&ve);
                    volume.release(ino, sharing);
                    volume.forget(ino)?;
                }
                for (ve, ino) in std::mem::take(&mut self.nameless) {
                    self.volumes.get(&ve).forget(ino)?;
                }
                Ok(())
            }
        }
    }

    /// As the kernel does: what became another inode is looked up again.
    fn again_if_stale(
        &self,
        ve: &str,
        path: &str,
        work: impl Fn(&Volume, Ino) -> Result<(), VolumeError>,
    ) -> Result<(), VolumeError> {
        let volume = self.volumes.get(ve);
        loop {
            let ino = self.at(&volume, path)?;
            match work(&volume, ino) {
                Err(VolumeError::Stale) => {
                    let _told = volume.take_relabelled();
                }
                done => return done,
            }
        }
    }

    /// What the store shows now.
    pub fn observe(&self) -> Result<Seen, Failure> {
        let mut seen = Seen::default();
        for template in self.store().templates() {
            seen.text.push_str(&format!("template {}\n", template.spec()));
        }
        let ves = self.store().ves().map_err(failed("the VEs cannot be listed"))?;
        for ve in ves {
            seen.text.push_str(&format!("VE {}\n", ve.name));
            let volume = self.volumes.get(ve.name.as_str());
            look(&volume, ve.name.as_str(), &mut seen).map_err(|error| format!("VE {}: {error}", ve.name))?;
            let broken = volume.check().map_err(failed("check"))?;
            if !broken.is_empty() {
                return Err(format!("VE {}: {}", ve.name, broken.join("; ")));
            }
        }
        Ok(seen)
    }

    /// Reads every tree and blob.
    pub fn verify(&self) -> Result<(), Failure> {
        let report =
            self.store().verify_store(&VerifyStore::default(), Pace::Full, &()).map_err(failed("verify"))?;
        match report.damaged.first() {
            None => Ok(()),
            Some(damage) => Err(format!("{:?} {} is damaged: {}", damage.what, damage.digest, damage.why)),
        }
    }

    /// Makes and syncs a file in each VE, which must be empty at first and hold what was written afterwards.
    pub fn go_on(&self) -> Result<(), Failure> {
        for ve in self.store().ves().map_err(failed("the VEs cannot be listed"))? {
            let volume = self.volumes.get(ve.name.as_str());
            let work = || -> Result<bool, VolumeError> {
                let fresh = NameRef::new(b"after the crash").expect("a legal name");
                let new = NewNode::new(FileKind::File, 0o600);
                let ino = volume.create(Ino::ROOT, fresh, new, Caller::ROOT)?.ino;
                let mut bytes = [0; 16];
                let empty = volume.attr(ino)?.size == 0;
                volume.write(ino, 0, b"works", Caller::ROOT)?;
                volume.fsync(ino, false)?;
                let read = volume.read(ino, 0, &mut bytes)?;
                volume.unlink(Ino::ROOT, fresh)?;
                volume.forget(ino)?;
                Ok(empty && bytes[..read] == *b"works")
            };
            match work() {
                Ok(true) => {}
                Ok(false) => return Err(format!("VE {}: a new file is not empty", ve.name)),
                Err(error) => return Err(format!("VE {}: a new file: {error}", ve.name)),
            }
        }
        Ok(())
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.end(true);
    }
}

/// What a store shows.
#[derive(Default, PartialEq, Eq)]
pub struct Seen {
    /// As in [`World::text`](super::model::World::text).
    pub text: String,
    /// The contents of regular files by VE and path.
    pub contents: BTreeMap<(String, String), Vec<u8>>,
}

fn look(volume: &Volume, ve: &str, seen: &mut Seen) -> Result<(), VolumeError> {
    let mut all = BTreeMap::new();
    volume.export_source().for_each(&mut |path, ino, attr| {
        all.insert(String::from_utf8_lossy(path).into_owned(), (ino, *attr));
        Ok::<_, VolumeError>(())
    })?;
    let mut first: BTreeMap<Ino, String> = BTreeMap::new();
    for (path, (ino, attr)) in &all {
        let kind = match attr.kind {
            FileKind::Dir => Kind::Dir,
            FileKind::File => Kind::File,
            FileKind::Symlink => {
                Kind::Symlink(String::from_utf8_lossy(&volume.read_link(*ino)?).into_owned())
            }
            _ => return Err(VolumeError::Invalid("nobody made a special file")),
        };
        let attribute = match volume.xattr(*ino, ATTRIBUTE.as_bytes()) {
            Ok(value) => Some(String::from_utf8_lossy(&value).into_owned()),
            Err(VolumeError::NoData) => None,
            Err(error) => return Err(error),
        };
        if kind == Kind::File {
            let mut bytes = vec![0; usize::try_from(attr.size).unwrap_or(usize::MAX).min(1 << 24)];
            let read = volume.read(*ino, 0, &mut bytes)?;
            bytes.truncate(read);
            seen.contents.insert((ve.to_owned(), path.clone()), bytes);
        }
        let first = first.entry(*ino).or_insert_with(|| path.clone());
        let node = Node { kind, perm: attr.perm, attribute };
        seen.text.push_str(&line(ve, path, first, &node, attr.nlink as usize));
    }
    Ok(())
}

/// Has the kernel write out what is dirty of the database's logs, and of some of all other files in a folder. That makes nothing durable.
pub fn write_back_some(folder: &Path, random: &mut Random) -> Result<(), Failure> {
    for entry in fs::read_dir(folder).map_err(failed("what is to be written out"))?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            write_back_some(&path, random)?;
            continue;
        }
        let is_log = path.extension().is_some_and(|extension| extension == "log");
        if (is_log || random.once_in(2))
            && let Ok(file) = File::open(&path)
        {
            write_back(&file).map_err(failed("write out"))?;
        }
    }
    Ok(())
}

/// Writes a file's dirty pages to the disk, as the kernel does now and then. That makes nothing durable.
fn write_back(file: &File) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    let flags =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: the descriptor is open, and the call reads nothing of ours.
    match unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
