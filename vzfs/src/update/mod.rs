//! Rollouts: many VEs moved to other stacks, a few at a time, with a check after each step and a way back.
//!
//! Concepts
//! - A *plan* says which VE goes from which stack to which. A *rollout* is a plan that was begun; its record ([`Journal`]) holds the plan, how far
//!   each VE is, and what moving it did. Taking a rollout back is a rollout of its own, with the stacks the other way round.
//! - VEs are known by their numbers. One that was renamed, removed or moved by somebody else after the plan was made is left alone and reported.
//! - VEs go in *batches*, the canaries first. A batch is moved, then what programs still use is looked for once for all of it, then each VE's
//!   derived files are made anew and its check is run.
//!
//! States of a rollout
//! ```text
//! running <-> paused       by request; a daemon that cannot write the record pauses it until it is resumed or the daemon starts again
//! running -> stopped       a canary failed, or more VEs than may: by itself; or by request
//! paused  -> stopped       by request
//! stopped -> running       by request: the failures until then are accepted
//! running -> done          every VE has its result
//! ```
//! States of a VE in it: `pending -> moving -> moved -> done | check_failed`; `moving -> failed` when it is as it was; `pending -> left` when
//! the plan does not apply to it any more. `current`, `blocked` and `left` may also come from the plan, and stay.
//!
//! Invariants
//! - U1: each change of state is durable before anything that relies on it happens. `moving` is written before the store is asked to move the VE, its
//!   report with the move itself, and every result before the next batch begins.
//! - U2: a VE is in at most one rollout that may still move it: those that are running or paused hold their VEs that have no result.
//! - U3: a rollout exists from the moment its head is written, which is after the records of its VEs; it is gone when its head is.
//! - U4: where a VE is, only the store knows. The record says what was intended, and is compared with the VE's stack before it is moved and after a
//!   crash: a VE that is `moving` and has its new stack was moved, one that has its old one was not.
//! - U5: no template is removed that a VE needs to get where a rollout takes it or back to where it was ([`Updates`] implements [`WaysBack`]).
//! - U6: what a VE does not show of an update is remembered before the VE has its result, and stays until it shows it.
//!
//! What a crash leaves: a head in the state `running`, VEs in any state. [`Updates::open`] reads them, removes what U3 says does not exist, and
//! [`Updates::go_on`] continues. Commands that ran in a VE are run again; a pause goes on until the moment it had.
//!
//! History: the last [`KEPT_ROLLOUTS`] that are finished are kept. What is not kept cannot be taken back.
//!
//! Locks: `changing`, then `state`, which is a leaf: the store asks for ways back under its own locks, so nothing is asked of the store while `state`
//! is held.

mod commands;
mod error;
mod fleet;
mod journal;
mod plan;
pub mod processes;
mod run;
mod settle;
mod shadows;
mod state;
mod steer;
mod store_fleet;
mod view;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex};

pub use commands::CommandRunner;
pub use error::UpdateError;
pub use fleet::{Fleet, Ran};
pub use journal::{Journal, Kept, MetaJournal};
pub use store_fleet::StoreFleet;

use crate::api::{RolloutState, RolloutVeState, StackItem};
use crate::store::{WayBack, WaysBack};
use crate::types::TemplateSpec;
use state::{Live, State};

/// Finished rollouts that are kept. Old ones are seldom of use: a VE can be brought back only to where it was before its last one.
pub const KEPT_ROLLOUTS: usize = 50;

/// The rollouts of a store.
pub struct Updates {
    fleet: Box<dyn Fleet>,
    journal: Box<dyn Journal>,
    /// Lock 0. Held while a rollout comes, goes or changes its state, so that such changes are made one after the other.
    changing: Mutex<()>,
    /// Lock 1, a leaf. Only what is durable is in it.
    state: Mutex<State>,
    /// Told of every change of `state`, and of the end.
    changed: Condvar,
    closing: AtomicBool,
}

impl Updates {
    /// Reads the rollouts that there are. None of them moves before [`Updates::go_on`].
    ///
    /// # Errors
    /// The records cannot be read.
    pub fn open(fleet: Box<dyn Fleet>, journal: Box<dyn Journal>) -> Result<Arc<Updates>, UpdateError> {
        let mut state = State::default();
        for kept in journal.load()? {
            let Some(head) = kept.head else {
                tracing::info!(update = kept.id, "removing what is left of an update that was never begun");
                let ves: Vec<_> = kept.ves.iter().map(|ve| ve.id).collect();
                journal.forget(kept.id, &ves)?;
                continue;
            };
            state.rollouts.insert(kept.id, Live::new(head, kept.ves));
        }
        for ve in journal.shadowing()? {
            if fleet.member(ve).is_none() {
                journal.put_shadowed(ve, &[])?;
            }
        }
        Ok(Arc::new(Updates {
            fleet,
            journal,
            changing: Mutex::new(()),
            state: Mutex::new(state),
            changed: Condvar::new(),
            closing: AtomicBool::new(false),
        }))
    }

    /// Continues what the last daemon did not finish.
    pub fn go_on(self: &Arc<Self>) {
        let (running, unfinished): (Vec<u64>, Vec<u64>) = {
            let state = self.state.lock();
            let with = |wanted: fn(&Live) -> bool| {
                state.rollouts.values().filter(|live| wanted(live)).map(|live| live.head.id).collect()
            };
            (
                with(|live| live.head.state == RolloutState::Running),
                with(|live| live.head.state == RolloutState::Stopped && live.head.must_roll_back),
            )
        };
        for id in running {
            tracing::info!(update = id, "going on with an update");
            self.drive(id);
        }
        for id in unfinished {
            self.take_back_if_it_must(id);
        }
    }

    /// Begins to end the service, without waiting: nothing new begins, commands in VEs are ended, followers are told. Everything goes on with
    /// [`Updates::go_on`] in the next daemon.
    pub fn end(&self) {
        self.closing.store(true, Ordering::SeqCst);
        // Under the lock, so that nobody who has looked at `closing` and is about to wait misses it.
        let _state = self.state.lock();
        self.changed.notify_all();
    }

    /// Ends the service, and waits for the VEs that are being moved and the rollouts that are being begun.
    pub fn close(&self) {
        self.end();
        // Who began before has written all of it, and who comes later is refused.
        drop(self.changing.lock());
        let mut state = self.state.lock();
        while state.rollouts.values().any(|live| live.driven) {
            self.changed.wait(&mut state);
        }
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }
}

/// U5.
impl WaysBack for Updates {
    fn ways_back(&self, spec: &TemplateSpec) -> Vec<WayBack> {
        let needs = |stack: &[StackItem]| stack.iter().any(|item| item.spec == *spec);
        let mut found = Vec::new();
        for live in self.state.lock().rollouts.values() {
            for ve in &live.ves {
                let (onward, back) = match ve.state {
                    RolloutVeState::Pending => (live.head.state.is_active(), false),
                    RolloutVeState::Moving => (true, true),
                    state => (false, state.is_moved()),
                };
                let mut add = |wanted, at: &[StackItem], to: &[StackItem]| {
                    if wanted && needs(to) {
                        found.push(WayBack { update: live.head.id, ve: ve.id, at: at.to_vec() });
                    }
                };
                add(onward, &ve.from, &ve.to);
                add(back, &ve.to, &ve.from);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests;
