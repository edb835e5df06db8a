//! What long actions tell while they run.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::archive::Progress;

/// Told how far an action is. Called from several threads, a few times a second.
pub trait Events: Sync {
    /// `done` of `total` (when known) units are done in the step `what`.
    fn progress(&self, done: u64, total: Option<u64>, unit: &'static str, what: &'static str);
    /// Something worth telling that is no failure.
    fn log(&self, message: &str);
    /// Whether nobody listens any more. Actions that change something go on all the same.
    fn is_gone(&self) -> bool {
        false
    }
}

/// Nobody is told.
impl Events for () {
    fn progress(&self, _: u64, _: Option<u64>, _: &'static str, _: &'static str) {}
    fn log(&self, _: &str) {}
}

/// Progress is for people: more than this often nobody reads it.
const INTERVAL: Duration = Duration::from_millis(200);

/// Counts of one step, told at intervals.
pub(super) struct Step<'a> {
    events: &'a dyn Events,
    unit: &'static str,
    what: &'static str,
    done: AtomicU64,
    /// Zero while it is not known.
    total: AtomicU64,
    next: Mutex<Instant>,
}

impl<'a> Step<'a> {
    pub(super) fn new(
        events: &'a dyn Events,
        unit: &'static str,
        what: &'static str,
        total: Option<u64>,
    ) -> Step<'a> {
        let (done, total) = (AtomicU64::new(0), AtomicU64::new(total.unwrap_or(0)));
        let step = Step { events, unit, what, done, total, next: Mutex::new(Instant::now() + INTERVAL) };
        step.tell();
        step
    }

    pub(super) fn add(&self, count: u64) {
        self.done.fetch_add(count, Ordering::Relaxed);
        // Who cannot have the lock at once leaves the telling to who has it.
        if let Some(mut next) = self.next.try_lock()
            && Instant::now() >= *next
        {
            *next = Instant::now() + INTERVAL;
            self.tell();
        }
    }

    pub(super) fn finish(&self) {
        self.tell();
    }

    fn tell(&self) {
        let total = self.total.load(Ordering::Relaxed);
        let done = self.done.load(Ordering::Relaxed);
        self.events.progress(done, (total > 0).then_some(total.max(done)), self.unit, self.what);
    }
}

impl Progress for Step<'_> {
    fn advance(&self, entries: u64, _bytes: u64) {
        self.add(entries);
    }

    fn total(&self, entries: Option<u64>, _bytes: Option<u64>) {
        self.total.store(entries.unwrap_or(0), Ordering::Relaxed);
    }
}
