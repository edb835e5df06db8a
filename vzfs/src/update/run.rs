//! The thread of a rollout: batch after batch, until nothing is left or somebody says otherwise.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::Updates;
use super::journal::{report_key, time_left};
use crate::api::{
    RebaseReport, ReportSummary, RolloutHead, RolloutState, RolloutVe, RolloutVeState, RolloutWait, StackItem,
};
use crate::meta::MetaError;
use crate::store::{Rebase, StoreError, VeStanding};
use crate::types::{Timestamp, VeId};

/// VEs of a batch that are worked on at once. Moving one is work for a CPU and waits for the disk; a check mostly waits.
const WORKERS: usize = 4;
/// How often a pause looks at the clock, which somebody may set.
const LOOK_AT_CLOCK: Duration = Duration::from_millis(500);

/// Why the thread of a rollout gives up. The record is as it was, and somebody goes on from there.
pub(super) enum Halt {
    /// The daemon is ending.
    Closing,
    /// What was done cannot be written down.
    Records(MetaError),
}

impl From<MetaError> for Halt {
    fn from(error: MetaError) -> Halt {
        Halt::Records(error)
    }
}

enum Step {
    Batch(u32),
    Pause(RolloutWait),
    Stop(String),
    Finish,
    Leave,
}

/// Where a VE is, compared with a rollout's plan (U4).
pub(super) enum Standing {
    /// It has the stack that it had.
    AtFrom(VeStanding),
    /// It has the stack that it was to get.
    AtTo(VeStanding),
    /// The plan does not apply to it any more, for this reason.
    Elsewhere(String),
}

impl Updates {
    /// Lets a thread work on a running rollout, unless one does.
    pub(super) fn drive(self: &Arc<Self>, id: u64) {
        {
            let mut state = self.state.lock();
            let Some(live) = state.rollouts.get_mut(&id).filter(|live| !live.driven) else { return };
            live.driven = true;
            live.halted = None;
        }
        let updates = Arc::clone(self);
        let thread = std::thread::Builder::new().name(format!("update-{id}"));
        if let Err(error) = thread.spawn(move || updates.work_on(id)) {
            self.let_go(id, Some(format!("no thread can be started for it: {error}")));
        }
    }

    fn work_on(self: &Arc<Self>, id: u64) {
        match catch_unwind(AssertUnwindSafe(|| self.work(id))) {
            Ok(Ok(())) => {}
            Ok(Err(Halt::Closing)) => {
                let alone = (!self.is_closing()).then(|| "the store is closing".to_owned());
                self.let_go(id, alone);
            }
            Ok(Err(Halt::Records(error))) => {
                tracing::error!(update = id, %error, "an update cannot go on");
                self.let_go(id, Some(format!("its record cannot be written: {error}")));
            }
            Err(_) => self.let_go(id, Some("the daemon failed at it; its log tells more".to_owned())),
        }
        self.take_back_if_it_must(id);
    }

    fn let_go(&self, id: u64, halted: Option<String>) {
        let mut state = self.state.lock();
        if let Some(live) = state.rollouts.get_mut(&id) {
            live.driven = false;
            live.halted = halted;
        }
        self.changed.notify_all();
    }

    fn work(&self, id: u64) -> Result<(), Halt> {
        loop {
            match self.next(id) {
                Step::Leave => return Ok(()),
                Step::Batch(batch) => self.batch(id, batch)?,
                Step::Pause(wait) => self.change(id, |head| head.wait = Some(wait))?,
                Step::Stop(why) => {
                    tracing::warn!(update = id, %why, "an update has stopped");
                    let now = self.fleet.now();
                    self.change(id, |head| {
                        head.must_roll_back = head.options.rollback_on_failure && head.rolls_back.is_none();
                        (head.state, head.why, head.finished) = (RolloutState::Stopped, Some(why), Some(now));
                    })?;
                }
                Step::Finish => {
                    tracing::info!(update = id, "an update is done");
                    let now = self.fleet.now();
                    self.change(id, |head| {
                        (head.state, head.why, head.finished) = (RolloutState::Done, None, Some(now));
                    })?;
                }
            }
        }
    }

