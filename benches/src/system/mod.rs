//! The filesystems that are compared. Each has a fresh filesystem of the host in an image of its own, with the tree in it, and shows
//! that tree to VEs.

mod fuse_overlayfs;
mod native;
mod overlayfs;
mod vzfs;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use vzfs_tests::{Host, HostFs, Setup};

use crate::run::host;

/// Requests by kind.
pub type Requests = BTreeMap<String, u64>;

/// A system by name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The host's filesystem; a VE is a copy of the tree.
    Native,
    /// The kernel's overlayfs.
    Overlayfs,
    /// fuse-overlayfs as Debian has it.
    #[value(name = "fuse-overlayfs-1")]
    #[serde(rename = "fuse-overlayfs-1")]
    FuseOverlayfs1,
    /// fuse-overlayfs of crates.io.
    #[value(name = "fuse-overlayfs-2")]
    #[serde(rename = "fuse-overlayfs-2")]
    FuseOverlayfs2,
    /// This project.
    Vzfs,
}

impl Kind {
    /// As it is called on the command line and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Native => "native",
            Kind::Overlayfs => "overlayfs",
            Kind::FuseOverlayfs1 => "fuse-overlayfs-1",
            Kind::FuseOverlayfs2 => "fuse-overlayfs-2",
            Kind::Vzfs => "vzfs",
        }
    }
}

/// The filesystem of the host under all of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Under {
    /// Without reflinks.
    Ext4,
    /// With reflinks.
    Xfs,
}

/// Whether what a VE does changes files of the tree; what it does below `/srv/work` does not count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Touches {
    /// It does not: where there is no cheap copy, VEs may share the tree.
    Nothing,
    /// It does.
    Tree,
}

/// What shows the tree.
pub trait System {
    /// Makes a VE: a tree that is as in the beginning. Returns its root.
    ///
    /// # Errors
    /// It cannot be made.
    fn make(&mut self, ve: &str, touches: Touches) -> Result<PathBuf>;

    /// Removes a VE that nobody uses.
    ///
    /// # Errors
    /// Something is left.
    fn remove(&mut self, ve: &str) -> Result<()>;

    /// The requests of a VE so far, where they are FUSE requests that somebody counts.
    ///
    /// # Errors
    /// Who counts them does not answer.
    fn requests(&self, _ve: &str) -> Result<Requests> {
        Ok(Requests::new())
    }

    /// The processes that work for it.
    fn processes(&self) -> Vec<u32> {
        Vec::new()
    }

    /// The host's filesystem under it.
    fn disk(&self) -> &Path;
}

/// What systems are made of.
pub struct Place {
    /// The tree that they show.
    pub tree: PathBuf,
    /// Whether the tree needs the huge file.
    pub huge: bool,
    /// The filesystem under them.
    pub under: Under,
    /// Where the program of fuse-overlayfs 2 is.
    pub fuse_overlayfs_2: PathBuf,
}

/// Makes a system: its image, its filesystem and the tree in it.
///
/// # Errors
/// Whatever stopped it.
pub fn open(kind: Kind, place: &Place) -> Result<Box<dyn System>> {
    let disk = Disk::new(place)?;
    Ok(match kind {
        Kind::Native => Box::new(native::Native::new(disk, place)?),
        Kind::Overlayfs => Box::new(overlayfs::Overlayfs::new(disk, place)?),
        Kind::FuseOverlayfs1 => {
            Box::new(fuse_overlayfs::FuseOverlayfs::new(disk, place, Path::new("fuse-overlayfs"))?)
        }
        Kind::FuseOverlayfs2 => {
            Box::new(fuse_overlayfs::FuseOverlayfs::new(disk, place, &place.fuse_overlayfs_2)?)
        }
        Kind::Vzfs => Box::new(vzfs::Vzfs::new(disk, place)?),
    })
}

/// Room for everything that is measured. The image is sparse.
const DISK_MIB: u64 = 40 << 10;

/// A fresh filesystem in an image, with the guardian of the tests that takes it away whatever happens.
struct Disk {
    host: Host,
    path: PathBuf,
}

impl Disk {
    fn new(place: &Place) -> Result<Disk> {
        let fs = match place.under {
            Under::Ext4 => HostFs::Ext4,
            Under::Xfs => HostFs::Xfs,
        };
        let host_setup = Setup { fs, size_mib: DISK_MIB, ..Setup::default() };
        let machine = Host::without_daemon(host_setup);
        let path = machine.disk();
        if place.under == Under::Ext4 {
            // Nothing is to be written behind the back of what is measured.
            host(&["mount", "-o", "remount,noinit_itable"], &[&path])?;
        }
        Ok(Disk { host: machine, path })
    }

    /// The tree in a folder of the disk.
    fn copy_tree(&self, place: &Place, name: &str) -> Result<PathBuf> {
        let tree = self.path.join(name);
        host(&["cp", "-a", "--"], &[&place.tree, &tree]).context("cannot copy the tree")?;
        if place.huge {
            crate::source::add_huge(&tree).context("cannot make the huge file")?;
        }
        Ok(tree)
    }
}

/// What programs expect besides files.
fn mount_devices(root: &Path) -> Result<()> {
    host(&["mount", "--bind", "/dev"], &[&root.join("dev")])?;
    host(&["mount", "-t", "proc", "proc"], &[&root.join("proc")]).map(drop)
}

fn unmount_devices(root: &Path) -> Result<()> {
    for folder in ["proc", "dev"] {
        unmount(&root.join(folder))?;
    }
    Ok(())
}

/// Unmounts; a program that is about to end may still be in it.
fn unmount(place: &Path) -> Result<()> {
    const TRIES: usize = 100;
    for _ in 1..TRIES {
        if host(&["umount"], &[place]).is_ok() {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    host(&["umount"], &[place]).map(drop)
}
