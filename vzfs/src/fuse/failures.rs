//! Failures of the host that reach programs, told to whoever reads the daemon's log: each once, and no more than a log can bear.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::types::Ino;

/// Most lines for a VE in a [`WINDOW`].
const LINES: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);
/// What fails for so long is told again.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// Most failures that are remembered. After so many, they are told again, as far as [`LINES`] lets them.
const MOST: usize = 4096;

/// What was told of one VE.
#[derive(Default)]
pub(super) struct Failures {
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    /// By errno and inode; without one, what is about the whole VE.
    known: HashSet<(i32, Option<Ino>)>,
    since: Option<Instant>,
    window: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

impl Failures {
    /// Whether a failure is to be told; then with how many were not told since the last that was.
    pub(super) fn admit(&self, errno: i32, ino: Option<Ino>, now: Instant) -> Option<u64> {
        let mut told = self.told.lock();
        let is_over =
            |begin: Option<Instant>, span| begin.is_none_or(|begin| now.duration_since(begin) >= span);
        if is_over(told.since, REMEMBERED) || told.known.len() >= MOST {
            told.known.clear();
            told.since = Some(now);
        }
        if is_over(told.window, WINDOW) {
            (told.window, told.lines) = (Some(now), 0);
        }
        let is_news = !told.known.contains(&(errno, ino));
        if !is_news || told.lines >= LINES {
            told.suppressed += 1;
            return None;
        }
        told.known.insert((errno, ino));
        told.lines += 1;
        Some(std::mem::take(&mut told.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_once_and_what_is_not_told_is_counted() {
        let (failures, now) = (Failures::default(), Instant::now());
        let ino = |number: u64| Ino::new(number);
        assert_eq!(failures.admit(libc::EIO, ino(7), now), Some(0));
        assert_eq!(failures.admit(libc::EIO, ino(7), now), None);
        assert_eq!(failures.admit(libc::EIO, ino(7), now), None);
        assert_eq!(failures.admit(libc::ENOSPC, ino(7), now), Some(2));
        for number in 8..8 + u64::from(LINES) {
            failures.admit(libc::EIO, ino(number), now);
        }
        assert_eq!(failures.admit(libc::EIO, ino(1000), now), None, "the log has had enough");
        assert_eq!(failures.admit(libc::EIO, ino(1000), now + WINDOW), Some(3));
        assert_eq!(failures.admit(libc::EIO, ino(7), now + WINDOW), None, "it was told");
        assert_eq!(failures.admit(libc::EIO, ino(7), now + REMEMBERED), Some(1), "it still fails");
    }
}