    /// What comes next; waits where a pause is not over.
    fn next(&self, id: u64) -> Step {
        let mut state = self.state.lock();
        loop {
            let Some(live) = state.rollouts.get_mut(&id) else { return Step::Leave };
            if self.is_closing() || live.head.state != RolloutState::Running {
                // In one step with the look, so that whoever resumes it either stops this thread from leaving or starts another.
                live.driven = false;
                self.changed.notify_all();
                return Step::Leave;
            }
            if !live.is_under_way()
                && let Some(why) = live.verdict()
            {
                return Step::Stop(why);
            }
            let Some(batch) = live.open_batch() else { return Step::Finish };
            let first = live.ves.iter().filter_map(|ve| ve.batch).min();
            let pause_secs = live.head.options.pause_secs;
            if pause_secs == 0 || first == Some(batch) || live.has_begun(batch) {
                return Step::Batch(batch);
            }
            let now = self.fleet.now();
            let Some(wait) = live.head.wait.filter(|wait| wait.before_batch == batch) else {
                let end = now.secs.saturating_add(i64::try_from(pause_secs).unwrap_or(i64::MAX));
                return Step::Pause(RolloutWait {
                    before_batch: batch,
                    until: Timestamp::new(end, now.nanos),
                });
            };
            match time_left(wait.until, now) {
                Duration::ZERO => return Step::Batch(batch),
                left => drop(self.changed.wait_for(&mut state, left.min(LOOK_AT_CLOCK))),
            }
        }
    }

    /// Changes the head of a rollout that is running still.
    fn change(&self, id: u64, edit: impl FnOnce(&mut RolloutHead)) -> Result<(), MetaError> {
        let _changing = self.changing.lock();
        let head = self.state.lock().rollouts.get(&id).map(|live| live.head.clone());
        let Some(mut head) = head.filter(|head| head.state == RolloutState::Running) else { return Ok(()) };
        edit(&mut head);
        self.keep_head(head)
    }

    /// Makes a head durable, and then seen. The caller holds `changing`.
    pub(super) fn keep_head(&self, head: RolloutHead) -> Result<(), MetaError> {
        self.journal.put_head(&head)?;
        let mut state = self.state.lock();
        if let Some(live) = state.rollouts.get_mut(&head.id) {
            live.head = head;
        }
        self.changed.notify_all();
        Ok(())
    }

    /// Makes what is said of a VE durable, and then seen; with it what moving the VE did. Only who works on the VE calls it.
    pub(super) fn keep_ve(
        &self,
        id: u64,
        at: usize,
        ve: RolloutVe,
        report: Option<&RebaseReport>,
    ) -> Result<(), Halt> {
        self.journal.put_ve(id, &ve, report)?;
        let mut state = self.state.lock();
        if let Some(row) = state.rollouts.get_mut(&id).and_then(|live| live.ves.get_mut(at)) {
            *row = ve;
        }
        self.changed.notify_all();
        Ok(())
    }

    fn batch(&self, id: u64, batch: u32) -> Result<(), Halt> {
        let with = |wanted: fn(RolloutVeState) -> bool| -> Vec<(usize, VeId)> {
            let state = self.state.lock();
            let Some(live) = state.rollouts.get(&id) else { return Vec::new() };
            let of_batch = live.ves.iter().enumerate().filter(|(_, ve)| ve.batch == Some(batch));
            of_batch.filter(|(_, ve)| wanted(ve.state)).map(|(at, ve)| (at, ve.id)).collect()
        };
        self.each(&with(|state| !state.is_final()), |at| self.move_one(id, at))?;
        let moved = with(|state| state == RolloutVeState::Moved);
        let mounts = moved.iter().filter_map(|(_, ve)| Some((*ve, self.fleet.member(*ve)?.mounted?)));
        let stale = self.fleet.stale_processes(&mounts.collect::<Vec<_>>());
        self.each(&moved, |at| self.settle(id, at, &stale))
    }

    /// Does the same with several VEs, a few at a time. The first that halts keeps more from being begun.
    fn each(
        &self,
        ves: &[(usize, VeId)],
        work: impl Fn(usize) -> Result<(), Halt> + Sync,
    ) -> Result<(), Halt> {
        let next = AtomicUsize::new(0);
        let halted = Mutex::new(None);
        let worker = || {
            while halted.lock().is_none()
                && let Some((at, _)) = ves.get(next.fetch_add(1, Ordering::Relaxed))
            {
                let result = if self.is_closing() { Err(Halt::Closing) } else { work(*at) };
                if let Err(halt) = result {
                    halted.lock().get_or_insert(halt);
                }
            }
        };
        std::thread::scope(|scope| {
            for number in 1..WORKERS.min(ves.len()) {
                let thread = std::thread::Builder::new().name(format!("update-worker-{number}"));
                // One worker is enough, and this thread is one.
                if let Err(error) = thread.spawn_scoped(scope, worker) {
                    tracing::warn!(%error, "fewer VEs are moved at once");
                }
            }
            worker();
        });
        halted.into_inner().map_or(Ok(()), Err)
    }

