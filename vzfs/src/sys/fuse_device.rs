//! What a `/dev/fuse` descriptor needs beyond reads and writes.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::ioctl::{Setter, ioctl, opcode};

/// Of `FUSE_DEV_IOC_BACKING_CLOSE` in linux/fuse.h.
const BACKING_CLOSE: rustix::ioctl::Opcode = opcode::write::<u32>(229, 2);

/// Lets the kernel drop a backing file that was registered on this connection.
///
/// # Errors
/// `ENOENT` when there is none with this id.
pub fn close_backing(device: BorrowedFd<'_>, id: u32) -> io::Result<()> {
    // SAFETY: the request takes a pointer to 32 bits, which it reads during the call; `Setter` passes one to `id`.
    let close = unsafe { Setter::<BACKING_CLOSE, u32>::new(id) };
    // SAFETY: on a descriptor that is no FUSE connection the kernel refuses the number without touching the argument.
    unsafe { ioctl(device, close) }.map_err(io::Error::from)
}

/// Makes the descriptor number of `target` stand for what `source` stands for (dup3(2)), whoever owns `target`. What it stood for is
/// closed.
pub fn replace_descriptor(source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the number is open, as it is borrowed, and stays open: dup3 swaps what is behind it. `ManuallyDrop` leaves the closing to
    // its owner.
    let mut number = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(target.as_raw_fd()) });
    rustix::io::dup3(source, &mut number, rustix::io::DupFlags::CLOEXEC).map_err(io::Error::from)
}
