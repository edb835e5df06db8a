//! Long work on the whole store: one at a time, at a pace, and what is scheduled gives up for what somebody waits for.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

/// How long scheduled work may take to give up: the time of reading one large file.
const GIVING_UP: Duration = Duration::from_secs(60);

/// How fast long work may read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pace {
    /// As fast as the disk gives it: somebody waits.
    Full,
    /// At most so many bytes a second, on average: the daemon does it by itself.
    BytesPerSecond(u64),
}

/// Keeps work to its pace.
pub(super) struct Pacer {
    pace: Pace,
    started: Instant,
    bytes: Cell<u64>,
}

impl Pacer {
    pub(super) fn new(pace: Pace) -> Pacer {
        Pacer { pace, started: Instant::now(), bytes: Cell::new(0) }
    }

    /// Waits until so many more bytes are allowed.
    pub(super) fn read(&self, bytes: u64) {
        /// No sleep is longer, so that an end of the daemon is noticed.
        const LONGEST: Duration = Duration::from_millis(500);
        self.bytes.set(self.bytes.get() + bytes);
        let Pace::BytesPerSecond(rate) = self.pace else { return };
        let due = Duration::from_secs_f64(self.bytes.get() as f64 / rate.max(1) as f64);
        std::thread::sleep(due.saturating_sub(self.started.elapsed()).min(LONGEST));
    }
}

/// Whose turn it is with one kind of work, and how far it is.
pub(super) struct Turns<P> {
    /// Held for the time of the work, before any other lock.
    turn: Mutex<()>,
    /// Somebody waits for scheduled work to give up.
    wanted: AtomicBool,
    /// A leaf. Whether the work was scheduled, and how far it is.
    running: Mutex<Option<(bool, P)>>,
}

impl<P> Default for Turns<P> {
    fn default() -> Turns<P> {
        Turns { turn: Mutex::default(), wanted: AtomicBool::new(false), running: Mutex::new(None) }
    }
}

/// The right to work, until it is dropped.
pub(super) struct Turn<'a, P> {
    turns: &'a Turns<P>,
    scheduled: bool,
    _one_at_a_time: MutexGuard<'a, ()>,
}

impl<P: Copy> Turns<P> {
    /// Waits for a turn; what somebody waits for goes before what is scheduled. `None` when other work goes on.
    pub(super) fn begin(&self, pace: Pace, progress: P) -> Option<Turn<'_, P>> {
        let scheduled = pace != Pace::Full;
        let turn = match self.turn.try_lock() {
            Some(free) => free,
            None if scheduled || !self.running.lock().is_some_and(|(scheduled, _)| scheduled) => return None,
            None => {
                self.wanted.store(true, Ordering::SeqCst);
                let turn = self.turn.try_lock_for(GIVING_UP);
                self.wanted.store(false, Ordering::SeqCst);
                turn?
            }
        };
        *self.running.lock() = Some((scheduled, progress));
        Some(Turn { turns: self, scheduled, _one_at_a_time: turn })
    }

    /// The work that goes on.
    pub(super) fn running(&self) -> Option<P> {
        self.running.lock().map(|(_, progress)| progress)
    }
}

impl<P> Turn<'_, P> {
    /// Whether the work is to end: it was scheduled, and somebody wants its turn.
    pub(super) fn must_end(&self) -> bool {
        self.scheduled && self.turns.wanted.load(Ordering::SeqCst)
    }

    /// Tells how far it is.
    pub(super) fn tell(&self, change: impl FnOnce(&mut P)) {
        if let Some((_, progress)) = &mut *self.turns.running.lock() {
            change(progress);
        }
    }
}

impl<P> Drop for Turn<'_, P> {
    fn drop(&mut self) {
        *self.turns.running.lock() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_waits_for_goes_before_what_is_scheduled() {
        let turns = Turns::default();
        let scheduled = turns.begin(Pace::BytesPerSecond(1), 1).expect("nobody is there");
        scheduled.tell(|progress| *progress += 1);
        assert_eq!(turns.running(), Some(2));
        assert!(turns.begin(Pace::BytesPerSecond(1), 9).is_none(), "one at a time");
        assert!(!scheduled.must_end());
        std::thread::scope(|scope| {
            let wanted = scope.spawn(|| {
                let turn = turns.begin(Pace::Full, 5).expect("the other gives up");
                assert!(!turn.must_end());
                turns.running()
            });
            while !scheduled.must_end() {
                std::thread::yield_now();
            }
            drop(scheduled);
            assert_eq!(wanted.join().expect("ends"), Some(5));
        });
        let waited_for = turns.begin(Pace::Full, 7);
        assert!(turns.begin(Pace::Full, 9).is_none(), "nobody has to give up");
        drop(waited_for);
        assert_eq!(turns.running(), None);
    }
}
