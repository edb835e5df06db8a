//! Mounting, unmounting, and the threads in between.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use fuser::{Config, MountOption, Session, SessionACL, SessionUnmounter};
use rustix::mount::UnmountFlags;
use thiserror::Error;
use tracing::{error, info};

use super::dispatch::Dispatch;
use crate::types::VeName;
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
    passthrough: Arc<AtomicBool>,
    unmounter: SessionUnmounter,
    thread: Option<JoinHandle<()>>,
}

/// Mounts a volume. When this returns the mount answers requests.
///
/// # Errors
/// The mount point does not exist, is no directory, or mount(2) failed.
pub fn mount(volume: Arc<Volume>, mountpoint: &Path, options: &MountOptions) -> Result<Mount, FuseError> {
    let failed =
        |source| FuseError::Mount { ve: options.ve_name.clone(), mountpoint: mountpoint.to_owned(), source };
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(format!("vzfs:{}", options.ve_name)),
        // fuser passes its own `Subtype` to fusermount only.
        MountOption::CUSTOM("subtype=vzfs".to_owned()),
        MountOption::DefaultPermissions,
        // A root filesystem has device nodes and setuid programs.
        MountOption::Dev,
        MountOption::Suid,
    ];
    config.acl = SessionACL::All;
    config.n_threads = Some(options.threads.max(1));
    let passthrough = Arc::new(AtomicBool::new(false));
    let dispatch = Dispatch::new(volume, options, Arc::clone(&passthrough));
    let notices = dispatch.notices();
    let mut session = Session::new(dispatch, mountpoint, &config).map_err(failed)?;
    notices.attach(session.notifier());
    let unmounter = session.unmount_callable();
    let alive = Arc::new(AtomicBool::new(true));
    let (ve, still_alive) = (options.ve_name.clone(), Arc::clone(&alive));
    let thread = std::thread::Builder::new().name(format!("ve-{ve}")).spawn(move || {
        if let Err(error) = session.run() {
            error!(%ve, %error, "the mount ended with an error");
        }
        still_alive.store(false, Ordering::Release);
    });
    let thread = thread.map_err(failed)?;
    info!(ve = %options.ve_name, mountpoint = %mountpoint.display(), passthrough = passthrough.load(Ordering::Acquire), "mounted");
    Ok(Mount {
        ve: options.ve_name.clone(),
        mountpoint: mountpoint.to_owned(),
        alive,
        passthrough,
        unmounter,
        thread: Some(thread),
    })
}

impl Mount {
    /// Where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Whether the kernel serves content itself.
    pub fn passthrough(&self) -> bool {
        self.passthrough.load(Ordering::Acquire)
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
            let _detached = rustix::mount::unmount(&self.mountpoint, UnmountFlags::DETACH);
        }
        let _already_gone = self.unmounter.unmount();
    }
}