    /// Moves one VE, or finds out what became of it when a crash cut that short.
    fn move_one(&self, id: u64, at: usize) -> Result<(), Halt> {
        let (ve, may_begin) = {
            let state = self.state.lock();
            let Some(live) = state.rollouts.get(&id) else { return Ok(()) };
            let Some(ve) = live.ves.get(at) else { return Ok(()) };
            (ve.clone(), live.may_begin())
        };
        match ve.state {
            RolloutVeState::Pending if may_begin => self.begin_with(id, at, ve),
            RolloutVeState::Moving => match self.standing(&ve) {
                Standing::AtFrom(member) => self.rebase(id, at, ve, &member),
                Standing::AtTo(_) => self.moved_unseen(id, at, ve, "it was moved while the daemon ended"),
                Standing::Elsewhere(why) => self.leave_alone(id, at, ve, why),
            },
            _ => Ok(()),
        }
    }

    fn begin_with(&self, id: u64, at: usize, mut ve: RolloutVe) -> Result<(), Halt> {
        match self.standing(&ve) {
            Standing::AtFrom(member) if member.name != ve.ve => {
                let why = format!("it was renamed to {} meanwhile", member.name);
                self.leave_alone(id, at, ve, why)
            }
            Standing::AtFrom(member) => {
                ve.state = RolloutVeState::Moving;
                self.keep_ve(id, at, ve.clone(), None)?;
                self.rebase(id, at, ve, &member)
            }
            Standing::AtTo(_) => {
                self.conclude(id, at, ve, RolloutVeState::Current, "it was moved there meanwhile".to_owned())
            }
            Standing::Elsewhere(why) => self.leave_alone(id, at, ve, why),
        }
    }

    fn leave_alone(&self, id: u64, at: usize, ve: RolloutVe, why: String) -> Result<(), Halt> {
        self.conclude(id, at, ve, RolloutVeState::Left, why)
    }

    pub(super) fn conclude(
        &self,
        id: u64,
        at: usize,
        mut ve: RolloutVe,
        state: RolloutVeState,
        why: String,
    ) -> Result<(), Halt> {
        (ve.state, ve.why, ve.finished) = (state, Some(why), Some(self.fleet.now()));
        self.keep_ve(id, at, ve, None)
    }

    /// Where a VE is now.
    pub(super) fn standing(&self, ve: &RolloutVe) -> Standing {
        let Some(member) = self.fleet.member(ve.id) else {
            return Standing::Elsewhere("it was removed meanwhile".to_owned());
        };
        if member.stack == ve.to {
            Standing::AtTo(member)
        } else if member.stack == ve.from {
            Standing::AtFrom(member)
        } else {
            Standing::Elsewhere(format!(
                "it was moved to {} meanwhile, by somebody else",
                names(&member.stack)
            ))
        }
    }

    fn rebase(&self, id: u64, at: usize, ve: RolloutVe, member: &VeStanding) -> Result<(), Halt> {
        let on_conflict = {
            let state = self.state.lock();
            state.rollouts.get(&id).map(|live| live.head.options.on_conflict).unwrap_or_default()
        };
        let report_key = report_key(id, ve.id);
        let how = Rebase { on_conflict, dry_run: false, report_key: Some(&report_key) };
        match self.fleet.rebase(&member.name, &ve.to, how) {
            Ok(report) => self.moved(id, at, ve, Some(&report)),
            Err(StoreError::Closing) => Err(Halt::Closing),
            Err(error) => match self.standing(&ve) {
                // It failed after the step that decides.
                Standing::AtTo(_) => self.moved_unseen(id, at, ve, &error.to_string()),
                Standing::AtFrom(_) | Standing::Elsewhere(_) => {
                    tracing::warn!(update = id, ve = %ve.ve, %error, "a VE was not moved");
                    self.conclude(id, at, ve, RolloutVeState::Failed, error.to_string())
                }
            },
        }
    }

    fn moved(
        &self,
        id: u64,
        at: usize,
        mut ve: RolloutVe,
        report: Option<&RebaseReport>,
    ) -> Result<(), Halt> {
        ve.summary = report.map(ReportSummary::from);
        ve.state = RolloutVeState::Moved;
        self.keep_ve(id, at, ve, report)
    }

    /// A VE that has its new stack, although nobody heard how it came there. If this rollout moved it, the move left its report.
    fn moved_unseen(&self, id: u64, at: usize, ve: RolloutVe, why: &str) -> Result<(), Halt> {
        match self.journal.report(id, ve.id)? {
            Some(report) => self.moved(id, at, ve, Some(&report)),
            None => {
                let why = Some(format!("{why}, and what that did is not known"));
                self.moved(id, at, RolloutVe { why, ..ve }, None)
            }
        }
    }
}

/// The templates of a stack, for people.
pub(super) fn names(stack: &[StackItem]) -> String {
    stack.iter().map(|item| item.spec.to_string()).collect::<Vec<_>>().join(" ")
}
