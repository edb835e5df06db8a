//! `vzfs template`.

use std::path::Path;

use vzfs::api::{ChangeKind, ErrorCode, How, ImportRequest, Origin, Removed, TagTemplate, Tagged};
use vzfs::api::{Template, TemplateDiff, TemplateKind, VerifyReport};
use vzfs::types::{FileKind, Tag, TemplateRef, TemplateSpec};

use super::difference::diff;
use super::{Context, absolute, export};
use crate::build;
use crate::cli::{Description, TemplateCommand};
use crate::error::{Exit, Failure, Result};
use crate::output::{Column, NOTHING, count, fields, moment, plural, size, table};

/// Runs one of the template commands.
pub(crate) fn run(context: &Context, command: TemplateCommand) -> Result<()> {
    match command {
        TemplateCommand::Import { template, source, os, description, dry_run } => {
            import(context, template, &source, os, description, dry_run)
        }
        TemplateCommand::Build(args) => build::run(context, &args),
        TemplateCommand::Patch(args) => build::patch(context, &args),
        TemplateCommand::Cascade { os, versions, dry_run } => {
            build::cascade(context, &os, &versions, dry_run)
        }
        TemplateCommand::Tag { template, tag } => {
            let request = TagTemplate { tag };
            let tagged: Tagged = context.client.post(&format!("/v1/templates/{template}/tags"), &request)?;
            context.output.done(&tagged, tag_text)
        }
        TemplateCommand::Untag { name, tag } => untag(context, &name, &tag),
        TemplateCommand::History { name } => {
            let versions: Vec<Template> = context.client.get(&format!("/v1/templates/{name}/versions"))?;
            context.output.show(&versions, |versions| history(versions))
        }
        TemplateCommand::Recipe { template, file } => {
            let path = format!("/v1/templates/{template}/recipe");
            export(context, &format!("recipe of {template}"), &path, &file)
        }
        TemplateCommand::List => {
            context.output.show(&context.client.get::<Vec<Template>>("/v1/templates")?, |t| list(t))
        }
        TemplateCommand::Show { template } => context.output.show(&get(context, &template)?, show),
        TemplateCommand::Diff { old, new } => {
            let path = format!("/v1/templates/{old}/diff/{new}");
            context.output.show(&context.client.get::<TemplateDiff>(&path)?, diff)
        }
        TemplateCommand::Verify { template } => verify(context, &template),
        TemplateCommand::Export { template, file } => {
            let path = format!("/v1/templates/{template}/export");
            export(context, &format!("template {template}"), &path, &file)
        }
        TemplateCommand::Rm { template, force, dry_run } => remove(context, &template, force, dry_run),
    }
}

/// Asks for one template.
pub(crate) fn get(context: &Context, template: &TemplateRef) -> Result<Template> {
    context.client.get(&format!("/v1/templates/{template}"))
}

/// Fails when a template of that name and version exists: what a dry run and a long build ask first.
pub(crate) fn must_be_new(context: &Context, template: &TemplateSpec) -> Result<()> {
    match get(context, &template.clone().into()) {
        Ok(found) if found.version != template.version => {
            let what = format!("{template} is a tag of that template, and cannot become a version of it");
            Err(Failure::new(Exit::Conflict, what)
                .with_hint("choose another version, or take the tag away first"))
        }
        Ok(_) => Err(Failure::new(Exit::Conflict, format!("template {template} exists already"))
            .with_hint("templates never change: choose another version, or remove it first")),
        Err(failure) if failure.exit == Exit::NotFound => Ok(()),
        Err(failure) => Err(failure),
    }
}

/// Sends an import and says what came of it.
pub(crate) fn send_import(context: &Context, request: &ImportRequest) -> Result<Template> {
    let progress = context.progress();
    context.client.events("/v1/templates/import", Some(request), &progress)
}

