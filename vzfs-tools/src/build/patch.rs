//! Patches: changes to a version of a template that give a new version.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vzfs::api::{CommitVe, Package, Template};
use vzfs::types::{TemplateRef, TemplateSpec};

use super::app::ThrowAway;
use super::definition::{PACKAGE_HINT, PlacedFile, is_package, is_place};
use super::recipe::Recipe;
use super::site::Site;
use super::{announce, overlay};
use crate::cli::{PatchArgs, PatchFile};
use crate::commands::ve::send_commit;
use crate::commands::{Context, absolute};
use crate::error::{Exit, Failure, Result};
use crate::exec::need;
use crate::interrupt;

/// A patch, with all that it places at hand. Stored in recipes: fields are only ever added, with a default.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Patch {
    /// Whether packages are upgraded.
    upgrade: bool,
    /// Packages to install.
    packages: Vec<String>,
    /// Whether to install what they recommend.
    recommends: bool,
    /// Paths to remove, absolute.
    removals: Vec<PathBuf>,
    /// A folder to copy over the template.
    #[serde(skip)]
    pub(super) overlay: Option<PathBuf>,
    /// Files to place.
    pub(super) files: Vec<PlacedFile>,
    /// Shell scripts to run inside.
    scripts: Vec<String>,
    /// Changes to leave out.
    pub(super) exclude: Vec<String>,
    /// The time that no changed file is newer than, in seconds since 1970.
    pub(super) source_date_epoch: Option<i64>,
}

impl Patch {
    /// What the command line asks for; reads what it names.
    pub(super) fn load(args: &PatchArgs) -> Result<Patch> {
        let refused = |message: String| Failure::new(Exit::Refused, message);
        if let Some(name) = args.packages.iter().find(|name| !is_package(name)) {
            return Err(refused(format!("{name:?} is no package name")).with_hint(PACKAGE_HINT));
        }
        let targets = args.files.iter().map(|file| &file.target);
        if let Some(path) = args.removals.iter().chain(targets).find(|path| !is_place(path)) {
            return Err(refused(format!("{} is no absolute path in the template", path.display())));
        }
        let files = args.files.iter().map(placed).collect::<Result<_>>()?;
        let script = |path: &PathBuf| {
            std::fs::read_to_string(path)
                .map_err(|e| Failure::io(format!("cannot read {}", path.display()), &e))
        };
        let mut scripts = args.scripts.iter().map(script).collect::<Result<Vec<_>>>()?;
        scripts.extend(args.commands.iter().cloned());
        let overlay = args.overlay.as_deref().map(absolute).transpose()?;
        if let Some(dir) = overlay.as_ref().filter(|dir| !dir.is_dir()) {
            return Err(Failure::new(Exit::NotFound, format!("there is no directory {}", dir.display())));
        }
        let patch = Patch {
            upgrade: args.upgrade,
            packages: args.packages.clone(),
            recommends: args.recommends,
            removals: args.removals.clone(),
            overlay,
            files,
            scripts,
            exclude: args.exclude.clone(),
            source_date_epoch: args.source_date_epoch.map(i64::from),
        };
        if patch.steps().is_empty() {
            return Err(Failure::new(Exit::Usage, "the patch changes nothing").with_hint(
                "say what it does: --upgrade, --package, --remove, --overlay, --file, --script or --run",
            ));
        }
        Ok(patch)
    }

    /// A patch of a recipe, from the folder where it is unpacked.
    pub(super) fn with_contents(mut self, dir: &Path) -> Result<Patch> {
        for (number, file) in self.files.iter_mut().enumerate() {
            let path = dir.join("files").join(number.to_string());
            file.content = std::fs::read(&path)
                .map_err(|e| Failure::io(format!("cannot read {}", path.display()), &e))?;
        }
        self.overlay = Some(dir.join("overlay")).filter(|dir| dir.is_dir());
        Ok(self)
    }

