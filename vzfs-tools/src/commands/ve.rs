//! `vzfs ve`.

use std::path::PathBuf;

use serde::Serialize;
use vzfs::api::{
    CommitVe, CreateVe, MountVe, Removed, RenameVe, Selector, ShadowedFile, ShiftIds, StoreDf, Template,
    UmountVe, Ve, VeShadows, VeStats, VolumeChange,
};
use vzfs::types::{FileKind, IdShift, TemplateSpec, VeName};

use super::store::ve_space;
use super::template::{get as get_template, made, must_be_new, must_be_os, sign, totals, type_text};
use super::update_text::{shadows, versions};
use super::{Context, absolute, export};
use crate::cli::{Description, ExecArgs, NewIdShift, VeCommand};
use crate::error::{Exit, Failure, Result};
use crate::exec;
use crate::output::{Column, NOTHING, count, fields, moment, plural, size, table};

/// Runs one of the VE commands; the code is 0, or that of the program `ve exec` ran.
pub(crate) fn run(context: &Context, command: VeCommand) -> Result<u8> {
    match command {
        VeCommand::Create { name, templates, count, id_shift, labels, dry_run } => {
            let labels = labels.into_iter().collect();
            create(context, &CreateVe { name, templates, count, id_shift, labels }, dry_run)
        }
        VeCommand::List { selector, shadowed: true } => list_shadows(context, selector.as_ref()),
        VeCommand::List { selector, shadowed: false } => {
            let ves = selected(context, selector.as_ref())?;
            context.output.show(&ves, |ves| list(ves))
        }
        VeCommand::Df { names } => space(context, &names),
        VeCommand::Show { name } => {
            let ve = get(context, &name)?;
            let shadows: VeShadows = context.client.get(&format!("/v1/ves/{name}/shadowed"))?;
            context.output.show(&Shown { ve, shadowed: shadows.files }, show)
        }
        VeCommand::Stats { name } => {
            let stats: VeStats = context.client.get(&format!("/v1/ves/{name}/stats"))?;
            context.output.show(&stats, requests)
        }
        VeCommand::Rm { name, force, dry_run } => remove(context, &name, force, dry_run),
        VeCommand::Rename { name, new } => {
            let ve: Ve = context.client.patch(&format!("/v1/ves/{name}"), &RenameVe { name: new })?;
            context.output.done(&ve, |ve| format!("VE {name} is now {}", ve.name))
        }
        VeCommand::Set { name, id_shift: NewIdShift(id_shift) } => {
            let ve: Ve = context.client.post(&format!("/v1/ves/{name}/id-shift"), &ShiftIds { id_shift })?;
            warn_of_overlaps(context, std::slice::from_ref(&ve))?;
            context.output.done(&ve, |ve| match ve.id_shift {
                Some(shift) => format!("VE {} has the host's ids {}", ve.name, ids(shift)),
                None => format!("VE {} has the same ids as the host", ve.name),
            })
        }
        VeCommand::Mount { name, mountpoint } => {
            let mountpoint = mountpoint.as_deref().map(absolute).transpose()?;
            context.output.done(&mount(context, &name, mountpoint)?, |ve| {
                let place = ve.mountpoint.as_ref().map_or(NOTHING.into(), |p| p.display().to_string());
                format!("VE {} is mounted at {place}", ve.name)
            })
        }
        VeCommand::Umount { name, force } => {
            let ve: Ve = context.client.post(&format!("/v1/ves/{name}/umount"), &UmountVe { force })?;
            context.output.done(&ve, |ve| format!("VE {} is unmounted", ve.name))
        }
        VeCommand::Exec(arguments) => {
            // The exit codes below 125 belong to the program: what fails here must not look like its verdict.
            return execute(context, arguments).map_err(|failure| match failure.exit {
                Exit::NotExecutable | Exit::ProgramNotFound => failure,
                _ => Failure { exit: Exit::ExecFailed, ..failure },
            });
        }
        VeCommand::Diff { name } => {
            let changes: Vec<VolumeChange> = context.client.get(&format!("/v1/ves/{name}/diff"))?;
            context.output.show(&changes, |changes| diff(changes))
        }
        VeCommand::Export { name, file } => {
            export(context, &format!("VE {name}"), &format!("/v1/ves/{name}/export"), &file)
        }
        VeCommand::Commit { name, template, description, dry_run } => {
            commit(context, &name, template, description, dry_run)
        }
    }
    .map(|()| 0)
}

