//! Mounts that show other owners than the filesystem has (idmapped mounts, mount_setattr(2)).

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::process::{Pid, Signal, WaitOptions};

/// A new user namespace in which the ids from 0 up are the host's from `first` up. It lives as long as something uses it: this
/// descriptor, or a mount.
///
/// # Errors
/// `EPERM` without privilege, `EINVAL` when the kernel has none, and when the host allows no more of them.
pub fn user_namespace(first: u32, count: u32) -> io::Result<OwnedFd> {
    // Only a process can make a user namespace and only another one can give it a mapping, so a child lives for that long.
    let child = Sleeper::in_user_namespace()?;
    let pid = child.0.as_raw_nonzero();
    let mapping = format!("0 {first} {count}\n");
    for map in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{pid}/{map}"), &mapping)?;
    }
    Ok(File::open(format!("/proc/{pid}/ns/user"))?.into())
}

/// Makes a mount that is attached nowhere yet show the ids that the namespace maps them to, on the way in and on the way out. What the
/// namespace does not map is shown as the overflow id, and nobody can create or own files by it.
///
/// # Errors
/// `EINVAL` when the filesystem cannot do that.
pub fn map_mount_ids(mount: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        // Descriptors are not negative.
        userns_fd: namespace.as_raw_fd().unsigned_abs().into(),
    };
    super::set_mount_attributes(mount, &attributes)
}

/// A child process that does nothing. Dropping it ends it.
struct Sleeper(Pid);

impl Sleeper {
    fn in_user_namespace() -> io::Result<Sleeper> {
        let parent = rustix::process::getpid();
        // SAFETY: the structure is plain numbers, for all of which zero means "nothing".
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        // Without our signal handlers: a signal to the whole process group must not be handled twice.
        args.flags = (libc::CLONE_NEWUSER as u64) | CLONE_CLEAR_SIGHAND;
        args.exit_signal = libc::SIGCHLD as u64;
        // SAFETY: `args` outlives the call, and the size passed is its own. Without CLONE_VM the child has memory of its own; as
        // the only thread of a copy of a process with many it makes nothing but system calls, and never returns from here.
        let pid = unsafe {
            let pid = libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>());
            if pid == 0 {
                // It ends with us whatever happens, also if that happened before the line that asks for it.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                while libc::getppid() == parent.as_raw_nonzero().get() {
                    libc::pause();
                }
                libc::_exit(0);
            }
            pid
        };
        if pid < 0 {
            return Err(match io::Error::last_os_error() {
                // Not to be taken for a full disk.
                error if error.kind() == io::ErrorKind::StorageFull => io::Error::other(
                    "the host allows no more user namespaces (sysctl user.max_user_namespaces)",
                ),
                error => error,
            });
        }
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        pid.map(Sleeper).ok_or_else(|| io::Error::other("clone3 returned no process id"))
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        // Neither can fail for a child that nobody else waits for.
        let _ = rustix::process::kill_process(self.0, Signal::KILL);
        let _ = rustix::process::waitpid(Some(self.0), WaitOptions::empty());
    }
}

/// `linux/sched.h`; the libc crate has it in an integer too small for its value.
const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;
