//! While a VE's programs send many requests, the processors of this machine are kept from halting, and not for longer.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use vzfs_tests::{Host, Setup};

/// What the least of all programs of this machine demands, in microseconds.
const DEMAND: &str = "/dev/cpu_dma_latency";

fn demanded() -> i32 {
    let mut bytes = [0; 4];
    File::open(DEMAND).and_then(|file| file.read_exact_at(&mut bytes, 0)).expect("a number");
    i32::from_ne_bytes(bytes)
}

fn host(choice: &str) -> Host {
    let args = vec!["--idle-processors".into(), choice.into()];
    Host::with_sample_in(Setup { size_mib: 2048, daemon_args: args, ..Setup::default() }, &["one"])
}

/// Sends requests until it is so; whether it comes to that.
fn requests_until(host: &Host, is_so: impl Fn() -> bool) -> bool {
    let root = host.root("one");
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        for _ in 0..100 {
            fs::write(root.join("file"), b"text").expect("written");
        }
        if is_so() {
            return true;
        }
    }
    false
}

#[test]
fn they_are_kept_awake_as_long_as_requests_come() {
    if !Path::new(DEMAND).exists() {
        return eprintln!("SKIPPED: this kernel has no {DEMAND}");
    }
    let host = host("awake");
    let at_rest = demanded();
    assert!(at_rest > 0, "nobody else keeps them awake");
    assert!(requests_until(&host, || demanded() == 0));
    let deadline = Instant::now() + Duration::from_secs(60);
    while demanded() != at_rest {
        assert!(Instant::now() < deadline, "they may halt again when nothing is asked any more");
        std::thread::sleep(Duration::from_millis(10));
    }
    // The next daemon does the same, and the end of one is the end of what it demands.
    host.vzfs(["daemon", "restart"]).ok();
    assert!(requests_until(&host, || demanded() == 0));
    drop(host);
    assert_eq!(demanded(), at_rest);

    let halting = self::host("halt");
    let demands = std::cell::Cell::new(false);
    let begin = Instant::now();
    requests_until(&halting, || {
        demands.set(demands.get() || demanded() == 0);
        begin.elapsed() > Duration::from_secs(2)
    });
    assert!(!demands.get());
}
