//! Backing files: what the kernel reads and writes itself, by numbers that live as long as the mount and not as long as the process.

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::BorrowedFd;

use fuser::{BackingId, ReplyCreate, ReplyOpen};

use crate::sys;

/// Registers a file with the kernel.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`, `ELOOP` for a file on a stacked filesystem, no descriptors or memory.
pub(super) fn register(device: BorrowedFd<'_>, file: &File) -> io::Result<u32> {
    BackingId::create_raw(device, file)
}

/// Lets the kernel drop a backing file that no handle uses.
pub(super) fn close(device: BorrowedFd<'_>, id: u32) {
    if let Err(error) = sys::close_backing(device, id) {
        tracing::warn!(%error, id, "the kernel keeps a backing file until the unmount");
    }
}

/// fuser's form of a registered id. Not dropped: that would close the id, which the ledger keeps.
pub(super) fn for_open(reply: &ReplyOpen, id: u32) -> ManuallyDrop<BackingId> {
    // SAFETY: the ledger has the id, so it is registered on this connection and not closed (L4); it is never closed through this value.
    ManuallyDrop::new(unsafe { reply.wrap_backing(id) })
}

/// As [`for_open`].
pub(super) fn for_create(reply: &ReplyCreate, id: u32) -> ManuallyDrop<BackingId> {
    // SAFETY: as in `for_open`.
    ManuallyDrop::new(unsafe { reply.wrap_backing(id) })
}
