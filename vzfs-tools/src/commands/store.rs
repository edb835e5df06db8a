//! `vzfs store`.

use vzfs::api::{
    CheckStatus, DamagedThing, DedupReport, DedupRequest, DedupStatus, Doctor, GcReport, GcRequest, StoreDf,
    StoreInfo, StoreVerifyReport, VeDf, VerifyStatus, VerifyStore,
};

use super::{Context, absolute};
use crate::cli::StoreCommand;
use crate::error::{Exit, Failure, Result};
use crate::output::{Column, NOTHING, count, counts, fields, moment, plural, printable, size, table};

/// Runs one of the store commands.
pub(crate) fn run(context: &Context, command: &StoreCommand) -> Result<()> {
    match command {
        StoreCommand::Info => context.output.show(&context.client.get::<StoreInfo>("/v1/store")?, info),
        StoreCommand::Doctor => {
            context.output.show(&context.client.get::<Doctor>("/v1/store/doctor")?, doctor)
        }
        StoreCommand::Df => context.output.show(&context.client.get::<StoreDf>("/v1/store/df")?, df),
        StoreCommand::Verify { status: true, .. } => {
            let status: VerifyStatus = context.client.get("/v1/store/verify")?;
            context.output.show(&status, verify_status)?;
            status.last.as_ref().map_or(Ok(()), damage_left)
        }
        StoreCommand::Verify { repair, .. } => {
            let source = repair.as_ref().and_then(|source| source.as_deref());
            let request =
                VerifyStore { repair: source.map(absolute).transpose()?, rebuild: repair.is_some() };
            let progress = context.progress();
            let report: StoreVerifyReport =
                context.client.events("/v1/store/verify", Some(&request), &progress)?;
            drop(progress);
            if report.damaged.is_empty() && report.private.is_empty() {
                return context.output.done(&report, verified);
            }
            context.output.show(&report, verified)?;
            damage_left(&report)
        }
        StoreCommand::Dedup { status: true, .. } => {
            context.output.show(&context.client.get::<DedupStatus>("/v1/store/dedup")?, dedup_status)
        }
        StoreCommand::Dedup { ves, dry_run, min_size, quiet_for, .. } => {
            let request = DedupRequest {
                ves: ves.clone(),
                dry_run: *dry_run,
                min_bytes: *min_size,
                quiet_secs: *quiet_for,
            };
            let progress = context.progress();
            let report: DedupReport = context.client.events("/v1/store/dedup", Some(&request), &progress)?;
            drop(progress);
            if *dry_run {
                context.output.show(&report, deduplicated)
            } else {
                context.output.done(&report, deduplicated)
            }
        }
        StoreCommand::Gc { dry_run } => {
            let request = GcRequest { dry_run: *dry_run };
            let progress = context.progress();
            let report: GcReport = context.client.events("/v1/store/gc", Some(&request), &progress)?;
            drop(progress);
            if *dry_run {
                context.output.show(&report, collected)
            } else {
                context.output.done(&report, collected)
            }
        }
    }
}

fn df(df: &StoreDf) -> String {
    let mut text = table(
        &space_columns("TEMPLATE"),
        df.templates.iter().map(|t| {
            let sizes = [t.logical_bytes, t.unique_bytes, t.shared_bytes, t.saved_bytes];
            space_row(t.template.to_string(), sizes)
        }),
    );
    text.push('\n');
    text.push_str(&ve_space(&df.ves));
    text.push('\n');
    text.push_str(&fields([
        ("logical", size(df.logical_bytes)),
        ("on disk", size(df.disk_bytes)),
        ("saved", size(df.saved_bytes)),
        ("blobs", size(df.blob_bytes)),
        ("trees", size(df.tree_bytes)),
        ("private data", size(df.private_bytes)),
    ]));
    text
}

/// The table of `ve df`, and a part of that of `store df`.
pub(crate) fn ve_space(ves: &[VeDf]) -> String {
    let rows = ves.iter().map(|ve| {
        let sizes = [ve.logical_bytes, ve.unique_bytes, ve.shared_bytes, ve.saved_bytes];
        space_row(ve.ve.to_string(), sizes)
    });
    table(&space_columns("VE"), rows)
}

fn space_columns(name: &'static str) -> [Column; 5] {
    [
        Column::Text(name),
        Column::Number("LOGICAL"),
        Column::Number("UNIQUE"),
        Column::Number("SHARED"),
        Column::Number("SAVED"),
    ]
}

fn space_row(name: String, sizes: [u64; 4]) -> Vec<String> {
    std::iter::once(name).chain(sizes.map(size)).collect()
}

fn damage_left(report: &StoreVerifyReport) -> Result<()> {
    match report.unrepaired() {
        0 => Ok(()),
        left => {
            let what = format!("the store is damaged: {}", plural(left as u64, "thing"));
            Err(Failure::new(Exit::Damage, what).with_hint(
                "repair it with `vzfs store verify --repair SOURCE`, from what a template was made of",
            ))
        }
    }
}