/// The sentence about a template that was made.
pub(crate) fn made(template: &Template) -> String {
    format!(
        "template {} made: {}, {}, digest {}",
        template.spec(),
        plural(template.stats.inodes, "inode"),
        size(template.stats.bytes),
        template.digest.short()
    )
}

fn import(
    context: &Context,
    template: TemplateSpec,
    source: &Path,
    os: Option<TemplateRef>,
    description: Description,
    dry_run: bool,
) -> Result<()> {
    let source = absolute(source)?;
    let meta = std::fs::metadata(&source)
        .map_err(|e| Failure::io(format!("cannot read {}", source.display()), &e))?;
    if dry_run {
        must_be_new(context, &template)?;
        let os = os.map(|os| get(context, &os)).transpose()?;
        if let Some(os) = &os {
            must_be_os(os)?;
        }
        let what = match () {
            () if meta.is_dir() && source.join("oci-layout").is_file() => "the OCI layout",
            () if meta.is_dir() => "the directory",
            () => "the archive",
        };
        let on = os.map_or("OS template".to_owned(), |os| format!("application template on {}", os.spec()));
        let steps = [format!("make the {on} {template} of {what} {}", source.display())];
        return context.plan(&steps);
    }
    let kind = if os.is_some() { TemplateKind::App } else { TemplateKind::Os };
    let request = ImportRequest {
        template,
        source,
        kind: Some(kind),
        os,
        merge: description.merge_rules(),
        summary: description.summary,
        labels: description.labels.into_iter().collect(),
        packages: None,
        exclude: description.exclude,
        recipe: None,
    };
    let template = send_import(context, &request)?;
    context.output.done(&template, made)
}

/// An application template can stand on an OS template only.
pub(crate) fn must_be_os(template: &Template) -> Result<()> {
    match template.kind {
        TemplateKind::Os => Ok(()),
        TemplateKind::App => Err(vzfs::api::ApiError::new(
            ErrorCode::Unfit,
            format!("{} is an application template; an OS template is needed here", template.spec()),
        )
        .into()),
    }
}

fn kind_text(kind: TemplateKind) -> &'static str {
    match kind {
        TemplateKind::Os => "os",
        TemplateKind::App => "app",
    }
}

fn list(templates: &[Template]) -> String {
    let columns = [
        Column::Text("TEMPLATE"),
        Column::Text("KIND"),
        Column::Text("ON"),
        Column::Number("INODES"),
        Column::Number("SIZE"),
        Column::Number("PACKAGES"),
        Column::Number("VES"),
        Column::Text("TAGS"),
        Column::Text("SUMMARY"),
    ];
    let rows = templates.iter().map(|template| {
        let on = template.os.as_ref().map_or(NOTHING.to_owned(), |os| format!("{}@{}", os.name, os.version));
        vec![
            template.spec().to_string(),
            kind_text(template.kind).to_owned(),
            on,
            count(template.stats.inodes),
            size(template.stats.bytes),
            count(template.packages.len() as u64),
            count(template.used_by.len() as u64),
            tags(template),
            template.summary.clone(),
        ]
    });
    table(&columns, rows)
}

/// The versions of one template, oldest first.
fn history(versions: &[Template]) -> String {
    let columns = [
        Column::Text("VERSION"),
        Column::Text("CREATED"),
        Column::Text("ON"),
        Column::Text("CAME FROM"),
        Column::Number("SIZE"),
        Column::Number("VES"),
        Column::Text("TAGS"),
    ];
    let rows = versions.iter().map(|template| {
        let on = template.os.as_ref().map_or(NOTHING.to_owned(), |os| format!("{}@{}", os.name, os.version));
        let gone = |from: &TemplateSpec| !versions.iter().any(|known| known.spec() == *from);
        let mut origin = origin(&template.origin);
        if template.origin.from.as_ref().is_some_and(gone) {
            origin.push_str(" (removed)");
        }
        if !template.origin.steps.is_empty() {
            origin.push_str(&format!(": {}", template.origin.steps.join("; ")));
        }
        vec![
            template.version.to_string(),
            moment(template.created),
            on,
            origin,
            size(template.stats.bytes),
            count(template.used_by.len() as u64),
            tags(template),
        ]
    });
    table(&columns, rows)
}

