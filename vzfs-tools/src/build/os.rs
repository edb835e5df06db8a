//! OS templates: mmdebstrap makes a tree in a scratch folder, which is imported.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use tempfile::TempDir;
use vzfs::api::{ImportRequest, Template, TemplateKind};

use super::definition::{Definition, OsTable};
use super::recipe::Recipe;
use super::site::Site;
use super::{announce, apt, clean};
use crate::commands::Context;
use crate::commands::template::send_import;
use crate::error::{Failure, Result};
use crate::exec::{capture, failed_step, host_path, need};
use crate::interrupt;

/// What a system without a network knows.
const HOSTS: &[u8] = b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// The steps of a build.
pub(super) fn plan(definition: &Definition, os: &OsTable) -> Vec<String> {
    let mut steps = vec![format!(
        "install {} ({}, {}) with mmdebstrap in a scratch folder of {}",
        os.suite,
        os.variant.as_str(),
        os.components.join(" "),
        scratch_place().display()
    )];
    steps.extend(super::app::common_plan(definition));
    steps.push(format!("import it as the OS template {}", definition.template));
    steps
}

/// Builds an OS template.
pub(super) fn build(
    context: &Context,
    definition: &Definition,
    os: &OsTable,
    recipe: &Recipe,
) -> Result<Template> {
    need("mmdebstrap", "mmdebstrap")?;
    if !definition.scripts.is_empty() {
        need("crun", "crun")?;
    }
    let started = super::now_secs();
    let scratch = Scratch::new()?;
    let tree = scratch.path().join("tree");
    announce(context, &format!("installing {} into {}", os.suite, tree.display()));
    install(context, definition, os, scratch.path(), &tree)?;
    let site = Site::open(context, &tree, definition.source_date_epoch)?.begun(started);
    forget_host(&site)?;
    let epoch = site.epoch()?;
    let services = site.forbid_services(&definition.files)?;
    site.place_files(&definition.files)?;
    site.run_scripts(&definition.scripts, epoch)?;
    services.give_back()?;
    let packages = site.packages()?;
    let touched = clean::whole_tree(&tree)?;
    clean::remove_volatile(&tree, &touched)?;
    clean::clamp_passwords(&site.root, &touched, epoch)?;
    clean::clamp_times(&tree, &touched, epoch, started)?;
    interrupt::check()?;
    announce(context, &format!("importing {}", definition.template));
    send_import(
        context,
        &ImportRequest {
            template: definition.template.clone(),
            source: tree,
            kind: Some(TemplateKind::Os),
            os: None,
            summary: definition.summary.clone(),
            labels: definition.labels.clone(),
            packages: Some(packages),
            exclude: definition.exclude.clone(),
            merge: definition.merge.clone(),
            recipe: Some(recipe.pack()?),
        },
    )
}

fn install(
    context: &Context,
    definition: &Definition,
    os: &OsTable,
    scratch: &Path,
    tree: &Path,
) -> Result<()> {
    let mut command = Command::new("mmdebstrap");
    command.args(["--mode=root", "--format=directory"]);
    command.arg(format!("--variant={}", os.variant.as_str()));
    command.arg(format!("--components={}", os.components.join(",")));
    if !definition.packages.is_empty() {
        command.arg(format!("--include={}", definition.packages.join(",")));
    }
    if definition.recommends {
        command.arg("--aptopt=APT::Install-Recommends \"true\"");
    }
    for (name, value) in apt::transport_options() {
        command.arg(format!("--aptopt={name} \"{value}\""));
    }
    command.arg(&os.suite).arg(tree);
    if os.mirrors.is_empty() {
        command.args(apt::host_sources(&os.suite, &os.components, scratch)?);
    } else {
        command.args(&os.mirrors);
    }
    command
        .env_clear()
        .env("PATH", host_path())
        .env("LANG", "C.UTF-8")
        .env("DEBIAN_FRONTEND", "noninteractive");
    command.env("TMPDIR", scratch);
    if let Some(epoch) = definition.source_date_epoch {
        command.env("SOURCE_DATE_EPOCH", epoch.to_string());
    }
    run_tool(command, "mmdebstrap", context.output.quiet)
}

/// Runs a tool in a process group of its own: signals reach all of it, once.
fn run_tool(mut command: Command, what: &str, quiet: bool) -> Result<()> {
    let printed = capture(&mut command, quiet)?;
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut child = command.spawn().map_err(|e| Failure::io(format!("cannot run {what}"), &e))?;
    let status = interrupt::wait(&mut child, |pid, _, count| {
        // The tool cleans up after the first one. A failure means that it is gone already.
        let _ =
            rustix::process::kill_process_group(pid, if count == 1 { Signal::TERM } else { Signal::KILL });
    });
    let status = status.map_err(|e| Failure::io(format!("cannot wait for {what}"), &e))?;
    interrupt::check()?;
    if status.success() { Ok(()) } else { Err(failed_step(what, &status.to_string(), printed)) }
}

/// mmdebstrap copies the host's name and resolver configuration. The template has neither, but an empty
/// `/etc/resolv.conf`, so that there is a place to show the host's at.
fn forget_host(site: &Site<'_>) -> Result<()> {
    let root = &site.root;
    root.remove(Path::new("/etc/hostname"))?;
    root.write(Path::new("/etc/resolv.conf"), b"", 0o644, (0, 0))?;
    if root.read(Path::new("/etc/hosts"))?.is_none() {
        root.write(Path::new("/etc/hosts"), HOSTS, 0o644, (0, 0))?;
    }
    Ok(())
}

/// Where whole root filesystems have room: `TMPDIR`, or `/var/tmp`, since `/tmp` may be memory.
fn scratch_place() -> PathBuf {
    std::env::var_os("TMPDIR").filter(|dir| !dir.is_empty()).map_or_else(|| "/var/tmp".into(), PathBuf::from)
}

/// A folder that is removed at the end, with everything in it.
pub(super) struct Scratch(Option<TempDir>);

impl Scratch {
    pub(super) fn new() -> Result<Scratch> {
        let place = scratch_place();
        let what = |e: &std::io::Error| {
            Failure::io(format!("cannot make a scratch folder in {}", place.display()), e)
        };
        let absolute = place.canonicalize().map_err(|e| what(&e))?;
        let dir =
            tempfile::Builder::new().prefix("vzfs-build-").tempdir_in(absolute).map_err(|e| what(&e))?;
        Ok(Scratch(Some(dir)))
    }

    pub(super) fn path(&self) -> &Path {
        self.0.as_ref().map_or(Path::new(""), TempDir::path)
    }
}

impl Drop for Scratch {
    /// A tool that was killed could have left the host's `/dev` mounted in the tree, and removing would go on in it.
    fn drop(&mut self) {
        let Some(dir) = self.0.take() else { return };
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let inside =
            |line: &str| line.split(' ').nth(4).is_some_and(|place| Path::new(place).starts_with(dir.path()));
        if mounts.is_empty() || mounts.lines().any(inside) {
            eprintln!("vzfs: {} is left, something is mounted in it", dir.keep().display());
        }
    }
}
