//! `vzfs store`.

use vzfs::api::{CheckStatus, Doctor, GcReport, GcRequest, StoreInfo};

use super::Context;
use crate::cli::StoreCommand;
use crate::error::Result;
use crate::output::{Column, NOTHING, count, fields, moment, plural, size, table};

/// Runs one of the store commands.
pub(crate) fn run(context: &Context, command: &StoreCommand) -> Result<()> {
    match command {
        StoreCommand::Info => context.output.show(&context.client.get::<StoreInfo>("/v1/store")?, info),
        StoreCommand::Doctor => {
            context.output.show(&context.client.get::<Doctor>("/v1/store/doctor")?, doctor)
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
