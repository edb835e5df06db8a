//! What somebody can tell rollouts to do: begin, pause, resume, stop, take back, be forgotten.

use std::sync::Arc;

use parking_lot::MutexGuard;

use super::plan::digest;
use super::run::{Standing, names};
use super::state::Live;
use super::{KEPT_ROLLOUTS, UpdateError, Updates};
use crate::api::{
    Removed, Rollout, RolloutHead, RolloutOptions, RolloutState, RolloutVe, RolloutVeState, UpdateRequest,
};
use crate::types::VeName;

/// Proof that `changing` is held.
type Changing<'a> = MutexGuard<'a, ()>;

impl Updates {
    /// Begins a rollout, and returns when its record is durable.
    ///
    /// # Errors
    /// The request is not acceptable; no VE is to be moved; another rollout has one of the VEs.
    pub fn start(self: &Arc<Self>, request: &UpdateRequest) -> Result<Rollout, UpdateError> {
        let ves = self.planned(request)?;
        if request.plan.is_some_and(|agreed| agreed != digest(&ves)) {
            return Err(UpdateError::OtherPlan);
        }
        if !ves.iter().any(|ve| ve.state == RolloutVeState::Pending) {
            return Err(UpdateError::Invalid(nothing_to_do(&ves)));
        }
        let changing = self.changing.lock();
        let head = RolloutHead {
            id: 0,
            state: RolloutState::Running,
            why: None,
            created: self.fleet.now(),
            finished: None,
            rolls_back: None,
            named: request.ves.clone(),
            all: request.all,
            selector: request.selector.clone(),
            templates: request.templates.clone(),
            options: RolloutOptions::from(request),
            wait: None,
            accepted_failures: 0,
            must_roll_back: false,
        };
        let id = self.begin(&changing, head, ves)?;
        drop(changing);
        self.drive(id);
        self.rollout(id)
    }

    /// U2 and U3: the VEs, then the head, then what is seen.
    fn begin(
        &self,
        changing: &Changing<'_>,
        mut head: RolloutHead,
        mut ves: Vec<RolloutVe>,
    ) -> Result<u64, UpdateError> {
        if self.is_closing() {
            return Err(UpdateError::Closing);
        }
        self.must_be_free(&ves, None)?;
        head.id = self.journal.take_number()?;
        let now = self.fleet.now();
        for ve in &mut ves {
            ve.finished = ve.state.is_final().then_some(now);
            self.journal.put_ve(head.id, ve, None)?;
        }
        self.journal.put_head(&head)?;
        let id = head.id;
        tracing::info!(update = id, ves = ves.len(), rolls_back = head.rolls_back, "an update begins");
        self.state.lock().rollouts.insert(id, Live::new(head, ves));
        self.trim(changing);
        Ok(id)
    }

    /// U2.
    fn must_be_free(&self, ves: &[RolloutVe], but: Option<u64>) -> Result<(), UpdateError> {
        let state = self.state.lock();
        for ve in ves.iter().filter(|ve| !ve.state.is_final()) {
            if let Some(id) = state.holder(ve.id, but) {
                return Err(UpdateError::Taken { ve: ve.ve.clone(), id });
            }
        }
        Ok(())
    }

    /// Forgets the oldest rollouts when there are too many.
    fn trim(&self, _: &Changing<'_>) {
        let old: Vec<u64> = {
            let state = self.state.lock();
            let finished =
                state.rollouts.values().filter(|live| !live.head.state.is_active() && !live.driven);
            let finished: Vec<u64> = finished.map(|live| live.head.id).collect();
            let surplus = finished.len().saturating_sub(KEPT_ROLLOUTS);
            finished.into_iter().take(surplus).collect()
        };
        for id in old {
            if let Err(error) = self.erase(id) {
                tracing::warn!(update = id, %error, "an old update is not forgotten yet");
            }
        }
    }

    fn erase(&self, id: u64) -> Result<(), UpdateError> {
        let ves: Vec<_> = {
            let mut state = self.state.lock();
            let Some(live) = state.rollouts.remove(&id) else { return Err(UpdateError::Unknown(id)) };
            live.ves.iter().map(|ve| ve.id).collect()
        };
        Ok(self.journal.forget(id, &ves)?)
    }

    /// Lets a rollout begin with no further VE until it is resumed.
    ///
    /// # Errors
    /// It is not running.
    pub fn pause(&self, id: u64) -> Result<Rollout, UpdateError> {
        let changing = self.changing.lock();
        let mut head = self.head_in(id, "paused", |state| state == RolloutState::Running)?;
        (head.state, head.why) = (RolloutState::Paused, Some("by request".to_owned()));
        self.keep_head(head)?;
        drop(changing);
        self.rollout(id)
    }

