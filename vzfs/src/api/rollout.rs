//! Rollouts: many VEs moved in batches, watched, stopped, and brought back.
//!
//! [`RolloutHead`] and [`RolloutVe`] are also what the daemon keeps, as they are written here: fields are only ever added, with a default.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{OnConflict, RebaseReport, Shadowed, ShadowedBy, StackItem, rfc3339};
use crate::types::{Digest, TemplateRef, TemplateSpec, Timestamp, VeId, VeName};

/// VEs of a batch unless told otherwise: few enough to look at, many enough that the checks of a batch run beside each other.
pub const DEFAULT_BATCH: u32 = 20;
/// How long a check command may take unless told otherwise.
pub const DEFAULT_CHECK_TIMEOUT_SECS: u64 = 60;

/// Which VEs to move where, and how carefully.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateRequest {
    /// These VEs. Exactly one of `ves`, `all` and `selector` says which.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ves: Vec<VeName>,
    /// All that there are.
    #[serde(default)]
    pub all: bool,
    /// Those with these labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// The templates to take, each in the version that it names or in the newest. Without any, the newest of all that a VE has. Templates that
    /// are not named are taken in the newest version that fits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub templates: Vec<TemplateRef>,
    /// What to do with the plan.
    #[serde(default)]
    pub mode: UpdateMode,
    /// The plan that somebody has agreed to: another one is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Digest>,
    /// How many VEs go first.
    #[serde(default = "first_one")]
    pub canary: Option<Portion>,
    /// How many VEs are moved before it is looked how they are.
    #[serde(default = "default_batch")]
    pub batch: u32,
    /// Seconds between batches.
    #[serde(default)]
    pub pause_secs: u64,
    /// A shell command that is run in each VE that was moved; 0 means that it is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<String>,
    /// Seconds that the command may take.
    #[serde(default = "default_check_timeout")]
    pub check_timeout_secs: u64,
    /// What wins where both sides changed a file.
    #[serde(default)]
    pub on_conflict: OnConflict,
    /// How many VEs may fail before the rollout stops.
    #[serde(default)]
    pub max_failures: u32,
    /// When it stops because of failures, every VE that it moved is brought back.
    #[serde(default)]
    pub rollback_on_failure: bool,
}

#[expect(clippy::unnecessary_wraps, reason = "the default of an optional field")]
fn first_one() -> Option<Portion> {
    Some(Portion::Count(1))
}

fn default_batch() -> u32 {
    DEFAULT_BATCH
}

fn default_check_timeout() -> u64 {
    DEFAULT_CHECK_TIMEOUT_SECS
}

impl Default for UpdateRequest {
    fn default() -> UpdateRequest {
        UpdateRequest {
            ves: Vec::new(),
            all: false,
            selector: None,
            templates: Vec::new(),
            mode: UpdateMode::default(),
            plan: None,
            canary: first_one(),
            batch: DEFAULT_BATCH,
            pause_secs: 0,
            check: None,
            check_timeout_secs: DEFAULT_CHECK_TIMEOUT_SECS,
            on_conflict: OnConflict::default(),
            max_failures: 0,
            rollback_on_failure: false,
        }
    }
}

/// What to do with the plan of an update.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateMode {
    /// Begin with it.
    #[default]
    Start,
    /// Only tell which VE would go where.
    Plan,
    /// Tell also what that would do to each of them. Nothing is changed.
    DryRun,
}

/// Bring VEs back to the stacks that they had before a rollout.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    /// Only these; without any, all that the rollout moved, and it is stopped first.
    #[serde(default)]
    pub ves: Vec<VeName>,
}

/// Query of `GET /v1/updates/{id}/follow`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FollowQuery {
    /// How many VEs were told of already.
    #[serde(default)]
    pub told: u64,
}

/// How many VEs, as a number or as a part of all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Portion {
    /// So many.
    Count(u32),
    /// So many of a hundred.
    Percent(u8),
}

impl Portion {
    /// How many of `all` that is: at least one, rounded up, and not more than there are.
    pub fn of(self, all: usize) -> usize {
        let wanted = match self {
            Portion::Count(count) => usize::try_from(count).unwrap_or(usize::MAX),
            Portion::Percent(percent) => all.saturating_mul(usize::from(percent)).div_ceil(100),
        };
        wanted.max(1).min(all)
    }
}

impl FromStr for Portion {
    type Err = String;

    fn from_str(text: &str) -> Result<Portion, String> {
        let parsed = match text.strip_suffix('%') {
            Some(percent) => percent.parse().ok().filter(|p| (1..=100).contains(p)).map(Portion::Percent),
            None => text.parse().ok().filter(|count| *count > 0).map(Portion::Count),
        };
        parsed.ok_or_else(|| "write a number from 1, or a percentage as in 10%".to_owned())
    }
}

impl TryFrom<String> for Portion {
    type Error = String;

    fn try_from(text: String) -> Result<Portion, String> {
        text.parse()
    }
}

impl From<Portion> for String {
    fn from(portion: Portion) -> String {
        portion.to_string()
    }
}

impl fmt::Display for Portion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Portion::Count(count) => write!(f, "{count}"),
            Portion::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// Labels that a VE must have, all of them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Selector(pub BTreeMap<String, String>);

impl Selector {
    /// Whether something with these labels is meant.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

impl FromStr for Selector {
    type Err = String;

    fn from_str(text: &str) -> Result<Selector, String> {
        let mut labels = BTreeMap::new();
        for part in text.split(',') {
            let (key, value) = part.split_once('=').ok_or("write KEY=VALUE, more of them with commas")?;
            if key.is_empty() || labels.insert(key.to_owned(), value.to_owned()).is_some() {
                return Err("each key stands once, and is not empty".to_owned());
            }
        }
        Ok(Selector(labels))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (key, value)) in self.0.iter().enumerate() {
            write!(f, "{}{key}={value}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portions() {
        let of = |text: &str, all| text.parse::<Portion>().map(|portion| portion.of(all));
        assert_eq!(of("3", 10), Ok(3));
        assert_eq!(of("30", 10), Ok(10));
        assert_eq!(of("10%", 25), Ok(3));
        assert_eq!(of("1%", 10), Ok(1));
        assert_eq!(of("100%", 7), Ok(7));
        assert_eq!(of("1", 0), Ok(0));
        for bad in ["", "0", "0%", "101%", "-1", "x", "%"] {
            assert!(bad.parse::<Portion>().is_err(), "{bad}");
        }
        assert_eq!(serde_json::to_value(Portion::Percent(5)).expect("serializes"), "5%");
    }

    #[test]
    fn selectors() {
        let selector: Selector = "team=web,tier=1".parse().expect("legal");
        let labels = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        assert!(selector.matches(&labels(&[("team", "web"), ("tier", "1"), ("x", "y")])));
        assert!(!selector.matches(&labels(&[("team", "web")])));
        assert!(!selector.matches(&labels(&[("team", "web"), ("tier", "2")])));
        assert_eq!(selector.to_string(), "team=web,tier=1");
        for bad in ["", "a", "=b", "a=b,", "a=1,a=2"] {
            assert!(bad.parse::<Selector>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_request_without_fields_has_the_defaults() {
        let request: UpdateRequest = serde_json::from_str("{}").expect("legal");
        assert_eq!(request, UpdateRequest::default());
        assert!(serde_json::from_str::<UpdateRequest>("{\"more\": 1}").is_err());
    }
}
