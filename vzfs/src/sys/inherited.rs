//! Descriptors that this process was started with.

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::FdFlags;

/// Takes descriptors that whoever started this process has left it: `count` of them from number `first` on, up to the first number that is not open. They
/// are not inherited further. Only the first call finds any: afterwards they have an owner.
///
/// The caller promises by use that they were agreed on with whoever started the process (as by sd_listen_fds(3)), so that nothing in this process has
/// opened one of these numbers itself.
pub fn inherited_descriptors(first: RawFd, count: usize) -> Vec<OwnedFd> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if count == 0 || TAKEN.swap(true, Ordering::Relaxed) {
        return Vec::new();
    }
    let numbers = (first.max(3)..RawFd::MAX).take(count);
    let take = |number| {
        // SAFETY: only looked at: on a number that is not open the kernel answers with EBADF.
        let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
        rustix::io::fcntl_setfd(borrowed, FdFlags::CLOEXEC).ok()?;
        // SAFETY: the number is open, it was left for this process by agreement (see above), and it is taken once.
        Some(unsafe { OwnedFd::from_raw_fd(number) })
    };
    numbers.map_while(take).collect()
}