fn tags(template: &Template) -> String {
    if template.tags.is_empty() {
        return NOTHING.to_owned();
    }
    template.tags.iter().map(Tag::as_str).collect::<Vec<_>>().join(" ")
}

/// How a version was made, in words.
fn origin(origin: &Origin) -> String {
    let what = match origin.how {
        How::Unknown => return NOTHING.to_owned(),
        How::Imported => "imported",
        How::Built => "built",
        How::Committed => "committed",
        How::Patched => "patched",
        How::Rebuilt => "built again",
        How::Reapplied => "put on another OS",
    };
    let from = origin.from.as_ref().map(|from| match origin.how {
        How::Patched => format!(" from {}", from.version),
        _ => format!(" after {}", from.version),
    });
    format!("{what}{}", from.unwrap_or_default())
}

fn tag_text(tagged: &Tagged) -> String {
    match (&tagged.before, &tagged.now) {
        (Some(before), Some(now)) if before == now => format!("{} is {now} already", tagged.tag),
        (Some(before), Some(now)) => format!("{} is {now} now, and was {before}", tagged.tag),
        (None, Some(now)) => format!("{} is {now}", tagged.tag),
        (before, None) => {
            format!(
                "{} is no more{}",
                tagged.tag,
                before.as_ref().map_or(String::new(), |was| format!(", it was {was}"))
            )
        }
    }
}

fn untag(context: &Context, name: &TemplateRef, tag: &Tag) -> Result<()> {
    let tagged: Tagged = context.client.delete(&format!("/v1/templates/{name}/tags/{tag}"))?;
    context.output.done(&tagged, tag_text)
}

fn show(template: &Template) -> String {
    let stats = &template.stats;
    let mut rows =
        vec![("template", template.spec().to_string()), ("kind", kind_text(template.kind).to_owned())];
    rows.extend(
        template
            .os
            .as_ref()
            .map(|os| ("on", format!("{}@{} (layer {})", os.name, os.version, os.layer.short()))),
    );
    if !template.requires.is_empty() {
        let requires: Vec<String> = template.requires.iter().map(TemplateSpec::to_string).collect();
        rows.push(("needs", requires.join(" ")));
    }
    if !template.summary.is_empty() {
        rows.push(("summary", template.summary.clone()));
    }
    rows.extend([
        ("digest", template.digest.to_string()),
        ("tags", tags(template)),
        ("created", moment(template.created)),
        ("came from", origin(&template.origin)),
        ("files", format!("{}, {}", count(stats.files), size(stats.bytes))),
        ("directories", count(stats.dirs)),
        ("symlinks", count(stats.symlinks)),
        ("inodes", count(stats.inodes)),
    ]);
    let used_by: Vec<&str> = template.used_by.iter().map(|ve| ve.as_str()).collect();
    rows.push(("used by", if used_by.is_empty() { NOTHING.to_owned() } else { used_by.join(" ") }));
    rows.extend(template.origin.steps.iter().map(|step| ("step", step.clone())));
    rows.extend(template.merge.iter().map(|rule| {
        let command = rule.generate.as_ref().map_or(String::new(), |command| format!(" by: {command}"));
        ("merge", format!("{} {}{command}", rule.path, rule.rule))
    }));
    rows.extend(template.labels.iter().map(|(key, value)| ("label", format!("{key}={value}"))));
    rows.push(("packages", count(template.packages.len() as u64)));
    let mut text = fields(rows);
    if !template.packages.is_empty() {
        text.push('\n');
        let packages = template.packages.iter().map(|p| vec![p.name.clone(), p.version.clone()]);
        text.push_str(&table(&[Column::Text("PACKAGE"), Column::Text("VERSION")], packages));
    }
    text
}

