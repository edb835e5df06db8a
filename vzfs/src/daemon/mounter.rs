//! FUSE mounts for the store.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::fuse::{self, FuseError, Mount, MountOptions, Passthrough};
use crate::store::{BoxError, Mounted, Mounter, UnmountError};
use crate::types::{IdShift, VeName};
use crate::volume::Volume;

/// Dead mounts on top of each other that are taken away before it counts as a fault.
const MAX_DEAD_MOUNTS: usize = 16;

/// Mounts with the daemon's settings.
pub(super) struct FuseMounter {
    passthrough: Passthrough,
    threads: usize,
}

impl FuseMounter {
    pub(super) fn new(passthrough: Passthrough, threads: usize) -> FuseMounter {
        FuseMounter { passthrough, threads }
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
        let made = prepare(mountpoint)?;
        let options = MountOptions {
            ve_name: ve.clone(),
            passthrough: self.passthrough,
            threads: self.threads,
            shift: id_shift,
        };
        match fuse::mount(volume, mountpoint, &options) {
            Ok(mount) => Ok(Box::new(FuseMounted(mount))),
            Err(error) => {
                if made {
                    let _ = fs::remove_dir(mountpoint);
                }
                Err(cause(error))
            }
        }
    }
}

struct FuseMounted(Mount);

impl Mounted for FuseMounted {
    fn is_alive(&self) -> bool {
        self.0.is_alive()
    }

    fn passthrough(&self) -> bool {
        self.0.passthrough()
    }

    fn unmount(self: Box<Self>, force: bool) -> Result<(), (Box<dyn Mounted>, UnmountError)> {
        self.0.unmount(force).map_err(|refused| {
            let (mount, error) = *refused;
            let busy = matches!(&error, FuseError::Unmount { source, .. }
                if source.raw_os_error() == Some(Errno::BUSY.raw_os_error()));
            let error = if busy { UnmountError::Busy } else { UnmountError::Other(cause(error)) };
            (Box::new(FuseMounted(mount)) as Box<dyn Mounted>, error)
        })
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
    // Mounting over files would hide them from whoever looks for them. Attributes of a dead mount may still be in the
    // kernel's cache; its entries are asked for, and tell.
    match fs::read_dir(mountpoint)?.next().transpose()? {
        None => Ok(false),
        Some(_) => Err(io::Error::other("the folder is not empty")),
    }
}