    /// Goes on with a rollout that is paused or has stopped. Failures until now are accepted.
    ///
    /// # Errors
    /// It is running or done; another rollout has one of its VEs; it was taken back.
    pub fn resume(self: &Arc<Self>, id: u64) -> Result<Rollout, UpdateError> {
        let changing = self.changing.lock();
        let mut head = self
            .head_in(id, "resumed", |state| matches!(state, RolloutState::Paused | RolloutState::Stopped))?;
        let (ves, failures, back) = {
            let state = self.state.lock();
            let live = state.rollouts.get(&id).ok_or(UpdateError::Unknown(id))?;
            (live.ves.clone(), live.failures(), state.rolled_back_by(id))
        };
        if let (RolloutState::Stopped, Some(back)) = (head.state, back.last()) {
            let what = format!("update {id} cannot be resumed: update {back} took it back");
            return Err(UpdateError::Invalid(what));
        }
        self.must_be_free(&ves, Some(id))?;
        (head.state, head.why, head.finished) = (RolloutState::Running, None, None);
        (head.accepted_failures, head.must_roll_back) = (failures, false);
        self.keep_head(head)?;
        drop(changing);
        self.drive(id);
        self.rollout(id)
    }

    /// Ends a rollout where it is. VEs that were moved stay so.
    ///
    /// # Errors
    /// It is neither running nor paused.
    pub fn stop(&self, id: u64) -> Result<Rollout, UpdateError> {
        let changing = self.changing.lock();
        let head = self.head_in(id, "stopped", RolloutState::is_active)?;
        self.end_early(&changing, head, "by request".to_owned())?;
        drop(changing);
        self.rollout(id)
    }

    fn end_early(&self, _: &Changing<'_>, mut head: RolloutHead, why: String) -> Result<(), UpdateError> {
        (head.state, head.why) = (RolloutState::Stopped, Some(why));
        head.finished = Some(self.fleet.now());
        Ok(self.keep_head(head)?)
    }

    /// Brings VEs back to the stacks that they had before a rollout: these, or all that it moved. That is a rollout of its own. The first one is
    /// stopped before, if all are brought back; what it is doing with VEs is waited for.
    ///
    /// # Errors
    /// The rollout has moved none of them, or another one has one of them.
    pub fn roll_back(self: &Arc<Self>, id: u64, only: &[VeName]) -> Result<Rollout, UpdateError> {
        if only.is_empty() {
            {
                let changing = self.changing.lock();
                let head = self.head_in(id, "rolled back", |_| true)?;
                if head.state.is_active() {
                    self.end_early(&changing, head, "to be rolled back".to_owned())?;
                }
            }
            self.wait_until_left(id);
        }
        let changing = self.changing.lock();
        // Somebody may have resumed it meanwhile.
        let fits = |state: RolloutState| !only.is_empty() || !state.is_active();
        let was = self.head_in(id, "rolled back", fits)?.options;
        let ves = self.way_back(id, only)?;
        let head = RolloutHead {
            id: 0,
            state: RolloutState::Running,
            why: None,
            created: self.fleet.now(),
            finished: None,
            rolls_back: Some(id),
            named: only.to_vec(),
            all: only.is_empty(),
            selector: None,
            templates: Vec::new(),
            // To get back is wanted for every VE, whatever becomes of another.
            options: RolloutOptions {
                canary: None,
                pause_secs: 0,
                check: None,
                max_failures: u32::MAX,
                rollback_on_failure: false,
                ..was
            },
            wait: None,
            accepted_failures: 0,
            must_roll_back: false,
        };
        let back = self.begin(&changing, head, ves)?;
        drop(changing);
        self.drive(back);
        self.rollout(back)
    }

    /// Waits until no thread works on a rollout that is not running. The caller must not hold `changing`, which that thread may need.
    fn wait_until_left(&self, id: u64) {
        let mut state = self.state.lock();
        while state.rollouts.get(&id).is_some_and(|live| live.driven) {
            self.changed.wait(&mut state);
        }
    }

