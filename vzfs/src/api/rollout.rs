//! Rollouts: many VEs moved in batches, watched, stopped, and brought back.
//!
//! [`RolloutHead`] and [`RolloutVe`] are also what the daemon keeps, as they are written here: fields are only ever added, with a default.

use serde::{Deserialize, Serialize};

use super::update_request::{default_batch, default_check_timeout};
use super::{
    OnConflict, Portion, RebaseReport, Selector, Shadowed, ShadowedBy, StackItem, UpdateRequest, rfc3339,
};
use crate::types::{Digest, TemplateRef, TemplateSpec, Timestamp, VeId, VeName};

/// How a rollout is done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RolloutOptions {
    /// How many VEs go first; `None`: none do.
    #[serde(default)]
    pub canary: Option<Portion>,
    /// VEs of a batch.
    #[serde(default = "default_batch")]
    pub batch: u32,
    /// Seconds between batches.
    #[serde(default)]
    pub pause_secs: u64,
    /// What is run in each VE that was moved.
    #[serde(default)]
    pub check: Option<String>,
    /// Seconds that it may take.
    #[serde(default = "default_check_timeout")]
    pub check_timeout_secs: u64,
    /// What wins where both sides changed a file.
    #[serde(default)]
    pub on_conflict: OnConflict,
    /// How many VEs may fail before it stops.
    #[serde(default)]
    pub max_failures: u32,
    /// Whether it is then taken back.
    #[serde(default)]
    pub rollback_on_failure: bool,
}

impl From<&UpdateRequest> for RolloutOptions {
    fn from(request: &UpdateRequest) -> RolloutOptions {
        RolloutOptions {
            canary: request.canary,
            batch: request.batch,
            pause_secs: request.pause_secs,
            check: request.check.clone(),
            check_timeout_secs: request.check_timeout_secs,
            on_conflict: request.on_conflict,
            max_failures: request.max_failures,
            rollback_on_failure: request.rollback_on_failure,
        }
    }
}

/// What a rollout is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutState {
    /// VEs are moved, or it waits between batches.
    Running,
    /// Somebody paused it, or the daemon could not go on; it continues when it is told to.
    Paused,
    /// It ended before its time: too many failures, or by request. It can be resumed.
    Stopped,
    /// Every VE has its result.
    Done,
}

impl RolloutState {
    /// Whether it moves VEs, or will without being asked for anything but to resume.
    pub fn is_active(self) -> bool {
        matches!(self, RolloutState::Running | RolloutState::Paused)
    }

    /// The word for people, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            RolloutState::Running => "running",
            RolloutState::Paused => "paused",
            RolloutState::Stopped => "stopped",
            RolloutState::Done => "done",
        }
    }
}

/// How far a VE of a rollout is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutVeState {
    /// Its turn has not come.
    Pending,
    /// It is being moved: it has its old stack or its new one.
    Moving,
    /// It has its new stack; what belongs to that (derived files, the check) is under way.
    Moved,
    /// It has its new stack, and the check found it well.
    Done,
    /// It could not be moved and is as it was.
    Failed,
    /// It has its new stack, and the check did not find it well.
    CheckFailed,
    /// There was nothing to do.
    Current,
    /// There is no stack that it could have.
    Blocked,
    /// It was left alone: not concerned, or not any more what the plan was made for.
    Left,
}

impl RolloutVeState {
    /// Whether nothing more happens to it.
    pub fn is_final(self) -> bool {
        !matches!(self, RolloutVeState::Pending | RolloutVeState::Moving | RolloutVeState::Moved)
    }

    /// Whether the rollout brought it to its new stack.
    pub fn is_moved(self) -> bool {
        matches!(self, RolloutVeState::Moved | RolloutVeState::Done | RolloutVeState::CheckFailed)
    }

    /// Whether it counts as a failure.
    pub fn is_failure(self) -> bool {
        matches!(self, RolloutVeState::Failed | RolloutVeState::CheckFailed)
    }

