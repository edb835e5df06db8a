//! Updates as people read them.

use std::collections::BTreeMap;

use vzfs::api::{
    ChangeKind, RebaseReport, Rollout, RolloutVe, RolloutVeDetail, RolloutVeState, Shadowed, ShadowedBy,
    ShadowedFile, StackItem, UpdatePlan, VeShadows,
};
use vzfs::types::TemplateSpec;

use crate::output::{self, Column, NOTHING, count, fields, moment, plural, printable, table};

/// Warnings of one kind that are shown of a VE; `show` has all.
const SHOWN: usize = 10;

/// All updates, one a line.
pub(crate) fn history(all: &[Rollout]) -> String {
    let columns = [
        Column::Number("UPDATE"),
        Column::Text("BEGUN"),
        Column::Text("WHAT"),
        Column::Text("STATE"),
        Column::Number("VES"),
        Column::Number("DONE"),
        Column::Number("FAILED"),
        Column::Text("WHY"),
    ];
    let rows = all.iter().map(|rollout| {
        vec![
            rollout.head.id.to_string(),
            moment(rollout.head.created),
            what(rollout),
            state(rollout),
            count(rollout.counts.to_move),
            count(rollout.counts.done),
            count(rollout.counts.failed),
            rollout.head.why.clone().unwrap_or_else(|| NOTHING.to_owned()),
        ]
    });
    table(&columns, rows)
}

/// What was asked for.
fn what(rollout: &Rollout) -> String {
    let head = &rollout.head;
    let ves = match (&head.selector, head.named.as_slice()) {
        (Some(selector), _) => format!("VEs with {selector}"),
        (None, []) => "all VEs".to_owned(),
        (None, [one]) => format!("VE {one}"),
        (None, named) => plural(named.len() as u64, "VE"),
    };
    match head.rolls_back {
        Some(id) => format!("roll back {id}: {ves}"),
        None if head.templates.is_empty() => ves,
        None => format!("{ves}: {}", joined(&head.templates)),
    }
}

