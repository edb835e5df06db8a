//! Rollouts in memory: what is durable of them, and the questions that are decided by it alone.

use std::collections::BTreeMap;

use crate::api::{RolloutHead, RolloutState, RolloutVe, RolloutVeState};
use crate::types::VeId;

/// All rollouts.
#[derive(Default)]
pub(super) struct State {
    pub rollouts: BTreeMap<u64, Live>,
}

/// One rollout.
pub(super) struct Live {
    pub head: RolloutHead,
    /// By batch and name; those that are in no batch last.
    pub ves: Vec<RolloutVe>,
    /// A thread works on it.
    pub driven: bool,
    /// Why the daemon cannot go on with it although it is running. Not durable: the next start tries again.
    pub halted: Option<String>,
}

impl Live {
    pub(super) fn new(head: RolloutHead, mut ves: Vec<RolloutVe>) -> Live {
        ves.sort_by(|a, b| (a.batch.is_none(), a.batch, &a.ve).cmp(&(b.batch.is_none(), b.batch, &b.ve)));
        Live { head, ves, driven: false, halted: None }
    }

    /// What it is doing, for whoever looks.
    pub(super) fn shown_state(&self) -> RolloutState {
        match self.head.state {
            RolloutState::Running if self.halted.is_some() => RolloutState::Paused,
            state => state,
        }
    }

    pub(super) fn failures(&self) -> u32 {
        let failures = self.ves.iter().filter(|ve| ve.state.is_failure()).count();
        u32::try_from(failures).unwrap_or(u32::MAX)
    }

    /// The batch that has VEs without a result, the first of them.
    pub(super) fn open_batch(&self) -> Option<u32> {
        self.ves.iter().filter(|ve| !ve.state.is_final()).filter_map(|ve| ve.batch).min()
    }

    /// Whether VEs are between their two stacks, or without what belongs to the new one.
    pub(super) fn is_under_way(&self) -> bool {
        self.ves.iter().any(|ve| matches!(ve.state, RolloutVeState::Moving | RolloutVeState::Moved))
    }

    /// Whether a VE of this batch was begun with.
    pub(super) fn has_begun(&self, batch: u32) -> bool {
        self.ves.iter().any(|ve| ve.batch == Some(batch) && ve.state != RolloutVeState::Pending)
    }

    /// Why it must not go on, if so.
    pub(super) fn verdict(&self) -> Option<String> {
        let new = self.failures().saturating_sub(self.head.accepted_failures);
        let failed = self.ves.iter().find(|ve| ve.state.is_failure())?;
        if new == 0 {
            return None;
        }
        let beyond_canaries =
            self.ves.iter().any(|ve| ve.batch > Some(0) && ve.state != RolloutVeState::Pending);
        if self.head.options.canary.is_some() && !beyond_canaries {
            let why = failed.why.as_deref().unwrap_or("it failed");
            return Some(format!("the canary {} failed: {why}", failed.ve));
        }
        let allowed = self.head.options.max_failures;
        (new > allowed).then(|| match allowed {
            0 => format!("VE {} failed", failed.ve),
            _ => format!("{new} VEs failed, and {allowed} may"),
        })
    }

    /// Whether it may begin with another VE.
    pub(super) fn may_begin(&self) -> bool {
        self.head.state == RolloutState::Running && self.halted.is_none() && self.verdict().is_none()
    }

    /// Whether it may still move this VE (U2).
    pub(super) fn holds(&self, ve: VeId) -> bool {
        self.head.state.is_active() && self.ves.iter().any(|row| row.id == ve && !row.state.is_final())
    }
}

impl State {
    /// The rollout that may still move a VE, other than `but`.
    pub(super) fn holder(&self, ve: VeId, but: Option<u64>) -> Option<u64> {
        let others = self.rollouts.values().filter(|live| Some(live.head.id) != but);
        others.filter(|live| live.holds(ve)).map(|live| live.head.id).next()
    }

    /// The rollouts that take this one back.
    pub(super) fn rolled_back_by(&self, id: u64) -> Vec<u64> {
        let others = self.rollouts.values().filter(|live| live.head.rolls_back == Some(id));
        others.map(|live| live.head.id).collect()
    }

    /// Whether a rollout leads back to where VEs were before: one that takes back a taking back leads forward again.
    pub(super) fn leads_back(&self, id: u64) -> bool {
        let mut back = false;
        let mut next = self.rollouts.get(&id).and_then(|live| live.head.rolls_back);
        // A rollout takes back only earlier ones, so this ends.
        while let Some(id) = next {
            back = !back;
            next = self.rollouts.get(&id).and_then(|live| live.head.rolls_back);
        }
        back
    }
}