fn space(context: &Context, names: &[VeName]) -> Result<()> {
    let mut df: StoreDf = context.client.get("/v1/store/df")?;
    if let Some(name) = names.iter().find(|name| !df.ves.iter().any(|ve| ve.ve == **name)) {
        return Err(Failure::new(Exit::NotFound, format!("there is no VE {name}")));
    }
    df.ves.retain(|ve| names.is_empty() || names.contains(&ve.ve));
    context.output.show(&df.ves, |ves| ve_space(ves))
}

/// The VEs with these labels.
fn selected(context: &Context, selector: Option<&Selector>) -> Result<Vec<Ve>> {
    let mut ves: Vec<Ve> = context.client.get("/v1/ves")?;
    ves.retain(|ve| selector.is_none_or(|selector| selector.matches(&ve.labels)));
    Ok(ves)
}

/// The files of updates that VEs do not show.
fn list_shadows(context: &Context, selector: Option<&Selector>) -> Result<()> {
    let mut all: Vec<VeShadows> = context.client.get("/v1/shadowed")?;
    if selector.is_some() {
        let ves = selected(context, selector)?;
        all.retain(|shadows| ves.iter().any(|ve| ve.name == shadows.ve));
    }
    context.output.show(&all, |all| shadows(all))
}

/// A VE with what it hides of its updates.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    ve: Ve,
    shadowed: Vec<ShadowedFile>,
}

/// Asks for one VE.
pub(crate) fn get(context: &Context, name: &VeName) -> Result<Ve> {
    context.client.get(&format!("/v1/ves/{name}"))
}

/// Mounts a VE.
pub(crate) fn mount(context: &Context, name: &VeName, mountpoint: Option<PathBuf>) -> Result<Ve> {
    context.client.post(&format!("/v1/ves/{name}/mount"), &MountVe { mountpoint })
}

fn create(context: &Context, request: &CreateVe, dry_run: bool) -> Result<()> {
    if dry_run {
        return plan_create(context, request);
    }
    let ves: Vec<Ve> = context.client.post("/v1/ves", request)?;
    warn_of_overlaps(context, &ves)?;
    context.output.done(&ves, |ves| match ves.as_slice() {
        [ve] => format!("VE {} made", ve.name),
        [first, .., last] => {
            format!("{} made: {} to {}", plural(ves.len() as u64, "VE"), first.name, last.name)
        }
        [] => "nothing made".to_owned(),
    })
}

/// Says which VEs share ids: their programs could signal and trace each other. That may be what was wanted.
fn warn_of_overlaps(context: &Context, changed: &[Ve]) -> Result<()> {
    if context.output.quiet || changed.iter().all(|ve| ve.id_shift.is_none()) {
        return Ok(());
    }
    let all: Vec<Ve> = context.client.get("/v1/ves")?;
    for (ve, shift) in changed.iter().filter_map(|ve| Some((ve, ve.id_shift?))) {
        let other = all
            .iter()
            .find(|other| other.name != ve.name && other.id_shift.is_some_and(|other| other.overlaps(shift)));
        if let Some(Ve { name, id_shift: Some(theirs), .. }) = other {
            eprintln!(
                "vzfs: warning: VE {} and VE {name} share ids of the host ({} and {}): programs in one can signal those in the other",
                ve.name,
                ids(shift),
                ids(*theirs)
            );
        }
    }
    Ok(())
}

/// A range of ids, first to last.
fn ids(shift: IdShift) -> String {
    format!("{} to {}", shift.first(), shift.first() + (shift.count() - 1))
}

