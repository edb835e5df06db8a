//! Whoever changes much lets other VEs' syncs go before.
//!
//! All VEs of a store share one disk, and with it the journal of the host's filesystem: a sync waits until whatever anybody has changed there is written. A
//! VE in which several programs make files without end makes a single `fsync` of another VE take more than twice as long on ext4
//! (`benches/README.md`). So a VE in which several threads change things pauses after a change while another VE syncs: until that is done, but for no longer than it
//! has not paused before. It keeps half of the time at least, and a program that works alone never waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// A pause is no longer, however slow the disk.
const LONGEST_PAUSE: Duration = Duration::from_millis(1);
/// What is owed adds up to so much first: a shorter pause would take much longer than it should, as it takes a while to go to sleep and wake up.
const SHORTEST_PAUSE: Duration = Duration::from_micros(500);
/// Two threads that make changes within such a time are at it together.
const TOGETHER: Duration = Duration::from_millis(10);

/// The syncs of all VEs that are under way on a store's disk.
#[derive(Debug, Default)]
pub struct DiskSyncs {
    under_way: Mutex<usize>,
    ended: Condvar,
}

/// What one VE owes to the others.
#[derive(Debug)]
pub(super) struct Courtesy {
    disk: Arc<DiskSyncs>,
    /// This VE's syncs among those.
    own: AtomicUsize,
    changes: Mutex<Changes>,
    /// Microseconds that it has paused.
    waited: AtomicU64,
}

/// The last changes of a VE.
#[derive(Debug)]
struct Changes {
    /// Who made the last one, and when.
    last: Option<(u32, Instant)>,
    /// When one followed another thread's.
    together: Option<Instant>,
    /// When the last pause ended.
    paused: Instant,
}

impl Courtesy {
    pub(super) fn new(disk: Arc<DiskSyncs>) -> Courtesy {
        let changes = Changes { last: None, together: None, paused: Instant::now() };
        Courtesy { disk, own: AtomicUsize::new(0), changes: Mutex::new(changes), waited: AtomicU64::new(0) }
    }

    /// Does what waits for the disk.
    pub(super) fn sync<T>(&self, work: impl FnOnce() -> T) -> T {
        self.own.fetch_add(1, Ordering::AcqRel);
        *self.disk.under_way.lock() += 1;
        let _until_done = Syncing(self);
        work()
    }

    /// Pauses after a change for this thread of the VE, if that is due.
    pub(super) fn changed(&self, thread: u32) {
        let now = Instant::now();
        let owed = self.changes.lock().owed(thread, now);
        if let Some(owed) = owed
            && self.let_others_sync(now + owed)
        {
            let end = Instant::now();
            self.changes.lock().paused = end;
            let took = end.duration_since(now).as_micros();
            self.waited.fetch_add(took.try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    /// How long it has paused.
    pub(super) fn waited(&self) -> Duration {
        Duration::from_micros(self.waited.load(Ordering::Relaxed))
    }

    /// Waits while others sync. Whether any did.
    fn let_others_sync(&self, deadline: Instant) -> bool {
        let others = |under_way: usize| under_way > self.own.load(Ordering::Acquire);
        let mut under_way = self.disk.under_way.lock();
        let any = others(*under_way);
        while others(*under_way) && !self.disk.ended.wait_until(&mut under_way, deadline).timed_out() {}
        any
    }
}

/// A sync under way.
struct Syncing<'c>(&'c Courtesy);

impl Drop for Syncing<'_> {
    fn drop(&mut self) {
        let Courtesy { disk, own, .. } = self.0;
        *disk.under_way.lock() -= 1;
        own.fetch_sub(1, Ordering::AcqRel);
        disk.ended.notify_all();
    }
}

impl Changes {
    /// How long a thread that has changed something is to let others go before; `None` if it is the only one.
    fn owed(&mut self, thread: u32, now: Instant) -> Option<Duration> {
        let lately = |at: Instant| now.saturating_duration_since(at) < TOGETHER;
        if self.last.is_some_and(|(before, at)| before != thread && lately(at)) {
            self.together = Some(now);
        }
        self.last = Some((thread, now));
        let together = self.together.is_some_and(lately);
        let owed = now.saturating_duration_since(self.paused);
        (together && owed >= SHORTEST_PAUSE).then(|| owed.min(LONGEST_PAUSE))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn of_two() -> (Courtesy, Courtesy) {
        let disk = Arc::<DiskSyncs>::default();
        (Courtesy::new(Arc::clone(&disk)), Courtesy::new(disk))
    }

    #[test]
    fn only_who_is_not_alone_owes_something_and_never_more_than_it_took() {
        let (courtesy, _) = of_two();
        let mut changes = courtesy.changes.into_inner();
        let begin = changes.paused;
        let at = |micros| begin + Duration::from_micros(micros);
        let owed = |micros| Some(Duration::from_micros(micros));
        assert_eq!(changes.owed(1, at(100)), None);
        assert_eq!(changes.owed(1, at(200)), None, "one thread");
        assert_eq!(changes.owed(2, at(600)), owed(600));
        changes.paused = at(1_100);
        assert_eq!(changes.owed(1, at(1_400)), None, "not worth a pause");
        assert_eq!(changes.owed(2, at(1_800)), owed(700), "half of the time is its own");
        assert_eq!(changes.owed(2, at(5_000)), owed(1_000), "no pause is longer");
        assert_eq!(changes.owed(2, at(11_900)), None, "it is alone again");
        assert_eq!(changes.owed(1, at(30_300)), None, "the other was there long before");
        assert_eq!(changes.owed(2, at(30_400)), owed(1_000));
    }

    #[test]
    fn who_changes_waits_for_the_syncs_of_others_and_not_for_its_own() {
        let (courtesy, other) = of_two();
        let far = || Instant::now() + Duration::from_secs(600);
        assert!(!courtesy.let_others_sync(far()), "nobody syncs");
        courtesy.sync(|| assert!(!courtesy.let_others_sync(far()), "it syncs itself"));
        let (begun, wait_for_begin) = mpsc::channel();
        let (end, wait_for_end) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                other.sync(move || {
                    begun.send(()).expect("somebody waits");
                    wait_for_end.recv().expect("it is sent");
                });
            });
            wait_for_begin.recv().expect("it begins");
            assert!(courtesy.let_others_sync(Instant::now()), "not for longer than it owes");
            let waiting = scope.spawn(|| courtesy.let_others_sync(far()));
            end.send(()).expect("it waits");
            assert!(waiting.join().is_ok());
        });
        assert_eq!(*courtesy.disk.under_way.lock(), 0);
    }
}
