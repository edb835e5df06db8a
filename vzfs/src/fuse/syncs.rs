//! Who waits for the disk: one thread of a mount for all programs of its VE.
//!
//! A sync takes as long as a hundred other requests, and a mount has two threads. Were each to sync what it is asked to, two programs that sync all the time
//! would keep all others of their VE waiting, and the host's journal, whose commits all VEs of that disk wait for, would commit for each of them. So whoever
//! comes while a sync is under way leaves its own behind and goes on; who syncs takes what has gathered meanwhile as one, and they share a commit.
//!
//! A large file is synced apart from others, which would wait for it long after they are done.
//!
//! In a crowd, who syncs pauses as long as the last ones took before it goes on. More gather meanwhile, and the disk is free for others half of the
//! time: a VE that syncs as fast as it can leaves other VEs about as fast as they are (`benches/README.md`). A program that syncs alone never waits so.

use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// So many may wait, each with a descriptor of the daemon's. Who comes then does its own work.
const MOST_WAITING: usize = 16;
/// A pause is no longer, however slow the disk.
const LONGEST_PAUSE: Duration = Duration::from_millis(1);

/// Work that one thread at a time does for all.
#[derive(Debug)]
pub(super) struct Syncs<T> {
    queue: Mutex<Queue<T>>,
}

#[derive(Debug)]
struct Queue<T> {
    /// What came while somebody was at work, in order.
    waiting: Vec<T>,
    /// Whether somebody is.
    at_work: bool,
    /// How many are at their own work only, or in the pause after it.
    apart: usize,
}

impl<T> Default for Syncs<T> {
    fn default() -> Self {
        Syncs { queue: Mutex::new(Queue { waiting: Vec::new(), at_work: false, apart: 0 }) }
    }
}

impl<T> Syncs<T> {
    /// Does the work, and then all that others have left behind meanwhile, as many at a time as there are; or leaves it to who is at it. What is
    /// to be done `apart` is neither left to others nor keeps theirs waiting.
    pub(super) fn join(&self, work: T, apart: bool, do_all: impl FnMut(Vec<T>)) {
        self.join_with(work, apart, do_all, thread::sleep);
    }

    fn join_with(
        &self,
        work: T,
        apart: bool,
        mut do_all: impl FnMut(Vec<T>),
        mut pause: impl FnMut(Duration),
    ) {
        let apart = {
            let mut queue = self.queue.lock();
            if queue.at_work && !apart && queue.waiting.len() < MOST_WAITING {
                return queue.waiting.push(work);
            }
            let apart = apart || queue.at_work;
            if apart {
                queue.apart += 1;
            } else {
                queue.at_work = true;
            }
            apart
        };
        let _until_done = AtWork { syncs: self, apart };
        let mut next = vec![work];
        while !next.is_empty() {
            let begun = Instant::now();
            do_all(next);
            let is_crowd = {
                let queue = self.queue.lock();
                if apart {
                    queue.at_work || queue.apart > 1
                } else {
                    !queue.waiting.is_empty() || queue.apart > 0
                }
            };
            if is_crowd {
                pause(begun.elapsed().min(LONGEST_PAUSE));
            }
            let mut queue = self.queue.lock();
            next = if apart { Vec::new() } else { std::mem::take(&mut queue.waiting) };
            // Under the same lock: what comes from now on is not left to this thread.
            queue.at_work &= apart || !next.is_empty();
        }
    }
}

/// Takes a thread off the queue, also one that panicked.
struct AtWork<'a, T> {
    syncs: &'a Syncs<T>,
    apart: bool,
}

impl<T> Drop for AtWork<'_, T> {
    fn drop(&mut self) {
        let mut queue = self.syncs.queue.lock();
        if self.apart {
            queue.apart -= 1;
        } else if thread::panicking() {
            queue.at_work = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_during_a_sync_or_the_pause_after_it_is_done_as_one() {
        let syncs = Syncs::default();
        let leave =
            |number| syncs.join(number, false, |all| assert!(all.is_empty(), "it is left to who is at work"));
        let (mut done, mut pauses) = (Vec::new(), 0);
        let do_all = |all: Vec<i32>| {
            match all[0] {
                0 => [1, 2].map(leave),
                1 => [4, 5].map(leave),
                _ => [(); 2],
            };
            done.push(all);
        };
        let pause = |long| {
            assert!(long <= LONGEST_PAUSE);
            pauses += 1;
            if pauses == 1 {
                leave(3);
            }
        };
        syncs.join_with(0, false, do_all, pause);
        assert_eq!(done, [vec![0], vec![1, 2, 3], vec![4, 5]]);
        assert_eq!(pauses, 2);
        for apart in [false, true] {
            let mut alone = Vec::new();
            syncs.join_with(6, apart, |all| alone.push(all), |_| pauses += 1);
            assert_eq!((alone, pauses), (vec![vec![6]], 2), "nobody is at work any more: no pause");
        }
    }

    #[test]
    fn what_is_done_apart_waits_for_nobody_but_pauses_in_a_crowd() {
        for (outer, inner) in [(false, true), (true, true), (true, false)] {
            let syncs = Syncs::default();
            let (mut done, mut inner_pauses, mut outer_pauses) = (Vec::new(), 0, 0);
            syncs.join_with(
                "outer",
                outer,
                |all| {
                    assert_eq!(all, ["outer"]);
                    syncs.join_with("inner", inner, |all| done.push(all), |_| inner_pauses += 1);
                },
                |_| outer_pauses += 1,
            );
            assert_eq!(done, [["inner"]]);
            assert_eq!((inner_pauses, outer_pauses), (1, 0), "the outer one is alone again at its end");
        }
    }

    #[test]
    fn who_comes_when_many_wait_does_its_own() {
        let syncs = Syncs::default();
        let mut alone = Vec::new();
        let mut done = 0;
        syncs.join(0, false, |all| {
            done += all.len();
            if all == [0] {
                for number in 1..=MOST_WAITING + 2 {
                    syncs.join(number, false, |one| alone.push(one));
                }
            }
        });
        assert_eq!(done, 1 + MOST_WAITING);
        assert_eq!(alone, [[MOST_WAITING + 1], [MOST_WAITING + 2]]);
    }

    #[test]
    fn after_a_panic_the_next_is_at_work() {
        let syncs = Syncs::default();
        for apart in [false, true] {
            let planned = || syncs.join(0, apart, |all| assert!(all.is_empty(), "as planned"));
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(planned)).is_err());
        }
        let (mut done, mut pauses) = (0, 0);
        syncs.join_with(1, false, |all| done += all.len(), |_| pauses += 1);
        assert_eq!((done, pauses), (1, 0));
    }
}