    /// The word for people.
    pub fn as_str(self) -> &'static str {
        match self {
            RolloutVeState::Pending => "pending",
            RolloutVeState::Moving => "moving",
            RolloutVeState::Moved => "moved",
            RolloutVeState::Done => "done",
            RolloutVeState::Failed => "failed",
            RolloutVeState::CheckFailed => "check failed",
            RolloutVeState::Current => "current",
            RolloutVeState::Blocked => "blocked",
            RolloutVeState::Left => "left",
        }
    }
}

/// What is said of a rollout as a whole.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RolloutHead {
    /// Its number, never used again.
    pub id: u64,
    /// What it is doing.
    pub state: RolloutState,
    /// Why it is in that state, where that needs a reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// When it was asked for.
    #[serde(with = "rfc3339")]
    pub created: Timestamp,
    /// When it came to its end.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "rfc3339::option")]
    pub finished: Option<Timestamp>,
    /// The rollout that this one takes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolls_back: Option<u64>,
    /// The VEs that were asked for by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub named: Vec<VeName>,
    /// All VEs were asked for.
    #[serde(default)]
    pub all: bool,
    /// The labels that were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// The templates that were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub templates: Vec<TemplateRef>,
    /// How it is done.
    pub options: RolloutOptions,
    /// The pause that it made last, or makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<RolloutWait>,
    /// Failures that somebody has seen and accepted by resuming it.
    #[serde(default)]
    pub accepted_failures: u32,
    /// It stopped because of failures and has to be taken back.
    #[serde(default)]
    pub must_roll_back: bool,
}

/// A pause between batches.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RolloutWait {
    /// The batch that comes after it.
    pub before_batch: u32,
    /// When it ends.
    #[serde(with = "rfc3339")]
    pub until: Timestamp,
}

/// One VE of a rollout.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RolloutVe {
    /// Its name when the rollout was planned.
    pub ve: VeName,
    /// Its number.
    pub id: VeId,
    /// The batch that it belongs to, if it is to be moved; 0 are the canaries, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<u32>,
    /// The stack that it had, the OS first.
    pub from: Vec<StackItem>,
    /// The stack that it gets. The same as `from` where there is nothing to do.
    pub to: Vec<StackItem>,
    /// How far it is.
    pub state: RolloutVeState,
    /// Why it is in that state, where that needs a reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What moving it did, in numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<ReportSummary>,
    /// What the check command said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<CheckResult>,
    /// It was not mounted, and is mounted only for the commands that are run in it.
    #[serde(default)]
    pub mounted_for_commands: bool,
    /// When it had its result.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "rfc3339::option")]
    pub finished: Option<Timestamp>,
}

impl RolloutVe {
    /// A VE as a plan has it: nothing was done with it yet.
    pub fn planned(
        (ve, id): (VeName, VeId),
        (from, to): (Vec<StackItem>, Vec<StackItem>),
        state: RolloutVeState,
        why: Option<String>,
    ) -> RolloutVe {
        RolloutVe {
            ve,
            id,
            batch: None,
            from,
            to,
            state,
            why,
            summary: None,
            check: None,
            mounted_for_commands: false,
            finished: None,
        }
    }
}

/// A [`RebaseReport`] in numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ReportSummary {
    /// Paths that the VE has from the update: added, changed and removed ones.
    pub taken: u64,
    /// Files that have both sides' changes.
    pub merged: u64,
    /// Paths of the update that the VE does not show.
    pub shadowed: u64,
    /// Those of them that both sides changed.
    pub conflicts: u64,
    /// Programs that still use what was replaced.
    pub stale_processes: u64,
    /// Decisions that somebody should know of.
    pub notes: u64,
    /// How long it took, in microseconds.
    pub micros: u64,
    /// How long the VE's other requests had to wait for it, in microseconds.
    pub pause_micros: u64,
}

