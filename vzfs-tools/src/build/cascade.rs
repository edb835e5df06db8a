//! Brings the application templates of an OS to a version of it: `--help` of `template cascade` says which, and how they are named.

use std::collections::BTreeMap;

use serde::Serialize;
use vzfs::api::{How, ReapplyTemplate, Template};
use vzfs::types::{TemplateName, TemplateRef, TemplateSpec, Version};

use super::recipe::Recipe;
use super::{announce, app};
use crate::cli::CascadeArgs;
use crate::commands::Context;
use crate::commands::template::made;
use crate::error::{Exit, Failure, Result};
use crate::interrupt;

/// Versions that somebody chose.
pub(crate) type Versions = [(TemplateName, Version)];

/// A template that follows its OS.
#[derive(Clone, PartialEq, Debug)]
struct Job {
    old: Template,
    new: TemplateSpec,
    /// The new versions of what the old one needs below it.
    requires: Vec<TemplateSpec>,
}

impl Job {
    fn verb(&self) -> &'static str {
        if self.old.recipe.is_some() { "build" } else { "put the changes of" }
    }

    fn text(&self, os: &TemplateSpec) -> String {
        match self.old.recipe {
            Some(_) => format!("build {} again on {os}, as {}", self.old.spec(), self.new),
            None => format!("put the changes of {} on {os}, as {}", self.old.spec(), self.new),
        }
    }
}

