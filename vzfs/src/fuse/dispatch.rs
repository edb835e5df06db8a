//! The requests, one method each.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use fuser::{
    BackingId, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, Notifier, OpenAccMode, OpenFlags, PollEvents,
    PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;
use tracing::{debug, warn};

use super::backing::Backings;
use super::convert::{ABSENT, ENDLESS, file_attr, file_type, set_time};
use super::errno::errno;
use super::mount::{MountOptions, Passthrough};
use super::references::References;
use crate::types::{Attr, FileKind, Ino, NameRef, TypeError, VeName};
use crate::volume::{
    Caller, FallocateMode, NewNode, OpenFile, RenameMode, SetAttr, Sharing, Volume, VolumeError, XattrMode,
};

/// Largest write in one request. Each thread's buffer touches as much memory as the largest request it saw.
const MAX_WRITE_BYTES: u32 = 1 << 20;
/// Requests that the kernel may have under way without anybody waiting (read-ahead, releases).
const MAX_BACKGROUND: u16 = 64;
/// Passthrough backing files live on a plain filesystem; depth 1 still lets an overlayfs be mounted on top of a VE.
const STACK_DEPTH: u32 = 1;
/// The inode number is enough: numbers are never used again for another file.
const GENERATION: Generation = Generation(0);

/// What a file handle says, in the handle itself, so that nothing needs to be remembered for it.
const HANDLE_WRITES: u64 = 1;
const HANDLE_PASSTHROUGH: u64 = 2;

