//! Mounting, unmounting, and the threads in between.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use fuser::Config;
use rustix::mount::UnmountFlags;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::{error, info};

use super::device;
use super::dispatch::{Dispatch, Parts};
use super::ledger::Ledger;
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

/// What must be kept outside of the daemon for a mount to outlive it.
#[derive(Debug)]
pub struct Kept {
    /// The connection to the kernel.
    pub device: OwnedFd,
    /// What the kernel holds of the mount, as the daemon counts it.
    pub ledger: OwnedFd,
    /// What was agreed on when it was mounted.
    pub agreed: Agreed,
}

/// What a connection's two sides agreed on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Agreed {
    /// The kernel's first request.
    pub init: Vec<u8>,
    /// Whether the kernel serves content itself.
    pub passthrough: bool,
    /// Threads that answer requests.
    pub threads: usize,
}

/// A mounted VE. Dropping it detaches the mount: programs that use it keep it until they end.
pub struct Mount {
    ve: VeName,
    mountpoint: PathBuf,
    alive: Arc<AtomicBool>,
    agreed: Agreed,
    thread: Option<JoinHandle<()>>,
}

/// Mounts a volume. Before the mount answers requests, `keep` gets what somebody else must hold for the mount to outlive this process.
///
/// # Errors
/// The mount point does not exist, is no directory, or mount(2) failed; what `keep` says.
pub fn mount(
    volume: Arc<Volume>,
    mountpoint: &Path,
    options: &MountOptions,
    keep: impl FnOnce(Kept) -> io::Result<()>,
) -> Result<Mount, FuseError> {
    let failed = |source| failed(options, mountpoint, source);
    volume.free_orphans(|_| false).map_err(|error| failed(io::Error::other(error)))?;
    let device = device::mount(&options.ve_name, mountpoint).map_err(failed)?;
    let made = device::read_init(&device).and_then(|init| {
        let ledger = Ledger::new(random())?;
        let agreed = Agreed {
            init,
            passthrough: options.passthrough == Passthrough::Auto,
            threads: options.threads.max(1),
        };
        start(volume, mountpoint, options, Connection { device, ledger, agreed, new: true }, keep)
    });
    made.inspect_err(|_| {
        // Nothing answers there: programs must not wait.
        let _best_effort = rustix::mount::unmount(mountpoint, UnmountFlags::DETACH);
    })
    .map_err(failed)
}

/// Takes over a mount from a daemon that is no more. Requests that it left unanswered are answered, each carried out once.
///
/// # Errors
/// The mount is gone, or its ledger is not readable; then the connection is closed, and programs get errors.
pub fn resume(
    volume: Arc<Volume>,
    mountpoint: &Path,
    options: &MountOptions,
    kept: Kept,
    keep: impl FnOnce(Kept) -> io::Result<()>,
) -> Result<Mount, FuseError> {
    let adopted = Ledger::adopt(File::from(kept.ledger)).and_then(|ledger| {
        for (ino, handles) in ledger.open_inodes() {
            if let Err(error) = volume.adopt(ino, handles.passthrough(), handles.served) {
                error!(ve = %options.ve_name, %ino, %error, "an open file cannot be taken over");
            }
        }
        volume.free_orphans(|ino| ledger.knows(ino)).map_err(io::Error::other)?;
        let connection = Connection { device: kept.device, ledger, agreed: kept.agreed, new: false };
        start(volume, mountpoint, options, connection, keep)
    });
    adopted.map_err(|source| failed(options, mountpoint, source))
}

fn failed(options: &MountOptions, mountpoint: &Path, source: io::Error) -> FuseError {
    FuseError::Mount { ve: options.ve_name.clone(), mountpoint: mountpoint.to_owned(), source }
}

/// Tells one connection from another: requests are numbered from 0 in each.
fn random() -> u64 {
    let mut bytes = [0; 8];
    // Fails only before the kernel has any entropy; connections are then told apart by their requests alone.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u64::from_ne_bytes(bytes)
}

struct Connection {
    device: OwnedFd,
    ledger: Ledger,
    agreed: Agreed,
    /// The kernel waits for the answer to its first request.
    new: bool,
}

fn start(
    volume: Arc<Volume>,
    mountpoint: &Path,
    options: &MountOptions,
    connection: Connection,
    keep: impl FnOnce(Kept) -> io::Result<()>,
) -> io::Result<Mount> {
    let Connection { device, ledger, mut agreed, new } = connection;
    let outcomes = volume.outcomes(ledger.connection()).map_err(io::Error::other)?;
    let memory = ledger.memory().try_clone_to_owned()?;
    let dispatch = Dispatch::new(Parts {
        volume,
        ve: options.ve_name.clone(),
        wants_passthrough: agreed.passthrough,
        ledger,
        device: device.try_clone()?,
        outcomes,
    });
    let (notices, passthrough) = (Arc::clone(&dispatch.notices), Arc::clone(&dispatch.passthrough));
    let mut config = Config::default();
    config.n_threads = Some(agreed.threads);
    let session = device::session(dispatch, &device, &agreed.init, new, config)?;
    notices.attach(session.notifier());
    agreed.passthrough = passthrough.load(Ordering::Acquire);
    if !new {
        device::resume(&device)?;
    }
    keep(Kept { device, ledger: memory, agreed: agreed.clone() })?;
    let alive = Arc::new(AtomicBool::new(true));
    let (ve, still_alive) = (options.ve_name.clone(), Arc::clone(&alive));
    let thread = std::thread::Builder::new().name(format!("ve-{ve}")).spawn(move || {
        if let Err(error) = session.run() {
            error!(%ve, %error, "the mount ended with an error");
        }
        still_alive.store(false, Ordering::Release);
    })?;
    let how = if new { "mounted" } else { "took over the mount" };
    info!(ve = %options.ve_name, mountpoint = %mountpoint.display(), passthrough = agreed.passthrough, "{how}");
    Ok(Mount {
        ve: options.ve_name.clone(),
        mountpoint: mountpoint.to_owned(),
        alive,
        agreed,
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
        self.agreed.passthrough
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
    }
}
