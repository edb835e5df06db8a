//! Import of a folder of this host, by several workers.
//!
//! A worker takes a job (a directory to list, or some of its other entries to read), looks at the files through the directory's own
//! descriptor and never through a path, so nothing outside the folder is reached even when someone renames things meanwhile. What is
//! found goes through a channel to the one thread that owns the tree. A directory is reported before the jobs for its
//! entries exist, so it always arrives before them.
//!
//! Mounts below the folder are not entered: a mounted-on directory is imported empty, a mounted-on file as an empty
//! one.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender};
use parking_lot::{Condvar, Mutex};
use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::Xattrs;
use super::error::{ArchiveError, Reason, printable};
use super::limits::{Budget, Exclude, Limits, MAX_PATH_BYTES, Progress};
use crate::blobs::Batch;
use crate::tree::{Content, Meta, NodeId, TreeBuilder};
use crate::types::{FileKind, MAX_XATTR_VALUE_BYTES, NameRef, Timestamp};

/// Non-directories in one job: enough that the queue costs nothing, few enough that workers stay balanced.
const JOB_ENTRIES: usize = 64;
const MAX_WORKERS: usize = 8;

/// A number of the walk for a directory, before it has a node.
type DirNumber = usize;
/// What hard links of one inode share.
type Inode = (u64, u64);

struct Folder {
    number: DirNumber,
    fd: OwnedFd,
    /// From the root, without leading slash; empty for the root.
    path: Vec<u8>,
}

enum Job {
    /// A directory to list.
    List { parent: Arc<Folder>, name: CString },
    /// Entries to read that are, by what the listing said, no directories.
    Read { parent: Arc<Folder>, names: Vec<CString> },
}

enum Found {
    Dir {
        number: DirNumber,
        parent: DirNumber,
        name: CString,
        meta: Meta,
    },
    /// A file, or the first name of one with several.
    Node {
        parent: DirNumber,
        name: CString,
        meta: Meta,
        content: Content,
        inode: Option<Inode>,
    },
    /// Another name of a file that some worker reads.
    Link {
        parent: DirNumber,
        name: CString,
        inode: Inode,
    },
}

/// Where and why the walk failed.
struct Failure {
    path: Vec<u8>,
    reason: Reason,
}

struct Queue {
    jobs: Vec<Job>,
    /// Jobs taken and not finished: they may still bring new ones.
    running: usize,
    next_number: DirNumber,
    stopped: bool,
}

struct Walk<'a, 's> {
    batch: &'a Batch<'s>,
    budget: Budget<'a>,
    exclude: &'a Exclude,
    progress: &'a dyn Progress,
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Inodes with several names that some worker has begun to read.
    links: Mutex<HashSet<Inode>>,
}