    /// What it does, for people.
    pub(super) fn steps(&self) -> Vec<String> {
        let mut steps = Vec::new();
        if self.upgrade {
            steps.push("upgrade packages".to_owned());
        }
        if !self.packages.is_empty() {
            steps.push(format!("install {}", self.packages.join(" ")));
        }
        steps.extend(self.removals.iter().map(|path| format!("remove {}", path.display())));
        steps.extend(self.overlay.iter().map(|dir| format!("copy {} over it", dir.display())));
        let files = self.files.iter();
        steps.extend(files.map(|file| format!("place {} (mode {:04o})", file.path.display(), file.mode)));
        steps.extend(self.scripts.iter().map(|script| {
            let first =
                script.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with("#!"));
            let more = if script.trim().lines().count() > 1 { " ..." } else { "" };
            format!("run: {}{more}", first.unwrap_or_default())
        }));
        steps
    }

    /// The steps of making the new version.
    pub(super) fn plan(&self, old: &Template, new: &TemplateSpec) -> Vec<String> {
        let mut steps = vec![format!("make and mount a throw-away VE on {}", old.spec())];
        steps.extend(self.steps());
        steps.push("clean, and set newer times to a fixed one".to_owned());
        steps.push(format!("make it {new}, a new version of {}", old.spec()));
        steps.push("remove the VE".to_owned());
        steps
    }

    /// Whether programs run inside.
    fn runs(&self) -> bool {
        self.upgrade || !self.packages.is_empty() || !self.scripts.is_empty()
    }

    /// Makes the changes. `brought` are the packages of an application template, which alone are upgraded then.
    pub(super) fn apply(&self, site: &Site<'_>, brought: Option<&[Package]>) -> Result<()> {
        let epoch = site.epoch()?;
        let borrowed = match self.runs() {
            true => Some((site.forbid_services(&self.files)?, site.allow_names(&self.files)?)),
            false => None,
        };
        if self.upgrade || !self.packages.is_empty() {
            site.update_lists(epoch)?;
        }
        if self.upgrade {
            announce(site.context, "upgrading packages");
            let recommends = if self.recommends { "--install-recommends" } else { "--no-install-recommends" };
            match brought {
                None => site.apt_get(&["dist-upgrade", recommends], epoch)?,
                Some([]) => {}
                Some(packages) => {
                    let names = packages.iter().map(|package| package.name.as_str());
                    let arguments = ["install", "--only-upgrade", recommends, "--"].into_iter().chain(names);
                    site.apt_get(&arguments.collect::<Vec<_>>(), epoch)?;
                }
            }
        }
        if !self.packages.is_empty() {
            site.install(&self.packages, self.recommends, epoch)?;
        }
        for path in &self.removals {
            announce(site.context, &format!("removing {}", path.display()));
            site.root.remove_all(path)?;
        }
        if let Some(dir) = &self.overlay {
            announce(site.context, &format!("copying {}", dir.display()));
            overlay::copy(&site.root, dir)?;
        }
        site.place_files(&self.files)?;
        site.run_scripts(&self.scripts, epoch)?;
        if let Some((services, names)) = borrowed {
            names.give_back()?;
            services.give_back()?;
        }
        Ok(())
    }
}

/// A file of the command line.
fn placed(file: &PatchFile) -> Result<PlacedFile> {
    let what = |e: &std::io::Error| Failure::io(format!("cannot read {}", file.source.display()), e);
    let content = std::fs::read(&file.source).map_err(|e| what(&e))?;
    let own = std::fs::metadata(&file.source).map_err(|e| what(&e))?.mode() & 0o777;
    Ok(PlacedFile {
        path: file.target.clone(),
        content,
        source: None,
        mode: file.mode.unwrap_or(own),
        // Root by its number, which needs no list of users in the template.
        owner: "0".to_owned(),
        group: "0".to_owned(),
    })
}

