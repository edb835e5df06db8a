//! Between the exchange of a base and the moment when the kernel knows.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long after the kernel was told an operation may still have been begun before: it has looked a name up and not sent its request.
const GRACE: Duration = Duration::from_secs(1);

/// Whether the kernel may still go by names of before the last rebase.
#[derive(Default)]
pub(in crate::volume) struct Unsettled {
    /// Looked at by each operation; the rest only when it is set.
    any: AtomicBool,
    /// Until when, once that is known.
    end: Mutex<Option<Instant>>,
}

impl Unsettled {
    /// From now on the kernel may be behind. The caller holds `names` exclusively.
    pub(super) fn begin(&self) {
        *self.end.lock() = None;
        self.any.store(true, Ordering::Release);
    }

    /// The kernel has been told.
    pub(super) fn end_soon(&self) {
        *self.end.lock() = Some(Instant::now() + GRACE);
    }

    /// There is no kernel.
    #[cfg(test)]
    pub(in crate::volume) fn end_now(&self) {
        *self.end.lock() = Some(Instant::now());
    }

    /// Whether the kernel may be behind.
    pub(in crate::volume) fn is_now(&self) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let end = self.end.lock();
        let now = end.is_none_or(|end| Instant::now() < end);
        if !now {
            // Under the lock, so that a rebase that begins now is not taken for over.
            self.any.store(false, Ordering::Release);
        }
        now
    }
}
