//! The few system calls that need `unsafe`, and nothing else. Each function is safe to call; what makes it so is said
//! at its block.

mod bus_error;
mod filter;
mod fuse_device;
mod ids;
mod inherited;
mod mapped;
mod reads;
mod shared;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub use filter::filter_system_calls;
pub use fuse_device::{close_backing, replace_descriptor};
pub use ids::{map_mount_ids, user_namespace};
pub use inherited::inherited_descriptors;
pub use mapped::{MappedFile, Mapping, Mended};
pub use reads::{Reads, Verdict, settle, verdict};
pub use shared::SharedWords;

/// A detached bind mount of the folder `dir` that is read-only, as an `O_PATH`-like descriptor.
///
/// A file opened below the descriptor cannot be opened for writing again through its own path, not even by the
/// kernel on behalf of a FUSE passthrough open, which uses the caller's flags (mount_setattr(2)). The mount lives as long
/// as a descriptor in it does and is visible in no mount table.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`; `ENOSYS` before Linux 5.12.
pub fn read_only_clone(dir: &Path) -> io::Result<OwnedFd> {
    let path = std::ffi::CString::new(dir.as_os_str().as_bytes())?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: `path` is a NUL-terminated string that outlives the call; the result is checked before use.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, so nobody else owns it; descriptors fit an i32.
    let mount = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let attributes =
        libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    set_mount_attributes(mount.as_fd(), &attributes)?;
    Ok(mount)
}

/// mount_setattr(2) on the mount that the descriptor is the root of.
fn set_mount_attributes(mount: BorrowedFd<'_>, attributes: &libc::mount_attr) -> io::Result<()> {
    // SAFETY: the empty path and `attributes` outlive the call, and the size passed is that of `attributes`.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const *attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Has the kernel begin to write what the file has in memory only, and does not wait for it (sync_file_range(2)). Nothing is durable by this alone.
///
/// # Errors
/// Those of the write; whoever syncs the file afterwards is told of them as well.
pub fn begin_writing_back(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open for the time of the call; the other arguments are integers. A length of 0 means up to the end.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether a file is open for writing anywhere, or mapped so: asked by trying to get a read lease on it, which such a file is refused
/// (fcntl(2)). `file` must be open for reading only.
///
/// # Errors
/// The filesystem has no leases.
pub fn is_open_for_writing(file: &File) -> io::Result<bool> {
    is_lease_refused(file, libc::F_RDLCK)
}

/// Whether a file is open anywhere else than through `file`, or mapped, or run as a program: such a file is refused a write lease. `file` must
/// be open for reading only.
///
/// # Errors
/// The filesystem has no leases.
pub fn is_open_elsewhere(file: &File) -> io::Result<bool> {
    is_lease_refused(file, libc::F_WRLCK)
}

fn is_lease_refused(file: &File, kind: libc::c_int) -> io::Result<bool> {
    /// `asm-generic/fcntl.h`; the crate libc does not have it.
    const F_SETSIG: libc::c_int = 10;
    let fcntl = |command: libc::c_int, argument: libc::c_int| {
        // SAFETY: the descriptor is open for the time of the call, and these commands take an integer.
        let result = unsafe { libc::fcntl(file.as_raw_fd(), command, argument) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // Who opens the file in the moment of the lease waits for its end, and we would be sent SIGIO, which kills; SIGURG is ignored.
    fcntl(F_SETSIG, libc::SIGURG)?;
    match fcntl(libc::F_SETLEASE, kind) {
        Ok(()) => fcntl(libc::F_SETLEASE, libc::F_UNLCK).map(|()| false),
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Makes the C allocator map large blocks instead of taking them from its heap.
///
/// Each FUSE session thread owns a zeroed 16 MiB buffer of which it touches a few pages. From fresh mappings that
/// costs those pages; from a recycled heap it costs 16 MiB of memset each.
pub fn map_large_allocations() {
    const THRESHOLD_BYTES: libc::c_int = 1 << 20;
    // SAFETY: mallopt takes two integers and only changes the allocator's own settings.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, THRESHOLD_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writable_map_counts_as_open_for_writing() {
        let path = tempfile::NamedTempFile::new_in("/var/tmp").expect("scratch file").into_temp_path();
        let ask = || is_open_for_writing(&File::open(&path).expect("open")).expect("leases");
        assert!(!ask());
        let writer = File::options().read(true).write(true).open(&path).expect("open");
        assert!(ask());
        writer.set_len(4096).expect("grow");
        // SAFETY: nobody else changes the scratch file.
        let map = unsafe { memmap2::MmapMut::map_mut(&writer) }.expect("map");
        drop(writer);
        assert!(ask());
        drop(map);
        assert!(!ask());
    }
    #[test]
    fn a_file_that_is_read_or_mapped_for_reading_counts_as_open_elsewhere() {
        let path = tempfile::NamedTempFile::new_in("/var/tmp").expect("scratch file").into_temp_path();
        std::fs::write(&path, [1; 4096]).expect("write");
        let ask = || is_open_elsewhere(&File::open(&path).expect("open")).expect("leases");
        assert!(!ask());
        let reader = File::open(&path).expect("open");
        assert!(ask());
        // SAFETY: nobody changes the scratch file.
        let map = unsafe { memmap2::Mmap::map(&reader) }.expect("map");
        drop(reader);
        assert!(ask());
        drop(map);
        assert!(!ask());
    }
}
