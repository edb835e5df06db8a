//! FUSE mounts for the store.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::{Config, idle};
use crate::fuse::{self, DiskSyncs, FuseError, Gate, Herald, Mount, MountOptions, Passthrough, Wakeful};
use crate::store::{BoxError, Mounted, Mounter, UnmountError};
use crate::supervisor::{Link, Report};
use crate::types::{IdShift, Ino, VeId, VeName};
use crate::volume::{Rebased, Volume};

/// Dead mounts on top of each other that are taken away before it counts as a fault.
const MAX_DEAD_MOUNTS: usize = 16;

/// Mounts with the daemon's settings.
#[derive(Clone)]
pub(super) struct FuseMounter {
    passthrough: Passthrough,
    threads: usize,
    sandbox: bool,
    supervisor: Option<Arc<Link>>,
    wakeful: Option<Arc<Wakeful>>,
    disk_syncs: Arc<DiskSyncs>,
    gate: Arc<Gate>,
}

impl FuseMounter {
    /// Mounts that are taken over are answered when `gate` is open.
    pub(super) fn new(config: &Config, supervisor: Option<Arc<Link>>, gate: Arc<Gate>) -> FuseMounter {
        let Config { passthrough, threads, sandbox, idle_processors, .. } = *config;
        FuseMounter {
            passthrough,
            threads,
            sandbox,
            supervisor,
            wakeful: idle::wakeful(idle_processors),
            disk_syncs: Arc::default(),
            gate,
        }
    }

    /// Goes on with a mount that the last daemon left. `None`: there is none, or it is unusable.
    fn take_over(
        &self,
        volume: &Arc<Volume>,
        ve: VeId,
        mountpoint: &Path,
        options: &MountOptions,
    ) -> Option<Mount> {
        let kept = self.supervisor.as_ref()?.take_held(ve, mountpoint)?;
        // The supervisor goes on keeping it.
        match fuse::resume(Arc::clone(volume), mountpoint, options, kept, |_| Ok(())) {
            Ok(mount) => Some(mount),
            Err(error) => {
                tracing::warn!(%error, "a mount cannot be taken over and is made anew");
                None
            }
        }
    }
}

impl Mounter for FuseMounter {
    fn mount(
        &self,
        volume: Arc<Volume>,
        ve: &VeName,
        mountpoint: &Path,
        id_shift: Option<IdShift>,
    ) -> Result<Box<dyn Mounted>, BoxError> {
        let (id, supervisor) = (volume.ve(), self.supervisor.clone());
        let notifies = supervisor.clone().filter(|link| link.notifies());
        let options = MountOptions {
            ve_name: ve.clone(),
            passthrough: self.passthrough,
            threads: self.threads,
            sandbox: self.sandbox,
            shift: id_shift,
            herald: notifies.map(|link| Arc::new(BySupervisor { link, ve: id }) as Arc<dyn Herald>),
            wakeful: self.wakeful.clone(),
            disk_syncs: Arc::clone(&self.disk_syncs),
            gate: Arc::clone(&self.gate),
        };
        if let Some(mount) = self.take_over(&volume, id, mountpoint, &options) {
            return Ok(Box::new(FuseMounted { mount, id, supervisor }));
        }
        let made = prepare(mountpoint)?;
        let keep = |kept| supervisor.as_ref().map_or(Ok(()), |link| link.keep(id, mountpoint, &kept));
        match fuse::mount(volume, mountpoint, &options, keep) {
            Ok(mount) => Ok(Box::new(FuseMounted { mount, id, supervisor })),
            Err(error) => {
                if made {
                    let _ = fs::remove_dir(mountpoint);
                }
                Err(cause(error))
            }
        }
    }
}

/// Has the supervisor write a mount's notices.
#[derive(Debug)]
struct BySupervisor {
    link: Arc<Link>,
    ve: VeId,
}

impl Herald for BySupervisor {
    fn write(&self, notices: &[u8]) {
        self.link.notify(self.ve, notices);
    }
}

