//! What is shown of rollouts, and following them.

use std::collections::HashSet;
use std::time::Duration;

use super::state::{Live, State};
use super::{UpdateError, Updates};
use crate::api::{Rollout, RolloutCounts, RolloutState, RolloutVe, RolloutVeDetail};
use crate::store::Events;
use crate::types::{VeId, VeName};

/// How often a follower looks whether anybody still listens.
const LOOK: Duration = Duration::from_millis(500);
/// The least time between two looks.
const BREATH: Duration = Duration::from_millis(50);

impl Updates {
    /// All rollouts, the newest first, without their VEs.
    pub fn rollouts(&self) -> Vec<Rollout> {
        let state = self.state.lock();
        state.rollouts.values().rev().map(|live| shown(&state, live, false)).collect()
    }

    /// A rollout with its VEs.
    ///
    /// # Errors
    /// There is none of that number.
    pub fn rollout(&self, id: u64) -> Result<Rollout, UpdateError> {
        let state = self.state.lock();
        let live = state.rollouts.get(&id).ok_or(UpdateError::Unknown(id))?;
        Ok(shown(&state, live, true))
    }

    /// Everything that is known of one VE of a rollout.
    ///
    /// # Errors
    /// There is no such rollout, or it has no VE that had that name.
    pub fn rollout_ve(&self, id: u64, ve: &VeName) -> Result<RolloutVeDetail, UpdateError> {
        let row = {
            let state = self.state.lock();
            let live = state.rollouts.get(&id).ok_or(UpdateError::Unknown(id))?;
            live.ves.iter().find(|row| row.ve == *ve).cloned()
        };
        let ve = row.ok_or_else(|| UpdateError::UnknownVe { id, ve: ve.clone() })?;
        let report = self.journal.report(id, ve.id)?;
        Ok(RolloutVeDetail { ve, report })
    }

    /// Tells of a rollout while it runs: a line for each VE that was to be moved and has its result, once each. Returns when it does not run any more, or when nobody listens.
    ///
    /// # Errors
    /// There is none of that number; the daemon ends.
    pub fn follow(&self, id: u64, events: &dyn Events) -> Result<Rollout, UpdateError> {
        let mut told = HashSet::new();
        loop {
            let (running, counts, step, news) = {
                let state = self.state.lock();
                let live = state.rollouts.get(&id).ok_or(UpdateError::Unknown(id))?;
                let running = live.shown_state() == RolloutState::Running;
                (running, RolloutCounts::of(&live.ves), step(live), lines(live, &mut told))
            };
            for line in &news {
                events.log(line);
            }
            events.progress(counts.done + counts.failed, Some(counts.to_move), "VEs", step);
            if !running || events.is_gone() {
                return self.rollout(id);
            }
            // Nobody reads faster, and each look goes through all VEs.
            std::thread::sleep(BREATH);
            let mut state = self.state.lock();
            if self.is_closing() {
                return Err(UpdateError::Closing);
            }
            let news = state.rollouts.get(&id).is_some_and(|live| {
                live.shown_state() != RolloutState::Running || finished(live).count() > told.len()
            });
            if !news {
                self.changed.wait_for(&mut state, LOOK);
            }
        }
    }
}

fn shown(state: &State, live: &Live, with_ves: bool) -> Rollout {
    let mut head = live.head.clone();
    head.state = live.shown_state();
    if head.state != live.head.state {
        head.why.clone_from(&live.halted);
    }
    Rollout {
        rolled_back_by: state.rolled_back_by(head.id),
        batches: live.ves.iter().filter_map(|ve| ve.batch).max().map_or(0, |last| last + 1),
        batch: live.open_batch().filter(|_| head.state.is_active()),
        counts: RolloutCounts::of(&live.ves),
        ves: if with_ves { live.ves.clone() } else { Vec::new() },
        head,
    }
}

fn step(live: &Live) -> &'static str {
    let pausing = |batch| live.head.wait.is_some_and(|wait| wait.before_batch == batch);
    match live.open_batch() {
        Some(batch) if pausing(batch) && !live.has_begun(batch) => "pausing",
        Some(0) if live.head.options.canary.is_some() => "canaries",
        _ => "updating",
    }
}

/// The VEs that have been worked on and have their result.
fn finished(live: &Live) -> impl Iterator<Item = &RolloutVe> {
    live.ves.iter().filter(|ve| ve.batch.is_some() && ve.state.is_final())
}

/// A line for each of them that was not told of, in the order in which they had their results.
fn lines(live: &Live, told: &mut HashSet<VeId>) -> Vec<String> {
    let mut ves: Vec<_> = finished(live).filter(|ve| told.insert(ve.id)).collect();
    ves.sort_by_key(|ve| ve.finished.map(|time| (time.secs, time.nanos)));
    ves.into_iter().map(line).collect()
}

fn line(ve: &RolloutVe) -> String {
    let mut parts = vec![ve.state.as_str().to_owned()];
    if let Some(summary) = &ve.summary {
        let counts = [
            (summary.taken, "taken"),
            (summary.merged, "merged"),
            (summary.shadowed, "SHADOWED"),
            (summary.stale_processes, "to restart"),
        ];
        parts.extend(
            counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")),
        );
    }
    parts.extend(ve.why.clone());
    format!("{}: {}", ve.ve, parts.join(", "))
}
