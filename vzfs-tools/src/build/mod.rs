//! Makes templates: of definitions, by patches of versions that are there, and again on another version of their OS.
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
mod cascade;
mod clean;
mod definition;
mod os;
mod overlay;
mod patch;
mod recipe;
mod site;

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use vzfs::api::Template;
use vzfs::types::TemplateRef;

use self::cascade::Cascaded;
use self::definition::{Definition, Kind};
use self::recipe::Recipe;
use crate::cli::{BuildArgs, CascadeArgs, PatchArgs};
use crate::commands::Context;
use crate::commands::template::{get, made, must_be_new};
use crate::error::{Exit, Failure, Result};
use crate::interrupt;

/// Builds the template that a definition defines.
pub(crate) fn run(context: &Context, args: &BuildArgs) -> Result<()> {
    let mut definition = Definition::load(&args.file)?;
    if let Some(version) = &args.version {
        definition.template.version = version.clone();
    }
    match (&mut definition.kind, &args.on) {
        (Kind::App { on }, Some(other)) => *on = other.clone(),
        (Kind::Os(_), Some(_)) => {
            return Err(Failure::new(Exit::Refused, "an OS template stands on nothing: leave out --on"));
        }
        (_, None) => {}
    }
    let is_os = matches!(definition.kind, Kind::Os(_));
    only_for_os(&args.cascade, is_os)?;
    must_be_new(context, &definition.template)?;
    if args.dry_run {
        let mut steps = match &definition.kind {
            Kind::Os(os) => os::plan(&definition, os),
            Kind::App { on } => app::plan(context, &definition, on)?,
        };
        steps.extend(cascade::plan(context, &args.cascade, &definition.template)?);
        return context.plan(&steps);
    }
    begin()?;
    // What cannot be is found before the long part.
    cascade::plan(context, &args.cascade, &definition.template)?;
    let recipe = Recipe::of(&definition)?;
    let template: Template = match &definition.kind {
        Kind::Os(os) => os::build(context, &definition, os, &recipe)?,
        Kind::App { on } => app::build(context, &definition, on, &app::Remake::new(&recipe))?,
    };
    finish(context, &args.cascade, template)
}

/// Makes a new version of a template.
pub(crate) fn patch(context: &Context, args: &PatchArgs) -> Result<()> {
    let old = get(context, &args.template)?;
    only_for_os(&args.cascade, old.os.is_none())?;
    let new = vzfs::types::TemplateSpec { name: old.name.clone(), version: args.to.clone() };
    must_be_new(context, &new)?;
    let patch = patch::Patch::load(args)?;
    if args.dry_run {
        let mut steps = patch.plan(&old, &new);
        steps.extend(cascade::plan(context, &args.cascade, &new)?);
        return context.plan(&steps);
    }
    begin()?;
    cascade::plan(context, &args.cascade, &new)?;
    let template = patch::make(context, &old, &new, &patch, args.summary.as_deref())?;
    finish(context, &args.cascade, template)
}

/// Brings the application templates of an OS to one of its versions.
pub(crate) fn cascade(
    context: &Context,
    os: &TemplateRef,
    versions: &cascade::Versions,
    dry_run: bool,
) -> Result<()> {
    let os = get(context, os)?;
    crate::commands::template::must_be_os(&os)?;
    let args = CascadeArgs { cascade: true, versions: versions.to_vec() };
    if dry_run {
        return context.plan(&cascade::plan(context, &args, &os.spec())?);
    }
    begin()?;
    let cascaded = cascade::run(context, &args, &os)?;
    context.output.done(&cascaded, |cascaded| cascade::text(cascaded))?;
    cascade::verdict(&cascaded)
}

fn only_for_os(args: &CascadeArgs, is_os: bool) -> Result<()> {
    if args.cascade && !is_os {
        return Err(Failure::new(
            Exit::Refused,
            "--cascade is for OS templates: nothing is built on an application template",
        ));
    }
    Ok(())
}

fn begin() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::new(Exit::Failure, "cannot build a template: only root can")
            .with_hint("run this with sudo"));
    }
    interrupt::install()
}

/// Lets the application templates follow if that was asked for, and says what was made.
fn finish(context: &Context, args: &CascadeArgs, template: Template) -> Result<()> {
    #[derive(Serialize)]
    struct Made {
        template: Template,
        cascade: Vec<Cascaded>,
    }
    if !args.cascade {
        return context.output.done(&template, made);
    }
    let cascade = cascade::run(context, args, &template)?;
    let all = Made { template, cascade };
    context.output.done(&all, |all| format!("{}\n{}", made(&all.template), cascade::text(&all.cascade)))?;
    cascade::verdict(&all.cascade)
}

/// Says what comes next, on stderr.
fn announce(context: &Context, step: &str) {
    if !context.output.quiet {
        eprintln!("vzfs: {step}");
    }
}

/// Now, in whole seconds.
fn now_secs() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(now).unwrap_or(i64::MAX)
}
