//! From a request to a plan: which VEs, from which stack to which, in which batches.

use super::{UpdateError, Updates};
use crate::api::{
    RebaseReport, ReportSummary, RolloutOptions, RolloutVe, RolloutVeDetail, RolloutVeState, StackItem,
    UpdateMode, UpdatePlan, UpdateRequest,
};
use crate::store::{Events, Rebase, StoreError, VeStanding};
use crate::types::{Digest, TemplateRef};

/// Longest pause between batches, and longest time for a check: a slip of the finger should not wait for years.
const MAX_SECS: u64 = 30 * 86_400;

impl Updates {
    /// What an update would do; with [`UpdateMode::DryRun`] also to each VE's files.
    ///
    /// # Errors
    /// The request names what is not there, or contradicts itself.
    pub fn plan(&self, request: &UpdateRequest, events: &dyn Events) -> Result<UpdatePlan, UpdateError> {
        let ves = self.planned(request)?;
        let digest = digest(&ves);
        let dry_run = request.mode == UpdateMode::DryRun;
        let total = ves.len() as u64;
        let mut details = Vec::with_capacity(ves.len());
        for (done, ve) in (0..).zip(ves) {
            if self.is_closing() {
                return Err(UpdateError::Closing);
            }
            if dry_run {
                events.progress(done, Some(total), "VEs", "dry run");
            }
            details.push(match ve.state {
                RolloutVeState::Pending if dry_run => self.tried(ve, request)?,
                _ => RolloutVeDetail { ve, report: None },
            });
        }
        let batches = details.iter().filter_map(|detail| detail.ve.batch).max().map_or(0, |last| last + 1);
        Ok(UpdatePlan { digest, dry_run, batches, ves: details })
    }

    /// What moving a VE would do.
    fn tried(&self, mut ve: RolloutVe, request: &UpdateRequest) -> Result<RolloutVeDetail, UpdateError> {
        let how = Rebase { on_conflict: request.on_conflict, dry_run: true, report_key: None };
        let report: Option<RebaseReport> = match self.fleet.rebase(&ve.ve, &ve.to, how) {
            Ok(report) => Some(report),
            Err(StoreError::Closing) => return Err(UpdateError::Closing),
            Err(error) => {
                (ve.state, ve.why) = (RolloutVeState::Failed, Some(error.to_string()));
                None
            }
        };
        ve.summary = report.as_ref().map(ReportSummary::from);
        Ok(RolloutVeDetail { ve, report })
    }

    /// The VEs of a request with their batches, by batch and name.
    pub(super) fn planned(&self, request: &UpdateRequest) -> Result<Vec<RolloutVe>, UpdateError> {
        check(request)?;
        if request.check.is_some() {
            self.fleet
                .can_run()
                .map_err(|why| UpdateError::Invalid(format!("commands cannot be run in VEs: {why}")))?;
        }
        let members = self.chosen(request)?;
        let known = |wanted: &TemplateRef| members.iter().any(|member| has(&member.stack, wanted));
        if let Some(unknown) = request.templates.iter().find(|wanted| !known(wanted)) {
            let what = format!("none of the chosen VEs has a template {}", unknown.name);
            return Err(UpdateError::Invalid(what));
        }
        let named = !request.ves.is_empty();
        let ves = members.into_iter().map(|member| self.planned_ve(member, &request.templates, named));
        let mut ves = ves.collect::<Result<Vec<_>, _>>()?;
        into_batches(&mut ves, &RolloutOptions::from(request));
        Ok(ves)
    }

    fn chosen(&self, request: &UpdateRequest) -> Result<Vec<VeStanding>, UpdateError> {
        let members = self.fleet.members();
        if request.all {
            return if members.is_empty() {
                Err(UpdateError::Invalid("there are no VEs".to_owned()))
            } else {
                Ok(members)
            };
        }
        if let Some(selector) = &request.selector {
            let chosen: Vec<_> =
                members.into_iter().filter(|member| selector.matches(&member.labels)).collect();
            return if chosen.is_empty() {
                Err(UpdateError::Invalid(format!("no VE has the labels {selector}")))
            } else {
                Ok(chosen)
            };
        }
        if let Some(unknown) = request.ves.iter().find(|name| !members.iter().any(|m| m.name == **name)) {
            return Err(StoreError::UnknownVe(unknown.clone()).into());
        }
        Ok(members.into_iter().filter(|member| request.ves.contains(&member.name)).collect())
    }

