//! What belongs to a move after it: derived files, programs that need a restart, what is shadowed, the check.

use std::collections::BTreeMap;
use std::time::Duration;

use super::run::Halt;
use super::{Ran, Updates};
use crate::api::{
    CheckResult, RebaseReport, ReportSummary, RolloutOptions, RolloutState, RolloutVe, RolloutVeState,
    StaleProcess,
};
use crate::types::{VeId, VeName};

/// How long making a derived file anew may take.
const GENERATE_LIMIT: Duration = Duration::from_secs(300);
/// What is said of a VE whose check nobody waited for.
const UNCHECKED: &str = "not checked, as the update was stopped";

impl Updates {
    /// Gives a VE that was moved its result. Everything here may be done again after a crash.
    pub(super) fn settle(
        &self,
        id: u64,
        at: usize,
        stale: &BTreeMap<VeId, Vec<StaleProcess>>,
    ) -> Result<(), Halt> {
        let (mut ve, options) = {
            let state = self.state.lock();
            let Some(live) = state.rollouts.get(&id) else { return Ok(()) };
            let Some(ve) = live.ves.get(at) else { return Ok(()) };
            (ve.clone(), live.head.options.clone())
        };
        let mut report = self.journal.report(id, ve.id)?;
        let Some(member) = self.fleet.member(ve.id) else {
            let why = "it was moved, and removed before it was looked at".to_owned();
            return self.conclude(id, at, ve, RolloutVeState::Left, why);
        };
        let has_commands =
            options.check.is_some() || report.as_ref().is_some_and(|report| !report.generate.is_empty());
        if has_commands && member.mounted.is_none() && !member.wanted && !ve.mounted_for_commands {
            ve.mounted_for_commands = true;
            self.keep_ve(id, at, ve.clone(), None)?;
        }
        if let Some(report) = &mut report {
            self.generate(&member.name, report)?;
            if let Some(found) = stale.get(&ve.id) {
                report.stale_processes.clone_from(found);
            }
            ve.summary = Some(ReportSummary::from(&*report));
            self.remember_shadows(id, ve.id, report)?;
        }
        let (state, why) = match &options.check {
            Some(_) if self.has_stopped(id) => (RolloutVeState::Done, Some(UNCHECKED.to_owned())),
            Some(check) => self.check(id, &member.name, check, &options, &mut ve)?,
            None => (RolloutVeState::Done, None),
        };
        if ve.mounted_for_commands {
            match self.fleet.unmount(&member.name) {
                Ok(()) => ve.mounted_for_commands = false,
                Err(error) => tracing::warn!(update = id, ve = %ve.ve, %error, "a VE stays mounted"),
            }
        }
        ve.state = state;
        // What is known already of how it was moved stays where nothing is to be added.
        ve.why = why.or(ve.why);
        ve.finished = Some(self.fleet.now());
        self.keep_ve(id, at, ve, report.as_ref())
    }

    fn generate(&self, name: &VeName, report: &mut RebaseReport) -> Result<(), Halt> {
        let mut by_command: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for derived in &report.generate {
            by_command.entry(&derived.command).or_default().push(&derived.path);
        }
        let mut notes = Vec::new();
        for (command, paths) in by_command {
            let failed = match self.run(name, command, GENERATE_LIMIT, &|| self.is_closing())? {
                Ok(Ran { code: Some(0), .. }) => continue,
                Ok(ran) => told(&ran, GENERATE_LIMIT),
                Err(why) => why,
            };
            let paths = paths.iter().map(|path| format!("/{path}")).collect::<Vec<_>>().join(", ");
            notes.push(format!("{paths} may be out of date: `{command}` {failed}"));
        }
        // After a crash they may be there already.
        notes.retain(|note| !report.notes.contains(note));
        report.notes.append(&mut notes);
        Ok(())
    }

    /// Whether somebody has ended the rollout: then nobody waits for checks.
    fn has_stopped(&self, id: u64) -> bool {
        let state = self.state.lock();
        state.rollouts.get(&id).is_none_or(|live| live.head.state == RolloutState::Stopped)
    }

    fn check(
        &self,
        id: u64,
        name: &VeName,
        command: &str,
        options: &RolloutOptions,
        ve: &mut RolloutVe,
    ) -> Result<(RolloutVeState, Option<String>), Halt> {
        let limit = Duration::from_secs(options.check_timeout_secs);
        let give_up = || self.is_closing() || self.has_stopped(id);
        let (result, why) = match self.run(name, command, limit, &give_up)? {
            Ok(Ran { code: None, .. }) if self.has_stopped(id) => {
                return Ok((RolloutVeState::Done, Some(UNCHECKED.to_owned())));
            }
            Ok(ran) => {
                let millis = u64::try_from(ran.took.as_millis()).unwrap_or(u64::MAX);
                let (code, timed_out) = (ran.code, ran.code.is_none());
                let why = (code != Some(0)).then(|| format!("the check {}", told(&ran, limit)));
                (CheckResult { code, output: ran.output, timed_out, millis }, why)
            }
            Err(error) => {
                let result = CheckResult { code: None, output: error.clone(), timed_out: false, millis: 0 };
                (result, Some(format!("the check {error}")))
            }
        };
        ve.check = Some(result);
        let state = if why.is_none() { RolloutVeState::Done } else { RolloutVeState::CheckFailed };
        Ok((state, why))
    }

    fn run(
        &self,
        name: &VeName,
        command: &str,
        limit: Duration,
        give_up: &(dyn Fn() -> bool + Sync),
    ) -> Result<Result<Ran, String>, Halt> {
        let ran = self.fleet.run(name, command, limit, give_up);
        // What was ended because the daemon ends says nothing about the VE.
        if self.is_closing() {
            return Err(Halt::Closing);
        }
        Ok(ran.map_err(|error| format!("could not be run: {error}")))
    }
}

/// How a command ended that did not end well.
fn told(ran: &Ran, limit: Duration) -> String {
    let how = match ran.code {
        Some(code) => format!("ended with code {code}"),
        None => format!("took longer than {} s and was ended", limit.as_secs()),
    };
    match ran.output.lines().rev().find(|line| !line.trim().is_empty()) {
        Some(last) => format!("{how}: {}", last.trim()),
        None => how,
    }
}
