//! Application templates: packages are installed in a throw-away VE, and what that changed is committed.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher};
use std::path::PathBuf;

use vzfs::api::{CommitVe, CreateVe, Removed, Template, Ve, VolumeChange};
use vzfs::types::{TemplateRef, TemplateSpec, VeName};

use super::definition::Definition;
use super::{Site, announce, apt, clean, now_secs};
use crate::commands::Context;
use crate::commands::template::{get, must_be_os};
use crate::commands::ve::{mount, send_commit};
use crate::error::{Exit, Failure, Result};
use crate::exec::need;
use crate::interrupt;

/// The steps of a build.
pub(super) fn plan(context: &Context, definition: &Definition, on: &TemplateRef) -> Result<Vec<String>> {
    let os = get(context, on)?;
    must_be_os(&os)?;
    let mut steps = vec![format!("make and mount a throw-away VE on {}", os.spec())];
    if !definition.packages.is_empty() {
        steps.push("update its lists of packages".to_owned());
    }
    steps.extend(common_plan(definition));
    steps.push(format!("commit it as the application template {}", definition.template));
    steps.push("remove the VE".to_owned());
    Ok(steps)
}

/// The steps that every build has.
pub(super) fn common_plan(definition: &Definition) -> Vec<String> {
    let mut steps = Vec::new();
    if !definition.packages.is_empty() {
        let with = if definition.recommends { "with" } else { "without" };
        steps.push(format!("install {} {with} what they recommend", definition.packages.join(" ")));
    }
    let files = definition.files.iter();
    steps.extend(files.map(|file| format!("place {} (mode {:04o})", file.path.display(), file.mode)));
    steps.extend((1..=definition.scripts.len()).map(|number| format!("run script {number}")));
    steps.push(match definition.source_date_epoch {
        Some(epoch) => format!("clean, and set newer times to {epoch}"),
        None => "clean, and set newer times to that of the newest package".to_owned(),
    });
    steps
}

/// Builds an application template.
pub(super) fn build(context: &Context, definition: &Definition, on: &TemplateRef) -> Result<Template> {
    need("crun", "crun")?;
    let os = get(context, on)?;
    must_be_os(&os)?;
    let started = now_secs();
    // The exact version from here on, whatever becomes the newest meanwhile.
    let (ve, root) = ThrowAway::new(context, &os.spec())?;
    let site = Site::open(context, definition, &root, started)?;
    let before = site.packages()?;
    let epoch = site.epoch()?;
    let services = site.forbid_services()?;
    let names = site.allow_names()?;
    install(&site, epoch)?;
    site.place_files()?;
    site.run_scripts(epoch)?;
    names.give_back()?;
    services.give_back()?;

    let before: BTreeSet<_> = before.into_iter().collect();
    let packages = site.packages()?.into_iter().filter(|package| !before.contains(package)).collect();
    // Now that the new packages are there, one of them may be the newest.
    let epoch = site.epoch()?;
    let changes: Vec<VolumeChange> = context.client.get(&format!("/v1/ves/{}/diff", ve.name))?;
    let touched = clean::changed(&changes);
    let mut exclude = definition.exclude.clone();
    exclude.extend(clean::remove_volatile(&root, &touched)?);
    clean::clamp_passwords(&site.root, &touched, epoch)?;
    clean::clamp_times(&root, &touched, epoch, started)?;
    // An open directory would keep the VE from being unmounted.
    drop(site);
    interrupt::check()?;
    announce(context, &format!("committing {}", definition.template));
    let request = CommitVe {
        template: definition.template.clone(),
        summary: definition.summary.clone(),
        labels: definition.labels.clone(),
        packages: Some(packages),
        exclude,
        merge: definition.merge.clone(),
    };
    send_commit(context, &ve.name, &request)
}

fn install(site: &Site<'_>, epoch: i64) -> Result<()> {
    let definition = site.definition;
    if definition.packages.is_empty() {
        return Ok(());
    }
    let options: Vec<String> =
        apt::transport_options().iter().map(|(name, value)| format!("-o{name}={value}")).collect();
    // Nobody is there to answer questions about changed configuration files.
    let mut common = vec!["apt-get", "-qy", "-oDpkg::Options::=--force-confold", "-oDpkg::Use-Pty=0"];
    common.extend(options.iter().map(String::as_str));
    announce(site.context, "updating the lists of packages");
    site.run("apt-get update", &[&common[..], &["update"]].concat(), epoch)?;
    announce(site.context, &format!("installing {}", definition.packages.join(" ")));
    let recommends = if definition.recommends { "--install-recommends" } else { "--no-install-recommends" };
    let packages: Vec<&str> = definition.packages.iter().map(String::as_str).collect();
    site.run("apt-get install", &[&common[..], &["install", recommends, "--"], &packages[..]].concat(), epoch)
}

/// A VE that is removed at the end, whatever happens.
struct ThrowAway<'a> {
    context: &'a Context,
    name: VeName,
    /// Whether the daemon said that it exists; before, it may or may not.
    made: bool,
}

impl<'a> ThrowAway<'a> {
    /// Makes and mounts the VE; the path is its root.
    fn new(context: &'a Context, on: &TemplateSpec) -> Result<(ThrowAway<'a>, PathBuf)> {
        // Seeded by the system's random numbers.
        let random = std::hash::RandomState::new().build_hasher().finish();
        let name: VeName = format!("build-{random:016x}")
            .parse()
            .map_err(|e| Failure::new(Exit::Failure, format!("cannot name the VE of the build: {e}")))?;
        announce(context, &format!("making VE {name} on {on}"));
        let labels = [("purpose".to_owned(), "template build".to_owned())].into();
        let request = CreateVe {
            name: name.clone(),
            templates: vec![on.clone().into()],
            count: None,
            id_shift: None,
            labels,
        };
        let mut ve = ThrowAway { context, name, made: false };
        let _: Vec<Ve> = context.client.post("/v1/ves", &request)?;
        ve.made = true;
        let mounted = mount(context, &ve.name, None)?;
        let root = mounted.mountpoint.ok_or_else(|| {
            Failure::new(Exit::Failure, format!("VE {} is mounted, but nobody knows where", ve.name))
        })?;
        Ok((ve, root))
    }
}

impl Drop for ThrowAway<'_> {
    fn drop(&mut self) {
        let removed = self.context.client.delete::<Removed>(&format!("/v1/ves/{}?force=true", self.name));
        if let (true, Err(failure)) = (self.made, removed) {
            eprintln!("vzfs: the VE of the build is left: {failure}");
            eprintln!("hint: vzfs ve rm --force {}", self.name);
        }
    }
}