/// Reads everything below `dir` into the batch and a new tree.
pub(super) fn import(
    dir: &Path,
    batch: &Batch<'_>,
    limits: &Limits,
    exclude: &Exclude,
    progress: &dyn Progress,
) -> Result<TreeBuilder, ArchiveError> {
    let failed = |failure: Failure| match failure.path.is_empty() {
        true => ArchiveError::Archive { archive: dir.to_owned(), reason: failure.reason },
        false => ArchiveError::Entry {
            archive: dir.to_owned(),
            entry: printable(&failure.path),
            reason: failure.reason,
        },
    };
    let at_root = |reason| failed(Failure { path: Vec::new(), reason });
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = fs::open(dir, flags, Mode::empty()).map_err(|errno| ArchiveError::Io {
        action: "open",
        path: dir.to_owned(),
        source: errno.into(),
    })?;
    let stat = fs::fstat(&fd).map_err(Reason::io("look at the folder")).map_err(at_root)?;
    let xattrs = read_xattrs(&XattrsOf::Open(fd.as_fd())).map_err(at_root)?;
    let builder = TreeBuilder::new(meta(&stat, xattrs).map_err(at_root)?);

    let walk = Walk {
        batch,
        budget: Budget::new(limits),
        exclude,
        progress,
        queue: Mutex::new(Queue { jobs: Vec::new(), running: 1, next_number: 1, stopped: false }),
        changed: Condvar::new(),
        links: Mutex::default(),
    };
    let root = Arc::new(Folder { number: 0, fd, path: Vec::new() });
    let workers = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, MAX_WORKERS);
    let (send, receive) = crossbeam::channel::unbounded();
    let outcome = crossbeam::thread::scope(|scope| {
        for worker in 0..workers {
            let (walk, send) = (&walk, send.clone());
            let first = (worker == 0).then(|| Arc::clone(&root));
            scope.spawn(move |_| walk.work(first, &send));
        }
        drop(send);
        let result = collect(builder, &receive);
        if result.is_err() {
            walk.stop();
        }
        result
    });
    match outcome {
        Ok(result) => result.map_err(failed),
        // A worker's panic is a defect of this program and goes on as one.
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Puts what the workers find into the tree. Second names wait for the end, when the first ones are surely there.
fn collect(
    mut builder: TreeBuilder,
    found: &Receiver<Result<Vec<Found>, Failure>>,
) -> Result<TreeBuilder, Failure> {
    let mut dirs: HashMap<DirNumber, NodeId> = HashMap::from([(0, builder.root())]);
    let mut inodes: HashMap<Inode, NodeId> = HashMap::new();
    let mut links = Vec::new();
    let at = |name: &CString| {
        let path = name.as_bytes().to_vec();
        move |reason: Reason| Failure { path, reason }
    };
    for batch in found {
        for found in batch? {
            match found {
                Found::Dir { number, parent, name, meta } => {
                    let node =
                        insert(&mut builder, dirs[&parent], &name, meta, Content::None).map_err(at(&name))?;
                    dirs.insert(number, node);
                }
                Found::Node { parent, name, meta, content, inode } => {
                    let node =
                        insert(&mut builder, dirs[&parent], &name, meta, content).map_err(at(&name))?;
                    if let Some(inode) = inode {
                        inodes.insert(inode, node);
                    }
                }
                Found::Link { parent, name, inode } => links.push((dirs[&parent], name, inode)),
            }
        }
    }
    for (dir, name, inode) in links {
        let link = |builder: &mut TreeBuilder| -> Result<(), Reason> {
            // The worker that claimed the inode has reported it, or its failure has ended the walk.
            let node = inodes.get(&inode).ok_or_else(|| Reason::LinkTarget(format!("inode {}", inode.1)))?;
            Ok(builder.link(dir, NameRef::new(name.as_bytes())?, *node)?)
        };
        link(&mut builder).map_err(at(&name))?;
    }
    Ok(builder)
}

fn insert(
    builder: &mut TreeBuilder,
    dir: NodeId,
    name: &CString,
    meta: Meta,
    content: Content,
) -> Result<NodeId, Reason> {
    Ok(builder.insert(dir, NameRef::new(name.as_bytes())?, meta, content)?)
}

impl Walk<'_, '_> {
    fn work(&self, root: Option<Arc<Folder>>, send: &Sender<Result<Vec<Found>, Failure>>) {
        if let Some(root) = root {
            self.finish(self.list(&root), send);
        }
        while let Some(job) = self.take() {
            let result = match job {
                Job::List { parent, name } => self.enter(&parent, name, send),
                Job::Read { parent, names } => self.read(&parent, names, send),
            };
            self.finish(result, send);
        }
    }

    fn take(&self) -> Option<Job> {
        let mut queue = self.queue.lock();
        loop {
            if queue.stopped {
                return None;
            }
            // The newest job first: the walk goes deep, and few directories are open at a time.
            if let Some(job) = queue.jobs.pop() {
                queue.running += 1;
                return Some(job);
            }
            if queue.running == 0 {
                return None;
            }
            self.changed.wait(&mut queue);
        }
    }

    fn finish(&self, result: Result<(), Failure>, send: &Sender<Result<Vec<Found>, Failure>>) {
        if let Err(failure) = result {
            // The receiver is gone when it failed first; its failure is the one to report.
            let _ = send.send(Err(failure));
            self.stop();
        }
        let mut queue = self.queue.lock();
        queue.running -= 1;
        if queue.running == 0 && queue.jobs.is_empty() {
            self.changed.notify_all();
        }
    }

    fn stop(&self) {
        let mut queue = self.queue.lock();
        queue.stopped = true;
        queue.jobs.clear();
        self.changed.notify_all();
    }

    fn push(&self, jobs: impl IntoIterator<Item = Job>) {
        let mut queue = self.queue.lock();
        if !queue.stopped {
            queue.jobs.extend(jobs);
            self.changed.notify_all();
        }
    }

    /// Opens a directory, reports it and makes jobs of its entries.
    fn enter(
        &self,
        parent: &Arc<Folder>,
        name: CString,
        send: &Sender<Result<Vec<Found>, Failure>>,
    ) -> Result<(), Failure> {
        let path = child_path(parent, &name)?;
        let failed = |reason| Failure { path: path.clone(), reason };
        self.budget.entry().map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match open_below(&parent.fd, &name, flags) {
            Ok(fd) => Some(fd),
            Err(Errno::XDEV) => None,
            Err(errno) => return Err(failed(Reason::io("open the directory")(errno))),
        };
        let (stat, xattrs) = match &fd {
            Some(fd) => (fs::fstat(fd), read_xattrs(&XattrsOf::Open(fd.as_fd()))),
            None => {
                tracing::warn!(path = %printable(&path), "a filesystem is mounted here; imported as an empty directory");
                (fs::statat(&parent.fd, &name, AtFlags::SYMLINK_NOFOLLOW), Ok(Xattrs::new()))
            }
        };
        let stat = stat.map_err(Reason::io("look at the directory")).map_err(failed)?;
        if self.batch.store().is_folder(stat.st_dev, stat.st_ino) {
            return Err(failed(Reason::OwnStore));
        }
        let meta = xattrs.and_then(|xattrs| meta(&stat, xattrs)).map_err(failed)?;
        let number = {
            let mut queue = self.queue.lock();
            queue.next_number += 1;
            queue.next_number - 1
        };
        let _ = send.send(Ok(vec![Found::Dir { number, parent: parent.number, name, meta }]));
        self.progress.advance(1, 0);
        match fd {
            Some(fd) => self.list(&Arc::new(Folder { number, fd, path })),
            None => Ok(()),
        }
    }

    fn list(&self, folder: &Arc<Folder>) -> Result<(), Failure> {
        let failed =
            |errno| Failure { path: folder.path.clone(), reason: Reason::io("list the directory")(errno) };
        let mut jobs = Vec::new();
        let mut names = Vec::new();
        for entry in Dir::read_from(&folder.fd).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            if name == c"." || name == c".." || self.is_excluded(folder, name.to_bytes()) {
                continue;
            }
            if entry.file_type() == FileType::Directory {
                jobs.push(Job::List { parent: Arc::clone(folder), name: name.to_owned() });
            } else {
                names.push(name.to_owned());
            }
        }
        // By name is, for most filesystems, nearer to the order on disk than the hash order of the listing.
        names.sort_unstable();
        for names in names.chunks(JOB_ENTRIES) {
            jobs.push(Job::Read { parent: Arc::clone(folder), names: names.to_vec() });
        }
        self.push(jobs);
        Ok(())
    }

    fn is_excluded(&self, folder: &Folder, name: &[u8]) -> bool {
        if self.exclude.is_empty() {
            return false;
        }
        let parts = folder.path.split(|byte| *byte == b'/').chain([name]);
        let names: Vec<_> = parts.filter_map(|part| NameRef::new(part).ok()).collect();
        self.exclude.matches(&names)
    }

    fn read(
        &self,
        parent: &Arc<Folder>,
        names: Vec<CString>,
        send: &Sender<Result<Vec<Found>, Failure>>,
    ) -> Result<(), Failure> {
        let mut found = Vec::with_capacity(names.len());
        for name in names {
            let path = child_path(parent, &name)?;
            let failed = |reason| Failure { path: path.clone(), reason };
            match self.read_entry(parent, &name).map_err(failed)? {
                Some((node, bytes)) => {
                    self.progress.advance(1, bytes);
                    found.push(node);
                }
                // The listing did not know the type, or it has changed since.
                None => self.push([Job::List { parent: Arc::clone(parent), name }]),
            }
        }
        let _ = send.send(Ok(found));
        Ok(())
    }

    /// Reads one entry that is no directory, and tells how many bytes of content it had. `None` for a directory.
    fn read_entry(&self, parent: &Folder, name: &CString) -> Result<Option<(Found, u64)>, Reason> {
        let stat =
            fs::statat(&parent.fd, name, AtFlags::SYMLINK_NOFOLLOW).map_err(Reason::io("look at it"))?;
        let kind = kind(&stat)?;
        if kind == FileKind::Dir {
            return Ok(None);
        }
        self.budget.entry()?;
        let inode = (stat.st_nlink > 1).then_some((stat.st_dev, stat.st_ino));
        if let Some(inode) = inode
            && !self.links.lock().insert(inode)
        {
            return Ok(Some((Found::Link { parent: parent.number, name: name.clone(), inode }, 0)));
        }
        let (stat, xattrs, content) = match kind {
            FileKind::File => self.read_file(parent, name, stat)?,
            FileKind::Symlink => {
                let target =
                    fs::readlinkat(&parent.fd, name, Vec::new()).map_err(Reason::io("read the link"))?;
                let xattrs = read_xattrs(&XattrsOf::below(parent, name))?;
                (stat, xattrs, Content::Symlink(target.into_bytes().into_boxed_slice()))
            }
            _ => (stat, read_xattrs(&XattrsOf::below(parent, name))?, Content::None),
        };
        let bytes = if let Content::Blob { size, .. } = content { size } else { 0 };
        let meta = meta(&stat, xattrs)?;
        Ok(Some((Found::Node { parent: parent.number, name: name.clone(), meta, content, inode }, bytes)))
    }

    fn read_file(
        &self,
        parent: &Folder,
        name: &CString,
        stat: Stat,
    ) -> Result<(Stat, Xattrs, Content), Reason> {
        // Reading leaves no trace in access times. NONBLOCK: should the file be a fifo by now, do not wait for it.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut opened = open_below(&parent.fd, name, flags | OFlags::NOATIME);
        if matches!(opened, Err(Errno::PERM)) {
            opened = open_below(&parent.fd, name, flags);
        }
        let file = match opened {
            Ok(fd) => File::from(fd),
            Err(Errno::XDEV) => {
                tracing::warn!(name = ?name, "a file is mounted here; imported as an empty file");
                let empty = self.batch.add_bytes(b"")?;
                return Ok((stat, Xattrs::new(), super::blob(&empty)));
            }
            Err(errno) => return Err(Reason::io("open it")(errno)),
        };
        let stat = fs::fstat(&file).map_err(Reason::io("look at it"))?;
        if kind(&stat)? != FileKind::File {
            return Err(Reason::Unsupported("a file that changes its type meanwhile".to_owned()));
        }
        self.budget.bytes(u64::try_from(stat.st_size).unwrap_or(0))?;
        let xattrs = read_xattrs(&XattrsOf::Open(file.as_fd()))?;
        let stored = self.batch.add_file(&file)?;
        Ok((stat, xattrs, super::blob(&stored)))
    }
}

