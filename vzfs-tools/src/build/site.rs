//! A tree that a template is made of, while programs run in it.

use std::path::Path;

use rustix::fs::FileType;
use vzfs::api::{Package, VolumeChange};
use vzfs::types::VeName;

use super::definition::PlacedFile;
use super::{announce, apt, clean, now_secs};
use crate::commands::Context;
use crate::error::{Exit, Failure, Result};
use crate::exec::{ExecSpec, Network, run_step};
use crate::rootfs::Rootfs;

/// The script that Debian's service tools ask before they start anything: 101 is "no".
const POLICY_PATH: &str = "/usr/sbin/policy-rc.d";
const POLICY: &[u8] = b"#!/bin/sh\nexit 101\n";

/// A mounted or unpacked tree under construction.
pub(super) struct Site<'a> {
    pub(super) context: &'a Context,
    pub(super) root: Rootfs,
    /// When the build began: what is newer was made by it, not by a package.
    pub(super) started_secs: i64,
    /// The time that nothing is to be newer than, if it was given.
    fixed_epoch: Option<i64>,
    /// The same if it was not given and no package tells.
    fallback_epoch: Option<i64>,
}

impl<'a> Site<'a> {
    pub(super) fn open(context: &'a Context, root: &Path, fixed_epoch: Option<i64>) -> Result<Site<'a>> {
        Ok(Site {
            context,
            root: Rootfs::open(root)?,
            started_secs: now_secs(),
            fixed_epoch,
            fallback_epoch: None,
        })
    }

    /// The build began earlier than now.
    pub(super) fn begun(mut self, started_secs: i64) -> Site<'a> {
        self.started_secs = started_secs;
        self
    }

