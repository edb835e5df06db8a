use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Tells how much of what was written is durable, so that a sync with nothing new to sync costs nothing, and one sync serves all who wait for it.
///
/// Writers call [`Watermark::advance`] after each write and before they report it; whoever syncs calls [`Watermark::settle`].
#[derive(Debug)]
pub struct Watermark {
    written: AtomicU64,
    durable: AtomicU64,
    /// A leaf; held while something is made durable.
    syncing: Mutex<()>,
}

impl Default for Watermark {
    /// As if something was written: what an earlier process left may not be durable.
    fn default() -> Self {
        Watermark {
            written: AtomicU64::new(Watermark::EARLIER),
            durable: AtomicU64::new(0),
            syncing: Mutex::new(()),
        }
    }
}

impl Watermark {
    /// The mark of what an earlier process left.
    pub const EARLIER: u64 = 1;

    /// Something was written: its mark, for [`Watermark::settle_to`].
    pub fn advance(&self) -> u64 {
        self.written.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Runs `sync` unless everything written before this call is durable already. It may have become so while this waited for the sync of another
    /// thread, if that was begun after the write.
    ///
    /// # Errors
    /// Those of `sync`; the next call then tries again.
    pub fn settle<E>(&self, sync: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        self.settle_to(self.written.load(Ordering::Acquire), sync)
    }

    /// The same for what was written up to the mark `needed`.
    ///
    /// # Errors
    /// Those of `sync`; the next call then tries again.
    pub fn settle_to<E>(&self, needed: u64, sync: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let is_durable = || self.durable.load(Ordering::Acquire) >= needed;
        if is_durable() {
            return Ok(());
        }
        let _one_at_a_time = self.syncing.lock();
        if is_durable() {
            return Ok(());
        }
        let written = self.written.load(Ordering::Acquire);
        sync()?;
        self.durable.store(written, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn syncs_only_what_is_new_and_again_after_a_failure() {
        let mark = Watermark::default();
        let synced = |mark: &Watermark| {
            let mut ran = false;
            mark.settle(|| {
                ran = true;
                Ok::<(), ()>(())
            })
            .map(|()| ran)
        };
        assert_eq!(mark.settle(|| Err("disk")), Err("disk"));
        assert_eq!(synced(&mark), Ok(true));
        assert_eq!(synced(&mark), Ok(false));
        mark.advance();
        assert_eq!(synced(&mark), Ok(true));
        assert_eq!(synced(&mark), Ok(false));
    }

    /// Whoever wrote before a sync began need not sync again, and who wrote while it went on must.
    #[test]
    fn one_sync_serves_all_who_wrote_before_it_began() {
        let (mark, syncs) = (Watermark::default(), AtomicU64::new(0));
        let (begun, go_on) = (Barrier::new(2), Barrier::new(2));
        let count = || {
            syncs.fetch_add(1, Ordering::Relaxed);
            Ok::<(), ()>(())
        };
        std::thread::scope(|scope| {
            let first = scope.spawn(|| {
                mark.settle(|| {
                    begun.wait();
                    go_on.wait();
                    count()
                })
            });
            begun.wait();
            mark.advance();
            let later = [(); 3].map(|()| scope.spawn(|| mark.settle(count)));
            // Nobody can be seen to wait; those that come after the first sync is over ask for the same.
            std::thread::sleep(std::time::Duration::from_millis(20));
            go_on.wait();
            for thread in later.into_iter().chain([first]) {
                assert_eq!(thread.join().expect("no panic"), Ok(()));
            }
        });
        assert_eq!(syncs.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn what_was_written_later_is_not_waited_for() {
        let mark = Watermark::default();
        let mine = mark.advance();
        let count = |needed| {
            let mut syncs = 0;
            let synced = mark.settle_to(needed, || {
                syncs += 1;
                Ok::<_, ()>(())
            });
            synced.map(|()| syncs)
        };
        assert_eq!(count(mine), Ok(1));
        let others = mark.advance();
        assert_eq!((count(mine), count(Watermark::EARLIER)), (Ok(0), Ok(0)));
        assert_eq!((count(others), count(others)), (Ok(1), Ok(0)));
    }
}
