//! Mounting, unmounting, and the threads in between.
//!
//! A filesystem is made without a place first, told what ids it shows, and only then attached to its mount point, by threads that answer
//! already: nobody ever sees it half made.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fuser::Config;
use rustix::mount::UnmountFlags;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::{error, info, warn};

use super::courtesy::{Courtesy, DiskSyncs};
use super::dispatch::{Dispatch, Parts};
use super::gate::Gate;
use super::ledger::{Handles, Ledger};
use super::locks;
use super::notices::{Herald, Notices};
use super::requests::Requests;
use super::wakeful::Wakeful;
use super::{backing, device};
use crate::sandbox::{self, Role};
use crate::sys;
use crate::types::{IdShift, Ino, VeName};
use crate::volume::{Rebased, Volume};

/// How long an unmounted filesystem's session may take to end. Every inode that the kernel knew is forgotten one by one then: seconds after much
/// work on a busy machine. Only a copy of the mount in another namespace keeps it longer.
const END_PATIENCE: Duration = Duration::from_secs(60);

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
    /// Whether those threads are confined to what they need.
    pub sandbox: bool,
    /// Which ids of the host stand for the VE's.
    pub shift: Option<IdShift>,
    /// Who writes notices that may wait; this process itself without one.
    pub herald: Option<Arc<dyn Herald>>,
    /// Keeps processors awake while many requests come in.
    pub wakeful: Option<Arc<Wakeful>>,
    /// The syncs of all mounts on the same disk.
    pub disk_syncs: Arc<DiskSyncs>,
    /// Passed before the first request of a mount that is taken over is answered.
    pub gate: Arc<Gate>,
}

/// What the kernel agreed to, known when there is a session.
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
    volume: Arc<Volume>,
    notices: Arc<Notices>,
    ledger: Arc<Ledger>,
    requests: Arc<Requests>,
    courtesy: Arc<Courtesy>,
    /// The connection.
    device: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// Mounts a volume. Before anybody sees the mount, `keep` gets what somebody else must hold for it to outlive this process.
///
/// # Errors
/// The mount point does not exist, is no directory, or the kernel made no mount; what `keep` says.
pub fn mount(
    volume: Arc<Volume>,
    mountpoint: &Path,
    options: &MountOptions,
    keep: impl FnOnce(Kept) -> io::Result<()>,
) -> Result<Mount, FuseError> {
    let failed = |source| failed(options, mountpoint, source);
    volume.free_orphans(|_| false).map_err(|error| failed(io::Error::other(error)))?;
    let (device, unattached) = device::new_filesystem(&options.ve_name).map_err(failed)?;
    let connection = device::read_init(&device).and_then(|init| {
        let passthrough = options.passthrough == Passthrough::Auto;
        let agreed = Agreed { init, passthrough, threads: options.threads.max(1) };
        Ok(Connection { device, ledger: Ledger::new(random())?, used: Vec::new(), agreed, new: true })
    });
    let started = connection.and_then(|connection| start(volume, mountpoint, options, connection, keep));
    let (mount, negotiated) = started.map_err(failed)?;
    if let Some(shift) = options.shift {
        show_ids(&unattached, shift, &negotiated)?;
    }
    // If this fails, dropping the mount ends the session.
    device::attach(&unattached, mountpoint).map_err(failed)?;
    info!(ve = %mount.ve, mountpoint = %mountpoint.display(), passthrough = mount.passthrough(), "mounted");
    Ok(mount)
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
        let used = ledger.inodes_in_use();
        for (ino, handles) in used.iter().copied().filter(|(_, handles)| handles.is_open()) {
            if let Err(error) = volume.adopt(ino, handles.passthrough(), handles.served) {
                error!(ve = %options.ve_name, %ino, %error, "an open file cannot be taken over");
            }
        }
        volume.adopt_written(used.iter().map(|(ino, _)| *ino));
        volume.free_orphans(|ino| ledger.knows(ino)).map_err(io::Error::other)?;
        close_unused(&ledger, kept.device.as_fd());
        let connection = Connection { device: kept.device, ledger, used, agreed: kept.agreed, new: false };
        start(volume, mountpoint, options, connection, keep)
    });
    let (mount, _) = adopted.map_err(|source| failed(options, mountpoint, source))?;
    info!(ve = %mount.ve, mountpoint = %mountpoint.display(), passthrough = mount.passthrough(), "took over the mount");
    Ok(mount)
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

/// Has the kernel close the backing files that nobody has open.
fn close_unused(ledger: &Ledger, device: BorrowedFd<'_>) {
    ledger.take_all_unused().into_iter().for_each(|id| backing::close(device, id));
}

/// What a session is started on.
struct Connection {
    device: OwnedFd,
    ledger: Ledger,
    /// What an earlier process had open of it, or let the kernel write to.
    used: Vec<(Ino, Handles)>,
    agreed: Agreed,
    /// The kernel waits for the answer to its first request.
    new: bool,
}