/// Makes the new version.
pub(super) fn make(
    context: &Context,
    old: &Template,
    new: &TemplateSpec,
    patch: &Patch,
    summary: Option<&str>,
) -> Result<Template> {
    if patch.runs() {
        need("crun", "crun")?;
    }
    let mut exclude = patch.exclude.clone();
    let recipe = Recipe::fetch(context, old)?;
    if let Some(recipe) = &recipe {
        recipe.add(patch)?;
        exclude.extend(recipe.definition()?.exclude);
    }
    let archive = recipe.as_ref().map(Recipe::pack).transpose()?;
    let os = old.os.as_ref().map(|os| TemplateSpec { name: os.name.clone(), version: os.version.clone() });
    let stack = os.into_iter().chain(old.requires.iter().cloned()).chain([old.spec()]);
    let (ve, root) = ThrowAway::new(context, stack.map(TemplateRef::from).collect())?;
    let site = Site::open(context, &root, patch.source_date_epoch)?.with_fallback_epoch();
    patch.apply(&site, old.os.is_some().then_some(&old.packages[..]))?;
    // Now that new packages are there, one of them may be the newest.
    exclude.extend(site.clean(&ve.name, site.epoch()?)?);
    // An open directory would keep the VE from being unmounted.
    drop(site);
    interrupt::check()?;
    announce(context, &format!("committing {new}"));
    let request = CommitVe {
        template: new.clone(),
        summary: summary.unwrap_or(&old.summary).to_owned(),
        labels: old.labels.clone(),
        packages: None,
        exclude,
        merge: old.merge.clone(),
        version_of: Some(old.spec()),
        rebuilds: None,
        recipe: archive,
        steps: patch.steps(),
    };
    send_commit(context, &ve.name, &request)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> PatchArgs {
        PatchArgs {
            template: "debian".parse().expect("legal"),
            to: "12.1".parse().expect("legal"),
            upgrade: false,
            packages: Vec::new(),
            recommends: false,
            removals: Vec::new(),
            overlay: None,
            files: Vec::new(),
            scripts: Vec::new(),
            commands: Vec::new(),
            exclude: Vec::new(),
            source_date_epoch: None,
            summary: None,
            cascade: crate::cli::CascadeArgs { cascade: false, versions: Vec::new() },
            dry_run: false,
        }
    }

    #[test]
    fn steps_say_what_is_done_in_its_order() {
        let dir = tempfile::tempdir().expect("a directory");
        let script = dir.path().join("script");
        std::fs::write(&script, "#!/bin/sh\n\necho one\necho two\n").expect("written");
        let patch = Patch::load(&PatchArgs {
            upgrade: true,
            packages: vec!["curl".into()],
            removals: vec!["/etc/motd".into()],
            overlay: Some(dir.path().to_owned()),
            files: vec![PatchFile { source: script.clone(), target: "/etc/x".into(), mode: Some(0o600) }],
            scripts: vec![script],
            commands: vec!["true".into()],
            ..args()
        });
        let expected = [
            "upgrade packages".to_owned(),
            "install curl".to_owned(),
            "remove /etc/motd".to_owned(),
            format!("copy {} over it", dir.path().display()),
            "place /etc/x (mode 0600)".to_owned(),
            "run: echo one ...".to_owned(),
            "run: true".to_owned(),
        ];
        assert_eq!(patch.expect("legal").steps(), expected);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let exit = |args: PatchArgs| Patch::load(&args).expect_err("refused").exit;
        assert_eq!(exit(args()), Exit::Usage);
        assert_eq!(exit(PatchArgs { packages: vec!["-o".into()], ..args() }), Exit::Refused);
        assert_eq!(exit(PatchArgs { removals: vec!["etc/x".into()], ..args() }), Exit::Refused);
        assert_eq!(exit(PatchArgs { removals: vec!["/".into()], ..args() }), Exit::Refused);
        assert_eq!(exit(PatchArgs { removals: vec!["/etc/../x".into()], ..args() }), Exit::Refused);
        assert_eq!(exit(PatchArgs { overlay: Some("/not/there".into()), ..args() }), Exit::NotFound);
        assert_eq!(exit(PatchArgs { scripts: vec!["/not/there".into()], ..args() }), Exit::NotFound);
    }

    #[test]
    fn a_recipe_gives_back_what_was_put_in() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("over")).expect("made");
        std::fs::write(dir.path().join("over/x"), "laid over").expect("written");
        std::fs::write(dir.path().join("f"), "content").expect("written");
        let text = "name = \"app\"\nversion = \"1\"\nkind = \"app\"\non = \"debian@12\"\n\
                    [[files]]\npath = \"/etc/f\"\nsource = \"f\"\n";
        std::fs::write(dir.path().join("app.toml"), text).expect("written");
        let definition =
            super::super::definition::Definition::load(&dir.path().join("app.toml")).expect("legal");
        let patch = Patch::load(&PatchArgs {
            overlay: Some(dir.path().join("over")),
            files: vec![PatchFile {
                source: dir.path().join("f"),
                target: "/etc/g".into(),
                mode: Some(0o640),
            }],
            commands: vec!["true".into()],
            ..args()
        });
        let patch = patch.expect("legal");
        let packed = || {
            let recipe = Recipe::of(&definition).expect("made");
            recipe.add(&patch).expect("added");
            recipe.add(&patch).expect("added");
            (std::fs::read(recipe.pack().expect("packed")).expect("there"), recipe)
        };
        let ((bytes, recipe), (again, _)) = (packed(), packed());
        assert!(bytes == again, "equal recipes are equal bytes");
        // The files that the definition names may be gone.
        std::fs::remove_file(dir.path().join("f")).expect("removed");
        assert_eq!(recipe.definition().expect("legal"), definition);
        let patches = recipe.patches().expect("understood");
        assert_eq!(patches.len(), 2);
        let overlay = patches[1].overlay.clone().expect("kept");
        assert_eq!(std::fs::read(overlay.join("x")).expect("there"), b"laid over");
        assert_eq!(Patch { overlay: patch.overlay.clone(), ..patches[1].clone() }, patch);
    }
}
