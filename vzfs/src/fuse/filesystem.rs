//! The requests, one method each.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use tracing::debug;

use super::convert::{ABSENT, file_attr, set_time};
use super::dispatch::{Dispatch, GENERATION};
use super::request::{caller, ino, name_of, perm, rename_mode, reply_xattr, seek_from, xattr_mode};
use super::requests::Kind;
use crate::types::{FileKind, Ino, MAX_NAME_BYTES};
use crate::volume::{FallocateMode, NewNode, RenameMode, SetAttr, VolumeError};

/// Largest write in one request. Each thread's buffer touches as much memory as the largest request it saw.
const MAX_WRITE_BYTES: u32 = 1 << 20;
/// Requests that the kernel may have under way without anybody waiting (read-ahead, releases).
const MAX_BACKGROUND: u16 = 64;
/// Passthrough backing files live on a plain filesystem; depth 1 still lets an overlayfs be mounted on top of a VE.
const STACK_DEPTH: u32 = 1;
/// Most bytes copied by one copy_file_range request.
const COPY_AT_ONCE_BYTES: u64 = 1 << 30;

thread_local! {
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
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
            // Though numbers stand for files for ever: the kernel gives a dentry without a name to who opens a file handle, and finds it stale the
            // next time. An overlayfs on top of a VE, which remembers lower files by handles, then gets ESTALE for every file that it
            // copied up, once the kernel has forgotten the lower one.
            InitFlags::FUSE_NO_EXPORT_SUPPORT,
        ];
        for capability in wanted {
            if let Err(missing) = config.add_capabilities(capability) {
                debug!(ve = %self.ve, ?missing, "the kernel lacks a FUSE capability");
            }
        }
        if self.wants_passthrough && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok() {
            let depth = config.set_max_stack_depth(STACK_DEPTH);
            self.negotiated.passthrough.store(depth.is_ok(), Ordering::Release);
        }
        if self.shift.is_some() {
            let agreed = config.add_capabilities(InitFlags::FUSE_ALLOW_IDMAP).is_ok();
            self.negotiated.shift.store(agreed, Ordering::Release);
        }
        let _largest_possible = config.set_max_write(MAX_WRITE_BYTES);
        let _as_many_as_possible = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.requests.count(Kind::Lookup);
        let found = ino(parent).and_then(|dir| self.find(req.pid(), dir, name));
        match found {
            Err(VolumeError::NotFound) => reply.entry(&self.names_lifetime(parent), &ABSENT, GENERATION),
            found => self.reply_entry("lookup", parent, None, found, reply),
        }
    }

    fn forget(&self, _req: &Request, node: INodeNo, count: u64) {
        self.requests.count(Kind::Forget);
        if let Ok(ino) = ino(node)
            && self.ledger.forget(ino, count)
            && ino != Ino::ROOT
        {
            self.forget_inode(ino);
        }
    }

    fn getattr(&self, _req: &Request, node: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.requests.count(Kind::Getattr);
        match ino(node).and_then(|ino| self.attr_with_lifetime(ino)) {
            Ok((attr, lifetime)) => reply.attr(&lifetime.min(self.names_lifetime(node)), &file_attr(&attr)),
            Err(error) => reply.error(self.failed("getattr", node, &error)),
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
        self.requests.count(Kind::Setattr);
        let set = SetAttr {
            perm: mode.map(perm),
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
        };
        let rights = self.rights(req);
        let done = ino(node).and_then(|ino| {
            if set == SetAttr::default() && !self.writers.any(ino) {
                // Nobody can be about to write.
                return self.volume.chown_nothing(ino, rights);
            }
            let owned = uid.is_some() || gid.is_some();
            let copies = owned && self.overlays.copies(req.pid(), ino);
            let attr = self.volume.set_attr(ino, set, rights.copying(copies))?;
            if set == (SetAttr { perm: set.perm, ..SetAttr::default() }) {
                self.overlays.mode_set(req.pid(), ino);
            }
            Ok(attr)
        });
        if matches!(done, Err(VolumeError::Stale)) {
            // As for an open: the program must not see what the kernel still has of the old inode.
            let stale = Errno::from_i32(libc::ESTALE);
            return self.forget_relabelled_under_lock(move || reply.error(stale));
        }
        self.reply_attr("setattr", node, done, reply);
    }

    fn readlink(&self, _req: &Request, node: INodeNo, reply: ReplyData) {
        self.requests.count(Kind::Readlink);
        match ino(node).and_then(|ino| self.volume.read_link(ino)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(self.failed("readlink", node, &error)),
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
        self.requests.count(Kind::Mknod);
        let made = FileKind::from_mode(mode)
            .filter(|kind| !matches!(kind, FileKind::Dir | FileKind::Symlink))
            .ok_or(VolumeError::Invalid("not a kind of file that mknod makes"))
            .and_then(|kind| {
                let new = NewNode { umask: perm(umask), rdev, ..NewNode::new(kind, perm(mode)) };
                self.create_node(req, parent, name, new)
            });
        self.reply_entry("mknod", parent, Some(name), made, reply);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.requests.count(Kind::Mkdir);
        let new = NewNode { umask: perm(umask), ..NewNode::new(FileKind::Dir, perm(mode)) };
        self.reply_entry("mkdir", parent, Some(name), self.create_node(req, parent, name, new), reply);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        self.requests.count(Kind::Symlink);
        let new = NewNode { target: target.as_os_str().as_bytes(), ..NewNode::new(FileKind::Symlink, 0o777) };
        self.reply_entry("symlink", parent, Some(name), self.create_node(req, parent, name, new), reply);
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.requests.count(Kind::Unlink);
        let unlink = || {
            let (dir, name) = (ino(parent)?, name_of(name)?);
            self.removing(req.pid(), (dir, name), || self.volume.unlink(dir, name))
        };
        let done = self.once(req, |_| Ok(()), unlink);
        self.reply_changed("unlink", &[(parent, name)], done, reply);
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.requests.count(Kind::Rmdir);
        let done = self.once(req, |_| Ok(()), || self.volume.rmdir(ino(parent)?, name_of(name)?));
        self.reply_changed("rmdir", &[(parent, name)], done, reply);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.requests.count(Kind::Rename);
        let rename = || {
            let mode = rename_mode(flags, caller(req))?;
            let (from, to) = ((ino(parent)?, name_of(name)?), (ino(newparent)?, name_of(newname)?));
            let rename = || self.volume.rename(from.0, from.1, to.0, to.1, mode);
            match mode {
                RenameMode::Replace | RenameMode::Whiteout(_) => self.removing(req.pid(), to, rename),
                RenameMode::NoReplace | RenameMode::Exchange => rename(),
            }
        };
        let done = self.once(req, |_| Ok(()), rename);
        self.reply_changed("rename", &[(parent, name), (newparent, newname)], done, reply);
        // After the reply: until then the kernel holds the locks that an invalidation waits for.
        if self.volume.has_relabelled() {
            self.forget_relabelled(|| {});
        }
    }

    fn link(&self, req: &Request, node: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        self.requests.count(Kind::Link);
        let link = || self.volume.link(ino(node)?, ino(newparent)?, name_of(newname)?);
        let linked = self.once(req, |made| self.made(made), link);
        self.reply_entry("link", newparent, Some(newname), linked, reply);
    }

    fn open(&self, req: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.requests.count(Kind::Open);
        self.open_file(req, node, flags, reply);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        self.requests.count(Kind::Create);
        let new = NewNode { umask: perm(umask), ..NewNode::new(FileKind::File, perm(mode)) };
        self.create_file(req, parent, name, new, OpenFlags(flags), reply);
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
        self.requests.count(Kind::Read);
        READ_BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < size as usize {
                buffer.resize(size as usize, 0);
            }
            match ino(node).and_then(|ino| self.volume.read(ino, offset, &mut buffer[..size as usize])) {
                Ok(read) => reply.data(&buffer[..read]),
                Err(error) => reply.error(self.failed("read", node, &error)),
            }
        });
    }

    fn write(
        &self,
        req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.requests.count(Kind::Write);
        let rights = self.rights(req).told(!write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID));
        let written = ino(node).and_then(|ino| {
            if write_flags.contains(WriteFlags::FUSE_WRITE_CACHE) {
                self.volume.write_back(ino, offset, data)
            } else {
                self.volume.write(ino, offset, data, rights)
            }
        });
        match written {
            // The kernel's writes fit 32 bits; see MAX_WRITE_BYTES.
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(self.failed("write", node, &error)),
        }
    }

    fn flush(&self, _req: &Request, _node: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        self.requests.count(Kind::Flush);
        // Writes report their errors at once; the kernel then never asks again.
        reply.error(Errno::from_i32(libc::ENOSYS));
    }

    fn release(
        &self,
        req: &Request,
        node: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.requests.count(Kind::Release);
        if let Ok(ino) = ino(node) {
            self.close_file(req, ino, fh);
        }
        reply.ok();
    }

    fn fsync(&self, _req: &Request, node: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.requests.count(Kind::Fsync);
        let begun = ino(node).and_then(|ino| self.volume.begin_sync(ino, datasync));
        self.sync("fsync", node, begun, reply);
    }

    fn fsyncdir(&self, _req: &Request, node: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.requests.count(Kind::Fsyncdir);
        self.sync("fsyncdir", node, Ok(self.volume.begin_dir_sync()), reply);
    }

    fn opendir(&self, _req: &Request, _node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.requests.count(Kind::Opendir);
        // The kernel then never asks again, and caches listings.
        reply.error(Errno::from_i32(libc::ENOSYS));
    }

    fn readdir(&self, _req: &Request, node: INodeNo, _fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.requests.count(Kind::Readdir);
        self.list(node, offset, reply);
    }

    fn readdirplus(
        &self,
        _req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.requests.count(Kind::Readdirplus);
        self.list_with_attributes(node, offset, reply);
    }

    fn statfs(&self, _req: &Request, node: INodeNo, reply: ReplyStatfs) {
        self.requests.count(Kind::Statfs);
        match self.volume.space() {
            Ok(space) => reply.statfs(
                space.f_blocks,
                space.f_bfree,
                space.f_bavail,
                space.f_files,
                space.f_ffree,
                u32::try_from(space.f_bsize).unwrap_or(4096),
                MAX_NAME_BYTES as u32,
                u32::try_from(space.f_frsize).unwrap_or(4096),
            ),
            Err(error) => reply.error(self.failed("statfs", node, &error)),
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
        self.requests.count(Kind::Setxattr);
        let mode = xattr_mode(flags);
        let set = || self.volume.set_xattr(ino(node)?, name.as_bytes(), value, mode, self.rights(req));
        let done = self.once(req, |_| Ok(()), set);
        self.reply_empty("setxattr", node, done, reply);
    }

    fn getxattr(&self, req: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.requests.count(Kind::Getxattr);
        if name == "security.capability" {
            self.overlays.capability_asked(req.pid());
        }
        match ino(node).and_then(|ino| self.volume.xattr(ino, name.as_bytes())) {
            Ok(value) => reply_xattr(size, &value, reply),
            Err(error) => reply.error(self.failed("getxattr", node, &error)),
        }
    }

    fn listxattr(&self, req: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        self.requests.count(Kind::Listxattr);
        match ino(node).and_then(|ino| self.volume.xattr_names(ino)) {
            Ok(mut names) => {
                // Who may not read them does not see them, as on ext4; the kernel leaves that to a FUSE filesystem.
                let trusted = |name: &Vec<u8>| name.starts_with(b"trusted.");
                if names.iter().any(trusted) && !self.rights(req).sees_trusted() {
                    names.retain(|name| !trusted(name));
                }
                let list: Vec<u8> = names.into_iter().flat_map(|name| name.into_iter().chain([0])).collect();
                reply_xattr(size, &list, reply);
            }
            Err(error) => reply.error(self.failed("listxattr", node, &error)),
        }
    }

    fn removexattr(&self, req: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.requests.count(Kind::Removexattr);
        let done = self.once(req, |_| Ok(()), || self.volume.remove_xattr(ino(node)?, name.as_bytes()));
        self.reply_empty("removexattr", node, done, reply);
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
        self.requests.count(Kind::Ioctl);
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
        self.requests.count(Kind::Poll);
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
        self.requests.count(Kind::Fallocate);
        let done = ino(node).and_then(|ino| {
            let mode = FallocateMode::from_bits(mode as u32).ok_or(VolumeError::Unsupported)?;
            self.volume.fallocate(ino, offset, length, mode, self.rights(req))
        });
        self.reply_empty("fallocate", node, done, reply);
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
        self.requests.count(Kind::Lseek);
        let found = ino(node).and_then(|ino| self.volume.seek(ino, seek_from(offset, whence)?));
        match found {
            Ok(offset) => reply.offset(i64::try_from(offset).unwrap_or(i64::MAX)),
            Err(error) => reply.error(self.failed("lseek", node, &error)),
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
        self.requests.count(Kind::CopyFileRange);
        // The reply has 32 bits for the length.
        let len = usize::try_from(len.min(COPY_AT_ONCE_BYTES)).unwrap_or(0);
        let copied = ino(ino_in).and_then(|from| {
            self.volume.copy_range((from, offset_in), (ino(ino_out)?, offset_out), len, self.rights(req))
        });
        match copied {
            Ok(copied) => reply.written(copied as u32),
            Err(error) => reply.error(self.failed("copy_file_range", ino_out, &error)),
        }
    }
}
