//! The few system calls of the differential test that need `unsafe`.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::thread::UnshareFlags;

/// Most bytes of a file handle (`MAX_HANDLE_SZ`).
const HANDLE_BYTES: usize = 128;

/// What name_to_handle_at(2) tells.
#[repr(C)]
#[derive(Hash)]
pub(super) struct Handle {
    bytes: u32,
    kind: i32,
    data: [u8; HANDLE_BYTES],
}

fn outcome(returned: i32) -> io::Result<i32> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

/// Gives the calling thread a root, a working directory and a umask of its own.
pub(super) fn unshare_fs() -> io::Result<()> {
    // SAFETY: nothing in this process relies on threads having one working directory.
    Ok(unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?)
}

/// name_to_handle_at(2).
pub(super) fn name_to_handle(at: BorrowedFd<'_>, path: &std::ffi::CStr, flags: i32) -> io::Result<Handle> {
    let mut handle = Handle { bytes: HANDLE_BYTES as u32, kind: 0, data: [0; HANDLE_BYTES] };
    let mut mount = 0;
    let pointer = (&raw mut handle).cast::<libc::file_handle>();
    // SAFETY: `Handle` is laid out as the system's structure with room for as many bytes as its first field says.
    outcome(unsafe {
        libc::name_to_handle_at(at.as_raw_fd(), path.as_ptr(), pointer, &raw mut mount, flags)
    })?;
    Ok(handle)
}

/// fcntl(2) with a lock.
pub(super) fn lock(fd: BorrowedFd<'_>, command: i32, kind: i32, start: i64, len: i64) -> io::Result<()> {
    // SAFETY: all zeros is a legal value of this plain structure.
    let mut lock: libc::flock = unsafe { MaybeUninit::zeroed().assume_init() };
    (lock.l_type, lock.l_whence) = (kind as i16, libc::SEEK_SET as i16);
    (lock.l_start, lock.l_len) = (start, len);
    // SAFETY: the structure lives as long as the call.
    outcome(unsafe { libc::fcntl(fd.as_raw_fd(), command, &raw const lock) }).map(drop)
}

/// Maps the first `len` bytes of a file, returns them, and writes `byte` over the one at its position and syncs.
pub(super) fn map(fd: BorrowedFd<'_>, len: usize, write: Option<(usize, u8)>) -> io::Result<Vec<u8>> {
    let writable = if write.is_some() { libc::PROT_WRITE } else { 0 };
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe {
        libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | writable, libc::MAP_SHARED, fd.as_raw_fd(), 0)
    };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let mut bytes = vec![0; len];
    // SAFETY: the mapping has `len` bytes within the file, which nobody cuts off meanwhile: the steps of a sequence
    // follow each other. It is unmapped once, here.
    unsafe {
        std::ptr::copy_nonoverlapping(start.cast::<u8>(), bytes.as_mut_ptr(), len);
        let synced = match write {
            Some((at, byte)) if at < len => {
                start.cast::<u8>().add(at).write_volatile(byte);
                outcome(libc::msync(start, len, libc::MS_SYNC))
            }
            _ => Ok(0),
        };
        outcome(libc::munmap(start, len))?;
        synced?;
    }
    Ok(bytes)
}

/// truncate(2).
pub(super) fn truncate(path: &std::ffi::CStr, size: u64) -> io::Result<()> {
    let size = i64::try_from(size).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: the path ends with a zero and lives as long as the call.
    outcome(unsafe { libc::truncate(path.as_ptr(), size) }).map(drop)
}
