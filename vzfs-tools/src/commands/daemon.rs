//! `vzfs daemon`.

use std::time::{Duration, Instant};

use vzfs::api::{DaemonStatus, Metric, exposition};

use super::Context;
use crate::cli::DaemonCommand;
use crate::error::{Exit, Failure, Result};
use crate::output::{count, fields, moment};

/// How long a successor may take to answer. It takes over mounts in milliseconds each.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs one of the daemon commands.
pub(crate) fn run(context: &Context, command: &DaemonCommand) -> Result<()> {
    let status = match command {
        DaemonCommand::Status => context.client.get::<DaemonStatus>("/v1/daemon")?,
        DaemonCommand::Restart => restart(context)?,
        DaemonCommand::Metrics => {
            let metrics: Vec<Metric> = context.client.get("/v1/metrics")?;
            return context.output.show(&metrics, |metrics| exposition(metrics));
        }
    };
    context.output.show(&status, show)
}

/// Returns when the successor answers.
fn restart(context: &Context) -> Result<DaemonStatus> {
    let before: DaemonStatus = context.client.post("/v1/daemon/restart", &())?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match context.client.get::<DaemonStatus>("/v1/daemon") {
            Ok(now) if now.pid != before.pid => return Ok(now),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Ok(_) if Instant::now() >= deadline => {
                return Err(Failure::new(Exit::Refused, format!("daemon {} does not end", before.pid)));
            }
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn show(status: &DaemonStatus) -> String {
    let mut rows = vec![
        ("version", status.version.clone()),
        ("process", status.pid.to_string()),
        ("supervisor", format!("process {}", status.supervisor_pid)),
    ];
    rows.extend(status.started.map(|started| ("running since", moment(started))));
    rows.push(("started again", format!("{} times", count(status.restarts))));
    fields(rows)
}
