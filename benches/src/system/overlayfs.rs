//! The kernel's overlayfs with its defaults.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{Disk, Place, System, Touches, mount_devices, unmount, unmount_devices};
use crate::run::host;

/// The folders of a VE on an overlay filesystem.
pub(super) struct Layers {
    pub(super) lower: PathBuf,
    folder: PathBuf,
}

impl Layers {
    /// The tree as lower layer.
    pub(super) fn new(disk: &Disk, place: &Place) -> Result<Layers> {
        let lower = disk.copy_tree(place, "lower")?;
        let folder = disk.path.join("ves");
        fs::create_dir(&folder)?;
        Ok(Layers { lower, folder })
    }

    /// New folders for a VE. Returns the mount options that name them, and the mount point.
    pub(super) fn make(&self, ve: &str) -> Result<(String, PathBuf)> {
        let at = |name: &str| self.folder.join(ve).join(name);
        for name in ["upper", "work", "root"] {
            fs::create_dir_all(at(name))?;
        }
        let (lower, upper, work) = (self.lower.display(), at("upper"), at("work"));
        let options = format!("lowerdir={lower},upperdir={},workdir={}", upper.display(), work.display());
        Ok((options, at("root")))
    }

    /// Takes a VE's mounts and folders away.
    pub(super) fn remove(&self, ve: &str) -> Result<()> {
        let folder = self.folder.join(ve);
        let root = folder.join("root");
        unmount_devices(&root)?;
        unmount(&root)?;
        host(&["rm", "-rf", "--one-file-system", "--"], &[&folder]).map(drop)
    }
}

pub(super) struct Overlayfs {
    layers: Layers,
    disk: Disk,
}

impl Overlayfs {
    pub(super) fn new(disk: Disk, place: &Place) -> Result<Overlayfs> {
        Ok(Overlayfs { layers: Layers::new(&disk, place)?, disk })
    }
}

impl System for Overlayfs {
    fn make(&mut self, ve: &str, _: Touches) -> Result<PathBuf> {
        let (options, root) = self.layers.make(ve)?;
        host(&["mount", "-t", "overlay", "overlay", "-o", &options], &[&root])?;
        mount_devices(&root)?;
        Ok(root)
    }

    fn remove(&mut self, ve: &str) -> Result<()> {
        self.layers.remove(ve)
    }

    fn disk(&self) -> &Path {
        &self.disk.path
    }
}
