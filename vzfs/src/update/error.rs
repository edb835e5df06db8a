use thiserror::Error;

use crate::api::RolloutState;
use crate::meta::MetaError;
use crate::store::StoreError;
use crate::types::VeName;

/// Why something about a rollout was refused, or failed.
#[derive(Debug, Error)]
pub enum UpdateError {
    /// No rollout has that number.
    #[error("there is no update {0}")]
    Unknown(u64),
    /// The rollout does not have that VE.
    #[error("update {id} has no VE {ve}")]
    UnknownVe {
        /// The rollout.
        id: u64,
        /// The VE.
        ve: VeName,
    },
    /// A request that contradicts itself, or names nothing.
    #[error("{0}")]
    Invalid(String),
    /// The plan is not the one that somebody agreed to.
    #[error("the plan is not the one that was shown: templates or VEs have changed meanwhile")]
    OtherPlan,
    /// Another rollout has the VE.
    #[error("VE {ve} is part of update {id}, which is not finished")]
    Taken {
        /// The VE.
        ve: VeName,
        /// The other rollout.
        id: u64,
    },
    /// Not in this state.
    #[error("update {id} is {}, and cannot be {what}", state.as_str())]
    State {
        /// The rollout.
        id: u64,
        /// Its state.
        state: RolloutState,
        /// What was asked for: "paused", "resumed".
        what: &'static str,
    },
    /// The rollout has not moved what is to be brought back.
    #[error("update {id} has not moved {what}: there is nothing to roll back")]
    NotMoved {
        /// The rollout.
        id: u64,
        /// "VE web", "any VE".
        what: String,
    },
    /// The daemon is ending.
    #[error("the daemon is ending; the update goes on when it starts again")]
    Closing,
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The records of rollouts cannot be read or written.
    #[error("the records of updates: {0}")]
    Records(#[from] MetaError),
}