fn child_path(parent: &Folder, name: &CString) -> Result<Vec<u8>, Failure> {
    let mut path = parent.path.clone();
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name.as_bytes());
    if path.len() > MAX_PATH_BYTES { Err(Failure { path, reason: Reason::PathTooLong }) } else { Ok(path) }
}

/// Opens one name in a directory, over no mount and through no link of any kind.
fn open_below(parent: &OwnedFd, name: &CString, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    loop {
        match fs::openat2(parent, name, flags, Mode::empty(), resolve) {
            // The kernel saw a rename race and asks to try again (openat2(2)).
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
}

fn kind(stat: &Stat) -> Result<FileKind, Reason> {
    FileKind::from_mode(stat.st_mode)
        .ok_or_else(|| Reason::Unsupported(format!("file mode {:o}", stat.st_mode)))
}

fn meta(stat: &Stat, xattrs: Xattrs) -> Result<Meta, Reason> {
    let kind = kind(stat)?;
    let rdev = match kind.is_device() {
        true => super::encode_device(fs::major(stat.st_rdev), fs::minor(stat.st_rdev))?,
        false => 0,
    };
    let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    Ok(Meta {
        kind,
        perm: (stat.st_mode & 0o7777) as u16,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev,
        mtime: Timestamp::new(stat.st_mtime, nanos),
        xattrs,
    })
}

/// Whose attributes to read.
enum XattrsOf<'a> {
    Open(BorrowedFd<'a>),
    /// What cannot be opened without effect: the `l*xattr` calls take paths only, and this one goes through the
    /// directory's descriptor.
    Below(PathBuf),
}

impl XattrsOf<'_> {
    fn below(parent: &Folder, name: &CString) -> Self {
        let fd = parent.fd.as_raw_fd();
        XattrsOf::Below(PathBuf::from(format!("/proc/self/fd/{fd}")).join(OsStr::from_bytes(name.as_bytes())))
    }

    fn list(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        match self {
            XattrsOf::Open(fd) => fs::flistxattr(fd, buffer),
            XattrsOf::Below(path) => fs::llistxattr(path, buffer),
        }
    }

    fn get(&self, name: &CStr, buffer: &mut [u8]) -> Result<usize, Errno> {
        match self {
            XattrsOf::Open(fd) => fs::fgetxattr(fd, name, buffer),
            XattrsOf::Below(path) => fs::lgetxattr(path, name, buffer),
        }
    }
}

/// Reads what a system call writes to a buffer: a small one first, then one of the largest size that Linux has.
fn with_growing_buffer(call: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut small = [0; 1024];
    match call(&mut small) {
        Ok(length) => Ok(small[..length].to_vec()),
        Err(Errno::RANGE) => {
            let mut large = vec![0; MAX_XATTR_VALUE_BYTES];
            let length = call(&mut large)?;
            large.truncate(length);
            Ok(large)
        }
        Err(errno) => Err(errno),
    }
}

fn read_xattrs(of: &XattrsOf<'_>) -> Result<Xattrs, Reason> {
    let names = match with_growing_buffer(|buffer| of.list(buffer)) {
        Ok(names) => names,
        Err(Errno::OPNOTSUPP) => return Ok(Xattrs::new()),
        Err(errno) => return Err(Reason::io("list the extended attributes")(errno)),
    };
    let mut xattrs = Xattrs::new();
    for name in names.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        if !super::is_kept_xattr(name.to_bytes()) {
            continue;
        }
        match with_growing_buffer(|buffer| of.get(name, buffer)) {
            Ok(value) => {
                xattrs.insert(name.to_bytes().into(), value.into_boxed_slice());
            }
            // Gone since the list was made.
            Err(Errno::NODATA) => {}
            Err(errno) => return Err(Reason::io("read an extended attribute")(errno)),
        }
    }
    Ok(xattrs)
}