    /// The plan of a way back.
    fn way_back(&self, id: u64, only: &[VeName]) -> Result<Vec<RolloutVe>, UpdateError> {
        let (ves, options) = {
            let state = self.state.lock();
            let live = state.rollouts.get(&id).ok_or(UpdateError::Unknown(id))?;
            (live.ves.clone(), live.head.options.clone())
        };
        for name in only {
            let ve = ves.iter().find(|ve| ve.ve == *name);
            let ve = ve.ok_or_else(|| UpdateError::UnknownVe { id, ve: name.clone() })?;
            if !ve.state.is_moved() || !ve.state.is_final() {
                return Err(UpdateError::NotMoved { id, what: format!("VE {name}") });
            }
        }
        // One that is being moved still, of a rollout that nobody works on, may have its new stack (U4).
        let may_have_moved = |ve: &RolloutVe| {
            ve.state.is_moved()
                || ve.state == RolloutVeState::Moving && matches!(self.standing(ve), Standing::AtTo(_))
        };
        let moved = ves.into_iter().filter(may_have_moved);
        let moved = moved.filter(|ve| only.is_empty() || only.contains(&ve.ve));
        let mut back: Vec<RolloutVe> = moved.map(|ve| self.way_back_of(ve)).collect();
        if back.is_empty() {
            return Err(UpdateError::NotMoved { id, what: "any VE".to_owned() });
        }
        if !back.iter().any(|ve| ve.state == RolloutVeState::Pending) {
            return Err(UpdateError::Invalid(nothing_to_do(&back)));
        }
        super::plan::into_batches(&mut back, &RolloutOptions { canary: None, ..options });
        Ok(back)
    }

    fn way_back_of(&self, ve: RolloutVe) -> RolloutVe {
        let (state, why) = match self.standing(&ve) {
            Standing::AtTo(member) if member.name != ve.ve => {
                let why = format!("it was renamed to {} meanwhile", member.name);
                (RolloutVeState::Left, Some(why))
            }
            Standing::AtTo(_) => (RolloutVeState::Pending, None),
            Standing::AtFrom(_) => (RolloutVeState::Current, Some("it is back already".to_owned())),
            Standing::Elsewhere(why) => (RolloutVeState::Left, Some(why)),
        };
        RolloutVe::planned((ve.ve, ve.id), (ve.to, ve.from), state, why)
    }

    /// Takes a rollout back that has stopped because of failures and was asked for with that wish, unless that was begun already.
    pub(super) fn take_back_if_it_must(self: &Arc<Self>, id: u64) {
        let must = {
            let state = self.state.lock();
            let must = |live: &Live| live.head.state == RolloutState::Stopped && live.head.must_roll_back;
            state.rollouts.get(&id).is_some_and(must) && state.rolled_back_by(id).is_empty()
        };
        if !must || self.is_closing() {
            return;
        }
        match self.roll_back(id, &[]) {
            Ok(back) => tracing::info!(update = id, by = back.head.id, "an update is taken back"),
            // Where nothing was moved, nothing is to be taken back.
            Err(UpdateError::NotMoved { .. } | UpdateError::Closing) => {}
            Err(error) => tracing::error!(update = id, %error, "an update cannot be taken back"),
        }
    }

    /// Removes the record of a rollout that is finished. It cannot be taken back any more, and needs no templates.
    ///
    /// # Errors
    /// It is running or paused.
    pub fn forget(&self, id: u64) -> Result<Removed, UpdateError> {
        let finished = |state: RolloutState| !state.is_active();
        {
            let _changing = self.changing.lock();
            self.head_in(id, "forgotten", finished)?;
        }
        // Its thread may be about to leave.
        self.wait_until_left(id);
        let _changing = self.changing.lock();
        self.head_in(id, "forgotten", finished)?;
        self.erase(id)?;
        Ok(Removed { removed: format!("update {id}"), freed_bytes: None })
    }

    /// The head of a rollout in a certain state. The caller holds `changing`.
    fn head_in(
        &self,
        id: u64,
        what: &'static str,
        fits: impl Fn(RolloutState) -> bool,
    ) -> Result<RolloutHead, UpdateError> {
        let state = self.state.lock();
        let live = state.rollouts.get(&id).ok_or(UpdateError::Unknown(id))?;
        let shown = live.shown_state();
        if fits(shown) { Ok(live.head.clone()) } else { Err(UpdateError::State { id, state: shown, what }) }
    }
}

/// Why no VE is to be moved.
fn nothing_to_do(ves: &[RolloutVe]) -> String {
    let reasons = ves.iter().map(|ve| match &ve.why {
        None => format!("VE {} has {} already", ve.ve, names(&ve.to)),
        Some(why) => format!("VE {}: {why}", ve.ve),
    });
    let reasons: Vec<_> = reasons.collect();
    match reasons.as_slice() {
        [] => "there is nothing to do".to_owned(),
        [first] => format!("there is nothing to do: {first}"),
        [first, rest @ ..] => {
            format!("there is nothing to do: {first}, and so on for {} more", rest.len())
        }
    }
}
