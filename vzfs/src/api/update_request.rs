//! What is asked of updates.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::OnConflict;
use crate::types::{Digest, TemplateRef, VeName};

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

pub(super) fn default_batch() -> u32 {
    DEFAULT_BATCH
}

pub(super) fn default_check_timeout() -> u64 {
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
