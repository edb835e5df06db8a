//! Opening and closing files: who serves the content, and what the kernel may keep.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;

use fuser::{
    Errno, FileHandle, FopenFlags, INodeNo, OpenAccMode, OpenFlags, ReplyCreate, ReplyOpen, Request,
};
use tracing::warn;

use super::convert::file_attr;
use super::dispatch::{Dispatch, GENERATION};
use super::ledger::{Counted, Handle};
use super::request::{caller, ino, name_of};
use super::{backing, device, running};
use crate::types::{Attr, Ino};
use crate::volume::{NewNode, OpenFile, SetAttr, Sharing, VolumeError};

/// What a file handle says, in the handle itself, so that nothing needs to be remembered for it.
const HANDLE_WRITES: u64 = 1;
const HANDLE_PASSTHROUGH: u64 = 2;

/// An open that the kernel is about to be told of.
struct Opened {
    handle: FileHandle,
    flags: FopenFlags,
    /// 0 where the daemon serves the content.
    backing: u32,
}

impl Dispatch {
    /// Counts an open file, and registers it with the kernel where that is to serve it.
    fn opened(&self, req: &Request, ino: Ino, open: &OpenFile, write: bool) -> Result<Opened, Errno> {
        let sharing = self.sharing();
        let (kind, mut handle, flags) = match (sharing, write) {
            (Sharing::Served, _) => (Handle::Served, 0, FopenFlags::FOPEN_KEEP_CACHE),
            (Sharing::Passthrough, false) => (Handle::Reader, HANDLE_PASSTHROUGH, FopenFlags::empty()),
            (Sharing::Passthrough, true) => (Handle::Writer, HANDLE_PASSTHROUGH, FopenFlags::empty()),
        };
        if write {
            handle |= HANDLE_WRITES;
        }
        let unique = device::unique(req);
        let register = || {
            let file = self.volume.backing_file(open).map_err(io::Error::other)?;
            backing::register(self.device.as_fd(), &file)
        };
        let counted = self.ledger.open(unique, ino, (kind, open.blob), register);
        if counted.is_err() || self.ledger.carried_out(unique) {
            // Not open, or counted already.
            self.volume.release(ino, sharing);
        }
        let Counted { backing, unused } = counted.map_err(|error| {
            // Out of descriptors or memory: the program can try again.
            let code = match error.raw_os_error() {
                Some(code @ (libc::EMFILE | libc::ENFILE | libc::ENOMEM)) => code,
                _ => libc::EIO,
            };
            self.requests.failed(code);
            self.tell("open", Some(ino), code, &error);
            Errno::from_i32(code)
        })?;
        self.close_backing(unused);
        if !self.ledger.carried_out(unique) {
            if kind == Handle::Writer {
                self.writers.add(ino);
            } else if write {
                self.writers.add_served(ino);
            }
        }
        Ok(Opened { handle: FileHandle(handle), flags, backing })
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
            let set = SetAttr { size: Some(0), ..SetAttr::default() };
            self.volume.set_attr(ino, set, self.rights(req))?;
        }
        let sharing = self.sharing();
        let may_be_registered = !write && sharing == Sharing::Passthrough;
        let registered = if may_be_registered { self.ledger.registered(ino) } else { None };
        let open = match registered.map(|blob| self.volume.open_on_blob(ino, blob)).transpose()?.flatten() {
            Some(open) => open,
            None => self.volume.open_file(ino, write, sharing)?,
        };
        if write {
            self.settle(ino, flags, sharing)?;
        }
        Ok((ino, write, open))
    }

    /// Makes the record of a file durable that is opened to be written with `O_SYNC` or `O_DSYNC`. The kernel writes by itself, so this is the
    /// last we see of it: without its record the synced data would be lost in a crash. On failure the handle is given back.
    fn settle(&self, ino: Ino, flags: OpenFlags, sharing: Sharing) -> Result<(), VolumeError> {
        if flags.0 & libc::O_DSYNC == 0 {
            return Ok(());
        }
        self.volume.fsync(ino, true).inspect_err(|_| self.volume.release(ino, sharing))
    }

    /// Opens a file that is there.
    pub(super) fn open_file(&self, req: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let truncates_unasked = flags.0 & libc::O_TRUNC != 0 && flags.acc_mode() == OpenAccMode::O_RDONLY;
        if truncates_unasked && ino(node).is_ok_and(running::is_running) {
            return reply.error(Errno::from_i32(libc::ETXTBSY));
        }
        let (ino, write, open) = match self.open_inode(req, node, flags) {
            Ok(opened) => opened,
            Err(VolumeError::Stale) => {
                // The kernel opens the new inode when it gets this answer. By then no name may lead to the old one, or a program that has written
                // through one hard link reads the old content through another. The program waits without holding a lock of the kernel's.
                let stale = Errno::from_i32(libc::ESTALE);
                return self.forget_relabelled(move || reply.error(stale));
            }
            Err(error) => return reply.error(self.failed("open", node, &error)),
        };
        let opened = self.opened(req, ino, &open, write);
        if write && self.sharing() == Sharing::Passthrough {
            // It is to ask again from now on: the attributes change without our knowledge.
            self.notices.forget_attr(ino);
        }
        match opened {
            Ok(Opened { handle, flags, backing: 0 }) => reply.opened(handle, flags),
            Ok(Opened { handle, flags, backing }) => {
                let backing = backing::for_open(&reply, backing);
                reply.opened_passthrough(handle, flags, &backing);
            }
            Err(error) => reply.error(error),
        }
    }

    /// Makes a file and opens it.
    pub(super) fn create_file(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        new: NewNode<'_>,
        flags: OpenFlags,
        reply: ReplyCreate,
    ) {
        let sharing = self.sharing();
        let create = || self.volume.create_and_open(ino(parent)?, name_of(name)?, new, caller(req), sharing);
        let again = |made| {
            let attr = self.made(made)?;
            Ok((attr, self.volume.open_file(attr.ino, true, sharing)?))
        };
        let settle =
            |(attr, open): (Attr, OpenFile)| self.settle(attr.ino, flags, sharing).map(|()| (attr, open));
        let (attr, open) = match self.once(req, again, create).and_then(settle) {
            Ok(created) => created,
            Err(error) => return reply.error(self.failed("create", parent, &error)),
        };
        let opened = self.opened(req, attr.ino, &open, true);
        let lifetime = self.names_lifetime(parent);
        // One lifetime covers entry and attributes here. The attributes may be kept: the kernel drops them at the first write, and
        // memory maps ask for them again at their next open, when there is a writer.
        match opened.and_then(|opened| self.refer(attr.ino).map(|()| opened)) {
            Ok(Opened { handle, flags, backing }) => self.answer_change(&[(parent, name)], move || {
                let attr = file_attr(&attr);
                if backing == 0 {
                    reply.created(&lifetime, &attr, GENERATION, handle, flags);
                } else {
                    let backing = backing::for_create(&reply, backing);
                    reply.created_passthrough(&lifetime, &attr, GENERATION, handle, flags, &backing);
                }
            }),
            Err(error) => {
                // The kernel believes that the name is not there, and would go on to.
                self.take_back(attr.ino, parent, name);
                reply.error(error);
            }
        }
    }

    /// Removes a file that was made for a program which is told that it was not. The kernel holds the directory's lock: nobody else knows it.
    fn take_back(&self, made: Ino, parent: INodeNo, name: &OsStr) {
        let removed = ino(parent).and_then(|dir| self.volume.unlink(dir, name_of(name)?));
        match removed {
            Ok(()) => self.forget_inode(made),
            Err(error) => warn!(ve = %self.ve, ino = %made, %error, "a file that could not be opened stays"),
        }
    }

    /// A file handle is closed.
    pub(super) fn close_file(&self, req: &Request, ino: Ino, handle: FileHandle) {
        let (sharing, kind) = match (handle.0 & HANDLE_PASSTHROUGH != 0, handle.0 & HANDLE_WRITES != 0) {
            (false, _) => (Sharing::Served, Handle::Served),
            (true, false) => (Sharing::Passthrough, Handle::Reader),
            (true, true) => (Sharing::Passthrough, Handle::Writer),
        };
        let (counted, unused) = self.ledger.close(device::unique(req), ino, kind);
        // Before the volume's handle: what the volume counts as open on its blob covers every backing id.
        self.close_backing(unused);
        if counted {
            self.volume.release(ino, sharing);
            match (kind, handle.0 & HANDLE_WRITES != 0) {
                (Handle::Writer, _) => self.writers.drop(ino),
                (Handle::Served, true) => self.writers.drop_served(ino),
                _ => {}
            }
        }
        if !self.ledger.knows(ino) {
            self.forget_inode(ino);
        }
    }

    /// Lets the kernel drop a backing file that is not in the ledger any more.
    pub(super) fn close_backing(&self, unused: Option<u32>) {
        if let Some(id) = unused {
            backing::close(self.device.as_fd(), id);
        }
    }
}
