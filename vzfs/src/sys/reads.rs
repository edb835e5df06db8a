//! Whether what a thread has read of mapped files was theirs.
//!
//! Nobody can be told of a page that cannot be read at the moment of the access, which is an ordinary load. So whoever reads asks afterwards, before
//! anything is done with what was read: nothing is written, cached or answered of it otherwise.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, compiler_fence};

use super::bus_error;

/// One thread's. Atomics, because the signal handler writes there too.
struct Thread {
    /// How often it met a page that cannot be read.
    unreadable: AtomicU64,
    /// The last such place.
    place: AtomicUsize,
    /// The ranges that it has read in, by their bits.
    ranges: AtomicU64,
    /// [`Thread::unreadable`] and the changes of all pages when the innermost [`Reads`] began.
    began: [AtomicU64; 2],
    /// How many [`Reads`] there are.
    depth: AtomicU64,
    /// Not 0 once something was stored in the innermost.
    settled: AtomicU64,
}

thread_local! {
    static THREAD: Thread = const {
        Thread {
            unreadable: AtomicU64::new(0),
            place: AtomicUsize::new(0),
            ranges: AtomicU64::new(0),
            began: [const { AtomicU64::new(0) }; 2],
            depth: AtomicU64::new(0),
            settled: AtomicU64::new(0),
        }
    };
}

/// What came of reading.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// All of it was the files'.
    Sound,
    /// Pages were exchanged meanwhile, perhaps others than those that were read: it can be read again.
    Disturbed,
    /// What is at this address could not be read.
    Unreadable(usize),
}

/// What this thread reads of mapped files from now on. They nest: what was read in an inner one was read in the outer too.
pub struct Reads {
    outer: [u64; 2],
    outer_ranges: u64,
    outer_settled: u64,
    /// It is about one thread.
    _not_send: PhantomData<*const ()>,
}

impl Reads {
    /// Begins.
    pub fn begin() -> Reads {
        let changes = bus_error::changes();
        THREAD.with(|thread| {
            let outer = thread.began.each_ref().map(|began| began.load(Ordering::Relaxed));
            let outer_ranges = thread.ranges.load(Ordering::Relaxed);
            thread.began[0].store(thread.unreadable.load(Ordering::Relaxed), Ordering::Relaxed);
            thread.began[1].store(changes, Ordering::Relaxed);
            thread.ranges.store(0, Ordering::Relaxed);
            let outer_settled = thread.settled.load(Ordering::Relaxed);
            thread.settled.store(0, Ordering::Relaxed);
            thread.depth.store(thread.depth.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            compiler_fence(Ordering::SeqCst);
            Reads { outer, outer_ranges, outer_settled, _not_send: PhantomData }
        })
    }

    /// What came of it so far: of the innermost, which this must be.
    pub fn verdict(&self) -> Verdict {
        verdict()
    }

    /// Ends it, and what was read does not count for the outer one: it was thrown away.
    pub fn forget(self) {
        THREAD.with(|thread| {
            thread.unreadable.store(thread.began[0].load(Ordering::Relaxed), Ordering::Relaxed);
            thread.ranges.store(0, Ordering::Relaxed);
        });
    }
}

impl Drop for Reads {
    fn drop(&mut self) {
        THREAD.with(|thread| {
            for (began, outer) in thread.began.iter().zip(self.outer) {
                began.store(outer, Ordering::Relaxed);
            }
            let ranges = thread.ranges.load(Ordering::Relaxed) | self.outer_ranges;
            thread.ranges.store(ranges, Ordering::Relaxed);
            thread.settled.store(self.outer_settled, Ordering::Relaxed);
            thread.depth.store(thread.depth.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
        });
    }
}

/// What came of the innermost [`Reads`] of this thread so far, and nothing but that if it is sound: what follows from it is about to be stored, and
/// who did that must not be told that he did not.
pub fn settle() -> Verdict {
    let verdict = verdict();
    if verdict == Verdict::Sound {
        THREAD.with(|thread| thread.settled.store(1, Ordering::Relaxed));
    }
    verdict
}

/// What came of the innermost [`Reads`] of this thread so far; without one, nothing did.
pub fn verdict() -> Verdict {
    compiler_fence(Ordering::SeqCst);
    THREAD.with(|thread| {
        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
        if load(&thread.depth) == 0 || load(&thread.settled) != 0 {
            Verdict::Sound
        } else if load(&thread.unreadable) != load(&thread.began[0]) {
            Verdict::Unreadable(thread.place.load(Ordering::Relaxed))
        } else if bus_error::changed_since(load(&thread.began[1]), load(&thread.ranges)) {
            Verdict::Disturbed
        } else {
            Verdict::Sound
        }
    })
}

/// Notes that this thread is about to read in a range.
pub(super) fn note_range(bit: u64) {
    THREAD.with(|thread| {
        thread.ranges.store(thread.ranges.load(Ordering::Relaxed) | bit, Ordering::Relaxed);
    });
}

/// Notes that this thread reads, or is about to read, what is not there. Also called by the signal handler.
pub(super) fn note_unreadable(address: usize) {
    THREAD.with(|thread| {
        thread.unreadable.store(thread.unreadable.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        thread.place.store(address, Ordering::Relaxed);
    });
}