struct FuseMounted {
    mount: Mount,
    id: VeId,
    supervisor: Option<Arc<Link>>,
}

impl Mounted for FuseMounted {
    fn is_alive(&self) -> bool {
        self.mount.is_alive()
    }

    fn passthrough(&self) -> bool {
        self.mount.passthrough()
    }

    fn tell(&self, rebased: &Rebased) {
        self.mount.tell(rebased);
    }

    fn known(&self) -> Vec<Ino> {
        self.mount.known()
    }

    fn lock_holder(&self, ino: Ino) -> Option<u32> {
        self.mount.lock_holder(ino)
    }

    fn forget_blobs(&self) {
        self.mount.forget_blobs();
    }

    fn requests(&self) -> BTreeMap<&'static str, u64> {
        self.mount.requests()
    }

    fn failures(&self) -> BTreeMap<&'static str, u64> {
        self.mount.failures()
    }

    fn waited(&self) -> Duration {
        self.mount.waited()
    }

    fn unmount(self: Box<Self>, force: bool) -> Result<(), (Box<dyn Mounted>, UnmountError)> {
        let FuseMounted { mount, id, supervisor } = *self;
        match mount.unmount(force) {
            Ok(()) => {
                if let Some(link) = supervisor {
                    link.report(&Report::Drop(id));
                }
                Ok(())
            }
            Err(refused) => {
                let (mount, error) = *refused;
                let busy = matches!(&error, FuseError::Unmount { source, .. }
                    if source.raw_os_error() == Some(Errno::BUSY.raw_os_error()));
                let error = if busy { UnmountError::Busy } else { UnmountError::Other(cause(error)) };
                Err((Box::new(FuseMounted { mount, id, supervisor }) as Box<dyn Mounted>, error))
            }
        }
    }
}

/// Why it failed, without the VE and the mount point, which the store's own message names.
fn cause(error: FuseError) -> BoxError {
    match error {
        FuseError::Mount { source, .. } | FuseError::Unmount { source, .. } => source.into(),
        refused @ (FuseError::NoShift | FuseError::Shift { .. }) => refused.into(),
    }
}

/// Makes sure that there is an empty folder. Returns whether it was made.
fn prepare(mountpoint: &Path) -> io::Result<bool> {
    for _ in 0..MAX_DEAD_MOUNTS {
        match empty_folder(mountpoint) {
            // What a FUSE mount answers when its daemon is gone.
            Err(error) if error.raw_os_error() == Some(Errno::NOTCONN.raw_os_error()) => {
                tracing::info!(mountpoint = %mountpoint.display(), "taking away what a dead daemon left");
                unmount(mountpoint, UnmountFlags::DETACH)?;
            }
            done => return done,
        }
    }
    Err(io::Error::other("dead mounts are on it that cannot be taken away"))
}

fn empty_folder(mountpoint: &Path) -> io::Result<bool> {
    let metadata = match fs::symlink_metadata(mountpoint) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o755).create(mountpoint)?;
            return Ok(true);
        }
        metadata => metadata?,
    };
    if !metadata.is_dir() {
        return Err(io::Error::other("it is not a folder"));
    }
    // Attributes and entries of a dead mount may still be in the kernel's caches. This is never cached: it fails there.
    rustix::fs::statfs(mountpoint)?;
    // Mounting over files would hide them from whoever looks for them.
    match fs::read_dir(mountpoint)?.next().transpose()? {
        None => Ok(false),
        Some(_) => Err(io::Error::other("the folder is not empty")),
    }
}

/// Ends what the last daemon left mounted and nobody wants any more: a mount that it had made or was taking away when it died.
pub(super) fn discard(link: &Link) {
    for (ve, mountpoint) in link.discard_held() {
        tracing::info!(%ve, mountpoint = %mountpoint.display(), "taking away a mount that is not wanted");
        if let Err(error) = unmount(&mountpoint, UnmountFlags::DETACH) {
            tracing::debug!(%error, "it was not mounted");
        }
        link.report(&Report::Drop(ve));
    }
}