/// What became of one.
#[derive(Debug, Serialize)]
pub(crate) struct Cascaded {
    /// The version that there was.
    from: TemplateSpec,
    /// The version that there is now, or should be.
    to: TemplateSpec,
    /// It, if it could be made.
    #[serde(skip_serializing_if = "Option::is_none")]
    template: Option<Template>,
    /// Why it could not.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// What to do about that.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

/// What would be done; nothing if it was not asked for.
///
/// # Errors
/// A new version has a name that is taken, or that cannot be.
pub(super) fn plan(context: &Context, args: &CascadeArgs, os: &TemplateSpec) -> Result<Vec<String>> {
    if !args.cascade {
        return Ok(Vec::new());
    }
    let all: Vec<Template> = context.client.get("/v1/templates")?;
    Ok(jobs(&all, os, &args.versions)?.iter().map(|job| job.text(os)).collect())
}

/// Makes the new versions. One that fails does not stop the others, but those that need it.
pub(super) fn run(context: &Context, args: &CascadeArgs, os: &Template) -> Result<Vec<Cascaded>> {
    let all: Vec<Template> = context.client.get("/v1/templates")?;
    let mut results: Vec<Cascaded> = Vec::new();
    for job in jobs(&all, &os.spec(), &args.versions)? {
        let (from, to) = (job.old.spec(), job.new.clone());
        let missing = job
            .requires
            .iter()
            .find(|needed| results.iter().any(|done| done.to == **needed && done.template.is_none()));
        let result = match missing {
            Some(needed) => {
                Err(Failure::new(Exit::Failure, format!("{needed}, which it needs, could not be made")))
            }
            None => {
                announce(context, &format!("{} {from}, as {to}", job.verb()));
                make(context, &job, os)
            }
        };
        let (template, error, hint) = match result {
            Ok(template) => (Some(template), None, None),
            Err(failure) if failure.exit == Exit::Interrupted => return Err(failure),
            Err(failure) => (None, Some(failure.message), failure.hint),
        };
        results.push(Cascaded { from, to, template, error, hint });
        interrupt::check()?;
    }
    Ok(results)
}

fn make(context: &Context, job: &Job, os: &Template) -> Result<Template> {
    let on: TemplateRef = os.spec().into();
    if let Some(recipe) = Recipe::fetch(context, &job.old)? {
        let mut definition = recipe.definition()?;
        definition.template = job.new.clone();
        // Patches may have given it others.
        definition.summary = job.old.summary.clone();
        definition.labels = job.old.labels.clone();
        definition.merge = job.old.merge.clone();
        let patches = recipe.patches()?;
        let remake = app::Remake { recipe: &recipe, patches, of: Some(job.old.spec()) };
        return app::build(context, &definition, &on, &remake);
    }
    let request = ReapplyTemplate { template: job.new.clone(), os: on, requires: job.requires.clone() };
    let path = format!("/v1/templates/{}/reapply", job.old.spec());
    let progress = context.progress();
    context.client.events(&path, Some(&request), &progress)
}

/// The sentences about what was made.
pub(super) fn text(cascaded: &[Cascaded]) -> String {
    if cascaded.is_empty() {
        return "no application template stands on an older version of the OS\n".to_owned();
    }
    let line = |done: &Cascaded| match (&done.template, &done.error) {
        (Some(template), _) => format!("{}\n", made(template)),
        (None, error) => {
            let why = error.as_deref().unwrap_or("nobody knows why");
            let hint = done.hint.as_ref().map_or(String::new(), |hint| format!("\nhint: {hint}"));
            format!("template {} NOT made: {why}{hint}\n", done.to)
        }
    };
    cascaded.iter().map(line).collect()
}

/// A failure if one of them could not be made.
pub(super) fn verdict(cascaded: &[Cascaded]) -> Result<()> {
    let failed: Vec<String> =
        cascaded.iter().filter(|done| done.template.is_none()).map(|done| done.from.to_string()).collect();
    if failed.is_empty() {
        return Ok(());
    }
    let what = format!(
        "{} of {} application templates did not follow: {}",
        failed.len(),
        cascaded.len(),
        failed.join(", ")
    );
    Err(Failure::new(Exit::Failure, what)
        .with_hint("the others are made; `vzfs template cascade` tries again what is missing"))
}

/// What follows the OS to a version: in an order in which everything comes after what it needs.
fn jobs(all: &[Template], os: &TemplateSpec, versions: &Versions) -> Result<Vec<Job>> {
    let on_it = |template: &&Template| template.os.as_ref().is_some_and(|on| on.name == os.name);
    let older = |template: &Template| template.os.as_ref().is_some_and(|on| on.version < os.version);
    let mut newest: BTreeMap<&TemplateName, &Template> = BTreeMap::new();
    // The list is ordered by version.
    newest.extend(all.iter().filter(on_it).map(|template| (&template.name, template)));
    let mut wanted: Vec<&Template> = newest.into_values().filter(|template| older(template)).collect();
    let mut next = 0;
    while let Some(template) = wanted.get(next).copied() {
        next += 1;
        let needed = |spec: &&TemplateSpec| !wanted.iter().any(|known| known.spec() == **spec);
        let missing: Vec<_> = template.requires.iter().filter(needed).collect();
        wanted.extend(missing.iter().filter_map(|spec| all.iter().find(|found| found.spec() == **spec)));
    }
    if let Some((name, _)) =
        versions.iter().find(|(name, _)| !wanted.iter().any(|template| template.name == *name))
    {
        return Err(Failure::new(
            Exit::Refused,
            format!("no version of {name} has to follow {os}, so it gets no version"),
        ));
    }
    let mut jobs: Vec<Job> = Vec::new();
    // What is needed by others was made before them, and their chains end: each round places at least one.
    while jobs.len() < wanted.len() {
        let before = jobs.len();
        for old in &wanted {
            let new_of =
                |spec: &TemplateSpec| Some(jobs.iter().find(|job| job.old.spec() == *spec)?.new.clone());
            let placed = jobs.iter().any(|job| job.old.spec() == old.spec());
            let Some(requires) =
                old.requires.iter().map(new_of).collect::<Option<Vec<_>>>().filter(|_| !placed)
            else {
                continue;
            };
            let new = TemplateSpec { name: old.name.clone(), version: new_version(old, os, versions)? };
            if all.iter().any(|template| template.spec() == new) || jobs.iter().any(|job| job.new == new) {
                return Err(Failure::new(
                    Exit::Conflict,
                    format!(
                        "template {new} exists already, so {} cannot follow {os} under this name",
                        old.spec()
                    ),
                )
                .with_hint(format!("choose another version: --cascade-version {}=VERSION", old.name)));
            }
            jobs.push(Job { old: (*old).clone(), new, requires });
        }
        if jobs.len() == before {
            break;
        }
    }
    Ok(jobs)
}

/// `1.22` on `debian@12.1` is `1.22+debian12.1`, and so is what was `1.22+debian12` before.
fn new_version(old: &Template, os: &TemplateSpec, versions: &Versions) -> Result<Version> {
    if let Some((_, version)) = versions.iter().find(|(name, _)| *name == old.name) {
        return Ok(version.clone());
    }
    // A colon would begin an epoch and a hyphen a revision, and both would order the version otherwise.
    let plain = |text: &str| text.replace([':', '-'], ".");
    let mark = format!("+{}", plain(os.name.as_str()));
    let whole = old.version.as_str();
    let own = match (old.origin.how, whole.rfind(&mark)) {
        (How::Rebuilt | How::Reapplied, Some(at)) if at > 0 => &whole[..at],
        _ => whole,
    };
    format!("{own}{mark}{}", plain(os.version.as_str())).parse().map_err(|e: vzfs::types::TypeError| {
        Failure::new(Exit::Refused, format!("cannot name the version of {} on {os}: {e}", old.name))
            .with_hint(format!("choose one: --cascade-version {}=VERSION", old.name))
    })
}

#[cfg(test)]
mod tests {
    use vzfs::api::{OsIdentity, TemplateKind, TemplateStats};
    use vzfs::types::{Digest, Timestamp};

