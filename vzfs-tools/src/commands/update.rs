//! `vzfs update`.

use std::collections::HashSet;
use std::io::{self, BufRead, IsTerminal};
use std::time::{Duration, Instant};

use vzfs::api::{
    Removed, RollbackRequest, Rollout, RolloutState, RolloutVeDetail, RolloutVeState, UpdateMode, UpdatePlan,
    UpdateRequest,
};

use super::Context;
use super::update_text::{detail, history, outcome, planned, rollout};
use crate::cli::{Format, StartArgs, UpdateArgs, UpdateCommand};
use crate::error::{Exit, Failure, Result};
use crate::output::plural;

/// How long a daemon that went away may take to come back while an update is followed.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long an update that takes itself back may need to begin with that.
const BEGINNING: Duration = Duration::from_secs(5);
/// Between two attempts to reach it.
const RETRY: Duration = Duration::from_millis(200);

/// Runs one of the update commands.
pub(crate) fn run(context: &Context, arguments: UpdateArgs) -> Result<()> {
    let Some(command) = arguments.command else { return update(context, arguments.start) };
    let steer = |id: u64, what: &str| -> Result<Rollout> {
        context.client.post(&format!("/v1/updates/{id}/{what}"), &())
    };
    match command {
        UpdateCommand::Status => status(context),
        UpdateCommand::History => {
            let all: Vec<Rollout> = context.client.get("/v1/updates")?;
            context.output.show(&all, |all| history(all))
        }
        UpdateCommand::Show { id, ve: None } => context.output.show(&get(context, id)?, rollout),
        UpdateCommand::Show { id, ve: Some(ve) } => {
            let found: RolloutVeDetail = context.client.get(&format!("/v1/updates/{id}/ves/{ve}"))?;
            context.output.show(&found, detail)
        }
        UpdateCommand::Follow { id } => {
            // A daemon that cannot be reached at all is not waited for.
            get(context, id)?;
            follow_to_the_end(context, id)
        }
        UpdateCommand::Pause { id } => {
            let paused = steer(id, "pause")?;
            context.output.done(&paused, |_| {
                format!("update {id} is paused; `vzfs update resume {id}` goes on with it")
            })
        }
        UpdateCommand::Resume { id, detach } => begun(context, &steer(id, "resume")?, detach),
        UpdateCommand::Stop { id } => {
            let stopped = steer(id, "stop")?;
            context.output.done(&stopped, |stopped| {
                let moved = stopped.ves.iter().filter(|ve| ve.state.is_moved()).count();
                format!(
                    "update {id} has stopped after {}; `vzfs update rollback {id}` takes them back",
                    plural(moved as u64, "VE")
                )
            })
        }
        UpdateCommand::Rollback { id, ves, detach } => {
            let request = RollbackRequest { ves };
            let back: Rollout = context.client.post(&format!("/v1/updates/{id}/rollback"), &request)?;
            begun(context, &back, detach)
        }
        UpdateCommand::Forget { id } => {
            let removed: Removed = context.client.delete(&format!("/v1/updates/{id}"))?;
            context.output.done(&removed, |removed| format!("{} is forgotten", removed.removed))
        }
    }
}

fn get(context: &Context, id: u64) -> Result<Rollout> {
    context.client.get(&format!("/v1/updates/{id}"))
}

/// The updates that are not finished, or the last one.
fn status(context: &Context) -> Result<()> {
    let all: Vec<Rollout> = context.client.get("/v1/updates")?;
    let mut shown: Vec<u64> = all.iter().filter(|r| r.head.state.is_active()).map(|r| r.head.id).collect();
    if shown.is_empty() {
        shown.extend(all.first().map(|last| last.head.id));
    }
    let shown = shown.into_iter().map(|id| get(context, id)).collect::<Result<Vec<_>>>()?;
    context.output.show(&shown, |shown| match shown.as_slice() {
        [] => "there was no update\n".to_owned(),
        shown => shown.iter().map(rollout).collect::<Vec<_>>().join("\n"),
    })
}

fn update(context: &Context, arguments: StartArgs) -> Result<()> {
    if arguments.ves.is_empty() && !arguments.all && arguments.selector.is_none() {
        return Err(Failure::new(Exit::Usage, "no VEs are named")
            .with_hint("name some, or add --all, or --selector KEY=VALUE"));
    }
    let request = UpdateRequest {
        ves: arguments.ves,
        all: arguments.all,
        selector: arguments.selector,
        templates: arguments.templates,
        mode: if arguments.dry_run { UpdateMode::DryRun } else { UpdateMode::Plan },
        plan: None,
        canary: Some(arguments.canary),
        batch: arguments.batch,
        pause_secs: arguments.pause,
        check: arguments.check,
        check_timeout_secs: arguments.check_timeout,
        on_conflict: arguments.on_conflict.into(),
        max_failures: arguments.max_failures,
        rollback_on_failure: arguments.rollback_on_failure,
    };
    let progress = context.progress();
    let plan: UpdatePlan = context.client.events("/v1/updates", Some(&request), &progress)?;
    drop(progress);
    let to_move = plan.ves.iter().filter(|detail| detail.ve.state == RolloutVeState::Pending).count() as u64;
    if arguments.dry_run || to_move == 0 {
        context.output.show(&plan, planned)?;
        return complete(&plan);
    }
    if !arguments.yes {
        confirm(&plan, to_move)?;
    }
    // What was asked is what is done; who did not want to be asked takes what there is.
    let plan = (!arguments.yes).then_some(plan.digest);
    let request = UpdateRequest { mode: UpdateMode::Start, plan, ..request };
    let progress = context.progress();
    let rollout: Rollout = context.client.events("/v1/updates", Some(&request), &progress)?;
    drop(progress);
    begun(context, &rollout, arguments.detach)
}

