//! vzfs: a daemon with a store on the disk, and the tree as a template.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{Disk, Place, Requests, System, Touches, mount_devices, unmount_devices};
use crate::run::host;

const TEMPLATE: &str = "bench@1";

pub(super) struct Vzfs {
    disk: Disk,
}

impl Vzfs {
    pub(super) fn new(disk: Disk, place: &Place) -> Result<Vzfs> {
        let system = Vzfs { disk };
        system.disk.host.start();
        let import = |tree: &Path| {
            let tree = tree.to_str().context("the path of the tree is no text")?;
            system.vzfs(&["template", "import", TEMPLATE, tree])
        };
        if place.huge {
            let tree = system.disk.copy_tree(place, "tree")?;
            import(&tree)?;
            host(&["rm", "-rf", "--"], &[&tree])?;
        } else {
            import(&place.tree)?;
        }
        Ok(system)
    }

    fn vzfs(&self, arguments: &[&str]) -> Result<()> {
        let outcome = self.disk.host.vzfs(arguments);
        if outcome.code != 0 {
            bail!("{}", outcome.error().trim());
        }
        Ok(())
    }
}

impl System for Vzfs {
    fn make(&mut self, ve: &str, _: Touches) -> Result<PathBuf> {
        self.vzfs(&["ve", "create", ve, "-t", TEMPLATE])?;
        self.vzfs(&["ve", "mount", ve])?;
        let root = self.disk.host.root(ve);
        mount_devices(&root)?;
        Ok(root)
    }

    fn remove(&mut self, ve: &str) -> Result<()> {
        unmount_devices(&self.disk.host.root(ve))?;
        self.vzfs(&["ve", "umount", ve])?;
        self.vzfs(&["ve", "rm", ve])
    }

    fn requests(&self, ve: &str) -> Result<Requests> {
        let stats = self.disk.host.json(["ve", "stats", ve]);
        Ok(serde_json::from_value(stats["requests"].clone())?)
    }

    fn processes(&self) -> Vec<u32> {
        vec![self.disk.host.supervisor_pid(), self.disk.host.daemon_pid()]
    }

    fn disk(&self) -> &Path {
        &self.disk.path
    }
}
