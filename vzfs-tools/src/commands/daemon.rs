//! `vzfs daemon`.

use std::time::{Duration, Instant};

use vzfs::api::{DaemonStatus, Metric, SandboxStatus, exposition};

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
    rows.extend(status.ready_after_ms.map(|ms| ("ready after", format!("{} ms", count(ms)))));
    rows.push(("started again", format!("{} times", count(status.restarts))));
    rows.extend(status.sandbox.map(|status| ("sandbox", sandbox(status).to_owned())));
    fields(rows)
}

/// What is in force, in words.
fn sandbox(status: SandboxStatus) -> &'static str {
    match (status.capabilities_limited, status.system_calls_filtered) {
        (true, true) => "capabilities are limited, system calls are filtered",
        (true, false) => "capabilities are limited, system calls are not filtered",
        (false, true) => "capabilities are not limited, system calls are filtered",
        (false, false) => "off",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_what_is_in_force_and_nothing_of_what_it_was_not_told() {
        let told = r#"{"version": "1", "pid": 2, "supervisor_pid": 1, "restarts": 0}"#;
        let mut status: DaemonStatus = serde_json::from_str(told).expect("of a daemon before the sandbox");
        assert!(!show(&status).contains("sandbox"), "{}", show(&status));
        status.sandbox = Some(SandboxStatus { capabilities_limited: true, system_calls_filtered: false });
        assert!(
            show(&status).contains("capabilities are limited, system calls are not"),
            "{}",
            show(&status)
        );
        status.sandbox = Some(SandboxStatus { capabilities_limited: false, system_calls_filtered: false });
        assert!(show(&status).lines().any(|line| line.starts_with("sandbox") && line.ends_with("off")));
    }
}