    fn planned_ve(
        &self,
        member: VeStanding,
        templates: &[TemplateRef],
        named: bool,
    ) -> Result<RolloutVe, UpdateError> {
        let (own, others): (Vec<_>, Vec<_>) =
            templates.iter().cloned().partition(|wanted| has(&member.stack, wanted));
        if let (true, Some(other)) = (named, others.first()) {
            let what = format!("VE {} has no template {}", member.name, other.name);
            return Err(UpdateError::Invalid(what));
        }
        let with = |to: Vec<StackItem>, state, why| {
            RolloutVe::planned((member.name.clone(), member.id), (member.stack.clone(), to), state, why)
        };
        let stay = |state, why| with(member.stack.clone(), state, Some(why));
        if own.is_empty() && !templates.is_empty() {
            let why = "it has none of the templates".to_owned();
            return Ok(stay(RolloutVeState::Left, why));
        }
        Ok(match self.fleet.next_stack(&member.name, &own) {
            Ok(stack) if stack == member.stack => with(stack, RolloutVeState::Current, None),
            Ok(stack) => with(stack, RolloutVeState::Pending, None),
            Err(StoreError::Closing) => return Err(UpdateError::Closing),
            // What was asked for by name and version is nowhere: a slip of the finger.
            Err(StoreError::UnknownTemplate(unknown)) if own.contains(&unknown) => {
                return Err(StoreError::UnknownTemplate(unknown).into());
            }
            // Gone since the list was made.
            Err(StoreError::UnknownVe(_)) => {
                stay(RolloutVeState::Left, "it was removed meanwhile".to_owned())
            }
            Err(error) => stay(RolloutVeState::Blocked, error.to_string()),
        })
    }
}

fn has(stack: &[StackItem], wanted: &TemplateRef) -> bool {
    stack.iter().any(|item| item.spec.name == wanted.name)
}

fn check(request: &UpdateRequest) -> Result<(), UpdateError> {
    let ways = [!request.ves.is_empty(), request.all, request.selector.is_some()];
    let refuse = |why: &str| Err(UpdateError::Invalid(why.to_owned()));
    match ways.iter().filter(|way| **way).count() {
        0 => return refuse("no VEs are named: name some, or ask for all, or for those with certain labels"),
        1 => {}
        _ => return refuse("VEs are chosen by name, or by label, or all of them: one of the three"),
    }
    if request.batch == 0 {
        return refuse("a batch has at least one VE");
    }
    if request.check.as_ref().is_some_and(|check| check.trim().is_empty()) {
        return refuse("the check command is empty");
    }
    if request.pause_secs > MAX_SECS || !(1..=MAX_SECS).contains(&request.check_timeout_secs) {
        return refuse("a pause has at most 30 days, and a check from a second to 30 days");
    }
    let mut names: Vec<_> = request.templates.iter().map(|template| &template.name).collect();
    names.sort();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(UpdateError::Invalid(format!("template {} is named twice", twice[0])));
    }
    Ok(())
}

/// Puts the VEs that are to be moved into batches, and all in the order in which they are shown.
pub(super) fn into_batches(ves: &mut [RolloutVe], options: &RolloutOptions) {
    ves.sort_by(|a, b| a.ve.cmp(&b.ve));
    let to_move: Vec<_> = ves.iter_mut().filter(|ve| ve.state == RolloutVeState::Pending).collect();
    let canaries = options.canary.map_or(0, |portion| portion.of(to_move.len()));
    let batch = usize::try_from(options.batch.max(1)).unwrap_or(usize::MAX);
    for (at, ve) in to_move.into_iter().enumerate() {
        let number = match at.checked_sub(canaries) {
            None => 0,
            Some(after) => after / batch + usize::from(canaries > 0),
        };
        ve.batch = Some(u32::try_from(number).unwrap_or(u32::MAX));
    }
    ves.sort_by_key(|ve| (ve.batch.is_none(), ve.batch));
}

/// Names a plan by which VE goes from where to where.
pub(super) fn digest(ves: &[RolloutVe]) -> Digest {
    let mut text = String::new();
    for ve in ves.iter().filter(|ve| ve.batch.is_some()) {
        text.push_str(&ve.id.to_string());
        for (sign, stack) in [('<', &ve.from), ('>', &ve.to)] {
            for item in stack {
                text.push_str(&format!("{sign}{}={}", item.spec, item.layer));
            }
        }
        text.push('\n');
    }
    Digest::of(text.as_bytes())
}