thread_local! {
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Serves one mounted VE.
pub(super) struct Dispatch {
    volume: Arc<Volume>,
    ve: VeName,
    wants_passthrough: bool,
    passthrough: Arc<AtomicBool>,
    references: References,
    backings: Backings,
    /// Files open for writing in passthrough mode: the kernel changes their size and times by itself, so it must not cache those.
    written: Mutex<HashMap<Ino, u32>>,
    notices: Arc<Notices>,
}

/// Sends invalidations, never from a thread that serves requests: the kernel may hold locks that such a request waits for.
#[derive(Default)]
pub(super) struct Notices {
    notifier: OnceLock<Notifier>,
}

impl Notices {
    /// Names the session to notify; before that, the kernel has cached nothing.
    pub(super) fn attach(&self, notifier: Notifier) {
        let _only_once = self.notifier.set(notifier);
    }

    /// Makes the kernel ask for these names again. Rare (a relabel), so a thread of its own costs nothing that counts.
    fn forget_names(&self, names: Vec<(Ino, crate::types::Name)>) {
        let Some(notifier) = self.notifier.get().cloned() else { return };
        let send = move || {
            for (dir, name) in names {
                if let Err(error) =
                    notifier.inval_entry(INodeNo(dir.get()), OsStr::from_bytes(name.as_bytes()))
                {
                    debug!(%error, "invalidation of an entry was refused");
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("notify".to_owned()).spawn(send) {
            warn!(%error, "cannot tell the kernel of changed names");
        }
    }

    /// Makes the kernel ask for the attributes of an inode again. Safe from anywhere: with a negative offset the kernel touches no
    /// page and waits for no lock (`fuse_reverse_inval_inode`).
    fn forget_attr(&self, ino: Ino) {
        if let Some(notifier) = self.notifier.get()
            && let Err(error) = notifier.inval_inode(INodeNo(ino.get()), -1, 0)
        {
            debug!(%error, "invalidation of attributes was refused");
        }
    }
}

impl Dispatch {
    pub(super) fn new(volume: Arc<Volume>, options: &MountOptions, passthrough: Arc<AtomicBool>) -> Self {
        Dispatch {
            volume,
            ve: options.ve_name.clone(),
            wants_passthrough: options.passthrough == Passthrough::Auto,
            passthrough,
            references: References::default(),
            backings: Backings::default(),
            written: Mutex::new(HashMap::new()),
            notices: Arc::default(),
        }
    }

    pub(super) fn notices(&self) -> Arc<Notices> {
        Arc::clone(&self.notices)
    }

    fn failed(&self, operation: &'static str, error: &VolumeError) -> Errno {
        if matches!(error, VolumeError::Stale) {
            self.notices.forget_names(self.volume.take_relabelled());
        }
        errno(&self.ve, operation, error)
    }

    /// How long the kernel may keep an inode's attributes.
    fn attr_lifetime(&self, ino: Ino) -> std::time::Duration {
        if self.written.lock().contains_key(&ino) { std::time::Duration::ZERO } else { ENDLESS }
    }

    fn sharing(&self) -> Sharing {
        if self.passthrough.load(Ordering::Acquire) { Sharing::Passthrough } else { Sharing::Served }
    }

    fn reply_entry(&self, operation: &'static str, found: Result<Attr, VolumeError>, reply: ReplyEntry) {
        match found {
            Ok(attr) => {
                self.references.add(attr.ino);
                reply.entry_with_ttls(&self.attr_lifetime(attr.ino), &ENDLESS, &file_attr(&attr), GENERATION);
            }
            Err(error) => reply.error(self.failed(operation, &error)),
        }
    }

    fn reply_empty(&self, operation: &'static str, done: Result<(), VolumeError>, reply: ReplyEmpty) {
        match done {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(self.failed(operation, &error)),
        }
    }

    fn create_node(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        new: NewNode<'_>,
    ) -> Result<Attr, VolumeError> {
        self.volume.create(ino(parent)?, name_of(name)?, new, caller(req))
    }

    /// Registers an open file with the kernel. `None`: the daemon serves it.
    fn back(
        &self,
        ino: Ino,
        open: &OpenFile,
        register: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> Option<Arc<BackingId>> {
        match self.backings.acquire(ino, &open.file, register) {
            Ok(id) => Some(id),
            Err(error) => {
                warn!(ve = %self.ve, %ino, %error, "the kernel took no backing file");
                None
            }
        }
    }

    fn opened(&self, ino: Ino, open: &OpenFile, write: bool, passthrough: bool) -> (FileHandle, FopenFlags) {
        let mut handle = if write { HANDLE_WRITES } else { 0 };
        let mut flags = if passthrough { FopenFlags::empty() } else { FopenFlags::FOPEN_KEEP_CACHE };
        if passthrough {
            handle |= HANDLE_PASSTHROUGH;
            if open.guarded {
                // Reads and writes come to the daemon, memory maps go to the backing file.
                flags |= FopenFlags::FOPEN_DIRECT_IO;
            }
            if write {
                *self.written.lock().entry(ino).or_insert(0) += 1;
                self.notices.forget_attr(ino);
            }
        }
        (FileHandle(handle), flags)
    }

    fn open_inode(
        &self,
        req: &Request,
        node: INodeNo,
        flags: OpenFlags,
    ) -> Result<(Ino, bool, OpenFile), VolumeError> {
        let ino = ino(node)?;
        let write = flags.acc_mode() != OpenAccMode::O_RDONLY || flags.0 & libc::O_TRUNC != 0;
        if flags.0 & libc::O_TRUNC != 0 {
            self.volume.set_attr(ino, SetAttr { size: Some(0), ..SetAttr::default() }, caller(req))?;
        }
        Ok((ino, write, self.volume.open_file(ino, write, self.sharing())?))
    }

    fn forget_inode(&self, ino: Ino) {
        if let Err(error) = self.volume.forget(ino) {
            // The next start of the VE tries again.
            warn!(ve = %self.ve, %ino, %error, "a removed file could not be freed");
        }
    }
}

/// Names and numbers from the kernel are data like any other.
fn ino(node: INodeNo) -> Result<Ino, VolumeError> {
    Ino::new(node.0).ok_or(VolumeError::NotFound)
}

fn name_of(name: &OsStr) -> Result<NameRef<'_>, VolumeError> {
    NameRef::new(name.as_bytes()).map_err(|error| match error {
        TypeError::Name { .. } if name.len() > crate::types::MAX_NAME_BYTES => VolumeError::NameTooLong,
        _ => VolumeError::Invalid("not a file name"),
    })
}

fn caller(req: &Request) -> Caller {
    Caller { uid: req.uid(), gid: req.gid() }
}

/// Permission bits of a mode, which are the low twelve.
fn perm(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

fn reply_xattr(size: u32, value: &[u8], reply: ReplyXattr) {
    match (size, u32::try_from(value.len())) {
        (_, Err(_)) => reply.error(Errno::from_i32(libc::E2BIG)),
        (0, Ok(length)) => reply.size(length),
        (size, Ok(length)) if length <= size => reply.data(value),
        _ => reply.error(Errno::from_i32(libc::ERANGE)),
    }
}

impl Filesystem for Dispatch {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_PARALLEL_DIROPS,
            // Nothing but requests through this mount changes content: the kernel need not guess from times.
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            // Without it every write asks for security.capability first.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_POSIX_ACL,
            InitFlags::FUSE_DONT_MASK,
            // Truncating at open spares the copy of what is thrown away.
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
            // Numbers stand for files for ever, so file handles work also after the kernel forgot the inode.
            InitFlags::FUSE_EXPORT_SUPPORT,
        ];
        for capability in wanted {
            if let Err(missing) = config.add_capabilities(capability) {
                debug!(ve = %self.ve, ?missing, "the kernel lacks a FUSE capability");
            }
        }
        if self.wants_passthrough && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok() {
            let depth = config.set_max_stack_depth(STACK_DEPTH);
            self.passthrough.store(depth.is_ok(), Ordering::Release);
        }
        let _largest_possible = config.set_max_write(MAX_WRITE_BYTES);
        let _as_many_as_possible = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = ino(parent).and_then(|dir| match name.as_bytes() {
            // Asked for by file handles only.
            b"." => self.volume.attr(dir),
            b".." => self.volume.attr(self.volume.parent(dir)?),
            _ => self.volume.lookup(dir, name_of(name)?),
        });
        match found {
            Err(VolumeError::NotFound) if name != "." => reply.entry(&ENDLESS, &ABSENT, GENERATION),
            found => self.reply_entry("lookup", found, reply),
        }
    }

    fn forget(&self, _req: &Request, node: INodeNo, count: u64) {
        if let Ok(ino) = ino(node)
            && self.references.drop(ino, count)
            && ino != Ino::ROOT
        {
            self.forget_inode(ino);
        }
    }

    fn getattr(&self, _req: &Request, node: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match ino(node).and_then(|ino| self.volume.attr(ino)) {
            Ok(attr) => reply.attr(&self.attr_lifetime(attr.ino), &file_attr(&attr)),
            Err(error) => reply.error(self.failed("getattr", &error)),
        }
    }

    fn setattr(
        &self,
        req: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<std::time::SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<std::time::SystemTime>,
        _chgtime: Option<std::time::SystemTime>,
        _bkuptime: Option<std::time::SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttr {
            perm: mode.map(perm),
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
        };
        match ino(node).and_then(|ino| self.volume.set_attr(ino, set, caller(req))) {
            Ok(attr) => reply.attr(&self.attr_lifetime(attr.ino), &file_attr(&attr)),
            Err(error) => reply.error(self.failed("setattr", &error)),
        }
    }

    fn readlink(&self, _req: &Request, node: INodeNo, reply: ReplyData) {
        match ino(node).and_then(|ino| self.volume.read_link(ino)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(self.failed("readlink", &error)),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let made = FileKind::from_mode(mode)
            .filter(|kind| !matches!(kind, FileKind::Dir | FileKind::Symlink))
            .ok_or(VolumeError::Invalid("not a kind of file that mknod makes"))
            .and_then(|kind| {
                let new = NewNode { umask: perm(umask), rdev, ..NewNode::new(kind, perm(mode)) };
                self.create_node(req, parent, name, new)
            });
        self.reply_entry("mknod", made, reply);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let new = NewNode { umask: perm(umask), ..NewNode::new(FileKind::Dir, perm(mode)) };
        self.reply_entry("mkdir", self.create_node(req, parent, name, new), reply);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let new = NewNode { target: target.as_os_str().as_bytes(), ..NewNode::new(FileKind::Symlink, 0o777) };
        self.reply_entry("symlink", self.create_node(req, parent, name, new), reply);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let done = ino(parent).and_then(|dir| self.volume.unlink(dir, name_of(name)?));
        self.reply_empty("unlink", done, reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let done = ino(parent).and_then(|dir| self.volume.rmdir(dir, name_of(name)?));
        self.reply_empty("rmdir", done, reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            RenameFlags::RENAME_NOREPLACE => Ok(RenameMode::NoReplace),
            RenameFlags::RENAME_EXCHANGE => Ok(RenameMode::Exchange),
            RenameFlags::RENAME_WHITEOUT => Ok(RenameMode::Whiteout),
            flags if flags.is_empty() => Ok(RenameMode::Replace),
            _ => Err(VolumeError::Invalid("flags of rename that exclude each other")),
        };
        let done = mode.and_then(|mode| {
            self.volume.rename(ino(parent)?, name_of(name)?, ino(newparent)?, name_of(newname)?, mode)
        });
        self.reply_empty("rename", done, reply);
    }

    fn link(&self, _req: &Request, node: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let linked = ino(node).and_then(|found| self.volume.link(found, ino(newparent)?, name_of(newname)?));
        self.reply_entry("link", linked, reply);
    }

    fn open(&self, req: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (ino, write, open) = match self.open_inode(req, node, flags) {
            Ok(opened) => opened,
            Err(error) => return reply.error(self.failed("open", &error)),
        };
        if self.sharing() == Sharing::Served {
            let (handle, flags) = self.opened(ino, &open, write, false);
            return reply.opened(handle, flags);
        }
        match self.back(ino, &open, |file| reply.open_backing(file)) {
            Some(id) => {
                let (handle, flags) = self.opened(ino, &open, write, true);
                reply.opened_passthrough(handle, flags, &id);
            }
            None => {
                self.volume.release(ino, Sharing::Passthrough);
                reply.error(Errno::from_i32(libc::EIO));
            }
        }
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let new = NewNode { umask: perm(umask), ..NewNode::new(FileKind::File, perm(mode)) };
        let sharing = self.sharing();
        let created = ino(parent)
            .and_then(|dir| self.volume.create_and_open(dir, name_of(name)?, new, caller(req), sharing));
        let (attr, open) = match created {
            Ok(created) => created,
            Err(error) => return reply.error(self.failed("create", &error)),
        };
        if sharing == Sharing::Served {
            let (handle, flags) = self.opened(attr.ino, &open, true, false);
            self.references.add(attr.ino);
            return reply.created(&ENDLESS, &file_attr(&attr), GENERATION, handle, flags);
        }
        match self.back(attr.ino, &open, |file| reply.open_backing(file)) {
            Some(id) => {
                let (handle, flags) = self.opened(attr.ino, &open, true, true);
                self.references.add(attr.ino);
                // One lifetime covers entry and attributes here. The attributes may be kept: the kernel drops them at the first write, and
                // memory maps ask for them again through `written` at their next open.
                reply.created_passthrough(&ENDLESS, &file_attr(&attr), GENERATION, handle, flags, &id);
            }
            None => {
                self.volume.release(attr.ino, Sharing::Passthrough);
                reply.error(Errno::from_i32(libc::EIO));
            }
        }
    }

    fn read(
        &self,
        _req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        READ_BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < size as usize {
                buffer.resize(size as usize, 0);
            }
            match ino(node).and_then(|ino| self.volume.read(ino, offset, &mut buffer[..size as usize])) {
                Ok(read) => reply.data(&buffer[..read]),
                Err(error) => reply.error(self.failed("read", &error)),
            }
        });
    }

    fn write(
        &self,
        _req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let keep = !write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        match ino(node).and_then(|ino| self.volume.write(ino, offset, data, keep)) {
            // The kernel's writes fit 32 bits; see MAX_WRITE_BYTES.
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(self.failed("write", &error)),
        }
    }

    fn flush(&self, _req: &Request, _node: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        // Writes report their errors at once; the kernel then never asks again.
        reply.error(Errno::from_i32(libc::ENOSYS));
    }

    fn release(
        &self,
        _req: &Request,
        node: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        if let Ok(ino) = ino(node) {
            let mut sharing = Sharing::Served;
            if fh.0 & HANDLE_PASSTHROUGH != 0 {
                sharing = Sharing::Passthrough;
                if fh.0 & HANDLE_WRITES != 0 {
                    let mut written = self.written.lock();
                    if let Some(writers) = written.get_mut(&ino) {
                        *writers -= 1;
                        if *writers == 0 {
                            written.remove(&ino);
                        }
                    }
                }
                // Before the volume's handle: what the volume counts as open on its blob covers every backing id.
                self.backings.release(ino);
            }
            self.volume.release(ino, sharing);
            if !self.references.has(ino) {
                self.forget_inode(ino);
            }
        }
        reply.ok();
    }

    fn fsync(&self, _req: &Request, node: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let done = ino(node).and_then(|ino| self.volume.fsync(ino, datasync));
        self.reply_empty("fsync", done, reply);
    }

    fn fsyncdir(&self, _req: &Request, _node: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.reply_empty("fsyncdir", self.volume.sync(), reply);
    }

    fn opendir(&self, _req: &Request, _node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // The kernel then never asks again, and caches listings.
        reply.error(Errno::from_i32(libc::ENOSYS));
    }

    fn readdir(
        &self,
        _req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = ino(node).and_then(|dir| {
            self.volume.read_dir(dir, offset, |entry| {
                !reply.add(
                    INodeNo(entry.ino.get()),
                    entry.cookie,
                    file_type(entry.kind),
                    OsStr::from_bytes(entry.name),
                )
            })
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(self.failed("readdir", &error)),
        }
    }

    fn readdirplus(
        &self,
        _req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let mut entries = Vec::new();
        let listed = ino(node).and_then(|dir| {
            // As many as the smallest entries could fill the largest buffer; the reply says when it is full.
            self.volume.read_dir(dir, offset, |entry| {
                entries.push((entry.name.to_vec(), entry.ino, entry.cookie));
                entries.len() < READDIRPLUS_AT_ONCE
            })
        });
        if let Err(error) = listed {
            return reply.error(self.failed("readdirplus", &error));
        }
        for (name, child, cookie) in entries {
            let is_dot = name == b"." || name == b"..";
            // An entry that has just gone is still a name: node id 0 says that it was not looked up.
            let attr = self.volume.attr(child).ok();
            let node = attr.filter(|_| !is_dot).map_or(0, |attr| attr.ino.get());
            let file = attr.map_or(ABSENT, |attr| file_attr(&attr));
            let full = reply.add(
                INodeNo(node),
                cookie,
                OsStr::from_bytes(&name),
                &self.attr_lifetime(child),
                &file,
                GENERATION,
            );
            if full {
                break;
            }
            if node != 0 {
                self.references.add(child);
            }
        }
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _node: INodeNo, reply: ReplyStatfs) {
        match self.volume.space() {
            Ok(space) => reply.statfs(
                space.f_blocks,
                space.f_bfree,
                space.f_bavail,
                space.f_files,
                space.f_ffree,
                u32::try_from(space.f_bsize).unwrap_or(4096),
                crate::types::MAX_NAME_BYTES as u32,
                u32::try_from(space.f_frsize).unwrap_or(4096),
            ),
            Err(error) => reply.error(self.failed("statfs", &error)),
        }
    }

    fn setxattr(
        &self,
        req: &Request,
        node: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => XattrMode::Any,
        };
        let done =
            ino(node).and_then(|ino| self.volume.set_xattr(ino, name.as_bytes(), value, mode, caller(req)));
        self.reply_empty("setxattr", done, reply);
    }

    fn getxattr(&self, _req: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match ino(node).and_then(|ino| self.volume.xattr(ino, name.as_bytes())) {
            Ok(value) => reply_xattr(size, &value, reply),
            Err(error) => reply.error(self.failed("getxattr", &error)),
        }
    }

    fn listxattr(&self, _req: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        match ino(node).and_then(|ino| self.volume.xattr_names(ino)) {
            Ok(names) => {
                let list: Vec<u8> = names.into_iter().flat_map(|name| name.into_iter().chain([0])).collect();
                reply_xattr(size, &list, reply);
            }
            Err(error) => reply.error(self.failed("listxattr", &error)),
        }
    }

    fn removexattr(&self, _req: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let done = ino(node).and_then(|ino| self.volume.remove_xattr(ino, name.as_bytes()));
        self.reply_empty("removexattr", done, reply);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _node: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::from_i32(libc::ENOTTY));
    }

    fn poll(
        &self,
        _req: &Request,
        _node: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        // Regular files are always ready; the kernel knows that by itself.
        reply.error(Errno::from_i32(libc::ENOSYS));
    }

    fn fallocate(
        &self,
        req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let done = ino(node).and_then(|ino| {
            let mode = FallocateMode::from_bits(mode as u32).ok_or(VolumeError::Unsupported)?;
            self.volume.fallocate(ino, offset, length, mode, caller(req))
        });
        self.reply_empty("fallocate", done, reply);
    }

    fn lseek(
        &self,
        _req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let found = ino(node).and_then(|ino| {
            let offset = u64::try_from(offset).map_err(|_| VolumeError::Invalid("negative offset"))?;
            let from = match whence {
                libc::SEEK_DATA => rustix::fs::SeekFrom::Data(offset),
                libc::SEEK_HOLE => rustix::fs::SeekFrom::Hole(offset),
                _ => return Err(VolumeError::Invalid("not a way of seeking that needs the filesystem")),
            };
            self.volume.seek(ino, from)
        });
        match found {
            Ok(offset) => reply.offset(i64::try_from(offset).unwrap_or(i64::MAX)),
            Err(error) => reply.error(self.failed("lseek", &error)),
        }
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The reply has 32 bits for the length.
        let len = usize::try_from(len.min(COPY_AT_ONCE_BYTES)).unwrap_or(0);
        let copied = ino(ino_in).and_then(|from| {
            self.volume.copy_range((from, offset_in), (ino(ino_out)?, offset_out), len, caller(req))
        });
        match copied {
            Ok(copied) => reply.written(copied as u32),
            Err(error) => reply.error(self.failed("copy_file_range", &error)),
        }
    }
}

/// Entries prepared for one readdirplus reply: a page of 4 KiB holds at most 25, the kernel's largest buffer is 32 such pages.
const READDIRPLUS_AT_ONCE: usize = 800;
/// Most bytes copied by one copy_file_range request.
const COPY_AT_ONCE_BYTES: u64 = 1 << 30;