    use super::*;

    fn template(spec: &str, on: Option<&str>, requires: &[&str]) -> Template {
        let spec: TemplateSpec = spec.parse().expect("legal");
        let identity = |on: &str| {
            let on: TemplateSpec = on.parse().expect("legal");
            OsIdentity { name: on.name, version: on.version, layer: Digest::of(b"") }
        };
        Template {
            name: spec.name,
            version: spec.version,
            kind: if on.is_some() { TemplateKind::App } else { TemplateKind::Os },
            os: on.map(identity),
            requires: requires.iter().map(|spec| spec.parse().expect("legal")).collect(),
            digest: Digest::of(b""),
            summary: String::new(),
            labels: BTreeMap::new(),
            packages: Vec::new(),
            merge: Vec::new(),
            tags: Vec::new(),
            origin: vzfs::api::Origin::default(),
            recipe: None,
            created: Timestamp::default(),
            stats: TemplateStats::default(),
            used_by: Vec::new(),
        }
    }

    fn planned(all: &[Template], os: &str, versions: &Versions) -> Result<Vec<String>> {
        let jobs = jobs(all, &os.parse().expect("legal"), versions)?;
        let text = |job: &Job| {
            let requires: Vec<_> = job.requires.iter().map(TemplateSpec::to_string).collect();
            format!("{} -> {} {}", job.old.spec(), job.new, requires.join(" ")).trim_end().to_owned()
        };
        Ok(jobs.iter().map(text).collect())
    }

    #[test]
    fn the_newest_of_each_follows_after_what_it_needs() {
        let all = [
            template("app@1", Some("debian@12"), &["base@1", "tool@1"]),
            template("base@1", Some("debian@12"), &[]),
            template("base@2", Some("debian@12"), &[]),
            template("done@3", Some("debian@12"), &[]),
            template("done@4", Some("debian@12.1"), &[]),
            template("later@1", Some("debian@13"), &[]),
            template("other@1", Some("alpine@3"), &[]),
            template("tool@1", Some("debian@12"), &["base@1"]),
        ];
        let expected = [
            "base@2 -> base@2+debian12.1",
            "base@1 -> base@1+debian12.1",
            "tool@1 -> tool@1+debian12.1 base@1+debian12.1",
            "app@1 -> app@1+debian12.1 base@1+debian12.1 tool@1+debian12.1",
        ];
        assert_eq!(planned(&all, "debian@12.1", &[]).expect("plans"), expected);
        assert!(planned(&all, "debian@12", &[]).expect("plans").is_empty());
    }

    #[test]
    fn versions_are_named_after_the_os_and_stay_in_order() {
        let mut nginx = template("nginx@1.22", Some("debian@12"), &[]);
        let new = |old: &Template, os: &str| {
            new_version(old, &os.parse().expect("legal"), &[]).map(|version| version.to_string())
        };
        assert_eq!(new(&nginx, "debian@12.1").expect("legal"), "1.22+debian12.1");
        assert_eq!(new(&nginx, "my-os@1:12-3").expect("legal"), "1.22+my.os1.12.3");
        nginx.version = "1.22+debian12.1".parse().expect("legal");
        nginx.origin.how = How::Rebuilt;
        assert_eq!(new(&nginx, "debian@12.2").expect("legal"), "1.22+debian12.2");
        let order = ["1.22", "1.22+debian12", "1.22+debian12.1", "1.22+debian12.10", "1.22.1"];
        for pair in order.windows(2) {
            let [a, b] = [pair[0], pair[1]].map(|text| text.parse::<Version>().expect("legal"));
            assert!(a < b, "{a} < {b}");
        }
        nginx.version = "1".repeat(60).parse().expect("legal");
        assert_eq!(new(&nginx, "debian@12.2").expect_err("too long").exit, Exit::Refused);
    }

    #[test]
    fn chosen_versions_count_and_taken_ones_are_refused() {
        let all = [
            template("nginx@1", Some("debian@12"), &[]),
            template("nginx@1+debian12.1", Some("alpine@3"), &[]),
        ];
        assert_eq!(planned(&all, "debian@12.1", &[]).expect_err("taken").exit, Exit::Conflict);
        let chosen = |name: &str| [(name.parse().expect("legal"), "1.1".parse().expect("legal"))];
        assert_eq!(planned(&all, "debian@12.1", &chosen("nginx")).expect("plans"), ["nginx@1 -> nginx@1.1"]);
        assert_eq!(planned(&all, "debian@12.1", &chosen("ngin")).expect_err("no such").exit, Exit::Refused);
    }
}
