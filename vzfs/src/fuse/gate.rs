//! Who is mounted again first waits for who is last.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Nobody waits longer: a mount that cannot be taken over is no reason for the others to stand still.
const PATIENCE: Duration = Duration::from_millis(250);

/// Closed while a new daemon takes over the mounts of the last one.
///
/// Hundreds of VEs have waited, and each has work at once. If the first were answered at once, they would take the processors from the thread that takes over
/// the others, whose programs would stand still twice as long.
#[derive(Debug, Default)]
pub struct Gate {
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    /// Lets all through from now on.
    pub fn open(&self) {
        *self.is_open.lock() = true;
        self.opened.notify_all();
    }

    /// Waits until it is open, but not for long.
    pub(super) fn pass(&self) {
        let mut is_open = self.is_open.lock();
        if !*is_open {
            // It makes no difference which of the two it was.
            let _ = self.opened.wait_for(&mut is_open, PATIENCE);
        }
    }
}