impl From<&RebaseReport> for ReportSummary {
    fn from(report: &RebaseReport) -> ReportSummary {
        let conflicts = report.shadowed.iter().filter(|s| s.by == ShadowedBy::Changed).count();
        ReportSummary {
            taken: report.added + report.changed + report.removed,
            merged: report.merged.len() as u64,
            shadowed: report.shadowed.len() as u64,
            conflicts: conflicts as u64,
            stale_processes: report.stale_processes.len() as u64,
            notes: report.notes.len() as u64,
            micros: report.micros,
            pause_micros: report.pause_micros,
        }
    }
}

/// How a check command ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CheckResult {
    /// Its exit code; `None` when it was not run to its end.
    pub code: Option<i32>,
    /// The end of what it printed.
    pub output: String,
    /// It took longer than it was allowed to and was ended.
    #[serde(default)]
    pub timed_out: bool,
    /// How long it ran, in milliseconds.
    pub millis: u64,
}

/// A rollout, with its VEs where one is asked for and without them in lists.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rollout {
    /// What is said of it as a whole.
    #[serde(flatten)]
    pub head: RolloutHead,
    /// Rollouts that take this one back, or parts of it.
    #[serde(default)]
    pub rolled_back_by: Vec<u64>,
    /// How many batches it has.
    pub batches: u32,
    /// The batch that it is in, or comes to next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<u32>,
    /// How many VEs are how far.
    pub counts: RolloutCounts,
    /// Its VEs by batch and name.
    #[serde(default)]
    pub ves: Vec<RolloutVe>,
}

/// How many VEs of a rollout are how far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RolloutCounts {
    /// All that were to be moved.
    pub to_move: u64,
    /// Their turn has not come.
    pub pending: u64,
    /// They are under way.
    pub under_way: u64,
    /// They are moved and well.
    pub done: u64,
    /// They failed, or their check did.
    pub failed: u64,
    /// There was nothing to do.
    pub current: u64,
    /// There is no stack that they could have.
    pub blocked: u64,
    /// They were left alone.
    pub left: u64,
}

impl RolloutCounts {
    /// Counts these VEs.
    pub fn of(ves: &[RolloutVe]) -> RolloutCounts {
        let mut counts = RolloutCounts::default();
        for ve in ves {
            let (count, to_move) = match ve.state {
                RolloutVeState::Pending => (&mut counts.pending, 1),
                RolloutVeState::Moving | RolloutVeState::Moved => (&mut counts.under_way, 1),
                RolloutVeState::Done => (&mut counts.done, 1),
                RolloutVeState::Failed | RolloutVeState::CheckFailed => (&mut counts.failed, 1),
                RolloutVeState::Current => (&mut counts.current, 0),
                RolloutVeState::Blocked => (&mut counts.blocked, 0),
                RolloutVeState::Left => (&mut counts.left, 0),
            };
            *count += 1;
            counts.to_move += to_move;
        }
        counts
    }
}

/// One VE of a rollout with everything that is known of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RolloutVeDetail {
    /// The VE.
    #[serde(flatten)]
    pub ve: RolloutVe,
    /// What moving it did, or would do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<RebaseReport>,
}

/// What an update would do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UpdatePlan {
    /// Names this plan: which VE goes from which stack to which.
    pub digest: Digest,
    /// Whether the reports are there.
    pub dry_run: bool,
    /// How many batches there would be.
    pub batches: u32,
    /// The VEs by batch and name.
    pub ves: Vec<RolloutVeDetail>,
}

/// A file of an update that a VE does not show.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ShadowedFile {
    /// Which, and why.
    #[serde(flatten)]
    pub shadowed: Shadowed,
    /// The rollout that brought it.
    pub rollout: u64,
    /// The templates that brought it, as they were before.
    pub from: Vec<TemplateSpec>,
    /// The templates that brought it.
    pub to: Vec<TemplateSpec>,
}

/// What a VE does not show of its updates.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VeShadows {
    /// The VE.
    pub ve: VeName,
    /// The files by path.
    pub files: Vec<ShadowedFile>,
}