fn verified(report: &StoreVerifyReport) -> String {
    let mut text = format!(
        "{} and {} read, {}; {} looked through: ",
        plural(report.blobs, "blob"),
        plural(report.trees, "tree"),
        size(report.bytes),
        plural(report.ves, "VE"),
    );
    let found = report.damaged.len() + report.private.len();
    if found == 0 {
        text.push_str("no damage\n");
        return text;
    }
    text.push_str(&format!("{found} DAMAGED, {} of them repaired\n", found - report.unrepaired()));
    for damage in &report.damaged {
        let what = match damage.what {
            DamagedThing::Blob => "content",
            DamagedThing::Tree => "tree",
        };
        let state = if damage.repaired { "repaired" } else { "damaged" };
        text.push_str(&format!("{what} {} {state}: {}\n", damage.digest.short(), printable(&damage.why)));
        for user in &damage.users {
            text.push_str(&format!("  {}\n", printable(&user.to_string())));
        }
        if damage.users.is_empty() {
            text.push_str("  nothing needs it; `vzfs store gc` removes it\n");
        }
    }
    for damage in &report.private {
        let path = damage.path.as_ref().map(|path| format!(" /{path}")).unwrap_or_default();
        text.push_str(&printable(&format!("VE {}{path}: {}", damage.ve, damage.why)));
        text.push('\n');
    }
    text
}

fn verify_status(status: &VerifyStatus) -> String {
    let mut text = match &status.running {
        Some(running) => format!(
            "running since {}: {} of {}\n",
            moment(running.started),
            size(running.done_bytes),
            size(running.total_bytes)
        ),
        None => "no check is running\n".to_owned(),
    };
    match &status.last {
        Some(last) => {
            text.push_str(&format!(
                "last check from {} to {}: ",
                moment(last.started),
                moment(last.finished)
            ));
            text.push_str(&verified(last));
        }
        None => text.push_str("the store was never checked\n"),
    }
    text
}

fn deduplicated(report: &DedupReport) -> String {
    let mut text = format!(
        "{} {}: {} of {} shared, {} freed, {} with {} for them\n",
        size(report.saved_bytes),
        if report.dry_run { "would be saved" } else { "saved" },
        plural(report.shared_files, "file"),
        plural(report.files, "private file"),
        size(report.freed_bytes),
        plural(report.new_blobs, "new blob"),
        size(report.new_blob_bytes),
    );
    text.push_str(&format!("{} read, {}; ", plural(report.hashed_files, "file"), size(report.hashed_bytes)));
    let skipped = report.skipped;
    let told = counts(&[
        (skipped.small, "small"),
        (skipped.sparse, "sparse"),
        (skipped.recent, "changed not long ago"),
        (skipped.open, "in use"),
        (skipped.changed, "changed meanwhile"),
        (skipped.unreadable, "UNREADABLE"),
    ]);
    let told = if told.is_empty() { "none" } else { &told };
    text.push_str(&format!("left alone: {told}\n"));
    if report.longest_pause_us > 0 {
        text.push_str(&format!("longest pause of a VE: {} us\n", count(report.longest_pause_us)));
    }
    text
}

fn dedup_status(status: &DedupStatus) -> String {
    let mut text = match &status.running {
        Some(running) => format!(
            "running since {}: {} looked at, {} read, {} shared\n",
            moment(running.started),
            plural(running.files, "private file"),
            size(running.hashed_bytes),
            count(running.shared_files),
        ),
        None => "no search is running\n".to_owned(),
    };
    match &status.last {
        Some(last) => {
            let (from, to) = (moment(last.started), moment(last.finished));
            text.push_str(&format!("last search from {from} to {to}: {}", deduplicated(last)));
        }
        None => text.push_str("there was no search of all VEs yet\n"),
    }
    text
}

fn collected(report: &GcReport) -> String {
    format!(
        "{} {}: {} ({}), {} ({}), {} ({})\n",
        size(report.freed_bytes),
        if report.dry_run { "would be freed" } else { "freed" },
        plural(report.blobs, "blob"),
        size(report.blob_bytes),
        plural(report.trees, "tree"),
        size(report.tree_bytes),
        plural(report.files, "stray file"),
        size(report.file_bytes),
    )
}

fn info(info: &StoreInfo) -> String {
    let yes_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let mut rows = vec![
        ("store", info.store.display().to_string()),
        ("format", info.format.to_string()),
        ("daemon", format!("version {}, process {}", info.version, info.pid)),
    ];
    rows.extend(info.started.map(|started| ("running since", moment(started))));
    rows.extend([
        ("templates", count(info.templates)),
        ("VEs", format!("{}, {} mounted", count(info.ves), count(info.mounted))),
        ("bases", count(info.bases)),
        ("shared files", format!("{}, {}", count(info.blobs), size(info.blob_bytes))),
        ("trees", size(info.tree_bytes)),
        ("private data", size(info.private_bytes)),
    ]);
    rows.extend(info.free_bytes.map(|free| ("free space", size(free))));
    rows.extend(info.passthrough.map(|yes| ("passthrough", yes_no(yes))));
    let checked = |when| match info.damaged {
        0 => format!("{}, no damage", moment(when)),
        damaged => format!("{}, {} DAMAGED", moment(when), count(damaged)),
    };
    rows.push(("last check", info.verified.map_or("never".to_owned(), checked)));
    fields(rows)
}

fn doctor(doctor: &Doctor) -> String {
    let rows = doctor.checks.iter().map(|check| {
        let status = match check.status {
            CheckStatus::Ok => "ok",
            CheckStatus::Degraded => "degraded",
            CheckStatus::Missing => "MISSING",
        };
        let cost = if check.cost.is_empty() { NOTHING } else { &check.cost };
        [&check.name, status, &check.found, cost].map(str::to_owned).to_vec()
    });
    table(&[Column::Text("CHECK"), Column::Text("STATUS"), Column::Text("FOUND"), Column::Text("COST")], rows)
}
