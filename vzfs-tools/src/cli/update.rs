//! The grammar of `vzfs update`.

use clap::{Args, Subcommand, ValueEnum};
use vzfs::api::{DEFAULT_BATCH, DEFAULT_CHECK_TIMEOUT_SECS, OnConflict, Portion, Selector};
use vzfs::types::{TemplateRef, VeName};

const UPDATE_HELP: &str = "\
VEs are moved while they run: programs keep the files that they have open, whatever opens a file afterwards has the new one. What a VE \
changed itself stays. Without -t each VE gets the newest version of every template that it has; with -t the named ones are taken in the \
version that is named. A VE whose name is one of the subcommands comes after --, as in 'vzfs update -- status'.

First go the canaries, then batches. After each batch the check runs in each VE that was moved, as 'vzfs ve exec VE -- sh -c COMMAND' would \
run it; a code other than 0 counts as a failure. The VE stays as it is and can be rolled back. The update stops by itself when a canary fails, \
or when more VEs fail than may.

The daemon does the work: Ctrl-C leaves it running, as --detach does, and an update goes on when the daemon was stopped or killed. \
'vzfs update rollback' brings VEs back to exactly the templates that they had.

Exit codes: those of every command, and 9 when not every VE was updated: some failed or could not be moved, or the update was stopped or \
paused.";

/// `vzfs update`.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, after_help = UPDATE_HELP)]
pub(crate) struct UpdateArgs {
    #[command(subcommand)]
    pub(crate) command: Option<UpdateCommand>,
    #[command(flatten)]
    pub(crate) start: StartArgs,
}

/// A new update.
#[derive(Args, Debug)]
pub(crate) struct StartArgs {
    /// Update these VEs.
    #[arg(value_name = "VE", conflicts_with_all = ["all", "selector"])]
    pub(crate) ves: Vec<VeName>,
    /// Update all VEs.
    #[arg(long, conflicts_with = "selector")]
    pub(crate) all: bool,
    /// Update the VEs that have all these labels.
    #[arg(long, short = 'l', value_name = "KEY=VALUE,...")]
    pub(crate) selector: Option<Selector>,
    /// Take this template: NAME@VERSION, or NAME for its newest version; may be repeated.
    #[arg(short, long = "template", value_name = "REF")]
    pub(crate) templates: Vec<TemplateRef>,
    /// Only say what would be done to each VE, and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// How many VEs go first: a number or a percentage.
    #[arg(long, value_name = "N|P%", default_value = "1")]
    pub(crate) canary: Portion,
    /// How many VEs are moved before it is looked how they are.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_BATCH, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) batch: u32,
    /// Wait so long between batches: a number with s, m, h or d, as in 30s.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = seconds)]
    pub(crate) pause: u64,
    /// Run this shell command in each VE that was moved; 0 means that it is well.
    #[arg(long, value_name = "COMMAND")]
    pub(crate) check: Option<String>,
    /// The check may take so long.
    #[arg(long, value_name = "TIME", default_value_t = DEFAULT_CHECK_TIMEOUT_SECS, value_parser = seconds)]
    pub(crate) check_timeout: u64,
    /// What is done with a file that the VE and the update both changed, and that cannot be merged.
    #[arg(long, value_enum, default_value_t = Conflict::Keep)]
    pub(crate) on_conflict: Conflict,
    /// Stop when more VEs than this have failed.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) max_failures: u32,
    /// When it stops because of failures, roll it back.
    #[arg(long)]
    pub(crate) rollback_on_failure: bool,
    /// Do not ask.
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Do not wait for the end.
    #[arg(long)]
    pub(crate) detach: bool,
}

/// What is done with a file that both sides changed.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Conflict {
    /// The VE keeps its own; the update's configuration files are put beside them.
    Keep,
    /// The update's is taken, and the VE's own is put beside it.
    Take,
    /// The VE is not moved, and counts as a failure.
    Fail,
}

impl From<Conflict> for OnConflict {
    fn from(conflict: Conflict) -> OnConflict {
        match conflict {
            Conflict::Keep => OnConflict::Keep,
            Conflict::Take => OnConflict::Take,
            Conflict::Fail => OnConflict::Fail,
        }
    }
}

#[derive(Subcommand, Debug)]
pub(crate) enum UpdateCommand {
    /// Show the updates that are not finished, or the last one.
    Status,
    /// List all updates that are kept.
    History,
    /// Show an update, or everything about one VE of it.
    Show {
        /// The update's number.
        id: u64,
        /// The VE.
        ve: Option<VeName>,
    },
    /// Follow an update to its end.
    Follow {
        /// The update's number.
        id: u64,
    },
    /// Begin with no further VE, until it is resumed.
    Pause {
        /// The update's number.
        id: u64,
    },
    /// Go on with an update that is paused or has stopped; its failures until now are accepted.
    Resume {
        /// The update's number.
        id: u64,
        /// Do not wait for the end.
        #[arg(long)]
        detach: bool,
    },
    /// End an update where it is; VEs that were moved stay so.
    Stop {
        /// The update's number.
        id: u64,
    },
    /// Bring VEs back to the templates that they had before an update. What they changed meanwhile stays.
    Rollback {
        /// The update's number.
        id: u64,
        /// Only these VEs; without any, the update is stopped and all that it moved are brought back.
        ves: Vec<VeName>,
        /// Do not wait for the end.
        #[arg(long)]
        detach: bool,
    },
    /// Forget a finished update. It cannot be rolled back any more, and its templates can be removed.
    Forget {
        /// The update's number.
        id: u64,
    },
}

/// A time: a number with its unit, in seconds.
fn seconds(text: &str) -> Result<u64, String> {
    // Without a unit: what a default value is written as.
    let seconds = text.parse::<u32>().ok().map(u64::from).or_else(|| vzfs::api::duration_secs(text));
    seconds.ok_or_else(|| "write a number and s, m, h or d, as in 30s".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(seconds("30s"), Ok(30));
        assert_eq!(seconds("5m"), Ok(300));
        assert_eq!(seconds("2h"), Ok(7200));
        assert_eq!(seconds("1d"), Ok(86_400));
        assert_eq!(seconds("7"), Ok(7));
        for bad in ["", "s", "5x", "-1s", "1.5m", "5 m"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