    /// Where no package tells a time, the newest file does.
    pub(super) fn with_fallback_epoch(mut self) -> Site<'a> {
        if self.epoch().is_err() {
            self.fallback_epoch = clean::newest_file(self.root.path(), self.started_secs);
        }
        self
    }

    /// The packages that dpkg knows as installed, by name.
    pub(super) fn packages(&self) -> Result<Vec<Package>> {
        Ok(self
            .root
            .read(Path::new("/var/lib/dpkg/status"))?
            .map_or(Vec::new(), |status| apt::installed(&status)))
    }

    /// The time that nothing in the template is newer than.
    pub(super) fn epoch(&self) -> Result<i64> {
        let found = self.fixed_epoch.or_else(|| clean::newest_package(self.root.path(), self.started_secs));
        found.or(self.fallback_epoch).ok_or_else(|| {
            Failure::new(
                Exit::Refused,
                "no package tells its time, so the template's files cannot have a fixed one",
            )
            .with_hint("set source_date_epoch in the definition, or give --source-date-epoch")
        })
    }

    /// Places files.
    pub(super) fn place_files(&self, files: &[PlacedFile]) -> Result<()> {
        for PlacedFile { path, content, mode, owner, group, .. } in files {
            announce(self.context, &format!("file {}", path.display()));
            let user = self.root.user(&format!("{owner}:{group}"))?;
            self.root.write(path, content, *mode, (user.uid, user.gid))?;
        }
        Ok(())
    }

    /// Runs scripts.
    pub(super) fn run_scripts(&self, scripts: &[String], epoch: i64) -> Result<()> {
        for (index, script) in scripts.iter().enumerate() {
            let what = format!("script {}", index + 1);
            announce(self.context, &what);
            self.run(&what, &["/bin/sh", "-e", "-c", script], epoch)?;
        }
        Ok(())
    }

    /// Runs one program inside, as root.
    pub(super) fn run(&self, what: &str, command: &[&str], epoch: i64) -> Result<()> {
        let env =
            [("DEBIAN_FRONTEND", "noninteractive".to_owned()), ("SOURCE_DATE_EPOCH", epoch.to_string())];
        let spec = ExecSpec {
            root: self.root.path().to_owned(),
            hostname: "build".to_owned(),
            user: "root".to_owned(),
            workdir: "/".into(),
            env: env.map(|(name, value)| (name.to_owned(), value)).to_vec(),
            binds: Vec::new(),
            id_shift: None,
            network: Network::Host,
            command: command.iter().map(Into::into).collect(),
        };
        run_step(&spec, what, self.context.output.quiet)
    }

    /// Puts a file there until the returned guard is dropped, unless something has that name already.
    fn borrow_place(
        &self,
        path: &'static str,
        content: &[u8],
        mode: u32,
        placed: &[PlacedFile],
    ) -> Result<Borrowed<'_>> {
        let taken = self.root.path().join(path.trim_start_matches('/')).symlink_metadata().is_ok();
        // A link whose target is elsewhere in the tree also counts as there.
        if taken || self.root.file_type(Path::new(path)) == Some(FileType::RegularFile) {
            return Ok(Borrowed { root: &self.root, path: None });
        }
        self.root.write(Path::new(path), content, mode, (0, 0))?;
        // A file that is placed there later stays.
        let defined = placed.iter().any(|file| file.path == Path::new(path));
        Ok(Borrowed { root: &self.root, path: (!defined).then_some(path) })
    }

    /// Keeps services from starting while programs run inside. `placed` are the files that will be placed meanwhile.
    pub(super) fn forbid_services(&self, placed: &[PlacedFile]) -> Result<Borrowed<'_>> {
        self.borrow_place(POLICY_PATH, POLICY, 0o755, placed)
    }

    /// Gives the host's resolver configuration a place to be shown at.
    pub(super) fn allow_names(&self, placed: &[PlacedFile]) -> Result<Borrowed<'_>> {
        self.borrow_place("/etc/resolv.conf", b"", 0o644, placed)
    }

    /// Runs apt-get with the host's ways to reach archives; nobody is there to answer questions about changed configuration files.
    pub(super) fn apt_get(&self, arguments: &[&str], epoch: i64) -> Result<()> {
        let options: Vec<String> =
            apt::transport_options().iter().map(|(name, value)| format!("-o{name}={value}")).collect();
        let mut command = vec!["apt-get", "-qy", "-oDpkg::Options::=--force-confold", "-oDpkg::Use-Pty=0"];
        command.extend(options.iter().map(String::as_str));
        command.extend(arguments);
        self.run(&format!("apt-get {}", arguments[0]), &command, epoch)
    }

    /// Brings the lists of packages up to date.
    pub(super) fn update_lists(&self, epoch: i64) -> Result<()> {
        announce(self.context, "updating the lists of packages");
        self.apt_get(&["update"], epoch)
    }

    /// Installs packages.
    pub(super) fn install(&self, packages: &[String], recommends: bool, epoch: i64) -> Result<()> {
        announce(self.context, &format!("installing {}", packages.join(" ")));
        let recommends = if recommends { "--install-recommends" } else { "--no-install-recommends" };
        let packages = packages.iter().map(String::as_str);
        self.apt_get(&["install", recommends, "--"].into_iter().chain(packages).collect::<Vec<_>>(), epoch)
    }

    /// Takes out of a VE's changes what differs from run to run. Returns what the template has to leave out of them.
    pub(super) fn clean(&self, ve: &VeName, epoch: i64) -> Result<Vec<String>> {
        let changes: Vec<VolumeChange> = self.context.client.get(&format!("/v1/ves/{ve}/diff"))?;
        let touched = clean::changed(&changes);
        let leave_out = clean::remove_volatile(self.root.path(), &touched)?;
        clean::clamp_passwords(&self.root, &touched, epoch)?;
        clean::clamp_times(self.root.path(), &touched, epoch, self.started_secs)?;
        Ok(leave_out)
    }
}

/// A file that is there only for the time of a build.
#[must_use]
pub(super) struct Borrowed<'a> {
    root: &'a Rootfs,
    path: Option<&'static str>,
}

impl Borrowed<'_> {
    /// Takes the file away; a failure counts, since the file would end up in the template.
    pub(super) fn give_back(mut self) -> Result<()> {
        self.path.take().map_or(Ok(()), |path| self.root.remove(Path::new(path)))
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        if let Some(path) = self.path {
            // The build failed already, and its tree goes away.
            let _ = self.root.remove(Path::new(path));
        }
    }
}
