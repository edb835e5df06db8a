//! fuse-overlayfs: one process a VE.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::overlayfs::Layers;
use super::{Disk, Place, System, Touches, mount_devices};

/// How long a process may take to mount, and to end after the unmount.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct FuseOverlayfs {
    layers: Layers,
    program: PathBuf,
    running: HashMap<String, Child>,
    disk: Disk,
}

impl FuseOverlayfs {
    pub(super) fn new(disk: Disk, place: &Place, program: &Path) -> Result<FuseOverlayfs> {
        let layers = Layers::new(&disk, place)?;
        Ok(FuseOverlayfs { layers, program: program.to_owned(), running: HashMap::new(), disk })
    }

    fn wait_until_mounted(&self, process: &mut Child, root: &Path) -> Result<()> {
        let begin = Instant::now();
        // The tree has this folder, the mount point has not.
        while !root.join("usr").exists() {
            if let Some(status) = process.try_wait()? {
                bail!("fuse-overlayfs ended at its start ({status})");
            }
            if begin.elapsed() > PATIENCE {
                bail!("fuse-overlayfs does not mount");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl System for FuseOverlayfs {
    fn make(&mut self, ve: &str, _: Touches) -> Result<PathBuf> {
        let (options, root) = self.layers.make(ve)?;
        let log = File::options().create(true).append(true).open(self.disk.host.scratch().join("log"))?;
        let mut command = Command::new(&self.program);
        command.args(["-f", "-o", &format!("allow_other,default_permissions,{options}")]).arg(&root);
        let process = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        let mut process = process.with_context(|| format!("cannot start {}", self.program.display()))?;
        let mounted = self.wait_until_mounted(&mut process, &root);
        self.running.insert(ve.to_owned(), process);
        mounted?;
        mount_devices(&root)?;
        Ok(root)
    }

    fn remove(&mut self, ve: &str) -> Result<()> {
        self.layers.remove(ve)?;
        if let Some(mut process) = self.running.remove(ve) {
            let begin = Instant::now();
            while process.try_wait()?.is_none() {
                if begin.elapsed() > PATIENCE {
                    process.kill()?;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }

    fn processes(&self) -> Vec<u32> {
        self.running.values().map(Child::id).collect()
    }

    fn disk(&self) -> &Path {
        &self.disk.path
    }
}

impl Drop for FuseOverlayfs {
    fn drop(&mut self) {
        for process in self.running.values_mut() {
            // Its mounts are the guardian's affair. It may have ended by itself.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
