//! Who waits for the disk: one thread of a mount for all programs of its VE.
//!
//! A sync takes as long as a hundred other requests, and a mount has two threads. Were each to sync what it is asked to, two programs that sync all the time
//! would keep all others of their VE waiting, and the host's journal, whose commits all VEs of that disk wait for, would commit for each of them. So whoever
//! comes while a sync is under way leaves its own behind and goes on; who syncs takes what has gathered meanwhile as one, and they share a commit.
//!
//! Where syncs do gather, who syncs pauses as long as the last ones took before it goes on. More gather meanwhile, and the disk is free for others half of the
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
}

impl<T> Default for Syncs<T> {
    fn default() -> Self {
        Syncs { queue: Mutex::new(Queue { waiting: Vec::new(), at_work: false }) }
    }
}

impl<T> Syncs<T> {
    /// Does the work, and then all that others have left behind meanwhile, as many at a time as there are; or leaves it to who is at it.
    pub(super) fn join(&self, work: T, do_all: impl FnMut(Vec<T>)) {
        self.join_with(work, do_all, thread::sleep);
    }

    fn join_with(&self, work: T, mut do_all: impl FnMut(Vec<T>), mut pause: impl FnMut(Duration)) {
        {
            let mut queue = self.queue.lock();
            if queue.at_work && queue.waiting.len() < MOST_WAITING {
                return queue.waiting.push(work);
            }
            if queue.at_work {
                drop(queue);
                return do_all(vec![work]);
            }
            queue.at_work = true;
        }
        let _until_done = AtWork(self);
        let mut next = vec![work];
        loop {
            let begun = Instant::now();
            do_all(next);
            {
                let mut queue = self.queue.lock();
                if queue.waiting.is_empty() {
                    queue.at_work = false;
                    return;
                }
            }
            pause(begun.elapsed().min(LONGEST_PAUSE));
            next = std::mem::take(&mut self.queue.lock().waiting);
        }
    }
}

/// Ends the work of a thread that panicked: the next one does it again.
struct AtWork<'a, T>(&'a Syncs<T>);

impl<T> Drop for AtWork<'_, T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.queue.lock().at_work = false;
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
            |number| syncs.join(number, |all| assert!(all.is_empty(), "it is left to who is at work"));
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
        syncs.join_with(0, do_all, pause);
        assert_eq!(done, [vec![0], vec![1, 2, 3], vec![4, 5]]);
        assert_eq!(pauses, 2);

        let mut alone = Vec::new();
        syncs.join_with(6, |all| alone.push(all), |_| pauses += 1);
        assert_eq!(
            (alone, pauses),
            (vec![vec![6]], 2),
            "nobody is at work any more, and who is alone does not pause"
        );
    }

    #[test]
    fn who_comes_when_many_wait_does_its_own() {
        let syncs = Syncs::default();
        let mut alone = Vec::new();
        let mut done = 0;
        syncs.join(0, |all| {
            done += all.len();
            if all == [0] {
                for number in 1..=MOST_WAITING + 2 {
                    syncs.join(number, |one| alone.push(one));
                }
            }
        });
        assert_eq!(done, 1 + MOST_WAITING);
        assert_eq!(alone, [[MOST_WAITING + 1], [MOST_WAITING + 2]]);
    }

    #[test]
    fn after_a_panic_the_next_is_at_work() {
        let syncs = Syncs::default();
        let planned = || syncs.join(0, |all| assert!(all.is_empty(), "as planned"));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(planned)).is_err());
        let mut done = 0;
        syncs.join(1, |all| done += all.len());
        assert_eq!(done, 1);
    }
}