/// Starts to answer on a connection.
fn start(
    volume: Arc<Volume>,
    mountpoint: &Path,
    options: &MountOptions,
    connection: Connection,
    keep: impl FnOnce(Kept) -> io::Result<()>,
) -> io::Result<(Mount, Arc<Negotiated>)> {
    let Connection { device, ledger, used, mut agreed, new } = connection;
    let outcomes = volume.outcomes(ledger.connection()).map_err(io::Error::other)?;
    let memory = ledger.memory().try_clone_to_owned()?;
    let own_device = Arc::new(device.try_clone()?);
    let dispatch = Dispatch::new(Parts {
        volume: Arc::clone(&volume),
        ve: options.ve_name.clone(),
        wants_passthrough: agreed.passthrough,
        shift: options.shift,
        ledger,
        used,
        device: Arc::clone(&own_device),
        outcomes,
        wakeful: options.wakeful.clone(),
        disk_syncs: Arc::clone(&options.disk_syncs),
    });
    let (notices, negotiated) = (Arc::clone(&dispatch.notices), Arc::clone(&dispatch.negotiated));
    let (ledger, requests) = (Arc::clone(&dispatch.ledger), Arc::clone(&dispatch.requests));
    let courtesy = Arc::clone(&dispatch.courtesy);
    let mut config = Config::default();
    config.n_threads = Some(agreed.threads);
    let session = device::session(dispatch, &device, &agreed.init, new, config)?;
    notices.attach(session.notifier(), options.herald.clone());
    agreed.passthrough = negotiated.passthrough.load(Ordering::Acquire);
    if !new {
        device::resume(&device)?;
    }
    keep(Kept { device, ledger: memory, agreed: agreed.clone() })?;
    let alive = Arc::new(AtomicBool::new(true));
    let (ve, still_alive, served) = (options.ve_name.clone(), Arc::clone(&alive), Arc::clone(&volume));
    let (confined, gate) = (options.sandbox, (!new).then(|| Arc::clone(&options.gate)));
    let thread = std::thread::Builder::new().name(format!("ve-{ve}")).spawn(move || {
        // The threads that answer are started by this one, and inherit.
        if confined {
            sandbox::enter(Role::Session);
        }
        if let Some(gate) = gate {
            gate.pass();
        }
        if let Err(error) = session.run() {
            error!(%ve, %error, "the mount ended with an error");
        }
        if let Err(error) = served.free_forgotten() {
            warn!(%ve, %error, "removed files are freed at the next mount");
        }
        still_alive.store(false, Ordering::Release);
    })?;
    let mount = Mount {
        ve: options.ve_name.clone(),
        mountpoint: mountpoint.to_owned(),
        alive,
        agreed,
        volume,
        notices,
        ledger,
        requests,
        courtesy,
        device: own_device,
        thread: Some(thread),
    };
    Ok((mount, negotiated))
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

    /// Tells the kernel what a rebase of the volume has changed, and frees what nobody uses any more. To be called from a thread that answers no
    /// requests.
    pub fn tell(&self, rebased: &Rebased) {
        // What the kernel does not know by now it gets to know as it is now.
        let known = |ino: &Ino| *ino == Ino::ROOT || self.ledger.knows(*ino);
        self.notices.forget_all(
            rebased.names.iter().filter(|(dir, _)| known(dir)),
            rebased.inodes.iter().copied().filter(known),
            rebased.dirs.iter().copied().filter(known),
        );
        // Look-ups that were under way when the base was exchanged have been answered: the kernel does not take an entry away while it waits for one.
        for ino in rebased.orphans.iter().filter(|ino| !self.ledger.knows(**ino)) {
            if let Err(error) = self.volume.forget(*ino) {
                warn!(ve = %self.ve, %ino, %error, "a replaced file could not be freed");
            }
        }
    }

    /// Lets go of the blobs that are registered with the kernel and that nobody has open.
    pub fn forget_blobs(&self) {
        close_unused(&self.ledger, self.device.as_fd());
    }

    /// The process that holds a lock for writing on a file of the mount.
    pub fn lock_holder(&self, ino: Ino) -> Option<u32> {
        locks::holder(&self.mountpoint, ino)
    }

    /// All inodes that the kernel knows.
    pub fn known(&self) -> Vec<Ino> {
        self.ledger.known_inodes()
    }

    /// How many requests of each kind the kernel has sent to this daemon.
    pub fn requests(&self) -> BTreeMap<&'static str, u64> {
        self.requests.counted()
    }

    /// How many of them failed because of the host, by the names of errno(3).
    pub fn failures(&self) -> BTreeMap<&'static str, u64> {
        self.requests.failures()
    }

    /// How long its changes have waited for syncs of other mounts.
    pub fn waited(&self) -> Duration {
        self.courtesy.waited()
    }

    /// Whether the session has ended, now or in a moment. A mount namespace of somebody else's that has a copy of the mount keeps it going.
    fn wait_for_the_last_request(&self) -> bool {
        let deadline = Instant::now() + END_PATIENCE;
        while self.is_alive() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
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
        if let Some(thread) = self.thread.take().filter(|_| !force) {
            if !self.wait_for_the_last_request() {
                warn!(ve = %self.ve, "programs in another mount namespace use it until they end");
            } else if thread.join().is_err() {
                error!(ve = %self.ve, "a request thread panicked");
            }
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
