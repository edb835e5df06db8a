//! Mounting, unmounting, and the threads in between.
//!
//! A filesystem is made without a place first, told what ids it shows, and only then attached to its mount point, by threads that answer
//! already: nobody ever sees it half made.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use fuser::{Config, Session, SessionACL};
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
};
use thiserror::Error;
use tracing::{error, info};

use super::dispatch::Dispatch;
use crate::sys;
use crate::types::{IdShift, VeName};
use crate::volume::Volume;

/// Whether the kernel may serve reads and writes itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passthrough {
    /// Where the kernel and our privileges allow it.
    Auto,
    /// Never: the daemon moves every byte.
    Off,
}

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Shown as the mount's source, and in logs.
    pub ve_name: VeName,
    /// Who serves content.
    pub passthrough: Passthrough,
    /// Threads that answer requests; at least 1.
    pub threads: usize,
    /// Which ids of the host stand for the VE's.
    pub shift: Option<IdShift>,
}

/// What the kernel agreed to, known after [`Session::from_fd`].
#[derive(Debug, Default)]
pub(super) struct Negotiated {
    /// `FUSE_PASSTHROUGH`.
    pub(super) passthrough: AtomicBool,
    /// `FUSE_ALLOW_IDMAP`.
    pub(super) shift: AtomicBool,
}

/// Why a mount or unmount failed.
#[derive(Debug, Error)]
pub enum FuseError {
    /// The mount point cannot be used.
    #[error("cannot mount VE {ve} on {mountpoint}: {source}")]
    Mount {
        /// The VE.
        ve: VeName,
        /// Where.
        mountpoint: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel cannot show other ids than the VE has.
    #[error("an id shift needs Linux 6.12 or newer, whose FUSE can show other ids than a filesystem has")]
    NoShift,
    /// The user namespace that stands for the shift, or the mount with it, could not be made.
    #[error("cannot show its ids as {shift}: {source}")]
    Shift {
        /// Its ids on the host.
        shift: IdShift,
        /// Why.
        source: io::Error,
    },
    /// Programs still use it.
    #[error("cannot unmount {mountpoint}: {source}")]
    Unmount {
        /// Where.
        mountpoint: PathBuf,
        /// Why; `EBUSY` when programs use it.
        source: io::Error,
    },
}

/// A mounted VE. Dropping it detaches the mount: programs that use it keep it until they end.
pub struct Mount {
    ve: VeName,
    mountpoint: PathBuf,
    alive: Arc<AtomicBool>,
    negotiated: Arc<Negotiated>,
    thread: Option<JoinHandle<()>>,
}

/// Mounts a volume. When this returns the mount answers requests.
///
/// # Errors
/// The mount point does not exist, is no directory, or the kernel made no mount.
pub fn mount(volume: Arc<Volume>, mountpoint: &Path, options: &MountOptions) -> Result<Mount, FuseError> {
    let failed =
        |source| FuseError::Mount { ve: options.ve_name.clone(), mountpoint: mountpoint.to_owned(), source };
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").map_err(failed)?;
    let unattached = new_filesystem(&device, &options.ve_name).map_err(|errno| failed(errno.into()))?;
    let negotiated = Arc::new(Negotiated::default());
    let dispatch = Dispatch::new(volume, options, Arc::clone(&negotiated));
    let notices = dispatch.notices();
    let mut config = Config::default();
    config.n_threads = Some(options.threads.max(1));
    let session = Session::from_fd(dispatch, device.into(), SessionACL::All, config).map_err(failed)?;
    notices.attach(session.notifier());
    if let Some(shift) = options.shift {
        show_ids(&unattached, shift, &negotiated)?;
    }
    let alive = Arc::new(AtomicBool::new(true));
    let (ve, still_alive) = (options.ve_name.clone(), Arc::clone(&alive));
    let thread = std::thread::Builder::new().name(format!("ve-{ve}")).spawn(move || {
        if let Err(error) = session.run() {
            error!(%ve, %error, "the mount ended with an error");
        }
        still_alive.store(false, Ordering::Release);
    });
    let thread = thread.map_err(failed)?;
    // If this fails, dropping the mount ends the session.
    move_mount(&unattached, "", CWD, mountpoint, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|errno| failed(errno.into()))?;
    let mount = Mount {
        ve: options.ve_name.clone(),
        mountpoint: mountpoint.to_owned(),
        alive,
        negotiated,
        thread: Some(thread),
    };
    info!(ve = %mount.ve, mountpoint = %mountpoint.display(), passthrough = mount.passthrough(), "mounted");
    Ok(mount)
}

/// A FUSE filesystem that is mounted nowhere, answered for through `device`. Dropping the descriptor takes it away.
fn new_filesystem(device: &File, ve: &VeName) -> rustix::io::Result<OwnedFd> {
    let filesystem = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let settings = [
        ("source", format!("vzfs:{ve}")),
        ("subtype", "vzfs".to_owned()),
        ("fd", device.as_raw_fd().to_string()),
        // A directory.
        ("rootmode", "40000".to_owned()),
        ("user_id", "0".to_owned()),
        ("group_id", "0".to_owned()),
    ];
    for (key, value) in settings {
        fsconfig_set_string(&filesystem, key, value)?;
    }
    // Every user of the VE may use it, and the kernel checks what each may do.
    for flag in ["default_permissions", "allow_other"] {
        fsconfig_set_flag(&filesystem, flag)?;
    }
    fsconfig_create(&filesystem)?;
    // A root filesystem has device nodes and setuid programs: neither is switched off.
    fsmount(&filesystem, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

/// Makes a mount that is attached nowhere yet show the VE's ids as others of the host.
fn show_ids(mount: &OwnedFd, shift: IdShift, negotiated: &Negotiated) -> Result<(), FuseError> {
    if !negotiated.shift.load(Ordering::Acquire) {
        return Err(FuseError::NoShift);
    }
    let namespace = sys::user_namespace(shift.first(), shift.count());
    let mapped = namespace.and_then(|namespace| sys::map_mount_ids(mount.as_fd(), namespace.as_fd()));
    mapped.map_err(|source| FuseError::Shift { shift, source })
}

impl Mount {
    /// Where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Whether the kernel serves content itself.
    pub fn passthrough(&self) -> bool {
        self.negotiated.passthrough.load(Ordering::Acquire)
    }

    /// Whether the mount still answers; not after somebody else unmounted it.
    pub fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }

    /// Unmounts and waits for the last request. With `force` a mount in use is detached instead: programs keep it until they end, and this
    /// does not wait for them.
    ///
    /// # Errors
    /// `EBUSY` without `force` while programs use the mount; it then stays as it was.
    pub fn unmount(mut self, force: bool) -> Result<(), Box<(Mount, FuseError)>> {
        if self.is_alive() {
            let flags = if force { UnmountFlags::DETACH } else { UnmountFlags::empty() };
            match rustix::mount::unmount(&self.mountpoint, flags) {
                // EINVAL: somebody else unmounted it just now.
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(errno) => {
                    let error =
                        FuseError::Unmount { mountpoint: self.mountpoint.clone(), source: errno.into() };
                    return Err(Box::new((self, error)));
                }
            }
        }
        let thread = self.thread.take();
        if let Some(thread) = thread.filter(|_| !force)
            && thread.join().is_err()
        {
            error!(ve = %self.ve, "a request thread panicked");
        }
        info!(ve = %self.ve, "unmounted");
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.thread.is_some() && self.is_alive() {
            let _already_gone = rustix::mount::unmount(&self.mountpoint, UnmountFlags::DETACH);
        }
    }
}
