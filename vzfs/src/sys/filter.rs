//! Filters of system calls (seccomp(2)).

use std::io;

/// Filters the system calls of the calling thread, and of those that it starts, by a program; with `all_threads`, also of those that the process has
/// already. The thread must have `CAP_SYS_ADMIN`: `no_new_privs` is not set.
///
/// # Errors
/// `EACCES` without the capability; `EINVAL` when the kernel has no filters, or refuses the program.
pub fn filter_system_calls(program: &[libc::sock_filter], all_threads: bool) -> io::Result<()> {
    // A program has some hundred instructions.
    let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    let flags = if all_threads { libc::SECCOMP_FILTER_FLAG_TSYNC } else { 0 };
    // SAFETY: the structure and the instructions that it points to outlive the call, which reads them.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    match result {
        0 => Ok(()),
        // The number of a thread whose filters are others.
        1.. => Err(io::Error::other("a thread has filters of its own")),
        _ => Err(io::Error::last_os_error()),
    }
}