fn plan_create(context: &Context, request: &CreateVe) -> Result<()> {
    let found = request.templates.iter().map(|template| get_template(context, template));
    let found: Vec<Template> = found.collect::<Result<_>>()?;
    if let Some(first) = found.first() {
        must_be_os(first)?;
    }
    let names: Vec<String> = match request.count {
        None => vec![request.name.to_string()],
        Some(count) => (1..=count).map(|number| format!("{}-{number}", request.name)).collect(),
    };
    let existing: Vec<Ve> = context.client.get("/v1/ves")?;
    if let Some(ve) = existing.iter().find(|ve| names.iter().any(|name| name == ve.name.as_str())) {
        return Err(Failure::new(Exit::Conflict, format!("VE {} exists already", ve.name)));
    }
    let on: Vec<String> = found.iter().map(|template| template.spec().to_string()).collect();
    let on = on.join(", ");
    let steps: Vec<String> = names.iter().map(|name| format!("make VE {name} on {on}")).collect();
    context.plan(&steps)
}

fn list(ves: &[Ve]) -> String {
    let columns = [
        Column::Text("VE"),
        Column::Text("TEMPLATES"),
        Column::Number("PRIVATE"),
        Column::Number("CHANGED"),
        Column::Number("SHARED"),
        Column::Text("IDS"),
        Column::Text("MOUNTED AT"),
    ];
    let rows = ves.iter().map(|ve| {
        vec![
            ve.name.to_string(),
            templates(&ve.templates),
            size(ve.private_bytes),
            count(ve.private_inodes),
            size(ve.base_bytes),
            ve.id_shift.map_or(NOTHING.to_owned(), |shift| shift.to_string()),
            mounted_at(ve),
        ]
    });
    table(&columns, rows)
}

fn templates(specs: &[TemplateSpec]) -> String {
    specs.iter().map(TemplateSpec::to_string).collect::<Vec<_>>().join(" ")
}

fn mounted_at(ve: &Ve) -> String {
    match (&ve.mountpoint, ve.mounted) {
        (Some(place), true) => place.display().to_string(),
        // Wanted there but not there: somebody unmounted it behind the daemon's back, or mounting failed.
        (Some(place), false) => format!("({}, not mounted)", place.display()),
        (None, _) => NOTHING.to_owned(),
    }
}

fn show(Shown { ve, shadowed }: &Shown) -> String {
    let mut rows = vec![
        ("VE", ve.name.to_string()),
        ("number", ve.id.0.to_string()),
        ("templates", templates(&ve.templates)),
        ("base", ve.base.to_string()),
        ("created", moment(ve.created)),
        ("mounted at", mounted_at(ve)),
    ];
    rows.extend(ve.id_shift.map(|shift| ("ids on the host", ids(shift))));
    rows.extend(ve.passthrough.map(|yes| ("passthrough", if yes { "yes" } else { "no" }.to_owned())));
    rows.extend([
        ("private", format!("{} in {}", size(ve.private_bytes), plural(ve.private_inodes, "inode"))),
        ("shared", size(ve.base_bytes)),
    ]);
    rows.extend(ve.labels.iter().map(|(key, value)| ("label", format!("{key}={value}"))));
    rows.extend(shadowed.iter().map(|file| {
        ("shadowed", format!("/{} ({}, update {})", file.shadowed.path, versions(file), file.rollout))
    }));
    fields(rows)
}

fn requests(stats: &VeStats) -> String {
    if stats.requests.is_empty() {
        return "no requests\n".to_owned();
    }
    let mut kinds: Vec<_> = stats.requests.iter().collect();
    kinds.sort_by_key(|(_, number)| std::cmp::Reverse(**number));
    let rows = kinds.into_iter().map(|(kind, number)| vec![kind.clone(), count(*number)]);
    let waited = match stats.waited_us {
        0 => String::new(),
        us => format!("\nits changes have waited {:.1} s for syncs of other VEs\n", us as f64 / 1e6),
    };
    table(&[Column::Text("REQUEST"), Column::Number("NUMBER")], rows) + &waited
}

