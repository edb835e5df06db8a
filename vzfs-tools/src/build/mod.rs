//! Builds templates from definitions.
//!
//! The promise is that the same definition and the same package versions give the same template digest, on any host
//! and any day. Three things serve it:
//!
//! 1. Tools run with a clean environment, and nothing of the host but its package sources, its proxy and its resolver
//!    configuration reaches them.
//! 2. What differs from run to run (logs, caches, keys, machine ids) is taken out: [`clean`].
//! 3. No time is newer than the *epoch*: the definition's `source_date_epoch`, or else the time of the newest package
//!    that is installed. Times that packages carry are older and stay; times of the build become the epoch.

mod app;
mod apt;
mod clean;
mod definition;
mod os;

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::FileType;
use vzfs::api::{Package, Template};

use self::definition::{Definition, Kind, PlacedFile};
use crate::commands::Context;
use crate::commands::template::{made, must_be_new};
use crate::error::{Exit, Failure, Result};
use crate::exec::{ExecSpec, Network, run_step};
use crate::interrupt;
use crate::rootfs::Rootfs;

/// The script that Debian's service tools ask before they start anything: 101 is "no".
const POLICY_PATH: &str = "/usr/sbin/policy-rc.d";
const POLICY: &[u8] = b"#!/bin/sh\nexit 101\n";

/// Builds the template that `file` defines.
pub(crate) fn run(context: &Context, file: &Path, dry_run: bool) -> Result<()> {
    let definition = Definition::load(file)?;
    must_be_new(context, &definition.template)?;
    if dry_run {
        let steps = match &definition.kind {
            Kind::Os(os) => os::plan(&definition, os),
            Kind::App { on } => app::plan(context, &definition, on)?,
        };
        return context.plan(&steps);
    }
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::new(Exit::Failure, "cannot build a template: only root can")
            .with_hint("run this with sudo"));
    }
    interrupt::install()?;
    let template: Template = match &definition.kind {
        Kind::Os(os) => os::build(context, &definition, os)?,
        Kind::App { on } => app::build(context, &definition, on)?,
    };
    context.output.done(&template, made)
}

/// Says what comes next, on stderr.
fn announce(context: &Context, step: &str) {
    if !context.output.quiet {
        eprintln!("vzfs: {step}");
    }
}

/// A mounted or unpacked tree under construction.
struct Site<'a> {
    context: &'a Context,
    definition: &'a Definition,
    root: Rootfs,
    /// When the build began: what is newer was made by it, not by a package.
    started_secs: i64,
}

impl<'a> Site<'a> {
    fn open(
        context: &'a Context,
        definition: &'a Definition,
        root: &Path,
        started_secs: i64,
    ) -> Result<Site<'a>> {
        Ok(Site { context, definition, root: Rootfs::open(root)?, started_secs })
    }

    /// The packages that dpkg knows as installed, by name.
    fn packages(&self) -> Result<Vec<Package>> {
        Ok(self
            .root
            .read(Path::new("/var/lib/dpkg/status"))?
            .map_or(Vec::new(), |status| apt::installed(&status)))
    }

    /// The time that nothing in the template is newer than.
    fn epoch(&self) -> Result<i64> {
        if let Some(epoch) = self.definition.source_date_epoch {
            return Ok(epoch);
        }
        clean::newest_package(self.root.path(), self.started_secs).ok_or_else(|| {
            Failure::new(
                Exit::Refused,
                "no package tells its time, so the template's files cannot have a fixed one",
            )
            .with_hint("set source_date_epoch in the definition")
        })
    }

    /// Places the definition's files.
    fn place_files(&self) -> Result<()> {
        for PlacedFile { path, content, mode, owner, group } in &self.definition.files {
            announce(self.context, &format!("file {}", path.display()));
            let user = self.root.user(&format!("{owner}:{group}"))?;
            self.root.write(path, content, *mode, (user.uid, user.gid))?;
        }
        Ok(())
    }

    /// Runs the definition's scripts.
    fn run_scripts(&self, epoch: i64) -> Result<()> {
        for (index, script) in self.definition.scripts.iter().enumerate() {
            let what = format!("script {}", index + 1);
            announce(self.context, &what);
            self.run(&what, &["/bin/sh", "-e", "-c", script], epoch)?;
        }
        Ok(())
    }

    /// Runs one program inside, as root.
    fn run(&self, what: &str, command: &[&str], epoch: i64) -> Result<()> {
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
    fn borrow_place(&self, path: &'static str, content: &[u8], mode: u32) -> Result<Borrowed<'_>> {
        let taken = self.root.path().join(path.trim_start_matches('/')).symlink_metadata().is_ok();
        // A link whose target is elsewhere in the tree also counts as there.
        if taken || self.root.file_type(Path::new(path)) == Some(FileType::RegularFile) {
            return Ok(Borrowed { root: &self.root, path: None });
        }
        self.root.write(Path::new(path), content, mode, (0, 0))?;
        // The definition's own file takes the place later, and stays.
        let defined = self.definition.files.iter().any(|file| file.path == Path::new(path));
        Ok(Borrowed { root: &self.root, path: (!defined).then_some(path) })
    }

    /// Keeps services from starting while programs run inside.
    fn forbid_services(&self) -> Result<Borrowed<'_>> {
        self.borrow_place(POLICY_PATH, POLICY, 0o755)
    }

    /// Gives the host's resolver configuration a place to be shown at.
    fn allow_names(&self) -> Result<Borrowed<'_>> {
        self.borrow_place("/etc/resolv.conf", b"", 0o644)
    }
}

/// A file that is there only for the time of a build.
#[must_use]
struct Borrowed<'a> {
    root: &'a Rootfs,
    path: Option<&'static str>,
}

impl Borrowed<'_> {
    /// Takes the file away; a failure counts, since the file would end up in the template.
    fn give_back(mut self) -> Result<()> {
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

/// Now, in whole seconds.
fn now_secs() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(now).unwrap_or(i64::MAX)
}
