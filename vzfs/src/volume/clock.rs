//! The clock that the host's files run on.
//!
//! A private file's times are set by the kernel, from a clock that is a few milliseconds behind the real time (it moves with the timer's
//! ticks), or the real time where somebody looks at the file often (multigrain timestamps, Linux 6.13). What the volume stamps itself, such as
//! directories and links, must fit in between, or a program that compares two files finds the later one older, as `make` would. So the volume
//! asks the kernel what it would stamp on a file: it touches one in memory and looks. Looking makes the kernel stamp the real time the next time,
//! and then no file a time before that.

use std::fs::File;

use rustix::fs::{MemfdFlags, Timespec, Timestamps, UTIME_NOW};

use crate::types::Timestamp;

/// The clock of the host's files.
pub(super) struct Clock {
    /// `None`: the host gives no file in memory; the real time is near enough.
    touched: Option<File>,
}

impl Clock {
    pub(super) fn new() -> Self {
        let file = rustix::fs::memfd_create("vzfs-clock", MemfdFlags::CLOEXEC);
        Clock { touched: file.ok().map(File::from) }
    }

    /// The current time: later than what any file was stamped with before.
    pub(super) fn now(&self) -> Timestamp {
        // No file was stamped with a later time so far.
        let before = Timestamp::now();
        let later = |file| match touch(file)? {
            // The time of the last tick, or of another file since: one that a file has already.
            time if time <= before => touch(file),
            time => Some(time),
        };
        self.touched.as_ref().and_then(later).unwrap_or_else(Timestamp::now)
    }
}

fn touch(file: &File) -> Option<Timestamp> {
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    rustix::fs::futimens(file, &Timestamps { last_access: now, last_modification: now }).ok()?;
    Some(super::data::HostStat::of_file(file).ok()?.mtime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn now_is_later_than_what_a_file_shows() {
        let clock = Clock::new();
        let file = tempfile::tempfile_in("/var/tmp").expect("scratch file");
        for number in 0..2000_u64 {
            std::os::unix::fs::FileExt::write_all_at(&file, b"x", number).expect("write");
            let shown = crate::volume::data::HostStat::of_file(&file).expect("stat").ctime;
            assert!(clock.now() > shown, "{number}: {shown:?}");
        }
    }

    #[test]
    fn what_happens_later_is_not_earlier_on_a_file() {
        let clock = Clock::new();
        assert!(clock.touched.is_some());
        let file = tempfile::tempfile_in("/var/tmp").expect("scratch file");
        let mut last = Timestamp::default();
        for number in 0..2000_u32 {
            let time = if number % 2 == 0 {
                clock.now()
            } else {
                std::os::unix::fs::FileExt::write_all_at(&file, b"x", u64::from(number)).expect("write");
                crate::volume::data::HostStat::of_file(&file).expect("stat").mtime
            };
            assert!(time >= last, "{number}: {time:?} after {last:?}");
            last = time;
        }
    }
}