fn remove(context: &Context, name: &VeName, force: bool, dry_run: bool) -> Result<()> {
    if dry_run {
        let ve = get(context, name)?;
        if ve.mounted && !force {
            return Err(Failure::new(Exit::Conflict, format!("VE {name} is mounted at {}", mounted_at(&ve)))
                .with_hint(format!("unmount it first (vzfs ve umount {name}), or add --force")));
        }
        let mut steps = Vec::new();
        if ve.mounted {
            steps.push(format!("unmount VE {name} from {}", mounted_at(&ve)));
        }
        let (inodes, bytes) = (plural(ve.private_inodes, "changed inode"), size(ve.private_bytes));
        steps.push(format!("remove VE {name} with {inodes}, {bytes} of private data"));
        return context.plan(&steps);
    }
    let query = if force { "?force=true" } else { "" };
    let removed: Removed = context.client.delete(&format!("/v1/ves/{name}{query}"))?;
    context.output.done(&removed, |removed| format!("VE {} removed", removed.removed))
}

fn diff(changes: &[VolumeChange]) -> String {
    if changes.is_empty() {
        return "nothing changed\n".to_owned();
    }
    let columns = [Column::Text(""), Column::Text("TYPE"), Column::Number("SIZE"), Column::Text("PATH")];
    let rows = changes.iter().map(|change| {
        let bytes = if change.file_type == FileKind::File { size(change.size) } else { NOTHING.to_owned() };
        let words = [sign(change.kind), type_text(change.file_type)].map(str::to_owned);
        let [sign, kind] = words;
        vec![sign, kind, bytes, format!("/{}", change.path)]
    });
    let mut text = table(&columns, rows);
    text.push_str(&totals(changes.iter().map(|change| change.kind)));
    text
}

/// Makes an application template of a VE.
pub(crate) fn send_commit(context: &Context, name: &VeName, request: &CommitVe) -> Result<Template> {
    let progress = context.progress();
    context.client.events(&format!("/v1/ves/{name}/commit"), Some(request), &progress)
}

fn commit(
    context: &Context,
    name: &VeName,
    template: TemplateSpec,
    description: Description,
    dry_run: bool,
) -> Result<()> {
    if dry_run {
        let ve = get(context, name)?;
        must_be_new(context, &template)?;
        let changes: Vec<VolumeChange> = context.client.get(&format!("/v1/ves/{name}/diff"))?;
        let on = ve.templates.first().map_or(String::new(), |os| format!(" on {os}"));
        let totals = totals(changes.iter().map(|change| change.kind));
        let step =
            format!("make the application template {template}{on} of VE {name}: {}", totals.trim_end());
        return context.plan(&[step]);
    }
    let request = CommitVe {
        template,
        merge: description.merge_rules(),
        summary: description.summary,
        labels: description.labels.into_iter().collect(),
        packages: None,
        exclude: description.exclude,
        version_of: None,
        rebuilds: None,
        recipe: None,
        steps: Vec::new(),
    };
    let template = send_commit(context, name, &request)?;
    context.output.done(&template, made)
}

fn execute(context: &Context, arguments: ExecArgs) -> Result<u8> {
    let ve = get(context, &arguments.name)?;
    let ve = if ve.mounted { ve } else { mount(context, &arguments.name, None)? };
    let Some(root) = ve.mountpoint else {
        return Err(Failure::new(
            Exit::ExecFailed,
            format!("VE {} is mounted, but nobody knows where", ve.name),
        ));
    };
    let spec = exec::ExecSpec {
        root,
        hostname: ve.name.to_string(),
        user: arguments.user,
        workdir: arguments.workdir,
        env: arguments.env,
        binds: arguments.bind,
        id_shift: ve.id_shift,
        network: if arguments.no_network { exec::Network::None } else { exec::Network::Host },
        command: arguments.command,
    };
    exec::run_interactive(&spec, context.output.quiet)
}
