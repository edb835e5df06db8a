//! Application templates: packages are installed in a throw-away VE, and what that changed is committed.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher};
use std::path::PathBuf;

use vzfs::api::{CommitVe, CreateVe, Package, Removed, Template, Ve};
use vzfs::types::{TemplateRef, TemplateSpec, VeName};

use super::announce;
use super::definition::Definition;
use super::patch::Patch;
use super::recipe::Recipe;
use super::site::Site;
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

/// What a build is part of.
pub(super) struct Remake<'a> {
    /// What is kept with the template.
    pub(super) recipe: &'a Recipe,
    /// Patches to make after the definition.
    pub(super) patches: Vec<Patch>,
    /// The version on another OS that it is made after.
    pub(super) of: Option<TemplateSpec>,
}

impl<'a> Remake<'a> {
    /// A first build.
    pub(super) fn new(recipe: &'a Recipe) -> Remake<'a> {
        Remake { recipe, patches: Vec::new(), of: None }
    }
}

/// Builds an application template.
pub(super) fn build(
    context: &Context,
    definition: &Definition,
    on: &TemplateRef,
    remake: &Remake<'_>,
) -> Result<Template> {
    need("crun", "crun")?;
    let os = get(context, on)?;
    must_be_os(&os)?;
    let recipe = remake.recipe.pack()?;
    // The exact version from here on, whatever becomes the newest meanwhile.
    let (ve, root) = ThrowAway::new(context, vec![os.spec().into()])?;
    let fixed = remake.patches.iter().rev().find_map(|patch| patch.source_date_epoch);
    let site = Site::open(context, &root, fixed.or(definition.source_date_epoch))?;
    let before = site.packages()?;
    let epoch = site.epoch()?;
    let services = site.forbid_services(&definition.files)?;
    let names = site.allow_names(&definition.files)?;
    if !definition.packages.is_empty() {
        site.update_lists(epoch)?;
        site.install(&definition.packages, definition.recommends, epoch)?;
    }
    site.place_files(&definition.files)?;
    site.run_scripts(&definition.scripts, epoch)?;
    names.give_back()?;
    services.give_back()?;
    for patch in &remake.patches {
        patch.apply(&site, Some(&brought(&before, site.packages()?)))?;
    }

    let packages = brought(&before, site.packages()?);
    // Now that the new packages are there, one of them may be the newest.
    let mut exclude = definition.exclude.clone();
    exclude.extend(remake.patches.iter().flat_map(|patch| patch.exclude.iter().cloned()));
    exclude.extend(site.clean(&ve.name, site.epoch()?)?);
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
        version_of: None,
        rebuilds: remake.of.clone(),
        recipe: Some(recipe),
        steps: Vec::new(),
    };
    send_commit(context, &ve.name, &request)
}

/// The packages that came to those that were there before.
fn brought(before: &[Package], after: Vec<Package>) -> Vec<Package> {
    let before: BTreeSet<_> = before.iter().collect();
    after.into_iter().filter(|package| !before.contains(package)).collect()
}

/// A VE that is removed at the end, whatever happens.
pub(super) struct ThrowAway<'a> {
    context: &'a Context,
    pub(super) name: VeName,
    /// Whether the daemon said that it exists; before, it may or may not.
    made: bool,
}

impl<'a> ThrowAway<'a> {
    /// Makes and mounts the VE; the path is its root.
    pub(super) fn new(context: &'a Context, templates: Vec<TemplateRef>) -> Result<(ThrowAway<'a>, PathBuf)> {
        // Seeded by the system's random numbers.
        let random = std::hash::RandomState::new().build_hasher().finish();
        let name: VeName = format!("build-{random:016x}")
            .parse()
            .map_err(|e| Failure::new(Exit::Failure, format!("cannot name the VE of the build: {e}")))?;
        let on: Vec<String> = templates.iter().map(TemplateRef::to_string).collect();
        announce(context, &format!("making VE {name} on {}", on.join(", ")));
        let labels = [("purpose".to_owned(), "template build".to_owned())].into();
        let request = CreateVe { name: name.clone(), templates, count: None, id_shift: None, labels };
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
