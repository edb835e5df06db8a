//! Where the outcomes of requests are kept: each thread that answers has a place of its own.
//!
//! What a daemon has carried out and not answered when it is killed comes again to the next, which finds the outcome and does nothing
//! ([`crate::meta::Outcomes`]). A thread answers one request before it takes the next, so its next outcome may replace its last: a VE has
//! as many outcomes as threads. Only an answer that waits in another thread keeps its place for itself until it is given.
//!
//! What earlier daemons left is replaced last and the oldest first: requests that none of them has answered may yet come.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::meta::Outcomes;

thread_local! {
    /// A thread answers for one mount.
    static MINE: Cell<Option<u64>> = const { Cell::new(None) };
}

/// The places of a mount.
#[derive(Debug)]
pub(super) struct Places {
    free: Mutex<Free>,
}

#[derive(Debug)]
struct Free {
    /// The next to be taken first.
    places: VecDeque<u64>,
    /// The first that was never one.
    next: u64,
}

/// A place that an answer still needs; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Kept {
    places: Arc<Places>,
    place: Option<u64>,
}

impl Places {
    /// Those that the outcomes of earlier daemons leave.
    pub(super) fn after(outcomes: &Outcomes) -> Places {
        let places: VecDeque<u64> = outcomes.places().collect();
        let next = places.iter().max().map_or(0, |last| last + 1);
        Places { free: Mutex::new(Free { places, next }) }
    }

    /// That of this thread.
    pub(super) fn mine(&self) -> u64 {
        MINE.get().unwrap_or_else(|| {
            let mut free = self.free.lock();
            let place = free.places.pop_front().unwrap_or_else(|| {
                free.next += 1;
                free.next - 1
            });
            MINE.set(Some(place));
            place
        })
    }

    /// Keeps that of this thread for the answer to its last request. For the next the thread takes another.
    pub(super) fn keep(self: &Arc<Self>) -> Kept {
        Kept { places: Arc::clone(self), place: MINE.take() }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.places.free.lock().places.push_front(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn others_place(places: &Places) -> u64 {
        std::thread::scope(|scope| scope.spawn(|| places.mine()).join().expect("it does not panic"))
    }

    #[test]
    fn a_thread_has_one_place_and_no_other_thread_has_it() {
        let places = Places::after(&Outcomes::default());
        let mine = places.mine();
        assert_eq!(places.mine(), mine);
        let others: Vec<u64> = (0..1000).map(|_| others_place(&places)).collect();
        let mut different = others.clone();
        different.sort_unstable();
        different.dedup();
        assert_eq!(different.len(), others.len());
        assert!(!others.contains(&mine));
    }

    #[test]
    fn an_answer_that_waits_keeps_its_place() {
        let places = Arc::new(Places::after(&Outcomes::default()));
        let first = places.mine();
        let kept = places.keep();
        let second = places.mine();
        assert_ne!(first, second);
        assert_ne!(others_place(&places), first);
        drop(kept);
        assert_eq!(others_place(&places), first);
        assert_eq!(places.mine(), second);
    }
}