fn joined(things: &[impl ToString]) -> String {
    things.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn state(rollout: &Rollout) -> String {
    match rollout.rolled_back_by.last() {
        Some(id) => format!("{}, rolled back by {id}", rollout.head.state.as_str()),
        None => rollout.head.state.as_str().to_owned(),
    }
}

/// An update and its VEs.
pub(crate) fn rollout(rollout: &Rollout) -> String {
    let (head, counts) = (&rollout.head, rollout.counts);
    let mut rows = vec![
        ("update", head.id.to_string()),
        ("what", what(rollout)),
        ("state", state(rollout)),
        ("begun", moment(head.created)),
    ];
    rows.extend(head.why.clone().map(|why| ("why", why)));
    rows.extend(head.finished.map(|time| ("finished", moment(time))));
    rows.extend(rollout.batch.map(|batch| ("batch", format!("{} of {}", batch + 1, rollout.batches))));
    if let Some(wait) = head.wait.filter(|wait| rollout.batch == Some(wait.before_batch)) {
        rows.push(("goes on", moment(wait.until)));
    }
    rows.extend(head.options.check.clone().map(|check| ("check", check)));
    let counted = [
        (counts.done, "done"),
        (counts.failed, "failed"),
        (counts.under_way, "under way"),
        (counts.pending, "to come"),
        (counts.current, "current already"),
        (counts.blocked, "blocked"),
        (counts.left, "left alone"),
    ];
    rows.push(("VEs", output::counts(&counted)));
    format!("{}\n{}", fields(rows), ves(&rollout.ves))
}

fn ves(ves: &[RolloutVe]) -> String {
    let columns = [
        Column::Text("VE"),
        Column::Text("RESULT"),
        Column::Text("MOVE"),
        Column::Number("TAKEN"),
        Column::Number("MERGED"),
        Column::Number("SHADOWED"),
        Column::Number("CONFLICTS"),
        Column::Number("TO RESTART"),
        Column::Text("WHY"),
    ];
    let rows = ves.iter().map(|ve| {
        let number = |pick: fn(&vzfs::api::ReportSummary) -> u64| {
            ve.summary.as_ref().map_or(NOTHING.to_owned(), |summary| count(pick(summary)))
        };
        vec![
            ve.ve.to_string(),
            ve.state.as_str().to_owned(),
            way(&ve.from, &ve.to),
            number(|s| s.taken),
            number(|s| s.merged),
            number(|s| s.shadowed),
            number(|s| s.conflicts),
            number(|s| s.stale_processes),
            ve.why.clone().unwrap_or_else(|| NOTHING.to_owned()),
        ]
    });
    table(&columns, rows)
}

/// "debian@12 -> debian@12.5": the templates that differ.
fn way(from: &[StackItem], to: &[StackItem]) -> String {
    let other = |a: &[StackItem], b: &[StackItem]| {
        let differing = a.iter().filter(|item| !b.contains(item)).map(|item| item.spec.to_string());
        differing.collect::<Vec<_>>().join(" ")
    };
    match (other(from, to), other(to, from)) {
        (from, to) if from.is_empty() && to.is_empty() => NOTHING.to_owned(),
        (from, to) => format!("{from} -> {to}"),
    }
}

/// What an update would do.
pub(crate) fn planned(plan: &UpdatePlan) -> String {
    let mut text = String::new();
    if plan.dry_run {
        text.push_str(&ves(&plan.ves.iter().map(|detail| detail.ve.clone()).collect::<Vec<_>>()));
        text.push_str(&warnings(&plan.ves));
    } else {
        text.push_str(&ways(plan));
    }
    let to_move = plan.ves.iter().filter(|detail| detail.ve.state == RolloutVeState::Pending).count();
    text.push_str(&match to_move {
        0 => "there is nothing to do\n".to_owned(),
        _ => {
            let batches = plural(u64::from(plan.batches), "step");
            format!("{} to move, in {batches}\n", plural(to_move as u64, "VE"))
        }
    });
    text
}

/// The VEs of a plan, together where the same happens to them.
fn ways(plan: &UpdatePlan) -> String {
    let mut alike: BTreeMap<(&str, String, String), Vec<&str>> = BTreeMap::new();
    for RolloutVeDetail { ve, .. } in &plan.ves {
        let result = match ve.state {
            RolloutVeState::Pending => "to move",
            state => state.as_str(),
        };
        let why = ve.why.clone().unwrap_or_else(|| NOTHING.to_owned());
        alike.entry((result, way(&ve.from, &ve.to), why)).or_default().push(ve.ve.as_str());
    }
    let columns = [
        Column::Number("VES"),
        Column::Text("RESULT"),
        Column::Text("MOVE"),
        Column::Text("WHY"),
        Column::Text("WHICH"),
    ];
    let rows = alike.into_iter().map(|((result, way, why), names)| {
        let which = match names.split_at_checked(SHOWN) {
            Some((shown, rest)) if !rest.is_empty() => {
                format!("{} and {} more", shown.join(" "), count(rest.len() as u64))
            }
            _ => names.join(" "),
        };
        vec![count(names.len() as u64), result.to_owned(), way, why, which]
    });
    table(&columns, rows)
}

/// What an update that has ended has done.
pub(crate) fn outcome(followed: &Rollout, details: &[RolloutVeDetail]) -> String {
    format!("{}{}", rollout(followed), warnings(details))
}

/// What somebody must know of, VE by VE.
fn warnings(details: &[RolloutVeDetail]) -> String {
    let mut text = String::new();
    for RolloutVeDetail { ve, report } in details {
        let Some(report) = report else { continue };
        let by = joined(&newer(report));
        let mut lines: Vec<String> = report.shadowed.iter().map(|file| hidden(file, &by)).collect();
        more(&mut lines);
        let mut stale: Vec<String> = report.stale_processes.iter().map(restart).collect();
        more(&mut stale);
        let mut notes = report.notes.clone();
        more(&mut notes);
        for line in lines.iter().chain(&stale).chain(&notes) {
            text.push_str(&format!("{}: {}\n", ve.ve, printable(line)));
        }
    }
    if text.is_empty() { text } else { format!("\n{text}") }
}

fn more(lines: &mut Vec<String>) {
    let rest = lines.len().saturating_sub(SHOWN);
    lines.truncate(SHOWN);
    if rest > 0 {
        lines.push(format!(
            "and {} more; `vzfs update show` with the update's number and the VE has all",
            count(rest as u64)
        ));
    }
}

/// The templates of the new stack that the old one did not have.
fn newer(report: &RebaseReport) -> Vec<TemplateSpec> {
    let new = report.to.iter().filter(|item| !report.from.contains(item));
    new.map(|item| item.spec.clone()).collect()
}

fn hidden(file: &Shadowed, by: &str) -> String {
    let what = match file.change {
        ChangeKind::Added => "adds",
        ChangeKind::Changed => "changes",
        ChangeKind::Deleted => "removes",
    };
    let why = match file.by {
        ShadowedBy::Changed => "the VE has its own",
        ShadowedBy::Removed => "the VE removed it",
        ShadowedBy::Directory => "a directory above it is the VE's own, or was removed",
    };
    let beside = file.beside.as_ref().map(|path| format!("; the update's is /{path}")).unwrap_or_default();
    format!("SHADOWED /{}: {by} {what} it, and {why}{beside}", file.path)
}

fn restart(process: &vzfs::api::StaleProcess) -> String {
    let files: Vec<_> = process.files.iter().take(3).map(|path| format!("/{path}")).collect();
    let rest = process.files.len().saturating_sub(files.len());
    let rest = if rest > 0 { format!(" and {} more", count(rest as u64)) } else { String::new() };
    format!("to restart: {} ({}) uses the old {}{rest}", process.command, process.pid, files.join(", "))
}

/// One VE of an update, with all that is known.
pub(crate) fn detail(detail: &RolloutVeDetail) -> String {
    let RolloutVeDetail { ve, report } = detail;
    let stack =
        |items: &[StackItem]| items.iter().map(|item| item.spec.to_string()).collect::<Vec<_>>().join(" ");
    let mut rows = vec![
        ("VE", ve.ve.to_string()),
        ("result", ve.state.as_str().to_owned()),
        ("from", stack(&ve.from)),
        ("to", stack(&ve.to)),
    ];
    rows.extend(ve.why.clone().map(|why| ("why", why)));
    rows.extend(ve.batch.map(|batch| ("batch", (batch + 1).to_string())));
    rows.extend(ve.finished.map(|time| ("finished", moment(time))));
    if let Some(report) = report {
        let (added, changed, removed) = (report.added, report.changed, report.removed);
        rows.push((
            "update",
            format!("{} added, {} changed, {} removed", count(added), count(changed), count(removed)),
        ));
        let millis = |micros: u64| format!("{}.{:03} ms", micros / 1000, micros % 1000);
        rows.push((
            "took",
            format!("{}, {} of them a pause", millis(report.micros), millis(report.pause_micros)),
        ));
    }
    if let Some(check) = &ve.check {
        let code = check.code.map_or("was ended".to_owned(), |code| format!("code {code}"));
        rows.push(("check", format!("{code} after {} ms", count(check.millis))));
    }
    let mut text = fields(rows);
    if let Some(report) = report {
        let by = joined(&newer(report));
        section(&mut text, "shadowed", report.shadowed.iter().map(|file| hidden(file, &by)));
        let merged = report.merged.iter().flat_map(|file| {
            let notes = file.notes.iter().map(|note| format!("  {note}"));
            std::iter::once(format!("/{} ({})", file.path, file.rule)).chain(notes)
        });
        section(&mut text, "merged", merged);
        section(&mut text, "notes", report.notes.iter().cloned());
        section(&mut text, "processes", report.stale_processes.iter().map(restart));
        let derived = report.generate.iter().map(|file| format!("/{}: {}", file.path, file.command));
        section(&mut text, "made anew", derived);
    }
    if let Some(check) = &ve.check {
        section(&mut text, "what the check printed", check.output.lines().map(str::to_owned));
    }
    text
}

fn section(text: &mut String, name: &str, lines: impl Iterator<Item = String>) {
    for (at, line) in lines.enumerate() {
        if at == 0 {
            text.push_str(&format!("\n{name}:\n"));
        }
        text.push_str(&format!("  {}\n", printable(&line)));
    }
}

/// The files of updates that VEs do not show.
pub(crate) fn shadows(all: &[VeShadows]) -> String {
    if all.is_empty() {
        return "no VE hides a file of an update\n".to_owned();
    }
    let columns = [
        Column::Text("VE"),
        Column::Text("FILE"),
        Column::Text("UPDATE"),
        Column::Number("NUMBER"),
        Column::Text("WHY"),
    ];
    let rows = all.iter().flat_map(|ve| {
        ve.files.iter().map(|file| {
            let why = match file.shadowed.by {
                ShadowedBy::Changed => "changed by the VE",
                ShadowedBy::Removed => "removed by the VE",
                ShadowedBy::Directory => "its directory is the VE's",
            };
            vec![
                ve.ve.to_string(),
                format!("/{}", file.shadowed.path),
                versions(file),
                file.rollout.to_string(),
                why.to_owned(),
            ]
        })
    });
    table(&columns, rows)
}

/// Which versions of templates made the difference.
pub(crate) fn versions(file: &ShadowedFile) -> String {
    format!("{} -> {}", joined(&file.from), joined(&file.to))
}
