//! The filesystem itself. A VE that changes the tree is a copy of it; others share it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Disk, Place, System, Touches, mount_devices, unmount_devices};
use crate::run::host;

pub(super) struct Native {
    disk: Disk,
    tree: PathBuf,
    /// How many share the tree.
    sharing: usize,
    copies: HashMap<String, PathBuf>,
}

impl Native {
    pub(super) fn new(disk: Disk, place: &Place) -> Result<Native> {
        let tree = disk.copy_tree(place, "tree")?;
        Ok(Native { disk, tree, sharing: 0, copies: HashMap::new() })
    }
}

impl System for Native {
    fn make(&mut self, ve: &str, touches: Touches) -> Result<PathBuf> {
        if touches == Touches::Nothing {
            if self.sharing == 0 {
                mount_devices(&self.tree)?;
            }
            self.sharing += 1;
            return Ok(self.tree.clone());
        }
        let copy = self.disk.path.join(ve);
        host(&["cp", "-a", "--reflink=auto", "--"], &[&self.tree, &copy])?;
        mount_devices(&copy)?;
        self.copies.insert(ve.to_owned(), copy.clone());
        Ok(copy)
    }

    fn remove(&mut self, ve: &str) -> Result<()> {
        if let Some(copy) = self.copies.remove(ve) {
            unmount_devices(&copy)?;
            return host(&["rm", "-rf", "--one-file-system", "--"], &[&copy]).map(drop);
        }
        self.sharing = self.sharing.checked_sub(1).context("nobody shares the tree")?;
        if self.sharing == 0 {
            unmount_devices(&self.tree)?;
            let work = self.tree.join("srv/work");
            host(&["sh", "-c", "find \"$1\" -mindepth 1 -delete", "sh"], &[&work])?;
        }
        Ok(())
    }

    fn disk(&self) -> &Path {
        &self.disk.path
    }
}