/// A plan that leaves VEs behind, or would fail for some, is not what was asked for.
fn complete(plan: &UpdatePlan) -> Result<()> {
    let behind = |detail: &&RolloutVeDetail| {
        detail.ve.state.is_failure() || detail.ve.state == RolloutVeState::Blocked
    };
    match plan.ves.iter().filter(behind).count() as u64 {
        0 => Ok(()),
        count => Err(Failure::new(Exit::Incomplete, format!("{} cannot be updated", plural(count, "VE")))),
    }
}

/// Shows the plan and asks, on the terminal.
fn confirm(plan: &UpdatePlan, to_move: u64) -> Result<()> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::new(Exit::Usage, "nobody can be asked: this is not a terminal")
            .with_hint("add --yes, or --dry-run to see what would be done"));
    }
    eprint!("{}\nUpdate {}? [y/N] ", planned(plan), plural(to_move, "VE"));
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(|e| Failure::io("cannot read the answer", &e))?;
    if matches!(answer.trim().to_lowercase().as_str(), "y" | "yes") {
        return Ok(());
    }
    Err(Failure::new(Exit::Failure, "nothing was changed"))
}

/// An update that runs: followed, unless that is not wanted.
fn begun(context: &Context, rollout: &Rollout, detach: bool) -> Result<()> {
    let id = rollout.head.id;
    if detach {
        return context.output.done(rollout, |_| {
            format!("update {id} runs in the daemon; `vzfs update follow {id}` follows it")
        });
    }
    follow_to_the_end(context, id)
}

fn follow_to_the_end(context: &Context, id: u64) -> Result<()> {
    let followed = follow(context, id).map_err(|failure| match failure.exit {
        Exit::Interrupted => Failure {
            message: format!("update {id} goes on in the daemon"),
            hint: Some(format!(
                "`vzfs update follow {id}` follows it, `vzfs update pause {id}` pauses it, `vzfs update rollback {id}` takes it back"
            )),
            ..failure
        },
        _ => failure,
    })?;
    let followed = if followed.head.must_roll_back { follow_back(context, followed)? } else { followed };
    let details = match context.output.format {
        Format::Json => Vec::new(),
        Format::Table => worth_telling(context, &followed)?,
    };
    context.output.show(&followed, |followed| outcome(followed, &details))?;
    verdict(&followed)
}

/// An update that takes itself back is at its end when that is.
fn follow_back(context: &Context, stopped: Rollout) -> Result<Rollout> {
    let id = stopped.head.id;
    let begin = Instant::now();
    while begin.elapsed() < BEGINNING {
        if let Some(back) = get(context, id)?.rolled_back_by.last() {
            follow(context, *back)?;
            return get(context, id);
        }
        std::thread::sleep(RETRY);
    }
    // There was nothing to take back.
    Ok(stopped)
}

/// Follows an update as long as it runs, also when the daemon is stopped and started meanwhile.
fn follow(context: &Context, id: u64) -> Result<Rollout> {
    let progress = context.progress();
    let mut told = HashSet::new();
    let mut lost: Option<Instant> = None;
    loop {
        let before = told.len();
        // Each time it tells of all that are finished.
        let followed = context.client.follow(&format!("/v1/updates/{id}/follow"), &progress, &mut |line| {
            if told.insert(line.to_owned()) {
                progress.log(line);
            }
        });
        match followed {
            Err(failure) if matches!(failure.exit, Exit::Failure | Exit::Unreachable) => {
                if told.len() > before {
                    lost = None;
                }
                if lost.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                    return Err(failure);
                }
                std::thread::sleep(RETRY);
            }
            followed => return followed,
        }
    }
}

/// The VEs of which more is to be said than their line in the table.
fn worth_telling(context: &Context, rollout: &Rollout) -> Result<Vec<RolloutVeDetail>> {
    let more = |ve: &&vzfs::api::RolloutVe| {
        ve.summary.is_some_and(|sum| sum.shadowed + sum.stale_processes + sum.notes > 0)
    };
    let ask = |ve: &vzfs::api::RolloutVe| {
        context.client.get(&format!("/v1/updates/{}/ves/{}", rollout.head.id, ve.ve))
    };
    rollout.ves.iter().filter(more).map(ask).collect()
}

/// The exit code of an update that was followed to its end.
fn verdict(rollout: &Rollout) -> Result<()> {
    let (id, counts) = (rollout.head.id, rollout.counts);
    let incomplete = |what: String| Err(Failure::new(Exit::Incomplete, what));
    let back = rollout.rolled_back_by.last();
    match rollout.head.state {
        RolloutState::Done if counts.failed + counts.blocked == 0 => Ok(()),
        RolloutState::Done => {
            let behind = plural(counts.failed + counts.blocked, "VE");
            incomplete(format!("update {id} is done, without {behind}"))
        }
        state => {
            let why = rollout.head.why.as_deref().unwrap_or("by request");
            let what = format!("update {id} is {}: {why}", state.as_str());
            let hint = match back {
                Some(back) => format!("update {back} takes it back: `vzfs update show {back}`"),
                None => format!(
                    "`vzfs update resume {id}` goes on with it, `vzfs update rollback {id}` takes it back"
                ),
            };
            incomplete(what).map_err(|failure| failure.with_hint(hint))
        }
    }
}