/// The letter that stands for a change.
pub(crate) fn sign(kind: ChangeKind) -> &'static str {
    match kind {
        ChangeKind::Added => "+",
        ChangeKind::Changed => "~",
        ChangeKind::Deleted => "-",
    }
}

/// The name of a type of file.
pub(crate) fn type_text(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Dir => "dir",
        FileKind::Symlink => "symlink",
        FileKind::Char => "char",
        FileKind::Block => "block",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
    }
}

/// `3 added, 1 changed, 0 deleted`.
pub(crate) fn totals(kinds: impl Iterator<Item = ChangeKind>) -> String {
    let [mut added, mut changed, mut deleted] = [0; 3];
    for kind in kinds {
        *match kind {
            ChangeKind::Added => &mut added,
            ChangeKind::Changed => &mut changed,
            ChangeKind::Deleted => &mut deleted,
        } += 1;
    }
    format!("{} added, {} changed, {} deleted\n", count(added), count(changed), count(deleted))
}

fn verify(context: &Context, template: &TemplateRef) -> Result<()> {
    let progress = context.progress();
    let path = format!("/v1/templates/{template}/verify");
    let report: VerifyReport = context.client.events(&path, None::<&()>, &progress)?;
    drop(progress);
    let text = |report: &VerifyReport| {
        let mut text = format!("{} read, {}: ", plural(report.blobs, "blob"), size(report.bytes));
        if report.damaged.is_empty() {
            text.push_str("no damage\n");
            return text;
        }
        text.push_str(&format!("{} DAMAGED\n", report.damaged.len()));
        let rows =
            report.damaged.iter().map(|d| vec![d.digest.short(), format!("/{}", d.path), d.why.clone()]);
        text.push_str(&table(&[Column::Text("DIGEST"), Column::Text("PATH"), Column::Text("WHY")], rows));
        text
    };
    if report.damaged.is_empty() {
        return context.output.done(&report, text);
    }
    context.output.show(&report, text)?;
    let what = format!("template {template} is damaged: {}", plural(report.damaged.len() as u64, "blob"));
    Err(Failure::new(Exit::Damage, what).with_hint("import the template again to replace what is damaged"))
}

fn remove(context: &Context, template: &TemplateRef, force: bool, dry_run: bool) -> Result<()> {
    if dry_run {
        let found = get(context, template)?;
        if !found.used_by.is_empty() {
            let ves: Vec<&str> = found.used_by.iter().map(|ve| ve.as_str()).collect();
            return Err(Failure::new(
                Exit::Conflict,
                format!("template {} is in use by {}", found.spec(), ves.join(", ")),
            ));
        }
        if !found.tags.is_empty() && !force {
            return Err(Failure::new(
                Exit::Conflict,
                format!("template {} is tagged {}", found.spec(), tags(&found)),
            )
            .with_hint("move the tags or take them away, or add --force"));
        }
        let all: Vec<Template> = context.client.get("/v1/templates")?;
        let made_on = |t: &&Template| {
            t.requires.contains(&found.spec())
                || t.os.as_ref().is_some_and(|os| (&os.name, &os.version) == (&found.name, &found.version))
        };
        if let Some(app) = all.iter().find(made_on) {
            return Err(Failure::new(
                Exit::Conflict,
                format!("template {} is in use by the application template {}", found.spec(), app.spec()),
            ));
        }
        return context.plan(&[format!("remove template {} ({})", found.spec(), size(found.stats.bytes))]);
    }
    let query = if force { "?force=true" } else { "" };
    let removed: Removed = context.client.delete(&format!("/v1/templates/{template}{query}"))?;
    context.output.done(&removed, |r| match r.freed_bytes {
        Some(freed) => format!("template {} removed, {} freed", r.removed, size(freed)),
        None => format!("template {} removed", r.removed),
    })
}
