//! `vzfs template`.

use std::path::Path;

use vzfs::api::{
    Change, ChangeKind, ErrorCode, ImportRequest, Removed, Side, Template, TemplateKind, VerifyReport,
};
use vzfs::types::{FileKind, TemplateRef, TemplateSpec};

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
        TemplateCommand::Build { file, dry_run } => build::run(context, &file, dry_run),
        TemplateCommand::List => {
            context.output.show(&context.client.get::<Vec<Template>>("/v1/templates")?, |t| list(t))
        }
        TemplateCommand::Show { template } => context.output.show(&get(context, &template)?, show),
        TemplateCommand::Diff { old, new } => {
            let path = format!("/v1/templates/{old}/diff/{new}");
            context.output.show(&context.client.get::<Vec<Change>>(&path)?, |changes| diff(changes))
        }
        TemplateCommand::Verify { template } => verify(context, &template),
        TemplateCommand::Export { template, file } => {
            let path = format!("/v1/templates/{template}/export");
            export(context, &format!("template {template}"), &path, &file)
        }
        TemplateCommand::Rm { template, dry_run } => remove(context, &template, dry_run),
    }
}

/// Asks for one template.
pub(crate) fn get(context: &Context, template: &TemplateRef) -> Result<Template> {
    context.client.get(&format!("/v1/templates/{template}"))
}

/// Fails when a template of that name and version exists: what a dry run and a long build ask first.
pub(crate) fn must_be_new(context: &Context, template: &TemplateSpec) -> Result<()> {
    match get(context, &template.clone().into()) {
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
        summary: description.summary,
        labels: description.labels.into_iter().collect(),
        packages: None,
        exclude: description.exclude,
        merge: Vec::new(),
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
            template.summary.clone(),
        ]
    });
    table(&columns, rows)
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
    if !template.summary.is_empty() {
        rows.push(("summary", template.summary.clone()));
    }
    rows.extend([
        ("digest", template.digest.to_string()),
        ("created", moment(template.created)),
        ("files", format!("{}, {}", count(stats.files), size(stats.bytes))),
        ("directories", count(stats.dirs)),
        ("symlinks", count(stats.symlinks)),
        ("inodes", count(stats.inodes)),
    ]);
    let used_by: Vec<&str> = template.used_by.iter().map(|ve| ve.as_str()).collect();
    rows.push(("used by", if used_by.is_empty() { NOTHING.to_owned() } else { used_by.join(" ") }));
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

fn diff(changes: &[Change]) -> String {
    if changes.is_empty() {
        return "no difference\n".to_owned();
    }
    let columns = [
        Column::Text(""),
        Column::Text("TYPE"),
        Column::Number("OLD"),
        Column::Number("NEW"),
        Column::Text("WHAT"),
        Column::Text("PATH"),
    ];
    let side_size = |side: &Option<Side>| match side {
        Some(side) if side.file_type == FileKind::File => size(side.size),
        _ => NOTHING.to_owned(),
    };
    let rows = changes.iter().map(|change| {
        let side = change.new.as_ref().or(change.old.as_ref());
        // The words of the JSON form are the words for people.
        let aspects: Vec<String> = change
            .aspects
            .iter()
            .filter_map(|aspect| Some(serde_json::to_value(aspect).ok()?.as_str()?.to_owned()))
            .collect();
        vec![
            sign(change.kind).to_owned(),
            side.map_or(NOTHING, |side| type_text(side.file_type)).to_owned(),
            side_size(&change.old),
            side_size(&change.new),
            if aspects.is_empty() { NOTHING.to_owned() } else { aspects.join(",") },
            format!("/{}", change.path),
        ]
    });
    let mut text = table(&columns, rows);
    text.push_str(&totals(changes.iter().map(|change| change.kind)));
    text
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

fn remove(context: &Context, template: &TemplateRef, dry_run: bool) -> Result<()> {
    if dry_run {
        let found = get(context, template)?;
        if !found.used_by.is_empty() {
            let ves: Vec<&str> = found.used_by.iter().map(|ve| ve.as_str()).collect();
            return Err(Failure::new(
                Exit::Conflict,
                format!("template {} is in use by {}", found.spec(), ves.join(", ")),
            ));
        }
        let all: Vec<Template> = context.client.get("/v1/templates")?;
        let made_on = |t: &&Template| {
            t.os.as_ref().is_some_and(|os| (&os.name, &os.version) == (&found.name, &found.version))
        };
        if let Some(app) = all.iter().find(made_on) {
            return Err(Failure::new(
                Exit::Conflict,
                format!("template {} is in use by the application template {}", found.spec(), app.spec()),
            ));
        }
        return context.plan(&[format!("remove template {} ({})", found.spec(), size(found.stats.bytes))]);
    }
    let removed: Removed = context.client.delete(&format!("/v1/templates/{template}"))?;
    context.output.done(&removed, |r| match r.freed_bytes {
        Some(freed) => format!("template {} removed, {} freed", r.removed, size(freed)),
        None => format!("template {} removed", r.removed),
    })
}
