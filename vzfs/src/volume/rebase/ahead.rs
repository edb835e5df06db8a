//! Getting a processor while everybody waits.

use rustix::process::{getpriority_process, setpriority_process};

/// The most that there is, by setpriority(2).
const FIRST: i32 = -20;

/// While it lives, this thread comes before others. Who holds a lock that programs wait for, and has to wait for those same programs to use up their
/// turns on the processor, makes a pause of a millisecond one of twenty.
///
/// On Linux the priority that setpriority(2) sets for process 0 is the calling thread's alone.
pub(super) struct Ahead {
    /// `None` when the priority could not be changed, which takes a right that the daemon may not have.
    before: Option<i32>,
}

impl Ahead {
    pub(super) fn of_others() -> Ahead {
        let before = getpriority_process(None).ok();
        Ahead { before: before.filter(|_| setpriority_process(None, FIRST).is_ok()) }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        if let Some(before) = self.before
            && let Err(error) = setpriority_process(None, before)
        {
            tracing::warn!(%error, "a thread keeps its priority");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_priority_is_the_threads_and_comes_back() {
        let priority = || getpriority_process(None).expect("it can be told");
        let before = priority();
        let (ask, asked) = std::sync::mpsc::channel();
        let other = std::thread::spawn(move || {
            asked.recv().expect("the test asks");
            priority()
        });
        let ahead = Ahead::of_others();
        assert_eq!(priority(), FIRST, "tests run as root");
        ask.send(()).expect("it waits");
        assert_eq!(other.join().expect("no panic"), before, "of another thread");
        drop(ahead);
        assert_eq!(priority(), before);
    }
}
