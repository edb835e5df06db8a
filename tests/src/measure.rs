//! Numbers for people: printed by the tests, never asserted on, as a shared machine is no measuring place.

use std::time::Duration;

/// Milliseconds with one digit.
pub fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

/// The middle of some measurements and the slowest.
pub struct Spread {
    /// Half of them were not slower than this.
    pub median: Duration,
    /// The slowest.
    pub worst: Duration,
}

/// The spread of some measurements; there must be one.
pub fn spread(mut times: Vec<Duration>) -> Spread {
    times.sort_unstable();
    let last = times.last().copied().unwrap_or_default();
    Spread { median: times.get(times.len() / 2).copied().unwrap_or_default(), worst: last }
}

/// A field of `/proc/PID/status` that is given in kilobytes, such as `VmRSS`, in bytes; 0 when there is none.
pub fn process_memory_bytes(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    field_bytes(status.lines(), field).unwrap_or(0)
}

/// The first line `FIELD: NUMBER kB` of a file in `/proc`, in bytes.
pub fn field_bytes<'a>(mut lines: impl Iterator<Item = &'a str>, field: &str) -> Option<u64> {
    let value = lines.find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Resident memory of a process that is its own (not mapped files), in bytes.
pub fn resident_bytes(pid: u32) -> u64 {
    process_memory_bytes(pid, "RssAnon")
}

/// One line of the report; `cargo test -- --show-output` (which `make e2e` uses) shows it.
pub fn report(what: &str, value: impl std::fmt::Display) {
    println!("measured: {what}: {value}");
}
