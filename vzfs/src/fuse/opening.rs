//! Opening and closing files: who serves the content, and what the kernel may keep.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::sync::Arc;

use fuser::{
    BackingId, Errno, FileHandle, FopenFlags, INodeNo, OpenAccMode, OpenFlags, ReplyCreate, ReplyOpen,
    Request,
};
use tracing::warn;

use super::convert::{ENDLESS, file_attr};
use super::dispatch::{Dispatch, GENERATION};
use super::request::{caller, ino, name_of, perm};
use crate::types::{FileKind, Ino};
use crate::volume::{NewNode, OpenFile, SetAttr, Sharing, VolumeError};

/// What a file handle says, in the handle itself, so that nothing needs to be remembered for it.
const HANDLE_WRITES: u64 = 1;
const HANDLE_PASSTHROUGH: u64 = 2;

impl Dispatch {
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
                self.writers.add(ino);
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
            self.volume.set_attr(ino, SetAttr { size: Some(0), ..SetAttr::default() }, self.rights(req))?;
        }
        Ok((ino, write, self.volume.open_file(ino, write, self.sharing())?))
    }

    /// Opens a file that is there.
    pub(super) fn open_file(&self, req: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
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

    /// Makes a file and opens it.
    pub(super) fn create_file(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
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

    /// A file handle is closed.
    pub(super) fn close_file(&self, ino: Ino, handle: FileHandle) {
        let mut sharing = Sharing::Served;
        if handle.0 & HANDLE_PASSTHROUGH != 0 {
            sharing = Sharing::Passthrough;
            if handle.0 & HANDLE_WRITES != 0 {
                self.writers.drop(ino);
            }
            // Before the volume's handle: what the volume counts as open on its blob covers every backing id.
            self.backings.release(ino);
        }
        self.volume.release(ino, sharing);
        if !self.references.has(ino) {
            self.forget_inode(ino);
        }
    }
}
