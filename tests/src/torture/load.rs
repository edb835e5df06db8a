//! Programs work in VEs while something is done to the daemon under them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::program::Program;
use crate::Host;

/// How long programs work on when what disturbs them is over.
const AFTERWARDS: Duration = Duration::from_millis(500);

/// Runs a program in each of these VEs, which have the sample, while `disturb` runs. It is given a way to see that a program has failed already.
///
/// # Panics
/// When an operation of a program fails.
pub fn under_load(
    host: &Host,
    ves: &[String],
    seed: u64,
    disturb: impl FnOnce(&dyn Fn() -> bool),
) -> Vec<Program> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let start = |(number, ve): (usize, &String)| {
            let program = Program::new(&host.root(ve), seed.wrapping_add(number as u64));
            scope.spawn(|| program.run(&stop))
        };
        let threads: Vec<_> = ves.iter().enumerate().map(start).collect();
        // Whatever happens, the programs end.
        let stopped = Stop(&stop);
        disturb(&|| threads.iter().any(std::thread::ScopedJoinHandle::is_finished));
        std::thread::sleep(AFTERWARDS);
        drop(stopped);
        threads.into_iter().map(|thread| thread.join().expect("a program saw an error")).collect()
    })
}

struct Stop<'s>(&'s AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Makes and mounts VEs on the sample, with this in front of their numbers.
pub fn ves(host: &Host, prefix: &str, count: usize) -> Vec<String> {
    let names: Vec<String> = (0..count).map(|number| format!("{prefix}{number}")).collect();
    host.mounted("sample@1", &names.iter().map(String::as_str).collect::<Vec<_>>());
    names
}

/// Kills the daemon again and again: from the middle of the next one's start to long after it. Returns how often.
pub fn kill_again_and_again(host: &Host, kills: usize, failed: &dyn Fn() -> bool) -> usize {
    for round in 0..kills {
        std::thread::sleep(Duration::from_millis([5, 150, 700][round % 3]));
        let killed = host.kill_daemon();
        while host.daemon_pid() == killed {
            std::thread::sleep(Duration::from_millis(1));
        }
        if failed() {
            return round + 1;
        }
    }
    kills
}
